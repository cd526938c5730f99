"""Which pixels was a network from elsewhere trained on, and how do raw pixels 0..255 become these?"""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import keras
import numpy as np

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
SCALES: Mapping[str, Normalization] = types.MappingProxyType(
    {
        "0..255": Normalization(0.0, 1.0),
        "0..1": Normalization(0.0, 255.0),
        "-1..1": Normalization(127.5, 127.5),
        "torch": Normalization(IMAGENET_MEAN, IMAGENET_STD),
        "caffe": Normalization((103.939, 116.779, 123.68), 1.0, flip=True),
    }
)


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
    plain = np.all(np.equal(how.mean, 0)) and np.all(np.equal(how.std, 1))
    return image if plain else normalized(image, how.mean, how.std)


def scale_named(text: str) -> Scale:
    """A name in `SCALES`, or `MEAN/STD` of raw pixels such as "125.3,123,113.9/63,62.1,66.7". Raises ValueError."""
    if text in SCALES:
        return text
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        raise ValueError(f"expected {', '.join(SCALES)}, or MEAN/STD on 0..255. Received: {text!r}") from None
    return Normalization(_numbers(mean), _numbers(std))


def _numbers(values: list[float]) -> Numbers:
    return values[0] if len(values) == 1 else tuple(values)
