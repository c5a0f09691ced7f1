"""The three steps of a task: gather tiles into groups, assemble groups into a block, deliver the block.

1. *gather*: add up the results of tiles, one `Group` per owner block. Under ``share``, one task gathers the
   tiles that its block owns (`gather_owned`), another takes the parts of the groups that lie in later blocks
   (`cut_seams`), and a third collects the block's own groups and the seams of earlier neighbours
   (`gather_seams`). Under ``recompute``, one task gathers all tiles with weight in its block
   (`gather_tiles`). Slabs do the first along some axes and the second along the others.
2. *assemble*: merge the groups in a fixed order, then normalise, reduce, fill and cast (`assemble`).
3. *deliver*: return the finished block (`make_block`), or pass it to the end of the run (`deliver`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilework._types import Array, Index, Span
from tilework.engine.accumulate import Accumulator
from tilework.engine.canvas import Partial, combine, finish
from tilework.engine.cover import cover
from tilework.engine.notices import report, tell
from tilework.engine.reading import (
    CropCutter,
    Failure,
    common,
    in_raster_order,
    looker_of,
    run_tiles,
    tiles_of,
)
from tilework.engine.spec import Spec
from tilework.engine.stopping import check_stop
from tilework.engine.sums import real_dtype
from tilework.engine.validity import Known, hide
from tilework.function.bound import BoundOutput
from tilework.function.guard import Guard
from tilework.function.load_once import in_task
from tilework.grid.tiles import Box, Tile
from tilework.grid.weights import AxisWeights
from tilework.labels.doubts import PIECES
from tilework.labels.painting import Claims, Counts, shown
from tilework.source import kept
from tilework.source.zarr_requests import at_work

__all__ = [
    "Assembled",
    "Group",
    "assemble",
    "canvas_boxes",
    "cut_seams",
    "deliver",
    "deliver_assembled",
    "deliver_fill",
    "fill_block",
    "gather_owned",
    "gather_seams",
    "gather_tiles",
    "make_block",
    "owners_of",
    "spans_of",
]

Gather = Callable[..., "list[Group]"]
Block = Array | tuple[Array, ...]
"""A finished block: an array, or a tuple of one array per output."""


@dataclass(slots=True)
class Group:
    """The sums of the tiles of one owner block, in its own samples or in a part of later ones."""

    partials: list[Partial]
    """One per output."""
    owner: Index
    """The block that owns the tiles."""
    skipped: list[int]
    """Numbers of the tiles that have no result: left out by the skip predicate, or failed."""
    failures: list[Failure] = field(default_factory=list)
    """Tiles that failed, if a failure does not end the run."""
    claims: dict[int, Claims] = field(default_factory=dict)
    """What the tiles claimed, per output of labels."""
    known: Known | None = None
    """What the task knows of valid samples here, in one of its groups; None: in another, or all are valid."""
    seams: dict[Index, Group] = field(default_factory=dict)
    """The sums in later blocks, by the step to each; with memory of their own, so they may wait alone."""


# -- gather -----------------------------------------------------------------------------------------------


def gather_owned(spec: Spec, index: Index, given: Sequence[Any]) -> list[Group]:
    """Return the sums of the tiles that block ``index`` runs, in the block and in later ones.

    It runs those that it owns, and across slabs also those of earlier blocks that have weight in it.
    """
    return _gather(spec, index, given, owned=True)


def gather_tiles(spec: Spec, index: Index, given: Sequence[Any]) -> list[Group]:
    """Return the groups that add up to block ``index``; run every tile that has weight in it."""
    return _gather(spec, index, given, owned=False)


def _gather(spec: Spec, index: Index, given: Sequence[Any], *, owned: bool) -> list[Group]:
    """Run the tiles of a task in batches; return a group per owner.

    Tiles are summed per owner block, in the order of `gather_seams`, so the bits do not depend on which task
    runs them.
    """
    plan, ranges = spec.plan, spec.ranges(index, owned=owned)
    alone = plan.slab_axes if owned else range(len(plan.axes))
    steps = plan.neighbours.later(index) if owned else []
    sums: dict[Index, Accumulator] = {}
    canvases: dict[Index, list[Box]] = {}
    parts: dict[Index, list[Span]] = {}
    for owner in owners_of(spec, index, alone):
        canvases[owner] = canvas_boxes(spec, owner)
        own = [t.owned[b] for t, b in zip(plan.tables, owner, strict=True)]
        parts[owner] = common(own, ranges)
        # Where tiles at an end do not run, the sums are no larger than what the others reach.
        whole = owner == index and spec.running(own) == own
        rooms = spec.rooms(index) if whole else ()
        regions = spans_of(spec, index, canvases[owner], alone, whole=whole)
        order = [range(*span) for span in parts[owner]] if in_raster_order(spec) else None
        sums[owner] = Accumulator(spec, regions, rooms, order)
    numbers = {owner: spec.active.running(part) for owner, part in parts.items()}
    skipped: list[int] = []
    failures: list[Failure] = []
    adding: dict[int, Accumulator] = {}

    def queue() -> Iterator[Tile]:
        for owner, part in parts.items():
            for tile in tiles_of(spec, part):
                adding[tile.index] = sums[owner]
                yield tile

    with at_work(), kept.task(spec.run), in_task():
        n_tiles = sum(numbers.values())
        crops = [CropCutter(spec, k, ranges, part, n_tiles, index) for k, part in enumerate(given)]
        looker = looker_of(spec, crops)
        for tile, results in run_tiles(spec, queue(), crops, skipped, failures, looker):
            adding.pop(tile.index).add(tile.position, results)
            del results  # the next crop, or result, gets its memory, which is in the processor's cache
    for accumulator in sums.values():
        accumulator.close()
    groups = []
    for owner, accumulator in sums.items():
        if numbers[owner] or (owned and owner == index):
            seams = {s: Group(accumulator.seam(s, canvases[owner]), owner, skipped, failures) for s in steps}
            claims = {k: Claims.joined(found) for k, found in accumulator.claims.items()}
            groups.append(Group(accumulator.partials, owner, skipped, failures, claims, seams=seams))
    if groups and looker is not None:
        groups[0].known = looker.within(plan.box(index))
        for step, seam in groups[0].seams.items():
            seam.known = looker.within(plan.box(tuple(b + s for b, s in zip(index, step, strict=True))))
    return groups


def cut_seams(
    spec: Spec, index: Index, steps: Sequence[Index], groups: Sequence[Group]
) -> dict[Index, list[Group]]:
    """Return the parts of groups that lie in later blocks, by step, apart from their own."""
    del spec, index
    return {step: [group.seams[step] for group in groups] for step in steps}


def gather_seams(
    spec: Spec,
    index: Index,
    own: Sequence[Group],
    earlier: Sequence[Index],
    seams: Sequence[dict[Index, list[Group]]],
    after: Sequence[Any] = (),
) -> list[Group]:
    """Return the groups that add up to block ``index``: its own, then those of earlier blocks.

    ``after`` holds dependencies that are not used; they keep the scheduler in raster order.
    """
    del spec, after
    groups = list(own)
    for block, seam in zip(earlier, seams, strict=True):
        groups += seam[tuple(b - o for b, o in zip(index, block, strict=True))]
    return sorted(groups, key=lambda group: (group.owner != index, group.owner))


# -- assemble ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assembled:
    """A finished block."""

    block: Block
    """Its samples."""
    failures: list[Failure]
    """Failed tiles that have weight in it."""
    unknown: int = 0
    """How many samples are ``fill_value`` because they were NaN and the dtype is an integer."""
    counts: dict[int, Counts] = field(default_factory=dict)
    """What is doubtful about the objects, per output of labels."""


def assemble(gather: Gather, spec: Spec, index: Index, *args: Any) -> Assembled:
    """Return the finished block ``index`` from the groups that ``gather`` returns."""
    groups = gather(spec, index, *args)
    failures = {f.tile.index: f for group in groups for f in group.failures}
    skipped = {number for group in groups for number in group.skipped}
    blocks, unknown = [], 0
    counts: dict[int, Counts] = {}
    v, known = spec.validity, [group.known for group in groups if group.known is not None]
    # Samples that are stored already are neither computed nor written again, and may be invalid here.
    with np.errstate(invalid="ignore" if spec.todo is not None else None):
        for k, (output, whole) in enumerate(zip(spec.outputs, spec.boxes(index), strict=True)):
            parts = [group.partials[k] for group in groups]
            box = _reached(parts, whole)
            total = combine(output, box, parts)
            if total is None:
                blocks.append(output.fill(whole.shape))
                continue
            reached, divisor = cover(spec, output, index, box, skipped, dtype=real_dtype(total.dtype))
            if v is not None:
                reached = hide(output, total, reached, v.within(output, box, known))
            if output.kind == "own":
                total, contested, unclaimed = shown(total, output.n_each)
                own = (group.claims.get(k) for group in groups if group.owner == index)
                counts[k] = Counts(contested, unclaimed, Claims.joined(c for c in own if c is not None))
            with _reducing(output, box):
                block, lost = finish(output, total, reached, divisor)
            blocks.append(_within(output, block, box, whole))
            unknown += lost
    result = tuple(blocks) if spec.many else blocks[0]
    return Assembled(result, list(failures.values()), unknown, counts)


def _reached(parts: Sequence[Partial], block: Box) -> Box:
    """Return the part of a block in which its tiles have weight, as far as it is known without looking."""
    boxes = [box for p in parts if p.array is not None and (box := p.box.intersect(block)).size]
    starts, stops = (zip(*ends, strict=True) for ends in ([b.start for b in boxes], [b.stop for b in boxes]))
    return Box(tuple(map(min, starts)), tuple(map(max, stops))) if boxes else block


def _within(output: BoundOutput, part: Array, box: Box, whole: Box) -> Array:
    """Return a block with the fill value around a finished part."""
    if box == whole:
        return part
    block = output.fill(whole.shape)
    block[output.place(box.shift([-a for a in whole.start]))] = part
    return block


def _reducing(output: BoundOutput, box: Box) -> AbstractContextManager[None]:
    """Return a context for the user's reduction of a block, if there is one."""
    if not callable(output.reduce):
        return nullcontext()
    return Guard(lambda: f"raised by reduce= on samples {box} of the result")


