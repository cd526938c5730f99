"""The folded graph computes the outputs of Keras with fewer operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from committees import stir

from keras_committee import models
from keras_committee.export.inference_model import InferenceModel
from keras_committee.export.layer_precision import compute_in_float32
from keras_committee.layers import StochasticDepth


def traced(model):
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    network = InferenceModel(model, "member")
    return network, tf.function(network.__call__, input_signature=[spec], autograph=False).get_concrete_function()


def assert_like_keras(model, seed=5):
    stir(model, seed)
    images = np.random.default_rng(seed).uniform(0, 255, (3, *model.inputs[0].shape[1:])).astype(np.float32)
    _, function = traced(model)
    expected = keras.ops.convert_to_numpy(model(images, training=False)).astype(np.float32)
    np.testing.assert_allclose(function(tf.constant(images)), expected, rtol=1e-5, atol=1e-5)
    return [node.type for node in function.graph.get_operations()]


def small(layers, shape=(8, 8, 3)):
    image = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = layers(x)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def norm(**arguments):
    return keras.layers.BatchNormalization(**arguments)


def test_a_wide_residual_network_keeps_no_normalization():
    types = assert_like_keras(models.wide_resnet(10, 1, classes=4, image_shape=(8, 8, 3)))
    assert types.count("Conv2D") == 9
    assert "FusedBatchNormV3" not in types


def test_stochastic_depth_is_removed():
    types = assert_like_keras(models.wide_resnet(10, 1, classes=4, image_shape=(8, 8, 3), survival=0.6))
    assert {"If", "StatelessIf", "RandomUniform"}.isdisjoint(types)


@pytest.mark.parametrize("mode", ["batch", "sample", "subset"])
def test_stochastic_depth_that_cannot_be_folded_runs_as_in_keras(mode):
    def blocks(x):
        x = StochasticDepth(keras.Sequential([keras.layers.Conv2D(3, 3, padding="same"), norm()]), survival=0.9)(x)
        inside = keras.Sequential([keras.layers.Conv2D(3, 3, padding="same"), keras.layers.ReLU()])
        return StochasticDepth(inside, survival=0.7, mode=mode)(x)

    types = assert_like_keras(small(blocks))
    assert not [name for name in types if "Random" in name or "Assign" in name]


def test_a_residual_network_folds_all_its_normalizations():
    types = assert_like_keras(models.resnet(8, classes=4, image_shape=(8, 8, 3)))
    assert "FusedBatchNormV3" not in types
    assert types.count("BiasAdd") == types.count("Conv2D") + 1


@pytest.mark.parametrize(
    "layers",
    [
        lambda x: norm(scale=False)(keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=True)(x)),
        lambda x: norm(center=False)(keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
        lambda x: norm(axis=1)(keras.layers.Conv2D(4, 3)(x)),
        lambda x: norm()(keras.layers.Conv2D(4, 3, activation="relu")(x)),
        lambda x: norm()(keras.layers.Dense(4)(x)),
        lambda x: norm()(keras.layers.SeparableConv2D(4, 3)(x)),
        lambda x: norm()(keras.layers.Conv2D(6, 3, groups=3, dilation_rate=2)(x)),
        lambda x: keras.Sequential([keras.layers.Conv2D(4, 3), norm(), keras.layers.Dropout(0.5)])(x),
    ],
    ids=["strided", "depthwise", "other axis", "activation between", "dense", "separable", "grouped", "sequential"],
)
def test_every_kind_of_layer_before_a_normalization_computes_the_outputs_of_keras(layers):
    assert_like_keras(small(layers))


def test_a_convolution_with_other_readers_and_layers_called_twice_are_not_folded():
    def branches(x):
        once = keras.layers.Conv2D(3, 3, padding="same")
        both, shared = once(x), norm()
        again = once(keras.layers.ReLU()(both))
        return keras.layers.Add()([shared(both), shared(again), both])

    assert_like_keras(small(branches))


def test_models_within_models_are_folded_too():
    inside = keras.Input((8, 8, 3))
    nested = keras.Model(inside, norm()(keras.layers.Conv2D(3, 3, padding="same")(inside)), name="nested")
    types = assert_like_keras(small(lambda x: nested(keras.layers.ReLU()(nested(x)))))
    assert {"FusedBatchNormV3", "Rsqrt"}.isdisjoint(types)


def test_a_member_trained_in_bfloat16_is_served_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(lambda x: norm()(keras.layers.Conv2D(4, 3)(x)))
    compute_in_float32(model)
    types = assert_like_keras(model)
    assert "FusedBatchNormV3" not in types


# The layers whose recorded default is training=True, with the arguments that they require.
AUGMENTATIONS = {
    "AugMix": {}, "AutoContrast": {}, "CutMix": {}, "MixUp": {}, "RandAugment": {},
    "CenterCrop": {"height": 8, "width": 8}, "Resizing": {"height": 8, "width": 8},
    "RandomBrightness": {"factor": 0.3}, "RandomColorDegeneration": {"factor": 0.3}, "RandomColorJitter": {},
    "RandomContrast": {"factor": 0.3}, "RandomCrop": {"height": 8, "width": 8}, "RandomElasticTransform": {},
    "RandomErasing": {}, "RandomFlip": {}, "RandomGaussianBlur": {}, "RandomGrayscale": {},
    "RandomHue": {"factor": 0.2}, "RandomInvert": {}, "RandomPerspective": {}, "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.2}, "RandomSaturation": {"factor": 0.2}, "RandomSharpness": {"factor": 0.2},
    "RandomShear": {"x_factor": 0.2}, "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2}, "Solarization": {"addition_factor": 0.2},
}  # fmt: skip


def test_every_augmentation_layer_of_keras_is_exported_as_keras_predicts():
    layers = [getattr(keras.layers, name)(**arguments) for name, arguments in AUGMENTATIONS.items()]
    recorded = []

    def augment(x):
        for layer in layers:
            x = layer(x)
            recorded.append(layer._inbound_nodes[0].arguments.kwargs["training"])
        return x

    types = assert_like_keras(small(augment))
    assert recorded == [True] * len(AUGMENTATIONS)
    assert "AssignVariableOp" not in types


@keras.saving.register_keras_serializable(package="tests")
class FlipInside(keras.layers.Layer):
    """Has no argument `training`, so its inner layer depends on the mode of the model around it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flip = keras.layers.RandomFlip(seed=3)

    def call(self, inputs):
        return self.flip(inputs)


