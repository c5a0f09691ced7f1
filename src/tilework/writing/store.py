"""Writing to Zarr: every storage unit (shard, else chunk) whole, once, by one task, and resumable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import zarr

from tilework.engine.spec import Spec
from tilework.errors import TilingError, TilingWarning
from tilework.execution.local import delayed, run
from tilework.execution.progress import LOG, Progress
from tilework.execution.where import Where
from tilework.graph.build import find_spec, specs_below
from tilework.writing.code import digest
from tilework.writing.fingerprint import of_spec
from tilework.writing.jobs import ChunkJob, Job, TileJob
from tilework.writing.ledger import Marks, write_record
from tilework.writing.replan import remask, replanned
from tilework.writing.target import Target, record_of, refuse_source
from tilework.writing.units import Units, check_aligned, check_edges, lengths, units_of

__all__ = ["Writing", "prepare", "to_zarr"]


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
    """Compute ``out`` into Zarr and return the array or group that holds it.

    The result of `tiled_map` is planned anew against the write units, so that each is written whole, once,
    by the task that computed it. Any other dask array is written as it stands: its chunks must be whole
    write units. What a run finished is marked beside the data: called again, only the rest is computed.

    Parameters
    ----------
    out : dask array, or the tuple or dict of one `tiled_map`
        Several outputs are written in one pass: the function runs once per tile.
    store : path, URL, Zarr store, zarr.Group, zarr.Array, or array
        A given array must have the result's shape and dtype; it is written into as it is. numpy, memmap and
        h5py arrays are taken too, on threads, and not resumed.
    path : str, optional
        Where in the store.
    chunks, shards : tuple of int, samples per axis of the result, optional
        For several outputs also a dict by key. Default: those of the array that is there; the source's chunks
        where they divide the blocks; else about 4 MB.
    overwrite : bool
        Whether what is there may be deleted.
    resume : bool
        Whether to go on with what an earlier call wrote of the same result.
    version : str, optional
        Says that the function is the same one, instead of its code; to be changed when the function is.
    on_error : "raise", "fill", or callable
        A tile that fails ends the run, with an error that names it; or it is left out and its samples are
        ``fill_value`` where no other tile has weight, the units that it touches are not marked as done, and
        a warning and the attributes list it. A callable gets tile and exception, and may raise.
    retries : int
        Further attempts at a tile or task that fails.
    progress : bool, "auto" or callable
        A bar that counts tiles; "auto": in a terminal and in a notebook, else a line a minute to the log
        "tilework". A callable gets the number of tiles that are done, and of all.
    memory_limit : int or str, bytes per process, optional
        Default: what the workers of the cluster have, or half of this machine's.
    client : distributed.Client, optional
        The cluster to run on; default: the active client, else dask's scheduler.
    scheduler : str or callable, optional
        Another of dask's schedulers: "threads", "processes", "synchronous".
    resources : dict, optional
        What a worker of a cluster must offer to a task that calls the function: ``{"GPU": 1}``.
    priority : int
        Of the tasks, on a cluster; more is sooner.
    compute : bool
        False: return a `dask.delayed.Delayed` that writes when it is computed, in one graph.
    **options
        For `zarr.create_array`: compressors, fill_value, dimension_names, attributes, zarr_format...

    Returns
    -------
    zarr.Array, or zarr.Group with members by key or "0", "1"

    Raises
    ------
    AlignmentError
        When chunks cannot be whole write units.
    MemoryBudgetError
        When no block and no slab fits into memory; says what would.
    TilingError
        When something else is there, or the result of other parts, and ``overwrite`` is false; when the store
        holds the source, or when members of different calls are given.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.negative, np.arange(100.0).reshape(10, 10), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> written.chunks, float(written[9, 9])
    ((5, 5), -99.0)
    """
    where = Where.find(scheduler, client, retries=retries, resources=resources, priority=priority)
    asked = Asked(path, chunks, shards, overwrite, resume, version, on_error, memory_limit, options)
    writing = prepare(out, store, asked, where)
    if not compute:
        return delayed(writing.job, where)
    run([writing.job], where, progress=progress, title=writing.job.title)
    return writing.end()


@dataclass(frozen=True, slots=True)
class Asked:
    """How a result is to be written, as asked for."""

    path: str | None = None
    chunks: Any = None
    shards: Any = None
    overwrite: bool = False
    resume: bool = True
    version: str | None = None
    on_error: Any = "raise"
    memory_limit: Any = None
    options: Mapping[str, Any] | None = None

    def target(self, store: Any, key: str) -> Target:
        """Return where one output goes."""
        path = "/".join(p for p in (self.path, key) if p)
        chunks, shards = _pick(self.chunks, key), _pick(self.shards, key)
        return Target(store, path, chunks, shards, self.overwrite, self.resume, self.options or {})


def _pick(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, value.get(int(key)) if key.isdigit() else None)
    return value


@dataclass(slots=True)
class Writing:
    """A job together with what its end needs."""

    job: Job
    targets: Mapping[str, Target]
    result: Callable[[], Any]
    """Returns the array or group."""
    records: Mapping[int, dict[str, Any]]
    """What the attributes of each array say."""

    def end(self, *, warn: bool = True) -> Any:
        """Say which tiles failed, and return the array or group."""
        failed = [f"{f.tile}: {f.error}" for f in self.job.failures]
        for number, record in self.records.items():
            write_record(self.job.arrays[number], record | ({"failed": failed} if failed else {}))
        if failed and warn:
            warnings.warn(
                f"{len(failed)} tiles failed; their samples are fill_value where no other tile has weight, "
                f"and the next call computes the units that they touch again. The first: {failed[0]}",
                TilingWarning,
                stacklevel=3,
            )
        return self.result()


def prepare(out: Any, store: Any, asked: Asked, where: Where) -> Writing:
    """Return what writes ``out``: everything is checked and created, nothing computed."""
    if asked.on_error not in ("raise", "fill") and not callable(asked.on_error):
        raise TilingError(f'on_error must be "raise", "fill" or a callable; got {asked.on_error!r}.')
    several = isinstance(out, tuple | list | Mapping)
    members: dict[str, Any] = (
        {str(k): v for k, v in (out.items() if isinstance(out, Mapping) else enumerate(out))}
        if several
        else {"": out}
    )
    if not members:
        raise TilingError("there is nothing to write: out is empty.")
    found = {key: find_spec(array) for key, array in members.items()}
    names = {None if f is None else f.name for f in found.values()}
    if several and (None in names or len(names) > 1):
        raise TilingError(
            "a tuple or dict must be the unmodified result of one tiled_map; write the others one by one."
        )
    for key, array in members.items():
        if not hasattr(array, "dask"):
            raise TypeError(f"out must be a dask array; got {type(array).__name__} for {key!r}.")
    targets = {key: asked.target(store, key) for key in members}
    first = next(iter(found.values()))
    for spec in specs_below(out) if first is None else (first.spec,):
        refuse_source(spec, targets.values())
    for target in targets.values():
        target.look()
    if first is None:
        return _prepare_chunks(out, targets[""], asked, where)
    writing = _prepare_tiles(members, first.spec, first.name, targets, asked, where)
    if several:
        writing.result = lambda: _group(store, asked.path or "")
    return writing


def _group(store: Any, path: str) -> Any:
    """Return the group that the members of a result were written into."""
    if isinstance(store, zarr.Group):
        return store[path] if path else store
    return zarr.open_group(store, path=path, mode="r+")


# -- the result of tiled_map ------------------------------------------------------------------------------


def _prepare_tiles(
    members: Mapping[str, Any],
    spec: Spec,
    name: str,
    targets: Mapping[str, Target],
    asked: Asked,
    where: Where,
) -> Writing:
    numbers = {key: spec.names(name).index(array.name) for key, array in members.items()}
    marked = all(t.marked for t in targets.values())
    fingerprint = of_spec(spec, asked.version) if marked else {}
    layouts = {}
    for key, array in members.items():
        targets[key].compare(fingerprint)
        layouts[key] = targets[key].layout(spec, numbers[key], array.shape, array.dtype.itemsize)
    spec = replace(
        replanned(spec, numbers, layouts, targets, asked.memory_limit, where),
        on_error=asked.on_error,
        retries=where.retries,
    )
    for key, (chunks, shards) in layouts.items():
        check_aligned(spec, numbers[key], shards or chunks)
    record = record_of(fingerprint, spec.plan) if marked else {}
    arrays = {
        numbers[key]: targets[key].create(members[key].shape, members[key].dtype, *layouts[key], record)
        for key in members
    }
    units, done, records = {}, {}, {}
    for key in members if marked else ():
        n, (chunks, shards) = numbers[key], layouts[key]
        units[n] = Units(spec, n, members[key].shape, shards or chunks)
        old = targets[key].record
        done[n] = Marks(arrays[n]).read()
        records[n] = record if old is None else {k: v for k, v in old.items() if k != "failed"}
        if old is not None and remask(spec, units[n], arrays[n], done[n], old):
            records[n] = record
    upstream = _upstream(members, name)
    title = f"to_zarr {next(iter(targets.values())).store}"[:60]
    job = TileJob(title, name, spec, upstream, arrays, units, done, where.guard, bool(where.resources))
    _say_found(job)
    return Writing(job, targets, lambda: arrays[numbers[next(iter(members))]], records)


def _upstream(members: Mapping[str, Any], name: str) -> dict[Any, Any]:
    """Return the graphs of the dask arrays that are read."""
    graph: dict[Any, Any] = {}
    for array in members.values():
        for layer, content in array.dask.layers.items():
            if layer != name:
                graph.update(content)
    return graph


def _say_found(job: Job) -> None:
    done, units = job.found
    if done:
        LOG.info("%s: %d of %d units were found done; %d tiles are to run", job.title, done, units, job.tiles)
        job.title = f"{job.title} ({done} of {units} units found done)"


# -- any other dask array ---------------------------------------------------------------------------------


def _prepare_chunks(array: Any, target: Target, asked: Asked, where: Where) -> Writing:
    """Prepare the writing of a dask array whose chunks are whole write units."""
    if any(math.isnan(n) for n in array.shape):
        raise TilingError("the dask array has unknown chunk sizes; call compute_chunk_sizes() on it first.")
    if asked.on_error != "raise":
        raise TilingError('on_error is for results of tiled_map; leave on_error="raise" for other arrays.')
    fingerprint = {"version": asked.version} if asked.version is not None else {"dask name": array.name}
    fingerprint |= {"chunks of the dask array": digest(array.chunks)}
    target.compare(fingerprint)
    chunks = lengths("chunks", target.chunks, array.shape) or tuple(c[0] for c in array.chunks)
    shards = lengths("shards", target.shards, array.shape)
    if target.there is not None:
        chunks, shards = units_of(target.there)
    unit = shards or chunks
    for axis, (sizes, size) in enumerate(zip(array.chunks, unit, strict=True)):
        check_edges(sizes, size, axis)
    record = record_of(fingerprint)
    written = target.create(array.shape, array.dtype, chunks, shards, record)
    done = Marks(written).read() if target.marked else None
    job = ChunkJob(f"to_zarr {target.store}"[:60], array, written, done, unit, where.guard)
    _say_found(job)
    records = {} if not target.marked else {0: target.record or record}
    return Writing(job, {"": target}, lambda: written, records)
