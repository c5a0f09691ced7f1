"""What a value holds: stored arrays and functions of the user, in graphs of dask, containers and objects."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import zarr
from dask.blockwise import Blockwise, BlockwiseDepDict
from dask.highlevelgraph import MaterializedLayer
from dask.task_spec import Alias, DataNode, Task, TaskRef

from tilework._checks import attribute, has
from tilework.formats.labelled import is_dataset, is_labelled
from tilework.function.combining import Combined
from tilework.function.load_once import LoadOnce
from tilework.function.network import TorchFunction
from tilework.function.normalizing import Normalized
from tilework.function.own_code import held_by
from tilework.identity.hidden import slots
from tilework.identity.modules import installed
from tilework.source.images import StoredImage

__all__ = ["Shown", "shown_by"]

# Values of graphs that are looked at: a million tasks, in a few seconds.
MOST = 5_000_000
# dask ends a name that it makes with a digest, which has what the array holds.
MADE = re.compile("[0-9a-f]{32}")
# Functions of this package that hold functions of the user.
HOLDERS = (Combined, LoadOnce, Normalized, TorchFunction)
# Nothing is in values of these types. Most values of a graph have one of them.
SIMPLE = frozenset({
    bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range, TaskRef, Alias, np.dtype,
    np.ndarray,
})  # fmt: skip


@dataclass(slots=True)
class Shown:
    """What a value shows of what it is computed from."""

    stored: list[Any] = field(default_factory=list)
    """Arrays of zarr and h5py, and maps of numpy; one may be there many times."""
    functions: list[Any] = field(default_factory=list)
    """Functions of the user, objects that are or hold some, and classes of other objects of the user."""
    named: list[tuple[Any, Any]] = field(default_factory=list)
    """Arrays in memory under a name that was given by hand, which does not have what they hold; before each
    its place among the blocks of that name."""
    whole: bool = True
    """Whether all of it was looked at."""


def shown_by(value: Any) -> Shown:
    """Return the stored arrays that a value is or reads, and the functions of the user in its graph.

    Parameters
    ----------
    value : stored array, dask array or other collection of dask, DataArray or Dataset, or anything else
        Of anything else nothing is shown.

    Returns
    -------
    Shown

    Notes
    -----
    dask knows a function of a module by its name, whatever its code. Of an object that is no function, its
    class is shown: the name of a dask array has what it holds, except for what is in stores.

    No task is made, and no data are read. The tasks of a layer share their functions and arrays, and each of
    these is looked at once.
    """
    shown = Shown()
    if is_dataset(value) or is_labelled(value) or _is_lazy(value) or _stored(value) is not None:
        _look([value], shown)
    return shown


def _look(values: Iterable[Any], shown: Shown) -> None:
    """Add what is in tasks, containers, partial functions, wrappers, adapters and objects of the user."""
    waiting, seen, looked = deque(values), dict[int, Any](), 0
    own: Callable[[Any], bool] = functools.cache(_is_own)
    while waiting:
        value = waiting.popleft()
        kind = type(value)
        if kind in SIMPLE:
            continue
        if (looked := looked + 1) > MOST:
            shown.whole = False
            return
        if isinstance(value, Task):
            waiting.append(value.func)
            waiting.extend(value.args)
            if value.kwargs:
                waiting.extend(value.kwargs.values())
        elif kind is tuple:
            waiting.extend(value)
        elif id(value) in seen:
            continue
        else:
            seen[id(value)] = value  # kept, so that no other object gets its id
            if kind is dict:
                waiting.extend(value.values())
            elif kind is list:
                waiting.extend(value)
            elif (stored := _stored(value)) is not None:
                shown.stored.append(stored)
            elif _is_named(value):
                shown.named.append((value.key[1:] if isinstance(value.key, tuple) else (), value.value))
            elif isinstance(value, HOLDERS):
                shown.functions.append(value)
            elif isinstance(value, FunctionType | type):
                if _is_own(value):
                    shown.functions.append(value)
                else:
                    waiting.extend(_wrapped(value))
            elif isinstance(value, functools.partial | MethodType) or not own(kind):
                waiting.extend(_inside(value))
            elif callable(value):
                shown.functions.append(value)
            else:
                waiting.append(kind)
                waiting.extend(_attributes(value))
                waiting.extend(_items(value))


def _is_own(value: Any) -> bool:
    """Return whether a function or class is in no installed package."""
    module = attribute(value, "__module__")
    return isinstance(module, str) and installed(module) is None


def _is_named(value: Any) -> bool:
    """Return whether a value is an array in memory with a name that was given by hand."""
    return isinstance(value, DataNode) and _is_raw(value.value) and _by_hand(value.key)


def _by_hand(key: Any) -> bool:
    return MADE.search(str(key[0] if isinstance(key, tuple) else key)) is None


def _inside(value: Any) -> Iterator[Any]:
    """Yield what is in a value of an installed class, as far as it may hold something of the user."""
    if isinstance(value, DataNode):
        yield value.value
    elif isinstance(value, functools.partial | MethodType):
        yield from held_by(value)
    elif is_dataset(value):
        yield from value.variables.values()
    elif is_labelled(value):
        # `data` would read what was not read yet.
        yield attribute(attribute(value, "variable", value), "_data")
    elif _is_lazy(value):
        yield from _values(value)
    else:
        yield from _items(value)
        yield from _wrapped(value)


def _attributes(value: Any) -> Iterator[Any]:
    """Yield what an object of the user holds."""
    held = attribute(value, "__dict__", {})
    yield from held.values() if isinstance(held, dict) else ()
    yield from (part for _, part in slots(value))


def _items(value: Any) -> Iterable[Any]:
    """Return the items of a container of Python."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set | frozenset | deque) else ()


