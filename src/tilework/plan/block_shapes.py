"""Shapes that blocks may have: from the target down, and others that decode fewer chunks again."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from tilework._types import Index
from tilework.grid.axis import ceil_div
from tilework.plan.decoding import lost_axes, repeated_axes
from tilework.plan.output_plan import valid_bytes
from tilework.plan.tile_plan import TilePlan

__all__ = [
    "FAIR",
    "SMALL",
    "BlockRequest",
    "flat",
    "longer",
    "sample_bytes",
    "shapes",
    "similar",
    "smallest",
    "thinner",
    "upright",
]

# Bytes of a block by default: large enough that a task takes much longer than the scheduler's millisecond,
# small enough that canvases and seams take little memory. Huge images get larger blocks, so that the graph
# holds only a few thousand. Measured with `python -m benchmarks blend2d zarr_trim`.
SMALL, LARGE, BLOCKS = 4 * 2**20, 128 * 2**20, 8192
# Limits that keep workers from waiting for the last block: blocks per worker, if the image has that many, and
# crops of the busiest worker as a multiple of an even share.
BLOCKS_PER_WORKER, FAIR = 4, 1.25
# Factors by which blocks may be longer across slabs, or to decode less.
LONGER = (1, 2, 4, 8, 16)
# Factor by which blocks that do not fit become smaller, at least.
SHRUNK = 1.2
# Parts of a crop by which blocks are made longer at a time.
PART = 1024


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """The caller's requirements for the blocks."""

    chunks: Index | None = None
    """Block shape, samples per grid axis; None: to be chosen."""
    target: int | None = None
    """Bytes of a block; None: to be chosen."""
    unit: Index | None = None
    """The write unit, samples per grid axis: block lengths are multiples of it; None: no unit."""
    memory_limit: int | None = None
    """Bytes per process; None: no limit."""
    reuse: str = "auto"
    """"share", "recompute" or "auto"."""
    slabs: bool = False
    """Whether blocks may be computed slab by slab, as when writing."""
    workers: int | None = None
    """Number of concurrent tasks in the whole run; None: as many as in one process."""
    encoding: int = 0
    """Bytes that a task takes to encode a write unit, besides the plan's own estimate."""


def shapes(plan: TilePlan, request: BlockRequest) -> Iterator[tuple[float, Index, tuple[str, ...]]]:
    """Yield block shapes from the target down, halved each time.

    Each comes after the most samples that it should have, and before notes on unmet wishes.
    """
    wanted = max(_small(plan), sample_bytes(plan) * max(math.prod(plan.shape) / BLOCKS, _batch(plan)))
    target = request.target or int(min(LARGE, wanted))
    last = None
    while target:
        block, notes = _shape(plan, request, target)
        # A small image has small blocks whatever the target; halving that may change nothing at first.
        if block != last:
            yield target / sample_bytes(plan), block, notes
        last, target = block, target // 2


def smallest(plan: TilePlan, request: BlockRequest) -> Index:
    """Return the last of `shapes`."""
    return _shape(plan, request, 1)[0]


def _shape(plan: TilePlan, request: BlockRequest, target: int) -> tuple[Index, tuple[str, ...]]:
    """Return a block shape of about ``target`` bytes, and notes on unmet wishes."""
    sample, total = sample_bytes(plan), math.prod(plan.shape)
    workers = request.workers or plan.threads
    # Blocks below the small size would cost more than the threads that they keep busy at the end.
    few = max(min(total / workers, 2 * SMALL / sample), _batch(plan))
    room = min(target / sample, max(few, total / (BLOCKS_PER_WORKER * workers)))
    units, notes = _units(plan, request, target / sample)
    return _filled(plan, request, units, room), notes


