"""Where the statistics of an image lie, from those of chunks of it: a bootstrap over chunks.

Neighbouring samples resemble each other, so the number of samples says little of the error; that of chunks
does. For a quantile the share of samples up to its estimate is drawn again (Woodruff 1952), and the ends are
the quantiles that are as far off: those of draws would be too close together for outer quantiles. If an end
lies beyond all samples, nothing is known of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._types import Array, Floats
from tilework.statistics.counting import Tally, keys_of, value_of
from tilework.statistics.result import ImageStatistics

__all__ = ["ALL_KEYS", "KEYS", "intervals_of"]

# Keys that are kept of all chunks together, of one index and of all indices.
KEYS, ALL_KEYS = 2**17, 2**23
# Samples of chunks that are drawn again.
DRAWS = 1000
# Chunks that are needed for an interval: of fewer ones, draws do not differ enough.
LEAST = 8
# Squares of numbers beyond 2**FAR and below 2**-FAR are not in the range of float64, or not exact there.
FAR = 400
# Normal deviate of an interval of 95 %.
DEVIATE = 1.959964

Chunk = tuple[int, int, Tally, Array]
Pair = tuple[Any, Any]


def intervals_of(
    stats: ImageStatistics, chunks: Sequence[Chunk], fractions: Sequence[Fraction], seed: int
) -> dict[str | float, tuple[Any, Any]]:
    """Return the lowest and highest plausible value of "mean", "std" and each quantile of the whole image.

    A quantile of which nothing is known, at any index, has none.

    Parameters
    ----------
    stats : ImageStatistics
        Of the chunks.
    chunks : sequence of (number, index, tally, keys)
    fractions : sequence of Fraction
        Those of the quantiles.
    seed : int
    """
    shape = np.shape(stats.count)
    if len({number for number, *_ in chunks}) < LEAST:
        return {}
    numbers = {n: k for k, n in enumerate(sorted({number for number, *_ in chunks}))}
    # All indices see the same draws of chunks.
    draws = np.random.default_rng((seed, 1)).multinomial(
        len(numbers), np.full(len(numbers), 1 / max(1, len(numbers))), DRAWS
    )
    own: dict[int, list[Chunk]] = {}
    for chunk in sorted(chunks, key=lambda c: c[0]):
        own.setdefault(chunk[1], []).append(chunk)
    names: list[str | float] = ["mean", "std", *stats.quantiles]
    ends = {name: np.zeros((2, math.prod(shape)), _dtype(name, stats)) for name in names}
    for index in range(math.prod(shape)):
        mine = own.get(index, [])
        weights = draws[:, [numbers[n] for n, *_ in mine]].astype(np.float64)
        one = stats.at(*map(int, np.unravel_index(index, shape))) if shape else stats
        found = _of_index(one, mine, weights, fractions)
        for name, pair in zip(names, found, strict=True):
            if pair is None:
                ends.pop(name, None)
            elif name in ends:
                ends[name][:, index] = pair
    return {name: tuple(e.reshape(shape) if shape else e[0] for e in both) for name, both in ends.items()}


def _dtype(name: str | float, stats: ImageStatistics) -> Any:
    return np.float64 if isinstance(name, str) else stats.dtype


def _of_index(
    stats: ImageStatistics, chunks: Sequence[Chunk], weights: Floats, fractions: Sequence[Fraction]
) -> list[Pair | None]:
    """Return the intervals of one index; None where nothing is known."""
    estimates = [stats.mean, stats.std, *stats.quantiles.values()]
    if not stats.count:
        return [(e, e) for e in estimates]
    counts = np.array([t.count for *_, t, _ in chunks], float)
    # Relative to the mean of all, so that nothing is lost to rounding.
    centre = Fraction(float(stats.mean))
    moments = [t.moments(stats.dtype.kind) or (centre, Fraction(0)) for *_, t, _ in chunks]
    most = max(v + (m - centre) ** 2 for m, v in moments)
    bits = (most.numerator.bit_length() - most.denominator.bit_length()) // 2
    unit = Fraction(2) ** (bits if abs(bits) > FAR else 0)
    means = np.array([float((m - centre) / unit) for m, _ in moments])
    squares = np.array([float((v + (m - centre) ** 2) / unit**2) for m, v in moments])
    weights = weights[(weights @ counts) > 0]
    n = weights @ counts
    mean = weights @ (counts * means) / n
    std = np.sqrt(np.maximum(0, weights @ (counts * squares) / n - mean**2))
    tail = tail_of(len(chunks))
    found: list[Pair | None] = [
        _ends(mean + float(centre / unit), stats.mean, tail, unit), _ends(std, stats.std, tail, unit),
    ]  # fmt: skip
    ordered = _Ordered.of(chunks, stats.dtype)
    for q, estimate in zip(fractions, estimates[2:], strict=True):
        below = np.array([_share(keys, estimate, stats.dtype) for *_, keys in chunks])
        low, high = np.quantile(weights @ (counts * below) / n, [tail, 1 - tail])
        # The image's share below the estimate may be the lowest of the draws, so its quantile lies above.
        p = float(q)
        ends_of = ordered.at(p - max(0.0, high - p)), ordered.at(p + max(0.0, p - low))
        known = ends_of[0] is not None and ends_of[1] is not None
        found.append((min(ends_of[0], estimate), max(ends_of[1], estimate)) if known else None)
    return found


def _share(keys: Array, value: Any, dtype: np.dtype[Any]) -> float:
    """Return the share of keys up to that of a value."""
    key = keys_of(np.array([value], dtype))[0]
    return float(np.searchsorted(keys, key, side="right")) / max(1, len(keys))


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Keys of all chunks in order, with the share of samples up to each."""

    keys: Array
    upto: Floats
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, chunks: Sequence[Chunk], dtype: np.dtype[Any]) -> _Ordered:
        """Return the keys of chunks; each stands for its part of the samples of its chunk."""
        keys = np.concatenate([k for *_, k in chunks])
        weights = np.concatenate([np.full(len(k), t.count / max(1, len(k))) for *_, t, k in chunks])
        order = np.argsort(keys, kind="stable")
        upto = np.cumsum(weights[order])
        return cls(keys[order], upto / upto[-1], dtype)

    def at(self, share: float) -> Any:
        """Return the value up to which lies a share of the samples; None if it is below 0 or above 1."""
        if not 0 <= share <= 1:
            return None
        place = min(int(np.searchsorted(self.upto, share * (1 - 1e-12))), len(self.keys) - 1)
        return value_of(int(self.keys[place]), self.dtype)


def _ends(values: Floats, estimate: float, tail: float, unit: Fraction) -> tuple[float, float]:
    """Return an interval of values, which are in multiples of a unit."""
    limit = Fraction(float(np.finfo(np.float64).max))
    low, high = (
        float(min(max(Fraction(float(v)) * unit, -limit), limit))
        for v in np.quantile(values, [tail, 1 - tail])
    )
    return min(low, float(estimate)), max(high, float(estimate))


def tail_of(n: int) -> float:
    """Return the part of the draws of ``n`` chunks that lies beyond each end of an interval of 95 %.

    Draws of few chunks differ less than samples of few chunks do. Hesterberg (2015) corrects the ends by the
    quantile of Student's distribution; here by its expansion for many degrees of freedom.

    Examples
    --------
    >>> [round(tail_of(n), 4) for n in (8, 30, 1000)]
    [0.0059, 0.0188, 0.0248]
    """
    z, free = DEVIATE, n - 1
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return math.erfc(math.sqrt(n / free) * student / math.sqrt(2)) / 2
