"""Checks of the packages, the machine and TensorFlow.

The probe of TensorFlow runs in a separate process, so that a crash is a failed check, too.
"""

import dataclasses
import fcntl
import importlib.metadata
import importlib.util
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
from typing import TYPE_CHECKING, Any, Literal

from keras_committee import precision, system_limits
from keras_committee.files import expand_home
from keras_committee.progress import step

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_GIB = 1024**3
_PACKAGE = "keras-committee"
_INSTALL_COMMAND = f"pip install {_PACKAGE}"
_REINSTALL_COMMAND = "pip install --force-reinstall 'tensorflow~=2.20'"
_SERVING_BINARY = "tensorflow_model_server"
EXTRA_PURPOSES = {
    "cv": "keras-cv's models as members",
    "model-garden": "the Model Garden's models as members",
    "serving": "`serve`, and `predict --url`",
    "ray": "`train --ray-address`",
    "search": "`search`",
    "datasets": "recipes that read TensorFlow Datasets",
    "parquet": "`data.table` of a Parquet file",
    "hf": "`data.hf`, Hugging Face data sets on disk",
    "onnx": "`export --format onnx`",
    "litert": "`export --format litert`",
    "openvino": "`export --format openvino`",
    "mlflow": "`--track mlflow`",
    "wandb": "`--track wandb`",
    "kerashub": "KerasHub's image classifiers as members",
    "profile": "the profile page of TensorBoard",
    "jax": "`train --stacked`",
}
_REASONS = {
    "setuptools": "TensorBoard imports pkg_resources, which setuptools 81 dropped",
    "keras": "older versions load files that run code (CVE-2025-1550, 8747, 9905)",
}
# Distributions that install the same `tensorflow` folder and overwrite each other's files.
_CONFLICTING = (
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "intel-tensorflow",
    "tf-nightly",
    "tf-nightly-cpu",
)
_MIN_FREE_MEMORY, _MIN_FREE_DISK, _MIN_OPEN_FILES, _MIN_SHARED_MEMORY = 2 * _GIB, 1 * _GIB, 1024, _GIB // 4
_REPORTED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_ENABLE_ONEDNN_OPTS")
_FLAG_VARIABLES = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_FORCE_GPU_ALLOW_GROWTH")
_PROBE_TIMEOUT_SECONDS = 300
_SIGNAL_CAUSES = {
    signal.SIGILL: "this processor lacks instructions (AVX) that this build of TensorFlow uses",
    signal.SIGKILL: "the machine probably ran out of memory",
    signal.SIGABRT: "an invalid XLA_FLAGS or TF_XLA_FLAGS is a common cause",
}

# Prints one line of JSON: the versions and devices, or the first exception of the chain.
_PROBE_SCRIPT = """
import json, sys, time
start = time.monotonic()
try:
    import keras
    import tensorflow as tf
    from keras_committee.kernels import kernels_unavailable_reason
    gpus = tf.config.list_physical_devices("GPU")
    found = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "gpus": [device.name for device in gpus],
        "compute_capabilities": [
            tf.config.experimental.get_device_details(device).get("compute_capability") for device in gpus
        ],
        "kernels_unavailable": "" if gpus else kernels_unavailable_reason(),
        "sum": float(tf.reduce_sum(tf.constant([0.25, 0.5]))),
        "seconds": time.monotonic() - start,
    }
except BaseException as error:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    found = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""

Status = Literal["ok", "missing", "wrong"]
VersionLookup = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Args:
        part: What was checked.
        state: `"ok"`, `"missing"` or `"wrong"`.
        text: The version, amount or problem that was found.
        hint: The command or action that fixes the problem; empty if there is none.
        needed: Whether `train` cannot run unless the state is `"ok"`.
    """

    part: str
    state: Status
    text: str
    hint: str = ""
    needed: bool = False

    def __str__(self) -> str:
        hint = f"\n         {self.hint}" if self.hint else ""
        return f"{self.state:<8} {self.part}: {self.text}{hint}"


