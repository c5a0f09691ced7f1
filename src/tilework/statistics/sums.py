"""Exact sums of samples and of their squares, as whole numbers: no order of summation changes a bit of them.

Rounding depends on the order in which numbers are added, so rounded moments would depend on chunks and on
the number of arrays. Floats are cut into parts of few enough bits that float64 adds them without rounding; of
integers, sums of products of 16-bit digits are exact.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tilework._types import Array, Floats

__all__ = ["BLOCK", "float_sums", "integer_sums", "root", "square_scale", "value_scale"]

# Samples that are added at a time: the arrays of a step stay in the processor's cache.
BLOCK = 2**16
# Bits of a part: sums of `BLOCK` parts have at most 53.
PART = 37
# All float64 are multiples of 2**-LEAST.
LEAST = 1074
# Beyond 2**FAR and below 2**-FAR samples are scaled by 2**SCALE, so that their squares are normal numbers.
FAR, SCALE = 400, 600
# The half of a float64's bits, for products without rounding.
SPLIT = 2.0**27 + 1


def value_scale(kind: str) -> int:
    """Return the power of two by which a sum of samples is multiplied, for a kind of dtype."""
    return LEAST if kind == "f" else 0


def square_scale(kind: str) -> int:
    """Return the power of two by which a sum of squares is multiplied."""
    return LEAST + 2 * SCALE if kind == "f" else 0


def float_sums(values: Array) -> tuple[int, int]:
    """Return the sums of at most `BLOCK` finite floats and of their squares, scaled.

    Examples
    --------
    >>> a, b = float_sums(np.array([0.1, 1e300, -1e300]))
    >>> a == Fraction(0.1) * 2**LEAST, b == (Fraction(0.1) ** 2 + 2 * Fraction(1e300) ** 2) * 2**2274
    (True, True)
    """
    x = values.astype(np.float64, copy=False)
    if values.dtype.itemsize <= 4:  # squares of 24 bits have 48, and are in range
        return _exact(x), _exact(x * x) << 2 * SCALE
    size = np.abs(x)
    near = (size < 2.0**FAR) & (size > 2.0**-FAR)
    if near.all():
        return _exact(x), _squares(x) << 2 * SCALE
    small, large = x[size <= 2.0**-FAR], x[size >= 2.0**FAR] * 2.0**-SCALE
    x = x[near]
    total = _exact(small) + _exact(x) + (_exact(large) << SCALE)
    squares = _squares(x) + (_squares(large) << 2 * SCALE)
    return total, _squares(small * 2.0**SCALE) + (squares << 2 * SCALE)


def _squares(x: Floats) -> int:
    """Return the sum of squares, times 2**LEAST; each is a rounded product and what was rounded off."""
    product = x * x
    high = SPLIT * x
    high -= high - x
    low = x - high
    rest = high * high
    rest -= product
    high *= low
    high *= 2
    rest += high
    low *= low
    rest += low
    return _exact(product) + _exact(rest)


def _exact(x: Floats) -> int:
    """Return the sum of finite floats, times 2**LEAST."""
    total, rest = 0, x
    while rest.size and (most := max(float(rest.max()), -float(rest.min()))):
        unit = max(math.frexp(most)[1] - PART, -LEAST)
        # Adding and taking off this number leaves a multiple of 2**unit.
        shift = math.ldexp(1.5, 52 + unit)
        part = rest + shift
        part -= shift
        total += int(math.ldexp(float(part.sum()), -unit)) << (unit + LEAST)
        rest = np.subtract(rest, part, out=part)
    return total


def integer_sums(values: Array) -> tuple[int, int]:
    """Return the sums of at most `BLOCK` integers of 32 or 64 bits and of their squares.

    Examples
    --------
    >>> integer_sums(np.array([-(2**63), 3]))[1] == 2**126 + 9
    True
    """
    count = values.dtype.itemsize // 2
    digits = np.empty((count + 1, len(values)))
    digits[count] = 1
    for k in range(count - 1):
        digits[k] = (values >> values.dtype.type(16 * k)) & values.dtype.type(0xFFFF)
    digits[count - 1] = values >> values.dtype.type(16 * (count - 1))
    products = digits @ digits.T
    total = sum(int(products[count, k]) << 16 * k for k in range(count))
    return total, sum(int(products[i, j]) << 16 * (i + j) for i in range(count) for j in range(count))


def root(square: Fraction) -> float:
    """Return the square root of a number that is not negative, which may be beyond the range of float64."""
    top, bottom = square.numerator, square.denominator
    bits = max(0, 64 - (top.bit_length() - bottom.bit_length()) // 2)
    return float(Fraction(math.isqrt((top << 2 * bits) // bottom), 1 << bits))
