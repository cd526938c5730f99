"""Parts of convolutional networks: pixel normalization, convolutions, residual blocks and logits."""

import dataclasses
import re
from collections.abc import Sequence

import keras

from keras_committee.keras_config import require_channels_last
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.stochastic_depth import StochasticDepth
from keras_committee.layers.survival import stochastic_depth_blocks, survival_schedule

# Pixel means and standard deviations of CIFAR-10's training images, from the code of the WRN paper.
CIFAR10_MEAN = (125.3, 123.0, 113.9)
CIFAR10_STD = (63.0, 62.1, 66.7)


def normalize_pixels(image, mean: float | Sequence[float], std: float | Sequence[float]):
    """Return raw pixels 0..255 minus `mean`, divided by `std`.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        mean: One number, or one for each channel.
        std: Likewise, above 0.

    Raises:
        ValueError: If their number differs from that of the channels, or a standard deviation is not above 0; or if
            Keras is configured for channels first.
    """
    require_channels_last()
    channels = image.shape[-1]
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if min(stds) <= 0:
        raise ValueError(f"std must be above 0. Received: std={std}")
    scale = [1.0 / s for s in stds]
    offset = [-m / s for m, s in zip(means, stds, strict=True)]
    # float32 under every policy: bfloat16 would round pixels that are no longer integers after augmentation.
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="normalize")(image)


def sequential(layers: Sequence[keras.layers.Layer], x):
    """Return `x` after one layer after the other."""
    for layer in layers:
        x = layer(x)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFactory:
    """Creates the layers of one network.

    Attributes:
        fan_mode: `"fan_in"` or `"fan_out"`, of He's normal initialization.
        l2: Factor of `l2 * sum(w^2)`, applied to every trainable weight.
        survival: For each residual block, the probability that it runs during training, or None for constant depth.
        mode: See `StochasticDepth`.
        scaling: See `StochasticDepth`.
        remat: See `StochasticDepth`.
    """

    fan_mode: str
    l2: float
    survival: Sequence[float | None]
    mode: str = "batch"
    scaling: str = "inference"
    remat: bool = False

    def convolution(self, filters: int, size: int, stride: int = 1, name: str | None = None) -> keras.layers.Layer:
        """Return a convolution without bias and with the same padding."""
        he = keras.initializers.VarianceScaling(2.0, self.fan_mode, "untruncated_normal")
        return keras.layers.Conv2D(
            filters, size, stride, padding="same", use_bias=False, kernel_initializer=he,
            kernel_regularizer=l2_regularizer(self.l2), name=name,
        )  # fmt: skip

    def norm(self, synchronized: bool | None = None) -> keras.layers.Layer:
        """Return a batch normalization with the momentum and epsilon of the papers' code."""
        decay = l2_regularizer(self.l2)
        return BatchNormalization(
            momentum=0.9, epsilon=1e-5, gamma_regularizer=decay, beta_regularizer=decay, synchronized=synchronized
        )

    def branch_norm(self) -> keras.layers.Layer:
        """Return a batch normalization for a branch: replicas cannot exchange statistics inside a conditional."""
        conditional = self.mode != "sample" and (self.remat or None not in self.survival)
        return self.norm(synchronized=False if conditional else None)

    def residual(self, index: int, branch: Sequence[keras.layers.Layer], x, shortcut=None):
        """Return `shortcut` (by default `x`) plus the branch of block `index`, counted from 0."""
        name, survival = f"block_{index + 1}", self.survival[index]
        if survival is None and not self.remat:
            return keras.layers.Add(name=name)([x if shortcut is None else shortcut, sequential(branch, x)])
        block = StochasticDepth(
            keras.Sequential(branch, name=f"{name}_branch"),
            survival=1.0 if survival is None else survival,
            mode=self.mode,
            scaling=self.scaling,
            remat=self.remat,
            name=name,
        )
        return block(x) if shortcut is None else block(x, shortcut)

    def logits(self, x, classes: int):
        """Return float32 logits `(batch, classes)`: global average pooling and a dense layer."""
        decay = l2_regularizer(self.l2)
        dense = keras.layers.Dense(
            classes, kernel_regularizer=decay, bias_regularizer=decay, dtype="float32", name="logits"
        )
        return dense(keras.layers.GlobalAveragePooling2D()(x))


def l2_regularizer(factor: float) -> keras.regularizers.Regularizer | None:
    """Return the penalty `factor * sum(w^2)`, or None for 0."""
    return keras.regularizers.L2(factor) if factor else None


def resolve_survival(num_blocks: int, survival: float | Sequence[float] | None) -> tuple[float | None, ...]:
    """Return `layers.survival.survival_schedule`, or None for each block if `survival` is None: constant depth."""
    return (None,) * num_blocks if survival is None else survival_schedule(num_blocks, survival)


def block_kernels(model: keras.Model) -> list[keras.Variable | None]:
    """Return the kernel of the first convolution of each residual block, None for a block without one.

    A block is a `StochasticDepth` layer or, in a network of constant depth, what begins with a convolution named
    `block_<number>_conv`, the name that our builders give to the first of each block.
    """
    first_layers = [block.branch for block in stochastic_depth_blocks(model)]
    if not first_layers:
        convolutions = {
            int(match[1]): layer
            for layer in model._flatten_layers()
            if (match := re.fullmatch(r"block_(\d+)_conv", layer.name))
        }
        first_layers = [convolutions[number] for number in sorted(convolutions)]
    kernels = ((weight for weight in layer.trainable_variables if len(weight.shape) > 1) for layer in first_layers)
    return [next(candidates, None) for candidates in kernels]


def _per_channel(argument, value, channels):
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * channels
    if len(values) != channels:
        raise ValueError(
            f"{argument} must be one number or one for each of the {channels} channels. Received: {argument}={value}"
        )
    return values
