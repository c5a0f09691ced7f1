"""`run` computes jobs on any scheduler; `delayed` makes a graph of one job. Local schedulers get batches."""

from __future__ import annotations

import bisect
import functools
import inspect
import math
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from typing import Any

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.multiprocessing import get_context, initialize_worker_process
from dask.task_spec import DataNode, List, Task, TaskRef

from tilework.errors import TilingError
from tilework.execution.cluster import Cluster
from tilework.execution.piece import Broken, Guarded, Job, Piece, Shared, needed_in
from tilework.execution.progress import LOG, Progress, Tracker, bar
from tilework.execution.stop import PATIENCE, Stop
from tilework.execution.where import BUSY, Where, local_workers
from tilework.graph.tasks import Key

__all__ = ["delayed", "run"]

# Pieces that a local scheduler gets at a time, and those per worker: enough that waiting for the last one
# takes little time. What dask keeps of a piece takes about 12 kB; 4096 small pieces took as long with 64 at a
# time as with 256, and a tenth longer with 2048. Pieces that read dask arrays are only those per worker: dask
# orders them by the chunks that they need, and more seams wait.
LOCAL_BLOCKS, BLOCKS_PER_WORKER = 256, 32


def run(
    jobs: Iterable[Job],
    where: Where,
    *,
    progress: Progress,
    title: str,
    keep_going: bool = False,
    ended: Callable[[Job], Any] = lambda job: None,
) -> None:
    """Compute the pieces of ``jobs``, one after the other, in one bounded window.

    Parameters
    ----------
    jobs : iterable of Job
        Taken one by one, when the window has room for their pieces.
    where : Where
    progress : bool, "auto", or callable
        Whether to show a bar that counts tiles. "auto" shows it in a terminal and in a notebook, and
        otherwise logs a line a minute. A callable gets the number of finished tiles and the total known so
        far.
    title : str
        Name of the bar.
    keep_going : bool
        Whether the other jobs continue when one fails; its error is in ``job.error``.
    ended : callable
        Gets each job whose tasks have all run. Nothing of the run refers to the job afterwards.

    Notes
    -----
    Graphs are not optimised: they are fused by construction, and dask's optimisation drops annotations.

    If an error or an interrupt ends the run, its tasks are told to stop, and those in flight are waited for,
    at most `PATIENCE` seconds.
    """
    with bar(progress, title) as show:
        tracker = Tracker(show, keep_going, ended)
        runner = Local(where, tracker) if where.client is None else Cluster(where, tracker)
        try:
            runner.run(tracker.stream(jobs))
        finally:
            tracker.close()


