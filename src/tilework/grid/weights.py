"""Windows: the weight of every sample of a crop, normalised along each axis before anything runs.

The weight of a tile is the outer product of one profile per axis, and the grid is a product of axes, so
the sum of all weights is a product too. Dividing each profile by the sum along its own axis therefore
normalises the blend exactly, without a weight volume or a division by zero at run time.

Everything here is in samples of the *result*: a grid of scale 2 has crops of ``2 * crop`` samples.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from tilework._checks import as_numbers, brief, noted, one_of
from tilework._types import Array, Bits, Floats, Ints, Span
from tilework.errors import GridError, TilingError
from tilework.grid.axis import AxisGrid, Number

__all__ = ["BLENDS", "WINDOWS", "AxisWeights", "Blend", "accumulation_dtype", "own_weights", "profile"]

Blend = str | Callable[[int], Any] | Sequence[Any] | Array
"""A word of `BLENDS`, a callable of the crop's length, one 1-D array per axis, or one N-D array."""

WINDOWS = ("average", "linear", "hann", "gaussian")
# Crops on one sample up to which sums are plain: as many as lie on one if three axes overlap by half, and the
# last crops are moved inward. Rounding then takes a few units of the last place from an average.
PLAIN = 32
# Profiles cached per axis, bytes; a block needs few of them at a time.
PROFILES = 2**26
# Parts of an axis whose sums of weights are cached; a profile needs at most three.
PARTS = 8
# Up to this many tiles along an axis, the places of all are computed at once, which is faster per tile.
TABLED = 2**16
# Of more tiles along an axis, those of a shorter one are looked at, or few at a time; 50 bytes a tile.
COMPARED = 2**18
# Keys held per axis; where crops repeat along it, all of them are of a few tiles.
KEYED = 2**12
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
    note = f"called as blend, with the length of a crop, {length}, for its weights"
    values = own_weights(noted(note, blend, length) if callable(blend) else blend)
    if values.shape != (length,):
        raise GridError(
            f"a window must have one weight per sample of the result's crop; got shape {values.shape} for "
            f"a crop of {length} samples."
        )
    weights[inner] = values[inner]
    return weights


def own_weights(given: Any) -> Floats:
    """Return weights given by the caller, of any shape; what rounding made negative is 0.

    The formulas of scipy.signal end at -1e-17, those of torch at -3e-8.

    Raises
    ------
    GridError
        Where weights are negative, not finite or all zero.
    """
    found = as_numbers("weights of blend", given)
    values = found.astype(np.float64)
    rounding = 4 * np.finfo(found.dtype).eps if found.dtype in (np.float32, np.float64) else 0.0
    most = values.max(initial=0)
    if not np.isfinite(values).all() or most <= 0 or values.min() < -rounding * most:
        span = f"values from {values.min()} to {values.max()}" if values.size else "none"
        raise GridError(f"the weights of a window must be finite, not negative and not all zero; got {span}.")
    return np.asarray(np.maximum(values, 0))


def kind_of(blend: Blend) -> str:
    """Return the word of ``blend``, or "window" for weights given by the caller."""
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
        raise TypeError(f"blend must be a word, a callable or arrays; got {brief(blend)}.")
    if len(blend) != n_axes:
        raise GridError(f"blend must hold one window per tiled axis; got {len(blend)} for {n_axes} axes.")
    return tuple(blend)


@dataclass(frozen=True, slots=True)
class _Places:
    """Places of all tiles along an axis; one entry per tile."""

    results: list[Span]
    """Result samples that each tile produces, padding included."""
    supports: list[Span]
    """Result samples where each tile has weight."""


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """What decides the normalised weights of all tiles along an axis; one column per tile."""

    near: Ints
    """Rows: first and one past the last tile whose support meets that of each tile."""
    spans: Ints
    """Rows: starts and stops of supports, nominal starts; image samples."""
    borders: Bits
    """Rows: whether each tile reaches the image's border, before and after."""
    turns: Ints
    """The tiles that differ from the tile before in their borders or in the distance to the next one."""


