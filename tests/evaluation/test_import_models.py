"""Models from elsewhere become members of a run; mismatches are rejected."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from external_models import CLASSES, digits, external_model

import keras_committee as kc
from keras_committee.cli import main
from keras_committee.errors import RecipeError
from keras_committee.evaluation.import_models import ModelSource, better_order, better_scale, import_model
from keras_committee.member_dir import DataInfo
from keras_committee.models.loading import load_member
from keras_committee.run import Run

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"
SWAPPED = [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of raw pixels, one of pixels in 0..1, and a SavedModel of these with two classes exchanged."""
    folder = tmp_path_factory.mktemp("elsewhere")
    external_model(0, scale=1.0).save(folder / "raw.keras")
    external_model(1).save(folder / "unit.keras")
    external_model(2, order=SWAPPED).export(str(folder / "swapped" / "1"), verbose=False)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in SWAPPED))
    return {"raw": folder / "raw.keras", "unit": folder / "unit.keras", "swapped": folder / "swapped" / "1",
            "labels": folder / "labels.txt"}  # fmt: skip


def import_into(run, *words):
    return main(["import", str(TINY), "--run", str(run), *map(str, words)])


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    """A run of three imported members."""
    run = tmp_path_factory.mktemp("runs") / "run"
    raw, unit, swapped = files["raw"], files["unit"], files["swapped"]
    scales = ["--input-scaling", "0..1", "--input-scaling", f"{raw}=0..255"]
    assert (
        import_into(
            run, raw, unit, swapped, *scales, "--class-names-file", f"{swapped}={files['labels']}", "--reorder-classes"
        )
        == 0
    )
    return Run.open(run)


