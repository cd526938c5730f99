"""Scores of many committees at once, with bootstrap confidence intervals.

A committee is a row of multiplicities: how much each member of the pool counts, on any scale. `(1, 0, 1, 1)` is three
members, `(2, 0, 1, 0)` counts the first one twice. Combining the members is one matrix product for all committees, in
float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_committee.aggregation import HEADS, head_inputs, head_output
from keras_committee.metrics.calibration import ECE_BINS, equal_width_bins
from keras_committee.metrics.scores import MIN_PROBABILITY
from keras_committee.metrics.selective import SELECTIVE_METRICS, selective_metrics

SCORE_NAMES = ("accuracy", "nll", "ece", "brier")

_COMMITTEES_PER_CHUNK, _VALUES_PER_BLOCK = 64, 2**16  # so that the arrays stay in the processor's cache

_NUM_RESAMPLES = 1000
_TAIL_PERCENT = 2.5  # on either side: 95 % intervals


@dataclass(frozen=True)
class PerExampleScores:
    """Scores of several committees on each example, arrays `(committees, examples)`.

    Attributes:
        correct: bool. Whether the most probable class is the true one.
        nll: float64. Negative natural logarithm of the true class's probability, clipped to at least 1e-12.
        brier: float64. Squared distance to the one-hot label.
        confidence: float64. The largest probability.
    """

    correct: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray

    def ece_gaps(self) -> np.ndarray:
        """Return float64 `(committees, bins)`: the sum of correctness minus confidence in each bin of `metrics.ece`."""
        committees = len(self.correct)
        bins = equal_width_bins(self.confidence) + np.arange(committees)[:, None] * ECE_BINS
        gap = (self.correct - self.confidence).ravel()
        return np.bincount(bins.ravel(), weights=gap, minlength=committees * ECE_BINS).reshape(committees, ECE_BINS)

    def ece_gap_columns(self, committee: int) -> np.ndarray:
        """Return float64 `(examples, bins)`: the contribution of each example to the `ece_gaps` of one committee."""
        confidence = self.confidence[committee]
        columns = np.zeros((len(confidence), ECE_BINS))
        columns[np.arange(len(confidence)), equal_width_bins(confidence)] = self.correct[committee] - confidence
        return columns


def scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> dict[str, np.ndarray]:
    """Return accuracy, NLL, ECE and Brier score of each committee, as in `metrics.classification_metrics`.

    Args:
        log_probabilities: Of all members: floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.
        multiplicities: Numbers of at least 0 `(committees, members)`; each committee has one above 0.
        head: One of `aggregation.HEADS`.

    Returns:
        Float64 `(committees,)` for each of `SCORE_NAMES`.

    Raises:
        ValueError: If there is no such head, or the shapes or multiplicities are invalid.
    """
    multiplicities = _validated(log_probabilities, labels, multiplicities, head)
    starts = range(0, len(multiplicities), _COMMITTEES_PER_CHUNK)
    chunks = [multiplicities[start : start + _COMMITTEES_PER_CHUNK] for start in starts]
    parts = [_mean_scores(log_probabilities, labels, chunk, head) for chunk in chunks]
    return {score: np.concatenate([part[score] for part in parts]) for score in SCORE_NAMES}


def selective_scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> dict[str, np.ndarray]:
    """Return `metrics.selective_metrics` of each committee, float64 `(committees,)` by name.

    The confidence is the largest probability. Arguments and errors as for `scores`.
    """
    rows = []
    for start in range(0, len(multiplicities), _COMMITTEES_PER_CHUNK):
        chunk = multiplicities[start : start + _COMMITTEES_PER_CHUNK]
        part = per_example_scores(log_probabilities, labels, chunk, head)
        rows += [selective_metrics(*committee) for committee in zip(part.confidence, part.correct, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in SELECTIVE_METRICS}


def per_example_scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> PerExampleScores:
    """Return the scores of a few committees on each example; arguments as for `scores`. Raises ValueError."""
    multiplicities = _validated(log_probabilities, labels, multiplicities, head)
    parts = list(_example_blocks(log_probabilities, labels, multiplicities, head))
    return PerExampleScores(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("correct", "nll", "brier", "confidence")
        )
    )


def per_example_scores_from_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> PerExampleScores:
    """Return the scores on each example from probabilities `(committees, examples, classes)`."""
    return _compute_per_example_scores(np.moveaxis(np.asarray(probabilities, dtype=np.float64), 2, 1), labels)


def subset_multiplicities(
    subsets: Sequence[Sequence[int]], num_members: int, weights: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Return the rows of subsets of `num_members` members: float64 `(subsets, members)`.

    A member that is listed twice counts twice. With `weights`, one per member, the counts are multiplied by them; where
    all members of a subset have weight 0 they count equally, as in `layers.subset_head`.
    """
    multiplicities = np.zeros((len(subsets), num_members))
    for row, subset in zip(multiplicities, subsets, strict=True):
        np.add.at(row, list(subset), 1.0)
    if weights is None:
        return multiplicities
    weighted = multiplicities * np.asarray(weights, dtype=np.float64)
    return np.where(weighted.sum(axis=1, keepdims=True) > 0, weighted, multiplicities)


def bootstrap_intervals(scores: PerExampleScores) -> list[dict[str, dict[str, float]]]:
    """Return 95 % intervals for each committee: `{"accuracy": {"value", "low", "high"}, "nll": ..., ...}`.

    Percentile bootstrap over the examples, with 1,000 resamples.
    """
    counts = _resample_counts(scores.correct.shape[1])
    return [_intervals(_resample_scores(scores, committee, counts)) for committee in range(len(scores.correct))]


