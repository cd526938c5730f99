"""Convolutions of packed members equal one convolution after another."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("needs KERAS_BACKEND=jax", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_committee.stacked.convolution import block_diagonal, members_per_group, use_packed_convolutions

pytestmark = pytest.mark.jax


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


@pytest.mark.parametrize(
    ("members", "channels", "largest", "expected"),
    [(8, 16, 128, 8), (8, 32, 128, 4), (8, 200, 128, 1), (6, 16, 64, 3), (5, 16, 64, 1), (1, 3, 64, 1)],
)
def test_groups_hold_as_many_members_as_fit_and_divide_them(members, channels, largest, expected):
    assert members_per_group(members, channels, largest) == expected


def test_the_kernel_of_a_group_has_the_members_kernels_on_its_diagonal():
    kernels = random(4, 3, 3, 2, 5)
    packed = np.asarray(block_diagonal(kernels, 2)).reshape(3, 3, 2, 2, 4, 5)  # input member, input, member, output
    for member in range(4):
        np.testing.assert_array_equal(packed[:, :, member % 2, :, member], kernels[member])
        assert not packed[:, :, 1 - member % 2, :, member].any()


@pytest.mark.parametrize("channels", [1, 8, 64])
@pytest.mark.parametrize(
    "options", [{}, {"strides": 2}, {"padding": "same"}, {"padding": "same", "strides": 2, "use_bias": False}]
)
def test_outputs_and_gradients_equal_one_member_after_another(channels, options):
    models = [keras.Sequential([keras.Input((9, 7, 3)), keras.layers.Conv2D(4, 3, **options)]) for _ in range(4)]
    packed = keras.models.clone_model(models[0])
    use_packed_convolutions(packed, channels)
    images = random(4, 5, 9, 7, 3)
    weights = [
        jnp.stack(arrays) for arrays in zip(*([v.value for v in m.trainable_variables] for m in models), strict=True)
    ]

    def loss(weights, images):
        def one(weights, images):
            outputs, _ = packed.stateless_call(weights, [], images)
            return jnp.sum(jnp.sin(outputs)), outputs

        losses, outputs = jax.vmap(one)(weights, images)
        return losses.sum(), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, images)

    for position, model in enumerate(models):

        def alone(weights, images, model=model):
            outputs, _ = model.stateless_call(weights, [], images)
            return jnp.sum(jnp.sin(outputs)), outputs

        own = [array[position] for array in weights]
        gradient = jax.value_and_grad(alone, argnums=(0, 1), has_aux=True)
        (_, expected), expected_gradients = gradient(own, images[position])
        np.testing.assert_allclose(outputs[position], expected, rtol=1e-5, atol=1e-5)
        for result, target in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
            np.testing.assert_allclose(result[position], target, rtol=1e-4, atol=1e-4)


def test_other_convolutions_keep_their_operation():
    model = keras.Sequential(
        [keras.Input((9, 9, 4)), keras.layers.Conv2D(4, 3, groups=2), keras.layers.Conv2D(4, 3, dilation_rate=2)]
    )
    use_packed_convolutions(model, 64)
    assert all("convolution_op" not in vars(layer) for layer in model.layers)
