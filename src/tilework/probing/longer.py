"""Longer crops that continue a crop: effects of its border, of its length, and of its opposite side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tilework._types import Array
from tilework.probing.blackbox import difference, others
from tilework.probing.experiment import NOISE, SLACK, SMOOTH, Experiment
from tilework.probing.inputs import Kind
from tilework.probing.reach import edges_along

__all__ = ["compare_longer", "look_round"]

# Most samples of a longer crop, in crops: memory of the function grows with them.
VOLUME = 4.0


def compare_longer(experiment: Experiment) -> None:
    """Compare crops with longer ones: once along all axes, and along each one."""
    seen, crop = experiment.seen, experiment.crops.crop
    axes = range(len(crop))
    factor = VOLUME ** (1 / len(crop))
    more = [_steps(experiment, d, factor) for d in axes]
    compared = _compare(experiment, NOISE, more)
    for base in experiment.flat[:2] if compared else ():
        # An image without any object is an exception in some functions.
        _compare(experiment, base, more)
    for d in axes:
        alone = [_steps(experiment, d, 2.0) if k == d else 0 for k in axes]
        # At the end of a longer crop, a function of the place in it shows.
        if not _compare(experiment, SMOOTH, alone, end=True) or not compared:
            # The function takes one length only, or the longer crop was too large for it.
            _compare_moved(experiment, d)
    if not compared and all(len(found) == 1 for found in seen.lengths):
        seen.note("a longer crop was refused: results of one length were seen")


def _steps(experiment: Experiment, d: int, factor: float) -> int:
    """Return by how many samples a longer crop begins before its middle, along one axis."""
    n, m = experiment.crops.crop[d], experiment.seen.multiple[d]
    return max(m, round((factor - 1) * n / 2 / m) * m)


def _compare(experiment: Experiment, base: int, more: Sequence[int], *, end: bool = False) -> bool:
    """Compare a crop with one that is longer by twice ``more`` samples; return False if fn refuses it.

    The crop is in the middle of the longer one, or at its end.
    """
    crops, before = experiment.bases[base]
    starts = [2 * m if end else m for m in more]
    try:
        longer = experiment.inputs.around(crops, [(a, 2 * m - a) for a, m in zip(starts, more, strict=True)])
        after = experiment.box(longer)
    except Exception:
        return False
    for d, m in enumerate(more):
        if m:
            experiment.seen.lengths[d].add(experiment.crops.crop[d] + 2 * m)
    _note_borders(experiment, base, before, after, starts, more)
    return True


def _note_borders(
    experiment: Experiment,
    base: int,
    before: Sequence[Array],
    after: Sequence[Array],
    starts: Sequence[int],
    more: Sequence[int],
) -> None:
    """Record how far results of a crop differ from those of a longer one, along the axes that are longer."""
    seen, n = experiment.seen, experiment.crops.crop
    for number, (a, b, r) in enumerate(zip(before, after, experiment.results, strict=True)):
        steps = [int(m * s) for m, s in zip(starts, r.scale, strict=True)]
        index: list[slice] = [slice(None)] * a.ndim
        for axis, step, length in zip(r.axes, steps, r.lengths(), strict=True):
            index[axis] = slice(step, step + length)
        part = b[tuple(index)]
        if part.shape != a.shape:
            seen.bounded = False
            seen.note(f"a longer crop gives a result of shape {b.shape}, a crop one of {a.shape}")
            return
        changed = r.flat(difference(a, part)) > SLACK * experiment.limit(number, base)
        for d, m in enumerate(more):
            if m and not _note_border(experiment, changed, number, d, alone=sum(map(bool, more)) == 1):
                seen.bounded = False
                seen.note(
                    f"results on {{axis}} depend on the crop's length: crops of {n[d]} and {n[d] + 2 * m} "
                    "differ in their middle, or on the place in it. Compute what depends on the size of the "
                    "image once, before",
                    d,
                )
                return


def _note_border(experiment: Experiment, changed: Array, number: int, d: int, *, alone: bool) -> bool:
    """Record the changed results near both ends along one axis; return False if the middle changed."""
    r, n = experiment.results[number], experiment.crops.crop[d]
    # Where the other axes are longer too, their own borders are left out.
    rest = [slice(None) if alone else _centre(m) for m in changed.shape]
    rest[d] = slice(None)
    part = changed[tuple(rest)]
    profile = np.asarray(part.any(axis=others(part, d)), np.float64)
    found = edges_along(profile, 0.5, r, d, (0, n))
    if found is None or profile[_centre(len(profile))].any():
        return False
    experiment.seen.borders += found[0]
    return True


def _centre(length: int) -> slice:
    """Return the middle fifth of ``length`` results, at least one."""
    low = length * 2 // 5
    return slice(low, max(length - low, low + 1))


def _compare_moved(experiment: Experiment, axis: int) -> None:
    """Compare two crops that start a third of their length apart, where both have a result."""
    seen, n, multiple = experiment.seen, experiment.crops.crop[axis], experiment.seen.multiple[axis]
    step = max(multiple, n // 3 // multiple * multiple)
    keep = experiment.crops.kept(axis, n - step, n)
    shift = [-step if d == axis else 0 for d in range(len(keep))]
    for base in (NOISE, SMOOTH):
        crops, before = experiment.bases[base]
        inputs = experiment.inputs
        after = experiment.box(inputs.mixed(inputs.rolled(crops, shift), inputs.other("other"), keep))
        for number, (a, b, r) in enumerate(zip(before, after, experiment.results, strict=True)):
            along, steps = r.axes[axis], int(step * r.scale[axis])
            flat = r.flat(difference(a, np.roll(b, steps, along)))
            profile = flat.max(axis=others(flat, axis))
            profile[:steps] = np.inf
            found = edges_along(profile, SLACK * experiment.limit(number, base), r, axis, (step, n))
            if found is None:
                seen.note("on {axis} the border of a crop changes all of its results", axis)
                seen.bounded = False
                return
            seen.borders += found[0]


def look_round(experiment: Experiment) -> None:
    """Replace one end of a crop along all axes; find axes on which the other end changes, and explain them.

    The result of a circular filter depends on the opposite side of the image, and in a crop on that of the
    crop. An image that is padded with its opposite side then gives the same result. Otherwise the function
    reaches through the crop.
    """
    found = _changed_ends(experiment)
    for d in sorted(found):
        if _wraps(experiment, d):
            experiment.seen.wraps.add(d)
            continue
        experiment.seen.bounded = False
        experiment.seen.note(
            "one end of a crop changes the other on {axis}, and padding with the opposite side does not "
            "explain it: the function reaches through the crop. Give a larger one",
            d,
        )


def _changed_ends(experiment: Experiment) -> set[int]:
    """Return the axes on which results change at the end that was kept."""
    seen, crops = experiment.seen, experiment.crops
    wall = [max(1, n // 8) for n in crops.crop]
    # Distance from the ends of an axis beyond their reach.
    far = [w + max(0, seen.reach(d, 0), seen.reach(d, 1)) for d, w in enumerate(wall)]
    # Also high values at one end and low ones at the other: some functions respond only to rare values.
    kinds: list[Kind] = [experiment.kinds[0], *experiment.kinds[1:3], experiment.kinds[-1]]
    found = set()
    for side, base in itertools.product((0, 1), range(2)):
        ends = [(n - w, n) if side else (0, w) for n, w in zip(crops.crop, wall, strict=True)]
        keep = [crops.kept(d, *end)[d] for d, end in enumerate(ends)]
        for change in experiment.taken(base, kinds[base * (1 + side)], keep) or ():
            changed = change.amount > experiment.limit_of(change)
            for d, (n, w) in enumerate(zip(crops.crop, wall, strict=True)):
                # The half of the crop that is nearer to the other end.
                other = (0, min((n - w) // 2, n - far[d])) if side else (max((n + w) // 2, far[d]), n)
                spans = [other if k == d else (far[k], m - far[k]) for k, m in enumerate(crops.crop)]
                box = tuple(slice(*change.result.span(k, *span)) for k, span in enumerate(spans))
                if changed[box].any():
                    found.add(d)
    return found


def _wraps(experiment: Experiment, d: int) -> bool:
    """Return whether a crop that is padded with its opposite side along axis ``d`` gives the same result."""
    crops, before = experiment.bases[NOISE]
    n, m = experiment.crops.crop[d], experiment.seen.multiple[d]
    start = n // 2 // m * m
    try:
        after = experiment.box(
            experiment.inputs.around(
                crops,
                [(start, n - start) if k == d else (0, 0) for k in range(len(experiment.crops.crop))],
                wrapped=True,
            )
        )
    except Exception:
        return False
    for number, (a, b, r) in enumerate(zip(before, after, experiment.results, strict=True)):
        step = int(start * r.scale[d])
        part = b.take(range(step, min(step + a.shape[r.axes[d]], b.shape[r.axes[d]])), r.axes[d])
        if not experiment.equal(a, part, number):
            return False
    return True
