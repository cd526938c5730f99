"""Is there room to train here: cores, memory, disk, files, shared memory; and does the environment leave it alone?"""

import fcntl
import json
import math
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from keras_committee import system_limits
from keras_committee.cli.doctor.finding import Finding

GIB = 1024**3
BINARY = "tensorflow_model_server"
_MEMORY, _DISK, _FILES, _SHARED = 2 * GIB, 1 * GIB, 1024, GIB // 4
_NOTED = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_ENABLE_ONEDNN_OPTS")
_FLAGS = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_FORCE_GPU_ALLOW_GROWTH")


def machine_findings() -> Iterator[Finding]:
    """What the machine and the environment leave for training."""
    yield _cores()
    yield _memory(system_limits.free_memory())
    yield disk(Path("runs"))
    yield _files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _shared_memory(Path("/dev/shm"))
    yield from environment_findings(os.environ)
    yield serving(shutil.which(BINARY))


def environment_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The variables that change what Keras and TensorFlow do."""
    yield _backend(environment)
    if cluster := environment.get("TF_CONFIG"):
        yield _cluster(cluster)
    given = [f"{name}={environment[name]}" for name in (*_FLAGS, *_NOTED) if name in environment]
    yield Finding("environment", "ok", ", ".join(given) or f"none of {', '.join(_FLAGS)} is set")


def disk(runs: Path) -> Finding:
    """Whether runs can be written and locked, and how much room there is."""
    folder = next(each for each in (runs, *runs.absolute().parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"{folder.absolute()} cannot be written and locked: {error.strerror}"
        return Finding("disk", "wrong", text, "cd into a folder of yours, or train with --run DIR", needed=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free for runs/ in {folder.absolute()}"
    if free < _DISK:
        return Finding("disk", "wrong", f"{text}; at least 1 GiB is wanted", "make room, or train with --run DIR", True)
    return Finding("disk", "ok", text)


def serving(binary: str | None) -> Finding:
    if binary:
        return Finding(BINARY, "ok", binary)
    text = "not on the PATH; only `serve --real` starts it, `serve` has a stand-in"
    return Finding(BINARY, "missing", text, "docker pull tensorflow/serving")


def _cores() -> Finding:
    seen, quota = len(system_limits.usable_cores()), system_limits.cpu_quota()
    limit = "" if math.isinf(quota) else f", {quota:g} by the quota of the container"
    return Finding("cores", "ok", f"{seen} of {os.cpu_count()} usable{limit}")


def _memory(free: int) -> Finding:
    text = f"{free / GIB:.1f} GiB free"
    if free < _MEMORY:
        mend = "end other programs, or train with --workers 1 and a smaller --set batch_size"
        return Finding("memory", "wrong", f"{text}; a member takes 1 to 2 GiB", mend)
    return Finding("memory", "ok", text)


def _files(limit: int) -> Finding:
    if 0 <= limit < _FILES:
        return Finding("open files", "wrong", f"at most {limit}; {_FILES} are wanted", f"ulimit -n {_FILES}")
    return Finding("open files", "ok", f"at most {limit}" if limit >= 0 else "without limit")


def _shared_memory(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"there is no {folder} on this system")
    size = shutil.disk_usage(folder).total
    text = f"{size / GIB:.2f} GiB in {folder}"
    if size < _SHARED:
        mend = "docker run --shm-size=2g ..., for --ray and several GPUs"
        return Finding("shared memory", "wrong", text, mend)
    return Finding("shared memory", "ok", text)


def _backend(environment: Mapping[str, str]) -> Finding:
    file = Path(environment.get("KERAS_HOME") or Path.home() / ".keras", "keras.json")
    asked, where, mend = environment.get("KERAS_BACKEND"), "KERAS_BACKEND", "export KERAS_BACKEND=tensorflow"
    if not asked:
        asked, where = _configured(file), str(file)
    if asked not in (None, "tensorflow"):
        text = f"{asked}, by {where}; training and data are TensorFlow"
        return Finding("Keras backend", "wrong", text, mend, needed=True)
    return Finding("Keras backend", "ok", "tensorflow")


def _configured(file: Path) -> str | None:
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return settings.get("backend") if isinstance(settings, dict) else None


def _cluster(text: str) -> Finding:
    try:
        task = json.loads(text)["task"]
        return Finding("TF_CONFIG", "ok", f"this host is {task['type']} {task['index']}; for --strategy multiworker")
    except (ValueError, KeyError, TypeError):
        mend = "unset TF_CONFIG, or give it as deploy/training.md shows"
        return Finding("TF_CONFIG", "wrong", f"not the description of a cluster: {text[:60]}", mend)
