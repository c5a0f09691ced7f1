"""Where `check` looks: at cuts, at the border, anywhere, and at what is unusual in the image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilework._checks import brief, one_of, wholes
from tilework._types import Array, Index, Span
from tilework.diagnostics.viewing import View
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.tiles import Box
from tilework.source.base import BlockSource, Source

__all__ = ["PLACES", "Place", "around", "places_of"]

PLACES = ("corners", "borders", "random", "nonfinite", "extremes", "background")
UNUSUAL = PLACES[3:]
# Most places that are tried to find one where a tile ran.
TRIES = 20
# Most bytes of the image that are decoded to find unusual places, and the size of a part of a source without
# chunks, bytes.
LOOK, PART = 128 * 2**20, 2**18
# Most parts that are read for it: of an array in reach, of storage chunks, which may be far away, and of what
# has to be computed, dask blocks and results below.
PARTS, CHUNKS, COMPUTED = 256, 64, 16
# Most samples of a part that are counted to find the most frequent value, and the share of all from which a
# value is a background.
COUNTED, FREQUENT = 2**13, 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """A place to compare."""

    kind: str
    """One of `PLACES`, or "given"."""
    point: Index
    """Image samples of the tiled axes."""
    each: Index
    """Index along the ``each`` axes."""


def places_of(
    spec: Spec, sources: Sequence[Source], where: Any, number: int, shown: View, rng: np.random.Generator
) -> tuple[list[Place], bool]:
    """Return the places where a tile ran, and whether there was any other.

    Parameters
    ----------
    where : word, tuple of words, or tuple of points
        See `check`.
    number : int
        Number of places of each kind.
    """
    if not isinstance(where, str | list | tuple | AbstractSet):
        raise TypeError(f"where must be one of {', '.join(PLACES)}, or a tuple of them; got {brief(where)}.")
    grids = spec.plan.axes[spec.plan.n_each :]
    kinds = (where,) if isinstance(where, str) else tuple(where)
    unusual: dict[str, list[Place]] = {}
    if number and any(kind in UNUSUAL for kind in kinds if isinstance(kind, str)):
        unusual = _unusual(spec, sources, number, rng)
    found, tried = [], False
    for kind in kinds:
        for candidates in _candidates(spec, grids, kind, number, unusual, rng):
            tried = True
            place = next((p for p in candidates if _ran(spec, shown, p)), None)
            found += [] if place is None else [place]
    return found, tried


def _ran(spec: Spec, shown: View, place: Place) -> bool:
    """Return whether the tile that owns a place has a result."""
    full = (*place.each, *place.point)
    return shown.has_run(tuple(g.owner(p) for g, p in zip(spec.plan.axes, full, strict=True)))


def _candidates(
    spec: Spec,
    grids: Sequence[AxisGrid],
    kind: Any,
    number: int,
    unusual: dict[str, list[Place]],
    rng: np.random.Generator,
) -> Iterator[Iterator[Place]]:
    """Yield, for each wanted place of a kind, the places to try."""

    def anywhere() -> Index:
        return tuple(int(rng.integers(n)) for n in spec.plan.shape[: spec.plan.n_each])

    if not isinstance(kind, str):
        extents = tuple(g.extent for g in grids)
        given = wholes("where", kind)
        if len(given) != len(grids) or any(not 0 <= p < n for p, n in zip(given, extents, strict=True)):
            raise TilingError(f"a place needs one sample per tiled axis, inside {extents}; got {given}.")
        yield iter([Place("given", given, anywhere())])
    elif one_of("where", kind, PLACES) in UNUSUAL:
        # At the cut next to it, where tiles may disagree, and at the place itself; each in turn.
        for k, place in enumerate(unusual.get(kind, ())[:number]):
            at = (
                place.point
                if k % 2
                else [_nearest_cut(g, p) for g, p in zip(grids, place.point, strict=True)]
            )
            yield iter([Place(kind, _unmasked(spec, at), place.each)])
    else:
        for _ in range(number):
            yield (Place(kind, _unmasked(spec, _random(kind, grids, rng)), anywhere()) for _ in range(TRIES))


def _random(kind: str, grids: Sequence[AxisGrid], rng: np.random.Generator) -> list[int]:
    """Return a random place of one kind, image samples."""
    point = [int(rng.integers(g.covered)) for g in grids]
    if kind == "borders":
        chosen = rng.random(len(grids)) < 0.5
        chosen[rng.integers(len(grids))] = True
        ends = [int(rng.choice((0, g.covered - 1))) for g in grids]
        return [e if c else p for p, e, c in zip(point, ends, chosen, strict=True)]
    if kind == "corners":
        cuts = [g.core(int(rng.integers(1, len(g))))[0] if len(g) > 1 else None for g in grids]
        return [p if cut is None else cut for cut, p in zip(cuts, point, strict=True)]
    return point


def _nearest_cut(grid: AxisGrid, point: int) -> int:
    """Return the end of a core next to ``point``, image samples; ``point`` if there is a single core."""
    i = grid.owner(point)
    start, stop = grid.core(i)
    cuts = [start] * (i > 0) + [stop] * (i + 1 < len(grid))
    return min(cuts, key=lambda cut: abs(cut - point), default=point)


def _unmasked(spec: Spec, point: Sequence[int]) -> Index:
    """Return ``point``, or the middle of the nearest tile that runs if a mask leaves ``point`` out."""
    plan, mask = spec.plan, spec.plan.mask
    if mask is None:
        return tuple(point)
    tiled = range(plan.n_each, len(plan.axes))
    grids = plan.axes[plan.n_each :]
    at = [g.owner(p) for g, p in zip(grids, point, strict=True)]
    nearest = list(mask.nearest(at, tiled)[plan.n_each :])
    if nearest == at:
        return tuple(point)
    return tuple(sum(g.core(i)) // 2 for g, i in zip(grids, nearest, strict=True))


def around(spec: Spec, point: Sequence[int], sizes: Sequence[int], *, whole: bool = False) -> Box:
    """Return the window of ``sizes`` samples around a point: inside the image, on whole result samples.

    It lies in one core if tiles may not have run, unless ``whole``.
    """
    spans = []
    for g, p, size in zip(spec.plan.axes[spec.plan.n_each :], point, sizes, strict=True):
        low = min(max(0, p - size // 2), max(0, g.covered - size)) // g.quantum * g.quantum
        high = min(g.covered, ceil_div(low + size, g.quantum) * g.quantum)
        if not whole and (spec.plan.mask is not None or spec.skip is not None):
            # Only the tile that ran, because its neighbours may be the fill value.
            start, stop = g.core(g.owner(p))
            low, high = max(low, start), min(high, stop)
        spans.append((low, high))
    return Box.of(spans)


# -- unusual places ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """What was seen in some parts of a source; points are indices into the source."""

    nonfinite: list[Index] = field(default_factory=list)
    """One sample of each part that has NaN or an infinity."""
    low: tuple[Any, Index] | None = None
    """Smallest value, by modulus if complex, and where it is."""
    high: tuple[Any, Index] | None = None
    """Largest value, likewise."""
    counted: list[tuple[list[range], Array]] = field(default_factory=list)
    """Per part, the samples along each axis that were kept to be counted, and their values."""

    def add(self, box: Sequence[Span], part: Array) -> None:
        """Add a part of the source: the samples of ``box``."""
        origin = [a for a, _ in box]

        def at(flat: Any) -> Index:
            place = np.unravel_index(int(flat), part.shape)
            return tuple(int(p) + a for p, a in zip(place, origin, strict=True))

        values = np.abs(part) if part.dtype.kind == "c" else part
        if part.dtype.kind in "fc":
            odd = ~np.isfinite(values)
            if odd.any():
                self.nonfinite.append(at(odd.argmax()))
                values = np.where(odd, np.nanmedian(values[~odd]) if not odd.all() else 0, values)
        for end in (values.argmin(), values.argmax()):
            value, place = values.flat[end], at(end)
            if self.low is None or value < self.low[0]:
                self.low = value, place
            if self.high is None or value > self.high[0]:
                self.high = value, place
        step = max(1, math.ceil((part.size / COUNTED) ** (1 / max(1, part.ndim))))
        kept = part[(slice(None, None, step),) * part.ndim]
        self.counted.append(([range(a, b, step) for a, b in box], np.array(kept)))

    def background(self) -> list[Index]:
        """Return the middle of the flattest part of the most frequent value, and a sample where it ends."""
        values, counts = np.unique(np.concatenate([v.ravel() for _, v in self.counted]), return_counts=True)
        if counts.max() < max(2, FREQUENT * counts.sum()):
            return []
        most = values[counts.argmax()]
        # NaN, which fills the margins of many images, differs from itself.
        flat = [v == most if most == most else v != v for _, v in self.counted]
        shares = [float(f.mean()) for f in flat]
        found = []
        inner = int(np.argmax(shares))
        while (less := _eroded(flat[inner])).any():
            flat[inner] = less
        found.append(self._at(inner, flat[inner]))
        outer = int(np.argmin(np.abs(np.asarray(shares) - 0.5)))
        ends = self.counted[outer][1]
        ends = ends == most if most == most else ends != ends
        ends &= ~_eroded(ends)
        if ends.any():
            found.append(self._at(outer, ends))
        return found

    def _at(self, number: int, chosen: Array) -> Index:
        """Return the middle one of the chosen samples of a part."""
        places = np.argwhere(chosen)
        return tuple(
            r[int(i)] for r, i in zip(self.counted[number][0], places[len(places) // 2], strict=True)
        )


def _eroded(chosen: Array) -> Array:
    """Return the samples whose neighbours along all axes are chosen, too; none at the ends of an axis."""
    # An axis of one or two samples, such as channels, has no middle.
    long = [axis for axis, n in enumerate(chosen.shape) if n > 2]
    inner = chosen.copy() if long else np.zeros_like(chosen)
    for axis in long:
        moved, source = np.moveaxis(inner, axis, 0), np.moveaxis(chosen, axis, 0)
        moved[1:-1] &= source[:-2] & source[2:]
        moved[0] = moved[-1] = False
    return inner


def _unusual(
    spec: Spec, sources: Sequence[Source], number: int, rng: np.random.Generator
) -> dict[str, list[Place]]:
    """Return places at NaN and infinities, at the extremes, and at the most frequent value, by kind."""
    found: dict[str, list[Place]] = {kind: [] for kind in UNUSUAL}
    for source, axes in zip(sources, spec.source_axes, strict=False):
        if source.handle is None or source.dtype.kind not in "biufc" or not math.prod(source.shape):
            continue
        seen = _Seen()
        for box in _parts(source, LOOK // len(sources), rng):
            try:
                part = source.read(box)
            except TypeError:  # masked samples, which a mask of the result may leave out
                continue
            seen.add(box, np.asarray(part))
        if not seen.counted:
            continue
        odd = seen.nonfinite
        picked = [odd[int(i)] for i in rng.permutation(len(odd))[: ceil_div(number, 2)]]
        ends = (
            []
            if seen.low is None or seen.high is None or seen.low[0] == seen.high[0]
            else [seen.high, seen.low]
        )
        points = {
            "nonfinite": picked, "extremes": [place for _, place in ends], "background": seen.background(),
        }  # fmt: skip
        n = spec.plan.n_each
        for kind, own in points.items():
            # Each at the nearest cut first, then itself.
            for point in itertools.chain.from_iterable((p, p) for p in own):
                at = [point[a] for a in axes if a is not None]
                inside = [min(p, max(0, g.covered - 1)) for p, g in zip(at, spec.plan.axes, strict=True)]
                found[kind].append(Place(kind, tuple(inside[n:]), tuple(inside[:n])))
    return found


def _parts(source: Source, limit: int, rng: np.random.Generator) -> Iterator[list[Span]]:
    """Yield boxes of a source, whole storage chunks: all of it, or at random as many as ``limit`` allows.

    Parameters
    ----------
    limit : int, bytes
        What may be decoded.
    """
    edges = _edges(source)
    counts = [len(e) - 1 for e in edges]
    longest = math.prod(max(b - a for a, b in itertools.pairwise(e)) for e in edges) * source.dtype.itemsize
    computed = isinstance(source, BlockSource) or isinstance(source.handle, View)
    parts = COMPUTED if computed else PARTS if source.chunks is None else CHUNKS
    total, most = math.prod(counts), min(parts, limit // max(1, longest))
    # Random numbers may repeat, which a larger image makes rare.
    chosen = range(total) if total <= most else sorted({int(rng.integers(total)) for _ in range(most)})
    for number in chosen:
        index = [int(i) for i in np.unravel_index(number, counts)]
        yield [(e[i], e[i + 1]) for e, i in zip(edges, index, strict=True)]


def _edges(source: Source) -> list[list[int]]:
    """Return the ends of the parts of a source that are read at once, along each axis."""
    if isinstance(source, BlockSource):
        return [list(map(int, ends)) for ends in source.offsets]
    chunks = source.chunks
    if chunks is None:
        side = max(1, int((PART / source.dtype.itemsize) ** (1 / max(1, len(source.shape)))))
        chunks = (side,) * len(source.shape)
    return [[*range(0, n, c), n] for n, c in zip(source.shape, chunks, strict=True)]
