"""What does a member compute at inference, with as few operations and weights as that takes?

Stochastic depth is folded into the branches, batch normalisations into the layers around them (see `absorbing`), and
one that cannot be is one multiplication and one addition.
"""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_committee.export.bn_folding import (
    Wiring,
    absorb,
    float64,
    graph_of,
    is_graph,
    is_linear,
    is_norm,
    scale_and_shift,
)
from keras_committee.layers import StochasticDepth
from keras_committee.models import fold

_IDENTITIES = (keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity)


class Network:
    """One member, folded for inference; the Keras model stays as it is, and must compute in float32.

    The members of one committee may share a network. Layers that are neither linear nor batch normalisations run as
    Keras wrote them, with the variables that they have.

    Args:
        model: Functional or Sequential model from raw pixels `(batch, height, width, channels)` to logits
            `(batch, classes)`; models may be nested in it.
        name: Begins the names of the variables.

    Call arguments:
        image: float32 tensor `(batch, height, width, channels)`, inside a `tf.function`.

    Returns:
        float32 logits `(batch, classes)`.

    Raises:
        ValueError: If the model is not a graph of layers, or a layer of it runs in training mode.
    """

    def __init__(self, model: keras.Model, name: str):
        skips = any(isinstance(layer, StochasticDepth) for layer in model._flatten_layers())
        self._model = fold(model) if skips else model
        self._name = name
        self._own: dict[str, tf.Variable] = {}
        self._runs: dict[int, Any] = {}  # id of a layer -> what stands for it
        self._replace()

    def __call__(self, image):
        first = self._model.inputs[0]
        return tf.cast(self._run(self._model, tf.cast(image, first.dtype)), tf.float32)

    def variables(self, captured) -> dict[str, tf.Variable]:
        """Those of `captured`, the variables that a traced call reads, by name.

        Raises:
            ValueError: If one of them is neither a weight of a layer nor made here.
        """
        names = {id(each.value): f"{self._name}/{each.path}" for each in self._model.variables}
        names.update({id(variable): name for name, variable in self._own.items()})
        strange = [each.name for each in captured if id(each) not in names]
        if strange:
            raise ValueError(f"{self._model.name!r} reads {strange[0]}, which is no weight of its layers")
        return dict(sorted((names[id(each)], each) for each in captured))

    def _run(self, model, inputs):
        return graph_of(model)._run_through_graph(inputs, operation_fn=self._stands_for)

    def _stands_for(self, operation):
        if id(operation) in self._runs:
            return self._runs[id(operation)]
        if is_graph(operation):
            return lambda inputs, **_: self._run(operation, inputs)
        if getattr(operation, "_call_has_training_arg", False):
            return functools.partial(_call_for_inference, operation)
        return operation

    def _replace(self):
        wiring = Wiring(self._model)
        absorbed = absorb(wiring)
        norms = {id(node.operation): node.operation for node in wiring.nodes if is_norm(node.operation)}
        folded = {id(layer): norms[norm] for norm, layer in absorbed.folded.items()}
        for node in wiring.nodes:
            layer = node.operation
            if id(layer) in absorbed.split:
                self._runs[id(layer)] = _kept_apart if absorbed.split[id(layer)] else _same
            elif isinstance(layer, _IDENTITIES) or id(layer) in absorbed.folded:
                self._runs[id(layer)] = _same
            elif is_linear(layer):
                self._runs[id(layer)] = self._linear(layer, folded.get(id(layer)), absorbed)
            elif is_norm(layer):
                self._runs[id(layer)] = self._affine(layer, len(node.input_tensors[0].shape))
            elif getattr(layer, "negative_slope", None):
                self._runs[id(layer)] = functools.partial(_run_leaky, layer)

    def _linear(self, layer, norm, absorbed):
        kernel, bias = float64(layer.kernel), float64(layer.bias) if layer.use_bias else None
        if id(layer) in absorbed.scales:
            kernel = kernel * absorbed.scales[id(layer)][:, None]  # the inputs are its last axis but one
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            kernel = kernel * _per_output(layer, scale)
            bias = shift if bias is None else bias * scale + shift
        if id(layer) in absorbed.shifts:
            bias = absorbed.shifts[id(layer)] + (0.0 if bias is None else bias)
        kernel = self._variable(layer, "kernel", kernel)
        return functools.partial(_run_linear, layer, kernel, self._variable(layer, "bias", bias))

    def _affine(self, norm, rank):
        scale, shift = scale_and_shift(norm)
        if rank == 4 and norm.axis in (-1, 3):
            return self._fused(norm, self._variable(norm, "scale", scale), self._variable(norm, "shift", shift))
        shape = [1] * rank
        shape[norm.axis] = -1
        scale = self._variable(norm, "scale", scale.reshape(shape))
        shift = self._variable(norm, "shift", shift.reshape(shape))

        def run(inputs, training=None, mask=None):
            _refuse_training(norm, training)
            return inputs * scale + shift

        return run

    def _fused(self, norm, scale, shift):
        """One pass over the pixels, which TensorFlow fuses with the ReLU after it; a product and a sum take three."""
        zeros, ones = np.zeros(scale.shape, np.float32), np.ones(scale.shape, np.float32)

        def run(inputs, training=None, mask=None):
            _refuse_training(norm, training)
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=scale, offset=shift, mean=zeros, variance=ones, epsilon=0.0, is_training=False
            ).y

        return run

    def _variable(self, layer, what, value):
        if value is None:
            return None
        name = f"{self._name}/{layer.path}/{what}"
        name = name if name not in self._own else f"{name}_{len(self._own)}"
        self._own[name] = tf.Variable(value.astype(np.float32), trainable=False, name=name)
        return self._own[name]


