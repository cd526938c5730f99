"""EfficientNet: the published size, and the outputs of Keras' own network with its weights."""

import keras
import numpy as np
import pytest

from keras_committee import flops
from keras_committee.errors import DataError
from keras_committee.layers import StochasticDepth, linear_decay, stochastic_depth_blocks
from keras_committee.models import (
    efficientnet,
    efficientnet_resolution,
    fold_stochastic_depth,
    from_keras_efficientnet,
    pretrained_efficientnet,
)

# Millions of parameters as published with 1,000 classes; billions of multiply-adds of the same table.
PUBLISHED = [
    ("b0", 5.3, 0.39), ("b1", 7.8, 0.70), ("b2", 9.2, 1.0), ("b3", 12, 1.8),
    ("b4", 19, 4.2), ("b5", 30, 9.9), ("b6", 43, 19), ("b7", 66, 37),
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """Keras' B0 for images of 64 pixels, with random weights and moving statistics."""
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=7)
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Normalization):
            weights = layer.get_weights()  # weights of a batch normalization are vectors and stay near 1
            layer.set_weights([rng.normal(0 if w.ndim > 1 else 1, 0.1, w.shape) for w in weights])
    return model


def logits_of(model, images):
    model.layers[-1].activation = keras.activations.linear
    return keras.ops.convert_to_numpy(model(images))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "millions", "billions"), PUBLISHED)
def test_parameters_and_multiply_adds_are_those_published(variant, millions, billions):
    model = efficientnet(variant, survival=None)
    assert model.input_shape == (None, *[efficientnet_resolution(variant)] * 2, 3)
    assert flops.parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert flops.multiply_adds(model) / 1e9 == pytest.approx(billions, rel=0.06)


@pytest.mark.parametrize(
    "options",
    [
        {"survival": None},
        *(pytest.param(o, marks=pytest.mark.slow) for o in ({"scaling": "training"}, {"survival": 1.0})),
    ],
)
def test_parameters_and_logits_are_those_of_keras_with_its_weights(theirs, images, options):
    ours = from_keras_efficientnet(theirs, "b0", image_size=64, **options)
    assert flops.parameters(ours) == sum(int(np.prod(weight.shape)) for weight in theirs.trainable_weights)
    expected = logits_of(theirs, images)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(images)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_folding_keeps_the_outputs_without_stochastic_depth(theirs, images):
    ours = from_keras_efficientnet(theirs, "b0", image_size=64, survival=0.7)
    folded = fold_stochastic_depth(ours)
    assert not any(isinstance(layer, StochasticDepth) for layer in folded._flatten_layers())
    np.testing.assert_allclose(folded(images), ours(images), rtol=1e-4, atol=1e-4)


def test_pixels_are_normalized_as_in_the_file_and_another_number_of_classes_starts_with_random_logits(theirs):
    norm = next(layer for layer in theirs.layers if isinstance(layer, keras.layers.Normalization))
    norm.mean, norm.variance = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # as published
    ours = from_keras_efficientnet(theirs, "b0", classes=3, image_size=64)
    pixel = np.full((1, 64, 64, 3), 200.0, "float32")
    expected = (200 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(ours.get_layer("normalize")(pixel)[0, 0, 0], expected, rtol=1e-5)
    assert ours.output_shape == (None, 3)
    stem = [model.get_layer("stem_conv").get_weights()[0] for model in (ours, theirs)]
    np.testing.assert_array_equal(*stem)


def test_the_resolutions_of_the_variants():
    resolutions = [efficientnet_resolution(f"b{index}") for index in range(8)]
    assert resolutions == [224, 240, 260, 300, 380, 456, 528, 600]


def test_survival_decays_over_the_blocks_that_can_be_skipped_and_l2_applies_to_kernels_only():
    model = efficientnet("b0", image_size=32, classes=2, survival=0.7, l2=2.5e-6)
    assert [block.survival for block in stochastic_depth_blocks(model)] == pytest.approx(linear_decay(9, 0.7))
    kernels = [weight for weight in model.trainable_weights if "kernel" in weight.path]
    expected = 2.5e-6 * sum(float(keras.ops.sum(weight**2)) for weight in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "b8"}, "variant must be one of b0, b1, .*Received: 'b8'"),
        ({"variant": "b0", "image_size": 31}, "image_size must be at least 32"),
        ({"variant": "b0", "survival": (0.2, 0.7)}, "one probability for each of 9 blocks. Received: 2"),
    ],
)
def test_invalid_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        efficientnet(**options)


def test_a_missing_file_and_a_file_without_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"There is no weights file .*b0.h5.\n  Pass the path of a file"):
        pretrained_efficientnet("b0", tmp_path / "b0.h5")
    (tmp_path / "b0.h5").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"b0.h5 does not hold the weights of EfficientNetB0 with 1,000 classes"):
        pretrained_efficientnet("b0", tmp_path / "b0.h5")


def test_a_failed_download_is_reported_with_a_hint(monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.src.applications.efficientnet.file_utils, "get_file", unreachable)
    with pytest.raises(
        DataError,
        match=r"ImageNet weights of EfficientNetB0 cannot be loaded: URL fetch[\s\S]*pass the path of the file",
    ):
        pretrained_efficientnet("b0")