def make_block(gather: Gather, spec: Spec, index: Index, *args: Any) -> Block:
    """Return the samples of the finished block ``index``."""
    assembled = assemble(gather, spec, index, *args)
    if assembled.unknown and spec.notice.begins(index):
        report()
    for k, counts in assembled.counts.items():
        if counts.doubtful and spec.doubts.begins((k, *index)):
            where = f" (block {', '.join(map(str, index))}; others may follow)"
            tell(spec.outputs[k].doubts(spec.plan.names, counts, where=where))
    for k, output in enumerate(spec.outputs):
        if output.connectivity and spec.plan.n_tiles > 1 and spec.doubts.begins((k, *index)):
            tell(PIECES)
    return assembled.block


def fill_block(spec: Spec, index: Index) -> Block:
    """Return block ``index`` with the fill value everywhere: no tile runs in it."""
    blocks = [output.fill(box.shape) for output, box in zip(spec.outputs, spec.boxes(index), strict=True)]
    return tuple(blocks) if spec.many else blocks[0]


# -- deliver ----------------------------------------------------------------------------------------------


def deliver(gather: Gather, spec: Spec, index: Index, *args: Any) -> Any:
    """Assemble block ``index`` and pass it to the end of the run."""
    return deliver_assembled(spec, index, assemble(gather, spec, index, *args))


