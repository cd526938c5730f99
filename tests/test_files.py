"""Is a file there whole or not at all, and does exactly one process own what is locked?"""

import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from keras_committee.errors import InUseError, ResourceError, RunError
from keras_committee.files import file_lock, translate_os_errors, write_file
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

RACING = pathlib.Path(__file__).with_name("racing.py")

HOLDER = """
import sys, time
from pathlib import Path
from keras_committee.files import file_lock
with file_lock(Path(sys.argv[1]), "the house", shared=sys.argv[2] == "shared"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Starts a process that holds a lock: `hold(path, "shared")`."""
    holders = []

    def hold(path, how):
        command = [sys.executable, "-c", HOLDER, str(path), how]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout.readline() == "locked\n"
        return holders[-1]

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


def take(path, **how):
    with file_lock(path, "the house", **how):
        return "taken"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "model.json"
    contents = [b"a" * 300_000, b"b" * 200_000]
    write_file(path, contents[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        write_file(path, contents[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert seen


def test_an_error_without_a_reason_of_the_system_tells_its_text(tmp_path):
    with (
        pytest.raises(ResourceError, match="votes: 3 requested and 2 written"),
        translate_os_errors(tmp_path / "votes"),
    ):
        raise OSError("3 requested and 2 written")


def test_A15_the_text_names_the_owner_by_process_host_and_time(tmp_path, hold):
    holder = hold(tmp_path / "lock", "alone")
    with pytest.raises(InUseError) as caught:
        take(tmp_path / "lock")
    who = rf"pid {holder.pid} on host {re.escape(socket.gethostname())} since 20\d\d-\d\d-\d\dT[\d:.]+\+00:00"
    assert re.fullmatch(
        rf"the house is in use by {who}\. Nothing was touched\. Wait for it to end, or end it\.", str(caught.value)
    )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("how", ["alone", "shared"])
def test_A15_the_lock_of_a_killed_process_is_free(tmp_path, hold, how):
    holder = hold(tmp_path / "lock", how)
    with pytest.raises(InUseError, match=f"pid {holder.pid} "):
        take(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert take(tmp_path / "lock") == "taken"


def test_A15_who_shares_is_beside_others_who_share_and_nobody_else(tmp_path, hold):
    path = tmp_path / "lock"
    first, second = hold(path, "shared"), hold(path, "shared")
    assert take(path, shared=True) == "taken"
    with pytest.raises(InUseError, match=rf"pid {os.getpid()} .*, or by others that share it\. Nothing"):
        take(path)
    for holder in (first, second):
        with pytest.raises(InUseError, match="others that share it"):
            take(path)
        holder.kill()
        holder.wait()
    assert take(path) == "taken"


def test_A15_an_owner_alone_shares_with_nobody(tmp_path, hold):
    holder = hold(tmp_path / "lock", "alone")
    with pytest.raises(InUseError, match=rf"pid {holder.pid} on host \S+ since \S+\. Nothing"):
        take(tmp_path / "lock", shared=True)


def test_the_name_of_an_earlier_owner_is_gone(tmp_path):
    path = tmp_path / "lock"
    path.write_text("x" * 200)
    take(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_an_owner_who_has_not_written_its_name_is_another_process(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path, "the house"):
        path.write_text("")
        with pytest.raises(InUseError, match=r"the house is in use by another process\."):
            take(path)


def test_who_has_patience_waits_for_the_lock_to_be_free(tmp_path, hold):
    holder = hold(tmp_path / "lock", "alone")
    threading.Timer(0.3, holder.kill).start()
    assert take(tmp_path / "lock", timeout=30.0) == "taken"


def test_patience_has_an_end(tmp_path, hold):
    hold(tmp_path / "lock", "alone")
    started = time.monotonic()
    with pytest.raises(InUseError, match="the house is in use"):
        take(tmp_path / "lock", timeout=0.2)
    assert time.monotonic() - started >= 0.2


def test_a_file_system_without_locks_is_a_resource_error(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ResourceError, match=r"the file system of .*lock has no locks: Operation not supported"):
        take(tmp_path / "lock")


def test_A06_a_lock_that_cannot_tell_its_owner_is_a_resource_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceError, match=r"cannot write .*lock: No space left on device"):
        take(tmp_path / "lock")


# A15: races


@pytest.fixture
def race(tmp_path):
    def race(scene, rounds):
        command = [sys.executable, str(RACING), str(tmp_path), scene, str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    return race


RECORD = [True, {"members": 8, "learning_rate": 0.1, "seed": 3}, "tiny"]


def test_A15_of_two_who_start_one_run_at_once_exactly_one_wins_in_each_of_50_races(race):
    rounds = race("alone", 50)
    assert len(rounds) == 50
    for result in rounds:
        (loser,) = set(result["words"]) - {"won"}
        assert sorted(result["words"]) == sorted(["won", loser])
        assert re.search(r"is in use by (pid \d+ on host|another process).*Nothing was touched", loser)
        assert [event["event"] for event in result["events"]] == ["won"]
        assert result["record"] == RECORD
        assert result["left"] == [
            *(".record.lock", "environment.json", "journal.jsonl", "parameters.json", "lock", "recipe.py")
        ]


def test_A15_of_jobs_that_share_a_run_and_begin_it_at_once_none_fails(race):
    rounds = race("together", 15)
    assert len(rounds) == 15
    for result in rounds:
        assert result["words"] == ["won"] * 8
        assert result["record"] == RECORD
        steps = [(event["racer"], event["place"]) for event in result["events"]]
        assert sorted(steps) == [(racer, place) for racer in range(8) for place in range(5)]


def test_A15_who_shares_waits_while_another_job_writes_the_record(tmp_path, hold):
    (tmp_path / "tiny.py").write_text("def recipe(members=2): ...\n")
    file = RecipeFile.read(tmp_path / "tiny.py")
    holder = hold(tmp_path / "run" / ".record.lock", "alone")
    threading.Timer(0.3, holder.kill).start()
    run = Run.create(tmp_path / "run", file, file.resolve([]), command="train", shared=True)
    assert run.parameters() == {"members": 2}


def test_lines_that_four_processes_append_to_the_journal_at_once_are_whole_and_none_is_lost(race):
    (result,) = race("writing", 1)
    assert result["words"] == ["won"] * 4
    for racer in range(4):
        events = [event for event in result["events"] if event["racer"] == racer]
        assert [event["place"] for event in events] == list(range(50))
        assert {event["text"] for event in events} == {"x" * (racer * 900)}
    assert len(result["events"]) == 200


# The journal


@pytest.fixture
def run(tmp_path):
    (tmp_path / "tiny.py").write_text("def recipe(members=2): ...\n")
    file = RecipeFile.read(tmp_path / "tiny.py")
    return Run.create(tmp_path / "run", file, file.resolve([]), command="train")


@pytest.mark.parametrize("left", [b'{"event": "ha', b"\0" * 4096, b"\xff"])
def test_A01_what_a_kill_left_of_the_last_line_is_repaired(run, left):
    run.append_event("first")
    path = run.path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + left)
    assert [event["event"] for event in run.events()] == ["first"]
    run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first", "second"]
    assert path.read_bytes().count(b"\n") == 2


def test_an_event_is_in_its_file_before_that_is_flushed_to_the_disk(run, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(json.loads((run.path / "journal.jsonl").read_bytes())))
    run.append_event("first")
    assert [event["event"] for event in seen] == ["first"]


@pytest.fixture
def limit():
    """Lets no file grow beyond a number of bytes: the system itself then writes a part of a line and no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_A06_an_event_that_finds_room_for_half_of_it_is_a_resource_error(run, limit):
    run.append_event("first")
    path = run.path / "journal.jsonl"
    limit(path.stat().st_size + 20)
    with pytest.raises(ResourceError, match=r"cannot write .*journal\.jsonl: File too large"):
        run.append_event("second")
    assert [event["event"] for event in run.events()] == ["first"]
    limit(resource.RLIM_INFINITY)
    run.append_event("third")
    assert [event["event"] for event in run.events()] == ["first", "third"]


def test_a_run_error_is_what_a_damaged_record_is(run):
    (run.path / "environment.json").write_bytes(b"\0" * 30)
    with pytest.raises(RunError, match=r"environment\.json cannot be read"):
        run.recipe_file()
