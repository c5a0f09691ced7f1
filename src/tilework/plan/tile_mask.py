"""Which tiles run: one bit for each group of equal neighbours, so that a coarse mask stays coarse."""

from __future__ import annotations

import base64
import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tilework._derived import Holder, derived
from tilework._types import Array, Bits, Index, Ints, Span
from tilework.grid.axis import ceil_div
from tilework.grid.progression import Progression
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any, box_sums, weighed_sum

__all__ = ["TileMask", "in_order"]

# Masks of up to so many tiles are written with a bit for each, as earlier versions wrote all.
WRITTEN_WHOLE = 2**23
# What an edge takes, in bits of groups: a whole number in memory, or some bytes in a record.
EDGE = 32


@dataclass(frozen=True, slots=True, repr=False)
class TileMask(Holder):
    """Which tiles run.

    Along each axis, neighbouring tiles that are equal in all rows are one group. So equal masks have equal
    fields, however they were made, and a mask of 100 x 100 samples over 10**10 tiles takes 10**4 bits or a
    few times as many. Where the edges of the groups would take more than the bits of all tiles along an axis,
    each of these tiles is a group.
    """

    edges: tuple[tuple[int, ...] | range, ...]
    """Per axis, the first tile of each group; then the number of tiles. A range: each tile is a group."""
    packed: bytes
    """One bit per group, in raster order."""

    @classmethod
    def of(cls, tiles: Bits) -> Self:
        """Return the mask in which the tiles run that an array over all tiles says."""
        bits = np.array(tiles, bool)  # a copy, because the bits are kept, and nobody may write them
        return cls.between([np.arange(n + 1) for n in bits.shape], bits)

    @classmethod
    def all(cls, shape: Sequence[int]) -> Self:
        """Return the mask in which all tiles run, of ``shape`` tiles."""
        return cls.of_box([(0, n) for n in shape], shape)

    @classmethod
    def of_box(cls, ranges: Sequence[Span], shape: Sequence[int]) -> Self:
        """Return the mask in which the tiles of a box run alone, of ``shape`` tiles."""
        edges = [in_order([0, n], (a, b)) for (a, b), n in zip(ranges, shape, strict=True)]
        inside = [(ends[:-1] >= a) & (ends[:-1] < b) for ends, (a, b) in zip(edges, ranges, strict=True)]
        return cls.between(edges, functools.reduce(np.logical_and.outer, inside))

    @classmethod
    def under(cls, values: Bits, ranges: Sequence[Spans]) -> Self:
        """Return the mask of tiles that have a true value in their range, one range per tile and axis."""
        edges, few = [], []
        for low, high in ranges:
            new = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))[: len(low)]
            edges.append(np.append(np.flatnonzero(new), len(low)))
            few.append(Spans(low[new], high[new]))
        return cls.between(edges, box_any(values, few))

    @classmethod
    def between(cls, edges: Sequence[Ints], bits: Bits) -> Self:
        """Return the mask of groups of tiles between ``edges``; equal neighbours become one."""
        few: list[Ints] = []
        for axis, ends in enumerate(edges):
            keep = np.append(True, _changes(bits, axis))[: bits.shape[axis]]
            if not keep.all():
                bits = bits.compress(keep, axis)
            few.append(np.append(ends[:-1][keep], ends[-1]))
        found: list[tuple[int, ...] | range] = []
        for axis, ends in enumerate(few):
            groups, tiles = len(ends) - 1, int(ends[-1])
            others = math.prod(bits.shape[:axis] + bits.shape[axis + 1 :])
            if tiles * others > groups * (others + EDGE):
                found.append(tuple(ends.tolist()))
                continue
            if tiles > groups:
                bits = bits.repeat(np.diff(ends), axis)
            found.append(range(tiles + 1))
        mask = cls(tuple(found), np.packbits(bits).tobytes())
        mask.held["bits"] = _fixed(np.ascontiguousarray(bits))
        return mask

    def repeated(self, counts: Sequence[int]) -> Self:
        """Return the mask that is the same along more axes, which come first, with so many tiles."""
        if not counts:
            return self
        edges = [in_order([0, n]) for n in counts]
        bits = np.broadcast_to(self.bits, [len(ends) - 1 for ends in edges] + list(self.bits.shape))
        return self.between([*edges, *self.ends], bits)

    # -- the same in other forms ------------------------------------------------------------------------

    @property
    def shape(self) -> Index:
        """Number of tiles per axis."""
        return tuple(ends[-1] for ends in self.edges)

    @derived
    def bits(self) -> Bits:
        """Whether the tiles of each group run; one entry per group along each axis."""
        shape = [len(ends) - 1 for ends in self.edges]
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=math.prod(shape))
        return _fixed(bits.view(bool).reshape(shape))

    @property
    def tiles(self) -> Bits:
        """Whether each tile runs; a byte per tile."""
        return _fixed(self.box([(0, n) for n in self.shape]))

    @derived
    def ends(self) -> list[Ints]:
        """`edges` as arrays."""
        return [np.arange(len(e)) if isinstance(e, range) else np.asarray(e) for e in self.edges]

    @property
    def _short(self) -> tuple[tuple[int, ...] | int, ...]:
        """`edges`, and the number of tiles where each is a group."""
        return tuple(e[-1] if isinstance(e, range) else e for e in self.edges)

    @derived
    def _rows(self) -> Array:
        """`bits`, eight groups along the last axis in a byte."""
        return np.packbits(self.bits, axis=-1)

    @property
    def identity(self) -> bytes | tuple[Any, ...]:
        """What stands for the mask in names: if tiles are few a bit for each, as in earlier versions."""
        if math.prod(self.shape) <= WRITTEN_WHOLE:
            return np.packbits(self.tiles).tobytes()
        return self._short, self.packed

    def to_json(self) -> Any:
        """Return text or a dict of the fields; `from_json` returns an equal mask."""
        if isinstance(whole := self.identity, bytes):
            return base64.b64encode(whole).decode()
        return {"edges": self._short, "bits": base64.b64encode(self.packed).decode()}

    @classmethod
    def from_json(cls, found: Any, shape: Index) -> Self:
        """Return the mask over tiles of ``shape`` that `to_json` wrote.

        Raises
        ------
        ValueError
            If it is of other tiles, or not whole.
        """
        groups, packed = (found["edges"], found["bits"]) if isinstance(found, dict) else (shape, found)
        edges = [np.arange(e + 1) if isinstance(e, int) else np.asarray(e, np.int64) for e in groups]
        sizes, data = [len(ends) - 1 for ends in edges], base64.b64decode(packed, validate=True)
        sound = all(ends[0] == 0 and (np.diff(ends) > 0).all() for ends in edges)
        if not sound or tuple(int(ends[-1]) for ends in edges) != shape:
            raise ValueError(f"the mask is not of {shape} tiles")
        if len(data) != ceil_div(math.prod(sizes), 8):
            raise ValueError(f"the mask has {len(data)} bytes for groups of shape {tuple(sizes)}")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=math.prod(sizes))
        return cls.between(edges, bits.view(bool).reshape(sizes))

    def __repr__(self) -> str:
        running, groups = self.running([(0, n) for n in self.shape]), self.bits.shape
        return f"<TileMask: {running} of {math.prod(self.shape)} tiles run, in groups of shape {groups}>"

    # -- tiles ------------------------------------------------------------------------------------------

    def __getitem__(self, position: Index) -> bool:
        """Return whether a tile runs."""
        groups = (bisect.bisect_right(ends, i) - 1 for ends, i in zip(self.edges, position, strict=True))
        return bool(self.bits[tuple(groups)])

    def box(self, ranges: Sequence[Span]) -> Bits:
        """Return whether each tile in a box of tiles runs."""
        parts = [self._part(axis, span) for axis, span in enumerate(ranges)]
        found = self.bits[tuple(inside for inside, _ in parts)]
        for axis, (_, sizes) in enumerate(parts):
            if not (sizes == 1).all():
                found = found.repeat(sizes, axis)
        return found

    def running(self, ranges: Sequence[Span]) -> int:
        """Return the number of tiles that run in a box of tiles."""
        parts = [self._part(axis, span) for axis, span in enumerate(ranges)]
        inside = [near for near, _ in parts]
        if all((sizes == 1).all() for _, sizes in parts):
            return int(np.count_nonzero(self.bits[tuple(inside)]))
        return self._weighted(inside, [sizes for _, sizes in parts])

    def shrunk(self, ranges: Sequence[Span]) -> list[Span]:
        """Return ranges of tiles per axis without those at the ends of which none runs.

        They start where they did, and are empty, if none runs at all.
        """
        near = [self._groups(axis, span) for axis, span in enumerate(ranges)]
        part = self.bits[tuple(near)]
        if part.size and part.all():
            return list(ranges)
        found = []
        for d, ((first, stop), inside) in enumerate(zip(ranges, near, strict=True)):
            on = np.flatnonzero(part.any(axis=tuple(a for a in range(part.ndim) if a != d)))
            if not on.size:
                found.append((first, first))
                continue
            ends, low = self.edges[d], inside.start
            found.append((max(first, ends[low + int(on[0])]), min(stop, ends[low + int(on[-1]) + 1])))
        return found

    def nearest(self, position: Sequence[int], axes: Sequence[int] | None = None) -> Index:
        """Return the position of a tile that runs and is nearest to ``position``, counted in tiles.

        Parameters
        ----------
        position : sequence of int, tiles per axis in ``axes``
        axes : sequence of int, optional
            The axes that count; along the others any tile may be found. Default: all.
        """
        own = range(len(self.edges)) if axes is None else axes
        groups = np.argwhere(self.bits)
        found, away = [], np.zeros(len(groups), np.int64)
        for axis, ends in enumerate(self.ends):
            low, high = ends[groups[:, axis]], ends[groups[:, axis] + 1] - 1
            at = low if axis not in own else np.clip(position[own.index(axis)], low, high)
            if axis in own:
                away += np.abs(at - position[own.index(axis)])
            found.append(at)
        best = int(away.argmin())
        return tuple(int(at[best]) for at in found)

    def some(self, count: int) -> list[Index]:
        """Return positions of up to ``count`` tiles that run, spread over all of them."""
        groups = np.argwhere(self.bits)
        sizes = [np.diff(ends)[groups[:, axis]] for axis, ends in enumerate(self.ends)]
        before = np.append(0, np.multiply.reduce(sizes).cumsum())
        ranks = np.arange(0, before[-1], max(1, int(before[-1]) // count))
        which = np.searchsorted(before, ranks, "right") - 1
        rest, places = ranks - before[which], []
        for axis in reversed(range(len(sizes))):
            rest, place = np.divmod(rest, sizes[axis][which])
            places.append(self.ends[axis][groups[which, axis]] + place)
        return list(zip(*(place.tolist() for place in reversed(places)), strict=True))

    def positions(self, fixed: Mapping[int, int]) -> Iterator[Index]:
        """Yield the positions of all tiles that run, or of those at a given position along some axes."""
        for group in map(tuple, np.argwhere(self.bits).tolist()):
            spans = [range(*ends[g : g + 2]) for ends, g in zip(self.edges, group, strict=True)]
            if all(i in spans[axis] for axis, i in fixed.items()):
                yield from itertools.product(
                    *((fixed[d],) if d in fixed else span for d, span in enumerate(spans))
                )

    # -- ranges of tiles --------------------------------------------------------------------------------

    def groups(self, axis: int, spans: Spans) -> Spans:
        """Return the groups along an axis that meet each range of tiles."""
        ends = self.ends[axis]
        if len(ends) == ends[-1] + 1:  # each tile is a group
            return spans
        low = np.searchsorted(ends, spans.low, "right") - 1
        return Spans(low, np.where(spans.low < spans.high, np.searchsorted(ends, spans.high), low))

    def unlike(self, axis: int, spans: Spans) -> tuple[Spans, Ints]:
        """Return ranges of tiles along an axis that stand for all, and how many each stands for.

        Ranges hold the same tiles if they meet the same groups, with as many tiles in the first and the last.
        """
        (low, high), ends = self.groups(axis, spans), self.ends[axis]
        new = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))[: len(low)]
        first = np.minimum(ends[np.minimum(low + 1, len(ends) - 1)], spans.high) - spans.low
        last = spans.high - np.maximum(ends[np.maximum(high - 1, 0)], spans.low)
        first, last = (np.maximum(tiles, 0) for tiles in (first, last))
        size = 1 + int(max(first.max(initial=0), last.max(initial=0)))
        _, at, times = np.unique(
            (new.cumsum() * size + first) * size + last, return_index=True, return_counts=True
        )
        return Spans(spans.low[at], spans.high[at]), times

    def run_in(self, ranges: Sequence[Spans]) -> Bits:
        """Return whether any tile runs in each product of one range of tiles per axis."""
        inside, moved = [], []
        for axis, spans in enumerate(ranges):
            # Groups around all ranges are few where a part of a plan is asked for.
            near, (low, high) = _around(self.groups(axis, spans))
            inside.append(near)
            moved.append(Spans(low, high))
        return box_any(self.bits[tuple(inside)], moved)

    def counts(self, ranges: Sequence[Spans]) -> Ints:
        """Return the number of tiles that run in each product of one range of tiles per axis."""
        inside, moved, edges = [], [], []
        for axis, spans in enumerate(ranges):
            near, _ = _around(self.groups(axis, spans))
            ends = self.ends[axis][near.start : near.stop + 1]
            inside.append(near)
            edges.append(ends)
            moved.append(Spans(*(np.where(spans.low < spans.high, at, ends[0]) for at in spans)))
        return box_sums(self.bits[tuple(inside)], moved, edges)

    def total(self, times: Sequence[Ints]) -> int:
        """Return the sum over the groups that run of the product of ``times``, one entry for each group."""
        inside, counts = [], []
        for count in times:
            on = np.flatnonzero(count)
            inside.append(slice(int(on[0]), int(on[-1]) + 1) if len(on) else slice(0, 0))
            counts.append(count[inside[-1]])
        return self._weighted(inside, counts)

    def _weighted(self, inside: Sequence[slice], counts: Sequence[Ints]) -> int:
        """Return the sum over the groups ``inside`` that run of the product of ``counts`` of each axis."""
        most = int(counts[-1].max(initial=0))
        if most > 3:
            return weighed_sum(np.einsum("...k,k->...", self.bits[tuple(inside)], counts[-1]), counts[:-1])
        # Bits of one power of two in the counts along the last axis are counted eight at a time, which takes
        # less up to two powers.
        start, stop = inside[-1].start // 8, ceil_div(inside[-1].stop, 8)
        rows = self._rows[(*inside[:-1], slice(start, stop))]
        last = np.zeros(8 * (stop - start), np.int64)
        last[inside[-1].start - 8 * start :][: len(counts[-1])] = counts[-1]
        sums: Any = np.zeros(rows.shape[:-1], np.int64)
        for power in range(most.bit_length()):
            chosen = rows & np.packbits((last >> power) & 1 == 1)
            sums += np.bitwise_count(chosen).sum(axis=-1, dtype=np.int64) << power
        return weighed_sum(sums, counts[:-1])

    def _part(self, axis: int, span: Span) -> tuple[slice, Ints]:
        """Return the groups that meet a range of tiles, and how many of its tiles are in each."""
        inside = self._groups(axis, span)
        return inside, np.diff(self.ends[axis][inside.start : inside.stop + 1].clip(span[0], max(span)))

    def _groups(self, axis: int, span: Span) -> slice:
        """Return the groups that meet a range of tiles."""
        first, stop = span
        low = bisect.bisect_right(self.edges[axis], first) - 1
        return slice(low, bisect.bisect_left(self.edges[axis], stop) if first < stop else low)

    # -- other masks ------------------------------------------------------------------------------------

    def among(self, before: Sequence[Progression]) -> Self:
        """Return the mask over some tiles of each axis alone; given is how many of these are before each."""
        bits, edges = self.bits, []
        for axis, (ends, some) in enumerate(zip(self.ends, before, strict=True)):
            found = some.take(ends)
            keep = np.diff(found) > 0
            bits = bits.compress(keep, axis)
            edges.append(np.append(found[:-1][keep], found[-1]))
        return self.between(edges, bits)

    def __and__(self, other: TileMask) -> Self:
        # Around the tiles of a part of an image, nothing of the mask of all of it needs to be looked at.
        few: TileMask = self if self.bits.size < other.bits.size else other
        return self._joined(other, np.logical_and, few.shrunk([(0, n) for n in few.shape]))

    def __or__(self, other: TileMask) -> Self:
        return self._joined(other, np.logical_or)

    def __xor__(self, other: TileMask) -> Self:
        return self._joined(other, np.logical_xor)

    def _joined(
        self, other: TileMask, how: Callable[[Bits, Bits], Bits], box: Sequence[Span] | None = None
    ) -> Self:
        """Return the mask that ``how`` makes of two in a box of tiles; no tile runs outside of it."""
        if self.shape != other.shape:
            raise ValueError(f"these are masks of {self.shape} and {other.shape} tiles.")
        box = [(0, n) for n in self.shape] if box is None else box
        edges = []
        for (a, b), *ends in zip(box, self.ends, other.ends, strict=True):
            edges.append(in_order([a, b], *(e[slice(*np.searchsorted(e, (a, b)))] for e in ends)))
        parts = []
        for mask in (self, other):
            places = [
                np.searchsorted(own, along[:-1], "right") - 1
                for own, along in zip(mask.ends, edges, strict=True)
            ]
            parts.append(mask.bits[np.ix_(*places)])
        around = [(int(a > 0), int(b < n)) for (a, b), n in zip(box, self.shape, strict=True)]
        edges = [in_order([0], along, [n]) for along, n in zip(edges, self.shape, strict=True)]
        return self.between(edges, np.pad(how(*parts), around))


def in_order(*places: Any) -> Ints:
    """Return all of some places, of which each part is in order, once and in order.

    `numpy.unique` makes a table of hashes, which takes 20 times as long.
    """
    found = np.sort(np.concatenate(places), kind="stable")
    return np.asarray(found[np.append(True, found[1:] != found[:-1])])


def _changes(bits: Bits, axis: int) -> Bits:
    """Return for each place along an axis, but the last, whether the next one differs anywhere."""
    # In two steps, because numpy takes three times as long for all other axes at once.
    rows = bits.reshape(math.prod(bits.shape[:axis]), bits.shape[axis], math.prod(bits.shape[axis + 1 :]))
    return np.asarray((rows[:, 1:] != rows[:, :-1]).any(axis=0).any(axis=1))


def _fixed(bits: Bits) -> Bits:
    """Return an array that nobody may write, because others hold it."""
    bits.flags.writeable = False
    return bits


def _around(spans: Spans) -> tuple[slice, Spans]:
    """Return what is around all ranges, and the ranges in it."""
    some = spans.low < spans.high
    first = int(spans.low[some].min()) if some.any() else 0
    inside = slice(first, int(spans.high[some].max(initial=first)))
    return inside, Spans(*(np.where(some, ends - first, 0) for ends in spans))
