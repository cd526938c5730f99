"""Calibration is fitted on the validation split and measured on the test split; fitted values are optimal."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from keras_committee import cli, metrics
from keras_committee.errors import DataError
from keras_committee.evaluation import calibrate, load_or_compute_predictions
from keras_committee.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, fit_weights
from keras_committee.files import read_record
from keras_committee.layers import ArithmeticMean


@pytest.fixture(scope="module")
def calibrated(trained):
    run, recipe = trained
    return (
        calibrate(run, recipe),
        load_or_compute_predictions(run, recipe, "validation"),
        load_or_compute_predictions(run, recipe, "test"),
    )


def test_the_document_has_the_keys_of_its_docstring(trained, calibrated):
    result, _, _ = calibrated
    assert read_record(trained[0].path / "calibration.json") == result
    assert [key for key in result if f"`{key}`" not in calibrate.__doc__] == []
    assert (result["recipe"], result["head"], result["classes"]) == ("tiny", "geometric_mean", 10)
    assert result["fitted_on"] == {"split": "validation", "examples": 180}
    assert result["measured_on"] == {"split": "test", "examples": 360}
    assert set(result["committee"]["before"]) == {
        "accuracy", "nll", "ece", "adaptive_ece", "brier", "accuracy_interval",
    }  # fmt: skip
    assert result["notes"] == []
    assert set(result["committee"]["after"]) == {"member_temperatures", "temperature", "weights"}


def test_members_are_fitted_on_validation_and_measured_on_test(calibrated):
    result, validation, test = calibrated
    for index, member in enumerate(result["members"]):
        temperature = fit_temperature(validation.log_probabilities[:, index], validation.labels)
        scaled = softmax(test.log_probabilities[:, index].astype(float) / temperature, axis=-1)
        assert (member["index"], member["temperature"]) == (index, pytest.approx(temperature))
        assert member["after"]["nll"] == pytest.approx(metrics.nll(scaled, test.labels))
        assert member["after"]["adaptive_ece"] == pytest.approx(metrics.adaptive_ece(scaled, test.labels))
        assert member["after"]["accuracy"] == member["before"]["accuracy"]
        assert member["after"]["nll"] < member["before"]["nll"]  # after two epochs the members are underconfident


def test_a_temperature_of_the_committee_equals_one_of_all_members(calibrated):
    result, _, test = calibrated
    logits = test.log_probabilities.astype(float).mean(axis=1)
    temperature = result["committee"]["temperature"]
    after = result["committee"]["after"]
    assert after["temperature"]["nll"] == pytest.approx(
        metrics.nll(softmax(logits / temperature, axis=-1), test.labels)
    )
    temperatures = np.array([member["temperature"] for member in result["members"]])
    scaled = (test.log_probabilities / temperatures[:, None]).mean(axis=1)
    assert after["member_temperatures"]["nll"] == pytest.approx(
        metrics.nll(softmax(scaled, axis=-1), test.labels), rel=1e-5
    )
    weighted = np.einsum("emc,m->ec", test.log_probabilities, result["committee"]["weights"])
    assert after["weights"]["brier"] == pytest.approx(metrics.brier(softmax(weighted, axis=-1), test.labels), rel=1e-5)


def test_the_reliability_curve_counts_every_example_and_has_null_for_empty_bins(calibrated):
    curve = calibrated[0]["reliability"]["before"]
    assert [sum(curve["count"]), len(curve["count"])] == [360, 15]
    assert [accuracy is None for accuracy in curve["accuracy"]] == [count == 0 for count in curve["count"]]
    assert None in curve["accuracy"]


def test_the_temperature_of_another_head_is_applied_after_it(trained):
    run, recipe = trained
    result = calibrate(run, dataclasses.replace(recipe, head=ArithmeticMean()))
    test = load_or_compute_predictions(run, recipe, "test")
    mean = np.exp(test.log_probabilities.astype(float)).mean(axis=1)
    scaled = softmax(np.log(mean) / result["committee"]["temperature"], axis=-1)
    assert result["head"] == "arithmetic_mean"
    assert result["committee"]["after"]["temperature"]["nll"] == pytest.approx(
        metrics.nll(scaled, test.labels), rel=1e-4
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_without_a_validation_or_test_split_calibration_fails(trained, split):
    run, recipe = trained
    data = dataclasses.replace(recipe.data, **{split: 0})
    with pytest.raises(DataError, match=rf"have no {split} split\.[\s\S]*such as {split}=0\.1") as caught:
        calibrate(run, dataclasses.replace(recipe, data=data))
    assert caught.value.exit_code == 3


def test_calibrate_as_json_prints_the_file(trained, capsys):
    folder = trained[0].path
    assert cli.main(["calibrate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_record(folder / "calibration.json")


def test_calibrate_prints_before_and_after_and_the_file(trained, capsys):
    folder = trained[0].path
    assert cli.main(["calibrate", str(folder)]) == 0
    text = capsys.readouterr().out
    document = read_record(folder / "calibration.json")
    assert f"{document['members'][2]['temperature']:.3f}" in text
    assert f"{document['committee']['after']['weights']['nll']:.4f}" in text
    assert "MFLOPs" not in text
    assert f"on 180 validation examples, evaluated on 360 test examples. Details: {folder}/calibration" in text
    assert text.endswith(f"\nNext: keras-committee report {folder}\n")


def nll(logits, labels):
    return -np.log(softmax(logits, axis=-1)[np.arange(len(labels)), labels]).mean()


def some_predictions(seed, examples=300, members=3, classes=4):
    """Log-probabilities of members of different quality, the first the best, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    quality = np.linspace(2.0, 0.4, members)[:, None]
    logits = quality * np.eye(classes)[labels][:, None] + 1.7 * rng.normal(size=(examples, members, classes))
    return log_softmax(logits, axis=-1).astype(np.float32), labels


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_no_temperature_of_a_fine_grid_is_better(seed):
    log_probs, labels = some_predictions(seed)
    found = fit_temperature(log_probs[:, 1], labels)
    grid = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 400)
    best = min(nll(log_probs[:, 1] / temperature, labels) for temperature in grid)
    assert nll(log_probs[:, 1].astype(float) / found, labels) <= best + 1e-9
    assert MIN_TEMPERATURE < found < MAX_TEMPERATURE


