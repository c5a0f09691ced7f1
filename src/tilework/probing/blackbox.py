"""The function under test: its inputs, its calls, and differences between its results."""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._types import Array, Function, Index
from tilework.errors import ContractError
from tilework.function.calling import as_results, call_whole, in_structure, is_batched, keys_of, without_batch
from tilework.function.guard import Guard, NotOfTheCode
from tilework.function.output import Output, Outputs

__all__ = [
    "BlackBox",
    "ResultShape",
    "TooSlow",
    "difference",
    "others",
    "share",
    "size_of",
]

_LOG = logging.getLogger("tilework")
# A call that takes this many times as long as the first one, and this many seconds, ends the search: some
# functions never return from some images.
TIMES, PATIENCE = 100.0, 10.0
NOTE = (
    "called by probe on crops of random samples; give values=(low, high) or array= for inputs that it accepts"
)


class TooSlow(NotOfTheCode):
    """A call took a hundred times as long as the first one; raised inside the function too."""


@dataclass(slots=True)
class BlackBox:
    """A function on crops that counts its calls; results are copies, without the batch axis."""

    fn: Function
    batched: bool = False
    """Whether the function takes batches."""
    whole: int = 1
    """The fewest crops of a batch."""
    calls: int = 0
    """Calls so far."""
    keys: list[Any] = field(default_factory=list)
    """Names or numbers of the results, known after the first call; one None for a single array."""
    form: Any = None
    """The keys as the function returns its arrays: alone, in a dict or in a tuple."""
    first: float = 0.0
    """Seconds that the first call took."""

    def __call__(self, crops: Sequence[Array]) -> list[Array]:
        """Return the results for one crop per source."""
        self.calls += 1
        batched = self.batched or is_batched(self.fn)
        given = [np.array(c[None] if batched else c, order="C") for c in crops]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Extreme inputs and NaN are intended, so numpy's warnings about them are not needed.
            warnings.simplefilter("ignore", RuntimeWarning)
            with Guard(lambda: NOTE), self._timed():
                result = call_whole(self.fn, self.whole, *given) if batched else self.fn(*given)
        if not self.keys:
            self.keys = keys_of(result)
            self.form = in_structure(result, self.keys)
        arrays = as_results(result, self.keys)
        if any(not a.size for a in arrays):
            raise ContractError(f"the function returned nothing: shapes {[a.shape for a in arrays]}.")
        if odd := [str(a.dtype) for a in arrays if a.dtype.kind not in "biufcmM"]:
            raise ContractError(f"probe measures changes of numbers; the function returned {', '.join(odd)}.")
        return [np.array(a) for a in (without_batch(arrays) if batched else arrays)]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Report a call that takes too long while it runs, and raise `TooSlow` where it can be stopped.

        Python code is stopped at its next instruction. Compiled code runs to its end, if it has one.
        """
        began, limit = time.perf_counter(), max(PATIENCE, TIMES * self.first)
        if not self.first:
            yield
            self.first = time.perf_counter() - began
            return
        guard, thread, running, waits = threading.Lock(), threading.get_ident(), True, False
        text = (
            f"call {self.calls} of fn took more than {limit:.3g} s; the first one took {self.first:.2g} s. "
            "fn may not end for some images"
        )

        def stop() -> None:
            nonlocal waits
            with guard:
                if running:
                    _LOG.warning("probe: %s", text)
                    waits = True
                    _raise_in(thread, TooSlow)

        timer = threading.Timer(limit, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except TooSlow:
            waits = False
            raise TooSlow(text) from None
        finally:
            timer.cancel()
            with guard:
                running = False
            if waits:
                _let_it_come()
        if time.perf_counter() - began > limit:
            raise TooSlow(text)

    def outputs(self, declared: Sequence[Output]) -> Outputs:
        """Return one declaration per result in the structure that the function returns."""
        return in_structure(self.form, declared)


def _raise_in(thread: int, exception: type[BaseException]) -> None:
    """Raise an exception in a thread.

    Source: ``PyThreadState_SetAsyncExc`` in the C API of Python.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))


def _let_it_come() -> None:
    """Let what was raised after the last instruction of the function come, and drop it.

    Taking it back would leave a signal that Python 3.11 never clears: it looks for the exception at every
    call from then on, and a profiler or debugger makes it look without end.
    """
    with suppress(TooSlow):
        for _ in range(1000):  # raised at a jump
            pass


@dataclass(frozen=True, slots=True)
class ResultShape:
    """Geometry of one result: its tiled axes, scale and margin."""

    shape: Index
    """Samples per axis, without the batch."""
    dtype: np.dtype[Any]
    """Dtype of the result."""
    axes: Index
    """Per tiled axis, its position in ``shape``."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample, per tiled axis."""
    lost: Index
    """Image samples of the crop for which there is no result, both sides together, per tiled axis."""

    def lengths(self) -> Index:
        """Return the result's samples per tiled axis."""
        return tuple(self.shape[a] for a in self.axes)

    def flat(self, values: Array) -> Array:
        """Return the maximum of ``values`` over the untiled axes, with the tiled axes in order."""
        untiled = tuple(a for a in range(values.ndim) if a not in self.axes)
        kept: Array = values.max(axis=untiled) if untiled else values
        order = sorted(range(len(self.axes)), key=lambda t: self.axes[t])
        return np.asarray(kept.transpose(np.argsort(order)))

    def span(self, d: int, start: float, stop: float) -> tuple[int, int]:
        """Return the result samples at image samples ``[start, stop)`` of the crop, along axis ``d``."""
        n = self.shape[self.axes[d]]
        low, high = math.ceil(start * self.scale[d]), math.ceil(stop * self.scale[d])
        return min(max(low, 0), n), min(max(high, 0), n)


def _wide(a: Array) -> Array:
    """Return ``a`` in double precision at least."""
    return a.astype(np.result_type(a.dtype, np.float64))


def difference(a: Array, b: Array) -> Array:
    """Return ``|a - b|`` as float64; inf where only one is NaN, 0 where both are NaN or equal."""
    if a.dtype.kind in "bmM":
        return np.asarray(a != b, np.float64)
    with np.errstate(all="ignore"):
        gap: Array = np.abs(_wide(a) - _wide(b))
        if a.dtype.kind not in "fc":
            return np.asarray(np.where(a == b, 0.0, np.maximum(gap, 1.0)))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return np.asarray(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)))


def share(change: Array, a: Array, b: Array) -> Array:
    """Return ``change`` as a fraction of the larger of ``a`` and ``b``, per sample; at most 1."""
    if a.dtype.kind in "bmM":
        return change
    with np.errstate(all="ignore"):
        sizes = np.maximum(np.abs(_wide(a)), np.abs(_wide(b)))
        return np.asarray(np.where(change > 0, np.minimum(change / np.maximum(sizes, 1e-300), 1.0), 0.0))


def size_of(result: Array) -> float:
    """Return the largest finite magnitude in a result, 1 if it is all zero."""
    if result.dtype.kind in "bmM" or not result.size:
        return 1.0
    with np.errstate(all="ignore"):
        sizes = np.abs(_wide(result))
    return float(np.where(np.isfinite(sizes), sizes, 0).max()) or 1.0


def others(values: Array, axis: int) -> Index:
    """Return all axes of ``values`` but one, for reductions to a profile along it."""
    return tuple(k for k in range(values.ndim) if k != axis)
