"""Sources as recipes: what a task needs to read one crop, never the data of the whole image.

Every source has a shape, a dtype, perhaps storage chunks and axis names, and reads intervals inside the
image. What cannot travel refuses to be pickled, with the cure in the message; on threads all work.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from tilework.errors import TilingError

__all__ = [
    "BlockSource",
    "FileSource",
    "H5Source",
    "MemoryPart",
    "MemorySource",
    "OnceSource",
    "Source",
]

Array = np.ndarray[Any, Any]
Interval = tuple[int, int]

# An array in memory travels to other processes crop by crop, up to this in all, bytes.
MEMORY_TRAVEL_LIMIT = 256 * 2**20


@dataclass(slots=True)
class Source:
    """Any object with shape, dtype and slicing; the base of the others."""

    handle: Any
    """What is sliced."""
    shape: tuple[int, ...]
    """Extents per axis, samples."""
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None = None
    """Regular storage chunks, samples per axis, where decoding a part costs the whole."""
    names: tuple[str, ...] | None = None
    """Axis names, where the source has them."""
    token: Any = None
    """Equal for equal data where that can be known cheaply; None means unknown."""

    def __post_init__(self) -> None:
        if self.token is None:
            self.token = uuid.uuid4().hex

    @property
    def nbytes(self) -> int:
        """Size of the decoded image, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, box: Sequence[Interval], uses: Sequence[Array] | None = None, limit: int = 0) -> Array:
        """Return the samples of ``box``, intervals per axis inside the image; may be a view.

        Parameters
        ----------
        box : sequence of (start, stop), samples
        uses : sequence of 1-D int arrays, optional
            How many times the run reads each chunk along each axis.
        limit : int, bytes of the chunk cache
        """
        del uses, limit
        return np.asarray(self.handle[tuple(slice(a, b) for a, b in box)])

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            handle = cloudpickle.dumps(self.handle)
        except Exception as error:
            raise TilingError(
                f"the array, a {type(self.handle).__name__}, cannot be sent to other processes ({error}); "
                "let each open it: array=tw.load_once(open_it, args), or run on threads."
            ) from error
        values = (self.shape, self.dtype, self.chunks, self.names, self.token)
        return _unpacked, (type(self), handle, values)


def _unpacked(kind: type[Source], handle: bytes, values: tuple[Any, ...]) -> Source:
    return kind(cloudpickle.loads(handle), *values)


