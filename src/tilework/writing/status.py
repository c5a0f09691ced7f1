"""`status`: the progress of the arrays in a store, and whether what is marked can still be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from tilework._checks import Report, flag, html_table
from tilework._types import Index
from tilework.errors import TilingError
from tilework.identity.location import locate
from tilework.source.zarr_requests import answer
from tilework.writing.claim import Claims
from tilework.writing.ledger import FORMAT, Ledger, Record
from tilework.writing.node import found_at
from tilework.writing.objects import Objects, load
from tilework.writing.tables import pieces_beside

__all__ = ["Status", "Statuses", "status", "statuses"]


@dataclass(frozen=True, slots=True, repr=False)
class Status(Report):
    """Progress of one array; prints as a table."""

    place: str
    """Address of the array."""
    done: int
    """Number of write units that are done."""
    units: int
    """Number of all write units."""
    failed: tuple[str, ...] = ()
    """The first tiles that the last run left out, with their errors."""
    n_failed: int = 0
    """Number of all tiles that the last run left out."""
    broken: tuple[Index, ...] = ()
    """Units that are marked as done but missing or unreadable; looked for with ``verify=True`` only."""
    writer: str = ""
    """The process that writes the array, or was killed while it did; empty if there is none."""
    labels: str = ""
    """How many objects labels have, or how far the step before they are numbered is; empty for all others."""

    @property
    def complete(self) -> bool:
        """Whether every unit is done, and none was found broken."""
        return self.done == self.units and not self.broken

    @property
    def summary(self) -> str:
        """The progress in one line."""
        units = f"{self.done} of {self.units} units done"
        more = [(len(self.broken), "missing or unreadable"), (self.n_failed, "tiles failed")]
        parts = [units, *(f"{n} {what}" for n, what in more if n)]
        parts += [self.labels] if self.labels else []
        return ", ".join([*parts, f"written by {self.writer}"] if self.writer else parts)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield names and values."""
        yield "array", self.place.removeprefix("file://")
        yield "units", f"{self.done} of {self.units} done{' (complete)' * self.complete}"
        if self.broken:
            first, more = ", ".join(map(str, self.broken[:3])), " ..." * (len(self.broken) > 3)
            yield "broken", f"{len(self.broken)} units missing or unreadable: {first}{more}"
        if self.n_failed:
            yield "failed", f"{self.n_failed} {'tile' if self.n_failed == 1 else 'tiles'} in the last run"
            yield from (("", text) for text in self.failed[:3])
        if self.labels:
            yield "labels", self.labels
        if self.writer:
            yield "writer", self.writer


class Statuses(tuple[Status, ...]):
    """Progress of the arrays of a group: a tuple of `Status` that prints as a table."""

    __slots__ = ()

    @property
    def complete(self) -> bool:
        """Whether every array is complete."""
        return all(one.complete for one in self)

    def _lines(self) -> list[tuple[str, str]]:
        """Return the place of each array, below what all have in common, and its progress."""
        places = [one.place.removeprefix("file://") for one in self]
        common = os.path.commonpath(places) if len(places) > 1 else ""
        return [
            (place[len(common) :].lstrip("/") or place, one.summary)
            for place, one in zip(places, self, strict=True)
        ]

    def __str__(self) -> str:
        rows = self._lines()
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows) or "no result of to_zarr"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._lines())


