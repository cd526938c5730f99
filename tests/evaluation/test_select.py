"""What is chosen on validation is reported on test, with what it beats and by how much."""

import re
from pathlib import Path

import numpy as np
import pytest
from pools import made_up_pool

from keras_committee import metrics
from keras_committee.errors import RecipeError
from keras_committee.evaluation.committee_scores import combine, per_example_scores
from keras_committee.evaluation.committee_search import Candidates, Objective, compare_architectures, search_committees
from keras_committee.evaluation.select import CommitteeSelector, members_and_weights, select, to_selection_members
from keras_committee.selection import Selection

POOL = made_up_pool(strengths=(1.6, 1.5, 1.7, 1.8, 1.9))


@pytest.fixture(scope="module")
def selected():
    return select(POOL, Objective(max_cost=4.6), Path("runs/cost-1.0/selection.json"))


def score_of(selection, split):
    shares = np.zeros((1, 5))
    shares[0, [member.index for member in selection.members]] = 1
    return metrics.classification_metrics(
        combine(POOL.predictions[split], shares, "geometric_mean")[0], POOL.labels[split]
    )


def test_a_selection_names_its_members_and_comes_back_from_its_file(selected, tmp_path):
    file = tmp_path / "selection.json"
    selected.write(file)
    assert Selection.read(file) == selected
    assert (selected.kind, selected.head, selected.weights, selected.classes) == (
        "committee", "geometric_mean", None, POOL.classes,
    )  # fmt: skip
    assert [member.run for member in to_selection_members(POOL, [4, 0], Path("runs/cost-1.0/s.json"))] == [
        "../cost-2.5",
        ".",
    ]
    assert sum(member.mflops for member in selected.members) <= 4.6


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_figures_are_those_of_the_chosen_committee_with_intervals(selected, split):
    for score, expected in score_of(selected, split).items():
        told = selected.report[split][score]
        assert told["value"] == pytest.approx(expected, abs=1e-6)
        assert told["low"] < told["high"]


def test_the_report_says_how_it_was_chosen(selected):
    report = selected.report
    assert (report["objective"], report["method"], report["candidates"]) == ("accuracy", "exhaustive", 31)
    assert report["budget"] == {"max_mflops": 4.6, "max_latency_ms": None, "min_accuracy": None}
    assert report["examples"] == {"validation": 400, "test": 300}
    assert report["mflops"] == pytest.approx(sum(member.mflops for member in selected.members))
    assert len(selected.members) > 1
    assert report["best_member"]["members"] == [{"run": "runs/cost-2.5", "index": 4, "name": "net_2.5", "share": 1}]
    gain = report["best_member"]["gain"]["accuracy"]
    assert gain["value"] == pytest.approx(
        report["test"]["accuracy"]["value"] - report["best_member"]["test"]["accuracy"]
    )
    costs = [point["mflops"] for point in report["front"]]
    assert costs == sorted(costs)
    assert max(costs) > 4.6
    accuracies = [point["validation"]["accuracy"] for point in report["front"]]
    assert accuracies == sorted(set(accuracies))


def test_members_that_greed_takes_twice_have_weights_or_stand_twice():
    twice = np.array([0, 0, 1, 0, 2])
    members, weights = members_and_weights(POOL, twice, "geometric_mean", Path("selection.json"))
    assert [member.index for member in members] == [2, 4]
    assert weights == pytest.approx((1 / 3, 2 / 3))
    members, weights = members_and_weights(POOL, twice, "majority_vote", Path("selection.json"))
    assert ([member.index for member in members], weights) == ([2, 4, 4], None)
    assert CommitteeSelector(POOL, Objective(), "geometric_mean").summary(twice)["mflops"] == pytest.approx(3.5)
    assert CommitteeSelector(POOL, Objective(), "majority_vote").summary(twice)["mflops"] == pytest.approx(6.0)


def test_measured_latency_can_be_the_budget():
    selection = select(POOL, Objective(max_cost=5.0), Path("x.json"), latencies=(4.0, 3.0, 6.0, 2.0, 9.0))
    assert selection.report["budget"]["max_latency_ms"] == 5.0
    assert selection.report["latency_ms"] <= 5.0
    assert {member.index for member in selection.members} <= {0, 1, 3}


