"""Fewer passes over memory in training: a sum, its batch normalization and the ReLU behind it become one operation."""

import collections
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from keras_committee.layers.normalization import BatchNormalization


@contextlib.contextmanager
def fused_layers(model: keras.Model) -> Iterator[None]:
    """Run the layers of `model` fused inside the block, where it is called with `training=True`.

    A `BatchNormalization` computes the ReLU that alone reads its output, and the sum of two tensors that it alone
    normalizes. Results are the same up to rounding. The branches of `StochasticDepth` and nested models are included;
    layers that are called several times are not fused. Enter it once for all replicas, not in each of them.
    """
    graphs = {id(graph): graph for graph in map(_graph, model._flatten_layers()) if graph is not None}
    with contextlib.ExitStack() as stack:
        for graph in graphs.values():
            graph._run_through_graph = functools.partial(_run_fused, graph, _Fusions(graph))
            stack.callback(graph.__dict__.pop, "_run_through_graph")
        yield


class _Fusions:
    """The layers of a graph that run fused, by the `id` of the operation that another one computes.

    Attributes:
        relus: Each ReLU whose normalization computes it.
        norm_of_sum: For each sum, the normalization that computes it.
        norms: The normalizations that compute the ReLU behind them.
    """

    def __init__(self, graph: Any):
        nodes = [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]
        call_counts = collections.Counter(id(node.operation) for node in nodes)
        consumers = collections.defaultdict(list)
        for node in nodes:
            for tensor in node.input_tensors:
                consumers[id(tensor)].append(node)
        output_ids = {id(tensor) for tensor in graph.outputs}
        producers = {id(node.outputs[0]): node for node in nodes}
        self.relus, self.norms, self.norm_of_sum = set(), set(), {}
        for node in nodes:
            norm = node.operation
            if type(norm) is not BatchNormalization or call_counts[id(norm)] > 1:
                continue
            behind = consumers[id(node.outputs[0])]
            is_alone = len(behind) == 1 and id(node.outputs[0]) not in output_ids
            if is_alone and _is_relu(behind[0].operation) and call_counts[id(behind[0].operation)] == 1:
                self.norms.add(id(norm))
                self.relus.add(id(behind[0].operation))
            source = node.input_tensors[0]
            producer = producers.get(id(source))
            norms_of_source = [item for item in consumers[id(source)] if isinstance(item.operation, BatchNormalization)]
            # A sum that nothing else reads gains less, and its own gradient would be a tensor of zeros.
            is_read_elsewhere = len(consumers[id(source)]) > 1 or id(source) in output_ids
            if (
                producer is not None
                and _is_sum_of_two(producer)
                and call_counts[id(producer.operation)] == 1
                and len(norms_of_source) == 1
                and is_read_elsewhere
            ):
                self.norm_of_sum[id(producer.operation)] = norm


def _run_fused(graph: Any, fusions: _Fusions, inputs, operation_fn=lambda operation: operation, call_fn=None):
    normalized_sums: dict[int, Any] = {}  # by id of the normalization, which runs after the sum

    def fused(operation):
        call = operation_fn(operation)
        if call_fn is not None:
            return call
        if id(operation) in fusions.relus:
            return _first_argument
        if id(operation) in fusions.norm_of_sum:
            return functools.partial(add, fusions.norm_of_sum[id(operation)], call)
        if type(operation) is BatchNormalization:
            return functools.partial(normalize, operation, call)
        return call

    def add(norm, call, tensors):
        fuses_relu = id(norm) in fusions.norms
        result = norm.add_and_normalize(*tensors, relu=fuses_relu)
        if result is None:
            return call(tensors)
        total, normalized_sums[id(norm)] = result
        return total

    def normalize(norm, call, *arguments, **keywords):
        if id(norm) in normalized_sums:
            return normalized_sums.pop(id(norm))
        return call(*arguments, **keywords, relu=True) if id(norm) in fusions.norms else call(*arguments, **keywords)

    return type(graph)._run_through_graph(graph, inputs, fused, call_fn)


def _graph(layer: Any) -> Any:
    """Return the graph of a functional or Sequential model, or None."""
    graph = getattr(layer, "_functional", layer)
    return graph if hasattr(graph, "_nodes_by_depth") else None


def _is_relu(operation: Any) -> bool:
    if type(operation) is keras.layers.ReLU:
        return operation.max_value is None and not operation.negative_slope and not operation.threshold
    return type(operation) is keras.layers.Activation and operation.activation is keras.activations.relu


def _is_sum_of_two(node: Any) -> bool:
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    return type(node.operation) is keras.layers.Add and len(node.input_tensors) == 2 and len(shapes) == 1


def _first_argument(inputs, **_):
    return inputs
