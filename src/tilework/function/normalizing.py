"""`normalized`: a function whose crops are normalised by the statistics of the whole image."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tilework._checks import attribute, brief, flag, has, one_of, sequence, whole
from tilework._types import Array, Function, Index
from tilework.errors import ContractError, TilingError
from tilework.function.calling import check_function, is_batched, is_on_device
from tilework.function.combining import Combined

__all__ = ["Normalized", "bare_function", "normalizations", "normalized"]

Mode = Literal["zscore", "percentile"] | Callable[[Any, Any], Any]
MODES = ("zscore", "percentile")
# Rounding of what is taken off, as a part of what the rest is divided by, from which on single precision is
# not enough: where an image lies far from 0, all results would be off by it.
ROUNDING = 2.0**-16


@dataclass(frozen=True, eq=False, repr=False)
class Normalizer:
    """Normalises crops of one image."""

    stats: Any
    """An `ImageStatistics`."""
    mode: Mode
    clip: bool = False
    axis: Index | None = None
    """Axes of the numbers in a crop, counted from its end; None: where they are in the image."""

    @cached_property
    def places(self) -> Index:
        """The axes of the numbers in a crop, counted from its end."""
        stats = self.stats
        return tuple(a - stats.ndim for a in stats.axes) if self.axis is None else self.axis

    def spread(self, value: Any) -> Any:
        """Return numbers with axes for all of a crop, so that they meet their own samples."""
        if not np.ndim(value):
            return value
        places = self.places
        array = np.transpose(value, np.argsort(places))
        shape = [1] * -min(places)
        for place, n in zip(sorted(places), array.shape, strict=True):
            shape[place] = n
        return array.reshape(shape)

    @cached_property
    def numbers(self) -> tuple[Any, Any]:
        """What is taken off, and what the rest is divided by, in double precision."""
        stats = self.stats
        if self.mode == "zscore":
            low, width = stats.mean, stats.std
        else:
            low, high = (np.asarray(stats.quantiles[q], np.float64) for q in ends(stats))
            width = high - low
        # A constant image becomes 0 wherever it has its value.
        return self.spread(np.float64(low)), self.spread(np.where(np.asarray(width) > 0, width, 1.0))

    @cached_property
    def narrow(self) -> bool:
        """Whether single precision holds the numbers."""
        low, width = self.numbers
        with np.errstate(over="ignore", under="ignore"):
            a, b = np.float32(low), np.float32(width)
        if not (np.isfinite(a).all() and np.isfinite(b).all() and np.all(b > 0)):
            return False
        return bool(np.all(np.abs(a.astype(np.float64) - low) <= ROUNDING * width))

    @cached_property
    def spread_stats(self) -> Any:
        """The statistics as a function of the user gets them."""
        return self.stats.mapped(self.spread)

    def check(self, ndim: int) -> None:
        """Raise a `TilingError` if it is not known where the axes of the numbers are in crops of ``ndim``."""
        stats = self.stats
        if not stats.axes or self.axis is not None or ndim == stats.ndim:
            return
        place, cures = stats.axes[0] - stats.ndim, []
        if ndim >= -place:
            cures = [f"say where that axis is in a crop, axis={place} for example, counted from its end"]
        if ndim < stats.ndim:
            cures.append(
                "if it is in each= of tiled_map, leave it out there and let fn take all of it, "
                "np.stack([one(c) for c in crop]) for example; if only one index of it is run, take its "
                "statistics, stats.at(0)"
            )
        raise TilingError(
            f"the statistics have numbers along axis {_listed(stats.each)} of an image of {stats.ndim} axes, "
            f"and a crop has {ndim}: {'. Or '.join(cures)}."
        )

    def __call__(self, crop: Array, *, batched: bool) -> Any:
        """Return a crop, or a batch of crops, normalised."""
        crop = np.asarray(crop)
        if crop.dtype.kind not in "biuf":
            raise ContractError(f"normalized takes real numbers; the crop has dtype {crop.dtype}.")
        stats = self.stats
        if stats.axes:
            fits = {stats.ndim + 1} if batched else {stats.ndim, stats.ndim + 1}
            if self.axis is None and crop.ndim not in fits:
                self.check(crop.ndim - batched)
            counts = np.shape(stats.count)
            if -min(self.places) > crop.ndim - batched or any(
                crop.shape[a] != n for a, n in zip(self.places, counts, strict=True)
            ):
                raise ContractError(
                    f"the statistics are those of {counts} indices of axis {_listed(stats.each)}; a crop "
                    f"of shape {crop.shape[batched:]} does not have these at axis {_listed(self.places)}, "
                    "counted from its end. Say where they are with axis=."
                )
        if callable(self.mode):
            return self.mode(crop, self.spread_stats)
        low, width = self.numbers
        kind, size = crop.dtype.kind, crop.dtype.itemsize
        single = size <= 2 or (kind == "f" and size == 4)
        work = np.dtype("f4" if single and self.narrow else "f8")
        result: Array = crop.astype(work)
        np.subtract(result, np.asarray(low, work), out=result)
        np.divide(result, np.asarray(width, work), out=result)
        if self.clip:
            np.clip(result, 0, 1, out=result)
        return result if kind == "f" and size == 8 else result.astype(np.float32, copy=False)


def ends(stats: Any) -> tuple[float, float]:
    """Return the lowest and the highest quantile."""
    if len(stats.quantiles) < 2:
        raise TilingError(
            f'mode="percentile" needs two quantiles; the statistics have {sorted(stats.quantiles)}. Measure '
            "them: tw.image_statistics(image, (0.01, 0.998))."
        )
    return min(stats.quantiles), max(stats.quantiles)


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))


@dataclass(frozen=True, eq=False, repr=False)
class Normalized:
    """A function whose crops are normalised first; made by `normalized`."""

    fn: Function
    """The function that gets normalised crops."""
    normalizers: tuple[Normalizer | None, ...]
    """For each crop of a call; None, or none at all: it stays as it is."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.fn)

    def __getattr__(self, name: str) -> Any:
        # How it wants to be called is said by the function itself.
        if name.startswith("__tilework_"):
            return getattr(self.fn, name)
        raise AttributeError(name)

    @property
    def __tilework_on_device__(self) -> bool:
        return is_on_device(self.fn)

    def __call__(self, *crops: Array, **tile: Any) -> Any:
        """Return what the function returns for normalised crops, or batches of them."""
        if len(crops) < len(self.normalizers):
            raise ContractError(
                f"there are statistics for {len(self.normalizers)} arrays; fn gets {len(crops)} crops."
            )
        batched = is_batched(self.fn)
        seen = [
            crop if own is None else own(crop, batched=batched)
            for crop, own in zip(crops, self.normalizers, strict=False)
        ]
        return self.fn(*seen, *crops[len(seen) :], **tile)

    def check(self, ndims: tuple[int, ...]) -> None:
        """Raise a `TilingError` if it is not known where channels are in crops with these numbers of axes."""
        for own, ndim in zip(self.normalizers, ndims, strict=False):
            if own is not None:
                own.check(ndim)

    def values(self) -> tuple[float, float] | None:
        """Return the range of most samples of the first image; None if it is not known."""
        own = self.normalizers[0]
        if own is None:
            return None
        stats = own.stats
        pairs = [(stats.min, stats.max)]
        if stats.quantiles:
            pairs.insert(0, (stats.quantiles[min(stats.quantiles)], stats.quantiles[max(stats.quantiles)]))
        for pair in pairs:
            if (low := float(np.min(pair[0]))) < (high := float(np.max(pair[1]))):
                return low, high
        return None

    def parts(self) -> dict[str, Any]:
        """Return what the results depend on, by name: all numbers as text."""
        found: dict[str, Any] = {}
        for k, own in enumerate(self.normalizers):
            name = f"statistics {k} " if k else "statistics "
            if own is None:
                continue
            found[f"{name}mode"] = own.mode
            found[f"{name}options"] = repr((own.clip, own.places))
            if callable(own.mode):  # which may look at anything
                found[f"{name}whole"] = own.stats.to_json()
            found |= {f"{name}{key}": text for key, text in own.stats.facts().items()}
        return found

    def __repr__(self) -> str:
        return f"normalized({attribute(self.fn, '__name__', self.fn)!s})"


