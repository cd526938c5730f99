"""How does a network from elsewhere become a member: raw pixels in, logits out, in the order of our classes?"""

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
from keras_committee.models.blocks import IMAGENET_MEAN, IMAGENET_STD, normalized
from keras_committee.models.loading import load_member
from keras_committee.models.predict import transform_outputs

LogitsConversion = Literal["logits", "softmax removed", "logarithms of its probabilities"]
_SUM_TOLERANCE = 1e-3  # so near to 1 the rows of probabilities sum
_MIN_PROBABILITY = 1e-37  # float32 has hardly a smaller one


def to_logits(model: keras.Model) -> tuple[keras.Model, LogitsConversion]:
    """The model with logits as outputs, and what was done for it. It shares its layers with `model`, which stays.

    A softmax that the model ends with is left out. Where one is deeper inside, which the outputs tell by rows that sum
    to 1, their logarithms are taken: but for a constant in each row, which no head sees, these are logits.

    Raises:
        VerificationError: If it gives a value that is not finite, or equal rows for all images, or ends with a sigmoid.
    """
    last = _last_operation(model)
    if isinstance(last, keras.layers.Softmax) or (type(last) is keras.layers.Activation and _is_softmax(last)):
        return _with_output(model, last.input), "softmax removed"
    if _is_softmax(last) and isinstance(last, keras.layers.Dense | keras.layers.Conv2D):
        return _with_output(model, _linear_copy(last)), "softmax removed"
    noise_outputs = _noise_outputs(model)
    if are_probabilities(noise_outputs):
        logits = transform_outputs(model, lambda outputs: ops.log(ops.maximum(outputs, _MIN_PROBABILITY)), model.name)
        return logits, "logarithms of its probabilities"
    return model, "logits"


def are_probabilities(rows: np.ndarray) -> bool:
    """Whether rows `(examples, classes)` are: none is negative, and each sums to 1 to within 1e-3."""
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())


def _last_operation(model):
    return model.outputs[0]._keras_history.operation


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
    """To noise of every coarseness and colour."""
    shape = [size or 64 for size in model.inputs[0].shape[1:]]
    rng = np.random.default_rng(7)
    images = rng.uniform(0, 255, (8, 1, 1, shape[2])) * rng.uniform(0, 1, (8, *shape))
    outputs = ops.convert_to_numpy(model(images.astype("float32"), training=False)).astype("float64")
    if not np.isfinite(outputs).all():
        raise VerificationError(f"{model.name!r} gives values that are not finite numbers. It can be no member.")
    return outputs


PerChannel = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class InputNormalization:
    """Raw pixels 0..255 minus `mean`, divided by `std`; each one number or one for each channel of the result.

    `flip` turns red, green, blue into blue, green, red first.
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


def resolve_input_scaling(scaling: InputScaling) -> InputNormalization:
    """What a scale stands for. Raises ValueError if it is none of `INPUT_SCALINGS` and no `InputNormalization`."""
    if isinstance(scaling, InputNormalization):
        return scaling
    if scaling not in INPUT_SCALINGS:
        raise ValueError(f"scale must be one of {', '.join(INPUT_SCALINGS)}, or a Normalization. Received: {scaling!r}")
    return INPUT_SCALINGS[scaling]


def apply_input_scaling(image, scaling: InputScaling):
    """The raw pixels `image`, a symbolic tensor `(batch, height, width, channels)`, as a network was trained on them.

    Raises:
        ValueError: If the scale is none, or does not fit the channels.
    """
    normalization = resolve_input_scaling(scaling)
    if normalization.flip:
        image = keras.ops.flip(image, axis=-1)
    is_identity = np.all(np.equal(normalization.mean, 0)) and np.all(np.equal(normalization.std, 1))
    return image if is_identity else normalized(image, normalization.mean, normalization.std)


def parse_input_scaling(text: str) -> InputScaling:
    """A name in `INPUT_SCALINGS`, or `MEAN/STD` of raw pixels such as "125.3,123,113.9/63,62.1,66.7". Raises ValueError."""
    if text in INPUT_SCALINGS:
        return text
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        raise ValueError(f"expected {', '.join(INPUT_SCALINGS)}, or MEAN/STD on 0..255. Received: {text!r}") from None
    return InputNormalization(_scalar_or_tuple(mean), _scalar_or_tuple(std))


def _scalar_or_tuple(values: list[float]) -> PerChannel:
    return values[0] if len(values) == 1 else tuple(values)


def wrap_model(
    model: keras.Model,
    *,
    input_scaling: InputScaling = "0..255",
    class_order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """A functional model from raw pixels 0..255, float32 `(batch, height, width, channels)`, to float32 logits.

    It shares the layers and weights of `model`, which stays as it is.

    Args:
        model: Functional or built Sequential model of one image to logits or probabilities `(batch, classes)`.
        input_scaling: What pixels it was trained on, which nothing in a file tells: a name in `INPUT_SCALINGS`, such as `"0..1"`, or a
            `InputNormalization`. `"0..255"` where it takes raw pixels, or normalises them itself.
        class_order: For each of our classes its place in the model's outputs; None leaves them as they are.
        image_size: `(height, width)`, where the model takes images of any size.
        resized_from: `(height, width)` of the member's images, which it then brings to the size of the model itself.
        name: Name of the member; that of `model` where None.

    Raises:
        VerificationError: If it is no such model.
        ValueError: If the scale or the order does not fit.
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
    model: keras.Model,
    *,
    input_scaling: InputScaling = "0..255",
    class_order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    name: str | None = None,
) -> tuple[keras.Model, LogitsConversion]:
    """What `wrap_model` returns, and what was done to the outputs to make them logits."""
    _check_model(model)
    # Of a graph only: a model may want its one image in a list or a dict.
    single_input_model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    logits_model, conversion = to_logits(single_input_model)
    height, width, channels = _input_shape(model, image_size)
    image = keras.Input((*(resized_from or (height, width)), channels), dtype="float32", name="image")
    pixels = apply_input_scaling(
        image if image.shape[1:3] == (height, width) else Resize(height, width, name="resize")(image), input_scaling
    )
    logits = ops.cast(logits_model(ops.cast(pixels, model.inputs[0].dtype)), "float32")
    if class_order is not None:
        logits = _reorder_classes(logits, class_order)
    return keras.Model(image, logits, name=name or model.name), conversion


