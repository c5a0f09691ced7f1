"""The choice of block shape and reuse: what a block wants, and what is given up first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilework._checks import one_of
from tilework.errors import AlignmentError, GridError, MemoryBudgetError, TilingError
from tilework.grid.axis import ceil_div
from tilework.plan.cost import busiest, human, peak_bytes
from tilework.plan.tile_plan import TilePlan

__all__ = ["BlockRequest", "choose_blocks", "is_fair"]

# Bytes of a block where nothing else decides: large enough that a task outweighs the scheduler's millisecond
# by far, small enough that canvases and seams are no burden. Huge images get larger blocks, so that the graph
# stays at some thousand of them. Measured with `python -m benchmarks blend2d zarr_trim`.
SMALL, LARGE, BLOCKS = 4 * 2**20, 128 * 2**20, 8192
# So that workers do not wait for the last block: blocks for each where the image has that many, and crops of
# the busiest one, as a multiple of an even share. With more blocks than ENOUGH for each the share is even.
BLOCKS_PER_WORKER, FAIR, ENOUGH = 4, 1.25, 64
# Extra calls up to which blocks that share nothing are the better plan.
RECOMPUTE_LIMIT = 0.05


# Reuse, axes that are cut into slabs, and how many times longer blocks are across them.
Kind = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """What the caller fixes of the blocks."""

    chunks: tuple[int, ...] | None = None
    """Block shape over all grid axes, samples; None: chosen."""
    target: int | None = None
    """Bytes of a block; None: chosen."""
    unit: tuple[int, ...] | None = None
    """Blocks are multiples of this, samples per grid axis (the write unit)."""
    memory_limit: int | None = None
    """Bytes per process."""
    reuse: str = "auto"
    """share, recompute or auto."""
    slabs: bool = False
    """Whether blocks may be computed slab by slab, as when writing."""
    workers: int | None = None
    """Tasks at a time in the whole run; None: as many as in one process."""


def choose_blocks(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return ``plan`` with the block shape and reuse that fit ``request`` best.

    Raises
    ------
    MemoryBudgetError
        When no block shape keeps the estimate under the memory limit.
    GridError
        When given chunks cannot be shared, or are not multiples of the output's quantum.
    """
    one_of("reuse", request.reuse, ("auto", "share", "recompute"))
    if request.chunks is not None:
        _check_chunks(plan, request.chunks, request.unit)
        return _choose_reuse(plan, request.chunks, request, ())
    try:
        return _shrink(plan, request)
    except MemoryBudgetError:
        if request.reuse != "auto":
            raise
    # Blocks that share are at least as long as the longest support; blocks that share nothing may be shorter.
    found = _shrink(plan, replace(request, reuse="recompute"))
    return replace(found, notes=(*found.notes[:-1], "recompute: sharing does not fit into memory_limit"))


