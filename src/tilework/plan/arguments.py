"""Arguments as numbers, checked once: axes, lengths, the grid of one axis, masks, byte counts."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import (
    as_numbers,
    attribute,
    brief,
    flag,
    has,
    is_whole,
    no_array,
    parse_bytes,
    positive,
    sequence,
    whole,
)
from tilework._machine import default_memory
from tilework._types import Index, Ints
from tilework.errors import GridError, MemoryBudgetError
from tilework.grid.axis import AxisGrid, Edge, PadSide, Starts, ceil_div
from tilework.grid.progression import joint
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.plan.tile_mask import TileMask, in_order
from tilework.source.base import Source, unmasked
from tilework.source.opening import open_source

__all__ = [
    "Axes",
    "AxisLengths",
    "axis_grid",
    "check_axis",
    "check_for_all",
    "check_proportions",
    "lengths",
    "listed",
    "per_axis",
    "resolve_axes",
    "tiles_in_mask",
    "unknown_argument",
]

AxisLengths = int | Sequence[int] | Mapping[str, int]
"""Samples: one number for all tiled axes, one for each, or a dict by name until it is put in order."""
Axes = int | str | Sequence[int | str]
"""Axes by number or by name."""
# Most samples and most crops along one axis: a plan's tables hold a few 64-bit numbers for every crop.
LONGEST, MOST = 10**15, 10**8
# Relative difference of a mask's resolution between axes beyond which its axes may be swapped.
MASK_TOLERANCE = 0.02
# Arguments of other tools, and those of this package; docs/other-tools.md converts the values.
_ELSEWHERE = {
    "autocast": "from_torch(network, autocast=...)",
    "boundary_mode": "boundary",
    "channel_axis": "output=Output(channel_axis=...) for the result, or from_torch(channel_axis=...)",
    "channels": "output=Output(channels=...)",
    "client": "to_zarr(out, store, client=...), or an active client",
    "compile": "from_torch(network, compile=True)",
    "crop_size": "crop",
    "depth": "overlap",
    "device": "from_torch(network, device=...)",
    "drop_axis": "output=Output(channels=0), or nothing: a call on zeros finds the axes",
    "flips": "augmented(fn, flips)",
    "halo": "overlap",
    "importance_map": "blend",
    "lanes": "to_zarr(out, store, lanes=...)",
    "mode": "blend (MONAI's mode) or edge (Patchly's mode)",
    "n_jobs": "out.compute(num_workers=...), of what tiled_map returns",
    "new_axis": "output=Output(channels=...), or nothing: a call on zeros finds the axes",
    "normalize": "normalized(fn, image_statistics(image))",
    "normalizer": "normalized(fn, image_statistics(image))",
    "num_workers": "out.compute(num_workers=...), of what tiled_map returns",
    "on_device": "from_torch(network, on_device=True)",
    "padding_mode": "boundary",
    "patch_offset": "stride",
    "patch_overlap": "stride=crop - patch_overlap (for samples that neighbours share)",
    "patch_size": "crop",
    "progress": "to_zarr(out, store, progress=...)",
    "roi_size": "crop",
    "rotations": "augmented(fn, rotations=...)",
    "scheduler": "out.compute(scheduler=...), of what tiled_map returns",
    "sigma": "sigma_scale (a fraction of the crop)",
    "step_size": "stride",
    "sw_batch_size": "batch_size",
    "store": "to_zarr(out, store)",
    "sw_device": "from_torch(network, device=...)",
    "tile_size": "crop",
    "tile_step_size": "nnunet_options(shape, patch_size, tile_step_size), or a stride",
    "trim": 'blend="trim"',
    "tta": "augmented(fn)",
    "use_mirroring": "augmented(fn)",
    "weights": "blend",
    "workers": "out.compute(num_workers=...), of what tiled_map returns",
}


def check_flags(pass_tile: Any, name: Any, disagreement: Any = False) -> None:
    """Raise a `TypeError` unless the flags are bools and the name is a word."""
    flag("pass_tile", pass_tile)
    flag("disagreement", disagreement)
    if name is not None and not (isinstance(name, str) and name):
        raise TypeError(f"name must be a word for the dask array; got {brief(name)}.")


def unknown_argument(function: str, known: Iterable[str], name: str, value: Any) -> TypeError:
    """Return the error for an argument that ``function`` does not have, with a suggestion."""
    near = _ELSEWHERE.get(name) or "".join(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7))
    text = f"{function} has no argument {name!r}" + (f"; did you mean {near}?" if near else ".")
    if function == "tiled_map":
        text += f" What fn itself needs goes in by functools.partial(fn, {name}={reprlib.repr(value)})."
    return TypeError(text)


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
    """Raise a `TypeError` with the conversion if an overlap or stride is given as a fraction of the crop."""
    if isinstance(value, float | np.floating | Fraction) and 0 <= value < 1:
        value = float(value)
        if what == "stride":
            raise TypeError(
                f"stride is in samples, a whole number; got {value!r}. For starts that are {value:g} of crop "
                f"{crop} apart: stride={max(1, round(value * crop))}."
            )
        raise TypeError(
            f"{what} is in samples, a whole number; got {value!r}. "
            f"For neighbours that share {value:g} of crop {crop}: "
            f"stride={crop - round(value * crop)}, or overlap={round(value * crop / 2)} (per side)."
        )


def lengths(crop: Any, what: str = "crop") -> Index | None:
    """Return the crop's lengths, samples per tiled axis; None for one int."""
    no_array(what, crop, f"Give lengths, such as {what}=256; the image is another argument.")
    if sequence(crop):
        return tuple(whole(what, c) for c in crop)
    whole(what, crop)
    return None


