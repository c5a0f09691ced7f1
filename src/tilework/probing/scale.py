"""How large a result is, and how far a response reaches: what a crop of twice the length tells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tilework.probing.blackbox import Inputs
from tilework.probing.reach import deepest

if TYPE_CHECKING:
    from tilework.probing.search import Probing


import math
from fractions import Fraction
from typing import TYPE_CHECKING

from tilework.errors import TilingError
from tilework.probing.blackbox import Array

if TYPE_CHECKING:
    from tilework.probing.search import Probing

__all__ = ["find_scale", "longer", "why_open"]

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


# Change far from a wall over change at half the way, from which on the response counts as global.
PLATEAU = 0.3
# How much farther a response may reach in the longer crop and count as the same.
GROWTH = 1.2


def why_open(p: Probing, axis: int, kind: str, reach: int | None = None) -> str | None:
    """Return why a response that fills a crop, or nearly, is no exact overlap, by a crop of twice the length.

    The axis is left open in the text, "{axis}", for what holds for several.

    Parameters
    ----------
    reach : int, optional
        Samples that it reached in the crop without touching its end. None is returned where the longer crop
        shows no more than that.
    """
    n = p.crops.crop[axis]
    short = f"on {{axis}} the response reaches the border of the crop of {n}"
    probe = type(p)(p.box, longer(p, axis), p.tolerance)
    try:
        probe.look()
        at = max(1, n // 8)
        changes = probe.changes(0, kind, probe.kept(axis, 0, at))
    except Exception as error:
        return f"{short}, and a longer one was refused ({type(error).__name__}): unbounded, or too large"
    finally:
        p.draws += probe.draws
    ratio, farthest = 0.0, 0
    for number, (change, r) in enumerate(zip(changes, probe.results, strict=True)):
        flat = r.flat(change)
        edge, end = deepest(flat > probe.limit(number), r, axis, 0, at)
        farthest = max(farthest, 0 if edge is None else edge.reach)
        if not end and not probe.stirred(kind, number, axis, *r.span(axis, 2 * n - n // 4, 2 * n)):
            continue
        profile = flat.mean(axis=tuple(k for k in range(flat.ndim) if k != axis))
        quarter = len(profile) // 4
        if not quarter:
            ratio = 1.0  # a result for all of the crop
            continue
        near = max(float(profile[quarter : 2 * quarter].mean()), 1e-300)
        ratio = max(ratio, float(profile[-quarter:].mean()) / near)
    if reach is not None and not ratio and farthest <= GROWTH * reach:
        return None
    if not ratio and reach is None:
        return f"{short}: give a larger crop, more than {2 * farthest} (it reaches {farthest} samples)"
    if 0 < ratio < PLATEAU:
        return f"{short} and of {2 * n}, ever weaker: give a larger crop or a tolerance"
    return (
        f"the response is global on {{axis}}: a crop of {2 * n} does not hold it either, nor is it "
        "weaker at the far end (normalisation, squeeze-excite, labelling)"
    )


def longer(p: Probing, axis: int) -> Inputs:
    """Return inputs of twice the length along one axis; real crops are mirrored."""
    crop = tuple(2 * m if d == axis else m for d, m in enumerate(p.crops.crop))
    shapes, samples = [], []
    for shape, tiled, sample in zip(p.crops.shapes, p.crops.tiled, p.inputs.samples, strict=True):
        along = tiled[axis]
        shapes.append(tuple(2 * m if a == along else m for a, m in enumerate(shape)))
        samples.append(None if sample is None else np.concatenate((sample, np.flip(sample, along)), along))
    crops = replace(p.crops, crop=crop, shapes=tuple(shapes))
    return Inputs(crops, p.inputs.values, samples, p.inputs.rng)
