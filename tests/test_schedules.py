"""Learning rates around every step at which they change: the papers' and the recipes'."""

import math
import pathlib

import keras
import numpy as np
import pytest

from keras_committee import schedules
from keras_committee.recipe_file import RecipeFile
from keras_committee.schedules import SequentialSchedule, WarmUp

RECIPES = pathlib.Path(__file__).parent.parent / "recipes"


def rates(schedule, steps):
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in steps]


def assert_table(schedule, table):
    """Check the rates of a table of steps and rates; the boundary is the last step before a change, as in Keras."""
    steps, expected = zip(*table, strict=True)
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


def paper_table(epochs, batches, changes):
    """Return the first and last step of each rate of a paper, given as `(first epoch, rate)`."""
    ends = [start * batches for start, _ in changes[1:]] + [epochs * batches]
    starts = [start * batches + (start > 0) for start, _ in changes]
    return [(step, rate) for (_, rate), *edges in zip(changes, starts, ends, strict=True) for step in edges]


def test_step_decay_multiplies_by_the_factor_after_each_drop():
    schedule = schedules.step_decay(100, 0.7, drops=(0.29, 0.4), factor=0.2)  # 100 * 0.29 is 28.999999999999996
    assert_table(schedule, [(0, 0.7), (29, 0.7), (30, 0.14), (40, 0.14), (41, 0.028), (1_000, 0.028)])


def test_wide_resnet_drops_at_epochs_60_120_and_160():
    changes = [(0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008)]
    assert_table(schedules.lr_wide_resnet(200 * 391), paper_table(200, 391, changes))


def test_stochastic_depth_drops_at_epochs_250_and_375():
    changes = [(0, 0.1), (250, 0.01), (375, 0.001)]
    assert_table(schedules.lr_stochastic_depth(500 * 352), paper_table(500, 352, changes))


def test_stochastic_depth_drops_at_epochs_30_and_35_on_svhn():
    changes = [(0, 0.1), (30, 0.01), (35, 0.001)]
    assert_table(schedules.lr_stochastic_depth(50 * 4_675, drops=(0.6, 0.7)), paper_table(50, 4_675, changes))


def test_stochastic_depth_warms_up_1202_layers_for_10_epochs():
    changes = [(0, 0.01), (10, 0.1), (150, 0.01), (225, 0.001)]
    schedule = schedules.lr_stochastic_depth(300 * 1_407, warmup_steps=10 * 1_407)
    assert_table(schedule, paper_table(300, 1_407, changes))


@pytest.mark.parametrize("warmup_steps", [0, 20])
def test_cosine_rises_linearly_and_falls_along_half_a_cosine_to_zero(warmup_steps):
    rise = [0.7 * step / 20 for step in range(warmup_steps)]
    fall = [0.35 * (1 + math.cos(math.pi * step / (100 - warmup_steps))) for step in range(101 - warmup_steps)]
    np.testing.assert_allclose(rates(schedules.cosine(100, 0.7, warmup_steps), range(101)), rise + fall, atol=1e-6)


def test_efficientnet_rises_for_5_epochs_and_falls_every_2_point_4():
    table = [(0, 0.0), (10, 0.0512), (49, 0.25088), (50, 0.256 * 0.97**2), (71, 0.256 * 0.97**2), (72, 0.256 * 0.97**3)]
    schedule = schedules.lr_efficientnet(10, 4_096)
    assert_table(schedule, [*table, (350 * 10 - 1, 0.256 * 0.97**145)])


def test_efficientnet_is_proportional_to_the_batch_and_works_without_warm_up():
    schedule = schedules.lr_efficientnet(10, 64, rate=0.02, warmup_epochs=0, decay_epochs=0.7, factor=0.2)
    assert_table(schedule, [(0, 0.005), (6, 0.005), (7, 0.001), (14, 0.0002)])


AFTER = keras.optimizers.schedules.PiecewiseConstantDecay([3, 6], [0.7, 0.2, 0.05])


