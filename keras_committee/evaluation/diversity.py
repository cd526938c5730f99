"""How different are the members of a committee, and does their difference show where it errs?"""

from typing import Any

import numpy as np

from keras_committee import metrics


def diversity(votes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The block `diversity` of `evaluation.json`.

    Matrices `(members, members)`, whose entries are null where they are not defined: `disagreement`, `double_fault`,
    `q_statistic`, `error_correlation`. And `ambiguity`: what all members together gain, in Brier score under the
    arithmetic mean (`brier`) and in NLL under the geometric mean (`nll`): `members`, `committee` and the `ambiguity`
    between them.

    Args:
        votes: Probabilities `(examples, members, classes)`.
        labels: Integers `(examples,)`.
    """
    return {
        "disagreement": metrics.disagreement(votes).tolist(),
        "double_fault": metrics.double_fault(votes, labels).tolist(),
        "q_statistic": _with_nulls(metrics.q_statistic(votes, labels)),
        "error_correlation": _with_nulls(metrics.error_correlation(votes, labels)),
        "ambiguity": {"brier": metrics.ambiguity(votes, labels), "nll": metrics.log_ambiguity(votes, labels)},
    }


def uncertainty(votes: np.ndarray, right: np.ndarray) -> dict[str, dict[str, float | None]]:
    """The block `uncertainty` of `evaluation.json`: means in nats over `all` answers, the `right` and the `wrong` ones.

    Each has `total`, `expected` and `mutual`, as `metrics.uncertainty` defines them; null where there is no such
    answer.

    Args:
        votes: Probabilities `(examples, members, classes)`.
        right: Booleans `(examples,)`: whether the committee's answer is right.
    """
    parts = metrics.uncertainty(votes)
    chosen = {"all": np.ones_like(right), "right": right, "wrong": ~right}
    return {
        answers: {name: float(values[which].mean()) if which.any() else None for name, values in parts.items()}
        for answers, which in chosen.items()
    }


def _with_nulls(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
