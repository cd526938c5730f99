"""Files with ImageNet weights of EfficientNets: a given one, or those in Keras' cache. Does not start TensorFlow."""

import dataclasses
import os
import re
from pathlib import Path

from keras_committee.errors import RecipeError
from keras_committee.files import expand_home

_FROM_CACHE = "read from Keras' cache"
_VARIANTS = tuple(f"b{number}" for number in range(8))


@dataclasses.dataclass(frozen=True)
class PretrainedWeights:
    """Weights of an EfficientNet.

    Args:
        variant: `"b0"` to `"b7"`.
        source: Value of the recipe's parameter: a file, or `"imagenet"` for Keras' download or its cache.
        origin: Where they are, for the comment in the recipe.
    """

    variant: str
    source: str
    origin: str

    @property
    def is_given(self) -> bool:
        """Whether the user named the weights."""
        return self.origin != _FROM_CACHE


def find_weights(file: Path | None) -> PretrainedWeights | None:
    """Return the weights in `file`, or the smallest network in Keras' cache; None if there are none.

    The name `imagenet` stands for those of EfficientNet-B0 that Keras downloads.

    Raises:
        RecipeError: If there is no such file, or its name does not name the variant.
    """
    if file is None:
        return _cached_weights()
    if file == Path("imagenet") and not file.exists():
        return PretrainedWeights("b0", "imagenet", "downloaded by Keras")
    return _weights_in_file(file)


def _weights_in_file(file: Path) -> PretrainedWeights:
    hint = (
        "Pass the .h5 file that Keras publishes for an EfficientNet, such as efficientnetb0.h5, or imagenet. "
        "No file was written."
    )
    if not file.is_file():
        raise RecipeError(f"there is no weights file {file}.\n  {hint}")
    variant = re.search(r"b[0-7](?![a-z0-9])", file.stem.lower())
    if file.suffix != ".h5" or variant is None or "notop" in file.stem:
        raise RecipeError(
            f"{file}: the name is not that of weights of an EfficientNet with its variant, b0 to b7.\n  {hint}"
        )
    return PretrainedWeights(variant.group(), str(file), "a file that Keras publishes")


def _cached_weights() -> PretrainedWeights | None:
    folder = expand_home(os.environ.get("KERAS_HOME") or "~/.keras") / "models"
    found = [variant for variant in _VARIANTS if (folder / f"efficientnet{variant}.h5").is_file()]
    return PretrainedWeights(found[0], "imagenet", _FROM_CACHE) if found else None
