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
from tilework.grid.axis import ceil_div
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any, weighed_sum
from tilework.plan.tables import BlockPlan
from tilework.source.kept import Uses

__all__ = ["MaskedReads"]


@dataclass(frozen=True, slots=True)
class MaskedReads:
    """Chunks that the blocks of a plan read along each axis, of one source."""

    grid: Index
    """Number of chunks per grid axis."""
    firsts: tuple[Ints, ...]
    """Per axis, the first block of each class."""
    lows: tuple[Ints, ...]
    """Per axis, the first chunk that each block reads along it; along the other axes, one entry per class."""
    highs: tuple[Ints, ...]
    """One past the last; no more than the first for a block that reads nothing."""

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
        lows, highs = [], []
        for d, (axis, chunk) in enumerate(zip(plan.axes, chunks, strict=True)):
            ends = np.append(mask.ends[d], 0)
            each = np.arange(len(ends) - 2)
            single = [spans if e != d else Spans(each, each + 1) for e, spans in enumerate(classes)]
            first, last = _ends_of_runs(np.moveaxis(box_any(mask.bits, single), d, -1), groups[d])
            some = (first <= last) & (tiles[d].low < tiles[d].high)
            # Any tile stands for none, which is left out below.
            first, last = (np.where(some, places, 0) for places in (first, last))
            head = np.maximum(tiles[d].low, ends[first])
            tail = np.minimum(tiles[d].high, ends[last + 1]) - 1
            # A place more, as none may have a tile.
            starts, stops = (np.append(places, 0) for places in axis.reads())
            low = np.where(some, np.maximum(starts[head], 0) // chunk, 0)
            high = np.where(some, ceil_div(np.minimum(stops[tail], axis.extent), chunk), 0)
            lows.append(np.moveaxis(low, -1, d))
            highs.append(np.moveaxis(high, -1, d))
        grid = tuple(ceil_div(n, c) for n, c in zip(plan.shape, chunks, strict=True))
        return cls(grid, tuple(firsts), tuple(lows), tuple(highs))

    def uses(self) -> Uses:
        """Return the number of blocks that read each chunk."""
        places, counts = _covering(*self._of_blocks(), self.grid)
        # Before the first place, and from the last one on, no block reads.
        kinds = (np.searchsorted(at, np.arange(n), "right") for at, n in zip(places, self.grid, strict=True))
        return Uses(np.pad(counts, 1), tuple(kinds))

    def total(self) -> int:
        """Return the number of chunks that blocks read, counted once for each block."""
        lengths: list[Array] = [
            np.add.reduceat(np.maximum(high - low, 0), first, axis=d)
            for d, (low, high, first) in enumerate(zip(self.lows, self.highs, self.firsts, strict=True))
        ]
        if math.prod(int(n.sum()) for n in lengths) >= 2**63:
            lengths = [n.astype(object) for n in lengths]
        return int(functools.reduce(np.multiply, lengths).sum())

    def once(self) -> int:
        """Return the number of chunks that some block reads."""
        places, counts = _covering(*self._of_classes(), self.grid)
        return weighed_sum(counts > 0, [np.diff(at) for at in places])

    def _of_blocks(self) -> tuple[list[Ints], list[Ints]]:
        """Return the first chunk of each block along each axis, and one past its last."""
        sizes = [low.shape[d] for d, low in enumerate(self.lows)]
        classes = [
            np.repeat(np.arange(len(first)), np.diff(np.append(first, n)))
            for first, n in zip(self.firsts, sizes, strict=True)
        ]
        lows, highs = [], []
        for d in range(len(sizes)):
            place = np.ix_(*(np.arange(n) if e == d else classes[e] for e, n in enumerate(sizes)))
            lows.append(self.lows[d][place])
            highs.append(self.highs[d][place])
        return lows, highs

    def _of_classes(self) -> tuple[list[Ints], list[Ints]]:
        """Return the same for the blocks of each class together.

        No chunk between them is left out, as strides are no longer than crops.
        """
        lows, highs = [], []
        for d, (low, high, first) in enumerate(zip(self.lows, self.highs, self.firsts, strict=True)):
            last = np.append(first[1:], low.shape[d]) - 1
            lows.append(low.take(first, d))
            highs.append(high.take(last, d))
        return lows, highs


def _ends_of_runs(runs: Bits, groups: Spans) -> tuple[Ints, Ints]:
    """Return the first and the last group that runs in each range of groups along the last axis.

    The first is after the last where none runs.
    """
    each = np.arange(runs.shape[-1] + 1)
    none = np.zeros((*runs.shape[:-1], 1), bool)
    # From a group on, and before it.
    after = np.where(np.concatenate((runs, none), -1), each, len(each))
    after = np.minimum.accumulate(after[..., ::-1], -1)[..., ::-1]
    before = np.where(np.concatenate((none, runs), -1), each - 1, -1)
    before = np.maximum.accumulate(before, -1)
    return after.take(groups.low, -1), before.take(groups.high, -1)


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
