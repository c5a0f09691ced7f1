"""Whether results lie where the function looked, which the split of a margin only states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tilework._types import Array, Index, Span
from tilework.diagnostics.closeness import UNITS, gap_between
from tilework.diagnostics.untiled import Untiled, Window, step_of
from tilework.grid.axis import AxisGrid
from tilework.grid.tiles import Box

__all__ = ["off_centre"]

Place = tuple[Fraction | int, Fraction | int]
"""First and one past the last changed result along an axis, image samples."""
# What replaces a block, in turn: changes of both signs, because half of a network's units answer to one only.
FILLS = ("real", "above", "below", "real")


def off_centre(untiled: Untiled, box: Box, each: Index) -> list[int | None]:
    """Return by how many samples results lie after the place that they respond to, per tiled axis.

    A block of the image is changed, and the changed results should lie around it: their middle tells where
    they belong, which the split of a margin only states.

    Returns
    -------
    list of int or None, image samples
        0 if the middle is nearer to the declared place than to any other; None if that cannot be seen.
    """
    grids, spec = untiled.grids, untiled.spec
    lost = [sum(g.margin) for g in grids]
    if not any(lost):
        return [0] * len(grids)
    block = [_block(g, a, b) for g, a, b in zip(grids, box.start, box.stop, strict=True)]
    # Twice what the response can reach, so that its ends are seen.
    context = [2 * n + 1 for n in lost]
    window = Window(untiled, untiled.spans(Box.of(block), context), each)
    whole = window.valid
    results = window.results(whole)
    hulls: list[list[list[Place]]] = [[], []]
    for draw, fill in enumerate(FILLS):
        changed = window.results(whole, window.changed(block, fill, inside=True))
        for output, a, b in zip(spec.outputs, results, changed, strict=True):
            axes = [output.n_each + k for k in output.reduced_axes]
            found = gap_between(b, a, axes)
            if (hull := _hull(found.gap > found.eps * UNITS * found.size, axes)) is not None:
                columns = zip(hull, output.scale, whole.start, strict=True)
                hulls[draw % 2].append([(low + i / s, low + j / s) for (i, j), s, low in columns])
    return [_off(grids[d], block[d], (whole.start[d], whole.stop[d]), hulls, d) for d in range(len(grids))]


def _block(g: AxisGrid, start: int, stop: int) -> Span:
    """Return samples to change near ``[start, stop)``: whole cells of the lattice, away from the border."""
    lost, middle = sum(g.margin), (start + stop) // 2
    for length in (step_of(g), math.lcm(g.multiple, g.quantum)):
        first, last = (lost + length) // length, (g.extent - lost - length - 1) // length
        if first <= last:
            number = min(max(middle // length, first), last)
            return number * length, (number + 1) * length
    return 0, g.extent  # the response reaches both ends, and its middle cannot be seen


def _hull(changed: Array, axes: Sequence[int]) -> list[Span] | None:
    """Return the first and one past the last changed sample along each of ``axes``; None if none changed."""
    found = []
    for axis in axes:
        at = np.flatnonzero(changed.any(axis=tuple(a for a in range(changed.ndim) if a != axis)))
        if not at.size:
            return None
        found.append((int(at[0]), int(at[-1]) + 1))
    return found


def _off(
    g: AxisGrid, block: Span, whole: Span, hulls: Sequence[Sequence[Sequence[Place]]], d: int
) -> int | None:
    """Return how far the middle of the responses lies after a block, in steps that a margin can take."""
    if not sum(g.margin):
        return 0
    seen = []
    for half in (*hulls, [h for part in hulls for h in part]):
        if not half:
            return None
        low, high = min(h[d][0] for h in half), max(h[d][1] for h in half)
        if low <= whole[0] or high >= whole[1]:
            return None  # cut off by the window, so its middle is unknown
        off = float(low + high - sum(block)) / 2
        seen.append(round(off / g.quantum) * g.quantum if abs(off) > g.quantum / 2 else 0)
    # Draws that disagree see only a part of what the function looks at.
    return seen[2] if len(set(seen)) == 1 else 0
