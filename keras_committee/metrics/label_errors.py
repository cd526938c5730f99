"""Confident learning: examples whose label is probably wrong, from predictions that did not learn it."""

from typing import NamedTuple

import numpy as np

from keras_committee.metrics.checks import validate_predictions


class LabelErrors(NamedTuple):
    """Examples whose label is probably wrong, the most suspicious first.

    Attributes:
        indices: Integers `(errors,)`.
        suggested: The class that each probably has, integers `(errors,)`.
        margins: The probability of the label minus that of the most probable other class, ascending floats `(errors,)`.
        joint: The confident joint, integers `(classes, classes)`: the number of examples with each label (row) that are
            confidently of each class (column).
    """

    indices: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    joint: np.ndarray


def label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Return the examples that are confidently of another class than their label.

    An example is confidently of a class if its probability is at least the mean probability of this class over the
    examples with this label; of several such classes, the most probable one counts. Networks that were trained on the
    labels have memorized errors: use predictions on examples that they were not trained on.

    Args:
        probabilities: Floats `(examples, classes)`.
        labels: Integers `(examples,)`, which may be wrong.

    Source: Northcutt et al. 2021, Confident Learning, arXiv:1911.00068: the confident joint of section 3.1, whose
    off-diagonal examples are the errors, ranked by margin.
    """
    probabilities, labels = validate_predictions(probabilities, labels)
    examples, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    own = np.bincount(labels, weights=probabilities[np.arange(examples), labels], minlength=classes)
    thresholds = np.divide(own, counts, out=np.full(classes, np.inf), where=counts > 0)
    is_confident = probabilities >= thresholds
    best = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    counted = is_confident.any(axis=1)
    joint = np.bincount(labels[counted] * classes + best[counted], minlength=classes**2).reshape(classes, classes)
    others = probabilities.copy()
    others[np.arange(examples), labels] = -1
    margins = probabilities[np.arange(examples), labels] - others.max(axis=1)
    indices = np.flatnonzero(counted & (best != labels))
    indices = indices[np.argsort(margins[indices], kind="stable")]
    return LabelErrors(indices, best[indices], margins[indices], joint)
