"""Progress in tiles, shown or logged; `Tracker` counts tiles and closes jobs when they are done."""

from __future__ import annotations

import functools
import logging
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tilework._checks import as_text, brief, check_calls, is_flag, noted
from tilework._types import ShowProgress
from tilework.errors import TilingError
from tilework.execution.piece import Job, Piece
from tilework.function.devices import busy_seconds
from tilework.graph.tasks import Key
from tilework.source.kept import CHUNKS

__all__ = ["LOG", "Progress", "Tracker", "add_note", "bar", "check_progress", "stages"]

Progress = bool | Literal["auto"] | ShowProgress
LOG = logging.getLogger("tilework")
# Time between two log lines, seconds.
LOG_SECONDS = 60.0


def check_progress(progress: Any) -> None:
    """Raise a `TypeError` unless ``progress`` is a bool, "auto" or a callable."""
    word = isinstance(progress, str) and progress == "auto"
    if not (word or is_flag(progress) or callable(progress)):
        raise TypeError(f'progress must be True, False, "auto" or a callable; got {brief(progress)}.')
    if callable(progress):
        check_calls("progress", progress, "the number of finished tiles", "the total")


@contextmanager
def bar(progress: Progress, title: str) -> Iterator[ShowProgress]:
    """Return a context with a function that shows the number of finished tiles and the total."""
    if callable(progress):
        yield lambda done, total: noted(f"called as progress({done}, {total})", progress, done, total)
    elif is_flag(progress) and not progress:
        yield lambda done, total: None
    elif not is_flag(progress) and not _watched():
        yield _logger(title, Share())
    else:
        with warnings.catch_warnings():
            # A notebook without ipywidgets gets a text bar; tqdm warns about it when imported.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

        with tqdm(total=0, desc=title, unit="tile") as shown:
            share = Share()

            def show(done: int, total: int) -> None:
                shown.total = total
                shown.set_postfix_str(share(), refresh=False)
                shown.update(done - shown.n)

            yield show


def stages(show: ShowProgress, ahead: int) -> Iterator[ShowProgress]:
    """Yield what shows each of several runs that follow each other, as parts of one.

    Parameters
    ----------
    show : callable
        Gets the number of finished tiles and the total.
    ahead : int
        Number of tiles of the runs after the first one, as far as it is known.
    """
    before, total = 0, [0]

    def part(done: int, own: int, before: int, ahead: int, total: list[int]) -> None:
        total[0] = own
        show(before + done, before + own + ahead)

    yield functools.partial(part, before=0, ahead=ahead, total=total)
    while True:
        before += total[0]
        total = [0]
        yield lambda done, own, b=before, a=ahead, t=total: part(done, own, b, max(0, a - own), t)
        ahead = max(0, ahead - total[0])


class Share:
    """Part of the time since it was made in which the devices of this process worked.

    Where a device waits much, reading or writing takes longer than the network.
    """

    def __init__(self) -> None:
        self.start, self.before = time.perf_counter(), busy_seconds()

    def __call__(self) -> str:
        """Return it as "device 93 %"; an empty string if none has worked. Of several devices, their mean."""
        took = time.perf_counter() - self.start
        busy = [now - self.before.get(name, 0.0) for name, now in busy_seconds().items()]
        busy = [one for one in busy if one > 0]
        return f"device {sum(busy) / len(busy) / took:.0%}".replace("%", " %") if busy else ""


def _watched() -> bool:
    """Return whether a bar is visible to a user: in a terminal or a notebook."""
    if hasattr(sys.stderr, "isatty") and sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _logger(title: str, share: Share) -> ShowProgress:
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LOG_SECONDS:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            text = f"{title}: {done} of {total} tiles, {rate:.3g} a second, {left:.0f} s left"
            LOG.info("%s", f"{text}, {share()}".removesuffix(", "))

    return show


class Tracker:
    """Counts finished tiles, and closes jobs.

    Parameters
    ----------
    show : callable
        Gets the number of finished tiles and the total.
    keep_going : bool
        Whether the other jobs continue when one fails.
    ended : callable
        Gets each job whose tasks have all run, after it was closed.
    """

    def __init__(self, show: ShowProgress, keep_going: bool, ended: Callable[[Job], Any]) -> None:
        self.show, self.keep_going, self.ended = show, keep_going, ended
        self.done = self.total = 0
        self.outstanding: dict[Job, int] = {}
        """Open jobs, and how many of their last tasks are not done."""

    def stream(self, jobs: Iterable[Job]) -> Iterator[Piece | None]:
        """Yield the pieces of all jobs, of a failed job no further ones; None before each job.

        At None the runner may wait: no image of a later job is open yet, and none of an ended job is held.
        """
        rest = iter(jobs)
        while True:
            yield None
            job = next(rest, None)
            if job is None:
                return
            yield from self._pieces(job)
            self._one_less(job)
            del job

    def _pieces(self, job: Job) -> Iterator[Piece]:
        job.run = uuid.uuid4().hex
        self.total += job.tiles
        self.outstanding[job] = 1  # until all pieces are out
        self.show(self.done, self.total)
        for piece in job.pieces():
            if job.error is not None:
                return
            self.outstanding[job] += len(piece.writes)
            yield piece

    def finished(self, piece: Piece, key: Key, result: Any) -> None:
        """Record a last task that is done."""
        try:
            piece.job.took(result)
        except TilingError as error:
            self.failed(piece, error)
            return
        self.done += piece.writes[key]
        self.show(self.done, self.total)
        self._one_less(piece.job)

    def failed(self, piece: Piece, error: BaseException) -> None:
        """Record a last task that failed, and raise its error unless other jobs continue."""
        if self.keep_going:
            as_text(error)
        if piece.job.error is None:
            piece.job.error = error
        self._one_less(piece.job)
        if not self.keep_going:
            raise error

    def _one_less(self, job: Job) -> None:
        self.outstanding[job] -= 1
        if not self.outstanding[job]:
            self._end(job)

    def _end(self, job: Job) -> None:
        """Close a job; if its store fails at its end, that is the job's error."""
        del self.outstanding[job]
        CHUNKS.end_run(job.run)
        try:
            job.close(complete=job.error is None)
        except Exception as error:
            if job.error is not None:
                add_note(job.error, "closing it", error)
            elif self.keep_going:
                job.error = error
            else:
                raise
        self.ended(job)

    def close(self) -> None:
        """Close the jobs that a failure or an interrupt left open; the first error is the one that counts."""
        first = sys.exc_info()[1]
        failed: BaseException | None = None
        for job in self.outstanding:
            CHUNKS.end_run(job.run)
            try:
                job.close(complete=False)
            except Exception as error:
                # Perhaps the store itself failed. Finished units of these jobs are marked one by one.
                if first is not None:
                    add_note(first, f"closing {job.title}", error)
                failed = failed or error
        self.outstanding.clear()
        if first is None and failed is not None:
            raise failed


def add_note(first: BaseException, doing: str, later: BaseException) -> None:
    """Note on the first error of a run that something failed after it."""
    first.add_note(f"after that, {doing} failed too: {type(later).__name__}: {later}")
