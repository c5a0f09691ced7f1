"""`ObjectAxes`: which axes of an image belong to its objects, and the columns that tell where these are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._types import Array, Index, Span
from tilework.formats.meta import ImageMeta
from tilework.labels.rows import Rows
from tilework.objects.table import Table
from tilework.plan.arguments import resolve_axes
from tilework.source.base import Source

__all__ = ["ObjectAxes"]


@dataclass(frozen=True, slots=True)
class ObjectAxes:
    """The axes of a label image: those in ``each``, and those along which its objects extend.

    Examples
    --------
    >>> axes = ObjectAxes((1, 4), (), (0, 1), None)
    >>> rows = Rows.of(np.array([[3, 3, 0, 7]]), (0, 0), (1, 4))
    >>> axes.table(rows)
    <Table: 2 rows, 9 columns>
    label  bbox-0  bbox-1  bbox-2  bbox-3  area  centroid-0  centroid-1  first
        3       0       0       1       2     2           0         0.5      0
        7       0       3       1       4     1           0           3      3
    """

    shape: Index
    """Extents of the image, samples."""
    each: Index
    """Numbers of the axes whose every index has objects of its own."""
    own: Index
    """Numbers of all other axes."""
    meta: ImageMeta | None
    """What the samples mean, if it is known."""

    @classmethod
    def of(cls, source: Source, each: Any, meta: ImageMeta | None = None) -> ObjectAxes:
        """Return the axes of an image; ``each`` are numbers or names, those of ``meta`` if it is given.

        Raises
        ------
        TilingError
            For axes that do not exist, if none is left for the objects, and for ``meta`` of other axes.
        """
        if meta is not None:
            meta.check("labels", source.shape)
            source = replace(source, meta=meta)
        chosen, own = resolve_axes(source, None, each, None)
        return cls(source.shape, chosen, own, source.meta)

    @property
    def extents(self) -> Index:
        """Extents along the axes of the objects, samples."""
        return tuple(self.shape[a] for a in self.own)

    @property
    def counts(self) -> Index:
        """Extents along the ``each`` axes."""
        return tuple(self.shape[a] for a in self.each)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of the ``each`` axes."""
        return tuple(f"axis_{a}" if self.meta is None else self.meta.axes[a] for a in self.each)

    def ordered(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return one value per axis of the image as one per ``each`` axis, then one per other axis."""
        return tuple(values[a] for a in (*self.each, *self.own))

    def part(self, samples: Array) -> Array:
        """Return a part of the image with the ``each`` axes first."""
        return samples.transpose(*self.each, *self.own)

    def box(self, number: int, low: Sequence[int], high: Sequence[int]) -> tuple[Span, ...]:
        """Return the box, a span per axis of the image, of a box of one index of the ``each`` axes."""
        found: list[Span] = [(0, 0)] * len(self.shape)
        for axis, i in zip(
            self.each, np.unravel_index(number, self.counts) if self.each else (), strict=True
        ):
            found[axis] = int(i), int(i) + 1
        for axis, a, b in zip(self.own, low, high, strict=True):
            found[axis] = int(a), int(b)
        return tuple(found)

    def table(self, rows: Rows, more: Mapping[str, Array] | None = None) -> Table:
        """Return the table of objects.

        Parameters
        ----------
        rows : Rows
            One row per object, as `Rows.merged` returns them.
        more : mapping of str to array, optional
            Further columns, one value per row.
        """
        units: dict[str, str] = {}
        index = np.unravel_index(rows.index, self.counts) if self.each else ()
        names: dict[str, Array] = dict(zip(self.names, index, strict=True))
        ndim = len(self.own)
        columns: dict[str, Array] = {**names, "label": rows.ids}
        columns |= {f"bbox-{k}": rows.low[:, k] for k in range(ndim)}
        columns |= {f"bbox-{ndim + k}": rows.high[:, k] for k in range(ndim)}
        columns["area"] = rows.area
        columns |= {f"centroid-{k}": rows.sums[:, k] / rows.area for k in range(ndim)}
        columns["first"] = rows.first
        for name, values, unit in self._world(rows):
            columns[name] = values
            units |= {name: unit} if unit else {}
        return Table(columns | dict(more or {}), units)

    def _world(self, rows: Rows) -> Iterator[tuple[str, Array, str | None]]:
        """Yield columns in the units of the axes, with these, if the meaning says more than names."""
        meta = self.meta
        if meta is None or not any(
            meta.units[a] is not None or meta.scale[a] != 1 or meta.translation[a] for a in self.own
        ):
            return
        for k, axis in enumerate(self.own):
            name, unit = meta.axes[axis], meta.units[axis]
            scale, start = meta.scale[axis], meta.translation[axis]
            # A sample covers half a sample around its centre.
            edges = [start + (e[:, k] - 0.5) * scale for e in (rows.low, rows.high)]
            yield f"bbox_world-{name}-min", np.minimum(*edges), unit
            yield f"bbox_world-{name}-max", np.maximum(*edges), unit
            yield f"centroid_world-{name}", start + rows.sums[:, k] / rows.area * scale, unit
        size = math.prod(abs(meta.scale[a]) for a in self.own)
        units = {meta.units[a] for a in self.own}
        unit = units.pop() if len(units) == 1 else None
        power = f"^{len(self.own)}" if len(self.own) > 1 else ""
        yield "area_world", rows.area * size, f"{unit}{power}" if unit else None