def deliver_assembled(spec: Spec, index: Index, assembled: Assembled) -> Any:
    """Pass a block that another task assembled to the end of the run."""
    assert spec.end is not None
    check_stop()
    return spec.end(spec, index, assembled)


def deliver_fill(spec: Spec, index: Index) -> Any:
    """Pass a block in which nothing runs to the end of the run."""
    return deliver_assembled(spec, index, Assembled(fill_block(spec, index), []))


# -- places of groups -------------------------------------------------------------------------------------


def canvas_boxes(spec: Spec, owner: Index) -> list[Box]:
    """Return, per output, the result samples in which the running tiles that a block owns have weight."""
    own = [t.owned[b] for t, b in zip(spec.plan.tables, owner, strict=True)]
    ranges, boxes = spec.running(own), []
    for k, output in enumerate(spec.outputs):
        if ranges == own:
            spans = [t.canvas[k][b] for t, b in zip(spec.plan.tables, owner, strict=True)]
            boxes.append(output.region(Box.of(spans)))
        else:
            boxes.append(Box.of([_span(w, r) for w, r in zip(output.weights, ranges, strict=True)]))
    return boxes


def spans_of(
    spec: Spec, index: Index, canvases: Sequence[Box], alone: Collection[int] = (), *, whole: bool = True
) -> list[list[list[Span]]]:
    """Return the parts of canvases per output and axis: what lies in the block, and what in the next one.

    Along axes in ``alone``, nothing is handed to the next block. With ``whole``, the part in the block is all
    of it, so that it can be finished in its place.
    """
    spans, image = [], spec.plan.box(index)
    for canvas, block in zip(canvases, (o.region(image) for o in spec.outputs), strict=True):
        axes = zip(canvas.start, canvas.stop, block.start, block.stop, strict=True)
        found = []
        for d, (start, end, a, b) in enumerate(axes):
            first = a if whole else max(a, start)
            inside = first, b if whole else max(first, min(b, end))
            found.append([inside, (b, end)] if end > b and d not in alone else [inside])
        spans.append(found)
    return spans


def _span(weights: AxisWeights, tiles: Span) -> Span:
    """Return the result samples in which the tiles of an axis have weight."""
    supports = [weights.support(i) for i in range(*tiles)]
    return min((a for a, _ in supports), default=0), max((b for _, b in supports), default=0)


def owners_of(spec: Spec, index: Index, axes: Collection[int] | None = None) -> list[Index]:
    """Return the owners of the tiles with weight in a block: itself, then earlier blocks in raster order.

    With ``axes``, those that are earlier only along these.
    """
    per_axis = []
    for d, (table, b) in enumerate(zip(spec.plan.tables, index, strict=True)):
        first = b
        while (axes is None or d in axes) and first and table.owned[first][0] > table.touch[b][0]:
            first -= 1
        per_axis.append(range(first, b + 1))
    others = [owner for owner in itertools.product(*per_axis) if owner != index]
    return [index, *others]