def run_checks() -> Iterator[CheckResult]:
    """Yield the result of every check, the slow start of TensorFlow last."""
    if importlib.util.find_spec("packaging"):  # a dependency of TensorFlow and Keras
        yield from check_packages()
    else:
        yield CheckResult("packaging", "missing", "not installed", f"pip install packaging {_PACKAGE}", needed=True)
    yield from check_machine()
    yield from check_tensorflow()


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(get_version: VersionLookup = installed_version) -> Iterator[CheckResult]:
    """Check Python, the required packages, conflicting packages, and the extras."""
    declared = _distribution_requirements(_PACKAGE)
    if not declared:
        yield CheckResult(_PACKAGE, "wrong", "its package metadata is missing", _INSTALL_COMMAND, needed=True)
        return
    yield _check_python(importlib.metadata.metadata(_PACKAGE)["Requires-Python"])
    for requirement in declared:
        if _extra_name(requirement) is None:
            yield _check_requirement(requirement, get_version)
    yield from _check_conflicts(get_version)
    for extra, purpose in EXTRA_PURPOSES.items():
        requirements = [requirement for requirement in declared if _extra_name(requirement) == extra]
        yield _check_extra(extra, purpose, requirements, get_version)


def check_machine() -> Iterator[CheckResult]:
    """Check the cores, memory, disk, limits and environment variables that training depends on."""
    yield _check_cores()
    yield _check_memory(system_limits.free_memory())
    yield check_disk(Path("runs"))
    yield _check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _check_shared_memory(Path("/dev/shm"))
    yield from check_environment(os.environ)
    yield check_serving(shutil.which(_SERVING_BINARY))


