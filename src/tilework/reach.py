"""How far results depend on inputs, read off which results changed when inputs beyond walls were replaced.

Inputs are kept in gaps and replaced in the walls between them. What a gap's inside still gets from outside
eats into the unchanged results from each side::

    inputs     ####|........gap.........|####      # replaced   . kept
    results    xxxxxxx|...unchanged..|xxxxxxxx     x changed
                   |--| before       |--| behind

Replacing all that lies beyond is what cutting a crop does, moves medians, and wakes networks whose single
inputs do nothing; many gaps in one crop look at many places in one call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tilework.blackbox import Array, ResultShape

__all__ = ["Edge", "Gaps", "deepest", "edges_of", "gaps_along", "unchanged_box"]

Span = tuple[int, int]
# Gaps looked at in one call.
MOST = 96


@dataclass(frozen=True, slots=True)
class Edge:
    """How far one call saw a wall reach into one gap."""

    axis: int
    side: int
    """0: from the wall before the gap; 1: from the wall behind it."""
    at: int
    """Image sample of the crop where the gap starts (side 0) or one past its end (side 1)."""
    reach: int
    """Image samples from there to the last changed result, it included."""
    cells: int
    """The same to the end of what that result covers: longer where results are coarser than the image."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Kept stretches of input along every tiled axis; a gap is a product of one per axis."""

    spans: tuple[tuple[Span, ...], ...]
    """Per axis: start and stop of each gap, samples of the crop."""
    crop: tuple[int, ...]

    def keep(self) -> list[Array]:
        """Return per axis which samples are kept."""
        masks = []
        for spans, n in zip(self.spans, self.crop, strict=True):
            mask = np.zeros(n, bool)
            for a, b in spans:
                mask[a:b] = True
            masks.append(mask)
        return masks

    def some(self, rng: np.random.Generator) -> list[tuple[Span, ...]]:
        """Return the gaps, or at most `MOST` of them, chosen at random."""
        counts = [len(s) for s in self.spans]
        total = math.prod(counts)
        numbers = range(total) if total <= MOST else rng.choice(total, MOST, replace=False)
        found = []
        for number in numbers:
            place = np.unravel_index(int(number), counts)
            found.append(tuple(s[int(i)] for s, i in zip(self.spans, place, strict=True)))
        return found


def gaps_along(n: int, length: int, wall: int, multiple: int = 1, residue: int = 0) -> tuple[Span, ...]:
    """Return gaps of about ``length`` samples between walls of at least ``wall``, over ``n`` samples.

    Gaps start at multiples of ``multiple`` plus ``residue`` and stop, mirrored, at multiples less
    ``residue`` counted from the end of the crop, which is where crops start and stop. One gap if no more fit.

    Examples
    --------
    >>> gaps_along(32, 8, 3, multiple=2), gaps_along(32, 30, 3)
    (((4, 12), (16, 24)), ((3, 29),))
    """
    wall = -(-wall // multiple) * multiple
    length = -(-length // multiple) * multiple
    tail = n % multiple
    count = max(1, (n - wall - tail - 2 * residue) // (length + wall))
    if count == 1:
        return ((wall + residue, n - wall - residue),)
    return tuple(
        (a + residue, a + length + tail - residue)
        for a in range(wall, wall + count * (length + wall), length + wall)
    )


def unchanged_box(changed: Array) -> list[Span] | None:
    """Return a box without any change, peeled from outside layer by layer; None if nothing is left.

    The layer with the largest share of changes goes first, so that the change that a wall makes along the
    whole of its side is counted for that side, and not for its neighbours'.
    """
    low, high = [0] * changed.ndim, list(changed.shape)
    while True:
        view = changed[tuple(map(slice, low, high))]
        if not view.size:
            return None
        if not view.any():
            return list(zip(low, high, strict=True))
        shares = [(float(view.take(-side, d).mean()), d, side) for d in range(view.ndim) for side in (0, 1)]
        share, d, side = max(shares)
        depth = 1
        if not share:
            depth, d, side = _nearest(view)
        if side:
            high[d] -= depth
        else:
            low[d] += depth


def _nearest(view: Array) -> tuple[int, int, int]:
    """Return depth, axis and side of the change that is nearest to a face."""
    found = []
    for d in range(view.ndim):
        along = np.flatnonzero(view.any(axis=tuple(a for a in range(view.ndim) if a != d)))
        found += [(int(along[0]) + 1, d, 0), (view.shape[d] - int(along[-1]), d, 1)]
    return min(found)


def edges_of(
    change: Array, limit: float, result: ResultShape, gap: Sequence[Span]
) -> tuple[list[Edge], float] | None:
    """Return how far each wall reaches into ``gap``, and the largest change where none counts.

    None where no result in the gap stays unchanged.

    A change counts for a wall only where it lies well away from the walls of the other axes: near their
    corner it might be theirs.

    Parameters
    ----------
    change : array over the result's tiled axes
    limit : float
        Largest change that counts as none.
    """
    spans = [
        result.span(d, a - lost, b) for d, ((a, b), lost) in enumerate(zip(gap, result.lost, strict=True))
    ]
    part = change[tuple(slice(a, b) for a, b in spans)] > limit
    box = unchanged_box(part)
    if box is None:
        return None
    edges = []
    rest = tuple(slice(s + a, s + b) for (s, _), (a, b) in zip(spans, box, strict=True))
    for d, ((low, high), (a, b)) in enumerate(zip(box, gap, strict=True)):
        index = [
            slice(None) if k == d else slice(p + (q - p) // 4, q - (q - p) // 4)
            for k, (p, q) in enumerate(box)
        ]
        along = np.any(part[tuple(index)], axis=tuple(k for k in range(part.ndim) if k != d))
        start, scale = spans[d][0], result.scale[d]
        before, behind = np.flatnonzero(along[:low]), np.flatnonzero(along[high:])
        if before.size:
            edges.append(_edge(d, 0, a, start + int(before[-1]), scale))
        if behind.size:
            edges.append(_edge(d, 1, b, start + high + int(behind[0]), scale))
    return edges, float(change[rest].max())


def _edge(axis: int, side: int, at: int, place: int, scale: Fraction) -> Edge:
    """Return the edge of a wall at ``at`` whose farthest changed result is number ``place``."""
    first = math.floor(place / scale)
    if side:
        return Edge(axis, side, at, at - first, at - first)
    return Edge(axis, side, at, first + 1 - at, math.ceil((place + 1) / scale) - at)


def deepest(changed: Array, result: ResultShape, axis: int, side: int, at: int) -> tuple[Edge | None, bool]:
    """Return how far the wall beyond ``at`` reaches along ``axis``, and whether that is the crop's end."""
    along = np.flatnonzero(changed.any(axis=tuple(k for k in range(changed.ndim) if k != axis)))
    if not along.size:
        return None, False
    scale, n = result.scale[axis], changed.shape[axis]
    if side == 0:
        last = int(along[-1])
        return _edge(axis, 0, at, last, scale), last == n - 1
    first = int(along[0])
    return _edge(axis, 1, at, first, scale), first == 0


def largest(edges: Sequence[Edge], axis: int, side: int) -> int | None:
    """Return the largest reach seen from one side, None if nothing was."""
    return max((e.reach for e in edges if e.axis == axis and e.side == side), default=None)


def pairs(n_axes: int) -> list[tuple[int, int]]:
    """Return every axis with every side."""
    return list(itertools.product(range(n_axes), (0, 1)))
