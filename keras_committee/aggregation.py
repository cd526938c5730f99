"""Committee predictions, confidences, cascades, prediction sets and uncertainties from member predictions, in NumPy.

This is the one implementation outside Keras and TensorFlow graphs. `layers.heads`, `layers.confidence`,
`layers.prediction_sets` and `models.Cascade` give the same results as layers.

Member predictions are log-probabilities `(examples, members, classes)`. Logits give the same results.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import DTypeLike
from scipy.special import log_softmax, softmax

from keras_committee import metrics
from keras_committee.choices import SET_METHODS
from keras_committee.errors import did_you_mean
from keras_committee.layers import head_name, heads
from keras_committee.layers.confidence import check_confidence
from keras_committee.layers.prediction_sets import rank_penalties

HEADS = tuple(heads.HEADS)  # names


def combine(
    head: Any,
    log_probs: np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Return the committee's probabilities `(examples, classes)`.

    Args:
        head: The layer that combines the members' predictions: one of `HEADS`, a layer of `layers.heads`, or any other
            Keras layer from logits `(examples, members, classes)` to probabilities.
        log_probs: Floats `(examples, members, classes)`.
        weights: One number per member, at least 0, on any scale; weights that are all 0 count equally. None: the
            weights of the layer, or equal ones. Another Keras layer ignores them.
        dtype: Floating-point type of the computation and the result. Another Keras layer computes in float32.

    Raises:
        ValueError: If the head is unknown or the number of weights is wrong.
    """
    head, weights = resolve_head(head, weights)
    if not isinstance(head, str):
        outputs = head(np.ascontiguousarray(log_probs, np.float32))
        return keras.ops.convert_to_numpy(outputs).astype(dtype, copy=False)
    inputs = head_inputs(head, log_probs, dtype)
    if weights is None:
        return head_output(head, inputs.mean(axis=1))
    member_weights = _scaled_weights(weights, inputs.shape[1]).astype(dtype)
    return head_output(head, np.einsum("emc,m->ec", inputs, member_weights))


def resolve_head(
    head: Any, weights: Sequence[float] | np.ndarray | None = None
) -> tuple[Any, Sequence[float] | np.ndarray | None]:
    """Return the name in `HEADS` and the weights of a head; a Keras layer of another kind as it is, without weights.

    Raises:
        ValueError: If there is no head of this name.
    """
    name = head if isinstance(head, str) else head_name(head)
    if name in HEADS:
        own_weights = None if isinstance(head, str) else head.get_config().get("weights")
        return name, own_weights if weights is None else weights
    if isinstance(head, str):
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {head!r}.{did_you_mean(head, HEADS)}")
    return head, None


