"""The arithmetic of many committees is that of the head layers and of `metrics`, one committee after another."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import metrics
from keras_committee.evaluation import committee_scores
from keras_committee.evaluation.committee_scores import (
    HEADS,
    combine,
    per_example_scores,
    scores,
    subset_multiplicities,
)
from keras_committee.layers import WeightedGeometricMean, get_head, subset_head

WEIGHTS = (0.2, 0.5, 0.0, 0.3)


def some_votes(seed=0, examples=90, members=4, classes=5, sharp=3.0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, examples)
    logits = sharp * draw.normal(size=(examples, members, classes)) + 2 * np.eye(classes)[labels][:, None]
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return logits.astype(np.float32), labels


def every_subset(members):
    sizes = range(1, members + 1)
    return list(itertools.chain.from_iterable(itertools.combinations(range(members), size) for size in sizes))


def layer(head, subset):
    whole = {"weighted_geometric_mean": lambda: WeightedGeometricMean(WEIGHTS)}
    return subset_head(whole.get(head, lambda: get_head(head))(), subset)


@pytest.mark.parametrize("head", HEADS)
def test_every_committee_is_what_the_head_layer_makes_of_it(head, monkeypatch):
    monkeypatch.setattr(committee_scores, "_VALUES_PER_BLOCK", 700)  # several blocks, the last one smaller
    monkeypatch.setattr(committee_scores, "_COMMITTEES_PER_CHUNK", 6)
    votes, labels = some_votes()
    everyone = every_subset(4)
    shares = subset_multiplicities(everyone, 4, {"weighted_geometric_mean": WEIGHTS}.get(head))
    measured = scores(votes, labels, shares, head)
    single = combine(votes, shares, head)
    for place, subset in enumerate(everyone):
        expected = keras.ops.convert_to_numpy(layer(head, subset)(votes[:, list(subset)]))
        np.testing.assert_allclose(single[place], expected, atol=1e-6)
        summary = metrics.classification_metrics(expected, labels)
        assert {score: measured[score][place] for score in summary} == pytest.approx(summary, abs=1e-6)


def test_the_figures_of_each_example_average_to_the_scores():
    votes, labels = some_votes(seed=3)
    shares = subset_multiplicities([(0, 3), (1, 1, 2)], 4)
    measured, each = (
        scores(votes, labels, shares, "arithmetic_mean"),
        per_example_scores(votes, labels, shares, "arithmetic_mean"),
    )
    np.testing.assert_allclose(each.correct.mean(axis=1), measured["accuracy"])
    np.testing.assert_allclose(each.nll.mean(axis=1), measured["nll"])
    np.testing.assert_allclose(each.brier.mean(axis=1), measured["brier"])
    np.testing.assert_allclose(np.abs(each.ece_gaps()).sum(axis=1) / len(labels), measured["ece"])


def test_a_member_named_twice_counts_twice():
    votes, _ = some_votes()
    shares = subset_multiplicities([(2, 0, 2)], 4)
    assert shares.tolist() == [[1, 0, 2, 0]]
    twice = get_head("geometric_mean")(votes[:, [2, 0, 2]])
    np.testing.assert_allclose(combine(votes, shares, "geometric_mean")[0], twice, atol=1e-6)


def test_members_that_all_have_weight_0_count_alike():
    assert subset_multiplicities([(2,), (1, 2)], 4, WEIGHTS).tolist() == [[0, 0, 1, 0], [0, 0.5, 0, 0]]


def test_a_tie_of_a_majority_vote_goes_to_the_lower_class():
    votes = np.log(np.full((1, 7, 3), 0.1, np.float32) + np.eye(3, dtype=np.float32)[[2, 1, 2, 1, 2, 1, 0]] * 0.7)
    shares = np.ones((1, 7))
    assert scores(votes, np.array([1]), shares, "majority_vote")["accuracy"] == 1
    assert scores(votes, np.array([2]), shares, "majority_vote")["accuracy"] == 0


def test_a_class_that_a_member_rules_out_stays_a_number():
    votes = np.array([[[0.0, -np.inf], [np.log(0.25), np.log(0.75)]]])
    np.testing.assert_allclose(combine(votes, np.ones((1, 2)), "geometric_mean"), [[[1, 0]]])
    assert scores(votes, np.array([1]), np.ones((1, 2)), "geometric_mean")["nll"] == pytest.approx(-np.log(1e-12))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(4)), head=st.sampled_from(HEADS))
def test_the_order_of_members_does_not_matter_and_a_committee_of_one_is_the_member(seed, order, head):
    votes, _ = some_votes(seed, examples=20)
    shares = np.array([WEIGHTS])
    one = combine(votes, shares, head)
    other = combine(votes[:, order], shares[:, order], head)
    np.testing.assert_allclose(one, other, atol=1e-12)
    same = np.repeat(votes[:, :1], 4, axis=1)
    alone = combine(votes, np.array([[0.2, 0, 0, 0]]), head)
    np.testing.assert_allclose(combine(same, shares, head), alone, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head": "median"}, "head must be one of geometric_mean, .*'median'"),
        (
            {"multiplicities": np.array([[1, 0, 0, 0], [0, 0, 0, 0]])},
            r"shares must be \(committees, 4\), of 0 or more, in no row",
        ),
        ({"multiplicities": np.ones((1, 3))}, r"shares must be \(committees, 4\)"),
        ({"multiplicities": np.array([[1, -1, 2, 0]])}, r"shares must be .* of 0 or more"),
        ({"labels": np.full(90, 5)}, r"labels must be 90 integers of 0\.\.4"),
        ({"log_probabilities": np.zeros((90, 5))}, r"votes must be \(examples, members, classes\).*\(90, 5\)"),
    ],
)
def test_what_does_not_fit_is_told(arguments, words):
    votes, labels = some_votes()
    given_ = {"log_probabilities": votes, "labels": labels, "multiplicities": np.ones((1, 4)), "head": "geometric_mean"}
    with pytest.raises(ValueError, match=words):
        scores(**{**given_, **arguments})
