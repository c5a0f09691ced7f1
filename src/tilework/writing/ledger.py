"""The record and the done-marks of a Zarr array.

The attribute ``tilework`` of the array stores its record: the plan, the versions, the fingerprint of the
inputs, and a generation. A variable of xarray, whose attributes are those of the user, has its record beside
the marks. Marks tell which write units are finished. They lie below the array's folder::

    .tilework/record                    the record, where it is not an attribute
    .tilework/claim                     the run that may write, while there is one
    .tilework/beat                      changes while that run is alive
    .tilework/<generation>/done/3.0     written after all units of block (3, 0)
    .tilework/<generation>/dirty/...    units that a task of an older generation wrote into

A generation is new when an array is overwritten, and kept when it is resumed. Marks of another generation
mean nothing, and marks are believed only with the record, the shape and the write units that they were made
for.

The existence of a chunk shows nothing: chunks of fill value leave no object, and a shard exists after its
first inner write.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import zarr

from tilework._installed import version_of
from tilework._types import Bits, Index, Span
from tilework.execution.progress import LOG
from tilework.grid.axis import ceil_div
from tilework.plan.tile_plan import TilePlan
from tilework.writing.objects import Objects, dump, load

__all__ = [
    "BESIDE",
    "FORMAT",
    "RECORD",
    "Accepted",
    "Ledger",
    "Marks",
    "Record",
    "boxes_around",
    "boxes_of",
    "completed",
    "forget",
    "record_of",
    "versions",
    "with_accepted",
    "write_beside",
]

RECORD = "tilework"
"""Name of the attribute that holds the record."""
BESIDE = "record"
"""Name of the object that holds the record of an array of xarray."""
FORMAT = 2
"""Version of the record and of the marks; fingerprints of version 1 have fewer parts."""
KEPT = ("kept", "kept-again")
"""Names of marks that stand for several blocks."""

Box = Sequence[Span]


class Accepted(TypedDict):
    """A part of the fingerprint that changed, in spite of which a result was resumed."""

    part: str
    """Its name."""
    before: str | None
    """Its value in the record; None: it was not there."""
    after: str | None
    """Its value since then; None: it is gone."""


class Record(TypedDict):
    """The record of a run, in the attributes of the array."""

    format: int
    generation: NotRequired[str]
    """Name of the folder of the marks; missing in format 1."""
    shape: NotRequired[list[int]]
    """Extents of the array, samples; missing in format 1."""
    unit: NotRequired[list[int]]
    """Shape of a write unit, samples per axis; missing in format 1."""
    versions: dict[str, str]
    """Versions of python and the packages that computed the result."""
    fingerprint: dict[str, str]
    """The inputs of the result: names of parts, with their digests or values."""
    plan: NotRequired[dict[str, Any]]
    """The JSON of the plan, for a result of `tiled_map`."""
    failed: NotRequired[list[str]]
    """The first tiles that the last run left out, with their errors."""
    labels: NotRequired[dict[str, Any]]
    """Number of objects of labels, and how many are doubtful."""
    n_failed: NotRequired[int]
    """Number of all tiles that the last run left out."""
    accepted: NotRequired[list[Accepted]]
    """Parts that changed and were accepted."""
    begun: NotRequired[list[str] | None]
    """Names of the attributes with which the run created the array; None: the array was given. Missing where
    the run comes later, as of ``compute=False``, and in earlier versions."""


def with_accepted(record: Record, accepted: Iterable[Accepted]) -> Record:
    """Return a record with the present values of parts whose change was accepted, and a list of them."""
    listed = list(record.get("accepted", ()))
    fingerprint = dict(record["fingerprint"])
    for change in accepted:
        name, after = change["part"], change["after"]
        fingerprint.pop(name, None)
        if after is not None:
            fingerprint[name] = after
        if change not in listed:
            listed.append(change)
    if not listed:
        return record
    changed: Record = {**record, "fingerprint": fingerprint, "accepted": listed}
    return changed


def record_of(fingerprint: Mapping[str, str], plan: TilePlan | None = None) -> Record:
    """Return the record of a run that begins; `completed` adds the facts on the array."""
    record: Record = {"format": FORMAT, "versions": versions(), "fingerprint": dict(fingerprint)}
    if plan is not None:
        # Without the facts on the machine that do not affect values: stores of two machines are equal.
        own = replace(plan, threads=1, cache_bytes=0, notes=(), gaps="known", order=())
        record["plan"] = json.loads(own.to_json())
    return record


def versions() -> dict[str, str]:
    """Return the versions of python and the packages that compute a result."""
    return dict(_versions())


@functools.cache  # reading them takes 6 ms, as much as a small block
def _versions() -> dict[str, str]:
    found = {name: version_of(name) for name in ("tilework", "numpy", "dask", "zarr")}
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}


# -- marks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one generation of an array."""

    objects: Objects
    """Objects of the generation."""
    shape: Index
    """Number of write units per axis."""

    def mark(self, block: str, done: Iterable[Box], empty: Iterable[Box] | None) -> None:
        """Mark the units of a block as done, after their data were written.

        Parameters
        ----------
        block : str
            Name of the block; a mark of this name is replaced.
        done, empty : boxes of units
            The units that are done; those among them that are all fill value and so have no object. None:
            this is not known.
        """
        value = {"units": list(done), "empty": None if empty is None else list(empty)}
        self.objects.write(f"done/{block}", dump(value))

    def covers(self, block: str, units: Iterable[Index]) -> bool:
        """Return whether the mark of a block holds ``units``."""
        mark = load(self.objects.read(f"done/{block}")) or {}
        boxes = [[range(a, b) for a, b in box] for box in mark.get("units", ())]
        return bool(boxes) and all(
            any(all(i in r for i, r in zip(unit, box, strict=True)) for box in boxes) for unit in units
        )

    def soil(self, name: str, units: Iterable[Box]) -> None:
        """Note that units were written by a task that had no right to; this unmarks them."""
        self.objects.write(f"dirty/{name}", dump({"units": list(units)}))

    def read(self) -> Bits:
        """Return which units are done."""
        return self._read(self.objects.names())[0]

    def read_empty(self) -> tuple[Bits, Bits]:
        """Return which units are done, and which of them must have an object."""
        return self._read(self.objects.names())

    def keep(self, done: Bits) -> None:
        """Drop the marks of all units that are not in ``done``.

        The order matters if the run dies in between: a mark may be lost, but none is there by mistake.
        """
        names = self.objects.names()
        marked, stored = self._read(names)
        name = next(name for name in KEPT if f"done/{name}" not in names)
        kept = done & marked
        self.mark(name, boxes_of(kept), boxes_of(kept & ~stored))
        self.objects.delete(*(n for n in names if n.startswith("done/")))
        self.objects.delete(*(n for n in names if n.startswith("dirty/")))

    def settle(self) -> tuple[Bits, Bits]:
        """Apply the notes of dirty units, and delete them; return what `read_empty` does."""
        names = self.objects.names()
        done, stored = self._read(names)
        if any(name.startswith("dirty/") for name in names):
            self.keep(done)
        return done, stored

    def _read(self, names: Iterable[str]) -> tuple[Bits, Bits]:
        done, stored = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        found = {name: load(value) for name, value in self.objects.read_all(names).items()}
        for name in sorted(found, key=lambda name: name.startswith("dirty/")):
            mark = found[name] or {}  # a part of a mark says nothing
            dirty = name.startswith("dirty/")
            for box in _boxes(mark.get("units")):
                done[box], stored[box] = not dirty, not dirty and mark.get("empty") is not None
            for box in _boxes(mark.get("empty")):
                stored[box] = False
        return done, stored


