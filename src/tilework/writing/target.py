"""Where a result goes: the array that is there, or the one that is made."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tilework.engine.spec import Index, Spec
from tilework.errors import AlignmentError, TilingError
from tilework.plan.tile_plan import TilePlan
from tilework.source.zarr_array import ZarrSource
from tilework.writing.fingerprint import UNKNOWN, changes
from tilework.writing.ledger import RECORD, Marks, read_record, write_record
from tilework.writing.units import default_chunks, lengths, units_of

__all__ = ["Target", "record_of", "refuse_source"]

FORMAT = 1
"""Version of the record in the attributes."""


@dataclass(slots=True)
class Target:
    """Where one array goes, as asked for, and what is there."""

    store: Any
    path: str
    chunks: Any
    shards: Any
    overwrite: bool
    resume: bool
    options: Mapping[str, Any]
    there: Any = None
    """The array that stands there and is gone on with."""
    record: dict[str, Any] | None = None
    """What the array's attributes say of the run that wrote it."""

    @property
    def given(self) -> Any:
        """The array that was given, if the store is one."""
        array = all(hasattr(self.store, name) for name in ("shape", "dtype", "__setitem__"))
        return self.store if array else None

    @property
    def marked(self) -> bool:
        """Whether done-marks can be kept beside the data."""
        return self.given is None or isinstance(self.given, zarr.Array)

    @property
    def place(self) -> str:
        """The address, for messages."""
        store = self.store.store_path if isinstance(self.store, zarr.Group | zarr.Array) else self.store
        return f"{store}/{self.path}".rstrip("/")

    def look(self) -> None:
        """Find the array that is there, and refuse one that may not be written to."""
        given = self.given
        if given is not None and not isinstance(given, zarr.Array):
            self.there = given
            return
        found = given if given is not None else self._open()
        if found is None:
            return
        record = read_record(found)
        if given is not None and (record is None or self.overwrite):
            if not self.overwrite and found.nchunks_initialized:
                raise TilingError(
                    f"{self.place} holds data that tilework did not write; overwrite=True writes over them."
                )
            self.there = given
            if record is not None:
                Marks(given).reset(np.zeros(Marks(given).shape, bool))
            return
        if self.overwrite:
            return
        if record is None or not self.resume:
            kind = "data" if record is None else "a result"
            raise TilingError(
                f"{self.place} already holds {kind}; overwrite=True deletes it"
                + (", resume=True goes on with it." if record is not None else ".")
            )
        self.there, self.record = found, record

    def _open(self) -> Any:
        try:
            if isinstance(self.store, zarr.Group):
                found = self.store.get(self.path)
                if found is None:
                    return None
            else:
                found = zarr.open(self._store, path=self.path or None, mode="r+")
        except FileNotFoundError:  # zarr's own errors of that meaning too
            return None
        if isinstance(found, zarr.Group):
            if self.overwrite or self._empty(found):
                return None
            raise TilingError(
                f"{self.place} already holds data, a group; overwrite=True deletes it, path= writes into it."
            )
        return found

    def _empty(self, group: Any) -> bool:
        return not len(group) and not group.attrs.asdict()

    @property
    def _store(self) -> Any:
        """The store as zarr takes it, a local path absolute: workers may stand in another folder."""
        local = isinstance(self.store, Path) or (isinstance(self.store, str) and "://" not in self.store)
        return str(Path(self.store).absolute()) if local else self.store

    def layout(self, spec: Spec, number: int, shape: Index, itemsize: int) -> tuple[Index, Index | None]:
        """Return chunks and shards: those that are there, those asked for, or the default."""
        chunks, shards = lengths("chunks", self.chunks, shape), lengths("shards", self.shards, shape)
        if self.there is not None:
            found = units_of(self.there)
            for what, wanted, has in zip(("chunks", "shards"), (chunks, shards), found, strict=True):
                if wanted is not None and wanted != has:
                    raise AlignmentError(
                        f"the array at {self.place} has {what} {has}; got {what}={wanted}. Leave {what} out, "
                        "or write afresh with overwrite=True."
                    )
            return found
        if chunks is None:
            chunks = default_chunks(spec, number, shape, itemsize)
            if shards is not None:
                chunks = tuple(math.gcd(c, s) for c, s in zip(chunks, shards, strict=True))
        if shards is not None:
            for axis, (c, s) in enumerate(zip(chunks, shards, strict=True)):
                if s % c:
                    raise AlignmentError(
                        f"shards must be multiples of chunks; got shard {s} and chunk {c} on axis {axis}."
                    )
        return chunks, shards

    def compare(self, fingerprint: Mapping[str, str]) -> None:
        """Refuse to go on with another result than the one that is there."""
        if self.record is None:
            return
        found = changes(self.record["fingerprint"], fingerprint)
        if not found:
            return
        python = self.record.get("versions", {}).get("python"), versions()["python"]
        why = f" (python {python[0]} -> {python[1]})" if python[0] != python[1] else ""
        if any(UNKNOWN in (self.record["fingerprint"].get(k), fingerprint.get(k)) for k in fingerprint):
            why += ", and some parts cannot be compared: say by version= that the function is the same"
        raise TilingError(
            f"{self.place} holds a result of other parts{why}; changed: {'; '.join(found)}. Undo the change, "
            "or write afresh with overwrite=True."
        )

    def create(
        self, shape: Index, dtype: np.dtype[Any], chunks: Index, shards: Index | None, record: dict[str, Any]
    ) -> Any:
        """Return the array to write into, with ``record`` in its attributes."""
        if self.there is not None:
            there = self.there
            if tuple(there.shape) != shape or there.dtype != dtype:
                raise TilingError(
                    f"the array to write into has shape {tuple(there.shape)} and dtype {there.dtype}; the "
                    f"result has {shape} and {dtype}."
                )
            if isinstance(there, zarr.Array) and self.record is None:
                write_record(there, record)
            return there
        options = dict(self.options)
        attributes = dict(options.pop("attributes", None) or {}) | {RECORD: record}
        arguments: dict[str, Any] = {
            "shape": shape, "dtype": dtype, "chunks": chunks, "shards": shards, "overwrite": self.overwrite,
            "attributes": attributes,
        } | options  # fmt: skip
        try:
            if isinstance(self.store, zarr.Group):
                return self.store.create_array(self.path, **arguments)
            return zarr.create_array(self._store, name=self.path or None, **arguments)
        except (zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError) as error:
            raise TilingError(f"{self.place} already holds data; overwrite=True deletes it.") from error


