"""What runs inside a task: groups, seams, merged and finished blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilework.engine.accumulate import Accumulator, cover
from tilework.engine.canvas import Partial, combine, finish
from tilework.engine.reading import Crops, Failure, run_tiles, tiles_of
from tilework.engine.spec import Index, Spec
from tilework.grid.tiles import Box, Tile
from tilework.grid.weights import AxisWeights
from tilework.plan.tile_plan import Range
from tilework.source.zarr_array import CHUNKS

__all__ = [
    "Group",
    "block_boxes",
    "block_groups",
    "canvas_boxes",
    "end_block",
    "end_fill",
    "fill_block",
    "finish_block",
    "hold_block",
    "make_block",
    "merge_groups",
    "owners_of",
    "run_block",
    "run_group",
    "take_seams",
]

Gather = Callable[..., "list[Group]"]


@dataclass(slots=True)
class Group:
    """What the tiles of one owner block add up to."""

    partials: list[Partial]
    """One per output."""
    skipped: list[int]
    """Numbers of the tiles that have no result: left out by the skip predicate, or failed."""
    failures: list[Failure] = field(default_factory=list)
    """Why tiles failed, where a failure does not end the run."""


def run_group(spec: Spec, index: Index, given: Sequence[Any]) -> Group:
    """Return the canvases of the tiles that block ``index`` owns."""
    with CHUNKS.active():
        ranges = spec.ranges(index, owned=True)
        tiles = tiles_of(spec, ranges)
        crops = [Crops(spec, k, ranges, part, len(tiles)) for k, part in enumerate(given)]
        accumulator = Accumulator(spec, canvas_boxes(spec, index))
        skipped: list[int] = []
        failures: list[Failure] = []
        for tile, results in run_tiles(spec, tiles, crops, skipped, failures):
            accumulator.add(tile, results)
    return Group(accumulator.partials, skipped, failures)


def take_seams(spec: Spec, index: Index, steps: Sequence[Index], group: Group) -> dict[Index, Group]:
    """Return copies of the parts of a group's canvases that lie in later blocks, by step."""
    seams = {}
    for step in steps:
        boxes = block_boxes(spec, tuple(b + s for b, s in zip(index, step, strict=True)))
        parts = [p.crop(layer, box) for layer, p, box in zip(spec.layers, group.partials, boxes, strict=True)]
        seams[step] = Group(parts, group.skipped, group.failures)
    return seams


def merge_groups(
    spec: Spec,
    index: Index,
    group: Group | None,
    earlier: Sequence[Index],
    seams: Sequence[dict[Index, Group]],
    after: Sequence[Any] = (),
) -> list[Group]:
    """Return what adds up to block ``index``: its own group, then its earlier neighbours' seams.

    ``after`` is waited for and not used: it keeps the scheduler in raster order.
    """
    del spec, after
    groups = [] if group is None else [group]
    for owner, seam in zip(earlier, seams, strict=True):
        groups.append(seam[tuple(b - o for b, o in zip(index, owner, strict=True))])
    return groups


def block_groups(spec: Spec, index: Index, given: Sequence[Any]) -> list[Group]:
    """Return what adds up to block ``index``, running every tile that has weight in it.

    Tiles are summed per owner block and the sums added in the order of `merge_groups`, so the bits are those
    of ``share``.
    """
    with CHUNKS.active():
        ranges = spec.ranges(index, owned=False)
        owners = owners_of(spec, index)
        boxes = block_boxes(spec, index)
        queue: list[tuple[Accumulator, Tile]] = []
        for owner in owners:
            whole = canvas_boxes(spec, owner)
            accumulator = Accumulator(spec, [a.intersect(b) for a, b in zip(whole, boxes, strict=True)])
            own = [t.owned[b] for t, b in zip(spec.plan.tables, owner, strict=True)]
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(own, ranges, strict=True)]
            queue += [(accumulator, tile) for tile in tiles_of(spec, common)]
        crops = [Crops(spec, k, ranges, part, len(queue)) for k, part in enumerate(given)]
        skipped: list[int] = []
        failures: list[Failure] = []
        by_tile = {tile.index: accumulator for accumulator, tile in queue}
        for tile, results in run_tiles(spec, [t for _, t in queue], crops, skipped, failures):
            by_tile[tile.index].add(tile, results)
    groups = {id(a): Group(a.partials, skipped, failures) for a, _ in queue}
    return list(groups.values())


