"""Halving: a block of one level of a pyramid from the block of the level below.

Every result sample is made from the bin of ``2 ** n`` samples that it covers, ``n`` axes being halved. Of an
odd extent the last sample has no bin, and is left out. The samples of a bin are always combined in raster
order, so that the bits do not depend on how an image is cut into blocks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tilework._types import Array
from tilework.errors import TilingError
from tilework.grid.weights import accumulation_dtype

__all__ = ["PYRAMIDS", "Pyramid", "halved", "refuse_method", "usual_method"]

Pyramid = Literal["mean", "nearest", "mode", "max"]
PYRAMIDS: tuple[str, ...] = get_args(Pyramid)
# Result bytes that are made at a time, so that sums and counts stay in the processor's cache.
PART = 2**20


def usual_method(dtype: np.dtype[Any], *, labels: bool) -> str:
    """Return the method for samples of ``dtype``: names of classes and objects are not averaged."""
    return "nearest" if labels or dtype.kind not in "iufc" else "mean"


def refuse_method(method: str, dtype: np.dtype[Any], *, labels: bool) -> None:
    """Raise a `TilingError` if ``method`` means nothing for samples of ``dtype``.

    Parameters
    ----------
    labels : bool
        Whether the samples are names of classes or objects.
    """
    if method == "mean" and (labels or dtype.kind not in "iufc"):
        what = "names of classes or objects" if labels else f"values of dtype {dtype}"
        raise TilingError(f'pyramid="mean" would average {what}; use pyramid="nearest" or "mode".')
    if method == "max" and (labels or dtype.kind not in "biuf"):
        what = "names of classes or objects" if labels else f"values of dtype {dtype}"
        raise TilingError(f'pyramid="max" cannot order {what}; use pyramid="nearest" or "mode".')


def halved(block: Array, axes: Sequence[int], method: str, nodata: Any = None) -> Array:
    """Return the block of the next level, in which ``axes`` have half of their extents.

    Parameters
    ----------
    block : numpy.ndarray
        Samples of a level, from an even start on each of ``axes``.
    axes : sequence of int
        Axes that are halved.
    method : {"mean", "nearest", "mode", "max"}
        "mean" rounds integers half to even, in integer arithmetic, and takes the mean of what is there where
        samples are NaN. "nearest" takes the first sample of each bin. "mode" takes the most frequent value,
        of several the first. "max" leaves out NaN where there is anything else.
    nodata : scalar, optional
        Value of samples that hold no data: "mean" and "max" leave them out, as NaN.

    Returns
    -------
    numpy.ndarray, shape of ``block`` with half of the extents along ``axes``, dtype of ``block``

    Examples
    --------
    >>> halved(np.array([[1, 2, 9], [3, 4, 9]]), (0, 1), "mean")
    array([[2]])
    """
    spans = [slice(0, n - n % 2 if a in axes else n) for a, n in enumerate(block.shape)]
    whole = block[tuple(spans)]
    if method == "nearest" or not axes:
        return np.ascontiguousarray(whole[_every(whole.ndim, axes, (0,) * len(axes))])
    shape = [n // 2 if a in axes else n for a, n in enumerate(whole.shape)]
    combine: Callable[[Sequence[Array]], Array] = _COMBINE[method]
    if nodata is not None and nodata == nodata and method in ("mean", "max"):
        combine = functools.partial(_without, combine, block.dtype.type(nodata))
    parts = list(_parts(shape, block.dtype.itemsize))
    out = np.empty(shape if len(parts) != 1 else 0, block.dtype)
    for rows in parts:
        bins = [rows.of(whole, offset, axes) for offset in itertools.product((0, 1), repeat=len(axes))]
        combined = combine(bins)
        if len(parts) == 1:
            return combined
        out[rows.first : rows.last] = combined
    return out


class _Rows:
    """Rows of a result, along its first axis."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def of(self, whole: Array, offset: Sequence[int], axes: Sequence[int]) -> Array:
        """Return, for each result sample of the rows, the sample at ``offset`` of its bin; a view."""
        factor = 2 if 0 in axes else 1
        return whole[self.first * factor : self.last * factor][_every(whole.ndim, axes, offset)]


