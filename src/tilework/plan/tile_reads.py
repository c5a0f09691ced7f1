"""Storage chunks under a mask where blocks read their tiles one by one: those that a running tile touches.

A task reads all between its first and its last tile that run at once, unless its tiles alone are fewer
samples. Then it reads tile by tile, and keeps the chunks of one for the next.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilework._types import Array, Bits, Index, Ints
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any, box_sums, weighed_sum
from tilework.plan.masked_reads import (
    CELLS,
    ByTile,
    MaskedReads,
    beside_of,
    chunks_of,
    covering,
    ends_of_runs,
    firsts_of,
    places_of,
    product_of,
    samples_of,
    tiles_of,
)
from tilework.plan.tables import BlockPlan
from tilework.plan.tile_mask import TileMask, in_order
from tilework.source.padding import Boundary

__all__ = ["blocks_by_tile", "read_in_blocks", "read_once"]


def blocks_by_tile(plan: BlockPlan, most: int) -> ByTile | None:
    """Return the blocks that read their tiles one by one; None if there are none.

    Raises
    ------
    OverflowError
        If there are more than ``most`` products of classes of blocks.
    """
    mask, tiles = plan.mask, tuple(tiles_of(plan, touching=False))
    assert mask is not None
    groups = [mask.groups(d, spans) for d, spans in enumerate(tiles)]
    # Blocks of which all tiles run or none read no sample between them: strides are no longer than crops.
    if not mask.bits.size or all((along.lengths <= 1).all() for along in groups):
        return None
    firsts = tuple(map(_alike, groups, plan.axes, tiles))
    if math.prod(map(len, firsts)) > most:
        raise OverflowError
    some = [Spans(along.low[first], along.high[first]) for along, first in zip(tiles, firsts, strict=True)]
    classes = [mask.groups(d, spans) for d, spans in enumerate(some)]
    ends = tuple(ends_of_runs(mask, classes, d) for d in range(len(tiles)))
    crops = mask.counts(some)
    alone = (crops > 0) & (crops * math.prod(a.crop for a in plan.axes) < _between(plan, some, ends))
    return ByTile(tiles, firsts, ends, alone) if alone.any() else None


def _alike(groups: Spans, axis: AxisGrid, tiles: Spans) -> Ints:
    """Return the first block of each class: neighbours in one group, with as many tiles and samples."""
    starts, stops = axis.read_ends()
    most = len(starts) - 1
    length = stops.take(np.maximum(tiles.high - 1, 0)) - starts.take(np.minimum(tiles.low, most))
    new = np.zeros(len(tiles.low), bool)
    new[firsts_of(groups, axis, tiles)] = True
    new |= groups.lengths > 1
    for facts in (tiles.lengths, length):
        new[1:] |= facts[1:] != facts[:-1]
    return np.flatnonzero(new)


def _between(plan: BlockPlan, tiles: Sequence[Spans], runs: Sequence[tuple[Ints, Ints]]) -> Array:
    """Return the samples from the first tile that runs to the last, for each product of ranges of tiles."""
    assert plan.mask is not None
    lengths = []
    for d, (axis, spans, pair) in enumerate(zip(plan.axes, tiles, runs, strict=True)):
        low, high = samples_of(axis, plan.mask.ends[d], spans, *pair)
        lengths.append(np.moveaxis(high - low, 0, d))
    return functools.reduce(np.multiply, lengths)


# -- chunks -----------------------------------------------------------------------------------------------


def read_once(plan: BlockPlan, chunks: Index, by_tile: ByTile) -> int | None:
    """Return the number of chunks that some block reads; None if that takes too much memory."""
    assert plan.mask is not None
    others = MaskedReads.of(plan, chunks, by_tile=by_tile)
    boxes = others.boxes()
    places, ranges, besides = [], [], []
    for d, (known, n) in enumerate(zip(places_of(boxes, others.grid), others.grid, strict=True)):
        one = Spans(np.zeros(1, np.int64), np.array([len(plan.axes[d])]))
        pairs = _Pairs.of(plan, d, one, chunks[d])
        groups = plan.mask.groups(d, pairs.tiles)
        new = np.append(True, (groups.low[1:] != groups.low[:-1]) | (groups.high[1:] != groups.high[:-1]))
        ends = np.flatnonzero(np.append(np.diff(pairs.chunks) != 1, True))
        padded = pairs.chunks[pairs.besides[1]]
        at = in_order([0, n], known, pairs.chunks[new], pairs.chunks[ends] + 1, padded, padded + 1)
        # What no tile reads is in no pair.
        kind = np.minimum(np.searchsorted(pairs.chunks, at[:-1]), len(pairs.chunks) - 1)
        some = pairs.chunks[kind] == at[:-1]
        ranges.append(Spans(*(np.where(some, group[kind], 0) for group in groups)))
        besides.append(np.stack((pairs.besides[0], np.searchsorted(at, padded))))
        places.append(at)
    if math.prod(map(len, places)) > CELLS:
        return None
    read = _read_by_any(plan.mask, ranges, besides) | (covering(boxes, places, others.grid) > 0)
    return weighed_sum(read, [np.diff(at) for at in places])


def read_in_blocks(plan: BlockPlan, chunks: Index, by_tile: ByTile, *, keeps: bool) -> int | None:
    """Return the number of chunks that blocks read, counted once for each block; None as in `read_once`.

    Where a task does not keep chunks, they are counted for each tile that it reads.
    """
    assert plan.mask is not None
    others = MaskedReads.of(plan, chunks, by_tile=by_tile, keeps=keeps).total()
    numbers = [_classes(ends, spans) for ends, spans in zip(by_tile.firsts, by_tile.tiles, strict=True)]
    if not keeps:
        if math.prod(map(len, numbers)) > CELLS:
            return None
        return others + int(_sizes(plan, chunks, by_tile)[by_tile.alone[np.ix_(*numbers)]].sum())
    ranges, besides = [], []
    for d, (spans, chunk) in enumerate(zip(by_tile.tiles, chunks, strict=True)):
        pairs = _Pairs.of(plan, d, spans, chunk)
        ranges.append(plan.mask.groups(d, pairs.tiles))
        besides.append(pairs.besides)
        numbers[d] = numbers[d][pairs.blocks]
    if math.prod(map(len, numbers)) > CELLS:
        return None
    read = _read_by_any(plan.mask, ranges, besides)
    return others + int(np.count_nonzero(read & by_tile.alone[np.ix_(*numbers)]))


def _classes(firsts: Ints, blocks: Spans) -> Ints:
    """Return the class of each block along an axis."""
    return np.searchsorted(firsts, np.arange(len(blocks.low)), "right") - 1


def _read_by_any(mask: TileMask, ranges: Sequence[Spans], besides: Sequence[Ints]) -> Bits:
    """Return whether any tile runs in each product of ranges of groups, or of tiles ``besides``."""
    found: Bits = product_of(
        lambda bits, spans, _: box_any(bits, spans), np.logical_or, mask.bits, ranges, mask.ends, besides
    )
    return found


def _sizes(plan: BlockPlan, chunks: Index, by_tile: ByTile) -> Ints:
    """Return how many chunks the tiles of each block read, one tile after the other."""
    assert plan.mask is not None
    ranges, edges = [], []
    for axis, spans, chunk, ends in zip(plan.axes, by_tile.tiles, chunks, plan.mask.ends, strict=True):
        sizes, (padded, _) = _of_tiles(axis, plan.boundary, chunk, keeps=False)
        np.add.at(sizes, padded, 1)
        before = np.append(0, sizes.cumsum())
        ranges.append(Spans(before[spans.low], before[spans.high]))
        edges.append(before[ends])
    return box_sums(plan.mask.bits, ranges, edges)


def _of_tiles(axis: AxisGrid, boundary: Boundary, chunk: int, *, keeps: bool = True) -> tuple[Ints, Ints]:
    """Return on how many chunks each tile lies, and tiles with chunks that they read as padding besides."""
    each = Spans(np.arange(len(axis)), np.arange(1, len(axis) + 1))
    low, high = chunks_of(axis, *each, chunk)
    return high - low, beside_of(axis, each, (low, high), boundary, chunk, keeps=keeps)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The chunks that blocks of tiles may read along an axis."""

    blocks: Ints
    """The block of each pair; pairs are in the order of blocks, and then of chunks."""
    chunks: Ints
    """The chunk of each pair."""
    tiles: Spans
    """The tiles of the block that lie on the chunk."""
    besides: Ints
    """Two rows: further tiles that read a chunk, as padding, and the numbers of the pairs."""

    @classmethod
    def of(cls, plan: BlockPlan, d: int, blocks: Spans, chunk: int) -> _Pairs:
        """Return the pairs along axis ``d`` for blocks that run some tiles each."""
        axis, n = plan.axes[d], ceil_div(plan.shape[d], chunk)
        low, high = chunks_of(axis, *blocks, chunk)
        lengths = np.where(blocks.low < blocks.high, high - low, 0)
        number = np.repeat(np.arange(len(low)), lengths)
        own = number * n + np.arange(len(number)) - np.repeat(lengths.cumsum() - lengths - low, lengths)
        _, (tiles, padded) = _of_tiles(axis, plan.boundary, chunk)
        runs = [np.flatnonzero((blocks.low <= t) & (t < blocks.high)) for t in tiles]
        columns = zip(tiles, padded, runs, strict=True)
        more = [np.stack((np.full_like(b, t), b * n + c)) for t, c, b in columns]
        besides = np.concatenate([np.zeros((2, 0), np.int64), *more], axis=1)
        keys = in_order(own, besides[1])
        number, at = np.divmod(keys, n)
        starts, stops = axis.read_ends()
        first = np.maximum(stops.count_before(at * chunk, "right"), blocks.low[number])
        last = np.minimum(starts.count_before((at + 1) * chunk), blocks.high[number])
        besides[1] = np.searchsorted(keys, besides[1])
        return cls(number, at, Spans(first, np.maximum(first, last)), besides)
