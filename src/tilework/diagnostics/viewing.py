"""`view`: a result that is indexed like a numpy array and runs only the needed tiles."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tilework._checks import flag, is_whole, parse_bytes, warn
from tilework._types import Array, Index
from tilework.diagnostics.indexing import Cut, ascending, expand, first_listed, placed, together, whole_of
from tilework.diagnostics.tile_runner import TileCache, TileRunner
from tilework.engine.notices import report
from tilework.engine.parts import (
    Part,
    blocks_of,
    edges_of,
    hull_of,
    part_of_block,
    parts_of,
    scattered,
    take,
    tiles_touching,
)
from tilework.errors import TilingError, TilingWarning
from tilework.formats.meta import ImageMeta
from tilework.graph.build import Found, bare, find_spec
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Box, Tile
from tilework.labels.doubts import PIECES
from tilework.labels.painting import Counts
from tilework.plan.tile_plan import TilePlan
from tilework.source import kept
from tilework.source.base import BlockSource, Source

__all__ = ["View", "members_of", "view"]

# Tiles that run for contrast limits, and tiles that may be looked at to find as many with a result.
SAMPLED, LOOKED_AT = 5, 40
# Coarse levels end where the halved axes have at most this many samples: what a window shows at once.
SHOWN = 512


class View:
    """A lazy result that is indexed like a numpy array; made by `view`."""

    def __init__(
        self, array: Any, tiles: TileRunner, number: int, *, verbose: bool = False, below: bool = False
    ) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = array.dtype
        self.ndim = len(self.shape)
        self.tiles, self._number, self._verbose, self._below = tiles, number, verbose, below

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
        return self.tiles.ran

    @property
    def crops(self) -> int:
        """Number of crops of the whole result."""
        return self.tiles.spec.plan.n_runs

    @property
    def meta(self) -> ImageMeta | None:
        """What the samples mean; None if nothing is known of the image."""
        metas = self.tiles.spec.metas
        return metas[self._number] if metas else None

    @property
    def contrast_limits(self) -> tuple[float, float]:
        """Smallest and largest value in five tiles far apart, which run; without NaN, infinity and nodata."""
        return self.limits_along(None)[0]

    @property
    def levels(self) -> tuple[Cut, ...]:
        """The view, then coarser levels that run nothing: they show the tiles that have run.

        Each level has every second sample of the one before along the last two tiled axes, until both are
        short. Where no tile has run, or the cache has dropped it, coarser levels are ``fill_value``. As
        viewers expect it of levels, a slice of one is computed when it becomes a numpy array.
        """
        output = self.tiles.spec.outputs[self._number]
        halved = sorted(output.grid_axes[output.n_each :])[-2:]
        most, ran = max(self.shape[a] for a in halved), _Ran(self)
        # At least one: viewers look at the coarsest first, and at the first plane before the middle one.
        coarser = range(1, max(2, 1 + (ceil_div(most, SHOWN) - 1).bit_length()))
        cuts = [[range(0, n, 2**k if a in halved else 1) for a, n in enumerate(self.shape)] for k in coarser]
        return (Cut(self), *(Cut(ran, cut) for cut in cuts))

    def limits_along(self, axis: int | None) -> list[tuple[float, float]]:
        """Return contrast limits of each index along ``axis``, or of the whole.

        Of an axis of ``each`` every index is another tile, and is sampled by itself.
        """
        spec = self.tiles.spec
        output, nodata = spec.outputs[self._number], [self.meta.nodata] if self.meta else []
        nodata += [output.fill_value] if spec.validity is not None else []
        if axis in output.grid_axes[: output.n_each]:
            d = output.grid_axes.index(axis)
            found = [self._sampled({d: i}) for i in range(self.shape[axis])]
        elif axis is None or axis in output.grid_axes:
            found = [self._sampled({})] * (1 if axis is None else self.shape[axis])
        else:
            parts = self._sampled({})
            found = [[part.take(i, axis) for part in parts] for i in range(self.shape[axis])]
        return [_limits(parts, nodata) for parts in found]

    def _sampled(self, fixed: Mapping[int, int]) -> list[Array]:
        """Return the result in a few tiles far apart; ``fixed`` has the position along some grid axes."""
        spec, number = self.tiles.spec, self._number
        found: list[Array] = []
        ran = 0
        with self.tiles.outside(), self.tiles.lock, kept.task():
            for position in itertools.islice(_far_apart(spec.plan, fixed), LOOKED_AT):
                tile = spec.plan.grid.tile(position)
                results = self.tiles.get([tile])
                self.tiles.forget()
                if results[tile.index] is None:
                    continue
                box = Box.of(
                    w.support(i) for w, i in zip(spec.outputs[number].weights, position, strict=True)
                )
                # The others with weight there count as left out: a few tiles are to run, whatever the blend.
                for index, common in blocks_of(spec, number, box):
                    found.append(part_of_block(spec, number, index, common, partial(_alone, results)).block)
                ran += 1
                if ran == SAMPLED:
                    break
        return found

    def has_run(self, position: Index) -> bool:
        """Return whether the tile at ``position`` has a result; run it if that is seen only then."""
        spec, mask = self.tiles.spec, self.tiles.spec.plan.mask
        if mask is not None and not mask[position]:
            return False
        if spec.skip is None and spec.validity is None:
            return True
        tile = spec.plan.grid.tile(position)
        with self.tiles.outside(), self.tiles.lock:
            return self.tiles.get([tile])[tile.index] is not None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return a part as a numpy array; run only the tiles with weight at its samples."""
        return self._select(expand(key, self.shape), run=True)

    def _select(self, items: Sequence[Any], *, run: bool) -> Array:
        """Return the part that the output of `expand` selects; without ``run``, of what has run."""
        index = [i for i in items if i is not None]
        listed = tuple(axis for axis, i in enumerate(index) if isinstance(i, np.ndarray))
        picks: dict[tuple[int, ...], Array] = {
            (axis,): ascending(i) for axis, i in enumerate(index) if axis not in listed
        }
        if not listed:
            part: Array = self._pick(picks, run=run)[placed(items)]
            return part
        points = together([index[axis] for axis in listed])
        found = self._pick({listed: np.stack([p.ravel() for p in points]), **picks}, run=run)
        found = found[(slice(None), *placed(items))]
        shape = points[0].shape
        first = first_listed(items)
        return np.moveaxis(
            found.reshape(*shape, *found.shape[1:]), range(len(shape)), range(first, first + len(shape))
        )

    def _pick(self, picks: Mapping[tuple[int, ...], Array], *, run: bool) -> Array:
        """Return the chosen samples, with one axis per pick.

        Parameters
        ----------
        picks : dict of 2-D int arrays
            Axes of the result, and the chosen samples along them, one row per axis. Only the first pick may
            have several axes, or samples in any order.
        run : bool
            Whether missing tiles run; else samples without any tile in the cache are ``fill_value``.
        """
        spec, number = self.tiles.spec, self._number
        output = spec.outputs[number]
        axes = output.grid_axes
        out = np.empty([samples.shape[1] for samples in picks.values()], self.dtype)
        if not out.size:
            return out
        if not run:
            out[...] = output.fill_value
        blocks = dict(zip(axes, edges_of(spec, number, tiles=False), strict=True))
        tiles: dict[int, Array] = {}
        # For a box, one piece per block is enough, and for what has run: no further tile is needed.
        if run and any(scattered(samples) for along, samples in picks.items() if set(along) & set(axes)):
            tiles = dict(zip(axes, edges_of(spec, number, tiles=True), strict=True))
        none = np.empty(0, np.int64)
        pieces = [
            parts_of(samples, [blocks.get(a, none) for a in along], [tiles.get(a, none) for a in along])
            for along, samples in picks.items()
        ]
        with self.tiles.outside(), self.tiles.lock, kept.task():
            before, unknown, counts = self.tiles.ran, 0, []
            shown = None if run else self._blocks_shown()
            for one_block in itertools.product(*pieces):
                try:
                    members = list(itertools.product(*one_block))
                    lost, found = self._fill(out, list(picks), axes, members, shown)
                    unknown += lost
                    counts += found
                finally:
                    # Crops of the view that reads this one share blocks, and that view forgets them.
                    if not self._below:
                        self.tiles.forget()
            self._say(self.tiles.ran - before)
        if unknown and run:
            report(unknown)
        told = Counts.joined(counts)
        # Each block counts the claims of all tiles that it runs, and a tile may be in several blocks.
        cut = np.unique(told.claims.cut)
        told = replace(told, claims=replace(told.claims, large=len(cut), cut=cut))
        if told.doubtful and run:
            warn(output.doubts(spec.plan.names, told, where=" in this part"), TilingWarning)
        if output.connectivity and run:
            warn(PIECES, TilingWarning)
        return out

    def _blocks_shown(self) -> set[Index]:
        """Return the blocks in which a tile with results in the cache has weight."""
        spec, number = self.tiles.spec, self._number
        edges = edges_of(spec, number, tiles=False)
        found: set[Index] = set()
        for tile in map(spec.plan.grid.__getitem__, self.tiles.held()):
            spans = [w.support(i) for w, i in zip(spec.outputs[number].weights, tile.position, strict=True)]
            ends = [
                np.searchsorted(e, (a, b - 1), side="right") for e, (a, b) in zip(edges, spans, strict=True)
            ]
            found.update(itertools.product(*(range(int(a), int(b) + 1) for a, b in ends)))
        return found

    def _fill(
        self,
        out: Array,
        picks: Sequence[tuple[int, ...]],
        axes: Sequence[int],
        pieces: Sequence[tuple[Part, ...]],
        shown: set[Index] | None = None,
    ) -> tuple[int, list[Counts]]:
        """Write the samples of one block: for each entry of ``pieces``, the product of its members.

        Return how many are ``fill_value`` because they were NaN, and what is doubtful of objects. With
        ``shown``, the blocks in which tiles have run, nothing runs, and samples without tiles are left alone.
        """
        spec, number = self.tiles.spec, self._number
        block = {
            a: b
            for along, p in zip(picks, pieces[0], strict=True)
            for a, b in zip(along, p.block, strict=True)
        }
        index = tuple(block[a] for a in axes)
        if shown is not None and index not in shown:
            return 0, []
        boxes = [hull_of(picks, axes, members) for members in pieces]
        wanted = [[t for _, own in tiles_touching(spec, number, index, box) for t in own] for box in boxes]
        last = {tile.index: k for k, tiles in enumerate(wanted) for tile in tiles}
        results: dict[int, list[Array] | None] = {}
        unknown, counts = 0, list[Counts]()
        find = results.__getitem__ if shown is None else self.tiles.peek
        for k, (members, box, tiles) in enumerate(zip(pieces, boxes, wanted, strict=True)):
            if shown is None:
                # Kept until no later piece needs them, even if the cache drops them.
                results |= self.tiles.get([t for t in tiles if t.index not in results])
            part = part_of_block(spec, number, index, box, lambda tile: find(tile.index))
            unknown += part.unknown
            counts += [part.counts] if part.counts is not None else []
            take(out, part.block, picks, members, dict(zip(axes, box.start, strict=True)))
            for done in [n for n in results if last[n] <= k]:
                del results[done]
        return unknown, counts

    def _say(self, ran: int) -> None:
        if self._verbose and ran:
            sys.stdout.write(f"{ran} of {self.crops} crops ran, {self.ran} so far\n")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return whole_of(self, dtype, copy)

    def __repr__(self) -> str:
        return f"<View: {self.shape} {self.dtype}, {self.ran} of {self.crops} crops ran>"


