"""Constants of functions and networks that torch has compiled: in their graphs, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import NoneType
from typing import Any

__all__ = ["constants", "is_script"]


def is_script(value: Any) -> bool:
    """Return whether a value is a function or network that torch has compiled; does not import torch."""
    torch = sys.modules.get("torch")
    kinds = () if torch is None else (torch.jit.ScriptModule, torch.jit.ScriptFunction, torch.ScriptMethod)
    return isinstance(value, kinds)


def constants(compiled: Any) -> list[Any]:
    """Return the tensors in the graph of what torch has compiled: a frozen network has its weights there."""
    if not is_script(compiled):
        return []
    inner = getattr(compiled, "_c", None)  # of a module, which has several methods
    methods = [compiled] if inner is None else [inner._get_method(name) for name in inner._method_names()]
    graphs = [method.inlined_graph for method in methods]  # held, because nodes end with their graph
    found = []
    for node in (node for graph in graphs for node in _nodes(graph)):
        for name in node.attributeNames():
            # A tensor, a list of tensors, or any other value.
            if (kind := node.kindOf(name)) in ("t", "ts", "ival"):
                value = getattr(node, kind)(name)
                found.append(value.to_dense() if kind == "t" and value.is_mkldnn else value)
    return [value for value in found if not _is_written(value)]


def _is_written(value: Any) -> bool:
    """Return whether a script has a value as text."""
    if isinstance(value, list | tuple):
        return all(map(_is_written, value))
    return isinstance(value, int | float | str | NoneType)


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph of torch, with those inside of loops and conditions."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
