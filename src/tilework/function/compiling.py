"""Networks that torch compiles, each once in a process and once more for each shape."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from tilework.errors import TilingError

__all__ = ["compiled"]

# What torch has compiled of a network; it does not keep the network alive.
_COMPILED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def compiled(module: Any, torch: Any) -> Callable[[Any], Any]:
    """Return a network compiled for the shapes that it gets; the network itself stays as it is."""
    found: Callable[[Any], Any] | None = _COMPILED.get(module)
    if found is None:
        forward: Any = weakref.WeakMethod(module.__call__)

        def call(x: Any) -> Any:
            return forward()(x)

        # Torch keeps at most eight compiled shapes of one code, and runs it uncompiled from then on, so each
        # network has code of its own.
        call.__code__ = call.__code__.replace()
        found = _COMPILED[module] = torch.compile(call, dynamic=False)
    return functools.partial(_run, found)


def _run(found: Callable[[Any], Any], x: Any) -> Any:
    """Return the result of a compiled network; raise a `TilingError` if torch cannot compile it."""
    try:
        return found(x)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        text = str(error).strip().partition("\n")[0]
        raise TilingError(
            f"torch cannot compile the network here ({type(error).__name__}: {text}). It needs a compiler of "
            "C++ on the CPU, and Triton on a GPU; or leave compile=True out."
        ) from error
