"""Does TensorFlow start, and which devices does it find?

It is asked in a process of its own: a broken installation may end the process that imports it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_committee.cli.doctor.finding import Finding

# Says in one line of JSON what it found, or the first cause of what went wrong.
PROGRAM = """
import json, sys, time
start = time.monotonic()
try:
    import keras
    import tensorflow as tf
    found = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "cuda": tf.test.is_built_with_cuda(),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
        "sum": float(tf.reduce_sum(tf.constant([0.25, 0.5]))),
        "seconds": time.monotonic() - start,
    }
except BaseException as error:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    found = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""
REINSTALL = "pip install --force-reinstall 'tensorflow~=2.20'"
_SECONDS = 300
_SIGNALS = {
    signal.SIGILL: "this processor lacks instructions (AVX) that this build of TensorFlow uses",
    signal.SIGKILL: "most likely the memory did not suffice",
    signal.SIGABRT: "a wrong XLA_FLAGS or TF_XLA_FLAGS does that",
}


def tensorflow_findings(program: Sequence[str] = (sys.executable, "-P", "-c", PROGRAM)) -> Iterator[Finding]:
    """Whether TensorFlow and Keras start, with what; the devices where they do."""
    answer = _ask(program)
    if "error" in answer:
        mend = answer.get("mend") or REINSTALL
        yield Finding("TensorFlow", "wrong", f"it does not start: {_first_line(answer['error'])}", mend, needed=True)
        return
    took = f"starts in {answer['seconds']:.1f} s"
    yield Finding("TensorFlow", "ok", f"{answer['tensorflow']}, Keras {answer['keras']} on it; {took}", needed=True)
    yield devices(answer, _nvidia())


def devices(answer: dict[str, Any], nvidia: bool) -> Finding:
    """GPUs that TensorFlow uses; that it uses none where there are some is wrong."""
    if answer["gpus"]:
        return Finding("GPUs", "ok", f"{len(answer['gpus'])}: {', '.join(answer['gpus'])}")
    if nvidia and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("GPUs", "wrong", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if nvidia:
        text = "this machine has NVIDIA GPUs, TensorFlow sees none of them: members would train on the cores"
        return Finding("GPUs", "wrong", text, "pip install 'tensorflow[and-cuda]~=2.20'")
    return Finding("GPUs", "ok", "none: members train on the cores")


def _ask(program: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        ended = subprocess.run(program, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_SECONDS} s", "mend": "free the machine, or move the packages to a local disk"}
    try:
        return json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return _unsaid(ended.returncode, ended.stderr)


def _unsaid(code: int, said: str) -> dict[str, Any]:
    """What the end of a process tells that could not say itself what went wrong."""
    if code < 0:
        why = _SIGNALS.get(signal.Signals(-code))
        return {"error": f"it ended with {signal.Signals(-code).name}" + (f"; {why}" if why else "")}
    return {"error": (said.strip().splitlines() or [f"it ended with exit code {code}"])[-1]}


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), text)


def _nvidia() -> bool:
    """Whether the driver of NVIDIA is there."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
