"""Diversity of members: disagreement, joint errors, and the gain of the committee that they explain."""

import numpy as np

from keras_committee.metrics.checks import validate_labels, validate_member_probabilities
from keras_committee.metrics.scores import MIN_PROBABILITY


def disagreement(member_probabilities: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the fraction of examples on which the top classes of two members differ."""
    top = validate_member_probabilities(member_probabilities).argmax(axis=2)
    return (top[:, :, None] != top[:, None, :]).mean(axis=0)


def double_fault(member_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the fraction of examples that both members get wrong; the diagonal holds the errors.

    Source: Giacinto & Roli 2001, Image and Vision Computing 19(9-10).
    """
    errors = _member_errors(member_probabilities, labels)
    return errors.T @ errors / len(errors)


def q_statistic(member_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)` of Yule's Q of two members being correct, in [-1, 1]; 0 if independent.

    `Q = (ad - bc) / (ad + bc)` with the numbers of examples that both classify correctly `a`, only the first `b`,
    only the second `c`, and neither `d`. NaN where the denominator is 0, as for members that are always correct.

    Source: Kuncheva & Whitaker 2003, Machine Learning 51, section 2.1.
    """
    errors = _member_errors(member_probabilities, labels)
    correct = 1 - errors
    agree, differ = (correct.T @ correct) * (errors.T @ errors), (correct.T @ errors) * (errors.T @ correct)
    return _safe_divide(agree - differ, agree + differ)


def error_correlation(member_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)` of Pearson's correlation of two members' errors.

    NaN where a member is always wrong or never wrong.

    Source: Kuncheva & Whitaker 2003, Machine Learning 51, section 2.1.
    """
    errors = _member_errors(member_probabilities, labels)
    centered = errors - errors.mean(axis=0)
    covariance = centered.T @ centered
    norms = np.sqrt(covariance.diagonal())
    return _safe_divide(covariance, np.outer(norms, norms))


def ambiguity(member_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Ambiguity decomposition of the Brier score under the arithmetic mean: `committee = members - ambiguity`, exactly.

    `members` is the mean Brier score of the members, `committee` that of the mean of their probabilities, `ambiguity`
    the squared distance of the members from this mean, averaged over members and examples. It is 0 if all agree.

    Source: Krogh & Vedelsby 1994, Advances in NIPS 7, for one output; here summed over the classes.
    """
    member_probabilities, labels = _validated(member_probabilities, labels)
    mean = member_probabilities.mean(axis=1, keepdims=True)
    one_hot = np.eye(member_probabilities.shape[2])[labels][:, None]
    pairs = {
        "members": (member_probabilities, one_hot),
        "committee": (mean, one_hot),
        "ambiguity": (member_probabilities, mean),
    }
    return {name: float(np.mean(np.sum((a - b) ** 2, axis=2))) for name, (a, b) in pairs.items()}


def log_ambiguity(member_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Ambiguity decomposition of the NLL under the geometric mean: `committee = members - ambiguity`, exactly.

    `members` is the mean NLL of the members, `committee` that of the normalized geometric mean of their probabilities.
    `ambiguity` is the mean over the examples of `-log Z`, where `Z <= 1` is the sum over the classes before
    normalization: the mean Kullback-Leibler divergence of the committee from its members. Probabilities are clipped to
    at least 1e-12 first.

    Source: Heskes 1998, Advances in NIPS 10 (logarithmic opinion pools).
    """
    member_probabilities, labels = _validated(member_probabilities, labels)
    log_probs = np.log(np.maximum(member_probabilities, MIN_PROBABILITY))
    mean = log_probs.mean(axis=1)
    log_normalizer = np.logaddexp.reduce(mean, axis=1)  # not SciPy's logsumexp: `metrics` loads without SciPy
    examples = np.arange(len(labels))
    members, committee = -log_probs[examples, :, labels].mean(), np.mean(log_normalizer - mean[examples, labels])
    return {"members": float(members), "committee": float(committee), "ambiguity": float(-log_normalizer.mean())}


def _validated(member_probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    member_probabilities = validate_member_probabilities(member_probabilities)
    return member_probabilities, validate_labels(labels, member_probabilities.shape[0], member_probabilities.shape[2])


def _member_errors(member_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return float64 `(examples, members)`: 1 where a member's top class is not the true one."""
    member_probabilities, labels = _validated(member_probabilities, labels)
    return (member_probabilities.argmax(axis=2) != labels[:, None]).astype(np.float64)


def _safe_divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
