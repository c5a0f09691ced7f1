"""Calls of the user's code inside a task: what they raise is an `Exception`, and long ones are logged.

An exception that is no `Exception` (`SystemExit`, `KeyboardInterrupt`) ends the thread of a worker without a
word, and the cluster waits for its task for ever; a local scheduler raises it in the user's process, which
exits. `StopIteration` is lost in the generators and futures that it passes. A traceback of a thousand frames
cannot be pickled, and takes the notes of its exception with it. (Seen with distributed 2026.8.)
"""

from __future__ import annotations

import dis
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, TracebackType
from typing import Any

import cloudpickle

__all__ = ["Guard", "NotOfTheCode", "current_worker"]

# Time after which a call is named in the log, seconds; then after twice, four times... this time.
LONG = 60.0
# Frames that are kept at each end of a traceback, and exceptions in a chain of causes.
FRAMES, CAUSES = 15, 8
# Characters of the text of an exception that are sent to another process; distributed cuts at 10 000.
LONGEST_TEXT = 5000

_LOG = logging.getLogger("tilework")


class NotOfTheCode(BaseException):
    """Base of exceptions that end a task from outside and pass through the user's code."""


class Guard:
    """A context for one call of the user's code.

    Every exception leaves it with a note. One that is no `Exception`, and `StopIteration` and
    `StopAsyncIteration`, leave it as the cause of a `RuntimeError`. An interrupt of the main thread by a
    signal leaves it as it is.

    Parameters
    ----------
    note : callable
        Returns the note, such as "raised by fn on tile 3"; called only when it is needed.
    """

    __slots__ = ("due", "note", "start")

    def __init__(self, note: Callable[[], str]) -> None:
        self.note = note
        self.start = self.due = 0.0

    def __enter__(self) -> None:
        _WATCH.begin(self)

    def __exit__(self, kind: object, error: BaseException | None, frames: TracebackType | None) -> None:
        _WATCH.end(self)
        if error is None or isinstance(error, NotOfTheCode) or _is_interrupt(error):
            return
        _shorten(error)
        ordinary = _ordinary(error)
        ordinary.add_note(self.note())
        if ordinary is error:
            return
        try:
            raise ordinary
        finally:
            ordinary.__context__ = ordinary.__cause__
            del ordinary, error, frames  # this frame is one of the traceback, and would keep the crops


# -- what was raised --------------------------------------------------------------------------------------


def _ordinary(error: BaseException) -> Exception:
    """Return ``error``, or a `RuntimeError` in its place if it would be lost on its way to the user.

    That has the traceback too, because its cause may not be sent.
    """
    usual = isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration)
    whole = not _leaves_the_process() or _is_portable(error)
    if usual and whole:
        return error  # type: ignore[return-value]
    told = type(error).__name__
    if text := str(error):
        told += f": {text}" if len(text) < LONGEST_TEXT else f": {text[:LONGEST_TEXT]}..."
    hint = "" if usual else "; let it raise an error, such as ValueError"
    ordinary = RuntimeError(f"the function raised {told}{hint}")
    ordinary.__cause__, ordinary.__traceback__ = error if whole else None, error.__traceback__
    for note in getattr(error, "__notes__", ()):
        ordinary.add_note(note)
    return ordinary


def _leaves_the_process() -> bool:
    """Return whether what a task raises is sent to another process."""
    return multiprocessing.parent_process() is not None or current_worker() is not None


def current_worker() -> Any:
    """Return the worker whose task this thread runs, or None; does not import distributed."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:
        return None


def _is_portable(error: BaseException) -> bool:
    """Return whether an exception keeps its type, text and notes in another process.

    Those that cannot be pickled end a process of dask's pool, and arrive from a cluster without notes, like
    those with a long text. Of a group that is no `Exception`, tblib loses the members.
    """
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, Exception):
        return False
    try:
        return len(str(error)) < LONGEST_TEXT and bool(pickle.loads(cloudpickle.dumps(error)))
    except Exception:
        return False


def _is_interrupt(error: BaseException) -> bool:
    """Return whether a handler of a signal raised ``error``; Python calls them in the main thread only."""
    if isinstance(error, Exception) or threading.current_thread() is not threading.main_thread():
        return False
    frames = list(_frames(error))
    handlers = set(_handlers())
    if any(frame.tb_frame.f_code in handlers for frame in frames):
        return True
    if not isinstance(error, KeyboardInterrupt) or not frames:
        return isinstance(error, KeyboardInterrupt)
    # Python's own handler has no frame: it raises between two instructions, and code at a `raise`.
    last = frames[-1]
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] != "RAISE_VARARGS"


def _handlers() -> Iterator[CodeType]:
    """Yield the code of the handlers of signals that are written in Python."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", getattr(type(handler).__call__, "__code__", None))
        if isinstance(code, CodeType):
            yield code


def _frames(error: BaseException) -> Iterator[TracebackType]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def _shorten(error: BaseException) -> None:
    """Leave out the middle of the traceback of an exception and of its causes, and the end of these."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    sent = _leaves_the_process()
    while one is not None and one not in seen:
        seen.append(one)
        frames = list(_frames(one))
        if len(frames) > 2 * FRAMES:
            rest: TracebackType | None = None
            for frame in reversed(frames[:FRAMES] + frames[-FRAMES:]):
                rest = TracebackType(rest, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
            one.__traceback__ = rest
        cause = one.__cause__ or one.__context__
        if cause is not None and (len(seen) == CAUSES or (sent and not _is_portable(cause))):
            one.__cause__ = one.__context__ = cause = None
        one = cause


# -- calls that run for long ------------------------------------------------------------------------------


class _Watch:
    """Names calls that run for long, from a thread that exists only while there are calls.

    A call is long if it takes `LONG`, and twice the time of the longest call before: a function that needs
    minutes for every tile is named once, and not once for each of them.
    """

    def __init__(self) -> None:
        self._calls: dict[int, Guard] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._used = False
        self._longest = 0.0

    def begin(self, call: Guard) -> None:
        call.start = time.monotonic()
        call.due = call.start + max(LONG, 2 * self._longest)
        self._calls[id(call)] = call
        self._used = True
        if self._thread is None:
            self._start()

    def end(self, call: Guard) -> None:
        self._calls.pop(id(call), None)
        took = time.monotonic() - call.start
        if took > self._longest:
            self._longest = took

    def forked(self) -> None:
        """Note that this process was forked: it has no thread, and nobody in it gives the lock back."""
        self._thread, self._starting = None, threading.Lock()

    def _start(self) -> None:
        """Start the thread, unless another thread does."""
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tilework-watch", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # the interpreter exits, or there are too many threads
                    self._thread = None
        finally:
            self._starting.release()

    def _run(self) -> None:
        """Look at the calls now and then, until there are none."""
        try:
            while self._calls or self._used:
                self._used = False
                time.sleep(LONG / 4)
                now = time.monotonic()
                for call in list(self._calls.values()):
                    if now >= call.due:
                        _LOG.warning("a call still runs after %.0f s: %s", now - call.start, _place(call))
                        call.due += call.due - call.start
        finally:
            self._longest = 0.0
            self._thread = None
        if self._calls:  # one has begun meanwhile, and relied on this thread
            self._start()


def _place(call: Guard) -> str:
    return call.note().removeprefix("raised ")


_WATCH = _Watch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _WATCH.forked())
