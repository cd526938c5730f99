"""Residual networks, ResNet-depth, with or without stochastic depth."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_committee.input_scaling import IMAGENET_MEAN, IMAGENET_STD
from keras_committee.models.blocks import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    LayerFactory,
    normalize_pixels,
    resolve_survival,
    sequential,
)

# Keras walks the graph of a functional model recursively, and Python's recursion limit is 1000: a model holds at most
# this many blocks of seven layers.
_MAX_BLOCKS_PER_MODEL = 100
_BOTTLENECK_STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(
    depth: int,
    *,
    classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    survival: float | Sequence[float] | None = None,
    mode: str = "batch",
    scaling: str = "inference",
    l2: float = 0.0,
    mean: float | Sequence[float] = CIFAR10_MEAN,
    std: float | Sequence[float] = CIFAR10_STD,
    remat: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Build the ResNet for small images: a stem, and three groups of n blocks with 16, 32 and 64 channels.

    A block is `ReLU(shortcut + conv-BN-ReLU-conv-BN)`. If a group halves the resolution, the shortcut is an average
    pool with zeros for the new channels (option A); it has no parameters and also runs when the branch is dropped.
    Convolutions have no bias and He's normal initialization; weight decay applies to every trainable weight.
    One difference from the reference code: Keras pads a strided convolution on the bottom and right only.

    Args:
        depth: Integer 6n + 2: 20, 32, 44, 56, 110, 152, 1202. The network has L = 3n blocks.
        classes: Integer, number of logits.
        image_shape: (height, width, channels) in pixels.
        survival: Stochastic depth: p_L of the linear decay, or one probability for each of the L blocks. None is
            constant depth.
        mode: See `StochasticDepth`. Except in `"sample"` mode, batch normalizations in the branches use the statistics
            of their own replica.
        scaling: See `StochasticDepth`.
        l2: Factor of `l2 * sum(w^2)`, added to the loss. Half of what SGD code calls weight decay.
        mean: Mean of the pixels, one number or one per channel, subtracted from the raw pixels 0..255.
        std: Standard deviation of the pixels, likewise.
        remat: See `StochasticDepth`.
        name: Name of the model. None is `resnet_<depth>`.

    Returns:
        Functional model from float32 raw pixels `(batch, height, width, channels)`, named "image", to float32 logits
        `(batch, classes)`.

    Raises:
        ValueError: If depth is not 6n + 2, survival does not fit the blocks, or mean and std do not fit the channels.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2; Huang et al. 2016, arXiv:1603.09382, and its code
        github.com/yueatsprograms/Stochastic_Depth.
    """
    n, remainder = divmod(depth - 2, 6)
    if remainder or n < 1:
        raise ValueError(f"depth must be 6n + 2 with n >= 1. Received: depth={depth}")
    factory = _layer_factory(3 * n, survival=survival, mode=mode, scaling=scaling, l2=l2, remat=remat)

    image = keras.Input(image_shape, dtype="float32", name="image")
    x = normalize_pixels(image, mean, std)
    x = sequential([factory.convolution(16, 3), factory.norm(), keras.layers.ReLU()], x)
    for first in range(0, 3 * n, _MAX_BLOCKS_PER_MODEL):
        x = _basic_blocks(factory, n, range(first, min(first + _MAX_BLOCKS_PER_MODEL, 3 * n)), x)
    return keras.Model(image, factory.logits(x, classes), name=name or f"resnet_{depth}")


def resnet_imagenet(
    depth: int,
    *,
    classes: int = 1000,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
    name: str | None = None,
    **options: Any,
) -> keras.Model:
    """Build the bottleneck ResNet for large images: depth 50, 101 or 152 with 16, 33 or 50 blocks.

    If a block changes the shape, its shortcut is a 1x1 convolution with batch normalization. The 3x3 convolution has
    the stride.

    Args:
        depth: 50, 101 or 152.
        classes: As in `resnet`.
        image_shape: As in `resnet`.
        mean: As in `resnet`.
        std: As in `resnet`.
        name: As in `resnet`.
        **options: `survival`, `mode`, `scaling`, `l2` and `remat` as in `resnet`.

    Returns:
        As `resnet`.

    Raises:
        ValueError: As `resnet`, or if depth is not one of those above.

    Source: He et al. 2015, arXiv:1512.03385, table 1; github.com/facebook/fb.resnet.torch.
    """
    if depth not in _BOTTLENECK_STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, _BOTTLENECK_STAGES))}. Received: depth={depth}")
    stages = _BOTTLENECK_STAGES[depth]
    factory = _layer_factory(sum(stages), **options)

    image = keras.Input(image_shape, dtype="float32", name="image")
    x = normalize_pixels(image, mean, std)
    x = sequential([factory.convolution(64, 7, 2), factory.norm(), keras.layers.ReLU()], x)
    x = keras.layers.MaxPooling2D(3, 2, padding="same")(x)
    for index, stage in enumerate(stage for stage, blocks in enumerate(stages) for _ in range(blocks)):
        x = _bottleneck_block(factory, index, stage, index == sum(stages[:stage]), x)
    return keras.Model(image, factory.logits(x, classes), name=name or f"resnet_{depth}")


def _layer_factory(num_blocks, *, survival=None, mode="batch", scaling="inference", l2=0.0, remat=False):
    return LayerFactory(
        fan_mode="fan_in",
        l2=l2,
        survival=resolve_survival(num_blocks, survival),
        mode=mode,
        scaling=scaling,
        remat=remat,
    )


def _basic_blocks(factory, n, indices, x):
    """Add the blocks with these indices; nested in a model if the network has more than `_MAX_BLOCKS_PER_MODEL`."""
    inputs = keras.Input(x.shape[1:], dtype=x.dtype) if 3 * n > _MAX_BLOCKS_PER_MODEL else x
    outputs = inputs
    for index in indices:
        outputs = _basic_block(factory, index, 16 * 2 ** (index // n), outputs)
    if inputs is x:
        return outputs
    return keras.Model(inputs, outputs, name=f"blocks_{indices[0] + 1}_to_{indices[-1] + 1}")(x)


def _basic_block(factory, index, filters, x):
    stride = 1 if x.shape[-1] == filters else 2
    branch = [
        factory.convolution(filters, 3, stride, name=f"block_{index + 1}_conv"), factory.branch_norm(),
        keras.layers.ReLU(), factory.convolution(filters, 3), factory.branch_norm(),
    ]  # fmt: skip
    shortcut = None if stride == 1 else _pool_and_pad(x, filters)
    return keras.layers.ReLU()(factory.residual(index, branch, x, shortcut))


def _pool_and_pad(x, filters):
    x = keras.layers.AveragePooling2D(2, padding="same")(x)
    return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, filters - x.shape[-1]]])


def _bottleneck_block(factory, index, stage, is_first_of_stage, x):
    filters, stride = 64 * 2**stage, 2 if is_first_of_stage and stage else 1
    branch = [
        factory.convolution(filters, 1, name=f"block_{index + 1}_conv"), factory.branch_norm(), keras.layers.ReLU(),
        factory.convolution(filters, 3, stride), factory.branch_norm(), keras.layers.ReLU(),
        factory.convolution(4 * filters, 1), factory.branch_norm(),
    ]  # fmt: skip
    projection = [factory.convolution(4 * filters, 1, stride), factory.norm()] if is_first_of_stage else []
    shortcut = sequential(projection, x) if projection else None
    return keras.layers.ReLU()(factory.residual(index, branch, x, shortcut))
