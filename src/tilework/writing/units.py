"""Write units (shards, else chunks): layouts, alignment with blocks, and the tiles that touch a unit."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import brief, is_whole
from tilework._types import Bits, Index, Ints, Span
from tilework.engine.spec import Spec
from tilework.errors import AlignmentError, TilingError
from tilework.execution.progress import LOG
from tilework.function.bound import BoundOutput
from tilework.graph.build import chunks_of
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Tile
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_sums
from tilework.plan.tile_mask import TileMask

__all__ = [
    "Layout",
    "Units",
    "check_aligned",
    "check_chunks",
    "chunks_in_shards",
    "default_chunks",
    "encoding_bytes",
    "input_unit",
    "layout_of",
    "lengths",
    "shard_lengths",
    "source_chunks",
    "tiles_of_units",
    "usual_units",
    "with_todo",
]


# Default chunk, bytes before compression: Zarr's guides advise 1 to 16 MB.
CHUNK_BYTES = 4 * 2**20
LEAST_BYTES = 2**20
SHORT = 4
WHOLE = "must be whole write units, or two tasks would write one unit; got"


@dataclass(frozen=True, slots=True)
class Layout:
    """Chunks and shards of an array."""

    chunks: Index
    """Shape of a chunk, samples per axis of the array."""
    shards: Index | None = None
    """Shape of a shard, samples per axis of the array; None: it has no shards."""

    @property
    def unit(self) -> Index:
        """Shape of a write unit, which one task must write whole; samples per axis of the array."""
        return self.shards or self.chunks


def layout_of(array: Any) -> Layout:
    """Return the layout of an array to write into; without chunks every sample is a unit."""
    shards = getattr(array, "shards", None)
    chunks = getattr(array, "chunks", None) or (1,) * len(array.shape)
    return Layout(tuple(map(int, chunks)), None if shards is None else tuple(map(int, shards)))


@dataclass(frozen=True, slots=True)
class Units:
    """The write units of the array of one output."""

    spec: Spec
    """The spec of the result."""
    number: int
    """Number of the output."""
    shape: Index
    """Extents of the array, samples."""
    unit: Index
    """Shape of a unit, samples per axis of the array."""

    @classmethod
    def of(cls, spec: Spec, number: int, array: Any) -> Units:
        """Return the write units of the array of output ``number``."""
        return cls(spec, number, tuple(array.shape), layout_of(array).unit)

    @property
    def output(self) -> BoundOutput:
        """The output."""
        return self.spec.outputs[self.number]

    @property
    def grid(self) -> Index:
        """Number of units per axis of the array."""
        return tuple(ceil_div(n, u) for n, u in zip(self.shape, self.unit, strict=True))

    def ranges(self, spans: Sequence[slice]) -> list[Span]:
        """Return the units that meet a box of samples, per axis of the array."""
        return [
            (s.start // u, ceil_div(s.stop, u)) for s, u in zip(self._full(spans), self.unit, strict=True)
        ]

    def _full(self, spans: Sequence[slice]) -> list[slice]:
        return [slice(*s.indices(n)[:2]) for s, n in zip(spans, self.shape, strict=True)]

    def of_block(self, index: Index) -> list[Span]:
        """Return the units of a block, per axis of the array."""
        return self.ranges(self.output.place(self.spec.boxes(index)[self.number]))

    def in_block(self, index: Index) -> Iterator[Index]:
        """Return the units of a block."""
        return itertools.product(*(range(a, b) for a, b in self.of_block(index)))

    def of_tile(self, tile: Tile) -> Iterator[Index]:
        """Yield the units in which a tile has weight."""
        ranges = [(0, n) for n in self.grid]
        axes = self.output.grid_axes
        for axis, weights, i in zip(axes, self.output.weights, tile.position, strict=True):
            ranges[axis] = self._meeting(axis, weights.support(i))
        yield from itertools.product(*(range(a, b) for a, b in ranges))

    def _meeting(self, axis: int, span: Span) -> Span:
        """Return the units along one axis that meet a span of samples."""
        u = self.unit[axis]
        return span[0] // u, max(span[0] // u, ceil_div(span[1], u))

    def blocks(self, bits: Bits) -> Ints:
        """Return the number of units with a true bit in each block, over the grid axes."""
        plan, ranges = self.spec.plan, []
        for axis, weights, size in zip(self.output.grid_axes, self.output.weights, plan.block, strict=True):
            n = weights.grid.extent
            edges = weights.scaled(np.append(np.arange(0, n, size), n))
            ranges.append(self._meetings(axis, edges[:-1], edges[1:]))
        return box_sums(self._sums(bits), ranges)

    def tiles(self, bits: Bits) -> TileMask:
        """Return which tiles have weight in a unit with a true bit."""
        ranges = [
            self._meetings(axis, *weights.supports())
            for axis, weights in zip(self.output.grid_axes, self.output.weights, strict=True)
        ]
        return TileMask.under(self._sums(bits) > 0, ranges)

    def under(self, tiles: TileMask) -> Bits:
        """Return which units have a sample in which a tile has weight; axes without tiles have length 1."""
        ranges, axes = [], self.output.grid_axes
        for axis, weights in zip(axes, self.output.weights, strict=True):
            starts, stops = weights.supports()
            edges = np.arange(self.grid[axis] + 1) * self.unit[axis]
            first = np.searchsorted(stops, edges[:-1], "right")
            ranges.append(Spans(first, np.maximum(first, np.searchsorted(starts, edges[1:]))))
        rest = tuple(a for a in range(len(self.grid)) if a not in axes)
        return np.expand_dims(tiles.run_in(ranges).transpose(np.argsort(axes)), rest)

    def _meetings(self, axis: int, starts: Ints, stops: Ints) -> Spans:
        """Return the units along one axis that meet each span of samples."""
        first = starts // self.unit[axis]
        return Spans(first, np.maximum(first, ceil_div(stops, self.unit[axis])))

    def _sums(self, bits: Bits) -> Ints:
        """Return the bits summed over all axes but the grid axes, in the order of the grid."""
        axes = self.output.grid_axes
        rest = tuple(a for a in range(bits.ndim) if a not in axes)
        flat = np.asarray(bits.sum(axis=rest, dtype=np.int64))
        kept = sorted(axes)
        return flat.transpose([kept.index(a) for a in axes])


def tiles_of_units(units: Sequence[Units], missing: Sequence[Bits]) -> TileMask:
    """Return which tiles have weight in a missing unit of any output."""
    found = [u.tiles(bits) for u, bits in zip(units, missing, strict=True)]
    return functools.reduce(operator.or_, found)


def with_todo(spec: Spec, tiles: TileMask | None) -> Spec:
    """Return ``spec`` for a run that computes only ``tiles``; None: all tiles."""
    if tiles is None:
        return replace(spec, todo=None)
    mask = spec.plan.mask
    return replace(spec, todo=spec.plan.with_runs(tiles if mask is None else tiles & mask))


def lengths(what: str, value: Any, shape: Index) -> Index | None:
    """Return one length per axis of the result from an int or a tuple; None for None.

    A length that exceeds its axis is cut: such a chunk would be encoded with the samples outside.
    """
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,) * len(shape)
    if len(sizes) != len(shape) or any(not is_whole(s) or s < 1 for s in sizes):
        raise TilingError(
            f"{what} needs one positive whole number per axis of the result {shape}; got {brief(value)}."
        )
    return tuple(max(1, min(int(s), n)) for s, n in zip(sizes, shape, strict=True))


def shard_lengths(value: Any, chunks: Index, shape: Index) -> Index | None:
    """Return the lengths of shards, at most as many whole ``chunks`` as an axis needs; None for None."""
    if lengths("shards", value, shape) is None:
        return None
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,) * len(shape)
    return tuple(
        max(1, min(int(s), ceil_div(n, c) * c)) for s, c, n in zip(sizes, chunks, shape, strict=True)
    )


def chunks_in_shards(value: Any, chunks: Index, shape: Index) -> Index:
    """Return chunks, at most as long as the given ones, of which shards of the asked lengths are made."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,) * len(shape)
    return tuple(
        c if ceil_div(n, c) * c <= s else next(d for d in range(min(c, int(s)), 0, -1) if s % d == 0)
        for s, c, n in zip(sizes, chunks, shape, strict=True)
    )


