"""Checks of the user's function and of its results."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tilework._types import Array
from tilework.errors import ContractError

__all__ = [
    "as_array",
    "as_results",
    "call_whole",
    "check_function",
    "check_tile_keyword",
    "from_tensor",
    "in_structure",
    "is_batched",
    "is_tensor",
    "keys_of",
    "takes_keyword",
    "without_batch",
]

T = TypeVar("T")


def check_function(fn: Any) -> None:
    """Raise a `TypeError` unless ``fn`` can be called with a numpy crop."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(fn, torch.nn.Module):
        raise TypeError(
            "fn is a bare torch module, which takes tensors; wrap it: tiled_map(tw.from_torch(module), ...), "
            "or tw.from_torch(factory) so that each process builds it once."
        )
    if not callable(fn):
        raise TypeError(f"fn must be callable; got {type(fn).__name__}.")


def is_batched(fn: Any) -> bool:
    """Return whether ``fn`` always takes a batch, as functions made by `from_torch` do."""
    return getattr(fn, "__tilework_batched__", False) is True


def from_tensor(tensor: Any) -> Array:
    """Return a torch tensor of any kind, layout and device as a numpy array; a view where numpy has its like.

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
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    # numpy has no bfloat16, no floats of 8 bits and no complex numbers of 32.
    if tensor.is_complex() and tensor.dtype is not torch.complex128:
        tensor = tensor.to(torch.complex64)
    elif tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
        tensor = tensor.to(torch.float32)
    return np.asarray(tensor.numpy())


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
    if hasattr(result, "todense"):
        raise ContractError(f"{what} sparse array; make it a dense one.")
    try:
        return np.asarray(result)
    except Exception as error:
        raise ContractError(
            f"{what} {type(result).__name__} of which numpy cannot make an array: {error}."
        ) from error


def as_results(result: Any, keys: Sequence[Any]) -> list[Array]:
    """Return the results of one call as arrays in the order of ``keys`` (one None: a single array)."""
    if len(keys) == 1 and keys[0] is None:
        if type(result) is not np.ndarray and isinstance(result, tuple | list | Mapping):
            raise ContractError(
                f"the function returned a {type(result).__name__} of {len(result)}; one array was declared. "
                "Declare output=(Output(...), ...) or a dict of them."
            )
        return [as_array(result)]
    if not isinstance(result, tuple | list | Mapping):
        raise ContractError(
            f"the function returned a {type(result).__name__}; the declared outputs are {list(keys)}."
        )
    found = list(result) if isinstance(result, Mapping) else list(range(len(result)))
    if set(found) != set(keys):
        raise ContractError(f"the function returned outputs {found}; the declared ones are {list(keys)}.")
    return [as_array(result[key]) for key in keys]


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
    arrays = as_results(raw, keys_of(raw))
    for array in arrays:
        if not array.ndim or len(array) != size:
            raise ContractError(
                f"the function got a batch of {size} crops and returned shape {array.shape}; the first axis "
                "must be the batch."
            )
    return in_structure(raw, [array[:n] for array in arrays])


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
