"""How good, how sure and how different are predictions? Arrays in, numbers out.

Probabilities are `(examples, classes)`, votes `(examples, members, classes)`, both floats whose last axis sums to one;
labels are the integers `(examples,)` of the true classes. Logarithms are natural.
"""

from keras_committee.metrics.calibration import adaptive_ece, ece, reliability_curve
from keras_committee.metrics.detection import auroc, fpr_at_tpr
from keras_committee.metrics.diversity import (
    ambiguity,
    disagreement,
    double_fault,
    error_correlation,
    log_ambiguity,
    q_statistic,
)
from keras_committee.metrics.scores import accuracy, brier, classification_metrics, confusion_matrix, nll
from keras_committee.metrics.uncertainty import entropy, uncertainty_decomposition

__all__ = [
    "accuracy",
    "adaptive_ece",
    "ambiguity",
    "auroc",
    "brier",
    "confusion_matrix",
    "disagreement",
    "double_fault",
    "ece",
    "entropy",
    "error_correlation",
    "fpr_at_tpr",
    "log_ambiguity",
    "nll",
    "q_statistic",
    "reliability_curve",
    "classification_metrics",
    "uncertainty_decomposition",
]
