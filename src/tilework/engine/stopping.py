"""`check_stop` ends a task of a run that was told to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tilework.function.guard import NotOfTheCode

__all__ = ["Stopped", "check_stop", "stopped_by"]

# Whether the run of the current task was told to stop; `bool` without an argument is False.
_asked: ContextVar[Callable[[], bool]] = ContextVar("tilework_asked_to_stop", default=bool)


class Stopped(NotOfTheCode):
    """Ends a task of a run that was told to stop.

    It is no `Exception`, because retries and ``on_error`` would take it for a failure of the tile.
    """


def check_stop() -> None:
    """Raise `Stopped` if the run of the current task was told to stop; called before each call and write."""
    if _asked.get()():
        raise Stopped("the run was told to stop")


@contextmanager
def stopped_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Return a context in which `check_stop` asks ``asked``, besides the runs around it."""
    around = _asked.get()
    token = _asked.set(asked if around is bool else lambda: asked() or around())
    try:
        check_stop()
        yield
    finally:
        _asked.reset(token)
