"""Working folders of the command-line tests."""

import pathlib
import shutil

import pytest

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty current folder with the tiny recipe, whose members print while they are built."""
    monkeypatch.chdir(tmp_path)
    signature = "    def member(index):\n"
    source = TINY.read_text()
    assert signature in source
    (tmp_path / "tiny.py").write_text(source.replace(signature, f'{signature}        print("building")\n'))
    return tmp_path


@pytest.fixture
def copied(copy_of_trained, tmp_path, monkeypatch):
    """Copy of the trained run, as `runs/tiny` in the current folder beside its recipe."""
    copy_of_trained(tmp_path / "runs" / "tiny")
    shutil.copy(TINY, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny"
