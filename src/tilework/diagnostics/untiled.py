"""The function of a result on windows with more context than its tiles have, and on changed windows."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework._checks import at_least
from tilework._types import Array, Bits, Function, Span
from tilework.engine.canvas import finish
from tilework.engine.spec import Spec
from tilework.engine.validity import hide
from tilework.errors import TilingError
from tilework.function.bound import BoundOutput
from tilework.function.calling import as_results, call_whole, is_batched
from tilework.function.combining import Combined
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.tiles import Box
from tilework.plan.arguments import per_axis
from tilework.plan.placing import places_of
from tilework.source.base import Source
from tilework.source.opening import open_source
from tilework.source.padding import AxisRead, read_padded

__all__ = ["STEP", "Untiled", "Window", "step_of"]

# Windows of the function start at multiples of this, samples: a network that pools up to 5 times by 2 then
# has the same phase as in the whole image, so that a forgotten ``multiple`` is detected.
STEP = 32
# How far beyond the values of a window its content is changed, as a fraction of their range.
BEYOND = 0.1


def step_of(grid: AxisGrid) -> int:
    """Return the distance of the samples at which windows may start, along an axis."""
    return math.lcm(grid.multiple, STEP)


class Untiled:
    """The function on windows with context, finished like the blocks of the tiled result.

    Parameters
    ----------
    spec : Spec
        The tiled result.
    fn : callable
        The function, which may be another than that of ``spec``.
    array : array, or tuple of them, or None
        The image, if it is not that of ``spec``.
    context : int or tuple of int, image samples per side and tiled axis, or None
        Default: four overlaps, or half a crop if that is more.
    """

    def __init__(self, spec: Spec, fn: Function, array: Any, context: Any) -> None:
        self.spec, self.sources, self._fn = spec, _sources(spec, array), fn
        self.grids = spec.plan.axes[spec.plan.n_each :]
        if isinstance(fn, Combined) and fn.places is None:
            crops = [tuple(self.tiled(k)) for k in range(len(self.sources))]
            places = places_of(spec.outputs, crops, spec.plan.names, batches=spec.plan.batch_size is not None)
            self._fn = fn.at(places, len(self.grids))
        self.batched = spec.plan.batch_size is not None or is_batched(fn)
        if self.batched and spec.plan.batches == "whole":
            self._fn = functools.partial(call_whole, self._fn, spec.plan.batch_size or 1)
        self.calls = 0
        if context is None:
            self.context = tuple(max(4 * g.overlap, g.crop // 2) for g in self.grids)
        else:
            given = per_axis("context", context, spec.plan.names[spec.plan.n_each :])
            columns = zip(self.grids, given, strict=True)
            self.context = tuple(min(g.extent, at_least("context", c, 0)) for g, c in columns)

    def spans(self, box: Box, context: Sequence[int] | None = None) -> list[Span]:
        """Return the image samples that the function reads per tiled axis, for the results of ``box``."""
        columns = zip(self.grids, box.start, box.stop, context or self.context, strict=True)
        return [self._window(*column) for column in columns]

    def _window(self, g: AxisGrid, start: int, stop: int, context: int) -> Span:
        """Return the image samples that the function reads along an axis for results of ``[start, stop)``."""
        m = step_of(g)
        before, after = g.padding
        # Starts are counted from the first sample of the padded image.
        low, end = (start + before - context) // m * m - before, g.extent + after
        # The image ends at its border, unless it was said to go on round.
        if g.edge == "pad" and self.spec.boundary == "wrap":
            end = stop + context + m
        else:
            low = max(-before, low)
        # The length is a multiple of the pooling too, unless the image ends before.
        high = min(end, low + ceil_div(stop + context - low, m) * m)
        return low - g.margin[0], high + g.margin[1]

    def crops(self, spans: Sequence[Span], each: Sequence[int]) -> tuple[list[Array], Bits | None]:
        """Return what the function sees of ``spans``, one crop per source, and which samples are valid.

        Crops are copies, padded, without ``each`` axes. None: all samples are valid.
        """
        sources = (*self.sources, *self.spec.sources[len(self.sources) :])

        def cut(number: int) -> Array:
            return self._crop(sources[number], self.spec.source_axes[number], spans, each)

        v = self.spec.validity
        if v is None:
            return [cut(number) for number in range(len(sources))], None
        cut = functools.cache(cut)
        looks = itertools.accumulate((t.bits(cut(t.source)) for t in v.terms), operator.and_)
        found = v.crops(cut, looks, spans, [g.extent for g in self.grids])
        if found is None:
            return [cut(k) for k in range(v.inputs)], np.zeros([b - a for a, b in spans], bool)
        return found

    def tiled(self, number: int) -> list[int]:
        """Return the tiled axes of the crop of a source."""
        n = self.spec.plan.n_each
        axes = [a for a in self.spec.source_axes[number] if a is not None]
        return [a - sum(e < a for e in axes[:n]) for a in axes[n:]]

    def __call__(self, crops: Sequence[Array]) -> list[Array]:
        """Return what the function returns for crops: one array per output, without the batch axis."""
        if self.batched:
            return self.among([crops], 0)
        return self._called([np.array(c, order="C") for c in crops])

    def among(self, batch: Sequence[Sequence[Array]], at: int) -> list[Array]:
        """Return the same for the crops at a position of a batch, given as one sequence of crops each."""
        return [r[at] for r in self._called([np.stack(own) for own in zip(*batch, strict=True)])]

    def _called(self, given: Sequence[Array]) -> list[Array]:
        self.calls += 1
        shapes = [crop.shape[self.batched :] for crop in given]
        try:
            raw = self._fn(*given)
        except Exception as error:
            error.add_note(f"raised by check, which called fn on crops of shape {shapes}")
            raise
        outputs, names = self.spec.outputs, self.spec.plan.names
        places = [output.places(names, batched=self.batched) for output in outputs]
        return as_results(raw, [output.key for output in outputs], places=places)

    def cut(
        self, results: Sequence[Array], spans: Sequence[Span], box: Box, valid: Bits | None = None
    ) -> list[Array]:
        """Return the finished samples of ``box`` from the function's results for ``spans``.

        ``valid`` tells which samples of ``spans`` are valid; None: all.
        """
        pairs = zip(self.spec.outputs, results, strict=True)
        return [self._cut(output, result, spans, box, valid) for output, result in pairs]

    def _crop(
        self, source: Source, axes: Sequence[int | None], spans: Sequence[Span], each: Sequence[int]
    ) -> Array:
        if source.handle is None:
            raise TilingError("the source of this result is in another process; give array=.")
        spec, n = self.spec, len(each)
        reads = [AxisRead(((0, m),)) for m in source.shape]
        for axis, i in zip(axes[:n], each, strict=True):
            if axis is not None:
                reads[axis] = AxisRead(((i, i + 1),))
        for axis, (a, b), grid in zip(axes[n:], spans, self.grids, strict=True):
            assert axis is not None  # only an each axis may be missing
            reads[axis] = AxisRead.plan(a, b, grid.extent, spec.boundary, source.shape[axis])
        crop = read_padded(source.read, reads, spec.cval)
        return np.array(crop.squeeze(tuple(a for a in axes[:n] if a is not None)), order="C")

    def _cut(
        self, output: BoundOutput, result: Array, spans: Sequence[Span], box: Box, valid: Bits | None
    ) -> Array:
        lead = (None,) * output.n_each
        part = np.ascontiguousarray(self.part(output, result, spans, box))[lead]
        reached, v = None, self.spec.validity
        if v is not None and valid is not None:
            first = [a for a, _ in spans]
            n = output.n_each
            at = Box((*(0,) * n, *first), (*(1,) * n, *(b for _, b in spans)))
            image = Box((*(0,) * n, *box.start), (*(1,) * n, *box.stop))
            part = part.copy()
            reached = hide(output, part, None, v.of_result(output, output.region(image), valid[lead], at))
        return finish(output, part, reached, None)[0]

    def part(self, output: BoundOutput, result: Array, spans: Sequence[Span], box: Box) -> Array:
        """Return the samples of ``box`` from one of the function's results for ``spans``, as they are."""
        index = [slice(None)] * output.n_each
        columns = zip(output.weights[output.n_each :], self.grids, spans, box.start, box.stop, strict=True)
        for weights, grid, (first, _), low, high in columns:
            start = weights.scaled(first + grid.margin[0])
            index.append(slice(weights.scaled(low) - start, weights.scaled(high) - start))
        return result[output.index(index)[output.n_each :]]


