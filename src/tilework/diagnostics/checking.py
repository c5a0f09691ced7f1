"""`check`: compares windows of a tiled result with the function on the same places with more context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import Report, one_of, whole, wholes
from tilework._types import Array, Function
from tilework.diagnostics.viewing import View, members_of, view
from tilework.engine.canvas import finish
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.function.calling import as_results, is_batched
from tilework.function.output import BoundOutput
from tilework.graph.build import find_spec
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.tiles import Box
from tilework.probing.blackbox import difference, size_of
from tilework.source.base import Source
from tilework.source.opening import open_source
from tilework.source.padding import AxisRead, read_padded

__all__ = ["CheckReport", "check"]

# Windows of the function start at multiples of this, samples: a network that pools up to 5 times by 2 then
# has the same phase as in the whole image, so that a forgotten ``multiple`` is detected.
STEP = 32
PLACES = ("corners", "borders", "random")
# Most places that are tried to find one where a tile ran.
TRIES = 20
# Largest difference that is rounding, as a fraction of the largest result: windows of another shape may take
# another code path in the function.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """The findings of `check`; prints as a table."""

    largest: float
    """Largest difference between the tiled result and the function with more context."""
    relative: float
    """Largest difference as a fraction of the largest compared value."""
    where: tuple[int, ...]
    """Index of that difference in the result."""
    output: int | str | None
    """Key of the output with that difference; None if there is only one output."""
    windows: tuple[tuple[str, Box, float], ...]
    """Per window: kind of place, box (image samples of the tiled axes), largest difference."""
    context: tuple[int, ...]
    """Context per side of the function's windows, image samples per tiled axis."""
    crops: int
    """Number of crops of the tiled result that ran."""
    help: str = ""
    """Advice on how to make the results equal, if they differ."""

    @property
    def ok(self) -> bool:
        """Whether the results differ only by rounding: at most 1e-5 of the largest compared value."""
        return self.relative <= ROUNDING

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values."""
        kinds = dict.fromkeys(kind for kind, _, _ in self.windows)
        found = {kind: [d for k, _, d in self.windows if k == kind] for kind in kinds}
        which = "" if self.output is None else f" of output {self.output!r}"
        share = f"{self.relative:.1e} of the largest value"
        word = "equal to rounding, where it was looked" if self.ok else f"differs: {self.help}"
        return [
            *((kind, f"{max(gaps):.3g} at most, in {len(gaps)} windows") for kind, gaps in found.items()),
            ("largest", f"{self.largest:.3g} ({share}) at {self.where}{which}"),
            ("context", f"{self.context} samples per side around each window; {self.crops} crops ran"),
            ("verdict", word),
        ]


def check(
    out: Any,
    fn: Function | None = None,
    array: Any = None,
    *,
    where: Any = PLACES,
    places: int = 3,
    size: int = 16,
    context: int | Sequence[int] | None = None,
    seed: int = 0,
) -> CheckReport:
    """Compare windows of a tiled result with the function on the same places with far more context.

    Differences come from too little overlap, a wrong multiple, padding, or a function that depends on its
    whole crop. Only the tiles of the windows run. If a mask or ``skip`` leaves a tile out, another place is
    tried.

    Parameters
    ----------
    out : dask.array.Array, or tuple or dict of them
        Unmodified result of `tiled_map`.
    fn : callable, optional
        The function, which must accept windows larger than its crop. Default: the function of ``out``.
    array : array, path, URL, `load_once`, or tuple of them, optional
        The image. Default: the image of ``out``.
    where : {"corners", "borders", "random"}, tuple of them, or tuple of points
        Kinds of places: corners of tiles, the image's border, anywhere. A point is a tuple of int, image
        samples per tiled axis.
    places : int
        Number of windows of each kind.
    size : int, image samples per tiled axis
        Length of a compared window.
    context : int or tuple of int, image samples per side and tiled axis, optional
        Context of ``fn`` around a window. Default: four overlaps, or half a crop if that is more.
    seed : int
        Seed of the random places.

    Returns
    -------
    CheckReport
        The largest difference and its place; prints as a table.

    Raises
    ------
    TilingError
        If ``out`` is not an unmodified result of one `tiled_map`, if its function takes its tile, if
        ``array`` has another shape, or if no tile ran at any place that was tried.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> def smooth(x):
    ...     return (x + np.roll(x, 3, 0) + np.roll(x, -3, 0)) / 3
    >>> image = np.random.default_rng(0).random((200, 200))
    >>> check(tiled_map(smooth, image, 64, 3), where="random").ok
    True
    >>> check(tiled_map(smooth, image, 64, 2), where="corners").ok
    False
    """
    members = members_of(out)
    spec = _spec_of(list(members.values()))
    function = _Untiled(spec, spec.fn if fn is None else fn, _sources(spec, array), context)
    views = view(members, verbose=False)
    rng = np.random.default_rng(seed)
    windows: list[_Window] = []
    tried = False
    for kind, points in _points(spec, where, whole("places", places), rng):
        tried = True
        place = _first_that_ran(spec, next(iter(views.values())), points, rng)
        if place is None:
            continue
        point, each = place
        box = _around(spec, point, whole("size", size))
        expected = function.on(box, each)
        windows.append(_Window(kind, box, [_gap(spec, k, v, expected, box, each) for k, v in views.items()]))
    if not windows:
        why = "no tile ran at any place that was tried" if tried else f"where={where!r}, places={places}"
        raise TilingError(f"there is nothing to compare: {why}.")
    size_of_all = max(gap.size for window in windows for gap in window.gaps) or 1.0
    worst = max((window.worst for window in windows), key=lambda gap: gap.largest)
    return CheckReport(
        largest=worst.largest,
        relative=worst.largest / size_of_all,
        where=worst.where,
        output=worst.output,
        windows=tuple((w.kind, w.box, w.worst.largest) for w in windows),
        context=function.context,
        crops=next(iter(views.values())).ran,
        help=_help(spec, [w.box for w in windows if w.worst.largest > ROUNDING * size_of_all]),
    )


@dataclass(frozen=True, slots=True)
class _Gap:
    """Difference between an output and the function in one window."""

    largest: float
    """Largest absolute difference."""
    where: tuple[int, ...]
    """Index of that difference in the result."""
    output: int | str | None
    """Key of the output; None if there is only one output."""
    size: float
    """Largest compared value."""


@dataclass(frozen=True, slots=True)
class _Window:
    """One compared place."""

    kind: str
    """Kind of place: one of `PLACES`, or "given"."""
    box: Box
    """Image samples of the tiled axes."""
    gaps: list[_Gap]
    """One per output."""

    @property
    def worst(self) -> _Gap:
        """The output with the largest difference."""
        return max(self.gaps, key=lambda gap: gap.largest)


def _spec_of(arrays: Sequence[Any]) -> Spec:
    """Return the `Spec` of the one call that made all ``arrays``, if it can be compared."""
    found = [find_spec(array) for array in arrays]
    specs = [f.spec for f in found if f is not None]
    if not specs or len(specs) < len(arrays) or any(s is not specs[0] for s in specs):
        raise TilingError("check takes an unmodified result of one tiled_map.")
    spec = specs[0]
    if spec.pass_tile:
        raise TilingError("a function that takes its tile has no untiled result to compare with.")
    if not spec.plan.n_runs:
        raise TilingError("there is nothing to compare: no tile of this result runs.")
    return spec


def _help(spec: Spec, differing: Sequence[Box]) -> str:
    """Return advice on how to make the results equal, given the boxes that differ, image samples."""
    invented = [_invented(spec, box) for box in differing]
    border = 'edge="pad" invents what the function sees beyond the border'
    if all(invented):
        return f"{border}; another edge does not"
    if differing and all(_at_border(spec, box) for box in differing):
        return 'at the border only; a function that wraps round needs edge="pad", boundary="wrap"'
    trims = any(output.kind == "trim" for output in spec.outputs)
    help_ = "more overlap, or a blend" if trims else "more overlap"
    return f"{help_}; besides, {border}" if any(invented) else help_


def _at_border(spec: Spec, box: Box) -> bool:
    """Return whether a box touches the image's border, image samples."""
    grids = spec.plan.axes[spec.plan.n_each :]
    return 0 in box.start or any(b == g.covered for g, b in zip(grids, box.stop, strict=True))