def _parts(shape: Sequence[int], itemsize: int) -> Iterator[_Rows]:
    """Yield ranges of rows of about `PART` bytes."""
    step = max(1, PART // max(1, itemsize * math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield _Rows(first, min(first + step, shape[0]))


def _every(ndim: int, axes: Sequence[int], offset: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of every second sample along ``axes``, from ``offset`` on."""
    index = [slice(None)] * ndim
    for axis, first in zip(axes, offset, strict=True):
        index[axis] = slice(first, None, 2)
    return tuple(index)


def _without(combine: Callable[[Sequence[Array]], Array], nodata: Any, bins: Sequence[Array]) -> Array:
    """Return what ``combine`` makes of the samples of each bin that are not ``nodata``."""
    out = combine(bins)
    some = np.logical_or.reduce([one == nodata for one in bins])
    if some.any():
        values = np.stack([one[some] for one in bins])
        there = values != nodata
        count = there.sum(axis=0)
        for n in range(1, len(bins)):
            # Bins with equally many samples, in raster order.
            own = count == n
            kept = values[:, own].T[there[:, own].T].reshape(-1, n).T
            values[0, own] = _mean_of(kept) if combine is _mean else combine(list(kept))
        out[some] = np.where(count > 0, values[0], nodata)
    return out


def _mean_of(values: Array) -> Array:
    """Return the mean along the first axis, of any number of samples, rounded as the mean of a bin is."""
    dtype, n = values.dtype, len(values)
    if dtype.kind not in "iu":
        wide = values.astype(accumulation_dtype(dtype, "average"))
        with np.errstate(all="ignore"):
            found: Array = np.asarray(np.nanmean(wide, axis=0) if n > 1 else wide[0]).astype(dtype)
        return found
    base: Array = (values // n).sum(axis=0, dtype=dtype)
    rest = (values % n).sum(axis=0, dtype=np.int64)
    base += (rest // n).astype(dtype)
    rest = 2 * (rest % n)
    base += ((rest > n) | ((rest == n) & (base % 2 == 1))).astype(dtype)
    return base


def _mean(bins: Sequence[Array]) -> Array:
    """Return the mean of each bin."""
    dtype = bins[0].dtype
    if dtype.kind in "iu":
        return _mean_of_integers(bins)
    with np.errstate(all="ignore"):
        total: Array = np.add(*bins[:2], dtype=accumulation_dtype(dtype, "average"))
        for one in bins[2:]:
            total += one
        total *= total.real.dtype.type(1 / len(bins))  # exact: a power of two
        # The sum takes a third of the time of a test of every sample, and is rarely infinite without reason.
        if not np.isfinite(total.sum()) and not np.isfinite(total).all():
            _mean_of_the_rest(total, bins)
        return total.astype(dtype, copy=False)


def _mean_of_the_rest(total: Array, bins: Sequence[Array]) -> None:
    """Put the mean of the samples that are not NaN where the mean of all, or their sum, is not finite."""
    lost = ~np.isfinite(total)
    values = np.stack([one[lost] for one in bins]).astype(total.dtype)
    there = ~np.isnan(values)
    count = there.sum(axis=0, dtype=total.real.dtype)
    mean = np.where(there, values, 0).sum(axis=0) / count
    # The sum of finite samples may overflow; their mean does not.
    total[lost] = np.where(np.isinf(mean), np.where(there, values / count, 0).sum(axis=0), mean)


def _mean_of_integers(bins: Sequence[Array]) -> Array:
    """Return means, rounded half to even.

    Each sample is split into its quotient and remainder by the number of samples, so that no sum overflows.
    Rounding half up would drift by an eighth a level in two dimensions.
    """
    dtype, n = bins[0].dtype, len(bins)
    bits = n.bit_length() - 1
    if dtype.itemsize < 8:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")  # 2 ** n samples of half the bits fit
        total = bins[0].astype(wide)
        for one in bins[1:]:
            total += one
        base, rest = total >> bits, total & (n - 1)
    else:
        base, rest = bins[0] >> bits, bins[0] & (n - 1)
        for one in bins[1:]:
            base += one >> bits
            rest += one & (n - 1)
        base += rest >> bits
        rest &= n - 1
    half = n // 2
    base += (rest > half) | ((rest == half) & (base & 1 == 1))
    return base.astype(dtype, copy=False)


def _mode(bins: Sequence[Array]) -> Array:
    """Return the most frequent value of each bin; of several the first."""
    best, most = bins[0].copy(), np.zeros(bins[0].shape, np.int8)
    for one in bins:
        count = np.zeros(one.shape, np.int8)
        for other in bins:
            count += _equal(one, other)
        better = count > most
        np.copyto(best, one, where=better)
        np.copyto(most, count, where=better)
    return best


def _equal(one: Array, other: Array) -> Any:
    """Return where samples are equal, NaN and NaT included."""
    same = one == other
    return same | ((one != one) & (other != other)) if one.dtype.kind in "fcmM" else same


def _max(bins: Sequence[Array]) -> Array:
    """Return the largest value of each bin."""
    best = bins[0].copy()
    for one in bins[1:]:
        np.fmax(best, one, out=best)
    return best


_COMBINE: dict[str, Callable[[Sequence[Array]], Array]] = {"mean": _mean, "mode": _mode, "max": _max}