@dataclass(slots=True)
class MemorySource(Source):
    """A numpy array; its parts are graph keys of their own, so that only they travel."""

    def part(self, box: Sequence[Interval]) -> MemoryPart:
        """Return a view of ``box`` that knows its place."""
        view = self.handle[tuple(slice(a, b) for a, b in box)]
        return MemoryPart(view, tuple(a for a, _ in box), self.handle.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tasks read parts; the source in the spec is only a description.
        return MemorySource, (None, self.shape, self.dtype, None, self.names, self.token)


@dataclass(slots=True)
class MemoryPart:
    """A view of an array in memory; by reference on threads, by its own bytes elsewhere."""

    view: Array
    origin: tuple[int, ...]
    whole: int
    """Bytes of the whole array."""

    def read(self, box: Sequence[Interval]) -> Array:
        """Return the samples of ``box``, intervals of the whole image."""
        return self.view[tuple(slice(a - o, b - o) for (a, b), o in zip(box, self.origin, strict=True))]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.whole > MEMORY_TRAVEL_LIMIT:
            raise TilingError(
                f"an array of {self.whole / 2**20:.0f} MiB in memory would be sent to other processes; the "
                "limit "
                f"is {MEMORY_TRAVEL_LIMIT / 2**20:.0f} MiB. Put it into Zarr (zarr.save_array(path, array)) "
                "and "
                "give tiled_map the path, or run on threads."
            )
        return MemoryPart, (np.ascontiguousarray(self.view), self.origin, self.whole)


@dataclass(slots=True)
class BlockSource(Source):
    """A dask array: tasks get the blocks that their crop touches as inputs."""

    offsets: tuple[tuple[int, ...], ...] = ()
    """First sample of each block per axis, and the extent."""

    def touching(self, box: Sequence[Interval]) -> list[tuple[int, ...]]:
        """Return the indices of the blocks that meet ``box``."""
        ranges = []
        for (a, b), edges in zip(box, self.offsets, strict=True):
            first = int(np.searchsorted(edges, a, side="right")) - 1
            ranges.append(range(first, max(first + 1, int(np.searchsorted(edges, b, side="left")))))
        return list(itertools.product(*ranges))

    def read_blocks(self, blocks: dict[tuple[int, ...], Array], box: Sequence[Interval]) -> Array:
        """Return the samples of ``box`` from computed blocks; a view where one block holds it."""
        indices = self.touching(box)
        starts = [[self.offsets[d][i] for d, i in enumerate(index)] for index in indices]
        if len(indices) == 1:
            return blocks[indices[0]][
                tuple(slice(a - s, b - s) for (a, b), s in zip(box, starts[0], strict=True))
            ]
        out = np.empty([b - a for a, b in box], self.dtype)
        for index, start in zip(indices, starts, strict=True):
            block = np.asarray(blocks[index])
            inside = [
                (max(a, s), min(b, s + n)) for (a, b), s, n in zip(box, start, block.shape, strict=True)
            ]
            target = tuple(slice(i - a, j - a) for (i, j), (a, _) in zip(inside, box, strict=True))
            out[target] = block[tuple(slice(i - s, j - s) for (i, j), s in zip(inside, start, strict=True))]
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        values = (None, self.shape, self.dtype, None, self.names, self.token, self.offsets)
        return BlockSource, values


@dataclass(slots=True)
class FileSource(Source):
    """A memory-mapped file, as (file, byte offset, dtype, shape, strides)."""

    path: str = ""
    offset: int = 0
    strides: tuple[int, ...] = ()

    def read(self, box: Sequence[Interval], uses: Sequence[Array] | None = None, limit: int = 0) -> Array:
        """Return a view of the mapped file."""
        del uses, limit
        if self.handle is None:
            self.handle = _map_file(self.path, self.offset, self.dtype.str, self.shape, self.strides)
        return self.handle[tuple(slice(a, b) for a, b in box)]  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        values = (
            None,
            self.shape,
            self.dtype,
            None,
            self.names,
            self.token,
            self.path,
            self.offset,
            self.strides,
        )
        return FileSource, values


@lru_cache(maxsize=16)
def _map_file(path: str, offset: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    buffer = np.memmap(path, mode="r", dtype=np.uint8)
    return np.ndarray(shape, np.dtype(dtype), buffer, offset, strides)


@dataclass(slots=True)
class H5Source(Source):
    """An h5py dataset, as (file, dataset)."""

    path: str = ""
    dataset: str = ""

    def read(self, box: Sequence[Interval], uses: Sequence[Array] | None = None, limit: int = 0) -> Array:
        """Return the samples of ``box`` from the file."""
        del uses, limit
        if self.handle is None:
            self.handle = _open_h5(self.path, self.dataset)
        return np.asarray(self.handle[tuple(slice(a, b) for a, b in box)])

    def __reduce__(self) -> tuple[Any, ...]:
        if not Path(self.path).is_file():
            raise TilingError(
                f"the h5py dataset {self.dataset} lives in memory only; write it to a file or use threads."
            )
        values = (
            None,
            self.shape,
            self.dtype,
            self.chunks,
            self.names,
            self.token,
            self.path,
            self.dataset,
        )
        return H5Source, values


@lru_cache(maxsize=16)
def _open_h5(path: str, dataset: str) -> Any:
    import h5py

    return h5py.File(path, "r")[dataset]


@dataclass(slots=True)
class OnceSource(Source):
    """An object that `load_once` opens once per process."""

    def read(self, box: Sequence[Interval], uses: Sequence[Array] | None = None, limit: int = 0) -> Array:
        """Return the samples of ``box`` from the opened object."""
        del uses, limit
        return np.asarray(self.handle.get()[tuple(slice(a, b) for a, b in box)])
