"""Adding results of tiles to canvases, and the parts of a block that the tiles that ran cover."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array, Index, Span
from tilework.engine.canvas import Partial, Products, add, plus
from tilework.engine.spec import Spec
from tilework.errors import GridError
from tilework.function.output import BoundOutput
from tilework.grid.tiles import Box
from tilework.grid.weights import PROFILES

__all__ = ["Accumulator", "cover", "touching"]


@dataclass(frozen=True, slots=True)
class _Spot:
    """Position of the tiles with one number along one axis."""

    target: slice
    """Samples of the canvas."""
    values: slice
    """Samples of the function's result."""
    weights: Array | None
    """Normalised weights of these samples, if the blend is weighted and separable."""


class Accumulator:
    """Adds the results of one owner's tiles to one canvas per output."""

    def __init__(self, spec: Spec, boxes: Sequence[Box]) -> None:
        self._outputs = spec.outputs
        self.partials = [Partial(box) for box in boxes]
        self._spots: dict[tuple[int, int, int], _Spot | None] = {}
        self._slices: dict[Any, tuple[Array, Array]] = {}
        self._bytes = 0
        """Bytes of the profiles that are held."""
        self._products = Products()

    def __getstate__(self) -> dict[str, Any]:
        # Parts and products of weights are found by identity, which pickling does not keep.
        return self.__dict__ | {
            "_spots": {},
            "_slices": {},
            "_bytes": 0,
            "_products": Products(),
        }

    def add(self, position: Index, results: Sequence[Array]) -> None:
        """Add the results, one per output, of the tile at ``position`` (its number along each axis)."""
        for number, (output, result) in enumerate(zip(self._outputs, results, strict=True)):
            spots = [self._spot(number, d, i) for d, i in enumerate(position)]
            if None in spots:
                continue
            placed: list[_Spot] = spots  # type: ignore[assignment]
            values = result[output.index([s.values for s in placed])[output.n_each :]]
            partial = self.partials[number]
            partial.prepare(output, values.dtype)
            place = output.index([s.target for s in placed])
            each = (s.start for s in place[: output.n_each])
            target, lost = partial.part((*each, *place[output.n_each :], ...))
            weights: Any = None
            if output.importance is not None:
                start = [partial.box.start[d] + s.target.start for d, s in enumerate(placed)]
                shape = [s.target.stop - s.target.start for s in placed]
                weights = importance(output, position, start, shape)
            elif output.weighted:
                weights = [s.weights for s in placed[output.n_each :]]
            add(output, target, values, weights, self._products, lost)

    def _spot(self, number: int, d: int, i: int) -> _Spot | None:
        key = (number, d, i)
        if key in self._spots:
            return self._spots[key]
        if self._bytes > PROFILES:
            self._spots, self._slices, self._bytes = {}, {}, 0
        output, box = self._outputs[number], self.partials[number].box
        axis = output.weights[d]
        (low, high), (origin, _) = axis.support(i), axis.result(i)
        start, stop = max(low, box.start[d]), min(high, box.stop[d])
        spot = None
        if stop > start:
            weights = None
            if output.weighted and output.importance is None and d >= output.n_each:
                weights = self._slice(axis.weights(i), start - low, stop - start)
            target = slice(start - box.start[d], stop - box.start[d])
            spot = _Spot(target, slice(start - origin, stop - origin), weights)
        self._spots[key] = spot
        return spot

    def _slice(self, profile: Array, start: int, length: int) -> Array:
        """Return a part of ``profile``; equal parts are the same object, because products use identity."""
        key = (id(profile), start, length)
        if key not in self._slices:
            part = profile if length == len(profile) else profile[start : start + length]
            # The profile is kept with its part, so that no other array gets its id.
            self._slices[key] = profile, part
            self._bytes += profile.nbytes
        return self._slices[key][1]


def importance(output: BoundOutput, position: Index, start: Sequence[int], shape: Sequence[int]) -> Array:
    """Return the N-D weights of the tile at ``position`` over a box, not normalised."""
    assert output.importance is not None
    weights = output.importance
    index = []
    for t, d in enumerate(range(output.n_each, len(position))):
        axis = output.weights[d]
        weights = axis.fill_rim(position[d], weights, t)
        first = axis.in_window(position[d]).start + start[d] - axis.support(position[d])[0]
        index.append(slice(first, first + shape[d]))
    return weights[tuple(index)] * output.factor


