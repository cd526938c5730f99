"""How good is each of many committees? The votes of all of them are one matrix product.

A committee is a row of shares: how much each member of the pool counts, on any scale. `(1, 0, 1, 1)` is three members
alike, `(2, 0, 1, 0)` has the first one twice. The heads of `layers` are the definition; this is their arithmetic in
NumPy, in float64, for thousands of committees at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HEADS = ("geometric_mean", "arithmetic_mean", "majority_vote", "weighted_geometric_mean")
SCORES = ("accuracy", "nll", "ece", "brier")

_SMALLEST = 1e-12  # as in `metrics.nll`
_LOG_ZERO = -1e30  # as in `layers.heads`
_BINS = 15  # as in `metrics.ece`
_COMMITTEES, _NUMBERS = 64, 2**16  # at once: what is worked on stays in the cache of the processor


@dataclass(frozen=True)
class Figures:
    """What each of some committees makes of each example, `(committees, examples)`.

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

    def gaps(self) -> np.ndarray:
        """float64 `(committees, bins)`: of `metrics.ece`, the sum over each bin of whether right, less confidence."""
        committees = len(self.correct)
        bins = _bins(self.confidence) + np.arange(committees)[:, None] * _BINS
        gap = (self.correct - self.confidence).ravel()
        return np.bincount(bins.ravel(), weights=gap, minlength=committees * _BINS).reshape(committees, _BINS)

    def gap_columns(self, committee: int) -> np.ndarray:
        """float64 `(examples, bins)`: what each example adds to which of the `gaps` of one committee."""
        confidence = self.confidence[committee]
        columns = np.zeros((len(confidence), _BINS))
        columns[np.arange(len(confidence)), _bins(confidence)] = self.correct[committee] - confidence
        return columns


def scores(log_probabilities: np.ndarray, labels: np.ndarray, shares: np.ndarray, head: str) -> dict[str, np.ndarray]:
    """Accuracy, NLL, ECE and Brier score of each committee, as `metrics.summary` has them.

    Args:
        log_probabilities: Of all members: floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.
        shares: Numbers of 0 or more `(committees, members)`; each committee has one above 0.
        head: One of `HEADS`.

    Returns:
        Float64 `(committees,)` for each of `SCORES`.

    Raises:
        ValueError: If there is no such head, or shapes or shares do not fit.
    """
    shares = _checked(log_probabilities, labels, shares, head)
    parts = [_scores(log_probabilities, labels, part, head) for part in _rows(shares)]
    return {score: np.concatenate([part[score] for part in parts]) for score in SCORES}


def figures(log_probabilities: np.ndarray, labels: np.ndarray, shares: np.ndarray, head: str) -> Figures:
    """The same for each example, of a few committees. Raises ValueError."""
    shares = _checked(log_probabilities, labels, shares, head)
    parts = list(_blocks(log_probabilities, labels, shares, head))
    return Figures(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("correct", "nll", "brier", "confidence")
        )
    )


def figures_of(probabilities: np.ndarray, labels: np.ndarray) -> Figures:
    """The figures of whatever gave the probabilities `(committees, examples, classes)`."""
    return _figures(np.moveaxis(np.asarray(probabilities, dtype=np.float64), 2, 1), labels)


def combine(log_probabilities: np.ndarray, shares: np.ndarray, head: str) -> np.ndarray:
    """The probabilities of a few committees: float64 `(committees, examples, classes)`. Raises ValueError."""
    shares = _checked(log_probabilities, None, shares, head)
    return np.moveaxis(_combine(log_probabilities, shares, head), 1, 2)


def shares_of(subsets: Sequence[Sequence[int]], members: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """The rows of subsets of the `members`: float64 `(subsets, members)`; a member named twice counts twice.

    With `weights`, one for each member, each counts as much; where all of a subset have weight 0, they count alike, as
    in `layers.head_of`.
    """
    shares = np.zeros((len(subsets), members))
    for row, subset in zip(shares, subsets, strict=True):
        np.add.at(row, list(subset), 1.0)
    if weights is None:
        return shares
    weighted = shares * np.asarray(weights, dtype=np.float64)
    return np.where(weighted.sum(axis=1, keepdims=True) > 0, weighted, shares)


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.arange(1, _BINS) / _BINS, confidence, side="left")


