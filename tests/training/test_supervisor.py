"""Members in processes of their own: the failure of one affects no other, and nothing is lost."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_committee.errors import IncompleteError, RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import TrainingOptions, train_committee

pytestmark = pytest.mark.slow

FAULTY = pathlib.Path(__file__).parents[1] / "recipes" / "faulty.py"
OVERRIDES = ["members=3", "epochs=3"]


def make_run(path, overrides):
    file = RecipeFile.read(FAULTY)
    parameters = file.resolve([*OVERRIDES, *overrides])
    run = Run.create(path, file, parameters, command="test")
    return run, functools.partial(train_committee, run, file.build(parameters), workers=2)


def events(run, name):
    return [event["member"] for event in run.events() if event["event"] == name]


def weights(run, index):
    return keras.saving.load_model(run.member(index).model, compile=False).get_weights()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, fork_server):
    """A run without failures, by the real command: the process of each worker imports TensorFlow itself."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    sets = [word for override in OVERRIDES for word in ("--set", override)]
    command = [sys.executable, "-m", "keras_committee.cli", "train", FAULTY, "--run", path, "--workers", "2", *sets]
    with fork_server.popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["finished"] == [0, 1, 2]  # the workers print nothing to the document
    return Run.open(path)


def test_workers_train_the_members_of_one_process(undisturbed, tmp_path):
    run, train = make_run(tmp_path / "one", [])
    train(workers=1)
    for index in range(3):
        for one, other in zip(weights(run, index), weights(undisturbed, index), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_A10_A12_killed_and_hanging_members_restart_and_the_others_are_unchanged(
    undisturbed, forked_workers, tmp_path, capfd
):
    (tmp_path / "marks").mkdir()
    run, train = make_run(tmp_path / "run", ["killed=1", "hanging=2", f"marks={tmp_path / 'marks'}"])
    train(options=TrainingOptions(stall_timeout_seconds=15.0))
    assert run.finished_members() == [0, 1, 2]
    assert sorted(events(run, "member_died")) == [1, 2]
    assert sorted(events(run, "member_resumed")) == [1, 2]
    for index in range(3):
        for one, other in zip(weights(run, index), weights(undisturbed, index), strict=True):
            np.testing.assert_array_equal(one, other)
    output = capfd.readouterr().err
    assert "member 1 was killed (signal 9, peak RSS " in output
    assert "member 2 sent no message for 15 s and was killed" in output
    assert "Current thread" in run.log_path(2).read_text()  # its stack traces


def test_A10_a_member_that_is_always_killed_fails_and_the_others_finish(forked_workers, tmp_path):
    run, train = make_run(tmp_path / "run", ["killed=1", "members=2"])
    message = r"1 of 2 members finished in .*; failed:\n  member 1: .*killed.*, 2 times\. Its log: "
    with pytest.raises(IncompleteError, match=message) as caught:
        train(options=TrainingOptions(max_retries=1))
    assert caught.value.exit_code == 6
    assert run.finished_members() == [0]
    assert events(run, "member_started").count(1) == 2


def test_A08_a_member_that_diverges_does_not_stop_the_others(forked_workers, tmp_path):
    run, train = make_run(tmp_path / "run", ["diverging=0", "members=2"])
    with pytest.raises(IncompleteError, match=r"member 0: member 0 diverged at step 2 \(loss="):
        train(options=TrainingOptions(max_rollbacks=1))
    assert run.finished_members() == [1]
    assert run.member(0).state.exists()


def test_a_recipe_that_fails_in_a_worker_fails_the_training(forked_workers, tmp_path):
    run, train = make_run(tmp_path / "run", ["failing=1"])
    with pytest.raises(RecipeError, match=r"recipe\.py:\d+: SystemError: a bug of the recipe"):
        train()
    assert set(events(run, "member_failed")) == {1}


@pytest.fixture
def long_training(fork_server, tmp_path):
    """The command line, training two members for long in workers: `(process, run folder)`."""
    path = tmp_path / "run"
    options = ["--set", "epochs=4000", "--set", "members=2", "--workers", "2"]
    command = [sys.executable, "-m", "keras_committee.cli", "train", FAULTY, "--run", path, *options]
    with fork_server.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, nested=True) as process:
        wait_for(lambda: len(list(path.glob("members/*/history.jsonl"))) == 2)
        yield process, path
        process.kill()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def live_workers(path):
    """The ids of the run's worker processes that have not ended."""
    lines = (path / "journal.jsonl").read_text().splitlines()
    pids = [event["pid"] for event in map(json.loads, lines) if event["event"] == "member_started"]
    return [pid for pid in pids if is_alive(pid)]


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_A04_E06_every_member_saves_within_ten_seconds_of_a_stop_request(number, code, name, long_training):
    process, path = long_training
    requested = time.monotonic()
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    seconds = time.monotonic() - requested
    assert process.returncode == code
    assert f"error: {name}: 0 of 2 members finished, the others saved." in output
    assert f"{name}: saving." in output
    assert "member 1  epoch 1/4000  tracing the training step\n" in output
    assert "To resume, run: keras-committee train " in output
    assert seconds < 10
    run = Run.open(path)
    assert sorted(events(run, "member_stopped")) == [0, 1]
    assert [run.member(index).state.exists() for index in (0, 1)] == [True, True]
    assert live_workers(path) == []


def test_E08_workers_end_with_a_parent_that_is_killed(long_training):
    process, path = long_training
    assert len(live_workers(path)) == 2
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not live_workers(path), seconds=5)


def test_E07_a_second_ctrl_c_stops_at_once_and_leaves_no_process(long_training):
    process, path = long_training
    workers = live_workers(path)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # they cannot save, so the first Ctrl-C alone would wait for long
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=2)
    assert process.returncode == 130
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not live_workers(path), seconds=5)
