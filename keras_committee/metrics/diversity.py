"""How often do members differ or err together, and how much does it make their committee better than they are?"""

import numpy as np

from keras_committee.metrics.checks import check_labels, checked_votes
from keras_committee.metrics.scores import SMALLEST


def disagreement(votes: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the share of examples on which the top classes of two members differ."""
    top = checked_votes(votes).argmax(axis=2)
    return (top[:, :, None] != top[:, None, :]).mean(axis=0)


def double_fault(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)`: the share of examples that both members get wrong; the diagonal is each one's error.

    Source: Giacinto & Roli 2001, Image and Vision Computing 19(9-10).
    """
    wrong = _wrong(votes, labels)
    return wrong.T @ wrong / len(wrong)


def q_statistic(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)` of Yule's Q of two members being right, in [-1, 1]; 0 where they are independent.

    `Q = (ad - bc) / (ad + bc)` with the numbers of examples that both get right `a`, only the first `b`, only the
    second `c`, and neither `d`. NaN where the denominator is 0, as for members that are always right.

    Source: Kuncheva & Whitaker 2003, Machine Learning 51, section 2.1.
    """
    wrong = _wrong(votes, labels)
    right = 1 - wrong
    alike, unlike = (right.T @ right) * (wrong.T @ wrong), (right.T @ wrong) * (wrong.T @ right)
    return _ratio(alike - unlike, alike + unlike)


def error_correlation(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix `(members, members)` of Pearson's correlation of two members being wrong; NaN where one of them never or
    always is.

    Source: Kuncheva & Whitaker 2003, Machine Learning 51, section 2.1.
    """
    wrong = _wrong(votes, labels)
    centred = wrong - wrong.mean(axis=0)
    covariance = centred.T @ centred
    scale = np.sqrt(covariance.diagonal())
    return _ratio(covariance, np.outer(scale, scale))


def ambiguity(votes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a committee under the arithmetic mean gains in Brier score: `committee = members - ambiguity`, exactly.

    `members` is the mean Brier score of the members, `committee` that of the mean of their probabilities, `ambiguity`
    the squared distance of the members from this mean, averaged over members and examples: none gains who agree.

    Source: Krogh & Vedelsby 1994, Advances in NIPS 7, for one output; here summed over the classes.
    """
    votes, labels = _checked(votes, labels)
    mean = votes.mean(axis=1, keepdims=True)
    truth = np.eye(votes.shape[2])[labels][:, None]
    pairs = {"members": (votes, truth), "committee": (mean, truth), "ambiguity": (votes, mean)}
    return {name: float(np.mean(np.sum((a - b) ** 2, axis=2))) for name, (a, b) in pairs.items()}


def log_ambiguity(votes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a committee under the geometric mean gains in NLL: `committee = members - ambiguity`, exactly.

    `members` is the mean NLL of the members, `committee` that of the geometric mean of their probabilities, scaled to
    sum 1. `ambiguity` is the mean over the examples of `-log Z`, where `Z <= 1` is the sum over the classes before it
    is scaled: the mean Kullback-Leibler divergence of the committee from its members. Probabilities are clipped to at
    least 1e-12 first.

    Source: Heskes 1998, Advances in NIPS 10 (logarithmic opinion pools).
    """
    votes, labels = _checked(votes, labels)
    logs = np.log(np.maximum(votes, SMALLEST))
    mean = logs.mean(axis=1)
    log_scale = np.logaddexp.reduce(mean, axis=1)
    examples = np.arange(len(labels))
    members, committee = -logs[examples, :, labels].mean(), np.mean(log_scale - mean[examples, labels])
    return {"members": float(members), "committee": float(committee), "ambiguity": float(-log_scale.mean())}


def _checked(votes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    votes = checked_votes(votes)
    check_labels(labels, examples=votes.shape[0], classes=votes.shape[2])
    return votes, np.asarray(labels)


def _wrong(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 `(examples, members)`: 1 where a member's top class is not the true one."""
    votes, labels = _checked(votes, labels)
    return (votes.argmax(axis=2) != labels[:, None]).astype(np.float64)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