def test_a_warm_up_rises_to_the_first_rate_of_the_next_schedule():
    expected = [0.7 * step / 4 for step in range(4)] + [0.7] * 4 + [0.2] * 3 + [0.05] * 2
    np.testing.assert_allclose(rates(WarmUp(4, AFTER), range(13)), expected, rtol=1e-6)


def test_a_warm_up_without_delay_overlaps_the_next_schedule():
    expected = [0.7 * step / 5 for step in range(5)] + [0.2] * 2 + [0.05] * 2
    np.testing.assert_allclose(rates(WarmUp(5, AFTER, delay=False), range(9)), expected, rtol=1e-6)


@pytest.mark.parametrize("delay", [True, False])
def test_a_warm_up_is_restored_from_its_config(delay):
    restored = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(WarmUp(4, AFTER, delay)))
    assert isinstance(restored, WarmUp)
    assert restored.get_config() == WarmUp(4, AFTER, delay).get_config()
    assert rates(restored, range(13)) == rates(WarmUp(4, AFTER, delay), range(13))


def test_the_registered_names_are_part_of_the_file_format():
    assert keras.saving.get_registered_name(WarmUp) == "keras_committee>WarmUp"
    assert keras.saving.get_registered_name(SequentialSchedule) == "keras_committee>SequentialSchedule"


def test_a_sequential_schedule_counts_from_the_start_of_its_second_part_and_is_restored_from_its_config():
    schedule = SequentialSchedule(0.3, 2, AFTER)
    expected = [0.3] * 2 + [0.7] * 4 + [0.2] * 3 + [0.05] * 2
    np.testing.assert_allclose(rates(schedule, range(11)), expected, rtol=1e-6)
    restored = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert rates(restored, range(11)) == rates(schedule, range(11))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.3, 0, AFTER), "steps must be above 0"), ((0.0, 2, AFTER), "rate must be above 0"),
     ((0.3, 2, 0.1), "after must be a Keras LearningRateSchedule")],
)  # fmt: skip
def test_invalid_arguments_of_a_sequential_schedule_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        SequentialSchedule(*arguments)


@pytest.mark.parametrize("rate", [0.3, AFTER])
def test_the_rate_of_an_optimizer_is_scaled_whether_it_is_a_number_or_a_schedule(rate):
    plain, scaled = keras.optimizers.SGD(rate), keras.optimizers.SGD(rate)
    schedules.scale_learning_rate(scaled, 0.25)
    for optimizer in (plain, scaled):
        optimizer.build([])
    for step in range(9):
        plain.iterations.assign(step)
        scaled.iterations.assign(step)
        np.testing.assert_allclose(float(scaled.learning_rate), 0.25 * float(plain.learning_rate), rtol=1e-6)


def test_a_factor_of_the_rate_must_be_above_0():
    with pytest.raises(ValueError, match=r"factor must be above 0\. Received: factor=0"):
        schedules.scale_learning_rate(keras.optimizers.SGD(0.1), 0)


def test_a_warm_up_drives_a_compiled_training_step():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(WarmUp(2, AFTER)), loss=lambda _, output: keras.ops.mean(output))
    for _ in range(4):  # rates 0, 0.35, 0.7, 0.7 against a gradient of 1
        model.train_on_batch(np.ones((1, 1)), np.ones((1, 1)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.kernel), [[-1.75]], rtol=1e-6)


def optimizer_rates(optimizer, steps):
    """Return the rates of an optimizer after setting `iterations` to each step."""
    found = []
    for step in steps:
        optimizer.iterations.assign(step)
        found.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    return found


@pytest.mark.parametrize(
    "schedule", [schedules.lr_wide_resnet(100), schedules.cosine(100, 0.7, 20), schedules.lr_efficientnet(7, 256)]
)
def test_the_rate_depends_only_on_the_iterations(schedule):
    steps = [0, 61, 20, 99, 3, 61]
    assert optimizer_rates(keras.optimizers.SGD(schedule), steps) == rates(schedule, steps)


def recipe_optimizer(name, steps, *overrides):
    file = RecipeFile.read(RECIPES / f"{name}.py")
    return file.build(file.resolve(list(overrides))).optimizer(steps)