def test_the_function_imports_what_the_command_imports(files, imported, tmp_path):
    raw, unit, swapped = files["raw"], files["unit"], files["swapped"]
    result = kc.import_models(
        TINY,
        [raw, unit, swapped],
        run=tmp_path / "run",
        input_scaling={raw: "0..255", unit: "0..1", swapped: "0..1"},
        class_names={swapped: [str(label) for label in SWAPPED]},
        reorder_classes=True,
        epochs=9,
    )
    records = [event for event in imported.events() if event["event"] == "imported"]
    fields = ("member", "sha256", "scale", "outputs", "order", "classes", "right", "examples")
    for record, expected in zip(result["imported"], records, strict=True):
        assert {name: record[name] for name in fields} == {name: expected[name] for name in fields}
    assert result.run.members == [0, 1, 2]
    assert result.run.parameters["epochs"] == 9
    assert f"{tmp_path / 'run'} has 3 members." in repr(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_scaling": "0..2"}, "--input-scaling: expected 0..255, 0..1"),
        (
            {"input_scaling": {"b.keras": "0..1"}},
            "input_scaling has a value for b.keras, which is not one of the models",
        ),
        ({"class_names": "absent.txt"}, "--class-names-file: cannot read absent.txt"),
        ({"epoch": 3}, "has no parameter 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_wrong_arguments_of_the_function_leave_no_run(files, tmp_path, options, message):
    with pytest.raises(RecipeError) as caught:
        kc.import_models(TINY, files["raw"], run=tmp_path / "run", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_members_predict_as_the_original_models(imported):
    images = next(iter(digits().test.batches(20)))[0].numpy().astype("float32")
    alone = [external_model(0, scale=1.0)(images), external_model(1)(images / 255), external_model(2)(images / 255)]
    members = [load_member(imported.member(index).model) for index in range(3)]
    for expected, member in zip(alone, members, strict=True):
        np.testing.assert_allclose(keras.ops.softmax(member(images)), expected, atol=1e-4)


def test_the_journal_records_the_source_of_each_member(imported, files):
    events = [event for event in imported.events() if event["event"] == "imported"]
    assert [event["member"] for event in events] == [0, 1, 2]
    assert [event["path"] for event in events] == [str(files[name]) for name in ("raw", "unit", "swapped")]
    assert [event["scale"] for event in events] == ["0..255", "0..1", "0..1"]
    assert [event["order"] for event in events] == [*["assumed to be that of the data"] * 2, "reordered"]
    assert [event["outputs"] for event in events] == ["softmax removed"] * 3
    assert all(len(event["sha256"]) == 64 and event["right"] > 0.85 for event in events)
    transform = {"size": [32, 32], "padding": None, "method": "bilinear"}  # of the data
    assert [imported.data_info(index) for index in range(3)] == [DataInfo(classes=CLASSES, transform=transform)] * 3


def test_evaluate_and_train_accept_imported_members(imported, files, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(imported.path, run)
    assert main(["evaluate", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [member["name"] for member in result["members"]] == ["raw", "unit", "swapped"]
    assert {member["parameters"] for member in result["members"]} == {1930}
    before = [imported.member(index).model.read_bytes() for index in range(3)]
    shutil.copy(files["raw"], tmp_path / "again.keras")
    record = [(run / name).read_bytes() for name in ("parameters.json", "environment.json", "journal.jsonl")]
    assert import_into(run, tmp_path / "again.keras") == 8  # of the same weights: nothing changes
    assert [(run / name).read_bytes() for name in ("parameters.json", "environment.json", "journal.jsonl")] == record
    assert import_into(run, tmp_path / "again.keras", "--allow-duplicate-weights") == 0
    assert Run(run).parameters()["members"] == 4
    assert main(["train", str(TINY), "--run", str(run), "--set", "members=5"]) == 0
    assert [Run(run).member(index).model.read_bytes() for index in range(3)] == before
    assert Run(run).finished_members() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_imported_members_are_selected_reported_and_exported(imported, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(imported.path, run)
    assert main(["select", str(run), "--cascade"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "served"), "--selection", f"{run}/selection.json"]) == 0
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()


def test_C04_a_wrong_input_scaling_is_detected(files, tmp_path, capsys):
    assert import_into(tmp_path / "run", files["raw"], "--input-scaling", "0..1") == 8
    error = capsys.readouterr().err
    assert "of 180 images correctly with the declared input scaling 0..1, but" in error
    assert "Set --input-scaling 0..255" in error
    assert not (tmp_path / "run" / "members").exists()


def test_C02_another_class_order_is_detected_by_names_or_by_the_data(files, tmp_path, capsys):
    words = [tmp_path / "run", files["swapped"], "--input-scaling", "0..1"]
    assert import_into(*words) == 8
    assert "seems to have its classes in another order: images of '0' are classified as '1'" in capsys.readouterr().err
    assert import_into(*words, "--class-names-file", files["labels"]) == 2
    error = capsys.readouterr().err
    assert "where one has 0, another has 1" in error
    assert "--reorder-classes" in error


def test_C06_a_model_that_is_listed_twice_is_named(files, tmp_path, capsys):
    shutil.copy(files["raw"], tmp_path / "again.keras")
    assert import_into(tmp_path / "run", files["raw"], tmp_path / "again.keras") == 8
    assert "have identical weights" in capsys.readouterr().err


def source_of(model, tmp_path, **fields):
    model.save(tmp_path / "model.keras")
    return ModelSource(path=tmp_path / "model.keras", **fields)


def wrap(source, classes=("ant", "bee", "cow"), shape=(8, 6, 3), **options):
    return import_model(source, classes, shape, **{"reorder_classes": False, "resize": False, **options})


def small(classes=3, shape=(8, 6, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Dense(classes)(keras.layers.Flatten()(image)))


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (lambda: small(4), {}, r"have different classes(.|\n)*the data +3 classes: ant, bee, cow\n.* 4 classes: unn"),
        (small, {"classes": ("ant", "bee")}, r"has 3 outputs\. Received: 2 class names"),
        (small, {"classes": ("ant", "bee", "cat")}, "where one has cow, another has cat"),
    ],
)
def test_C01_other_classes_are_listed_in_a_table(model, fields, words, tmp_path):
    with pytest.raises(RecipeError, match=words) as caught:
        wrap(source_of(model(), tmp_path, **fields))
    assert "--reorder-classes" not in str(caught.value)


def test_one_output_of_two_classes_is_rejected_with_the_remedy(tmp_path):
    with pytest.raises(
        RecipeError, match=r"one output for 2 classes\. A member has one output for each class\.\n .*1 - p"
    ):
        wrap(source_of(small(1), tmp_path), classes=("ant", "bee"))


@pytest.mark.parametrize(
    ("activation", "weights", "words"),
    [
        ("softmax", np.zeros((3072, 10)), "returns the same outputs for each of 180 images"),
        ("sigmoid", np.ones((3072, 10)), "ends with a sigmoid. Such outputs are neither logits nor probabilities"),
    ],
)
def test_a_model_without_logits_is_rejected_before_anything_is_imported(activation, weights, words, tmp_path, capsys):
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.Dense(10, activation, use_bias=False)(keras.layers.Flatten()(image)))
    model.set_weights([weights])
    model.save(tmp_path / "model.keras")
    assert import_into(tmp_path / "run", tmp_path / "model.keras") == 8
    assert words in capsys.readouterr().err
    assert Run(tmp_path / "run").finished_members() == []


def test_C03_other_image_sizes_are_rejected_or_resized(tmp_path):
    with pytest.raises(RecipeError, match=r"takes images of 4x6; the images of the data are 8x6\.\n  Add --resize"):
        wrap(source_of(small(shape=(4, 6, 3)), tmp_path))
    assert wrap(source_of(small(shape=(4, 6, 3)), tmp_path), resize=True).model.input_shape == (None, 8, 6, 3)
    with pytest.raises(RecipeError, match="takes images of 1 channels; the images of the data have 3"):
        wrap(source_of(small(shape=(8, 6, 1)), tmp_path), resize=True)


def test_a_recipe_with_too_few_members_is_rejected(files, tmp_path, capsys):
    assert import_into(tmp_path / "run", files["raw"], files["unit"], "--set", "members=1") == 2
    assert "there is no room for 2 more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input-scaling", "other.keras=0..1"), "must be one of the models. Received: 'other.keras=0..1'"),
        (("--class-names-file", "absent.txt"), "cannot read absent.txt"),
    ],
)
def test_invalid_options_are_reported(options, message, tmp_path, capsys):
    (tmp_path / "model.keras").touch()
    assert import_into(tmp_path / "run", str(tmp_path / "model.keras"), *options) == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_is_reported_before_a_run_is_created(files, tmp_path, capsys):
    assert import_into(tmp_path / "run", files["raw"], "absent.keras") == 2
    assert "no such model: absent.keras. No run was started." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


