"""Properties of objects: which there are, which add up from parts, and those of scikit-image from boxes."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tilework._checks import attribute, brief, noted, positive, sequence
from tilework._types import Array, Ints, Span
from tilework.errors import TilingError
from tilework.labels.rows import Rows, added_up
from tilework.labels.runs import Runs, check_ids
from tilework.objects.axes import ObjectAxes
from tilework.source.base import Source

__all__ = ["ADDED", "BoxProperties", "Columns", "Facts", "PartFacts", "Wanted", "from_facts", "from_rows"]

Columns = dict[tuple[int | None, str], Array]
"""Columns by the number of the intensity image, None for those without, and by name without it."""

BASE = ("label", "bbox", "area", "centroid")
"""Properties that every table has."""
FROM_ROWS = ("num_pixels", "area_bbox", "extent", "centroid_local", "equivalent_diameter_area")
"""Properties that follow from those."""
ADDED = {"intensity_min": "min", "intensity_max": "max", "intensity_mean": "sum", "intensity_sum": "sum"}
"""Properties of an intensity image, and the fact that adds up to it."""
MERGES: dict[str, Any] = {"min": np.minimum, "max": np.maximum, "sum": np.add}
VALUES = (*ADDED, "intensity_median", "intensity_std")
"""Properties of the values of an object, wherever these are."""
ARRAYS = ("coords", "coords_scaled", "image", "image_convex", "image_filled", "image_intensity", "slice")
"""Properties whose values are arrays of any length, which no column holds."""
CENTRE = "centroid_weighted"
# Words of scikit-image before 0.20.
OLD = {"bbox_area": "area_bbox", "equivalent_diameter": "equivalent_diameter_area"}


def _skimage() -> Any:
    try:
        import skimage.measure as found
    except ImportError as error:
        raise ImportError(
            "properties of objects need scikit-image: pip install tilework[labels]. The table without "
            "properties=, and minimum, maximum, mean and sum of integer images, need nothing."
        ) from error
    return found


# -- what is asked for ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """The properties of one call, by the way they are found."""

    images: tuple[tuple[str, np.dtype[Any]], ...]
    """Name, empty for the only one, and dtype of each intensity image."""
    rows: tuple[str, ...] = ()
    """Properties that follow from rows."""
    added: tuple[tuple[str, int], ...] = ()
    """Properties that add up from parts, and the numbers of their intensity images."""
    shapes: tuple[str | Callable[..., Any], ...] = ()
    """Properties of scikit-image, and functions, of the mask of an object."""
    valued: tuple[tuple[str | Callable[..., Any], int], ...] = ()
    """The same of its mask and intensities, with the numbers of their intensity images."""
    spacing: tuple[float, ...] | None = None
    """Distance of neighbouring samples along each axis of the objects; None: 1."""
    order: tuple[tuple[str, int | None], ...] = ()
    """Names of all, in the order of the columns, with the numbers of their intensity images."""

    @classmethod
    def of(
        cls,
        properties: Any,
        images: Mapping[str, Source],
        axes: ObjectAxes,
        spacing: Any = None,
    ) -> Wanted:
        """Return what ``properties`` ask for.

        Parameters
        ----------
        properties : str, callable, or sequence of them
        images : mapping of str to Source
            Intensity images by name; that of the only one is empty.
        axes : ObjectAxes
        spacing : sequence of float or "meta", optional
            Distance of neighbouring samples along each axis of the objects.

        Raises
        ------
        TilingError
            For an unknown property, one that needs an intensity image if there is none, one whose values
            are arrays, and one that scikit-image does not have in this dimension.
        TypeError
            For anything but names and functions.
        """
        known = tuple((name, source.dtype) for name, source in images.items())
        found = cls(known, spacing=_spacing(spacing, axes))
        listed = (properties,) if isinstance(properties, str) or callable(properties) else properties
        if not isinstance(listed, list | tuple | set | frozenset | dict):
            raise TypeError(f"properties must be names or functions; got {brief(properties)}.")
        for one in listed:
            found = found._with(one, len(axes.own))
        found._try(len(axes.own))
        return found

    @property
    def names(self) -> list[str]:
        """The names of all properties."""
        return list(dict.fromkeys(name for name, _ in self.order))

    @property
    def by_box(self) -> bool:
        """Whether any property is found from the box of an object."""
        return bool(self.shapes or self.valued)

    def _with(self, one: Any, ndim: int) -> Wanted:
        name = one if isinstance(one, str) else attribute(one, "__name__")
        if not (isinstance(one, str) or callable(one)) or name is None:
            raise TypeError(f"a property is a name or a function with a name; got {brief(one)}.")
        if name in self.names or name in BASE:
            if isinstance(one, str):
                return self
            raise TilingError(f"two properties are called {name!r}; rename the function.")
        if isinstance(one, str):
            _check_name(name, ndim)
        if isinstance(one, str) and (name == "num_pixels" or (name in FROM_ROWS and not self.spacing)):
            return replace(self, rows=(*self.rows, name), order=(*self.order, (name, None)))
        if not _takes_values(one):
            return replace(self, shapes=(*self.shapes, one), order=(*self.order, (name, None)))
        if not self.images:
            raise TilingError(f"property {name!r} needs an intensity image; give intensity=.")
        numbers = range(len(self.images))
        adds = [k for k in numbers if isinstance(one, str) and _adds(name, self.images[k][1])]
        return replace(
            self,
            added=(*self.added, *((name, k) for k in adds)),
            valued=(*self.valued, *((one, k) for k in numbers if k not in adds)),
            order=(*self.order, *((name, k) for k in numbers)),
        )

    def _try(self, ndim: int) -> None:
        """Raise if scikit-image has a property not in this dimension, before an image is read."""
        names = [one for one in (*self.shapes, *(one for one, _ in self.valued)) if isinstance(one, str)]
        functions = [one for one in (*self.shapes, *(f for f, _ in self.valued)) if callable(one)]
        if not (names or functions):
            return
        measure = _skimage()
        if ndim not in (2, 3):
            others = [*map(_name, functions), *(name for name in names if name not in VALUES)]
            if others:
                raise TilingError(
                    f"scikit-image measures objects of 2 and 3 dimensions; these have {ndim}. Give axes such "
                    f"as time and channel as each=, or leave out {others}: {[*FROM_ROWS[:4], *VALUES]} exist "
                    "in any dimension."
                )
            return
        one = np.pad(np.ones((3,) * ndim, np.int32), 1)
        (region,) = measure.regionprops(one, one.astype(np.float64), spacing=self.spacing)
        for name in names:
            try:
                if name != "intensity_sum":
                    region[name]
            except NotImplementedError as error:
                raise TilingError(f"property {name!r}: {error}.") from error

    def column(self, name: str, number: int | None) -> str:
        """Return the name of a column with that of its intensity image."""
        image = "" if number is None else self.images[number][0]
        return f"{name}-{image}" if image else name


def _spacing(given: Any, axes: ObjectAxes) -> tuple[float, ...] | None:
    """Return the distance of neighbouring samples along each axis of the objects."""
    if given is None:
        return None
    if isinstance(given, str) and given == "meta":
        if axes.meta is None:
            raise TilingError('spacing="meta": what the labels mean is not known; give meta=, or numbers.')
        return tuple(abs(axes.meta.scale[a]) for a in axes.own)
    if not sequence(given):
        raise TypeError(f'spacing must be "meta", or a number for each axis; got {brief(given)}.')
    if len(given) != len(axes.own) or not all(positive("spacing", value) for value in given):
        raise TilingError(
            f"spacing needs a positive number for each of the {len(axes.own)} axes of the objects; got "
            f"{brief(given)}."
        )
    return tuple(map(float, given))


def _name(function: Any) -> str:
    return str(function if isinstance(function, str) else function.__name__)


def _adds(name: str, dtype: np.dtype[Any]) -> bool:
    """Return whether a property adds up from parts to the bit: sums of floats depend on their order."""
    fact = ADDED.get(name)
    return fact in ("min", "max") or (fact == "sum" and dtype.kind in "biu" and dtype.itemsize <= 4)


def _takes_values(one: Any) -> bool:
    """Return whether a property needs the intensities of an object besides its mask."""
    if isinstance(one, str):
        return "intensity" in one or "weighted" in one
    try:
        parameters = inspect.signature(one).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"the function {one.__name__!r} must take the mask of an object, or its mask and intensities; "
            f"it takes {len(needed)} arguments."
        )
    return len(needed) == 2


def _check_name(name: str, ndim: int) -> None:
    """Raise unless a property exists and fits into columns."""
    if name in ADDED or name in FROM_ROWS:
        if name == "equivalent_diameter_area" and ndim not in (2, 3):
            raise TilingError(f"property {name!r} exists in 2 and 3 dimensions; the objects have {ndim}.")
        return
    measure = _skimage()
    one = np.zeros((3,) * 2, np.int32)
    one[1, 1] = 1
    (region,) = measure.regionprops(one)
    known = sorted(
        {*BASE, *FROM_ROWS, *ADDED, *(n for n in dir(region) if not n.startswith("_"))} - {*ARRAYS}
    )
    if name in ARRAYS:
        raise TilingError(
            f"properties={name!r} is an array for each object, and no column; a function of the mask can "
            "make numbers of it."
        )
    if name not in known:
        words = set(name.lower().split("_"))
        same = [k for k in known if set(k.split("_")) == words]
        near = [OLD[name]] if name in OLD else same or difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
        raise TilingError(f"properties={name!r}: there is no such property{hint}")


# -- facts that add up ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows, and facts about the intensities of each that add up like them."""

    rows: Rows
    more: Mapping[tuple[str, int], Array]
    """By kind and number of the intensity image."""

    @classmethod
    def merged(cls, parts: list[Facts]) -> Facts:
        """Return one row per object, in ascending order of index and id; ``parts`` is emptied."""
        own, kinds = [f.name for f in fields(Rows)], list(parts[0].more)
        columns = {name: [getattr(part.rows, name) for part in parts] for name in own}
        columns |= {f"{kind}-{k}": [part.more[kind, k] for part in parts] for kind, k in kinds}
        parts.clear()
        found = added_up(columns, {f"{kind}-{k}": MERGES[kind] for kind, k in kinds})
        more = {(kind, k): found.pop(f"{kind}-{k}") for kind, k in kinds}
        return cls(Rows(**found), more)


