"""How do many members become one model?"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_committee.layers.heads import GeometricMean


@keras.saving.register_keras_serializable(package="keras_committee")
class Ensemble(keras.Model):
    """A committee as one functional model.

    The members may differ in architecture, may carry the same names, and stay as they are: each stands in a model of
    its own, named `member_00`, `member_01`, ... by its place. They share input shape and classes.

    Args:
        members: Models from raw pixels `(batch, height, width, channels)` to logits `(batch, classes)`.
        head: Layer from logits `(batch, members, classes)` to probabilities `(batch, classes)`; `GeometricMean()` where
            None.
        name: Name of the model.

    Call arguments:
        image: float32 raw pixels `(batch, height, width, channels)`.

    Returns:
        `{"probabilities": (batch, classes), "votes": (batch, members, classes)}`, both float32 probabilities.

    Raises:
        ValueError: If there is no member, if one is not a built model of one image and one row of logits, or if the
            members disagree about the image or the number of classes.

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
        **kwargs,
    ):
        members = list(members)
        _check(members)
        combine = GeometricMean() if head is None else head

        image = keras.Input(members[0].inputs[0].shape[1:], dtype="float32", name="image")
        wrapped = [_wrapped(member, index) for index, member in enumerate(members)]
        logits = ops.stack([ops.cast(member(image), "float32") for member in wrapped], axis=1)
        outputs = {
            "probabilities": combine(logits),
            "votes": keras.layers.Softmax(dtype="float32", name="votes")(logits),
        }
        super().__init__(inputs=image, outputs=outputs, name=name, **kwargs)
        self._head_name = combine.name

    @property
    def members(self) -> tuple[keras.Model, ...]:
        """The models given, in order."""
        wrapped = {layer.name: layer for layer in self.layers if layer.name.startswith("member_")}
        return tuple(wrapped[name].layers[-1] for name in sorted(wrapped))

    @property
    def head(self) -> keras.layers.Layer:
        """The layer that combines the members."""
        return self.get_layer(self._head_name)

    def get_config(self):
        return {
            "members": [keras.saving.serialize_keras_object(member) for member in self.members],
            "head": keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def load(value):
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        return cls(**{**config, "members": [load(m) for m in config["members"]], "head": load(config["head"])})


def _wrapped(member, index):
    image = keras.Input(member.inputs[0].shape[1:], dtype=member.inputs[0].dtype, name="image")
    return keras.Model(image, member(image), name=f"member_{index:02d}")


def _check(members):
    if not members:
        raise ValueError("members must hold at least one model. Received: none")
    for index, member in enumerate(members):
        _check_member(member, index)
    if len({(m.inputs[0].shape[1:], m.outputs[0].shape[1:]) for m in members}) > 1:
        raise ValueError(
            f"The members must share one image shape and one number of classes. Received:\n{_table(members)}"
        )


def _check_member(member, index):
    what = f"members[{index}] ({getattr(member, 'name', member)!r})"
    inputs, outputs = getattr(member, "inputs", None), getattr(member, "outputs", None)
    if not isinstance(member, keras.Model) or not inputs or not outputs:
        raise ValueError(f"{what} must be a functional or a built Sequential keras.Model. Received: {type(member)}")
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"{what} must have one input and one output. Received: {len(inputs)} and {len(outputs)}")
    if len(outputs[0].shape) != 2:
        raise ValueError(f"{what} must return logits (batch, classes). Received: shape={outputs[0].shape}")


def _table(members):
    rows = [("member", "name", "image", "classes")]
    for index, member in enumerate(members):
        image = "x".join(str(size) for size in member.inputs[0].shape[1:])
        rows.append((str(index), member.name, image, str(member.outputs[0].shape[1])))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(f"  {line}" for line in lines)
