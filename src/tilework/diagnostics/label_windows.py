"""Objects of a label result in windows, compared with those of the function with far more context.

The function is called on a window, and the objects that lie wholly inside its *trusted* part, the window
without one overlap at each side that is not the image's border, are compared as sets of samples::

    window   |<- overlap ->[------ trusted ------]<- overlap ->|
    object                      [=======]                         compared
    object                                    [=======]           may be cut: not compared

What to change is found by an experiment: the tiles around a wrong object are painted again from larger crops,
with the same cores, until the object is right. So the advice holds for any reason that context mends.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Index, Ints, Span
from tilework.diagnostics.causes import LARGEST, MOST_CALLS, Cause
from tilework.diagnostics.places import Place, around
from tilework.diagnostics.untiled import Untiled, Window
from tilework.diagnostics.viewing import View
from tilework.engine.accumulate import place_of
from tilework.errors import TilingWarning
from tilework.function.bound import BoundOutput
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Box
from tilework.labels import painting
from tilework.labels.matching import Matched, matched
from tilework.labels.owner import limit, needed
from tilework.labels.runs import Objects

__all__ = ["LabelFindings", "Look", "advice", "findings", "is_labels", "looks_at"]

JOINED = (
    'labels="join" needs an overlap as large as the function looks far, and makes one of objects that touch '
    'at a cut: labels="own" keeps them apart'
)
# Crops of a batch in which a window is called among others.
BATCH = 4


@dataclass(frozen=True, slots=True)
class LabelFindings:
    """What `check` found about the objects of one output of labels."""

    output: int | str | None
    """Key of the output; None if there is only one."""
    windows: int
    """Number of windows."""
    compared: int
    """Objects that lie wholly inside the trusted part of a window, and those that only the result has."""
    identical: int
    """Those that have the same samples in the result."""
    split: int
    """Those that are several objects in the result."""
    merged: int
    """Those that are one object with another one in the result."""
    missing: int
    """Those that the result does not have."""
    extra: int
    """Those that only the result has."""
    changed: int
    """Those that differ in some samples."""
    wide: int
    """Objects that are longer than a crop: the most in one window."""
    cut: int
    """Objects that leave the trusted part, and are not compared: the most in one window."""
    extent: tuple[int, ...]
    """The largest extent of a compared object per tiled axis, result samples."""
    limit: tuple[int, ...]
    """The largest extent that the overlap makes safe if the function labels samples by their values alone.
    Empty for ``labels="join"``."""
    safer: tuple[int, ...] = ()
    """The overlap that makes the largest extent safe; empty if it is."""

    @property
    def differing(self) -> int:
        """Number of compared objects that are not identical."""
        return self.compared - self.identical

    @property
    def share(self) -> float:
        """The share of identical objects among those that were compared; 0 if none was."""
        return self.identical / self.compared if self.compared else 0.0

    @property
    def ok(self) -> bool:
        """Whether objects were compared, and all of them are identical and none is longer than a crop."""
        return bool(self.compared) and not self.differing and not self.wide

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values."""
        which = "" if self.output is None else f" of output {self.output!r}"
        where = f"{self.windows} {'window' if self.windows == 1 else 'windows'}"
        if not self.compared:
            text = f"none was compared{which}: no object lies wholly inside {where}. "
            text += "Larger windows: size=, context=; other places: where="
            if self.cut:
                text = text.replace(". ", f"; {self.cut} leave one. ", 1)
            return [("objects", text)]
        kinds = ("split", "merged", "missing", "extra", "changed")
        wrong = [f"{n} {kind}" for kind in kinds if (n := getattr(self, kind))]
        said = f"{self.identical} of {self.compared} identical{which}, in {where}"
        safe = f"safe up to {self.limit}" if self.limit else "any are safe"
        safer = f", so overlap={_short(self.safer)} is better" if self.safer and not self.wide else ""
        return [
            ("objects", "; ".join((said, *wrong))),
            ("extents", f"{self.extent} samples at most; {safe}{safer}"),
        ]


