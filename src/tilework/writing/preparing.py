"""The job of one result: `prepare` looks at all that is there, decides, and creates the arrays.

In this order:

1. Look at the `Target` of each output; raise if it must not be written.
2. Compare the fingerprint with that of an array to resume.
3. Choose the layout of write units, then blocks that are whole units and fit into memory.
4. Create the arrays and read their done-marks. Nothing is changed before this step.
"""

from __future__ import annotations

import itertools
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zarr

from tilework._checks import attribute, of_type, one_of
from tilework._types import Index
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.calls import CallsJob
from tilework.execution.progress import LOG, Progress
from tilework.execution.where import Where
from tilework.formats.labelled import is_labelled
from tilework.formats.missing import missing_attribute
from tilework.graph.build import Found, bare, chunks_of, find_spec, is_lazy, lowered, specs_below
from tilework.graph.narrowing import with_narrowed_slices
from tilework.graph.own_names import check_specs, named_apart, with_own_names
from tilework.identity.digests import digest
from tilework.identity.location import locate
from tilework.identity.stored import read_by
from tilework.objects.measuring import How
from tilework.plan.tile_mask import TileMask
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source
from tilework.source.opening import check_lengths, opened
from tilework.writing.by_dim import of_output
from tilework.writing.claim import Claims
from tilework.writing.closing import Closing, Destination, GroupAt, Told
from tilework.writing.fingerprint import Fingerprint, names_to_accept, of_dask, of_spec
from tilework.writing.finishing import MASKED
from tilework.writing.growing import Growing
from tilework.writing.image import AskedImage, Image, warn_of_name
from tilework.writing.jobs import ChunkJob, TileJob, WriteJob
from tilework.writing.labels import Labels
from tilework.writing.ledger import Ledger, Record, record_of
from tilework.writing.levels import parents_done
from tilework.writing.measured import AskedTable, TableTo
from tilework.writing.numbering import Numbering, forget_pieces
from tilework.writing.replan import Member, depth, lanes, memory_of, replanned, with_levels
from tilework.writing.sink import UNREACHED
from tilework.writing.tail import Pyramid, Rest, Tail
from tilework.writing.target import Continued, Fresh, Place, Target, by_dims, claimed, is_array
from tilework.writing.unfinished import check_whole
from tilework.writing.units import (
    Units,
    check_aligned,
    check_chunks,
    default_chunks,
    source_chunks,
    usual_units,
)

