"""Storage chunks that blocks read: when they are decoded, how long they are kept, and what that takes.

Blocks run in the order of keys, the slowest axis first. A chunk that several blocks read is decoded once if
it is kept from its first reader to its last. Between readers along the fastest axis lie a few chunks, between
readers along the slowest a plane of them, so memory may suffice for the fastest axes only. A plan therefore
has a *level*: the number of fastest axes along which chunks are kept. A chunk is let go at its last reader
along these axes, and is decoded again for the next row or plane of blocks. So what is decoded is known in
advance, whereas a cache that is too small for a plane would lose each chunk just before it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tilework._types import Array, Index, Ints
from tilework.grid.axis import ceil_div
from tilework.plan.axis_table import AxisTable, Spans
from tilework.plan.masked_reads import MaskedReads, common_chunks
from tilework.plan.tables import BlockPlan, SourcePlan
from tilework.plan.tile_mask import in_order
from tilework.plan.tile_reads import blocks_by_tile, read_in_blocks, read_once
from tilework.source.kept import Uses
from tilework.source.padding import source_index

__all__ = [
    "Kept",
    "as_dask_runs",
    "chunks_under_mask",
    "decoded_ratio",
    "is_bound",
    "kept_bytes",
    "kept_chunks",
    "kept_levels",
    "lost_axes",
    "most_chunks",
    "planned_ratio",
    "reads_own",
    "repeated_axes",
    "with_cache",
    "with_spare",
]

Plan = TypeVar("Plan", bound=BlockPlan)
Count = Callable[[BlockPlan, SourcePlan, bool], tuple[int, bool]]
# Most classes of blocks under a mask whose chunks are counted: some hundred bytes are needed for each.
CLASSES = 2**22
# Repetitions of blocks and chunks along an axis from which on they are not looked at one by one.
MANY_STEPS = 4
# Chunks along an axis per block from which on they are looked at in groups.
FEWER = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """What a process keeps of the chunks of one source."""

    uses: Uses
    """How many tasks read each chunk while it is kept."""
    limit: int
    """Most bytes of decoded chunks."""
    lost: Index
    """Grid axes along which chunks are not kept: blocks with other numbers along these share none."""
    lasts: Sequence[tuple[int, int, Ints]] = ()
    """For each grid axis that is kept, in the order of blocks: its number, that of the source's axis, and the
    last block that reads each chunk along it."""

    def row(self, block: Index) -> Index:
        """Return what blocks have in common between which chunks are kept."""
        return tuple(block[d] for d in self.lost)

    def rank(self, block: Index) -> Index:
        """Return the place of a block among those of its row, to be compared."""
        return tuple(block[d] for d, _, _ in self.lasts)

    def last(self, chunk: Index) -> Index:
        """Return the place after which no block of a row reads a chunk."""
        return tuple(int(blocks[chunk[axis]]) for _, axis, blocks in self.lasts)


def kept_chunks(
    plan: BlockPlan, number: int, shape: Index, chunks: Index, axes: Index, todo: BlockPlan | None = None
) -> Kept:
    """Return what a process keeps of the chunks of source ``number`` of a plan.

    Parameters
    ----------
    shape, chunks : tuple of int, samples per axis of the source
    axes : tuple of int
        The source's axis for each axis of the plan.
    todo : BlockPlan, optional
        The same plan with the tiles that a run computes, if these are not all. The memory is that of the
        whole plan: a run of some tiles would need more by its own count, as it may read them one by one.
    """
    holder = plan if todo is None else todo
    # Plans of the same tiles and blocks share what they hold.
    key = "kept", number, shape, chunks, axes, plan.cache_bytes, plan.order, plan.threads
    return holder.once(key, lambda: _kept_chunks(plan, number, shape, chunks, axes, holder))


def _kept_chunks(
    plan: BlockPlan, number: int, shape: Index, chunks: Index, axes: Index, active: BlockPlan
) -> Kept:
    source = plan.sources[number]
    assert source.chunks is not None
    lost = lost_axes(plan)
    level = len(plan.axes) - len(lost)
    others = (s for s in plan.sources if s is not source and s.chunks is not None)
    limit = plan.cache_bytes - sum(_source_bytes(plan, s, s.chunks or (), level) for s in others)
    lasts = _lasts(active, shape, source.chunks, axes, lost)
    if active.mask is not None and not lost:
        found = MaskedReads.of(active, source.chunks).uses()
        rest = tuple(a for a in range(len(shape)) if a not in axes)
        masked = np.expand_dims(found.counts.transpose(np.argsort(axes)), rest)
        # All chunks along an axis that is not of the grid are of one kind.
        kinds = [np.zeros(ceil_div(n, c), np.int64) for n, c in zip(shape, chunks, strict=True)]
        for axis, along in zip(axes, found.kinds, strict=True):
            kinds[axis] = along
        return Kept(Uses(masked, tuple(kinds)), limit, lost, lasts)
    counts = [np.ones(ceil_div(n, c), np.int64) for n, c in zip(shape, chunks, strict=True)]
    for d, axis in enumerate(axes):
        if d not in lost:
            first, stop = chunk_reads(active.tables[d], source.chunks[d], reads_own(active, d))
            changes = np.bincount(first, minlength=len(counts[axis]) + 1)
            changes -= np.bincount(stop, minlength=len(changes))
            counts[axis] = changes.cumsum()[:-1]
            _, beside = padding_reads(active.tables[d], source.chunks[d], reads_own(active, d))
            np.add.at(counts[axis], beside, 1)
    return Kept(Uses.product(counts), limit, lost, lasts)


def _lasts(
    plan: BlockPlan, shape: Index, chunks: Index, axes: Index, lost: Index
) -> list[tuple[int, int, Ints]]:
    """Return `Kept.lasts`; ``chunks`` are those along the grid axes."""
    found = []
    for d in _order(plan):
        if d not in lost:
            first, stop = chunk_reads(plan.tables[d], chunks[d], reads_own(plan, d))
            reading = np.flatnonzero(stop > first)
            each = np.arange(ceil_div(shape[axes[d]], chunks[d]))
            # A chunk that is never read may get any block.
            place = np.searchsorted(first[reading], each, "right") - 1
            lasts = reading[place] if len(reading) else np.zeros_like(each)
            blocks, beside = padding_reads(plan.tables[d], chunks[d], reads_own(plan, d))
            np.maximum.at(lasts, beside, blocks)
            found.append((d, axes[d], lasts))
    return found


# -- levels -----------------------------------------------------------------------------------------------


def with_cache(plan: Plan, room: float) -> Plan:
    """Return a plan that keeps chunks along as many axes as ``room`` bytes suffice for."""
    if room < 0:
        return plan.with_cache(0)  # the chunks of a plan that does not fit need not be counted
    return plan.with_cache(next((need for need in kept_levels(plan) if need <= room), 0))


def kept_levels(plan: BlockPlan) -> Iterator[int]:
    """Yield the bytes of chunks that are kept along all axes, all but the slowest, and so on."""
    return (_bytes_at(plan, level) for level in range(len(plan.axes), -1, -1))


def with_spare(plan: Plan, room: float) -> Plan:
    """Return a plan that may use up to ``room`` bytes for chunks where the order of blocks is not known.

    dask runs the blocks of a lazy array in an order of its own, and a thread may be far ahead of another.
    """
    if not plan.cache_bytes:
        return plan
    every = sum(
        s.sample_bytes * math.prod(f.total for f in _facts(plan, s.chunks))
        for s in plan.sources
        if s.chunks is not None and s.shared
    )
    return plan.with_cache(max(plan.cache_bytes, int(min(every, room))))


def lost_axes(plan: BlockPlan) -> Index:
    """Return the axes along which chunks are not kept, so that blocks decode them again."""
    order, n = _order(plan), len(plan.axes)
    level = next((k for k in range(n, 0, -1) if _bytes_at(plan, k) <= plan.cache_bytes), 0)
    return tuple(order[: n - level])


def repeated_axes(plan: BlockPlan) -> Index:
    """Return the same, and all axes if there are chunks that no other task may use."""
    return lost_axes(plan) if all(s.shared for s in plan.sources) else tuple(_order(plan))


def _order(plan: BlockPlan) -> list[int]:
    """Return the axes in the order of blocks, slowest first; slabs come one after the other."""
    cut = plan.slab_axes
    return [*cut, *(d for d in plan.slow_axes if d not in cut)]


def kept_bytes(plan: BlockPlan) -> int:
    """Return the bytes of chunks that a process keeps so that none is decoded again."""
    return _bytes_at(plan, len(plan.axes))


def _bytes_at(plan: BlockPlan, level: int) -> int:
    """Return the most bytes of chunks that a process keeps at a level."""
    return sum(_source_bytes(plan, s, s.chunks, level) for s in plan.sources if s.chunks is not None)


def _source_bytes(plan: BlockPlan, source: SourcePlan, chunks: Index, level: int) -> int:
    order, facts = _order(plan), _facts(plan, chunks)
    lost = order[: len(order) - level]
    # A task that reads its crops one by one, or what padding repeats, reads some chunks several times.
    again = plan.mask is not None or any(a.edge == "pad" or a.stride > a.crop for a in plan.axes)
    own = plan.threads * math.prod(f.widest for f in facts) if again else 0.0
    if not source.shared or not level:
        return int(source.sample_bytes * own)
    # ``live`` bounds the chunks that some blocks have read and others will read, over the axes so far, and
    # ``own_live`` also has those that one block alone reads, which blocks along slower axes may read too.
    every, live, own_live, new, alone = 1.0, 0.0, 1.0, 1.0, 1.0
    for d in reversed(order[len(lost) :]):
        if d in plan.slab_axes:
            live = own_live = every = every * facts[d].widest
        else:
            places = facts[d].places
            live = max((s * every + b * own_live + a * live for s, b, a in places), default=0.0)
            own_live = max((s * every + (b + a) * own_live for s, b, a in places), default=0.0)
            every *= facts[d].total
        new, alone = new * facts[d].new, alone * facts[d].alone
    if live:
        # Tasks that run at the same time may begin before the tasks of earlier blocks.
        live = min(every, live + _openers(plan, order, facts) * (new - alone))
    kept = own + live * math.prod(facts[d].widest for d in lost)
    if not lost:
        kept = min(kept, math.prod(f.total for f in facts))  # a chunk of a task may be one that waits, too
    return int(source.sample_bytes * kept)


def _openers(plan: BlockPlan, order: Sequence[int], facts: Sequence[_AxisChunks]) -> int:
    """Return how many of the blocks that may run too early can be the first to read a chunk.

    Along axes along which chunks are longer than blocks, only one of all blocks is.
    """
    early, together = 2 * (plan.threads - 1), 1
    for d in reversed(order):
        if facts[d].openers > 1:
            break
        together *= plan.blocks[d]
    return ceil_div(early, together)


@dataclass(frozen=True, slots=True)
class _AxisChunks:
    """Facts on the chunks along one axis."""

    count: int
    """Number of chunks along the axis."""
    once: int
    """Number of chunks that any block reads."""
    reads: int
    """Number of chunks that all blocks read, one after the other."""
    decoded: int
    """The same where tasks keep no chunks, so that some are decoded twice in a task."""
    total: int
    """Samples of the chunks that any block reads."""
    longest: int
    """Most chunks side by side that a block reads."""
    widest: int
    """Most samples of the chunks of a block."""
    new: int
    """Most samples of the chunks that a block is the first to read."""
    alone: int
    """How many of these no other block reads."""
    openers: int
    """Number of blocks that are the first to read a chunk."""
    places: tuple[tuple[int, int, int], ...]
    """For each kind of block, three numbers of samples: of the chunks that are live beside all chunks along
    the faster axes, of those that are live beside the live ones, and of those that only this block reads."""


def _facts(plan: BlockPlan, chunks: Index) -> list[_AxisChunks]:
    # Plans of the same tiles share a table, and those of the same blocks share all.
    return plan.once(("facts", chunks), lambda: _facts_of(plan, chunks))


def _facts_of(plan: BlockPlan, chunks: Index) -> list[_AxisChunks]:
    columns = zip(plan.tables, chunks, strict=True)
    return [_facts_along(table, chunk, reads_own(plan, d)) for d, (table, chunk) in enumerate(columns)]


def reads_own(plan: BlockPlan, d: int) -> bool:
    """Return whether blocks read what their own tiles do along an axis, not what all do that touch them."""
    return plan.reuse == "share" and d not in plan.slab_axes


def most_chunks(table: AxisTable, chunk: int, own: bool) -> int:
    """Return the most chunks that a block reads along an axis; at least 1."""
    return max(1, _facts_along(table, chunk, own).longest)


def _facts_along(table: AxisTable, chunk: int, own: bool) -> _AxisChunks:
    """Return the facts of one axis; ``own`` as `reads_own` says."""
    return table.once(("chunks", chunk, own), lambda: _repeated_facts(table, chunk, own))


def _repeated_facts(table: AxisTable, chunk: int, own: bool) -> _AxisChunks:
    """Return the same, worked out.

    Along many blocks, the facts of a short image and of one with one more repetition tell those of any.
    """
    grid, step, steps = table.grid.shorter(math.lcm(table.size, chunk))
    if steps < MANY_STEPS:
        return _chunks_along(table, chunk, own)
    # Two steps more than tiles need: a chunk, which may be a step long, reaches out of what repeats.
    grids = [replace(grid, extent=grid.extent + more * step) for more in (1, 2)]
    one, two = (_chunks_along(replace(table, grid=g), chunk, own) for g in grids)
    grown = {
        name: getattr(two, name) + (steps - 2) * (getattr(two, name) - getattr(one, name))
        for name in ("count", "once", "reads", "decoded", "total", "openers")
    }
    return replace(two, **grown)


def chunk_reads(table: AxisTable, chunk: int, own: bool) -> Ints:
    """Return the first chunk that each block reads along an axis, and the one after the last; two rows."""
    return table.once(("reads", chunk, own), lambda: _chunk_reads(table, chunk, own))


def _chunk_reads(table: AxisTable, chunk: int, own: bool) -> Ints:
    start, stop = _samples(table, own)
    first = np.maximum(start, 0) // chunk
    last = -(-np.minimum(stop, table.grid.extent) // chunk)
    return np.stack((first, np.where(stop > start, np.maximum(last, first), first)))


def _samples(table: AxisTable, own: bool) -> Spans:
    """Return the samples that each block reads along an axis; these may lie outside the image."""
    return table.owned_reads if own else table.touching_reads


def padding_reads(table: AxisTable, chunk: int, own: bool) -> Ints:
    """Return blocks and chunks that they read for padding, beside those of `chunk_reads`; two rows.

    A wrapped axis goes on at its other end, and a mirror may lie before the tiles of the last block.
    """
    return table.once(("padding", chunk, own), lambda: _padding_reads(table, chunk, own))


def _padding_reads(table: AxisTable, chunk: int, own: bool) -> Ints:
    extent = table.grid.extent
    start, stop = _samples(table, own)
    first, last = chunk_reads(table, chunk, own)
    found = [np.zeros((2, 0), np.int64)]
    for block in np.flatnonzero((start < 0) | (stop > extent)).tolist():
        a, b = int(start[block]), int(stop[block])
        outside = np.concatenate((np.arange(a, min(b, 0)), np.arange(max(a, extent), b)))
        samples = source_index(outside, extent, table.boundary)
        chunks = np.unique(samples[samples >= 0] // chunk)
        chunks = chunks[(chunks < first[block]) | (chunks >= last[block])]
        found.append(np.stack((np.full_like(chunks, block), chunks)))
    return np.concatenate(found, axis=1)


def _chunks_along(table: AxisTable, chunk: int, own: bool) -> _AxisChunks:
    """Return the same, from all blocks.

    Many small chunks take no longer than few: those side by side that the same blocks read are one group.
    """
    extent, reads = table.grid.extent, chunk_reads(table, chunk, own)
    count, n = ceil_div(extent, chunk), reads.shape[1]
    by, beside = padding_reads(table, chunk, own)
    # Where groups begin; each chunk is one if they would hardly be fewer.
    groups = np.arange(count + 1)
    if count > FEWER * n:
        groups = in_order(*reads, np.sort(beside), np.sort(beside + 1), [0, count])
    sizes = np.diff(np.minimum(groups * chunk, extent))
    widths = np.minimum(reads[1] * chunk, extent) - np.minimum(reads[0] * chunk, extent)
    np.add.at(widths, by, np.minimum((beside + 1) * chunk, extent) - beside * chunk)
    [blocks] = np.nonzero(widths)
    if not len(blocks):
        return _AxisChunks(count, 0, 0, 0, 0, 0, 0, 0, 0, 0, ())
    # The first and the last block that reads each group.
    first, stop = reads[:, blocks]
    numbers, chunks = groups[:-1], np.diff(groups)
    begin = np.minimum(np.searchsorted(stop, numbers, side="right"), len(blocks) - 1)
    end = np.maximum(np.searchsorted(first, numbers, side="right") - 1, 0)
    read = (first[begin] <= numbers) & (numbers < stop[begin])
    begin, end = blocks[begin], blocks[end]
    if not read.all():  # with a million chunks, copies of those that are read took half of the time
        begin[~read], end[~read] = n, -1
    among = np.searchsorted(groups, beside)
    np.minimum.at(begin, among, by)
    np.maximum.at(end, among, by)
    if not (read := begin <= end).all():
        begin, end, sizes, chunks = begin[read], end[read], sizes[read], chunks[read]

    def total(at: Ints, which: Array) -> Ints:
        return np.bincount(at[which], sizes[which], minlength=n + 1).astype(np.int64)

    through, several = end > begin + 1, end > begin
    within = (total(begin + 1, through) - total(end, through)).cumsum()[:n]
    opens, closes = total(begin, several)[:n], total(end, several)[:n]
    alone = total(begin, ~several)[:n]
    widest_new = int((opens + alone).argmax())
    # While the blocks of one number run, what they open is live behind the place that was reached in their
    # plane, and what they close is live ahead of it: together a plane, and twice what is live in the plane.
    stay, both = within + np.maximum(opens, closes), np.minimum(opens, closes)
    every = int((reads[1] - reads[0]).sum()) + len(by)
    twice = common_chunks(table.grid, _samples(table, own), table.boundary, chunk).shape[1]
    return _AxisChunks(
        count, int(chunks.sum()), every, every + twice, int(sizes.sum()),
        int((reads[1] - reads[0]).max()), int(widths.max()),
        int((opens + alone)[widest_new]), int(alone[widest_new]),
        int(np.count_nonzero(opens + alone)),
        _largest(stay, both, alone),
    )  # fmt: skip


def _largest(stay: Ints, both: Ints, alone: Ints) -> tuple[tuple[int, int, int], ...]:
    """Return, for each pair of ``both`` and ``alone``, the largest of ``stay`` and the pair.

    np.unique(axis=0) would do, in 50 times the time.
    """
    order = np.lexsort((stay, both, alone))
    stay, both, alone = stay[order], both[order], alone[order]
    last = np.append((both[1:] != both[:-1]) | (alone[1:] != alone[:-1]), True)
    return tuple(zip(stay[last].tolist(), both[last].tolist(), alone[last].tolist(), strict=True))


# -- what is decoded --------------------------------------------------------------------------------------


def decoded_ratio(plan: BlockPlan) -> float:
    """Return decoded source bytes per image byte, for blocks that run in the order of keys.

    Sources without chunks count with the samples that blocks read. With several sources, the mean over their
    bytes.
    """
    return _mean_ratio(plan, chunks_as_read)


def as_dask_runs(plan: Plan) -> Plan:
    """Return a plan as dask runs its blocks by itself: in the order of their keys, and as no run of ours."""
    sources = tuple(replace(s, shared=s.shared and not s.in_runs) for s in plan.sources)
    return plan.with_sources(sources).with_order(range(plan.n_each, len(plan.axes)))


def planned_ratio(plan: BlockPlan) -> float:
    """Return about the same; plans are chosen by it, as it is cheaper.

    It counts as if no block read its tiles one by one, unless tasks keep no chunk. Then each tile decodes
    its chunks again, which may be 50 times as many.
    """
    if not plan.cache_bytes:
        return decoded_ratio(plan)
    return _mean_ratio(
        plan, lambda plan, source, once: chunks_under_mask(plan, _chunks(plan, source), once=once)
    )


def _mean_ratio(plan: BlockPlan, count: Count) -> float:
    total = sum(s.sample_bytes for s in plan.sources)
    return sum(s.sample_bytes * _source_ratio(plan, s, count) for s in plan.sources) / max(1, total)


def _source_ratio(plan: BlockPlan, source: SourcePlan, count: Count) -> float:
    if source.chunks is None and plan.mask is not None:
        return count(plan, source, False)[0] / math.prod(plan.shape)
    if source.chunks is None:
        ratio = 1.0
        for d, table in enumerate(plan.tables):
            own, n = reads_own(plan, d), plan.shape[d]
            low, high = _samples(table, own)
            inside = int(np.maximum(0, np.minimum(high, n) - np.maximum(low, 0)).sum())
            ratio *= (inside + padding_reads(table, 1, own).shape[1]) / n
        return ratio
    facts = _facts(plan, source.chunks)
    lost = lost_axes(plan) if source.shared else range(len(facts))
    reads = [f.reads if plan.cache_bytes else f.decoded for f in facts]
    again = math.prod(reads[d] / max(1, facts[d].once) for d in lost)
    if plan.mask is None:
        return again * math.prod(f.once / f.count for f in facts)
    every, each = math.prod(f.count for f in facts), len(lost) == len(facts)
    found, _ = count(plan, source, not each)
    return found / every if each else again * found / every


def is_bound(plan: BlockPlan) -> bool:
    """Return whether `decoded_ratio` is no more than a bound, as counting would take too much memory."""
    if plan.mask is None:
        return False
    exact = []
    for source in plan.sources:
        kept = source.chunks is not None and source.shared and len(lost_axes(plan)) < len(plan.shape)
        exact.append(chunks_as_read(plan, source, kept)[1])
    return not all(exact)


def _chunks(plan: BlockPlan, source: SourcePlan) -> Index:
    """Return the chunks of a source; those of one that has none are its samples."""
    return source.chunks or (1,) * len(plan.shape)


def chunks_as_read(plan: BlockPlan, source: SourcePlan, once: bool) -> tuple[int, bool]:
    """Return what `chunks_under_mask` does where some blocks may read their tiles one by one."""
    chunks = _chunks(plan, source)
    if source.given or source.in_memory:
        return chunks_under_mask(plan, chunks, once=once)
    keeps = source.chunks is not None and plan.cache_bytes > 0
    return plan.once(
        ("read", chunks, once, keeps), lambda: _chunks_as_read(plan, chunks, once=once, keeps=keeps)
    )


def _chunks_as_read(plan: BlockPlan, chunks: Index, *, once: bool, keeps: bool) -> tuple[int, bool]:
    try:
        by_tile = plan.once("by tile", lambda: blocks_by_tile(plan, CLASSES))
    except OverflowError:
        return chunks_under_mask(plan, chunks, once=once)[0], False
    if by_tile is None:
        return chunks_under_mask(plan, chunks, once=once)
    found = read_once(plan, chunks, by_tile) if once else read_in_blocks(plan, chunks, by_tile, keeps=keeps)
    return (chunks_under_mask(plan, chunks, once=once)[0], False) if found is None else (found, True)


def chunks_under_mask(plan: BlockPlan, chunks: Index, *, once: bool) -> tuple[int, bool]:
    """Return the chunks that blocks read under a mask, and whether they are counted; else they are a bound.

    They are counted ``once``, or once for each block, which reads all from its first tile to its last; or as
    often as it decodes them where tasks keep none.
    """
    keeps = once or plan.cache_bytes > 0
    return plan.once(
        ("masked", chunks, once, keeps), lambda: _masked_reads(plan, chunks, once=once, keeps=keeps)
    )


def _masked_reads(plan: BlockPlan, chunks: Index, *, once: bool, keeps: bool) -> tuple[int, bool]:
    if MaskedReads.classes(plan) > CLASSES:
        facts = _facts(plan, chunks)
        return math.prod(f.once if once else f.reads if keeps else f.decoded for f in facts), False
    reads = MaskedReads.of(plan, chunks, keeps=keeps)
    if not once:
        return reads.total(), True
    if (found := reads.once()) is not None:
        return found, True
    return min(reads.total(), math.prod(f.once for f in _facts(plan, chunks))), False
