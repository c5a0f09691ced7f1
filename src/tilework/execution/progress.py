"""Progress in tiles, shown or logged; `Tracker` counts tiles and closes jobs when they are done."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tilework._types import ShowProgress
from tilework.execution.piece import Job, Piece
from tilework.graph.layer import Key

__all__ = ["LOG", "Progress", "Tracker", "bar"]

Progress = bool | Literal["auto"] | ShowProgress
LOG = logging.getLogger("tilework")
# Time between two log lines, seconds.
LOG_SECONDS = 60.0


@contextmanager
def bar(progress: Progress, title: str) -> Iterator[ShowProgress]:
    """Return a context with a function that shows the number of finished tiles and the total."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda done, total: None
    elif progress == "auto" and not _watched():
        yield _logger(title)
    else:
        with warnings.catch_warnings():
            # A notebook without ipywidgets gets a text bar; tqdm warns about it when imported.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

        with tqdm(total=0, desc=title, unit="tile") as shown:

            def show(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)

            yield show


def _watched() -> bool:
    """Return whether a bar is visible to a user: in a terminal or a notebook."""
    if hasattr(sys.stderr, "isatty") and sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _logger(title: str) -> ShowProgress:
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LOG_SECONDS:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            LOG.info("%s: %d of %d tiles, %.3g a second, %.0f s left", title, done, total, rate, left)

    return show


class Tracker:
    """Counts finished tiles, and closes jobs."""

    def __init__(self, show: ShowProgress, keep_going: bool) -> None:
        self.show, self.keep_going = show, keep_going
        self.done = self.total = 0
        self.outstanding: dict[Job, int] = {}
        """Open jobs, and how many of their last tasks are not done."""

    def stream(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """Yield the pieces of all jobs, of a failed job no further ones."""
        for job in jobs:
            self.total += job.tiles
            self.show(self.done, self.total)
            self.outstanding[job] = 1  # until all pieces are out
            for piece in job.pieces():
                if job.error is not None:
                    break
                self.outstanding[job] += len(piece.writes)
                yield piece
            self._one_less(job)

    def finished(self, piece: Piece, key: Key, failures: Any) -> None:
        """Record a last task that is done; its result lists the tiles that were left out."""
        piece.job.failures += failures or []
        self.done += piece.writes[key]
        self.show(self.done, self.total)
        self._one_less(piece.job)

    def failed(self, piece: Piece, error: BaseException) -> None:
        """Record a last task that failed, and raise its error unless other jobs continue."""
        if piece.job.error is None:
            piece.job.error = error
        self._one_less(piece.job)
        if not self.keep_going:
            raise error

    def _one_less(self, job: Job) -> None:
        self.outstanding[job] -= 1
        if not self.outstanding[job]:
            del self.outstanding[job]
            job.close()

    def close(self) -> None:
        """Close the jobs that a failure or an interrupt left open."""
        error = sys.exc_info()[1]
        for job in self.outstanding:
            try:
                job.close()
            except Exception:
                # Perhaps the store itself failed. Finished units of these jobs are marked one by one.
                if error is None and job.error is None:
                    raise
