"""Requests to Zarr arrays and stores, answered by the thread that asks, unless further threads could help.

zarr answers a request on one thread of the process, which hands every chunk to further threads. That keeps
idle cores busy. For one chunk, or where tasks keep all cores busy, it only costs: two threads that each write
chunks of 1 MB were no faster than one (zarr 3.1). The thread then runs zarr's own coroutines to their end.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np

from tilework._machine import n_threads
from tilework._types import Array, Index, Span

__all__ = ["answer", "at_once", "at_work", "boxes_of", "chunks_of", "read_box", "request_bytes", "write_box"]

T = TypeVar("T")

# Bytes of samples that one request reads of a shard, at least. Each request reads the index of the shard, 16
# bytes for each of its chunks; a request for each of 32 768 chunks read 1300 times what they hold.
REQUEST, PER_INDEX = 2**20, 4 * 16
# Chunks that zarr asks a store for at a time, by default (``async.concurrency``), and most bytes of them.
PARALLEL, FAR = 10, 2**24
# Bytes of large chunks that a read decodes at a time: ten planes of 100 MB took a gigabyte in each thread.
AT_ONCE = 2**26


def answer(store: Any, coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that asks ``store`` for objects.

    Through zarr's event loop, a request costs 0.2 ms more.
    """
    if _waits_for_nothing(store):
        return _run(coroutine)
    from zarr.core.sync import sync

    return sync(coroutine)


