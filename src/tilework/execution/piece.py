"""The units of a run: jobs, the pieces that they yield, and the result of a task that broke."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tilework.engine.reading import wait
from tilework.engine.stopping import stopped_by
from tilework.errors import SupersededError
from tilework.execution.inside import in_a_run
from tilework.execution.stop import Stop, cancelled
from tilework.graph.own_names import as_node
from tilework.graph.tasks import Key
from tilework.grid.tiles import Tile
from tilework.source.zarr_requests import at_work

__all__ = ["Broken", "Guarded", "Job", "Piece", "Shared", "guarded", "with_sources"]


class Job(Protocol):
    """One result to be computed, as the scheduler code sees it."""

    title: str
    """Name of the job, for messages."""
    tiles: int
    """Number of tiles that the job computes."""
    threads: int | None
    """Number of concurrent tasks in one process; None: the number of threads of the scheduler."""
    run: str | None
    """Name of the run, if the pieces are computed once; the run sets it."""
    error: BaseException | None
    """The reason why the job failed; set by the run."""

    opening: Callable[[], Any]
    """Begins the job where somebody else computes its graph; can be pickled. Its result is kept."""
    ending: Callable[[Any], Any]
    """Ends it there, from the results of its last tasks, and returns its result; can be pickled."""

    def took(self, result: Any) -> None:
        """Take the result of a last task."""

    def close(self, *, complete: bool) -> None:
        """End the job; not complete: it failed, or was interrupted."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces to compute, in order."""

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone and keeps nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Nodes that many pieces refer to; equal only to itself."""

    nodes: Mapping[Key, Any]
    """Tasks and data by key."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tasks that are submitted together."""

    job: Job
    """The job that yielded it."""
    shared: Shared
    """Nodes to which the tasks of several pieces refer. The pieces of one `Shared` follow each other."""
    tasks: Mapping[Key, Any]
    """Tasks and data by key."""
    writes: Mapping[Key, int]
    """The last tasks, whose results the job takes, and the number of tiles that each finishes."""
    heavy: frozenset[Key] = frozenset()
    """Tasks that call the function, and so need the resources of the run."""
    keep: Mapping[Key, int] = field(default_factory=dict)
    """Values that later pieces of the same `Shared` need, and the position of the last such piece."""
    position: int = 0
    """Number of the piece among those of its `Shared`."""
    reads: bool = False
    """Whether it also computes what it reads, in tasks that may be of any kind."""


def with_sources(pieces: Iterable[Piece], below: Mapping[Key, Any]) -> Iterator[Piece]:
    """Yield pieces with the tasks from which they are computed, each in the first piece that needs it.

    What later pieces need too is kept until the last of these has run. So nothing is computed twice, and a
    run holds no more of its sources than the pieces in its window need.

    Parameters
    ----------
    pieces : iterable of Piece
    below : dict
        The tasks of the arrays that are read.
    """
    found = list(pieces)
    own: list[dict[Key, Any]] = [{} for _ in found]
    first: dict[Key, int] = {}
    last: dict[Key, int] = {}
    for number, piece in enumerate(found):
        waiting = list(piece.tasks.values())
        while waiting:
            for key in waiting.pop().dependencies:
                if key not in below:
                    continue
                last[key] = number
                if key not in first:
                    first[key] = number
                    if (node := as_node(key, below)) is not None:
                        own[number][key] = node
                        waiting.append(node)
    for number, piece in enumerate(found):
        kept = {key: found[last[key]].position for key in own[number] if last[key] > number}
        yield replace(piece, tasks={**own[number], **piece.tasks}, keep={**piece.keep, **kept}, reads=True)


@dataclass(frozen=True, slots=True)
class Broken:
    """Returned by a guarded task instead of raising, so that the other tasks continue."""

    error: BaseException
    """The exception."""
    text: str
    """Its traceback, which pickling does not keep."""

    def reason(self) -> BaseException:
        """Return the error, with its traceback as a note if it came from another process."""
        if self.error.__traceback__ is None:
            self.error.add_note(f"in another process:\n{self.text}")
        return self.error


class Guarded:
    """A function of a task that asks before it begins whether its run goes on.

    With ``retries`` it returns a `Broken` instead of raising, so that the other tasks continue. Without, the
    scheduler of a cluster retries and reports errors itself.
    """

    __slots__ = ("function", "retries", "stop")

    def __init__(self, function: Callable[..., Any], retries: int | None, stop: Stop | None = None) -> None:
        self.function, self.retries, self.stop = function, retries, stop

    def __reduce__(self) -> tuple[Any, ...]:
        return Guarded, (self.function, self.retries, self.stop)

    def __call__(self, *args: Any) -> Any:
        """Call the function; raise `Stopped` if the run was told to stop."""
        with in_a_run(), at_work():
            if self.retries is None:
                with stopped_by(cancelled):
                    return self.function(*args)
            if self.stop is None:
                return _attempt(self.retries, self.function, *args)
            with self.stop.task():
                return _attempt(self.retries, self.function, *args)


def guarded(function: Callable[..., Any], retries: int | None) -> Guarded:
    """Return ``function`` as a `Guarded`.

    Parameters
    ----------
    function : callable
    retries : int or None
        Further calls after a failed one, each after a longer pause. None: the scheduler retries.
    """
    return Guarded(function, retries)


def _attempt(retries: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``; return a `Broken` with its exception, or the `Broken` among its arguments."""
    for argument in args:
        for value in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(value, Broken):
                return value
    for attempt in range(retries):
        try:
            return function(*args)
        except SupersededError as error:
            return Broken(error, traceback.format_exc())
        except Exception:
            pass
        wait(attempt)
    try:
        return function(*args)
    except Exception as error:
        return Broken(error, traceback.format_exc())