def encoding_bytes(unit: Index, itemsize: int) -> int:
    """Return the bytes that encoding one write unit takes: all its samples, and the result."""
    return 2 * math.prod(unit) * itemsize


def default_chunks(spec: Spec, number: int, shape: Index, itemsize: int) -> Index:
    """Return the source's chunks if they divide the blocks, else chunks of about `CHUNK_BYTES`."""
    plan, output = spec.plan, spec.outputs[number]
    blocks = [max(sizes) for sizes in chunks_of(spec, output)]
    chunks = list(blocks)
    source = plan.sources[0].chunks
    same = source is not None and all(s == 1 for s in output.scale)
    if same and all(
        b % c == 0 or b == n for b, c, n in zip(plan.block, source or (), plan.shape, strict=True)
    ):
        for axis, c, n in zip(output.grid_axes, source or (), plan.shape, strict=True):
            chunks[axis] = min(c, n)
    while math.prod(chunks) * itemsize > 2 * CHUNK_BYTES:
        axis = max(range(len(chunks)), key=lambda a: chunks[a])
        smaller = _halved(chunks[axis], whole=blocks[axis] == shape[axis])
        if smaller == chunks[axis]:
            break
        chunks[axis] = smaller
    return tuple(max(1, c) for c in chunks)


def source_chunks(spec: Spec, number: int) -> dict[int, int] | None:
    """Return the chunks of the first source by axis of an output, if the output has its samples."""
    output, chunks = spec.outputs[number], spec.plan.sources[0].chunks
    if chunks is None or any(s != 1 for s in output.scale):
        return None
    return dict(zip(output.grid_axes, chunks, strict=True))


