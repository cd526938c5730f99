"""Residual networks: the size, blocks and shortcuts of the papers."""

import importlib

import keras
import numpy as np
import pytest

from keras_committee import flops, layers, models


def cifar_count(depth, classes=10):
    """Parameters and multiply-adds of the option-A network, one convolution after the other."""
    n = (depth - 2) // 6
    parameters, products, channels, size = 3 * 9 * 16 + 2 * 16, 32 * 32 * 27 * 16, 16, 32
    for group in range(3):
        filters, size = 16 * 2**group, 32 // 2**group
        for _ in range(n):
            for inputs in (channels, filters):
                parameters += 9 * inputs * filters + 2 * filters
                products += size * size * 9 * inputs * filters
            channels = filters
    return parameters + (channels + 1) * classes, products + channels * classes


@pytest.mark.parametrize("depth", [20, 56])
def test_size_and_cost_are_those_of_the_layers(depth):
    network = models.resnet(depth, classes=10)
    assert (flops.parameters(network), flops.multiply_adds(network)) == cifar_count(depth)


def test_the_counts_are_the_published_ones():
    assert cifar_count(110)[0] == pytest.approx(1.73e6, rel=0.002)
    assert cifar_count(110)[1] == pytest.approx(252.9e6, rel=0.0005)
    assert cifar_count(1202)[0] == pytest.approx(19.42e6, rel=0.001)
    assert cifar_count(1202)[1] == pytest.approx(2829e6, rel=0.0005)


def test_bottleneck_networks_have_the_published_size():
    network = models.resnet_imagenet(50, survival=0.5)
    assert flops.parameters(network) == 25_557_032
    assert flops.multiply_adds(network) == pytest.approx(4.09e9, rel=0.001)
    assert len(layers.stochastic_depth_blocks(network)) == 16
    assert sum((3, 8, 36, 3)) == 50  # blocks of depth 152


@pytest.mark.slow
def test_resnet_110_has_the_size_expected_depth_and_saving_of_the_paper():
    network = models.resnet(110, classes=10, survival=0.5)
    assert (flops.parameters(network), flops.multiply_adds(network)) == cifar_count(110)
    assert layers.expected_depth(network) == pytest.approx(40.25)
    assert flops.expected_flops_reduction(network) == pytest.approx(0.254, abs=0.001)


def test_a_dropped_network_is_its_stem_pooled_and_padded():
    network = models.resnet(8, classes=5, image_shape=(8, 8, 3), survival=[0.0, 0.0, 0.0])
    images = np.random.default_rng(0).uniform(0, 255, size=(2, 8, 8, 3)).astype("float32")
    stem = keras.Model(network.input, network.get_layer("block_1").input)
    dense = network.get_layer("logits")
    x = keras.ops.convert_to_numpy(stem(images))
    for _ in range(2):
        x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3]).mean(axis=(2, 4))
        x = np.concatenate([x, np.zeros_like(x)], axis=-1)
    expected = keras.ops.convert_to_numpy(dense(x.mean(axis=(1, 2))))
    for training in (True, False):
        logits = network(images) if not training else layer_outputs_in_training(network, images)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(logits), expected, atol=2e-4)


def layer_outputs_in_training(network, images):
    """Logits in training mode, with the batch normalization of the stem in inference mode."""
    for layer in network.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    return network(images, training=True)


@pytest.mark.parametrize("build", [models.resnet, models.wide_resnet])
def test_survival_changes_nothing_else_in_the_network(build):
    arguments = {models.resnet: (8,), models.wide_resnet: (10, 1)}[build]
    plain = build(*arguments, classes=3, image_shape=(8, 8, 3), l2=0.01)
    stochastic = build(*arguments, classes=3, image_shape=(8, 8, 3), l2=0.01, survival=1.0)
    assert flops.parameters(stochastic) == flops.parameters(plain)
    assert len(layers.stochastic_depth_blocks(stochastic)) == 3
    plain.set_weights(models.fold_stochastic_depth(stochastic).get_weights())
    images = np.random.default_rng(0).uniform(0, 255, size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(stochastic(images)), keras.ops.convert_to_numpy(plain(images)), atol=1e-4
    )


def test_l2_applies_to_every_trainable_weight():
    network = models.resnet(8, classes=3, image_shape=(8, 8, 3), l2=0.02, survival=0.5)
    squares = sum((keras.ops.convert_to_numpy(weight) ** 2).sum() for weight in network.trainable_variables)
    assert keras.ops.convert_to_numpy(sum(network.losses)) == pytest.approx(0.02 * squares, rel=1e-5)


def test_a_file_restores_the_network(tmp_path):
    network = models.resnet(14, classes=3, image_shape=(8, 8, 3), survival=0.5, mode="sample")
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    images = np.random.default_rng(0).uniform(0, 255, size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(loaded(images)), keras.ops.convert_to_numpy(network(images))
    )
    assert [block.survival for block in layers.stochastic_depth_blocks(loaded)] == [
        block.survival for block in layers.stochastic_depth_blocks(network)
    ]


@pytest.mark.parametrize(
    ("depth", "limit", "nested"),
    [
        (26, 7, ["blocks_1_to_7", "blocks_8_to_12"]),
        pytest.param(206, 100, ["blocks_1_to_100", "blocks_101_to_102"], marks=pytest.mark.slow),
    ],
)
def test_more_blocks_than_one_model_can_hold_are_nested_in_models(depth, limit, nested, monkeypatch):
    module = importlib.import_module("keras_committee.models.resnet")  # `models.resnet` is the function
    monkeypatch.setattr(module, "_MAX_BLOCKS_PER_MODEL", limit)
    network = models.resnet(depth, classes=10, image_shape=(4, 4, 3), survival=0.5)
    assert [layer.name for layer in network.layers if isinstance(layer, keras.Model)] == nested
    blocks = layers.stochastic_depth_blocks(network)
    assert [block.name for block in blocks] == [f"block_{index + 1}" for index in range(len(blocks))]
    assert flops.parameters(network) == cifar_count(depth)[0]
    assert layers.expected_depth(network) == pytest.approx((3 * len(blocks) - 1) / 4, abs=1e-3)


def test_an_impossible_depth_is_refused():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 with n >= 1. Received: depth=21"):
        models.resnet(21, classes=10)
    with pytest.raises(ValueError, match=r"depth must be one of 50, 101, 152. Received: depth=34"):
        models.resnet_imagenet(34)
    with pytest.raises(ValueError, match=r"one probability for each of 3 blocks\. Received: 2"):
        models.resnet(8, classes=10, survival=[0.2, 0.7])
