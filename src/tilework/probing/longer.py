"""Whether a response that fills the crop is global or only wide: asked of a crop of twice the length."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tilework.probing.inputs import Inputs
from tilework.probing.reach import deepest

if TYPE_CHECKING:
    from tilework.probing.search import Probing

__all__ = ["longer", "why_open"]

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
