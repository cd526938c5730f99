"""How does a network of keras.applications become a member, with the preprocessing that its module names?"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee.errors import DataError
from keras_committee.models.blocks import IMAGENET_STD
from keras_committee.models.foreign import as_member
from keras_committee.models.scales import Normalization

_PUBLISHED = (224, 224)  # of MobileNetV3, the only one whose builder does not say its size


def from_application(
    application: str,
    *,
    weights: str | Path | None = "imagenet",
    weights_classes: int = 1000,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    name: str | None = None,
    **options: Any,
) -> keras.Model:
    """A network of `keras.applications`, such as `"ResNet50"`, as a member: its `preprocess_input` is inside.

    Args:
        application: Its name in `keras.applications`.
        weights: `"imagenet"`, which Keras downloads; a file that Keras' `load_weights` reads; None begins at random.
        weights_classes: Number of classes that the weights know.
        classes: Number of logits; where the weights know another number, the last layer begins at random. None is that
            of the weights.
        image_size: `(height, width)`; None is the size that the network was published with.
        name: Name of the member; that of the network where None.
        **options: Other arguments of the builder, such as `alpha`.

    Raises:
        DataError: If the weights are missing, of another network, or cannot be downloaded.
        ValueError: If there is no such network, it cannot take images of that size, or its preprocessing is left out.
    """
    build, classes = _builder(application), classes or weights_classes
    if not options.get("include_preprocessing", True):
        raise ValueError(f"a member has its preprocessing inside: leave include_preprocessing to {application}.")
    if weights is None:
        shape = {} if image_size is None else {"input_shape": (*image_size, 3)}
        network = build(weights=None, classes=classes, classifier_activation=None, **shape, **options)
    else:
        network = _read(application, build, weights, {"classes": weights_classes, **options})
        network = _changed(network, None if classes == weights_classes else classes, image_size)
    left_open = None in network.inputs[0].shape[1:3]
    size = _PUBLISHED if image_size is None and left_open else image_size
    return as_member(network, scale=preprocessing(application), image_size=size, name=name)


def applications() -> list[str]:
    """The names of all networks of `keras.applications`."""
    return [name for name, each in vars(keras.applications).items() if name[0].isupper() and callable(each)]


def preprocessing(application: str) -> Normalization:
    """What the `preprocess_input` beside a network does to raw pixels.

    It is asked: each mode of Keras ("caffe", "tf", "torch", or none) scales and shifts the channels, and may turn their
    order around.
    """
    probes = np.zeros((4, 1, 1, 3), np.float32)
    probes[1:, 0, 0] = 255 * np.eye(3)  # black, red, green, blue
    seen = np.asarray(_module(application).preprocess_input(probes, data_format="channels_last"), np.float64)[:, 0, 0]
    slopes = (seen[1:] - seen[0]) / 255
    flip = bool(slopes[0, 0] == 0)
    slope = np.diag(slopes[::-1] if flip else slopes)
    mean, std = (np.abs(np.round(each, 4)) for each in (-seen[0] / slope, 1 / slope))  # float32 has no more digits
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()), flip)


def _builder(application: str) -> Callable[..., keras.Model]:
    if application not in applications():
        raise ValueError(f"keras.applications has no {application!r}. It has: {', '.join(applications())}.")
    return getattr(keras.applications, application)


def _module(application: str) -> Any:
    return inspect.getmodule(_builder(application))


def _read(application, build, weights, options):
    if str(weights) != "imagenet" and not Path(weights).is_file():
        raise DataError(f'there is no file of weights {weights}.\n  Give its path, or "imagenet" to download it.')
    try:
        network = build(weights=str(weights), classifier_activation=None, **options)
    except Exception as error:  # a failed download is a plain Exception; a damaged file any of five kinds
        raise DataError(
            f"{weights} gives no weights of {application} with {options['classes']} classes: {error}\n"
            "  Give a file of this network, and its number of classes as weights_classes."
        ) from error
    if str(weights) != "imagenet":
        _refuse_half_normalised(application, network, weights)
    return network


def _refuse_half_normalised(application, network, weights):
    # EfficientNet's published files keep the deviation for the variance, and Keras mends that only where it downloads
    # them itself: https://github.com/tensorflow/tensorflow/issues/49930
    norms = [each for each in network.layers if isinstance(each, keras.layers.Normalization)]
    values = [keras.ops.convert_to_numpy(each.variance).reshape(-1) for each in norms]
    if any(np.allclose(value * 255, IMAGENET_STD, atol=0.5) for value in values):
        raise DataError(
            f"{application} would normalise images otherwise than the weights in {weights} were trained with.\n"
            "  Take models.pretrained_efficientnet(variant, weights), which mends it."
        )


def _changed(network, classes, image_size):
    """The same layers for images of another size, and but for the last one with another number of classes."""
    if classes is None and image_size is None:
        return network
    size = network.inputs[0].shape[1:3] if image_size is None else image_size
    image = keras.Input((*size, 3), name="image")
    top = [layer for layer in network.layers if layer.weights][-1]

    def layer_of(layer):
        if classes is None:
            return layer
        changed = {"units": classes, "filters": classes} if layer is top else {"target_shape": (classes,)}
        changed = {key: value for key, value in changed.items() if key in layer.get_config()}
        # A Reshape in the middle has another rank, and stays.
        stays = "target_shape" in changed and len(layer.get_config()["target_shape"]) != 1
        return layer if stays or not changed else type(layer).from_config({**layer.get_config(), **changed})

    try:
        return keras.models.clone_model(network, input_tensors=image, clone_function=layer_of)
    except ValueError as error:
        raise ValueError(f"{network.name!r} cannot take images of {size[0]}x{size[1]}: {error}") from error
