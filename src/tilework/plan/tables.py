"""The arithmetic of blocks: tiles that each owns and touches, samples that it reads; per axis and N-D.

Tasks are blocks of tiles. Under ``recompute`` a block runs every tile that has weight in it. Under
``share`` a tile runs once, in the block in which its support starts, so it reaches only into later blocks::

    block      |-------- b --------|------- b+1 -------|
    tiles of b     [ support ][ support ][ support ]
    canvas of b    |---------------|=====|   <- seam: the part of the canvas in later blocks
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self, overload

import numpy as np

from tilework._checks import brief, of_type
from tilework._types import Array, Bits, Ints, Span
from tilework.errors import GridError
from tilework.function.output import BoundOutput
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.tiles import Box, Tile, TileGrid

__all__ = [
    "AxisTable",
    "BlockPlan",
    "OutputPlan",
    "SourcePlan",
    "axis_table",
    "axis_tables",
    "box_sums",
    "chunk_uses",
    "joint",
    "pack",
    "unpack",
]


def box_sums(values: Array, ranges: Sequence[Sequence[Span]]) -> Ints:
    """Return the sum of ``values`` over each product of one range per axis.

    Parameters
    ----------
    values : bool or int array
    ranges : sequence of sequence of (first, stop)
        For each axis, the ranges along it.

    Returns
    -------
    int64 array
        One entry per range along each axis.
    """
    sums = values.astype(np.int64)
    for axis, pairs in enumerate(ranges):
        before = np.concatenate((np.zeros_like(sums.take([0], axis)), sums.cumsum(axis)), axis)
        first, last = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        sums = before.take(last, axis) - before.take(first, axis)
    return sums


def pack(runs: Bits) -> bytes:
    """Return one bit per tile in raster order; `unpack` is the inverse."""
    return np.packbits(runs).tobytes()


@lru_cache(maxsize=8)
def unpack(mask: bytes, shape: tuple[int, ...]) -> Bits:
    """Return which tiles run, from one bit per tile in raster order."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=math.prod(shape))
    return bits.astype(bool).reshape(shape)


@dataclass(frozen=True, slots=True)
class AxisTable:
    """For every block along one axis, the tiles that it owns and touches, and the samples they read."""

    owned: list[Span]
    """Tiles whose support starts in the block."""
    touch: list[Span]
    """Tiles that have weight in the block."""
    owned_read: list[Span]
    """Image samples that the owned tiles read; these may lie outside the image."""
    touch_read: list[Span]
    """Image samples that the touching tiles read; these may lie outside the image."""
    canvas: list[list[Span]]
    """Per output, the image samples in which the owned tiles have weight."""
    reaches: list[bool]
    """Whether the owned tiles have weight in the next block."""
    longest: int
    """The longest support of a tile, samples."""


@lru_cache(maxsize=16)
def axis_tables(
    axes: tuple[AxisGrid, ...], block: tuple[int, ...], rims: tuple[tuple[int, ...] | None, ...]
) -> tuple[AxisTable, ...]:
    """Return the tables of all axes, for outputs with ``rims``."""
    return tuple(
        axis_table(grid, size, tuple(None if rim is None else rim[d] for rim in rims))
        for d, (grid, size) in enumerate(zip(axes, block, strict=True))
    )


def axis_table(grid: AxisGrid, size: int, rims: tuple[int | None, ...]) -> AxisTable:
    """Return the table of blocks of ``size`` samples, for outputs with ``rims``."""
    supports = [grid.supports(rim) for rim in rims]
    starts, stops = joint(supports)
    edges = np.append(np.arange(0, grid.extent, size), grid.extent)
    first = np.searchsorted(starts, edges)
    touching = np.searchsorted(stops, edges[:-1], side="right")
    # A block in which no tile has weight touches an empty range, not a negative one.
    touch = np.stack((np.minimum(touching, first[1:]), first[1:]), axis=1)
    owned = np.stack((first[:-1], first[1:]), axis=1)
    canvas = [_extent_of(owned, low, high) for low, high in supports]
    reaches = [max(c[b][1] for c in canvas) > edges[b + 1] for b in range(len(owned))]
    return AxisTable(
        _pairs(owned),
        _pairs(touch),
        _extent_of(owned, *grid.reads()),
        _extent_of(touch, *grid.reads()),
        canvas,
        reaches,
        int((stops - starts).max(initial=0)),
    )


