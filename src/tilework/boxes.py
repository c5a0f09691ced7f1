"""Any box of a result from exactly the tiles that touch it, with the bits of the whole.

A task finishes a whole block; here a part of one is finished by the same steps: per owner block the tiles in
raster order from zero, then the sums in raster order of owners, the own block first. Samples are added up
one by one, so leaving out those that nobody asked for changes none of the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tilework.accumulate import Accumulator, cover
from tilework.calls import tiles_of
from tilework.canvas import combine, finish
from tilework.geometry import Box, Tile
from tilework.kernel import block_boxes, canvas_boxes, owners_of
from tilework.plan import Range
from tilework.spec import Index, Spec

__all__ = ["blocks_of", "part_of_block", "tiles_touching"]

Array = np.ndarray[Any, Any]
Results = list[Array]


def blocks_of(spec: Spec, number: int, box: Box) -> Iterator[tuple[Index, Box]]:
    """Yield every block that meets ``box`` with what they share, result samples per grid axis."""
    layer, plan = spec.layers[number], spec.plan
    per_axis = []
    for weights, size, n, a, b in zip(
        layer.weights, plan.block, plan.shape, box.start, box.stop, strict=True
    ):
        edges = [weights.scaled(min(k, n)) for k in range(0, n + size, size)]
        per_axis.append([k for k, (p, q) in enumerate(itertools.pairwise(edges)) if p < b and q > a])
    for index in itertools.product(*per_axis):
        common = block_boxes(spec, index)[number].intersect(box)
        if common.size:
            yield index, common


def tiles_touching(spec: Spec, number: int, index: Index, box: Box) -> list[tuple[Index, list[Tile]]]:
    """Return, per owner, the running tiles with weight in ``box``, a part of block ``index``."""
    layer = spec.layers[number]
    ranges = []
    for weights, (first, last), a, b in zip(
        layer.weights, spec.ranges(index, owned=False), box.start, box.stop, strict=True
    ):
        touching = [i for i in range(first, last) if weights.support(i)[0] < b and weights.support(i)[1] > a]
        ranges.append((touching[0], touching[-1] + 1) if touching else (first, first))
    found = []
    for owner in owners_of(spec, index):
        own = [t.owned[b] for t, b in zip(spec.plan.tables, owner, strict=True)]
        found.append((owner, tiles_of(spec, _common(own, ranges))))
    return found


def _common(own: Sequence[Range], ranges: Sequence[Range]) -> list[Range]:
    return [(max(a, c), max(max(a, c), min(b, d))) for (a, b), (c, d) in zip(own, ranges, strict=True)]


def part_of_block(
    spec: Spec, number: int, index: Index, box: Box, results: Callable[[Tile], Results | None]
) -> Array:
    """Return ``box``, a part of block ``index`` of output ``number``.

    Parameters
    ----------
    results : callable
        Gives the results of a tile, one per output; None where the skip predicate left it out.
    """
    layer = spec.layers[number]
    nothing = Box((0,) * len(box.start), (0,) * len(box.start))
    skipped, partials = set(), []
    for owner, tiles in tiles_touching(spec, number, index, box):
        whole = canvas_boxes(spec, owner)[number].intersect(box)
        boxes = [whole if k == number else nothing for k in range(len(spec.layers))]
        accumulator = Accumulator(spec, boxes)
        for tile in tiles:
            found = results(tile)
            if found is None:
                skipped.add(tile.index)
            else:
                accumulator.add(tile, found)
        partials.append(accumulator.partials[number])
    total = combine(layer, box, partials)
    if total is None:
        shape = layer.layout(box.shape, reduced=True)
        return np.full(shape, layer.bound.fill_value, layer.bound.dtype)
    reached, divisor = cover(spec, layer, index, box, skipped)
    return finish(layer, total, reached, divisor)
