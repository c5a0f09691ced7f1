"""The steps of a probe: the calls of the function, in order, and the question that each step answers.

1. *look* (`Experiment.look`): two calls on one crop. Are they equal? What is the geometry of the results?
2. *frame*: replace both ends of a crop, axis by axis. How far does the change reach?
3. *refine*: test many gaps in one crop, until nothing new is seen.
4. *ends*, if a frame leaves no result unchanged: replace one end at a time, also in a crop of twice the
   length. Is the reach too large for the crop, or global?
5. *structures* (`structures`): replace the ends of lines and of flat images. Does the reach depend on what is
   in the image?
6. *shifts* (`Shifts`): roll crops by 1, 2, 4, ... samples. With which translations does the function
   commute, away from the crop's border? If with none of one sample, *refine* again with walls on that grid,
   and off it.
7. *margin* (`split_margin`), if results are smaller than the crop: where is the response to a few samples?
8. *longer* (`compare_longer`): compare each crop with a longer one that continues it. Padding inside the
   function may change results farther from a crop's border than any input reaches: a shift to the left
   followed by one to the right depends on no other sample, but loses both ends. If all results differ, they
   depend on the crop's length.
9. *round* (`look_round`): replace one end of a crop. Does the opposite end change, and does an image that is
   padded with its opposite side explain it?
"""

from __future__ import annotations

import math
from dataclasses import replace

from tilework._types import Span
from tilework.errors import TilingError
from tilework.probing.blackbox import TooSlow, others
from tilework.probing.doubts import look_for_doubts
from tilework.probing.experiment import NOISE, SMOOTH, STEADY, Change, Experiment, Findings
from tilework.probing.gaps import middle, note_response, observe
from tilework.probing.inputs import Kind
from tilework.probing.longer import compare_longer, look_round
from tilework.probing.margin import split_margin
from tilework.probing.reach import deepest, gaps_along, largest
from tilework.probing.report import ProbeReport, report_of
from tilework.probing.shifts import Shifts
from tilework.probing.structures import structures

__all__ = ["search"]

# Consecutive draws without a new finding that end the search, and the most draws.
QUIET, DRAWS = 3, 12
# Reach, as a fraction of the crop beyond the wall, above which a longer crop is tested, too.
NEARLY = 0.6
# Ratio of the change far from a wall to the change at half the way, above which the response is global.
PLATEAU = 0.3
# Factor by which a response may reach farther in the longer crop and count as the same.
GROWTH = 1.2


def search(experiment: Experiment) -> ProbeReport:
    """Call the function and return the report."""
    try:
        experiment.look()
    except TooSlow as slow:
        raise TilingError(f"probe: {slow}. Probe it on a smaller crop.") from None
    seen, axes = experiment.seen, range(len(experiment.crops.crop))
    seen.lengths = [{n} for n in experiment.crops.crop]
    seen.multiple = tuple(math.lcm(*(r.scale[d].denominator for r in experiment.results)) for d in axes)
    try:
        _steps(experiment)
    except TooSlow as slow:
        seen.doubt(f"the search was stopped: {slow}")
    return report_of(experiment)


def _steps(experiment: Experiment) -> None:
    """Take the steps in order, each as far as what is known makes sense of it."""
    seen, axes = experiment.seen, range(len(experiment.crops.crop))
    experiment.base("smooth")
    experiment.base("noise")
    wide = [not _frame(experiment, axis) or not _refine(experiment, axis) for axis in axes]
    for axis in axes:
        if wide[axis]:
            _ends(experiment, axis)
    if seen.bounded and seen.noise <= STEADY:
        structures(experiment)
    seen.multiple, seen.commutes = Shifts(experiment).find()
    if seen.bounded and any(m > 1 for m in seen.multiple):
        # The mean of a cell of noise differs little from that of the next one.
        coarse = experiment.add(experiment.inputs.cells(seen.multiple))
    for axis, m in enumerate(seen.multiple):
        if seen.bounded and m > 1:
            if wide[axis]:
                _ends(experiment, axis, m)
            else:
                _refine(experiment, axis, m, bases=(NOISE, coarse))
                _refine(experiment, axis, m, bases=(NOISE, coarse), aligned=False)
    split_margin(experiment)
    if seen.bounded and seen.commutes:
        compare_longer(experiment)
    if seen.bounded:
        look_round(experiment)
    if seen.bounded and seen.commutes:
        look_for_doubts(experiment)


# -- gaps --------------------------------------------------------------------------------------------


def _frame(experiment: Experiment, axis: int) -> bool:
    """Replace both ends of the crop; return whether a result in the middle is unchanged."""
    spans = middle(experiment, axis)
    if experiment.nan and all(t.kind in "fc" for t in experiment.crops.dtypes):
        observe(experiment, axis, 0, "nan", spans)
    return None not in [observe(experiment, axis, 0, kind, spans) for kind in experiment.kinds[:1]]


