"""EfficientNet, B0 to B7."""

import dataclasses
import math
import types
from collections.abc import Sequence

import keras

from keras_committee.input_scaling import IMAGENET_MEAN, IMAGENET_STD
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.stochastic_depth import StochasticDepth
from keras_committee.models.blocks import l2_regularizer, normalize_pixels, resolve_survival

# Width, depth, resolution in pixels, dropout before the logits.
_VARIANTS = types.MappingProxyType(
    {
        "b0": (1.0, 1.0, 224, 0.2),
        "b1": (1.0, 1.1, 240, 0.2),
        "b2": (1.1, 1.2, 260, 0.3),
        "b3": (1.2, 1.4, 300, 0.3),
        "b4": (1.4, 1.8, 380, 0.4),
        "b5": (1.6, 2.2, 456, 0.4),
        "b6": (1.8, 2.6, 528, 0.5),
        "b7": (2.0, 3.1, 600, 0.5),
    }
)
# Stages of B0: blocks, kernel, stride of the first block, expansion, output channels.
_B0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet(
    variant: str,
    *,
    classes: int = 1000,
    image_size: int | None = None,
    survival: float | Sequence[float] | None = 0.8,
    mode: str = "batch",
    scaling: str = "inference",
    dropout: float | None = None,
    l2: float = 0.0,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
    name: str | None = None,
) -> keras.Model:
    """Build an EfficientNet of inverted residual blocks with squeeze and excitation.

    The network and its layer names are those of `keras.applications`, with three differences: it normalizes raw pixels
    itself, returns logits, and its stochastic depth skips the branch instead of multiplying it by zero.

    Args:
        variant: `"b0"` to `"b7"`.
        classes: Integer, number of logits.
        image_size: Height and width in pixels, at least 32. None is that of the variant.
        survival: p_L of the linear decay over the blocks that can be skipped (those with a shortcut, because their
            shape does not change), or one probability for each of them. None is constant depth.
        mode: See `StochasticDepth`.
        scaling: See `StochasticDepth`. The reference code scales during training.
        dropout: Probability of dropping a feature before the logits. None is that of the variant.
        l2: Factor of `l2 * sum(w^2)` over kernels, without batch normalization and biases. TensorFlow's `l2_loss`
            halves the sum: the reference's weight decay of 5e-6 is 2.5e-6 here.
        mean: Mean of the pixels, one number or one per channel, subtracted from the raw pixels 0..255.
        std: Standard deviation of the pixels, likewise.
        name: Name of the model. None is `efficientnet_<variant>`.

    Returns:
        Functional model from float32 raw pixels `(batch, size, size, 3)`, named "image", to float32 logits
        `(batch, classes)`.

    Raises:
        ValueError: If the variant is unknown, the image is smaller than 32 pixels, or survival does not fit the blocks.

    Source: Tan and Le 2019, arXiv:1905.11946; hyperparameters as in google/uncertainty-baselines,
    baselines/imagenet/efficientnet.py.
    """
    check_variant(variant)
    width, _, resolution, default_dropout = _VARIANTS[variant]
    size = resolution if image_size is None else image_size
    if size < 32 or classes < 1:
        raise ValueError(
            f"image_size must be at least 32 and classes at least 1. Received: image_size={size}, classes={classes}"
        )
    blocks = _block_specs(variant)
    probabilities = iter(resolve_survival(sum(block.skippable for block in blocks), survival))
    factory = _EfficientNetLayers(l2=l2, mode=mode, scaling=scaling)

    image = keras.Input((size, size, 3), dtype="float32", name="image")
    x = factory.conv_bn_swish(normalize_pixels(image, mean, std), _round_filters(32 * width), 3, "stem_", stride=2)
    for block in blocks:
        x = factory.inverted_residual(block, x, next(probabilities) if block.skippable else None)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(
        factory.conv_bn_swish(x, _round_filters(1280 * width), 1, "top_")
    )
    rate = default_dropout if dropout is None else dropout
    x = keras.layers.Dropout(rate, name="top_dropout")(x) if rate else x
    return keras.Model(image, factory.logits(x, classes), name=name or f"efficientnet_{variant}")


def efficientnet_resolution(variant: str) -> int:
    """Return the published height and width, in pixels, of the images of a variant.

    Raises:
        ValueError: If the variant is unknown.
    """
    check_variant(variant)
    return _VARIANTS[variant][2]


