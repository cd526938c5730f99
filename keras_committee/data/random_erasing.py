"""Random erasing: a rectangle of each image is filled with noise or one value."""

import dataclasses

import numpy as np

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.errors import RecipeError

_PARTS = 2**31  # a fraction is drawn in so many parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A rectangle of random area, aspect ratio and position is erased from some images.

    The area is uniform in `area`, the ratio of height and width log-uniform in `ratio`, as in the authors' code and in
    torchvision. A side longer than the image ends with it, where those draw again.

    Args:
        probability: Share of the images from which a rectangle is erased, 0 to 1.
        area: Smallest and largest fraction of the image's area, above 0 and at most 1.
        ratio: Smallest and largest height / width.
        fill: Value of the erased pixels, 0 to 255, or `"noise"`: each value at random.

    Raises:
        RecipeError: If a value is out of range.

    Source: Zhong et al. 2017, arXiv:1708.04896, algorithm 1.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: int | str = "noise"

    def __post_init__(self):
        is_value = not isinstance(self.fill, str) and self.fill in range(256)
        for valid, text in (
            (0 <= self.probability <= 1, f"probability must be 0 to 1. Received: {self.probability!r}"),
            (0 < self.area[0] <= self.area[1] <= 1, f"area must be two increasing fractions. Received: {self.area!r}"),
            (0 < self.ratio[0] <= self.ratio[1], f"ratio must be two increasing numbers. Received: {self.ratio!r}"),
            (is_value or self.fill == "noise", f'fill must be 0 to 255 or "noise". Received: {self.fill!r}'),
        ):
            if not valid:
                raise RecipeError(f"random_erasing: {text}")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw for each image: int32 `(examples, 7)`.

        The columns: 1 where a rectangle is erased; area, logarithm of the ratio, and the row and column of the
        rectangle, in parts of their ranges; a seed of two integers for the noise.
        """
        erased = (rng.random(examples) < self.probability).astype(np.int32)
        return np.column_stack([erased, rng.integers(_PARTS, size=(examples, 6), dtype=np.int64)]).astype(np.int32)

    def apply(self, images, draws):
        """Erase rectangles of uint8 images, `(batch, height, width, channels)`."""
        height, width = images.shape[1:3]
        area, log_ratio, row, column = tf.unstack(tf.cast(draws[:, 1:5], tf.float32) / _PARTS, axis=1)
        area = (self.area[0] + (self.area[1] - self.area[0]) * area) * (height * width)
        low, high = np.log(self.ratio)
        ratio = tf.exp(low + (high - low) * log_ratio)
        rows = _inside(height, tf.sqrt(area * ratio), row)
        columns = _inside(width, tf.sqrt(area / ratio), column)
        mask = rows[:, :, None] & columns[:, None, :] & (draws[:, 0] == 1)[:, None, None]
        return tf.where(mask[..., None], self._fill(images, draws[:, 5:]), images)

    def _fill(self, images, seeds):
        if self.fill != "noise":
            return tf.cast(self.fill, tf.uint8)
        shape = images.shape[1:]

        def noise(seed):
            values = tf.random.stateless_uniform(shape, seed, 0, 256, tf.int32)
            return tf.cast(values, tf.uint8)

        return tf.map_fn(noise, seeds, fn_output_signature=tf.TensorSpec(shape, tf.uint8))


def random_erasing(
    probability: float = 0.5,
    *,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    fill: int | str = "noise",
) -> RandomErasing:
    """Erase a rectangle from some images; see `RandomErasing`."""
    return RandomErasing(probability=probability, area=area, ratio=ratio, fill=fill)


def _inside(length: int, side, position):
    """Return for each image whether a row (or column) is within its rectangle: bool `(batch, length)`.

    Args:
        length: Rows of the image.
        side: float32 `(batch,)`, rows of the rectangle before rounding.
        position: float32 `(batch,)`, 0 to 1: the share of the free rows above the rectangle.
    """
    side = tf.clip_by_value(tf.cast(tf.round(side), tf.int32), 1, length)
    start = tf.minimum(tf.cast(position * tf.cast(length - side + 1, tf.float32), tf.int32), length - side)
    index = tf.range(length)[None]
    return (index >= start[:, None]) & (index < (start + side)[:, None])
