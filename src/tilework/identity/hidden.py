"""What objects keep outside of their attributes: slots, content, and code that torch compiled."""

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

__all__ = ["content", "place_of", "places", "script", "slots"]


def slots(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of slots that are set."""
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in sorted((names,) if isinstance(names, str) else names):
            if name in ("__dict__", "__weakref__"):
                continue
            hidden = name.startswith("__") and not name.endswith("__")
            try:
                yield name, getattr(value, f"_{kind.__name__.lstrip('_')}{name}" if hidden else name)
            except AttributeError:
                continue


def content(value: Any) -> list[Any]:
    """Return what an instance of a compiled class, or of one derived from it, keeps outside of slots."""
    try:
        made, arguments, *rest = value.__reduce_ex__(4)
    except Exception:  # it cannot be pickled
        return []
    usual = made is copyreg.__newobj__ or made is type(value)  # type: ignore[attr-defined]
    if not usual and isinstance(made, FunctionType):
        return []
    found = [
        [a for a in arguments if not isinstance(a, type)],
        *(list(r) for r in rest[1:3] if r is not None),
    ]
    if rest and not _is_attributes(rest[0]):
        found.append([rest[0]])
    return [part for part in found if part]


def _is_attributes(state: Any) -> bool:
    """Return whether a state for pickle is a ``__dict__``, with slots or without, or nothing."""
    if isinstance(state, tuple) and len(state) == 2:
        return all(part is None or isinstance(part, dict) for part in state)
    return state is None or isinstance(state, dict)


def script(module: Any) -> str | None:
    """Return the text of a function or network that torch has compiled; None for others."""
    code, compiled = None, getattr(module, "_c", None)
    with suppress(Exception):  # any class may have such attributes; a script may lack a forward method
        code = module.code
    with suppress(Exception):
        code = f"{code}\n{compiled.dump_to_str(False, True, False)}" if compiled is not None else code
    # Without addresses, the mode, and numbers that a process gives to classes of one name.
    return (
        re.sub(r"___torch_mangle_\d+\.|0x[0-9a-f]+|training = \w+", "", code)
        if isinstance(code, str)
        else None
    )


def places(tensors: Iterable[Any]) -> set[Any]:
    """Return where tensors are in memory, by which one of them is known again."""
    return {found for tensor in tensors if (found := place_of(tensor)) is not None}


def place_of(tensor: Any) -> Any:
    """Return where a tensor is in memory and its shape; None for no tensor."""
    if not hasattr(tensor, "data_ptr"):
        return None
    try:
        return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())
    except Exception:  # without memory yet, or not strided
        return id(tensor)
