"""What the weights and classes of a network do not show, for its fingerprint."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from typing import Any, Protocol

from tilework._checks import attribute
from tilework.function.scripts import constants
from tilework.identity.digests import digest, steady_digest
from tilework.identity.hidden import place_of, places, script
from tilework.identity.modules import installed
from tilework.writing.kinds import by_name, is_data, is_numbers, is_written, owned

__all__ = ["describe_network"]


class Description(Protocol):
    """Where parts are put."""

    def add(self, value: Any, name: str) -> None:
        """Describe any value under a name."""

    def put(self, name: str, value: str) -> None:
        """Add a part."""


def describe_network(description: Description, value: Any, name: str, *, modes: bool) -> None:
    """Describe what weights do not show: attributes, tensors that are not saved, hooks, compiled code."""
    modules, plain, found = list(value.modules()), list[Any](), list[Any]()
    saved = places(value.state_dict().values())
    shown = all(installed(attribute(type(m).__repr__, "__module__")) for m in modules)
    for number, module in enumerate(modules):
        attributes = dict(getattr(module, "__dict__", {}))
        for kind in ("_buffers", "_parameters"):
            for key, tensor in (attributes.pop(kind, None) or {}).items():
                if (place := place_of(tensor)) is not None and place not in saved:
                    plain.append((number, key, steady_digest(tensor)))
        for key, part in sorted(attributes.items()):
            what = f"{name} {number} {key}"
            if (data := _attribute(description, module, key, part, what, modules, shown=shown)) is not None:
                plain.append((number, key, data))
        plain.append((number, "script", script(module)))
        found += [(number, part) for part in constants(module)]
        for place, node in enumerate(_calls(module)):
            description.add(node, f"{name} {number} call {place}")
    description.put(f"{name} attributes", digest(plain))
    if found:
        description.put(f"{name} constants", steady_digest(found))
    trained = [bool(attribute(m, "training")) for m in modules]  # a frozen one does not say
    if modes and any(trained):
        description.put(f"{name} training", digest(trained))
    versions = {installed(type(m).__module__) for m in modules} - {None}
    description.put(f"{name} packages", ", ".join(sorted(map(str, versions))))


def _attribute(
    description: Description, module: Any, key: str, part: Any, name: str, modules: list[Any], *, shown: bool
) -> str | None:
    """Describe an attribute of a module; return a digest of data, which have no part of their own."""
    own = owned(module)
    if key.endswith("_hooks"):
        # Torch numbers them by a counter of the process.
        if part:
            description.add(list(part.values()), name)
    elif key.startswith("__"):
        return None  # methods of the network of which a script was made
    elif isinstance(part, types.FunctionType | types.MethodType):
        holder, function = getattr(part, "__self__", None), getattr(part, "__func__", part)
        # Not one that torch has put there.
        if own or installed(function.__module__) is None or by_name(function) is function:
            inside = holder is None or any(holder is m for m in modules)
            description.add(function if inside else part, name)
    elif key in ("_modules", "training") or (key.startswith("_") and not own):
        return None
    elif is_data(part) and not isinstance(part, Mapping):
        return steady_digest(part)
    elif own or owned(part) or isinstance(part, functools.partial | types.BuiltinFunctionType):
        description.add(part, name)
    elif is_written(part) and not (shown and is_numbers(part)):  # other objects of packages may be caches
        return steady_digest(part)
    return None


def _calls(module: Any) -> list[Any]:
    """Return the user's functions in the graph of a module, of which its code has names alone."""
    fx = sys.modules.get("torch.fx")
    if fx is None or not isinstance(module, fx.GraphModule):
        return []
    return [n.target for n in module.graph.nodes if n.op == "call_function" and owned(n.target)]