def _filled(plan: TilePlan, request: BlockRequest, units: Sequence[int], room: float) -> Index:
    """Return a block shape of whole ``units`` with about ``room`` samples, or as few as sharing takes."""
    extents = [ceil_div(a.extent, u) * u for a, u in zip(plan.axes, units, strict=True)]
    sizes = [min(n, u) for n, u in zip(extents, units, strict=True)]
    if request.reuse != "recompute":
        sizes = [
            min(n, max(s, ceil_div(longest, u) * u))
            for n, s, longest, u in zip(extents, sizes, plan.longest, units, strict=True)
        ]
    crops = [a.crop for a in plan.axes]
    tiled = range(plan.n_each, len(sizes))
    across = None
    if request.reuse != "recompute":
        across = _across(plan, sizes, extents, units, room if request.target else FAIR * room)
    for axes in (tiled, range(plan.n_each)):
        _grow(sizes, extents, units, crops, axes, room)
    if across is not None and _cut(plan, across) < _cut(plan, sizes):
        sizes = across
    if request.reuse == "recompute":
        # The same number of blocks, of even lengths.
        even = [ceil_div(a.extent, ceil_div(a.extent, s)) for a, s in zip(plan.axes, sizes, strict=True)]
        sizes = [min(s, ceil_div(e, u) * u) for s, e, u in zip(sizes, even, units, strict=True)]
    return tuple(min(s, a.extent) for s, a in zip(sizes, plan.axes, strict=True))


def _across(
    plan: TilePlan, least: Sequence[int], extents: Sequence[int], units: Sequence[int], room: float
) -> list[int] | None:
    """Return the longest blocks that are cut along the longest axis only; None if none fit.

    Their lengths are even, unless they would be shorter than ``least``.

    Those of a small image have fewer seams than blocks that hold as many crops along each axis, and a row of
    its samples lies in one piece.
    """
    tiled = range(plan.n_each, len(least))
    d = max(tiled, key=lambda a: (extents[a] / least[a], -a))
    sizes = [n if a in tiled else s for a, (n, s) in enumerate(zip(extents, least, strict=True))]
    most = int(room * sizes[d] / math.prod(sizes)) // units[d] * units[d]
    if most < least[d]:
        return None
    even = ceil_div(extents[d], ceil_div(extents[d], most))
    sizes[d] = max(least[d], ceil_div(even, units[d]) * units[d])
    return sizes


def _cut(plan: TilePlan, sizes: Sequence[int]) -> int:
    """Return the samples that tiles have in the next block, if each runs in one block."""
    samples = 0
    for size, axis, longest in zip(sizes, plan.axes, plan.longest, strict=True):
        cuts = ceil_div(axis.extent, size) - 1
        samples += cuts * max(0, longest - axis.stride) * math.prod(plan.shape) // axis.extent
    return samples


def _small(plan: TilePlan) -> int:
    """Return the smallest size of a block, bytes; twice as large for blends, whose canvases overlap."""
    return SMALL if all(o.rim is None for o in plan.outputs) else 2 * SMALL


def _batch(plan: TilePlan) -> int:
    """Return the image samples that the tiles of one full batch advance over."""
    return (plan.batch_size or 1) * math.prod(a.stride for a in plan.axes)


def sample_bytes(plan: TilePlan) -> float:
    """Return the bytes per image sample of the larger of input and output."""
    outputs = sum(o.sample_bytes * o.per_sample for o in plan.outputs)
    if plan.counted == "most":
        # Without the bits of valid samples: blocks, and so the bits of a blend, are those of the whole image.
        outputs -= valid_bytes(plan.outputs[0]) * plan.outputs[0].per_sample
    return max(outputs, sum(s.sample_bytes for s in plan.sources), 1)


def _grow(
    sizes: list[int],
    extents: Sequence[int],
    units: Sequence[int],
    crops: Sequence[int],
    axes: Sequence[int],
    room: float,
) -> None:
    """Lengthen ``sizes`` along ``axes`` by whole units while the block stays within ``room`` samples.

    The axis along which the block holds the fewest crops is next.
    """

    def next_size(d: int) -> int | None:
        size = min(extents[d], sizes[d] + units[d])
        return size if size > sizes[d] and math.prod(sizes) // sizes[d] * size <= room else None

    # An axis that cannot grow now never can. To know it takes a tenth of the time of a leap.
    open_axes = set(axes)
    while open_axes := {d for d in open_axes if next_size(d)}:
        _leap(sizes, extents, units, crops, open_axes, room)
        while size := next_size(d := min(open_axes, key=lambda a: (sizes[a] / crops[a], -a))):
            sizes[d] = size
        open_axes.discard(d)


