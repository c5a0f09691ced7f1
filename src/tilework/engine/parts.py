"""Any box of a result, from only the tiles that touch it, with the same bits as in the whole result.

A task finishes a whole block; this module finishes a part of one by the same steps. Per owner block, tiles
are added in raster order from zero; then these sums are added in raster order of owners, the block's own
first. Samples are independent of each other, so leaving some out does not change the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array, Index
from tilework.engine.accumulate import Accumulator
from tilework.engine.block import canvas_boxes, owners_of
from tilework.engine.canvas import combine, finish
from tilework.engine.cover import cover, touching
from tilework.engine.reading import common, tiles_of
from tilework.engine.spec import Spec
from tilework.engine.sums import real_dtype
from tilework.engine.validity import Known, hide
from tilework.grid.tiles import Box, Tile
from tilework.labels.painting import Claims, Counts, shown

__all__ = [
    "Part",
    "Piece",
    "blocks_of",
    "edges_of",
    "hull_of",
    "part_of_block",
    "parts_of",
    "scattered",
    "take",
    "tiles_touching",
]

Results = list[Array]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a block of one output, finished."""

    block: Array
    """Its samples."""
    unknown: int = 0
    """How many samples are ``fill_value`` because they were NaN and the dtype is an integer."""
    counts: Counts | None = None
    """What is doubtful about the objects, for labels."""


@dataclass(frozen=True, slots=True)
class Part:
    """Chosen samples that lie in one block and in the same tiles."""

    block: Index
    """Number of the block, per axis."""
    place: Array
    """Positions among all chosen samples."""
    samples: Array
    """The samples, one row per axis."""


def edges_of(spec: Spec, number: int, *, tiles: bool) -> list[Array]:
    """Return, per grid axis, the result samples at which blocks begin, or tiles begin and end."""
    edges = []
    for weights, size, n in zip(spec.outputs[number].weights, spec.plan.block, spec.plan.shape, strict=True):
        found = np.concatenate(weights.supports()) if tiles else weights.scaled(np.arange(size, n, size))
        edges.append(np.sort(found))
    return edges


def parts_of(samples: Array, blocks: Sequence[Array], tiles: Sequence[Array]) -> list[list[Part]]:
    """Return the pieces of chosen samples, grouped by block, in raster order.

    No tile begins or ends between two neighbouring edges. So all samples of a piece, and the samples between
    them, lie in the same tiles, and the hull of a piece needs no further tile.

    Parameters
    ----------
    samples : array of int
        One row per axis; each column is one chosen sample.
    blocks, tiles : sequence of arrays of int
        Edges along each of these axes, in ascending order.
    """
    block, cell = (
        np.stack([np.searchsorted(e, s, side="right") for e, s in zip(edges, samples, strict=True)])
        for edges in (blocks, tiles)
    )
    keys = np.concatenate((block, cell))
    order = np.lexsort((*samples[::-1], *keys[::-1]))
    changes = np.flatnonzero((np.diff(keys[:, order]) != 0).any(axis=0)) + 1
    pieces = [
        Part(tuple(block[:, place[0]].tolist()), place, samples[:, place])
        for place in np.split(order, changes)
    ]
    return [list(group) for _, group in itertools.groupby(pieces, key=lambda piece: piece.block)]


def scattered(samples: Array) -> bool:
    """Return whether chosen samples (one row per axis) leave gaps in the box around them."""
    box = math.prod((samples.max(axis=1) - samples.min(axis=1) + 1).tolist())
    return bool(np.unique(samples, axis=1).shape[1] < box)


def hull_of(picks: Sequence[tuple[int, ...]], axes: Sequence[int], pieces: Sequence[Part]) -> Box:
    """Return the box around one piece per pick, result samples per grid axis."""
    rows = {
        a: row
        for along, p in zip(picks, pieces, strict=True)
        for a, row in zip(along, p.samples, strict=True)
    }
    return Box(tuple(int(rows[a].min()) for a in axes), tuple(int(rows[a].max()) + 1 for a in axes))


