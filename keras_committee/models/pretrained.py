"""Members with pretrained weights: `keras.applications`, KerasHub and keras-cv."""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_committee.errors import DataError, RecipeError, VerificationError, did_you_mean
from keras_committee.files import expand_home
from keras_committee.input_scaling import IMAGENET_STD, InputNormalization, InputScaling
from keras_committee.layers.resize import Resize
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


def pretrained(
    network: str | Path,
    *,
    weights: str | Path | None = "imagenet",
    weights_classes: int | None = None,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    dropout: float = 0.0,
    name: str | None = None,
    **options: Any,
) -> keras.Model:
    """Return a published network as a member, with its own preprocessing built in.

    It takes raw pixels. The last layer is named `"logits"`, so `Recipe(trainable_layers=lambda epoch: ["logits"])`
    trains it alone, on the frozen rest of the network.

    Args:
        network: Name in `keras.applications`, such as `"EfficientNetV2B0"`; or a preset of a KerasHub image classifier:
            its name, such as `"resnet_18_imagenet"`, a handle such as `"hf://..."`, or a local folder.
        weights: `"imagenet"`, the published ones, which Keras downloads: of a preset its own, whatever data they were
            trained on. Or a file that Keras' `load_weights` reads. None starts at random.
        weights_classes: Number of classes of the weights in a file. None is 1,000, or that of the preset.
        classes: Number of logits. If the weights have another number, and for a preset, the last layer starts at
            random. None keeps that of the weights.
        image_size: `(height, width)` that the network runs at. None is the size that it was published with.
        resized_from: `(height, width)` of the member's images, which the member resizes to `image_size`: as the preset
            does, or by `layers.Resize`. None is `image_size`.
        dropout: Fraction of the inputs of the last layer that are dropped during training.
        name: Name of the member. None is that of the network.
        **options: Other arguments of the builder of `keras.applications`, such as `alpha`, or of the classifier of
            KerasHub, such as `pooling`.

    Raises:
        DataError: If the weights are missing, belong to another network, or cannot be downloaded.
        RecipeError: If a preset is named and KerasHub is not installed.
        ValueError: If there is no such network, if it cannot take images of `image_size`, or if `options` turn its
            preprocessing or its last layer off.
    """
    network = str(network)
    if network in application_names():
        source = _application(network, weights, weights_classes or 1000, classes, image_size, options)
    else:
        source = _hub_classifier(network, weights, weights_classes, classes, image_size, options)
    model = _rebuild(source.model, classes, source.image_size, dropout)
    member = wrap_model(model, input_scaling=source.input_scaling, name=name)
    if resized_from in (None, source.image_size):
        return member
    image = keras.Input((*resized_from, member.inputs[0].shape[3]), dtype="float32", name="image")
    return keras.Model(image, member(source.resize(image)), name=member.name)


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


@dataclasses.dataclass(frozen=True)
class _Source:
    """A published network.

    Attributes:
        model: Functional model from pixels in its own scaling to logits or probabilities.
        input_scaling: As in `wrap_model`.
        image_size: `(height, width)` that it runs at.
        resize: Function that resizes raw pixels to this size.
    """

    model: keras.Model
    input_scaling: InputNormalization
    image_size: tuple[int, int]
    resize: Callable[[Any], Any]


def _application(application, weights, weights_classes, classes, image_size, options) -> _Source:
    """Return a network of `keras.applications`. Arguments and errors as in `pretrained`."""
    for option in ("include_preprocessing", "include_top"):
        if not options.get(option, True):
            raise ValueError(f"{option} must be True for {application}. Received: {option}=False")
    options = {"classifier_activation": None, **options}
    if weights is None:
        shape = {} if image_size is None else {"input_shape": (*image_size, 3)}
        model = _application_builder(application)(weights=None, classes=classes or weights_classes, **shape, **options)
    else:
        model = _build_with_weights(application, weights, classes=weights_classes, **options)
        if str(weights) != "imagenet":
            _correct_normalization(model)
    published_size = model.inputs[0].shape[1:3]
    size = image_size or (_MOBILENET_V3_SIZE if None in published_size else published_size)
    resize = Resize(*size, name="resize")
    return _Source(model, application_normalization(application), (size[0], size[1]), resize)


def _hub_classifier(preset, weights, weights_classes, classes, image_size, options) -> _Source:
    """Return an image classifier of KerasHub. Arguments and errors as in `pretrained`."""
    is_folder = expand_home(preset).is_dir()
    file = None if weights is None or str(weights) == "imagenet" else expand_home(weights)
    if not (is_folder or "://" in preset or preset in _hub_presets()):
        raise ValueError(_unknown_network(preset))
    if importlib.util.find_spec("keras_hub") is None:
        raise RecipeError(
            f'the preset {preset} requires KerasHub, which is not installed.\n  pip install "keras-committee[kerashub]"'
        )
    if file is not None and not file.is_file():
        raise DataError(_missing_weights(file))
    import keras_hub  # pyright: ignore[reportMissingImports]

    units = classes if file is None else weights_classes
    arguments = {} if units is None else {"num_classes": units}
    if weights is None and image_size is not None:
        arguments["image_shape"] = (*image_size, 3)
    try:
        task: Any = keras_hub.models.ImageClassifier.from_preset(
            str(expand_home(preset)) if is_folder else preset,
            load_weights=str(weights) == "imagenet",
            **arguments,
            **options,
        )
        if file is not None:
            task.load_weights(str(file))
    except Exception as error:  # downloads, presets and files fail in many ways
        raise DataError(
            f"{file or preset} cannot be loaded: {error}\n  A preset without a classification layer "
            "needs `classes`. Without network access, download the preset elsewhere and pass the path of its folder."
        ) from error
    converter = getattr(task.preprocessor, "image_converter", None)
    size = image_size or getattr(converter, "image_size", None) or task.inputs[0].shape[1:3]
    if None in size:
        raise ValueError(f"{preset} takes images of any size: choose one, such as image_size=(224, 224).")
    if converter is None:
        return _Source(task, InputNormalization(0.0, 1.0), tuple(size), Resize(*size, name="resize"))
    # An operation: models with the layer `Resizing` run in training mode unless they are called with training=False.
    options = ("interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    resize = functools.partial(
        keras.ops.image.resize,
        size=tuple(size),
        data_format="channels_last",
        **{option: getattr(converter, option) for option in options},
    )
    return _Source(task, _converter_normalization(converter), tuple(size), resize)


