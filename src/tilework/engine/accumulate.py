"""Adding results of tiles to canvases, and the parts of a block that the tiles that ran cover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tilework._types import Array, Bits, Index, Ints, Span
from tilework.engine.canvas import Partial, add
from tilework.engine.products import AnyArray, Profile
from tilework.engine.spec import Spec
from tilework.engine.sums import plus
from tilework.errors import GridError
from tilework.function.bound import BoundOutput
from tilework.function.device_array import DeviceArray
from tilework.grid.tiles import Box
from tilework.grid.weights import AxisWeights
from tilework.labels.painting import Claims, Place, painted, trimmed
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.plan.output_plan import SUMS

__all__ = ["Accumulator", "cover", "touching"]


class _Spot(NamedTuple):
    """Position of the tiles with one number along one axis, in one of the parts of a canvas."""

    part: int
    """Number of the part along the axis."""
    target: slice
    """Samples of the part."""
    values: slice
    """Samples of the function's result."""
    weights: Profile | None
    """Normalised weights of these samples, if the blend is weighted and separable."""
    fresh: slice
    """Samples of the part to clear first: no earlier tile of the axis reaches them."""


class Accumulator:
    """Adds the results of one owner's tiles to one canvas per output of ``spec.summed``, whole or in parts.

    Parameters
    ----------
    spec : Spec
    regions : per output, a `Box` or, per grid axis, a sequence of (start, stop); result samples
        Where to add up. Spans along an axis ascend and do not overlap. Each product of spans is a part of the
        canvas, with memory of its own.
    rooms : per output, an array or None
        Memory for the first part, if it has the dtype of the sums.
    tiles : per grid axis, a range of tiles, optional
        The tiles that are added, in raster order; some may be left out. Canvases are then cleared row by row
        of tiles, just before the first one is added: their samples are read again while they are in the
        processor's cache, which saved about 8 % of the time of a blend. `close` ends it.
    """

    def __init__(
        self,
        spec: Spec,
        regions: Sequence[Box | Sequence[Sequence[Span]]],
        rooms: Sequence[Array | None] = (),
        tiles: Sequence[range] | None = None,
    ) -> None:
        self._outputs, self._products = spec.summed, spec.products
        self._spans = [
            [[span] for span in zip(r.start, r.stop, strict=True)] if isinstance(r, Box) else r
            for r in regions
        ]
        self._parts: list[dict[Index, Partial]] = []
        for spans in self._spans:
            numbers = itertools.product(*(range(len(along)) for along in spans))
            self._parts.append({n: Partial(_box_of(spans, n)) for n in numbers})
        self.partials = [next(iter(parts.values())) for parts in self._parts]
        """The first part of each canvas."""
        for partial, room in zip(self.partials, rooms, strict=False):
            partial.room = room
        self._spots = self._no_spots()
        self._tiles = tiles
        self._coming = None if tiles is None else itertools.product(*tiles)
        self._gaps = False
        """Whether a tile was left out so far."""
        self.claims: dict[int, list[Claims]] = {}
        """What each tile claimed, per output of labels."""

    def _no_spots(self) -> list[list[dict[int, list[_Spot]]]]:
        """Return places for the spots, by output, axis and number of the tile."""
        return [[{} for _ in along] for along in self._spans]

    def __getstate__(self) -> dict[str, Any]:
        # Products of weights are found by identity, which pickling does not keep.
        return self.__dict__ | {"_spots": self._no_spots()}

    def seam(self, step: Index, canvases: Sequence[Box]) -> list[Partial]:
        """Return the part of each canvas in the later block at ``step``, within the boxes of the tiles."""
        found = []
        for output, parts, box in zip(self._outputs, self._parts, canvases, strict=True):
            nothing = Partial(Box((0,) * len(step), (0,) * len(step)))
            found.append(parts[step].crop(output, box) if step in parts else nothing)
        return found

    def add(self, position: Index, results: Sequence[AnyArray]) -> None:
        """Add the results, one per output, of the tile at ``position`` (its number along each axis)."""
        if self._coming is not None and (coming := next(self._coming, None)) != position:
            self._pass_over(coming, position)
        for number, (output, result) in enumerate(zip(self._outputs, results, strict=True)):
            if output.kind == "own":
                result, claims = painted(result, place_of(output, position))
                self.claims.setdefault(number, []).append(claims)
            elif output.connectivity:
                result = trimmed(result, place_of(output, position))
            columns: list[Any] = list(map(dict.get, self._spots[number], position))
            if None in columns:
                columns = self._places(number, position)
            for spots in itertools.product(*columns):
                self._add(number, output, position, spots, result)

    def close(self) -> None:
        """Finish the canvases, after the last of the tiles that were announced."""
        if self._coming is not None:
            self._pass_over(next(self._coming, None), None)

    def _pass_over(self, coming: Index | None, position: Index | None) -> None:
        """Clear what tiles that were left out would have been the first to reach: from one to another."""
        assert self._coming is not None
        while coming is not None and coming != position:
            self._gaps = True
            for number, (output, parts) in enumerate(zip(self._outputs, self._parts, strict=True)):
                for spots in itertools.product(*self._places(number, coming)):
                    numbers, fresh = zip(*((s.part, s.fresh) for s in spots), strict=True)
                    parts[numbers].clear(output, output.index(fresh))
            coming = next(self._coming, None)
        if coming != position:
            raise ValueError(f"the tile at {position} is not in raster order")

    def _places(self, number: int, position: Index) -> list[list[_Spot]]:
        """Return the places of a tile along each axis, one per part of the canvas in which it has weight."""
        for d, (places, i) in enumerate(zip(self._spots[number], position, strict=True)):
            if i not in places:
                self._find(number, d, [i] if self._tiles is None else self._tiles[d])
        return list(map(dict.__getitem__, self._spots[number], position))

    def _add(
        self, number: int, output: BoundOutput, position: Index, spots: Sequence[_Spot], result: AnyArray
    ) -> None:
        """Add the samples of a result that lie in one part of the canvas."""
        n = output.n_each
        numbers, targets, parts, weights, fresh = zip(*spots, strict=True)
        partial = self._parts[number][numbers]
        values = result[output.index(parts)[n:]]
        partial.prepare(output, values, clear=self._tiles is None or self._gaps)
        # Trimmed results are written where nothing was.
        new = fresh != targets if output.kind == "trim" else fresh[-1].start < fresh[-1].stop
        if new and self._tiles is not None:
            partial.clear(output, output.index(fresh))
        if isinstance(values, DeviceArray) and not isinstance(partial.array, DeviceArray):
            values = values.host()
        place: tuple[Any, ...] = output.index(targets)
        if n:
            place = (*(s.start for s in place[:n]), *place[n:], ...)
        target, lost = partial.part(place)
        if output.importance is not None:
            start = [a + s.start for a, s in zip(partial.box.start, targets, strict=True)]
            shape = [s.stop - s.start for s in targets]
            whole, index = importance(output, position, start, shape)
            self._products.add_map(output, (target, lost), values, whole, index)
            return
        add(output, target, values, weights[n:] if output.weighted else None, self._products, lost)

    def _find(self, number: int, d: int, tiles: Iterable[int]) -> None:
        """Find the places of tiles along one axis, one per part of the canvas in which they have weight."""
        output, places = self._outputs[number], self._spots[number][d]
        axis = output.weights[d]
        separable = output.weighted and output.importance is None and d >= output.n_each
        # Long pieces of memory are cleared faster than short ones.
        at_once = d == len(output.weights) - 1 and output.kind != "trim"
        for i in tiles:
            places[i] = []
        for part, (first, end) in enumerate(self._spans[number][d]):
            reached, found = first, None
            for i in tiles:
                (low, high), (origin, _) = axis.support(i), axis.result(i)
                start, stop = max(low, first), min(high, end)
                if stop <= start:
                    continue
                weights = None
                if separable:
                    weights = self._products.profile(axis, i, slice(start - low, stop - low))
                target, values = slice(start - first, stop - first), slice(start - origin, stop - origin)
                known, reached = reached, end if at_once else max(reached, stop)
                found = places[i]
                found.append(_Spot(part, target, values, weights, slice(known - first, reached - first)))
            if found is not None:
                last = found.pop()
                found.append(last._replace(fresh=slice(last.fresh.start, end - first)))


