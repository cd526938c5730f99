"""Content of the report: series, sections and their sentences, from synthetic runs."""

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from synthetic_runs import EXAMPLES, LABELS, history, log_probabilities, run_data

from keras_committee import metrics
from keras_committee.errors import RunError
from keras_committee.evaluation.report import sections_accuracy, sections_predictions, sections_runs
from keras_committee.evaluation.report.report import _kpi_tiles
from keras_committee.evaluation.report.run_data import (
    CostPoint,
    SelectedCommittee,
    Series,
    architecture_names,
    best_committee,
    cost_points,
    is_current,
    load_report_data,
    pareto_front,
)
from keras_committee.evaluation.report.sections_predictions import (
    _promise_sentence,
    label_errors_section,
    rank_by_disagreement,
    selective_section,
)
from keras_committee.selection import SelectedMember, Selection, Stage


@pytest.fixture(scope="module")
def report_data():
    """Two runs that share an architecture, and a third with two architectures."""
    return load_report_data(
        [
            run_data("first", ["small", "small"], [10.0, 10.0], seed=1),
            run_data("second", ["small"], [10.0], seed=2),
            run_data("third", ["large", "huge"], [25.0, 70.0], skill=2.0, seed=3),
        ],
        "test",
        [],
    )


def geometric_mean(log_probs):
    product = np.exp(log_probs.astype(np.float64)).prod(axis=1) ** (1 / log_probs.shape[1])
    return product / product.sum(axis=1, keepdims=True)


def score(value, subsets=3, std=0.01):
    return {"mean": value, "std": std, "min": value - std, "max": value + std, "subsets": subsets}


def series(name, costs, accuracies, **fields):
    committees = tuple(
        {"size": size, "mflops": cost, "accuracy": score(right), "nll": score(1.0 / size), "ece": score(0.02)}
        for size, (cost, right) in enumerate(zip(costs, accuracies, strict=True), 1)
    )
    return Series(name=name, members=tuple(range(len(costs))), committees=committees, parameters=1000, **fields)


def test_numbered_members_share_an_architecture():
    assert architecture_names(["linear_0", "linear_1"]) == ("linear", "linear")
    assert architecture_names(["wrn_16_1", "wrn_16_1"]) == ("wrn_16_1", "wrn_16_1")
    assert architecture_names(["wrn_16_1"]) == ("wrn_16_1",)
    assert architecture_names(["resnet_20", "wrn_16_1"]) == ("resnet_20", "wrn_16_1")


def test_the_pareto_front_drops_dominated_points():
    values = {"costly": (9.0, 0.8), "cheap": (1.0, 0.5), "worse": (5.0, 0.6), "good": (4.0, 0.7), "equal": (4.0, 0.65)}
    points = [CostPoint(name=name, mflops=cost, accuracy=value) for name, (cost, value) in values.items()]
    assert [point.name for point in pareto_front(points)] == ["cheap", "good", "costly"]


def test_a_single_network_is_named_after_its_architecture_and_a_committee_with_its_size():
    points = cost_points([series("net", [10.0, 20.0], [0.7, 0.75]), series("both", [30.0], [0.8], mixed=True)], [])
    assert [point.name for point in points] == ["net", "2 x net", "1 x both"]
    assert [point.mflops for point in points] == [10.0, 20.0, 30.0]


def test_committees_across_runs_equal_the_slow_loop(report_data):
    by_name = {one.name: one for one in report_data.series}
    assert list(by_name) == ["small", "large", "third, mixed", "huge"]
    assert by_name["small"].members == (0, 1, 2)
    rights = [
        (geometric_mean(report_data.predictions[:, list(pair)]).argmax(axis=1) == LABELS).mean()
        for pair in itertools.combinations((0, 1, 2), 2)
    ]
    assert by_name["small"].committees[1]["accuracy"]["mean"] == pytest.approx(np.mean(rights))
    assert by_name["small"].committees[2]["mflops"] == 30.0
    assert by_name["third, mixed"].committees == tuple(report_data.runs[2].evaluation["committees"])


def test_the_gain_has_its_paired_standard_error(report_data):
    small = next(one for one in report_data.series if one.name == "small")
    gains = []
    for example in range(EXAMPLES):
        log_probs = report_data.predictions[example : example + 1, :3]
        alone = [log_probs[0, member].argmax() == LABELS[example] for member in range(3)]
        gains.append(float(geometric_mean(log_probs).argmax() == LABELS[example]) - np.mean(alone))
    assert small.gain == pytest.approx(np.mean(gains))
    assert small.gain_error == pytest.approx(np.std(gains) / np.sqrt(EXAMPLES))


