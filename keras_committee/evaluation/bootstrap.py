"""How far could a figure be off, had the examples been others of the same kind?

Examples are drawn anew with replacement, as many as there are, 1,000 times with a fixed seed; the interval holds the
middle 95 % of what comes out. Two committees are compared on the same draws, so what is hard for both cancels out. The
interval tells of the choice of examples alone: another training would add its own spread.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13.
"""

from collections.abc import Mapping

import numpy as np

from keras_committee.evaluation.subsets import Figures

DRAWS = 1000
_TAIL = 2.5  # percent on either side


def intervals(figures: Figures) -> list[dict[str, dict[str, float]]]:
    """For each committee `{"accuracy": {"value", "low", "high"}, "nll": ..., "ece": ..., "brier": ...}`."""
    counts = _counts(figures.correct.shape[1])
    return [_summaries(_resampled(figures, place, counts)) for place in range(len(figures.correct))]


def differences(first: Figures, second: Figures) -> list[dict[str, dict[str, float]]]:
    """The same for each committee of `first` less that of `second`, both on the same examples."""
    counts = _counts(first.correct.shape[1])
    pairs = ((_resampled(first, at, counts), _resampled(second, at, counts)) for at in range(len(first.correct)))
    return [_summaries({score: one[score] - other[score] for score in one}) for one, other in pairs]


def difference_of_means(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """`{"value", "low", "high"}` of mean of `first` less mean of `second`, both `(examples,)` on the same examples."""
    counts = _counts(len(first))
    gap = first.astype(np.float64) - second
    return _interval(np.concatenate([[gap.mean()], counts @ gap / len(gap)]))


def _counts(examples: int) -> np.ndarray:
    """float32 `(DRAWS, examples)`: how often each draw has each example. Up to 2**24 that is exact."""
    draw = np.random.default_rng(0)
    counts = np.empty((DRAWS, examples), np.float32)
    for row in counts:
        row[:] = np.bincount(draw.integers(examples, size=examples), minlength=examples)
    return counts


def _resampled(figures: Figures, place: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each score on the examples as they are, and then on each draw: `(1 + DRAWS,)`."""
    examples = counts.shape[1]
    columns = np.column_stack(
        [figures.correct[place], figures.nll[place], figures.brier[place], figures.gap_columns(place)]
    )
    sums = np.vstack([columns.sum(axis=0), counts @ columns.astype(np.float32)]) / examples
    return {"accuracy": sums[:, 0], "nll": sums[:, 1], "ece": np.abs(sums[:, 3:]).sum(axis=1), "brier": sums[:, 2]}


def _summaries(resampled: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {score: _interval(values) for score, values in resampled.items()}


def _interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values[1:], [_TAIL, 100 - _TAIL])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
