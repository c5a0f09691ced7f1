"""Crops to call a black box with: base images, and what replaces a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.errors import TilingError
from tilework.probing.blackbox import Crops

__all__ = ["AMPLITUDE", "HUGE", "Inputs", "value_range"]

Array = np.ndarray[Any, Any]
# How far beyond the range of values a perturbation goes, in ranges: what a deep network lets through at the
# edge of its receptive field is 1e-5 of what goes in, and has to stand out of rounding.
AMPLITUDE = 100.0
# And how far where that is not mistaken for a response: rounding grows with it too.
HUGE = 1e4
# Width of the blobs in a smooth base image, samples: opening and closing answer only to shapes.
PATCH = 4
# Range of integers wider than 8 bits: 12 bits, as cameras have.
LEVELS = 4095


@dataclass(slots=True)
class Inputs:
    """Draws crops of all sources; the same seed gives the same crops."""

    crops: Crops
    values: Sequence[tuple[float, float]]
    """Lowest and highest value, per source."""
    samples: Sequence[Array | None]
    """Real crops, per source; None where there is none."""
    rng: np.random.Generator

    def base(self, kind: str) -> list[Array]:
        """Return one crop per source: "noise", "smooth" (blobs) or "real" if there is."""
        return [self._base(k, kind) for k in range(len(self.crops.shapes))]

    def _base(self, k: int, kind: str) -> Array:
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

    def other(self, kind: str) -> list[Array]:
        """Return what replaces samples: "other", "ends", "high", "low", "huge" or "nan"."""
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
        """Return numbers of which 0 and 1 mean the range, in the dtype of source ``k``."""
        (low, high), dtype = self.values[k], self.crops.dtypes[k]
        if dtype.kind == "b":
            return unit > 0.5
        values = low + unit * (high - low)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            # float64 cannot hold the largest 64-bit integers.
            top = float(info.max) if dtype.itemsize < 8 else 2.0**62
            return np.clip(np.rint(values), float(info.min), top).astype(dtype)
        if dtype.kind == "c":
            other = low + self.rng.random(unit.shape) * (high - low)
            return np.asarray(values + 1j * other).astype(dtype)
        return np.asarray(values).astype(dtype)

    def mixed(self, base: Sequence[Array], other: Sequence[Array], keep: Sequence[Array]) -> list[Array]:
        """Return ``base`` where every axis keeps it (one bool per sample and tiled axis), else ``other``."""
        found = []
        for a, b, tiled in zip(base, other, self.crops.tiled, strict=True):
            kept = np.ones((1,) * a.ndim, bool)
            for axis, mask in zip(tiled, keep, strict=True):
                kept = kept & mask.reshape((-1,) + (1,) * (a.ndim - axis - 1))
            found.append(np.where(kept, a, b))
        return found

    def rolled(self, base: Sequence[Array], shift: Sequence[int]) -> list[Array]:
        """Return ``base`` moved by ``shift`` samples per tiled axis, wrapped round."""
        return [np.roll(a, tuple(shift), tiled) for a, tiled in zip(base, self.crops.tiled, strict=True)]


def value_range(dtype: np.dtype[Any], values: Any, sample: Array | None) -> tuple[float, float]:
    """Return the lowest and highest value of inputs: as given, of the sample, or usual for the dtype.

    Raises
    ------
    TilingError
        For a dtype that is no number, or a range that is empty.
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
