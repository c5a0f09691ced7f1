"""`GridSampler`: the patches of an image and their boxes, with the interface of Patchly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from tilework._checks import as_numbers, as_options, flag, one_of, parse_bytes, wholes
from tilework._types import Array, Index
from tilework.errors import GridError, TilingError
from tilework.grid.axis import AxisGrid, Starts, ceil_div
from tilework.grid.tiles import TileGrid
from tilework.loops.common import Cut, UnknownMode, raises_as_ancestors
from tilework.loops.reader import CropReader, Padding, open_image
from tilework.plan.arguments import check_axis, per_axis
from tilework.plan.pairing import check_names, warn_of_orders
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source

__all__ = ["GridSampler", "SamplingMode"]


class SamplingMode(Enum):
    """Treatment of patches that would stick out of the image.

    Examples
    --------
    >>> SamplingMode.of("pad_edges_reflect")
    (<SamplingMode.PAD_EDGES: 7>, 'reflect')
    """

    SAMPLE_EDGE = 1
    """The last patch is moved inward."""
    SAMPLE_ADAPTIVE = 2
    """The last patches are cut at the border."""
    SAMPLE_CROP = 3
    """Patches that do not fit are left out, with the samples that only they would cover."""
    SAMPLE_SQUEEZE = 4
    """The distance of the patches is reduced until the last one fits."""
    PAD_UNKNOWN = 5
    """Same as ``PAD_END``."""
    PAD_END = 6
    """The image is padded at its end until whole patches cover it."""
    PAD_EDGES = 7
    """As ``PAD_END``, with half of the padding before the image and half after it."""

    @property
    def pads(self) -> bool:
        """Whether the mode pads the image; other modes move, cut or leave out patches."""
        return self in (SamplingMode.PAD_UNKNOWN, SamplingMode.PAD_END, SamplingMode.PAD_EDGES)

    @classmethod
    def of(cls, mode: Any) -> tuple[SamplingMode, str | None]:
        """Return the mode named by a word, and the mode of `numpy.pad` with which the word ends, if any.

        Parameters
        ----------
        mode : SamplingMode or str
            A name such as "sample_edge", "squeeze" or "pad_end_reflect"; Patchly's own enum is accepted too.

        Returns
        -------
        (SamplingMode, str or None)

        Raises
        ------
        TilingError
            For any other word.
        TypeError
            If it is neither a mode nor a word.
        """
        if isinstance(mode, Enum):
            mode = mode.name
        word = mode.lower() if isinstance(mode, str) else mode
        for start in ("pad_end_", "pad_edges_"):
            if isinstance(word, str) and word.startswith(start):
                return cls[start[:-1].upper()], word[len(start) :]
        names = [m.name.lower() for m in cls]
        word = f"sample_{word}" if f"sample_{word}" in names else word
        try:
            return cls[one_of("mode", word, names).upper()], None
        except TilingError as error:
            raise UnknownMode(*error.args) from None


class GridSampler:
    """Patches of an image on a grid, each with its box: a sequence of ``(patch, box)``.

    A replacement for ``patchly.GridSampler`` with the arguments of version 0.0.19 and of its README. It also
    returns every patch in its own memory, takes images smaller than a patch and of any supported kind, pads
    in all padding modes, can be iterated several times at once, and stores no table of patches.

    Parameters
    ----------
    image : array, path, URL, `load_once`, dict of them, or None
        As in `tiled_map`, and torch tensors on any device. A dict of images gives dicts of patches; without
        an image, items are boxes only.
    spatial_size : int or sequence of int, samples per tiled axis
        Extents of the tiled axes; with a padding mode they may be larger than the image's.
    patch_size : int or sequence of int, samples per tiled axis
        Shape of a patch.
    step_size : int or sequence of int, samples per tiled axis, optional
        Distance between the starts of neighbouring patches; default: ``patch_size``.
    chunk_size : int or sequence of int, samples per tiled axis, optional
        Shape of a chunk. Patches are then sorted by chunk, and the `Aggregator` finishes each chunk when its
        last patch arrives.
    spatial_first : bool
        Whether the tiled axes come first in the image, or last.
    mode : SamplingMode or str
        Treatment of patches that would stick out of the image.
    pad_kwargs : dict, optional
        Keywords of `numpy.pad`: ``mode`` (default: "constant" with the padding modes; "reflect" for an image
        smaller than a patch) and the options of that mode.
    patch_offset : int or sequence of int, samples per tiled axis, optional
        Older name of ``step_size``.
    memory_limit : int or str, bytes, optional
        Memory for decoded storage chunks; default: an eighth of the default ``memory_limit`` of `tiled_map`.

    Raises
    ------
    TilingError
        For sizes that contradict each other; the message names the axis and the values.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    The older order of the first four arguments, ``spatial_size, patch_size, patch_offset, image``, is
    recognised if the first one is a tuple or list of sizes instead of an image.

    Examples
    --------
    >>> sampler = GridSampler(np.arange(10), (10,), (4,), mode=SamplingMode.SAMPLE_EDGE)
    >>> [(patch.tolist(), box.tolist()) for patch, box in sampler][-1]
    ([6, 7, 8, 9], [[6, 10]])
    """

    @raises_as_ancestors
    def __init__(
        self,
        image: Any = None,
        spatial_size: Any = None,
        patch_size: Any = None,
        step_size: Any = None,
        chunk_size: Any = None,
        spatial_first: bool = True,
        mode: SamplingMode | str = SamplingMode.SAMPLE_SQUEEZE,
        pad_kwargs: Mapping[str, Any] | None = None,
        *,
        patch_offset: Any = None,
        memory_limit: int | str | None = None,
    ) -> None:
        self.spatial_first = flag("spatial_first", spatial_first)
        if isinstance(image, tuple | list):
            image, spatial_size, patch_size, step_size = step_size, image, spatial_size, patch_size
        if patch_offset is not None:
            if step_size is not None:
                raise TypeError("patch_offset is the older name of step_size; give one of them.")
            step_size = patch_offset
        if spatial_size is None or patch_size is None:
            raise TypeError("GridSampler needs spatial_size and patch_size.")
        self.spatial_size = wholes("spatial_size", spatial_size)
        if not self.spatial_size:
            raise GridError("there is no axis to tile in spatial_size=(); give the lengths of the image.")
        self.mode, technique = SamplingMode.of(mode)
        names = tuple(map(str, range(len(self.spatial_size))))
        self.patch_size = per_axis("patch_size", patch_size, names)
        self.step_size = self.patch_size if step_size is None else per_axis("step_size", step_size, names)
        padding = {} if pad_kwargs is None else as_options("pad_kwargs", pad_kwargs)
        if technique is not None:
            padding["mode"] = technique
        padding.setdefault("mode", "constant" if self.mode.pads else "reflect")
        self._padding = Padding(**padding)
        images = image if isinstance(image, Mapping) else {} if image is None else {None: image}
        sources = {key: open_image(one) for key, one in images.items()}
        axes = [self._axes(source) for source in sources.values()]
        check_names(list(sources.values()), axes, list(sources))
        extents = self._extents(list(sources.values()))
        sizes = zip(names, extents, self.spatial_size, self.patch_size, self.step_size, strict=True)
        self.grids = tuple(_grid(self.mode, name, n, max(n, size), p, s) for name, n, size, p, s in sizes)
        self.chunk_size = (
            None if chunk_size is None else self._chunks(per_axis("chunk_size", chunk_size, names))
        )
        limit = None if memory_limit is None else parse_bytes("memory_limit", memory_limit)
        self._many = isinstance(image, Mapping)
        self.readers = {
            key: CropReader(images[key], source, own, self.grids, self._padding, limit)
            for (key, source), own in zip(sources.items(), axes, strict=True)
        }
        crops = [reader.crop_shape for reader in self.readers.values()]
        warn_of_orders(list(sources.values()), crops, keys=list(sources))
        self._order = _Order(self.grids, self.chunk_size)
        self._raster = TileGrid(self.grids)
        width = self.pad_width
        lead = [0] * len(self.grids) if width is None else width[:, 0].tolist()
        reads = ((a + lead[d], b + lead[d]) for d, (a, b) in enumerate(g.reads() for g in self.grids))
        self._spans = [list(zip(a.tolist(), b.tolist(), strict=True)) for a, b in reads]
        self._numbers = [{span: i for i, span in enumerate(spans)} for spans in self._spans]

    def _extents(self, sources: Sequence[Source]) -> Index:
        """Return the image's extents along the tiled axes, checked against ``spatial_size``."""
        found = self.spatial_size
        for source in sources:
            found = tuple(source.shape[a] for a in self._axes(source))
            for axis, (n, size) in enumerate(zip(found, self.spatial_size, strict=True)):
                if n != size and not (self.mode.pads and n < size):
                    raise GridError(
                        f"spatial_size must be the image's: axis {axis} has {n} samples, spatial_size has "
                        f"{size}; the image has shape {source.shape}, spatial_first={self.spatial_first}."
                    )
        if len({tuple(s.shape[a] for a in self._axes(s)) for s in sources}) > 1:
            raise GridError(f"all images must have one spatial size; got {[s.shape for s in sources]}.")
        return found

    def _axes(self, source: Source) -> Index:
        """Return the tiled axes of an image."""
        ndim, n = len(source.shape), len(self.spatial_size)
        if ndim < n:
            raise GridError(
                f"spatial_size {self.spatial_size} has {n} axes; the image has {ndim} (shape {source.shape})."
            )
        return tuple(range(n)) if self.spatial_first else tuple(range(ndim - n, ndim))

    def _chunks(self, chunk: Index) -> Index:
        """Return the lengths of a chunk, at most the image's."""
        for axis, (c, p, grid) in enumerate(zip(chunk, self.patch_size, self.grids, strict=True)):
            if c < min(p, grid.extent):
                raise GridError(f"chunk_size must hold a patch; got {c} and patch {p} on axis {axis}.")
        return tuple(min(c, grid.extent) for c, grid in zip(chunk, self.grids, strict=True))

    @property
    def pad_width(self) -> Array | None:
        """Samples before and after the image, shape (axes, 2), int64; None without a padding mode."""
        if not self.mode.pads:
            return None
        spans = [(grid.read(0)[0], grid.read(len(grid) - 1)[1] - grid.extent) for grid in self.grids]
        return np.array([(max(0, -a), max(0, b)) for a, b in spans])

    def __len__(self) -> int:
        return len(self._order)

    @raises_as_ancestors
    def __getitem__(self, idx: int) -> Any:
        """Return patch ``idx`` and its box (see `get_bbox`), or only the box if there is no image."""
        return self._at(self._order[range(len(self))[idx]])

    def _at(self, position: Index) -> Any:
        """Return the item at ``position`` (number of the patch along each axis)."""
        if not self.readers:
            return self._bbox(position)
        if not self._many:
            return self.readers[None].read(position), self._bbox(position)
        patches = {key: reader.read(position) for key, reader in self.readers.items()}
        return patches, self._bbox(position)

    def __iter__(self) -> Iterator[Any]:
        return map(self._at, self._order)

    def get_bbox(self, idx: int) -> Array:
        """Return the box of patch ``idx`` in the padded image.

        Parameters
        ----------
        idx : int
            Number of the patch in the order of the loop.

        Returns
        -------
        numpy.ndarray, shape (axes, 2), int64, samples
            Start and stop per tiled axis.
        """
        return self._bbox(self._order[range(len(self))[idx]])

    def _bbox(self, position: Index) -> Array:
        return np.array([spans[i] for spans, i in zip(self._spans, position, strict=True)])

    @raises_as_ancestors
    def position(self, bbox: Any) -> Index:
        """Return the number along each axis of the patch with box ``bbox``.

        Parameters
        ----------
        bbox : array of int, shape (axes, 2), samples
            As `get_bbox` returns it.

        Returns
        -------
        tuple of int

        Raises
        ------
        TilingError
            If no patch has this box.
        """
        box = as_numbers("bbox", bbox)
        if box.shape != (len(self.grids), 2):
            raise TilingError(
                f"bbox must have a start and a stop for each of {len(self.grids)} axes; got shape "
                f"{box.shape}. Boxes of a batch need has_batch_dim=True."
            )
        found = []
        for axis, (start, stop) in enumerate(box.tolist()):
            i = self._numbers[axis].get((start, stop))
            if i is None:
                raise TilingError(
                    f"no patch of the sampler has box {box.tolist()}: on axis {axis} none spans "
                    f"[{start}, {stop}). Append boxes as the sampler returned them."
                )
            found.append(i)
        return tuple(found)

    def number(self, position: Index) -> int:
        """Return the raster number of the patch at ``position`` (its number along each axis)."""
        return self._raster.number(position)

    @property
    def plan(self) -> TilePlan:
        """A `TilePlan` of the same patches, averaged, in raster order, which tells their cost."""
        first = next(iter(self.readers.values()), None)
        source = Source(None, self.spatial_size, np.dtype(np.float32)) if first is None else first.source
        cut = Cut.numbered(self._axes(source), self.grids)
        return cut.plan(source, "average", chunks=self.chunk_size or "auto")


