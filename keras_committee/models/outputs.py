"""What the outputs of a network are: logits, probabilities, or neither.

The structure of a network decides where it is known: the last activation, however many casts, reshapes, dropouts and
nested models follow it. Elsewhere the values for images of noise decide.
"""

import types
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_committee.layers.graph import TensorFlowGraph
from keras_committee.metrics.checks import are_probabilities
from keras_committee.models.folding import INFERENCE_IDENTITIES, LINEAR_LAYERS

OutputKind = Literal["logits", "probabilities", "bounded"]

_KIND_BY_ACTIVATION: types.MappingProxyType[str, OutputKind] = types.MappingProxyType(
    {
        "linear": "logits",
        "log_softmax": "logits",
        "softmax": "probabilities",
        "sigmoid": "bounded",
        "hard_sigmoid": "bounded",
        "sparse_sigmoid": "bounded",
        "log_sigmoid": "bounded",
        "tanh": "bounded",
        "hard_tanh": "bounded",
        "softsign": "bounded",
        "sparsemax": "bounded",  # its rows should sum to 1, but do not in Keras 3.15
    }
)
# Operations of Keras and TensorFlow by the names of their types, which both libraries share.
_ACTIVATION_BY_OPERATION = types.MappingProxyType(
    {
        **{name.title().replace("_", ""): name for name in _KIND_BY_ACTIVATION if name != "linear"},
        **dict.fromkeys(("MatMul", "BiasAdd", "Conv2D"), "linear"),
    }
)
_VALUE_PRESERVING_OPERATIONS = frozenset(
    ("Cast", "EnsureShape", "ExpandDims", "Identity", "PreventGradient", "Reshape", "Squeeze", "StopGradient")
)
_VALUE_PRESERVING_LAYERS = (*INFERENCE_IDENTITIES, keras.layers.Flatten, keras.layers.Reshape)
_LAYERS_WITH_ACTIVATION = (
    *LINEAR_LAYERS, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D, keras.layers.Activation,
)  # fmt: skip

_MAGNIFICATIONS = (1e4, -1e4)  # of images: logits leave every interval, bounded activations reach both of its ends
_INTERVALS = ((0.0, 1.0), (-1.0, 1.0))
_INTERVAL_TOLERANCE = 0.01


class Outputs(NamedTuple):
    """What the outputs of a network are.

    Attributes:
        kind: `"logits"`, log-probabilities included; `"probabilities"` that sum to 1; `"bounded"`, such as those of a
            sigmoid, which are neither.
        description: The reason, a predicate of the network, such as "ends with a softmax".
        build_logits: Function that returns the logits before the final softmax, a tensor `(batch, classes)` in the
            graph of the network. None if the outputs are not those of a softmax, or it cannot be removed.
    """

    kind: OutputKind
    description: str
    build_logits: Callable[[], Any] | None = None


def classify_outputs(model: keras.Model, images: np.ndarray) -> Outputs:
    """Return what the outputs of a network are, by its structure, or by values where that is not known.

    Args:
        model: Functional or built Sequential model from one image to `(batch, classes)`.
        images: Images of noise in the input scaling of the model, `(examples, height, width, channels)`.
    """
    classes = model.outputs[0].shape[1]
    last = _find_activation(model.outputs[0], classes)
    if last is None:
        return _classify_values(model, images)
    kind = _KIND_BY_ACTIVATION[last.name]
    build_before = last.build_before if last.name == "softmax" else None
    return Outputs(
        kind,
        f"ends with a {last.name}",
        build_before and (lambda: ops.reshape(build_before(), (-1, classes))),
    )


def noise_images(image_shape: tuple[int, ...]) -> np.ndarray:
    """Return eight images of noise in different colors and intensities, float32 pixels 0..255."""
    rng = np.random.default_rng(7)
    colors = rng.uniform(0, 255, (8, 1, 1, image_shape[2]))
    return (colors * rng.uniform(0, 1, (8, *image_shape))).astype("float32")