def _halved(size: int, *, whole: bool) -> int:
    """Return a smaller chunk: a divisor of the block, or half of it if one block covers the whole axis."""
    if whole:
        return ceil_div(size, 2)
    return next((size // p for p in range(2, math.isqrt(size) + 1) if size % p == 0), 1)


def input_unit(spec: Spec, number: int, unit: Index) -> Index:
    """Return the fewest image samples per grid axis that give whole write units of an output."""
    output, found = spec.outputs[number], []
    scales: list[Fraction] = [Fraction(1)] * output.n_each + list(output.scale)
    for axis, scale, weights in zip(output.grid_axes, scales, output.weights, strict=True):
        if unit[axis] >= weights.extent:
            found.append(weights.grid.extent)
            continue
        whole = unit[axis] * scale.denominator
        found.append(whole // math.gcd(whole, scale.numerator))
    return tuple(found)


def check_aligned(spec: Spec, number: int, unit: Index) -> None:
    """Raise an `AlignmentError` unless every block of an output is whole write units."""
    for axis, (sizes, u) in enumerate(zip(chunks_of(spec, spec.outputs[number]), unit, strict=True)):
        if _cut(sizes, u):
            raise AlignmentError(
                f"blocks {WHOLE} blocks of {max(sizes)} and units of {u} samples on axis {axis}. Use chunks "
                f"of the array that are multiples of {u}, for example {_multiple(sizes, u)}, or write units "
                f"that divide {max(sizes)}."
            )


def check_chunks(chunks: Sequence[Sequence[int]], unit: Index, dims: Sequence[Any] | None) -> None:
    """Raise an `AlignmentError` unless all chunks of a dask array, or of a DataArray, are whole write units.

    Parameters
    ----------
    chunks : sequence of sequence of int, samples per axis
    unit : tuple of int, samples per axis
    dims : sequence, optional
        The names of the axes of a DataArray, by which it is chunked.
    """
    cut = {axis: u for axis, (sizes, u) in enumerate(zip(chunks, unit, strict=True)) if _cut(sizes, u)}
    if not cut:
        return
    axis, u = next(iter(cut.items()))
    sizes = ", ".join(map(str, chunks[axis][:4])) + (", ..." if len(chunks[axis]) > 4 else "")
    lengths = {a if dims is None else dims[a]: _multiple(chunks[a], u) for a, u in cut.items()}
    raise AlignmentError(
        f"chunks {WHOLE} chunks of {sizes} and units of {u} samples on axis {axis}, where a chunk ends at "
        f"{_cut(chunks[axis], u)[0]}. Write out.{'rechunk' if dims is None else 'chunk'}({lengths})."
    )


def usual_units(chunks: Sequence[Sequence[int]], itemsize: int) -> Index:
    """Return the default units of a dask array, and log if they are much shorter than its chunks.

    They have the length of the first chunk along each axis if it divides the others, or of the longest. A
    slice of huge blocks may begin with the last row of one, and chunks of this row are as many as rows.
    """
    firsts = [next(filter(None, sizes), 1) for sizes in chunks]
    units = [max(sizes) if _cut(sizes, first) else first for sizes, first in zip(chunks, firsts, strict=True)]
    if math.prod(units) * itemsize < LEAST_BYTES:
        longest = {axis: max(sizes) for axis, sizes in enumerate(chunks) if max(sizes) >= SHORT * units[axis]}
        if longest:
            LOG.warning(
                "the array is written in chunks of %s samples, as long as its first one is; rechunk(%s) "
                "makes longer ones, and chunks= says that these are meant", tuple(units), longest,
            )  # fmt: skip
    return tuple(units)


def _cut(sizes: Sequence[int], unit: int) -> list[int]:
    """Return the ends of chunks that lie inside a unit."""
    *edges, last = itertools.accumulate(sizes)
    return [edge for edge in edges if edge % unit and edge < last]


def _multiple(sizes: Sequence[int], unit: int) -> int:
    """Return the multiple of a unit that is next to the length of the longest chunk."""
    return max(1, round(max(sizes) / unit)) * unit
