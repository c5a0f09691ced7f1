"""One function called on crops with samples replaced: what changes in its results, and what is rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._types import Array, Index
from tilework.errors import ContractError, TilingError
from tilework.function.output import placements
from tilework.probing.blackbox import (
    AMPLITUDE,
    HUGE,
    Base,
    BlackBox,
    CropShapes,
    Inputs,
    Kind,
    ResultShape,
    difference,
    others,
    share,
    size_of,
)
from tilework.probing.reach import Edge, largest

__all__ = ["Change", "Experiment", "Findings"]

# Rounding that counts as no change, in units of the last place: transforms (FFT, Winograd) leak that much
# into samples that do not depend on the input. Coarse types come without such transforms.
LEAK, LEAK_COARSE = 64, 4
# Scales of results, the simplest first.
SCALES = sorted(
    {Fraction(a, b) for a in range(1, 9) for b in range(1, 65)},
    key=lambda s: (s.numerator * s.denominator, s),
)
# Median change of results, as a share of each of them, above which they count as changed.
STIRRED = 1e-4
# Values beyond the range, which a function may refuse. Rounding that a transform spreads grows with them.
EXTREME = ("high", "low", "huge", "nan")

Fit = tuple[Fraction, int]
"""Scale of a result along one axis, and the image samples of the crop that it loses there."""


@dataclass(slots=True)
class Findings:
    """What the calls of one probe showed so far."""

    edges: list[Edge] = field(default_factory=list)
    """Every reach that was read off."""
    nan: list[Edge] = field(default_factory=list)
    """The same for NaN."""
    borders: list[Edge] = field(default_factory=list)
    """How far the border of a crop reaches into its results."""
    multiple: Index = ()
    """Samples by which the function commutes with translation, per tiled axis."""
    commutes: bool = False
    """Whether such a translation was found on every axis."""
    bounded: bool = True
    """Whether every change stopped short of the crop's border."""
    wraps: set[int] = field(default_factory=set)
    """Axes on which one end of a crop changes the other."""
    notes: dict[str, list[int]] = field(default_factory=dict)
    """What else was seen, with the axes that "{axis}" in the text stands for."""
    draws: int = 0
    """Perturbed crops compared with unperturbed ones."""
    places: int = 0
    """Gaps looked at."""
    amplitude: float = 1.0
    """Largest perturbation, in ranges of the values."""
    noise: float = 0.0
    """Largest difference between two calls on one crop, as a share of the largest result."""
    rounding: float = 0.0
    """Largest change that counted as none, as a share of the largest result."""
    response: float = 0.0
    """Largest share of results that changed where inputs were replaced."""
    may_leak: bool = True
    """Whether NaN spread over the crop: where it does not, rounding does not either."""
    leaks: bool = False
    """Whether rounding spreads over the crop, as transforms (FFT, Winograd) do. It then grows with the
    perturbation, and is measured against the largest change."""

    def reach(self, axis: int, side: int) -> int:
        """Return the largest reach from one side, 0 where nothing was seen."""
        return largest(self.edges, axis, side) or 0

    def note(self, text: str, axis: int | None = None) -> None:
        """Add a note, once for all axes of which it is true."""
        axes = self.notes.setdefault(text, [])
        if axis is not None and axis not in axes:
            axes.append(axis)


@dataclass(frozen=True, slots=True)
class Change:
    """What replacing samples of one crop changed in one result."""

    number: int
    """Of the result."""
    base: int
    """Of the unperturbed crop."""
    kind: Kind
    """Of the values that replaced others."""
    result: ResultShape
    """Where the result lies."""
    amount: Array
    """Absolute difference, the largest over the untiled axes; tiled axes in their order."""
    shares: Array
    """The same as shares of each result."""

    def profile(self, axis: int) -> Array:
        """Return the largest difference per result sample along one tiled axis."""
        return np.asarray(self.amount.max(axis=others(self.amount, axis)))