def _leap(
    sizes: list[int],
    extents: Sequence[int],
    units: Sequence[int],
    crops: Sequence[int],
    axes: Collection[int],
    room: float,
) -> None:
    """Do most of what `_grow` does unit by unit, which may be a sample: all axes get as many crops."""

    def grown(parts: int) -> list[int]:
        # The first lengths, unit by unit, that are not below this part of a crop.
        wanted = [ceil_div(parts * crop, PART) for crop in crops]
        return [
            min(n, s + max(0, ceil_div(w - s, u)) * u) if d in axes else s
            for d, (n, s, w, u) in enumerate(zip(extents, sizes, wanted, units, strict=True))
        ]

    most = PART * max(ceil_div(extents[d], crops[d]) for d in axes)
    parts = bisect_right(range(1, most + 1), room, key=lambda parts: math.prod(grown(parts)))
    sizes[:] = grown(parts) if parts else sizes


def _units(plan: TilePlan, request: BlockRequest, room: float) -> tuple[list[int], tuple[str, ...]]:
    """Return the lengths per axis of which blocks are multiples, and notes on unmet wishes."""
    units = _least_units(plan, request)
    wishes: list[tuple[str, Sequence[int]]] = [("the stride", [a.stride for a in plan.axes])]
    wishes += [("the source's chunks", s.chunks) for s in plan.sources if s.chunks is not None]
    notes = []
    for what, wish in wishes:
        missed = []
        for d, (axis, size) in enumerate(zip(plan.axes, wish, strict=True)):
            wanted = min(math.lcm(units[d], size), ceil_div(axis.extent, units[d]) * units[d])
            if math.prod(units) // units[d] * wanted <= room:
                units[d] = wanted
            else:
                missed.append(plan.names[d])
        if missed:
            notes.append(f"blocks are not multiples of {what} on axis {', '.join(missed)}")
    return units, tuple(notes)


def _least_units(plan: TilePlan, request: BlockRequest) -> list[int]:
    """Return the shortest lengths per axis that blocks may have: whole quanta and write units."""
    unit = request.unit or (1,) * len(plan.axes)
    return [math.lcm(a.quantum, u) for a, u in zip(plan.axes, unit, strict=True)]


def _strides(plan: TilePlan, request: BlockRequest) -> list[int]:
    """Return the shortest lengths per axis that are whole strides, too."""
    return [math.lcm(u, a.stride) for u, a in zip(_least_units(plan, request), plan.axes, strict=True)]


def longer(plan: TilePlan, axes: Sequence[int]) -> Iterator[tuple[int, Index]]:
    """Yield factors and block shapes that are longer by them along ``axes``, cut at the image."""
    for times in LONGER:
        block = [b * times if d in axes else b for d, b in enumerate(plan.block)]
        if times == 1 or any(block[d] < plan.shape[d] + plan.block[d] for d in axes):
            yield times, tuple(min(b, n) for b, n in zip(block, plan.shape, strict=True))


def thinner(plan: TilePlan, request: BlockRequest) -> Iterator[Index]:
    """Yield block shapes that are shorter along the slowest axis of a slab, halved each time."""
    d = plan.slow_axes[plan.n_each + plan.slabs]
    step = _strides(plan, request)[d]
    size = ceil_div(plan.block[d], 2 * step) * step
    while size < plan.block[d]:
        yield (*plan.block[:d], size, *plan.block[d + 1 :])
        if size == step:
            return
        size = ceil_div(size, 2 * step) * step


