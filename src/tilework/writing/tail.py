"""What is left of coarser levels when all blocks are written; it is made from the level below in the store.

These are units of which no process had all parts in memory: their blocks were written in part, by several
processes, or by a run that was killed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask.task_spec import DataNode, Task, TaskRef

from tilework._types import Bits, Index, Span
from tilework.execution.calls import CallsJob
from tilework.execution.piece import Piece, Shared, guarded
from tilework.writing.closing import Destination, Told
from tilework.writing.jobs import WriteJob, sink_of
from tilework.writing.ledger import Ledger, boxes_of
from tilework.writing.levels import Coarser, Level, parents_done, units_name, write_units
from tilework.writing.numbering import Numbering
from tilework.writing.renumber import RenumberJob
from tilework.writing.sink import Sink, Written

__all__ = ["Pyramid", "Rest", "Tail"]

# Bytes of the level below that a task reads at most, unless one unit needs more.
READ = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """The arrays of one image."""

    number: int
    """Number of level 0 among all arrays of the run."""
    below: Destination
    """The array of level 0."""
    levels: tuple[Level, ...]
    """The coarser levels."""
    numbers: tuple[int, ...]
    """Their numbers among all arrays of the run."""
    destinations: tuple[Destination, ...]
    """Their arrays."""
    method: str
    """How they are made."""
    nodata: Any = None
    """Value of samples that hold no data; None: all do."""

    def named(self) -> dict[int, Destination]:
        """Return the arrays of the coarser levels by number."""
        return dict(zip(self.numbers, self.destinations, strict=True))

    def coarser(self, again: bool) -> tuple[Coarser, ...]:
        """Return the coarser levels, as tasks get them."""
        return tuple(
            Coarser(number, sink_of(d, (), again, {}), level.axes, level.factors, self.method, self.nodata)
            for number, d, level in zip(self.numbers, self.destinations, self.levels, strict=True)
        )


class Tail:
    """The jobs that make what is left of coarser levels, each after the one before has ended."""

    def __init__(
        self, title: str, name: str, pyramids: Sequence[Pyramid], retries: int | None, again: bool
    ) -> None:
        self.title, self.name, self.pyramids, self.retries, self.again = title, name, pyramids, retries, again

    def jobs(self, told: Told) -> Iterator[LevelJob]:
        """Yield the jobs; ``told`` says which units are done, and is told what they did."""
        for pyramid in self.pyramids:
            number, below = pyramid.number, pyramid.below
            coarser = pyramid.coarser(self.again)
            for level, one, destination in zip(pyramid.levels, coarser, pyramid.destinations, strict=True):
                own = one.number
                right = parents_done(level, told.units[number], Ledger(below.array).unit)
                now = replace(destination, done=told.units[own])
                job = LevelJob(self, level, below, one, now, right)
                if job.tiles:
                    yield job
                    told.units[own] |= job.told.units[own]
                number, below = own, destination


class Rest:
    """What is left when all blocks are written: numbers of labels, then coarser levels."""

    def __init__(self, parts: Sequence[Numbering | Tail]) -> None:
        self.parts = parts

    def jobs(self, told: Told) -> Iterator[CallsJob | RenumberJob | LevelJob]:
        """Yield the jobs, each to be run before the next is asked for; ``told`` is told what they did."""
        for part in self.parts:
            yield from part.jobs(told)

    def here(self, told: Told) -> None:
        """Run the jobs in this thread, one task after the other."""
        for job in self.jobs(told):
            job.here()


class LevelJob(WriteJob):
    """Makes the missing units of one level."""

    def __init__(
        self, tail: Tail, level: Level, below: Destination, coarser: Coarser, destination: Destination,
        right: Bits,
    ) -> None:  # fmt: skip
        title = f"{tail.title}, level {level.number}"
        super().__init__(
            title, f"{tail.name}-level-{level.number}", {coarser.number: destination}, None, tail.retries
        )
        assert destination.done is not None
        self.below, self.coarser = Sink(below.array), coarser
        self.right = right
        """Which units lie above nothing but units that are done; others are written, but not marked."""
        self.boxes = list(_boxes(level, ~destination.done))
        self.tiles = len(self.boxes)

    def calls(self) -> Iterator[tuple[Sink, Coarser, str, list[Span], frozenset[Index]]]:
        """Yield the arguments of `write_units` for each task."""
        for box in self.boxes:
            units = itertools.product(*(range(a, b) for a, b in box))
            failed = frozenset(unit for unit in units if not self.right[unit])
            yield self.below, self.coarser, units_name(box), box, failed

    def here(self) -> None:
        """Run all tasks in this thread."""
        for call in self.calls():
            self.took(write_units(*call))
        self.close(complete=True)

    def pieces(self) -> Iterator[Piece]:
        """Yield one piece with all tasks: none needs another."""
        name = f"{self.name}-sinks"
        shared = Shared({name: DataNode(name, (self.below, self.coarser))})
        write = guarded(_write, self.retries)
        tasks = {}
        for number, (_, _, mark, box, failed) in enumerate(self.calls()):
            key = (self.name, number)
            tasks[key] = Task(key, write, TaskRef(name), mark, box, failed)
        if tasks:
            yield Piece(self, shared, tasks, dict.fromkeys(tasks, 1))


def _write(sinks: tuple[Sink, Coarser], mark: str, box: Sequence[Span], failed: frozenset[Index]) -> Written:
    return write_units(*sinks, mark, box, failed)


def _boxes(level: Level, missing: Bits) -> Iterator[list[Span]]:
    """Yield boxes of missing units, of which a task reads about `READ` bytes."""
    times = math.prod(2 if a in level.axes else 1 for a in range(len(level.shape)))
    each = times * math.prod(level.layout.unit) * 8
    group = [1] * missing.ndim
    for axis in range(missing.ndim - 1, -1, -1):
        group[axis] = max(1, min(missing.shape[axis], READ // (each * math.prod(group))))
    for corner in itertools.product(*(range(0, n, g) for n, g in zip(missing.shape, group, strict=True))):
        part = missing[tuple(slice(c, c + g) for c, g in zip(corner, group, strict=True))]
        for box in boxes_of(part):
            yield [(a + c, b + c) for (a, b), c in zip(box, corner, strict=True)]
