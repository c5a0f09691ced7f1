"""Functions for the laws of the engine: local ones with a known reach, and ones that see their tile.

All return whole numbers, so that sums are exact and equality means equality.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.laws.engine_strategies import Case


def stacked(one: Callable[..., Any], batch: tuple[np.ndarray, ...], *more: Any) -> Any:
    """Return the results of each crop of a batch as a batch: an array, or a tuple or dict."""
    results = [one(*parts) for parts in zip(*batch, *more, strict=True)]
    first = results[0]
    if isinstance(first, dict):
        return {key: np.stack([r[key] for r in results]) for key in first}
    if isinstance(first, tuple):
        return tuple(np.stack(parts) for parts in zip(*results, strict=True))
    return np.stack(results)


@dataclass(frozen=True)
class Called:
    """`one(crop, ...)` as `tiled_map` calls it: with or without a batch, with the tile's number."""

    one: Callable[..., Any]
    in_batches: bool = False
    numbered: bool = False

    def __call__(self, *crops: np.ndarray, tile: Any = None, tiles: Any = ()) -> Any:
        if self.in_batches:
            return stacked(self.one, crops, *([[t.index for t in tiles]] if self.numbered else []))
        return self.one(*crops, tile.index) if self.numbered else self.one(*crops)


def moved(x: np.ndarray, offset: int, axis: int, fill: float) -> np.ndarray:
    """Return ``y[i] = x[i + offset]`` along an axis, `fill` where there is no such sample."""
    n = x.shape[axis]
    out = np.full_like(x, fill)
    to, of = max(0, -offset), max(0, offset)
    count = n - abs(offset)
    if count > 0:
        ahead = (slice(None),) * (axis % x.ndim)
        out[(*ahead, slice(to, to + count))] = x[(*ahead, slice(of, of + count))]
    return out


def pooled(x: np.ndarray, m: int, axis: int) -> np.ndarray:
    """Return x plus the sum of its group of m samples, times a pattern of period m.

    It commutes with shifts by m only, and reaches m - 1 samples; m = 1 changes nothing but a factor.
    """
    n = x.shape[axis]
    sums = np.add.reduceat(x, np.arange(0, n, m), axis=axis).repeat(m, axis)
    phase = 1 + np.arange(n) % m
    sums = sums[(slice(None),) * (axis % x.ndim) + (slice(n),)]
    return (x + sums) * phase.reshape((-1,) + (1,) * (-1 - axis))


