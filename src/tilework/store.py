"""Writing to Zarr: every storage unit (shard, else chunk) whole, once, by one task."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import Task, TaskRef

from tilework.alignment import (
    check_aligned,
    check_edges,
    input_unit,
    lengths,
    region,
    storage,
    units_of,
)
from tilework.arguments import parse_bytes
from tilework.blocks import BlockRequest, choose_blocks
from tilework.errors import TilingError
from tilework.graph import Names, block_tasks, find_spec, specs_below
from tilework.run import execute
from tilework.source import ZarrSource
from tilework.spec import Index, Spec

__all__ = ["to_zarr"]


def to_zarr(
    out: Any,
    store: Any,
    *,
    path: str | None = None,
    chunks: Any = None,
    shards: Any = None,
    overwrite: bool = False,
    progress: bool | str = "auto",
    memory_limit: int | str | None = None,
    **options: Any,
) -> Any:
    """Compute ``out`` into Zarr and return the array or group that holds it.

    The result of `tiled_map` is planned anew against the write units, so that each is written whole, once,
    by the task that computed it. Any other dask array is written as it stands: its chunks must be whole
    write units.

    Parameters
    ----------
    out : dask array, or the tuple or dict of one `tiled_map`
        Several outputs are written in one pass: the function runs once per tile.
    store : path, URL, Zarr store, zarr.Group, zarr.Array, or array
        A given array must have the result's shape and dtype; it is written into as it is. numpy, memmap and
        h5py arrays are taken too, on threads.
    path : str, optional
        Where in the store.
    chunks, shards : tuple of int, samples per axis of the result, optional
        For several outputs also a dict by key. Default: the source's chunks where they divide the blocks,
        else about 4 MB.
    overwrite : bool
        Whether what is there may be deleted.
    progress : bool or "auto"
        A bar that counts tiles.
    memory_limit : int or str, optional
        As in `tiled_map`, for the plan of the writing.
    **options
        For `zarr.create_array`: compressors, fill_value, dimension_names, attributes, zarr_format...

    Returns
    -------
    zarr.Array, or zarr.Group with members by key or "0", "1"

    Raises
    ------
    AlignmentError
        When chunks cannot be whole write units.
    TilingError
        When something is there and ``overwrite`` is false, when the store holds the source, or when members
        of different calls are given.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.negative, np.arange(100.0).reshape(10, 10), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> written.chunks, float(written[9, 9])
    ((5, 5), -99.0)
    """
    several = isinstance(out, tuple | list | Mapping)
    members: dict[str, Any] = (
        {str(k): v for k, v in (out.items() if isinstance(out, Mapping) else enumerate(out))}
        if several
        else {"": out}
    )
    if not members:
        raise TilingError("there is nothing to write: out is empty.")
    found = {key: find_spec(array) for key, array in members.items()}
    names = {None if f is None else f[2] for f in found.values()}
    if several and (None in names or len(names) > 1):
        raise TilingError(
            "a tuple or dict must be the unmodified result of one tiled_map; write the others one by one."
        )
    for key, array in members.items():
        if not hasattr(array, "dask"):
            raise TypeError(f"out must be a dask array; got {type(array).__name__} for {key!r}.")
    requests = {
        key: Target(
            store,
            "/".join(p for p in (path, key) if p),
            _pick(chunks, key),
            _pick(shards, key),
            overwrite,
            options,
        )
        for key in members
    }
    first = next(iter(found.values()))
    if first is None:
        for spec in specs_below(out):
            _refuse_source(spec, requests.values())
        return _write_chunks(out, requests[""], progress)
    spec = first[0]
    _refuse_source(spec, requests.values())
    numbers = {key: _number(spec, array, first[2]) for key, array in members.items()}
    written = _write_tiles(members, numbers, spec, first[2], requests, memory_limit, progress)
    return zarr.open_group(store, path=path or "", mode="r+") if several else written[""]


@dataclass(frozen=True, slots=True)
class Target:
    """Where one array goes, as asked for."""

    store: Any
    path: str
    chunks: Any
    shards: Any
    overwrite: bool
    options: Mapping[str, Any]

    def existing(self) -> Any:
        """Return the array that was given, if the store is one."""
        array = all(hasattr(self.store, name) for name in ("shape", "dtype", "__setitem__"))
        return self.store if array else None

    def create(self, shape: Index, dtype: np.dtype[Any], chunks: Index, shards: Index | None) -> Any:
        """Return the array to write into."""
        given = self.existing()
        if given is not None:
            if given.shape != shape or given.dtype != dtype:
                raise TilingError(
                    f"the array to write into has shape {given.shape} and dtype {given.dtype}; the result "
                    f"has {shape} and "
                    f"{dtype}."
                )
            return given
        arguments: dict[str, Any] = {
            "shape": shape, "dtype": dtype, "chunks": chunks, "shards": shards, "overwrite": self.overwrite,
        } | dict(self.options)  # fmt: skip
        try:
            if isinstance(self.store, zarr.Group):
                return self.store.create_array(self.path, **arguments)
            store = str(self.store) if isinstance(self.store, Path) else self.store
            return zarr.create_array(store, name=self.path or None, **arguments)
        except (zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError) as error:
            raise TilingError(
                f"{self.store!r} already holds data at {self.path or '/'!r}; overwrite=True deletes it."
            ) from error


def _pick(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, value.get(int(key)) if key.isdigit() else None)
    return value


def _number(spec: Spec, array: Any, name: str) -> int:
    names = Names(name)
    return next(n for n in range(len(spec.layers)) if names.output(spec, n) == array.name)


def _refuse_source(spec: Spec, targets: Any) -> None:
    """Refuse to write over the array that is read."""
    for target in targets:
        given = target.existing()
        if given is not None and not isinstance(given, zarr.Array):
            _refuse_memory(spec, given)
            continue
        where = str(given.store_path) if given is not None else str(target.store).rstrip("/")
        if isinstance(target.store, zarr.Group):
            where = str(target.store.store_path)
        own = _place(f"{where}/{target.path}".rstrip("/") if given is None else where)
        for source in spec.sources:
            read = source.handle.store_path if isinstance(source, ZarrSource) else getattr(source, "path", "")
            if read and f"{_place(str(read))}/".startswith(f"{own}/"):
                raise TilingError(f"{own} holds the array that is read; write somewhere else.")


def _place(where: str) -> str:
    """Return a store's address; that of a local folder absolute and without links, as there are many."""
    local = where.removeprefix("file://")
    return where if "://" in local else str(Path(local).resolve())


