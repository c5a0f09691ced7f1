"""What the graph of a dask array shows: the stored arrays that it reads, and the functions of its blocks."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import zarr
from dask.blockwise import Blockwise
from dask.task_spec import DataNode, Task, TaskRef

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
# Values of a graph that are looked at.
MOST = 20_000
SIMPLE = (str, bytes, int, float, complex, type(None), np.generic, np.dtype, TaskRef)


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
    # A graph may open one array many times, and each stamp lists a store.
    stored = {_place(one): one for one in _stored_in(value)}
    stamps = set(map(_stamp, stored.values()))
    told = sorted(stamp for stamp in stamps if stamp is not None)
    return digest(told) if told else None, None not in stamps


def functions_in(array: Any) -> Iterator[Any]:
    """Yield the functions of the user that the graph of a dask array applies to blocks, such as `map_blocks`.

    dask knows a function of a module by its name, whatever its code. Of an object that is no function, its
    class is yielded: the name of a dask array has what it holds.
    """
    seen: set[int] = set()
    for value in _leaves(_values(array)):
        found = value if callable(value) else type(value)
        if _is_own(value) and id(found) not in seen:
            seen.add(id(found))
            yield found


def _is_own(value: Any) -> bool:
    """Return whether a function or class, or the class of an object, is in no installed package."""
    kind = value if isinstance(value, FunctionType | type) else type(value)
    module = attribute(kind, "__module__")
    return isinstance(module, str) and installed(module) is None


def _stamp(stored: Any) -> str | None:
    """Return what changes when a stored array is written anew; None if nothing is known to."""
    if isinstance(stored, zarr.Array):
        return of_array(stored)[1]
    name = _file(stored)
    return stamp(name) if name is not None and Path(name).is_file() else None


def _place(stored: Any) -> Any:
    """Return what is equal for one array that was opened twice."""
    return str(stored.store_path) if isinstance(stored, zarr.Array) else _file(stored)


def _file(stored: Any) -> Any:
    """Return the file of an array of h5py or numpy."""
    if isinstance(stored, np.memmap):
        return stored.filename
    return stored.file.filename if stored else None


def _stored_in(value: Any) -> Iterator[Any]:
    """Yield the stored arrays that a value is or reads."""
    if is_dataset(value):
        for variable in value.variables.values():
            yield from _stored_in(variable)
    elif is_labelled(value):
        # `data` would read what was not read yet.
        data = getattr(getattr(value, "variable", value), "_data", None)
        yield from _stored_in(data) if _is_lazy(data) else filter(_is_stored, _leaves([data]))
    elif _is_lazy(value):
        yield from filter(_is_stored, _leaves(_values(value)))
    elif _is_stored(value):
        yield value


def _is_stored(value: Any) -> bool:
    if isinstance(value, np.memmap):
        return value.filename is not None  # a copy in memory keeps the class
    kind = type(value)
    return isinstance(value, zarr.Array) or (kind.__module__[:5], kind.__name__) == ("h5py.", "Dataset")


def _is_lazy(value: Any) -> bool:
    """Return whether a value has a graph of dask; an expression would make its own to show it."""
    return not isinstance(value, type) and has(type(value), "__dask_graph__")


# -- what is in a graph -----------------------------------------------------------------------------------


def _values(array: Any) -> Iterator[Any]:
    """Yield the values in the graph of a dask array, as far as no tasks have to be made to see them."""
    if has(type(array), "expr"):
        for node in array.expr.walk():
            yield from node.operands
        return
    for layer in attribute(attribute(array, "dask"), "layers", {}).values():
        if isinstance(layer, Blockwise):
            yield from (argument for argument, _ in layer.indices)
            yield layer.task
        elif layer.is_materialized() and len(layer) <= FEW_TASKS:
            yield from layer.values()


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what is stored or of the user in tasks, containers, partial functions, wrappers and adapters."""
    waiting, seen = deque(values), dict[int, Any]()
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if isinstance(value, SIMPLE) or id(value) in seen:
            continue
        seen[id(value)] = value
        if _is_stored(value):
            yield value
        elif isinstance(value, Task):
            waiting.extend((value.func, *value.args, *value.kwargs.values()))
        elif isinstance(value, DataNode):
            waiting.append(value.value)
        elif isinstance(value, functools.partial):
            waiting.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, MethodType):
            waiting.extend((value.__func__, value.__self__))
        elif _is_own(value):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        else:
            waiting.extend(_wrapped(value))


def _wrapped(value: Any) -> Iterator[Any]:
    """Yield the functions in an object that wraps some, and what an adapter of xarray reads from."""
    module = type(value).__module__.partition(".")[0]
    if module == "xarray":
        yield from (attribute(value, name) for name in ("array", "_array"))
    elif callable(value) and not isinstance(value, type) and module != "tilework":
        held = attribute(value, "__dict__", {})
        yield from filter(callable, held.values() if isinstance(held, dict) else ())
        yield from (attribute(value, name) for name in ("__wrapped__", "first", "funcs"))
