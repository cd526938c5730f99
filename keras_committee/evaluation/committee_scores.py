"""How good is each of many committees? The votes of all of them are one matrix product.

A committee is a row of shares: how much each member of the pool counts, on any scale. `(1, 0, 1, 1)` is three members
alike, `(2, 0, 1, 0)` has the first one twice. The heads of `layers` are the definition; this is their arithmetic in
NumPy, in float64, for thousands of committees at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HEADS = ("geometric_mean", "arithmetic_mean", "majority_vote", "weighted_geometric_mean")
SCORE_NAMES = ("accuracy", "nll", "ece", "brier")

_MIN_PROBABILITY = 1e-12  # as in `metrics.nll`
_LOG_ZERO = -1e30  # as in `layers.heads`
_BINS = 15  # as in `metrics.ece`
_COMMITTEES_PER_CHUNK, _VALUES_PER_BLOCK = 64, 2**16  # at once: what is worked on stays in the cache of the processor


@dataclass(frozen=True)
class PerExampleScores:
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

    def ece_gaps(self) -> np.ndarray:
        """float64 `(committees, bins)`: of `metrics.ece`, the sum over each bin of whether right, less confidence."""
        committees = len(self.correct)
        bins = _bin_indices(self.confidence) + np.arange(committees)[:, None] * _BINS
        gap = (self.correct - self.confidence).ravel()
        return np.bincount(bins.ravel(), weights=gap, minlength=committees * _BINS).reshape(committees, _BINS)

    def ece_gap_columns(self, committee: int) -> np.ndarray:
        """float64 `(examples, bins)`: what each example adds to which of the `gaps` of one committee."""
        confidence = self.confidence[committee]
        columns = np.zeros((len(confidence), _BINS))
        columns[np.arange(len(confidence)), _bin_indices(confidence)] = self.correct[committee] - confidence
        return columns


def scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> dict[str, np.ndarray]:
    """Accuracy, NLL, ECE and Brier score of each committee, as `metrics.summary` has them.

    Args:
        log_probabilities: Of all members: floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.
        multiplicities: Numbers of 0 or more `(committees, members)`; each committee has one above 0.
        head: One of `HEADS`.

    Returns:
        Float64 `(committees,)` for each of `SCORE_NAMES`.

    Raises:
        ValueError: If there is no such head, or shapes or shares do not fit.
    """
    multiplicities = _validated(log_probabilities, labels, multiplicities, head)
    parts = [_mean_scores(log_probabilities, labels, part, head) for part in _chunks(multiplicities)]
    return {score: np.concatenate([part[score] for part in parts]) for score in SCORE_NAMES}


def per_example_scores(
    log_probabilities: np.ndarray, labels: np.ndarray, multiplicities: np.ndarray, head: str
) -> PerExampleScores:
    """The same for each example, of a few committees. Raises ValueError."""
    multiplicities = _validated(log_probabilities, labels, multiplicities, head)
    parts = list(_example_blocks(log_probabilities, labels, multiplicities, head))
    return PerExampleScores(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("correct", "nll", "brier", "confidence")
        )
    )


def per_example_scores_from_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> PerExampleScores:
    """The figures of whatever gave the probabilities `(committees, examples, classes)`."""
    return _compute_per_example_scores(np.moveaxis(np.asarray(probabilities, dtype=np.float64), 2, 1), labels)


def combine(log_probabilities: np.ndarray, multiplicities: np.ndarray, head: str) -> np.ndarray:
    """The probabilities of a few committees: float64 `(committees, examples, classes)`. Raises ValueError."""
    multiplicities = _validated(log_probabilities, None, multiplicities, head)
    return np.moveaxis(_combine(log_probabilities, multiplicities, head), 1, 2)


def subset_multiplicities(
    subsets: Sequence[Sequence[int]], num_members: int, weights: Sequence[float] | None = None
) -> np.ndarray:
    """The rows of subsets of the `num_members`: float64 `(subsets, members)`; a member named twice counts twice.

    With `weights`, one for each member, each counts as much; where all of a subset have weight 0, they count alike, as
    in `layers.subset_head`.
    """
    multiplicities = np.zeros((len(subsets), num_members))
    for row, subset in zip(multiplicities, subsets, strict=True):
        np.add.at(row, list(subset), 1.0)
    if weights is None:
        return multiplicities
    weighted = multiplicities * np.asarray(weights, dtype=np.float64)
    return np.where(weighted.sum(axis=1, keepdims=True) > 0, weighted, multiplicities)


def _bin_indices(confidence: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.arange(1, _BINS) / _BINS, confidence, side="left")


def _validated(log_probabilities, labels, multiplicities, head) -> np.ndarray:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {head!r}")
    if log_probabilities.ndim != 3 or 0 in log_probabilities.shape:
        raise ValueError(
            f"votes must be (examples, members, classes), none of them 0. Received: {log_probabilities.shape}"
        )
    examples, members, classes = log_probabilities.shape
    if labels is not None and (np.shape(labels) != (examples,) or np.min(labels) < 0 or np.max(labels) >= classes):
        raise ValueError(f"labels must be {examples} integers of 0..{classes - 1}. Received: {labels!r}")
    multiplicities = np.asarray(multiplicities, dtype=np.float64)
    if (
        multiplicities.ndim != 2
        or multiplicities.shape[1] != members
        or not (multiplicities >= 0).all()
        or not (multiplicities.sum(axis=1) > 0).all()
    ):
        raise ValueError(
            f"shares must be (committees, {members}), of 0 or more, in no row all 0. Received: {multiplicities!r}"
        )
    return multiplicities


def _chunks(multiplicities: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(multiplicities), _COMMITTEES_PER_CHUNK):
        yield multiplicities[start : start + _COMMITTEES_PER_CHUNK]


def _mean_scores(log_probabilities, labels, multiplicities, head) -> dict[str, np.ndarray]:
    examples = len(labels)
    sums = {score: np.zeros(len(multiplicities)) for score in ("accuracy", "nll", "brier")}
    gaps = np.zeros((len(multiplicities), _BINS))
    for part in _example_blocks(log_probabilities, labels, multiplicities, head):
        sums["accuracy"] += part.correct.sum(axis=1)
        sums["nll"] += part.nll.sum(axis=1)
        sums["brier"] += part.brier.sum(axis=1)
        gaps += part.ece_gaps()
    return {**{score: total / examples for score, total in sums.items()}, "ece": np.abs(gaps).sum(axis=1) / examples}


def _example_blocks(log_probabilities, labels, multiplicities, head) -> Iterator[PerExampleScores]:
    """The figures of ever more examples, in order."""
    examples, _, classes = log_probabilities.shape
    step = max(1, _VALUES_PER_BLOCK // (len(multiplicities) * classes))
    for start in range(0, examples, step):
        block = slice(start, start + step)
        yield _compute_per_example_scores(_combine(log_probabilities[block], multiplicities, head), labels[block])


def _compute_per_example_scores(probabilities: np.ndarray, labels: np.ndarray) -> PerExampleScores:
    """Of probabilities `(committees, classes, examples)`."""
    true_probabilities = probabilities[:, labels, np.arange(len(labels))]
    return PerExampleScores(
        correct=probabilities.argmax(axis=1) == labels,
        nll=-np.log(np.maximum(true_probabilities, _MIN_PROBABILITY)),
        brier=np.einsum("scn,scn->sn", probabilities, probabilities) - 2 * true_probabilities + 1,
        confidence=probabilities.max(axis=1),
    )


def _combine(log_probabilities: np.ndarray, multiplicities: np.ndarray, head: str) -> np.ndarray:
    """`(committees, classes, examples)`: the classes lie so that NumPy reduces over them many examples at a time."""
    examples, members, classes = log_probabilities.shape
    head_inputs = np.ascontiguousarray(np.moveaxis(_head_inputs(log_probabilities, head), 0, 2)).reshape(members, -1)
    # Shares are divided by their sum last: whole numbers add up exactly, so ties of a majority vote stay ties.
    pooled = (multiplicities @ head_inputs).reshape(len(multiplicities), classes, examples) / multiplicities.sum(
        axis=1
    )[:, None, None]
    return _softmax(pooled) if "geometric" in head else pooled


def _head_inputs(log_probabilities: np.ndarray, head: str) -> np.ndarray:
    """What the head takes the mean of, `(examples, members, classes)`."""
    if head == "majority_vote":
        return np.eye(log_probabilities.shape[2])[log_probabilities.argmax(axis=2)]
    log_probs = np.asarray(log_probabilities, dtype=np.float64)
    log_probs = log_probs - log_probs.max(axis=2, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(axis=2, keepdims=True))
    return np.exp(log_probs) if head == "arithmetic_mean" else np.maximum(log_probs, _LOG_ZERO)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over axis 1, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


NUM_RESAMPLES = 1000
_TAIL_PERCENT = 2.5  # percent on either side


def bootstrap_intervals(scores: PerExampleScores) -> list[dict[str, dict[str, float]]]:
    """For each committee `{"accuracy": {"value", "low", "high"}, "nll": ..., "ece": ..., "brier": ...}`."""
    counts = _resample_counts(scores.correct.shape[1])
    return [_intervals(_resample_scores(scores, committee, counts)) for committee in range(len(scores.correct))]


def bootstrap_differences(first: PerExampleScores, second: PerExampleScores) -> list[dict[str, dict[str, float]]]:
    """The same for each committee of `first` less that of `second`, both on the same examples."""
    counts = _resample_counts(first.correct.shape[1])
    pairs = (
        (_resample_scores(first, committee, counts), _resample_scores(second, committee, counts))
        for committee in range(len(first.correct))
    )
    return [_intervals({score: one[score] - other[score] for score in one}) for one, other in pairs]


def bootstrap_mean_difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """`{"value", "low", "high"}` of mean of `first` less mean of `second`, both `(examples,)` on the same examples."""
    counts = _resample_counts(len(first))
    difference = first.astype(np.float64) - second
    return _interval(np.concatenate([[difference.mean()], counts @ difference / len(difference)]))


def _resample_counts(num_examples: int) -> np.ndarray:
    """float32 `(DRAWS, examples)`: how often each draw has each example. Up to 2**24 that is exact."""
    rng = np.random.default_rng(0)
    counts = np.empty((NUM_RESAMPLES, num_examples), np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    return counts


def _resample_scores(scores: PerExampleScores, committee: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each score on the examples as they are, and then on each draw: `(1 + DRAWS,)`."""
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