def _refuse_memory(spec: Spec, array: Any) -> None:
    for source in spec.sources:
        read = source.handle
        if (
            isinstance(array, np.ndarray)
            and isinstance(read, np.ndarray)
            and np.may_share_memory(array, read)
        ):
            raise TilingError("the array to write into is the one that is read; write into another.")


# -- the result of tiled_map ------------------------------------------------------------------------------


def _write_tiles(
    members: Mapping[str, Any],
    numbers: Mapping[str, int],
    spec: Spec,
    name: str,
    targets: Mapping[str, Target],
    memory_limit: Any,
    progress: bool | str,
) -> dict[str, Any]:
    layouts = {}
    for key, array in members.items():
        layouts[key] = storage(spec, numbers[key], array, targets[key])
    units = [input_unit(spec, numbers[key], shards or chunks) for key, (chunks, shards) in layouts.items()]
    unit = tuple(math.lcm(*column) for column in zip(*units, strict=True))
    limit = None if memory_limit is None else parse_bytes("memory_limit", memory_limit)
    aligned = all(
        b == a.extent or b % u == 0 for b, a, u in zip(spec.plan.block, spec.plan.axes, unit, strict=True)
    )
    if not aligned or limit is not None:
        spec = replace_plan(spec, choose_blocks(spec.plan, BlockRequest(None, None, unit, limit, "auto")))
    for key, (chunks, shards) in layouts.items():
        check_aligned(spec, numbers[key], shards or chunks)
    arrays = {
        key: targets[key].create(members[key].shape, members[key].dtype, *layouts[key]) for key in members
    }
    writer = Writer({numbers[key]: array for key, array in arrays.items()})
    run = _run_name(name)
    own = dict(block_tasks(spec, Names(run), _dask_sources(members, spec), writer))
    graph = _with_sources(own, members, name)
    prefix = f"{run}-write"
    weights = {
        key: spec.plan.owned(_index_of(node))
        for key, node in own.items()
        if isinstance(key, tuple) and key[0] == prefix
    }
    title = f"to_zarr {next(iter(targets.values())).store}"[:60]
    execute(graph, weights, progress=progress, title=title)
    return arrays


