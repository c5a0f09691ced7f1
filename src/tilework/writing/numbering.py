"""Labels on their way into a store: pieces with lazy ids first, then numbers 1, 2, 3... in raster order.

1. The tasks of the blocks write the lazy result into an array of *pieces* beside the marks of the target,
   and the facts about each block. Both are resumed like any result.
2. The client reads the facts, numbers the objects, and writes the numbers of each block.
3. A task per block reads its pieces, and writes the numbers into the units of the target, which it marks.

The pieces and the tables are deleted when all units of the target are done.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tilework._checks import warn
from tilework._types import Array, Index, Ints
from tilework.engine.spec import Spec
from tilework.errors import TilingError, TilingWarning
from tilework.execution.calls import CallsJob
from tilework.execution.where import Where
from tilework.function.bound import BoundOutput
from tilework.graph.build import chunks_of
from tilework.labels.components import numbered, same
from tilework.labels.facts import BlockFacts, total
from tilework.labels.ordering import parts
from tilework.labels.painting import Counts
from tilework.writing.claim import Claims
from tilework.writing.closing import Destination, Told
from tilework.writing.edges import edges_job
from tilework.writing.growing import Growing
from tilework.writing.ledger import RECORD, Ledger, Record, completed, forget
from tilework.writing.node import clear
from tilework.writing.objects import Objects
from tilework.writing.renumber import RenumberJob
from tilework.writing.sink import Sink, block_name
from tilework.writing.tables import CutObjects, Tables, pieces_place
from tilework.writing.units import Layout, Units

__all__ = ["Numbering", "forget_pieces"]


def _pieces_of(
    target: Destination, shape: Index, layout: Layout, record: Record, claims: Claims, folder: str
) -> tuple[Any, Record]:
    """Return the array of pieces beside a target, claimed, and its record; create it if there is none.

    ``folder`` is where the pieces of a target without marks are.
    """
    at = zarr.storage.StorePath(zarr.storage.LocalStore(folder), "")
    if target.done is not None:
        at = pieces_place(target.array, target.generation)
    claims.take(Objects.of(at), str(at))
    found: Any = None
    with contextlib.suppress(FileNotFoundError, ValueError):  # there are none, or a part of them
        found = zarr.open_array(at, mode="r+")
    there = None if found is None else Ledger(found).record
    if there is not None:
        facts = record | {"shape": list(shape), "unit": list(layout.unit)}
        alike = all(there.get(k) == facts.get(k) for k in ("shape", "unit", "fingerprint"))
        # Facts are those of blocks. How often a tile runs, and all else that is planned, changes none.
        if alike and all(there["plan"][k] == record["plan"][k] for k in ("block", "mask")):
            return found, there
    forget(Objects.of(at))
    if found is not None:
        clear(at, found)
    record = completed(record, shape, layout.unit, Objects.of(at))
    # zarr makes no array below another one. This one is no part of the hierarchy.
    attributes: Any = {RECORD: record}
    drawn = zarr.create_array(
        zarr.storage.MemoryStore(), shape=shape, dtype=np.int64, chunks=layout.chunks, shards=layout.shards,
        zarr_format=3, fill_value=0, attributes=attributes,
    )  # fmt: skip
    document = Objects(drawn.store, "").read("zarr.json")
    assert document is not None
    Objects(at.store, at.path).write("zarr.json", document)
    return zarr.open_array(at, mode="r+"), record


def forget_pieces(target: Destination) -> None:
    """Delete the pieces beside a target, if there are any; the target must be claimed."""
    at = pieces_place(target.array, target.generation)
    Objects(at.store, at.path).delete_folders("")


@dataclass(slots=True, weakref_slot=True, kw_only=True)
class Numbering:
    """One output of labels that is to be numbered."""

    title: str
    """Title of the run."""
    name: str
    """Name of the result."""
    number: int
    """Number of the output."""
    output: BoundOutput
    """The output."""
    names: Sequence[str]
    """Names of the grid axes, for messages."""
    target: Destination
    """The array that is written."""
    pieces: Destination
    """The array of pieces."""
    chunks: tuple[tuple[int, ...], ...]
    """Lengths of the blocks per axis of the array."""
    claims: Claims | None
    """The claims of the run, in its process."""
    retries: int | None
    """Further attempts that tasks make themselves; None if the scheduler makes them."""
    again: bool
    """Whether a task may run again in another process, after it has written."""
    growing: Growing = field(default_factory=Growing)
    """The coarser levels."""
    coarser: dict[int, Destination] = field(default_factory=dict)
    """The arrays of these levels by number."""

    @classmethod
    def of(
        cls, title: str, name: str, spec: Spec, number: int, target: Destination, layout: Layout,
        record: Record, claims: Claims, where: Where,
    ) -> Numbering:  # fmt: skip
        """Return the numbering of output ``number``, with its pieces; ``record`` is that of the run."""
        output = spec.outputs[number]
        chunks = chunks_of(spec, output)
        folder = ""
        if target.done is None:
            folder = tempfile.mkdtemp(prefix="tilework-")
            layout = Layout(tuple(sizes[0] for sizes in chunks))
        shape = tuple(map(sum, chunks))
        array, there = _pieces_of(target, shape, layout, record, claims, folder)
        marks, units = Ledger(array).marks(there), Units.of(spec, number, array)
        found = Ledger(array).found(there)
        right = found.copy()
        # Facts are those of whole blocks.
        known = Tables(array, there["generation"]).blocks("facts") if right.any() else set()
        missing = units.blocks(~right)
        for index in map(tuple, np.argwhere(units.blocks(np.ones_like(right)) > 0).tolist()):
            if missing[index] or block_name(index) not in known:
                for unit in units.in_block(index):
                    right[unit] = False
        if (right != found).any():
            marks.keep(right)
        if target.done is not None and target.done.any() and not right.all():
            # Pieces that are made again may be others, and then all numbers are others.
            none = np.zeros_like(target.done)
            Ledger(target.array).marks(target.record).keep(none)
            target = replace(target, done=none)
        made = cls(
            title=title, name=name, number=number, output=output, names=spec.plan.names, target=target,
            pieces=Destination(array, right, there, claims.run), chunks=chunks, claims=claims,
            retries=where.guard, again=where.again,
        )  # fmt: skip
        if folder:
            weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
        return made

    def jobs(self, told: Told) -> Iterator[CallsJob | RenumberJob]:
        """Yield the jobs that join pieces and write numbers; ``told`` is told what they did."""
        whole = bool(told.units[self.number].all())
        if self.output.connectivity:
            assert self.pieces.done is not None
            if not self.pieces.done.all():
                self.tables.delete("edges")  # of a run that was killed, without the pieces of this one
            source = Sink(self.pieces.array)
            title = f"{self.title}, edges"
            find = edges_job(title, self.chunks, source, self.tables, self.output, self.retries)
            if find.tiles:
                yield find
        self._number_objects()
        if not whole:
            self.tables.delete("edges")  # pieces are missing
        job = RenumberJob(
            f"{self.title}, numbers", f"{self.name}-numbers", self.chunks, self.number, self.target,
            Sink(self.pieces.array), self.tables, self.output.n_each, unfinished=not whole,
            retries=self.retries, again=self.again, growing=self.growing, coarser=self.coarser,
        )  # fmt: skip
        job.told.failures += told.failures
        if job.tiles:
            yield job
        told.units |= job.told.units
        if whole and (self.target.done is None or bool(told.units[self.number].all())):
            self.forget()

    def forget(self) -> None:
        """Delete the pieces and their tables."""
        at = self.pieces.array.store_path
        if self.claims is not None:
            self.claims.leave(Objects.of(at))
        Objects(at.store, at.path).delete_folders("")

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {f.name: getattr(self, f.name) for f in fields(self)}
        return _again, (facts | {"claims": None},)

    @property
    def tasks(self) -> int:
        """Number of tasks that join pieces and write numbers, of a run from the start."""
        return math.prod(map(len, self.chunks)) * (2 if self.output.connectivity else 1)

    @property
    def shape(self) -> Index:
        """Extents of the array, samples."""
        return tuple(map(sum, self.chunks))

    @property
    def tables(self) -> Tables:
        """The tables of the blocks."""
        return Tables(self.pieces.array, self.pieces.generation)

    def _number_objects(self) -> None:
        """Find the number of each object, write those of each block, and say what is doubtful."""
        tables, blocks = self.tables, list(map(block_name, np.ndindex(*map(len, self.chunks))))
        with (
            tempfile.TemporaryDirectory(prefix="tilework-") as folder,
            closing(_Columns(Path(folder), self.chunks, self.output.n_each)) as columns,
        ):
            counts = total(columns.take(BlockFacts.of(tables.read("facts", block))) for block in blocks)
            numbers = columns.numbered(self._edges(blocks) if self.output.connectivity else None)
            self._check(int(numbers.max(initial=0)))
            for block, span in zip(blocks, columns.spans, strict=True):
                tables.keep("numbers", block, columns.table(span, numbers))
            if self.target.record is not None:
                CutObjects(self.target.array, self.target.generation).write(*columns.cut(numbers))
            self._tell(counts, columns.dropped() if counts.contested else 0, columns.objects(numbers))

    def _edges(self, blocks: Sequence[str]) -> Iterator[Ints]:
        """Yield which pieces touch, by index of the ``each`` axes and ids."""
        for block in blocks:
            if len(table := self.tables.read("edges", block)["edges"]):
                yield table

    def _check(self, most: int) -> None:
        """Raise if the target cannot hold the largest number."""
        dtype = self.output.stored
        assert dtype is not None
        if most > np.iinfo(dtype).max:
            wider = "uint32" if most < 2**32 else "uint64"
            way = "join" if self.output.connectivity else "own"
            raise TilingError(
                f"there are {most} objects, and {dtype} holds {np.iinfo(dtype).max}; say "
                f'Output("{wider}", labels="{way}"), and overwrite=True.'
            )

    def _tell(self, counts: Counts, dropped: int, objects: int) -> None:
        """Write the numbers of objects and doubts into the record, and warn of doubts."""
        if self.target.record is not None:
            found = {
                "objects": objects, "contested": counts.contested, "unclaimed": counts.unclaimed,
                "dropped": dropped, "large": counts.claims.large, "longest": list(counts.claims.extent),
            }  # fmt: skip
            record: Record = {**self.target.record, "labels": found}
            Ledger(self.target.array).write_record(record)
            self.target = replace(self.target, record=record)
        if text := self.output.doubts(self.names, counts, dropped=dropped):
            warn(text, TilingWarning)


def _again(facts: dict[str, Any]) -> Numbering:
    return Numbering(**facts)


class _Columns:
    """The keys and first samples of all pieces, in files."""

    def __init__(self, folder: Path, chunks: Sequence[Sequence[int]], n_each: int) -> None:
        shape = tuple(map(sum, chunks))
        self.folder, self.shape = folder, shape
        self.offsets = [np.cumsum([0, *sizes]) for sizes in chunks]
        self.size = math.prod(shape[n_each:])
        """Samples of an index."""
        self.indices = math.prod(shape[:n_each])
        self.spans: list[slice] = []
        """The rows of each block."""
        self._files = {name: (folder / name).open("wb") for name in ("keys", "first")}
        self._open: list[Ints] = []
        """Claims of which nothing is painted in the block of their tile."""
        self._cut: list[Ints] = []
        """Claims of objects that are cut."""

    def take(self, facts: BlockFacts) -> Counts:
        """Add the rows of a block; return its counts."""
        rows = facts.firsts
        keys = rows.index * (self.size + 1) + rows.ids
        self._files["keys"].write(keys.tobytes())
        self._files["first"].write((rows.index * self.size + rows.first).tobytes())
        start = self.spans[-1].stop if self.spans else 0
        self.spans.append(slice(start, start + len(rows)))
        claimed = facts.counts.claims.ids
        self._open.append(claimed[~np.isin(claimed, keys)])
        self._cut.append(facts.counts.claims.cut)
        return facts.counts

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _column(self, name: str) -> Array:
        self._files[name].close()
        if not self.spans or not self.spans[-1].stop:
            return np.zeros(0, np.int64)
        return np.memmap(self.folder / name, np.int64, "r")

    def numbered(self, edges: Iterable[Ints] | None = None) -> Array:
        """Return the number of the object of each row; ``edges`` join pieces, by index and two ids."""
        self.keys, first = self._column("keys"), self._column("first")
        if not len(first):
            return np.zeros(0, np.uint32)
        period = self.size if self.indices > 1 else None
        if edges is None:
            return numbered(first, keys=self.keys, period=period, folder=self.folder)
        pairs = itertools.chain(same(self.keys, self.folder), map(self._nodes, edges))
        return numbered(first, pairs, period=period, folder=self.folder)

    def _nodes(self, edges: Ints) -> Ints:
        """Return pairs of rows for pairs of ids."""
        return np.stack([self._rows(edges[:, 0], edges[:, column]) for column in (1, 2)], axis=1)

    def _rows(self, index: Ints, ids: Ints) -> Ints:
        """Return a row of each piece: that of the block of its first sample, unless this is not shown."""
        wanted = index * (self.size + 1) + ids
        places = np.unravel_index(index * self.size + ids - 1, self.shape)
        blocks = [np.searchsorted(o, p, side="right") - 1 for o, p in zip(self.offsets, places, strict=True)]
        number = np.ravel_multi_index(blocks, [len(o) - 1 for o in self.offsets])
        found = np.full(len(ids), -1)
        for block in np.unique(number).tolist():
            here, span = np.flatnonzero(number == block), self.spans[block]
            keys = np.asarray(self.keys[span])
            rows = np.searchsorted(keys, wanted[here])
            right = np.append(keys, -1)[rows] == wanted[here]
            found[here[right]] = span.start + rows[right]
        lost = np.flatnonzero(found < 0)
        for part in parts(len(self.keys) if len(lost) else 0):
            keys = np.asarray(self.keys[part])
            order = np.argsort(keys)
            rows = order[np.searchsorted(keys, wanted[lost], sorter=order) % len(keys)]
            right = keys[rows] == wanted[lost]
            found[lost[right]] = part.start + rows[right]
        return found

    def table(self, span: slice, numbers: Array) -> dict[str, Array]:
        """Return index, id and number of the rows of a block."""
        index, ids = np.divmod(np.asarray(self.keys[span]), self.size + 1)
        return {"index": index, "ids": ids, "numbers": np.asarray(numbers[span])}

    def objects(self, numbers: Array) -> int:
        """Return how many objects there are."""
        most = np.zeros(self.indices, np.int64)
        for part in parts(len(numbers)):
            np.maximum.at(most, self.keys[part] // (self.size + 1), numbers[part].astype(np.int64))
        return int(most.sum())

    def cut(self, numbers: Array) -> tuple[Ints, Ints]:
        """Return index and number of the objects that are cut, ascending."""
        wanted = np.unique(np.concatenate(self._cut)) if self._cut else np.zeros(0, np.int64)
        found = [np.zeros((2, 0), np.int64)]
        for part in parts(len(self.keys) if len(wanted) else 0):
            keys = np.asarray(self.keys[part])
            on = np.isin(keys, wanted)
            found.append(np.stack((keys[on] // (self.size + 1), numbers[part][on].astype(np.int64))))
        index, number = np.unique(np.concatenate(found, axis=1), axis=1)
        return index, number

    def dropped(self) -> int:
        """Return how many claims have lost all their samples."""
        left = np.unique(np.concatenate(self._open))
        for part in parts(len(self.keys)):
            left = left[~np.isin(left, self.keys[part])]
        return len(left)
