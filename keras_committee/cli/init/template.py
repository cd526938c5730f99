"""Source text of a new recipe, with a comment on each choice."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from keras_committee.cli.init.defaults import SMALL_DATASET_SIZE, WANTED_HELD_OUT, RecipeDefaults
from keras_committee.cli.init.image_stats import ImageStats
from keras_committee.cli.init.pretrained_weights import PretrainedWeights

_MAX_LINE_LENGTH = 120
# For each format the data function, the name of its path in the recipe, and what a split has of its own.
_SOURCES = {
    "image-folder": ("image_folder", "data_dir", "folder"),
    "tfrecords": ("imagenet_records", "data_dir", "shards"),
    "table": ("table", "data_file", "rows"),
    "hf": ("hf", "data_dir", "split"),
    "arrays": ("npz", "data_file", "arrays"),
}

_RECIPE_TEMPLATE = '''"""{title}

    {command}
    {command} --smoke

Written by `keras-committee init`; the numbers in the comments describe the images at that time. Edit it as needed.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members={members},  # each is one training; two or three already give most of the gain of a committee
{capacity}
    epochs={epochs},  # {epochs_why}
{frozen_epochs}    batch_size={batch_size},  # {batch_why}; less if a GPU runs out of memory
    learning_rate={learning_rate},  # scale it with the batch size
    size={size},  # pixels; {size_why}
    {data_path}
    precision="auto",  # bfloat16 where the machine multiplies matrices in it, else float32
    seed=0,
):
    """The arguments are the recipe's parameters: `--set name=value`, typed by these defaults."""

    def member(index):  # built under seed + index, so the members start apart
{network}

    def optimizer(steps):  # steps = epochs * batches per epoch
{optimizer}

{warning}    return Recipe(
        data=data.{reader}(
            {path_name},
            batch_size,
            size=(size, size),
{first_label}{split_folders}            validation={validation},  # {validation_why}
            test={test},  # {test_why}
            {augment_comment}
            augment={augment},
        ),
        member=member,
        members=members,
        optimizer=optimizer,
        epochs=epochs,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
{options}        precision=precision,
        seed=seed,
    )
