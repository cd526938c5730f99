"""How much of this machine may the process use: cores, memory, within the limits of its container?"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> list[int]:
    """The cores that the process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_core_count() -> int:
    """How many cores the process can keep busy: a container may have fewer than it sees."""
    return max(1, math.ceil(min(len(usable_cores()), cpu_quota())))


def cpu_quota(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control groups of the process allow, infinite without a limit.

    Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst, cpu.max; version 1 has two files for it.
    """
    return min((_quota(folder) for folder in _folders(root, own, "cpu")), default=math.inf)


def free_memory(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that processes can still take, within the limit of a container; without limit where nothing says so."""
    return max(0, min([_free_of_machine(), *_free_of_groups(root, own)]))


def _quota(folder: Path) -> float:
    pair = _numbers(folder / "cpu.max") or [
        number for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for number in _numbers(folder / name)
    ]
    return pair[0] / pair[1] if len(pair) == 2 and pair[0] > 0 and pair[1] > 0 else math.inf


def _free_of_machine() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return sys.maxsize


def _free_of_groups(root: Path, own: Path) -> Iterator[int]:
    """What each control group still allows. Cached files (inactive_file) give way and do not count as taken."""
    for folder in _folders(root, own, "memory"):
        limit = _first(folder, "memory.max", "memory.limit_in_bytes")
        taken = _first(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and taken is not None:
            yield int(limit) - int(taken) + _cached(folder / "memory.stat")


def _folders(root: Path, own: Path, controller: str) -> list[Path]:
    """The control groups of the process, from its own up to the outermost, of version 2 and of version 1."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    folders = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        top = root if number == "0" else root / controller
        if number == "0" or controller in controllers.split(","):
            inner = top / path.lstrip("/")
            folders += [each for each in (inner, *inner.parents) if each == top or top in each.parents]
    return folders


def _first(folder: Path, *names: str) -> float | None:
    """The finite number in the first of these files that holds one."""
    found = [number for name in names for number in _numbers(folder / name)[:1]]
    return next((number for number in found if math.isfinite(number)), None)


def _cached(file: Path) -> int:
    try:
        sizes = dict(line.split()[:2] for line in file.read_text().splitlines())
        return int(sizes.get("inactive_file") or sizes.get("total_inactive_file") or 0)
    except (OSError, ValueError):
        return 0


def _numbers(file: Path) -> list[float]:
    """The numbers in a file of a control group, `max` as infinity; none where it is missing."""
    try:
        return [math.inf if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
