"""How many multiply-adds does one call of a layer cost, from the shapes that go in and come out?"""

import math

import keras

_CONVOLUTIONS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D, keras.layers.SeparableConv2D,
)  # fmt: skip
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_FREE = (
    keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization,
    keras.layers.RMSNormalization, keras.layers.UnitNormalization, keras.layers.Normalization,
    keras.layers.Embedding, keras.layers.PReLU,
)  # fmt: skip


def layer_multiply_adds(layer: keras.layers.Layer, inputs: list[tuple], output: tuple) -> int:
    """Of one call, from the full shapes of its inputs and of its first output.

    Raises:
        ValueError: If a layer with a matrix of weights is not known.
    """
    if hasattr(layer, "multiply_adds"):
        return int(layer.multiply_adds(inputs[0] if len(inputs) == 1 else inputs, output))
    for kinds, rule in _RULES:
        if isinstance(layer, kinds):
            return rule(layer, inputs, output)
    if any(len(weight.shape) > 1 for weight in layer.weights):
        raise ValueError(
            f"Cannot count layer {layer.name!r} of unknown kind {type(layer).__name__}. Define "
            "`multiply_adds(input_shape, output_shape)` on it: the multiply-adds of one call."
        )
    return 0


def _convolution(layer, inputs, output):
    """Each output position applies the kernel once; a kernel holds channels / groups inputs already."""
    return math.prod(output) // _channels(layer, output) * _kernel_size(layer)


def _transposed(layer, inputs, output):
    """Each input position spreads the kernel once, cropped borders included."""
    return math.prod(inputs[0]) // _channels(layer, inputs[0]) * _kernel_size(layer)


def _channels(layer, shape):
    return shape[1 if layer.data_format == "channels_first" else -1]


def _kernel_size(layer):
    kernels = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return sum(math.prod(getattr(layer, name).shape) for name in kernels if getattr(layer, name, None) is not None)


def _dense(layer, inputs, output):
    return math.prod(output) * inputs[0][-1]


def _einsum_dense(layer, inputs, output):
    """The product of the sizes of all the labels of the equation."""
    labels = layer.equation.split("->")[0].split(",")
    sizes = {}
    for term, shape in zip(labels, (inputs[0], tuple(layer.kernel.shape)), strict=True):
        sizes.update(_label_sizes(term.strip(), shape))
    return math.prod(sizes.values())


def _label_sizes(term, shape):
    before, dots, after = term.partition("...")
    named = dict(zip(before, shape, strict=False)) | dict(zip(reversed(after), reversed(shape), strict=False))
    return {**named, "...": math.prod(shape[len(before) : len(shape) - len(after)])} if dots else named


def _attention(layer, inputs, output):
    """Four projections, the scores and their use; without `attention_axes` every position attends to every other."""
    query, value, key = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else inputs[1]
    config = layer.get_config()
    heads, key_dim, value_dim = config["num_heads"], config["key_dim"], config["value_dim"] or config["key_dim"]
    axes = config["attention_axes"] or range(1, len(value) - 1)
    queries, values = math.prod(query[1:-1]), math.prod(value[1:-1])
    attended = math.prod(value[axis] for axis in axes)
    projections = queries * query[-1] * key_dim + values * (key[-1] * key_dim + value[-1] * value_dim)
    return heads * (projections + queries * attended * (key_dim + value_dim) + queries * value_dim * output[-1])


def _free(layer, inputs, output):
    return 0


_RULES = (
    (_TRANSPOSED, _transposed),  # before the convolutions, in case Keras makes them one family
    (_CONVOLUTIONS, _convolution),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum_dense),
    (keras.layers.MultiHeadAttention, _attention),
    (_FREE, _free),
)
