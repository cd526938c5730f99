"""A committee as one Keras model, and the base that it shares with `Cascade`."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_committee.layers.heads import GeometricMean, log_softmax
from keras_committee.layers.resize import Resize

ImageSize = str | tuple[int, int] | None


class CommitteeModel(keras.Model):
    """Base of `Ensemble` and `Cascade`: a functional model with members and a head.

    Each member is wrapped in a model of its own, named `member_00`, `member_01`, ... in order.

    Args:
        members: As in `Ensemble`.
        image_size: As in `Ensemble`.
        temperatures: As in `Ensemble`.
        head: As in `Ensemble`.
        combine: Function from the members' logits, float32 `(batch, members, classes)`, and the head to a dictionary
            of outputs.
        config: Other arguments of the subclass, as `get_config` returns them.
        **kwargs: Arguments of `keras.Model`.
    """

    def __init__(self, members, *, image_size, temperatures, head, combine, config: Mapping[str, Any], **kwargs):
        head = GeometricMean() if head is None else head
        image, logits = _image_and_logits(list(members), image_size, temperatures)
        outputs = {
            **combine(logits, head),
            "member_probabilities": ops.exp(log_softmax(logits)),
        }
        super().__init__(inputs=image, outputs=outputs, **kwargs)
        self._head_name = head.name
        self._arguments = {
            "image_size": list(image_size) if isinstance(image_size, (tuple, list)) else image_size,
            "temperatures": None if temperatures is None else [float(temperature) for temperature in temperatures],
            **config,
        }

    @property
    def members(self) -> tuple[keras.Model, ...]:
        """The models passed to the constructor, in order."""
        models = {layer.name: layer for layer in self.layers if isinstance(layer, keras.Model)}
        return tuple(models[name].layers[-1] for name in sorted(models) if name.startswith("member_"))

    @property
    def head(self) -> keras.layers.Layer:
        """The layer that combines the members' predictions."""
        return self.get_layer(self._head_name)

    def get_config(self):
        return {
            "members": [keras.saving.serialize_keras_object(member) for member in self.members],
            "head": keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "trainable": self.trainable,
            **self._arguments,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def load(value):
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        return cls(**{**config, "members": [load(m) for m in config["members"]], "head": load(config["head"])})


@keras.saving.register_keras_serializable(package="keras_committee")
class Ensemble(CommitteeModel):
    """A committee as one functional model.

    The members may differ in architecture and may have the same names; they are not changed. They share the number of
    classes and, without an `image_size`, the input shape.

    Args:
        members: Models from raw pixels `(batch, height, width, channels)` to logits `(batch, classes)`.
        head: Layer from logits `(batch, members, classes)` to probabilities `(batch, classes)`. None is
            `GeometricMean()`.
        name: Name of the model.
        image_size: Size of the committee's image: `"largest"` for that of the largest member, or `(height, width)`.
            `layers.Resize` resizes the image for members of another size. None requires one size for all members.
        temperatures: One float above 0 for each member, which divides its logits. None is 1 for all.
        **kwargs: Other arguments of `keras.Model`.

    Call arguments:
        image: float32 raw pixels `(batch, height, width, channels)`.

    Returns:
        Dictionary of float32 probabilities: `"probabilities"` `(batch, classes)` of the committee, and
        `"member_probabilities"` `(batch, members, classes)`.

    Raises:
        ValueError: If there are no members, if a member is not a built model from one image to one row of logits, or
            if the members differ in image shape or number of classes.

    Example:
        >>> committee = Ensemble([wide_resnet(16, 1, classes=10), wide_resnet(16, 2, classes=10)])
        >>> committee.predict(images)["probabilities"].shape
        (batch, 10)

    Source: Kondratyuk et al. 2020, arXiv:2005.00570.
    """

    def __init__(
        self,
        members: Sequence[keras.Model],
        head: keras.layers.Layer | None = None,
        name: str | None = None,
        image_size: ImageSize = None,
        temperatures: Sequence[float] | None = None,
        **kwargs,
    ):
        super().__init__(
            members,
            image_size=image_size,
            temperatures=temperatures,
            head=head,
            combine=lambda logits, head: {"probabilities": head(logits)},
            config={},
            name=name,
            **kwargs,
        )


def _image_and_logits(members, image_size, temperatures):
    """Return the committee's image and the members' logits, divided by their temperatures."""
    _check_members(members, image_size)
    if temperatures is not None and (len(temperatures) != len(members) or not min(temperatures) > 0):
        raise ValueError(f"temperatures must be one float above 0 for each member. Received: {temperatures}")
    image = keras.Input(_image_shape(members, image_size), dtype="float32", name="image")
    wrapped = [_wrap_member(member, index, image.shape[1:]) for index, member in enumerate(members)]
    logits = ops.stack([ops.cast(member(image), "float32") for member in wrapped], axis=1)
    if temperatures is not None:
        logits = logits / ops.reshape(ops.convert_to_tensor(temperatures, "float32"), (1, -1, 1))
    return image, logits


def _image_shape(members, image_size):
    shapes = [member.inputs[0].shape[1:] for member in members]
    if image_size is None:
        return shapes[0]
    if image_size == "largest":
        return max(shapes, key=lambda shape: shape[0] * shape[1])
    return (*image_size, shapes[0][2])


def _wrap_member(member, index, shape):
    member_shape = member.inputs[0].shape[1:]
    image = keras.Input(shape, dtype=member.inputs[0].dtype, name="image")
    member_image = image if member_shape == shape else Resize(member_shape[0], member_shape[1], name="resize")(image)
    return keras.Model(image, member(member_image), name=f"member_{index:02d}")


def _check_members(members, image_size):
    if not members:
        raise ValueError("members must hold at least one model. Received: none")
    for index, member in enumerate(members):
        _check_member(member, index)
    if len({_signature(member, image_size) for member in members}) > 1:
        image = "image shape" if image_size is None else "number of color channels"
        hint = "" if image_size is not None else "\n  For members of different image sizes, pass image_size='largest'."
        raise ValueError(
            f"The members must share one {image} and one number of classes. Received:\n{_member_table(members)}{hint}"
        )
    _check_image_size(image_size, members)


def _check_member(member, index):
    description = f"members[{index}] ({getattr(member, 'name', member)!r})"
    inputs, outputs = getattr(member, "inputs", None), getattr(member, "outputs", None)
    if not isinstance(member, keras.Model) or not inputs or not outputs:
        raise ValueError(
            f"{description} must be a functional or a built Sequential keras.Model. Received: {type(member)}"
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{description} must have one input and one output. Received: {len(inputs)} and {len(outputs)}"
        )
    if len(outputs[0].shape) != 2:
        raise ValueError(f"{description} must return logits (batch, classes). Received: shape={outputs[0].shape}")


def _signature(member, image_size):
    shape = member.inputs[0].shape[1:]
    return shape if image_size is None else shape[2:], member.outputs[0].shape[1:]


def _check_image_size(image_size, members):
    if image_size is None:
        return
    sizes_known = all(len(m.inputs[0].shape) == 4 and None not in m.inputs[0].shape[1:] for m in members)
    if not sizes_known:
        raise ValueError(
            f"image_size requires members that take images of a known size. Received:\n{_member_table(members)}"
        )
    is_size_pair = isinstance(image_size, (tuple, list)) and len(image_size) == 2 and min(image_size) >= 1
    if image_size != "largest" and not is_size_pair:
        raise ValueError(f"image_size must be None, 'largest' or (height, width). Received: {image_size!r}")


def _member_table(members):
    rows = [("member", "name", "image", "classes")]
    for index, member in enumerate(members):
        image = "x".join(str(size) for size in member.inputs[0].shape[1:])
        rows.append((str(index), member.name, image, str(member.outputs[0].shape[1])))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(f"  {line}" for line in lines)
