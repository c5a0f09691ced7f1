"""`CallsJob`: independent calls of one function, each a task."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dask.task_spec import DataNode, Task, TaskRef

from tilework.execution.piece import Piece, Shared, guarded
from tilework.graph.tasks import Key
from tilework.grid.tiles import Tile

__all__ = ["CallsJob"]


class CallsJob:
    """A job of which no task calls a function of the user, or needs another task.

    Parameters
    ----------
    title : str
        Title of the job, for messages.
    function : callable
        Called as ``function(common, *arguments)``.
    common : callable
        Gets the name of the run; returns what all calls share.
    calls : sequence of tuple
        The arguments of each call.
    retries : int or None
        Further attempts that tasks make themselves; None if the scheduler makes them.
    """

    def __init__(
        self,
        title: str,
        function: Callable[..., Any],
        common: Callable[[str | None], Any],
        calls: Sequence[tuple[Any, ...]],
        retries: int | None,
    ) -> None:
        self.title, self.function, self.common, self.calls = title, function, common, calls
        self.tiles, self.retries = len(calls), retries
        # A cluster would take a task of the same name for this one.
        self.name = f"{title}-{uuid.uuid4().hex[:8]}"
        self.threads: int | None = None
        self.run: str | None = None
        self.error: BaseException | None = None
        self.found: list[Any] = []
        """The results, in no order."""
        self.opening, self.ending = _nothing, _nothing

    def took(self, result: Any) -> None:
        """Keep the result of a task."""
        self.found.append(result)

    def close(self, *, complete: bool) -> None:
        """Do nothing: nothing was opened."""

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return nothing: the tasks call no tiles."""
        del key
        return []

    def pieces(self) -> Iterator[Piece]:
        """Yield the task of each call."""
        name = f"{self.name}-common"
        shared = Shared({name: DataNode(name, self.common(self.run))})
        function = guarded(self.function, self.retries)
        for number, arguments in enumerate(self.calls):
            key = (self.name, number)
            task = Task(key, function, TaskRef(name), *arguments)
            yield Piece(self, shared, {key: task}, {key: 1}, position=number)

    def here(self) -> None:
        """Make all calls in this thread."""
        common = self.common(None)
        for arguments in self.calls:
            self.took(self.function(common, *arguments))


def _nothing(*_: Any) -> None:
    """Do nothing: the job is not computed by others."""
