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

Status = Literal["ok", "missing", "wrong"]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One line of `doctor`.

    Args:
        part: What was looked at.
        state: Whether it is as it should be.
        text: What was found.
        hint: The command, or the act, that mends it; empty where nothing needs mending.
        needed: Whether `train` cannot work while it is not ok.
    """

    part: str
    state: Status
    text: str
    hint: str = ""
    needed: bool = False

    def __str__(self) -> str:
        lines = [f"{self.state:<8} {self.part}: {self.text}", *([f"         {self.hint}"] if self.hint else [])]
        return "\n".join(lines)


GIB = 1024**3
SERVING_BINARY = "tensorflow_model_server"
_MIN_FREE_MEMORY, _MIN_FREE_DISK, _MIN_OPEN_FILES, _MIN_SHARED_MEMORY = 2 * GIB, 1 * GIB, 1024, GIB // 4
_REPORTED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_ENABLE_ONEDNN_OPTS")
_FLAG_VARIABLES = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_FORCE_GPU_ALLOW_GROWTH")


def check_machine() -> Iterator[CheckResult]:
    """What the machine and the environment leave for training."""
    yield _check_cores()
    yield _check_memory(system_limits.free_memory())
    yield check_disk(Path("runs"))
    yield _check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _check_shared_memory(Path("/dev/shm"))
    yield from check_environment(os.environ)
    yield check_serving(shutil.which(SERVING_BINARY))


def check_environment(environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """The variables that change what Keras and TensorFlow do."""
    yield _check_backend(environment)
    if cluster := environment.get("TF_CONFIG"):
        yield _check_tf_config(cluster)
    variables = [
        f"{name}={environment[name]}" for name in (*_FLAG_VARIABLES, *_REPORTED_VARIABLES) if name in environment
    ]
    yield CheckResult("environment", "ok", ", ".join(variables) or f"none of {', '.join(_FLAG_VARIABLES)} is set")


def check_disk(runs: Path) -> CheckResult:
    """Whether runs can be written and locked, and how much room there is."""
    folder = next(parent for parent in (runs, *runs.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"{folder.absolute()} cannot be written and locked: {error.strerror}"
        return CheckResult("disk", "wrong", text, "cd into a folder of yours, or train with --run DIR", needed=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free for runs/ in {folder.absolute()}"
    if free < _MIN_FREE_DISK:
        return CheckResult(
            "disk", "wrong", f"{text}; at least 1 GiB is wanted", "make room, or train with --run DIR", True
        )
    return CheckResult("disk", "ok", text)


def check_serving(binary: str | None) -> CheckResult:
    if binary:
        return CheckResult(SERVING_BINARY, "ok", binary)
    text = "not on the PATH; only `serve --use-tf-serving` starts it, `serve` has a stand-in"
    return CheckResult(SERVING_BINARY, "missing", text, "docker pull tensorflow/serving")


def _check_cores() -> CheckResult:
    usable, quota = len(system_limits.usable_cores()), system_limits.cpu_quota()
    limit = "" if math.isinf(quota) else f", {quota:g} by the quota of the container"
    return CheckResult("cores", "ok", f"{usable} of {os.cpu_count()} usable{limit}")


def _check_memory(free: int) -> CheckResult:
    text = f"{free / GIB:.1f} GiB free"
    if free < _MIN_FREE_MEMORY:
        hint = "end other programs, or train with --workers 1 and a smaller --set batch_size"
        return CheckResult("memory", "wrong", f"{text}; a member takes 1 to 2 GiB", hint)
    return CheckResult("memory", "ok", text)


def _check_open_files(limit: int) -> CheckResult:
    if 0 <= limit < _MIN_OPEN_FILES:
        return CheckResult(
            "open files", "wrong", f"at most {limit}; {_MIN_OPEN_FILES} are wanted", f"ulimit -n {_MIN_OPEN_FILES}"
        )
    return CheckResult("open files", "ok", f"at most {limit}" if limit >= 0 else "without limit")


def _check_shared_memory(folder: Path) -> CheckResult:
    if not folder.is_dir():
        return CheckResult("shared memory", "ok", f"there is no {folder} on this system")
    size = shutil.disk_usage(folder).total
    text = f"{size / GIB:.2f} GiB in {folder}"
    if size < _MIN_SHARED_MEMORY:
        hint = "docker run --shm-size=2g ..., for --ray-address and several GPUs"
        return CheckResult("shared memory", "wrong", text, hint)
    return CheckResult("shared memory", "ok", text)


def _check_backend(environment: Mapping[str, str]) -> CheckResult:
    file = Path(environment.get("KERAS_HOME") or Path.home() / ".keras", "keras.json")
    backend, source, hint = environment.get("KERAS_BACKEND"), "KERAS_BACKEND", "export KERAS_BACKEND=tensorflow"
    if not backend:
        backend, source = _configured_backend(file), str(file)
    if backend not in (None, "tensorflow"):
        text = f"{backend}, by {source}; training and data are TensorFlow"
        return CheckResult("Keras backend", "wrong", text, hint, needed=True)
    return CheckResult("Keras backend", "ok", "tensorflow")


def _configured_backend(file: Path) -> str | None:
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return settings.get("backend") if isinstance(settings, dict) else None


def _check_tf_config(text: str) -> CheckResult:
    try:
        task = json.loads(text)["task"]
        return CheckResult(
            "TF_CONFIG", "ok", f"this host is {task['type']} {task['index']}; for --strategy multiworker"
        )
    except (ValueError, KeyError, TypeError):
        hint = "unset TF_CONFIG, or give it as deploy/training.md shows"
        return CheckResult("TF_CONFIG", "wrong", f"not the description of a cluster: {text[:60]}", hint)


PACKAGE = "keras-committee"
INSTALL_COMMAND = f"pip install {PACKAGE}"
EXTRA_PURPOSES = {
    "cv": "keras-cv's models as members",
    "model-garden": "the Model Garden's models as members",
    "serving": "`serve`, and `predict --url`",
    "ray": "`train --ray-address`",
    "search": "`search`",
    "datasets": "recipes that read TensorFlow Datasets",
    "profile": "the profile page of TensorBoard",
}
REASONS = {
    "setuptools": "TensorBoard imports pkg_resources, which setuptools 81 dropped",
    "keras": "older versions load files that run code (CVE-2025-1550, 8747, 9905)",
}
# Distributions that install the same `tensorflow` folder, one over the other.
CONFLICTING = (
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "intel-tensorflow",
    "tf-nightly",
    "tf-nightly-cpu",
)

VersionLookup = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def distribution_requirements(package: str) -> list[Requirement]:
    """What an installed distribution asks for, extras included; nothing where it is not installed."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(package) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def check_packages(get_version: VersionLookup = installed_version) -> Iterator[CheckResult]:
    """Python, what the package needs, what conflicts, and the extras."""
    declared = distribution_requirements(PACKAGE)
    if not declared:
        yield CheckResult(
            PACKAGE, "wrong", "its metadata is missing: it was not installed", INSTALL_COMMAND, needed=True
        )
        return
    yield _check_python(importlib.metadata.metadata(PACKAGE)["Requires-Python"])
    for requirement in declared:
        if _extra_name(requirement) is None:
            yield _check_requirement(requirement, get_version)
    yield from _check_conflicts(get_version)
    for extra, purpose in EXTRA_PURPOSES.items():
        yield _check_extra(
            extra, purpose, [requirement for requirement in declared if _extra_name(requirement) == extra], get_version
        )


