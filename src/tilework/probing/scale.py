"""How large a result is: its scale, and how many samples of a crop have none."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tilework.errors import TilingError
from tilework.probing.blackbox import Array
from tilework.probing.longer import longer

if TYPE_CHECKING:
    from tilework.probing.search import Probing

__all__ = ["find_scale"]

# The simplest first.
SCALES = sorted(
    {Fraction(a, b) for a in range(1, 9) for b in range(1, 65)},
    key=lambda s: (s.numerator * s.denominator, s),
)


def find_scale(p: Probing, d: int) -> None:
    """Tell scale from margin by a crop of twice the length, else by how far the response moves."""
    n, name = p.crops.crop[d], p.crops.names[d]
    lengths = [r.lengths()[d] for r in p.results]
    doubled = _lengths_of_longer(p, d)
    found: list[tuple[Fraction, int] | None] = [None] * len(lengths)
    if doubled is not None:
        found = [_scale_and_lost(n, *pair, name=name) for pair in zip(lengths, doubled, strict=True)]
    if None in found:
        slopes = _slopes(p, d)
        found = [_scale_and_lost(n, a, name=name, slope=s) for a, s in zip(lengths, slopes, strict=True)]
    for r, fit in zip(p.results, found, strict=True):
        assert fit is not None
        r.scale[d], r.lost[d] = fit


def _slopes(p: Probing, d: int) -> list[float]:
    """Return per result how many samples the response moves when the perturbation does by one."""
    n = p.crops.crop[d]
    # Well inside: a network without padding has no result near the border.
    width, places = max(1, n // 16), (3 * n // 8, 5 * n // 8)
    centres = []
    for place in places:
        keep = [np.ones(m, bool) for m in p.crops.crop]
        keep[d][place - width // 2 : place - width // 2 + width] = False
        changes = p.changes(0, "other", keep)
        centres.append([_centre(r.flat(c), d) for r, c in zip(p.results, changes, strict=True)])
    return [(b - a) / (places[1] - places[0]) for a, b in zip(*centres, strict=True)]


def _lengths_of_longer(p: Probing, axis: int) -> list[int] | None:
    """Return the samples along ``axis`` of each result for a crop of twice the length, None if refused."""
    inputs = longer(p, axis)
    try:
        found = p.box(inputs.base("real" if any(s is not None for s in inputs.samples) else "noise"))
        return [b.shape[r.axes[axis]] for b, r in zip(found, p.results, strict=True)]
    except Exception:
        return None


def _scale_and_lost(
    n: int, length: int, longer: int | None = None, *, name: str, slope: float = 0.0
) -> tuple[Fraction, int] | None:
    """Return the simplest scale that maps ``n`` samples less a whole margin to ``length``.

    Parameters
    ----------
    longer : int, optional
        Result samples of a crop of twice the length, which must fit too. None is returned where nothing does.
    name : str
        Of the axis, for messages.
    slope : float
        How far the response moves per image sample, to within a result sample in ``n / 4``.

    Raises
    ------
    TilingError
        When no scale fits ``n`` and ``length``.
    """
    fits = [(scale, lost) for scale in SCALES if (lost := _lost(n, length, scale)) is not None]
    if not fits:
        raise TilingError(
            f"the function maps {n} samples on axis {name} to {length}: no scale times crop less margin "
            "gives that. Crop its result inside the function."
        )
    if longer is not None:
        return next((f for f in fits if _lost(2 * n, longer, f[0]) == f[1]), None)
    near = [f for f in fits if abs(float(f[0]) - slope) <= max(slope / 10, 4 / n)]
    # Who writes a network has 2 or 1/16 in mind, and no margin that makes up for another number.
    plain = [f for f in near if not f[1] and 1 in (f[0].numerator, f[0].denominator)]
    return next(iter(plain or near), min(fits, key=lambda f: abs(float(f[0]) - slope)))


def _lost(n: int, length: int, scale: Fraction) -> int | None:
    """Return the image samples without a result, None where they are no whole number."""
    lost = 0 if math.ceil(n * scale) == length else n - length / scale
    return int(lost) if lost >= 0 and lost == int(lost) else None


def _centre(change: Array, d: int) -> float:
    """Return the centre of a response along axis ``d``, samples; the middle where there is none."""
    profile = np.minimum(change, 1e300).sum(axis=tuple(k for k in range(change.ndim) if k != d))
    total = profile.sum()
    return float((profile * np.arange(len(profile))).sum() / total) if total else (len(profile) - 1) / 2
