"""Chains of members: each continues from the weights of the one before it, in order, and never from other weights."""

import dataclasses
import functools
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import Recipe, data, schedules
from keras_committee.errors import IncompleteError, RecipeError, RunError
from keras_committee.member_dir import MemberDir
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training import TrainingOptions, train_committee
from keras_committee.training.devices import make_strategy
from keras_committee.training.trainer import train_member
from keras_committee.training_run import check_chains, num_parallel, startable_members

FAULTY = pathlib.Path(__file__).parents[1] / "recipes" / "faulty.py"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(index):
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 255)(image)))
    return keras.Model(image, keras.layers.Dense(10, dtype="float32")(x))


def optimizer(steps):
    return keras.optimizers.SGD(schedules.cosine(steps, 0.5), momentum=0.9)


def recipe(**options):
    defaults = {"data": data.digits(64), "member": linear, "members": 3, "snapshots": 2, "optimizer": optimizer}
    return Recipe(**{**defaults, "epochs": 2, "loss": LOSS, "seed": 5, "precision": "float32", **options})


@pytest.fixture(scope="module")
def digits():
    splits = data.digits(64).load()
    return dataclasses.replace(splits, train=splits.train.subset(np.arange(200)))


def train(made, digits, folder, index, shutdown=None):
    """Train one member, and return its weights, or None if it was stopped."""
    member_dir, strategy = MemberDir(folder, index), make_strategy("single", 64)
    reporter = type("Silent", (), {"__getattr__": lambda self, name: lambda *args, **fields: None})()
    try:
        train_member(
            made, index, digits, member_dir, strategy, reporter, shutdown or GracefulShutdown(), TrainingOptions()
        )
    except TrainingStopped:
        return None
    return keras.saving.load_model(member_dir.model, compile=False).get_weights()


@pytest.fixture(scope="module")
def chains(digits, tmp_path_factory):
    """The folder of a chain of two members, and one of one member, and their weights."""
    folder = tmp_path_factory.mktemp("chains")
    return folder, [train(recipe(), digits, folder, index) for index in range(3)]


def test_each_member_continues_from_the_weights_of_the_one_before_with_the_schedule_restarted(digits, chains):
    """The oracle is a plain loop over the same batches, written with Keras only."""
    _, trained = chains
    steps = 2 * digits.steps_per_epoch
    for index, start in ((0, None), (1, trained[0]), (2, None)):
        keras.utils.set_random_seed(5 + index)
        model, sgd = linear(index), optimizer(steps)
        if start is not None:
            model.set_weights(start)
        for images, labels in digits.stream(5 + index, 0, steps):
            with tf.GradientTape() as tape:
                loss = LOSS(labels, model(images, training=True))
            sgd.apply(tape.gradient(loss, [w.value for w in model.trainable_variables]), model.trainable_variables)
        for weight, expected in zip(trained[index], model.get_weights(), strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


def test_a_stopped_member_does_not_resume_after_a_change_of_the_weights_it_started_from(
    digits, chains, stop_at, tmp_path
):
    folder, trained = chains
    for index, source in ((0, 0), (1, 2)):  # two other weights for member 0
        shutil.copytree(MemberDir(folder, source).path, MemberDir(tmp_path / str(index), 0).path)
    run = MemberDir(tmp_path / "0", 0).run
    assert train(recipe(), digits, run, 1, stop_at(3)) is None
    kept = MemberDir(run, 0).model.read_bytes()
    shutil.copy(MemberDir(tmp_path / "1", 0).model, MemberDir(run, 0).model)
    with pytest.raises(RunError, match=r"member 1 did not start from the weights that are now in .*00/model\.keras"):
        train(recipe(), digits, run, 1)
    MemberDir(run, 0).model.write_bytes(kept)
    for weight, expected in zip(train(recipe(), digits, run, 1), trained[1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_members_of_a_chain_have_one_architecture(digits, chains):
    def wider(index):
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image)))
        return keras.Model(image, keras.layers.Dense(10, dtype="float32")(x))

    with pytest.raises(RecipeError, match=r"Recipe\(snapshots=\.\.\.\): member 1 .* whose layers have other shapes\."):
        train(recipe(member=wider), digits, chains[0], 1)


