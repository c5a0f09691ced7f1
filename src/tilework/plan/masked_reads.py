"""Storage chunks that blocks read under a mask: from the first tile of a block that runs to its last.

Consecutive blocks along an axis that have the same groups of tiles are a *class*. Where the other blocks lie
among classes is all that decides which of a block's tiles run along an axis, so questions are answered by
class, and a coarse mask costs what it takes itself. A block whose tiles stick out of the image is a class of
its own: what padding makes it read depends on its first and its last tile that run.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Index, Ints
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import FEW, box_any, box_sums, weighed_sum
from tilework.plan.tables import BlockPlan
from tilework.plan.tile_mask import TileMask
from tilework.source.kept import Uses
from tilework.source.padding import Boundary, padded_parts

__all__ = [
    "CELLS",
    "ByTile",
    "MaskedReads",
    "beside_of",
    "chunks_of",
    "common_chunks",
    "covering",
    "ends_of_runs",
    "firsts_of",
    "places_of",
    "product_of",
    "samples_of",
    "tiles_of",
]


# The first chunk of each box of chunks and one past its last, for each axis.
Boxes = list[tuple[Ints, Ints]]
# Most kinds of chunks that are counted one by one for `MaskedReads.once`.
CELLS = 2**24
# Stands for the chunk of a block's own first or last tile, where that one runs.
OWN = -1


@dataclass(frozen=True, slots=True)
class _Along:
    """The blocks along one axis, and the chunks along it that each reads if its first and last tile run."""

    firsts: Ints
    """The first block of each class."""
    sizes: Ints
    """Number of blocks in each class."""
    low: Ints
    """The first chunk of each block."""
    high: Ints
    """One past the last."""


@dataclass(frozen=True, slots=True)
class _Others:
    """Chunks along one axis that some blocks read apart from their first ones."""

    classes: Ints
    """The classes of these blocks, along the axis."""
    lows: Ints
    """The first chunk for each product of these classes and those along the other axes."""
    highs: Ints
    """One past the last; no more than the first where there is none."""


@dataclass(frozen=True, slots=True)
class _Apart:
    """Blocks of which all tiles run, or none: what they read is a product of chunks along each axis."""

    runs: Bits
    """Whether the tiles of blocks run, for each product of classes."""
    ranges: tuple[Spans, ...]
    """Per axis, the blocks that read each kind of chunks, which are neighbours that the same blocks read."""
    kinds: tuple[Ints, ...]
    """Per axis, the kind of each chunk along it."""
    besides: tuple[Ints, ...]
    """Per axis, two rows: blocks, and kinds of chunks that padding makes them read besides."""
    firsts: tuple[Ints, ...]
    """Per axis, the first block of each class, and the number of blocks."""

    def lengths(self, along: Sequence[_Along]) -> list[Ints]:
        """Return the number of chunks that each block reads along each axis."""
        found = []
        for a, kinds, (blocks, beside) in zip(along, self.kinds, self.besides, strict=True):
            length = a.high - a.low
            np.add.at(length, blocks, np.bincount(kinds)[beside])
            found.append(length)
        return found

    def counts(self) -> Ints:
        """Return how many blocks read each kind of chunk."""
        return product_of(box_sums, np.add, self.runs, self.ranges, self.firsts, self.besides)

    def once(self) -> int | None:
        """Return the number of chunks that some block reads; None if that takes too much memory."""
        ranges, besides, times = [], [], []
        for ends, spans, kinds, (blocks, beside) in zip(
            self.firsts, self.ranges, self.kinds, self.besides, strict=True
        ):
            low = np.searchsorted(ends, spans.low, "right") - 1
            high = np.where(spans.low < spans.high, np.searchsorted(ends, spans.high), low)
            # Neighbours that the same classes read are one.
            new = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
            new[beside] = True
            new[np.minimum(beside + 1, len(new) - 1)] = True
            [first] = np.nonzero(new)
            ranges.append(Spans(low[first], high[first]))
            times.append(np.add.reduceat(np.bincount(kinds), first))
            besides.append(np.stack((np.searchsorted(ends, blocks, "right") - 1, new.cumsum()[beside] - 1)))
        if math.prod(map(len, times)) > CELLS:
            return None
        each = [np.arange(n + 1) for n in self.runs.shape]
        read = product_of(
            lambda bits, spans, _: box_any(bits, spans), np.logical_or, self.runs, ranges, each, besides
        )
        return weighed_sum(read, times)


@dataclass(frozen=True, slots=True)
class ByTile:
    """Blocks that read their tiles one by one: fewer samples than all from their first to their last."""

    tiles: tuple[Spans, ...]
    """Per axis, the tiles that each block runs."""
    firsts: tuple[Ints, ...]
    """Per axis, the first block of each class; the blocks of a class read as many samples."""
    ends: tuple[tuple[Ints, Ints], ...]
    """Per axis, what `ends_of_runs` returns for the classes."""
    alone: Bits
    """Whether blocks read tile by tile, for each product of classes."""


@dataclass(frozen=True, slots=True)
class MaskedReads:
    """Chunks that the blocks of a plan read along each axis, of one source."""

    grid: Index
    """Number of chunks per grid axis."""
    along: tuple[_Along, ...]
    """The blocks along each axis."""
    lows: tuple[Ints, ...]
    """Per axis, the first chunk along it that blocks read, or `OWN`; for each product of classes."""
    highs: tuple[Ints, ...]
    """One past the last, or `OWN`; no more than the first for blocks that read nothing."""
    others: tuple[_Others | None, ...]
    """Per axis, what else padding reads at the other end of a wrapped image."""
    apart: _Apart | None = None
    """In place of the last three, if each class has one group: all tiles of a block run, or none."""

    @classmethod
    def of(
        cls,
        plan: BlockPlan,
        chunks: Index,
        *,
        touching: bool = False,
        by_tile: ByTile | None = None,
        keeps: bool = True,
    ) -> MaskedReads:
        """Return what the blocks of a plan with a mask read.

        Parameters
        ----------
        chunks : tuple of int, samples per grid axis
        touching : bool
            Whether all tiles that have weight in a block count for it, and not those that it runs.
        by_tile : ByTile, optional
            Blocks that read nothing here, because they read their tiles one by one.
        keeps : bool
            Whether tasks keep chunks; else `common_chunks` count twice.
        """
        mask = plan.mask
        assert mask is not None
        tiles = tiles_of(plan, touching=touching)
        firsts = _all_firsts(plan, tiles) if by_tile is None else by_tile.firsts
        classes = [
            mask.groups(d, Spans(*(ends[first] for ends in spans)))
            for d, (spans, first) in enumerate(zip(tiles, firsts, strict=True))
        ]
        if all((spans.lengths <= 1).all() for spans in classes):
            return cls._apart(plan, chunks, tiles, firsts, box_any(mask.bits, classes), keeps=keeps)
        along, lows, highs, others = [], [], [], []
        for d, (axis, chunk) in enumerate(zip(plan.axes, chunks, strict=True)):
            ends, (below, above) = mask.ends[d], classes[d]
            first, last = by_tile.ends[d] if by_tile is not None else ends_of_runs(mask, classes, d)
            # The first tile of a group is that of the block unless the group is the block's first.
            # A group more, as there may be none.
            low, high = (np.append(of, 0) for of in chunks_of(axis, ends[:-1], ends[1:], chunk))
            column = (-1,) + (1,) * (first.ndim - 1)
            heads = np.where(first == below.reshape(column), OWN, low[first])
            tails = np.where(last == above.reshape(column) - 1, OWN, high[last])
            out = np.flatnonzero(_outside(axis, tiles[d])[firsts[d]])
            beside = None
            if len(out):
                blocks = Spans(*(at[firsts[d][out]] for at in tiles[d]))
                reads = samples_of(axis, ends, blocks, first[out], last[out])
                (heads[out], tails[out]), *more = _in_chunks(axis, reads, plan.boundary, chunk, keeps=keeps)
                if more:
                    parts = (np.where(first[out] > last[out], 0, end) for end in more[0])
                    beside = _Others(out, *(np.moveaxis(part, 0, d) for part in parts))
            heads[first > last] = tails[first > last] = 0
            lows.append(np.moveaxis(heads, 0, d))
            highs.append(np.moveaxis(tails, 0, d))
            others.append(beside)
            sizes = np.diff(np.append(firsts[d], len(tiles[d].low)))
            along.append(_Along(firsts[d], sizes, *chunks_of(axis, *tiles[d], chunk)))
            if by_tile is not None:
                lows[d][by_tile.alone] = highs[d][by_tile.alone] = 0
                if beside is not None:
                    beside.lows[by_tile.alone.take(out, d)] = 0
                    beside.highs[by_tile.alone.take(out, d)] = 0
        grid = tuple(ceil_div(n, c) for n, c in zip(plan.shape, chunks, strict=True))
        return cls(grid, tuple(along), tuple(lows), tuple(highs), tuple(others))

    @classmethod
    def _apart(
        cls,
        plan: BlockPlan,
        chunks: Index,
        tiles: Sequence[Spans],
        firsts: Sequence[Ints],
        runs: Bits,
        *,
        keeps: bool,
    ) -> MaskedReads:
        grid = tuple(ceil_div(n, c) for n, c in zip(plan.shape, chunks, strict=True))
        along, ranges, kinds, besides = [], [], [], []
        for axis, spans, first, chunk, n in zip(plan.axes, tiles, firsts, chunks, grid, strict=True):
            low, high = chunks_of(axis, *spans, chunk)
            pairs = beside_of(axis, spans, (low, high), plan.boundary, chunk, keeps=keeps)
            marks = np.zeros(n + 1, bool)
            marks[0] = marks[low] = marks[high] = True
            marks[pairs[1]] = marks[pairs[1] + 1] = True
            kind = marks[:-1].cumsum() - 1
            at = np.flatnonzero(marks[:-1])
            start = np.searchsorted(high, at, "right")
            ranges.append(Spans(start, np.maximum(start, np.searchsorted(low, at, "right"))))
            kinds.append(kind)
            besides.append(np.stack((pairs[0], kind[pairs[1]])))
            along.append(_Along(first, np.diff(np.append(first, len(low))), low, high))
        ends = tuple(np.append(a.firsts, len(a.low)) for a in along)
        apart = _Apart(runs, tuple(ranges), tuple(kinds), tuple(besides), ends)
        return cls(grid, tuple(along), (), (), (), apart)

    @staticmethod
    def classes(plan: BlockPlan, *, touching: bool = False) -> int:
        """Return the number of products of classes, to which the cost of `of` is proportional."""
        return math.prod(map(len, _all_firsts(plan, tiles_of(plan, touching=touching))))

    def most(self) -> int:
        """Return the most chunks that a block reads, or a few more."""
        if self.apart is not None:
            pairs = zip(self.apart.lengths(self.along), self.along, strict=True)
            most = [np.maximum.reduceat(n, a.firsts) for n, a in pairs]
            return int((functools.reduce(np.multiply.outer, most) * self.apart.runs).max(initial=0))
        sizes = np.ones((), np.int64)
        for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True)):
            own = np.maximum.reduceat(a.high - a.low, a.firsts).reshape((-1,) + (1,) * (low.ndim - d - 1))
            first = _entries(low, d, 1, a.low[a.firsts])
            length = _entries(high, d, 1, a.high[a.firsts + a.sizes - 1]) - first
            length = np.where((low == OWN) & (high == OWN), own, length)
            if (more := self.others[d]) is not None:
                length[_at(d, more.classes)] += more.highs - more.lows
            sizes = sizes * length
        return int(sizes.max(initial=0))

    def uses(self) -> Uses:
        """Return the number of blocks that read each chunk."""
        if self.apart is not None:
            return Uses(self.apart.counts(), self.apart.kinds)
        boxes = list(self._of_blocks())
        places = places_of(boxes, self.grid)
        counts = covering(boxes, places, self.grid)
        # Before the first place, and from the last one on, no block reads.
        kinds = (np.searchsorted(at, np.arange(n), "right") for at, n in zip(places, self.grid, strict=True))
        return Uses(np.pad(counts, 1), tuple(kinds))

    def total(self) -> int:
        """Return the number of chunks that blocks read, counted once for each block."""
        if self.apart is not None:
            pairs = zip(self.apart.lengths(self.along), self.along, strict=True)
            return weighed_sum(self.apart.runs, [np.add.reduceat(n, a.firsts) for n, a in pairs])
        lengths: list[Array] = []
        for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True)):
            before, after = (
                _entries(values, d, a.sizes, np.add.reduceat(own, a.firsts))
                for values, own in ((low, a.low), (high, a.high))
            )
            lengths.append(after - before)
            if (more := self.others[d]) is not None:
                lengths[-1][_at(d, more.classes)] += more.highs - more.lows
        # Products that wrap around do not matter if the sum fits into 64 bits.
        if functools.reduce(np.multiply, [n.astype(float) for n in lengths]).sum() >= 2**62:
            lengths = [n.astype(object) for n in lengths]
        return int(functools.reduce(np.multiply, lengths).sum())

    def once(self) -> int | None:
        """Return the number of chunks that some block reads; None if that takes too much memory."""
        if self.apart is not None:
            return self.apart.once()
        boxes = self.boxes()
        places = places_of(boxes, self.grid)
        if math.prod(map(len, places)) > CELLS:
            return None
        counts = covering(boxes, places, self.grid)
        return weighed_sum(counts > 0, [np.diff(at) for at in places])

    def boxes(self) -> list[Boxes]:
        """Return boxes that hold all chunks that some block reads, and no others, if not `apart`."""
        return list(self._of_classes())

    def _of_blocks(self) -> Iterator[Boxes]:
        """Yield the first chunk of each block along each axis, and one past its last."""
        # For a slice of a long image, blocks without a running tile are nearly all; one is left in any case.
        runs = self.highs[0] != 0
        number, at = [], []
        for d, a in enumerate(self.along):
            some = runs.any(tuple(e for e in range(runs.ndim) if e != d))
            if (more := self.others[d]) is not None:
                some[more.classes] = True  # these may read padding alone
            some[0] |= not some.any()
            each = np.repeat(np.arange(len(a.sizes)), a.sizes)
            at.append(np.flatnonzero(some[each]))
            number.append(each[at[d]])
        place = np.ix_(*number)
        columns = zip(self.along, self.lows, self.highs, at, strict=True)
        ends = [
            (_entries(low[place], d, 1, a.low[blocks]), _entries(high[place], d, 1, a.high[blocks]))
            for d, (a, low, high, blocks) in enumerate(columns)
        ]
        return self._with_others(ends, number)

    def _of_classes(self) -> Iterator[Boxes]:
        """Yield the same for the blocks of each class together.

        No chunk between them is left out, as strides are no longer than crops.
        """
        ends = [
            (
                _entries(low, d, 1, a.low[a.firsts]),
                _entries(high, d, 1, a.high[a.firsts + a.sizes - 1]),
            )
            for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True))
        ]
        return self._with_others(ends, [np.arange(len(a.sizes)) for a in self.along])

    def _with_others(self, ends: Boxes, number: Sequence[Ints]) -> Iterator[Boxes]:
        """Yield the boxes with ``ends``, then those that lie at another end of the image along some axes.

        ``number`` has the class of each place along each axis.
        """
        some = []
        for d, more in enumerate(self.others):
            if more is not None and (here := np.isin(more.classes, number[d])).any():
                low, high = more.lows, more.highs
                part = _at(d, np.flatnonzero(here))
                some.append((d, _Others(more.classes[here], low[part], high[part])))
        for chosen in itertools.product((False, True), repeat=len(some)):
            apart = dict(itertools.compress(some, chosen))
            found, inside = list(ends), list(number)
            for d, more in apart.items():
                # Each of these classes is one block.
                at = _at(d, np.searchsorted(number[d], more.classes))
                found = [(low[at], high[at]) for low, high in found]
                inside[d] = more.classes
            for d, more in apart.items():
                each = np.arange(len(more.classes))
                place = np.ix_(*(each if e == d else along for e, along in enumerate(inside)))
                found[d] = more.lows[place], more.highs[place]
            yield found


def product_of(
    join: Callable[..., Array],
    ufunc: Any,
    values: Array,
    ranges: Sequence[Spans],
    edges: Sequence[Ints],
    besides: Sequence[Ints],
) -> Array:
    """Return what ``join`` makes of the values in ranges along all axes, and of others ``besides``.

    Of these, pairs of a place in ``edges`` and of a range, ``ufunc`` adds the value to that of the range.
    """
    if not any(places.size for places, _ in besides):
        return join(values, ranges, edges)
    for d, (spans, ends, (places, kinds)) in enumerate(zip(ranges, edges, besides, strict=True)):
        each = [np.arange(n + 1) for n in values.shape]
        some = [Spans(at[:-1], at[1:]) for at in each]
        found = join(values, [*some[:d], spans, *some[d + 1 :]], [*each[:d], ends, *each[d + 1 :]])
        ufunc.at(found, _at(d, kinds), values.take(np.searchsorted(ends, places, "right") - 1, d))
        values = found
    return values


def _at(d: int, places: Ints) -> tuple[Any, ...]:
    """Return the index of some places along an axis."""
    return (*(slice(None),) * d, places)


def tiles_of(plan: BlockPlan, *, touching: bool) -> Sequence[Spans]:
    """Return the tiles per axis that each block runs, or all that have weight in it."""
    alone = touching or plan.reuse != "share"
    return [t.touches for t in plan.tables] if alone else plan.shared


def _all_firsts(plan: BlockPlan, tiles: Sequence[Spans]) -> list[Ints]:
    """Return the first block of each class, for each axis."""
    assert plan.mask is not None
    return [firsts_of(plan.mask.groups(d, spans), plan.axes[d], spans) for d, spans in enumerate(tiles)]


def firsts_of(groups: Spans, axis: AxisGrid, tiles: Spans) -> Ints:
    """Return the first block of each class; blocks are given by their tiles, and by the groups of these."""
    new = np.append(True, (groups.low[1:] != groups.low[:-1]) | (groups.high[1:] != groups.high[:-1]))
    out = _outside(axis, tiles)
    new |= out
    new[1:] |= out[:-1]
    return np.flatnonzero(new)


def _outside(axis: AxisGrid, tiles: Spans) -> Bits:
    """Return whether any of the tiles of each range sticks out of the image."""
    starts, stops = axis.read_ends()
    if not len(starts):
        return np.zeros(len(tiles.low), bool)
    some = tiles.low < tiles.high
    before = starts.take(np.minimum(tiles.low, len(starts) - 1)) < 0
    after = stops.take(np.maximum(tiles.high - 1, 0)) > axis.extent
    return np.asarray(some & (before | after))


def samples_of(axis: AxisGrid, ends: Ints, tiles: Spans, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return the samples of the tiles of blocks from the first of a group to the last of another.

    The axis comes first; it is that of ``tiles``.
    """
    starts, stops = axis.read_ends()
    along = (-1,) + (1,) * (first.ndim - 1)
    # A tile further on starts and stops further on. A group more, as there may be none.
    low, high = np.append(starts.take(ends[:-1]), 0), np.append(stops.take(ends[1:] - 1), 0)
    own_low = starts.take(np.minimum(tiles.low, len(starts) - 1)).reshape(along)
    own_high = stops.take(np.maximum(tiles.high - 1, 0)).reshape(along)
    return np.maximum(low[first], own_low), np.minimum(high[last], own_high)


