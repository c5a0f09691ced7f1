"""`Rows`: facts about the objects in parts of an image, which add up to facts about whole objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Ints
from tilework.labels.runs import Runs, raveled

__all__ = ["Firsts", "Rows", "added_up", "index_of"]

# Samples of which runs are found at a time.
PIECE = 2**17
ADDS: dict[str, Any] = {
    "first": np.minimum,
    "area": np.add,
    "low": np.minimum,
    "high": np.maximum,
    "sums": np.add,
}
"""How the facts of parts add up."""


def index_of(at: Sequence[int], start: Sequence[int], shape: Sequence[int]) -> int:
    """Return the raveled index of the ``each`` axes at a place of a part of an image."""
    number = 0
    for i, a, n in zip(at, start, shape, strict=False):
        number = number * n + a + i
    return number


@dataclass(frozen=True, slots=True)
class Firsts:
    """The first samples of the objects in a part of an image: all that numbering needs.

    Examples
    --------
    >>> found = Firsts.of(np.array([[7, 7, 0], [0, 7, 2]]), (0, 0), (2, 3))
    >>> found.ids.tolist(), found.first.tolist()
    ([2, 7], [5, 0])
    """

    index: Ints
    """Raveled index of the ``each`` axes; 0 without these."""
    ids: Ints
    """Ids, ascending within each index."""
    first: Ints
    """The first sample, as a raveled position in the image of the index."""

    @classmethod
    def of(cls, labels: Array, start: Sequence[int], shape: Sequence[int], n_each: int = 0) -> Firsts:
        """Return the first samples in a part of an image; arguments as those of `Rows.of`."""
        index, ids, first = [], [], []
        for at in np.ndindex(*labels.shape[:n_each]):
            found, begins = _firsts(labels[at], start[n_each:], shape[n_each:])
            index.append(np.full(len(found), index_of(at, start, shape)))
            ids.append(found)
            first.append(begins)
        return cls(np.concatenate(index), np.concatenate(ids), np.concatenate(first))

    def __len__(self) -> int:
        return len(self.ids)


def _firsts(labels: Array, start: Sequence[int], shape: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the ids in a part of an image, ascending, and the raveled position of the first sample of each.

    Runs may take ten times the memory of their samples, so they are found piece by piece.
    """
    rows = max(1, PIECE // max(1, math.prod(labels.shape[1:])))
    ids, first = [], []
    for a in range(0, max(1, len(labels)), rows):
        piece = labels[a : a + rows]
        found, begins, _ = Runs.of(piece).firsts()
        ids.append(found.astype(np.int64, copy=False))
        first.append(raveled(begins, piece.shape, (start[0] + a, *start[1:]), shape))
    if len(ids) == 1:
        return ids[0], first[0]
    # The first of equal ids is the one that counts.
    found, which = np.unique(np.concatenate(ids), return_index=True)
    return found, np.concatenate(first)[which]


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
        return Rows(**added_up({f.name: [getattr(self, f.name)] for f in fields(self)}))


def added_up(columns: dict[str, list[Array]], more: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Return the columns of one row per object, in ascending order of index and id.

    Parameters
    ----------
    columns : dict of str to list of arrays
        The parts of each column of `Rows`, and of others. The dict is emptied, because of many objects each
        column takes much memory.
    more : mapping of str to ufunc, optional
        How values of other columns add up.
    """
    index, ids = np.concatenate(columns["index"]), np.concatenate(columns["ids"])
    order = np.lexsort((ids, index))
    ids, index = ids[order], index[order]
    new = np.ones(len(ids), bool)
    new[1:] = (ids[1:] != ids[:-1]) | (index[1:] != index[:-1])
    begins = np.flatnonzero(new)
    found = {"index": index[begins], "ids": ids[begins]}
    del index, ids
    how = {**ADDS, **(more or {})}
    for name in list(columns):
        values = np.concatenate(columns.pop(name))[order]
        if name not in found:
            # No segment of no rows begins anywhere.
            found[name] = how[name].reduceat(values, begins) if len(begins) else values
    return found
