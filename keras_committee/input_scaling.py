"""Pixel scales that networks are trained on."""

import dataclasses
import types
from collections.abc import Mapping, Sequence

PerChannel = float | Sequence[float]

# Pixel means and standard deviations of ImageNet, from fb.resnet.torch.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class InputNormalization:
    """Normalization of raw pixels 0..255: subtract `mean`, divide by `std`.

    Attributes:
        mean: One number, or one for each channel of the result.
        std: Likewise.
        flip: Whether red, green, blue become blue, green, red first.
    """

    mean: PerChannel
    std: PerChannel
    flip: bool = False


InputScaling = str | InputNormalization
INPUT_SCALINGS: Mapping[str, InputNormalization] = types.MappingProxyType(
    {
        "0..255": InputNormalization(0.0, 1.0),
        "0..1": InputNormalization(0.0, 255.0),
        "-1..1": InputNormalization(127.5, 127.5),
        "torch": InputNormalization(IMAGENET_MEAN, IMAGENET_STD),
        "caffe": InputNormalization((103.939, 116.779, 123.68), 1.0, flip=True),
    }
)


def parse_input_scaling(text: str) -> InputScaling:
    """Parse a key of `INPUT_SCALINGS`, or `MEAN/STD` of raw pixels such as "125.3,123,113.9/63,62.1,66.7".

    Raises:
        ValueError: If `text` is neither.
    """
    if text in INPUT_SCALINGS:
        return text
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        raise ValueError(f"expected {', '.join(INPUT_SCALINGS)}, or MEAN/STD on 0..255. Received: {text!r}") from None
    return InputNormalization(_scalar_or_tuple(mean), _scalar_or_tuple(std))


def _scalar_or_tuple(values: list[float]) -> PerChannel:
    return values[0] if len(values) == 1 else tuple(values)
