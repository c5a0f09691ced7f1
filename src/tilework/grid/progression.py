"""Samples of all tiles along an axis, in order, of which those in the middle are not stored.

They repeat there, or a formula tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilework._types import Ints

__all__ = ["Formula", "Places", "Progression", "joint"]

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Progression:
    """Samples, one per tile, in ascending order: an array from whose middle regular ones are left out.

    Examples
    --------
    >>> starts = Progression(np.array([0, 3, 8, 13, 14]), at=2, step=5, more=100)
    >>> len(starts), starts.take(np.array([1, 2, 50, 102, 103, 104])).tolist()
    (105, [3, 8, 248, 508, 513, 514])
    >>> starts.count_before(np.array([3, 8, 248, 514])).tolist()
    [1, 2, 50, 104]
    """

    near: Ints
    """Those that are stored."""
    at: int = 0
    """Number of the one after which some are left out; it and its next differ by ``step``."""
    step: int = 1
    """Distance of those that are left out, samples."""
    more: int = 0
    """How many are left out."""

    def __len__(self) -> int:
        return len(self.near) + self.more

    def take(self, tiles: Ints) -> Ints:
        """Return the samples of some tiles."""
        if not self.more:
            return self.near.take(tiles)
        turns = self._turns(tiles - self.at)
        return np.asarray(self.near.take(tiles - turns) + turns * self.step)

    def count_before(self, samples: Ints, side: Side = "left") -> Ints:
        """Return how many lie before each of ``samples``, or, with side "right", not behind it."""
        if not self.more:
            return np.searchsorted(self.near, samples, side)
        turns = self._turns((samples - self.near[self.at]) // self.step)
        return np.asarray(np.searchsorted(self.near, samples - turns * self.step, side) + turns)

    def _turns(self, steps: Ints) -> Ints:
        """Return how many of these steps lie in what is left out; np.clip takes three times as long."""
        return np.minimum(np.maximum(steps, 0), self.more)


@dataclass(frozen=True, slots=True)
class Formula:
    """Samples, one per tile, in ascending order: a formula that is evaluated for the tiles asked for.

    Counting is fast if all but the first and the last sample rise evenly; it is exact in any case.

    Examples
    --------
    >>> starts = Formula(10**6, lambda tiles: tiles * 70 // 9)
    >>> len(starts), starts.take(np.array([0, 1, 2, 999_999])).tolist()
    (1000000, [0, 7, 15, 7777770])
    >>> starts.count_before(np.array([0, 7, 8, 15, 10**9])).tolist()
    [0, 1, 2, 2, 1000000]
    """

    count: int
    """Number of tiles."""
    take: Callable[[Ints], Ints]
    """Returns the samples of some tiles."""

    def __len__(self) -> int:
        return self.count

    def count_before(self, samples: Ints, side: Side = "left") -> Ints:
        """Return how many lie before each of ``samples``, or, with side "right", not behind it."""
        samples = samples + (side == "right")
        # The first and the last one may lie elsewhere: at the image's border.
        low, high = min(1, self.count), max(1, self.count - 2)
        first, last = self.take(np.array([low, high])).tolist() if self.count else (0, 0)
        each = (high - low) / max(1, last - first)
        found = (low + np.ceil((samples - first) * each)).astype(np.int64)
        found = np.minimum(np.maximum(found, 0), self.count)
        # The guess is a few tiles off where rounding moved a sample over its neighbour's place.
        left = np.arange(len(found))
        while len(left):
            place, sample = found[left], samples[left]
            more = (place < self.count) & (self._at(place) < sample)
            less = (place > 0) & (self._at(place - 1) >= sample)
            found[left] += more.astype(np.int64) - less
            left = left[more | less]
        return found

    def _at(self, tiles: Ints) -> Ints:
        """Return `take`, and any sample for a number that is one too small or too large."""
        return self.take(np.minimum(np.maximum(tiles, 0), max(0, self.count - 1)))


Places = Progression | Formula
"""Samples, one per tile, in ascending order."""


def joint(several: Sequence[Places], ufunc: Any) -> Places:
    """Return the least or the greatest sample of each tile, by `numpy.minimum` or `numpy.maximum`.

    All must be of one kind and leave out the same tiles.
    """
    first = several[0]
    if len(several) == 1:
        return first
    if isinstance(first, Formula):
        return Formula(len(first), lambda tiles: ufunc.reduce([p.take(tiles) for p in several]))
    return Progression(
        ufunc.reduce([p.near for p in several if isinstance(p, Progression)]),
        first.at, first.step, first.more,
    )  # fmt: skip
