"""The plan of a run that writes: blocks that are whole write units, also of coarser levels, and fit."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import zarr

from tilework._checks import parse_bytes
from tilework._types import Index
from tilework.engine.pyramid import PART
from tilework.engine.spec import Spec
from tilework.errors import GridError, MemoryBudgetError, TilingError
from tilework.execution.where import Where
from tilework.function.devices import devices_of
from tilework.graph.build import chunks_of
from tilework.plan.block_shapes import BlockRequest
from tilework.plan.blocks import DECODED, choose_blocks, is_fair, is_thrifty
from tilework.plan.decoding import decoded_ratio, with_cache
from tilework.plan.memory import room_bytes
from tilework.plan.reuse import Candidate
from tilework.plan.tile_plan import TilePlan
from tilework.writing.image import Image
from tilework.writing.ledger import Ledger
from tilework.writing.levels import Level, levels_of
from tilework.writing.target import Continued, Fresh, Place
from tilework.writing.units import Layout, encoding_bytes, input_unit

__all__ = ["Member", "depth", "lanes", "memory_of", "replanned", "with_levels"]

# Largest write unit of a level that is made with the blocks, in bytes of level 0: a block is at least as
# large, and each thread holds one. Blocks of 16 MiB took 1.9 times the memory of those that are written
# without levels, blocks of 8 MiB as much (`python -m benchmarks pyramid`). Level 1 may be larger, so that
# level 0 is not read.
LARGEST, LEVEL_1 = 8 * 2**20, 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One output to be written."""

    number: int
    """Number of the output."""
    lazy: Any
    """The dask array."""
    dtype: Any
    """Dtype in which it is written."""
    place: Place
    """Its target, and the data that are there."""
    layout: Layout
    """Chunks and shards of the array."""
    image: Image | None = None
    """The OME-Zarr image whose level 0 it is."""
    levels: tuple[Level, ...] = ()
    """The coarser levels."""
    level_places: tuple[Place, ...] = ()
    """Their targets, and the data that are there."""


def with_levels(member: Member, fingerprint: Mapping[str, str]) -> Member:
    """Return an output with the coarser levels of its image; raise if they must not be written."""
    image, lazy, target = member.image, member.lazy, member.place.target
    if image is None:
        return member
    levels = levels_of(lazy.shape, member.layout, image.meta, image.asked, strict=image.strict)
    image.check(
        image.attributes(levels, member.dtype),
        resumed=isinstance(member.place, Continued),
        overwrite=target.overwrite,
    )
    places = []
    for level in levels:
        path = f"{target.path.removesuffix('0')}{level.number}"
        own = replace(target, path=path, chunks=level.layout.chunks, shards=level.layout.shards)
        looked = own.look(())
        _refuse_others(looked)
        place = looked.compare(level.fingerprint(fingerprint, image.method, image.meta.nodata))
        chunks = level.layout.chunks
        place.layout(level.shape, member.dtype, functools.partial(tuple, chunks))
        places.append(place)
    return replace(member, levels=levels, level_places=tuple(places))


def _refuse_others(place: Place) -> None:
    """Raise if a coarser level, which nobody named, would replace what is none of tilework's."""
    found = place.found if isinstance(place, Fresh) else None
    if found is not None and (isinstance(found, zarr.Group) or Ledger(found).record is None):
        raise TilingError(
            f"{place.target.address} holds data that tilework did not write, where a level of the image "
            "would be; delete them yourself, or name another place."
        )


def memory_of(limit: Any, where: Where) -> int:
    """Return the memory limit of a process, bytes."""
    return where.memory if limit is None else parse_bytes("memory_limit", limit)