def head_inputs(head: str, log_probs: np.ndarray, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Return what the head averages over the members: floats `(examples, members, classes)`.

    The log-probabilities for a geometric mean, the probabilities for the arithmetic mean, and a one-hot vector of each
    member's most probable class, the first of equal ones, for the majority vote.
    """
    if head == "majority_vote":
        return np.eye(np.shape(log_probs)[-1], dtype=dtype)[np.argmax(log_probs, axis=-1)]
    normalized = _log_softmax(log_probs, dtype)
    return np.exp(normalized) if head == "arithmetic_mean" else normalized


def head_output(head: str, averages: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the probabilities from the averages of `head_inputs`; `axis` is that of the classes."""
    return softmax(averages, axis=axis) if head.endswith("geometric_mean") else averages


def confidence(measure: str, probabilities: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Return the committee's confidence in each prediction, in [0, 1]: floats `(examples,)`.

    Args:
        measure: One of `layers.CONFIDENCE_MEASURES`, defined in `layers.confidence`.
        probabilities: Floats `(examples, classes)`, of the committee.
        log_probs: Floats `(examples, members, classes)`; used by `"agreement"` only.

    Raises:
        ValueError: If there is no such measure.
    """
    check_confidence(measure)
    if measure == "max_probability":
        return probabilities.max(axis=-1)
    if measure == "margin":
        second, first = np.moveaxis(np.partition(probabilities, -2, axis=-1)[..., -2:], -1, 0)
        return first - second
    if measure == "entropy":
        values = 1 - metrics.entropy(probabilities) / np.log(probabilities.shape[-1])
    else:
        values = (np.argmax(log_probs, axis=-1) == probabilities.argmax(axis=-1)[:, None]).mean(axis=1)
    return np.maximum(values, 0).astype(probabilities.dtype)  # rounding may put the uniform distribution below 0


def conformity(method: str, probabilities: np.ndarray, penalty: float = 0.0, free_ranks: int = 0) -> np.ndarray:
    """Return the conformity score of each class, floats `(examples, classes)` of the type of `probabilities`.

    - `"lac"`: the probability of the class. Sets are the smallest on average, and may be empty.
    - `"aps"`: 1 minus the probability of all classes that are more probable. A set holds the most probable classes, up
      to the one at which their sum reaches a level; it is never empty. The score is computed as the sum over this class
      and the less probable ones, whose last digits a sum close to 1 would not have.
    - `"raps"`: that of `"aps"`, minus `penalty` for each rank after `free_ranks`: shorter sets of the least certain
      examples.

    No draw is made at a tie of the level, so the same image always has the same set. Of equal probabilities, the first
    class counts as the more probable one.

    Args:
        method: One of `choices.SET_METHODS`.
        probabilities: Floats `(examples, classes)`, of the committee.
        penalty: At least 0; used by `"raps"` only.
        free_ranks: Number of most probable classes without a penalty; used by `"raps"` only.

    Raises:
        ValueError: If there is no such method.

    Source: LAC: Sadinle et al. 2019, arXiv:1609.00451; APS: Romano et al. 2020, arXiv:2006.02544, section 2, with
    u = 1; RAPS: Angelopoulos et al. 2021, arXiv:2009.14193, algorithm 2.
    """
    if method not in SET_METHODS:
        raise ValueError(f"method must be one of {', '.join(SET_METHODS)}. Received: {method!r}.")
    if method == "lac":
        return probabilities
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    scores = np.cumsum(ordered[:, ::-1], axis=-1, dtype=probabilities.dtype)[:, ::-1].copy()
    scores[:, 0] = 1
    if method == "raps":
        scores -= np.array(rank_penalties(scores.shape[1], penalty, free_ranks), scores.dtype)
    return np.take_along_axis(scores, np.argsort(order, axis=-1), axis=-1)


def prediction_sets(
    method: str,
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    penalty: float = 0.0,
    free_ranks: int = 0,
) -> np.ndarray:
    """Return which classes are in the prediction set of each example: bool `(examples, classes)`.

    Those whose `conformity` is at least the threshold, compared in float32 as in the models.

    Args:
        method: As in `conformity`.
        probabilities: As in `conformity`.
        thresholds: One float, or one for each class.
        penalty: As in `conformity`.
        free_ranks: As in `conformity`.
    """
    scores = conformity(method, probabilities, penalty, free_ranks).astype(np.float32)
    return scores >= np.asarray(thresholds, np.float32)


def accepts(confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Return which answers are accepted: those whose confidence is at least the threshold, compared in float32."""
    return confidence.astype(np.float32) >= np.float32(threshold)


def uncertainty(log_probs: np.ndarray, weights: Sequence[float] | np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return `metrics.uncertainty_decomposition` of the members: float64 `(examples,)` each, in nats.

    Args:
        log_probs: Floats `(examples, members, classes)`.
        weights: As in `combine`.
    """
    if weights is not None:
        weights = _scaled_weights(weights, np.shape(log_probs)[1])
    return metrics.uncertainty_decomposition(np.exp(_log_softmax(log_probs, np.float64)), weights)


def stage_outputs(
    head: Any,
    log_probs: np.ndarray,
    size: int,
    measure: str = "max_probability",
    weights: Sequence[float] | np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> dict[str, np.ndarray]:
    """Return the outputs of the committee of the first `size` members.

    Args:
        head: As in `combine`.
        log_probs: Floats `(examples, members, classes)` of at least `size` members.
        size: Number of members in this committee.
        measure: One of `layers.CONFIDENCE_MEASURES`.
        weights: As in `combine`, for at least `size` members.
        dtype: Floating-point type of `probabilities`, `confidence` and `agreement`.

    Returns:
        `probabilities` `(examples, classes)`, and arrays `(examples,)`: `confidence`, `agreement`,
        `mutual_information` (float64, in nats) and `members_used` (int32).
    """
    head, weights = resolve_head(head, weights)
    log_probs, weights = log_probs[:, :size], None if weights is None else weights[:size]
    probabilities = combine(head, log_probs, weights, dtype)
    return {
        "probabilities": probabilities,
        "confidence": confidence(measure, probabilities, log_probs),
        "agreement": confidence("agreement", probabilities, log_probs),
        "mutual_information": uncertainty(log_probs, weights)["mutual"],
        "members_used": np.full(len(log_probs), size, np.int32),
    }


def run_cascade(
    head: Any,
    log_probs: np.ndarray,
    stages: Sequence[int],
    thresholds: Sequence[float | None],
    measure: str = "max_probability",
    weights: Sequence[float] | np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
    lower_thresholds: Sequence[float | None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the `stage_outputs` of a cascade whose members have all predicted every example.

    Args:
        head: As in `combine`.
        log_probs: Floats `(examples, members, classes)`, in cascade order.
        stages: Number of members at the end of each stage, ascending.
        thresholds: One float for each stage but the last.
        measure: One of `layers.CONFIDENCE_MEASURES`.
        weights: As in `combine`.
        dtype: As in `stage_outputs`.
        lower_thresholds: As in `first_confident`.

    Source: Wang et al. 2021, arXiv:2012.01988, section 4; windows: Xia & Bouganis 2023, arXiv:2303.08010, section 3.
    """

    def outputs_of(size: int, examples: np.ndarray) -> dict[str, np.ndarray]:
        return stage_outputs(head, log_probs[examples], size, measure, weights, dtype)

    return first_confident(len(log_probs), stages, thresholds, outputs_of, lower_thresholds)


def temperatures_of(members: Iterable[Any]) -> np.ndarray:
    """Return the temperatures of members as divisors of their predictions: float32 `(members, 1)`."""
    return np.array([member.temperature for member in members], np.float32)[:, None]


def selected_outputs(selection: Any, log_probs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the `stage_outputs` of a `selection.Selection`, and those that its promise adds.

    They are `prediction_set` bool `(examples, classes)` and `set_size` int32 `(examples,)` where sets are promised, and
    `accepted` bool `(examples,)` where a risk is promised.

    Args:
        selection: The selection.
        log_probs: Floats `(examples, members, classes)` of its members, divided by their temperatures.
    """
    arguments = selection.confidence, selection.weights
    if selection.stages is None:
        outputs = stage_outputs(selection.head, log_probs, log_probs.shape[1], *arguments)
    else:
        sizes = [stage.members for stage in selection.stages]
        thresholds = [stage.threshold for stage in selection.stages[:-1]]
        lower_thresholds = selection.lower_thresholds()
        outputs = run_cascade(
            selection.head, log_probs, sizes, thresholds, *arguments, lower_thresholds=lower_thresholds
        )
    return {**outputs, **promised_outputs(selection.promise, outputs)}


def promised_outputs(promise: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs that a `selection.Promise` adds to the others; none for None. See `selected_outputs`."""
    added = {}
    if promise is not None and promise.sets is not None:
        added["prediction_set"] = prediction_sets(probabilities=outputs["probabilities"], **promise.sets.rule())
        added["set_size"] = added["prediction_set"].sum(axis=1, dtype=np.int32)
    if promise is not None and promise.acceptance is not None:
        added["accepted"] = accepts(outputs["confidence"], promise.acceptance.threshold)
    return added


def first_confident(
    num_examples: int,
    stages: Sequence[int],
    thresholds: Sequence[float | None],
    outputs_of: Callable[[int, np.ndarray], dict[str, np.ndarray]],
    lower_thresholds: Sequence[float | None] | None = None,
) -> dict[str, np.ndarray]:
    """Return, for each example, the outputs of the first stage that is confident enough; of the last where none is.

    A stage sees only the examples that no earlier stage has answered. It answers where its confidence is at least its
    threshold, or below its lower threshold, compared in float32 as in the models.

    Args:
        num_examples: Number of examples.
        stages: Number of members at the end of each stage, ascending.
        thresholds: One float for each stage but the last.
        outputs_of: Function of a number of members and of the examples' indices that returns arrays
            `(len(indices), ...)` by name, `"confidence"` among them.
        lower_thresholds: One float for each stage but the last, or None for a stage that has none; None for no stage.
    """
    pending, parts = np.arange(num_examples), []
    lower_thresholds = [None] * len(thresholds) if lower_thresholds is None else lower_thresholds
    windows = zip((*lower_thresholds, None), (*thresholds, None), strict=True)
    for size, (lower_threshold, threshold) in zip(stages, windows, strict=True):
        outputs = outputs_of(size, pending)
        answered = np.ones(len(pending), bool)
        if threshold is not None:
            answered = accepts(outputs["confidence"], threshold)
        if lower_threshold is not None:
            answered |= outputs["confidence"].astype(np.float32) < np.float32(lower_threshold)
        parts.append((pending[answered], {name: values[answered] for name, values in outputs.items()}))
        pending = pending[~answered]
        if not len(pending):
            break
    order = np.argsort(np.concatenate([indices for indices, _ in parts]))
    return {name: np.concatenate([outputs[name] for _, outputs in parts])[order] for name in parts[0][1]}


def _log_softmax(logits: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Return the log-probabilities of logits, floats of the same shape: `heads.log_softmax` in NumPy."""
    with np.errstate(over="ignore"):  # the difference of the largest and the lowest number
        logits = np.minimum(np.asarray(logits, dtype), np.finfo(dtype).max)
        largest = np.maximum(logits.max(axis=-1, keepdims=True), np.finfo(dtype).min)
        finite = np.maximum(logits - largest, heads.LOG_ZERO)
    return np.maximum(log_softmax(finite, axis=-1), heads.LOG_ZERO)


def _scaled_weights(weights: Sequence[float] | np.ndarray, num_members: int) -> np.ndarray:
    """Return float64 weights `(members,)` of sum 1."""
    scaled = np.asarray(weights, np.float64)
    if scaled.shape != (num_members,) or not (scaled >= 0).all():
        raise ValueError(f"weights must hold one number from 0 per member ({num_members}). Received: {weights}")
    total = scaled.sum()
    return scaled / total if total else np.full(num_members, 1 / num_members)