def _refine(
    experiment: Experiment,
    axis: int,
    multiple: int = 1,
    *,
    bases: Span = (NOISE, SMOOTH),
    aligned: bool = True,
) -> bool:
    """Test many gaps per call until nothing new is seen; return False if all of one changed."""
    seen, kinds, rng = experiment.seen, experiment.kinds, experiment.inputs.rng
    quiet, number = 0, 0
    while quiet < QUIET and number < DRAWS:
        # Begins with the perturbations that the frame has not used.
        kind = kinds[(number + 1) % len(kinds)]
        base = bases[number % 2]
        before = [seen.reach(axis, side) for side in (0, 1)]
        spans = _gaps(experiment, axis, multiple)
        if not aligned:
            # One sample off the grid shows most, so it alternates with random offsets.
            off = [1 if (k + number) % 2 else int(rng.integers(multiple)) for k in range(len(spans))]
            spans = tuple((a + r, b - r) for (a, b), r in zip(spans, off, strict=True))
        found = observe(experiment, axis, base, kind, spans)
        if found is None:
            # The gaps may have been too short; a single one in the middle is longer.
            found = observe(experiment, axis, base, kind, middle(experiment, axis, multiple))
        if found is None:
            return False
        if multiple == 1:
            for side in (0, 1):
                far = largest(found, axis, side)
                if far is not None:
                    seen.draws_of.setdefault((axis, side), []).append(far)
        quiet = quiet + 1 if before == [seen.reach(axis, side) for side in (0, 1)] else 0
        number += 1
    return True


def _gaps(experiment: Experiment, axis: int, multiple: int) -> tuple[Span, ...]:
    """Return gaps with room for 1.5 times the observed reach."""
    n = experiment.crops.crop[axis]
    lost = max(r.lost[axis] for r in experiment.results)
    known = sum(max(0, experiment.seen.reach(axis, side)) for side in (0, 1)) + lost
    wall = max(multiple, min(known // 2 + 1, 8), lost + 1)
    more = 2 * multiple + (8 if multiple == 1 else 2 * multiple)
    spans = gaps_along(n, known + known // 2 + more, wall, multiple)
    return spans if spans[0][1] - spans[0][0] > known + 2 else middle(experiment, axis, multiple)


# -- ends --------------------------------------------------------------------------------------------


def _ends(experiment: Experiment, axis: int, multiple: int = 1) -> None:
    """Replace one end of the crop at a time; if changes fill the crop, note why."""
    seen, n = experiment.seen, experiment.crops.crop[axis]
    if multiple == 1:
        seen.edges = [e for e in seen.edges if e.axis != axis]
    wall = -(-max(1, n // 8) // multiple) * multiple
    for side in (0, 1):
        for kind in experiment.kinds:
            full = _fills(experiment, axis, side, wall, kind)
            if full is None:
                continue
            # A response that nearly fills the crop may be global if the function is 0 at the crop's ends.
            reach = seen.reach(axis, side)
            near = not full and reach > NEARLY * (n - wall) and kind == experiment.kinds[0]
            why = _why_open(experiment, axis, kind, reach if near else None) if near or full else None
            if why is not None:
                seen.bounded = False
                seen.note(why, axis)
                return


def _fills(experiment: Experiment, axis: int, side: int, wall: int, kind: Kind) -> bool | None:
    """Replace one end; return whether results change up to the other, None if fn raised for the values."""
    n = experiment.crops.crop[axis]
    replaced, at = ((0, wall), wall) if side == 0 else ((n - wall, n), n - wall)
    far = (n - n // 8, n) if side == 0 else (0, n // 8)
    keep = experiment.crops.kept(axis, *replaced)
    changes = experiment.taken(0, kind, keep)
    if changes is None:
        return None
    full = False
    for change in changes:
        limit = experiment.limit_of(change)
        note_response(experiment, change, limit, axis, keep[axis])
        edge, end = deepest(change.amount > limit, change.result, axis, side, at)
        full = full or end or experiment.stirred(change, axis, *change.result.span(axis, *far))
        if edge is not None:
            experiment.seen.edges.append(edge)
    return full


def _why_open(experiment: Experiment, axis: int, kind: Kind, reach: int | None) -> str | None:
    """Test a crop of twice the length; return why a response that fills this one allows no exact overlap.

    The text has "{axis}" in place of the axes. ``reach`` is given for a response that ended before the crop's
    end; None is returned if it reaches no farther in the longer crop.
    """
    n = experiment.crops.crop[axis]
    short = f"on {{axis}} the response reaches the border of the crop of {n}"
    longer = replace(experiment, inputs=experiment.inputs.longer(axis), results=[], bases=[], seen=Findings())
    at = max(1, n // 8)
    try:
        longer.look()
        changes = longer.changes(0, kind, longer.crops.kept(axis, 0, at))
    except Exception as error:
        return f"{short}, and a longer one was refused ({type(error).__name__}): unbounded, or too large"
    finally:
        experiment.seen.draws += longer.seen.draws
    ratio, farthest = 0.0, 0
    for change in changes:
        edge, end = deepest(change.amount > longer.limit_of(change), change.result, axis, 0, at)
        farthest = max(farthest, 0 if edge is None else edge.reach)
        if end or longer.stirred(change, axis, *change.result.span(axis, 2 * n - n // 4, 2 * n)):
            ratio = max(ratio, _persistence(change, axis))
    if reach is not None and not ratio and farthest <= GROWTH * reach:
        return None
    if not ratio and reach is None:
        return f"{short}: give a larger crop, more than {2 * farthest} (it reaches {farthest} samples)"
    if 0 < ratio < PLATEAU:
        return f"{short} and of {2 * n}, weaker and weaker: give a larger crop or a tolerance"
    return (
        f"the response is global on {{axis}}: it fills a crop of {2 * n} too, and is no weaker at the far "
        "end (normalisation, squeeze-excite, labelling)"
    )


def _persistence(change: Change, axis: int) -> float:
    """Return the ratio of the mean change in the last quarter of a result to that in the second quarter."""
    profile = change.amount.mean(axis=others(change.amount, axis))
    quarter = len(profile) // 4
    if not quarter:
        return 1.0  # the result is too short: it describes the whole crop
    return float(profile[-quarter:].mean()) / max(float(profile[quarter : 2 * quarter].mean()), 1e-300)
