"""One forward pass of every kind of model, compiled where the backend compiles, on each backend."""

import keras
import numpy as np
import pytest

from keras_committee import models

SHAPE, CLASSES = (32, 32, 3), 3
pytestmark = pytest.mark.jax


def small_network(**options):
    return models.wide_resnet(10, 1, classes=CLASSES, image_shape=SHAPE, **options)


def convolution():
    image = keras.Input(SHAPE)
    return keras.Model(image, keras.layers.Conv2D(4, 3)(image))


NETWORKS = {
    "wide_resnet": lambda: small_network(survival=0.7, dropout=0.3),
    "resnet": lambda: models.resnet(8, classes=CLASSES, image_shape=SHAPE, survival=0.7),
    "efficientnet": lambda: models.efficientnet("b0", classes=CLASSES, image_size=32),
    "fold_stochastic_depth": lambda: models.fold_stochastic_depth(small_network(survival=0.7)),
    "with_input_size": lambda: models.with_input_size(small_network(), SHAPE[:2]),
    "wrap_model": lambda: models.wrap_model(small_network(), input_scaling="caffe", class_order=[2, 0, 1]),
    "from_keras_cv": lambda: models.from_keras_cv(convolution(), CLASSES, input_scaling="0..1"),
}


def images():
    return np.random.default_rng(3).integers(0, 256, (5, *SHAPE)).astype("float32")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=name, marks=[pytest.mark.slow] if name == "efficientnet" else [])
        for name, build in NETWORKS.items()
    ],
)
def test_a_network_predicts_log_probabilities(build):
    log_probs = models.log_probabilities(build(), [images()])
    assert (log_probs.shape, log_probs.dtype) == ((5, CLASSES), "float32")
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    assert np.ptp(log_probs, axis=0).max() > 0


@pytest.mark.parametrize(
    "build", [models.Ensemble, lambda members: models.Cascade(members, (0.99,))], ids=["Ensemble", "Cascade"]
)
def test_a_committee_predicts_probabilities(build):
    outputs = build([small_network(), small_network()]).predict(images(), verbose=0)
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, rtol=1e-5)
    assert outputs["member_probabilities"].shape == (5, 2, CLASSES)


def test_subnetworks_are_sampled():
    samples = models.mc_stochastic_depth(small_network(survival=0.5), images(), num_samples=3, seed=2)
    assert samples.shape == (5, 3, CLASSES)
    np.testing.assert_allclose(samples.sum(-1), 1, rtol=1e-5)
