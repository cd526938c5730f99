"""Heads: the layers that combine the members' predictions into the committee's.

A head is the layer on top of the members of a committee; it has no weights to train. Every head maps logits
`(batch, members, classes)` to probabilities `(batch, classes)`, in float32 under every dtype policy. Log-probabilities
are valid logits: a head returns the same result for both. So are infinite logits: -inf excludes a class, and a member
with equal logits, -inf included, finds all classes equally probable.
"""

import types
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_committee.errors import did_you_mean

# Replaces log 0. Where certain members (a logit of -inf) exclude every class, the classes then compare as equal
# instead of becoming NaN.
LOG_ZERO = -1e30
_FLOAT32_MAX = float(np.finfo("float32").max)


class _Head(keras.layers.Layer):
    """Base of the heads: float32, whatever `dtype` is, and shapes."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, input_shape):
        if len(input_shape) != 3:
            raise ValueError(
                f"A head takes logits of shape (batch, members, classes). Received: shape={tuple(input_shape)}"
            )
        self.built = True

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


@keras.saving.register_keras_serializable(package="keras_committee")
class GeometricMean(_Head):
    """Geometric mean of the members' probabilities, normalized to sum 1.

    Equal to the softmax of the mean log-probabilities. It is a product of experts: one member that is certain that a
    class is wrong nearly excludes that class.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.

    Raises:
        ValueError: If `logits` does not have three dimensions.

    Source: Kondratyuk et al. 2020, arXiv:2005.00570.
    """

    def call(self, logits):
        totals = ops.sum(log_softmax(logits), axis=1)
        # Subtract before dividing: XLA turns softmax(totals / n) into fused multiply-adds, whose rounding error at
        # totals of LOG_ZERO is 1e22, and exp of it is inf or 0.
        totals = totals - ops.stop_gradient(ops.max(totals, axis=-1, keepdims=True))
        return ops.softmax(totals / logits.shape[1])


@keras.saving.register_keras_serializable(package="keras_committee")
class ArithmeticMean(_Head):
    """Mean of the members' probabilities, a mixture of experts.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.

    Raises:
        ValueError: If `logits` does not have three dimensions.
    """

    def call(self, logits):
        return ops.mean(ops.exp(log_softmax(logits)), axis=1)


@keras.saving.register_keras_serializable(package="keras_committee")
class MajorityVote(_Head):
    """Fraction of members whose most probable class this is.

    Ties stay ties: two classes with the same number of votes get the same fraction, and the argmax is the lower class.
    A member with several most probable classes votes for the lowest of them. A class without a vote has probability 0,
    so the log-likelihood of a committee may be infinite, and no gradient flows.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 fractions `(batch, classes)`, multiples of 1 / members.

    Raises:
        ValueError: If `logits` does not have three dimensions.
    """

    def call(self, logits):
        votes = ops.one_hot(top_class(logits), logits.shape[-1], dtype="float32")
        return ops.mean(votes, axis=1)


@keras.saving.register_keras_serializable(package="keras_committee")
class WeightedGeometricMean(_Head):
    """Weighted geometric mean of the members' probabilities, normalized to sum 1.

    Args:
        weights: One float of at least 0 per member, with sum 1.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.

    Raises:
        ValueError: If a weight is negative, their sum is not 1, or their number differs from that of the members.
    """

    def __init__(self, weights: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        member_weights = tuple(float(weight) for weight in weights)
        if not member_weights or not min(member_weights) >= 0 or not abs(sum(member_weights) - 1) <= 1e-6:
            raise ValueError(f"weights must be floats of at least 0 that sum to 1. Received: weights={weights}")
        self._member_weights = member_weights  # Keras uses `weights` for the variables of a layer

    def build(self, input_shape):
        super().build(input_shape)
        if input_shape[1] != len(self._member_weights):
            raise ValueError(
                "weights must hold one float per member. "
                f"Received: {len(self._member_weights)} weights, {input_shape[1]} members"
            )

    def call(self, logits):
        member_weights = ops.reshape(ops.convert_to_tensor(self._member_weights, "float32"), (1, -1, 1))
        return ops.softmax(ops.sum(member_weights * log_softmax(logits), axis=1))

    def get_config(self):
        return {**super().get_config(), "weights": list(self._member_weights)}


HEADS = types.MappingProxyType(
    {
        "geometric_mean": GeometricMean,
        "arithmetic_mean": ArithmeticMean,
        "majority_vote": MajorityVote,
        "weighted_geometric_mean": WeightedGeometricMean,
    }
)


def get_head(name: str, **arguments) -> keras.layers.Layer:
    """Create a head from its name, as `evaluation.json` and `selection.json` store it.

    Args:
        name: Name of the head, such as `"geometric_mean"`.
        **arguments: Arguments of its constructor, such as `weights`.

    Raises:
        ValueError: If no head has this name. The message suggests the nearest.
    """
    if name not in HEADS:
        raise ValueError(f"There is no head {name!r}.{did_you_mean(name, HEADS)} Heads: {', '.join(HEADS)}")
    return HEADS[name](**arguments)


def head_name(head: keras.layers.Layer) -> str:
    """Return the name that `get_head` takes, or the registered name of a head from outside this package."""
    names = [name for name, cls in HEADS.items() if type(head) is cls]
    return names[0] if names else keras.saving.get_registered_name(type(head))


def subset_head(head: keras.layers.Layer, members: Sequence[int]) -> keras.layers.Layer:
    """Return the head of some of the members of a committee.

    For a `WeightedGeometricMean`, the weights of these members are normalized to sum 1; if all of them are 0, the
    members count equally. Every other head is returned unchanged.

    Args:
        head: Head of the whole committee.
        members: Indices of the members.
    """
    if not isinstance(head, WeightedGeometricMean):
        return head
    all_weights = head.get_config()["weights"]
    if list(members) == list(range(len(all_weights))):
        return head
    weights = [all_weights[member] for member in members]
    total = sum(weights)
    # An automatic name may be that of another head in the same model, which was loaded or created in another session.
    name = f"{head.name}_of_{len(weights)}"
    return WeightedGeometricMean([weight / total if total else 1 / len(weights) for weight in weights], name=name)


def top_class(logits):
    """Return the index of the largest logit, the first of equal ones: int32 `(batch, members)`.

    `ops.argmax` of floats returns 0 on TensorFlow's CPU for a row of the lowest finite number and -inf, and it uses
    operations that TensorFlow Lite and ONNX lack.
    """
    return ops.argmax(ops.cast(ops.equal(_finite_logits(logits), 0.0), "int32"), axis=-1)


def log_softmax(logits):
    """Return the log-probabilities of logits, float32 of the same shape, `LOG_ZERO` or more.

    They are finite for infinite logits, too: a member with equal logits, -inf included, finds all classes equally
    probable.
    """
    return ops.maximum(ops.log_softmax(_finite_logits(logits)), LOG_ZERO)


def _finite_logits(logits):
    """Return float32 logits with the same softmax, whose largest is 0 and whose lowest is `LOG_ZERO` or more."""
    logits = ops.minimum(ops.cast(logits, "float32"), _FLOAT32_MAX)
    largest = ops.maximum(ops.max(logits, axis=-1, keepdims=True), -_FLOAT32_MAX)
    return ops.maximum(logits - ops.stop_gradient(largest), LOG_ZERO)
