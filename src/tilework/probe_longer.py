"""Whether a response that fills the crop is global or only wide: asked of a crop of twice the length."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tilework.probe_inputs import Inputs
from tilework.reach import deepest

if TYPE_CHECKING:
    from tilework.probing import Probing

__all__ = ["why_open"]

# Change far from a wall over change at half the way, from which on the response counts as global.
PLATEAU = 0.3


def why_open(p: Probing, axis: int, kind: str) -> str:
    """Return whether the response is global or the crop too short, by a crop of twice the length."""
    n, name = p.crops.crop[axis], p.crops.names[axis]
    short = f"on axis {name} the response reaches the border of the crop of {n}"
    crop = tuple(2 * m if d == axis else m for d, m in enumerate(p.crops.crop))
    shapes = tuple(
        tuple(2 * m if a == tiled[axis] else m for a, m in enumerate(shape))
        for shape, tiled in zip(p.crops.shapes, p.crops.tiled, strict=True)
    )
    crops = replace(p.crops, crop=crop, shapes=shapes)
    longer = Inputs(crops, p.inputs.values, [None] * len(shapes), p.inputs.rng)
    probe = type(p)(p.box, longer, p.tolerance)
    try:
        probe.look()
        at = max(1, n // 8)
        changes = probe.changes(0, kind, probe.kept(axis, 0, at))
    except Exception as error:
        return f"{short}, and a longer one was refused ({type(error).__name__}): unbounded, or too large"
    finally:
        p.draws += probe.draws
    ratio = 0.0
    for number, (change, r) in enumerate(zip(changes, probe.results, strict=True)):
        flat = r.flat(change)
        edge, end = deepest(flat > probe.limit(number), r, axis, 0, at)
        if not end:
            continue
        profile = flat.mean(axis=tuple(k for k in range(flat.ndim) if k != axis))
        quarter = len(profile) // 4
        ratio = max(
            ratio, float(profile[-quarter:].mean() / max(profile[quarter : 2 * quarter].mean(), 1e-300))
        )
    reach = max((e.reach for e in [edge] if e is not None), default=0)
    if not ratio:
        return f"{short}: give a larger crop, more than {2 * reach} (it reaches {reach} samples)"
    if ratio < PLATEAU:
        return f"{short} and of {2 * n}, ever weaker: give a larger crop or a tolerance"
    return (
        f"the response is global on axis {name}: it is as strong at the far end of a crop of {2 * n} as "
        "half way (normalisation, squeeze-excite, labelling)"
    )
