"""Defaults of a new recipe: chosen from the images and the machine, with the reasons that its comments state."""

import dataclasses
import math
from collections.abc import Sequence

from keras_committee.cli.init.image_stats import ImageStats
from keras_committee.cli.init.pretrained_weights import PretrainedWeights
from keras_committee.errors import DataError, pluralize
from keras_committee.split_sizes import full_batches, hold_out_counts

SMALL_DATASET_SIZE = 20_000
WANTED_HELD_OUT = 100  # images of a split: fewer decide little, see the intervals that `evaluate` prints

_IMAGE_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
_MAX_WIDE_RESNET_SIZE = 64
_MAX_FINE_TUNING_SIZE_ON_CPU = 160  # half of the cost at 224 pixels
_MIN_STRIDED_SIZE = 64
_FEW_IMAGES = 2_000  # too few for an EfficientNet from random weights, on any machine
_MIN_STEPS_PER_EPOCH = 8  # batch normalization averages its statistics over about ten steps
# The shares of the two splits. Where they give fewer than 100 images the validation split gets up to a fifth, too; more
# would cost accuracy: with 240 images 154 remain for training.
_HOLDOUT_FRACTIONS = {"validation": 0.1, "test": 0.2}
_MAX_WANTED_FRACTION = 0.2
_MAX_HOLDOUT_FRACTION = 1 / 3  # more would take two of three images of a class
# Windows are decoded from the files in every epoch: about 1 ms for 500 x 375 pixels, 30 times that for 12 megapixels.
_MAX_DECODED_SIDE = 512
_IMBALANCE_THRESHOLD = 3.0
_MAX_LISTED_CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """Settings for one kind of network.

    Args:
        members: Number of members.
        max_size: Largest side of the images, in pixels.
        max_batch_size: Largest number of images per step.
        rate: Peak learning rate for batches of 128.
        images_seen: Training images over all epochs that determine the number of epochs.
        epochs: Fewest and most epochs.
        frozen_epochs: Number of first epochs that train only the logits.
        widths: Channels of the groups of layers, for a speed net.
        bytes_per_pixel: Memory of an image in a training step, estimated from the activations and rounded up.
    """

    members: int
    max_size: int
    max_batch_size: int
    rate: float
    images_seen: int
    epochs: tuple[int, int]
    frozen_epochs: int = 0
    widths: tuple[int, ...] = ()
    bytes_per_pixel: int


