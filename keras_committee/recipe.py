"""What does one training run consist of?"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from keras_committee.errors import RecipeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that one training run consists of.

    Stateful things are functions, called anew for each member; values are shared as they are.

    Args:
        data: What `keras_committee.data` returns, such as `data.digits(64)`.
        member: Function of the member's index, called under the random seed `seed + index`; returns a Keras model,
            image `(batch, height, width, channels)` to logits `(batch, classes)`.
        members: Integer >= 1. How many members the committee has.
        optimizer: Function of the number of training steps of one member; returns a new Keras optimizer.
        epochs: Integer >= 1. Passes over the training examples.
        loss: Keras loss of labels `(batch,)` and logits `(batch, classes)`.
        head: Keras layer, votes `(batch, members, classes)` to probabilities `(batch, classes)`. None is the geometric
            mean.
        seed: Integer >= 0.
        survival: Function of the epoch, counted from 0, to p_L of the linear decay, such as
            `layers.ramp(1.0, 0.5, 20)`; set for all `StochasticDepth` layers as the epoch begins. None leaves them as
            the model was built.

    Raises:
        RecipeError: If a field has the wrong type or is out of range.
    """

    data: Any
    member: Callable[[int], Any]
    members: int
    optimizer: Callable[[int], Any]
    epochs: int
    loss: Callable[[Any, Any], Any]
    head: Callable[[Any], Any] | None = None
    seed: int = 0
    survival: Callable[[int], float] | None = None

    def __post_init__(self):
        self._require("data", callable(getattr(self.data, "load", None)), "a value such as `data.digits(64)`")
        self._require("member", _is_function(self.member), "a function of the member's index that builds a new model")
        self._require("members", _is_count(self.members, 1), "an integer of 1 or more")
        self._require("optimizer", _is_function(self.optimizer), "a function of the steps that builds a new optimizer")
        self._require("epochs", _is_count(self.epochs, 1), "an integer of 1 or more")
        self._require(
            "loss", callable(self.loss), "a Keras loss such as `SparseCategoricalCrossentropy(from_logits=True)`"
        )
        self._require("head", self.head is None or callable(self.head), "a layer of `keras_committee.layers`, or None")
        self._require("seed", _is_count(self.seed, 0), "an integer of 0 or more")
        self._require("survival", self.survival is None or callable(self.survival), "a function of the epoch, or None")

    def smoke(self) -> Self:
        """The same recipe cut down to two members, one epoch and four batches a split: does it run at all?"""
        data = dataclasses.replace(self.data, limit=4 * self.data.batch_size)
        return dataclasses.replace(self, data=data, members=min(2, self.members), epochs=1)

    def _require(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise RecipeError(f"Recipe({field}=...) must be {wanted}. Received: {getattr(self, field)!r}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_function(value: Any) -> bool:
    # A Keras model is callable too, but one object shared by all members is what these fields exist to prevent.
    return callable(value) and not hasattr(value, "get_config")
