"""The precision in which the layers of an exported member compute.

In bfloat16 the convolutions and matrix products compute in bfloat16, and what lies between them, where it rounds at
most once. The layer that returns the logits, poolings over many pixels and all other layers compute in float32.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_committee.export.bn_folding import functional_graph, is_linear, is_norm, layer_graph
from keras_committee.flops.counting import has_graph
from keras_committee.layers import StochasticDepth
from keras_committee.layers.layer_graph import LayerGraph

# TensorFlow fuses the first two into the convolution before them. The others copy, choose or multiply once.
_LAYERS_BETWEEN = (
    keras.layers.Add, keras.layers.ReLU, keras.layers.Concatenate, keras.layers.Cropping2D, keras.layers.Flatten,
    keras.layers.MaxPooling2D, keras.layers.Multiply, keras.layers.Reshape, keras.layers.ZeroPadding2D,
)  # fmt: skip
_ACTIVATIONS_BETWEEN = (keras.activations.linear, keras.activations.relu, keras.activations.relu6)


def rounds_once(layer: Any) -> bool:
    """Whether a layer between two linear layers has a result in bfloat16 that is rounded at most once."""
    if type(layer) is keras.layers.Activation:
        return is_exact_activation(layer.activation)
    return type(layer) in _LAYERS_BETWEEN


def is_exact_activation(activation: Any) -> bool:
    return activation in _ACTIVATIONS_BETWEEN


def logits_layers(graph: LayerGraph, model: keras.Model) -> set[int]:
    """Return the `id` of each dense layer behind which no other layer multiplies by a kernel.

    Args:
        graph: The layer calls of `model`.
        model: Functional or Sequential model.
    """
    found, seen, tensors = set(), set(), list(functional_graph(model).outputs)
    while tensors:
        node = graph.producer(tensors.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if has_graph(node.operation):
            tensors += functional_graph(node.operation).outputs
        elif is_linear(node.operation):
            found |= {id(node.operation)} if isinstance(node.operation, keras.layers.Dense) else set()
        else:
            tensors += node.input_tensors
    return found


def compute_in_float32(model: keras.Model) -> None:
    """Set all layers to compute in float32. Weights are float32 even if the model was trained in mixed precision."""
    for layer in model._flatten_layers():
        if layer.dtype_policy.compute_dtype != "float32":
            layer.dtype_policy = "float32"


@contextlib.contextmanager
def computing_in_bfloat16(models: Sequence[keras.Model]) -> Iterator[None]:
    """Let Keras models compute as their export in bfloat16 does, and in float32 again at the end."""
    for model in models:
        float32_layers = logits_layers(layer_graph(model), model)
        for layer in model._flatten_layers():
            in_bfloat16 = is_linear(layer) or is_norm(layer) or rounds_once(layer) or isinstance(layer, StochasticDepth)
            if in_bfloat16 and id(layer) not in float32_layers:
                layer.dtype_policy = "mixed_bfloat16"
    try:
        yield
    finally:
        for model in models:
            compute_in_float32(model)
