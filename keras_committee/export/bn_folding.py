"""Which batch normalisations vanish into the layers around them?

At inference a normalisation is `scale * x + shift`. After a linear layer that nothing else reads it is folded into that
layer. After a sum, as in pre-activation networks, it is split. The shift is added ahead of it, to the bias of a layer
that the sum adds up, so that the residual stream runs `shift / scale` higher there; a later sum takes it out again
through the bias of its own branch. The scale, above 0, passes through the ReLU into the kernels behind it. What is left
of the normalisation is nothing.
"""

import collections
import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

_CONV_LAYERS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LINEAR_LAYERS = (*_CONV_LAYERS, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class LayerGraph:
    """All calls of layers in a model and in the models nested in it.

    Args:
        model: Functional or Sequential model.

    Attributes:
        nodes: Keras' node of each call.

    Raises:
        ValueError: If the model is not a graph of layers.
    """

    def __init__(self, model: keras.Model):
        graphs = list(_nested_graphs(model, set()))
        self.nodes = [node for graph in graphs for node in _nodes(graph)]
        self._call_counts = collections.Counter(id(node.operation) for node in self.nodes)
        self._producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._consumers = collections.defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._consumers[id(tensor)].append(node)
        for tensor in (tensor for each in graphs for tensor in each.outputs):
            self._consumers[id(tensor)].append(None)

    def producer(self, tensor: Any) -> Any:
        """The node that makes `tensor`; None for an input of a model."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor: Any) -> list:
        """The nodes that read `tensor`; None among them where it is an output of a model."""
        return self._consumers[id(tensor)]

    def used_once(self, layer: Any) -> bool:
        """Whether the layer is called once in all."""
        return self._call_counts[id(layer)] == 1

    def is_replaceable(self, layer: Any) -> bool:
        """Whether the layer's own kernel and bias alone make what its one call returns."""
        return is_linear(layer) and self.used_once(layer) and layer.activation is keras.activations.linear

    def is_plain_norm(self, node: Any) -> bool:
        """Whether the node is the one call of a batch normalisation of the last axis."""
        layer = node.operation
        normalizes_last_axis = is_norm(layer) and layer.axis in (-1, len(node.input_tensors[0].shape) - 1)
        return normalizes_last_axis and self.used_once(layer) and not node.arguments.kwargs.get("training")


def functional_graph(model: keras.Model) -> Any:
    """What runs a model's layers. Raises ValueError where the model is none such."""
    if not has_functional_graph(model):
        raise ValueError(f"Cannot export {model.name!r}: it is no graph of layers. Define it as a functional model.")
    return getattr(model, "_functional", model)  # a Sequential keeps its graph there


def has_functional_graph(layer: Any) -> bool:
    return hasattr(getattr(layer, "_functional", layer), "_run_through_graph")


def is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def is_linear(layer: Any) -> bool:
    """Whether it multiplies by a kernel: a subclass may not, and quantised weights are no kernel to change."""
    is_known = type(layer) in _LINEAR_LAYERS and layer.quantization_mode is None
    return is_known and getattr(layer, "data_format", "channels_last") == "channels_last"


def _nested_graphs(model, seen):
    """The graph of the model and those of the models in it, each once."""
    graph = functional_graph(model)
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for node in _nodes(graph):
        if has_functional_graph(node.operation):
            yield from _nested_graphs(node.operation, seen)


def _nodes(graph):
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]


