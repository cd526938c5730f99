"""What does the process of one member do? `python -m keras_committee.training.worker ORDER`, by the supervisor only."""

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
from keras_committee.training.devices import enable_determinism, make_strategy, translate_oom
from keras_committee.training.reporting import Reporter, TrainingOptions
from keras_committee.training.signals import EXIT_CODES, GracefulShutdown, TrainingStopped
from keras_committee.training.trainer import train_member

_STEP_REPORT_SECONDS = 0.2  # between two lines that tell of steps


class PipeReporter:
    """Reports to the supervisor, a message for each call.

    Args:
        write: Sends a message, which JSON can hold.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]):
        self._write = write
        self._unreported_steps, self._last_report = 0, time.monotonic()

    def on_resume(self, index: int, step: int) -> None:
        self._send_call("on_resume", index, step)

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
    """Trains member `index` of the recipe kept in `run`, which the caller owns. Raises what `train_member` raises."""
    recipe = run.recipe()
    tf_strategy = make_strategy(strategy, recipe.data.batch_size)
    splits, member_dir = recipe.data.load(), run.member(index)
    with translate_oom(index):
        train_member(recipe, index, splits, member_dir, tf_strategy, reporter, shutdown, options)


def main(task_spec: dict[str, Any]) -> int:
    """Trains the member that the supervisor asks for; returns the exit code."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = os.fdopen(task_spec["messages"], "w", encoding="utf-8", buffering=1)

    def write(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")

    def train() -> None:
        run = Run.open(task_spec["run"])
        with run.member(task_spec["index"]).lock():
            train_one(run, task_spec["index"], task_spec["strategy"], PipeReporter(write), shutdown, options)

    options = TrainingOptions(**task_spec["settings"])
    configure_threads(task_spec["threads"], options)
    with GracefulShutdown() as shutdown:
        error = capture_error(train)
    if error is None:
        return 0
    write({"error": error})
    return EXIT_CODES[signal.SIGTERM] if error["kind"] == "Stopped" else getattr(errors, error["kind"]).exit_code


def configure_threads(threads: int, options: TrainingOptions) -> None:
    """Sets TensorFlow up, before it has done anything in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if options.deterministic:
        enable_determinism()


def capture_error(train: Callable[[], None]) -> dict[str, str] | None:
    """Why `train` did not finish its member, as it is told to whoever started this process; None where it did."""
    try:
        train()
    except CommitteeError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    except TrainingStopped:
        return {"kind": "Stopped", "text": ""}
    return None


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
