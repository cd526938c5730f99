"""Which network, size, batch and length of training suit these images and this machine?"""

import dataclasses
import math

from keras_committee.cli.new.survey import Survey

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
