"""How is a training image varied?"""

import dataclasses
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_committee.errors import RecipeError


class Augmentation(Protocol):
    """Two methods, kept apart so that a resumed run can repeat any draw."""

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """One row of draws for each training example of a pass, int32 `(examples, k)`; `generator` decides alone."""
        ...

    def apply(self, images, draws):
        """Uint8 `(batch, height, width, channels)` and int32 `(batch, k)` to uint8 images of the same shape.

        Runs in a TensorFlow graph and has no randomness of its own.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadCropFlip:
    """Reflect padding, a random crop of the original size, a random horizontal flip.

    Args:
        pad: Pixels added on each side before the crop, 0 or more.
        flip: Whether half of the images are mirrored left to right; switch it off where the mirror image is
            another class, as with digits.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (there with zeros); reflect padding as in
    Zagoruyko & Komodakis 2016, arXiv:1605.07146.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self):
        if self.pad < 0:
            raise RecipeError(f"pad_crop_flip needs a pad of 0 or more pixels. Received: pad={self.pad!r}")

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """Top and left edge of the crop in the padded image, and 1 where flipped: int32 `(examples, 3)`."""
        values = [2 * self.pad + 1, 2 * self.pad + 1, 2 if self.flip else 1]
        return generator.integers(0, values, size=(examples, 3), dtype=np.int32)

    def apply(self, images, draws):
        """The cropped and flipped images. No padded copy is made: rows and columns are looked up, reflected."""
        height, width = images.shape[1:3]
        rows = self._crop(height, draws[:, 0])
        columns = self._crop(width, draws[:, 1])
        columns = tf.where(draws[:, 2:] == 1, columns[:, ::-1], columns)
        return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

    def _crop(self, length, starts):
        """Which source row (or column) stands at each place of the crop: int32 `(batch, length)`."""
        reflected = tf.constant(np.pad(np.arange(length, dtype=np.int32), self.pad, mode="reflect"))
        return tf.gather(reflected, starts[:, None] + tf.range(length)[None, :])


def pad_crop_flip(pad: int = 4, *, flip: bool = True) -> PadCropFlip:
    """Reflect padding by `pad` pixels, a random crop of the original size and, unless `flip=False`, a random flip."""
    return PadCropFlip(pad=pad, flip=flip)
