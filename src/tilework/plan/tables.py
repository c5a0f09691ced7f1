"""The arithmetic of blocks in N dimensions: tiles that each owns and touches, and its neighbours.

Tasks are blocks of tiles. Under ``recompute`` a block runs every tile that has weight in it. Under
``share`` a tile runs once, in the block in which its support starts, so it reaches only into later blocks::

    block      |-------- b --------|------- b+1 -------|
    tiles of b     [ support ][ support ][ support ]
    canvas of b    |---------------|=====|   <- seam: the part of the canvas in later blocks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, overload

import numpy as np

from tilework._checks import brief, of_type
from tilework._derived import Holder, derived
from tilework._types import Bits, Ints, Span
from tilework.errors import GridError
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.progression import Progression
from tilework.grid.tiles import Box, Tile, TileGrid
from tilework.plan.axis_table import AxisTable, Spans
from tilework.plan.box_sums import shifted
from tilework.plan.neighbours import Neighbours
from tilework.plan.output_plan import OutputPlan
from tilework.plan.tile_mask import TileMask
from tilework.source.padding import Boundary

# Derived values of a plan that do not depend on its blocks. While blocks are chosen, plans of the same tiles
# have a table of ``made`` tables: blocks of other shapes have the same lengths along most axes.
OF_TILES = ("grid", "grid_shape", "shape", "n_runs", "longest", "long_axes", "made")

__all__ = [
    "BlockPlan",
    "OutputPlan",
    "SourcePlan",
]


def _part(spans: Spans, blocks: range) -> Spans:
    return Spans(spans.low[blocks.start : blocks.stop], spans.high[blocks.start : blocks.stop])


def _up_to(places: Ints, ends: Ints) -> Ints:
    """Return for each of ``ends`` the sum of the lesser of it and each of ``places``, which ascend.

    The differences of two sums are right if they fit into 64 bits, whether or not the sums do.
    """
    sums, count = np.append(0, places.cumsum()), np.searchsorted(places, ends)
    return np.asarray(sums[count] + ends * (len(places) - count))


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """Facts about one source that a plan needs."""

    sample_bytes: int = 1
    """Bytes per image sample, over all untiled axes."""
    chunks: tuple[int, ...] | None = None
    """Storage chunks, samples per grid axis; None if any part can be read alone."""
    in_memory: bool = False
    """Whether reading returns a view, which takes no memory where nothing is padded."""
    shared: bool = True
    """Whether tasks may use the chunks that other tasks decoded."""
    request: int = 0
    """Bytes of samples that one request reads of chunks that are kept, where that is more than a chunk."""
    given: bool = False
    """Whether a task is given all from its first tile to its last, though reading takes memory."""
    in_runs: bool = False
    """Whether only tasks of one run may use each other's chunks, and not those that dask runs by itself."""


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
    mask: TileMask | None = None
    """Which tiles run; None: all."""
    threads: int = 1
    """Number of concurrent tasks in a process, for the estimate of memory."""
    cache_bytes: int = 0
    """Bytes of decoded chunks that a process may keep."""
    notes: tuple[str, ...] = ()
    """The reasons for the choice of blocks and reuse."""
    slabs: int = 0
    """Number of tiled axes, the slowest first, across which blocks share no tiles: slabs are written one
    after the other."""
    counted: str = "exact"
    """"exact": as many crops run as are counted; "most": fewer may, because crops without a valid sample are
    left out when they are read."""
    predictions: int = 1
    """Predictions that are combined for each crop."""
    together: int = 1
    """How many of them are made in one call of a function."""
    waiting: int = 0
    """How many results of a crop are held beside those of a call."""
    batches: str = "asked"
    """"whole": short batches repeat their last crop; "short": they do not; "asked": if the function wants it
    where it runs."""
    gaps: str = "known"
    """"known": tiles that are left out are those of the mask; "any": also others, by a predicate or because
    they fail."""
    order: tuple[int, ...] = ()
    """The tiled axes in the order in which blocks run, slowest first; (): from the longest."""
    boundary: Boundary = "reflect"
    """What crops read that stick out of the image."""

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
    def n_tiles(self) -> int:
        """Number of tiles; ``len`` refuses more than 64 bits can count."""
        return math.prod(self.grid_shape)

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
        """Whether no axis is padded, so that results can be compared with the untiled image."""
        edges = ("shift", "squeeze", "clip")
        return not any(sum(a.padding) for a in self.axes) and self.axes[-1].edge in edges

    @property
    def covered(self) -> float:
        """Fraction of the image that cores cover; below 1 only for ``edge="drop"`` and given starts."""
        return math.prod(axis.covered / axis.extent for axis in self.axes)

    @property
    def runs(self) -> Bits | None:
        """Whether each tile runs, shape ``grid_shape``; None: all run.

        It takes a byte per tile. `mask` tells the same and takes as little as the mask that was given.
        """
        return None if self.mask is None else self.mask.tiles

    # -- blocks -----------------------------------------------------------------------------------------

    @derived
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks per axis."""
        return tuple(ceil_div(a.extent, b) for a, b in zip(self.axes, self.block, strict=True))

    @derived
    def long_axes(self) -> list[int]:
        """The tiled axes, the longest first."""
        tiled = range(self.n_each, len(self.axes))
        return sorted(tiled, key=lambda d: (-self.axes[d].extent, d))

    @property
    def slow_axes(self) -> list[int]:
        """The axes in the order of keys, slowest first: ``each`` axes, those across slabs, the others."""
        cut = self.slab_axes
        return [*range(self.n_each), *cut, *(d for d in self.order or self.long_axes if d not in cut)]

    @property
    def slab_axes(self) -> list[int]:
        """The axes along which a slab is one block long."""
        return self.long_axes[: self.slabs]

    @derived
    def open_axes(self) -> tuple[int, ...]:
        """The axes along which tiles of a block reach into the next one, which waits for its seam."""
        return tuple(d for d, t in enumerate(self.tables) if d not in self.slab_axes and t.reaching.any())

    @derived
    def tables(self) -> tuple[AxisTable, ...]:
        """Tiles that each block owns and touches, and samples that it reads; one table per axis."""
        found: list[AxisTable] = []
        for d, (grid, size) in enumerate(zip(self.axes, self.block, strict=True)):
            rims = tuple(None if o.rim is None else o.rim[d] for o in self.outputs)
            table = AxisTable(grid, size, rims, self.boundary)
            # Equal axes, and plans of the same tiles, share a table with all that was derived from it.
            table = next((t for t in (*found, *self.held.get("near", ())) if t == table), table)
            found.append(self.held.get("made", {}).setdefault(table, table))
        self.held.pop("near", None)
        return tuple(found)

    def sharing_tables(self, choose: Callable[[Self], Self]) -> Self:
        """Return what ``choose`` makes of this plan; the plans that it looks at share their tables."""
        self.held["made"] = {}
        try:
            found = choose(self)
        finally:
            del self.held["made"]
        found.held.pop("made", None)
        return found

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
        if self.mask is None:
            return math.prod(max(0, b - a) for a, b in ranges)
        return self.mask.running(ranges)

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

    @derived
    def neighbours(self) -> Neighbours:
        """The blocks around each block."""
        return Neighbours(self.tables, self.mask, self.slab_axes)

    @derived
    def shared(self) -> tuple[Spans, ...]:
        """Tiles per axis that each block runs under ``share``: its own; across slabs all that touch it."""
        cut = self.slab_axes
        return tuple(t.touches if d in cut else t.owns for d, t in enumerate(self.tables))

    @derived
    def shared_pairs(self) -> tuple[list[Span], ...]:
        """`shared` as lists."""
        cut = self.slab_axes
        return tuple(t.touch if d in cut else t.owned for d, t in enumerate(self.tables))

    def calls(self, box: Box | None = None) -> int:
        """Return the number of crops that the function gets when a part of the result is computed.

        Of several predictions for each crop, as `augmented` makes them, it is the number of crops alone.

        Parameters
        ----------
        box : Box, optional
            Image samples of the ``each`` and tiled axes; default: the whole image.

        Returns
        -------
        int
        """
        if box is None:
            # The choice of blocks asks again and again.
            return self.once("calls", lambda: self._calls(Box((0,) * len(self.axes), self.shape)))
        of_type("box", box, Box, "a Box of image samples")
        if len(box.start) != len(self.axes) or any(
            not 0 <= a <= b <= n for a, b, n in zip(box.start, box.stop, self.shape, strict=True)
        ):
            raise GridError(f"box must lie in the image of shape {self.shape}; got {box}.")
        return self._calls(box)

    def _calls(self, box: Box) -> int:
        """Return the same for a part of the image."""
        if not box.size or not self.n_tiles:
            return 0
        chosen = [
            range(a // size, ceil_div(b, size))
            for a, b, size in zip(box.start, box.stop, self.block, strict=True)
        ]
        if self.slabs:
            # A tile runs once in each slab in which it has weight.
            return self.total(self.shared)
        if self.reuse != "share":
            return self.total([_part(t.touches, c) for t, c in zip(self.tables, chosen, strict=True)])
        if self.mask is not None and box.shape != self.shape:
            return self._masked_calls(chosen)
        ranges = []
        for table, blocks in zip(self.tables, chosen, strict=True):
            first = blocks[0] - 1 if blocks[0] and table.reaching[blocks[0] - 1] else blocks[0]
            ranges.append((int(table.owns.low[first]), int(table.owns.high[blocks[-1]])))
        return self.running(ranges)

    def _masked_calls(self, chosen: Sequence[range]) -> int:
        """Return the number of calls under ``share`` for the ``chosen`` blocks, a range per axis.

        Blocks without a running tile need none. The others also need the groups of earlier neighbours that
        reach into them: along each axis, one more block before the first.
        """
        tables = self.tables
        mask: Any = self.mask
        needed = mask.run_in([_part(t.touches, c) for t, c in zip(tables, chosen, strict=True)])
        owned = []
        for axis, (table, blocks) in enumerate(zip(tables, chosen, strict=True)):
            before = np.zeros_like(needed.take([0], axis))
            needed = np.concatenate((before, needed), axis)
            # Whether each of these blocks reaches into the next one; the last one may, but it is not asked.
            reaches = np.append(False, table.reaching)[blocks.start : blocks.stop]
            needed |= shifted(needed, axis, np.append(reaches, False), -1)
            own = _part(table.owns, range(max(0, blocks.start - 1), blocks.stop))
            # Block -1 owns nothing.
            none = np.zeros(int(not blocks.start), np.int64)
            owned.append(Spans(np.append(none, own.low), np.append(none, own.high)))
        return int(mask.counts(owned)[needed].sum())

    def total(self, ranges: Sequence[Spans], before: Sequence[Progression] | None = None) -> int:
        """Return the number of tiles that run, counted once per range in which they are, along each axis.

        With ``before``, the samples of all tiles before each one along each axis, their samples are counted.
        """
        if self.mask is None and before is None:
            return math.prod(int(spans.lengths.sum()) for spans in ranges)
        times = []
        for axis, (low, high) in enumerate(ranges):
            ends = np.array([0, self.grid_shape[axis]]) if self.mask is None else self.mask.ends[axis]
            if before is not None:
                low, high, ends = map(before[axis].take, (low, high, ends))
            # How much of each group of tiles is in all ranges.
            times.append(np.diff(_up_to(high, ends) - _up_to(low, ends)))
        return math.prod(int(n.sum()) for n in times) if self.mask is None else self.mask.total(times)

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
        plan = replace(self, block=tuple(block), reuse=reuse, notes=tuple(notes), slabs=slabs, order=())
        plan.held.update((name, self.held[name]) for name in OF_TILES if name in self.held)
        plan.held["near"] = self.held.get("tables", ())
        return plan

    def with_runs(self, runs: Bits | TileMask) -> Self:
        """Return a plan in which only some tiles run; an array of shape ``grid_shape`` may tell which.

        Raises
        ------
        GridError
            If it tells of other tiles.
        """
        mask = runs if isinstance(runs, TileMask) else TileMask.of(runs)
        if mask.shape != self.grid_shape:
            raise GridError(f"runs must have one entry per tile, {self.grid_shape}; got shape {mask.shape}.")
        plan = replace(self, mask=mask)
        plan.held.update(near=self.tables, longest=self.longest)
        return plan

    def with_cache(self, cache_bytes: int) -> Self:
        """Return the same plan with other memory for decoded chunks."""
        return self._with(cache_bytes=cache_bytes)

    def with_order(self, order: Sequence[int]) -> Self:
        """Return the same plan with blocks that run in another order of the tiled axes, slowest first."""
        return self._with(order=tuple(order))

    def with_sources(self, sources: Sequence[SourcePlan]) -> Self:
        """Return the same plan with other words on who may use the chunks of its sources."""
        return self._with(sources=tuple(sources))

    def with_notes(self, notes: Sequence[str]) -> Self:
        """Return the same plan with other reasons for `explain`."""
        return self._with(notes=tuple(notes))

    def with_threads(self, threads: int) -> Self:
        """Return the same plan for another number of concurrent tasks in a process."""
        return self._with(threads=threads)

    def with_gaps(self, gaps: str) -> Self:
        """Return the same plan with other words on the tiles that are left out."""
        return self._with(gaps=gaps)

    def _with(self, **changes: Any) -> Self:
        """Return a plan of the same tiles and blocks, with all that was derived from them."""
        plan = replace(self, **changes)
        plan.held.update(self.held)
        return plan
