"""robustness.json holds the scores on corrupted images and the detection of out-of-distribution images."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from keras_committee import cli, evaluation
from keras_committee.choices import CORRUPTIONS
from keras_committee.data import corruptions, ood_images
from keras_committee.data.corruptions import corrupt_images
from keras_committee.data.dataset import stratified_indices
from keras_committee.errors import DataError
from keras_committee.evaluation import load_or_compute_predictions, robustness
from keras_committee.evaluation.robustness import _CorruptionEvaluator
from keras_committee.files import read_record
from keras_committee.layers import GeometricMean


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A folder of four dark images."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(4):
        Image.new("RGB", (20, 10 + index), (index, 0, 3)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def tested(trained, image_folder):
    run, recipe = trained
    result = robustness(
        run,
        recipe,
        corruptions=["contrast", "impulse_noise"],
        severities=[5, 2],
        max_examples=300,
        ood_dir=image_folder,
    )
    return run, recipe, result


def test_the_document_has_the_keys_of_its_docstring(tested):
    run, _, result = tested
    assert read_record(run.path / "robustness.json") == result
    assert [key for key in result if f"`{key}`" not in robustness.__doc__] == []
    assert (result["recipe"], result["head"], result["split"]) == ("tiny", "geometric_mean", "test")
    assert (result["examples"], result["classes"], result["seed"], result["members"]) == (300, 10, 0, [0, 1, 2])
    pairs = [(row["kind"], row["severity"]) for row in result["corruptions"]]
    assert pairs == [("contrast", 5), ("contrast", 2), ("impulse_noise", 5), ("impulse_noise", 2)]


def sampled(recipe):
    """The 300 test images, their labels, and which of all they are."""
    test = recipe.data.load().test
    indices = stratified_indices(test.labels, 300)
    images = np.concatenate([np.asarray(images) for images, _ in test.batches(100)])
    return images[indices], test.labels[indices], indices


def test_clean_images_have_the_predictions_of_the_evaluation(tested):
    run, recipe, result = tested
    predictions = load_or_compute_predictions(run, recipe)
    _, labels, indices = sampled(recipe)
    mean = predictions.log_probabilities[indices].mean(axis=1)
    assert result["clean"]["committee"]["accuracy"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    alone = -predictions.log_probabilities[indices, 1, labels].mean()
    assert result["clean"]["members"][1]["nll"] == pytest.approx(alone, rel=1e-4)


def test_corrupted_images_are_predicted_by_the_members(tested):
    run, recipe, result = tested
    images, labels, _ = sampled(recipe)
    model = keras.saving.load_model(run.member(2).model, compile=False)
    noisy = corrupt_images(images, "impulse_noise", 5)
    right = model.predict(noisy.astype("float32"), verbose=0).argmax(axis=1) == labels
    assert result["corruptions"][2]["members"][2]["accuracy"] == pytest.approx(right.mean())


def test_the_mean_is_over_all_corruptions(tested):
    result = tested[2]
    ece = [row["committee"]["ece"] for row in result["corruptions"]]
    nll = [row["members"][1]["nll"] for row in result["corruptions"]]
    assert result["mean"]["committee"]["ece"] == pytest.approx(np.mean(ece))
    assert result["mean"]["members"][1]["nll"] == pytest.approx(np.mean(nll))


def test_ood_images_are_detected_by_confidence_and_mutual_information(tested, image_folder):
    run, recipe, result = tested
    assert [each["source"] for each in result["foreign"]] == [*ood_images.OOD_GENERATORS, str(image_folder)]
    assert [each["examples"] for each in result["foreign"]] == [300, 300, 300, 300, 4]
    strange = ood_images.generate_ood("stripes", 300, (32, 32)).astype("float32")
    logits = [
        keras.saving.load_model(run.member(index).model, compile=False).predict(strange, verbose=0)
        for index in range(3)
    ]
    ood = np.exp(np.mean([row - np.logaddexp.reduce(row, axis=1, keepdims=True) for row in logits], axis=0))
    ood /= ood.sum(axis=1, keepdims=True)
    in_distribution = np.exp(
        load_or_compute_predictions(run, recipe).log_probabilities[sampled(recipe)[2]].mean(axis=1)
    )
    in_distribution /= in_distribution.sum(axis=1, keepdims=True)
    scores = np.concatenate([in_distribution.max(axis=1), ood.max(axis=1)])
    wanted = sklearn.metrics.roc_auc_score(np.repeat([1, 0], 300), scores)
    assert result["foreign"][3]["confidence"]["auroc"] == pytest.approx(wanted, abs=1e-3)
    assert set(result["foreign"][3]["mutual_information"]) == {"auroc", "fpr95"}


def test_members_that_differ_on_ood_images_are_detected_by_mutual_information(trained):
    evaluator = _CorruptionEvaluator(trained[0], [0], GeometricMean())
    agreeing = np.log(np.array([[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]]))
    differing = np.log(np.array([[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]]))
    assert evaluator.ood_detection(agreeing, differing) == {
        "confidence": {"auroc": 1.0, "fpr95": 0.0},
        "mutual_information": {"auroc": 1.0, "fpr95": 0.0},
    }


def test_without_a_test_split_there_is_nothing_to_corrupt(trained):
    run, recipe = trained
    data = dataclasses.replace(recipe.data, test=0)
    with pytest.raises(DataError, match="have no test split: there is nothing to corrupt"):
        robustness(run, dataclasses.replace(recipe, data=data))


def test_every_corruption_has_its_constants():
    assert tuple(corruptions._SEVERITY_TABLE) == CORRUPTIONS


def test_robustness_as_json_prints_the_file(trained, capsys):
    folder = trained[0].path
    options = ["--corruptions", "fog,snow", "--severities", "3", "--max-examples", "20", "--seed", "4", "--json"]
    assert cli.main(["robustness", str(folder), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == read_record(folder / "robustness.json")
    assert [(row["kind"], row["severity"]) for row in document["corruptions"]] == [("fog", 3), ("snow", 3)]
    assert (document["examples"], document["seed"]) == (20, 4)


def test_robustness_prints_corruptions_by_severity_and_ood_images(tested, monkeypatch, capsys):
    run, _, result = tested
    monkeypatch.setattr(evaluation, "robustness", lambda *_, **__: result)
    assert cli.main(["robustness", str(run.path)]) == 0
    text = capsys.readouterr().out
    mean_accuracy = np.mean([row["committee"]["accuracy"] for row in result["corruptions"]])
    assert re.search(rf"\bmean .* {100 * mean_accuracy:.1f} ", text)
    assert f"{result['foreign'][1]['mutual_information']['auroc']:.3f}" in text
    assert "MFLOPs" not in text
    assert f"Evaluated on 300 test examples. Details: {run.path}/robustness.json\n" in text
    assert text.endswith(f"\nNext: keras-committee report {run.path}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--corruptions", "fog,rain"], "Invalid value for '--corruptions': 'rain' is not one of 'gaussian_noise', "),
        (["--severities", "6"], "Invalid value for '--severities': '6' is not one of '1', '2'"),
        (["--max-examples", "0"], "Invalid value for '--max-examples': 0 is not in the range x>=1"),
    ],
)
def test_a_mistaken_option_is_reported_at_once(capsys, options, words):
    assert cli.main(["robustness", "runs/none", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_ood_folder_ends_with_exit_code_3(trained, capsys):
    options = ["--corruptions", "contrast", "--severities", "1", "--max-examples", "10", "--ood-dir", "none"]
    assert cli.main(["robustness", str(trained[0].path), *options]) == 3
    assert "none: 1 problem in the data\n  there is no such folder" in capsys.readouterr().err
