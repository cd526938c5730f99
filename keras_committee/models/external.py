"""Networks from elsewhere as members: raw pixels in, logits out, in the class order of the data."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_committee.errors import RunError, VerificationError
from keras_committee.layers.resize import Resize
from keras_committee.models.blocks import IMAGENET_MEAN, IMAGENET_STD, normalize_pixels
from keras_committee.models.loading import load_member
from keras_committee.models.predict import transform_outputs

PerChannel = float | Sequence[float]


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

LogitsConversion = Literal["logits", "softmax removed", "logarithms of its probabilities"]
_SUM_TOLERANCE = 1e-3  # how far rows of probabilities may be from sum 1
_MIN_PROBABILITY = 1e-37  # close to the smallest normal float32


def wrap_model(
    model: keras.Model,
    *,
    input_scaling: InputScaling = "0..255",
    class_order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Return a member around a model: a functional model from raw pixels to logits.

    It shares the layers and weights of `model`, which is not changed.

    Args:
        model: Functional or built Sequential model from one image to logits or probabilities `(batch, classes)`.
        input_scaling: The pixels that the model was trained on, which no file records: a key of `INPUT_SCALINGS`, such
            as `"0..1"`, or an `InputNormalization`. `"0..255"` if the model takes raw pixels or normalizes them itself.
        class_order: For each class of the data, its index in the model's outputs. None keeps the order.
        image_size: `(height, width)`, if the model takes images of any size.
        resized_from: `(height, width)` of the member's images, which the member resizes to the size of the model.
        name: Name of the member. None is that of `model`.

    Returns:
        Functional model from float32 raw pixels 0..255 `(batch, height, width, channels)`, named "image", to float32
        logits `(batch, classes)`.

    Raises:
        VerificationError: If the model cannot be a member.
        ValueError: If `input_scaling` or `class_order` does not fit the model.
    """
    return wrap_model_with_report(
        model,
        input_scaling=input_scaling,
        class_order=class_order,
        image_size=image_size,
        resized_from=resized_from,
        name=name,
    )[0]


def wrap_model_with_report(
    model, *, input_scaling, class_order, image_size, resized_from, name
) -> tuple[keras.Model, LogitsConversion]:
    """Return the member of `wrap_model`, and how its logits were obtained. Arguments and errors are the same."""
    _check_model(model)
    # Rebuilt from the tensors, because a model may take its only image in a list or a dictionary.
    single_input_model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    logits_model, conversion = _to_logits(single_input_model)
    height, width, channels = _input_shape(model, image_size)
    image = keras.Input((*(resized_from or (height, width)), channels), dtype="float32", name="image")
    pixels = apply_input_scaling(
        image if image.shape[1:3] == (height, width) else Resize(height, width, name="resize")(image), input_scaling
    )
    logits = ops.cast(logits_model(ops.cast(pixels, model.inputs[0].dtype)), "float32")
    if class_order is not None:
        logits = _reorder_classes(logits, class_order)
    return keras.Model(image, logits, name=name or model.name), conversion


def from_keras_file(path: str | Path, **options: Any) -> keras.Model:
    """Return the model in a `.keras` file as a member. Code in the file, such as a `Lambda` layer, is never run.

    Args:
        path: Path of the file.
        **options: Arguments of `wrap_model`, such as `input_scaling`.

    Raises:
        VerificationError: If the file is not a `.keras` file, contains code, or cannot be a member.
        ValueError: As in `wrap_model`.
    """
    return wrap_model(load_keras_file(path), **options)


def load_keras_file(path: str | Path) -> keras.Model:
    """Load the model in a `.keras` file, unchanged.

    Raises:
        VerificationError: If the file is missing, is not a `.keras` file, or contains code.
    """
    path = Path(path)
    if path.suffix != ".keras":  # code in an .h5 file runs whatever `safe_mode` is
        raise VerificationError(f"{path} is not a .keras file. Save the model again with model.save('name.keras').")
    if not path.is_file():
        raise VerificationError(f"There is no file {path}.")
    try:
        return load_member(path)
    except RunError as error:
        raise VerificationError(
            f"{path} cannot be loaded: {error.__cause__}\n"
            "  A member may have layers of Keras, keras-cv and keras_committee only. No code in the file was run."
        ) from error


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


