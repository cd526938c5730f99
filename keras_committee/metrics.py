"""How good are predictions, and how different are two members? Arrays in, numbers out.

Probabilities are `(examples, classes)`, votes `(examples, members, classes)`, both floats whose last axis sums to one;
labels are the integers `(examples,)` of the true classes.
"""

import numpy as np

_SMALLEST = 1e-12  # probabilities are clipped here before the logarithm: one certain mistake costs 27.6, not infinity


def summary(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score under their short names."""
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": ece(probabilities, labels),
        "brier": brier(probabilities, labels),
    }


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose most probable class is the true one; of equal classes the first counts."""
    probabilities, labels = _checked(probabilities, labels)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative natural logarithm of the true class's probability, which is clipped to at least 1e-12."""
    probabilities, labels = _checked(probabilities, labels)
    return float(-np.mean(np.log(np.maximum(_of_true_class(probabilities, labels), _SMALLEST))))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Squared distance to the one-hot label, summed over classes, averaged over examples; in [0, 2].

    Source: Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    probabilities, labels = _checked(probabilities, labels)
    # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_true + 1
    return float(np.mean(np.sum(probabilities**2, axis=1) - 2 * _of_true_class(probabilities, labels) + 1))


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, by equal-width bins of confidence.

    Confidence is the largest probability of an example. Bin `b` of `bins` holds the confidences in
    `((b - 1) / bins, b / bins]`.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    probabilities, labels = _checked(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received: {bins}")
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    inner_edges = np.arange(1, bins) / bins
    sums = np.bincount(np.searchsorted(inner_edges, confidence, side="left"), weights=gap, minlength=bins)
    return float(np.abs(sums).sum() / len(labels))


def disagreement(votes: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the share of examples on which the top classes of two members differ."""
    top = _checked_votes(votes).argmax(axis=2)
    return (top[:, :, None] != top[:, None, :]).mean(axis=0)


def double_fault(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the share of examples that both members get wrong; the diagonal is each one's error.

    Source: Giacinto & Roli 2001, Image and Vision Computing 19(9-10).
    """
    votes = _checked_votes(votes)
    _check_labels(labels, examples=votes.shape[0], classes=votes.shape[2])
    wrong = (votes.argmax(axis=2) != np.asarray(labels)[:, None]).astype(np.float64)
    return wrong.T @ wrong / len(wrong)


def _of_true_class(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = _checked_floats("probabilities", probabilities, "(examples, classes)", rank=2)
    _check_labels(labels, *probabilities.shape)
    return probabilities, np.asarray(labels)


def _checked_votes(votes: np.ndarray) -> np.ndarray:
    return _checked_floats("votes", votes, "(examples, members, classes)", rank=3)


def _checked_floats(name: str, values: np.ndarray, shape: str, rank: int) -> np.ndarray:
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


def _check_labels(labels: np.ndarray, examples: int, classes: int) -> None:
    labels = np.asarray(labels)
    if labels.shape != (examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers ({examples},). Received: {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}. Received: {labels.min()}..{labels.max()}")