def place_of(output: BoundOutput, position: Index) -> Place:
    """Return where the result of the tile at ``position`` lies, without ``each`` axes."""
    n = output.n_each
    crop = [(0, length) for length in output.shape]
    core = list(crop)
    extents = list(output.shape)
    for axis, weights, i in zip(output.axes, output.weights[n:], position[n:], strict=True):
        crop[axis], extents[axis] = weights.result(i), weights.extent
        start, stop = weights.grid.core(i)
        core[axis] = weights.scaled(start), weights.scaled(stop)
    index = 0
    for weights, i in zip(output.weights[:n], position[:n], strict=True):
        index = index * weights.extent + i
    return Place(tuple(crop), tuple(core), tuple(extents), output.axes, index)


def _box_of(spans: Sequence[Sequence[Span]], number: Index) -> Box:
    return Box.of([along[k] for along, k in zip(spans, number, strict=True)])


def importance(
    output: BoundOutput, position: Index, start: Sequence[int], shape: Sequence[int]
) -> tuple[Array, tuple[slice, ...]]:
    """Return the N-D weights of the tile at ``position``, not normalised, and a box as an index into them.

    Tiles that are away from the image's border get the same array.
    """
    assert output.importance is not None
    weights: Array | None = output.held.get("importance")
    if weights is None:
        weights = output.held["importance"] = output.importance * output.factor
    index = []
    for t, d in enumerate(range(output.n_each, len(position))):
        axis = output.weights[d]
        weights = axis.fill_rim(position[d], weights, t)
        first = axis.in_window(position[d]).start + start[d] - axis.support(position[d])[0]
        index.append(slice(first, first + shape[d]))
    return weights, tuple(index)


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
    *,
    dtype: np.dtype[Any],
) -> tuple[Bits | None, Array | None]:
    """Return where any tile ran (None: everywhere), and the sum of weights if it is not 1 by construction.

    Parameters
    ----------
    index : tuple of int
        The block.
    box : Box, result samples per grid axis
        A part of the block.
    skipped : set of int
        Numbers of the tiles that were not added.
    times : dict of int to int, optional
        How often each tile was added, for tiles that were not added once.
    dtype : dtype
        The real dtype of the sum of weights, which is taken in double precision.
    """
    plan = spec.plan
    ranges = touching(output, [t.touch[b] for t, b in zip(plan.tables, index, strict=True)], box)
    added = _times_added(spec, ranges, skipped, times or {})
    covered = _covered(output, box)
    if added is None and output.importance is None:
        return covered, None
    spans = [[w.support(i) for i in range(*r)] for w, r in zip(output.weights, ranges, strict=True)]
    if output.importance is not None:
        reached, whole = _periodic_sum(output, ranges, spans, box, dtype)
        if added is None:
            if reached is not None:
                _check_cover(covered, box, reached)
            return reached, whole
    else:
        # Where all tiles ran once, a separable sum is 1: leaving it out keeps the unmasked result's bits.
        reached, whole = covered, np.ones(box.shape, dtype) if output.weighted else np.empty(0)
    assert added is not None
    part, uneven, touched, sums = _uneven_part(output, ranges, spans, box, added)
    inside = part.shift([-a for a in box.start]).slices
    reached = np.ones(box.shape, bool) if reached is None else reached
    np.copyto(reached[inside], touched, where=uneven)
    if sums is None:
        return reached, None
    np.copyto(whole[inside], sums, where=uneven)
    return reached, whole


