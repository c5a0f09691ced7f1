"""`ImageStatistics`: what `image_statistics` found, as numbers, text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tilework._checks import Report, brief, read_json, whole
from tilework._types import Array, Index
from tilework.errors import TilingError

__all__ = ["ImageStatistics"]

FORMAT = 1
# Indices of which the text shows the numbers.
MOST = 16


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ImageStatistics(Report):
    """Statistics of the finite samples of an image, or of each index of some of its axes.

    `image_statistics` returns it. Without ``each`` axes all values are scalars; with them, arrays over these
    axes.

    Examples
    --------
    >>> from tilework import image_statistics
    >>> stats = image_statistics(np.array([[4, 1, 2], [3, 9, 9]], "u1"), (0.5,), progress=False)
    >>> stats.quantiles[0.5], stats.max, stats.count
    (np.uint8(3), np.uint8(9), 6)
    >>> ImageStatistics.from_json(stats.to_json()) == stats
    True
    """

    dtype: np.dtype[Any]
    """Dtype of the samples."""
    count: Any
    """Number of finite samples: int."""
    mean: Any
    """Mean, float64; NaN without samples."""
    std: Any
    """Standard deviation, divided by the count, float64; NaN without samples."""
    min: Any
    """Lowest sample, of the image's dtype; without samples NaN, or 0 of integers."""
    max: Any
    """Highest sample, likewise."""
    quantiles: Mapping[float, Any]
    """By the fraction that was asked for, a sample: the one of rank ``ceil(q * count)``."""
    n_nan: Any
    """Number of samples that are NaN."""
    n_inf: Any
    """Number of samples that are infinite."""
    each: tuple[str | int, ...] = ()
    """Names of the ``each`` axes, or their numbers."""
    axes: Index = ()
    """Their numbers in the image."""
    ndim: int = 0
    """Number of the axes of the image."""
    level: int | None = None
    """The level of an OME-Zarr image that was measured; None: the image as given."""
    sampled: tuple[int, int] | None = None
    """Number of chunks that were measured and of all; None: all samples were measured."""
    intervals: Mapping[str | float, tuple[Any, Any]] = field(default_factory=dict)
    """Of a sample of chunks, where "mean", "std" and each quantile of the image lie in about 95 of 100
    cases. Fewer than 8 chunks have none, nor have outer quantiles of which these chunks say too little."""

    def __post_init__(self) -> None:
        for name in ("count", "mean", "std", "n_nan", "n_inf"):
            if isinstance(value := getattr(self, name), np.generic):
                object.__setattr__(self, name, value.item())

    def at(self, *index: int) -> ImageStatistics:
        """Return the statistics of one index of the ``each`` axes, as scalars.

        Parameters
        ----------
        *index : int
            One number per axis.

        Raises
        ------
        TilingError
            For another number of numbers, or one that is out of range.
        """
        shape = np.shape(self.count)
        place = tuple(whole("index", i) for i in index)
        if len(place) != len(shape) or not all(-n <= i < n for i, n in zip(place, shape, strict=False)):
            raise TilingError(f"the index must be one of {shape}, axes {self.each}; got {brief(index)}.")
        found = self.mapped(lambda a: a[place] if shape else a)
        return replace(found, each=(), axes=(), ndim=self.ndim - len(shape))

    def mapped(self, function: Callable[[Any], Any]) -> ImageStatistics:
        """Return the statistics with all numbers replaced by a function of them.

        Parameters
        ----------
        function : callable
        """
        return replace(self, **self._mapped(function))

    def facts(self) -> dict[str, str]:
        """Return all numbers as text, by name."""
        numbers = self._mapped(_plain)
        quantiles = {f"quantile {q}": value for q, value in numbers.pop("quantiles").items()}
        del numbers["intervals"]
        return {name: json.dumps(value) for name, value in (numbers | quantiles).items()}

    def _mapped(self, function: Any) -> dict[str, Any]:
        """Return all values, with a function applied to each."""
        found = {name: function(getattr(self, name)) for name in NUMBERS}
        found["quantiles"] = {q: function(v) for q, v in self.quantiles.items()}
        found["intervals"] = {q: (function(a), function(b)) for q, (a, b) in self.intervals.items()}
        return found

    def to_json(self) -> str:
        """Return everything as JSON text; samples keep their exact values."""
        data: dict[str, Any] = {"tilework_statistics": FORMAT, "dtype": self.dtype.str} | self._mapped(_plain)
        for name in ("quantiles", "intervals"):
            data[name] = [[q, value] for q, value in data[name].items()]
        for name in ("each", "axes", "ndim", "level", "sampled"):
            data[name] = getattr(self, name)
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ImageStatistics:
        """Return the statistics that `to_json` wrote.

        Parameters
        ----------
        text : str

        Raises
        ------
        TilingError
            For text of another format.
        """
        return read_json(text, "tilework_statistics", FORMAT, "statistics", cls._restored)

    @classmethod
    def _restored(cls, data: dict[str, Any]) -> ImageStatistics:
        dtype = np.dtype(data["dtype"])
        kinds = {"min": dtype, "max": dtype, "mean": np.dtype(float), "std": np.dtype(float)}
        for name in NUMBERS:
            data[name] = _restored(data[name], kinds.get(name))
        data["quantiles"] = {q: _restored(v, dtype) for q, v in data["quantiles"]}
        data["intervals"] = {
            q: (_restored(a, kinds.get(q, dtype)), _restored(b, kinds.get(q, dtype)))
            for q, (a, b) in data["intervals"]
        }
        sampled = data["sampled"]
        data |= {"each": tuple(data["each"]), "axes": tuple(data["axes"]), "dtype": dtype}
        return cls(**data | {"sampled": None if sampled is None else (sampled[0], sampled[1])})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageStatistics) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __dask_tokenize__(self) -> Any:
        return "tilework.ImageStatistics", self.to_json()

    def rows(self) -> Iterable[tuple[str, str]]:
        """Return names and values for people."""
        yield "samples", f"{self._shown(self.count)}, {self.dtype}{self._of_each()}"
        for what, n in (("NaN", self.n_nan), ("infinite", self.n_inf)):
            if np.any(n):
                yield what, f"{self._shown(n)}, not counted"
        for name in ("mean", "std"):
            yield name, self._shown(getattr(self, name)) + self._interval(name)
        yield "min", self._shown(self.min)
        for q in sorted(self.quantiles):
            yield f"q {q:.10g}", self._shown(self.quantiles[q]) + self._interval(q)
        yield "max", self._shown(self.max)
        yield from self._notes()

    def _notes(self) -> Iterator[tuple[str, str]]:
        if self.level:
            yield "level", f"{self.level}: averaging shrinks extremes, std and outer quantiles of level 0"
        if self.sampled is not None:
            n, of = self.sampled
            known = "intervals of 95 %" if self.intervals else "too few for intervals"
            yield "sample", f"{n} of {of} chunks, {known}; min and max are those of the sample"

    def _of_each(self) -> str:
        return f", of each index of axis {', '.join(map(str, self.each))}" if self.each else ""

    def _interval(self, name: str | float) -> str:
        if name not in self.intervals:
            return " (interval unknown)" if self.intervals else ""
        low, high = self.intervals[name]
        return f" ({self._shown(low)} to {self._shown(high)})"

    @staticmethod
    def _shown(value: Any) -> str:
        flat = np.asarray(value).ravel()
        texts = [str(v) if v.dtype.kind in "bui" else f"{v:.6g}" for v in flat[:MOST]]
        return ", ".join(texts) + (f", ... ({len(flat)})" if len(flat) > MOST else "")


NUMBERS = ("count", "mean", "std", "min", "max", "n_nan", "n_inf")


def _plain(value: Any) -> Any:
    """Return numbers as JSON has them, with null for NaN."""
    array = np.asarray(value)
    found = array.tolist()
    if array.dtype.kind == "f":
        found = _without_nan(found)
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if math.isnan(value) else value


def _restored(value: Any, dtype: np.dtype[Any] | None) -> Any:
    if dtype is None:  # counts
        return np.array(value, np.int64) if isinstance(value, list) else int(value)
    read = dtype if dtype.kind in "biu" else np.dtype(np.float64)
    array: Array = np.array(value, read).astype(dtype)
    return array if array.ndim else array[()]
