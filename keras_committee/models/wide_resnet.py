"""Wide residual networks, WRN-depth-width."""

from collections.abc import Sequence

import keras

from keras_committee.models.blocks import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    LayerFactory,
    normalize_pixels,
    resolve_survival,
    sequential,
)


def wide_resnet(
    depth: int,
    width: int,
    *,
    classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    l2: float = 0.0,
    dropout: float = 0.0,
    stem_stride: int = 1,
    survival: float | Sequence[float] | None = None,
    mode: str = "batch",
    scaling: str = "inference",
    mean: float | Sequence[float] = CIFAR10_MEAN,
    std: float | Sequence[float] = CIFAR10_STD,
    name: str | None = None,
) -> keras.Model:
    """Build WRN-depth-width: three groups of pre-activation blocks B(3, 3), 16 * width channels in the first group.

    As in the reference code, the 1x1 projection of a block takes the pre-activated input, dropout is between the two
    convolutions after the ReLU, convolutions have no bias and He's normal initialization over the fan-out, and weight
    decay applies to every trainable weight, including batch normalization and biases.
    One difference: Keras pads a strided convolution on the bottom and right only, the reference on all sides.

    Args:
        depth: Integer 6N + 4, the number of 3x3 convolutions and projections on the longest path.
        width: Integer of at least 1, the widening factor k.
        classes: Integer, number of logits.
        image_shape: (height, width, channels) in pixels.
        l2: Factor of `l2 * sum(w^2)`, added to the loss. Half of what SGD code calls weight decay.
        dropout: Float in [0, 1), the probability of dropping a value between the convolutions of a block.
        stem_stride: Stride of the first convolution. 2 computes an image of 64 pixels or more at a quarter of the cost.
        survival: Stochastic depth: p_L of the linear decay, or one probability for each of the 3N blocks. None is
            constant depth. A projection and the pre-activation that it shares with its branch always run.
        mode: See `StochasticDepth`.
        scaling: See `StochasticDepth`.
        mean: Mean of the pixels, one number or one per channel, subtracted from the raw pixels 0..255.
        std: Standard deviation of the pixels, likewise.
        name: Name of the model. None is `wrn_<depth>_<width>`.

    Returns:
        Functional model from float32 raw pixels `(batch, height, width, channels)`, named "image", to float32 logits
        `(batch, classes)`.

    Raises:
        ValueError: If depth is not 6N + 4, width or classes is below 1, survival does not fit the blocks, or mean and
            std do not fit the channels.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146; github.com/szagoruyko/wide-residual-networks.
    """
    blocks_per_group = _blocks_per_group(depth)
    if width < 1 or classes < 1:
        raise ValueError(f"width and classes must be at least 1. Received: width={width}, classes={classes}")
    factory = LayerFactory(
        fan_mode="fan_out", l2=l2, survival=resolve_survival(3 * blocks_per_group, survival), mode=mode, scaling=scaling
    )

    image = keras.Input(image_shape, dtype="float32", name="image")
    x = factory.convolution(16, 3, stem_stride)(normalize_pixels(image, mean, std))
    for index in range(3 * blocks_per_group):
        group, is_first_of_group = index // blocks_per_group, index % blocks_per_group == 0
        x = _block(factory, index, x, 16 * width * 2**group, 2 if is_first_of_group and group else 1, dropout)
    x = sequential([factory.norm(), keras.layers.ReLU()], x)
    return keras.Model(image, factory.logits(x, classes), name=name or f"wrn_{depth}_{width}")


def _blocks_per_group(depth):
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1:
        nearest_below = 6 * max(blocks, 1) + 4
        raise ValueError(
            f"depth must be 6N + 4 with N >= 1. Received: depth={depth}. Nearest: {nearest_below}, {nearest_below + 6}"
        )
    return blocks


def _block(factory, index, x, filters, stride, dropout):
    """Return `shortcut + branch(x)`. If the shape changes, branch and projection share the pre-activation."""
    relu, dropout_layers = keras.layers.ReLU, [keras.layers.Dropout(dropout)] if dropout else []
    branch = [
        factory.convolution(filters, 3, stride, name=f"block_{index + 1}_conv"),
        factory.branch_norm(), relu(), *dropout_layers, factory.convolution(filters, 3),
    ]  # fmt: skip
    if x.shape[-1] == filters:
        return factory.residual(index, [factory.branch_norm(), relu(), *branch], x)
    x = sequential([factory.norm(), relu()], x)
    return factory.residual(index, branch, x, factory.convolution(filters, 1, stride)(x))
