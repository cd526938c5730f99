"""The content of the report: what is compared, and what is said of it. No browser, no training."""

import dataclasses
import itertools

import numpy as np
import pytest
from panels import EXAMPLES, LABELS, history, log_probabilities, source
from sklearn.metrics import confusion_matrix

from keras_committee import metrics
from keras_committee.errors import RunError
from keras_committee.evaluation.report import sections_accuracy, sections_predictions, sections_runs
from keras_committee.evaluation.report.run_data import (
    CostPoint,
    SelectedCommittee,
    Series,
    architecture_names,
    is_current,
    load_report_data,
    pareto_front,
)
from keras_committee.evaluation.report.sections_predictions import rank_by_disagreement
from keras_committee.selection import SelectedMember, Selection, Stage


@pytest.fixture(scope="module")
def panel():
    """Two runs with one architecture in common, and a third of two architectures."""
    return load_report_data(
        [
            source("first", ["small", "small"], [10.0, 10.0], seed=1),
            source("second", ["small"], [10.0], seed=2),
            source("third", ["large", "huge"], [25.0, 70.0], skill=2.0, seed=3),
        ],
        "test",
        [],
    )


def geometric_mean(votes):
    product = np.exp(votes.astype(np.float64)).prod(axis=1) ** (1 / votes.shape[1])
    return product / product.sum(axis=1, keepdims=True)


def score(value, subsets=3, std=0.01):
    return {"mean": value, "std": std, "min": value - std, "max": value + std, "subsets": subsets}


def series(name, costs, accuracies, **fields):
    committees = tuple(
        {"size": size, "mflops": cost, "accuracy": score(right), "nll": score(1.0 / size), "ece": score(0.02)}
        for size, (cost, right) in enumerate(zip(costs, accuracies, strict=True), 1)
    )
    return Series(name=name, members=tuple(range(len(costs))), committees=committees, parameters=1000, **fields)


def test_members_that_are_merely_numbered_are_one_architecture():
    assert architecture_names(["linear_0", "linear_1"]) == ("linear", "linear")
    assert architecture_names(["wrn_16_1", "wrn_16_1"]) == ("wrn_16_1", "wrn_16_1")
    assert architecture_names(["wrn_16_1"]) == ("wrn_16_1",)
    assert architecture_names(["resnet_20", "wrn_16_1"]) == ("resnet_20", "wrn_16_1")


def test_the_front_is_every_point_that_none_beats():
    told = {"dear": (9.0, 0.8), "cheap": (1.0, 0.5), "beaten": (5.0, 0.6), "good": (4.0, 0.7), "twin": (4.0, 0.65)}
    points = [CostPoint(name=name, mflops=cost, accuracy=right) for name, (cost, right) in told.items()]
    assert [point.name for point in pareto_front(points)] == ["cheap", "good", "dear"]


def test_an_architecture_is_gathered_from_all_runs_and_its_committees_are_the_slow_loops(panel):
    by_name = {one.name: one for one in panel.series}
    assert list(by_name) == ["small", "large", "third, mixed", "huge"]
    assert by_name["small"].members == (0, 1, 2)
    rights = [
        (geometric_mean(panel.predictions[:, list(pair)]).argmax(axis=1) == LABELS).mean()
        for pair in itertools.combinations((0, 1, 2), 2)
    ]
    assert by_name["small"].committees[1]["accuracy"]["mean"] == pytest.approx(np.mean(rights))
    assert by_name["small"].committees[2]["mflops"] == 30.0
    assert by_name["third, mixed"].committees == tuple(panel.runs[2].evaluation["committees"])


def test_the_gain_is_that_over_the_mean_member_with_its_paired_standard_error(panel):
    small = next(one for one in panel.series if one.name == "small")
    gains = []
    for example in range(EXAMPLES):
        votes = panel.predictions[example : example + 1, :3]
        alone = [votes[0, member].argmax() == LABELS[example] for member in range(3)]
        gains.append(float(geometric_mean(votes).argmax() == LABELS[example]) - np.mean(alone))
    assert small.gain == pytest.approx(np.mean(gains))
    assert small.gain_error == pytest.approx(np.std(gains) / np.sqrt(EXAMPLES))


