"""The target of a result: `Target.look` opens the store once and returns one of three places.

`Fresh`
    Nothing, data that ``overwrite=True`` deletes, or the array of a run that ended before it wrote anything.
    A new array is created.
`Continued`
    A result of an earlier call. Only its missing part is computed.
`Foreign`
    An array that the caller gave. It is written from the start, with its own layout.

A place then compares fingerprints, chooses the layout, and creates the array, which its run must have
claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from tilework._checks import as_options, brief, has, warn
from tilework._types import Index
from tilework.errors import AlignmentError, TilingError, TilingWarning
from tilework.execution.progress import LOG
from tilework.formats.labelled import is_labelled
from tilework.formats.missing import stored_names
from tilework.graph.build import find_spec
from tilework.identity.location import holds, locate
from tilework.identity.samples import same_array, writable
from tilework.source.base import Source
from tilework.writing.by_dim import filled
from tilework.writing.claim import Claims, refuse_if_owned
from tilework.writing.fingerprint import Changes, changes, listed
from tilework.writing.labels import Labels
from tilework.writing.ledger import (
    FORMAT,
    RECORD,
    Ledger,
    Record,
    completed,
    forget,
    versions,
    with_accepted,
    write_beside,
)
from tilework.writing.node import Home, clear, found_at, home_of, is_vacant, refuse_unfit_store
from tilework.writing.objects import Objects
from tilework.writing.units import Layout, chunks_in_shards, layout_of, lengths, shard_lengths

__all__ = ["Continued", "Foreign", "Fresh", "Place", "Target", "by_dims", "claimed", "is_array"]


def is_array(store: Any) -> bool:
    """Return whether the store that the caller gave is an array to write into."""
    return has(store, "shape", "dtype", "__setitem__")


def by_dims(what: str, array: Any, member: Any) -> Any:
    """Return an array to write into with its axes in the order of a result, if those of both have names.

    Arrays of xarray and zarr have them. A result that is no array of xarray may have names that nobody looked
    at: those of its image. They count if the array has the same ones in another order.

    Parameters
    ----------
    what : str
        Name of the argument, for messages.
    array : array
        The array that the caller gave.
    member : array
        The result.

    Raises
    ------
    TilingError
        If the names differ, or if the axes of the array cannot be brought into this order.
    """
    own, theirs = _dims(array), _dims(member)
    if theirs is None and own is not None and (found := find_spec(member)) is not None and found.meta:
        theirs = found.meta.axes if set(found.meta.axes) == set(own) else None
    if own is None or theirs is None or own == theirs:
        return array
    differ = f"{what} has dims {own}, and the result has dims {theirs}"
    if len(set(own)) < len(own) or len(own) != len(theirs) or set(own) != set(theirs):
        raise TilingError(
            f"{differ}, so that values would be under labels of others. Give an array with the dims of the "
            "result, or one without names: the .data of this one."
        )
    memory = writable(what, array)
    if not isinstance(memory, np.ndarray):
        raise TilingError(
            f"{differ}; as it is no array of numpy, its axes cannot be turned for writing. Give one with its "
            "dims in the order of the result, or transpose the image first."
        )
    return memory.transpose([own.index(name) for name in theirs])


def _dims(array: Any) -> tuple[str, ...] | None:
    """Return the names of the axes of an array of xarray or zarr; None if it has none that somebody gave."""
    named = stored_names(array) if isinstance(array, zarr.Array) else None
    # Stores have texts in place of other names.
    dims = tuple(map(str, array.dims)) if is_labelled(array) else named
    return None if dims is None or dims == tuple(f"dim_{k}" for k in range(len(dims))) else dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of one array, as given by the caller."""

    store: Any
    """A path, a URL, a Zarr store, a group, or the array to write into."""
    path: str
    """Path of the array in the store; empty: the root of the store."""
    chunks: Any
    """Shape of chunks, samples per axis of the result, as given: an int, a tuple, or None."""
    shards: Any
    """Shape of shards, as ``chunks``."""
    overwrite: bool
    """Whether existing data may be deleted."""
    resume: bool
    """Whether an earlier result is resumed."""
    accept: tuple[str, ...] = ()
    """Names of parts of the fingerprint that may have changed."""
    accepts: bool = True
    """Whether the caller takes such names."""
    later: bool = False
    """Whether somebody else computes the result, after the array was created."""
    options: Mapping[str, Any]
    """Further arguments of `zarr.create_array`."""
    labels: Labels = field(default_factory=lambda: Labels({"": None}))
    """Names of axes and other labels of the result."""
    key: str = ""
    """The output among those of the result."""
    given: Any = field(init=False)
    """The array to write into, if the caller gave one as store."""
    at: Any = field(init=False)
    """The place of the array in its store, a `StorePath`; None for an array that is not of zarr."""

    def __post_init__(self) -> None:
        given, at = None, None
        if is_array(self.store):
            if has(self.store, "dask"):
                raise TypeError(f"store must hold data; got {brief(self.store)}, which would take no result.")
            given = writable("store", self.store)
        if given is None:
            at = locate(self.store, self.path, self.options.get("storage_options"))
        elif isinstance(given, zarr.Array):
            at = given.store_path
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "at", at)

    @property
    def marked(self) -> bool:
        """Whether the store can hold a record and done-marks."""
        return self.at is not None

    @property
    def objects(self) -> Objects:
        """The objects beside the array."""
        return Objects.of(self.at)

    @property
    def address(self) -> str:
        """Store and path, for messages."""
        if isinstance(self.given, np.ndarray):
            return type(self.store).__name__  # the text of an array is slow to make, and long
        store = self.store.store_path if isinstance(self.store, zarr.Group | zarr.Array) else self.store
        return f"{store}/{self.path}".rstrip("/")

    def look(self, sources: Iterable[Source]) -> Place:
        """Return the place: the target with the data that are there.

        Raises
        ------
        TilingError
            If it must not be written: it is, or holds, one of the ``sources``, or it holds other data.
        """
        if self.at is None:
            if any(same_array(self.given, source) for source in sources):
                raise TilingError("the array to write into is the one that is read; write into another.")
            return Foreign(self, self.given)
        refuse_unfit_store(self.at.store, self.address)
        for source in sources:
            if holds(self.at, source):
                raise TilingError(f"{self.address} holds the array that is read; write somewhere else.")
        if self.given is None:
            return self._look_into_store()
        if self.overwrite:
            return Foreign(self, self.given)
        record = Ledger(self.given).record
        if record is not None:
            return self._continued(self.given, record)
        if self.given.nchunks_initialized:
            raise TilingError(
                f"{self.address} holds data that tilework did not write; overwrite=True writes over them."
            )
        return Foreign(self, self.given)

    def _look_into_store(self) -> Place:
        found = found_at(self.at, self.address, overwrite=self.overwrite)
        if isinstance(found, zarr.Group) and not self.path:
            raise TilingError(
                f"{self.address} is a Zarr group; give path= for an array in it, or {self.address}/NAME. A "
                "whole group is never replaced: delete it yourself, or write somewhere else."
            )
        if found is None or self.overwrite:
            return Fresh(self, self._home(), found)
        if isinstance(found, zarr.Group):
            raise TilingError(f"{self.address} already holds data, a group; overwrite=True deletes it.")
        record = Ledger(found).record
        if record is None:
            # Another run may be about to write its record.
            refuse_if_owned(self.objects, self.address)
            raise TilingError(
                f"{self.address} already holds data without a record of tilework; overwrite=True deletes "
                f"them."
            )
        return self._continued(found, record)

    def _home(self) -> Home:
        """Return where a new array belongs."""
        listed = self.labels.dataset is not None
        return home_of(self.at, self.address, self.options.get("zarr_format"), listed=listed)

    def _continued(self, array: Any, record: Record) -> Place:
        if record["format"] > FORMAT:
            raise TilingError(
                f"{self.address} was written by a newer version of tilework (format {record['format']}, here "
                f"{FORMAT}); install that version, or write afresh with overwrite=True."
            )
        misfit = Ledger(array).misfit(record)
        if not misfit and is_vacant(array, record):
            if self.given is not None:
                return Foreign(self, array, record)
            if record["begun"] is not None:
                return Fresh(self, self._home(), array, record)
        if not self.resume:
            raise TilingError(
                f"{self.address} already holds a result; "
                "overwrite=True deletes it, resume=True goes on with it."
            )
        if misfit:
            raise TilingError(
                f"{self.address} was changed after tilework wrote it ({misfit}), so its marks mean nothing; "
                "undo the change, or write afresh with overwrite=True."
            )
        return Continued(self, array, record, record)


