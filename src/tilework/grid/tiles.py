"""Boxes, tiles and grids of tiles: the product of one grid per axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from tilework._derived import Holder, derived
from tilework.errors import TilingError
from tilework.grid.axis import AxisGrid

__all__ = ["Box", "Tile", "TileGrid"]


Place = tuple[int, int, int, int, int, int, tuple[int, int]]
"""Number, raster step, crop, core and padding of a tile along one axis."""

# Number of tiles along an axis whose places are kept; each takes about half a kilobyte.
KNOWN = 2**12


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open N-D interval, in samples.

    Examples
    --------
    >>> Box((0, 4), (8, 10)).intersect(Box((6, 0), (20, 6))).shape
    (2, 2)
    """

    start: tuple[int, ...]
    """First sample per axis."""
    stop: tuple[int, ...]
    """One past the last sample per axis."""

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> Box:
        """Return the box of one ``(start, stop)`` per axis."""
        pairs = tuple(spans)
        return cls(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths per axis, samples; never negative."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of samples."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(map(slice, self.start, self.stop))

    def intersect(self, other: Box) -> Box:
        """Return the samples in both boxes."""
        return Box(tuple(map(max, self.start, other.start)), tuple(map(min, self.stop, other.stop)))

    def shift(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset``, samples per axis."""
        return Box(
            tuple(a + d for a, d in zip(self.start, offset, strict=True)),
            tuple(b + d for b, d in zip(self.stop, offset, strict=True)),
        )

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


@dataclass(frozen=True, slots=True)
class Tile:
    """One crop: its number, place and padding."""

    index: int
    """Number in raster order, last axis fastest."""
    position: tuple[int, ...]
    """Number of the tile along each axis."""
    read: Box
    """The crop that the function receives, image samples; may stick out of the image."""
    core: Box
    """Image samples whose result comes from this tile when trimming; cores do not overlap."""
    padding: tuple[tuple[int, int], ...]
    """Samples of the read box before and after the image, per axis."""

    def __str__(self) -> str:
        return f"tile {self.index} at {self.position}, reading {self.read}, crop {self.read.shape}"


@dataclass(frozen=True, slots=True)
class TileGrid(Holder, Sequence[Tile]):
    """The product of per-axis grids: a lazy sequence of tiles in raster order."""

    axes: tuple[AxisGrid, ...]
    """One grid per axis."""

    @derived
    def shape(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return tuple(map(len, self.axes))

    @derived
    def _steps(self) -> tuple[int, ...]:
        """How much further in raster order the next tile along each axis is."""
        return tuple(math.prod(self.shape[d + 1 :]) for d in range(len(self.axes)))

    @derived
    def _known(self) -> tuple[dict[int, Place], ...]:
        """Places of tiles along each axis, which all blocks of a row or column ask for."""
        return tuple({} for _ in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | Sequence[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        position, rest = [], number
        for count in reversed(self.shape):
            rest, i = divmod(rest, count)
            position.append(i)
        return self.tile(tuple(reversed(position)))

    def __iter__(self) -> Iterator[Tile]:
        return self.within([(0, count) for count in self.shape])

    def __contains__(self, tile: object) -> bool:
        # A tile knows its number, so that nobody has to look for it among all.
        return isinstance(tile, Tile) and 0 <= tile.index < len(self) and self[tile.index] == tile

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the number of a tile of this grid, from ``start`` on and before ``stop``.

        Raises
        ------
        TilingError
            If the tile is none of these.
        """
        if value not in self or value.index not in range(*slice(start, stop).indices(len(self))):
            raise TilingError(f"{value!r} is none of the {len(self)} tiles from {start} on.")
        return int(value.index)

    def count(self, value: Any) -> int:
        """Return 1 for a tile of this grid, and 0 for anything else."""
        return int(value in self)

    def number(self, position: Sequence[int]) -> int:
        """Return the raster number of the tile at ``position``."""
        return sum(i * step for i, step in zip(position, self._steps, strict=True))

    def tile(self, position: tuple[int, ...]) -> Tile:
        """Return the tile at ``position``, one number per axis."""
        return next(self.within([(i, i + 1) for i in position]))

    def within(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Tile]:
        """Yield the tiles in ``ranges``, first and one past the last per axis, in raster order."""
        per_axis = []
        for axis, (a, b), step, known in zip(self.axes, ranges, self._steps, self._known, strict=True):
            if len(known) > KNOWN:
                known.clear()
            # Other threads may clear them.
            per_axis.append([known.get(i) or known.setdefault(i, _place(axis, i, step)) for i in range(a, b)])
        return map(_tile, itertools.product(*per_axis))


def _place(axis: AxisGrid, i: int, step: int) -> Place:
    """Return what tile ``i`` along one axis adds to a tile, in the order of `_tile`."""
    start, stop = axis.read(i)
    return i, i * step, start, stop, *axis.core(i), (max(0, -start), max(0, stop - axis.extent))


def _tile(places: Sequence[Place]) -> Tile:
    position, numbers, starts, stops, lows, highs, padding = zip(*places, strict=True)
    return Tile(sum(numbers), position, Box(starts, stops), Box(lows, highs), padding)
