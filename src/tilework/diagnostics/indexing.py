"""numpy's indexing, for arrays that are computed or read part by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework._types import Array

__all__ = ["Cut", "ascending", "expand", "first_listed", "placed", "together", "whole_of"]


class Cut:
    """A lazy part of any array: slicing it reads nothing, and `numpy.asarray` reads what is left.

    Parameters
    ----------
    array : object with shape, dtype and slicing
        What is read, one box at a time.
    items : sequence of range, int or None, optional
        Samples per axis of ``array``; None is a new axis. Default: all.
    dtype : dtype, optional
        Dtype to which samples are converted.
    """

    def __init__(
        self, array: Any, items: Sequence[range | int | None] | None = None, dtype: Any = None
    ) -> None:
        self._array = array
        self._items = tuple(map(range, array.shape)) if items is None else tuple(items)
        self.shape: tuple[int, ...] = tuple(
            len(i) if isinstance(i, range) else 1 for i in self._items if not isinstance(i, int)
        )
        self.dtype = np.dtype(array.dtype if dtype is None else dtype)
        self.ndim = len(self.shape)

    @property
    def size(self) -> int:
        """Number of samples."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the whole part in memory, bytes."""
        return self.size * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return a lazy part; a number if every axis has an index, an array for lists of indices."""
        asked = expand(key, self.shape)
        if any(isinstance(item, np.ndarray) for item in asked):
            return self._listed(asked)
        items: list[range | int | None] = []
        rest = iter(asked)
        for own in self._items:
            if isinstance(own, int):
                items.append(own)
                continue
            for item in rest:
                if item is not None:
                    break
                items.append(None)
            if own is not None:
                items.append(own[item if isinstance(item, int) else _slice(item)])
            elif isinstance(item, range):
                items.append(None)
        part = Cut(self._array, [*items, *rest], self.dtype)
        if any(item == range(0) for item in asked):
            return np.empty([1 if i is None else len(i) for i in asked if not isinstance(i, int)], self.dtype)
        return part if part.shape else np.asarray(part)[()]

    def _listed(self, asked: Sequence[Any]) -> Any:
        """Return samples at lists of indices, from the box around them."""
        boxes: list[slice] = []
        local: list[Any] = []
        for item in asked:
            if isinstance(item, range):
                boxes.append(_slice(item))
                local.append(slice(None))
            elif item is None:
                local.append(None)
            else:
                numbers = np.asarray(item)
                first, last = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, -1)
                boxes.append(slice(first, last + 1))
                local.append(numbers - first)
        return np.asarray(self[tuple(boxes)])[tuple(local)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy=False cannot be: what is read is always new.")
        key: list[Any] = []
        place: list[Any] = []
        for item in self._items:
            if isinstance(item, range):
                # Stores take no negative steps.
                key.append(_slice(item if item.step > 0 else item[::-1]))
                place.append(slice(None, None, 1 if item.step > 0 else -1))
            elif item is None:
                place.append(None)
            else:
                key.append(item)
        part: Array = np.asarray(self._array[tuple(key)])[tuple(place)]
        return np.asarray(part, self.dtype if dtype is None else dtype)

    def __repr__(self) -> str:
        return f"<Cut: {self.shape} {self.dtype} of {self._array!r}>"


def expand(key: Any, shape: Sequence[int]) -> list[Any]:
    """Return an index per axis (a range, a whole number or an array of numbers), and None for new axes."""
    items = list(key) if isinstance(key, tuple) else [key]
    ndim = len(shape)
    missing = ndim - sum(1 for i in items if i is not None and i is not Ellipsis)
    if sum(1 for i in items if i is Ellipsis) > 1:
        raise IndexError("an index can only have a single ellipsis ('...').")
    if missing < 0:
        raise IndexError(f"too many indices: the result has {ndim} axes, {ndim - missing} were indexed.")
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    rest = [i for i in items[at:] if i is not Ellipsis]
    lengths = iter(shape)
    filled = [*items[:at], *[slice(None)] * missing, *rest]
    return [None if i is None else _along(i, next(lengths)) for i in filled]


def _along(item: Any, n: int) -> Any:
    """Return an index along an axis of ``n`` samples as a range, a whole number or an array of them."""
    if isinstance(item, slice):
        return range(n)[item]
    values = np.asarray(item)
    if values.dtype.kind == "b":
        if values.shape != (n,):
            raise IndexError(f"a mask of an axis needs its length, {n}; got shape {values.shape}.")
        values = np.flatnonzero(values)
    if isinstance(item, list) and not values.size:
        values = values.astype(np.int64)  # numpy makes an empty list an array of floats
    if values.dtype.kind not in "iu":
        raise IndexError(f"indices must be whole numbers, slices or masks; got {item!r}.")
    if values.size and (values.min() < -n or values.max() >= n):
        raise IndexError(f"index {item!r} is out of bounds for an axis of {n} samples.")
    values = values.astype(np.int64)
    values = np.where(values < 0, values + n, values)
    return values if values.ndim else int(values)


def ascending(item: range | int) -> Array:
    """Return the samples of a range or number as one ascending row."""
    return np.sort(np.array(item, np.int64, ndmin=1))[None]


def together(arrays: Sequence[Array]) -> Sequence[Array]:
    """Return lists of indices along several axes, which select points, broadcast to one shape."""
    try:
        return np.broadcast_arrays(*arrays)
    except ValueError:
        shapes = " ".join(str(a.shape) for a in arrays)
        raise IndexError(f"lists of indices must have shapes that fit together; got {shapes}.") from None


def first_listed(items: Sequence[Any]) -> int:
    """Return the position of the axes of listed points in the result; numpy puts separated ones first."""
    at = [k for k, i in enumerate(items) if isinstance(i, int | np.ndarray)]
    return at[0] if at[-1] - at[0] < len(at) else 0


def placed(items: Sequence[Any]) -> tuple[Any, ...]:
    """Return the index that turns ascending samples into the selection of ``items``; skips listed points."""
    index: list[Any] = []
    for item in items:
        if isinstance(item, range):
            index.append(slice(None, None, -1 if item.step < 0 else 1))
        elif not isinstance(item, np.ndarray):
            index.append(None if item is None else 0)
    return tuple(index)


def _slice(item: range) -> slice:
    """Return a range of samples of an axis as a slice."""
    return slice(item.start, None if item.stop < 0 else item.stop, item.step)


def whole_of(array: Any, dtype: Any, copy: bool | None) -> Array:
    """Return all samples of a view as a new numpy array, for its ``__array__``."""
    if copy is False:
        raise ValueError("copy=False cannot be: a view is computed, so an array of it is always new.")
    whole = np.asarray(array[...])
    return whole if dtype is None else whole.astype(dtype)
