"""Stores in the memory of one process: they travel as an address that only this process resolves.

Pickling such a store copies it: a task in another process would read a copy, or an empty store, and write
where nobody looks. distributed pickles also what it sends to threads of the same process. So `dumps` pickles
any value, but each store in it that lives in this process as (host, pid, start, key). In this process that
is the store itself again; anywhere else it is an error that says what to do.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import platform
import sys
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from tilework.errors import TilingError

__all__ = [
    "Process",
    "Travelling",
    "address",
    "dumps",
    "innermost",
    "is_held",
    "this_boot",
    "this_machine",
    "this_process",
]


@dataclass(frozen=True, slots=True)
class Process:
    """One process; another one is never equal to it."""

    host: str
    """Name of its machine."""
    pid: int
    """Its number there, which later processes may get again."""
    started: int
    """When it loaded this module, nanoseconds since 1970."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_STARTED = time.time_ns()


@functools.cache
def this_boot() -> str:
    """Return what tells this start of the machine, and this namespace of process ids, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 -- a link to no file
    except OSError:
        import psutil

        # Minutes, because the clock of a machine is corrected now and then.
        return str(round(psutil.boot_time() / 60))


def this_machine() -> str:
    """Return what tells this machine from others: its name and its last start."""
    return f"{platform.node()} {this_boot()}"


def this_process() -> Process:
    """Return this process. A fork of it has another pid."""
    return Process(platform.node(), os.getpid(), _STARTED)


# Weak, so that a store ends with its last owner and not with this process.
_STORES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def is_held(store: Any) -> bool:
    """Return whether a Zarr store exists in this process only, or cannot be opened in another one.

    Examples
    --------
    >>> import zarr
    >>> is_held(zarr.storage.MemoryStore()), is_held(zarr.storage.LocalStore("a.zarr"))
    (True, False)
    """
    inner = innermost(store)
    return _in_memory(inner) or _is_global(inner) or (type(store).__name__ != "LocalStore" and _copies(store))


def innermost(store: Any) -> Any:
    """Return the store inside all wrappers (`zarr.storage.WrapperStore` calls it so)."""
    while _is_store(inner := getattr(store, "_store", None)):
        store = inner
    return store


def address(store: Any) -> str:
    """Return what tells a Zarr store from all others that this process and its tasks can open.

    The text of a store may lack the protocol, the options and the endpoint, and the text of a store in memory
    is used again after its end.
    """
    if is_held(store) and not _is_global(innermost(store)):
        return f"{store} of {this_process()} since {_STARTED}, store {_key(store)}"
    facts = [type(store).__qualname__, str(store)]
    inner = innermost(store)
    for system in _filesystems(inner):
        options = {k: v for k, v in system.storage_options.items() if k not in ("fs", "asynchronous")}
        facts.append(repr((type(system).__qualname__, system.protocol, sorted(options.items(), key=str))))
    facts.append(repr(getattr(getattr(inner, "store", None), "config", None)))
    return f"{store} {hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def dumps(value: Any) -> bytes:
    """Return ``value`` as `cloudpickle.dumps` does, but the stores in it that live here as addresses.

    `cloudpickle.loads` raises a `TilingError` for such a store in any other process.
    """
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


class Travelling:
    """A value that is sent to tasks, with the stores that it contains; opened when it is first used there.

    Examples
    --------
    >>> import pickle, zarr
    >>> store = zarr.storage.MemoryStore()
    >>> pickle.loads(pickle.dumps(Travelling(store))).get() is store
    True
    """

    def __init__(self, value: Any) -> None:
        self._value: Any = value
        self._packed: bytes | None = None

    def get(self) -> Any:
        """Return the value.

        Raises
        ------
        TilingError
            If it contains a store that lives in the memory of another process.
        """
        if self._packed is not None:
            self._value, self._packed = cloudpickle.loads(self._packed), None
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        packed = self._packed
        return _unopened, (dumps(self._value) if packed is None else packed,)


def _unopened(packed: bytes) -> Travelling:
    travelling = Travelling(None)
    travelling._packed = packed
    return travelling


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if not _is_store(obj):
            return super().reducer_override(obj)
        if not is_held(obj):
            # Other processes may run in another folder.
            reduced = list(obj.__reduce_ex__(5))
            if len(reduced) > 2 and type(reduced[2]) is dict:
                reduced[2] = {k: v.absolute() if isinstance(v, Path) else v for k, v in reduced[2].items()}
            return tuple(reduced)
        # Data of a process, not of an object, are found again from a copy of the store.
        packed = _plain(obj) if _is_global(innermost(obj)) else None
        return _resolve, (this_process(), _key(obj), str(obj), packed)


def _resolve(home: Process, key: str, name: str, packed: bytes | None) -> Any:
    """Return a store of this process."""
    here = this_process()
    if here != home:
        raise TilingError(
            f"the Zarr store {name} lives in the memory of {home}; this task runs in {here} and cannot see "
            "it. Use a path or URL that all processes can open, or run on threads of that process."
        )
    found = _STORES.get(key)
    if found is None and packed is not None:
        found = cloudpickle.loads(packed)
    if found is None:
        raise TilingError(
            f"the Zarr store {name} was in the memory of this process and is gone: keep a reference to it "
            "until its tasks are done."
        )
    return found


def _key(store: Any) -> str:
    """Return the key of a store in this process; the same for the same object."""
    for key, known in list(_STORES.items()):
        if known is store:
            return key
    key = uuid.uuid4().hex
    _STORES[key] = store
    return key


# -- kinds of stores --------------------------------------------------------------------------------------


def _is_store(obj: Any) -> bool:
    # Nothing is a store before zarr is imported.
    abstract = sys.modules.get("zarr.abc.store")
    return abstract is not None and isinstance(obj, abstract.Store)


def _in_memory(store: Any) -> bool:
    """Return whether a store is one of zarr's stores in memory."""
    return any(kind.__name__ == "MemoryStore" for kind in type(store).__mro__)


