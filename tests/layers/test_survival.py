"""Survival schedules against the tables of their sources."""

import keras
import numpy as np
import pytest

from keras_committee import layers, models
from keras_committee.layers.survival import survival_schedule


def test_linear_decay_starts_below_one_and_ends_at_the_last():
    assert layers.linear_decay(4, 0.2) == pytest.approx((0.8, 0.6, 0.4, 0.2))
    assert layers.linear_decay(54, 0.5)[0] == pytest.approx(0.9907, abs=5e-5)
    assert layers.linear_decay(54, 0.5)[-1] == 0.5


@pytest.mark.parametrize(("blocks", "depth"), [(54, 40.25), (75, 56.0), (600, 449.75)])
def test_linear_decay_has_the_expected_depth_of_the_paper(blocks, depth):
    assert sum(layers.linear_decay(blocks, 0.5)) == pytest.approx(depth)


@pytest.mark.parametrize(
    ("schedule", "table"),
    [
        (layers.constant_survival(3, 0.7), (0.7, 0.7, 0.7)),
        (layers.survival_timm_linear(5, 0.2), (1.0, 0.8, 0.6, 0.4, 0.2)),
        (layers.survival_timm_linear(1, 0.2), (1.0,)),
        (layers.survival_keras_efficientnet(4, 0.2), (1.0, 0.8, 0.6, 0.4)),
        # rate 0.8 of the last stage: 0.8 * (2, 3, 4, 5) / 5
        (layers.survival_model_garden_resnet((1, 2, 1, 1), 0.2), (0.68, 0.52, 0.52, 0.36, 0.2)),
    ],
)
def test_schedules_of_other_libraries_are_their_tables(schedule, table):
    assert schedule == pytest.approx(table)


def test_expected_depths_differ_between_the_libraries():
    assert sum(layers.survival_timm_linear(54, 0.5)) == pytest.approx(40.5)
    assert sum(layers.survival_keras_efficientnet(54, 0.5)) == pytest.approx(40.75)


def test_the_keras_efficientnet_schedule_is_that_of_the_keras_model():
    network = keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3))
    rates = [layer.rate for layer in network.layers if layer.name.endswith("_drop")]
    numbers = [1, 3, 5, 6, 8, 9, 11, 12, 13, 15]  # blocks whose shape stays have a shortcut, of 16
    expected = [layers.survival_keras_efficientnet(16, 0.8)[number - 1] for number in (3, 5, 7, 8, 10, 11, 13, 14, 15)]
    assert len(numbers) > len(rates)
    np.testing.assert_allclose([1 - rate for rate in rates], expected, rtol=1e-6)


def test_a_schedule_requires_one_probability_for_each_block():
    with pytest.raises(ValueError, match=r"one probability for each of 3 blocks\. Received: 2"):
        survival_schedule(3, [0.2, 0.7])
    with pytest.raises(ValueError, match=r"a probability in \[0, 1\]. Received: survival=1.2"):
        survival_schedule(3, 1.2)
    with pytest.raises(ValueError, match=r"at least one block\. Received: num_blocks=0"):
        layers.linear_decay(0, 0.5)


def test_a_linear_schedule_decreases_in_equal_steps_and_stays():
    schedule = layers.linear_schedule(1.0, 0.2, epochs=4)
    assert [schedule(epoch) for epoch in (0, 1, 4, 9)] == pytest.approx([1.0, 0.8, 0.2, 0.2])


def test_set_survival_takes_the_last_block_or_all_blocks():
    network = models.resnet(8, classes=3, image_shape=(8, 8, 3), survival=0.5)
    layers.set_survival(network, 0.2)
    assert [block.survival for block in layers.stochastic_depth_blocks(network)] == pytest.approx(
        layers.linear_decay(3, 0.2)
    )
    layers.set_survival(network, [1.0, 0.7, 0.0])
    assert layers.expected_depth(network) == pytest.approx(1.7)


def test_blocks_are_listed_in_the_order_of_the_layers_including_nested_ones():
    def block(name, branch=None):
        return layers.StochasticDepth(branch or keras.layers.Dense(3), survival=0.7, name=name)

    inner = keras.Sequential([keras.Input((3,)), block("b"), block("c", keras.Sequential([block("d")]))])
    model = keras.Sequential([keras.Input((3,)), block("a"), inner, block("e")])
    assert [layer.name for layer in layers.stochastic_depth_blocks(model)] == ["a", "b", "c", "d", "e"]
