"""`Tables`: what is known of the pieces of objects in each block, as objects beside an array.

They are written before the block is marked, and deleted when the numbers of all objects are written::

    .tilework/<generation>-tables/facts/3.0     the pieces in block (3, 0)
    .tilework/<generation>-tables/edges/3.0     which of them touch pieces of other blocks
    .tilework/<generation>-tables/numbers/3.0   the number of the object of each
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath

from tilework._types import Array
from tilework.errors import TilingError
from tilework.source.held import Travelling
from tilework.writing.objects import Objects, dump, load

__all__ = ["CutObjects", "Tables", "pieces_beside", "pieces_place"]


@dataclass(slots=True)
class Tables:
    """The tables of one generation of an array."""

    target: Any = None
    """The array, or a `Travelling` one; None until it is created."""
    generation: str = ""
    """Generation of its marks."""

    @property
    def _name(self) -> str:
        return f"{self.generation}-tables"

    @property
    def _beside(self) -> Objects:
        array = self.target.get() if isinstance(self.target, Travelling) else self.target
        return Objects.of(array.store_path)

    @property
    def _objects(self) -> Objects:
        return self._beside / self._name

    def keep(self, what: str, block: str, tables: Mapping[str, Array]) -> None:
        """Keep tables of a block."""
        self._objects.write(f"{what}/{block}", _dumped(tables))

    def read(self, what: str, block: str) -> dict[str, Array]:
        """Return tables of a block."""
        value = self._objects.read(f"{what}/{block}")
        found = None if value is None else _loaded(value)
        if found is None:
            raise TilingError(
                f"{self._name}/{what}/{block}, facts on a block, is missing beside the array, or a part of "
                "it is: somebody deleted it, or the machine failed. Call again with overwrite=True."
            )
        return found

    def blocks(self, what: str) -> set[str]:
        """Return the blocks of which tables are there."""
        return set((self._objects / what).names())

    def delete(self, what: str = "") -> None:
        """Delete the tables of a kind, or all."""
        self._beside.delete_folders(f"{self._name}/{what}" if what else self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        target = self.target if isinstance(self.target, Travelling) else Travelling(self.target)
        return Tables, (target, self.generation)


def _dumped(tables: Mapping[str, Array]) -> bytes:
    """Return tables as an object: a line of JSON, then their bytes. A .npz takes ten times as long."""
    body = b"".join(table.tobytes() for table in tables.values())
    columns = [[name, table.dtype.str, table.shape] for name, table in tables.items()]
    return dump({"crc": zlib.crc32(body), "tables": columns}) + b"\n" + body


def _loaded(value: bytes) -> dict[str, Array] | None:
    """Return tables from an object; None if it is only a part of one."""
    line = value.find(b"\n")
    body = memoryview(value)[line + 1 :]
    head = load(value[:line])
    if head is None or head.get("crc") != zlib.crc32(body):
        return None
    found, at = {}, 0
    for name, dtype, shape in head["tables"]:
        table = np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape)
        found[name], at = table.copy(), at + table.nbytes
    return found


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
        self._objects.write(name, _dumped({"index": index, "numbers": numbers}))

    def read(self) -> tuple[Array, Array]:
        """Return index and number of each."""
        name = f"{self.generation}-cut"
        value = self._objects.read(name)
        if value is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        found = _loaded(value)
        if found is None:
            raise TilingError(
                f"{name}, which objects are cut, is only a part of a file beside {self.array.store_path}: "
                "the machine failed. Write the labels again with overwrite=True."
            )
        return found["index"], found["numbers"]
