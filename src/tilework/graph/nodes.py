"""Graphs that dask made: the tasks that some keys need, as nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Private, but what every scheduler of dask does with a graph (2026.8); `dask.task_spec` does not have it.
from dask._task_spec import convert_legacy_task
from dask.optimization import cull
from dask.task_spec import Alias, DataNode, GraphNode

from tilework._checks import has
from tilework.graph.tasks import Key

__all__ = ["as_node", "moves", "needed"]

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


def as_node(key: Key, graph: Mapping[Key, Any]) -> GraphNode | None:
    """Return what a graph has at ``key`` as a node, which says what it needs; None: a cluster has the value.

    Tasks of dask's older kind, tuples, name keys without a sign. Only among all keys of a graph these are
    known, so a cluster would take a key whose task it got earlier for a value.
    """
    node = convert_legacy_task(key, graph[key], graph)
    if isinstance(node, Alias) and node.target == key:
        return None
    return node if isinstance(node, GraphNode) else DataNode(key, node)
