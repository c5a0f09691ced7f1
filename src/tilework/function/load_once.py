"""Heavy functions and readers that each process builds once; they are never sent between processes."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakValueDictionary

import cloudpickle
import numpy as np

from tilework._checks import as_options, at_least, attribute, brief, of_type
from tilework.function.devices import (
    calls_at_a_time,
    devices_of,
    has_device,
    transfer_seconds,
    wants_whole_batches,
    working,
)
from tilework.function.guard import Guard
from tilework.function.own_code import own_code
from tilework.function.pools import shared_among
from tilework.function.tensors import is_module

__all__ = ["LoadOnce", "files_of", "in_task", "load_once"]

# Objects that a process keeps although nothing uses them. A run uses one or two models; the limit keeps a
# long session from holding all of them.
HELD = 8
# Time for which an object counts as used after a task that used it, seconds: the next task of a run follows.
PAUSE = 60.0
# Most files of a folder that are looked at: one of a model has dozens, one of a data set millions.
FILES = 10_000
# Containers nested more deeply hold themselves.
DEPTH = 40


def files_of(*values: Any, depth: int = 0) -> Iterator[str]:
    """Yield the files and folders that a factory is given, also in containers and partial functions."""
    for value in values if depth < DEPTH else ():
        if isinstance(value, functools.partial):
            yield from files_of(value.func, value.args, value.keywords, depth=depth + 1)
        elif isinstance(value, Mapping):
            yield from files_of(*value.values(), depth=depth + 1)
        elif isinstance(value, tuple | list):
            yield from files_of(*value, depth=depth + 1)
        elif isinstance(value, str | PurePath) and os.path.exists(value):  # noqa: PTH110
            yield os.path.realpath(value)


def _stamp(path: str) -> Any:
    """Return what changes when a file, or one in a folder, is written anew; None if that is not known."""
    found: list[tuple[str, int, int]] = []
    try:
        if not Path(path).is_dir():
            stat = Path(path).stat()
            return stat.st_size, stat.st_mtime_ns
        for folder, _, names in os.walk(path):
            files = [Path(folder, name) for name in names if not name.startswith(".")]  # locks, for example
            if len(found) + len(files) > FILES:
                return None
            found += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except OSError:
        return None
    return sorted(found)


class _Entry:
    """One object, built or not."""

    def __init__(self, concurrent: int) -> None:
        self.lock = threading.Lock()
        self.calls = threading.BoundedSemaphore(concurrent)
        self.built = False
        self.value: Any = None
        self.timed = True
        """Whether its calls are timed here; a network times its own, without those that wait."""
        self.tasks = 0
        """Number of running tasks that have used it."""
        self.until = 0.0
        """Time until which it counts as used."""


class _Registry:
    """Objects by token, each built once.

    What a task uses is kept until it ends, and for `PAUSE` after; so are the `HELD` most recently used ones.
    While anything refers to an entry, no second one of its token is made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._used: dict[str, _Entry] = {}
        self._alive: WeakValueDictionary[str, _Entry] = WeakValueDictionary()
        self._task = threading.local()

    def entry(self, token: str, concurrent: int) -> _Entry:
        with self._lock:
            entry = self._alive.get(token)
            if entry is None:
                entry = self._alive[token] = _Entry(concurrent)
            self._entries[token] = entry
            self._entries.move_to_end(token)
            while len(self._entries) > HELD:
                self._entries.popitem(last=False)
            used: dict[str, _Entry] | None = getattr(self._task, "used", None)
            if used is not None and token not in used:
                used[token] = self._used[token] = entry
                entry.tasks += 1
            self._drop()
            return entry

    def built(self, token: str) -> Any:
        """Return an object if this process has built it; otherwise None."""
        with self._lock:
            entry = self._alive.get(token)
            return None if entry is None else entry.value

    def _drop(self) -> None:
        """Drop what no task has used for some time."""
        now = time.monotonic()
        for token in [t for t, e in self._used.items() if not e.tasks and e.until < now]:
            del self._used[token]

    @contextmanager
    def in_task(self) -> Iterator[None]:
        """Keep what this thread uses until the end of the context, and for `PAUSE` after."""
        outer = getattr(self._task, "used", None)
        used = self._task.used = dict[str, _Entry]()
        try:
            yield
        finally:
            self._task.used = outer
            with self._lock:
                for entry in used.values():
                    entry.tasks -= 1
                    entry.until = time.monotonic() + PAUSE
                self._drop()


# Kept in this module, not in the user's: a function defined in a notebook gets fresh globals in every task,
# so a cache there would always be empty (seen with distributed 2026.8).
_REGISTRY = _Registry()
in_task = _REGISTRY.in_task


