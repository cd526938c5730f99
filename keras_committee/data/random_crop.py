"""Which window of a training image is seen, so that only its blocks need be decoded?"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import Framing, decode_window, encoded_size, resize_image
from keras_committee.errors import RecipeError

ATTEMPTS = 10  # as Model Garden


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """The Inception crop: a window of random area, proportions and place, resized to the size of the images.

    At each of up to ten attempts the window's width over height is uniform in `ratio`, and its height is uniform
    among the whole numbers for which it fits into the image and has an area within `area`; of the places where it fits
    each is as likely. An attempt fails where there is no such height; after ten the window is the whole image.

    It is an `Augmentation` that also knows how to decode: a split whose images lie in files reads each window from the
    file, in every pass, instead of first resizing the whole image.

    Args:
        area: Smallest and largest part of the image's area, above 0 and at most 1.
        ratio: Smallest and largest width over height.
        flip: Whether half of the windows are mirrored left to right.

    Raises:
        RecipeError: If a range is empty or out of bounds.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6; drawn as TensorFlow's `sample_distorted_bounding_box`
    draws for Model Garden's `random_crop_image`, but that the last row and column are as likely as the others.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self):
        for name, most in (("area", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                bound = " and at most 1" if most == 1 else ""
                raise RecipeError(
                    f"random_resized_crop needs {name} as two rising numbers above 0{bound}. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """The seed of each window, and 1 where it is flipped: int32 `(examples, 2)`."""
        values = [2**31 - 1, 2 if self.flip else 1]
        return generator.integers(0, values, size=(examples, 2), dtype=np.int32)

    def apply(self, images, draws):
        """The windows of images in memory, uint8 `(batch, height, width, channels)`, resized to the same shape."""
        size = tuple(images.shape[1:3])

        def crop(pair):
            image, draw = pair
            top, left, height, width = tf.unstack(self.window(tf.shape(image)[:2], draw))
            seen = resize_image(image[top : top + height, left : left + width], size)
            return tf.ensure_shape(_flipped(seen, draw), images.shape[1:])

        return tf.map_fn(crop, (images, draws), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8))

    def decode(self, content, draws, framing: Framing):
        """The window of one encoded image, uint8 `(*framing.size, 3)`, resized by the framing's method.

        Args:
            content: Scalar string tensor: a JPEG or PNG.
            draws: int32 `(2,)`, a row of `draw`.
            framing: Tells size and method; what it leaves out in evaluation may be seen in training.
        """
        window = self.window(tf.stack(encoded_size(content)), draws)
        seen = resize_image(decode_window(content, window), framing.size, framing.method)
        return tf.ensure_shape(_flipped(seen, draws), (*framing.size, 3))

    def window(self, shape, draws):
        """Top, left, height and width, int32 `(4,)`, in an image of `shape`, integers `(2,)`: height and width."""
        chances = tf.random.stateless_uniform((ATTEMPTS, 4), seed=tf.stack([draws[0], 0]), alg="philox")
        return self.window_at(shape, chances)

    def window_at(self, shape, chances):
        """The same from the numbers in [0, 1) that decide, float32 `(attempts, 4)`: ratio, height, top and left."""
        rows, columns = tf.unstack(tf.cast(shape, tf.float32))
        ratio = self.ratio[0] + chances[:, 0] * (self.ratio[1] - self.ratio[0])
        least, most = (tf.sqrt(part * rows * columns / ratio) for part in self.area)
        least, most = tf.round(least), tf.minimum(tf.minimum(tf.round(most), rows), _widest(columns, ratio))
        least = tf.minimum(least, most)
        height = least + tf.floor(chances[:, 1] * (most - least + 1))
        height, width = self._within(height, ratio, rows * columns)
        fits = self._has_area(height, width, rows * columns)
        fits &= (height <= rows) & (width <= columns) & (height >= 1) & (width >= 1)
        top, left = tf.floor(chances[:, 2] * (rows - height + 1)), tf.floor(chances[:, 3] * (columns - width + 1))
        windows = tf.concat([tf.stack([top, left, height, width], axis=1), [[0.0, 0.0, rows, columns]]], axis=0)
        first = tf.argmax(tf.concat([fits, [True]], axis=0))  # the whole image where none fits
        return tf.cast(windows[first], tf.int32)

    def _within(self, height, ratio, pixels):
        """Height and width, one row more or less where rounding put the area out of its range."""
        area = height * tf.round(height * ratio)
        height = tf.where(area < self.area[0] * pixels, height + 1, height)
        area = height * tf.round(height * ratio)
        height = tf.where(area > self.area[1] * pixels, height - 1, height)
        return height, tf.round(height * ratio)

    def _has_area(self, height, width, pixels):
        return (height * width >= self.area[0] * pixels) & (height * width <= self.area[1] * pixels)


def random_resized_crop(
    *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: bool = True
) -> RandomResizedCrop:
    """A window of random area, proportions and place, resized, and mirrored half of the time unless `flip=False`."""
    return RandomResizedCrop(area=area, ratio=ratio, flip=flip)


def _widest(columns, ratio):
    """The largest height whose width, rounded, fits into the columns."""
    height = tf.floor((columns + 0.5) / ratio)
    return tf.where(tf.round(height * ratio) > columns, height - 1, height)


def _flipped(image, draws):
    # `image[:, ::-1]` takes as long as all the decoding.
    return tf.cond(tf.equal(draws[1], 1), lambda: tf.reverse(image, [1]), lambda: image)
