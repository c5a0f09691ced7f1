"""What every block along one axis owns, touches and reads; and sums over boxes of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilework.grid.axis import AxisGrid

__all__ = ["AxisTable", "Range", "axis_table", "axis_tables", "box_sums", "pack", "unpack"]

Range = tuple[int, int]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def box_sums(values: np.ndarray[Any, Any], ranges: Sequence[Sequence[Range]]) -> Ints:
    """Return the sum of ``values`` over every product of one range per axis.

    Parameters
    ----------
    values : bool or int array
    ranges : sequence of sequence of (first, stop)
        For each axis, the ranges along it.

    Returns
    -------
    int64 array, as long along each axis as there are ranges
    """
    sums = values.astype(np.int64)
    for axis, pairs in enumerate(ranges):
        before = np.concatenate((np.zeros_like(sums.take([0], axis)), sums.cumsum(axis)), axis)
        first, last = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        sums = before.take(last, axis) - before.take(first, axis)
    return sums


def pack(runs: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    """Return one bit per tile in raster order; `unpack` gives the tiles again."""
    return np.packbits(runs).tobytes()


@lru_cache(maxsize=8)
def unpack(mask: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which tiles run, from one bit per tile in raster order."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=math.prod(shape))
    return bits.astype(bool).reshape(shape)


@dataclass(frozen=True, slots=True)
class AxisTable:
    """For every block along one axis: the tiles it owns and touches, as first and one past the last."""

    owned: list[Range]
    """Tiles whose support starts in the block."""
    touch: list[Range]
    """Tiles that have weight in the block."""
    owned_read: list[Range]
    """Image samples that the owned tiles read; may stick out of the image."""
    touch_read: list[Range]
    """Image samples that the touching tiles read."""
    canvas: list[list[Range]]
    """Per output, the image samples in which the owned tiles have weight."""
    reaches: list[bool]
    """Whether the owned tiles have weight in the next block."""
    longest: int
    """The longest support of a tile, samples."""


@lru_cache(maxsize=16)
def axis_tables(
    axes: tuple[AxisGrid, ...], block: tuple[int, ...], rims: tuple[tuple[int, ...] | None, ...]
) -> tuple[AxisTable, ...]:
    """Return the tables of all axes, for outputs with ``rims``."""
    return tuple(
        axis_table(grid, size, tuple(None if rim is None else rim[d] for rim in rims))
        for d, (grid, size) in enumerate(zip(axes, block, strict=True))
    )


def axis_table(grid: AxisGrid, size: int, rims: tuple[int | None, ...]) -> AxisTable:
    """Return the table of blocks of ``size`` samples, for outputs with ``rims``."""
    supports = [grid.supports(rim) for rim in rims]
    starts = np.minimum.reduce([s for s, _ in supports])
    stops = np.maximum.reduce([s for _, s in supports])
    edges = np.append(np.arange(0, grid.extent, size), grid.extent)
    first = np.searchsorted(starts, edges)
    touching = np.searchsorted(stops, edges[:-1], side="right")
    # A block in which no tile has weight touches an empty range, not a negative one.
    touch = np.stack((np.minimum(touching, first[1:]), first[1:]), axis=1)
    owned = np.stack((first[:-1], first[1:]), axis=1)
    canvas = [_extent_of(owned, low, high) for low, high in supports]
    reaches = [max(c[b][1] for c in canvas) > edges[b + 1] for b in range(len(owned))]
    return AxisTable(
        _pairs(owned),
        _pairs(touch),
        _extent_of(owned, *grid.reads()),
        _extent_of(touch, *grid.reads()),
        canvas,
        reaches,
        int((stops - starts).max(initial=0)),
    )


def _pairs(ranges: Ints) -> list[Range]:
    return [(a, b) for a, b in ranges.tolist()]


def _extent_of(ranges: Ints, starts: Ints, stops: Ints) -> list[Range]:
    """Return the samples from the first tile's start to the last tile's stop; (0, 0) for no tile."""
    if not len(starts):
        return [(0, 0)] * len(ranges)
    some = ranges[:, 1] > ranges[:, 0]
    low = np.where(some, starts[np.minimum(ranges[:, 0], len(starts) - 1)], 0)
    high = np.where(some, stops[np.maximum(ranges[:, 1] - 1, 0)], 0)
    return _pairs(np.stack((low, high), axis=1))
