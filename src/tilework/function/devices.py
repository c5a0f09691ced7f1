"""Devices that a function keeps busy: how many, which of them is free, and how long they worked.

A function says with an attribute that others wait for its calls: ``__tilework_device__`` is the number of
devices that work for it at the same time. ``__tilework_whole_batches__`` says that it wants batches of one
length; it is True, or a method that finds out in the process that calls the function. Wrappers need not pass
them on: what a function holds is searched.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from tilework.function.own_code import held_by, names_in

__all__ = [
    "bound_to",
    "busy_seconds",
    "calls_at_a_time",
    "device_lock",
    "device_name",
    "devices_of",
    "has_device",
    "transfer_seconds",
    "wants_whole_batches",
    "working",
]

# How deep a function is searched: itself, what it holds, and so on. Each level of a library's function has
# some tens of names.
DEPTH = 4
# What is called for an answer. A proxy of a remote object has every attribute, and calls it far away.
_METHODS = (FunctionType, MethodType)


def devices_of(fn: Any) -> int:
    """Return the number of devices that work for a function at the same time; 0 if it has none."""
    found = (_said(one, "__tilework_device__") for one in _held(fn))
    return max((n for n in found if isinstance(n, int)), default=0)


def calls_at_a_time(fn: Any) -> int | None:
    """Return the most calls that run at the same time in a process; None if all threads may call."""
    found = (_said(one, "__tilework_calls__") for one in _held(fn))
    return min((n for n in found if isinstance(n, int)), default=None)


def wants_whole_batches(fn: Any, *, build: bool = False) -> bool:
    """Return whether a function wants every batch to have ``batch_size`` crops.

    ``build``: also ask what `load_once` builds, which builds it.
    """
    for one in _held(fn):
        asked = _said(one, "__tilework_whole_batches__")
        if asked is True or (build and isinstance(asked, _METHODS) and asked() is True):
            return True
    return False


def transfer_seconds(fn: Any, crops: Sequence[Any], results: Sequence[Any]) -> float:
    """Return the seconds of moving crops to the device of a function and results back; 0 if it has none.

    What has one says so by a method ``__tilework_transfer__`` of crops and results.
    """
    for one in _held(fn):
        if isinstance(asked := _said(one, "__tilework_transfer__"), _METHODS):
            return float(asked(crops, results))
    return 0.0


def _said(one: Any, name: str) -> Any:
    """Return an attribute of a callable; None if it has none, or raises whatever the name is.

    Proxies that a function uses may have no object yet, such as those of requests to a web server.
    """
    try:
        return getattr(one, name, None)
    except Exception:
        return None


def _held(fn: Any) -> Iterator[Any]:
    """Yield a function and the callables that it holds, down to `DEPTH` levels."""
    seen: dict[int, Any] = {}
    level = [fn]
    for _ in range(DEPTH):
        new = [one for one in level if id(one) not in seen]
        seen |= {id(one): one for one in new}
        yield from new
        level = [
            part
            for one in new
            for value in _parts(one)
            for part in (value if isinstance(value, list | tuple) else (value,))
            if callable(part) and not isinstance(part, type)
        ]


def _parts(one: Any) -> Iterator[Any]:
    """Yield what a callable holds, also under the global names of a function and as attributes."""
    yield from held_by(one)
    if isinstance(one, FunctionType):
        yield from (one.__globals__[name] for name in names_in(one.__code__) if name in one.__globals__)
    own = _said(one, "__dict__")
    if isinstance(own, dict):
        yield from list(own.values())


# -- calls ------------------------------------------------------------------------------------------------


class _Clock:
    """How long at least one call has been running."""

    def __init__(self) -> None:
        self.running, self.since, self.total = 0, 0.0, 0.0


# One lock for each device. A network may call another one, so that it is taken again.
_LOCKS: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
_FREED = threading.Condition()
# Calls that are bound to each device, and whether this thread makes one of them.
_BOUND: defaultdict[str, int] = defaultdict(int)
_THREAD = threading.local()
_CLOCKS: defaultdict[str, _Clock] = defaultdict(_Clock)
_TIMES = threading.Lock()


def device_name(device: Any) -> str:
    """Return the one name of a device: there is one CPU and one Metal device, however they are numbered."""
    name = str(device)
    return name.partition(":")[0] if name.startswith(("cpu", "mps")) else name


@contextmanager
def bound_to(most: Mapping[str, int]) -> Iterator[tuple[str, bool]]:
    """Return a context of a call that is bound to one of several devices: that which has the fewest calls.

    Parameters
    ----------
    most : mapping of str to int
        The devices, and the most calls that may be bound to each; others wait.

    Yields
    ------
    tuple of str and bool
        The device, and whether this thread has one already, for a network that calls another one.
    """
    if has_device():
        with device_lock(list(most)) as name:
            yield name, True
        return
    with _FREED:
        while not (free := [name for name, n in most.items() if _BOUND[name] < n]):
            _FREED.wait()
        _BOUND[name := min(free, key=_BOUND.__getitem__)] += 1
    _THREAD.bound = True
    try:
        yield name, False
    finally:
        _THREAD.bound = False
        with _FREED:
            _BOUND[name] -= 1
            _FREED.notify_all()


def has_device() -> bool:
    """Return whether this thread makes a call that is bound to a device."""
    return bool(getattr(_THREAD, "bound", False))


@contextmanager
def device_lock(names: Sequence[str]) -> Iterator[str]:
    """Return a context that has a device of this process to itself: the first of ``names`` that is free."""
    with _FREED:
        while (name := _taken(names)) is None:
            _FREED.wait()
    try:
        with working(name):
            yield name
    finally:
        with _FREED:
            _LOCKS[name].release()
            _FREED.notify_all()


def _taken(names: Iterable[str]) -> str | None:
    return next((name for name in names if _LOCKS[name].acquire(blocking=False)), None)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Return a context for a call that keeps the device ``name`` busy."""
    clock = _CLOCKS[name]
    with _TIMES:
        if not clock.running:
            clock.since = time.perf_counter()
        clock.running += 1
    try:
        yield
    finally:
        with _TIMES:
            clock.running -= 1
            if not clock.running:
                clock.total += time.perf_counter() - clock.since


def busy_seconds() -> dict[str, float]:
    """Return how long each device of this process has been working so far, seconds."""
    with _TIMES:
        now = time.perf_counter()
        return {name: c.total + (now - c.since if c.running else 0.0) for name, c in list(_CLOCKS.items())}
