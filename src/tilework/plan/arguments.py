"""Arguments coerced once: axes, lengths per axis, masks, byte counts. Errors name the axis and the values."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tilework._checks import parse_bytes, positive, sequence, whole
from tilework.errors import GridError, MemoryBudgetError
from tilework.grid.axis import AxisGrid
from tilework.source.base import Source

__all__ = ["default_memory", "lengths", "per_axis", "resolve_axes", "tiles_in_mask"]

Index = tuple[int, ...]
# Samples and crops along one axis: tables of a plan hold 64-bit numbers, a few for every crop.
LONGEST, MOST = 10**15, 10**8
# Mask and image may differ by rounding only: more on one axis than on another looks like swapped axes.
MASK_TOLERANCE = 0.02


def check_flags(pass_tile: Any, name: Any, disagreement: Any = False) -> None:
    """Raise a `TypeError` unless these are a bool, a word, and a bool."""
    for what, flag in (("pass_tile", pass_tile), ("disagreement", disagreement)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{what} must be True or False; got {flag!r}.")
    if name is not None and not (isinstance(name, str) and name):
        raise TypeError(f"name must be a word for the dask array; got {name!r}.")


def refuse_unknown(unknown: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a `TypeError` for the first argument that `tiled_map` does not have."""
    for name in unknown:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TypeError(
            f"tiled_map has no argument {name!r}; {hint}What fn itself needs goes in by "
            f"functools.partial(fn, {name}={unknown[name]!r})."
        )


def per_axis(what: str, value: Any, names: Sequence[str], crop: Sequence[int] | None = None) -> Index:
    """Return one int per tiled axis from an int or a tuple of ints."""
    several = sequence(value)
    values = tuple(value) if several else (value,) * len(names)
    if len(values) != len(names):
        raise GridError(f"{what} needs one number per tiled axis ({', '.join(names)}); got {values}.")
    if crop is not None:
        for v, c in zip(values, crop, strict=True):
            _refuse_share(what, v, c)
    return tuple(
        whole(f"{what} on axis {name}" if several else what, v) for name, v in zip(names, values, strict=True)
    )


def _refuse_share(what: str, value: Any, crop: int) -> None:
    """Raise a `TypeError` with the conversion for an overlap or stride given as a part of the crop."""
    if isinstance(value, float | np.floating) and 0 <= value < 1:
        raise TypeError(
            f"{what} is in samples, a whole number; got {value!r}. For neighbours that share {value:g} of "
            "crop "
            f"{crop}: stride={crop - round(value * crop)}, or overlap={round(value * crop / 2)} (per side)."
        )


def lengths(crop: Any) -> Index | None:
    """Return the crop's lengths where it is a tuple, None for one int."""
    if sequence(crop):
        return tuple(whole("crop", c) for c in crop)
    whole("crop", crop)
    return None


def _numbers(what: str, axes: Any, source: Source) -> Index:
    """Return axis numbers from numbers or names."""
    ndim = len(source.shape)
    items = tuple(axes) if sequence(axes) or isinstance(axes, str) else (axes,)
    found = []
    for axis in items:
        if isinstance(axis, str):
            if source.names is None:
                raise GridError(f"{what}={axes!r} gives names, but the array has none; give axis numbers.")
            if axis not in source.names:
                raise GridError(
                    f"{what}={axes!r}: the array has no axis {axis!r}; its axes are {source.names}."
                )
            found.append(source.names.index(axis))
        else:
            number = whole(what, axis)
            if not -ndim <= number < ndim:
                raise GridError(f"{what}={axes!r}: axis {number} is out of range for {ndim} dimensions.")
            found.append(number % ndim)
    if len(set(found)) != len(found):
        raise GridError(f"{what}={axes!r} names an axis twice.")
    return tuple(found)


def resolve_axes(source: Source, axes: Any, each: Any, crop: Index | None) -> tuple[Index, Index]:
    """Return the ``each`` axes and the tiled axes of one source as numbers.

    Raises
    ------
    GridError
        For axes that do not exist or are named twice, and where a crop length is missing.
    """
    ndim = len(source.shape)
    chosen = tuple(sorted(_numbers("each", each, source)))
    free = [a for a in range(ndim) if a not in chosen]
    if axes is not None:
        tiled = _numbers("axes", axes, source)
        if both := set(tiled) & set(chosen):
            raise GridError(f"axes and each must differ; axis {min(both)} is in both.")
    elif crop is None:
        tiled = tuple(free)
    else:
        if len(crop) > len(free):
            raise GridError(
                f"crop {crop} has {len(crop)} lengths; the array of shape {source.shape} has {len(free)} "
                "axes to tile."
            )
        tiled = tuple(free[len(free) - len(crop) :])
    if not tiled:
        raise GridError(f"there is no axis to tile: shape {source.shape}, axes={axes!r}, each={each!r}.")
    if crop is not None and len(crop) != len(tiled):
        raise GridError(f"crop {crop} needs one length per tiled axis; got {len(crop)} for axes {tiled}.")
    return chosen, tiled