class LoadOnce:
    """A proxy of an object that each process builds once; made by `load_once`."""

    __tilework_device__ = 1

    def __init__(
        self,
        packed: bytes,
        token: str,
        concurrent: int,
        inner: Any = None,
        batched: bool = False,
        version: str | None = None,
        known: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        self.packed, self.token, self._concurrent, self._inner = packed, token, concurrent, inner
        self.__tilework_batched__, self.version = batched, version
        self._known = dict(known or {})
        """Attributes of the object, which so need not be built to be asked."""
        self.__dict__.update(self._known)
        self._files = dict(files or {})
        """The files that the factory was given, as they were then."""

    @property
    def named(self) -> str:
        """The token without the code of a factory in a module, by which results are named."""
        return self.token.partition("-")[0]

    def changed_files(self) -> list[str]:
        """Return the files that were written anew since: some processes have what they held before.

        Folders are none of them: results may be written there.
        """
        now = {path: _stamp(path) for path in self._files if not Path(path).is_dir()}
        return [path for path, found in now.items() if found not in (None, self._files[path])]

    def _built(self) -> _Entry:
        entry = _REGISTRY.entry(self.token, self._concurrent)
        with entry.lock:
            if not entry.built:
                factory, args, kwargs = cloudpickle.loads(self.packed)
                with Guard(lambda: f"raised by the factory of {self}"):
                    entry.value = factory(*args, **kwargs)
                entry.built, entry.timed = True, not devices_of(entry.value)
        return entry

    @property
    def __tilework_calls__(self) -> int:
        """Number of calls that run at the same time; the object may allow fewer, if it is built."""
        built = _REGISTRY.built(self.token)
        return min(self._concurrent, calls_at_a_time(built) or self._concurrent)

    def known_as(self, concurrent: int, known: Mapping[str, Any]) -> LoadOnce:
        """Return a proxy of the same object that lets another number of calls run, and has its attributes."""
        return LoadOnce(
            self.packed,
            self.token,
            concurrent,
            self._inner,
            version=self.version,
            known=known,
            files=self._files,
        )

    def get(self) -> Any:
        """Return the object; build it if this process has not built it yet."""
        return self._built().value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object; at most ``concurrent`` calls run at a time in a process."""
        entry = self._built()
        timed = working(self.token) if entry.timed else nullcontext()
        shared = shared_among(self._concurrent) if entry.timed else nullcontext()
        # A network that another one calls has the device for which those wait that may call this one.
        inside = "__tilework_device__" in self._known and has_device()
        with nullcontext() if inside else entry.calls, timed, shared:
            try:
                return entry.value(*args, **kwargs)
            except Exception as error:
                if is_module(entry.value) and any(isinstance(a, np.ndarray) for a in args):
                    error.add_note(f"{self} is a torch module, which takes tensors: tw.from_torch(factory).")
                raise

    def __tilework_transfer__(self, crops: Sequence[Any], results: Sequence[Any]) -> float:
        """Return the seconds of moving crops to the device of the object and results back."""
        return transfer_seconds(self.get(), crops, results)

    def __tilework_whole_batches__(self) -> bool:
        """Return whether the object wants batches of one length; build it if that is not done."""
        return wants_whole_batches(self.get(), build=True)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.packed, self.token, self._concurrent, self._inner)
        return LoadOnce, (*values, self.__tilework_batched__, self.version, self._known, self._files)

    def __dask_tokenize__(self) -> Any:
        return "tilework.load_once", self.named

    def __repr__(self) -> str:
        return f"load_once({self._inner}, token={self.token[:8]!r})"


def load_once(
    factory: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    concurrent: int = 1,
    version: str | None = None,
) -> LoadOnce:
    """Return a proxy of ``factory(*args, **kwargs)``, which each process builds once.

    The graph carries the factory and its arguments, a few hundred bytes, never the object that it builds.
    Pass the proxy as ``fn`` (a model) or as ``array`` (a reader).

    A process keeps what its tasks use, however many objects that is, until a minute after. Of those that no
    task used for longer, it keeps the eight most recently used ones; others are built again when needed.

    Parameters
    ----------
    factory : callable
        Builds the model or opens the array; may be defined in a notebook.
    args, kwargs
        Arguments of the factory, for example the path of the weights. Files among them, also in lists and
        partial functions, belong to what is built: call `load_once` again when one was written anew.
    concurrent : int
        Number of calls that may run at the same time in a process; other threads, of at least eight, read and
        write meanwhile. Calls at the same time share the threads of BLAS and OpenMP if threadpoolctl is
        installed; without it, each starts as many as there are processors.
    version : str, optional
        Change it when the factory builds a different object although its code and arguments are the same.

    Returns
    -------
    LoadOnce
        Callable like the object that the factory builds; ``get()`` returns that object.

    Examples
    --------
    >>> double = load_once(lambda k: lambda x: k * x, (2,))
    >>> double(21)
    42
    """
    concurrent = at_least("concurrent", concurrent, 1)
    if is_module(factory):
        raise TypeError(
            "factory is a torch module itself; it must be a callable that builds the object. For a network: "
            "tw.from_torch(module), or tw.from_torch(factory) so that each process builds it once."
        )
    if not callable(factory):
        raise TypeError(f"factory must be a callable that builds the object; got {brief(factory)}.")
    of_type("args", args, (tuple, list), "a tuple of the factory's arguments")
    if version is not None:
        of_type("version", version, str, "a string")
    named = {} if kwargs is None else as_options("kwargs", kwargs)
    try:
        packed = cloudpickle.dumps((factory, tuple(args), named))
    except Exception as error:
        raise TypeError(
            f"factory and its arguments must be picklable, because every process gets them: {error}. Let the "
            "factory open files and connections itself, and give it their paths."
        ) from error
    # A file that is written anew makes another object, and so does a factory in a module that was edited.
    files = {path: _stamp(path) for path in files_of(factory, args, named)}
    facts = (version, concurrent, *files.items())
    code = own_code(functools.partial(factory, *args, **named))
    digest = hashlib.sha256(packed + repr(facts).encode()).hexdigest()
    name = attribute(factory, "__qualname__", type(factory).__name__)
    token = f"{digest}-{hashlib.sha256(repr(code).encode()).hexdigest()}" if code else digest
    return LoadOnce(packed, token, concurrent, name, version=version, files=files)
