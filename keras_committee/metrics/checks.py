"""Are these probabilities, votes and labels?"""

import numpy as np


def validate_predictions(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = validate_probabilities("probabilities", probabilities, "(examples, classes)", rank=2)
    check_labels(labels, *probabilities.shape)
    return probabilities, np.asarray(labels)


def validate_member_probabilities(member_probabilities: np.ndarray) -> np.ndarray:
    return validate_probabilities("votes", member_probabilities, "(examples, members, classes)", rank=3)


def validate_probabilities(name: str, values: np.ndarray, shape: str, rank: int) -> np.ndarray:
    """`values` as float64: sums over many examples lose digits in float32."""
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} must be floats. Received: dtype {values.dtype}")
    if values.ndim != rank or 0 in values.shape:
        raise ValueError(f"{name} must have the shape {shape}, none of them 0. Received: shape {values.shape}")
    # Also false for NaN. 1e-3 lets float16 and bfloat16 softmax pass, and no logits.
    if (
        not np.all((values >= 0) & (values <= 1 + 1e-3))
        or np.abs(values.sum(axis=-1, dtype=np.float64) - 1).max() > 1e-3
    ):
        raise ValueError(f"{name} must lie in [0, 1], sum to 1 over the classes and hold no NaN. Are these logits?")
    return values.astype(np.float64)


def check_labels(labels: np.ndarray, num_examples: int, num_classes: int) -> None:
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers ({num_examples},). Received: {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}. Received: {labels.min()}..{labels.max()}")
