"""What the serving tests share: a model whose answers are known by heart."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tfserving"))  # half_plus_two, tiny_committee
from half_plus_two import save_half_plus_two
from tiny_committee import save_tiny_committee

from keras_committee.export import verify


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory):
    """The base path of `half_plus_two`, with version 123. Tests only read it, or copy the version."""
    base = tmp_path_factory.mktemp("models") / "half_plus_two"
    save_half_plus_two(base)
    return base


@pytest.fixture(scope="session")
def tiny_committee(tmp_path_factory):
    """The base path of `tiny_committee`, with version 4. Tests only read it."""
    base = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_committee(base, 4)
    return base


@pytest.fixture(scope="module")
def verified_here():
    """What is exported is verified in this process; tests/serving/test_export.py has it done in one of its own."""

    def run(command, **_):
        found = verify.verify(*map(Path, command[-2:]))
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", types.SimpleNamespace(run=run))
        yield
