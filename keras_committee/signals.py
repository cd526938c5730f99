"""Graceful shutdown on Ctrl-C and SIGTERM."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from keras_committee.errors import CommitteeError, Interrupted, error_chain

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_NOTES = {
    signal.SIGINT: "Ctrl-C: saving. Press Ctrl-C again to stop at once; the last checkpoint is kept.",
    signal.SIGTERM: "SIGTERM: saving.",
}


class TrainingStopped(BaseException):
    """Training was interrupted at a place where it can be saved.

    Like KeyboardInterrupt it is no `Exception`: it may be raised inside a recipe or inside Keras, which would report an
    `Exception` as an error of the recipe.
    """


@contextmanager
def preserve_stop() -> Iterator[None]:
    """Raise `TrainingStopped` in place of an error that a library raised because of it.

    A signal may raise `TrainingStopped` between any two instructions, and so inside the `__enter__` of a context
    manager, whose `__exit__` then does not run. TensorFlow's tracing, for example, fails with an AssertionError.
    """
    try:
        yield
    except CommitteeError:  # such as that of a save after the stop
        raise
    except Exception as error:
        if any(isinstance(each, TrainingStopped) for each in error_chain(error)):
            raise TrainingStopped from error
        raise


class GracefulShutdown:
    """Handles Ctrl-C and SIGTERM, deferred until the work can be saved.

    As a context manager it replaces the handlers of both signals. Inside `mask_signals()` a signal only sets
    `requested`, which the work checks; elsewhere it raises `TrainingStopped` at once. After `TrainingStopped` was
    raised, later signals do not interrupt the saving. A second Ctrl-C ends the process at once, from a thread: Python
    runs no signal handler during a long step. Outside the main thread, where Python allows no handlers, none is
    replaced.

    Args:
        note: Function that displays a line as soon as a signal is received, such as during a long step; it is called
            in a thread. None displays nothing.
    """

    def __init__(self, note: Callable[[str], None] | None = None):
        self._note = note
        self.requested: signal.Signals | None = None
        self._mask_depth, self._stop_raised = 0, False
        self._previous_handlers: dict = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._previous_wakeup_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            with self.mask_signals():  # nobody would catch `TrainingStopped` from here
                self._previous_handlers = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
                threading.Thread(target=_watch, args=(self._pipe[0], self._note), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._previous_handlers:
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_wakeup_fd)
            os.close(self._pipe[1])  # the thread reads its end and closes the other side
            self._previous_handlers = {}

    @contextmanager
    def mask_signals(self, enabled: bool = True) -> Iterator[None]:
        """Defer signals inside the block. `enabled=False` defers none: there is nothing to lose."""
        self._mask_depth += enabled
        try:
            yield
        finally:
            self._mask_depth -= enabled

    def check(self) -> None:
        """Raise `TrainingStopped` if a signal was received."""
        if self.requested:
            self._stop_raised = True
            raise TrainingStopped

    def check_each(self, items: Iterable) -> Iterator:
        """Yield the items, and raise `TrainingStopped` before the next one once a signal was received."""
        for item in items:
            self.check()
            yield item

    def check_before_saving(self) -> None:
        """Raise RunError if this process may no longer write into the member's folder. See `LeaseShutdown`."""

    def as_error(self, progress: str, hint: str) -> Interrupted:
        """Return the error for the user.

        Args:
            progress: What was saved.
            hint: How to resume.
        """
        number = self.requested or signal.SIGINT
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        return Interrupted(f"{name}: {progress}.\n  {hint}", EXIT_CODES[number])

    def _handle(self, number: int, _frame) -> None:
        self.requested = self.requested or signal.Signals(number)
        if not self._mask_depth and not self._stop_raised:
            self.check()


def _watch(pipe: int, note: Callable[[str], None] | None) -> None:
    """Display that a signal was received, and end the process upon the second Ctrl-C."""
    num_sigints = 0
    while num_sigints < 2 and (received := os.read(pipe, 16)):
        first = next((signal.Signals(number) for number in received if number in EXIT_CODES), None)
        if note and first:  # in another thread: the reader of stderr may be suspended
            threading.Thread(target=note, args=(_NOTES[first],), daemon=True).start()
            note = None
        num_sigints += received.count(signal.SIGINT)
    if num_sigints >= 2:
        with suppress(OSError):  # stderr may be closed, or its reader suspended
            if select.select([], [2], [], 0.5)[1]:
                os.write(2, b"\nstopped at once; the last checkpoint is safe\n")
        os._exit(EXIT_CODES[signal.SIGINT])
    os.close(pipe)
