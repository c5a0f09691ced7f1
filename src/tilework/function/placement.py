"""Where the tiled axes stand in what a function returns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from tilework.errors import ContractError, GridError

if TYPE_CHECKING:
    from tilework.function.output import Output

__all__ = ["find_axes", "place", "placements"]

Lengths = tuple[int, ...]


def placements(shape: Lengths, lengths: Lengths) -> list[Lengths]:
    """Return every increasing choice of axes of ``shape`` that have ``lengths``.

    Examples
    --------
    >>> placements((3, 8, 8), (8, 8)), placements((8, 8, 8), (8, 8))
    ([(1, 2)], [(0, 1), (0, 2), (1, 2)])
    """
    chosen = itertools.combinations(range(len(shape)), len(lengths))
    return [axes for axes in chosen if tuple(shape[a] for a in axes) == lengths]


def find_axes(shape: Lengths, lengths: Lengths, crop_shape: Lengths, crop_axes: Lengths) -> Lengths:
    """Return where the tiled axes stand in a result of ``shape``, if there is one possible place."""
    if shape == crop_shape:
        return crop_axes
    found = placements(shape, lengths)
    if len(found) == 1:
        return found[0]
    if found:
        fits = "\n".join(f"    Output(shape={shape}, axes={axes})" for axes in found)
        reason = "more than one place for the tiled axes"
    else:
        reason = "no place for the tiled axes"
        same = len(shape) == len(crop_shape)
        found = [tuple(shape[a] for a in crop_axes)] if same else _ends(shape, len(lengths))
        guesses = [*_guess_scale(found, lengths), *_guess_margin(found, lengths)]
        fits = "\n".join(f"    Output({guess})" for guess in dict.fromkeys(guesses))
    raise ContractError(
        f"the function maps a crop of shape {crop_shape} to shape {shape}: {reason} (lengths {lengths}). "
        f"Declare the output; these would fit:\n{fits or '    Output(shape=..., axes=...)'}"
    )


def _ends(shape: Lengths, n: int) -> list[Lengths]:
    return [shape[-n:], shape[:n]] if len(shape) >= n else []


def _guess_scale(found: Sequence[Lengths], lengths: Lengths) -> Iterator[str]:
    """Yield the scales that a network would have: a whole number, one over one, or a small fraction."""
    for own in found:
        ratios = tuple(Fraction(a, b) for a, b in zip(own, lengths, strict=True))
        if all(min(r.numerator, r.denominator) == 1 or max(r.numerator, r.denominator) <= 8 for r in ratios):
            yield f"scale={_short(ratios)}"


def _guess_margin(found: Sequence[Lengths], lengths: Lengths) -> Iterator[str]:
    for own in found:
        lost = {b - a for a, b in zip(own, lengths, strict=True)}
        if len(lost) == 1 and (both := lost.pop()) > 0:
            yield (
                f"margin={both // 2}" if both % 2 == 0 else f"margin=(({both // 2}, {both - both // 2}), ...)"
            )


def _short(ratios: tuple[Fraction, ...]) -> str:
    words = [str(r) if r.denominator == 1 else f"Fraction({r.numerator}, {r.denominator})" for r in ratios]
    return words[0] if len(set(words)) == 1 else f"({', '.join(words)})"


def place(
    output: Output, crop_shape: Lengths, crop_axes: Lengths, lengths: Lengths
) -> tuple[Lengths, Lengths]:
    """Return the result's shape for a full crop and where the tiled axes stand in it."""
    n = len(lengths)
    rest = [size for axis, size in enumerate(crop_shape) if axis not in crop_axes]
    if output.shape is not None:
        replaced = list(crop_shape)
        for axis, length in zip(crop_axes, lengths, strict=True):
            replaced[axis] = length
        axes = output.axes or find_axes(output.shape, lengths, tuple(replaced), crop_axes)
        axes = _normal(axes, len(output.shape), n)
        if tuple(output.shape[a] for a in axes) != lengths:
            raise GridError(
                f"Output(shape={output.shape}) must have lengths {lengths} (crop less margin, times scale) "
                "on "
                f"the tiled axes {axes}."
            )
        return output.shape, axes
    if output.channels is not None:
        rest = [output.channels] if output.channels else []
    ndim = n + len(rest)
    if output.axes is not None:
        axes = _normal(output.axes, ndim, n)
    elif output.channels:
        channel = _normal((output.channel_axis,), ndim, 1)[0]
        axes = tuple(a for a in range(ndim) if a != channel)
    else:
        axes = tuple(range(n)) if output.channels == 0 else crop_axes
    by_axis = dict(zip(axes, lengths, strict=True))
    others = iter(rest)
    return tuple(by_axis[a] if a in by_axis else next(others) for a in range(ndim)), axes


def _normal(axes: Lengths, ndim: int, n: int) -> Lengths:
    if len(axes) != n or any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) != n:
        raise GridError(f"axes of a result with {ndim} dimensions must be {n} different ones; got {axes}.")
    return tuple(a % ndim for a in axes)
