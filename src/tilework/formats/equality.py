"""Nested values with arrays and NaN in them, compared and as text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from tilework._types import Array

__all__ = ["as_text", "equal", "facts_of"]


def facts_of(value: Any) -> list[tuple[str, Any]]:
    """Return all fields of a value with their names."""
    found = []
    for f in fields(value):
        part = getattr(value, f.name)
        if f.name == "coordinates":
            part = {name: facts_of(coordinate) for name, coordinate in part.items()}
        found.append((f.name, part))
    return found


def as_text(value: Any) -> Any:
    """Return a nested value whose text tells it from others: numpy leaves out samples of long arrays."""
    if isinstance(value, np.ndarray):
        samples = value.tolist() if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
        return str(value.dtype), value.shape, samples
    if isinstance(value, dict):
        return {key: as_text(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_text, value))
    return value


def equal(a: Any, b: Any) -> bool:
    """Return whether two nested values are equal, NaN included."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        first, second = np.asarray(a), np.asarray(b)
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        if first.dtype.kind == "O":
            return _equal_objects(first, second) or all(map(equal, first.flat, second.flat))
        with_nan = first.dtype.kind in "fcmM"
        return bool(np.array_equal(first, second, equal_nan=with_nan))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    try:
        # NaN and NaT differ from themselves.
        return bool(a == b) or bool(a != a and b != b)
    except (TypeError, ValueError):  # comparisons by element
        return type(a) is type(b) and bool(np.array_equal(a, b))


def _equal_objects(a: Array, b: Array) -> bool:
    """Return whether all objects are equal, if they say so; a hundred times as fast as one by one."""
    try:
        return bool(np.array_equal(a, b))
    except (TypeError, ValueError):  # arrays among them
        return False
