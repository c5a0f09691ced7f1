"""The peak memory of a plan: what a task holds in its two phases, and what a process keeps between tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tilework.plan.decoding import chunks_under_mask, kept_bytes, most_chunks, reads_own
from tilework.plan.masked_reads import MaskedReads
from tilework.plan.output_plan import OutputPlan
from tilework.source.zarr_requests import at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilework._types import Index
    from tilework.grid.axis import AxisGrid
    from tilework.plan.axis_table import Spans
    from tilework.plan.tables import BlockPlan

__all__ = [
    "bound_bytes",
    "held_bytes",
    "in_order",
    "least_bytes",
    "parallel_bytes",
    "peak_bytes",
    "room_bytes",
    "seam_bytes",
    "tiles_of_blocks",
]

Plan = TypeVar("Plan", bound="BlockPlan")
# Another order than from the longest axis on has to keep less than this part of it.
ENOUGH = 0.9
# Masks of up to so many classes of blocks are looked at; among more, some block runs most of its tiles.
LOOKED_AT = 2**14
# Bytes of scratch memory in which a thread multiplies results by weights.
SCRATCH = 2**20


@dataclass(frozen=True, slots=True)
class _Task:
    """Bytes of one task, without what the function itself takes."""

    gathering: int
    """Samples that are read, chunks that are decoded, crops and results of a call."""
    finishing: int
    """What turns a canvas into the finished block."""
    held: int
    """Canvases and finished blocks."""
    largest: int
    """The largest array."""


@dataclass(frozen=True, slots=True)
class _Most:
    """What the mask of a plan leaves of the blocks of which most tiles run."""

    read: float = math.inf
    """Samples that the tiles of a task reach over."""
    touching: float = math.inf
    """Samples that the tiles with weight in a block reach over."""
    chunks: float = math.inf
    """Bytes of the chunks that are read at all."""
    seams: float = math.inf
    """Samples that the tiles of all tasks reach over, each task for itself."""


WHOLE = _Most()


def peak_bytes(plan: BlockPlan) -> int:
    """Return the peak memory of one process, bytes, without allocations of the function itself.

    For each thread: the canvases and the finished block, and the larger of two: what is read for a block,
    with a batch of crops and of results; and what finishing a block takes. For the process: the chunks that
    are kept for later blocks, products of weights, under ``share`` the seams that wait for later blocks, and
    what the system's allocator keeps. The sum does not grow with the slowest axis.
    """
    return min(room_bytes(plan), _peak_bytes(plan, _most(plan)))


def room_bytes(plan: BlockPlan) -> int:
    """Return the same as if blocks ran all their tiles; it never takes long, so plans are chosen by it."""
    return _peak_bytes(plan, WHOLE)


def least_bytes(plan: BlockPlan) -> int:
    """Return `room_bytes` without further chunks that zarr decodes at a time; counting these takes long."""
    return _peak_bytes(plan, WHOLE, parallel=False)


def _peak_bytes(plan: BlockPlan, most: _Most, *, parallel: bool = True) -> int:
    # Plans of the same blocks with other threads, memory for chunks or orders of blocks share it.
    task = plan.once(("task", plan.gaps), lambda: _task(plan)) if most is WHOLE else _task(plan, most)
    # An allocator with a heap per thread, as glibc's, keeps memory of about the largest array in each. (With
    # MALLOC_ARENA_MAX=1, a 3-D blend takes a quarter less.)
    threads = plan.threads * (max(task.gathering, task.finishing) + task.held + task.largest)
    seams = seam_bytes(plan, most.seams) if plan.reuse == "share" else 0
    kept = sum(output.kept_bytes for output in plan.outputs)
    further = parallel_bytes(plan) if parallel else 0
    return int(threads + min(plan.cache_bytes, most.chunks) + seams + kept + further)


def _most(plan: BlockPlan) -> _Most:
    """Return what the mask of a plan leaves, unless that would take long to find out."""
    if plan.mask is None or MaskedReads.classes(plan, touching=True) > LOOKED_AT:
        return WHOLE
    samples = (1,) * len(plan.shape)
    own = MaskedReads.of(plan, samples)
    touching = MaskedReads.of(plan, samples, touching=True) if plan.reuse == "share" else own
    chunks = 0
    for source in plan.sources if plan.cache_bytes else ():
        if source.chunks is not None:
            reads, _ = chunks_under_mask(plan, source.chunks, once=False)
            chunks += source.sample_bytes * math.prod(source.chunks) * reads
    return _Most(own.most(), touching.most(), chunks, own.total())


def _task(plan: BlockPlan, most: _Most = WHOLE) -> _Task:
    """Return the bytes of one task."""
    crop, block = math.prod(a.crop for a in plan.axes), math.prod(plan.block)
    read, size = min(_read_samples(plan), most.read), min(plan.batch_size or 1, _tiles(plan)) * crop
    # What of a block has weight, and is finished; the rest gets the fill value.
    part = min(block, most.touching)
    gathering, loaded = _gathering(plan, size, read)
    held, finishing, largest = 0.0, 0.0, loaded
    for number, output in enumerate(plan.outputs):
        scale, weighted = output.per_sample, output.rim is not None
        canvas = min(_canvas(plan, number), most.read)
        if plan.reuse == "share":
            canvas, own = part + canvas, canvas
        else:
            canvas, own = max(part * (1 + weighted), canvas), part
        finished = block + part * (part < block)
        held += scale * (canvas * output.sample_bytes + finished * output.final_bytes)
        finishing = max(finishing, _finishing(plan, output, part))
        largest = max(largest, own * scale * output.sample_bytes)
        if part < block:
            largest = max(largest, block * scale * output.final_bytes)
    return _Task(int(gathering), int(finishing), int(held), int(largest))


def _gathering(plan: BlockPlan, size: float, read: float) -> tuple[float, float]:
    """Return the bytes of what a task reads, with ``size`` samples of crops, and of its largest array."""
    # What padding adds to a view makes it a copy.
    loaded = [s.sample_bytes for s in plan.sources if not s.in_memory or any(map(_is_padded, plan.axes))]
    # Of several predictions, the crop and the variants of it that a call gets. Crops that are looked at, or
    # may be needed again, are copied besides.
    copied = plan.gaps == "any" or plan.counted == "most"
    crops = plan.together + (plan.predictions > 1) + copied
    gathering = size * crops * sum(s.sample_bytes for s in plan.sources) + read * sum(loaded)
    # A chunk is decoded on its way into the samples of a block, from a file that may be as large; chunks that
    # are read in one request come as one array, too.
    requests = ((s.sample_bytes * math.prod(s.chunks), s.request) for s in plan.sources if s.chunks)
    gathering += max((max(2 * chunk, 3 * request) for chunk, request in requests), default=0)
    for output in plan.outputs:
        scale, weighted = output.per_sample, output.rim is not None
        results = size * (plan.together + plan.waiting) * scale * output.sample_bytes
        gathering += results + weighted * min(SCRATCH, results)
    return gathering, float(read * max(loaded, default=0))


def bound_bytes(plan: BlockPlan) -> int:
    """Return what blocks take at least, whatever their shape: a crop of each thread, a chunk and a result."""
    crop, inside = math.prod(a.crop for a in plan.axes), 1
    for axis in plan.axes:
        some = [axis.read(tile) for tile in (0, len(axis) // 2)] if len(axis) else []
        inside *= max((min(b, axis.extent) - max(a, 0) for a, b in some), default=0)
    return int(plan.threads * sum(_gathering(plan, crop, inside)))


def held_bytes(plan: BlockPlan, block: Index) -> float:
    """Return what tasks hold at least of blocks of a shape: sums and the finished block; takes no tables."""
    samples = sum(o.per_sample * (o.sample_bytes + o.final_bytes) for o in plan.outputs)
    return plan.threads * math.prod(block) * samples


def _is_padded(axis: AxisGrid) -> bool:
    """Return whether a crop sticks out of the image along an axis."""
    return len(axis) > 0 and (axis.read(0)[0] < 0 or axis.read(len(axis) - 1)[1] > axis.extent)


def _finishing(plan: BlockPlan, output: OutputPlan, samples: float) -> float:
    """Return the bytes that finishing some samples of a block of one output takes."""
    scale = output.per_sample
    if plan.gaps == "known" and plan.mask is None and plan.counted == "exact":
        return samples * scale * output.finish_bytes
    # The weights of a tile, and where they are positive.
    tile = math.prod(a.crop for a in plan.axes) * scale * (17 if output.rim is not None else 0)
    return samples * scale * output.gap_bytes + tile


def in_order(plan: Plan) -> Plan:
    """Return the plan with its blocks in the order of axes in which seams and kept chunks take the least.

    From the longest axis on, seams take the least, and so do chunks that lie on blocks. A chunk that is
    longer than a block waits for all blocks on it: the planes of a volume, as chunks, then come in turn.
    """
    free = [d for d in plan.long_axes if d not in plan.slab_axes and plan.blocks[d] > 1]
    long = any(s.shared and s.chunks and any(s.chunks[d] > plan.block[d] for d in free) for s in plan.sources)
    if not long or len(free) < 2:
        return plan
    best, least = plan, ENOUGH * _between(plan)
    first: list[int] = []
    while len(free) > 1:
        for d in free:
            found = plan.with_order([*first, d, *(e for e in plan.long_axes if e not in (*first, d))])
            if (kept := _between(found)) < least:
                best, least = found, kept
        first.append(next(d for d in best.slow_axes if d in free))
        free.remove(first[-1])
    return best


def _between(plan: BlockPlan) -> float:
    """Return the bytes that a process keeps between tasks so that none of its work is done again."""
    return kept_bytes(plan) + (seam_bytes(plan) if plan.reuse == "share" else 0)


def seam_bytes(plan: BlockPlan, most: float = math.inf) -> int:
    """Return the most bytes of seams that wait for later blocks, if blocks share tiles.

    All seams together have no more than ``most`` image samples.
    """
    numbers = range(len(plan.outputs))
    waiting = plan.once(("waiting", plan.order), lambda: [_waiting(plan, number) for number in numbers])
    return sum(
        int(min(samples, most) * output.per_sample * output.sample_bytes)
        for samples, output in zip(waiting, plan.outputs, strict=True)
    )


def _canvas(plan: BlockPlan, number: int) -> int:
    """Return the most image samples in which the tiles of a block have weight in an output.

    It is also the most that blocks of one shape, which share no tiles, take for the sums of each owner: what
    the tiles of one owner have in later blocks is what a block has of earlier owners.
    """
    return math.prod(t.longest_canvases[number] for t in plan.tables)


def _read_samples(plan: BlockPlan) -> int:
    """Return the most samples that the tiles of a task read."""
    return math.prod(t.longest_reads[not reads_own(plan, d)] for d, t in enumerate(plan.tables))


def _tiles(plan: BlockPlan) -> int:
    """Return the most tiles that a task runs, if no mask leaves some out; at least 1."""
    return max(1, math.prod(int(spans.lengths.max()) for spans in tiles_of_blocks(plan)))


def tiles_of_blocks(plan: BlockPlan) -> Sequence[Spans]:
    """Return the tiles per axis that each block runs."""
    return plan.shared if plan.reuse == "share" else [t.touches for t in plan.tables]


def parallel_bytes(plan: BlockPlan) -> int:
    """Return the bytes of the further chunks that zarr decodes at a time, where no chunk is kept.

    Of chunks that are kept, those of a request are decoded at a time, which a task counts.
    """
    return 0 if plan.cache_bytes else plan.threads * plan.once("parallel", lambda: _parallel_bytes(plan))


def _parallel_bytes(plan: BlockPlan) -> int:
    """Return the bytes of the further chunks that one task decodes at a time."""
    most = 0
    for source in plan.sources:
        if source.chunks is not None:
            chunks = 1
            for d, (table, chunk) in enumerate(zip(plan.tables, source.chunks, strict=True)):
                chunks *= most_chunks(table, chunk, reads_own(plan, d))
            size = source.sample_bytes * math.prod(source.chunks)
            most = max(most, 2 * (min(at_once(size), chunks) - 1) * size)
    return most


def _waiting(plan: BlockPlan, number: int) -> int:
    """Return the most image samples of the seams of an output that wait at a time.

    They are those of a plane of blocks, a row, and so on: of canvases, without the blocks themselves. Along
    an axis along which no tile reaches into the next block, as those in ``each``, nothing waits for it.
    """
    waiting = 0
    canvas, block = 1, 1  # of one block along the axes so far
    for k, d in enumerate(plan.slow_axes):
        far, _ = plan.tables[d].canvas_sums[number]
        canvas, block = canvas * (plan.block[d] + far), block * plan.block[d]
        if far and d not in plan.slab_axes:
            # Along the faster axes all blocks are together; the last ones reach no further.
            faster = plan.slow_axes[k + 1 :]
            every = math.prod(plan.tables[e].canvas_sums[number][1] for e in faster)
            waiting += canvas * every - block * math.prod(plan.shape[e] for e in faster)
    return waiting
