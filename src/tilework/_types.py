"""Type aliases that several packages share, and protocols for callables and arrays that users provide."""

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
"""An array of any dtype."""
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Index = tuple[int, ...]
"""One whole number per axis: a shape, lengths, axes, or the number of a block or tile."""
Span = tuple[int, int]
"""A half-open range ``(start, stop)`` of samples along one axis, of tiles or of blocks."""


class Function(Protocol):
    """A function on crops: it takes one numpy array per source, or batches of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return an array, or a tuple or dict of them; ``tile`` and ``tiles`` are the keywords."""


class Predicate(Protocol):
    """A test whether a crop is left out; it takes the same arguments as the function for one tile."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a truth value."""


class ShowProgress(Protocol):
    """A callback that gets the number of finished tiles and the total."""

    def __call__(self, done: int, total: int, /) -> Any:
        """Show progress; the return value is ignored."""


class Sliceable(Protocol):
    """An array of any library that can be read by slicing."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents per axis, samples."""

    @property
    def dtype(self) -> Any:
        """Anything that `numpy.dtype` accepts."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part that `numpy.asarray` accepts."""


class Writable(Sliceable, Protocol):
    """An array of any library that can be written by slicing."""

    def __setitem__(self, index: Any, values: Any, /) -> None:
        """Write a part."""
