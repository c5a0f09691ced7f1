"""Windows: the weight of every sample of a crop, normalised along each axis before anything runs.

The weight of a tile is the outer product of one profile per axis, and the grid is a product of axes, so
the sum of all weights is a product too. Dividing each profile by the sum along its own axis therefore
normalises the blend exactly: no weight volume, no division, no zero to divide by.

Everything here is in samples of the *result*: a grid of scale 2 has crops of ``2 * crop`` samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import one_of
from tilework.errors import GridError, TilingError
from tilework.grid.axis import AxisGrid

__all__ = ["BLENDS", "WINDOWS", "AxisWeights", "Blend", "profile"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Blend = str | Callable[[int], Any] | Sequence[Any] | np.ndarray[Any, Any]
"""A word of `BLENDS`, a callable of the crop's length, one 1-D array per axis, or one N-D array."""

WINDOWS = ("average", "linear", "hann", "gaussian")
# Tiles along an axis whose places and weights are kept; a block needs few of them at a time.
REMEMBERED = 1024
# Tiles along an axis up to which all places are held at once, which is faster for each of them.
TABLED = 2**16
BLENDS = ("trim", *WINDOWS, "max", "min", "sum")


def _linear(length: int, rim: int, _scale: float) -> Floats:
    k = np.arange(length - 2 * rim, dtype=np.float64)
    return np.minimum(k + 1, k[::-1] + 1)


def _hann(length: int, rim: int, _scale: float) -> Floats:
    m = length - 2 * rim
    return np.sin(np.pi * (np.arange(m) + 0.5) / m) ** 2


def _gaussian(length: int, rim: int, scale: float) -> Floats:
    x = np.arange(rim, length - rim, dtype=np.float64)
    return np.exp(-(((x - (length - 1) / 2) / (scale * length)) ** 2) / 2)


def _average(length: int, rim: int, _scale: float) -> Floats:
    return np.ones(length - 2 * rim)


_FORMULAS = {"average": _average, "linear": _linear, "hann": _hann, "gaussian": _gaussian}


def profile(blend: Blend, length: int, rim: int = 0, sigma_scale: float = 0.125) -> Floats:
    """Return the 1-D weights of a crop of ``length`` samples, zero on the rim.

    Parameters
    ----------
    blend : str, callable or 1-D array
        A word of `WINDOWS`; a callable that maps a length to that many weights; or the weights.
    length : int, samples
    rim : int, samples per side that get weight 0
    sigma_scale : float, standard deviation of the gaussian as a fraction of the length

    Returns
    -------
    numpy.ndarray, shape (length,), float64

    Raises
    ------
    GridError
        When the weights have another length, are negative or not finite.

    Notes
    -----
    A gaussian so narrow that it underflows is lifted to its smallest non-zero value, as nnU-Net does (to 1
    where it is 0 everywhere), so that no sample inside the rim is lost.

    Examples
    --------
    >>> profile("linear", 6, rim=1).tolist()
    [0.0, 1.0, 2.0, 2.0, 1.0, 0.0]
    """
    inner = slice(rim, length - rim)
    weights = np.zeros(length)
    if isinstance(blend, str):
        values = _FORMULAS[one_of("blend", blend, WINDOWS)](length, rim, sigma_scale)
        if not values.all():
            values = np.where(values > 0, values, values.min(where=values > 0, initial=1.0))
        weights[inner] = values
        return weights
    values = np.asarray(blend(length) if callable(blend) else blend, dtype=np.float64)
    if values.shape != (length,):
        raise GridError(
            f"a window must have one weight per sample of the result's crop; got shape {values.shape} for "
            f"a crop of {length} samples."
        )
    check_weights(values)
    weights[inner] = values[inner]
    return weights


def check_weights(values: Floats) -> None:
    """Raise a `GridError` where weights are negative, not finite or all zero."""
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise GridError(
            "the weights of a window must be finite, not negative and not all zero; got values from "
            f"{values.min()} to {values.max()}."
        )


def kind_of(blend: Blend) -> str:
    """Return the word of ``blend``, or "window" for weights that somebody brought."""
    return one_of("blend", blend, BLENDS) if isinstance(blend, str) else "window"


