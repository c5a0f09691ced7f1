"""How predictions for one crop become one result: means and extremes as they come, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tilework._types import Array, Index
from tilework.errors import ContractError, TilingError
from tilework.grid.weights import accumulation_dtype

__all__ = ["REDUCES", "Combine", "Fold", "check_values", "folded_dtype"]

Combine = Literal["mean", "max", "min", "gmean"] | Callable[[Array], Any]
"""How predictions are combined: a word, or a function of their stack."""

REDUCES = ("mean", "max", "min", "gmean")


def check_values(reduce: Combine, dtype: np.dtype[Any]) -> None:
    """Raise a `TilingError` if predictions of ``dtype`` cannot be combined."""
    if callable(reduce):
        return
    kinds = {"mean": "iufc", "gmean": "iuf", "max": "biuf", "min": "biuf"}[reduce]
    averages = reduce in ("mean", "gmean")
    if dtype.kind not in kinds or (averages and dtype.kind in "iu" and dtype.itemsize == 8):
        cure = "Let the function return floats"
        if dtype.kind == "b":
            cure += ', or use reduce="max"'
        elif dtype.kind in "iu":
            cure += '; for classes, scores with Output(reduce="argmax"). Labels cannot be combined'
        raise TilingError(f'reduce="{reduce}" cannot combine predictions of dtype {dtype}. {cure}.')


def folded_dtype(reduce: Combine, dtypes: Sequence[np.dtype[Any]], shape: Sequence[int]) -> np.dtype[Any]:
    """Return the dtype of combined predictions, one dtype each, of one shape."""
    if len(dtypes) > 1 and callable(reduce):
        rows = np.zeros((len(dtypes), *shape), np.result_type(*dtypes))
        with np.errstate(all="ignore"):
            return np.dtype(_reduced(reduce, rows).dtype)
    return np.dtype(np.result_type(*dtypes))


class Fold:
    """Combines predictions of one output, one after the other.

    A mean adds up pairs, then pairs of pairs: so a few sums are held, not all predictions, and the mean of
    equal predictions has their bits if their number is a power of two.

    Parameters
    ----------
    reduce : {"mean", "max", "min", "gmean"} or callable
    count : int
        Number of predictions; a single one is the result.
    any_order : bool
        Whether the bits must not depend on the order of the predictions. All are then held, and sorted.
    """

    def __init__(self, reduce: Combine, count: int, *, any_order: bool = False) -> None:
        self._reduce, self._count, self._any_order = reduce, count, any_order
        self._shape: Index = ()
        self._dtypes: list[np.dtype[Any]] = []
        self._rows: list[Array] = []
        self._sums = _Sum()

    def add(self, values: Array) -> None:
        """Add a prediction; its memory may be used again afterwards."""
        if self._dtypes and values.shape != self._shape:
            raise ContractError(
                f"predictions of one crop must have one shape; got {self._shape}, then {values.shape}."
            )
        self._shape = values.shape
        self._dtypes.append(values.dtype)
        if self._count == 1:
            self._rows.append(values)
            return
        check_values(self._reduce, values.dtype)
        if callable(self._reduce):
            self._rows.append(np.array(values))
        elif self._reduce in ("max", "min"):
            pick = np.maximum if self._reduce == "max" else np.minimum
            self._rows = [pick(self._rows[0], values) if self._rows else np.array(values)]
        else:
            values = values.astype(accumulation_dtype(values.dtype, "average"))
            if self._reduce == "gmean":
                values = _logarithm(values)
            if self._any_order and self._count > 2:
                self._rows.append(values)
            else:
                self._sums.add(values)

    def result(self, *, wide: bool = False) -> Array:
        """Return what the predictions give.

        Parameters
        ----------
        wide : bool
            Whether a mean of integers stays a float.
        """
        if self._count == 1:
            return self._rows[0]
        if callable(self._reduce):
            return _reduced(self._reduce, np.stack(self._rows))
        if self._reduce in ("max", "min"):
            found = self._rows[0]
            # Of 0.0 and -0.0 numpy takes the first one.
            return found + found.dtype.type(0) if self._any_order and found.dtype.kind == "f" else found
        for row in _ascending(self._rows):
            self._sums.add(row)
        total = self._sums.total()
        with np.errstate(all="ignore"):
            # A complex number divided by a real one would lose the sign of its zeros.
            for part in (total.real, total.imag) if total.dtype.kind == "c" else (total,):
                part /= self._count
            if self._reduce == "gmean":
                np.exp(total, out=total)
        dtype = np.result_type(*self._dtypes)
        if dtype.kind not in "iu":
            return total.astype(dtype, copy=False)
        return total if wide else np.rint(total, out=total).astype(dtype)


class _Sum:
    """A sum of pairs, of pairs of pairs, and so on."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Array]] = []

    def add(self, values: Array) -> None:
        """Add an array, which is overwritten."""
        level = 0
        with np.errstate(all="ignore"):
            while self._parts and self._parts[-1][0] == level:
                values = _plus(values, self._parts.pop()[1])
                level += 1
        self._parts.append((level, values))

    def total(self) -> Array:
        _, total = self._parts.pop()
        with np.errstate(all="ignore"):
            while self._parts:
                total = _plus(total, self._parts.pop()[1])
        return total


def _plus(a: Array, b: Array) -> Array:
    """Return the sum, in the memory of ``a`` if it has the dtype of the sum."""
    return np.add(a, b, out=a) if a.dtype == np.result_type(a, b) else a + b


def _ascending(rows: Sequence[Array]) -> list[Array]:
    """Return arrays of the values of ``rows``, sorted sample by sample; NaN everywhere where there is one.

    By exchanges of neighbours: a few arrays are sorted faster than by numpy along their axis.
    """
    if not rows:
        return []
    # Of 0.0 and -0.0 the smaller and the larger may be the same one, so all become 0.0.
    dtype = np.result_type(*rows)
    found = [row + dtype.type(0) for row in rows]
    for first in range(len(found)):
        for i in range(first % 2, len(found) - 1, 2):
            found[i : i + 2] = np.minimum(*found[i : i + 2]), np.maximum(*found[i : i + 2])
    return found


def _logarithm(values: Array) -> Array:
    """Return logarithms, in place; raise for negative values."""
    if (values < 0).any():
        at = np.unravel_index(int(np.argmax(values < 0)), values.shape)
        raise TilingError(
            f'reduce="gmean" needs values that are not negative; got {values[at]:g} at {tuple(map(int, at))} '
            "of the function's result. Let the function return probabilities, or use another reduce."
        )
    with np.errstate(all="ignore"):
        return np.log(values, out=values)


def _reduced(reduce: Callable[[Array], Any], rows: Array) -> Array:
    """Return what a callable makes of a stack of predictions."""
    found = np.asarray(reduce(rows))
    if found.shape != rows.shape[1:]:
        raise ContractError(
            f"reduce maps a stack of predictions of shape {rows.shape} to {found.shape}; it must remove the "
            "first axis and keep the others, as lambda stack: np.median(stack, axis=0) does."
        )
    return found
