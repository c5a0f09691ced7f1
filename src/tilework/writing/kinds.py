"""What a value is for a fingerprint: the user's own or installed, data or code."""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilework._checks import attribute, has
from tilework.function.calling import is_tensor
from tilework.identity.digests import UNKNOWN, is_network, plain_text
from tilework.identity.modules import installed

__all__ = [
    "by_name",
    "has_dict",
    "is_compiled",
    "is_data",
    "is_derived",
    "is_numbers",
    "is_of_pandas",
    "is_users",
    "is_written",
    "of_cluster",
    "owned",
    "package_of",
    "package_of_class",
]

# The flag of classes that Python code makes (``Py_TPFLAGS_HEAPTYPE``).
MADE = 1 << 9


def is_derived(value: Any, key: str) -> bool:
    """Return whether an attribute is what a `functools.cached_property` found."""
    return isinstance(inspect.getattr_static(type(value), key, None), functools.cached_property)


def is_users(key: str, member: Any) -> bool:
    """Return whether an attribute of a class, with underscores, is a number or word of the user."""
    made = ("__module__", "__qualname__", "__doc__", "__firstlineno__")
    text = None if member is None else plain_text(member)  # Python sets __hash__ to None
    return key.startswith("__") and key not in made and text is not None


def is_numbers(value: Any) -> bool:
    """Return whether a value is a tuple or list of numbers or words, which torch shows of a module."""
    return isinstance(value, tuple | list) and all(plain_text(item) is not None for item in value)


def is_written(value: Any) -> bool:
    """Return whether a value is numbers and words, in lists and dictionaries, as configurations are."""
    if isinstance(value, Mapping):
        return all(map(is_written, value.values()))
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(is_written, value))
    return plain_text(value) is not None


def package_of(module: Any) -> str | None:
    """Return name and version of the package of a module; a function that was executed may have none."""
    return installed(module) if isinstance(module, str) else None


def package_of_class(kind: type) -> str | None:
    """Return name and version of the package of a class; code without a name puts its classes in builtins."""
    if (
        kind.__module__ == "builtins"
        and kind.__flags__ & MADE
        and getattr(builtins, kind.__name__, 0) is not kind
    ):
        return None
    return package_of(kind.__module__)


def by_name(value: Any) -> Any:
    """Return what has the module and name of a function."""
    try:
        return operator.attrgetter(value.__qualname__)(sys.modules[value.__module__])
    except (AttributeError, KeyError):
        return None


def is_compiled(value: Any) -> bool:
    """Return whether a callable is a function of an extension module."""
    return isinstance(value, types.BuiltinFunctionType) or "cython" in type(value).__name__


def has_dict(value: Any) -> bool:
    """Return whether a value has attributes of its own."""
    return has(value, "__dict__")


def owned(value: Any) -> bool:
    """Return whether a value is an instance of a class of the user, or such a class or function."""
    if isinstance(value, types.FunctionType):
        made, named = package_of(value.__globals__.get("__name__")), package_of(value.__module__)
        if None in (made, named):
            return True
    if isinstance(value, type) and package_of_class(value) is None:
        return True
    return package_of_class(type(value)) is None


def is_data(value: Any) -> bool:
    """Return whether a value is a number, a word, an array, a tensor, a network or a mapping."""
    if is_network(value) or is_tensor(value):
        return True
    return plain_text(value) is not None or isinstance(value, np.ndarray | Mapping)


def is_of_pandas(value: Any) -> bool:
    """Return whether dask knows how to hash an object of pandas, which keeps caches among its attributes."""
    return type(value).__module__.partition(".")[0] == "pandas"


def of_cluster(value: Any) -> str | None:
    """Return what tells objects of `distributed` apart, which hold its client; None for any other value.

    Clients, locks and events do not change samples. What is in a queue or a variable may, and cannot be
    compared.
    """
    if isinstance(value, type) or not type(value).__module__.startswith("distributed."):
        return None
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(key := attribute(value, "key"), str | tuple):
        return f"{name} {key}"
    return UNKNOWN if type(value).__name__ in ("Queue", "Variable") else name
