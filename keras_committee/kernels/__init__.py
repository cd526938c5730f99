"""TensorFlow operations for training on a CPU, compiled from C when they are first used.

They need a C compiler, `gcc` or `$CC`. Without one, or with `KERAS_COMMITTEE_KERNELS=0`, TensorFlow's own operations do
the same, more slowly. The library is kept in `~/.cache/keras-committee` (`$XDG_CACHE_HOME`) for each version of the
source, TensorFlow, the compiler and the CPU.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

from keras_committee.cpu_info import cpu_info

_SOURCE = Path(__file__).with_name("batch_norm.c")
# Without errno and traps, and with vectors of the full width, the loops become SIMD code.
_CPU_FLAGS = ("-march=native", "-mprefer-vector-width=512") if platform.machine() == "x86_64" else ("-mcpu=native",)
_FLAGS = ("-O3", *_CPU_FLAGS, "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_COMPILER_TIMEOUT_SECONDS = 120


def batch_norm_kernels() -> ModuleType | None:
    """Return the module with `keras_committee_batch_norm`, differentiable; None if it is not available here.

    `keras_committee_batch_norm(x, addends, scale, offset, epsilon, activation)` normalizes `x`, or the sum of `x` and
    the tensor in the list `addends`, over all axes but the last, float32 or bfloat16. It returns `(sums, y, mean,
    variance)`: a list of the sum, if there is one; the normalized tensor behind the activation, `"linear"`, `"relu"` or
    `"quick_gelu"`; the mean and the biased variance of the batch, float32 `(channels,)`.
    """
    return _load()[0]


def kernels_unavailable_reason() -> str:
    """Return why `batch_norm_kernels()` is None, as a clause; the empty string if it is not."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("KERAS_COMMITTEE_KERNELS") == "0":
        return None, "KERAS_COMMITTEE_KERNELS is 0"
    if platform.system() != "Linux":
        return None, "they need Linux"
    compiler = shutil.which(os.environ.get("CC") or "gcc")
    if compiler is None:
        return None, f"there is no C compiler {os.environ.get('CC') or 'gcc'}"
    import tensorflow as tf

    try:
        with _library_folder() as folder:
            library = folder / f"batch_norm-{_fingerprint(compiler, tf.__version__)}.so"
            if not library.exists():
                _compile(compiler, Path(tf.__file__).parent, library)
            module = tf.load_op_library(str(library))
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip().splitlines()[-1] if error.stderr.strip() else error}"
    except (OSError, subprocess.TimeoutExpired, tf.errors.OpError) as error:
        return None, f"{error}"
    tf.RegisterGradient("KerasCommitteeBatchNorm")(functools.partial(_gradient, module))
    return module, ""


def _gradient(module: ModuleType, operation, *gradients):
    """Return the gradients of the inputs; those of mean and variance are ignored, as TensorFlow's own kernel does."""
    num_sums = operation.get_attr("N")
    y_gradient = gradients[num_sums]
    x, scale, offset = operation.inputs[0], *operation.inputs[-2:]
    mean, variance = operation.outputs[-2:]
    x_gradient, scale_gradient, offset_gradient = module.keras_committee_batch_norm_grad(
        y_gradient=y_gradient,
        x=operation.outputs[0] if num_sums else x,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        sum_gradients=list(gradients[:num_sums]),
        epsilon=operation.get_attr("epsilon"),
        activation=operation.get_attr("activation"),
    )
    return [x_gradient] * (1 + num_sums) + [scale_gradient, offset_gradient]


@contextlib.contextmanager
def _library_folder():
    """Yield the folder of compiled libraries, or one for this process alone if nobody else may be trusted with it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras-committee"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        is_private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        usable = folder if is_private and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        usable = None
    if usable is not None:
        yield usable
        return
    with tempfile.TemporaryDirectory() as name:  # the library stays loaded after its file was removed
        yield Path(name)


def _fingerprint(compiler: str, tensorflow_version: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    parts = [_SOURCE.read_text(), " ".join(_FLAGS), tensorflow_version, version, platform.machine()]
    parts.append(cpu_info("flags", "Features"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, tensorflow_folder: Path, library: Path) -> None:
    """Compile the kernels; several processes may do so at the same time."""
    temporary = library.with_name(f"{library.name}.{os.getpid()}.tmp")
    arguments = ["-I", tensorflow_folder / "include", "-o", temporary, _SOURCE]
    libraries = ["-L", tensorflow_folder, "-l:libtensorflow_cc.so.2", "-lm", "-lpthread"]
    try:
        subprocess.run(
            [compiler, *_FLAGS, *arguments, *libraries],
            capture_output=True, text=True, check=True, timeout=_COMPILER_TIMEOUT_SECONDS,
        )  # fmt: skip
        temporary.replace(library)
    finally:
        temporary.unlink(missing_ok=True)
