"""What a process keeps of sources between reads, who may share it, and when it is let go.

Decoded chunks and open files are kept for the next task. A chunk may be used again

1. by any task, if its file is still the one that was decoded: the key of the chunk contains the stamp;
2. by the tasks of one run of `to_zarr`, if tilework itself opened the source read-only;
3. otherwise only by the task that decoded it. So no computation sees chunks of an earlier one.

A plan knows how many blocks read each chunk, so a chunk is dropped at its last use. Chunks that never reach
it (only a slice was computed, or another process took the other blocks) are the first to go once the block
after the last that reads them runs. They are dropped at the end of their run in the process that started it,
and in any process when no task has run for `IDLE` seconds.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from tilework._types import Array, Index

__all__ = [
    "CHECKS",
    "CHUNKS",
    "FILES",
    "Checks",
    "ChunkCache",
    "OpenFiles",
    "Scope",
    "Uses",
    "busy",
    "clear_caches",
    "scope",
    "task",
]

Key = tuple[Any, ...]

# Seconds without a task after which a process lets go of everything.
IDLE = 10.0

# -- tasks ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scope:
    """A task that reads sources."""

    run: str | None
    """The run of `to_zarr` to which it belongs; None: it may belong to any computation."""
    number: int
    """Number of the task in this process."""
    checked: set[Any] = field(default_factory=set)
    """Tokens of the sources that it has checked."""
    shares: set[Any] = field(default_factory=set)
    """Shares of the memory for chunks that it uses."""
    held: set[Key] = field(default_factory=set)
    """Keys of chunks that it may use again; its use of them ends with it."""
    halves: dict[Key, Array] = field(default_factory=dict)
    """Samples, or masks, that were read with their counterparts and are still to be used."""


_SCOPE: ContextVar[Scope | None] = ContextVar("scope", default=None)
_NUMBERS = itertools.count()


def scope() -> Scope | None:
    """Return the task that runs in this thread."""
    return _SCOPE.get()


@contextmanager
def task(run: str | None = None, *, inner: bool = False) -> Iterator[Scope]:
    """Return a context in which sources are read for one task.

    Parameters
    ----------
    run : str, optional
        The run of `to_zarr` to which it belongs.
    inner : bool
        Whether it is a part of the task that already runs in this thread, if one does.
    """
    outer = _SCOPE.get()
    if inner and outer is not None:
        yield outer
        return
    own = Scope(run, next(_NUMBERS))
    token = _SCOPE.set(own)
    with busy():
        try:
            yield own
        finally:
            _SCOPE.reset(token)
            CHUNKS.end_task(own)


@contextmanager
def busy() -> Iterator[None]:
    """Return a context for work of a run, also for what does not read: writes may outlast `IDLE`."""
    _IDLE.begin()
    try:
        yield
    finally:
        _IDLE.end()


class _Idle:
    """Clears everything when no task has run for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._since = time.monotonic()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Record the start of a task."""
        with self._lock:
            self._running += 1

    def end(self) -> None:
        """Record the end of a task, and wait for the next one if anything is kept."""
        with self._lock:
            self._running -= 1
            self._since = time.monotonic()
            if not self._running and self._timer is None and (CHUNKS.nbytes or len(FILES)):
                self._wait(IDLE)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            left = self._since + IDLE - time.monotonic()
            if self._running:
                return
            if left > 0:
                self._wait(left)
                return
        clear_caches()


# -- decoded chunks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Uses:
    """How many tasks read each chunk of a source.

    Most chunks are read by as many as others of their row, so that a number for each would take gigabytes for
    what a few rows of numbers say.
    """

    counts: Array
    """Numbers of tasks: one per kind of chunk along each axis."""
    kinds: tuple[Array, ...]
    """Per axis, the kind of each chunk along it."""

    @classmethod
    def product(cls, along: Sequence[Array]) -> Self:
        """Return the uses that are the product of a number for each chunk along each axis."""
        found = [np.unique(counts, return_inverse=True) for counts in along]
        return cls(
            functools.reduce(np.multiply.outer, [n for n, _ in found]), tuple(kinds for _, kinds in found)
        )

    def of(self, chunk: Index) -> int:
        """Return how many tasks read a chunk."""
        return int(self.counts[tuple(kinds[i] for kinds, i in zip(self.kinds, chunk, strict=True))])

    def several(self, box: Sequence[range]) -> bool:
        """Return whether several tasks read any chunk of a box."""
        kinds = [np.unique(kinds[r.start : r.stop]) for kinds, r in zip(self.kinds, box, strict=True)]
        return bool(self.counts[np.ix_(*kinds)].max(initial=0) > 1)


# Chunks that are gone and not yet forgotten, at least.
FEW = 64


@dataclass(slots=True)
class _Entry:
    array: Array
    uses: int
    run: str | None
    share: Any
    last: tuple[int, ...]
    """The place of the last task that reads it, in the order of tasks."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """A task that reads chunks of a share."""

    task: Scope
    share: Any
    again: bool
    """Whether it may need a chunk again."""
    now: tuple[int, ...]
    """Its place among all tasks that use the share."""
    last: Callable[[Key], tuple[int, ...]]
    """Returns the place of the last task that reads a chunk."""


class _Share:
    """The chunks of one user; says which of them goes first."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}
        """Where each key is in `_keys`, from which one is drawn."""
        self._ends: list[tuple[tuple[int, ...], int, Key]] = []
        """A heap of keys by the last task that reads them; some are no longer here."""
        self._numbers = itertools.count()
        self._random = random.Random(0)

    def add(self, key: Key, entry: _Entry) -> None:
        """Add a chunk."""
        self.nbytes += entry.array.nbytes
        self._places[key] = len(self._keys)
        self._keys.append(key)
        if len(self._ends) > 2 * len(self._keys) + FEW:
            self._ends = [end for end in self._ends if end[-1] in self._places]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (entry.last, next(self._numbers), key))

    def drop(self, key: Key, entry: _Entry) -> bool:
        """Take a chunk out; return whether any is left."""
        self.nbytes -= entry.array.nbytes
        place, last = self._places.pop(key), self._keys.pop()
        if last != key:
            self._keys[place], self._places[last] = last, place
        return bool(self._keys)

    def first(self, now: tuple[int, ...]) -> Key:
        """Return the key of the chunk to drop where memory is short.

        Blocks run in rows, so the oldest chunk is the next to be read: if it went first and a hundredth of
        the memory were missing, all chunks would be decoded again, and of those that are drawn a fiftieth
        are. Where other processes took blocks that read a chunk, its uses never end: one that only tasks
        before ``now`` read goes first.
        """
        while self._ends and (self._ends[0][0] < now or self._ends[0][-1] not in self._places):
            key = heapq.heappop(self._ends)[-1]
            if key in self._places:
                return key
        return self._random.choice(self._keys)