def take(
    out: Array,
    part: Array,
    picks: Sequence[tuple[int, ...]],
    pieces: Sequence[Part],
    start: dict[int, int],
) -> None:
    """Copy one piece per pick from ``part``, whose first sample is ``start``, to its place in ``out``."""
    source: list[Any] = []
    target: list[Any] = []
    for along, piece in zip(picks, pieces, strict=True):
        local = [row - start.get(a, 0) for a, row in zip(along, piece.samples, strict=True)]
        source += map(_even, local) if len(along) == 1 else local
        target.append(_even(piece.place))
    part = np.moveaxis(part, [a for along in picks for a in along], range(part.ndim))
    out[tuple(target)] = part[tuple(source)]


def _even(numbers: Array) -> Any:
    """Return ``numbers`` as a slice if their step is constant, because slices are faster than indices."""
    steps = np.diff(numbers)
    step = int(steps[0]) if steps.size else 1
    if step < 1 or (steps != step).any():
        return numbers
    return slice(int(numbers[0]), int(numbers[-1]) + 1, step)


def blocks_of(spec: Spec, number: int, box: Box) -> Iterator[tuple[Index, Box]]:
    """Yield every block that meets ``box``, with their intersection, result samples per grid axis."""
    output, plan = spec.outputs[number], spec.plan
    per_axis = []
    for weights, size, n, a, b in zip(
        output.weights, plan.block, plan.shape, box.start, box.stop, strict=True
    ):
        edges = [weights.scaled(min(k, n)) for k in range(0, n + size, size)]
        per_axis.append([k for k, (p, q) in enumerate(itertools.pairwise(edges)) if p < b and q > a])
    for index in itertools.product(*per_axis):
        common = spec.boxes(index)[number].intersect(box)
        if common.size:
            yield index, common


def tiles_touching(spec: Spec, number: int, index: Index, box: Box) -> list[tuple[Index, Sequence[Tile]]]:
    """Return, per owner, the running tiles with weight in ``box``, a part of block ``index``."""
    ranges = touching(spec.outputs[number], spec.ranges(index, owned=False), box)
    found: list[tuple[Index, Sequence[Tile]]] = []
    for owner in owners_of(spec, index):
        own = [t.owned[b] for t, b in zip(spec.plan.tables, owner, strict=True)]
        found.append((owner, list(tiles_of(spec, common(own, ranges)))))
    return found


def part_of_block(
    spec: Spec, number: int, index: Index, box: Box, results: Callable[[Tile], Results | None]
) -> Piece:
    """Return ``box``, a part of block ``index`` of output ``number``.

    Parameters
    ----------
    results : callable
        Returns the results of a tile, one per output, and with ``spec.validity`` which samples of its crop
        are valid, as far as it is inside the image; None if it was left out.
    """
    output = spec.outputs[number]
    nothing = Box((0,) * len(box.start), (0,) * len(box.start))
    v, image = spec.validity, Box((0,) * len(box.start), spec.plan.shape)
    skipped, partials, known = set(), [], list[Known]()
    claims: list[Claims] = []
    counts = None
    for owner, tiles in tiles_touching(spec, number, index, box):
        whole = box if owner == index else canvas_boxes(spec, owner)[number].intersect(box)
        boxes = [whole if k == number else nothing for k in range(len(spec.outputs))]
        accumulator = Accumulator(spec, boxes)
        for tile in tiles:
            found = results(tile)
            if found is None:
                skipped.add(tile.index)
            else:
                accumulator.add(tile.position, found[: len(spec.outputs)])
                if v is not None:
                    known.append((tile.read.intersect(image), found[-1]))
        partials.append(accumulator.partials[number])
        claims += accumulator.claims.get(number, ())
    total = combine(output, box, partials)
    if total is None:
        return Piece(output.fill(box.shape))
    reached, divisor = cover(spec, output, index, box, skipped, dtype=real_dtype(total.dtype))
    if v is not None:
        reached = hide(output, total, reached, v.within(output, box, known))
    if output.kind == "own":
        total, contested, unclaimed = shown(total, output.n_each)
        counts = Counts(contested, unclaimed, Claims.joined(claims))
    block, unknown = finish(output, total, reached, divisor)
    return Piece(block, unknown, counts)
