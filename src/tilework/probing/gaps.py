"""Samples of a crop are replaced except in gaps; the reach into each gap is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilework._types import Array, Span
from tilework.probing.blackbox import size_of
from tilework.probing.experiment import Change, Experiment
from tilework.probing.inputs import Kind
from tilework.probing.reach import Edge, edges_along, gaps_along

__all__ = ["middle", "note_response", "observe"]

# Most gaps that are measured per call; a long crop has thousands.
MOST = 200
# Changes that are much larger than what counts as rounding, as multiples of it.
STRONG = 100.0


def observe(
    experiment: Experiment,
    axis: int,
    base: int,
    kind: Kind,
    spans: Sequence[Span],
    *,
    structured: bool = False,
) -> list[Edge] | None:
    """Replace all but ``spans`` along ``axis``; return the edges, or None if all of one span changed.

    In noise, a span has also changed if most of its results changed as fractions of themselves.

    Parameters
    ----------
    structured : bool
        Whether the image has structures; its edges are kept apart then.
    """
    seen, keep = experiment.seen, experiment.crops.within({axis: spans})
    changes = experiment.taken(base, kind, keep)
    if changes is None:
        return []
    found: list[Edge] = []
    some = experiment.inputs.rng.permutation(len(spans))[:MOST]
    looked = [spans[int(k)] for k in np.sort(some)]
    for change in changes:
        limit, r = experiment.limit_of(change), change.result
        if not structured:
            note_response(experiment, change, limit, axis, keep[axis])
        profile = change.profile(axis)
        for gap in looked:
            edges = edges_along(profile, limit, r, axis, gap)
            low, high = r.span(axis, *gap)
            third = (high - low) // 3
            if edges is None or (
                not structured and experiment.stirred(change, axis, low + third, high - third)
            ):
                return None
            seen.places += 1
            found += edges[0]
            more = edges_along(profile, STRONG * limit, r, axis, gap) if structured else None
            seen.strong += more[0] if more is not None else []
            if kind in ("other", "ends"):
                size = size_of(experiment.bases[base][1][change.number])
                seen.rounding = max(seen.rounding, edges[1] / size)
                spread = kind == "other" and bool(profile[low + third : high - third].any())
                seen.leaks = seen.leaks or spread
    (seen.nan if kind == "nan" else seen.structured if structured else seen.edges).extend(found)
    return found


def note_response(experiment: Experiment, change: Change, limit: float, axis: int, kept: Array) -> None:
    """Record the fraction of results that changed at the replaced samples."""
    scale = change.result.scale[axis]
    place = np.arange(change.amount.shape[axis]) * scale.denominator // scale.numerator
    part = change.amount.take(np.flatnonzero(~kept[place.clip(0, len(kept) - 1)]), axis)
    if part.size:
        experiment.seen.response = max(experiment.seen.response, float((part > limit).mean()))


def middle(experiment: Experiment, axis: int, multiple: int | None = None) -> tuple[Span, ...]:
    """Return one gap in the middle of the crop, between walls of about an eighth of it."""
    n = experiment.crops.crop[axis]
    m = 2 ** max(0, int(math.log2(max(1, n // 8)))) if multiple is None else multiple
    wall = max(n // 8, max(r.lost[axis] for r in experiment.results) + 1)
    return gaps_along(n, n, min(-(-wall // m) * m, max(1, (n - 1) // 2)))
