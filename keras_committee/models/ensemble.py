"""How do members that are all asked become one model?"""

from collections.abc import Sequence

import keras

from keras_committee.layers.heads import GeometricMean
from keras_committee.models.members import ImageSize, OfMembers, image_and_logits, settings


@keras.saving.register_keras_serializable(package="keras_committee")
class Ensemble(OfMembers):
    """A committee as one functional model.

    The members may differ in architecture, may carry the same names, and stay as they are: each stands in a model of
    its own, named `member_00`, `member_01`, ... by its place. They share the number of classes and, without an
    `image_size`, the input shape.

    Args:
        members: Models from raw pixels `(batch, height, width, channels)` to logits `(batch, classes)`.
        head: Layer from logits `(batch, members, classes)` to probabilities `(batch, classes)`; `GeometricMean()` where
            None.
        name: Name of the model.
        image_size: The size of the committee's image: `"largest"` that a member takes, or `(height, width)`. Members of
            another size see it resized by `layers.Resize`. With None all must take the same.
        temperatures: One float above 0 for each member: its logits are divided by it before anything else.

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
        image_size: ImageSize = None,
        temperatures: Sequence[float] | None = None,
        **kwargs,
    ):
        image, logits = image_and_logits(list(members), image_size, temperatures)
        combine = GeometricMean() if head is None else head
        outputs = {
            "probabilities": combine(logits),
            "votes": keras.layers.Softmax(dtype="float32", name="votes")(logits),
        }
        super().__init__(inputs=image, outputs=outputs, name=name, **kwargs)
        self._head_name = combine.name
        self._settings = settings(image_size, temperatures)
