"""A member as a TensorFlow function for inference, with few operations and weights.

Stochastic depth is folded into the branches, if all of them can be scaled, and batch normalizations into the layers
around them; see `bn_folding`. A normalization that cannot be folded becomes one scale and one shift. In bfloat16 the
weights are stored in bfloat16, so that a request casts none of them.
"""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_committee.export.bn_folding import (
    fold_batch_norms,
    functional_graph,
    is_linear,
    is_norm,
    layer_graph,
    scale_and_shift,
    to_float64,
)
from keras_committee.export.layer_precision import is_exact_activation, logits_layers, rounds_once
from keras_committee.flops.counting import has_graph
from keras_committee.layers import StochasticDepth
from keras_committee.models import fold_stochastic_depth
from keras_committee.models.views import view_of
from keras_committee.selection import View

_IDENTITY_LAYERS = (keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity)


class InferenceModel:
    """One member, folded for inference. The Keras model is not changed, and must compute in float32.

    Layers other than linear layers and batch normalizations run unchanged, with their own variables.

    Args:
        model: Functional or Sequential model from raw pixels `(batch, height, width, channels)` to logits
            `(batch, classes)`. Models may be nested in it.
        name: Prefix of the names of the variables.
        precision: `"float32"` or `"bfloat16"`; see `layer_precision`.

    Call arguments:
        image: float32 tensor `(batch, height, width, channels)`, inside a `tf.function`.

    Returns:
        float32 logits `(batch, classes)`.

    Raises:
        ValueError: If the model is not a graph of layers.
    """

    def __init__(self, model: keras.Model, name: str, precision: str = "float32"):
        self._model = _without_stochastic_depth(model)
        self._name, self._in_bfloat16 = name, precision == "bfloat16"
        self._created_variables: dict[str, tf.Variable] = {}
        self._replacements: dict[int, Any] = {}  # by id of a layer
        self._build_replacements()

    def __call__(self, image):
        first = self._model.inputs[0]
        # Some layers of Keras draw random numbers at inference, too: the graph would write their state in each request.
        with keras.StatelessScope():
            return tf.cast(self._run(self._model, tf.cast(image, first.dtype)), tf.float32)

    def variables(self, captured) -> dict[str, tf.Variable]:
        """Return the variables `captured` by a traced call, by name.

        Raises:
            ValueError: If one of them is neither a weight of a layer nor created by folding.
        """
        names = {id(variable.value): f"{self._name}/{variable.path}" for variable in self._model.variables}
        names.update({id(variable): name for name, variable in self._created_variables.items()})
        unknown = [variable.name for variable in captured if id(variable) not in names]
        if unknown:
            raise ValueError(f"{self._model.name!r} reads {unknown[0]}, which is not a weight of its layers")
        return dict(sorted((names[id(variable)], variable) for variable in captured))

    def _run(self, model, inputs):
        return functional_graph(model)._run_through_graph(inputs, operation_fn=self._replacement)

    def _replacement(self, operation):
        if id(operation) in self._replacements:
            return self._replacements[id(operation)]
        if has_graph(operation):
            return lambda inputs, **_: self._run(operation, inputs)
        if self._in_bfloat16 and rounds_once(operation):
            return functools.partial(_call_in_dtype_of_inputs, operation)
        if isinstance(operation, keras.layers.Layer):
            return functools.partial(_call_for_inference, operation)
        return functools.partial(_run_in_float32, operation) if self._in_bfloat16 else operation

    def _build_replacements(self):
        graph = layer_graph(self._model)
        plan = fold_batch_norms(graph)
        float32_layers = logits_layers(graph, self._model) if self._in_bfloat16 else set()
        norms = {id(node.operation): node.operation for node in graph.nodes if is_norm(node.operation)}
        folded_norms = {id(layer): norms[norm] for norm, layer in plan.folded.items()}
        for node in graph.nodes:
            layer = node.operation
            if id(layer) in plan.split:
                self._replacements[id(layer)] = _fusion_barrier if plan.split[id(layer)] else _identity
            elif isinstance(layer, _IDENTITY_LAYERS) or id(layer) in plan.folded:
                self._replacements[id(layer)] = _identity
            elif is_linear(layer):
                self._replacements[id(layer)] = self._folded_linear(
                    layer, folded_norms.get(id(layer)), plan, self._in_bfloat16 and id(layer) not in float32_layers
                )
            elif is_norm(layer):
                self._replacements[id(layer)] = self._affine(layer, len(node.input_tensors[0].shape))
            elif getattr(layer, "negative_slope", None):
                self._replacements[id(layer)] = functools.partial(_run_leaky_relu, layer)

    def _folded_linear(self, layer, norm, plan, in_bfloat16):
        kernel, bias = to_float64(layer.kernel), to_float64(layer.bias) if layer.use_bias else None
        if id(layer) in plan.scales:
            kernel = kernel * plan.scales[id(layer)][:, None]  # axis -2 is that of the inputs
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            kernel = kernel * _scale_for_kernel(layer, scale)
            bias = shift if bias is None else bias * scale + shift
        if id(layer) in plan.shifts:
            bias = plan.shifts[id(layer)] + (0.0 if bias is None else bias)
        dtype = tf.bfloat16 if in_bfloat16 else tf.float32
        kernel = self._create_variable(layer, "kernel", kernel, dtype)
        run = functools.partial(_run_linear, layer, kernel, self._create_variable(layer, "bias", bias, dtype))
        return lambda inputs, **_: run(tf.cast(inputs, dtype))

    def _affine(self, norm, rank):
        scale, shift = scale_and_shift(norm)
        if rank == 4 and norm.axis in (-1, 3):
            return _fused_affine(
                self._create_variable(norm, "scale", scale), self._create_variable(norm, "shift", shift)
            )
        shape = [1] * rank
        shape[norm.axis] = -1
        scale = self._create_variable(norm, "scale", scale.reshape(shape))
        shift = self._create_variable(norm, "shift", shift.reshape(shape))

        return lambda inputs, **_: tf.cast(inputs, tf.float32) * scale + shift

    def _create_variable(self, layer, weight_name, value, dtype=tf.float32):
        if value is None:
            return None
        name = f"{self._name}/{layer.path}/{weight_name}"
        name = name if name not in self._created_variables else f"{name}_{len(self._created_variables)}"
        self._created_variables[name] = tf.Variable(value.astype(dtype.as_numpy_dtype), trainable=False, name=name)
        return self._created_variables[name]


