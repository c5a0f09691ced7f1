"""The choice of block shape and reuse: candidates, and numbered rules that choose among them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from tilework._checks import one_of
from tilework._types import Index
from tilework.errors import AlignmentError, GridError, MemoryBudgetError
from tilework.grid.axis import ceil_div
from tilework.plan.cost import busiest, human
from tilework.plan.decoding import kept_levels, lost_axes, planned_ratio, with_cache
from tilework.plan.memory import in_order, parallel_bytes, room_bytes, seam_bytes
from tilework.plan.tile_plan import TilePlan

__all__ = ["DECODED", "BlockRequest", "Candidate", "choose_blocks", "is_fair", "is_thrifty"]

Notes = tuple[str, ...]

# Bytes of a block by default: large enough that a task takes much longer than the scheduler's millisecond,
# small enough that canvases and seams take little memory. Huge images get larger blocks, so that the graph
# holds only a few thousand. Measured with `python -m benchmarks blend2d zarr_trim`.
SMALL, LARGE, BLOCKS = 4 * 2**20, 128 * 2**20, 8192
# Limits that keep workers from waiting for the last block: blocks per worker, if the image has that many, and
# crops of the busiest worker as a multiple of an even share. With more than ENOUGH blocks per worker, shares
# are taken as even.
BLOCKS_PER_WORKER, FAIR, ENOUGH = 4, 1.25, 64
# Fraction of extra calls up to which blocks that share no tiles are the better plan.
RECOMPUTE_LIMIT = 0.05
# Decoded bytes per image byte up to which blocks are not made longer to decode less.
DECODED = 1.1
# Factors by which blocks may be longer across slabs, or to decode less.
LONGER = (1, 2, 4, 8, 16)
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute blocks of one shape, and its cost."""

    plan: TilePlan
    """The tiles with these blocks."""
    kind: str
    """"recompute", "share" or "slabs"."""
    calls: int
    """Number of crops that the function gets in the whole run."""
    peak: int
    """Estimated bytes at the peak of a process."""
    longer: int
    """Factor by which the blocks are longer across slabs than requested."""

    @classmethod
    def of(cls, plan: TilePlan, request: BlockRequest, longer: int = 1) -> Candidate:
        """Return a plan with its costs; chunks are kept as far as memory allows."""
        kind = "slabs" if plan.slabs else plan.reuse
        limit = math.inf if request.memory_limit is None else request.memory_limit
        encoding, none = plan.threads * request.encoding, plan.with_cache(0)
        if limit - encoding - room_bytes(none) + parallel_bytes(none) >= 0:
            none = in_order(none)
        # Made from `none`, it has the tables that the costs were taken from.
        plan = with_cache(none, limit - encoding - room_bytes(none) + parallel_bytes(none))
        return cls(plan, kind, plan.calls(), room_bytes(plan) + encoding, longer)

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Sort key of candidates: fewest calls first, then the simplest."""
        return self.calls, self.plan.slabs, self.longer, self.kind


def choose_blocks(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return ``plan`` with the best block shape and reuse for ``request``, and the reasons in its notes.

    Raises
    ------
    MemoryBudgetError
        When no block shape keeps the estimate under the memory limit.
    GridError
        When given chunks cannot be shared, or are not multiples of the output's quantum.
    AlignmentError
        When given chunks are not multiples of the write unit.
    """
    one_of("reuse", request.reuse, ("auto", "share", "recompute"))
    if request.chunks is not None and request.reuse == "auto" and _paints(plan):
        _check_supports(plan, request.chunks)
    asked = f"reuse={request.reuse!r} was asked for"
    if request.chunks is not None:
        _check_chunks(plan, request.chunks, request.unit)
        try:
            return _choose_reuse(plan, request.chunks, request, (), asked)
        except _TooLarge as error:
            raise error.refusal(request) from None
    try:
        return _widened(_choose_shape(plan, request, asked), request, asked)
    except MemoryBudgetError:
        if request.reuse != "auto":
            raise
    # Blocks that share are at least as long as the longest support; others may be shorter.
    alone = replace(request, reuse="recompute")
    return _choose_shape(plan, alone, "recompute: sharing does not fit into memory_limit")


