"""Defaults of a new recipe, and its source text with a comment on each choice."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_committee.cli.init.image_stats import ImageStats

_IMAGE_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
_MAX_WIDE_RESNET_SIZE = 64
_TARGET_IMAGES_SEEN = 2_000_000  # over all epochs; CIFAR-10 in 44
_MIN_EPOCHS, _MAX_EPOCHS = 10, 200
_IMBALANCE_THRESHOLD = 3.0
_SMALL_DATASET_SIZE = 20_000
_BASE_LEARNING_RATES = {"wide_resnet": 0.1, "efficientnet": 0.05}  # for batches of 128
# Of an image in a training step, estimated from the activations and rounded up: WRN-16-4, EfficientNet-B0, float32.
_BYTES_PER_PIXEL = {"wide_resnet": 12_000, "efficientnet": 2_500}
_HOLDOUT_FRACTIONS = {"validation": 0.1, "test": 0.2}
_MAX_HOLDOUT_FRACTION = 1 / 3  # more would take two of three images of a class
_MAX_LISTED_CLASSES = 10

_MAX_LINE_LENGTH = 120

_RECIPE_TEMPLATE = '''"""{title}

    {command}
    {command} --smoke

Written by `keras-committee init`; the numbers in the comments describe the images at that time. Edit it as needed.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=4,  # each is one training; two or three already give most of the gain of a committee
{capacity}
    epochs={epochs},  # {epochs_why}
    batch_size={batch_size},  # {batch_why}; less if a GPU runs out of memory
    learning_rate={learning_rate},  # scale it with the batch size
    size={size},  # pixels; {size_why}
    {data_dir}
    seed=0,
):
    """The arguments are the recipe's parameters: `--set name=value`, typed by these defaults."""

    def member(index):  # built under seed + index, so the members start apart
{network}

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.cosine(steps, learning_rate, warmup_steps=steps // 20)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

{warning}    return Recipe(
        data=data.{reader}(
            data_dir,
            batch_size,
            size=(size, size),
{first_label}{split_folders}            validation={validation},  # {validation_why}
            test={test},  # {test_why}
            # Random shifts and mirroring. Set flip=False if a mirrored image has another class, as with digits.
            augment=data.pad_crop_flip(size // 8),
        ),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
    )
'''

_SPLIT_FOLDERS_TEMPLATE = "            split_folders={},  # {}\n"
_FIRST_LABEL_TEMPLATE = "            first_label={},  # label of the first class in the records\n"

_CAPACITY_TEMPLATES = {
    "wide_resnet": "    width={width},  # of the network; 2 for few images, 4 for {few:,} and more",
    "efficientnet": '    variant="b0",  # to "b7", each larger than the one before',
}

_NETWORK_TEMPLATES = {
    "wide_resnet": """\
        shape = (size, size, 3)  # a WRN suits images of up to 64 pixels
        return models.wide_resnet(16, width, classes={classes}, image_shape=shape, l2=2.5e-4)""",
    "efficientnet": """\
        # EfficientNet is cheap on large images. To start from ImageNet weights, use
        # models.pretrained_efficientnet(variant, classes={classes}, image_size=size) and a tenth of the learning rate.
        return models.efficientnet(variant, classes={classes}, image_size=size, l2=1e-5)""",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeDefaults:
    """Defaults of a new recipe, with the reasons that its comments state.

    Args:
        size: Side of the images, in pixels.
        size_why: Reason for it.
        network: `"wide_resnet"` or `"efficientnet"`.
        width: Width of a wide ResNet.
        batch_size: Images per training step.
        batch_why: Reason for it.
        epochs: Number of epochs.
        epochs_why: Reason for it.
        learning_rate: Peak learning rate.
        validation: Fraction, or number, of the training images held out for validation, 0.0 if there is a validation
            split.
        test: Fraction or number held out for testing, likewise.
        imbalance_warning: Warning about classes that are much smaller than others, or an empty string.
        rare_warning: Warning about classes with too few images for every split, or an empty string.
    """

    size: int
    size_why: str
    network: str
    width: int
    batch_size: int
    batch_why: str
    epochs: int
    epochs_why: str
    learning_rate: float
    validation: float
    test: float
    imbalance_warning: str
    rare_warning: str


def choose_defaults(stats: ImageStats, free_memory: int) -> RecipeDefaults:
    """Choose the defaults of a recipe.

    Args:
        stats: Statistics of the images.
        free_memory: Memory that all members share, in bytes.
    """
    size = _choose_size(stats.median_side)
    network = "wide_resnet" if size <= _MAX_WIDE_RESNET_SIZE else "efficientnet"
    fractions, examples = _split_fractions(stats)
    batch_size, batch_why = _choose_batch_size(_BYTES_PER_PIXEL[network] * size * size, examples, free_memory)
    epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, round(_TARGET_IMAGES_SEEN / examples)))
    return RecipeDefaults(
        size=size,
        size_why=f"the median of the shorter sides is {stats.median_side} pixels",
        network=network,
        width=2 if examples < _SMALL_DATASET_SIZE else 4,
        batch_size=batch_size,
        batch_why=batch_why,
        epochs=epochs,
        epochs_why=f"{examples:,} training images, {epochs * examples:,} seen in total",
        learning_rate=float(f"{_BASE_LEARNING_RATES[network] * batch_size / 128:.2g}"),
        imbalance_warning=_imbalance_warning(stats),
        rare_warning=_rare_warning(stats),
        **fractions,
    )


def render_recipe(stats: ImageStats, defaults: RecipeDefaults, data_dir: Path, command: str) -> str:
    """Return the source of a recipe.

    Args:
        stats: Statistics of the images.
        defaults: Values of its parameters.
        data_dir: Folder of the images.
        command: The command that trains the recipe.
    """
    classes = len(stats.class_counts)
    return _RECIPE_TEMPLATE.format(
        title=f"A committee of four for {stats.num_images:,} images of {classes} classes.",
        command=command.replace("\\", "\\\\").replace('"', '\\"'),
        capacity=_CAPACITY_TEMPLATES[defaults.network].format(width=defaults.width, few=_SMALL_DATASET_SIZE),
        network=_NETWORK_TEMPLATES[defaults.network].format(classes=classes),
        data_dir=_format_argument("data_dir", str(data_dir)),
        warning=_format_comment(defaults.imbalance_warning) + _format_comment(defaults.rare_warning),
        reader="image_folder" if stats.first_label is None else "imagenet_records",
        first_label="" if stats.first_label is None else _FIRST_LABEL_TEMPLATE.format(stats.first_label),
        split_folders=_format_split_folders(stats.split_folders),
        validation_why=_split_reason(defaults.validation, "validation", stats),
        test_why=_split_reason(defaults.test, "test", stats),
        **{name: getattr(defaults, name) for name in ("validation", "test", "epochs", "epochs_why", "batch_size")},
        **{name: getattr(defaults, name) for name in ("batch_why", "learning_rate", "size", "size_why")},
    )


def _choose_size(side: int) -> int:
    """Return the largest size that enlarges the median image by at most a tenth; at least 32."""
    return max([size for size in _IMAGE_SIZES if size <= 1.1 * side], default=_IMAGE_SIZES[0])


def _split_fractions(stats: ImageStats) -> tuple[dict[str, float], int]:
    """Return the fractions to hold out, 0.0 for a split with its own files, and the remaining training images.

    A split has an image of each class that can be divided, and a tenth more; only the former, as a number, if that is
    a large part of the images.
    """
    fractions, sizes = {"validation": 0.0, "test": 0.0}, list(stats.training_counts.values())
    examples, min_size = sum(sizes), 2
    for split in ("test", "validation"):
        if split not in stats.held_out:
            divisible = max(1, sum(size >= min_size for size in sizes))
            fraction = max(_HOLDOUT_FRACTIONS[split], math.ceil(110 * divisible / examples) / 100)
            fractions[split] = fraction if fraction <= _MAX_HOLDOUT_FRACTION else divisible
            count = round(examples * fraction) if fraction <= _MAX_HOLDOUT_FRACTION else divisible
            examples, min_size = max(1, examples - count), min_size + 1
    return fractions, examples


def _choose_batch_size(bytes_per_image: int, examples: int, free_memory: int) -> tuple[int, str]:
    """Return a power of two and the limit that determined it."""
    max_batch_size, why = min(
        (128, "as in the papers"),
        (examples // 8, "gives 8 batches per epoch"),
        (free_memory // 2 // bytes_per_image, "fits into half of the free memory, as estimated"),
        key=lambda limit: limit[0],
    )
    return _largest_power_of_two(max_batch_size), why


def _largest_power_of_two(maximum: int) -> int:
    """Return the largest power of two up to `maximum`, at least 1."""
    return 1 << (max(1, maximum).bit_length() - 1)


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
    num_held_out = 2 - len(stats.held_out)
    by_size = {
        size: [name for name, count in stats.training_counts.items() if count == size]
        for size in range(1, num_held_out + 1)
    }
    consequences = {1: "one image, so training refuses to divide them", 2: "two images, so none for validation"}
    return " ".join(
        f"{len(names)} class{'' if len(names) == 1 else 'es'} {'has' if len(names) == 1 else 'have'}"
        f" {consequences[size]}: {_list_names(names)}. Add images, or remove the folder."
        for size, names in by_size.items()
        if names
    )


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED_CLASSES} more" if len(names) > _MAX_LISTED_CLASSES else ""
    return ", ".join(map(repr, names[:_MAX_LISTED_CLASSES])) + more


def _format_split_folders(split_folders: Mapping[str, str] | None) -> str:
    if split_folders is None:
        return ""
    why = "the folder of each split" if split_folders else "every folder is a class"
    return _SPLIT_FOLDERS_TEMPLATE.format(json.dumps(split_folders, ensure_ascii=False), why)


def _format_argument(name: str, value: str) -> str:
    """Return an argument with a string default in double quotes; a long one is exempt from the line length."""
    line = f"{name}={json.dumps(value, ensure_ascii=False)},"
    return f"{line}  # noqa: E501" if len(line) + 4 > _MAX_LINE_LENGTH and " " in value else line


def _split_reason(fraction: float | int, split: str, stats: ImageStats) -> str:
    if isinstance(fraction, int):
        return "one training image of each class"
    if fraction:
        return f"{fraction:.0%} of the training images"
    return f"{split} has its own {'folder' if stats.first_label is None else 'shards'}"


def _format_comment(text: str) -> str:
    lines = textwrap.wrap(text, _MAX_LINE_LENGTH - 6)
    return "".join(f"    # {line}\n" for line in lines)