def _check_model(model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    name = getattr(model, "name", model)
    if not isinstance(model, keras.Model) or not inputs:
        raise VerificationError(f"{name!r} is no functional or built Sequential Keras model. Received: {type(model)}.")
    if len(inputs) != 1 or len(outputs) != 1:
        raise VerificationError(f"{name!r} must have one input and one output. It has {len(inputs)}, {len(outputs)}.")
    shape, output_shape = inputs[0].shape, outputs[0].shape
    if len(output_shape) != 2 or output_shape[1] is None:
        raise VerificationError(f"{name!r} must return (batch, classes). It returns {output_shape}.")
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        hint = "\n  Channels first: convert it to channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise VerificationError(f"{name!r} must take images (batch, height, width, channels). It takes {shape}.{hint}")


def _input_shape(model, image_size) -> tuple[int, int, int]:
    height, width, channels = model.inputs[0].shape[1:]
    size: Any = (height, width) if image_size is None else image_size
    if None in size or any(own not in (None, given) for own, given in zip((height, width), size, strict=True)):
        raise VerificationError(
            f"{model.name!r} takes images of {height}x{width} (None is any); image_size={image_size}. Name one size."
        )
    return size[0], size[1], channels


def _reorder_classes(logits, class_order):
    if sorted(class_order) != list(range(logits.shape[1])):
        raise ValueError(f"order must hold each place 0 to {logits.shape[1] - 1} once. Received: {list(class_order)}")
    return ops.take(logits, list(class_order), axis=1)


def from_keras_file(
    path: str | Path,
    *,
    input_scaling: InputScaling = "0..255",
    class_order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """The model in a `.keras` file as a member. Code in the file, such as a `Lambda`, is never run.

    Args:
        path: The file.
        input_scaling: As `wrap_model` takes it.
        class_order: As `wrap_model` takes it.
        image_size: As `wrap_model` takes it.
        name: As `wrap_model` takes it.

    Raises:
        VerificationError: If it is no such file, holds code, or cannot be a member.
        ValueError: As `wrap_model`.
    """
    return wrap_model(
        load_keras_file(path), input_scaling=input_scaling, class_order=class_order, image_size=image_size, name=name
    )


def load_keras_file(path: str | Path) -> keras.Model:
    """The model in a `.keras` file, as it is. Raises VerificationError."""
    path = Path(path)
    if path.suffix != ".keras":  # what is in an .h5 file runs as code, whatever `safe_mode` says
        raise VerificationError(f"{path} is no .keras file. Save the model anew: model.save('name.keras').")
    if not path.is_file():
        raise VerificationError(f"there is no file {path}.")
    try:
        return load_member(path)
    except RunError as error:
        raise VerificationError(
            f"{path} cannot be loaded: {error.__cause__}\n"
            "  A member has layers of Keras, keras-cv and keras_committee only. Nothing else in the file was run."
        ) from error