def assert_equal_around(boundaries, optimizer, schedule, last):
    """Check that the optimizer has exactly the rates of a Keras schedule around its boundaries."""
    edges = [0, *boundaries, last]
    steps = sorted({step for edge in edges for step in (edge - 1, edge, edge + 1) if step >= 0})
    assert optimizer_rates(optimizer, steps) == rates(schedule, steps)


@pytest.mark.parametrize("epochs", [200, 60, 10])
def test_the_rates_of_the_wrn_recipe(epochs):
    steps = epochs * 351
    boundaries = [int(steps * part) for part in (0.3, 0.6, 0.8)]
    expected = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [0.1 * 0.2**drops for drops in range(4)])
    assert_equal_around(boundaries, recipe_optimizer("cifar_wrn", steps, f"epochs={epochs}"), expected, steps)


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(500, 0), (4, 0), (300, 10), (7, 2)])
def test_the_rates_of_the_stochastic_depth_recipe(epochs, warmup_epochs):
    steps = epochs * 351
    boundaries = [round(steps * warmup_epochs / epochs)] * (warmup_epochs > 0) + [
        round(steps * part) for part in (0.5, 0.75)
    ]
    values = [0.1 / 10] * (warmup_epochs > 0) + [0.1 * 0.1**drop for drop in range(3)]
    expected = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    optimizer = recipe_optimizer("cifar_stochastic_depth", steps, f"epochs={epochs}", f"warmup_epochs={warmup_epochs}")
    assert_equal_around(boundaries, optimizer, expected, steps)


