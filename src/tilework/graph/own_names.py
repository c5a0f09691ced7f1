"""Names in graphs of dask that were given by hand: several arrays may share one, and a run tells them apart.

dask takes tasks of one name for the same task, in one graph and on a cluster. The names that it makes hold a
digest of what is computed, or a random number.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from dask.array.core import Array as GraphArray  # also where dask makes expressions
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.task_spec import Alias, DataNode, Task
from dask.utils import SerializableLock

from tilework._checks import attribute, has
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.graph.layer import LazyLayer
from tilework.graph.naming import name_of
from tilework.graph.nodes import as_node, moves, needed
from tilework.graph.tasks import Key, Names
from tilework.source.base import BlockSource, Source

__all__ = [
    "check_names",
    "check_result",
    "check_specs",
    "named_apart",
    "names_of",
    "spec_nodes",
    "with_own_names",
]

_LOG = logging.getLogger("tilework")
# Of these, `from_array` makes a new one for each array.
LOCKS = (SerializableLock, type(threading.Lock()))
# A digest, or a random number as uuid writes it.
MADE = re.compile("[0-9a-f]{8}(-?)[0-9a-f]{4}(-?[0-9a-f]{4}){2}-?[0-9a-f]{12}")
# What `names_of` adds.
MARK = re.compile("-spec-[0-9a-f]{8}$")


def names_of(spec: Spec, name: str) -> Names:
    """Return the names of a result; if its name was given by hand, its `Spec` has a key of its own.

    Where two results of one name meet, dask keeps the blocks of one of them, and both of these keys.
    """
    names = Names.of(spec, name)
    return names if MADE.search(name) else replace(names, spec=f"{names.spec}-{uuid.uuid4().hex[:8]}")


def spec_nodes(array: Any) -> Iterator[tuple[str, Spec]]:
    """Yield the `Spec` of every result of `tiled_map` from which an array is computed, with its key."""
    if has(array, "expr"):
        from tilework.graph.expr import Blocks

        yield from ((n.names.spec, n.spec) for n in _expressions(array.expr) if isinstance(n, Blocks))
        return
    for layer in array.dask.layers.values():
        # Looking into another kind of layer would build it.
        if isinstance(layer, MaterializedLayer):
            yield from _specs_of(layer.mapping)


def _expressions(expr: Any) -> Iterator[Any]:
    """Yield all parts of an expression; dask's own ``walk`` yields one of those with one name."""
    left, seen = [expr], {id(expr)}
    while left:
        yield (node := left.pop())
        for below in node.dependencies():
            if id(below) not in seen:
                seen.add(id(below))
                left.append(below)


def _specs_of(nodes: Mapping[Any, Any]) -> Iterator[tuple[str, Spec]]:
    for key, node in nodes.items():
        if type(node) is DataNode and isinstance(node.value, Spec):
            yield key, node.value
        elif type(node) is Task and node.args and isinstance(node.args[0], Mapping):
            yield from _specs_of(node.args[0])  # tasks that dask fused


def check_specs(arrays: Iterable[Any]) -> None:
    """Raise if dask arrays are computed from different results of `tiled_map` that have one name.

    Raises
    ------
    TilingError
        Names the name.
    """
    found: dict[str, tuple[str, Spec]] = {}
    for key, spec in itertools.chain.from_iterable(map(spec_nodes, arrays)):
        name = MARK.sub("", key)
        first, known = found.setdefault(name, (key, spec))
        if first != key and name_of(known) != name_of(spec):
            raise TilingError(
                f"two different results of tiled_map have the name {name!r}, and what is computed from both "
                "has the samples of one of them, because dask takes arrays of one name for the same: build "
                "them with names of their own, or without name=."
            )


def check_names(sources: Sequence[Source]) -> None:
    """Raise if dask arrays hold different things under one name, of which a graph would keep one.

    Raises
    ------
    TilingError
        Names the name, and the numbers of the sources.
    """
    read = [(k, source.handle) for k, source in enumerate(sources) if isinstance(source, BlockSource)]
    check_specs(array for _, array in read)
    arrays = {k: array for k, array in read if not has(array, "expr")}  # dask has one expression of a name
    if len(arrays) < 2:
        return
    found: dict[str, tuple[int, Any]] = {}
    for number, array in arrays.items():
        for name, tasks in _given_names(array).items():
            first, known = found.setdefault(name, (number, tasks))
            if known is not tasks and not _equal(known, tasks):
                raise TilingError(
                    f"sources {first} and {number} are computed from different dask arrays that have one "
                    f"name, {name!r}, of which dask would compute one: give each a name of its own, or none."
                )


def check_result(name: str, keys: Iterable[str], sources: Sequence[Source]) -> None:
    """Raise if what a result is computed from has its name: dask would take one for the other.

    Parameters
    ----------
    name : str
        The name of the result.
    keys : iterable of str
        All names in the keys of its tasks.
    sources : sequence of Source

    Raises
    ------
    TilingError
        Names the name, and the number of the source.
    """
    own = set(keys)
    for number, source in enumerate(sources):
        if isinstance(source, BlockSource) and not own.isdisjoint(_names(source.handle)):
            raise TilingError(
                f"source {number} is, or is computed from, a dask array that has the name {name!r} of the "
                "result, and dask takes tasks of one name for the same: give each a name of its own, or none."
            )


def named_apart(sources: Sequence[Source], mark: str, *, always: bool = False) -> tuple[Source, ...]:
    """Return sources of which the dask arrays share no name with those of other runs.

    Parameters
    ----------
    sources : sequence of Source
    mark : str
        Name of the run.
    always : bool
        Whether also those do not of which dask made all names: tasks of the run have other results.

    Raises
    ------
    TilingError
        If dask arrays hold different things under one name.
    """
    check_names(sources)
    return tuple(_apart(source, mark, always) for source in sources)