def zoomed(x: np.ndarray, scale: Fraction, axis: int) -> np.ndarray:
    """Return x at `scale` samples per sample, with the number of each among its group added."""
    j = np.arange(ceil(x.shape[axis] * scale))
    x = x.take(j * scale.denominator // scale.numerator, axis)
    return x * 10 + (j % scale.numerator).reshape((-1,) + (1,) * (-1 - axis))


@dataclass(frozen=True)
class Local:
    """A function whose results depend on inputs in a known reach: a stencil, sum or maximum.

    Crops are extended by zeros (the maximum: by nothing), as a padding convolution does.
    """

    axes: tuple[int, ...]
    """The tiled axes of a crop; they stay where they are."""
    taps: tuple[tuple[tuple[int, ...], int], ...]
    """Offset along each axis, and weight."""
    largest: bool
    pools: tuple[int, ...]
    phases: tuple[int, ...]
    """Periods of a factor, which reaches nothing."""
    margin: tuple[tuple[int, int], ...]
    scale: tuple[Fraction, ...]

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        last = range(-len(self.axes), 0)
        x = np.moveaxis(crop, self.axes, last)
        for k, m, period in zip(last, self.pools, self.phases, strict=True):
            x = pooled(x, m, k)
            x = x * (1 + np.arange(x.shape[k]) % period).reshape((-1,) + (1,) * (-1 - k))
        parts = []
        for offsets, weight in self.taps:
            part = x
            for k, offset in zip(last, offsets, strict=True):
                part = moved(part, offset, k, -1e9 if self.largest else 0)
            parts.append(part + weight if self.largest else part * weight)
        x = np.max(parts, axis=0) if self.largest else np.sum(parts, axis=0)
        for k, (lo, hi), scale in zip(last, self.margin, self.scale, strict=True):
            n = x.shape[k]
            x = zoomed(x.take(range(lo, n - hi), k), scale, k)
        return np.moveaxis(x, last, self.axes)


@st.composite
def local_functions(draw: Any, case: Case) -> Local:
    """Draw a function that reaches as far as `case` allows, or less."""
    reaches, pools = [], []
    for k, (m, (lo, hi)) in enumerate(zip(case.grid["multiple"], case.margin, strict=True)):
        if case.kind == "trim":
            reach = [case.overlaps[k]] * 2
        else:
            rim = case.weights["rim"][k]
            reach = [lo + rim, hi + rim]
        pool = m if min(reach) >= m - 1 and draw(st.booleans()) else 1
        reaches.append([r - (pool - 1) for r in reach])
        pools.append(pool)
    largest, box = draw(st.booleans()), draw(st.booleans())
    if box:  # at most 2 samples to each side
        spans = [range(-min(a, 2), min(b, 2) + 1) for a, b in reaches]
        taps = tuple((offset, 1) for offset in product(*spans))[:30]
    else:  # the farthest corners, and some in between
        corners = [tuple(-a for a, _ in reaches), tuple(b for _, b in reaches)]
        inside = st.tuples(*(st.integers(-a, b) for a, b in reaches))
        corners += draw(st.lists(inside, max_size=3))
        taps = tuple((offset, 1 + k) for k, offset in enumerate(corners))
    return Local(case.crop_axes, taps, largest, tuple(pools), case.multiples, case.margin, case.scale)


# ------------------------------------------------------------------------------- results by layout

LAYOUTS = ("same", "none", "first", "last", "middle", "reversed", "shape")


@dataclass(frozen=True)
class PerTile:
    """A function that shows where each sample of a crop went: values, ramp and number of the tile."""

    case: Case
    layout: str = "same"
    factor: float = 1

    @property
    def axes(self) -> tuple[int, ...]:
        """Where the tiled axes stand in a result."""
        d = len(self.case.axes)
        return {
            "same": self.case.crop_axes,
            "none": tuple(range(d)),
            "first": tuple(range(1, d + 1)),
            "last": tuple(range(d)),
            "middle": (0, *range(2, d + 1)),
            "reversed": tuple(range(d))[::-1],
            "shape": tuple(range(1, d + 1)),
        }[self.layout]

    @property
    def declared(self) -> dict[str, Any]:
        """Return how `Output` says it."""
        options: dict[str, Any] = {"margin": self.case.margin, "scale": self.case.scale}
        if self.layout in ("first", "last", "middle"):
            channel_axis = {"first": 0, "last": -1, "middle": 1}[self.layout]
            return options | {"channels": 3, "channel_axis": channel_axis}
        if self.layout == "none":
            return options | {"channels": 0}
        if self.layout == "reversed":
            return options | {"channels": 0, "axes": self.axes}
        if self.layout == "shape":
            return options | {"shape": (2, *self.case.result_crop, 3), "axes": self.axes}
        return options

    def __call__(self, crop: np.ndarray, number: int = 0) -> np.ndarray:
        case, d = self.case, len(self.case.axes)
        last = range(-d, 0)
        x = np.moveaxis(crop, case.crop_axes, last)
        for k, (lo, hi), scale in zip(last, case.margin, case.scale, strict=True):
            ramp = (k + 7) * np.arange(x.shape[k]) ** 2  # seen from the crop's start
            x = x + ramp.reshape((-1,) + (1,) * (-1 - k))
            x = zoomed(x.take(range(lo, x.shape[k] - hi), k), scale, k)
        x = (x + 1000 * number + x.shape[-1]) * self.factor
        if self.layout != "same":
            x = x.sum(axis=tuple(range(x.ndim - d)))
        if self.layout in ("first", "last", "middle"):
            x = np.stack([x, -x, 2 * x])
        if self.layout == "shape":
            x = np.stack([np.stack([a * x + b for a in (1, -1)]) for b in range(3)], -1)
            return x
        return np.moveaxis(x, last, self.axes)


def part(axes: Sequence[int], spans: Sequence[slice], ndim: int, lead: int) -> tuple[slice, ...]:
    """Return `spans` along `axes` behind `lead` axes as an index."""
    index = [slice(None)] * ndim
    for a, span in zip(axes, spans, strict=True):
        index[lead + a] = span
    return tuple(index)
