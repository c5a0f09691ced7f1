"""What of a run is done: tiles, blocks, and jobs that can be closed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tilework.graph.layer import Key
from tilework.writing.jobs import Job, Piece

__all__ = ["Tracker"]


class Tracker:
    """Counts what is done, and closes jobs."""

    def __init__(self, show: Callable[[int, int], Any], go_on: bool) -> None:
        self.show, self.go_on = show, go_on
        self.done = self.total = 0
        self.open: list[Job] = []

    def stream(self, jobs: Iterable[Job]) -> Iterator[Piece]:
        """Yield the pieces of all jobs; those of a job that failed end."""
        for job in jobs:
            self.total += job.tiles
            self.show(self.done, self.total)
            job.outstanding += 1  # until all pieces are out
            self.open.append(job)
            for piece in job.pieces():
                if job.error is not None:
                    break
                job.outstanding += len(piece.writes)
                yield piece
            self._one_less(job)

    def finished(self, piece: Piece, key: Key, failures: Any) -> None:
        """Take note of a block that was written."""
        piece.job.failures += failures or []
        self.done += piece.writes[key]
        self.show(self.done, self.total)
        self._one_less(piece.job)

    def failed(self, piece: Piece, error: BaseException) -> None:
        """Take note of a block that was not written."""
        if piece.job.error is None:
            piece.job.error = error
        self._one_less(piece.job)
        if not self.go_on:
            raise error

    def _one_less(self, job: Job) -> None:
        job.outstanding -= 1
        if not job.outstanding:
            job.close()
            self.open.remove(job)

    def close(self) -> None:
        """Close what a failure or an interrupt left open."""
        error = sys.exc_info()[1]
        for job in self.open:
            try:
                job.close()
            except Exception:
                # The store may be what failed; its marks stand one by one.
                if error is None and job.error is None:
                    raise
