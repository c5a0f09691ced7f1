"""Done-marks: which write units of a Zarr array are finished, kept beside the array's own data.

Below the array's folder::

    .tilework/done/3.0.7    an empty value, written after unit (3, 0, 7)
    .tilework/done.bits     the same for many units: one bit each, packed and compressed

That a chunk exists says nothing: chunks of fill value leave no file, and a shard exists after its first inner
write. What the run was is in the array's attributes under ``tilework``.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Coroutine, Iterable
from typing import Any

import numpy as np
from zarr.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

from tilework.engine.spec import Index
from tilework.grid.axis import ceil_div

__all__ = ["RECORD", "Marks", "read_record", "write_record"]

RECORD = "tilework"
"""Name of the attribute that says what was written."""
FOLDER = ".tilework"

Bits = np.ndarray[Any, np.dtype[np.bool_]]


class Marks:
    """The done-marks of one array."""

    def __init__(self, array: Any) -> None:
        self.array = array
        unit = array.shards or array.chunks
        self.shape: Index = tuple(ceil_div(n, u) for n, u in zip(array.shape, unit, strict=True))

    @property
    def _folder(self) -> Any:
        return self.array.store_path / FOLDER

    def read(self) -> Bits:
        """Return which units are done."""
        return self._read(self._marked())

    def _read(self, marked: Iterable[Index]) -> Bits:
        done = np.zeros(math.prod(self.shape), bool)
        packed = _run((self._folder / "done.bits").get(default_buffer_prototype()))
        if packed is not None:
            bits = np.frombuffer(zlib.decompress(packed.to_bytes()), np.uint8)
            done |= np.unpackbits(bits, count=done.size).astype(bool)
        done = done.reshape(self.shape)
        for unit in marked:
            done[unit] = True
        return done

    def set(self, units: Iterable[Index]) -> None:
        """Mark units whose data were written."""
        names = [".".join(map(str, unit)) for unit in units]
        empty = cpu.Buffer.from_bytes(b"")
        _run(_all((self._folder / f"done/{name}").set(empty) for name in names))

    def pack(self) -> None:
        """Put the marks of single units into one value; a task that is still running may add more."""
        marked = list(self._marked())
        self._write(self._read(marked))
        self._delete(marked)

    def reset(self, done: Bits) -> None:
        """Let only the units in ``done`` be marked.

        The order matters for a run that dies in between: units may be forgotten, never marked by mistake.
        """
        self._delete(self._marked())
        self._write(done)

    def _write(self, done: Bits) -> None:
        packed = zlib.compress(np.packbits(done).tobytes())
        _run((self._folder / "done.bits").set(cpu.Buffer.from_bytes(packed)))

    def _marked(self) -> Iterable[Index]:
        """Yield the units that have a mark of their own."""
        store, prefix = self._folder.store, f"{self._folder.path}/done/"
        for key in _run(_listed(store, prefix)):
            parts = key.removeprefix(prefix).split(".")
            # A writer that was killed leaves temporary files beside its marks.
            if len(parts) == len(self.shape) and all(p.isdecimal() for p in parts):
                unit = tuple(map(int, parts))
                if all(i < n for i, n in zip(unit, self.shape, strict=True)):
                    yield unit

    def _delete(self, units: Iterable[Index]) -> None:
        names = [".".join(map(str, unit)) for unit in units]
        _run(_all((self._folder / f"done/{name}").delete() for name in names))


def read_record(array: Any) -> dict[str, Any] | None:
    """Return what an array's attributes say of the run that wrote it; None: it was not tilework."""
    record = array.attrs.asdict().get(RECORD)
    return record if isinstance(record, dict) and "fingerprint" in record else None


def write_record(array: Any, record: dict[str, Any]) -> None:
    """Put what was written into the array's attributes."""
    if read_record(array) != record:
        array.update_attributes({RECORD: record})


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return sync(work)


async def _all(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    await asyncio.gather(*work)


async def _listed(store: Any, prefix: str) -> list[str]:
    return [key async for key in store.list_prefix(prefix)]
