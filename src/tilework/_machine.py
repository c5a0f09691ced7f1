"""What this process may use of its machine: processors and memory, as control groups limit them.

A container, a batch job or a service lies in a control group, which may lie in others; each may limit it.
dask and distributed read such limits too (`dask.system`, `distributed.system`), but a plan is made without
them, and of nested groups of version 2 they see only one.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["computing", "default_memory", "n_threads"]

PROC, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Memory where the system does not tell, bytes.
UNKNOWN = 8 * 2**30


# What dask is told where an array is computed for one crop.
_COMPUTING: dict[str, Any] = {}


def computing() -> dict[str, Any]:
    """Return the options of `compute` for a part of an array: dask's own, but in a fork one thread.

    dask keeps its threads, which a fork does not have, and would wait for them without end: so did workers
    of torch's DataLoader. They are several themselves.
    """
    return _COMPUTING


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _COMPUTING.update(scheduler="synchronous"))


def default_memory() -> int:
    """Return the default memory limit of a process, bytes: half of what it may use."""
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    total = pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else UNKNOWN
    # Above "high", the kernel slows a process down until it has given memory back.
    names = ("memory.max", "memory.high", "memory.limit_in_bytes", "memory.soft_limit_in_bytes")
    limits = (limit for group in _limits("memory", names) for limit in group)
    return min([total, *(limit[0] for limit in limits if limit and limit[0] > 0)]) // 2


def n_threads() -> int:
    """Return the number of processors that this process may use, at least 1; a part of one counts as one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, v1_quota, v1_period in _limits("cpu", ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")):
        quota = quota or v1_quota + v1_period
        if len(quota) == 2 and min(quota) > 0:
            count = min(count, math.ceil(quota[0] / quota[1]))
    return count


def _limits(controller: str, names: tuple[str, ...]) -> tuple[tuple[list[int], ...], ...]:
    """Return the numbers in the files ``names`` of each group, as they were within the last second.

    To read the files takes a third of the time of building a small result, which asks three times.
    """
    return _read(controller, names, int(time.monotonic()))


@functools.lru_cache(maxsize=2)
def _read(controller: str, names: tuple[str, ...], second: int) -> tuple[tuple[list[int], ...], ...]:
    del second
    return tuple(tuple(_numbers(group / name) for name in names) for group in _groups(controller))


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, of versions 1 and 2, innermost first.

    Inside a container a path may be that of the host, and its folder missing; the root is then its own group.
    """
    try:
        lines = PROC.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controllers if controllers else ROOT
        if controllers and not root.exists():  # folders of version 1 have one name of several in any order
            root = ROOT / controller
        parts = [part for part in path.split("/") if part]
        for n in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:n])


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a file of a control group; none if it is missing or says "max"."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