class _Ran:
    """What has run of a `View`, and ``fill_value`` elsewhere; indexing it runs nothing."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.shape, self.dtype = view.shape, view.dtype

    def __getitem__(self, key: Any) -> Array:
        part: Array = self._view._select(expand(key, self.shape), run=False)
        return part


def view(out: Any, *, cache: int | str = "256MiB", verbose: bool = True) -> Any:
    """Return a result of `tiled_map` as an array; indexing it runs only the tiles that the part touches.

    ``view(out)[box]`` has the same bits as ``out[box].compute()``, which runs whole blocks. For notebooks;
    `add_to_napari` shows views in napari. For another viewer of levels, ``view(out).levels`` are the view
    and coarser levels of what has run, and ``view(out).contrast_limits`` come from five tiles.

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
        their tiles. Of a result below, the ``array`` of the call, only the crops run that are needed.

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
    views: dict[Any, View] = {}
    held = _Runners(TileCache(0 if is_whole(cache) and cache == 0 else parse_bytes("cache", cache)))
    for key, array in members_of(out).items():
        found = find_spec(array)
        if found is None:
            raise TilingError(
                "view takes an unmodified result of tiled_map. To view an array computed from it (out > 0.5, "
                "out[0]), index the view: view(out)[0] > 0.5."
            )
        views[key] = View(array, held.of(found), found.number, verbose=verbose)
    if isinstance(out, Mapping):
        return views
    return tuple(views.values()) if isinstance(out, tuple | list) else views[None]


