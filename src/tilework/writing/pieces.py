"""Pieces of objects in the blocks of a label image: found block by block, and numbered as objects.

1. A task for each block (`survey`) reads the block, and a sample around it on the sides of earlier blocks.
   It keeps a row per piece, and which pieces touch those of earlier blocks, as an object in the store.
2. The client reads these objects one at a time, numbers the pieces (`number_pieces`), and keeps the number of
   each id of each block as another object.
3. A task for each part of the result (`renumbered`) reads the part, and the objects of the blocks it meets.

So nobody holds more than the facts of one block, but for one first sample and one number per piece on the
client's disk, and the edges in its memory.
"""

from __future__ import annotations

import io
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework._types import Array, Index, Ints, Span
from tilework.errors import TilingError
from tilework.labels.components import numbered
from tilework.labels.faces import around, pairs_of, touching
from tilework.labels.ordering import parts
from tilework.labels.rows import Rows, index_of
from tilework.labels.runs import Runs, check_ids
from tilework.source.base import Source
from tilework.source.held import Travelling
from tilework.source.kept import task
from tilework.source.padding import AxisRead
from tilework.writing.objects import Objects

__all__ = ["Pieces", "Shelf", "number_pieces", "renumbered", "survey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The blocks of a label image whose ids are independent, and which pieces of objects are neighbours."""

    source: Source
    """The label image."""
    order: Index
    """Its axes, ``each`` axes first."""
    n_each: int
    """Number of ``each`` axes."""
    cuts: tuple[Index, ...]
    """First sample of each block, then the extent; per axis, ``each`` axes first."""
    connectivity: int
    """Number of axes along which the positions of two neighbours differ, at most."""

    @property
    def shape(self) -> Index:
        """Extents, samples; ``each`` axes first."""
        return tuple(self.source.shape[axis] for axis in self.order)

    @property
    def counts(self) -> Index:
        """Number of blocks per axis."""
        return tuple(len(cuts) - 1 for cuts in self.cuts)

    def blocks(self) -> Iterator[Index]:
        """Yield the numbers of all blocks, in raster order."""
        return itertools.product(*map(range, self.counts))

    def box(self, block: Index) -> tuple[Span, ...]:
        """Return the samples of a block."""
        return tuple((c[i], c[i + 1]) for c, i in zip(self.cuts, block, strict=True))

    def around(self, block: Index) -> tuple[Span, ...]:
        """Return the samples that are read for a block."""
        return around(self.box(block), self.shape, self.connectivity, self.n_each)

    def meeting(self, box: Sequence[Span]) -> Iterator[Index]:
        """Yield the blocks that share samples with a box."""
        ranges = [
            range(int(np.searchsorted(c, a, side="right")) - 1, int(np.searchsorted(c, b)))
            for c, (a, b) in zip(self.cuts, box, strict=True)
        ]
        return itertools.product(*ranges)

    def own(self, box: Sequence[Span]) -> list[Span]:
        """Return a box in the order of the axes of the source."""
        found = dict(zip(self.order, box, strict=True))
        return [found[axis] for axis in range(len(box))]

    def needs(self, box: Sequence[Span]) -> Any:
        """Return the data that a task must be given to read a box; None if it reads them itself."""
        return self.source.needs([AxisRead((span,)) for span in self.own(box)])

    def read(self, given: Any, box: Sequence[Span]) -> Array:
        """Return the samples of a box, ``each`` axes first."""
        own = self.own(box)
        labels = self.source.reader(given, [AxisRead((span,)) for span in own])(own)
        return labels.transpose(self.order)


@dataclass(slots=True)
class Shelf:
    """Where the facts of each block are: a folder of objects beside the array that is written."""

    array: Any = None
    """The Zarr array, or a `Travelling` one; None until it is created."""
    generation: str = ""
    """Generation of its marks."""

    @property
    def name(self) -> str:
        """Name of the folder; it is deleted with the marks."""
        return f"{self.generation}-joined"

    @property
    def beside(self) -> Objects:
        """The objects beside the array."""
        array: Any = self.array.get() if isinstance(self.array, Travelling) else self.array
        return Objects.of(array.store_path)

    @property
    def objects(self) -> Objects:
        """The objects in the folder."""
        return self.beside / self.name

    def __reduce__(self) -> tuple[Any, ...]:
        array = self.array if isinstance(self.array, Travelling) else Travelling(self.array)
        return Shelf, (array, self.generation)

    def keep(self, what: str, block: Index, tables: Mapping[str, Array]) -> None:
        """Keep tables of a block."""
        with io.BytesIO() as file:
            np.savez(file, **tables)  # type: ignore[arg-type]
            self.objects.write(_name(what, block), file.getvalue())

    def tables(self, what: str, block: Index) -> dict[str, Array]:
        """Return tables of a block."""
        data = self.objects.read(_name(what, block))
        if data is None:
            raise TilingError(
                f"{self.name}/{_name(what, block)}, facts on a block, is missing beside the array: another "
                "run may have deleted it. Call merge_labels again."
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    def done(self, what: str) -> set[Index]:
        """Return the blocks of which tables are there."""
        found = (name.partition("-") for name in self.objects.names())
        return {tuple(map(int, block.split("."))) for kind, _, block in found if kind == what}

    def delete(self) -> None:
        """Delete all tables."""
        self.beside.delete_folders(self.name)


def _name(what: str, block: Index) -> str:
    return f"{what}-{'.'.join(map(str, block))}"


# -- in the tasks -------------------------------------------------------------------------------------------


def survey(common: tuple[Pieces, Shelf, str | None], block: Index, given: Any) -> Index:
    """Keep the rows of a block, and which of its pieces touch those of earlier blocks; return the block."""
    pieces, shelf, run = common
    box, read = pieces.box(block), pieces.around(block)
    with task(run):
        labels = pieces.read(given, read)
    check_ids(labels, "the label image holds")
    core = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(box, read, strict=True))
    rows = Rows.of(labels[core], [a for a, _ in box], pieces.shape, pieces.n_each)
    tables = [np.zeros((0, 4), np.int64)]
    for step, table in touching(labels, box, pieces.shape, pieces.connectivity, pieces.n_each):
        other = np.ravel_multi_index(tuple(np.add(block, step)), pieces.counts)
        tables.append(np.insert(table, 0, other, axis=1))
    facts = {"index": rows.index, "ids": rows.ids, "first": rows.first}
    shelf.keep("rows", block, {**facts, "touching": np.concatenate(tables)})
    return block


def renumbered(common: tuple[Pieces, Shelf, np.dtype[Any]], box: Sequence[Span], given: Any) -> Array:
    """Return a box of the label image with the numbers of its objects; axes as in the source."""
    pieces, shelf, dtype = common
    with task():
        labels = pieces.read(given, box)
    out = np.zeros(labels.shape, dtype)
    for block in pieces.meeting(box):
        part = tuple(
            slice(max(a, low) - low, min(b, high) - low)
            for (a, b), (low, high) in zip(pieces.box(block), box, strict=True)
        )
        if not labels[part].any():
            continue
        table = shelf.tables("numbers", block)
        starts = [max(a, low) for (a, _), (low, _) in zip(pieces.box(block), box, strict=True)]
        for at in np.ndindex(labels[part].shape[: pieces.n_each]):
            index = index_of(at, starts, pieces.shape)
            rows = slice(*np.searchsorted(table["index"], (index, index + 1)))
            out[part][at] = _looked_up(labels[part][at], table["ids"][rows], table["numbers"][rows], dtype)
    return out.transpose(np.argsort(pieces.order))


def _looked_up(labels: Array, ids: Ints, numbers: Ints, dtype: np.dtype[Any]) -> Array:
    """Return the numbers of labels."""
    most = max(int(ids[-1]) if len(ids) else 0, int(labels.max(initial=0)))
    if most <= 4 * labels.size + 1024:
        table = np.zeros(most + 1, dtype)
        table[ids] = numbers
        out = table[labels]
        known = np.count_nonzero(out) == np.count_nonzero(labels)
    else:
        runs = Runs.of(labels)
        # Of int64 and uint64 numpy makes floats.
        found = runs.ids.astype(np.int64, copy=False)
        at = np.minimum(np.searchsorted(ids, found), max(len(ids) - 1, 0))
        known = not len(at) or (len(ids) > 0 and np.array_equal(ids[at], found))
        out = runs.painted(numbers[at].astype(dtype)) if known else labels
    if not known:
        raise TilingError(
            "the label image changed while it was read: it holds ids that were not there before. Let nothing "
            "write into it, and call merge_labels again with overwrite=True."
        )
    return out


# -- on the client ------------------------------------------------------------------------------------------


def number_pieces(pieces: Pieces, shelf: Shelf, dtype: np.dtype[Any]) -> int:
    """Keep for each block the numbers of its ids; return the largest number."""
    period = math.prod(pieces.shape[pieces.n_each :])
    starts = [0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "first").open("wb") as first, (folder / "keys").open("wb") as keys:
            for block in pieces.blocks():
                found = shelf.tables("rows", block)
                starts.append(starts[-1] + len(found["ids"]))
                (found["index"] * period + found["first"]).tofile(first)
                np.stack((found["index"], found["ids"])).tofile(keys)
        firsts = _mapped(folder / "first")
        known = Keys(_mapped(folder / "keys"), starts)
        numbers = numbered(firsts, _edges(pieces, shelf, known), period=period, folder=folder)
        most = max((int(numbers[part].max()) for part in parts(len(numbers))), default=0)
        if most > np.iinfo(dtype).max:
            raise TilingError(f'there are {most} objects, more than {dtype} holds; give dtype="uint64".')
        for place, block in enumerate(pieces.blocks()):
            index, ids = known[place]
            own = numbers[starts[place] : starts[place + 1]]
            shelf.keep("numbers", block, {"index": index, "ids": ids, "numbers": own})
    return most


@dataclass(frozen=True, slots=True)
class Keys:
    """Index and id of each piece of each block, in a file."""

    table: Array
    starts: Sequence[int]
    """Number of the first piece of each block, then the number of pieces."""

    def __getitem__(self, place: int) -> tuple[Ints, Ints]:
        index, ids = self.table[2 * self.starts[place] : 2 * self.starts[place + 1]].reshape(2, -1)
        return index, ids


def _mapped(path: Path) -> Array:
    """Return the values of a file; an empty one cannot be mapped."""
    return np.memmap(path, np.int64, "r") if path.stat().st_size else np.zeros(0, np.int64)


def _edges(pieces: Pieces, shelf: Shelf, known: Keys) -> Iterator[Ints]:
    """Yield the pairs of pieces that touch, by their numbers."""
    for place, block in enumerate(pieces.blocks()):
        table = shelf.tables("rows", block)["touching"]
        for other in np.unique(table[:, 0]).tolist():
            pairs = pairs_of(table[table[:, 0] == other, 1:], known[place], known[other])
            yield pairs + np.array([known.starts[place], known.starts[other]])
