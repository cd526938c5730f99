"""A version appears complete or not at all, with a number that no version ever had."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from publishing import FILES, publish_one, write_version

from keras_committee.errors import ExportError, RecipeError, ResourceError
from keras_committee.export.publish import check_name, publish, staging, taken_versions
from keras_committee.tfserving.versions import find_versions


@pytest.fixture
def base(tmp_path):
    return tmp_path / "models" / "committee"


def test_D01_a_kill_at_every_file_system_call_leaves_no_part_of_a_version_and_stale_folders_go(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("publishing.py")), str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    kills = [json.loads(line) for line in lines]
    assert len(kills) > 20
    assert {"mkdir", "fsync", "rename", "replace", "open", "chmod"} <= {kill["call"] for kill in kills}
    for kill in kills:
        assert kill["left"]["complete"]
        assert kill["left"]["versions"] in (["1"], ["1", "2"])
        assert kill["after"]["complete"]
        assert kill["after"]["staging"] == 0
        assert len(kill["after"]["versions"]) == len(kill["left"]["versions"]) + 1
    assert kills[-1]["left"]["versions"] == ["1", "2"]


def test_D01_the_staging_folder_of_a_live_export_stays(base):
    with staging(base) as first, staging(base) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert list(base.glob(".staging-*")) == []


def test_D03_two_exports_at_once_get_two_numbers(base):
    def one(meet):
        with staging(base) as folder:
            write_version(folder / "version")
            meet.wait()
            publish(base, folder / "version")

    meet = threading.Barrier(6)
    threads = [threading.Thread(target=one, args=[meet]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken_versions(base) == [1, 2, 3, 4, 5, 6]


def test_D03_a_number_is_never_used_again_even_where_its_folder_is_gone(base):
    assert publish_one(base) == base / "1"
    shutil.rmtree(base / "1")
    assert publish_one(base) == base / "2"
    (base / "0041").mkdir()
    (base / "notes").mkdir()
    assert publish_one(base) == base / "42"
    assert (base / "42" / "saved_model.pb").read_bytes() == FILES["saved_model.pb"]


def test_D03_a_damaged_file_of_the_highest_version_publishes_nothing(base):
    publish_one(base)
    (base / ".highest_version.json").write_text("{")
    with pytest.raises(ExportError, match=r"highest_version\.json is damaged"):
        publish_one(base)
    assert taken_versions(base) == [1]


def test_D03_there_is_no_version_beyond_int64(base):
    (base / str(2**63 - 1)).mkdir(parents=True)
    with pytest.raises(ExportError, match="the highest that TF Serving supports"):
        publish_one(base)


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
def test_D05_a_full_disk_publishes_nothing_and_leaves_nothing(base, monkeypatch, call):
    publish_one(base)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResourceError, match="No space left on device"):
        publish_one(base)
    monkeypatch.undo()
    assert taken_versions(base) == [1]
    assert list(base.glob(".staging-*")) == []


def test_a_server_of_another_user_can_read_every_file(base):
    before = os.umask(0o077)
    version = publish_one(base)
    os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [version, *version.rglob("*")]}
    assert modes["variables"] & 0o055 == 0o055
    assert modes["saved_model.pb"] & 0o044 == 0o044
    assert modes["1"] & 0o055 == 0o055


@pytest.mark.parametrize("name", ["wrn 16", "größe", "a" * 129, ".hidden", "a:b"])
def test_a_name_that_a_request_could_not_contain_is_rejected(tmp_path, name):
    with pytest.raises(RecipeError, match="cannot be the name of a model"):
        check_name(tmp_path / name)
    check_name(tmp_path / "wrn-16_1.b")


def test_servers_ignore_the_other_names_in_the_folder(base):
    publish_one(base)
    with staging(base):
        assert len(list(base.iterdir())) == 4  # version 1, the highest version, the lock and the staging folder
        assert find_versions(base) == {1: base / "1"}


def test_D03_a_file_named_like_a_version_takes_its_number(base):
    base.mkdir(parents=True)
    (base / "3").write_text("a file, which would block the rename")
    assert publish_one(base) == base / "4"
