"""Probing a black box: its receptive field, translations that it commutes with, and the shape of its result.

1. *look*: two calls on one crop (determinism), shape and dtype of the result, its scale and margin;
2. *frame*: the rim of a crop is replaced; if something in the middle stays, all sides are read off at once;
3. *slabs*: if nothing stays, one side at a time, and once with a longer crop: too large, or global?
4. *translate*: crops rolled by 1, 2, 4, ... samples, compared away from their border;
5. *refine*: many gaps in one crop, on the grid of translations and off it, until nothing new is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework.blackbox import (
    Array,
    BlackBox,
    Crops,
    ResultShape,
    centre_of,
    difference,
    result_axes,
    scale_and_lost,
    size_of,
)
from tilework.errors import ContractError
from tilework.probe_answer import report_of
from tilework.probe_inputs import AMPLITUDE, HUGE, Inputs
from tilework.probe_report import ProbeReport
from tilework.reach import Edge, Gaps, deepest, edges_of, gaps_along, largest, pairs
from tilework.shifts import Shifts

__all__ = ["Probing"]

# Rounding that counts as no change, in units of the last place: what transforms (FFT, Winograd) leak into
# samples that they do not depend on; coarse types come without such transforms.
LEAK, LEAK_COARSE = 64, 4
# Draws in a row that must show nothing new before the search ends, and draws at most.
QUIET, DRAWS = 3, 12
# Change far from a wall over change at half the way, from which on the response counts as global.
PLATEAU = 0.3

Kind = str


@dataclass(slots=True)
class Probing:
    """One probe of one function; `run` makes the calls and returns the report."""

    box: BlackBox
    inputs: Inputs
    tolerance: float | None = None
    """Change that counts as none, as a share of the largest result; None: rounding."""
    results: list[ResultShape] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    """Every reach that was read off."""
    nan: list[Edge] = field(default_factory=list)
    bases: list[tuple[list[Array], list[Array]]] = field(default_factory=list)
    """Unperturbed crops and the results of the function."""
    notes: list[str] = field(default_factory=list)
    draws: int = 0
    places: int = 0
    """Gaps looked at."""
    bounded: bool = True
    noise: float = 0.0
    """Largest difference between two calls on one crop, as a share of the largest result."""
    rounding: float = 0.0
    """Largest change that counted as none, as a share of the largest result."""
    amplitude: float = 1.0
    """Largest perturbation so far, in ranges of the values."""
    may_leak: bool = True
    leaks: bool = False
    """Whether rounding spreads over the crop, as transforms (FFT, Winograd) do: it then grows with the
    perturbation, and counts against the largest change."""
    response: bool = False
    """Whether any perturbation changed anything."""

    @property
    def crops(self) -> Crops:
        """Shapes that the function is called with."""
        return self.inputs.crops

    def run(self) -> ProbeReport:
        """Call the function and return what was found."""
        self.look()
        n = len(self.crops.crop)
        frame = Gaps(self._frame(), self.crops.crop)
        kinds = self._kinds(frame)
        wide = any(self.observe(0, kind, frame) is None for kind in kinds)
        self.base("smooth")
        self.base("noise")
        if wide:
            self.edges.clear()
            for axis in range(n):
                self.slabs(axis, kinds)
        else:
            self.refine([1] * n, kinds)
        shifts = Shifts(self)
        multiple = shifts.find()
        if self.bounded and any(m > 1 for m in multiple):
            if wide:
                for axis in range(n):
                    self.slabs(axis, kinds, multiple[axis])
            else:
                self.refine(multiple, kinds)
        return report_of(self, multiple, commutes=shifts.commutes)

    def _kinds(self, frame: Gaps) -> tuple[Kind, ...]:
        """Return the perturbations to draw from."""
        if self.tolerance is not None:
            return ("other", "ends")
        if not all(t.kind in "fc" for t in self.crops.dtypes):
            return ("other", "high", "low", "ends")
        # A transform that spreads rounding spreads NaN too.
        self.may_leak = not self.observe(0, "nan", frame)
        return ("other", "high", "low", "huge")

    # -- 1. look ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Call the function twice on one crop; find where and how large its result is."""
        first = self.base("real" if any(s is not None for s in self.inputs.samples) else "noise")
        again = self.box(first[0])
        for a, b in zip(first[1], again, strict=True):
            gap = difference(a, b)
            if gap.any():
                self.noise = max(self.noise, float(gap.max()) / size_of(a))
        shape, tiled = self.crops.shapes[0], self.crops.tiled[0]
        for result in first[1]:
            axes = result_axes(result.shape, self.crops.crop, shape, tiled)
            ones = [Fraction(1)] * len(axes)
            self.results.append(ResultShape(result.shape, result.dtype, axes, ones, [0] * len(axes)))
        for d, n in enumerate(self.crops.crop):
            if any(r.lengths()[d] != n for r in self.results):
                self._find_scale(d)
        for d, column in enumerate(zip(*(r.lost for r in self.results), strict=True)):
            if len(set(column)) > 1:
                raise ContractError(
                    f"all results of one function must lose the same margin; got {column} samples on axis "
                    f"{self.crops.names[d]} of crop {self.crops.crop}."
                )

    def base(self, kind: str) -> tuple[list[Array], list[Array]]:
        """Return a new unperturbed crop with its result."""
        crops = self.inputs.base(kind)
        self.bases.append((crops, self.box(crops)))
        return self.bases[-1]

    def _find_scale(self, d: int) -> None:
        """Tell scale from margin by how far the response moves when the perturbation does."""
        n = self.crops.crop[d]
        # Well inside: a network without padding has no result near the border.
        width, places = max(1, n // 16), (3 * n // 8, 5 * n // 8)
        centres = []
        for place in places:
            keep = [np.ones(m, bool) for m in self.crops.crop]
            keep[d][place - width // 2 : place - width // 2 + width] = False
            changes = self._changes(0, "other", keep)
            centres.append([centre_of(r.flat(c), d) for r, c in zip(self.results, changes, strict=True)])
        for r, a, b in zip(self.results, *centres, strict=True):
            length = r.lengths()[d]
            slope = (b - a) / (places[1] - places[0])
            r.scale[d], r.lost[d] = scale_and_lost(n, length, slope, self.crops.names[d])

    # -- draws ------------------------------------------------------------------------------------------

    def _changes(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Array]:
        """Return the differences that replacing all but ``keep`` makes, one array per result."""
        crops, before = self.bases[base]
        after = self.box(self.inputs.mixed(crops, self.inputs.other(kind), keep))
        self.draws += kind != "nan"
        self.amplitude = max(
            self.amplitude, {"high": AMPLITUDE, "low": AMPLITUDE, "huge": HUGE / 2}.get(kind, 1)
        )
        changes = []
        for a, b, r in zip(before, after, self.results, strict=True):
            if b.shape != r.shape:
                raise ContractError(f"the function returned shapes {r.shape} and {b.shape} for equal crops.")
            changes.append(difference(a, b))
        return changes

    def limit(self, number: int, base: int = 0, leak: int = 1) -> float:
        """Return the largest change of a result that counts as none."""
        result, dtype = self.bases[base][1][number], self.results[number].dtype
        size = size_of(result)
        if self.tolerance is not None:
            return max(self.tolerance, 4 * self.noise) * size
        if dtype.kind not in "fc":
            return 4 * self.noise * size
        return max(leak * self._leak(dtype), 4 * self.noise) * size

    def _limit_for(self, kind: Kind, number: int, base: int, flat: Array) -> float:
        """Return the limit for changes ``flat`` that a perturbation of ``kind`` made."""
        if kind == "nan":
            return 1e300
        limit = self.limit(number, base)
        if not self.leaks or self.results[number].dtype.kind not in "fc" or self.tolerance is not None:
            return limit
        finite = flat[np.isfinite(flat)]
        return max(limit, self._leak(self.results[number].dtype) * float(finite.max(initial=0.0)))

    def _leak(self, dtype: np.dtype[Any]) -> float:
        # A double result of a function of floats may have been computed in floats.
        kinds = [dtype, *(t for t in self.crops.dtypes if t.kind in "fc")]
        eps = max(float(np.finfo(t).eps) for t in kinds)
        return eps * (LEAK_COARSE if eps > 1e-5 else LEAK)

    def observe(self, base: int, kind: Kind, gaps: Gaps) -> list[Edge] | None:
        """Replace all between ``gaps`` and read off the reaches; None where nothing in a gap stayed."""
        try:
            changes = self._changes(base, kind, gaps.keep())
        except ContractError:
            raise
        except Exception as error:
            if kind in ("high", "low", "huge", "nan"):
                self._note(f"{kind} values were refused ({type(error).__name__}); less was tried")
                return []
            raise
        found: list[Edge] = []
        for number, (change, r) in enumerate(zip(changes, self.results, strict=True)):
            flat = r.flat(change)
            self.response = self.response or bool(flat.any())
            limit = self._limit_for(kind, number, base, flat)
            for gap in gaps.some(self.inputs.rng):
                seen = edges_of(flat, limit, r, gap)
                if seen is None:
                    return None
                self.places += 1
                found += seen[0]
                if kind in ("other", "ends"):
                    self.rounding = max(self.rounding, seen[1] / size_of(self.bases[base][1][number]))
                    self.leaks = self.leaks or (
                        self.may_leak and kind == "other" and _in_middle(flat, r, gap)
                    )
        (self.nan if kind == "nan" else self.edges).extend(found)
        return found

    def _frame(self, multiple: Sequence[int] | None = None) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return one gap in the middle of the crop, its walls an eighth of it or a bit more."""
        spans = []
        for d, n in enumerate(self.crops.crop):
            m = 2 ** max(0, int(math.log2(max(1, n // 8)))) if multiple is None else multiple[d]
            wall = max(n // 8, max(r.lost[d] for r in self.results) + 1)
            spans.append(gaps_along(n, n, min(-(-wall // m) * m, max(1, (n - 1) // 2))))
        return tuple(spans)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # -- 3. slabs ---------------------------------------------------------------------------------------

    def slabs(self, axis: int, kinds: Sequence[Kind], multiple: int = 1) -> None:
        """Replace one end of the crop at a time; what changes at the other end depends on all of it."""
        n = self.crops.crop[axis]
        wall = -(-max(1, n // 8) // multiple) * multiple
        for side in (0, 1):
            at = wall if side == 0 else n - wall
            for kind in kinds:
                changes = self._changes(0, kind, self._kept(axis, side, at))
                ends = []
                for number, (change, r) in enumerate(zip(changes, self.results, strict=True)):
                    flat = r.flat(change)
                    self.response = self.response or bool(flat.any())
                    changed = flat > self._limit_for(kind, number, 0, flat)
                    edge, end = deepest(changed, r, axis, side, at)
                    ends.append(end)
                    if edge is not None:
                        self.edges.append(edge)
                if any(ends):
                    self.bounded = False
                    self._note(self._why_open(axis, kind))
                    return

    def _kept(self, axis: int, side: int, at: int) -> list[Array]:
        keep = [np.ones(m, bool) for m in self.crops.crop]
        keep[axis][slice(0, at) if side == 0 else slice(at, None)] = False
        return keep

    def _why_open(self, axis: int, kind: Kind) -> str:
        """Return whether the response is global or the crop too short, by a crop of twice the length."""
        n, name = self.crops.crop[axis], self.crops.names[axis]
        short = f"on axis {name} the response reaches the border of the crop of {n}"
        crop = tuple(2 * m if d == axis else m for d, m in enumerate(self.crops.crop))
        shapes = tuple(
            tuple(2 * m if a == tiled[axis] else m for a, m in enumerate(shape))
            for shape, tiled in zip(self.crops.shapes, self.crops.tiled, strict=True)
        )
        crops = replace(self.crops, crop=crop, shapes=shapes)
        longer = Inputs(crops, self.inputs.values, [None] * len(shapes), self.inputs.rng)
        probe = Probing(self.box, longer, self.tolerance, results=[])
        try:
            probe.look()
            at = max(1, n // 8)
            changes = probe._changes(0, kind, probe._kept(axis, 0, at))
        except Exception as error:
            return f"{short}, and a longer one was refused ({type(error).__name__}): unbounded, or too large"
        finally:
            self.draws += probe.draws
        ratio = 0.0
        for number, (change, r) in enumerate(zip(changes, probe.results, strict=True)):
            flat = r.flat(change)
            edge, end = deepest(flat > probe.limit(number), r, axis, 0, at)
            if not end:
                continue
            profile = flat.mean(axis=tuple(k for k in range(flat.ndim) if k != axis))
            quarter = len(profile) // 4
            ratio = max(
                ratio, float(profile[-quarter:].mean() / max(profile[quarter : 2 * quarter].mean(), 1e-300))
            )
        reach = max((e.reach for e in [edge] if e is not None), default=0)
        if not ratio:
            return f"{short}: give a larger crop, more than {2 * reach} (it reaches {reach} samples)"
        if ratio < PLATEAU:
            return f"{short} and of {2 * n}, ever weaker: give a larger crop or a tolerance"
        return (
            f"the response is global on axis {name}: it is as strong at the far end of a crop of {2 * n} as "
            "half way (normalisation, squeeze-excite, labelling)"
        )

    # -- 5. refine --------------------------------------------------------------------------------------

    def reach(self, axis: int, side: int) -> int:
        """Return the largest reach seen so far."""
        found = largest(self.edges, axis, side)
        return 0 if found is None else found

    def nan_reach(self, axis: int, side: int) -> int:
        """Return the largest reach of NaN, 0 where it is not passed on."""
        found = largest(self.nan, axis, side)
        return 0 if found is None else found

    def refine(self, multiple: Sequence[int], kinds: Sequence[Kind]) -> None:
        """Look at many gaps per call, on the grid of translations, until nothing new is seen."""
        quiet, number = 0, 0
        while quiet < QUIET and number < DRAWS:
            kind = kinds[number % len(kinds)]
            base = len(self.bases) - 1 - number // len(kinds) % 2
            quiet = quiet + 1 if not self._grew(base, kind, self._gaps(multiple)) else 0
            number += 1
        if any(m > 1 for m in multiple):
            for number, kind in enumerate((*kinds, *kinds)):
                self._grew(
                    len(self.bases) - 1, kind, self._gaps(multiple, 1 if number < len(kinds) else None)
                )
        if self.nan:
            self.observe(len(self.bases) - 1, "nan", self._gaps(multiple))

    def _grew(self, base: int, kind: Kind, gaps: Gaps) -> bool:
        sides = pairs(len(self.crops.crop))
        before = [self.reach(*s) for s in sides]
        if self.observe(base, kind, gaps) is None:
            self.observe(base, kind, Gaps(self._frame(), self.crops.crop))
        return [self.reach(*s) for s in sides] != before

    def _gaps(self, multiple: Sequence[int], residue: int | None = 0) -> Gaps:
        """Return gaps with room for what was seen and half as much again."""
        spans = []
        for d, (n, m) in enumerate(zip(self.crops.crop, multiple, strict=True)):
            lost = max(r.lost[d] for r in self.results)
            seen = max(0, self.reach(d, 0)) + max(0, self.reach(d, 1)) + lost
            wall = max(m, min(seen // 2 + 1, 8), lost + 1)
            off = int(self.inputs.rng.integers(m)) if residue is None else min(residue, m - 1)
            one = gaps_along(n, seen + seen // 2 + 2 * m + 8, wall, m, off)
            if one[0][1] - one[0][0] <= seen + 2:
                one = self._frame(multiple)[d]
            spans.append(one)
        return Gaps(tuple(spans), self.crops.crop)


def _in_middle(flat: Array, result: ResultShape, gap: Sequence[tuple[int, int]]) -> bool:
    """Return whether anything at all changed in the middle third of a gap."""
    index = []
    for d, (a, b) in enumerate(gap):
        low, high = result.span(d, a, b)
        index.append(slice(low + (high - low) // 3, high - (high - low) // 3))
    return bool(flat[tuple(index)].any())
