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
from keras_committee.training.devices import be_deterministic, make_strategy, memory_told
from keras_committee.training.reporting import Report, Settings
from keras_committee.training.signals import CODES, Interruption, Stopped
from keras_committee.training.trainer import train_member

_SECONDS_BETWEEN_STEPS = 0.2  # between two lines that tell of steps


class Messages:
    """Reports to the supervisor, a message for each call.

    Args:
        write: Sends a message, which JSON can hold.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]):
        self._write = write
        self._steps, self._told = 0, time.monotonic()

    def resumed(self, index: int, step: int) -> None:
        self._call("resumed", index, step)

    def steps_ended(self, index: int, steps: int = 1) -> None:
        self._steps += steps
        if time.monotonic() - self._told > _SECONDS_BETWEEN_STEPS:
            self._tell_steps(index)

    def epoch_ended(self, index: int, row: dict[str, Any]) -> None:
        self._tell_steps(index)
        self._call("epoch_ended", index, row)

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        self._call("event", index, name, text, **fields)

    def note(self, text: str) -> None:
        self._call("note", text)

    def _tell_steps(self, index: int) -> None:
        self._call("steps_ended", index, self._steps)
        self._steps, self._told = 0, time.monotonic()

    def _call(self, call: str, *args: Any, **fields: Any) -> None:
        self._write({"call": call, "args": args, "fields": fields})


def train_one(run: Run, index: int, strategy: str, report: Report, stop: Interruption, settings: Settings) -> None:
    """Trains member `index` of the recipe kept in `run`, which the caller owns. Raises what `train_member` raises."""
    recipe = run.recipe()
    devices = make_strategy(strategy, recipe.data.batch_size)
    splits, folder = recipe.data.load(), run.member(index)
    with memory_told(index):
        train_member(recipe, index, splits, folder, devices, report, stop, settings)


def main(order: dict[str, Any]) -> int:
    """Trains the member that the supervisor asks for; returns the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = os.fdopen(order["messages"], "w", encoding="utf-8", buffering=1)

    def write(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")

    def train() -> None:
        run = Run.open(order["run"])
        with run.member(order["index"]).lock():
            train_one(run, order["index"], order["strategy"], Messages(write), stop, settings)

    settings = Settings(**order["settings"])
    prepare(order["threads"], settings)
    with Interruption() as stop:
        error = outcome(train)
    if error is None:
        return 0
    write({"error": error})
    return CODES[signal.SIGTERM] if error["kind"] == "Stopped" else getattr(errors, error["kind"]).exit_code


def prepare(threads: int, settings: Settings) -> None:
    """Sets TensorFlow up, before it has done anything in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if settings.deterministic:
        be_deterministic()


def outcome(train: Callable[[], None]) -> dict[str, str] | None:
    """Why `train` did not finish its member, as it is told to whoever started this process; None where it did."""
    try:
        train()
    except CommitteeError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    except Stopped:
        return {"kind": "Stopped", "text": ""}
    return None


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
