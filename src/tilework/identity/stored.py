"""What the graph of a dask array shows: the stored arrays that it reads, and the functions of its blocks."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import numpy as np
import zarr
from dask.blockwise import Blockwise
from dask.task_spec import Task

from tilework._checks import attribute, has
from tilework.formats.labelled import is_dataset, is_labelled
from tilework.identity.digests import digest
from tilework.identity.modules import installed
from tilework.identity.stamps import of_array, stamp
from tilework.source.base import Source
from tilework.source.opening import open_source

__all__ = ["data_read_by", "functions_in", "read_by"]

# Layers with more tasks are made by computations, not by opening an array.
FEW_TASKS = 64


def read_by(array: Any) -> Iterator[Source]:
    """Yield the stored arrays that a dask array reads, as far as its graph shows: zarr, h5py, memmap."""
    yield from map(open_source, _stored_in(array))


def data_read_by(value: Any) -> tuple[str | None, bool]:
    """Return a digest of what stores and files say about the data that a value reads.

    A Zarr array, and a dask array or DataArray that was opened from one, has the same name after its data
    were written anew in their place.

    Parameters
    ----------
    value : Zarr array, dask array, DataArray or Dataset, dataset of h5py, or anything else
        Of a Zarr group it is not known what is read of it; results may be written into it.

    Returns
    -------
    str or None
        None: the value reads nothing that is stored, as far as its graph shows, or its stores say nothing.
    bool
        Whether all stores say something.
    """
    stamps = set(map(_stamp, _stored_in(value)))
    told = sorted(stamp for stamp in stamps if stamp is not None)
    return digest(told) if told else None, None not in stamps


def functions_in(array: Any) -> Iterator[Any]:
    """Yield the functions of the user that the graph of a dask array applies to blocks, such as `map_blocks`.

    dask knows a function of a module by its name, whatever its code.
    """
    seen: set[int] = set()
    for value in _values(array):
        if callable(value) and id(value) not in seen and _is_own(value):
            seen.add(id(value))
            yield value


def _is_own(function: Any) -> bool:
    """Return whether a function, or one in a partial function, is in no installed package."""
    if isinstance(function, functools.partial):
        return any(map(_is_own, (function.func, *function.args, *function.keywords.values())))
    kind = function if isinstance(function, FunctionType | type) else type(function)
    module = attribute(kind, "__module__")
    return isinstance(module, str) and installed(module) is None


def _stamp(stored: Any) -> str | None:
    """Return what changes when a stored array is written anew; None if nothing is known to."""
    if isinstance(stored, zarr.Array):
        return of_array(stored)[1]
    name = stored.filename if isinstance(stored, np.memmap) else stored.file.filename if stored else None
    return stamp(name) if name is not None and os.path.isfile(name) else None  # noqa: PTH113


def _stored_in(value: Any) -> Iterator[Any]:
    """Yield the stored arrays that a value is or reads."""
    if is_dataset(value):
        for variable in value.variables.values():
            yield from _stored_in(variable)
    elif is_labelled(value):
        # `data` would read what was not read yet.
        data = getattr(getattr(value, "variable", value), "_data", None)
        if _is_lazy(data):
            yield from _stored_in(data)
        elif (found := _inside(data)) is not None:
            yield found
    elif _is_lazy(value):
        for one in _values(value):
            if (found := _inside(one)) is not None:
                yield found
    elif _is_stored(value):
        yield value


def _is_lazy(value: Any) -> bool:
    """Return whether a value has a graph of dask; an expression would make its own to show it."""
    return not isinstance(value, type) and has(type(value), "__dask_graph__")


def _values(array: Any) -> Iterator[Any]:
    """Yield the values in the graph of a dask array, as far as no tasks have to be made to see them."""
    if has(array, "expr"):
        for node in array.expr.walk():
            yield from node.operands
        return
    for layer in attribute(attribute(array, "dask"), "layers", {}).values():
        if isinstance(layer, Blockwise):
            yield from (argument for argument, _ in layer.indices)
            yield from _parts(layer.task)
        elif layer.is_materialized() and len(layer) <= FEW_TASKS:
            for node in layer.values():
                yield getattr(node, "value", node)
                yield from _parts(node)


def _parts(task: Any) -> Iterator[Any]:
    """Yield the function and the arguments of a task, if it is one."""
    if isinstance(task, Task):
        yield from (task.func, *task.args, *task.kwargs.values())


def _inside(value: Any) -> Any:
    """Return the stored array inside the adapters of xarray; None if there is none."""
    for _ in range(10):
        if _is_stored(value):
            return value
        value = attribute(value, "array", attribute(value, "_array"))
    return None


def _is_stored(value: Any) -> bool:
    kind = type(value)
    of_h5py = (kind.__module__[:5], kind.__name__) == ("h5py.", "Dataset")
    return isinstance(value, zarr.Array | np.memmap) or of_h5py
