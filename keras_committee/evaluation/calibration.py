"""Is the committee as sure as it is right, and what makes it so?"""

from typing import Any

import keras
import numpy as np

from keras_committee import metrics
from keras_committee.errors import DataError
from keras_committee.evaluation.predictions import SplitPredictions, load_or_compute_predictions, preload
from keras_committee.files import write_json
from keras_committee.layers import GeometricMean, WeightedGeometricMean, head_name, subset_head
from keras_committee.recipe import Recipe
from keras_committee.run import Run

BINS = 15


def calibrate(run: Run, recipe: Recipe, *, min_members: int | None = None) -> dict[str, Any]:
    """Fit temperatures and weights on the validation split, measure them on the test split, write `calibration.json`.

    Where `keep_best` chose the epoch of each member by the validation split, the temperatures come out a little low.

    Args:
        run: The run folder.
        recipe: Its recipe.
        min_members: As in `load_or_compute_predictions`.

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
        - `reliability_diagrams`: of the committee `before` and after `temperature`, for each bin `confidence` and `accuracy`
          (null where it is empty) and `count`.

        Under a geometric head dividing the logits of every member by the committee's `temperature` is the same.

    Raises:
        DataError: If there is no validation split, or the data cannot be read.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's votes are no votes.

    Source: temperatures after the head: Rahaman & Thiery 2021, arXiv:2007.08792.
    """
    recipe, splits = preload(recipe)
    for split in ("validation", "test"):
        _check_split_not_empty(run, split, len(getattr(splits, split)))
    validation, test = (
        load_or_compute_predictions(run, recipe, split, min_members) for split in ("validation", "test")
    )
    head = subset_head(recipe.head or GeometricMean(), validation.members)
    committee, reliability = _calibrate_committee(head, validation, test)
    result = {
        "recipe": run.recipe_file().name,
        "head": head_name(head),
        "classes": len(validation.classes),
        "bins": BINS,
        "fitted_on": {"split": "validation", "examples": len(validation.labels)},
        "measured_on": {"split": "test", "examples": len(test.labels)},
        "members": [_calibrate_member(position, validation, test) for position in range(len(validation.members))],
        "committee": committee,
        "reliability": reliability,
    }
    write_json(run.path / "calibration.json", result)
    run.append_event("calibrated", examples=len(validation.labels))
    return result


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, NLL, ECE, adaptive ECE and Brier score."""
    return {
        **metrics.classification_metrics(probabilities, labels),
        "adaptive_ece": metrics.adaptive_ece(probabilities, labels, BINS),
    }


def _check_split_not_empty(run: Run, split: str, num_examples: int) -> None:
    if not num_examples:
        raise DataError(
            f"the data of {run.path} have no {split} split. What is fitted on examples that the members have learnt,"
            " and what is measured on those that it was fitted on, says nothing.\n"
            f"  Give the recipe's data a share for it, such as {split}=0.1, and train into another --run folder."
        )


def _calibrate_member(position: int, validation: SplitPredictions, test: SplitPredictions) -> dict[str, Any]:
    temperature = fit_temperature(validation.log_probabilities[:, position], validation.labels)
    logits = np.asarray(test.log_probabilities[:, position], np.float64)
    return {
        "index": validation.members[position],
        "temperature": temperature,
        "before": scores(softmax(logits), test.labels),
        "after": scores(softmax(logits / temperature), test.labels),
    }


def _calibrate_committee(
    head: Any, validation: SplitPredictions, test: SplitPredictions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts `committee` and `reliability_diagrams` of the document."""
    labels = test.labels
    members = range(len(validation.members))
    member_temperatures = np.array(
        [fit_temperature(validation.log_probabilities[:, m], validation.labels) for m in members], np.float32
    )
    temperature = fit_temperature(_combine_to_log_probabilities(head, validation.log_probabilities), validation.labels)
    weights, weights_gap = fit_weights(validation.log_probabilities, validation.labels)
    before = _combine(head, test.log_probabilities)
    after = {
        "member_temperatures": _combine(head, test.log_probabilities / member_temperatures[:, None]),
        "temperature": softmax(_combine_to_log_probabilities(head, test.log_probabilities) / temperature),
        "weights": _combine(WeightedGeometricMean(weights), test.log_probabilities),
    }
    committee = {
        "temperature": temperature,
        "weights": weights,
        "weights_gap": weights_gap,
        "before": scores(before, labels),
        "after": {name: scores(probabilities, labels) for name, probabilities in after.items()},
    }
    reliability = {
        "before": _reliability_curve(before, labels),
        "after": _reliability_curve(after["temperature"], labels),
    }
    return committee, reliability


def _combine(head: Any, log_probabilities: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(head(np.asarray(log_probabilities)))


def _combine_to_log_probabilities(head: Any, log_probabilities: np.ndarray) -> np.ndarray:
    # A class without a vote, as under MajorityVote, must be given a little, or no temperature brings it back.
    return np.log(np.maximum(_combine(head, log_probabilities).astype(np.float64), 1e-12))


def _reliability_curve(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    curve = metrics.reliability_curve(probabilities, labels, BINS)
    means = {
        name: [None if np.isnan(value) else float(value) for value in curve[name]]
        for name in ("confidence", "accuracy")
    }
    return {**means, "count": curve["count"].tolist()}


# A network that is right on every held-out example asks for temperature 0, one that guesses for infinity.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


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
    mean_true_logit = logits[np.arange(len(labels)), labels].mean()

    def nll_derivative(inverse_temperature: float) -> float:
        return float(np.sum(softmax(logits * inverse_temperature) * logits, axis=1).mean() - mean_true_logit)

    if nll_derivative(1 / MAX_TEMPERATURE) >= 0:
        return MAX_TEMPERATURE
    if nll_derivative(1 / MIN_TEMPERATURE) <= 0:
        return MIN_TEMPERATURE
    return float(1 / brentq(nll_derivative, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, xtol=1e-10))


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
    solution = minimize(
        _weighted_nll,
        np.full(members, 1 / members),
        args=(log_probabilities, labels),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 200},
    )
    weights = np.clip(solution.x, 0, 1)
    weights /= weights.sum()
    gradient = _weighted_nll(weights, log_probabilities, labels)[1]
    return weights.tolist(), float(weights @ gradient - gradient.min())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _weighted_nll(weights: np.ndarray, log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The NLL, and its slope by each weight."""
    logits = np.einsum("emc,m->ec", log_probabilities, weights)
    examples = np.arange(len(labels))
    nll = np.mean(np.logaddexp.reduce(logits, axis=1) - logits[examples, labels])
    residuals = softmax(logits)
    residuals[examples, labels] -= 1
    return float(nll), np.einsum("emc,ec->m", log_probabilities, residuals) / len(labels)
