"""How many multiply-adds does an operation of a TensorFlow graph cost, by its shapes?"""

import math


def multiply_adds(operation) -> int:
    """Of one `tf.Operation`: convolutions and products of matrices count, all else is free.

    Raises:
        ValueError: If a shape that it takes to count is not known.
    """
    rule = _RULES.get(operation.type)
    if rule is None:
        return 0
    tensors = [*operation.inputs, operation.outputs[0]]
    shapes = [(None,) if each.shape.rank is None else tuple(each.shape.as_list()) for each in tensors]
    if any(None in shape for shape in shapes):
        raise ValueError(f"Cannot count {operation.name!r} ({operation.type}): its shapes are not known.")
    return rule(operation, shapes[:-1], shapes[-1])


def _convolution(operation, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:-1])


def _depthwise(operation, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:2])


def _transposed(operation, inputs, output):
    return math.prod(inputs[2]) * math.prod(inputs[1][:-1])


def _product(operation, inputs, output):
    turned = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return math.prod(output) * inputs[0][-2 if turned else -1]


def _einsum(operation, inputs, output):
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    if "..." in "".join(terms):
        raise ValueError(f"Cannot count {operation.name!r}: an Einsum with an ellipsis.")
    pairs = [pair for term, shape in zip(terms, inputs, strict=True) for pair in zip(term, shape, strict=True)]
    return math.prod(dict(pairs).values())


_RULES = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "Conv2DBackpropInput": _transposed,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _product,
    "BatchMatMul": _product,
    "BatchMatMulV2": _product,
    "BatchMatMulV3": _product,
    "Einsum": _einsum,
}