@dataclass(slots=True)
class Experiment:
    """One function on crops of one shape: its calls, its unperturbed results, and what they showed."""

    box: BlackBox
    """The function; counts its calls."""
    inputs: Inputs
    """Draws the crops."""
    tolerance: float | None = None
    """Change that counts as none, as a share of the largest result; None: rounding."""
    results: list[ResultShape] = field(default_factory=list)
    """Where each result lies, known after `look`."""
    bases: list[tuple[list[Array], list[Array]]] = field(default_factory=list)
    """Unperturbed crops and the results of the function."""
    seen: Findings = field(default_factory=Findings)
    """What was found so far."""

    @property
    def crops(self) -> CropShapes:
        """Shapes that the function is called with."""
        return self.inputs.crops

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Values to replace samples by, in turn."""
        if self.tolerance is not None:
            return ("other", "ends")
        floats = all(t.kind in "fc" for t in self.crops.dtypes)
        return ("other", "high", "low", "huge" if floats else "ends")

    # -- unperturbed crops ------------------------------------------------------------------------------

    def look(self) -> None:
        """Call the function twice on one crop; find where its results lie and whether they repeat."""
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

        They are told apart by a crop of twice the length, else by how far the response moves.
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
        """Return per result its samples along axis ``d`` for a crop of twice the length, None if refused."""
        inputs = self.inputs.longer(d)
        try:
            found = self.box(inputs.base("real"))
            return [b.shape[r.axes[d]] for b, r in zip(found, self.results, strict=True)]
        except Exception:
            return None

    def _slopes(self, d: int) -> list[float]:
        """Return per result how many samples the response moves when the perturbation moves by one."""
        n = self.crops.crop[d]
        # Well inside: a network without padding has no result near the border.
        width, places = max(1, n // 16), (3 * n // 8, 5 * n // 8)
        centres = []
        for place in places:
            start = place - width // 2
            changes = self.changes(0, "other", self.crops.kept(d, start, start + width))
            centres.append([_centre(change.amount, d) for change in changes])
        return [(b - a) / (places[1] - places[0]) for a, b in zip(*centres, strict=True)]

    def base(self, kind: Base) -> None:
        """Call the function on one more unperturbed crop."""
        crops = self.inputs.base(kind)
        self.bases.append((crops, self.box(crops)))

    # -- perturbed crops --------------------------------------------------------------------------------

    def changes(self, base: int, kind: Kind, keep: Sequence[Array]) -> list[Change]:
        """Return what changes in each result when all but ``keep`` (see `Inputs.mixed`) is replaced."""
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
        """Return `changes`, or None where the function refuses values beyond the range."""
        try:
            return self.changes(base, kind, keep)
        except ContractError:
            raise
        except Exception as error:
            if kind not in EXTREME:
                raise
            self.seen.note(f"{kind} values were refused ({type(error).__name__}); others were tried")
            return None

    # -- what counts as a change ------------------------------------------------------------------------

    def limit(self, number: int, base: int = 0) -> float:
        """Return the largest difference in a result that counts as none."""
        result, dtype = self.bases[base][1][number], self.results[number].dtype
        least = 4 * self.seen.noise
        if self.tolerance is not None:
            least = max(self.tolerance, least)
        elif dtype.kind in "fc":
            least = max(self._leak(dtype), least)
        return least * size_of(result)

    def limit_of(self, change: Change) -> float:
        """Return the largest difference in ``change`` that counts as none."""
        if change.kind == "nan":
            return 1e300
        limit, dtype = self.limit(change.number, change.base), change.result.dtype
        if not self.seen.leaks or dtype.kind not in "fc" or self.tolerance is not None:
            return limit
        finite = change.amount[np.isfinite(change.amount)]
        return max(limit, self._leak(dtype) * float(finite.max(initial=0.0)))

    def _leak(self, dtype: np.dtype[Any]) -> float:
        """Return the rounding of a result of ``dtype``, as a share of the largest one."""
        # A function of floats may have computed in floats and returned doubles.
        kinds = [dtype, *(t for t in self.crops.dtypes if t.kind in "fc")]
        eps = max(float(np.finfo(t).eps) for t in kinds)
        return eps * (LEAK_COARSE if eps > 1e-5 else LEAK)

    def stirred(self, change: Change, axis: int, start: int, stop: int) -> bool:
        """Return whether most results from ``start`` to ``stop`` changed, each as a share of itself.

        A probability of 1e-6 that becomes 2e-6 has changed, though by little next to 1. Always False for
        values beyond the range.
        """
        if self.seen.noise or self.tolerance is not None or change.kind in EXTREME:
            return False
        part = change.shares.take(range(start, stop), axis)
        return bool(part.size) and float(np.median(part)) > STIRRED


def _centre(amount: Array, d: int) -> float:
    """Return the centre of a response along axis ``d``, samples; the middle where there is none."""
    profile = np.minimum(amount, 1e300).sum(axis=others(amount, d))
    total = profile.sum()
    return float((profile * np.arange(len(profile))).sum() / total) if total else (len(profile) - 1) / 2


def _result_axes(shape: Index, crop: Index, crop_shape: Index, crop_axes: Index) -> Index:
    """Return where the tiled axes most likely are in a result of ``shape``."""
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
    # Channels come first or last: take the axes that all shrink or grow alike, else the last ones.
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
    """Return of ``n`` image samples those without a result; None where that is no whole number."""
    lost = 0 if math.ceil(n * scale) == length else n - length / scale
    return int(lost) if lost >= 0 and lost == int(lost) else None


def _likeliest(found: Sequence[Fit], n: int, slope: float) -> Fit:
    """Return the simplest fit whose scale is about ``slope``, known to a result sample in ``n / 4``."""
    near = [f for f in found if abs(float(f[0]) - slope) <= max(slope / 10, 4 / n)]
    # Networks scale by 2 or 1/16, and have no margin that makes up for another number.
    plain = [f for f in near if not f[1] and 1 in (f[0].numerator, f[0].denominator)]
    return next(iter(plain or near), min(found, key=lambda f: abs(float(f[0]) - slope)))
