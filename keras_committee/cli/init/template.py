"""How is a recipe written down, so that a reader sees what was chosen and why?"""

import dataclasses
import json
import math
import textwrap
from pathlib import Path

from keras_committee.cli.init.image_stats import Survey

SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
LARGEST_FOR_WIDE_RESNET = 64
IMAGES_SEEN = 2_000_000  # in all epochs; CIFAR-10 in 44
FEWEST_EPOCHS, MOST_EPOCHS = 10, 200
UNEVEN = 3.0
FEW_EXAMPLES = 20_000
RATES = {"wide_resnet": 0.1, "efficientnet": 0.05}  # for batches of 128
# Of an image in a training step, estimated from the activations and rounded up: WRN-16-4, EfficientNet-B0, float32.
BYTES_PER_PIXEL = {"wide_resnet": 12_000, "efficientnet": 2_500}
HELD_OUT = {"validation": 0.1, "test": 0.2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What stands in a new recipe, each with the sentence that says why."""

    size: int
    size_why: str
    network: str  # wide_resnet or efficientnet
    width: int  # of a wide_resnet
    batch_size: int
    batch_why: str
    epochs: int
    epochs_why: str
    learning_rate: float
    validation: float
    test: float
    uneven: str


def choose(found: Survey, free_memory: int) -> Choices:
    """Sensible first values; `free_memory` in bytes is what all members share."""
    size = _size(found.side)
    network = "wide_resnet" if size <= LARGEST_FOR_WIDE_RESNET else "efficientnet"
    shares, examples = _shares(found)
    batch, batch_why = _batch(BYTES_PER_PIXEL[network] * size * size, examples, free_memory)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_SEEN / examples)))
    return Choices(
        size=size,
        size_why=f"the median of the shorter sides is {found.side} pixels",
        network=network,
        width=2 if examples < FEW_EXAMPLES else 4,
        batch_size=batch,
        batch_why=batch_why,
        epochs=epochs,
        epochs_why=f"{examples:,} images for training, {epochs * examples:,} seen in all",
        learning_rate=float(f"{RATES[network] * batch / 128:.2g}"),
        uneven=_uneven(found),
        **shares,
    )


def _size(side: int) -> int:
    """The largest size that does not blow the median image up, but by a tenth; 32 at least."""
    return max([each for each in SIZES if each <= 1.1 * side], default=SIZES[0])


def _shares(found: Survey) -> tuple[dict[str, float], int]:
    """What is held out for test and then for validation, 0.0 where folders say it, and the examples that are left."""
    shares, examples = {"validation": 0.0, "test": 0.0}, sum(found.training.values())
    for part in ("test", "validation"):
        if part not in found.held_out:
            enough = math.ceil(110 * len(found.training) / examples) / 100  # an image of each class, and a tenth more
            shares[part] = min(0.4, max(HELD_OUT[part], enough))
            examples = max(1, examples - round(examples * shares[part]))
    return shares, examples


def _batch(bytes_of_image: int, examples: int, free_memory: int) -> tuple[int, str]:
    """A power of two, and which limit it keeps."""
    most, why = min(
        (128, "as in the papers"),
        (examples // 8, "8 of them make an epoch"),
        (free_memory // 2 // bytes_of_image, "half of the free memory holds it, as estimated"),
        key=lambda limit: limit[0],
    )
    return _power_of_two(most), why


def _power_of_two(most: int) -> int:
    """The largest power of two up to `most`, 1 at least."""
    return 1 << (max(1, most).bit_length() - 1)


def _uneven(found: Survey) -> str:
    """A warning where some classes have many more images than others."""
    if found.imbalance < UNEVEN:
        return ""
    (most, many), (least, few) = (pick(found.training.items(), key=lambda pair: pair[1]) for pick in (max, min))
    return (
        f"class {most!r} has {many:,} images for training, {least!r} has {few:,}: {found.imbalance:.1f} times fewer. "
        f"Accuracy says little of {least!r}; look at the confusion matrix, or collect more of it."
    )


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
