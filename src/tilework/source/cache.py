"""A bounded, per-process cache of decoded storage chunks, so that overlapping reads decode them once.

A plan knows how many blocks read each chunk, so an entry is dropped at its last use; what is left (a slice
was computed, another process took the other blocks) goes in least-recently-used order.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CHUNKS", "ChunkCache"]

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