def test_the_temperature_of_scaled_logits_is_scaled():
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(40_000, 5))
    labels = (softmax(logits, axis=-1).cumsum(axis=1) > rng.uniform(size=(40_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(2.7 * logits, labels) == pytest.approx(2.7 * fit_temperature(logits, labels))


def test_the_temperature_is_bounded_for_always_right_and_always_wrong_predictions():
    labels = some_predictions(2)[1]
    assert fit_temperature(np.log(0.1 + np.eye(4)[labels]), labels) == MIN_TEMPERATURE
    assert fit_temperature(np.log(0.1 + np.eye(4)[(labels + 1) % 4]), labels) == MAX_TEMPERATURE


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_no_weights_of_a_fine_grid_on_the_simplex_are_better(seed):
    log_probs, labels = some_predictions(seed)
    weights, gap = fit_weights(log_probs, labels)
    steps = range(21)
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a, b in itertools.product(steps, steps) if a + b <= 20]
    best = min(nll(np.einsum("emc,m->ec", log_probs, w), labels) for w in grid)
    assert nll(np.einsum("emc,m->ec", log_probs, weights), labels) <= best + 1e-9
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert min(weights) >= 0
    assert -1e-12 <= gap < 1e-4
    assert weights[0] > weights[2]


def test_identical_members_share_the_weight_and_a_single_member_has_all_of_it():
    log_probs, labels = some_predictions(3)
    duplicates, gap = fit_weights(log_probs[:, [0, 0]], labels)
    assert (sum(duplicates), gap) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert fit_weights(log_probs[:, [1]], labels) == ([1.0], 0.0)
