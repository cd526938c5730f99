"""Do versions come, serve and go as in TF Serving, whatever lies in their folder?"""

import contextlib
import os
import shutil
import threading
import time

import numpy as np
import pytest
from half_plus_two import save_half_plus_two

from keras_committee.tfserving.server.manager import (
    Manager,
    ManagerOptions,
    ModelConfig,
    VersionPolicy,
    check_configs,
    find_versions,
)
from keras_committee.tfserving.tf_protocol import StatusError

QUICK = ManagerOptions(poll_seconds=0.02, max_retries=1, retry_seconds=0.02)
ONE = {"x": np.float32([1.0])}


class FakeSession:
    """What the manager needs of a session; `broken` folders cannot be loaded."""

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
def managed(base, settings=QUICK, load=FakeSession, **config):
    with Manager([ModelConfig("H", base, **config)], settings, load) as manager:
        yield manager


def states(manager):
    with contextlib.suppress(StatusError):
        return {each.version: each.state for each in manager.statuses("H")}
    return {}


def wait_for(true, seconds=20.0):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    assert true()


def code_of(call):
    with pytest.raises(StatusError) as caught:
        call()
    return caught.value.code, caught.value.message


def borrow(manager, *which):
    with manager.borrow(*which) as servable:
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


def test_D06_a_corrupt_new_version_leaves_the_old_one_serving_and_tells_why(base):
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
def test_D06_half_a_saved_model_is_no_version(half_plus_two, tmp_path, half_written):
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
            assert code_of(lambda: borrow(manager, "H"))[0] == "NOT_FOUND"
        wait_for(lambda: states(manager) == {123: "END"})
        assert session.closed


def test_D09_unknown_models_versions_and_labels_are_told_in_tf_servings_words(base):
    with managed(base) as manager:
        manager.wait_until_available()
        not_found = "Servable not found for request: "
        assert code_of(lambda: borrow(manager, "foo")) == ("NOT_FOUND", not_found + "Latest(foo)")
        assert code_of(lambda: borrow(manager, "H", 99)) == ("NOT_FOUND", not_found + "Specific(H, 99)")
        assert code_of(lambda: borrow(manager, "H", None, "zzz")) == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: zzz",
        )
        assert code_of(lambda: borrow(manager, "")) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        assert code_of(lambda: manager.statuses("foo")) == ("NOT_FOUND", "Could not find any versions of model foo")
        assert code_of(lambda: manager.statuses("H", 9)) == ("NOT_FOUND", "Could not find version 9 of model H")


@pytest.mark.parametrize("name", ["../H", "..%2fH", "H\0", "", ".H", "H/123", "é" * 3, "x" * 129, "H\n"])
def test_D19_a_name_that_could_be_a_path_is_no_model_name(base, name):
    assert code_of(lambda: ModelConfig(name, base))[0] == "INVALID_ARGUMENT"


def test_D19_a_link_is_no_version_wherever_it_lies(half_plus_two, tmp_path):
    (tmp_path / "H").mkdir()
    (tmp_path / "H" / "1").symlink_to(half_plus_two / "123")
    shutil.copytree(half_plus_two / "123", tmp_path / "H" / "2")
    os.replace(tmp_path / "H" / "2" / "saved_model.pb", tmp_path / "kept.pb")
    (tmp_path / "H" / "2" / "saved_model.pb").symlink_to(tmp_path / "kept.pb")
    with Manager([ModelConfig("H", tmp_path / "H", VersionPolicy.all_versions())], ManagerOptions(0.02, 0)) as manager:
        wait_for(lambda: states(manager) == {1: "END", 2: "END"})
        assert all("is a symbolic link" in each.message for each in manager.statuses("H"))


def test_labels_follow_the_two_step_rollout(base):
    label = ModelConfig("H", base, labels={"stable": 123})
    refusal = ("Request to assign label to version 123 of model H, which is not currently available for inference",)
    assert code_of(lambda: Manager([label], QUICK, FakeSession)) == ("FAILED_PRECONDITION", *refusal)
    with managed(base) as manager:
        manager.wait_until_available()
        manager.reload([label])
        assert borrow(manager, "H", None, "stable") == 123
        (code, _) = code_of(lambda: manager.reload([ModelConfig("H", base, labels={"stable": 124})]))
        assert code == "FAILED_PRECONDITION"
        assert borrow(manager, "H", None, "stable") == 123  # nothing was changed


