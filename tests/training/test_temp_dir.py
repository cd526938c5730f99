"""Temporary files of training processes: inside the run folder, and removed even after a kill."""

import tempfile
from pathlib import Path

import pytest

from keras_committee.files import file_lock
from keras_committee.run import Run
from keras_committee.training.temp_dir import own_temp_dir


@pytest.fixture
def system_temp_dir(tmp_path, monkeypatch):
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def test_training_leaves_no_file_in_the_temporary_folder_of_the_system(new_run, system_temp_dir):
    """TensorFlow removes its files when Python ends, which a killed process does not reach."""
    run, train = new_run(["members=1", "epochs=1"])
    train()
    assert list(system_temp_dir.iterdir()) == []
    assert not (run.path / ".tmp").exists()
    assert tempfile.gettempdir() == str(system_temp_dir)


def test_folders_of_killed_processes_are_removed_and_those_of_others_kept(run, system_temp_dir):
    left, other = run.path / ".tmp" / "left", run.path / ".tmp" / "other"
    left.mkdir(parents=True)
    (left / "__autograph_generated_file.py").touch()
    (left / "lock").touch()
    with file_lock(other / "lock", "the folder of another process"):
        with own_temp_dir(run):
            own = Path(tempfile.gettempdir())
            assert own.parent == run.path / ".tmp"
            assert not left.exists()
            with own_temp_dir(run):  # of another process
                assert own.exists()
        assert not own.exists()
        assert other.exists()
    with own_temp_dir(run):
        pass
    assert not (run.path / ".tmp").exists()


def test_the_folder_of_the_system_is_used_where_none_can_be_created(run, system_temp_dir):
    (run.path / ".tmp").write_text("in the way")
    with own_temp_dir(run):
        assert tempfile.gettempdir() == str(system_temp_dir)
    assert (run.path / ".tmp").read_text() == "in the way"