def _invented(spec: Spec, box: Box) -> bool:
    """Return whether the context of a box contains samples that ``edge="pad"`` invented."""
    grids = spec.plan.axes[spec.plan.n_each :]
    return any(
        g.edge == "pad" and (a < g.overlap or b > g.extent - g.overlap)
        for g, a, b in zip(grids, box.start, box.stop, strict=True)
    )


def _sources(spec: Spec, array: Any) -> tuple[Source, ...]:
    """Return the sources of the function: ``array`` if it is given, else those of the tiled result."""
    if array is None:
        return spec.sources
    sources = tuple(map(open_source, array if isinstance(array, tuple) else (array,)))
    if [s.shape for s in sources] != [s.shape for s in spec.sources]:
        raise TilingError(
            f"array must be what was tiled, of shape {[s.shape for s in spec.sources]}; got "
            f"{[s.shape for s in sources]}."
        )
    return sources


def _points(
    spec: Spec, where: Any, places: int, rng: np.random.Generator
) -> Iterator[tuple[str, Iterator[list[int]]]]:
    """Yield, for each place, its kind and points to try, image samples of the tiled axes."""
    grids = spec.plan.axes[spec.plan.n_each :]
    extents = tuple(g.extent for g in grids)
    for kind in (where,) if isinstance(where, str) else tuple(where):
        if not isinstance(kind, str):
            given = wholes("where", kind)
            if len(given) != len(grids) or any(not 0 <= p < n for p, n in zip(given, extents, strict=True)):
                raise TilingError(f"a place needs one sample per tiled axis, inside {extents}; got {given}.")
            yield "given", iter([list(given)])
            continue
        one_of("where", kind, PLACES)
        for _ in range(places):
            yield kind, (_unmasked(spec, _place(kind, grids, rng)) for _ in range(TRIES))


