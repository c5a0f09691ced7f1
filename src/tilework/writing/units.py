"""Write units of an output: which blocks and which tiles touch those that are missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework.engine.spec import Index, Spec
from tilework.grid.axis import Tile, ceil_div
from tilework.plan.tables import box_sums, pack
from tilework.plan.tile_plan import Range, TilePlan
from tilework.writing.alignment import grid_axes, region

__all__ = ["Units", "tiles_touching", "with_todo"]

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Units:
    """The write units of one output's array."""

    spec: Spec
    number: int
    """Of the output."""
    shape: Index
    """Of the array, samples."""
    unit: Index
    """Samples per axis of the array."""

    @property
    def grid(self) -> Index:
        """Number of units per axis of the array."""
        return tuple(ceil_div(n, u) for n, u in zip(self.shape, self.unit, strict=True))

    def ranges(self, spans: Sequence[slice]) -> list[Range]:
        """Return the units that meet a box of samples, per axis of the array."""
        return [
            (s.start // u, ceil_div(s.stop, u)) for s, u in zip(self._full(spans), self.unit, strict=True)
        ]

    def _full(self, spans: Sequence[slice]) -> list[slice]:
        return [slice(*s.indices(n)[:2]) for s, n in zip(spans, self.shape, strict=True)]

    def of_block(self, index: Index) -> list[Range]:
        """Return the units of a block, per axis of the array."""
        return self.ranges(region(self.spec, self.number, index))

    def of_tile(self, tile: Tile) -> Iterator[Index]:
        """Yield the units in which a tile has weight."""
        layer = self.spec.layers[self.number]
        ranges = [(0, n) for n in self.grid]
        axes = grid_axes(self.spec, self.number)
        for axis, weights, i in zip(axes, layer.weights, tile.position, strict=True):
            ranges[axis] = self._meeting(axis, weights.support(i))
        yield from itertools.product(*(range(a, b) for a, b in ranges))

    def slices(self, unit: Index) -> tuple[slice, ...]:
        """Return the samples of a unit."""
        spans = zip(unit, self.unit, self.shape, strict=True)
        return tuple(slice(i * u, min((i + 1) * u, n)) for i, u, n in spans)

    def _meeting(self, axis: int, span: Range) -> Range:
        u = self.unit[axis]
        return span[0] // u, max(span[0] // u, ceil_div(span[1], u))

    def blocks(self, bits: Bits) -> Ints:
        """Return how many units with a true bit each block has, over the grid axes."""
        plan, axes = self.spec.plan, grid_axes(self.spec, self.number)
        ranges = [
            [self.of_block(_along(d, b, len(plan.blocks)))[axes[d]] for b in range(n)]
            for d, n in enumerate(plan.blocks)
        ]
        return box_sums(self._sums(bits), ranges)

    def tiles(self, bits: Bits) -> Bits:
        """Return which tiles have weight in a unit with a true bit, over the grid of tiles."""
        layer, axes = self.spec.layers[self.number], grid_axes(self.spec, self.number)
        ranges = [
            [self._meeting(axis, weights.support(i)) for i in range(n)]
            for axis, weights, n in zip(axes, layer.weights, self.spec.plan.grid_shape, strict=True)
        ]
        touching: Bits = box_sums(self._sums(bits), ranges) > 0
        return touching

    def _sums(self, bits: Bits) -> Ints:
        """Return bits per unit added up over the axes that are not of the grid, in the grid's order."""
        axes = grid_axes(self.spec, self.number)
        rest = tuple(a for a in range(bits.ndim) if a not in axes)
        flat = np.asarray(bits.sum(axis=rest, dtype=np.int64))
        kept = sorted(axes)
        return flat.transpose([kept.index(a) for a in axes])


def _along(d: int, b: int, ndim: int) -> Index:
    return tuple(b if k == d else 0 for k in range(ndim))


def tiles_touching(units: Sequence[Units], missing: Sequence[Bits]) -> Bits:
    """Return which tiles have weight in a missing unit of any output."""
    found = [u.tiles(bits) for u, bits in zip(units, missing, strict=True)]
    either: Bits = np.logical_or.reduce(found)
    return either


def with_todo(spec: Spec, tiles: Bits | None) -> Spec:
    """Return ``spec`` for a run that computes no tile outside ``tiles``; None: all."""
    if tiles is None:
        return replace(spec, todo=None, _uses={})
    runs = spec.plan.runs
    todo: TilePlan = replace(spec.plan, mask=pack(tiles if runs is None else tiles & runs))
    return replace(spec, todo=todo, _uses={})
