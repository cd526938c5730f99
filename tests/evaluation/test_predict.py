"""Image files are predicted by the committee of a run, of a selection, and of a cascade."""

import csv
import dataclasses
import hashlib
import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_committee import cli
from keras_committee.data import center_crop, resize
from keras_committee.errors import IncompleteError, RecipeError, VerificationError
from keras_committee.evaluation.predict import CommitteePredictor
from keras_committee.image_header import NO_IMAGE
from keras_committee.layers import WeightedGeometricMean
from keras_committee.selection import AcceptanceRule, Promise, SelectedMember, Selection, SetRule, Stage


@pytest.fixture(scope="module")
def digits(trained):
    """Forty test images, uint8, and the log probabilities of the three members, float64."""
    run, recipe = trained
    [images] = [np.asarray(images) for images, _ in recipe.data.load().test.batches(40).take(1)]
    models = [keras.saving.load_model(run.member(index).model, compile=False) for index in range(3)]
    logits = np.stack([model.predict(images.astype("float32"), verbose=0) for model in models], axis=1).astype(float)
    return images, logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)


def geometric(log_probs, weights=None):
    power = np.exp(np.average(log_probs, axis=1, weights=weights))
    return power / power.sum(axis=1, keepdims=True)


def choose(run, file, order=(2, 0, 1), **fields):
    """Writes a selection of members of the run."""
    members = [
        SelectedMember(
            run=str(run.path),
            index=index,
            weights=hashlib.sha256(run.member(index).model.read_bytes()).hexdigest(),
            name=f"linear_{index}",
            parameters=1930,
            mflops=0.004,
            temperature=fields.pop(f"temperature_{index}", 1.0),
        )
        for index in order
    ]
    classes = tuple(str(digit) for digit in range(10))
    selection = Selection(members=tuple(members), **{"head": "geometric_mean", "classes": classes, **fields})
    selection.write(file)
    return file


def test_a_run_answers_with_all_members_under_its_head(trained, digits):
    run, recipe = trained
    images, log_probs = digits
    predictor = CommitteePredictor.from_run(run, recipe)
    answers = predictor.predict(images)
    assert (predictor.transforms, predictor.classes) == ((resize(32),), tuple("0123456789"))
    wanted = geometric(log_probs)
    np.testing.assert_allclose(answers["probabilities"], wanted, atol=1e-5)
    np.testing.assert_allclose(answers["confidence"], wanted.max(axis=1), atol=1e-5)
    agree = (log_probs.argmax(axis=2) == wanted.argmax(axis=1)[:, None]).mean(axis=1)
    np.testing.assert_allclose(answers["agreement"], agree, atol=1e-6)
    assert answers["members_used"].tolist() == [3] * 40


def test_a_run_with_a_weighted_head_weighs_its_uncertainty_too(trained, digits):
    run, recipe = trained
    images, log_probs = digits
    weights = [0.2, 0.7, 0.1]
    answers = CommitteePredictor.from_run(
        run, dataclasses.replace(recipe, head=WeightedGeometricMean(weights))
    ).predict(images)
    np.testing.assert_allclose(answers["probabilities"], geometric(log_probs, weights), atol=1e-5)
    mean = np.average(np.exp(log_probs), axis=1, weights=weights)
    expected = np.average(-(np.exp(log_probs) * log_probs).sum(axis=2), axis=1, weights=weights)
    np.testing.assert_allclose(answers["mutual_information"], -(mean * np.log(mean)).sum(axis=1) - expected, atol=1e-5)


def test_a_chosen_committee_has_its_order_temperatures_and_weights(trained, digits, tmp_path):
    file = choose(
        trained[0], tmp_path / "s.json", head="weighted_geometric_mean", weights=(0.6, 0.3, 0.1), temperature_0=2.0
    )
    log_probs = digits[1][:, [2, 0, 1]] / np.array([1, 2, 1])[:, None]
    log_probs -= np.logaddexp.reduce(log_probs, axis=2, keepdims=True)
    answers = CommitteePredictor.from_selection(file).predict(digits[0])
    np.testing.assert_allclose(answers["probabilities"], geometric(log_probs, [0.6, 0.3, 0.1]), atol=1e-5)


def test_later_members_of_a_cascade_run_only_where_earlier_ones_are_not_confident(trained, digits, tmp_path):
    images, log_probs = digits
    log_probs = log_probs[:, [2, 0, 1]]
    stages = (Stage(members=1, threshold=0.35), Stage(members=2, threshold=0.4), Stage(members=3, threshold=None))
    predictor = CommitteePredictor.from_selection(choose(trained[0], tmp_path / "s.json", stages=stages))
    answers = predictor.predict(images)
    used = []
    for row in range(40):
        probabilities = [geometric(log_probs[row : row + 1, :count])[0] for count in (1, 2, 3)]
        count = next((k for k, least in ((1, 0.35), (2, 0.4)) if probabilities[k - 1].max() >= least), 3)
        used.append(count)
        np.testing.assert_allclose(answers["probabilities"][row], probabilities[count - 1], atol=1e-5)
    assert answers["members_used"].tolist() == used
    assert set(used) == {1, 2, 3}