@dataclass(frozen=True, slots=True)
class Fresh:
    """An empty place, or one whose data are deleted."""

    target: Target
    """The target, as given."""
    home: Home
    """The place in its hierarchy."""
    found: Any = None
    """The array or group that is deleted."""
    vacant: Record | None = None
    """The record of an array that is deleted because nothing was written into it."""

    @property
    def zarr_format(self) -> int:
        """Format of the new array: that of its hierarchy, else zarr's default."""
        return self.home.zarr_format or int(zarr.config.get("default_zarr_format", 3))

    def compare(self, fingerprint: Mapping[str, str]) -> Fresh:
        """Return the place: no result is resumed here."""
        return self

    def layout(self, shape: Index, dtype: np.dtype[Any], default: Callable[[], Index]) -> Layout:
        """Return the given chunks and shards, else the default chunks.

        Raises
        ------
        TilingError
            If zarr refuses them, the dtype or the caller's options: all arrays of a run are laid out before
            the first is created and its former data are deleted.
        """
        chunks = lengths("chunks", filled(self.target.chunks, default), shape)
        given = filled(self.target.shards, lambda: chunks or default())
        asked = lengths("shards", given, shape)
        if chunks is None:
            chunks = default()
            if asked is not None:
                chunks = chunks_in_shards(given, chunks, shape)
        shards = shard_lengths(given, chunks, shape)
        if shards is not None and self.home.zarr_format == 2:
            raise TilingError(
                f"{self.target.address} is in Zarr format 2, which has no shards; leave shards= out."
            )
        for axis, (chunk, shard) in enumerate(zip(chunks, shards or chunks, strict=True)):
            if shard % chunk:
                raise AlignmentError(
                    f"shards must be multiples of chunks; got shard {shard} and chunk {chunk} on axis {axis}."
                )
        layout = Layout(chunks, shards)
        self._try(shape, dtype, layout)
        return layout

    def create(
        self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record
    ) -> tuple[Any, Record]:
        """Return a new array, and the record that is in its attributes.

        The order matters if the process dies in between: marks are deleted before data, so that no mark is
        believed for data that are gone.
        """
        target, options = self.target, self._options()
        _refuse_filled(target, self.found, self.vacant)
        attributes: dict[str, Any] = options.pop("attributes", {})
        before = Ledger(self.found).record if isinstance(self.found, zarr.Array) else None
        record = completed(record, shape, layout.unit, target.objects, before, vacant=self.vacant is not None)
        own = target.labels.options(target.key, self.zarr_format)
        attributes = own.pop("attributes", {}) | attributes
        if not target.later:
            record |= {"begun": sorted(attributes)}
        forget(target.objects)
        if target.overwrite or self.vacant is not None:
            clear(target.at, self.found)
        if target.labels.dataset is None:
            attributes |= {RECORD: record}
        else:
            write_beside(target.objects, record)
        arguments: dict[str, Any] = {
            "shape": shape, "dtype": dtype, "chunks": layout.chunks, "shards": layout.shards,
            "zarr_format": self.zarr_format, "attributes": attributes,
        } | own | options  # fmt: skip
        try:
            return self.home.create(**arguments), record
        except (zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError) as error:
            raise TilingError(
                f"{target.address} was created by somebody else in this moment; look at it, and call again."
            ) from error

    def _options(self) -> dict[str, Any]:
        """Return the caller's options for the array, with attributes as a dict."""
        options = dict(self.target.options)
        for name in ("storage_options", "zarr_format"):
            options.pop(name, None)
        for name, value in options.items():
            # zarr iterates over it, and what only has items by number need not have a last one.
            endless = hasattr(type(value), "__getitem__") and not hasattr(type(value), "__iter__")
            if endless and not isinstance(value, np.generic):
                raise TilingError(f"zarr.create_array refuses {name}={brief(value)}: it is no list or tuple.")
        given = options.pop("attributes", None)
        attributes = {} if given is None else dict(as_options("attributes", given))
        return options | ({"attributes": attributes} if attributes else {})

    def _try(self, shape: Index, dtype: np.dtype[Any], layout: Layout) -> None:
        """Raise a `TilingError` if zarr refuses the array; half a millisecond."""
        options = self._options()
        own: dict[str, Any] = {
            "chunks": layout.chunks,
            "shards": layout.shards,
            "zarr_format": self.zarr_format,
        }
        _tried(self.target.address, own | {"shape": shape, "dtype": dtype}, options)


