"""Saves checkpoints in processes that end at every single call to the file system, and prints what each one left.

Run by `test_checkpoint.py` in a fork: `python killed_saves.py FOLDER SCENE`. A line of JSON describes each process: the
call, what `load_newest` returned, and what lay in the folder before and after a further save.
"""

import builtins
import contextlib
import functools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from keras_committee.checkpoints import Checkpoints

CALLS = [(os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "open")]


def save(checkpoints, step, value, needs=None):
    arrays = {"model/00000": np.full((3, 5), value, "float32"), "model/00001": np.array([step, 7])}
    checkpoints.save(step, arrays, {"value": value}, needs)


def save_best(checkpoints, epoch):
    return checkpoints.save_named(f"best-{epoch:06d}", {"model/00000": np.full(4, epoch / 10, "float32")})


def prepare_nothing(checkpoints):
    pass


def prepare_two(checkpoints):
    save(checkpoints, 10, 0.1, save_best(checkpoints, 1))
    save(checkpoints, 20, 0.2, save_best(checkpoints, 2))


def prepare_damaged(checkpoints):
    prepare_two(checkpoints)
    with open(checkpoints._folder / "step-000000020" / "arrays.npz", "r+b") as file:
        file.write(b"\0\0\0\0")


SCENES = {
    "first": (prepare_nothing, lambda checkpoints: save(checkpoints, 30, 0.3)),
    "third": (prepare_two, lambda checkpoints: save(checkpoints, 30, 0.3, save_best(checkpoints, 3))),
    "again": (prepare_two, lambda checkpoints: save(checkpoints, 20, 0.3, "best-000002")),
    "damaged": (prepare_damaged, lambda checkpoints: checkpoints.load_newest()),
}


class Countdown:
    """Ends the process at one call, before or after it."""

    def __init__(self, last):
        self.left = last

    def step(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def wrap(self, home, name):
        function = getattr(home, name)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        # shutil.rmtree checks whether these very functions support folder descriptors.
        for known in (os.supports_dir_fd, os.supports_fd):
            if function in known:
                known.add(counted)
        setattr(home, name, counted)


def exit_code(act, last):
    """The exit code of a child that runs `act` and is killed at its file system call number `last`."""
    child = os.fork()
    if child == 0:
        countdown = Countdown(last)
        for home, name in [*CALLS, (builtins, "open")]:
            countdown.wrap(home, name)
        with contextlib.suppress(BaseException):
            act()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def inspect(folder):
    """What the process after the killed one finds."""
    checkpoints = Checkpoints(folder)
    before = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
    checkpoint, problems = checkpoints.load_newest()
    found = None
    if checkpoint is not None:
        values = sorted(set(checkpoint.arrays["model/00000"].ravel().tolist()))
        steps = [checkpoint.step, int(checkpoint.arrays["model/00001"][0])]
        needs = checkpoints._required_dir_name(f"step-{checkpoint.step:09d}")
        best = None if needs is None else sorted(set(checkpoints.load_named(needs)["model/00000"].tolist()))
        found = {"steps": steps, "value": checkpoint.document["value"], "values": values, "best": best}
    save(checkpoints, 40, 0.4)
    return {
        "before": before,
        "found": found,
        "problems": problems,
        "after": sorted(path.name for path in folder.glob("*")),
    }


def main(scratch, scene):
    os.fsync = lambda file: None  # what a kill leaves does not depend on it, and it takes most of the time
    prepare, act = SCENES[scene]
    for last in range(10_000):
        folder = Path(scratch) / "state"
        prepare(Checkpoints(folder))
        code = exit_code(functools.partial(act, Checkpoints(folder)), last)
        print(json.dumps({"call": last, "code": code, **inspect(folder)}))
        shutil.rmtree(folder)
        if code != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
