"""Fixtures of the training tests: stops at a given moment, and workers forked from a process that has TensorFlow."""

import signal
import subprocess
import types

import pytest

from keras_committee.signals import GracefulShutdown, TrainingStopped


class StopAt(GracefulShutdown):
    """Receives SIGTERM before the check of number `moment`: between two steps, or two batches of the validation."""

    def __init__(self, moment: int):
        super().__init__()
        self._left = moment

    def check(self):
        self._left -= 1
        if self._left == 0:
            self.requested = signal.SIGTERM
            raise TrainingStopped


@pytest.fixture(scope="session")
def stop_at():
    """Makes a `GracefulShutdown` that stops at a moment."""
    return StopAt


@pytest.fixture
def forked_workers(fork_server, monkeypatch):
    """The supervisor of this process forks its workers."""
    popen = types.SimpleNamespace(Popen=fork_server.popen, PIPE=subprocess.PIPE)
    monkeypatch.setattr("keras_committee.training.supervisor.subprocess", popen)