__all__ = ["Asked", "Writing", "by_key", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Arguments of `to_zarr`, which describes them, as given."""

    path: str | None = None
    chunks: Any = None
    shards: Any = None
    overwrite: bool = False
    resume: bool = True
    version: str | None = None
    accept: Any = ()
    on_error: Any = "raise"
    memory_limit: Any = None
    image: AskedImage = AskedImage()  # noqa: RUF009 -- it is frozen
    table: AskedTable = AskedTable()  # noqa: RUF009 -- it is frozen
    numbers: bool = True
    """Whether objects of labels are numbered; otherwise they keep their lazy ids."""
    options: Mapping[str, Any] = field(default_factory=dict)
    rebuilt: Callable[[Index], Any] | None = None
    """Makes the dask array again, with chunks that are whole write units of this shape; its samples do not
    depend on its chunks."""

    def __post_init__(self) -> None:
        for name, value in (("path", self.path), ("version", self.version)):
            if value is not None:
                of_type(name, value, str, "a string")
        names_to_accept(self.accept)
        if not callable(self.on_error):
            one_of("on_error", self.on_error, ("raise", "fill"))

    def at(self, key: str) -> str:
        """Return the path of the output ``key``."""
        return "/".join(p for p in (self.path, key) if p)

    def target(
        self, store: Any, key: str, labels: Labels, image: Image | None = None, *, later: bool = False
    ) -> Target:
        """Return the target of the output ``key``, or of level 0 of its image."""
        path, options = self.at(labels.name(key)), self.options
        if image is not None:
            path, options = f"{path}/{image.path}".lstrip("/"), image.options(options)
        return Target(
            store=store, path=path, chunks=of_output("chunks", self.chunks, key, labels.dims),
            shards=of_output("shards", self.shards, key, labels.dims), overwrite=self.overwrite,
            resume=self.resume, accept=names_to_accept(self.accept), accepts=self.rebuilt is None,
            later=later, options=options, labels=labels, key=key,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What follows the job that writes the blocks; it does not hold the image."""

    told: Told
    """What the tasks of the job told."""
    closing: Closing
    """The end of the run."""
    tiles: int
    """Number of tiles that the job computes."""
    address: str
    """Address of the first array, for messages."""
    claims: Claims
    """The claims of the run, until it ends."""
    images: Sequence[Image] = ()
    """The OME-Zarr images that are written."""
    rest: Rest | None = None
    """Makes what is left when all blocks are written."""
    targets: Mapping[str, Destination] = field(default_factory=dict)
    """The array of each output by key."""
    table: TableTo | None = None
    """Where a table of objects goes."""

    def left(self) -> Iterator[CallsJob | WriteJob]:
        """Yield the jobs after the first one, each to be run before the next is asked for."""
        if self.rest is not None:
            yield from self.rest.jobs(self.told)

    @property
    def ahead(self) -> int:
        """Number of tasks that number objects when all blocks are written."""
        parts = [] if self.rest is None else self.rest.parts
        return sum(part.tasks for part in parts if isinstance(part, Numbering))

    def measure(self, where: Where, memory_limit: int | str | None, progress: Progress) -> None:
        """Write the table of objects, if one is asked for."""
        if self.table is not None:
            self.table.write(self.targets[self.table.key], How.of(where, memory_limit, progress))

    def end(self, *, quiet: bool = False) -> Any:
        """Warn of failed tiles, and return the array or group."""
        self.release()
        for image in self.images:
            if image.label is not None:
                image.list_labels()
        if not quiet:
            self.closing.warn(self.told)
        return self.closing.result()

    def release(self) -> None:
        """Let the claims go."""
        self.claims.release()


def prepare(
    out: Any,
    store: Any,
    asked: Asked,
    where: Where,
    given: Mapping[str, Any] | None = None,
    reads: Iterable[Source] = (),
) -> tuple[WriteJob, Writing]:
    """Return the job that writes ``out``, after all checks, and what follows it; create the arrays.

    ``given`` holds an array to write into for each member, in place of a store of all. ``reads`` are sources
    that ``out`` reads and does not show.

    The arrays are claimed for the run until the job is closed; for a run that somebody else computes, only
    until they are created.
    """
    members, several = by_key(out), isinstance(out, tuple | list | Mapping)
    found = {key: find_spec(member) for key, member in members.items()}
    arrays = {key: bare(member) for key, member in members.items()}
    if several:
        _check_members(found)
    for key, array in arrays.items():
        if not is_lazy(array):
            raise TypeError(_not_lazy(array, key))
    # The outputs of one call are computed from the same.
    first, lazy = next(iter(found.values())), next(iter(arrays.values()))
    check_specs([lazy])
    specs = list(specs_below(lazy))
    sources = [*map(opened, _sources(lazy, specs)), *reads]
    _check_arrays([store] if given is None else given.values(), where, one=several and given is None)
    stores = given or {key: by_dims("store", store, member) for key, member in members.items()}
    images = _images(members, stores, found, asked) if asked.image else {}
    for image in images.values():
        image.refuse_sources(sources)
    dims = dims_of(out, found, asked) | {key: image.meta.axes for key, image in images.items()}
    plain = bool(images) or given is not None or is_array(store)
    labels = replace(Labels(dims) if plain else Labels.of(out, dims), attributes=_said(arrays, found, images))
    targets = {
        key: asked.target(stores[key], key, labels, images.get(key), later=where.postponed) for key in arrays
    }
    places = {key: target.look(sources) for key, target in targets.items()}
    check_whole(sources if given is None else ())  # an array in memory is a look, not a result that is kept
    table = asked.table.to(arrays, found, stores, images, places, overwrite=asked.overwrite)
    if given is None:
        warn_of_name(store, asked.path, image=bool(images))
    new = [place for place in places.values() if isinstance(place, Fresh)]
    if labels.dataset is not None:
        _refuse_meta(asked)
        group = locate(store, asked.path or "", asked.options.get("storage_options"))
        names = [labels.name(place.target.key) for place in new]
        gone = labels.check(group, names, new[0].zarr_format if new else 3, overwrite=asked.overwrite)
    claims = Claims()
    try:
        if first is None:
            own = attribute(members[""], "dims")
            job, writing = _prepare_chunks(
                lowered(lazy), places[""], images.get(""), asked, where, claims, specs, own
            )
        else:
            origins = {key: f for key, f in found.items() if f is not None}  # all, or several were refused
            job, writing = _prepare_tiles(arrays, places, images, origins, asked, where, claims, specs)
        if labels.dataset is not None:
            labels.write(group, names, gone)
    except BaseException:
        claims.release()
        raise
    writing = replace(writing, table=table)
    if where.postponed:
        claims.release()
    if given is None:
        _show(writing.closing, store, asked, several=several)
    if job.done:
        done = f"{job.done} of {job.units} units"
        LOG.info("%s: %s were found done; %d tiles are to run", job.title, done, job.tiles)
        job.title += f" ({done} found done)"
    return job, writing


def _check_members(found: Mapping[str, Found | None]) -> None:
    """Raise unless the members of a tuple or dict are those of one call, each once."""
    calls = [None if f is None else f.call for f in found.values()]
    if None in calls or len(set(calls)) > 1:
        raise TilingError(
            "a tuple or dict as out must be the unmodified result of one tiled_map; write others one by one."
        )
    numbers = [f.number for f in found.values() if f is not None]
    if len(set(numbers)) < len(numbers):
        raise TilingError(
            f"a tuple or dict as out must have each result once; members of {list(found)} are one."
        )


def _sources(array: Any, specs: Sequence[Spec]) -> Iterator[Source]:
    """Yield all that an array reads, also where dask reads it."""
    for spec in specs:
        yield from spec.sources
    yield from read_by(array)


def _check_arrays(stores: Iterable[Any], where: Where, *, one: bool) -> None:
    """Raise if a store is an array that tasks cannot reach, or the ``one`` array of several results."""
    for store in filter(is_array, stores):
        if one:
            raise TilingError(
                "out has several results, and store is one array; give a group or a path, or compute into "
                "an array of each: tw.compute(out, into=arrays)."
            )
        if where.apart and not isinstance(store, zarr.Array):
            raise TilingError(f"{UNREACHED} The scheduler is {where.name!r}.")


def _show(closing: Closing, store: Any, asked: Asked, *, several: bool) -> None:
    """Let a run return the group of several results, or an array that the caller gave, as it is."""
    if several:
        closing.group = GroupAt(store, asked.path or "", asked.options.get("storage_options"))
    elif is_array(store) and not isinstance(store, zarr.Array):
        closing.given = store


def _refuse_meta(asked: Asked) -> None:
    """Raise if a DataArray should mean something else than it says."""
    if asked.image.meta is not None or "dimension_names" in asked.options:
        what = "dimension_names" if asked.image.meta is None else "meta"
        raise TilingError(
            f"{what}= cannot change what a DataArray says of itself: rename its dims or give it other "
            f"coordinates; or write the array alone, out.data, with {what}=."
        )


def _images(
    members: Mapping[str, Any], stores: Mapping[str, Any], found: Mapping[str, Found | None], asked: Asked
) -> dict[str, Image]:
    """Return the image of each output."""
    if asked.image.label_name is not None and len(members) > 1:
        raise TilingError(
            "label_name= is for one result; write the others apart, fn then runs again for them."
        )
    return {
        key: asked.image.image(stores[key], asked.at(key), asked.options, member, found[key])
        for key, member in members.items()
    }


def by_key(out: Any) -> dict[str, Any]:
    """Return the arrays of a result by their keys in the group; the key of a single array is empty."""
    if isinstance(out, Mapping):
        arrays = {str(key): array for key, array in out.items()}
    elif isinstance(out, tuple | list):
        arrays = {str(number): array for number, array in enumerate(out)}
    else:
        arrays = {"": out}
    if not arrays:
        raise TilingError("there is nothing to write: out is empty.")
    return arrays


def dims_of(out: Any, found: Mapping[str, Found | None], asked: Asked) -> dict[str, Sequence[str] | None]:
    """Return the names of the axes of each output: as given, of xarray, or of the meaning of a result."""
    members = [out] if "" in found else out.values() if isinstance(out, Mapping) else out
    names: dict[str, Sequence[str] | None] = {}
    for (key, origin), member in zip(found.items(), members, strict=True):
        meta = None if origin is None else origin.meta
        given: Any = asked.options.get("dimension_names")
        if not (isinstance(given, list | tuple) and all(isinstance(name, str) for name in given)):
            given = None
        if given is None and asked.image.meta is not None:
            asked.image.meta.check("the result", member.shape)
            given = asked.image.meta.axes
        if given is None:
            given = attribute(member, "dims") or (None if meta is None else meta.axes)
        names[key] = None if given is None else tuple(map(str, given))
    return names


def _said(
    arrays: Mapping[str, Any], found: Mapping[str, Found | None], images: Mapping[str, Image]
) -> dict[str, dict[str, Any]]:
    """Return the attributes of each output that say the value of its samples without data."""
    metas = {key: None if origin is None else origin.meta for key, origin in found.items()}
    metas |= {key: image.meta for key, image in images.items()}
    return {
        key: missing_attribute(meta.nodata, arrays[key].dtype)
        for key, meta in metas.items()
        if meta is not None
    }


def _not_lazy(array: Any, key: str) -> str:
    """Return the message for an ``out`` that is no dask array."""
    what = f"out{f'[{key!r}]' if key else ''} must be a dask array, such as a result of tiled_map; "
    if is_labelled(array):
        return f"{what}this DataArray is not chunked: give array.chunk(), or write it with xarray."
    if isinstance(array, np.ndarray):
        return f"{what}a numpy array is computed already: zarr.save_array(store, array) writes it."
    return f"{what}got {type(array).__name__}."


def _title(target: Target) -> str:
    return f"to_zarr {target.store}"[:60] if target.marked else "compute"  # not the values of an array


# -- the result of tiled_map ------------------------------------------------------------------------------


def _prepare_tiles(
    arrays: Mapping[str, Any],
    places: Mapping[str, Place],
    images: Mapping[str, Image],
    found: Mapping[str, Found],
    asked: Asked,
    where: Where,
    claims: Claims,
    specs: Sequence[Spec],
) -> tuple[WriteJob, Writing]:
    """Return the job that writes outputs of one `tiled_map`; ``specs`` has its own, and those below."""
    first = next(iter(found.values()))
    spec = first.spec
    below = [other for other in specs if other is not spec]
    marked = all(place.target.marked for place in places.values())
    fingerprint = of_spec(spec, asked.version) if marked else {}
    members = [
        _member(found[key], array, places[key], images.get(key), fingerprint, numbers=asked.numbers)
        for key, array in arrays.items()
    ]
    # Where tiles may be left out, and in tasks that a graph of the user gets, errors are results.
    told = where.postponed or asked.on_error != "raise"
    sources = named_apart(spec.sources, uuid.uuid4().hex[:8], always=told)
    spec = replace(spec, sources=sources, on_error=asked.on_error, retries=where.retries)
    spec = replanned(spec, members, asked.memory_limit, where, below)
    for member in members:
        check_aligned(spec, member.number, member.layout.unit)
    # The versions in a record take as long to look up as a small image takes to compute.
    record: Any = record_of(fingerprint, spec.plan) if marked else {}
    destinations = {m.number: _destination(m, spec, record, claims) for m in members}
    target, title = members[0].place.target, _title(members[0].place.target)
    numberings = [
        Numbering.of(
            title, first.name, spec, m.number, destinations[m.number], m.layout,
            record or record_of({}, spec.plan), claims, where,
        )
        for m in members
        if asked.numbers and spec.outputs[m.number].stored is not None and destinations[m.number].open
    ]  # fmt: skip
    destinations |= {n.number: n.target for n in numberings}
    numbers = itertools.count(len(spec.outputs))
    pyramids = [_pyramid(m, destinations[m.number], fingerprint, numbers, claims) for m in members if m.image]
    memory = memory_of(asked.memory_limit, where)
    depths = {m.number: depth(chunks_of(spec, spec.outputs[m.number]), m.levels) for m in members}
    growing = {p.number: Growing(p.coarser(where.again), depths[p.number], memory) for p in pyramids}
    for n in numberings:
        n.growing = growing.pop(n.number, n.growing)
        n.coarser = {k: d for p in pyramids if p.number == n.number for k, d in p.named().items()}
    job = TileJob(
        title, first.name, spec, destinations | {n.number: n.pieces for n in numberings},
        claims=None if pyramids or numberings else claims,
        retries=where.guard, again=where.again, apart=bool(where.resources),
        coarser={n: d for p in pyramids for n, d in p.named().items()}, growing=growing,
        tables={n.number: n.tables for n in numberings}, later=[n.target for n in numberings],
    )  # fmt: skip
    for member in members:
        if spec.outputs[member.number].stored is not None and not destinations[member.number].open:
            forget_pieces(destinations[member.number])  # a run that ended there may have left them
    job.closing.shown = destinations[members[0].number]
    targets = {key: destinations[origin.number] for key, origin in found.items()}
    return _writing(job, target, claims, targets, members, pyramids, where, numberings)


def _member(
    found: Found,
    lazy: Any,
    place: Place,
    image: Image | None,
    fingerprint: Mapping[str, str],
    *,
    numbers: bool,
) -> Member:
    """Return an output with its layout; raise if the array to resume has another fingerprint."""
    place = place.compare(fingerprint)
    number, shape = found.number, lazy.shape
    free = image is not None and not found.spec.fixed
    dtype = found.output.stored if numbers and found.output.stored is not None else lazy.dtype

    def usual() -> Index:
        if image is not None and free:
            return image.chunks(shape, dtype.itemsize, source_chunks(found.spec, number))
        return default_chunks(found.spec, number, shape, dtype.itemsize)

    layout = place.layout(shape, dtype, usual)
    member = Member(number=number, lazy=lazy, dtype=dtype, place=place, layout=layout, image=image)
    return with_levels(member, fingerprint)


def _destination(member: Member, spec: Spec, record: Record, claims: Claims) -> Destination:
    """Return the array of an output and its marks, claimed.

    A unit counts as not done if a changed mask changes the tiles that run in it.
    """
    place = member.place
    array, there, run = claimed(place, member.lazy.shape, member.dtype, member.layout, record, claims)
    if there is None:
        return Destination(array)
    marks, done = Ledger(array).marks(there), Ledger(array).found(there)
    if isinstance(place, Continued):
        old = TilePlan.from_json(json.dumps(place.record["plan"]))
        if old.mask != spec.plan.mask:
            every = TileMask.all(spec.plan.grid_shape)
            changed = (old.mask or every) ^ (spec.plan.mask or every)
            done &= ~Units.of(spec, member.number, array).under(changed)
            # Marks first: with the old record, units of the new mask must never count.
            marks.keep(done)
            there |= {"plan": record["plan"]}
            Ledger(array).write_record(there)
    return Destination(array, done, there, run)


# -- any other dask array ---------------------------------------------------------------------------------


def _prepare_chunks(
    array: Any,
    place: Place,
    image: Image | None,
    asked: Asked,
    where: Where,
    claims: Claims,
    below: Sequence[Spec],
    dims: Sequence[Any] | None,
) -> tuple[WriteJob, Writing]:
    """Return the job that writes a dask array whose chunks are whole write units."""
    check_lengths(array)
    if isinstance(array._meta, np.ma.MaskedArray):
        raise TilingError(f"the dask array has {MASKED}")
    if asked.on_error != "raise":
        raise TilingError('on_error is for results of tiled_map; leave on_error="raise" for other arrays.')
    target = place.target
    if asked.rebuilt is not None:
        assert asked.version is not None
        fingerprint = Fingerprint({"version": asked.version})
    elif target.marked:
        fingerprint = of_dask(array, asked.version)
        fingerprint.take({"chunks of the dask array": digest(array.chunks)})
    else:
        fingerprint = Fingerprint()  # nothing is compared with it, and it would read all arrays in memory
    place = place.compare(fingerprint)
    layout = place.layout(array.shape, array.dtype, lambda: usual_units(array.chunks, array.dtype.itemsize))
    if asked.rebuilt is not None:
        array = asked.rebuilt(layout.unit)
    check_chunks(array.chunks, layout.unit, dims)
    member = Member(number=0, lazy=array, dtype=array.dtype, place=place, layout=layout, image=image)
    member = with_levels(member, fingerprint)
    record: Any = record_of(fingerprint) if target.marked else {}
    array_there, there, run = claimed(place, array.shape, array.dtype, layout, record, claims)
    done = None if there is None else Ledger(array_there).found(there)
    destination = Destination(array_there, done, there, run)
    pyramids = [_pyramid(member, destination, fingerprint, itertools.count(1), claims)] if image else []
    memory = memory_of(asked.memory_limit, where)
    growing = [Growing(p.coarser(where.again), depth(array.chunks, member.levels), memory) for p in pyramids]
    own = with_own_names(array, uuid.uuid4().hex[:8], always=where.postponed, change=with_narrowed_slices)
    # dask alone knows a better order, as for sums of an image and itself transposed; but it lets the seams of
    # results below grow with the image.
    job = ChunkJob(
        _title(target), own, destination, None if pyramids else claims, where.guard,
        where.again, {n: d for p in pyramids for n, d in p.named().items()}, growing[0] if growing else None,
        apart=bool(where.resources), in_order=bool(below),
    )  # fmt: skip
    job.threads = lanes(below, math.prod(array.numblocks), asked.memory_limit, where)
    return _writing(job, target, claims, {"": destination}, [member], pyramids, where)


# -- coarser levels of an image ---------------------------------------------------------------------------


def _pyramid(
    member: Member, below: Destination, fingerprint: Mapping[str, str], numbers: Iterator[int], claims: Claims
) -> Pyramid:
    """Return the arrays of an image, created and claimed, with the attributes of their group."""
    image = member.image
    assert image is not None
    assert below.done is not None
    attributes = image.attributes(member.levels, member.dtype)
    image.prune(attributes)
    destinations = []
    done, unit = below.done, member.layout.unit
    for level, place in zip(member.levels, member.level_places, strict=True):
        record = record_of(level.fingerprint(fingerprint, image.method, image.meta.nodata))
        array, there, run = claimed(place, level.shape, member.dtype, level.layout, record, claims)
        assert there is not None
        marks, own = Ledger(array).marks(there), Ledger(array).found(there)
        # A unit is believed only with all units below it.
        right = own & parents_done(level, done, unit)
        if (own != right).any():
            marks.keep(right)
        destinations.append(Destination(array, right, there, run))
        done, unit = right, level.layout.unit
    image.write(attributes, fresh=not isinstance(member.place, Continued))
    return Pyramid(
        number=member.number, below=below, levels=member.levels, method=image.method,
        nodata=image.meta.nodata,
        numbers=tuple(itertools.islice(numbers, len(member.levels))), destinations=tuple(destinations),
    )  # fmt: skip


def _writing(
    job: WriteJob,
    target: Target,
    claims: Claims,
    targets: Mapping[str, Destination],
    members: Sequence[Member],
    pyramids: Sequence[Pyramid],
    where: Where,
    numberings: Sequence[Numbering] = (),
) -> tuple[WriteJob, Writing]:
    """Return the job with what follows it."""
    images = [m.image for m in members if m.image is not None]
    tails = [Tail(job.title, job.name, pyramids, where.guard, where.again)] if pyramids else []
    rest = Rest([*numberings, *tails]) if numberings or tails else None
    if rest is not None:
        job.closing.after = rest.here
    return job, Writing(
        told=job.told, closing=job.closing, tiles=job.tiles, address=target.address, claims=claims,
        images=images, rest=rest, targets=targets,
    )  # fmt: skip