def test_a_label_may_name_what_is_not_loaded_yet_where_that_is_allowed(base):
    with managed(base, ManagerOptions(0.02, allow_labels_for_unavailable=True), labels={"lab": 123}) as manager:
        manager.wait_until_available()
        assert borrow(manager, "H", None, "lab") == 123


def test_policies_choose_versions_by_their_number():
    present = [3, 10, 9]
    assert VersionPolicy.latest().select(present) == {10}
    assert VersionPolicy.latest(2).select(present) == {9, 10}
    assert VersionPolicy.all_versions().select(present) == {3, 9, 10}
    assert VersionPolicy.specific(3, 7).select(present) == {3}
    with pytest.raises(StatusError, match="keeps at least one version"):
        VersionPolicy.latest(0)


def test_a_rollback_is_a_policy_not_a_deletion(base):
    (base / "124").mkdir()
    with managed(base) as manager:
        manager.wait_until_available()
        assert borrow(manager, "H") == 124
        manager.reload([ModelConfig("H", base, VersionPolicy.specific(123))])
        wait_for(lambda: states(manager) == {124: "END", 123: "AVAILABLE"})


def test_a_model_that_is_no_longer_configured_is_unloaded(base):
    with managed(base) as manager:
        manager.wait_until_available()
        manager.reload([])
        wait_for(lambda: states(manager) == {123: "END"})


def test_a_base_path_that_vanishes_changes_nothing_and_an_empty_one_unloads(base):
    with managed(base) as manager:
        manager.wait_until_available()
        base.rename(base.with_name("moved"))
        time.sleep(0.1)
        assert states(manager) == {123: "AVAILABLE"}
        base.mkdir()
        wait_for(lambda: states(manager) == {123: "END"})


def test_only_decimal_names_are_versions(tmp_path):
    for name in ("7", "007", "8x", ".9", "-1", "٣", "9223372036854775807", "9223372036854775808", "tmp-10"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").touch()
    assert set(find_versions(tmp_path)) == {7, 2**63 - 1}


def test_two_models_of_one_name_and_relative_paths_are_refused(base):
    with pytest.raises(StatusError, match="Illegal to list model H multiple times"):
        check_configs([ModelConfig("H", base), ModelConfig("H", base)])
    with pytest.raises(StatusError, match="to have an absolute path, but got: models"):
        ModelConfig("H", "models")


def test_a_load_is_tried_again_as_often_as_told(base):
    tries = []
    (base / "123" / "broken").touch()
    with managed(base, ManagerOptions(0.02, 3, 0.01), lambda folder: tries.append(1) or FakeSession(folder)) as manager:
        with pytest.raises(StatusError, match="Could not find SavedModel"):
            manager.wait_until_available()
        assert len(tries) == 4


def test_waiting_for_a_model_without_versions_ends(tmp_path):
    with managed(tmp_path) as manager, pytest.raises(StatusError, match="no version to serve after"):
        manager.wait_until_available(0.1)


def test_D16_versions_change_under_many_borrowers_and_none_sees_a_closed_session(base):
    wrong, stop = [], threading.Event()

    def use(manager):
        while not stop.is_set():
            with manager.borrow("H") as servable:
                wrong.extend([servable.version] * servable.session.closed)

    with managed(base) as manager:
        manager.wait_until_available()
        threads = [threading.Thread(target=use, args=[manager]) for _ in range(4)]
        [thread.start() for thread in threads]
        for version in range(124, 134):
            (base / str(version)).mkdir()
            wait_for(lambda version=version: states(manager).get(version) == "AVAILABLE")
        stop.set()
        [thread.join() for thread in threads]
    assert wrong == []


def test_the_stand_in_serves_a_new_version_of_the_real_model(half_plus_two, tmp_path):
    shutil.copytree(half_plus_two, tmp_path / "H")
    with Manager([ModelConfig("H", tmp_path / "H")], ManagerOptions(0.02)) as manager:
        manager.wait_until_available()
        save_half_plus_two(tmp_path / "H", 124, half=0.25)
        wait_for(lambda: states(manager) == {124: "AVAILABLE", 123: "END"})
        with manager.borrow("H") as servable:
            assert servable.session.run("", ONE)["y"] == 2.25
