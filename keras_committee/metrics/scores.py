"""Accuracy, negative log-likelihood, Brier score and confusion matrix."""

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


def _true_class_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]
