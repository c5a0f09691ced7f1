"""Small objects beside an array: the folder that holds the claim and the marks of a run."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.buffer import cpu, default_buffer_prototype
from zarr.storage import LocalStore, StorePath

from tilework.source.held import innermost
from tilework.source.zarr_requests import answer

__all__ = ["FOLDER", "PARTIAL", "Objects", "creates", "dump", "load", "read_only"]

FOLDER = ".tilework"
"""Name of the folder, below that of the array."""
T = TypeVar("T")
# How zarr's LocalStore names a file that it is writing.
PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
# Attempts to create an object, if another run deletes the file that becomes it.
TRIES = 5
# Requests that are under way at a time.
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects below ``path`` in a store, by name; a name may contain slashes."""

    store: Store
    path: str

    @classmethod
    def of(cls, store_path: Any) -> Objects:
        """Return the objects of the array at ``store_path``."""
        return cls(store_path.store, (store_path / FOLDER).path)

    def __truediv__(self, name: str) -> Objects:
        return Objects(self.store, self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def read(self, name: str) -> bytes | None:
        """Return an object; None if there is none."""
        return self._ask(self._read(name))

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return answer(self.store, coroutine)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the objects that exist, by name."""
        names = list(names)
        found = self._together(map(self._read, names))
        return {name: value for name, value in zip(names, found, strict=True) if value is not None}

    async def _read(self, name: str) -> bytes | None:
        try:
            found = await self.store.get(self._key(name), default_buffer_prototype())
        except FileNotFoundError:  # the folder of a local store that is opened for reading
            return None
        return None if found is None else found.to_bytes()

    def write(self, name: str, value: bytes) -> None:
        """Write an object, whatever was there."""
        self._ask(self.store.set(self._key(name), cpu.Buffer.from_bytes(value)))

    def create(self, name: str, value: bytes) -> bool:
        """Write an object if there is none; return whether this call did, as far as reading it back shows."""
        for tries in itertools.count(1):
            try:
                self._ask(self.store.set_if_not_exists(self._key(name), cpu.Buffer.from_bytes(value)))
                break
            except FileNotFoundError:  # another run took the file for one that a killed run was writing
                if tries == TRIES:
                    raise
        return self.read(name) == value

    def exists(self, name: str) -> bool:
        """Return whether there is an object."""
        return self._ask(self.store.exists(self._key(name)))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` of which there is no object."""
        names = list(names)
        there = self._together(self.store.exists(self._key(name)) for name in names)
        return [name for name, found in zip(names, there, strict=True) if not found]

    def delete(self, *names: str) -> None:
        """Delete objects; one that is not there is no error."""
        self._together(self.store.delete(self._key(name)) for name in names)

    def delete_folders(self, *names: str) -> None:
        """Delete all objects whose names begin with one of ``names`` and a slash."""
        for name in names:
            self._ask(self.store.delete_dir(self._key(name)))

    def _together(self, work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Await all of ``work``, a bounded number at a time; return the results in order."""
        found: list[Any] = []
        rest = iter(work)
        while part := list(itertools.islice(rest, AT_ONCE)):
            found += self._ask(_gathered(part))
        return found

    def remove_partial(self) -> None:
        """Delete the temporary files of killed writers around the folder; only a local store has them."""
        store = innermost(self.store)
        if isinstance(store, LocalStore):
            for path in (store.root / self.path).parent.rglob("*.partial"):
                if PARTIAL.search(path.name):
                    path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        prefix = self._key("")
        return sorted(key.removeprefix(prefix) for key in self._ask(_listed(self.store, prefix)))


def load(value: bytes | None) -> dict[str, Any] | None:
    """Return a JSON object; None if there is none, or only a part of it."""
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def dump(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as bytes: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def creates(store: Any) -> bool:
    """Return whether a store can create an object only where there is none, in one step."""
    return type(innermost(store)).set_if_not_exists is not Store.set_if_not_exists


def read_only(at: Any) -> Any:
    """Return a place in a store for looking: a local store opened for writing would create its folder."""
    if not isinstance(innermost(at.store), LocalStore):
        return at
    try:
        return StorePath(at.store.with_read_only(True), at.path)
    except (NotImplementedError, TypeError):  # a subclass or wrapper that cannot be made anew
        return at


async def _gathered(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*work)


async def _listed(store: Store, prefix: str) -> list[str]:
    if type(store) is LocalStore:  # zarr's own list takes 20 us for each file, this one 1
        top = str(store.root / prefix)
        walked = ((folder[len(top) :].replace(os.sep, "/"), files) for folder, _, files in os.walk(top))
        return [f"{prefix}{f'{folder}/{name}'.lstrip('/')}" for folder, files in walked for name in files]
    try:
        return [key async for key in store.list_prefix(prefix)]
    except FileNotFoundError:
        return []
