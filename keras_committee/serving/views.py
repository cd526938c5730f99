"""Which pixels does each member of an exported committee see of a request's images?"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import tensorflow as tf

from keras_committee.data.preprocessing import Framing
from keras_committee.layers import Resize

Made = Mapping[Framing, Any]


class Views:
    """The images of a request, as each framing shows them, made when they are first asked for.

    Args:
        source: What they are made from, a tensor `(batch, ...)`.
        make: Function of `source` and a list of framings to a dict of framing -> float32 `(batch, *size, channels)`.
        made: Those that there are already.
    """

    def __init__(self, source, make: Callable[[Any, list[Framing]], Made], made: Made | None = None):
        self.source, self._make, self._made = source, make, dict(made or {})

    def at(self, framings: Iterable[Framing]) -> Made:
        """The images under these framings, and perhaps more."""
        missing = [each for each in dict.fromkeys(framings) if each not in self._made]
        if missing:
            self._made |= self._make(self.source, missing)
        return self._made

    def of(self, rows) -> Self:
        """The images at `rows`, int64 `(rows, 1)`. What is not made yet will be made of these only."""
        made = {framing: tf.gather_nd(images, rows) for framing, images in self._made.items()}
        return type(self)(tf.gather_nd(self.source, rows), self._make, made)


def views_of_pixels(image) -> Views:
    """Of float32 `(batch, height, width, channels)`: a member of another size sees them resized, as in `Ensemble`."""
    return Views(image, resized_pixels)


def resized_pixels(image, framings: Iterable[Framing]) -> Made:
    """float32 images at the size of each framing; what a framing would crop stays, since it is gone already."""
    given = tuple(image.shape[1:3])
    return {each: image if each.size == given else Resize(*each.size)(image) for each in framings}
