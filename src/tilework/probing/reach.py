"""The reach of a function: the distance from replaced inputs at which its results change.

Along one axis, inputs are kept in gaps and replaced in the walls between them. Inside a gap, results change
up to the reach of the function from its ends::

    inputs     ####|........gap.........|####      # replaced   . kept
    results    xxxxxxx|...unchanged..|xxxxxxxx     x changed
                   |--| before       |--| after

All samples outside a gap are replaced at once, because cutting a crop does the same, a median does not change
with one sample, and some networks respond to no single input. One call tests many gaps, and all places along
the other axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tilework._types import Array, Span
from tilework.probing.blackbox import ResultShape, others

__all__ = ["Edge", "deepest", "edges_along", "gaps_along", "largest"]


@dataclass(frozen=True, slots=True)
class Edge:
    """The reach of one wall into one gap, in one call."""

    axis: int
    """Tiled axis along which gaps and walls alternate."""
    side: int
    """0: from the wall before the gap; 1: from the wall after it."""
    at: int
    """Image sample of the crop where the gap starts (side 0) or stops (side 1)."""
    reach: int
    """Image samples from there to the farthest changed result, inclusive."""
    cells: int
    """Image samples from there to the end of that result's cell: more for results coarser than the image."""


def gaps_along(n: int, length: int, wall: int, multiple: int = 1) -> tuple[Span, ...]:
    """Return gaps of about ``length`` samples between walls of at least ``wall``, over ``n`` samples.

    Like crops, gaps start at multiples of ``multiple``, and stop at multiples counted from the end. There is
    at least one gap.

    Examples
    --------
    >>> gaps_along(32, 8, 3, multiple=2), gaps_along(32, 30, 3)
    (((4, 12), (16, 24)), ((3, 29),))
    """
    wall = -(-wall // multiple) * multiple
    length = -(-length // multiple) * multiple
    tail = n % multiple
    count = max(1, (n - wall - tail) // (length + wall))
    if count == 1:
        return ((wall, n - wall),)
    return tuple((a, a + length + tail) for a in range(wall, wall + count * (length + wall), length + wall))


def edges_along(
    profile: Array, limit: float, result: ResultShape, axis: int, gap: Span
) -> tuple[list[Edge], float] | None:
    """Return the reaches of the walls of ``gap`` into it, and the largest change that was ignored.

    Returns None if the whole gap changed.

    Parameters
    ----------
    profile : 1-D array
        Largest change per result sample along the axis.
    limit : float
        Largest change that is ignored.
    """
    start, stop = result.span(axis, gap[0] - result.lost[axis], gap[1])
    changed = profile[start:stop] > limit
    run = _longest(~changed)
    if run is None:
        return None
    edges = []
    before, after = np.flatnonzero(changed[: run[0]]), np.flatnonzero(changed[run[1] :])
    if before.size:
        edges.append(_edge(axis, 0, gap[0], start + int(before[-1]), result.scale[axis]))
    if after.size:
        edges.append(_edge(axis, 1, gap[1], start + run[1] + int(after[0]), result.scale[axis]))
    return edges, float(profile[start + run[0] : start + run[1]].max())


def _longest(kept: Array) -> Span | None:
    """Return the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], kept.astype(np.int8), [0]))))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return max(runs, key=lambda run: run[1] - run[0], default=None)


def _edge(axis: int, side: int, at: int, place: int, scale: Fraction) -> Edge:
    """Return the edge of a wall at ``at`` whose farthest changed result sample is ``place``."""
    first = math.floor(place / scale)
    if side:
        return Edge(axis, side, at, at - first, at - first)
    return Edge(axis, side, at, first + 1 - at, math.ceil((place + 1) / scale) - at)


def deepest(changed: Array, result: ResultShape, axis: int, side: int, at: int) -> tuple[Edge | None, bool]:
    """Return the reach along ``axis`` of a wall that ends at ``at``, and whether it fills the crop.

    The wall is the part of the crop before ``at`` (side 0) or after it (side 1). The edge is None if nothing
    changed.
    """
    along = np.flatnonzero(changed.any(axis=others(changed, axis)))
    if not along.size:
        return None, False
    scale, n = result.scale[axis], changed.shape[axis]
    if side == 0:
        last = int(along[-1])
        return _edge(axis, 0, at, last, scale), last == n - 1
    first = int(along[0])
    return _edge(axis, 1, at, first, scale), first == 0


def largest(edges: Sequence[Edge], axis: int, side: int) -> int | None:
    """Return the largest reach from one side, None if no change was seen."""
    return max((e.reach for e in edges if e.axis == axis and e.side == side), default=None)