def _shrink(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return the plan with the largest blocks, up to the target, that fit into memory and keep workers busy.

    Where memory is short, smaller blocks that share may cost fewer calls than larger ones that do not.
    """
    workers = request.workers or plan.threads
    wanted = max(_small(plan), _sample_bytes(plan) * max(math.prod(plan.shape) / BLOCKS, _batch(plan)))
    target = request.target or int(min(LARGE, wanted))
    enough = (1 + RECOMPUTE_LIMIT) * plan.count([(0, n) for n in plan.grid_shape])
    error: TilingError | None = None
    best = tried = None
    least, fair = math.inf, _fair(plan, workers)
    while target:
        block, notes = _shape(plan, request, target)
        # A small image has small blocks whatever the target: halving it may change nothing at first.
        if block != tried:
            tried = block
            try:
                found = _choose_reuse(plan, block, request, notes)
            except MemoryBudgetError as e:
                error = e
            else:
                load = found.calls() / workers if request.target else _load(found, workers)
                if best is None or load < least:
                    best, least = found, load
                if found.calls() <= enough and (request.target or load <= fair):
                    return found
        target //= 2
    if best is None:
        assert error is not None
        raise error
    return best


def is_fair(plan: TilePlan, workers: int) -> bool:
    """Return whether no worker runs many more crops than its share, or than a batch."""
    return _load(plan, workers) <= _fair(plan, workers)


def _fair(plan: TilePlan, workers: int) -> float:
    """Return how many crops one of ``workers`` may run, whatever the blocks."""
    share = plan.count([(0, n) for n in plan.grid_shape]) / workers
    return FAIR * max(share, plan.batch_size or 1)


def _load(plan: TilePlan, workers: int) -> float:
    if math.prod(plan.blocks) > ENOUGH * workers:
        return plan.calls() / workers
    return busiest(plan, workers)


def _check_chunks(plan: TilePlan, chunks: Sequence[int], unit: Sequence[int] | None) -> None:
    for name, size, axis, u in zip(plan.names, chunks, plan.axes, unit or (1,) * len(chunks), strict=True):
        if size < 1:
            raise GridError(f"chunks must be at least 1; got {size} on axis {name}.")
        if size < axis.extent and size % axis.quantum:
            raise GridError(
                f"chunks must be multiples of {axis.quantum}, the denominator of the output's scale; got "
                f"{size} on "
                f"axis {name}."
            )
        if size < axis.extent and size % u:
            raise AlignmentError(
                f"blocks must be whole write units, or two tasks would write one unit; got blocks of {size} "
                "and "
                f"units of {u} samples on axis {name}. Leave chunks out of tiled_map, or use a multiple of "
                f"{u}."
            )


def _choose_reuse(
    plan: TilePlan, block: tuple[int, ...], request: BlockRequest, notes: tuple[str, ...]
) -> TilePlan:
    """Return the plan with the cheaper reuse that fits into memory."""
    limit = request.memory_limit
    candidates: dict[Kind, TilePlan] = {}
    for reuse in ("recompute", "share") if request.reuse == "auto" else (request.reuse,):
        candidate = plan.with_blocks(block, reuse, notes)
        if reuse == "share" and (short := _too_short(candidate)):
            if request.reuse == "share":
                raise GridError(short)
            continue
        candidates[reuse, 0, 1] = candidate
        if request.slabs and reuse == "share":
            candidates |= _slabs(candidate, fixed=request.chunks is not None)
    peaks = {kind: peak_bytes(candidate) for kind, candidate in candidates.items()}
    fitting = {kind: c for kind, c in candidates.items() if limit is None or peaks[kind] <= limit}
    if not fitting:
        raise MemoryBudgetError(
            f"blocks of {block} samples need about {human(min(peaks.values()))} in a process with "
            f"{plan.threads} "
            f"threads; memory_limit is {human(limit or 0)}. Use fewer threads, a smaller crop or batch, or "
            f"memory_limit={min(peaks.values())}."
        )
    tiles = max(1, plan.count([(0, n) for n in plan.grid_shape]))
    if request.reuse != "auto":
        kind = min(fitting, key=lambda k: (fitting[k].calls(), k[1:]))
        why: tuple[str, ...] = (f"reuse={request.reuse!r} was asked for",)
        if kind[1]:
            why = (*why, _slab_note(fitting[kind], tiles, peaks["share", 0, 1]))
        return replace(fitting[kind], notes=(*notes, *why))
    return _cheapest(candidates, fitting, peaks, tiles)


def _slabs(plan: TilePlan, *, fixed: bool) -> dict[Kind, TilePlan]:
    """Return plans of slabs; blocks that are longer across the slabs run fewer tiles twice."""
    found = {}
    for slabs in range(1, len(plan.axes) - plan.n_each):
        cut = plan.slow_axes[plan.n_each : plan.n_each + slabs]
        for times in (1,) if fixed else (1, 2, 4, 8, 16):
            block = [b * times if d in cut else b for d, b in enumerate(plan.block)]
            if times == 1 or any(block[d] < plan.shape[d] + plan.block[d] for d in cut):
                block = [min(b, n) for b, n in zip(block, plan.shape, strict=True)]
                found["share", slabs, times] = plan.with_blocks(block, "share", plan.notes, slabs)
    return found


def _cheapest(
    candidates: dict[Kind, TilePlan],
    fitting: dict[Kind, TilePlan],
    peaks: dict[Kind, int],
    tiles: int,
) -> TilePlan:
    """Return the plan with the fewest calls among those that fit; sharing nothing where it costs little."""
    alone = candidates["recompute", 0, 1]
    extra, notes = alone.calls() / tiles - 1, alone.notes
    if ("recompute", 0, 1) in fitting and extra <= RECOMPUTE_LIMIT:
        kind = ("recompute", 0, 1)
    else:
        kind = min(fitting, key=lambda k: (fitting[k].calls(), k[1:], k[0]))
    if kind[0] == "recompute":
        why = f"recompute: {extra:.1%} extra calls"
        if ("share", 0, 1) not in candidates:
            why += ", and supports are longer than blocks"
        elif ("share", 0, 1) not in fitting:
            why += f", and sharing would need {human(peaks['share', 0, 1])}"
    elif kind[1]:
        why = _slab_note(fitting[kind], tiles, peaks["share", 0, 1])
    else:
        why = f"share: blocks alone would cost {extra:.1%} extra calls"
    return replace(fitting[kind], notes=(*notes, why))


def _slab_note(plan: TilePlan, tiles: int, peak: int) -> str:
    cut = ", ".join(plan.names[d] for d in plan.slab_axes)
    extra = plan.calls() / tiles - 1
    return f"slabs along axis {cut}: {extra:.1%} extra calls; in one piece it would need {human(peak)}"


def _too_short(plan: TilePlan) -> str:
    for name, table, size, axis in zip(plan.names, plan.tables, plan.block, plan.axes, strict=True):
        if table.longest > size < axis.extent:
            return (
                f'reuse="share" needs blocks at least as long as the longest support; got blocks of {size} '
                "and a "
                f'support of {table.longest} on axis {name}. Use larger chunks or reuse="recompute".'
            )
    return ""


def _shape(plan: TilePlan, request: BlockRequest, target: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return a block shape of about ``target`` bytes, and what was given up for it."""
    sample = _sample_bytes(plan)
    total = math.prod(plan.shape)
    # Blocks below the small size would cost more than the threads that they keep busy at the end.
    workers = request.workers or plan.threads
    few = max(min(total / workers, 2 * SMALL / sample), _batch(plan))
    room = min(target / sample, max(few, total / (BLOCKS_PER_WORKER * workers)))
    units, notes = _units(plan, request, target / sample)
    extents = [ceil_div(a.extent, u) * u for a, u in zip(plan.axes, units, strict=True)]
    sizes = [min(n, u) for n, u in zip(extents, units, strict=True)]
    if request.reuse != "recompute":
        longest = plan.with_blocks(plan.shape, "share").tables
        sizes = [
            min(n, max(s, ceil_div(t.longest, u) * u))
            for n, s, t, u in zip(extents, sizes, longest, units, strict=True)
        ]
    tiled = range(plan.n_each, len(sizes))
    for axes in (tiled, range(plan.n_each)):
        _grow(sizes, extents, units, [plan.axes[d].crop for d in range(len(sizes))], list(axes), room)
    even = [
        min(s, ceil_div(ceil_div(n, ceil_div(n, s)), u) * u) if request.reuse == "recompute" else s
        for s, n, u in zip(sizes, (a.extent for a in plan.axes), units, strict=True)
    ]
    return tuple(min(s, a.extent) for s, a in zip(even, plan.axes, strict=True)), notes


def _small(plan: TilePlan) -> int:
    """Return the least bytes of a block; blends take twice as much, because their canvases overlap."""
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
    extents: list[int],
    units: list[int],
    crops: list[int],
    axes: list[int],
    room: float,
) -> None:
    """Lengthen ``sizes`` along ``axes`` by whole units while the block stays within ``room`` samples."""
    open_axes = set(axes)
    while open_axes:
        d = min(open_axes, key=lambda a: (sizes[a] / crops[a], -a))
        longer = min(extents[d], sizes[d] + units[d])
        if longer == sizes[d] or math.prod(sizes) // sizes[d] * longer > room:
            open_axes.discard(d)
        else:
            sizes[d] = longer


def _units(plan: TilePlan, request: BlockRequest, room: float) -> tuple[list[int], tuple[str, ...]]:
    """Return the step of the block's length per axis, and what it is not a multiple of."""
    units = [
        math.lcm(a.quantum, u) for a, u in zip(plan.axes, request.unit or (1,) * len(plan.axes), strict=True)
    ]
    notes = []
    strides = [a.stride for a in plan.axes]
    wishes: list[tuple[str, Sequence[int]]] = [("the stride", strides)]
    wishes += [("the source's chunks", s.chunks) for s in plan.sources if s.chunks is not None]
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
