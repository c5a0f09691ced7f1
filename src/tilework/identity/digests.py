"""Digests of values, equal for equal values in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
from dask.base import tokenize
from dask.tokenize import TokenizationError

from tilework._checks import has
from tilework._types import Array

__all__ = [
    "SHORT",
    "UNKNOWN",
    "digest",
    "has_token",
    "is_network",
    "is_tensor_like",
    "plain_text",
    "steady_digest",
]

UNKNOWN = "unknown"
"""A part that cannot be compared; counts as different even from itself."""
# Values with fewer characters are stored as text, others as a digest of this length.
SHORT = 32
# Containers nested more deeply count as cyclic.
DEPTH = 40


def steady_digest(value: Any) -> str:
    """Return a digest, or `UNKNOWN` if there is none or if it changes from call to call."""
    try:
        found = digest(value)
        if has_token(value) and digest(value) != found:
            return UNKNOWN
    except TokenizationError:
        return UNKNOWN
    return found


def digest(value: Any) -> str:
    """Return a digest of plain data, arrays and tensors; equal for equal data in every process.

    Raises
    ------
    TokenizationError
        For any other object that dask cannot hash deterministically.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(value, state, 0)
    return state.hexdigest()


def plain_text(value: Any) -> str | None:
    """Return a number, a word or a similar plain value as text; None for any other value."""
    if value is None or isinstance(value, bool | int | float | complex | str | Fraction | PurePath | Enum):
        return repr(value)
    if isinstance(value, np.generic | np.dtype):
        return repr(value)
    return None


def _feed(value: Any, state: Any, depth: int) -> None:
    plain = plain_text(value)
    kind = type(value).__name__
    if depth > DEPTH:
        raise TokenizationError("nested too deeply")
    if plain is not None or isinstance(value, bytes | bytearray | range | slice | type(Ellipsis)):
        state.update(f"{kind}:{plain if plain is not None else repr(value)};".encode())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        state.update(f"array:{value.shape}:{value.dtype.str};".encode())
        _feed_array(value, state)
    elif isinstance(value, tuple | list):
        state.update(f"{kind}:{len(value)};".encode())
        for item in value:
            _feed(item, state, depth + 1)
    elif isinstance(value, Mapping):
        state.update(f"{kind}:{len(value)};".encode())
        for key, item in sorted(value.items(), key=lambda pair: repr(pair[0])):
            _feed((key, item), state, depth + 1)
    elif isinstance(value, set | frozenset):
        state.update(f"{kind}:{sorted(map(digest, value))};".encode())
    elif is_network(value):
        state.update(f"network:{type(value).__qualname__}:{value!r};".encode())
        _feed(dict(value.state_dict()), state, depth + 1)
    elif is_tensor_like(value):
        tensor = value.detach().cpu()
        if "bfloat16" in str(tensor.dtype):
            tensor = tensor.float()
        _feed(tensor.resolve_conj().numpy(), state, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type) and not has_token(value):
        _feed((kind, {f.name: getattr(value, f.name) for f in fields(value)}), state, depth + 1)
    else:
        try:
            state.update(tokenize(value, ensure_deterministic=True).encode())
        except TokenizationError:
            raise
        except Exception as error:
            raise TokenizationError(str(error)) from error


def _feed_array(value: Array, state: Any) -> None:
    """Feed the bytes of an array part by part, because a copy of a large one would double its memory."""
    if value.flags.c_contiguous:
        state.update(value.reshape(-1).view(np.uint8).data if value.size else b"")
    elif value.ndim <= 1:
        state.update(np.ascontiguousarray(value).view(np.uint8))
    else:
        for part in value:
            _feed_array(np.asarray(part), state)


def has_token(value: Any) -> bool:
    """Return whether the class of a value says what dask hashes."""
    return _is_of(value, "__dask_tokenize__")


def is_network(value: Any) -> bool:
    """Return whether a value is a torch module, without importing torch."""
    return _is_of(value, "state_dict", "parameters", "modules")


def is_tensor_like(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return _is_of(value, "detach", "numpy")


def _is_of(value: Any, *methods: str) -> bool:
    """Return whether the class of a value has methods; the value itself may claim to have any."""
    return not isinstance(value, type) and has(type(value), *methods)
