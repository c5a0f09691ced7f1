"""Crops cut out of what a task reads, and the calls of the function on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilework.boundary import AxisRead, read_padded
from tilework.canvas import Layer, check_dtype
from tilework.errors import ContractError, TilingError
from tilework.fn import as_results, is_batched
from tilework.geometry import Tile
from tilework.plan import Range
from tilework.source import BlockSource, MemoryPart, ZarrSource
from tilework.spec import Index, Spec

__all__ = ["Crops", "block_inputs", "run_tiles", "tiles_of"]

Array = np.ndarray[Any, Any]
Results = tuple[Tile, list[Array]]


class Crops:
    """Cuts crops out of what one task reads: one union of its tiles, or tile by tile if that is less."""

    def __init__(self, spec: Spec, number: int, ranges: Sequence[Range], given: Any, n_tiles: int) -> None:
        self._spec, self._number, self._given = spec, number, given
        self._axes, self._n_each = spec.source_axes[number], spec.plan.n_each
        grids = spec.plan.axes
        spans = [(g.read(a)[0], g.read(b - 1)[1]) for g, (a, b) in zip(grids, ranges, strict=True)]
        self._starts = [a for a, _ in spans]
        union = math.prod(b - a for a, b in spans)
        apart = n_tiles * math.prod(g.crop for g in grids) < union and given is None
        self._union = None if apart else self._read(spec.reads(number, ranges))
        # What a file was decoded into is nobody else's: the only crop in it needs no copy.
        self._copy = None if n_tiles == 1 and isinstance(spec.sources[number], ZarrSource) else True

    def _read(self, plans: Sequence[AxisRead]) -> Array:
        spec, source, given = self._spec, self._spec.sources[self._number], self._given
        if isinstance(given, MemoryPart):
            return read_padded(given.read, plans, spec.cval)
        if isinstance(source, BlockSource):
            blocks = dict(zip(block_inputs(source, plans), given, strict=True))
            return read_padded(lambda box: source.read_blocks(blocks, box), plans, spec.cval)
        uses, limit = spec.uses(self._number), spec.plan.cache_bytes
        return read_padded(lambda box: source.read(box, uses, limit), plans, spec.cval)

    def cut(self, tile: Tile) -> Array:
        """Return a copy of the crop of ``tile``, without its ``each`` axes."""
        if self._union is None:
            whole = self._read(self._spec.reads(self._number, [(i, i + 1) for i in tile.position]))
            starts: Sequence[int] = tile.read.start
        else:
            whole, starts = self._union, self._starts
        index: list[Any] = [slice(None)] * whole.ndim
        for d, axis in enumerate(self._axes):
            low = tile.read.start[d] - starts[d]
            index[axis] = low if d < self._n_each else slice(low, tile.read.stop[d] - starts[d])
        return np.array(whole[tuple(index)], order="C", copy=self._copy)


def block_inputs(source: BlockSource, plans: Sequence[AxisRead]) -> list[Index]:
    """Return the indices of the dask blocks that ``plans`` read, sorted."""
    boxes = itertools.product(*(plan.intervals for plan in plans))
    return sorted({index for box in boxes for index in source.touching(box)})


def tiles_of(spec: Spec, ranges: Sequence[Range]) -> list[Tile]:
    """Return the running tiles in ``ranges``, in raster order within each crop shape."""
    runs = spec.plan.runs
    tiles = [t for t in spec.plan.grid.within(ranges) if runs is None or runs[t.position]]
    if spec.plan.axes[-1].edge == "clip":
        # Batches hold one shape. Sorting keeps the order of summation the same without them.
        tiles.sort(key=lambda t: t.read.shape, reverse=True)
    return tiles


def run_tiles(
    spec: Spec, tiles: Sequence[Tile], crops: Sequence[Crops], skipped: list[int]
) -> Iterator[Results]:
    """Yield each tile with its results, in order, calling the function in batches.

    The numbers of tiles that the skip predicate leaves out are appended to ``skipped``.
    """
    size = spec.plan.batch_size or 1
    waiting: list[Results] = []
    for tile in tiles:
        cuts = [c.cut(tile) for c in crops]
        if spec.skip is not None and _skips(spec, tile, cuts):
            skipped.append(tile.index)
            continue
        if waiting and (len(waiting) == size or waiting[0][0].read.shape != tile.read.shape):
            yield from _call(spec, waiting)
            waiting = []
        waiting.append((tile, cuts))
    if waiting:
        yield from _call(spec, waiting)


def _skips(spec: Spec, tile: Tile, cuts: Sequence[Array]) -> bool:
    try:
        return bool(spec.skip(*cuts))
    except Exception as error:
        error.add_note(f"raised by skip= on {tile}")
        raise


def _call(spec: Spec, waiting: Sequence[Results]) -> Iterator[Results]:
    tiles = [tile for tile, _ in waiting]
    batched = spec.plan.batch_size is not None or is_batched(spec.fn)
    if batched:
        columns = zip(*(cuts for _, cuts in waiting), strict=True)
        arguments = [np.stack(column) for column in columns]
    else:
        arguments = waiting[0][1]
    extra = {} if not spec.pass_tile else {"tiles": tuple(tiles)} if batched else {"tile": tiles[0]}
    try:
        raw = spec.fn(*arguments, **extra)
    except Exception as error:
        error.add_note(f"raised by fn on {_where(tiles)}")
        raise
    try:
        results = as_results(raw, [layer.bound.key for layer in spec.layers])
        for layer, result in zip(spec.layers, results, strict=True):
            _check(layer, tiles[0], result, len(tiles) if batched else None)
    except TilingError as error:
        raise type(error)(f"{error} [{_where(tiles)}]") from None
    for number, tile in enumerate(tiles):
        yield tile, [r[number] for r in results] if batched else results


def _where(tiles: Sequence[Tile]) -> str:
    if len(tiles) == 1:
        return str(tiles[0])
    return f"a batch of {len(tiles)} tiles, from {tiles[0]} to {tiles[-1]}"


def _check(layer: Layer, tile: Tile, result: Array, batch: int | None) -> None:
    """Raise a `ContractError` unless ``result`` has the declared shape and dtype."""
    shape = result.shape
    if batch is not None:
        if not result.ndim or shape[0] != batch:
            raise ContractError(
                f"the function got a batch of {batch} crops and returned shape {shape}; the first "
                "axis must be the batch."
            )
        shape = shape[1:]
    spans = (w.result(i) for w, i in zip(layer.weights, tile.position, strict=True))
    expected = layer.layout([b - a for a, b in spans])[layer.n_each :]
    if shape != expected:
        which = "" if layer.bound.key is None else f" for output {layer.bound.key!r}"
        raise ContractError(f"the function returned shape {shape}{which}; expected {expected}.")
    check_dtype(layer.bound, result)
    layer.bound.accumulator(result.dtype)  # refuses what this blend cannot add up
