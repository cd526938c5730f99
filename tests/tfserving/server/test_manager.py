"""Loading, lending and unloading of versions, as in TF Serving."""

import contextlib
import os
import shutil
import threading
import time
import types

import numpy as np
import pytest
from half_plus_two import save_half_plus_two

from keras_committee.tfserving.server.manager import (
    Manager,
    ManagerOptions,
    ModelConfig,
    VersionPolicy,
    check_configs,
)
from keras_committee.tfserving.tf_protocol import StatusError

QUICK = ManagerOptions(poll_seconds=0.02, max_retries=1, retry_seconds=0.02)
ONE = {"x": np.float32([1.0])}


class FakeSession:
    """The part of a session that the manager uses. A folder with a file `broken` cannot be loaded."""

    def __init__(self, folder):
        if (folder / "broken").exists():
            raise StatusError("NOT_FOUND", "Could not find SavedModel .pb or .pbtxt")
        self.folder, self.closed = folder, False

    def close(self):
        self.closed = True


@pytest.fixture
def base(tmp_path):
    (tmp_path / "H" / "123").mkdir(parents=True)
    return tmp_path / "H"


@contextlib.contextmanager
def managed(base, options=QUICK, load=FakeSession, **config):
    with Manager([ModelConfig("H", base, **config)], options, load) as manager:
        yield manager


def states(manager):
    with contextlib.suppress(StatusError):
        return {status.version: status.state for status in manager.statuses("H")}
    return {}


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def error_of(call):
    with pytest.raises(StatusError) as caught:
        call()
    return caught.value.code, caught.value.message


def borrow(manager, *spec):
    with manager.borrow(*spec) as servable:
        return servable.version


def test_a_new_version_is_available_before_the_old_one_ends(base):
    seen = []
    with managed(base, load=lambda folder: seen.append(states(manager)) or FakeSession(folder)) as manager:
        manager.wait_until_available()
        (base / "124").mkdir()
        wait_for(lambda: states(manager) == {124: "AVAILABLE", 123: "END"})
        assert seen[1] == {124: "LOADING", 123: "AVAILABLE"}
        shutil.rmtree(base / "124")
        wait_for(lambda: states(manager) == {124: "END", 123: "AVAILABLE"})


def test_D06_a_corrupt_new_version_leaves_the_old_one_serving_and_its_status_has_the_error(base):
    with managed(base) as manager:
        manager.wait_until_available()
        (base / ".staging").mkdir()
        (base / ".staging" / "broken").touch()
        (base / ".staging").rename(base / "125")
        wait_for(lambda: states(manager).get(125) == "END")
        (status,) = manager.statuses("H", 125)
        assert (status.code, status.message) == ("NOT_FOUND", "Could not find SavedModel .pb or .pbtxt")
        assert borrow(manager, "H") == 123
        (base / "125" / "broken").unlink()  # the same number is never tried again
        time.sleep(0.2)
        assert states(manager) == {125: "END", 123: "AVAILABLE"}