def guard_channels(source: Source, tiled: Index, crop: Index, *, one_int: bool) -> None:
    """Raise where an axis that nobody named is shorter than its crop: it may be a channel axis."""
    ndim = len(source.shape)
    if not ((one_int and ndim > 2) or len(crop) < ndim):
        return
    for axis, c in zip(tiled, crop, strict=True):
        if source.shape[axis] < c:
            longest = sorted(
                sorted(range(ndim), key=lambda a: -source.shape[a])[: max(1, len(tiled) - one_int)]
            )
            raise GridError(
                f"axis {axis} has extent {source.shape[axis]}, shorter than crop {c}; did you mean axes="
                f"{tuple(longest)}? Name the tiled axes with axes= (a short axis may be tiled when it is "
                "named)."
            )


def parse_chunks(
    chunks: Any, axes: Sequence[AxisGrid], names: Sequence[str], n_each: int
) -> tuple[Index | None, int | None]:
    """Return the block shape over all grid axes, or the bytes of a block; None where it is to be chosen."""
    if isinstance(chunks, str):
        return (None, None) if chunks == "auto" else (None, parse_bytes("chunks", chunks))
    sizes: tuple[Any, ...]
    if sequence(chunks):
        sizes = tuple(chunks)
        if len(sizes) == len(axes) - n_each:
            sizes = (1,) * n_each + sizes
        if len(sizes) != len(axes):
            raise GridError(
                f"chunks needs one number per axis of {tuple(names[n_each:])}, in input samples; got "
                f"{chunks!r}."
            )
    else:
        sizes = (1,) * n_each + (chunks,) * (len(axes) - n_each)
    numbers = [whole(f"chunks on axis {name}", c) for name, c in zip(names, sizes, strict=True)]
    return tuple(a.extent if c == -1 else min(c, a.extent) for a, c in zip(axes, numbers, strict=True)), None


def memory_bytes(limit: Any) -> int:
    """Return the bytes that a process may plan with."""
    return default_memory() if limit is None else parse_bytes("memory_limit", limit)


def check_crop_bytes(crop: Index, itemsize: int, memory: int) -> None:
    """Raise a `MemoryBudgetError` where a single crop is more than a process may hold."""
    if (n := math.prod(crop) * itemsize) > memory:
        raise MemoryBudgetError(
            f"one crop of {crop} samples takes {n:.3g} bytes; memory_limit is {memory:.3g}. Use a smaller "
            "crop."
        )


