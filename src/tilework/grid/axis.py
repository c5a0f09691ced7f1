"""The crops along one axis: all arithmetic of tiling, in Python integers.

A grid uses *frame* coordinates along each axis. The frame is the image with ``margin`` before and after it
(samples that a valid-region function consumes) and, where the crop or ``multiple`` requires it, padding at
its end, or on both sides. A crop that starts at frame sample ``a`` gives results for the image samples
``[a, a + crop - sum(margin))``, so a frame start is also the image sample of the first result. The first
frame sample is ``-before``, which is 0 if the image is padded at its end::

    image                       0                                    n
    frame    -before  before lo |------------------------------------| hi after    length - before
    crop                [ lo |=========== valid ===========| hi ]
                        a

The closed forms were found by a walk over all small grids, which law G6 in ``tests/laws`` repeats.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeVar

import numpy as np

from tilework._derived import Holder, derived
from tilework._types import Ints
from tilework.errors import GridError
from tilework.grid.progression import Formula, Places, Progression

__all__ = ["AxisGrid", "Edge", "PadSide", "Starts"]

Number = TypeVar("Number", int, Ints)
"""A tile number or a sample, or an array of them."""
Edge = Literal["shift", "squeeze", "pad", "clip", "drop"]
# Most tiles along an axis whose places a grid holds: 16 MB for each pair of starts and stops.
HELD = 2**20
# Tiles along an axis up to which all places are looked at, which takes half a millisecond less.
FEW = 2**10
# Most tiles of an excerpt of an axis, whose starts are walked.
EXCERPT = 2**12
EDGES: tuple[Edge, ...] = ("shift", "squeeze", "pad", "clip", "drop")
PadSide = Literal["end", "both"]
PAD_SIDES: tuple[PadSide, ...] = ("end", "both")


def ceil_div(a: Number, b: int) -> Number:
    """Return ``a / b`` rounded up."""
    return -(-a // b)


def _clamp(x: Number, low: int | None, high: int | None) -> Number:
    if isinstance(x, np.ndarray):
        # np.clip takes 6 us, whatever it clips; each of these takes one.
        x = x if low is None else np.maximum(x, low)
        return x if high is None else np.minimum(x, high)
    x = x if low is None else max(x, low)
    return x if high is None else min(x, high)


def _share(i: Number, of: int, parts: int) -> Number:
    """Return ``of * i / parts`` rounded down, for ``i`` up to ``parts``."""
    # So split, products fit into 64 bits for 10^8 crops on 10^15 samples.
    whole, rest = divmod(of, parts)
    return i * whole + i * rest // parts


def _representatives(of: int, parts: int, near: int) -> Ints:
    """Return numbers ``i`` from 0 to ``parts`` that stand for all, as ``of * i / parts`` rounded down lies.

    The distances of each place to those of the ``near`` numbers before and after it are those of one of
    these, and the numbers at both ends are among them.

    Notes
    -----
    With ``r = of * i % parts``, place ``i + j`` is ``(r + of * j) // parts`` after place ``i``. So all
    distances are the same from one remainder ``-of * j % parts`` to the next one. The remainders of the
    numbers are multiples of ``unit``, each of them once before they repeat. Unless they do repeat, the number
    with remainder ``-of * j % parts`` is ``-j`` or ``parts - j``, at an end; so the next one is taken.
    """
    if parts <= 8 * near:
        return np.arange(parts + 1)
    unit = math.gcd(of, parts)
    period = parts // unit
    step = of // unit % period
    turns = (np.arange(-near, near + 1) * step + (unit == 1)) % period
    numbers = turns * pow(step, -1, period) % period
    # The first with this remainder that has ``near`` numbers before it.
    numbers += ceil_div(near - numbers, period) * period
    inside = numbers[numbers <= parts - near]
    ends = np.arange(near + 1)
    return np.unique(np.concatenate((ends, inside, parts - ends)))


@dataclass(frozen=True, slots=True)
class Starts(Holder):
    """An increasing sequence of starts, stored as pieces with a constant step: O(pieces) memory.

    Examples
    --------
    >>> Starts.of([0, 5, 10, 15, 17])
    Starts(pieces=((0, 5, 4), (17, 1, 1)))
    >>> rule = Starts.every(5, first=0, last=17)
    >>> len(rule), rule[3], rule[4]
    (5, 15, 17)
    """

    pieces: tuple[tuple[int, int, int], ...]
    """First start, step and number of starts of each piece, samples."""

    def __post_init__(self) -> None:
        ends = [(first, first + step * (count - 1)) for first, step, count in self.pieces]
        rising = all(b < a for (_, b), (a, _) in pairwise(ends))
        if not self.pieces or not rising or any(step < 1 or count < 1 for _, step, count in self.pieces):
            raise GridError(f"starts must increase and there must be at least one; got pieces {self.pieces}.")

    @classmethod
    def of(cls, starts: Iterable[int]) -> Starts:
        """Return the rule that yields ``starts``, samples, in as few pieces as one pass finds."""
        pieces: list[list[int]] = []
        for start in map(int, starts):
            if pieces:
                first, step, count = pieces[-1]
                if count == 1 or start == first + step * count:
                    pieces[-1] = [first, start - first if count == 1 else step, count + 1]
                    continue
            pieces.append([start, 1, 1])
        return cls(tuple((first, step, count) for first, step, count in pieces))

    @classmethod
    def every(cls, step: int, *, first: int, last: int) -> Starts:
        """Return the starts ``first``, ``first + step``, ... below ``last``, then ``last``; samples."""
        if last <= first:
            return cls(((last, 1, 1),))
        return cls(((first, step, -(-(last - first) // step)), (last, 1, 1)))

    def __len__(self) -> int:
        return self._before[-1]

    def __getitem__(self, i: Number) -> Number:
        if isinstance(i, np.ndarray):
            return self._some(i)
        if not 0 <= i < len(self):
            raise IndexError(i)
        piece = bisect_right(self._before, i) - 1
        first, step, _ = self.pieces[piece]
        return first + step * (i - self._before[piece])

    def _some(self, i: Ints) -> Ints:
        """Return the starts with these numbers, which may count from the end, without making all."""
        if i.size and not -len(self) <= i.min() <= i.max() < len(self):
            raise IndexError(f"{i.min()} to {i.max()}")
        (first, step, _), before = self._table, self._table_before
        i = np.where(i < 0, i + len(self), i)
        piece = np.searchsorted(before, i, side="right") - 1
        return np.asarray(first[piece] + step[piece] * (i - before[piece]))

    def __iter__(self) -> Iterator[int]:
        return (first + step * k for first, step, count in self.pieces for k in range(count))

    def array(self) -> Ints:
        """Return all starts as an array."""
        return self._some(np.arange(len(self)))

    @derived
    def _before(self) -> list[int]:
        """The number of starts before each piece, and of all."""
        return [0, *accumulate(count for _, _, count in self.pieces)]

    @derived
    def _table(self) -> Ints:
        """The pieces, one per column."""
        return np.array(self.pieces, np.int64).T

    @derived
    def _table_before(self) -> Ints:
        """The number of starts before each piece."""
        return np.array(self._before[:-1], np.int64)


@dataclass(frozen=True, slots=True)
class AxisGrid(Holder):
    """The crops along one axis: every start, core and support by closed form.

    It takes O(1) memory until the places of all tiles are asked for, which it holds.

    Examples
    --------
    >>> grid = AxisGrid(extent=20, crop=8, overlap=2)
    >>> [grid.read(i) for i in range(len(grid))]
    [(0, 8), (2, 10), (6, 14), (10, 18), (12, 20)]
    >>> [grid.core(i) for i in range(len(grid))]
    [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    """

    extent: int
    """Length of the image along this axis, samples."""
    crop: int
    """Length of the window that the function receives, samples."""
    overlap: int
    """Context on each side of a core, samples."""
    stride: int = 0
    """Distance between neighbouring crops, samples; 0 means ``crop - 2 * overlap``."""
    edge: Edge = "shift"
    """How a crop that sticks out of the image is filled."""
    trims: bool = True
    """Whether any output is trimmed; cores then begin at multiples of the stride."""
    multiple: int = 1
    """Starts are multiples of this, samples."""
    margin: tuple[int, int] = (0, 0)
    """Samples before and after for which the function returns no result."""
    quantum: int = 1
    """Cores begin at multiples of this, samples (the denominator of the output's scale)."""
    starts: Starts | None = None
    """Explicit starts, samples from the first one of the frame, instead of those from ``edge`` and
    ``stride``; ``edge`` then only decides how a crop that sticks out is filled."""
    pad_side: PadSide = "end"
    """Where the image is padded so that whole crops fit: at its end, or half on each side, of an odd number
    the larger half at the end."""

    def __post_init__(self) -> None:
        if self.stride == 0:
            object.__setattr__(self, "stride", self.crop - 2 * self.overlap)

    @derived
    def regular(self) -> bool:
        """Whether nominal starts are ``i * stride - overlap``; otherwise they are ``i * stride``."""
        if self.starts is not None:
            return False
        return self.edge == "pad" or (self.trims and self.edge in ("shift", "clip"))

    @derived
    def length(self) -> int:
        """Length of the frame: image, margins and padding, samples."""
        bare = self.extent + sum(self.margin)
        if self.edge not in ("shift", "squeeze"):
            return bare
        return max(self.crop, self.crop + ceil_div(bare - self.crop, self.multiple) * self.multiple)

    @derived
    def padding(self) -> tuple[int, int]:
        """Samples that ``boundary`` adds before and after so that whole crops fit on the allowed starts."""
        missing = self.length - self.extent - sum(self.margin)
        before = missing // 2 if self.pad_side == "both" else 0
        return before, missing - before

    @derived
    def _origin(self) -> int:
        """The first frame sample."""
        return -self.padding[0]

    @derived
    def _lead(self) -> int:
        """How far nominal start 0 lies before the frame's start."""
        return self.overlap - self.margin[0] if self.regular else 0

    @derived
    def _first(self) -> int:
        """Number of the nominal tile that is tile 0."""
        if self.edge != "shift" or not self.regular or self.length == self.crop:
            return 0
        return self._lead // self.stride

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self._count

    @derived
    def _count(self) -> int:
        if self.starts is not None:
            return len(self.starts)
        if self.edge == "pad":
            return ceil_div(self.extent, self.stride)
        surplus = self.length - self.crop
        if self.edge == "drop":
            return 1 + surplus // self.stride if surplus >= 0 else 0
        if surplus == 0 and self.edge != "clip":
            return 1
        # max(0, ...): a clipped crop may be longer than the frame.
        return 1 + max(0, ceil_div(surplus + self._lead, self.stride)) - self._first

    def nominal(self, i: Number) -> Number:
        """Return the frame sample at which crop ``i`` starts before any clipping.

        Here and below, ``i`` may be an array of tile numbers; the result then has one entry per tile.
        """
        if self.starts is not None:
            return self._origin + self.starts[i]
        slack = self.length - self.crop
        if self.edge == "squeeze":
            steps = _share(i, slack // self.multiple, max(1, len(self) - 1))
            return self._origin + self.multiple * steps
        start = (self._first + i) * self.stride - self._lead
        return self._origin + _clamp(start, 0, slack) if self.edge == "shift" else start

    def frame(self, i: Number) -> tuple[Number, Number]:
        """Return crop ``i`` in frame samples; it sticks out of the frame only with ``edge="pad"``."""
        start = self.nominal(i)
        stop = start + self.crop
        if self.edge != "clip":
            return start, stop
        return _clamp(start, 0, None), _clamp(stop, None, self.length)

    def read(self, i: Number) -> tuple[Number, Number]:
        """Return crop ``i`` in image samples; what lies outside the image is padding."""
        start, stop = self.frame(i)
        return start - self.margin[0], stop - self.margin[0]

    def valid(self, i: Number) -> tuple[Number, Number]:
        """Return the image samples for which crop ``i`` gives a result, padding included."""
        start, stop = self.frame(i)
        return start, stop - sum(self.margin)

    def core(self, i: int) -> tuple[int, int]:
        """Return the image samples that tile ``i`` owns; cores partition the covered samples."""
        last = len(self) - 1
        return self._cut(i - 1) if i else max(0, self.nominal(0)), self.covered if i == last else self._cut(i)

    def _cut(self, i: Number) -> Number:
        """Return the image sample at which tile ``i + 1`` takes over from tile ``i``."""
        if self.regular:
            return self._origin + (self._first + i + 1) * self.stride
        if self.edge == "drop" and self.starts is None:
            return (i + 1) * self.stride + self.overlap - self.margin[0]
        middle = (self.nominal(i) + self.nominal(i + 1) + self.crop) // 2 - self.margin[0]
        # An explicit start may lie so far out that the middle is outside, too.
        if self.quantum > 1:
            middle = middle // self.quantum * self.quantum
        return _clamp(middle, 0, self.covered)

    @derived
    def covered(self) -> int:
        """End of the last core, image samples; less than ``extent`` only for ``drop`` and given starts."""
        if self.edge != "drop" and self.starts is None:
            return self.extent
        if not len(self):
            return 0
        stop = self.nominal(len(self) - 1) + self.crop
        if stop >= self._origin + self.length:
            return self.extent
        return (stop - self.margin[0] - self.overlap) // self.quantum * self.quantum

    def support(self, i: int, rim: int | None = None) -> tuple[int, int]:
        """Return the image samples where tile ``i`` has weight: core (``rim=None``) or crop less rim."""
        if rim is None:
            return self.core(i)
        start, stop = self.valid(i)
        before, after = self.borders(i)
        return 0 if before else max(0, start + rim), self.extent if after else min(self.extent, stop - rim)

    def borders(self, i: Number) -> tuple[Any, Any]:
        """Return whether crop ``i`` reaches the image's border, before and after.

        With ``edge="pad"`` no crop does: invented samples beyond the border count as context.
        """
        start, stop = self.valid(i)
        return (start <= 0) & (self.edge != "pad"), (stop >= self.extent) & (self.edge != "pad")

    def shorter(self, period: int = 1) -> tuple[AxisGrid, int, int]:
        """Return the crops of an image that is shorter in its middle, where crops repeat.

        Parameters
        ----------
        period : int, samples
            Length of what else repeats along the axis, such as a block.

        Returns
        -------
        grid : AxisGrid
            The crops; this grid if it has no such middle. Otherwise, a step at least is left of that.
        step : int, samples
            A multiple of ``period`` after which crops repeat.
        steps : int
            By how many steps the image is shorter.
        """
        step = math.lcm(period, self.stride, self.multiple, self.quantum)
        steps = 0
        if self.starts is None and self.edge != "squeeze":
            steps = max(0, (self.extent - 2 * self._far - 2 * step) // step)
        return (replace(self, extent=self.extent - steps * step) if steps else self), step, steps

    @derived
    def _far(self) -> int:
        """Crops this far from both ends are neither moved nor cut, and have no such neighbours; samples."""
        return 2 * (self.crop + self.stride + self.overlap + sum(self.margin) + sum(self.padding))

    @property
    def tiles(self) -> Ints:
        """The numbers of all tiles."""
        return np.arange(len(self), dtype=np.int64)

    def nominals(self) -> Ints:
        """Return `nominal` of all tiles at once."""
        return self.nominal(self.tiles)

    def reads(self) -> tuple[Ints, Ints]:
        """Return `read` of all tiles at once, as starts and stops that nobody can change."""
        return self._places("reads", lambda: self.read(self.tiles))

    def read_ends(self) -> tuple[Places, Places]:
        """Return what `reads` does, in a size that does not depend on the number of tiles."""
        if self.even:
            return self._told(lambda tiles: self.read(tiles)[0], lambda tiles: self.read(tiles)[1])
        return self._spread(*(self if self._short is None else self._short).reads())

    def support_ends(self, rim: int | None = None) -> tuple[Places, Places]:
        """Return what `supports` does, in a size that does not depend on the number of tiles."""
        if not self.even:
            return self._spread(*(self if self._short is None else self._short).supports(rim))
        if rim is None:
            return self._told(self._core_starts, self._core_stops)
        starts, stops = partial(self._inside_starts, rim), partial(self._inside_stops, rim)
        return self._told(starts, stops)

    def supports_of(self, tiles: Ints, rim: int | None = None) -> tuple[Ints, Ints]:
        """Return `support` of some tiles, as starts and stops."""
        if self.starts is None or len(self) <= HELD:
            starts, stops = self.support_ends(rim)
            return starts.take(tiles), stops.take(tiles)
        # The places of all are not held, and each block would make them anew.
        if rim is None:
            return self._core_starts(tiles), self._core_stops(tiles)
        return self._inside_starts(rim, tiles), self._inside_stops(rim, tiles)

    @derived
    def even(self) -> bool:
        """Whether crops are spaced evenly, not by the stride, and so many that a formula is faster."""
        return self.edge == "squeeze" and self.starts is None and len(self) > FEW

    def _told(self, starts: Callable[[Ints], Ints], stops: Callable[[Ints], Ints]) -> tuple[Places, Places]:
        return Formula(len(self), starts), Formula(len(self), stops)

    @derived
    def typical(self) -> Ints:
        """Tiles that stand for all: each is placed like one of these among those whose crops meet its own."""
        if (near := self._near) is not None:
            return _representatives((self.length - self.crop) // self.multiple, len(self) - 1, near)
        if self._short is None:
            return self.tiles
        tiles = self._short.tiles
        return tiles + (len(self) - len(tiles)) * (tiles > self._middle)

    @derived
    def _near(self) -> int | None:
        """How many tiles before and after one decide how it lies, where crops are spaced evenly."""
        slack, gaps = (self.length - self.crop) // self.multiple, len(self) - 1
        if not self.even or not gaps or self.multiple % self.quantum:
            return None
        # Crops as far apart as this do not meet, however starts are rounded; one more cuts the last core.
        return ceil_div((ceil_div(self.crop, self.multiple) + 1) * gaps, slack) + 1

    @derived
    def excerpt(self) -> tuple[AxisGrid, Ints, Ints]:
        """A shorter grid in which tiles lie as in this one, its tiles that stand for all, and their shift.

        The shift is how many samples further on the same tile is in this grid.
        """
        if self._short is not None:
            tiles = self._short.tiles
            left_out = self.stride * (len(self) - len(tiles))
            return self._short, tiles, left_out * (tiles > self._middle)
        near, last = self._near, len(self) - 1
        if near is None or len(self.typical) == len(self) or 2 * near * len(self.typical) > EXCERPT:
            return self, self.typical, np.zeros_like(self.typical)
        around = np.add.outer(self.typical, np.arange(-near, near + 1))
        tiles = np.unique(np.minimum(np.maximum(around, 0), last))
        starts = self.nominal(tiles) - self._origin
        # Where tiles are left out, the next one follows a step later; it is none that stands for all.
        gaps = np.where(np.diff(tiles) > 1, np.diff(starts) - self.multiple, 0)
        shift = np.append(0, gaps.cumsum())
        rule = Starts.of((starts - shift).tolist())
        grid = replace(self, extent=self.extent - int(shift[-1]), starts=rule)
        among = np.searchsorted(tiles, self.typical)
        return grid, among, shift[among]

    @derived
    def _middle(self) -> int:
        """Number of the tile after which a shorter grid has fewer."""
        return ceil_div(self._far, self.stride)

    @derived
    def _short(self) -> AxisGrid | None:
        """The shorter grid, with the places that it holds; None if it would be this one."""
        grid, _, steps = self.shorter()
        return grid if steps else None

    def alike(self, i: int) -> int:
        """Return a tile of the shorter grid with neighbours at the same distances as those of tile ``i``."""
        more, at = 0 if self._short is None else len(self) - len(self._short), self._middle
        if i < at:
            return i
        return i - more if i >= at + more else at + (i - at) % self._kinds

    @derived
    def _kinds(self) -> int:
        """After how many crops they repeat, where a shorter grid has fewer."""
        return self.shorter()[1] // self.stride

    def _spread(self, starts: Ints, stops: Ints) -> tuple[Progression, Progression]:
        """Return the places of all tiles from those of the shorter grid."""
        more, at = len(self) - len(starts), self._middle
        return Progression(starts, at, self.stride, more), Progression(stops, at, self.stride, more)

    def supports(self, rim: int | None = None) -> tuple[Ints, Ints]:
        """Return `support` of all tiles at once, as starts and stops that nobody can change."""
        return self._places(rim, self._cores if rim is None else lambda: self._insides(rim))

    def _places(self, what: Any, find: Callable[[], tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
        """Return what ``find`` returns; it is held unless the tiles are so many that it takes long anyway."""
        if (found := self.held.get(what)) is None:
            found = find()
            for places in found:
                places.flags.writeable = False
            if len(found[0]) <= HELD:
                self.held[what] = found
        return found

    def _cores(self) -> tuple[Ints, Ints]:
        cuts = self._cut(self.tiles[:-1])
        ends = [max(0, self.nominal(0)), self.covered] if len(self) else []
        # numpy makes an empty list an array of floats.
        starts, stops = np.concatenate((ends[:1], cuts)), np.concatenate((cuts, ends[1:]))
        return starts.astype(np.int64), stops.astype(np.int64)

    def _core_starts(self, tiles: Ints) -> Ints:
        return np.where(tiles > 0, self._cut(tiles - 1), max(0, self.nominal(0)))

    def _core_stops(self, tiles: Ints) -> Ints:
        last = len(self) - 1
        # No tile follows the last one.
        return np.where(tiles < last, self._cut(np.minimum(tiles, last - 1)), self.covered)

    def _insides(self, rim: int) -> tuple[Ints, Ints]:
        return self._inside_starts(rim, self.tiles), self._inside_stops(rim, self.tiles)

    def _inside_starts(self, rim: int, tiles: Ints) -> Ints:
        start, _ = self.valid(tiles)
        return np.where((start <= 0) & (self.edge != "pad"), 0, np.maximum(start + rim, 0))

    def _inside_stops(self, rim: int, tiles: Ints) -> Ints:
        _, stop = self.valid(tiles)
        reaching = (stop >= self.extent) & (self.edge != "pad")
        return np.where(reaching, self.extent, np.minimum(stop - rim, self.extent))

    def owner(self, x: int) -> int:
        """Return the tile whose core holds image sample ``x``."""
        return bisect_right(range(len(self)), x, key=lambda i: self.core(i)[0]) - 1

    def touching(self, start: int, stop: int, rim: int | None = None) -> range:
        """Return the tiles whose support meets the image samples ``[start, stop)``."""
        tiles = range(len(self))
        first = bisect_right(tiles, start, key=lambda i: self.support(i, rim)[1])
        return range(first, max(first, self.starting(stop, rim)))

    def starting(self, stop: int, rim: int | None = None) -> int:
        """Return the number of tiles whose support starts before image sample ``stop``."""
        return bisect_left(range(len(self)), stop, key=lambda i: self.support(i, rim)[0])
