"""Folding of batch normalizations into the layers around them.

At inference a batch normalization is `scale * x + shift`. It costs a pass over the activations, so it is removed where
the layers around it can compute it:

- After a linear layer whose output nothing else reads, scale and shift are folded into the kernel and bias of that
  layer.
- After a sum, as in pre-activation networks, the normalization is split. It equals `scale * (x + shift / scale)`. The
  offset `shift / scale` is added to the sum `x` through the bias of a layer that it adds up, and every later sum
  subtracts it again through the bias of its own branch. A positive scale commutes with the ReLU that follows, so it is
  folded into the kernels of the layers behind the ReLU.

Every other normalization stays. The rules read the graph only through `LayerGraph`; `InferenceModel` applies the plan.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_committee.flops.counting import has_graph
from keras_committee.layers.layer_graph import LayerGraph, layer_calls

# Largest offset of a sum in absolute value. An activation with this offset loses 32 * 2**-24 = 2e-6 to rounding. The
# largest offset of 65 such normalizations in four trained WRN-16-1 and one WRN-16-2 is 4.
MAX_OFFSET = 32.0

_CONV_LAYERS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LINEAR_LAYERS = (*_CONV_LAYERS, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_SCALE_EQUIVARIANT_LAYERS = (
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D,
    keras.layers.MaxPooling2D, keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FoldPlan:
    """Which normalizations are removed, and how the layers around them change. Keys are the `id` of a layer.

    Attributes:
        folded: For a removed normalization, the linear layer before it that computes it.
        split: For a normalization after a sum that is removed, whether other layers read the sum as well.
        scales: For a linear layer, the factors of its inputs, float64 `(channels,)`.
        shifts: For a linear layer, what is added to its outputs, float64 `(filters,)`.
    """

    folded: dict[int, Any]
    split: dict[int, bool] = dataclasses.field(default_factory=dict)
    scales: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    shifts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def layer_graph(model: keras.Model) -> LayerGraph:
    """Return all layer calls of a model and of the models nested in it.

    Raises:
        ValueError: If the model is not a graph of layers.
    """
    return LayerGraph(_nested_graphs(model, set()))


def fold_batch_norms(graph: LayerGraph) -> FoldPlan:
    """Return what happens to each normalization. Those in neither `folded` nor `split` stay."""
    plan = FoldPlan(dict(_foldable_norms(graph)))
    offsets = {}  # by id of a sum's output
    for node in graph.nodes:
        if _is_plain_norm(graph, node) and id(node.operation) not in plan.folded:
            _split_norm(graph, node, plan, offsets)
    for node in graph.nodes:
        _compensate_offset(graph, node, plan, offsets)
    return plan


def scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift of a normalization at inference, `inputs * scale + shift`, float64 `(channels,)` each."""
    scale = 1.0 / np.sqrt(to_float64(norm.moving_variance) + norm.epsilon)
    scale = scale * to_float64(norm.gamma) if norm.scale else scale
    shift = -to_float64(norm.moving_mean) * scale
    return scale, shift + to_float64(norm.beta) if norm.center else shift


def functional_graph(model: keras.Model) -> Any:
    """Return the graph of layers of a model. Raises ValueError if it has none."""
    if not has_graph(model):
        raise ValueError(f"Cannot export {model.name!r}: it must be a functional or Sequential model.")
    return getattr(model, "_functional", model)  # of a Sequential


def is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def is_linear(layer: Any) -> bool:
    """Whether the layer multiplies by a kernel that can be changed. Subclasses and quantized layers are excluded."""
    is_known = type(layer) in _LINEAR_LAYERS and layer.quantization_mode is None
    return is_known and getattr(layer, "data_format", "channels_last") == "channels_last"