def _run_name(name: str) -> str:
    """Return a name for the tasks of one writing.

    A cluster would take tasks of an equal name, to another store or of a run that failed, for done.
    """
    return f"{name}-{uuid.uuid4().hex[:8]}"


def replace_plan(spec: Spec, plan: Any) -> Spec:
    """Return ``spec`` under another plan."""
    return replace(spec, plan=plan, _uses={})


def _index_of(task: Any) -> Index:
    """Return the block number among the arguments of a last task: writer, maker, spec, number."""
    return tuple(task.args[3])


def _dask_sources(members: Mapping[str, Any], spec: Spec) -> list[Any]:
    """Return stand-ins for the dask sources: tasks refer to them by name only."""
    del members
    return [
        _Named(s.token[1]) if isinstance(s.token, tuple) and s.token[0] == "dask" else None
        for s in spec.sources
    ]


@dataclass(frozen=True, slots=True)
class _Named:
    name: str


def _with_sources(own: dict[Any, Any], members: Mapping[str, Any], name: str) -> dict[Any, Any]:
    """Return the writing tasks together with the graphs of the dask arrays that they read."""
    graph: dict[Any, Any] = {}
    for array in members.values():
        for layer, content in array.dask.layers.items():
            if layer != name:
                graph.update(content)
    graph.update(own)
    return graph


class Writer:
    """Writes blocks of the outputs to their arrays; the last step of each task."""

    def __init__(self, arrays: Mapping[int, Any]) -> None:
        self.arrays = dict(arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        for array in self.arrays.values():
            if isinstance(array, np.ndarray):
                raise TilingError(
                    "an array in memory can only be written into by threads of this process; give a Zarr "
                    "store for "
                    "processes and clusters."
                )
        return Writer, (self.arrays,)

    def __call__(self, spec: Spec, index: Index, block: Any) -> None:
        """Write a block, or the tuple of blocks of all outputs."""
        for number, array in self.arrays.items():
            part = block[number] if spec.many else block
            array[region(spec, number, index)] = part


# -- any other dask array ---------------------------------------------------------------------------------


def _write_chunks(array: Any, target: Target, progress: bool | str) -> Any:
    """Write a dask array whose chunks are whole write units, one task per chunk."""
    if any(math.isnan(n) for n in array.shape):
        raise TilingError("the dask array has unknown chunk sizes; call compute_chunk_sizes() on it first.")
    given = target.existing()
    chunks = lengths("chunks", target.chunks, array.shape) or tuple(c[0] for c in array.chunks)
    shards = lengths("shards", target.shards, array.shape)
    if given is not None:
        chunks, shards = units_of(given)
    for axis, (sizes, unit) in enumerate(zip(array.chunks, shards or chunks, strict=True)):
        check_edges(sizes, unit, axis)
    written = target.create(array.shape, array.dtype, chunks, shards)
    offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in array.chunks]
    writer, name, tasks = Writer({0: written}), _run_name(array.name), dict[Any, Any]()
    for index in itertools.product(*map(range, array.numblocks)):
        box = tuple(slice(o[b], o[b + 1]) for o, b in zip(offsets, index, strict=True))
        key = (f"{name}-write", *index)
        tasks[key] = Task(key, _write_chunk, writer, box, TaskRef((array.name, *index)))
    graph = HighLevelGraph.from_collections(f"{name}-write", tasks, dependencies=[array])
    execute(
        graph.to_dict(),
        dict.fromkeys(tasks, 1),
        progress=progress,
        title=f"to_zarr {target.store}"[:60],
    )
    return written


def _write_chunk(writer: Writer, box: tuple[slice, ...], chunk: Any) -> None:
    writer.arrays[0][box] = chunk