class ChunkCache:
    """Chunks by key; each is loaded by one thread while others wait for it.

    A key ends with the proof that its chunk may be shared, or with the number of the only task to use it.
    Each user has a share of the memory, and is the first to lose chunks if it needs more. All chunks together
    take no more than the shares of the tasks that run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._pending: dict[Key, threading.Event] = {}
        self._shares: dict[Any, _Share] = {}
        """The chunks of each share that has some."""
        self._limits: dict[Any, list[int]] = {}
        """For each share that running tasks use, its bytes and the number of these tasks."""
        self.nbytes = 0
        """Bytes of all chunks."""

    def fetch(
        self,
        uses: dict[Key, int],
        load: Callable[[list[Key]], Iterable[tuple[Key, Array, bool]]],
        use: Callable[[Key, Array], None],
        limit: int,
        *,
        share: Any = None,
        again: bool = False,
        now: tuple[int, ...] = (),
        last: Callable[[Key], tuple[int, ...]] = lambda key: (),
    ) -> None:
        """Call ``use(key, chunk)`` for every key of ``uses``; load the chunks that are not cached.

        Parameters
        ----------
        uses : dict
            How many times the whole run needs each key, this time included.
        load : callable
            Maps keys to tuples of key, chunk, and whether the chunk is still what the key says; in any
            order, one at a time.
        use : callable
        limit : int, bytes of the share
        share : hashable
            The share of the memory.
        again : bool
            Whether the task may need a key again: it counts once, until the task ends.
        now : tuple of int
            The place of this task among all that use the share.
        last : callable
            Maps a key that is loaded to the place of the last task that reads it.
        """
        current = scope() or Scope(None, next(_NUMBERS))
        with self._lock:
            self._begin(current, share, limit)
        try:
            self._fetch(uses, load, use, _Reader(current, share, again, now, last))
        finally:
            if current is not scope():
                self.end_task(current)

    def _fetch(
        self,
        uses: dict[Key, int],
        load: Callable[[list[Key]], Iterable[tuple[Key, Array, bool]]],
        use: Callable[[Key, Array], None],
        by: _Reader,
    ) -> None:
        mine, theirs, found = [], [], []
        with self._lock:
            for key, count in uses.items():
                if key in self._entries:
                    found.append((key, self._take(key, by)))
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
            for key, array, sound in load(mine):
                self._put(key, array, uses[key] if sound else 0, by)
                use(key, array)
        finally:
            with self._lock:
                for key in mine:
                    if (event := self._pending.pop(key, None)) is not None:
                        event.set()
        for key in theirs:
            self._wait(key)
            with self._lock:
                here = self._take(key, by) if key in self._entries else None
            for _, array, _ in load([key]) if here is None else [(key, here, True)]:
                use(key, array)

    def begin(self, share: Any, limit: int) -> None:
        """Say that the current task will use a share; else its chunks may be dropped until it reads some.

        A task that reads several sources begins all shares before it reads the first.
        """
        if (current := scope()) is not None:
            with self._lock:
                self._begin(current, share, limit)

    def clear(self) -> None:
        """Drop all chunks."""
        with self._lock:
            self._entries.clear()
            self._shares.clear()
            self.nbytes = 0

    def end_task(self, ended: Scope) -> None:
        """End a task's use of chunks; drop those that no other task may use, or will."""
        with self._lock:
            for share in ended.shares:
                self._limits[share][1] -= 1
                if not self._limits[share][1]:
                    del self._limits[share]
            for key in ended.held:
                if key in self._entries:
                    self._used(key, alone=key[-1] == ended.number)
            ended.shares.clear()
            ended.held.clear()

    def end_run(self, run: str | None) -> None:
        """Drop the chunks that a run decoded."""
        with self._lock:
            for key in [key for key, entry in self._entries.items() if entry.run == run is not None]:
                self._drop(key)

    def _wait(self, key: Key) -> None:
        with self._lock:
            event = self._pending.get(key)
        if event is not None:
            event.wait()

    def _begin(self, current: Scope, share: Any, limit: int) -> None:
        if share not in current.shares:
            current.shares.add(share)
            self._limits.setdefault(share, [0, 0])[1] += 1
        self._limits[share][0] = limit

    def _take(self, key: Key, by: _Reader) -> Array:
        array = self._entries[key].array
        self._entries.move_to_end(key)
        if by.again:
            by.task.held.add(key)
        elif key not in by.task.held:
            self._used(key)
        return array

    def _used(self, key: Key, *, alone: bool = False) -> None:
        entry = self._entries[key]
        entry.uses -= 1
        if entry.uses <= 0 or alone:
            self._drop(key)

    def _put(self, key: Key, array: Array, uses: int, by: _Reader) -> None:
        with self._lock:
            if uses > (not by.again) and key not in self._entries and self._make_room(by, array.nbytes):
                entry = _Entry(array, uses, by.task.run, by.share, by.last(key))
                self._entries[key] = entry
                self._shares.setdefault(by.share, _Share()).add(key, entry)
                self.nbytes += array.nbytes
                self._take(key, by)
            if (event := self._pending.pop(key, None)) is not None:
                event.set()

    def _make_room(self, by: _Reader, nbytes: int) -> bool:
        """Drop chunks until ``nbytes`` more fit; return whether they do.

        Some of the same share go first, then those of tasks that do not run any more.
        """
        limit, total = self._limits[by.share][0], sum(limit for limit, _ in self._limits.values())
        if nbytes > limit:
            return False
        while (own := self._shares.get(by.share)) is not None and own.nbytes + nbytes > limit:
            self._drop(own.first(by.now))
        if self.nbytes + nbytes > total:
            others = [key for key, entry in self._entries.items() if entry.share not in self._limits]
            while self.nbytes + nbytes > total and others:
                self._drop(others.pop(0))
        return True

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self.nbytes -= entry.array.nbytes
        if not self._shares[entry.share].drop(key, entry):
            del self._shares[entry.share]


