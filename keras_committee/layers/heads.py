"""How do the members' logits become one prediction?

Every head maps logits `(batch, members, classes)` to probabilities `(batch, classes)`, in float32 under every dtype
policy. Log-probabilities are logits too: a head gives the same for both.
"""

import difflib
import types
from collections.abc import Sequence

import keras
from keras import ops

# Stands in for log 0, so that classes vetoed by members who are certain (a logit of -inf) compare, not turn to NaN.
_LOG_ZERO = -1e30


class _Head(keras.layers.Layer):
    """What the heads share: float32 and the shapes."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def build(self, input_shape):
        if len(input_shape) != 3:
            raise ValueError(f"A head takes logits (batch, members, classes). Received: shape={tuple(input_shape)}")
        self.built = True

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


@keras.saving.register_keras_serializable(package="keras_committee")
class GeometricMean(_Head):
    """The M-th root of the product of the members' probabilities, scaled to sum 1.

    Equal to the softmax of the mean log-probabilities. It is a product of experts: one member who is certain that a
    class is wrong all but rules it out.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.

    Source: Kondratyuk et al. 2020, arXiv:2005.00570.
    """

    def call(self, logits):
        return ops.softmax(ops.mean(_log_probabilities(logits), axis=1))


@keras.saving.register_keras_serializable(package="keras_committee")
class ArithmeticMean(_Head):
    """The mean of the members' probabilities, a mixture of experts.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.
    """

    def call(self, logits):
        return ops.mean(ops.exp(_log_probabilities(logits)), axis=1)


@keras.saving.register_keras_serializable(package="keras_committee")
class MajorityVote(_Head):
    """The share of members whose most probable class this is.

    Ties stay ties: two classes with as many votes get the same share, and their argmax is the lower class. A member
    undecided between classes votes for the lowest of them. A class without a vote has probability 0, so the
    log-likelihood of a committee may be infinite, and no gradient flows.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 shares `(batch, classes)`, multiples of 1 / members.
    """

    def call(self, logits):
        votes = ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1], dtype="float32")
        return ops.mean(votes, axis=1)


@keras.saving.register_keras_serializable(package="keras_committee")
class WeightedGeometricMean(_Head):
    """The product of the members' probabilities, each to the power of its weight, scaled to sum 1.

    Args:
        weights: One float per member, none below 0, of sum 1.

    Call arguments:
        logits: Tensor `(batch, members, classes)`.

    Returns:
        float32 probabilities `(batch, classes)`.

    Raises:
        ValueError: If the weights are not on the simplex, or are not as many as the members.
    """

    def __init__(self, weights: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        member_weights = tuple(float(w) for w in weights)
        if not member_weights or not min(member_weights) >= 0 or not abs(sum(member_weights) - 1) <= 1e-6:
            raise ValueError(f"weights must be floats from 0 that sum to 1. Received: weights={weights}")
        self._member_weights = member_weights  # `weights` names a layer's variables

    def build(self, input_shape):
        super().build(input_shape)
        if input_shape[1] != len(self._member_weights):
            raise ValueError(
                "weights must hold one float per member. "
                f"Received: {len(self._member_weights)} weights, {input_shape[1]} members"
            )

    def call(self, logits):
        member_weights = ops.reshape(ops.convert_to_tensor(self._member_weights, "float32"), (1, -1, 1))
        return ops.softmax(ops.sum(member_weights * _log_probabilities(logits), axis=1))

    def get_config(self):
        return {**super().get_config(), "weights": list(self._member_weights)}


_HEADS = types.MappingProxyType(
    {
        "geometric_mean": GeometricMean,
        "arithmetic_mean": ArithmeticMean,
        "majority_vote": MajorityVote,
        "weighted_geometric_mean": WeightedGeometricMean,
    }
)


def get_head(name: str, **arguments) -> keras.layers.Layer:
    """Makes a head from its name in `evaluation.json`, such as "geometric_mean".

    Args:
        name: The head's name.
        **arguments: What its constructor takes, such as `weights`.

    Raises:
        ValueError: If no head has the name; the message names the nearest.
    """
    if name not in _HEADS:
        close_matches = difflib.get_close_matches(name, _HEADS, n=1)
        hint = f" Did you mean {close_matches[0]!r}?" if close_matches else ""
        raise ValueError(f"There is no head {name!r}.{hint} Heads: {', '.join(_HEADS)}")
    return _HEADS[name](**arguments)


def head_name(head: keras.layers.Layer) -> str:
    """The name that `get_head` takes; the registered name for a head that is not one of ours."""
    names = [name for name, cls in _HEADS.items() if type(head) is cls]
    return names[0] if names else keras.saving.get_registered_name(type(head))


def subset_head(head: keras.layers.Layer, members: Sequence[int]) -> keras.layers.Layer:
    """The head of a part of the committee: the weights of its `members`, scaled to sum 1; other heads as they are.

    Members that all have weight 0 count alike.
    """
    if not isinstance(head, WeightedGeometricMean):
        return head
    weights = [head.get_config()["weights"][member] for member in members]
    total = sum(weights)
    return WeightedGeometricMean([w / total if total else 1 / len(weights) for w in weights])


def _log_probabilities(logits):
    return ops.maximum(ops.log_softmax(ops.cast(logits, "float32")), _LOG_ZERO)
