"""Why a tiled result differs from the untiled function at a place: found out by calling the function.

The window of the function around the sample that differs most is called again, changed in one respect at a
time. What changes the sample is a cause, and nothing else is:

1. Nothing: a function that is not deterministic.
2. The other crops of a batch: a function that mixes them.
3. The content outside what the tile read, at equal length and start: too little overlap. How near content
   must be to matter is found by bisection. If it still matters at the end of a window four times as large,
   no overlap is enough.
4. The start, by the phase of the tile's start: a multiple.
5. The length, at equal content and phase: a function of the size of its crop.

A cause that a place cannot show (a window that the image's border cuts, a function that refuses other
lengths) is not named there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tilework._types import Array, Floats, Index, Span
from tilework.diagnostics.closeness import Gap, distance
from tilework.diagnostics.untiled import Untiled, Window, step_of
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Box
from tilework.labels.hints import INDEPENDENT, renumbered

__all__ = ["Case", "Cause", "causes_of"]

# Kinds of content that replace what lies far.
FILLS = ("real", "above", "below")
# Calls of the function after which the search at one place ends.
MOST_CALLS = 120
# Crops of a batch in which a window is called among others.
BATCH = 4
# Factor by which a window is enlarged to see whether a reach ends, and the most samples that it then has.
LARGER, LARGEST = 4, 2**24
# Share of a window's samples that far content must change to call a function global, and how many times more
# content at a quarter of the distance may change them: the tail of a filter falls faster.
ALL, DECAY = 0.9, 5.0
# Longest period of starts that is looked for although it divides no power of 2, samples.
PERIODS = 12
# Most shifts that are tried to bring the tiled result and the function's together.
SHIFTS = 4096


@dataclass(frozen=True, slots=True)
class Cause:
    """Why results differ."""

    word: str
    """A word of `CheckReport.causes`."""
    help: str
    """What to change."""
    amount: tuple[int, ...] = ()
    """The numbers that it asks for; of two causes of one kind, the larger counts."""


@dataclass(slots=True)
class Case:
    """A window in which an output differs."""

    box: Box
    """Image samples of the tiled axes."""
    each: Index
    """Index along the ``each`` axes."""
    number: int
    """Number of the output."""
    got: Array
    """Its tiled samples in ``box``."""
    want: Array
    """Those of the function."""
    gap: Gap
    """Their difference."""
    start: Index
    """Index of the first compared sample in the result."""
    member: int
    """Number of the output among those that are compared."""

    @property
    def excess(self) -> float:
        """The largest difference, in limits."""
        return float(self.gap.excess.max(initial=0.0))

    @property
    def largest(self) -> float:
        """The difference that exceeds its limit most."""
        return float(self.gap.gap.flat[self.gap.worst])

    @property
    def relative(self) -> float:
        """The same as a fraction of the spread."""
        return float((self.gap.gap / self.gap.spread).flat[self.gap.worst])

    @property
    def where(self) -> Index:
        """Its index in the result."""
        at = np.unravel_index(self.gap.worst, self.gap.gap.shape)
        return tuple(int(p) + a for p, a in zip(at, self.start, strict=True))


class _Stop(Exception):
    """The search took too many calls, or the function refuses a window."""


def causes_of(untiled: Untiled, case: Case, *, given: bool) -> list[Cause]:
    """Return what makes a window differ; nothing if that was not found.

    Parameters
    ----------
    untiled : Untiled
        The function.
    case : Case
        The window.
    given : bool
        Whether the function or the image is not that of the tiled result.
    """
    search = _Search(untiled, case)
    with contextlib.suppress(_Stop):
        search.run(given=given)
    return search.found


class _Search:
    """The function around the window of a case, and the sample of it that differs most."""

    def __init__(self, untiled: Untiled, case: Case) -> None:
        self.untiled, self.case, self.box = untiled, case, case.box
        self.grids = untiled.grids
        self.output = untiled.spec.outputs[case.number]
        self.weights = self.output.weights[self.output.n_each :]
        self.axes = [self.output.n_each + a for a in self.output.reduced_axes]
        self.cell = self._cell()
        self.window = Window(untiled, untiled.spans(case.box), case.each)
        # A context that was given may be small.
        self.context = [max(c, g.crop // 2) for c, g in zip(untiled.context, self.grids, strict=True)]
        self.found: list[Cause] = []
        self._last = untiled.calls + MOST_CALLS

    # -- the sample and its tiles -------------------------------------------------------------------------

    def _cell(self) -> Box:
        """Return the image samples, whole result samples, of the sample that differs most."""
        at = np.unravel_index(self.case.gap.worst, self.case.want.shape)
        spans = []
        columns = zip(self.axes, self.weights, self.grids, self.box.start, self.box.stop, strict=True)
        for axis, weights, g, low, high in columns:
            sample = weights.scaled(low) + int(at[axis])
            first = sample * weights.scale.denominator // weights.scale.numerator // g.quantum * g.quantum
            spans.append((max(low, first), min(high, max(low, first) + g.quantum)))
        return Box.of(spans)

    def tiles(self) -> list[list[Span]]:
        """Return what the tiles with weight at the cell read, along each tiled axis, image samples."""
        columns = zip(self.weights, self.cell.start, self.cell.stop, strict=True)
        return [[w.grid.read(i) for i in w.grid.touching(a, b, w.rim)] for w, a, b in columns]

    def seen(self) -> list[Span]:
        """Return the image samples that every tile at the cell sees, along each axis.

        What lies beyond the image's border, and ``edge="pad"`` invents, is no matter of overlap.
        """
        kept = []
        for g, reads, (low, high) in zip(self.grids, self.tiles(), self.window.spans, strict=True):
            start, stop = max(a for a, _ in reads), min(b for _, b in reads)
            kept.append((low if start <= 0 else start, high if stop >= g.extent else stop))
        return kept

    # -- calls --------------------------------------------------------------------------------------------

    def results(self, window: Window, box: Box, crops: Sequence[Array] | None = None) -> Array:
        """Return the output of the case in ``box`` for a window, or for other content of it."""
        if self.untiled.calls >= self._last:
            raise _Stop
        try:
            return window.results(box, crops)[self.case.number]
        except Exception as error:
            raise _Stop from error

    def at(self, spans: Sequence[Span], box: Box) -> Array:
        """Return the results in ``box`` for a window of other ``spans``."""
        return self.results(Window(self.untiled, spans, self.case.each), box)

    def differs(self, a: Array, b: Array) -> bool:
        """Return whether two results differ by more than rounding."""
        return bool((self.gap(a, b) > 1).any())

    def gap(self, a: Array, b: Array) -> Floats:
        """Return the difference of two results, in limits."""
        return distance(a, b) / self.case.gap.limit

    def effects(self, keep: Sequence[Span], box: Box, fills: Sequence[str] = FILLS) -> Iterator[str]:
        """Yield the kinds of content outside ``keep`` that change results in ``box``."""
        if all(k <= s and t <= e for (s, t), (k, e) in zip(self.window.spans, keep, strict=True)):
            return
        base = self.results(self.window, box)
        for fill in fills:
            if self.differs(self.results(self.window, box, self.window.changed(keep, fill)), base):
                yield fill

    # -- causes -------------------------------------------------------------------------------------------

    def run(self, *, given: bool) -> None:
        """Find the causes."""
        case = self.case
        if self.differs(self.results(self.window, self.box, self.window.crops), case.want):
            self._add("random", "two equal calls of the function differ: seed it, or no tiling repeats it")
        elif self._mixes():
            self._add(
                "batch",
                "the function mixes the crops of a batch: among others, a crop gives another result than "
                "alone. The first axis of what it gets is the batch: let it treat every crop for itself, or "
                "leave out batch_size",
            )
        elif (moved := self._moved()) is not None:
            self._add(
                "offset",
                f"the tiled result equals the function's, moved by {moved} samples: the margin is split "
                "wrongly, or what check was given starts elsewhere",
            )
        elif given and self._is_another():
            self._add("other", "what check was given does not fit: on the tile's own crop, too, it differs")
        elif case.want.dtype.kind in "iu" and self._labels():
            self._add(
                "labels",
                f"the function numbers objects, crop by crop: {INDEPENDENT}; "
                'output=tw.Output("uint32", labels="own") paints every object once',
            )
        elif (reach := self._content()) is not None:
            self._length(reach, self._start(reach))

    def _add(self, word: str, help_: str, amount: Sequence[int] = ()) -> None:
        self.found.append(Cause(word, help_, tuple(amount)))

    def _mixes(self) -> bool:
        """Return whether the other crops of a batch change the window's results."""
        size = min(self.untiled.spec.plan.batch_size or 1, BATCH)
        if size < 2:
            return False
        base = self.results(self.window, self.box)
        # In the middle, and where a reversal of the batch cannot keep it.
        places = (size // 2, 0)
        others = (self.window.among(self.box, size, at)[self.case.number] for at in places)
        return any(self.differs(other, base) for other in others)

    def _moved(self) -> Index | None:
        """Return the shift, in result samples per tiled axis, that makes the two results equal."""
        got = self.case.got
        if got.size < 2 or not (got != got.flat[0]).any():
            return None
        whole = self.window.valid
        wide = self.results(self.window, whole)
        most = (int(SHIFTS ** (1 / len(self.axes))) - 1) // 2
        moves, index = [], [slice(None)] * got.ndim
        columns = zip(self.axes, self.weights, whole.start, self.box.start, strict=True)
        for axis, w, first, low in columns:
            at = w.scaled(low) - w.scaled(first)
            room = wide.shape[axis] - got.shape[axis] - at
            moves.append([(m, at + m) for m in range(-min(at, most), min(room, most) + 1)])
        equal = []
        for shift in itertools.product(*moves):
            for axis, (_, at) in zip(self.axes, shift, strict=True):
                index[axis] = slice(at, at + got.shape[axis])
            if not self.differs(wide[tuple(index)], got):
                equal.append(tuple(m for m, _ in shift))
        # Several shifts mean that the content does not tell.
        return equal[0] if len(equal) == 1 and any(equal[0]) else None

    def _is_another(self) -> bool:
        """Return whether the function differs from a trimmed result on the very crop of its tile."""
        reads = self.tiles()
        if self.output.kind != "trim" or any(len(r) != 1 for r in reads):
            return False
        index = [slice(None)] * self.case.got.ndim
        columns = zip(self.axes, self.weights, self.box.start, self.cell.start, self.cell.stop, strict=True)
        for axis, w, first, low, high in columns:
            index[axis] = slice(w.scaled(low) - w.scaled(first), w.scaled(high) - w.scaled(first))
        return self.differs(self.at([r[0] for r in reads], self.cell), self.case.got[tuple(index)])

    def _labels(self) -> bool:
        """Return whether the same objects have other ids in the tiled result, or on another window."""
        if renumbered(self.case.got, self.case.want):
            return True
        # Objects are larger than a compared window: the tile's crop, and a wider window, show more of them.
        steps = [c + step_of(g) for c, g in zip(self.untiled.context, self.grids, strict=True)]
        crop = [reads[0] for reads in self.tiles()]
        for spans in (crop, self.untiled.spans(self.box, steps)):
            other = Window(self.untiled, spans, self.case.each)
            both = self.window.valid.intersect(other.valid)
            if renumbered(self.results(self.window, both), self.results(other, both)):
                return True
        return False

    def _content(self) -> int | None:
        """Add what content causes; return how far it matters, samples, or None if that explains all."""
        if fills := list(self.effects(self._far(1), self.box)):
            if self._enlarge():
                fills = list(self.effects(self._far(2), self.box, fills))
            if fills:
                self._endless(fills)
                return None
        reach = self._nearest(self._around, max(map(max, self._room())), FILLS)
        if fills := list(self.effects(self.seen(), self.cell)):
            along = [functools.partial(self._around, axis=d) for d in range(len(self.grids))]
            self._overlap([self._nearest(keep, reach, fills) for keep in along])
        columns = zip(self.grids, self.cell.start, self.cell.stop, strict=True)
        invented = self.untiled.spec.boundary != "wrap"
        if invented and any(
            g.edge == "pad" and (a - reach < 0 or b + reach > g.extent) for g, a, b in columns
        ):
            self._add(
                "border", 'edge="pad" invents what the function sees beyond the border; another edge does not'
            )
            return None
        return reach

    def _room(self) -> list[Span]:
        """Return how far the window goes beyond the box before and after it, along each axis."""
        columns = zip(self.box.start, self.box.stop, self.window.spans, strict=True)
        return [(max(0, a - low), max(0, high - b)) for a, b, (low, high) in columns]

    def _far(self, times: int) -> list[Span]:
        """Return the samples up to three quarters of the way to each end of the window.

        An end that is nearer than ``times`` the context, at the image's border, tells nothing: all up to it.
        """
        kept = []
        columns = zip(self._room(), self.context, self.box.start, self.box.stop, strict=True)
        for (before, after), context, a, b in columns:
            low, high = (n if n < times * context else n * 3 // 4 for n in (before, after))
            kept.append((a - low, b + high))
        return kept

    def _around(self, distance: int, axis: int | None = None) -> list[Span]:
        """Return the samples up to a distance from the box; along one axis only if it is given."""
        columns = zip(self.box.start, self.box.stop, self.window.spans, strict=True)
        return [
            (a - distance, b + distance) if axis in (None, d) else span
            for d, (a, b, span) in enumerate(columns)
        ]

    def _nearest(self, keep: Callable[[int], Sequence[Span]], most: int, fills: Sequence[str]) -> int:
        """Return the smallest distance, up to ``most``, beyond which content does not matter."""
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            if any(self.effects(keep(middle), self.box, fills)):
                low = middle + 1
            else:
                high = middle
        return high

    def _enlarge(self) -> bool:
        """Make the window larger; return False if image or memory allow nothing larger."""
        spans = self.untiled.spans(self.box, [LARGER * c for c in self.context])
        if spans == self.window.spans or math.prod(b - a for a, b in spans) > LARGEST:
            return False
        self.window = Window(self.untiled, spans, self.case.each)
        return True

    def _endless(self, fills: Sequence[str]) -> None:
        """Add the cause of a reach that does not end in the window."""
        ends = zip(self._far(2), self.window.spans, self.box.start, self.box.stop, strict=True)
        tested = [
            d for (low, high), (first, last), a, b in ends
            for d, end in ((a - low, low > first), (high - b, high < last)) if end
        ]  # fmt: skip
        distance = min(tested, default=max(map(max, self._room())) * 3 // 4)
        names = self.untiled.spec.plan.names[self.untiled.spec.plan.n_each :]
        wrapping = [names[d] for d in range(len(self.grids)) if self._wraps(d, fills)]
        if wrapping:
            self._add(
                "wraps",
                f"at the border only, the function takes samples from the other end of its crop (axis "
                f'{", ".join(wrapping)}); a function that wraps round needs edge="pad", boundary="wrap"',
            )
            return
        far, near = (self._effect(d, fills) for d in (distance, distance // 4))
        if far[0] >= ALL and near[1] <= DECAY * far[1]:
            self._add(
                "global",
                f"each result depends on the whole crop, on samples {distance} away and more, as with a "
                "mean, a normalisation or a running sum: no overlap is enough; compute the statistic once "
                "for the image (tw.image_statistics) and give it to the function (tw.normalized)",
            )
        elif far[0] >= ALL:
            self._add(
                "far",
                "more overlap makes the difference smaller, but what the function sees does not end within "
                f"{distance} samples",
                (distance,),
            )
        else:
            self._add(
                "far",
                f"what the function sees depends on the image, and does not end within {distance} samples "
                "here: no overlap is known to be enough",
                (distance,),
            )

    def _effect(self, distance: int, fills: Sequence[str]) -> tuple[float, float]:
        """Return which share of the box content beyond a distance changes, and by how much, in limits."""
        base, keep = self.results(self.window, self.box), self._around(distance)
        others = [self.results(self.window, self.box, self.window.changed(keep, f)) for f in fills]
        best = max((self.gap(other, base) for other in others), key=lambda gap: float(np.median(gap)))
        return float((best > 1).mean()), float(np.median(best))

    def _wraps(self, d: int, fills: Sequence[str]) -> bool:
        """Return whether the far end of the window matters at its border, but not what lies between."""
        (low, high), a, b = self.window.spans[d], self.box.start[d], self.box.stop[d]
        before, length = a - low < high - b, (high - low) // 4
        if (a - low if before else high - b) >= length:
            return False
        # The far end: the last eighth of the window.
        between = (b + length, high - length // 2) if before else (low + length // 2, a - length)
        end = (high - length // 2, high) if before else (low, low + length // 2)
        return self._matters(d, end, fills) and not self._matters(d, between, fills)

    def _matters(self, d: int, span: Span, fills: Sequence[str]) -> bool:
        """Return whether content in ``span`` of an axis changes the box."""
        block = [span if e == d else own for e, own in enumerate(self.window.spans)]
        base = self.results(self.window, self.box)
        inside = (self.window.changed(block, fill, inside=True) for fill in fills)
        return any(self.differs(self.results(self.window, self.box, crops), base) for crops in inside)

    def _overlap(self, need: Sequence[int]) -> None:
        """Add the cause of too little context, given how far content matters along each axis."""
        if self.output.kind == "trim":
            numbers = []
            for g, n in zip(self.grids, need, strict=True):
                # The overlap without the margin is a multiple.
                unit = math.lcm(g.multiple, g.quantum)
                numbers.append(max(g.overlap, g.margin[0] + ceil_div(max(0, n - g.margin[0]), unit) * unit))
            text = (
                "more overlap: here the function sees more than the tile's crop; "
                f"overlap={_short(numbers)} is enough at this place"
            )
        else:
            numbers = [max(0, n - min(g.margin)) for n, g in zip(need, self.grids, strict=True)]
            text = (
                "more overlap: the outermost samples of a crop are wrong, and are blended in; "
                f"rim={_short(numbers)} leaves them out at this place (the crops must still meet)"
            )
        self._add("overlap", text, numbers)

    # -- start and length of the crop ---------------------------------------------------------------------

    def _start(self, reach: int) -> list[int]:
        """Add a multiple if the phase of the tile's start matters; return the periods, one per axis."""
        phases = [
            sorted({(a - low) % step_of(g) for a, _ in reads})
            for g, reads, (low, _) in zip(self.grids, self.tiles(), self.window.spans, strict=True)
        ]
        wrong = any(
            (spans := self._shifted(phase, self.cell, reach)) is not None
            and self.differs(self.at(spans, self.cell), self.results(self.window, self.cell))
            for phase in itertools.islice(itertools.product(*phases), 4)
            if any(phase)
        )
        periods = [self._period(d, reach) for d in range(len(self.grids))]
        numbers = [math.lcm(p or 1, g.multiple) for p, g in zip(periods, self.grids, strict=True)]
        if wrong and numbers != [g.multiple for g in self.grids]:
            text = f"results depend on where a crop starts: multiple={_short(numbers)}"
            self._add("multiple", text, numbers)
        return [p or step_of(g) for p, g in zip(periods, self.grids, strict=True)]

    def _period(self, d: int, reach: int) -> int | None:
        """Return the smallest shift of the window along an axis that changes nothing; None if unknown."""
        g, base = self.grids[d], self.results(self.window, self.box)
        for moved in range(g.quantum, step_of(g) + 1, g.quantum):
            if moved > PERIODS and step_of(g) % moved:
                continue
            steps = [moved if k == d else 0 for k in range(len(self.grids))]
            spans = self._shifted(steps, self.box, reach)
            if spans is None:
                return None  # a shift that the image's border forbids may be the smallest
            if not self.differs(self.at(spans, self.box), base):
                return moved
        return None

    def _shifted(self, steps: Sequence[int], box: Box, reach: int) -> list[Span] | None:
        """Return the window moved by ``steps``, or by what is missing to its lattice; None if it cannot be.

        The moved window must hold what the box sees, which a window at the border may not once it is moved.
        """
        found = []
        columns = zip(self.grids, self.window.spans, box.start, box.stop, steps, strict=True)
        for g, (low, high), a, b, step in columns:
            moves = [
                s
                for s in (step, step - step_of(g) or -step)
                if -g.padding[0] - g.margin[0] <= low + s <= a - reach - g.margin[0]
                and b + reach + g.margin[1] <= high + s <= g.extent + g.padding[1] + g.margin[1]
            ]
            if step and not moves:
                return None
            found.append((low + moves[0], high + moves[0]) if step else (low, high))
        return found

    def _length(self, reach: int, periods: Sequence[int]) -> None:
        """Add the size if a crop of the tile's length, with the cell in its middle, differs."""
        spans = []
        columns = zip(
            self.grids, self.tiles(), self.window.spans, self.cell.start, self.cell.stop, periods, strict=True
        )
        for g, reads, (low, high), a, b, period in columns:
            length = reads[0][1] - reads[0][0]
            if length >= high - low:
                spans.append((low, high))
                continue
            start = low + round(((a + b - length) // 2 - low) / period) * period
            start = min(max(start, low), high - length)
            # An end of the image is the end of what the function sees.
            before = start <= -g.margin[0] or a - start >= reach
            after = start + length >= g.extent + g.margin[1] or start + length - b >= reach
            if not (before and after) or (start - low) % period:
                return
            spans.append((start, start + length))
        base = self.results(self.window, self.cell)
        if spans != self.window.spans and self.differs(self.at(spans, self.cell), base):
            sizes = [" x ".join(str(b - a) for a, b in s) for s in (spans, self.window.spans)]
            self._add(
                "size",
                f"the function depends on the size of its crop: {sizes[0]} and {sizes[1]} samples with one "
                "middle differ; no overlap is enough, so derive nothing from the shape of a crop",
            )


def _short(numbers: Sequence[int]) -> str:
    """Return one number if all are equal, else a tuple."""
    return str(numbers[0] if len(set(numbers)) == 1 else tuple(numbers))
