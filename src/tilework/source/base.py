"""Sources: recipes to read one crop, which never carry the data of the whole image.

Every source has a shape, a dtype, perhaps storage chunks and axis names, and reads intervals inside the
image. If a source cannot be sent to other processes, pickling it raises an error that says what to do
instead; with threads, every source works.

A task reads most sources itself. Parts of an array in memory, and blocks of a dask array, are passed to it:
`Source.needs` lists them and `Source.reader` reads from them.
"""

from __future__ import annotations

import bisect
import itertools
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from tilework._checks import picklable
from tilework._machine import computing
from tilework._types import Array, Index, Span
from tilework.errors import ContractError, TilingError
from tilework.formats.meta import ImageMeta
from tilework.function.calling import from_tensor, is_tensor
from tilework.source import held
from tilework.source.kept import scope
from tilework.source.padding import AxisRead, Reader

__all__ = [
    "BlockSource",
    "HalfSource",
    "MemoryPart",
    "MemorySource",
    "OnceSource",
    "PlannedSource",
    "Source",
    "Unread",
    "slices_of",
    "unmasked",
]


# Largest array in memory that is sent to other processes, crop by crop; bytes.
MEMORY_TRAVEL_LIMIT = 256 * 2**20


def slices_of(box: Sequence[Span]) -> tuple[slice, ...]:
    """Return intervals per axis as an index."""
    return tuple([slice(a, b) for a, b in box])


def unmasked(part: Any) -> Array:
    """Return a part of an image as a numpy array; may be a view.

    Raises
    ------
    TypeError
        If samples of it are masked: a numpy array would hold the values below the mask.
    """
    if type(part) is np.ndarray:
        return part
    if np.ma.is_masked(part):
        masked = int(np.ma.getmaskarray(part).sum())
        raise TypeError(
            f"{masked} of the {part.size} samples that were read are masked, but the array did not say that "
            "it is masked when it was opened. A dask array says so by meta=numpy.ma.empty(...), a reader by "
            "an attribute mask = True. Or fill it (array.filled(value)), and give nodata=value."
        )
    return from_tensor(part) if is_tensor(part) else np.asarray(part)


@dataclass(slots=True)
class Source:
    """A source of any object with shape, dtype and slicing; the base of all sources."""

    handle: Any
    """The object that is sliced; None after unpickling, if it is not sent or not open yet."""
    shape: Index
    """Extents per axis, samples."""
    dtype: np.dtype[Any]
    chunks: Index | None = None
    """Regular storage chunks, samples per axis, if reading a part of one decodes all of it."""
    meta: ImageMeta | None = field(default=None, repr=False)
    """What its samples mean, if the source says it; not sent to other processes."""
    token: Any = None
    """Equal for equal data, where that is cheap to know; otherwise unique."""
    valid: Source | None = field(default=None, repr=False, kw_only=True)
    """Which samples of a masked array are not masked; None for other arrays. Not sent to other processes."""

    in_memory: ClassVar[bool] = False
    """Whether reading returns a view, which takes no memory."""
    given: ClassVar[bool] = False
    """Whether a task must be given what it reads, because it cannot read the source itself."""
    fresh: ClassVar[bool] = False
    """Whether every read returns a new array, which may be overwritten."""

    def __post_init__(self) -> None:
        if self.token is None:
            self.token = uuid.uuid4().hex

    @property
    def shares(self) -> bool:
        """Whether the tasks of a run may use the chunks that others of them decoded."""
        return False

    @property
    def shares_in_runs(self) -> bool:
        """Whether only the tasks of one run of tilework's own may, and none that dask runs by itself."""
        return False

    @property
    def request_bytes(self) -> int:
        """Bytes of samples that one request reads of chunks that are kept, at most; 0: a chunk."""
        return 0

    @property
    def names(self) -> tuple[str, ...] | None:
        """Axis names, if the source has them."""
        return None if self.meta is None else self.meta.axes

    @property
    def nbytes(self) -> int:
        """Size of the decoded image, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dask_name(self) -> str | None:
        """Name of the dask array whose blocks are passed to tasks; None for other sources."""
        return None

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``, intervals per axis inside the image; may be a view."""
        part = unmasked(self.raw(box))
        check_box(part, box, self.handle)
        return part if part.dtype == self.dtype else self.as_declared(part)

    def raw(self, box: Sequence[Span]) -> Any:
        """Return what the object returns for ``box``, a masked array for example."""
        return self.handle[slices_of(box)]

    def as_declared(self, part: Array) -> Array:
        """Return samples in the dtype of the array; raise if they do not fit in it."""
        check_read(part, self.dtype)
        return part.astype(self.dtype, copy=False)

    def needs(self, reads: Sequence[AxisRead]) -> Any:
        """Return the data that a task must be given to read ``reads``; None if it reads them itself."""
        return self.together([self.along(axis, read) for axis, read in enumerate(reads)])

    def along(self, axis: int, read: AxisRead) -> Any:
        """Return what `needs` must know of one axis, which many blocks have in common."""

    def together(self, parts: Sequence[Any]) -> Any:
        """Return what `needs` does, from what `along` returned for each axis."""

    def whole(self) -> MemoryPart | None:
        """Return the samples that a graph must carry if its tasks are made in another process; None: none."""
        return None

    def reader(self, given: Any, reads: Sequence[AxisRead]) -> Reader:
        """Return a function that reads boxes of ``reads``, from the data that the task was ``given``."""
        del given, reads
        return self.read

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            handle = held.dumps(self.handle)
        except Exception as error:
            raise TilingError(
                f"the array, a {type(self.handle).__name__}, cannot be sent to other processes ({error}); "
                "open it in each of them: array=tw.load_once(open_it, args), or run on threads."
            ) from error
        values = (self.shape, self.dtype, self.chunks, None, self.token)
        return _unpacked, (type(self), handle, values)


