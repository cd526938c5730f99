"""Entropy, and the decomposition of predictive uncertainty."""

from collections.abc import Sequence

import numpy as np

from keras_committee.metrics.checks import validate_member_probabilities


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy over the last axis of probabilities `(..., classes)`, in nats; 0 log 0 is 0."""
    probabilities = np.asarray(probabilities, np.float64)
    log_probs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return -np.sum(probabilities * log_probs, axis=-1)


def uncertainty_decomposition(
    member_probabilities: np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Decompose the uncertainty of each example, arrays `(examples,)` in nats: `total = expected + mutual`.

    - `total`: the entropy of the members' mean probabilities.
    - `expected`: the mean entropy of the members, the noise of the data (aleatoric uncertainty).
    - `mutual`: the mutual information of class and member, which more data would reduce (epistemic uncertainty); 0
      where all members agree.

    The mean is arithmetic whatever the committee's head: the committee is a sample of networks.

    Args:
        member_probabilities: Floats `(examples, members, classes)`.
        weights: One number per member, not all 0; None weights all members equally.

    Source: Depeweg et al. 2018, arXiv:1710.07283; mutual information: Houlsby et al. 2011,
    arXiv:1112.5745.
    """
    member_probabilities = validate_member_probabilities(member_probabilities)
    total = entropy(np.average(member_probabilities, axis=1, weights=weights))
    expected = np.average(entropy(member_probabilities), axis=1, weights=weights)
    return {"total": total, "expected": expected, "mutual": np.maximum(total - expected, 0.0)}
