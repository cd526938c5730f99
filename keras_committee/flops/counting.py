"""Parameters and multiply-adds of each layer, from symbolic shapes traced through the model's graph."""

import dataclasses
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import keras

_CONVOLUTIONS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D, keras.layers.SeparableConv2D,
)  # fmt: skip
_TRANSPOSED_CONVOLUTIONS = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_ZERO_COST_LAYERS = (
    keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization,
    keras.layers.RMSNormalization, keras.layers.UnitNormalization, keras.layers.Normalization,
    keras.layers.Embedding, keras.layers.PReLU,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one layer.

    Attributes:
        name: Name of the layer, prefixed with the models that contain it: "member_00/wrn_16_1/logits".
        kind: The layer's class.
        parameters: Number of trainable weights, including frozen ones. A shared weight counts for the first layer.
        multiply_adds: For one image, over all calls of the layer. None if unknown: the layer has a weight matrix and is
            of an unknown kind, such as `LSTM`.
        survival: Fraction of the images of a training step for which the layer runs; below 1 inside stochastic depth.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int | None
    survival: float = 1.0


def count(model: keras.Model) -> list[Cost]:
    """Return the cost of every layer, in execution order.

    A layer with a method `multiply_adds(input_shape, output_shape)` counts itself; both shapes are full shapes with
    batch size 1, and `ValueError` means unknown. A nested model without a graph is one layer. A layer whose attribute
    `branch` is a layer costs as much as its branch; with an attribute `mode` it is treated as `StochasticDepth`.

    Args:
        model: Functional or built Sequential model, possibly with nested models. All dimensions of its input except the
            batch are fixed.

    Raises:
        ValueError: If a dimension is unknown, or the model has no graph.
    """
    return _count_calls(model).costs()


def uncounted_layers(model: keras.Model) -> list[str]:
    """Return the layers whose cost is unknown, such as `"'lstm' (LSTM)"`."""
    return [f"{cost.name!r} ({cost.kind})" for cost in count(model) if cost.multiply_adds is None]


def parameters(model: keras.Model) -> int:
    """Return the number of trainable weights, including frozen ones but not moving statistics."""
    return sum(cost.parameters for cost in count(model))


def multiply_adds(model: keras.Model) -> int | None:
    """Return the multiply-adds for one image; None if those of a layer are unknown."""
    return _total([cost.multiply_adds for cost in count(model)])


def mflops(model: keras.Model) -> float | None:
    """Return 2 * multiply-adds / 1e6 for one image; None if unknown."""
    total = multiply_adds(model)
    return None if total is None else 2 * total / 1e6


def expected_multiply_adds(model: keras.Model) -> float | None:
    """Return the mean multiply-adds of a forward pass in training, where stochastic depth skips blocks.

    At inference every block runs: see `multiply_adds`. None if unknown.
    """
    costs = count(model)
    return _total([cost.multiply_adds and cost.survival * cost.multiply_adds for cost in costs])


def expected_flops_reduction(model: keras.Model) -> float | None:
    """Return the fraction of multiply-adds that stochastic depth saves in training, in [0, 1).

    0.0 in mode "sample", which runs every branch for every image. None if unknown.
    """
    total, expected = multiply_adds(model), expected_multiply_adds(model)
    if total is None or expected is None:
        return None
    return 1.0 - expected / total if total else 0.0


def member_multiply_adds(model: keras.Model) -> list[int | None]:
    """Return the multiply-adds of each member of an `Ensemble` or `Cascade`, including the resizing of its image.

    Weights that two members share count for both.
    """
    members = {layer.name: layer for layer in model.layers if re.fullmatch(r"member_\d+", layer.name)}
    return [multiply_adds(members[name]) for name in sorted(members)]


def cascade_multiply_adds(
    model: keras.Model, exit_rates: Sequence[float], stages: Sequence[int] | None = None
) -> tuple[float, int]:
    """Return the average and the largest cost of a cascade.

    Args:
        model: A `Cascade`, or an `Ensemble` that runs in stages.
        exit_rates: For each stage the fraction of images that exit there; they sum to 1.
        stages: Number of members that have run after each stage; None uses those of the model.

    Returns:
        Multiply-adds for one image, `(average, worst)`: at these exit rates, and if all members run.

    Raises:
        ValueError: If there is not one rate per stage, they do not sum to 1, or the cost of a member is unknown.
    """
    costs = [cost for cost in member_multiply_adds(model) if cost is not None]
    if uncounted := uncounted_layers(model):
        raise ValueError(
            f"Cannot count {', '.join(uncounted)}. Define `multiply_adds(input_shape, output_shape)` on each: the "
            "multiply-adds of one call."
        )
    if stages is None:
        stages = model.get_config().get("stages") or range(1, len(costs) + 1)
    if len(exit_rates) != len(stages) or not math.isclose(sum(exit_rates), 1, abs_tol=1e-6) or min(exit_rates) < 0:
        raise ValueError(
            f"exit_rates must be {len(stages)} fractions, one per stage, that sum to 1. Received: {list(exit_rates)}"
        )
    return sum(rate * sum(costs[:size]) for rate, size in zip(exit_rates, stages, strict=True)), sum(costs)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation in a graph, with its inputs and outputs for one image.

    A residual block with a `branch` follows the calls of its branch, whose outputs are among its inputs.
    """

    operation: Any
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]


def trace_calls(model: keras.Model) -> tuple[list[keras.KerasTensor], list[Call]]:
    """Return the inputs of a model and all calls in it, in execution order; arguments and errors as in `count`.

    A tensor is the same object in all calls.
    """
    counter = _count_calls(model)
    return counter.inputs, counter.calls


def _count_calls(model):
    counter = _CostCounter([_with_batch_of_one(tensor) for tensor in _graph(model, model.name).inputs])
    counter.trace(model, counter.inputs, prefix="")
    return counter


class _CostCounter:
    """Collects one row per layer while shapes are traced through the graph."""

    def __init__(self, inputs):
        self.inputs, self.calls = inputs, []
        self._rows = {}  # id(layer) -> [name, kind, parameters, multiply-adds, survival]
        self._counted_variables = set()  # ids
        self._survival = 1.0  # product over the enclosing blocks

    def costs(self):
        return [Cost(*row) for row in self._rows.values()]

    def trace(self, model, inputs, prefix):
        """Trace `inputs` through a model, record every call and return the outputs."""

        def record(operation):
            return lambda *args, **kwargs: self._record(operation, args, kwargs, prefix)

        # Keras has no public list of the calls in a graph; this method does not modify the layers.
        return _graph(model, prefix + model.name)._run_through_graph(inputs, operation_fn=record)

    def _record(self, operation, args, kwargs, prefix):
        name = prefix + operation.name
        if isinstance(operation, keras.Model) and has_graph(operation):
            return self.trace(operation, keras.tree.flatten(args), f"{name}/")
        outputs = operation.compute_output_spec(*args, **kwargs)
        if isinstance(operation, keras.layers.Layer):
            self._record_layer(operation, name, _input_tensors(operation, args, kwargs), _tensors(outputs))
        else:
            self.calls.append(Call(operation, _tensors([args, kwargs]), _tensors(outputs)))
        return outputs

    def _record_layer(self, layer, name, inputs, outputs):
        branch = getattr(layer, "branch", None)
        if not hasattr(layer, "multiply_adds") and isinstance(branch, keras.layers.Layer):
            outer_survival, always_runs = self._survival, getattr(layer, "mode", "sample") == "sample"
            self._survival *= 1.0 if always_runs else layer.survival
            branch_outputs = _tensors(self._record(branch, inputs[:1], {}, f"{name}/"))
            self._survival = outer_survival
            self.calls.append(Call(layer, [*inputs, *branch_outputs], outputs))
            return
        self.calls.append(Call(layer, inputs, outputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        row = self._rows.setdefault(
            id(layer), [name, type(layer).__name__, self._count_parameters(layer), 0, self._survival]
        )
        row[3] = _total([row[3], layer_multiply_adds(layer, shapes, tuple(outputs[0].shape))])

    def _count_parameters(self, layer):
        weights = {id(weight): weight for weight in _trainable_weights(layer)}
        uncounted = [weight for key, weight in weights.items() if key not in self._counted_variables]
        self._counted_variables |= set(weights)
        return sum(math.prod(weight.shape) for weight in uncounted)


def _total(counts):
    """Return the sum; None if a summand is."""
    return None if None in counts else sum(counts)


def has_graph(model: Any) -> bool:
    """Return whether a model is a graph of layers: a functional model, or a Sequential that is built."""
    return hasattr(getattr(model, "_functional", model), "_run_through_graph")


def _graph(model, name):
    if not has_graph(model):
        raise ValueError(
            f"Cannot count {name!r}: the model has no graph. Build it, or define it as a functional model."
        )
    return getattr(model, "_functional", model)  # the graph of a Sequential


def _with_batch_of_one(tensor):
    shape = (1, *tensor.shape[1:])
    if None in shape:
        raise ValueError(
            f"Counting requires a known image shape. Received: {tensor.shape}. Pass the full shape to keras.Input."
        )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _input_tensors(layer, args, kwargs):
    """Return the tensors of a call in the order of the signature: attention may be called with value=..., query=..."""
    order = list(inspect.signature(layer.call).parameters)
    named = sorted(kwargs, key=lambda name: order.index(name) if name in order else len(order))
    return _tensors([args, [kwargs[name] for name in named]])


def _tensors(structure):
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, keras.KerasTensor)]


def _trainable_weights(layer):
    """Return the trainable weights of a layer and its sublayers, including those frozen by `trainable=False`.

    A wrapper such as `SpectralNormalization` has the weights of its sublayer a second time.
    """
    return [weight for sublayer in layer._flatten_layers() for weight in sublayer._trainable_variables]


def layer_multiply_adds(layer: keras.layers.Layer, inputs: list[tuple], output: tuple) -> int | None:
    """Return the multiply-adds of one call, from the full shapes of its inputs and its first output.

    None if unknown: a layer with a weight matrix is of an unknown kind, or its own count raises ValueError.
    """
    if hasattr(layer, "multiply_adds"):
        try:
            return int(layer.multiply_adds(inputs[0] if len(inputs) == 1 else inputs, output))
        except ValueError:
            return None
    for kinds, rule in _LAYER_RULES:
        if isinstance(layer, kinds):
            return rule(layer, inputs, output)
    return None if any(len(weight.shape) > 1 for weight in layer.weights) else 0


def _convolution(layer, inputs, output):
    """Each output position applies the kernel once; kernels are already of size input channels / groups."""
    return math.prod(output) // _num_channels(layer, output) * _kernel_size(layer)


def _transposed_convolution(layer, inputs, output):
    """Each input position applies the kernel once, including borders that are cropped."""
    return math.prod(inputs[0]) // _num_channels(layer, inputs[0]) * _kernel_size(layer)


def _num_channels(layer, shape):
    return shape[1 if layer.data_format == "channels_first" else -1]


def _kernel_size(layer):
    kernels = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return sum(math.prod(getattr(layer, name).shape) for name in kernels if getattr(layer, name, None) is not None)


def _dense(layer, inputs, output):
    return math.prod(output) * inputs[0][-1]


def _einsum_dense(layer, inputs, output):
    """The product of the sizes of all labels of the equation."""
    labels = layer.equation.split("->")[0].split(",")
    sizes = {}
    for term, shape in zip(labels, (inputs[0], tuple(layer.kernel.shape)), strict=True):
        sizes.update(_label_sizes(term.strip(), shape))
    return math.prod(sizes.values())


def _label_sizes(term, shape):
    before, ellipsis, after = term.partition("...")
    sizes = dict(zip(before, shape, strict=False)) | dict(zip(reversed(after), reversed(shape), strict=False))
    return {**sizes, "...": math.prod(shape[len(before) : len(shape) - len(after)])} if ellipsis else sizes


def _attention(layer, inputs, output):
    """Four projections, the scores and the weighted sum; without `attention_axes` all positions attend to all."""
    query, value, key = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else inputs[1]
    config = layer.get_config()
    heads, key_dim, value_dim = config["num_heads"], config["key_dim"], config["value_dim"] or config["key_dim"]
    axes = config["attention_axes"] or range(1, len(value) - 1)
    queries, values = math.prod(query[1:-1]), math.prod(value[1:-1])
    attended = math.prod(value[axis] for axis in axes)
    projections = queries * query[-1] * key_dim + values * (key[-1] * key_dim + value[-1] * value_dim)
    return heads * (projections + queries * attended * (key_dim + value_dim) + queries * value_dim * output[-1])


def _zero(layer, inputs, output):
    return 0


_LAYER_RULES = (
    (_TRANSPOSED_CONVOLUTIONS, _transposed_convolution),  # first, in case Keras makes one a subclass of the other
    (_CONVOLUTIONS, _convolution),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum_dense),
    (keras.layers.MultiHeadAttention, _attention),
    (_ZERO_COST_LAYERS, _zero),
)
