"""What a run does when it is given again: goes on, says what changed, and never starts over by itself."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee.errors import DivergedError, IncompleteError, Interrupted, RecipeError, ResourceError, RunError
from keras_committee.training import TrainingOptions
from keras_committee.training.signals import GracefulShutdown
from keras_committee.training.trainer import check_fit

KNOBS = ["members=2", "epochs=2"]
STEPS = 19  # of an epoch


@pytest.fixture(scope="module")
def stopped_once(run_at, tmp_path_factory, stop_at):
    """The folder of a run that was stopped in the first epoch of member 0."""
    run, train = run_at(tmp_path_factory.mktemp("stopped") / "run", KNOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_committee.training.fit.GracefulShutdown", lambda: stop_at(9))
        with pytest.raises(Interrupted, match=r"SIGTERM: 0 of 2 members are finished, the others saved\."):
            train()
    return run.path


@pytest.fixture
def stopped(stopped_once, new_run):
    """A copy of that run, and the function that trains it."""
    run, train = new_run(KNOBS)
    shutil.copytree(stopped_once, run.path, dirs_exist_ok=True)
    return run, train


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


def steps(run, index):
    return sorted(int(path.name[5:]) for path in run.member(index).state.glob("step-*"))


def test_A04_a_stopped_run_is_saved_at_its_very_step_and_goes_on_there(stopped, capsys):
    run, train = stopped
    assert steps(run, 0) == [0, 9]
    assert events(run, "training_stopped")[0]["signal"] == "SIGTERM"
    train()
    assert "resuming member 0 at epoch 1 step 9" in capsys.readouterr().err
    assert [event["step"] for event in events(run, "member_resumed")] == [9]
    assert run.finished_members() == [0, 1]


def test_A03_what_is_finished_is_not_trained_again(new_run, monkeypatch):
    run, train = new_run(KNOBS)
    looks = []
    monkeypatch.setattr(GracefulShutdown, "check", lambda stop: looks.append(1))
    train()
    many = len(looks)
    (run.member(1).path / "state" / "step-000000007").mkdir(parents=True)  # a kill between the model and its clean-up
    train()
    assert len(looks) == many
    assert not run.member(1).state.exists()


def test_A08_A09_a_member_that_diverges_goes_back_three_times_and_keeps_its_last_good_state(new_run, capsys):
    run, train = new_run(["members=1", "learning_rate=1e38"])
    with pytest.raises(DivergedError, match=r"diverged at step 2 .*after 3 returns[\s\S]*step 0, is kept"):
        train()
    assert len(events(run, "rolled_back")) == 3
    assert steps(run, 0) == [0]
    weights = np.load(run.member(0).state / "step-000000000" / "arrays.npz")
    assert all(np.isfinite(weights[name]).all() for name in weights.files if name.startswith("model/"))


def test_A09_after_a_rollback_training_goes_on_with_other_batches(new_run, monkeypatch):
    run, train = new_run(["members=1", "epochs=2"])
    poison = iter([False] * 20 + [True] + [False] * 100)
    whole = keras.losses.SparseCategoricalCrossentropy.call
    seeds = []
    stream = type(train.args[1].data.load()).stream

    def noted(splits, seed, *args, **kwargs):
        seeds.append(seed)
        return stream(splits, seed, *args, **kwargs)

    def call(loss, *args):
        factor = tf.py_function(lambda: np.nan if next(poison) else 1.0, [], tf.float32)
        return whole(loss, *args) * tf.reshape(factor, ())

    monkeypatch.setattr(keras.losses.SparseCategoricalCrossentropy, "call", call)
    monkeypatch.setattr("keras_committee.data.Splits.stream", noted)
    train()
    assert run.finished_members() == [0]
    assert [event["step"] for event in events(run, "rolled_back")] == [STEPS]
    assert len(set(seeds)) == 2


def test_A11_a_device_that_is_out_of_memory_says_what_to_make_smaller(new_run, monkeypatch):
    run, train = new_run(["members=1"])

    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[64,32]")

    monkeypatch.setattr("keras_committee.training.trainer._Trainer.train_epoch", exhausted)
    with pytest.raises(ResourceError, match=r"member 0 does not fit into the memory of its device: OOM .*\[64,32\]"):
        train()
    assert steps(run, 0) == [0]


def test_A13_a_damaged_checkpoint_is_told_and_the_one_before_it_used(stopped, capsys):
    run, train = stopped
    file = run.member(0).state / "step-000000009" / "arrays.npz"
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    train(members=[0])
    told = capsys.readouterr().err
    assert "step-000000009 fails its checksum: arrays.npz" in told
    assert "resuming member 0 at epoch 1 step 0" in told


def test_A14_without_a_usable_checkpoint_nothing_starts_over_by_itself(stopped):
    run, train = stopped
    for step in (0, 9):
        (run.member(0).state / f"step-{step:09d}" / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"no usable checkpoint in [\s\S]*--restart"):
        train()
    train(restart=True)
    assert run.finished_members() == [0, 1]
    assert events(run, "member_resumed") == []


def test_A17_a_state_of_another_network_is_refused(stopped, new_run):
    run, _ = stopped
    _, train = new_run([*KNOBS, "seed=8"], name="other")
    recipe = train.args[1]
    wide = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    changed = train.func
    object.__setattr__(recipe, "member", lambda index: wide)
    with pytest.raises(RunError, match=r"the saved state is that of another model: variable 0 has shape \(192, 10\)"):
        changed(run, recipe)
    assert steps(run, 0) == [0, 9]


def test_A18_a_state_of_another_format_is_refused(stopped, monkeypatch):
    _, train = stopped
    monkeypatch.setattr("keras_committee.training.checkpoint.FORMAT", 99)
    with pytest.raises(RunError, match="has format 1; this version of keras-committee reads format 99"):
        train()


def test_A19_another_number_of_devices_is_told_and_goes_on(stopped, capsys):
    run, train = stopped
    train(strategy="mirrored", members=[0])
    told = capsys.readouterr().err
    assert "resuming member 0 at epoch 1 step 9; 1 -> 2 replicas: continues, not bit-identical" in told
    assert run.finished_members() == [0]


def test_B09_data_that_changed_since_are_refused(stopped, monkeypatch):
    run, train = stopped
    monkeypatch.setattr("keras_committee.data.splits.Split.fingerprint", lambda split: "other")
    with pytest.raises(RunError, match=r"the training data of .* are not those that member 0 began with"):
        train()
    assert steps(run, 0) == [0, 9]


def test_only_the_members_asked_for_are_trained(new_run):
    run, train = new_run(["members=3", "epochs=1"])
    train(members=[2, 0])
    assert run.finished_members() == [0, 2]
    with pytest.raises(RecipeError, match="no member 3: the recipe has members 0 to 2; its `members` says how many"):
        train(members=[3])


def test_C08_a_member_that_gives_probabilities_is_refused(trained):
    _, recipe = trained
    image = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(image)
    ends = [
        keras.layers.Dense(10, activation="softmax")(flat),
        keras.layers.Softmax()(keras.layers.Dense(10)(flat)),
        keras.layers.Activation("softmax")(keras.layers.Dense(10)(flat)),
    ]
    splits = recipe.data.load()
    for end in ends:
        with pytest.raises(RecipeError, match=r"member 4 .* ends with a softmax\. A member returns logits"):
            check_fit(keras.Model(image, end), splits, 4)


def test_a_checkpoint_every_step_changes_nothing(new_run):
    seldom, train_seldom = new_run(["members=1"], name="seldom")
    often, train_often = new_run(["members=1"], name="often")
    train_seldom()
    train_often(settings=TrainingOptions(checkpoint_seconds=0.0))
    assert len(events(often, "member_saved")) == 2 * STEPS
    rows = [[json.loads(line) for line in run.member(0).history.read_text().splitlines()] for run in (seldom, often)]
    for one, other in zip(*rows, strict=True):
        assert one | {"images_per_second": 0} == other | {"images_per_second": 0}


def test_a_member_that_another_process_trains_is_left_alone(new_run):
    run, train = new_run(["members=1"])
    with run.member(0).lock(), pytest.raises(RunError, match=r"member 0 of .* is in use by pid \d+ on host"):
        train()
    assert run.finished_members() == []


def test_what_failed_is_told_with_what_is_finished(new_run, monkeypatch):
    _, train = new_run(["members=2", "epochs=1"])
    recipe = train.args[1]
    rates = iter([0.05, 1e38])
    object.__setattr__(recipe, "optimizer", lambda steps: keras.optimizers.SGD(next(rates)))
    with pytest.raises(IncompleteError, match=r"1 of 2 members in .* are finished; failed:\n  member 1: member 1 div"):
        train()
