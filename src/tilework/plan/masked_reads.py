"""Storage chunks that blocks read under a mask: from the first tile of a block that runs to its last.

Consecutive blocks along an axis that have the same groups of tiles are a *class*. Where the other blocks lie
among classes is all that decides which of a block's tiles run along an axis, so questions are answered by
class, and a coarse mask costs what it takes itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilework._types import Array, Bits, Index, Ints
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any, weighed_sum
from tilework.plan.tables import BlockPlan
from tilework.source.kept import Uses

__all__ = ["MaskedReads"]


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

    @classmethod
    def of(cls, plan: BlockPlan, chunks: Index) -> MaskedReads:
        """Return what the blocks of a plan with a mask read; ``chunks`` are lengths per grid axis."""
        mask = plan.mask
        assert mask is not None
        tiles = plan.shared if plan.reuse == "share" else [t.touches for t in plan.tables]
        groups = [mask.groups(d, spans) for d, spans in enumerate(tiles)]
        firsts = [
            np.flatnonzero(np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])))
            for low, high in groups
        ]
        classes = [Spans(low[new], high[new]) for (low, high), new in zip(groups, firsts, strict=True)]
        along, lows, highs = [], [], []
        for d, (axis, chunk) in enumerate(zip(plan.axes, chunks, strict=True)):
            ends, (below, above) = mask.ends[d], classes[d]
            each = np.arange(len(ends) - 1)
            single = [spans if e != d else Spans(each, each + 1) for e, spans in enumerate(classes)]
            first, last = _ends_of_runs(np.moveaxis(box_any(mask.bits, single), d, 0), classes[d])
            # The first tile of a group is that of the block unless the group is the block's first.
            # A group more, as there may be none.
            low, high = (np.append(of, 0) for of in _chunks_of(axis, ends[:-1], ends[1:], chunk))
            column = (-1,) + (1,) * (first.ndim - 1)
            heads = np.where(first == below.reshape(column), OWN, low[first])
            tails = np.where(last == above.reshape(column) - 1, OWN, high[last])
            heads[first > last] = tails[first > last] = 0
            lows.append(np.moveaxis(heads, 0, d))
            highs.append(np.moveaxis(tails, 0, d))
            sizes = np.diff(np.append(firsts[d], len(tiles[d].low)))
            along.append(_Along(firsts[d], sizes, *_chunks_of(axis, *tiles[d], chunk)))
        grid = tuple(ceil_div(n, c) for n, c in zip(plan.shape, chunks, strict=True))
        return cls(grid, tuple(along), tuple(lows), tuple(highs))

    def uses(self) -> Uses:
        """Return the number of blocks that read each chunk."""
        places, counts = _covering(*self._of_blocks(), self.grid)
        # Before the first place, and from the last one on, no block reads.
        kinds = (np.searchsorted(at, np.arange(n), "right") for at, n in zip(places, self.grid, strict=True))
        return Uses(np.pad(counts, 1), tuple(kinds))

    def total(self) -> int:
        """Return the number of chunks that blocks read, counted once for each block."""
        lengths: list[Array] = []
        for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True)):
            before, after = (
                _entries(values, d, a.sizes, np.add.reduceat(own, a.firsts))
                for values, own in ((low, a.low), (high, a.high))
            )
            lengths.append(after - before)
        # Products that wrap around do not matter if the sum fits into 64 bits.
        if functools.reduce(np.multiply, [n.astype(float) for n in lengths]).sum() >= 2**62:
            lengths = [n.astype(object) for n in lengths]
        return int(functools.reduce(np.multiply, lengths).sum())

    def once(self) -> int:
        """Return the number of chunks that some block reads."""
        places, counts = _covering(*self._of_classes(), self.grid)
        return weighed_sum(counts > 0, [np.diff(at) for at in places])

    def _of_blocks(self) -> tuple[list[Ints], list[Ints]]:
        """Return the first chunk of each block along each axis, and one past its last."""
        lows, highs = [], []
        place = np.ix_(*(np.repeat(np.arange(len(a.sizes)), a.sizes) for a in self.along))
        for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True)):
            lows.append(_entries(low[place], d, 1, a.low))
            highs.append(_entries(high[place], d, 1, a.high))
        return lows, highs

    def _of_classes(self) -> tuple[list[Ints], list[Ints]]:
        """Return the same for the blocks of each class together.

        No chunk between them is left out, as strides are no longer than crops.
        """
        lows, highs = [], []
        for d, (a, low, high) in enumerate(zip(self.along, self.lows, self.highs, strict=True)):
            lows.append(_entries(low, d, 1, a.low[a.firsts]))
            highs.append(_entries(high, d, 1, a.high[a.firsts + a.sizes - 1]))
        return lows, highs


def _chunks_of(axis: AxisGrid, low: Ints, high: Ints, chunk: int) -> tuple[Ints, Ints]:
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


def _ends_of_runs(runs: Bits, groups: Spans) -> tuple[Ints, Ints]:
    """Return the first and the last group that runs in each range of groups along the first axis.

    The first is after the last where none runs; both may be one past the last group.
    """
    n = len(runs)
    # numpy accumulates along the first axis many entries at a time, and short numbers in half the time.
    each = np.arange(n + 1, dtype=np.int32).reshape((-1,) + (1,) * (runs.ndim - 1))
    after, before = (np.empty((n + 1, *runs.shape[1:]), np.int32) for _ in range(2))
    # From a group on, and before it.
    after[n], before[0] = n, -1
    after[:-1], before[1:] = np.where(runs, each[:-1], n), np.where(runs, each[:-1], -1)
    np.minimum.accumulate(after[::-1], 0, out=after[::-1])
    np.maximum.accumulate(before, 0, out=before)
    return after.take(groups.low, 0), before.take(groups.high, 0)


def _covering(lows: Sequence[Ints], highs: Sequence[Ints], grid: Sequence[int]) -> tuple[list[Ints], Ints]:
    """Return places along each axis, between which chunks are in the same boxes, and in how many they are."""
    places, ends = [], []
    for low, high, n in zip(lows, highs, grid, strict=True):
        some = np.zeros(n + 1, bool)
        some[low] = some[high] = True
        places.append(np.flatnonzero(some))
        number = some.cumsum() - 1
        ends.append((number[low], number[high]))
    inside = functools.reduce(np.logical_and, (low < high for low, high in ends))
    ends = [(low[inside], high[inside]) for low, high in ends]
    # Each box adds one: to the differences at its corners, which are then summed up.
    sizes = [len(at) for at in places]
    changes = np.zeros(math.prod(sizes), np.int64)
    for corner in itertools.product((0, 1), repeat=len(ends)):
        place = np.ravel_multi_index(tuple(pair[c] for pair, c in zip(ends, corner, strict=True)), sizes)
        changes += (-1) ** sum(corner) * np.bincount(place, minlength=len(changes))
    found = changes.reshape(sizes)
    for d in range(found.ndim):
        found = found.cumsum(d)
    return places, found[(slice(-1),) * found.ndim]