def per_axis(blend: Blend, n_axes: int) -> tuple[Blend, ...] | None:
    """Return one 1-D window per axis, or None for one N-D importance map."""
    if isinstance(blend, str) or callable(blend):
        return (blend,) * n_axes
    if isinstance(blend, np.ndarray):
        if blend.ndim == n_axes == 1:
            return (blend,)
        if blend.ndim != n_axes:
            raise GridError(
                f"an importance map must have one dimension per tiled axis; got {blend.ndim} dimensions for "
                f"{n_axes} axes. Give a tuple of 1-D arrays for one window per axis."
            )
        return None
    if not isinstance(blend, Sequence):
        raise TypeError(f"blend must be a word, a callable or arrays; got {type(blend).__name__}")
    if len(blend) != n_axes:
        raise GridError(f"blend must hold one window per tiled axis; got {len(blend)} for {n_axes} axes.")
    return tuple(blend)


@dataclass(frozen=True, slots=True)
class AxisWeights:
    """Where the results of one axis' crops stand in one output, and with what weight.

    Examples
    --------
    >>> grid = AxisGrid(extent=12, crop=8, overlap=2, trims=False)
    >>> AxisWeights(grid, profile("linear", 8), rim=0).weights(0)[4:].round(2).tolist()
    [0.8, 0.6, 0.4, 0.2]
    """

    grid: AxisGrid
    """The crops, in image samples."""
    window: Floats | None = None
    """Profile of a full crop in result samples; None when trimming."""
    rim: int | None = None
    """Samples of the image per side without weight; None when trimming."""
    scale: Fraction = Fraction(1)
    """Result samples per image sample."""
    _cache: dict[Any, Floats] = field(default_factory=dict, compare=False, repr=False)
    _by_tile: dict[int, Floats] = field(default_factory=dict, compare=False, repr=False)
    _places: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    _near: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return AxisWeights, (self.grid, self.window, self.rim, self.scale)

    @property
    def extent(self) -> int:
        """Length of the output along this axis, result samples."""
        return self.scaled(self.grid.extent)

    @property
    def length(self) -> int:
        """Length of a full crop's result, samples."""
        return self.scaled(self.grid.crop - sum(self.grid.margin))

    def scaled(self, x: int) -> int:
        """Return image position ``x`` in result samples, rounded up."""
        return x if self.scale == 1 else math.ceil(x * self.scale)

    def result(self, i: int) -> tuple[int, int]:
        """Return the result samples that tile ``i`` produces, padding included."""
        return self._spans(i)[0]

    def lengths(self) -> list[int]:
        """Return how many result samples each tile produces."""
        return [b - a for a, b in map(self.result, range(len(self.grid)))]

    def support(self, i: int) -> tuple[int, int]:
        """Return the result samples where tile ``i`` has weight."""
        return self._spans(i)[1]

    def touching(self, tiles: range, start: int, stop: int) -> tuple[int, int]:
        """Return the first and one past the last of ``tiles`` with weight in result samples [start, stop)."""
        low = bisect_right(tiles, start, key=lambda i: self.support(i)[1])
        high = bisect_left(tiles, stop, key=lambda i: self.support(i)[0])
        return tiles.start + low, tiles.start + max(low, high)

    def _spans(self, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return `result` and `support`: asked for by every tile of a row, computed once."""
        spans = self._places.get(i)
        if spans is None:
            if len(self._places) >= REMEMBERED:
                self._places.clear()
            if self._tables is None:
                (start, stop), (first, last) = self.grid.support(i, self.rim), self.grid.valid(i)
            else:
                start, stop, _, first, last = self._tables[2][:, i].tolist()
            spans = (
                (self.scaled(first), self.scaled(last)),
                (self.scaled(start), self.scaled(stop)),
            )
            self._places[i] = spans
        return spans

    @property
    def _tables(self) -> tuple[Any, ...] | None:
        """What `_neighbours` says of all tiles; None where they are too many to be held."""
        if not self._near:
            few = len(self.grid) <= TABLED
            self._near.append(_neighbours(self.grid, self.rim) if few else None)
        return self._near[0]  # type: ignore[no-any-return]

    def raw(self, i: int) -> Floats:
        """Return the weights of tile ``i`` over its support before normalising."""
        if self.window is None:
            start, stop = self.support(i)
            return np.ones(stop - start)
        return self.fill_rim(i, self.window)[self.in_window(i)]

    def in_window(self, i: int) -> slice:
        """Return the support of tile ``i`` as an index into a full crop's window."""
        start, stop = self.support(i)
        origin = self.scaled(self.grid.nominal(i))
        return slice(start - origin, stop - origin)

    def fill_rim(self, i: int, window: Floats, axis: int = 0) -> Floats:
        """Return ``window`` with its rim filled on the sides of tile ``i`` that touch the border."""
        rim = self.scaled(self.rim or 0)
        before, behind = self.grid.borders(i)
        if not rim or not (before or behind):
            return window
        window, n = np.moveaxis(window.copy(), axis, 0), self.length
        if before:
            window[:rim] = window[rim]
        if behind:
            window[n - rim :] = window[n - rim - 1]
        return np.moveaxis(window, 0, axis)

    def key(self, i: int) -> tuple[Any, ...]:
        """Return what the normalised weights of tile ``i`` depend on; interior tiles share one key."""
        if self._tables is None:
            start, stop = self.grid.support(i, self.rim)
            return tuple((self._shape(k, start), k == i) for k in self.grid.touching(start, stop, self.rim))
        first, last, places, borders = self._tables
        a, b = first[i], last[i]
        return i - a, (places[:, a:b] - places[0, i]).tobytes(), borders[:, a:b].tobytes()

    def _shape(self, i: int, origin: int) -> tuple[int, ...]:
        start, stop = self.grid.support(i, self.rim)
        nominal = self.grid.nominal(i)
        return start - origin, stop - origin, nominal - origin, *self.grid.borders(i)

    def weights(self, i: int) -> Floats:
        """Return the weights of tile ``i`` over its support; with all others they sum to 1."""
        known = self._by_tile.get(i)
        if known is not None:
            return known
        key = self.key(i)
        cached = self._cache.get(key)
        if cached is None:
            if len(self._cache) >= REMEMBERED:
                self._cache.clear()
            start, stop = self.support(i)
            cached = self.raw(i) / self.total(start, stop, i)
            self._cache[key] = cached
        if len(self._by_tile) >= REMEMBERED:
            self._by_tile.clear()
        self._by_tile[i] = cached
        return cached

    def total(self, start: int, stop: int, i: int) -> Floats:
        """Return the sum of the raw weights of all tiles over result samples in reach of tile ``i``."""
        total = np.zeros(stop - start)
        low, high = self.grid.support(i, self.rim)
        for k in self.grid.touching(low, high, self.rim):
            a, b = self.support(k)
            first, last = max(a, start), min(b, stop)
            total[first - start : last - start] += self.raw(k)[first - a : last - a]
        return total

    def check_cover(self, axis: object) -> None:
        """Raise a `GridError` naming ``axis`` where some sample has no weight from any tile."""
        seen = set()
        for i in range(len(self.grid)):
            key = self.key(i)
            if key in seen:
                continue
            seen.add(key)
            start, stop = self.support(i)
            hole = np.flatnonzero(self.total(start, stop, i) <= 0)
            if hole.size:
                raise GridError(
                    f"every sample needs a positive weight from some crop; sample {start + hole[0]} on axis "
                    f"{axis} has none. Use more overlap, a smaller rim or a window that is positive there."
                )


def _neighbours(grid: AxisGrid, rim: int | None) -> tuple[Any, ...]:
    """Return for all tiles which others their support meets (first, one past the last), and where all stand.

    Places are starts and stops of supports, nominal starts, and starts and stops of results; borders say
    which ends are the image's.
    """
    starts, stops = grid.supports(rim)
    lows, highs = grid.reads()
    valid = lows + grid.margin[0], highs - grid.margin[1]
    borders = np.stack((valid[0] <= 0, valid[1] >= grid.extent))
    if grid.edge == "pad":
        borders[:] = False
    first = np.searchsorted(stops, starts, side="right").tolist()
    last = np.searchsorted(starts, stops, side="left").tolist()
    return first, last, np.stack((starts, stops, grid.nominals(), *valid)), borders


def accumulation_dtype(dtype: np.dtype[Any], kind: str) -> np.dtype[Any]:
    """Return the dtype in which values of ``dtype`` are combined by blend ``kind``.

    Raises
    ------
    TilingError
        For labels and flags, which must not be averaged, and dtypes that cannot be ordered or added.
    """
    if kind == "trim":
        return dtype
    if kind in ("max", "min"):
        if dtype.kind not in "biuf":
            raise TilingError(
                f'blend="{kind}" needs real numbers or bool; got dtype {dtype}. Use blend="trim".'
            )
        return dtype
    if dtype.kind not in "iufc" or (kind != "sum" and dtype.kind in "iu" and dtype.itemsize == 8):
        raise TilingError(
            f'blend="{kind}" cannot combine values of dtype {dtype}: labels and flags must not be averaged. '
            'Use blend="trim" (or "max"), or let the function return floats.'
        )
    if kind == "sum" and dtype.kind in "iu":
        return np.dtype(f"{dtype.kind}8")
    wide = np.dtype(np.complex64 if dtype.kind == "c" else np.float32)
    small = dtype.itemsize <= 2 if dtype.kind in "iu" else dtype.itemsize <= wide.itemsize
    return wide if small else np.result_type(wide, dtype, np.float64)