def test_a_member_that_changed_since_the_selection_is_rejected(trained, tmp_path):
    file = choose(trained[0], tmp_path / "s.json")
    selection = Selection.read(file)
    first, *others = selection.members
    members = (dataclasses.replace(first, weights="0" * 64), *others)
    dataclasses.replace(selection, members=members).write(file)
    with pytest.raises(
        VerificationError, match=r"is not the member that was selected \(sha256 [0-9a-f]{12}, not 0{12}\)"
    ):
        CommitteePredictor.from_selection(file)


def linear(shape, name):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)), name=name)


def test_C03_members_of_unknown_size_or_of_gray_images_are_rejected():
    free = keras.Input((None, None, 3))
    free = keras.Model(free, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(free)))
    for model, words in ((free, "NonexNonex3"), (linear((4, 4, 1), "gray"), "4x4x1")):
        with pytest.raises(
            RecipeError, match=f"a known size with three channels to predict image files. Received: {words}"
        ):
            CommitteePredictor([model], [1], WeightedGeometricMean([1.0]), None, "margin", "ab")


def test_each_member_receives_images_through_the_transform_of_its_run():
    models = [linear((4, 4, 3), "small"), linear((6, 5, 3), "large"), linear((6, 5, 3), "cropped")]
    recorded = [None, None, {"size": [6, 5], "padding": 2, "method": "bilinear"}]
    predictor = CommitteePredictor(
        models, [1, 1, 1], WeightedGeometricMean([0.2, 0.7, 0.1]), None, "margin", "ab", recorded
    )
    assert predictor.transforms == (resize(4), resize((6, 5)), center_crop((6, 5), padding=2))
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    seen = {transform: transform.apply(image).numpy()[None] for transform in predictor.transforms}
    logits = [
        model(seen[transform].astype("float32")) for model, transform in zip(models, predictor.transforms, strict=True)
    ]
    expected = keras.ops.softmax(sum(weight * each for weight, each in zip([0.2, 0.7, 0.1], logits, strict=True)))
    np.testing.assert_allclose(predictor.predict(seen)["probabilities"], expected, atol=1e-5)


def test_C07_a_member_with_outputs_that_are_not_finite_is_rejected():
    bad = linear((4, 4, 3), "bad")
    bad.set_weights([np.full_like(weight, np.nan) for weight in bad.get_weights()])
    models = [linear((4, 4, 3), "good"), bad]
    predictor = CommitteePredictor(models, [1, 1], WeightedGeometricMean([0.2, 0.8]), None, "margin", "ab")
    with pytest.raises(
        VerificationError,
        match=r"member 1 must output 2 finite numbers for each image\. Received: 2 numbers, 0% of them finite",
    ):
        predictor.predict(np.zeros((2, 4, 4, 3), np.uint8))


def test_C05_an_incomplete_committee_predicts_only_on_request(trained):
    run, recipe = trained
    larger = dataclasses.replace(recipe, members=4)
    with pytest.raises(IncompleteError, match=r"has 3 of 4 members[\s\S]*--allow-incomplete 3"):
        CommitteePredictor.from_run(run, larger)
    assert CommitteePredictor.from_run(run, larger, min_members=3).transforms == (resize(32),)


