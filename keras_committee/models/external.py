"""Networks from elsewhere as members: raw pixels in, logits out, in the class order of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_committee.errors import RunError, VerificationError
from keras_committee.files import expand_home
from keras_committee.input_scaling import INPUT_SCALINGS, InputNormalization, InputScaling
from keras_committee.keras_archive import SAVE_AGAIN
from keras_committee.layers.resize import Resize
from keras_committee.metrics.checks import are_probabilities
from keras_committee.models.blocks import normalize_pixels
from keras_committee.models.loading import load_member
from keras_committee.models.outputs import classify_outputs, noise_images, predict_rows
from keras_committee.models.predict import transform_outputs

LogitsConversion = Literal["logits", "softmax removed", "logarithms of its probabilities"]
ONE_OUTPUT_REMEDY = (
    "A member has one output for each class.\n"
    "  Append the other class and save the model again: keras.ops.concatenate([1 - p, p], axis=-1) of a probability p."
)
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
        VerificationError: If the model cannot be a member: its shapes do not fit, or its outputs are neither logits nor
            probabilities that sum to 1, such as those of a sigmoid, or they are the same for every image.
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
    height, width, channels = _input_shape(model, image_size)
    noise = apply_input_scaling(noise_images((height, width, channels)), input_scaling)
    logits_model, conversion = _to_logits(single_input_model, ops.convert_to_numpy(noise))
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
    path = expand_home(path)
    if path.suffix != ".keras":  # code in an .h5 file runs whatever `safe_mode` is
        raise VerificationError(f"{path} is not a .keras file.\n{SAVE_AGAIN}")
    if not path.is_file():
        raise VerificationError(f"There is no file {path}.")
    try:
        return load_member(path)
    except RunError as error:
        raise VerificationError(
            f"{path} cannot be loaded: {error.__cause__}\n"
            "  A member may have layers of Keras, keras-cv and keras_committee only. No code in the file was run."
        ) from error


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


def _to_logits(model: keras.Model, images: np.ndarray) -> tuple[keras.Model, LogitsConversion]:
    """Return the model with logits as outputs, and the conversion. It shares its layers with `model`.

    A final softmax is removed. If it cannot be removed, the outputs become their logarithms: these are logits up to a
    constant in each row, which does not affect any head.

    Args:
        model: Model of one input and one output `(batch, classes)`.
        images: Images of noise in the input scaling of the model.
    """
    outputs = classify_outputs(model, images)
    if outputs.kind == "bounded":
        raise VerificationError(_bounded_outputs_message(model, outputs))
    logits_model, conversion = model, "logits"
    if outputs.build_logits:
        logits_model = keras.Model(model.inputs[0], outputs.build_logits(), name=model.name)
        conversion = "softmax removed"
    rows = predict_rows(logits_model, images)
    if np.isnan(rows).any() or np.isposinf(rows).any():
        raise VerificationError(f"The outputs of {model.name!r} are not finite. It cannot be a member.")
    # Probabilities after a linear layer, too: one that sums those of several classes.
    if (outputs.kind == "probabilities" and not outputs.build_logits) or are_probabilities(rows):
        return transform_outputs(model, _log_of_probabilities, model.name), "logarithms of its probabilities"
    if (rows == rows[0]).all() and not (rows == rows[0, 0]).all():  # all equal: an untrained model
        raise VerificationError(
            f"{model.name!r} returns the same outputs for every image: {rows[0][:5].tolist()}. It cannot be a member.\n"
            "  Check that the file holds trained weights, and that its input scaling is right."
        )
    return logits_model, conversion


def _bounded_outputs_message(model, outputs):
    if model.outputs[0].shape[1] == 1:
        return f"{model.name!r} {outputs.description} of one output. {ONE_OUTPUT_REMEDY}"
    return (
        f"{model.name!r} {outputs.description}. Such outputs are neither logits nor probabilities that sum to 1: it "
        "cannot be a member.\n"
        "  Remove the last activation if its inputs are logits of classes that exclude each other. Otherwise append a "
        "conversion to probabilities, such as y / keras.ops.sum(y, axis=-1, keepdims=True). Then save the model again."
    )


def _log_of_probabilities(probabilities):
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), _MIN_PROBABILITY))
