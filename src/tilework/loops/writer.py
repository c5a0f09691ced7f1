"""Writing finished parts of the loops into arrays of any kind, each storage chunk whole and once.

`ChunkWriter` collects parts until a storage chunk is whole. `Aggregator` writes to a `Sink`, which uses a
`ChunkWriter` if the array has chunks.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from tilework._checks import brief, has
from tilework._types import Array, Index, Ints, Writable
from tilework.engine.sums import plus
from tilework.errors import ContractError, GridError
from tilework.function.calling import as_array, is_tensor
from tilework.grid.tiles import Box
from tilework.identity.samples import assign, check_samples, dtype_of, view_of_tensor
from tilework.loops.common import Locked

__all__ = ["ChunkWriter", "Sink", "Spans", "check_writable"]

Spans = tuple[Ints, Ints] | None
"""Starts and stops of the parts along one axis of an array, samples; None: every part spans the axis."""


# -- storage chunks ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Unwritten:
    """A storage chunk of which some or all parts have arrived, until it is written."""

    array: Array
    """The chunk's samples; those of no part are not valid. Until a call ends, perhaps its caller's memory."""
    left: int
    """Number of missing parts."""
    full: bool
    """Whether all parts together fill the chunk."""
    boxes: set[Box] = field(default_factory=set)
    """Boxes of the parts that have arrived, array samples."""
    changes: int = 0
    """Number of parts that have arrived, repeated ones included."""


class ChunkWriter(Locked):
    """Takes the parts of an array in any order, from any thread; writes each chunk or shard once.

    A context manager: at its end, chunks that are not whole, because parts were left out, are merged with the
    stored values. After an exception, only whole chunks have been written. If a write fails, its error is
    raised and the chunk is kept: it is written when one of its parts is assigned again, or at the end. Of a
    part that comes twice, the last samples count.

    Parameters
    ----------
    array : array to write into
        An array with ``chunks`` (and perhaps ``shards``), such as of Zarr or h5py; any other array is written
        part by part.
    parts : one (starts, stops) or None per axis of the array, samples
        Spans of the parts to expect, and no others; None: every part spans the axis.

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
        self.dtype = dtype_of(array)
        self._unit = _unit_of(array)
        self._spans = [_sorted(n, spans) for n, spans in zip(self.shape, parts, strict=True)]
        self._unwritten = dict[Index, _Unwritten]()
        self._written: set[Index] = set()
        self._busy = _locks()
        """Locks of chunks that are being written; few chunks share one."""
        if self._unit is not None:
            axes = zip(self.shape, self._unit, parts, strict=True)
            self._counts = [_count(n, unit, spans) for n, unit, spans in axes]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_busy"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._busy = _locks()

    def __setitem__(self, index: Any, value: Any) -> None:
        box = _box_of(index, self.shape)
        # The parts that fill a chunk are counted: any other box would be taken for one of them.
        self._check_place(box)
        given = as_array(value, "the part is a")
        self._check_range(given)
        values = _spread(given, box)
        if self._unit is None:
            assign(self.array, box.slices, values)
            return
        ranges = [range(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, self._unit, strict=True)]
        numbers = list(itertools.product(*ranges))
        # All parts are kept before the first write, which may fail.
        with self._lock:
            whole = [number for number in numbers if self._keep(number, box, values)]
        self._write_all(whole)

    def _check_place(self, box: Box) -> None:
        """Raise a `GridError` if ``box`` is none of the parts."""
        for axis, (a, b, (starts, stops)) in enumerate(zip(box.start, box.stop, self._spans, strict=True)):
            first = int(starts.searchsorted(a))
            if first < len(starts) and starts[first] == a and stops[first] == b:
                continue  # nearly always: few parts begin at one sample
            if b not in stops[first : int(starts.searchsorted(a, side="right"))]:
                low = max(0, min(first, len(starts) - 2))
                near = zip(starts[low : low + 2].tolist(), stops[low : low + 2].tolist(), strict=True)
                raise GridError(
                    f"{box} is no destination: on axis {axis} of the output, the nearest are "
                    f"{', '.join(f'{i}:{j}' for i, j in near)}; got {a}:{b}. Assign each result to the whole "
                    "destination that came with its crop."
                )

    def _check_range(self, values: Array) -> None:
        """Raise a `ContractError` if the array has real numbers or integers that cannot hold ``values``."""
        dtype = self.dtype
        if values.dtype.kind == "c" and dtype.kind in "biuf":
            raise ContractError(
                f"a part has dtype {values.dtype}; the array has dtype {dtype}, which cannot hold the "
                "imaginary part. Write np.abs(part), or into a complex array."
            )
        if dtype.kind not in "iu" or values.dtype.kind not in "iuf":
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

    def _keep(self, number: Index, box: Box, values: Array) -> bool:
        """Keep the part of ``values``, the samples of ``box``, in one chunk; return whether to write it."""
        chunk = self._box(number)
        common = chunk.intersect(box)
        part = values[common.shift([-a for a in box.start]).slices]
        here = self._unwritten.get(number)
        if here is None:
            counts = [c[i] for c, i in zip(self._counts, number, strict=True)]
            left, full = math.prod(n for n, _ in counts), all(full for _, full in counts)
            if common == chunk:
                left, full = 1, True
            elif number in self._written:
                left, full = 1, False  # a repeated part
            # A chunk of one part is written from where it lies, and only kept if that fails.
            array = part if common == chunk else np.empty(chunk.shape, self.dtype)
            here = self._unwritten[number] = _Unwritten(array, left, full)
        if here.array is not part:
            if here.array.base is not None or here.array.dtype != self.dtype:
                # Of a part that is a chunk, which another thread may be writing just now.
                here.array = here.array.astype(self.dtype)
            here.array[common.shift([-a for a in chunk.start]).slices] = part
        here.left -= common not in here.boxes
        here.boxes.add(common)
        here.changes += 1
        return here.left <= 0

    def _write_all(self, numbers: Sequence[Index]) -> None:
        """Write chunks; if some fail, keep these, write the others, and raise the first error."""
        first: Exception | None = None
        try:
            for number in numbers:
                try:
                    self._write(number)
                except Exception as error:
                    first = first or error
            if first is not None:
                raise first
        finally:
            with self._lock:
                for here in filter(None, map(self._unwritten.get, numbers)):
                    if here.array.base is not None:
                        here.array = here.array.copy()  # the caller may use its memory again

    def _write(self, number: Index) -> None:
        """Write one chunk. Threads write different chunks at the same time."""
        with self._busy[hash(number) % len(self._busy)]:
            with self._lock:
                here = self._unwritten.get(number)
                if here is None:
                    return
                # Parts that arrive meanwhile change all of these, and are written next.
                changes, kept, boxes = here.changes, here.array, tuple(here.boxes)
                whole = here.left <= 0 and here.full
            chunk, values = self._box(number), kept
            if not whole:
                values = np.array(self.array[chunk.slices])
                for box in boxes:
                    at = box.shift([-a for a in chunk.start]).slices
                    values[at] = kept[at]
            assign(self.array, chunk.slices, values)
            with self._lock:
                if here.changes == changes:
                    del self._unwritten[number]
                    self._written.add(number)

    def _box(self, number: Index) -> Box:
        """Return the samples of a chunk."""
        assert self._unit is not None
        start = tuple(i * u for i, u in zip(number, self._unit, strict=True))
        stop = tuple(min(a + u, n) for a, u, n in zip(start, self._unit, self.shape, strict=True))
        return Box(start, stop)

    def close(self) -> None:
        """Write the chunks that did not become whole, and those of which a write failed."""
        with self._lock:
            numbers = list(self._unwritten)
        self._write_all(numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def _locks() -> list[threading.Lock]:
    return [threading.Lock() for _ in range(64)]


def _unit_of(array: Any) -> Index | None:
    """Return the storage unit of an array (shard, else chunk), samples per axis; None if it has none."""
    unit = getattr(array, "shards", None) or getattr(array, "chunks", None)
    return tuple(map(int, unit)) if isinstance(unit, tuple | list) else None


def _sorted(extent: int, spans: Spans) -> tuple[Ints, Ints]:
    """Return the spans of parts along an axis by their starts."""
    starts, stops = (np.array([0]), np.array([extent])) if spans is None else spans
    order = np.argsort(starts, kind="stable")
    return starts[order], stops[order]


def _spread(values: Array, box: Box) -> Array:
    """Return ``values`` in the shape of a box, as numpy assigns them.

    Raises
    ------
    ContractError
        If they have another one.
    """
    if values.shape == box.shape:
        return values
    surplus = range(values.ndim - len(box.shape))
    own = values[(0,) * len(surplus)] if all(values.shape[axis] == 1 for axis in surplus) else values
    try:
        return np.broadcast_to(own, box.shape)
    except ValueError:
        raise ContractError(
            f"a part for {box} must have shape {box.shape}; got {values.shape}. Cut the result of a crop to "
            "its source: result[source]."
        ) from None


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
    for axis, (item, n) in enumerate(zip(items, shape, strict=True)):
        if any(end is not None and not -n <= end <= n for end in (item.start, item.stop)):
            raise GridError(
                f"a part lies outside: on axis {axis} of the output, which has {n} samples, it is "
                f"{item.start}:{item.stop}. Assign each result to the destination that came with its crop."
            )
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


def check_writable(what: str, array: Any) -> None:
    """Raise unless ``array`` can be written into, and takes every sample at a place of its own."""
    members = has(array, "shape", "dtype", "__setitem__")
    # An array of dask takes assignments, and computes nothing.
    lazy = type(array).__module__.partition(".")[0] == "dask"
    if lazy or not members or not isinstance(array.shape, tuple):
        raise TypeError(f"{what} must have shape, dtype and item assignment; got {brief(array)}.")
    check_samples(what, array)


class Sink:
    """An array to write into: numpy, memmap, torch on any device, Zarr, h5py, or similar."""

    def __init__(self, array: Any, accumulate: bool = False, writer: ChunkWriter | None = None) -> None:
        check_writable("output", array)
        self.array = array
        self.accumulate = accumulate
        """Whether blocks are added to the values of the array."""
        self._writer = writer
        self._before: dict[str, Array] = {}
        """Values of the array at places to whose values blocks are added."""
        self.shape = tuple(map(int, array.shape))
        self.dtype = dtype_of(array)
        self.view: Array | None = array if isinstance(array, np.ndarray) else None
        """A numpy view of the array, if its memory allows one."""
        if is_tensor(array):
            self.view = view_of_tensor(array)

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

    def store(self, place: tuple[slice, ...], block: Array, *, final: bool) -> None:
        """Write a finished block to its place; after an error, do so again.

        ``final`` means that no other block will be written there.
        """
        if self.accumulate:
            # Kept, because a write that fails may have changed a part of the array.
            if str(place) not in self._before:
                self._before[str(place)] = np.array(as_array(self.array[place]), self.dtype)
            total = self._before[str(place)].copy()
            plus((total, None), block, average=False)
            block = total
        if self.view is not None:
            self.view[place] = block
        elif self._writer is not None:
            self._writer[place] = block
        else:
            assign(self.array, place, block)
        if final:
            self._before.pop(str(place), None)

    def close(self) -> Any:
        """Write the remaining parts; return the array."""
        if self._writer is not None:
            self._writer.close()
        return self.array
