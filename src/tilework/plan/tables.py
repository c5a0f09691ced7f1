"""The arithmetic of blocks in N dimensions: tiles that each owns and touches, and its neighbours.

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
from typing import Any, Self, overload

import numpy as np

from tilework._checks import brief, of_type
from tilework._types import Array, Bits, Index, Ints, Span
from tilework.errors import GridError
from tilework.function.output import BoundOutput
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.derived import Holder, derived
from tilework.grid.tiles import Box, Tile, TileGrid
from tilework.plan.axis_table import AxisTable

# Derived values of a plan that do not depend on its blocks.
OF_TILES = ("grid", "grid_shape", "shape", "runs", "n_runs", "longest")

__all__ = [
    "BlockPlan",
    "OutputPlan",
    "SourcePlan",
    "box_sums",
    "pack",
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
    """Return one bit per tile in raster order; `BlockPlan.runs` is the inverse."""
    return np.packbits(runs).tobytes()


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
class BlockPlan(Holder, Sequence[Tile]):
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

    @derived
    def grid(self) -> TileGrid:
        """The tiles without their blocks."""
        return TileGrid(self.axes)

    @derived
    def grid_shape(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return self.grid.shape

    @derived
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

    @derived
    def runs(self) -> Bits | None:
        """Whether each tile runs, shape ``grid_shape``; None: all run."""
        if self.mask is None:
            return None
        bits = np.unpackbits(np.frombuffer(self.mask, np.uint8), count=len(self))
        bits.flags.writeable = False
        return bits.view(bool).reshape(self.grid_shape)

    # -- blocks -----------------------------------------------------------------------------------------

    @derived
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

    @derived
    def tables(self) -> tuple[AxisTable, ...]:
        """Tiles that each block owns and touches, and samples that it reads; one table per axis."""
        found: list[AxisTable] = []
        for d, (grid, size) in enumerate(zip(self.axes, self.block, strict=True)):
            rims = tuple(None if o.rim is None else o.rim[d] for o in self.outputs)
            table = AxisTable(grid, size, rims)
            # Equal axes, and plans of the same tiles, share a table with all that was derived from it.
            found.append(next((t for t in (*found, *self.held.get("near", ())) if t == table), table))
        self.held.pop("near", None)
        return tuple(found)

    @derived
    def longest(self) -> tuple[int, ...]:
        """The longest support of a tile per axis, samples."""
        return tuple(table.longest for table in self.tables)

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

    @derived
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
        plan = replace(self, block=tuple(block), reuse=reuse, notes=tuple(notes), slabs=slabs)
        plan.held.update((name, self.held[name]) for name in OF_TILES if name in self.held)
        plan.held["near"] = self.held.get("tables", ())
        return plan

    def with_runs(self, runs: Bits) -> Self:
        """Return a plan in which only some tiles run; an array of shape ``grid_shape`` tells which."""
        plan = replace(self, mask=pack(runs))
        plan.held.update(near=self.tables, longest=self.longest)
        return plan

    def with_notes(self, notes: Sequence[str]) -> Self:
        """Return the same plan with other reasons for `explain`."""
        plan = replace(self, notes=tuple(notes))
        plan.held.update(self.held)
        return plan

    def chunk_uses(self, shape: Index, chunks: Index, axes: Index) -> tuple[Ints, ...]:
        """Return the number of blocks that read each storage chunk, along each axis of a source.

        Parameters
        ----------
        shape, chunks : tuple of int, samples per axis of the source
        axes : tuple of int
            The source's axis for each axis of the plan.

        Returns
        -------
        tuple of int64 array
        """
        key = "chunk_uses", shape, chunks, axes
        if key in self.held:
            found: tuple[Ints, ...] = self.held[key]
            return found
        counts = [np.ones(ceil_div(n, c), np.int64) for n, c in zip(shape, chunks, strict=True)]
        for axis, grid, table in zip(axes, self.axes, self.tables, strict=True):
            reads = table.owned_reads if self.reuse == "share" else table.touching_reads
            some, n, chunk = reads.lengths > 0, len(counts[axis]), chunks[axis]
            first = np.clip(reads.low[some] // chunk, 0, n)
            last = np.maximum(first, ceil_div(np.minimum(reads.high[some], grid.extent), chunk))
            # A range counts from its first chunk on, and no more from the one after its last.
            steps = np.bincount(first, minlength=n + 1) - np.bincount(last, minlength=n + 1)
            counts[axis] = steps.cumsum()[:n]
        self.held[key] = tuple(counts)
        return tuple(counts)
