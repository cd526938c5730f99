"""What is a wide residual network, WRN-depth-width?"""

from collections.abc import Sequence

import keras

from keras_committee.layers.normalization import BatchNormalization

# The pixel means and standard deviations of CIFAR-10's training images, as the reference code has them.
CIFAR10_MEAN = (125.3, 123.0, 113.9)
CIFAR10_STD = (63.0, 62.1, 66.7)


def wide_resnet(
    depth: int,
    width: int,
    *,
    classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    l2: float = 0.0,
    dropout: float = 0.0,
    mean: float | Sequence[float] = CIFAR10_MEAN,
    std: float | Sequence[float] = CIFAR10_STD,
    name: str | None = None,
) -> keras.Model:
    """Builds WRN-depth-width: three groups of pre-activation blocks B(3, 3), 16 * width channels in the first group.

    As in the reference code, the 1x1 projection of a block takes the pre-activated input, dropout stands between the
    two convolutions after the ReLU, convolutions have no bias and start from He's normal distribution over the fan-out,
    and weight decay falls on every trainable weight, batch normalisation and biases included.
    One difference: Keras pads a strided convolution at the far border only, the reference on both sides.

    Args:
        depth: Integer, 6N + 4: the number of 3x3 convolutions and projections on the longest path.
        width: Integer from 1, the widening factor k.
        classes: Integer, the number of logits.
        image_shape: (height, width, channels) in pixels.
        l2: Factor of `l2 * sum(w^2)`, added to the loss. Half of what SGD code calls weight decay.
        dropout: Probability in [0, 1) of dropping a value between the convolutions of a block.
        mean: Mean of the pixels, one number or one per channel, subtracted from the raw pixels 0..255.
        std: Standard deviation of the pixels, likewise.
        name: Name of the model, `wrn_<depth>_<width>` where None.

    Returns:
        Functional model: float32 raw pixels `(batch, height, width, channels)` named "image" to float32 logits
        `(batch, classes)`.

    Raises:
        ValueError: If depth is not 6N + 4, width or classes is below 1, or mean and std do not fit the channels.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146; github.com/szagoruyko/wide-residual-networks.
    """
    blocks = _blocks_per_group(depth)
    if width < 1 or classes < 1:
        raise ValueError(f"width and classes must be integers from 1. Received: width={width}, classes={classes}")
    decay = keras.regularizers.L2(l2) if l2 else None

    image = keras.Input(image_shape, dtype="float32", name="image")
    x = _normalized(image, mean, std)
    x = _conv(16, 3, decay)(x)
    for filters, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for index in range(blocks):
            x = _block(x, filters, stride if index == 0 else 1, dropout, decay)
    x = _chain(_norm_relu(decay), x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(
        classes, kernel_regularizer=decay, bias_regularizer=decay, dtype="float32", name="logits"
    )(x)
    return keras.Model(image, logits, name=name or f"wrn_{depth}_{width}")


def _blocks_per_group(depth):
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        below = 6 * max(blocks, 1) + 4
        raise ValueError(f"depth must be 6N + 4 with N from 1. Received: depth={depth}. Nearest: {below}, {below + 6}")
    return blocks


def _normalized(image, mean, std):
    channels = image.shape[-1]
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if min(stds) <= 0:
        raise ValueError(f"std must be above 0. Received: std={std}")
    scale = [1.0 / s for s in stds]
    offset = [-m / s for m, s in zip(means, stds, strict=True)]
    # float32 under every policy: bfloat16 would round a pixel that augmentation has moved off the integers.
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="normalize")(image)


def _per_channel(argument, value, channels):
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * channels
    if len(values) != channels:
        raise ValueError(
            f"{argument} must be one number or one for each of the {channels} channels. Received: {argument}={value}"
        )
    return values


def _block(x, filters, stride, dropout, decay):
    """`shortcut + branch(x)`; where the shape changes, branch and projection share the pre-activation."""
    branch = _branch(filters, stride, dropout, decay)
    shortcut = x
    if x.shape[-1] == filters:
        branch = _norm_relu(decay) + branch
    else:
        x = _chain(_norm_relu(decay), x)
        shortcut = _conv(filters, 1, decay, stride)(x)
    return keras.layers.Add()([shortcut, _chain(branch, x)])


def _branch(filters, stride, dropout, decay):
    between = [keras.layers.Dropout(dropout)] if dropout else []
    return [_conv(filters, 3, decay, stride), *_norm_relu(decay), *between, _conv(filters, 3, decay)]


def _norm_relu(decay):
    norm = BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_regularizer=decay, beta_regularizer=decay)
    return [norm, keras.layers.ReLU()]


def _conv(filters, size, decay, stride=1):
    he = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    return keras.layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer=he, kernel_regularizer=decay
    )


def _chain(layers, x):
    for layer in layers:
        x = layer(x)
    return x
