"""`view`: a result that is indexed like a numpy array and runs only the tiles that are looked at."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilework.arguments import parse_bytes
from tilework.boxes import blocks_of, part_of_block, tiles_touching
from tilework.cache import CHUNKS
from tilework.calls import Crops, block_inputs, run_tiles
from tilework.errors import TilingError
from tilework.geometry import Box, Tile
from tilework.graph import find_spec
from tilework.source import BlockSource, MemorySource
from tilework.spec import Spec

__all__ = ["TileRunner", "View", "view"]

Array = np.ndarray[Any, Any]


class TileRunner:
    """Runs tiles of one `Spec` and keeps their results, the least recently used dropped beyond a limit."""

    def __init__(self, spec: Spec, limit: int) -> None:
        self.spec, self._limit = spec, limit
        self._held: OrderedDict[int, list[Array] | None] = OrderedDict()
        self._bytes = 0
        self.lock = threading.RLock()
        self.ran = 0

    def get(self, tiles: Sequence[Tile]) -> dict[int, list[Array] | None]:
        """Return the results of ``tiles`` by number; None for those that the skip predicate left out."""
        found = {t.index: self._held[t.index] for t in tiles if t.index in self._held}
        for number in found:
            self._held.move_to_end(number)
        missing = [t for t in tiles if t.index not in found]
        if missing:
            for number, results in self._run(missing):
                found[number] = results
                self._keep(number, results)
        return found

    def _run(self, tiles: Sequence[Tile]) -> list[tuple[int, list[Array] | None]]:
        with CHUNKS.active():
            found = self.call(tiles, self.crops(tiles))
        ran = {number for number, _ in found}
        self.ran += len(found)
        return [*found, *((t.index, None) for t in tiles if t.index not in ran)]

    def crops(self, tiles: Sequence[Tile]) -> list[Crops]:
        """Return what the crops of ``tiles`` are cut out of, one per source."""
        ranges = [(min(column), max(column) + 1) for column in zip(*(t.position for t in tiles), strict=True)]
        numbers = range(len(self.spec.sources))
        return [Crops(self.spec, k, ranges, self._given(k, ranges), len(tiles)) for k in numbers]

    def call(self, tiles: Sequence[Tile], crops: Sequence[Crops]) -> list[tuple[int, list[Array] | None]]:
        """Return number and results of every tile that the skip predicate does not leave out."""
        # Copies: a result may be a view of a whole batch, which would be kept with it.
        return [(t.index, [r.copy() for r in rs]) for t, rs in run_tiles(self.spec, tiles, crops, [], [])]

    def _given(self, number: int, ranges: Sequence[tuple[int, int]]) -> Any:
        """Return what a task would be given of a source that it does not read itself."""
        source = self.spec.sources[number]
        if source.handle is None:
            raise TilingError("the source of this result is in another process; view it where it was made.")
        if isinstance(source, MemorySource):
            return source.part([(0, n) for n in source.shape])
        if isinstance(source, BlockSource):
            from dask.base import compute

            reads = self.spec.reads(number, ranges)
            blocks = [source.handle.blocks[index] for index in block_inputs(source, reads)]
            return [np.asarray(b) for b in compute(*blocks)]
        return None

    def _keep(self, number: int, results: list[Array] | None) -> None:
        self._held[number] = results
        self._bytes += sum(r.nbytes for r in results or ())
        while self._bytes > self._limit and self._held:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= sum(r.nbytes for r in dropped or ())


class View:
    """A lazy result as an array to look at; made by `view`."""

    def __init__(self, array: Any, tiles: TileRunner, number: int, *, verbose: bool) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = array.dtype
        self.ndim = len(self.shape)
        self._tiles, self._number, self._verbose = tiles, number, verbose

    @property
    def number(self) -> int:
        """Which of the outputs of one call this is."""
        return self._number

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole result, were it computed."""
        return self.size * int(self.dtype.itemsize)

    @property
    def ran(self) -> int:
        """How many crops ran so far, for this view and those of the same call."""
        return self._tiles.ran

    @property
    def crops(self) -> int:
        """How many crops the whole result takes."""
        plan = self._tiles.spec.plan
        return plan.count([(0, n) for n in plan.grid_shape])

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return a part as a numpy array, running exactly the tiles that touch it."""
        index = _expand(key, self.ndim)
        spans, local = [], []
        for item, n in zip((i for i in index if i is not None), self.shape, strict=True):
            (low, high), inner = _span(item, n)
            spans.append((low, high))
            local.append(inner)
        part = self._box(spans)
        inner_index = iter(local)
        return part[tuple(None if i is None else next(inner_index) for i in index)]

    def _box(self, spans: Sequence[tuple[int, int]]) -> Array:
        """Return the samples of a box, spans per axis of the result."""
        spec, number = self._tiles.spec, self._number
        layer = spec.layers[number]
        axes = [*range(layer.n_each), *(layer.n_each + a for a in layer.bound.reduced_axes)]
        full = [slice(a, b) for a, b in spans]
        shape = [b - a for a, b in spans]
        if not all(shape):
            return np.empty(shape, self.dtype)
        # Untiled axes come whole out of every tile and are cut behind.
        out = np.empty(
            [m if d in axes else n for d, (m, n) in enumerate(zip(shape, self.shape, strict=True))],
            self.dtype,
        )
        box = Box(tuple(spans[a][0] for a in axes), tuple(spans[a][1] for a in axes))
        with self._tiles.lock:
            before = self._tiles.ran
            for block, common in blocks_of(spec, number, box):
                tiles = [t for _, own in tiles_touching(spec, number, block, common) for t in own]
                results = self._tiles.get(tiles)
                part = part_of_block(spec, number, block, common, lambda t, r=results: r[t.index])  # type: ignore[misc]
                place = [slice(None)] * self.ndim
                for a, low, high, start in zip(axes, common.start, common.stop, box.start, strict=True):
                    place[a] = slice(low - start, high - start)
                out[tuple(place)] = part
            self._say(self._tiles.ran - before)
        return out[tuple(slice(None) if d in axes else s for d, s in enumerate(full))]

    def _say(self, ran: int) -> None:
        if self._verbose and ran:
            sys.stdout.write(f"{ran} of {self.crops} crops ran, {self.ran} so far\n")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a view is computed, so an array of it is always new; copy=False cannot be.")
        whole = np.asarray(self[...])
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"<View: {self.shape} {self.dtype}, {self.ran} of {self.crops} crops ran>"


def view(out: Any, *, cache: int | str = "256MiB", verbose: bool = True) -> Any:
    """Return a result of `tiled_map` as an array to look at: indexing runs only the tiles that it touches.

    ``view(out)[box]`` has the bits of ``out[box].compute()``, which runs whole blocks. For notebooks, and
    for napari as it is: ``viewer.add_image(tw.view(out, verbose=False))``.

    Parameters
    ----------
    out : dask.array.Array, or tuple or dict of them
        What `tiled_map` returned, unmodified.
    cache : int or str, bytes
        Results of tiles that are kept, the least recently used dropped first: a step back runs nothing.
    verbose : bool
        Whether to print how many of how many crops ran.

    Returns
    -------
    View, or tuple or dict of them
        numpy-like: ``shape``, ``dtype``, ``ndim``, indexing as of a numpy array, ``np.asarray``. Views of
        one call share their tiles.

    Raises
    ------
    TilingError
        When ``out`` was made by more than `tiled_map`.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.sqrt, np.arange(1e4).reshape(100, 100), crop=20, overlap=2)
    >>> float(view(out)[50, 7])
    1 of 49 crops ran, 1 so far
    70.7601...
    """
    members = (
        out if isinstance(out, Mapping) else dict(enumerate(out if isinstance(out, tuple | list) else (out,)))
    )
    held: dict[str, TileRunner] = {}
    views: dict[Any, View] = {}
    limit = parse_bytes("cache", cache)
    for key, array in members.items():
        found = find_spec(array)
        if found is None:
            raise TilingError(
                "view takes an unmodified result of tiled_map; what was made of it (out > 0.5, out[0]) is "
                "looked at by indexing the view: view(out)[0] > 0.5."
            )
        spec, _, name = found
        tiles = held.setdefault(name, TileRunner(spec, limit))
        number = next(
            k
            for k, layer in enumerate(spec.layers)
            if array.name == (f"{name}-{layer.bound.key}" if spec.many else name)
        )
        views[key] = View(array, tiles, number, verbose=verbose)
    if isinstance(out, Mapping):
        return views
    return tuple(views.values()) if isinstance(out, tuple | list) else views[0]


def _expand(key: Any, ndim: int) -> list[Any]:
    """Return one index per axis, and None where a new axis is asked for."""
    items = list(key) if isinstance(key, tuple) else [key]
    missing = ndim - sum(1 for i in items if i is not None and i is not Ellipsis)
    if missing < 0:
        raise IndexError(f"too many indices: the result has {ndim} axes, {ndim - missing} were indexed.")
    if any(i is Ellipsis for i in items):
        at = next(k for k, i in enumerate(items) if i is Ellipsis)
        return [*items[:at], *[slice(None)] * missing, *(i for i in items[at + 1 :] if i is not Ellipsis)]
    return items + [slice(None)] * missing


def _span(item: Any, n: int) -> tuple[tuple[int, int], Any]:
    """Return the range of samples that an index needs, and the index within that range."""
    if isinstance(item, slice):
        numbers = range(n)[item]
        if not len(numbers):
            return (0, 0), slice(None)
        low, high = min(numbers[0], numbers[-1]), max(numbers[0], numbers[-1]) + 1
        return (low, high), slice(None, None, numbers.step)
    values = np.asarray(item)
    if values.dtype.kind == "b":
        if values.shape != (n,):
            raise IndexError(f"a mask of an axis needs its length, {n}; got shape {values.shape}.")
        values = np.flatnonzero(values)
    if values.dtype.kind not in "iu":
        raise IndexError(f"indices must be whole numbers, slices or masks; got {item!r}.")
    if values.size and (values.min() < -n or values.max() >= n):
        raise IndexError(f"index {item!r} is out of bounds for an axis of {n} samples.")
    values = np.where(values < 0, values + n, values)
    if not values.size:
        return (0, 0), values
    low = int(values.min())
    local = values - low
    return (low, int(values.max()) + 1), int(local) if local.ndim == 0 else local
