"""The target of a result: `Target.look` opens the store once and returns one of three places.

`Fresh`
    Nothing, or data that ``overwrite=True`` deletes. A new array is created.
`Continued`
    A result of an earlier call. Only its missing part is computed.
`Foreign`
    An array that the caller gave. It is written from the start, with its own layout.

A place then compares fingerprints, chooses the layout, and creates the array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tilework._types import Index
from tilework.errors import AlignmentError, TilingError
from tilework.source.base import Source
from tilework.source.zarr_array import ZarrSource
from tilework.writing.fingerprint import UNKNOWN, changes
from tilework.writing.ledger import RECORD, Ledger, Record, versions
from tilework.writing.units import Layout, layout_of, lengths

__all__ = ["Continued", "Foreign", "Fresh", "Place", "Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of one array, as given by the caller."""

    store: Any
    """A path, a URL, a Zarr store, a group, or the array to write into."""
    path: str
    """Path of the array in the store; empty: the root of the store."""
    chunks: Any
    """Shape of chunks, samples per axis of the result, as given: an int, a tuple, or None."""
    shards: Any
    """Shape of shards, as ``chunks``."""
    overwrite: bool
    """Whether existing data may be deleted."""
    resume: bool
    """Whether an earlier result is resumed."""
    options: Mapping[str, Any]
    """Further arguments of `zarr.create_array`."""

    @property
    def given(self) -> Any:
        """The array to write into, if the caller gave one as store."""
        array = all(hasattr(self.store, name) for name in ("shape", "dtype", "__setitem__"))
        return self.store if array else None

    @property
    def marked(self) -> bool:
        """Whether the store can hold a record and done-marks."""
        return self.given is None or isinstance(self.given, zarr.Array)

    @property
    def address(self) -> str:
        """Store and path, for messages."""
        store = self.store.store_path if isinstance(self.store, zarr.Group | zarr.Array) else self.store
        return f"{store}/{self.path}".rstrip("/")

    def look(self, sources: Iterable[Source]) -> Place:
        """Return the place: the target with the data that are there.

        Raises
        ------
        TilingError
            If it must not be written: it is, or holds, one of the ``sources``, or it holds other data.
        """
        self._refuse_sources(sources)
        given = self.given
        if given is None:
            return self._look_into_store()
        if not isinstance(given, zarr.Array) or self.overwrite:
            return Foreign(self, given)
        record = Ledger(given).record
        if record is not None:
            return self._continued(given, record)
        if given.nchunks_initialized:
            raise TilingError(
                f"{self.address} holds data that tilework did not write; overwrite=True writes over them."
            )
        return Foreign(self, given)

    def _look_into_store(self) -> Place:
        found = self._open()
        if found is None or self.overwrite:
            return Fresh(self)
        record = Ledger(found).record
        if record is None:
            raise TilingError(f"{self.address} already holds data; overwrite=True deletes it.")
        return self._continued(found, record)

    def _continued(self, array: Any, record: Record) -> Continued:
        if not self.resume:
            raise TilingError(
                f"{self.address} already holds a result; "
                "overwrite=True deletes it, resume=True goes on with it."
            )
        return Continued(self, array, record)

    def _open(self) -> Any:
        """Return the existing array, or None."""
        try:
            if isinstance(self.store, zarr.Group):
                found = self.store.get(self.path)
            else:
                found = zarr.open(self.zarr_store, path=self.path or None, mode="r+")
        except FileNotFoundError:  # also zarr's own errors, which derive from it
            return None
        if not isinstance(found, zarr.Group):
            return found
        if self.overwrite or not (len(found) or found.attrs.asdict()):
            return None
        raise TilingError(
            f"{self.address} already holds data, a group; overwrite=True deletes it, path= writes into it."
        )

    @property
    def zarr_store(self) -> Any:
        """The store as zarr takes it. A local path is absolute, because workers may run in another folder."""
        local = isinstance(self.store, Path) or (isinstance(self.store, str) and "://" not in self.store)
        return str(Path(self.store).absolute()) if local else self.store

    def _refuse_sources(self, sources: Iterable[Source]) -> None:
        if not self.marked:
            if any(_same_memory(self.given, source.handle) for source in sources):
                raise TilingError("the array to write into is the one that is read; write into another.")
            return
        if self.given is not None:
            own = _resolved(str(self.given.store_path))
        else:
            root = self.store.store_path if isinstance(self.store, zarr.Group) else self.store
            own = _resolved(f"{str(root).rstrip('/')}/{self.path}".rstrip("/"))
        for source in sources:
            read = source.handle.store_path if isinstance(source, ZarrSource) else getattr(source, "path", "")
            if read and f"{_resolved(str(read))}/".startswith(f"{own}/"):
                raise TilingError(f"{own} holds the array that is read; write somewhere else.")


