"""`Where`: the dask scheduler of a run, its workers, and the memory of a process."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import dask
import dask.array as da
import dask.local
import dask.threaded
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from tilework._checks import as_options, at_least, brief, check_calls, has, of_type, positive, whole
from tilework._machine import default_memory, n_threads
from tilework.errors import TilingError
from tilework.execution.inside import can_leave, runs_of
from tilework.function.guard import current_worker

__all__ = ["BUSY", "Where", "local_workers"]

# Fraction of a worker's memory that a run may use; above it, distributed starts to spill.
MEMORY_SHARE = 0.6
# Threads of a run whose function keeps a device busy, and the fewest for each of several devices. They wait
# most of the time, so that their number has little to do with that of the processors: with reads, calls and
# writes of 50 ms each, 40 tiles took 6.1 s on one thread, 3.1 on two, and 2.1 on three and more.
LANES, LANES_PER_DEVICE = 8, 4
# Tasks per worker thread that keep it busy. Further images wait until fewer are left, so that no more images
# are in memory than this many blocks need.
BUSY = 2
MEANING = 'the name of a scheduler of dask, such as "threads" or "synchronous", an executor or a function'


@dataclass(frozen=True, slots=True)
class Where:
    """The scheduler of a run: the one that dask would choose, or a given one."""

    get: Callable[..., Any]
    """The function that computes keys of a graph, for local schedulers."""
    client: Any = None
    """The client of a cluster; None for local schedulers."""
    retries: int = 0
    """Further attempts at a failed task."""
    resources: Mapping[str, float] | None = None
    """Resources that a worker must offer to a task that calls the function."""
    priority: int = 0
    """Priority of all tasks, for the scheduler of a cluster; higher runs sooner."""
    alone: bool = True
    """Whether the run computes a single result; the tasks of several keep each other's workers busy."""
    lanes: int | None = None
    """Number of threads that the user asked for; None: dask's, or more for a function with a device."""
    postponed: bool = False
    """Whether somebody else computes the graph, on any scheduler, so that tasks make their own retries."""
    workers: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """Facts on each worker of a cluster at the start of the run."""

    @classmethod
    def find(cls, scheduler: Any = None, client: Any = None, **options: Any) -> Where:
        """Return the scheduler that dask would choose, or the given one."""
        if client is not None:
            if isinstance(client, type) or not has(client, "scheduler_info"):
                raise TypeError(f"client must be a distributed.Client; got {brief(client)}.")
            get = client.get
        else:
            get = _scheduler(scheduler)
            owner = getattr(get, "__self__", None)
            client = owner if hasattr(owner, "scheduler_info") else None
            if client is not None and scheduler is None and current_worker() is not None and not can_leave():
                # The task that started this thread may hold the last thread of all workers.
                client, get = None, dask.threaded.get
            if client is None and _in_pool_of(get):
                get = dask.local.get_sync  # a thread of the pool must not wait for the others of the pool
        workers = () if client is None else _workers(client)
        where = cls(get, client, workers=workers, **options)
        where._check()
        return where

    def later(self, *, client: Any, scheduler: Any, progress: Any) -> Where:
        """Return the place of a run with ``compute=False``; raise for what only the computing can honour."""
        given = {
            "client": client is not None, "scheduler": scheduler is not None,
            "resources": bool(self.resources), "priority": self.priority != 0,
            "lanes": self.lanes is not None,
            "progress": progress is True or callable(progress),
        }  # fmt: skip
        if refused := [f"{name}=" for name, there in given.items() if there]:
            raise TilingError(
                f"compute=False cannot keep {', '.join(refused)}: leave it out, and give it where the result "
                "is computed, as in client.compute(written, priority=5)."
            )
        return replace(self, postponed=True)

    def _check(self) -> None:
        at_least("retries", self.retries, 0)
        whole("priority", self.priority)
        self._check_lanes()
        if self.resources is None or not as_options("resources", self.resources):
            return
        if not all(positive(f"resources[{k!r}]", v) for k, v in self.resources.items()):
            raise TilingError(f"resources must be positive numbers; got {dict(self.resources)}.")
        if self.client is None:
            raise TilingError(
                f"resources={dict(self.resources)} are known to the workers of a cluster only; leave them "
                "out, or give client=."
            )
        offers = [w["resources"] for w in self.workers]
        if not any(all(o.get(k, 0) >= v for k, v in self.resources.items()) for o in offers):
            raise TilingError(
                f"no worker offers resources={dict(self.resources)}; the {len(offers)} workers offer "
                f"{offers[:4]}. Start workers with --resources, or leave resources out."
            )

    def _check_lanes(self) -> None:
        if self.lanes is None:
            return
        at_least("lanes", self.lanes, 1)
        if self.client is not None:
            hint = "its workers have threads of their own: Client(threads_per_worker=8)."
        elif self.name != "threads":
            hint = 'it starts no threads of its own; leave lanes out, or give scheduler="threads".'
        elif dask.config.get("pool", None) is not None:
            hint = "it has the threads of the pool in dask's configuration; leave lanes out, or the pool."
        else:
            return
        raise TilingError(f"lanes={self.lanes} cannot be kept by the scheduler {self.name!r}: {hint}")

    @property
    def name(self) -> str:
        """The kind of the scheduler: "distributed", "threads", "processes", "sync" or "other"."""
        if self.client is not None:
            return "distributed"
        module = getattr(self.get, "__module__", "")
        if module == "dask.local" and not hasattr(self.get, "func"):
            return "sync"
        return {"dask.threaded": "threads", "dask.multiprocessing": "processes"}.get(module, "other")

    @property
    def apart(self) -> bool:
        """Whether tasks run, or may run, where they cannot reach what is in the memory of this process."""
        return not self.postponed and self.name in ("distributed", "processes")

    @property
    def threads(self) -> int:
        """Number of concurrent tasks in one process."""
        if self.client is None:
            known = getattr(self.get, "__module__", "")
            single = known in ("dask.local", "dask.multiprocessing")
            return 1 if single else min(local_workers(), self.lanes or sys.maxsize)
        return self._tightest[0]

    def threads_for(self, devices: int) -> int:
        """Return the most threads with which a run should work that keeps ``devices`` devices busy.

        Blocks are chosen for `threads` all the same: the bits of a result must not depend on this number.
        """
        if self.lanes is not None:
            return max(self.threads, int(self.lanes))
        own = dask.config.get("num_workers", None) or dask.config.get("pool", None)
        if not devices or own or self.name != "threads" or self.postponed:
            return self.threads
        return max(self.threads, LANES, LANES_PER_DEVICE * devices)

    @property
    def _tightest(self) -> tuple[int, int]:
        """Concurrent tasks and memory, bytes, of the worker with the least memory for each of its tasks."""
        limited = [
            (int(w["nthreads"]), int(MEMORY_SHARE * w["memory_limit"]))
            for w in self.workers
            if w["memory_limit"]
        ]
        most = max((int(w["nthreads"]) for w in self.workers), default=n_threads())
        return min(limited, key=lambda worker: worker[1] / worker[0], default=(most, default_memory()))

    @property
    def at_a_time(self) -> int:
        """Number of tasks that run at the same time, in all processes."""
        if self.client is not None:
            return max(1, sum(int(w["nthreads"]) for w in self.workers))
        return 1 if self.name == "sync" else local_workers()

    @property
    def at_once(self) -> int:
        """Number of concurrent calls that blocks should keep busy: the cluster's, at least this machine's."""
        if self.client is None or not self.alone:
            return n_threads()
        asked = self.resources or {}
        slots: list[int] = [
            min([w["nthreads"], *(math.floor(w["resources"].get(k, 0) / v + 1e-9) for k, v in asked.items())])
            for w in self.workers
        ]
        return max(sum(slots), n_threads())

    def fewer(self) -> list[int]:
        """Return the numbers of concurrent tasks to which a process can be limited, the largest first."""
        most = self.threads
        if self.name != "threads" or dask.config.get("pool", None) is not None:
            return [most]
        return sorted({max(1, most >> k) for k in range(most.bit_length())}, reverse=True)

    @property
    def memory(self) -> int:
        """The memory that one process may use, bytes; in a task of a worker the share of one such task."""
        around = current_worker()
        if self.client is None:
            limit = None if around is None else around.memory_manager.memory_limit
            memory = min(default_memory(), int(MEMORY_SHARE * limit)) if limit else default_memory()
            apart = "multiprocessing" in getattr(self.get, "__module__", "")
            beside = 1 if around is None else int(around.state.nthreads)
            return memory // (beside * (local_workers() if apart else 1))
        return self._tightest[1] // (1 if around is None else runs_of(around))

    @property
    def again(self) -> bool:
        """Whether a task may run again in another process, after it has written."""
        return self.client is not None or self.postponed

    @property
    def guard(self) -> int | None:
        """Further attempts that tasks make themselves; None if the scheduler makes them."""
        return self.retries if self.client is None or self.postponed else None