def _is_global(store: Any) -> bool:
    """Return whether the files of an fsspec store are in the memory of the process."""
    return any("memory" in _protocols(system) for system in _filesystems(store))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _filesystems(store: Any) -> Iterator[Any]:
    """Yield the filesystem of an fsspec store, and those that it wraps."""
    system = getattr(store, "fs", None)
    while hasattr(system, "protocol") and hasattr(system, "storage_options"):
        yield system
        system = getattr(system, "sync_fs", None) or getattr(system, "fs", None)


# Longest recipe of a store, bytes; most take a few hundred. fsspec's catalogues of references may be longer,
# and are not probed.
_RECIPE = 2**20
_DOCUMENTS = (b"zarr.json", b".zarray", b".zgroup")


class _Copied(Exception):
    """A store is being pickled with its data."""


class _Probe(io.RawIOBase):
    """A file that refuses the pickle of a store that contains its own documents."""

    def __init__(self) -> None:
        self._size = 0

    def write(self, data: Any) -> int:
        """Look for the names of metadata documents."""
        size = len(data)
        self._size += size
        if self._size > _RECIPE or any(name in bytes(data) for name in _DOCUMENTS):
            raise _Copied
        return size


def _copies(store: Any) -> bool:
    """Return whether pickling a store of an unknown kind copies its data, or fails."""
    if any(True for _ in _filesystems(innermost(store))):
        return _plain(store) is None
    try:
        cloudpickle.Pickler(_Probe()).dump(store)
    except Exception:
        return True
    return False


def _plain(store: Any) -> bytes | None:
    """Return the pickle of a store; None if it cannot be pickled."""
    try:
        packed: bytes = cloudpickle.dumps(store)
    except Exception:
        return None
    return packed
