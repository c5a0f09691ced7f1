"""The record and the done-marks of a Zarr array, and `status`, which reads them.

The attribute ``tilework`` of the array stores its record: the plan, the versions and the fingerprint of the
inputs. Done-marks tell which write units are finished. They lie below the array's folder::

    .tilework/done/3.0.7    an empty value, written after unit (3, 0, 7)
    .tilework/done.bits     one bit for every unit, packed and compressed

The existence of a chunk shows nothing: chunks of fill value leave no file, and a shard exists after its first
inner write.
"""

from __future__ import annotations

import asyncio
import json
import math
import platform
import zlib
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import zarr
from zarr.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

from tilework._types import Bits, Index
from tilework.errors import TilingError
from tilework.grid.axis import ceil_div
from tilework.plan.tile_plan import TilePlan

__all__ = ["RECORD", "Ledger", "Record", "Status", "record_of", "status", "versions"]

RECORD = "tilework"
"""Name of the attribute that holds the record."""
FORMAT = 1
"""Version of the record."""
FOLDER = ".tilework"


class Record(TypedDict):
    """The record of a run, in the attributes of the array."""

    format: int
    versions: dict[str, str]
    """Versions of python and the packages that computed the result."""
    fingerprint: dict[str, str]
    """The inputs of the result: names of parts, with their digests or values."""
    plan: NotRequired[dict[str, Any]]
    """The JSON of the plan, for a result of `tiled_map`."""
    failed: NotRequired[list[str]]
    """Tiles that the last run left out, with their errors."""


def record_of(fingerprint: Mapping[str, str], plan: TilePlan | None = None) -> Record:
    """Return the record of a run that begins."""
    record: Record = {"format": FORMAT, "versions": versions(), "fingerprint": dict(fingerprint)}
    if plan is not None:
        # Without the facts on the machine that do not affect values: stores of two machines are equal.
        record["plan"] = json.loads(replace(plan, threads=1, cache_bytes=0, notes=()).to_json())
    return record


def versions() -> dict[str, str]:
    """Return the versions of python and the packages that compute a result."""
    found = {name: version(name) for name in ("tilework", "numpy", "dask", "zarr")}
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}


class Ledger:
    """The record and the done-marks of one Zarr array, read from its store each time."""

    def __init__(self, array: Any) -> None:
        self.array = array
        unit = array.shards or array.chunks
        self.shape: Index = tuple(ceil_div(n, u) for n, u in zip(array.shape, unit, strict=True))
        """Number of write units per axis."""

    @property
    def record(self) -> Record | None:
        """The record of the run that wrote the array; None: tilework did not write it."""
        record = self.array.attrs.asdict().get(RECORD)
        return record if isinstance(record, dict) and "fingerprint" in record else None  # type: ignore[return-value]

    def write_record(self, record: Record) -> None:
        """Write a record into the attributes."""
        if self.record != record:
            self.array.update_attributes({RECORD: record})

    def read(self) -> Bits:
        """Return which units are done."""
        return self._read(self._marked())

    def _read(self, marked: Iterable[Index]) -> Bits:
        done = np.zeros(math.prod(self.shape), bool)
        packed = sync((self._folder / "done.bits").get(default_buffer_prototype()))
        if packed is not None:
            bits = np.frombuffer(zlib.decompress(packed.to_bytes()), np.uint8)
            done |= np.unpackbits(bits, count=done.size).astype(bool)
        done = done.reshape(self.shape)
        for unit in marked:
            done[unit] = True
        return done

    def mark(self, units: Iterable[Index]) -> None:
        """Mark units as done, after their data were written."""
        empty = cpu.Buffer.from_bytes(b"")
        sync(_all([self._place(unit).set(empty) for unit in units]))

    def pack(self) -> None:
        """Combine the marks of single units into one value; a task that is still running may add more."""
        marked = list(self._marked())
        self._write(self._read(marked))
        self._delete(marked)

    def reset(self, done: Bits | None = None) -> None:
        """Mark only the units in ``done``; None: no unit.

        The order matters if the run dies in between: a mark may be lost, but no unit is marked by mistake.
        """
        self._delete(self._marked())
        self._write(np.zeros(self.shape, bool) if done is None else done)

    def _write(self, done: Bits) -> None:
        packed = zlib.compress(np.packbits(done).tobytes())
        sync((self._folder / "done.bits").set(cpu.Buffer.from_bytes(packed)))

    def _marked(self) -> Iterator[Index]:
        """Yield the units that have a mark of their own."""
        prefix = f"{self._folder.path}/done/"
        for key in sync(_listed(self._folder.store, prefix)):
            parts = key.removeprefix(prefix).split(".")
            # A killed writer leaves temporary files next to its marks.
            if len(parts) == len(self.shape) and all(p.isdecimal() for p in parts):
                unit = tuple(map(int, parts))
                if all(i < n for i, n in zip(unit, self.shape, strict=True)):
                    yield unit

    def _delete(self, units: Iterable[Index]) -> None:
        sync(_all([self._place(unit).delete() for unit in units]))

    def _place(self, unit: Index) -> Any:
        """Return the place of the mark of a unit."""
        return self._folder / f"done/{'.'.join(map(str, unit))}"

    @property
    def _folder(self) -> Any:
        return self.array.store_path / FOLDER


async def _all(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    await asyncio.gather(*work)


async def _listed(store: Any, prefix: str) -> list[str]:
    return [key async for key in store.list_prefix(prefix)]


# -- status -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of one array."""

    place: str
    """Address of the array."""
    done: int
    """Number of write units that are done."""
    units: int
    """Number of all write units."""
    failed: tuple[str, ...] = ()
    """Tiles that the last run left out, with their errors."""

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return self.done == self.units


def status(store: Any) -> list[Status]:
    """Return the progress of every array in a store that `to_zarr` has written, finished or not.

    Parameters
    ----------
    store : path, URL, Zarr store, zarr.Group or zarr.Array
        For a group, all arrays below it.

    Returns
    -------
    list of Status
        One entry per array: its place, finished and total write units, and failed tiles.

    Raises
    ------
    TilingError
        If there is no Zarr array or group.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map, to_zarr
    >>> out = tiled_map(np.negative, np.zeros((10, 10)), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> [found] = status(written)
    >>> found.done, found.units, found.complete
    (4, 4, True)
    """
    if not isinstance(store, zarr.Array | zarr.Group):
        try:
            store = zarr.open(str(store) if isinstance(store, Path) else store, mode="r")
        except FileNotFoundError as error:
            raise TilingError(f"there is no Zarr array or group at {store}.") from error
    return list(_below(store))


def _below(node: Any) -> Iterator[Status]:
    if isinstance(node, zarr.Group):
        for _, member in sorted(node.members()):
            yield from _below(member)
        return
    ledger = Ledger(node)
    record = ledger.record
    if record is not None:
        done = ledger.read()
        yield Status(str(node.store_path), int(done.sum()), done.size, tuple(record.get("failed", ())))