def at_once(chunk: int) -> int:
    """Return how many chunks of some bytes a read decodes at a time, at most."""
    return max(2, min(PARALLEL, AT_ONCE // max(1, chunk)))


def read_box(array: Any, box: Sequence[slice]) -> Array:
    """Return the samples of a `zarr.Array` in ``box``, large chunks a few at a time."""
    spans, chunks, most = _spans(array, box), chunks_of(array), PARALLEL
    if chunks is not None and isinstance(array.dtype, np.dtype):
        most = at_once(array.dtype.itemsize * math.prod(chunks))
    if chunks is None or most == PARALLEL:
        return _read(array, spans)
    out = np.empty([b - a for a, b in spans], array.dtype)
    each = itertools.product(*(range(a // c, -(-b // c)) for (a, b), c in zip(spans, chunks, strict=True)))
    for part in boxes_of(each, (sys.maxsize,) * len(spans), most):
        inside = [
            (max(a, first * c), min(b, stop * c))
            for (a, b), (first, stop), c in zip(spans, part, chunks, strict=True)
        ]
        place = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(inside, spans, strict=True))
        out[place] = _read(array, inside)
    return out


def _read(array: Any, spans: Sequence[Span]) -> Array:
    box = tuple(slice(a, b) for a, b in spans)
    if _alone(array, spans):
        return np.asarray(_run(array.async_array.getitem(box)))
    return np.asarray(array[box])


def write_box(array: Any, box: Sequence[slice], data: Any) -> None:
    """Write samples into ``box`` of a `zarr.Array`."""
    spans = _spans(array, box)
    if _no_chunk_is_fill(array, spans, data):
        # zarr need not compare all samples with the fill value, which takes a fifth of the time of a write.
        array = array.with_config({"write_empty_chunks": True})
    if _alone(array, spans):
        _run(array.async_array.setitem(tuple(box), data))
    else:
        array[tuple(box)] = data


def _spans(array: Any, box: Sequence[slice]) -> list[Span]:
    return [s.indices(n)[:2] for s, n in zip(box, array.shape, strict=True)]


def _no_chunk_is_fill(array: Any, spans: Sequence[Span], data: Any) -> bool:
    """Return whether the first samples of all chunks of a box show that none is all fill value."""
    chunks, fill = chunks_of(array), array.fill_value
    if not isinstance(data, np.ndarray) or data.dtype != array.dtype or data.dtype.kind not in "biufc":
        return False
    if chunks is None or fill is None or not data.size or not hasattr(array, "with_config"):  # zarr < 3.1.6
        return False
    starts, shape = [a for a, _ in spans], tuple(b - a for a, b in spans)
    if data.shape != shape or any(a % c for a, c in zip(starts, chunks, strict=True)):
        return False
    # Of shards in shards, and of shards that are coded further, zarr does not tell the innermost chunks.
    codecs = _codecs(array)
    inner = codecs[0].codecs if len(codecs) == 1 and _has_shards(codecs) else codecs
    if _has_shards(inner):
        return False
    first = data[tuple(slice(None, None, c) for c in chunks)]
    return not np.any(first != first if fill != fill else first == fill)


def _waits_for_nothing(store: Any) -> bool:
    """Return whether this thread may run coroutines of a store: they only use files.

    Classes that are derived from zarr's may do more. What lies in memory must not change while another thread
    lists it. A thread of a notebook, or of a task of a worker that is async, has an event loop that runs.
    """
    from zarr.storage import LocalStore

    return type(store) is LocalStore and _get_running_loop() is None


def _alone(array: Any, spans: Sequence[Span]) -> bool:
    """Return whether this thread answers a request to ``array`` itself."""
    import zarr

    # Versions of zarr before 3.1.6 have no such attribute. Codecs of others may wait for another thread.
    if type(array) is not zarr.Array or not hasattr(array, "async_array"):
        return False
    if not _waits_for_nothing(array.store) or not all(_is_zarrs(codec) for codec in _codecs(array)):
        return False
    chunks = chunks_of(array)
    if chunks is not None and all(a // c == (b - 1) // c for (a, b), c in zip(spans, chunks, strict=True)):
        return True
    return _WORK.busy >= n_threads()


def chunks_of(array: Any) -> Index | None:
    """Return the shape of the chunks of an array; None if there are several, as zarr 3.3 and later know."""
    try:
        return tuple(map(int, array.chunks))
    except (NotImplementedError, TypeError):
        return None


def request_bytes(chunk: int, unit: Index, *, far: bool) -> int:
    """Return the bytes of samples that one request for kept chunks reads, at most; 0: a chunk.

    Parameters
    ----------
    chunk : int
        Bytes of a chunk.
    unit : tuple of int
        Chunks per shard and axis.
    far : bool
        Whether the store may be slow to answer.
    """
    chunks = math.prod(unit)
    shard = 0 if chunks == 1 else max(chunk, min(chunks * chunk, max(REQUEST, PER_INDEX * chunks)))
    several = min(PARALLEL, FAR // max(1, chunk)) if far else 1
    return max(shard, several * chunk if several > 1 else 0)


def boxes_of(chunks: Iterable[Index], unit: Index, most: int) -> list[tuple[Span, ...]]:
    """Return boxes of ``chunks``, each inside a shard and of at most ``most`` chunks; none has another chunk.

    ``unit`` are the chunks per shard and axis.
    """
    boxes = [tuple((i, i + 1) for i in chunk) for chunk in chunks]
    for d in reversed(range(len(unit) if most > 1 else 0)):
        rows = defaultdict(list)
        for box in boxes:
            rows[box[:d], box[d + 1 :]].append(box[d])
        boxes = []
        for (before, after), spans in rows.items():
            longest = most // math.prod(b - a for a, b in (*before, *after))
            first, *rest = sorted(spans)
            joined = [first]
            for start, stop in rest:
                low, high = joined[-1]
                if start == high and start % unit[d] and stop - low <= longest:
                    joined[-1] = low, stop
                else:
                    joined.append((start, stop))
            boxes += [(*before, span, *after) for span in joined]
    return boxes


def _codecs(array: Any) -> list[Any]:
    """Return the codecs of an array; those of format 2 are called by one of zarr's."""
    return list(getattr(array.metadata, "codecs", ()))


def _has_shards(codecs: Sequence[Any]) -> bool:
    from zarr.codecs import ShardingCodec

    return any(isinstance(codec, ShardingCodec) for codec in codecs)


def _is_zarrs(codec: Any) -> bool:
    """Return whether a codec, and those of its inner chunks, are zarr's own."""
    inner = (*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ()))
    return type(codec).__module__.startswith("zarr.") and all(map(_is_zarrs, inner))


# -- tasks --------------------------------------------------------------------------------------------------


class _Work:
    """Counts the threads of this process that run a task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()
        self.busy = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Return a context for a task, or for a part of one."""
        if getattr(self._own, "inside", False):
            yield
            return
        with self._lock:
            self.busy += 1
        self._own.inside = True
        try:
            yield
        finally:
            self._own.inside = False
            with self._lock:
                self.busy -= 1


_WORK = _Work()
at_work = _WORK.__call__

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORK.__init__)  # type: ignore[misc]


# -- coroutines ---------------------------------------------------------------------------------------------


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in this thread, with all that it would hand to other threads."""
    loop = _Loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.finish()


class _Loop(asyncio.BaseEventLoop):
    """An event loop without files or threads; it serves one coroutine, which waits for nothing outside.

    asyncio's own loops open three files each, and call functions in a pool of threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector: Any = self
        self._woken = threading.Event()
        self._made: set[asyncio.Task[Any]] = set()
        """Its tasks that are not done: the others hold chunks as their results."""
        self._begun = 0
        """Number of callbacks that the one that runs has left for later."""

    def call_soon(  # type: ignore[override]  # the stubs have type variables of their own
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """Call a function before what others have left for later, and after what this one has.

        So a chunk is coded and written before the next is begun. asyncio's own order has up to ten chunks in
        memory, each with its bytes.
        """
        handle = super().call_soon(self._begin, callback, args, context=context)
        ready: Any = self._ready  # type: ignore[attr-defined]
        ready.insert(self._begun, ready.pop())
        self._begun += 1
        return handle

    def _begin(self, callback: Callable[..., Any], args: Sequence[Any]) -> None:
        self._begun = 0
        callback(*args)

    def create_task(self, *args: Any, **kwargs: Any) -> Any:
        """Create a task."""
        task = super().create_task(*args, **kwargs)
        self._made.add(task)
        task.add_done_callback(self._made.discard)
        return task

    def run_in_executor(  # type: ignore[override]  # the stubs have type variables of their own
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call a function; return a future with its result."""
        del executor
        future = self.create_future()
        _set_running_loop(None)  # for a codec that runs coroutines itself
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        finally:
            _set_running_loop(self)
        try:
            return future
        finally:
            del future, func, args  # an error that it holds refers to this frame

    def finish(self) -> None:
        """Close the loop, and end what is left: chunks after one that failed, lists not read to their end."""
        rest = [task for task in self._made if not task.done()]
        for task in rest:
            task.cancel()
        # An interrupt leaves the loop once for each task that it passes through.
        while not all(task.done() for task in rest):
            with suppress(BaseException):
                self.call_later(0.001, self.stop)
                self.run_forever()
        for task in rest:
            if not task.cancelled():
                task.exception()  # else asyncio logs that nobody asked for it
        asyncgens: Any = getattr(self, "_asyncgens", ())
        if asyncgens:
            self.run_until_complete(self.shutdown_asyncgens())
        self.close()
        self._selector, self._made = None, set()  # no cycle waits for the garbage collector

    # What asyncio's loops ask of their subclasses.

    def select(self, timeout: float | None) -> tuple[()]:
        """Wait until something is to be done."""
        if timeout is None or timeout > 0:
            self._woken.wait(timeout)
        self._woken.clear()
        return ()

    def _process_events(self, events: Any) -> None:
        """Do nothing: there are no files."""

    def _write_to_self(self) -> None:
        """Wake the loop; other threads call this."""
        self._woken.set()
