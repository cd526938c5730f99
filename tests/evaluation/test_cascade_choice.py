"""The cascade that select finds, beside the committee that it is measured against."""

from pathlib import Path

import numpy as np
import pytest
from pools import made_up_pool

from keras_committee.errors import RecipeError
from keras_committee.evaluation import Objective, select, select_cascade
from keras_committee.evaluation.committee_scores import combine
from keras_committee.selection import Selection

POOL = made_up_pool(strengths=(2.0, 2.2, 2.4), mflops=(1.0, 1.0, 3.0))
COSTS = np.array([1.0, 1.0, 3.0])


@pytest.fixture(scope="module")
def selected():
    return select_cascade(POOL, Objective(), Path("selection.json"))


def slowly(selection, split):
    """`(correct, MFLOPs)` of each example, which asks one member after another."""
    order = [member.index for member in selection.members]
    correct, spent = [], []
    for example, label in enumerate(POOL.labels[split]):
        for stage in selection.stages:
            asked = order[: stage.members]
            shares = np.isin(np.arange(3), asked)[None].astype(float)
            said = combine(POOL.predictions[split][example : example + 1], shares, "geometric_mean")[0, 0]
            best, second = np.sort(said)[::-1][:2]
            agree = (POOL.predictions[split][example, asked].argmax(axis=1) == said.argmax()).mean()
            entropy = 1 + (said * np.log(said)).sum() / np.log(4)
            sure = {"max_probability": best, "margin": best - second, "agreement": agree, "entropy": entropy}
            if stage.threshold is None or sure[selection.confidence] >= stage.threshold:
                break
        correct.append(said.argmax() == label)
        spent.append(COSTS[asked].sum())
    return np.mean(correct), np.mean(spent)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_figures_are_those_of_asking_one_member_after_another(selected, split):
    accuracy, spent = slowly(selected, split)
    assert selected.report[split]["accuracy"]["value"] == pytest.approx(accuracy)
    assert selected.report["cascade"][split]["mflops"] == pytest.approx(spent)


def test_the_cascade_is_as_good_as_the_committee_on_validation_and_cheaper(selected, tmp_path):
    committee = select(POOL, Objective(), Path("selection.json"))
    versus = selected.report["cascade"]
    assert selected.kind == "cascade"
    assert [member["index"] for member in versus["committee"]["members"]] == [each.index for each in committee.members]
    assert versus["target"] == committee.report["validation"]["accuracy"]["value"]
    assert versus["validation"]["accuracy"] >= versus["target"]
    assert versus["times_cheaper"]["value"] == pytest.approx(committee.report["mflops"] / selected.report["mflops"])
    assert versus["times_cheaper"]["low"] < versus["times_cheaper"]["value"] < versus["times_cheaper"]["high"]
    gap = selected.report["test"]["accuracy"]["value"] - committee.report["test"]["accuracy"]["value"]
    assert versus["difference"]["accuracy"]["value"] == pytest.approx(gap)
    selected.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == selected


def test_a_cascade_may_be_a_little_worse_and_costs_no_more_then(selected):
    worse = select_cascade(POOL, Objective(), Path("x.json"), max_accuracy_drop=2.0)
    assert worse.report["cascade"]["target"] == pytest.approx(selected.report["cascade"]["target"] - 0.02)
    assert worse.report["cascade"]["validation"]["mflops"] <= selected.report["cascade"]["validation"]["mflops"]


def test_a_budget_bounds_the_average_cost_and_an_accuracy_is_the_target():
    within = select_cascade(POOL, Objective(max_cost=1.9), Path("x.json"))
    assert within.report["cascade"]["validation"]["mflops"] <= 1.9
    assert within.report["budget"] == {"max_mflops": 1.9, "max_latency_ms": None, "min_accuracy": None}
    enough = select_cascade(POOL, Objective(min_accuracy=0.6), Path("x.json"))
    assert enough.report["cascade"]["target"] == 0.6
    assert enough.report["cascade"]["validation"]["accuracy"] >= 0.6


def test_a_goal_out_of_reach_is_told():
    with pytest.raises(
        RecipeError, match=r"average of 0\.5 MFLOPs buys no cascade: the cheapest member, 0 \(net_1\.0\)"
    ):
        select_cascade(POOL, Objective(max_cost=0.5), Path("x.json"))
    with pytest.raises(RecipeError, match=r"no cascade of 3 members reaches the accuracy 0\.999 on validation"):
        select_cascade(POOL, Objective(min_accuracy=0.999), Path("x.json"))