# A stream that runs so much higher loses 32 * 2**-24 = 2e-6 to rounding. Of 65 such normalisations in four trained
# WRN-16-1 and one WRN-16-2 the largest is 4.
MAX_DISTANCE = 32.0
_SCALE_EQUIVARIANT_LAYERS = (
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D,
    keras.layers.MaxPooling2D, keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FoldPlan:
    """What becomes of the normalisations; layers are told by `id`.

    Args:
        folded: Normalisation -> the linear layer before it that takes it whole.
        split: Normalisation that is shared out between the layers ahead and behind -> whether others read its input.
        scales: Linear layer -> float64 `(channels,)` that multiplies its inputs.
        shifts: Linear layer -> float64 `(filters,)` that is added to its outputs.
    """

    folded: dict[int, Any]
    split: dict[int, bool] = dataclasses.field(default_factory=dict)
    scales: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    shifts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def fold_batch_norms(graph: LayerGraph) -> FoldPlan:
    """Decides for every normalisation; those in neither `folded` nor `split` stay."""
    plan = FoldPlan(dict(_foldable_norms(graph)))
    offsets = {}  # id of a tensor -> how much higher it is to run
    for node in graph.nodes:
        if graph.is_plain_norm(node) and id(node.operation) not in plan.folded:
            _split_norm(graph, node, plan, offsets)
    for node in graph.nodes:
        _compensate_offset(graph, node, plan, offsets)
    return plan


def scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """float64 `(channels,)`: the normalisation is `inputs * scale + shift` at inference."""
    scale = 1.0 / np.sqrt(to_float64(norm.moving_variance) + norm.epsilon)
    scale = scale * to_float64(norm.gamma) if norm.scale else scale
    shift = -to_float64(norm.moving_mean) * scale
    return scale, shift + to_float64(norm.beta) if norm.center else shift


def to_float64(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype(np.float64)


def _foldable_norms(graph):
    """Each normalisation with the linear layer whose output it alone reads."""
    for node in filter(graph.is_plain_norm, graph.nodes):
        tensor = node.input_tensors[0]
        producer = graph.producer(tensor)
        if producer is not None and graph.is_replaceable(producer.operation) and len(graph.consumers(tensor)) == 1:
            yield id(node.operation), producer.operation


def _split_norm(graph, node, plan, offsets):
    norm, tensor = node.operation, node.input_tensors[0]
    scale, shift = scale_and_shift(norm)
    if not (scale > 0).all() or np.abs(shift / scale).max() > MAX_DISTANCE:
        return
    downstream = _downstream_linear_layers(graph, node.outputs[0])
    if downstream is None or not _can_shift_offset(graph, tensor, norm, plan):
        return
    plan.split[id(norm)] = len(graph.consumers(tensor)) > 1
    plan.scales.update({id(layer): scale for layer in downstream})
    offsets[id(tensor)] = shift / scale


def _downstream_linear_layers(graph, tensor):
    """The linear layers that read `tensor`, right away or behind what a positive scale passes; None if others do."""
    layers = []
    for node in graph.consumers(tensor):
        if node is None:
            return None
        if _can_absorb_scale(node.operation) and graph.used_once(node.operation):
            layers.append(node.operation)
            continue
        nested_layers = (
            _downstream_linear_layers(graph, node.outputs[0]) if _commutes_with_scale(node.operation) else None
        )
        if nested_layers is None:
            return None
        layers += nested_layers
    return layers


def _can_absorb_scale(layer):
    return is_linear(layer) and getattr(layer, "groups", 1) == 1


def _commutes_with_scale(layer):
    if isinstance(layer, keras.layers.ReLU):
        return layer.max_value is None and not layer.threshold
    is_relu = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    return is_relu or type(layer) in _SCALE_EQUIVARIANT_LAYERS


def _can_shift_offset(graph, tensor, norm, plan):
    """Whether a constant can be added to `tensor` where it is made, and taken out again by all others who read it."""
    producer = graph.producer(tensor)
    can_add = producer is not None and (
        graph.is_replaceable(producer.operation) or _compensating_layer(graph, producer, plan) is not None
    )
    other_consumers = [node for node in graph.consumers(tensor) if node is None or node.operation is not norm]
    return can_add and all(
        node is not None and _compensating_layer(graph, node, plan) is not None for node in other_consumers
    )


def _compensating_layer(graph, node, plan):
    """The linear layer that only the sum `node` reads, whose bias can therefore move the sum; None if there is none."""
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    if type(node.operation) is not keras.layers.Add or not graph.used_once(node.operation) or len(shapes) > 1:
        return None
    for tensor in reversed(node.input_tensors):
        producer = graph.producer(tensor)
        layer = None if producer is None else plan.folded.get(id(producer.operation), producer.operation)
        if layer is not None and graph.is_replaceable(layer) and graph.consumers(tensor) == [node]:
            return layer
    return None


def _compensate_offset(graph, node, plan, offsets):
    """Lets what makes a tensor that runs higher add the difference to what it reads."""
    difference = offsets.get(id(node.outputs[0]), 0.0)
    layer = node.operation
    if isinstance(layer, keras.layers.Add):
        difference = difference - sum(offsets.get(id(tensor), 0.0) for tensor in node.input_tensors)
        layer = _compensating_layer(graph, node, plan)
    if np.any(difference):
        plan.shifts[id(layer)] = difference
