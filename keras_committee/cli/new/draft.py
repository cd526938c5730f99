"""How is a recipe written down, so that a reader sees what was chosen and why?"""

import json
import textwrap
from pathlib import Path

from keras_committee.cli.new.choices import FEW_EXAMPLES, Choices
from keras_committee.cli.new.survey import Survey

_LONGEST = 120

_RECIPE = '''"""{title}

    {command}
    {command} --smoke

Written by `keras-committee new`; the figures in the comments are those of the images on that day. Change what you like.
"""

import keras

from keras_committee import Recipe, data, models, schedules


def recipe(
    members=4,  # each is one training; two or three already buy most of what a committee gains
{capacity}
    epochs={epochs},  # {epochs_why}
    batch_size={batch_size},  # {batch_why}; less where a GPU runs out of memory
    learning_rate={learning_rate},  # goes with the batch size
    size={size},  # pixels; {size_why}
    {data_dir}
    seed=0,
):
    """The arguments are the knobs: `--set name=value`, typed by these defaults."""

    def member(index):  # built under seed + index, so the members start apart
{network}

    def optimizer(steps):  # steps = epochs * batches per epoch
        rate = schedules.cosine(steps, learning_rate, warm_up=steps // 20)
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)

{warning}    return Recipe(
        data=data.{reader}(
            data_dir,
            batch_size,
            size=(size, size),
{first_label}            validation={validation},  # {validation_why}
            test={test},  # {test_why}
            # Random shifts and mirror images: flip=False where a mirror image is of another class, as with digits.
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

_FIRST_LABEL = "            first_label={},  # of the first class, in the examples\n"

_CAPACITY = {
    "wide_resnet": "    width={width},  # channels of the network; 2 for few images, 4 for {few:,} and more",
    "efficientnet": '    variant="b0",  # to "b7", each larger than the one before',
}

_NETWORK = {
    "wide_resnet": """\
        shape = (size, size, 3)  # a WRN suits images of up to 64 pixels
        return models.wide_resnet(16, width, classes={classes}, image_shape=shape, l2=2.5e-4)""",
    "efficientnet": """\
        # It spends little on large images. For one that begins with the weights of ImageNet:
        # models.pretrained_efficientnet(variant, classes={classes}, image_size=size), and a tenth of the learning rate.
        return models.efficientnet(variant, classes={classes}, image_size=size, l2=1e-5)""",
}


def draft(found: Survey, chosen: Choices, data_dir: Path, command: str) -> str:
    """The source of a recipe for the images in `data_dir`; `command` is the one that trains it."""
    classes = len(found.counts)
    return _RECIPE.format(
        title=f"Four members vote on {found.images:,} images of {classes} classes.",
        command=command.replace("\\", "\\\\").replace('"', '\\"'),
        capacity=_CAPACITY[chosen.network].format(width=chosen.width, few=FEW_EXAMPLES),
        network=_NETWORK[chosen.network].format(classes=classes),
        data_dir=_argument("data_dir", str(data_dir)),
        warning=_comment(chosen.uneven),
        reader="image_folder" if found.first_label is None else "imagenet_records",
        first_label="" if found.first_label is None else _FIRST_LABEL.format(found.first_label),
        validation_why=_why(chosen.validation, "validation", found),
        test_why=_why(chosen.test, "test", found),
        **{name: getattr(chosen, name) for name in ("validation", "test", "epochs", "epochs_why", "batch_size")},
        **{name: getattr(chosen, name) for name in ("batch_why", "learning_rate", "size", "size_why")},
    )


def _argument(name: str, value: str) -> str:
    """An argument with a string for its default, in the quotes of the house; long ones may pass the margin."""
    line = f"{name}={json.dumps(value, ensure_ascii=False)},"
    return f"{line}  # noqa: E501" if len(line) + 4 > _LONGEST and " " in value else line


def _why(share: float, part: str, found: Survey) -> str:
    there = "there is a folder for" if found.first_label is None else "there are shards for"
    return f"{share:.0%} of the training images" if share else f"{there} {part}"


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, _LONGEST - 6)
    return "".join(f"    # {line}\n" for line in lines)
