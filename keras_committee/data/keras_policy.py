"""How do the operations of Keras' RandAugment vary an image, and how are they drawn?

`keras.layers.RandAugment` takes its numbers from a generator that counts calls, which a resumed stream would start
anew, and computes all eleven operations to keep one. Its operations are used here: each takes the numbers that it wants
from a seed, and the seed is drawn beforehand for each image.

keras-cv's RandAugment is not offered: its factors (`NormalFactorSampler`) are drawn from the state of `tf.random`.
"""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from keras_committee.data.dispatch import check_coloured, chooser, for_each_image
from keras_committee.errors import RecipeError

OPERATIONS = (
    "random_shear",
    "random_translation",
    "random_rotation",
    "random_brightness",
    "random_color_degeneration",
    "random_contrast",
    "random_sharpness",
    "random_posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasRandAugment:
    """So many of Keras' eleven operations for each image, each with a strength of its own.

    An operation's factor is uniform from 0 to a tenth of `magnitude`, as in Keras. That is harsher than the paper: 1
    stands for a whole turn, or for a shift out of the image. Keras gives all images of a batch the same operations;
    these are drawn for each image, as in the paper. Values between two integers are rounded.

    Args:
        layers: Number of operations, one after another, 1 or more.
        magnitude: Ten times Keras' `factor`, above 0 and at most 10; Keras' default is 5.

    Raises:
        RecipeError: If a value makes no sense.

    Source: Cubuk et al. 2020, arXiv:1909.13719; `keras.layers.RandAugment` of Keras 3.15.
    """

    layers: int = 2
    magnitude: float = 5.0

    def __post_init__(self):
        check_strength(self.layers, self.magnitude)

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """The operations, then a seed of two numbers for each: int32 `(examples, layers * 3)`."""
        operations = generator.integers(len(OPERATIONS), size=(examples, self.layers), dtype=np.int32)
        seeds = generator.integers(2**31, size=(examples, 2 * self.layers), dtype=np.int32)
        return np.concatenate([operations, seeds], axis=1)

    def apply(self, images, draws):
        """The varied images."""
        check_coloured(images, "randaugment")

        def vary(image, row):
            image = tf.cast(image, tf.float32)[None]
            for number in range(self.layers):
                place = self.layers + 2 * number
                image = self._chosen(row[number], image, row[place : place + 2])
            return tf.cast(tf.clip_by_value(tf.round(image[0]), 0.0, 255.0), tf.uint8)

        return for_each_image(vary, images, draws)

    @functools.cached_property
    def _chosen(self):
        """Kept, since a stream of its own for each epoch would trace all of them again."""
        return chooser([self._function(layer) for layer in self._layers()])

    def _layers(self):
        """Keras' layers, in the order of `OPERATIONS`."""
        with tf.Graph().as_default():  # their seeds are variables, never read, that a pipeline's graph cannot make
            layer = keras.layers.RandAugment(factor=self.magnitude / 10, seed=0, dtype="float32")
        return [getattr(layer, name) for name in OPERATIONS]

    def _function(self, layer):
        def function(image, seed):
            numbers = layer.get_random_transformation(image, training=True, seed=Drawn(seed))
            return tf.ensure_shape(layer.transform_images(image, numbers), image.shape)

        return function


def check_strength(layers: int, magnitude: float) -> None:
    """Raise a `RecipeError` where RandAugment's two numbers make no sense."""
    if layers < 1 or not 0 < magnitude <= 10:
        raise RecipeError(
            f"randaugment needs 1 or more layers and a magnitude above 0, at most 10. Received: {layers=}, {magnitude=}"
        )


class Drawn(keras.random.SeedGenerator):
    """A source of seeds that begins with a given one and needs no variable.

    Args:
        seed: int32 `(2,)`.
    """

    def __init__(self, seed):
        self._seed, self._count = seed, 0

    def next(self, ordered=True):
        """The seed after `count` others: uint32 `(2,)`."""
        count, self._count = self._count, self._count + 1
        return tf.bitcast(self._seed + tf.constant([0, count]), tf.uint32)