def _numbers(what: str, axes: Any, source: Source) -> Index:
    """Return the numbers of axes that are given by number or name."""
    ndim = len(source.shape)
    found = []
    for axis in listed(axes, source):
        if isinstance(axis, str):
            found.append(_named(what, axes, axis, source))
        else:
            number = whole(what, axis)
            if not -ndim <= number < ndim:
                raise GridError(f"{what}={axes!r}: axis {number} is out of range for {ndim} dimensions.")
            found.append(number % ndim)
    if len(set(found)) != len(found):
        raise GridError(f"{what}={axes!r} names an axis twice.")
    return tuple(found)


def listed(axes: Any, source: Source) -> tuple[Any, ...]:
    """Return the single axes of ``axes``: text is one name if the source has it, else a name per letter."""
    if isinstance(axes, str):
        return (axes,) if axes in (source.names or ()) else tuple(axes)
    return tuple(axes) if sequence(axes) else (axes,)


def _named(what: str, axes: Any, name: str, source: Source) -> int:
    """Return the number of the axis called ``name``."""
    if source.names is None:
        raise GridError(f"{what}={axes!r} gives names, but the array has none; give axis numbers.")
    if name not in source.names:
        letters = isinstance(axes, str) and len(axes) > 1
        tuples = f" Give names longer than a letter as a tuple: {what}={source.names[-2:]!r}."
        raise GridError(
            f"{what}={axes!r}: the array has no axis {name!r}; its axes are {source.names}."
            + (tuples if letters and max(map(len, source.names)) > 1 else "")
        )
    return source.names.index(name)


def resolve_axes(source: Source, axes: Any, each: Any, crop: Index | None) -> tuple[Index, Index]:
    """Return the ``each`` axes and the tiled axes of one source as numbers.

    Raises
    ------
    GridError
        For axes that do not exist or are named twice, and for a wrong number of crop lengths.
    """
    ndim = len(source.shape)
    chosen = tuple(sorted(_numbers("each", each, source)))
    free = [a for a in range(ndim) if a not in chosen]
    if axes is not None:
        tiled = _numbers("axes", axes, source)
        if both := set(tiled) & set(chosen):
            raise GridError(f"axis {min(both)} is in axes={axes!r} and in each={each!r}; leave it in one.")
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
        why = f"each={each!r} takes all of them" if axes is None and chosen else f"axes={axes!r} names none"
        raise GridError(f"there is no axis to tile in shape {source.shape}: {why}.")
    if crop is not None and len(crop) != len(tiled):
        raise GridError(f"crop {crop} needs one length per tiled axis; got {len(crop)} for axes {tiled}.")
    return chosen, tiled


def guard_channels(source: Source, tiled: Index, crop: Index, *, one_int: bool) -> None:
    """Raise if a tiled axis that was not named is shorter than its crop: it may be a channel axis."""
    ndim = len(source.shape)
    if not ((one_int and ndim > 2) or len(crop) < ndim):
        return
    for axis, c in zip(tiled, crop, strict=True):
        if source.shape[axis] < c:
            if one_int:
                fit = tuple(a for a in tiled if source.shape[a] >= c)
            else:
                fit = tuple(sorted(sorted(range(ndim), key=lambda a: -source.shape[a])[: len(tiled)]))
            meant = f"; did you mean axes={fit}?" if fit and fit != tiled else "."
            raise GridError(
                f"axis {axis} has extent {source.shape[axis]}, shorter than crop {c}{meant} "
                "Name the tiled axes with axes= (then a short axis may be tiled). fn gets all other axes in "
                "full, or one index at a time of those in each=."
            )


