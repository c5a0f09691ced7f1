"""The choice of a block shape: numbered rules, and a search for blocks that decode less."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tilework._checks import one_of
from tilework._types import Index
from tilework.errors import AlignmentError, GridError, MemoryBudgetError
from tilework.plan.block_shapes import (
    FAIR,
    SMALL,
    BlockRequest,
    flat,
    longer,
    sample_bytes,
    shapes,
    similar,
    smallest,
    thinner,
    upright,
)
from tilework.plan.cost import busiest
from tilework.plan.decoding import lost_axes, planned_ratio, repeated_axes
from tilework.plan.memory import (
    bound_bytes,
    room_bytes,
    seam_bytes,
)
from tilework.plan.reuse import RepeatsError, TooLargeError, choose_reuse, enough, paints
from tilework.plan.tile_plan import TilePlan

__all__ = ["DECODED", "choose_blocks", "is_fair", "is_thrifty"]

# With more than so many blocks per worker, their shares are taken as even.
ENOUGH = 64
# Decoded bytes per image byte up to which blocks are not made longer to decode less.
DECODED = 1.1
# What decoding a sample costs, as a part of what the function does with it: 1 to 8 ns, where filters take 20
# to 50 and networks more. Blocks change for a gain of a twentieth only.
DECODING, WORTH = 1 / 32, 0.95
# Part of a bound that is about right which is surely not too much, along axes of so many crops or more.
SURE, LONG = 0.9, 16
# Most bytes of blocks that grow as no chunk is shared, however much memory there is: dask's own compute() of
# a slice runs all crops of a block.
MOST = 64 * 2**20
# Gain of a step towards such blocks, and the number of shapes, 0.3 ms each, from which on none is looked at.
STEP, LOOKS = 0.99, 18


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
    return plan.sharing_tables(lambda plan: _choose(plan, request))


def _choose(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return the same, where plans share their tables."""
    if request.chunks is not None and request.reuse == "auto" and paints(plan):
        _check_supports(plan, request.chunks)
    asked = f"reuse={request.reuse!r} was asked for"
    if request.chunks is not None:
        _check_chunks(plan, request.chunks, request.unit)
        return _of_shape(plan, request.chunks, request, asked)
    # Blocks that share are at least as long as the longest support; others may be shorter.
    alone = replace(request, reuse="recompute") if request.reuse == "auto" else request
    limit = math.inf if request.memory_limit is None else request.memory_limit
    if bound_bytes(plan) + plan.threads * request.encoding > limit:
        # No shape fits, and the smallest is the one that an error tells of.
        return _of_shape(plan, smallest(plan, alone), alone, asked)
    try:
        return _widened(_choose_shape(plan, request, asked), request, asked)
    except MemoryBudgetError:
        if request.reuse != "auto":
            raise
    asked = "recompute: sharing does not fit into memory_limit"
    found = _choose_shape(plan, alone, asked)
    # Two rounds of shapes were looked at, which took as long as the rest of a build.
    return found if _decodes_once(found) else _descended(found, _Search(found, alone, asked, LOOKS // 3))


def _of_shape(plan: TilePlan, block: Index, request: BlockRequest, asked: str) -> TilePlan:
    """Return the plan with blocks of the one shape that there is."""
    try:
        return choose_reuse(plan, block, request, (), asked)
    except TooLargeError as error:
        raise error.refusal(request) from None


def _widened(plan: TilePlan, request: BlockRequest, asked: str) -> TilePlan:
    """Return ``plan``, with other blocks where its chunks are decoded again, as memory does not suffice.

    Blocks grow along the axes along which chunks are decoded again, and share these among more tiles; or they
    are shorter along the axis that comes last, so that the chunks of fewer blocks wait; or they hold whole
    chunks along the former and as few tiles along the latter as that takes. Where none of these suffice, they
    may be flat; and any of these shapes may be made better step by step.

    Chunks that no other task may use are decoded for each block, however much memory there is: flat blocks
    and steps decode them less often.
    """
    if request.target is not None or _decodes_once(plan):
        return plan
    search = _Search(plan, request, asked, LOOKS)
    best, least = plan, planned_ratio(plan)
    for block in () if _keeps_chunks(plan) else _widths(plan, request):
        if (found := search.found(block)) is None:
            continue
        ratio = planned_ratio(found)
        if ratio < least and found.calls() <= plan.calls():
            best, least = found, ratio
        if least <= DECODED:
            return best
    return _descended(_flattened(best, search), search)


def _widths(plan: TilePlan, request: BlockRequest) -> Iterator[Index]:
    """Yield shapes of blocks that share decoded chunks among more tiles, or let fewer of them wait."""
    yield from (block for times, block in longer(plan, lost_axes(plan)) if times > 1)
    yield from thinner(plan, request)
    yield from upright(plan, request)


class _Search:
    """A look at other blocks than those of a plan, each of which is looked at once."""

    def __init__(self, plan: TilePlan, request: BlockRequest, asked: str, looks: int) -> None:
        self.plan, self.request, self.asked, self.looks = plan, request, asked, looks
        self.workers = request.workers or plan.threads
        self.uneven = _uneven(plan, self.workers)
        self.calls = self.worth(plan) - _decoding(plan, 1)
        """Most crops with which blocks can cost less than those of the plan."""
        self.most = math.inf
        """Most samples of a block, where memory is not what bounds it."""
        if not all(s.shared for s in plan.sources):
            self.most = max(MOST / sample_bytes(plan), math.prod(plan.block))
        self.seen: dict[Index, TilePlan | None] = {plan.block: plan}
        self.left: set[Index] = set()
        self.refused: list[Index] = []

    def found(self, block: Index) -> TilePlan | None:
        """Return the plan with these blocks, if they fit into memory and keep workers busy."""
        if block not in self.seen and block not in self.left and not self._is_refused(block):
            try:
                self.seen[block] = self._found(block)
            except RepeatsError:  # which took little time
                self.left.add(block)
        return self.seen.get(block)

    def worth(self, plan: TilePlan) -> float:
        """Return what a plan costs, in calls: those of the function, and what decoding takes besides.

        Where workers wait longer than with the blocks of the search's own plan, so much more.
        """
        waits = max(1, _uneven(plan, self.workers) / self.uneven)
        return waits * (plan.calls() + _decoding(plan, planned_ratio(plan)))

    def _is_refused(self, block: Index) -> bool:
        """Return whether blocks are larger than any may be, or as long as some that do not fit."""
        too_long = any(all(map(operator.le, other, block)) for other in self.refused)
        return too_long or math.prod(block) > self.most

    def _found(self, block: Index) -> TilePlan | None:
        try:
            found = choose_reuse(self.plan, block, self.request, self.plan.notes[:-1], self.asked, self.calls)
        except GridError:
            return None
        except TooLargeError as error:
            kinds = {way.kind for way in error.found}
            # Longer blocks than some that cannot share may share, and read less; but not hold less.
            if not kinds or "share" in kinds or self.request.reuse == "recompute":
                self.refused.append(block)
            return None
        return found if _uneven(found, self.workers) <= FAIR else None


def _flattened(plan: TilePlan, search: _Search) -> TilePlan:
    """Return ``plan``, or one with flat blocks that decode so much less that more calls do not matter."""
    request = search.request
    limit = math.inf if request.memory_limit is None else request.memory_limit
    kind = "recompute" if request.reuse == "auto" else request.reuse

    def fills(block: Index) -> float:
        found = plan.with_blocks(block, kind).with_cache(0)
        part = (room_bytes(found) + plan.threads * request.encoding) / max(1, limit)
        return max(part, math.prod(block) / search.most)

    best = plan
    for block in flat(plan, request, fills):
        found = search.found(block)
        if found is not None and search.worth(found) < WORTH * search.worth(best):
            best = found
    return best


def _descended(plan: TilePlan, search: _Search) -> TilePlan:
    """Return ``plan``, or one with blocks of other lengths that costs less, found step by step.

    Each step takes the first similar shape that costs less. Which axes a limit of memory makes expensive, and
    which of them others can pay for, depends on chunks, supports and threads at once: no rule names them.
    """
    best, cost = plan, search.worth(plan)
    least = plan.n_runs + _decoding(plan, 1)
    better: TilePlan | None = plan
    while better is not None:
        best, better = better, None
        for block in similar(best, search.request):
            if len(search.seen) >= search.looks or WORTH * cost <= least:
                break
            found = search.found(block)
            if found is not None and (worth := search.worth(found)) < STEP * cost:
                better, cost = found, worth
                break
    return best if cost < WORTH * search.worth(plan) else plan


def _decoding(plan: TilePlan, ratio: float) -> float:
    """Return what it costs to decode the image ``ratio`` times, in calls of the function."""
    return DECODING * ratio * math.prod(plan.shape) / math.prod(a.crop for a in plan.axes)


def is_fair(plan: TilePlan, workers: int) -> bool:
    """Return whether no worker runs many more crops than an even share, or than a batch."""
    return _load(plan, workers) <= _fair(plan, workers)


def _uneven(plan: TilePlan, workers: int) -> float:
    """Return how many times an even share, or a batch, the busiest worker runs; crops that repeat count."""
    return max(1, _load(plan, workers) / max(plan.calls() / workers, plan.batch_size or 1))


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
    some = enough(plan)
    fair = math.inf if request.target else _fair(plan, workers)
    best, least = None, math.inf
    good: TilePlan | None = None
    # Rules, read in order for every shape, the largest first:
    for most, block, notes in shapes(plan, request):
        # 0. Blocks that share nothing, and repeat more crops than the best so far, are out, whatever memory
        #    they need.
        calls = math.inf if good is not None else max(some, least * workers)
        if _repeats(plan, block, request, calls):
            if least <= _fewest(plan, most) / workers:
                break
            continue
        # 1. Blocks that do not fit into memory are out.
        try:
            found = choose_reuse(plan, block, request, notes, asked, calls)
        except (TooLargeError, RepeatsError):  # smaller blocks may share
            continue
        # 2. The first shape with few extra calls, evenly spread over the workers, is taken, or a smaller one
        #    that leaves room for chunks that would be decoded again.
        load = found.calls() / workers if request.target else _load(found, workers)
        if found.calls() <= some and load <= fair:
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
    # If none fits, the last one, which is the smallest, is the one that an error tells of.
    return _of_shape(plan, block, request, asked) if best is None else best


def _repeats(plan: TilePlan, block: Index, request: BlockRequest, most: float) -> bool:
    """Return whether blocks of a shape cannot share, and run more than ``most`` crops."""
    if request.reuse == "share":
        return False
    alone = plan.with_blocks(block, "recompute")
    # The bound needs no tables, which take long for a million blocks of a few samples.
    return (SURE * _fewest_in(plan, block) > most or alone.calls() > most) and _must_repeat(alone, request)


def _has_room(plan: TilePlan, request: BlockRequest) -> bool:
    """Return whether smaller blocks would hardly leave more room for chunks, or need not."""
    if request.memory_limit is None or request.target is not None or _keeps_chunks(plan):
        return True
    # Tasks of small blocks are so short that one thread overtakes another by many of them.
    small = math.prod(plan.block) * sample_bytes(plan) < SMALL / 8
    return small or 32 * (room_bytes(plan) - plan.cache_bytes) <= request.memory_limit


def is_thrifty(plan: TilePlan) -> bool:
    """Return whether few crops run twice, and hardly any chunk that may be kept is decoded again."""
    return plan.calls() <= enough(plan) and _keeps_chunks(plan)


def _keeps_chunks(plan: TilePlan) -> bool:
    """Return whether memory suffices to decode hardly any chunk again that may be kept."""
    if not lost_axes(plan) or not any(s.shared and s.chunks for s in plan.sources):
        return True
    return planned_ratio(plan) <= DECODED


def _decodes_once(plan: TilePlan) -> bool:
    """Return whether hardly any chunk is decoded again."""
    chunked = repeated_axes(plan) and any(s.chunks for s in plan.sources)
    return not chunked or planned_ratio(plan) <= DECODED


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


def _fewest_in(plan: TilePlan, block: Index) -> float:
    """Return about the fewest crops that blocks of a shape need if they share no tiles, by the same sums.

    Tiles that run under a mask may lie inside blocks, and those at the ends of short axes share other parts.
    """
    if plan.mask is not None:
        return plan.n_runs
    found = float(plan.n_runs)
    for d, (axis, size) in enumerate(zip(plan.axes, block, strict=True)):
        if axis.starts is None and axis.extent >= LONG * axis.crop:
            rim = plan.outputs[0].rim
            start, stop = axis.support(len(axis) // 2, None if rim is None else rim[d])
            shared = (stop - start - 1) // axis.stride * axis.stride
            found *= max(1, 1 - shared / axis.extent + shared / size)
    return found