def _check_python(required: str) -> CheckResult:
    version = platform.python_version()
    if SpecifierSet(required).contains(version, prereleases=True):
        return CheckResult("Python", "ok", version)
    hint = f"python3.11 -m venv .venv && .venv/bin/{INSTALL_COMMAND}"
    return CheckResult("Python", "wrong", f"{version}; {required} is needed", hint, needed=True)


def _check_requirement(requirement: Requirement, get_version: VersionLookup) -> CheckResult:
    name, found = requirement.name, get_version(requirement.name)
    if _is_satisfied(requirement, found):
        return CheckResult(name, "ok", str(found), needed=True)
    alternative = next(
        (
            package
            for package in CONFLICTING
            if name == "tensorflow" and _is_satisfied(requirement, get_version(package))
        ),
        None,
    )
    if alternative:
        return CheckResult(name, "ok", f"{get_version(alternative)}, as {alternative}", needed=True)
    state, problem = ("wrong", f"{found}; {requirement.specifier} is needed") if found else ("missing", "not installed")
    reason = f". {REASONS[name]}" if found and name in REASONS else ""
    return CheckResult(name, state, problem + reason, _install_command(requirement), needed=True)


def _check_conflicts(get_version: VersionLookup) -> Iterator[CheckResult]:
    conflicting = [name for name in ("tensorflow", *CONFLICTING) if get_version(name)]
    if len(conflicting) > 1:
        hint = (
            f"pip uninstall -y {' '.join(conflicting)} && pip install {conflicting[0]}=={get_version(conflicting[0])}"
        )
        text = f"{' and '.join(conflicting)} write into the same folder"
        yield CheckResult("TensorFlow twice", "wrong", text, hint, needed=True)
    for owner in ("tensorflow", "tensorboard", "tensorflow-serving-api"):
        for requirement in distribution_requirements(owner):
            found = get_version(requirement.name)
            if _applies_without_extra(requirement) and found and not _is_satisfied(requirement, found):
                text = f"{owner} needs {requirement.specifier}, {found} is installed"
                yield CheckResult(
                    requirement.name, "wrong", text, _install_command(requirement), needed=owner == "tensorflow"
                )


