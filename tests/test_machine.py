"""Memory and processors as control groups limit them, of both versions and nested."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import dask.system
import pytest
from distributed.system import MEMORY_LIMIT

import tilework as tw
from tilework import _machine as machine

GIB = 2**30
UNLIMITED = "9223372036854771712"  # as version 1 says it


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder in place of that of the control groups."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    pages = {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)
    (tmp_path / "fs").mkdir()
    machine._read.cache_clear()
    yield tmp_path
    machine._read.cache_clear()


def lay(groups: Path, own: str, files: Mapping[str, str]) -> tuple[int, int]:
    """Write the files of control groups; return the memory, GiB, and the processors of a process."""
    (groups / "cgroup").write_text(own)
    for name, text in files.items():
        file = groups / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    machine._read.cache_clear()
    return 2 * machine.default_memory() // GIB, machine.n_threads()


def test_no_control_groups(groups: Path) -> None:
    assert (2 * machine.default_memory() // GIB, machine.n_threads()) == (64, 16)
    assert lay(groups, "0::/\n", {}) == (64, 16)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 16), ("50000 100000", 1), ("250000 100000", 3), ("9900000 100000", 16), ("", 16)],
)
def test_a_quota_of_processors(groups: Path, quota: str, count: int) -> None:
    assert lay(groups, "0::/job\n", {"job/cpu.max": quota}) == (64, count)


def test_nested_groups_limit_together(groups: Path) -> None:
    files = {
        "slice/memory.max": str(8 * GIB), "slice/job/memory.max": "max",
        "slice/job/step/memory.max": str(32 * GIB),
        "slice/cpu.max": "max 100000", "slice/job/cpu.max": "400000 100000",
        "slice/job/step/cpu.max": "800000 100000", "other/memory.max": str(GIB), "other/cpu.max": "1 1",
    }  # fmt: skip
    assert lay(groups, "0::/slice/job/step\n", files) == (8, 4)
    assert lay(groups, "0::/slice/job/step\n", {"slice/job/step/memory.high": str(4 * GIB)}) == (4, 4)


def test_version_1(groups: Path) -> None:
    """Folders of one controller may bear the names of several, in any order."""
    own = "5:memory:/batch/7\n4:cpu,cpuacct:/batch/7\n1:name=systemd:/\n"
    files = {
        "memory/memory.limit_in_bytes": UNLIMITED, "memory/batch/memory.limit_in_bytes": str(6 * GIB),
        "memory/batch/7/memory.limit_in_bytes": UNLIMITED, "cpu,cpuacct/batch/7/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/batch/7/cpu.cfs_period_us": "100000", "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }  # fmt: skip
    assert lay(groups, own, files) == (6, 2)


def test_a_container_that_shows_the_path_of_its_host(groups: Path) -> None:
    own = "5:memory:/docker/0a1b\n4:cpuacct,cpu:/docker/0a1b\n"
    files = {
        "memory/memory.limit_in_bytes": str(2 * GIB), "cpu/cpu.cfs_quota_us": "150000",
        "cpu/cpu.cfs_period_us": "100000",
    }  # fmt: skip
    assert lay(groups, own, files) == (2, 2)


def test_a_plan_and_a_crop_know_the_limits(groups: Path) -> None:
    lay(groups, "0::/\n", {"memory.max": str(2**21), "cpu.max": "300000 100000"})
    assert tw.plan_tiles((64,), 16, 2).threads == 3
    with pytest.raises(tw.MemoryBudgetError, match="one crop of"):
        tw.plan_tiles((9000, 9000), 4096, 2)


def test_changed_limits_are_seen_after_a_second(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    assert lay(groups, "0::/\n", {"memory.max": str(8 * GIB)}) == (8, 16)
    (groups / "fs" / "memory.max").write_text(str(2 * GIB))
    assert 2 * machine.default_memory() == 8 * GIB
    monkeypatch.setattr(time, "monotonic", lambda: 11.0)
    assert 2 * machine.default_memory() == 2 * GIB


def test_this_machine_as_dask_sees_it() -> None:
    assert machine.n_threads() <= dask.system.cpu_count()
    assert 2 * machine.default_memory() <= MEMORY_LIMIT
