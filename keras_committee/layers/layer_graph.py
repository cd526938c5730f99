"""The layer calls of functional models: which one computes a tensor, and which ones read it."""

import collections
from collections.abc import Iterable
from typing import Any


class LayerGraph:
    """All layer calls of some graphs, such as a model and the models nested in it.

    Args:
        graphs: Functional models, or the `_functional` of Sequential models.

    Attributes:
        nodes: Keras' node of each call.
    """

    def __init__(self, graphs: Iterable[Any]):
        graphs = list(graphs)
        self.nodes = [node for graph in graphs for node in layer_calls(graph)]
        self._call_counts = collections.Counter(id(node.operation) for node in self.nodes)
        self._producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._consumers = collections.defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._consumers[id(tensor)].append(node)
        for tensor in (tensor for graph in graphs for tensor in graph.outputs):
            self._consumers[id(tensor)].append(None)

    def producer(self, tensor: Any) -> Any:
        """Return the node whose output is `tensor`; None for an input of a model."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor: Any) -> list:
        """Return the nodes that read `tensor`, and None if it is also an output of a model."""
        return self._consumers[id(tensor)]

    def used_once(self, layer: Any) -> bool:
        """Whether the layer is called exactly once."""
        return self._call_counts[id(layer)] == 1


def layer_calls(graph: Any) -> list:
    """Return Keras' node of each call in a graph."""
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]