def test_small_committees_are_compared_with_one_large_network():
    small, large = series("small", [10.0, 20.0, 30.0], [0.7, 0.75, 0.8]), series("large", [29.0], [0.73])
    assert sections_accuracy.competitors([small, large], large) == (
        "At no more than the cost of one large (29.0 MFLOPs), two small (20.0 MFLOPs) are 2.0 points above it."
    )
    assert "three small (30.0 MFLOPs) are 12.0 points below it" in sections_accuracy.competitors(
        [small], series("l", [30.0], [0.92])
    )
    assert "as accurate as it" in sections_accuracy.competitors([small], series("l", [20.0], [0.7501]))
    assert sections_accuracy.competitors([small], series("l", [19.0], [0.9])) == ""


def test_the_cost_sentence_reports_the_whole_committee_and_its_gain():
    one = series("net", [53.3, 106.6], [0.803, 0.8146], gain=0.0116, gain_error=0.001)
    assert sections_accuracy.cost_sentence([one], [], "test", 10_000) == (
        "Two net reach 81.5 % at 107 MFLOPs, 1.2 points (± 0.2, 95 % interval over the images) above a single one,"
        " which reaches 80.3 % at 53.3 MFLOPs. All on 10,000 test images."
    )


def test_the_cascade_sentence_reports_exits_and_savings():
    exits = (
        {"members": 1, "rate": 0.7, "accuracy": 0.95, "nll": 0.2, "ece": 0.01},
        {"members": 3, "rate": 0.3, "accuracy": None, "nll": None, "ece": None},
    )
    selected = SelectedCommittee(
        name="cascade", kind="cascade", members=("a", "a", "b"), mflops=20.0, worst_mflops=50.0, exits=exits,
        scores={"accuracy": 0.84}, full={"accuracy": 0.8402, "mflops": 50.0},
    )  # fmt: skip
    assert sections_accuracy.cascade_sentence(selected) == (
        "70 % of the images exit after one member (95.0 % of them correct), 30 % after all three. The cascade (two a"
        " and one b) reaches 84.0 % at 20.0 MFLOPs on average and 50.0 MFLOPs at most: 0.02 points below all its"
        " members on every image, with 2.5 times fewer multiply-adds."
    )
    latency = {
        "batch_size": 32, "precision": "bfloat16", "measured_ms": 0.5, "committee_measured_ms": 0.9,
        "predicted_ms": {"validation": 0.46}, "machine": {"cores": 2, "processor": "Xeon"},
    }  # fmt: skip
    measured = dataclasses.replace(selected, latency=latency)
    assert sections_accuracy.cascade_sentence(measured).removeprefix(sections_accuracy.cascade_sentence(selected)) == (
        " In bfloat16 and batches of 32 it took 0.5 ms per image on two cores of Xeon (predicted: 0.46 ms), the best"
        " committee 0.9 ms: 1.80 times as fast."
    )


def selection(*weights, stages=None):
    members = tuple(
        SelectedMember(run="runs/r", index=0, weights=each, name="net", parameters=1, mflops=cost, temperature=1.7)
        for each, cost in zip(weights, (10.0, 25.0), strict=False)
    )
    return Selection(members=members, head="geometric_mean", classes=("a", "b", "c"), stages=stages)


