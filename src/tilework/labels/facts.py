"""What is kept of each block of labels until objects are numbered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tilework._types import Array, Ints
from tilework.errors import TilingError
from tilework.labels.painting import Claims, Counts
from tilework.labels.rows import Firsts, index_of
from tilework.labels.runs import Runs

__all__ = ["BlockFacts", "renumbered", "total"]


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """The objects of one block, and what is doubtful about them."""

    firsts: Firsts
    """One row per index of ``each`` axes and id, ascending."""
    counts: Counts = Counts()  # noqa: RUF009 -- it is frozen
    """What the tiles that the block owns claim, and what its samples tell."""

    def tables(self) -> dict[str, Array]:
        """Return the facts as arrays; `of` is the inverse."""
        claims = self.counts.claims
        numbers = [self.counts.contested, self.counts.unclaimed, claims.large, *claims.extent]
        own = {f.name: getattr(self.firsts, f.name) for f in fields(Firsts)}
        return own | {"claims": claims.ids, "cut": claims.cut, "numbers": np.array(numbers, np.int64)}

    @classmethod
    def of(cls, tables: Mapping[str, Array]) -> BlockFacts:
        """Return the facts of which `tables` made arrays."""
        firsts = Firsts(*(tables[f.name] for f in fields(Firsts)))
        contested, unclaimed, large, *extent = tables["numbers"].tolist()
        claims = Claims(tables["claims"], large, tuple(extent), tables["cut"])
        return cls(firsts, Counts(contested, unclaimed, claims))


def renumbered(
    labels: Array,
    rows: tuple[Ints, Ints, Array],
    start: Sequence[int],
    shape: Sequence[int],
    n_each: int,
    dtype: np.dtype[Any],
) -> Array:
    """Return a part of a label image with other ids.

    Parameters
    ----------
    labels : int array
        The part; ``each`` axes first.
    rows : index, ids and numbers
        Index of the ``each`` axes, id and new id of each object, ascending by index and id.
    start, shape : sequence of int, samples
        The first sample of the part, and the extents of the image.
    n_each : int
        Number of ``each`` axes.
    dtype : dtype
        That of the result.

    Raises
    ------
    TilingError
        If the labels hold an id that is not among the rows.
    """
    out = np.empty(labels.shape, dtype)
    index, ids, numbers = rows
    for at in np.ndindex(*labels.shape[:n_each]):
        number = index_of(at, start, shape)
        own = slice(*np.searchsorted(index, (number, number + 1)))
        out[at] = _looked_up(labels[at], ids[own], numbers[own], dtype)
    return out


def _looked_up(labels: Array, ids: Ints, numbers: Ints, dtype: np.dtype[Any]) -> Array:
    """Return the numbers of labels."""
    most = max(int(ids[-1]) if len(ids) else 0, int(labels.max(initial=0)))
    if most <= 4 * labels.size + 1024:
        table = np.zeros(most + 1, dtype)
        table[ids] = numbers
        out = table[labels]
        known = np.count_nonzero(out) == np.count_nonzero(labels)
    else:
        runs = Runs.of(labels)
        # Of int64 and uint64 numpy makes floats.
        found = runs.ids.astype(np.int64, copy=False)
        at = np.minimum(np.searchsorted(ids, found), max(len(ids) - 1, 0))
        known = not len(at) or (len(ids) > 0 and np.array_equal(ids[at], found))
        out = runs.painted(numbers[at].astype(dtype)) if known else labels
    if not known:
        raise TilingError(
            "the label image changed while it was read: it holds ids that were not there before. Let nothing "
            "write into it, and call again with overwrite=True."
        )
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
