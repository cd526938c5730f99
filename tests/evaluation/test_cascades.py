"""Does a cascade answer, example by example, as its rule says?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import metrics
from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES, ArithmeticMean, MajorityVote, WeightedGeometricMean
from keras_committee.selection import Stage

MFLOPS = (2.0, 7.0, 3.0, 5.0)


def ballots(seed=3, examples=40, members=4, classes=3, head=None):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, examples)
    logits = draw.normal(0, 1.3, (examples, members, classes))
    logits[np.arange(examples), :, labels] += 1.1
    votes = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return MemberPredictions(votes.astype("float32"), labels, MFLOPS[:members], head)


def plan(order=(2, 0, 3, 1), sizes=(1, 2, 4), thresholds=(0.7, 0.6), confidence="max_probability"):
    return CascadeConfig(order=order, sizes=sizes, thresholds=thresholds, confidence=confidence)


def geometric_mean(votes):
    product = np.exp(votes.astype("float64")).prod(axis=0) ** (1 / len(votes))
    return product / product.sum()


def one_by_one(cast, of):
    """Probabilities and members used, for one example after another."""
    for votes in cast.log_probabilities:
        for size, threshold in zip(of.sizes, (*of.thresholds, 0.0), strict=True):
            said = geometric_mean(votes[list(of.order[:size])])
            if said.max() >= threshold:
                break
        yield said, size


def test_each_example_stops_where_its_confidence_suffices():
    cast, of = ballots(), plan()
    run = simulate_cascade(cast, of)
    said, used = map(np.array, zip(*one_by_one(cast, of), strict=True))
    np.testing.assert_allclose(run.probabilities, said, rtol=1e-5)
    np.testing.assert_array_equal(run.members_used, used)
    assert set(used) == {1, 2, 4}


def test_cost_is_that_of_the_members_asked():
    run = simulate_cascade(ballots(), plan())
    costs = {1: 3.0, 2: 5.0, 4: 17.0}
    assert run.mflops == pytest.approx(np.mean([costs[used] for used in run.members_used]))
    assert run.worst_mflops == 17.0
    assert simulate_cascade(ballots(), plan(thresholds=(0.7, 0.0))).worst_mflops == 5.0


def test_each_exit_is_measured_on_what_it_answered():
    cast = ballots()
    run = simulate_cascade(cast, plan())
    for stage, size in zip(run.exits, (1, 2, 4), strict=True):
        here = run.members_used == size
        assert (stage.members, stage.rate) == (size, pytest.approx(here.mean()))
        scores = metrics.classification_metrics(run.probabilities[here], cast.labels[here])
        assert (stage.accuracy, stage.nll, stage.ece) == (scores["accuracy"], scores["nll"], scores["ece"])
    assert run.scores == metrics.classification_metrics(run.probabilities, cast.labels)
    assert sum(stage.rate for stage in run.exits) == pytest.approx(1.0)


def test_an_exit_that_nobody_takes_has_no_accuracy():
    (first, second, last) = simulate_cascade(ballots(), plan(thresholds=(2.0, 0.0))).exits
    assert (first.rate, second.rate, last.rate) == (0.0, 1.0, 0.0)
    assert (first.accuracy, first.nll, first.ece) == (None, None, None)


seeds, kinds = st.integers(0, 1000), st.sampled_from(CONFIDENCE_MEASURES)
heads = st.sampled_from([None, ArithmeticMean(), MajorityVote(), WeightedGeometricMean((0.2, 0.1, 0.4, 0.3))])
orders = st.permutations(range(4)).map(tuple)


@settings(max_examples=25, deadline=None)
@given(seeds, kinds, heads, orders)
def test_thresholds_of_zero_are_the_first_member_and_above_one_the_full_committee(seed, kind, head, order):
    cast = ballots(seed, 12, head=head)
    first = simulate_cascade(cast, plan(order, thresholds=(0.0, 0.0), confidence=kind))
    np.testing.assert_array_equal(first.probabilities, cast.probabilities(order[:1]))
    assert first.mflops == first.worst_mflops == MFLOPS[order[0]]
    full = simulate_cascade(cast, plan(order, thresholds=(1.01, 1.01), confidence=kind))
    np.testing.assert_array_equal(full.probabilities, cast.probabilities(range(4)))
    assert full.mflops == pytest.approx(sum(MFLOPS))


@settings(max_examples=25, deadline=None)
@given(seeds, heads, orders)
def test_a_committee_answers_the_same_in_any_order(seed, head, order):
    cast = ballots(seed, 12, head=head)
    np.testing.assert_array_equal(cast.probabilities(order), cast.probabilities(range(4)))


@settings(max_examples=25, deadline=None)
@given(seeds, kinds, st.floats(0, 1), st.floats(0, 1))
def test_higher_thresholds_ask_no_fewer_members(seed, kind, one, other):
    low, high = sorted((one, other))
    runs = [simulate_cascade(ballots(seed, 12), plan(thresholds=(t, 0.6), confidence=kind)) for t in (low, high)]
    assert (runs[0].members_used <= runs[1].members_used).all()


def test_a_committee_that_knows_nothing_answers_at_a_threshold_of_zero():
    undecided = MemberPredictions(np.full((5, 2, 7), -np.log(7.0), "float32"), np.zeros(5, int), (1.0, 1.0))
    for kind in CONFIDENCE_MEASURES:
        run = simulate_cascade(undecided, CascadeConfig(order=(0, 1), sizes=(1, 2), thresholds=(0.0,), confidence=kind))
        assert run.members_used.tolist() == [1] * 5


def test_scores_are_the_metrics_example_by_example():
    cast = ballots()
    for objective, sign in (("accuracy", 1), ("nll", -1), ("brier", -1)):
        mean = metrics.classification_metrics(cast.probabilities([1, 3]), cast.labels)[objective]
        assert cast.scores([1, 3], objective).mean() == pytest.approx(sign * mean, rel=1e-5)
    with pytest.raises(ValueError, match=r"accuracy, nll or brier\. Received: 'ece'"):
        cast.scores([0], "ece")


def test_a_plan_gives_the_stages_of_a_selection():
    assert plan().stages() == tuple(
        Stage(members=size, threshold=threshold) for size, threshold in ((1, 0.7), (2, 0.6), (4, None))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (1, 3)}, r"at last all 4\. Received: \[1, 3\]"),
        ({"sizes": (2, 2, 4)}, r"ever more members"),
        ({"thresholds": (0.7,)}, r"one number for each of 3 stages but the last\. Received: \[0\.7\]"),
        ({"thresholds": (0.7, float("nan"))}, r"thresholds must hold"),
        ({"confidence": "luck"}, r"Received: 'luck'"),
    ],
)
def test_a_plan_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plan(**change)


def test_votes_labels_and_costs_must_fit():
    votes = np.log(np.full((4, 2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"labels of shape \(5,\), 2 costs"):
        MemberPredictions(votes, np.zeros(5, int), (1, 1))
    with pytest.raises(ValueError, match=r"\(examples, members, classes\)\. Received: \(4, 2\)"):
        MemberPredictions(votes[:, :, 0], np.zeros(4, int), (1, 1))


@pytest.mark.parametrize(
    ("thresholds", "sizes"),
    [((0.0, 0.6), (1,)), ((0.7, 0.0), (1, 2)), ((2.0, 0.6), (2, 4)), ((0.7, 2.0), (1, 4)), ((0.7, 0.6), (1, 2, 4))],
)
def test_stages_without_use_go_and_every_answer_stays(thresholds, sizes):
    cast, whole = ballots(), plan(thresholds=thresholds)
    trimmed = whole.without_unused_stages()
    assert (trimmed.sizes, trimmed.order) == (sizes, whole.order[: sizes[-1]])
    before, after = simulate_cascade(cast, whole), simulate_cascade(cast, trimmed)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    np.testing.assert_array_equal(after.members_used, before.members_used)
