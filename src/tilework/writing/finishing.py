"""What the last task of a block does: write the block of every output, and of coarser levels, and mark it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tilework._types import Array, Index, Span
from tilework.engine.block import Assembled
from tilework.engine.reading import Failure
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.grid.tiles import Box
from tilework.labels.facts import BlockFacts
from tilework.labels.painting import Counts
from tilework.labels.rows import Firsts
from tilework.source.base import check_block
from tilework.writing.growing import Growing, write_grown
from tilework.writing.sink import Part, Sink, Work, Written, block_name, parts_of
from tilework.writing.tables import Tables
from tilework.writing.units import Units

__all__ = ["BlockWriter", "write_chunk"]


class BlockWriter:
    """Writes blocks of all outputs of a result; called at the end of each task that has a block."""

    def __init__(
        self,
        sinks: Mapping[int, Sink],
        growing: Mapping[int, Growing],
        tables: Mapping[int, Tables],
    ) -> None:
        self.sinks, self.tables = sinks, tables
        self.growing = growing
        """For each output, its coarser levels."""
        self._marked: set[tuple[int, str]] = set()

    def __call__(self, spec: Spec, index: Index, assembled: Assembled) -> Written:
        """Write a block of all outputs."""
        block, failures = assembled.block, assembled.failures
        works: dict[int, list[Work]] = {}
        for number, sink in self.sinks.items():
            data: Any = block[number] if spec.many else block
            box = spec.outputs[number].place(spec.boxes(index)[number])
            work = _work(spec, number, sink, index, box, data, failures)
            # Of a block of pieces that is done, for another output, not all tiles run.
            if number in self.tables and index not in sink.partial:
                counts = assembled.counts.get(number, Counts())
                keep = partial(self._keep_facts, spec, number, index, box, data, counts)
                work = replace(work, beside=keep)
            levels = self.growing.get(number)
            works[number] = [work] if levels is None else list(levels.works(work, box, data, index))
        written = write_grown(block_name(index), works, self.growing, failures, self._marked)
        told = {n: c for n, c in assembled.counts.items() if n not in self.tables}
        return replace(written, unknown=assembled.unknown, counts=told)

    def _keep_facts(
        self, spec: Spec, number: int, index: Index, box: tuple[slice, ...], data: Array, counts: Counts
    ) -> None:
        """Write the facts about a block of labels."""
        output = spec.outputs[number]
        shape = output.layout(output.region(Box.of((0, n) for n in spec.plan.shape)).shape)
        start = [s.indices(n)[0] for s, n in zip(box, shape, strict=True)]
        facts = BlockFacts(Firsts.of(data, start, shape, output.n_each), counts)
        self.tables[number].keep("facts", block_name(output.chunk(index)), facts.tables())

    def room(self, spec: Spec, index: Index) -> list[Array | None]:
        """Return, per output, the part of an array in memory where block ``index`` is made.

        Writing a block that was made there copies nothing: numpy sees that source and target are the same. A
        reduction gets memory of its own, which it may keep.
        """
        rooms: list[Array | None] = []
        for number, (output, box) in enumerate(zip(spec.outputs, spec.boxes(index), strict=True)):
            memory = self.sinks[number].memory if number in self.sinks and output.reduce is None else None
            rooms.append(None if memory is None else memory[output.place(box)])
        return rooms

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockWriter, (self.sinks, self.growing, self.tables)


def _work(
    spec: Spec, number: int, sink: Sink, index: Index, box: tuple[slice, ...], part: Any,
    failures: Sequence[Failure],
) -> Work:  # fmt: skip
    """Return what is to be written of a block of one output."""
    if not sink.run:
        return Work(number, sink, [Part(box, part, ())], ())
    units = Units.of(spec, number, sink.array)
    ranges = units.ranges(box)
    failed = frozenset(unit for failure in failures for unit in units.of_tile(failure.tile))
    return Work(number, sink, parts_of(sink, box, part, ranges, index), ranges, failed)


MASKED = (
    "masked samples, and what is written has no mask: the values below it would be written. Fill them, "
    "dask.array.ma.filled(out, value)."
)


def write_chunk(
    into: tuple[Sink, Growing],
    index: Index,
    box: tuple[slice, ...],
    ranges: Sequence[Span],
    data: Any,
) -> Written:
    """Write a chunk of a dask array, and what follows of coarser levels, and mark the units."""
    sink, growing = into
    declared = tuple([len(range(*s.indices(n))) for s, n in zip(box, sink.array.shape, strict=True)])
    check_block(np.shape(data), declared, "the dask array that is written", index)
    if isinstance(data, np.ma.MaskedArray):
        if np.ma.is_masked(data):
            raise TilingError(f"block {index} of the dask array that is written has {MASKED}")
        data = data.data
    parts = parts_of(sink, box, data, ranges, index) if sink.run else [Part(box, data, ())]
    work = Work(0, sink, parts, ranges)
    works = list(growing.works(work, box, data, index))
    return write_grown(block_name(index), {0: works}, {0: growing})
