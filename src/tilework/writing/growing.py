"""Coarser levels that grow in a process while it writes blocks: units of which it has every part in memory.

A block is whole units of the first coarser levels only. Of the others it is a part: a quarter of a unit, or
a sixteenth. A process keeps these parts until a unit is whole, writes it, and goes on with the level above.
What no process has whole is made from the level below when all blocks are written: units whose parts are in
several processes, or belong to a block that failed or was written by an earlier run.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Index, Span
from tilework.engine.pyramid import halved
from tilework.engine.reading import Failure
from tilework.grid.axis import ceil_div
from tilework.writing.ledger import Ledger
from tilework.writing.levels import Coarser, level_works, units_name
from tilework.writing.sink import Part, Work, Written, write_block

__all__ = ["Growing", "write_grown"]

# Bytes of units that a process keeps at most: a row of units of float32 with chunks of 512, of an image of
# 16 384 samples. With little memory, this share of it.
ROOM, SHARE = 16 * 2**20, 16


@dataclass(slots=True)
class _Unit:
    """A unit that grows."""

    data: Array
    left: int
    """Samples that are missing."""


class Growing:
    """The coarser levels of one array, as the tasks of its blocks get them. Threads may share it.

    Parameters
    ----------
    levels : sequence of Coarser
    depth : int
        Number of levels of which every block is whole units.
    memory : int, bytes
        Limit of the memory of the process.
    """

    def __init__(self, levels: Sequence[Coarser] = (), depth: int = 0, memory: int = 0) -> None:
        self.levels, self.depth, self.memory = tuple(levels), depth, memory
        self._lock = threading.Lock()
        self._units: dict[tuple[int, Index], _Unit] = {}
        self._left: dict[int, Bits] = {}
        """For each level, the units for which there was no room."""
        self._bytes = 0
        self._known: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Growing, (self.levels, self.depth, self.memory)

    def works(self, work: Work, box: Sequence[slice], data: Array, index: Index) -> Iterator[Work]:
        """Yield ``work`` of a block, and what is written of coarser levels of which it is whole units."""
        yield work
        # A block that was resumed in part holds only the samples of the units that are missing.
        if index not in work.sink.partial:
            yield from level_works(work, self.levels[: self.depth], box, data, index)

    def grow(self, name: str, works: Sequence[Work]) -> dict[int, list[list[Span]]]:
        """Take the coarsest part of a block that was written; return the units that it completed, by array.

        They are written and marked. A task that is tried again adds nothing.
        """
        last = works[-1]
        found: dict[int, list[list[Span]]] = {}
        if self.depth == len(self.levels) or len(works) <= self.depth or works[0].failed:
            return found
        if not last.whole:
            return found  # units that would never be whole would take the room
        with self._lock:
            if name in self._known:
                return found
            self._known.add(name)
        part, shape = last.parts[0], last.sink.array.shape
        start = [s.indices(n)[0] for s, n in zip(part.box, shape, strict=True)]
        self._grow(self.depth, start, part.data, shape, found)
        return found

    def _grow(
        self, k: int, start: Sequence[int], data: Array, below: Index, found: dict[int, list[list[Span]]]
    ) -> None:
        """Take a part of the level below level ``k``, whose extents are ``below``."""
        level = self.levels[k]
        stops = [a + n for a, n in zip(start, data.shape, strict=True)]
        if any(start[a] % 2 or (stops[a] % 2 and stops[a] < below[a]) for a in level.axes):
            return  # a bin lies across blocks
        data = halved(data, level.axes, level.method, level.nodata)
        start = [a // 2 if axis in level.axes else a for axis, a in enumerate(start)]
        ledger = Ledger(level.sink.array)
        spans = [(a // u, ceil_div(a + n, u)) for a, n, u in zip(start, data.shape, ledger.unit, strict=True)]
        for unit in itertools.product(*(range(a, b) for a, b in spans)):
            whole = self._put(k, unit, ledger, start, data)
            if whole is None:
                continue
            own, ranges = ledger.box(unit), [(i, i + 1) for i in unit]
            work = Work(level.number, level.sink, [Part(own, whole, [unit])], ranges)
            done = write_block(units_name(ranges), [work]).units
            found.setdefault(level.number, []).extend(done[level.number])
            if k + 1 < len(self.levels):
                self._grow(k + 1, [s.start for s in own], whole, level.sink.array.shape, found)

    def _put(self, k: int, index: Index, ledger: Ledger, start: Sequence[int], data: Array) -> Array | None:
        """Put a part into a unit of level ``k``; return the unit if it is whole now."""
        own = ledger.box(index)
        spans = [
            (max(a, s.start), min(a + n, s.stop)) for a, n, s in zip(start, data.shape, own, strict=True)
        ]
        part = data[tuple(slice(a - o, b - o) for (a, b), o in zip(spans, start, strict=True))]
        shape = tuple(s.stop - s.start for s in own)
        if part.shape == shape:
            return part
        with self._lock:
            unit = self._units.get((k, index)) or self._new(k, index, ledger, shape, data.dtype)
        if unit is None:
            return None
        unit.data[tuple(slice(a - s.start, b - s.start) for (a, b), s in zip(spans, own, strict=True))] = part
        with self._lock:
            unit.left -= part.size
            if unit.left:
                return None
            self._bytes -= unit.data.nbytes
            return self._units.pop((k, index)).data

    def _new(self, k: int, index: Index, ledger: Ledger, shape: Index, dtype: np.dtype[Any]) -> _Unit | None:
        """Return a new unit, if there is room for it."""
        size = math.prod(shape)
        left = self._left.get(k)
        if left is not None and left[index]:
            return None
        if self._bytes + size * dtype.itemsize > min(ROOM, self.memory // SHARE):
            if left is None:
                left = self._left[k] = np.zeros(ledger.shape, bool)
            left[index] = True  # its other parts need none either
            return None
        unit = self._units[k, index] = _Unit(np.empty(shape, dtype), size)
        self._bytes += unit.data.nbytes
        return unit


def write_grown(
    name: str,
    works: Mapping[int, Sequence[Work]],
    growing: Mapping[int, Growing],
    failures: Sequence[Failure] = (),
    marked: set[tuple[int, str]] | None = None,
) -> Written:
    """Write a block of all arrays as `write_block` does, then the units of coarser levels that it completes.

    Parameters
    ----------
    works : dict of int to sequence of Work
        What is written for each array, with its coarser levels, by its number.
    growing : dict of int to Growing
        The coarser levels of some arrays.
    """
    written = write_block(name, [w for own in works.values() for w in own], failures, marked)
    units = dict(written.units)
    for number, own in works.items():
        if number in growing:
            units |= growing[number].grow(name, own)
    return replace(written, units=units)