@pytest.mark.parametrize("steps", [12 * 19, 5])
def test_the_rates_of_the_digits_recipe(steps):
    warmup_steps = steps // 10
    expected = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup_steps, warmup_target=0.1, warmup_steps=warmup_steps
    )
    assert_equal_around([warmup_steps, steps // 2], recipe_optimizer("digits_wrn", steps), expected, steps)


def test_the_triangle_rises_to_its_peak_and_falls_to_its_end():
    schedule = schedules.triangular(200, 2.0, peak=0.25, start=0.1, end=0.05)
    steps = [0, 1, 49, 50, 51, 120, 199, 200, 500]
    np.testing.assert_allclose(rates(schedule, steps), np.interp(steps, [0, 50, 200], [0.2, 2.0, 0.1]), rtol=1e-5)


def test_the_slow_weights_of_lookahead_count_more_from_period_to_period():
    lookahead = schedules.Lookahead(period=5, start=0.1, end=0.7, power=3.0)
    shares = {step: float(lookahead.share(keras.ops.convert_to_tensor(step), 20)) for step in range(1, 21)}
    expected = {step: 0.1 + 0.6 * (step / 20) ** 3 if step % 5 == 0 else 1.0 for step in range(1, 21)}
    assert shares == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True), keras.optimizers.Adam],
    ids=["SGD", "Adam"],
)
def test_a_multiplier_is_a_learning_rate_of_its_own(make):
    """Three steps equal those of optimizers with these rates; the first pattern that matches counts."""
    layers = [keras.layers.Dense(2, name="first"), keras.layers.Dense(2, name="second")]
    weights, start = [], []
    for layer in layers:
        layer.build((None, 3))
        weights += layer.trainable_variables
    start = [np.random.default_rng(index).normal(size=weight.shape) for index, weight in enumerate(weights)]
    gradients = [[np.cos(values * step) for values in start] for step in (1, 2, 3)]

    def train(optimizer, indices):
        chosen = [weights[index] for index in indices]
        for index in indices:
            weights[index].assign(start[index])
        if not optimizer.built:
            optimizer.build(chosen)
        for step in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(step[index], "float32") for index in indices], chosen)
        return [keras.ops.convert_to_numpy(weight) for weight in chosen]

    optimizer = make(0.01)
    optimizer.build(weights)
    schedules.multiply_learning_rates(optimizer, weights, {"first/bias": 64.0, "*/bias": 0.5})
    results = train(optimizer, range(4))
    for index, rate in enumerate([0.01, 0.64, 0.01, 0.005]):
        np.testing.assert_allclose(results[index], train(make(rate), [index])[0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"'\*/beta' matches no trainable weight. Received: first/kernel, first/bias"):
        schedules.multiply_learning_rates(optimizer, weights, {"*/beta": 2.0})
    with pytest.raises(ValueError, match=r"multiplier of 'first/bias' must be above 0"):
        schedules.multiply_learning_rates(optimizer, weights, {"first/bias": -1.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step_decay(-2, 0.1, (0.3,), 0.2), "steps must be above 0. Received: steps=-2"),
        (lambda: schedules.step_decay(10, 0.1, (), 0.2), r"ascending within \(0, 1\). Received: drops=\(\)"),
        (lambda: schedules.step_decay(10, 0.1, (0.7, 0.2), 0.2), r"ascending .* Received: drops=\(0.7, 0.2\)"),
        (lambda: schedules.step_decay(10, 0.1, (0.2, 0.2), 0.2), r"ascending .* Received: drops=\(0.2, 0.2\)"),
        (lambda: schedules.step_decay(10, 0.1, (0.2, 1.0), 0.2), r"ascending .* Received: drops=\(0.2, 1.0\)"),
        (lambda: schedules.step_decay(10, 0.1, (0.0, 0.2), 0.2), r"ascending .* Received: drops=\(0.0, 0.2\)"),
        (
            lambda: schedules.step_decay(10, 0.1, (0.3,), 1.0),
            r"factor must be above 0 and below 1. Received: factor=1.0",
        ),
        (lambda: schedules.lr_wide_resnet(0), "steps must be above 0. Received: steps=0"),
        (lambda: schedules.lr_wide_resnet(10, math.nan), "rate must be above 0. Received: rate=nan"),
        (
            lambda: schedules.lr_stochastic_depth(10, warmup_steps=6),
            "first drop, 5. Received: warmup_steps=6, steps=10",
        ),
        (lambda: schedules.lr_stochastic_depth(10, warmup_steps=-1), "first drop, 5. Received: warmup_steps=-1"),
        (lambda: schedules.cosine(10, 0.1, warmup_steps=10), "less than steps. Received: warmup_steps=10, steps=10"),
        (lambda: schedules.cosine(10, 0.1, warmup_steps=-1), "less than steps. Received: warmup_steps=-1"),
        (lambda: schedules.cosine(10, -0.1), "rate must be above 0. Received: rate=-0.1"),
        (lambda: schedules.lr_efficientnet(0, 256), "steps_per_epoch must be above 0. Received: steps_per_epoch=0"),
        (lambda: schedules.lr_efficientnet(10, 0), "batch_size must be above 0. Received: batch_size=0"),
        (lambda: schedules.lr_efficientnet(10, 8, decay_epochs=0), "decay_epochs must be above 0"),
        (lambda: schedules.lr_efficientnet(10, 8, factor=0.0), "factor must be above 0 and below 1"),
        (lambda: schedules.lr_efficientnet(10, 8, warmup_epochs=-1), "0 or more. Received: warmup_epochs=-1"),
        (lambda: schedules.triangular(0, 0.1), "steps must be above 0. Received: steps=0"),
        (lambda: schedules.triangular(10, 0.1, peak=1.0), "peak must be within"),
        (lambda: schedules.PiecewiseLinear([0, 3, 2], [0, 1, 2]), "steps must ascend from 0"),
        (lambda: schedules.PiecewiseLinear([0, 3], [0, 1, 2]), "steps must ascend from 0"),
        (lambda: schedules.Lookahead(period=0), "period must be above 0"),
        (lambda: schedules.Lookahead(end=1.0), r"must be in \[0, 1\)"),
        (lambda: WarmUp(0, AFTER), "steps must be 1 or more. Received: steps=0"),
        (lambda: WarmUp(3, 0.1), "LearningRateSchedule. Received: after=0.1"),
    ],
)
def test_an_invalid_argument_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
