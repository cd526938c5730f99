"""Calibration errors and reliability curves.

The confidence of an example is its largest probability.
"""

import numpy as np

from keras_committee.metrics.checks import validate_predictions

ECE_BINS = 15


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins of confidence.

    Bin `b` of `bins` holds the confidences in `((b - 1) / bins, b / bins]`.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    return _mean_calibration_gap(*_assign_bins(probabilities, labels, bins, adaptive=False))


def adaptive_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error over bins that hold equally many examples, or one more than others.

    The examples are sorted by confidence, with incorrect before correct ones among equal confidences, and split into
    `bins` parts, the larger parts first. The confidences of an overconfident network fill few of the equal-width bins;
    these bins are all filled.

    Source: Nguyen & O'Connor 2015, arXiv:1508.05154; AdaECE of Mukhoti et al. 2020, arXiv:2002.09437.
    """
    return _mean_calibration_gap(*_assign_bins(probabilities, labels, bins, adaptive=True))


def reliability_curve(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS, *, adaptive: bool = False
) -> dict[str, np.ndarray]:
    """Return the data of a reliability diagram: `confidence`, `accuracy` and `count` of each bin, arrays `(bins,)`.

    Confidence and accuracy are means over the examples of a bin, NaN for an empty bin.

    Args:
        probabilities: Floats `(examples, classes)`.
        labels: Integers `(examples,)`.
        bins: Number of bins.
        adaptive: Use the bins of `adaptive_ece` instead of those of `ece`.

    Source: DeGroot & Fienberg 1983, The Statistician 32; Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    bin_indices, confidence, correct = _assign_bins(probabilities, labels, bins, adaptive)
    count = np.bincount(bin_indices, minlength=bins)
    sums = [np.bincount(bin_indices, weights=values, minlength=bins) for values in (confidence, correct)]
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return {"confidence": means[0], "accuracy": means[1], "count": count}


def equal_width_bins(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Return the index of each confidence's bin in `ece`, from 0; integers of the same shape."""
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")


def _assign_bins(
    probabilities: np.ndarray, labels: np.ndarray, bins: int, adaptive: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bin of each example, its confidence, and whether it is correct."""
    probabilities, labels = validate_predictions(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received: bins={bins}")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_indices = _equal_mass_bins(confidence, correct, bins) if adaptive else equal_width_bins(confidence, bins)
    return bin_indices, confidence, correct


def _equal_mass_bins(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    bin_indices = np.empty(len(confidence), int)
    # Ties are ordered by `correct`, so that the order of the examples does not matter.
    for bin_index, examples in enumerate(np.array_split(np.lexsort((correct, confidence)), bins)):
        bin_indices[examples] = bin_index
    return bin_indices


def _mean_calibration_gap(bin_indices: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> float:
    return float(np.abs(np.bincount(bin_indices, weights=correct - confidence)).sum() / len(bin_indices))
