"""Which samples are valid: looked at when crops are cut, added up like one more output, and used at the end.

The bits of a crop decide whether it runs. They are added to a canvas of their own in the task that adds its
result, so a finished block knows the bits of all its samples that have a result, and nothing is read twice.
A sample where no tile ran has no bits, and no result either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._types import Array, Bits, Index, Span
from tilework.function.bound import BoundOutput, bind, spread
from tilework.function.output import Output
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Box
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.plan.nodata import Term, Valid
from tilework.plan.request import Layout, Request, weighed
from tilework.source.base import Source

__all__ = ["Validity", "hide", "validity_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validity:
    """How a result finds out which samples are valid."""

    terms: tuple[Term, ...]
    """A position is valid if all of them say so."""
    inputs: int
    """Number of sources that the function gets; those after them are read for the terms alone."""
    axes: tuple[Index, ...]
    """Positions of the tiled axes in a crop of each of these sources."""
    fills: tuple[Any, ...] | None
    """For each of these sources, what the function sees at invalid samples; None: what is there."""
    keep_constant: bool
    """Whether samples outside the image repeat none, and are seen as they are."""
    output: BoundOutput
    """The canvas of bits: an output of bool over the grid axes, with the supports of all others."""
    like: int
    """Number of an output whose canvases have the same image samples."""

    def crops(
        self, cut: Callable[[int], Array], spans: Sequence[Span], extents: Sequence[int]
    ) -> tuple[list[Array], Bits] | None:
        """Return the crops that the function gets and which samples are valid; None if none is.

        Parameters
        ----------
        cut : callable
            Returns the crop of a source, by its number. The image is not read if other sources suffice.
        spans : sequence of (start, stop), image samples per tiled axis
            The place of the crop; it may stick out of the image.
        extents : sequence of int, image samples per tiled axis
        """
        inside: Any = ...
        if not all(a >= 0 and b <= n for (a, b), n in zip(spans, extents, strict=True)):
            inside = tuple(slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(spans, extents, strict=True))
        found: dict[int, Array] = {}
        valid: Any = None
        for term in self.terms:
            crop = found[term.source] = cut(term.source)
            bits = term.bits(crop)
            valid = bits if valid is None else valid & bits
            if not valid[inside].any():
                return None
        crops = [found[k] if k in found else cut(k) for k in range(self.inputs)]
        if self.keep_constant and inside is not ...:
            outside = np.ones(valid.shape, bool)
            outside[inside] = False
            valid = valid | outside
        for crop, fill, axes in zip(crops, self.fills or (), self.axes, strict=False):
            if fill is not None:
                np.copyto(crop, fill, where=spread(~valid, axes, crop.ndim))
        return crops, valid

    def result(self, valid: Bits, position: Index, start: Sequence[int]) -> Bits:
        """Return the bits of a tile where it has a result.

        Parameters
        ----------
        valid : bool array
            Those of its crop.
        position : tuple of int
            Its number along each grid axis.
        start : sequence of int, image samples per grid axis
            The first sample of its crop.
        """
        n = self.output.n_each
        columns = zip(self.output.weights[n:], position[n:], start[n:], strict=True)
        return valid[tuple(slice(*(x - a for x in w.result(i))) for w, i, a in columns)]

    def under(self, output: BoundOutput, box: Box) -> Box:
        """Return the image samples under a box of result samples."""
        spans = []
        for w, a, b in zip(output.weights, box.start, box.stop, strict=True):
            up, down = w.scale.numerator, w.scale.denominator
            spans.append((a * down // up, min(ceil_div(b * down, up), w.grid.extent)))
        return Box.of(spans)

    def of_result(self, output: BoundOutput, box: Box, bits: Bits, at: Box) -> Bits:
        """Return which samples of a box of a result are valid: those over a valid image sample.

        Parameters
        ----------
        box : Box, result samples per grid axis
        bits : bool array over the grid axes
            Which image samples of ``at`` are valid.
        at : Box, image samples per grid axis
        """
        if all(w.scale == 1 for w in output.weights):
            return bits[box.shift([-a for a in at.start]).slices]
        ranges = []
        for w, a, b, first in zip(output.weights, box.start, box.stop, at.start, strict=True):
            up, down = w.scale.numerator, w.scale.denominator
            samples = np.arange(a, b)
            high = np.minimum(-(-(samples + 1) * down // up), w.grid.extent)
            ranges.append(Spans(samples * down // up - first, high - first))
        return box_any(bits, ranges)


def validity_of(
    valid: Valid, sources: Sequence[Source], layout: Layout, request: Request, outputs: Sequence[BoundOutput]
) -> Validity:
    """Return how a result finds out which samples are valid.

    Parameters
    ----------
    valid : Valid
    sources : sequence of Source
        Those of the function.
    layout : Layout
    request : Request
    outputs : sequence of BoundOutput
        With their weights.
    """
    # The supports of labels, which have no rim, contain those of blends, which contain the cores.
    kinds = [o.kind if o.kind in ("own", "trim") else "blend" for o in outputs]
    like = next(kinds.index(kind) for kind in ("own", "blend", "trim") if kind in kinds)
    blend = "trim" if kinds[like] == "trim" else "max"
    if kinds[like] == "own":
        layout = replace(layout, rim=(0,) * len(layout.rim))
    bits = bind(
        None, Output(bool, channels=0, margin=layout.margin, blend=blend), crop_shape=layout.crop,
        crop_axes=tuple(range(len(layout.crop))), crop=layout.crop, margin=layout.margin, blend=blend,
        fill_value=False, result=None,
    )  # fmt: skip
    return Validity(
        terms=valid.terms,
        inputs=len(sources),
        axes=tuple(layout.crop_of(source, k)[1] for k, source in enumerate(sources)),
        fills=valid.fills,
        keep_constant=request.boundary == "constant",
        output=weighed(bits, layout, request),
        like=like,
    )


def hide(output: BoundOutput, total: Array, reached: Bits | None, valid: Bits) -> Bits | None:
    """Set sums at invalid samples to zero, so that nothing is said of them; return where a result remains.

    Parameters
    ----------
    total : numpy.ndarray
        Merged results in the output's layout; changed in place.
    reached : numpy.ndarray of bool over the grid axes, or None
        Where any tile ran; None: everywhere.
    valid : numpy.ndarray of bool over the grid axes
    """
    if valid.all():
        return reached
    hidden: Any = output.spread(~valid)  # type: ignore[arg-type]
    np.copyto(total, np.zeros((), total.dtype), where=hidden)
    return valid if reached is None else reached & valid