class Local:
    """Runs pieces on a scheduler of this machine, a batch at a time.

    A batch ends when all its tasks have run. The seams that later batches need are kept here as values.
    """

    def __init__(self, where: Where, tracker: Tracker) -> None:
        self.where, self.tracker = where, tracker
        self.shared: Shared | None = None
        """Shared nodes of the last piece, if there are seams."""
        self.seams: dict[Key, tuple[int, Any]] = {}
        """Seams that later pieces of `shared` need: the position of the last such piece, and the value."""
        self.stop = Stop()
        self.pool = _pool_of(where.get)
        self.unfinished: dict[Key, Piece] = {}
        """Last tasks of the batch that have not run."""

    def run(self, pieces: Iterator[Piece | None]) -> None:
        """Compute all pieces."""
        try:
            while self._compute(self._next(pieces)):
                pass
        except BaseException as error:
            self._end()
            if isinstance(error, BrokenExecutor):
                error.add_note(self._killer())
            raise

    def _next(self, pieces: Iterator[Piece | None]) -> list[Piece]:
        """Return the next batch. It takes a further job only to keep all workers busy: a job has an image."""
        batch: list[Piece] = []
        most = max(LOCAL_BLOCKS, BLOCKS_PER_WORKER * self.where.at_a_time)
        enough = min(most, BUSY * self.where.at_a_time)
        for piece in pieces:
            if piece is not None:
                batch.append(piece)
                if piece.reads:
                    most = BLOCKS_PER_WORKER * self.where.at_a_time
                enough = max(enough, BUSY * (piece.job.threads or 1))
            if len(batch) >= (enough if piece is None else most):
                break
        return batch

    def _compute(self, batch: list[Piece]) -> bool:
        """Compute a batch; return whether there was one."""
        if not batch:
            return False
        carried = self.seams if batch[0].shared is self.shared else {}
        graph: dict[Key, Any] = {}
        for piece in batch:
            graph.update(piece.shared.nodes)
            graph.update(piece.tasks)
            for node in piece.tasks.values():
                if isinstance(function := getattr(node, "func", None), Guarded):
                    function.stop = self.stop
        needed = needed_in(graph)
        writes = self.unfinished = {key: piece for piece in batch for key in piece.writes}
        kept = self._kept(batch)
        ends = math.inf if batch[0].shared is not batch[-1].shared else batch[-1].position
        later = {key: held for key, held in carried.items() if held[0] > ends}
        graph |= {k: self._held(k, carried[k][1], k in later) for k in carried.keys() & needed}
        carried.clear()
        self._refuse_held_elsewhere(needed - graph.keys())
        _put_off(graph, kept.keys() - needed, list(writes)[-1:])
        keys = [*writes, *kept]
        values = self.where.get(graph, keys, **self._options(batch, writes))
        found = dict(zip(keys, values, strict=True))
        for key in list(writes):  # of which no callback told
            self._note(writes, key, found[key])
        self.seams = later | {key: (end, found[key]) for key, end in kept.items()}
        self.shared = batch[-1].shared if self.seams else None
        return True

    def _refuse_held_elsewhere(self, keys: Collection[Key]) -> None:
        """Raise a `TilingError` if tasks need values that only a cluster has."""
        if keys:
            name = next(key[0] if isinstance(key, tuple) else key for key in keys)
            raise TilingError(
                f"blocks of the dask array {name} are held by a cluster (persist), which the scheduler "
                f"{self.where.name!r} cannot read; run on the cluster (client=), or build the result of the "
                "array before it was persisted."
            )

    def _held(self, key: Key, seam: Any, later: bool) -> Task | DataNode:
        """Return the node of a seam that is carried over; ``later``: pieces after the batch need it too.

        A task hands it out, and holds it no more: the graph would, until the batch ends. Where the scheduler
        has other processes, the seam would travel to one of them and back.
        """
        gives = not later and self.where.name in ("threads", "sync")
        return Task(key, [seam].pop) if gives else DataNode(key, seam)

    def _kept(self, batch: list[Piece]) -> dict[Key, int]:
        """Return the seams of a batch that pieces after it need, and the position of the last such piece."""
        last = batch[-1]
        kept = {key: end for p in batch if p.shared is last.shared for key, end in p.keep.items()}
        return {key: end for key, end in kept.items() if end > last.position}

    def _options(self, batch: list[Piece], writes: dict[Key, Piece]) -> dict[str, Any]:
        threads = min(piece.job.threads or self.where.threads for piece in batch)
        local = self.where.name == "threads"
        # The pool that dask keeps serves runs with as many threads as dask starts.
        options: dict[str, Any] = {"num_workers": threads} if local and threads != local_workers() else {}
        if self.pool is not None:
            options["pool"] = self.pool
        if _takes_callbacks(self.where.get):
            # Of this call alone: dask's own set belongs to all threads, and each takes the others' out.
            begin = functools.partial(_in_order, {key: n for n, p in enumerate(batch) for key in p.tasks})
            own = (None, begin, None, functools.partial(self._note, writes), self._finished)
            options["callbacks"] = [*Callback.active, own]
        return options

    def _note(self, writes: dict[Key, Piece], key: Key, result: Any, *_: Any) -> None:
        """Record a task that has run, once; dask calls this in the main process after each task."""
        piece = writes.pop(key, None)
        if piece is None:
            return
        if isinstance(result, Broken):
            self.tracker.failed(piece, result.reason())
        else:
            self.tracker.finished(piece, key, result)

    def _killer(self) -> str:
        """Run the tiles of unfinished tasks one by one in a new process; return a note on one that kills it.

        Which tasks ran when a process died is not known, but they are among the first that are unfinished.
        """
        prepare = dask.config.get("multiprocessing.initializer", None)
        new = ProcessPoolExecutor(1, get_context(), functools.partial(initialize_worker_process, prepare))
        end = time.monotonic() + PATIENCE
        with new as pool, dask.config.set({"multiprocessing.initializer": None}):
            for key, piece in self.unfinished.items():
                for tile, alone in piece.job.culprits(key):
                    if time.monotonic() > end:
                        return f"no tile before {tile} kills its process when it runs alone"
                    try:
                        self.where.get({**alone.shared.nodes, **alone.tasks}, list(alone.writes), pool=pool)
                    except BrokenExecutor:
                        return f"{tile} kills its process whenever it runs"
        return "no tile kills its process when it runs alone; perhaps they do together"

    def _finished(self, graph: Any, state: Any, failed: bool) -> None:
        """Tell the tasks to stop as soon as dask gives up; it may wait for them before it raises."""
        del graph, state
        if failed:
            self.stop.ask()

    def _end(self) -> None:
        """Tell the tasks to stop, and wait for those in flight."""
        self.stop.ask()
        left = self.stop.wait(0) or (0 if self.pool is None else self.pool.left(0))
        if left:
            LOG.info("stopping: waiting up to %.0f s for %d tasks in flight", PATIENCE, left)
            left = self.stop.wait(PATIENCE) + (0 if self.pool is None else self.pool.left(PATIENCE))
        if left:
            LOG.warning("%d tasks still run after %.0f s; they write nothing later", left, PATIENCE)
        else:
            self.stop.forget()


