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

    The examples are sorted by confidence and split into `bins` parts, the larger parts first. Examples of equal
    confidence each count as correct by the accuracy of all of them, so no order among them matters. The confidences of
    an overconfident network fill few of the equal-width bins; these bins are all filled.

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
    """Return the bin of each example, its confidence, and whether it is correct, averaged over ties if `adaptive`."""
    probabilities, labels = validate_predictions(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received: bins={bins}")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    if adaptive:
        return _equal_mass_bins(confidence, bins), confidence, _mean_over_ties(correct, confidence)
    return equal_width_bins(confidence, bins), confidence, correct


def _equal_mass_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    bin_indices = np.empty(len(confidence), int)
    for bin_index, examples in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
        bin_indices[examples] = bin_index
    return bin_indices


def _mean_over_ties(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return for each example the mean of `correct` over all examples of the same confidence."""
    _, groups, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    return (np.bincount(groups, weights=correct) / counts)[groups]


def _mean_calibration_gap(bin_indices: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> float:
    return float(np.abs(np.bincount(bin_indices, weights=correct - confidence)).sum() / len(bin_indices))
