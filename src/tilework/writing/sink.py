"""What the tasks of a run do with a finished block: prove the right to write, write, prove it again, mark.

All outputs of a block are written before the first is marked. A unit that is marked is never written again: a
task that runs again leaves out the outputs that have a mark of its block.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from tilework._types import Array, Index, Span
from tilework.engine.reading import Failure
from tilework.errors import SupersededError, TilingError
from tilework.labels.painting import Counts
from tilework.source.held import Process, Travelling, this_process
from tilework.source.zarr_requests import answer, write_box
from tilework.writing.claim import Claim
from tilework.writing.ledger import Ledger, Marks, boxes_around
from tilework.writing.objects import Objects, read_only

__all__ = [
    "UNREACHED",
    "Part",
    "Sink",
    "Work",
    "Written",
    "block_name",
    "digest_of",
    "parts_of",
    "write_block",
]

UNREACHED = (
    'an array of this process can only be written into by threads of it; give scheduler="threads", or a Zarr '
    "store for processes and clusters."
)
"""Why an array that is not of zarr is refused, in memory or in a file."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a task did with a block."""

    failures: tuple[Failure, ...] = ()
    """Tiles that were left out."""
    units: Mapping[int, list[list[Span]]] = field(default_factory=dict)
    """For each output, boxes of units that are written and marked."""
    digests: tuple[tuple[int, Index, str], ...] = ()
    """Output, unit and digest of samples that were read back."""
    unknown: int = 0
    """Number of samples that are fill_value because they were NaN and the dtype is an integer."""
    counts: Mapping[int, Counts] = field(default_factory=dict)
    """For each output of labels that are not numbered, what is doubtful of its objects."""


@dataclass(frozen=True, slots=True)
class Sink:
    """The array of one output, as tasks get it."""

    target: Any
    """The array to write into, or a `Travelling` one: it is opened in the task, where errors are reported."""
    run: str = ""
    """Id of the run that claims the array; empty: the array can have no marks."""
    generation: str = ""
    """Generation of the marks."""
    again: bool = False
    """Whether a task may run again in another process, after it has marked its block."""
    partial: Mapping[Index, Sequence[Index]] = field(default_factory=dict)
    """For each block of which some units are done, the units to write."""
    checked: frozenset[str] = frozenset()
    """Blocks of which one unit is read back after it was written, if that happens in another process."""
    home: Process | None = None
    """The process that reads back at the end."""

    @property
    def array(self) -> Any:
        """The array to write into."""
        return self.target.get() if isinstance(self.target, Travelling) else self.target

    @property
    def ledger(self) -> Ledger:
        """The ledger of the array."""
        return Ledger(self.array)

    @property
    def marks(self) -> Marks:
        """The marks of the run."""
        ledger = self.ledger
        return Marks(ledger.objects / self.generation, ledger.shape)

    def prove(self) -> None:
        """Raise if the array is not the run's: it cannot be seen from here, or another run has it."""
        objects = Objects.of(self.array.store_path)
        if Claim(objects, self.run).holds():
            return
        path = self.array.store_path
        seen = read_only(path)
        documents = Objects(seen.store, seen.path).read_all(("zarr.json", ".zarray"))
        if not documents:
            raise TilingError(
                f"{path} cannot be seen from {platform.node()}: there is no array. Is the folder mounted "
                "there, at the same path? Write to a place that all workers share."
            )
        raise SupersededError(
            f"{path} does not belong to this run any more: the run has ended, or another run has "
            f"overwritten or taken over the array. This task on {platform.node()} writes nothing more."
        )

    def confirm(self, name: str, units: Sequence[Index]) -> None:
        """Raise if the array ceased to be the run's while a task wrote ``units``; unmark them for others."""
        if Claim(Objects.of(self.array.store_path), self.run).holds():
            return
        try:
            ledger = self.ledger
            record = ledger.record
        except FileNotFoundError:
            record = None
        # The same generation means the same result: what was written is right, and another run marks it.
        if record is not None and record.get("generation") not in (self.generation, None):
            ledger.marks(record).soil(f"{self.run}-{name}", [[(i, i + 1) for i in unit] for unit in units])
        self.prove()

    @property
    def memory(self) -> Array | None:
        """The memory of an array of numpy, a memory map included."""
        return np.asarray(self.target) if isinstance(self.target, np.ndarray) else None

    def put(self, part: Part) -> None:
        """Write a part; heal shards of which only a part is stored."""
        try:
            self._write(part)
        except OSError:
            raise
        except Exception:
            if not self.run or self.array.shards is None:
                raise
            # zarr reads a shard before it overwrites all of it, and cannot read half a shard.
            for unit in part.units:
                answer(self.array.store, self.ledger.place(unit).delete())
            self._write(part)

    def _write(self, part: Part) -> None:
        array = self.array
        if isinstance(array, zarr.Array):
            write_box(array, part.box, part.data)
        else:
            array[part.box] = part.data

    def empty(self, part: Part) -> list[Index]:
        """Return the units of a part that have no object in the store, because they are all fill value."""
        ledger, fill = self.ledger, self.array.fill_value
        starts = [s.indices(n)[0] for s, n in zip(part.box, self.array.shape, strict=True)]
        found = []
        for unit in part.units:
            own = tuple(slice(s.start - a, s.stop - a) for s, a in zip(ledger.box(unit), starts, strict=True))
            if _all_fill(part.data[own], fill) and not answer(self.array.store, ledger.place(unit).exists()):
                found.append(unit)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.target, zarr.Array | Travelling):
            raise TilingError(UNREACHED)
        values = (self.run, self.generation, self.again, self.partial, self.checked, self.home)
        target = self.target if isinstance(self.target, Travelling) else Travelling(self.target)
        return Sink, (target, *values)