@dataclass(frozen=True, slots=True)
class Foreign:
    """An array that the caller gave; its data are overwritten."""

    target: Target
    """The target, as given."""
    array: Any
    """The array: of zarr, numpy, h5py..."""
    vacant: Record | None = None
    """The record of an earlier call, which wrote nothing."""

    def compare(self, fingerprint: Mapping[str, str]) -> Foreign:
        """Return the place: no result is resumed here."""
        return self

    def layout(self, shape: Index, dtype: np.dtype[Any], default: Callable[[], Index]) -> Layout:
        """Return the layout of the array; raise if another one was given."""
        del dtype, default
        return _layout_there(self.target, self.array, shape)

    def create(
        self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record
    ) -> tuple[Any, Record]:
        """Return the array, without marks, and the record that is in its attributes."""
        _refuse_other(self.array, shape, dtype)
        if self.target.marked:
            _refuse_filled(self.target, self.array, self.vacant)
            ledger = Ledger(self.array)
            record = completed(
                record, shape, layout.unit, ledger.objects, ledger.record, vacant=self.vacant is not None
            )
            if not self.target.later:
                record |= {"begun": None}
            forget(ledger.objects)
            ledger.write_record(record)
        return self.array, record


@dataclass(frozen=True, slots=True)
class Continued:
    """A result of an earlier call, which is resumed."""

    target: Target
    """The target, as given."""
    array: Any
    """The existing array."""
    found: Record
    """The record of the earlier call, as it is in the store."""
    record: Record
    """This record with accepted changes."""

    def compare(self, fingerprint: Mapping[str, str]) -> Continued:
        """Return the place, with accepted changes in its record; raise if there are others."""
        former = "generation" not in self.record
        found = changes(self.record["fingerprint"], fingerprint, accept=self.target.accept, former=former)
        if found.refused:
            raise self._refused(found)
        if missing := found.unrecorded:
            LOG.warning(
                "%s was begun by an earlier version, which did not record these parts; whether they changed "
                "is not known: %s",
                self.target.address,
                listed(missing),
            )
        record = with_accepted(self.record, found.accepted)
        if (found.unrecorded or found.named) and not former:
            late = {name: fingerprint[name] for name in (*found.unrecorded, *found.named.values())}
            kept = {name: part for name, part in record["fingerprint"].items() if name not in found.named}
            record = record | {"fingerprint": kept | late}
        return replace(self, record=record)

    def _refused(self, found: Changes) -> TilingError:
        """Return the error about a result that has another fingerprint."""
        old, new = self.record.get("versions", {}).get("python"), versions()["python"]
        why = f" (python {old} -> {new})" if old != new else ""
        if found.unknown:
            why += ", and some parts cannot be compared: identify the function with version="
        return TilingError(
            f"{self.target.address} holds a result of other parts{why}; changed: {'; '.join(found.refused)}. "
            "It was written by another call: undo the change to resume it, or write afresh with "
            f"overwrite=True.{found.advice if self.target.accepts else ''}"
        )

    def layout(self, shape: Index, dtype: np.dtype[Any], default: Callable[[], Index]) -> Layout:
        """Return the layout of the array; raise if another one was given."""
        del dtype, default
        return _layout_there(self.target, self.array, shape)

    def create(
        self, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record
    ) -> tuple[Any, Record]:
        """Return the existing array, and its record in this format, with accepted changes."""
        _refuse_other(self.array, shape, dtype)
        ledger = Ledger(self.array)
        if ledger.record != self.found:
            raise TilingError(
                f"{self.target.address} was changed by another run in this moment; call again to resume it."
            )
        if "generation" not in self.record:
            # What the former format recorded is the same, or was accepted; from now on all parts are
            # recorded.
            return self.array, ledger.adopt(self.record | {"fingerprint": record["fingerprint"]})
        forget(ledger.objects, self.record["generation"])
        ledger.write_record(self.record)
        return self.array, self.record