def test_several_small_networks_are_held_against_one_large_one_of_at_least_their_cost():
    small, large = series("small", [10.0, 20.0, 30.0], [0.7, 0.75, 0.8]), series("large", [29.0], [0.73])
    assert sections_accuracy.competitors([small, large], large) == (
        "At no more than the cost of one large (29.0 MFLOPs), two small (20.0 MFLOPs) are 2.0 points above it."
    )
    assert "three small (30.0 MFLOPs) are 12.0 points below it" in sections_accuracy.competitors(
        [small], series("l", [30.0], [0.92])
    )
    assert "as accurate as it" in sections_accuracy.competitors([small], series("l", [20.0], [0.7501]))
    assert sections_accuracy.competitors([small], series("l", [19.0], [0.9])) == ""


def test_the_sentence_of_the_cost_tells_the_whole_committee_and_its_gain():
    one = series("net", [53.3, 106.6], [0.803, 0.8146], gain=0.0116, gain_error=0.001)
    assert sections_accuracy.cost_sentence([one], [], "test", 10_000) == (
        "Two of net reach 81.5 % at 107 MFLOPs, 1.2 points (± 0.2, 95 % interval over the images) above one of them,"
        " which has 80.3 % at 53.3 MFLOPs. All on 10,000 test images."
    )


def test_a_cascade_says_what_it_saves_and_where_images_leave_it():
    exits = (
        {"members": 1, "rate": 0.7, "accuracy": 0.95, "nll": 0.2, "ece": 0.01},
        {"members": 3, "rate": 0.3, "accuracy": None, "nll": None, "ece": None},
    )
    chosen = SelectedCommittee(
        name="cascade", kind="cascade", members=("a", "a", "b"), mflops=20.0, worst_mflops=50.0, exits=exits,
        scores={"accuracy": 0.84}, full={"accuracy": 0.8402, "mflops": 50.0},
    )  # fmt: skip
    assert sections_accuracy.cascade_sentence(chosen) == (
        "70 % of the images are answered by one member (95.0 % of them right), 30 % need all three. The cascade (two a"
        " and one b) reaches 84.0 % at 20.0 MFLOPs on average and at most 50.0 MFLOPs: 0.02 points below all its"
        " members voting on every image, with 2.5 times fewer multiply-adds."
    )


def selection(*weights, stages=None):
    members = tuple(
        SelectedMember(run="runs/r", index=0, weights=each, name="net", parameters=1, mflops=cost, temperature=1.7)
        for each, cost in zip(weights, (10.0, 25.0), strict=False)
    )
    return Selection(members=members, head="geometric_mean", classes=("a", "b", "c"), stages=stages)


def test_a_chosen_cascade_is_measured_on_the_votes_of_the_report(tmp_path):
    stages = (Stage(members=1, threshold=0.6), Stage(members=2, threshold=None))
    selection("third-0", "first-1", stages=stages).write(tmp_path / "selection.json")
    runs = [source("first", ["small", "small"], [10.0, 10.0]), source("third", ["large"], [25.0], seed=3)]
    [chosen] = load_report_data(runs, "test", [tmp_path / "selection.json"]).selected
    right, costs = [], []
    for example in range(EXAMPLES):
        votes = [
            runs[1].predictions.log_probabilities[example, 0] / 1.7,
            runs[0].predictions.log_probabilities[example, 1] / 1.7,
        ]
        said = np.exp(votes[0]) / np.exp(votes[0]).sum()
        asks = said.max() < np.float32(0.6)
        said = np.exp(votes[0] / 2 + votes[1] / 2) if asks else said
        right.append(said.argmax() == LABELS[example])
        costs.append(35.0 if asks else 10.0)
    assert chosen.scores["accuracy"] == pytest.approx(np.mean(right))
    assert chosen.mflops == pytest.approx(np.mean(costs))
    assert chosen.exits[0]["rate"] == pytest.approx(np.mean(np.array(costs) == 10.0))


def test_a_selection_of_a_member_that_is_in_none_of_the_runs_is_refused(tmp_path):
    selection("elsewhere-0").write(tmp_path / "selection.json")
    with pytest.raises(RunError, match=r"member 0 of runs/r, .*none of the runs of this report\.\n  Name that"):
        load_report_data([source("first", ["small"], [10.0])], "test", [tmp_path / "selection.json"])