@dataclass(frozen=True, slots=True)
class PartFacts:
    """The function of the tasks that find facts in blocks."""

    axes: ObjectAxes
    facts: tuple[tuple[str, int], ...]
    """The facts about intensities: kind, and number of the image; its samples follow those of the labels."""
    numbers: tuple[int, ...]
    """Numbers of the intensity images that are read."""

    def __call__(self, samples: list[Array], box: Sequence[Span], argument: Any) -> Facts:
        """Return the facts of one block."""
        del argument
        axes = self.axes
        check_ids(samples[0], "labels holds")
        labels, *images = (axes.part(part) for part in samples)
        start = axes.ordered([a for a, _ in box])
        rows = Rows.of(labels, start, axes.ordered(axes.shape), len(axes.each))
        if not self.facts:
            return Facts(rows, {})
        found: list[list[Array]] = [[] for _ in self.facts]
        for at in np.ndindex(*labels.shape[: len(axes.each)]):
            runs = Runs.of(labels[at])
            objects = runs.objects()
            which = np.repeat(objects.number, runs.lengths)
            places = runs.samples()
            for (kind, number), column in zip(self.facts, found, strict=True):
                image = images[self.numbers.index(number)][at]
                values = np.ascontiguousarray(image).ravel()[places]
                column.append(_reduced(kind, values, which, len(objects)))
        more = {fact: np.concatenate(column) for fact, column in zip(self.facts, found, strict=True)}
        return Facts(rows, more)