def touching(output: BoundOutput, ranges: Sequence[Span], box: Box) -> list[Span]:
    """Return the tiles per axis, within ``ranges``, that have weight in ``box`` (result samples)."""
    columns = zip(output.weights, ranges, box.start, box.stop, strict=True)
    return [weights.touching(range(*tiles), a, b) for weights, tiles, a, b in columns]


def cover(
    spec: Spec,
    output: BoundOutput,
    index: Index,
    box: Box,
    skipped: set[int],
    times: Mapping[int, int] | None = None,
) -> tuple[Array | None, Array | None]:
    """Return where any tile ran, and the sum of weights if it is not 1 by construction.

    ``times`` holds how often each tile was added, for tiles that were not added once.
    """
    times = times or {}
    plan = spec.plan
    ranges = touching(output, [t.touch[b] for t, b in zip(plan.tables, index, strict=True)], box)
    runs = plan.runs
    masked = runs is not None and not runs[tuple(slice(a, b) for a, b in ranges)].all()
    partial = masked or bool(skipped) or bool(times)
    if not partial and output.importance is None:
        return _covered(output, box), None
    reached = np.zeros(box.shape, bool)
    uneven = np.zeros(box.shape, bool)
    total = np.zeros(box.shape) if output.weighted else None
    lost = np.zeros(box.shape) if output.weighted and output.compensated else None
    for position in itertools.product(*(range(a, b) for a, b in ranges)):
        spans = [w.support(i) for w, i in zip(output.weights, position, strict=True)]
        support = Box.of(spans)
        common = support.intersect(box)
        if not common.size:
            continue
        at = common.shift([-a for a in box.start]).slices
        number = plan.grid.number(position)
        ran = (runs is None or bool(runs[position])) and number not in skipped
        count = times.get(number, 1) if ran else 0
        weights = (
            _weights_at(output, position, support, common)
            if output.weighted
            else np.ones((1,) * len(position))
        )
        if ran:
            reached[at] |= weights > 0
            if total is not None:
                plus((total[at], None if lost is None else lost[at]), count * weights, average=False)
        if count != 1:
            uneven[at] |= weights > 0
    if total is None:
        return reached, None
    if lost is not None:
        total += lost
    if not partial:
        _check_cover(output, box, total)
    # Where all tiles ran once, a separable sum is 1: leaving it out keeps the bits of the unmasked result.
    return reached, total if output.importance is not None else np.where(uneven, total, 1.0)


def _weights_at(output: BoundOutput, position: Index, support: Box, common: Box) -> Array:
    n = output.n_each
    if output.importance is not None:
        return importance(output, position, common.start, common.shape)[(None,) * n]
    product = np.ones((1,) * len(position))
    for d in range(n, len(position)):
        first = common.start[d] - support.start[d]
        profile = output.weights[d].weights(position[d])[first : first + common.shape[d]]
        product = product * profile.reshape((-1,) + (1,) * (len(position) - d - 1))
    return product


def _check_cover(output: BoundOutput, box: Box, total: Array) -> None:
    """Raise if an importance map leaves a sample of the block without weight although all tiles ran."""
    covered = _covered(output, box)
    hole = np.argwhere(total <= 0 if covered is None else (total <= 0) & covered)
    if len(hole):
        where = tuple(int(a + x) for a, x in zip(box.start, hole[0], strict=True))
        raise GridError(
            "every sample needs a positive weight from some crop; the importance map gives none to sample "
            f"{where} of the result. Use more overlap, or a map that is positive there."
        )


def _covered(output: BoundOutput, box: Box) -> Array | None:
    """Return where the grid covers ``box``; None: everywhere, as with every edge mode but ``drop``."""
    ends = []
    for axis in output.weights:
        n = len(axis.grid)
        ends.append(axis.support(n - 1)[1] if n else 0)
    if all(end >= stop for end, stop in zip(ends, box.stop, strict=True)):
        return None
    reached = np.zeros(box.shape, bool)
    reached[tuple(slice(0, max(0, end - a)) for end, a in zip(ends, box.start, strict=True))] = True
    return reached