def _apart(source: Source, mark: str, always: bool) -> Source:
    if not isinstance(source, BlockSource):
        return source
    array = with_own_names(source.handle, mark, always=always)
    return source if array is source.handle else replace(source, handle=array, token=("dask", array.name))


def with_own_names(
    array: Any, mark: str, *, always: bool = False, change: Callable[[Any], Any] = lambda array: array
) -> Any:
    """Return a dask array that shares no task with other arrays whose names were given by hand.

    Parameters
    ----------
    array : dask array
    mark : str
        Added to the names of all its tasks, if one of them was given by hand: what dask computes from such
        an array has its name, and not what it holds, in a digest.
    always : bool
        Whether it is added also if dask made all names.
    change : callable
        Changes the graph of an array that gets the mark, which hides the results in it.

    Returns
    -------
    dask array
        The same one if nothing was added. Otherwise its tasks are made and named when they are asked for.
    """
    given = _given_names(array)
    if not given and not always:
        return array
    layer = _Renamed(change(array), mark, next(iter(given), None))
    graph = HighLevelGraph({layer.name: layer}, {layer.name: set()})
    return GraphArray(graph, layer.name, array.chunks, meta=array._meta)


class _Renamed(Layer):
    """All tasks of a dask array, with a mark in their names; they are made when somebody asks for them.

    Parameters
    ----------
    array : dask array
    mark : str
        As in `with_own_names`.
    given : str or None
        A name that was given by hand.
    """

    # dask would make all tasks to find out.
    has_legacy_tasks = False

    def __init__(self, array: Any, mark: str, given: str | None) -> None:
        super().__init__()
        self._graph, self._mark, self._given = array.__dask_graph__(), mark, given
        self._blocks, self._array = array.numblocks, array.name
        self.name = _renamed(array.name, mark)

    @functools.cached_property
    def _nodes(self) -> dict[Key, Any]:
        """All tasks."""
        return self._own(dict(self._graph))

    def _own(self, graph: Mapping[Key, Any]) -> dict[Key, Any]:
        """Return tasks, and all that they need, with names of their own."""
        if moves(graph):
            return {**graph, **{name: Alias(name, key) for name, key in self._moved(graph)}}
        names = {key: _renamed(key, self._mark) for key in graph}
        nodes: dict[Key, Any] = {}
        for key, name in names.items():
            if (node := as_node(key, graph)) is None:
                nodes |= {key: graph[key], name: Alias(name, key)}
                continue
            made = node.substitute(names, key=name)
            nodes[name] = made if made.key == name else Task(name, _itself, made)
        return nodes

    def _moved(self, graph: Iterable[Key]) -> Iterator[tuple[Key, Key]]:
        """Yield the names of the blocks among tasks that must keep theirs, with these."""
        if self._given is not None:
            _LOG.warning(
                "dask moves samples of an array whose name, %r, was given by hand, between workers in tasks "
                "of which it needs the names: another array of this name that is computed at the same time "
                "would be taken for it. Leave the name out, or set dask's array.rechunk.method to tasks.",
                self._given,
            )
        for key in graph:
            if isinstance(key, tuple) and key[0] == self._array:
                yield _renamed(key, self._mark), key

    def get_output_keys(self) -> AbstractSet[Key]:
        """Return the keys of the blocks."""
        return {(self.name, *index) for index in itertools.product(*map(range, self._blocks))}

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the tasks that ``keys`` need, and the keys that each task needs."""
        del all_hlg_keys
        blocks = [(self._array, *key[1:]) for key in keys if isinstance(key, tuple) and key[0] == self.name]
        nodes = self._own(needed(self._graph, blocks))
        needs = {key: set(node.dependencies) for key in nodes if (node := as_node(key, nodes)) is not None}
        return MaterializedLayer(nodes, annotations=self.annotations), needs

    def is_materialized(self) -> bool:
        """Return whether all tasks were made."""
        return "_nodes" in vars(self)

    def __getitem__(self, key: Key) -> Any:
        return self._nodes[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _given_names(array: Any) -> dict[str, Any]:
    """Return the layers of a dask array whose names were given by hand; of an expression its parts."""
    return {name: layer for name, layer in _names(array).items() if MADE.search(str(name)) is None}


def _names(array: Any) -> dict[str, Any]:
    """Return the layers of a dask array by name; of an expression its parts."""
    if has(array, "expr"):
        return {node._name: node for node in array.expr.walk() if has(node, "_name")}
    return dict(attribute(array.__dask_graph__(), "layers", {}))


def _equal(one: Any, other: Any) -> bool:
    """Return whether two layers compute the same, as far as both have the tasks."""
    if isinstance(one, LazyLayer) and isinstance(other, LazyLayer):
        return True  # or `check_specs` found them
    tasks = dict(one), dict(other)
    return all(_same(tasks[0][key], tasks[1][key]) for key in tasks[0].keys() & tasks[1].keys())


def _same(one: Any, other: Any) -> bool:
    """Return whether two values in tasks are one object, or hold the same."""
    if one is other or (isinstance(one, LOCKS) and isinstance(other, LOCKS)):
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Task):
        return _same((one.func, one.args, one.kwargs), (other.func, other.args, other.kwargs))
    if type(one) in (tuple, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(tokenize(one) == tokenize(other))


def _renamed(key: Any, mark: str) -> Any:
    return (_renamed(key[0], mark), *key[1:]) if isinstance(key, tuple) else f"{key}-{mark}"


def _itself(value: Any) -> Any:
    return value
