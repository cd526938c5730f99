"""Fitted thresholds and searched cascades equal the best of brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_committee.evaluation import cascade_search
from keras_committee.evaluation.cascade import CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.evaluation.cascade_search import (
    CascadeGoal,
    StageOutcomes,
    count_member_orders,
    evaluate_cascade,
    fit_thresholds,
    fit_windows,
    goal_from_target,
    member_orders,
    search_cascade,
    stage_outcomes_from_predictions,
    stage_partitions,
)
from keras_committee.layers import CONFIDENCE_MEASURES
from keras_committee.metrics import coverage_at_risk

MFLOPS = (2.0, 7.0, 3.0, 5.0)


def member_predictions(seed=3, examples=60, gains=(0.8, 1.6, 1.0, 1.2), classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(0, 1.0, (examples, len(gains), classes))
    logits[np.arange(examples), :, labels] += gains
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return MemberPredictions(log_probs.astype("float32"), labels, MFLOPS[: len(gains)])


FIXED_COSTS = (3.0, 2.0, 9.0)  # of running a stage for a batch of 4


def stages(seed, levels, examples=30, count=3, fixed_costs=None):
    """Stages whose confidences take few values, so that every combination can be tried."""
    rng = np.random.default_rng(seed)
    return StageOutcomes(
        costs=(2.0, 5.0, 12.0)[:count],
        confidences=[rng.integers(0, levels, examples).astype("float32") / levels for _ in range(count - 1)],
        scores=[rng.integers(0, 2, examples).astype("float32") for _ in range(count)],
        fixed_costs=fixed_costs,
        batch_size=4,
    )


def best_thresholds(
    predictions, order, sizes, confidence="max_probability", objective="accuracy", target=None, max_cost=None
):
    """The cascade of this order with the best thresholds; None where the goal is out of reach."""
    goal = goal_from_target(target, max_cost, objective)
    found = fit_thresholds(stage_outcomes_from_predictions(predictions, order, sizes, confidence, objective), goal)
    return found and CascadeConfig(order=order, sizes=sizes, thresholds=found.thresholds, confidence=confidence)


def outcome(given_stages, thresholds):
    """Mean score and cost of each combination, by the slow loop."""
    score = cost = 0.0
    reached = np.zeros(len(given_stages.costs))
    for example in range(len(given_stages.scores[0])):
        stage = 0
        while stage < len(thresholds) and given_stages.confidences[stage][example] < thresholds[stage]:
            stage += 1
        score += given_stages.scores[stage][example]
        cost += given_stages.costs[stage]
        reached[: stage + 1] += 1 / len(given_stages.scores[0])
    cost /= len(given_stages.scores[0])
    for share, fixed in zip(reached, given_stages.fixed_costs or (), strict=False):
        cost += fixed * (1 - (1 - share) ** 4) / 4  # a stage that no example of the batch reaches does not run
    return score / len(given_stages.scores[0]), cost


def every_outcome(given_stages):
    cuts = [[*np.unique(each), 2.0] for each in given_stages.confidences]
    return [outcome(given_stages, thresholds) for thresholds in itertools.product(*cuts)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.sampled_from([0.4, 0.5, 0.6]), st.sampled_from([None, FIXED_COSTS]))
def test_the_fit_is_the_best_of_all_combinations(seed, target, fixed_costs):
    case = stages(seed, levels=5, fixed_costs=fixed_costs)
    found = fit_thresholds(case, CascadeGoal(target))
    costs = [cost for score, cost in every_outcome(case) if score >= target - 1e-9]
    assert (found and round(found.cost, 6)) == (round(min(costs), 6) if costs else None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.sampled_from([1.0, 3.0, 7.0]))
def test_the_fit_has_the_best_score_within_the_budget(seed, budget):
    case = stages(seed, levels=5)
    found = fit_thresholds(case, CascadeGoal(max_cost=budget))
    scores = [score for score, cost in every_outcome(case) if cost <= budget + 1e-9]
    assert (found and round(found.score, 6)) == (round(max(scores), 6) if scores else None)


def test_the_fitted_score_and_cost_are_those_of_the_thresholds():
    for cells, fixed_costs in itertools.product((2**18, 2**6), (None, FIXED_COSTS)):
        case = stages(7, levels=29, fixed_costs=fixed_costs)
        found = fit_thresholds(case, CascadeGoal(0.5), cells)
        assert outcome(case, found.thresholds) == pytest.approx((found.score, found.cost))


def test_two_stages_are_fitted_over_every_distinct_confidence():
    case = stages(11, levels=10_000, examples=300, count=2)
    found = fit_thresholds(case, CascadeGoal(0.52))
    assert found.cost == pytest.approx(min(cost for score, cost in every_outcome(case) if score >= 0.52 - 1e-9))


def test_between_two_adjacent_float32_confidences_the_upper_one_is_the_threshold():
    low, high, higher = np.float32(0.7) + np.arange(3) * np.spacing(np.float32(0.7))
    for below, above in (
        (low, high),
        (high, higher),
    ):  # the midpoint rounds up for one pair, down for the other
        case = StageOutcomes((2.0, 5.0), [np.float32([below, above])], [np.float32([0, 1]), np.float32([1, 1])])
        found = fit_thresholds(case, CascadeGoal(1.0))  # only the first example must continue
        assert (found.thresholds, found.cost) == ((float(above),), 3.5)


def test_coordinate_descent_improves_a_coarse_grid():
    case = stages(11, levels=10_000, examples=300)
    coarse, fine = (fit_thresholds(case, CascadeGoal(0.5), cells) for cells in (2**5, 2**18))
    assert fine.cost <= coarse.cost <= 1.1 * fine.cost


def test_thresholds_lie_between_the_confidences():
    predictions = member_predictions()
    plan = best_thresholds(predictions, (0, 1), (1, 2), target=0.7)
    gaps = np.abs(predictions.confidences((0,), "max_probability") - plan.thresholds[0])
    assert gaps.min() > 1e-5


def test_the_target_is_reached_at_less_than_the_cost_of_all():
    predictions = member_predictions()
    full = simulate_cascade(predictions, CascadeConfig(order=(0, 2, 1), sizes=(3,), thresholds=()))
    plan = best_thresholds(predictions, (0, 2, 1), (1, 2, 3), "margin", target=full.scores["accuracy"])
    run = simulate_cascade(predictions, plan)
    assert run.scores["accuracy"] >= full.scores["accuracy"]
    assert run.mflops < 0.8 * full.mflops


def test_other_objectives_stay_below_the_target():
    predictions = member_predictions()
    for objective, limit in (("nll", 0.8), ("brier", 0.45)):
        run = simulate_cascade(
            predictions, best_thresholds(predictions, (0, 2, 1), (1, 2, 3), target=limit, objective=objective)
        )
        assert 0.9 * limit < run.scores[objective] <= limit + 1e-6


def test_an_unreachable_goal_returns_none():
    assert best_thresholds(member_predictions(), (0, 1), (1, 2), target=1.0) is None
    assert best_thresholds(member_predictions(), (0, 1), (1, 2), max_cost=1.9) is None
    assert search_cascade(member_predictions(), target=1.0) is None


def test_exactly_one_goal_must_be_given():
    with pytest.raises(
        ValueError, match=r"Exactly one of target and max_cost must be given\. Received: target=None, max_cost=None"
    ):
        search_cascade(member_predictions())
    with pytest.raises(ValueError, match=r"Received: target=0\.7, max_cost=3"):
        search_cascade(member_predictions(), target=0.7, max_cost=3)


def test_every_order_is_listed_once():
    listed = list(member_orders(range(4), (1, 3)))
    assert len(listed) == len(set(listed)) == count_member_orders(4, (1, 3)) == 12
    assert {(order[0], frozenset(order[1:])) for order in listed} == {
        (first, frozenset(pair)) for first in range(4) for pair in itertools.combinations(set(range(4)) - {first}, 2)
    }
    assert count_member_orders(8, (1, 2, 4)) == 8 * 7 * 15


def test_partitions_begin_with_one_member():
    assert stage_partitions(1) == [(1,)]
    assert stage_partitions(3) == [(1, 2), (1, 3), (1, 2, 3)]
    assert (1, 2, 4, 8) in stage_partitions(8)
    assert len(stage_partitions(8)) == 4 + 6 + 4


def by_exhaustion(predictions, sizes, **goal):
    """The plans of all orders and confidences, fitted one by one."""
    fitted = [
        best_thresholds(predictions, order, sizes, kind, **goal)
        for order in itertools.permutations(range(4), sizes[-1])
        for kind in CONFIDENCE_MEASURES
    ]
    return [simulate_cascade(predictions, plan) for plan in fitted if plan]


def test_the_search_finds_the_best_of_all_orders(monkeypatch):
    predictions = member_predictions()
    monkeypatch.setattr(cascade_search, "stage_partitions", lambda _: [(1, 2)])
    for max_orders in (100, 1):  # exhaustive, then local search
        monkeypatch.setattr(cascade_search, "_MAX_MEMBER_ORDERS", max_orders)
        cheapest = simulate_cascade(predictions, search_cascade(predictions, target=0.8))
        assert cheapest.mflops == pytest.approx(
            min(run.mflops for run in by_exhaustion(predictions, (1, 2), target=0.8))
        )
        best = simulate_cascade(predictions, search_cascade(predictions, max_cost=5.0))
        scores = [run.scores["accuracy"] for run in by_exhaustion(predictions, (1, 2), max_cost=5.0)]
        assert best.scores["accuracy"] == pytest.approx(max(scores))


def test_validation_and_test_stand_side_by_side():
    validation, test = member_predictions(), member_predictions(seed=4)
    plan = search_cascade(validation, target=0.75)
    results = evaluate_cascade(plan, validation, test, target=0.75)
    assert results["validation"]["accuracy"] >= 0.75
    assert results["test"] == simulate_cascade(test, plan).summary()
    assert set(results["cross_fitted"]) == {"accuracy", "mflops"}
    assert evaluate_cascade(plan, validation, test, target=0.99)["cross_fitted"] is None


def selective_outcome(given_stages, last_confidence, window, max_risk):
    """Fraction of accepted answers and cost of a cascade of two stages, by the slow loop."""
    answers, cost = [], 0.0
    for example in range(len(last_confidence)):
        confidence = given_stages.confidences[0][example]
        inside = window[0] <= confidence < window[1]
        cost += given_stages.costs[int(inside)]
        score = given_stages.scores[int(inside)][example]
        answers.append((last_confidence[example] if inside else confidence, score > 0))
    coverages = [0.0]
    for threshold, _ in answers:
        accepted = [is_correct for confidence, is_correct in answers if confidence >= threshold]
        if accepted.count(False) <= max_risk * len(accepted):
            coverages.append(len(accepted) / len(answers))
    return max(coverages), cost / len(answers)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), max_risk=st.sampled_from([0.1, 0.3]), target=st.sampled_from([None, 0.2, 0.4]))
def test_the_window_of_two_stages_is_the_best_of_all(seed, max_risk, target):
    given_stages = stages(seed, levels=6, count=2)
    last_confidence = np.random.default_rng(seed + 1).integers(0, 7, 30).astype("float32") / 7
    goal = CascadeGoal(target) if target else CascadeGoal(max_cost=3.1)
    bounds = [0.0, *(np.arange(1, 6) / 6 - 0.05), 2.0]
    windows = [pair for pair in itertools.product(bounds, bounds) if pair[0] <= pair[1]]
    outcomes = np.array([selective_outcome(given_stages, last_confidence, pair, max_risk) for pair in windows])
    best = goal.best(outcomes[:, 0], outcomes[:, 1])
    assume(best is not None and outcomes[best, 0])
    found = fit_windows(given_stages, last_confidence, goal, max_risk, (64, 400, 3))
    assert (found.score, found.cost) == pytest.approx(tuple(outcomes[best]))
    window = found.lower_thresholds[0], found.thresholds[0]
    assert selective_outcome(given_stages, last_confidence, window, max_risk) == pytest.approx(
        (found.score, found.cost)
    )


def test_there_is_no_window_where_the_goal_is_out_of_reach_or_no_answer_can_be_accepted():
    given_stages, last_confidence = stages(0, levels=6, count=2), np.linspace(0, 1, 30, dtype="float32")
    assert fit_windows(given_stages, last_confidence, CascadeGoal(0.99), 0.1) is None
    assert fit_windows(given_stages, last_confidence, CascadeGoal(max_cost=1.9), 0.3) is None
    wrong = given_stages._replace(scores=[np.zeros(30, "float32")] * 2)
    assert fit_windows(wrong, last_confidence, CascadeGoal(max_cost=9.0), 0.3) is None


def test_a_cascade_for_accepted_answers_accepts_as_many_as_its_committee_at_a_lower_cost():
    predictions = member_predictions(examples=400)
    members = tuple(range(4))
    correct = predictions.probabilities(members).argmax(axis=1) == predictions.labels
    target = coverage_at_risk(predictions.confidences(members, "max_probability"), correct, 0.05)
    found = search_cascade(predictions, target=target, max_risk=0.05)
    run = simulate_cascade(predictions, found)
    assert coverage_at_risk(run.confidence, run.correct, 0.05) >= target > 0.2
    assert run.mflops < 0.8 * 17.0
    assert any(found.lower_thresholds)  # rejected at once
    plain = search_cascade(predictions, target=float(correct.mean()))
    assert plain.lower_thresholds is None
    crossed = evaluate_cascade(found, predictions, predictions, target=target, max_risk=0.05)
    assert crossed["validation"]["mflops"] == pytest.approx(run.mflops)
