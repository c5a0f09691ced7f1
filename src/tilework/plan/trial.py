"""One call of the function on a crop of zeros, to find its outputs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework._types import Array, Function, Index
from tilework.errors import TilingError
from tilework.function.calling import as_results, call_whole, in_structure, is_batched, keys_of, without_batch
from tilework.function.combining import Combined
from tilework.function.guard import Guard
from tilework.function.load_once import LoadOnce
from tilework.function.normalizing import bare_function
from tilework.grid.tiles import TileGrid

if TYPE_CHECKING:
    from tilework.plan.request import Layout
    from tilework.source.base import Source

__all__ = ["active_client", "call_on_zeros"]

NOTE = "called on zeros to find its output; declare output= or dtype="


@dataclass(frozen=True, slots=True)
class _Fact:
    """What is known of one array that a function returned."""

    shape: Index
    dtype: np.dtype[Any]


def call_on_zeros(
    fn: Function,
    sources: Sequence[Source],
    layout: Layout,
    *,
    pass_tile: bool,
    batched: bool,
    whole: int = 1,
) -> tuple[Any, list[Array]]:
    """Return the structure in which ``fn`` returns its arrays for a crop of zeros, and the arrays.

    The crop has the true shape and dtype. Only shape and dtype of the results mean something; their values
    take no memory. They come without the batch axis. ``whole`` is the fewest crops of a batch.

    With an active cluster a `load_once` function is called on a worker: the model may not fit here.
    """
    if isinstance(fn, Combined):
        return _combined(fn, sources, layout, pass_tile=pass_tile, batched=batched, whole=whole)
    crops = [np.zeros(layout.crop_of(s, number)[0], s.dtype) for number, s in enumerate(sources)]
    batched = batched or is_batched(fn)
    extra: dict[str, Any] = {}
    if pass_tile:
        # Where no crop fits, the tile is that of an image that one crop fills.
        grid = TileGrid(tuple(g if len(g) else replace(g, extent=g.crop) for g in layout.grids))
        tile = grid.tile((0,) * len(layout.grids))
        extra = {"tiles": (tile,)} if batched else {"tile": tile}
    client = active_client() if isinstance(bare_function(fn), LoadOnce) else None
    if whole > 1:
        fn = functools.partial(call_whole, fn, whole)
    if client is not None:
        form, facts = client.submit(_facts, fn, crops, batched, extra, pure=False).result()
    else:
        form, facts = _facts(fn, crops, batched, extra)
    return form, [_nothing(fact.shape, fact.dtype) for fact in facts]


def _combined(
    fn: Combined,
    sources: Sequence[Source],
    layout: Layout,
    *,
    pass_tile: bool,
    batched: bool,
    whole: int,
) -> tuple[Any, list[Array]]:
    """Return what `call_on_zeros` does, from a call of each function that is combined."""
    times = len(fn.variants(len(layout.crop)))
    whole = whole * times if whole > 1 else 1  # all variants of a batch are in one call
    found = [
        call_on_zeros(m, sources, layout, pass_tile=pass_tile, batched=batched, whole=whole)
        for m in fn.members
    ]
    form = found[0][0]
    for number, (other, _) in enumerate(found):
        if other != form:
            raise TilingError(
                "the functions of an ensemble must return the same arrays; function 0 returns "
                f"{_keys(form)}, function {number} {_keys(other)}."
            )
    shapes = [[a.shape for a in arrays] for _, arrays in found]
    dtypes = fn.trial(shapes, [[a.dtype for a in arrays] for _, arrays in found], len(layout.crop))
    return form, [_nothing(shape, dtype) for shape, dtype in zip(shapes[0], dtypes, strict=True)]


def _keys(form: Any) -> str:
    return "one array" if form is None else f"{type(form).__name__} of {list(form)}"


def _nothing(shape: Index, dtype: np.dtype[Any]) -> Array:
    """Return zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _facts(
    fn: Function, crops: Sequence[Array], batched: bool, extra: Mapping[str, Any]
) -> tuple[Any, list[_Fact]]:
    """Return the keys of what ``fn`` returns, in its structure, and what travels back from a worker."""
    try:
        # A division by zero says nothing of the user's image.
        with Guard(lambda: NOTE), np.errstate(all="ignore"):
            result = fn(*(c[None] if batched else c for c in crops), **extra)
            keys = keys_of(result)
            arrays = as_results(result, keys)
            arrays = without_batch(arrays) if batched else arrays
    except TilingError as error:
        raise type(error)(f"{error} [{NOTE}]") from None
    return in_structure(result, keys), [_Fact(a.shape, a.dtype) for a in arrays]


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
        return None  # a task must not wait for another task: it may hold the only thread
    try:
        return distributed.default_client()
    except ValueError:
        return None
