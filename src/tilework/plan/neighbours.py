"""The blocks around a block: which own tiles, and which seams reach where; for many blocks of one plan."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence

from tilework._types import Index
from tilework.plan.axis_table import AxisTable
from tilework.plan.tile_mask import TileMask

__all__ = ["Neighbours"]


class Neighbours:
    """Answers the same questions about many blocks of a plan.

    It looks up what a block has in common with all blocks of its row, so that the answer about one block
    takes about a microsecond.

    Parameters
    ----------
    tables : sequence of AxisTable
        One table per axis.
    mask : TileMask or None
        Which tiles run; None: all.
    alone : collection of int
        Axes across which blocks share no tiles: each runs all with weight in it, as if it owned them.
    """

    def __init__(
        self, tables: Sequence[AxisTable], mask: TileMask | None, alone: Collection[int] = ()
    ) -> None:
        self._runs = None if mask is None else mask.bits
        owned = [t.touch if d in alone else t.owned for d, t in enumerate(tables)]
        self._owns = [[a < b for a, b in spans] for spans in owned]
        self._touched = [[a < b for a, b in t.touch] for t in tables]
        self._forth = [[r and d not in alone for r in t.reaches] for d, t in enumerate(tables)]
        self._back = [[False, *forth[:-1]] for forth in self._forth]
        self._all_own = self._runs is None and all(map(all, self._owns))
        # Under a mask, the groups of tiles of each block, and whether one of them runs as far as was asked.
        self._tiles = {}
        if mask is not None:
            touches = [t.touches for t in tables]
            owns = [touches[d] if d in alone else t.owns for d, t in enumerate(tables)]
            for kind, along in ((True, owns), (False, touches)):
                groups = [mask.groups(d, spans).pairs() for d, spans in enumerate(along)]
                self._tiles[kind] = [[slice(*pair) for pair in pairs] for pairs in groups]
        self._known: dict[bool, dict[Index, bool]] = {True: {}, False: {}}
        self._steps: dict[tuple[bool, ...], list[Index]] = {}

    def owns(self, index: Index) -> bool:
        """Return whether a block owns a tile that runs."""
        return self._all_own or self._has(self._owns, index, owned=True)

    def owners_along(self, axis: int) -> list[int]:
        """Return the blocks along an axis that own tiles, whether or not these run."""
        return [b for b, owns in enumerate(self._owns[axis]) if owns]

    def touched(self, index: Index) -> bool:
        """Return whether a tile that runs has weight in a block."""
        return self._has(self._touched, index, owned=False)

    def earlier(self, index: Index) -> list[Index]:
        """Return the earlier neighbours whose seam reaches into a block, in raster order."""
        steps = self._open(self._back, index)
        near = [tuple(map(operator.sub, index, step)) for step in reversed(steps)]
        return near if self._all_own else [block for block in near if self.owns(block)]

    def later(self, index: Index) -> list[Index]:
        """Return the steps per axis to the later neighbours into which the tiles of a block reach."""
        steps = self._open(self._forth, index)
        if self._runs is None:
            return steps
        # A block that no running tile touches is only filled, and needs no seam.
        return [s for s in steps if self.touched(tuple(map(operator.add, index, s)))]

    def _open(self, flags: list[list[bool]], index: Index) -> list[Index]:
        """Return the steps by 0 or 1 along the axes whose flag is true for a block, but not the step by 0."""
        key = tuple(map(operator.getitem, flags, index))
        steps = self._steps.get(key)
        if steps is None:
            steps = [s for s in itertools.product(*((0, 1) if on else (0,) for on in key)) if any(s)]
            self._steps[key] = steps
        return steps

    def _has(self, flags: list[list[bool]], index: Index, *, owned: bool) -> bool:
        if self._runs is None:
            return all(map(operator.getitem, flags, index))
        known = self._known[owned]
        has = known.get(index)
        if has is None:
            tiles = tuple(map(operator.getitem, self._tiles[owned], index))
            has = known[index] = bool(self._runs[tiles].any())
        return has