def versions() -> dict[str, str]:
    """Return the versions of what a result was computed with."""
    found = {name: version(name) for name in ("tilework", "numpy", "dask", "zarr")}
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}


def record_of(fingerprint: Mapping[str, str], plan: TilePlan | None = None) -> dict[str, Any]:
    """Return what is put into the attributes of a written array."""
    own = {}
    if plan is not None:
        # Of the plan what makes the numbers, not what the machine had: stores of two machines are equal.
        own["plan"] = json.loads(replace(plan, threads=1, cache_bytes=0, notes=()).to_json())
    return {"format": FORMAT, "versions": versions(), "fingerprint": dict(fingerprint), **own}


def refuse_source(spec: Spec, targets: Any) -> None:
    """Refuse to write over the array that is read."""
    for target in targets:
        given = target.given
        if given is not None and not isinstance(given, zarr.Array):
            _refuse_memory(spec, given)
            continue
        where = str(given.store_path) if given is not None else str(target.store).rstrip("/")
        if isinstance(target.store, zarr.Group):
            where = str(target.store.store_path)
        own = _place(f"{where}/{target.path}".rstrip("/") if given is None else where)
        for source in spec.sources:
            read = source.handle.store_path if isinstance(source, ZarrSource) else getattr(source, "path", "")
            if read and f"{_place(str(read))}/".startswith(f"{own}/"):
                raise TilingError(f"{own} holds the array that is read; write somewhere else.")


def _place(where: str) -> str:
    """Return a store's address; that of a local folder absolute and without links, as there are many."""
    local = where.removeprefix("file://")
    return where if "://" in local else str(Path(local).resolve())


def _refuse_memory(spec: Spec, array: Any) -> None:
    for source in spec.sources:
        read = source.handle
        if (
            isinstance(array, np.ndarray)
            and isinstance(read, np.ndarray)
            and np.may_share_memory(array, read)
        ):
            raise TilingError("the array to write into is the one that is read; write into another.")
