"""Trained models from elsewhere become members of a run: what is taken, and what is refused."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from strangers import CLASSES, digits, stranger

from keras_committee.cli import main
from keras_committee.errors import RecipeError
from keras_committee.evaluation.import_models import ModelSource, import_model
from keras_committee.models.loading import load_member
from keras_committee.run import Run

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"
SWAPPED = [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of raw pixels; of pixels in 0..1; a SavedModel of these, with two classes in another order."""
    folder = tmp_path_factory.mktemp("elsewhere")
    stranger(0, scale=1.0).save(folder / "raw.keras")
    stranger(1).save(folder / "unit.keras")
    stranger(2, order=SWAPPED).export(str(folder / "swapped" / "1"), verbose=False)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in SWAPPED))
    return {"raw": folder / "raw.keras", "unit": folder / "unit.keras", "swapped": folder / "swapped" / "1",
            "labels": folder / "labels.txt"}  # fmt: skip


def adopt(run, *words):
    return main(["import", str(TINY), "--run", str(run), *map(str, words)])


@pytest.fixture(scope="module")
def adopted(files, tmp_path_factory):
    """The run of three adopted members."""
    run = tmp_path_factory.mktemp("runs") / "run"
    raw, unit, swapped = files["raw"], files["unit"], files["swapped"]
    scales = ["--input-scaling", "0..1", "--input-scaling", f"{raw}=0..255"]
    assert (
        adopt(
            run, raw, unit, swapped, *scales, "--class-names-file", f"{swapped}={files['labels']}", "--reorder-classes"
        )
        == 0
    )
    return Run.open(run)


def test_members_vote_as_the_models_did_alone(adopted):
    images = next(iter(digits().test.batches(20)))[0].numpy().astype("float32")
    alone = [stranger(0, scale=1.0)(images), stranger(1)(images / 255), stranger(2)(images / 255)]
    members = [load_member(adopted.member(index).model) for index in range(3)]
    for expected, member in zip(alone, members, strict=True):
        np.testing.assert_allclose(keras.ops.softmax(member(images)), expected, atol=1e-4)


def test_the_journal_tells_where_they_came_from(adopted, files):
    events = [event for event in adopted.events() if event["event"] == "adopted"]
    assert [event["member"] for event in events] == [0, 1, 2]
    assert [event["path"] for event in events] == [str(files[name]) for name in ("raw", "unit", "swapped")]
    assert [event["scale"] for event in events] == ["0..255", "0..1", "0..1"]
    assert [event["order"] for event in events] == [*["taken to be those of the data"] * 2, "reordered"]
    assert [event["outputs"] for event in events] == ["softmax removed", "softmax removed", "logits"]
    assert all(len(event["sha256"]) == 64 and event["right"] > 0.85 for event in events)
    assert adopted.trained_classes() == CLASSES


def test_the_ordinary_commands_take_them_and_train_adds_to_them(adopted, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(adopted.path, run)
    assert main(["evaluate", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [member["name"] for member in result["members"]] == ["raw", "unit", "swapped"]
    assert {member["parameters"] for member in result["members"]} == {1930}
    before = [adopted.member(index).model.read_bytes() for index in range(3)]
    assert main(["train", str(TINY), "--run", str(run), "--set", "members=4"]) == 0
    assert [Run(run).member(index).model.read_bytes() for index in range(3)] == before
    assert Run(run).finished_members() == [0, 1, 2, 3]


@pytest.mark.slow
def test_they_are_selected_reported_and_exported(adopted, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(adopted.path, run)
    assert main(["select", str(run), "--cascade"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "served"), "--selection", f"{run}/selection.json"]) == 0
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()


def test_C04_pixels_that_were_declared_wrongly_are_found_by_the_data(files, tmp_path, capsys):
    assert adopt(tmp_path / "run", files["raw"], "--input-scaling", "0..1") == 8
    said = capsys.readouterr().err
    assert "was declared to take pixels 0..1; of 180 images it then gets" in said
    assert "Say --input-scaling 0..255" in said
    assert not (tmp_path / "run" / "members").exists()


def test_C02_another_order_of_classes_is_found_by_names_or_by_the_data(files, tmp_path, capsys):
    words = [tmp_path / "run", files["swapped"], "--input-scaling", "0..1"]
    assert adopt(*words) == 8
    assert "seems to know the classes in another order: where the data have '0'" in capsys.readouterr().err
    assert adopt(*words, "--class-names-file", files["labels"]) == 2
    said = capsys.readouterr().err
    assert "where one has 0, another has 1" in said
    assert "--reorder-classes" in said


def test_C06_a_model_that_is_given_twice_is_named(files, tmp_path, capsys):
    shutil.copy(files["raw"], tmp_path / "again.keras")
    assert adopt(tmp_path / "run", files["raw"], tmp_path / "again.keras") == 8
    assert "have identical weights" in capsys.readouterr().err


def offer(model, tmp_path, **fields):
    model.save(tmp_path / "model.keras")
    return ModelSource(path=tmp_path / "model.keras", **fields)


def adapted(an_offer, classes=("ant", "bee", "cow"), shape=(8, 6, 3), **asked):
    return import_model(an_offer, classes, shape, **{"reorder_classes": False, "resize": False, **asked})


def small(classes=3, shape=(8, 6, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(classes)(keras.layers.Flatten()(image)))


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (lambda: small(4), {}, r"have different classes(.|\n)*the data +3 classes: ant, bee, cow\n.* 4 classes: unn"),
        (small, {"classes": ("ant", "bee")}, "has 3 outputs; 2 names of classes were given"),
        (small, {"classes": ("ant", "bee", "cat")}, "where one has cow, another has cat"),
    ],
)
def test_C01_other_classes_come_as_a_table(model, fields, words, tmp_path):
    with pytest.raises(RecipeError, match=words) as caught:
        adapted(offer(model(), tmp_path, **fields))
    assert "--reorder-classes" not in str(caught.value)


def test_C03_other_images_are_refused_or_resized_if_asked(tmp_path):
    with pytest.raises(RecipeError, match=r"takes images of 4x6; those of the data are 8x6.\n  .*--resize"):
        adapted(offer(small(shape=(4, 6, 3)), tmp_path))
    assert adapted(offer(small(shape=(4, 6, 3)), tmp_path), resize=True).model.input_shape == (None, 8, 6, 3)
    with pytest.raises(RecipeError, match="takes 1 channels; the images of the data have 3"):
        adapted(offer(small(shape=(8, 6, 1)), tmp_path), resize=True)


def test_a_recipe_without_place_is_told(files, tmp_path, capsys):
    assert adopt(tmp_path / "run", files["raw"], files["unit"], "--set", "members=1") == 2
    assert "no place for 2 more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--input-scaling", "0..2"), "expected 0..255, 0..1"),
        (("--input-scaling", "other.keras=0..1"), "'other.keras=0..1' names none of the models"),
        (("--class-names-file", "absent.txt"), "absent.txt cannot be read"),
    ],
)
def test_what_is_declared_in_a_way_that_cannot_be_read_is_told(words, told, tmp_path, capsys):
    (tmp_path / "model.keras").touch()
    assert adopt(tmp_path / "run", str(tmp_path / "model.keras"), *words) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told_before_a_run_is_begun(files, tmp_path, capsys):
    assert adopt(tmp_path / "run", files["raw"], "absent.keras") == 2
    assert "there is no model absent.keras. Nothing was begun." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