def to_float64(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype(np.float64)


def _nested_graphs(model, seen):
    """Yield the graph of the model and of the models nested in it, each once."""
    graph = functional_graph(model)
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for node in layer_calls(graph):
        if has_graph(node.operation):
            yield from _nested_graphs(node.operation, seen)


def _is_replaceable(graph, layer):
    """Whether the output of the layer's only call depends on its kernel and bias alone, without an activation."""
    return is_linear(layer) and graph.used_once(layer) and layer.activation is keras.activations.linear


def _is_plain_norm(graph, node):
    """Whether the node is the only call of a batch normalization over the last axis."""
    layer = node.operation
    normalizes_last_axis = is_norm(layer) and layer.axis in (-1, len(node.input_tensors[0].shape) - 1)
    return normalizes_last_axis and graph.used_once(layer)


def _foldable_norms(graph):
    """Yield each normalization that alone reads the output of a linear layer, with that layer."""
    for node in (node for node in graph.nodes if _is_plain_norm(graph, node)):
        tensor = node.input_tensors[0]
        producer = graph.producer(tensor)
        if producer is not None and _is_replaceable(graph, producer.operation) and len(graph.consumers(tensor)) == 1:
            yield id(node.operation), producer.operation


def _split_norm(graph, node, plan, offsets):
    """Split the normalization at `node` between the layers before and behind it, if they can compute it."""
    norm, tensor = node.operation, node.input_tensors[0]
    scale, shift = scale_and_shift(norm)
    if not (scale > 0).all() or np.abs(shift / scale).max() > MAX_OFFSET:
        return
    downstream = _downstream_linear_layers(graph, node.outputs[0])
    if downstream is None or not _can_add_offset(graph, tensor, norm, plan):
        return
    plan.split[id(norm)] = len(graph.consumers(tensor)) > 1
    plan.scales.update({id(layer): scale for layer in downstream})
    offsets[id(tensor)] = shift / scale


def _downstream_linear_layers(graph, tensor):
    """Return the linear layers that read `tensor`, directly or behind layers that commute with a positive scale.

    None if any other layer reads it.
    """
    layers = []
    for node in graph.consumers(tensor):
        if node is None:
            return None
        if _can_absorb_scale(node.operation) and graph.used_once(node.operation):
            layers.append(node.operation)
            continue
        behind = _downstream_linear_layers(graph, node.outputs[0]) if _commutes_with_scale(node.operation) else None
        if behind is None:
            return None
        layers += behind
    return layers


def _can_absorb_scale(layer):
    return is_linear(layer) and getattr(layer, "groups", 1) == 1


def _commutes_with_scale(layer):
    if isinstance(layer, keras.layers.ReLU):
        return layer.max_value is None and not layer.threshold
    is_relu = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    return is_relu or type(layer) in _SCALE_EQUIVARIANT_LAYERS


def _can_add_offset(graph, tensor, norm, plan):
    """Whether a constant can be added to `tensor` where it is computed, and subtracted by every other consumer."""
    producer = graph.producer(tensor)
    can_add = producer is not None and (
        _is_replaceable(graph, producer.operation) or _compensating_layer(graph, producer, plan) is not None
    )
    other_consumers = [node for node in graph.consumers(tensor) if node is None or node.operation is not norm]
    return can_add and all(
        node is not None and _compensating_layer(graph, node, plan) is not None for node in other_consumers
    )


def _compensating_layer(graph, node, plan):
    """Return a linear layer that only the sum at `node` reads, so that its bias can shift the sum, or None."""
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    if type(node.operation) is not keras.layers.Add or not graph.used_once(node.operation) or len(shapes) > 1:
        return None
    for tensor in reversed(node.input_tensors):
        producer = graph.producer(tensor)
        layer = None if producer is None else plan.folded.get(id(producer.operation), producer.operation)
        if layer is not None and _is_replaceable(graph, layer) and graph.consumers(tensor) == [node]:
            return layer
    return None


def _compensate_offset(graph, node, plan, offsets):
    """Let the layer at `node`, or one that it adds up, add the offset of its output minus those of its inputs."""
    difference = offsets.get(id(node.outputs[0]), 0.0)
    layer = node.operation
    if isinstance(layer, keras.layers.Add):
        difference = difference - sum(offsets.get(id(tensor), 0.0) for tensor in node.input_tensors)
        layer = _compensating_layer(graph, node, plan)
    if np.any(difference):
        plan.shifts[id(layer)] = difference
