"""The end of a run: the store is compared with what the tasks told, and the record is completed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import zarr

from tilework._checks import warn
from tilework._types import Bits, Index
from tilework.engine.notices import report
from tilework.engine.reading import Failure
from tilework.errors import TilingError, TilingWarning
from tilework.identity.location import locate
from tilework.labels.facts import total
from tilework.labels.painting import Counts
from tilework.source.held import Travelling
from tilework.writing.claim import Claims, release
from tilework.writing.ledger import Ledger, Record
from tilework.writing.sink import Written, digest_of

__all__ = ["Closing", "Destination", "GroupAt", "Opening", "Told"]

# The attributes hold the first failed tiles, with messages of this length; a record stays small.
FAILED, MESSAGE = 20, 300


@dataclass(frozen=True, slots=True)
class Destination:
    """The array into which one output is written."""

    target: Any
    """A Zarr array, or anything with item assignment; or a `Travelling` one, opened in the task."""
    done: Bits | None = None
    """Which write units were done when the run began; None: the array cannot have marks."""
    record: Record | None = None
    """The record of the run."""
    run: str = ""
    """Id of the run that claims the array."""

    @property
    def array(self) -> Any:
        """The array."""
        return self.target.get() if isinstance(self.target, Travelling) else self.target

    @property
    def open(self) -> bool:
        """Whether anything may be left to write."""
        return self.done is None or not bool(self.done.all())

    @property
    def generation(self) -> str:
        """Generation of the marks."""
        return "" if self.record is None else self.record["generation"]

    def __reduce__(self) -> tuple[Any, ...]:
        target = self.target if isinstance(self.target, Travelling) else Travelling(self.target)
        return Destination, (target, self.done, self.record, self.run)


@dataclass(slots=True)
class Told:
    """What the tasks of a run said that they have done."""

    units: dict[int, Bits]
    """For each output, the units that are done, with those that were done before."""
    n_done: int
    """Number of units that were done before."""
    failures: list[Failure] = field(default_factory=list)
    """Tiles that were left out."""
    digests: list[tuple[int, Index, str]] = field(default_factory=list)
    """Output, unit and digest of samples that tasks read back."""
    unknown: int = 0
    """Number of samples that were NaN, which an integer cannot be."""
    counts: dict[int, Counts] = field(default_factory=dict)
    """What is doubtful about the objects of each output of labels."""

    @classmethod
    def of(cls, destinations: Mapping[int, Destination]) -> Told:
        """Return what is known before the first task."""
        units = {n: d.done.copy() for n, d in destinations.items() if d.done is not None}
        return cls(units, sum(int(bits.sum()) for bits in units.values()))

    @property
    def n_units(self) -> int:
        """Number of all units."""
        return sum(bits.size for bits in self.units.values())

    def add(self, written: Written) -> None:
        """Take the result of a task.

        Raises
        ------
        TilingError
            If it is no such result: a scheduler must return what its tasks return.
        """
        if not isinstance(written, Written):
            raise TilingError(
                f"the scheduler returned {type(written).__name__} for a task; it must return what tasks "
                f"return."
            )
        if written.failures:
            # Every block in which a tile has weight tells of it.
            known = {failure.tile.index for failure in self.failures}
            self.failures += [f for f in written.failures if f.tile.index not in known]
        self.digests += written.digests
        self.unknown += written.unknown
        for number, counts in written.counts.items():
            self.counts[number] = total((self.counts.get(number, Counts()), counts))
        for number, boxes in written.units.items():
            for box in boxes:
                self.units[number][tuple(slice(a, b) for a, b in box)] = True


@dataclass(frozen=True, slots=True)
class GroupAt:
    """The place of the group of several outputs."""

    store: Any
    """The store, as given."""
    path: str
    storage_options: Mapping[str, Any] | None = None

    def open(self) -> Any:
        """Return the group."""
        if isinstance(self.store, zarr.Group):
            return self.store[self.path] if self.path else self.store
        return zarr.open_group(locate(self.store, self.path, self.storage_options), mode="r+")


class Opening:
    """Begins a run that somebody else computes: claims its arrays until its `Closing`, or its failure."""

    def __init__(self, destinations: Iterable[Destination]) -> None:
        self.destinations = [d for d in destinations if d.done is not None]

    def __call__(self) -> Any:
        """Claim the arrays; return what lets the claims go when nothing refers to it any more."""
        if not self.destinations:
            return None
        ledgers = [_ledger(destination) for destination in self.destinations]
        claims = Claims(self.destinations[0].run)
        # This process may have computed the graph before; what that let go late would be these claims.
        Claims.settle(claims.run)
        for destination, ledger in zip(self.destinations, ledgers, strict=True):
            address = str(destination.array.store_path)
            claims.take(ledger.objects, address)
            record = ledger.record
            if record is None or record.get("generation") != destination.generation:
                claims.release()
                raise TilingError(
                    f"{address} was overwritten after to_zarr(compute=False) had made it; call to_zarr again."
                )
        return _Held(claims)


def _ledger(destination: Destination) -> Ledger:
    """Return the ledger of an array; raise if the array is not there any more."""
    try:
        ledger = Ledger(destination.array)
        ledger.record  # noqa: B018 -- reads the store
    except FileNotFoundError as error:
        raise TilingError(
            "an array that to_zarr(compute=False) had made is not there any more: it was deleted, or labels "
            f"were computed already, which is possible once. Call to_zarr again. ({error})"
        ) from error
    return ledger


class _Held:
    """The claims of a run that somebody else computes.

    A run that fails has no end of its own: its results are dropped, and with them the claims. A value that
    went to another process is dropped here too early, so its claims are kept until the end of the run or of
    this process.
    """

    _kept: ClassVar[list[Claims]] = []

    def __init__(self, claims: Claims | None = None) -> None:
        self._claims = claims

    def __reduce__(self) -> tuple[Any, ...]:
        if self._claims is not None:
            self._kept.append(self._claims)
            self._claims = None
        return _Held, ()

    def __del__(self) -> None:
        if self._claims is not None:
            self._claims.let_go()


class Closing:
    """Ends a run whose tasks have all told what they did."""

    def __init__(self, destinations: Mapping[int, Destination], group: GroupAt | None = None) -> None:
        self.destinations = destinations
        """The array of each output, and of each coarser level, by number."""
        self.group = group
        """The group of several outputs."""
        self.after: Callable[[Told], None] | None = None
        """Makes what is left when all blocks are written, where somebody else computes the graph."""
        self.shown: Destination | None = None
        """The array that is returned, if it is not the first that tasks write."""
        self.given: Any = None
        """The array that the caller gave, if it is not one of zarr."""
        self.later: Sequence[Destination] = ()
        """Arrays that are written when all blocks are."""

    def __call__(self, told: Told) -> None:
        """Compare the store with what was told, and complete the records."""
        for number, destination in self.destinations.items():
            if destination.done is not None:
                self._compare(number, destination, told)
                self._record(destination, told)

    def result(self) -> Any:
        """Return the array, or the group, that was written."""
        if self.group is not None:
            return self.group.open()
        if self.given is not None:
            return self.given
        return (self.shown or next(iter(self.destinations.values()))).array

    def warn(self, told: Told) -> None:
        """Warn of tiles that were left out, and of NaN in an integer result."""
        if told.unknown:
            report(told.unknown)
        if told.failures:
            first = told.failures[0]
            if any(destination.done is not None for destination in self.destinations.values()):
                after = ", and the next call computes the units that they touch again."
            else:
                after = (
                    ". Which ones is not kept with the array, so another call computes all of it; retries= "
                    "tries them again in the same call."
                )
            warn(
                f"{len(told.failures)} tiles failed; their samples are fill_value where no other tile has "
                f"weight{after} The first: {first.tile}: {first.error}",
                TilingWarning,
            )

    def of_results(self, results: Iterable[Written]) -> Any:
        """End a run that somebody else computed, from the results of its tasks."""
        told = Told.of(self.destinations)
        for written in results:
            told.add(written)
        try:
            self(told)
            if self.after is not None:
                self.after(told)
        finally:
            for destination in (*self.destinations.values(), *self.later):
                if destination.done is not None:
                    release(Ledger(destination.array).objects, destination.run)
        self.warn(told)
        return self.result()

    def _compare(self, number: int, destination: Destination, told: Told) -> None:
        """Raise if the store, as it is seen from here, lacks what tasks told."""
        array = destination.array
        ledger = Ledger(array)
        lost = told.units[number] & ~ledger.marks(destination.record).read()
        if lost.any():
            units = ", ".join(str(tuple(map(int, u))) for u in itertools.islice(np.argwhere(lost), 3))
            raise TilingError(
                f"{array.store_path}: the tasks wrote {int(told.units[number].sum())} units, but the "
                f"marks of {int(lost.sum())} of them are not in the store, as it is seen from here (units "
                f"{units}...). Another run has written into it meanwhile, or the workers see another "
                "folder at this path. Call again to compute what is missing; if it happens again, look "
                "at how the workers reach the store."
            )
        for output, unit, digest in told.digests:
            if output == number and digest_of(array, unit) != digest:
                raise TilingError(
                    f"{array.store_path}: unit {unit} reads differently here than in the task that wrote "
                    "it. The workers see another folder at this path, or the store returns old data. "
                    "Look at how the workers reach the store, then write afresh with overwrite=True."
                )

    def _record(self, destination: Destination, told: Told) -> None:
        """Write the tiles that failed into the record, or their absence."""
        record = destination.record
        assert record is not None
        final = record.copy()
        final.pop("failed", None)
        final.pop("n_failed", None)
        if told.failures:
            texts = [f"{f.tile}: {f.error}" for f in told.failures[:FAILED]]
            final |= {"failed": [t[:MESSAGE] for t in texts], "n_failed": len(told.failures)}
        if final != record:
            Ledger(destination.array).write_record(final)
