"""What does each layer of a model cost? The shapes flow through the graph, and every call is entered."""

import dataclasses
import inspect
import math
from typing import Any

import keras

from keras_committee.flops.rules import layer_multiply_adds


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one layer costs.

    Attributes:
        name: The layer's name, after the names of the models it stands in: "member_00/wrn_16_1/logits".
        kind: The layer's class.
        parameters: Trainable weights, frozen ones included. A weight shared between layers counts at the first.
        multiply_adds: For one image, over all calls of the layer.
        survival: The share of a training step's images that the layer runs for, below 1 in a block that is skipped.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int
    survival: float = 1.0


def count(model: keras.Model) -> list[Cost]:
    """The cost of every layer, in the order in which the layers run.

    A layer with a method `multiply_adds(input_shape, output_shape)` is asked; both shapes are full shapes with a batch
    of 1. A layer with an attribute `branch` that is a layer costs what its branch costs, and is taken
    for `StochasticDepth` where it has a `mode`, too.

    Args:
        model: Functional or built Sequential model, with other models nested as deep as you like. Its input has a fixed
            shape but for the batch.

    Raises:
        ValueError: If a dimension is unknown, a nested model has no graph, or a layer with a matrix of weights is not
            known.
    """
    return _filled(model).costs()


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or an operation in a graph: what went in and what came out, for one image.

    A residual block with a `branch` comes after the calls of its branch, whose outputs are among its inputs.
    """

    operation: Any
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]


def calls(model: keras.Model) -> tuple[list[keras.KerasTensor], list[Call]]:
    """The inputs of a model and every call in it, in the order in which they run; arguments and errors as `count`.

    One tensor is one object in all calls.
    """
    ledger = _filled(model)
    return ledger.inputs, ledger.calls


def _filled(model):
    ledger = _Ledger([_one_image(tensor) for tensor in _graph(model, model.name).inputs])
    ledger.walk(model, ledger.inputs, prefix="")
    return ledger


class _Ledger:
    """One line per layer, filled in while the shapes flow through the graph."""

    def __init__(self, inputs):
        self.inputs, self.calls = inputs, []
        self._lines = {}  # id(layer) -> [name, kind, parameters, multiply-adds, survival]
        self._seen = set()  # ids of the variables counted
        self._survival = 1.0  # of the blocks around the layer that is entered

    def costs(self):
        return [Cost(*line) for line in self._lines.values()]

    def walk(self, model, inputs, prefix):
        """Sends the shapes `inputs` through a model and enters every call. Returns the outputs' shapes."""

        def enter(operation):
            return lambda *args, **kwargs: self._enter(operation, args, kwargs, prefix)

        # Keras keeps no public list of the calls in a graph; this one leaves no trace in the layers.
        return _graph(model, prefix + model.name)._run_through_graph(inputs, operation_fn=enter)

    def _enter(self, operation, args, kwargs, prefix):
        name = prefix + operation.name
        if isinstance(operation, keras.Model):
            return self.walk(operation, keras.tree.flatten(args), f"{name}/")
        outputs = operation.compute_output_spec(*args, **kwargs)
        if isinstance(operation, keras.layers.Layer):
            # In the order of the signature: attention may be called with value=..., query=...
            given = inspect.signature(operation.call).bind(*args, **kwargs).arguments
            self._enter_layer(operation, name, _tensors(list(given.values())), _tensors(outputs))
        else:
            self.calls.append(Call(operation, _tensors([args, kwargs]), _tensors(outputs)))
        return outputs

    def _enter_layer(self, layer, name, inputs, outputs):
        branch = getattr(layer, "branch", None)
        if not hasattr(layer, "multiply_adds") and isinstance(branch, keras.layers.Layer):
            around, runs_for_all = self._survival, getattr(layer, "mode", "sample") == "sample"
            self._survival *= 1.0 if runs_for_all else layer.survival
            joined = _tensors(self._enter(branch, inputs[:1], {}, f"{name}/"))
            self._survival = around
            self.calls.append(Call(layer, [*inputs, *joined], outputs))
            return
        self.calls.append(Call(layer, inputs, outputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        line = self._lines.setdefault(
            id(layer), [name, type(layer).__name__, self._parameters(layer), 0, self._survival]
        )
        line[3] += layer_multiply_adds(layer, shapes, tuple(outputs[0].shape))

    def _parameters(self, layer):
        new = [w for w in _own_trainable(layer) if id(w) not in self._seen]
        self._seen.update(id(w) for w in new)
        return sum(math.prod(w.shape) for w in new)


def _graph(model, name):
    graph = getattr(model, "_functional", model)  # a Sequential keeps its graph there
    if not hasattr(graph, "_run_through_graph"):
        raise ValueError(f"Cannot count {name!r}: it has no graph. Build it, or define it as a functional model.")
    return graph


def _one_image(tensor):
    shape = (1, *tensor.shape[1:])
    if None in shape:
        raise ValueError(
            f"Cannot count for an unknown image shape. Received: {tensor.shape}. Give keras.Input a full one."
        )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _tensors(structure):
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, keras.KerasTensor)]


def _own_trainable(layer):
    """Weights of the layer and its sublayers that training fits; `trainable=False` does not hide them here."""
    return [weight for part in layer._flatten_layers() for weight in part._trainable_variables]