_KINDS = {
    # A speed net. On two cores with AMX 240 photographs take minutes; docs/guides/own-images.md has the accuracy.
    "small": _Kind(
        members=2, max_size=96, max_batch_size=32, rate=0.4, images_seen=100_000, epochs=(15, 200),
        widths=(32, 64, 128), bytes_per_pixel=4_000,
    ),
    "wide_resnet": _Kind(  # WRN-16-2 or WRN-16-4; CIFAR-10 in 44 epochs
        members=4, max_size=64, max_batch_size=128, rate=0.1, images_seen=2_000_000, epochs=(10, 200),
        bytes_per_pixel=12_000,
    ),
    "efficientnet": _Kind(
        members=4, max_size=224, max_batch_size=128, rate=0.05, images_seen=2_000_000, epochs=(10, 200),
        bytes_per_pixel=2_500,
    ),
    "pretrained": _Kind(  # rates as in recipes/finetune_efficientnet.py
        members=3, max_size=224, max_batch_size=32, rate=0.02, images_seen=50_000, epochs=(10, 20), frozen_epochs=5,
        bytes_per_pixel=2_500,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What the choices depend on, besides the images.

    Args:
        free_memory: Memory that all members share, in bytes.
        has_gpu: Whether members train on GPUs.
        weights: Pretrained weights, or None.
    """

    free_memory: int
    has_gpu: bool
    weights: PretrainedWeights | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """The parts of the training images.

    Args:
        validation: Fraction, or number, held out for validation; 0.0 if there is a validation split.
        test: Fraction or number held out for testing, likewise.
        num_validation: Number of images held out for validation.
        num_test: Number of images held out for testing.
        num_training: Number of images that remain.
    """

    validation: float
    test: float
    num_validation: int
    num_test: int
    num_training: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeDefaults:
    """Defaults of a new recipe, with the reasons that its comments state.

    Args:
        kind: `"pretrained"`, `"small"`, `"wide_resnet"` or `"efficientnet"`.
        kind_why: Reason for it.
        members: Number of members.
        size: Side of the images, in pixels.
        size_why: Reason for it.
        width: Width of a wide ResNet.
        widths: Channels of the groups of layers of a speed net.
        variant: Variant of an EfficientNet.
        patch_stride: Stride of the first convolution of a speed net.
        batch_size: Images per training step.
        batch_why: Reason for it.
        epochs: Number of epochs.
        frozen_epochs: Number of first epochs that train only the logits.
        learning_rate: Peak learning rate.
        crops_files: Whether the augmentation reads random windows from the files.
        splits: The parts of the training images.
        imbalance_warning: Warning about classes that are much smaller than others, or an empty string.
        rare_warning: Warning about classes with too few images for every split, or an empty string.
    """

    kind: str
    kind_why: str
    members: int
    size: int
    size_why: str
    width: int
    widths: tuple[int, ...]
    variant: str
    patch_stride: int
    batch_size: int
    batch_why: str
    epochs: int
    frozen_epochs: int
    learning_rate: float
    crops_files: bool
    splits: SplitSizes
    imbalance_warning: str
    rare_warning: str

    @property
    def network(self) -> str:
        """The name of the network in messages."""
        if self.kind in ("efficientnet", "pretrained"):
            pretrained = " with pretrained weights" if self.kind == "pretrained" else ""
            return f"EfficientNet-{self.variant.upper()}{pretrained}"
        return f"WRN-16-{self.width}" if self.kind == "wide_resnet" else f"a speed net {self.widths}"

    @property
    def weights_note(self) -> str:
        """The offer of a pretrained network, where the images are too few for a network from random weights."""
        has_few = self.kind == "small" and self.splits.num_training < _FEW_IMAGES
        if not has_few or self.size <= _MAX_WIDE_RESNET_SIZE:
            return ""
        return (
            f"{self.splits.num_training:,} training images are few to start from random weights. --weights imagenet"
            " starts from a pretrained network, which is frozen while new logits train; Keras downloads it. --weights"
            " FILE reads it from a file."
        )

    @property
    def steps_per_epoch(self) -> int:
        return full_batches(self.splits.num_training, self.batch_size)

    @property
    def num_images_seen(self) -> int:
        """Training images that one member sees, counted once for each epoch."""
        return self.epochs * self.steps_per_epoch * self.batch_size


def choose_defaults(stats: ImageStats, machine: Machine) -> RecipeDefaults:
    """Choose the defaults of a recipe.

    Raises:
        DataError: If the images cannot be divided into the splits, so that no recipe could train on them.
    """
    _check_divisible(stats)
    splits = _choose_splits(stats)
    kind, kind_why = _choose_kind(stats, splits.num_training, machine)
    settings = _KINDS[kind]
    size, size_why = _choose_size(stats.median_side, kind, machine.has_gpu)
    batch_size, batch_why = _choose_batch_size(settings, size, splits.num_training, machine.free_memory)
    min_epochs, max_epochs = settings.epochs
    return RecipeDefaults(
        kind=kind,
        kind_why=kind_why,
        members=settings.members,
        size=size,
        size_why=size_why,
        width=2 if splits.num_training < SMALL_DATASET_SIZE else 4,
        widths=settings.widths,
        variant="b0" if machine.weights is None else machine.weights.variant,
        patch_stride=2 if size >= _MIN_STRIDED_SIZE else 1,
        batch_size=batch_size,
        batch_why=batch_why,
        epochs=min(max_epochs, max(min_epochs, round(settings.images_seen / splits.num_training))),
        frozen_epochs=settings.frozen_epochs,
        learning_rate=float(f"{settings.rate * batch_size / 128:.2g}"),
        crops_files=stats.source != "arrays"
        and kind in ("small", "pretrained")
        and _MIN_STRIDED_SIZE <= stats.median_side <= _MAX_DECODED_SIDE,
        splits=splits,
        imbalance_warning=_imbalance_warning(stats),
        rare_warning=_rare_warning(stats),
    )


def _check_divisible(stats: ImageStats) -> None:
    """Raise DataError if a class, or all of them, have too few images for the splits that must be held out."""
    num_held_out = 2 - len(stats.held_out)
    if not num_held_out:
        return
    single = [name for name, count in stats.training_counts.items() if count < 2]
    largest = max(stats.training_counts.values())
    if not single and largest > num_held_out:
        return
    splits = [split for split in ("training", "validation", "test") if split not in stats.held_out]
    parts = f"{', '.join(splits[:-1])} and {splits[-1]}"
    if single:
        has = f"{_list_names(single)} {'has' if len(single) == 1 else 'have'}"
        problem = f"{has} one image, which cannot be divided between {parts}"
    else:
        problem = f"no class has more than {pluralize(largest, 'image')}, too few for {parts}"
    raise DataError(
        f"{pluralize(stats.num_images, 'image')} of {len(stats.class_counts)} classes are too few: {problem}. No recipe"
        f" was written.\n  Each class needs {num_held_out + 1} images or more; about 50 give a first result. Add images"
        " or remove the folder."
    )


def _choose_kind(stats: ImageStats, examples: int, machine: Machine) -> tuple[str, str]:
    """Return the kind of network, and why."""
    is_small = _largest_size(stats.median_side) <= _MAX_WIDE_RESNET_SIZE
    if machine.weights is not None and (machine.weights.is_given or not is_small):
        return "pretrained", f"its weights are {machine.weights.origin}"
    if examples < _FEW_IMAGES:
        return "small", f"{examples:,} training images are few to start from random weights"
    if examples < SMALL_DATASET_SIZE and not machine.has_gpu:
        return "small", "fast, as this machine has no GPU"
    if is_small:
        return "wide_resnet", "suits images of up to 64 pixels"
    return "efficientnet", "cheap on large images"


def _choose_size(side: int, kind: str, has_gpu: bool) -> tuple[int, str]:
    size, reason = _largest_size(side), f"the median of the shorter sides is {side} pixels"
    fine_tuned_on_cpu = kind == "pretrained" and not has_gpu
    limit = _MAX_FINE_TUNING_SIZE_ON_CPU if fine_tuned_on_cpu else _KINDS[kind].max_size
    return (size, reason) if size <= limit else (limit, f"{reason}; more would take longer")


def _largest_size(side: int) -> int:
    """Return the largest size that enlarges the median image by at most a tenth; at least 32."""
    return max([size for size in _IMAGE_SIZES if size <= 1.1 * side], default=_IMAGE_SIZES[0])


def _choose_splits(stats: ImageStats) -> SplitSizes:
    """Choose the fractions to hold out; 0.0 for a split with its own files.

    A split has an image of each class that can be divided, and a tenth more; only the former, as a number, if that is
    a large part of the images.
    """
    fractions, sizes = {"validation": 0.0, "test": 0.0}, list(stats.training_counts.values())
    num_images, min_size = sum(sizes), 2
    examples = num_images
    for split in ("test", "validation"):
        if split not in stats.held_out:
            divisible = max(1, sum(size >= min_size for size in sizes))
            fraction = max(_wanted_fraction(split, examples), math.ceil(110 * divisible / examples) / 100)
            fractions[split] = fraction if fraction <= _MAX_HOLDOUT_FRACTION else divisible
            examples, min_size = num_images - sum(hold_out_counts(num_images, **fractions)), min_size + 1
    num_validation, num_test = hold_out_counts(num_images, **fractions)
    return SplitSizes(**fractions, num_validation=num_validation, num_test=num_test, num_training=examples)


def _wanted_fraction(split: str, examples: int) -> float:
    """Return the usual share, or what gives 100 images of `examples`, up to a fifth of them; in percent."""
    enough = math.ceil(100 * WANTED_HELD_OUT / examples) / 100
    return max(_HOLDOUT_FRACTIONS[split], min(enough, _MAX_WANTED_FRACTION))


def _choose_batch_size(settings: _Kind, size: int, examples: int, free_memory: int) -> tuple[int, str]:
    """Return a power of two and the limit that determined it."""
    usual = settings.max_batch_size
    maximum, why = min(
        (usual, "as in the papers" if usual == 128 else "small, so that an epoch has many steps"),
        (examples // _MIN_STEPS_PER_EPOCH, ""),
        (free_memory // 2 // (settings.bytes_per_pixel * size**2), "fits into half of the free memory, as estimated"),
        key=lambda limit: limit[0],
    )
    batch_size = 1 << (max(1, maximum).bit_length() - 1)  # the largest power of two
    return batch_size, why or f"gives {full_batches(examples, batch_size)} batches per epoch"


def _imbalance_warning(stats: ImageStats) -> str:
    if stats.imbalance < _IMBALANCE_THRESHOLD:
        return ""
    largest = max(stats.training_counts, key=stats.training_counts.__getitem__)
    smallest = min(stats.training_counts, key=stats.training_counts.__getitem__)
    return (
        f"class {largest!r} has {stats.training_counts[largest]:,} training images, {smallest!r} has"
        f" {stats.training_counts[smallest]:,}: {stats.imbalance:.1f} times fewer. Overall accuracy hardly depends on"
        f" {smallest!r}; check the confusion matrix, or collect more images of it."
    )


def _rare_warning(stats: ImageStats) -> str:
    if len(stats.held_out) > 0:
        return ""
    names = [name for name, count in stats.training_counts.items() if count == 2]
    if not names:
        return ""
    classes = "1 class has" if len(names) == 1 else f"{len(names)} classes have"
    return f"{classes} two images, so none for validation: {_list_names(names)}. Add images, or remove the folder."


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED_CLASSES} more" if len(names) > _MAX_LISTED_CLASSES else ""
    return ", ".join(map(repr, names[:_MAX_LISTED_CLASSES])) + more
