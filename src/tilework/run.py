"""Execution of pieces on any scheduler: in a bounded window, with a bar that counts tiles."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask.array as da
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, List, Task, TaskRef

from tilework.arguments import default_memory, n_threads
from tilework.errors import TilingError
from tilework.job import Broken, Job, Piece
from tilework.marks import Marks

__all__ = ["Progress", "Where", "bar", "delayed", "run"]

Key = Any
Progress = bool | str | Callable[[int, int], Any]
LOG = logging.getLogger("tilework")

# Blocks that a local scheduler gets at a time: enough that waiting for the last of them costs nothing.
LOCAL_BLOCKS = 2048
# Blocks that a cluster's scheduler knows at a time, at least and per thread: enough that no worker waits for
# the client, few enough that a million of them never stand in its memory.
CLUSTER_BLOCKS, BLOCKS_PER_THREAD = 512, 16
# Of a worker's memory: beyond it distributed starts to spill.
MEMORY_SHARE = 0.6
LOG_SECONDS = 60.0


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
        if self.client is None:
            raise TilingError(
                f"resources={dict(self.resources)} are known to the workers of a cluster only; leave them "
                "out, or give client=."
            )
        offers = [w["resources"] for w in self._workers()]
        if not any(all(o.get(k, 0) >= v for k, v in self.resources.items()) for o in offers):
            raise TilingError(
                f"no worker offers resources={dict(self.resources)}; the {len(offers)} workers offer "
                f"{offers[:4]}. Start workers with --resources, or leave resources out."
            )

    def _workers(self) -> list[dict[str, Any]]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"].values())

    @property
    def threads(self) -> int:
        """Tasks at a time in one process."""
        if self.client is None:
            return 1 if getattr(self.get, "__module__", "") == "dask.local" else n_threads()
        return max((w["nthreads"] for w in self._workers()), default=n_threads())

    @property
    def memory(self) -> int:
        """Bytes that one process may take."""
        if self.client is None:
            several = "multiprocessing" in getattr(self.get, "__module__", "")
            return default_memory() // (n_threads() if several else 1)
        limits = [w["memory_limit"] for w in self._workers() if w["memory_limit"]]
        return int(MEMORY_SHARE * min(limits)) if limits else default_memory()

    @property
    def guard(self) -> int | None:
        """Attempts that tasks make themselves; None where the scheduler sees to it."""
        return self.retries if self.client is None else None


def run(jobs: Iterable[Job], where: Where, *, progress: Progress, title: str, go_on: bool = False) -> None:
    """Run the pieces of ``jobs``, one after the other, in one bounded window.

    Parameters
    ----------
    jobs : iterable of Job
        Taken one by one, when there is room for their pieces.
    where : Where
    progress : bool, "auto", or callable
        A bar that counts tiles; "auto": in a terminal and in a notebook, else a line a minute to the log. A
        callable gets the tiles that are done and those that are known of.
    title : str
        Name of the bar.
    go_on : bool
        Whether a job that fails leaves the others running; its error is in ``job.error``.

    Notes
    -----
    Graphs are not optimised: they are fused by construction, and dask's optimisation drops annotations.
    """
    with bar(progress, title) as show:
        tracker = _Tracker(show, go_on)
        try:
            if where.client is None:
                _run_local(tracker.stream(jobs), where, tracker)
            else:
                _Cluster(where, tracker).run(tracker.stream(jobs))
        finally:
            tracker.close()


def delayed(job: Job, where: Where) -> Any:
    """Return a `Delayed` that runs all pieces of ``job`` in one graph, slab after slab."""
    from dask.delayed import Delayed

    graph: dict[Key, Any] = {}
    before: list[TaskRef] = []
    current: Mapping[Key, Any] | None = None
    writes: list[TaskRef] = []
    for piece in job.pieces():
        if piece.shared is not current:
            current, before, writes = piece.shared, writes, []
            # Every task refers to these: so they are the gate between slabs.
            gates = {k: Task(k, _after, node, List(*before)) for k, node in piece.shared.items()}
            graph.update(gates if before else piece.shared)
        graph.update(piece.tasks)
        writes += map(TaskRef, piece.writes)
    last = f"{job.title}-{id(job)}"
    graph[last] = Task(last, _close, job.arrays, tuple(job.done), List(*before, *writes))
    return Delayed(last, graph)


def _after(value: Any, before: Any) -> Any:
    for result in before:
        if isinstance(result, Broken):
            raise result.error
    return value


def _close(arrays: Mapping[int, Any], marked: Sequence[int], results: Sequence[Any]) -> Any:
    _after(None, results)
    for number in marked:
        Marks(arrays[number]).pack()
    return next(iter(arrays.values())) if len(arrays) == 1 else tuple(arrays.values())


class _Tracker:
    """Counts what is done, and closes jobs."""

    def __init__(self, show: Callable[[int, int], Any], go_on: bool) -> None:
        self.show, self.go_on = show, go_on
        self.done = self.total = 0
        self.open: list[Job] = []

    def stream(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """Yield the pieces of all jobs; those of a job that failed end."""
        for job in jobs:
            self.total += job.tiles
            self.show(self.done, self.total)
            job.outstanding += 1  # until all pieces are out
            self.open.append(job)
            for piece in job.pieces():
                if job.error is not None:
                    break
                job.outstanding += len(piece.writes)
                yield piece
            self._one_less(job)

    def finished(self, piece: Piece, key: Key, failures: Any) -> None:
        """Take note of a block that was written."""
        piece.job.failures += failures or []
        self.done += piece.writes[key]
        self.show(self.done, self.total)
        self._one_less(piece.job)

    def failed(self, piece: Piece, error: BaseException) -> None:
        """Take note of a block that was not written."""
        if piece.job.error is None:
            piece.job.error = error
        self._one_less(piece.job)
        if not self.go_on:
            raise error

    def _one_less(self, job: Job) -> None:
        job.outstanding -= 1
        if not job.outstanding:
            job.close()
            self.open.remove(job)

    def close(self) -> None:
        """Close what a failure or an interrupt left open."""
        error = sys.exc_info()[1]
        for job in self.open:
            try:
                job.close()
            except Exception:
                # The store may be what failed; its marks stand one by one.
                if error is None and job.error is None:
                    raise


# -- local schedulers -------------------------------------------------------------------------------------


def _run_local(pieces: Iterator[Piece], where: Where, tracker: _Tracker) -> None:
    kept: dict[Key, tuple[int, Any]] = {}
    shared: Mapping[Key, Any] | None = None
    while batch := list(itertools.islice(pieces, LOCAL_BLOCKS)):
        graph: dict[Key, Any] = {}
        by_write: dict[Key, Piece] = {}
        for piece in batch:
            graph.update(piece.shared)
            graph.update(piece.tasks)
            by_write.update(dict.fromkeys(piece.writes, piece))
        if batch[0].shared is shared:
            graph.update({key: DataNode(key, value) for key, (_, value) in kept.items()})
        last = batch[-1]
        position, shared = last.position, last.shared
        own = [p for p in batch if p.shared is shared]
        until = {key: end for p in own for key, end in p.keep.items() if end > position}
        until |= {key: end for key, (end, _) in kept.items() if key in graph and end > position}

        def done(key: Key, result: Any, *_: Any, by_write: dict[Key, Piece] = by_write) -> None:
            if key in by_write:
                if isinstance(result, Broken):
                    _noted(result)
                    tracker.failed(by_write[key], result.error)
                else:
                    tracker.finished(by_write[key], key, result)

        keys = [*by_write, *until]
        with Callback(posttask=done):
            values = where.get(graph, keys)
        kept = {key: (until[key], value) for key, value in zip(keys, values, strict=True) if key in until}


def _noted(broken: Broken) -> None:
    """Say where an error came from if it lost its traceback between processes."""
    if broken.error.__traceback__ is None:
        broken.error.add_note(f"in another process:\n{broken.text}")


# -- clusters ---------------------------------------------------------------------------------------------


class _Cluster:
    """Submits pieces so that a bounded number of blocks is outstanding."""

    def __init__(self, where: Where, tracker: _Tracker) -> None:
        from distributed import as_completed

        self.where, self.client, self.tracker = where, where.client, tracker
        threads = sum(w["nthreads"] for w in where._workers())
        self.window = max(CLUSTER_BLOCKS, BLOCKS_PER_THREAD * threads)
        self.running: dict[Key, Piece] = {}
        self.futures: dict[Key, Any] = {}
        self.seams: dict[Key, tuple[int, int, Any]] = {}
        self.shared: dict[int, tuple[Mapping[Key, Any], list[Any]]] = {}
        self.users: Counter[int] = Counter()
        self.current = 0
        self.completed = as_completed(loop=where.client.loop)

    def run(self, pieces: Iterator[Piece]) -> None:
        """Run all pieces."""
        try:
            more = True
            while more or self.running:
                while more and len(self.running) <= self.window * 3 // 4:
                    batch = list(itertools.islice(pieces, self.window // 4))
                    more = bool(batch)
                    if batch:
                        self._submit(batch)
                if self.running:
                    self._collect(next(self.completed))
        finally:
            if self.futures:
                self.client.cancel(list(self.futures.values()), reason="the run ended", force=True)

    def _submit(self, batch: list[Piece]) -> None:
        light: dict[Key, Any] = {}
        heavy: dict[Key, Any] = {}
        keys: list[Key] = []
        keep: dict[Key, tuple[int, int]] = {}
        for piece in batch:
            self._share(piece)
            for key, task in piece.tasks.items():
                calls = isinstance(key, tuple) and key[0].endswith(("-group", "-block"))
                (heavy if calls and self.where.resources else light)[key] = task
            keys += piece.writes
            keep |= {key: (id(piece.shared), end) for key, end in piece.keep.items()}
            self.running |= dict.fromkeys(piece.writes, piece)
            self.users[id(piece.shared)] += len(piece.writes)
        graph = HighLevelGraph(
            {
                "light": MaterializedLayer(light),
                "heavy": MaterializedLayer(heavy, {"resources": dict(self.where.resources or {})}),
            },
            {"light": {"heavy"}, "heavy": set()},
        )
        found = self._get(graph if heavy else light, [*keys, *keep])
        for key, future in zip([*keys, *keep], found, strict=True):
            if key in keep:
                self.seams[key] = (*keep[key], future)
            else:
                self.futures[key] = future
                self.completed.add(future)
        last = batch[-1]
        self.current = id(last.shared)
        self.seams = {
            key: (owner, end, future)
            for key, (owner, end, future) in self.seams.items()
            if owner == self.current and end > last.position
        }

    def _get(self, graph: Any, keys: list[Key]) -> list[Any]:
        found: list[Any] = self.client.get(
            graph, keys, sync=False, retries=self.where.retries or None, priority=self.where.priority
        )
        return found

    def _share(self, piece: Piece) -> None:
        """Submit what pieces share, once."""
        if id(piece.shared) not in self.shared:
            keys = list(piece.shared)
            self.shared[id(piece.shared)] = piece.shared, self._get(dict(piece.shared), keys)

    def _collect(self, future: Any) -> None:
        key = future.key
        piece = self.running.pop(key)
        del self.futures[key]
        if future.status == "finished":
            self.tracker.finished(piece, key, future.result())
        else:
            self.tracker.failed(piece, self._error(future, piece))
        future.release()
        owner = id(piece.shared)
        self.users[owner] -= 1
        if not self.users[owner] and owner != self.current:
            del self.users[owner], self.shared[owner]

    def _error(self, future: Any, piece: Piece) -> BaseException:
        from distributed import CancelledError, KilledWorker

        try:
            error: BaseException | None = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            error = CancelledError(f"task {future.key} was cancelled from elsewhere")
        if isinstance(error, KilledWorker):
            self._name_killer(error, piece)
        return error

    def _name_killer(self, error: Any, piece: Piece) -> None:
        """Run the tiles of a task that killed its workers one by one, to name the one that does."""
        from distributed import KilledWorker

        if piece.job.error is not None:
            return  # named once
        for tile, alone in piece.job.culprits(_key_of(error.task, piece)):
            held = self._get(dict(alone.shared), list(alone.shared))
            [future] = self._get(alone.tasks, list(alone.writes))
            found = future.exception()
            del held
            if found is not None:
                kills = "kills its worker" if isinstance(found, KilledWorker) else f"fails: {found!r}"
                error.add_note(f"{tile} {kills} whenever it runs")
                return


def _key_of(task: Any, piece: Piece) -> Key:
    """Return the key that a `KilledWorker` names, which it may hold as text."""
    return next((key for key in piece.tasks if key == task or str(key) == str(task)), task)


# -- progress ---------------------------------------------------------------------------------------------


@contextmanager
def bar(progress: Progress, title: str) -> Iterator[Callable[[int, int], Any]]:
    """Give a function that shows how many tiles are done, and of how many."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda done, total: None
    elif progress == "auto" and not _watched():
        yield _logger(title)
    else:
        from tqdm.auto import tqdm

        with tqdm(total=0, desc=title, unit="tile") as shown:

            def show(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)

            yield show
            shown.refresh()


def _watched() -> bool:
    """Return whether somebody sees a bar: in a terminal or a notebook."""
    if hasattr(sys.stderr, "isatty") and sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _logger(title: str) -> Callable[[int, int], Any]:
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LOG_SECONDS:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            LOG.info("%s: %d of %d tiles, %.3g a second, %.0f s left", title, done, total, rate, left)

    return show
