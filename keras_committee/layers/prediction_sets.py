"""Prediction sets and acceptance of a committee's answers, computed with `keras.ops`.

The definition in NumPy is in `aggregation`, under the same names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops


def conformity(method: str, probabilities, penalty: float = 0.0, free_ranks: int = 0):
    """Return the conformity score of each class, float32 `(batch, classes)`; see `aggregation.conformity`.

    Args:
        method: One of `choices.SET_METHODS`.
        probabilities: float32 tensor `(batch, classes)`.
        penalty: As in `aggregation.conformity`.
        free_ranks: As in `aggregation.conformity`.
    """
    if method == "lac":
        return probabilities
    classes = probabilities.shape[-1]
    values, order = ops.top_k(probabilities, classes)  # of equal probabilities, the first class first
    remaining = ops.flip(ops.cumsum(ops.flip(values, axis=-1), axis=-1), axis=-1)
    scores = ops.concatenate([ops.ones_like(values[:, :1]), remaining[:, 1:]], axis=-1)
    if method == "raps":
        scores = scores - ops.convert_to_tensor(rank_penalties(classes, penalty, free_ranks), "float32")
    ranks = ops.top_k(-order, classes)[1]  # the inverse permutation
    return ops.take_along_axis(scores, ranks, axis=-1)


def rank_penalties(classes: int, penalty: float, free_ranks: int) -> list[float]:
    """Return what RAPS subtracts from the score of the most probable class, of the second, ..."""
    return [penalty * max(0, rank - free_ranks) for rank in range(1, classes + 1)]


def prediction_sets(method: str, probabilities, thresholds: Sequence[float], penalty: float = 0.0, free_ranks: int = 0):
    """Return which classes are in the prediction set of each example: a boolean tensor `(batch, classes)`.

    Args:
        method: As in `conformity`.
        probabilities: As in `conformity`.
        thresholds: One float, or one for each class.
        penalty: As in `conformity`.
        free_ranks: As in `conformity`.
    """
    scores = conformity(method, probabilities, penalty, free_ranks)
    return ops.greater_equal(scores, ops.convert_to_tensor(list(thresholds), "float32"))


def accepts(confidence, threshold: float):
    """Return which answers are accepted: a boolean tensor `(batch,)`. A confidence equal to the threshold suffices."""
    return ops.greater_equal(confidence, ops.cast(threshold, "float32"))


def promised_outputs(promise: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs that a promise adds to the others: tensors by name; none for None.

    Args:
        promise: A `selection.Promise` or None.
        outputs: `"probabilities"` float32 `(batch, classes)` and `"confidence"` float32 `(batch,)`.

    Returns:
        `"prediction_set"` bool `(batch, classes)` and `"set_size"` int32 `(batch,)` where sets are promised,
        `"accepted"` bool `(batch,)` where a risk is promised.
    """
    added = {}
    if promise is not None and promise.sets is not None:
        added["prediction_set"] = prediction_sets(probabilities=outputs["probabilities"], **promise.sets.rule())
        added["set_size"] = ops.sum(ops.cast(added["prediction_set"], "int32"), axis=-1)
    if promise is not None and promise.acceptance is not None:
        added["accepted"] = accepts(outputs["confidence"], promise.acceptance.threshold)
    return added
