"""Thresholds of prediction sets: the definition by a loop, the promise by simulation, and too few examples."""

import math
from fractions import Fraction

import numpy as np
import pytest

from keras_committee import aggregation, metrics
from keras_committee.evaluation.promise import _choose_regularization
from keras_committee.layers.prediction_sets import accepts, prediction_sets

REGULARIZATION = {"lac": {}, "aps": {}, "raps": {"penalty": 0.07, "free_ranks": 2}}


def softmax_rows(seed, examples, classes=6, scale=2.0):
    logits = np.random.default_rng(seed).normal(size=(examples, classes)) * scale
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def predictions(seed, examples, strength, classes=4):
    """Probabilities and labels: the logit of the true class is `strength` higher on average."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = 1.8 * rng.normal(size=(examples, classes)) + strength * np.eye(classes)[labels]
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32), labels


def set_by_definition(method, row, level, penalty=0.0, free_ranks=0):
    """The published sets, class after class: a level is 1 minus the threshold of `aggregation.conformity`."""
    if method == "lac":
        return {k for k, p in enumerate(row) if 1 - p <= level}
    chosen, before = set(), 0.0
    for rank, k in enumerate(sorted(range(len(row)), key=lambda k: -row[k]), start=1):
        if before + penalty * max(0, rank - free_ranks) > level:
            break
        chosen.add(k)
        before += row[k]
    return chosen


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
@pytest.mark.parametrize("level", [0.3, 0.62, 0.95])
def test_the_sets_are_those_of_the_published_loop_in_numpy_and_keras(method, level):
    probabilities, options = softmax_rows(1, 300), REGULARIZATION[method]
    expected = [set_by_definition(method, row.astype(float), level, **options) for row in probabilities]
    sets = aggregation.prediction_sets(method, probabilities, [1 - level], **options)
    assert [set(np.flatnonzero(row)) for row in sets] == expected
    np.testing.assert_array_equal(prediction_sets(method, probabilities, [1 - level], **options), sets)
    per_class = [1 - level] * 3 + [2.0] * 3  # no conformity score reaches 2
    by_class = aggregation.prediction_sets(method, probabilities, per_class, **options)
    np.testing.assert_array_equal(by_class, sets & (np.arange(6) < 3))
    np.testing.assert_array_equal(prediction_sets(method, probabilities, per_class, **options), by_class)


def test_equal_probabilities_are_ranked_by_class_in_numpy_and_keras():
    rows = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.5, 0.0]], np.float32)
    scores = aggregation.conformity("aps", rows)
    np.testing.assert_array_equal(scores, [[1, 0.75, 0.5, 0.25], [0, 1, 0.5, 0]])
    np.testing.assert_array_equal(prediction_sets("aps", rows, [0.5]), scores >= 0.5)
    np.testing.assert_array_equal(accepts(rows[:, 1], 0.5), aggregation.accepts(rows[:, 1], 0.5))


def test_an_unknown_method_is_an_error():
    with pytest.raises(ValueError, match=r"method must be one of lac, aps, raps\. Received: 'apss'"):
        aggregation.conformity("apss", softmax_rows(0, 2))


def test_the_threshold_is_the_quantile_of_the_definition():
    scores = np.random.default_rng(3).random(200).astype(np.float32)
    for coverage in (0.6, 0.9, 0.95, 0.99):
        level = math.ceil(201 * Fraction(str(coverage)))  # the conformal quantile of 1 - score, as in the tutorial
        assert 1 - metrics.conformal_threshold(scores, coverage) == pytest.approx(np.sort(1 - scores)[level - 1])


@pytest.mark.parametrize(("coverage", "examples"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.97, 33)])
def test_fewer_examples_than_one_in_the_tail_are_an_error(coverage, examples):
    assert metrics.min_conformal_examples(coverage) == examples
    scores = np.linspace(0.2, 0.9, examples)
    assert metrics.conformal_threshold(scores, coverage) == pytest.approx(0.2)
    with pytest.raises(
        ValueError, match=rf"a coverage of {coverage} requires at least {examples} scores.*{examples - 1}"
    ):
        metrics.conformal_threshold(scores[1:], coverage)
    assert metrics.coverage_interval(examples - 1, coverage) == {"low": 1.0, "high": 1.0}


@pytest.mark.parametrize("coverage", [0.0, 1.0, 1.5])
def test_a_coverage_outside_of_0_and_1_is_an_error(coverage):
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\)"):
        metrics.min_conformal_examples(coverage)


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_over_200_random_divisions_the_mean_coverage_is_the_promise(method):
    """Fewer true classes than promised are the most probable one, so that no set of APS is decided by ties."""
    (probabilities, labels), rng, coverage = predictions(5, 4000, 2.2), np.random.default_rng(0), 0.9
    scores = aggregation.conformity(method, probabilities, **REGULARIZATION[method])[np.arange(4000), labels]
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.8
    observed = []
    for _ in range(200):
        order = rng.permutation(4000)
        threshold = np.float32(metrics.conformal_threshold(scores[order[:500]], coverage))
        observed.append((scores[order[500:]] >= threshold).mean())
    standard_error = np.std(observed) / np.sqrt(200)
    expected = 1 - math.floor(501 * (1 - coverage)) / 501  # between the promise and 1 / 501 above it
    assert abs(np.mean(observed) - expected) < 3 * standard_error
    assert np.mean(observed) > coverage - standard_error
    interval = metrics.coverage_interval(500, coverage)
    outside = np.mean([not interval["low"] <= value <= interval["high"] for value in observed])
    assert 0.0 < outside < 0.12  # 0.05 of infinitely many images; 3,500 add their own deviation


def test_raps_chooses_the_ranks_and_penalty_of_the_smallest_sets():
    probabilities, labels = predictions(7, 800, 1.5, classes=8)
    chosen = _choose_regularization(probabilities, labels, 0.9)
    ranks = [sorted(-row).index(-row[label]) + 1 for row, label in zip(probabilities, labels, strict=True)]
    assert chosen["free_ranks"] == np.sort(ranks)[math.ceil(801 * 0.9) - 1]
    sizes = {}
    for penalty in (0.001, 0.01, 0.1, 0.2, 0.5):
        scores = aggregation.conformity("raps", probabilities, penalty, chosen["free_ranks"])
        threshold = np.sort(scores[np.arange(800), labels])[80 - 1 : 81].min()
        sizes[penalty] = aggregation.prediction_sets(
            "raps", probabilities, [threshold], penalty, chosen["free_ranks"]
        ).sum()
    assert sizes[chosen["penalty"]] <= min(sizes.values()) * 1.01
