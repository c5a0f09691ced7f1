"""Zarr arrays, read chunk by chunk through a bounded cache of decoded chunks, one per process.

Overlapping reads decode each storage chunk once. A plan knows how many blocks read each chunk, so an entry is
dropped at its last use. Entries that never reach it (only a slice was computed, or another process took the
other blocks) are evicted in least-recently-used order.
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
from typing import Any, ClassVar

import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import TilingError
from tilework.source.base import Source, copy_overlap

__all__ = ["CHUNKS", "ChunkCache", "ZarrSource"]

Key = tuple[Any, ...]

# Longest pause between two tasks of one run, seconds. After a longer pause an entry that cannot be checked
# against its file is not used again: the store may have been rewritten.
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
        """Changes after a pause of the process; part of the key of chunks that have no file to check."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark a task as running, so that a pause between runs is noticed."""
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
        """Call ``use(key, chunk)`` for every key of ``uses``; load the chunks that are not cached.

        Parameters
        ----------
        uses : dict
            How many times the whole run needs each key, this time included.
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
        """Drop all chunks."""
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
    """A Zarr array, read directly, or chunk by chunk through the cache of the process."""

    fresh: ClassVar[bool] = True

    _files: tuple[str | None, Index] | None = field(default=None, repr=False)
    """Folder of the chunk files, and chunks per file and axis; None before the first use."""

    def read_shared(self, box: Sequence[Span], uses: Sequence[Array], limit: int) -> Array:
        """Return the samples of ``box``; each chunk is decoded once per run if the cache is large enough.

        Parameters
        ----------
        box : sequence of (start, stop), samples
        uses : sequence of 1-D int arrays
            How many times the run reads each chunk along each axis.
        limit : int, bytes of the chunk cache
        """
        # A store in memory may be rewritten at any time, without a sign of it.
        if self.chunks is None or limit <= 0 or self._in_memory:
            return self.read(box)
        grid = [range(a // c, -(-b // c)) for (a, b), c in zip(box, self.chunks, strict=True)]
        if not any(int(n[list(r)].max(initial=0)) > 1 for r, n in zip(grid, uses, strict=True)):
            return self.read(box)
        out = np.empty([b - a for a, b in box], self.dtype)
        wanted = {
            self._key(index): math.prod(int(n[i]) for n, i in zip(uses, index, strict=True))
            for index in itertools.product(*grid)
        }
        CHUNKS.fetch(
            wanted,
            lambda keys: ((key, self.read(self._chunk(key))) for key in keys),
            lambda key, chunk: copy_overlap(
                out, [a for a, _ in box], chunk, [a for a, _ in self._chunk(key)]
            ),
            limit,
        )
        return out

    @property
    def _in_memory(self) -> bool:
        return type(self.handle.store).__name__ == "MemoryStore"

    def _chunk(self, key: Key) -> list[Span]:
        """Return the samples of the chunk with a cache key."""
        columns = zip(key[1], self.chunks or (), self.shape, strict=True)
        return [(i * c, min((i + 1) * c, n)) for i, c, n in columns]

    def _key(self, index: Index) -> Key:
        """Return the cache key of a chunk, which changes when its file changes."""
        if self._files is None:
            self._files = _chunk_files(self.handle)
        root, unit = self._files
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
                "disk or an object store, or run on threads."
            )
        return ZarrSource, (self.handle, self.shape, self.dtype, self.chunks, self.names, self.token)


def _chunk_files(array: Any) -> tuple[str | None, Index]:
    """Return the folder of a local array's chunk files, and how many chunks a file holds per axis."""
    if type(array.store).__name__ != "LocalStore":
        return None, ()
    files = array.shards or array.chunks
    unit = tuple(f // c for f, c in zip(files, array.chunks, strict=True))
    return os.path.join(str(array.store.root), array.path), unit  # noqa: PTH118