@pytest.fixture(scope="module")
def pictures(digits, tmp_path_factory):
    """Two digits as files, one of them twice as large, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(digits[0][0]).save(folder / "a.png")
    Image.fromarray(digits[0][1]).resize((64, 64)).save(folder / "b.jpg")
    (folder / "bad.png").write_bytes(b"text")
    return folder


def test_predict_as_json_answers_the_good_names_the_bad_and_exits_with_3(trained, pictures, digits, capsys):
    images = [str(pictures / name) for name in ("a.png", "bad.png", "b.jpg")]
    assert cli.main(["predict", str(trained[0].path), *images, "--top", "2", "--json"]) == 3
    out, err = capsys.readouterr()
    document = json.loads(out)
    first, second = document["predictions"]
    wanted = geometric(digits[1])[0]
    assert (first["image"], second["image"]) == (images[0], images[2])
    assert [best["class"] for best in first["top"]] == [str(k) for k in np.argsort(-wanted)[:2]]
    assert first["top"][0]["probability"] == pytest.approx(wanted.max(), abs=1e-5)
    assert list(first) == ["image", "top", "confidence", "members_used", "agreement", "mutual_information"]
    assert document["unreadable"] == [{"image": images[1], "problem": f"{images[1]}: {NO_IMAGE}"}]
    assert "error: 1 of 3 images cannot be read; the others are classified:\n" in err


def test_predict_prints_classes_confidence_members_and_agreement(trained, pictures, tmp_path, capsys):
    stages = (Stage(members=1, threshold=0.01), Stage(members=3, threshold=None))
    file = choose(trained[0], tmp_path / "s.json", stages=stages, confidence="margin")
    options = ["--selection", str(file), "--top", "1"]
    assert cli.main(["predict", str(trained[0].path), str(pictures / "a.png"), *options]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "a.png" in line)
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[2].endswith("%")
    assert cells[4:6] == ["1", "100%"]


def test_predict_prints_the_promised_outputs_of_a_selection(trained, pictures, tmp_path, capsys):
    promise = Promise(
        split="validation",
        examples=9,
        chosen_on=9,
        sets=SetRule(coverage=0.9, method="aps", thresholds=(0.5,)),
        acceptance=AcceptanceRule(max_risk=0.1, certainty=0.95, threshold=0.999),
    )
    file, csv_file = choose(trained[0], tmp_path / "s.json", promise=promise), tmp_path / "rows.csv"
    command = ["predict", str(trained[0].path), str(pictures / "a.png"), "--selection", str(file), "--top", "10"]
    assert cli.main([*command, "--json"]) == 0
    [prediction] = json.loads(capsys.readouterr().out)["predictions"]
    expected, before = [], 0.0
    for top in prediction["top"]:
        expected += [top["class"]] * (1 - before >= 0.5)
        before += top["probability"]
    assert (prediction["prediction_set"], prediction["accepted"]) == (expected, False)
    assert cli.main([*command, "--csv", str(csv_file)]) == 0
    [row] = csv.DictReader(csv_file.read_text().splitlines())
    assert (row["prediction_set"].split(), row["accepted"]) == (expected, "False")
    assert cli.main(command) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "a.png" in line)
    assert [cell.strip() for cell in row.split("│")][6:8] == [", ".join(expected), "no"]


def test_the_images_of_a_folder_become_the_rows_of_a_csv_file(trained, pictures, digits, tmp_path, capsys, monkeypatch):
    file, run = tmp_path / "out.csv", str(trained[0].path)
    monkeypatch.setattr(sys.modules["keras_committee.api.predictions"], "_MAX_IMAGES_READ", 2)
    assert cli.main(["predict", run, str(pictures), str(pictures / "a.png"), "--top", "2", "--csv", str(file)]) == 3
    assert capsys.readouterr().out == f"Classified 2 of 3 images. Wrote {file}.\n"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["image"] for row in rows] == [str(pictures / name) for name in ("a.png", "b.jpg", "bad.png")]
    probabilities = geometric(digits[1])[0]
    first, second = np.argsort(-probabilities)[:2]
    assert (rows[0]["class"], rows[0]["class_2"]) == (str(first), str(second))
    assert float(rows[0]["probability_2"]) == pytest.approx(probabilities[second], abs=1e-5)
    assert (rows[0]["members_used"], rows[0]["problem"]) == ("3", "")
    assert (rows[2]["class"], rows[2]["problem"]) == ("", f"{pictures}/bad.png: {NO_IMAGE}")
    assert cli.main(["predict", run, str(pictures), "--csv", str(file)]) == 2
    assert f"{file} already exists. No image was classified." in capsys.readouterr().err


def test_a_folder_without_images_is_refused(trained, tmp_path, capsys):
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").touch()
    assert cli.main(["predict", str(trained[0].path), str(tmp_path)]) == 3
    assert f"{tmp_path} contains no images. No image was classified." in capsys.readouterr().err


def test_where_no_picture_can_be_read_nobody_is_asked(trained, pictures, capsys):
    assert cli.main(["predict", str(trained[0].path), str(pictures / "bad.png"), "none.jpg"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 2 images" in err
    assert "none.jpg: cannot be read (No such file or directory)" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict", "a.png"], 2, "expected a run or model folder, then at least one image"),
        (["predict", "runs/none", "a.png"], 4, "runs/none is not a run folder"),
        (
            ["predict", "a.png", "--url", "http://x:1/m", "--selection", "s"],
            2,
            "--selection cannot be combined with --url or",
        ),
        (["predict", "a.png", "--url", "ftp://x/m"], 2, "a server URL must be grpc://host:port or http://host:port"),
    ],
)
def test_a_mistaken_command_is_told(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == code
    assert message in capsys.readouterr().err


def test_a_selection_of_other_runs_is_refused(trained, new_run, tmp_path, pictures, capsys):
    other, _ = new_run(["members=1"])
    file = choose(trained[0], tmp_path / "s.json")
    assert cli.main(["predict", str(other.path), str(pictures / "a.png"), "--selection", str(file)]) == 2
    assert f"selects no member of {other.path}. Its runs: {trained[0].path}" in capsys.readouterr().err
