"""How blocks of one shape are computed: whether they share crops, what that costs, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilework._types import Index
from tilework.errors import GridError, MemoryBudgetError
from tilework.plan.block_shapes import BlockRequest, longer
from tilework.plan.cost import human, threads_of
from tilework.plan.decoding import kept_levels, with_cache
from tilework.plan.memory import held_bytes, in_order, least_bytes, parallel_bytes, room_bytes, seam_bytes
from tilework.plan.tile_plan import TilePlan

__all__ = ["Candidate", "Notes", "RepeatsError", "TooLargeError", "choose_reuse", "enough", "paints"]

Notes = tuple[str, ...]

# Fraction of extra calls up to which blocks that share no tiles are the better plan.
RECOMPUTE_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute blocks of one shape, and its cost."""

    plan: TilePlan
    """The tiles with these blocks."""
    kind: str
    """"recompute", "share" or "slabs"."""
    calls: int
    """Number of crops that the function gets in the whole run."""
    encoding: int
    """Bytes that encoding what is written takes in a process."""
    longer: int
    """Factor by which the blocks are longer across slabs than requested."""

    @classmethod
    def of(cls, plan: TilePlan, request: BlockRequest, longer: int = 1) -> Candidate:
        """Return a plan with its costs; chunks are kept as far as memory allows."""
        kind = "slabs" if plan.slabs else plan.reuse
        limit = math.inf if request.memory_limit is None else request.memory_limit
        encoding, none = plan.threads * request.encoding, plan.with_cache(0)
        if plan.reuse == "share" and seam_bytes(none) > limit:
            return cls(none, kind, none.calls(), encoding, longer)  # it does not fit, whatever else it takes
        if (room := limit - encoding - least_bytes(none)) >= 0:
            none = in_order(none)
            room = limit - encoding - least_bytes(none)
        # Made from `none`, it has the tables that the costs were taken from.
        plan = with_cache(none, room)
        return cls(plan, kind, plan.calls(), encoding, longer)

    @property
    def peak(self) -> int:
        """Estimated bytes at the peak of a process."""
        return room_bytes(self.plan) + self.encoding

    @property
    def bounds(self) -> Iterator[int]:
        """Bytes that the peak is not below, and the peak; each takes longer to count than the one before."""
        yield seam_bytes(self.plan) if self.plan.reuse == "share" else 0
        yield least_bytes(self.plan) + self.encoding
        yield self.peak

    def fits(self, limit: float) -> bool:
        """Return whether the peak is at most ``limit`` bytes."""
        return all(need <= limit for need in self.bounds)

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Sort key of candidates: fewest calls first, then the simplest."""
        return self.calls, self.plan.slabs, self.longer, self.kind


def choose_reuse(
    plan: TilePlan, block: Index, request: BlockRequest, notes: Notes, asked: str, most: float | None = None
) -> TilePlan:
    """Return the plan with the cheapest reuse that fits into memory; the last of its notes is the reason.

    ``most``: blocks that share nothing are left out if they run more crops. None: an error tells of all ways.
    """
    limit = math.inf if request.memory_limit is None else request.memory_limit
    tried: list[Candidate] = []
    if most is not None and held_bytes(plan, block) + plan.threads * request.encoding > limit:
        raise TooLargeError(block, tried)
    for ways in _ways(plan, block, request, notes, math.inf if most is None else most):
        tried += ways
        if fitting := [way for way in ways if way.fits(limit)]:
            best = min(fitting, key=lambda way: way.rank)
            reasons = (asked,) if request.reuse != "auto" else ()
            return best.plan.with_notes((*notes, *reasons, *_reasons(best, tried, request, limit)))
    if request.reuse != "share" and all(way.kind != "recompute" for way in tried):
        alone = plan.with_blocks(block, "recompute").with_cache(0)
        encoding = plan.threads * request.encoding
        if least_bytes(alone) + encoding <= limit:
            raise RepeatsError
        tried.append(Candidate(alone, "recompute", alone.calls(), encoding, 1))
    raise TooLargeError(block, tried)


def _ways(
    plan: TilePlan, block: Index, request: BlockRequest, notes: Notes, most: float
) -> Iterator[list[Candidate]]:
    """Yield the ways to compute blocks of a shape: the best that fit are among the first of which any do.

    What a way costs takes most of the time of a shape, and is not found out for those that come later.
    """
    alone = plan.with_blocks(block, "recompute", notes)
    if request.reuse == "recompute":
        yield [] if alone.calls() > most else [Candidate.of(alone, request)]
        return
    shared = alone.with_blocks(block, "share", notes)
    short = _too_short(shared)
    if short and request.reuse == "share":
        raise GridError(short)
    # 1. Blocks that share no tiles, if they run few tiles twice.
    few = request.reuse == "auto" and alone.calls() <= enough(plan)
    if few:
        yield [Candidate.of(alone, request)]
    # 2. Blocks that share tiles.
    if not short:
        yield [Candidate.of(shared, request)]
    # 3. The fewest calls: the former, or blocks that share within slabs, one slab after the other.
    left = few or request.reuse == "share" or alone.calls() > most
    rest = [] if left else [Candidate.of(alone, request)]
    if request.slabs and not short:
        rest += _slabs(shared, request)
    yield rest


def _reasons(best: Candidate, tried: Sequence[Candidate], request: BlockRequest, limit: float) -> Notes:
    """Return why a way was chosen among those that were ``tried``."""
    share = next((way for way in tried if way.kind == "share"), None)
    if best.kind == "slabs":
        return (_slab_reason(best, share),)
    if request.reuse != "auto":
        return ()
    extra = best.plan.with_blocks(best.plan.block, "recompute").calls() / max(1, best.plan.n_runs) - 1
    if best.kind == "share":
        return (f"share: blocks alone would cost {extra:.1%} extra calls",)
    return (f"recompute: {extra:.1%} extra calls{_hindrance(best.plan, share, limit)}",)


class RepeatsError(Exception):
    """Blocks of one shape cannot share, and would run more crops than they may."""


class TooLargeError(Exception):
    """Blocks of one shape do not fit into memory, however they are computed."""

    def __init__(self, block: Index, found: Sequence[Candidate]) -> None:
        super().__init__(block)
        self.block, self.found = block, found

    def refusal(self, request: BlockRequest) -> MemoryBudgetError:
        """Return the error for the user; to find a limit that suffices takes long."""
        plan, least = self.found[0].plan, min(map(_least, self.found))
        fewer, limit = "fewer threads, " if plan.threads > 1 else "", request.memory_limit
        return MemoryBudgetError(
            f"blocks of {self.block} samples need about {human(least)} in a process with "
            f"{threads_of(plan)}{_encoded(plan, request)}; memory_limit is {human(limit or 0)}. "
            f"Use {fewer}a smaller crop or batch, or memory_limit={least}."
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
        for times, block in longer(plan, cut) if request.chunks is None else ((1, plan.block),):
            yield Candidate.of(plan.with_blocks(block, "share", plan.notes, slabs), request, times)


def _slab_reason(slabs: Candidate, share: Candidate | None) -> str:
    assert share is not None  # slabs are made from it
    plan, extra = slabs.plan, slabs.calls / max(1, slabs.plan.n_runs) - 1
    cut = ", ".join(plan.names[d] for d in plan.slab_axes)
    return f"slabs along axis {cut}: {extra:.1%} extra calls; in one piece it would need {human(share.peak)}"


def _hindrance(plan: TilePlan, share: Candidate | None, limit: float) -> str:
    """Return why the blocks of a plan cannot share, as the end of a reason; "" if nobody asked."""
    if share is None:
        return ", and supports are longer than blocks" if _too_short(plan) else ""
    need, more = next((need, n < 2) for n, need in enumerate(share.bounds) if need > limit)
    return f", and sharing would need {'more than ' * more}{human(need)}"


def enough(plan: TilePlan) -> float:
    """Return the number of crops that blocks may run without others being looked for."""
    return (1 + (0.0 if paints(plan) else RECOMPUTE_LIMIT)) * plan.n_runs


def paints(plan: TilePlan) -> bool:
    """Return whether an output holds objects that tiles paint wherever their crops reach."""
    return any(output.blend == "own" for output in plan.outputs)
