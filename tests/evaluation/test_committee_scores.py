"""Scores of many committees equal those of one committee at a time; intervals equal those of SciPy."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import synthetic_predictions
from scipy import stats

from keras_committee import aggregation, metrics
from keras_committee.evaluation import committee_scores
from keras_committee.evaluation.committee_scores import (
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_mean_difference,
    per_example_scores,
    per_example_scores_from_probabilities,
    scores,
    subset_multiplicities,
)
from keras_committee.layers import WeightedGeometricMean, get_head, subset_head

WEIGHTS = (0.2, 0.5, 0.0, 0.3)


def some_predictions(seed=0, examples=90, members=4, classes=5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = 3 * rng.normal(size=(examples, members, classes)) + 2 * np.eye(classes)[labels][:, None]
    return (logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)).astype(np.float32), labels


def every_subset(members):
    sizes = range(1, members + 1)
    return list(itertools.chain.from_iterable(itertools.combinations(range(members), size) for size in sizes))


def layer(head, subset):
    full = {"weighted_geometric_mean": lambda: WeightedGeometricMean(WEIGHTS)}
    return subset_head(full.get(head, lambda: get_head(head))(), subset)


@pytest.mark.parametrize("head", aggregation.HEADS)
def test_the_scores_of_every_committee_are_those_of_its_head_layer(head, monkeypatch):
    monkeypatch.setattr(committee_scores, "_VALUES_PER_BLOCK", 700)  # several blocks, the last one smaller
    monkeypatch.setattr(committee_scores, "_COMMITTEES_PER_CHUNK", 6)
    log_probs, labels = some_predictions()
    subsets = every_subset(4)
    rows = subset_multiplicities(subsets, 4, {"weighted_geometric_mean": WEIGHTS}.get(head))
    measured, by_example = scores(log_probs, labels, rows, head), per_example_scores(log_probs, labels, rows, head)
    for index, subset in enumerate(subsets):
        expected = keras.ops.convert_to_numpy(layer(head, subset)(log_probs[:, list(subset)]))
        summary = metrics.classification_metrics(expected, labels)
        assert {score: measured[score][index] for score in summary} == pytest.approx(summary, abs=1e-6)
        np.testing.assert_allclose(by_example.confidence[index], expected.max(axis=1), atol=1e-6)


def test_the_scores_of_each_example_average_to_the_scores():
    log_probs, labels = some_predictions(seed=3)
    rows = subset_multiplicities([(0, 3), (1, 1, 2)], 4)
    measured = scores(log_probs, labels, rows, "arithmetic_mean")
    by_example = per_example_scores(log_probs, labels, rows, "arithmetic_mean")
    np.testing.assert_allclose(by_example.correct.mean(axis=1), measured["accuracy"])
    np.testing.assert_allclose(by_example.nll.mean(axis=1), measured["nll"])
    np.testing.assert_allclose(by_example.brier.mean(axis=1), measured["brier"])
    np.testing.assert_allclose(np.abs(by_example.ece_gaps()).sum(axis=1) / len(labels), measured["ece"])


def test_scores_from_probabilities_are_those_from_predictions():
    log_probs, labels = some_predictions(seed=4)
    probabilities = [
        aggregation.combine("geometric_mean", log_probs[:, part], dtype=np.float64) for part in ([1], [0, 3])
    ]
    one = per_example_scores_from_probabilities(np.stack(probabilities), labels)
    other = per_example_scores(log_probs, labels, subset_multiplicities([(1,), (0, 3)], 4), "geometric_mean")
    for name in ("correct", "nll", "brier", "confidence"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))


def test_a_member_listed_twice_counts_twice():
    log_probs, labels = some_predictions()
    rows = subset_multiplicities([(2, 0, 2)], 4)
    assert rows.tolist() == [[1, 0, 2, 0]]
    twice = metrics.classification_metrics(np.asarray(get_head("geometric_mean")(log_probs[:, [2, 0, 2]])), labels)
    assert scores(log_probs, labels, rows, "geometric_mean")["nll"] == pytest.approx(twice["nll"], abs=1e-6)


def test_members_that_all_have_weight_0_count_equally():
    assert subset_multiplicities([(2,), (1, 2)], 4, WEIGHTS).tolist() == [[0, 0, 1, 0], [0, 0.5, 0, 0]]


def test_a_tie_of_a_majority_vote_goes_to_the_lower_class():
    one_hot = np.eye(3, dtype=np.float32)[[2, 1, 2, 1, 2, 1, 0]]
    log_probs = np.log(np.full((1, 7, 3), 0.1, np.float32) + one_hot * 0.7)
    assert scores(log_probs, np.array([1]), np.ones((1, 7)), "majority_vote")["accuracy"] == 1
    assert scores(log_probs, np.array([2]), np.ones((1, 7)), "majority_vote")["accuracy"] == 0


def test_a_class_that_a_member_rules_out_has_a_finite_nll():
    log_probs = np.array([[[0.0, -np.inf], [np.log(0.25), np.log(0.75)]]])
    assert scores(log_probs, np.array([1]), np.ones((1, 2)), "geometric_mean")["nll"] == pytest.approx(-np.log(1e-12))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(4)), head=st.sampled_from(aggregation.HEADS))
def test_the_order_of_members_does_not_matter_and_a_committee_of_one_is_the_member(seed, order, head):
    log_probs, labels = some_predictions(seed, examples=20)
    row = np.array([WEIGHTS])
    one = per_example_scores(log_probs, labels, row, head)
    other = per_example_scores(log_probs[:, order], labels, row[:, order], head)
    same = per_example_scores(np.repeat(log_probs[:, :1], 4, axis=1), labels, row, head)
    alone = per_example_scores(log_probs, labels, np.array([[0.2, 0, 0, 0]]), head)
    for name in ("nll", "brier", "confidence"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)
        np.testing.assert_allclose(getattr(same, name), getattr(alone, name), atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "median"}, "head must be one of geometric_mean, .*'median'"),
        (
            {"multiplicities": np.array([[1, 0, 0, 0], [0, 0, 0, 0]])},
            r"multiplicities must be \(committees, 4\), at least 0, and not all 0",
        ),
        ({"multiplicities": np.ones((1, 3))}, r"multiplicities must be \(committees, 4\)"),
        ({"multiplicities": np.array([[1, -1, 2, 0]])}, r"multiplicities must be .* at least 0"),
        ({"labels": np.full(90, 5)}, r"labels must be 90 integers in 0\.\.4"),
        (
            {"log_probabilities": np.zeros((90, 5))},
            r"log_probabilities must be \(examples, members, classes\).*\(90, 5\)",
        ),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    log_probs, labels = some_predictions()
    valid = {
        "log_probabilities": log_probs,
        "labels": labels,
        "multiplicities": np.ones((1, 4)),
        "head": "geometric_mean",
    }
    with pytest.raises(ValueError, match=message):
        scores(**{**valid, **arguments})


LOG_PROBS, LABELS = synthetic_predictions(4, 250, (0.8, 1.2, 2.0))
ROWS = np.array([[1, 0, 0], [1, 1, 1]])
SCORES = per_example_scores(LOG_PROBS, LABELS, ROWS, "geometric_mean")


@pytest.mark.parametrize("score", ["accuracy", "nll", "ece", "brier"])
def test_an_interval_is_that_of_scipy(score):
    ours = bootstrap_intervals(SCORES)[1][score]
    measure = getattr(metrics, score)
    probabilities = aggregation.combine("geometric_mean", LOG_PROBS, dtype=np.float64)

    def of_resample(indices):
        return measure(probabilities[indices], LABELS[indices])

    peer = stats.bootstrap(
        (np.arange(250),),
        of_resample,
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    assert ours["value"] == pytest.approx(measure(probabilities, LABELS), abs=1e-9)
    assert ours["low"] == pytest.approx(peer.confidence_interval.low, abs=0.35 * peer.standard_error)
    assert ours["high"] == pytest.approx(peer.confidence_interval.high, abs=0.35 * peer.standard_error)


def test_a_difference_uses_the_same_resamples():
    (difference,) = bootstrap_differences(per_example_scores(LOG_PROBS, LABELS, ROWS[1:], "geometric_mean"), SCORES)[:1]
    single, committee = bootstrap_intervals(SCORES)
    assert difference["accuracy"]["value"] == pytest.approx(
        committee["accuracy"]["value"] - single["accuracy"]["value"]
    )
    apart = committee["nll"]["high"] - single["nll"]["low"] - committee["nll"]["low"] + single["nll"]["high"]
    assert difference["nll"]["high"] - difference["nll"]["low"] < 0.8 * apart
    paired = stats.bootstrap(
        (SCORES.nll[1], SCORES.nll[0]), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(5),
    )  # fmt: skip
    assert difference["nll"]["low"] == pytest.approx(paired.confidence_interval.low, abs=0.25 * paired.standard_error)
    assert bootstrap_mean_difference(SCORES.nll[1], SCORES.nll[0])["high"] == pytest.approx(
        difference["nll"]["high"], rel=1e-4
    )


def test_a_committee_does_not_differ_from_itself():
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert bootstrap_differences(SCORES, SCORES)[1] == dict.fromkeys(("accuracy", "nll", "ece", "brier"), zero)
