"""Which samples are valid: looked at once in what a task reads, and used when crops are cut and at the end.

The bits of a crop decide whether it runs. Those of all that a task has read go with its sums, cut as these
are, so a finished block knows the bits of all its samples that have a result, and nothing is read twice. Bits
belong to samples of the image, so all crops on a sample agree: nothing is looked at again for each of them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tilework._types import Array, Bits, Index, Span
from tilework.engine.products import rows_of
from tilework.function.bound import BoundOutput, spread
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Box, Tile
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import box_any
from tilework.plan.nodata import Term, Valid
from tilework.plan.request import Layout, Request
from tilework.source.base import Source

__all__ = ["Known", "Looker", "Read", "Validity", "hide", "validity_of"]

Known = tuple[Box, "Bits | None"]
"""Image samples per grid axis of which it is known which are valid, and the bits; None: all."""


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

    def crops(
        self,
        cut: Callable[[int], Array],
        looks: Iterable[Bits | None],
        spans: Sequence[Span],
        extents: Sequence[int],
    ) -> tuple[list[Array], Bits | None] | None:
        """Return the crops that the function gets and which samples are valid; None if none is.

        The bits are None if all are. The image is not read if other sources suffice.

        Parameters
        ----------
        cut : callable
            Returns the crop of a source, by its number.
        looks : iterable of bool array or None
            Which samples of the crop are valid: by each look at a source, the earlier ones included. None:
            all. It is not asked for more where none is.
        spans : sequence of (start, stop), image samples per tiled axis
            The place of the crop; it may stick out of the image.
        extents : sequence of int, image samples per tiled axis
        """
        inside: Any = ...
        if not all(a >= 0 and b <= n for (a, b), n in zip(spans, extents, strict=True)):
            inside = tuple(slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(spans, extents, strict=True))
        valid: Any = None
        for valid in looks:
            if valid is not None and not _any(valid[inside]):
                return None
        crops = [cut(k) for k in range(self.inputs)]
        if valid is None or self.fills is None:
            return crops, valid
        hidden = ~valid
        if self.keep_constant and inside is not ...:
            outside = np.ones(valid.shape, bool)
            outside[inside] = False
            hidden &= ~outside
        for crop, fill, axes in zip(crops, self.fills, self.axes, strict=False):
            if fill is not None:
                np.copyto(crop, fill, where=spread(hidden, axes, crop.ndim))
        return crops, valid

    def under(self, output: BoundOutput, box: Box) -> Box:
        """Return the image samples under a box of result samples."""
        spans = []
        for w, a, b in zip(output.weights, box.start, box.stop, strict=True):
            up, down = w.scale.numerator, w.scale.denominator
            spans.append((a * down // up, min(ceil_div(b * down, up), w.grid.extent)))
        return Box.of(spans)

    def within(self, output: BoundOutput, box: Box, known: Sequence[Known]) -> Bits | None:
        """Return which samples of a box of a result are valid, by what is known of the image; None: all."""
        at = self.under(output, box)
        hidden = [(own.intersect(at), own, bits) for own, bits in known if bits is not None]
        hidden = [(common, own, bits) for common, own, bits in hidden if common.size]
        if not hidden:
            return None
        # A result sample may lie over image samples of which nothing is known, where no tile ran.
        valid = np.zeros(at.shape, bool)
        for own, _ in known:
            if (common := own.intersect(at)).size:
                valid[_in(at, common)] = True
        for common, own, bits in hidden:
            valid[_in(at, common)] &= bits[_in(own, common)]
        return self.of_result(output, box, valid, at)

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


class Read(NamedTuple):
    """Samples of one source that were read at once."""

    samples: Array
    """The samples, padded, with all axes of the source."""
    box: Box
    """Their place, image samples per grid axis; it may stick out of the image."""
    alone: bool
    """Whether they were read for one tile."""


class Cutter(Protocol):
    """Reads the samples of a source, and cuts the crops of tiles out of them."""

    def around(self, tile: Tile) -> Read:
        """Return the samples that were read at once with those of the tile."""

    def cut(self, tile: Tile) -> Array:
        """Return the crop of the tile."""


class Looker:
    """Looks at what one task reads, and keeps the bits.

    Parameters
    ----------
    validity : Validity
    cutters : sequence of Cutter
        One per source.
    source_axes : per source, a sequence of int or None
        Its axis for each grid axis; None if it has none.
    hull : Box, image samples per grid axis
        All that the tiles of the task read; it may stick out of the image.
    extents : sequence of int, image samples per grid axis
    """

    def __init__(
        self,
        validity: Validity,
        cutters: Sequence[Cutter],
        source_axes: Sequence[Sequence[int | None]],
        hull: Box,
        extents: Sequence[int],
    ) -> None:
        self._validity, self._cutters, self._axes = validity, cutters, source_axes
        self._extents, self._n_each = extents, len(extents) - len(validity.axes[0])
        self._hull, self._image = hull, Box((0,) * len(extents), tuple(extents))
        self._open = dict.fromkeys(range(len(validity.terms)))
        """Numbers of the terms to look at for each tile: those whose source was not read for all at once."""
        self._valid: Bits | None = None
        """What all terms say of the hull, as far as was looked; None: all is valid. One array for any number
        of terms, because each says the same of a sample for all tiles."""

    def crops(self, tile: Tile) -> list[Array] | None:
        """Return the crops of a tile that the function gets; None if no sample of it is valid."""
        n, box = self._n_each, tile.read
        spans = list(zip(box.start[n:], box.stop[n:], strict=True))
        found = self._validity.crops(
            lambda k: self._cutters[k].cut(tile), self._looks(tile), spans, self._extents[n:]
        )
        return None if found is None else found[0]

    def _looks(self, tile: Tile) -> Iterator[Bits | None]:
        """Yield which samples of a tile's crop are valid, after each look that it takes; None: all."""
        if self._valid is not None:
            yield self._bits(tile)
        for number in list(self._open):
            self._look(number, tile)
            yield self._bits(tile)

    def _bits(self, tile: Tile) -> Bits | None:
        """Return which samples of a tile's crop are valid, as far as was looked; None: all."""
        if self._valid is None:
            return None
        return np.asarray(self._valid[_in(self._hull, tile.read)][(0,) * self._n_each])

    def _look(self, number: int, tile: Tile) -> None:
        """Look at what was read at once with the samples of a tile, by one term."""
        term = self._validity.terms[number]
        axes = self._axes[term.source]
        read = self._cutters[term.source].around(tile)
        bits = _bits_of(term, read.samples, tuple(a for a in axes if a is not None))
        if not bits.all():
            # It may lack axes of ``each``.
            bits = bits[tuple(None if a is None else slice(None) for a in axes)]
            if self._valid is None and bits.shape == self._hull.shape:
                self._valid = bits
            else:
                self._valid = np.ones(self._hull.shape, bool) if self._valid is None else self._valid
                self._valid[_in(self._hull, read.box)] &= bits
        if not read.alone:
            del self._open[number]

    def within(self, box: Box) -> Known:
        """Return what is known of a box of image samples, with memory of its own."""
        box = box.intersect(self._hull).intersect(self._image)
        if self._valid is None or (part := self._valid[_in(self._hull, box)]).all():
            return box, None
        return box, part.copy()