def _sources(spec: Spec, array: Any) -> tuple[Source, ...]:
    """Return the sources of the function: ``array`` if it is given, else those of the tiled result."""
    if array is None:
        return spec.inputs
    sources = tuple(map(open_source, array if isinstance(array, tuple) else (array,)))
    if [s.shape for s in sources] != [s.shape for s in spec.inputs]:
        raise TilingError(
            f"array must be what was tiled, of shape {[s.shape for s in spec.inputs]}; got "
            f"{[s.shape for s in sources]}."
        )
    return sources


class Window:
    """A window of the image that the function is called on, also with other content.

    Parameters
    ----------
    untiled : Untiled
        The function.
    spans : sequence of (start, stop), image samples per tiled axis
        What the function reads.
    each : tuple of int
        Index along the ``each`` axes.
    """

    def __init__(self, untiled: Untiled, spans: Sequence[Span], each: Sequence[int]) -> None:
        self.untiled, self.spans = untiled, list(spans)
        self.crops, self._bits = untiled.crops(spans, each)
        self._rng = np.random.default_rng(0)
        self._own: list[Array] | None = None

    @property
    def valid(self) -> Box:
        """The image samples for which there are results."""
        return Box.of(
            (max(0, low + g.margin[0]), min(high - g.margin[1], g.covered))
            for g, (low, high) in zip(self.untiled.grids, self.spans, strict=True)
        )

    def results(self, box: Box, crops: Sequence[Array] | None = None) -> list[Array]:
        """Return the finished samples of ``box``, one array per output; for ``crops`` instead of its own."""
        return self.untiled.cut(self._call(crops), self.spans, box, self._bits)

    def among(self, box: Box, size: int, at: int) -> list[Array]:
        """Return the same for the window at a position of a batch of ``size`` crops, others around it."""
        none = [(0, 0)] * len(self.spans)
        # Those with larger values change an extremum; alternating, both neighbours change a median.
        kinds = ["above" if k % 2 else "real" for k in range(size)]
        batch = [self.crops if k == at else self.changed(none, kind) for k, kind in enumerate(kinds)]
        return self.untiled.cut(self.untiled.among(batch, at), self.spans, box, self._bits)

    def raw(self, box: Box, crops: Sequence[Array] | None = None) -> list[Array]:
        """Return the same before channels are reduced and values are cast."""
        pairs = zip(self.untiled.spec.outputs, self._call(crops), strict=True)
        return [self.untiled.part(output, result, self.spans, box) for output, result in pairs]

    def _call(self, crops: Sequence[Array] | None) -> list[Array]:
        if crops is not None:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                # The content was invented, so what numpy says of it helps nobody.
                warnings.simplefilter("ignore", RuntimeWarning)
                return self.untiled(crops)
        if self._own is None:
            self._own = self.untiled(self.crops)
        return self._own

    def changed(self, box: Sequence[Span], fill: str, *, inside: bool = False) -> list[Array]:
        """Return crops with other content outside ``box``, or inside it.

        Parameters
        ----------
        box : sequence of (start, stop), image samples per tiled axis
        fill : {"real", "above", "below"}
            Content: like that of the crop, or a little above or below all its values.
        """
        found = []
        for k, crop in enumerate(self.crops):
            within = np.ones((1,) * crop.ndim, bool)
            for axis, (first, last), (low, high) in zip(self.untiled.tiled(k), self.spans, box, strict=True):
                at = np.arange(first, last)
                within = within & ((at >= low) & (at < high)).reshape((-1,) + (1,) * (crop.ndim - axis - 1))
            other = self._content(crop, fill)
            found.append(np.where(within, other, crop) if inside else np.where(within, crop, other))
        return found

    def _content(self, crop: Array, fill: str) -> Array:
        finite = crop[np.isfinite(crop)] if crop.dtype.kind in "fc" else crop.ravel()
        if not finite.size:
            return np.zeros_like(crop)
        if fill == "real" or crop.dtype.kind not in "iuf":
            picked: Array = self._rng.choice(finite, crop.shape)
            return ~picked if crop.dtype.kind == "b" and fill != "real" else picked
        low, high = float(finite.min()), float(finite.max())
        beyond = BEYOND * (high - low) or 1.0
        if fill == "above":
            values = high + beyond * self._rng.random(crop.shape)
        else:
            # Values that are never negative may mean something that has no sign.
            values = np.maximum(low - beyond * self._rng.random(crop.shape), 0.0 if low >= 0 else -np.inf)
        if crop.dtype.kind in "iu":
            info = np.iinfo(crop.dtype)
            # float64 cannot represent the largest 64-bit integers.
            values = np.clip(np.rint(values), info.min, info.max if info.bits < 64 else 2.0**62)
        return np.asarray(values).astype(crop.dtype)
