"""Split conformal prediction: the threshold of prediction sets, and the coverage that it promises.

A conformity score is one float per example and class, higher for classes that are more plausible. The prediction set of
an example holds the classes whose score is at least a threshold, which is fitted to examples that nothing else was
fitted to. Scores are defined in `aggregation.conformity`.
"""

import math

import numpy as np


def conformal_threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the threshold at which prediction sets hold the true class of a new example with probability `coverage`.

    It is the `floor((n + 1) (1 - coverage))`-th lowest of the `n` scores. The probability is over the examples of the
    fit and the new one, which must be exchangeable; see `coverage_interval` for one fit.

    Args:
        scores: Conformity scores of the true classes, floats `(examples,)`.
        coverage: In (0, 1).

    Raises:
        ValueError: If there are fewer than `min_conformal_examples(coverage)` scores.

    Source: Vovk et al. 2005, Algorithmic Learning in a Random World; Angelopoulos & Bates 2021, arXiv:2107.07511,
    section 1.
    """
    rank = _excluded(len(scores), coverage)
    if not rank:
        raise ValueError(
            f"a coverage of {coverage} requires at least {min_conformal_examples(coverage)} scores. "
            f"Received: {len(scores)}"
        )
    return float(np.partition(np.asarray(scores), rank - 1)[rank - 1])


def min_conformal_examples(coverage: float) -> int:
    """Return the smallest number of examples for a `conformal_threshold`: `1 / (1 - coverage) - 1`, rounded up."""
    _check_coverage(coverage)
    return math.ceil(1 / (1 - coverage) - 1e-9) - 1


def coverage_interval(examples: int, coverage: float) -> dict[str, float]:
    """Return `{"low", "high"}`: the 95 % interval of the coverage for new examples, given one fit on `examples`.

    With continuous scores the coverage of a fit has a beta distribution, whose mean is at least the promise and at most
    `1 / (examples + 1)` above it.

    Source: Vovk 2012, arXiv:1209.2673; Angelopoulos & Bates 2021, arXiv:2107.07511, section 3.2.
    """
    from scipy.stats import beta

    rank = _excluded(examples, coverage)
    low, high = beta.interval(0.95, examples + 1 - rank, rank) if rank else (1.0, 1.0)
    return {"low": float(low), "high": float(high)}


def _excluded(examples: int, coverage: float) -> int:
    """Return how many of `examples + 1` exchangeable scores may lie below the threshold."""
    _check_coverage(coverage)
    # The tolerance keeps (9 + 1) * (1 - 0.9), a little less than 1 in floating point, from requiring one more.
    return math.floor((examples + 1) * (1 - coverage) + 1e-9)


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie in (0, 1). Received: coverage={coverage}")