@dataclass(frozen=True, slots=True)
class Fresh:
    """An empty place, or one whose data are deleted."""

    target: Target
    """The target, as given."""

    def compare(self, fingerprint: Mapping[str, str]) -> None:
        """Do nothing: no result is resumed here."""

    def layout(self, shape: Index, default: Callable[[], Index]) -> Layout:
        """Return the given chunks and shards, else the default chunks."""
        chunks = lengths("chunks", self.target.chunks, shape)
        shards = lengths("shards", self.target.shards, shape)
        if chunks is None:
            chunks = default()
            if shards is not None:
                chunks = tuple(math.gcd(c, s) for c, s in zip(chunks, shards, strict=True))
        for axis, (chunk, shard) in enumerate(zip(chunks, shards or chunks, strict=True)):
            if shard % chunk:
                raise AlignmentError(
                    f"shards must be multiples of chunks; got shard {shard} and chunk {chunk} on axis {axis}."
                )
        return Layout(chunks, shards)

    def create(self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record) -> Any:
        """Return a new array, with the record in its attributes."""
        target, options = self.target, dict(self.target.options)
        attributes = dict(options.pop("attributes", None) or {}) | {RECORD: record}
        arguments: dict[str, Any] = {
            "shape": shape, "dtype": dtype, "chunks": layout.chunks, "shards": layout.shards,
            "overwrite": target.overwrite, "attributes": attributes,
        } | options  # fmt: skip
        try:
            if isinstance(target.store, zarr.Group):
                return target.store.create_array(target.path, **arguments)
            return zarr.create_array(target.zarr_store, name=target.path or None, **arguments)
        except (zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError) as error:
            raise TilingError(f"{target.address} already holds data; overwrite=True deletes it.") from error


@dataclass(frozen=True, slots=True)
class Foreign:
    """An array that the caller gave; its data are overwritten."""

    target: Target
    """The target, as given."""
    array: Any
    """The array: of zarr, numpy, h5py..."""

    def compare(self, fingerprint: Mapping[str, str]) -> None:
        """Do nothing: no result is resumed here."""

    def layout(self, shape: Index, default: Callable[[], Index]) -> Layout:
        """Return the layout of the array; raise if another one was given."""
        return _layout_there(self.target, self.array, shape)

    def create(self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record) -> Any:
        """Return the array, with the record in its attributes and without marks."""
        _refuse_other(self.array, shape, dtype)
        if self.target.marked:
            ledger = Ledger(self.array)
            if ledger.record is not None:
                ledger.reset()
            ledger.write_record(record)
        return self.array


@dataclass(frozen=True, slots=True)
class Continued:
    """A result of an earlier call, which is resumed."""

    target: Target
    """The target, as given."""
    array: Any
    """The existing array."""
    record: Record
    """The record of the earlier call."""

    def compare(self, fingerprint: Mapping[str, str]) -> None:
        """Raise if the existing result has another fingerprint."""
        before = self.record["fingerprint"]
        found = changes(before, fingerprint)
        if not found:
            return
        old, new = self.record.get("versions", {}).get("python"), versions()["python"]
        why = f" (python {old} -> {new})" if old != new else ""
        if any(UNKNOWN in (before.get(k), fingerprint.get(k)) for k in fingerprint):
            why += ", and some parts cannot be compared: identify the function with version="
        raise TilingError(
            f"{self.target.address} holds a result of other parts{why}; changed: {'; '.join(found)}. It was "
            "written by another call: undo the change to resume it, or write afresh with overwrite=True."
        )

    def layout(self, shape: Index, default: Callable[[], Index]) -> Layout:
        """Return the layout of the array; raise if another one was given."""
        return _layout_there(self.target, self.array, shape)

    def create(self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record) -> Any:
        """Return the existing array."""
        _refuse_other(self.array, shape, dtype)
        return self.array


Place = Fresh | Continued | Foreign


def _layout_there(target: Target, array: Any, shape: Index) -> Layout:
    found = layout_of(array)
    for what in ("chunks", "shards"):
        asked, has = lengths(what, getattr(target, what), shape), getattr(found, what)
        if asked is not None and asked != has:
            raise AlignmentError(
                f"the array at {target.address} has {what} {has}; got {what}={asked}. Leave {what} out, or "
                "write afresh with overwrite=True."
            )
    return found


def _refuse_other(array: Any, shape: Index, dtype: np.dtype[Any]) -> None:
    """Raise if the array to write into has another shape or dtype."""
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise TilingError(
            f"the array to write into has shape {tuple(array.shape)} and dtype {array.dtype}; the result has "
            f"{shape} and {dtype}."
        )


def _resolved(address: str) -> str:
    """Return the canonical address of a store: a local path becomes absolute, without links."""
    local = address.removeprefix("file://")
    return address if "://" in local else str(Path(local).resolve())


def _same_memory(array: Any, read: Any) -> bool:
    both = isinstance(array, np.ndarray) and isinstance(read, np.ndarray)
    return both and np.may_share_memory(array, read)
