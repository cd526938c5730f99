"""Training of a stack in a run folder: its files, exact resume, and recipes that it cannot train."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("needs KERAS_BACKEND=jax", allow_module_level=True)

from keras_committee import data
from keras_committee.checkpoints import Checkpoints
from keras_committee.data.resampling import Resampling
from keras_committee.errors import DivergedError, IncompleteError, Interrupted, RecipeError, RunError
from keras_committee.models.loading import load_member
from keras_committee.models.predict import log_probabilities
from keras_committee.run import open_run
from keras_committee.stacked import StackedOptions, train_stacked
from keras_committee.stacked import train as train_module

pytestmark = pytest.mark.jax
SMALL = pathlib.Path(__file__).with_name("small.py")


def train(path, overrides=(), change=None, **arguments):
    """Train a run folder, with `change` applied to its recipe; return the run and the lines for the user."""
    lines = []
    with open_run(SMALL, list(overrides), path=path, command="train small.py --stacked") as (run, recipe):
        recipe = dataclasses.replace(recipe, **change) if change else recipe
        train_stacked(run, recipe, note=lines.append, **arguments)
    return run, lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("stacked") / "run")


def weights(run, index):
    return load_member(run.member(index).model).get_weights()


def assert_equal_members(run, other, indices=range(3)):
    for index in indices:
        for left, right in zip(weights(run, index), weights(other, index), strict=True):
            np.testing.assert_array_equal(left, right)


def test_the_run_folder_is_that_of_every_training(trained):
    run, lines = trained
    assert run.finished_members() == [0, 1, 2]
    assert [line.split("  ")[0] for line in lines] == ["compiling the program of 3 members", "epoch 1/2", "epoch 2/2"]
    for index in range(3):
        rows = run.member(index).read_history()
        assert [row["epoch"] for row in rows] == [1, 2]
        assert rows[0]["realised_depth"] == pytest.approx(1.0)  # survival 1 in the first epoch
        assert rows[1]["step"] == 38
        assert run.member(index).data_info().classes == tuple("0123456789")
        assert run.member(index).read_epoch_predictions(2).shape == (180, 10)
    events = [event["event"] for event in run.events()]
    assert events.count("member_finished") == 3
    assert events[-1] == "training_finished"
    assert not run.stacked_state.exists()


def test_the_stored_predictions_are_those_of_the_saved_members(trained):
    run, _ = trained
    splits = run.recipe().data.load()
    for index in range(3):
        (file,) = (run.path / "predictions" / "test").glob(f"{index:02d}-*.npy")
        images = splits.test.images.numpy()
        expected = log_probabilities(load_member(run.member(index).model), [images])
        np.testing.assert_allclose(np.load(file), expected, atol=1e-4)


def test_a_run_that_was_stopped_after_an_epoch_ends_with_the_same_bits(trained, tmp_path):
    with pytest.raises(Interrupted, match="0 of 3 members finished, the others saved"):
        train(tmp_path / "run", options=StackedOptions(max_seconds=0.0))
    run, lines = train(tmp_path / "run")
    assert lines[0] == "resuming 3 members at epoch 2"
    assert_equal_members(run, trained[0])
    rows, expected = (run.member(1).read_history(), trained[0].member(1).read_history())
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_a_kill_between_two_finished_members_loses_nothing(trained, tmp_path, monkeypatch):
    saved = []

    def save_two(model, file, info):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(file)
        save_member(model, file, info)

    save_member = train_module.save_member
    monkeypatch.setattr(train_module, "save_member", save_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    monkeypatch.undo()
    run, lines = train(tmp_path / "run")
    assert lines == ["resuming 1 member at epoch 3", "compiling the program of 1 member"]
    assert_equal_members(run, trained[0])


def test_small_programs_train_the_same_members(trained, tmp_path):
    run, _ = train(tmp_path / "run", options=StackedOptions(max_members=2))
    for index in range(3):
        for left, right in zip(weights(run, index), weights(trained[0], index), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-4)


def test_a_diverged_member_costs_no_other(tmp_path):
    change = {"learning_rate_scale": lambda index: 1e30 if index == 1 else 1.0, "global_clipnorm": None}
    with pytest.raises(IncompleteError, match="the loss of member 1 is no longer finite; 2 of 3 members are finished"):
        train(tmp_path / "run", change=change)
    alone, _ = train(tmp_path / "alone", change=change, members=[2])
    with open_run(SMALL, path=tmp_path / "run", command="train small.py --stacked") as (run, _):
        assert run.finished_members() == [0, 2]
    for left, right in zip(weights(run, 2), weights(alone, 2), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_if_every_member_diverges_the_error_is_another(tmp_path):
    change = {"learning_rate_scale": lambda index: 1e30, "global_clipnorm": None}
    with pytest.raises(DivergedError, match="the loss of member 0, 1, 2 is no longer finite"):
        train(tmp_path / "run", change=change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_augment", data.mixup(0.2)),
        ("gradient_accumulation_steps", 2),
        ("restore_best", "accuracy"),
        ("initial_weights", "runs/other"),
        ("teacher", "runs/other"),
        ("trainable_layers", lambda epoch: ["*"]),
        ("precision", "mixed_float16"),
    ],
)
def test_what_a_stack_does_not_offer_is_refused(tmp_path, field, value):
    with pytest.raises(RecipeError, match=rf"--stacked does not support Recipe\({field}="):
        train(tmp_path / "run", change={field: value})


def test_each_member_reads_its_own_examples(tmp_path, monkeypatch):
    read = []

    def train_epoch(program, state, images, labels, indices, draws, factors):
        read.append(indices)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module.StackedProgram, "train_epoch", train_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", change={"resample": "kfold"})
    labels, resampling = data.digits(64).load().train.labels, Resampling(method="kfold", members=3, seed=7)
    assert read[0].shape == (3, 13, 64)
    for index in range(3):
        assert set(read[0][index].ravel()) <= set(resampling.rows(labels, index))


def test_another_augmentation_is_refused(tmp_path):
    change = {"data": data.digits(64, augment=data.compose(data.pad_crop_flip(1), data.pad_crop_flip(1)))}
    with pytest.raises(RecipeError, match=r"supports data\.pad_crop_flip\(\) and no augmentation\. Received: Compose"):
        train(tmp_path / "run", change=change)


def test_members_of_two_architectures_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"--stacked needs members of one architecture\. .* Model 1 differs"):
        train(tmp_path / "run", ["odd=1"])


def test_a_member_that_no_command_could_load_is_refused_before_the_first_step(tmp_path):
    def member(index):
        image = keras.Input((32, 32, 3))
        x = keras.layers.Lambda(lambda pixels: pixels / 255.0)(image)
        return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))

    with pytest.raises(RecipeError, match=r"member 0 .* cannot be loaded after training(.|\n)*own-layers\.md"):
        train(tmp_path / "run", change={"member": member})


def test_members_that_were_begun_one_by_one_are_not_overwritten(tmp_path):
    with open_run(SMALL, path=tmp_path / "run", command="train small.py") as (run, _):
        Checkpoints(run.member(1).state).save(5, {"weights": np.zeros(3)}, {})
    with pytest.raises(RunError, match=r"member 1 of .* was begun without --stacked\. Its state is kept"):
        train(tmp_path / "run")
    assert Checkpoints(run.member(1).state).steps() == [5]


def test_other_data_are_refused_on_resume(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", options=StackedOptions(max_seconds=0.0))
    change = {"data": data.digits(64, augment=data.pad_crop_flip(1), validation=200)}
    with pytest.raises(RunError, match="the training data of digits changed since the members began"):
        train(tmp_path / "run", change=change)
