"""A network that reaches a high accuracy on small images in a few epochs."""

from collections.abc import Sequence

import keras

from keras_committee.layers.activations import QuickGELU
from keras_committee.layers.initializers import PartialIdentity
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.whitening import PatchWhitening
from keras_committee.models.blocks import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    LayerFactory,
    l2_regularizer,
    normalize_pixels,
    resolve_survival,
    sequential,
)

_ACTIVATIONS = {"quick_gelu": QuickGELU, "relu": keras.layers.ReLU}


def speed_net(
    widths: Sequence[int] = (64, 256, 256),
    *,
    classes: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    patch_size: int = 2,
    patch_stride: int = 1,
    activation: str = "quick_gelu",
    l2: float = 0.0,
    logit_scale: float = 1 / 9,
    survival: float | Sequence[float] | None = None,
    mode: str = "batch",
    mean: float | Sequence[float] = CIFAR10_MEAN,
    std: float | Sequence[float] = CIFAR10_STD,
    name: str | None = None,
) -> keras.Model:
    """Build the network: a `PatchWhitening`, and groups of two 3x3 convolutions with max pooling after the first.

    Every convolution has a batch normalization without scale and an activation behind it; the first filters pass on
    their input at the start (`PartialIdentity`). The largest value over all pixels and a dense layer give the logits.
    It is trained with a triangular schedule, `schedules.Lookahead` and a learning rate of the biases that is much
    larger than that of the kernels; see `recipes/cifar_fast.py`.

    Args:
        widths: Channels of each group, one or more. Each group halves height and width.
        classes: Integer >= 1, number of logits.
        image_shape: (height, width, channels) in pixels.
        patch_size: Height and width of the whitened patches.
        patch_stride: Distance between two patches. 2 computes an image of 64 pixels at a quarter of the cost.
        activation: `"quick_gelu"` or `"relu"`.
        l2: Factor of `l2 * sum(w^2)` over the kernels, added to the loss. Half of what SGD code calls weight decay.
        logit_scale: Factor of the logits.
        survival: Stochastic depth: p_L of the linear decay, or one probability for each group. The second convolution
            of each group then has a shortcut. None is constant depth, without shortcuts.
        mode: See `StochasticDepth`.
        mean: Mean of the pixels, one number or one per channel, subtracted from the raw pixels 0..255.
        std: Standard deviation of the pixels, likewise.
        name: Name of the model. None is `speed_net_` and the widths.

    Returns:
        Functional model from float32 raw pixels `(batch, height, width, channels)`, named "image", to float32 logits
        `(batch, classes)`.

    Raises:
        ValueError: If there is no group, a number is below 1, the activation is unknown, the image is too small for the
            groups, or survival does not fit them.

    Source: Jordan 2024, arXiv:2404.00498, section 3.
    """
    if not widths or min([*widths, classes, patch_size, patch_stride]) < 1:
        raise ValueError(
            "widths, classes, patch_size and patch_stride must be at least 1. "
            f"Received: {widths=}, {classes=}, {patch_size=}, {patch_stride=}"
        )
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}. Received: {activation!r}")
    smallest = patch_size + patch_stride * (2 ** len(widths) - 1)
    if min(image_shape[:2]) < smallest:
        raise ValueError(f"{len(widths)} groups need images of {smallest} pixels. Received: {image_shape=}")
    factory = LayerFactory(fan_mode="fan_in", l2=l2, survival=resolve_survival(len(widths), survival), mode=mode)

    image = keras.Input(image_shape, dtype="float32", name="image")
    x = normalize_pixels(image, mean, std)
    x = PatchWhitening(patch_size, image_shape[-1], patch_stride, name="whitening")(x)
    x = _ACTIVATIONS[activation]()(x)
    for index, filters in enumerate(widths):
        pooling = keras.layers.MaxPooling2D(2)
        x = sequential([_convolution(filters, l2, f"group_{index + 1}_conv"), pooling, *_normalized(activation)], x)
        branch = [
            _convolution(filters, l2, f"block_{index + 1}_conv"),
            *_normalized(activation, in_branch=survival is not None),
        ]
        x = sequential(branch, x) if survival is None else factory.residual(index, branch, x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    dense = keras.layers.Dense(
        classes,
        use_bias=False,
        kernel_initializer=_torch_uniform(),
        kernel_regularizer=l2_regularizer(l2),
        dtype="float32",
    )
    logits = keras.layers.Rescaling(logit_scale, dtype="float32", name="logits")(dense(x))
    return keras.Model(image, logits, name=name or "speed_net_" + "_".join(map(str, widths)))


def _convolution(filters, l2, name):
    return keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer=PartialIdentity(_torch_uniform()),
        kernel_regularizer=l2_regularizer(l2), name=name,
    )  # fmt: skip


def _normalized(activation, in_branch=False):
    norm = BatchNormalization(momentum=0.6, epsilon=1e-12, scale=False, synchronized=False if in_branch else None)
    return [norm, _ACTIVATIONS[activation]()]


def _torch_uniform():
    """Return the uniform initialization over +-sqrt(1 / fan-in), PyTorch's default."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
