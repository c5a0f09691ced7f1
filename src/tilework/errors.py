"""Exceptions and warnings.

::

    ValueError
     └── TilingError            what was asked cannot be done
          ├── GridError         impossible geometry: crop, overlap, stride, axes
          ├── ContractError     a function returned something else than was declared
          ├── AlignmentError    a write that would touch a storage unit twice
          └── MemoryBudgetError the smallest plan exceeds the memory limit
    UserWarning
     └── TilingWarning          legal, but probably not what was meant
          └── CostWarning       legal, but much dearer than it need be

Wrong types are plain ``TypeError``. Messages say the rule, the axis and the values, and what to change.
"""

from __future__ import annotations

import difflib
import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AlignmentError",
    "ContractError",
    "CostWarning",
    "GridError",
    "MemoryBudgetError",
    "TilingError",
    "TilingWarning",
]


class TilingError(ValueError):
    """What was asked cannot be done; the message says what to change."""


class GridError(TilingError):
    """The crops do not fit together: crop, overlap, stride, multiple or axes."""


class ContractError(TilingError):
    """A function broke its declaration: shape, dtype or number of results."""


class AlignmentError(TilingError):
    """A storage unit would be written by more than one task."""


class MemoryBudgetError(TilingError):
    """Even the smallest plan exceeds the memory limit."""


class TilingWarning(UserWarning):
    """Legal, but probably not what was meant."""


class CostWarning(TilingWarning):
    """Legal, but much dearer than it need be."""


# What other tools call the same thing, so that the hint names the meaning and not only the spelling.
_ELSEWHERE = {
    "periodic": "wrap",
    "nearest": "edge",
    "mirror": "reflect",
    "zeros": "constant",
    "none": "clip",
    "crop": "trim",
    "mean": "average",
    "uniform": "average",
    "valid": "drop",
    "same": "pad",
    "cosine": "hann",
    "triangle": "linear",
}


def one_of(what: str, value: object, words: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``words``, else raise with the nearest right word."""
    words = tuple(words)
    if isinstance(value, str) and value in words:
        return value
    near = []
    if isinstance(value, str):
        low = value.lower()
        near = [w for w in (_ELSEWHERE.get(low), low) if w in words]
        near = near or difflib.get_close_matches(low, words, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    error = TilingError if isinstance(value, str) else TypeError
    raise error(f"{what} must be one of {', '.join(map(repr, words))}; got {value!r}{hint}")


def whole(what: str, value: object) -> int:
    """Return ``value`` as an int; a float or bool is refused."""
    try:
        if type(value).__name__ in ("bool", "bool_") or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be a whole number; got {value!r} ({type(value).__name__}).") from None


def sequence(value: object) -> bool:
    """Return whether ``value`` holds one entry per axis: a list, tuple, range or 1-D array."""
    return isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) == 1


def wholes(what: str, values: Any) -> tuple[int, ...]:
    """Return the ints of a sequence; one int stands for a sequence of one."""
    return tuple(whole(what, v) for v in (tuple(values) if sequence(values) else (values,)))
