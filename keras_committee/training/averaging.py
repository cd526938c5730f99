"""Averages of a member's weights: exponential moving averages, SWA, and the slow weights of Lookahead."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from keras_committee.layers.fusion import fused_layers
from keras_committee.layers.normalization import moving_statistics
from keras_committee.schedules import Lookahead, ema_decay

_NOT_RUN = -1.0  # in place of a variance


class WeightAverages:
    """Averages of a model's trainable weights and of its batch statistics, in variables of their own.

    Args:
        model: Any Keras model.
        strategy: Strategy under which the model was built.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy):
        self._model, self._strategy = model, strategy
        self._weights = _averaged_variables(model)
        self.variables = _copies(self._weights, strategy, "average")  # in the order of the weights

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averages as weights inside the block; afterwards all its variables are as before."""
        replica_variables = [part for weight in self._model.variables for part in _replica_variables(weight)]
        saved_values = [part.numpy() for part in replica_variables]
        self.copy_to_weights()
        try:
            yield
        finally:
            for part, value in zip(replica_variables, saved_values, strict=True):
                part.assign(value)

    def copy_to_weights(self) -> None:
        """Replace the model's weights by the averages."""
        for weight, average in zip(self._weights, self.variables[: len(self._weights)], strict=True):
            weight.assign(keras.ops.convert_to_numpy(average))


class WeightEMA(WeightAverages):
    """Exponential moving averages of a model's trainable weights and of its batch statistics.

    After step n, counted from 1, `average = d * average + (1 - d) * weight`, with the decay d of `schedules.ema_decay`.

    Args:
        model: Any Keras model.
        momentum: Float in (0, 1), such as 0.9999.
        strategy: Strategy under which the model was built.

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`, as EfficientNet uses it (Tan & Le 2019,
    arXiv:1905.11946).
    """

    def __init__(self, model: keras.Model, momentum: float, strategy: tf.distribute.Strategy):
        super().__init__(model, strategy)
        self._momentum = momentum

    def update(self, iterations) -> None:
        """Update the averages after step number `iterations`. Call it outside a replica context."""
        decay = ema_decay(self._momentum, iterations)
        for average, weight in zip(self.variables, self._weights, strict=True):
            cast_decay = tf.cast(decay, average.dtype)
            self._strategy.extended.update(average.value, _update, args=(weight.value, cast_decay), group=True)


class StochasticWeightAverage(WeightAverages):
    """The mean of a model's trainable weights at the ends of several epochs, with batch statistics of this mean.

    Every epoch counts equally. Batch statistics cannot be averaged so: they belong to the activations under the weights
    of their epoch. `compute_statistics` recomputes them under the mean weights.

    Args:
        model: Any Keras model.
        strategy: Strategy under which the model was built.
        gradient_accumulation_steps: Number of parts in which a replica processes its batch, as in training.

    Source: Izmailov et al. 2018, arXiv:1803.05407, algorithm 1; the statistics: section 3.2.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, gradient_accumulation_steps: int = 1):
        super().__init__(model, strategy)
        self._num_parts = gradient_accumulation_steps
        with strategy.scope():
            self._num_epochs = keras.Variable(np.zeros((), "float32"), trainable=False, name="averaged_epochs")
        self.variables.append(self._num_epochs)
        self._compute_moments, self._norms = None, []

    def add_epoch(self, number: int) -> None:
        """Add the current weights to the mean as the ones of its epoch `number`, counted from 1.

        Adding an epoch again has no effect: its validation may have been interrupted after a first time.
        """
        if int(keras.ops.convert_to_numpy(self._num_epochs)) == number:
            return
        statistics = {id(variable) for variable in moving_statistics(self._model)}
        for weight, average in zip(self._weights, self.variables, strict=False):
            value = keras.ops.convert_to_numpy(weight)
            if number > 1 and id(weight) not in statistics:
                mean = keras.ops.convert_to_numpy(average)
                value = mean + (value - mean) / number
            average.assign(value)
        self._num_epochs.assign(float(number))

    def compute_statistics(self, batches: Iterable) -> None:
        """Compute the batch statistics of the mean weights, which the model must have: see `swapped_in`.

        The model runs as in training, with dropout and stochastic depth. A statistic is the mean, or the variance, of
        all activations of all batches together. Frozen layers, and those of blocks that never ran, keep the statistics
        of the last epoch; of a layer that is called several times, those of its last call count.

        Args:
            batches: Global batches of training images, `(images, targets)`, distributed over the replicas.
        """
        norms = [
            layer
            for layer in self._model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.renorm
        ]
        if not norms:
            return
        if self._compute_moments is None or norms != self._norms:
            self._compute_moments, self._norms = self._make_compute_moments(norms), norms
        previous = [
            (keras.ops.convert_to_numpy(layer.moving_mean), keras.ops.convert_to_numpy(layer.moving_variance))
            for layer in norms
        ]
        moments: list[list[np.ndarray]] = [[] for _ in norms]
        with _without_momentum(norms):
            for images, _ in batches:
                for rows, results in zip(moments, self._compute_moments(images), strict=True):
                    rows += [part.numpy() for part in self._strategy.experimental_local_results(results)]
        averages = {id(weight): average for weight, average in zip(self._weights, self.variables, strict=False)}
        for layer, rows, values in zip(norms, moments, previous, strict=True):
            for variable, value in zip(
                (layer.moving_mean, layer.moving_variance), _pool(np.concatenate(rows), *values), strict=True
            ):
                variable.assign(value)
                averages[id(variable)].assign(value)

    def _make_compute_moments(self, norms: Sequence[keras.layers.BatchNormalization]):
        """Return a function of a global batch's images: each layer's batch statistics `(parts, 2, channels)`."""

        def compute_part(images):
            for layer in norms:
                layer.moving_variance.assign(keras.ops.full_like(layer.moving_variance, _NOT_RUN))
            self._model(images, training=True)
            return [
                tf.stack(
                    [tf.convert_to_tensor(layer.moving_mean.value), tf.convert_to_tensor(layer.moving_variance.value)]
                )
                for layer in norms
            ]

        def compute(images):
            parts = [compute_part(part) for part in tf.split(images, self._num_parts)]
            return [tf.stack(moments) for moments in zip(*parts, strict=True)]

        @tf.function(reduce_retracing=True)
        def compute_moments(images):
            with fused_layers(self._model):
                return self._strategy.run(compute, args=(images,))

        return compute_moments


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


@contextmanager
def _without_momentum(norms: Sequence[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Let each step in the block replace the batch statistics by those of its batch."""
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum


def _pool(moments: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of all activations of equal batches, from those of each batch `(batches, 2, channels)`.

    If the layer ran for no batch, they are `mean` and `variance`.
    """
    moments = moments[(moments[:, 1] != _NOT_RUN).any(axis=-1)].astype(np.float64)
    if not len(moments):
        return mean, variance
    means, variances = moments[:, 0], moments[:, 1]
    return means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)


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