def _bits_of(term: Term, samples: Array, axes: Index) -> Bits:
    """Return which positions are valid, looked at piece by piece where there are several samples at each."""
    if samples.ndim == len(axes):
        return term.bits(samples, axes)
    parts = (term.bits(samples[rows], axes) for rows in rows_of(samples.shape, 0))
    if 0 in axes:
        return np.concatenate(list(parts), axes.index(0))
    return functools.reduce(operator.ior, parts)


def _in(box: Box, part: Box) -> tuple[slice, ...]:
    """Return a part of a box as an index into it."""
    ends = zip(part.start, part.stop, box.start, strict=True)
    return tuple(slice(a - first, max(a, b) - first) for a, b, first in ends)


def _any(bits: Bits) -> bool:
    """Return whether any bit is true; one in the middle mostly is, and tells it 20 times as fast."""
    return bool(bits.size and bits[tuple(n // 2 for n in bits.shape)]) or bool(bits.any())


def validity_of(valid: Valid, sources: Sequence[Source], layout: Layout, request: Request) -> Validity:
    """Return how a result finds out which samples are valid.

    Parameters
    ----------
    valid : Valid
    sources : sequence of Source
        Those of the function.
    layout : Layout
    request : Request
    """
    return Validity(
        terms=valid.terms,
        inputs=len(sources),
        axes=tuple(layout.crop_of(source, k)[1] for k, source in enumerate(sources)),
        fills=valid.fills,
        keep_constant=request.boundary == "constant",
    )


def hide(output: BoundOutput, total: Array, reached: Bits | None, valid: Bits | None) -> Bits | None:
    """Return where a result remains, of samples that are reached and valid.

    Sums at invalid samples become zero if they are looked at before the fill value takes their place, so that
    nothing is said of them.

    Parameters
    ----------
    total : numpy.ndarray
        Merged results in the output's layout; may be changed in place.
    reached : numpy.ndarray of bool over the grid axes, or None
        Where any tile ran; None: everywhere.
    valid : numpy.ndarray of bool over the grid axes, or None
        None: all are.
    """
    if valid is None or valid.all():
        return reached
    if output.reduce is not None or output.kind == "own" or total.dtype != output.dtype:
        hidden: Any = output.spread(~valid)
        np.copyto(total, np.zeros((), total.dtype), where=hidden)
    return valid if reached is None else reached & valid