@dataclass(slots=True)
class Look:
    """One output of labels in one window."""

    place: Place
    window: Window
    box: Box
    """The compared samples: image samples of the tiled axes."""
    trusted: tuple[Span, ...]
    """The trusted part, in samples of ``want``."""
    number: int
    """Number of the output."""
    key: int | str | None
    """Its key."""
    want: Array
    """The function's labels in ``box``, without ``each`` axes."""
    start: Index
    """The first sample of ``want`` in the result, likewise."""
    found: Matched

    @property
    def where(self) -> Index:
        """Index in the result of the first sample of the box of a wrong object."""
        boxes = [*(box for _, box in self.found.wrong[:1]), *([self.found.stray] if self.found.stray else [])]
        low = [a for a, _ in boxes[0]] if boxes else [0] * len(self.start)
        return (*self.place.each, *(a + s for a, s in zip(low, self.start, strict=True)))


def is_labels(output: BoundOutput) -> bool:
    """Return whether an output is labels, whose objects are compared."""
    return output.kind == "own" or output.connectivity > 0


# -- windows ----------------------------------------------------------------------------------------------


def looks_at(
    untiled: Untiled, views: Mapping[Any, View], places: Sequence[Place], size: int
) -> Iterator[Look]:
    """Yield every output of labels among ``views`` in a window around each place.

    A place that an earlier window shows is left out: where the image is small, one window is all of it.
    """
    seen: list[tuple[Index, list[Span]]] = []
    known: dict[Any, _Known] = {key: _Known(untiled, shown) for key, shown in views.items()}
    for place in places:
        if any(each == place.each and _inside(place.point, spans) for each, spans in seen):
            continue
        window = _window(untiled, place, size)
        valid = window.valid
        columns = zip(valid.start, valid.stop, untiled.grids, strict=True)
        box = Box.of((max(0, a), min(b, g.covered)) for a, b, g in columns)
        safe = _trusted(untiled, box)
        seen.append((place.each, safe))
        results = window.results(box)
        for key, shown in views.items():
            if is_labels(untiled.spec.outputs[shown.number]):
                yield _look(untiled, known[key], key, place, window, box, safe, results[shown.number])


def _inside(point: Sequence[int], spans: Sequence[Span]) -> bool:
    return all(a <= p < b for p, (a, b) in zip(point, spans, strict=True))


def _window(untiled: Untiled, place: Place, size: int) -> Window:
    """Return the window around a place: of a crop and its context, or of less if that is large."""
    grids = untiled.grids
    spans: list[Span] = []
    for lengths in ([max(size, g.crop) for g in grids], [size] * len(grids)):
        spans = untiled.spans(around(untiled.spec, place.point, lengths, whole=True))
        if math.prod(b - a for a, b in spans) <= LARGEST:
            break
    return Window(untiled, spans, place.each)


def _trusted(untiled: Untiled, box: Box) -> list[Span]:
    """Return the trusted part of a window, image samples."""
    safe = []
    for g, a, b, context in zip(untiled.grids, box.start, box.stop, untiled.context, strict=True):
        inset = ceil_div(max(1, min(g.overlap, context)), g.quantum) * g.quantum
        safe.append((a + inset if a > 0 else a, b - inset if b < g.covered else b))
    return safe


