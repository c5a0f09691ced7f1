"""What is kept of each block of labels until objects are numbered."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from tilework._types import Array
from tilework.labels.painting import Claims, Counts
from tilework.labels.rows import Rows, index_of
from tilework.labels.runs import Runs

__all__ = ["BlockFacts", "renumbered"]


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """The objects of one block, and what is doubtful about them."""

    rows: Rows
    """One row per index of ``each`` axes and id, ascending."""
    counts: Counts = Counts()  # noqa: RUF009 -- it is frozen
    """What the tiles that the block owns claim, and what its samples tell."""

    def dumped(self) -> bytes:
        """Return the facts as bytes; `loaded` is the inverse."""
        claims = self.counts.claims
        numbers = [self.counts.contested, self.counts.unclaimed, claims.large, *claims.extent]
        arrays = {f.name: getattr(self.rows, f.name) for f in fields(Rows)}
        with io.BytesIO() as file:
            np.savez(file, **arrays, claims=claims.ids, cut=claims.cut, numbers=np.array(numbers, np.int64))
            return file.getvalue()

    @classmethod
    def loaded(cls, data: bytes) -> BlockFacts:
        """Return the facts of which `dumped` made bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            rows = Rows(*(found[f.name] for f in fields(Rows)))
            contested, unclaimed, large, *extent = found["numbers"].tolist()
            claims = Claims(found["claims"], large, tuple(extent), found["cut"])
            return cls(rows, Counts(contested, unclaimed, claims))


def renumbered(
    labels: Array,
    rows: Rows,
    numbers: Array,
    start: Sequence[int],
    shape: Sequence[int],
    n_each: int,
    dtype: np.dtype[np.generic],
) -> Array:
    """Return a block of labels with the numbers of its objects.

    Parameters
    ----------
    labels : int array
        The block; ``each`` axes first.
    rows : Rows
        Its objects, ascending by index and id.
    numbers : int array
        The number of each row.
    start, shape : sequence of int, samples
        The first sample of the block, and the extents of the image.
    n_each : int
        Number of ``each`` axes.
    dtype : dtype
        That of the result.
    """
    out = np.empty(labels.shape, dtype)
    for at in np.ndindex(*labels.shape[:n_each]):
        number = index_of(at, start, shape)
        low, high = np.searchsorted(rows.index, (number, number + 1))
        runs = Runs.of(labels[at])
        places = np.searchsorted(rows.ids[low:high], runs.ids.astype(np.int64, copy=False))
        out[at] = runs.painted(numbers[low:high][places].astype(dtype, copy=False))
    return out


def total(parts: Iterable[Counts]) -> Counts:
    """Return the sums of counts; of claims only how many are large, not their ids."""
    found = Counts()
    for counts in parts:
        claims = Claims.joined(
            Claims(np.zeros(0, np.int64), c.large, c.extent) for c in (found.claims, counts.claims)
        )
        found = Counts(found.contested + counts.contested, found.unclaimed + counts.unclaimed, claims)
    return found
