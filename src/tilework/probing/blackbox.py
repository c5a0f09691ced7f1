"""The function under test: its inputs, its calls, and differences between its results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from tilework._types import Array, Function, Index
from tilework.errors import ContractError, TilingError
from tilework.function.calling import as_results, in_structure, is_batched, keys_of, without_batch
from tilework.function.output import Output, Outputs

__all__ = [
    "AMPLITUDE",
    "HUGE",
    "Base",
    "BlackBox",
    "CropShapes",
    "Inputs",
    "Kind",
    "ResultShape",
    "difference",
    "others",
    "share",
    "size_of",
    "value_range",
]

Base = Literal["noise", "smooth", "real"]
"""Content of an unperturbed crop."""
Kind = Literal["other", "ends", "high", "low", "huge", "nan"]
"""Replacement of samples: values of the range, its two ends, above it, below it, far on both sides, NaN."""
NOTE = (
    "called by probe on crops of random samples; give values=(low, high) or array= for inputs that it accepts"
)


@dataclass(frozen=True, slots=True)
class CropShapes:
    """The crops that the function is called with, one per source."""

    shapes: tuple[Index, ...]
    """Per source, the shape of its crop, untiled axes included."""
    dtypes: tuple[np.dtype[Any], ...]
    """Per source, its dtype."""
    tiled: tuple[Index, ...]
    """Per source, the tiled axes of its crop."""
    crop: Index
    """Samples per tiled axis."""
    names: tuple[str, ...]
    """Names or numbers of the tiled axes, for messages."""

    def kept(self, axis: int, start: int, stop: int) -> list[Array]:
        """Return one bool per sample and tiled axis: False from ``start`` to ``stop`` along ``axis``."""
        keep = [np.ones(n, bool) for n in self.crop]
        keep[axis][start:stop] = False
        return keep


@dataclass(slots=True)
class BlackBox:
    """A function on crops that counts its calls; results are copies, without the batch axis."""

    fn: Function
    batched: bool = False
    """Whether the function takes batches."""
    calls: int = 0
    """Calls so far."""
    keys: list[Any] = field(default_factory=list)
    """Names or numbers of the results, known after the first call; one None for a single array."""
    form: Any = None
    """The keys as the function returns its arrays: alone, in a dict or in a tuple."""

    def __call__(self, crops: Sequence[Array]) -> list[Array]:
        """Return the results for one crop per source."""
        self.calls += 1
        batched = self.batched or is_batched(self.fn)
        given = [np.array(c[None] if batched else c, order="C") for c in crops]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Extreme inputs and NaN are intended, so numpy's warnings about them are not needed.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                result = self.fn(*given)
            except Exception as error:
                error.add_note(NOTE)
                raise
        if not self.keys:
            self.keys = keys_of(result)
            self.form = in_structure(result, self.keys)
        arrays = as_results(result, self.keys)
        if any(not a.size for a in arrays):
            raise ContractError(f"the function returned nothing: shapes {[a.shape for a in arrays]}.")
        return [np.array(a) for a in (without_batch(arrays) if batched else arrays)]

    def outputs(self, declared: Sequence[Output]) -> Outputs:
        """Return one declaration per result in the structure that the function returns."""
        return in_structure(self.form, declared)


@dataclass(frozen=True, slots=True)
class ResultShape:
    """Geometry of one result: its tiled axes, scale and margin."""

    shape: Index
    """Samples per axis, without the batch."""
    dtype: np.dtype[Any]
    """Dtype of the result."""
    axes: Index
    """Per tiled axis, its position in ``shape``."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample, per tiled axis."""
    lost: Index
    """Image samples of the crop for which there is no result, both sides together, per tiled axis."""

    def lengths(self) -> Index:
        """Return the result's samples per tiled axis."""
        return tuple(self.shape[a] for a in self.axes)

    def flat(self, values: Array) -> Array:
        """Return the maximum of ``values`` over the untiled axes, with the tiled axes in order."""
        untiled = tuple(a for a in range(values.ndim) if a not in self.axes)
        kept: Array = values.max(axis=untiled) if untiled else values
        order = sorted(range(len(self.axes)), key=lambda t: self.axes[t])
        return np.asarray(kept.transpose(np.argsort(order)))

    def span(self, d: int, start: float, stop: float) -> tuple[int, int]:
        """Return the result samples at image samples ``[start, stop)`` of the crop, along axis ``d``."""
        n = self.shape[self.axes[d]]
        low, high = math.ceil(start * self.scale[d]), math.ceil(stop * self.scale[d])
        return min(max(low, 0), n), min(max(high, 0), n)


