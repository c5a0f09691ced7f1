"""Checks of the user's function and of its results."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tilework._checks import attribute, has
from tilework._types import Array
from tilework.errors import ContractError
from tilework.function.device_array import DeviceArray
from tilework.function.device_memory import with_room
from tilework.function.tensors import is_module

__all__ = [
    "as_array",
    "as_results",
    "call_whole",
    "check_function",
    "check_tile_keyword",
    "from_tensor",
    "in_structure",
    "is_batched",
    "is_on_device",
    "is_tensor",
    "joined",
    "keys_of",
    "plain_tensor",
    "takes_keyword",
    "without_batch",
]

T = TypeVar("T")


def check_function(fn: Any) -> None:
    """Raise a `TypeError` unless ``fn`` can be called with a numpy crop."""
    if is_module(fn):
        raise TypeError(
            "fn is a bare torch module, which takes tensors; wrap it: tiled_map(tw.from_torch(module), ...), "
            "or tw.from_torch(factory) so that each process builds it once."
        )
    if not callable(fn):
        raise TypeError(f"fn must be callable; got {type(fn).__name__}.")


def is_batched(fn: Any) -> bool:
    """Return whether ``fn`` always takes a batch, as functions made by `from_torch` do."""
    return attribute(fn, "__tilework_batched__") is True


def is_on_device(fn: Any) -> bool:
    """Return whether the results of ``fn`` stay on its device, as with ``from_torch(on_device=True)``."""
    return attribute(fn, "__tilework_on_device__") is True


def from_tensor(tensor: Any) -> Array:
    """Return a torch tensor of any kind, layout and device as a numpy array; a view where numpy has its like.

    Raises
    ------
    ContractError
        For masked and for nested tensors, and those of the meta device.
    """
    if tensor.device.type == "meta":
        raise ContractError("a tensor on the meta device has no samples; compute it on another one.")
    return np.asarray(_with_known_dtype(plain_tensor(tensor).cpu()).numpy())


def plain_tensor(tensor: Any) -> Any:
    """Return a dense tensor without gradient, where it is.

    Raises
    ------
    ContractError
        For masked and for nested tensors.
    """
    torch: Any = sys.modules["torch"]
    if type(tensor).__name__ == "MaskedTensor":
        raise ContractError("a masked tensor would lose its mask; fill it first: tensor.to_tensor(value).")
    if tensor.is_nested:
        raise ContractError("a nested tensor has no shape; pad it first: tensor.to_padded_tensor(value).")
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):  # distributed over processes
        tensor = tensor.full_tensor()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.as_subclass(torch.Tensor)
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.resolve_conj().resolve_neg()


def _with_known_dtype(tensor: Any) -> Any:
    """Return a tensor in a dtype that numpy has: it has no bfloat16, floats of 8 bits, or complex of 32."""
    torch: Any = sys.modules["torch"]
    if tensor.is_complex() and tensor.dtype is not torch.complex128:
        tensor = tensor.to(torch.complex64)
    elif tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor


def is_tensor(value: Any) -> bool:
    """Return whether ``value`` is a torch tensor, of any subclass; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(result: Any, what: str = "the function returned a") -> Array:
    """Return one result of a function as a numpy array; ``what`` begins the message if it is none.

    Raises
    ------
    ContractError
        For masked arrays, arrays of objects, and sparse ones of other libraries than torch.
    """
    if type(result) is np.ndarray:  # every tile comes here
        array = result
    elif is_tensor(result):
        return from_tensor(result)
    else:
        array = _as_array(result, what)
    if array.dtype.hasobject:
        raise ContractError(f"{what} {type(result).__name__} of dtype object; make it numbers.")
    return array


def _as_array(result: Any, what: str) -> Array:
    if result is None:
        raise ContractError(f"{what.removesuffix(' a')} None; it must return an array.")
    if isinstance(result, np.ma.MaskedArray):
        raise ContractError(f"{what} masked array; fill it first: result.filled(value).")
    if has(result, "todense"):
        raise ContractError(f"{what} sparse array; make it a dense one.")
    try:
        return np.asarray(result)
    except Exception as error:
        raise ContractError(
            f"{what} {type(result).__name__} of which numpy cannot make an array: {error}."
        ) from error


