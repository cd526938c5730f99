"""CPU cores and memory available to this process, within the limits of its container; whether there are GPUs."""

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from keras_committee.cpu_info import cpu_info

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_FILE = Path("/proc/self/cgroup")


def usable_cores() -> list[int]:
    """Return the ids of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_core_count() -> int:
    """Return how many cores this process can keep busy: the quota of a container may be below the cores it sees."""
    return max(1, math.ceil(min(len(usable_cores()), cpu_quota())))


def processor_name() -> str:
    """Return the name of the model of the CPU; that of its architecture where it is unknown."""
    return cpu_info("model name") or platform.machine()


def has_nvidia_driver() -> bool:
    """Return whether the driver of NVIDIA GPUs is loaded. TensorFlow is not started, which may still find none."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def cpu_quota(root: Path = _CGROUP_ROOT, cgroup_file: Path = _CGROUP_FILE) -> float:
    """Return the number of cores that the control groups of this process allow; infinity without a limit.

    Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst, cpu.max; version 1 has two files for it.
    """
    return min((_group_cpu_quota(folder) for folder in _cgroup_dirs(root, cgroup_file, "cpu")), default=math.inf)


def free_memory(root: Path = _CGROUP_ROOT, cgroup_file: Path = _CGROUP_FILE) -> int:
    """Return the bytes that processes can still allocate, within the limit of the container.

    The result is `sys.maxsize` if the machine reports neither its memory nor a limit.
    """
    return max(0, min([_machine_free_memory(), *_group_free_memory(root, cgroup_file)]))


def _group_cpu_quota(folder: Path) -> float:
    quota_and_period = _read_numbers(folder / "cpu.max") or [
        number for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for number in _read_numbers(folder / name)
    ]
    if len(quota_and_period) != 2 or min(quota_and_period) <= 0:  # version 1 has -1 for no limit
        return math.inf
    return quota_and_period[0] / quota_and_period[1]


def _machine_free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return sys.maxsize


def _group_free_memory(root: Path, cgroup_file: Path) -> Iterator[int]:
    """Yield the bytes left in each control group. Cached files (inactive_file) can be evicted and count as free."""
    for folder in _cgroup_dirs(root, cgroup_file, "memory"):
        limit = _first_finite(folder, "memory.max", "memory.limit_in_bytes")
        used = _first_finite(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            yield int(limit) - int(used) + _cached_bytes(folder / "memory.stat")


def _cgroup_dirs(root: Path, cgroup_file: Path, controller: str) -> list[Path]:
    """Return the control groups of this process, innermost first, of versions 1 and 2."""
    try:
        lines = [line.split(":", 2) for line in cgroup_file.read_text().splitlines()]
    except OSError:
        lines = []
    folders = []
    for hierarchy, controllers, path in (line for line in lines if len(line) == 3):
        top = root if hierarchy == "0" else root / controller
        if hierarchy == "0" or controller in controllers.split(","):
            own_group = top / path.lstrip("/")
            folders += [folder for folder in (own_group, *own_group.parents) if folder == top or top in folder.parents]
    return folders


def _first_finite(folder: Path, *names: str) -> float | None:
    """Return the first finite number found in these files, or None."""
    numbers = [number for name in names for number in _read_numbers(folder / name)[:1]]
    return next((number for number in numbers if math.isfinite(number)), None)


def _cached_bytes(file: Path) -> int:
    try:
        sizes = dict(line.split()[:2] for line in file.read_text().splitlines())
        return int(sizes.get("inactive_file") or sizes.get("total_inactive_file") or 0)
    except (OSError, ValueError):
        return 0


def _read_numbers(file: Path) -> list[float]:
    """Return the numbers in a control-group file, with `max` as infinity; an empty list if it cannot be read."""
    try:
        return [math.inf if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
