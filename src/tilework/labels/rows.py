"""`Rows`: facts about the objects in parts of an image, which add up to facts about whole objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from tilework._types import Array, Bits, Ints
from tilework.labels.runs import Runs, raveled

__all__ = ["Rows", "index_of"]


def index_of(at: Sequence[int], start: Sequence[int], shape: Sequence[int]) -> int:
    """Return the raveled index of the ``each`` axes at a place of a part of an image."""
    number = 0
    for i, a, n in zip(at, start, shape, strict=False):
        number = number * n + a + i
    return number


@dataclass(frozen=True, slots=True)
class Rows:
    """Facts about objects, one row per object and part, in samples of the whole image.

    Objects of different indices of ``each`` axes are different objects, whatever their ids.

    Examples
    --------
    >>> image = np.array([[7, 7, 0], [0, 7, 2]])
    >>> rows = Rows.joined([Rows.of(image[:, k:], (0, k), image.shape) for k in (0,)])
    >>> rows.merged().area.tolist()
    [1, 3]
    """

    index: Ints
    """Raveled index of the ``each`` axes; 0 without these."""
    ids: Array
    first: Ints
    """The first sample, as a raveled position in the image of the index."""
    area: Ints
    """Number of samples."""
    low: Ints
    """The first sample of the bounding box per axis that is no ``each`` axis."""
    high: Ints
    """One past the last sample of the bounding box per axis that is no ``each`` axis."""
    sums: Ints
    """Sum of the positions of all samples per axis that is no ``each`` axis."""

    @classmethod
    def of(cls, labels: Array, start: Sequence[int], shape: Sequence[int], n_each: int = 0) -> Rows:
        """Return the rows of a part of an image, in ascending order of index and id.

        Parameters
        ----------
        labels : int array
            The part; ``each`` axes first.
        start : sequence of int, samples
            Its first sample in the image.
        shape : sequence of int, samples
            Extents of the image.
        n_each : int
            Number of ``each`` axes.
        """
        place, whole = start[n_each:], shape[n_each:]
        parts = []
        for at in itertools.product(*map(range, labels.shape[:n_each])):
            found = Runs.of(labels[at]).objects()
            number = index_of(at, start, shape)
            offset = np.array(place, np.int64)
            parts.append(
                cls(
                    np.full(len(found), number),
                    found.ids.astype(np.int64, copy=False),
                    raveled(found.first, labels.shape[n_each:], place, whole),
                    found.area,
                    found.low + offset,
                    found.high + offset,
                    found.sums + found.area[:, None] * offset,
                )
            )
        return cls.joined(parts) if len(parts) != 1 else parts[0]

    @classmethod
    def joined(cls, parts: Iterable[Rows]) -> Rows:
        """Return the rows of all parts, one after the other; of one part at least."""
        columns = zip(*([getattr(part, f.name) for f in fields(cls)] for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: slice | Bits | Ints) -> Rows:
        return Rows(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def merged(self) -> Rows:
        """Return one row per object, in ascending order of index and id."""
        if not len(self):
            return self
        order, begins = self.groups()
        rows = self[order]
        return Rows(
            rows.index[begins],
            rows.ids[begins],
            np.minimum.reduceat(rows.first, begins),
            np.add.reduceat(rows.area, begins),
            np.minimum.reduceat(rows.low, begins),
            np.maximum.reduceat(rows.high, begins),
            np.add.reduceat(rows.sums, begins),
        )

    def groups(self) -> tuple[Ints, Ints]:
        """Return the order that puts the rows of an object together, and where each object begins in it."""
        order = np.lexsort((self.ids, self.index))
        ids, index = self.ids[order], self.index[order]
        new = (ids[1:] != ids[:-1]) | (index[1:] != index[:-1])
        return order, np.flatnonzero(np.concatenate((np.ones(min(1, len(self)), bool), new)))
