"""Exponential moving averages of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from keras_committee.layers.normalization import moving_statistics


class WeightEMA:
    """Exponential moving averages of a model's trainable weights and of its batch statistics.

    After step n, counted from 1, `average = d * average + (1 - d) * weight` with `d = min(decay, (1 + n) / (10 + n))`,
    so that the initial weights soon have no influence.

    Args:
        model: Any Keras model.
        decay: Float in (0, 1), such as 0.9999.
        strategy: Strategy under which the model was built.

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`, as EfficientNet uses it (Tan & Le 2019,
    arXiv:1905.11946).
    """

    def __init__(self, model: keras.Model, decay: float, strategy: tf.distribute.Strategy):
        self._decay, self._strategy = decay, strategy
        self._weights = [*model.trainable_variables, *moving_statistics(model)]
        with strategy.scope():
            self.variables = [  # from arrays: Keras would wrap a variable of TensorFlow and not copy it
                keras.Variable(
                    keras.ops.convert_to_numpy(weight), dtype=weight.dtype, trainable=False, name=f"average_{index}"
                )
                for index, weight in enumerate(self._weights)
            ]

    def update(self, iterations) -> None:
        """Update the averages after step number `iterations`. Call it outside a replica context."""
        step = tf.cast(iterations, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        for average, weight in zip(self.variables, self._weights, strict=True):
            cast_decay = tf.cast(decay, average.dtype)
            self._strategy.extended.update(average.value, _update, args=(weight.value, cast_decay), group=True)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averages as weights inside the block; its own are restored bit for bit."""
        replica_variables = [part for weight in self._weights for part in _replica_variables(weight)]
        saved_values = [part.numpy() for part in replica_variables]
        self.copy_to_weights()
        try:
            yield
        finally:
            for part, value in zip(replica_variables, saved_values, strict=True):
                part.assign(value)

    def copy_to_weights(self) -> None:
        """Replace the model's weights by the averages."""
        for weight, average in zip(self._weights, self.variables, strict=True):
            weight.assign(keras.ops.convert_to_numpy(average))


def _update(average, weight, decay):
    average.assign_sub((average - weight) * (1.0 - decay))  # exactly no change for a constant weight


def _replica_variables(weight):
    """Return the variable of each replica: batch statistics that are not synchronized differ between them."""
    return getattr(weight.value, "values", (weight.value,))
