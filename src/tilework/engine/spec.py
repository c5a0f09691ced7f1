"""`Spec`: all that the tasks of one `tiled_map` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tilework.engine.canvas import Layer
from tilework.plan.tile_plan import Range, TilePlan
from tilework.source.base import Source
from tilework.source.padding import AxisRead, Boundary

__all__ = ["Index", "Spec"]

Array = np.ndarray[Any, Any]
Index = tuple[int, ...]


@dataclass(slots=True)
class Spec:
    """All that the tasks of one `tiled_map` share: one graph key, never inlined."""

    plan: TilePlan
    sources: tuple[Source, ...]
    source_axes: tuple[Index, ...]
    """Per source, its axis for every grid axis."""
    fn: Any
    layers: tuple[Layer, ...]
    boundary: Boundary = "reflect"
    cval: Any = 0
    skip: Any = None
    """Predicate on a crop: true means that the function does not run on it."""
    pass_tile: bool = False
    many: bool = False
    """Whether the function returns a tuple or dict."""
    fixed: bool = False
    """Whether the caller chose the blocks."""
    todo: TilePlan | None = None
    """The plan with only those tiles in its mask that a run is to compute; None: all that run."""
    on_error: Any = "raise"
    """What is done about a tile that fails: "raise", "fill", or a callable that gets tile and exception."""
    retries: int = 0
    """Further attempts at a tile before it has failed, unless ``on_error`` is "raise"."""
    end: Any = None
    """When writing, takes ``(spec, index, block, failures)`` in the last task of each block."""
    _uses: dict[int, tuple[Array, ...]] = field(default_factory=dict, repr=False)

    @property
    def active(self) -> TilePlan:
        """The plan whose mask says which tiles this run computes; `plan` says which have a result at all."""
        return self.todo or self.plan

    def ranges(self, index: Index, *, owned: bool) -> list[Range]:
        """Return the tiles per axis of a group (``owned``) or block, less idle ones at the ends."""
        tables = self.plan.tables
        ranges = [(t.owned if owned else t.touch)[b] for t, b in zip(tables, index, strict=True)]
        runs = self.active.runs
        if runs is None:
            return ranges
        part = runs[tuple(slice(a, b) for a, b in ranges)]
        for d in range(part.ndim):
            on = np.flatnonzero(part.any(axis=tuple(a for a in range(part.ndim) if a != d)))
            first = ranges[d][0]
            ranges[d] = (first + int(on[0]), first + int(on[-1]) + 1) if on.size else (first, first)
        return ranges

    def reads(self, source: int, ranges: Sequence[Range]) -> list[AxisRead]:
        """Return what a task must read of one source for the tiles in ``ranges``."""
        shape = self.sources[source].shape
        plans = [AxisRead(((0, n),)) for n in shape]
        for axis, grid, (first, last) in zip(self.source_axes[source], self.plan.axes, ranges, strict=True):
            plans[axis] = AxisRead.plan(
                grid.read(first)[0], grid.read(last - 1)[1], grid.extent, self.boundary
            )
        return plans

    def uses(self, source: int) -> tuple[Array, ...] | None:
        """Return how many blocks read each chunk of a source, along each of its axes."""
        chunks = self.sources[source].chunks
        if chunks is None:
            return None
        if source not in self._uses:
            counts = [
                np.ones(-(-n // c), np.int64) for n, c in zip(self.sources[source].shape, chunks, strict=True)
            ]
            for axis, grid, table in zip(
                self.source_axes[source], self.plan.axes, self.plan.tables, strict=True
            ):
                reads = table.owned_read if self.plan.reuse == "share" else table.touch_read
                counts[axis][:] = 0
                for a, b in reads:
                    counts[axis][max(a, 0) // chunks[axis] : -(-min(b, grid.extent) // chunks[axis])] += b > a
            self._uses[source] = tuple(counts)
        return self._uses[source]

    def __reduce__(self) -> tuple[Any, ...]:
        return Spec, tuple(getattr(self, f.name) for f in fields(self) if f.name != "_uses")
