"""A student's teacher: its answers are the committee's, and one that does not fit is refused before a run is made."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from keras_committee import Teacher
from keras_committee.cli import main
from keras_committee.errors import RecipeError
from keras_committee.export import verify
from keras_committee.export.export import export
from keras_committee.files import file_hash, read_record
from keras_committee.models.loading import load_member
from keras_committee.run import Run
from keras_committee.selection import SelectedMember, Selection, Stage
from keras_committee.training.devices import make_strategy
from keras_committee.training.distillation import check_teacher, load_distillation
from keras_committee.training.throughput_worker import random_splits

TAUGHT = pathlib.Path(__file__).parents[1] / "recipes" / "taught.py"


@pytest.fixture(scope="module")
def digits(trained):
    return trained[1].data.load()


def student(recipe, path, **options):
    """The recipe with a teacher."""
    return dataclasses.replace(recipe, teacher=Teacher(str(path), **options))


def log_answers(run, images):
    """The mean log-probabilities of the members, one after another, float64 `(examples, classes)`."""
    members = [load_member(run.member(index).model) for index in run.finished_members()]
    return np.mean(
        [log_softmax(model.predict(images, verbose=0).astype("float64"), axis=1) for model in members], axis=0
    )


def soft_targets(path, digits, images, strategy="single"):
    distillation = load_distillation(Teacher(str(path), temperature=3.0), digits, make_strategy(strategy, 8))
    return keras.ops.convert_to_numpy(distillation.soft_targets(images))


@pytest.fixture(scope="module")
def images(digits):
    rng = np.random.default_rng(2)
    return rng.uniform(0, 255, (7, *digits.train.image_shape)).astype("float32")


def test_the_answers_of_a_run_are_those_of_its_committee_softened(trained, digits, images):
    expected = softmax(log_answers(trained[0], images) / 3.0, axis=1)
    np.testing.assert_allclose(soft_targets(trained[0].path, digits, images), expected, atol=1e-5)


def test_the_answers_of_a_file_are_those_of_its_network_softened(trained, digits, images):
    file = trained[0].member(1).model
    expected = softmax(load_member(file).predict(images, verbose=0) / 3.0, axis=1)
    np.testing.assert_allclose(soft_targets(file, digits, images), expected, atol=1e-5)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """An export of a cascade that would stop after its first member. It is verified in this process."""

    def verify_here(command, **_):
        result = verify.verify(*map(pathlib.Path, command[-2:]))
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    run = trained[0]
    members = tuple(
        SelectedMember(
            run=".", index=index, weights=file_hash(run.member(index).model), name="", parameters=1, mflops=1.0
        )
        for index in run.finished_members()
    )
    stages = (Stage(members=1, threshold=0.0), Stage(members=len(members), threshold=None))
    selection = Selection(members=members, head="geometric_mean", classes=run.data_info(0).classes, stages=stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", types.SimpleNamespace(run=verify_here))
        return export(run.path, tmp_path_factory.mktemp("saved_models") / "tiny", selection)


@pytest.mark.slow
def test_the_answers_of_an_export_are_those_of_all_its_members(trained, digits, images, exported, tmp_path):
    expected = softmax(log_answers(trained[0], images) / 3.0, axis=1)
    np.testing.assert_allclose(soft_targets(exported.parent, digits, images), expected, atol=1e-5)
    mirrored = make_strategy("mirrored", 8)
    distillation = load_distillation(Teacher(str(exported), temperature=3.0), digits, mirrored)
    on_replicas = tf.function(lambda: mirrored.run(distillation.soft_targets, args=(images,)))()
    for answers in mirrored.experimental_local_results(on_replicas):
        np.testing.assert_allclose(answers, expected, atol=1e-5)

    recipe, run = student(trained[1], exported), Run(tmp_path / "student")
    record = check_teacher(recipe, run, digits)
    assert record["path"] == str(exported.resolve())
    shutil.copytree(exported, tmp_path / "tiny" / "2")
    assert check_teacher(student(recipe, tmp_path / "tiny"), run, digits) == {
        "path": str(tmp_path / "tiny" / "2"),
        "weights": record["weights"],
    }
    (exported / "committee.json").rename(tmp_path / "committee.json")
    with pytest.raises(RecipeError, match=r"was not exported by keras-committee: it has no committee\.json"):
        check_teacher(recipe, run, digits)


def refusal(recipe, teacher, digits, tmp_path, run="student"):
    with pytest.raises(RecipeError) as caught:
        check_teacher(student(recipe, teacher), Run(tmp_path / run), digits)
    assert list(tmp_path.glob("student*")) == []
    assert str(caught.value).startswith("Recipe(teacher=...): ")
    return str(caught.value)


def test_a_teacher_that_is_not_there_or_is_none_is_refused(trained, digits, tmp_path):
    run, recipe = trained
    assert f"{tmp_path}/none does not exist." in refusal(recipe, tmp_path / "none", digits, tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.path, tmp_path / "runs" / "tiny")
    message = refusal(recipe, tmp_path / "runs", digits, tmp_path)
    assert f"It is a folder of runs. Did you mean '{tmp_path}/runs/tiny'?" in message
    (tmp_path / "weights.h5").write_bytes(b"")
    assert "A teacher is a run folder" in refusal(recipe, tmp_path / "weights.h5", digits, tmp_path)
    (tmp_path / "cut.keras").write_bytes(run.member(0).model.read_bytes()[:5000])
    assert "is not a complete .keras archive" in refusal(recipe, tmp_path / "cut.keras", digits, tmp_path)


def test_a_teacher_that_is_not_finished_is_refused_with_the_command_that_trains_it(
    trained, copy_of_trained, digits, tmp_path
):
    copy_of_trained(tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "members" / "01")
    message = refusal(trained[1], tmp_path / "tiny", digits, tmp_path)
    assert f"{tmp_path}/tiny has 2 of 3 members; not trained: 1.\n  To train them, run: test" in message


def test_a_teacher_of_other_images_or_classes_is_refused(trained, digits, tmp_path):
    run, recipe = trained
    swapped = dataclasses.replace(digits, classes=(*digits.classes[:3], "9", *digits.classes[4:9], "3"))
    assert "First difference: class 3 is 3 in the teacher, 9 in the data." in refusal(
        recipe, run.path, swapped, tmp_path
    )
    other = dataclasses.replace(random_splits(8, (28, 28, 1), 10, 8), classes=digits.classes)
    message = refusal(recipe, run.member(0).model, other, tmp_path)
    assert "takes images of shape (32, 32, 3); the data of the student has (28, 28, 1)." in message
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Dense(7)(keras.layers.Flatten()(image))).save(tmp_path / "seven.keras")
    message = refusal(recipe, tmp_path / "seven.keras", digits, tmp_path)
    assert "seven.keras has 7 classes; the data of the student has 10." in message


def test_a_run_is_not_its_own_teacher(trained, digits):
    run, recipe = trained
    recipe = dataclasses.replace(recipe, members=4)
    for teacher in (run.path, run.member(0).model):
        with pytest.raises(RecipeError, match="is the run folder of the student itself, or in it"):
            check_teacher(student(recipe, teacher), run, digits)


@pytest.mark.slow
def test_a_student_keeps_its_teacher_wherever_it_is_moved_and_takes_no_other(copy_of_trained, tmp_path, capsys):
    teacher, run = tmp_path / "teacher", Run(tmp_path / "student")
    copy_of_trained(teacher)

    def train(teacher, *options):
        command = ["train", str(TAUGHT), "--run", str(run.path), "--workers", "1", "--set", f"teacher={teacher}"]
        code = main([*command, *options])
        return code, capsys.readouterr().err

    code, errors = train(tmp_path / "none")
    assert (code, run.path.exists()) == (2, False)
    assert "none does not exist" in errors
    assert train(teacher)[0] == 0
    recorded = read_record(run.path / "environment.json")["teacher"]
    assert recorded["path"] == str(teacher)

    # Moved: the old path is missing, the new one is accepted and recorded.
    teacher.rename(tmp_path / "moved")
    code, errors = train(teacher, "--set", "members=2")
    assert (code, run.finished_members()) == (2, [0])
    assert "If it was moved, set its new path." in errors
    assert train(tmp_path / "moved", "--set", "members=2")[0] == 0
    assert run.finished_members() == [0, 1]
    assert read_record(run.path / "environment.json")["teacher"] == recorded | {"path": str(tmp_path / "moved")}

    # Changed: another network in the place of a member.
    members = [Run(tmp_path / "moved").member(index).model for index in (0, 1)]
    shutil.copy(members[1], members[0])
    before = (run.path / "parameters.json").read_bytes()
    code, errors = train(tmp_path / "moved", "--set", "members=3")
    assert (code, run.finished_members()) == (4, [0, 1])
    assert "is not the one that the members of" in errors
    assert f"--run {tmp_path}/student-2" in errors
    assert (run.path / "parameters.json").read_bytes() == before