def test_a_selected_cascade_is_scored_on_the_predictions_of_the_report(tmp_path):
    stages = (Stage(members=1, threshold=0.6), Stage(members=2, threshold=None))
    latency = {"measured_ms": 0.5}
    chosen = dataclasses.replace(
        selection("third-0", "first-1", stages=stages), report={"cascade": {"latency": latency}}
    )
    chosen.write(tmp_path / "selection.json")
    runs = [run_data("first", ["small", "small"], [10.0, 10.0]), run_data("third", ["large"], [25.0], seed=3)]
    [selected] = load_report_data(runs, "test", [tmp_path / "selection.json"]).selected
    correct, costs = [], []
    for example in range(EXAMPLES):
        log_probs = [
            runs[1].predictions.log_probabilities[example, 0] / 1.7,
            runs[0].predictions.log_probabilities[example, 1] / 1.7,
        ]
        probabilities = np.exp(log_probs[0]) / np.exp(log_probs[0]).sum()
        continues = probabilities.max() < np.float32(0.6)
        probabilities = np.exp(log_probs[0] / 2 + log_probs[1] / 2) if continues else probabilities
        correct.append(probabilities.argmax() == LABELS[example])
        costs.append(35.0 if continues else 10.0)
    assert selected.scores["accuracy"] == pytest.approx(np.mean(correct))
    assert selected.mflops == pytest.approx(np.mean(costs))
    assert selected.exits[0]["rate"] == pytest.approx(np.mean(np.array(costs) == 10.0))
    assert selected.latency == latency
    assert selected.correct.mean() == pytest.approx(np.mean(correct))
    data = load_report_data(runs, "test", [tmp_path / "selection.json"])
    rows = {row[0]: row for row in selective_section(data).blocks[0].table.rows}
    scores = metrics.selective_metrics(selected.confidence, selected.correct)
    assert rows["cascade"][1:3] == (f"{scores['aurc']:.5f}", f"{100 * scores['coverage_at_1_percent_risk']:.1f} %")
    committee = np.exp(data.predictions[:, :2]).prod(axis=1) ** 0.5
    committee /= committee.sum(axis=1, keepdims=True)
    aurc = metrics.aurc(committee.max(axis=1), committee.argmax(axis=1) == LABELS)
    assert rows["all small"][1] == f"{aurc:.5f}"


def test_a_selection_with_a_member_of_another_run_raises(tmp_path):
    selection("elsewhere-0").write(tmp_path / "selection.json")
    with pytest.raises(RunError, match=r"member 0 of runs/r, .*none of the runs of this report\.\n  Add that run"):
        load_report_data([run_data("first", ["small"], [10.0])], "test", [tmp_path / "selection.json"])


def test_an_evaluation_of_other_predictions_is_outdated():
    one = run_data("run", ["net", "net"], [10.0, 10.0])
    assert is_current(one.evaluation, one.predictions, "test", "geometric_mean")
    assert not is_current(one.evaluation, one.predictions, "validation", "geometric_mean")
    assert not is_current(one.evaluation, one.predictions, "test", "majority_vote")
    other = dataclasses.replace(one.predictions, log_probabilities=log_probabilities(2, 1.2, seed=8))
    assert not is_current(one.evaluation, other, "test", "geometric_mean")
    assert not is_current({"members": [{}]}, one.predictions, "test", "geometric_mean")


def test_the_most_suspicious_labels_are_shown(report_data):
    labels = report_data.labels.copy()
    labels[:40] = (labels[:40] + 1) % 3
    report_data = dataclasses.replace(report_data, labels=labels)
    found = metrics.label_errors(report_data.committee_predictions, labels)
    block = label_errors_section(report_data).blocks[0]
    assert block.sentence.startswith(f"{len(found.indices)} of {EXAMPLES} test images are confidently of another class")
    assert [row[0] for row in block.table.rows] == [f"<b>{index}</b>.png" for index in found.indices[:12]]
    assert block.table.rows[0][2] == report_data.classes[found.suggested[0]]
    assert (
        "have learned wrong labels"
        in label_errors_section(dataclasses.replace(report_data, split="train")).blocks[0].sentence
    )


def test_the_promise_of_a_run_is_reported_with_what_was_observed():
    promise = {
        "split": "validation", "examples": 90, "chosen_on": 90, "notes": [],
        "sets": {"coverage": 0.9, "method": "aps", "thresholds": [0.2, 0.3, 0.1]},
        "acceptance": {"max_risk": 0.05, "certainty": 0.95, "threshold": 0.875},
        "test": {"examples": 360, "coverage": 0.9125, "mean_set_size": 1.25, "accepted": 0.75, "risk": 0.0123},
    }  # fmt: skip
    assert _promise_sentence(promise) == (
        "APS prediction sets hold the true class of the images of each class with a probability of at least 90.0 %; on"
        " 360 test images it was 91.25 %, with 1.25 classes per set. Answers with a confidence of at least 0.875 have"
        " an error rate of at most 5.0 % with a certainty of 95 %; on 360 test images 75.0 % were accepted, with an"
        " error rate of 1.23 %. Promised on 90 validation images that nothing was chosen with."
    )