class _Order:
    """The order of patches: raster order, or with chunks, sorted by the chunk in which they start."""

    def __init__(self, grids: Sequence[AxisGrid], chunk: Index | None) -> None:
        self._grid = TileGrid(tuple(grids))
        self._firsts: list[Array] = []
        if chunk is None:
            return
        for grid, size in zip(grids, chunk, strict=True):
            edges = np.arange(0, max(grid.extent, 1), size)
            # Patches that start before the image belong to the first chunk.
            self._firsts.append(np.append(np.searchsorted(grid.reads()[0], edges[1:]), len(grid)))
        counts = np.ones((), np.int64)
        for firsts in self._firsts:
            counts = np.multiply.outer(counts, np.diff(firsts, prepend=0))
        self._counts, self._ends = counts, counts.cumsum()

    def __len__(self) -> int:
        return len(self._grid)

    def __iter__(self) -> Iterator[Index]:
        if not self._firsts:
            return itertools.product(*map(range, self._grid.shape))
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Index:
        """Return the position of patch ``number`` in this order."""
        if not self._firsts:
            return tuple(map(int, np.unravel_index(number, self._grid.shape)))
        chunk = int(np.searchsorted(self._ends, number, side="right"))
        within = number - int(self._ends[chunk] - self._counts.flat[chunk])
        index = np.unravel_index(chunk, self._counts.shape)
        lows = [int(f[i - 1]) if i else 0 for f, i in zip(self._firsts, index, strict=True)]
        lengths = [int(f[i]) - low for f, i, low in zip(self._firsts, index, lows, strict=True)]
        steps = np.unravel_index(within, lengths)
        return tuple(low + int(step) for low, step in zip(lows, steps, strict=True))


