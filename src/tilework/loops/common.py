"""What the eager interfaces share: grids of their own under the plan and the windows of `tiled_map`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tilework.errors import GridError
from tilework.function.output import Output, bind
from tilework.grid.axis import AxisGrid
from tilework.grid.weights import Blend
from tilework.plan.request import Layout, Request, make_plan, weighed
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source

__all__ = ["Cut", "Locked", "check_scale", "request_of"]

Index = tuple[int, ...]


class Locked:
    """Has a lock, which copies and other processes get anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()


def request_of(blend: Blend, chunks: Any) -> Request:
    """Return a request of which only what does not concern grids and axes is read."""
    return Request(crop=None, overlap=None, blend=blend, chunks=chunks)


def check_scale(grids: Sequence[AxisGrid], names: Sequence[str], scale: Sequence[Fraction]) -> None:
    """Raise a `GridError` where a crop's result would start or end between two samples."""
    for grid, name, factor in zip(grids, names, scale, strict=True):
        q = factor.denominator
        off = grid.nominals() % q
        if grid.crop % q or off.any():
            bad = grid.crop if grid.crop % q else int(grid.nominals()[off > 0][0])
            raise GridError(
                f"crops must start at multiples of {q}, the denominator of scale {factor}, and have such a "
                f"length; got {bad} on axis {name}. Choose size, step and overlap as multiples of {q}."
            )


@dataclass(frozen=True, slots=True)
class Cut:
    """An image cut along some of its axes."""

    axes: Index
    """Tiled axes of the image."""
    grids: tuple[AxisGrid, ...]
    """One grid per tiled axis."""
    names: tuple[str, ...]
    """Of the tiled axes, for messages."""
    rim: Index
    """Samples per side and tiled axis that get no weight."""

    @property
    def layout(self) -> Layout:
        """The same as what the plan and the windows take."""
        crop = tuple(grid.crop for grid in self.grids)
        return Layout(((),), (self.axes,), crop, self.grids, self.names, self.rim, ((0, 0),) * len(crop))

    def plan(self, source: Source, blend: Blend, *, scale: Any = 1, chunks: Any = "auto") -> TilePlan:
        """Return the plan of a function that keeps the crop's shape and dtype."""
        layout, request = self.layout, request_of(blend, chunks)
        shape = list(source.shape)
        for axis, grid in zip(self.axes, self.grids, strict=True):
            shape[axis] = grid.crop
        bound = bind(
            None, Output("float32", scale=scale), crop_shape=tuple(shape), crop_axes=self.axes,
            crop=layout.crop, margin=layout.margin, blend=blend, fill_value=0, result=None,
        )  # fmt: skip
        return make_plan((source,), layout, request, [weighed(bound, layout, request)])