def bootstrap_differences(first: PerExampleScores, second: PerExampleScores) -> list[dict[str, dict[str, float]]]:
    """Return the intervals of the scores of each committee of `first` minus those of `second`.

    Both are resampled together, so they must be scores on the same examples.
    """
    counts = _resample_counts(first.correct.shape[1])
    pairs = (
        (_resample_scores(first, committee, counts), _resample_scores(second, committee, counts))
        for committee in range(len(first.correct))
    )
    return [_intervals({score: one[score] - other[score] for score in one}) for one, other in pairs]


def bootstrap_mean_difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return `{"value", "low", "high"}` of the mean of `first - second`, both `(examples,)` on the same examples."""
    counts = _resample_counts(len(first))
    difference = first.astype(np.float64) - second
    return _interval(np.concatenate([[difference.mean()], counts @ difference / len(difference)]))


def _validated(log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str) -> np.ndarray:
    """Return the multiplicities as float64. Raises ValueError."""
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {head!r}")
    if log_probabilities.ndim != 3 or 0 in log_probabilities.shape:
        raise ValueError(
            "log_probabilities must be (examples, members, classes), none of them 0. "
            f"Received: shape {log_probabilities.shape}"
        )
    examples, members, classes = log_probabilities.shape
    if np.shape(labels) != (examples,) or np.min(labels) < 0 or np.max(labels) >= classes:
        raise ValueError(f"labels must be {examples} integers in 0..{classes - 1}. Received: {labels!r}")
    multiplicities = np.asarray(multiplicities, dtype=np.float64)
    if (
        multiplicities.ndim != 2
        or multiplicities.shape[1] != members
        or not (multiplicities >= 0).all()
        or not (multiplicities.sum(axis=1) > 0).all()
    ):
        raise ValueError(
            f"multiplicities must be (committees, {members}), at least 0, and not all 0 in a row. "
            f"Received: {multiplicities!r}"
        )
    return multiplicities


def _mean_scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> dict[str, np.ndarray]:
    examples = len(labels)
    sums = {score: np.zeros(len(multiplicities)) for score in ("accuracy", "nll", "brier")}
    gaps = np.zeros((len(multiplicities), ECE_BINS))
    for part in _example_blocks(log_probabilities, labels, multiplicities, head):
        sums["accuracy"] += part.correct.sum(axis=1)
        sums["nll"] += part.nll.sum(axis=1)
        sums["brier"] += part.brier.sum(axis=1)
        gaps += part.ece_gaps()
    return {**{score: total / examples for score, total in sums.items()}, "ece": np.abs(gaps).sum(axis=1) / examples}


def _example_blocks(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> Iterator[PerExampleScores]:
    """Yield the scores of one block of examples after another, in order."""
    examples, _, classes = log_probabilities.shape
    step = max(1, _VALUES_PER_BLOCK // (len(multiplicities) * classes))
    for start in range(0, examples, step):
        block = slice(start, start + step)
        yield _compute_per_example_scores(_combine(log_probabilities[block], multiplicities, head), labels[block])


def _combine(log_probabilities: np.ndarray, multiplicities: np.ndarray, head: str) -> np.ndarray:
    """Return `aggregation.combine` for each committee, `(committees, classes, examples)`.

    With the examples last, NumPy reduces over the classes of many examples at a time.
    """
    examples, members, classes = log_probabilities.shape
    inputs = np.ascontiguousarray(np.moveaxis(head_inputs(head, log_probabilities), 0, 2)).reshape(members, -1)
    # Divided by the total last: integers add up exactly, so that ties of a majority vote stay ties.
    totals = multiplicities.sum(axis=1)[:, None, None]
    averages = (multiplicities @ inputs).reshape(len(multiplicities), classes, examples) / totals
    return head_output(head, averages, axis=1)


def _compute_per_example_scores(probabilities: np.ndarray, labels: np.ndarray) -> PerExampleScores:
    """Return the scores of probabilities `(committees, classes, examples)`."""
    true_probabilities = probabilities[:, labels, np.arange(len(labels))]
    return PerExampleScores(
        correct=probabilities.argmax(axis=1) == labels,
        nll=-np.log(np.maximum(true_probabilities, MIN_PROBABILITY)),
        brier=np.einsum("scn,scn->sn", probabilities, probabilities) - 2 * true_probabilities + 1,
        confidence=probabilities.max(axis=1),
    )


def _resample_counts(num_examples: int) -> np.ndarray:
    """Return float32 `(resamples, examples)`: how often each resample has each example. Exact up to 2**24."""
    rng = np.random.default_rng(0)
    counts = np.empty((_NUM_RESAMPLES, num_examples), np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    return counts


def _resample_scores(scores: PerExampleScores, committee: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return each score on the original examples, then on each resample: `(1 + resamples,)`."""
    num_examples = counts.shape[1]
    columns = np.column_stack(
        [scores.correct[committee], scores.nll[committee], scores.brier[committee], scores.ece_gap_columns(committee)]
    )
    means = np.vstack([columns.sum(axis=0), counts @ columns.astype(np.float32)]) / num_examples
    return {"accuracy": means[:, 0], "nll": means[:, 1], "ece": np.abs(means[:, 3:]).sum(axis=1), "brier": means[:, 2]}


def _intervals(resampled: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {score: _interval(values) for score, values in resampled.items()}


def _interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values[1:], [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
