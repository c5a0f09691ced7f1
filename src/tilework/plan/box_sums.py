"""Sums over boxes of an array, and values of neighbours: one range per box and axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Ints
from tilework.plan.axis_table import Spans

__all__ = ["box_any", "box_sums", "shifted", "weighed_sum"]

# Places of ranges, for each one along an axis, up to which they are looked at one by one.
FEW = 4


def box_sums(values: Array, ranges: Sequence[Spans], edges: Sequence[Ints] | None = None) -> Ints:
    """Return the sum of ``values`` over each product of one range per axis.

    Parameters
    ----------
    values : bool or int array
    ranges : sequence of Spans
        For each axis, the ranges along it.
    edges : sequence of int arrays, optional
        For each axis, where the part begins for which each value stands, then the end of the last; ranges
        are counted in the same way. Default: each value stands for itself.

    Returns
    -------
    int array
        One entry per range along each axis.
    """
    # Sums of bits mostly fit into 32 bits, which takes half the time.
    size = values.size if edges is None else math.prod(int(ends[-1] - ends[0]) for ends in edges)
    small = values.dtype == bool and size < 2**31
    sums: Any = values
    for axis, (low, high) in enumerate(ranges):
        n = sums.shape[axis]
        ends = np.arange(n + 1) if edges is None else edges[axis]
        dtype = np.dtype(np.int32 if small else np.int64)
        if len(ends) < ends[-1] - ends[0] + 1:
            along = (-1,) + (1,) * (sums.ndim - axis - 1)
            before = _before(sums * np.diff(ends).reshape(along), axis, dtype)
            found = _up_to(high, sums, before, axis, ends)
            found -= _up_to(low, sums, before, axis, ends)
        elif int((high - low).max(initial=0)) * len(low) <= FEW * n:
            found = _one_by_one(sums, axis, low - ends[0], high - low, dtype)
        else:
            before = _before(sums, axis, dtype)
            found = before.take(high - ends[0], axis)
            found -= before.take(low - ends[0], axis)
        sums = found
    return np.asarray(sums)


def _before(values: Array, axis: int, dtype: np.dtype[Any]) -> Array:
    """Return the sum of what lies before each place along an axis."""
    shape = list(values.shape)
    shape[axis] += 1
    before = np.zeros(shape, dtype)
    np.cumsum(values, axis, dtype, before[(slice(None),) * axis + (slice(1, None),)])
    return before


def _one_by_one(values: Array, axis: int, low: Ints, lengths: Ints, dtype: np.dtype[Any]) -> Array:
    """Return the sums over ranges along an axis, the first of each range first, then the second of each.

    Where ranges are short, and hardly overlap, this takes an eighth of the time of `_before`.
    """
    found = np.zeros((*values.shape[:axis], len(low), *values.shape[axis + 1 :]), dtype)
    for k in range(int(lengths.max(initial=0))):
        here = np.flatnonzero(k < lengths)
        if len(here) == len(low):
            found += values.take(low + k, axis)
        else:
            found[(slice(None),) * axis + (here,)] += values.take(low[here] + k, axis)
    return found


def _up_to(at: Ints, sums: Array, before: Array, axis: int, ends: Ints) -> Array:
    """Return the sums of what lies before each place ``at`` along an axis; ``before`` has them at edges."""
    part = np.searchsorted(ends, at, "right") - 1
    found = before.take(part, axis)
    rest = (at - ends[part]).astype(before.dtype)
    if rest.any():
        along = (-1,) + (1,) * (sums.ndim - axis - 1)
        found += sums.take(np.minimum(part, len(ends) - 2), axis) * rest.reshape(along)
    return found


def box_any(bits: Bits, ranges: Sequence[Spans]) -> Bits:
    """Return whether any of ``bits`` is true in each product of one range per axis.

    The same as ``box_sums(bits, ranges) > 0``, in a tenth of the time: along each axis, windows of 1, 2, 4
    and more bits are joined, and a range is two windows.
    """
    # The axis that shortens most comes first. Of equals it is the first one, whose rows are copied whole,
    # unless they lengthen.
    grown = [len(low) / max(1, n) for (low, _), n in zip(ranges, bits.shape, strict=True)]
    for axis in sorted(range(bits.ndim), key=lambda a: (grown[a], a if grown[a] < 1 else -a)):
        low, high = ranges[axis]
        lengths, window, size = high - low, bits, 1
        lead: tuple[Any, ...] = (slice(None),) * axis
        found = np.zeros((*bits.shape[:axis], len(low), *bits.shape[axis + 1 :]), bool)
        longest = int(lengths.max(initial=0))
        while size <= longest:
            here = np.flatnonzero((size <= lengths) & (lengths < 2 * size))
            if len(here):
                both = window.take(low[here], axis)
                both |= window.take(high[here] - size, axis)
                if len(here) == len(low):
                    found = both
                else:
                    found[(*lead, here)] = both
            if 2 * size <= longest:
                window = window[(*lead, slice(None, -size))] | window[(*lead, slice(size, None))]
            size *= 2
        bits = found
    return bits


def weighed_sum(values: Array, times: Sequence[Ints]) -> int:
    """Return the sum of ``values``, each times the product of one of ``times`` per axis, however large it is.

    Crops, tasks and samples of a plan may be more than 64 bits can count. Python's numbers, which take 50
    times as long, are used from the axis on along which that may be so.
    """
    sums: Any = values
    most = int(values.max(initial=0))
    for count in reversed(times):
        most *= int(count.sum())
        if most >= 2**63:
            sums, count = sums.astype(object), count.astype(object)
        sums = sums @ count
    return int(sums)


def shifted(values: Array, axis: int, links: Bits, step: int) -> Array:
    """Return, for each block, the value of a neighbour that is linked to it, or 0.

    Parameters
    ----------
    values : array over blocks
    axis : int
    links : bool array, one per block along ``axis``
        Whether each block is linked to the next one.
    step : {1, -1}
        The neighbour: the one before (1) or the next one (-1).
    """
    found = np.zeros_like(values)
    low, high = slice(None, -1), slice(1, None)
    target, source = (high, low) if step > 0 else (low, high)
    lead = (slice(None),) * axis
    along = links[:-1].reshape((-1,) + (1,) * (values.ndim - axis - 1))
    np.multiply(values[(*lead, source)], along, out=found[(*lead, target)])
    return found
