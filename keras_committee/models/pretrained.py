"""How does an EfficientNet of ours get the weights of Keras' own?"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee.errors import DataError, VerificationError
from keras_committee.models.blocks import IMAGENET_STD
from keras_committee.models.efficientnet import VARIANTS, efficientnet
from keras_committee.models.external import InputNormalization, InputScaling, wrap_model

_APPLICATION_NAME = "EfficientNet{}"


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
    return from_keras_efficientnet(_load_efficientnet(variant, weights), variant, classes=classes, **options)


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
    mean, std = _input_mean_and_std(source)
    options = {"mean": mean, "std": std, **options}
    model = efficientnet(variant, classes=classes or top.units, **options)
    source_layers = {layer.name: layer for layer in source.layers if layer.weights} | {"logits": top}
    for layer in model._flatten_layers(include_self=False):
        same_shape = layer.name != "logits" or layer.units == top.units
        if layer.name in source_layers and layer.weights and same_shape:
            layer.set_weights(source_layers[layer.name].get_weights())
    return model


def _load_efficientnet(variant: str, weights: str | Path) -> keras.Model:
    builder = getattr(keras.applications, _APPLICATION_NAME.format(variant.upper()))
    is_file = str(weights) != "imagenet"
    if is_file and not Path(weights).is_file():
        raise DataError(f'there is no file of weights {weights}.\n  Give its path, or "imagenet" to download it.')
    try:
        return builder(weights=str(weights))
    except Exception as error:  # a failed download is a plain Exception; a damaged file any of five kinds
        raise DataError(_load_error_message(variant, weights, is_file, error)) from error


def _load_error_message(variant, weights, is_file, error) -> str:
    if is_file:
        return (
            f"{weights} holds no weights of {_APPLICATION_NAME.format(variant.upper())} with 1,000 classes: {error}\n"
            "  Give the file that Keras publishes for this network, or one saved with `save_weights`."
        )
    return (
        f"the weights of {_APPLICATION_NAME.format(variant.upper())} cannot be downloaded: {error}\n"
        "  Download them where there is a network, and give the path of the file."
    )


def _input_mean_and_std(source: keras.Model) -> tuple[list[float], list[float]]:
    """Mean and deviation of raw pixels that do what the layers before the stem do."""
    norm = next(layer for layer in source.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance = (keras.ops.convert_to_numpy(value).reshape(-1) for value in (norm.mean, norm.variance))
    # The published files keep the deviation where the variance belongs, and Keras divides by its root once more, but
    # only where it downloads them itself: https://github.com/tensorflow/tensorflow/issues/49930
    variance_holds_std = np.allclose(variance * 255, IMAGENET_STD, atol=0.5)
    std = variance if variance_holds_std else np.sqrt(variance)
    return [float(m) * 255 for m in np.broadcast_to(mean, 3)], [float(s) * 255 for s in np.broadcast_to(std, 3)]


_MOBILENET_V3_SIZE = (224, 224)  # of MobileNetV3, the only one whose builder does not say its size


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
    builder, classes = _application_builder(application), classes or weights_classes
    if not options.get("include_preprocessing", True):
        raise ValueError(f"a member has its preprocessing inside: leave include_preprocessing to {application}.")
    if weights is None:
        shape = {} if image_size is None else {"input_shape": (*image_size, 3)}
        network = builder(weights=None, classes=classes, classifier_activation=None, **shape, **options)
    else:
        network = _load_application(application, builder, weights, {"classes": weights_classes, **options})
        network = _rebuild(network, None if classes == weights_classes else classes, image_size)
    size_unspecified = None in network.inputs[0].shape[1:3]
    size = _MOBILENET_V3_SIZE if image_size is None and size_unspecified else image_size
    return wrap_model(network, input_scaling=application_normalization(application), image_size=size, name=name)


def application_names() -> list[str]:
    """The names of all networks of `keras.applications`."""
    return [name for name, value in vars(keras.applications).items() if name[0].isupper() and callable(value)]


def application_normalization(application: str) -> InputNormalization:
    """What the `preprocess_input` beside a network does to raw pixels.

    It is asked: each mode of Keras ("caffe", "tf", "torch", or none) scales and shifts the channels, and may turn their
    order around.
    """
    probes = np.zeros((4, 1, 1, 3), np.float32)
    probes[1:, 0, 0] = 255 * np.eye(3)  # black, red, green, blue
    outputs = np.asarray(
        _application_module(application).preprocess_input(probes, data_format="channels_last"), np.float64
    )[:, 0, 0]
    slopes = (outputs[1:] - outputs[0]) / 255
    flip = bool(slopes[0, 0] == 0)
    slope = np.diag(slopes[::-1] if flip else slopes)
    mean, std = (
        np.abs(np.round(values, 4)) for values in (-outputs[0] / slope, 1 / slope)
    )  # float32 has no more digits
    return InputNormalization(tuple(mean.tolist()), tuple(std.tolist()), flip)


def _application_builder(application: str) -> Callable[..., keras.Model]:
    if application not in application_names():
        raise ValueError(f"keras.applications has no {application!r}. It has: {', '.join(application_names())}.")
    return getattr(keras.applications, application)


def _application_module(application: str) -> Any:
    return inspect.getmodule(_application_builder(application))


def _load_application(application, builder, weights, options):
    if str(weights) != "imagenet" and not Path(weights).is_file():
        raise DataError(f'there is no file of weights {weights}.\n  Give its path, or "imagenet" to download it.')
    try:
        network = builder(weights=str(weights), classifier_activation=None, **options)
    except Exception as error:  # a failed download is a plain Exception; a damaged file any of five kinds
        raise DataError(
            f"{weights} gives no weights of {application} with {options['classes']} classes: {error}\n"
            "  Give a file of this network, and its number of classes as weights_classes."
        ) from error
    if str(weights) != "imagenet":
        _check_normalization_weights(application, network, weights)
    return network


def _check_normalization_weights(application, network, weights):
    # EfficientNet's published files keep the deviation for the variance, and Keras mends that only where it downloads
    # them itself: https://github.com/tensorflow/tensorflow/issues/49930
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    values = [keras.ops.convert_to_numpy(each.variance).reshape(-1) for each in norms]
    if any(np.allclose(value * 255, IMAGENET_STD, atol=0.5) for value in values):
        raise DataError(
            f"{application} would normalise images otherwise than the weights in {weights} were trained with.\n"
            "  Take models.pretrained_efficientnet(variant, weights), which mends it."
        )


def _rebuild(network, classes, image_size):
    """The same layers for images of another size, and but for the last one with another number of classes."""
    if classes is None and image_size is None:
        return network
    size = network.inputs[0].shape[1:3] if image_size is None else image_size
    image = keras.Input((*size, 3), name="image")
    top = [layer for layer in network.layers if layer.weights][-1]

    def clone_layer(layer):
        if classes is None:
            return layer
        overrides = {"units": classes, "filters": classes} if layer is top else {"target_shape": (classes,)}
        overrides = {key: value for key, value in overrides.items() if key in layer.get_config()}
        # A Reshape in the middle has another rank, and stays.
        keep_unchanged = "target_shape" in overrides and len(layer.get_config()["target_shape"]) != 1
        return (
            layer if keep_unchanged or not overrides else type(layer).from_config({**layer.get_config(), **overrides})
        )

    try:
        return keras.models.clone_model(network, input_tensors=image, clone_function=clone_layer)
    except ValueError as error:
        raise ValueError(f"{network.name!r} cannot take images of {size[0]}x{size[1]}: {error}") from error


def from_keras_cv(
    backbone: keras.Model,
    classes: int,
    *,
    input_scaling: InputScaling | None = None,
    image_size: tuple[int, int] | None = None,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """A keras-cv backbone with the mean over the positions and a dense layer of random weights on top.

    Args:
        backbone: Such as `keras_cv.models.ResNetV2Backbone(...)`: of images to features `(batch, rows, columns,
            channels)`. The named ones, such as `ResNet18V2Backbone()`, ask Kaggle for their shape.
        classes: Number of logits.
        input_scaling: What pixels the backbone was trained on, as `wrap_model` takes it. None asks it for its
            `include_rescaling`: with it, it takes raw pixels, and without it pixels in 0..1.
        image_size: `(height, width)`, where the backbone takes images of any size.
        dropout: Share of the features that are dropped in training.
        name: Name of the member; that of the backbone where None.

    Raises:
        VerificationError: If it is no backbone, or does not say whether it rescales and no `input_scaling` is given.
        ValueError: If the scale is none.
    """
    features = (getattr(backbone, "outputs", None) or [None])[0]
    if features is None or len(backbone.outputs) != 1 or len(features.shape) != 4:
        raise VerificationError(
            f"{getattr(backbone, 'name', backbone)!r} is no backbone of images to one (batch, rows, columns, channels)."
        )
    x = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    x = keras.layers.Dropout(dropout, name="dropout")(x) if dropout else x
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
    network = keras.Model(backbone.inputs[0], logits, name=name or backbone.name)
    return wrap_model(
        network,
        input_scaling=_backbone_input_scaling(backbone) if input_scaling is None else input_scaling,
        image_size=image_size,
    )


def _backbone_input_scaling(backbone):
    rescales = getattr(backbone, "include_rescaling", None)
    if rescales is None:
        raise VerificationError(
            f'{backbone.name!r} does not say whether it rescales pixels. Name its scale: scale="0..1", or another.'
        )
    return "0..255" if rescales else "0..1"
