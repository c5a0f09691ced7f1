"""`CropReader`: one crop of an image at a time, each in its own memory, from any source."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tilework._checks import attribute, one_of, scalar
from tilework._machine import default_memory
from tilework._types import Array
from tilework.errors import TilingError
from tilework.function.calling import from_tensor, is_tensor
from tilework.function.load_once import in_task
from tilework.grid.axis import AxisGrid
from tilework.identity.samples import same_array
from tilework.plan.arguments import check_crop_bytes
from tilework.source.base import Source
from tilework.source.kept import Uses
from tilework.source.opening import open_source, opened
from tilework.source.padding import BOUNDARIES, TECHNIQUES, AxisRead, Boundary, read_padded, read_with_numpy
from tilework.source.zarr_array import ZarrSource

__all__ = ["CropReader", "Padding", "check_apart", "open_image"]

Position = Sequence[int]

# The reader of one image may keep this fraction (1 / CACHE_SHARE) of the memory limit of a process as decoded
# chunks. A chunk is dropped at its last use, so only images far larger than their crops need so much.
CACHE_SHARE = 8


class Padding:
    """How samples outside the image are filled: a mode or callable of `numpy.pad` with its options."""

    def __init__(self, mode: Any = "reflect", **options: Any) -> None:
        self.mode = mode if callable(mode) else one_of("the padding mode", mode, TECHNIQUES)
        self.options = options
        self.cval: Any = 0
        self.boundary: Boundary | None = None
        """The mode if index arithmetic is enough; None if `numpy.pad` is called."""
        rest = dict(options)
        if mode == "constant" and not np.ndim(rest.get("constant_values", 0)):
            self.cval, self.boundary = rest.pop("constant_values", 0), "constant"
        elif mode == "empty":
            self.boundary = "constant"
        elif mode in BOUNDARIES and rest.get("reflect_type", "even") == "even" and mode != "constant":
            rest.pop("reflect_type", None)
            self.boundary = mode
        if self.boundary is not None and rest:
            raise TilingError(f"numpy.pad has no option {', '.join(rest)} for mode {mode!r}.")


class _Tensor:
    """A torch tensor on a device, sliced there and read as numpy."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape = tensor.detach(), tuple(tensor.shape)
        self.dtype = from_tensor(tensor[(slice(0),) * tensor.ndim]).dtype

    def __getitem__(self, index: Any) -> Array:
        return from_tensor(self.tensor[index])


def open_image(image: Any) -> Source:
    """Open any supported image as a `Source`; tensors may be on any device.

    Raises
    ------
    TypeError
        For an object without shape, dtype and slicing.
    """
    on_device = is_tensor(image) and image.device.type != "cpu"
    return open_source(_Tensor(image) if on_device else image)


