"""Runs inside a task of a worker: they must not hold the thread that their own tasks need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from tilework.errors import TilingError
from tilework.function.guard import current_worker

__all__ = ["can_leave", "in_a_run", "outside_of_the_pool", "runs_of"]

# Runs of one worker that compute on the cluster at the same time. A single run keeps all workers busy, and
# another one fills its beginning and its end; each further one only takes memory from the others.
MOST_RUNS = 4

_slots: WeakKeyDictionary[Any, threading.Semaphore] = WeakKeyDictionary()
_lock = threading.Lock()
# Whether this thread works for a run that has its slot: a run inside it must not wait for the outer one.
_served: ContextVar[bool] = ContextVar("tilework_has_a_slot", default=False)


def can_leave() -> bool:
    """Return whether this thread runs a task of a worker itself, rather than being started by one."""
    from dask.context import thread_state

    return hasattr(thread_state, "start_time")


def runs_of(worker: Any) -> int:
    """Return the number of runs that the tasks of a worker may have on the cluster at the same time."""
    return max(1, min(MOST_RUNS, int(worker.state.nthreads)))


@contextmanager
def outside_of_the_pool(client: Any) -> Iterator[None]:
    """Return a context in which the current thread may wait for tasks of ``client``.

    Inside a task of a worker, the thread leaves the worker's pool, so that other tasks run in its place, and
    comes back at the end. At most `runs_of` of the worker's tasks are inside at the same time; others wait.

    Parameters
    ----------
    client : distributed.Client or None
        The client whose tasks are waited for. None: nothing is done, since a local scheduler needs no thread
        of the worker.

    Raises
    ------
    TilingError
        If this is the thread that the client itself needs, as in an ``async`` task.
    """
    if client is None:
        yield
        return
    _refuse_event_loop(client)
    worker = current_worker()
    if worker is None:
        yield
        return
    come_back = _leave(worker)
    try:
        if _served.get():
            yield
            return
        with _lock:
            slot = _slots.setdefault(worker, threading.Semaphore(runs_of(worker)))
        with slot, in_a_run():
            yield
    finally:
        with suppress(RuntimeError):  # the worker is closing
            come_back()


@contextmanager
def in_a_run() -> Iterator[None]:
    """Return a context for the work of a run: a run that it calls takes no further slot."""
    token = _served.set(True)
    try:
        yield
    finally:
        _served.reset(token)


def _refuse_event_loop(client: Any) -> None:
    """Raise if waiting for the client would block the event loop that it needs."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    if client.asynchronous or getattr(client.loop, "asyncio_loop", None) is running:
        raise TilingError(
            "this would wait for the cluster on the event loop of its client, so for ever; call it in a "
            "thread (await asyncio.to_thread(...)), or in a task that is not async."
        )


def _leave(worker: Any) -> Callable[[], None]:
    """Make the current thread leave the worker's pool; return the function that makes it come back.

    Works like `distributed.worker_client`, and also in threads of another executor of the worker, whose tasks
    count as running ones too.
    """
    from dask.context import thread_state
    from distributed.metrics import time
    from distributed.threadpoolexecutor import rejoin, secede
    from distributed.threadpoolexecutor import thread_state as pool_state
    from distributed.worker_state_machine import SecedeEvent

    actor, gone = getattr(thread_state, "actor", False), not getattr(pool_state, "proceed", True)
    if actor or gone or not can_leave():
        return _stay
    pooled = hasattr(pool_state, "executor")
    if pooled:
        secede()
    now = time()
    left = SecedeEvent(
        key=thread_state.key,
        compute_duration=now - thread_state.start_time,
        stimulus_id=f"tilework-secede-{now}",
    )
    worker.loop.add_callback(worker.handle_stimulus, left)
    return rejoin if pooled else _stay


def _stay() -> None:
    """Do nothing: the thread is where it was."""
