"""Calls of one function on crops with replaced samples, and which changes of its results exceed rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import ContractError, TilingError
from tilework.function.placement import placements
from tilework.probing.blackbox import BlackBox, ResultShape, difference, others, share, size_of
from tilework.probing.inputs import AMPLITUDE, HUGE, Base, CropShapes, Inputs, Kind
from tilework.probing.reach import Edge, largest

__all__ = ["NOISE", "REAL", "SLACK", "SMOOTH", "STEADY", "Change", "Experiment", "Findings"]

# Numbers of the first base images.
REAL, SMOOTH, NOISE = range(3)

# Rounding that counts as no change, in units of the last place: transforms (FFT, Winograd) leak that much
# into samples that do not depend on the input. Coarse dtypes are not used with such transforms.
LEAK, LEAK_COARSE = 64, 4
# Scales of results, the simplest first.
SCALES = sorted(
    {Fraction(a, b) for a in range(1, 9) for b in range(1, 65)},
    key=lambda s: (s.numerator * s.denominator, s),
)
# Median change of results, each as a fraction of itself, above which they count as changed.
STIRRED = 1e-4
# Largest difference between equal calls, as a fraction of the largest result, that is rounding (sums in any
# order).
STEADY = 1e-4
# Allowed rounding, in units of the limit for unchanged results: other phases take other code paths.
SLACK = 4
# Values beyond the range, which a function may reject. Rounding that a transform spreads grows with them.
EXTREME = ("high", "low", "huge", "nan")

Fit = tuple[Fraction, int]
"""Scale of a result along one axis, and the image samples of the crop that it loses there."""


@dataclass(slots=True)
class Findings:
    """Observations of one probe so far."""

    edges: list[Edge] = field(default_factory=list)
    """Every reach that was observed in noise, and in the image."""
    structured: list[Edge] = field(default_factory=list)
    """Every reach that was observed in lines and flat images."""
    draws_of: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Per tiled axis and side, the largest reach of each draw in noise that changed results there."""
    strong: list[Edge] = field(default_factory=list)
    """Those of changes that are much larger than rounding."""
    nan: list[Edge] = field(default_factory=list)
    """Every observed reach of NaN."""
    borders: list[Edge] = field(default_factory=list)
    """Reaches of the border of a crop into its results."""
    multiple: Index = ()
    """Samples by which the function commutes with translation, per tiled axis."""
    commutes: bool = False
    """Whether such a translation was found on every axis."""
    bounded: bool = True
    """Whether every change stopped short of the crop's border."""
    margin: tuple[Span, ...] = ()
    """Image samples at the start and end of a crop for which there is no result, per tiled axis."""
    wraps: set[int] = field(default_factory=set)
    """Axes on which the opposite side of a crop continues it."""
    lengths: list[set[int]] = field(default_factory=list)
    """Lengths of the crops whose results were compared, per tiled axis."""
    doubts: dict[str, list[int]] = field(default_factory=dict)
    """Reasons not to call the function exact, with the axes that replace "{axis}" in the text."""
    notes: dict[str, list[int]] = field(default_factory=dict)
    """Further observations, with the axes that replace "{axis}" in the text."""
    draws: int = 0
    """Number of perturbed crops that were compared with unperturbed ones."""
    places: int = 0
    """Number of gaps that were examined."""
    amplitude: float = 1.0
    """Largest perturbation, in ranges of the values."""
    noise: float = 0.0
    """Largest difference between two calls on one crop, as a fraction of the largest result."""
    rounding: float = 0.0
    """Largest change that was ignored as rounding, as a fraction of the largest result."""
    response: float = 0.0
    """Largest fraction of results that changed where inputs were replaced."""
    leaks: bool = False
    """Whether rounding spreads over the crop, as in transforms (FFT, Winograd). It then grows with the
    perturbation, and is compared with the largest change."""

    def reach(self, axis: int, side: int) -> int:
        """Return the largest reach from one side, 0 if nothing was seen."""
        return largest(self.every, axis, side) or 0

    @property
    def every(self) -> list[Edge]:
        """Every observed reach, but those of NaN and of the border of crops."""
        return self.edges + self.structured

    def sides(self, axis: int) -> Span:
        """Return the largest reaches before and after a sample, at least 0."""
        return max(0, self.reach(axis, 0)), max(0, self.reach(axis, 1))

    def note(self, text: str, axis: int | None = None) -> None:
        """Add a note; a note that holds for several axes is listed once."""
        _add(self.notes, text, axis)

    def doubt(self, text: str, axis: int | None = None) -> None:
        """Add a reason not to call the function exact."""
        _add(self.doubts, text, axis)


