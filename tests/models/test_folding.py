"""A folded network is the original at inference, without StochasticDepth layers."""

import keras
import numpy as np
import pytest

from keras_committee import flops, layers, models


def randomized(model):
    """The model with random weights, including moving statistics, gammas and betas."""
    rng = np.random.default_rng(1)
    model.set_weights([w + 0.1 * np.abs(rng.normal(size=w.shape)).astype(w.dtype) for w in model.get_weights()])
    layers.set_survival(model, [0.2 + 0.6 * (index % 2) for index in range(len(layers.stochastic_depth_blocks(model)))])
    return model


def images(shape=(8, 8, 3)):
    return np.random.default_rng(2).uniform(0, 255, size=(5, *shape)).astype("float32")


NETWORKS = {
    "ends in batch normalization": lambda scaling: models.resnet(
        14, classes=4, image_shape=(8, 8, 3), survival=0.5, scaling=scaling
    ),
    "ends in a convolution": lambda scaling: models.wide_resnet(
        16, 1, classes=4, image_shape=(8, 8, 3), survival=0.5, scaling=scaling, dropout=0.3
    ),
}


@pytest.mark.parametrize("scaling", ["inference", "training"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_folded_network_predicts_as_before_without_stochastic_depth(network, scaling):
    model = randomized(NETWORKS[network](scaling))
    weights = model.get_weights()
    folded = models.fold_stochastic_depth(model)
    assert layers.stochastic_depth_blocks(folded) == []
    expected = keras.ops.convert_to_numpy(model(images()))  # logits: a softmax of them would saturate and hide errors
    outputs = keras.ops.convert_to_numpy(folded(images()))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert flops.multiply_adds(folded) == flops.multiply_adds(model)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("scaling", ["inference", "training"])
def test_a_branch_that_never_survives_adds_nothing_after_folding(scaling):
    image = keras.Input((3,))
    branch = keras.layers.Dense(3, bias_initializer="ones")
    folded = models.fold_stochastic_depth(
        keras.Model(image, layers.StochasticDepth(branch, survival=0.0, scaling=scaling)(image))
    )
    x = np.array([[0.2, 0.7, -1.0]], "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(folded(x)), x)


def test_a_nested_network_is_folded_too():
    inner = randomized(NETWORKS["ends in a convolution"]("inference"))
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, keras.layers.Softmax()(inner(image)))
    folded = models.fold_stochastic_depth(model)
    assert layers.stochastic_depth_blocks(folded) == []
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(folded(images())), keras.ops.convert_to_numpy(model(images())), atol=1e-5
    )


def test_a_folded_network_is_saved_without_the_layer(tmp_path):
    folded = models.fold_stochastic_depth(randomized(NETWORKS["ends in batch normalization"]("inference")))
    assert "StochasticDepth" not in folded.to_json()
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(loaded(images())), keras.ops.convert_to_numpy(folded(images()))
    )


@pytest.mark.parametrize("last", [keras.layers.ReLU(), keras.layers.Dense(3, activation="tanh", name="last")])
def test_a_branch_whose_last_layer_cannot_be_scaled_is_refused(last):
    image = keras.Input((3,))
    block = layers.StochasticDepth(keras.Sequential([keras.layers.Dense(3), last]), survival=0.7, name="the_block")
    with pytest.raises(ValueError, match=r"Cannot fold 'the_block': its branch ends in .* It must end in a batch norm"):
        models.fold_stochastic_depth(keras.Model(image, block(image)))


def functional_branch(bias):
    """Two paths that meet before the last layer, and dropout after it."""
    start = keras.Input((3,))
    paths = [keras.layers.Dense(4, activation="tanh")(start), keras.layers.Dense(4)(start)]
    end = keras.layers.Dense(2, use_bias=bias, bias_initializer="ones")(keras.layers.Add()(paths))
    return keras.Model(start, keras.layers.Dropout(0.3)(end))


@pytest.mark.parametrize("bias", [True, False])
def test_a_functional_branch_with_a_shortcut_is_folded(bias):
    image = keras.Input((3,))
    block = layers.StochasticDepth(functional_branch(bias), survival=0.7)
    model = keras.Model(image, block(image, keras.layers.Dense(2)(image)))
    folded = models.fold_stochastic_depth(model)
    x = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(folded(x)), keras.ops.convert_to_numpy(model(x)), rtol=1e-5, atol=1e-6
    )


def test_a_sequential_network_is_folded():
    block = layers.StochasticDepth(keras.layers.Dense(3), survival=0.2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), block])
    x = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(models.fold_stochastic_depth(model)(x)),
        keras.ops.convert_to_numpy(model(x)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_block_called_twice_is_scaled_once():
    image = keras.Input((3,))
    block = layers.StochasticDepth(keras.layers.Dense(3), survival=0.2)
    model = keras.Model(image, block(block(image)))
    x = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(models.fold_stochastic_depth(model)(x)),
        keras.ops.convert_to_numpy(model(x)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_branch_in_two_blocks_is_refused():
    image, branch = keras.Input((3,)), keras.layers.Dense(3, name="shared")
    x = layers.StochasticDepth(branch, survival=0.2, name="first")(image)
    x = layers.StochasticDepth(branch, survival=0.7, name="second")(x)
    with pytest.raises(ValueError, match="Cannot fold 'second': 'shared' also ends the branch of another block"):
        models.fold_stochastic_depth(keras.Model(image, x))


def test_a_network_without_a_graph_cannot_be_folded():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"Cannot fold 'plain': it .* graph of layers"):
        models.fold_stochastic_depth(Subclassed(name="plain"))