def _checked(log_probabilities, labels, shares, head) -> np.ndarray:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {head!r}")
    if log_probabilities.ndim != 3 or 0 in log_probabilities.shape:
        raise ValueError(
            f"votes must be (examples, members, classes), none of them 0. Received: {log_probabilities.shape}"
        )
    examples, members, classes = log_probabilities.shape
    if labels is not None and (np.shape(labels) != (examples,) or np.min(labels) < 0 or np.max(labels) >= classes):
        raise ValueError(f"labels must be {examples} integers of 0..{classes - 1}. Received: {labels!r}")
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 2 or shares.shape[1] != members or not (shares >= 0).all() or not (shares.sum(axis=1) > 0).all():
        raise ValueError(f"shares must be (committees, {members}), of 0 or more, in no row all 0. Received: {shares!r}")
    return shares


def _rows(shares: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(shares), _COMMITTEES):
        yield shares[first : first + _COMMITTEES]


def _scores(log_probabilities, labels, shares, head) -> dict[str, np.ndarray]:
    examples = len(labels)
    sums = {score: np.zeros(len(shares)) for score in ("accuracy", "nll", "brier")}
    gaps = np.zeros((len(shares), _BINS))
    for part in _blocks(log_probabilities, labels, shares, head):
        sums["accuracy"] += part.correct.sum(axis=1)
        sums["nll"] += part.nll.sum(axis=1)
        sums["brier"] += part.brier.sum(axis=1)
        gaps += part.gaps()
    return {**{score: total / examples for score, total in sums.items()}, "ece": np.abs(gaps).sum(axis=1) / examples}


def _blocks(log_probabilities, labels, shares, head) -> Iterator[Figures]:
    """The figures of ever more examples, in order."""
    examples, _, classes = log_probabilities.shape
    step = max(1, _NUMBERS // (len(shares) * classes))
    for first in range(0, examples, step):
        block = slice(first, first + step)
        yield _figures(_combine(log_probabilities[block], shares, head), labels[block])


def _figures(probabilities: np.ndarray, labels: np.ndarray) -> Figures:
    """Of probabilities `(committees, classes, examples)`."""
    true = probabilities[:, labels, np.arange(len(labels))]
    return Figures(
        correct=probabilities.argmax(axis=1) == labels,
        nll=-np.log(np.maximum(true, _SMALLEST)),
        brier=np.einsum("scn,scn->sn", probabilities, probabilities) - 2 * true + 1,
        confidence=probabilities.max(axis=1),
    )


def _combine(log_probabilities: np.ndarray, shares: np.ndarray, head: str) -> np.ndarray:
    """`(committees, classes, examples)`: the classes lie so that NumPy reduces over them many examples at a time."""
    examples, members, classes = log_probabilities.shape
    votes = np.ascontiguousarray(np.moveaxis(_votes(log_probabilities, head), 0, 2)).reshape(members, -1)
    # Shares are divided by their sum last: whole numbers add up exactly, so ties of a majority vote stay ties.
    pooled = (shares @ votes).reshape(len(shares), classes, examples) / shares.sum(axis=1)[:, None, None]
    return _softmax(pooled) if "geometric" in head else pooled


def _votes(log_probabilities: np.ndarray, head: str) -> np.ndarray:
    """What the head takes the mean of, `(examples, members, classes)`."""
    if head == "majority_vote":
        return np.eye(log_probabilities.shape[2])[log_probabilities.argmax(axis=2)]
    votes = np.asarray(log_probabilities, dtype=np.float64)
    votes = votes - votes.max(axis=2, keepdims=True)
    votes -= np.log(np.exp(votes).sum(axis=2, keepdims=True))
    return np.exp(votes) if head == "arithmetic_mean" else np.maximum(votes, _LOG_ZERO)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over axis 1, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


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
