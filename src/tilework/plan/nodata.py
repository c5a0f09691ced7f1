"""What says which samples are valid: ``where``, ``nodata`` and the masks of masked arrays, as `Term` values.

A position of the tiled axes (and of the ``each`` axes) is valid if every term says so. A term looks at one
source: at the image itself, for samples that are not nodata, or at one that is read for the term alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._checks import brief, scalar, warn
from tilework._types import Array, Bits, Index
from tilework.errors import GridError, TilingError, TilingWarning
from tilework.plan.arguments import check_proportions
from tilework.plan.request import Layout
from tilework.source.base import MemorySource, Source
from tilework.source.opening import open_source

__all__ = ["Term", "Valid", "valid_of"]


@dataclass(frozen=True, slots=True)
class Term:
    """One condition on which samples are valid."""

    name: str
    """What it is, for fingerprints: "where", "mask 0" or "nodata 0" of array 0."""
    source: int
    """Number of the source that it looks at."""
    axes: Index
    """Positions of the tiled axes in a crop of the source, in the order of the grid."""
    nodata: Any = None
    """The value of samples without data; None: samples that are true are valid."""

    def bits(self, samples: Array, axes: Index | None = None) -> Bits:
        """Return which positions of a crop are valid: those with a valid sample along all other axes.

        Of other samples, ``axes`` are those of positions.
        """
        axes = self.axes if axes is None else axes
        if self.nodata is None:
            valid = samples.astype(bool)  # a copy: it is needed for longer than the samples
        else:
            # NaN and NaT differ from themselves.
            valid = np.asarray(samples != self.nodata if self.nodata == self.nodata else samples == samples)
        n = len(axes)
        if axes == tuple(range(valid.ndim)):
            return valid
        return np.asarray(np.moveaxis(valid, axes, range(n)).any(axis=tuple(range(n, valid.ndim))))


@dataclass(frozen=True, slots=True)
class Valid:
    """The terms of one call, and the sources that are read for them alone."""

    terms: tuple[Term, ...]
    """Those that need not read the image come first."""
    extra: tuple[tuple[Source, tuple[int | None, ...]], ...] = ()
    """Sources after those of the function, each with its axis for each grid axis; None if it has none."""
    fills: tuple[Any, ...] | None = None
    """For each array of the function, what it sees at invalid samples, of its dtype; None: what is there."""


def valid_of(
    sources: Sequence[Source], layout: Layout, where: Any, nodata: Any, nodata_fill: Any
) -> Valid | None:
    """Return which samples of a call are valid, by its arguments and masked arrays; None: all.

    Raises
    ------
    GridError
        If ``where`` does not cover the image, or looks transposed.
    TilingError
        If the image does not say what its nodata is, or cannot hold it, or if nothing is to be filled.
    TypeError
        For values of a wrong type.
    """
    terms: list[Term] = []
    extra: list[tuple[Source, tuple[int | None, ...]]] = []

    def add(name: str, source: Source, own: tuple[int | None, ...]) -> None:
        seen = [a for a in range(len(source.shape)) if a not in own[: layout.n_each]]
        places = tuple(seen.index(a) for a in own[layout.n_each :] if a is not None)
        terms.append(Term(name, len(sources) + len(extra), places))
        extra.append((source, own))

    if where is not None:
        add("where", *_where(sources[0], layout, where))
    for number, source in enumerate(sources):
        if source.valid is not None:
            add(f"mask {number}", source.valid, layout.source_axes[number])
    for number, value in enumerate(_nodata(sources, nodata)):
        if value is not None:
            terms.append(Term(f"nodata {number}", number, layout.crop_of(sources[number], number)[1], value))
    if terms:
        return Valid(tuple(terms), tuple(extra), _fills(sources, nodata_fill))
    if nodata_fill is not None:
        raise TilingError("give nodata_fill with where= or nodata=, which say what samples are not valid.")
    return None


def _fills(sources: Sequence[Source], nodata_fill: Any) -> tuple[Any, ...] | None:
    """Return what each array has in place of invalid samples, of its dtype; None: what is there."""
    if nodata_fill is None:
        return None
    values = _per_source("nodata_fill", nodata_fill, sources)
    return tuple(
        None if v is None else scalar("nodata_fill", v, s.dtype) for v, s in zip(values, sources, strict=True)
    )


def _per_source(what: str, value: Any, sources: Sequence[Source]) -> Sequence[Any]:
    if not isinstance(value, tuple):
        return (value,) * len(sources)
    if len(value) != len(sources):
        raise TilingError(f"{what} needs one value per array, {len(sources)}; got {brief(value)}.")
    return value


def _nodata(sources: Sequence[Source], nodata: Any) -> list[Any]:
    """Return the value of samples without data per source, of its dtype; None for a source that has none."""
    if nodata is None:
        return [None] * len(sources)
    # One value is that of the image; arrays beside it, such as labels, have values of their own.
    values = nodata if isinstance(nodata, tuple) else (nodata, *(None,) * (len(sources) - 1))
    return [
        None if v is None else _value(s, v)
        for v, s in zip(_per_source("nodata", values, sources), sources, strict=True)
    ]


def _value(source: Source, value: Any) -> Any:
    if value is True:
        value = None if source.meta is None else source.meta.nodata
        if value is None:
            raise TilingError(
                "nodata=True takes the value that the image says, and it says none: give the value "
                "(nodata=-9999, nodata=numpy.nan), or meta=tw.ImageMeta(axes, nodata=...)."
            )
    elif value is False:
        raise TypeError("nodata must be a value, or True; leave it out, or say nodata=0 for False samples.")
    return scalar("nodata", value, source.dtype)


def _where(image: Source, layout: Layout, where: Any) -> tuple[Source, tuple[int | None, ...]]:
    """Return the mask of samples, and its axis for each grid axis."""
    if isinstance(where, list | tuple | Mapping | bool | int | float | np.generic):
        raise TypeError(f"where must be an array of bool, a path or a URL; got {brief(where)}.")
    source = open_source(where)
    if source.dtype.kind not in "biu":
        raise TypeError(
            f"where must be bool or integer; got dtype {source.dtype}. Compare first: where=image > limit."
        )
    own = _image_axes(image, layout, source)
    names = [image.names[a] if image.names else str(a) for a in range(len(image.shape))]
    tiled = layout.tiled[0]
    for length, axis in zip(source.shape, own, strict=True):
        if axis not in tiled and length != image.shape[axis]:
            raise GridError(
                f"where of shape {source.shape} has {length} samples on axis {names[axis]}, which is not "
                f"tiled; the image has {image.shape[axis]}. Only tiled axes may have another resolution."
            )
    along = tuple(own.index(a) if a in own else None for a in layout.source_axes[0])
    lengths = tuple(source.shape[own.index(a)] for a in tiled)
    if not all(source.shape):
        raise GridError(f"where must not be empty; got shape {source.shape}.")
    for a in tiled:
        _check_ends(image, source, a, own.index(a))
    if not (source.names and set(source.names) <= set(image.names or ())):
        n = layout.n_each
        cure = "Name its axes if not, as a DataArray or as dimension names of Zarr."
        check_proportions("where", lengths, layout.grids[n:], layout.names[n:], cure)
    if isinstance(source, MemorySource) and not source.handle.any():
        warn("where is False everywhere, so no sample is valid and nothing runs.", TilingWarning)
    extents = tuple(image.shape[a] for a in own)
    if None in along or source.shape != extents:
        # Its chunks do not lie as the plan of the image's chunks supposes: each task reads what it needs.
        source = replace(source, chunks=None)
    return source, along


def _check_ends(image: Source, where: Source, a: int, b: int) -> None:
    """Raise a `GridError` if axis ``b`` of ``where`` covers another range than axis ``a`` of the image.

    Samples are found by number, so that a mask from south to north would hide the other half of its image.
    Ends may differ by what a coarser level of an image leaves out.
    """
    found = []
    for source, axis in ((image, a), (where, b)):
        meta, n = source.meta, source.shape[axis]
        # What says nothing of an axis has the default, (1, 0). One sample has no distance to another.
        if meta is None or n == 1 or (meta.scale[axis], meta.translation[axis]) == (1, 0):
            return
        step, start = meta.scale[axis], meta.translation[axis]
        found.append((step, start - step / 2, start + (n - 0.5) * step, meta.units[axis], meta.axes[axis]))
    (s, *ends, unit, name), (step, *others, unit_of_where, _) = found
    slack = 1.5 * max(abs(s), abs(step))
    if unit == unit_of_where and any(abs(p - q) > slack for p, q in zip(ends, others, strict=True)):
        raise GridError(
            f"where must cover what the image does: along {name!r} it goes from {others[0]:.10g} to "
            f"{others[1]:.10g}, the image from {ends[0]:.10g} to {ends[1]:.10g}. Flip or cut it; if its "
            "places are wrong, give its samples alone (of xarray: where.data)."
        )


def _image_axes(image: Source, layout: Layout, where: Source) -> list[int]:
    """Return the axis of the image for each axis of ``where``: by name, or by their number."""
    tiled, each = set(layout.tiled[0]), set(layout.each[0])
    if image.names and where.names and set(where.names) <= set(image.names):
        own = [image.names.index(name) for name in where.names]
        if tiled <= set(own):
            return own
    choices = [sorted(tiled), sorted(tiled | each), list(range(len(image.shape)))]
    found = next((c for c in choices if len(c) == len(where.shape)), None)
    if found is None:
        names = [image.names[a] if image.names else str(a) for a in sorted(tiled)]
        raise GridError(
            f"where must cover the tiled axes ({', '.join(names)}), with the axes in each= or not, or all "
            f"axes, in the order of the image; got shape {where.shape}."
        )
    return found
