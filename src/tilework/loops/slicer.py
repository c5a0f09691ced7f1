"""`Slicer`: the crops of an image and the places of their results, with the interface of Ryomen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tilework._checks import brief, flag, noted, one_of, parse_bytes, whole
from tilework.errors import GridError, TilingError
from tilework.function.output import scales
from tilework.grid.axis import AxisGrid, Starts
from tilework.grid.weights import AxisWeights
from tilework.loops.common import Cut, check_scale, raises_as_ancestors
from tilework.loops.reader import CropReader, Padding, check_apart, open_image
from tilework.loops.writer import ChunkWriter, check_writable
from tilework.plan.arguments import LONGEST, check_axis, guard_channels, lengths, per_axis, resolve_axes
from tilework.plan.tile_plan import TilePlan
from tilework.source.padding import TECHNIQUES

__all__ = ["Slicer"]

Index = tuple[Any, ...]


def _as_is(value: Any) -> Any:
    return value


class Slicer:
    """Crops of an image: a sequence of ``(crop, source, destination)``.

    ``source`` is the part of a crop's result without its context, ``destination`` its place in the output;
    both are tuples of slices.

    A replacement for ``ryomen.Slicer`` with its arguments and order of crops. It also returns every crop in
    its own memory, makes batches, writes the whole border with ``pad=False``, takes images smaller than the
    crop or the overlap, and can be pickled, indexed and used in several threads.

    Parameters
    ----------
    image : array, path, URL or `load_once`
        As in `tiled_map`, and torch tensors on any device. Crops have the other axes in full.
    crop_size : int or sequence of int, samples per tiled axis
        Shape of a crop, including context.
    overlap : int or sequence of int, samples per side and tiled axis
        Context on each side, which is trimmed from the result; neighbouring crops share twice as much.
    batch_size : int
        Crops per item. Above 1 an item is a batch: ``collate`` of a list of crops, a list of sources and a
        list of destinations; the last batch may be smaller.
    pad : bool
        Whether to pad the image by ``overlap`` on both sides, so that every crop has its full context. If
        False, crops stay inside the image, and at its border have only the context inside it. A crop longer
        than the image is filled by padding, or without padding cut to the image.
    stride_offset : int, samples
        Added to the stride ``crop - 2 * overlap``; above 0 gaps remain between the destinations.
    output_transform : callable
        Applied to each crop.
    collate : callable
        Applied to the list of crops of an item; a list of one crop is unwrapped if ``batch_size`` is 1.
    progress_bar : callable
        Wraps a sequence of crop numbers, such as ``tqdm``.
    axes : sequence of int or names, optional
        The tiled axes. Default: the last ones; the function may then change the number of axes before them.
        Axes given here must have the same number in the result.
    boundary : str
        How ``pad`` fills samples: a mode of `numpy.pad`.
    cval : scalar
        The constant of ``boundary="constant"``.
    scale : int, Fraction or tuple of them, result samples per image sample
        For a function that changes the scale; sources and destinations are in result samples.
    memory_limit : int or str, bytes, optional
        Memory for decoded storage chunks, so that overlapping crops decode each once; default: an eighth of
        the default ``memory_limit`` of `tiled_map`.

    Raises
    ------
    TilingError
        For sizes that contradict each other; the message names the axis and the values.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> image = np.arange(100.0).reshape(10, 10)
    >>> output = np.empty_like(image)
    >>> for crop, source, destination in Slicer(image, crop_size=(6, 6), overlap=(1, 1)):
    ...     output[destination] = (crop + 1)[source]
    >>> bool((output == image + 1).all())
    True
    """

    @raises_as_ancestors
    def __init__(
        self,
        image: Any,
        crop_size: int | Sequence[int],
        overlap: int | Sequence[int],
        batch_size: int = 1,
        pad: bool = True,
        stride_offset: int = 0,
        output_transform: Callable[[Any], Any] = _as_is,
        collate: Callable[[Sequence[Any]], Any] = _as_is,
        progress_bar: Callable[[Sequence[int]], Iterable[int]] = _as_is,
        *,
        axes: Any = None,
        boundary: str = "reflect",
        cval: Any = 0,
        scale: Any = 1,
        memory_limit: int | str | None = None,
    ) -> None:
        flag("pad", pad)
        if not callable(boundary):
            one_of("boundary", boundary, TECHNIQUES)
        source = open_image(image)
        # An int tiles all axes; a sequence as many of the last ones as it has entries.
        several = lengths(crop_size, "crop_size")
        _, self._axes = resolve_axes(source, axes, (), several)
        names = tuple(source.names[a] if source.names else str(a) for a in self._axes)
        crop, halo = per_axis("crop_size", crop_size, names), per_axis("overlap", overlap, names)
        if axes is None and several is None:
            guard_channels(source, self._axes, crop, one_int=True)
        offset = whole("stride_offset", stride_offset)
        self._batch = whole("batch_size", batch_size)
        if self._batch < 1:
            raise TilingError(f"batch_size must be at least 1 crop; got {batch_size}.")
        hooks = {"output_transform": output_transform, "collate": collate, "progress_bar": progress_bar}
        for name, hook in hooks.items():
            if not callable(hook):
                raise TypeError(f"{name} must be callable; got {brief(hook)}.")
        self._transform, self._collate, self._progress = output_transform, collate, progress_bar
        sizes = zip(names, (source.shape[a] for a in self._axes), crop, halo, strict=True)
        grids = tuple(_grid(name, n, c, o, offset, pad) for name, n, c, o in sizes)
        factors = scales(scale, len(grids))
        check_scale(grids, names, factors)
        self._weights = tuple(
            AxisWeights(grid, rim=grid.overlap, scale=factor)
            for grid, factor in zip(grids, factors, strict=True)
        )
        options = {"constant_values": cval} if boundary == "constant" else {}
        limit = None if memory_limit is None else parse_bytes("memory_limit", memory_limit)
        self._reader = CropReader(image, source, self._axes, grids, Padding(boundary, **options), limit)
        self._cut = Cut(self._axes, grids, names, tuple(grid.overlap for grid in grids))
        self._last = axes is None
        self._shape = tuple(map(len, grids))
        self._places: list[dict[int, tuple[slice, slice]]] = [{} for _ in grids]

    def __len__(self) -> int:
        return -(-math.prod(self._shape) // self._batch)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        """Return item ``index``: crop, source and destination, or a batch of them (see ``batch_size``)."""
        number = range(len(self))[index]
        last = min((number + 1) * self._batch, math.prod(self._shape))
        return self._item([self._crop(i) for i in range(number * self._batch, last)])

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        waiting: list[tuple[Any, Index, Index]] = []
        for number in self._progress(range(math.prod(self._shape))):
            waiting.append(self._crop(number))
            if len(waiting) == self._batch:
                yield self._item(waiting)
                waiting = []
        if waiting:
            yield self._item(waiting)

    def _crop(self, number: int) -> tuple[Any, Index, Index]:
        """Return a crop with its source and destination."""
        position = []
        for count in self._shape:  # the first axis is the fastest
            number, i = divmod(number, count)
            position.append(i)
        places = [self._place(d, i) for d, i in enumerate(position)]
        source, destination = self._index([s for s, _ in places]), self._index([d for _, d in places])
        crop = noted("called as output_transform", self._transform, self._reader.read(position))
        return crop, source, destination

    def _place(self, d: int, i: int) -> tuple[slice, slice]:
        """Return source and destination of crop ``i`` along tiled axis ``d``."""
        place = self._places[d].get(i)
        if place is None:
            (a, b), (origin, _) = self._weights[d].support(i), self._weights[d].result(i)
            place = self._places[d][i] = slice(a - origin, b - origin), slice(a, b)
        return place

    def _item(self, crops: Sequence[tuple[Any, Index, Index]]) -> tuple[Any, Any, Any]:
        """Return the item of one crop or a batch."""
        images = noted("called as collate", self._collate, [crop for crop, _, _ in crops])
        sources, destinations = [s for _, s, _ in crops], [d for _, _, d in crops]
        if self._batch == 1 and isinstance(images, list) and len(images) == 1:
            return images[0], sources[0], destinations[0]
        return images, sources, destinations

    def _index(self, spans: Sequence[slice]) -> Index:
        """Return one slice per tiled axis as an index into the function's result."""
        if self._last:
            return (Ellipsis, *spans)
        index = [slice(None)] * (max(self._axes) + 1)
        for axis, span in zip(self._axes, spans, strict=True):
            index[axis] = span
        return tuple(index)

    def writer(self, output: Any) -> ChunkWriter:
        """Return a context manager that writes each storage chunk of ``output`` whole and once.

        Assign the result of each crop to it once, as to the array, in any order and from any thread. It holds
        the chunks that are not whole yet; in the order of this loop, the chunks of one slab along the last
        axis.

        Parameters
        ----------
        output : array
            The array to write into, such as a Zarr array.

        Returns
        -------
        ChunkWriter

        Raises
        ------
        GridError
            If ``output`` has other extents than the result.
        TilingError
            If ``output`` is, or shares samples with, the image: later crops would read results.

        Examples
        --------
        >>> import zarr
        >>> image, output = np.ones((40, 40)), zarr.zeros((40, 40), chunks=(16, 16))
        >>> slices = Slicer(image, crop_size=12, overlap=2)
        >>> with slices.writer(output) as out:
        ...     for crop, source, destination in slices:
        ...         out[destination] = crop[source]
        >>> bool((output[:] == image).all())
        True
        """
        check_writable("output", output)
        check_apart(output, [self._reader])
        shape, ndim = tuple(map(int, output.shape)), len(self._reader.source.shape)
        axes = tuple(a - ndim + len(shape) for a in self._axes) if self._last else self._axes
        parts: list[Any] = [None] * len(shape)
        for axis, weights, name in zip(axes, self._weights, self._cut.names, strict=True):
            if not 0 <= axis < len(shape) or shape[axis] != weights.extent:
                raise GridError(
                    f"output must have extent {weights.extent} on axis {name}; its shape is {shape}."
                )
            spans = np.array([weights.support(i) for i in range(len(weights.grid))])
            parts[axis] = (spans[:, 0], spans[:, 1])
        return ChunkWriter(output, parts)

    @property
    def plan(self) -> TilePlan:
        """A `TilePlan` of the same crops, in raster order, which tells their cost."""
        # Neither trimmed nor blended: where destinations overlap, the loop overwrites.
        scale = tuple(w.scale for w in self._weights)
        return self._cut.plan(self._reader.source, "sum", scale=scale)


def _grid(name: str, extent: int, crop: int, overlap: int, offset: int, pad: bool) -> AxisGrid:
    """Return the grid of crops along the axis ``name``."""
    check_axis(AxisGrid(extent, crop, overlap), name, rim=0)
    if not pad:
        # Without padding, a crop cannot be longer than the image.
        crop = min(crop, extent)
        overlap = min(overlap, (crop - 1) // 2)
    stride = crop - 2 * overlap + offset
    if not 0 < stride <= LONGEST:
        raise GridError(
            f"stride_offset must leave a positive stride, at most {LONGEST:.0e}; crop {crop} with overlap "
            f"{overlap} has stride {crop - 2 * overlap}, and the offset is {brief(offset)} on axis {name}."
        )
    first = -overlap if pad else 0
    last = max(first, extent - crop - first)
    starts = Starts.every(stride, first=first, last=last)
    return AxisGrid(extent, crop, overlap, stride, "pad" if pad else "clip", False, starts=starts)
