"""A process without a lease saves nothing more, and one whose lease is revoked saves and ends."""

import socket

import pytest
import tensorflow as tf

from keras_committee.errors import RunError
from keras_committee.signals import TrainingStopped
from keras_committee.training.lease import Lease, LeaseShutdown, release
from keras_committee.training.reporting import TrainingOptions
from keras_committee.training.trainer import train_member


class ActingReporter:
    """Does something after a number of steps."""

    def __init__(self, after, act):
        self._left, self._act = after, act

    def on_phase(self, index, epoch, phase):
        pass

    def on_steps_end(self, index, steps=1):
        self._left -= steps
        if self._left == 0:
            self._act()

    def on_epoch_end(self, index, row):
        pass

    def note(self, text):
        pass

    def event(self, index, name, text, **fields):
        pass


@pytest.fixture
def train(new_run):
    """Trains member 0 with a lease and does something after a number of steps: `(folder, steps per epoch, train)`."""
    run, train_all = new_run(["members=1", "epochs=4"])
    recipe, folder = train_all.args[1], run.member(0)
    splits = recipe.data.load()

    def train(steps, act):
        lease = Lease.acquire(folder)
        reporter, stop = ActingReporter(steps, lambda: act(lease)), LeaseShutdown(lease)
        train_member(
            recipe, 0, splits, folder, tf.distribute.OneDeviceStrategy("CPU:0"), reporter, stop, TrainingOptions()
        )

    return folder, splits.steps_per_epoch, train


def newest(folder):
    return max(int(path.name.split("-")[1]) for path in folder.state.glob("step-*"))


def test_a_lost_process_saves_nothing_once_another_attempt_was_made(train):
    folder, steps, run = train
    with pytest.raises(RunError, match=r"member 0 of .* was given to another process"):
        run(steps + 3, lambda _: Lease.acquire(folder))
    assert newest(folder) == steps


def test_a_lost_process_leaves_no_model_either(train, monkeypatch):
    folder, steps, run = train
    monkeypatch.setattr("keras_committee.training.lease._POLL_SECONDS", 1000.0)
    monkeypatch.setattr("keras_committee.training.trainer._Trainer._save", lambda *_: None)
    with pytest.raises(RunError, match="was given to another process"):
        run(4 * steps, lambda _: release(folder))
    assert not folder.finished


def test_a_process_whose_lease_is_revoked_saves_and_ends(train, monkeypatch):
    folder, steps, run = train
    monkeypatch.setattr("keras_committee.training.lease._POLL_SECONDS", 0.0)
    with pytest.raises(TrainingStopped):
        run(steps + 3, Lease.revoke)
    assert newest(folder) == steps + 3


def test_a_lease_is_held_until_the_next_one(new_run):
    run, _ = new_run([])
    first = Lease.acquire(run.member(1))
    assert (first.is_held, first.is_active) == (True, True)
    first.revoke()
    assert (first.is_held, first.is_active) == (True, False)
    second = Lease.acquire(run.member(1))
    assert (first.is_held, second.is_held) == (False, True)
    release(run.member(1))
    assert not second.is_held


def test_training_on_this_machine_ends_the_leases_of_before(new_run):
    run, train = new_run(["members=1", "epochs=1"])
    lease = Lease.acquire(run.member(0))
    train()
    assert not lease.is_held


def test_a_node_that_does_not_share_the_run_folder_is_refused(new_run):
    here, _ = new_run([])
    elsewhere, _ = new_run([], name="elsewhere")
    lease = Lease.acquire(here.member(0))
    lease.require_shared_folder()
    with pytest.raises(RunError, match=f"elsewhere on {socket.gethostname()} is not the run folder that the driver"):
        Lease(elsewhere.member(0), lease.token).require_shared_folder()
