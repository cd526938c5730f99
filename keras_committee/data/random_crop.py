"""Random resized crop, which decodes only the blocks of a JPEG that the crop contains."""

import dataclasses
import math

import numpy as np

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.preprocessing import ImageTransform, decode_window, image_size_from_header, resize_image
from keras_committee.errors import RecipeError

_MAX_ATTEMPTS = 10  # as in Model Garden


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """The Inception crop: a window of random area, aspect ratio and position, resized to the size of the images.

    Each of up to ten attempts draws the window's width / height uniformly from `ratio`, its height uniformly from the
    integers for which the window fits into the image and has an area within `area`, and its position uniformly from
    those where it fits. An attempt fails if there is no such height; after ten the window is the whole image.

    The windows are smaller than those of torchvision's `RandomResizedCrop` with the same ranges, which draws the area
    uniformly and tries again if it does not fit: the default ranges give a mean area of 0.37 of an image of 500x375
    pixels instead of 0.43, and 0.41 of a square one instead of 0.48.

    It is an `Augmentation` that also decodes: a split of encoded images reads each window from the file in every epoch,
    instead of resizing the whole image first.

    Args:
        area: Smallest and largest fraction of the image's area, above 0 and at most 1.
        ratio: Smallest and largest width / height.
        flip: Whether each window is mirrored left to right with probability 1/2.

    Raises:
        RecipeError: If a range is empty or out of bounds.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6. Drawn as by TensorFlow's `sample_distorted_bounding_box` in
    Model Garden's `random_crop_image`, except that the last row and column are as likely as the others.
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
                    f"random_resized_crop: {name} must be two increasing numbers above 0{bound}. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw the seed of each window, and 1 where it is flipped: int32 `(examples, 2)`."""
        values = [2**31 - 1, 2 if self.flip else 1]
        return rng.integers(0, values, size=(examples, 2), dtype=np.int32)

    def apply(self, images, draws):
        """Crop decoded images, uint8 `(batch, height, width, channels)`, and resize the windows to the same shape."""
        size = tuple(images.shape[1:3])

        def crop(example):
            image, row = example
            top, left, height, width = tf.unstack(self.window(tf.shape(image)[:2], row))
            cropped = resize_image(image[top : top + height, left : left + width], size)
            return tf.ensure_shape(_maybe_flip(cropped, row), images.shape[1:])

        return tf.map_fn(crop, (images, draws), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8))

    def decode(self, contents, draws, transform: ImageTransform):
        """Decode and resize the window of one encoded image.

        Args:
            contents: Scalar string tensor, a JPEG or PNG.
            draws: int32 `(2,)`, a row of `draw`.
            transform: Gives size and method; its own crop is not used.

        Returns:
            uint8 `(*transform.size, 3)`.
        """
        window = self.window(tf.stack(image_size_from_header(contents)), draws)
        cropped = resize_image(decode_window(contents, window), transform.size, transform.method)
        return tf.ensure_shape(_maybe_flip(cropped, draws), (*transform.size, 3))

    def window(self, shape, draws):
        """Return top, left, height and width of the window, int32 `(4,)`.

        Args:
            shape: Integers `(2,)`: height and width of the image.
            draws: int32 `(2,)`, a row of `draw`.
        """
        uniforms = tf.random.stateless_uniform((_MAX_ATTEMPTS, 4), seed=tf.stack([draws[0], 0]), alg="philox")
        return self.window_from_uniforms(shape, uniforms)

    def window_from_uniforms(self, shape, uniforms):
        """Return the window, int32 `(4,)`, for given random numbers.

        Args:
            shape: Integers `(2,)`: height and width of the image.
            uniforms: float32 `(attempts, 4)` in [0, 1), which decide ratio, height, top and left.
        """
        image_height, image_width = tf.unstack(tf.cast(shape, tf.float32))
        pixels = image_height * image_width
        ratio = self.ratio[0] + uniforms[:, 0] * (self.ratio[1] - self.ratio[0])
        min_height, max_height = (
            tf.round(tf.sqrt(fraction * image_height * image_width / ratio)) for fraction in self.area
        )
        max_height = tf.minimum(tf.minimum(max_height, image_height), _max_height_for_width(image_width, ratio))
        min_height = tf.minimum(min_height, max_height)
        height = min_height + tf.floor(uniforms[:, 1] * (max_height - min_height + 1))
        height, width = self._adjust_height_to_area(height, ratio, pixels)
        is_valid = (height * width >= self.area[0] * pixels) & (height * width <= self.area[1] * pixels)
        is_valid &= (height <= image_height) & (width <= image_width) & (height >= 1) & (width >= 1)
        top = tf.floor(uniforms[:, 2] * (image_height - height + 1))
        left = tf.floor(uniforms[:, 3] * (image_width - width + 1))
        whole_image = tf.stack([[0.0, 0.0, image_height, image_width]])
        windows = tf.concat([tf.stack([top, left, height, width], axis=1), whole_image], axis=0)
        first_valid = tf.argmax(tf.concat([is_valid, [True]], axis=0))  # the whole image if every attempt failed
        return tf.cast(windows[first_valid], tf.int32)

    def _adjust_height_to_area(self, height, ratio, pixels):
        """Return height and width, one row more or less where rounding left the range of the area."""
        area = height * tf.round(height * ratio)
        height = tf.where(area < self.area[0] * pixels, height + 1, height)
        area = height * tf.round(height * ratio)
        height = tf.where(area > self.area[1] * pixels, height - 1, height)
        return height, tf.round(height * ratio)


def random_resized_crop(
    *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: bool = True
) -> RandomResizedCrop:
    """Crop a window of random area, aspect ratio and position, resize it and flip it; see `RandomResizedCrop`."""
    return RandomResizedCrop(area=area, ratio=ratio, flip=flip)


def _max_height_for_width(image_width, ratio):
    """Return the largest height whose rounded width fits into the image."""
    height = tf.floor((image_width + 0.5) / ratio)
    return tf.where(tf.round(height * ratio) > image_width, height - 1, height)


def _maybe_flip(image, draws):
    # `image[:, ::-1]` takes as long as all the decoding.
    return tf.cond(tf.equal(draws[1], 1), lambda: tf.reverse(image, [1]), lambda: image)
