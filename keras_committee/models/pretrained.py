"""Members with pretrained weights: `keras.applications` and keras-cv."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee.errors import DataError, VerificationError
from keras_committee.files import expand_home
from keras_committee.input_scaling import IMAGENET_STD, InputNormalization, InputScaling
from keras_committee.models.efficientnet import check_variant, efficientnet
from keras_committee.models.external import wrap_model

_MOBILENET_V3_SIZE = (224, 224)  # MobileNetV3 is the only network whose builder leaves the size open


def pretrained_efficientnet(
    variant: str, weights: str | Path = "imagenet", *, classes: int | None = None, **options
) -> keras.Model:
    """Return `efficientnet(variant)` with the weights of `keras.applications.EfficientNetB0` to `B7`.

    Each layer takes the weights of the layer with its name. The pixel normalization of the file is built in, so for raw
    pixels the logits equal those of Keras.

    Args:
        variant: `"b0"` to `"b7"`.
        weights: `"imagenet"`, which Keras downloads, or a file that Keras' `load_weights` reads: the published `.h5`
            with 1,000 classes, or a `.weights.h5` saved from the same network.
        classes: Number of logits. If it differs from the file's, the logits layer starts at random. None keeps the
            1,000 of the file.
        **options: Other arguments of `efficientnet`.

    Raises:
        DataError: If the file is missing, belongs to another network, or cannot be downloaded.
        ValueError: As in `efficientnet`.
    """
    check_variant(variant)
    source = _build_with_weights(f"EfficientNet{variant.upper()}", weights)
    return from_keras_efficientnet(source, variant, classes=classes, **options)


def from_keras_efficientnet(source: keras.Model, variant: str, *, classes: int | None = None, **options) -> keras.Model:
    """Return our EfficientNet with the weights and the normalization of a model of `keras.applications`.

    Args:
        source: `keras.applications.EfficientNetB0` to `B7`, with its top.
        variant: `"b0"` to `"b7"`, the variant of `source`.
        classes: As in `pretrained_efficientnet`.
        **options: Other arguments of `efficientnet`.

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
    """Return a network of `keras.applications` as a member, with its `preprocess_input` built in.

    Args:
        application: Name in `keras.applications`, such as `"ResNet50"`.
        weights: `"imagenet"`, which Keras downloads, or a file that Keras' `load_weights` reads. None starts at random.
        weights_classes: Number of classes of the weights.
        classes: Number of logits. If it differs from `weights_classes`, the last layer starts at random. None is
            `weights_classes`.
        image_size: `(height, width)`. None is the size that the network was published with.
        name: Name of the member. None is that of the network.
        **options: Other arguments of the builder, such as `alpha`.

    Raises:
        DataError: If the weights are missing, belong to another network, or cannot be downloaded.
        ValueError: If there is no such network, if it cannot take images of `image_size`, or if `options` turn its
            preprocessing off.
    """
    builder, classes = _application_builder(application), classes or weights_classes
    if not options.get("include_preprocessing", True):
        raise ValueError(f"include_preprocessing must be True for {application}. Received: include_preprocessing=False")
    if weights is None:
        shape = {} if image_size is None else {"input_shape": (*image_size, 3)}
        network = builder(weights=None, classes=classes, classifier_activation=None, **shape, **options)
    else:
        network = _build_with_weights(
            application, weights, classes=weights_classes, classifier_activation=None, **options
        )
        if str(weights) != "imagenet":
            _check_normalization_weights(application, network, weights)
        network = _rebuild(network, None if classes == weights_classes else classes, image_size)
    size_is_open = None in network.inputs[0].shape[1:3]
    size = _MOBILENET_V3_SIZE if image_size is None and size_is_open else image_size
    return wrap_model(network, input_scaling=application_normalization(application), image_size=size, name=name)


def application_names() -> list[str]:
    """Return the names of all networks in `keras.applications`."""
    return [name for name, value in vars(keras.applications).items() if name[0].isupper() and callable(value)]


def application_normalization(application: str) -> InputNormalization:
    """Return the normalization of a network's `preprocess_input`, measured on four probe pixels.

    Every mode of Keras ("caffe", "tf", "torch", or none) scales and shifts the channels and may reverse their order.
    """
    probes = np.zeros((4, 1, 1, 3), np.float32)
    probes[1:, 0, 0] = 255 * np.eye(3)  # black, red, green, blue
    module: Any = inspect.getmodule(_application_builder(application))
    outputs = np.asarray(module.preprocess_input(probes, data_format="channels_last"), np.float64)[:, 0, 0]
    slopes = (outputs[1:] - outputs[0]) / 255
    flip = bool(slopes[0, 0] == 0)
    slope = np.diag(slopes[::-1] if flip else slopes)
    # float32 has no more than four exact decimals here.
    mean, std = (np.abs(np.round(values, 4)) for values in (-outputs[0] / slope, 1 / slope))
    return InputNormalization(tuple(mean.tolist()), tuple(std.tolist()), flip)