LABELS = np.arange(200) % 5


def noisy(predicted, fraction, seed=0):
    """`predicted`, a fraction of it replaced by another class."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(predicted)) < fraction
    return np.where(wrong, (predicted + rng.integers(1, 5, len(predicted))) % 5, predicted)


def test_a_scale_with_significantly_higher_accuracy_is_returned():
    predicted = {"0..255": noisy(LABELS, 0.7), "0..1": noisy(LABELS, 0.2, 1), "torch": noisy(LABELS, 0.3, 2)}
    scale, correct, declared = better_scale("0..255", predicted.get, LABELS, list(predicted))
    assert (scale, correct, declared) == (
        "0..1",
        (predicted["0..1"] == LABELS).sum(),
        (predicted["0..255"] == LABELS).sum(),
    )


def test_a_small_difference_may_be_chance():
    predicted = {"0..255": noisy(LABELS, 0.25), "0..1": noisy(LABELS, 0.2, 1)}
    assert better_scale("0..255", predicted.get, LABELS, list(predicted)) is None
    assert better_scale("0..255", predicted.get, LABELS, ["0..255"]) is None


def test_two_exchanged_classes_are_found():
    mixed = np.array([0, 3, 2, 1, 4])
    order, correct, declared = better_order(noisy(mixed[LABELS], 0.1), LABELS, 5)
    assert order == [0, 3, 2, 1, 4]
    assert correct > declared + 30


def test_a_cycle_of_three_classes_is_found():
    output_of_class = np.array([1, 2, 0, 3, 4])  # not its own inverse
    order, correct, declared = better_order(output_of_class[LABELS], LABELS, 5)
    assert (order, correct, declared) == ([1, 2, 0, 3, 4], 100, 40)


def test_the_right_order_and_random_predictions_are_not_reordered():
    assert better_order(noisy(LABELS, 0.2), LABELS, 5) is None
    rng = np.random.default_rng(1)
    assert better_order(rng.integers(0, 100, 256), rng.integers(0, 100, 256), 100) is None
