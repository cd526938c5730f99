"""Is robustness.json what the members say of corrupted and of foreign images?"""

import dataclasses
import json

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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of four dark pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(4):
        Image.new("RGB", (20, 10 + place), (place, 0, 3)).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def tested(trained, pictures):
    run, recipe = trained
    result = robustness(
        run, recipe, corruptions=["contrast", "impulse_noise"], severities=[5, 2], max_examples=300, ood_dir=pictures
    )
    return run, recipe, result


def test_the_document_has_the_keys_that_its_docstring_names(tested):
    run, _, result = tested
    assert json.loads((run.path / "robustness.json").read_text()) == result
    assert [key for key in result if f"`{key}`" not in robustness.__doc__] == []
    assert (result["recipe"], result["head"], result["split"]) == ("tiny", "geometric_mean", "test")
    assert (result["examples"], result["classes"], result["seed"], result["members"]) == (300, 10, 0, [0, 1, 2])
    pairs = [(row["kind"], row["severity"]) for row in result["corruptions"]]
    assert pairs == [("contrast", 5), ("contrast", 2), ("impulse_noise", 5), ("impulse_noise", 2)]


def chosen(recipe):
    """The 300 test images, their labels, and which of all they are."""
    test = recipe.data.load().test
    places = stratified_indices(test.labels, 300)
    images = np.concatenate([np.asarray(images) for images, _ in test.batches(100)])
    return images[places], test.labels[places], places


def test_clean_images_get_the_votes_of_the_evaluation(tested):
    run, recipe, result = tested
    votes = load_or_compute_predictions(run, recipe)
    _, labels, places = chosen(recipe)
    mean = votes.log_probabilities[places].mean(axis=1)
    assert result["clean"]["committee"]["accuracy"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    alone = -votes.log_probabilities[places, 1, labels].mean()
    assert result["clean"]["members"][1]["nll"] == pytest.approx(alone, rel=1e-4)


def test_corrupted_images_get_the_members_own_answers(tested):
    run, recipe, result = tested
    images, labels, _ = chosen(recipe)
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


def test_foreign_images_are_told_by_confidence_and_mutual_information(tested, pictures):
    run, recipe, result = tested
    assert [each["source"] for each in result["foreign"]] == [*ood_images.OOD_GENERATORS, str(pictures)]
    assert [each["examples"] for each in result["foreign"]] == [300, 300, 300, 300, 4]
    strange = ood_images.generate_ood("stripes", 300, (32, 32)).astype("float32")
    logits = [
        keras.saving.load_model(run.member(index).model, compile=False).predict(strange, verbose=0)
        for index in range(3)
    ]
    unknown = np.exp(np.mean([row - np.logaddexp.reduce(row, axis=1, keepdims=True) for row in logits], axis=0))
    unknown /= unknown.sum(axis=1, keepdims=True)
    known = np.exp(load_or_compute_predictions(run, recipe).log_probabilities[chosen(recipe)[2]].mean(axis=1))
    known /= known.sum(axis=1, keepdims=True)
    scores = np.concatenate([known.max(axis=1), unknown.max(axis=1)])
    wanted = sklearn.metrics.roc_auc_score(np.repeat([1, 0], 300), scores)
    assert result["foreign"][3]["confidence"]["auroc"] == pytest.approx(wanted, abs=1e-3)
    assert set(result["foreign"][3]["mutual_information"]) == {"auroc", "fpr95"}


def test_without_a_test_split_there_is_nothing_to_corrupt(trained):
    run, recipe = trained
    data = dataclasses.replace(recipe.data, test=0)
    with pytest.raises(DataError, match="have no test split: there is nothing to corrupt"):
        robustness(run, dataclasses.replace(recipe, data=data))


def test_every_corruption_has_its_constants():
    assert tuple(corruptions._SEVERITY_TABLE) == CORRUPTIONS


def test_robustness_as_json_is_the_document_on_the_disk(trained, capsys):
    folder = trained[0].path
    options = ["--corruptions", "fog,snow", "--severities", "3", "--max-examples", "20", "--seed", "4", "--json"]
    assert cli.main(["robustness", str(folder), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((folder / "robustness.json").read_text())
    assert [(row["kind"], row["severity"]) for row in document["corruptions"]] == [("fog", 3), ("snow", 3)]
    assert (document["examples"], document["seed"]) == (20, 4)


def test_robustness_prints_kinds_by_severities_and_foreign_images(tested, monkeypatch, capsys):
    run, _, result = tested
    monkeypatch.setattr(evaluation, "robustness", lambda *_, **__: result)
    assert cli.main(["robustness", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert f"{result['corruptions'][1]['committee']['accuracy']:.1%} (" in text
    assert f"{result['foreign'][1]['mutual_information']['auroc']:.3f}" in text
    assert "MFLOPs" not in text
    assert f"300 examples of test. All of it: {run.path}/robustness.json\n" in text
    assert text.endswith(f"\nNext: keras-committee report {run.path}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--corruptions", "fog,rain"], "Invalid value for '--corruptions': 'rain' is not one of 'gaussian_noise', "),
        (["--severities", "6"], "Invalid value for '--severities': '6' is not one of '1', '2'"),
        (["--max-examples", "0"], "Invalid value for '--max-examples': 0 is not in the range x>=1"),
    ],
)
def test_a_mistaken_option_is_told_at_once(capsys, options, words):
    assert cli.main(["robustness", "runs/none", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_foreign_folder_that_is_not_there_ends_with_exit_code_3(trained, capsys):
    options = ["--corruptions", "contrast", "--severities", "1", "--max-examples", "10", "--ood-dir", "none"]
    assert cli.main(["robustness", str(trained[0].path), *options]) == 3
    assert "none: 1 problem in the data\n  no such folder" in capsys.readouterr().err
