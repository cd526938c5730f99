"""Metrics of accuracy, calibration, selective prediction, uncertainty and diversity, on NumPy arrays.

Probabilities are floats `(examples, classes)` and member probabilities `(examples, members, classes)`, whose last axis
sums to 1. Labels are integers `(examples,)`, the true classes. Logarithms are natural.
"""

from keras_committee.metrics.calibration import adaptive_ece, ece, reliability_curve
from keras_committee.metrics.conformal import conformal_threshold, coverage_interval, min_conformal_examples
from keras_committee.metrics.detection import auroc, fpr_at_tpr
from keras_committee.metrics.diversity import (
    ambiguity,
    disagreement,
    double_fault,
    error_correlation,
    log_ambiguity,
    q_statistic,
)
from keras_committee.metrics.intervals import accuracy_interval
from keras_committee.metrics.label_errors import label_errors
from keras_committee.metrics.scores import (
    accuracy,
    brier,
    classification_metrics,
    confusion_matrix,
    nll,
    precision_and_recall,
    top_k_accuracy,
)
from keras_committee.metrics.selective import (
    aurc,
    coverage_at_risk,
    risk_coverage_curve,
    risk_upper_bound,
    selective_metrics,
    selective_threshold,
)
from keras_committee.metrics.uncertainty import entropy, uncertainty_decomposition

__all__ = [
    "accuracy",
    "accuracy_interval",
    "adaptive_ece",
    "ambiguity",
    "aurc",
    "auroc",
    "brier",
    "classification_metrics",
    "conformal_threshold",
    "confusion_matrix",
    "coverage_at_risk",
    "coverage_interval",
    "disagreement",
    "double_fault",
    "ece",
    "entropy",
    "error_correlation",
    "fpr_at_tpr",
    "label_errors",
    "log_ambiguity",
    "min_conformal_examples",
    "nll",
    "precision_and_recall",
    "q_statistic",
    "reliability_curve",
    "risk_coverage_curve",
    "risk_upper_bound",
    "selective_metrics",
    "selective_threshold",
    "top_k_accuracy",
    "uncertainty_decomposition",
]