class _Runners:
    """The runners of calls, each with those of the results that it reads.

    A block of such a result has hundreds of tiles, and a crop needs a few.
    """

    def __init__(self, cache: TileCache) -> None:
        self._cache = cache
        self._made: dict[str, TileRunner] = {}

    def of(self, found: Found) -> TileRunner:
        """Return the runner of a call."""
        if found.call not in self._made:
            sources = tuple(map(self._by_tile, found.spec.sources))
            below = [source.handle.tiles for source in sources if isinstance(source.handle, View)]
            spec = replace(found.spec, sources=sources)
            self._made[found.call] = TileRunner(spec, self._cache, below)
        return self._made[found.call]

    def _by_tile(self, source: Source) -> Source:
        """Return a source that reads a result tile by tile; any other as it is."""
        found = find_spec(source.handle) if isinstance(source, BlockSource) else None
        if found is None:
            return source
        seen = View(source.handle, self.of(found), found.number, below=True)
        return Source(seen, source.shape, source.dtype, None, source.meta, source.token)


def members_of(out: Any) -> dict[Any, Any]:
    """Return the arrays of a result by key; by number for a tuple, by None for a single array."""
    if isinstance(out, Mapping):
        return {key: bare(array) for key, array in out.items()}
    return dict(enumerate(map(bare, out))) if isinstance(out, tuple | list) else {None: bare(out)}


