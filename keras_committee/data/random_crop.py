"""Which window of a training image is seen, so that only its blocks need be decoded?"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import ImageTransform, decode_window, image_size_from_header, resize_image
from keras_committee.errors import RecipeError

MAX_ATTEMPTS = 10  # as Model Garden


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
        for name, upper_bound in (("area", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper_bound or math.isinf(high):
                bound = " and at most 1" if upper_bound == 1 else ""
                raise RecipeError(
                    f"random_resized_crop needs {name} as two rising numbers above 0{bound}. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """The seed of each window, and 1 where it is flipped: int32 `(examples, 2)`."""
        values = [2**31 - 1, 2 if self.flip else 1]
        return rng.integers(0, values, size=(examples, 2), dtype=np.int32)

    def apply(self, images, draws):
        """The windows of images in memory, uint8 `(batch, height, width, channels)`, resized to the same shape."""
        size = tuple(images.shape[1:3])

        def crop(pair):
            image, row = pair
            top, left, height, width = tf.unstack(self.window(tf.shape(image)[:2], row))
            cropped = resize_image(image[top : top + height, left : left + width], size)
            return tf.ensure_shape(_maybe_flip(cropped, row), images.shape[1:])

        return tf.map_fn(crop, (images, draws), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8))

    def decode(self, content, draws, transform: ImageTransform):
        """The window of one encoded image, uint8 `(*framing.size, 3)`, resized by the framing's method.

        Args:
            content: Scalar string tensor: a JPEG or PNG.
            draws: int32 `(2,)`, a row of `draw`.
            transform: Tells size and method; what it leaves out in evaluation may be seen in training.
        """
        window = self.window(tf.stack(image_size_from_header(content)), draws)
        cropped = resize_image(decode_window(content, window), transform.size, transform.method)
        return tf.ensure_shape(_maybe_flip(cropped, draws), (*transform.size, 3))

    def window(self, shape, draws):
        """Top, left, height and width, int32 `(4,)`, in an image of `shape`, integers `(2,)`: height and width."""
        uniforms = tf.random.stateless_uniform((MAX_ATTEMPTS, 4), seed=tf.stack([draws[0], 0]), alg="philox")
        return self.window_from_uniforms(shape, uniforms)

    def window_from_uniforms(self, shape, uniforms):
        """The same from the numbers in [0, 1) that decide, float32 `(attempts, 4)`: ratio, height, top and left."""
        image_height, image_width = tf.unstack(tf.cast(shape, tf.float32))
        ratio = self.ratio[0] + uniforms[:, 0] * (self.ratio[1] - self.ratio[0])
        min_height, max_height = (
            tf.sqrt(area_fraction * image_height * image_width / ratio) for area_fraction in self.area
        )
        min_height, max_height = (
            tf.round(min_height),
            tf.minimum(tf.minimum(tf.round(max_height), image_height), _max_height_for_width(image_width, ratio)),
        )
        min_height = tf.minimum(min_height, max_height)
        height = min_height + tf.floor(uniforms[:, 1] * (max_height - min_height + 1))
        height, width = self._adjust_height_to_area(height, ratio, image_height * image_width)
        is_valid = self._area_in_range(height, width, image_height * image_width)
        is_valid &= (height <= image_height) & (width <= image_width) & (height >= 1) & (width >= 1)
        top, left = (
            tf.floor(uniforms[:, 2] * (image_height - height + 1)),
            tf.floor(uniforms[:, 3] * (image_width - width + 1)),
        )
        windows = tf.concat(
            [tf.stack([top, left, height, width], axis=1), [[0.0, 0.0, image_height, image_width]]], axis=0
        )
        first_valid = tf.argmax(tf.concat([is_valid, [True]], axis=0))  # the whole image where none fits
        return tf.cast(windows[first_valid], tf.int32)

    def _adjust_height_to_area(self, height, ratio, pixels):
        """Height and width, one row more or less where rounding put the area out of its range."""
        area = height * tf.round(height * ratio)
        height = tf.where(area < self.area[0] * pixels, height + 1, height)
        area = height * tf.round(height * ratio)
        height = tf.where(area > self.area[1] * pixels, height - 1, height)
        return height, tf.round(height * ratio)

    def _area_in_range(self, height, width, pixels):
        return (height * width >= self.area[0] * pixels) & (height * width <= self.area[1] * pixels)


def random_resized_crop(
    *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: bool = True
) -> RandomResizedCrop:
    """A window of random area, proportions and place, resized, and mirrored half of the time unless `flip=False`."""
    return RandomResizedCrop(area=area, ratio=ratio, flip=flip)


def _max_height_for_width(image_width, ratio):
    """The largest height whose width, rounded, fits into the columns."""
    height = tf.floor((image_width + 0.5) / ratio)
    return tf.where(tf.round(height * ratio) > image_width, height - 1, height)


def _maybe_flip(image, draws):
    # `image[:, ::-1]` takes as long as all the decoding.
    return tf.cond(tf.equal(draws[1], 1), lambda: tf.reverse(image, [1]), lambda: image)
