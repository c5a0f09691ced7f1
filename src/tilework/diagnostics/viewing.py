"""`view`: a result that is indexed like a numpy array and runs only the needed tiles."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from tilework._checks import flag, is_whole, parse_bytes
from tilework._types import Array, Index
from tilework.engine.nan import report
from tilework.engine.parts import (
    Part,
    edges_of,
    hull_of,
    part_of_block,
    parts_of,
    scattered,
    take,
    tiles_touching,
)
from tilework.engine.reading import CropCutter, run_tiles
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.where import Where
from tilework.function.guard import current_worker
from tilework.function.load_once import in_task
from tilework.graph.build import bare, find_spec
from tilework.grid.tiles import Tile
from tilework.source import kept
from tilework.source.base import BlockSource, unmasked

__all__ = ["TileRunner", "View", "members_of", "view"]


class TileRunner:
    """Runs tiles of one `Spec`, with a cache of at most ``limit`` bytes of the most recent results."""

    def __init__(self, spec: Spec, limit: int) -> None:
        self.spec, self._limit = spec, limit
        self._held: OrderedDict[int, list[Array] | None] = OrderedDict()
        self._bytes = 0
        self._read: dict[tuple[int, Index], Array] = {}
        self.lock = threading.RLock()
        self.ran = 0

    def get(self, tiles: Sequence[Tile]) -> dict[int, list[Array] | None]:
        """Return the results of ``tiles`` by number; None for tiles that the skip predicate leaves out."""
        found = {t.index: self._held[t.index] for t in tiles if t.index in self._held}
        for number in found:
            self._held.move_to_end(number)
        missing = [t for t in tiles if t.index not in found]
        if missing:
            for number, results in self._run(missing):
                found[number] = results
                if self._limit:
                    self._keep(number, results)
        return found

    def _run(self, tiles: Sequence[Tile]) -> list[tuple[int, list[Array] | None]]:
        with kept.task(inner=True), in_task():
            found = self.call(tiles, self.crops(tiles))
        ran = {number for number, _ in found}
        self.ran += len(found)
        return [*found, *((t.index, None) for t in tiles if t.index not in ran)]

    def crops(self, tiles: Sequence[Tile]) -> list[CropCutter]:
        """Return the cutters of ``tiles``, one per source."""
        ranges = [(min(column), max(column) + 1) for column in zip(*(t.position for t in tiles), strict=True)]
        numbers = range(len(self.spec.sources))
        return [CropCutter(self.spec, k, ranges, self._given(k, ranges), len(tiles)) for k in numbers]

    def call(
        self, tiles: Sequence[Tile], crops: Sequence[CropCutter]
    ) -> list[tuple[int, list[Array] | None]]:
        """Return number and results of every tile, except those that the skip predicate leaves out."""
        # Copies, because a view would keep its whole batch alive.
        return [(t.index, [r.copy() for r in rs]) for t, rs in run_tiles(self.spec, tiles, crops, [], [])]

    def _given(self, number: int, ranges: Sequence[tuple[int, int]]) -> Any:
        """Return the data of a source that a task would be given, if tasks do not read it themselves."""
        source = self.spec.sources[number]
        if source.handle is None:
            raise TilingError("the source of this result is in another process; view it where it was made.")
        need: Any = source.needs(self.spec.reads(number, ranges)) if source.given else None
        if not isinstance(source, BlockSource):
            return need
        from dask.base import compute

        missing = [index for index in need if (number, index) not in self._read]
        with self.outside():
            computed = compute(*(source.handle[source.slices(index)] for index in missing))
        self._read |= {(number, i): unmasked(b) for i, b in zip(missing, computed, strict=True)}
        return [self._read[number, index] for index in need]

    def outside(self) -> AbstractContextManager[None]:
        """Return a context in which a task of a worker may wait for the blocks of a dask source.

        It is entered before `lock`: a task that waits for that must not hold the thread that computes blocks.
        """
        waits = any(source.dask_name is not None for source in self.spec.sources)
        return outside_of_the_pool(Where.find().client if waits and current_worker() is not None else None)

    def forget(self) -> None:
        """Drop the computed blocks of dask sources, which only neighbouring tiles share."""
        self._read.clear()

    def _keep(self, number: int, results: list[Array] | None) -> None:
        self._held[number] = results
        self._bytes += sum(r.nbytes for r in results or ())
        while self._bytes > self._limit and self._held:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= sum(r.nbytes for r in dropped or ())


class View:
    """A lazy result that is indexed like a numpy array; made by `view`."""

    def __init__(self, array: Any, tiles: TileRunner, number: int, *, verbose: bool) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = array.dtype
        self.ndim = len(self.shape)
        self._tiles, self._number, self._verbose = tiles, number, verbose

    @property
    def number(self) -> int:
        """Number of this output among those of its call."""
        return self._number

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size of the whole result if it were computed, bytes."""
        return self.size * int(self.dtype.itemsize)

    @property
    def ran(self) -> int:
        """Number of crops that have run, for this view and the others of the same call."""
        return self._tiles.ran

    @property
    def crops(self) -> int:
        """Number of crops of the whole result."""
        return self._tiles.spec.plan.n_runs

    def has_run(self, position: Index) -> bool:
        """Return whether the tile at ``position`` has a result; run it if that is seen only then."""
        spec, runs = self._tiles.spec, self._tiles.spec.plan.runs
        if runs is not None and not runs[position]:
            return False
        if spec.skip is None and spec.validity is None:
            return True
        tile = spec.plan.grid.tile(position)
        with self._tiles.outside(), self._tiles.lock:
            return self._tiles.get([tile])[tile.index] is not None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return a part as a numpy array; run only the tiles with weight at its samples."""
        items = _expand(key, self.shape)
        index = [i for i in items if i is not None]
        listed = tuple(axis for axis, i in enumerate(index) if isinstance(i, np.ndarray))
        picks: dict[tuple[int, ...], Array] = {
            (axis,): _ascending(i) for axis, i in enumerate(index) if axis not in listed
        }
        if not listed:
            return self._pick(picks)[_placed(items)]
        points = _together([index[axis] for axis in listed])
        found = self._pick({listed: np.stack([p.ravel() for p in points]), **picks})
        found = found[(slice(None), *_placed(items))]
        shape = points[0].shape
        first = _first_listed(items)
        return np.moveaxis(
            found.reshape(*shape, *found.shape[1:]), range(len(shape)), range(first, first + len(shape))
        )

    def _pick(self, picks: Mapping[tuple[int, ...], Array]) -> Array:
        """Return the chosen samples, with one axis per pick.

        Parameters
        ----------
        picks : dict of 2-D int arrays
            Axes of the result, and the chosen samples along them, one row per axis. Only the first pick may
            have several axes, or samples in any order.
        """
        spec, number = self._tiles.spec, self._number
        output = spec.outputs[number]
        axes = output.grid_axes
        out = np.empty([samples.shape[1] for samples in picks.values()], self.dtype)
        if not out.size:
            return out
        blocks = dict(zip(axes, edges_of(spec, number, tiles=False), strict=True))
        tiles: dict[int, Array] = {}
        # For a box, one piece per block is enough.
        if any(scattered(samples) for along, samples in picks.items() if set(along) & set(axes)):
            tiles = dict(zip(axes, edges_of(spec, number, tiles=True), strict=True))
        none = np.empty(0, np.int64)
        pieces = [
            parts_of(samples, [blocks.get(a, none) for a in along], [tiles.get(a, none) for a in along])
            for along, samples in picks.items()
        ]
        with self._tiles.outside(), self._tiles.lock, kept.task():
            before, unknown = self._tiles.ran, 0
            for one_block in itertools.product(*pieces):
                try:
                    unknown += self._fill(out, list(picks), axes, list(itertools.product(*one_block)))
                finally:
                    self._tiles.forget()
            self._say(self._tiles.ran - before)
        if unknown:
            report(unknown)
        return out

    def _fill(
        self,
        out: Array,
        picks: Sequence[tuple[int, ...]],
        axes: Sequence[int],
        pieces: Sequence[tuple[Part, ...]],
    ) -> int:
        """Write the samples of one block: for each entry of ``pieces``, the product of its members.

        Return how many are ``fill_value`` because they were NaN.
        """
        spec, number = self._tiles.spec, self._number
        block = {
            a: b
            for along, p in zip(picks, pieces[0], strict=True)
            for a, b in zip(along, p.block, strict=True)
        }
        index = tuple(block[a] for a in axes)
        boxes = [hull_of(picks, axes, members) for members in pieces]
        wanted = [[t for _, own in tiles_touching(spec, number, index, box) for t in own] for box in boxes]
        last = {tile.index: k for k, tiles in enumerate(wanted) for tile in tiles}
        results: dict[int, list[Array] | None] = {}
        unknown = 0
        find = results.__getitem__
        for k, (members, box, tiles) in enumerate(zip(pieces, boxes, wanted, strict=True)):
            # Kept until no later piece needs them, even if the cache drops them.
            results |= self._tiles.get([t for t in tiles if t.index not in results])
            part, lost = part_of_block(spec, number, index, box, lambda tile: find(tile.index))
            unknown += lost
            take(out, part, picks, members, dict(zip(axes, box.start, strict=True)))
            for done in [n for n in results if last[n] <= k]:
                del results[done]
        return unknown

    def _say(self, ran: int) -> None:
        if self._verbose and ran:
            sys.stdout.write(f"{ran} of {self.crops} crops ran, {self.ran} so far\n")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy=False cannot be: a view is computed, so an array of it is always new.")
        whole = np.asarray(self[...])
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"<View: {self.shape} {self.dtype}, {self.ran} of {self.crops} crops ran>"


def view(out: Any, *, cache: int | str = "256MiB", verbose: bool = True) -> Any:
    """Return a result of `tiled_map` as an array; indexing it runs only the tiles that the part touches.

    ``view(out)[box]`` has the same bits as ``out[box].compute()``, which runs whole blocks. For notebooks,
    and for napari: ``viewer.add_image(tw.view(out, verbose=False))``.

    Parameters
    ----------
    out : dask.array.Array, or tuple or dict of them
        Unmodified result of `tiled_map`.
    cache : int or str, bytes
        Memory for results of tiles, so that returning to a part runs nothing; the least recently used are
        dropped first. 0 keeps nothing.
    verbose : bool
        Whether to print the number of crops that ran after each indexing.

    Returns
    -------
    View, or tuple or dict of them
        An array with the shape and dtype of ``out``, indexed like a numpy array. Views of one call share
        their tiles.

    Raises
    ------
    TilingError
        If ``out`` is not an unmodified result of `tiled_map`.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.sqrt, np.arange(1e4).reshape(100, 100), crop=20, overlap=2)
    >>> float(view(out)[50, 7])
    1 of 49 crops ran, 1 so far
    70.7601...
    """
    flag("verbose", verbose)
    held: dict[str, TileRunner] = {}
    views: dict[Any, View] = {}
    limit = 0 if is_whole(cache) and cache == 0 else parse_bytes("cache", cache)
    for key, array in members_of(out).items():
        found = find_spec(array)
        if found is None:
            raise TilingError(
                "view takes an unmodified result of tiled_map. To view an array computed from it (out > 0.5, "
                "out[0]), index the view: view(out)[0] > 0.5."
            )
        tiles = held.setdefault(found.name, TileRunner(found.spec, limit))
        views[key] = View(array, tiles, found.number, verbose=verbose)
    if isinstance(out, Mapping):
        return views
    return tuple(views.values()) if isinstance(out, tuple | list) else views[None]


def members_of(out: Any) -> dict[Any, Any]:
    """Return the arrays of a result by key; by number for a tuple, by None for a single array."""
    if isinstance(out, Mapping):
        return {key: bare(array) for key, array in out.items()}
    return dict(enumerate(map(bare, out))) if isinstance(out, tuple | list) else {None: bare(out)}


def _expand(key: Any, shape: Sequence[int]) -> list[Any]:
    """Return an index per axis (a range, a whole number or an array of numbers), and None for new axes."""
    items = list(key) if isinstance(key, tuple) else [key]
    ndim = len(shape)
    missing = ndim - sum(1 for i in items if i is not None and i is not Ellipsis)
    if sum(1 for i in items if i is Ellipsis) > 1:
        raise IndexError("an index can only have a single ellipsis ('...').")
    if missing < 0:
        raise IndexError(f"too many indices: the result has {ndim} axes, {ndim - missing} were indexed.")
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    rest = [i for i in items[at:] if i is not Ellipsis]
    lengths = iter(shape)
    filled = [*items[:at], *[slice(None)] * missing, *rest]
    return [None if i is None else _along(i, next(lengths)) for i in filled]


def _along(item: Any, n: int) -> Any:
    """Return an index along an axis of ``n`` samples as a range, a whole number or an array of them."""
    if isinstance(item, slice):
        return range(n)[item]
    values = np.asarray(item)
    if values.dtype.kind == "b":
        if values.shape != (n,):
            raise IndexError(f"a mask of an axis needs its length, {n}; got shape {values.shape}.")
        values = np.flatnonzero(values)
    if isinstance(item, list) and not values.size:
        values = values.astype(np.int64)  # numpy makes an empty list an array of floats
    if values.dtype.kind not in "iu":
        raise IndexError(f"indices must be whole numbers, slices or masks; got {item!r}.")
    if values.size and (values.min() < -n or values.max() >= n):
        raise IndexError(f"index {item!r} is out of bounds for an axis of {n} samples.")
    values = values.astype(np.int64)
    values = np.where(values < 0, values + n, values)
    return values if values.ndim else int(values)


def _ascending(item: range | int) -> Array:
    """Return the samples of a range or number as one ascending row."""
    return np.sort(np.array(item, np.int64, ndmin=1))[None]


def _together(arrays: Sequence[Array]) -> Sequence[Array]:
    """Return lists of indices along several axes, which select points, broadcast to one shape."""
    try:
        return np.broadcast_arrays(*arrays)
    except ValueError:
        shapes = " ".join(str(a.shape) for a in arrays)
        raise IndexError(f"lists of indices must have shapes that fit together; got {shapes}.") from None


def _first_listed(items: Sequence[Any]) -> int:
    """Return the position of the axes of listed points in the result; numpy puts separated ones first."""
    at = [k for k, i in enumerate(items) if isinstance(i, int | np.ndarray)]
    return at[0] if at[-1] - at[0] < len(at) else 0


def _placed(items: Sequence[Any]) -> tuple[Any, ...]:
    """Return the index that turns ascending samples into the selection of ``items``; skips listed points."""
    index: list[Any] = []
    for item in items:
        if isinstance(item, range):
            index.append(slice(None, None, -1 if item.step < 0 else 1))
        elif not isinstance(item, np.ndarray):
            index.append(None if item is None else 0)
    return tuple(index)