class _Ready(list[Key]):
    """The tasks that can run, those of the first pieces at the end, where dask takes the next one.

    dask takes the one that became ready last, and where that leaves a choice, one that needs fewer others. So
    a seam let the next block run before the own one, and the smaller blocks at the edges ran long before
    their turn: their seams waited, and the chunks that they read were decoded again.
    """

    def __init__(self, keys: Iterable[Key], numbers: dict[Key, int]) -> None:
        self._numbers = numbers
        super().__init__(sorted(keys, key=self._place))

    def _place(self, key: Key) -> int:
        """Return a place; what is of no piece is a seam that is carried over, and comes first."""
        return -self._numbers.get(key, -1)

    def append(self, key: Key) -> None:
        """Add a task, to be taken before others of its piece."""
        bisect.insort(self, key, key=self._place)


def _in_order(numbers: dict[Key, int], graph: Any, state: Any) -> None:
    """Let dask run tasks in the order of their pieces; it calls this before the first one."""
    del graph
    state["ready"] = _Ready(state["ready"], numbers)


def _put_off(graph: dict[Key, Any], kept: Iterable[Key], last: Sequence[Key]) -> None:
    """Let the tasks ``kept``, which no task of a batch needs, wait for its ``last`` tasks.

    dask first computes what needs the fewest roots. That is the seam of the last block, which would wait,
    with the samples of its group, until the batch ends.
    """
    for key in kept:
        graph[key] = Task(key, _first, graph[key], List(*map(TaskRef, last)))


def _first(value: Any, later: Any) -> Any:
    """Return ``value``; the other argument is a dependency only."""
    del later
    return value


class _Pool:
    """An executor that the user gave to dask, with the futures of one run."""

    def __init__(self, pool: Any) -> None:
        self._pool, self._max_workers = pool, pool._max_workers
        self._futures: set[Future[Any]] = set()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the executor."""
        future: Future[Any] = self._pool.submit(*args, **kwargs)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def left(self, seconds: float) -> int:
        """Cancel what has not begun, wait for the rest, and return how much still runs."""
        for future in list(self._futures):
            future.cancel()
        return len(wait(list(self._futures), seconds).not_done)


def _pool_of(get: Callable[..., Any]) -> _Pool | None:
    """Return the executor in dask's configuration, if ``get`` would use its processes."""
    pool = dask.config.get("pool", None)
    apart = getattr(get, "__module__", "") == "dask.multiprocessing"
    return _Pool(pool) if apart and isinstance(pool, Executor) else None


def _takes_callbacks(get: Callable[..., Any]) -> bool:
    """Return whether a scheduler takes callbacks, as those of dask do; others are read when they are done."""
    try:
        parameters = inspect.signature(get).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "callbacks" or p.kind is p.VAR_KEYWORD for p in parameters)


def delayed(job: Job) -> Delayed:
    """Return a `Delayed` that computes all of ``job`` in one graph; its result is that of ``job.ending``."""
    graph: dict[Key, Any] = {}
    title = f"{job.title}-{uuid.uuid4().hex[:8]}"
    begin, last = f"{title}-begin", title
    graph[begin] = Task(begin, job.opening)
    writes: list[TaskRef] = []
    for piece in job.pieces():
        # Every task refers to these nodes, so they delay all until the job has begun.
        graph.update(
            {k: Task(k, _after, node, List(TaskRef(begin))) for k, node in piece.shared.nodes.items()}
        )
        graph.update(piece.tasks)
        writes += map(TaskRef, piece.writes)
    # The end refers to the beginning, whose result stands for the claims of the run.
    graph[last] = Task(last, _closed, job.ending, TaskRef(begin), List(*writes))
    return Delayed(last, graph)


def _after(value: Any, before: Iterable[Any]) -> Any:
    """Return ``value`` once all of ``before`` is done; raise the error of a broken task."""
    for result in before:
        if isinstance(result, Broken):
            raise result.reason()
    return value


def _closed(end: Callable[[Sequence[Any]], Any], begun: Any, results: Iterable[Any]) -> Any:
    """End a job with the results of its last tasks."""
    del begun
    results = list(results)
    return _after(end, results)(results)
