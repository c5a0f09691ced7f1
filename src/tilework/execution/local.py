"""`run` computes jobs on any scheduler; `delayed` makes a graph of one job. Local schedulers get batches."""

from __future__ import annotations

import functools
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.task_spec import DataNode, List, Task, TaskRef

from tilework.execution.cluster import Cluster
from tilework.execution.piece import Broken, Job, Piece, Shared
from tilework.execution.progress import Progress, Tracker, bar
from tilework.execution.where import Where
from tilework.graph.layer import Key

__all__ = ["delayed", "run"]

# Pieces that a local scheduler gets at a time: enough that waiting for the last one takes little time.
LOCAL_BLOCKS = 2048


def run(
    jobs: Iterable[Job], where: Where, *, progress: Progress, title: str, keep_going: bool = False
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

    Notes
    -----
    Graphs are not optimised: they are fused by construction, and dask's optimisation drops annotations.
    """
    with bar(progress, title) as show:
        tracker = Tracker(show, keep_going)
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
        """Shared nodes of the last piece."""
        self.seams: dict[Key, tuple[int, Any]] = {}
        """Seams that later pieces of `shared` need: the position of the last such piece, and the value."""

    def run(self, pieces: Iterator[Piece]) -> None:
        """Compute all pieces."""
        while batch := list(itertools.islice(pieces, LOCAL_BLOCKS)):
            self._compute(batch)

    def _compute(self, batch: list[Piece]) -> None:
        carried = self.seams if batch[0].shared is self.shared else {}
        graph: dict[Key, Any] = {}
        for piece in batch:
            graph.update(piece.shared.nodes)
            graph.update(piece.tasks)
        graph |= {key: DataNode(key, value) for key, (_, value) in carried.items()}
        writes = {key: piece for piece in batch for key in piece.writes}
        kept = self._kept(batch, carried)
        keys = [*writes, *kept]
        with Callback(posttask=functools.partial(self._note, writes)):
            values = self.where.get(graph, keys, **self._options(batch))
        self.shared = batch[-1].shared
        self.seams = {k: (kept[k], value) for k, value in zip(keys, values, strict=True) if k in kept}

    def _kept(self, batch: list[Piece], carried: Mapping[Key, tuple[int, Any]]) -> dict[Key, int]:
        """Return the seams that pieces after the batch need, and the position of the last such piece."""
        last = batch[-1]
        kept = {key: end for p in batch if p.shared is last.shared for key, end in p.keep.items()}
        if batch[0].shared is last.shared:
            kept |= {key: end for key, (end, _) in carried.items()}
        return {key: end for key, end in kept.items() if end > last.position}

    def _options(self, batch: list[Piece]) -> dict[str, int]:
        most = self.where.threads
        threads = min(piece.job.threads or most for piece in batch)
        return {"num_workers": threads} if threads < most else {}

    def _note(self, writes: Mapping[Key, Piece], key: Key, result: Any, *_: Any) -> None:
        """Record a task that has run; dask calls this in the main process after each task."""
        if key not in writes:
            return
        if isinstance(result, Broken):
            self.tracker.failed(writes[key], result.reason())
        else:
            self.tracker.finished(writes[key], key, result)


def delayed(job: Job) -> Delayed:
    """Return a `Delayed` that computes all of ``job`` in one graph, and returns its result."""
    graph: dict[Key, Any] = {}
    shared: Shared | None = None
    before: list[TaskRef] = []
    writes: list[TaskRef] = []
    for piece in job.pieces():
        if piece.shared is not shared:
            shared, before, writes = piece.shared, writes, []
            # Every task refers to these nodes, so they can delay a slab until the one before is done.
            gates = {k: Task(k, _after, node, List(*before)) for k, node in shared.nodes.items()}
            graph.update(gates if before else shared.nodes)
        graph.update(piece.tasks)
        writes += map(TaskRef, piece.writes)
    last = f"{job.title}-{uuid.uuid4().hex[:8]}"
    graph[last] = Task(last, _closed, job.close, List(*before, *writes))
    return Delayed(last, graph)


def _after(value: Any, before: Iterable[Any]) -> Any:
    """Return ``value`` once all of ``before`` is done; raise the error of a broken task."""
    for result in before:
        if isinstance(result, Broken):
            raise result.reason()
    return value


def _closed(close: Any, results: Iterable[Any]) -> Any:
    return _after(close, results)()
