"""Which objects of a label image to keep, and the new numbers of those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import brief, noted
from tilework._types import Bits, Ints
from tilework.errors import TilingError
from tilework.objects.table import Table

__all__ = ["Numbers", "kept_rows"]


@dataclass(frozen=True, slots=True)
class Numbers:
    """New numbers of objects: of those that are kept 1 to N for each index, in raster order of first samples.

    Examples
    --------
    >>> table = Table({"label": [2, 5, 9], "first": [40, 7, 0]})
    >>> numbers = Numbers.of(table, np.array([True, True, False]), {})
    >>> numbers.of_ids(np.array([9, 5, 2, 5])).tolist()
    [0, 1, 2, 1]
    """

    index: Ints
    """Raveled index of the ``each`` axes, ascending."""
    ids: Ints
    """All ids, ascending for each index."""
    numbers: Ints
    """Their numbers; 0 for those that are not kept."""

    @classmethod
    def of(cls, table: Table, keep: Bits, each: Mapping[str, int]) -> Numbers:
        """Return the numbers of the objects of a table.

        Parameters
        ----------
        table : Table
            One row per object, in any order.
        keep : bool array
            Which of them to keep.
        each : mapping of str to int
            Names and extents of the ``each`` axes.

        Raises
        ------
        TilingError
            If the table has no such columns, or two rows for one object.
        """
        if missing := [name for name in ("label", "first", *each) if name not in table]:
            raise TilingError(
                f"the table has no columns {missing}; give that of measure_labels of these labels, with the "
                "same each=."
            )
        index = np.zeros(len(table), np.int64)
        for name, extent in each.items():
            index = index * extent + table[name]
        ids, first = (table[name].astype(np.int64, copy=False) for name in ("label", "first"))
        numbers = np.zeros(len(ids), np.int64)
        kept = np.flatnonzero(keep)
        kept = kept[np.lexsort((first[kept], index[kept]))]
        numbers[kept] = np.arange(len(kept)) - np.searchsorted(index[kept], index[kept]) + 1
        order = np.lexsort((ids, index))
        index, ids = index[order], ids[order]
        twice = np.flatnonzero((index[1:] == index[:-1]) & (ids[1:] == ids[:-1]))
        if len(twice):
            raise TilingError(f"the table has two rows for object {ids[twice[0]]}; each object has one.")
        return cls(index, ids, numbers[order])

    @property
    def most(self) -> int:
        """The largest number; 0 if nothing is kept."""
        return int(self.numbers.max(initial=0))

    def of_ids(self, ids: Ints, index: int = 0) -> Ints:
        """Return the numbers of objects of one index by their ids.

        Raises
        ------
        TilingError
            If there is no such object.
        """
        a, b = np.searchsorted(self.index, [index, index + 1])
        known = self.ids[a:b]
        row = np.searchsorted(known, ids)
        right = row < len(known)
        right[right] = known[row[right]] == ids[right]
        if not right.all():
            raise TilingError(
                f"the labels hold the object {ids[~right][0]}, which the table does not: the table is that "
                "of other labels, or the labels were changed. Measure them again."
            )
        return self.numbers[a:b][row]


def kept_rows(condition: Callable[[Table], Any] | Any, table: Table) -> Bits:
    """Return which rows of a table meet a condition: a function of the table, or one bool per row.

    Raises
    ------
    TilingError
        If there is not one bool per row.
    """
    found = noted("raised by the condition", condition, table) if callable(condition) else condition
    keep = np.asarray(found)
    if keep.dtype != bool or keep.shape != (len(table),):
        rows = ""
        if keep.dtype.kind in "iu":
            rows = " Of numbers of rows: numpy.isin(numpy.arange(len(table)), rows)."
        raise TilingError(
            f"the condition must give one bool for each of {len(table)} objects, as in lambda table: "
            f'table["area"] > 50; got {brief(found)}, of shape {keep.shape} and dtype {keep.dtype}.{rows}'
        )
    return keep
