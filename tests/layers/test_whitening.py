"""A first convolution whose outputs are whitened, before the first training step and for good."""

import keras
import numpy as np
import pytest

from keras_committee import layers
from keras_committee.models.building import adapt_layers, adaptation_examples

pytestmark = pytest.mark.jax


@pytest.fixture
def images():
    """Smooth images with correlated channels, as photographs are."""
    noise = np.random.default_rng(0).normal(size=(60, 12, 12, 3)).cumsum(axis=1).cumsum(axis=2)
    return (noise + 0.5 * noise[..., ::-1]).astype("float32")


def adapted(images, **options):
    layer = layers.PatchWhitening(**options)
    layer.build(images.shape)
    layer.adapt(images)
    return layer, np.asarray(layer(images))


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (3, 1), (2, 2)])
def test_components_are_uncorrelated_with_variance_one_and_have_their_negatives(images, size, stride):
    layer, outputs = adapted(images, size=size, stride=stride, epsilon=1e-6)
    height = (12 - size) // stride + 1
    components = 3 * size * size
    assert outputs.shape == layer.compute_output_shape(images.shape) == (60, height, height, 2 * components)
    np.testing.assert_array_equal(outputs[..., components:], -outputs[..., :components])
    rows = outputs[..., :components].reshape(-1, components).astype("float64")
    if stride == 1:  # with other strides the patches are some of those that the covariance is of
        np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(components), atol=2e-3)


def test_epsilon_keeps_components_without_variance_small(images):
    gray = np.repeat(images[..., :1], 3, axis=-1)
    _, outputs = adapted(gray, epsilon=0.1)
    variances = outputs.reshape(-1, 24)[:, :12].var(axis=0)
    assert (variances < 1.0).all()
    assert variances[:8] == pytest.approx(0.0, abs=1e-6)  # differences of equal channels


def test_before_it_is_adapted_the_layer_passes_the_pixels_of_each_patch(images):
    layer = layers.PatchWhitening()
    outputs = np.asarray(layer(images))
    patches = np.concatenate([images[:, y : 11 + y, x : 11 + x] for y in (0, 1) for x in (0, 1)], axis=-1)
    np.testing.assert_allclose(outputs, np.concatenate([patches, -patches], axis=-1), rtol=1e-6)


def test_the_kernel_is_never_trained(images):
    layer, _ = adapted(images)
    layer.trainable = False
    layer.trainable = True  # as `Recipe(trainable_layers=...)` freezes and unfreezes
    assert [weight.name for weight in layer.trainable_variables] == ["bias"]


def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match=r"channels=1\) received images of 3 channels"):
        layers.PatchWhitening(channels=1)(images)
    with pytest.raises(ValueError, match=r"size=2\) received images of \(1, 12\) pixels"):
        layers.PatchWhitening().adapt(images[:, :1])


def test_layers_are_adapted_one_after_the_other_to_what_they_receive():
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 9, 3)).astype("uint8")
    image = keras.Input((9, 9, 3), name="image")
    normalization = keras.layers.Normalization()
    x = layers.PatchWhitening(epsilon=1e-9, name="whitening")(normalization(image))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    adapt_layers(model, images)
    pixels = images.astype("float64")
    np.testing.assert_allclose(np.ravel(normalization.mean), pixels.mean(axis=(0, 1, 2)), rtol=1e-4)
    outputs = np.asarray(keras.Model(image, x)(images.astype("float32"))).reshape(-1, 24)[:, :12].astype("float64")
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(12), atol=1e-3)


def test_examples_for_the_adaptation_are_spread_over_the_data_within_a_limit_of_pixels():
    np.testing.assert_array_equal(adaptation_examples(7, (32, 32, 3)), np.arange(7))
    chosen = adaptation_examples(20_000, (32, 32, 3))
    np.testing.assert_array_equal(chosen, np.arange(5_000) * 4)
    assert len(adaptation_examples(20_000, (4_000, 4_000, 3))) == 1


def test_the_first_filters_are_the_identity_and_the_others_random():
    make = layers.PartialIdentity(keras.initializers.RandomUniform(-0.1, 0.1, seed=3))
    for inputs, outputs in ((4, 6), (6, 4), (3, 3)):
        kernel = np.asarray(make((3, 3, inputs, outputs), dtype="float32"))
        convolution = keras.layers.Conv2D(outputs, 3, padding="same", use_bias=False)
        convolution.build((None, 5, 5, inputs))
        convolution.kernel.assign(kernel)
        pixels = np.random.default_rng(1).normal(size=(2, 5, 5, inputs)).astype("float32")
        same = min(inputs, outputs)
        np.testing.assert_allclose(np.asarray(convolution(pixels))[..., :same], pixels[..., :same], rtol=1e-5)
        rest = kernel[..., same:]
        assert rest.shape == (3, 3, inputs, outputs - same)
        assert (np.abs(rest) <= 0.1).all()
        assert not rest.size or rest.std() > 0.04


def test_quick_gelu_is_its_formula():
    x = np.linspace(-4, 4, 33).astype("float32")
    np.testing.assert_allclose(np.asarray(layers.QuickGELU()(x)), x / (1 + np.exp(-1.702 * x.astype("float64"))), 1e-6)
