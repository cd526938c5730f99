"""How does a network that is a TensorFlow graph, and no layers, run as one?"""

import base64
import math
from collections.abc import Sequence

import keras

# What a network at inference is made of. Whoever writes a `.keras` file writes this graph, too: none of these reads or
# writes a file, runs Python, keeps a state, or calls a function that would have to be looked into.
ALLOWED_OPERATIONS = frozenset(
    (
        "Abs", "Add", "AddN", "AddV2", "All", "Any", "ArgMax", "AvgPool", "AvgPool3D", "BatchMatMul",
        "BatchMatMulV2", "BatchMatMulV3", "BatchToSpaceND", "BiasAdd", "BroadcastArgs", "BroadcastTo", "Cast",
        "Ceil", "ClipByValue", "ConcatV2", "Const", "Conv2D", "Conv2DBackpropInput", "Conv3D", "CropAndResize",
        "Cumsum", "DepthToSpace", "DepthwiseConv2dNative", "Div", "DivNoNan", "Einsum", "Elu", "EnsureShape",
        "Equal", "Erf", "Erfc", "Exp", "ExpandDims", "Fill", "Floor", "FloorDiv", "FloorMod", "FusedBatchNorm",
        "FusedBatchNormV2", "FusedBatchNormV3", "Gather", "GatherNd", "GatherV2", "Greater", "GreaterEqual",
        "Identity", "IdentityN", "Inv", "L2Loss", "LeakyRelu", "Less", "LessEqual", "Log", "Log1p",
        "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul", "Max", "MaxPool", "MaxPool3D",
        "MaxPoolV2", "Maximum", "Mean", "Min", "Minimum", "MirrorPad", "Mul", "Neg", "NoOp", "NotEqual",
        "OneHot", "OnesLike", "Pack", "Pad", "PadV2", "Placeholder", "Pow", "PreventGradient", "Prod", "Range",
        "Rank", "RealDiv", "Reciprocal", "Relu", "Relu6", "Reshape", "ResizeArea", "ResizeBicubic",
        "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Roll", "Round", "Rsqrt", "ScaleAndTranslate",
        "Select", "SelectV2", "Selu", "Shape", "ShapeN", "Sigmoid", "Sign", "Size", "Slice", "Softmax",
        "Softplus", "Softsign", "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV", "Sqrt", "Square",
        "SquaredDifference", "Squeeze", "StopGradient", "StridedSlice", "Sub", "Sum", "Tanh", "Tile", "TopKV2",
        "Transpose", "TruncateDiv", "Unpack", "Where", "ZerosLike",
    )
)  # fmt: skip


@keras.saving.register_keras_serializable(package="keras_committee")
class TensorFlowGraph(keras.layers.Layer):
    """A frozen network that is given as a graph of TensorFlow's operations, and weights. It runs on TensorFlow only.

    The weights are those of any layer: saved with it, and held once by what is exported. It is no layer that training
    changes.

    Args:
        graph: A serialized `GraphDef` in base64, whose placeholders are the image and the weights.
        image_name: The name of the image's placeholder.
        output_name: The name of the tensor of the outputs, `(batch, classes)`.
        weight_list: `(name of the placeholder, shape, whether it was trained)` of each weight; float32.
        classes: Number of outputs.

    Call arguments:
        image: float32 `(batch, height, width, channels)`.

    Returns:
        float32 `(batch, classes)`.

    Raises:
        ValueError: If an operation of the graph is none of `OPERATIONS`, or the graph is damaged.
    """

    def __init__(
        self,
        graph: str,
        image_name: str,
        output_name: str,
        weight_list: Sequence[tuple[str, Sequence[int], bool]],
        classes: int,
        **kwargs,
    ):
        super().__init__(**{"trainable": False, "dtype": "float32", **kwargs})
        self.graph, self.image_name, self.output_name, self.classes = graph, image_name, output_name, int(classes)
        self.weight_list = [
            (str(name), [int(size) for size in shape], bool(trained)) for name, shape, trained in weight_list
        ]
        inputs = [image_name, *(each for each, _, _ in self.weight_list)]
        self._graph_function = _GraphFunction(_parse_graph(graph, self.name), inputs, output_name)

    def build(self, input_shape):
        self._weight_variables = [
            self.add_weight(name=f"weight_{index}", shape=tuple(shape), trainable=trained, dtype="float32")
            for index, (_, shape, trained) in enumerate(self.weight_list)
        ]
        self.built = True

    def call(self, image):
        import tensorflow as tf

        values = [tf.convert_to_tensor(variable.value) for variable in self._weight_variables]
        function = self._graph_function.function()
        outputs = function(keras.ops.cast(image, function.inputs[0].dtype.name), *values)
        outputs.set_shape((None, self.classes))
        return outputs

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.classes)

    def multiply_adds(self, input_shape, output_shape):
        """Of all convolutions and products of matrices, for `flops`. ValueError if a shape cannot be known."""
        graph = self._graph_function.function(tuple(input_shape)).graph
        return sum(operation_multiply_adds(operation) for operation in graph.get_operations())

    def get_config(self):
        return {
            **super().get_config(),
            "graph": self.graph,
            "image_name": self.image_name,
            "output_name": self.output_name,
            "weight_list": [[name, shape, trained] for name, shape, trained in self.weight_list],
            "classes": self.classes,
        }