def as_results(
    result: Any, keys: Sequence[Any], *, stay: bool = False, places: Sequence[Mapping[str, int]] = ()
) -> list[Array]:
    """Return the results of one call as arrays in the order of ``keys`` (one None: a single array).

    With ``stay``, tensors stay on their device, as `DeviceArray`. ``places`` has for each key the position of
    each tiled axis by its name, in a result as it is returned: results whose own names differ are refused.
    """
    make = _staying if stay else as_array
    if len(keys) == 1 and keys[0] is None:
        if type(result) is not np.ndarray and isinstance(result, tuple | list | Mapping):
            raise ContractError(
                f"the function returned a {type(result).__name__} of {len(result)}; one array was declared. "
                "Declare output=(Output(...), ...) or a dict of them."
            )
        if places and type(result) is not np.ndarray:
            _check_dims(result, places[0])
        return [make(result)]
    if not isinstance(result, tuple | list | Mapping):
        raise ContractError(
            f"the function returned a {type(result).__name__}; the declared outputs are {list(keys)}."
        )
    found = list(result) if isinstance(result, Mapping) else list(range(len(result)))
    if set(found) != set(keys):
        raise ContractError(f"the function returned outputs {found}; the declared ones are {list(keys)}.")
    for key, own in zip(keys, places, strict=False):
        _check_dims(result[key], own)
    return [make(result[key]) for key in keys]


def _dims(result: Any) -> tuple[Any, ...]:
    """Return the names of the axes of an object of xarray; empty for any other array."""
    dims = attribute(result, "dims")
    return dims if isinstance(dims, tuple) else ()


def _check_dims(result: Any, places: Mapping[str, int]) -> None:
    """Raise a `ContractError` if an axis of a result has the name of a tiled axis at another position.

    Nobody knows then whether the samples or the names are in the wrong order. The names that xarray makes up
    by counting say nothing.
    """
    dims = _dims(result)
    wrong = [n for k, n in enumerate(dims) if places.get(n, k) != k and not re.fullmatch(r"dim_\d+", n)]
    if wrong:
        wanted = ", ".join(f"{name!r} at {axis}" for name, axis in places.items())
        raise ContractError(
            f"the function returned a {type(result).__name__} with dims {dims}; the axes of a result are "
            f"taken by their position, and the tiled ones must be {wanted}. Transpose it, or return it "
            "without names if they are not those of the image."
        )


def _staying(result: Any) -> Any:
    """Return a tensor as an array on its device; anything else as `as_array` does."""
    if not is_tensor(result):
        return as_array(result)
    tensor = plain_tensor(result)
    return DeviceArray(with_room(lambda: _with_known_dtype(tensor), tensor.device))


def keys_of(result: Any) -> list[Any]:
    """Return the keys of a dict or the numbers of a tuple that a function returned; [None] for one array."""
    if isinstance(result, Mapping):
        keys: list[Any] = list(result)
    else:
        keys = list(range(len(result))) if isinstance(result, tuple | list) else [None]
    if not keys:
        raise ContractError("the function returned an empty tuple or dict.")
    return keys


def in_structure(result: Any, values: Sequence[T]) -> T | dict[Any, T] | tuple[T, ...]:
    """Return one value per array of ``result`` as this holds its arrays: alone, in a dict or in a tuple."""
    if isinstance(result, Mapping):
        return dict(zip(result, values, strict=True))
    return tuple(values) if isinstance(result, tuple | list) else values[0]


def call_whole(fn: Any, size: int, *batches: Array, **tiles: Sequence[Any]) -> Any:
    """Return the results of a batch that is given to ``fn`` with ``size`` crops, the last one repeated."""
    n = len(batches[0])
    if n >= size:
        return fn(*batches, **tiles)
    given = (np.concatenate([batch, *[batch[-1:]] * (size - n)]) for batch in batches)
    raw = fn(*given, **{name: (*own, *[own[-1]] * (size - n)) for name, own in tiles.items()})
    keys = keys_of(raw)
    # Tensors stay where they are, and names stay with what has some.
    parts = [raw] if keys == [None] else [raw[key] for key in keys]
    arrays = [part if is_tensor(part) or _dims(part) else as_array(part) for part in parts]
    for array in arrays:
        if not array.ndim or len(array) != size:
            raise ContractError(
                f"the function got a batch of {size} crops and returned shape {array.shape}; the first axis "
                "must be the batch."
            )
    return in_structure(raw, [array[:n] for array in arrays])


def joined(parts: Sequence[Any]) -> Any:
    """Return the results of calls with parts of a batch as that of one call; each may be a tuple or dict."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Mapping):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(joined(column) for column in zip(*parts, strict=True))
    if not first.ndim:
        raise ContractError("the function returned one number for a batch; the first axis must be the batch.")
    return sys.modules["torch"].cat(list(parts)) if is_tensor(first) else np.concatenate(parts)


def without_batch(arrays: Sequence[Array]) -> list[Array]:
    """Return the results for a batch of one crop, without their batch axis."""
    if any(not a.ndim or a.shape[0] != 1 for a in arrays):
        raise ContractError(
            f"the function got a batch of 1 crop and returned shapes {[a.shape for a in arrays]}; the first "
            "axis must be the batch."
        )
    return [a[0] for a in arrays]


def check_tile_keyword(fn: Any, *, pass_tile: bool, batched: bool) -> None:
    """Raise a `TypeError` if ``pass_tile`` is set and the signature shows that ``fn`` cannot take a tile."""
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
