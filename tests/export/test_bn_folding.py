"""Normalizations are removed where they can be folded and stay elsewhere, with the outputs of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from committees import stir
from test_inference_model import assert_like_keras, norm, small, traced

from keras_committee import models
from keras_committee.export.bn_folding import MAX_OFFSET

relu, add = keras.layers.ReLU, keras.layers.Add


def conv(filters=4, size=3, **arguments):
    return keras.layers.Conv2D(filters, size, padding="same", **arguments)


def chain(x, *layers):
    for layer in layers:
        x = layer(x)
    return x


def block(x, *between):
    """Apply a pre-activation block without a normalization inside."""
    return add()([x, chain(x, norm(), *(between or [relu()]), conv())])


def count_norms(layers):
    return assert_like_keras(small(layers)).count("FusedBatchNormV3")


@pytest.mark.parametrize(
    ("left", "layers"),
    [
        (0, lambda x: relu()(norm()(block(block(block(conv()(x))))))),
        (0, lambda x: relu()(norm()(block(block(conv(use_bias=False)(x)))))),
        (0, lambda x: chain(block(conv()(x)), norm(), keras.layers.Activation("relu"), conv())),
        (0, lambda x: chain(block(conv()(x)), norm(), relu(negative_slope=0.1), keras.layers.MaxPooling2D(2), conv())),
        (0, lambda x: chain(block(conv()(x)), norm(), relu(), keras.layers.DepthwiseConv2D(3))),
        (0, lambda x: chain(block(conv()(x)), norm(), keras.layers.Dropout(0.5), keras.layers.Dense(3))),
        (1, lambda x: block(conv()(x), relu(6.0))),
        (1, lambda x: block(conv()(x), keras.layers.Activation("gelu"))),
        (1, lambda x: chain(block(conv()(x)), norm(), relu(), conv(4, groups=2))),
        (1, lambda x: norm()(add()([relu()(conv()(x)), keras.layers.Activation("tanh")(conv()(x))]))),
        (1, lambda x: add()([block(y := conv()(x)), conv()(y)])),
        (1, lambda x: add()([block(y := conv()(x)), keras.layers.Activation("tanh")(y)])),
    ],
    ids=[
        "three blocks", "a stem without bias", "activation", "leaky and pooled", "depthwise", "dropout and dense",
        "capped", "gelu", "groups", "a sum without convolutions", "read by a convolution", "read by tanh",
    ],
)  # fmt: skip
def test_a_normalization_is_removed_if_the_layers_around_it_can_compute_it(left, layers):
    assert count_norms(layers) == left


def set_weight(model, index, weight, value):
    """Set channel 2 of `weight` of normalization number `index` to `value`."""
    layer = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][index]
    values = keras.ops.convert_to_numpy(getattr(layer, weight)).copy()
    values[2] = value
    getattr(layer, weight).assign(values)


@pytest.mark.parametrize(
    ("weight", "value", "left"),
    [("gamma", -0.7, 1), ("gamma", 0.0, 1), ("beta", 3 * MAX_OFFSET, 1), ("gamma", 0.7, 0)],
)
def test_a_scale_of_0_or_less_and_a_large_offset_keep_their_normalization(weight, value, left):
    model = small(lambda x: relu()(norm()(block(block(conv()(x))))))
    stir(model, 3)
    set_weight(model, 1, weight, value)
    images = np.random.default_rng(7).uniform(0, 255, (3, 8, 8, 3)).astype(np.float32)
    function = traced(model)[1]
    np.testing.assert_allclose(function(tf.constant(images)), model(images), rtol=1e-5, atol=1e-5)
    assert [node.type for node in function.graph.get_operations()].count("FusedBatchNormV3") == left


@pytest.mark.parametrize("leaky", [relu(negative_slope=0.1), keras.layers.LeakyReLU(0.1)], ids=["ReLU", "LeakyReLU"])
def test_a_leaky_relu_behind_a_sum_keeps_its_slope(leaky):
    assert_like_keras(small(lambda x: chain(add()([y := conv()(x), conv()(relu()(y))]), leaky, conv())))


def test_tensorflow_fuses_every_convolution_of_a_wide_residual_network_with_what_follows_it(tmp_path):
    model = models.wide_resnet(16, 1, classes=4, image_shape=(8, 8, 3))
    stir(model, 5)
    network, function = traced(model)
    fused = [node for node in optimized(network, function, tmp_path) if "FusedConv2D" in node.op]
    # 13 convolutions and 2 projections; a sum is fused into its branch, not into the projection.
    assert len(fused) == 13
    assert sum("Relu" in str(node.attr["fused_ops"].list.s) for node in fused) >= 6


def optimized(network, function, folder):
    """Return the nodes that TensorFlow runs when a session calls `function`."""
    module, metadata = tf.Module(), tf.compat.v1.RunMetadata()
    module.network_variables = network.variables(function.graph.variables)
    tf.saved_model.save(module, str(folder), signatures=function)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = loaded.signature_def["serving_default"]
        (image,), (logits,) = signature.inputs.values(), signature.outputs.values()
        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        session.run(logits.name, {image.name: np.zeros((2, 8, 8, 3))}, options=options, run_metadata=metadata)
    return [node for graph in metadata.partition_graphs for node in graph.node]