def _wide(a: Array) -> Array:
    """Return ``a`` in double precision at least."""
    return a.astype(np.result_type(a.dtype, np.float64))


def difference(a: Array, b: Array) -> Array:
    """Return ``|a - b|`` as float64; inf where only one is NaN, 0 where both are NaN or equal."""
    if a.dtype.kind in "bmM":
        return np.asarray(a != b, np.float64)
    with np.errstate(all="ignore"):
        gap: Array = np.abs(_wide(a) - _wide(b))
        if a.dtype.kind not in "fc":
            return np.asarray(np.where(a == b, 0.0, np.maximum(gap, 1.0)))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return np.asarray(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)))


def share(change: Array, a: Array, b: Array) -> Array:
    """Return ``change`` as a fraction of the larger of ``a`` and ``b``, per sample; at most 1."""
    if a.dtype.kind in "bmM":
        return change
    with np.errstate(all="ignore"):
        sizes = np.maximum(np.abs(_wide(a)), np.abs(_wide(b)))
        return np.asarray(np.where(change > 0, np.minimum(change / np.maximum(sizes, 1e-300), 1.0), 0.0))


def size_of(result: Array) -> float:
    """Return the largest finite magnitude in a result, 1 if it is all zero."""
    if result.dtype.kind in "bmM" or not result.size:
        return 1.0
    with np.errstate(all="ignore"):
        sizes = np.abs(_wide(result))
    return float(np.where(np.isfinite(sizes), sizes, 0).max()) or 1.0


def others(values: Array, axis: int) -> Index:
    """Return all axes of ``values`` but one, for reductions to a profile along it."""
    return tuple(k for k in range(values.ndim) if k != axis)


# Distance of "high" and "low" from the range of values, in ranges: at the edge of its receptive field, a deep
# network passes on 1e-5 of its input, which must exceed rounding.
AMPLITUDE = 100.0
# Distance of "huge", in ranges. Rounding grows with it and must not be taken for a response.
HUGE = 1e4
# Width of the blobs in a smooth base image, samples: morphological opening and closing respond only to
# shapes.
PATCH = 4
# Range of integers wider than 8 bits: 12 bits, as in cameras.
LEVELS = 4095