def run_block(gather: Gather, spec: Spec, index: Index, *args: Any) -> Any:
    """Return the finished block ``index`` from the groups that ``gather`` returns."""
    return make_block(spec, index, gather(spec, index, *args))


def hold_block(gather: Gather, spec: Spec, index: Index, *args: Any) -> tuple[Any, list[Failure]]:
    """Return the finished block ``index`` with the failures of its tiles."""
    groups = gather(spec, index, *args)
    failures = list({f.tile.index: f for group in groups for f in group.failures}.values())
    # Parts of a block that are stored already are not computed again, and not written.
    with np.errstate(invalid="ignore" if spec.todo is not None else None):
        return make_block(spec, index, groups), failures


def finish_block(gather: Gather, spec: Spec, index: Index, *args: Any) -> Any:
    """Make a block and give it to the end of the run."""
    return spec.end(spec, index, *hold_block(gather, spec, index, *args))


def end_block(spec: Spec, index: Index, held: tuple[Any, list[Failure]]) -> Any:
    """Give a block that another task made to the end of the run."""
    return spec.end(spec, index, *held)


def end_fill(spec: Spec, index: Index, shape: Index) -> Any:
    """Give a block in which nothing runs to the end of the run."""
    return spec.end(spec, index, fill_block(spec, shape), [])


def make_block(spec: Spec, index: Index, groups: Sequence[Group]) -> Any:
    """Return the block that ``groups`` add up to: an array, or a tuple of them."""
    skipped = {number for group in groups for number in group.skipped}
    boxes = block_boxes(spec, index)
    blocks = []
    for k, (layer, box) in enumerate(zip(spec.layers, boxes, strict=True)):
        total = combine(layer, box, [group.partials[k] for group in groups])
        if total is None:
            blocks.append(
                np.full(layer.layout(box.shape, reduced=True), layer.bound.fill_value, layer.bound.dtype)
            )
            continue
        reached, divisor = cover(spec, layer, index, box, skipped)
        blocks.append(finish(layer, total, reached, divisor))
    return tuple(blocks) if spec.many else blocks[0]


def fill_block(spec: Spec, shape: Index) -> Any:
    """Return a block of ``shape`` samples per grid axis in which no tile runs."""
    blocks = []
    for layer in spec.layers:
        lengths = layer.region(Box((0,) * len(shape), shape)).shape
        blocks.append(np.full(layer.layout(lengths, reduced=True), layer.bound.fill_value, layer.bound.dtype))
    return tuple(blocks) if spec.many else blocks[0]


def canvas_boxes(spec: Spec, index: Index) -> list[Box]:
    """Return, per output, the result samples in which those tiles have weight that a block owns and runs."""
    boxes, ranges = [], spec.ranges(index, owned=True)
    whole = all(r == t.owned[b] for r, t, b in zip(ranges, spec.plan.tables, index, strict=True))
    for k, layer in enumerate(spec.layers):
        if whole:
            spans = [t.canvas[k][b] for t, b in zip(spec.plan.tables, index, strict=True)]
            box = layer.region(Box(tuple(a for a, _ in spans), tuple(b for _, b in spans)))
        else:
            spans = [_span(weights, r) for weights, r in zip(layer.weights, ranges, strict=True)]
            box = Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))
        boxes.append(box)
    return boxes


def _span(weights: AxisWeights, tiles: Range) -> Range:
    """Return the result samples in which the tiles of an axis have weight."""
    supports = [weights.support(i) for i in range(*tiles)]
    return min((a for a, _ in supports), default=0), max((b for _, b in supports), default=0)


def block_boxes(spec: Spec, index: Index) -> list[Box]:
    """Return, per output, the result samples of a block."""
    plan = spec.plan
    start = tuple(b * size for b, size in zip(index, plan.block, strict=True))
    stop = tuple(min(a + size, n) for a, size, n in zip(start, plan.block, plan.shape, strict=True))
    return [layer.region(Box(start, stop)) for layer in spec.layers]


def owners_of(spec: Spec, index: Index) -> list[Index]:
    """Return the owners of the tiles with weight in a block: itself, then earlier ones in raster order."""
    per_axis = []
    for table, b in zip(spec.plan.tables, index, strict=True):
        first = b
        while first and table.owned[first][0] > table.touch[b][0]:
            first -= 1
        per_axis.append(range(first, b + 1))
    others = [owner for owner in itertools.product(*per_axis) if owner != index]
    return [index, *others]
