"""Atomic writes and lock files."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from keras_committee.errors import InUseError, ResourceError
from keras_committee.files import file_hash, file_lock, translate_os_errors, write_file, write_json

HOLDER = """
import sys, time
from pathlib import Path
from keras_committee.files import file_lock
with file_lock(Path(sys.argv[1]), "the folder", shared=sys.argv[2] == "shared"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start a process that holds a lock: `hold(path, "shared")`."""
    holders = []

    def hold(path, mode):
        command = [sys.executable, "-c", HOLDER, str(path), mode]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout.readline() == "locked\n"
        return holders[-1]

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


def take(path, **options):
    with file_lock(path, "the folder", **options):
        return "taken"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "model.json"
    contents = [b"a" * 300_000, b"b" * 200_000]
    write_file(path, contents[0])
    read_contents, done = set(), threading.Event()

    def read():
        while not done.is_set():
            read_contents.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(200):
        write_file(path, contents[index % 2])
    done.set()
    reader.join()
    assert read_contents
    assert read_contents <= set(contents)


def test_a_document_is_replaced_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    write_json(path, {"accuracy": 0.2, "name": "é"})
    write_json(path, {"accuracy": 0.7})
    assert json.loads(path.read_text()) == {"accuracy": 0.7}
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_no_part_of_the_new_one(tmp_path, monkeypatch, step):
    path = tmp_path / "evaluation.json"
    write_json(path, {"accuracy": 0.2})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ResourceError, match=r"cannot write .*evaluation\.json: No space left on device"):
        write_json(path, {"accuracy": 0.7})
    assert json.loads(path.read_text()) == {"accuracy": 0.2}
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "evaluation.json", {"nll": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_flushed_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_file(tmp_path / "recipe.py", b"0.2")
    assert calls == ["fsync", "replace", "fsync"]


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_hash(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_os_error_without_strerror_keeps_its_text(tmp_path):
    with (
        pytest.raises(ResourceError, match="array: 3 requested and 2 written"),
        translate_os_errors(tmp_path / "array"),
    ):
        raise OSError("3 requested and 2 written")


def test_A15_the_error_names_the_holder_by_process_host_and_time(tmp_path, hold):
    holder = hold(tmp_path / "lock", "exclusive")
    with pytest.raises(InUseError) as caught:
        take(tmp_path / "lock")
    identity = rf"pid {holder.pid} on host {re.escape(socket.gethostname())} since 20\d\d-\d\d-\d\dT[\d:.]+\+00:00"
    assert re.fullmatch(
        rf"the folder is in use by {identity}\. No file was changed\. Wait for that process to end, or stop it\.",
        str(caught.value),
    )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_A15_the_lock_of_a_killed_process_is_free(tmp_path, hold, mode):
    holder = hold(tmp_path / "lock", mode)
    with pytest.raises(InUseError, match=f"pid {holder.pid} "):
        take(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert take(tmp_path / "lock") == "taken"


def test_A15_a_shared_lock_allows_other_shared_locks_only(tmp_path, hold):
    path = tmp_path / "lock"
    first, second = hold(path, "shared"), hold(path, "shared")
    assert take(path, shared=True) == "taken"
    with pytest.raises(InUseError, match=rf"pid {os.getpid()} .*, or by other processes that share it\. No file"):
        take(path)
    for holder in (first, second):
        with pytest.raises(InUseError, match="other processes that share it"):
            take(path)
        holder.kill()
        holder.wait()
    assert take(path) == "taken"


def test_A15_an_exclusive_lock_excludes_shared_locks(tmp_path, hold):
    holder = hold(tmp_path / "lock", "exclusive")
    with pytest.raises(InUseError, match=rf"pid {holder.pid} on host \S+ since \S+\. No file"):
        take(tmp_path / "lock", shared=True)


def test_the_record_of_an_earlier_holder_is_replaced(tmp_path):
    path = tmp_path / "lock"
    path.write_text("x" * 200)
    take(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_without_a_record_yet_is_another_process(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path, "the folder"):
        path.write_text("")
        with pytest.raises(InUseError, match=r"the folder is in use by another process\."):
            take(path)


def test_a_timeout_waits_for_the_lock(tmp_path, hold):
    holder = hold(tmp_path / "lock", "exclusive")
    threading.Timer(0.3, holder.kill).start()
    assert take(tmp_path / "lock", timeout=30.0) == "taken"


def test_the_timeout_ends(tmp_path, hold):
    hold(tmp_path / "lock", "exclusive")
    started = time.monotonic()
    with pytest.raises(InUseError, match="the folder is in use"):
        take(tmp_path / "lock", timeout=0.2)
    assert time.monotonic() - started >= 0.2


def test_a_file_system_without_locks_is_a_resource_error(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(
        ResourceError, match=r"the file system of .*lock does not support locks: Operation not supported"
    ):
        take(tmp_path / "lock")


def test_A06_a_lock_whose_record_cannot_be_written_is_a_resource_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceError, match=r"cannot write .*lock: No space left on device"):
        take(tmp_path / "lock")