def _look(
    untiled: Untiled, known: _Known, key: int | str | None, place: Place, window: Window, box: Box,
    safe: Sequence[Span], result: Array,
) -> Look:  # fmt: skip
    shown = known.shown
    output = untiled.spec.outputs[shown.number]
    n = output.n_each
    columns = zip(output.weights[n:], box.start, box.stop, strict=True)
    spans = [(i, i + 1) for i in place.each] + [(w.scaled(a), w.scaled(b)) for w, a, b in columns]
    index = output.place(Box.of(spans))
    with warnings.catch_warnings():
        # The report says it, of all windows.
        warnings.filterwarnings("ignore", "labels (may )?differ", TilingWarning)
        got = np.asarray(shown[index])
    want = result.reshape(result.shape[n:])
    start = tuple(s.start or 0 for s in index[n:])
    trusted: list[Span] = [(0, length) for length in want.shape]
    longest = list(want.shape)
    for axis, w, (a, b) in zip(output.reduced_axes, output.weights[n:], safe, strict=True):
        first = start[axis]
        trusted[axis] = w.scaled(a) - first, w.scaled(b) - first
        longest[axis] = w.scaled(w.grid.crop - sum(w.grid.margin))
    counted = partial(known.theirs, start=start, place=place)
    new = partial(known.ours, place=place)
    got = got.reshape(want.shape)
    if output.connectivity:
        got = _joined(got, _tiles_of(output, start, want.shape), output.connectivity)
    wide = None if output.connectivity else longest
    found = matched(got, want, trusted, wide, counted, new)
    return Look(place, window, box, tuple(trusted), shown.number, key, want, start, found)


def _tiles_of(output: BoundOutput, start: Index, shape: Index) -> list[Ints]:
    """Return the position of the tile that owns each sample of a window, along each of its axes."""
    found = [np.zeros(n, np.int64) for n in shape]
    for axis, w in zip(output.reduced_axes, output.weights[output.n_each :], strict=True):
        cuts = [w.scaled(int(c)) for c in w.grid.supports(None)[0][1:]]
        found[axis] = np.searchsorted(cuts, np.arange(shape[axis]) + start[axis], side="right")
    return found