def _wrapped(value: Any) -> Iterator[Any]:
    """Yield the functions in an object that wraps some, and what an adapter of xarray reads from."""
    module = type(value).__module__.partition(".")[0]
    if module == "xarray":
        yield from (attribute(value, name) for name in ("array", "_array"))
    elif callable(value) and not isinstance(value, type) and module != "tilework":
        held = attribute(value, "__dict__", {})
        yield from filter(callable, held.values() if isinstance(held, dict) else ())
        yield from (attribute(value, name) for name in ("__wrapped__", "first", "funcs"))
        for cell in attribute(value, "__closure__") or ():
            yield attribute(cell, "cell_contents")


def _stored(value: Any) -> Any:
    """Return the stored array that a value is; None for any other value."""
    if isinstance(value, StoredImage):
        return value.source.handle
    if isinstance(value, np.memmap):
        return None if value.filename is None else value  # a copy in memory keeps the class
    if isinstance(value, zarr.Array):
        return value
    kind = type(value)
    if kind.__module__[:5] != "h5py.":
        return None
    return value if kind.__name__ == "Dataset" else attribute(value, "_dset")  # a view in another dtype


def _is_lazy(value: Any) -> bool:
    """Return whether a value has a graph of dask; an expression would make its own to show it."""
    return not isinstance(value, type) and has(type(value), "__dask_graph__")


def _values(array: Any) -> Iterator[Any]:
    """Yield the values in the graph of a collection of dask, as far as no tasks have to be made for it."""
    if has(type(array), "expr"):
        for node in array.expr.walk():
            yield from node.operands
        return
    graph = attribute(array, "dask")
    for name, layer in attribute(graph, "layers", {"": graph}).items():
        # Raw arrays get a node with their key, which says whether they were named by hand.
        if isinstance(layer, Blockwise):
            yield from (DataNode(name, part) if _is_raw(part) else part for part, _ in layer.indices)
            yield from (part.mapping for part in layer.io_deps.values() if isinstance(part, BlockwiseDepDict))
            yield layer.task
        elif isinstance(layer, MaterializedLayer | dict):
            tasks = layer if isinstance(layer, dict) else layer.mapping
            if _by_hand(name):
                yield from (DataNode(key, part) if _is_raw(part) else part for key, part in tasks.items())
            else:
                yield from tasks.values()
        elif not type(layer).__module__.startswith("tilework."):  # `specs_below` has what is in these
            yield from attribute(layer, "__dict__", {}).values()


def _is_raw(value: Any) -> bool:
    return isinstance(value, np.ndarray) and _stored(value) is None
