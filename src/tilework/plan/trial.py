"""One call of the function on a crop of zeros, to see what it returns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework._types import Array, Function
from tilework.errors import ContractError, TilingError
from tilework.function.calling import as_results, is_batched
from tilework.function.load_once import LoadOnce
from tilework.function.output import Output, Outputs
from tilework.grid.tiles import TileGrid

if TYPE_CHECKING:
    from tilework.plan.request import Layout
    from tilework.source.base import Source

__all__ = ["Shown", "active_client", "call_on_zeros"]

NOTE = "called on zeros to find its output; declare output= or dtype="


@dataclass(frozen=True, slots=True)
class Shown:
    """What a function returned for a crop of zeros, batch excluded."""

    keys: list[Any]
    """The keys of a dict, the numbers of a tuple; [None] for one array."""
    results: list[Array]
    """Arrays of the right shape and dtype; their values mean nothing, and take no memory."""

    def outputs(self) -> Outputs:
        """Return undeclared outputs of the same structure."""
        if self.keys == [None]:
            return Output()
        if isinstance(self.keys[0], str):
            return {key: Output() for key in self.keys}
        return tuple(Output() for _ in self.keys)


def call_on_zeros(
    fn: Function, sources: Sequence[Source], layout: Layout, *, pass_tile: bool, batched: bool
) -> Shown:
    """Return what ``fn`` returns for one crop of zeros of the true shape and dtype.

    With an active cluster a `load_once` function is called on a worker: the model may not fit here.
    """
    crops = [np.zeros(layout.crop_of(s, number)[0], s.dtype) for number, s in enumerate(sources)]
    batched = batched or is_batched(fn)
    extra: dict[str, Any] = {}
    if pass_tile:
        grid = TileGrid(layout.grids)
        tiles = (grid.tile((0,) * len(layout.grids)),) if len(grid) else ()
        extra = {"tiles": tiles} if batched else {"tile": tiles[0] if tiles else None}
    client = active_client() if isinstance(fn, LoadOnce) else None
    if client is not None:
        keys, facts = client.submit(_facts, fn, crops, batched, extra, pure=False).result()
    else:
        keys, facts = _facts(fn, crops, batched, extra)
    return Shown(keys, [np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in facts])


def _facts(
    fn: Function, crops: Sequence[Array], batched: bool, extra: Mapping[str, Any]
) -> tuple[list[Any], list[tuple[tuple[int, ...], np.dtype[Any]]]]:
    """Return the keys of what ``fn`` returns, and shapes and dtypes: these travel back from a worker."""
    try:
        result = fn(*(c[None] if batched else c for c in crops), **extra)
        if isinstance(result, Mapping):
            keys: list[Any] = list(result)
        elif isinstance(result, tuple | list):
            keys = list(range(len(result)))
        else:
            keys = [None]
        if not keys:
            raise ContractError("the function returned an empty tuple or dict.")
        arrays = as_results(result, keys)
        if batched and any(not a.ndim or a.shape[0] != 1 for a in arrays):
            raise ContractError(
                f"the function got a batch of 1 crop and returned shapes {[a.shape for a in arrays]}; "
                "the first axis must be the batch."
            )
    except TilingError as error:
        raise type(error)(f"{error} [{NOTE}]") from None
    except Exception as error:
        error.add_note(NOTE)
        raise
    return keys, [(a.shape[1:] if batched else a.shape, a.dtype) for a in arrays]


def active_client() -> Any:
    """Return the active distributed client, or None; does not import distributed."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None  # a task must not wait for another: it may hold the only thread
    try:
        return distributed.default_client()
    except ValueError:
        return None