@pytest.mark.parametrize("half_written", [lambda pb: b"", lambda pb: pb[: len(pb) // 2], lambda pb: b"\xff" * 99])
def test_D06_a_truncated_saved_model_is_not_served(half_plus_two, tmp_path, half_written):
    shutil.copytree(half_plus_two, tmp_path / "H")
    with Manager([ModelConfig("H", tmp_path / "H")], ManagerOptions(0.02, 0)) as manager:
        manager.wait_until_available()
        (tmp_path / "H" / "124").mkdir()
        (tmp_path / "H" / "124" / "saved_model.pb").write_bytes(
            half_written((half_plus_two / "123" / "saved_model.pb").read_bytes())
        )
        wait_for(lambda: states(manager).get(124) == "END")
        assert manager.statuses("H", 124)[0].message
        with manager.borrow("H") as servable:
            assert servable.session.run("", ONE)["y"] == 2.5


def test_D07_a_request_in_flight_ends_before_its_version_is_unloaded(base):
    with managed(base) as manager:
        manager.wait_until_available()
        with manager.borrow("H") as servable:
            shutil.rmtree(base / "123")
            wait_for(lambda: states(manager) == {123: "UNLOADING"})
            assert not servable.session.closed
            session = servable.session
            assert error_of(lambda: borrow(manager, "H"))[0] == "NOT_FOUND"
        wait_for(lambda: states(manager) == {123: "END"})
        assert session.closed


def test_D09_unknown_models_versions_and_labels_have_the_errors_of_tf_serving(base):
    with managed(base) as manager:
        manager.wait_until_available()
        not_found = "Servable not found for request: "
        assert error_of(lambda: borrow(manager, "foo")) == ("NOT_FOUND", not_found + "Latest(foo)")
        assert error_of(lambda: borrow(manager, "H", 99)) == ("NOT_FOUND", not_found + "Specific(H, 99)")
        assert error_of(lambda: borrow(manager, "H", None, "zzz")) == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: zzz",
        )
        assert error_of(lambda: borrow(manager, "")) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        assert error_of(lambda: manager.statuses("foo")) == ("NOT_FOUND", "Could not find any versions of model foo")
        assert error_of(lambda: manager.statuses("H", 9)) == ("NOT_FOUND", "Could not find version 9 of model H")


@pytest.mark.parametrize("name", ["../H", "..%2fH", "H\0", "", ".H", "H/123", "é" * 3, "x" * 129, "H\n"])
def test_D19_a_name_that_could_be_a_path_is_no_model_name(base, name):
    assert error_of(lambda: ModelConfig(name, base))[0] == "INVALID_ARGUMENT"


def test_symbolic_links_are_followed(half_plus_two, tmp_path):
    base = tmp_path / "H"
    base.mkdir()
    (base / "1").symlink_to(half_plus_two / "123")
    shutil.copytree(half_plus_two / "123", base / "2")
    os.replace(base / "2" / "saved_model.pb", tmp_path / "kept.pb")
    (base / "2" / "saved_model.pb").symlink_to(tmp_path / "kept.pb")
    (base / "3").symlink_to("nowhere")
    with Manager([ModelConfig("H", base, VersionPolicy.all_versions())], ManagerOptions(0.02, 0)) as manager:
        wait_for(lambda: states(manager) == {1: "AVAILABLE", 2: "AVAILABLE", 3: "END"})
        assert manager.statuses("H", 3)[0].code == "NOT_FOUND"
        for version in (1, 2):
            with manager.borrow("H", version) as servable:
                assert servable.session.run("", ONE)["y"] == 2.5


def count_files(folder, loaded):
    """Return a session; append the number of files that it was loaded from to `loaded`, and "closed" at its end."""
    loaded.append(len(list(folder.iterdir())))
    return types.SimpleNamespace(close=lambda: loaded.append("closed"))


def test_D02_a_copy_in_progress_is_loaded_once_it_is_complete(base, tmp_path):
    loaded, source = [], tmp_path / "source"
    source.write_bytes(b"12345")
    os.utime(source, (1e9, 1e9))
    with managed(base, ManagerOptions(0.15), lambda folder: count_files(folder, loaded)) as manager:
        manager.wait_until_available()
        (base / "124").mkdir()
        for number in range(8):
            shutil.copy2(source, base / "124" / str(number))  # with its old time of modification
            time.sleep(0.1)
        assert states(manager) == {123: "AVAILABLE", 124: "START"}
        wait_for(lambda: states(manager) == {123: "END", 124: "AVAILABLE"})
    assert loaded == [0, 8, "closed", "closed"]


def test_files_that_change_during_a_load_are_loaded_again(base):
    loaded = []

    def load(folder):
        session = count_files(folder, loaded)
        if len(loaded) == 1:
            (folder / "late").touch()
        return session

    with managed(base, load=load) as manager:
        manager.wait_until_available()
    assert loaded == [0, "closed", 1, "closed"]


def test_a_label_of_an_unavailable_version_is_rejected_unless_allowed(base):
    message = "Request to assign label to version 123 of model H, which is not currently available for inference"
    config = ModelConfig("H", base, labels={"stable": 123})
    assert error_of(lambda: Manager([config], QUICK, FakeSession)) == ("FAILED_PRECONDITION", message)
    with managed(base, ManagerOptions(0.02, allow_labels_for_unavailable=True), labels={"lab": 123}) as manager:
        manager.wait_until_available()
        assert borrow(manager, "H", None, "lab") == 123


def test_policies_select_versions_by_number():
    available = [3, 10, 9]
    assert VersionPolicy.latest().select(available) == {10}
    assert VersionPolicy.latest(2).select(available) == {9, 10}
    assert VersionPolicy.all_versions().select(available) == {3, 9, 10}
    assert VersionPolicy.specific(3, 7).select(available) == {3}
    with pytest.raises(StatusError, match=r"num_versions must be at least 1. Received: num_versions=0"):
        VersionPolicy.latest(0)


def test_the_policy_selects_the_versions_to_serve(base):
    (base / "124").mkdir()
    (base / "125").mkdir()
    with managed(base, policy=VersionPolicy.specific(123, 124)) as manager:
        wait_for(lambda: states(manager) == {124: "AVAILABLE", 123: "AVAILABLE"})
        assert borrow(manager, "H") == 124
        assert borrow(manager, "H", 123) == 123


def test_a_base_path_that_vanishes_changes_nothing_and_an_empty_one_unloads(base):
    with managed(base) as manager:
        manager.wait_until_available()
        base.rename(base.with_name("moved"))
        time.sleep(0.1)
        assert states(manager) == {123: "AVAILABLE"}
        base.mkdir()
        wait_for(lambda: states(manager) == {123: "END"})


def test_two_models_of_one_name_and_relative_paths_are_refused(base):
    with pytest.raises(StatusError, match="Illegal to list model H multiple times"):
        check_configs([ModelConfig("H", base), ModelConfig("H", base)])
    with pytest.raises(StatusError, match=r"to have an absolute path or URI; got base_path\(\)=models"):
        ModelConfig("H", "models")


def test_a_load_is_retried_up_to_the_limit(base):
    tries = []
    (base / "123" / "broken").touch()
    with managed(base, ManagerOptions(0.02, 3, 0.01), lambda folder: tries.append(1) or FakeSession(folder)) as manager:
        with pytest.raises(StatusError, match="Could not find SavedModel"):
            manager.wait_until_available()
        assert len(tries) == 4


def test_waiting_for_a_model_without_versions_ends(tmp_path):
    with managed(tmp_path) as manager, pytest.raises(StatusError, match="no version to serve after"):
        manager.wait_until_available(0.1)


def test_D16_no_borrower_gets_a_closed_session_while_versions_change(base):
    closed_versions, stop = [], threading.Event()

    def use(manager):
        while not stop.is_set():
            with manager.borrow("H") as servable:
                closed_versions.extend([servable.version] * servable.session.closed)

    with managed(base) as manager:
        manager.wait_until_available()
        threads = [threading.Thread(target=use, args=[manager]) for _ in range(4)]
        [thread.start() for thread in threads]
        for version in range(124, 134):
            (base / str(version)).mkdir()
            wait_for(lambda version=version: states(manager).get(version) == "AVAILABLE")
        stop.set()
        [thread.join() for thread in threads]
    assert closed_versions == []


def test_a_new_version_of_a_saved_model_replaces_the_old_one(half_plus_two, tmp_path):
    shutil.copytree(half_plus_two, tmp_path / "H")
    with Manager([ModelConfig("H", tmp_path / "H")], ManagerOptions(0.02)) as manager:
        manager.wait_until_available()
        save_half_plus_two(tmp_path / "H", 124, half=0.25)
        wait_for(lambda: states(manager) == {124: "AVAILABLE", 123: "END"})
        with manager.borrow("H") as servable:
            assert servable.session.run("", ONE)["y"] == 2.25
