"""Graphs that dask made: the tasks that some keys need, as nodes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any

# Private, but what every scheduler of dask does with a graph (2026.8); `dask.task_spec` does not have it.
from dask._task_spec import convert_legacy_task
from dask.array import _shuffle, core
from dask.array.chunk import getitem
from dask.array.core import Array as GraphArray  # also where dask makes expressions
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.optimization import cull
from dask.task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from tilework._checks import has
from tilework._types import Index
from tilework.graph.tasks import Key

__all__ = [
    "as_node",
    "block_of",
    "cut_of",
    "held_names",
    "is_of_array",
    "joined_of",
    "moves",
    "needed",
    "points_of",
    "sliced_lazily",
]

# What takes and joins the samples of a list of numbers, and what takes single samples. Private, too; of
# other functions, blocks are whole.
TAKE, JOIN = (getattr(_shuffle, name, None) for name in ("_getitem", "concatenate_arrays"))
POINTS = getattr(core, "_vindex_slice_and_transpose", None)
NO_NODES: Mapping[Any, Any] = MappingProxyType({})
# Begins the key of a task that dask's scheduler finds by its name.
P2P = "shuffle-barrier-"


def needed(graph: Any, keys: Iterable[Any]) -> dict[Any, Any]:
    """Return the tasks of a graph that some keys need; only those are made."""
    wanted = list(keys)
    if not wanted:
        return {}  # dask would keep everything
    if has(graph, "layers"):
        graph = graph.cull(wanted)
    tasks, _ = cull(dict(graph), wanted)
    return dict(tasks)


def moves(graph: Iterable[Key]) -> bool:
    """Return whether dask moves samples between workers, in tasks that its scheduler knows by name."""
    return any(isinstance(key, str) and key.startswith(P2P) for key in graph)


def held_names() -> set[str]:
    """Return the names of arrays of which a cluster holds blocks for this process, as after ``persist``.

    Tasks with the keys of such blocks do not run again, so what replaces them would cost more.
    """
    distributed: Any = sys.modules.get("distributed")
    try:
        client = distributed and distributed.default_client()
    except ValueError:  # there is none
        return set()
    return {key[0] for key in list(client.futures) if isinstance(key, tuple)} if client else set()


def is_of_array(key: Any) -> bool:
    """Return whether a key has the form of the keys of arrays."""
    return isinstance(key, tuple) and bool(key) and isinstance(key[0], str)


def cut_of(node: Any, nodes: Mapping[Key, Any] = NO_NODES) -> tuple[Key, tuple[Any, ...]] | None:
    """Return the block that a task takes a part of, and the index; None for any other task.

    An index with a list of numbers is one of ``nodes``, the tasks of the same layer.
    """
    # Of dask's older kind, as in `stack`.
    if isinstance(node, tuple) and len(node) == 3 and node[0] is getitem:
        return (node[1], node[2]) if is_of_array(node[1]) and isinstance(node[2], tuple) else None
    if not isinstance(node, Task) or node.kwargs or len(node.args) != 2:
        return None
    block, index = node.args
    if node.func is TAKE and isinstance(index, TaskRef):
        taker = nodes.get(index.key)
        pair: Any = taker.value if isinstance(taker, DataNode) else None
        index = pair[1] if isinstance(pair, tuple) and len(pair) == 2 else None
    elif node.func is not getitem:
        return None
    if not isinstance(block, TaskRef) or not is_of_array(block.key) or not isinstance(index, tuple):
        return None
    return block.key, index


def joined_of(node: Any) -> tuple[list[Key], int] | None:
    """Return the parts that a task joins in another order, and the axis; None for any other task."""
    if not isinstance(node, Task) or node.func is not JOIN or node.kwargs or len(node.args) != 3:
        return None
    axis = node.args[2]
    return ([*filter(is_of_array, node.dependencies)], axis) if isinstance(axis, int) else None


def points_of(node: Any) -> tuple[Key, tuple[Any, ...]] | None:
    """Return the block of which a task takes single samples, and their numbers along each axis."""
    if not isinstance(node, Task) or node.func is not POINTS or node.kwargs or len(node.args) != 3:
        return None
    block, index, _ = node.args
    known = isinstance(block, TaskRef) and is_of_array(block.key) and isinstance(index, tuple)
    return (block.key, index) if known else None


def as_node(key: Key, graph: Mapping[Key, Any]) -> GraphNode | None:
    """Return what a graph has at ``key`` as a node, which says what it needs; None: a cluster has the value.

    Tasks of dask's older kind, tuples, name keys without a sign. Only among all keys of a graph these are
    known, so a cluster would take a key whose task it got earlier for a value.
    """
    node = convert_legacy_task(key, graph[key], graph)
    if isinstance(node, Alias) and node.target == key:
        return None
    return node if isinstance(node, GraphNode) else DataNode(key, node)


def sliced_lazily(array: Any) -> Any:
    """Return a dask array with the tasks of another, of which a slice asks for no keys of other blocks."""
    graph = array.__dask_graph__()
    if has(array, "expr") or not has(graph, "layers"):
        return array
    layers = {
        key: LayerBelow(layer, map(graph.layers.__getitem__, graph.dependencies[key]))
        if type(layer) is MaterializedLayer
        else layer
        for key, layer in graph.layers.items()
    }
    return GraphArray(HighLevelGraph(layers, graph.dependencies), array.name, array.chunks, meta=array._meta)


def block_of(array: Any, index: Index) -> Any:
    """Return a block of a dask array as a dask array; ``array.blocks`` makes a task of the older kind."""
    name = f"block-{tokenize(array.name, index)}"
    key: Key = (name, *(0 for _ in index))
    block: Key = (array.name, *index)
    graph = HighLevelGraph.from_collections(name, {key: Alias(key, block)}, dependencies=[array])
    chunks = tuple((sizes[i],) for sizes, i in zip(array.chunks, index, strict=True))
    return GraphArray(graph, name, chunks, meta=array._meta)


class LayerBelow(MaterializedLayer):
    """A layer of tasks that dask made, which knows the layers that it may need.

    Tasks of dask's older kind name keys without a sign. For one layer of them, as the array that `from_array`
    and `from_zarr` put into a graph, dask makes a set of all keys of all layers when a slice is computed:
    0.2 s for 240 000 blocks, 6 s and 1.4 GB for ten million.

    Parameters
    ----------
    layer : MaterializedLayer
    below : iterable of Layer
        The layers of which it may need keys, besides its own.
    """

    # If no layer says that it has some, dask makes no set of all keys.
    has_legacy_tasks = False

    def __init__(self, layer: MaterializedLayer, below: Iterable[Layer]) -> None:
        super().__init__(layer.mapping, layer.annotations, layer.collection_annotations)
        self.layer = layer
        self._known: Any = _Keys((layer, *below))  # what dask does with it is ``in``

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the tasks that ``keys`` need, and the keys that each task needs."""
        del all_hlg_keys
        # Of keys of other layers, dask takes as many as there are tasks for all of them.
        layer, needs = self.layer.cull(keys & self.mapping.keys(), self._known)
        return layer, needs


class _Keys(Container[Key]):
    """The keys of some layers, which are made when a task first names one."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers

    @functools.cached_property
    def _sets(self) -> list[AbstractSet[Key]]:
        return [layer.get_output_keys() for layer in self._layers]

    def __contains__(self, key: object) -> bool:
        return any(key in keys for keys in self._sets)

    def __getstate__(self) -> dict[str, Any]:
        return {"_layers": self._layers}