def _scheduler(given: Any) -> Callable[..., Any]:
    """Return the function that computes graphs on the scheduler that dask would choose, or the given one."""
    name = "scheduler"
    if given is None and (configured := dask.config.get("scheduler", None)):
        name, given = "the scheduler in dask's configuration", configured
    if isinstance(given, type) or not (given is None or isinstance(given, str) or callable(given)):
        # An executor and a client are no functions.
        given = of_type(name, given, (Executor, *_clients()), MEANING)
    get: Callable[..., Any]
    if callable(given):
        check_calls(name, given, "a graph", "a list of keys")
    try:
        get = get_scheduler(scheduler=given, cls=da.Array)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        # A word that names none, or "distributed" without a client.
        raise TilingError(f"{name} must be {MEANING}; got {brief(given)}: {error}") from error
    return get


def _workers(client: Any) -> tuple[Mapping[str, Any], ...]:
    """Return facts on each worker of a cluster; raise if its scheduler cannot be asked.

    A client that found no scheduler when it was made stays the one that dask uses, and so does one whose
    scheduler has gone.
    """
    try:
        return tuple(client.scheduler_info(n_workers=-1)["workers"].values())
    except Exception as error:  # of the address, the connection or the event loop; a KeyError after a time
        said = f": {error}" if isinstance(error, ValueError | OSError) else ""
        raise TilingError(
            f"the scheduler of the dask client in use, which is {client.status}, does not answer{said}. "
            "Close the client, distributed.get_client().close(), and connect again; or work without it: "
            'dask.config.set(scheduler="threads").'
        ) from error


def _clients() -> tuple[type, ...]:
    distributed = sys.modules.get("distributed")
    return () if distributed is None else (distributed.Client,)


def _in_pool_of(get: Callable[..., Any]) -> bool:
    """Return whether this thread belongs to the executor that the user gave to dask for ``get``."""
    submit = next(iter(getattr(get, "args", ())), None)  # dask makes a partial of an executor's submit
    pool = dask.config.get("pool", None) if get is dask.threaded.get else getattr(submit, "__self__", None)
    prefix = getattr(pool, "_thread_name_prefix", None)
    # By name, because an executor lists a thread only some time after it started.
    return prefix is not None and threading.current_thread().name.startswith(f"{prefix}_")


def local_workers() -> int:
    """Return the number of threads or processes with which dask works on this machine."""
    pool = dask.config.get("pool", None)
    if (size := getattr(pool, "_max_workers", None)) is not None:
        return int(size)
    return int(dask.config.get("num_workers", None) or CPU_COUNT)