def normalizations(fn: Any) -> Iterator[Normalized]:
    """Yield all that normalises the crops of a function: several inside each other, and inside partials."""
    while True:
        if isinstance(fn, Normalized):
            yield fn
            fn = fn.fn
        elif isinstance(fn, functools.partial) and not fn.args:
            fn = fn.func
        else:
            return


def bare_function(fn: Any) -> Any:
    """Return the function that gets normalised crops; any other function itself."""
    while isinstance(fn, Normalized):
        fn = fn.fn
    return fn


def normalized(
    fn: Function,
    stats: Any,
    mode: Mode = "zscore",
    *,
    clip: bool = False,
    axis: int | tuple[int, ...] | None = None,
) -> Function:
    """Return ``fn`` on crops that are normalised by the statistics of the whole image.

    A function that normalises each crop by itself gives neighbouring crops different scales, which no overlap
    cures. With the numbers of the whole image, the tiled result equals the untiled one.

    Parameters
    ----------
    fn : callable
        As for `tiled_map`; also one of `load_once`, `from_torch`, `augmented` or `ensemble`.
    stats : ImageStatistics, or tuple of them with one per array
        What `image_statistics` returned. One is that of the first array; an array with None, and those beyond
        the tuple, stay as they are.
    mode : {"zscore", "percentile"} or callable
        "zscore": less the mean, over the standard deviation. "percentile": the lowest quantile of the
        statistics becomes 0, the highest 1. Or a function of a crop and the statistics, whose arrays have
        axes so that they fit to the crop; it must treat each sample alone.
    clip : bool
        Whether "percentile" ends at 0 and 1.
    axis : int or tuple of int, optional
        Where the axes of the statistics (their ``each``) are in a crop, counted from its end: -3 for channels
        in ``(c, y, x)``. Default: where they are in the image that was measured, for crops of as many axes.

    Returns
    -------
    callable
        It can be pickled, holds numbers alone, and takes batches if ``fn`` does. ``fn`` gets float32, or
        float64 for crops of float64. Integers of 32 bits and more are normalised in double precision.

    Raises
    ------
    TilingError
        If the statistics have no samples, or too few quantiles. At `tiled_map`: if it is not known which axis
        of a crop the statistics are along.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    What is constant becomes 0: its standard deviation is taken as 1. The numbers are part of the fingerprint
    of a stored result, so a run is not resumed with other statistics, and its record shows them. `probe`
    draws values from the range of the statistics.

    Examples
    --------
    >>> from tilework import image_statistics, tiled_map
    >>> image = np.arange(64.0).reshape(8, 8)
    >>> stats = image_statistics(image, progress=False)
    >>> fn = normalized(np.tanh, stats)
    >>> out = tiled_map(fn, image, crop=4, overlap=0).compute()
    >>> bool((out == np.tanh((image - image.mean()) / image.std())).all())
    True
    """
    clip = flag("clip", clip)
    check_function(fn)
    several = stats if isinstance(stats, tuple) else (stats,)
    if not callable(mode):
        one_of("mode", mode, MODES)
    if clip and mode != "percentile":
        raise TilingError(f'clip=True is for mode="percentile"; got mode={brief(mode)}.')
    given: Any = axis
    places = (
        None if axis is None else tuple(whole("axis", a) for a in (given if sequence(given) else (given,)))
    )
    if places is not None and not all(a < 0 for a in places):
        raise TilingError(
            f"axis counts from the end of a crop, because a batch has one more axis before it; got {axis}. "
            "Of (c, y, x), c is -3."
        )
    for one in several:
        if one is None:
            continue
        if not has(one, "quantiles", "n_nan"):
            raise TypeError(f"stats must be what tw.image_statistics returned; got {brief(one)}.")
        if not np.all(np.asarray(one.count) > 0):
            which = "" if not one.axes else f" at index {tuple(map(int, np.argwhere(one.count == 0)[0]))}"
            raise TilingError(f"the statistics have no finite samples{which}; nothing to normalise by.")
        if mode == "percentile":
            low, high = (np.asarray(one.quantiles[q], np.float64) for q in ends(one))
            if not np.all(high / 2 - low / 2 <= np.finfo(np.float64).max / 2):
                raise TilingError("the quantiles are further apart than float64 holds; scale the image.")
        if places is not None and not len(set(places)) == len(places) == len(one.axes):
            raise TilingError(
                f"axis needs one number for each of the {len(one.axes)} axes of the statistics; got {axis}."
            )
    if all(one is None for one in several):
        raise TypeError("stats must be what tw.image_statistics returned; got none.")
    return _inside(fn, tuple(None if one is None else Normalizer(one, mode, clip, places) for one in several))


def _inside(fn: Function, normalizers: tuple[Normalizer | None, ...]) -> Function:
    """Return ``fn`` with normalised crops; of one that combines others, each of these gets them.

    Samples are normalised one by one, so variants of a normalised crop are normalised variants.
    """
    if isinstance(fn, Combined):
        return replace(fn, members=tuple(_inside(m, normalizers) for m in fn.members))
    return Normalized(fn, normalizers)