def _grid(mode: SamplingMode, name: str, extent: int, size: int, patch: int, step: int) -> AxisGrid:
    """Return the grid of patches along one axis; padding modes pad it to at least ``size`` samples."""
    if step < 1:
        raise GridError(f"stride (step_size) must be at least 1; got {step} on axis {name}.")
    grid = AxisGrid(extent, patch, max(0, patch - step) // 2, step, "shift", trims=False)
    try:
        check_axis(grid, name, rim=0)
    except GridError as error:
        raise GridError(f"{error} (patch_size is the crop, step_size the stride.)") from None
    fits = max(0, ceil_div(extent - patch, step))
    if mode is SamplingMode.SAMPLE_EDGE or (mode is SamplingMode.SAMPLE_SQUEEZE and not fits):
        return grid
    half = (grid.overlap, step)
    if mode is SamplingMode.SAMPLE_CROP:
        if extent < patch:
            raise GridError(
                f"no patch fits: the image has {extent} samples on axis {name}, the patch {patch}. Use "
                "another mode, which pads."
            )
        return AxisGrid(extent, patch, *half, "drop", trims=False)
    if mode is SamplingMode.SAMPLE_ADAPTIVE:
        starts = Starts(((0, step, ceil_div(extent, step)),))
        return AxisGrid(extent, patch, *half, "clip", trims=False, starts=starts)
    if mode is SamplingMode.SAMPLE_SQUEEZE:
        surplus = fits * step + patch - extent
        starts = Starts(((0, step - surplus // fits, fits), (extent - patch, 1, 1)))
        return AxisGrid(extent, patch, *half, "shift", trims=False, starts=starts)
    count = 1 + max(0, ceil_div(size - patch, step))
    missing = max(size, (count - 1) * step + patch) - extent
    before = missing // 2 if mode is SamplingMode.PAD_EDGES else 0
    return AxisGrid(extent, patch, *half, "pad", trims=False, starts=Starts(((-before, step, count),)))
