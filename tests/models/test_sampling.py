"""Sub-networks are the network with some blocks taken out."""

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
    """Probabilities of the network whose blocks survive with 0 or 1."""
    survival = [block.survival for block in layers.stochastic_depth_blocks(model)]
    layers.set_survival(model, [float(gate) for gate in kept])
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model(images())))
    layers.set_survival(model, survival)
    return probabilities


@pytest.mark.parametrize("scaling", ["inference", "training"])
def test_each_draw_is_one_of_the_subnetworks(scaling):
    model = network(scaling)
    every = np.stack([subnetwork(model, kept) for kept in itertools.product((0, 1), repeat=3)], axis=1)
    votes = models.mc_stochastic_depth(model, images(), num_samples=6, seed=3)
    assert votes.shape == (5, 6, 4)
    distance = np.abs(votes[:, :, None] - every[:, None]).max(axis=(0, 3))
    assert distance.min(axis=1).max() < 1e-5
    assert len(set(distance.argmin(axis=1))) > 1


def test_blocks_are_kept_as_often_as_they_survive(monkeypatch):
    # What Keras does under TensorFlow around each of many predictions takes most of their time, and draws nothing.
    direct = {"tensorflow": lambda model, x, **_: keras.ops.convert_to_numpy(model(x))}
    monkeypatch.setattr(keras.Model, "predict", direct.get(keras.backend.backend(), keras.Model.predict))
    model = network()
    votes = models.mc_stochastic_depth(model, images()[:1], num_samples=60, seed=5)
    every = np.stack([subnetwork(model, kept)[0] for kept in itertools.product((0, 1), repeat=3)])
    drawn = np.abs(votes[0][:, None] - every[None]).max(axis=2).argmin(axis=1)
    kept = np.array(list(itertools.product((0, 1), repeat=3)))[drawn]
    np.testing.assert_allclose(kept.mean(axis=0), [0.2, 0.7, 0.7], atol=4 * np.sqrt(0.21 / 60))


def test_the_seed_decides_and_the_network_stays_as_it_was():
    model = network()
    first = models.mc_stochastic_depth(model, images(), num_samples=4, seed=3)
    np.testing.assert_array_equal(models.mc_stochastic_depth(model, images(), num_samples=4, seed=3), first)
    assert [block.survival for block in layers.stochastic_depth_blocks(model)] == pytest.approx([0.2, 0.7, 0.7])


def test_a_network_of_constant_depth_has_nothing_to_sample():
    with pytest.raises(
        ValueError, match=r"must have StochasticDepth layers to sample from\. Received: 'resnet_8' with"
    ):
        models.mc_stochastic_depth(models.resnet(8, classes=4, image_shape=(8, 8, 3)), images(), num_samples=4, seed=3)
    with pytest.raises(ValueError, match=r"draws must be at least 1\. Received: draws=0"):
        models.mc_stochastic_depth(network(), images(), num_samples=0, seed=3)
