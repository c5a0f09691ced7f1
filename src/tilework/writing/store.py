"""Writing into Zarr: every write unit (shard, else chunk) whole, once, by one task, and resumable.

`prepare` makes the job of one result, in this order:

1. Look at the `Target` of each output; raise if it must not be written.
2. Compare the fingerprint with that of an array to resume.
3. Choose the layout of write units, then blocks that are whole units and fit into memory.
4. Create the arrays and read their done-marks. Nothing is changed before this step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tilework._checks import flag, of_type, one_of, parse_bytes
from tilework._types import Index
from tilework.engine.spec import Spec
from tilework.errors import GridError, MemoryBudgetError, TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import delayed, run
from tilework.execution.progress import LOG, Progress, check_progress
from tilework.execution.where import Where
from tilework.graph.build import Found, bare, find_spec, graph_below, lowered, specs_below
from tilework.identity.digests import digest
from tilework.identity.location import read_by
from tilework.plan.blocks import BlockRequest, choose_blocks, is_fair
from tilework.plan.cost import peak_bytes
from tilework.plan.decoding import with_cache
from tilework.plan.tile_plan import TilePlan
from tilework.writing.claim import Claims
from tilework.writing.closing import Destination, GroupAt
from tilework.writing.fingerprint import names_to_accept, of_spec
from tilework.writing.jobs import ChunkJob, TileJob, WriteJob
from tilework.writing.ledger import Ledger, Record, record_of
from tilework.writing.target import Continued, Place, Target
from tilework.writing.units import (
    Layout,
    Units,
    check_aligned,
    check_edges,
    default_chunks,
    encoding_bytes,
    input_unit,
)

__all__ = ["Asked", "Writing", "by_key", "prepare", "to_zarr"]


def to_zarr(
    out: Any,
    store: Any,
    *,
    path: str | None = None,
    chunks: Any = None,
    shards: Any = None,
    overwrite: bool = False,
    resume: bool = True,
    version: str | None = None,
    accept: Sequence[str] = (),
    on_error: str | Callable[[Any, Exception], Any] = "raise",
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    client: Any = None,
    scheduler: Any = None,
    resources: Mapping[str, float] | None = None,
    priority: int = 0,
    compute: bool = True,
    **options: Any,
) -> Any:
    """Compute a result into Zarr; return the array or group that holds it.

    A write unit is a shard, or a chunk of an array without shards. A result of `tiled_map` gets a new plan,
    so that each write unit is written whole, once, by the task that computed it. The chunks of any other dask
    array must be whole write units. Finished units are marked in the store; a second call computes only the
    others.

    Parameters
    ----------
    out : dask array, or the tuple or dict of one `tiled_map`
        Several outputs are written in one pass: the function runs once per tile. Of an xarray DataArray the
        dask array is written, without coordinates and attributes.
    store : path, URL, Zarr store, zarr.Group, zarr.Array, or array
        An array must have the shape and dtype of the result and keeps its layout. Arrays of numpy and h5py,
        and memory maps, work too, with threads; they cannot be resumed.
    path : str, optional
        Path in the store.
    chunks, shards : int or tuple of int, samples per axis of the result, optional
        Shape of the chunks and shards, samples per axis of the result; a dict by key for several outputs.
        Default: those of an existing array; else the chunks of the source if they divide the blocks; else
        chunks of about 4 MB.
    overwrite : bool
        Whether existing data may be deleted.
    resume : bool
        Whether to resume the same result from an earlier call.
    version : str, optional
        Identifies the function in place of its code. Change it when the function changes.
    accept : sequence of str
        Names of parts of the fingerprint, as the error about a changed result gives them. The result is
        resumed although they changed, and its record lists what was accepted.
    on_error : "raise", "fill", or callable
        Treatment of a tile that fails. "raise" ends the run with an error that names the tile. "fill" leaves
        the tile out: its samples are ``fill_value`` where no other tile has weight, the units that it touches
        are not marked as done, and a warning and the attributes list it. A callable gets the tile and the
        exception; it may raise, or return to leave the tile out.
    retries : int
        Further attempts at a tile or task that fails.
    progress : bool, "auto" or callable
        Whether to show a bar that counts tiles. "auto" shows it in a terminal and in a notebook, and
        otherwise logs a line a minute to the logger "tilework". A callable gets the number of finished tiles
        and the total.
    memory_limit : int or str, bytes per process, optional
        Default: the limit of the cluster's workers, or half the memory of this machine.
    client : distributed.Client, optional
        Client of the cluster to run on. Default: the active client, else dask's scheduler.
    scheduler : str or callable, optional
        Another scheduler of dask: "threads", "processes", "synchronous".
    resources : dict, optional
        Resources that a worker of a cluster must offer to a task that calls the function: ``{"GPU": 1}``.
    priority : int
        Priority of the tasks on a cluster; higher runs sooner.
    compute : bool
        False: return a `dask.delayed.Delayed` that writes in one graph when it is computed. Its tasks make
        the retries, and the last one warns of failed tiles, in its process. ``client``, ``scheduler``,
        ``resources``, ``priority`` and ``progress`` are refused: give them where it is computed.
    **options
        Arguments of `zarr.create_array`: compressors, fill_value, dimension_names, attributes, zarr_format...

    Returns
    -------
    zarr.Array, shape and dtype of the result, chunks as above
        For several outputs a `zarr.Group` of such arrays, by key or "0", "1"... The array that was given, if
        ``store`` is one. With ``compute=False`` a `Delayed`.

    Raises
    ------
    AlignmentError
        If the blocks of the result cannot be whole write units, or an existing array has other chunks.
    MemoryBudgetError
        If no blocks fit into memory. The message names a sufficient limit.
    TilingError
        If the store holds other data, or a result of another call, and ``overwrite`` is false; if it holds
        the source; if ``out`` is empty or has members of different calls.
    TypeError
        If ``out`` is not a dask array, or a flag is not True or False.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.negative, np.arange(100.0).reshape(10, 10), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> written.chunks, float(written[9, 9])
    ((5, 5), -99.0)
    """
    overwrite, resume, compute = (
        flag("overwrite", overwrite),
        flag("resume", resume),
        flag("compute", compute),
    )
    check_progress(progress)
    where = Where.find(scheduler, client, retries=retries, resources=resources, priority=priority)
    if not compute:
        where = where.later(client=client, scheduler=scheduler, progress=progress)
    asked = Asked(
        path=path, chunks=chunks, shards=shards, overwrite=overwrite, resume=resume, version=version,
        accept=accept, on_error=on_error, memory_limit=memory_limit, options=options,
    )  # fmt: skip
    with outside_of_the_pool(where.client if compute else None):
        writing = prepare(out, store, asked, where)
        if not compute:
            return delayed(writing.job)
        try:
            run([writing.job], where, progress=progress, title=writing.job.title)
        finally:
            writing.job.release()
        return writing.end()


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
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("path", self.path), ("version", self.version)):
            if value is not None:
                of_type(name, value, str, "a string")
        names_to_accept(self.accept)

    def target(self, store: Any, key: str) -> Target:
        """Return the target of the output ``key``."""
        return Target(
            store=store, path="/".join(p for p in (self.path, key) if p), chunks=_of_key(self.chunks, key),
            shards=_of_key(self.shards, key), overwrite=self.overwrite, resume=self.resume,
            accept=names_to_accept(self.accept), options=self.options,
        )  # fmt: skip


def _of_key(value: Any, key: str) -> Any:
    """Return an argument for one output, if it was given by key."""
    if isinstance(value, Mapping):
        return value.get(key, value.get(int(key)) if key.isdigit() else None)
    return value


@dataclass(frozen=True, slots=True)
class Writing:
    """A job, and the steps after it."""

    job: WriteJob
    """The job that writes."""
    address: str
    """Address of the first array, for messages."""

    def end(self, *, quiet: bool = False) -> Any:
        """Warn of failed tiles, and return the array or group."""
        closing = self.job.closing
        if not quiet:
            closing.warn(self.job.told)
        return closing.result()


def prepare(
    out: Any, store: Any, asked: Asked, where: Where, given: Mapping[str, Any] | None = None
) -> Writing:
    """Return the job that writes ``out``, after all checks; create the arrays, but compute nothing.

    ``given`` holds an array to write into for each member, in place of a store of all.

    The arrays are claimed for the run until the job is closed; for a run that somebody else computes, only
    until they are created.
    """
    if not callable(asked.on_error):
        one_of("on_error", asked.on_error, ("raise", "fill"))
    arrays = by_key(out)
    several = isinstance(out, tuple | list | Mapping)
    found = {key: find_spec(array) for key, array in arrays.items()}
    calls = {None if f is None else f.name for f in found.values()}
    if several and (None in calls or len(calls) > 1):
        raise TilingError(
            "a tuple or dict as out must be the unmodified result of one tiled_map; write others one by one."
        )
    for key, array in arrays.items():
        if not hasattr(array, "dask"):
            raise TypeError(_not_lazy(array, key))
    first = next(iter(found.values()))
    specs = specs_below(arrays[""]) if first is None else (first.spec,)
    sources = [source for spec in specs for source in spec.sources]
    sources += [source for array in arrays.values() for source in read_by(array)]
    stores = given or dict.fromkeys(arrays, store)
    places = {key: asked.target(stores[key], key).look(sources) for key in arrays}
    claims = Claims()
    try:
        if first is None:
            writing = _prepare_chunks(lowered(arrays[""]), places[""], asked, where, claims)
        else:
            origins = {key: f for key, f in found.items() if f is not None}  # all, or several were refused
            writing = _prepare_tiles(arrays, places, origins, asked, where, claims)
    except BaseException:
        claims.release()
        raise
    if where.postponed:
        claims.release()
    if several and given is None:
        writing.job.closing.group = GroupAt(store, asked.path or "", asked.options.get("storage_options"))
    if writing.job.done:
        done = f"{writing.job.done} of {writing.job.units} units"
        LOG.info("%s: %s were found done; %d tiles are to run", writing.job.title, done, writing.job.tiles)
        writing.job.title += f" ({done} found done)"
    return writing


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
    return {key: bare(array) for key, array in arrays.items()}


def _not_lazy(array: Any, key: str) -> str:
    """Return the message for an ``out`` that is no dask array."""
    what = f"out{f'[{key!r}]' if key else ''} must be a dask array, such as a result of tiled_map; "
    if hasattr(array, "variable"):
        return f"{what}this DataArray is not chunked: give array.chunk(), or write it with xarray."
    if isinstance(array, np.ndarray):
        return f"{what}a numpy array is computed already: zarr.save_array(store, array) writes it."
    return f"{what}got {type(array).__name__}."


def _title(target: Target) -> str:
    return f"to_zarr {target.store}"[:60] if target.marked else "compute"  # not the values of an array


# -- the result of tiled_map ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """One output to be written."""

    number: int
    """Number of the output."""
    lazy: Any
    """The dask array."""
    place: Place
    """Its target, and the data that are there."""
    layout: Layout
    """Chunks and shards of the array."""


def _prepare_tiles(
    arrays: Mapping[str, Any],
    places: Mapping[str, Place],
    found: Mapping[str, Found],
    asked: Asked,
    where: Where,
    claims: Claims,
) -> Writing:
    """Return the job that writes outputs of one `tiled_map`."""
    first = next(iter(found.values()))
    spec = first.spec
    marked = all(place.target.marked for place in places.values())
    fingerprint = of_spec(spec, asked.version) if marked else {}
    members = [_member(found[key], array, places[key], fingerprint) for key, array in arrays.items()]
    spec = replace(
        _replanned(spec, members, asked.memory_limit, where), on_error=asked.on_error, retries=where.retries
    )
    for member in members:
        check_aligned(spec, member.number, member.layout.unit)
    # The versions in a record take as long to look up as a small image takes to compute.
    record: Any = record_of(fingerprint, spec.plan) if marked else {}
    destinations = {m.number: _destination(m, spec, record, claims) for m in members}
    target = members[0].place.target
    job = TileJob(
        _title(target), first.name, spec, destinations,
        upstream=graph_below(members[0].lazy, first), claims=claims, retries=where.guard, again=where.again,
        apart=bool(where.resources),
    )  # fmt: skip
    return Writing(job, target.address)


def _member(found: Found, lazy: Any, place: Place, fingerprint: Mapping[str, str]) -> _Member:
    """Return an output with its layout; raise if the array to resume has another fingerprint."""
    place = place.compare(fingerprint)
    number, shape = found.number, lazy.shape
    layout = place.layout(shape, lambda: default_chunks(found.spec, number, shape, lazy.dtype.itemsize))
    return _Member(number, lazy, place, layout)


def _destination(member: _Member, spec: Spec, record: Record, claims: Claims) -> Destination:
    """Return the array of an output and its marks, claimed.

    A unit counts as not done if a changed mask changes the tiles that run in it.
    """
    place = member.place
    array, there, run = _claimed(place, member.lazy, member.layout, record, claims)
    if there is None:
        return Destination(array)
    marks = Ledger(array).marks(there)
    done = marks.settle()
    if isinstance(place, Continued):
        old = TilePlan.from_json(json.dumps(place.record["plan"]))
        if old.mask != spec.plan.mask:
            before, now = (True if plan.runs is None else plan.runs for plan in (old, spec.plan))
            grid, units = spec.plan.grid, Units.of(spec, member.number, array)
            for position in np.argwhere(np.not_equal(before, now)):
                for unit in units.of_tile(grid[grid.number(tuple(map(int, position)))]):
                    done[unit] = False
            # Marks first: with the old record, units of the new mask must never count.
            marks.keep(done)
            there |= {"plan": record["plan"]}
            Ledger(array).write_record(there)
    return Destination(array, done, there, run)


def _claimed(
    place: Place, lazy: Any, layout: Layout, record: Record, claims: Claims
) -> tuple[Any, Record | None, str]:
    """Claim the place of an output and create its array; return it, its record and the id of the run."""
    target = place.target
    if not target.marked:
        return place.create(lazy.shape, lazy.dtype, layout, record)[0], None, ""
    claims.take(target.objects, target.address)
    array, there = place.create(lazy.shape, lazy.dtype, layout, record)
    return array, there, claims.run


def _replanned(spec: Spec, members: Sequence[_Member], limit: Any, where: Where) -> Spec:
    """Return ``spec`` with blocks that are whole write units and fit into memory, for most threads."""
    memory = where.memory if limit is None else parse_bytes("memory_limit", limit)
    units = [input_unit(spec, m.number, m.layout.unit) for m in members]
    unit = tuple(math.lcm(*column) for column in zip(*units, strict=True))
    records = [m.place.record for m in members if isinstance(m.place, Continued)]
    # Another block shape would change the order of summation.
    block = tuple(records[0]["plan"]["block"]) if records else None
    encoding = max(encoding_bytes(m.layout.unit, m.lazy.dtype.itemsize) for m in members)
    request = BlockRequest(
        block, None, unit, memory, "auto", slabs=True, workers=where.at_once, encoding=encoding
    )
    refused: MemoryBudgetError | None = None
    for threads in where.fewer():
        plan = replace(spec.plan, threads=threads, cache_bytes=0)
        try:
            if block is not None:
                plan = _resumed(plan, request)
            elif (
                limit is not None
                or not _fits(plan, unit, memory - threads * encoding)
                or _too_few(spec, where)
            ):
                plan = choose_blocks(plan, request)
            else:
                plan = with_cache(plan, memory - threads * encoding - peak_bytes(plan))
        except MemoryBudgetError as error:
            refused = error
        else:
            return replace(spec, plan=plan)
    assert refused is not None
    raise refused


def _fits(plan: TilePlan, unit: Index, memory: int) -> bool:
    """Return whether the blocks of the lazy array are whole write units and fit into memory."""
    whole = all(b == n or b % u == 0 for b, n, u in zip(plan.block, plan.shape, unit, strict=True))
    return whole and peak_bytes(plan) <= memory


def _too_few(spec: Spec, where: Where) -> bool:
    """Return whether workers of a cluster would wait for a few large blocks.

    Local schedulers keep the blocks of the lazy array, and so its order of summation.
    """
    return where.client is not None and not spec.fixed and not is_fair(spec.plan, where.at_once)


def _resumed(plan: TilePlan, request: BlockRequest) -> TilePlan:
    """Return the plan with the given blocks in which each tile runs once, if there is one."""
    try:
        return choose_blocks(plan, replace(request, reuse="share"))
    except (GridError, MemoryBudgetError):
        return choose_blocks(plan, request)


# -- any other dask array ---------------------------------------------------------------------------------


def _prepare_chunks(array: Any, place: Place, asked: Asked, where: Where, claims: Claims) -> Writing:
    """Return the job that writes a dask array whose chunks are whole write units."""
    if any(math.isnan(n) for n in array.shape):
        raise TilingError("the dask array has unknown chunk sizes; call compute_chunk_sizes() on it first.")
    if asked.on_error != "raise":
        raise TilingError('on_error is for results of tiled_map; leave on_error="raise" for other arrays.')
    target = place.target
    fingerprint = {"version": asked.version} if asked.version is not None else {"dask name": array.name}
    fingerprint |= {"chunks of the dask array": digest(array.chunks)}
    place = place.compare(fingerprint)
    layout = place.layout(array.shape, lambda: tuple(sizes[0] for sizes in array.chunks))
    for axis, (sizes, unit) in enumerate(zip(array.chunks, layout.unit, strict=True)):
        check_edges(sizes, unit, axis)
    array_there, there, run = _claimed(place, array, layout, record_of(fingerprint), claims)
    done = None if there is None else Ledger(array_there).marks(there).settle()
    destination = Destination(array_there, done, there, run)
    job = ChunkJob(_title(target), array, destination, layout.unit, claims, where.guard, where.again)
    return Writing(job, target.address)
