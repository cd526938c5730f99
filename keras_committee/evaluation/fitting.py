"""Which temperature, and which weights of the members, make the votes on held-out examples most likely?

Both problems are convex, so that what is found is the best there is.
"""

import numpy as np

# A network that is right on every held-out example asks for temperature 0, one that guesses for infinity.
COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [COLDEST, HOTTEST] at which `softmax(log_probabilities / temperature)` has the least NLL.

    Below 1 the predictions were too careful, above 1 too sure. The NLL is convex in `1 / temperature`; its slope, the
    mean of what is expected of the logits less that of the true class, is followed to its root.

    Args:
        log_probabilities: Floats `(examples, classes)`: logarithms of probabilities, or logits.
        labels: Integers `(examples,)`.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import brentq

    logits = np.asarray(log_probabilities, np.float64)
    true = logits[np.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        return float(np.sum(softmax(logits * inverse) * logits, axis=1).mean() - true)

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-10))


def fit_weights(log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[float], float]:
    """The weights of the members, none below 0 and of sum 1, at which `WeightedGeometricMean` has the least NLL.

    The NLL is convex in the weights: a logarithm of sums of exponentials of what is linear in them.

    Args:
        log_probabilities: Floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.

    Returns:
        The weights, and how much lower than theirs the least NLL may be at most: the gap of Frank and Wolfe.
    """
    from scipy.optimize import minimize

    members = log_probabilities.shape[1]
    found = minimize(
        _weighted_nll,
        np.full(members, 1 / members),
        args=(log_probabilities, labels),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 200},
    )
    weights = np.clip(found.x, 0, 1)
    weights /= weights.sum()
    slope = _weighted_nll(weights, log_probabilities, labels)[1]
    return weights.tolist(), float(weights @ slope - slope.min())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _weighted_nll(weights: np.ndarray, log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The NLL, and its slope by each weight."""
    logits = np.einsum("emc,m->ec", log_probabilities, weights)
    examples = np.arange(len(labels))
    nll = np.mean(np.logaddexp.reduce(logits, axis=1) - logits[examples, labels])
    excess = softmax(logits)
    excess[examples, labels] -= 1
    return float(nll), np.einsum("emc,ec->m", log_probabilities, excess) / len(labels)