def test_a_budget_below_the_cheapest_member_names_it():
    with pytest.raises(
        RecipeError,
        match=r"0\.6 MFLOPs buys no member: the cheapest, member 0 \(net_1\.0\) of runs/cost-1\.0, takes 1\.",
    ):
        select(POOL, Objective(max_cost=0.6), Path("x.json"))


def test_an_accuracy_out_of_reach_says_what_is_reached():
    with pytest.raises(RecipeError, match=r"no committee of 5 members within 3 MFLOPs has the accuracy 0\.999 on "
                       r"validation; the best has 0\.\d+ at .* MFLOPs\.\n  Lower --min-accuracy"):  # fmt: skip
        select(POOL, Objective(min_accuracy=0.999, max_cost=3.0), Path("x.json"))


def test_a_pool_too_large_for_exhaustive_search_is_refused():
    pool = made_up_pool(strengths=[1.0] * 17, mflops=[1.0] * 17, examples=5)
    with pytest.raises(RecipeError, match="16 members at most"):
        select(pool, Objective(), Path("x.json"), search_method="exhaustive")


def compared(pool, goal=None, search_method="exhaustive"):
    goal = goal or Objective(metric="nll")
    candidates = Candidates(pool.predictions["validation"], pool.labels["validation"], pool.mflops, "geometric_mean")
    search_committees(candidates, goal, search_method)

    def on_test(shares):
        return per_example_scores(pool.predictions["test"], pool.labels["test"], shares, "geometric_mean")

    return compare_architectures(candidates, [each.architecture for each in pool.members], goal, method, on_test)


@pytest.mark.parametrize("method", ["exhaustive", "evolutionary"])
def test_the_pair_is_the_best_of_one_architecture_and_the_best_mixed_one_that_costs_no_more(method):
    result = compared(POOL, search_method=method)
    first = result["pairs"][0]
    assert [share > 0 for share in first["uniform"]] == [False, False, False, True, True]
    assert np.dot(np.minimum(first["mixed"], 1), POOL.mflops) <= 5.0
    assert len({POOL.members[place].architecture for place in np.flatnonzero(first["mixed"])}) == 2
    pair = np.array([first["mixed"], first["uniform"]])
    on_test = per_example_scores(POOL.predictions["test"], POOL.labels["test"], pair, "geometric_mean")
    assert first["difference"]["nll"]["value"] == pytest.approx((on_test.nll[0] - on_test.nll[1]).mean())


@pytest.mark.parametrize(
    ("strengths", "answer", "words"),
    [
        (
            (0.1, 0.1, 3.0, 3.0, 0.1),
            "yes",
            "Mixing architectures beats the same one several times at equal or lower .*: -",
        ),
        ((2.5, 2.5, 0.0, 0.0, 0.0), "no", "Mixing architectures does not beat the same one several times"),
        (
            (1.0, 1.0, 1.0, 1.0, 1.0),
            "undecided",
            "cannot be decided at .* NLL on 300 test examples",
        ),
    ],
)
def test_the_answer_follows_the_interval(strengths, answer, words):
    pool = made_up_pool(strengths=strengths, mflops=(1.0, 1.0, 1.01, 0.9, 0.95))
    result = compared(pool)
    assert result["answer"] == answer
    assert re.search(words, result["statement"])


def test_a_pool_that_cannot_answer_says_why():
    alike = compared(made_up_pool(mflops=(1.0,) * 5))
    assert (alike["answer"], alike["pairs"]) == ("cannot be told", [])
    assert "one architecture" in alike["statement"]
    assert "No architecture has two members" in compared(made_up_pool(mflops=(1.0, 1.1, 1.2, 1.3, 1.4)))["statement"]
    dear = made_up_pool(mflops=(1.0, 1.0, 5.0, 6.0, 7.0))
    assert "No mix of architectures costs as little" in compared(dear)["statement"]
