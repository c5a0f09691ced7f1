"""`sample_crops`: crops at random places, for whatever is fitted once to an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._checks import at_least, flag
from tilework._types import Array, Index, Ints, Span
from tilework.errors import GridError, TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.graph.build import open_known
from tilework.graph.narrowing import narrowed
from tilework.objects.boxes import blocks_of, cuts_of
from tilework.objects.measuring import How
from tilework.objects.reading import BoxJob
from tilework.plan.arguments import AxisLengths
from tilework.plan.by_dim import ordered
from tilework.plan.nodata import valid_of
from tilework.plan.request import Layout, Request, make_layout
from tilework.source.base import BlockSource, Source, check_read
from tilework.source.opening import Image

__all__ = ["sample_crops"]

# Most samples of a mask in a box. Places are drawn by the order of boxes, so memory must not change them.
MOST = 2**22


def sample_crops(
    array: Image,
    n: int,
    crop: AxisLengths,
    *,
    axes: int | str | Sequence[int | str] | None = None,
    each: int | str | Sequence[int | str] = (),
    where: Any = None,
    seed: int = 0,
    positions: bool = False,
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    client: Any = None,
    scheduler: Any = None,
) -> Any:
    """Return crops at random places of an image, for what is fitted once: stains, thresholds, a dictionary.

    All places at which a crop lies inside the image are equally likely, and draws are independent of each
    other. Only the chunks below the crops are read; crops in one chunk are read together. Of a result of
    `tiled_map`, only the tiles run that have weight in crops.

    Parameters
    ----------
    array : array, path or URL
        Anything that `tiled_map` takes.
    n : int
        Number of crops.
    crop : int, sequence of int or dict by name, samples per tiled axis
        Shape of a crop, at most that of the image.
    axes : int, str or sequence of them, optional
        The tiled axes, as in `tiled_map`. A crop has all other axes in full.
    each : int, str or sequence of them
        Axes of which a crop has one index, drawn like its place.
    where : array of bool, path or URL, optional
        Where the middle of a crop may be: its sample ``crop // 2`` along each tiled axis. As in `tiled_map`,
        it covers the tiled axes, these and those in ``each``, or all axes, and may have another resolution.
        All of it is read.
    seed : int
        Seed of the draws; the same seed gives the same crops, on any scheduler.
    positions : bool
        Whether to return also where the crops are.
    retries, progress, memory_limit, client, scheduler
        As in `image_statistics`.

    Returns
    -------
    numpy.ndarray, or pair of them
        Shape ``(n, *crop)`` with the untiled axes, in the order of the image. With ``positions``, also the
        first sample of each crop, shape ``(n, axes of the image)``.

    Raises
    ------
    TilingError
        If a crop is longer than the image, or no crop has its middle in ``where``.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> image = np.arange(10000).reshape(100, 100)
    >>> crops, starts = sample_crops(image, 5, 8, positions=True, progress=False)
    >>> crops.shape, starts.shape, bool((crops[:, 0, 0] == starts @ [100, 1]).all())
    ((5, 8, 8), (5, 2), True)
    """
    positions = flag("positions", positions)
    n, seed = at_least("n", n, 1), at_least("seed", seed, 0)
    check_progress(progress)
    how = How.of(Where.find(scheduler, client, retries=retries), memory_limit, progress)
    if isinstance(array, list | tuple):
        raise TypeError(
            f"array must be one image; got {len(array)} in a {type(array).__name__}. Draw from each: "
            "np.concatenate([tw.sample_crops(image, n, crop) for image in images])."
        )
    source = open_known(array)
    request = ordered(Request(crop=crop, overlap=0, axes=axes, each=each), source)
    layout = make_layout((source,), request, None)
    for axis, length in zip(layout.tiled[0], layout.crop, strict=True):
        if length > source.shape[axis]:
            name = source.names[axis] if source.names else axis
            raise GridError(f"axis {name} of the image is {source.shape[axis]} long; got crop {length}.")
    rng = np.random.default_rng(seed)
    with outside_of_the_pool(how.where.client):
        if where is None:
            starts = _anywhere(source, layout, n, rng)
        else:
            starts = _Inside(source, layout, where).draw(n, rng, how)
        found = _read(_of_crops(source, layout, starts), layout, starts, how)
    return (found, starts) if positions else found


def _anywhere(source: Source, layout: Layout, n: int, rng: np.random.Generator) -> Ints:
    """Return places at which a crop lies inside the image."""
    lengths = dict(zip(layout.tiled[0], layout.crop, strict=True)) | dict.fromkeys(layout.each[0], 1)
    most = [m - lengths.get(a, m) + 1 for a, m in enumerate(source.shape)]
    starts: Ints = rng.integers(0, most, (n, len(most)))
    return starts


# -- under a mask -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weigh:
    """Counts the places of crops over each sample of a mask, in a box of it."""

    counts: tuple[Ints | None, ...]
    """Per axis of the mask, the number of places over each of its samples; None: any sample counts."""

    def weights(self, samples: Array, box: Sequence[Span]) -> Ints:
        """Return the number of places over each sample; axes of which any sample counts have length 1."""
        own = tuple(a for a, c in enumerate(self.counts) if c is None)
        found: Ints = (samples != 0).any(axis=own, keepdims=True).astype(np.int64)
        for axis, ((a, b), counts) in enumerate(zip(box, self.counts, strict=True)):
            if counts is not None:
                found *= counts[a:b].reshape((-1,) + (1,) * (samples.ndim - axis - 1))
        return found

    def __call__(self, parts: list[Array], box: Sequence[Span], argument: Any) -> Any:
        """Return the number of places in a box; or of ranks among them, the samples and what is left."""
        number, ranks = argument
        weights = self.weights(parts[0], box)
        if ranks is None:
            return number, int(weights.sum())
        upto = np.cumsum(weights.ravel())
        flat = np.searchsorted(upto, ranks, side="right")
        left = ranks - (upto[flat] - weights.ravel()[flat])
        index = np.stack(np.unravel_index(flat, weights.shape), axis=-1)
        return number, index + [a for a, _ in box], left


class _Inside:
    """The places of crops whose middle is inside of a mask."""

    def __init__(self, source: Source, layout: Layout, where: Any) -> None:
        self.source, self.layout = source, layout
        valid = valid_of((source,), layout, where, None, None)
        assert valid is not None
        self.mask, self.own = valid.extra[0]
        counts: list[Ints | None] = [None] * len(self.mask.shape)
        lengths = (1,) * layout.n_each + layout.crop
        for axis, place, length in zip(layout.source_axes[0], self.own, lengths, strict=True):
            extent, first = source.shape[axis], length // 2
            if place is not None:
                m = self.mask.shape[place]
                over = np.arange(first, first + extent - length + 1) * m // extent
                counts[place] = np.bincount(over, minlength=m)
        self.weigh = Weigh(tuple(counts))

    def draw(self, n: int, rng: np.random.Generator, how: How) -> Ints:
        """Return ``n`` places, as the first sample of a crop along each axis of the image."""
        calls = self._boxes()
        totals = np.zeros(len(calls), np.int64)
        for number, total in self._run([(box, (k, None)) for k, box in enumerate(calls)], how):
            totals[number] = total
        upto = np.cumsum(totals)
        if not len(calls) or not upto[-1]:
            raise TilingError("no crop inside the image has its middle where the mask is True.")
        ranks = rng.integers(0, upto[-1], n)
        starts = np.zeros((n, len(self.source.shape)), np.int64)
        for place, axis in zip(self.own, self.layout.source_axes[0], strict=True):
            if place is None:  # of an axis in each that the mask does not have
                starts[:, axis] = rng.integers(0, self.source.shape[axis], n)
        box_of = np.searchsorted(upto, ranks, side="right")
        asked = [
            (calls[k], (int(k), ranks[box_of == k] - (upto[k] - totals[k])))
            for k in np.unique(box_of).tolist()
        ]
        for number, index, left in self._run(asked, how):
            for axis, values in self._starts(index, left).items():
                starts[box_of == number, axis] = values
        return starts

    def _run(self, calls: Sequence[tuple[Sequence[Span], Any]], how: How) -> list[Any]:
        return how.run(BoxJob("sample-crops", [self.mask], self.weigh, calls, how.where))

    def _boxes(self) -> list[tuple[Span, ...]]:
        own = [a for a, c in enumerate(self.weigh.counts) if c is not None]
        cuts = cuts_of(self.mask, own, MOST)
        cuts = [c if a in own else [0, self.mask.shape[a]] for a, c in enumerate(cuts)]
        return list(blocks_of(cuts))

    def _starts(self, index: Ints, left: Ints) -> dict[int, Ints]:
        """Return the first samples of crops by axis, from samples of the mask and ranks within these."""
        found = {}
        for axis, place in zip(self.layout.source_axes[0], self.own, strict=True):
            if place is None:
                continue
            counts = self.weigh.counts[place]
            assert counts is not None
            before = np.concatenate(([0], np.cumsum(counts)))[index[:, place]]
            inside, left = left % counts[index[:, place]], left // counts[index[:, place]]
            found[axis] = before + inside
        return found


# -- reading ----------------------------------------------------------------------------------------------


def _of_crops(source: Source, layout: Layout, starts: Ints) -> Source:
    """Return a result as a source of which only the tiles run that crops need; any other as it is."""
    if not isinstance(source, BlockSource):
        return source
    part = narrowed(source.handle, (starts, starts + _shape(source, layout)))
    return replace(source, handle=part, token=("dask", part.name))


def _shape(source: Source, layout: Layout) -> Ints:
    """Return the shape of a crop along all axes of the image."""
    lengths = dict(zip(layout.tiled[0], layout.crop, strict=True)) | dict.fromkeys(layout.each[0], 1)
    return np.array([lengths.get(a, m) for a, m in enumerate(source.shape)])


def _read(source: Source, layout: Layout, starts: Ints, how: How) -> Array:
    """Return the crops that begin at ``starts``."""
    shape = _shape(source, layout)
    calls = []
    for numbers in _together(source, starts + shape // 2, shape):
        own = starts[numbers]
        box = tuple(zip(own.min(0).tolist(), (own.max(0) + shape).tolist(), strict=True))
        calls.append((box, (numbers, own - own.min(0))))
    cut = Cut(tuple(shape.tolist()), layout.each[0], source.dtype)
    kept = tuple(int(m) for a, m in enumerate(shape) if a not in layout.each[0])
    found = np.empty((len(starts), *kept), source.dtype)
    for numbers, crops in how.run(BoxJob("sample-crops", [source], cut, calls, how.where)):
        found[numbers] = crops
    return found


def _together(source: Source, middles: Ints, shape: Ints) -> list[Ints]:
    """Return the numbers of crops that are read together: those with their middles in one chunk."""
    cuts: Sequence[Any] = cuts_of(source, (), 1)
    if source.chunks is None and not source.dask_name:
        # Crops that are near each other are in few tasks, and these read few samples between crops.
        cuts = [range(0, n, max(1, 2 * m)) for n, m in zip(source.shape, shape.tolist(), strict=True)]
    cells = np.stack([np.searchsorted(c, middles[:, a], side="right") for a, c in enumerate(cuts)], axis=1)
    _, first = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(first.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(first.ravel()[order])) + 1)


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts crops out of a box."""

    shape: Index
    each: Index
    dtype: np.dtype[Any]

    def __call__(
        self, parts: list[Array], box: Sequence[Span], argument: tuple[Ints, Ints]
    ) -> tuple[Ints, Array]:
        """Return the numbers of crops, and the crops without their ``each`` axes."""
        del box
        check_read(parts[0], self.dtype, exact=True)
        numbers, starts = argument
        crops = []
        for start in starts.tolist():
            index: list[Any] = [slice(a, a + m) for a, m in zip(start, self.shape, strict=True)]
            for axis in self.each:
                index[axis] = start[axis]
            crops.append(parts[0][tuple(index)])
        return numbers, np.stack(crops)