def _all_fill(data: Array, fill: Any) -> bool:
    """Return whether all samples may be the fill value; almost always decided by the first."""
    first = data[(slice(0, 1),) * data.ndim]
    if fill is None and data.size:  # format 2 has such arrays, and zarr takes a value of its own
        fill = first.reshape(())[()]
    return bool(data.size) and _is_fill(first, fill) and _is_fill(data, fill)


def _is_fill(data: Array, fill: Any) -> bool:
    same = data == fill
    if fill != fill:  # NaN and NaT
        same = same | (data != data)
    return bool(np.all(same))


@dataclass(frozen=True, slots=True)
class Part:
    """Samples that are written together."""

    box: tuple[slice, ...]
    """Their place in the array."""
    data: Array
    units: Sequence[Index]
    """The units that they are."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is written of a block of one output."""

    number: int
    """Number of the output."""
    sink: Sink
    parts: Sequence[Part]
    ranges: Sequence[Span]
    """All units of the block, per axis."""
    failed: frozenset[Index] = frozenset()
    """Units that a failed tile touches; they are written, but not marked."""
    beside: Callable[[], None] | None = None
    """Writes what is kept beside the array; marks, which come later, say that it is there."""

    @property
    def written(self) -> list[Index]:
        """The units that are written."""
        return [unit for part in self.parts for unit in part.units]

    @property
    def whole(self) -> bool:
        """Whether all units of the block are written."""
        return len(self.written) == math.prod(b - a for a, b in self.ranges)

    def marked(self, name: str, here: Collection[tuple[int, str]]) -> bool:
        """Return whether another attempt at the task has marked the units.

        If that may have been in another process, or in another run of the same graph, reads a small object.
        """
        if not self.sink.again:
            return (self.number, name) in here
        right = [unit for unit in self.written if unit not in self.failed]
        return self.sink.marks.covers(self.mark_name(name), right)

    def mark_name(self, name: str) -> str:
        """Return the name of the mark: one of its own if a part of the block was done before.

        The mark of that part stays: it says which of its units have no object.
        """
        return name if self.whole else f"{name}-{self.sink.run}"

    def empty(self) -> list[Index]:
        """Return the written units that have no object, because they are all fill value."""
        return [unit for part in self.parts for unit in self.sink.empty(part)]

    def read_back(self, name: str) -> list[tuple[int, Index, str]]:
        """Return the output, a unit, and a digest of its samples as read, if the block is checked."""
        right = [unit for unit in self.written if unit not in self.failed]
        if name not in self.sink.checked or not right or self.sink.home == this_process():
            return []
        return [(self.number, right[-1], digest_of(self.sink.array, right[-1]))]

    def done(self) -> list[list[Span]]:
        """Return boxes of the units that are done after the work, and were not before."""
        if self.whole and not self.failed:
            return [[(int(a), int(b)) for a, b in self.ranges]]
        return boxes_around(set(self.written) - self.failed)


def write_block(
    name: str,
    works: Sequence[Work],
    failures: Sequence[Failure] = (),
    marked: set[tuple[int, str]] | None = None,
) -> Written:
    """Write a block of all outputs, then mark it in all of them.

    Parameters
    ----------
    name : str
        Name of the block.
    works : sequence of Work
    failures : sequence of Failure
        Tiles that were left out.
    marked : set of (output, name), optional
        What this process has marked, which a task that is tried again leaves out; the call adds to it.

    Raises
    ------
    SupersededError
        If an array does not belong to the run any more.
    """
    marked = set() if marked is None else marked
    claimed = [w for w in works if w.sink.run]
    for work in claimed:
        work.sink.prove()
    todo = [w for w in works if not w.marked(name, marked)]
    for work in todo:
        if work.beside is not None:
            work.beside()
        for part in work.parts:
            with _told(part.box):
                work.sink.put(part)
    digests = []
    for work in todo:
        if work.sink.run:
            work.sink.confirm(name, work.written)
            digests += work.read_back(name)
    for work in todo:
        if work.sink.run:
            if done := work.done():
                work.sink.marks.mark(work.mark_name(name), done, boxes_around(work.empty()))
            marked.add((work.number, name))
    return Written(tuple(failures), {work.number: work.done() for work in claimed}, tuple(digests))


def digest_of(array: Any, unit: Index) -> str:
    """Return a digest of the samples of a unit as they are read from the store."""
    samples = np.ascontiguousarray(array[Ledger(array).box(unit)])
    return hashlib.blake2b(samples.tobytes(), digest_size=8).hexdigest()


def block_name(index: Iterable[int]) -> str:
    """Return the name of a block among the marks."""
    return ".".join(map(str, index)) or "0"


def parts_of(
    sink: Sink, box: tuple[slice, ...], data: Array, ranges: Sequence[Span], index: Index
) -> list[Part]:
    """Return the parts of a block that are not done: all of it, or unit by unit."""
    if index not in sink.partial:
        return [Part(box, data, list(itertools.product(*(range(a, b) for a, b in ranges))))]
    ledger = sink.ledger
    starts = [s.indices(n)[0] for s, n in zip(box, sink.array.shape, strict=True)]
    parts = []
    for unit in sink.partial[index]:
        own = ledger.box(unit)
        inside = tuple(slice(s.start - a, s.stop - a) for s, a in zip(own, starts, strict=True))
        parts.append(Part(own, data[inside], [unit]))
    return parts


@contextmanager
def _told(box: Sequence[slice]) -> Iterator[None]:
    """Add the samples that were being written to an error."""
    try:
        yield
    except Exception as error:
        text = ", ".join(f"{s.start}:{s.stop}" if s.stop is not None else ":" for s in box)
        error.add_note(f"raised while writing samples [{text}] of the result")
        raise