def test_a_member_can_start_once_the_one_before_it_is_finished():
    made = recipe(members=8, snapshots=3)
    assert [made.predecessor(index) for index in range(8)] == [None, 0, 1, None, 3, 4, None, 6]
    assert startable_members(made, [], range(8)) == [0, 3, 6]
    assert startable_members(made, [0, 3], [1, 2, 4, 6]) == [1, 4, 6]
    assert num_parallel(made, range(8)) == 3
    assert num_parallel(made, [1, 2, 7]) == 2
    assert startable_members(recipe(members=4, snapshots=1), [], range(4)) == [0, 1, 2, 3]


def make_folder(path, finished, begun=()):
    run = Run(path)
    for index in (*finished, *begun):
        run.member(index).path.mkdir(parents=True)
    for index in finished:
        run.member(index).model.touch()
    for index in begun:
        run.member(index).state.mkdir()
    return run


def test_a_member_whose_predecessor_is_not_trained_is_refused(tmp_path):
    run = make_folder(tmp_path, finished=[0])
    made = recipe(members=6, snapshots=3)
    check_chains(run, made, [1, 2, 3])
    with pytest.raises(
        RecipeError, match=r"member 2 starts from the weights of member 1, which is not .*\n.*add 1 to --members"
    ):
        check_chains(run, made, [2, 3])


def test_a_member_is_not_trained_again_while_others_have_its_old_weights(tmp_path):
    made = recipe(members=6, snapshots=3)
    run = make_folder(tmp_path / "finished", finished=[1, 2, 3, 4])
    with pytest.raises(RunError, match=r"member 0 is not trained in .*, but member 1, .*, is finished\. No member was"):
        check_chains(run, made, [0, 5], restart=True)
    run = make_folder(tmp_path / "begun", finished=[], begun=[1])
    with pytest.raises(RunError, match=r"but member 1, which started from its weights, is begun\."):
        check_chains(run, made, [0, 1, 2])
    check_chains(run, made, [0, 1, 2], restart=True)


def test_snapshots_have_no_folds():
    with pytest.raises(RecipeError, match=r"Recipe\(resample=\.\.\.\) must be None with `snapshots`: .*: 'kfold'"):
        recipe(resample="kfold")


def make_run(path, overrides):
    file = RecipeFile.read(FAULTY)
    parameters = file.resolve(["members=4", "snapshots=2", "epochs=1", *overrides])
    run = Run.create(path, file, parameters, command="test")
    return run, functools.partial(train_committee, run, file.build(parameters))


def assert_second_chain_only(run):
    started = [event["member"] for event in run.events() if event["event"] == "member_started"]
    assert sorted(set(started)) == [0, 2, 3]
    finished = [event["member"] for event in run.events() if event["event"] == "member_finished"]
    assert finished == [2, 3]


MESSAGE = (
    r"2 of 4 members finished .*; failed:\n  member 0: .* diverged .*\n"
    r"  not trained, as they start from the weights of these: member 1\nTo retry"
)


def test_the_chain_of_a_member_that_fails_ends_and_the_other_goes_on(tmp_path):
    run, train = make_run(tmp_path / "run", ["diverging=0"])
    with pytest.raises(IncompleteError, match=MESSAGE):
        train(options=TrainingOptions(max_rollbacks=0))
    assert_second_chain_only(run)


@pytest.mark.slow
def test_workers_train_chains_in_order_side_by_side(forked_workers, tmp_path):
    run, train = make_run(tmp_path / "run", ["diverging=0"])
    with pytest.raises(IncompleteError, match=MESSAGE):
        train(workers=4, options=TrainingOptions(max_rollbacks=0))
    assert_second_chain_only(run)
    assert next(event["workers"] for event in run.events() if event["event"] == "training_started") == 2
