"""A function called on whole crops and nothing known of it: its calls counted, its results compared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework.errors import ContractError
from tilework.function.calling import as_results, is_batched
from tilework.function.output import Output, Outputs
from tilework.function.placement import placements

__all__ = [
    "BlackBox",
    "Crops",
    "ResultShape",
    "difference",
    "result_axes",
    "share",
    "size_of",
]

Array = np.ndarray[Any, Any]
Lengths = tuple[int, ...]
NOTE = (
    "called by probe on crops of random samples; give values=(low, high) or array= for inputs that it takes"
)


@dataclass(frozen=True, slots=True)
class Crops:
    """What the function is called with: one crop of each source."""

    shapes: tuple[Lengths, ...]
    """Per source, its crop's shape, untiled axes included."""
    dtypes: tuple[np.dtype[Any], ...]
    tiled: tuple[Lengths, ...]
    """Per source, the tiled axes of its crop."""
    crop: Lengths
    """Samples per tiled axis."""
    names: tuple[str, ...]
    """Names or numbers of the tiled axes, for messages."""


@dataclass(slots=True)
class BlackBox:
    """A function on crops that counts its calls; results come as copies, batch excluded."""

    fn: Any
    batched: bool = False
    calls: int = 0
    keys: list[Any] = field(default_factory=list)
    """Names of the results, known after the first call; one None for a single array."""

    def __call__(self, crops: Sequence[Array]) -> list[Array]:
        """Return the results for one crop per source."""
        self.calls += 1
        batched = self.batched or is_batched(self.fn)
        given = [np.array(c[None] if batched else c, order="C") for c in crops]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Extreme inputs and NaN are the method: what numpy says of them is no news.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                result = self.fn(*given)
            except Exception as error:
                error.add_note(NOTE)
                raise
        if not self.keys:
            self.keys = _keys(result)
        arrays = as_results(result, self.keys)
        if any(not a.size for a in arrays):
            raise ContractError(f"the function returned nothing: shapes {[a.shape for a in arrays]}.")
        if batched and any(not a.ndim or a.shape[0] != 1 for a in arrays):
            raise ContractError(
                f"the function got a batch of 1 crop and returned shapes {[a.shape for a in arrays]}; the "
                "first axis must be the batch."
            )
        return [np.array(a[0] if batched else a) for a in arrays]

    def outputs(self, declared: Sequence[Output]) -> Outputs:
        """Return one declaration per result in the structure that the function returns."""
        if self.keys == [None]:
            return declared[0]
        if isinstance(self.keys[0], str):
            return dict(zip(self.keys, declared, strict=True))
        return tuple(declared)


def _keys(result: Any) -> list[Any]:
    if isinstance(result, Mapping):
        keys: list[Any] = list(result)
    else:
        keys = list(range(len(result))) if isinstance(result, tuple | list) else [None]
    if not keys:
        raise ContractError("the function returned an empty tuple or dict.")
    return keys


@dataclass(slots=True)
class ResultShape:
    """Where one result stands: its tiled axes, scale and margin."""

    shape: Lengths
    dtype: np.dtype[Any]
    axes: Lengths
    """Where the tiled axes stand in ``shape``."""
    scale: list[Fraction]
    """Result samples per image sample, per tiled axis."""
    lost: list[int]
    """Image samples of the crop, both sides together, for which there is no result."""

    def lengths(self) -> Lengths:
        """Return the result's samples per tiled axis."""
        return tuple(self.shape[a] for a in self.axes)

    def flat(self, values: Array) -> Array:
        """Return the largest of ``values`` over the untiled axes, tiled axes in their own order."""
        others = tuple(a for a in range(values.ndim) if a not in self.axes)
        kept: Array = values.max(axis=others) if others else values
        order = sorted(range(len(self.axes)), key=lambda t: self.axes[t])
        return np.asarray(kept.transpose(np.argsort(order)))

    def span(self, d: int, start: float, stop: float) -> tuple[int, int]:
        """Return the result samples that stand at image samples ``[start, stop)`` of the crop."""
        n = self.shape[self.axes[d]]
        low, high = math.ceil(start * self.scale[d]), math.ceil(stop * self.scale[d])
        return min(max(low, 0), n), min(max(high, 0), n)


def result_axes(shape: Lengths, crop: Lengths, crop_shape: Lengths, crop_axes: Lengths) -> Lengths:
    """Return where the tiled axes most likely stand in a result of ``shape``.

    Raises
    ------
    ContractError
        When the result has fewer axes than are tiled.
    """
    if len(shape) == len(crop_shape):
        return crop_axes
    if len(shape) < len(crop):
        raise ContractError(
            f"the function maps a crop of shape {crop_shape} to shape {shape}, which has no place for "
            f"{len(crop)} tiled axes."
        )
    same = placements(shape, crop)
    if same:
        return same[-1]
    # As channels in front or behind: where all axes shrink or grow alike, else the last ones.
    for start in range(len(shape) - len(crop), -1, -1):
        own = shape[start : start + len(crop)]
        if len({Fraction(a, b) for a, b in zip(own, crop, strict=True)}) == 1:
            return tuple(range(start, start + len(crop)))
    return tuple(range(len(shape) - len(crop), len(shape)))


def difference(a: Array, b: Array) -> Array:
    """Return ``|a - b|`` as float64; inf where just one is NaN, 0 where both are the same."""
    if a.dtype.kind in "bmM":
        return np.asarray(a != b, np.float64)
    wide = np.result_type(a.dtype, np.float64)
    with np.errstate(all="ignore"):
        gap: Array = np.abs(a.astype(wide) - b.astype(wide))
        if a.dtype.kind not in "fc":
            return np.asarray(np.where(a == b, 0.0, np.maximum(gap, 1.0)))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return np.asarray(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)))


def share(change: Array, a: Array, b: Array) -> Array:
    """Return ``change`` as a share of the larger of ``a`` and ``b``, sample by sample; 0 where it is 0."""
    if a.dtype.kind in "bmM":
        return change
    wide = np.result_type(a.dtype, np.float64)
    with np.errstate(all="ignore"):
        sizes = np.maximum(np.abs(a.astype(wide)), np.abs(b.astype(wide)))
        return np.asarray(np.where(change > 0, np.minimum(change / np.maximum(sizes, 1e-300), 1.0), 0.0))


def size_of(result: Array) -> float:
    """Return the largest magnitude in a result, 1 where it is all zero."""
    if result.dtype.kind in "bmM" or not result.size:
        return 1.0
    with np.errstate(all="ignore"):
        sizes = np.abs(result.astype(np.result_type(result.dtype, np.float64)))
    return float(np.where(np.isfinite(sizes), sizes, 0).max()) or 1.0
