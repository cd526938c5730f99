"""What does a member compute at inference, with as few operations and weights as that takes?

Stochastic depth is folded into the branches, a batch normalisation into the convolution or dense layer before it where
nothing else reads that one, and every other batch normalisation is one multiplication and one addition.
"""

import collections
import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_committee.layers import StochasticDepth
from keras_committee.models import fold

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_LINEAR = (*_CONVOLUTIONS, keras.layers.DepthwiseConv2D, keras.layers.Dense)
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
        return _graph(model)._run_through_graph(inputs, operation_fn=self._stands_for)

    def _stands_for(self, operation):
        if id(operation) in self._runs:
            return self._runs[id(operation)]
        if _is_graph(operation):
            return lambda inputs, **_: self._run(operation, inputs)
        if getattr(operation, "_call_has_training_arg", False):
            return functools.partial(_call_for_inference, operation)
        return operation

    def _replace(self):
        graphs = list(_graphs(self._model))
        uses = collections.Counter(id(node.operation) for graph in graphs for node in _nodes(graph))
        pairs = {id(bn): conv for graph in graphs for conv, bn in _pairs(graph, uses)}
        folded = {id(conv): bn for graph in graphs for conv, bn in _pairs(graph, uses)}
        for node in (node for graph in graphs for node in _nodes(graph)):
            layer = node.operation
            if isinstance(layer, _IDENTITIES) or id(layer) in pairs:
                self._runs[id(layer)] = _same
            elif _is_linear(layer):
                self._runs[id(layer)] = self._linear(layer, folded.get(id(layer)))
            elif _is_norm(layer):
                self._runs[id(layer)] = self._affine(layer, len(node.input_tensors[0].shape))

    def _linear(self, layer, norm):
        kernel, bias = _float64(layer.kernel), _float64(layer.bias) if layer.use_bias else None
        if norm is not None:
            scale, shift = _scale_and_shift(norm)
            kernel = kernel * _per_output(layer, scale)
            bias = shift if bias is None else bias * scale + shift
        kernel = self._variable(layer, "kernel", kernel)
        return functools.partial(_run_linear, layer, kernel, self._variable(layer, "bias", bias))

    def _affine(self, norm, rank):
        scale, shift = _scale_and_shift(norm)
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


def _is_graph(layer):
    return hasattr(getattr(layer, "_functional", layer), "_run_through_graph")


def _graph(model):
    if not _is_graph(model):
        raise ValueError(f"Cannot export {model.name!r}: it is no graph of layers. Define it as a functional model.")
    return getattr(model, "_functional", model)  # a Sequential keeps its graph there


def _graphs(model, seen=None):
    """The graph of the model and those of the models in it, each once."""
    seen, graph = set() if seen is None else seen, _graph(model)
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for node in _nodes(graph):
        if _is_graph(node.operation):
            yield from _graphs(node.operation, seen)


def _nodes(graph):
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input]


def _pairs(graph, uses):
    """Each linear layer whose output goes to one batch normalisation and nowhere else, with that one."""
    makers = {id(tensor): node.operation for node in _nodes(graph) for tensor in node.outputs}
    reads = collections.Counter(id(tensor) for node in _nodes(graph) for tensor in node.input_tensors)
    reads.update(id(tensor) for tensor in graph.outputs)
    for node in _nodes(graph):
        if not _is_norm(node.operation) or node.arguments.kwargs.get("training"):
            continue
        tensor = node.input_tensors[0]
        maker = makers.get(id(tensor))
        once = reads[id(tensor)] == uses[id(maker)] == uses[id(node.operation)] == 1
        last = node.operation.axis in (-1, len(tensor.shape) - 1)
        if maker and once and last and _is_linear(maker) and maker.activation is keras.activations.linear:
            yield maker, node.operation


def _is_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization)


def _is_linear(layer):
    # A subclass may compute something else, and quantised weights are no kernel to multiply.
    known = type(layer) in _LINEAR and layer.quantization_mode is None
    return known and getattr(layer, "data_format", "channels_last") == "channels_last"


def _scale_and_shift(norm):
    """float64 `(channels,)`: the normalisation is `inputs * scale + shift` at inference."""
    scale = 1.0 / np.sqrt(_float64(norm.moving_variance) + norm.epsilon)
    scale = scale * _float64(norm.gamma) if norm.scale else scale
    shift = -_float64(norm.moving_mean) * scale
    return scale, shift + _float64(norm.beta) if norm.center else shift


def _per_output(layer, scale):
    """`scale` in a shape that multiplies the kernel's outputs: its last axis, or the last two of a depthwise one."""
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return scale.reshape((-1, layer.depth_multiplier)) if depthwise else scale


def _float64(variable):
    return ops.convert_to_numpy(variable).astype(np.float64)


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


def _call_for_inference(layer, *inputs, training=None, **arguments):
    _refuse_training(layer, training)
    return layer(*inputs, training=False, **arguments)


def _refuse_training(layer, training):
    if training:
        raise ValueError(f"Cannot export {layer.name!r}: the model calls it with training=True. Leave that out.")
