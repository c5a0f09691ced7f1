"""Sums of weighted values: what numpy's arithmetic does not do at the ends of a type, and with inf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tilework._types import Array

__all__ = ["plus", "quotient", "real_dtype", "real_parts", "times"]


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the real part of values of ``dtype``."""
    return np.empty(0, dtype).real.dtype


def real_parts(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Yield views of the real parts of complex arrays, then of the imaginary ones; or real arrays."""
    if arrays[0].dtype.kind != "c":
        yield arrays
        return
    yield tuple(a.real for a in arrays)
    yield tuple(a.imag for a in arrays)


def times(values: Array, weights: Array, out: Array, where: Any = True) -> None:
    """Multiply by real weights; inf stays inf."""
    if out.dtype.kind != "c":
        np.multiply(values, weights, out=out, where=where)
        return
    if out is not values:
        with np.errstate(invalid="ignore"):
            np.multiply(values, weights, out=out, where=where)
        if not _infinite(out):
            return
    # numpy makes the weights complex, and inf times their imaginary 0 is NaN. Apart, the parts take longer.
    for part, result in real_parts(values, out):
        np.multiply(part, weights, out=result, where=where)


def _infinite(values: Array) -> bool:
    """Return whether complex values hold NaN or inf."""
    flat = values.view(real_dtype(values.dtype)) if values.flags.c_contiguous else np.abs(values)
    return not (flat.min(initial=0) > -np.inf and flat.max(initial=0) < np.inf)


# -- sums at the ends of a type ---------------------------------------------------------------------------


def plus(target: tuple[Array, Array | None], values: Array, *, average: bool) -> None:
    """Add ``values`` to the sum in place.

    A sum of integers stays at the end of its type that it reaches. ``average`` means that weights sum to 1,
    so that finite values that give inf do so by rounding; the sum is then the largest finite number.
    """
    sums, lost = target
    if sums.dtype.kind in "iu":
        _saturate(sums, values.astype(sums.dtype, copy=False))
        return
    if lost is None:
        # The processor notes an overflow; looking for large values first took a quarter of the time of a
        # blend.
        over: list[Any] = []
        with np.errstate(over="call" if average else None, call=lambda *told: over.append(told)):
            np.add(sums, values, out=sums, casting="unsafe")
        if over:
            _undo_overflow(sums, values)
        return
    with np.errstate(over="ignore" if average else None):
        total = sums + values
    if average:
        total = _unrounded(total, sums, values)
    if lost is not None:
        # The exact error of the addition (Knuth's two-sum).
        with np.errstate(invalid="ignore", over="ignore"):
            own = total - sums
            error = (sums - (total - own)) + (values - own)
            np.add(lost, error, out=lost)
    sums[...] = total


def _undo_overflow(sums: Array, values: Array) -> None:
    """Put the largest finite number where adding ``values`` made inf, and not where inf was added before."""
    info = np.finfo(sums.dtype)
    # Smaller values do not change a sum at the end of the type.
    limit = float(info.max) * float(info.eps) / 8
    for out, added in real_parts(sums, values):
        over = np.isinf(out) & np.isfinite(added) & (np.abs(added) > limit)
        np.copyto(out, np.copysign(info.max, out), where=over)


def _unrounded(result: Array, *operands: Array) -> Array:
    """Return ``result`` with the largest finite number where it is inf although all operands are finite."""
    for out, *given in real_parts(result, *operands):
        over = np.isinf(out)
        if over.any():
            for operand in given:
                over = over & np.isfinite(operand)
            np.copyto(out, np.copysign(np.finfo(out.dtype).max, out), where=over)
    return result


def _saturate(sums: Array, values: Array) -> None:
    """Add integers of one dtype in place; what would wrap around stays at the end of the type."""
    info, before = np.iinfo(sums.dtype), sums.copy()
    np.add(sums, values, out=sums)
    if sums.dtype.kind == "u":
        sums[sums < before] = info.max
        return
    over = ((before ^ sums) & (values ^ sums)) < 0
    if over.any():
        np.copyto(sums, np.where(before < 0, info.min, info.max), where=over)


def quotient(total: Array, weights: Array) -> Array:
    """Return sums divided by real weights; inf only where the sum is."""
    if total.dtype.kind != "c":
        # The processor notes what becomes inf; looking for it took as long as dividing.
        over: list[Any] = []
        with np.errstate(over="call", divide="call", call=lambda *told: over.append(told)):
            result = total / weights
        return _unrounded(result, total) if over else result
    with np.errstate(over="ignore"):
        result = np.empty_like(total)
        # As numpy divides complex numbers, but without their product with the imaginary 0 of the weights.
        times(total, 1 / weights, result)
        return _unrounded(result, total)