def status(
    store: Any,
    *,
    verify: bool = False,
    drop: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Status | Statuses:
    """Return the progress of an array, or of all arrays of a group, that `to_zarr` has begun to write.

    Parameters
    ----------
    store : path, URL, Zarr store, zarr.Group or zarr.Array
        A group stands for all arrays below it that `to_zarr` has written.
    verify : bool
        Whether to read every unit that is marked as done, and list those that are missing or unreadable.
    drop : bool
        Whether to drop the marks of the units that ``verify`` finds, so that the next `to_zarr` computes
        them.
    storage_options : dict, optional
        Options of the file system of a URL.

    Returns
    -------
    Status, or Statuses for a group
        Place, finished and total write units, failed tiles and broken units of an array; for a group, a tuple
        of them. Both print as a table.

    Raises
    ------
    TilingError
        If there is no Zarr array or group, or `to_zarr` has not written the array; with ``drop``, if a run
        writes the array.

    Notes
    -----
    A unit that is all fill value has no object, and its mark says so. Marks that an older version of tilework
    made do not say it; their missing objects are taken for fill value.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map, to_zarr
    >>> out = tiled_map(np.negative, np.ones((10, 10)), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> found = status(written, verify=True)
    >>> found.done, found.units, found.complete
    (4, 4, True)
    """
    found = statuses(store, verify=verify, drop=drop, storage_options=storage_options)
    if isinstance(found, Statuses):
        return found
    if not found:
        raise TilingError(f"to_zarr has not written the array {store}: there is no record of a run.")
    return found[0]


def statuses(
    store: Any,
    *,
    verify: bool = False,
    drop: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Statuses | list[Status]:
    """Return what `status` returns, but a list of one `Status`, or of none, for an array."""
    verify, drop = flag("verify", verify), flag("drop", drop)
    node = store
    if not isinstance(store, zarr.Array | zarr.Group):
        at = locate(store, "", storage_options)
        node = found_at(at, str(store), writable=drop)
        if node is None:
            raise TilingError(f"there is no Zarr array or group at {store}.")
    found = _below(node, verify or drop, drop)
    return Statuses(found) if isinstance(node, zarr.Group) else list(found)


def _below(node: Any, verify: bool, drop: bool) -> Iterator[Status]:
    if isinstance(node, zarr.Group):
        with warnings.catch_warnings():
            # A run that died between its claim and its array leaves a folder that is no node.
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            members = sorted(node.members())
        for _, member in members:
            yield from _below(member, verify, drop)
        return
    ledger = Ledger(node)
    record = ledger.record
    if record is None:
        return
    if record["format"] > FORMAT:
        raise TilingError(
            f"{node.store_path} was written by a newer version of tilework (format {record['format']}, here "
            f"{FORMAT}); install that version."
        )
    broken = tuple(_broken(ledger, record)) if verify else ()
    if drop and broken:
        _drop(ledger, record, broken)
    done = ledger.read()
    claim = load(Objects.of(node.store_path).read("claim")) or {}
    owner = claim.get("owner") or {}
    failed = tuple(record.get("failed", ()))
    yield Status(
        str(node.store_path), int(done.sum()), done.size, failed, record.get("n_failed", len(failed)), broken,
        f"process {owner.get('pid')} on {owner.get('host')}" if owner else "", _labels(ledger, record),
    )  # fmt: skip


def _labels(ledger: Ledger, record: Record) -> str:
    """Return what is known of the objects of labels."""
    pieces = pieces_beside(ledger.array, record.get("generation", ""))
    if pieces is not None:
        done = Ledger(pieces).read()
        return f"{int(done.sum())} of {done.size} units of pieces done, which are numbered then"
    found = record.get("labels")
    if found is None:
        return ""
    doubts = [
        f"{found[name]} {words}"
        for name, words in (
            ("large", "cut objects"), ("dropped", "dropped objects"), ("contested", "contested samples"),
            ("unclaimed", "unclaimed samples"),
        )
        if found.get(name)
    ]  # fmt: skip
    return ", ".join([f"{found['objects']} objects", *doubts])


def _broken(ledger: Ledger, record: Record) -> Iterator[Index]:
    """Yield the units that are marked but missing or unreadable."""
    if "generation" in record and not ledger.misfit(record):
        done, stored = ledger.marks(record).read_empty()
    else:
        done = ledger.read()
        stored = np.zeros_like(done)
    for unit in map(tuple, np.argwhere(done).tolist()):
        try:
            there = not stored[unit] or answer(ledger.array.store, ledger.place(unit).exists())
            ledger.array[ledger.box(unit)]
        except Exception:
            there = False
        if not there:
            yield unit


def _drop(ledger: Ledger, record: Record, broken: tuple[Index, ...]) -> None:
    """Drop the marks of units, as a run of its own."""
    claims = Claims()
    claims.take(ledger.objects, str(ledger.array.store_path))
    try:
        if "generation" not in record:
            record = ledger.adopt(record)
        done, _ = ledger.marks(record).settle()
        for unit in broken:
            done[unit] = False
        ledger.marks(record).keep(done)
    finally:
        claims.release()
