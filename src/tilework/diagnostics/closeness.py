"""How far two results differ, measured by the spread of what is compared.

A difference counts as rounding up to a limit, the largest of:

1. `ROUNDING` of the spread, the mean distance from the median along the tiled axes, of each channel for
   itself. A window has its own spread, or the median of all windows' if that is larger: where the image is
   flat, nothing else tells what is small. Where nothing varies at all, the size stands for the spread.
2. A few units in the last place of the values, and of the image if its values lie far from 0: both are what a
   sum in another order changes.

An offset therefore hides nothing: 1e4 + x is compared like x, down to what its dtype can hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilework._types import Array, Bits, Floats
from tilework.probing.blackbox import difference

__all__ = ["ROUNDING", "UNITS", "Gap", "conditioning", "distance", "gap_between", "judge"]

# Largest difference that is rounding, as a fraction of the spread: windows of another shape may take another
# code path in the function.
ROUNDING = 1e-5
# The same in units in the last place of the largest value.
UNITS = 4
# Spread below which a channel counts as constant beside the others of its output, as a fraction of theirs: a
# dead channel of a network holds the rounding of the layers before.
DEAD = 1e-4
# Largest share of the spread that the rounding of an image far from 0 may explain.
FAR = 0.02


@dataclass(slots=True)
class Gap:
    """Difference of one output from the function in one window; limits are set by `judge`."""

    gap: Floats
    """Absolute difference per sample; inf where only one is NaN."""
    spread: Floats
    """Spread of the values per channel, with axes of length 1 along the others."""
    size: Floats
    """Largest finite magnitude, likewise."""
    eps: float
    """Relative spacing of the result's floats; 0 if they are no floats."""
    rounding: float
    """Rounding of the image's values, as a fraction of their spread."""
    limit: Floats
    """Largest difference that counts as rounding, per channel."""

    @property
    def excess(self) -> Floats:
        """The difference per sample, in limits."""
        return self.gap / self.limit

    @property
    def worst(self) -> int:
        """Flat index of the sample that exceeds its limit most."""
        excess = self.excess
        # Of several that are infinite, or of none, the largest difference.
        return int(np.where(excess == excess.max(), self.gap, -1.0).argmax())


def gap_between(got: Array, want: Array, axes: Sequence[int], rounding: float = 0.0) -> Gap:
    """Return the difference between two results of one shape, ``axes`` being the tiled ones."""
    gap = distance(got, want)
    kept = tuple(1 if a in axes else n for a, n in enumerate(want.shape))
    if want.dtype.kind not in "iufc":
        return Gap(gap, np.ones(kept), np.ones(kept), 0.0, 0.0, np.zeros(kept))
    spread, size = _spread(want, axes)
    eps = float(np.finfo(want.dtype).eps) if want.dtype.kind in "fc" else 0.0
    return Gap(gap, spread, size, eps, rounding, np.zeros(kept))


def distance(a: Array, b: Array) -> Floats:
    """Return the absolute difference of two results; 1 where values that are no numbers differ."""
    return difference(a, b) if a.dtype.kind in "iufc" else _unlike(a, b).astype(np.float64)


def _unlike(a: Array, b: Array) -> Bits:
    """Return where two results differ, with records field by field; NaN equals NaN, and NaT equals NaT."""
    if a.dtype.names is None or a.dtype.names != b.dtype.names:
        return np.asarray((a != b) & ((a == a) | (b == b)))
    unlike = np.zeros(a.shape, bool)
    for name in a.dtype.names:
        field = _unlike(a[name], b[name])
        # A field may be an array.
        unlike |= field.any(axis=tuple(range(a.ndim, field.ndim)))
    return unlike


def judge(gaps: Sequence[Gap]) -> None:
    """Set the limits of one output's differences, one entry per window."""
    spreads = np.stack([np.where(g.spread > g.eps * g.size, g.spread, 0.0) for g in gaps])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel that is constant in all windows
        usual = np.nan_to_num(np.nanmedian(np.where(spreads > 0, spreads, np.nan), axis=0))
    usual = np.maximum(usual, DEAD * usual.max(initial=0.0))
    size = np.maximum.reduce([g.size for g in gaps])
    usual = np.where(usual > 0, usual, np.where(size > 0, size, 1.0))
    for one, own in zip(gaps, spreads, strict=True):
        one.spread = np.maximum(own, usual)
        one.limit = np.maximum(
            one.spread * max(ROUNDING, min(one.rounding, FAR)),
            one.eps * np.maximum(UNITS * one.size, size.max(initial=0.0)),
        )


def conditioning(crops: Sequence[Array], result: np.dtype[np.generic]) -> float:
    """Return the rounding of an image's values, as a fraction of their spread.

    Parameters
    ----------
    crops : sequence of numpy.ndarray
        What the function was given.
    result : numpy.dtype
        Of what it returned: a result in float32 was computed in float32.
    """
    worst = 0.0
    for crop in crops:
        kinds = [d for d in (crop.dtype, result) if d.kind in "fc"]
        if crop.dtype.kind not in "iufc" or not kinds:
            continue
        finite = crop[np.isfinite(crop)]
        if not finite.size:
            continue
        middle = np.median(finite.real)
        spread = float(np.abs(finite - middle).mean())
        if spread > 0:
            worst = max(worst, UNITS * float(max(np.finfo(d).eps for d in kinds)) * abs(middle) / spread)
    return worst


def _spread(values: Array, axes: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the mean distance from the median and the largest magnitude of finite values, along ``axes``."""
    wide = values.astype(np.result_type(values.dtype, np.float64))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel without a finite value
        wide = np.where(np.isfinite(wide), wide, np.nan)
        along = tuple(axes)
        middle = np.nanmedian(wide.real, axis=along, keepdims=True)
        if values.dtype.kind == "c":
            middle = middle + 1j * np.nanmedian(wide.imag, axis=along, keepdims=True)
        spread = np.nanmean(np.abs(wide - middle), axis=along, keepdims=True)
        size = np.nanmax(np.abs(wide), axis=along, keepdims=True, initial=0.0)
    return np.nan_to_num(np.asarray(spread, np.float64)), np.nan_to_num(np.asarray(size, np.float64))
