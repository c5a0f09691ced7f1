"""What objects keep outside of their attributes: slots, content, and code that torch compiled."""

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

__all__ = ["among", "content", "script", "slots"]


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
    if made is not copyreg.__newobj__ and made is not type(value):  # type: ignore[attr-defined]
        return []
    found = [
        [a for a in arguments if not isinstance(a, type)],
        *(list(r) for r in rest[1:3] if r is not None),
    ]
    return [part for part in found if part]


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


def among(buffer: Any, saved: Mapping[str, Any]) -> bool:
    """Return whether a buffer is one of the saved ones."""
    return buffer is None or any(
        getattr(buffer, "data_ptr", int)() == getattr(other, "data_ptr", str)() for other in saved.values()
    )
