"""Writing finished parts of the loops into arrays of any kind, each storage chunk whole and once.

`ChunkWriter` collects parts until a storage chunk is whole. `Aggregator` writes to a `Sink`, which uses a
`ChunkWriter` if the array has chunks.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from tilework._types import Array, Index, Ints, Writable
from tilework.engine.canvas import plus
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.calling import as_array
from tilework.grid.tiles import Box
from tilework.loops.common import Locked, is_tensor

__all__ = ["ChunkWriter", "Sink", "Spans"]

Spans = tuple[Ints, Ints] | None
"""Starts and stops of the parts along one axis of an array, samples; None: every part spans the axis."""


# -- storage chunks ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Unfinished:
    """A storage chunk of which some parts have arrived."""

    array: Array
    """The chunk's samples."""
    left: int
    """Number of missing parts."""
    boxes: list[Box] | None = field(default_factory=list)
    """Boxes of the parts that have arrived, array samples; None if the stored chunk was read first."""


class ChunkWriter(Locked):
    """Takes the parts of an array in any order, from any thread; writes each chunk or shard once.

    A context manager: at its end, chunks that are not whole, because parts were left out, are merged with the
    stored values. After an exception, only whole chunks have been written.

    Parameters
    ----------
    array : array to write into
        An array with ``chunks`` (and perhaps ``shards``), such as of Zarr or h5py; any other array is written
        part by part.
    parts : one (starts, stops) or None per axis of the array, samples
        Spans of the parts to expect, each once; None: every part spans the axis.

    Examples
    --------
    >>> array = np.zeros(6)
    >>> with ChunkWriter(array, [(np.array([0, 2, 4]), np.array([2, 4, 6]))]) as out:
    ...     out[2:4] = 1
    >>> array.tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, array: Writable, parts: Sequence[Spans]) -> None:
        super().__init__()
        self.array = array
        self.shape = tuple(map(int, array.shape))
        self._unit = _unit_of(array)
        self._unfinished = dict[Index, _Unfinished]()
        self._written: set[Index] = set()
        if self._unit is not None:
            axes = zip(self.shape, self._unit, parts, strict=True)
            self._counts = [_count(n, unit, spans) for n, unit, spans in axes]

    def __setitem__(self, index: Any, value: Any) -> None:
        box = _box_of(index, self.shape)
        given = as_array(value)
        self._check_range(given)
        if self._unit is None:
            self.array[box.slices] = value
            return
        values = np.broadcast_to(given, box.shape)
        ranges = [range(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, self._unit, strict=True)]
        for number in itertools.product(*ranges):
            self._put(number, box, values)

    def _check_range(self, values: Array) -> None:
        """Raise a `ContractError` if the array has integers that cannot hold ``values``."""
        dtype = getattr(self.array, "dtype", None)
        if not isinstance(dtype, np.dtype) or dtype.kind not in "iu" or values.dtype.kind not in "iuf":
            return
        if not values.size or np.can_cast(values.dtype, dtype):
            return
        info, low, high = np.iinfo(dtype), values.min(), values.max()
        # As Python numbers: these compare exactly. NaN is neither.
        if not (low.item() > info.min - 1 and high.item() < info.max + 1):
            raise ContractError(
                f"a part has {values.dtype} values from {low} to {high}; the array has dtype {dtype}, which "
                "cannot hold them. Clip them, or write into a float array."
            )

    def _put(self, number: Index, box: Box, values: Array) -> None:
        """Add the part of ``values``, the samples of ``box``, that lies in one chunk."""
        chunk = self._box(number)
        common = chunk.intersect(box)
        part = values[common.shift([-a for a in box.start]).slices]
        with self._lock:
            whole = self._gather(number, chunk, common, part)
        # The chunk has no other owner now, so threads write at the same time.
        if whole is not None:
            self.array[chunk.slices] = whole

    def _gather(self, number: Index, chunk: Box, common: Box, part: Array) -> Array | None:
        """Keep ``part``; return the chunk if it is whole now."""
        here = self._unfinished.get(number)
        if here is None and number in self._written:
            self.array[common.slices] = part  # a repeated part
            return None
        if here is None:
            counts = [c[i] for c, i in zip(self._counts, number, strict=True)]
            left = math.prod(n for n, _ in counts)
            if left == 1 and common == chunk:
                self._written.add(number)
                return part
            here = self._unfinished[number] = self._start(chunk, left, all(full for _, full in counts))
        here.array[common.shift([-a for a in chunk.start]).slices] = part
        if here.boxes is not None:
            here.boxes.append(common)
        here.left -= 1
        if here.left:
            return None
        del self._unfinished[number]
        self._written.add(number)
        return here.array

    def _start(self, chunk: Box, left: int, full: bool) -> _Unfinished:
        """Return a new unfinished chunk; it is read if the parts will not fill it."""
        if full:
            return _Unfinished(np.empty(chunk.shape, self.array.dtype), left)
        return _Unfinished(np.asarray(self.array[chunk.slices]), left, None)

    def _box(self, number: Index) -> Box:
        """Return the samples of a chunk."""
        assert self._unit is not None
        start = tuple(i * u for i, u in zip(number, self._unit, strict=True))
        stop = tuple(min(a + u, n) for a, u, n in zip(start, self._unit, self.shape, strict=True))
        return Box(start, stop)

    def close(self) -> None:
        """Write the parts of chunks that did not become whole."""
        with self._lock:
            for number, here in self._unfinished.items():
                chunk = self._box(number)
                values = here.array
                if here.boxes is not None:
                    values = np.array(self.array[chunk.slices])
                    for box in here.boxes:
                        at = box.shift([-a for a in chunk.start]).slices
                        values[at] = here.array[at]
                self.array[chunk.slices] = values
            self._written.update(self._unfinished)
            self._unfinished.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def _unit_of(array: Any) -> Index | None:
    """Return the storage unit of an array (shard, else chunk), samples per axis; None if it has none."""
    unit = getattr(array, "shards", None) or getattr(array, "chunks", None)
    return tuple(map(int, unit)) if isinstance(unit, tuple | list) else None


def _box_of(index: Any, shape: Sequence[int]) -> Box:
    """Return the box that ``index`` selects; it holds slices without steps, and perhaps an Ellipsis."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    if len(items) != len(shape) or not all(isinstance(i, slice) and i.step in (None, 1) for i in items):
        raise GridError(f"a part of an array of shape {tuple(shape)} is named by plain slices; got {index}.")
    bounds = [i.indices(n) for i, n in zip(items, shape, strict=True)]
    return Box(tuple(a for a, _, _ in bounds), tuple(max(a, b) for a, b, _ in bounds))


