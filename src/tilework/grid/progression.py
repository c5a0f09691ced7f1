"""Samples of all tiles along an axis, in order, of which those in the middle are not stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilework._types import Ints

__all__ = ["Progression"]


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

    def count_before(self, samples: Ints, side: Literal["left", "right"] = "left") -> Ints:
        """Return how many lie before each of ``samples``, or, with side "right", not behind it."""
        if not self.more:
            return np.searchsorted(self.near, samples, side)
        turns = self._turns((samples - self.near[self.at]) // self.step)
        return np.asarray(np.searchsorted(self.near, samples - turns * self.step, side) + turns)

    def _turns(self, steps: Ints) -> Ints:
        """Return how many of these steps lie in what is left out; np.clip takes three times as long."""
        return np.minimum(np.maximum(steps, 0), self.more)

    @staticmethod
    def joint(several: Sequence[Progression], ufunc: Any) -> Progression:
        """Return the least or the greatest sample of each tile, by `numpy.minimum` or `numpy.maximum`.

        All must leave out the same tiles.
        """
        first = several[0]
        if len(several) == 1:
            return first
        return Progression(ufunc.reduce([p.near for p in several]), first.at, first.step, first.more)
