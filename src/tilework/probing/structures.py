"""Whether the reach of a function depends on what is in the image: lines and flat images.

On noise, functions that follow structures look local: objects are small, holes are few, every sample is near
an edge. Propagation, distances, the filling of holes, filters of components, skeletons and plateaus show
their reach where a structure leads through the crop::

    lines      ====================  at several levels, thin and thick, on dark and on bright ground
               ========.===========  interrupted, so that there are objects and holes of many lengths
    islands    ...=====.==========.  of few and of many cells, some of them at the ends
    flat       ....................  at several levels of the range, and at the most frequent value

Their ends are changed from one end of the range to the other. There is no larger change, and what spreads
finds its source.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tilework._types import Array, Span
from tilework.errors import ContractError
from tilework.probing.experiment import NOISE, SMOOTH, Experiment
from tilework.probing.gaps import middle, observe
from tilework.probing.inputs import FLAT, Kind

__all__ = ["structures"]


def structures(experiment: Experiment) -> None:
    """Replace the ends of structures, axis by axis, and note an axis along which they are followed."""
    axes = range(len(experiment.crops.crop))
    if (len(axes) > 1 and _affine(experiment)) or not _lines_hold(experiment):
        return
    if not _islands_hold(experiment):
        return
    images = [experiment.inputs.flat(level) for level in _levels(experiment)]
    # Low contrast: a threshold of the deviation lies between this image and its ends.
    faint = experiment.inputs.between(experiment.bases[NOISE][0], experiment.inputs.flat(0.5), 0.1)
    for crops in (*images, faint):
        number = _added(experiment, crops)
        if number is None:
            continue
        experiment.flat.append(number)
        if not all(_holds(experiment, number, d, "halves") for d in axes):
            return


def _affine(experiment: Experiment) -> bool:
    """Return whether the result for the mean of two crops is the mean of their results.

    Such a function reaches as far in one image as in any other. It is asked of noise, of lines, which exceed
    thresholds that noise does not, and of noise of low contrast at both ends of the range, whose mean and
    deviation are those of few crops.
    """
    inputs, results = experiment.inputs, experiment.results
    if any(t.kind not in "fc" for t in (*experiment.crops.dtypes, *(r.dtype for r in results))):
        return False
    lines = [_added(experiment, inputs.lines(0, bright=bright)) for bright in (False, True)]
    flat = [_added(experiment, inputs.flat(level)) for level in FLAT[:2]]
    pairs = ((NOISE, SMOOTH, 0.5), (lines[0], lines[1], 0.5), (NOISE, flat[0], 0.1), (NOISE, flat[1], 0.1))
    for one, two, part in pairs:
        if one is None or two is None:
            return False
        (crops, before), (others, beside) = experiment.bases[one], experiment.bases[two]
        after = experiment.box(inputs.between(crops, others, part))
        for k, (a, b, c) in enumerate(zip(before, beside, after, strict=True)):
            mean = part * a.astype(np.result_type(a, "f8")) + (1 - part) * b
            if not experiment.equal(mean.astype(c.dtype), c, k, one):
                return False
    return True


def _lines_hold(experiment: Experiment) -> bool:
    """Change the ends of lines from the lower to the upper end of the range; return whether middles stay."""
    inputs, axes = experiment.inputs, range(len(experiment.crops.crop))
    for d in axes:
        keep = experiment.crops.within({d: middle(experiment, d)})
        # One line has one length; an image of lines has all.
        for bright, place in itertools.product((False, True), (0.45, 0.7) if len(axes) == 1 else (None,)):
            drawn = (
                inputs.lines(d, bright=bright) if place is None else inputs.line(bright=bright, place=place)
            )
            crops = inputs.mixed(drawn, inputs.other("bottom"), keep)
            number = _added(experiment, crops)
            if number is None:
                continue
            experiment.lines[d] = number
            if not _holds(experiment, number, d, "top"):
                return False
    return True


def _islands_hold(experiment: Experiment) -> bool:
    """Change the ends of an image of islands; return whether results in its middle stay."""
    inputs, axes = experiment.inputs, range(len(experiment.crops.crop))
    keep = experiment.crops.within({d: middle(experiment, d) for d in axes})
    number = _added(experiment, inputs.mixed(inputs.islands(), inputs.other("bottom"), keep))
    return number is None or all(_holds(experiment, number, d, "top") for d in axes)


def _added(experiment: Experiment, crops: list[Array]) -> int | None:
    """Return the number of one more base image, None if the function refuses it."""
    try:
        return experiment.add(crops)
    except ContractError:
        raise
    except Exception as error:
        _refused(experiment, error)
        return None


def _refused(experiment: Experiment, error: Exception) -> None:
    experiment.seen.doubt(
        f"lines or flat images were refused ({type(error).__name__}): how far structures lead was not seen"
    )


def _holds(experiment: Experiment, number: int, axis: int, kind: Kind) -> bool:
    """Replace the ends of an image along one axis; return whether results in its middle stay."""
    seen = experiment.seen
    for spans in _spans(experiment, axis):
        try:
            found = observe(experiment, axis, number, kind, spans, structured=True)
        except ContractError:
            raise
        except Exception as error:
            _refused(experiment, error)
            return True
        if found is None:
            seen.bounded = False
            seen.note(
                "structures are followed along {axis}: in lines and flat areas the response filled the crop "
                "(objects, holes, distances, propagation). Run tw.check on your image with the overlap that "
                "you can afford",
                axis,
            )
            return False
    return True


def _spans(experiment: Experiment, axis: int) -> tuple[tuple[Span, ...], ...]:
    """Return the gaps to be tried: the middle of the crop, or all but one end if the reach is long."""
    spans = middle(experiment, axis)
    (start, stop), n = spans[0], experiment.crops.crop[axis]
    if sum(experiment.seen.sides(axis)) < stop - start:
        return (spans,)
    return ((start, n),), ((0, stop),)


def _levels(experiment: Experiment) -> Iterator[float]:
    """Yield the levels of flat images, as fractions of the range."""
    dtype, sample = experiment.crops.dtypes[0], experiment.inputs.samples[0]
    yield from FLAT[:2] if dtype.kind == "b" else FLAT
    if sample is None or dtype.kind not in "iuf":
        return
    low, high = experiment.inputs.values[0]
    values, counts = np.unique(sample[np.isfinite(sample)], return_counts=True)
    # A value of 1 % of the samples is a background or a hole; noise has none.
    if counts.max(initial=0) > sample.size // 100 and low < (most := float(values[counts.argmax()])) < high:
        yield (most - low) / (high - low)
