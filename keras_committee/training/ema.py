"""What are the weights on average over the last steps?"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


class Averages:
    """Exponential moving averages of a model's weights and of its batch statistics.

    After step n, counted from 1, `average = d * average + (1 - d) * weight` with `d = min(decay, (1 + n) / (10 + n))`,
    which lets the averages forget the initial weights soon.

    Args:
        model: Any Keras model.
        decay: Float in (0, 1), such as 0.9999.
        strategy: The strategy that the model was built under.

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`, as EfficientNet uses it (Tan & Le 2019,
    arXiv:1905.11946).
    """

    def __init__(self, model: keras.Model, decay: float, strategy: tf.distribute.Strategy):
        self._decay, self._strategy = decay, strategy
        self._weights = [*model.trainable_variables, *_statistics(model)]
        with strategy.scope():
            self.variables = [  # of arrays: Keras would wrap a variable of TensorFlow and not copy it
                keras.Variable(
                    keras.ops.convert_to_numpy(weight), dtype=weight.dtype, trainable=False, name=f"average_{place}"
                )
                for place, weight in enumerate(self._weights)
            ]

    def update(self, iterations) -> None:
        """One update after step number `iterations`; called outside of the replicas, with all of them equal."""
        n = tf.cast(iterations, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + n) / (10.0 + n))
        for average, weight in zip(self.variables, self._weights, strict=True):
            keep = tf.cast(decay, average.dtype)
            self._strategy.extended.update(average.value, _move, args=(weight.value, keep), group=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the averages for weights; afterwards it has its own again, bit for bit."""
        parts = [part for weight in self._weights for part in _parts(weight)]
        own = [part.numpy() for part in parts]
        self.copy_to_weights()
        try:
            yield
        finally:
            for part, value in zip(parts, own, strict=True):
                part.assign(value)

    def copy_to_weights(self) -> None:
        """Give the model the averages for good."""
        for weight, average in zip(self._weights, self.variables, strict=True):
            weight.assign(keras.ops.convert_to_numpy(average))


def _move(average, weight, keep):
    average.assign_sub((average - weight) * (1.0 - keep))  # exactly nothing where a weight stands still


def _parts(weight):
    """The variable of each replica: batch statistics that are not synchronised differ between them."""
    return getattr(weight.value, "values", (weight.value,))


def _statistics(model):
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    return [weight for layer in layers for weight in layer.non_trainable_variables]
