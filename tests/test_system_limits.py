"""Are the limits of a container found, of both versions of control groups?"""

import math

import pytest

from keras_committee import system_limits

MIB = 1024**2


def groups(tmp_path, files, own):
    """A file system of control groups: the paths of its files with their text, and what the process belongs to."""
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
def test_the_quota_of_the_tightest_group_holds(tmp_path, files, own, quota):
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
    ],
)
def test_memory_is_what_the_group_leaves(tmp_path, files, own, free):
    assert system_limits.free_memory(**groups(tmp_path, files, own)) == free


def test_without_groups_the_machine_says_what_is_free(tmp_path):
    assert system_limits.free_memory(tmp_path, tmp_path / "none") > 64 * MIB
    assert system_limits.usable_core_count() >= 1


def test_fewer_cores_than_seen_are_counted_where_a_quota_holds(monkeypatch):
    monkeypatch.setattr(system_limits, "usable_cores", lambda: list(range(12)))
    monkeypatch.setattr(system_limits, "cpu_quota", lambda: 2.5)
    assert system_limits.usable_core_count() == 3