def _unpacked(kind: type[Source], handle: bytes, values: tuple[Any, ...]) -> Source:
    return kind(cloudpickle.loads(handle), *values)


@dataclass(slots=True)
class MemorySource(Source):
    """A numpy array; its parts have graph keys of their own, so that only they are sent to workers."""

    given: ClassVar[bool] = True
    in_memory: ClassVar[bool] = True

    def along(self, axis: int, read: AxisRead) -> Span:
        """Return what is around all samples that are read along one axis."""
        return read.intervals[0][0], read.intervals[-1][1]

    def whole(self) -> MemoryPart:
        """Return a view of all samples."""
        return self.together([(0, n) for n in self.shape])

    def together(self, parts: Sequence[Span]) -> MemoryPart:
        """Return a view of a box with its position."""
        return MemoryPart(self.handle[slices_of(parts)], tuple([a for a, _ in parts]), self.handle.nbytes)

    def reader(self, given: MemoryPart, reads: Sequence[AxisRead]) -> Reader:
        """Return a function that reads from the part that the task was given."""
        del reads
        return given.read

    def __reduce__(self) -> tuple[Any, ...]:
        # Tasks read parts; the source in the spec only describes the array.
        return MemorySource, (None, self.shape, self.dtype, None, None, self.token)


@dataclass(slots=True)
class MemoryPart:
    """A view of an array in memory; threads share it, other processes get a copy of its bytes."""

    view: Array
    origin: Index
    """First sample per axis, in the whole image."""
    whole: int
    """Bytes of the whole array."""

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``, intervals of the whole image."""
        return self.view[tuple(slice(a - o, b - o) for (a, b), o in zip(box, self.origin, strict=True))]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.whole > MEMORY_TRAVEL_LIMIT:
            raise TilingError(
                f"an array of {self.whole / 2**20:.0f} MiB in memory would be sent to other processes; the "
                f"limit is {MEMORY_TRAVEL_LIMIT / 2**20:.0f} MiB. Put it into Zarr (zarr.save_array(path, "
                "array)) and give tiled_map the path, or run on threads."
            )
        return MemoryPart, (np.ascontiguousarray(self.view), self.origin, self.whole)


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands for a block of a dask array that could not be computed: only what reads it fails."""

    error: BaseException
    """The exception."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Unread, (picklable(self.error),)


@dataclass(slots=True)
class BlockSource(Source):
    """A dask array; tasks get the blocks that their crops touch."""

    given: ClassVar[bool] = True

    offsets: tuple[Index, ...] = ()
    """First sample of each block, then the extent; per axis."""

    @property
    def dask_name(self) -> str:
        """Name of the dask array."""
        return str(self.token[1])

    def along(self, axis: int, read: AxisRead) -> list[int]:
        """Return the numbers of the blocks that are read along one axis, sorted."""
        return sorted({number for span in read.intervals for number in self.meeting(axis, span)})

    def together(self, parts: Sequence[list[int]]) -> list[Index]:
        """Return the numbers of the blocks that are read, sorted."""
        return list(itertools.product(*parts))

    def reader(self, given: Sequence[Array], reads: Sequence[AxisRead]) -> Reader:
        """Return a function that reads from the computed blocks that the task was given."""
        found = [block if isinstance(block, Unread) else unmasked(block) for block in given]
        blocks = dict(zip(self.needs(reads), found, strict=True))
        return lambda box: self.read_blocks(blocks, box)

    def read(self, box: Sequence[Span]) -> Array:
        """Compute and return the samples of ``box``."""
        part = unmasked(self.handle[slices_of(box)].compute(**computing()))
        check_box(part, box, self.handle)
        return self.as_declared(part)

    def meeting(self, axis: int, span: Span) -> range:
        """Return the numbers of the blocks along an axis that meet an interval."""
        edges = self.offsets[axis]
        first = min(bisect.bisect_right(edges, span[0]), len(edges) - 1) - 1  # no samples at all
        return range(first, max(first + 1, bisect.bisect_left(edges, span[1])))

    def block_shape(self, index: Index) -> Index:
        """Return the shape of a block."""
        return tuple([edges[i + 1] - edges[i] for edges, i in zip(self.offsets, index, strict=True)])

    def read_blocks(self, blocks: Mapping[Index, Any], box: Sequence[Span]) -> Array:
        """Return the samples of ``box`` from computed blocks; a view where one block holds it."""
        indices = list(itertools.product(*map(self.meeting, range(len(box)), box)))
        found = [self._block(index, blocks[index]) for index in indices]
        starts = [[self.offsets[d][i] for d, i in enumerate(index)] for index in indices]
        if len(indices) == 1:
            inside = [(a - s, b - s) for (a, b), s in zip(box, starts[0], strict=True)]
            return self.as_declared(found[0][slices_of(inside)])
        out = np.empty([b - a for a, b in box], self.dtype)
        for block, start in zip(found, starts, strict=True):
            check_read(block, self.dtype)
            copy_overlap(out, [a for a, _ in box], block, start)
        return out

    def _block(self, index: Index, block: Any) -> Array:
        """Return a computed block; raise if there is none, or if it has another shape than declared."""
        if isinstance(block, Unread):
            raise block.error.with_traceback(None)  # or it keeps the frames of all that fail
        check_block(block.shape, self.block_shape(index), f"the dask array {self.dask_name}", index)
        return block  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockSource, (None, self.shape, self.dtype, None, None, self.token, self.offsets)


def check_read(samples: Array, dtype: np.dtype[Any], *, exact: bool = False) -> None:
    """Raise if samples have another dtype than their array says; without ``exact``, if they do not fit in it.

    Raises
    ------
    ContractError
    """
    own = samples.dtype
    if own.newbyteorder("=") == dtype.newbyteorder("="):
        return
    # Rounded floats are what was asked for; integers would wrap around.
    if exact or not (np.can_cast(own, dtype, "safe") or own.kind == dtype.kind in "fc"):
        raise ContractError(
            f'the array says that its samples are {dtype}, and its blocks are {own}. Say dtype="{own}" where '
            f'it is built, in map_blocks or in its class, or convert the blocks: block.astype("{dtype}").'
        )


def check_block(found: Index, declared: Index, array: str, index: Index) -> None:
    """Raise if a block of a dask array has another shape than the array declares.

    Raises
    ------
    ContractError
    """
    if found != declared:
        raise ContractError(
            f"{array} declares shape {declared} for its block {index}, and the block has {found}: "
            f"{_difference(found, declared)}. Declare the shapes of blocks where it is built, by chunks= in "
            "map_blocks or shape= in from_delayed, or let the function return blocks of the declared shape."
        )


def check_box(part: Array, box: Sequence[Span], array: Any) -> None:
    """Raise if ``part``, what an array returned for ``box``, has another shape.

    Raises
    ------
    ContractError
    """
    asked = tuple([b - a for a, b in box])
    if part.shape != asked:
        raise ContractError(
            f"the array, a {type(array).__name__}, returned shape {part.shape} for the slice "
            f"[{', '.join(f'{a}:{b}' for a, b in box)}], which has {asked}: "
            f"{_difference(part.shape, asked)}. Correct the shape that the array declares, or what its "
            "slices return."
        )


def _difference(found: Index, declared: Index) -> str:
    """Return in words where two shapes differ."""
    if len(found) != len(declared):
        return f"{len(found)} axes, not {len(declared)}"
    pairs = enumerate(zip(found, declared, strict=True))
    return ", ".join(f"{n} samples on axis {axis}, not {m}" for axis, (n, m) in pairs if n != m)


def copy_overlap(out: Array, origin: Sequence[int], part: Array, start: Sequence[int]) -> None:
    """Copy the samples that ``part``, at ``start``, shares with ``out``, at ``origin``, into ``out``."""
    low = [max(a, s) for a, s in zip(origin, start, strict=True)]
    high = [min(a + n, s + m) for a, n, s, m in zip(origin, out.shape, start, part.shape, strict=True)]
    to = tuple(slice(i - a, j - a) for i, j, a in zip(low, high, origin, strict=True))
    out[to] = part[tuple(slice(i - s, j - s) for i, j, s in zip(low, high, start, strict=True))]


@dataclass(slots=True)
class PlannedSource(Source):
    """An image that is only planned for, as one that is given by its path."""

    @property
    def shares(self) -> bool:
        """Whether the tasks of a run may use the chunks that others of them decoded."""
        return True


@dataclass(slots=True)
class OnceSource(Source):
    """An object that `load_once` opens once per process."""

    def raw(self, box: Sequence[Span]) -> Any:
        """Return what the opened object returns for ``box``."""
        return self.handle.get()[slices_of(box)]


@dataclass(slots=True)
class HalfSource(Source):
    """The samples of an object that returns masked arrays, or where they are not masked.

    A task reads both of a box, one after the other, so what it reads for the one is kept for the other.
    """

    origin: Source | None = None
    """The object."""
    mask: bool = False
    """Whether this is the mask."""

    @classmethod
    def of(cls, source: Source, *, mask: bool) -> HalfSource:
        """Return the mask of a source, or its samples."""
        dtype = np.dtype(bool) if mask else source.dtype
        token = ("half", mask, source.token)
        return cls(source.handle, source.shape, dtype, source.chunks, source.meta, token, source, mask)

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``, or whether they are valid."""
        assert self.origin is not None
        own, key = scope(), (self.origin.token, *box)
        if own is not None and (found := own.halves.pop((self.mask, *key), None)) is not None:
            return found
        part = self.origin.raw(box)
        data, valid = self.origin.as_declared(np.ma.getdata(part)), ~np.ma.getmaskarray(part)
        check_box(data, box, self.handle)
        if own is not None:
            own.halves[not self.mask, *key] = data if self.mask else valid
        return valid if self.mask else data

    def __reduce__(self) -> tuple[Any, ...]:
        return _half, (self.origin, self.mask)


def _half(source: Source, mask: bool) -> HalfSource:
    return HalfSource.of(source, mask=mask)


@dataclass(slots=True)
class ChannelSource(Source):
    """One index along an axis of an image, as an image without that axis."""

    origin: Source | None = None
    """The image; tasks read it themselves."""
    axis: int = 0
    index: int = 0

    @classmethod
    def of(cls, source: Source, axis: int, index: int) -> ChannelSource:
        """Return one index along an axis of a source."""
        shape, chunks = source.shape, source.chunks
        rest = None if chunks is None else (*chunks[:axis], *chunks[axis + 1 :])
        token = ("channel", axis, index, source.token)
        return cls(
            None, (*shape[:axis], *shape[axis + 1 :]), source.dtype, rest, None, token, source, axis, index
        )

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``; may be a view."""
        assert self.origin is not None
        axis, one = self.axis, (self.index, self.index + 1)
        part = self.origin.read([*box[:axis], one, *box[axis:]])
        return part[(slice(None),) * axis + (0,)]

    def __reduce__(self) -> tuple[Any, ...]:
        return ChannelSource.of, (self.origin, self.axis, self.index)