def from_keras_cv(
    backbone: keras.Model,
    classes: int,
    *,
    input_scaling: InputScaling | None = None,
    image_size: tuple[int, int] | None = None,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Return a keras-cv backbone as a member, with global average pooling and a new dense layer on top.

    Args:
        backbone: Model from images to features `(batch, rows, columns, channels)`, such as
            `keras_cv.models.ResNetV2Backbone(...)`. The named ones, such as `ResNet18V2Backbone()`, read their
            configuration from Kaggle.
        classes: Number of logits.
        input_scaling: The pixels that the backbone was trained on, as in `wrap_model`. None uses its
            `include_rescaling`: raw pixels if it is set, else pixels in 0..1.
        image_size: `(height, width)`, if the backbone takes images of any size.
        dropout: Fraction of the features that are dropped during training.
        name: Name of the member. None is that of the backbone.

    Raises:
        VerificationError: If `backbone` is not a backbone, or has no `include_rescaling` and no `input_scaling` is
            given.
        ValueError: If `input_scaling` is unknown.
    """
    features = (getattr(backbone, "outputs", None) or [None])[0]
    if features is None or len(backbone.outputs) != 1 or len(features.shape) != 4:
        raise VerificationError(
            f"{getattr(backbone, 'name', backbone)!r} is not a backbone: it must return one output "
            "(batch, rows, columns, channels)."
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


def _application_builder(application: str) -> Callable[..., keras.Model]:
    if application not in application_names():
        raise ValueError(
            f"keras.applications has no network {application!r}. Networks: {', '.join(application_names())}"
        )
    return getattr(keras.applications, application)


def _build_with_weights(application: str, weights: str | Path, *, classes: int = 1000, **options) -> keras.Model:
    """Build a network of `keras.applications` with its weights, or raise `DataError`."""
    weights = expand_home(weights)
    is_file = str(weights) != "imagenet"
    if is_file and not weights.is_file():
        raise DataError(
            f'There is no weights file {weights}.\n  Pass the path of a file, or "imagenet" to download the weights.'
        )
    try:
        return _application_builder(application)(weights=str(weights), classes=classes, **options)
    except Exception as error:  # a failed download is a plain Exception, a damaged file one of five types
        if is_file:
            raise DataError(
                f"{weights} does not hold the weights of {application} with {classes:,} classes: {error}\n"
                "  Pass a file that Keras publishes for this network, or one saved with `save_weights`. If it has "
                "another number of classes, pass weights_classes to from_application."
            ) from error
        raise DataError(
            f"The ImageNet weights of {application} cannot be loaded: {error}\n"
            "  Without network access, download them elsewhere and pass the path of the file."
        ) from error


def _input_mean_and_std(source: keras.Model) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of raw pixels that the layers before the stem amount to."""
    norm = next(layer for layer in source.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance = (keras.ops.convert_to_numpy(value).reshape(-1) for value in (norm.mean, norm.variance))
    std = variance if _variance_holds_std(norm) else np.sqrt(variance)
    return [float(m) * 255 for m in np.broadcast_to(mean, 3)], [float(s) * 255 for s in np.broadcast_to(std, 3)]


def _variance_holds_std(norm: keras.layers.Normalization) -> bool:
    """Return whether a normalization layer holds the standard deviation where the variance belongs.

    EfficientNet's published files do. Keras corrects it by another square root, but only if it downloads the files
    itself: https://github.com/tensorflow/tensorflow/issues/49930
    """
    variance = keras.ops.convert_to_numpy(norm.variance).reshape(-1)
    return np.allclose(variance * 255, IMAGENET_STD, atol=0.5)


def _check_normalization_weights(application, network, weights):
    if any(_variance_holds_std(layer) for layer in network.layers if isinstance(layer, keras.layers.Normalization)):
        raise DataError(
            f"{application} would normalize images differently from the training of the weights in {weights}.\n"
            "  Use models.pretrained_efficientnet(variant, weights), which corrects the normalization."
        )


def _rebuild(network, classes, image_size):
    """Return a network of the same layers for another image size, with a new last layer if `classes` is given."""
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
        # A Reshape inside the network has another rank and is kept.
        keep_unchanged = "target_shape" in overrides and len(layer.get_config()["target_shape"]) != 1
        if keep_unchanged or not overrides:
            return layer
        return type(layer).from_config({**layer.get_config(), **overrides})

    try:
        return keras.models.clone_model(network, input_tensors=image, clone_function=clone_layer)
    except ValueError as error:
        raise ValueError(f"{network.name!r} cannot take images of {size[0]}x{size[1]}: {error}") from error


def _backbone_input_scaling(backbone):
    rescales = getattr(backbone, "include_rescaling", None)
    if rescales is None:
        raise VerificationError(
            f"{backbone.name!r} has no include_rescaling. Pass the pixels that it was trained on, such as "
            'input_scaling="0..1".'
        )
    return "0..255" if rescales else "0..1"
