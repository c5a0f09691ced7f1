"""Which objects of a label image to keep, and the new numbers of those."""

from __future__ import annotations

from collections.abc import Callable
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
    """New numbers of the objects that are kept, 1 to N for each index, in raster order of first samples.

    Examples
    --------
    >>> numbers = Numbers.of(
    ...     np.zeros(3, int), np.array([2, 5, 9]), np.array([40, 7, 0]), np.array([1, 1, 0]) > 0
    ... )
    >>> numbers.ids.tolist(), numbers.numbers.tolist()
    ([2, 5], [2, 1])
    """

    index: Ints
    """Raveled index of the ``each`` axes, ascending."""
    ids: Ints
    """The ids that are kept, ascending for each index."""
    numbers: Ints
    """Their numbers."""

    @classmethod
    def of(cls, index: Ints, ids: Ints, first: Ints, keep: Bits) -> Numbers:
        """Return the numbers of the objects for which ``keep`` is true, of one row per object.

        Parameters
        ----------
        index, ids, first : int arrays
            As those of `Rows.merged`, in its order.
        keep : bool array
        """
        index, ids, first = index[keep], ids[keep], first[keep]
        order = np.lexsort((first, index))
        begins = np.searchsorted(index, index)  # ascending already
        numbers = np.empty(len(ids), np.int64)
        numbers[order] = np.arange(len(ids)) - begins + 1
        return cls(index, ids, numbers)

    @property
    def most(self) -> int:
        """The largest number; 0 if nothing is kept."""
        return int(self.numbers.max(initial=0))

    def at(self, index: int) -> tuple[Ints, Ints]:
        """Return the ids that are kept at one index, ascending, and their numbers."""
        a, b = np.searchsorted(self.index, [index, index + 1])
        return self.ids[a:b], self.numbers[a:b]


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
        raise TilingError(
            f"the condition must give one bool for each of {len(table)} objects, as in lambda table: "
            f'table["area"] > 50; got {brief(found)}, of shape {keep.shape} and dtype {keep.dtype}.'
        )
    return keep
