"""How do two training images become one?"""

import dataclasses
import math
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_committee.errors import RecipeError


class BatchMix(Protocol):
    """Two methods, kept apart as in `Augmentation`, so that a resumed run can repeat any draw."""

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """One row of draws for each batch, `(batches, k)` of one dtype; `rng` decides alone.

        Args:
            rng: Source of the randomness.
            batches: Number of rows, 0 or more.
            image_shape: Height, width, channels.
        """
        ...

    def apply(self, images, draws):
        """Uint8 `(batch, height, width, channels)` and `(k,)` to mixed uint8 images of the same shape and their share.

        The share, a float32 scalar, is the part of each mixed image that is its own; the rest is its `mix_partners`'s.
        Runs in a TensorFlow graph and has no randomness of its own.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup:
    """The weighted mean of an image and its partner, `lambda * own + (1 - lambda) * partner`, rounded to uint8.

    Args:
        alpha: Lambda, one for each batch, follows Beta(alpha, alpha); above 0. The paper takes 0.2 for ImageNet and 1
            for CIFAR.

    Source: Zhang et al. 2018, arXiv:1710.09412; one lambda per batch as in their code.
    """

    alpha: float = 0.2

    def __post_init__(self):
        _check_alpha("mixup", self.alpha)

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """Lambda of each batch: float32 `(batches, 1)`."""
        return rng.beta(self.alpha, self.alpha, size=(batches, 1)).astype(np.float32)

    def apply(self, images, draws):
        """The mixed images and lambda."""
        own, other = (tf.cast(pixels, tf.float32) for pixels in (images, mix_partners(images)))
        return tf.cast(tf.round(other + draws[0] * (own - other)), tf.uint8), draws[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix:
    """An image with one box of its partner's pixels in it, at the same place.

    The box has the image's proportions and the area 1 - lambda, its centre lies anywhere in the image, and what sticks
    out is cut off; the share is that of the pixels which are left, not lambda.

    Args:
        alpha: Lambda, one for each batch, follows Beta(alpha, alpha); above 0.

    Source: Yun et al. 2019, arXiv:1905.04899, section 3.1 and algorithm A1; one box per batch as in their code.
    """

    alpha: float = 1.0

    def __post_init__(self):
        _check_alpha("cutmix", self.alpha)

    def draw(self, rng: np.random.Generator, batches: int, image_shape: tuple[int, ...]) -> np.ndarray:
        """Top, left, bottom and right edge of each batch's box, the last two exclusive: int32 `(batches, 4)`."""
        size = np.array(image_shape[:2])
        side_fraction = np.sqrt(1.0 - rng.beta(self.alpha, self.alpha, size=(batches, 1)))
        half_size = (size * side_fraction).astype(np.int64) // 2
        center = rng.integers(0, size, size=(batches, 2))
        return np.concatenate([np.maximum(center - half_size, 0), np.minimum(center + half_size, size)], axis=1).astype(
            np.int32
        )

    def apply(self, images, draws):
        """The mixed images and the share of the pixels outside the box."""
        # Pieces put together: a mask over all pixels takes about seven times as long.
        top, left, bottom, right = tf.unstack(draws)
        box = mix_partners(images[:, top:bottom, left:right])
        middle = tf.concat([images[:, top:bottom, :left], box, images[:, top:bottom, right:]], axis=2)
        mixed = tf.concat([images[:, :top], middle, images[:, bottom:]], axis=1)
        pixels = images.shape[1] * images.shape[2]
        own_weight = tf.cast(pixels - (bottom - top) * (right - left), tf.float32) / pixels
        return tf.ensure_shape(mixed, images.shape), own_weight


def mixup(alpha: float = 0.2) -> Mixup:
    """The weighted mean of two images, weighted by a draw from Beta(alpha, alpha) for each batch."""
    return Mixup(alpha=alpha)


def cutmix(alpha: float = 1.0) -> CutMix:
    """A box of one image in another, its area 1 - a draw from Beta(alpha, alpha) for each batch."""
    return CutMix(alpha=alpha)


def mix_partners(batch):
    """What each example of a batch is mixed with: the next one, and the first for the last; of any `(batch, ...)`.

    The papers shuffle the batch for it. A batch is a piece of a random order already, so its neighbour is as random a
    partner, and never the example itself unless it is alone.
    """
    return tf.roll(batch, shift=-1, axis=0)


def mix_targets(labels, own_weight, classes: int):
    """`share * one_hot(label) + (1 - share) * one_hot(partner's label)`: float32 `(batch, classes)`.

    Labels are int32 `(batch,)`. Written so that the entry is exactly 1 where both labels are the same.
    """
    own = tf.one_hot(labels, classes)
    other = mix_partners(own)
    return other + own_weight * (own - other)


def _check_alpha(name, alpha):
    if not 0 < alpha < math.inf:
        raise RecipeError(f"{name} draws from Beta(alpha, alpha) and needs a finite alpha above 0. Received: {alpha=}")
