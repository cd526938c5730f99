"""A layer that runs a frozen TensorFlow graph, and the multiply-adds of its operations."""

import base64
import math
from collections.abc import Sequence

import keras

# The operations of a network at inference. The graph may come from an untrusted `.keras` file, so none of these reads
# or writes a file, runs Python, keeps state, or calls a function whose body would have to be inspected.
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
_GRAPH_PREFIX = "network/"  # of the names in an imported graph


@keras.saving.register_keras_serializable(package="keras_committee")
class TensorFlowGraph(keras.layers.Layer):
    """A frozen network, given as a graph of TensorFlow operations and its weights. It runs on TensorFlow only.

    The weights are those of an ordinary layer: they are saved with it, and an export stores them once. They are not
    trainable.

    Args:
        graph: Serialized `GraphDef` in base64, whose placeholders are the image and the weights.
        image_name: Name of the placeholder of the image.
        output_name: Name of the output tensor `(batch, classes)`.
        weight_list: For each weight, a tuple of the name of its placeholder, its shape, and whether it was trained.
            All are float32.
        classes: Integer, number of outputs.

    Call arguments:
        image: float32 tensor `(batch, height, width, channels)`.

    Returns:
        float32 tensor `(batch, classes)`.

    Raises:
        ValueError: If the graph is damaged, or has an operation that is not in `ALLOWED_OPERATIONS`.
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
        input_names = [image_name, *(weight_name for weight_name, _, _ in self.weight_list)]
        self._graph_function = _GraphFunction(_parse_graph(graph, self.name), input_names, output_name)

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

    def output_tensor(self):
        """Return the `tf.Tensor` of the outputs, in the graph of the operations before it."""
        return self._graph_function.function().outputs[0]

    def with_output(self, tensor) -> "TensorFlowGraph":
        """Return a new layer whose outputs are `tensor`, one of the same shape and dtype in the graph of this layer."""
        return type(self).from_config({**self.get_config(), "output_name": tensor.name.removeprefix(_GRAPH_PREFIX)})

    def multiply_adds(self, input_shape, output_shape):
        """Return the multiply-adds of all convolutions and matrix products. `flops` calls this method.

        Raises:
            ValueError: If a shape is unknown.
        """
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
    """Raise `ValueError` if `names` holds operations outside `ALLOWED_OPERATIONS`.

    Args:
        names: Types of operations, such as `"Conv2D"`.
        description: What they belong to, the subject of the message.
    """
    unsupported = sorted(set(names) - ALLOWED_OPERATIONS)
    if unsupported:
        raise ValueError(
            f"{description} has operations that are not allowed in a network: {', '.join(unsupported)}. "
            "It was not run.\n  Export the network for inference, without control flow, tables, files or Python."
        )


class _GraphFunction:
    """The graph as a TensorFlow function, created on first use."""

    def __init__(self, graph_def, input_names, output_name):
        self._graph_def, self._input_names, self._output_name = graph_def, input_names, output_name
        self._functions = {}

    def function(self, shape=None):
        """Return the function of image and weights, for images of the full `shape`, or of the saved shape if None."""
        if shape not in self._functions:
            self._functions[shape] = self._wrap(shape)
        return self._functions[shape]

    def _wrap(self, shape):
        import tensorflow as tf

        def import_graph():
            tf.graph_util.import_graph_def(self._with_input_shape(shape), name=_GRAPH_PREFIX.rstrip("/"))

        wrapped = tf.compat.v1.wrap_function(import_graph, [])
        get_tensor = wrapped.graph.get_tensor_by_name
        inputs = [get_tensor(f"{_GRAPH_PREFIX}{name}:0") for name in self._input_names]
        return wrapped.prune(inputs, get_tensor(f"{_GRAPH_PREFIX}{self._output_name}"))

    def _with_input_shape(self, shape):
        if shape is None:
            return self._graph_def
        graph_def = type(self._graph_def).FromString(self._graph_def.SerializeToString())
        placeholder = next(node for node in graph_def.node if node.name == self._input_names[0])
        for dim, size in zip(placeholder.attr["shape"].shape.dim, shape, strict=True):
            dim.size = size
        return graph_def


def _parse_graph(graph, name):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"{name!r} is a TensorFlow graph. It runs with KERAS_BACKEND=tensorflow only.")
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.graph_pb2 import GraphDef  # pyright: ignore[reportMissingImports]

    try:
        graph_def = GraphDef.FromString(base64.b64decode(graph, validate=True))
    except (DecodeError, ValueError) as error:
        raise ValueError(f"The graph of {name!r} is damaged: {error}") from error
    functions = [function.signature.name for function in graph_def.library.function]
    check_operations([*functions, *(node.op for node in graph_def.node)], f"The graph of {name!r}")
    return graph_def


def operation_multiply_adds(operation) -> int:
    """Return the multiply-adds of one `tf.Operation`: those of convolutions and matrix products, else 0.

    Raises:
        ValueError: If a shape that the count needs is unknown, or an Einsum has an ellipsis.
    """
    rule = _OPERATION_RULES.get(operation.type)
    if rule is None:
        return 0
    tensors = [*operation.inputs, operation.outputs[0]]
    shapes = [(None,) if tensor.shape.rank is None else tuple(tensor.shape.as_list()) for tensor in tensors]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"Cannot count multiply-adds of {operation.name!r} ({operation.type}): its shapes are unknown."
        )
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
        raise ValueError(f"Cannot count multiply-adds of {operation.name!r}: an Einsum with an ellipsis.")
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