def replanned(
    spec: Spec, members: Sequence[Member], limit: Any, where: Where, below: Sequence[Spec] = ()
) -> Spec:
    """Return ``spec`` with blocks that are whole write units and fit into memory, for most threads.

    Blocks are also whole write units of as many coarser levels as blocks of about the same size can be, so
    that these levels are made from what is in memory. ``below`` are results from which this one is computed.
    """
    memory = memory_of(limit, where)
    records = [m.place.record for m in members if isinstance(m.place, Continued)]
    # Another block shape would change the order of summation.
    block = tuple(records[0]["plan"]["block"]) if records else None
    request = BlockRequest(
        block, None, _unit(spec, members, 0), memory, "auto", slabs=True, workers=where.at_once,
        encoding=_encoding(spec, members),
    )  # fmt: skip
    refused: MemoryBudgetError | None = None
    gaps = spec.plan.gaps if spec.on_error == "raise" else "any"
    for threads in where.fewer():
        plan = spec.plan.with_gaps(gaps).with_threads(threads).with_cache(0)
        try:
            plan = _fitting(spec, plan, request, where, given=limit is not None)
        except MemoryBudgetError as error:
            refused = error
        else:
            if block is None and not spec.fixed:
                plan = _deeper(spec, plan, members, request, where)
            return replace(spec, plan=_with_lanes(spec, plan, request, where, below))
    assert refused is not None
    raise refused


def _with_lanes(
    spec: Spec, plan: TilePlan, request: BlockRequest, where: Where, below: Sequence[Spec]
) -> TilePlan:
    """Return the plan with as many threads as its devices need, as far as memory suffices for its blocks.

    Blocks stay as they are, and so the bits of the result; and no chunk is decoded again for more threads.
    """
    most = where.threads_for(max(devices_of(one.fn) for one in (spec, *below)))
    memory, ratio = request.memory_limit, max(DECODED, decoded_ratio(plan))
    assert memory is not None

    def with_threads(threads: int) -> TilePlan | None:
        room = memory - _needed(below, threads)
        found = Candidate.of(plan.with_threads(threads), replace(request, memory_limit=max(0, room)))
        return found.plan if found.peak <= room and decoded_ratio(found.plan) <= ratio else None

    if where.alone:  # more threads than blocks would have nothing to do
        most = min(most, math.prod(plan.blocks))
    return with_threads(_most(plan.threads, most, with_threads)) or plan


def lanes(below: Sequence[Spec], blocks: int, limit: Any, where: Where) -> int | None:
    """Return the number of threads for an array that is computed from results; None: the scheduler's own."""
    most = where.threads_for(max((devices_of(spec.fn) for spec in below), default=0))
    memory = memory_of(limit, where)
    most = min(most, blocks) if where.alone else most
    threads = _most(where.threads, most, lambda n: _needed(below, n) <= memory)
    return threads if threads > where.threads else None


def _most(own: int, most: int, fits: Callable[[int], Any]) -> int:
    """Return the largest number of threads up to ``most`` that fits into memory, at least ``own``."""
    further = range(own + 1, max(own, most) + 1)
    return own + bisect.bisect_left(further, True, key=lambda n: not fits(n))


def _needed(below: Sequence[Spec], threads: int) -> int:
    """Return the bytes at the peak of computing ``below`` with a number of threads, without kept chunks."""
    return sum(room_bytes(spec.plan.with_threads(threads).with_cache(0)) for spec in below)


def _unit(spec: Spec, members: Sequence[Member], depth: int) -> Index:
    """Return the fewest image samples per grid axis that are whole write units of levels 0 to ``depth``."""
    units = [
        input_unit(spec, m.number, unit)
        for m in members
        for unit in (m.layout.unit, *(level.reach for level in m.levels[:depth]))
    ]
    return tuple(math.lcm(*column) for column in zip(*units, strict=True))


