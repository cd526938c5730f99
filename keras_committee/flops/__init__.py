"""Multiply-adds, parameters and memory of a model, from the shapes in its graph.

All counts are for one image. A multiply-add is one multiplication and the addition of its product; `mflops` counts it
as two operations. As is usual, biases, activations, normalization, pooling and additions count nothing, nor do products
of two tensors without weights (`keras.layers.Dot`, `keras.ops.matmul`); those inside `MultiHeadAttention` do count.
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
]
