"""Batch mixing: Mixup and CutMix, with soft targets."""

import dataclasses
import math
from typing import Protocol

import numpy as np

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.errors import RecipeError


class BatchMix(Protocol):
    """Mixing of the images of a batch, in two methods as `Augmentation`, so that a resumed run can repeat any draw."""

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """Draw the random numbers of several batches.

        Args:
            rng: The only source of randomness.
            batches: Number of rows, 0 or more.
            image_shape: Height, width, channels.

        Returns:
            `(batches, k)` of one dtype.
        """
        ...

    def apply(self, images, draws):
        """Mix a batch; runs in a TensorFlow graph and draws nothing.

        Args:
            images: uint8 `(batch, height, width, channels)`.
            draws: `(k,)`, a row of `draw`.

        Returns:
            The mixed images, uint8 of the same shape, and the weight of each image in its mix, a float32 scalar in
            [0, 1]. The remaining weight belongs to its partner, see `mix_partners`.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup:
    """The weighted mean of an image and its partner, `lambda * image + (1 - lambda) * partner`, rounded to uint8.

    Args:
        alpha: Lambda, one per batch, follows Beta(alpha, alpha); above 0. The paper uses 0.2 for ImageNet and 1 for
            CIFAR.

    Raises:
        RecipeError: If `alpha` is not a finite number above 0.

    Source: Zhang et al. 2018, arXiv:1710.09412; one lambda per batch as in their code.
    """

    alpha: float = 0.2

    def __post_init__(self):
        _check_alpha("mixup", self.alpha)

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """Draw lambda of each batch: float32 `(batches, 1)`."""
        return rng.beta(self.alpha, self.alpha, size=(batches, 1)).astype(np.float32)

    def apply(self, images, draws):
        """Return the mixed images and lambda."""
        own, other = (tf.cast(pixels, tf.float32) for pixels in (images, mix_partners(images)))
        return tf.cast(tf.round(other + draws[0] * (own - other)), tf.uint8), draws[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix:
    """An image in which one box is replaced by the same box of its partner.

    The box has the image's aspect ratio and the area 1 - lambda. Its center is uniform in the image, and what exceeds
    the image is clipped. The weight of the image is the fraction of its pixels that remain, not lambda.

    Args:
        alpha: Lambda, one per batch, follows Beta(alpha, alpha); above 0.

    Raises:
        RecipeError: If `alpha` is not a finite number above 0.

    Source: Yun et al. 2019, arXiv:1905.04899, section 3.1 and algorithm A1; one box per batch as in their code.
    """

    alpha: float = 1.0

    def __post_init__(self):
        _check_alpha("cutmix", self.alpha)

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """Draw top, left, bottom and right of each batch's box, the last two exclusive: int32 `(batches, 4)`."""
        size = np.array(image_shape[:2])
        side_fraction = np.sqrt(1.0 - rng.beta(self.alpha, self.alpha, size=(batches, 1)))
        half_size = (size * side_fraction).astype(np.int64) // 2
        center = rng.integers(0, size, size=(batches, 2))
        top_left, bottom_right = np.maximum(center - half_size, 0), np.minimum(center + half_size, size)
        return np.concatenate([top_left, bottom_right], axis=1).astype(np.int32)

    def apply(self, images, draws):
        """Return the mixed images and the fraction of the pixels outside the box."""
        # Concatenation: a mask over all pixels takes about seven times as long.
        top, left, bottom, right = tf.unstack(draws)
        box = mix_partners(images[:, top:bottom, left:right])
        middle = tf.concat([images[:, top:bottom, :left], box, images[:, top:bottom, right:]], axis=2)
        mixed = tf.concat([images[:, :top], middle, images[:, bottom:]], axis=1)
        pixels = images.shape[1] * images.shape[2]
        own_weight = tf.cast(pixels - (bottom - top) * (right - left), tf.float32) / pixels
        return tf.ensure_shape(mixed, images.shape), own_weight


def mixup(alpha: float = 0.2) -> Mixup:
    """Mix pairs of images with a weight from Beta(alpha, alpha), drawn for each batch; see `Mixup`."""
    return Mixup(alpha=alpha)


def cutmix(alpha: float = 1.0) -> CutMix:
    """Paste a box of one image into another, of area 1 - Beta(alpha, alpha), drawn for each batch; see `CutMix`."""
    return CutMix(alpha=alpha)


def mix_partners(batch):
    """Return the partner of each example of a batch `(batch, ...)`: the next one, and the first for the last.

    The papers shuffle the batch instead. A batch is a part of a random order already, so the next example is as random
    a partner, and never the example itself unless it is alone.
    """
    return tf.roll(batch, shift=-1, axis=0)


def mix_targets(labels, own_weight, classes: int):
    """Return the soft targets of a mixed batch, `own_weight * one_hot(label) + (1 - own_weight) * partner's`.

    The entry is exactly 1 where both labels are equal.

    Args:
        labels: int32 `(batch,)`.
        own_weight: Float scalar, the weight of each image in its mix.
        classes: Number of classes.

    Returns:
        float32 `(batch, classes)`.
    """
    own = tf.one_hot(labels, classes)
    other = mix_partners(own)
    return other + own_weight * (own - other)


def _check_alpha(name, alpha):
    if not 0 < alpha < math.inf:
        raise RecipeError(f"{name}: alpha of Beta(alpha, alpha) must be finite and above 0. Received: {alpha=}")
