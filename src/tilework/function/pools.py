"""Threads of BLAS and OpenMP while several calls of one function run at the same time.

Each call would start as many threads as there are processors. On two processors, two calls at a time of a
function that multiplies matrices took four times as long as one after the other, because the threads of
OpenBLAS wait for each other without sleeping.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["shared_among"]

_LOCK = threading.Lock()
# The shares of all calls that run now, and the threads of the libraries before the first of them.
_SHARES: list[int] = []
_BEFORE: list[tuple[Any, int]] = []


@contextmanager
def shared_among(calls: int) -> Iterator[None]:
    """Return a context in which the threads of BLAS and OpenMP are shared among a number of calls.

    It needs threadpoolctl, and does nothing without it. No library gets more threads than it had.
    """
    if calls < 2 or (pools := _pools()) is None:
        yield
        return
    # OpenMP has a number for each thread that calls it, and BLAS one for the process: the smallest share of
    # the calls that run counts, and the last one to end puts back what was there before.
    own = [(lib, lib.num_threads) for lib in pools if lib.user_api == "openmp"]
    with _LOCK:
        if not _SHARES:
            _BEFORE[:] = [(lib, lib.num_threads) for lib in pools if lib.user_api == "blas"]
        _SHARES.append(calls)
        _share(_BEFORE, max(_SHARES))
    _share(own, calls)
    try:
        yield
    finally:
        _share(own, 1)
        with _LOCK:
            _SHARES.remove(calls)
            _share(_BEFORE, max(_SHARES, default=1))


def _share(pools: list[tuple[Any, int]], calls: int) -> None:
    for lib, threads in pools:
        lib.set_num_threads(max(1, threads // calls))


def _pools() -> list[Any] | None:
    """Return the libraries with threads that this process had loaded within the last second."""
    return _loaded(int(time.monotonic()))  # to look at all that is loaded takes half a millisecond


@functools.lru_cache(maxsize=1)
def _loaded(second: int) -> list[Any] | None:
    del second
    try:
        import threadpoolctl
    except ImportError:
        return None
    return list(threadpoolctl.ThreadpoolController().lib_controllers)
