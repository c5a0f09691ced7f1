"""Pieces of objects in the blocks of a label image: found block by block, and numbered as objects.

1. A task for each block (`survey`) reads the block, and a sample around it on the sides of earlier blocks.
   It keeps a row per piece, and which pieces touch those of earlier blocks, as an object in the store.
2. The client reads these objects one at a time, numbers the pieces (`number_pieces`), and keeps the number of
   each id of each block as another object.
3. A task for each part of the result (`part_of_result`) reads the part, and the objects of the blocks that
   it meets.

So nobody holds more than the facts of one block, but for one first sample and one number per piece on the
client's disk, and the edges in its memory.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework._types import Array, Index, Ints, Span
from tilework.errors import TilingError
from tilework.labels.components import numbered
from tilework.labels.faces import around, pairs_of, touching
from tilework.labels.facts import renumbered
from tilework.labels.ordering import parts
from tilework.labels.rows import Firsts
from tilework.labels.runs import check_ids
from tilework.source.base import Source
from tilework.source.kept import task
from tilework.source.padding import AxisRead
from tilework.writing.sink import block_name
from tilework.writing.tables import Tables

__all__ = ["Pieces", "number_pieces", "part_of_result", "survey"]


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


# -- in the tasks -------------------------------------------------------------------------------------------


def survey(common: tuple[Pieces, Tables, str | None], block: Index, given: Any) -> Index:
    """Keep the rows of a block, and which of its pieces touch those of earlier blocks; return the block."""
    pieces, tables, run = common
    box, read = pieces.box(block), pieces.around(block)
    with task(run):
        labels = pieces.read(given, read)
    check_ids(labels, "the label image holds")
    core = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(box, read, strict=True))
    own = Firsts.of(labels[core], [a for a, _ in box], pieces.shape, pieces.n_each)
    found = [np.zeros((0, 4), np.int64)]
    for step, table in touching(labels, box, pieces.shape, pieces.connectivity, pieces.n_each):
        other = np.ravel_multi_index(tuple(np.add(block, step)), pieces.counts)
        found.append(np.insert(table, 0, other, axis=1))
    facts = {"index": own.index, "ids": own.ids, "first": own.first}
    tables.keep("rows", block_name(block), {**facts, "touching": np.concatenate(found)})
    return block


def part_of_result(common: tuple[Pieces, Tables, np.dtype[Any]], box: Sequence[Span], given: Any) -> Array:
    """Return a box of the label image with the numbers of its objects; axes as in the source."""
    pieces, tables, dtype = common
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
        table = tables.read("numbers", block_name(block))
        rows = table["index"], table["ids"], table["numbers"]
        starts = [max(a, low) for (a, _), (low, _) in zip(pieces.box(block), box, strict=True)]
        out[part] = renumbered(labels[part], rows, starts, pieces.shape, pieces.n_each, dtype)
    return out.transpose(np.argsort(pieces.order))


# -- on the client ------------------------------------------------------------------------------------------


def number_pieces(pieces: Pieces, tables: Tables, dtype: np.dtype[Any]) -> int:
    """Keep for each block the numbers of its ids; return the largest number."""
    period = math.prod(pieces.shape[pieces.n_each :])
    starts = [0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "first").open("wb") as first, (folder / "keys").open("wb") as keys:
            for block in pieces.blocks():
                found = tables.read("rows", block_name(block))
                starts.append(starts[-1] + len(found["ids"]))
                (found["index"] * period + found["first"]).tofile(first)
                np.stack((found["index"], found["ids"])).tofile(keys)
        firsts = _mapped(folder / "first")
        known = Keys(_mapped(folder / "keys"), starts)
        numbers = numbered(firsts, _edges(pieces, tables, known), period=period, folder=folder)
        most = max((int(numbers[part].max()) for part in parts(len(numbers))), default=0)
        if most > np.iinfo(dtype).max:
            raise TilingError(f'there are {most} objects, more than {dtype} holds; give dtype="uint64".')
        for place, block in enumerate(pieces.blocks()):
            index, ids = known[place]
            own = numbers[starts[place] : starts[place + 1]]
            tables.keep("numbers", block_name(block), {"index": index, "ids": ids, "numbers": own})
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


def _edges(pieces: Pieces, tables: Tables, known: Keys) -> Iterator[Ints]:
    """Yield the pairs of pieces that touch, by their numbers."""
    for place, block in enumerate(pieces.blocks()):
        table = tables.read("rows", block_name(block))["touching"]
        for other in np.unique(table[:, 0]).tolist():
            pairs = pairs_of(table[table[:, 0] == other, 1:], known[place], known[other])
            yield pairs + np.array([known.starts[place], known.starts[other]])
