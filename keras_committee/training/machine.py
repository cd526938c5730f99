"""How many members does this machine train at once, and which part of it does each get?"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import tensorflow as tf

from keras_committee.errors import RecipeError
from keras_committee.system_limits import free_memory, usable_core_count

MEMORY_OF_A_WORKER = 2 * 1024**3  # TensorFlow and CIFAR in memory take 1.2 GiB with a small network


def choose(workers: int | Literal["auto"], members: int) -> tuple[int, str]:
    """How many members train at once, and a sentence that says why; empty where it was asked for.

    One member per GPU, or per core where there is none, as long as each finds 2 GiB of free memory: independent members
    need not wait for each other, and two small networks on a core each trained 1.4 times as many images as one on both
    (`benchmarks/training.py`).

    Raises:
        RecipeError: If `workers` is neither `"auto"` nor 1 or more.
    """
    if workers == "auto":
        gpus, cores, memory = len(tf.config.list_physical_devices("GPU")), usable_core_count(), free_memory()
        room = max(1, memory // MEMORY_OF_A_WORKER)
        many = min(members, gpus) if gpus else min(members, cores, room)
        place = f"{gpus} GPUs" if gpus else f"{cores} cores and {memory / 1024**3:.0f} GiB of free memory"
        return many, f"{many} of {members} members at once, as there are {place}; --workers N to choose."
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise RecipeError(f"workers must be 'auto' or an integer of 1 or more. Received: {workers!r}")
    return min(workers, members), ""


def be_deterministic() -> None:
    """Equal runs on equal machines give equal bits from now on in this process."""
    tf.config.experimental.enable_op_determinism()


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the machine that one worker has."""

    cores: tuple[int, ...]
    gpus: tuple[int, ...]


def shares(workers: int, cores: Sequence[int], gpus: Sequence[int]) -> list[Share]:
    """The machine divided among so many workers; where there are more workers than devices, several share one."""
    return [Share(_part(cores, place, workers), _part(gpus, place, workers)) for place in range(workers)]


def _part(devices: Sequence[int], place: int, workers: int) -> tuple[int, ...]:
    if not devices:
        return ()
    if workers > len(devices):
        return (devices[place % len(devices)],)
    return tuple(devices[place * len(devices) // workers : (place + 1) * len(devices) // workers])
