"""Comparison of shifted crops: the translations with which a function commutes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilework._types import Array
from tilework.probing.blackbox import difference
from tilework.probing.experiment import NOISE, SMOOTH, Experiment
from tilework.probing.reach import largest

__all__ = ["Shifts"]

# Every divisor comes before its multiples; the usual pooling factors of networks come first.
STEPS = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 9, 18, 36)
# Mismatch, as a fraction of the result's spread, below which a global function counts as moved: samples that
# roll over the border change its statistics.
GLOBAL = 0.05


class Shifts:
    """Looks for translations that a function commutes with: the result of a rolled crop is rolled, too."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._room = [n + 1 for n in experiment.crops.crop]
        """Smallest translation per axis for which the crop was too short."""

    def find(self) -> tuple[tuple[int, ...], bool]:
        """Return the smallest translation per axis, and whether there is one on every axis.

        If there is none on an axis, the smallest that maps whole results to whole results takes its place.
        """
        seen, results = self._experiment.seen, self._experiment.results
        n = len(self._experiment.crops.crop)
        quantum = [math.lcm(*(r.scale[d].denominator for r in results)) for d in range(n)]
        common = math.lcm(*quantum)
        # First all axes at once: a function that does not commute along the diagonal fails on some axis.
        together = next((common * k for k in STEPS if self._moves([common * k] * n, 0)), None)
        if together is None and not seen.bounded:
            seen.note("no multiple was found: the response has no bounds")
            return tuple(quantum), True
        steps = [self._along(d, together, quantum[d]) for d in range(n)]
        for d, step in enumerate(steps):
            if step is None:
                seen.note(self._why_none(d, quantum[d]), d)
        return tuple(step or q for step, q in zip(steps, quantum, strict=True)), None not in steps

    def _why_none(self, d: int, quantum: int) -> str:
        """Return the note for an axis along which no translation was found."""
        crop, least = self._experiment.crops.crop[d], self._room[d]
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
        n = len(self._experiment.crops.crop)

        def moves(step: int) -> bool:
            shift = [step if k == d else 0 for k in range(n)]
            # Lines across the axis: a part of the function may do nothing in noise.
            across = [base for k, base in self._experiment.lines.items() if k != d][:1]
            return all(self._moves(shift, base) for base in (NOISE, SMOOTH, *across))

        step = together if together is not None and moves(together) else None
        if step is None:
            # An unbounded response moves nearly or not at all, so a search finds no more.
            if not self._experiment.seen.bounded:
                return None
            return next((quantum * k for k in STEPS if moves(quantum * k)), None)
        divisors = [p for p in range(2, step // quantum + 1) if step // quantum % p == 0]
        while smaller := [p for p in divisors if step // quantum % p == 0 and moves(step // p)]:
            step //= smaller[0]
        return step

    def _moves(self, shift: Sequence[int], base: int) -> bool:
        """Return whether rolling base crop ``base`` by ``shift`` only rolls the result.

        False if no result of the crop is far enough from its border to tell.
        """
        experiment = self._experiment
        crops, before = experiment.bases[base]
        regions = [self._region(number, shift) for number in range(len(experiment.results))]
        if any(b <= a for region in regions for a, b in region):
            self._room = [min(m, k) if k else m for m, k in zip(self._room, shift, strict=True)]
            return False
        after = experiment.box(experiment.inputs.rolled(crops, shift))
        pairs = zip(before, after, experiment.results, regions, strict=True)
        for number, (a, b, r, region) in enumerate(pairs):
            steps = tuple(int(k * s) for k, s in zip(shift, r.scale, strict=True))
            index: list[slice] = [slice(None)] * a.ndim
            for axis, (low, high) in zip(r.axes, region, strict=True):
                index[axis] = slice(low, high)
            moved = np.roll(a, steps, r.axes)[tuple(index)]
            if not self._same(moved, b[tuple(index)], number, base):
                return False
        return True

    def _same(self, moved: Array, after: Array, number: int, base: int) -> bool:
        """Return whether parts of two results are equal except for rounding or statistics of the crop."""
        if self._experiment.seen.bounded:
            return self._experiment.equal(moved, after, number, base)
        gap = difference(moved, after)
        spread = float(np.std(moved.astype(np.float64))) if moved.dtype.kind in "biuf" else 0.0
        return float(np.sqrt(np.mean(np.minimum(gap, 1e150) ** 2))) <= GLOBAL * spread

    def _region(self, number: int, shift: Sequence[int]) -> list[tuple[int, int]]:
        """Return the result samples that depend neither on the crop's border nor on the seam of the roll."""
        seen, r = self._experiment.seen, self._experiment.results[number]
        region = []
        for d, (n, k) in enumerate(zip(self._experiment.crops.crop, shift, strict=True)):
            if not k:
                region.append((0, r.lengths()[d]))
            elif seen.bounded:
                # Off the grid of translations, the reach may be longer, by less than the step.
                before, after = (
                    1 + max(0, *(largest(edges, d, side) or 0 for edges in (seen.every, seen.nan)))
                    for side in (0, 1)
                )
                # Padding inside the function may reach farther than inputs: keep as far away as possible.
                room = n - r.lost[d] - 3 * k - before - after
                low, high = 2 * k + before + room // 4, n - r.lost[d] - k - after - room // 4
                region.append(r.span(d, low, high))
            else:
                region.append(r.span(d, n // 4 + k, n - n // 4))
        return region
