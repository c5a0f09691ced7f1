"""Functions that tiles are given to: heavy ones built once per process, networks, and how all are called."""

from __future__ import annotations

import functools
import hashlib
import inspect
import multiprocessing
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import numpy as np

from tilework.errors import ContractError, TilingError, one_of

__all__ = [
    "LoadOnce",
    "TorchFunction",
    "as_array",
    "as_results",
    "check_function",
    "from_torch",
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


# -- networks ---------------------------------------------------------------------------------------------

_ACTIVATIONS = ("softmax", "sigmoid", "argmax")


class TorchFunction:
    """A torch network that takes and returns numpy batches; made by `from_torch`."""

    batched = True

    def __init__(
        self,
        module: Any,
        device: str = "auto",
        autocast: str | None = None,
        add_channel: bool | None = None,
        channel_axis: int | None = None,
        activation: str | Callable[[Any], Any] | None = None,
    ) -> None:
        self._module, self._device, self._autocast = module, device, autocast
        self._add_channel, self._channel_axis, self._activation = (
            add_channel,
            channel_axis,
            activation,
        )
        self._ready: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_ready", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _ready=None, _lock=threading.Lock())

    def _prepare(self) -> tuple[Any, str, Any]:
        """Return the network in evaluation mode, its device, and torch."""
        import torch

        with self._lock:
            if self._ready is None:
                device = self._device
                if device == "auto":
                    device = "cuda" if torch.cuda.is_available() else "cpu"
                _one_thread(torch)
                module = self._module.to(device).eval()
                self._ready = module, device
            return (*self._ready, torch)

    def __call__(self, batch: Array) -> Any:
        """Return the network's result for a batch of crops as numpy, ``(batch, ...)``."""
        module, device, torch = self._prepare()
        if self._channel_axis is not None:
            batch = np.moveaxis(batch, _behind_batch(self._channel_axis, batch.ndim), 1)
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
        parameter = next(module.parameters(), None)
        if parameter is not None and x.is_floating_point() and not self._autocast:
            x = x.to(parameter.dtype)
        add = _wants_channel(module, x.ndim) if self._add_channel is None else self._add_channel
        with (
            torch.inference_mode(),
            torch.autocast(
                device,
                dtype=getattr(torch, self._autocast or "float32"),
                enabled=self._autocast is not None,
            ),
        ):
            y = module(x.unsqueeze(1) if add else x)
        return _each(y, lambda t: self._finish(t, add, torch))

    def _finish(self, y: Any, added: bool, torch: Any) -> Array:
        if callable(self._activation):
            y = self._activation(y)
        elif self._activation is not None:
            act = getattr(torch, self._activation)
            y = act(y) if self._activation == "sigmoid" else act(y, dim=1)
        if added and y.ndim > 1 and y.shape[1] == 1 and self._activation != "argmax":
            y = y.squeeze(1)
        array = as_array(y)
        if self._channel_axis is not None and self._activation != "argmax":
            array = np.moveaxis(array, 1, _behind_batch(self._channel_axis, array.ndim))
        return array


def _one_thread(torch: Any) -> None:
    """Let torch use one thread in a process beside others, unless the environment says how many."""
    if multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _behind_batch(axis: int, ndim: int) -> int:
    return axis + 1 if axis >= 0 else ndim + axis


def _each(value: Any, act: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {k: act(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(act(v) for v in value)
    return act(value)


def _wants_channel(module: Any, ndim: int) -> bool:
    """Return whether the first convolution takes one axis more than the batch has."""
    for part in module.modules():
        name = type(part).__name__
        if name in ("Conv1d", "Conv2d", "Conv3d"):
            return int(name[4]) + 2 == ndim + 1
    return False


def from_torch(
    module_or_factory: Any,
    *,
    device: str = "auto",
    autocast: str | None = None,
    add_channel: bool | None = None,
    channel_axis: int | None = None,
    activation: str | Callable[[Any], Any] | None = None,
) -> TorchFunction | LoadOnce:
    """Return a torch network as a function of numpy crops.

    The network runs in evaluation and inference mode; it always gets a batch, of one crop when
    `tiled_map` has no ``batch_size``.

    Parameters
    ----------
    module_or_factory : torch.nn.Module or callable
        The network, or better a callable without arguments that builds it: then each process builds it
        once and it never enters the graph.
    device : str
        "auto" takes the first CUDA device where there is one, else the CPU.
    autocast : str, optional
        "float16" or "bfloat16".
    add_channel : bool, optional
        Whether crops get a channel axis of length 1 in front (which is taken off the result again). Left
        out, the dimension of the network's first convolution decides.
    channel_axis : int, optional
        Where the channels stand in a crop, batch excluded, when they are not in front; they are put back
        there in the result.
    activation : "softmax", "sigmoid", "argmax" or callable, optional
        Applied to each result, along the channel axis.

    Returns
    -------
    TorchFunction or LoadOnce

    Raises
    ------
    TypeError
        For something that is neither a module nor a callable.
    """
    if isinstance(activation, str):
        one_of("activation", activation, _ACTIVATIONS)
    if autocast is not None:
        one_of("autocast", autocast, ("float16", "bfloat16"))
    torch = sys.modules.get("torch")
    options = (device, autocast, add_channel, channel_axis, activation)
    if torch is not None and isinstance(module_or_factory, torch.nn.Module):
        return TorchFunction(module_or_factory, *options)
    if not callable(module_or_factory):
        raise TypeError(
            f"give a torch module or a callable that builds one; got {type(module_or_factory).__name__}."
        )
    built = load_once(functools.partial(_build, module_or_factory, options))
    built.batched = True
    return built


def _build(factory: Callable[[], Any], options: tuple[Any, ...]) -> TorchFunction:
    return TorchFunction(factory(), *options)


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
