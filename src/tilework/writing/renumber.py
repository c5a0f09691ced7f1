"""`RenumberJob`: writes labels with other ids, block by block, from an array that holds them with theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dask.task_spec import DataNode, Task, TaskRef

from tilework._types import Index, Span
from tilework.execution.piece import Piece, Shared, guarded
from tilework.labels.facts import renumbered
from tilework.writing.closing import Destination
from tilework.writing.growing import Growing, write_grown
from tilework.writing.jobs import ChunkedJob
from tilework.writing.sink import Part, Sink, Work, Written, block_name, parts_of
from tilework.writing.tables import Tables

__all__ = ["RenumberJob"]


class _Shared(NamedTuple):
    """What all tasks of a job need."""

    number: int
    """Number of the output."""
    source: Any
    """A `Sink` of the array that holds the labels, or anything that a box is read from."""
    sink: Sink
    """The array that is written."""
    tables: Tables
    """The objects of each block, and their numbers."""
    n_each: int
    """Number of ``each`` axes."""
    growing: Growing
    """The coarser levels."""
    unfinished: bool
    """Whether more objects may come, so that no unit is done."""


class RenumberJob(ChunkedJob):
    """Writes the numbers of objects, one task per block.

    Parameters
    ----------
    title, name : str
        Title of the job, for messages; name of the result.
    chunks : tuple of tuple of int, samples per axis of the array
        Lengths of the blocks.
    number : int
        Number of the output.
    destination : Destination
        The array that is written.
    source : Sink or array
        The array that holds the labels with their own ids.
    tables : Tables
        For each block, its objects and their numbers.
    n_each : int
        Number of ``each`` axes, which are the first ones.
    unfinished : bool
        Whether more objects may come, so that no unit is done.
    retries, again
        As in `TileJob`.
    growing : Growing, optional
        The coarser levels.
    coarser : dict of int to Destination
        Their arrays.
    """

    def __init__(
        self,
        title: str,
        name: str,
        chunks: tuple[tuple[int, ...], ...],
        number: int,
        destination: Destination,
        source: Any,
        tables: Tables,
        n_each: int = 0,
        *,
        unfinished: bool = False,
        retries: int | None = None,
        again: bool = False,
        growing: Growing | None = None,
        coarser: Mapping[int, Destination] | None = None,
    ) -> None:
        super().__init__(title, name, chunks, number, destination, None, retries, again, coarser)
        self.source, self.tables, self.n_each = source, tables, n_each
        self.growing = growing or Growing()
        self.unfinished = unfinished

    def _shared(self) -> _Shared:
        return _Shared(
            self.number, self.source, self.sink(), self.tables, self.n_each, self.growing, self.unfinished
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield the task of each block."""
        name = f"{self.name}-shared"
        shared = Shared({name: DataNode(name, self._shared())})
        write = guarded(_write, self.retries)
        for position, (index, (box, units, _)) in enumerate(self.missing.items()):
            key = (self.name, *index)
            task = Task(key, write, TaskRef(name), index, box, units)
            yield Piece(self, shared, {key: task}, {key: 1}, position=position)

    def here(self) -> None:
        """Run all tasks in this thread."""
        shared = self._shared()
        for index, (box, units, _) in self.missing.items():
            self.took(_write(shared, index, box, units))
        self.close(complete=True)


def _write(shared: _Shared, index: Index, box: tuple[slice, ...], ranges: Sequence[Span]) -> Written:
    """Write one block, and what follows of coarser levels."""
    source = shared.source.array if isinstance(shared.source, Sink) else shared.source
    name = block_name(index)
    sink = shared.sink
    table = shared.tables.read("numbers", name)
    rows = table["index"], table["ids"], table["numbers"]
    shape, dtype = sink.array.shape, np.dtype(sink.array.dtype)
    start = [s.start for s in box]
    data = renumbered(source[box], rows, start, shape, shared.n_each, dtype)
    failed = frozenset(itertools.product(*(range(a, b) for a, b in ranges)) if shared.unfinished else ())
    parts = parts_of(sink, box, data, ranges, index) if sink.run else [Part(box, data, ())]
    work = Work(shared.number, sink, parts, ranges if sink.run else (), failed)
    works = list(shared.growing.works(work, box, data, index))
    return write_grown(name, {shared.number: works}, {shared.number: shared.growing})
