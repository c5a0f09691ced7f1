"""Adding results of tiles to canvases."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tilework._types import Array, Index, Span
from tilework.engine.canvas import Partial, add
from tilework.engine.products import AnyArray, Profile
from tilework.engine.spec import Spec
from tilework.function.bound import BoundOutput
from tilework.function.device_array import DeviceArray
from tilework.grid.tiles import Box
from tilework.labels.painting import Claims, Place, painted, trimmed
from tilework.plan.output_plan import SUMS

__all__ = ["Accumulator", "importance", "place_of"]


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
    """Adds the results of one owner's tiles to one canvas per output, whole or in parts.

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
        self._outputs, self._products = spec.outputs, spec.products
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

    Tiles that touch the same borders of the image get the same array, so that it is made ready once.
    """
    assert output.importance is not None
    n = output.n_each
    axes = list(zip(output.weights[n:], position[n:], strict=True))
    maps: dict[Any, Array] = output.held.setdefault("importance", {})
    if (weights := maps.get(rims := tuple(w.rims(i) for w, i in axes))) is None:
        weights = output.importance * output.factor
        for d, (w, i) in enumerate(axes):
            weights = w.fill_rim(i, weights, d)
        if (1 + len(maps)) * weights.nbytes > SUMS:
            maps.clear()
        maps[rims] = weights
    index = []
    for (w, i), a, size in zip(axes, start[n:], shape[n:], strict=True):
        first = w.in_window(i).start + a - w.support(i)[0]
        index.append(slice(first, first + size))
    return weights, tuple(index)
