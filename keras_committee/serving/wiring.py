"""What does the graph of layers of a Keras model say: who makes a tensor, who reads it, and what is linear?"""

import collections
from typing import Any

import keras

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LINEAR = (*_CONVOLUTIONS, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class Wiring:
    """All calls of layers in a model and in the models nested in it.

    Args:
        model: Functional or Sequential model.

    Attributes:
        nodes: Keras' node of each call.

    Raises:
        ValueError: If the model is not a graph of layers.
    """

    def __init__(self, model: keras.Model):
        graphs = list(_graphs(model, set()))
        self.nodes = [node for each in graphs for node in _nodes(each)]
        self._uses = collections.Counter(id(node.operation) for node in self.nodes)
        self._makers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._readers = collections.defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._readers[id(tensor)].append(node)
        for tensor in (tensor for each in graphs for tensor in each.outputs):
            self._readers[id(tensor)].append(None)

    def maker(self, tensor: Any) -> Any:
        """The node that makes `tensor`; None for an input of a model."""
        return self._makers.get(id(tensor))

    def readers(self, tensor: Any) -> list:
        """The nodes that read `tensor`; None among them where it is an output of a model."""
        return self._readers[id(tensor)]

    def once(self, layer: Any) -> bool:
        """Whether the layer is called once in all."""
        return self._uses[id(layer)] == 1

    def is_free(self, layer: Any) -> bool:
        """Whether the layer's own kernel and bias alone make what its one call returns."""
        return is_linear(layer) and self.once(layer) and layer.activation is keras.activations.linear

    def is_plain_norm(self, node: Any) -> bool:
        """Whether the node is the one call of a batch normalisation of the last axis."""
        layer = node.operation
        last = is_norm(layer) and layer.axis in (-1, len(node.input_tensors[0].shape) - 1)
        return last and self.once(layer) and not node.arguments.kwargs.get("training")


def graph_of(model: keras.Model) -> Any:
    """What runs a model's layers. Raises ValueError where the model is none such."""
    if not is_graph(model):
        raise ValueError(f"Cannot export {model.name!r}: it is no graph of layers. Define it as a functional model.")
    return getattr(model, "_functional", model)  # a Sequential keeps its graph there


def is_graph(layer: Any) -> bool:
    return hasattr(getattr(layer, "_functional", layer), "_run_through_graph")


def is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def is_linear(layer: Any) -> bool:
    """Whether it multiplies by a kernel: a subclass may not, and quantised weights are no kernel to change."""
    known = type(layer) in _LINEAR and layer.quantization_mode is None
    return known and getattr(layer, "data_format", "channels_last") == "channels_last"


def _graphs(model, seen):
    """The graph of the model and those of the models in it, each once."""
    graph = graph_of(model)
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for node in _nodes(graph):
        if is_graph(node.operation):
            yield from _graphs(node.operation, seen)


def _nodes(graph):
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]