def parse_chunks(
    chunks: Any, axes: Sequence[AxisGrid], names: Sequence[str], n_each: int
) -> tuple[Index | None, int | None]:
    """Return a block's shape, samples per grid axis, and its bytes; None for a value to be chosen."""
    if isinstance(chunks, str):
        return (None, None) if chunks == "auto" else (None, parse_bytes("chunks", chunks))
    sizes: tuple[Any, ...]
    if sequence(chunks):
        sizes = tuple(chunks)
        if len(sizes) == len(axes) - n_each:
            sizes = (1,) * n_each + sizes
        if len(sizes) != len(axes):
            raise GridError(
                f"chunks needs one number per axis of {tuple(names[n_each:])}, "
                f"in input samples; got {chunks!r}."
            )
    else:
        sizes = (1,) * n_each + (chunks,) * (len(axes) - n_each)
    numbers = [whole(f"chunks on axis {name}", c) for name, c in zip(names, sizes, strict=True)]
    return tuple(a.extent if c == -1 else min(c, a.extent) for a, c in zip(axes, numbers, strict=True)), None


def memory_bytes(limit: Any) -> int:
    """Return the memory limit of a process, bytes: ``memory_limit``, or the default."""
    return default_memory() if limit is None else parse_bytes("memory_limit", limit)


def check_crop_bytes(crop: Index, itemsize: int, memory: int) -> None:
    """Raise a `MemoryBudgetError` if a single crop exceeds the memory limit of a process."""
    if max(crop) > LONGEST:
        raise GridError(f"crop must be at most {LONGEST:.0e} samples per axis; got {brief(max(crop))}.")
    if (n := math.prod(crop) * itemsize) > memory:
        raise MemoryBudgetError(
            f"one crop of {crop} samples takes {n:.3g} bytes; memory_limit is {memory:.3g}. "
            "Use a smaller crop."
        )


