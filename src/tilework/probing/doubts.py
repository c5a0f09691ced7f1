"""Reasons to doubt a reach that was seen, although nothing farther was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tilework._types import Array
from tilework.grid.axis import ceil_div
from tilework.probing.blackbox import difference
from tilework.probing.experiment import NOISE, Experiment

__all__ = ["look_for_doubts"]

# Samples by which the largest reach of all draws may exceed the second largest. The reach of a filter is the
# same in nearly all draws; that of objects and distances depends on the largest one in the crop.
ONCE = 1


def look_for_doubts(experiment: Experiment) -> None:
    """Note results that follow objects as a rule, and axes that a function treats alike but reach differs."""
    seen, results = experiment.seen, experiment.results
    floats = all(t.kind in "fc" for t in experiment.crops.dtypes)
    whole = floats and any(r.dtype.kind in "biu" for r in results)
    if whole and not _pointwise(experiment):
        seen.doubt(
            "results of float images are integers or bool: objects, labels and thresholds may be followed "
            "farther in other images"
        )
    crop = experiment.crops.crop
    for d, pair in enumerate(seen.margin):
        if any(pair) and any(e.axis == d for e in seen.borders):
            seen.doubt(
                "on {axis} the function pads its crop inside and returns less than it: results near the "
                "border of the image differ from the untiled ones",
                d,
            )
    for d, m in enumerate(seen.multiple):
        far, noise = (
            max((e.reach for e in own if e.axis == d), default=0) for own in (seen.strong, seen.edges)
        )
        # Within a cell of the multiple, reaches differ by chance.
        if ceil_div(far, m) > ceil_div(noise, m):
            seen.doubt(
                f"on {{axis}} lines and flat areas change results up to {far} samples away, noise up to "
                f"{noise}: other images may change more",
                d,
            )
    for (d, _), reaches in seen.draws_of.items():
        *_, second, first = 0, *sorted(reaches)
        if first > second + ONCE and seen.multiple[d] == 1:
            seen.doubt(
                f"on {{axis}} one draw reached {first} samples, all others at most {second}: further ones "
                "may reach farther",
                d,
            )
    for a, b in itertools.combinations(range(len(crop)), 2):
        if crop[a] == crop[b] and _cells(experiment, a) != _cells(experiment, b) and _alike(experiment, a, b):
            for d in (a, b):
                seen.doubt("the function treats {axis} alike, but was seen to reach differently", d)


def _cells(experiment: Experiment, axis: int) -> tuple[int, ...]:
    """Return the reaches along an axis in cells of its multiple."""
    return tuple(ceil_div(side, experiment.seen.multiple[axis]) for side in experiment.seen.sides(axis))


def _pointwise(experiment: Experiment) -> bool:
    """Return whether each result depends on its own sample: if samples are shuffled, so are results."""
    axes = range(len(experiment.crops.crop))
    if any(experiment.seen.sides(d) != (0, 0) for d in axes):
        return False
    if any(r.lengths() != experiment.crops.crop for r in experiment.results):
        return False
    crops = experiment.inputs.cells([4] * len(experiment.crops.crop))
    order = experiment.inputs.rng.permutation(int(np.prod(experiment.crops.crop)))
    before = experiment.box(crops)
    tiled = experiment.crops.tiled
    after = experiment.box([_shuffled(a, t, order) for a, t in zip(crops, tiled, strict=True)])
    return all(
        not difference(_shuffled(a, r.axes, order), b).any()
        for a, b, r in zip(before, after, experiment.results, strict=True)
    )


def _shuffled(a: Array, tiled: Sequence[int], order: Array) -> Array:
    """Return ``a`` with the samples of its tiled axes in another order."""
    first = np.moveaxis(a, tiled, range(len(tiled)))
    flat = first.reshape(len(order), *first.shape[len(tiled) :])[order]
    return np.moveaxis(flat.reshape(first.shape), range(len(tiled)), tiled)


def _alike(experiment: Experiment, a: int, b: int) -> bool:
    """Return whether exchanging two axes of a crop exchanges those of the results, and nothing else."""
    order = list(range(len(experiment.crops.crop)))
    order[a], order[b] = b, a
    crops, before = experiment.bases[NOISE]
    after = experiment.box(experiment.inputs.turned(crops, order))
    for number, (x, y, r) in enumerate(zip(before, after, experiment.results, strict=True)):
        if not experiment.equal(np.swapaxes(x, r.axes[a], r.axes[b]), y, number):
            return False
    return True
