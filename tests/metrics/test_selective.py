"""Selective prediction: curves and areas by slow loops, bounds by SciPy, and the promise by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from keras_committee import metrics
from keras_committee.metrics.selective import min_selective_examples


def example(seed=0, examples=400, levels=37):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, levels, examples) / levels  # with ties
    return confidence, rng.random(examples) < 0.5 + confidence / 2


def test_the_curve_has_the_error_rate_of_each_number_of_accepted_answers():
    confidence, correct = example()
    curve = metrics.risk_coverage_curve(confidence, correct)
    assert curve.thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    for threshold, coverage, risk in zip(curve.thresholds, curve.coverage, curve.risk, strict=True):
        accepted = confidence >= threshold
        assert (coverage, risk) == (pytest.approx(accepted.mean()), pytest.approx(1 - correct[accepted].mean()))


def test_the_area_is_the_mean_over_orders_of_the_most_confident_answers():
    confidence, correct = example(examples=120, levels=9)
    rng, areas = np.random.default_rng(1), []
    for _ in range(600):  # ties in every order
        order = np.lexsort((rng.random(120), -confidence))
        areas.append(np.mean([1 - correct[order[:k]].mean() for k in range(1, 121)]))
    assert metrics.aurc(confidence, correct) == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / np.sqrt(600))
    assert metrics.aurc(np.array([0.9, 0.8, 0.7]), np.array([True, True, False])) == pytest.approx((0 + 0 + 1 / 3) / 3)


def test_the_coverage_at_a_risk_is_the_largest_one():
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.6]), np.array([True, False, True, True, True])
    assert metrics.coverage_at_risk(confidence, correct, 0.1) == pytest.approx(0.2)
    assert metrics.coverage_at_risk(confidence, correct, 0.2) == pytest.approx(1.0)
    assert metrics.coverage_at_risk(confidence[1:2], correct[1:2], 0.2) == 0.0


@pytest.mark.parametrize(("errors", "examples"), [(0, 30), (1, 30), (7, 500), (30, 30)])
def test_the_bound_is_the_exact_one_of_clopper_and_pearson(errors, examples):
    bound = metrics.risk_upper_bound(errors, examples, 0.97)
    exact = binomtest(errors, examples, alternative="less").proportion_ci(0.97, method="exact").high
    assert bound == pytest.approx(exact)
    assert errors == examples or binom.cdf(errors, examples, bound) == pytest.approx(0.03)


def test_the_promised_risk_holds_with_its_certainty():
    """A confidence c is wrong with probability (1 - c) / 2, so accepting from t has the risk (1 - t) / 4."""
    rng, fits = np.random.default_rng(2), []
    for _ in range(300):
        confidence = rng.random(1500)
        correct = rng.random(1500) > (1 - confidence) / 2
        fits.append((metrics.selective_threshold(confidence, correct, 0.1, 0.9), confidence, correct))
    fits = [fit for fit in fits if fit[0] is not None]
    assert len(fits) > 285
    for fitted, confidence, correct in fits:
        accepted = confidence >= fitted.threshold
        assert fitted.coverage == pytest.approx(accepted.mean())
        assert fitted.risk == pytest.approx(1 - correct[accepted].mean())
        assert fitted.risk < fitted.risk_bound <= 0.1
    assert sum((1 - fitted.threshold) / 4 > 0.1 for fitted, *_ in fits) <= 30
    assert 0.2 < np.mean([fitted.coverage for fitted, *_ in fits]) < 0.4  # 0.4 by the true risk


def test_few_examples_or_poor_answers_allow_no_threshold():
    needed = min_selective_examples(0.01)
    confidence, correct = np.linspace(0.5, 1, needed), np.ones(needed, bool)
    assert metrics.selective_threshold(confidence, correct, 0.01).coverage == 1
    assert metrics.selective_threshold(confidence[: needed - 20], correct[: needed - 20], 0.01) is None
    assert metrics.selective_threshold(confidence, ~correct, 0.01) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, np.nan], [True, False]), r"confidence must be floats of shape \(examples,\), not NaN"),
        (([0.5, 0.7], [1, 0]), r"correct must be bool of shape \(2,\). Received: int64"),
        (([0.5, 0.7], [True]), r"correct must be bool of shape \(2,\). Received: bool of shape \(1,\)"),
    ],
)
def test_other_inputs_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.aurc(*map(np.array, arguments))
    with pytest.raises(ValueError, match=r"max_risk must lie in \(0, 1\). Received: max_risk=1"):
        metrics.selective_threshold(np.array([0.5]), np.array([True]), 1)
