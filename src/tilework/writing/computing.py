"""`compute`: a result in memory, each block made in its place in the array that is returned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from tilework._checks import brief, has, warn
from tilework.errors import TilingError, TilingWarning
from tilework.execution.local import run
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.formats.labelled import is_dataset, relabelled
from tilework.graph.build import bare, find_spec, is_lazy
from tilework.identity.samples import same_array, writable
from tilework.labels.doubts import PIECES
from tilework.labels.painting import Counts
from tilework.source.opening import check_lengths
from tilework.writing.preparing import Asked, Writing, by_key, prepare
from tilework.writing.target import by_dims, is_array

__all__ = ["compute"]


def compute(
    out: Any,
    into: Any = None,
    *,
    on_error: Any = "raise",
    retries: int = 0,
    progress: Progress = False,
    memory_limit: int | str | None = None,
    lanes: int | None = None,
    scheduler: Any = None,
) -> Any:
    """Compute a result into an array of this process; return the array.

    ``out.compute()`` holds all blocks until the last one is there, and then copies them into a new array.
    Here each block is made in its place, in half of the memory and time. Of a slice, ``compute(out[:100])``
    or ``compute((out > 0.5)[:100])``, and of what is computed from slices, only the crops run that it needs.

    Parameters
    ----------
    out : dask array, or the tuple or dict of one `tiled_map`
        Several outputs are computed in one pass: the function runs once per tile.
    into : array, or tuple or dict of them, optional
        The array to compute into, with the shape and dtype of the result: of numpy, a memory map, a torch
        tensor on the CPU, a DataArray in memory, or anything that takes slices, such as an h5py dataset. Its
        values are overwritten; after an error, some are those of unfinished blocks. A DataArray gets those of
        a result with dims by the names of these, in any order. Default: new numpy arrays.
    on_error, retries, memory_limit, lanes
        As in `to_zarr`.
    progress : bool, "auto" or callable
        As in `to_zarr`; by default nothing is shown.
    scheduler : str or callable, optional
        A scheduler of dask that works in this process, "threads" or "synchronous". Default: the scheduler
        that dask would choose.

    Returns
    -------
    array, shape and dtype of the result, or tuple or dict of them
        ``into``, or the new arrays; with the labels of ``out`` where that is a DataArray or Dataset.

    Raises
    ------
    TilingError
        If an array has another shape or dtype, or other dims, is the one that is read, is a Zarr array, or
        would have to be reached from another process; if ``out`` is empty or has members of different calls.
    TypeError
        If ``out`` is not a dask array, or ``into`` does not have its structure.

    Examples
    --------
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.negative, np.arange(100.0).reshape(10, 10), crop=6, overlap=1, dtype=float)
    >>> array = np.empty((10, 10))
    >>> compute(out, into=array) is array, float(array[9, 9])
    (True, -99.0)
    """
    check_progress(progress)
    where = Where.find(scheduler, None, retries=retries, lanes=lanes)
    results = by_key(out)
    arrays = {key: bare(member) for key, member in results.items()}
    several = isinstance(out, tuple | list | Mapping)
    for key, array in arrays.items():
        if not is_lazy(array):
            raise TypeError(f"out must be a dask array; got {brief(array)}{f' as {key}' if key else ''}.")
        check_lengths(array)
    made = [np.empty(array.shape, array.dtype) for array in arrays.values()] if into is None else []
    given = dict(zip(arrays, made, strict=True)) if into is None else _given(into, results, several)
    asked = Asked(on_error=on_error, memory_limit=memory_limit, numbers=False)
    job, writing = prepare(out, None, asked, where, given)
    run([job], where, progress=progress, title="compute")
    writing.end()
    _tell_of_labels(arrays, writing)
    if into is not None:
        return into
    if is_dataset(out):
        return out.copy(data=dict(zip(out, made, strict=True)))
    members: Any = out.values() if isinstance(out, Mapping) else out if several else [out]
    done = [relabelled(lazy, one) for lazy, one in zip(members, made, strict=True)]
    if isinstance(out, Mapping):
        return dict(zip(out, done, strict=True))
    return tuple(done) if several else done[0]


def _tell_of_labels(arrays: Mapping[str, Any], writing: Writing) -> None:
    """Warn of doubtful objects, and of pieces that are not joined."""
    for found in map(find_spec, arrays.values()):
        if found is None or found.output.stored is None:
            continue
        counts = writing.told.counts.get(found.number, Counts())
        text = PIECES if found.output.connectivity else found.output.doubts(found.spec.plan.names, counts)
        if text:
            warn(text, TilingWarning)


def _given(into: Any, results: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """Return the arrays to compute into by key; raise unless they are one for each result, and apart."""
    keys = list(results)
    if isinstance(into, tuple | list | Mapping) != several:
        what = f"a tuple or dict of {len(keys)} arrays, as out is" if several else "one array, as out is"
        raise TypeError(f"into must be {what}; got {brief(into)}.")
    given = {str(k): v for k, v in into.items()} if isinstance(into, Mapping) else {}
    if several and not given:
        given = {str(number): array for number, array in enumerate(into)}
    given = given if several else {"": into}
    if set(given) != set(keys):
        raise TilingError(f"into must have the members of out, {keys}; got {list(given)}.")
    for array in given.values():
        if not is_array(array) or has(array, "dask"):
            raise TypeError(f"into must be an array that holds data; got {brief(array)}.")
        if isinstance(array, zarr.Array):
            raise TilingError("to_zarr(out, array) writes into a Zarr array, and can be resumed; use it.")
    given = {
        key: writable("into", by_dims(f"into[{key!r}]" if several else "into", array, results[key]))
        for key, array in given.items()
    }
    for one, other in itertools.combinations(given.values(), 2):
        if same_array(one, other):
            raise TilingError("members of into share memory; give each result an array of its own.")
    return given
