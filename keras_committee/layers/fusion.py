"""Fewer passes over memory in training: a sum, its batch normalization and the activation become one operation."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_committee.layers.activations import QuickGELU
from keras_committee.layers.layer_graph import LayerGraph
from keras_committee.layers.normalization import BatchNormalization
from keras_committee.layers.stochastic_depth import StochasticDepth


@contextlib.contextmanager
def fused_layers(model: keras.Model) -> Iterator[None]:
    """Run the layers of `model` fused inside the block, where it is called with `training=True`.

    A `BatchNormalization` computes the ReLU or `QuickGELU` that alone reads its output, and the sum of two tensors that
    it alone normalizes. A `StochasticDepth` whose shortcut comes from a ReLU computes the ReLU behind it, where a
    dropped block skips it. Results are the same up to rounding. The branches of `StochasticDepth` and nested models are
    included; layers that are called several times are not fused. Enter it once for all replicas, not in each of them.
    """
    graphs = {id(graph): graph for graph in map(_graph, model._flatten_layers()) if graph is not None}
    fusions = _Fusions(LayerGraph(graphs.values()))
    with contextlib.ExitStack() as stack:
        for graph in graphs.values():
            graph._run_through_graph = functools.partial(_run_fused, graph, fusions)
            stack.callback(graph.__dict__.pop, "_run_through_graph")
        yield


class _Fusions:
    """What runs fused, by the `id` of an operation.

    Attributes:
        arguments: For each operation that computes the activation behind it, the arguments that request it.
        activations: The activations that the operation before them computes.
        norm_of_sum: For each sum that its normalization computes, the normalization.
    """

    def __init__(self, graph: LayerGraph):
        self.arguments, self.activations, self.norm_of_sum = {}, set(), {}
        for node in graph.nodes:
            if graph.used_once(node.operation):
                self._fuse_activation(graph, node)
                self._fuse_sum(graph, node)

    def _fuse_activation(self, graph, node):
        behind = graph.consumers(node.outputs[0])
        if len(behind) != 1 or behind[0] is None or not graph.used_once(behind[0].operation):
            return
        arguments = _activation_arguments(graph, node, _activation(behind[0].operation))
        if arguments:
            self.arguments[id(node.operation)] = arguments
            self.activations.add(id(behind[0].operation))

    def _fuse_sum(self, graph, node):
        producer = graph.producer(node.input_tensors[0])
        if type(node.operation) is not BatchNormalization or producer is None:
            return
        readers = graph.consumers(node.input_tensors[0])
        norms = [reader for reader in readers if reader and isinstance(reader.operation, BatchNormalization)]
        # A sum that nothing else reads gains less, and its own gradient would be a tensor of zeros.
        is_read_elsewhere = len(readers) > 1
        if _is_sum_of_two(producer) and graph.used_once(producer.operation) and len(norms) == 1 and is_read_elsewhere:
            self.norm_of_sum[id(producer.operation)] = node.operation


class _FusedRun:
    """The calls of one run through a graph.

    Args:
        fusions: What runs fused.
        operation_fn: Function of an operation that returns its call.
    """

    def __init__(self, fusions: _Fusions, operation_fn: Callable[[Any], Callable]):
        self._fusions, self._operation_fn = fusions, operation_fn
        self._normalized_sums: dict[int, Any] = {}  # by id of the normalization, which runs after the sum

    def __call__(self, operation):
        call = self._operation_fn(operation)
        if id(operation) in self._fusions.activations:
            return _first_argument
        if id(operation) in self._fusions.norm_of_sum:
            return functools.partial(self._add, self._fusions.norm_of_sum[id(operation)], call)
        if type(operation) is BatchNormalization:
            return functools.partial(self._normalize, operation, call)
        return functools.partial(call, **self._arguments(operation))

    def _arguments(self, operation):
        return self._fusions.arguments.get(id(operation), {})

    def _add(self, norm, call, tensors):
        result = norm.add_and_normalize(*tensors, **self._arguments(norm))
        if result is None:
            return call(tensors)
        total, self._normalized_sums[id(norm)] = result
        return total

    def _normalize(self, norm, call, *arguments, **keywords):
        if id(norm) in self._normalized_sums:
            return self._normalized_sums.pop(id(norm))
        return call(*arguments, **keywords, **self._arguments(norm))


def _run_fused(graph: Any, fusions: _Fusions, inputs, operation_fn=lambda operation: operation, call_fn=None):
    run = _FusedRun(fusions, operation_fn) if call_fn is None else operation_fn
    return type(graph)._run_through_graph(graph, inputs, run, call_fn)


def _graph(layer: Any) -> Any:
    """Return the graph of a functional or Sequential model, or None."""
    graph = getattr(layer, "_functional", layer)
    return graph if hasattr(graph, "_nodes_by_depth") else None


def _activation_arguments(graph: LayerGraph, node: Any, activation: str | None) -> dict[str, Any] | None:
    """Return the arguments with which the call at `node` computes the activation behind it; None if it cannot."""
    if activation is not None and type(node.operation) is BatchNormalization:
        return {"activation": activation}
    if activation == "relu" and type(node.operation) is StochasticDepth:
        shortcut = graph.producer(node.input_tensors[-1])
        is_from_relu = shortcut is not None and _activation(shortcut.operation) == "relu"
        return {"relu": True} if is_from_relu else None
    return None


def _activation(operation: Any) -> str | None:
    """Return the name of an activation that a normalization can compute, or None."""
    if type(operation) is keras.layers.ReLU:
        is_plain = operation.max_value is None and not operation.negative_slope and not operation.threshold
        return "relu" if is_plain else None
    if type(operation) is keras.layers.Activation and operation.activation is keras.activations.relu:
        return "relu"
    return "quick_gelu" if type(operation) is QuickGELU else None


def _is_sum_of_two(node: Any) -> bool:
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    return type(node.operation) is keras.layers.Add and len(node.input_tensors) == 2 and len(shapes) == 1


def _first_argument(inputs, **_):
    return inputs
