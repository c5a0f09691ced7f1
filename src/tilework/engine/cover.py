"""The parts of a block that the tiles that ran cover, and the sums of their weights.

Where all tiles ran once, windows sum to 1. Elsewhere their products are summed along one axis after the
other (`_products_added`). Importance maps are no products: they are summed once for each kind of piece, by
how the tiles on it lie and which of them ran (`_sums_of_pieces`). Where few pieces are alike, they are summed
tile by tile (`_uneven_maps`), which takes the same additions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tilework._types import Array, Bits, Index, Ints, Span
from tilework.engine.accumulate import importance
from tilework.engine.products import Products, rows_of
from tilework.engine.spec import Spec
from tilework.engine.sums import plus
from tilework.errors import GridError
from tilework.function.bound import BoundOutput
from tilework.grid.tiles import Box
from tilework.grid.weights import AxisWeights
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.plan.output_plan import SUMS

__all__ = ["cover", "touching"]

# What a call of numpy for a sum of weights takes, in samples that could be added in that time.
CALL = 2**12
# Most tiles on a piece of which any may be left out, and kinds of pieces soon known: 2**8 inside an image.
FEW = 8


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
    spans = [Spans(*w.supports(range(*r))) for w, r in zip(output.weights, ranges, strict=True)]
    if output.importance is not None:
        reached, whole, done = _sums_of_pieces(output, ranges, spans, box, dtype, added)
        if added is None and reached is not None:
            _check_cover(covered, box, reached)
        if done:
            return reached, whole
    else:
        # Where all tiles ran once, a separable sum is 1: leaving it out keeps the unmasked result's bits.
        reached, whole = covered, np.ones(box.shape, dtype) if output.weighted else np.empty(0)
    assert added is not None
    reached = np.ones(box.shape, bool) if reached is None else reached
    for part in _islands(spans, added != 1):
        part = part.intersect(box)
        if not part.size:
            continue
        # A block of a long axis has as many islands as tiles, so each looks at its own tiles alone.
        near = [_meeting(along, a, b) for along, a, b in zip(spans, part.start, part.stop, strict=True)]
        tiles = [range(*r)[n] for r, n in zip(ranges, near, strict=True)]
        here, counts = _parts(spans, near), added[(*near,)]
        if output.importance is None:
            uneven, touched, sums = _uneven_products(output, spec.products, tiles, here, part, counts)
        else:
            uneven, touched, sums = _uneven_maps(output, tiles, here, part, counts)
        inside = part.shift([-a for a in box.start]).slices
        np.copyto(reached[inside], touched, where=uneven)
        if sums is not None:
            np.copyto(whole[inside], sums, where=uneven)
    return reached, whole if output.weighted else None


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


def _meeting(spans: Spans, start: int, stop: int) -> slice:
    """Return which of the supports along an axis have samples between ``start`` and ``stop``.

    `AxisWeights.touching` tells it of tiles whose supports are not known yet, one by one, which takes longer.
    """
    first = np.searchsorted(spans.high, start, side="right")
    return slice(int(first), int(np.searchsorted(spans.low, stop)))


def _parts(spans: Sequence[Spans], chosen: Sequence[slice]) -> list[Spans]:
    """Return the supports of chosen tiles per axis."""
    return [Spans(along.low[tiles], along.high[tiles]) for along, tiles in zip(spans, chosen, strict=True)]


def _islands(spans: Sequence[Spans], chosen: Bits, first: Index = ()) -> Iterator[Box]:
    """Yield boxes around the supports of the chosen tiles that lie apart along some axis.

    Parameters
    ----------
    spans : Spans per axis
        The supports of all tiles.
    chosen : array of bool
        Whether each tile of a part of the grid is chosen.
    first : tuple of int, optional
        The first tile of this part.
    """
    first, ends = first or (0,) * chosen.ndim, []
    for d, (along, begin) in enumerate(zip(spans, first, strict=True)):
        on = np.flatnonzero(chosen.any(axis=tuple(a for a in range(chosen.ndim) if a != d)))
        if not len(on):
            return
        starts, stops = along.low[on + begin], along.high[on + begin]
        gaps = 1 + np.flatnonzero(stops[:-1] <= starts[1:])
        if len(gaps):
            for few in np.split(on, gaps):
                at = (slice(None),) * d + (slice(few[0], few[-1] + 1),)
                yield from _islands(spans, chosen[at], (*first[:d], begin + int(few[0]), *first[d + 1 :]))
            return
        ends.append((int(starts[0]), int(stops[-1])))
    yield Box.of(ends)


def _uneven_products(
    output: BoundOutput,
    products: Products,
    tiles: Sequence[range],
    spans: Sequence[Spans],
    part: Box,
    added: Ints,
) -> tuple[Bits, Bits, Array | None]:
    """Return, for a part of a block in which some tiles were not added once, the sums of products of weights.

    They are taken along one axis after the other. So a sample takes an addition for each tile on it along an
    axis, and not for each tile on it.

    Returns
    -------
    bool array
        Where such a tile has weight.
    bool array
        Where a tile that was added has weight.
    float array or None
        The sum of weights; None for blends without weights. It holds only where the first array is true.
    """
    weights: list[list[tuple[slice, Array]]] = []
    columns = zip(output.weights, tiles, spans, part.start, part.stop, strict=True)
    for axis, numbers, along, a, b in columns:
        column = []
        for i, (start, stop) in zip(numbers, along.pairs(), strict=True):
            low, high = max(start, a), min(stop, b)
            own, within = np.ones(stop - start), slice(low - start, high - start)
            if output.weighted and len(weights) >= output.n_each:
                own, within = products.profile(axis, i, within)
            column.append((slice(low - a, high - a), own[within]))
        weights.append(column)
    bits = [[(at, w > 0) for at, w in column] for column in weights]
    uneven = _products_added(added != 1, bits, part.shape)
    if not output.weighted:
        return uneven, _products_added(added > 0, bits, part.shape), None
    sums = _products_added(added.astype(float), weights, part.shape, compensated=output.compensated)
    return uneven, sums > 0, sums


def _products_added(
    counts: Array,
    weights: Sequence[Sequence[tuple[slice, Array]]],
    shape: Index,
    *,
    compensated: bool = False,
) -> Array:
    """Return the sum, over all tiles, of a number of each times the outer product of its weights.

    Of bits, it is where any tile of those that are true has weight. The first axis, along which memory is
    far apart, comes last.

    Parameters
    ----------
    counts : array
        The number of each tile.
    weights : per axis and tile, a slice and an array
        The samples in which the tile has weight, and its weights there.
    shape : tuple of int
        Number of samples along each axis.
    compensated : bool
        Whether the error of each addition is added at the end.
    """
    values = counts
    for d in reversed(range(len(shape))):
        # Not np.zeros, which is slower for sums: see engine/canvas.py.
        sums = np.full((*values.shape[:d], shape[d], *values.shape[d + 1 :]), 0, counts.dtype)
        lost = np.full(sums.shape, 0, counts.dtype) if compensated else None
        lead, ones = (slice(None),) * d, (1,) * (len(shape) - d - 1)
        for i, (at, own) in enumerate(weights[d]):
            column, own = values[(*lead, slice(i, i + 1))], own.reshape(-1, *ones)
            if not column.any():
                continue
            here = sums[(*lead, at)]
            for rows in rows_of(here.shape, 0):
                more = column[rows] * own if d else column * own[rows]
                error = None if lost is None else lost[(*lead, at)][rows]
                plus((here[rows], error), more, average=False)
        values = sums if lost is None else sums + lost
    return values


def _uneven_maps(
    output: BoundOutput, tiles: Sequence[range], spans: Sequence[Spans], part: Box, added: Ints
) -> tuple[Bits, Bits, Array]:
    """Return what `_uneven_products` does, of the sums of importance maps."""
    uneven, reached = np.zeros(part.shape, bool), np.zeros(part.shape, bool)
    # Not np.zeros, which is slower for sums: see engine/canvas.py.
    total = np.full(part.shape, 0.0)
    lost = np.full(part.shape, 0.0) if output.compensated else None
    meeting = _neighbours(spans)
    for place in map(tuple, np.argwhere(box_any(added != 1, meeting)).tolist()):
        near = [slice(int(m.low[i]), int(m.high[i])) for m, i in zip(meeting, place, strict=True)]
        others = _hull(_parts(spans, near), added[(*near,)] != 1)
        support = Box.of([(int(s.low[i]), int(s.high[i])) for s, i in zip(spans, place, strict=True)])
        common = support.intersect(part).intersect(others)
        if not common.size:
            continue
        at, count = common.shift([-a for a in part.start]).slices, int(added[place])
        position = tuple(r[i] for r, i in zip(tiles, place, strict=True))
        weights = _map_at(output, position, common)
        here = weights > 0
        if count:
            weights = weights if count == 1 else count * weights
            plus((total[at], None if lost is None else lost[at]), weights, average=False)
            reached[at] |= here
        if count != 1:
            uneven[at] |= here
    return uneven, reached, total if lost is None else total + lost


def _neighbours(spans: Sequence[Spans]) -> list[Spans]:
    """Return, per axis, for each support the first and one past the last that meet it."""
    found = []
    for starts, stops in spans:
        low = np.searchsorted(stops, starts, side="right")
        found.append(Spans(low, np.maximum(low, np.searchsorted(starts, stops))))
    return found


def _hull(spans: Sequence[Spans], chosen: Bits) -> Box:
    """Return the box around the supports of the chosen tiles, of which there is one at least."""
    ends = []
    for d, along in enumerate(spans):
        on = np.flatnonzero(chosen.any(axis=tuple(a for a in range(chosen.ndim) if a != d)))
        ends.append((int(along.low[on[0]]), int(along.high[on[-1]])))
    return Box.of(ends)


def _sums_of_pieces(
    output: BoundOutput,
    ranges: Sequence[Span],
    spans: Sequence[Spans],
    box: Box,
    dtype: np.dtype[Any],
    added: Ints | None,
) -> tuple[Bits | None, Array, bool]:
    """Return where the sum of importance maps is positive (None: everywhere), the sum, and if it is whole.

    The box is cut where supports begin. Between two cuts the sum depends only on how the tiles on it lie, and
    how often each was added, so that it is computed once for all pieces that are alike: mostly one for the
    inside of an image, and a few for the neighbourhood of a tile that was left out.

    If that takes longer than tile by tile, the sum is that of all tiles once.
    """
    total, reached = np.empty(box.shape, dtype), None
    axes = [
        _pieces(weights, range(*r), along.pairs(), a, b)
        for weights, r, along, a, b in zip(output.weights, ranges, spans, box.start, box.stop, strict=True)
    ]
    most = dtype.itemsize * math.prod(max((p.high - p.low for p in pieces), default=0) for pieces in axes)
    made: dict[Any, tuple[Bits | None, Array]] = output.held.setdefault(("sums", dtype), {})
    kinds = {} if added is None else _kinds(ranges, axes, added)
    new = len({kind for kind in kinds.values() if kind not in made})
    done = added is None or _most_on(axes) <= FEW or new * _work(axes) <= _work_apart(spans, added)
    for numbers in itertools.product(*(range(len(pieces)) for pieces in axes)):
        chosen = [pieces[k] for pieces, k in zip(axes, numbers, strict=True)]
        key, counts = (kinds.get(numbers) if done else None) or (tuple(p.key for p in chosen), None)
        if (found := made.get((key, counts))) is None:
            sums = _sum_of_piece(output, chosen, counts)
            positive = None if sums.min() > 0 else sums > 0
            if len(made) * most > SUMS:
                made.clear()
            found = made[key, counts] = positive, sums.astype(dtype)
        at = tuple(slice(p.low - a, p.high - a) for p, a in zip(chosen, box.start, strict=True))
        total[at] = found[1]
        if found[0] is not None:
            reached = np.ones(box.shape, bool) if reached is None else reached
            reached[at] = found[0]
    return reached, total, done


def _kinds(
    ranges: Sequence[Span], axes: Sequence[Sequence[_Piece]], added: Ints
) -> dict[Index, tuple[Any, bytes]]:
    """Return the kinds of pieces with tiles that were not added once, by their number along each axis."""
    near = []
    for pieces, (first, _) in zip(axes, ranges, strict=True):
        ends = np.array([(p.tiles.start, p.tiles.stop) for p in pieces]).reshape(-1, 2) - first
        near.append(Spans(*ends.T))
    found = {}
    for numbers in map(tuple, np.argwhere(box_any(added != 1, near)).tolist()):
        on = [slice(int(n.low[k]), int(n.high[k])) for n, k in zip(near, numbers, strict=True)]
        key = tuple(pieces[k].key for pieces, k in zip(axes, numbers, strict=True))
        found[numbers] = key, added[tuple(on)].tobytes()
    return found


def _most_on(axes: Sequence[Sequence[_Piece]]) -> int:
    """Return the largest number of tiles on one piece."""
    return math.prod(max((len(p.tiles) for p in pieces), default=0) for pieces in axes)


def _work(axes: Sequence[Sequence[_Piece]]) -> int:
    """Return what the sum over one piece takes, in samples that are added."""
    piece = math.prod(max((p.high - p.low for p in pieces), default=0) for pieces in axes)
    return _most_on(axes) * (CALL + piece)


def _work_apart(spans: Sequence[Spans], added: Ints) -> int:
    """Return what `_uneven_maps` takes, in samples that are added."""
    tiles = np.count_nonzero(box_any(added != 1, _neighbours(spans)) & (added != 0))
    return int(tiles) * (CALL + math.prod(int(along.lengths.max(initial=0)) for along in spans))


def _sum_of_piece(output: BoundOutput, chosen: Sequence[_Piece], counts: bytes | None) -> Array:
    """Return the sum of the importance maps of all tiles over one piece per axis.

    Parameters
    ----------
    counts : bytes of int64, or None
        How often each tile was added; None: once.
    """
    piece = Box.of([(p.low, p.high) for p in chosen])
    sums = np.full(piece.shape, 0.0)
    lost = np.full(piece.shape, 0.0) if output.compensated else None
    positions = itertools.product(*(p.tiles for p in chosen))
    times = itertools.repeat(1) if counts is None else np.frombuffer(counts, np.int64).tolist()
    for position, count in zip(positions, times, strict=False):
        if not count:
            continue
        support = Box.of([w.support(i) for w, i in zip(output.weights, position, strict=True)])
        common = support.intersect(piece)
        inside = common.shift([-a for a in piece.start]).slices
        weights = _map_at(output, position, common)
        weights = weights if count == 1 else count * weights
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
            (a - low, b - low, weights.in_window(i).start, *weights.rims(i))
            for i, (a, b) in zip(on, spans[first:last], strict=True)
        ]
        found.append(_Piece(low, high, on, (high - low, *shapes)))
    return found


def _map_at(output: BoundOutput, position: Index, common: Box) -> Array:
    """Return the importance map of the tile at ``position`` in ``common``, a part of its support."""
    weights, index = importance(output, position, common.start, common.shape)
    return weights[index][(None,) * output.n_each]


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