def _reduced(kind: str, values: Array, which: Ints, count: int) -> Array:
    """Return the sum, minimum or maximum of the values of each object; every object has some."""
    if kind == "sum":
        total = np.zeros(count, np.int64)
        np.add.at(total, which, values.astype(np.int64))
        return total
    some = np.zeros(count, np.int64)  # the place of any sample of each object
    some[which] = np.arange(len(which))
    best: Array = values[some]
    MERGES[kind].at(best, which, values)
    return best


def from_rows(name: str, rows: Rows) -> Iterator[tuple[str, Array]]:
    """Yield the columns of a property that follows from rows."""
    size = (rows.high - rows.low).prod(1)
    ndim = rows.low.shape[1]
    if name == "num_pixels":
        yield name, rows.area
    elif name == "area_bbox":
        yield name, size.astype(np.float64)
    elif name == "extent":
        yield name, rows.area / size
    elif name == "equivalent_diameter_area":
        yield name, (2 * ndim * rows.area.astype(np.float64) / math.pi) ** (1 / ndim)
    else:
        for k in range(ndim):
            yield f"{name}-{k}", (rows.sums[:, k] - rows.area * rows.low[:, k]) / rows.area


def from_facts(name: str, rows: Rows, values: Array) -> Array:
    """Return the column of a property that adds up."""
    if name == "intensity_sum":
        return values
    return values / rows.area if name == "intensity_mean" else values.astype(np.float64)


