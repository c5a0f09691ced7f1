"""Blocks along one axis: the tiles that each owns and touches, and the samples that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tilework._derived import Holder, derived
from tilework._types import Bits, Ints, Span
from tilework.grid.axis import AxisGrid
from tilework.grid.progression import Places, joint
from tilework.source.padding import Boundary

__all__ = ["AxisTable", "Spans"]


class Spans(NamedTuple):
    """Half-open ranges along one axis."""

    low: Ints
    """The first of each range."""
    high: Ints
    """One past the last of each range."""

    @property
    def lengths(self) -> Ints:
        """How much is in each range."""
        return self.high - self.low

    def pairs(self) -> list[Span]:
        """Return the ranges as pairs of Python integers."""
        return list(zip(self.low.tolist(), self.high.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class AxisTable(Holder):
    """For every block along one axis, the tiles that it owns and touches, and the samples they read.

    Costs are sums over arrays, which are made when a plan is. Tasks look up block by block in lists, which
    are made when the first task is.
    """

    grid: AxisGrid
    """The tiles."""
    size: int
    """Length of a block, samples."""
    rims: tuple[int | None, ...]
    """Image samples without weight at each end of a crop, per output; None for a trimmed output."""
    boundary: Boundary = "reflect"
    """What crops read that stick out of the image."""

    @derived
    def owned(self) -> list[Span]:
        """Tiles whose support starts in the block."""
        return self.owns.pairs()

    @derived
    def touch(self) -> list[Span]:
        """Tiles that have weight in the block."""
        return self.touches.pairs()

    @derived
    def owned_read(self) -> list[Span]:
        """Image samples that the owned tiles read; these may lie outside the image."""
        return self.owned_reads.pairs()

    @derived
    def touch_read(self) -> list[Span]:
        """Image samples that the touching tiles read; these may lie outside the image."""
        return self.touching_reads.pairs()

    @derived
    def canvas(self) -> list[list[Span]]:
        """Per output, the image samples in which the owned tiles have weight."""
        return [spans.pairs() for spans in self.canvases]

    @derived
    def reaches(self) -> list[bool]:
        """Whether the owned tiles have weight in the next block."""
        found: list[bool] = self.reaching.tolist()
        return found

    # -- the same as arrays -----------------------------------------------------------------------------

    @derived
    def owns(self) -> Spans:
        """`owned` as arrays."""
        first = self._firsts
        return Spans(first[:-1], first[1:])

    @derived
    def touches(self) -> Spans:
        """`touch` as arrays."""
        first, (_, stops) = self._firsts, self._hulls
        touching = stops.count_before(self._edges[:-1], "right")
        # A block in which no tile has weight touches an empty range, not a negative one.
        return Spans(np.minimum(touching, first[1:]), first[1:])

    @derived
    def owned_reads(self) -> Spans:
        """`owned_read` as arrays."""
        return _extents(self.owns, *self.grid.read_ends())

    @derived
    def touching_reads(self) -> Spans:
        """`touch_read` as arrays."""
        return _extents(self.touches, *self.grid.read_ends())

    @derived
    def canvases(self) -> list[Spans]:
        """`canvas` as arrays."""
        return [_extents(self.owns, *self.grid.support_ends(rim)) for rim in self.rims]

    @derived
    def longest_reads(self) -> tuple[int, int]:
        """The longest of `owned_reads` and of `touching_reads`, samples."""
        return _longest(self.owned_reads), _longest(self.touching_reads)

    @derived
    def longest_canvases(self) -> tuple[int, ...]:
        """The longest from the start of a block to the end of its canvas or its own, per output, samples."""
        first, last = self._edges[:-1], self._edges[1:]
        return tuple(int((np.maximum(ends, last) - first).max()) for _, ends in self.canvases)

    @derived
    def canvas_sums(self) -> tuple[tuple[int, int], ...]:
        """How far canvases reach into later blocks at most, and the lengths of all together, per output."""
        first, last = self._edges[:-1], self._edges[1:]
        beyond = (np.maximum(ends - last, 0) for _, ends in self.canvases)
        return tuple((int(far.max()), int((far + last - first).sum())) for far in beyond)

    @derived
    def reaching(self) -> Bits:
        """`reaches` as an array."""
        ends = np.maximum.reduce([spans.high for spans in self.canvases])
        return np.asarray(ends > self._edges[1:])

    @derived
    def longest(self) -> int:
        """The longest support of a tile, samples."""
        (starts, stops), tiles = self._hulls, self.grid.typical
        return int((stops.take(tiles) - starts.take(tiles)).max(initial=0))

    @derived
    def _hulls(self) -> tuple[Places, Places]:
        """The hulls of each tile's supports in several outputs, as starts and stops."""
        starts, stops = zip(*(self.grid.support_ends(rim) for rim in self.rims), strict=True)
        return joint(starts, np.minimum), joint(stops, np.maximum)

    @derived
    def _edges(self) -> Ints:
        """Where blocks begin, and the end of the last one."""
        return np.append(np.arange(0, self.grid.extent, self.size), self.grid.extent)

    @derived
    def _firsts(self) -> Ints:
        """The number of tiles whose support starts before each edge."""
        return self._hulls[0].count_before(self._edges)


def _longest(spans: Spans) -> int:
    return int(spans.lengths.max())


def _extents(ranges: Spans, starts: Places, stops: Places) -> Spans:
    """Return, per range of tiles, the first tile's start and the last tile's stop; (0, 0) for no tile."""
    if not len(starts):
        return Spans(np.zeros_like(ranges.low), np.zeros_like(ranges.low))
    some = ranges.high > ranges.low
    if some.all():
        return Spans(starts.take(ranges.low), stops.take(ranges.high - 1))
    low = np.where(some, starts.take(np.minimum(ranges.low, len(starts) - 1)), 0)
    high = np.where(some, stops.take(np.maximum(ranges.high - 1, 0)), 0)
    return Spans(low, high)
