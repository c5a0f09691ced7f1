"""Code that the loops share: exceptions, locks, plans and weights for their own grids."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ParamSpec, TypeVar

from tilework._types import Index
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.bound import BoundOutput, bind
from tilework.function.output import Output
from tilework.grid.axis import AxisGrid
from tilework.grid.weights import Blend
from tilework.plan.request import Layout, Request, make_plan, weighed
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source

__all__ = ["Cut", "Locked", "UnknownMode", "check_scale", "raises_as_ancestors"]

P = ParamSpec("P")
R = TypeVar("R")


# -- exceptions ---------------------------------------------------------------------------------------------


class LoopError(TilingError, RuntimeError):
    """A `TilingError` that code for Patchly, which raises `RuntimeError`, catches too."""


class LoopGridError(GridError, RuntimeError):
    """A `GridError` that code for Patchly catches too."""


class LoopContractError(ContractError, RuntimeError):
    """A `ContractError` that code for Patchly catches too."""


class LoopTypeError(TypeError, ValueError, RuntimeError):
    """A `TypeError` that code for Ryomen, which raises `ValueError`, and for Patchly catches too."""


class UnknownMode(TilingError, NotImplementedError):
    """An unknown sampling mode; Patchly raises `NotImplementedError`."""


_AS_ANCESTORS: dict[type[Exception], type[Exception]] = {
    TilingError: LoopError,
    GridError: LoopGridError,
    ContractError: LoopContractError,
    TypeError: LoopTypeError,
}


def raises_as_ancestors(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method whose errors are caught by what is written for Ryomen and Patchly, too."""
    # Later, a TypeError may be one of a function of the user.
    ours = (TilingError, TypeError) if method.__name__ == "__init__" else (TilingError,)

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except ours as error:
            kind = _AS_ANCESTORS.get(type(error))
            if kind is None:
                raise
            told = kind(*error.args)
            for note in getattr(error, "__notes__", ()):
                told.add_note(note)
            raise told.with_traceback(error.__traceback__) from error.__cause__

    return called


# -- plans and weights --------------------------------------------------------------------------------------


class Locked:
    """Base of objects with a lock; copies and other processes get a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()


def check_scale(grids: Sequence[AxisGrid], names: Sequence[str], scale: Sequence[Fraction]) -> None:
    """Raise a `GridError` if the result of a crop would start or end between two samples."""
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
    """Names of the tiled axes, for messages."""
    rim: Index
    """Outermost samples of a crop that get no weight, per side and tiled axis."""

    @classmethod
    def numbered(cls, axes: Index, grids: tuple[AxisGrid, ...]) -> Cut:
        """Return a cut without rim, with tiled axes named 0, 1, 2, ..."""
        return cls(axes, grids, tuple(map(str, range(len(grids)))), (0,) * len(grids))

    @property
    def _layout(self) -> Layout:
        crop = tuple(grid.crop for grid in self.grids)
        return Layout(((),), (self.axes,), crop, self.grids, self.names, self.rim, ((0, 0),) * len(crop))

    def weighed(self, output: BoundOutput) -> BoundOutput:
        """Return ``output`` with its weights on these grids."""
        return weighed(output, self._layout, _request(output.blend))

    def plan(self, source: Source, blend: Blend, *, scale: Any = 1, chunks: Any = "auto") -> TilePlan:
        """Return the plan of a function that keeps the crop's shape and returns float32."""
        layout = self._layout
        shape = list(source.shape)
        for axis, grid in zip(self.axes, self.grids, strict=True):
            shape[axis] = grid.crop
        bound = bind(
            None, Output("float32", scale=scale), crop_shape=tuple(shape), crop_axes=self.axes,
            crop=layout.crop, margin=layout.margin, blend=blend, fill_value=0, result=None,
        )  # fmt: skip
        return make_plan((source,), layout, _request(blend, chunks), [self.weighed(bound)])


def _request(blend: Blend, chunks: Any = "auto") -> Request:
    # The cut has its own grids and axes, so those of the request are not used.
    return Request(crop=None, overlap=None, blend=blend, chunks=chunks)
