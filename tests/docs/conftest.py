"""Shared fixture: a workspace with every file that the documented commands name."""

import pytest
from workspace import fill_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """`(folder, commands)`: the filled workspace and the commands that have run in it so far."""
    folder = tmp_path_factory.mktemp("docs") / "workspace"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, fill_workspace(folder)
