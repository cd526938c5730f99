"""What does the task of one member do on a node of a Ray cluster? It is started by `ray_tasks.py` only."""

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import ray

from keras_committee.files import writing
from keras_committee.run import Run
from keras_committee.training.claim import Claim, ClaimInterruption
from keras_committee.training.report import Settings
from keras_committee.training.worker import Messages, outcome, prepare, train_one


def train_task(order: dict[str, Any], queue: Any) -> dict[str, str] | None:
    """Trains a member, and returns why it is not finished, as `worker.outcome` does.

    Args:
        order: What the driver asks for.
        queue: Takes `(token, message)`.
    """
    run = Run(Path(order["run"]))
    claim = Claim(run.member(order["index"]), order["token"])

    def write(message: dict[str, Any]) -> None:
        queue.put((claim.token, message))

    def train() -> None:
        claim.require_shared()
        _write_into(run.log(order["index"]))
        if os.path.isdir(order["folder"]):  # a recipe may name its data from there
            os.chdir(order["folder"])
        node = ray.get_runtime_context().get_node_id()
        write({"started": {"host": socket.gethostname(), "pid": os.getpid()}, "node": node})
        settings = Settings(**order["settings"])
        prepare(order["threads"], settings)
        stop = ClaimInterruption(claim)
        train_one(Run.open(run.path), order["index"], order["strategy"], Messages(write), stop, settings)

    try:
        error = outcome(train)
    except Exception:
        traceback.print_exc()  # into the log of the member
        raise
    if error:  # of a process that was given up, nobody else hears it
        print(f"pid {os.getpid()} on {socket.gethostname()} ends: {error['kind']}: {error['text']}", flush=True)
    return error


def _write_into(log: Path) -> None:
    """Lets all that this process prints end in `log`."""
    with writing(log):
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