def _widened(plan: TilePlan, request: BlockRequest, asked: str) -> TilePlan:
    """Return ``plan``, with other blocks where memory does not suffice to keep its decoded chunks.

    Blocks grow along the axes along which chunks are decoded again, and share these among more tiles; or they
    are shorter along the axis that comes last, so that the chunks of fewer blocks wait.
    """
    if request.target is not None or _keeps_chunks(plan):
        return plan
    best, least = plan, planned_ratio(plan)
    workers = request.workers or plan.threads
    longer = (block for times, block in _longer(plan, lost_axes(plan)) if times > 1)
    for block in (*longer, *_thinner(plan, request)):
        try:
            found = _choose_reuse(plan, block, request, plan.notes[:-1], asked)
        except (GridError, _TooLarge):
            continue
        ratio = planned_ratio(found)
        if ratio < least and found.calls() <= plan.calls() and is_fair(found, workers):
            best, least = found, ratio
        if least <= DECODED:
            break
    return best


def is_fair(plan: TilePlan, workers: int) -> bool:
    """Return whether no worker runs many more crops than an even share, or than a batch."""
    return _load(plan, workers) <= _fair(plan, workers)


def _fair(plan: TilePlan, workers: int) -> float:
    """Return the most crops that one of ``workers`` should run."""
    return FAIR * max(plan.n_runs / workers, plan.batch_size or 1)


def _load(plan: TilePlan, workers: int) -> float:
    """Return the number of crops of the busiest worker."""
    if math.prod(plan.blocks) > ENOUGH * workers:
        return plan.calls() / workers
    return busiest(plan, workers)


def _check_chunks(plan: TilePlan, chunks: Sequence[int], unit: Sequence[int] | None) -> None:
    for name, size, axis, u in zip(plan.names, chunks, plan.axes, unit or (1,) * len(chunks), strict=True):
        if size < 1:
            raise GridError(f"chunks must be at least 1; got {size} on axis {name}.")
        if size < axis.extent and size % axis.quantum:
            raise GridError(
                f"chunks must be multiples of {axis.quantum}, the denominator of the output's scale; "
                f"got {size} on axis {name}."
            )
        if size < axis.extent and size % u:
            raise AlignmentError(
                "blocks must be whole write units, or two tasks would write one unit; got blocks of "
                f"{size} and units of {u} samples on axis {name}. Leave chunks out of tiled_map, "
                f"or use a multiple of {u}."
            )


def _paints(plan: TilePlan) -> bool:
    """Return whether an output holds objects that tiles paint wherever their crops reach."""
    return any(output.blend == "own" for output in plan.outputs)


def _check_supports(plan: TilePlan, chunks: Sequence[int]) -> None:
    """Raise if tiles that paint objects reach over more than the next block, so that they would run again."""
    for name, size, axis, longest in zip(plan.names, chunks, plan.axes, plan.longest, strict=True):
        if size < min(longest, axis.extent):
            raise GridError(
                f"objects reach as far as their crops, so blocks must hold a crop; got chunks of {size} on "
                f"axis {name}, and crops of {longest}. Leave chunks out, use at least {longest}, or say "
                'reuse="recompute" to run crops once for each block that they touch.'
            )


# -- the shape ------------------------------------------------------------------------------------------


def _choose_shape(plan: TilePlan, request: BlockRequest, asked: str) -> TilePlan:
    """Return the plan with the largest blocks up to the target that fit into memory and keep workers busy."""
    workers = request.workers or plan.threads
    enough = _enough(plan)
    fair = math.inf if request.target else _fair(plan, workers)
    error: _TooLarge | None = None
    best, least = None, math.inf
    good: TilePlan | None = None
    # Rules, read in order for every shape, the largest first:
    for most, block, notes in _shapes(plan, request):
        # 1. Blocks that do not fit into memory are out.
        try:
            found = _choose_reuse(plan, block, request, notes, asked)
        except _TooLarge as e:
            error = e
            continue
        # 2. The first shape with few extra calls, evenly spread over the workers, is taken, or a smaller one
        #    that leaves room for chunks that would be decoded again.
        load = found.calls() / workers if request.target else _load(found, workers)
        if found.calls() <= enough and load <= fair:
            if good is None or planned_ratio(found) < planned_ratio(good):
                good = found
            if _has_room(found, request):
                return good
            continue
        if good is not None:
            return good
        # 3. Otherwise the one whose busiest worker runs the fewest crops; among equals, the largest. If
        #    memory is short, smaller blocks that share may cost fewer calls than larger ones that do not.
        if load < least:
            best, least = found, load
        # 4. The rest is left out if blocks so small cannot do better.
        if least <= _fewest(plan, most) / workers and _must_repeat(found, request):
            break
    if good is not None:
        return good
    if best is None:
        assert error is not None
        raise error.refusal(request)
    return best