def _times_added(
    spec: Spec, ranges: Sequence[Span], skipped: set[int], times: Mapping[int, int]
) -> Ints | None:
    """Return how often each tile in ``ranges`` was added; None: all of them once."""
    mask, shape = spec.plan.mask, spec.plan.grid_shape
    counts = np.ones([b - a for a, b in ranges], np.int64)
    for number, count in times.items():
        _put(counts, ranges, np.array([number]), shape, count)
    if skipped:
        _put(counts, ranges, np.fromiter(skipped, np.int64), shape, 0)
    if mask is not None:
        counts[~mask.box(ranges)] = 0
    return None if (counts == 1).all() else counts


def _put(counts: Ints, ranges: Sequence[Span], numbers: Ints, shape: Index, count: int) -> None:
    """Set the entries of the tiles with these numbers that are in ``ranges``."""
    places = [p - a for p, (a, _) in zip(np.unravel_index(numbers, shape), ranges, strict=True)]
    inside = np.logical_and.reduce([(p >= 0) & (p < n) for p, n in zip(places, counts.shape, strict=True)])
    counts[tuple(p[inside] for p in places)] = count


def _uneven_part(
    output: BoundOutput,
    ranges: Sequence[Span],
    spans: Sequence[Sequence[Span]],
    box: Box,
    added: Ints,
) -> tuple[Box, Bits, Bits, Array | None]:
    """Return the part of ``box`` in which a tile was not added once, and the sum of weights in it.

    Returns
    -------
    Box
        The part: the hull of the tiles that were not added once.
    bool array
        Where such a tile has weight.
    bool array
        Where a tile that was added has weight.
    float array or None
        The sum of weights; None for blends without weights. It holds only where the first array is true.
    """
    part = _hull(spans, added != 1).intersect(box)
    uneven, reached = np.zeros(part.shape, bool), np.zeros(part.shape, bool)
    # Not np.zeros, which is slower for sums: see engine/canvas.py.
    total = np.full(part.shape, 0.0) if output.weighted else None
    lost = np.full(part.shape, 0.0) if output.weighted and output.compensated else None
    # The tiles with weight where a tile has some that was not added once.
    meeting = []
    for along in spans:
        starts, stops = np.array(along).reshape(-1, 2).T
        low = np.searchsorted(stops, starts, side="right")
        meeting.append(Spans(low, np.maximum(low, np.searchsorted(starts, stops))))
    for place in map(tuple, np.argwhere(box_any(added != 1, meeting)).tolist()):
        near = [slice(int(m.low[i]), int(m.high[i])) for m, i in zip(meeting, place, strict=True)]
        others = _hull([s[n] for s, n in zip(spans, near, strict=True)], added[tuple(near)] != 1)
        support = Box.of([s[i] for s, i in zip(spans, place, strict=True)])
        common = support.intersect(part).intersect(others)
        if not common.size:
            continue
        at, count = common.shift([-a for a in part.start]).slices, int(added[place])
        here: Any = True
        if total is not None:
            position = tuple(a + i for (a, _), i in zip(ranges, place, strict=True))
            weights = _weights_at(output, position, support, common)
            here = weights > 0
            if count:
                weights = weights if count == 1 else count * weights
                plus((total[at], None if lost is None else lost[at]), weights, average=False)
        if count:
            reached[at] |= here
        if count != 1:
            uneven[at] |= here
    if total is not None and lost is not None:
        total += lost
    return part, uneven, reached, total