def joint(supports: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Return the hulls of each tile's supports in several outputs, as starts and stops."""
    return np.minimum.reduce([a for a, _ in supports]), np.maximum.reduce([b for _, b in supports])


def _pairs(ranges: Ints) -> list[Span]:
    return [(a, b) for a, b in ranges.tolist()]


def _extent_of(ranges: Ints, starts: Ints, stops: Ints) -> list[Span]:
    """Return, per range of tiles, the first tile's start and the last tile's stop; (0, 0) for no tile."""
    if not len(starts):
        return [(0, 0)] * len(ranges)
    some = ranges[:, 1] > ranges[:, 0]
    low = np.where(some, starts[np.minimum(ranges[:, 0], len(starts) - 1)], 0)
    high = np.where(some, stops[np.maximum(ranges[:, 1] - 1, 0)], 0)
    return _pairs(np.stack((low, high), axis=1))


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Facts about one output that a plan needs."""

    rim: tuple[int, ...] | None = None
    """Image samples at each end of a crop that get no weight, per grid axis; None for a trimmed output."""
    scale: tuple[Fraction, ...] = ()
    """Result samples per image sample, per grid axis."""
    sample_bytes: int = 1
    """Bytes of one result sample while it is accumulated, over all channels."""
    final_bytes: int = 1
    """Bytes of one sample of the returned array, over all channels."""
    blend: str = "trim"
    """The word of the blend, or "window" for weights given by the caller; for pictures."""
    sigma_scale: float = 0.125
    """Standard deviation of a gaussian window, as a fraction of the crop."""

    @classmethod
    def of(cls, output: BoundOutput) -> OutputPlan:
        """Return the facts that a plan, and its JSON, keep about an output with weights."""
        tiled = max(1, math.prod(output.shape[a] for a in output.axes))
        rims = tuple(w.rim or 0 for w in output.weights)
        return cls(
            rim=None if output.kind == "trim" else rims,
            scale=tuple(w.scale for w in output.weights),
            sample_bytes=math.prod(output.shape) // tiled * output.sum_bytes,
            final_bytes=math.prod(output.reduced_shape) // tiled * output.dtype.itemsize,
            blend=output.kind,
            sigma_scale=output.sigma_scale,
        )


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """Facts about one source that a plan needs."""

    sample_bytes: int = 1
    """Bytes per image sample, over all untiled axes."""
    chunks: tuple[int, ...] | None = None
    """Storage chunks, samples per grid axis; None if any part can be read alone."""
    in_memory: bool = False
    """Whether reading returns a view, which takes no memory."""


@dataclass(frozen=True, slots=True)
class BlockPlan(Sequence[Tile]):
    """A lazy sequence of tiles, and the blocks that compute them."""

    axes: tuple[AxisGrid, ...]
    """One grid per axis: the ``each`` axes first, then the tiled axes."""
    names: tuple[str, ...]
    """Name or number of each axis, for messages."""
    n_each: int
    """Number of ``each`` axes."""
    block: tuple[int, ...]
    """Block shape, image samples per axis."""
    outputs: tuple[OutputPlan, ...]
    """One entry per array that the function returns."""
    sources: tuple[SourcePlan, ...]
    """One entry per array that is read."""
    reuse: str = "share"
    """"share": each tile runs once; "recompute": blocks share no tiles."""
    batch_size: int | None = None
    """Crops per call of the function; None: one crop without a batch axis."""
    mask: bytes | None = None
    """Which tiles run, one bit per tile in raster order; None: all."""
    threads: int = 1
    """Number of concurrent tasks in a process, for the estimate of memory."""
    cache_bytes: int = 0
    """Bytes of decoded chunks that a process may keep."""
    notes: tuple[str, ...] = ()
    """The reasons for the choice of blocks and reuse."""
    slabs: int = 0
    """Number of tiled axes, the slowest first, across which blocks share no tiles: slabs are written one
    after the other."""

    # -- tiles ------------------------------------------------------------------------------------------

    @property
    def grid(self) -> TileGrid:
        """The tiles without their blocks."""
        return TileGrid(self.axes)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return self.grid.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the ``each`` and tiled axes, samples."""
        return tuple(axis.extent for axis in self.axes)

    def __len__(self) -> int:
        return len(self.grid)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | Sequence[Tile]:
        return self.grid[index]

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.grid)

    def __contains__(self, tile: object) -> bool:
        return tile in self.grid

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the number of a tile of this plan, from ``start`` on and before ``stop``.

        Raises
        ------
        TilingError
            If the tile is none of these.
        """
        return self.grid.index(value, start, stop)

    def count(self, value: Any) -> int:
        """Return 1 for a tile of this plan, and 0 for any other value.

        Raises
        ------
        TypeError
            For ranges of tiles, which `running` takes.
        """
        if isinstance(value, list | tuple):
            raise TypeError(
                f"count takes a tile; the tiles that run in ranges are plan.running({brief(value)})."
            )
        return self.grid.count(value)

    @property
    def exact_border(self) -> bool:
        """Whether no axis is padded at its end, so that results can be compared with the untiled image."""
        edges = ("shift", "squeeze", "clip")
        return all(a.end_padding == 0 for a in self.axes) and self.axes[-1].edge in edges

    @property
    def covered(self) -> float:
        """Fraction of the image that cores cover; below 1 only for ``edge="drop"`` and given starts."""
        return math.prod(axis.covered / axis.extent for axis in self.axes)

    @property
    def runs(self) -> Bits | None:
        """Whether each tile runs, shape ``grid_shape``; None: all run."""
        return None if self.mask is None else unpack(self.mask, self.grid_shape)

    # -- blocks -----------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks per axis."""
        return tuple(ceil_div(a.extent, b) for a, b in zip(self.axes, self.block, strict=True))

    @property
    def slow_axes(self) -> list[int]:
        """The axes in the order of keys, slowest first: ``each`` axes, then tiled axes from the longest."""
        tiled = range(self.n_each, len(self.axes))
        return [*range(self.n_each), *sorted(tiled, key=lambda d: (-self.axes[d].extent, d))]

    @property
    def slab_axes(self) -> list[int]:
        """The axes along which a slab is one block long."""
        return self.slow_axes[self.n_each : self.n_each + self.slabs]

    @property
    def tables(self) -> tuple[AxisTable, ...]:
        """Tiles that each block owns and touches, and samples that it reads; one table per axis."""
        return axis_tables(self.axes, self.block, tuple(o.rim for o in self.outputs))

    def running(self, ranges: Sequence[Span]) -> int:
        """Return the number of tiles that run in a box of tiles.

        Parameters
        ----------
        ranges : sequence of (first, stop), tiles per axis
            ``stop`` is one past the last tile.

        Returns
        -------
        int
        """
        if (runs := self.runs) is None:
            return math.prod(max(0, b - a) for a, b in ranges)
        return int(runs[tuple(slice(a, b) for a, b in ranges)].sum())

    @property
    def n_runs(self) -> int:
        """Number of tiles that run."""
        return self.running([(0, n) for n in self.grid_shape])

    def box(self, index: Sequence[int]) -> Box:
        """Return the image samples of block ``index``."""
        start = tuple(b * size for b, size in zip(index, self.block, strict=True))
        return Box(start, tuple(min(a + s, n) for a, s, n in zip(start, self.block, self.shape, strict=True)))

    def owned(self, index: Sequence[int]) -> int:
        """Return the number of tiles that block ``index`` owns and runs under ``share``."""
        return self.running([t.owned[b] for t, b in zip(self.tables, index, strict=True)])

    def touched(self, index: Sequence[int]) -> int:
        """Return the number of running tiles that have weight in block ``index``."""
        return self.running([t.touch[b] for t, b in zip(self.tables, index, strict=True)])

    def earlier(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the earlier neighbours whose seam reaches into block ``index``, in raster order."""
        steps = [(1, 0) if b and t.reaches[b - 1] else (0,) for t, b in zip(self.tables, index, strict=True)]
        near = (
            tuple(b - d for b, d in zip(index, step, strict=True))
            for step in itertools.product(*steps)
            if any(step)
        )
        return [block for block in near if self.owned(block)]

    def later(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the steps per axis to the later neighbours into which the tiles of ``index`` reach."""
        steps = [(0, 1) if t.reaches[b] else (0,) for t, b in zip(self.tables, index, strict=True)]
        found = [step for step in itertools.product(*steps) if any(step)]
        if self.mask is None:
            return found
        # A block that no running tile touches is only filled, and needs no seam.
        return [s for s in found if self.touched([b + d for b, d in zip(index, s, strict=True)])]

    def calls(self, box: Box | None = None) -> int:
        """Return the number of crops that the function gets when a part of the result is computed.

        Parameters
        ----------
        box : Box, optional
            Image samples of the ``each`` and tiled axes; default: the whole image.

        Returns
        -------
        int
        """
        box = Box((0,) * len(self.axes), self.shape) if box is None else box
        of_type("box", box, Box, "a Box of image samples")
        if len(box.start) != len(self.axes) or any(
            not 0 <= a <= b <= n for a, b, n in zip(box.start, box.stop, self.shape, strict=True)
        ):
            raise GridError(f"box must lie in the image of shape {self.shape}; got {box}.")
        if not box.size or not len(self):
            return 0
        chosen = [
            range(a // size, ceil_div(b, size))
            for a, b, size in zip(box.start, box.stop, self.block, strict=True)
        ]
        if self.slabs:
            return self._slab_calls()
        if self.mask is not None:
            return self._masked_calls(chosen)
        if self.reuse == "share":
            ranges = []
            for table, blocks in zip(self.tables, chosen, strict=True):
                first = blocks[0] - 1 if blocks[0] and table.reaches[blocks[0] - 1] else blocks[0]
                ranges.append((table.owned[first][0], table.owned[blocks[-1]][1]))
            return self.running(ranges)
        return math.prod(
            sum(t.touch[b][1] - t.touch[b][0] for b in blocks)
            for t, blocks in zip(self.tables, chosen, strict=True)
        )

    def _slab_calls(self) -> int:
        """Return the number of calls in all slabs: a tile runs once in each slab where it has weight."""
        cut = self.slab_axes
        per_axis = [t.touch if d in cut else t.owned for d, t in enumerate(self.tables)]
        if self.mask is not None:
            return int(self._counts(per_axis).sum())
        return math.prod(sum(b - a for a, b in ranges) for ranges in per_axis)

    def _masked_calls(self, chosen: Sequence[range]) -> int:
        """Return the number of calls for the ``chosen`` blocks; blocks without a running tile need none.

        Parameters
        ----------
        chosen : sequence of range, blocks per axis
        """
        tables = self.tables
        touch = self._counts([[t.touch[b] for b in c] for t, c in zip(tables, chosen, strict=True)])
        if self.reuse != "share":
            return int(touch.sum())
        # Under ``share`` the chosen blocks also need the groups of earlier neighbours that reach into them:
        # along each axis, one more block before the first.
        needed, owned = touch > 0, []
        for axis, (table, blocks) in enumerate(zip(tables, chosen, strict=True)):
            reaches = np.array([False, *table.reaches])[blocks.start : blocks.stop]
            before = np.zeros_like(needed.take([0], axis))
            groups = np.moveaxis(np.concatenate((before, needed), axis), axis, -1)
            groups[..., :-1] |= groups[..., 1:] & reaches
            needed = np.moveaxis(groups, -1, axis)
            owned.append([(0, 0) if b < 0 else table.owned[b] for b in (blocks.start - 1, *blocks)])
        return int(self._counts(owned)[needed].sum())

    def _counts(self, ranges: Sequence[Sequence[Span]]) -> Ints:
        """Return the number of tiles that run in each product of one range per axis."""
        return box_sums(np.asarray(self.runs), ranges)

    def with_blocks(
        self, block: Sequence[int], reuse: str, notes: Sequence[str] = (), slabs: int = 0
    ) -> Self:
        """Return a plan of the same tiles with other blocks.

        Parameters
        ----------
        block : sequence of int, image samples per axis
            Block shape over the ``each`` and tiled axes.
        reuse : {"share", "recompute"}
            Whether each tile runs once, or in every block that it touches.
        notes : sequence of str
            The reasons that `explain` shows.
        slabs : int
            Number of tiled axes, the slowest first, across which blocks share no tiles.

        Returns
        -------
        TilePlan
        """
        return replace(self, block=tuple(block), reuse=reuse, notes=tuple(notes), slabs=slabs)


@lru_cache(maxsize=16)
def chunk_uses(
    plan: BlockPlan, shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[Ints, ...]:
    """Return the number of blocks of ``plan`` that read each storage chunk, along each axis of a source.

    Parameters
    ----------
    shape, chunks : tuple of int, samples per axis of the source
    axes : tuple of int
        The source's axis for each axis of the plan.
    """
    counts = [np.ones(ceil_div(n, c), np.int64) for n, c in zip(shape, chunks, strict=True)]
    for axis, grid, table in zip(axes, plan.axes, plan.tables, strict=True):
        counts[axis][:] = 0
        for a, b in table.owned_read if plan.reuse == "share" else table.touch_read:
            counts[axis][max(a, 0) // chunks[axis] : ceil_div(min(b, grid.extent), chunks[axis])] += b > a
    return tuple(counts)
