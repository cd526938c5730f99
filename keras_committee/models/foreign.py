"""How does a network from elsewhere become a member: raw pixels in, logits out, in the order of our classes?"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_committee.errors import VerificationError
from keras_committee.layers.resize import Resize
from keras_committee.models.logits import Outputs, to_logits
from keras_committee.models.scales import Scale, scaled


def as_member(
    model: keras.Model,
    *,
    scale: Scale = "0..255",
    order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """A functional model from raw pixels 0..255, float32 `(batch, height, width, channels)`, to float32 logits.

    It shares the layers and weights of `model`, which stays as it is.

    Args:
        model: Functional or built Sequential model of one image to logits or probabilities `(batch, classes)`.
        scale: What pixels it was trained on, which nothing in a file tells: a name in `SCALES`, such as `"0..1"`, or a
            `Normalization`. `"0..255"` where it takes raw pixels, or normalises them itself.
        order: For each of our classes its place in the model's outputs; None leaves them as they are.
        image_size: `(height, width)`, where the model takes images of any size.
        resized_from: `(height, width)` of the member's images, which it then brings to the size of the model itself.
        name: Name of the member; that of `model` where None.

    Raises:
        VerificationError: If it is no such model.
        ValueError: If the scale or the order does not fit.
    """
    return as_member_told(model, scale=scale, order=order, image_size=image_size, resized_from=resized_from, name=name)[
        0
    ]


def as_member_told(
    model: keras.Model,
    *,
    scale: Scale = "0..255",
    order: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    resized_from: tuple[int, int] | None = None,
    name: str | None = None,
) -> tuple[keras.Model, Outputs]:
    """What `as_member` returns, and what was done to the outputs to make them logits."""
    _check(model)
    # Of a graph only: a model may want its one image in a list or a dict.
    plain = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    bare, outputs = to_logits(plain)
    height, width, channels = _shape(model, image_size)
    image = keras.Input((*(resized_from or (height, width)), channels), dtype="float32", name="image")
    pixels = scaled(
        image if image.shape[1:3] == (height, width) else Resize(height, width, name="resize")(image), scale
    )
    logits = ops.cast(bare(ops.cast(pixels, model.inputs[0].dtype)), "float32")
    if order is not None:
        logits = _reordered(logits, order)
    return keras.Model(image, logits, name=name or model.name), outputs


def _check(model):
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    name = getattr(model, "name", model)
    if not isinstance(model, keras.Model) or not inputs:
        raise VerificationError(f"{name!r} is no functional or built Sequential Keras model. Received: {type(model)}.")
    if len(inputs) != 1 or len(outputs) != 1:
        raise VerificationError(f"{name!r} must have one input and one output. It has {len(inputs)}, {len(outputs)}.")
    shape, rows = inputs[0].shape, outputs[0].shape
    if len(rows) != 2 or rows[1] is None:
        raise VerificationError(f"{name!r} must return (batch, classes). It returns {rows}.")
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        hint = "\n  Channels first: convert it to channels last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise VerificationError(f"{name!r} must take images (batch, height, width, channels). It takes {shape}.{hint}")


def _shape(model, image_size) -> tuple[int, int, int]:
    height, width, channels = model.inputs[0].shape[1:]
    size: Any = (height, width) if image_size is None else image_size
    if None in size or any(own not in (None, given) for own, given in zip((height, width), size, strict=True)):
        raise VerificationError(
            f"{model.name!r} takes images of {height}x{width} (None is any); image_size={image_size}. Name one size."
        )
    return size[0], size[1], channels


def _reordered(logits, order):
    if sorted(order) != list(range(logits.shape[1])):
        raise ValueError(f"order must hold each place 0 to {logits.shape[1] - 1} once. Received: {list(order)}")
    return ops.take(logits, list(order), axis=1)
