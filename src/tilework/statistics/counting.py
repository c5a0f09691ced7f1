"""Counting the samples of one index: what adds up over boxes, and how quantiles are found from it.

A sample is turned into a whole number, its *key*: keys are in the order of the values, and equal where
values are. The samples are counted by 16 bits of their keys, the first ones in the first pass. The bits of a
quantile found so far are its prefix, and the next pass counts the samples with this prefix by the next 16
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._types import Array, Ints
from tilework.statistics.sums import BLOCK, float_sums, integer_sums, square_scale, value_scale

__all__ = ["DIGIT", "Counts", "Tally", "Target", "keys_of", "tally_of", "value_of"]

# Bits by which a pass counts.
DIGIT = 16
# Targets of which each compares all keys; for more, sorting the keys once costs less.
FEW = 8


def keys_of(values: Array) -> Array:
    """Return the keys of samples without NaN; -0.0 has that of 0.

    Examples
    --------
    >>> keys_of(np.array([-1.5, -0.0, 0.0, 2.0], "f4")).astype("i8").tolist()
    [1077936127, 2147483648, 2147483648, 3221225472]
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "bu":
        return values.view(f"u{size}")
    top = 1 << 8 * size - 1
    if kind == "i":
        return _xor(values.view(f"u{size}"), np.array(top, f"u{size}"))
    bits = values + values.dtype.type(0)
    signs = bits.view(f"i{size}") >> np.array(8 * size - 1, f"i{size}")
    return _xor(bits.view(f"u{size}"), signs.view(f"u{size}") | np.array(top, f"u{size}"))


def _xor(a: Array, b: Array) -> Array:
    found: Array = np.bitwise_xor(a, b)
    return found


def value_of(key: int, dtype: np.dtype[Any]) -> Any:
    """Return the value of a key, a scalar of the dtype."""
    size, top = dtype.itemsize, 1 << 8 * dtype.itemsize - 1
    if dtype.kind == "i":
        key ^= top
    elif dtype.kind == "f":
        key ^= top if key & top else 2 * top - 1
    return np.array([key], f"u{size}").view(dtype)[0]


@dataclass(frozen=True, slots=True)
class Target:
    """Samples to count: those of one index whose keys begin with a prefix."""

    index: int
    """Number of the index of the ``each`` axes."""
    known: int = 0
    """Bits of the prefix."""
    prefix: int = 0
    gather: bool = False
    """Whether the samples are few enough to keep their keys."""

    def count(self, keys: Array, found: Array | None, *, ordered: bool = False) -> Array:
        """Return what was found so far and in ``keys``: numbers of samples by digit, or keys.

        Parameters
        ----------
        keys : array
        found : array, optional
        ordered : bool
            Whether the keys are in ascending order.
        """
        bits, kind = 8 * keys.dtype.itemsize, keys.dtype.type
        if self.known and ordered:
            first = self.prefix << (bits - self.known)
            last = first + (1 << (bits - self.known)) - 1
            keys = keys[np.searchsorted(keys, kind(first)) : np.searchsorted(keys, kind(last), side="right")]
        elif self.known:
            keys = keys[(keys >> kind(bits - self.known)) == kind(self.prefix)]
        if self.gather:
            return keys.copy() if found is None else np.concatenate((found, keys))
        if found is None:
            found = np.zeros(1 << min(DIGIT, bits), np.int64)
        if not keys.size:
            return found
        digits = keys if bits <= DIGIT else (keys >> keys.dtype.type(bits - self.known - DIGIT)).astype("u2")
        # Most images use few of the digits.
        first = int(digits.min())
        own = np.bincount(digits - digits.dtype.type(first))
        found[first : first + len(own)] += own
        return found