def predict_rows(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the outputs of a network at inference, float64 `(examples, classes)`."""
    outputs = model(ops.cast(images, model.inputs[0].dtype), training=False)
    return ops.convert_to_numpy(ops.cast(outputs, "float32")).astype("float64")


class _Activation(NamedTuple):
    """The last activation of a network: its name in `keras.activations`, and how to build the tensor before it."""

    name: str
    build_before: Callable[[], Any] | None


def _find_activation(tensor: Any, classes: int) -> _Activation | None:
    """Return the last activation before a symbolic tensor, or None if it is not known."""
    operation, node_index, tensor_index = tensor._keras_history
    node = operation._inbound_nodes[node_index]
    if _is_graph_of_layers(operation):
        return _find_activation_in_nested_model(operation, tensor_index, node.input_tensors, classes)
    if len(node.input_tensors) != 1:
        return None
    (before,) = node.input_tensors
    if isinstance(operation, TensorFlowGraph):
        return _find_activation_in_graph(operation, before)
    if _preserves_values(operation, before, tensor):
        return _find_activation(before, classes)
    name = _activation_name(operation)
    if name in ("softmax", "log_softmax") and not _is_over_classes(operation, tensor, classes):
        return None
    if name is None or name not in _KIND_BY_ACTIVATION:
        return None
    if type(operation) in _LAYERS_WITH_ACTIVATION and not isinstance(operation, keras.layers.Activation):
        return _Activation(name, lambda: _linear_copy(operation, before))
    return _Activation(name, lambda: before)


def _is_graph_of_layers(operation):
    """Return whether an operation is a functional or Sequential model whose call is not overridden."""
    is_built_model = isinstance(operation, keras.Model) and bool(getattr(operation, "outputs", None))
    return is_built_model and type(operation).call.__module__.startswith("keras.src.models")


def _find_activation_in_nested_model(model, output_index, inputs, classes):
    last = _find_activation(model.outputs[output_index], classes)
    build_inner = last and last.build_before
    if last is None or build_inner is None:
        return last

    def build_before():
        nested = keras.Model(model.inputs, build_inner(), name=model.name)
        return nested(inputs if len(inputs) > 1 else inputs[0])

    return _Activation(last.name, build_before)


def _find_activation_in_graph(layer, image):
    last = output = layer.output_tensor()
    while last.op.type in _VALUE_PRESERVING_OPERATIONS and last.op.inputs[0].dtype.is_floating:
        last = last.op.inputs[0]
    name = _ACTIVATION_BY_OPERATION.get(last.op.type)
    if name is None or last.shape.rank != 2:
        return None
    before = last.op.inputs[0]

    def build_before():
        copy = layer.with_output(before)
        logits = copy(image)
        copy.set_weights(layer.get_weights())
        return logits

    return _Activation(name, build_before if before.dtype == output.dtype else None)


def _preserves_values(operation, before, after):
    is_float = all("float" in keras.backend.standardize_dtype(tensor.dtype) for tensor in (before, after))
    if type(operation) is keras.layers.Activation:
        return operation.activation is keras.activations.linear
    is_known = type(operation) in _VALUE_PRESERVING_LAYERS or (
        _is_keras_operation(operation) and type(operation).__name__ in _VALUE_PRESERVING_OPERATIONS
    )
    return is_known and is_float


def _activation_name(operation):
    """Return the name of the activation with which a layer or operation ends, or None."""
    if type(operation) in _LAYERS_WITH_ACTIVATION:
        activation = operation.activation
        is_keras = (getattr(activation, "__module__", None) or "").startswith("keras.")
        return getattr(activation, "__name__", None) if is_keras else None
    if type(operation) is keras.layers.Softmax:
        return "softmax"
    return _ACTIVATION_BY_OPERATION.get(type(operation).__name__) if _is_keras_operation(operation) else None


def _is_keras_operation(operation):
    return type(operation).__module__.startswith("keras.src.ops")


def _is_over_classes(operation, tensor, classes):
    """Return whether a softmax normalizes each image's numbers over the last axis, the classes."""
    axis = getattr(operation, "axis", -1)
    return axis in (-1, len(tensor.shape) - 1) and tuple(tensor.shape[1:]) == (1,) * (len(tensor.shape) - 2) + (
        classes,
    )


def _linear_copy(layer, before):
    copy = type(layer).from_config({**layer.get_config(), "activation": "linear", "name": f"{layer.name}_logits"})
    logits = copy(before)
    copy.set_weights(layer.get_weights())
    return logits


def _classify_values(model, images):
    rows = predict_rows(model, images)
    if are_probabilities(rows):
        return Outputs("probabilities", "returns probabilities")
    rows = np.concatenate([rows, *(predict_rows(model, images * factor) for factor in _MAGNIFICATIONS)])
    rows = rows[np.isfinite(rows).all(axis=1)]
    for low, high in _INTERVALS:
        if len(rows) and _reaches_ends_only(rows, low, high):
            return Outputs("bounded", f"returns numbers from {low:g} to {high:g}, however large its inputs are")
    return Outputs("logits", "returns logits")


def _reaches_ends_only(rows, low, high):
    ends = np.array([rows.min(), rows.max()])
    return bool((np.abs(ends - [low, high]) <= _INTERVAL_TOLERANCE).all())
