"""Names for types that several rooms use, and what callables and arrays from outside have to be."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = [
    "Array",
    "Bits",
    "Floats",
    "Function",
    "Index",
    "Ints",
    "Predicate",
    "ShowProgress",
    "Sliceable",
    "Span",
    "Writable",
]

Array = np.ndarray[Any, Any]
"""Of any dtype."""
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Index = tuple[int, ...]
"""One whole number per axis: a shape, lengths, axes, or the number of a block or tile."""
Span = tuple[int, int]
"""First and one past the last: samples along one axis, tiles, or blocks."""


class Function(Protocol):
    """What is called on crops: one numpy array per source, or batches of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return an array, or a tuple or dict of them; ``tile`` and ``tiles`` are the keywords."""


class Predicate(Protocol):
    """Whether a crop is left out: gets what the function would get of one tile."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a truth value."""


class ShowProgress(Protocol):
    """Gets how many tiles are done, and of how many."""

    def __call__(self, done: int, total: int, /) -> Any:
        """Show it; what is returned is not used."""


class Sliceable(Protocol):
    """An array to read from, of any library."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents per axis, samples."""

    @property
    def dtype(self) -> Any:
        """What `numpy.dtype` takes."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part, which `numpy.asarray` takes."""


class Writable(Sliceable, Protocol):
    """An array to write into, of any library."""

    def __setitem__(self, index: Any, values: Any, /) -> None:
        """Write a part."""
