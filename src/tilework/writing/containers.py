"""What containers hold, for a fingerprint: items, in one order in every process, and code among them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tilework._checks import attribute
from tilework.writing.kinds import has_dict, is_data, owned

__all__ = ["PLAIN", "WEAK", "held_code", "holds_code", "is_endless", "items_of", "label", "leaves"]

# Of these, a list may have millions.
PLAIN = (bool, int, float, complex, str, bytes, type(None))
WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the keys and items of a container; None for no container, and for a set without code.

    Sets have no order of their own.
    """
    if isinstance(value, Mapping) and not isinstance(value, WEAK):
        return sorted(value.items(), key=lambda pair: repr(label(pair[0])))
    if isinstance(value, tuple | list | deque):
        return list(enumerate(value))
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return list(enumerate(value.flat))
    if isinstance(value, set | frozenset) and any(map(holds_code, value)):
        return list(enumerate(value))
    return None


def leaves(value: Any, around: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Yield the items of containers, inside each other; ``around`` are the ids of those around the value."""
    items = items_of(value)
    if items is None:
        yield value
    elif id(value) not in around:
        for _, item in items:
            yield from leaves(item, around | {id(value)})


def is_endless(value: Any) -> bool:
    """Return whether a container, or one inside it, is inside itself, or they are too deep for Python."""
    try:
        return _holds_itself(value, frozenset())
    except RecursionError:
        return True


def _holds_itself(value: Any, around: frozenset[int]) -> bool:
    if type(value) in PLAIN:
        return False
    if isinstance(value, Mapping) and not isinstance(value, WEAK):
        items: Iterable[Any] = value.values()
    elif isinstance(value, tuple | list | deque):
        items = value
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        items = value.flat
    else:
        return False
    inside = around | {id(value)}
    return id(value) in around or any(_holds_itself(item, inside) for item in items)


def label(key: Any) -> Any:
    """Return a key of a mapping for the name of a part; a function's own text has its address."""
    return attribute(key, "__qualname__", key) if callable(key) and not isinstance(key, type) else key


def holds_code(value: Any) -> bool:
    """Return whether a value is, or holds, a function or an instance; not for what `is_endless`."""
    if type(value) in PLAIN:
        return False
    items = items_of(value)
    if items is not None:
        return owned(value) or any(holds_code(part) for pair in items for part in pair)
    return held_code(value) or owned(value)


def held_code(value: Any) -> bool:
    """Return whether a value is, or holds, a function or an instance with attributes; as `holds_code`."""
    items = items_of(value) if isinstance(value, Mapping | tuple | list) else None
    if items is not None:
        return any(held_code(item) for _, item in items)
    return callable(value) or (has_dict(value) and not is_data(value))
