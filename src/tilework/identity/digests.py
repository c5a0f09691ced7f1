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

from tilework._checks import attribute, has
from tilework._types import Array
from tilework.function.calling import from_tensor, is_tensor

__all__ = [
    "SHORT",
    "UNKNOWN",
    "digest",
    "has_token",
    "is_network",
    "plain_text",
    "steady_digest",
]

UNKNOWN = "unknown"
"""A part that cannot be compared; counts as different even from itself."""
# Values with fewer characters are stored as text, others as a digest of this length.
SHORT = 32
# Python makes no decimal text of much longer integers, bits.
LONGEST = 14_000
# Types of which a value is its text.
PLAIN = (bool, int, float, complex, str, type(None))
# Dtypes of torch that numpy does not have.
FOREIGN = ("torch.bfloat16", "torch.float8", "torch.complex32")
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
    if type(value) in PLAIN and (type(value) is not int or value.bit_length() <= LONGEST):
        return repr(value)
    if isinstance(value, Enum):
        return _member_text(value)
    if value is np.ma.masked:
        return "masked"
    if isinstance(value, np.generic | np.dtype):
        return repr(value)
    if isinstance(value, Fraction | PurePath):
        return repr(value)
    # What a class of the user shows of itself may be less than it is.
    if isinstance(value, int) and value.bit_length() > LONGEST:
        return hex(value)
    for kind in (int, float, complex, str):
        if isinstance(value, kind):
            return kind.__repr__(value)
    return None


def _member_text(member: Enum) -> str:
    """Return a member of an enumeration as text; its name alone if its value has no text of its own."""
    kind = type(member)
    if plain_text(member.value) is None:  # it may show an address, or an order of its own
        return f"<{kind.__qualname__}.{member.name}>"
    shows = attribute(kind.__repr__, "__module__")
    if shows == "enum" or shows != kind.__module__:
        return repr(member)
    return f"<{kind.__qualname__}.{member.name}: {member.value!r}>"


def _feed(value: Any, state: Any, depth: int) -> None:
    plain = plain_text(value)
    kind = type(value).__name__
    if depth > DEPTH:
        raise TokenizationError("nested too deeply")
    if plain is not None or isinstance(value, bytes | bytearray | range | slice | type(Ellipsis)):
        state.update(f"{kind}:{plain if plain is not None else repr(value)};".encode())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        names = repr(value.dtype) if value.dtype.names else value.dtype.str
        state.update(f"array:{value.shape}:{names};".encode())
        _feed_array(np.asarray(value), state)
        _feed_subclass(value, state, depth)
    elif isinstance(value, tuple | list):
        state.update(f"{kind}:{len(value)};".encode())
        for item in value:
            _feed(item, state, depth + 1)
    elif isinstance(value, Mapping) and not has_token(value):
        state.update(f"{kind}:{len(value)};".encode())
        pairs = sorted(value.items(), key=lambda pair: repr(pair[0]))
        for key, item in pairs:
            _feed((key, item), state, depth + 1)
        if [key for key, _ in pairs] != list(value):
            _feed(("order", *value), state, depth + 1)
    elif isinstance(value, set | frozenset):
        state.update(f"{kind}:{sorted(map(digest, value))};".encode())
    elif is_network(value):
        state.update(f"network:{type(value).__qualname__}:{value!r};".encode())
        _feed(dict(sorted(value.state_dict().items(), key=lambda pair: repr(pair[0]))), state, depth + 1)
    elif is_tensor(value):
        _feed_tensor(value, state, depth)
    elif is_dataclass(value) and not isinstance(value, type) and not has_token(value):
        _feed((kind, {f.name: getattr(value, f.name) for f in fields(value)}), state, depth + 1)
    elif kind == "ScriptObject":  # of torch; two pickles of it are equal by chance
        raise TokenizationError("a compiled object")
    else:
        try:
            state.update(tokenize(value, ensure_deterministic=True).encode())
        except TokenizationError:
            raise
        except Exception as error:
            raise TokenizationError(str(error)) from error


def _feed_tensor(value: Any, state: Any, depth: int) -> None:
    """Feed the numbers of a tensor, and its dtype and layout if numpy has no like of them."""
    try:
        tensor = value.detach().cpu()
        layout, dtype = str(tensor.layout), str(tensor.dtype)
        if layout != "torch.strided" or dtype.startswith(FOREIGN):
            state.update(f"{layout}:{dtype};".encode())
        if tensor.is_quantized:
            _feed((dtype, str(tensor.qscheme()), repr(tensor.dequantize().tolist())), state, depth + 1)
            tensor = tensor.int_repr()
        array = from_tensor(tensor)
    except Exception as error:  # without numbers, as on the device "meta"
        raise TokenizationError(str(error)) from error
    _feed(array, state, depth + 1)


def _feed_subclass(value: Array, state: Any, depth: int) -> None:
    """Feed what an array of a class derived from numpy's is besides its numbers."""
    if type(value) in (np.ndarray, np.memmap):
        return
    state.update(f"{type(value).__qualname__};".encode())
    if isinstance(value, np.ma.MaskedArray):
        _feed((np.ma.getmaskarray(value), value.fill_value), state, depth + 1)
    else:
        _feed(getattr(value, "__dict__", {}), state, depth + 1)


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


def _is_of(value: Any, *methods: str) -> bool:
    """Return whether the class of a value has methods; the value itself may claim to have any."""
    return not isinstance(value, type) and has(type(value), *methods)
