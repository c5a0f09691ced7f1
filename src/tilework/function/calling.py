"""Functions that tiles are given to: heavy ones built once per process, networks, and how all are called."""

from __future__ import annotations

import hashlib
import inspect
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import numpy as np

from tilework.errors import ContractError, TilingError

__all__ = [
    "LoadOnce",
    "as_array",
    "as_results",
    "check_function",
    "load_once",
]

Array = np.ndarray[Any, Any]

# Models held per process. A run uses one or two; the bound only stops a long session from keeping them all.
HELD = 8


class _Registry:
    """Objects by token, built once, the least recently used dropped beyond `HELD`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def entry(self, token: str, concurrent: int) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(token, _Entry(concurrent))
            self._entries.move_to_end(token)
            while len(self._entries) > HELD:
                self._entries.popitem(last=False)
            return entry


class _Entry:
    def __init__(self, concurrent: int) -> None:
        self.lock = threading.Lock()
        self.calls = threading.BoundedSemaphore(concurrent)
        self.built = False
        self.value: Any = None


# In this module, never in the user's: a function defined in a notebook gets fresh globals in every task, so
# a cache beside it would be empty each time (seen with distributed 2026.8).
_REGISTRY = _Registry()


class LoadOnce:
    """A recipe that is built once per process; made by `load_once`."""

    def __init__(
        self,
        packed: bytes,
        token: str,
        concurrent: int,
        inner: Any = None,
        batched: bool = False,
        version: str | None = None,
    ) -> None:
        self.packed, self.token, self._concurrent, self._inner = packed, token, concurrent, inner
        self.batched, self.version = batched, version

    def _built(self) -> _Entry:
        entry = _REGISTRY.entry(self.token, self._concurrent)
        with entry.lock:
            if not entry.built:
                factory, args, kwargs = cloudpickle.loads(self.packed)
                entry.value = factory(*args, **kwargs)
                entry.built = True
        return entry

    def get(self) -> Any:
        """Return the object, building it if this process has not done so."""
        return self._built().value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object; at most ``concurrent`` calls run at a time in a process."""
        entry = self._built()
        with entry.calls:
            return entry.value(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.packed, self.token, self._concurrent, self._inner, self.batched, self.version)
        return LoadOnce, values

    def __dask_tokenize__(self) -> Any:
        return "tilework.load_once", self.token

    def __repr__(self) -> str:
        return f"load_once({self._inner}, token={self.token[:8]!r})"


def load_once(
    factory: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    concurrent: int = 1,
    version: str | None = None,
) -> LoadOnce:
    """Return a stand-in for ``factory(*args, **kwargs)`` that is built once per process.

    The graph carries the factory and its arguments, a few hundred bytes, never what it builds. Give the
    result as ``fn`` (a model) or as ``array`` (a reader).

    Parameters
    ----------
    factory : callable
        Builds the model or opens the array; may be defined in a notebook.
    args, kwargs
        Its arguments, for example the path of the weights.
    concurrent : int
        Calls that may run at a time in a process; other threads read and write meanwhile.
    version : str, optional
        Says that the result of the factory is another one, where its code and arguments do not.

    Returns
    -------
    LoadOnce
        Callable like the object that the factory builds; ``get()`` returns that object.

    Examples
    --------
    >>> double = load_once(lambda k: lambda x: k * x, (2,))
    >>> double(21)
    42
    """
    if type(concurrent) is not int or concurrent < 1:
        raise TilingError(f"concurrent must be a whole number of calls, at least 1; got {concurrent!r}.")
    if not callable(factory):
        raise TypeError(f"factory must be a callable that builds the object; got {type(factory).__name__}.")
    packed = cloudpickle.dumps((factory, tuple(args), dict(kwargs or {})))
    digest = hashlib.sha256(packed + repr((version, concurrent)).encode()).hexdigest()
    name = getattr(factory, "__qualname__", type(factory).__name__)
    return LoadOnce(packed, digest, concurrent, name, version=version)


# -- calling ----------------------------------------------------------------------------------------------


def check_function(fn: Any) -> None:
    """Raise a `TypeError` unless ``fn`` can be called with a numpy crop."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(fn, torch.nn.Module):
        raise TypeError(
            "fn is a bare torch module, which takes tensors; wrap it: tiled_map(tw.from_torch(module), ...), "
            "or "
            "tw.from_torch(factory) so that each process builds it once."
        )
    if not callable(fn):
        raise TypeError(f"fn must be callable; got {type(fn).__name__}.")


def is_batched(fn: Any) -> bool:
    """Return whether ``fn`` always takes a batch, as functions made by `from_torch` do."""
    return bool(getattr(fn, "batched", False))


def as_array(result: Any) -> Array:
    """Return one result of a function as a numpy array.

    Raises
    ------
    ContractError
        For masked, sparse and object arrays.
    """
    if hasattr(result, "detach"):
        result = result.detach().cpu()
        if str(getattr(result, "dtype", "")) == "torch.bfloat16":
            result = result.float()  # numpy has no bfloat16
    if isinstance(result, np.ma.MaskedArray):
        raise ContractError("the function returned a masked array; fill it first: result.filled(value).")
    if hasattr(result, "todense"):
        raise ContractError("the function returned a sparse array; return a dense one.")
    array = np.asarray(result)
    if array.dtype.hasobject:
        raise ContractError(f"the function returned {type(result).__name__} of dtype object; return numbers.")
    return array


def as_results(result: Any, keys: Sequence[Any]) -> list[Array]:
    """Return the results of one call as arrays in the order of ``keys`` (one None: a single array)."""
    if list(keys) == [None]:
        if isinstance(result, tuple | list | Mapping):
            raise ContractError(
                f"the function returned a {type(result).__name__} of {len(result)}; one array was declared. "
                "Declare "
                "output=(Output(...), ...) or a dict of them."
            )
        return [as_array(result)]
    by_name = isinstance(keys[0], str)
    if by_name != isinstance(result, Mapping) or (not by_name and not isinstance(result, tuple | list)):
        raise ContractError(
            f"the function returned a {type(result).__name__}; the declared outputs are a "
            f"{'dict' if by_name else 'tuple'} of {list(keys)}."
        )
    found = list(result) if by_name else list(range(len(result)))
    if set(found) != set(keys):
        raise ContractError(f"the function returned outputs {found}; the declared ones are {list(keys)}.")
    return [as_array(result[key]) for key in keys]


def check_tile_keyword(fn: Any, *, pass_tile: bool, batched: bool) -> None:
    """Raise a `TypeError` where the signature shows that ``fn`` cannot take the tile that it would get."""
    name = "tiles" if batched or is_batched(fn) else "tile"
    if pass_tile and not takes_keyword(fn, name):
        raise TypeError(f"pass_tile=True calls fn with {name}=...; its signature has no argument {name!r}.")


def takes_keyword(fn: Any, name: str) -> bool:
    """Return False only where the signature shows that ``fn`` does not take keyword ``name``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
