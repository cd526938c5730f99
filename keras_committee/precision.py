"""The precision that `Recipe(precision="auto")` stands for: bfloat16 where the device multiplies matrices in it.

On two cores with AMX a training step of WRN-16-1 took 0.57 of its time in float32, and that of WRN-16-4 0.35; on cores
with AVX512_BF16 0.62 and 0.55. On cores without AMX, whose other instructions were not recorded, an early version was
slower in bfloat16, 638 against 844 images/s of WRN-16-1; a CPU with neither converts the operands to float32.
"""

import dataclasses
from collections.abc import Sequence

from keras_committee.cpu_info import cpu_info
from keras_committee.errors import RecipeError

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_MIN_COMPUTE_CAPABILITY = (8, 0)  # NVIDIA's first GPUs with tensor cores for bfloat16
EXPORT_PRECISIONS = ("auto", "float32", "bfloat16")
BFLOAT16_HARDWARE = (
    "a CPU with AMX or AVX512_BF16 (amx_bf16 or avx512_bf16), or a GPU of compute capability 8.0 or higher"
)
_CPU_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16"}  # flags of the CPU and names, the fastest first


@dataclasses.dataclass(frozen=True)
class Device:
    """What the members of a run are trained on.

    Attributes:
        is_cpu: Whether it is the CPU.
        has_bfloat16: Whether it multiplies matrices in bfloat16.
        reason: A clause on `has_bfloat16`, such as `"the CPU has AMX"`.
    """

    is_cpu: bool
    has_bfloat16: bool
    reason: str

    @property
    def precision(self) -> str:
        """The precision for `"auto"`."""
        return "mixed_bfloat16" if self.has_bfloat16 else "float32"

    def require(self, precision: str) -> None:
        """Raise RecipeError if members cannot be trained in `precision` on this device in a reasonable time."""
        if precision == "mixed_float16" and self.is_cpu:
            raise RecipeError(
                "precision 'mixed_float16' needs a GPU: on a CPU a step takes hundreds of times as long as in float32. "
                "Nothing was trained.\n  Use precision 'auto', 'mixed_bfloat16' or 'float32', or train on a GPU."
            )

    def explain(self, precision: str, *, is_new: bool, is_auto: bool) -> str:
        """Return a line for the user on training in `precision` here: a warning or the reason; or the empty string.

        Args:
            precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
            is_new: Whether the run begins in it.
            is_auto: Whether the recipe has precision `"auto"`.
        """
        if precision == "mixed_bfloat16" and not self.has_bfloat16:
            cause = "; the run continues in the precision in which it began" if is_auto and not is_new else ""
            return f"warning: {precision} is slow on this machine: {self.reason}{cause}."
        return f"training in {precision}: {self.reason}." if is_auto and is_new else ""


def export_precision(precision: str) -> str:
    """Return the precision in which `export --precision PRECISION` computes here if the accuracy permits it."""
    if precision != "auto":
        return precision
    return "bfloat16" if training_device().has_bfloat16 else "float32"


def training_device() -> Device:
    """Return the GPUs that Keras' backend uses, or the CPU if there are none."""
    import keras

    return _jax_device() if keras.backend.backend() == "jax" else tensorflow_device()


def tensorflow_device() -> Device:
    """Return the GPUs that TensorFlow uses, or the CPU if there are none."""
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    capabilities = [item.get("compute_capability") for item in details]
    return gpu_device(capabilities) if capabilities else cpu_device()


def gpu_device(compute_capabilities: Sequence[Sequence[int] | None]) -> Device:
    """Return the device that GPUs of these compute capabilities are; None is one that is unknown."""
    lowest = min((tuple(capability or ()) for capability in compute_capabilities), default=())
    version = ".".join(map(str, lowest)) or "unknown"
    return Device(False, lowest >= _MIN_COMPUTE_CAPABILITY, f"the compute capability of the GPU is {version}")


def cpu_device() -> Device:
    """Return the CPU of this machine as a device."""
    instructions = cpu_bfloat16_instructions()
    return Device(True, instructions is not None, f"the CPU has {instructions or 'neither AMX nor AVX512_BF16'}")


def cpu_bfloat16_instructions() -> str | None:
    """Return the instructions that multiply matrices in bfloat16 in TensorFlow's kernels on this CPU.

    `"AMX"` (Intel since Sapphire Rapids) or `"AVX512_BF16"` (AMD since Zen 4); None if it has neither.
    """
    flags = cpu_info("flags").split()
    return next((name for flag, name in _CPU_INSTRUCTIONS.items() if flag in flags), None)


def _jax_device() -> Device:
    import jax

    devices = [device for device in jax.devices() if device.platform == "gpu"]
    if not devices:  # with AMX a convolution of 64 channels took 0.131 s in bfloat16 and 0.115 s in float32
        return Device(True, False, "JAX computes on the CPU")
    return gpu_device([[int(part) for part in str(device.compute_capability).split(".")] for device in devices])
