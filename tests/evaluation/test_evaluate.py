"""Evaluation: scores equal those of slow loops, and members predict once."""

import csv
import dataclasses
import itertools
import json
import math
import pathlib
import shutil

import keras
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from keras_committee import aggregation, cli, metrics
from keras_committee.data.images import ImageFiles, InMemoryImages
from keras_committee.data.preprocessing import ImageTransform
from keras_committee.data.splits import Split
from keras_committee.errors import IncompleteError, RecipeError, RunError, VerificationError
from keras_committee.evaluation import evaluate, load_or_compute_predictions, load_pool, predictions
from keras_committee.evaluation.evaluate import (
    diversity,
    mean_uncertainty,
    member_subsets,
    score_committees_of_size,
    top_5_accuracy,
    write_misclassified,
)
from keras_committee.evaluation.predictions import SplitPredictions
from keras_committee.evaluation.select import to_selection_members
from keras_committee.files import read_record
from keras_committee.layers import GeometricMean, WeightedGeometricMean
from keras_committee.metrics.selective import SELECTIVE_METRICS
from keras_committee.run import Run
from keras_committee.selection import Selection, Stage


@pytest.fixture(scope="module")
def evaluated(trained):
    run, recipe = trained
    return run, recipe, evaluate(run, recipe), load_or_compute_predictions(run, recipe)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained run of three members that was not evaluated yet, and its recipe."""
    run, recipe = trained
    return Run(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))), recipe


def geometric_mean(log_probabilities):
    product = np.exp(log_probabilities.astype(np.float64)).prod(axis=1) ** (1 / log_probabilities.shape[1])
    return product / product.sum(axis=1, keepdims=True)


def test_the_document_has_the_keys_of_its_contract(evaluated):
    run, _, result, _ = evaluated
    assert read_record(run.path / "evaluation.json") == result
    assert list(result) == [
        "recipe", "split", "examples", "classes", "head", "members", "missing", "committees",
        "diversity", "risk_coverage", "uncertainty", "per_class", "confusion_matrix", "misclassified",
    ]  # fmt: skip
    assert (result["recipe"], result["split"], result["examples"], result["classes"]) == ("tiny", "test", 360, 10)
    assert result["head"] == "geometric_mean"
    assert [list(member) for member in result["members"]] == [
        ["index", "name", "parameters", "mflops", "accuracy", "nll", "ece", "brier", *SELECTIVE_METRICS,
         "accuracy_interval", "epoch", "epochs"]
    ] * 3  # fmt: skip
    assert [(member["epoch"], member["epochs"]) for member in result["members"]] == [(2, 2)] * 3
    assert [list(committee) for committee in result["committees"]] == [
        ["size", "mflops", "accuracy_interval", "accuracy", "nll", "ece", "brier", *SELECTIVE_METRICS]
    ] * 3
    assert list(result["committees"][0]["nll"]) == ["mean", "std", "min", "max", "subsets"]
    assert set(result["diversity"]) == {
        "disagreement", "double_fault", "q_statistic", "error_correlation", "ambiguity",
    }  # fmt: skip


def test_parameters_and_mflops_of_a_member_are_those_of_its_layers(evaluated):
    _, _, result, _ = evaluated
    member = result["members"][2]
    assert (member["index"], member["name"]) == (2, "linear_2")
    assert member["parameters"] == 8 * 8 * 3 * 10 + 10
    assert member["mflops"] == pytest.approx(2 * 8 * 8 * 3 * 10 / 1e6)


def test_committees_are_the_means_over_all_their_subsets(evaluated):
    _, _, result, computed = evaluated
    for size in (1, 2, 3):
        accuracies, losses, areas = [], [], []
        for subset in itertools.combinations(range(3), size):
            probabilities = geometric_mean(computed.log_probabilities[:, list(subset)])
            accuracies.append((probabilities.argmax(axis=1) == computed.labels).mean())
            losses.append(-np.log(probabilities[np.arange(360), computed.labels]).mean())
            order = np.argsort(-probabilities.max(axis=1), kind="stable")
            wrong = (probabilities.argmax(axis=1) != computed.labels)[order]
            areas.append((wrong.cumsum() / np.arange(1, 361)).mean())
        committee = result["committees"][size - 1]
        assert committee["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
        assert committee["accuracy"]["std"] == pytest.approx(np.std(accuracies))
        assert committee["accuracy"]["min"] == pytest.approx(min(accuracies))
        assert committee["nll"]["max"] == pytest.approx(max(losses), rel=1e-4)
        assert committee["aurc"]["mean"] == pytest.approx(np.mean(areas), rel=1e-4)
        assert committee["nll"]["subsets"] == math.comb(3, size)
        assert committee["mflops"] == pytest.approx(size * result["members"][0]["mflops"])


def test_a_subset_of_a_weighted_committee_keeps_its_proportions(evaluated):
    _, _, _, computed = evaluated
    result = score_committees_of_size(2, computed, WeightedGeometricMean([0.2, 0.7, 0.1]), [1.0, 2.0, 4.0])
    accuracies = []
    for pair, weights in (((0, 1), (2 / 9, 7 / 9)), ((0, 2), (2 / 3, 1 / 3)), ((1, 2), (7 / 8, 1 / 8))):
        power = (computed.log_probabilities[:, list(pair)] * np.array(weights)[:, None]).sum(axis=1)
        accuracies.append((power.argmax(axis=1) == computed.labels).mean())
    assert result["accuracy"]["min"] == pytest.approx(min(accuracies))
    assert result["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert result["mflops"] == pytest.approx((3 + 5 + 6) / 3)


def test_a_selected_cascade_is_evaluated_by_its_own_confidence(copied):
    run, recipe = copied
    pool = load_pool([run])
    stages = (Stage(members=1, threshold=0.3), Stage(members=3, threshold=None))
    file = run.path / "selection.json"
    members = to_selection_members(pool, (2, 0, 1), file)
    Selection(members=members, head="geometric_mean", classes=pool.classes, stages=stages, confidence="margin").write(
        file
    )
    result = evaluate(run, recipe)
    selected, curve = result["selected"], result["risk_coverage"]
    outputs = aggregation.run_cascade(
        "geometric_mean", pool.predictions["test"][:, [2, 0, 1]], (1, 3), (0.3,), "margin"
    )
    correct = outputs["probabilities"].argmax(axis=1) == pool.labels["test"]
    assert (selected["kind"], selected["members"]) == ("cascade", [2, 0, 1])
    assert selected["accuracy"] == pytest.approx(correct.mean())
    assert selected["aurc"] == pytest.approx(metrics.aurc(outputs["confidence"], correct))
    assert curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(1 - result["committees"][-1]["accuracy"]["mean"])
    assert (curve["threshold"], len(curve["coverage"])) == (sorted(curve["threshold"], reverse=True), 100)


def test_members_predict_once(evaluated, monkeypatch):
    run, recipe, _, computed = evaluated

    def fail(*_):
        raise RuntimeError("predicted again")

    monkeypatch.setattr(predictions, "log_probabilities", fail)
    again = load_or_compute_predictions(run, recipe)
    np.testing.assert_array_equal(again.log_probabilities, computed.log_probabilities)
    assert again.log_probabilities.shape == (360, 3, 10)


def test_predictions_of_other_weights_are_computed_again(copied):
    run, recipe = copied
    before = load_or_compute_predictions(run, recipe).log_probabilities
    run.member(0).model.write_bytes(run.member(1).model.read_bytes())
    after = load_or_compute_predictions(run, recipe).log_probabilities
    np.testing.assert_array_equal(after[:, 0], before[:, 1])


def test_predictions_on_other_data_are_computed_again(copied):
    run, recipe = copied
    before = load_or_compute_predictions(run, recipe)
    splits = recipe.data.load()
    reversed_test = dataclasses.replace(splits, test=splits.test.subset(np.arange(360)[::-1]))
    after = predictions.predict_split(run, [0, 1, 2], reversed_test, "test")
    np.testing.assert_allclose(after.log_probabilities, before.log_probabilities[::-1], atol=1e-5)


def test_an_incomplete_committee_lists_the_missing_members_and_the_next_command(new_run):
    run, train = new_run(["members=2", "epochs=1"])
    with pytest.raises(IncompleteError, match=r"0 of 2 members; not trained: 0, 1\.\n .*To resume, run: test"):
        evaluate(run, train.args[1])


def test_a_damaged_model_file_is_named(copied):
    run, recipe = copied
    run.member(0).model.write_bytes(b"PK no longer a model")
    with pytest.raises(RunError, match=r"model\.keras cannot be loaded: [\s\S]*retrain this member"):
        evaluate(run, recipe)


def test_many_members_give_a_thousand_distinct_subsets_of_a_size():
    subsets = member_subsets(14, 6)
    assert len(set(subsets)) == 1000
    assert all(len(set(subset)) == 6 for subset in subsets)
    assert member_subsets(5, 2) == list(itertools.combinations(range(5), 2))


def test_C02_data_with_another_class_order_are_rejected(trained, monkeypatch):
    run, _ = trained
    other = ("zero", "two", "one", *"3456789")
    with pytest.raises(
        RecipeError, match=r"the members of .* were trained on\. First difference: class 0 0 -> zero\."
    ) as caught:
        run.require_classes(other)
    assert caught.value.exit_code == 2
    run.require_classes([str(digit) for digit in range(10)])


def test_C05_an_incomplete_committee_is_evaluated_on_request(copied):
    run, recipe = copied
    run.member(1).model.unlink()
    with pytest.raises(IncompleteError, match=r"2 of 3 members; not trained: 1\.[\s\S]*--allow-incomplete 2"):
        evaluate(run, recipe)
    with pytest.raises(IncompleteError, match="2 of 3 members"):
        evaluate(run, recipe, min_members=3)
    result = evaluate(run, recipe, min_members=2)
    assert (result["missing"], [member["index"] for member in result["members"]]) == ([1], [0, 2])
    assert [committee["size"] for committee in result["committees"]] == [1, 2]


def test_C06_two_members_with_the_same_weights_are_named(copied):
    run, recipe = copied
    run.member(2).model.write_bytes(run.member(0).model.read_bytes())
    with pytest.raises(VerificationError, match=r"members 0 and 2 of .* have identical weights \(sha256 ") as caught:
        evaluate(run, recipe)
    assert caught.value.exit_code == 8
    assert len(evaluate(run, recipe, allow_duplicate_weights=True)["members"]) == 3


def test_C07_a_member_with_outputs_that_are_not_finite_is_named(copied):
    run, recipe = copied
    model = keras.saving.load_model(run.member(1).model, compile=False)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    model.save(run.member(1).model)
    with pytest.raises(VerificationError, match=r"member 1 of .* has outputs that are not finite for 360 examples"):
        evaluate(run, recipe)
    assert not (run.path / "evaluation.json").exists()


def test_C01_a_member_of_other_classes_is_named(copied):
    run, recipe = copied
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Dense(7)(keras.layers.Flatten()(image))).save(run.member(0).model)
    with pytest.raises(VerificationError, match=r"member 0 of .* has 7 outputs; the data have 10 classes"):
        evaluate(run, recipe)


def test_the_evaluation_has_the_blocks_of_its_predictions(evaluated):
    _, _, result, computed = evaluated
    probabilities = np.exp(computed.log_probabilities)
    correct = computed.log_probabilities.mean(axis=1).argmax(axis=1) == computed.labels
    assert result["diversity"] == diversity(probabilities, computed.labels)
    assert result["uncertainty"] == mean_uncertainty(probabilities, correct)
    assert 0 < correct.mean() < 1
    assert result["uncertainty"]["wrong"]["total"] > result["uncertainty"]["right"]["total"]
    ambiguity = result["diversity"]["ambiguity"]["nll"]
    assert ambiguity["committee"] == pytest.approx(result["committees"][2]["nll"]["mean"], rel=1e-5)
    assert ambiguity["members"] == pytest.approx(result["committees"][0]["nll"]["mean"], rel=1e-5)


def test_accuracies_have_wilson_intervals_over_the_images(evaluated):
    _, _, result, _ = evaluated
    for row in result["members"]:
        correct = round(row["accuracy"] * 360)
        interval = scipy.stats.binomtest(correct, 360).proportion_ci(method="wilson")
        assert row["accuracy_interval"] == {"low": interval.low, "high": interval.high}
    assert result["committees"][2]["accuracy_interval"] == metrics.accuracy_interval(
        result["committees"][2]["accuracy"]["mean"], 360
    )


def test_misclassified_images_are_listed_the_most_certain_first(evaluated):
    run, _, result, computed = evaluated
    probabilities = geometric_mean(computed.log_probabilities)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != computed.labels)
    with open(run.path / "misclassified.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert result["misclassified"] == {"file": "misclassified.csv", "images": len(wrong)}
    assert sorted(int(row["index"]) for row in rows) == wrong.tolist()
    certainties = [float(row["probability"]) for row in rows]
    assert certainties == sorted(certainties, reverse=True)
    first, index = rows[0], int(rows[0]["index"])
    assert first["predicted_class"] == computed.classes[predicted[index]]
    assert first["true_class"] == computed.classes[computed.labels[index]]
    assert float(first["true_class_probability"]) == pytest.approx(
        probabilities[index, computed.labels[index]], abs=1e-4
    )
    each = computed.log_probabilities[index].argmax(axis=1)
    assert int(first["wrong_members"]) == (each != computed.labels[index]).sum()


def test_a_misclassified_image_has_the_name_of_its_file(copied):
    run, _ = copied
    labels, log_probs = np.array([0, 1, 1]), np.log([[[0.7, 0.3]], [[0.6, 0.4]], [[0.2, 0.8]]])
    predictions = SplitPredictions(members=(0,), log_probabilities=log_probs, labels=labels, classes=("a,b", "c"))
    files = ImageFiles(
        root=pathlib.Path("photos"), names=("a/0.png", "c/1.png", "c/2.png"), transform=ImageTransform((8, 8))
    )
    split = Split(images=InMemoryImages(np.zeros((3, 8, 8, 3)), files), labels=labels)
    assert write_misclassified(run, split, predictions, np.exp(log_probs[:, 0]))["images"] == 1
    assert (run.path / "misclassified.csv").read_text().splitlines()[1] == '1,c/1.png,c,"a,b",0.6000,0.4000,1'


def test_suspicious_labels_are_listed_with_the_suggested_class(copied, capsys):
    run, _ = copied
    assert cli.main(["evaluate", str(run.path), "--label-errors"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    computed = load_or_compute_predictions(run, run.recipe())
    committee = geometric_mean(computed.log_probabilities)
    found = metrics.label_errors(committee.astype(np.float32), computed.labels)
    rows = list(csv.DictReader((run.path / "label_errors.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == found.indices.tolist()
    assert [row["suggested_class"] for row in rows] == [computed.classes[k] for k in found.suggested]
    first = rows[0]
    assert float(first["label_probability"]) == pytest.approx(
        committee[found.indices[0], int(first["label"])], abs=1e-4
    )
    assert f"Images with a suspicious label, {len(rows)}: {run.path}/label_errors.csv Evaluated on" in text
    block = read_record(run.path / "evaluation.json")["label_errors"]
    assert block == {"file": "label_errors.csv", "images": len(rows), "out_of_sample": True}


def test_precision_and_recall_of_every_class(evaluated):
    _, _, result, computed = evaluated
    predicted = geometric_mean(computed.log_probabilities).argmax(axis=1)
    report = sklearn.metrics.classification_report(
        computed.labels, predicted, target_names=computed.classes, output_dict=True, zero_division=np.nan
    )
    for row in result["per_class"]:
        assert row["examples"] == report[row["class"]]["support"]
        assert row["recall"] == pytest.approx(report[row["class"]]["recall"])
        assert (row["precision"] or 0) == pytest.approx(np.nan_to_num(report[row["class"]]["precision"]))


def test_more_than_ten_classes_have_a_top_5_accuracy():
    probabilities = np.random.default_rng(3).dirichlet(np.ones(11), 40)
    labels = np.arange(40) % 11
    expected = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5)
    assert top_5_accuracy(probabilities, labels) == {"top_5_accuracy": pytest.approx(expected)}
    assert top_5_accuracy(np.full((2, 10), 0.1), np.array([0, 1])) == {}


MEMBERS = np.array(
    [
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]],
        [[0.1, 0.8, 0.1], [0.5, 0.4, 0.1]],
        [[0.2, 0.2, 0.6], [0.3, 0.1, 0.6]],
    ]
)


def test_uncertainty_is_averaged_over_all_right_and_wrong_predictions():
    parts = metrics.uncertainty_decomposition(MEMBERS)
    means = mean_uncertainty(MEMBERS, np.array([True, False, True]))
    assert means["right"]["mutual"] == pytest.approx((parts["mutual"][0] + parts["mutual"][2]) / 2)
    assert means["wrong"]["expected"] == pytest.approx(parts["expected"][1])
    assert means["all"]["total"] == pytest.approx(parts["total"].mean())


def test_undefined_values_are_null():
    labels = np.array([0, 1, 2])  # the first member is always correct
    block = diversity(MEMBERS, labels)
    assert block["error_correlation"] == [[None, None], [None, pytest.approx(1)]]
    assert block["q_statistic"][0] == [None, None]
    assert mean_uncertainty(MEMBERS, np.ones(3, bool))["wrong"] == {"total": None, "expected": None, "mutual": None}
    json.dumps(block, allow_nan=False)


def test_a_committee_with_a_member_of_unknown_cost_has_an_unknown_cost(evaluated):
    _, _, result, computed = evaluated
    costs = [member["mflops"] for member in result["members"]]
    single = score_committees_of_size(1, computed, GeometricMean(), [*costs[:2], None])
    assert single["mflops"] is None
    assert single["accuracy"] == result["committees"][0]["accuracy"]