# -- open files -------------------------------------------------------------------------------------------

# Files that stay open although no source uses them.
OPEN = 16


class OpenFiles:
    """Open files by what is read from them; those that a source uses are never closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: OrderedDict[Key, Any] = OrderedDict()
        self._used: dict[Key, tuple[Any, weakref.ref[Any]]] = {}
        """Stamp and handle of each file that was opened, while the handle lives."""

    def get(
        self, what: Key, stamp: Any, open_it: Callable[[], Any], close: Callable[[Any], None] | None = None
    ) -> Any:
        """Return the handle of ``what``; open it unless it is open and its file still has the ``stamp``.

        A handle that nothing uses any more closes itself: both memory maps and h5py do. ``close`` closes one
        whose file is another one now, although a source may still have it.
        """
        with self._lock:
            old, handle = self._used.get(what, (None, _nothing))
            found = handle()
            if found is not None and old != stamp:
                self._recent.pop(what, None)
                if close is not None:
                    close(found)
                found = None
            if found is None:
                found = open_it()
                self._used = {k: v for k, v in self._used.items() if v[1]() is not None}
                self._used[what] = stamp, weakref.ref(found)
            self._recent[what] = found
            self._recent.move_to_end(what)
            while len(self._recent) > OPEN:
                self._recent.popitem(last=False)
            return found

    def __len__(self) -> int:
        return len(self._recent)

    def clear(self) -> None:
        """Let go of all files; those that a source uses stay open until it ends."""
        with self._lock:
            self._recent.clear()


def _nothing() -> None:
    return None


# -- the process ------------------------------------------------------------------------------------------

# Sources whose last check is remembered.
CHECKED = 64


class Checks:
    """The last checks of the sources that this process reads, by their tokens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[Any, Any] = OrderedDict()

    def get(self, token: Any) -> Any:
        """Return what was noted at the last check of a source; None if it is not known."""
        return self._last.get(token)

    def note(self, token: Any, found: Any) -> None:
        """Remember what a check found."""
        with self._lock:
            self._last[token] = found
            while len(self._last) > CHECKED:
                self._last.popitem(last=False)

    def clear(self) -> None:
        """Forget all checks."""
        with self._lock:
            self._last.clear()


CHUNKS = ChunkCache()
"""The decoded chunks of this process."""
FILES = OpenFiles()
"""The open files of this process."""
CHECKS = Checks()
"""The last checks of sources in this process."""
_IDLE = _Idle()


def clear_caches() -> None:
    """Let go of what this process keeps of sources: decoded chunks and open files.

    It is safe at any time; running tasks read again what they need. A process does the same by itself when
    none of its tasks has run for ten seconds, and `to_zarr` drops the chunks of its run when it ends. It
    does not drop what `load_once` and `from_torch` built, the results that a `view` keeps, or files that a
    result or an array of yours still uses.

    Other processes have caches of their own. On a cluster: ``client.run(tw.clear_caches)``.

    Examples
    --------
    >>> clear_caches()
    """
    for kept in (CHUNKS, FILES, CHECKS):
        kept.clear()


def _forked() -> None:
    """Begin with new locks: a thread of the parent may have held the old ones."""
    for kept in (CHUNKS, FILES, CHECKS, _IDLE):
        kept.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