class InferenceView:
    """A member on one view of the image, with the variables of the member that it is a view of.

    Args:
        member: The member.
        view: The view.

    Call arguments and returns: as `InferenceModel`.
    """

    def __init__(self, member: InferenceModel, view: View):
        self._member, self._view = member, view
        self.variables = member.variables

    def __call__(self, image):
        return self._member(view_of(image, self._view))


def _without_stochastic_depth(model):
    """Return the model with folded branches; unchanged if a branch cannot be folded, as one that ends in a ReLU."""
    if not any(isinstance(layer, StochasticDepth) for layer in model._flatten_layers()):
        return model
    try:
        return fold_stochastic_depth(model)
    except ValueError:
        return model


def _fused_affine(scale, shift):
    """Return a normalization of mean 0 and variance 1, one pass over the pixels, fused with a ReLU by TensorFlow.

    A product, a sum and a ReLU take three passes.
    """
    zeros, ones = np.zeros(scale.shape, np.float32), np.ones(scale.shape, np.float32)
    return lambda inputs, **_: (
        tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=shift, mean=zeros, variance=ones, epsilon=0.0, is_training=False
        ).y
    )


def _scale_for_kernel(layer, scale):
    """Return `scale` in a shape that multiplies the outputs of the kernel: its last axis, or two axes if depthwise."""
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return scale.reshape((-1, layer.depth_multiplier)) if depthwise else scale


def _run_linear(layer, kernel, bias, inputs):
    # TensorFlow fuses a convolution, `BiasAdd` (not `Add`) and an activation into one kernel.
    outputs = _apply_kernel(layer, inputs, kernel)
    outputs = outputs if bias is None else tf.nn.bias_add(outputs, bias)
    if layer.activation is None:
        return outputs
    return layer.activation(outputs if is_exact_activation(layer.activation) else tf.cast(outputs, tf.float32))


def _apply_kernel(layer, inputs, kernel):
    if isinstance(layer, keras.layers.Dense):
        return ops.matmul(inputs, kernel)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return ops.depthwise_conv(
            inputs, kernel, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )  # fmt: skip
    return layer.convolution_op(inputs, kernel)


def _identity(inputs, **_):
    return inputs


def _run_leaky_relu(layer, inputs, **_):
    # After a convolution and a sum, the remapper of TensorFlow 2.20 fuses a leaky ReLU and loses its slope.
    return _call_in_dtype_of_inputs(layer, _fusion_barrier(inputs))


def _fusion_barrier(inputs, **_):
    """Replace a split normalization between a sum and a ReLU if another sum reads the first one as well.

    Without an operation there, the remapper of TensorFlow 2.20 fuses both sums into convolutions, loses a node
    ("Mutation::Apply error: fanout ... exist for missing node") and then fuses nothing in the whole graph. This
    operation copies nothing.
    """
    return tf.ensure_shape(inputs, inputs.shape)


def _call_in_dtype_of_inputs(layer, inputs, **_):
    """Call a layer without weights in bfloat16 if an input is bfloat16: Keras would cast all of them to float32."""
    tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if all(tensor.dtype != tf.bfloat16 for tensor in tensors):
        return layer(inputs)
    copy = type(layer).from_config({**layer.get_config(), "dtype": "bfloat16"})
    return copy(inputs)


def _run_in_float32(operation, *inputs, **arguments):
    """Run an operation that is no layer, and would not cast its inputs to one dtype."""

    def cast(value):
        return tf.cast(value, tf.float32) if tf.is_tensor(value) and value.dtype == tf.bfloat16 else value

    return operation(*tf.nest.map_structure(cast, inputs), **tf.nest.map_structure(cast, arguments))


def _call_for_inference(layer, *inputs, training=None, **arguments):
    """Call a layer as Keras does when it predicts.

    A `training` in the graph is ignored: Keras records the default of a layer's `call`, which is True for random
    augmentation, and replaces it by the mode of the whole model. The argument is also passed to layers without it, for
    the layers inside them.
    """
    return layer(*inputs, training=False, **arguments)