def check_variant(variant: str) -> None:
    """Raise `ValueError` unless `variant` is `"b0"` to `"b7"`."""
    if variant not in _VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(_VARIANTS)}. Received: {variant!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BlockSpec:
    name: str
    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int

    @property
    def skippable(self) -> bool:
        """Whether the block has a shortcut, because its shape does not change."""
        return self.stride == 1 and self.channels_in == self.channels_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EfficientNetLayers:
    """Creates the layers of one network, with the names of `keras.applications`."""

    l2: float
    mode: str
    scaling: str

    def conv_bn_swish(self, x, filters, kernel, prefix, stride=1):
        """Return `x` after a convolution, batch normalization and swish."""
        return self._bn_swish(self._convolution(filters, kernel, f"{prefix}conv", stride)(x), prefix, synchronized=None)

    def inverted_residual(self, block, x, survival):
        """Return the block's branch, plus its shortcut if it has one. With `survival`, the branch may be skipped."""
        if survival is None:
            outputs = self._apply_branch(block, x, synchronized=None)
            return keras.layers.Add(name=f"{block.name}add")([outputs, x]) if block.skippable else outputs
        inputs = keras.Input(x.shape[1:], name=f"{block.name}input")
        # Replicas cannot exchange statistics inside a conditional.
        outputs = self._apply_branch(block, inputs, synchronized=None if self.mode == "sample" else False)
        branch = keras.Model(inputs, outputs, name=f"{block.name}branch")
        return StochasticDepth(
            branch, survival=survival, mode=self.mode, scaling=self.scaling, name=f"{block.name}add"
        )(x)

    def logits(self, x, classes):
        """Return float32 logits `(batch, classes)` of a dense layer."""
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")
        return keras.layers.Dense(
            classes,
            kernel_initializer=initializer,
            kernel_regularizer=l2_regularizer(self.l2),
            dtype="float32",
            name="logits",
        )(x)

    def _apply_branch(self, block, x, synchronized):
        filters = block.channels_in * block.expansion
        if block.expansion != 1:
            expanded = self._convolution(filters, 1, f"{block.name}expand_conv")(x)
            x = self._bn_swish(expanded, f"{block.name}expand_", synchronized)
        depthwise = keras.layers.DepthwiseConv2D(
            block.kernel, block.stride, padding="same", use_bias=False, depthwise_initializer=_he_normal(),
            depthwise_regularizer=l2_regularizer(self.l2), name=f"{block.name}dwconv",
        )  # fmt: skip
        x = self._squeeze_and_excite(block, self._bn_swish(depthwise(x), block.name, synchronized), filters)
        x = self._convolution(block.channels_out, 1, f"{block.name}project_conv")(x)
        return self._batch_norm(f"{block.name}project_bn", synchronized)(x)

    def _squeeze_and_excite(self, block, x, filters):
        """Apply squeeze and excitation, squeezed to a quarter of the block's input channels."""
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{block.name}se_squeeze")(x)
        squeezed = max(1, int(block.channels_in / 4))
        gate = self._convolution(squeezed, 1, f"{block.name}se_reduce", use_bias=True, activation="swish")(gate)
        gate = self._convolution(filters, 1, f"{block.name}se_expand", use_bias=True, activation="sigmoid")(gate)
        return keras.layers.Multiply(name=f"{block.name}se_excite")([x, gate])

    def _convolution(self, filters, kernel, name, stride=1, use_bias=False, activation=None):
        return keras.layers.Conv2D(
            filters, kernel, stride, padding="same", use_bias=use_bias, activation=activation,
            kernel_initializer=_he_normal(), kernel_regularizer=l2_regularizer(self.l2), name=name,
        )  # fmt: skip

    def _bn_swish(self, x, prefix, synchronized):
        return keras.layers.Activation("swish", name=f"{prefix}activation")(
            self._batch_norm(f"{prefix}bn", synchronized)(x)
        )

    def _batch_norm(self, name, synchronized):
        return BatchNormalization(synchronized=synchronized, name=name)


def _he_normal():
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def _block_specs(variant):
    width, depth, *_ = _VARIANTS[variant]
    blocks, channels_in = [], _round_filters(32 * width)
    for stage, (count, kernel, stride, expansion, base_channels) in enumerate(_B0_STAGES):
        channels = _round_filters(base_channels * width)
        for index in range(math.ceil(depth * count)):
            blocks.append(
                _BlockSpec(
                    name=f"block{stage + 1}{chr(ord('a') + index)}_",
                    kernel=kernel,
                    stride=1 if index else stride,
                    expansion=expansion,
                    channels_in=channels_in,
                    channels_out=channels,
                )
            )
            channels_in = channels
    return blocks


def _round_filters(filters):
    """Round to the nearest multiple of 8, or the next one if that is below nine tenths of the value."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8