def _first_that_ran(
    spec: Spec, shown: View, points: Iterator[list[int]], rng: np.random.Generator
) -> tuple[list[int], tuple[int, ...]] | None:
    """Return the first of ``points`` whose tile ran and its index along the ``each`` axes, or None."""
    plan = spec.plan
    for point in points:
        each = tuple(int(rng.integers(n)) for n in plan.shape[: plan.n_each])
        if shown.has_run(tuple(g.owner(p) for g, p in zip(plan.axes, (*each, *point), strict=True))):
            return point, each
    return None


def _place(kind: str, grids: Sequence[AxisGrid], rng: np.random.Generator) -> list[int]:
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


def _unmasked(spec: Spec, point: list[int]) -> list[int]:
    """Return ``point``, or the middle of the nearest tile that runs if a mask leaves ``point`` out."""
    runs, plan = spec.plan.runs, spec.plan
    if runs is None:
        return point
    own = np.asarray(runs.any(axis=tuple(range(plan.n_each))))
    grids = plan.axes[plan.n_each :]
    at = [g.owner(p) for g, p in zip(grids, point, strict=True)]
    if own[tuple(at)]:
        return point
    running = np.argwhere(own)
    nearest = running[np.abs(running - at).sum(axis=1).argmin()]
    return [sum(g.core(int(i))) // 2 for g, i in zip(grids, nearest, strict=True)]


def _around(spec: Spec, point: Sequence[int], size: int) -> Box:
    """Return the window of ``size`` samples around a point: inside the image, on whole result samples."""
    spans = []
    for g, p in zip(spec.plan.axes[spec.plan.n_each :], point, strict=True):
        low = min(max(0, p - size // 2), max(0, g.covered - size)) // g.quantum * g.quantum
        high = min(g.covered, ceil_div(low + size, g.quantum) * g.quantum)
        if spec.plan.mask is not None or spec.skip is not None:
            # Only the tile that ran, because its neighbours may be the fill value.
            start, stop = g.core(g.owner(p))
            low, high = max(low, start), min(high, stop)
        spans.append((low, high))
    return Box.of(spans)


class _Untiled:
    """The function on windows with context, finished like the blocks of the tiled result."""

    def __init__(self, spec: Spec, fn: Function, sources: Sequence[Source], context: Any) -> None:
        self._spec, self._fn, self._sources = spec, fn, sources
        self._grids = spec.plan.axes[spec.plan.n_each :]
        self._batched = spec.plan.batch_size is not None or is_batched(fn)
        if context is None:
            self.context = tuple(max(4 * g.overlap, g.crop // 2) for g in self._grids)
        else:
            given = wholes("context", context)
            self.context = given * len(self._grids) if len(given) == 1 else given

    def on(self, box: Box, each: Sequence[int]) -> list[Array]:
        """Return the result in ``box``, image samples of the tiled axes: one array per output."""
        columns = zip(self._grids, box.start, box.stop, self.context, strict=True)
        spans = [_window(*column) for column in columns]
        crops = [
            self._crop(source, axes, spans, each)
            for source, axes in zip(self._sources, self._spec.source_axes, strict=True)
        ]
        try:
            raw = self._fn(*crops)
        except Exception as error:
            error.add_note(f"raised by check, which called fn on crops of shape {[c.shape for c in crops]}")
            raise
        outputs = self._spec.outputs
        results = as_results(raw, [output.key for output in outputs])
        return [self._cut(o, r, spans, box) for o, r in zip(outputs, results, strict=True)]

    def _crop(
        self, source: Source, axes: Sequence[int], spans: Sequence[tuple[int, int]], each: Sequence[int]
    ) -> Array:
        """Return the input of the function from one source, padded, without its ``each`` axes."""
        if source.handle is None:
            raise TilingError("the source of this result is in another process; give array=.")
        spec, n = self._spec, len(each)
        reads = [AxisRead(((0, m),)) for m in source.shape]
        for axis, i in zip(axes[:n], each, strict=True):
            reads[axis] = AxisRead(((i, i + 1),))
        for axis, (a, b) in zip(axes[n:], spans, strict=True):
            reads[axis] = AxisRead.plan(a, b, source.shape[axis], spec.boundary)
        crop = read_padded(source.read, reads, spec.cval)
        crop = np.array(crop.squeeze(tuple(axes[:n])), order="C")
        return crop[None] if self._batched else crop

    def _cut(self, output: BoundOutput, result: Array, spans: Sequence[tuple[int, int]], box: Box) -> Array:
        """Return the finished samples of ``box`` from the function's result for ``spans``."""
        n = output.n_each
        index = [slice(None)] * n
        columns = zip(output.weights[n:], self._grids, spans, box.start, box.stop, strict=True)
        for weights, grid, (first, _), low, high in columns:
            start = weights.scaled(first + grid.margin[0])
            index.append(slice(weights.scaled(low) - start, weights.scaled(high) - start))
        result = result[0] if self._batched else result
        part = np.ascontiguousarray(result[output.index(index)[n:]])
        return finish(output, part[(None,) * n], None, None)[0]


def _window(g: AxisGrid, start: int, stop: int, context: int) -> tuple[int, int]:
    """Return the image samples that the function reads along an axis for results of ``[start, stop)``."""
    m = math.lcm(g.multiple, STEP)
    low = max(0, (start - context) // m * m)
    # The length is a multiple of the pooling too, unless the image ends before.
    high = min(g.extent + g.end_padding, low + ceil_div(stop + context - low, m) * m)
    return low - g.margin[0], high + g.margin[1]


def _gap(
    spec: Spec, key: int | str | None, shown: View, expected: Sequence[Array], box: Box, each: Sequence[int]
) -> _Gap:
    """Return the difference between an output and the function's result for a window."""
    output, want, n = spec.outputs[shown.number], expected[shown.number], spec.plan.n_each
    index = [slice(i, i + 1) for i in each] + [slice(None)] * (shown.ndim - n)
    for axis, weights, low, high in zip(
        output.reduced_axes, output.weights[n:], box.start, box.stop, strict=True
    ):
        index[n + axis] = slice(weights.scaled(low), weights.scaled(high))
    gap = difference(np.asarray(shown[tuple(index)]), want)
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    where = tuple(int(p) + (s.start or 0) for p, s in zip(place, index, strict=True))
    return _Gap(float(gap.max()), where, key, size_of(want))
