"""Tiles of a result that run one by one, and a cache of what they return."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from tilework._types import Array, Index
from tilework.engine.reading import CropCutter, looker_of, run_tiles
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.where import Where
from tilework.function.guard import current_worker
from tilework.function.load_once import in_task
from tilework.graph.nodes import block_of
from tilework.grid.tiles import Tile
from tilework.source import kept
from tilework.source.base import BlockSource, unmasked

__all__ = ["TileCache", "TileRunner"]


class TileCache:
    """Results of tiles, by runner and number of the tile; those used least recently are dropped first.

    Parameters
    ----------
    limit : int, bytes
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[tuple[int, int], list[Array] | None] = OrderedDict()
        self._bytes = 0
        # Held while tiles run: a runner may read tiles of another one.
        self.lock = threading.RLock()
        self._runners = itertools.count()
        self.blocks: dict[tuple[int, int, Index], Array] = {}
        """Computed blocks of dask arrays by runner, source and index, until they are dropped."""

    def new(self) -> int:
        """Return a number for one more runner."""
        return next(self._runners)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._held

    def use(self, key: tuple[int, int]) -> list[Array] | None:
        """Return what is held at ``key``, and hold it longer."""
        self._held.move_to_end(key)
        return self._held[key]

    def peek(self, key: tuple[int, int]) -> list[Array] | None:
        """Return what is held at ``key``; None if nothing is."""
        return self._held.get(key)

    def of(self, runner: int) -> list[int]:
        """Return the numbers of the tiles of a runner that are held with results."""
        return [number for (own, number), found in self._held.items() if own == runner and found is not None]

    def hold(self, key: tuple[int, int], results: list[Array] | None) -> None:
        """Hold the results of a tile; None for one without a result."""
        if not self._limit:
            return
        self._held[key] = results
        self._bytes += sum(r.nbytes for r in results or ())
        while self._bytes > self._limit and self._held:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= sum(r.nbytes for r in dropped or ())


class TileRunner:
    """Runs tiles of one `Spec`; results stay in a cache, which may serve several runners.

    Parameters
    ----------
    spec : Spec
    cache : TileCache
    below : sequence of TileRunner
        Those whose results are read.
    """

    def __init__(self, spec: Spec, cache: TileCache, below: Sequence[TileRunner] = ()) -> None:
        self.spec, self._cache, self._own, self._below = spec, cache, cache.new(), below
        self.lock = cache.lock
        self.ran = 0

    def get(self, tiles: Sequence[Tile]) -> dict[int, list[Array] | None]:
        """Return the results of ``tiles`` by number; None for tiles that the skip predicate leaves out."""
        found = {t.index: self._cache.use(k) for t in tiles if (k := (self._own, t.index)) in self._cache}
        missing = [t for t in tiles if t.index not in found]
        if missing:
            for number, results in self._run(missing):
                found[number] = results
                self._cache.hold((self._own, number), results)
        return found

    def _run(self, tiles: Sequence[Tile]) -> list[tuple[int, list[Array] | None]]:
        with kept.task(inner=True), in_task():
            found = self.call(tiles, self.crops(tiles))
        ran = {number for number, _ in found}
        self.ran += len(found)
        return [*found, *((t.index, None) for t in tiles if t.index not in ran)]

    def peek(self, number: int) -> list[Array] | None:
        """Return the results of a tile; None if they are not in the cache."""
        return self._cache.peek((self._own, number))

    def held(self) -> list[int]:
        """Return the numbers of the tiles with results in the cache."""
        return self._cache.of(self._own)

    def crops(self, tiles: Sequence[Tile]) -> list[CropCutter]:
        """Return the cutters of ``tiles``, one per source."""
        ranges = [(min(column), max(column) + 1) for column in zip(*(t.position for t in tiles), strict=True)]
        numbers = range(len(self.spec.sources))
        return [CropCutter(self.spec, k, ranges, self._given(k, ranges), len(tiles)) for k in numbers]

    def call(
        self, tiles: Sequence[Tile], crops: Sequence[CropCutter]
    ) -> list[tuple[int, list[Array] | None]]:
        """Return number and results of every tile, except those that the skip predicate leaves out.

        Results are those that `part_of_block` takes.
        """
        found: list[tuple[int, list[Array] | None]] = []
        looker = looker_of(self.spec, crops)
        for tile, results in run_tiles(self.spec, tiles, crops, [], [], looker):
            own = [r.copy() for r in results]  # a view would keep its whole batch alive
            if looker is not None:
                box, valid = looker.within(tile.read)
                own.append(np.ones(box.shape, bool) if valid is None else valid)
            found.append((tile.index, own))
        return found

    def _given(self, number: int, ranges: Sequence[tuple[int, int]]) -> Any:
        """Return the data of a source that a task would be given, if tasks do not read it themselves."""
        source = self.spec.sources[number]
        if source.handle is None:
            raise TilingError("the source of this result is in another process; view it where it was made.")
        need: Any = source.needs(self.spec.reads(number, ranges)) if source.given else None
        if not isinstance(source, BlockSource):
            return need
        from dask.base import compute

        held = self._cache.blocks
        missing = [index for index in need if (self._own, number, index) not in held]
        with self.outside():
            computed = compute(*(_block(source, index) for index in missing))
        held |= {(self._own, number, i): unmasked(b) for i, b in zip(missing, computed, strict=True)}
        return [held[self._own, number, index] for index in need]

    def outside(self) -> AbstractContextManager[None]:
        """Return a context in which a task of a worker may wait for the blocks of a dask source.

        It is entered before `lock`: a task that waits for that must not hold the thread that computes blocks.
        """
        waits = self.waits and current_worker() is not None
        return outside_of_the_pool(Where.find().client if waits else None)

    @property
    def waits(self) -> bool:
        """Whether it, or a runner below, waits for blocks of dask arrays."""
        return any(s.dask_name is not None for s in self.spec.sources) or any(t.waits for t in self._below)

    def forget(self) -> None:
        """Drop the computed blocks of dask sources, also those below; only neighbouring tiles share them."""
        self._cache.blocks.clear()


def _block(source: BlockSource, index: Index) -> Any:
    """Return a block of a dask array as a dask array."""
    if not hasattr(source.handle, "expr"):
        return block_of(source.handle, index)
    # Behind query planning dask has only slices, which hide that a block is too long.
    return source.handle[tuple(slice(o[i], o[i + 1]) for o, i in zip(source.offsets, index, strict=True))]
