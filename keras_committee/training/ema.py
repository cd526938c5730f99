"""Exponential moving averages of the weights, and the slow weights of Lookahead."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from keras_committee.layers.normalization import moving_statistics
from keras_committee.schedules import Lookahead


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
        self._weights = _averaged_variables(model)
        self.variables = _copies(self._weights, strategy, "average")

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


class SlowWeights:
    """The slow weights of Lookahead, for a model's trainable weights and its batch statistics.

    Args:
        model: Any Keras model.
        lookahead: When and how far the weights are pulled back.
        steps: Total number of training steps.
        strategy: Strategy under which the model was built.
    """

    def __init__(self, model: keras.Model, lookahead: Lookahead, steps: int, strategy: tf.distribute.Strategy):
        self._lookahead, self._steps, self._strategy = lookahead, steps, strategy
        self._weights = _averaged_variables(model)
        self.variables = _copies(self._weights, strategy, "slow")

    def update(self, iterations) -> None:
        """Pull the weights back after step number `iterations`, if it ends a period. Call it outside a replica."""
        share = self._lookahead.share(iterations, self._steps)
        for slow, weight in zip(self.variables, self._weights, strict=True):
            cast_share = tf.cast(share, slow.dtype)
            self._strategy.extended.update(slow.value, _update, args=(weight.value, cast_share), group=True)
            arguments = (slow.value, share < 1.0)
            self._strategy.extended.update(weight.value, _replace_if, args=arguments, group=True)


def _averaged_variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.trainable_variables, *moving_statistics(model)]


def _copies(weights, strategy, name) -> list[keras.Variable]:
    """Return new variables with the values of some weights."""
    with strategy.scope():
        return [  # from arrays: Keras would wrap a variable of TensorFlow and not copy it
            keras.Variable(
                keras.ops.convert_to_numpy(weight), dtype=weight.dtype, trainable=False, name=f"{name}_{index}"
            )
            for index, weight in enumerate(weights)
        ]


def _update(average, weight, decay):
    average.assign_sub((average - weight) * (1.0 - decay))  # exactly no change for a constant weight


def _replace_if(weight, value, condition):
    weight.assign(tf.where(condition, value, weight))


def _replica_variables(weight):
    """Return the variable of each replica: batch statistics that are not synchronized differ between them."""
    return getattr(weight.value, "values", (weight.value,))
