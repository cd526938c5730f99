"""How does an EfficientNet of ours get the weights of Keras' own?"""

from pathlib import Path

import keras
import numpy as np

from keras_committee.errors import DataError
from keras_committee.models.blocks import IMAGENET_STD
from keras_committee.models.efficientnet import VARIANTS, efficientnet

_APPLICATIONS = "EfficientNet{}"


def pretrained_efficientnet(
    variant: str, weights: str | Path = "imagenet", *, classes: int | None = None, **options
) -> keras.Model:
    """`efficientnet(variant)` with the weights of `keras.applications.EfficientNetB0` to `B7`.

    Every layer takes the weights of the layer of its name. The file's own normalisation of the pixels is built in, so
    that logits equal those of Keras for raw pixels.

    Args:
        variant: `"b0"` to `"b7"`.
        weights: `"imagenet"`, which Keras downloads, or a file that Keras' `load_weights` reads: the published `.h5`
            with 1,000 classes, or a `.weights.h5` saved from the same network.
        classes: Number of logits; another one than the file's begins with random logits. None keeps the file's 1,000.
        **options: The other arguments of `efficientnet`.

    Raises:
        DataError: If the file is missing, is of another network, or cannot be downloaded.
        ValueError: As `efficientnet`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}. Received: {variant!r}")
    return from_keras_efficientnet(_read(variant, weights), variant, classes=classes, **options)


def from_keras_efficientnet(source: keras.Model, variant: str, *, classes: int | None = None, **options) -> keras.Model:
    """Our EfficientNet with the weights and the normalisation of `source`, a model of `keras.applications`.

    Args:
        source: `keras.applications.EfficientNetB0` to `B7`, with its top.
        variant: Which of them it is.
        classes: As in `pretrained_efficientnet`.
        **options: The other arguments of `efficientnet`.

    Raises:
        ValueError: If a layer of `source` has other shapes.
    """
    top = source.get_layer("predictions")
    mean, std = _normalisation(source)
    options = {"mean": mean, "std": std, **options}
    model = efficientnet(variant, classes=classes or top.units, **options)
    theirs = {layer.name: layer for layer in source.layers if layer.weights} | {"logits": top}
    for layer in model._flatten_layers(include_self=False):
        fits = layer.name != "logits" or layer.units == top.units
        if layer.name in theirs and layer.weights and fits:
            layer.set_weights(theirs[layer.name].get_weights())
    return model


def _read(variant: str, weights: str | Path) -> keras.Model:
    build = getattr(keras.applications, _APPLICATIONS.format(variant.upper()))
    local = str(weights) != "imagenet"
    if local and not Path(weights).is_file():
        raise DataError(f'there is no file of weights {weights}.\n  Give its path, or "imagenet" to download it.')
    try:
        return build(weights=str(weights))
    except Exception as error:  # a failed download is a plain Exception; a damaged file any of five kinds
        raise DataError(_explain(variant, weights, local, error)) from error


def _explain(variant, weights, local, error) -> str:
    if local:
        return (
            f"{weights} holds no weights of {_APPLICATIONS.format(variant.upper())} with 1,000 classes: {error}\n"
            "  Give the file that Keras publishes for this network, or one saved with `save_weights`."
        )
    return (
        f"the weights of {_APPLICATIONS.format(variant.upper())} cannot be downloaded: {error}\n"
        "  Download them where there is a network, and give the path of the file."
    )


def _normalisation(source: keras.Model) -> tuple[list[float], list[float]]:
    """Mean and deviation of raw pixels that do what the layers before the stem do."""
    norm = next(layer for layer in source.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance = (keras.ops.convert_to_numpy(value).reshape(-1) for value in (norm.mean, norm.variance))
    # The published files keep the deviation where the variance belongs, and Keras divides by its root once more, but
    # only where it downloads them itself: https://github.com/tensorflow/tensorflow/issues/49930
    published = np.allclose(variance * 255, IMAGENET_STD, atol=0.5)
    std = variance if published else np.sqrt(variance)
    return [float(m) * 255 for m in np.broadcast_to(mean, 3)], [float(s) * 255 for s in np.broadcast_to(std, 3)]