def _has_room(plan: TilePlan, request: BlockRequest) -> bool:
    """Return whether smaller blocks would hardly leave more room for chunks, or need not."""
    if request.memory_limit is None or request.target is not None or _keeps_chunks(plan):
        return True
    # Tasks of small blocks are so short that one thread overtakes another by many of them.
    small = math.prod(plan.block) * _sample_bytes(plan) < SMALL / 8
    return small or 32 * (room_bytes(plan) - plan.cache_bytes) <= request.memory_limit


def is_thrifty(plan: TilePlan) -> bool:
    """Return whether few crops run twice, and hardly any chunk that may be kept is decoded again."""
    return plan.calls() <= _enough(plan) and _keeps_chunks(plan)


def _enough(plan: TilePlan) -> float:
    """Return the number of crops that blocks may run without others being looked for."""
    return (1 + (0.0 if _paints(plan) else RECOMPUTE_LIMIT)) * plan.n_runs


def _keeps_chunks(plan: TilePlan) -> bool:
    """Return whether memory suffices to decode hardly any chunk again that may be kept."""
    if not lost_axes(plan) or not any(s.shared and s.chunks for s in plan.sources):
        return True
    return planned_ratio(plan) <= DECODED


def _must_repeat(plan: TilePlan, request: BlockRequest) -> bool:
    """Return whether blocks like these, and smaller ones, cannot share: their seams take more memory."""
    if request.reuse == "recompute":
        return True
    if plan.reuse == "share" or request.slabs:
        return False
    return seam_bytes(plan.with_blocks(plan.block, "share")) > (request.memory_limit or math.inf)


