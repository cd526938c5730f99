"""How much of this machine may the process use: cores, memory, within the limits of its container?"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores() -> list[int]:
    """The cores that the process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_core_count() -> int:
    """How many cores the process can keep busy: a container may have fewer than it sees."""
    return max(1, math.ceil(min(len(usable_cores()), cpu_quota())))


def cpu_quota(root: Path = CGROUP_ROOT, cgroup_file: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control groups of the process allow, infinite without a limit.

    Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst, cpu.max; version 1 has two files for it.
    """
    return min((_group_cpu_quota(folder) for folder in _cgroup_dirs(root, cgroup_file, "cpu")), default=math.inf)


def free_memory(root: Path = CGROUP_ROOT, cgroup_file: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that processes can still take, within the limit of a container; without limit where nothing says so."""
    return max(0, min([_machine_free_memory(), *_group_free_memory(root, cgroup_file)]))


def _group_cpu_quota(folder: Path) -> float:
    quota_and_period = _read_numbers(folder / "cpu.max") or [
        number for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for number in _read_numbers(folder / name)
    ]
    return (
        quota_and_period[0] / quota_and_period[1]
        if len(quota_and_period) == 2 and quota_and_period[0] > 0 and quota_and_period[1] > 0
        else math.inf
    )


def _machine_free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return sys.maxsize


def _group_free_memory(root: Path, cgroup_file: Path) -> Iterator[int]:
    """What each control group still allows. Cached files (inactive_file) give way and do not count as taken."""
    for folder in _cgroup_dirs(root, cgroup_file, "memory"):
        limit = _first_finite(folder, "memory.max", "memory.limit_in_bytes")
        used = _first_finite(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            yield int(limit) - int(used) + _cached_bytes(folder / "memory.stat")


def _cgroup_dirs(root: Path, cgroup_file: Path, controller: str) -> list[Path]:
    """The control groups of the process, from its own up to the outermost, of version 2 and of version 1."""
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
    """The finite number in the first of these files that holds one."""
    numbers = [number for name in names for number in _read_numbers(folder / name)[:1]]
    return next((number for number in numbers if math.isfinite(number)), None)


def _cached_bytes(file: Path) -> int:
    try:
        sizes = dict(line.split()[:2] for line in file.read_text().splitlines())
        return int(sizes.get("inactive_file") or sizes.get("total_inactive_file") or 0)
    except (OSError, ValueError):
        return 0


def _read_numbers(file: Path) -> list[float]:
    """The numbers in a file of a control group, `max` as infinity; none where it is missing."""
    try:
        return [math.inf if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
