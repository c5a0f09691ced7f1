"""`BoxJob`: a function of the samples in each of many boxes, as tasks on any scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dask.task_spec import DataNode, List, Task, TaskRef

from tilework._types import Array, Span
from tilework.execution.calls import CallsJob
from tilework.execution.piece import Piece, Shared, guarded, with_sources
from tilework.execution.where import Where
from tilework.function.load_once import in_task
from tilework.graph.build import dask_arrays
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
        """Yield one piece per box."""
        return with_sources(self._by_box(), dask_arrays(self.sources), self.retries)

    def _by_box(self) -> Iterator[Piece]:
        name = self.name
        shared = Shared({name: DataNode(name, self.common(self.run))})
        task = guarded(_call, self.retries)
        for number, (box, argument) in enumerate(self.calls):
            key = (f"{name}-box", number)
            tasks: dict[Key, Any] = {}
            given = []
            for k, source in enumerate(self.sources):
                part = (f"{name}-part-{k}", number)
                reference, nodes = given_to(source, part, _reads(box))
                given.append(reference)
                tasks |= nodes
            tasks[key] = Task(key, task, TaskRef(name), box, argument, List(*given))
            yield Piece(self, shared, tasks, {key: 1}, position=number)


def given_to(source: Source, key: Key, reads: Sequence[AxisRead]) -> tuple[Any, dict[Key, Any]]:
    """Return what refers to the data that a task is given of a source, and the nodes that hold them.

    Parameters
    ----------
    source : Source
    key : str or tuple
        Key of the node.
    reads : sequence of AxisRead
        What the task reads.
    """
    need = source.needs(reads)
    if need is None:
        return None, {}
    if isinstance(source, BlockSource):
        return List(*[TaskRef((source.dask_name, *block)) for block in need]), {}
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
