"""Limits of a container, in both versions of control groups."""

import math

import pytest

from keras_committee import system_limits

MIB = 1024**2


def groups(tmp_path, files, own):
    """Write a file system of control groups, and the file with the groups of the process."""
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return {"root": tmp_path / "cgroup", "cgroup_file": tmp_path / "own"}


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/cpu.max": "700000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 7.0),
        ({"cpu/c/cpu.cfs_quota_us": "20000\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/c\n", 0.2),
        ({"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/c\n", math.inf),
        ({}, "0::/gone\n", math.inf),
        ({}, "nonsense", math.inf),
    ],
)
def test_the_quota_is_that_of_the_tightest_group(tmp_path, files, own, quota):
    assert system_limits.cpu_quota(**groups(tmp_path, files, own)) == quota


@pytest.mark.parametrize(
    ("files", "own", "free"),
    [
        (
            {
                "memory.max": "max",
                "a/memory.max": f"{70 * MIB}",
                "a/memory.current": f"{50 * MIB}",
                "a/memory.stat": f"anon 1\ninactive_file {20 * MIB}\n",
            },
            "0::/a\n",
            40 * MIB,
        ),
        (
            {"memory/memory.limit_in_bytes": f"{7 * MIB}", "memory/memory.usage_in_bytes": f"{2 * MIB}"},
            "9:memory:/\n",
            5 * MIB,
        ),
        ({"memory.max": "1000", "memory.current": "3000"}, "0::/\n", 0),
        (
            {
                "memory.max": f"{30 * MIB}",
                "memory.current": f"{20 * MIB}",
                "a/memory.max": f"{70 * MIB}",
                "a/memory.current": f"{5 * MIB}",
            },
            "0::/a\n",
            10 * MIB,
        ),
    ],
)
def test_free_memory_is_what_the_groups_leave(tmp_path, files, own, free):
    assert system_limits.free_memory(**groups(tmp_path, files, own)) == free


def test_without_groups_the_free_memory_is_that_of_the_machine(tmp_path):
    assert system_limits.free_memory(tmp_path, tmp_path / "none") > 64 * MIB
    assert system_limits.usable_core_count() >= 1


def test_a_quota_limits_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(system_limits, "usable_cores", lambda: list(range(12)))
    monkeypatch.setattr(system_limits, "cpu_quota", lambda: 2.5)
    assert system_limits.usable_core_count() == 3
