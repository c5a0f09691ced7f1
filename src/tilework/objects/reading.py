"""`BoxJob`: a function of the samples in each of many boxes, as tasks on any scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dask.task_spec import DataNode, List, Task, TaskRef

from tilework._types import Array, Span
from tilework.execution.calls import CallsJob
from tilework.execution.piece import Piece, Shared, guarded
from tilework.execution.where import Where
from tilework.function.load_once import in_task
from tilework.graph.build import graph_of
from tilework.graph.own_names import named_apart
from tilework.graph.tasks import Key
from tilework.source import kept
from tilework.source.base import BlockSource, Source
from tilework.source.padding import AxisRead

__all__ = ["BoxJob", "given_to"]

Call = tuple[Sequence[Span], Any]
"""The box that a task reads, one span per axis, and what its function gets beside the samples."""


class BoxJob(CallsJob):
    """Calls ``function(samples, box, argument)`` for many boxes, and keeps the results in ``found``.

    ``samples`` are those of each source in the box; the function may not write into them.

    Parameters
    ----------
    title : str
    sources : sequence of Source
        All of one shape.
    function : callable
    calls : sequence of (box, argument)
    where : Where
    threads : int, optional
        Number of concurrent tasks in one process.
    """

    def __init__(
        self,
        title: str,
        sources: Sequence[Source],
        function: Callable[[list[Array], Sequence[Span], Any], Any],
        calls: Sequence[Call],
        where: Where,
        threads: int | None = None,
    ) -> None:
        super().__init__(title, function, lambda run: (function, self.sources, run), calls, where.guard)
        self.sources, self.threads = named_apart(sources, self.name), threads

    def pieces(self) -> Iterator[Piece]:
        """Yield one piece per box; a single one if blocks of dask arrays are read, whose graph is a whole."""
        name = self.name
        shared = Shared({name: DataNode(name, self.common(self.run))})
        task = guarded(_call, self.retries)
        needed: dict[int, set[Key]] = {k: set() for k, s in enumerate(self.sources) if s.dask_name}
        together: dict[Key, Any] = {}
        for number, (box, argument) in enumerate(self.calls):
            key = (f"{name}-box", number)
            tasks: dict[Key, Any] = {}
            given = []
            for k, source in enumerate(self.sources):
                part = (f"{name}-part-{k}", number)
                reference, nodes = given_to(source, part, _reads(box), needed.get(k))
                given.append(reference)
                tasks |= nodes
            tasks[key] = Task(key, task, TaskRef(name), box, argument, List(*given))
            if needed:
                together |= tasks
            else:
                yield Piece(self, shared, tasks, {key: 1}, position=number)
        if together:
            for k, keys in needed.items():
                together |= graph_of(self.sources[k].handle, keys)
            writes = {(f"{name}-box", number): 1 for number in range(len(self.calls))}
            yield Piece(self, shared, together, writes)


def given_to(
    source: Source, key: Key, reads: Sequence[AxisRead], needed: set[Key] | None
) -> tuple[Any, dict[Key, Any]]:
    """Return what refers to the data that a task is given of a source, and the nodes that hold them.

    Parameters
    ----------
    source : Source
    key : str or tuple
        Key of the node.
    reads : sequence of AxisRead
        What the task reads.
    needed : set of keys, optional
        Keys of the blocks of a dask array that tasks need; those of this task are added.
    """
    need = source.needs(reads)
    if isinstance(source, BlockSource) and needed is not None:
        keys = [(source.dask_name, *block) for block in need]
        needed.update(keys)
        return List(*map(TaskRef, keys)), {}
    if need is None:
        return None, {}
    return TaskRef(key), {key: DataNode(key, need)}


def _reads(box: Sequence[Span]) -> list[AxisRead]:
    return [AxisRead((span,)) for span in box]


def _call(
    shared: tuple[Callable[..., Any], tuple[Source, ...], str | None],
    box: Sequence[Span],
    argument: Any,
    given: Sequence[Any],
) -> Any:
    function, sources, run = shared
    plans = _reads(box)
    with kept.task(run), in_task():
        samples = [s.reader(g, plans)(tuple(box)) for s, g in zip(sources, given, strict=True)]
    return function(samples, box, argument)