# -- from boxes -------------------------------------------------------------------------------------------


def intensity_sum(mask: Any, values: Any) -> float:
    """Return the sum of the intensities of an object, in double precision."""
    return float(values[mask].sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class BoxProperties:
    """The function of the tasks that measure whole objects in boxes."""

    axes: ObjectAxes
    wanted: Wanted

    def __call__(self, samples: list[Array], box: Sequence[Span], ids: Ints) -> tuple[Ints, Ints, Columns]:
        """Return indices of the ``each`` axes, ids, and columns, of the objects ``ids``, ascending."""
        axes = self.axes
        n = len(axes.each)
        labels, *images = (axes.part(part)[(0,) * n] for part in samples)
        runs = Runs.of(labels)
        found = runs.ids.astype(np.int64, copy=False)  # searched for as floats where the dtypes differ
        row = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
        chosen = ids[row] == found
        numbered = runs.only(chosen).painted((row[chosen] + 1).astype(np.int32))
        start = axes.ordered([a for a, _ in box])
        columns = self._columns(numbered, images, start[n:])
        at = np.ravel_multi_index(start[:n], axes.counts) if n else 0
        return np.full(len(ids), at), ids, columns

    def of_nothing(self, dtypes: Sequence[np.dtype[Any]]) -> Columns:
        """Return the columns of no objects; scikit-image tells their names from an object of one sample."""
        labels, *images = (np.zeros((1,) * len(self.axes.own), dtype) for dtype in dtypes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._columns(labels.astype(np.int32), images, [0] * labels.ndim)

    def _columns(self, numbered: Array, images: Sequence[Array], start: Sequence[int]) -> Columns:
        columns = self._measured(numbered, None, self.wanted.shapes, start, None)
        for number, image in enumerate(images):
            own = [one for one, k in self.wanted.valued if k == number]
            columns |= self._measured(numbered, image, own, start, number)
        return columns

    def _measured(
        self,
        numbered: Array,
        image: Array | None,
        wanted: Sequence[str | Callable[..., Any]],
        start: Sequence[int],
        number: int | None,
    ) -> Columns:
        """Return columns of all objects of a box, which are numbered from 1."""
        functions = [intensity_sum if one == "intensity_sum" else one for one in wanted]
        names = [one for one in functions if isinstance(one, str)]
        more = [one for one in functions if callable(one)]
        if not functions:
            return {}
        spacing = self.wanted.spacing
        if image is not None and numbered.ndim not in (2, 3):  # only values are asked for
            last = numbered.shape[-1]
            numbered, image, spacing = numbered.reshape(-1, last), image.reshape(-1, last), None
        weighted = CENTRE in names
        if weighted:
            # Places in the box would be rounded before they become places in the image.
            names = list(dict.fromkeys([*(n for n in names if n != CENTRE), "bbox", f"{CENTRE}_local"]))
        measure = functools.partial(
            _skimage().regionprops_table, properties=names, extra_properties=more or None, spacing=spacing
        )
        found = noted(f"raised while measuring objects in a box at {[*start]}", measure, numbered, image)
        if weighted:
            for k, (first, size) in enumerate(zip(start, spacing or (1.0,) * numbered.ndim, strict=True)):
                place = (found[f"bbox-{k}"] + first) * size
                found[f"{CENTRE}-{k}"] = found[f"{CENTRE}_local-{k}"] + place
        for name, values in found.items():
            if values.dtype.hasobject:
                raise TilingError(
                    f"the function {name!r} must return one number, or arrays of one shape for all objects."
                )
        return {(number, name): values for name, values in found.items()}
