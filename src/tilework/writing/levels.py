"""The coarser levels of a pyramid: their geometry, and how a block or a unit of one is made and written.

A block that is finished is halved, level by level, in the task that writes it, as far as its samples make
whole write units of the level. Levels above grow in the process, from the parts of several blocks. What is
left is made from the level below, which is read from the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Index, Span
from tilework.engine.pyramid import halved
from tilework.errors import TilingError
from tilework.formats.meta import ImageMeta
from tilework.grid.axis import ceil_div
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.source.zarr_requests import read_box
from tilework.writing.ledger import Ledger
from tilework.writing.sink import Part, Sink, Work, Written, parts_of, write_block
from tilework.writing.units import Layout

__all__ = ["Coarser", "Level", "level_works", "levels_of", "parents_done", "units_name", "write_units"]

# Samples of axes of space are halved together if they are at most that many times as long as the shortest.
NEAR = 2


@dataclass(frozen=True, slots=True)
class Level:
    """A coarser level."""

    number: int
    """Its number; the image itself is level 0."""
    axes: Index
    """Axes that are halved from the level below."""
    factors: Index
    """Samples of level 0 per sample, per axis."""
    shape: Index
    """Extents, samples."""
    layout: Layout
    """Chunks and shards."""

    @property
    def reach(self) -> Index:
        """Samples of level 0 in a write unit, per axis."""
        return tuple(f * u for f, u in zip(self.factors, self.layout.unit, strict=True))

    def fingerprint(self, fingerprint: Mapping[str, str], method: str, nodata: Any) -> dict[str, str]:
        """Return the fingerprint of the level; ``fingerprint`` is that of level 0."""
        without = "" if nodata is None else f", without {nodata}"
        return {**fingerprint, "level": f"{method}, {'x'.join(map(str, self.factors))}{without}"}

    def meta(self, meta: ImageMeta, method: str) -> ImageMeta:
        """Return what the samples of the level mean; ``meta`` is that of level 0."""
        # "nearest" takes the first sample of each bin, which lies where it lay.
        moved = [
            0.0 if method == "nearest" else s * (f - 1) / 2
            for s, f in zip(meta.scale, self.factors, strict=True)
        ]
        return meta.replace(
            scale=[s * f for s, f in zip(meta.scale, self.factors, strict=True)],
            translation=[t + d for t, d in zip(meta.translation, moved, strict=True)],
            coordinates={},
        )  # fmt: skip


def levels_of(
    shape: Index, layout: Layout, meta: ImageMeta, asked: int | str, *, strict: bool = True
) -> tuple[Level, ...]:
    """Return the coarser levels of an image.

    Extents are halved and rounded down. Only axes of space are halved, of a level those whose samples are at
    most twice as long as the shortest.

    Parameters
    ----------
    shape : tuple of int, samples per axis
    layout : Layout
        Chunks and shards of level 0.
    meta : ImageMeta
        Types and scales of the axes.
    asked : int or "auto"
        Number of levels with level 0; "auto": until no axis of a level has two chunks.
    strict : bool
        Whether to raise if there cannot be as many levels.

    Raises
    ------
    TilingError
        If a level would have no samples.
    """
    levels: list[Level] = []
    factors: Index = (1,) * len(shape)
    extents = shape
    # Layouts of one chunk per plane say nothing about how long a volume should be.
    counted = [a for a, kind in enumerate(meta.types) if kind == "space" and layout.chunks[a] > 1] or [
        a for a, kind in enumerate(meta.types) if kind == "space"
    ]
    while True:
        axes = _halving(extents, factors, meta)
        if asked == "auto":
            if not any(a in axes and extents[a] >= 2 * layout.chunks[a] for a in counted):
                return tuple(levels)
        elif len(levels) + 1 >= int(asked):
            return tuple(levels)
        if not axes and not strict:
            return tuple(levels)
        if not axes:
            raise TilingError(
                f"an image of shape {shape} has at most {len(levels) + 1} levels: no axis of space can be "
                f'halved further; got levels={asked}. Use levels={len(levels) + 1}, or levels="auto".'
            )
        extents = tuple(n // 2 if a in axes else n for a, n in enumerate(extents))
        factors = tuple(2 * f if a in axes else f for a, f in enumerate(factors))
        levels.append(Level(len(levels) + 1, axes, factors, extents, _layout(layout, factors, extents)))


def _halving(extents: Index, factors: Index, meta: ImageMeta) -> Index:
    """Return the axes of a level that are halved."""
    space = [a for a, kind in enumerate(meta.types) if kind == "space"]
    size = {a: abs(meta.scale[a]) * factors[a] for a in space}
    finest = min((size[a] for a in space if extents[a] > 1), default=0.0)
    # Decimal fractions such as 0.1 and 0.2 are not exact.
    return tuple(a for a in space if extents[a] > 1 and size[a] <= NEAR * finest * (1 + 1e-9))


def _layout(layout: Layout, factors: Index, extents: Index) -> Layout:
    """Return the layout of a level: the chunks of level 0, and shards of the same blocks of the image."""
    chunks = tuple(max(1, min(c, n)) for c, n in zip(layout.chunks, extents, strict=True))
    if layout.shards is None:
        return Layout(chunks)
    shards = []
    for shard, chunk, own, f, n in zip(layout.shards, layout.chunks, chunks, factors, extents, strict=True):
        whole = shard // f if shard % f == 0 and (shard // f) % chunk == 0 else chunk
        shards.append(min(whole, ceil_div(n, own) * own) if own == chunk else own)
    return Layout(chunks, tuple(shards))


# -- in the tasks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coarser:
    """A coarser level, as tasks get it."""

    number: int
    """Number of its array among all arrays of the run."""
    sink: Sink
    """Its array."""
    axes: Index
    """Axes that are halved from the level below."""
    factors: Index
    """Samples of level 0 per sample, per axis."""
    method: str
    """How samples are made from those of the level below."""
    nodata: Any = None
    """Value of samples that hold no data; None: all do."""


def level_works(
    work: Work, levels: Sequence[Coarser], box: Sequence[slice], data: Array, index: Index
) -> Iterator[Work]:
    """Yield what is written of coarser levels of a block of level 0, which ``work`` writes whole."""
    if not levels:
        return  # and the array need not be of zarr
    array = work.sink.array
    spans = [s.indices(n)[:2] for s, n in zip(box, array.shape, strict=True)]
    unit0 = Ledger(array).unit
    for level in levels:
        data = halved(data, level.axes, level.method, level.nodata)
        if not data.size:
            return  # the image ends here with a sample that has no bin
        starts = [a // f for (a, _), f in zip(spans, level.factors, strict=True)]
        own = tuple(slice(a, a + n) for a, n in zip(starts, data.shape, strict=True))
        unit = Ledger(level.sink.array).unit
        ranges = [(s.start // u, ceil_div(s.stop, u)) for s, u in zip(own, unit, strict=True)]
        reach = [u * f for u, f in zip(unit, level.factors, strict=True)]
        failed = {above for one in work.failed for above in _above(one, unit0, reach, ranges)}
        yield Work(
            level.number,
            level.sink,
            parts_of(level.sink, own, data, ranges, index),
            ranges,
            frozenset(failed),
        )


def _above(unit: Index, size: Index, reach: Sequence[int], ranges: Sequence[Span]) -> Iterator[Index]:
    """Yield the units of a level, among ``ranges``, that a unit of level 0 lies in."""
    spans = [
        (max(a, i * u // r), min(b, ceil_div((i + 1) * u, r)))
        for i, u, r, (a, b) in zip(unit, size, reach, ranges, strict=True)
    ]
    yield from itertools.product(*(range(a, b) for a, b in spans))


def write_units(
    below: Sink, level: Coarser, name: str, ranges: Sequence[Span], failed: frozenset[Index]
) -> Written:
    """Make units of a level from the level below, as it is in the store, and write them.

    Parameters
    ----------
    name : str
        Name of the mark.
    ranges : sequence of (first, last)
        The units, per axis.
    failed : set of units
        Units that are written, but not marked, because a unit below them is not done.
    """
    array = level.sink.array
    unit = Ledger(array).unit
    own = tuple(slice(a * u, min(b * u, n)) for (a, b), u, n in zip(ranges, unit, array.shape, strict=True))
    read = tuple(
        slice(s.start * f, s.stop * f)
        for s, f in zip(own, (2 if a in level.axes else 1 for a in range(len(own))), strict=True)
    )
    data = halved(read_box(below.array, read), level.axes, level.method, level.nodata)
    units = list(itertools.product(*(range(a, b) for a, b in ranges)))
    return write_block(name, [Work(level.number, level.sink, [Part(own, data, units)], ranges, failed)])


def units_name(ranges: Sequence[Span]) -> str:
    """Return the name of the mark of units of a coarser level that were made by themselves.

    A mark of this name is replaced. Only a box of the same units has it: names of blocks have dots.
    """
    return "units-" + "_".join(f"{a}-{b}" for a, b in ranges)


def parents_done(level: Level, below: Bits, unit: Index) -> Bits:
    """Return which units of a level lie above nothing but units that are done.

    Parameters
    ----------
    level : Level
    below : bool array
        Which units of the level below are done.
    unit : tuple of int, samples per axis
        Shape of a unit of the level below.
    """
    ranges: list[Spans] = []
    for axis, (own, size, n) in enumerate(zip(level.layout.unit, unit, level.shape, strict=True)):
        times = 2 if axis in level.axes else 1
        starts = np.arange(0, n, own)
        stops = np.minimum(starts + own, n)
        ranges.append(Spans(starts * times // size, -(-stops * times // size)))
    return ~box_any(~below, ranges)
