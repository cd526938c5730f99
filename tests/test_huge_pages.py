"""Training has huge pages: workers from their start, a single member in a program that restarts itself."""

import os
import sys

import pytest

from keras_committee import huge_pages
from keras_committee.training.devices import DeviceShare
from keras_committee.training.supervisor import worker_environment


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.top_pad=4096", "glibc.malloc.top_pad=4096:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_worker_on_a_cpu_has_huge_pages_unless_they_are_turned_off(monkeypatch, before, after):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert worker_environment(DeviceShare((0,), ()))["GLIBC_TUNABLES"] == after
    with_gpu = worker_environment(DeviceShare((0,), (1, 2)))
    assert (with_gpu["CUDA_VISIBLE_DEVICES"], with_gpu.get("GLIBC_TUNABLES")) == ("1,2", before)


@pytest.mark.parametrize(
    ("setting", "library", "tunables", "restarts"),
    [
        ("always [madvise] never", "glibc 2.36", "", 1),
        ("always [madvise] never", "glibc 2.36", "glibc.malloc.hugetlb=1", 0),  # the program that was restarted
        ("always [madvise] never", "glibc 2.31", "", 0),
        ("always [madvise] never", None, "", 0),
        ("[always] madvise never", "glibc 2.36", "", 0),
        (None, "glibc 2.36", "", 0),
    ],
)
def test_a_program_is_started_anew_where_that_gives_it_huge_pages(
    monkeypatch, tmp_path, setting, library, tunables, restarts
):
    file, started = tmp_path / "enabled", []
    if setting is not None:
        file.write_text(f"{setting}\n")
    monkeypatch.setattr(huge_pages, "_SYSTEM_SETTING", file)
    monkeypatch.setattr(os, "confstr", lambda name: library)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "keras_committee", "train", "recipe.py"])
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    huge_pages.restart_with_huge_pages()
    assert len(started) == restarts
    for program, arguments, environment in started:
        assert (program, arguments[1:]) == (sys.executable, ["-m", "keras_committee", "train", "recipe.py"])
        assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