def apply_input_scaling(image, scaling: InputScaling):
    """Return raw pixels in the scaling that a network was trained with.

    Args:
        image: Symbolic tensor `(batch, height, width, channels)`, 0..255.
        scaling: As in `wrap_model`.

    Raises:
        ValueError: If the scaling is unknown or does not fit the channels.
    """
    if not isinstance(scaling, InputNormalization):
        if scaling not in INPUT_SCALINGS:
            raise ValueError(
                f"input_scaling must be one of {', '.join(INPUT_SCALINGS)}, or an InputNormalization. "
                f"Received: {scaling!r}"
            )
        scaling = INPUT_SCALINGS[scaling]
    if scaling.flip:
        image = ops.flip(image, axis=-1)
    is_identity = np.all(np.equal(scaling.mean, 0)) and np.all(np.equal(scaling.std, 1))
    return image if is_identity else normalize_pixels(image, scaling.mean, scaling.std)


def are_probabilities(rows: np.ndarray) -> bool:
    """Return whether rows `(examples, classes)` are probabilities: not negative, and with a sum within 1e-3 of 1."""
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())


def _scalar_or_tuple(values: list[float]) -> PerChannel:
    return values[0] if len(values) == 1 else tuple(values)


def _check_model(model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    name = getattr(model, "name", model)
    if not isinstance(model, keras.Model) or not inputs:
        raise VerificationError(
            f"{name!r} must be a functional or a built Sequential keras.Model. Received: {type(model)}."
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise VerificationError(
            f"{name!r} must have one input and one output. Received: {len(inputs)} and {len(outputs)}."
        )
    shape, output_shape = inputs[0].shape, outputs[0].shape
    if len(output_shape) != 2 or output_shape[1] is None:
        raise VerificationError(f"{name!r} must return (batch, classes). Received: shape={output_shape}.")
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        channels_first = len(shape) == 4 and shape[1] in (1, 3)
        hint = "\n  The model is channels first. Convert it to channels last." if channels_first else ""
        raise VerificationError(
            f"{name!r} must take images (batch, height, width, channels). Received: shape={shape}.{hint}"
        )


def _input_shape(model, image_size) -> tuple[int, int, int]:
    height, width, channels = model.inputs[0].shape[1:]
    size: Any = (height, width) if image_size is None else image_size
    if None in size or any(own not in (None, given) for own, given in zip((height, width), size, strict=True)):
        raise VerificationError(
            f"image_size must be a size that {model.name!r} takes: {height}x{width}, where None is any. "
            f"Received: image_size={image_size}."
        )
    return size[0], size[1], channels


def _reorder_classes(logits, class_order):
    if sorted(class_order) != list(range(logits.shape[1])):
        raise ValueError(
            f"class_order must hold each index from 0 to {logits.shape[1] - 1} once. Received: {list(class_order)}"
        )
    return ops.take(logits, list(class_order), axis=1)


def _to_logits(model: keras.Model) -> tuple[keras.Model, LogitsConversion]:
    """Return the model with logits as outputs, and the conversion. It shares its layers with `model`.

    A final softmax is removed. If a softmax is deeper inside, which shows in rows that sum to 1, the outputs become
    their logarithms: these are logits up to a constant in each row, which does not affect any head.
    """
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.layers.Softmax) or (type(last) is keras.layers.Activation and _is_softmax(last)):
        return _with_output(model, last.input), "softmax removed"
    if _is_softmax(last) and isinstance(last, keras.layers.Dense | keras.layers.Conv2D):
        return _with_output(model, _linear_copy(last)), "softmax removed"
    if are_probabilities(_noise_outputs(model)):
        logits = transform_outputs(model, lambda outputs: ops.log(ops.maximum(outputs, _MIN_PROBABILITY)), model.name)
        return logits, "logarithms of its probabilities"
    return model, "logits"


def _is_softmax(layer):
    return getattr(layer, "activation", None) is keras.activations.softmax


def _with_output(model, tensor):
    return keras.Model(model.inputs[0], tensor, name=model.name)


def _linear_copy(layer):
    copy = type(layer).from_config({**layer.get_config(), "activation": "linear", "name": f"{layer.name}_logits"})
    logits = copy(layer.input)
    copy.set_weights(layer.get_weights())
    return logits


def _noise_outputs(model):
    """Return the outputs for eight images of noise in different colors and intensities."""
    shape = [size or 64 for size in model.inputs[0].shape[1:]]
    rng = np.random.default_rng(7)
    images = rng.uniform(0, 255, (8, 1, 1, shape[2])) * rng.uniform(0, 1, (8, *shape))
    outputs = ops.convert_to_numpy(model(images.astype("float32"), training=False)).astype("float64")
    if not np.isfinite(outputs).all():
        raise VerificationError(f"The outputs of {model.name!r} are not finite. It cannot be a member.")
    return outputs
