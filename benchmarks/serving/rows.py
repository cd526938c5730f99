"""How long does one SavedModel take for a batch? A process for each, through TensorFlow's own loader and session."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def images(count, shape):
    return np.random.default_rng(0).uniform(0, 255, (count, *shape)).astype(np.float32)


def start(folder):
    """The process of one row, loaded and ready."""
    command = [sys.executable, __file__, str(folder)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    while child.stdout.readline() != "ready\n":
        if child.poll() is not None:
            raise RuntimeError(f"{folder} could not be loaded")
    return child


def call(child, batch, calls):
    """Seconds of each of `calls` calls, of CPU time on average, and bytes of memory since before it was loaded."""
    child.stdin.write(f"{batch} {calls}\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def serve(folder):
    import tensorflow  # noqa: F401 - its own memory is no row's

    from keras_committee.tfserving import session
    from keras_committee.tfserving.session import Session

    session.load_library()
    before = resident()
    session = Session.load(Path(folder))
    ((name, info),) = session.signatures["serving_default"].inputs.items()
    print("ready", flush=True)
    for line in sys.stdin:
        batch, calls = (int(word) for word in line.split())
        inputs = {name: images(batch, info.shape[1:])}
        cpu, moments = time.process_time(), [time.perf_counter()]
        for _ in range(calls):
            session.run("serving_default", inputs)
            moments.append(time.perf_counter())
        cpu = (time.process_time() - cpu) / calls
        print(json.dumps([np.diff(moments).tolist(), cpu, resident() - before]), flush=True)


def resident():
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    serve(sys.argv[1])