def _has_dtype(dtype: np.dtype[Any], zarr_format: Any) -> bool:
    """Return whether a format of Zarr has a dtype."""
    try:
        zarr.create_array(MemoryStore(), shape=(1,), dtype=dtype, zarr_format=zarr_format)
    except Exception:
        return False
    return True


Place = Fresh | Continued | Foreign


def _tried(address: str, own: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return an array in memory with the caller's options; raise a `TilingError` if zarr refuses them."""
    try:
        return zarr.create_array(MemoryStore(), **{**own, **options})
    except Warning:
        raise  # whoever turns warnings into errors gets them
    except Exception as error:
        if not options or not _has_dtype(own["dtype"], own["zarr_format"]):
            raise TilingError(
                f"Zarr format {own['zarr_format']} cannot hold the result for {address}, of dtype "
                f'{own["dtype"]}: {error}. Say another, such as dtype="float32" in tiled_map, or write '
                'out.astype("float32").'
            ) from error
        given = ", ".join(f"{name}={brief(value)}" for name, value in options.items())
        raise TilingError(f"zarr.create_array refuses {given}: {error}") from error


def claimed(
    place: Place, shape: Index, dtype: np.dtype[Any], layout: Layout, record: Record, claims: Claims
) -> tuple[Any, Record | None, str]:
    """Claim a place and create its array; return it, its record and the id of the run."""
    target = place.target
    if not target.marked:
        return place.create(shape, dtype, layout, record)[0], None, ""
    claims.take(target.objects, target.address)
    array, there = place.create(shape, dtype, layout, record)
    return array, there, claims.run


def _layout_there(target: Target, array: Any, shape: Index) -> Layout:
    if len(array.shape) != len(shape):
        raise TilingError(
            f"store {target.address} has shape {tuple(array.shape)}; the result has {shape}. Name another "
            "place, or give an array of the shape of the result."
        )
    found = layout_of(array)
    for what in ("chunks", "shards"):
        has = getattr(found, what)
        given = filled(getattr(target, what), has or shape)
        asked = lengths(what, given, shape)
        # A store made elsewhere, or by an earlier version, may have longer chunks than the axis.
        if asked is not None and (has is None or asked != lengths(what, has, shape)):
            raise AlignmentError(
                f"the array at {target.address} has {what} {has}; got {what}={asked}. Leave {what} out, or "
                "write afresh with overwrite=True."
            )
    if isinstance(array, zarr.Array):
        _refuse_options(target, array, found)
    return found


def _refuse_options(target: Target, array: Any, layout: Layout) -> None:
    """Raise if arguments of `zarr.create_array` make another array than the one that is there.

    Attributes may have been changed since by anybody, so that other ones are only warned of.
    """
    there, names = array.metadata.to_dict(), stored_names(array)
    options = {name: value for name, value in target.options.items() if name != "storage_options"}
    own = None if "dimension_names" in options or target.given is not None else target.labels.dims[target.key]
    if own is not None and names is not None and own != names and len(set(own)) == len(own):
        raise TilingError(
            f"the array at {target.address} has axes {names}, and the result has axes {own}; undo the change "
            "to resume it, or write afresh with overwrite=True."
        )
    usual: dict[str, Any] = {
        "shape": array.shape, "dtype": array.dtype, "chunks": layout.chunks, "shards": layout.shards,
        "zarr_format": there["zarr_format"],
    }  # fmt: skip
    plain = _tried(target.address, usual, {}).metadata.to_dict() if options else {}
    for name, value in options.items():
        made = _tried(target.address, usual, {name: value}).metadata.to_dict()
        if name == "attributes":
            changed = [key for key, one in made[name].items() if there[name].get(key) != one]
            if changed:
                warn(
                    f"the array at {target.address} keeps the attributes that it has, and gets no other "
                    f"{', '.join(changed)}.",
                    TilingWarning,
                )
        elif any(
            repr(one) not in (repr(plain.get(part)), repr(there.get(part))) for part, one in made.items()
        ):
            raise TilingError(
                f"the array at {target.address} has another {name} than {brief(value)}. Leave {name} out, or "
                "write afresh with overwrite=True."
            )


def _refuse_filled(target: Target, array: Any, vacant: Record | None) -> None:
    """Raise if another run came between looking at a ``vacant`` array and claiming it."""
    if vacant is None:
        return
    try:
        same = Ledger(array).record == vacant and is_vacant(array, vacant)
    except FileNotFoundError:
        same = False
    if not same:
        raise TilingError(
            f"{target.address} was changed by another run in this moment; look at it, and call again."
        )


def _refuse_other(array: Any, shape: Index, dtype: np.dtype[Any]) -> None:
    """Raise if the array to write into has another shape or dtype."""
    # Zarr format 3 knows no byte order: what was written as ">f4" is found as "<f4", with equal values.
    same = np.dtype(array.dtype).newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
    if tuple(array.shape) != shape or not same:
        raise TilingError(
            f"the array to write into has shape {tuple(array.shape)} and dtype {array.dtype}; the result has "
            f"{shape} and {dtype}."
        )
