"""`write_many` writes many results in one run, so that no worker waits for the last blocks of a result."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tilework._checks import as_options, as_text, brief, flag, has, one_of
from tilework.engine.notices import report
from tilework.engine.reading import Failure
from tilework.errors import TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import run
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.writing.image import AskedImage
from tilework.writing.jobs import WriteJob
from tilework.writing.measured import AskedTable
from tilework.writing.preparing import Asked, Writing, prepare

__all__ = ["Outcome", "Report", "asked_from", "write_many"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one job of `write_many`."""

    store: str
    """Address of the result; "job" and a number if the job failed before it was known."""
    result: Any = None
    """The zarr.Array or zarr.Group; None if it failed."""
    error: BaseException | None = None
    """The error if it failed; its notes name the tile. Its traceback is kept as text, in the last note."""
    failures: tuple[Failure, ...] = ()
    """Tiles that were left out, with their boxes and errors."""
    tiles: int = 0
    """Number of tiles that the job had to run."""

    @property
    def ok(self) -> bool:
        """Whether every unit was written from every tile."""
        return self.error is None and not self.failures

    def __str__(self) -> str:
        if self.error is not None:
            notes = "; ".join(n for n in getattr(self.error, "__notes__", ()) if "\n" not in n)
            said = f"{self.store}: failed, {type(self.error).__name__}: {self.error}"
            return f"{said} ({notes})" if notes else said
        left = f", {len(self.failures)} tiles failed" if self.failures else ""
        return f"{self.store}: {self.tiles} tiles run{left}"


class Report(Sequence[Outcome]):
    """The outcomes of `write_many`, in the order of the jobs."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes = tuple(outcomes)

    def __getitem__(self, index: Any) -> Any:
        return self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes of results that are not complete."""
        return [outcome for outcome in self if not outcome.ok]

    def __str__(self) -> str:
        return "\n".join(map(str, self._outcomes))

    __repr__ = __str__


def write_many(
    jobs: Iterable[Any],
    *,
    on_error: str = "continue",
    overwrite: bool = False,
    resume: bool = True,
    version: str | None = None,
    accept: Sequence[str] = (),
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    lanes: int | None = None,
    client: Any = None,
    scheduler: Any = None,
    resources: Mapping[str, float] | None = None,
    priority: int = 0,
    **options: Any,
) -> Report:
    """Write many results, each to its store, in one run; return the outcome of each.

    The blocks of all images go through one bounded window, in order: an image begins before the last blocks
    of the image before are done, and when few blocks are left to do. Nothing of an image is kept after its
    last block.

    Parameters
    ----------
    jobs : iterable of (result, store), (result, store, options), or callables that return one
        Options are those of `to_zarr` for one image: ``path``, ``chunks``, ``shards``, ``version``,
        ``accept``, ``ome``, ``levels``, ``pyramid``, ``label_name``, ``meta``, ``table``, ``properties``,
        ``intensity`` and the arguments of `zarr.create_array`. A callable is called when its turn comes, so
        that not all images are open at the same time; a generator is consumed step by step.
    on_error : "continue", "fill" or "raise"
        Treatment of an image that fails. "continue" leaves it incomplete and runs the others. "fill" leaves
        out its failing tiles, as in `to_zarr`. "raise" ends the run.
    overwrite, resume, version, accept, retries, progress, memory_limit, lanes, client, scheduler, \
resources, priority
        As in `to_zarr`.
    **options
        Options for all images, as above.

    Returns
    -------
    Report
        A sequence of `Outcome`, one per job, in the order of the jobs.

    Raises
    ------
    TilingError
        If an argument is not valid. Errors of an image, also of a store that fails at its end, are raised
        only with ``on_error="raise"``; otherwise they are in its `Outcome`.
    TypeError
        If a flag is not True or False.
    Exception
        What the iterable of jobs raises, after the images that have begun are done.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map
    >>> stores = [zarr.storage.MemoryStore() for _ in range(3)]
    >>> outs = (tiled_map(np.negative, np.full(20, k), 6, 1, dtype=int) for k in range(3))
    >>> report = write_many(zip(outs, stores), progress=False, chunks=4)
    >>> [outcome.ok for outcome in report], int(zarr.open(stores[2])[7])
    ([True, True, True], -2)
    """
    overwrite, resume = flag("overwrite", overwrite), flag("resume", resume)
    check_progress(progress)
    wrong = isinstance(jobs, type) or has(jobs, "dtype") or not has(jobs, "__iter__")
    if wrong or isinstance(jobs, str | bytes):
        raise TypeError(f"jobs must be an iterable of (result, store); got {brief(jobs)}.")
    one_of("on_error", on_error, ("continue", "fill", "raise"))
    where = Where.find(
        scheduler,
        client,
        retries=retries,
        resources=resources,
        priority=priority,
        alone=False,
        lanes=lanes,
    )
    common = {
        "overwrite": overwrite, "resume": resume, "version": version, "accept": accept,
        "memory_limit": memory_limit, "on_error": "fill" if on_error == "fill" else "raise",
    }  # fmt: skip
    asked_from(common, options)
    many = _Many(where, common, options, progress, stops=on_error == "raise")
    with outside_of_the_pool(where.client):
        try:
            run(
                many.begin(jobs), where, progress=progress, title="write_many", keep_going=not many.stops,
                ended=many.end,
            )  # fmt: skip
            many.finish()
        finally:
            many.release()
    if many.unknown:
        report(many.unknown)
    if many.broken is not None:
        raise many.broken
    return Report(many.outcomes[number] for number in sorted(many.outcomes))


