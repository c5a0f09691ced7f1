"""Where a result that is smaller than its crop lies in it."""

from __future__ import annotations

import math

import numpy as np

from tilework._types import Span
from tilework.probing.experiment import NOISE, SMOOTH, Change, Experiment
from tilework.probing.inputs import Kind

__all__ = ["split_margin"]

# Base images and replacements, until results change.
TRIED: tuple[tuple[int, Kind], ...] = ((NOISE, "other"), (SMOOTH, "ends"), (NOISE, "top"), (NOISE, "bottom"))


def split_margin(experiment: Experiment) -> None:
    """Find how many of the lost samples are missing at the start of a crop, and how many at its end.

    The samples of one cell of the multiple in the middle of the crop are replaced along one axis. The
    centre of the results that change lies where the cell does::

        crop       ...........####...........    # replaced
        result        ......xxxxxx......         x changed

    A kernel is centred on its sample by convention. The odd sample of an even kernel is lost at the end.
    """
    crop = experiment.crops.crop
    experiment.seen.margin = tuple(_along(experiment, d) for d in range(len(crop)))


def _along(experiment: Experiment, d: int) -> Span:
    """Return the samples lost at the start and the end along axis ``d``."""
    n, lost = experiment.crops.crop[d], max(r.lost[d] for r in experiment.results)
    if not lost:
        return 0, 0
    # The grid on which crops start, and results of a scale below 1 lie: a start of -1 is not on it.
    quantum = math.lcm(experiment.seen.multiple[d], *(r.scale[d].denominator for r in experiment.results))
    start = n // 2 // quantum * quantum
    centre = None
    for base, kind in TRIED:
        changes = experiment.changes(base, kind, experiment.crops.kept(d, start, start + quantum))
        found = [c for change in changes if (c := _centre(experiment, change, d)) is not None]
        if found and experiment.seen.bounded:
            centre = min(found)
            break
    before = lost / 2 if centre is None else start + quantum / 2 - centre
    # Results start at whole samples of their own.
    lo = min(max(math.ceil(before / quantum - 0.5), 0), lost // quantum) * quantum
    return lo, lost - lo


def _centre(experiment: Experiment, change: Change, d: int) -> float | None:
    """Return the centre of the changed results along axis ``d``, image samples after the result's start."""
    changed = np.flatnonzero(change.profile(d) > experiment.limit_of(change))
    if not changed.size:
        return None
    return float((int(changed[0]) + int(changed[-1]) + 1) / (2 * change.result.scale[d]))
