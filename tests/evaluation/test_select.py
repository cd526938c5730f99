"""Committees and cascades are selected on validation and reported on test."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from pools import synthetic_pool

from keras_committee import aggregation, metrics
from keras_committee.errors import RecipeError
from keras_committee.evaluation import select_cascade
from keras_committee.evaluation.calibration import fit_temperature
from keras_committee.evaluation.committee_scores import per_example_scores
from keras_committee.evaluation.committee_search import Candidates, Objective, compare_architectures, search_committees
from keras_committee.evaluation.select import CommitteeSelector, members_and_weights, select, to_selection_members
from keras_committee.selection import Selection

POOL = synthetic_pool(strengths=(1.6, 1.5, 1.7, 1.8, 1.9))


@pytest.fixture(scope="module")
def selected():
    return select(POOL, Objective(max_cost=4.6), Path("runs/cost-1.0/selection.json"))


def score_of(selection, split):
    members = [member.index for member in selection.members]
    probabilities = aggregation.combine("geometric_mean", POOL.predictions[split][:, members], dtype=np.float64)
    return metrics.classification_metrics(probabilities, POOL.labels[split])


def test_a_selection_is_read_back_from_its_file(selected, tmp_path):
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
def test_the_scores_are_those_of_the_selected_committee_with_intervals(selected, split):
    for score, expected in score_of(selected, split).items():
        reported = selected.report[split][score]
        assert reported["value"] == pytest.approx(expected, abs=1e-6)
        assert reported["low"] < reported["high"]


def test_the_report_describes_the_search(selected):
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


def test_repeated_members_have_weights_or_are_listed_twice():
    twice = np.array([0, 0, 1, 0, 2])
    members, weights = members_and_weights(POOL, twice, "geometric_mean", Path("selection.json"))
    assert [member.index for member in members] == [2, 4]
    assert weights == pytest.approx((1 / 3, 2 / 3))
    members, weights = members_and_weights(POOL, twice, "majority_vote", Path("selection.json"))
    assert ([member.index for member in members], weights) == ([2, 4, 4], None)
    assert CommitteeSelector(POOL, Objective(), "geometric_mean").summary(twice)["mflops"] == pytest.approx(3.5)
    assert CommitteeSelector(POOL, Objective(), "majority_vote").summary(twice)["mflops"] == pytest.approx(6.0)


def test_latency_can_be_the_budget():
    selection = select(POOL, Objective(max_cost=5.0), Path("x.json"), latencies=(4.0, 3.0, 6.0, 2.0, 9.0))
    assert selection.report["budget"]["max_latency_ms"] == 5.0
    assert selection.report["latency_ms"] <= 5.0
    assert {member.index for member in selection.members} <= {0, 1, 3}


def test_a_budget_below_the_cheapest_member_is_rejected():
    with pytest.raises(
        RecipeError,
        match=r"budget of 0\.6 MFLOPs is too small: the cheapest member, 0 \(net_1\.0\) of runs/cost-1\.0, needs 1 MFL",
    ):
        select(POOL, Objective(max_cost=0.6), Path("x.json"))


def test_an_unreachable_accuracy_is_rejected_with_the_best_one():
    with pytest.raises(RecipeError, match=r"no committee of 5 members within 3 MFLOPs reaches the accuracy 0\.999 on "
                       r"validation; the best reaches 0\.\d+ at .* MFLOPs\.\n  Lower --min-accuracy"):  # fmt: skip
        select(POOL, Objective(min_accuracy=0.999, max_cost=3.0), Path("x.json"))


def test_a_pool_too_large_for_exhaustive_search_is_rejected():
    pool = synthetic_pool(strengths=[1.0] * 17, mflops=[1.0] * 17, examples=5)
    with pytest.raises(RecipeError, match=r"limited to 16 members\. Received: 17 members with 131,071 committees"):
        select(pool, Objective(), Path("x.json"), search_method="exhaustive")


def compared(pool, goal=None, search_method="exhaustive"):
    goal = goal or Objective(metric="nll")
    candidates = Candidates(pool.predictions["validation"], pool.labels["validation"], pool.mflops, "geometric_mean")
    search_committees(candidates, goal, search_method)

    def on_test(rows):
        return per_example_scores(pool.predictions["test"], pool.labels["test"], rows, "geometric_mean")

    return compare_architectures(candidates, [each.architecture for each in pool.members], goal, search_method, on_test)


@pytest.mark.parametrize("method", ["exhaustive", "evolutionary"])
def test_the_pair_is_the_best_of_one_architecture_and_the_best_mixed_one_that_costs_no_more(method):
    result = compared(POOL, search_method=method)
    first = result["pairs"][0]
    assert [count > 0 for count in first["uniform"]] == [False, False, False, True, True]
    assert np.dot(np.minimum(first["mixed"], 1), POOL.mflops) <= 5.0
    assert len({POOL.members[index].architecture for index in np.flatnonzero(first["mixed"])}) == 2
    pair = np.array([first["mixed"], first["uniform"]])
    on_test = per_example_scores(POOL.predictions["test"], POOL.labels["test"], pair, "geometric_mean")
    assert first["difference"]["nll"]["value"] == pytest.approx((on_test.nll[0] - on_test.nll[1]).mean())


@pytest.mark.parametrize(
    ("strengths", "answer", "words"),
    [
        (
            (0.1, 0.1, 3.0, 3.0, 0.1),
            "yes",
            "Mixing architectures beats several members of one architecture at equal or lower .*: -",
        ),
        ((2.5, 2.5, 0.0, 0.0, 0.0), "no", "Mixing architectures does not beat several members of one"),
        (
            (1.0, 1.0, 1.0, 1.0, 1.0),
            "undecided",
            "is undecided at .* NLL on 300 test examples",
        ),
    ],
)
def test_the_answer_follows_the_interval(strengths, answer, words):
    pool = synthetic_pool(strengths=strengths, mflops=(1.0, 1.0, 1.01, 0.9, 0.95))
    result = compared(pool)
    assert result["answer"] == answer
    assert re.search(words, result["statement"])


def test_a_pool_without_comparable_committees_gives_the_reason():
    alike = compared(synthetic_pool(mflops=(1.0,) * 5))
    assert (alike["answer"], alike["pairs"]) == ("not comparable", [])
    assert "the same architecture" in alike["statement"]
    assert "No architecture has two members" in compared(synthetic_pool(mflops=(1.0, 1.1, 1.2, 1.3, 1.4)))["statement"]
    expensive = synthetic_pool(mflops=(1.0, 1.0, 5.0, 6.0, 7.0))
    assert "No mix of architectures meets the goal at the cost" in compared(expensive)["statement"]


CASCADE_POOL = synthetic_pool(strengths=(2.0, 2.2, 2.4), mflops=(1.0, 1.0, 3.0))
CASCADE_COSTS = np.array([1.0, 1.0, 3.0])


@pytest.fixture(scope="module")
def cascade():
    return select_cascade(CASCADE_POOL, Objective(), Path("selection.json"))


def one_by_one(selection, split):
    """Accuracy and mean MFLOPs of running one member after another on each example."""
    order = [member.index for member in selection.members]
    correct, spent = [], []
    for example, label in enumerate(CASCADE_POOL.labels[split]):
        for stage in selection.stages:
            members = order[: stage.members]
            product = np.exp(CASCADE_POOL.predictions[split][example, members].astype(float).mean(axis=0))
            probabilities = product / product.sum()
            best, second = np.sort(probabilities)[::-1][:2]
            top = CASCADE_POOL.predictions[split][example, members].argmax(axis=1)
            entropy = 1 + (probabilities * np.log(probabilities)).sum() / np.log(4)
            agreement = (top == probabilities.argmax()).mean()
            confidence = {"max_probability": best, "margin": best - second, "agreement": agreement, "entropy": entropy}
            if stage.threshold is None or confidence[selection.confidence] >= stage.threshold:
                break
        correct.append(probabilities.argmax() == label)
        spent.append(CASCADE_COSTS[members].sum())
    return np.mean(correct), np.mean(spent)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_scores_of_a_cascade_are_those_of_one_member_after_another(cascade, split):
    accuracy, spent = one_by_one(cascade, split)
    assert cascade.report[split]["accuracy"]["value"] == pytest.approx(accuracy)
    assert cascade.report["cascade"][split]["mflops"] == pytest.approx(spent)


def test_the_cascade_is_as_good_as_the_committee_on_validation_and_cheaper(cascade, tmp_path):
    committee = select(CASCADE_POOL, Objective(), Path("selection.json"))
    versus = cascade.report["cascade"]
    assert (cascade.kind, versus["cost"]) == ("cascade", "mflops")
    assert [member["index"] for member in versus["committee"]["members"]] == [each.index for each in committee.members]
    assert versus["target"] == committee.report["validation"]["accuracy"]["value"]
    assert versus["validation"]["accuracy"] >= versus["target"]
    assert versus["times_cheaper"]["value"] == pytest.approx(committee.report["mflops"] / cascade.report["mflops"])
    assert versus["times_cheaper"]["low"] < versus["times_cheaper"]["value"] < versus["times_cheaper"]["high"]
    gap = cascade.report["test"]["accuracy"]["value"] - committee.report["test"]["accuracy"]["value"]
    assert versus["difference"]["accuracy"]["value"] == pytest.approx(gap)
    cascade.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == cascade


def test_temperatures_are_those_of_calibrate_and_the_scores_those_of_the_scaled_members():
    selection = select_cascade(CASCADE_POOL.with_temperatures(), Objective(metric="nll"), Path("x.json"))
    log_probs, labels = CASCADE_POOL.predictions, CASCADE_POOL.labels
    temperatures = [
        fit_temperature(log_probs["validation"][:, m.index], labels["validation"]) for m in selection.members
    ]
    assert [member.temperature for member in selection.members] == temperatures
    assert len({round(temperature, 2) for temperature in temperatures}) > 1
    scaled = _in_order(selection, "test") / np.float32(temperatures)[:, None]
    outputs = aggregation.selected_outputs(selection, scaled)
    reported = selection.report["test"]["nll"]["value"]
    assert reported == pytest.approx(metrics.classification_metrics(outputs["probabilities"], labels["test"])["nll"])
    for pool in (CASCADE_POOL, CASCADE_POOL.with_temperatures()):
        same = pool.outputs(selection, "test")
        np.testing.assert_allclose(same["probabilities"], outputs["probabilities"], atol=1e-5)
        np.testing.assert_array_equal(same["members_used"], outputs["members_used"])


def test_cascades_keep_more_of_their_accuracy_on_other_images_than_those_chosen_by_the_labels_alone():
    losses = []
    for seed in range(0, 24, 2):  # the test images have the seed between
        pool = synthetic_pool(strengths=(2.0, 2.2, 2.4), mflops=(1.0, 1.0, 3.0), seed=seed, examples=200)
        reports = [
            select_cascade(pool, objective, Path("x.json")).report
            for objective in (Objective(), Objective(min_accuracy=_best_accuracy(pool)))
        ]
        for report in reports:  # both reach the committee's accuracy on validation
            assert report["cascade"]["validation"]["accuracy"] >= _best_accuracy(pool) - 1e-9
        losses.append([report["cascade"]["difference"]["accuracy"]["value"] for report in reports])
    smoothed, by_labels = np.mean(losses, axis=0)
    assert by_labels + 0.01 < smoothed < 0.005


def _best_accuracy(pool):
    return select(pool, Objective(), Path("x.json")).report["validation"]["accuracy"]["value"]


def test_where_no_cascade_is_as_accurate_as_the_committee_the_most_accurate_one_is_selected(monkeypatch):
    monkeypatch.setattr(
        "keras_committee.evaluation.cascade_search.stage_partitions", lambda members: [(1,), (1, 2)]
    )  # the best committee has three members
    selection = select_cascade(CASCADE_POOL, Objective(), Path("x.json"))
    report = selection.report["cascade"]
    assert len(report["committee"]["members"]) == 3
    pairs = [select(CASCADE_POOL, Objective(max_cost=cost), Path("x.json")) for cost in (1.0, 2.0, 4.0)]
    best = max(pair.report["validation"]["accuracy"]["value"] for pair in pairs)
    assert best - 0.01 <= report["validation"]["accuracy"] < report["target"]


def test_an_allowed_accuracy_drop_costs_no_more(cascade):
    worse = select_cascade(CASCADE_POOL, Objective(), Path("x.json"), max_accuracy_drop=2.0)
    assert worse.report["cascade"]["target"] == pytest.approx(cascade.report["cascade"]["target"] - 0.02)
    assert worse.report["cascade"]["validation"]["mflops"] <= cascade.report["cascade"]["validation"]["mflops"]


def test_a_budget_bounds_the_mean_cost_and_an_accuracy_is_the_target():
    within = select_cascade(CASCADE_POOL, Objective(max_cost=1.9), Path("x.json"))
    assert within.report["cascade"]["validation"]["mflops"] <= 1.9
    assert within.report["budget"] == {"max_mflops": 1.9, "max_latency_ms": None, "min_accuracy": None}
    enough = select_cascade(CASCADE_POOL, Objective(min_accuracy=0.6), Path("x.json"))
    assert enough.report["cascade"]["target"] == 0.6
    assert enough.report["cascade"]["validation"]["accuracy"] >= 0.6


def test_a_cascade_for_accepted_answers_has_windows_and_accepts_as_many_as_the_committee(tmp_path):
    selection = select_cascade(CASCADE_POOL, Objective(), Path("x.json"), max_risk=0.1)
    report = selection.report["cascade"]
    for split, images in (("validation", 400), ("test", 300)):
        outputs = aggregation.selected_outputs(selection, _in_order(selection, split))
        correct = outputs["probabilities"].argmax(axis=1) == CASCADE_POOL.labels[split]
        assert report["coverage"][split] == metrics.coverage_at_risk(outputs["confidence"], correct, 0.1)
        assert len(correct) == images
    members = [member["index"] for member in report["committee"]["members"]]
    probabilities = aggregation.combine("geometric_mean", CASCADE_POOL.predictions["test"][:, members])
    correct = probabilities.argmax(axis=1) == CASCADE_POOL.labels["test"]
    assert report["committee_coverage"]["test"] == metrics.coverage_at_risk(probabilities.max(axis=1), correct, 0.1)
    assert report["coverage"]["validation"] >= report["committee_coverage"]["validation"] == report["target"] > 0.1
    assert report["validation"]["mflops"] < report["committee"]["mflops"]
    assert any(stage.lower_threshold for stage in selection.stages)
    selection.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == selection
    within = select_cascade(CASCADE_POOL, Objective(max_cost=1.5), Path("x.json"), max_risk=0.1)
    assert within.report["cascade"]["validation"]["mflops"] <= 1.5
    with pytest.raises(RecipeError, match=r"their error rate is above 1e-06 on the 400 validation images"):
        select_cascade(synthetic_pool(strengths=(0, 0), mflops=(1, 1)), Objective(), Path("x.json"), max_risk=1e-6)


def _in_order(selection, split):
    return CASCADE_POOL.predictions[split][:, [member.index for member in selection.members]]


def test_an_unreachable_goal_is_rejected():
    with pytest.raises(
        RecipeError, match=r"mean budget of 0\.5 MFLOPs is too small: the cheapest member, 0 \(net_1\.0\)"
    ):
        select_cascade(CASCADE_POOL, Objective(max_cost=0.5), Path("x.json"))
    with pytest.raises(RecipeError, match=r"no cascade of 3 members reaches the accuracy 0\.999 on validation"):
        select_cascade(CASCADE_POOL, Objective(min_accuracy=0.999), Path("x.json"))


UNKNOWN = synthetic_pool(strengths=(1.6, 1.5, 1.7, 1.8, 1.9), mflops=(1.0, 1.0, 1.0, None, None))
NOTE = (
    "note: the cost is unknown, as some layers cannot be counted:\n"
    "  runs/cost-None member 3 (net_None): 'rows' (LSTM)\n"
    "  runs/cost-None member 4 (net_None): 'rows' (LSTM)\n"
    "  To count a layer, define `multiply_adds(input_shape, output_shape)` on it. See docs/guides/own-layers.md."
)


def test_members_of_unknown_cost_take_part_without_a_budget():
    selection = select(UNKNOWN, Objective(), Path("selection.json"))
    known = select(POOL, Objective(), Path("selection.json"))
    values = [each.report["validation"]["accuracy"]["value"] for each in (selection, known)]
    assert values[0] == values[1]
    assert selection.report["mflops"] is None
    assert selection.report["notes"] == [NOTE]
    assert [member.mflops for member in selection.members if member.index > 2] == [None] * 2
    costs = [point["mflops"] for point in selection.report["front"]]
    assert costs == sorted(costs, key=lambda cost: (cost is None, cost))
    assert selection.report["diversity"]["answer"] == "not comparable"


def test_a_selection_of_unknown_cost_is_read_back_from_its_file(tmp_path):
    selection = select(UNKNOWN, Objective(), tmp_path / "selection.json")
    selection.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == selection


@pytest.mark.parametrize("method", ["exhaustive", "greedy", "evolutionary"])
def test_within_a_budget_members_of_unknown_cost_take_no_part(method):
    selection = select(UNKNOWN, Objective(max_cost=2.5), Path("selection.json"), search_method=method)
    assert {member.index for member in selection.members} <= {0, 1, 2}
    assert selection.report["mflops"] == pytest.approx(len(selection.members))
    assert selection.report["notes"] == [f"{NOTE}\n  They take no part, as a budget and a cascade need their cost."]


def test_a_cascade_is_selected_among_members_of_known_cost():
    cascade = select_cascade(UNKNOWN, Objective(), Path("selection.json"))
    assert {member.index for member in cascade.members} <= {0, 1, 2}
    assert cascade.report["notes"][0].startswith(NOTE)


def test_of_equal_committees_the_one_of_known_cost_is_selected():
    predictions = {split: log_probs[:, [0, 0]] for split, log_probs in POOL.predictions.items()}
    pool = dataclasses.replace(POOL, members=(UNKNOWN.members[3], UNKNOWN.members[0]), predictions=predictions)
    for objective in (Objective(), Objective(min_accuracy=0.3)):
        assert [member.index for member in select(pool, objective, Path("selection.json")).members] == [0]


@pytest.mark.parametrize("choose", [lambda *args: select(*args), lambda *args: select_cascade(*args)])
def test_without_a_known_cost_nothing_is_selected_by_it(choose):
    pool = synthetic_pool(strengths=(1.6, 1.5), mflops=(None, None))
    with pytest.raises(RecipeError, match=r"^the cost of no member is known, so none can be selected by it\.\nnote: "):
        choose(pool, Objective(max_cost=4.0), Path("selection.json"))


@pytest.mark.parametrize(("examples", "warned"), [(99, True), (100, False)])
@pytest.mark.parametrize("choose", [select, select_cascade])
def test_a_choice_on_few_validation_images_has_a_warning_with_their_number(choose, examples, warned):
    selection = choose(synthetic_pool(examples=examples), Objective(), Path("selection.json"))
    kind = "committee" if choose is select else "cascade"
    warning = f"warning: the {kind} is chosen on {examples} validation images only; fewer than 100 leave much to chance"
    assert [note.startswith(warning) for note in selection.report["notes"]] == [True] * warned


def test_a_cascade_of_one_member_was_not_worth_it():
    selection = select_cascade(synthetic_pool((1.0,), (2.0,)), Objective(), Path("selection.json"))
    assert [stage.members for stage in selection.stages] == [1]
    assert selection.report["notes"] == [
        "note: no cascade was worth it. One member alone reaches the goal at the lowest mean cost."
    ]


def test_a_cascade_has_the_wilson_interval_of_its_own_accuracy(cascade):
    report = cascade.report
    for split in ("validation", "test"):
        accuracy = report[split]["accuracy"]["value"]
        assert report["accuracy_interval"][split] == metrics.accuracy_interval(accuracy, report["examples"][split])
