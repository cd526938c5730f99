"""Averages of weights follow their definitions, and the model gets its own weights back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import layers
from keras_committee.schedules import Lookahead
from keras_committee.training.averaging import SlowWeights, StochasticWeightAverage, WeightEMA
from keras_committee.training.devices import make_strategy


def network(synchronized=True, survival=0.7):
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 3, padding="same")(image)
    x = layers.BatchNormalization(synchronized=synchronized)(x)
    branch = keras.Sequential(
        [keras.layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization(synchronized=False)]
    )
    x = layers.StochasticDepth(branch, survival=survival)(x)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


def averaged(model):
    """Trainable weights, and the moving statistics of both normalisations."""
    norms = [model.layers[2], model.layers[3].branch.layers[1]]
    return [
        *model.trainable_variables,
        *(value for norm in norms for value in (norm.moving_mean, norm.moving_variance)),
    ]


def draw_weights(model, step):
    for index, weight in enumerate(averaged(model)):
        weight.assign(np.random.default_rng([step, index]).normal(size=weight.shape))


def definition(start, steps, decay):
    """The averages after each step, in float64 and one weight after the other."""
    averages = [np.array(value, "float64") for value in start]
    for n, weights in enumerate(steps, start=1):
        d = min(decay, (1 + n) / (10 + n))
        averages = [d * average + (1 - d) * weight for average, weight in zip(averages, weights, strict=True)]
    return averages


def assert_close(values, expected):
    assert len(values) == len(expected)
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(np.array(value), other, rtol=1e-5, atol=1e-6)


def numbers(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def bits(variables):
    """The bits of every variable on every replica."""
    values = [getattr(variable.value, "values", (variable.value,)) for variable in variables]
    return [[part.numpy().tobytes() for part in parts] for parts in values]


def update_for(averages, model, numbers_of_steps):
    """Draw other weights for each step and update the averages; return the weights of each step."""
    steps, update = [], tf.function(averages.update)
    for n in numbers_of_steps:
        draw_weights(model, n)
        steps.append(numbers(averaged(model)))
        update(tf.constant(n, tf.int64))
    return steps


@pytest.fixture
def one():
    return make_strategy("single", 8)


@pytest.mark.parametrize("decay", [0.2, 0.9999])
def test_averages_follow_their_definition(one, decay):
    model = network()
    averages = WeightEMA(model, decay, one)
    start = numbers(averaged(model))
    steps = update_for(averages, model, range(1, 13))
    assert_close(averages.variables, definition(start, steps, decay))


def test_lookahead_pulls_the_weights_back_after_each_period(one):
    """Zhang et al. 2019, algorithm 1, in float64: 4 steps a period, a share of the slow weights that grows."""
    model = network()
    lookahead = Lookahead(period=4, start=0.2, end=0.8, power=2.0)
    slow_weights = SlowWeights(model, lookahead, 12, one)
    slow = [value.astype("float64") for value in numbers(averaged(model))]
    update = tf.function(slow_weights.update)
    for n in range(1, 13):
        draw_weights(model, n)
        fast = numbers(averaged(model))
        update(tf.constant(n, tf.int64))
        if n % 4:
            assert bits(averaged(model)) == [[value.tobytes()] for value in fast]
            continue
        share = 0.2 + 0.6 * (n / 12) ** 2
        slow = [share * old + (1 - share) * new for old, new in zip(slow, fast, strict=True)]
        assert_close(numbers(averaged(model)), slow)
        assert_close(slow_weights.variables, slow)


def test_averages_begin_as_the_weights(one):
    model = network()
    assert_close(WeightEMA(model, 0.99, one).variables, numbers(averaged(model)))


def test_inside_the_block_the_model_predicts_with_the_averages(one):
    model, other = network(), network()
    averages = WeightEMA(model, 0.9, one)
    draw_weights(model, 1)
    averages.update(1)
    for weight, average in zip(averaged(other), averages.variables, strict=True):
        weight.assign(average)
    images = np.random.default_rng(3).normal(size=(5, 4, 4, 3)).astype("float32")
    before = model(images).numpy()
    with averages.swapped_in():
        np.testing.assert_array_equal(model(images), other(images))
    np.testing.assert_array_equal(model(images), before)
    assert not np.allclose(before, other(images))
    averages.copy_to_weights()
    np.testing.assert_array_equal(model(images), other(images))


def test_the_weights_come_back_bit_for_bit_even_after_an_error(one):
    model = network()
    averages = WeightEMA(model, 0.9, one)
    draw_weights(model, 1)
    odd = np.array([-0.0, 1e-40, np.nan], "float32")  # what an addition and a subtraction would not give back
    model.layers[1].bias.assign(odd)
    averages.update(1)
    before = bits(model.variables), bits(averages.variables)
    with pytest.raises(ZeroDivisionError, match="division"), averages.swapped_in():
        1 / 0  # noqa: B018
    assert (bits(model.variables), bits(averages.variables)) == before


def test_survival_and_counted_runs_are_not_averaged(one):
    model = network()
    averages = WeightEMA(model, 0.9, one)
    assert len(averages.variables) == len(averaged(model)) == len(model.trainable_variables) + 4
    gate = model.layers[3]
    layers.set_survival(model, 0.2)
    gate.run_count.assign(41.0)
    averages.update(1)
    draw_weights(model, 1)
    averages.copy_to_weights()
    assert gate.survival == pytest.approx(0.2)
    assert float(gate.run_count) == 41.0


def test_two_replicas_average_as_one_device_does(mirrored):
    with mirrored.scope():
        model = network()
    averages = WeightEMA(model, 0.97, mirrored)
    start = numbers(averaged(model))
    steps = update_for(averages, model, range(1, 6))
    assert_close(averages.variables, definition(start, steps, 0.97))
    assert all(len(parts) == 2 and len(set(parts)) == 1 for parts in bits(averages.variables))
    before = bits(model.variables)
    with averages.swapped_in():
        assert bits(averaged(model)) == bits(averages.variables)
    assert bits(model.variables) == before


def test_statistics_that_differ_between_replicas_come_back_to_each(mirrored):
    with mirrored.scope():
        model = network(synchronized=False)
    averages = WeightEMA(model, 0.9, mirrored)
    mean = model.layers[2].moving_mean
    for part, value in zip(mean.value.values, (0.2, 0.7), strict=True):
        part.assign(np.full(3, value, "float32"))
    before = bits(model.variables)
    with averages.swapped_in():
        assert len(set(bits([mean])[0])) == 1
    assert bits(model.variables) == before
    assert len(set(bits([mean])[0])) == 2


# Stochastic weight averaging


def as_batches(images, size):
    return [(tf.constant(images[start : start + size]), None) for start in range(0, len(images), size)]


def batch_statistics(inputs, layer):
    """What the layer normalizes, `(batch, 4, 4, 3)`, by a convolution in float64; edges are padded with zeros."""
    kernel, bias = (np.array(weight, "float64") for weight in layer.get_weights())
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("bijcxy,xyco->bijo", windows, kernel) + bias


def moments(values):
    return values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))


def statistics(layer):
    return numbers([layer.moving_mean, layer.moving_variance])


def test_the_weights_of_each_epoch_count_equally(one):
    model = network()
    swa = StochasticWeightAverage(model, one)
    weights = []
    for epoch in range(1, 5):
        draw_weights(model, epoch)
        weights.append(numbers(model.trainable_variables))
        swa.add_epoch(epoch)
        swa.add_epoch(epoch)  # its validation was interrupted
    expected = [np.mean(values, axis=0, dtype="float64") for values in zip(*weights, strict=True)]
    before = bits(model.variables)
    with swa.swapped_in():
        assert_close(numbers(model.trainable_variables), expected)
    assert bits(model.variables) == before


def test_one_epoch_is_its_own_mean(one):
    model = network()
    swa = StochasticWeightAverage(model, one)
    draw_weights(model, 1)
    before = bits(averaged(model))
    swa.add_epoch(1)
    draw_weights(model, 2)
    swa.copy_to_weights()
    assert bits(averaged(model)) == before


@pytest.mark.parametrize("parts", [1, 2])
def test_batch_statistics_are_mean_and_variance_over_the_images_under_the_mean_weights(one, parts):
    model = network(survival=1.0)
    for index, weight in enumerate(model.trainable_variables):
        weight.assign(np.random.default_rng([9, index]).normal(size=weight.shape))
    _, conv, norm, block, *_ = model.layers
    images = np.random.default_rng(3).normal(2.0, 3.0, size=(24, 4, 4, 3)).astype("float32")
    swa = StochasticWeightAverage(model, one, parts)
    swa.add_epoch(1)
    before = bits(model.variables)
    with swa.swapped_in():
        swa.compute_statistics(as_batches(images, 8))
    assert bits(model.variables) == before
    assert norm.momentum == block.branch.layers[1].momentum == 0.99
    swa.copy_to_weights()
    first = batch_statistics(images, conv)
    assert_close(statistics(norm), moments(first))
    gamma, beta = (np.array(value, "float64") for value in (norm.gamma, norm.beta))
    normalized = []
    for batch in np.split(first, 3 * parts):  # as in training, each part by its own statistics
        mean, variance = moments(batch)
        normalized.append(gamma * (batch - mean) / np.sqrt(variance + norm.epsilon) + beta)
    second = batch_statistics(np.concatenate(normalized), block.branch.layers[0])
    assert_close(statistics(block.branch.layers[1]), moments(second))


def test_a_block_that_never_ran_and_a_frozen_layer_keep_their_statistics(one):
    model = network(survival=0.0)
    swa = StochasticWeightAverage(model, one)
    draw_weights(model, 1)
    weights, norm = averaged(model), model.layers[2]
    norm.trainable = False
    swa.add_epoch(1)
    before = bits(weights)
    with swa.swapped_in():
        swa.compute_statistics(as_batches(np.ones((8, 4, 4, 3), "float32"), 4))
    swa.copy_to_weights()
    assert bits(weights) == before


@pytest.mark.parametrize("synchronized", [True, False])
def test_two_replicas_have_the_statistics_of_all_images(mirrored, synchronized):
    with mirrored.scope():
        model = network(synchronized)
    images = np.random.default_rng(3).normal(2.0, 3.0, size=(24, 4, 4, 3)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.zeros(24))).batch(8, drop_remainder=True)
    swa = StochasticWeightAverage(model, mirrored)
    swa.add_epoch(1)
    before = bits(model.variables)
    with swa.swapped_in():
        swa.compute_statistics(mirrored.experimental_distribute_dataset(dataset))
    assert bits(model.variables) == before
    swa.copy_to_weights()
    assert_close(statistics(model.layers[2]), moments(batch_statistics(images, model.layers[1])))
