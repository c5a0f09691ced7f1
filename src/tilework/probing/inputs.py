"""The crops that a probe calls a function with: base images, and the values that replace samples of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import TilingError

__all__ = ["AMPLITUDE", "HUGE", "Base", "CropShapes", "Inputs", "Kind", "value_range"]

Base = Literal["noise", "smooth", "real"]
"""Content of an unperturbed crop."""
Kind = Literal["other", "ends", "top", "bottom", "halves", "high", "low", "huge", "nan"]
"""Replacement of samples. Within the range: values of it, its two ends, its upper end, its lower end, and the
upper end in one half of the crop with the lower end in the other. Beyond: above it, below it, far on both
sides, NaN."""


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

    def within(self, gaps: Mapping[int, Sequence[Span]]) -> list[Array]:
        """Return one bool per sample and tiled axis: along the axes of ``gaps``, True only inside of them."""
        keep = [np.ones(n, bool) for n in self.crop]
        for axis, spans in gaps.items():
            keep[axis][:] = False
            for start, stop in spans:
                keep[axis][start:stop] = True
        return keep


# Distance of "high" and "low" from the range of values, in ranges.
AMPLITUDE = 100.0
# Distance of "huge", in ranges. Rounding grows with it and must not be taken for a response.
HUGE = 1e4
# Width of the blobs in a smooth base image, samples: morphological opening and closing respond only to
# shapes.
PATCH = 4
# Width of thick lines, samples: a function that smooths before it compares does not see thin ones.
THICK = 6
# Lengths of the cells of islands, samples: most are small, some are seen by a function that smooths.
ISLAND = (2, 3, 4, 5, 9)
# Fractions of the range of flat images: what spreads between two thresholds needs a level between them.
FLAT = (0.0, 1.0, 0.5, 0.75, 0.25)
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

    def islands(self) -> list[Array]:
        """Return crops of cells of many lengths, of which a quarter are at the upper end of the range."""
        ends = [np.cumsum(self.rng.choice(ISLAND, n)) for n in self.crops.crop]
        cells = [
            np.searchsorted(own, np.arange(n), "right") for own, n in zip(ends, self.crops.crop, strict=True)
        ]
        return [self._typed(k, (unit > 0.75) * 1.0) for k, unit in enumerate(self._celled(cells))]

    def cells(self, lengths: Sequence[int]) -> list[Array]:
        """Return crops of noise that is constant in cells of ``lengths`` samples per tiled axis."""
        cells = [np.arange(n) // width * width for n, width in zip(self.crops.crop, lengths, strict=True)]
        return [self._typed(k, unit) for k, unit in enumerate(self._celled(cells))]

    def _celled(self, cells: Sequence[Array]) -> Iterator[Array]:
        """Yield noise per source; samples with one number in ``cells`` along all tiled axes are equal."""
        for shape, tiled in zip(self.crops.shapes, self.crops.tiled, strict=True):
            unit = self.rng.random(shape)
            for axis, own in zip(tiled, cells, strict=True):
                unit = unit.take(own, axis)
            yield unit

    def flat(self, level: float) -> list[Array]:
        """Return crops of one value, at a fraction of the range."""
        return [self._typed(k, np.full(shape, level)) for k, shape in enumerate(self.crops.shapes)]

    def lines(self, axis: int, *, bright: bool) -> list[Array]:
        """Return crops of lines along a tiled axis, beside samples at the lower end of the range.

        Some are one sample wide, or thick, at levels spread over the range. Half are at its upper end,
        one or three samples wide, and each is interrupted at a place of its own. With ``bright``, the ends of
        the range are exchanged.
        """
        return [self._lines(k, axis, float(bright)) for k in range(len(self.crops.shapes))]

    def line(self, *, bright: bool, place: float) -> list[Array]:
        """Return 1-D crops at one end of the range but for one sample; the lower end if ``bright``."""
        [n] = self.crops.crop
        found = self.flat(float(not bright))
        for crop, other, tiled in zip(found, self.flat(float(bright)), self.crops.tiled, strict=True):
            index = (slice(None),) * tiled[0] + (round(place * n),)
            crop[index] = other[index]
        return found

    def _lines(self, k: int, axis: int, ground: float) -> Array:
        """Return the lines in a crop of source ``k`` on a ground of 0 or 1, as `lines` does."""
        shape, tiled = self.crops.shapes[k], self.crops.tiled[k]
        along, beside = tiled[axis], [a for a in tiled if a != tiled[axis]]
        n = shape[beside[-1]]
        # A function that smooths does not see the thinnest lines.
        sizes = (
            (n // 8, 1, True),
            (n // 4, 1, False),
            (n // 4, 3, False),
            (n - n // 8 - n // 4 * 2, THICK, True),
        )
        parts = []
        for length, width, whole in sizes:
            own = tuple(length if a == beside[-1] else m for a, m in enumerate(shape))
            cells = [-(-m // (2 * width)) if a in beside else 1 for a, m in enumerate(own)]
            places = np.indices(own, sparse=True)
            cell = tuple(places[a] // (2 * width) * (a in beside) for a in range(len(own)))
            line = math.prod(places[a] // width % 2 == 0 for a in beside) == 1
            spread = (self.rng.permutation(math.prod(cells)).reshape(cells) + 0.5) / max(1, math.prod(cells))
            if not whole:
                line = line & (np.abs(places[along] + 0.5 - np.rint(spread * shape[along])[cell]) > width / 2)
            parts.append(np.where(line, spread[cell] if whole else 1 - ground, ground))
        return self._typed(k, np.concatenate(parts, beside[-1]))

    def between(self, one: Sequence[Array], two: Sequence[Array], part: float) -> list[Array]:
        """Return ``part`` of crops, and the rest of two others; of bool, the first ones."""
        return [
            a
            if a.dtype.kind == "b"
            else (part * a.astype(np.result_type(a, "f8")) + (1 - part) * b).astype(a.dtype)
            for a, b in zip(one, two, strict=True)
        ]

    def turned(self, base: Sequence[Array], order: Sequence[int]) -> list[Array]:
        """Return crops with the tiled axes in another order."""
        found = []
        for a, tiled in zip(base, self.crops.tiled, strict=True):
            axes = list(range(a.ndim))
            for to, source in zip(tiled, order, strict=True):
                axes[to] = tiled[source]
            found.append(a.transpose(axes))
        return found

    def other(self, kind: Kind) -> list[Array]:
        """Return one crop per source with the values that replace samples."""
        found = []
        for k, shape in enumerate(self.crops.shapes):
            unit = self.rng.random(shape)
            if kind == "ends":
                unit = np.rint(unit)
            elif kind in ("top", "bottom"):
                unit = np.full(shape, float(kind == "top"))
            elif kind == "halves":
                tiled = self.crops.tiled[k]
                places = np.indices(shape, sparse=True)
                # Divided along the diagonal, so that both ends of every axis have some of both.
                unit = np.broadcast_to(sum(places[a] / shape[a] for a in tiled) * 2 < len(tiled), shape) * 1.0
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

    def around(self, base: Sequence[Array], more: Sequence[Index], *, wrapped: bool = False) -> list[Array]:
        """Return longer crops with ``base`` in them.

        Parameters
        ----------
        more : sequence of (int, int)
            Per tiled axis, the samples before and after the crop.
        wrapped : bool
            Whether the crop is continued with its opposite side; else with other values of the range.
        """
        pads, shapes = [], []
        for a, tiled in zip(base, self.crops.tiled, strict=True):
            pad = [(0, 0)] * a.ndim
            for axis, own in zip(tiled, more, strict=True):
                pad[axis] = (own[0], own[1])
            pads.append(pad)
            shapes.append(tuple(m + p + q for m, (p, q) in zip(a.shape, pad, strict=True)))
        if wrapped:
            return [np.pad(a, pad, "wrap") for a, pad in zip(base, pads, strict=True)]
        found = replace(self, crops=replace(self.crops, shapes=tuple(shapes))).other("other")
        for a, b, pad in zip(base, found, pads, strict=True):
            b[tuple(slice(p, p + m) for m, (p, _) in zip(a.shape, pad, strict=True))] = a
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
