"""Execution of pieces on any scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dask.callbacks import Callback
from dask.task_spec import DataNode, List, Task, TaskRef

from tilework.execution.cluster import Cluster
from tilework.execution.progress import Progress, Tracker, bar
from tilework.execution.where import Where
from tilework.graph.layer import Key
from tilework.writing.jobs import Broken, Job, Piece
from tilework.writing.ledger import Marks

__all__ = ["delayed", "run"]

# Blocks that a local scheduler gets at a time: enough that waiting for the last of them costs nothing.
LOCAL_BLOCKS = 2048


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
        tracker = Tracker(show, go_on)
        try:
            if where.client is None:
                _run_local(tracker.stream(jobs), where, tracker)
            else:
                Cluster(where, tracker).run(tracker.stream(jobs))
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


def _run_local(pieces: Iterator[Piece], where: Where, tracker: Tracker) -> None:
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
        threads = min((p.job.threads or where.threads for p in batch), default=where.threads)
        options = {"num_workers": threads} if threads < where.threads else {}
        with Callback(posttask=done):
            values = where.get(graph, keys, **options)
        kept = {key: (until[key], value) for key, value in zip(keys, values, strict=True) if key in until}


def _noted(broken: Broken) -> None:
    """Say where an error came from if it lost its traceback between processes."""
    if broken.error.__traceback__ is None:
        broken.error.add_note(f"in another process:\n{broken.text}")
