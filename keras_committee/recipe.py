"""The definition of one training run."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from keras_committee.errors import RecipeError
from keras_committee.precision import PRECISIONS

_BEST_EPOCH_SCORES = ("accuracy", "nll")
_SMOKE_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained committee, or a network, that the members of a recipe learn from, and how: `Recipe(teacher=...)`.

    The student's loss is `(1 - weight) * loss + weight * temperature**2 * H(q, p)`: its own loss, and the cross-entropy
    from the teacher's probabilities q to the student's p. Both are softened by the temperature T: p is softmax(z / T)
    of the student's logits z, and q is the teacher's probabilities to the power of 1 / T, normalized. The factor T^2
    keeps the size of the gradient. The teacher predicts the images of each training step as the student receives them,
    augmented and mixed.

    Args:
        path: A run folder, whose members are combined by the head of its recipe; an exported committee or network; or a
            `.keras` file, of raw pixels and the classes in the order of the data.
        temperature: Float > 0. A higher one shows more of the differences between improbable classes.
        weight: Float in (0, 1]. Share of the teacher in the loss; at 1 the labels have no influence.

    Raises:
        RecipeError: If an argument has the wrong type or is out of range.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; predictions for the student's own views: Beyer et al. 2022,
    arXiv:2106.05237.
    """

    path: str
    temperature: float = dataclasses.field(default=2.0, kw_only=True)
    weight: float = dataclasses.field(default=0.9, kw_only=True)

    def __post_init__(self):
        rules = {
            "path": (isinstance(self.path, str) and self.path != "", "a path, as a string"),
            "temperature": (_is_between(self.temperature, 0, math.inf), "a number above 0"),
            "weight": (self.weight == 1 or _is_between(self.weight, 0, 1), "a number above 0 and at most 1"),
        }
        for name, (is_valid, expected) in rules.items():
            if not is_valid:
                raise RecipeError(f"Teacher({name}=...) must be {expected}. Received: {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The definition of one training run.

    Stateful objects (models, optimizers) are given as functions, which each member calls once.

    Args:
        data: A data set of `keras_committee.data`, such as `data.digits(64)`.
        member: Function of the member's index, called under the random seed `seed + index`; returns a new Keras model,
            image `(batch, height, width, channels)` to logits `(batch, classes)`.
        members: Integer >= 1. Number of members.
        optimizer: Function of the number of training steps of one member; returns a new Keras optimizer.
        epochs: Integer >= 1. Passes over the training examples.
        snapshots: Integer >= 1. Members come in chains of this length, members 0 to `snapshots - 1` and so on; the last
            chain may be shorter. The first member of a chain starts as usual, each further one from the saved weights
            of the one before it, with a new optimizer and the schedule of the learning rate from its start: with a
            cosine, the snapshots of Huang et al. 2017, arXiv:1704.00109. Each trains `epochs` epochs. 1 trains all
            members independently.
        loss: Keras loss of labels `(batch,)` and logits `(batch, classes)`.
        head: Keras layer that combines the members' predictions, `(batch, members, classes)` to probabilities
            `(batch, classes)`. None is the geometric mean.
        seed: Integer >= 0. Member `i` is built and trained under `seed + i`.
        survival: Function of the epoch, counted from 0, that returns the survival probability of the last block under
            linear decay, such as `layers.linear_schedule(1.0, 0.5, 20)`. It sets all `StochasticDepth` layers at the
            start of each epoch. None keeps the probabilities of the model.
        precision: Dtype policy of the members: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"` (on GPUs, with a
            dynamic loss scale); loss and logits are always float32. `"auto"` is `"mixed_bfloat16"` where the device
            multiplies matrices in it (a CPU with AMX or AVX512_BF16, GPUs of compute capability 8 or more), else
            `"float32"`; a run continues in the precision in which it began.
        ema_momentum: Float in (0, 1), such as 0.9999, or None. Members are validated and saved with exponential moving
            averages of their weights; see `training.averaging`. None with `swa_epoch_start`.
        swa_epoch_start: Members are validated and saved with the mean of their weights at the ends of several epochs,
            stochastic weight averaging: an integer is the first of these epochs, counted from 1, and a float in (0, 1)
            the fraction of the epochs after which they begin. Their batch statistics are recomputed under the mean
            weights, on the first batches of the member's training, about 10,000 images or one epoch: a function of the
            seed alone. Source: Izmailov et al. 2018, arXiv:1803.05407. None saves the weights themselves.
        global_clipnorm: Float > 0 or None. Largest global norm of the gradient of a step.
        label_smoothing: Float in [0, 1). Share of each target that is spread evenly over all classes.
        batch_augment: `data.mixup(...)`, `data.cutmix(...)` or None. Mixes the images and targets of a batch.
        gradient_accumulation_steps: Integer >= 1. Number of equal parts in which a batch is computed, to save memory.
        restore_best: `"accuracy"`, `"nll"` or None. Saves the weights of the epoch with the best validation score; with
            `swa_epoch_start`, the best of the means so far. None saves those of the last epoch.
        patience: Integer >= 1 or None. Number of epochs without a better `restore_best` score after which a member
            stops; with `swa_epoch_start`, of those with a mean.
        initial_weights: Path of a `.keras` file, path of a run folder (each member takes the weights of the member of
            the same index), or a function of the index that returns such a path. Layers of other shapes keep their
            random initial weights. None initializes all layers randomly.
        trainable_layers: Function of the epoch, counted from 0, that returns the names of the trainable layers, such as
            `lambda epoch: ["logits"] if epoch < 5 else ["*"]`. A pattern matches the name of a layer or of a model
            around it. The other layers are frozen, with their batch statistics. None trains all layers.
        learning_rate_scale: Function of the member's index that returns a factor of the learning rate, such as
            `lambda index: 0.5**index` to compare rates. None is 1 for every member.
        learning_rate_multipliers: From patterns of weight paths to factors of their learning rate, such as
            `{"*/beta": 64.0}` for the offsets of batch normalizations; see `schedules.multiply_learning_rates`. None
            trains all weights at one rate.
        lookahead: `schedules.Lookahead(...)` or None. Slow weights that the optimizer's are pulled back to.
        teacher: `Teacher(...)`, or its path alone, such as `"runs/cifar_fast"`. Members learn from the answers of this
            trained committee besides the labels. None is no teacher.
        class_weight: Weights of the loss by class: `"balanced"`, the inverse of their share of the training split; a
            mapping from names or numbers of classes to numbers above 0, the others having 1; or None. The loss of a
            mixed target is weighted by its mean over the classes.
        sampling: `"balanced"` or None. Balanced, every epoch has equally many examples of each class: those of a rare
            class repeatedly, of a frequent one a part that changes from epoch to epoch.
        resample: `"bootstrap"`, `"kfold"` or None. Trains each member on a random part of the training split: as many
            examples, drawn with replacement; or all but one of as many folds as there are members. `evaluate` has the
            accuracy on what the members did not see; see `data.resampling`.

    Raises:
        RecipeError: If a field has the wrong type or is out of range.
    """

    data: Any
    member: Callable[[int], Any]
    members: int
    optimizer: Callable[[int], Any]
    epochs: int
    loss: Callable[[Any, Any], Any]
    snapshots: int = 1
    head: Callable[[Any], Any] | None = None
    seed: int = 0
    survival: Callable[[int], float] | None = None
    precision: str = "auto"
    ema_momentum: float | None = None
    swa_epoch_start: int | float | None = None
    global_clipnorm: float | None = None
    label_smoothing: float = 0.0
    batch_augment: Any = None
    gradient_accumulation_steps: int = 1
    restore_best: str | None = None
    patience: int | None = None
    initial_weights: str | Callable[[int], str] | None = None
    trainable_layers: Callable[[int], Sequence[str]] | None = None
    learning_rate_scale: Callable[[int], float] | None = None
    learning_rate_multipliers: Mapping[str, float] | None = None
    lookahead: Any = None
    teacher: Any = None
    class_weight: str | Mapping[Any, float] | None = None
    sampling: str | None = None
    resample: str | None = None

    def __post_init__(self):
        for field in _RULES:
            check_field(field, getattr(self, field))
        steps, batch_size = self.gradient_accumulation_steps, self.data.batch_size
        self._require(
            "gradient_accumulation_steps",
            _is_count(steps, 1) and batch_size % steps == 0,
            f"an integer that divides the batch size of {batch_size}",
        )
        self._require("patience", self.patience is None or self.restore_best is not None, "None without `restore_best`")
        self._require("members", self.resample != "kfold" or self.members > 1, 'at least 2 with `resample="kfold"`')
        self._require(
            "resample",
            self.resample is None or self.snapshots == 1,
            "None with `snapshots`: a member would start from weights that were trained on what it leaves out",
        )
        self._require(
            "loss",
            self.class_weight is None or hasattr(self.loss, "get_config"),
            "a Keras loss with `class_weight`, which calls it with `sample_weight`",
        )
        first = self._first_averaged_epoch
        self._require("swa_epoch_start", first <= self.epochs, f"at most the {self.epochs} epochs")
        self._require(
            "swa_epoch_start",
            self.swa_epoch_start is None or self.ema_momentum is None,
            "None with `ema_momentum`: a member is saved with one kind of averages",
        )
        if isinstance(self.teacher, str):
            object.__setattr__(self, "teacher", Teacher(self.teacher))

    def predecessor(self, index: int) -> int | None:
        """Return the member from whose weights member `index` starts; None for the first one of a chain."""
        return index - 1 if index % self.snapshots else None

    @property
    def _first_averaged_epoch(self) -> int:
        start = self.swa_epoch_start
        return math.floor(start * self.epochs + 1e-9) + 1 if isinstance(start, float) else start or 1

    def averaged_epochs(self, epoch: int) -> int:
        """Return over how many epochs `swa_epoch_start` averages the weights at the end of `epoch`, counted from 1."""
        return 0 if self.swa_epoch_start is None else max(0, epoch - self._first_averaged_epoch + 1)

    def for_smoke_run(self) -> Self:
        """Return a reduced copy that checks whether the recipe runs: two members, one epoch, four batches per split.

        With `trainable_layers` it has two epochs, which train the layers of the first and of the last epoch.
        """
        data = dataclasses.replace(self.data, limit=_SMOKE_BATCHES * self.data.batch_size)
        swa_epoch_start = None if self.swa_epoch_start is None else 1
        small = dataclasses.replace(
            self, data=data, members=smoke_members(self.members), epochs=1, swa_epoch_start=swa_epoch_start
        )
        if (trainable_layers := self.trainable_layers) is None:
            return small
        return dataclasses.replace(
            small, epochs=2, trainable_layers=lambda epoch: trainable_layers((0, self.epochs - 1)[epoch])
        )

    def _require(self, field: str, valid: bool, expected: str) -> None:
        if not valid:
            raise RecipeError(f"Recipe({field}=...) must be {expected}. Received: {getattr(self, field)!r}")


def smoke_members(members: int) -> int:
    """Return the number of members of a smoke run."""
    return min(2, members)


def check_field(field: str, value: Any) -> None:
    """Raise RecipeError if a field of a `Recipe` cannot have this value, whatever the other fields are."""
    is_valid, expected = _RULES.get(field, (lambda _: True, ""))
    if not is_valid(value):
        raise RecipeError(f"Recipe({field}=...) must be {expected}. Received: {value!r}")


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def _is_function(value: Any) -> bool:
    # A Keras model is callable too, but all members would share it.
    return callable(value) and not hasattr(value, "get_config")


def _optional(is_valid: Callable[[Any], bool], expected: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or is_valid(value), f"{expected}, or None"


# For each field whether a value is valid, and what it must be.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data": (lambda value: callable(getattr(value, "load", None)), "a data set such as `data.digits(64)`"),
    "member": (_is_function, "a function of the member's index that builds a new model"),
    "members": (lambda value: _is_count(value, 1), "an integer of 1 or more"),
    "snapshots": (lambda value: _is_count(value, 1), "an integer of 1 or more"),
    "optimizer": (_is_function, "a function of the steps that builds a new optimizer"),
    "epochs": (lambda value: _is_count(value, 1), "an integer of 1 or more"),
    "loss": (callable, "a Keras loss such as `SparseCategoricalCrossentropy(from_logits=True)`"),
    "head": _optional(callable, "a layer of `keras_committee.layers`"),
    "seed": (lambda value: _is_count(value, 0), "an integer of 0 or more"),
    "survival": _optional(callable, "a function of the epoch"),
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "ema_momentum": _optional(lambda value: _is_between(value, 0, 1), "a number between 0 and 1"),
    "swa_epoch_start": _optional(
        lambda value: _is_count(value, 1) or (isinstance(value, float) and 0 < value < 1),
        "the number of an epoch, counted from 1, or a fraction of the epochs",
    ),
    "global_clipnorm": _optional(lambda value: _is_between(value, 0, math.inf), "a number above 0"),
    "label_smoothing": (lambda value: value == 0 or _is_between(value, 0, 1), "a number of 0 or more and below 1"),
    "batch_augment": _optional(
        lambda value: callable(getattr(value, "apply", None)), "an augmentation such as `data.mixup(0.2)`"
    ),
    "initial_weights": _optional(
        lambda value: isinstance(value, str) or callable(value), "a path, a function of the index that returns one"
    ),
    "trainable_layers": _optional(callable, "a function of the epoch"),
    "learning_rate_scale": _optional(callable, "a function of the member's index"),
    "learning_rate_multipliers": _optional(
        lambda value: isinstance(value, Mapping) and all(_is_between(factor, 0, math.inf) for factor in value.values()),
        "a dict from patterns of weight paths to numbers above 0",
    ),
    "lookahead": _optional(lambda value: callable(getattr(value, "share", None)), "`schedules.Lookahead(...)`"),
    "teacher": _optional(
        lambda value: isinstance(value, Teacher) or (isinstance(value, str) and value != ""),
        "a path, `Teacher(path, temperature=2.0)`",
    ),
    "class_weight": _optional(
        lambda value: (
            value == "balanced"
            or (isinstance(value, Mapping) and all(_is_between(weight, 0, math.inf) for weight in value.values()))
        ),
        '"balanced", a dict from classes to numbers above 0',
    ),
    "sampling": _optional(lambda value: value == "balanced", '"balanced"'),
    "resample": _optional(lambda value: value in ("bootstrap", "kfold"), '"bootstrap", "kfold"'),
    "restore_best": _optional(lambda value: value in _BEST_EPOCH_SCORES, f"one of {', '.join(_BEST_EPOCH_SCORES)}"),
    "patience": _optional(lambda value: _is_count(value, 1), "an integer of 1 or more"),
}
