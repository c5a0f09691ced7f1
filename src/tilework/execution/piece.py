"""The units of a run: jobs, the pieces that they yield, and the result of a task that broke."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from tilework._checks import attribute, picklable
from tilework.engine.reading import wait
from tilework.engine.stopping import stopped_by
from tilework.errors import SupersededError
from tilework.execution.inside import in_a_run
from tilework.execution.stop import Stop, cancelled
from tilework.graph.narrowing import tasks_of
from tilework.graph.nodes import as_node, moves
from tilework.graph.tasks import Key, calls_function
from tilework.grid.tiles import Tile
from tilework.source.base import Unread
from tilework.source.kept import busy
from tilework.source.zarr_requests import at_work

__all__ = [
    "Broken",
    "Guarded",
    "Job",
    "Lane",
    "Piece",
    "Shared",
    "guarded",
    "needed_in",
    "with_sources",
]


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


class Lane(NamedTuple):
    """Where a piece lies across the image: those of near places read the same chunks."""

    place: float
    """From 0 to 1."""
    of: int
    """Number of pieces side by side."""


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
    lane: Lane | None = None
    """Where it lies, if it matters which process runs it."""
    reads: bool = False
    """Whether it also computes what it reads, in tasks that may be of any kind."""


def needed_in(graph: Mapping[Key, Any]) -> set[Key]:
    """Return the keys that tasks of a graph need."""
    # What lies in the graph of a dask array may be plain data; it needs nothing.
    nodes = (node for node in graph.values() if isinstance(node, GraphNode))
    return set().union(*(node.dependencies for node in nodes))


def with_sources(
    pieces: Iterable[Piece],
    arrays: Sequence[Any],
    retries: int | None,
    *,
    apart: bool = False,
    left_out: bool = False,
) -> Iterator[Piece]:
    """Yield pieces with the tasks from which they are computed, each in the first piece that needs it.

    What later pieces need too is kept until the last of these has run. So nothing is computed twice, and a
    run holds no more of its sources than the pieces in its window need.

    Parameters
    ----------
    pieces : iterable of Piece
    arrays : sequence of dask arrays
        The arrays that are read; without any, the pieces are as they are.
    retries : int or None
        As in `guarded`.
    apart : bool
        Whether only the tasks that call the function need resources.
    left_out : bool
        Whether pieces get an `Unread` for a block that cannot be computed, and not the error.
    """
    if not arrays:
        yield from pieces
        return
    found = list(pieces)
    wanted = _blocks(arrays, found)
    below = tasks_of(arrays, wanted)
    if moves(below):  # these tasks raise what tells the worker to run them again
        retries, left_out = None, False
    blocks = frozenset().union(*wanted.values()) if left_out else frozenset()
    own: list[dict[Key, GraphNode]] = [{} for _ in found]
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
        read = {key: _guarded_node(node, retries, key in blocks) for key, node in own[number].items()}
        yield replace(
            piece,
            tasks={**read, **piece.tasks},
            heavy=piece.heavy.union(k for k, node in own[number].items() if apart and calls_function(node)),
            keep={**piece.keep, **kept},
            reads=True,
        )


def _blocks(arrays: Iterable[Any], pieces: Iterable[Piece]) -> dict[str, set[Key]]:
    """Return the keys of the blocks of dask arrays that pieces need, by the names of the arrays."""
    wanted: dict[str, set[Key]] = {array.name: set() for array in arrays}
    for piece in pieces:
        for node in piece.tasks.values():
            for key in node.dependencies:
                if isinstance(key, tuple) and key[0] in wanted:
                    wanted[key[0]].add(key)
    return wanted


def _guarded_node(node: GraphNode, retries: int | None, is_block: bool) -> GraphNode:
    """Return a task of a dask array that returns its exception, if the scheduler does not report it."""
    if retries is None or isinstance(node, DataNode) or not (is_block or isinstance(node, Task)):
        return node
    needs = tuple(node.dependencies)
    kind = _GuardedBlock if is_block else Guarded
    return Task(node.key, kind(_Evaluated(node, needs), retries), *map(TaskRef, needs))


class _Evaluated:
    """The function of a task of any kind, of the values that it needs."""

    __slots__ = ("needs", "node")

    def __init__(self, node: GraphNode, needs: Sequence[Key]) -> None:
        self.node, self.needs = node, needs

    def __call__(self, *values: Any) -> Any:
        for value in values:
            if isinstance(value, Broken):
                return value
            if isinstance(value, Unread):
                return Broken(value.error, "")
        return self.node(dict(zip(self.needs, values, strict=True)))


@dataclass(frozen=True, slots=True)
class Broken:
    """Returned by a guarded task instead of raising, so that the other tasks continue."""

    error: BaseException
    """The exception."""
    text: str
    """Its traceback, which pickling does not keep."""
    elsewhere: bool = False
    """Whether it came from another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Broken, (picklable(self.error), self.text, True)

    def reason(self) -> BaseException:
        """Return the error, with its traceback as a note if it came from another process."""
        note = f"in another process:\n{self.text}"
        if self.elsewhere and note not in attribute(self.error, "__notes__", ()):
            self.error.add_note(note)
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
        return type(self), (self.function, self.retries, self.stop)

    def __call__(self, *args: Any) -> Any:
        """Call the function; raise `Stopped` if the run was told to stop."""
        with in_a_run(), at_work(), busy():
            if self.retries is None:
                with stopped_by(cancelled):
                    return self.function(*args)
            if self.stop is None:
                return _attempt(self.retries, self.function, *args)
            with self.stop.task():
                return _attempt(self.retries, self.function, *args)


class _GuardedBlock(Guarded):
    """The function of a task that makes a block of a dask array; it returns an `Unread`, not a `Broken`."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        made = super().__call__(*args)
        return Unread(made.reason()) if isinstance(made, Broken) else made


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
    # That of a dask array looks itself: values of a user may be long lists.
    if not isinstance(function, _Evaluated) and (broken := _broken_in(args)) is not None:
        return broken
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


def _broken_in(values: Iterable[Any]) -> Broken | None:
    """Return the first `Broken` among values, or in the lists that a task is given."""
    for value in values:
        if isinstance(value, Broken):
            return value
        if type(value) is list and (found := _broken_in(value)) is not None:
            return found
    return None
