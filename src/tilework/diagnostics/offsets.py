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
# Positions of the block within a group of samples that the function may pool.
PHASES = 4


def off_centre(untiled: Untiled, box: Box, each: Index) -> list[int | None]:
    """Return by how many samples results lie after the place that they respond to, per tiled axis.

    A block of the image is changed, and the changed results should lie around it: their middle tells where
    they belong, which the split of a margin only states. Integers and flags respond to a part of what the
    function looks at, so only floats tell.

    Returns
    -------
    list of int or None, image samples
        0 if the middle is nearer to the declared place than to any other; None if that cannot be seen.
    """
    grids, outputs = untiled.grids, untiled.spec.outputs
    lost = [sum(g.margin) for g in grids]
    first = [_block(g, a, b) for g, a, b in zip(grids, box.start, box.stop, strict=True)]
    # Twice what the response can reach, so that its ends are seen.
    units = [math.lcm(g.multiple, g.quantum) for g in grids]
    context = [2 * n + 1 + unit for n, unit in zip(lost, units, strict=True)]
    window = Window(untiled, untiled.spans(Box.of(first), context), each)
    whole = window.valid
    results = window.raw(whole)
    middles: list[list[list[float]]] = []
    # Groups of samples respond together where a function pools: the mean over their phases has no bias.
    for phase in range(PHASES):
        block = [
            (a + u * phase // PHASES, b + u * phase // PHASES) for u, (a, b) in zip(units, first, strict=True)
        ]
        hulls: list[list[list[Place]]] = [[], []]
        for draw, fill in enumerate(FILLS):
            changed = window.raw(whole, window.changed(block, fill, inside=True))
            for output, a, b in zip(outputs, results, changed, strict=True):
                found = gap_between(b, a, output.axes)
                hull = _hull(found.gap > found.eps * UNITS * found.size, output.axes)
                if found.eps and hull is not None:
                    columns = zip(hull, output.scale, whole.start, strict=True)
                    hulls[draw % 2].append([(low + i / s, low + j / s) for (i, j), s, low in columns])
        middles.append([_middles(block, whole, half) for half in (*hulls, hulls[0] + hulls[1])])
        if max(units) == 1:
            break
    return [_off(g, [[half[d] for half in one] for one in middles]) for d, g in enumerate(grids)]


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


def _middles(block: Sequence[Span], whole: Box, hulls: Sequence[Sequence[Place]]) -> list[float]:
    """Return how far the middle of the responses lies after that of a block, per axis; NaN if unknown."""
    found = []
    for d, (start, stop) in enumerate(block):
        low = min((h[d][0] for h in hulls), default=whole.start[d])
        high = max((h[d][1] for h in hulls), default=whole.stop[d])
        # Cut off by the window, the response has no known middle.
        cut = low <= whole.start[d] or high >= whole.stop[d]
        found.append(math.nan if cut else float(low + high - start - stop) / 2)
    return found


def _off(g: AxisGrid, middles: Sequence[Sequence[float]]) -> int | None:
    """Return how far results lie after their places, given middles per phase and half of the draws."""
    if not sum(g.margin):
        return 0
    means = np.mean(middles, axis=0)
    if np.isnan(means).any():
        return None
    moved = [round(float(m)) if abs(m) > 0.5 else 0 for m in means]
    # Draws that disagree see only a part of what the function looks at.
    return moved[-1] if len(set(moved)) == 1 else None
