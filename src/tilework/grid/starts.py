"""Rules of starts: any increasing sequence of crop positions, held as a few arithmetic pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tilework.errors import GridError

__all__ = ["Starts"]


@dataclass(frozen=True, slots=True)
class Starts:
    """An increasing sequence of starts: pieces with a constant step, in O(pieces) memory.

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
        """Return the rule that gives ``starts``, samples, in as few pieces as a walk finds."""
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
        """Return ``first``, ``first + step``, ... below ``last``, and then ``last`` itself, samples."""
        if last <= first:
            return cls(((last, 1, 1),))
        return cls(((first, step, -(-(last - first) // step)), (last, 1, 1)))

    def __len__(self) -> int:
        return sum(count for _, _, count in self.pieces)

    def __getitem__(self, i: int) -> int:
        left = i
        for first, step, count in self.pieces:
            if 0 <= left < count:
                return first + step * left
            left -= count
        raise IndexError(i)

    def __iter__(self) -> Iterator[int]:
        return (first + step * k for first, step, count in self.pieces for k in range(count))

    def array(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return all starts at once."""
        parts = [first + step * np.arange(count, dtype=np.int64) for first, step, count in self.pieces]
        return np.concatenate(parts)