def _joined(pieces: Array, tiles: Sequence[Ints], connectivity: int) -> Array:
    """Return the objects of pieces of tiles, joined as `to_zarr` joins them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, numbers = np.unique(pieces, return_inverse=True)
    numbers = numbers.reshape(pieces.shape)
    edges = [np.zeros((2, 0), np.int64)]
    for step in itertools.product((-1, 0, 1), repeat=pieces.ndim):
        if not 0 < sum(map(abs, step)) <= connectivity or step < (0,) * pieces.ndim:
            continue
        one = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(step, pieces.shape, strict=True))
        two = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(step, pieces.shape, strict=True))
        across = np.zeros((1,) * pieces.ndim, bool)
        for axis, own in enumerate(tiles):
            lengths = [-1 if a == axis else 1 for a in range(pieces.ndim)]
            across = across | (own[one[axis]] != own[two[axis]]).reshape(lengths)
        met = across & (pieces[one] != 0) & (pieces[two] != 0)
        edges.append(np.stack((numbers[one][met], numbers[two][met])))
    a, b = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(ids), len(ids)))
    # The smallest id stands for an object, because objects of the result are known by their ids.
    component = connected_components(graph, directed=False)[1]
    first = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(first, component, ids.astype(np.int64))
    return np.asarray(first[component][numbers])


class _Known:
    """The objects of one output that earlier windows have shown, so that each is counted once."""

    def __init__(self, untiled: Untiled, shown: View) -> None:
        self.untiled, self.shown = untiled, shown
        self.output = untiled.spec.outputs[shown.number]
        self._theirs: set[Any] = set()
        self._ours: set[Any] = set()

    def theirs(self, objects: Objects, chosen: Bits, *, start: Index, place: Place) -> Bits:
        """Return which wanted objects are new, and have an owner that has a result."""
        low, high = objects.low + np.array(start), objects.high + np.array(start)
        rows = np.concatenate((low, high, objects.area[:, None]), axis=1).tolist()
        for k in np.flatnonzero(chosen).tolist():
            # Two objects with one box, in a ring for example, hardly have as many samples.
            row = (place.each, *rows[k])
            chosen[k] = row not in self._theirs
            self._theirs.add(row)
        spec = self.untiled.spec
        if spec.plan.runs is None and spec.skip is None and spec.validity is None:
            return chosen
        lead = tuple(g.owner(i) for g, i in zip(spec.plan.axes, place.each, strict=False))
        weights = self.output.weights[self.output.n_each :]
        for k in np.flatnonzero(chosen).tolist():
            twice = [int(low[k, a] + high[k, a]) - 1 for a in self.output.reduced_axes]
            owner = (w.grid.owner(_image_sample(t, w.scale)) for t, w in zip(twice, weights, strict=True))
            chosen[k] = self.shown.has_run((*lead, *owner))
        return chosen

    def ours(self, objects: Objects, chosen: Bits, *, place: Place) -> Bits:
        """Return which objects of the result are new."""
        for k in np.flatnonzero(chosen).tolist():
            row = (place.each, int(objects.ids[k]))
            chosen[k] = row not in self._ours
            self._ours.add(row)
        return chosen


def _image_sample(twice: int, scale: Any) -> int:
    """Return the image sample at half of ``twice``, result samples."""
    return int(twice * scale.denominator // (2 * scale.numerator))


# -- findings and advice ----------------------------------------------------------------------------------


def findings(untiled: Untiled, looks: Sequence[Look]) -> LabelFindings:
    """Return what was found about one output, given its windows."""
    output = untiled.spec.outputs[looks[0].number]
    total = Matched.joined(look.found for look in looks)
    axes = list(output.reduced_axes)
    safe = [limit(w.scaled(w.grid.overlap - max(w.grid.margin))) for w in output.weights[output.n_each :]]
    extent = tuple(total.extent[a] for a in axes) if total.extent else (0,) * len(axes)
    if output.connectivity:  # of any size
        safe, more = [], []
    else:
        more = more_overlap(untiled, output, extent)
    safer = [g.overlap + k for g, k in zip(untiled.grids, more, strict=False)] if any(more) else []
    return LabelFindings(
        looks[0].key, len(looks), total.compared, total.identical, total.split, total.merged, total.missing,
        total.extra, total.changed, total.wide, total.cut, extent, tuple(safe), tuple(safer),
    )  # fmt: skip


def advice(untiled: Untiled, looks: Sequence[Look], found: LabelFindings, *, given: bool) -> list[Cause]:
    """Return why the objects of one output differ; nothing if they do not."""
    if not (found.differing or found.wide):
        return []
    wrong = [look for look in looks if look.found.differing or look.found.wide]
    look = max(wrong, key=lambda one: one.found.differing)
    if (cause := _unsteady(untiled, look)) is not None:
        return [cause]
    if untiled.spec.outputs[look.number].connectivity:
        return [Cause("overlap", JOINED)]
    if found.wide:
        many = f"{found.wide} object is" if found.wide == 1 else f"{found.wide} objects are"
        text = (
            f"{many} longer than the crop, so that no tile sees {'it' if found.wide == 1 else 'them'} whole: "
            'use a larger crop, or labels="join" for connected components'
        )
        return [Cause("large", text)]
    return [_Tries(untiled, wrong, found).cause(given=given)]


def _unsteady(untiled: Untiled, look: Look) -> Cause | None:
    """Return the cause if the function has other objects in the same window, called again or in a batch."""
    whole: list[Span] = [(0, n) for n in look.want.shape]

    def differs(results: Sequence[Array]) -> bool:
        return bool(matched(results[look.number].reshape(look.want.shape), look.want, whole).differing)

    with contextlib.suppress(Exception):
        if differs(look.window.results(look.box, look.window.crops)):
            return Cause("random", "the function finds other objects when it is called again: give it a seed")
        if untiled.batched and differs(look.window.among(look.box, BATCH, BATCH // 2)):
            return Cause("batch", "the objects of a crop depend on the other crops of its batch")
    return None


def more_overlap(untiled: Untiled, output: BoundOutput, extent: Sequence[int]) -> list[int]:
    """Return how much more overlap objects of ``extent`` need, image samples per tiled axis."""
    found = []
    for e, w, g in zip(extent, output.weights[output.n_each :], untiled.grids, strict=True):
        more = max(0, needed(e) - w.scaled(g.overlap - max(g.margin))) * w.scale.denominator
        unit = math.lcm(g.multiple, g.quantum)
        found.append(ceil_div(ceil_div(more, w.scale.numerator), unit) * unit)
    return found


class _Stop(Exception):
    """The search took too many calls, or the function refuses a crop."""


class _Tries:
    """Tiles around wrong objects, painted from larger crops."""

    def __init__(self, untiled: Untiled, looks: Sequence[Look], found: LabelFindings) -> None:
        self.untiled, self.found = untiled, found
        self.output = untiled.spec.outputs[looks[0].number]
        self.weights = self.output.weights[self.output.n_each :]
        self.units = [math.lcm(g.multiple, g.quantum) for g in untiled.grids]
        boxes = [(look, *one) for look in looks for one in look.found.wrong]
        boxes.sort(key=lambda one: -max(b - a for a, b in one[2]))
        self.objects = [boxes[k] for k in sorted({0, len(boxes) // 2, len(boxes) - 1})] if boxes else []
        self.base = more_overlap(untiled, self.output, found.extent)
        self._painted: dict[Any, tuple[Array, painting.Place]] = {}
        self._last = untiled.calls + MOST_CALLS

    def cause(self, *, given: bool) -> Cause:
        """Return the cause."""
        steps, complete = None, False
        with contextlib.suppress(_Stop):
            if given and self._all_right([0] * len(self.units)):
                what = "the function or image that was given has other objects than what was tiled"
                return Cause("other", what)
            steps = self._steps()
            complete = True
        found, grids = self.found, self.untiled.grids
        seen = f"the longest compared object has {found.extent} samples, where this overlap is safe up to "
        seen += f"{found.limit}"
        if steps is not None:
            numbers = [g.overlap + k for g, k in zip(grids, steps, strict=True)]
            why = seen if any(self.base) else "the function looks further than the objects are long"
            text = f"more overlap: {why}; overlap={_short(numbers)} is enough at these places"
            if any(2 * n >= g.crop for n, g in zip(numbers, grids, strict=True)):
                text += f", with a crop longer than {2 * max(numbers)}"
            return Cause("overlap", text, tuple(numbers))
        if any(self.base) or not complete:
            numbers = [g.overlap + k for g, k in zip(grids, self.base, strict=True)]
            text = f"more overlap: {seen}; it needs overlap={_short(numbers)} at least"
            return Cause("overlap", text, tuple(numbers))
        if self._sticks_out():
            text = 'edge="pad" invents what the function sees beyond the border; another edge does not'
            return Cause("border", text)
        return Cause(
            "global",
            "no overlap up to the crop is enough: objects depend on the whole crop, as with a threshold or a "
            "normalisation of each crop; compute it once for the image and give it to the function",
        )

    def _all_right(self, steps: Sequence[int]) -> bool:
        return bool(self.objects) and all(self._is_right(*one, steps) for one in self.objects)

    def _steps(self) -> list[int] | None:
        """Return the additional overlap per axis that makes the objects right; None if none does."""
        base = self.base

        def right(times: int) -> bool:
            return self._all_right([b + times * u for b, u in zip(base, self.units, strict=True)])

        most = max(ceil_div(g.crop, u) for g, u in zip(self.untiled.grids, self.units, strict=True))
        bad, good = (-1, 0) if any(base) else (0, 1)
        while not right(good):
            bad, good = good, max(1, 2 * good)
            if good > most:
                return None
        with contextlib.suppress(_Stop):
            while good - bad > 1:
                middle = (good + bad) // 2
                bad, good = (bad, middle) if right(middle) else (middle, good)
        return [b + good * u for b, u in zip(base, self.units, strict=True)]

    def _is_right(self, look: Look, number: int, box: Sequence[Span], steps: Sequence[int]) -> bool:
        """Return whether an object of a window, with its box there, is right with ``steps`` more overlap."""
        # One sample more tells whether the object goes on.
        wide = [(max(0, a - 1), min(n, b + 1)) for (a, b), n in zip(box, look.want.shape, strict=True)]
        mask = look.want[tuple(slice(*span) for span in wide)] == number
        spans = [(a + s, b + s) for (a, b), s in zip(wide, look.start, strict=True)]
        canvas = np.full(mask.shape, painting.NOTHING)
        for position in self._tiles(spans, steps):
            values, place = self._paint(look, position, steps)
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(spans, place.crop, strict=True)]
            if all(a < b for a, b in common):
                part = canvas[_within(common, spans)]
                painting.combined(part, values[_within(common, place.crop)].copy())
        got = painting.shown(canvas, 0)[0]
        found = np.unique(got[mask])
        return bool(len(found) == 1 and found[0] and np.count_nonzero(got == found[0]) == mask.sum())

    def _tiles(self, spans: Sequence[Span], steps: Sequence[int]) -> Iterator[Index]:
        """Yield the tiles whose larger crops meet a box, result samples."""
        ranges = []
        for axis, w, step in zip(self.output.axes, self.weights, steps, strict=True):
            scale = w.scale
            low, high = (
                x * scale.denominator // scale.numerator for x in (spans[axis][0], spans[axis][1] - 1)
            )
            ranges.append(w.grid.touching(max(0, low - step), min(w.grid.covered, high + 1 + step)))
        return itertools.product(*ranges)

    def _paint(self, look: Look, position: Index, steps: Sequence[int]) -> tuple[Array, painting.Place]:
        """Return what a tile paints with a larger crop, and where."""
        key = (look.place.each, position, tuple(steps))
        if key not in self._painted:
            if self.untiled.calls >= self._last:
                raise _Stop
            spans = []
            for g, i, step in zip(self.untiled.grids, position, steps, strict=True):
                low, high = g.read(i)
                first, end = -g.padding[0] - g.margin[0], g.extent + g.padding[1] + g.margin[1]
                spans.append((min(low, max(first, low - step)), max(high, min(end, high + step))))
            window = Window(self.untiled, spans, look.place.each)
            try:
                valid = window.valid
                result = window.results(valid)[look.number]
            except Exception as error:
                raise _Stop from error
            result = result.reshape(result.shape[self.output.n_each :])
            place = place_of(self.output, (*(0,) * self.output.n_each, *position))
            crop = list(place.crop)
            for axis, w, a, b in zip(self.output.axes, self.weights, valid.start, valid.stop, strict=True):
                crop[axis] = w.scaled(a), w.scaled(b)
            place = painting.Place(tuple(crop), place.core, place.extents, place.tiled)
            self._painted[key] = painting.painted(result, place)[0], place
        return self._painted[key]

    def _sticks_out(self) -> bool:
        """Return whether an owner of a wrong object sees samples beyond the image's border."""
        for look, _, box in self.objects:
            for axis, w in zip(self.output.axes, self.weights, strict=True):
                twice = sum(box[axis]) - 1 + 2 * look.start[axis]
                low, high = w.grid.read(w.grid.owner(_image_sample(twice, w.scale)))
                if low < -w.grid.margin[0] or high > w.grid.extent + w.grid.margin[1]:
                    return True
        return False


def _within(spans: Sequence[Span], outer: Sequence[Span]) -> tuple[slice, ...]:
    """Return a box as an index into an array over a larger one."""
    return tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(spans, outer, strict=True))


def _short(numbers: Sequence[int]) -> str:
    return str(numbers[0] if len(set(numbers)) == 1 else tuple(numbers))
