"""Which training steps does TensorFlow profile?"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf


class Profile:
    """What the machine did in some steps of a member, for TensorBoard's page Profile (extra `profile`).

    Used as a context: at its end a profile that has not reached its last step is written as far as it got. Training
    goes on without what cannot be written.

    Args:
        folder: TensorBoard's folder of the member.
        steps: The first and the last step, counted from 1 where training begins or goes on; None profiles nothing.
        tell: Function of a line for the user.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, tell: Callable[[str], None]):
        self._folder, self._steps, self._tell = folder, steps, tell
        self._taken, self._since = 0, 0  # steps; the first one of the profile that runs

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self._write()
        if self._steps and self._taken < self._steps[0]:
            self._tell(f"warning: no profile: {self._taken} steps were taken, the first to profile is {self._steps[0]}")

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around each step."""
        self._taken += 1
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._taken == first:
            tf.profiler.experimental.start(str(self._folder))
            self._since = first
        with tf.profiler.experimental.Trace("train", step_num=self._taken, _r=1):
            yield
        if self._taken == last:
            self._write()

    def _write(self) -> None:
        since, self._since = self._since, 0
        if not since:
            return
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            self._tell(f"warning: the profile cannot be written: {error.message}")
        else:
            self._tell(f"profile of steps {since} to {self._taken}: {self._folder}")
