"""`Stop` tells the tasks of a run to end, and waits for those that are in flight."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tilework.engine.stopping import stopped_by
from tilework.function.guard import current_worker

__all__ = ["PATIENCE", "Stop", "cancelled", "in_flight"]

# How long a run that ends early waits for its tasks in flight, seconds.
PATIENCE = 60.0
# Seconds between two looks while it waits. Another thread may receive a signal that comes meanwhile, and
# Python runs its handler only when this one goes on: a second Ctrl-C would not be heard for a minute.
GLANCE = 0.5


class Stop:
    """Asks the tasks of one run to end; counts those that run in this process.

    Other processes of this machine are asked by a file, which exists only from `ask` to `forget`.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or uuid.uuid4().hex
        self._changed = threading.Condition()
        self._asked = self._abroad = False
        self._running = 0
        _stops[self.name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        self._abroad = True
        return _stop, (self.name, _process())

    @property
    def _file(self) -> Path:
        return Path(tempfile.gettempdir()) / f"tilework-stop-{self.name}"

    @property
    def running(self) -> int:
        """Number of tasks that run in this process."""
        return self._running

    def asked(self) -> bool:
        """Return whether the run was told to stop."""
        return self._asked

    @contextmanager
    def task(self) -> Iterator[None]:
        """Return a context for one task; it raises `Stopped` instead of beginning after `ask`."""
        with self._changed:
            self._running += 1
        try:
            with stopped_by(self.asked):
                yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def ask(self) -> None:
        """Tell all tasks of the run to stop."""
        self._asked = True
        if self._abroad:
            with suppress(OSError):
                self._file.touch()

    def wait(self, seconds: float) -> int:
        """Wait for the tasks that run in this process; return how many still run after ``seconds``."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._running and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, GLANCE))
            return self._running

    def forget(self) -> None:
        """Remove the file that tells other processes; call it when no task is left that could see it."""
        if self._abroad:
            self._file.unlink(missing_ok=True)


class _Abroad(Stop):
    """The `Stop` of a run of another process."""

    def asked(self) -> bool:
        """Return whether the file exists."""
        return self._file.exists()


_stops: WeakValueDictionary[str, Stop] = WeakValueDictionary()
_imported = uuid.uuid4().hex  # a forked process has the same, and processes of two hosts may have one pid


def _process() -> tuple[int, str]:
    """Return what identifies this process among those of all hosts."""
    return os.getpid(), _imported


def _stop(name: str, process: tuple[int, str]) -> Stop:
    """Return the `Stop` of a run by its name, in any process."""
    if process != _process():
        return _Abroad(name)
    found = _stops.get(name)
    if found is None:  # the run is over, so no task of it may begin
        found = Stop(name)
        found.ask()
    return found


def in_flight() -> int:
    """Return the number of tasks, of all runs, that run in this process."""
    return sum(stop.running for stop in list(_stops.values()))


def cancelled() -> bool:
    """Return whether the task of this thread, on a worker, was cancelled, or the worker is closing."""
    worker = current_worker()
    if worker is None:
        return False
    from dask.context import thread_state

    key = getattr(thread_state, "key", None)
    if key is None:  # a thread that the task started
        return False
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed", "failed")