def common_chunks(axis: AxisGrid, samples: tuple[Ints, Ints], boundary: Boundary, chunk: int) -> Ints:
    """Return padded ranges of samples of which two parts lie on one chunk, and that chunk; two rows.

    A wrapped axis is read in two parts, so a task that keeps no chunks decodes it twice.
    """
    if boundary != "wrap" or axis.extent == 1:
        return np.zeros((2, 0), np.int64)
    (_, end), (low, high) = padded_parts(*samples, axis.extent, boundary)
    [both] = np.nonzero((end > 0) & (low < high) & (low // chunk == (end - 1) // chunk))
    return np.stack((both, low[both] // chunk))


def _in_chunks(
    axis: AxisGrid, samples: tuple[Ints, Ints], boundary: Boundary, chunk: int, *, keeps: bool = True
) -> list[tuple[Ints, Ints]]:
    """Return the chunks that hold padded ranges of samples: one range, or two.

    These have a chunk in common only where a task that ``keeps`` none reads it twice.
    """
    found: list[tuple[Ints, Ints]] = []
    for low, high in padded_parts(*samples, axis.extent, boundary):
        first, stop = low // chunk, np.where(low < high, ceil_div(high, chunk), low // chunk)
        if found and keeps:  # the second part is after the first
            first = np.minimum(np.maximum(first, found[0][1]), stop)
        found.append((first, stop))
    return found


def chunks_of(axis: AxisGrid, low: Ints, high: Ints, chunk: int) -> tuple[Ints, Ints]:
    """Return the first chunk that ranges of tiles read along an axis, and one past the last."""
    starts, stops = axis.read_ends()
    if not len(starts):
        return np.zeros_like(low), np.zeros_like(low)
    most = len(starts) - 1
    # What an empty range would read is not asked for.
    first = np.clip(starts.take(np.minimum(low, most)), 0, axis.extent)
    last = np.clip(stops.take(np.maximum(high - 1, 0)), 0, axis.extent)
    return np.where(first < axis.extent, first // chunk, ceil_div(axis.extent, chunk)), ceil_div(last, chunk)


def _entries(values: Ints, axis: int, times: Ints | int, own: Ints) -> Ints:
    """Return ``values`` times a number for each place along an axis, with ``own`` numbers for `OWN`."""
    along = (-1,) + (1,) * (values.ndim - axis - 1)
    return np.where(values == OWN, own.reshape(along), values * np.reshape(times, along))


def ends_of_runs(mask: TileMask, classes: Sequence[Spans], d: int) -> tuple[Ints, Ints]:
    """Return the first and the last group that runs in each product of ranges of groups, along axis ``d``.

    It comes first in what is returned. The first group is after the last where none runs; both may be one
    past the last group.
    """
    each = np.arange(mask.bits.shape[d])
    single = [spans if e != d else Spans(each, each + 1) for e, spans in enumerate(classes)]
    runs, groups = np.moveaxis(box_any(mask.bits, single), d, 0), classes[d]
    n, (low, high) = len(runs), groups
    longest = int(groups.lengths.max(initial=0))
    if longest * len(low) <= FEW * n:
        first, last = (np.full((len(low), *runs.shape[1:]), end, np.int32) for end in (n, -1))
        for k in range(longest):
            here = np.flatnonzero(k < groups.lengths)
            for ends, places in ((first, high[here] - 1 - k), (last, low[here] + k)):
                on = runs.take(places, 0)
                column = places.astype(np.int32).reshape((-1,) + (1,) * (runs.ndim - 1))
                if len(here) == len(low):
                    np.copyto(ends, column, where=on)
                else:
                    ends[here] = np.where(on, column, ends[here])
        return first, last
    # numpy accumulates along the first axis many entries at a time, and short numbers in half the time.
    each = np.arange(n + 1, dtype=np.int32).reshape((-1,) + (1,) * (runs.ndim - 1))
    after, before = (np.empty((n + 1, *runs.shape[1:]), np.int32) for _ in range(2))
    # From a group on, and before it.
    after[n], before[0] = n, -1
    after[:-1], before[1:] = np.where(runs, each[:-1], n), np.where(runs, each[:-1], -1)
    np.minimum.accumulate(after[::-1], 0, out=after[::-1])
    np.maximum.accumulate(before, 0, out=before)
    return after.take(low, 0), before.take(high, 0)


def beside_of(
    axis: AxisGrid,
    tiles: Spans,
    own: tuple[Ints, Ints],
    boundary: Boundary,
    chunk: int,
    *,
    keeps: bool = True,
) -> Ints:
    """Return blocks and chunks that padding makes them read besides their ``own``; two rows.

    Where tasks do not keep chunks, `common_chunks` are among them.
    """
    starts, stops = axis.read_ends()
    found = [np.zeros((2, 0), np.int64)]
    for block in np.flatnonzero(_outside(axis, tiles)).tolist():
        samples = starts.take(tiles.low[[block]]), stops.take(tiles.high[[block]] - 1)
        for low, high in _in_chunks(axis, samples, boundary, chunk):
            each = np.arange(int(low[0]), int(high[0]))
            each = each[(each < own[0][block]) | (each >= own[1][block])]
            found.append(np.stack((np.full_like(each, block), each)))
        if not keeps:
            [_, each] = common_chunks(axis, samples, boundary, chunk)
            found.append(np.stack((np.full_like(each, block), each)))
    return np.concatenate(found, axis=1)


def places_of(several: Sequence[Boxes], grid: Sequence[int]) -> list[Ints]:
    """Return the chunks along each axis at which a box begins or ends; all between are in the same boxes."""
    places = []
    for d, n in enumerate(grid):
        some = np.zeros(n + 1, bool)
        for boxes in several:
            for ends in boxes[d]:
                some[ends] = True
        places.append(np.flatnonzero(some))
    return places


def covering(several: Sequence[Boxes], places: Sequence[Ints], grid: Sequence[int]) -> Ints:
    """Return in how many boxes chunks are, between their `places_of`."""
    numbers = [np.searchsorted(at, np.arange(n + 1), "right") - 1 for at, n in zip(places, grid, strict=True)]
    # Each box adds one: to the differences at its corners, which are then summed up.
    sizes = [len(at) for at in places]
    changes = np.zeros(math.prod(sizes), np.int64)
    for boxes in several:
        inside = functools.reduce(np.logical_and, (low < high for low, high in boxes))
        both = [(n[low[inside]], n[high[inside]]) for n, (low, high) in zip(numbers, boxes, strict=True)]
        for corner in itertools.product((0, 1), repeat=len(both)):
            place = np.ravel_multi_index(tuple(pair[c] for pair, c in zip(both, corner, strict=True)), sizes)
            changes += (-1) ** sum(corner) * np.bincount(place, minlength=len(changes))
    found: Ints = changes.reshape(sizes)
    for d in range(found.ndim):
        found = found.cumsum(d)
    return found[(slice(-1),) * found.ndim]