def _add(texts: dict[str, list[int]], text: str, axis: int | None) -> None:
    axes = texts.setdefault(text, [])
    if axis is not None and axis not in axes:
        axes.append(axis)


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one result after samples of one crop were replaced."""

    number: int
    """Number of the result."""
    base: int
    """Number of the unperturbed crop."""
    kind: Kind
    """Kind of the replacing values."""
    result: ResultShape
    """Geometry of the result."""
    amount: Array
    """Absolute difference, maximum over the untiled axes; tiled axes in order."""
    shares: Array
    """The difference as a fraction of each result."""

    def profile(self, axis: int) -> Array:
        """Return the largest difference per result sample along one tiled axis."""
        return np.asarray(self.amount.max(axis=others(self.amount, axis)))


@dataclass(slots=True)
class Experiment:
    """One function on crops of one shape: its calls, its unperturbed results, and the findings."""

    box: BlackBox
    """The function, with a count of its calls."""
    inputs: Inputs
    """Draws the crops."""
    tolerance: float | None = None
    """Largest change that is ignored, as a fraction of the largest result; None: rounding."""
    extremes: bool = False
    """Whether values far beyond the range are given to the function."""
    nan: bool = False
    """Whether NaN is given to the function."""
    results: list[ResultShape] = field(default_factory=list)
    """Geometry of each result, known after `look`."""
    bases: list[tuple[list[Array], list[Array]]] = field(default_factory=list)
    """Unperturbed crops and the results of the function."""
    flat: list[int] = field(default_factory=list)
    """Numbers of the flat base images."""
    lines: dict[int, int] = field(default_factory=dict)
    """Per tiled axis, the number of a base image of lines along it."""
    seen: Findings = field(default_factory=Findings)
    """The findings so far."""

    @property
    def crops(self) -> CropShapes:
        """Shapes of the crops."""
        return self.inputs.crops

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of replacing values, used in turn."""
        if self.tolerance is not None:
            return ("other", "ends")
        if not self.extremes:
            return ("other", "top", "bottom", "ends")
        floats = all(t.kind in "fc" for t in self.crops.dtypes)
        return ("other", "high", "low", "huge" if floats else "ends")

    # -- unperturbed crops ------------------------------------------------------------------------------

    def look(self) -> None:
        """Call the function twice on one crop; find the geometry of its results and whether they repeat."""
        crops = self.inputs.base("real")
        first = self.box(crops)
        self.bases.append((crops, first))
        for a, b in zip(first, self.box(crops), strict=True):
            gap = difference(a, b)
            if gap.any():
                self.seen.noise = max(self.seen.noise, float(gap.max()) / size_of(a))
        crop, ones = self.crops.crop, (Fraction(1),) * len(self.crops.crop)
        for a in first:
            axes = _result_axes(a.shape, crop, self.crops.shapes[0], self.crops.tiled[0])
            self.results.append(ResultShape(a.shape, a.dtype, axes, scale=ones, lost=(0,) * len(crop)))
        columns = [self._along(d) for d in range(len(crop))]
        for name, column in zip(self.crops.names, columns, strict=True):
            lost = tuple(fit[1] for fit in column)
            if len(set(lost)) > 1:
                raise ContractError(
                    f"all results of one function must lose the same margin; got {lost} samples on axis "
                    f"{name} of crop {crop}."
                )
        for number, row in enumerate(zip(*columns, strict=True)):
            scale, lost = tuple(fit[0] for fit in row), tuple(fit[1] for fit in row)
            self.results[number] = replace(self.results[number], scale=scale, lost=lost)

    def _along(self, d: int) -> list[Fit]:
        """Return scale and lost samples per result along one axis.

        A crop of twice the length tells them apart, or else the distance by which the response moves.
        """
        n, lengths = self.crops.crop[d], [r.lengths()[d] for r in self.results]
        if all(a == n for a in lengths):
            return [(Fraction(1), 0)] * len(lengths)
        doubled = self._lengths_of_longer(d)
        found = [_fits(n, a, self.crops.names[d]) for a in lengths]
        if doubled is not None:
            agree = [
                [fit for fit in own if _lost_samples(2 * n, b, fit[0]) == fit[1]]
                for own, b in zip(found, doubled, strict=True)
            ]
            if all(agree):
                return [own[0] for own in agree]
        return [_likeliest(own, n, slope) for own, slope in zip(found, self._slopes(d), strict=True)]

    def _lengths_of_longer(self, d: int) -> list[int] | None:
        """Return each result's length along axis ``d`` for a crop of twice the length; None if fn raises."""
        inputs = self.inputs.longer(d)
        try:
            found = self.box(inputs.base("real"))
            return [b.shape[r.axes[d]] for b, r in zip(found, self.results, strict=True)]
        except Exception:
            return None

    def _slopes(self, d: int) -> list[float]:
        """Return for each result the samples by which the response moves if the perturbation moves by one."""
        n = self.crops.crop[d]
        # Far from the border, where a network without padding has no result.
        width, places = max(1, n // 16), (3 * n // 8, 5 * n // 8)
        centres = []
        for place in places:
            start = place - width // 2
            changes = self.changes(0, "other", self.crops.kept(d, start, start + width))
            centres.append([_centre(change.amount, d) for change in changes])
        return [(b - a) / (places[1] - places[0]) for a, b in zip(*centres, strict=True)]

    def base(self, kind: Base) -> None:
        """Call the function on one more unperturbed crop."""
        self.add(self.inputs.base(kind))

    def add(self, crops: list[Array]) -> int:
        """Call the function on an unperturbed crop, and return its number."""
        self.bases.append((crops, self.box(crops)))
        return len(self.bases) - 1

    # -- perturbed crops --------------------------------------------------------------------------------

    def changes(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Change]:
        """Return the change of each result when all but ``keep`` (see `Inputs.mixed`) is replaced."""
        crops, before = self.bases[base]
        after = self.box(self.inputs.mixed(crops, self.inputs.other(kind), keep))
        self.seen.draws += kind != "nan"
        ranges = {"high": AMPLITUDE, "low": AMPLITUDE, "huge": HUGE / 2}.get(kind, 1)
        self.seen.amplitude = max(self.seen.amplitude, ranges)
        changes = []
        for number, (a, b, r) in enumerate(zip(before, after, self.results, strict=True)):
            if b.shape != r.shape:
                raise ContractError(f"the function returned shapes {r.shape} and {b.shape} for equal crops.")
            gap = difference(a, b)
            changes.append(Change(number, base, kind, r, amount=r.flat(gap), shares=r.flat(share(gap, a, b))))
        return changes

    def taken(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Change] | None:
        """Return `changes`, or None if the function raises for values beyond the range."""
        try:
            return self.changes(base, kind, keep)
        except ContractError:
            raise
        except Exception as error:
            if kind not in EXTREME:
                raise
            self.seen.note(f"{kind} values were refused ({type(error).__name__}); others were tried")
            return None

    # -- changes and rounding ---------------------------------------------------------------------------

    def limit(self, number: int, base: int = 0) -> float:
        """Return the largest difference in a result that is ignored."""
        result, dtype = self.bases[base][1][number], self.results[number].dtype
        least = 4 * self.seen.noise
        if self.tolerance is not None:
            least = max(self.tolerance, least)
        elif dtype.kind in "fc":
            least = max(self._leak(dtype), least)
        return least * size_of(result)

    def equal(self, a: Array, b: Array, number: int, base: int = NOISE) -> bool:
        """Return whether two versions of a result are equal but for rounding on other paths of the code."""
        return a.shape == b.shape and bool((difference(a, b) <= SLACK * self.limit(number, base)).all())

    def limit_of(self, change: Change) -> float:
        """Return the largest difference in ``change`` that is ignored."""
        if change.kind == "nan":
            return 1e300
        limit, dtype = self.limit(change.number, change.base), change.result.dtype
        if not self.seen.leaks or dtype.kind not in "fc" or self.tolerance is not None:
            return limit
        finite = change.amount[np.isfinite(change.amount)]
        return max(limit, self._leak(dtype) * float(finite.max(initial=0.0)))

    def _leak(self, dtype: np.dtype[Any]) -> float:
        """Return the rounding of a result of ``dtype``, as a fraction of the largest value."""
        # A function of float32 crops may compute in float32 and return float64.
        kinds = [dtype, *(t for t in self.crops.dtypes if t.kind in "fc")]
        eps = max(float(np.finfo(t).eps) for t in kinds)
        return eps * (LEAK_COARSE if eps > 1e-5 else LEAK)

    def stirred(self, change: Change, axis: int, start: int, stop: int) -> bool:
        """Return whether most results from ``start`` to ``stop`` changed, each as a fraction of itself.

        A probability of 1e-6 that becomes 2e-6 has changed, although little compared with 1. Always False for
        values beyond the range.
        """
        if self.seen.noise or self.tolerance is not None or change.kind in EXTREME:
            return False
        part = change.shares.take(range(start, stop), axis)
        return bool(part.size) and float(np.median(part)) > STIRRED


def _centre(amount: Array, d: int) -> float:
    """Return the centre of a response along axis ``d``, samples; the middle if there is no response."""
    profile = np.minimum(amount, 1e300).sum(axis=others(amount, d))
    total = profile.sum()
    return float((profile * np.arange(len(profile))).sum() / total) if total else (len(profile) - 1) / 2


def _result_axes(shape: Index, crop: Index, crop_shape: Index, crop_axes: Index) -> Index:
    """Return the most likely positions of the tiled axes in a result of ``shape``."""
    if len(shape) == len(crop_shape):
        return crop_axes
    if len(shape) < len(crop):
        raise ContractError(
            f"the function maps a crop of shape {crop_shape} to shape {shape}, which has no place for "
            f"{len(crop)} tiled axes."
        )
    same = placements(shape, crop)
    if same:
        return same[-1]
    # Channels are first or last: take the axes that all scale alike, otherwise the last ones.
    for start in range(len(shape) - len(crop), -1, -1):
        own = shape[start : start + len(crop)]
        if len({Fraction(a, b) for a, b in zip(own, crop, strict=True)}) == 1:
            return tuple(range(start, start + len(crop)))
    return tuple(range(len(shape) - len(crop), len(shape)))


def _fits(n: int, length: int, name: str) -> list[Fit]:
    """Return the scales, with lost samples, that map ``n`` samples to ``length``; the simplest first."""
    found = [(scale, lost) for scale in SCALES if (lost := _lost_samples(n, length, scale)) is not None]
    if not found:
        raise TilingError(
            f"the function maps {n} samples on axis {name} to {length}: no scale times crop less margin "
            "gives that. Crop its result inside the function."
        )
    return found


def _lost_samples(n: int, length: int, scale: Fraction) -> int | None:
    """Return the number of ``n`` image samples without a result; None if it is not a whole number."""
    lost = 0 if math.ceil(n * scale) == length else n - length / scale
    return int(lost) if lost >= 0 and lost == int(lost) else None


def _likeliest(found: Sequence[Fit], n: int, slope: float) -> Fit:
    """Return the simplest fit whose scale is about ``slope``, known to a result sample in ``n / 4``."""
    near = [f for f in found if abs(float(f[0]) - slope) <= max(slope / 10, 4 / n)]
    # Networks scale by numbers such as 2 or 1/16, without a margin that compensates for another scale.
    plain = [f for f in near if not f[1] and 1 in (f[0].numerator, f[0].denominator)]
    return next(iter(plain or near), min(found, key=lambda f: abs(float(f[0]) - slope)))