def _hull(spans: Sequence[Sequence[Span]], chosen: Bits) -> Box:
    """Return the box around the supports of the chosen tiles, of which there is one at least."""
    ends = []
    for d, along in enumerate(spans):
        on = np.flatnonzero(chosen.any(axis=tuple(a for a in range(chosen.ndim) if a != d)))
        ends.append((along[on[0]][0], along[on[-1]][1]))
    return Box.of(ends)


def _periodic_sum(
    output: BoundOutput,
    ranges: Sequence[Span],
    spans: Sequence[Sequence[Span]],
    box: Box,
    dtype: np.dtype[Any],
) -> tuple[Bits | None, Array]:
    """Return where the sum of the importance maps of all tiles is positive (None: everywhere), and the sum.

    The box is cut where supports begin. Between two cuts the sum depends only on how the tiles on it lie, so
    that it is computed once for all pieces that are alike: one for the inside of an image.
    """
    total, reached = np.empty(box.shape, dtype), None
    axes = [
        _pieces(weights, range(*r), along, a, b)
        for weights, r, along, a, b in zip(output.weights, ranges, spans, box.start, box.stop, strict=True)
    ]
    most = dtype.itemsize * math.prod(max((p.high - p.low for p in pieces), default=0) for pieces in axes)
    made: dict[Any, tuple[Bits | None, Array]] = output.held.setdefault(("sums", dtype), {})
    for chosen in itertools.product(*axes):
        key = tuple(piece.key for piece in chosen)
        if (found := made.get(key)) is None:
            sums = _sum_of_piece(output, chosen)
            positive = None if sums.min() > 0 else sums > 0
            if len(made) * most > SUMS:
                made.clear()
            found = made[key] = positive, sums.astype(dtype)
        at = tuple(slice(p.low - a, p.high - a) for p, a in zip(chosen, box.start, strict=True))
        total[at] = found[1]
        if found[0] is not None:
            reached = np.ones(box.shape, bool) if reached is None else reached
            reached[at] = found[0]
    return reached, total