def tiles_in_mask(
    mask: Any,
    axes: Sequence[AxisGrid],
    rims: Sequence[Index | None],
    names: Sequence[str],
    mask_scale: Any = None,
) -> TileMask:
    """Return which tiles have a True mask sample in their support.

    Parameters
    ----------
    rims : sequence of tuple of int, samples per tiled axis
        One entry per output; None for a trimmed one.

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
    array = has(mask, "dtype") and isinstance(attribute(mask, "shape"), tuple)
    values = unmasked((mask[...] if mask.shape else mask) if array else as_numbers("mask", mask))
    own = _names_of(mask)
    if set(own) == set(names):
        values = values.transpose([own.index(name) for name in names])
    if values.dtype.kind not in "biu":
        raise TypeError(
            f"mask must be bool or integer; got dtype {values.dtype}. Compare first: mask > threshold."
        )
    if values.ndim != len(axes) or not values.size:
        raise GridError(f"mask must cover the tiled axes ({', '.join(names)}); got shape {values.shape}.")
    scales: Sequence[float | None] = [None] * len(axes)
    if mask_scale is None:
        check_proportions("mask", values.shape, axes, names, "Say mask_scale= if not.")
    else:
        scales = _mask_scales(values.shape, axes, names, mask_scale)
    edges, under = [], []
    for d, (grid, scale, length) in enumerate(zip(axes, scales, values.shape, strict=True)):
        ends = [grid.support_ends(None if rim is None else rim[d]) for rim in rims]
        starts = joint([start for start, _ in ends], np.minimum)
        stops = joint([stop for _, stop in ends], np.maximum)
        lows, highs = _mask_samples(length, grid.extent, scale)
        # Tiles between two of these places have weight in the same mask samples.
        changes = (starts.count_before(highs), stops.count_before(lows, "right"), [0, len(grid)])
        edges.append(in_order(*changes))
        tiles = edges[-1][:-1]
        first = np.searchsorted(highs, starts.take(tiles), "right")
        last = np.searchsorted(lows, stops.take(tiles))
        under.append(Spans(first, np.maximum(first, last)))
    return TileMask.between(edges, box_any(values.astype(bool, copy=False), under))


def _names_of(mask: Any) -> tuple[str, ...]:
    """Return the names of the axes of a mask; none if it does not say them."""
    dims = attribute(mask, "dims")
    if dims is None and type(mask).__module__.partition(".")[0] in ("zarr", "tilework"):
        dims = open_source(mask).names
    return tuple(map(str, dims or ()))


def _mask_samples(length: int, extent: int, scale: float | None) -> tuple[Ints, Ints]:
    """Return the image samples under each mask sample along one axis, as starts and stops."""
    edges = np.arange(length + 1)
    if scale is None:  # in whole numbers, so that no rounding moves an edge
        lows, highs = edges * extent // length, ceil_div(edges * extent, length)
    else:
        lows, highs = (f(edges * scale).astype(np.int64) for f in (np.floor, np.ceil))
    return lows[:-1], highs[1:]


def _mask_scales(shape: Index, axes: Sequence[AxisGrid], names: Sequence[str], scale: Any) -> list[float]:
    """Return the image samples per mask sample on each axis; raise if the mask does not cover the image."""
    given = tuple(scale) if sequence(scale) else (scale,) * len(axes)
    if len(given) != len(axes):
        raise GridError(f"mask_scale needs one number per tiled axis ({', '.join(names)}); got {scale!r}.")
    for name, ratio, m, grid in zip(names, given, shape, axes, strict=True):
        if not positive("mask_scale", ratio) or abs(grid.extent / ratio - m) > 1:
            raise GridError(
                f"mask_scale is image samples per mask sample; {ratio:g} on axis {name} with {m} mask "
                f"samples does not give extent {grid.extent}."
            )
    return [float(r) for r in given]


def check_proportions(
    what: str, shape: Index, axes: Sequence[AxisGrid], names: Sequence[str], cure: str
) -> None:
    """Raise if the resolution of a mask differs between axes: it may be transposed."""
    ratios = [grid.extent / m for grid, m in zip(axes, shape, strict=True)]
    for name, ratio, m, grid in zip(names, ratios, shape, axes, strict=True):
        off = abs(grid.extent / ratios[0] - m)
        if abs(ratio / ratios[0] - 1) > MASK_TOLERANCE and off > 1:
            raise GridError(
                f"{what} of shape {shape} over extents {tuple(a.extent for a in axes)} has {ratio:.4g} image "
                f"samples per mask sample on axis {name} and {ratios[0]:.4g} on axis {names[0]}; transposed? "
                f"{cure}"
            )


def axis_grid(
    extent: int,
    crop: int,
    *,
    overlap: int | None = None,
    stride: int | None = None,
    multiple: int = 1,
    margin: tuple[int, int] = (0, 0),
    quantum: int = 1,
    edge: Edge = "shift",
    trims: bool = True,
    rim: int = 0,
    name: str = "0",
    pad_side: PadSide = "end",
    starts: Sequence[int] | None = None,
) -> AxisGrid:
    """Return the grid along one axis for an overlap, a stride or both; raise if they contradict each other.

    Parameters are those of `AxisGrid`, in samples; ``rim`` is only checked, and ``name`` is for messages.
    With ``starts``, the stride is the largest distance of neighbours, and both others are None.

    Examples
    --------
    >>> axis_grid(100, 32, overlap=4).stride
    24
    >>> axis_grid(100, 32, stride=24).overlap
    4

    A stride is never changed: the overlap is the largest one that fits the stride and the allowed starts.

    >>> grid = axis_grid(100, 32, stride=16, multiple=16)
    >>> grid.overlap, grid.stride
    (0, 16)
    >>> axis_grid(100, 32, overlap=16)
    Traceback (most recent call last):
    ...
    tilework.errors.GridError: crop must be larger than 2 * overlap (overlap is per side); got crop 32 ...
    """
    m = math.lcm(multiple, quantum) if multiple > 0 else multiple
    rule = None
    if starts is not None:
        rule = _rule(starts, name)
        stride = int(np.diff(rule.array()).max(initial=0))
        if not stride:  # one crop has no neighbours: whatever leaves room for margin and rim
            need = margin[0] + ceil_div(max(margin) + rim - margin[0], m) * m
            stride = max(1, (crop - 2 * need) // m) * m
    if stride is None:
        assert overlap is not None
        o, s = overlap, crop - 2 * overlap
    else:
        if stride < 1:
            raise GridError(f"stride must be at least 1; got {stride} on axis {name}.")
        if overlap is not None and stride != crop - 2 * overlap:
            raise GridError(
                f"overlap and stride disagree: crop {crop} with overlap {overlap} has stride "
                f"{crop - 2 * overlap}; got {stride} on axis {name}. Give one of them."
            )
        o, s = max(0, (crop - stride) // 2) if overlap is None else overlap, stride
        if overlap is None and m > 1 and o >= margin[0]:
            o = margin[0] + (o - margin[0]) // m * m
    # A stride of 0 means "from the overlap" to AxisGrid; -1 keeps it an error.
    grid = AxisGrid(extent, crop, o, s or -1, edge, trims, m, margin, quantum, rule, pad_side)
    check_axis(grid, name, rim=rim)
    return grid


def _rule(starts: Sequence[int], name: str) -> Starts:
    """Return given starts as a rule; raise if they do not increase."""
    found = [whole(f"starts on axis {name}", start) for start in starts]
    try:
        return Starts.of(found)
    except GridError:
        raise GridError(
            f"starts must increase, and there must be at least one; got {brief(found)} on axis {name}."
        ) from None


def check_for_all(
    what: str, value: Any, crop: Sequence[int], extents: Sequence[int], names: Sequence[str]
) -> None:
    """Raise a `GridError` with one number per axis if a number for all axes is too large for some crops.

    Parameters
    ----------
    what : {"overlap", "stride"}
    value : int or sequence of int, samples
        As given; lengths per axis are left to `axis_grid`.
    crop, extents : sequence of int, samples per tiled axis
    """
    if sequence(value) or not is_whole(value) or value < 1 or min(crop) < 1:
        return
    most = [(c - 1) // 2 if what == "overlap" else c for c in crop]
    wrong = [d for d, m in enumerate(most) if value > m]
    if not wrong or len(wrong) == len(crop):
        return
    # An axis that one crop fills has nothing beyond it to see.
    filled = [c if what == "stride" else 0 for c in crop]
    fits = tuple(
        min(value, m) if c < n else f for c, n, m, f in zip(crop, extents, most, filled, strict=True)
    )
    d = wrong[0]
    need = "crop must be larger than 2 * overlap (overlap is per side)"
    raise GridError(
        f"{need if what == 'overlap' else 'stride must not exceed crop, or samples between crops are lost'}; "
        f"got crop {crop[d]} and {what} {value} on axis {names[d]}. Give one {what} per axis, such as "
        f"{what}={fits}, or name in axes= only those that must be cut."
    )


def check_axis(grid: AxisGrid, axis: object, *, rim: int) -> None:
    """Raise a `GridError` that names ``axis`` if the numbers of ``grid`` contradict each other."""
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
        most = f"crop{valid}, or samples between crops are lost"
        if grid.starts is not None:
            raise GridError(
                f"neighbouring starts must not be further apart than {most}; got {s} samples and crop {c} "
                f"{at}. Use at most {c - lo - hi}."
            )
        raise GridError(
            f"stride must not exceed {most}; got stride {s} and crop {c} {at}. Use a stride of at most "
            f"{c - lo - hi}."
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
    if grid.starts is not None:
        _check_starts(grid, at)
    if grid.padding[0] % grid.quantum:
        raise GridError(
            f'pad_side="both" pads {grid.padding[0]} before and {grid.padding[1]} after the image {at}; '
            f"{grid.padding[0]} is no multiple of {grid.quantum}, the denominator of the output's scale. Use "
            'another crop, or pad_side="end".'
        )
    if (c - lo - hi) % grid.quantum or rim % grid.quantum:
        raise GridError(
            f"crop less margin, and rim, must be multiples of {grid.quantum}, the denominator of the "
            f"output's scale; got crop {c}, margin {(lo, hi)}, rim {rim} {at}."
        )


def _check_starts(grid: AxisGrid, at: str) -> None:
    """Raise a `GridError` unless crops at the given starts cover the padded image, and do not stick out."""
    assert grid.starts is not None
    first, last, m = grid.starts[0], grid.starts[len(grid.starts) - 1], grid.multiple
    if (first, last) != (0, grid.length - grid.crop):
        raise GridError(
            f"starts must begin with 0 and end with {grid.length - grid.crop}, where the last crop of "
            f"{grid.crop} ends with the image (padded to {grid.length}); got {first} to {last} {at}."
        )
    if m > 1 and (grid.starts.array() % m).any():
        raise GridError(f"starts must be multiples of {m} {at} (multiple, or the denominator of a scale).")