@dataclass(slots=True)
class Tally:
    """What adds up over the samples of one index."""

    count: int = 0
    """Finite samples."""
    n_nan: int = 0
    n_inf: int = 0
    low: int = -1
    """Lowest key; -1 if there is no sample."""
    high: int = -1
    total: int = 0
    """Sum of the samples, scaled by `value_scale`."""
    squares: int = 0
    """Sum of their squares, scaled by `square_scale`."""

    def add(self, values: Array, keys: Array) -> None:
        """Add at most `BLOCK` finite samples."""
        if not keys.size:
            return
        total, squares = (float_sums if values.dtype.kind == "f" else integer_sums)(values)
        self.take(Tally(len(keys), 0, 0, int(keys.min()), int(keys.max()), total, squares))

    def take(self, other: Tally) -> None:
        """Add the samples of another tally."""
        self.count += other.count
        self.n_nan += other.n_nan
        self.n_inf += other.n_inf
        self.total += other.total
        self.squares += other.squares
        if other.high >= 0:
            self.low = other.low if self.high < 0 else min(self.low, other.low)
            self.high = max(self.high, other.high)

    def moments(self, kind: str) -> tuple[Fraction, Fraction] | None:
        """Return mean and variance of the samples; None if there is none."""
        if not self.count:
            return None
        total = Fraction(self.total, 1 << value_scale(kind))
        mean = total / self.count
        return mean, Fraction(self.squares, (1 << square_scale(kind)) * self.count) - mean * mean


def tally_of(found: Ints, dtype: np.dtype[Any]) -> Tally:
    """Return the tally of samples of at most 16 bits from their numbers by key; without NaN and inf."""
    used = np.flatnonzero(found)
    if not used.size:
        return Tally()
    size = dtype.itemsize
    keys = used.astype(f"u{size}")
    if dtype.kind == "f":
        top = np.array(0x8000, "u2")
        values = (keys ^ np.where(keys & top, top, np.array(0xFFFF, "u2"))).view(dtype).astype(np.float64)
        whole = (values * 2.0**24).astype(np.int64).tolist()
        scales = value_scale("f") - 24, square_scale("f") - 48
    else:
        whole = (used - (1 << 8 * size - 1) * (dtype.kind == "i")).tolist()
        scales = 0, 0
    counts = found[used].tolist()
    total = sum(v * n for v, n in zip(whole, counts, strict=True))
    squares = sum(v * v * n for v, n in zip(whole, counts, strict=True))
    ends = int(used[0]), int(used[-1])
    return Tally(sum(counts), 0, 0, *ends, total << scales[0], squares << scales[1])


@dataclass(slots=True)
class Counts:
    """What was counted in some boxes."""

    tallies: dict[int, Tally] = field(default_factory=dict)
    """By index; of samples of at most 16 bits only their NaN and inf."""
    found: dict[Target, Array] = field(default_factory=dict)
    """Numbers of samples by digit, or keys."""
    chunks: list[tuple[int, int, Tally, Array]] = field(default_factory=list)
    """Of a sample of chunks: number of the chunk, index, tally, and some keys at equal distances of rank."""

    def copy(self) -> Counts:
        """Return counts to which boxes can be added, if the task runs again: these stay as they are."""
        tallies = {index: Tally() for index in self.tallies}
        for index, tally in self.tallies.items():
            tallies[index].take(tally)
        return Counts(tallies, {t: f.copy() for t, f in self.found.items()}, list(self.chunks))

    def take(self, other: Counts) -> None:
        """Add the counts of other boxes."""
        for index, tally in other.tallies.items():
            self.tallies.setdefault(index, Tally()).take(tally)
        for target, found in other.found.items():
            before = self.found.get(target)
            if before is None:
                self.found[target] = found
            else:
                self.found[target] = np.concatenate((before, found)) if target.gather else before + found
        self.chunks += other.chunks

    def add(self, values: Array, index: int, targets: Sequence[Target], *, first: bool) -> None:
        """Add the samples of one index in a box.

        Parameters
        ----------
        values : 1-D array
        index : int
        targets : sequence of Target
            Those of the index.
        first : bool
            Whether this is the first pass, which finds the tally.
        """
        tally = self.tallies.setdefault(index, Tally()) if first else None
        small = values.dtype.itemsize * 8 <= DIGIT
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        for start in range(0, len(values), BLOCK):
            block = np.ascontiguousarray(values[start : start + BLOCK])
            if block.dtype.kind == "f" and not (finite := np.isfinite(block)).all():
                if tally is not None:
                    tally.n_nan += int(np.isnan(block).sum())
                    tally.n_inf += int(np.isinf(block).sum())
                block = block[finite]
            keys = keys_of(block)
            if tally is not None and not small:
                tally.add(block, keys)
            ordered = len(targets) > FEW
            if ordered:
                keys = np.sort(keys)
            for target in targets:
                self.found[target] = target.count(keys, self.found.get(target), ordered=ordered)