def test_an_evaluation_of_other_votes_is_not_taken_for_that_of_these():
    one = source("run", ["net", "net"], [10.0, 10.0])
    assert is_current(one.evaluation, one.predictions, "test", "geometric_mean")
    assert not is_current(one.evaluation, one.predictions, "validation", "geometric_mean")
    assert not is_current(one.evaluation, one.predictions, "test", "majority_vote")
    other = dataclasses.replace(one.predictions, log_probabilities=log_probabilities(2, 1.2, seed=8))
    assert not is_current(one.evaluation, other, "test", "geometric_mean")
    assert not is_current({"members": [{}]}, one.predictions, "test", "geometric_mean")


def test_the_most_disputed_examples_have_the_most_different_answers():
    votes = np.exp(log_probabilities(5, 0.4, seed=4))
    kinds = [[votes[example, member].argmax() for member in range(5)] for example in range(EXAMPLES)]
    divided = [-sum(share * np.log(share) for share in np.bincount(each)[np.unique(each)] / 5) for each in kinds]
    chosen = rank_by_disagreement(votes, 20)
    assert [divided[place] for place in chosen] == pytest.approx(sorted(divided, reverse=True)[:20])
    assert len(rank_by_disagreement(np.repeat(votes[:, :1], 3, axis=1), 20)) == 0


def test_confusions_are_those_of_scikit_learn(panel):
    expected = confusion_matrix(LABELS, panel.committee_predictions.argmax(axis=1), labels=range(3))
    np.testing.assert_array_equal(metrics.confusion_matrix(panel.committee_predictions, LABELS), expected)
    worst = (expected * (1 - np.eye(3, dtype=int))).max()
    assert sections_predictions.confusion_section(panel).blocks[0].table.rows[0][2] == str(worst)


def test_the_diversity_table_holds_every_pair_once(panel):
    table = sections_predictions.diversity_section(panel).blocks[0].table
    assert len(table.rows) == 5 * 4 / 2
    differ = metrics.disagreement(np.exp(panel.predictions))
    assert table.rows[0][2] == f"{100 * differ.max():.2f} %"


def test_stochastic_depth_is_held_against_the_run_of_constant_depth():
    gated, constant = source("gated", ["net"], [10.0], depth=6.5), source("full", ["net"], [10.0])
    section = sections_runs.depth_section([gated, constant, source("other", ["wide"], [99.0])])
    assert section.blocks[0].sentence == (
        "Of 9 residual blocks 6.7 ran in a mean training step; 6.9 are expected, which leaves out 21.0 % of the"
        " multiply-adds. It trained at 1.25 times the images a second of full, of constant depth: 20.0 % of the time of"
        " an epoch saved."
    )
    assert sections_runs.depth_section([constant]) is None


def test_training_is_told_with_its_spread_and_its_committee():
    text = sections_runs.training_curves_sentence(source("run", ["net"] * 3, [10.0] * 3))
    assert text == (
        "After three epochs the three members end at 62.0 % of the validation images, 4.0 points apart; together they"
        " get 71.0 % right. They trained at 100 images a second (median over epochs and members)."
    )
    assert history(0, None)[-1]["validation_accuracy"] == pytest.approx(0.6)


def test_the_card_names_what_is_needed_to_train_again():
    rows = dict(sections_runs.run_summary_rows(source("run", ["net", "net"], [10.0, 10.0])))
    assert rows["seeds"] == "7, 8"
    assert rows["knobs"] == "members=2, rate=0.2"
    assert rows["versions"] == "keras 3.15.1"
    assert (rows["wall time"], rows["commit"]) == ("60 min", "unknown")
    assert "missing members" not in rows


def test_accuracy_by_severity_is_the_mean_over_the_kinds():
    def row(kind, one, other, committee):
        members = [{"accuracy": one}, {"accuracy": other}]
        return {"kind": kind, "severity": 3, "members": members, "committee": {"accuracy": committee}}

    document = {"clean": row("none", 0.5, 0.6, 0.6), "corruptions": [row("a", 0.3, 0.4, 0.4), row("b", 0.2, 0.1, 0.1)]}
    means = sections_runs.accuracy_by_severity(document)
    assert list(means) == [0, 3]
    assert means[3] == pytest.approx(((0.3 + 0.4 + 0.2 + 0.1) / 4, 0.25))