def test_examples_are_ranked_by_the_entropy_of_predicted_classes():
    log_probs = np.exp(log_probabilities(5, 0.4, seed=4))
    predicted = [[log_probs[example, member].argmax() for member in range(5)] for example in range(EXAMPLES)]
    entropies = [-sum(share * np.log(share) for share in np.bincount(row)[np.unique(row)] / 5) for row in predicted]
    ranked = rank_by_disagreement(log_probs, 20)
    assert [entropies[index] for index in ranked] == pytest.approx(sorted(entropies, reverse=True)[:20])
    assert len(rank_by_disagreement(np.repeat(log_probs[:, :1], 3, axis=1), 20)) == 0


def test_the_confusion_matrix_equals_scikit_learn(report_data):
    expected = confusion_matrix(LABELS, report_data.committee_predictions.argmax(axis=1), labels=range(3))
    np.testing.assert_array_equal(metrics.confusion_matrix(report_data.committee_predictions, LABELS), expected)
    worst = (expected * (1 - np.eye(3, dtype=int))).max()
    assert sections_predictions.confusion_section(report_data).blocks[0].table.rows[0][2] == str(worst)


def test_the_classes_have_the_precision_and_recall_of_scikit_learn(report_data):
    predicted = report_data.committee_predictions.argmax(axis=1)
    precision, recall, _, support = precision_recall_fscore_support(report_data.labels, predicted)
    table = sections_predictions.confusion_section(report_data).blocks[1].table
    expected = zip(report_data.classes, support, precision, recall, strict=True)
    assert table.rows == tuple((name, f"{n}", f"{100 * p:.1f} %", f"{100 * r:.1f} %") for name, n, p, r in expected)


def test_the_most_certain_errors_are_listed_with_the_names_of_the_images(report_data):
    block = sections_predictions.confusion_section(report_data).blocks[2]
    predictions, labels = report_data.committee_predictions, report_data.labels
    wrong = predictions.argmax(axis=1) != labels
    assert block.sentence.startswith(f"The committee of all members misclassifies {wrong.sum()} of 200 images")
    index = np.argmax(np.where(wrong, predictions.max(axis=1), 0))
    assert block.table.rows[0] == (
        f"<b>{index}</b>.png",
        report_data.classes[labels[index]],
        report_data.classes[predictions[index].argmax()],
        f"{100 * predictions[index].max():.1f} %",
    )


def test_the_best_committee_is_the_most_accurate_and_of_equal_ones_the_cheapest():
    small, large = series("small", [1, 2, 3], [0.7, 0.9, 0.8]), series("large", [4, 8], [0.95, 0.9])
    architecture, committee = best_committee([large, small])
    assert (architecture.name, committee["size"]) == ("small", 2)
    assert best_committee([series("one", [1], [0.99])]) is None
    assert "The best size is two members, with 90.0 %." in sections_accuracy.cost_sentence([small], (), "test", 90)
    assert "best size" not in sections_accuracy.cost_sentence([series("net", [1, 2], [0.7, 0.9])], (), "test", 90)


def test_the_tile_of_the_best_committee_is_not_that_of_the_largest(report_data):
    best = max(
        (committee["accuracy"]["mean"] for one in report_data.series for committee in one.committees[1:]), default=0
    )
    [tile] = [tile for tile in _kpi_tiles(report_data) if tile[0] == "best committee"]
    assert tile[1] == f"{100 * best:.1f} %"


def test_a_cascade_of_one_stage_was_not_worth_it(tmp_path):
    run = run_data("run", ["net", "net"], [1.0, 2.0])
    file = tmp_path / "selection.json"
    selection("run-0", stages=(Stage(members=1, threshold=None),)).write(file)
    [committee] = load_report_data([run], "test", [file]).selected
    assert (committee.kind, committee.name, committee.exits) == ("committee", "committee", ())
    assert sections_accuracy.cascade_section([committee]) is None
    text = sections_accuracy.cost_sentence([], [committee], "test", 200)
    assert text.startswith("No cascade was worth it: the selected committee (one net) reaches ")


def test_accuracies_have_wilson_intervals(report_data):
    members = sections_accuracy.members_section(report_data.members, "test", 200).blocks[0].table
    accuracy, interval = (members.rows[0][members.columns.index(name)] for name in ("accuracy", "interval"))
    low, high = metrics.accuracy_interval(float(accuracy), 200).values()
    assert interval == f"[{low:.3f}, {high:.3f}]"
    costs = sections_accuracy.cost_section(report_data.series, (), "test", 200).blocks[0].table
    assert all(row[costs.columns.index("interval")].startswith("[0.") for row in costs.rows)


