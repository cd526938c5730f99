"""Accuracy, negative log-likelihood, Brier score, confusion matrix, precision and recall."""

import numpy as np

from keras_committee.metrics.calibration import ece
from keras_committee.metrics.checks import validate_predictions

MIN_PROBABILITY = 1e-12  # clipped here before the logarithm: a certain mistake costs 27.6, not infinity


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `accuracy`, `nll`, `ece` and `brier`."""
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": ece(probabilities, labels),
        "brier": brier(probabilities, labels),
    }


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples whose most probable class, the first of equal ones, is the true one."""
    probabilities, labels = validate_predictions(probabilities, labels)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative natural logarithm of the true class's probability, clipped to at least 1e-12."""
    probabilities, labels = validate_predictions(probabilities, labels)
    return float(-np.mean(np.log(np.maximum(_true_class_probabilities(probabilities, labels), MIN_PROBABILITY))))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Squared distance to the one-hot label, summed over classes, averaged over examples; in [0, 2].

    Source: Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    probabilities, labels = validate_predictions(probabilities, labels)
    # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_true + 1
    return float(np.mean(np.sum(probabilities**2, axis=1) - 2 * _true_class_probabilities(probabilities, labels) + 1))


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Integers `(classes, classes)`: number of examples of each true class (row) with each predicted class (column)."""
    probabilities, labels = validate_predictions(probabilities, labels)
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def precision_and_recall(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall of each class, floats `(classes,)`.

    Precision is NaN for a class that is never predicted, recall for one without examples.

    Args:
        confusion: The result of `confusion_matrix`.
    """
    correct = np.diag(confusion).astype(np.float64)
    totals = (confusion.sum(axis=axis) for axis in (0, 1))
    precision, recall = (np.divide(correct, n, out=np.full(len(correct), np.nan), where=n > 0) for n in totals)
    return precision, recall


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Fraction of examples whose true class is among the `k` most probable ones, the first of equal ones."""
    probabilities, labels = validate_predictions(probabilities, labels)
    if k < 1:
        raise ValueError(f"k must be at least 1. Received: k={k}")
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float(np.mean((top == labels[:, None]).any(axis=1)))


def _true_class_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]
