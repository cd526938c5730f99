"""A fused network against the same network, layer by layer."""

import contextlib

import keras
import numpy as np
import pytest

from keras_committee import models
from keras_committee.kernels import batch_norm_kernels
from keras_committee.layers import BatchNormalization, QuickGELU, StochasticDepth
from keras_committee.layers.fusion import fused_layers

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or batch_norm_kernels() is None, reason="the kernels are TensorFlow's"
)
SHAPE = (8, 8, 4)


def pre_activation():
    """A residual block whose sum is normalized and read by the next block."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    for _ in range(2):
        branch = keras.layers.ReLU()(BatchNormalization()(x))
        x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same")(branch)])
    return keras.Model(image, keras.layers.Activation("relu")(BatchNormalization()(x)))


def stochastic_depth():
    branch = keras.Sequential([BatchNormalization(), keras.layers.ReLU(), keras.layers.Conv2D(4, 3, padding="same")])
    image = keras.Input(SHAPE)
    return keras.Model(image, StochasticDepth(branch, survival=1.0)(image))


def norm_read_twice():
    image = keras.Input(SHAPE)
    x = BatchNormalization()(image)
    return keras.Model(image, keras.layers.Concatenate()([keras.layers.ReLU()(x), x]))


def norm_is_output():
    image = keras.Input(SHAPE)
    x = BatchNormalization()(image)
    return keras.Model(image, [x, keras.layers.ReLU()(x)])


def shared_relu():
    image, relu = keras.Input(SHAPE), keras.layers.ReLU()
    return keras.Model(image, relu(BatchNormalization()(relu(BatchNormalization()(image)))))


def leaky():
    image = keras.Input(SHAPE)
    return keras.Model(image, keras.layers.ReLU(negative_slope=0.1)(BatchNormalization()(image)))


def quick_gelu():
    image = keras.Input(SHAPE)
    x = QuickGELU()(BatchNormalization(scale=False)(image))
    return keras.Model(image, BatchNormalization()(x))


def post_activation(survival=1.0):
    """Two blocks with a ReLU behind; the shortcut of the second one comes from that of the first."""
    x = image = keras.Input(SHAPE)
    for _ in range(2):
        branch = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same"), BatchNormalization()])
        x = keras.layers.ReLU()(StochasticDepth(branch, survival=survival)(x))
    return keras.Model(image, x)


def dropped():
    return post_activation(survival=0.0)


def frozen():
    model = pre_activation()
    for layer in model.layers:
        layer.trainable = not isinstance(layer, BatchNormalization)
    return model


def broadcast_sum():
    image = keras.Input(SHAPE)
    channel_mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    total = keras.layers.Add()([image, channel_mean])
    return keras.Model(image, keras.layers.Add()([total, keras.layers.ReLU()(BatchNormalization()(total))]))


def run(model, images, fuse):
    """Return outputs, gradients, statistics and the operations of a training step from fixed weights."""
    import tensorflow as tf

    rng = np.random.default_rng(4)
    blocks = [layer for layer in model._flatten_layers() if isinstance(layer, StochasticDepth)]
    survivals = [(block, block.survival) for block in blocks]
    for variable in model.weights:
        variable.assign(rng.uniform(0.4, 1.2, size=variable.shape))
    for block, survival in survivals:
        block.set_survival(survival)

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            with fused_layers(model) if fuse else contextlib.nullcontext():
                outputs = tf.nest.flatten(model(images, training=True))
            objective = tf.add_n([tf.reduce_sum(tf.cast(output, "float32") ** 2) for output in outputs])
        weights = [variable.value for variable in model.trainable_variables]
        return outputs, tape.gradient(objective, weights)

    results = tf.nest.map_structure(lambda tensor: tensor.numpy(), step(images))
    graph = step.get_concrete_function(images).graph
    return (*results, [variable.numpy() for variable in model.non_trainable_variables]), graph.get_operations()


# The networks, with the numbers of ReLUs and of kernels that add, of all kernels.
@pytest.mark.parametrize(
    ("build", "relus", "kernels", "adding"),
    [
        (pre_activation, 0, 3, 1),  # nothing but the last normalization reads the last sum
        (stochastic_depth, 0, 0, 0),
        (norm_read_twice, 1, 1, 0),
        (norm_is_output, 1, 1, 0),
        (shared_relu, 2, 2, 0),
        (leaky, 0, 1, 0),
        (quick_gelu, 0, 2, 0),
        (post_activation, 1, 0, 0),
        (dropped, 1, 0, 0),
        (frozen, 3, 0, 0),
        (broadcast_sum, 0, 1, 0),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fused_network_computes_what_its_layers_compute(build, relus, kernels, adding):
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = build()
    images = tf.constant(np.random.default_rng(7).normal(size=(6, *SHAPE)), "float32")
    plain, _ = run(model, images, False)
    fused, operations = run(model, images, True)
    for mine, expected in zip(tf.nest.flatten(fused), tf.nest.flatten(plain), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(expected).max()))
    adds = [operation.get_attr("N") for operation in operations if operation.type == "KerasCommitteeBatchNorm"]
    assert ([operation.type for operation in operations].count("Relu"), len(adds), sum(adds)) == (
        relus,
        kernels,
        adding,
    )
    assert "_run_through_graph" not in vars(model)


def test_all_norms_of_a_wide_resnet_are_fused():
    import tensorflow as tf

    model = models.wide_resnet(16, 1, classes=3, image_shape=(8, 8, 3))
    images = tf.zeros((2, 8, 8, 3))

    @tf.function
    def predict(images):
        with fused_layers(model):
            return model(images, training=True)

    operations = predict.get_concrete_function(images).graph.get_operations()
    norms = [operation for operation in operations if operation.type == "KerasCommitteeBatchNorm"]
    assert len(norms) == 13
    assert [operation.get_attr("N") for operation in norms].count(1) == 3  # a projection reads three of six sums
    assert not [operation for operation in operations if operation.type == "Relu"]
