"""Committee training: finished members stay, failures are reported, stopped members resume, logs add up."""

import os
import shutil
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from tensorflow.python.util import tf_stack

from keras_committee import metrics
from keras_committee.data import Splits
from keras_committee.errors import DivergedError, IncompleteError, Interrupted, RecipeError, ResourceError, RunError
from keras_committee.layers import GeometricMean
from keras_committee.training import TrainingOptions, train_committee

OVERRIDES = ["members=2", "epochs=2"]
STEPS = 19  # per epoch


@pytest.fixture(scope="module")
def stopped_once(run_at, tmp_path_factory, stop_at):
    """The folder of a run that was stopped in the first epoch of member 0."""
    run, train = run_at(tmp_path_factory.mktemp("stopped") / "run", OVERRIDES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_committee.training.fit.GracefulShutdown", lambda _: stop_at(9))
        with pytest.raises(Interrupted, match=r"SIGTERM: 0 of 2 members finished, the others saved\."):
            train()
    return run.path


@pytest.fixture
def stopped(stopped_once, new_run):
    """A copy of that run, and the function that trains it."""
    run, train = new_run(OVERRIDES)
    shutil.copytree(stopped_once, run.path, dirs_exist_ok=True)
    return run, train


@pytest.mark.slow
def test_A04_a_stop_within_tensorflows_tracing_is_a_stop_and_no_error(new_run, monkeypatch):
    run, train = new_run(["members=1", "epochs=1"])
    stack, sent = tf_stack._source_mapper_stacks[threading.get_ident()], []
    before, update = list(stack), tf_stack.StackTraceMapper.update

    def send(mapper):
        if not sent and len(stack) > len(before) + 1:  # in an inner `with`, so that the outer one fails
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        update(mapper)

    monkeypatch.setattr(tf_stack.StackTraceMapper, "update", send)
    with pytest.raises(Interrupted, match=r"SIGTERM: 0 of 1 member finished, the others saved\."):
        train(workers=1)
    monkeypatch.undo()
    stack[:] = before
    assert train(workers=1) is None
    assert run.finished_members() == [0]


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


def steps(run, index):
    return sorted(int(path.name[5:]) for path in run.member(index).state.glob("step-*"))


def scalars(path):
    events = EventAccumulator(str(path))
    events.Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def test_A03_only_what_is_missing_is_trained_and_gives_the_same_member_again(new_run):
    run, train = new_run(OVERRIDES)
    train()
    history = run.member(1).history.read_text().split('"images_per_second"')[0]
    run.member(1).model.unlink()
    (run.member(0).state / "step-000000007").mkdir(parents=True)  # a kill between the model and the clean-up
    kept = run.member(0).model.read_bytes()
    train()
    assert run.member(0).model.read_bytes() == kept
    assert not run.member(0).state.exists()
    assert [event["member"] for event in events(run, "member_started")] == [0, 1, 1]
    assert run.member(1).history.read_text().split('"images_per_second"')[0] == history


def test_a_finished_committee_is_left_alone(trained):
    run, recipe = trained
    before = run.events()
    train_committee(run, recipe)
    assert run.events() == before


def test_an_interrupted_member_is_in_the_journal_and_the_error_passes(new_run, monkeypatch):
    run, train = new_run(["members=1"])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_committee.training.trainer.Predictor.__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert run.events()[-1]["event"] == "member_failed"


def test_tensorboard_has_each_member_under_the_keys_of_its_history(trained):
    run, _ = trained
    logged = scalars(run.member(2).tensorboard)
    assert [step for step, _ in logged["validation_accuracy"]] == [1, 2]
    assert logged["learning_rate"] == [(1, pytest.approx(0.05)), (2, pytest.approx(0.05))]


def test_tensorboard_has_the_committee_so_far_after_each_epoch(trained):
    run, recipe = trained
    labels = recipe.data.load().validation.labels
    for size in (1, 2, 3):
        logged = scalars(run.path / "tensorboard" / f"committee_of_{size}")["validation_nll"]
        for epoch, value in logged:
            log_probs = [np.load(run.member(index).epoch_predictions(epoch)) for index in range(size)]
            probabilities = np.asarray(GeometricMean()(np.stack(log_probs, axis=1).astype(np.float32)))
            assert value == pytest.approx(metrics.nll(probabilities, labels), rel=1e-5)
        assert [epoch for epoch, _ in logged] == [1, 2]


def test_two_replicas_train_the_same_committee(new_run):
    one, train_one = new_run(["members=1", "epochs=1"])
    two, train_two = new_run(["members=1", "epochs=1"], name="two")
    train_one(strategy="single")
    train_two(strategy="mirrored")
    log_probs = [np.load(run.member(0).epoch_predictions(1)).astype(np.float32) for run in (one, two)]
    np.testing.assert_allclose(log_probs[0], log_probs[1], atol=0.02)


def test_log_lines_have_the_rate_and_the_time_left(new_run, capsys):
    _, train = new_run(["members=1", "epochs=2"])
    train()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "member 0  epoch 1/2  tracing the training step"
    lines = [line for line in lines if "  loss " in line]
    assert lines[0].startswith("member 0  epoch 1/2  loss ")
    assert "images/s" in lines[0]
    assert lines[-1].endswith("0.0 min left")


def test_E09_training_continues_when_stderr_is_closed(new_run, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("keras_committee.training.reporting.Console.print", gone)
    run, train = new_run(["members=1", "epochs=1"])
    train()
    assert run.finished_members() == [0]


# Runs that were stopped, failed or changed


def test_A04_a_stopped_run_is_saved_and_resumes_at_its_exact_step(stopped, capsys):
    run, train = stopped
    assert steps(run, 0) == [0, 9]
    assert events(run, "training_stopped")[0]["signal"] == "SIGTERM"
    train()
    assert "resuming member 0 at epoch 1 step 9" in capsys.readouterr().err
    assert [event["step"] for event in events(run, "member_resumed")] == [9]
    assert run.finished_members() == [0, 1]


def test_A08_A09_a_member_that_diverges_rolls_back_three_times_and_keeps_its_last_good_state(new_run, capsys):
    run, train = new_run(["members=1", "learning_rate=1e38"])
    with pytest.raises(DivergedError, match=r"diverged at step 2 .*after 3 rollbacks[\s\S]*step 0, is kept"):
        train()
    assert len(events(run, "rolled_back")) == 3
    assert [event["event"] for event in run.events()][-2:] == ["member_failed", "training_failed"]
    assert run.finished_members() == []
    assert steps(run, 0) == [0]
    weights = np.load(run.member(0).state / "step-000000000" / "arrays.npz")
    assert all(np.isfinite(weights[name]).all() for name in weights.files if name.startswith("model/"))


def test_A09_after_a_rollback_training_continues_with_other_batches(new_run, monkeypatch):
    run, train = new_run(["members=1", "epochs=2"])
    poison = iter([False] * 20 + [True] + [False] * 100)
    original = keras.losses.SparseCategoricalCrossentropy.call
    seeds = []
    stream = type(train.args[1].data.load()).stream

    def recorded(splits, seed, *args, **kwargs):
        seeds.append(seed)
        return stream(splits, seed, *args, **kwargs)

    def call(loss, *args):
        factor = tf.py_function(lambda: np.nan if next(poison) else 1.0, [], tf.float32)
        return original(loss, *args) * tf.reshape(factor, ())

    monkeypatch.setattr(keras.losses.SparseCategoricalCrossentropy, "call", call)
    monkeypatch.setattr("keras_committee.data.Splits.stream", recorded)
    train()
    assert run.finished_members() == [0]
    assert [event["step"] for event in events(run, "rolled_back")] == [STEPS]
    assert len(set(seeds)) == 2


def test_each_member_has_batches_of_its_own(new_run, monkeypatch):
    _, train = new_run(["members=2", "epochs=1", "seed=7"])
    seeds, stream = [], Splits.stream

    def recorded(splits, seed, *args, **kwargs):
        seeds.append(seed)
        return stream(splits, seed, *args, **kwargs)

    monkeypatch.setattr(Splits, "stream", recorded)
    train()
    assert seeds == [7, 8]


def test_A11_an_out_of_memory_error_says_what_to_reduce(new_run, monkeypatch):
    run, train = new_run(["members=1"])

    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[64,32]")

    monkeypatch.setattr("keras_committee.training.trainer._Trainer.train_epoch", exhausted)
    with pytest.raises(ResourceError, match=r"member 0 does not fit into the memory of its device: OOM .*\[64,32\]"):
        train()
    assert steps(run, 0) == [0]


def test_A13_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(stopped, capsys):
    run, train = stopped
    file = run.member(0).state / "step-000000009" / "arrays.npz"
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    train(members=[0])
    output = capsys.readouterr().err
    assert "step-000000009 fails its checksum: arrays.npz" in output
    assert "resuming member 0 at epoch 1 step 0" in output


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
    _, train = new_run([*OVERRIDES, "seed=8"], name="other")
    recipe = train.args[1]
    wide = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    changed = train.func
    object.__setattr__(recipe, "member", lambda index: wide)
    with pytest.raises(RunError, match=r"the saved state belongs to another model: variable 0 has shape \(192, 10\)"):
        changed(run, recipe)
    assert steps(run, 0) == [0, 9]


def test_A18_a_state_of_another_format_is_refused(stopped, monkeypatch):
    _, train = stopped
    monkeypatch.setattr("keras_committee.checkpoints.FORMAT", 99)
    with pytest.raises(RunError, match="has format 1; this version of keras-committee reads format 99"):
        train()


def test_A19_another_number_of_devices_is_reported_and_training_resumes(stopped, capsys):
    run, train = stopped
    train(strategy="mirrored", members=[0])
    output = capsys.readouterr().err
    assert "resuming member 0 at epoch 1 step 9; 1 -> 2 replicas: continues, not bit-identical" in output
    assert run.finished_members() == [0]


def test_B09_data_that_changed_since_are_refused(stopped, monkeypatch):
    run, train = stopped
    monkeypatch.setattr("keras_committee.data.splits.Split.fingerprint", lambda split: "other")
    with pytest.raises(RunError, match=r"the training data of .* changed since member 0 began"):
        train()
    assert steps(run, 0) == [0, 9]


def test_only_the_requested_members_are_trained(new_run):
    run, train = new_run(["members=3", "epochs=1"])
    train(members=[2, 0])
    assert run.finished_members() == [0, 2]
    with pytest.raises(RecipeError, match="no member 3: the recipe has members 0 to 2; to train more, set"):
        train(members=[3])


def test_a_checkpoint_every_step_changes_nothing(new_run):
    seldom, train_seldom = new_run(["members=1"], name="seldom")
    often, train_often = new_run(["members=1"], name="often")
    train_seldom()
    train_often(options=TrainingOptions(checkpoint_seconds=0.0))
    assert len(events(often, "member_saved")) == 2 * STEPS
    rows = [run.member(0).read_history() for run in (seldom, often)]
    for one, other in zip(*rows, strict=True):
        assert one | {"images_per_second": 0} == other | {"images_per_second": 0}


def test_a_member_that_another_process_trains_is_left_alone(new_run):
    run, train = new_run(["members=1"])
    with run.member(0).lock(), pytest.raises(RunError, match=r"member 0 of .* is in use by pid \d+ on host"):
        train()
    assert run.finished_members() == []


def test_failed_members_are_reported_with_the_number_of_finished_ones(new_run, monkeypatch):
    _, train = new_run(["members=2", "epochs=1"])
    recipe = train.args[1]
    rates = iter([0.05, 1e38])
    object.__setattr__(recipe, "optimizer", lambda steps: keras.optimizers.SGD(next(rates)))
    with pytest.raises(IncompleteError, match=r"1 of 2 members finished in .*; failed:\n  member 1: member 1 div"):
        train()