def default_memory() -> int:
    """Return the bytes that a process may plan with: half of the machine's, or of its control group's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30
    try:
        with open("/sys/fs/cgroup/memory.max") as file:  # noqa: PTH123 -- absent outside Linux
            limit = file.read().strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass
    return total // 2


def n_threads() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tiles_in_mask(
    mask: Any,
    axes: Sequence[AxisGrid],
    rims: Sequence[Index | None],
    names: Sequence[str],
    mask_scale: Any = None,
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which tiles have a True mask sample in their support, shape: tiles per tiled axis.

    Raises
    ------
    TypeError
        For a lazy dask array.
    GridError
        For a mask of another dimension, or one that looks transposed.
    """
    if type(mask).__module__.partition(".")[0] == "dask":
        raise TypeError(
            "mask is needed when the graph is built; compute the dask array first: mask.compute()."
        )
    values = np.asarray(mask[...] if getattr(mask, "shape", ()) else mask)
    if values.dtype.kind not in "biu":
        raise TypeError(
            f"mask must be bool or integer; got dtype {values.dtype}. Compare first: mask > threshold."
        )
    if values.ndim != len(axes) or not values.size:
        raise GridError(f"mask must cover the tiled axes ({', '.join(names)}); got shape {values.shape}.")
    ratios = _mask_ratios(values.shape, axes, names, mask_scale)
    runs = values.astype(bool)
    for d, (grid, ratio) in enumerate(zip(axes, ratios, strict=True)):
        supports = [grid.supports(None if rim is None else rim[d]) for rim in rims]
        starts = np.minimum.reduce([s for s, _ in supports])
        stops = np.maximum.reduce([s for _, s in supports])
        sample = np.arange(values.shape[d])
        lows = (
            np.floor(sample * ratio).astype(np.int64)
            if mask_scale is not None
            else sample * grid.extent // values.shape[d]
        )
        highs = (
            np.ceil((sample + 1) * ratio).astype(np.int64)
            if mask_scale is not None
            else -(-(sample + 1) * grid.extent // values.shape[d])
        )
        first = np.searchsorted(highs, starts, side="right")
        last = np.searchsorted(lows, stops, side="left")
        before = np.concatenate((np.zeros_like(runs.take([0], d), np.int64), runs.cumsum(d)), d)
        runs = before.take(np.maximum(first, last), d) > before.take(first, d)
    return runs


def _mask_ratios(
    shape: Index, axes: Sequence[AxisGrid], names: Sequence[str], mask_scale: Any
) -> list[float]:
    """Return image samples per mask sample and axis."""
    if mask_scale is not None:
        several = sequence(mask_scale)
        given = tuple(mask_scale) if several else (mask_scale,) * len(axes)
        if len(given) != len(axes):
            raise GridError(
                f"mask_scale needs one number per tiled axis ({', '.join(names)}); got {mask_scale!r}."
            )
        for name, ratio, m, grid in zip(names, given, shape, axes, strict=True):
            if not positive("mask_scale", ratio) or abs(grid.extent / ratio - m) > 1:
                raise GridError(
                    f"mask_scale is image samples per mask sample; {ratio:g} on axis {name} with {m} mask "
                    "samples does "
                    f"not give extent {grid.extent}."
                )
        return [float(r) for r in given]
    ratios = [grid.extent / m for grid, m in zip(axes, shape, strict=True)]
    for name, ratio, m, grid in zip(names, ratios, shape, axes, strict=True):
        off = abs(grid.extent / ratios[0] - m)
        if abs(ratio / ratios[0] - 1) > MASK_TOLERANCE and off > 1:
            raise GridError(
                f"mask of shape {shape} over extents {tuple(a.extent for a in axes)} has {ratio:.4g} image "
                "samples per "
                f"mask sample on axis {name} and {ratios[0]:.4g} on axis {names[0]}; transposed? Say "
                "mask_scale= if not."
            )
    return ratios


def check_axis(grid: AxisGrid, axis: object, *, rim: int) -> None:
    """Raise a `GridError` that names ``axis`` where the numbers of ``grid`` cannot work together."""
    c, o, s, m = grid.crop, grid.overlap, grid.stride, grid.multiple
    lo, hi = grid.margin
    at = f"on axis {axis}"
    if grid.extent < 1:
        raise GridError(f"the array must not be empty; got extent {grid.extent} {at}.")
    if c < 1 or o < 0 or m < 1 or rim < 0 or lo < 0 or hi < 0:
        raise GridError(
            "crop and multiple must be at least 1, overlap, rim and margin at least 0; "
            f"got crop {c}, overlap {o}, multiple {m}, rim {rim}, margin {(lo, hi)} {at}."
        )
    if s < 1:
        raise GridError(
            f"crop must be larger than 2 * overlap (overlap is per side); got crop {c} and overlap {o} "
            f"{at}. Reduce overlap to at most {(c - 1) // 2} or enlarge crop to at least {2 * o + 1}."
        )
    if max(c, grid.extent) > LONGEST or grid.extent // s > MOST:
        raise GridError(
            f"an axis holds at most {LONGEST:.0e} samples and {MOST:.0e} crops; got extent {grid.extent}, "
            f"crop {c} and stride {s} {at}."
        )
    if s > c - lo - hi:
        valid = f" less margin {(lo, hi)}" if lo or hi else ""
        raise GridError(
            f"stride must not exceed crop{valid}, or samples between crops are lost; got stride {s} and "
            f"crop {c} {at}. Use a stride of at most {c - lo - hi}."
        )
    if o < max(lo, hi):
        raise GridError(
            f"overlap must be at least the margin; got overlap {o} and margin {(lo, hi)} {at}. "
            f"Use overlap={max(lo, hi)}."
        )
    if rim > o - max(lo, hi):
        raise GridError(
            f"rim must not exceed overlap less margin; got rim {rim}, overlap {o}, margin {(lo, hi)} {at}."
        )
    if s % m or (o - lo) % m:
        raise GridError(
            f"stride and overlap less margin must be multiples of {m} {at} (multiple, or the denominator of "
            f"a scale); got stride {s}, overlap {o}, margin {(lo, hi)}. Nearest: stride "
            f"{max(m, round(s / m) * m)}, overlap {lo + round((o - lo) / m) * m}."
        )
    if (c - lo - hi) % grid.quantum or rim % grid.quantum:
        raise GridError(
            f"crop less margin, and rim, must be multiples of {grid.quantum}, the denominator of the "
            "output's "
            f"scale; got crop {c}, margin {(lo, hi)}, rim {rim} {at}."
        )
