"""How many bytes does a model take while it trains, and while it answers?

Counted from the shapes that flow through the graph, each tensor in the dtype it has there. Of the activations, those
are counted that a gradient is computed from, each once:

- the inputs of convolutions, dense layers, normalisations and products of tensors;
- the outputs of ReLU, sigmoid, tanh and softmax; the inputs of all other activations, such as swish;
- inputs and outputs of pooling by the maximum, and of layers that are not known;
- the mask of a dropout, one byte for each feature;
- nothing for additions, average pooling, padding, and whatever only moves numbers about.

Every branch of stochastic depth counts, as a step may run them all; of a rematerialized one only its inputs, and the
largest of them once as a whole. Not counted are what kernels need besides (convolutions on GPUs may ask for a
gigabyte), copies of weights in half precision, and TensorFlow itself, which takes 0.5 GB.
"""

import dataclasses
import math

import keras

from keras_committee.flops.counting import Call, trace_calls

_KEEPS_INPUTS = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D, keras.layers.Dense, keras.layers.EinsumDense, keras.layers.BatchNormalization,
    keras.layers.Multiply, keras.layers.Activation,
)  # fmt: skip
_KEEPS_OUTPUTS = (keras.layers.ReLU, keras.layers.Softmax)
_KEEPS_NOTHING = (
    keras.layers.InputLayer, keras.layers.Add, keras.layers.Subtract, keras.layers.Average, keras.layers.Concatenate,
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.Flatten, keras.layers.Reshape,
    keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.Rescaling, keras.layers.Normalization,
    keras.layers.Identity, keras.layers.Dropout,
)  # fmt: skip
_OUTPUT_GRADIENT_ACTIVATIONS = (
    "relu",
    "sigmoid",
    "tanh",
    "softmax",
)  # activations whose gradient is computed from what they return


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
    model: keras.Model, batch_size: int, *, optimizer=None, use_ema: bool = False, gradient_accumulation_steps: int = 1
) -> TrainingMemory:
    """The bytes of a training step.

    Args:
        model: As for `count`.
        batch_size: Examples of a step on this device.
        optimizer: The Keras optimizer, built; None counts none.
        use_ema: Whether there are moving averages (`Recipe(ema=...)`).
        gradient_accumulation_steps: In how many parts a batch is taken (`Recipe(gradient_accumulation_steps=...)`).

    Raises:
        ValueError: As `count`.
    """
    inputs, layer_calls = trace_calls(model)
    trainable, weights = _variable_bytes(model.trainable_variables), _variable_bytes(model.weights)
    micro_batch_size = math.ceil(batch_size / gradient_accumulation_steps)
    return TrainingMemory(
        weights=weights,
        gradients=trainable * (1 if gradient_accumulation_steps == 1 else 2),
        slots=_variable_bytes(optimizer.variables) if optimizer else 0,
        averages=weights if use_ema else 0,
        activations=micro_batch_size * _stored_activation_bytes(inputs, layer_calls),
        passing=micro_batch_size * max(_tensor_bytes([*call.inputs, *call.outputs]) for call in layer_calls),
    )


def inference_memory(model: keras.Model, batch_size: int = 1) -> int:
    """Weights, and the most that is alive at once: what a call takes and gives, and what later calls still need.

    Raises:
        ValueError: As `count`.
    """
    inputs, layer_calls = trace_calls(model)
    last_use = {id(tensor): index for index, call in enumerate(layer_calls) for tensor in call.inputs}
    live_tensors, peak_bytes = {id(tensor): tensor for tensor in inputs}, 0
    for place, call in enumerate(layer_calls):
        live_tensors |= {id(tensor): tensor for tensor in call.outputs}
        peak_bytes = max(peak_bytes, _tensor_bytes(live_tensors.values()))
        live_tensors = {name: tensor for name, tensor in live_tensors.items() if last_use.get(name, -1) > place}
    return _variable_bytes(model.weights) + batch_size * peak_bytes


def _stored_activation_bytes(inputs: list[keras.KerasTensor], layer_calls: list[Call]) -> int:
    """Bytes of one image that are kept for the gradient, the image included."""
    remat_blocks = [call.operation for call in layer_calls if getattr(call.operation, "remat", False)]
    block_by_layer = {id(layer): id(block) for block in remat_blocks for layer in block.branch._flatten_layers()}
    sizes_by_block: dict[int | None, dict[int, int]] = {}  # of each rematerialized block, and of all else
    for index, call in enumerate(layer_calls):
        block_sizes = sizes_by_block.setdefault(block_by_layer.get(id(call.operation)), {})
        block_sizes |= {id(tensor): _tensor_bytes([tensor]) for tensor in _tensors_for_gradient(call)}
        block_sizes[-index - 1] = _untraced_bytes(call)  # no tensor has such an id
    permanent_sizes = sizes_by_block.pop(None, {}) | {id(tensor): _tensor_bytes([tensor]) for tensor in inputs}
    permanent_sizes |= {
        id(call.inputs[0]): _tensor_bytes(call.inputs[:1])
        for call in layer_calls
        if id(call.operation) in block_by_layer.values()
    }
    return sum(permanent_sizes.values()) + max((sum(sizes.values()) for sizes in sizes_by_block.values()), default=0)


def _tensors_for_gradient(call: Call) -> list[keras.KerasTensor]:
    """The tensors that the gradient of a call is computed from."""
    layer = call.operation
    if hasattr(layer, "branch") or isinstance(layer, _KEEPS_NOTHING):
        return []
    gradient_from_output = _activation_name(layer) in _OUTPUT_GRADIENT_ACTIVATIONS
    if isinstance(layer, keras.layers.Activation):
        return call.outputs if gradient_from_output else call.inputs
    if isinstance(layer, _KEEPS_INPUTS):
        return [*call.inputs, *call.outputs] if gradient_from_output else call.inputs
    return call.outputs if isinstance(layer, _KEEPS_OUTPUTS) else [*call.inputs, *call.outputs]


def _untraced_bytes(call: Call) -> int:
    """Bytes that are kept but stand in no graph: masks, and what comes before an activation inside a layer."""
    layer = call.operation
    if isinstance(layer, keras.layers.Dropout):
        return sum(math.prod(tensor.shape) for tensor in call.outputs)
    has_inner_activation = isinstance(layer, _KEEPS_INPUTS) and not isinstance(layer, keras.layers.Activation)
    return (
        _tensor_bytes(call.outputs)
        if has_inner_activation and _activation_name(layer) not in (*_OUTPUT_GRADIENT_ACTIVATIONS, "linear")
        else 0
    )


def _activation_name(layer) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def _tensor_bytes(tensors) -> int:
    return sum(math.prod(tensor.shape) * _bytes_per_element(tensor) for tensor in tensors)


def _variable_bytes(variables) -> int:
    return sum(math.prod(variable.shape) * _bytes_per_element(variable) for variable in variables)


def _bytes_per_element(value) -> int:
    """Bytes of one number: the digits at the end of "float32", "bfloat16", "int8"; booleans take one."""
    digits = "".join(filter(str.isdigit, str(value.dtype).removeprefix("b").removeprefix("float")))
    return int(digits) // 8 if digits else 1
