"""Calibration: temperatures and member weights fitted on the validation split."""

from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

from keras_committee import aggregation, metrics
from keras_committee.errors import DataError
from keras_committee.evaluation.predictions import SplitPredictions, load_or_compute_predictions, preload
from keras_committee.files import write_record
from keras_committee.layers import GeometricMean, head_name, subset_head
from keras_committee.metrics.calibration import ECE_BINS
from keras_committee.metrics.intervals import few_images_note
from keras_committee.metrics.scores import MIN_PROBABILITY
from keras_committee.recipe import Recipe
from keras_committee.run import Run
from keras_committee.split_sizes import divide_for_promise

# The NLL has no minimum where a network is always right (temperature 0) or guesses (infinity).
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def calibrate(
    run: Run, recipe: Recipe, *, min_members: int | None = None, promise: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Fit temperatures and weights on the validation split, evaluate them on the test split, write `calibration.json`.

    Of a divided validation split only the part to choose with is read, see `Run.divide`. Where `restore_best` chose the
    epoch of each member on the validation split, the temperatures are slightly too low.

    Args:
        run: The run folder.
        recipe: Its recipe.
        min_members: As in `load_or_compute_predictions`.
        promise: The result of `make_promise`, to be recorded.

    Returns:
        The content of `calibration.json`:

        - `recipe`, `head`, `classes` (their number), `bins` (of ECE and reliability).
        - `fitted_on`, `measured_on`: `split` and `examples` of each.
        - `members`: of each `index`, `temperature`, and its scores `before` and `after` on the measured split:
          `accuracy`, `nll`, `ece`, `adaptive_ece`, `brier`, and `accuracy_interval`, the 95 % Wilson interval.
        - `committee`: `temperature`, which divides the committee's log-probabilities; `weights`, one per member, for
          `WeightedGeometricMean`; `weights_gap`, an upper bound on how much lower the NLL on the fitted split can be;
          the scores `before`; and the scores `after` each of `member_temperatures` (each member's own, then the head),
          `temperature` and `weights`.
        - `reliability`: of the committee `before` and `after` applying `temperature`, for each bin `confidence` and
          `accuracy` (null for an empty bin) and `count`.

        - `promise`: what was promised of the answers, see `make_promise`; null where nothing was.
        - `notes`: a warning if the validation split has few images.

        Under a geometric mean, dividing the logits of every member by the committee's `temperature` is equivalent.

    Raises:
        DataError: If there is no validation split, or the data cannot be read.
        IncompleteError: If too few members are trained.
        VerificationError: If a member's predictions are not finite.

    Source: temperatures after the head: Rahaman & Thiery 2021, arXiv:2007.08792.
    """
    recipe, splits = preload(recipe)
    for split in ("validation", "test"):
        _check_split_not_empty(run, split, len(getattr(splits, split)))
    validation, test = (
        load_or_compute_predictions(run, recipe, split, min_members) for split in ("validation", "test")
    )
    if run.is_divided():
        validation = validation.subset(divide_for_promise(validation.source_fingerprint, len(validation.labels))[0])
    head = subset_head(recipe.head or GeometricMean(), validation.members)
    committee, reliability = _calibrate_committee(head, validation, test)
    result = {
        "recipe": run.recipe_file().name,
        "head": head_name(head),
        "classes": len(validation.classes),
        "bins": ECE_BINS,
        "fitted_on": {"split": "validation", "examples": len(validation.labels)},
        "measured_on": {"split": "test", "examples": len(test.labels)},
        "members": [_calibrate_member(position, validation, test) for position in range(len(validation.members))],
        "committee": committee,
        "reliability": reliability,
        "promise": promise,
        "notes": [note]
        if (note := few_images_note("temperatures and weights are fitted", len(validation.labels)))
        else [],
    }
    write_record(run.path / "calibration.json", result)
    run.append_event("calibrated", examples=len(validation.labels))
    return result


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy with its 95 % interval, NLL, ECE, adaptive ECE and Brier score."""
    values = metrics.classification_metrics(probabilities, labels)
    return {
        **values,
        "adaptive_ece": metrics.adaptive_ece(probabilities, labels, ECE_BINS),
        "accuracy_interval": metrics.accuracy_interval(values["accuracy"], len(labels)),
    }


def _check_split_not_empty(run: Run, split: str, num_examples: int) -> None:
    if not num_examples:
        raise DataError(
            f"the data of {run.path} have no {split} split. Calibration needs examples that the members were not "
            "trained on, and a separate split to measure the result.\n"
            f"  Give the recipe's data a fraction for it, such as {split}=0.1, and train in another --run folder."
        )


def _calibrate_member(position: int, validation: SplitPredictions, test: SplitPredictions) -> dict[str, Any]:
    temperature = fit_temperature(validation.log_probabilities[:, position], validation.labels)
    logits = np.asarray(test.log_probabilities[:, position], np.float64)
    return {
        "index": validation.members[position],
        "temperature": temperature,
        "before": scores(softmax(logits, axis=-1), test.labels),
        "after": scores(softmax(logits / temperature, axis=-1), test.labels),
    }


def _calibrate_committee(
    head: Any, validation: SplitPredictions, test: SplitPredictions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parts `committee` and `reliability` of the document."""
    labels = test.labels
    members = range(len(validation.members))
    member_temperatures = np.array(
        [fit_temperature(validation.log_probabilities[:, m], validation.labels) for m in members]
    )
    temperature = fit_temperature(_committee_log_probabilities(head, validation), validation.labels)
    weights, weights_gap = fit_weights(validation.log_probabilities, validation.labels)
    before = aggregation.combine(head, test.log_probabilities, dtype=np.float64)
    after = {
        "member_temperatures": aggregation.combine(
            head, test.log_probabilities / member_temperatures[:, None], dtype=np.float64
        ),
        "temperature": softmax(_committee_log_probabilities(head, test) / temperature, axis=-1),
        "weights": aggregation.combine("weighted_geometric_mean", test.log_probabilities, weights, np.float64),
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


def _committee_log_probabilities(head: Any, predictions: SplitPredictions) -> np.ndarray:
    return _log(aggregation.combine(head, predictions.log_probabilities, dtype=np.float64))


def _log(probabilities: np.ndarray) -> np.ndarray:
    # Clipped: no temperature changes a probability of 0, as of a class without a vote under MajorityVote.
    return np.log(np.maximum(probabilities, MIN_PROBABILITY))


def _reliability_curve(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    curve = metrics.reliability_curve(probabilities, labels, ECE_BINS)
    means = {
        name: [None if np.isnan(value) else float(value) for value in curve[name]]
        for name in ("confidence", "accuracy")
    }
    return {**means, "count": curve["count"].tolist()}


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in [0.05, 20] that minimizes the NLL of `softmax(log_probabilities / temperature)`.

    Below 1 the predictions were underconfident, above 1 overconfident. The NLL is convex in `1 / temperature`, so the
    minimum is the root of its derivative: the mean expected logit minus the mean logit of the true class.

    Args:
        log_probabilities: Floats `(examples, classes)`: logarithms of probabilities, or logits.
        labels: Integers `(examples,)`.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import brentq

    logits = np.asarray(log_probabilities, np.float64)
    mean_true_logit = logits[np.arange(len(labels)), labels].mean()

    def nll_derivative(inverse_temperature: float) -> float:
        expected = np.sum(softmax(logits * inverse_temperature, axis=-1) * logits, axis=1)
        return float(expected.mean() - mean_true_logit)

    if nll_derivative(1 / MAX_TEMPERATURE) >= 0:
        return MAX_TEMPERATURE
    if nll_derivative(1 / MIN_TEMPERATURE) <= 0:
        return MIN_TEMPERATURE
    return float(1 / brentq(nll_derivative, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, xtol=1e-10))


def calibrated_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return probabilities `(examples, classes)` at the temperature that fits the labels: float64."""
    log_probabilities = _log(np.asarray(probabilities, np.float64))
    return softmax(log_probabilities / fit_temperature(log_probabilities, labels), axis=-1)


def fit_weights(log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[float], float]:
    """Return the member weights, at least 0 with sum 1, that minimize the NLL of `WeightedGeometricMean`.

    The NLL is convex in the weights: a log-sum-exp of linear functions.

    Args:
        log_probabilities: Floats `(examples, members, classes)`.
        labels: Integers `(examples,)`.

    Returns:
        The weights, and an upper bound on how much lower the minimum NLL is: the Frank-Wolfe gap.
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


def _weighted_nll(weights: np.ndarray, log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the NLL and its derivative with respect to each weight."""
    logits = np.einsum("emc,m->ec", log_probabilities, weights)
    examples = np.arange(len(labels))
    nll = np.mean(logsumexp(logits, axis=1) - logits[examples, labels])
    residuals = softmax(logits, axis=-1)
    residuals[examples, labels] -= 1
    return float(nll), np.einsum("emc,ec->m", log_probabilities, residuals) / len(labels)
