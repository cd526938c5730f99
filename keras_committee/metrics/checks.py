"""Validation of probabilities and labels."""

import numpy as np

# How far probabilities may be from sum 1, and above 1. A softmax in bfloat16 misses by up to 2^-8, of whichever dtype
# its outputs are afterwards; logits miss by more.
_SUM_TOLERANCE = 2**-7


def are_probabilities(values: np.ndarray) -> bool:
    """Return whether float64 values `(..., classes)` are probabilities: in [0, 1], with a sum of 1 over the classes."""
    return bool(
        np.all((values >= 0) & (values <= 1 + _SUM_TOLERANCE))  # also false for NaN
        and np.abs(values.sum(axis=-1) - 1).max() <= _SUM_TOLERANCE
    )


def validate_predictions(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `(examples, classes)` as float64, and their labels as int64. Raises ValueError."""
    probabilities = _validate_probabilities("probabilities", probabilities, "(examples, classes)", rank=2)
    return probabilities, validate_labels(labels, *probabilities.shape)


def validate_member_probabilities(member_probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities `(examples, members, classes)` as float64. Raises ValueError."""
    shape = "(examples, members, classes)"
    return _validate_probabilities("member_probabilities", member_probabilities, shape, rank=3)


def validate_labels(labels: np.ndarray, num_examples: int, num_classes: int) -> np.ndarray:
    """Return `num_examples` labels from 0 to `num_classes - 1` as int64. Raises ValueError."""
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({num_examples},). Received: {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}. Received: {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)  # sums and products overflow in uint8, and mixed with int64 become floats in uint64


def _validate_probabilities(name: str, values: np.ndarray, shape: str, rank: int) -> np.ndarray:
    """Return `values` as float64: sums over many examples lose digits in float32."""
    values = np.asarray(values)
    if "float" not in values.dtype.name:  # NumPy does not class bfloat16 as a floating-point type
        raise ValueError(f"{name} must be floats. Received: dtype {values.dtype}")
    if values.ndim != rank or 0 in values.shape:
        raise ValueError(f"{name} must have the shape {shape}, none of them 0. Received: shape {values.shape}")
    values = values.astype(np.float64)
    if not are_probabilities(values):
        raise ValueError(f"{name} must lie in [0, 1], sum to 1 over the classes and hold no NaN. Are these logits?")
    return values