def _sum_of_piece(output: BoundOutput, chosen: Sequence[_Piece]) -> Array:
    """Return the sum of the importance maps of all tiles over one piece per axis."""
    piece = Box.of([(p.low, p.high) for p in chosen])
    sums = np.full(piece.shape, 0.0)
    lost = np.full(piece.shape, 0.0) if output.compensated else None
    for position in itertools.product(*(p.tiles for p in chosen)):
        support = Box.of([w.support(i) for w, i in zip(output.weights, position, strict=True)])
        common = support.intersect(piece)
        inside = common.shift([-a for a in piece.start]).slices
        weights = _weights_at(output, position, support, common)
        plus((sums[inside], None if lost is None else lost[inside]), weights, average=False)
    return sums if lost is None else sums + lost


class _Piece(NamedTuple):
    """A part of an axis in which no support begins."""

    low: int
    """Its first sample."""
    high: int
    """One past its last sample."""
    tiles: range
    """The tiles that have weight in it."""
    key: Any
    """Equal for pieces on which tiles lie alike, so that the sums of their weights are the same."""


def _pieces(weights: AxisWeights, tiles: range, spans: Sequence[Span], start: int, stop: int) -> list[_Piece]:
    """Return the pieces of an axis between ``start`` and ``stop``, in ascending order."""
    cuts = sorted({start, stop, *(a for a, _ in spans if start < a < stop)})
    found, first, last = [], 0, 0
    for low, high in itertools.pairwise(cuts):
        while first < len(spans) and spans[first][1] <= low:
            first += 1
        last = max(first, last)
        while last < len(spans) and spans[last][0] < high:
            last += 1
        on = tiles[first:last]
        shapes = [
            (a - low, b - low, weights.in_window(i).start, *map(bool, weights.grid.borders(i)))
            for i, (a, b) in zip(on, spans[first:last], strict=True)
        ]
        found.append(_Piece(low, high, on, (high - low, *shapes)))
    return found


def _weights_at(output: BoundOutput, position: Index, support: Box, common: Box) -> Array:
    """Return the weights of the tile at ``position`` in ``common``, a part of its support."""
    n = output.n_each
    if output.importance is not None:
        weights, index = importance(output, position, common.start, common.shape)
        return weights[index][(None,) * n]
    product = np.ones((1,) * len(position))
    for d in range(n, len(position)):
        first = common.start[d] - support.start[d]
        profile = output.weights[d].weights(position[d])[first : first + common.shape[d]]
        product = product * profile.reshape((-1,) + (1,) * (len(position) - d - 1))
    return product


def _check_cover(covered: Bits | None, box: Box, reached: Bits) -> None:
    """Raise if an importance map leaves a sample of the block without weight although all tiles ran."""
    hole = np.argwhere(~reached if covered is None else ~reached & covered)
    if len(hole):
        where = tuple(int(a + x) for a, x in zip(box.start, hole[0], strict=True))
        raise GridError(
            "every sample needs a positive weight from some crop; the importance map gives none to sample "
            f"{where} of the result. Use more overlap, or a map that is positive there."
        )


def _covered(output: BoundOutput, box: Box) -> Bits | None:
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