def _fewest(plan: TilePlan, samples: float) -> float:
    """Return about the fewest crops that blocks of at most ``samples`` need if they share no tiles.

    Along an axis of n samples, of which a tile shares c with earlier tiles, blocks of b samples run
    1 - c/n + c/b times the tiles. Mahler's inequality bounds the product of such sums from below.
    """
    shared = [(s - 1) // a.stride * a.stride for s, a in zip(plan.longest, plan.axes, strict=True)]
    some = [(c, a.extent) for c, a in zip(shared, plan.axes, strict=True) if c]
    if not some:
        return plan.n_runs
    once, twice = math.prod(max(0, 1 - c / n) for c, n in some), math.prod(c for c, _ in some) / samples
    root = 1 / len(some)
    return float(plan.n_runs * max(1, (once**root + twice**root) ** len(some)))


def _shapes(plan: TilePlan, request: BlockRequest) -> Iterator[tuple[float, Index, Notes]]:
    """Yield block shapes from the target down, halved each time.

    Each comes after the most samples that it should have, and before notes on unmet wishes.
    """
    wanted = max(_small(plan), _sample_bytes(plan) * max(math.prod(plan.shape) / BLOCKS, _batch(plan)))
    target = request.target or int(min(LARGE, wanted))
    last = None
    while target:
        block, notes = _shape(plan, request, target)
        # A small image has small blocks whatever the target; halving that may change nothing at first.
        if block != last:
            yield target / _sample_bytes(plan), block, notes
        last, target = block, target // 2


def _shape(plan: TilePlan, request: BlockRequest, target: int) -> tuple[Index, Notes]:
    """Return a block shape of about ``target`` bytes, and notes on unmet wishes."""
    sample, total = _sample_bytes(plan), math.prod(plan.shape)
    workers = request.workers or plan.threads
    # Blocks below the small size would cost more than the threads that they keep busy at the end.
    few = max(min(total / workers, 2 * SMALL / sample), _batch(plan))
    room = min(target / sample, max(few, total / (BLOCKS_PER_WORKER * workers)))
    units, notes = _units(plan, request, target / sample)
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
    return tuple(min(s, a.extent) for s, a in zip(sizes, plan.axes, strict=True)), notes


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


def _sample_bytes(plan: TilePlan) -> float:
    """Return the bytes per image sample of the larger of input and output."""
    outputs = sum(o.sample_bytes * float(math.prod(o.scale)) for o in plan.outputs)
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
    open_axes = set(axes)
    while open_axes:
        _leap(sizes, extents, units, crops, open_axes, room)
        while True:
            d = min(open_axes, key=lambda a: (sizes[a] / crops[a], -a))
            longer = min(extents[d], sizes[d] + units[d])
            if longer == sizes[d] or math.prod(sizes) // sizes[d] * longer > room:
                break
            sizes[d] = longer
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


def _units(plan: TilePlan, request: BlockRequest, room: float) -> tuple[list[int], Notes]:
    """Return the lengths per axis of which blocks are multiples, and notes on unmet wishes."""
    unit = request.unit or (1,) * len(plan.axes)
    units = [math.lcm(a.quantum, u) for a, u in zip(plan.axes, unit, strict=True)]
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


# -- the reuse ------------------------------------------------------------------------------------------


def _choose_reuse(plan: TilePlan, block: Index, request: BlockRequest, notes: Notes, asked: str) -> TilePlan:
    """Return the plan with the cheapest reuse that fits into memory; the last of its notes is the reason."""
    found = _candidates(plan, block, request, notes)
    limit = math.inf if request.memory_limit is None else request.memory_limit
    fitting = [c for c in found if c.peak <= limit]
    if not fitting:
        raise _TooLarge(block, found)
    alone, share = (next((c for c in found if c.kind == kind), None) for kind in ("recompute", "share"))
    tiles = max(1, plan.n_runs)
    cheapest = min(fitting, key=lambda c: c.rank)
    extra = 0.0 if alone is None else alone.calls / tiles - 1
    few = 0.0 if _paints(plan) else RECOMPUTE_LIMIT
    why: Notes
    # Rules, read in order; each brings its own reason.
    # 1. The caller has chosen.
    if request.reuse != "auto":
        best, why = cheapest, (asked,)
        if cheapest.kind == "slabs":
            why = (asked, _slab_reason(cheapest, share, tiles))
    # 2. Blocks that share no tiles fit, and run few tiles twice, or need the fewest calls.
    elif alone is not None and alone.peak <= limit and (extra <= few or cheapest is alone):
        best, why = alone, (f"recompute: {extra:.1%} extra calls{_hindrance(share, limit)}",)
    # 3. Blocks share tiles within slabs, one slab after the other.
    elif cheapest.kind == "slabs":
        best, why = cheapest, (_slab_reason(cheapest, share, tiles),)
    # 4. Blocks share tiles.
    else:
        best, why = cheapest, (f"share: blocks alone would cost {extra:.1%} extra calls",)
    return best.plan.with_notes((*notes, *why))


class _TooLarge(Exception):
    """Blocks of one shape do not fit into memory, however they are computed."""

    def __init__(self, block: Index, found: Sequence[Candidate]) -> None:
        super().__init__(block)
        self.block, self.found = block, found

    def refusal(self, request: BlockRequest) -> MemoryBudgetError:
        """Return the error for the user; to find a limit that suffices takes long."""
        plan, least = self.found[0].plan, min(map(_least, self.found))
        fewer, limit = "fewer threads, " if plan.threads > 1 else "", request.memory_limit
        return MemoryBudgetError(
            f"blocks of {self.block} samples need about {human(least)} in a process with {plan.threads} "
            f"threads{_encoded(plan, request)}; memory_limit is {human(limit or 0)}. Use {fewer}a smaller "
            f"crop or batch, or memory_limit={least}."
        )


def _least(candidate: Candidate) -> int:
    """Return the smallest limit of memory that a candidate fits."""
    plan = candidate.plan
    if plan.cache_bytes:
        return candidate.peak
    # Kept chunks are decoded one by one: keeping a few may take less than decoding several at a time.
    kept = min((need for need in kept_levels(plan) if need), default=math.inf)
    return int(min(candidate.peak, candidate.peak - parallel_bytes(plan) + kept))


def _encoded(plan: TilePlan, request: BlockRequest) -> str:
    """Return what encoding adds, as part of a sentence; "" if it is little."""
    encoding = plan.threads * request.encoding
    if not request.memory_limit or encoding < request.memory_limit / 4:
        return ""
    return f", of which {human(encoding)} encode write units (use smaller chunks or shards)"


def _candidates(plan: TilePlan, block: Index, request: BlockRequest, notes: Notes) -> list[Candidate]:
    """Return all ways to compute blocks of this shape."""
    found = []
    alone = plan.with_blocks(block, "recompute", notes)
    if request.reuse != "share":
        found.append(Candidate.of(alone, request))
        alone = found[0].plan
    if request.reuse != "recompute":
        shared = alone.with_blocks(block, "share", notes)
        if short := _too_short(shared):
            if request.reuse == "share":
                raise GridError(short)
            return found
        found.append(Candidate.of(shared, request))
        if request.slabs:
            found += _slabs(shared, request)
    return found


def _too_short(plan: TilePlan) -> str:
    """Return why blocks cannot share, or ""."""
    for name, longest, size, axis in zip(plan.names, plan.longest, plan.block, plan.axes, strict=True):
        if longest > size < axis.extent:
            return (
                f'reuse="share" needs blocks at least as long as the longest support; got blocks of {size} '
                f'and a support of {longest} on axis {name}. Use larger chunks or reuse="recompute".'
            )
    return ""


def _slabs(plan: TilePlan, request: BlockRequest) -> Iterator[Candidate]:
    """Yield slabs along one or more axes; blocks that are longer across slabs run fewer tiles twice."""
    for slabs in range(1, len(plan.axes) - plan.n_each):
        cut = plan.long_axes[:slabs]
        for times, block in _longer(plan, cut) if request.chunks is None else ((1, plan.block),):
            yield Candidate.of(plan.with_blocks(block, "share", plan.notes, slabs), request, times)


def _longer(plan: TilePlan, axes: Sequence[int]) -> Iterator[tuple[int, Index]]:
    """Yield factors and block shapes that are longer by them along ``axes``, cut at the image."""
    for times in LONGER:
        block = [b * times if d in axes else b for d, b in enumerate(plan.block)]
        if times == 1 or any(block[d] < plan.shape[d] + plan.block[d] for d in axes):
            yield times, tuple(min(b, n) for b, n in zip(block, plan.shape, strict=True))


def _thinner(plan: TilePlan, request: BlockRequest) -> Iterator[Index]:
    """Yield block shapes that are shorter along the slowest axis of a slab, halved each time."""
    d = plan.slow_axes[plan.n_each + plan.slabs]
    step = math.lcm(plan.axes[d].quantum, plan.axes[d].stride, request.unit[d] if request.unit else 1)
    size = ceil_div(plan.block[d], 2 * step) * step
    while size < plan.block[d]:
        yield (*plan.block[:d], size, *plan.block[d + 1 :])
        if size == step:
            return
        size = ceil_div(size, 2 * step) * step


def _slab_reason(slabs: Candidate, share: Candidate | None, tiles: int) -> str:
    assert share is not None  # slabs are made from it
    plan, extra = slabs.plan, slabs.calls / tiles - 1
    cut = ", ".join(plan.names[d] for d in plan.slab_axes)
    return f"slabs along axis {cut}: {extra:.1%} extra calls; in one piece it would need {human(share.peak)}"


def _hindrance(share: Candidate | None, limit: float) -> str:
    """Return why blocks cannot share, as the end of a reason; "" if they can."""
    if share is None:
        return ", and supports are longer than blocks"
    return f", and sharing would need {human(share.peak)}" if share.peak > limit else ""
