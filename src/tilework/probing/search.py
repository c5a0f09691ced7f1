"""Probing a black box: its receptive field, translations that it commutes with, and the shape of its result.

1. *look*: two calls on one crop (determinism), shape and dtype of the result, its scale and margin;
2. *frame*: per axis both ends of a crop are replaced, and how far that reaches is read off;
3. *refine*: many gaps in one crop, until nothing new is seen;
4. *slabs*: where nothing stays, one side at a time, and a longer crop: is it too large, or global?
5. *shifts*: crops rolled by 1, 2, 4, ... samples, compared away from their border. Where it takes more than
   one sample, *refine* again with walls on that grid, and off it;
6. *border*: one end of a crop is replaced, and the other looked at: does the function wrap round? And two
   crops that share most of their samples. What padding inside the function does near a crop's
   border may reach farther than any input does: a shift to the left and one to the right depend on nothing
   near, and still lose both ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework.errors import ContractError
from tilework.probing.blackbox import (
    AMPLITUDE,
    HUGE,
    Array,
    BlackBox,
    Crops,
    Inputs,
    ResultShape,
    difference,
    result_axes,
    share,
    size_of,
)
from tilework.probing.reach import Edge, Span, deepest, edges_along, gaps_along, largest
from tilework.probing.report import ProbeReport, report_of
from tilework.probing.scale import find_scale, why_open
from tilework.probing.shifts import Shifts, look_at_border, look_round

__all__ = ["Probing"]

# Rounding that counts as no change, in units of the last place: what transforms (FFT, Winograd) leak into
# samples that they do not depend on; coarse types come without such transforms.
LEAK, LEAK_COARSE = 64, 4
# Draws in a row that must show nothing new before the search ends, and draws at most.
QUIET, DRAWS = 4, 12

# Gaps that are read off per call; a long crop holds thousands.
MOST = 200
# Reach as a share of the crop behind a wall from which on a longer crop is asked.
NEARLY = 0.6
# Median change of results, as a share of each of them, from which on they count as changed.
STIRRED = 1e-4
# Perturbations beyond the range of the values, which a function may refuse.
EXTREME = ("high", "low", "huge", "nan")

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
    borders: list[Edge] = field(default_factory=list)
    """How far the border of a crop reaches into its results."""
    bases: list[tuple[list[Array], list[Array]]] = field(default_factory=list)
    """Unperturbed crops and the results of the function."""
    notes: dict[str, list[int]] = field(default_factory=dict)
    """What else was seen; where "{axis}" stands, of these axes."""
    shares: list[Array] = field(default_factory=list)
    """Changes of the last call, as shares of each result."""
    draws: int = 0
    places: int = 0
    """Gaps looked at."""
    bounded: bool = True
    wraps: set[int] = field(default_factory=set)
    """Axes on which one end of a crop changes the other."""
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
    response: float = 0.0
    """Largest share of results that changed where inputs were replaced."""

    @property
    def crops(self) -> Crops:
        """Shapes that the function is called with."""
        return self.inputs.crops

    def run(self) -> ProbeReport:
        """Call the function and return what was found."""
        self.look()
        self.base("smooth")
        self.base("noise")
        n = len(self.crops.crop)
        # An axis on which no result stays unchanged between two walls is looked at one side at a time.
        wide = [not self.frame(axis) or not self.refine(axis) for axis in range(n)]
        for axis in range(n):
            if wide[axis]:
                self.slabs(axis)
        shifts = Shifts(self)
        multiple = shifts.find()
        for axis, m in enumerate(multiple):
            if self.bounded and m > 1:
                if wide[axis]:
                    self.slabs(axis, m)
                else:
                    self.refine(axis, m)
                    self.refine(axis, m, aligned=False)
        if self.bounded and shifts.commutes:
            for axis, m in enumerate(multiple):
                look_at_border(self, axis, m)
        if self.bounded:
            look_round(self)
        return report_of(self, multiple, commutes=shifts.commutes)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Perturbations to draw from."""
        if self.tolerance is not None:
            return ("other", "ends")
        floats = all(t.kind in "fc" for t in self.crops.dtypes)
        return ("other", "high", "low", "huge" if floats else "ends")

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
                find_scale(self, d)
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

    # -- draws ------------------------------------------------------------------------------------------

    def changes(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Array]:
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
        self.shares = [share(c, a, b) for c, a, b in zip(changes, before, after, strict=True)]
        return changes

    def taken(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Array] | None:
        """Return `changes`, or None where values beyond the range are refused."""
        try:
            return self.changes(base, kind, keep)
        except ContractError:
            raise
        except Exception as error:
            if kind not in EXTREME:
                raise
            self.note(f"{kind} values were refused ({type(error).__name__}); less was tried")
            return None

    def stirred(self, kind: Kind, number: int, axis: int, start: int, stop: int) -> bool:
        """Return whether most results from ``start`` to ``stop`` changed, each by its own measure.

        A probability of 1e-6 that becomes 2e-6 is nothing beside one of 1, and still is an answer. Not asked
        of inputs beyond the range: rounding that a transform spreads grows with them.
        """
        if self.noise or self.tolerance is not None or kind in EXTREME:
            return False
        part = self.results[number].flat(self.shares[number]).take(range(start, stop), axis)
        return bool(part.size) and float(np.median(part)) > STIRRED

    def limit(self, number: int, base: int = 0, leak: int = 1) -> float:
        """Return the largest change of a result that counts as none."""
        result, dtype = self.bases[base][1][number], self.results[number].dtype
        size = size_of(result)
        if self.tolerance is not None:
            return max(self.tolerance, 4 * self.noise) * size
        if dtype.kind not in "fc":
            return 4 * self.noise * size
        return max(leak * self._leak(dtype), 4 * self.noise) * size

    def limit_for(self, kind: Kind, number: int, base: int, flat: Array) -> float:
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

    def observe(self, axis: int, base: int, kind: Kind, spans: Sequence[Span]) -> list[Edge] | None:
        """Replace all between ``spans`` along ``axis``; None where nothing in one of them stayed."""
        keep = [np.ones(n, bool) for n in self.crops.crop]
        keep[axis][:] = False
        for a, b in spans:
            keep[axis][a:b] = True
        changes = self.taken(base, kind, keep)
        if changes is None:
            return []
        found: list[Edge] = []
        some = self.inputs.rng.permutation(len(spans))[:MOST]
        looked = [spans[int(k)] for k in np.sort(some)]
        for number, (change, r) in enumerate(zip(changes, self.results, strict=True)):
            flat = r.flat(change)
            self._note_response(flat, limit := self.limit_for(kind, number, base, flat), axis, keep[axis], r)
            profile = flat.max(axis=tuple(k for k in range(flat.ndim) if k != axis))
            for gap in looked:
                seen = edges_along(profile, limit, r, axis, gap)
                low, high = r.span(axis, *gap)
                third = (high - low) // 3
                if seen is None or self.stirred(kind, number, axis, low + third, high - third):
                    return None
                self.places += 1
                found += seen[0]
                if kind in ("other", "ends"):
                    self.rounding = max(self.rounding, seen[1] / size_of(self.bases[base][1][number]))
                    spread = self.may_leak and bool(profile[low + third : high - third].any())
                    self.leaks = self.leaks or (kind == "other" and spread)
        (self.nan if kind == "nan" else self.edges).extend(found)
        return found

    def _note_response(self, flat: Array, limit: float, axis: int, kept: Array, r: ResultShape) -> None:
        """Note how many of the results changed that stand where inputs were replaced."""
        scale = r.scale[axis]
        stands = (np.arange(flat.shape[axis]) * scale.denominator // scale.numerator).clip(0, len(kept) - 1)
        part = flat.take(np.flatnonzero(~kept[stands]), axis)
        if part.size:
            self.response = max(self.response, float((part > limit).mean()))

    def frame(self, axis: int) -> bool:
        """Replace both ends of the crop; return whether something in the middle stays."""
        spans = self._frame(axis)
        if self.tolerance is None and "huge" in self.kinds:
            # A transform that spreads rounding spreads NaN too.
            self.may_leak = not self.observe(axis, 0, "nan", spans)
        first = [self.observe(axis, 0, kind, spans) for kind in self.kinds[:2]]
        return None not in first

    def _frame(self, axis: int, multiple: int | None = None) -> tuple[Span, ...]:
        """Return one gap in the middle of the crop, its walls an eighth of it or a bit more."""
        n = self.crops.crop[axis]
        m = 2 ** max(0, int(math.log2(max(1, n // 8)))) if multiple is None else multiple
        wall = max(n // 8, max(r.lost[axis] for r in self.results) + 1)
        return gaps_along(n, n, min(-(-wall // m) * m, max(1, (n - 1) // 2)))

    def note(self, text: str, axis: int | None = None) -> None:
        """Add a note, once; what holds for several axes is said of all of them."""
        axes = self.notes.setdefault(text, [])
        if axis is not None and axis not in axes:
            axes.append(axis)

    # -- 4. slabs ---------------------------------------------------------------------------------------

    def slabs(self, axis: int, multiple: int = 1) -> None:
        """Replace one end of the crop at a time; what changes at the other end depends on all of it."""
        if multiple == 1:
            self.edges = [e for e in self.edges if e.axis != axis]
        n = self.crops.crop[axis]
        wall = -(-max(1, n // 8) // multiple) * multiple
        for side in (0, 1):
            at = wall if side == 0 else n - wall
            for kind in self.kinds:
                changes = self.taken(0, kind, self.kept(axis, side, at))
                if changes is None:
                    continue
                ends = []
                for number, (change, r) in enumerate(zip(changes, self.results, strict=True)):
                    flat = r.flat(change)
                    limit = self.limit_for(kind, number, 0, flat)
                    self._note_response(flat, limit, axis, self.kept(axis, side, at)[axis], r)
                    changed = flat > limit
                    edge, end = deepest(changed, r, axis, side, at)
                    far = (n - n // 8, n) if side == 0 else (0, n // 8)
                    ends.append(end or self.stirred(kind, number, axis, *r.span(axis, *far)))
                    if edge is not None:
                        self.edges.append(edge)
                # A result that nearly fills the crop may be one that is silent at its end.
                reach = self.reach(axis, side)
                near = not any(ends) and reach > NEARLY * (n - wall) and kind == self.kinds[0]
                why = why_open(self, axis, kind, reach if near else None) if near or any(ends) else None
                if why is not None:
                    self.bounded = False
                    self.note(why, axis)
                    return

    def kept(self, axis: int, side: int, at: int) -> list[Array]:
        """Return per axis which samples are kept where those beyond ``at`` are replaced."""
        keep = [np.ones(m, bool) for m in self.crops.crop]
        keep[axis][slice(0, at) if side == 0 else slice(at, None)] = False
        return keep

    # -- 3. refine --------------------------------------------------------------------------------------

    def reach(self, axis: int, side: int) -> int:
        """Return the largest reach seen so far."""
        found = largest(self.edges, axis, side)
        return 0 if found is None else found

    def nan_reach(self, axis: int, side: int) -> int:
        """Return the largest reach of NaN, 0 where it is not passed on."""
        found = largest(self.nan, axis, side)
        return 0 if found is None else found

    def refine(self, axis: int, multiple: int = 1, *, aligned: bool = True) -> bool:
        """Look at many gaps per call until nothing new is seen; False where nothing stays unchanged."""
        quiet, number, kinds = 0, len(self.kinds), self.kinds
        while quiet < QUIET and number < len(kinds) + DRAWS:
            # Begins with the perturbations that the frame has not seen.
            kind = kinds[(number + 2) % len(kinds)]
            base = len(self.bases) - 1 - number % 2
            before = [self.reach(axis, side) for side in (0, 1)]
            spans = self._gaps(axis, multiple)
            if not aligned:
                # One sample off the grid shows most; the others in turn.
                off = [
                    1 if (k + number) % 2 else int(self.inputs.rng.integers(multiple))
                    for k in range(len(spans))
                ]
                spans = tuple((a + r, b - r) for (a, b), r in zip(spans, off, strict=True))
            seen = self.observe(axis, base, kind, spans)
            if seen is None and self.observe(axis, base, kind, self._frame(axis, multiple)) is None:
                return False
            grown = [self.reach(axis, side) for side in (0, 1)] != before
            quiet = 0 if grown else quiet + 1
            number += 1
        return True

    def _gaps(self, axis: int, multiple: int) -> tuple[Span, ...]:
        """Return gaps with room for what was seen and half as much again."""
        n = self.crops.crop[axis]
        lost = max(r.lost[axis] for r in self.results)
        seen = max(0, self.reach(axis, 0)) + max(0, self.reach(axis, 1)) + lost
        wall = max(multiple, min(seen // 2 + 1, 8), lost + 1)
        spans = gaps_along(
            n, seen + seen // 2 + 2 * multiple + (8 if multiple == 1 else 2 * multiple), wall, multiple
        )
        return spans if spans[0][1] - spans[0][0] > seen + 2 else self._frame(axis, multiple)
