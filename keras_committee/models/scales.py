"""Which pixels was a network from elsewhere trained on, and how do raw pixels 0..255 become these?"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_committee.models.blocks import IMAGENET_MEAN, IMAGENET_STD, normalized

Numbers = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Raw pixels 0..255 minus `mean`, divided by `std`; each one number or one for each channel of the result.

    `flip` turns red, green, blue into blue, green, red first.
    """

    mean: Numbers
    std: Numbers
    flip: bool = False


Scale = str | Normalization
SCALES: dict[str, Normalization] = {
    "0..255": Normalization(0.0, 1.0),
    "0..1": Normalization(0.0, 255.0),
    "-1..1": Normalization(127.5, 127.5),
    "torch": Normalization(IMAGENET_MEAN, IMAGENET_STD),
    "caffe": Normalization((103.939, 116.779, 123.68), 1.0, flip=True),
}


def normalization_of(scale: Scale) -> Normalization:
    """What a scale stands for. Raises ValueError if it is none of `SCALES` and no `Normalization`."""
    if isinstance(scale, Normalization):
        return scale
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, or a Normalization. Received: {scale!r}")
    return SCALES[scale]


def scaled(image, scale: Scale):
    """The raw pixels `image`, a symbolic tensor `(batch, height, width, channels)`, as a network was trained on them.

    Raises:
        ValueError: If the scale is none, or does not fit the channels.
    """
    how = normalization_of(scale)
    if how.flip:
        image = keras.ops.flip(image, axis=-1)
    plain = how.mean == 0 and how.std == 1
    return image if plain else normalized(image, how.mean, how.std)
