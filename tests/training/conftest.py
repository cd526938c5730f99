"""What tests of recovery share."""

import signal

import pytest

from keras_committee.training.signals import GracefulShutdown, TrainingStopped


class StopAt(GracefulShutdown):
    """SIGTERM comes before the `moment`th look: between two steps, or between two batches of the validation."""

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
    """Makes an `GracefulShutdown` that asks to stop at a moment."""
    return StopAt
