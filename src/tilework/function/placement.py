"""Where the tiled axes are in a result, by the lengths of its axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from tilework._types import Index
from tilework.errors import ContractError, GridError

__all__ = ["find_axes", "normal_axes", "placements"]


def placements(shape: Index, lengths: Index) -> list[Index]:
    """Return every increasing choice of axes of ``shape`` that have ``lengths``.

    Examples
    --------
    >>> placements((3, 8, 8), (8, 8)), placements((8, 8, 8), (8, 8))
    ([(1, 2)], [(0, 1), (0, 2), (1, 2)])
    """
    chosen = itertools.combinations(range(len(shape)), len(lengths))
    return [axes for axes in chosen if tuple(shape[a] for a in axes) == lengths]


def find_axes(
    shape: Index, lengths: Index, crop_shape: Index, crop_axes: Index, key: int | str | None = None
) -> Index:
    """Return the positions of the tiled axes in a result of ``shape``; raise unless they are unique.

    ``key`` is that of the output, for messages.
    """
    if shape == crop_shape:
        return crop_axes
    n = len(lengths)
    if len(shape) < n:
        which = "" if key is None else f" for output {key!r}"
        what = f"an array of shape {shape}" if shape else "a single number"
        wanted = f"{n} tiled axes, lengths {lengths}" if n > 1 else f"tiled axis, length {lengths[0]}"
        raise ContractError(
            f"the function maps a crop of shape {crop_shape} to {what}{which}; it must return an array with "
            f"the crop's {wanted}. One value for a whole crop: np.full({lengths}, value). If it returns more "
            "than arrays of the image, return only those."
        )
    found = placements(shape, lengths)
    if len(found) == 1:
        return found[0]
    if found:
        fits = "\n".join(f"    Output(shape={shape}, axes={axes})" for axes in found)
        reason = "more than one place for the tiled axes"
    else:
        reason = "no place for the tiled axes"
        same = len(shape) == len(crop_shape)
        ends = [shape[-n:], shape[:n]] if len(shape) >= n else []
        found = [tuple(shape[a] for a in crop_axes)] if same else ends
        guesses = [*_guess_scale(found, lengths), *_guess_margin(found, lengths)]
        fits = "\n".join(f"    Output({guess})" for guess in dict.fromkeys(guesses))
    raise ContractError(
        f"the function maps a crop of shape {crop_shape} to shape {shape}: {reason} (lengths {lengths}). "
        f"Declare the output; these would fit:\n{fits or '    Output(shape=..., axes=...)'}"
    )


def _guess_scale(found: Sequence[Index], lengths: Index) -> Iterator[str]:
    """Yield the scales that a network may have: a whole number, one over one, or a small fraction."""
    for own in found:
        ratios = tuple(Fraction(a, b) for a, b in zip(own, lengths, strict=True))
        if all(min(r.numerator, r.denominator) == 1 or max(r.numerator, r.denominator) <= 8 for r in ratios):
            yield f"scale={_short(ratios)}"


def _guess_margin(found: Sequence[Index], lengths: Index) -> Iterator[str]:
    for own in found:
        lost = {b - a for a, b in zip(own, lengths, strict=True)}
        if len(lost) == 1 and (both := lost.pop()) > 0:
            yield (
                f"margin={both // 2}" if both % 2 == 0 else f"margin=(({both // 2}, {both - both // 2}), ...)"
            )


def _short(ratios: tuple[Fraction, ...]) -> str:
    words = [str(r) if r.denominator == 1 else f"Fraction({r.numerator}, {r.denominator})" for r in ratios]
    return words[0] if len(set(words)) == 1 else f"({', '.join(words)})"


def normal_axes(axes: Index, ndim: int, n: int) -> Index:
    """Return positions of ``n`` axes in ``ndim`` dimensions, from 0; raise unless they are different."""
    if len(axes) != n or any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) != n:
        raise GridError(f"axes of a result with {ndim} dimensions must be {n} different ones; got {axes}.")
    return tuple(a % ndim for a in axes)
