"""The process that trains one member, started by the supervisor: `python -m keras_committee.training.worker SPEC`."""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_committee import errors
from keras_committee.errors import CommitteeError
from keras_committee.run import Run
from keras_committee.signals import EXIT_CODES, GracefulShutdown, TrainingStopped, preserve_stop
from keras_committee.training.devices import enable_determinism, make_strategy, translate_oom
from keras_committee.training.reporting import Phase, Reporter, TrainingOptions
from keras_committee.training.temp_dir import own_temp_dir
from keras_committee.training.trainer import train_member
from keras_committee.training_run import load_splits

_STEP_REPORT_SECONDS = 0.2  # between two messages about steps


class PipeReporter:
    """Sends each call of a reporter's method to the supervisor, as a message.

    Args:
        write: Function that sends a message, a JSON object.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]):
        self._write = write
        self._unreported_steps, self._last_report = 0, time.monotonic()

    def on_resume(self, index: int, step: int) -> None:
        self._send_call("on_resume", index, step)

    def on_phase(self, index: int, epoch: int, phase: Phase) -> None:
        self._send_call("on_phase", index, epoch, phase)

    def on_steps_end(self, index: int, steps: int = 1) -> None:
        self._unreported_steps += steps
        if time.monotonic() - self._last_report > _STEP_REPORT_SECONDS:
            self._send_steps(index)

    def on_epoch_end(self, index: int, row: dict[str, Any]) -> None:
        self._send_steps(index)
        self._send_call("on_epoch_end", index, row)

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        self._send_call("event", index, name, text, **fields)

    def note(self, text: str) -> None:
        self._send_call("note", text)

    def _send_steps(self, index: int) -> None:
        self._send_call("on_steps_end", index, self._unreported_steps)
        self._unreported_steps, self._last_report = 0, time.monotonic()

    def _send_call(self, call: str, *args: Any, **fields: Any) -> None:
        self._write({"call": call, "args": args, "fields": fields})


def train_one(
    run: Run, index: int, strategy: str, reporter: Reporter, shutdown: GracefulShutdown, options: TrainingOptions
) -> None:
    """Train member `index` of the recipe recorded in `run`, locked by the caller. Raises as `train_member` does."""
    with own_temp_dir(run), preserve_stop():
        recipe = run.recipe()
        tf_strategy = make_strategy(strategy, recipe.data.batch_size)
        splits, member_dir = load_splits(recipe), run.member(index)
        with translate_oom(index):
            train_member(recipe, index, splits, member_dir, tf_strategy, reporter, shutdown, options)


def configure_threads(threads: int, options: TrainingOptions) -> None:
    """Configure TensorFlow's threads and determinism. Call it before any other use of TensorFlow in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if options.deterministic:
        enable_determinism()


def capture_error(train: Callable[[], None]) -> dict[str, str] | None:
    """Call `train`, and return the error to send to the supervisor, or None."""
    try:
        train()
    except (CommitteeError, TrainingStopped) as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return None


def main(task_spec: dict[str, Any]) -> int:
    """Train the member of `task_spec`, see `LocalBackend.start`; return the exit code."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = os.fdopen(task_spec["messages"], "w", encoding="utf-8", buffering=1)

    def write(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")

    def train() -> None:
        run, index = Run.open(task_spec["run"]), task_spec["index"]
        with run.member(index).lock():
            train_one(run, index, task_spec["strategy"], PipeReporter(write), shutdown, options)

    options = TrainingOptions(**task_spec["options"])
    configure_threads(task_spec["threads"], options)
    with GracefulShutdown() as shutdown:
        error = capture_error(train)
    if error is None:
        return 0
    write({"error": error})
    if error["kind"] == "TrainingStopped":
        return EXIT_CODES[signal.SIGTERM]
    return getattr(errors, error["kind"]).exit_code


def _die_with_parent() -> None:
    """End this process when its stdin closes, which the supervisor holds open."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