def _alone(results: Mapping[int, list[Array] | None], tile: Tile) -> list[Array] | None:
    return results.get(tile.index)


def _far_apart(plan: TilePlan, fixed: Mapping[int, int]) -> Iterator[Index]:
    """Yield the positions of all running tiles: first that in the middle, then some far from each other.

    ``fixed`` has the position along some axes.
    """
    shape, mask = plan.grid_shape, plan.mask
    if 0 in shape:  # edge="drop" of an image smaller than the crop
        return
    # Steps of the additive recurrence of Roberts, "R_d": the powers of the root of x ** (d + 1) = x + 1.
    root = 1.5
    for _ in range(64):
        root = (1 + root) ** (1 / (len(shape) + 1))
    seen: set[Index] = set()
    for k in range(LOOKED_AT):
        spread = (int((0.5 + k / root ** (d + 1)) % 1 * n) for d, n in enumerate(shape))
        position = tuple(fixed.get(d, i) for d, i in enumerate(spread))
        if position not in seen and (mask is None or mask[position]):
            seen.add(position)
            yield position
    rest: Iterator[Index] = itertools.product(
        *([fixed[d]] if d in fixed else range(n) for d, n in enumerate(shape))
    )
    for position in rest if mask is None else mask.positions(fixed):
        if position not in seen:
            yield position


def _limits(parts: Sequence[Array], nodata: Sequence[Any]) -> tuple[float, float]:
    """Return smallest and largest of the numbers in ``parts``, without the values ``nodata``.

    If there are fewer than two, an interval.
    """
    lows, highs = [], []
    for part in parts:
        if part.dtype.kind not in "biufc":
            raise TilingError(f"contrast limits are of numbers; the result has dtype {part.dtype}.")
        values = np.abs(part) if part.dtype.kind == "c" else part
        valid = np.isfinite(values)
        for none in nodata:
            if none is not None:
                valid &= part != none
        if valid.any():
            lows.append(float(values[valid].min()))
            highs.append(float(values[valid].max()))
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))
