"""What does one training run consist of?"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

from keras_committee.errors import RecipeError

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SCORES = ("accuracy", "nll")


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
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"` (with a dynamic loss scale): the dtype policy
            that members are built under. Loss and logits are float32 under each.
        ema_momentum: Float in (0, 1), such as 0.9999, or None. Members are judged and kept with exponential moving averages of
            their weights, which `training.averages` defines.
        global_clipnorm: Float > 0 or None. Largest global norm of a step's gradient.
        label_smoothing: Float in [0, 1). Share of each target that goes to all classes alike.
        batch_augment: `data.mixup(...)`, `data.cutmix(...)` or None. Mixes the images and targets of a batch.
        gradient_accumulation_steps: Integer >= 1. In how many parts, one after another, a batch is taken, to save memory.
        restore_best: `"accuracy"`, `"nll"` or None. Keeps the weights of the epoch that is best on the validation split by
            this score; None keeps the last ones.
        patience: Integer >= 1 or None. Stops a member after so many epochs without a better one by `restore_best`.
        initial_weights: Where members begin, instead of at random weights: a `.keras` file, a run folder whose members of the
            same index are taken, or a function of the index that returns one. Layers of other shapes stay random.
        trainable_layers: Function of the epoch, counted from 0, to the names of the layers that train in it, such as
            `lambda epoch: ["logits"] if epoch < 5 else ["*"]`; a pattern matches a layer's name or one around it. The
            others are frozen: their weights and batch statistics stand still. None trains all of them.

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
    precision: str = "float32"
    ema_momentum: float | None = None
    global_clipnorm: float | None = None
    label_smoothing: float = 0.0
    batch_augment: Any = None
    gradient_accumulation_steps: int = 1
    restore_best: str | None = None
    patience: int | None = None
    initial_weights: str | Callable[[int], str] | None = None
    trainable_layers: Callable[[int], Sequence[str]] | None = None

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
        self._require_options()

    def for_smoke_run(self) -> Self:
        """The same recipe cut down to two members, one epoch and four batches a split: does it run at all?

        Where layers are frozen there are two epochs, with the layers of the first one and of the last one.
        """
        data = dataclasses.replace(self.data, limit=4 * self.data.batch_size)
        small = dataclasses.replace(self, data=data, members=min(2, self.members), epochs=1)
        if (trainable_layers := self.trainable_layers) is None:
            return small
        return dataclasses.replace(
            small, epochs=2, trainable_layers=lambda epoch: trainable_layers((0, self.epochs - 1)[epoch])
        )

    def _require_options(self) -> None:
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._require(
            "ema",
            self.ema_momentum is None or _is_between(self.ema_momentum, 0, 1),
            "a number between 0 and 1, or None",
        )
        self._require(
            "global_clipnorm",
            self.global_clipnorm is None or _is_between(self.global_clipnorm, 0, math.inf),
            "a number above 0, or None",
        )
        valid_smoothing = self.label_smoothing == 0 or _is_between(self.label_smoothing, 0, 1)
        self._require("label_smoothing", valid_smoothing, "a number of 0 or more and below 1")
        valid_augment = self.batch_augment is None or callable(getattr(self.batch_augment, "apply", None))
        self._require("mix", valid_augment, "a value such as `data.mixup(0.2)`, or None")
        valid_steps = (
            _is_count(self.gradient_accumulation_steps, 1)
            and self.data.batch_size % self.gradient_accumulation_steps == 0
        )
        self._require(
            "gradient_accumulation_steps", valid_steps, f"an integer that divides the batch of {self.data.batch_size}"
        )
        self._require("keep_best", self.restore_best in (None, *SCORES), f"one of {', '.join(SCORES)}, or None")
        self._require(
            "patience", self.patience is None or _is_count(self.patience, 1), "an integer of 1 or more, or None"
        )
        self._require("patience", self.patience is None or self.restore_best is not None, "None without a `keep_best`")
        valid_initial = (
            self.initial_weights is None or isinstance(self.initial_weights, str) or callable(self.initial_weights)
        )
        self._require("initial", valid_initial, "a path, a function of the index that returns one, or None")
        self._require(
            "trains",
            self.trainable_layers is None or callable(self.trainable_layers),
            "a function of the epoch, or None",
        )

    def _require(self, field: str, valid: bool, expected: str) -> None:
        if not valid:
            raise RecipeError(f"Recipe({field}=...) must be {expected}. Received: {getattr(self, field)!r}")


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def _is_function(value: Any) -> bool:
    # A Keras model is callable too, but one object shared by all members is what these fields exist to prevent.
    return callable(value) and not hasattr(value, "get_config")