'''

_SPLIT_FOLDERS_TEMPLATE = "            split_folders={},  # {}\n"
_FIRST_LABEL_TEMPLATE = "            first_label={},  # label of the first class in the records\n"

_CAPACITY_TEMPLATES = {
    "small": "    widths={widths},  # channels of the groups of layers; more take longer",
    "wide_resnet": "    width={width},  # of the network; 2 for few images, 4 for {few:,} and more",
    "efficientnet": '    variant="{variant}",  # to "b7", each larger than the one before',
    "pretrained": '    variant="{variant}",  # of the network, that of the weights\n    {weights}',
}

_NETWORK_TEMPLATES = {
    "small": """\
        # A speed net: {kind_why}. The first layer whitens the images.
        options = {{"image_shape": (size, size, 3), "patch_stride": {patch_stride}, "l2": 2.5e-3}}
        return models.speed_net(widths, classes={classes}, **options)""",
    "wide_resnet": """\
        shape = (size, size, 3)  # a WRN suits images of up to 64 pixels
        return models.wide_resnet(16, width, classes={classes}, image_shape=shape, l2=2.5e-4)""",
    "efficientnet": """\
        # EfficientNet is cheap on large images. Pretrained weights make it better: `keras-committee init --weights`.
        return models.efficientnet(variant, classes={classes}, image_size=size, l2=1e-5)""",
    "pretrained": """\
        # All layers but the logits start from `weights`: {kind_why}.
        options = {{"image_size": size, "scaling": "training"}}
        return models.pretrained_efficientnet(variant, weights, classes={classes}, **options)""",
}

_OPTIMIZER = """\
        rate = schedules.cosine(steps, learning_rate, warmup_steps=steps // 20)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)"""
_FROZEN_OPTIMIZER = """\
        frozen_steps = steps * frozen_epochs // epochs
        rate = schedules.cosine(steps - frozen_steps, learning_rate)
        if frozen_steps:  # new logits on the frozen network tolerate a higher rate
            rate = schedules.SequentialSchedule(10 * learning_rate, frozen_steps, rate)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)"""
_TRIANGULAR_OPTIMIZER = """\
        rate = schedules.triangular(steps, learning_rate)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)"""
_SMALL_OPTIONS = """\
        label_smoothing=0.2,  # against overconfidence with few images
        ema_momentum=0.99,  # the averages of the last 100 steps: those of batch normalization vary with few images
"""
_LABEL_SMOOTHING = "        label_smoothing=0.1,  # against overconfidence with few images\n"
_FROZEN_OPTIONS = """\
        trainable_layers=lambda epoch: ["logits"] if epoch < frozen_epochs else ["*"],
        survival=lambda epoch: 1.0 if epoch < frozen_epochs else 0.8,  # stochastic depth only while all layers train
"""


def render_recipe(
    stats: ImageStats, defaults: RecipeDefaults, weights: PretrainedWeights | None, data_path: Path, command: str
) -> str:
    """Return the source of a recipe.

    Args:
        stats: Statistics of the images.
        defaults: Values of its parameters.
        weights: Pretrained weights, if `defaults` are for these.
        data_path: Folder or file of the images.
        command: The command that trains the recipe.
    """
    names = ("members", "epochs", "batch_size", "batch_why", "learning_rate", "size", "size_why")
    reader, path_name, _ = _SOURCES[stats.source]
    return _RECIPE_TEMPLATE.format(
        title=f"A committee of {_spell(defaults.members)} for {stats.num_images:,} images of"
        f" {len(stats.class_counts)} classes.",
        command=command.replace("\\", "\\\\").replace('"', '\\"'),
        epochs_why=f"{defaults.splits.num_training:,} training images in {defaults.steps_per_epoch:,} batches,"
        f" {defaults.num_images_seen:,} images seen in total",
        data_path=_format_argument(path_name, str(data_path)),
        path_name=path_name,
        warning=_format_comment(defaults.imbalance_warning) + _format_comment(defaults.rare_warning),
        reader=reader,
        first_label="" if stats.first_label is None else _FIRST_LABEL_TEMPLATE.format(stats.first_label),
        split_folders=_format_split_folders(stats.split_folders),
        **_network_parts(stats, defaults, weights),
        **_split_parts(stats, defaults),
        **_augment_parts(defaults),
        **{name: getattr(defaults, name) for name in names},
    )


def _network_parts(stats: ImageStats, defaults: RecipeDefaults, weights: PretrainedWeights | None) -> dict[str, str]:
    """Return the parts that depend on the network."""
    frozen_epochs = defaults.frozen_epochs
    options = {"small": _SMALL_OPTIONS, "pretrained": _LABEL_SMOOTHING + _FROZEN_OPTIONS}
    optimizers = {"small": _TRIANGULAR_OPTIMIZER, "pretrained": _FROZEN_OPTIMIZER}
    return {
        "capacity": _CAPACITY_TEMPLATES[defaults.kind].format(
            width=defaults.width,
            widths=defaults.widths,
            few=SMALL_DATASET_SIZE,
            variant=defaults.variant,
            weights="" if weights is None else _format_argument("weights", weights.source),
        ),
        "network": _NETWORK_TEMPLATES[defaults.kind].format(
            classes=len(stats.class_counts), patch_stride=defaults.patch_stride, kind_why=defaults.kind_why
        ),
        "frozen_epochs": f"    frozen_epochs={frozen_epochs},  # first, in which only the logits train\n"
        if frozen_epochs
        else "",
        "optimizer": optimizers.get(defaults.kind, _OPTIMIZER),
        "options": options.get(defaults.kind, ""),
    }


def _split_parts(stats: ImageStats, defaults: RecipeDefaults) -> dict[str, float | str]:
    """Return the held-out shares and what they amount to, as training divides the images."""
    splits, num_images = defaults.splits, sum(stats.training_counts.values())
    remaining = num_images - splits.num_test
    return {
        "validation": splits.validation,
        "validation_why": _split_reason(splits.validation, splits.num_validation, remaining, "validation", stats),
        "test": splits.test,
        "test_why": _split_reason(splits.test, splits.num_test, num_images, "test", stats),
    }


def _augment_parts(defaults: RecipeDefaults) -> dict[str, str]:
    flip = "Set flip=False if a mirrored image has another class, as with digits."
    if defaults.crops_files:
        return {
            "augment_comment": f"# Random windows and mirroring. {flip}",
            "augment": "data.random_resized_crop(area=(0.3, 1.0))",
        }
    return {
        "augment_comment": f"# Random shifts and mirroring. {flip}",
        "augment": "data.pad_crop_flip(size // 8)",
    }


def _spell(number: int) -> str:
    return {2: "two", 3: "three", 4: "four"}[number]


def _format_split_folders(split_folders: Mapping[str, str] | None) -> str:
    if split_folders is None:
        return ""
    why = "the folder of each split" if split_folders else "every folder is a class"
    return _SPLIT_FOLDERS_TEMPLATE.format(json.dumps(split_folders, ensure_ascii=False), why)


def _format_argument(name: str, value: str) -> str:
    """Return an argument with a string default in double quotes; a long one is exempt from the line length."""
    line = f"{name}={json.dumps(value, ensure_ascii=False)},"
    return f"{line}  # noqa: E501" if len(line) + 4 > _MAX_LINE_LENGTH and " " in value else line


def _split_reason(fraction: float, count: int, whole: int, split: str, stats: ImageStats) -> str:
    """Return what `fraction` amounts to: `count` of `whole` images."""
    if not fraction:
        return f"{split} has its own {_SOURCES[stats.source][2]}"
    if isinstance(fraction, int):
        return f"one training image of each class, {count:,} of {whole:,} images"
    return f"{count:,} of {whole:,} images{'' if count >= WANTED_HELD_OUT else '; more would leave few to train on'}"


def _format_comment(text: str) -> str:
    lines = textwrap.wrap(text, _MAX_LINE_LENGTH - 6)
    return "".join(f"    # {line}\n" for line in lines)
