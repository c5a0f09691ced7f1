"""A lazy result planned anew for writing: whole write units, within memory, and what a mask left undone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tilework._checks import parse_bytes
from tilework.engine.spec import Spec
from tilework.errors import GridError, MemoryBudgetError
from tilework.execution.where import Where
from tilework.grid.tiles import Tile
from tilework.plan.blocks import BlockRequest, choose_blocks, is_fair
from tilework.plan.cost import peak_bytes
from tilework.plan.tile_plan import TilePlan
from tilework.writing.ledger import Marks
from tilework.writing.target import Target
from tilework.writing.units import Bits, Units, input_unit

__all__ = ["remask", "replanned"]


def replanned(
    spec: Spec,
    numbers: Mapping[str, int],
    layouts: Mapping[str, Any],
    targets: Mapping[str, Target],
    limit: Any,
    where: Where,
) -> Spec:
    """Return ``spec`` with blocks that are whole write units and, with so many threads, fit into memory."""
    memory = where.memory if limit is None else parse_bytes("memory_limit", limit)
    units = [input_unit(spec, numbers[key], shards or chunks) for key, (chunks, shards) in layouts.items()]
    unit = tuple(math.lcm(*column) for column in zip(*units, strict=True))
    old = next((t.record["plan"]["block"] for t in targets.values() if t.record is not None), None)
    # Another block shape would be another order of summation.
    block = None if old is None else tuple(old)
    request = BlockRequest(block, None, unit, memory, "auto", slabs=True, workers=where.at_once)
    cache = min(spec.plan.cache_bytes, memory // 8)
    refused: MemoryBudgetError | None = None
    for threads in where.fewer():
        plan = replace(spec.plan, threads=threads, cache_bytes=cache)
        try:
            if block is not None:
                plan = _gone_on(plan, request)
            elif limit is not None or not _fits(plan, unit, memory) or _idle(spec, where):
                plan = choose_blocks(plan, request)
        except MemoryBudgetError as error:
            refused = error
        else:
            return replace(spec, plan=plan)
    assert refused is not None
    raise refused


def _fits(plan: TilePlan, unit: tuple[int, ...], memory: int) -> bool:
    """Return whether the blocks of the lazy array are whole write units and fit into memory."""
    whole = all(b == n or b % u == 0 for b, n, u in zip(plan.block, plan.shape, unit, strict=True))
    return whole and peak_bytes(plan) <= memory


def _idle(spec: Spec, where: Where) -> bool:
    """Return whether workers of a cluster would wait for a few large blocks.

    Local schedulers keep the blocks of the lazy array, and so its order of summation.
    """
    return where.client is not None and not spec.fixed and not is_fair(spec.plan, where.at_once)


def _gone_on(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return the plan with given blocks in which each tile runs once, if there is one."""
    try:
        return choose_blocks(plan, replace(request, reuse="share"))
    except (GridError, MemoryBudgetError):
        return choose_blocks(plan, request)


def remask(spec: Spec, units: Units, array: Any, done: Bits, record: Mapping[str, Any]) -> bool:
    """Forget that units are done in which other tiles run than when they were written."""
    old = TilePlan.from_json(json.dumps(record["plan"]))
    if old.mask == spec.plan.mask:
        return False
    before, now = (True if plan.runs is None else plan.runs for plan in (old, spec.plan))
    changed = np.not_equal(before, now)
    touched = {unit for tile in _tiles(spec, changed) for unit in units.of_tile(tile)}
    for unit in touched:
        done[unit] = False
    Marks(array).reset(done)
    return True


def _tiles(spec: Spec, chosen: Bits) -> Iterator[Tile]:
    grid = spec.plan.grid
    return (grid[grid.number(tuple(map(int, position)))] for position in np.argwhere(chosen))