def check_environment(environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check the variables that configure Keras and TensorFlow."""
    yield _check_backend(environment)
    if cluster := environment.get("TF_CONFIG"):
        yield _check_tf_config(cluster)
    variables = [
        f"{name}={environment[name]}" for name in (*_FLAG_VARIABLES, *_REPORTED_VARIABLES) if name in environment
    ]
    yield CheckResult("environment", "ok", ", ".join(variables) or f"none of {', '.join(_FLAG_VARIABLES)} is set")


def check_disk(runs: Path) -> CheckResult:
    """Check that runs can be written and locked, and that the disk has space."""
    folder = next(parent for parent in (runs, *runs.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"cannot write and lock files in {folder.absolute()}: {error.strerror}"
        return CheckResult("disk", "wrong", text, "cd into a writable folder, or train with --run DIR", needed=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free for runs/ in {folder.absolute()}"
    if free < _MIN_FREE_DISK:
        hint = "free disk space, or train with --run DIR"
        return CheckResult("disk", "wrong", f"{text}; at least 1 GiB is required", hint, needed=True)
    return CheckResult("disk", "ok", text)


def check_serving(binary: str | None) -> CheckResult:
    """Report the path of TF Serving's binary, which is optional."""
    if binary:
        return CheckResult(_SERVING_BINARY, "ok", binary)
    text = "not on the PATH; only `serve --use-tf-serving` needs it"
    return CheckResult(_SERVING_BINARY, "missing", text, "docker pull tensorflow/serving")


def check_tensorflow(program: Sequence[str] = (sys.executable, "-P", "-c", _PROBE_SCRIPT)) -> Iterator[CheckResult]:
    """Check that TensorFlow and Keras start, and the devices that they find."""
    with step("starting TensorFlow in another process"):
        probe = _run_probe(program)
    if "error" in probe:
        first_line = next((line for line in probe["error"].splitlines() if line.strip()), probe["error"])
        hint = probe.get("hint", _REINSTALL_COMMAND)
        yield CheckResult("TensorFlow", "wrong", f"it does not start: {first_line}", hint, needed=True)
        return
    text = f"{probe['tensorflow']} with Keras {probe['keras']}; starts in {probe['seconds']:.1f} s"
    yield CheckResult("TensorFlow", "ok", text, needed=True)
    yield check_gpus(probe["gpus"], system_limits.has_nvidia_driver())
    yield check_precision(probe["compute_capabilities"])
    if not probe["gpus"]:
        yield check_kernels(probe["kernels_unavailable"])


def check_gpus(gpus: Sequence[str], has_nvidia: bool) -> CheckResult:
    """Check that TensorFlow finds GPUs if the machine has NVIDIA's driver."""
    if gpus:
        return CheckResult("GPUs", "ok", f"{len(gpus)}: {', '.join(gpus)}")
    if has_nvidia and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return CheckResult("GPUs", "wrong", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if has_nvidia:
        text = "this machine has NVIDIA GPUs, but TensorFlow finds none; members would train on the CPU"
        return CheckResult("GPUs", "wrong", text, "pip install 'tensorflow[and-cuda]~=2.20'")
    return CheckResult("GPUs", "ok", "none; members train on the CPU")


def check_precision(compute_capabilities: Sequence[Sequence[int] | None]) -> CheckResult:
    """Report the precision of new runs on the GPUs with these compute capabilities, or on the CPU if there are none."""
    device = precision.gpu_device(compute_capabilities) if compute_capabilities else precision.cpu_device()
    return CheckResult("precision", "ok", f"new runs train in {device.precision}, as {device.reason}")


def check_kernels(unavailable_reason: str) -> CheckResult:
    """Report whether members are trained with our own kernels, which are optional."""
    if not unavailable_reason:
        return CheckResult("kernels", "ok", "batch normalization in training is compiled for this CPU")
    text = f"training in bfloat16 is about a quarter slower: {unavailable_reason}"
    return CheckResult("kernels", "missing", text, "apt install gcc")


def _distribution_requirements(package: str) -> list["Requirement"]:
    """Return the requirements of an installed distribution, extras included; an empty list if it is not installed."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in importlib.metadata.requires(package) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _check_python(required: str) -> CheckResult:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    if SpecifierSet(required).contains(version, prereleases=True):
        return CheckResult("Python", "ok", version)
    hint = f"python3.11 -m venv .venv && .venv/bin/{_INSTALL_COMMAND}"
    return CheckResult("Python", "wrong", f"{version}; {required} is required", hint, needed=True)


def _check_requirement(requirement: "Requirement", get_version: VersionLookup) -> CheckResult:
    name, version = requirement.name, get_version(requirement.name)
    if _is_satisfied(requirement, version):
        return CheckResult(name, "ok", str(version), needed=True)
    alternatives = _CONFLICTING if name == "tensorflow" else ()
    for package in alternatives:
        if _is_satisfied(requirement, get_version(package)):
            return CheckResult(name, "ok", f"{get_version(package)}, as {package}", needed=True)
    if version is None:
        return CheckResult(name, "missing", "not installed", _install_command(requirement), needed=True)
    reason = f". {_REASONS[name]}" if name in _REASONS else ""
    text = f"{version}; {requirement.specifier} is required{reason}"
    return CheckResult(name, "wrong", text, _install_command(requirement), needed=True)


def _check_conflicts(get_version: VersionLookup) -> Iterator[CheckResult]:
    conflicting = [name for name in ("tensorflow", *_CONFLICTING) if get_version(name)]
    if len(conflicting) > 1:
        hint = (
            f"pip uninstall -y {' '.join(conflicting)} && pip install {conflicting[0]}=={get_version(conflicting[0])}"
        )
        text = f"{' and '.join(conflicting)} install into the same folder"
        yield CheckResult("TensorFlow twice", "wrong", text, hint, needed=True)
    for owner in ("tensorflow", "tensorboard", "tensorflow-serving-api"):
        for requirement in _distribution_requirements(owner):
            version = get_version(requirement.name)
            if _applies_without_extra(requirement) and version and not _is_satisfied(requirement, version):
                text = f"{owner} requires {requirement.specifier}, {version} is installed"
                hint = _install_command(requirement)
                yield CheckResult(requirement.name, "wrong", text, hint, needed=owner == "tensorflow")


def _check_extra(extra: str, purpose: str, declared: list["Requirement"], get_version: VersionLookup) -> CheckResult:
    versions = {requirement.name: get_version(requirement.name) for requirement in declared}
    missing = [name for name, version in versions.items() if not version]
    unsatisfied = [
        f"{requirement.name} {versions[requirement.name]} (requires {requirement.specifier})"
        for requirement in declared
        if not _is_satisfied(requirement, versions[requirement.name])
    ]
    hint = f"pip install '{_PACKAGE}[{extra}]'"
    if missing:
        return CheckResult(f"extra {extra}", "missing", f"{', '.join(missing)}; for {purpose}", hint)
    if unsatisfied:
        return CheckResult(f"extra {extra}", "wrong", f"{', '.join(unsatisfied)}; for {purpose}", hint)
    return CheckResult(f"extra {extra}", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _is_satisfied(requirement: "Requirement", version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _applies_without_extra(requirement: "Requirement") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _extra_name(requirement: "Requirement") -> str | None:
    """Return the extra that a requirement belongs to, None for a requirement of the package itself."""
    if _applies_without_extra(requirement):
        return None
    return next((extra for extra in EXTRA_PURPOSES if requirement.marker.evaluate({"extra": extra})), "")  # pyright: ignore[reportOptionalMemberAccess]


def _install_command(requirement: "Requirement") -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


def _check_cores() -> CheckResult:
    usable, quota = len(system_limits.usable_cores()), system_limits.cpu_quota()
    limit = "" if math.isinf(quota) else f"; the container is limited to {quota:g}"
    return CheckResult("cores", "ok", f"{usable} of {os.cpu_count()} usable{limit}")


def _check_memory(free: int) -> CheckResult:
    text = f"{free / _GIB:.1f} GiB free"
    if free < _MIN_FREE_MEMORY:
        hint = "close other programs, or train with --workers 1 and a smaller --set batch_size"
        return CheckResult("memory", "wrong", f"{text}; a member needs 1 to 2 GiB", hint)
    return CheckResult("memory", "ok", text)


def _check_open_files(limit: int) -> CheckResult:
    if 0 <= limit < _MIN_OPEN_FILES:
        text = f"limited to {limit}; {_MIN_OPEN_FILES} are required"
        return CheckResult("open files", "wrong", text, f"ulimit -n {_MIN_OPEN_FILES}")
    return CheckResult("open files", "ok", f"limited to {limit}" if limit >= 0 else "unlimited")


def _check_shared_memory(folder: Path) -> CheckResult:
    if not folder.is_dir():
        return CheckResult("shared memory", "ok", f"this system has no {folder}")
    size = shutil.disk_usage(folder).total
    text = f"{size / _GIB:.2f} GiB in {folder}"
    if size < _MIN_SHARED_MEMORY:
        hint = "docker run --shm-size=2g ..., for --ray-address and several GPUs"
        return CheckResult("shared memory", "wrong", text, hint)
    return CheckResult("shared memory", "ok", text)


def _check_backend(environment: Mapping[str, str]) -> CheckResult:
    file = expand_home(environment.get("KERAS_HOME") or "~/.keras") / "keras.json"
    backend, source = environment.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not backend:
        backend, source = _configured_backend(file), str(file)
    if backend not in (None, "tensorflow"):
        text = f"{backend}, set by {source}; commands run on TensorFlow all the same, Python programs do not"
        return CheckResult("Keras backend", "wrong", text, "export KERAS_BACKEND=tensorflow")
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
        hint = "unset TF_CONFIG, or set it as in deploy/training.md"
        return CheckResult("TF_CONFIG", "wrong", f"not a valid cluster configuration. Received: {text[:60]}", hint)


def _run_probe(program: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        completed = subprocess.run(
            program, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {
            "error": f"no result after {_PROBE_TIMEOUT_SECONDS} s",
            "hint": "reduce the load of the machine, or install the packages on a local disk",
        }
    try:
        return json.loads(completed.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": _exit_reason(completed.returncode, completed.stderr)}


def _exit_reason(returncode: int, stderr: str) -> str:
    """Describe a process that ended without printing a result: its signal, or the last line of stderr."""
    if returncode < 0:
        cause = _SIGNAL_CAUSES.get(signal.Signals(-returncode))
        return f"the process ended with {signal.Signals(-returncode).name}" + (f"; {cause}" if cause else "")
    return (stderr.strip().splitlines() or [f"the process ended with exit code {returncode}"])[-1]
