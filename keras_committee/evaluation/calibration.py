"""Is the committee as sure as it is right, and what makes it so?"""

from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.errors import DataError
from keras_committee.evaluation.predictions import Votes, cast_votes, loaded
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, WeightedGeometricMean, head_name, head_of
from keras_committee.recipe import Recipe
from keras_committee.run import Run

BINS = 15


def calibrate(run: Run, recipe: Recipe, *, min_members: int | None = None) -> dict[str, Any]:
    """Fit temperatures and weights on the validation split, measure them on the test split, write `calibration.json`.

    Where `keep_best` chose the epoch of each member by the validation split, the temperatures come out a little low.

    Args:
        run: The run folder.
        recipe: Its recipe.
        min_members: As in `cast_votes`.

    Returns:
        The content of `calibration.json`:

        - `recipe`, `head`, `classes` (their number), `bins` (of ECE and reliability).
        - `fitted_on`, `measured_on`: `split` and `examples` of each.
        - `members`: of each `index`, `temperature`, and its scores `before` and `after` on the measured split:
          `accuracy`, `nll`, `ece`, `adaptive_ece`, `brier`.
        - `committee`: `temperature`, which divides the logarithm of what the committee says; `weights`, of each member
          for `WeightedGeometricMean`; `weights_gap`, how much lower the NLL on the fitted split can be at most; the
          scores `before`; and the scores `after` each of `member_temperatures` (each member's own, then the head),
          `temperature` and `weights`.
        - `reliability`: of the committee `before` and after `temperature`, for each bin `confidence` and `accuracy`
          (null where it is empty) and `count`.

        Under a geometric head dividing the logits of every member by the committee's `temperature` is the same.

    Raises:
        DataError: If there is no validation split, or the data cannot be read.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's votes are no votes.

    Source: temperatures after the head: Rahaman & Thiery 2021, arXiv:2007.08792.
    """
    recipe, splits = loaded(recipe)
    for split in ("validation", "test"):
        _require(run, split, len(getattr(splits, split)))
    fitted, measured = (cast_votes(run, recipe, split, min_members) for split in ("validation", "test"))
    head = head_of(recipe.head or GeometricMean(), fitted.members)
    committee, reliability = _committee(head, fitted, measured)
    result = {
        "recipe": run.recipe_file().name,
        "head": head_name(head),
        "classes": len(fitted.classes),
        "bins": BINS,
        "fitted_on": {"split": "validation", "examples": len(fitted.labels)},
        "measured_on": {"split": "test", "examples": len(measured.labels)},
        "members": [_member(place, fitted, measured) for place in range(len(fitted.members))],
        "committee": committee,
        "reliability": reliability,
    }
    write_json(run.path / "calibration.json", result)
    run.journal("calibrated", examples=len(fitted.labels))
    return result


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, ECE, adaptive ECE and Brier score."""
    return {
        **metrics.summary(probabilities, labels),
        "adaptive_ece": metrics.adaptive_ece(probabilities, labels, BINS),
    }


def _require(run: Run, split: str, examples: int) -> None:
    if not examples:
        raise DataError(
            f"the data of {run.path} have no {split} split. What is fitted on examples that the members have learnt,"
            " and what is measured on those that it was fitted on, says nothing.\n"
            f"  Give the recipe's data a share for it, such as {split}=0.1, and train into another --run folder."
        )


def _member(place: int, fitted: Votes, measured: Votes) -> dict[str, Any]:
    temperature = fit_temperature(fitted.log_probabilities[:, place], fitted.labels)
    logits = np.asarray(measured.log_probabilities[:, place], np.float64)
    return {
        "index": fitted.members[place],
        "temperature": temperature,
        "before": scores(softmax(logits), measured.labels),
        "after": scores(softmax(logits / temperature), measured.labels),
    }


def _committee(head: Any, fitted: Votes, measured: Votes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts `committee` and `reliability` of the document."""
    labels = measured.labels
    members = range(len(fitted.members))
    each = np.array([fit_temperature(fitted.log_probabilities[:, m], fitted.labels) for m in members], np.float32)
    pooled = fit_temperature(_logs(head, fitted.log_probabilities), fitted.labels)
    weights, gap = fit_weights(fitted.log_probabilities, fitted.labels)
    before = _says(head, measured.log_probabilities)
    after = {
        "member_temperatures": _says(head, measured.log_probabilities / each[:, None]),
        "temperature": softmax(_logs(head, measured.log_probabilities) / pooled),
        "weights": _says(WeightedGeometricMean(weights), measured.log_probabilities),
    }
    committee = {
        "temperature": pooled,
        "weights": weights,
        "weights_gap": gap,
        "before": scores(before, labels),
        "after": {name: scores(probabilities, labels) for name, probabilities in after.items()},
    }
    reliability = {"before": _curve(before, labels), "after": _curve(after["temperature"], labels)}
    return committee, reliability


def _says(head: Any, log_probabilities: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(head(np.asarray(log_probabilities)))


def _logs(head: Any, log_probabilities: np.ndarray) -> np.ndarray:
    # A class without a vote, as under MajorityVote, must be given a little, or no temperature brings it back.
    return np.log(np.maximum(_says(head, log_probabilities).astype(np.float64), 1e-12))


def _curve(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    curve = metrics.reliability_curve(probabilities, labels, BINS)
    means = {
        name: [None if np.isnan(value) else float(value) for value in curve[name]]
        for name in ("confidence", "accuracy")
    }
    return {**means, "count": curve["count"].tolist()}


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
