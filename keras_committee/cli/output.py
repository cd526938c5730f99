"""Output of commands: one JSON document, or text that ends with the next command to run."""

import contextlib
import errno
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from keras_committee.tables import print_text


def protect_standard_streams() -> None:
    """Let a command go on where its output cannot be printed: a closed stream, a closed pipe or a full disk.

    Characters that the encoding of a stream lacks are printed as escapes such as `\\udcff`.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed: the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _protected(sys.stdout), _protected(sys.stderr)


def stdout_error() -> OSError | None:
    """Return why a part of the output is missing; None if all of it was written or nobody reads it."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _ProtectedFile) else None


class _ProtectedFile(io.FileIO):
    """The file of a standard stream. After an error, what is written to it is discarded."""

    error: OSError | None = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.error = None if error.errno == errno.EPIPE else error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def _protected(stream: Any) -> Any:
    """Return a stream on the same file that raises no error; other streams than Python's own remain."""
    if stream is None:  # closed
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    file = getattr(stream.buffer, "raw", stream.buffer)
    if type(file) is not io.FileIO or file.fileno() not in (1, 2):
        return stream
    stream.flush()
    buffer = io.BufferedWriter(_ProtectedFile(file.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


@contextlib.contextmanager
def reserve_stdout_for_json(as_json: bool) -> Iterator[None]:
    """Redirect stdout to stderr inside the block if `as_json`, so that stdout holds the JSON document only."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(document: dict[str, Any]) -> None:
    """Print the document on one line."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


@contextlib.contextmanager
def print_log() -> Iterator[None]:
    """Print each warning of the package's log to stderr once inside the block, on a terminal wrapped between words."""
    logger, handler = logging.getLogger("keras_committee"), _StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _StderrHandler(logging.Handler):
    def __init__(self, level: int):
        super().__init__(level)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if text not in self._printed:  # `search` reads the data once per member
                self._printed.add(text)
                print_text(text, err=True)
        except Exception:
            self.handleError(record)


def print_message(text: str) -> None:
    """Print to stdout at once, on a terminal wrapped between words."""
    print_text(text)


def print_next_steps(*arguments: str) -> None:
    """Print the command to run next, ready to copy."""
    print_message(f"Next: {command_line(*arguments)}")


def forwarded_options(min_members: int | None = None, allow_duplicate_weights: bool = False) -> list[str]:
    """Return the options of this command that the next one needs, too."""
    return [
        *(["--allow-incomplete", str(min_members)] if min_members else []),
        *(["--allow-duplicate-weights"] if allow_duplicate_weights else []),
    ]


def command_line(*arguments: str) -> str:
    """Return a `keras-committee` command line, quoted for a shell."""
    return shlex.join(["keras-committee", *arguments])
