"""Multiply-adds, parameters and memory of a model, from the shapes in its graph.

All counts are for one image. A multiply-add is one multiplication and the addition of its product; `mflops` counts it
as two operations. As is usual, biases, activations, normalization, pooling and additions count nothing, nor do products
of two tensors without weights (`keras.layers.Dot`, `keras.ops.matmul`); those inside `MultiHeadAttention` do count.

The cost of a layer of an unknown kind with a weight matrix, such as `LSTM` or a layer of a recipe, is unknown, and so
is that of its model and of every committee with it: None, and `null` in JSON. A layer counts itself with a method
`multiply_adds(input_shape, output_shape)`.
"""

from keras_committee.flops.counting import (
    Cost,
    cascade_multiply_adds,
    count,
    expected_flops_reduction,
    expected_multiply_adds,
    member_multiply_adds,
    mflops,
    multiply_adds,
    parameters,
    uncounted_layers,
)
from keras_committee.flops.memory import TrainingMemory, inference_memory, training_memory

__all__ = [
    "Cost",
    "TrainingMemory",
    "cascade_multiply_adds",
    "count",
    "expected_flops_reduction",
    "expected_multiply_adds",
    "inference_memory",
    "member_multiply_adds",
    "mflops",
    "multiply_adds",
    "parameters",
    "training_memory",
    "uncounted_layers",
]
