"""`Tables`: facts about the objects of each block, and their numbers, as objects beside an array.

They are written before the block is marked, so a marked block has its facts::

    .tilework/<generation>-facts/3.0     what block (3, 0) holds
    .tilework/<generation>-edges/3.0     which pieces touch across the cuts that begin in it, for labels that
                                         are joined
    .tilework/<generation>-numbers/3.0   the number of each object in it, in the order of the facts
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath

from tilework._types import Array
from tilework.errors import TilingError
from tilework.labels.facts import BlockFacts
from tilework.source.held import Travelling
from tilework.writing.objects import Objects

__all__ = ["CutObjects", "Tables", "pieces_beside", "pieces_place"]


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one generation of an array."""

    target: Any
    """The array, or a `Travelling` one."""
    generation: str
    """Generation of its marks."""

    def _objects(self, kind: str) -> Objects:
        array = self.target.get() if isinstance(self.target, Travelling) else self.target
        return Objects.of(array.store_path) / f"{self.generation}-{kind}"

    def write_facts(self, block: str, facts: BlockFacts) -> None:
        """Write the facts of a block."""
        self._objects("facts").write(block, facts.dumped())

    def facts(self, block: str) -> BlockFacts:
        """Return the facts of a block."""
        return BlockFacts.loaded(self._read("facts", block))

    def write_numbers(self, block: str, numbers: Array) -> None:
        """Write the number of each object of a block."""
        with io.BytesIO() as file:
            np.save(file, numbers)
            self._objects("numbers").write(block, file.getvalue())

    def numbers(self, block: str) -> Array:
        """Return the number of each object of a block."""
        found: Array = np.load(io.BytesIO(self._read("numbers", block)), allow_pickle=False)
        return found

    def write_edges(self, block: str, edges: Array) -> None:
        """Write which pieces touch: rows of the index of ``each`` axes and two ids."""
        with io.BytesIO() as file:
            np.save(file, edges)
            self._objects("edges").write(block, file.getvalue())

    def edges(self, block: str) -> Array:
        """Return which pieces touch."""
        found: Array = np.load(io.BytesIO(self._read("edges", block)), allow_pickle=False)
        return found

    def with_edges(self) -> set[str]:
        """Return the blocks whose edges are there."""
        return set(self._objects("edges").names())

    def _read(self, kind: str, block: str) -> bytes:
        objects = self._objects(kind)
        value = objects.read(block)
        if value is None:
            raise TilingError(
                f"{objects.store}/{objects.path}/{block} is gone: somebody deleted it while objects were "
                "numbered. Write afresh with overwrite=True."
            )
        return value

    def delete_edges(self) -> None:
        """Delete the edges of all blocks."""
        self._objects("edges").delete_folders("")

    def __reduce__(self) -> tuple[Any, ...]:
        target = self.target if isinstance(self.target, Travelling) else Travelling(self.target)
        return Tables, (target, self.generation)


def pieces_place(array: Any, generation: str) -> StorePath:
    """Return where the pieces of labels are while an array is being written."""
    objects = Objects.of(array.store_path) / f"{generation}-pieces"
    return StorePath(objects.store, objects.path)


def pieces_beside(array: Any, generation: str) -> Any:
    """Return the array of pieces beside an array; None if there is none, or a part of one."""
    try:
        return zarr.open_array(pieces_place(array, generation), mode="r")
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class CutObjects:
    """Which numbered objects of an array the crops of their tiles cut; kept as long as the array."""

    array: Any
    generation: str
    """Generation of its marks."""

    @property
    def _objects(self) -> Objects:
        return Objects.of(self.array.store_path)

    def write(self, index: Array, numbers: Array) -> None:
        """Write index of ``each`` axes and number of each; nothing if there are none."""
        name = f"{self.generation}-cut"
        if not len(numbers):
            self._objects.delete(name)
            return
        with io.BytesIO() as file:
            np.save(file, np.stack((index, numbers)))
            self._objects.write(name, file.getvalue())

    def read(self) -> tuple[Array, Array]:
        """Return index and number of each."""
        value = self._objects.read(f"{self.generation}-cut")
        if value is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        index, numbers = np.load(io.BytesIO(value), allow_pickle=False)
        return index, numbers
