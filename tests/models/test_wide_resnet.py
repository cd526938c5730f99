"""Wide residual networks: the size and layers of the paper."""

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.models import resnet, wide_resnet


def by_hand(depth, width, classes=10):
    """Parameters and multiply-adds of WRN-depth-width on 32x32x3, layer by layer."""
    weights, products = 3 * 3 * 3 * 16, 32 * 32 * 3 * 3 * 3 * 16
    before, size = 16, 32
    for group in range(3):
        channels = 16 * width * 2**group
        size = (32, 16, 8)[group]
        for _ in range((depth - 4) // 6):
            project = before * channels * (before != channels)
            kernels = 3 * 3 * before * channels + 3 * 3 * channels * channels + project
            weights += kernels + 2 * before + 2 * channels
            products += size * size * kernels
            before = channels
    return weights + 2 * before + before * classes + classes, products + before * classes


@pytest.mark.parametrize(
    ("width", "millions", "mega"), [(1, 0.175, 26.7), (2, 0.692, 101.1), (4, 2.749, 392.6), (8, 10.961, 1548.1)]
)
def test_parameters_and_multiply_adds_are_those_of_the_paper(width, millions, mega):
    model = wide_resnet(16, width, classes=10)
    expected = by_hand(16, width)
    assert (flops.parameters(model), flops.multiply_adds(model)) == expected
    assert (round(expected[0] / 1e6, 3), round(expected[1] / 1e6, 1)) == (millions, mega)


@pytest.mark.parametrize(
    ("build", "fan"),
    [(lambda: wide_resnet(10, 2, classes=7), 3), (lambda: resnet(8, classes=7), 2)],
    ids=["WRN over the fan-out", "ResNet over the fan-in"],
)
def test_convolutions_have_he_s_normal_initialization(build, fan):
    kernels = [weight for weight in build().trainable_variables if weight.shape[:2] == (3, 3)]
    ratios = {kernel.path: float(keras.ops.std(kernel)) * (9 * kernel.shape[fan] / 2) ** 0.5 for kernel in kernels}
    assert len(ratios) >= 7
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), rel=0.1)


def test_the_counts_follow_depth_and_classes():
    model = wide_resnet(22, 3, classes=7)
    assert (flops.parameters(model), flops.multiply_adds(model)) == by_hand(22, 3, classes=7)


def test_the_input_is_raw_pixels_and_the_output_float32_logits():
    model = wide_resnet(10, 2, classes=7, image_shape=(20, 12, 1), mean=30.0, std=70.0)
    assert (model.inputs[0].name, model.inputs[0].dtype, model.input_shape) == ("image", "float32", (None, 20, 12, 1))
    assert (model.outputs[0].dtype, model.output_shape, model.name) == ("float32", (None, 7), "wrn_10_2")
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 12, 1)).astype("float32")
    assert model(images[:3]).shape == (3, 7)
    assert model(images[:1]).shape == (1, 7)


def test_pixels_are_normalized_per_channel():
    model = wide_resnet(10, 1, classes=2, image_shape=(4, 4, 2), mean=(100.0, 7.0), std=(50.0, 3.0))
    pixels = np.full((1, 4, 4, 2), (200.0, 1.0), "float32")
    normalized = keras.ops.convert_to_numpy(model.get_layer("normalize")(pixels))
    np.testing.assert_allclose(normalized[0, 0, 0], [2.0, -2.0], rtol=1e-5)


def test_mixed_precision_computes_in_bfloat16_and_returns_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = wide_resnet(10, 1, classes=3)
    dtypes = {layer.compute_dtype for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    assert dtypes == {"bfloat16"}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.backend.standardize_dtype(model(np.ones((2, 32, 32, 3))).dtype) == "float32"


def test_l2_applies_to_every_trainable_weight():
    model = wide_resnet(10, 2, classes=3, l2=0.007)
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.weights])
    squares = sum(
        float((keras.ops.convert_to_numpy(w.value).astype("float64") ** 2).sum()) for w in model.trainable_weights
    )
    penalty = keras.ops.convert_to_numpy(sum(model.losses))
    np.testing.assert_allclose(penalty, 0.007 * squares, rtol=1e-5)
    assert len(model.losses) == len(model.trainable_weights)
    assert wide_resnet(10, 1, classes=3).losses == []


def test_kernels_are_not_truncated():
    model = wide_resnet(10, 8, classes=3)
    kernel = model.get_layer(index=-6).kernel  # the last convolution: 512 filters
    values = keras.ops.convert_to_numpy(kernel.value)
    assert values.shape == (3, 3, 512, 512)
    assert values.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert np.abs(values).max() > 4 * values.std()  # not truncated


def test_dropout_is_between_the_convolutions_after_the_relu():
    kinds = [type(layer).__name__ for layer in wide_resnet(10, 1, classes=3, dropout=0.3).layers]
    index = kinds.index("Dropout")
    assert kinds[index - 3 : index + 2] == ["Conv2D", "BatchNormalization", "ReLU", "Dropout", "Conv2D"]
    assert kinds.count("Dropout") == 3
    assert "Dropout" not in [type(layer).__name__ for layer in wide_resnet(10, 1, classes=3).layers]


def test_the_projection_takes_the_pre_activated_input():
    model = wide_resnet(10, 2, classes=3)
    projections = [layer for layer in model.layers if getattr(layer, "kernel_size", None) == (1, 1)]
    assert len(projections) == 3
    assert {type(layer.input._keras_history.operation) for layer in projections} == {keras.layers.ReLU}


def test_batch_normalization_has_the_momentum_and_epsilon_of_the_reference():
    norms = [x for x in wide_resnet(10, 1, classes=3).layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}


def test_a_saved_model_predicts_as_before(tmp_path):
    model = wide_resnet(10, 1, classes=3, l2=1e-4, dropout=0.2, image_shape=(8, 8, 3))
    model.save(tmp_path / "member.keras")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "member.keras")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))


@pytest.mark.parametrize(("depth", "below", "above"), [(15, 10, 16), (20, 16, 22), (4, 10, 16), (-7, 10, 16)])
def test_for_an_impossible_depth_the_nearest_are_suggested(depth, below, above):
    with pytest.raises(ValueError, match=rf"6N \+ 4 with N >= 1\. Received: depth={depth}\. Nearest: {below}, {above}"):
        wide_resnet(depth, 1, classes=3)


@pytest.mark.parametrize(("width", "classes"), [(0, 3), (2, 0)])
def test_an_impossible_width_or_number_of_classes_is_refused(width, classes):
    with pytest.raises(ValueError, match=rf"must be at least 1\. Received: width={width}, classes={classes}"):
        wide_resnet(10, width, classes=classes)


def test_pixel_statistics_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"one for each of the 1 channels\. Received: mean=\(125\.3"):
        wide_resnet(10, 1, classes=3, image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match=r"std must be above 0\. Received: std=0\.0"):
        wide_resnet(10, 1, classes=3, std=0.0)


def test_a_strided_stem_computes_an_image_of_twice_the_size_at_the_cost_of_the_smaller_one():
    small, large = (
        wide_resnet(10, 2, classes=7, image_shape=(size, size, 3), stem_stride=stride)
        for size, stride in ((32, 1), (64, 2))
    )
    assert (flops.parameters(large), flops.multiply_adds(large)) == (
        flops.parameters(small), flops.multiply_adds(small)
    )  # fmt: skip
