"""Where a run takes place: one of dask's schedulers, and what a process there may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
from dask.base import get_scheduler

from tilework.errors import TilingError
from tilework.plan.arguments import default_memory, n_threads

__all__ = ["Where"]

# Of a worker's memory: beyond it distributed starts to spill.
MEMORY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Where:
    """The scheduler of a run: dask's choice, or a given one."""

    get: Callable[..., Any]
    """dask's function that runs a graph, for local schedulers."""
    client: Any = None
    """The client of a cluster; None for local schedulers."""
    retries: int = 0
    """Further attempts at a failed task."""
    resources: Mapping[str, float] | None = None
    """What a worker must offer to a task that calls the function."""
    priority: int = 0
    """Of all tasks, for the scheduler of a cluster."""
    alone: bool = True
    """Whether one result has all of it; several keep each other's workers busy."""
    known: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)
    """The cluster's workers, once they were asked for."""

    @classmethod
    def find(cls, scheduler: Any = None, client: Any = None, **options: Any) -> Where:
        """Return the scheduler that dask would choose, or the one that is named."""
        if client is not None:
            if not hasattr(client, "scheduler_info"):
                raise TypeError(f"client must be a distributed.Client; got {type(client).__name__}.")
            where = cls(client.get, client, **options)
        else:
            get = get_scheduler(scheduler=scheduler, cls=da.Array)
            owner = getattr(get, "__self__", None)
            where = cls(get, owner if hasattr(owner, "scheduler_info") else None, **options)
        where._check()
        return where

    def _check(self) -> None:
        if type(self.retries) is not int or self.retries < 0:
            raise TilingError(f"retries must be a whole number, at least 0; got {self.retries!r}.")
        if not self.resources:
            return
        if not all(v > 0 for v in self.resources.values()):
            raise TilingError(f"resources must be positive numbers; got {dict(self.resources)}.")
        if self.client is None:
            raise TilingError(
                f"resources={dict(self.resources)} are known to the workers of a cluster only; leave them "
                "out, or give client=."
            )
        offers = [w["resources"] for w in self.workers()]
        if not any(all(o.get(k, 0) >= v for k, v in self.resources.items()) for o in offers):
            raise TilingError(
                f"no worker offers resources={dict(self.resources)}; the {len(offers)} workers offer "
                f"{offers[:4]}. Start workers with --resources, or leave resources out."
            )

    def workers(self) -> list[dict[str, Any]]:
        """Return what the scheduler knew of each worker of the cluster when it was first asked."""
        if not self.known:
            self.known.extend(self.client.scheduler_info(n_workers=-1)["workers"].values())
        return self.known

    @property
    def threads(self) -> int:
        """Tasks at a time in one process."""
        if self.client is None:
            known = getattr(self.get, "__module__", "")
            return 1 if known in ("dask.local", "dask.multiprocessing") else _local_workers()
        return max((w["nthreads"] for w in self.workers()), default=n_threads())

    @property
    def at_once(self) -> int:
        """Calls at a time that blocks are made for: those of the cluster, at least this machine's."""
        if self.client is None or not self.alone:
            return n_threads()
        asked = self.resources or {}
        slots: list[int] = [
            min([w["nthreads"], *(math.floor(w["resources"].get(k, 0) / v + 1e-9) for k, v in asked.items())])
            for w in self.workers()
        ]
        return max(sum(slots), n_threads())

    def fewer(self) -> list[int]:
        """Return how many tasks at a time may be tried, the most first."""
        most = self.threads
        if self.client is not None or getattr(self.get, "__module__", "") != "dask.threaded":
            return [most]
        return sorted({max(1, most >> k) for k in range(most.bit_length())}, reverse=True)

    @property
    def memory(self) -> int:
        """Bytes that one process may take."""
        if self.client is None:
            apart = "multiprocessing" in getattr(self.get, "__module__", "")
            return default_memory() // (_local_workers() if apart else 1)
        limits = [w["memory_limit"] for w in self.workers() if w["memory_limit"]]
        return int(MEMORY_SHARE * min(limits)) if limits else default_memory()

    @property
    def guard(self) -> int | None:
        """Attempts that tasks make themselves; None where the scheduler sees to it."""
        return self.retries if self.client is None else None


def _local_workers() -> int:
    """Return how many threads or processes dask starts on this machine."""
    return int(dask.config.get("num_workers", None) or n_threads())