def compute_in_float32(model: keras.Model) -> None:
    """Makes the layers compute in float32, whatever they were trained in: their weights are float32 already."""
    for layer in model._flatten_layers():
        if layer.dtype_policy.compute_dtype != "float32":
            layer.dtype_policy = "float32"


def _per_output(layer, scale):
    """`scale` in a shape that multiplies the kernel's outputs: its last axis, or the last two of a depthwise one."""
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return scale.reshape((-1, layer.depth_multiplier)) if depthwise else scale


def _run_linear(layer, kernel, bias, inputs):
    """`BiasAdd` and not `Add`: TensorFlow fuses the convolution, the bias and what follows into one kernel."""
    outputs = _multiplied(layer, inputs, kernel)
    outputs = outputs if bias is None else tf.nn.bias_add(outputs, bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def _multiplied(layer, inputs, kernel):
    if isinstance(layer, keras.layers.Dense):
        return ops.matmul(inputs, kernel)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return ops.depthwise_conv(
            inputs, kernel, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )  # fmt: skip
    return layer.convolution_op(inputs, kernel)


def _same(inputs, training=None, **_):
    return inputs


def _run_leaky(layer, inputs):
    """Behind a convolution and a sum TensorFlow 2.20's remapper takes a leaky ReLU in and forgets its slope."""
    return layer(_kept_apart(inputs))


def _kept_apart(inputs, training=None, **_):
    """What was a normalisation between a sum and a ReLU, where another sum reads the first one, too.

    With nothing there, TensorFlow 2.20's remapper takes both sums into convolutions, loses a node ("Mutation::Apply
    error: fanout ... exist for missing node") and fuses nothing in the graph. This operation copies nothing.
    """
    return tf.ensure_shape(inputs, inputs.shape)


def _call_for_inference(layer, *inputs, training=None, **arguments):
    _refuse_training(layer, training)
    return layer(*inputs, training=False, **arguments)


def _refuse_training(layer, training):
    if training:
        raise ValueError(f"Cannot export {layer.name!r}: the model calls it with training=True. Leave that out.")