def check_operations(names: Sequence[str], description: str) -> None:
    """Raises ValueError, which names them, if there are others than `OPERATIONS` among the `names`."""
    unsupported = sorted(set(names) - ALLOWED_OPERATIONS)
    if unsupported:
        raise ValueError(
            f"{description} does more than a network at inference does: {', '.join(unsupported)}. It was not run.\n"
            "  Export it for inference, without control flow, tables, files or Python in it."
        )


class _GraphFunction:
    """The graph as a function, made when it is first asked for."""

    def __init__(self, graph_def, inputs, output):
        self._graph_def, self._inputs, self._output = graph_def, inputs, output
        self._functions = {}

    def function(self, shape=None):
        """Of image and weights; with the image's full `shape` known, or as the graph was saved."""
        if shape not in self._functions:
            self._functions[shape] = self._wrap(shape)
        return self._functions[shape]

    def _wrap(self, shape):
        import tensorflow as tf

        input_names = [f"network/{name}:0" for name in self._inputs]

        def import_graph():
            tf.graph_util.import_graph_def(self._with_input_shape(shape), name="network")

        wrapped = tf.compat.v1.wrap_function(import_graph, [])
        get_tensor = wrapped.graph.get_tensor_by_name
        return wrapped.prune([get_tensor(feed) for feed in input_names], get_tensor(f"network/{self._output}"))

    def _with_input_shape(self, shape):
        if shape is None:
            return self._graph_def
        graph_def = type(self._graph_def).FromString(self._graph_def.SerializeToString())
        placeholder = next(node for node in graph_def.node if node.name == self._inputs[0])
        for dim, size in zip(placeholder.attr["shape"].shape.dim, shape, strict=True):
            dim.size = size
        return graph_def


def _parse_graph(graph, name):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"{name!r} is a graph of TensorFlow. It runs with KERAS_BACKEND=tensorflow only.")
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.graph_pb2 import GraphDef  # pyright: ignore[reportMissingImports]

    try:
        graph_def = GraphDef.FromString(base64.b64decode(graph, validate=True))
    except (DecodeError, ValueError) as error:
        raise ValueError(f"the graph of {name!r} is damaged: {error}") from error
    functions = [function.signature.name for function in graph_def.library.function]
    check_operations([*functions, *(node.op for node in graph_def.node)], f"the graph of {name!r}")
    return graph_def


def operation_multiply_adds(operation) -> int:
    """Of one `tf.Operation`: convolutions and products of matrices count, all else is free.

    Raises:
        ValueError: If a shape that it takes to count is not known.
    """
    rule = _OPERATION_RULES.get(operation.type)
    if rule is None:
        return 0
    tensors = [*operation.inputs, operation.outputs[0]]
    shapes = [(None,) if tensor.shape.rank is None else tuple(tensor.shape.as_list()) for tensor in tensors]
    if any(None in shape for shape in shapes):
        raise ValueError(f"Cannot count {operation.name!r} ({operation.type}): its shapes are not known.")
    return rule(operation, shapes[:-1], shapes[-1])


def _convolution(operation, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:-1])


def _depthwise_convolution(operation, inputs, output):
    return math.prod(output) * math.prod(inputs[1][:2])


def _transposed_convolution(operation, inputs, output):
    return math.prod(inputs[2]) * math.prod(inputs[1][:-1])


def _matmul(operation, inputs, output):
    is_transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return math.prod(output) * inputs[0][-2 if is_transposed else -1]


def _einsum(operation, inputs, output):
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    if "..." in "".join(terms):
        raise ValueError(f"Cannot count {operation.name!r}: an Einsum with an ellipsis.")
    pairs = [pair for term, shape in zip(terms, inputs, strict=True) for pair in zip(term, shape, strict=True)]
    return math.prod(dict(pairs).values())


_OPERATION_RULES = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
}