class CropReader:
    """Reads the crops of a grid from one image; picklable and thread-safe."""

    def __init__(
        self,
        image: Any,
        source: Source,
        axes: Sequence[int],
        grids: Sequence[AxisGrid],
        padding: Padding,
        cache_bytes: int | None = None,
    ) -> None:
        if padding.boundary == "constant":
            scalar("the padding constant", padding.cval, source.dtype)
        self.source = source
        self._axes, self._grids, self._padding = tuple(axes), tuple(grids), padding
        self._cache_bytes = default_memory() // CACHE_SHARE if cache_bytes is None else cache_bytes
        self._tensor = is_tensor(image)
        self._device = attribute(image, "device")
        # Such a source is pickled without data, because tasks of a graph get the data separately.
        bare = source.in_memory or source.dask_name is not None
        self._image = image if bare or self._tensor else None
        self._uses: Uses | None = None
        starts = [grid.reads() for grid in self._grids]
        self._spans = [list(zip(a.tolist(), b.tolist(), strict=True)) for a, b in starts]
        columns = zip(self._spans, self._grids, strict=True)
        self._inside = [[a >= 0 and b <= grid.extent for a, b in spans] for spans, grid in columns]
        crop = list(source.shape)
        for axis, spans in zip(self._axes, self._spans, strict=True):
            crop[axis] = max((b - a for a, b in spans), default=0)
        self.crop_shape = tuple(crop)
        """Shape of the largest crop."""
        check_crop_bytes(self.crop_shape, source.dtype.itemsize, default_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        what = self.source if self._image is None else self._image
        return _reopened, (what, self._axes, self._grids, self._padding, self._cache_bytes)

    @property
    def image(self) -> Any:
        """The array whose samples are read, as far as it is known."""
        return self._image if isinstance(self.source.handle, _Tensor) else opened(self.source)

    def read(self, position: Position) -> Any:
        """Return the crop at ``position`` (its number along each axis) as a new array.

        It is a tensor on the same device if the image is one, else a numpy array.
        """
        reads = list(map(operator.getitem, self._spans, position))
        inside = all(map(operator.getitem, self._inside, position))
        if inside:
            box = [(0, n) for n in self.source.shape]
            for axis, read in zip(self._axes, reads, strict=True):
                box[axis] = read
            crop = self._read(box)
        else:
            crop = self._cut(reads)
        # Samples from a file or from index arithmetic are in new memory already.
        if not self.source.fresh and (inside or self._padding.boundary is None):
            crop = np.array(crop, order="C", copy=True)
        if self._tensor:
            return sys.modules["torch"].from_numpy(crop).to(self._device)
        return crop

    def _cut(self, reads: Sequence[tuple[int, int]]) -> Array:
        """Return a crop that sticks out of the image, padded."""
        if self._padding.boundary is not None:
            plans = [AxisRead(((0, n),)) for n in self.source.shape]
            for axis, grid, read in zip(self._axes, self._grids, reads, strict=True):
                plans[axis] = self._plan(grid, read)
            return read_padded(self._read, plans, self._padding.cval)
        wanted, widths = [(0, n) for n in self.source.shape], [(0, 0)] * len(self.source.shape)
        for axis, grid, read in zip(self._axes, self._grids, reads, strict=True):
            wanted[axis] = read
            spans = self._spans[self._axes.index(axis)]
            widths[axis] = (max(0, -spans[0][0]), max(0, spans[-1][1] - grid.extent))
        padding = self._padding
        return read_with_numpy(self._read, wanted, self.source.shape, widths, padding.mode, **padding.options)

    def _plan(self, grid: AxisGrid, read: tuple[int, int]) -> AxisRead:
        return AxisRead.plan(*read, grid.extent, self._padding.boundary or "edge")

    def _read(self, box: Sequence[tuple[int, int]]) -> Array:
        """Return the samples of a box inside the image; may be a view."""
        if not isinstance(self.source, ZarrSource) or self.source.chunks is None:
            # Arrays computed from a memmap would be memmaps, too.
            return np.asarray(self.source.read(box))
        if self._uses is None:
            self._uses = self._counted(self.source.chunks)
        with in_task():
            return self.source.read_shared(box, self._uses, self._cache_bytes)

    def _counted(self, chunks: Sequence[int]) -> Uses:
        """Return the number of crops that read each chunk."""
        counts = [np.ones(-(-n // c), np.int64) for n, c in zip(self.source.shape, chunks, strict=True)]
        for axis, grid in zip(self._axes, self._grids, strict=True):
            counts[axis][:] = 0
            for span in self._spans[self._axes.index(axis)]:
                for a, b in self._plan(grid, span).intervals:
                    counts[axis][a // chunks[axis] : -(-b // chunks[axis])] += b > a
        return Uses.product(counts)


def check_apart(output: Any, readers: Iterable[CropReader]) -> None:
    """Raise a `TilingError` if an array to write into is, or shares samples with, an image that is read."""
    place = attribute(output, "store_path") if type(output).__module__.partition(".")[0] == "zarr" else None
    for image in (reader.image for reader in readers):
        if same_array(output, image) or (place is not None and _is_at(image, place)):
            raise TilingError(
                "output is, or shares samples with, the image that is read; write into another array."
            )


def _is_at(image: Any, place: Any) -> bool:
    """Return whether a source is the Zarr array at a place in a store."""
    from tilework.identity.location import holds  # imports zarr

    return isinstance(image, Source) and holds(place, image)


def _reopened(image: Any, *rest: Any) -> CropReader:
    return CropReader(image, open_image(image), *rest)
