"""Verification of exports in the test process."""

import json
import subprocess
import types
from pathlib import Path

import pytest

from keras_committee.export import verify


@pytest.fixture(scope="module")
def verified_here():
    """Verify exports in this process, not in a fresh one, which takes seconds; test_export.py uses a fresh one."""

    def run(command, **_):
        result = verify.verify(*map(Path, command[-2:]))
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", types.SimpleNamespace(run=run))
        yield