class AxisWeights:
    """Places and weights, in one output, of the results of the crops along one axis.

    The four attributes do not change. Values derived from them that every tile of a row needs are computed
    once and cached; the cache is not pickled.

    Parameters
    ----------
    grid : AxisGrid
        The crops, in image samples.
    window : numpy.ndarray, shape (length,), optional
        Weights of a full crop, one per result sample; None when trimming.
    rim : int, image samples per side, optional
        Samples without weight; None when trimming.
    scale : Fraction
        Result samples per image sample.

    Examples
    --------
    >>> grid = AxisGrid(extent=12, crop=8, overlap=2, trims=False)
    >>> AxisWeights(grid, profile("linear", 8), rim=0).weights(0)[4:].round(2).tolist()
    [0.8, 0.6, 0.4, 0.2]
    """

    def __init__(
        self,
        grid: AxisGrid,
        window: Floats | None = None,
        rim: int | None = None,
        scale: Fraction = Fraction(1),
    ) -> None:
        self.grid, self.window, self.rim, self.scale = grid, window, rim, scale
        self._profiles: dict[Any, Floats] = {}
        self._profile_bytes = 0
        self._totals: dict[int, Floats] = {}
        self._keys: dict[int, tuple[Any, ...]] = {}

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

    def scaled(self, x: Number) -> Number:
        """Return image position ``x``, or an array of them, in result samples, rounded up."""
        return x if self.scale == 1 else -(-x * self.scale.numerator // self.scale.denominator)

    @cached_property
    def _places(self) -> _Places | None:
        """The places of all tiles; None if there are more than `TABLED`."""
        grid = self.grid
        if len(grid) > TABLED:
            return None
        results = map(self.scaled, grid.valid(grid.tiles))
        return _Places(results=_pairs(*results), supports=_pairs(*self.supports()))

    @cached_property
    def _neighbours(self) -> _Neighbours | None:
        """The neighbours of all tiles; None if there are more than `COMPARED`, each with few neighbours."""
        grid = self.grid
        if len(grid) > COMPARED and self.most <= PLAIN:
            return None
        starts, stops = grid.supports(self.rim)
        near = np.searchsorted(stops, starts, side="right"), np.searchsorted(starts, stops, side="left")
        spans, borders = np.stack((starts, stops, grid.nominals())), np.stack(grid.borders(grid.tiles))
        # One column per tile: its distances to the next one, and its borders.
        ways = np.concatenate((np.diff(spans, append=0), borders))
        turns = 1 + np.flatnonzero((ways[:, 1:] != ways[:, :-1]).any(axis=0))
        return _Neighbours(np.stack(near), spans, borders, turns)

    def result(self, i: int) -> Span:
        """Return the result samples that tile ``i`` produces, padding included."""
        if (places := self._places) is not None:
            return places.results[i]
        start, stop = self.grid.valid(i)
        return self.scaled(start), self.scaled(stop)

    def support(self, i: int) -> Span:
        """Return the result samples where tile ``i`` has weight."""
        if (places := self._places) is not None:
            return places.supports[i]
        start, stop = self.grid.support(i, self.rim)
        return self.scaled(start), self.scaled(stop)

    def supports(self, tiles: range | None = None) -> tuple[Ints, Ints]:
        """Return `support` of all tiles at once, or of some side by side, as starts and stops."""
        if tiles is None:
            starts, stops = self.grid.supports(self.rim)
        else:
            starts, stops = self.grid.supports_of(np.arange(tiles.start, tiles.stop), self.rim)
        return self.scaled(starts), self.scaled(stops)

    def lengths(self) -> list[int]:
        """Return how many result samples each tile produces."""
        return [b - a for a, b in map(self.result, range(len(self.grid)))]

    def touching(self, tiles: range, start: int, stop: int) -> Span:
        """Return the first and one past the last of ``tiles`` with weight in result samples [start, stop)."""
        low = bisect_right(tiles, start, key=lambda i: self.support(i)[1])
        high = bisect_left(tiles, stop, key=lambda i: self.support(i)[0])
        return tiles.start + low, tiles.start + max(low, high)

    def raw(self, i: int) -> Floats:
        """Return the weights of tile ``i`` over its support before normalising."""
        if self.window is None:
            start, stop = self.support(i)
            return np.ones(stop - start)
        return self.fill_rim(i, self.window)[self.in_window(i)]

    @cached_property
    def _windows(self) -> tuple[list[int], list[tuple[bool, bool]]] | None:
        """Where the windows of all tiles start, and `rims`; None if there are more than `TABLED`."""
        if len(grid := self.grid) > TABLED:
            return None
        before, after = (ends.tolist() for ends in grid.borders(grid.tiles))
        return self.scaled(grid.nominals()).tolist(), list(zip(before, after, strict=True))

    def in_window(self, i: int) -> slice:
        """Return the support of tile ``i`` as an index into a full crop's window."""
        start, stop = self.support(i)
        origin = self._windows[0][i] if self._windows is not None else self.scaled(self.grid.nominal(i))
        return slice(start - origin, stop - origin)

    def rims(self, i: int) -> tuple[bool, bool]:
        """Return whether the rim of tile ``i`` is filled, before and after: where it touches the border."""
        if not self.rim:
            return False, False
        before, after = self._windows[1][i] if self._windows is not None else self.grid.borders(i)
        return bool(before), bool(after)

    def fill_rim(self, i: int, window: Floats, axis: int = 0) -> Floats:
        """Return ``window`` with its rim filled on the sides of tile ``i`` that touch the border."""
        before, after = self.rims(i)
        if not (before or after):
            return window
        rim = self.scaled(self.rim or 0)
        window, n = np.moveaxis(window.copy(), axis, 0), self.length
        if before:
            window[:rim] = window[rim]
        if after:
            window[n - rim :] = window[n - rim - 1]
        return np.moveaxis(window, 0, axis)

    def key(self, i: int) -> tuple[Any, ...]:
        """Return a key that determines the normalised weights of tile ``i``; interior tiles share one."""
        if (near := self._shorter) is not self:
            return near.key(self.grid.alike(i))
        if (found := self._keys.get(i)) is None:
            if len(self._keys) >= KEYED:
                self._keys = {}
            found = self._keys[i] = self._key(i)
        return found

    def _key(self, i: int) -> tuple[Any, ...]:
        if (all_of := self._neighbours) is None:
            start, stop = self.grid.support(i, self.rim)
            return tuple((self._shape(k, start), k == i) for k in self.grid.touching(start, stop, self.rim))
        a, b = all_of.near[:, i].tolist()
        if a >= b:
            return i - a, b - a  # a tile without weight
        # Between two turns all tiles are alike: two tiles after each turn, and the last one, tell all.
        first, last = np.searchsorted(all_of.turns, a, side="right"), np.searchsorted(all_of.turns, b)
        told = np.concatenate(((a,), all_of.turns[first:last], (b - 1,)))
        told = np.unique(np.clip(np.concatenate((told, told + 1)), a, b - 1))
        spans = all_of.spans[:, told] - all_of.spans[0, i]
        return i - a, b - a, (told - a).tobytes(), spans.tobytes(), all_of.borders[:, told].tobytes()

    def kinds(self, tiles: Ints | None = None) -> list[int]:
        """Return the first tile of each kind, of all or some: those with equal weights are of one kind."""
        some: Any = range(len(self.grid)) if tiles is None else tiles.tolist()
        if 0 < len(some) == len(self.grid) and (all_of := self._neighbours) is not None:
            a, b = all_of.near
            # A tile is like the one before if it has as many neighbours on both sides, and they are alike.
            last = np.searchsorted(all_of.turns, b[1:] - 1, side="right")
            turns = last > np.searchsorted(all_of.turns, a[:-1] + 1)
            other = (np.diff(a) != 1) | (np.diff(b) != 1) | turns
            some = np.append(0, 1 + np.flatnonzero(other)).tolist()
        found: dict[Any, int] = {}
        for i in some:
            found.setdefault(self.key(i), i)
        return list(found.values())

    def _shape(self, i: int, origin: int) -> tuple[int, ...]:
        start, stop = self.grid.support(i, self.rim)
        nominal = self.grid.nominal(i)
        return start - origin, stop - origin, nominal - origin, *self.grid.borders(i)

    def weights(self, i: int) -> Floats:
        """Return the weights of tile ``i`` over its support; with all others they sum to 1.

        Tiles with equal weights get the same array.
        """
        key = self.key(i)
        found = self._profiles.get(key)
        if found is None:
            found = self.raw(i) / self.total(*self.support(i))
            if self._profile_bytes > PROFILES:
                self._profiles, self._profile_bytes = {}, 0
            # Beside a tile at the border, weights may be those of all others, and share their products then.
            found = self._profiles.setdefault(found.tobytes(), found)
            self._profiles[key] = found
            self._profile_bytes += 2 * found.nbytes
        return found

    @cached_property
    def most(self) -> int:
        """The number of tiles with weight on the sample where most of them have."""
        (starts, stops), tiles = self.grid.support_ends(self.rim), self.grid.typical
        return int((tiles + 1 - stops.count_before(starts.take(tiles), "right")).max(initial=0))

    @cached_property
    def _shorter(self) -> AxisWeights:
        """Weights with tiles of the same kinds along a shorter axis, where steps between tiles repeat."""
        grid, _, steps = self.grid.shorter()
        return AxisWeights(grid, self.window, self.rim, self.scale) if steps else self

    def _excerpt(self) -> tuple[AxisWeights, dict[int, int]]:
        """Return weights with tiles of the same kinds along a shorter axis, and there the first of each kind.

        For each of these it is told how many result samples further on it is along this axis.
        """
        grid, tiles, shift = self.grid.excerpt
        near = self if grid is self.grid else AxisWeights(grid, self.window, self.rim, self.scale)
        firsts = near.kinds(tiles)
        shifts = self.scaled(shift[np.searchsorted(tiles, firsts)]).tolist()
        return near, dict(zip(firsts, shifts, strict=True))

    def total(self, start: int, stop: int) -> Floats:
        """Return the sum of the raw weights of all tiles over result samples [start, stop)."""
        size = max(1, self.length)
        parts = [self._part(k) for k in range(start // size, -(-stop // size))]
        joined = np.concatenate(parts) if parts else np.zeros(0)
        first = start // size * size
        return joined[start - first : stop - first]

    def _part(self, number: int) -> Floats:
        """Return the sum of the raw weights over one of the parts into which sums are cut.

        Neighbouring tiles need the same sums: one by one, ``n`` tiles on a sample would cost ``n`` times as
        much. The sum is exact to the last place however many tiles there are.
        """
        found = self._totals.get(number)
        if found is not None:
            return found
        size = max(1, self.length)
        start = number * size
        total, lost = np.zeros(size), np.zeros(size)
        many = self.most > PLAIN
        for k in range(*self.touching(range(len(self.grid)), start, start + size)):
            a, b = self.support(k)
            low, high = max(a, start), min(b, start + size)
            here, raw = slice(low - start, high - start), self.raw(k)[low - a : high - a]
            before = total[here].copy() if many else None
            total[here] += raw
            if before is not None:
                # The exact error of the addition: the sum is the larger of the two, or both are small.
                own = total[here] - before
                lost[here] += (before - (total[here] - own)) + (raw - own)
        while len(self._totals) >= PARTS:
            self._totals.pop(next(iter(self._totals)), None)
        found = self._totals[number] = total + lost
        return found

    def covering(self, axis: object) -> AxisWeights:
        """Return weights of which every sample has some: these, or those whose zeros at both ends are a rim.

        A rim gets weight at the border of the image, where no other crop has any. Raises a `GridError`
        naming ``axis`` if samples are still without weight.
        """
        weights = self if self.hole() is None else self._with_zero_ends()
        weights.check_cover(axis)
        return weights

    def _with_zero_ends(self) -> AxisWeights:
        assert self.window is not None
        inside = np.flatnonzero(self.window)
        if not inside.size:
            return self
        zeros = min(int(inside[0]), len(self.window) - 1 - int(inside[-1]))
        rim = min(int(zeros / self.scale), self.grid.overlap - max(self.grid.margin))
        return AxisWeights(self.grid, self.window, max(self.rim or 0, rim), self.scale)

    def check_cover(self, axis: object) -> None:
        """Raise a `GridError` naming ``axis`` where some sample has no weight from any tile."""
        if (hole := self.hole()) is not None:
            raise GridError(
                f"every sample needs a positive weight from some crop; sample {hole} on axis {axis} has "
                "none. Use more overlap, a smaller rim or a window that is positive there."
            )

    def hole(self) -> int | None:
        """Return the first sample found that has no weight from any tile; None if there is none."""
        near, shifts = self._excerpt()
        for i, shift in shifts.items():
            start, stop = near.support(i)
            hole = np.flatnonzero(near.total(start, stop) <= 0)
            if hole.size:
                return int(start + hole[0]) + shift
        return None

    def offsets(self) -> tuple[Ints, Ints]:
        """Return places in the window under each kind of sample, and a sample of each kind.

        Samples are of one kind if the tiles on them have them at the same places of the window. The places
        have shape (kinds, most tiles on a sample); the place before the first one, -1, fills up the rows.
        """
        rows, samples = [], []
        near, shifts = self._excerpt()
        width, rim, n = max(1, self.most), self.scaled(self.rim or 0), self.length
        for i, shift in shifts.items():
            start, stop = near.support(i)
            x = np.arange(start, stop)
            found = np.full((len(x), width), -1)
            first, last = near.touching(range(len(near.grid)), start, stop)
            for k in range(first, last):
                a, b = near.support(k)
                before, after = near.grid.borders(k)
                # At the border of the image, the rim has the weight of the first sample inside it.
                low, high = rim if before else 0, n - rim - 1 if after else n - 1
                here = (x >= a) & (x < b)
                place = np.clip(x[here] - self.scaled(near.grid.nominal(k)), low, high)
                found[here, (found[here] >= 0).sum(axis=1)] = place
            rows.append(found)
            samples.append(x + shift)
        if not rows:
            return np.empty((0, width), np.int64), np.empty(0, np.int64)
        kinds, at = np.unique(np.concatenate(rows), axis=0, return_index=True)
        return kinds, np.concatenate(samples)[at]


def _pairs(starts: Ints, stops: Ints) -> list[Span]:
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def accumulation_dtype(dtype: np.dtype[Any], kind: str) -> np.dtype[Any]:
    """Return the dtype in which values of ``dtype`` are combined by blend ``kind``.

    Raises
    ------
    TilingError
        For labels and flags, which must not be averaged, and dtypes that cannot be ordered or added.
    """
    if kind == "trim":
        return dtype
    if kind == "own":
        return np.dtype(np.int64)
    if kind in ("max", "min"):
        if dtype.kind not in "biuf":
            raise TilingError(
                f'blend="{kind}" needs real numbers or bool; got dtype {dtype}. Use blend="trim".'
            )
        return dtype
    if dtype.kind not in "iufc" or (kind != "sum" and dtype.kind in "iu" and dtype.itemsize == 8):
        if dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float32):
            raise TilingError(
                f'blend="{kind}" cannot combine values of dtype {dtype}; let the function return float32: '
                'result.astype("float32").'
            )
        raise TilingError(
            f'blend="{kind}" cannot combine values of dtype {dtype}: labels and flags must not be averaged. '
            'Use blend="trim" (or "max" for flags), or let the function return floats.'
        )
    if kind == "sum" and dtype.kind in "iu":
        return np.dtype(f"{dtype.kind}8")
    wide = np.dtype(np.complex64 if dtype.kind == "c" else np.float32)
    small = dtype.itemsize <= 2 if dtype.kind in "iu" else dtype.itemsize <= wide.itemsize
    return wide if small else np.result_type(wide, dtype, np.float64)
