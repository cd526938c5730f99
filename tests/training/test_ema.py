"""Moving averages follow their definition, and the model gets its own weights back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import layers
from keras_committee.schedules import Lookahead
from keras_committee.training.devices import make_strategy
from keras_committee.training.ema import SlowWeights, WeightEMA


def network(synchronized=True):
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 3, padding="same")(image)
    x = layers.BatchNormalization(synchronized=synchronized)(x)
    branch = keras.Sequential(
        [keras.layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization(synchronized=False)]
    )
    x = layers.StochasticDepth(branch, survival=0.7)(x)
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


@pytest.fixture
def one():
    return make_strategy("single", 8)


@pytest.mark.parametrize("decay", [0.2, 0.9999])
def test_averages_follow_their_definition(one, decay):
    model = network()
    averages = WeightEMA(model, decay, one)
    start, steps = numbers(averaged(model)), []
    update = tf.function(averages.update)
    for n in range(1, 13):
        draw_weights(model, n)
        steps.append(numbers(averaged(model)))
        update(tf.constant(n, tf.int64))
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
    start, steps = numbers(averaged(model)), []
    update = tf.function(averages.update)
    for n in range(1, 6):
        draw_weights(model, n)
        steps.append(numbers(averaged(model)))
        update(tf.constant(n, tf.int64))
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
