"""What a run is made of: jobs, the pieces that they yield, and what a task returns that broke."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tilework.engine.reading import Failure
from tilework.graph.layer import Key
from tilework.grid.tiles import Tile

__all__ = ["Broken", "Job", "Piece", "Shared", "guarded"]


class Job(Protocol):
    """One result to be computed, as a run sees it."""

    title: str
    """Name of the job, for messages."""
    tiles: int
    """Tiles that the job computes."""
    threads: int | None
    """Tasks at a time in one process; None: as many as the scheduler has threads."""
    failures: list[Failure]
    """Tiles that were left out; the run adds to it."""
    error: BaseException | None
    """Why the job failed; set by the run."""
    close: Callable[[], Any]
    """Ends the job, whether all of it is done or not, and returns its result. It can be pickled."""

    def pieces(self) -> Iterator[Piece]:
        """Yield what is to be computed, in order."""

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
    """What its tasks refer to, as do those of other pieces. The pieces of one `Shared` follow each other."""
    tasks: Mapping[Key, Any]
    """Tasks and data by key."""
    writes: Mapping[Key, int]
    """The last tasks, whose results are failures or None, and how many tiles each finishes."""
    heavy: frozenset[Key] = frozenset()
    """Tasks that need the resources of the run: those that call the function."""
    keep: Mapping[Key, int] = field(default_factory=dict)
    """Seams that later pieces of the same `Shared` need, and the position of the last such piece."""
    position: int = 0
    """Number of the piece among those of its `Shared`."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What a guarded task returns instead of raising, so that the other tasks run on."""

    error: BaseException
    """What was raised."""
    text: str
    """Its traceback, which is lost between processes."""

    def reason(self) -> BaseException:
        """Return the error, with its traceback as a note if it came from another process."""
        if self.error.__traceback__ is None:
            self.error.add_note(f"in another process:\n{self.text}")
        return self.error


def guarded(function: Callable[..., Any], retries: int | None) -> Callable[..., Any]:
    """Return ``function`` made to return a `Broken` where it would raise.

    Parameters
    ----------
    function : callable
    retries : int or None
        Further calls after one that failed. None: the scheduler retries and reports errors itself, and
        ``function`` is returned unchanged.
    """
    return function if retries is None else functools.partial(_attempt, retries, function)


def _attempt(retries: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``; return its exception, or that of the task that an argument comes from."""
    for argument in args:
        for value in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(value, Broken):
                return value
    for _ in range(retries):
        try:
            return function(*args)
        except Exception:
            continue
    try:
        return function(*args)
    except Exception as error:
        return Broken(error, traceback.format_exc())
