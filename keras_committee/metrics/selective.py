"""Selective prediction: answers are accepted where the confidence reaches a threshold.

The risk is the error rate among accepted answers, the coverage the fraction of answers that are accepted. A confidence
is one float per example, higher where the answer is more certain; equal ones are accepted together.
"""

import math
from typing import NamedTuple

import numpy as np

SELECTIVE_METRICS = ("aurc", "coverage_at_1_percent_risk", "coverage_at_5_percent_risk")
CERTAINTY = 0.95  # with which a risk is promised


class RiskCoverage(NamedTuple):
    """The risk-coverage curve, a point for each distinct confidence, by ascending coverage.

    Attributes:
        thresholds: Floats, descending.
        accepted: Number of examples whose confidence is at least the threshold, integers.
        errors: Number of them that are misclassified, integers.
    """

    thresholds: np.ndarray
    accepted: np.ndarray
    errors: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """Fraction of all examples that are accepted."""
        return self.accepted / self.accepted[-1]

    @property
    def risk(self) -> np.ndarray:
        """Error rate among the accepted examples."""
        return self.errors / self.accepted


class SelectiveThreshold(NamedTuple):
    """A threshold of confidence and what follows from it.

    Attributes:
        threshold: Lowest confidence of an accepted answer.
        coverage: Fraction of the examples that are accepted.
        risk: Error rate among them.
        risk_bound: Upper bound of the error rate among accepted answers to new examples.
    """

    threshold: float
    coverage: float
    risk: float
    risk_bound: float


def risk_coverage_curve(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Return the error rate among the most confident answers, for each number of them.

    Args:
        confidence: Floats `(examples,)`, at least one.
        correct: Whether each answer is correct, bool `(examples,)`.

    Source: El-Yaniv & Wiener 2010, JMLR 11; Geifman & El-Yaniv 2017, arXiv:1705.08500.
    """
    confidence, correct = _validated(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)  # of equal confidences
    errors = np.cumsum(~correct[order])
    return RiskCoverage(ordered[is_last], np.flatnonzero(is_last) + 1, errors[is_last])


def aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean over k of the error rate of the k most confident answers.

    Examples of equal confidence each count as wrong by the error rate of all of them, so no order among them matters.
    0 is best.

    Source: Geifman et al. 2019, arXiv:1805.08206, section 3.
    """
    curve = risk_coverage_curve(confidence, correct)
    group_sizes = np.diff(curve.accepted, prepend=0)
    group_errors = np.diff(curve.errors, prepend=0)
    errors = np.cumsum(np.repeat(group_errors / group_sizes, group_sizes))
    return float(np.mean(errors / np.arange(1, len(errors) + 1)))


def coverage_at_risk(confidence: np.ndarray, correct: np.ndarray, risk: float) -> float:
    """Return the largest fraction of the most confident answers with at most this error rate; 0 if there is none."""
    curve = risk_coverage_curve(confidence, correct)
    return float(curve.coverage[curve.risk <= risk].max(initial=0.0))


def selective_metrics(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return `aurc`, and `coverage_at_1_percent_risk` and `coverage_at_5_percent_risk`, see `coverage_at_risk`."""
    return {
        "aurc": aurc(confidence, correct),
        "coverage_at_1_percent_risk": coverage_at_risk(confidence, correct, 0.01),
        "coverage_at_5_percent_risk": coverage_at_risk(confidence, correct, 0.05),
    }


def risk_upper_bound(errors: int, examples: int, certainty: float = CERTAINTY) -> float:
    """Return the error rate at which so few errors or fewer have the probability `1 - certainty`.

    It is the one-sided exact binomial bound of Clopper & Pearson, by the tail of the binomial distribution.

    Args:
        errors: Number of errors, at most `examples`.
        examples: At least 1.
        certainty: In (0, 1).

    Source: Gascuel & Caraux 1992; Geifman & El-Yaniv 2017, arXiv:1705.08500, lemma 3.1.
    """
    from scipy.stats import beta

    return 1.0 if errors >= examples else float(beta.ppf(certainty, errors + 1, examples - errors))


def selective_threshold(
    confidence: np.ndarray, correct: np.ndarray, max_risk: float, certainty: float = CERTAINTY
) -> SelectiveThreshold | None:
    """Return the threshold whose accepted answers to new examples have an error rate of at most `max_risk`.

    A binary search over the distinct confidences bounds the risk in at most `n.bit_length()` steps, of which each is
    wrong with a probability of at most `(1 - certainty) / steps`. It starts at the number of accepted examples of which
    no error would suffice for the bound.

    Args:
        confidence: As in `risk_coverage_curve`.
        correct: As in `risk_coverage_curve`.
        max_risk: In (0, 1).
        certainty: In (0, 1). Probability, over the examples, that the promise holds.

    Returns:
        The threshold of the highest coverage that the search found; None if it found none.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500, algorithm 1 (SGR).
    """
    if not 0 < max_risk < 1:
        raise ValueError(f"max_risk must lie in (0, 1). Received: max_risk={max_risk}")
    curve = risk_coverage_curve(confidence, correct)
    step_certainty = _step_certainty(len(correct), certainty)
    low = int(np.searchsorted(curve.accepted, _errorless_examples(max_risk, step_certainty)))
    high, best = len(curve.accepted) - 1, None
    while low <= high:
        middle = (low + high) // 2
        bound = risk_upper_bound(int(curve.errors[middle]), int(curve.accepted[middle]), step_certainty)
        if bound <= max_risk:
            values = (curve.thresholds[middle], curve.coverage[middle], curve.risk[middle], bound)
            best, low = SelectiveThreshold(*map(float, values)), middle + 1
        else:
            high = middle - 1
    return best


def min_selective_examples(max_risk: float, certainty: float = CERTAINTY) -> int:
    """Return the number of examples that suffice for a `selective_threshold` if no answer is wrong."""
    examples = 1
    while (needed := _errorless_examples(max_risk, _step_certainty(examples, certainty))) > examples:
        examples = needed
    return examples


def _step_certainty(examples: int, certainty: float) -> float:
    return 1 - (1 - certainty) / examples.bit_length()


def _errorless_examples(max_risk: float, certainty: float) -> int:
    """Return the smallest number of examples without an error whose `risk_upper_bound` is at most `max_risk`."""
    return math.ceil(math.log(1 - certainty) / math.log1p(-max_risk))


def _validated(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    if confidence.ndim != 1 or not len(confidence) or np.isnan(confidence).any():
        raise ValueError(f"confidence must be floats of shape (examples,), not NaN. Received: shape {confidence.shape}")
    if correct.shape != confidence.shape or correct.dtype != bool:
        raise ValueError(
            f"correct must be bool of shape {confidence.shape}. Received: {correct.dtype} of shape {correct.shape}"
        )
    return confidence, correct
