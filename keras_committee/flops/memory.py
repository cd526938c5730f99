"""Estimated memory of training and inference in bytes, from tensor shapes.

Each tensor counts in the dtype that it has in the graph. Activations count if a gradient is computed from them, each
once:

- inputs of convolutions, dense layers, normalization and products of tensors;
- outputs of ReLU, sigmoid, tanh and softmax; inputs of all other activations, such as swish;
- inputs and outputs of max pooling and of layers of an unknown kind;
- dropout masks, one byte per feature;
- nothing for additions, average pooling, padding and layers that only move values.

All branches of stochastic depth count, because a step may run them all; rematerialized branches count with their inputs
only, plus the largest of them once. Not counted: workspace of kernels (convolutions on GPUs may use a gigabyte), copies
of weights in half precision, and TensorFlow itself, about 0.5 GB.
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
_OUTPUT_GRADIENT_ACTIVATIONS = ("relu", "sigmoid", "tanh", "softmax")  # their gradient is computed from the output


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device while a member trains. The names are keys of `describe --json`.

    Attributes:
        weights: Weights and moving statistics.
        gradients: One per trainable weight; two with gradient accumulation.
        slots: Slot variables of the optimizer.
        averages: Moving averages of weights and statistics.
        activations: Activations stored for the gradient, of the batch or of one accumulation step.
        passing: Inputs and outputs of the largest call, whose gradients are in flight.
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
    """Estimate the memory of a training step.

    Args:
        model: As for `count`.
        batch_size: Examples per step on this device.
        optimizer: Built Keras optimizer; None counts no slots.
        use_ema: Whether weight averages are kept (`Recipe(ema_momentum=...)` or `swa_epoch_start`).
        gradient_accumulation_steps: As in `Recipe`.

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
    """Estimate the bytes of inference: weights plus the largest set of tensors that are alive at the same time.

    Raises:
        ValueError: As `count`.
    """
    inputs, layer_calls = trace_calls(model)
    last_use = {id(tensor): index for index, call in enumerate(layer_calls) for tensor in call.inputs}
    live_tensors, peak_bytes = {id(tensor): tensor for tensor in inputs}, 0
    for index, call in enumerate(layer_calls):
        live_tensors |= {id(tensor): tensor for tensor in call.outputs}
        peak_bytes = max(peak_bytes, _tensor_bytes(live_tensors.values()))
        live_tensors = {name: tensor for name, tensor in live_tensors.items() if last_use.get(name, -1) > index}
    return _variable_bytes(model.weights) + batch_size * peak_bytes


def _stored_activation_bytes(inputs: list[keras.KerasTensor], layer_calls: list[Call]) -> int:
    """Return the bytes stored for the gradient per image, including the image."""
    remat_blocks = [call.operation for call in layer_calls if getattr(call.operation, "remat", False)]
    block_by_layer = {id(layer): id(block) for block in remat_blocks for layer in block.branch._flatten_layers()}
    sizes_by_block: dict[int | None, dict[int, int]] = {}  # None: outside of rematerialized blocks
    for index, call in enumerate(layer_calls):
        block_sizes = sizes_by_block.setdefault(block_by_layer.get(id(call.operation)), {})
        block_sizes |= {id(tensor): _tensor_bytes([tensor]) for tensor in _tensors_for_gradient(call)}
        block_sizes[-index - 1] = _untraced_bytes(call)  # ids of tensors are positive
    permanent_sizes = sizes_by_block.pop(None, {}) | {id(tensor): _tensor_bytes([tensor]) for tensor in inputs}
    permanent_sizes |= {
        id(call.inputs[0]): _tensor_bytes(call.inputs[:1])
        for call in layer_calls
        if id(call.operation) in block_by_layer.values()
    }
    return sum(permanent_sizes.values()) + max((sum(sizes.values()) for sizes in sizes_by_block.values()), default=0)


def _tensors_for_gradient(call: Call) -> list[keras.KerasTensor]:
    """Return the tensors from which the gradient of a call is computed."""
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
    """Return the bytes of stored values that are not in the graph: masks, and inputs of activations inside a layer."""
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
    """Return the bytes of one element, from the digits of the dtype's name; booleans take one byte."""
    digits = "".join(filter(str.isdigit, str(value.dtype).removeprefix("b").removeprefix("float")))
    return int(digits) // 8 if digits else 1
