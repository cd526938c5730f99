"""Is calibration.json fitted on the validation split, measured on the test split, and what its figures say?"""

import dataclasses
import json

import numpy as np
import pytest

from keras_committee import cli, metrics
from keras_committee.errors import DataError
from keras_committee.evaluation import calibrate, load_or_compute_predictions
from keras_committee.evaluation.calibration import fit_temperature, softmax
from keras_committee.layers import ArithmeticMean


@pytest.fixture(scope="module")
def calibrated(trained):
    run, recipe = trained
    return (
        calibrate(run, recipe),
        load_or_compute_predictions(run, recipe, "validation"),
        load_or_compute_predictions(run, recipe, "test"),
    )


def test_the_document_has_the_keys_that_its_docstring_names(trained, calibrated):
    result, _, _ = calibrated
    assert json.loads((trained[0].path / "calibration.json").read_text()) == result
    assert [key for key in result if f"`{key}`" not in calibrate.__doc__] == []
    assert (result["recipe"], result["head"], result["classes"]) == ("tiny", "geometric_mean", 10)
    assert result["fitted_on"] == {"split": "validation", "examples": 180}
    assert result["measured_on"] == {"split": "test", "examples": 360}
    assert set(result["committee"]["before"]) == {"accuracy", "nll", "ece", "adaptive_ece", "brier"}
    assert set(result["committee"]["after"]) == {"member_temperatures", "temperature", "weights"}


def test_members_are_fitted_on_validation_and_measured_on_test(calibrated):
    result, validation, test = calibrated
    for place, member in enumerate(result["members"]):
        temperature = fit_temperature(validation.log_probabilities[:, place], validation.labels)
        cooled = softmax(test.log_probabilities[:, place].astype(float) / temperature)
        assert (member["index"], member["temperature"]) == (place, pytest.approx(temperature))
        assert member["after"]["nll"] == pytest.approx(metrics.nll(cooled, test.labels))
        assert member["after"]["adaptive_ece"] == pytest.approx(metrics.adaptive_ece(cooled, test.labels))
        assert member["after"]["accuracy"] == member["before"]["accuracy"]
        assert member["after"]["nll"] < member["before"]["nll"]  # two epochs leave the linear members far too careful


def test_the_committee_under_its_temperature_is_that_of_members_under_the_same(calibrated):
    result, _, test = calibrated
    logits = test.log_probabilities.astype(float).mean(axis=1)
    temperature = result["committee"]["temperature"]
    after = result["committee"]["after"]
    assert after["temperature"]["nll"] == pytest.approx(metrics.nll(softmax(logits / temperature), test.labels))
    each = np.array([member["temperature"] for member in result["members"]])
    cooled = (test.log_probabilities / each[:, None]).mean(axis=1)
    assert after["member_temperatures"]["nll"] == pytest.approx(metrics.nll(softmax(cooled), test.labels), rel=1e-5)
    weighted = np.einsum("emc,m->ec", test.log_probabilities, result["committee"]["weights"])
    assert after["weights"]["brier"] == pytest.approx(metrics.brier(softmax(weighted), test.labels), rel=1e-5)


def test_the_reliability_holds_every_example_and_null_for_empty_bins(calibrated):
    curve = calibrated[0]["reliability"]["before"]
    assert [sum(curve["count"]), len(curve["count"])] == [360, 15]
    assert [accuracy is None for accuracy in curve["accuracy"]] == [count == 0 for count in curve["count"]]
    assert None in curve["accuracy"]


def test_another_head_is_cooled_after_it(trained):
    run, recipe = trained
    result = calibrate(run, dataclasses.replace(recipe, head=ArithmeticMean()))
    test = load_or_compute_predictions(run, recipe, "test")
    mean = np.exp(test.log_probabilities.astype(float)).mean(axis=1)
    cooled = softmax(np.log(mean) / result["committee"]["temperature"])
    assert result["head"] == "arithmetic_mean"
    assert result["committee"]["after"]["temperature"]["nll"] == pytest.approx(
        metrics.nll(cooled, test.labels), rel=1e-4
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_without_a_split_of_its_own_nothing_is_fitted(trained, split):
    run, recipe = trained
    data = dataclasses.replace(recipe.data, **{split: 0})
    with pytest.raises(DataError, match=rf"have no {split} split\.[\s\S]*such as {split}=0\.1") as caught:
        calibrate(run, dataclasses.replace(recipe, data=data))
    assert caught.value.exit_code == 3


def test_calibrate_as_json_is_the_calibration_on_the_disk(trained, capsys):
    folder = trained[0].path
    assert cli.main(["calibrate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "calibration.json").read_text())


def test_calibrate_prints_before_and_after_and_where_all_of_it_is(trained, capsys):
    folder = trained[0].path
    assert cli.main(["calibrate", str(folder)]) == 0
    text = capsys.readouterr().out
    document = json.loads((folder / "calibration.json").read_text())
    assert f"{document['members'][2]['temperature']:.3f}" in text
    assert f"{document['committee']['after']['weights']['nll']:.4f}" in text
    assert "MFLOPs" not in text
    assert f"Fitted on 180 examples of validation, measured on 360 of test. All of it: {folder}/calibration" in text
    assert text.endswith(f"\nNext: keras-committee report {folder}\n")
