"""How many multiply-adds and parameters does a model cost, layer by layer?

Counted for one image, from the shapes that flow through the model's graph. A multiply-add is one multiplication and the
addition of its product; `mflops` counts it as two. Biases, activations, normalisation, pooling and additions count
nothing, as is usual, and neither do products of two tensors without weights (`keras.layers.Dot`, `keras.ops.matmul`);
those inside `MultiHeadAttention` count.

`training_memory` and `inference_memory` say how many bytes it takes, from the same shapes.
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
    "expected_multiply_adds",
    "expected_flops_reduction",
    "inference_memory",
    "member_multiply_adds",
    "mflops",
    "multiply_adds",
    "parameters",
    "training_memory",
]