class _Many:
    """The jobs of one `write_many`. Of a job that has ended only the outcome is kept, and so no image."""

    def __init__(
        self, where: Where, common: Mapping[str, Any], options: dict[str, Any], progress: Progress, *,
        stops: bool,
    ) -> None:  # fmt: skip
        self.where, self.common, self.options, self.stops = where, common, options, stops
        self.progress = progress
        self.outcomes: dict[int, Outcome] = {}
        """Outcomes by the number of the job."""
        self.open: dict[Any, tuple[int, Writing]] = {}
        """Jobs that have begun, with their numbers."""
        self.blocks_done: list[tuple[int, Writing]] = []
        """Results of which all blocks are written, and something is left, with their numbers."""
        self.unknown = 0
        """Samples of integer results that were NaN."""
        self.broken: Exception | None = None
        """What the iterable of jobs raised; raised again when the jobs that have begun are done."""

    def begin(self, jobs: Iterable[Any]) -> Iterator[WriteJob]:
        """Yield the jobs, prepared; no name here may refer to one while a later one is made."""
        rest = iter(jobs)
        for number in itertools.count():
            self.finish()
            try:
                job = [next(rest)]
            except StopIteration:
                return
            except Exception as error:
                self.broken = error
                return
            begun = self._prepare(job, number)
            if begun:
                yield begun.pop()

    def _prepare(self, job: list[Any], number: int) -> list[WriteJob]:
        """Return the job, in a list that holds it alone; an empty one if it failed. Empties ``job``."""
        store: Any = f"job {number}"
        try:
            one = job.pop()
            out, store, own = _parts(one() if callable(one) else one, number)
            begun, writing = prepare(
                out, store, asked_from(self.common, self.options | dict(own)), self.where
            )
        except Exception as error:
            if self.stops:
                raise
            self.outcomes[number] = Outcome(str(store), error=as_text(error))
            return []
        self.open[begun] = number, writing
        return [begun]

    def end(self, job: Any) -> None:
        """Replace a job whose tasks have all run by its outcome."""
        number, writing = self.open.pop(job)
        self.unknown += job.told.unknown
        if (writing.rest or writing.table) and job.error is None:
            self.blocks_done.append((number, writing))
        else:
            self._conclude(number, writing, job.error)

    def finish(self) -> None:
        """Make what is left of results whose blocks are written: numbers, coarser levels, tables."""
        while self.blocks_done:
            number, writing = self.blocks_done[0]
            error = None
            try:
                for job in writing.left():
                    run([job], self.where, progress=self.progress, title=job.title)
                writing.measure(self.where, self.common["memory_limit"], self.progress)
            except Exception as failed:
                if self.stops:
                    raise
                error = failed
            del self.blocks_done[0]
            self._conclude(number, writing, error)

    def release(self) -> None:
        """Let the claims go of all jobs that the run left open."""
        for _, writing in (*self.open.values(), *self.blocks_done):
            writing.release()

    def _conclude(self, number: int, writing: Writing, error: BaseException | None) -> None:
        """Note the outcome of a job."""
        result = None
        try:
            result = writing.end(quiet=True) if error is None else None
        except Exception as failed:  # the store vanished at the end
            if self.stops:
                raise
            error = failed
        finally:
            writing.release()
        self.outcomes[number] = Outcome(
            writing.address, result, None if error is None else as_text(error),
            tuple(writing.told.failures), writing.tiles,
        )  # fmt: skip


def _parts(job: Any, number: int) -> tuple[Any, Any, Mapping[str, Any]]:
    if not isinstance(job, tuple | list) or len(job) not in (2, 3):
        raise TilingError(
            f"a job is (result, store), (result, store, options), or a callable that returns one; got "
            f"{brief(job)} for job {number}."
        )
    out, store, *own = job
    return out, store, as_options(f"the options of job {number}", own[0]) if own else {}


def asked_from(common: Mapping[str, Any], options: Mapping[str, Any]) -> Asked:
    """Return the arguments of `to_zarr` from those that all images share and those of one."""
    own = ("path", "chunks", "shards", "version", "accept")
    image, table = (tuple(f.name for f in fields(kind)) for kind in (AskedImage, AskedTable))
    rest = {k: v for k, v in options.items() if k not in (*own, *image, *table)}
    return Asked(
        **dict(common) | {k: options[k] for k in own if k in options},
        image=AskedImage(**{k: options[k] for k in image if k in options}),
        table=AskedTable(**{k: options[k] for k in table if k in options}),
        options=rest,
    )
