"""Logging of runs to MLflow or Weights & Biases.

The run folder is the only source: a separate process, see `tracking.sender`, sends what the tracker does not have yet.
So a tracker that fails or is slow delays nothing, a run that resumes continues its tracked run, and what could not be
sent is sent by the next command on the run. The process has the tracker's library to itself; here it is not imported.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Self

from keras_committee.errors import RecipeError, did_you_mean
from keras_committee.files import expand_home, read_problem, read_record, write_record
from keras_committee.progress import step
from keras_committee.tables import print_text

TRACKER_NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}

_RECORD_FILE = "tracking.json"  # in the run folder
_STOP = "none"
_SENDING_SECONDS = 600.0  # for what is left at the end of a command
_SENDING_SECONDS_AFTER_ERROR = 5.0
_LIBRARY_SETTINGS = {  # unless the user has set them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # 7 take minutes; the sender tries again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where a run is logged.

    Attributes:
        tracker: `"mlflow"` or `"wandb"`.
        address: Tracking URI of MLflow, or `PROJECT` or `ENTITY/PROJECT` of Weights & Biases; "" is that of the
            library's environment variables.
        key: Unique name of the tracked run.
    """

    tracker: str
    address: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the tracking of `"mlflow[:URI]"` or `"wandb[:PROJECT]"`; None for `"none"`.

        Raises:
            RecipeError: If there is no such tracker, its package is missing, or the address contains a password.
        """
        tracker, _, address = str(text).partition(":")
        if tracker not in (*TRACKER_NAMES, _STOP) or (tracker == _STOP and text != _STOP):
            raise RecipeError(
                "--track must be mlflow, mlflow:URI, wandb, wandb:PROJECT, wandb:ENTITY/PROJECT or none. "
                f"Received: {mask_credentials(str(text))!r}.{did_you_mean(tracker, [*TRACKER_NAMES, _STOP])}"
            )
        if tracker == _STOP:
            return None
        if importlib.util.find_spec(tracker) is None:
            raise RecipeError(f"--track {tracker} needs the package {tracker}: pip install keras-committee[{tracker}]")
        if mask_credentials(address) != address:
            variables = {"mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", "wandb": "WANDB_API_KEY"}
            raise RecipeError(
                "the address of --track contains a user name or a password, which the run folder would record. "
                f"Received: {mask_credentials(str(text))}\n  Leave it out of the address, and set {variables[tracker]}."
                + (" Of a database: set MLFLOW_TRACKING_URI, and give --track mlflow." if tracker == "mlflow" else "")
            )
        address = _absolute(address) if tracker == "mlflow" else address
        return cls(tracker=tracker, address=address, key=uuid.uuid4().hex)

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """Return the tracking that a run folder records; None if it is not tracked.

        Raises:
            OSError, ValueError: If the record is damaged.
        """
        path = run / _RECORD_FILE
        if not path.exists():
            return None
        fields = read_record(path)
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    def record(self, run: Path) -> None:
        """Record the tracking in a run folder, unless the run is tracked there already. Raises ResourceError."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            recorded = self.read(run)
            if recorded is not None and (recorded.tracker, recorded.address) == (self.tracker, self.address):
                return
        write_record(run / _RECORD_FILE, dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """Name of the tracker for messages."""
        return TRACKER_NAMES[self.tracker]


def record(run: Path, track: str | None) -> None:
    """Record where a run is logged from now on.

    Args:
        run: The run folder.
        track: As for `Tracking.parse`; `"none"` ends the logging, None changes nothing.

    Raises:
        RecipeError: As `Tracking.parse`.
        ResourceError: If the record cannot be written.
    """
    if track is None:
        return
    if tracking := Tracking.parse(track):
        tracking.record(run)
    else:
        (run / _RECORD_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def sending(run: Path) -> Iterator[None]:
    """Send the progress of a tracked run while the `with` block trains it.

    If the block raises an error, what is left is sent in the background.

    Args:
        run: The run folder.
    """
    tracking = _recorded(run)
    if tracking is None:
        yield
        return
    process, reader = _start_sender(run, "--follow")
    timeout = _SENDING_SECONDS_AFTER_ERROR
    try:
        yield
        timeout = _SENDING_SECONDS
    finally:
        process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess] - the end of its input ends it
        _wait(process, reader, tracking, run, timeout, kill=timeout == _SENDING_SECONDS)


def send(runs: Iterable[Path]) -> None:
    """Send what the trackers of runs do not have yet, such as an evaluation.

    Args:
        runs: The run folders; those that are not tracked are skipped.
    """
    for run in dict.fromkeys(path.resolve() for path in runs):
        if tracking := _recorded(run):
            process, reader = _start_sender(run)
            _wait(process, reader, tracking, run, _SENDING_SECONDS, kill=True)


def mask_credentials(text: str) -> str:
    """Replace user names and passwords in addresses by `***`."""
    text = re.sub(r"//[^/@\s'\"]*@", "//***@", text)
    return re.sub(r"(?i)([?&](?:\w*(?:password|token|secret|key)\w*)=)(?!\*\*\*)[^&\s'\"]+", r"\1***", text)


def _absolute(address: str) -> str:
    """Return a tracking URI that does not depend on the current folder; a path is that of a folder or a database."""
    if match := re.fullmatch(r"sqlite:///(?!/)(.+)", address):
        return f"sqlite:///{os.path.abspath(match[1])}"
    if not address or "://" in address or address.startswith(("databricks", "file:")):
        return address
    path = os.path.abspath(expand_home(address))
    return f"sqlite:///{path}" if address.endswith((".db", ".sqlite")) else path


def _recorded(run: Path) -> Tracking | None:
    try:
        return Tracking.read(run)
    except (OSError, ValueError, KeyError) as error:
        _logger.warning(
            "warning: %s is damaged: %s. The run is not logged. To log it again, add --track to its training command.",
            run / _RECORD_FILE,
            read_problem(error) if not isinstance(error, KeyError) else f"it has no {error}",
        )
        return None


def _start_sender(run: Path, *options: str) -> tuple[subprocess.Popen, threading.Thread]:
    """Start the sender of a run, and a thread that prints its lines."""
    log = run / "logs" / "tracking.log"
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "keras_committee.tracking.sender", str(run), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches only this process
            env={**_LIBRARY_SETTINGS, **os.environ},
        )
    reader = threading.Thread(target=_print_lines, args=(process.stdout, partial(print_text, err=True)), daemon=True)
    reader.start()
    return process, reader


def _print_lines(lines: IO[bytes], note: Callable[[str], None]) -> None:
    for line in lines:
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed
            note(line.decode(errors="replace").rstrip("\n"))


def _wait(
    process: subprocess.Popen, reader: threading.Thread, tracking: Tracking, run: Path, seconds: float, *, kill: bool
) -> None:
    """Wait for the end of a sender; after `seconds` leave it behind, or kill it."""
    with step(f"sending to {tracking.name}"):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if not kill:
                return
            process.kill()
            process.wait()
            _logger.warning(
                "warning: %s did not receive everything within %d s. The next command on %s sends the rest.",
                tracking.name,
                seconds,
                run,
            )
    reader.join(timeout=1)