def _count(extent: int, unit: int, spans: Spans) -> list[tuple[int, bool]]:
    """Return for each chunk along an axis the number of parts that touch it, and whether they fill it."""
    edges = np.append(np.arange(0, extent, unit), extent)
    if spans is None:
        return [(1, True)] * (len(edges) - 1)
    starts, stops = spans
    kept = stops > starts
    starts, stops = starts[kept], stops[kept]
    first = np.searchsorted(stops, edges[:-1], side="right")
    last = np.searchsorted(starts, edges[1:], side="left")
    reach = np.concatenate(([0], np.maximum.accumulate(stops))) if len(stops) else np.zeros(1, np.int64)
    # Spans ascend, so there is a hole where the next start is beyond all earlier stops.
    holes = np.flatnonzero(np.append(starts, extent) > reach)
    low, high = reach[holes], np.append(starts, extent)[holes]
    full = [not ((low < b) & (high > a)).any() for a, b in itertools.pairwise(edges.tolist())]
    return [(max(0, int(b - a)), f) for a, b, f in zip(first, last, full, strict=True)]


# -- arrays of any kind -----------------------------------------------------------------------------------


class Sink:
    """An array to write into: numpy, memmap, torch on any device, Zarr, h5py, or similar."""

    def __init__(self, array: Any, accumulate: bool = False, writer: ChunkWriter | None = None) -> None:
        if not all(hasattr(array, name) for name in ("shape", "dtype", "__setitem__")):
            raise TypeError(f"output must have shape, dtype and item assignment; got {type(array).__name__}.")
        self.array = array
        self.accumulate = accumulate
        """Whether blocks are added to the values of the array."""
        self._writer = writer
        self.shape = tuple(map(int, array.shape))
        self.view: Array | None = None
        """A numpy view of the array, if its memory allows one."""
        if is_tensor(array):
            self.dtype = np.asarray(_empty_like(array)).dtype
            if array.device.type == "cpu" and str(array.dtype) != "torch.bfloat16":
                self.view = array.detach().numpy()
        else:
            self.dtype = np.dtype(array.dtype)
            self.view = array if isinstance(array, np.ndarray) else None
        if self.view is not None and not self.view.flags.writeable:
            raise TilingError("output is read-only; open it for writing (mode='r+' for a memmap).")

    def __reduce__(self) -> tuple[Any, ...]:
        # The view is left out, because it would be pickled as memory of its own.
        return Sink, (self.array, self.accumulate, self._writer)

    @property
    def unit(self) -> Index | None:
        """Shape of a storage unit, samples per axis; None if every sample can be written alone."""
        return None if self.view is not None else _unit_of(self.array)

    def expect(self, parts: Sequence[Spans]) -> None:
        """Announce the spans of blocks, so that each storage chunk is written once; see `ChunkWriter`."""
        if self.unit is not None:
            self._writer = ChunkWriter(self.array, parts)

    def store(self, place: tuple[slice, ...], block: Array) -> None:
        """Write a finished block to its place."""
        if self.accumulate:
            total = np.array(self.array[place], self.dtype)
            plus((total, None), block, average=False)
            block = total
        if self.view is not None:
            self.view[place] = block
        elif is_tensor(self.array):
            torch = sys.modules["torch"]
            self.array[place] = torch.from_numpy(block).to(self.array.device, self.array.dtype)
        elif self._writer is not None:
            self._writer[place] = block
        else:
            self.array[place] = block

    def close(self) -> Any:
        """Write the remaining parts; return the array."""
        if self._writer is not None:
            self._writer.close()
        return self.array


def _empty_like(tensor: Any) -> Any:
    """Return an empty tensor on the CPU, of a dtype that numpy knows."""
    empty = tensor.new_empty(0).detach().cpu()
    return empty.float() if str(empty.dtype) == "torch.bfloat16" else empty