@pytest.mark.parametrize(
    "layers",
    [
        lambda x: keras.layers.GaussianNoise(0.1)(x, training=True),
        lambda x: norm()(keras.layers.Conv2D(4, 3)(x, training=True), training=True),
        lambda x: norm(axis=1)(keras.layers.ReLU(negative_slope=0.2)(x, training=True), training=True),
        lambda x: keras.layers.Pipeline([keras.layers.RandomFlip(seed=3), keras.layers.RandomRotation(0.2)])(x),
        lambda x: keras.Sequential([keras.layers.RandomFlip(seed=3), keras.layers.RandomRotation(0.2)])(x),
        lambda x: FlipInside()(x),
    ],
    ids=["noise", "linear and norm", "affine", "pipeline", "sequential", "inside a layer"],
)
def test_a_training_mode_in_the_graph_is_replaced_by_inference_as_in_keras(layers):
    assert_like_keras(small(layers))


def test_the_variables_are_those_that_the_graph_reads_each_once():
    model = models.wide_resnet(10, 1, classes=4, image_shape=(8, 8, 3))
    stir(model, 5)
    network, function = traced(model)
    variables = network.variables(function.graph.variables)
    # 9 kernels, biases of the stem, of the first convolutions and of those that a sum reads, and the 2 of the logits
    assert len(variables) == len(set(map(id, variables.values()))) == 9 + 1 + 3 + 3 + 2
    assert all(name.startswith("member/") for name in variables)
