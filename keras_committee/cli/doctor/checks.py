"""Is there room to train here: cores, memory, disk, files, shared memory; and does the environment leave it alone?"""

import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from keras_committee import system_limits

State = Literal["ok", "missing", "wrong"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `doctor`.

    Args:
        part: What was looked at.
        state: Whether it is as it should be.
        text: What was found.
        mend: The command, or the act, that mends it; empty where nothing needs mending.
        needed: Whether `train` cannot work while it is not ok.
    """

    part: str
    state: State
    text: str
    mend: str = ""
    needed: bool = False

    def __str__(self) -> str:
        lines = [f"{self.state:<8} {self.part}: {self.text}", *([f"         {self.mend}"] if self.mend else [])]
        return "\n".join(lines)


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


OURS = "keras-committee"
INSTALL = f"pip install {OURS}"
PURPOSES = {
    "cv": "keras-cv's models as members",
    "model-garden": "the Model Garden's models as members",
    "serving": "`serve`, and `predict --url`",
    "ray": "`train --ray`",
    "search": "`search`",
    "datasets": "recipes that read TensorFlow Datasets",
    "profile": "the profile page of TensorBoard",
}
WHY = {
    "setuptools": "TensorBoard imports pkg_resources, which setuptools 81 dropped",
    "keras": "older versions load files that run code (CVE-2025-1550, 8747, 9905)",
}
# Distributions that install the same `tensorflow` folder, one over the other.
TWINS = ("tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel", "intel-tensorflow", "tf-nightly", "tf-nightly-cpu")

Version = Callable[[str], str | None]


def installed(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(package: str) -> list[Requirement]:
    """What an installed distribution asks for, extras included; nothing where it is not installed."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(package) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def package_findings(version: Version = installed) -> Iterator[Finding]:
    """Python, what the package needs, what conflicts, and the extras."""
    asked = requirements(OURS)
    if not asked:
        yield Finding(OURS, "wrong", "its metadata is missing: it was not installed", INSTALL, needed=True)
        return
    yield _python(importlib.metadata.metadata(OURS)["Requires-Python"])
    for requirement in asked:
        if _extra(requirement) is None:
            yield _core(requirement, version)
    yield from _conflicts(version)
    for extra, purpose in PURPOSES.items():
        yield _extra_finding(extra, purpose, [each for each in asked if _extra(each) == extra], version)


def _python(wanted: str) -> Finding:
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", "ok", found)
    mend = f"python3.11 -m venv .venv && .venv/bin/{INSTALL}"
    return Finding("Python", "wrong", f"{found}; {wanted} is needed", mend, needed=True)


def _core(requirement: Requirement, version: Version) -> Finding:
    name, found = requirement.name, version(requirement.name)
    if _fits(requirement, found):
        return Finding(name, "ok", str(found), needed=True)
    twin = next((each for each in TWINS if name == "tensorflow" and _fits(requirement, version(each))), None)
    if twin:
        return Finding(name, "ok", f"{version(twin)}, as {twin}", needed=True)
    state, what = ("wrong", f"{found}; {requirement.specifier} is needed") if found else ("missing", "not installed")
    why = f". {WHY[name]}" if found and name in WHY else ""
    return Finding(name, state, what + why, _install(requirement), needed=True)


def _conflicts(version: Version) -> Iterator[Finding]:
    twins = [name for name in ("tensorflow", *TWINS) if version(name)]
    if len(twins) > 1:
        mend = f"pip uninstall -y {' '.join(twins)} && pip install {twins[0]}=={version(twins[0])}"
        text = f"{' and '.join(twins)} write into the same folder"
        yield Finding("TensorFlow twice", "wrong", text, mend, needed=True)
    for owner in ("tensorflow", "tensorboard", "tensorflow-serving-api"):
        for requirement in requirements(owner):
            found = version(requirement.name)
            if _applies(requirement) and found and not _fits(requirement, found):
                text = f"{owner} needs {requirement.specifier}, {found} is installed"
                yield Finding(requirement.name, "wrong", text, _install(requirement), needed=owner == "tensorflow")


def _extra_finding(extra: str, purpose: str, asked: list[Requirement], version: Version) -> Finding:
    found = {each.name: version(each.name) for each in asked}
    lacking = [each.name for each in asked if not found[each.name]]
    unfit = [
        f"{each.name} {found[each.name]} ({each.specifier})" for each in asked if not _fits(each, found[each.name])
    ]
    mend = f"pip install '{OURS}[{extra}]'"
    if lacking:
        return Finding(f"extra {extra}", "missing", f"{', '.join(lacking)}; for {purpose}", mend)
    if unfit:
        return Finding(f"extra {extra}", "wrong", f"{', '.join(unfit)} is needed; for {purpose}", mend)
    return Finding(f"extra {extra}", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _fits(requirement: Requirement, found: str | None) -> bool:
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for one of the package itself."""
    if _applies(requirement):
        return None
    return next((extra for extra in PURPOSES if requirement.marker.evaluate({"extra": extra})), "")  # pyright: ignore[reportOptionalMemberAccess]


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


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