def upright(plan: TilePlan, request: BlockRequest) -> Iterator[Index]:
    """Yield block shapes of whole chunks along the axes along which they would be decoded again, or of parts.

    They have as many samples as those of ``plan``, if whole strides along the other axes are no more. So the
    blocks of a series whose chunks hold all times of a few samples hold all times, too.
    """
    lost, units = lost_axes(plan), _strides(plan, request)
    units[: plan.n_each] = [u if d in lost else plan.block[d] for d, u in enumerate(units[: plan.n_each])]
    for parts in LONGER[:3]:
        sizes = list(units)
        for d in lost:
            chunk = max(s.chunks[d] for s in plan.sources if s.chunks is not None and s.shared)
            sizes[d] *= ceil_div(min(ceil_div(chunk, parts), plan.shape[d]), units[d])
        yield _filled(plan, request, sizes, math.prod(plan.block))


def flat(plan: TilePlan, request: BlockRequest, fills: Callable[[Index], float]) -> Iterator[Index]:
    """Yield block shapes as long as fit along the axes along which chunks are longer than blocks.

    Along the other axes they are shorter each time. A chunk that cannot be kept, such as a plane of a volume,
    is decoded again for each block on it. ``fills`` tells how much of the memory a block shape takes.
    """
    units = _strides(plan, request)
    chunks = [s.chunks for s in plan.sources if s.chunks is not None]
    long = [d for d in repeated_axes(plan) if any(c[d] > plan.block[d] for c in chunks)]
    others = [d for d in range(plan.n_each, len(plan.axes)) if d not in long]
    last: Index = ()
    for parts in LONGER if long else ():
        sizes = [*plan.block]
        for d in others:
            sizes[d] = min(plan.shape[d], ceil_div(ceil_div(plan.block[d], parts), units[d]) * units[d])
        if tuple(sizes) == last:
            return
        last = tuple(sizes)
        room = float(math.prod(plan.shape[d] for d in long))
        while room >= 1:
            # As long along all of them, so that the fewest crops reach into other blocks.
            left = room
            for k, d in enumerate(sorted(long, key=lambda a: plan.shape[a])):
                most = int(left ** (1 / (len(long) - k)) + 1e-6) // units[d] * units[d]
                sizes[d] = min(plan.shape[d], max(units[d], most))
                left /= sizes[d]
            if (part := fills(tuple(sizes))) <= 1:
                yield tuple(sizes)
                break
            if all(sizes[d] <= units[d] for d in long):
                break
            room /= max(part, SHRUNK)


def similar(plan: TilePlan, request: BlockRequest) -> Iterator[Index]:
    """Yield block shapes that are longer than those of ``plan`` along an axis, or also shorter along another.

    Longer are the axes along which chunks are decoded again, or all if crops run several times. Lengths are
    twice and four times as long, a chunk or the whole axis, in whole strides. What is shorter is so by about
    as much; at last, blocks are shorter only.
    """
    block, axes = plan.block, range(len(plan.block))
    strides, units = _strides(plan, request), _least_units(plan, request)
    chunks = [s.chunks for s in plan.sources if s.chunks is not None]

    def up(size: int, d: int) -> int:
        return min(plan.shape[d], max(1, ceil_div(size, strides[d])) * strides[d])

    least = [min(plan.shape[d], ceil_div(plan.longest[d], units[d]) * units[d]) for d in axes]
    if request.reuse == "recompute":
        least = [up(1, d) for d in axes]
    longer = {}
    for d in repeated_axes(plan) if plan.calls() == plan.n_runs else axes:
        wanted = [2 * block[d], 4 * block[d], plan.shape[d], *(c[d] for c in chunks)]
        longer[d] = sorted(size for size in {up(size, d) for size in wanted} if size > block[d])
        for size in longer[d]:
            yield (*block[:d], size, *block[d + 1 :])
    for d, sizes in longer.items():
        for size in sizes:
            for e in axes:
                if e != d and block[e] > least[e]:
                    both = [*block]
                    both[d], both[e] = size, max(least[e], up(block[e] * block[d] // size, e))
                    yield tuple(both)
    for d in axes:
        for size in sorted({least[d], up(block[d] // 2, d)}):
            if size < block[d]:
                yield (*block[:d], size, *block[d + 1 :])