@dataclass(slots=True)
class Inputs:
    """Draws crops of all sources; the same seed gives the same crops."""

    crops: CropShapes
    """Shapes and dtypes of the crops."""
    values: Sequence[tuple[float, float]]
    """Lowest and highest value, per source."""
    samples: Sequence[Array | None]
    """Real crops, per source; None if there is none."""
    rng: np.random.Generator
    """Random generator of all draws of one probe."""

    def longer(self, axis: int) -> Inputs:
        """Return inputs of twice the length along one tiled axis; real crops are mirrored."""
        crop = tuple(2 * m if d == axis else m for d, m in enumerate(self.crops.crop))
        shapes, samples = [], []
        for shape, tiled, sample in zip(self.crops.shapes, self.crops.tiled, self.samples, strict=True):
            along = tiled[axis]
            shapes.append(tuple(2 * m if a == along else m for a, m in enumerate(shape)))
            mirrored = None if sample is None else np.concatenate((sample, np.flip(sample, along)), along)
            samples.append(mirrored)
        return replace(self, crops=replace(self.crops, crop=crop, shapes=tuple(shapes)), samples=samples)

    def base(self, kind: Base) -> list[Array]:
        """Return one crop per source: noise, smooth blobs, or the real one (noise if there is none)."""
        return [self._base(k, kind) for k in range(len(self.crops.shapes))]

    def _base(self, k: int, kind: Base) -> Array:
        """Return a crop of source ``k``, as `base` does."""
        sample = self.samples[k]
        if kind == "real" and sample is not None:
            return np.array(sample)
        shape, tiled = self.crops.shapes[k], self.crops.tiled[k]
        unit = self.rng.random(shape)
        if kind == "smooth":
            for axis in tiled:
                steps = range(min(PATCH, shape[axis]))
                unit = np.sum([np.roll(unit, step, axis) for step in steps], axis=0)
            low, high = unit.min(initial=np.inf), unit.max(initial=-np.inf)
            unit = (unit - low) / max(high - low, 1e-300)
        return self._typed(k, unit)

    def other(self, kind: Kind) -> list[Array]:
        """Return one crop per source with the values that replace samples."""
        found = []
        for k, shape in enumerate(self.crops.shapes):
            unit = self.rng.random(shape)
            if kind == "ends":
                unit = np.rint(unit)
            elif kind == "high":
                unit = 1 + AMPLITUDE * (0.5 + unit / 2)
            elif kind == "low":
                unit = -AMPLITUDE * (0.5 + unit / 2)
            elif kind == "huge":
                unit = HUGE * (unit - 0.5)
            elif kind == "nan":
                unit = np.full(shape, np.nan)
            found.append(self._typed(k, unit))
        return found

    def _typed(self, k: int, unit: Array) -> Array:
        """Return ``unit`` scaled so that 0 to 1 becomes the range of source ``k``, in its dtype."""
        (low, high), dtype = self.values[k], self.crops.dtypes[k]
        if dtype.kind == "b":
            return unit > 0.5
        values = low + unit * (high - low)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            # float64 cannot represent the largest 64-bit integers.
            top = float(info.max) if dtype.itemsize < 8 else 2.0**62
            return np.clip(np.rint(values), float(info.min), top).astype(dtype)
        if dtype.kind == "c":
            other = low + self.rng.random(unit.shape) * (high - low)
            return np.asarray(values + 1j * other).astype(dtype)
        return np.asarray(values).astype(dtype)

    def mixed(self, base: Sequence[Array], other: Sequence[Array], keep: Sequence[Array]) -> list[Array]:
        """Return ``base`` where ``keep`` is True on every tiled axis, else ``other``.

        Parameters
        ----------
        keep : sequence of 1-D bool arrays
            Per tiled axis, one bool per sample.
        """
        found = []
        for a, b, tiled in zip(base, other, self.crops.tiled, strict=True):
            kept = np.ones((1,) * a.ndim, bool)
            for axis, mask in zip(tiled, keep, strict=True):
                kept = kept & mask.reshape((-1,) + (1,) * (a.ndim - axis - 1))
            found.append(np.where(kept, a, b))
        return found

    def rolled(self, base: Sequence[Array], shift: Sequence[int]) -> list[Array]:
        """Return ``base`` rolled by ``shift`` samples per tiled axis."""
        return [np.roll(a, tuple(shift), tiled) for a, tiled in zip(base, self.crops.tiled, strict=True)]


def value_range(
    dtype: np.dtype[Any], values: tuple[float, float] | None, sample: Array | None
) -> tuple[float, float]:
    """Return the lowest and the highest input: as given, of the sample, or the usual ones for the dtype.

    Raises
    ------
    TilingError
        For a dtype that is not numeric, or a range that is empty.
    TypeError
        For values that are not two numbers.
    """
    if dtype.kind not in "biufc":
        raise TilingError(f"probe draws numbers; an image of dtype {dtype} cannot be probed.")
    if values is not None:
        try:
            low, high = (float(v) for v in values)
        except (TypeError, ValueError) as error:
            raise TypeError(f"values must be (low, high), two numbers; got {values!r}.") from error
        if not low < high or not np.isfinite(high - low):
            raise TilingError(f"values must be (low, high) with low < high; got {values!r}.")
        return low, high
    if sample is not None and sample.size and dtype.kind != "c":
        finite = sample[np.isfinite(sample)]
        if finite.size and finite.min() < finite.max():
            return float(finite.min()), float(finite.max())
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return float(max(info.min, -LEVELS)), float(min(info.max, LEVELS))
    return 0.0, 1.0
