"""The best committee and the Pareto front equal those of brute force, whatever the search method."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import synthetic_predictions

from keras_committee import metrics
from keras_committee.evaluation import committee_search
from keras_committee.evaluation.committee_search import Candidates, Objective, search_committees

COSTS = (1.0, 1.5, 0.7, 2.2, 3.1)
LOG_PROBS, LABELS = synthetic_predictions(2, 120, (0.6, 0.9, 0.4, 1.3, 1.5))


def some_candidates(head="geometric_mean"):
    return Candidates(LOG_PROBS, LABELS, COSTS, head)


def by_brute_force():
    """`(subset, cost, scores)` of all committees, one after another."""
    for size in range(1, 6):
        for subset in itertools.combinations(range(5), size):
            product = np.exp(LOG_PROBS[:, subset].astype(np.float64).mean(axis=1))
            scores = metrics.classification_metrics(product / product.sum(axis=1, keepdims=True), LABELS)
            yield subset, sum(COSTS[member] for member in subset), scores


def chosen(candidates, goal):
    table = candidates.table()
    return tuple(np.flatnonzero(table.multiplicities[table.best(goal)]).tolist())


@pytest.mark.parametrize(("objective", "sign"), [("accuracy", -1), ("nll", 1), ("brier", 1)])
@pytest.mark.parametrize("max_cost", [math.inf, 4.9, 2.3])
def test_exhaustive_search_finds_what_brute_force_finds(objective, sign, max_cost):
    candidates, goal = some_candidates(), Objective(metric=objective, max_cost=max_cost)
    assert search_committees(candidates, goal) == "exhaustive"
    assert len(candidates.table()) == 31
    within = [each for each in by_brute_force() if each[1] <= max_cost + 1e-9]
    expected = min(within, key=lambda each: (sign * each[2][objective], each[1], each[2]["nll"]))
    assert chosen(candidates, goal) == expected[0]


def test_without_a_budget_the_cheapest_accurate_committee_is_best():
    candidates = some_candidates()
    search_committees(candidates, Objective())
    enough = [each for each in by_brute_force() if each[2]["accuracy"] >= 0.46]
    cheapest = min(enough, key=lambda each: (each[1], -each[2]["accuracy"], each[2]["nll"]))
    assert chosen(candidates, Objective(min_accuracy=0.46)) == cheapest[0]
    best_within = min((each for each in enough if each[1] <= 5), key=lambda each: (-each[2]["accuracy"], each[1]))
    assert chosen(candidates, Objective(min_accuracy=0.46, max_cost=5)) == best_within[0]
    assert candidates.table().best(Objective(min_accuracy=0.999)) is None


def test_the_front_is_that_of_brute_force():
    candidates = some_candidates()
    search_committees(candidates, Objective())
    every = list(by_brute_force())
    expected = [
        subset
        for subset, cost, score in every
        if not any(
            c <= cost + 1e-9 and s["nll"] <= score["nll"] and (c < cost - 1e-9 or s["nll"] < score["nll"])
            for _, c, s in every
        )
    ]
    table = candidates.table()
    front = [tuple(np.flatnonzero(table.multiplicities[row]).tolist()) for row in table.pareto_front("nll")]
    assert sorted(front) == sorted(expected)
    assert len(front) > 2


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    method=st.sampled_from(["exhaustive", "greedy", "evolutionary"]),
    objective=st.sampled_from(["accuracy", "nll", "brier"]),
    head=st.sampled_from(["geometric_mean", "arithmetic_mean"]),
    max_cost=st.floats(0.7, 9),
)
def test_every_method_stays_within_the_budget_and_beats_the_best_member(seed, method, objective, head, max_cost):
    log_probs, labels = synthetic_predictions(seed, 40, (0.6, 0.9, 0.4, 1.3, 1.5))
    candidates, goal = Candidates(log_probs, labels, COSTS, head), Objective(metric=objective, max_cost=max_cost)
    search_committees(candidates, goal, method)
    table = candidates.table()
    best, losses = table.best(goal), table.losses(objective)
    assert table.costs[best] <= max_cost + 1e-6
    singles = [
        losses[row]
        for row in range(len(table))
        if table.multiplicities[row].sum() == 1 and table.costs[row] <= max_cost
    ]
    assert losses[best] <= min(singles)
    front = table.pareto_front(objective)
    beaten = [
        (one, other)
        for one in front
        for other in range(len(table))
        if table.costs[other] <= table.costs[one] and losses[other] < losses[one]
    ]
    assert beaten == []
    assert (np.diff(table.costs[front]) > 0).all()
    assert (np.diff(losses[front]) < 0).all()


def test_greedy_search_adds_the_most_useful_member_in_every_round(monkeypatch):
    monkeypatch.setattr(committee_search, "_GREEDY_ROUNDS", 6)
    candidates = some_candidates()
    search_committees(candidates, Objective(metric="nll"), "greedy")
    bag, path = [], []
    for _ in range(6):
        losses = []
        for member in range(5):
            product = np.exp(LOG_PROBS[:, [*bag, member]].astype(np.float64).mean(axis=1))
            losses.append(metrics.nll(product / product.sum(axis=1, keepdims=True), LABELS))
        bag.append(int(np.argmin(losses)))
        path.append(min(losses))
    table = candidates.table()
    assert table.scores["nll"].min() == pytest.approx(min(path), abs=1e-6)
    final = np.bincount(bag, minlength=5)
    final //= np.gcd.reduce(final)
    assert final.tolist() in table.multiplicities.tolist()


def test_a_repeated_member_costs_once_under_a_geometric_mean_and_twice_under_other_heads():
    rows = np.array([[2, 0, 1, 0, 0]])
    assert some_candidates().cost(rows) == pytest.approx([1.7])
    assert some_candidates("arithmetic_mean").cost(rows) == pytest.approx([2.7])


def test_a_committee_is_scored_once():
    candidates = some_candidates()
    first = candidates.score([[2, 0, 4, 0, 0], [1, 0, 2, 0, 0]])
    assert first.multiplicities.tolist() == [[1, 0, 2, 0, 0]] * 2
    candidates.score([[0, 1, 0, 0, 0], [3, 0, 6, 0, 0]])
    assert len(candidates.table()) == 2


def test_evolution_finds_in_a_large_pool_what_greed_finds_or_better():
    strengths = np.linspace(0.3, 1.4, 18)
    log_probs, labels = synthetic_predictions(8, 60, strengths)
    greedy, evolved = (Candidates(log_probs, labels, 0.5 + strengths, "geometric_mean") for _ in range(2))
    goal = Objective(metric="nll", max_cost=6.0)
    search_committees(greedy, goal, "greedy")
    assert search_committees(evolved, goal, "auto") == "evolutionary"
    assert evolved.table().scores["nll"][evolved.table().best(goal)] <= greedy.table().scores["nll"].min()


def test_unknown_methods_and_too_many_members_are_rejected():
    many = Candidates(np.zeros((1, 17, 2)), np.zeros(1, int), np.ones(17), "geometric_mean")
    with pytest.raises(ValueError, match=r"limited to 16 members\. Received: 17 members with 131,071 committees"):
        search_committees(many, Objective(), "exhaustive")
    with pytest.raises(ValueError, match=r"method must be one of auto, .*'lucky'"):
        search_committees(some_candidates(), Objective(), "lucky")
    with pytest.raises(ValueError, match=r"objective must be one of accuracy, nll, brier.*'f1'"):
        Objective(metric="f1")


def test_an_evolutionary_search_of_some_members_starts_from_committees_of_these(monkeypatch):
    candidates = some_candidates()
    search_committees(candidates, Objective(), "exhaustive")
    monkeypatch.setattr(committee_search, "_GENERATIONS", 1)
    seen = []
    monkeypatch.setattr(candidates, "score", lambda rows: seen.append(rows) or Candidates.score(candidates, rows))
    search_committees(candidates, Objective(), "evolutionary", members=[0, 3])
    assert np.concatenate(seen)[:, [1, 2, 4]].sum() == 0