def _encoding(spec: Spec, members: Sequence[Member]) -> int:
    """Return the bytes that writing a block takes: encoding a unit, and the coarser levels of the block."""
    found = []
    for m in members:
        size = m.lazy.dtype.itemsize
        block = math.prod(max(sizes) for sizes in chunks_of(spec, spec.outputs[m.number])) * size
        # Two axes are halved or more, so all levels together take at most a third of the block.
        levels = min(max(block, LARGEST), m.lazy.size * size) // 3 + PART if m.levels else 0
        found.append(encoding_bytes(m.layout.unit, size) + levels)
    return max(found)


def _fitting(spec: Spec, plan: TilePlan, request: BlockRequest, where: Where, *, given: bool) -> TilePlan:
    """Return the plan with blocks that fit ``request``; ``given``: the caller gave a limit of memory."""
    assert request.unit is not None
    assert request.memory_limit is not None
    if request.chunks is not None:
        return _resumed(plan, request)
    memory = request.memory_limit - plan.threads * request.encoding
    if _fits(plan, request.unit, memory) and not _too_few(spec, where):
        own = with_cache(plan, memory - room_bytes(plan))
        # Other blocks are for a limit that these do not fit, with their chunks and all their tiles run once.
        if not given or is_thrifty(own):
            return own
    return choose_blocks(plan, request)


def _fits(plan: TilePlan, unit: Index, memory: int) -> bool:
    """Return whether the blocks of the lazy array are whole write units and fit into memory."""
    return _whole(plan, unit) and room_bytes(plan) <= memory


def _whole(plan: TilePlan, unit: Index) -> bool:
    """Return whether the blocks are multiples of ``unit``."""
    return all(b == n or b % u == 0 for b, n, u in zip(plan.block, plan.shape, unit, strict=True))


def _too_few(spec: Spec, where: Where) -> bool:
    """Return whether workers of a cluster would wait for a few large blocks.

    Local schedulers keep the blocks of the lazy array, and so its order of summation.
    """
    return where.client is not None and not spec.fixed and not is_fair(spec.plan, where.at_once)


def _resumed(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return the plan with the given blocks in which each tile runs once, if there is one."""
    try:
        return choose_blocks(plan, replace(request, reuse="share"))
    except (GridError, MemoryBudgetError):
        return choose_blocks(plan, request)


def _deeper(
    spec: Spec, plan: TilePlan, members: Sequence[Member], request: BlockRequest, where: Where
) -> TilePlan:
    """Return the plan with blocks that are whole units of as many levels as `LARGEST` bytes can be."""
    deepest = max(len(m.levels) for m in members)
    rounded = any(spec.outputs[m.number].kind not in ("trim", "max", "min") for m in members)
    if rounded and deepest and _whole(plan, _unit(spec, members, 1)):
        return plan  # other blocks would round sums differently; level 0 is not read again with these
    for levels in range(deepest, 0, -1):
        unit = _unit(spec, members, levels)
        if _whole(plan, unit):
            return plan
        most = LARGEST if levels > 1 else LEVEL_1
        if any(_bytes(m.levels[levels - 1], m) > most for m in members if len(m.levels) >= levels):
            continue
        for reuse in ("auto", "share"):
            try:
                found = choose_blocks(plan, replace(request, unit=unit, reuse=reuse))
            except (GridError, MemoryBudgetError):
                continue
            fair = is_fair(found, where.at_once) or not is_fair(plan, where.at_once)
            if fair and found.calls() <= plan.calls():
                return found
    return plan


def _bytes(level: Level, member: Member) -> int:
    """Return the bytes of level 0 below one write unit of a level."""
    samples = math.prod(min(r, n) for r, n in zip(level.reach, member.lazy.shape, strict=True))
    return int(samples * member.lazy.dtype.itemsize)


def depth(chunks: Sequence[Sequence[int]], levels: Sequence[Level]) -> int:
    """Return of how many levels every chunk of a result, of given lengths per axis, is whole write units."""
    for n, level in enumerate(levels):
        for sizes, reach in zip(chunks, level.reach, strict=True):
            if any(size % reach for size in sizes[:-1]):
                return n
    return len(levels)
