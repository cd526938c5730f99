"""How many bytes does a model take while it trains, and while it answers?

Counted from the shapes that flow through the graph, each tensor in the dtype it has there. Of the activations, those
are counted that a gradient is computed from, each once:

- the inputs of convolutions, dense layers, normalisations and products of tensors;
- the outputs of ReLU, sigmoid, tanh and softmax; the inputs of all other activations, such as swish;
- inputs and outputs of pooling by the maximum, and of layers that are not known;
- the mask of a dropout, one byte for each feature;
- nothing for additions, average pooling, padding, and whatever only moves numbers about.

Every branch of stochastic depth counts, as a step may run them all; of a rematerialised one only its inputs, and the
largest of them once as a whole. Not counted are what kernels need besides (convolutions on GPUs may ask for a
gigabyte), copies of weights in half precision, and TensorFlow itself, which takes 0.5 GB.
"""

import dataclasses
import math

import keras

from keras_committee.flops.counting import Call, calls

_OF_INPUTS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D, keras.layers.Dense, keras.layers.EinsumDense, keras.layers.BatchNormalization,
    keras.layers.Multiply, keras.layers.Activation,
)  # fmt: skip
_OF_OUTPUTS = (keras.layers.ReLU, keras.layers.Softmax)
_OF_NONE = (
    keras.layers.InputLayer, keras.layers.Add, keras.layers.Subtract, keras.layers.Average, keras.layers.Concatenate,
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.Flatten, keras.layers.Reshape,
    keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.Rescaling, keras.layers.Normalization,
    keras.layers.Identity, keras.layers.Dropout,
)  # fmt: skip
_BY_OUTPUT = ("relu", "sigmoid", "tanh", "softmax")  # activations whose gradient is computed from what they return


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device while a member trains.

    Attributes:
        weights: With the moving statistics.
        gradients: One for each trainable weight; twice where a batch is taken in parts, which are summed.
        slots: What the optimizer keeps.
        averages: The moving averages of weights and statistics.
        activations: What is kept for the gradient, for the batch or the part of it that is taken at once.
        passing: Inputs and outputs of the largest call, whose gradients are on their way.
    """

    weights: int
    gradients: int
    slots: int
    averages: int
    activations: int
    passing: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def training_memory(
    model: keras.Model, batch_size: int, *, optimizer=None, averages: bool = False, parts: int = 1
) -> TrainingMemory:
    """The bytes of a training step.

    Args:
        model: As for `count`.
        batch_size: Examples of a step on this device.
        optimizer: The Keras optimizer, built; None counts none.
        averages: Whether there are moving averages (`Recipe(ema=...)`).
        parts: In how many parts a batch is taken (`Recipe(accumulate=...)`).

    Raises:
        ValueError: As `count`.
    """
    inputs, made = calls(model)
    trainable, weights = _bytes_of(model.trainable_variables), _bytes_of(model.weights)
    each = math.ceil(batch_size / parts)
    return TrainingMemory(
        weights=weights,
        gradients=trainable * (1 if parts == 1 else 2),
        slots=_bytes_of(optimizer.variables) if optimizer else 0,
        averages=weights if averages else 0,
        activations=each * _kept(inputs, made),
        passing=each * max(_size([*call.inputs, *call.outputs]) for call in made),
    )


def inference_memory(model: keras.Model, batch_size: int = 1) -> int:
    """Weights, and the most that is alive at once: what a call takes and gives, and what later calls still need.

    Raises:
        ValueError: As `count`.
    """
    inputs, made = calls(model)
    last = {id(tensor): place for place, call in enumerate(made) for tensor in call.inputs}
    alive, most = {id(tensor): tensor for tensor in inputs}, 0
    for place, call in enumerate(made):
        alive |= {id(tensor): tensor for tensor in call.outputs}
        most = max(most, _size(alive.values()))
        alive = {name: tensor for name, tensor in alive.items() if last.get(name, -1) > place}
    return _bytes_of(model.weights) + batch_size * most


def _kept(inputs: list[keras.KerasTensor], made: list[Call]) -> int:
    """Bytes of one image that are kept for the gradient, the image included."""
    again = [call.operation for call in made if getattr(call.operation, "rematerialise", False)]
    inside = {id(layer): id(block) for block in again for layer in block.branch._flatten_layers()}
    kept: dict[int | None, dict[int, int]] = {}  # of each rematerialised block, and of all else
    for number, call in enumerate(made):
        place = kept.setdefault(inside.get(id(call.operation)), {})
        place |= {id(tensor): _size([tensor]) for tensor in _needed(call)}
        place[-number - 1] = _hidden(call)  # no tensor has such an id
    always = kept.pop(None, {}) | {id(tensor): _size([tensor]) for tensor in inputs}
    always |= {id(call.inputs[0]): _size(call.inputs[:1]) for call in made if id(call.operation) in inside.values()}
    return sum(always.values()) + max((sum(sizes.values()) for sizes in kept.values()), default=0)


def _needed(call: Call) -> list[keras.KerasTensor]:
    """The tensors that the gradient of a call is computed from."""
    layer = call.operation
    if hasattr(layer, "branch") or isinstance(layer, _OF_NONE):
        return []
    by_output = _activation(layer) in _BY_OUTPUT
    if isinstance(layer, keras.layers.Activation):
        return call.outputs if by_output else call.inputs
    if isinstance(layer, _OF_INPUTS):
        return [*call.inputs, *call.outputs] if by_output else call.inputs
    return call.outputs if isinstance(layer, _OF_OUTPUTS) else [*call.inputs, *call.outputs]


def _hidden(call: Call) -> int:
    """Bytes that are kept but stand in no graph: masks, and what comes before an activation inside a layer."""
    layer = call.operation
    if isinstance(layer, keras.layers.Dropout):
        return sum(math.prod(tensor.shape) for tensor in call.outputs)
    within = isinstance(layer, _OF_INPUTS) and not isinstance(layer, keras.layers.Activation)
    return _size(call.outputs) if within and _activation(layer) not in (*_BY_OUTPUT, "linear") else 0


def _activation(layer) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def _size(tensors) -> int:
    return sum(math.prod(tensor.shape) * _width(tensor) for tensor in tensors)


def _bytes_of(variables) -> int:
    return sum(math.prod(variable.shape) * _width(variable) for variable in variables)


def _width(value) -> int:
    """Bytes of one number: the digits at the end of "float32", "bfloat16", "int8"; booleans take one."""
    digits = "".join(filter(str.isdigit, str(value.dtype).removeprefix("b").removeprefix("float")))
    return int(digits) // 8 if digits else 1