def test_the_diversity_table_has_every_pair_once(report_data):
    table = sections_predictions.diversity_section(report_data).blocks[0].table
    assert len(table.rows) == 5 * 4 / 2
    differ = metrics.disagreement(np.exp(report_data.predictions))
    assert table.rows[0][2] == f"{100 * differ.max():.2f} %"


def test_stochastic_depth_is_compared_with_constant_depth():
    gated, constant = run_data("gated", ["net"], [10.0], depth=6.5), run_data("full", ["net"], [10.0])
    section = sections_runs.depth_section([gated, constant, run_data("other", ["wide"], [99.0])])
    assert section.blocks[0].sentence == (
        "On average 6.7 of 9 residual blocks ran per training step; the expected depth of 6.9 saves 21.0 % of the"
        " multiply-adds. It trained 1.25 times as many images per second as full with constant depth: 20.0 % less time"
        " per epoch."
    )
    assert sections_runs.depth_section([constant]) is None


def test_the_training_sentence_reports_range_committee_and_speed():
    text = sections_runs.training_curves_sentence(run_data("run", ["net"] * 3, [10.0] * 3))
    assert text == (
        "After three epochs the three members reach a validation accuracy of 62.0 % on average, with a range of 4.0"
        " points; their committee reaches 71.0 %. Training speed: 100 images per second (median over epochs and"
        " members)."
    )
    assert history(0, None)[-1]["validation_accuracy"] == pytest.approx(0.6)


def test_the_run_summary_has_everything_needed_to_train_again():
    rows = dict(sections_runs.run_summary_rows(run_data("run", ["net", "net"], [10.0, 10.0])))
    assert rows["seeds"] == "7, 8"
    assert rows["parameters"] == "members=2, rate=0.2"
    assert rows["versions"] == "keras 3.15.1"
    assert (rows["wall time"], rows["commit"]) == ("60 min", "unknown")
    assert "missing members" not in rows


def test_accuracy_by_severity_is_the_mean_over_corruptions():
    def row(kind, one, other, committee):
        members = [{"accuracy": one}, {"accuracy": other}]
        return {"kind": kind, "severity": 3, "members": members, "committee": {"accuracy": committee}}

    document = {"clean": row("none", 0.5, 0.6, 0.6), "corruptions": [row("a", 0.3, 0.4, 0.4), row("b", 0.2, 0.1, 0.1)]}
    means = sections_runs.accuracy_by_severity(document)
    assert list(means) == [0, 3]
    assert means[3] == pytest.approx(((0.3 + 0.4 + 0.2 + 0.1) / 4, 0.25))


@pytest.fixture(scope="module")
def partly_unknown():
    """A run whose members cannot be counted beside one whose members can."""
    runs = [
        run_data("known", ["small", "small"], [10.0, 10.0]),
        run_data("lstm", ["rows", "rows"], [None, None], seed=2),
    ]
    return load_report_data(runs, "test", [])


def test_an_unknown_cost_is_on_no_plot_over_the_cost_and_compares_with_nothing(partly_unknown):
    series = partly_unknown.series
    assert [one.name for one in series] == ["small", "rows"]
    assert {point.name for point in cost_points(series, [])} == {"small", "2 x small"}
    section = sections_accuracy.cost_section(series, [], "test", EXAMPLES)
    [block] = section.blocks
    assert [row[:3] for row in block.table.rows][2:] == [("1 x rows", "2", "unknown"), ("2 x rows", "1", "unknown")]
    assert "an unknown cost" in block.sentence
    assert "At no more than the cost of one rows" not in block.sentence
    axes = block.pictures[0].draw(9.0).axes[0]
    shown = np.concatenate([line.get_xdata() for line in axes.lines])
    assert set(shown[np.isfinite(shown)]) == {10.0, 20.0}
    assert "rows" not in {text.get_text() for text in axes.texts}


def test_without_a_known_cost_there_is_no_plot_over_the_cost():
    data = load_report_data([run_data("lstm", ["rows", "rows"], [None, None])], "test", [])
    [block] = sections_accuracy.cost_section(data.series, [], "test", EXAMPLES).blocks
    assert block.pictures == ()
    members = sections_accuracy.members_section(data.members, "test", EXAMPLES).blocks[0].table
    assert [row[members.columns.index("MFLOPs")] for row in members.rows] == ["unknown", "unknown"]