def _converter_normalization(converter) -> InputNormalization:
    """Return `pixels * scale + offset` of an `ImageConverter` of KerasHub as a normalization."""
    scale, offset = (
        np.broadcast_to(np.asarray(default if value is None else value, np.float64), 3)
        for value, default in ((converter.scale, 1.0), (converter.offset, 0.0))
    )
    return InputNormalization(tuple((-offset / scale).tolist()), tuple((1 / scale).tolist()))


def _hub_presets() -> list[str]:
    """Return the names of the presets of KerasHub's image classifiers; none if it is not installed."""
    if importlib.util.find_spec("keras_hub") is None:
        return []
    import keras_hub  # pyright: ignore[reportMissingImports]

    return sorted(keras_hub.models.ImageClassifier.presets)


def _unknown_network(network: str) -> str:
    names = [*application_names(), *_hub_presets()]
    hint = (
        "those in keras_hub.models.ImageClassifier.presets"
        if importlib.util.find_spec("keras_hub")
        else 'after pip install "keras-committee[kerashub]" those of KerasHub'
    )
    return (
        f"there is no published network {network!r}.{did_you_mean(network, names)}\n"
        f"  Networks: {', '.join(application_names())}; {hint}; or the folder of a preset."
    )


def _application_builder(application: str) -> Callable[..., keras.Model]:
    return getattr(keras.applications, application)


def _build_with_weights(application: str, weights: str | Path, *, classes: int = 1000, **options) -> keras.Model:
    """Build a network of `keras.applications` with its weights, or raise `DataError`."""
    weights = expand_home(weights)
    is_file = str(weights) != "imagenet"
    if is_file and not weights.is_file():
        raise DataError(_missing_weights(weights))
    try:
        return _application_builder(application)(weights=str(weights), classes=classes, **options)
    except Exception as error:  # a failed download is a plain Exception, a damaged file one of five types
        if is_file:
            raise DataError(
                f"{weights} does not hold the weights of {application} with {classes:,} classes: {error}\n"
                "  Pass a file that Keras publishes for this network, or one saved with `save_weights`. If it has "
                "another number of classes, pass weights_classes to models.pretrained."
            ) from error
        raise DataError(
            f"The ImageNet weights of {application} cannot be loaded: {error}\n"
            "  Without network access, download them elsewhere and pass the path of the file."
        ) from error


def _missing_weights(weights) -> str:
    return f'There is no weights file {weights}.\n  Pass the path of a file, or "imagenet" to download the weights.'


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


def _correct_normalization(network: keras.Model) -> None:
    """Square the "variance" of an EfficientNet if it is the standard deviation; see `_variance_holds_std`."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights and _variance_holds_std(layer):
            layer.adapt_variance.assign(keras.ops.square(layer.adapt_variance))
            layer.finalize_state()


def _rebuild(network: keras.Model, classes: int | None, image_size: tuple[int, int], dropout: float) -> keras.Model:
    """Return a network of the same layers for an image size, with a new last layer "logits" in float32.

    It has the weights of the old one, unless the number of `classes` differs.
    """
    top = [layer for layer in network.layers if layer.weights][-1]
    image, features = network.inputs[0], top.input
    if tuple(image.shape[1:3]) != image_size:
        base = keras.Model(image, features, name=network.name)
        image = keras.Input((*image_size, image.shape[3]), name="image")
        try:
            resized = keras.models.clone_model(base, input_tensors=image, clone_function=lambda layer: layer)
        except ValueError as error:
            raise ValueError(
                f"{network.name!r} cannot take images of {image_size[0]}x{image_size[1]}: {error}\n"
                "  With its own size and `resized_from`, it resizes images of another size."
            ) from error
        features = resized.outputs[0]
    old_classes, config = network.outputs[0].shape[1], top.get_config()
    sizes = {key: classes or old_classes for key in ("units", "filters") if key in config}
    logits = type(top).from_config({**config, **sizes, "name": "logits", "dtype": "float32"})
    outputs = logits(keras.layers.Dropout(dropout, name="logits_dropout")(features) if dropout else features)
    for layer in network.layers[network.layers.index(top) + 1 :]:  # such as the Flatten of a convolution
        config = layer.get_config()
        is_sized = classes is not None and "target_shape" in config
        outputs = (type(layer).from_config({**config, "target_shape": (classes,)}) if is_sized else layer)(outputs)
    if classes in (None, old_classes):
        logits.set_weights(top.get_weights())
    return keras.Model(image, outputs, name=network.name)


def _backbone_input_scaling(backbone):
    rescales = getattr(backbone, "include_rescaling", None)
    if rescales is None:
        raise VerificationError(
            f"{backbone.name!r} has no include_rescaling. Pass the pixels that it was trained on, such as "
            'input_scaling="0..1".'
        )
    return "0..255" if rescales else "0..1"