def _check_extra(extra: str, purpose: str, declared: list[Requirement], get_version: VersionLookup) -> CheckResult:
    found = {requirement.name: get_version(requirement.name) for requirement in declared}
    missing = [each.name for each in declared if not found[each.name]]
    unsatisfied = [
        f"{each.name} {found[each.name]} ({each.specifier})"
        for each in declared
        if not _is_satisfied(each, found[each.name])
    ]
    hint = f"pip install '{PACKAGE}[{extra}]'"
    if missing:
        return CheckResult(f"extra {extra}", "missing", f"{', '.join(missing)}; for {purpose}", hint)
    if unsatisfied:
        return CheckResult(f"extra {extra}", "wrong", f"{', '.join(unsatisfied)} is needed; for {purpose}", hint)
    return CheckResult(f"extra {extra}", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _is_satisfied(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _applies_without_extra(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _extra_name(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for one of the package itself."""
    if _applies_without_extra(requirement):
        return None
    return next((extra for extra in EXTRA_PURPOSES if requirement.marker.evaluate({"extra": extra})), "")  # pyright: ignore[reportOptionalMemberAccess]


def _install_command(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


# Says in one line of JSON what it found, or the first cause of what went wrong.
PROBE_SCRIPT = """
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
REINSTALL_COMMAND = "pip install --force-reinstall 'tensorflow~=2.20'"
_PROBE_TIMEOUT_SECONDS = 300
_SIGNAL_CAUSES = {
    signal.SIGILL: "this processor lacks instructions (AVX) that this build of TensorFlow uses",
    signal.SIGKILL: "most likely the memory did not suffice",
    signal.SIGABRT: "a wrong XLA_FLAGS or TF_XLA_FLAGS does that",
}


def check_tensorflow(program: Sequence[str] = (sys.executable, "-P", "-c", PROBE_SCRIPT)) -> Iterator[CheckResult]:
    """Whether TensorFlow and Keras start, with what; the devices where they do."""
    probe = _run_probe(program)
    if "error" in probe:
        hint = probe.get("mend") or REINSTALL_COMMAND
        yield CheckResult("TensorFlow", "wrong", f"it does not start: {_first_line(probe['error'])}", hint, needed=True)
        return
    startup = f"starts in {probe['seconds']:.1f} s"
    yield CheckResult(
        "TensorFlow", "ok", f"{probe['tensorflow']}, Keras {probe['keras']} on it; {startup}", needed=True
    )
    yield check_gpus(probe, _has_nvidia_driver())


def check_gpus(probe: dict[str, Any], has_nvidia: bool) -> CheckResult:
    """GPUs that TensorFlow uses; that it uses none where there are some is wrong."""
    if probe["gpus"]:
        return CheckResult("GPUs", "ok", f"{len(probe['gpus'])}: {', '.join(probe['gpus'])}")
    if has_nvidia and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return CheckResult("GPUs", "wrong", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if has_nvidia:
        text = "this machine has NVIDIA GPUs, TensorFlow sees none of them: members would train on the cores"
        return CheckResult("GPUs", "wrong", text, "pip install 'tensorflow[and-cuda]~=2.20'")
    return CheckResult("GPUs", "ok", "none: members train on the cores")


def _run_probe(program: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        completed = subprocess.run(
            program, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {
            "error": f"no answer in {_PROBE_TIMEOUT_SECONDS} s",
            "mend": "free the machine, or move the packages to a local disk",
        }
    try:
        return json.loads(completed.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return _error_from_exit(completed.returncode, completed.stderr)


def _error_from_exit(returncode: int, stderr: str) -> dict[str, Any]:
    """What the end of a process tells that could not say itself what went wrong."""
    if returncode < 0:
        cause = _SIGNAL_CAUSES.get(signal.Signals(-returncode))
        return {"error": f"it ended with {signal.Signals(-returncode).name}" + (f"; {cause}" if cause else "")}
    return {"error": (stderr.strip().splitlines() or [f"it ended with exit code {returncode}"])[-1]}


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), text)


def _has_nvidia_driver() -> bool:
    """Whether the driver of NVIDIA is there."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
