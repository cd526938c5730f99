"""Process that loads one SavedModel in TensorFlow's C++ session, as TF Serving does, and measures its calls."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def random_images(count, shape):
    """Return float32 `(count, height, width, channels)`."""
    return np.random.default_rng(0).uniform(0, 255, (count, *shape)).astype(np.float32)


def start(folder):
    """Return the process of one row, with the SavedModel loaded. Raises RuntimeError if it cannot be loaded."""
    command = [sys.executable, __file__, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    while process.stdout.readline() != "ready\n":
        if process.poll() is not None:
            raise RuntimeError(f"{folder} could not be loaded")
    return process


def call(process, batch, calls):
    """Return the seconds of each call, the mean CPU seconds of a call, and the memory in bytes used since loading."""
    process.stdin.write(f"{batch} {calls}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(folder):
    """Run the calls that the standard input requests."""
    import tensorflow  # noqa: F401 - its own memory counts for no row

    from keras_committee.tfserving import session
    from keras_committee.tfserving.session import Session

    session.load_library()
    initial_memory = resident_memory()
    session = Session.load(Path(folder))
    ((name, info),) = session.signatures["serving_default"].inputs.items()
    print("ready", flush=True)
    for line in sys.stdin:
        batch, calls = map(int, line.split())
        inputs = {name: random_images(batch, info.shape[1:])}
        cpu_start, times = time.process_time(), [time.perf_counter()]
        for _ in range(calls):
            session.run("serving_default", inputs)
            times.append(time.perf_counter())
        cpu_seconds = (time.process_time() - cpu_start) / calls
        print(json.dumps([np.diff(times).tolist(), cpu_seconds, resident_memory() - initial_memory]), flush=True)


def resident_memory():
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    serve(sys.argv[1])
