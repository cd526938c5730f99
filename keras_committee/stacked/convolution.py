"""Convolutions of several members at once, in a form that keeps a GPU busy.

`jax.vmap` turns the convolutions of K members into one with K groups. The members of small networks have few channels,
and a grouped convolution of 16 channels uses a fraction of a GPU's matrix units. Here several members share a group:
their kernels are the diagonal blocks of one kernel whose other blocks are zero, so that the group has enough channels.
It computes more products, of which those with zero are wasted, in less time.

Zero times infinity is not zero: values that are not finite count as 0 in these products, so that a member that diverges
does not take its neighbors with it. Its own outputs are those of its finite inputs; that it diverged shows in its loss
or in its weights.
"""

import functools

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.custom_batching import custom_vmap

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def use_packed_convolutions(model: keras.Model, channels: int) -> None:
    """Make the plain 2D convolutions of `model` pack members into groups where `jax.vmap` batches them.

    Args:
        model: Model that is only traced; its results stay the same up to rounding.
        channels: Members share a group while it has at most this many input channels.
    """
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.Conv2D) or layer.groups != 1 or layer.data_format != "channels_last":
            continue
        if type(layer).convolution_op is keras.layers.Conv2D.convolution_op and tuple(layer.dilation_rate) == (1, 1):
            layer.convolution_op = functools.partial(
                _convolve_in, _packed_convolution(tuple(layer.strides), layer.padding.upper(), channels)
            )


def members_per_group(members: int, channels: int, max_channels: int) -> int:
    """Return how many members share a group: the largest divisor of `members` with at most `max_channels` together."""
    return max(
        divisor
        for divisor in range(1, members + 1)
        if members % divisor == 0 and (divisor == 1 or divisor * channels <= max_channels)
    )


def block_diagonal(kernels: jax.Array, group_size: int) -> jax.Array:
    """Return the kernel of a grouped convolution in which `group_size` members share each group.

    Args:
        kernels: Kernels of the members, `(members, height, width, inputs, outputs)`.
        group_size: Number of members per group, a divisor of `members`.

    Returns:
        Array `(height, width, group_size * inputs, members * outputs)`.
    """
    members, height, width, inputs, outputs = kernels.shape
    groups = members // group_size
    blocks = kernels.reshape(groups, group_size, height, width, inputs, outputs).transpose(2, 3, 4, 0, 1, 5)
    # Selected, not multiplied by zeros: the gradient of a block must not depend on those of the others.
    is_own = jnp.eye(group_size, dtype=bool)[None, None, :, None, None, :, None]
    dense = jnp.where(is_own, blocks[:, :, None], jnp.zeros((), kernels.dtype))
    return dense.reshape(height, width, group_size * inputs, members * outputs)


def _convolve_in(convolve, inputs, kernel):
    inputs = keras.ops.convert_to_tensor(inputs)
    return convolve(inputs, keras.ops.cast(keras.ops.convert_to_tensor(kernel), inputs.dtype))


@functools.cache
def _packed_convolution(strides, padding, max_channels):
    def convolve(inputs, kernel, groups=1):
        return lax.conv_general_dilated(
            inputs, kernel, strides, padding, dimension_numbers=_DIMENSIONS, feature_group_count=groups
        )

    single = custom_vmap(lambda inputs, kernel: convolve(inputs, kernel))

    @single.def_vmap
    def of_members(axis_size, in_batched, inputs, kernel):
        if not all(in_batched):
            axes = tuple(0 if batched else None for batched in in_batched)
            return jax.vmap(convolve, in_axes=axes)(inputs, kernel), True
        group_size = members_per_group(axis_size, inputs.shape[-1], max_channels)
        side_by_side = _finite(jnp.moveaxis(inputs, 0, 3))
        outputs = convolve(
            side_by_side.reshape(*side_by_side.shape[:3], -1),
            block_diagonal(kernel, group_size),
            axis_size // group_size,
        )
        return jnp.moveaxis(_with_finite_gradient(outputs).reshape(*outputs.shape[:3], axis_size, -1), 3, 0), True

    return single


def _finite(values):
    return jnp.where(jnp.isfinite(values), values, jnp.zeros((), values.dtype))


@jax.custom_vjp
def _with_finite_gradient(values):
    return values


_with_finite_gradient.defvjp(lambda values: (values, None), lambda _, gradient: (_finite(gradient),))
