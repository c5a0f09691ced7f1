"""Padding: samples outside the image come from index arithmetic in the task that reads the crop.

The image is never copied to pad it: each axis maps the wanted positions to positions inside the image, reads
the few intervals that hold them, and indexes those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilework._checks import scalar
from tilework._types import Array, Ints
from tilework.errors import TilingError

__all__ = [
    "BOUNDARIES",
    "TECHNIQUES",
    "AxisRead",
    "Boundary",
    "padded_parts",
    "read_padded",
    "read_with_numpy",
    "source_index",
]

Boundary = Literal["reflect", "symmetric", "edge", "wrap", "constant"]
BOUNDARIES: tuple[Boundary, ...] = ("reflect", "symmetric", "edge", "wrap", "constant")
TECHNIQUES = (*BOUNDARIES, "linear_ramp", "maximum", "mean", "median", "minimum", "empty")
"""The modes of `numpy.pad`."""


def source_index(positions: Ints, extent: int, boundary: Boundary) -> Ints:
    """Return the sample of ``[0, extent)`` for each position; -1 stands for the constant.

    Examples
    --------
    >>> source_index(np.arange(-3, 7), 4, "reflect").tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    """
    if boundary == "constant":
        return np.where((positions >= 0) & (positions < extent), positions, -1)
    if boundary == "edge" or extent == 1:
        return np.clip(positions, 0, extent - 1)
    if boundary == "wrap":
        return positions % extent
    if boundary == "symmetric":
        folded = positions % (2 * extent)
        return np.minimum(folded, 2 * extent - 1 - folded)
    folded = positions % (2 * extent - 2)
    return np.minimum(folded, 2 * extent - 2 - folded)


def padded_parts(start: Ints, stop: Ints, extent: int, boundary: Boundary) -> list[tuple[Ints, Ints]]:
    """Return the samples that positions from ``start`` to ``stop`` need, as one or two ranges of each.

    All ranges are inside the image. Of two, which only a wrapped axis has, the second is after the first.

    Examples
    --------
    >>> start, stop = np.array([-3, 2, 8]), np.array([2, 9, 12])
    >>> [(low.tolist(), high.tolist()) for low, high in padded_parts(start, stop, 10, "reflect")]
    [([0, 2, 7], [4, 9, 10])]
    >>> [(low.tolist(), high.tolist()) for low, high in padded_parts(start, stop, 10, "wrap")]
    [([0, 2, 0], [2, 9, 2]), ([7, 9, 8], [10, 9, 10])]
    """
    if boundary in ("constant", "edge") or extent == 1:
        last = 0 if boundary == "constant" else 1
        low, high = np.clip(start, 0, extent - last), np.clip(stop, last, extent)
        return [(low, np.maximum(low, high))]
    if boundary == "wrap":
        low, length = start % extent, stop - start
        whole, beyond = length >= extent, low + length > extent
        turned = np.where(beyond, low + length - extent, low + length)
        first = np.where(whole | beyond, 0, low), np.where(whole, extent, turned)
        second = np.where(beyond & ~whole, low, first[1]), np.where(beyond & ~whole, extent, first[1])
        return [first, second]
    # A mirrored axis goes to and fro; it turns at both ends, where "symmetric" has each last sample twice.
    twice = int(boundary == "symmetric")
    period = 2 * extent - 2 + 2 * twice
    ends = [source_index(at, extent, boundary) for at in (start, stop - 1)]
    # Whether one of the samples is the first one of the image, or its last.
    least = (stop - 1) // period > (start - 1) // period
    most = (stop - extent) // period > (start - 1 - (extent - 1)) // period
    low = np.where(least, 0, np.minimum(*ends))
    return [(low, np.where(most, extent, np.maximum(*ends) + 1))]


@dataclass(frozen=True, slots=True)
class AxisRead:
    """How to read ``[start, stop)`` along one axis: the intervals to read, and an index into them."""

    intervals: tuple[tuple[int, int], ...]
    """Intervals inside the image, in order."""
    take: tuple[Ints | slice, ...] | None = None
    """Indices into the joined intervals, one after the other; -1 is the constant. None: the one interval as
    it is. The samples inside the image are a slice: an index takes 8 bytes for each."""

    @classmethod
    def plan(
        cls, start: int, stop: int, extent: int, boundary: Boundary, length: int | None = None
    ) -> AxisRead:
        """Return how to read image positions ``[start, stop)``, which may lie outside the image.

        ``length`` is that of an axis of another resolution, over the same image: position i has its sample
        ``i * length // extent``.
        """
        length = extent if length is None else length
        if start >= 0 and stop <= extent and length == extent:
            return cls(((start, stop),))
        # Positions before a, from a on and from b on; of another resolution, all are looked up.
        a, b = max(start, 0), min(stop, extent)
        if length != extent or a >= b:
            a = b = stop
        outside = [source_index(np.arange(*span), extent, boundary) for span in ((start, a), (b, stop))]
        if length != extent:
            outside = [np.where(index >= 0, index * length // extent, -1) for index in outside]
        used = np.unique(np.concatenate(outside))
        # What is read, in order: samples, and all inside the image at once.
        used = used[(used >= 0) & ((used < a) | (used >= b) | (a == b))]
        at = np.searchsorted(used, [a] * (a < b))
        low, high = np.insert(used, at, a), np.insert(used, at, b - 1)
        if not low.size:
            return cls(((0, 0),), (outside[0],))
        # Samples of a finer axis between two positions are read with them.
        breaks = np.flatnonzero(low[1:] - high[:-1] > max(1, -(-length // extent)))
        first, last = low[np.append(0, breaks + 1)], high[np.append(breaks, len(high) - 1)]
        intervals = tuple((int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        before = np.append(0, np.cumsum(last + 1 - first)[:-1])

        def places(index: Ints) -> Ints:
            which = np.maximum(np.searchsorted(first, index, side="right") - 1, 0)
            return np.where(index >= 0, index - first[which] + before[which], -1)

        if a == b:
            return cls(intervals, (places(outside[0]),))
        [inside] = places(np.array([a])).tolist()
        return cls(intervals, (places(outside[0]), slice(inside, inside + b - a), places(outside[1])))


Reader = Callable[[Sequence[tuple[int, int]]], Array]


def read_padded(read: Reader, axes: Sequence[AxisRead], cval: Any = 0) -> Array:
    """Return the samples that ``axes`` describe, padded; ``read`` reads intervals of the image.

    Parameters
    ----------
    read : callable
        Maps one ``(start, stop)`` per axis, inside the image, to an array of that shape.
    axes : sequence of AxisRead
    cval : scalar
        Value of padding with a constant boundary.

    Returns
    -------
    numpy.ndarray
        May be a view of what ``read`` returned.
    """
    whole = all(len(plan.intervals) == 1 for plan in axes)
    parts = read(tuple(plan.intervals[0] for plan in axes)) if whole else _join(read, axes, ())
    for axis, plan in enumerate(axes):
        if plan.take is None:
            continue
        parts = _taken(parts, axis, plan.take, cval)
    return parts


def _taken(parts: Array, axis: int, take: Sequence[Ints | slice], cval: Any) -> Array:
    """Return the samples of ``parts`` at some indices along an axis, one after the other."""
    lengths = [t.stop - t.start if isinstance(t, slice) else len(t) for t in take]
    shape = (*parts.shape[:axis], sum(lengths), *parts.shape[axis + 1 :])
    out = np.empty(shape, parts.dtype)
    stop = 0
    every: tuple[Any, ...] = (slice(None),) * axis
    for index, length in zip(take, lengths, strict=True):
        start, stop = stop, stop + length
        part = out[(*every, slice(start, stop))]
        if isinstance(index, slice) or (parts.shape[axis] and (index >= 0).all()):
            part[...] = parts[(*every, index)]
            continue
        inside = index >= 0
        part[(*every, inside)] = parts[(*every, index[inside])]
        part[(*every, ~inside)] = _constant(cval, parts.dtype)
    return out


def _constant(cval: Any, dtype: np.dtype[Any]) -> Any:
    """Return the value of constant padding; 0 is no text, and a record of zeros."""
    return scalar("cval", cval, dtype) if dtype.kind in "mMSUV" else cval


def read_with_numpy(
    read: Reader,
    wanted: Sequence[tuple[int, int]],
    extents: Sequence[int],
    widths: Sequence[tuple[int, int]],
    mode: Any,
    **options: Any,
) -> Array:
    """Return the part ``wanted`` of ``numpy.pad(image, widths, mode, **options)`` without padding the image.

    For modes that index arithmetic cannot express. `numpy.pad` works line by line, one axis after the other,
    so only the lines through ``wanted`` are read, in full along the axes on which it sticks out.

    Parameters
    ----------
    read : callable
        As in `read_padded`.
    wanted : one (start, stop) per axis, samples; may stick out of the image
    extents : sequence of int, samples
    widths : one (before, after) per axis, samples that the image is padded with
    mode : str or callable
        As in `numpy.pad`, as are the options.
    """
    out = [a < 0 or b > n for (a, b), n in zip(wanted, extents, strict=True)]
    box = tuple((0, n) if sticks else span for sticks, span, n in zip(out, wanted, extents, strict=True))
    own = [tuple(width) if sticks else (0, 0) for sticks, width in zip(out, widths, strict=True)]
    samples = read(box)
    try:
        lines = np.pad(samples, own, mode, **options)
    except Exception as error:
        if callable(mode):
            error.add_note("called by numpy.pad, as the padding mode")
            raise
        raise TilingError(f"numpy.pad refuses mode {mode!r} with options {options}: {error}") from error
    first = [w - low for (w, _), (low, _) in zip(own, box, strict=True)]
    return lines[tuple(slice(a + d, b + d) for (a, b), d in zip(wanted, first, strict=True))]


def _join(read: Reader, axes: Sequence[AxisRead], chosen: tuple[tuple[int, int], ...]) -> Array:
    """Return the product of the intervals of the axes that are not ``chosen`` yet, concatenated."""
    if len(chosen) == len(axes):
        return read(chosen)
    intervals = axes[len(chosen)].intervals
    parts = [_join(read, axes, (*chosen, interval)) for interval in intervals]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=len(chosen))
