"""Crops moved against each other: translations that a function commutes with, and what borders change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tilework.probing.blackbox import Array, difference
from tilework.probing.reach import edges_along

if TYPE_CHECKING:
    from tilework.probing.search import Probing

__all__ = ["Shifts", "look_at_border", "look_round"]

# In this order every divisor stands before its multiples, and what networks pool by comes first.
STEPS = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 9, 18, 36)
# Rounding allowed, in units of the limit for unchanged results: other phases take other code paths.
SLACK = 4
# Mismatch, as a share of the result's spread, below which a global function counts as moved: its statistics
# change by what wraps round at the border.
GLOBAL = 0.05


class Shifts:
    """Looks for translations; ``commutes`` tells afterwards whether one was found on every axis."""

    def __init__(self, probing: Probing) -> None:
        self._p = probing
        self.commutes = True
        self._room = [n + 1 for n in probing.crops.crop]
        """Smallest translation per axis for which a crop was too short."""

    def find(self) -> tuple[int, ...]:
        """Return the smallest translation per axis that moves the result; 1 where there is none."""
        p = self._p
        n = len(p.crops.crop)
        quantum = [math.lcm(*(r.scale[d].denominator for r in p.results)) for d in range(n)]
        common = math.lcm(*quantum)
        # All axes at once first: what does not move along the diagonal fails on some axis.
        together = next((common * k for k in STEPS if self.moves([common * k] * n, 0)), None)
        if together is None and not p.bounded:
            p.note("the multiple could not be told from a response without bounds")
            return tuple(quantum)
        found = []
        for d in range(n):
            step = self._along(d, together, quantum[d])
            if step is None:
                self.commutes = False
                p.note(self._why_none(d, quantum[d]), d)
            found.append(step or quantum[d])
        return tuple(found)

    def _why_none(self, d: int, quantum: int) -> str:
        crop, least = self._p.crops.crop[d], self._room[d]
        if least <= quantum:
            return f"a crop of {crop} on {{axis}} is too short to look for translations: give a larger one"
        if least <= crop // 2:
            return (
                f"no translation along {{axis}} by less than {least} commutes, and a crop of {crop} is "
                "too short to show longer ones"
            )
        return f"no translation along {{axis}} commutes, as far as a crop of {crop} can tell"

    def _along(self, d: int, together: int | None, quantum: int) -> int | None:
        """Return the smallest translation along one axis, tried on both base crops."""

        def moves(step: int) -> bool:
            shift = [step if k == d else 0 for k in range(len(self._p.crops.crop))]
            return all(self.moves(shift, base) for base in (len(self._p.bases) - 1, len(self._p.bases) - 2))

        step = together if together is not None and moves(together) else None
        if step is None:
            # A response without bounds moves nearly or not at all: no search finds more.
            if not self._p.bounded:
                return None
            return next((quantum * k for k in STEPS if moves(quantum * k)), None)
        divisors = [p for p in range(2, step // quantum + 1) if step // quantum % p == 0]
        while smaller := [p for p in divisors if step // quantum % p == 0 and moves(step // p)]:
            step //= smaller[0]
        return step

    def moves(self, shift: Sequence[int], base: int) -> bool:
        """Return whether rolling base crop ``base`` by ``shift`` rolls the result and does nothing else.

        False where the crop leaves no result far enough from its border to tell.
        """
        p = self._p
        crops, before = p.bases[base]
        regions = [self._region(number, shift) for number in range(len(p.results))]
        if any(b <= a for region in regions for a, b in region):
            self._room = [min(m, k) if k else m for m, k in zip(self._room, shift, strict=True)]
            return False
        after = p.box(p.inputs.rolled(crops, shift))
        for number, (a, b, r, region) in enumerate(zip(before, after, p.results, regions, strict=True)):
            steps = tuple(int(k * s) for k, s in zip(shift, r.scale, strict=True))
            index: list[slice] = [slice(None)] * a.ndim
            for axis, (low, high) in zip(r.axes, region, strict=True):
                index[axis] = slice(low, high)
            moved = np.roll(a, steps, r.axes)[tuple(index)]
            if not self._same(moved, b[tuple(index)], number, base):
                return False
        return True

    def _same(self, moved: Array, after: Array, number: int, base: int) -> bool:
        p = self._p
        gap = difference(moved, after)
        if p.bounded:
            return bool((gap <= SLACK * p.limit(number, base)).all())
        spread = float(np.std(moved.astype(np.float64))) if moved.dtype.kind in "biuf" else 0.0
        return float(np.sqrt(np.mean(np.minimum(gap, 1e150) ** 2))) <= GLOBAL * spread

    def _region(self, number: int, shift: Sequence[int]) -> list[tuple[int, int]]:
        """Return the result samples that see neither the border of the crop nor the seam of the roll."""
        p, r = self._p, self._p.results[number]
        region = []
        for d, (n, k) in enumerate(zip(p.crops.crop, shift, strict=True)):
            if not k:
                region.append((0, r.lengths()[d]))
            elif p.bounded:
                # Off the grid of translations the reach may be longer, by less than the step.
                before, behind = (1 + max(0, p.reach(d, side), p.nan_reach(d, side)) for side in (0, 1))
                # Padding inside the function may reach farther than inputs do: stay away as far as possible.
                room = n - r.lost[d] - 3 * k - before - behind
                low, high = 2 * k + before + room // 4, n - r.lost[d] - k - behind - room // 4
                region.append(r.span(d, low, high))
            else:
                region.append(r.span(d, n // 4 + k, n - n // 4))
        return region


def look_at_border(p: Probing, axis: int, multiple: int) -> None:
    """Compare crops that start a third of their length apart, where both have a result."""
    n = p.crops.crop[axis]
    step = max(multiple, n // 3 // multiple * multiple)
    keep = [np.ones(m, bool) for m in p.crops.crop]
    keep[axis][n - step :] = False
    shift = [-step if d == axis else 0 for d in range(len(keep))]
    for base in (len(p.bases) - 1, len(p.bases) - 2):
        crops, before = p.bases[base]
        moved = p.inputs.mixed(p.inputs.rolled(crops, shift), p.inputs.other("other"), keep)
        after = p.box(moved)
        for number, (a, b, r) in enumerate(zip(before, after, p.results, strict=True)):
            along, steps = r.axes[axis], int(step * r.scale[axis])
            flat = r.flat(difference(a, np.roll(b, steps, along)))
            profile = flat.max(axis=tuple(k for k in range(flat.ndim) if k != axis))
            profile[:steps] = np.inf
            seen = edges_along(profile, SLACK * p.limit(number, base), r, axis, (step, n))
            if seen is None:
                p.note("on {axis} the border of a crop reaches all of it", axis)
                p.bounded = False
                return
            p.borders += seen[0]


def look_round(p: Probing) -> None:
    """Replace one end of a crop along all axes, and look whether its other ends change.

    Such a function sees the far side of the image across the image's border, and that of a crop across a
    crop's.
    """
    crop = p.crops.crop
    wall = [max(1, n // 8) for n in crop]
    # Farther from all ends of an axis than they reach.
    far = [w + max(0, p.reach(d, 0), p.reach(d, 1)) for d, w in enumerate(wall)]
    # High values at one end and low ones at the other, too: some functions answer to rare values only.
    kinds = [p.kinds[0], *p.kinds[1:3], p.kinds[-1]]
    for side, base in itertools.product((0, 1), range(2)):
        kind = kinds[base * (1 + side)]
        ends = [n - w if side else w for n, w in zip(crop, wall, strict=True)]
        keep = [p.kept(d, side, at)[d] for d, at in enumerate(ends)]
        for number, (change, r) in enumerate(zip(p.taken(base, kind, keep) or (), p.results, strict=False)):
            flat = r.flat(change)
            changed = flat > p.limit_for(kind, number, base, flat)
            for d, (n, w) in enumerate(zip(crop, wall, strict=True)):
                # The half that is nearer to the other end.
                other = (0, min((n - w) // 2, n - far[d])) if side else (max((n + w) // 2, far[d]), n)
                spans = [other if k == d else (far[k], m - far[k]) for k, m in enumerate(crop)]
                box = tuple(slice(*r.span(k, *span)) for k, span in enumerate(spans))
                if changed[box].any():
                    p.wraps.add(d)