def _boxes(value: Any) -> Iterator[tuple[slice, ...]]:
    """Yield boxes of a mark as indices."""
    for box in value or ():
        yield tuple(slice(int(a), int(b)) for a, b in box)


def boxes_of(bits: Bits) -> list[list[Span]]:
    """Return boxes that hold exactly the true bits: runs along the last axis, merged along the others."""
    if bits.ndim == 0:
        return [[]] if bits else []
    if not bits.any():
        return []
    if bits.ndim == 1:
        edges = np.flatnonzero(np.diff(np.concatenate(([False], bits, [False])).astype(np.int8)))
        return [[(int(a), int(b))] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    rows = [boxes_of(row) for row in bits]
    found, start = [], 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[start]:
            found += [[(start, i), *box] for box in rows[start]]
            start = i
    return found


def boxes_around(units: Collection[Index]) -> list[list[Span]]:
    """Return boxes that hold exactly ``units``."""
    if not units:
        return []
    places = np.array(list(units))
    low = places.min(axis=0)
    bits = np.zeros(places.max(axis=0) - low + 1, bool)
    bits[tuple((places - low).T)] = True
    return [[(a + int(o), b + int(o)) for (a, b), o in zip(box, low, strict=True)] for box in boxes_of(bits)]


# -- the record and the marks of an array -------------------------------------------------------------------


class Ledger:
    """The record and the marks of one Zarr array, read from its store each time."""

    def __init__(self, array: Any) -> None:
        self.array = array
        unit = array.shards or array.chunks
        self.unit: Index = tuple(map(int, unit))
        """Shape of a write unit, samples."""
        self.shape: Index = tuple(ceil_div(n, u) for n, u in zip(array.shape, unit, strict=True))
        """Number of write units per axis."""

    def box(self, unit: Index) -> tuple[slice, ...]:
        """Return the samples of a unit."""
        spans = zip(unit, self.unit, self.array.shape, strict=True)
        return tuple(slice(i * u, min((i + 1) * u, n)) for i, u, n in spans)

    def place(self, unit: Index) -> Any:
        """Return the place of the object that holds a unit."""
        return self.array.store_path / self.array.metadata.encode_chunk_key(unit)

    @property
    def objects(self) -> Objects:
        """The objects beside the array."""
        return Objects.of(self.array.store_path)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the array, as its store has them now."""
        return dict(self._stored("r").attrs.asdict())

    @property
    def record(self) -> Record | None:
        """The record of the run that wrote the array; None: tilework did not write it."""
        return _record(self.attributes.get(RECORD)) or self._beside()

    @property
    def begun(self) -> bool:
        """Whether there was a record when the array was opened; does not read its metadata again."""
        return _record(self.array.attrs.get(RECORD)) is not None or self._beside() is not None

    def _beside(self) -> Record | None:
        """Return the record beside the array, if it is there."""
        return _record(load(self.objects.read(BESIDE)))

    def _stored(self, mode: Any) -> Any:
        """Return the array as its store has it now: others may have changed it since it was opened."""
        array = self.array
        return zarr.open_array(array.store_path, mode=mode, zarr_format=array.metadata.zarr_format)

    def marks(self, record: Record | None = None) -> Marks:
        """Return the marks of the generation of a record; default: of the record that is there."""
        record = self.record if record is None else record
        return Marks(self.objects / (record["generation"] if record else "none"), self.shape)

    def read(self) -> Bits:
        """Return which units are done; none if the record does not fit the array."""
        record = self.record
        if record is None or record["format"] > FORMAT or self.misfit(record):
            return np.zeros(self.shape, bool)
        return self.marks(record).read() if "generation" in record else self._read_format_1()

    def misfit(self, record: Record) -> str:
        """Return how the array differs from the one that the record is about; empty: it does not."""
        stored = self._stored("r")
        facts = {"shape": list(stored.shape), "unit": list(stored.shards or stored.chunks)}
        found = [
            f"{name} {tuple(record[name])} -> {tuple(value)}"  # type: ignore[literal-required]
            for name, value in facts.items()
            if name in record and record[name] != value  # type: ignore[literal-required]
        ]
        return ", ".join(found)

    def reset(self, done: Bits | None = None) -> None:
        """Mark only the units in ``done``; None: no unit."""
        self.marks().keep(np.zeros(self.shape, bool) if done is None else done)

    def write_record(self, record: Record) -> None:
        """Write a record; other attributes stay as they are in the store."""
        stored = self._stored("r+")
        there = _record(stored.attrs.asdict().get(RECORD))
        if there is None and (beside := self._beside()) is not None:
            if beside != record:
                write_beside(self.objects, record)
            return
        if there != record:
            stored.update_attributes({RECORD: record})
        self.array.metadata.attributes.update(stored.attrs.asdict())

    def adopt(self, record: Record) -> Record:
        """Turn the marks of format 1 into those of this format; return the record, which is written."""
        done = self._read_format_1()
        adopted = completed(record | {"format": FORMAT}, self.array.shape, self.unit, self.objects)
        # What is all fill value was not noted then.
        self.marks(adopted).mark(KEPT[0], boxes_of(done), None)
        self.write_record(adopted)
        forget(self.objects, adopted["generation"])
        return adopted

    def found(self, record: Record) -> Bits:
        """Return which units are done, after applying the notes of dirty ones.

        Marks of units whose objects were deleted by others are dropped. One list of the array's objects shows
        that, not their contents: reading each of them would take as long as writing it.
        """
        marks = self.marks(record)
        done, stored = marks.settle()
        if not stored.any():
            return done
        at, key = self.array.store_path, self.array.metadata.encode_chunk_key
        objects = Objects(at.store, at.path)
        units = {key(unit): unit for unit in map(tuple, np.argwhere(stored).tolist())}
        # A list may be old, or leave out what lies behind a link.
        if lost := objects.missing(units.keys() - set(objects.names())):
            LOG.warning("%s: %d units were finished and are gone; they are written again", at, len(lost))
            done[tuple(np.transpose([units[name] for name in lost]))] = False
            marks.keep(done)
        return done

    def _read_format_1(self) -> Bits:
        """Return which units are done by the marks of format 1: a packed bit, or an object, for each."""
        done = np.zeros(math.prod(self.shape), bool)
        if (packed := self.objects.read("done.bits")) is not None:
            try:
                bits = np.frombuffer(zlib.decompress(packed), np.uint8)
                done |= np.unpackbits(bits, count=done.size).astype(bool)
            except (zlib.error, ValueError):
                pass  # a part of the object says nothing
        done = done.reshape(self.shape)
        for name in self.objects.names():
            parts = name.removeprefix("done/").split(".")
            # A killed writer leaves temporary files next to its marks.
            if name.startswith("done/") and len(parts) == done.ndim and all(p.isdecimal() for p in parts):
                unit = tuple(map(int, parts))
                if all(i < n for i, n in zip(unit, self.shape, strict=True)):
                    done[unit] = True
        return done


def write_beside(objects: Objects, record: Record) -> None:
    """Write the record of an array beside its marks."""
    objects.write(BESIDE, dump(record))


def _record(record: Any) -> Record | None:
    return record if isinstance(record, dict) and "fingerprint" in record else None  # type: ignore[return-value]


def forget(objects: Objects, keep: str | None = None) -> None:
    """Delete the marks beside an array of all generations but ``keep``; without one, a record beside, too."""
    tops = {name.partition("/")[0]: "/" in name for name in objects.names()}
    # Also the temporary files of a beat that is being written.
    kept = ("claim", "beat", "after-") if keep is None else ("claim", "beat", "after-", f"{keep}-")
    own = [name for name in tops if name == keep or name.startswith(kept)]
    own += [BESIDE] if keep is not None else []
    objects.delete(*(name for name, folder in tops.items() if name not in own and not folder))
    objects.delete_folders(*(name for name, folder in tops.items() if name not in own and folder))


def completed(
    record: Record, shape: Sequence[int], unit: Sequence[int], objects: Objects,
    before: Record | None = None, *, vacant: bool = False,
) -> Record:  # fmt: skip
    """Return a record with the facts on its array, and a generation that the array has not had.

    The name of a generation is a digest of the record and a count: equal runs into empty places make equal
    stores. ``vacant`` says that the run ``before`` wrote nothing, so that an equal one may go on with its
    name.
    """
    known = [*objects.names(), f"{before.get('generation', '') if before else ''}/"]
    seen = (re.match(r"[0-9a-f]{8}-(\d+)/", name) for name in known)
    last = max((int(match[1]) for match in seen if match), default=0)
    number = last if vacant and last else last + 1
    facts: Record = record | {"shape": list(map(int, shape)), "unit": list(map(int, unit))}
    name = f"{hashlib.blake2b(dump(facts), digest_size=4).hexdigest()}-{number}"
    return facts | {"generation": name}
