"""Members in processes of their own: what befalls one of them befalls no other, and nothing is lost."""

import functools
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
from keras_committee.training import TrainingOptions, devices, train_committee

pytestmark = pytest.mark.slow

FAULTY = pathlib.Path(__file__).parents[1] / "recipes" / "faulty.py"
KNOBS = ["members=3", "epochs=3"]
SETTINGS = TrainingOptions(stall_timeout_seconds=30.0, deterministic=False)


def make_run(path, overrides):
    file = RecipeFile.read(FAULTY)
    knobs = file.resolve([*KNOBS, *overrides])
    run = Run.create(path, file, knobs, command="test")
    return run, functools.partial(train_committee, run, file.build(knobs), workers=2)


def events(run, name):
    return [event["member"] for event in run.events() if event["event"] == name]


def weights(run, index):
    return keras.saving.load_model(run.member(index).model, compile=False).get_weights()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    run, train = make_run(tmp_path_factory.mktemp("whole") / "run", [])
    train()
    return run


def test_the_members_of_workers_are_those_of_one_process(whole, tmp_path):
    run, train = make_run(tmp_path / "one", [])
    train(workers=1)
    for index in range(3):
        for one, other in zip(weights(run, index), weights(whole, index), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_A10_A12_a_member_killed_and_one_that_hangs_start_again_and_the_others_are_untouched(whole, tmp_path, capfd):
    (tmp_path / "marks").mkdir()
    run, train = make_run(tmp_path / "run", ["killed=1", "hanging=2", f"marks={tmp_path / 'marks'}"])
    train(options=SETTINGS)
    assert run.finished_members() == [0, 1, 2]
    assert sorted(events(run, "member_died")) == [1, 2]
    assert sorted(events(run, "member_resumed")) == [1, 2]
    for index in range(3):
        for mine, theirs in zip(weights(run, index), weights(whole, index), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    told = capfd.readouterr().err
    assert "member 1 was killed (signal 9, peak RSS " in told
    assert "member 2 said nothing for 30 s and was killed" in told
    assert "Current thread" in run.log_path(2).read_text()  # its stacks


def test_A10_a_member_that_is_killed_always_is_given_up_and_the_others_end(tmp_path):
    run, train = make_run(tmp_path / "run", ["killed=1", "members=2"])
    with pytest.raises(
        IncompleteError, match=r"1 of 2 members .* are finished; failed:\n  member 1: .*killed"
    ) as caught:
        train(options=TrainingOptions(max_retries=1))
    assert caught.value.exit_code == 6
    assert run.finished_members() == [0]
    assert events(run, "member_started").count(1) == 2


def test_A08_a_member_that_diverges_does_not_stop_the_others(tmp_path):
    run, train = make_run(tmp_path / "run", ["diverging=0", "members=2"])
    with pytest.raises(IncompleteError, match=r"member 0: member 0 diverged at step 2 \(loss="):
        train(options=TrainingOptions(max_rollbacks=1))
    assert run.finished_members() == [1]
    assert run.member(0).state.exists()


def test_a_recipe_that_fails_in_a_worker_is_told_as_in_one_process(tmp_path):
    run, train = make_run(tmp_path / "run", ["failing=1"])
    with pytest.raises(RecipeError, match=r"recipe\.py:\d+: SystemError: a bug of the recipe"):
        train()
    assert set(events(run, "member_failed")) == {1}


def test_cores_and_gpus_are_divided_among_the_workers():
    shares = devices.partition_devices(2, cores=[0, 1, 4, 5, 6], gpus=[])
    assert [share.cores for share in shares] == [(0, 1), (4, 5, 6)]
    shares = devices.partition_devices(3, cores=[0, 1, 2], gpus=[0, 1])
    assert [share.gpus for share in shares] == [(0,), (1,), (0,)]
    shares = devices.partition_devices(2, cores=[0, 1], gpus=[0, 1, 2, 3])
    assert [share.gpus for share in shares] == [(0, 1), (2, 3)]


def test_auto_takes_a_member_for_each_core_that_finds_memory_and_says_so(monkeypatch):
    monkeypatch.setattr(devices, "usable_core_count", lambda: 4)
    monkeypatch.setattr(devices, "free_memory", lambda: 7 * 1024**3)
    many, why = devices.choose_num_workers("auto", 8)
    assert (many, why) == (
        3,
        "3 of 8 members at once, as there are 4 cores and 7 GiB of free memory; --workers N to choose.",
    )
    assert devices.choose_num_workers("auto", 2)[0] == 2
    assert devices.choose_num_workers(6, 4) == (4, "")


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "many"])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(RecipeError, match=r"workers must be 'auto' or an integer of 1 or more\. Received: "):
        devices.choose_num_workers(workers, 4)


def start(folder, *options):
    """The command line, training in a process of its own."""
    command = [sys.executable, "-m", "keras_committee.cli", "train", str(FAULTY), "--run", str(folder), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def in_training(folder):
    """Whether every member of the run has saved a checkpoint and goes on."""
    return len(list(pathlib.Path(folder).glob("members/*/history.jsonl"))) >= 2


def workers_of(folder):
    """The processes of the workers of this run."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes() if path.exists() else b""
        if b"keras_committee.training.worker" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


LONG = ["--set", "epochs=4000", "--set", "members=2", "--workers", "2"]


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_A04_E06_asked_to_stop_every_member_saves_within_ten_seconds(number, code, name, tmp_path):
    process = start(tmp_path / "run", *LONG)
    wait_for(lambda: in_training(tmp_path / "run"))
    asked = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    seconds = time.monotonic() - asked
    assert process.returncode == code
    assert f"error: {name}: 0 of 2 members are finished, the others saved." in told
    assert "The same command goes on from there." in told
    assert seconds < 10
    run = Run.open(tmp_path / "run")
    assert sorted(events(run, "member_stopped")) == [0, 1]
    assert [run.member(index).state.exists() for index in (0, 1)] == [True, True]
    assert workers_of(tmp_path / "run") == []


def test_E08_workers_end_with_a_parent_that_is_killed(tmp_path):
    process = start(tmp_path / "run", *LONG)
    wait_for(lambda: in_training(tmp_path / "run"))
    assert len(workers_of(tmp_path / "run")) == 2
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not workers_of(tmp_path / "run"), seconds=5)


def test_E07_a_second_ctrl_c_stops_at_once_and_leaves_no_process(tmp_path):
    process = start(tmp_path / "run", *LONG)
    wait_for(lambda: in_training(tmp_path / "run"))
    for pid in workers_of(tmp_path / "run"):
        os.kill(pid, signal.SIGSTOP)  # they cannot save, so the first one alone would wait for long
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=2)
    assert process.returncode == 130
    for pid in workers_of(tmp_path / "run"):
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not workers_of(tmp_path / "run"), seconds=5)
