"""Monte Carlo stochastic depth: subnetworks are the network without some blocks."""

import itertools

import keras
import numpy as np
import pytest

from keras_committee import layers, models


def network(scaling="inference"):
    return models.resnet(8, classes=4, image_shape=(8, 8, 3), survival=[0.2, 0.7, 0.7], scaling=scaling)


def images():
    return np.random.default_rng(2).uniform(0, 255, size=(5, 8, 8, 3)).astype("float32")


def subnetwork(model, kept):
    """Probabilities of the network with some of its blocks."""
    survival = [block.survival for block in layers.stochastic_depth_blocks(model)]
    layers.set_survival(model, [float(keep) for keep in kept])
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model(images())))
    layers.set_survival(model, survival)
    return probabilities


@pytest.mark.parametrize("scaling", ["inference", "training"])
def test_each_sample_is_one_of_the_subnetworks(scaling):
    model = network(scaling)
    subnetworks = np.stack([subnetwork(model, kept) for kept in itertools.product((0, 1), repeat=3)], axis=1)
    samples = models.mc_stochastic_depth(model, images(), num_samples=6, seed=3)
    assert samples.shape == (5, 6, 4)
    distance = np.abs(samples[:, :, None] - subnetworks[:, None]).max(axis=(0, 3))
    assert distance.min(axis=1).max() < 1e-5
    assert len(set(distance.argmin(axis=1))) > 1


def test_blocks_are_kept_as_often_as_they_survive(monkeypatch):
    # On TensorFlow, Keras' overhead per call of `predict` would take most of the time.
    direct = {"tensorflow": lambda model, x, **_: keras.ops.convert_to_numpy(model(x))}
    monkeypatch.setattr(keras.Model, "predict", direct.get(keras.backend.backend(), keras.Model.predict))
    model = network()
    samples = models.mc_stochastic_depth(model, images()[:1], num_samples=60, seed=5)
    subnetworks = np.stack([subnetwork(model, kept)[0] for kept in itertools.product((0, 1), repeat=3)])
    drawn = np.abs(samples[0][:, None] - subnetworks[None]).max(axis=2).argmin(axis=1)
    kept = np.array(list(itertools.product((0, 1), repeat=3)))[drawn]
    np.testing.assert_allclose(kept.mean(axis=0), [0.2, 0.7, 0.7], atol=4 * np.sqrt(0.21 / 60))


def test_the_seed_selects_the_subnetworks_and_the_network_is_restored():
    model = network()
    first = models.mc_stochastic_depth(model, images(), num_samples=4, seed=3)
    np.testing.assert_array_equal(models.mc_stochastic_depth(model, images(), num_samples=4, seed=3), first)
    assert [block.survival for block in layers.stochastic_depth_blocks(model)] == pytest.approx([0.2, 0.7, 0.7])


def test_a_network_of_constant_depth_is_refused():
    with pytest.raises(ValueError, match=r"must have StochasticDepth layers\. Received: 'resnet_8', which has none"):
        models.mc_stochastic_depth(models.resnet(8, classes=4, image_shape=(8, 8, 3)), images(), num_samples=4, seed=3)
    with pytest.raises(ValueError, match=r"num_samples must be at least 1\. Received: num_samples=0"):
        models.mc_stochastic_depth(network(), images(), num_samples=0, seed=3)
