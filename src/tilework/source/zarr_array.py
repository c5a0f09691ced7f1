"""Zarr arrays, read chunk by chunk through a bounded cache of decoded chunks, one per process.

Overlapping reads decode each storage chunk once. A plan knows how many blocks read each chunk, so an entry is
dropped at its last use; what is left (a slice was computed, another process took the other blocks) goes in
least-recently-used order.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilework.errors import TilingError
from tilework.source.base import Interval, Source

__all__ = ["CHUNKS", "ChunkCache", "ZarrSource"]

Array = np.ndarray[Any, Any]
Key = tuple[Any, ...]

# Longest pause between two tasks of one run, seconds. After a longer one an entry that cannot be checked
# against its file is not trusted any more: somebody may have rewritten the store.
PAUSE = 1.0


@dataclass(slots=True)
class _Entry:
    array: Array
    uses: int


class ChunkCache:
    """Chunks by key, at most ``limit`` bytes; each is loaded by one thread while others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._pending: dict[Key, threading.Event] = {}
        self._bytes = 0
        self._running = 0
        self._idle_since = time.monotonic()
        self.epoch = 0
        """Changes when the process paused: part of the key of chunks without a file to check."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark a task as running, so that the pauses between runs can be told."""
        with self._lock:
            if not self._running and time.monotonic() - self._idle_since > PAUSE:
                self.epoch += 1
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._idle_since = time.monotonic()

    def fetch(
        self,
        uses: dict[Key, int],
        load: Callable[[list[Key]], Iterable[tuple[Key, Array]]],
        use: Callable[[Key, Array], None],
        limit: int,
    ) -> None:
        """Call ``use(key, chunk)`` for every key of ``uses``, loading what is not here.

        Parameters
        ----------
        uses : dict
            How many times each key is wanted in the whole run, this time included.
        load : callable
            Maps keys to ``(key, chunk)`` pairs, in any order, one at a time.
        use : callable
        limit : int, bytes
        """
        mine, theirs, found = [], [], []
        with self._lock:
            for key, count in uses.items():
                if key in self._entries:
                    found.append((key, self._take(key)))
                elif key in self._pending:
                    theirs.append(key)
                else:
                    mine.append(key)
                    if count > 1:
                        self._pending[key] = threading.Event()
        try:
            for key, array in found:
                use(key, array)
            del found
            for key, array in load(mine):
                self._put(key, array, uses[key] - 1, limit)
                use(key, array)
        finally:
            with self._lock:
                for key in mine:
                    if (event := self._pending.pop(key, None)) is not None:
                        event.set()
        for key in theirs:
            self._wait(key)
            with self._lock:
                here = self._take(key) if key in self._entries else None
            for _, array in load([key]) if here is None else [(key, here)]:
                use(key, array)

    def clear(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _wait(self, key: Key) -> None:
        with self._lock:
            event = self._pending.get(key)
        if event is not None:
            event.wait()

    def _take(self, key: Key) -> Array:
        entry = self._entries[key]
        entry.uses -= 1
        if entry.uses <= 0:
            self._drop(key)
        else:
            self._entries.move_to_end(key)
        return entry.array

    def _put(self, key: Key, array: Array, uses: int, limit: int) -> None:
        with self._lock:
            if uses > 0 and array.nbytes <= limit and key not in self._entries:
                while self._bytes + array.nbytes > limit:
                    self._drop(next(iter(self._entries)))
                self._entries[key] = _Entry(array, uses)
                self._bytes += array.nbytes
            if (event := self._pending.pop(key, None)) is not None:
                event.set()

    def _drop(self, key: Key) -> None:
        self._bytes -= self._entries.pop(key).array.nbytes


CHUNKS = ChunkCache()
"""The cache of this process."""


@dataclass(slots=True)
class ZarrSource(Source):
    """A Zarr array, read chunk by chunk through the cache of the process."""

    _keys: Any = field(default=None, repr=False)

    def read(self, box: Sequence[Interval], uses: Sequence[Array] | None = None, limit: int = 0) -> Array:
        """Return the samples of ``box``, each chunk decoded once per run where the cache suffices."""
        # A store in memory may be rewritten at any time, and nothing tells.
        shared = uses is not None and self.chunks is not None and limit > 0 and not self._in_memory
        if shared:
            grid = [range(a // c, -(-b // c)) for (a, b), c in zip(box, self.chunks or (), strict=True)]
            shared = any(
                int(counts[list(r)].max(initial=0)) > 1 for r, counts in zip(grid, uses or (), strict=True)
            )
        if not shared:
            return np.asarray(self.handle[tuple(slice(a, b) for a, b in box)])
        out = np.empty([b - a for a, b in box], self.dtype)
        wanted = {
            self._key(index): math.prod(int(u[i]) for u, i in zip(uses or (), index, strict=True))
            for index in itertools.product(*grid)
        }

        def use(key: tuple[Any, ...], chunk: Array) -> None:
            _copy_overlap(
                out,
                [a for a, _ in box],
                chunk,
                [i * c for i, c in zip(key[1], self.chunks or (), strict=True)],
            )

        CHUNKS.fetch(wanted, self._load, use, limit)
        return out

    @property
    def _in_memory(self) -> bool:
        return type(self.handle.store).__name__ == "MemoryStore"

    def _load(self, keys: list[tuple[Any, ...]]) -> Iterable[tuple[tuple[Any, ...], Array]]:
        for key in keys:
            box = tuple(
                slice(i * c, min((i + 1) * c, n))
                for i, c, n in zip(key[1], self.chunks or (), self.shape, strict=True)
            )
            yield key, np.asarray(self.handle[box])

    def _key(self, index: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the cache key of a chunk: it changes when its file does."""
        if self._keys is None:
            self._keys = _chunk_paths(self.handle)
        root, unit = self._keys
        if root is None:
            return self.token, index, CHUNKS.epoch
        name = self.handle.metadata.encode_chunk_key(tuple(i // u for i, u in zip(index, unit, strict=True)))
        try:
            stat = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 -- 3x faster, once per chunk read
        except OSError:
            return self.token, index, None
        return self.token, index, stat.st_mtime_ns, stat.st_size

    def __reduce__(self) -> tuple[Any, ...]:
        if self._in_memory:
            raise TilingError(
                f"the Zarr array at {self.handle.store_path} lives in the memory of this process; save it to "
                "disk "
                "or an object store, or run on threads."
            )
        return ZarrSource, (
            self.handle,
            self.shape,
            self.dtype,
            self.chunks,
            self.names,
            self.token,
        )


def _chunk_paths(array: Any) -> tuple[str | None, tuple[int, ...]]:
    """Return the folder of a local array's chunk files, and how many chunks a file holds per axis."""
    if type(array.store).__name__ != "LocalStore":
        return None, ()
    files = array.shards or array.chunks
    unit = tuple(f // c for f, c in zip(files, array.chunks, strict=True))
    return os.path.join(str(array.store.root), array.path), unit  # noqa: PTH118


def _copy_overlap(out: Array, origin: Sequence[int], part: Array, start: Sequence[int]) -> None:
    low = [max(a, s) for a, s in zip(origin, start, strict=True)]
    high = [min(a + n, s + m) for a, n, s, m in zip(origin, out.shape, start, part.shape, strict=True)]
    to = tuple(slice(i - a, j - a) for i, j, a in zip(low, high, origin, strict=True))
    out[to] = part[tuple(slice(i - s, j - s) for i, j, s in zip(low, high, start, strict=True))]
