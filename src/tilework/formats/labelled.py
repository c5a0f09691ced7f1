"""What xarray says of an image, and the labels of a result: dims, coordinates, attributes, CRS.

`meta_of` reads the meaning of a DataArray, and `Labels` makes DataArrays of results:

1. A coordinate is kept with its index if its axes kept their samples.
2. Along an axis with another scale a uniform coordinate gets the centres of the new samples. Others are
   dropped, with a warning.
3. An axis that the function makes gets the names of its channels as a coordinate.
4. The affine transform of a CRS is scaled with its axes.

Variables that are not in memory stay so: a coordinate that is a dask array, or not read yet, is kept or
dropped without a look at its values.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import warn
from tilework._derived import Holder, derived
from tilework.errors import GridError, TilingError, TilingWarning
from tilework.formats.coordinates import Coordinate
from tilework.formats.meta import Carried, ImageMeta, NewAxis
from tilework.formats.missing import OF_VALUES, most_telling

__all__ = [
    "Labels",
    "dataset_of",
    "is_dataset",
    "is_labelled",
    "meta_of",
    "relabelled",
    "told_by",
    "unpacked",
]

Parts = Sequence[Carried | NewAxis]

# Attributes on how values are packed; rioxarray leaves them there if it does not decode.
OF_PACKING = ("scale_factor", "add_offset", "valid_min", "valid_max", "valid_range")
# Attributes on the size of samples; stackstac writes them.
OF_SIZES = ("res", "resolution", "spec")
# Axes of CF, by the attribute "axis" of a coordinate.
CF_AXES = {"X": "space", "Y": "space", "Z": "space", "T": "time"}
# Names of the axes to which an affine transform refers, unless a coordinate says its axis.
EAST = ("x", "lon", "longitude", "easting")
NORTH = ("y", "lat", "latitude", "northing")


def is_labelled(array: Any) -> bool:
    """Return whether an array is a DataArray or Variable of xarray, which need not be installed."""
    xarray: Any = sys.modules.get("xarray")
    return xarray is not None and isinstance(array, xarray.DataArray | xarray.Variable)


def is_dataset(array: Any) -> bool:
    """Return whether ``array`` is a Dataset of xarray."""
    xarray: Any = sys.modules.get("xarray")
    return xarray is not None and isinstance(array, xarray.Dataset)


def unpacked(array: Any) -> Any:
    """Return the variables of a Dataset as a tuple of DataArrays, a single one alone; others as they are.

    Variables without axes, such as a CRS that was not opened as a coordinate, become coordinates.
    """
    if not is_dataset(array):
        return array
    dataset = array.set_coords([name for name, v in array.data_vars.items() if not v.dims])
    found = tuple(dataset.data_vars.values())
    if not found:
        raise TilingError("the Dataset has no variables with axes; give an array.")
    for one in found:
        if one.dims != found[0].dims:
            names = [v.name for v in found if v.dims == found[0].dims]
            raise GridError(
                f"a Dataset stands for its variables as several arrays, of which fn gets one crop each; "
                f"variable {one.name!r} has dims {one.dims}, and {found[0].name!r} has {found[0].dims}. "
                f"Choose variables of the same dims: dataset[{names!r}]."
            )
    return found if len(found) > 1 else found[0]


# -- in ---------------------------------------------------------------------------------------------------


def meta_of(array: Any) -> ImageMeta:
    """Return what the samples of a DataArray or Variable of xarray mean.

    Scale and translation of an axis are those of its coordinate, if that is evenly spaced: in seconds after
    the first sample for times. Coordinates that are not in memory, or belong to an index of several, are not
    part of it.
    """
    dims = _unique(array.dims)
    held = _held(array)
    own = _along(held, dims)
    kinds = {d: kind for d, c in own.items() if (kind := CF_AXES.get(str(c.attributes.get("axis", ""))))}
    kinds |= {d: "time" for d, c in own.items() if c.values.dtype.kind == "M"}
    usual = ImageMeta(dims)
    text = [d for d, c in own.items() if c.is_text and len(c.values)]
    if usual.channel_axis is None and len(text) == 1:
        kinds[text[0]] = "channel"
    meta = usual.replace(types=kinds) if kinds else usual
    places = {d: place for d, c in own.items() if (place := _place(c)) is not None}
    units = {d: unit for d, c in own.items() if (unit := _unit(c)) is not None}
    channel = None if meta.channel_axis is None else own.get(dims[meta.channel_axis])
    return meta.replace(
        units=units,
        scale={d: scale for d, (scale, _) in places.items()},
        translation={d: start for d, (_, start) in places.items()},
        channel_names=None if channel is None else _names(channel),
        coordinates=held,
        nodata=_nodata(array),
        attributes=array.attrs,
        name=getattr(array, "name", None),
    )


def told_by(array: Any, own: ImageMeta, known: ImageMeta | None) -> ImageMeta:
    """Return what is known of the samples of a result in an array of xarray, whose `meta_of` is ``own``.

    A DataArray may have been given other coordinates since, or have lost some: those that it has count.
    """
    if known is None or known.axes != own.axes:
        return own
    if not hasattr(array, "coords"):
        return known
    since = {
        dim: coordinate
        for dim, coordinate in _along(own.coordinates, own.axes).items()
        if dim not in known.coordinates or not _same(coordinate, known.coordinates[dim])
    }
    number = {dim: own.axes.index(dim) for dim in since}
    names, channel = known.channel_names, known.channel_axis
    if channel is not None and array.dims[channel] not in array.coords:
        names = None  # a result with names has a coordinate of them
    elif channel in number.values() and own.channel_axis == channel and own.channel_names:
        names = own.channel_names
    return known.replace(
        scale={dim: own.scale[a] for dim, a in number.items()},
        translation={dim: own.translation[a] for dim, a in number.items()},
        units={dim: unit for dim, c in since.items() if (unit := _unit(c)) is not None},
        channel_names=names,
        coordinates=own.coordinates,
    )


def _same(one: Coordinate, other: Coordinate) -> bool:
    if one is other:
        return True
    return np.array_equal(one.values, other.values) and dict(one.attributes) == dict(other.attributes)


def _along(held: Mapping[str, Coordinate], dims: Sequence[str]) -> dict[str, Coordinate]:
    """Return the coordinate of each dim that has one of its own."""
    return {dim: held[dim] for dim in dims if dim in held and held[dim].dims == (dim,)}


def _unique(dims: Sequence[Hashable]) -> tuple[str, ...]:
    """Return the names of dims as text; numbered if two of them are the same text, or one is empty."""
    names = tuple(map(str, dims))
    if len(set(names)) < len(names) or not all(names):
        return tuple(f"dim_{k}" for k in range(len(names)))
    return names


def _held(array: Any) -> dict[str, Coordinate]:
    """Return the coordinates of which the values are in memory, by name."""
    found: dict[str, Coordinate] = {}
    names = dict(zip(array.dims, _unique(array.dims), strict=True))
    together = _indexed_together(array)
    for name, variable in _variables(array).items():
        if not isinstance(name, str) or name in together or not variable._in_memory:
            continue
        values = variable.data  # made anew from texts, which pandas holds in another form
        if isinstance(values, np.ndarray) and len(set(variable.dims)) == variable.ndim:
            dims = tuple(names[dim] for dim in variable.dims)
            found[name] = Coordinate(dims, values, dict(variable.attrs))
    return found


def _variables(array: Any) -> dict[Hashable, Any]:
    """Return the variables of all coordinates by name; a Variable has none."""
    return {name: coord.variable for name, coord in getattr(array, "coords", {}).items()}


def _indexed_together(array: Any) -> dict[Hashable, frozenset[Hashable]]:
    """Return, for each coordinate that shares its index with others, all that have this index."""
    groups: dict[int, set[Hashable]] = {}
    for name, index in getattr(array, "xindexes", {}).items():
        groups.setdefault(id(index), set()).add(name)
    several = [frozenset(names) for names in groups.values() if len(names) > 1]
    return {name: names for names in several for name in names}


def _names(coordinate: Coordinate) -> tuple[str, ...] | None:
    """Return the values of a coordinate of text; None for others."""
    return tuple(map(str, coordinate.values)) if coordinate.is_text and len(coordinate.values) else None


def _place(coordinate: Coordinate) -> tuple[float, float] | None:
    """Return the distance of neighbouring values and the first one; None if there is no single distance."""
    values, step = coordinate.values, coordinate.step
    if values.dtype.kind in "mM":
        if step is None:
            return None
        second = np.timedelta64(1, "s")
        # No date is the zero of a time, but a difference of times is one.
        first = float(values[0] / second) if values.dtype.kind == "m" else 0.0
        return step / float(second / coordinate.unit), first
    if step is not None:
        return step, float(values[0])
    # A single sample has a place, but no distance.
    single = values.shape == (1,) and values.dtype.kind in "iuf" and np.isfinite(values[0])
    return (1.0, float(values[0])) if single else None


def _unit(coordinate: Coordinate) -> str | None:
    if coordinate.values.dtype.kind in "mM":
        return "second"
    unit = coordinate.attributes.get("units")
    return unit if isinstance(unit, str) and unit else None


def _nodata(array: Any) -> Any:
    """Return the value of samples without data, as xarray and rioxarray have it; None if there is none."""
    # "fill_value" of an encoding is that of Zarr: what is read where nothing was written, mostly 0.
    stored = [array.encoding.get(name) for name in OF_VALUES[:2]]
    if array.dtype.kind in "fc" and any(v is not None and np.all(v == v) for v in stored):
        return np.nan  # xarray has put NaN in place of the value
    said = [array.attrs.get(name) for name in OF_VALUES] + stored
    return most_telling(v for v in said if np.ndim(v) == 0 and not isinstance(v, str | bytes))


def _with_nodata(array: Any, nodata: Any) -> Any:
    """Return an array of xarray that says which value samples without data have; None: as it is.

    NaN is said in the encoding, where it is the sign of samples that were masked. Other values are said where
    the array says one; else in an attribute that no reader takes for a reason to mask, as classes often have
    the same value. Flags, complex numbers and times have no such attribute.
    """
    import xarray as xr

    if nodata is None or array.dtype.kind not in "iufc" or xr.get_options()["keep_attrs"] is False:
        return array
    value, said = array.dtype.type(nodata), _nodata(array)
    if said is not None and (said == value or (said != said and value != value)):
        return array
    keys = [key for key in OF_VALUES if key in array.attrs]
    for where in (array.attrs, array.encoding):
        for key in OF_VALUES:
            where.pop(key, None)
    if value != value:
        array.encoding["_FillValue"] = value
    elif array.dtype.kind != "c":
        array.attrs |= dict.fromkeys(keys or OF_VALUES[-1:], value)
        if array.dtype.kind == "f" and OF_VALUES[0] not in array.attrs:
            array.encoding[OF_VALUES[0]] = None  # else xarray stores NaN, which readers see first
    return array


# -- out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Labels(Holder):
    """The labels of the arrays of one call."""

    arrays: tuple[Any, ...]
    """The arrays of xarray among those of the call, the first of the call first."""
    numbers: tuple[int, ...]
    """Their numbers among the arrays of the call."""
    opened: ImageMeta | None = None
    """What the first of them says of its samples; None if nobody asked it yet."""

    @derived
    def known(self) -> Mapping[str, Coordinate]:
        """Coordinates of the first of them, of which the values are in memory."""
        return _held(self.arrays[0]) if self.opened is None else self.opened.coordinates

    @classmethod
    def of(
        cls, given: Sequence[Any], opened: ImageMeta | None = None, meta: ImageMeta | None = None
    ) -> Labels | None:
        """Return the labels of a call; None if its first array is not of xarray.

        Parameters
        ----------
        given : sequence of arrays
        opened : ImageMeta, optional
            The meaning of the first array, as it says itself.
        meta : ImageMeta, optional
            The meaning of the first array, as the caller gave it: other names of axes become its dims.
        """
        if not is_labelled(given[0]):
            return None
        numbers = tuple(k for k, array in enumerate(given) if is_labelled(array))
        first, *others = (given[k] for k in numbers)
        if meta is not None:
            pairs = zip(first.dims, _unique(first.dims), meta.axes, strict=True)
            renamed = {dim: new for dim, old, new in pairs if old != new}
            first = first.rename(renamed) if hasattr(first, "coords") else first.rename_dims(renamed)
            opened = opened if not renamed else None
        return cls((first, *others), numbers, opened)

    def check(self, axes: Sequence[Sequence[int]]) -> None:
        """Raise a `GridError` unless the arrays have the same labels along ``axes``, one entry per array."""
        first = self.arrays[0]
        for number, array in zip(self.numbers[1:], self.arrays[1:], strict=True):
            for a, b in zip(axes[self.numbers[0]], axes[number], strict=True):
                one, other = first.dims[a], array.dims[b]
                if one != other:
                    raise GridError(
                        f"axis {one!r} of the first array would be cut with axis {other!r} of array "
                        f"{number}; transpose that one, or name the axes: its dims are {array.dims}."
                    )
                indexes = [x.xindexes.get(one) for x in (first, array) if hasattr(x, "xindexes")]
                if len(indexes) == 2 and None not in indexes and not indexes[0].equals(indexes[1]):
                    raise GridError(
                        f"the coordinates {one!r} of the first array and of array {number} differ; align "
                        'them first: xr.align(a, b, join="inner") keeps what both have.'
                    )

    def label(self, data: Any, meta: ImageMeta, parts: Parts, *, hidden: bool = False) -> Any:
        """Return the DataArray of a result, or the Variable if the first array is one.

        Parameters
        ----------
        data : dask array
        meta : ImageMeta
            What the samples of the result mean.
        parts : sequence of Carried or NewAxis
            Its axes.
        hidden : bool
            Whether samples without data have the nodata of ``meta``; else the attributes say it as in the
            first array.
        """
        import xarray as xr

        first = self.arrays[0]
        scales = {first.dims[p.axis]: float(p.scale) for p in parts if isinstance(p, Carried)}
        dims = [self._dim(name) for name in meta.axes]
        attributes = _attributes(self.arrays, data.dtype, scales)
        if not isinstance(first, xr.DataArray):
            return _with_nodata(xr.Variable(dims, data, attributes), meta.nodata if hidden else None)
        found = first.coords.to_dataset()
        found.attrs.clear()
        known = self.known
        fresh = {n: c for n, c in meta.coordinates.items() if n not in known or c != known[n]}
        here: set[Hashable] = {n for n in meta.coordinates if n not in fresh}
        here |= _kept_others(found, known, scales)
        together = _indexed_together(found)
        here = {name for name in here if together.get(name, frozenset()) <= here and name not in fresh}
        # A new axis may take the name of a coordinate of another shape.
        here = {name for name in here if name not in dims or found[name].dims == (name,)}
        found = found.drop_vars([name for name in found.variables if name not in here])
        found = found.assign_coords(
            {n: (tuple(map(self._dim, c.dims)), _shared(n, c), dict(c.attributes)) for n, c in fresh.items()}
        )
        channel = meta.channel_axis
        if meta.channel_names is not None and channel is not None and dims[channel] not in found.variables:
            # Text of any length: Zarr format 3 does not specify text of one length.
            names = np.array(meta.channel_names, object)
            found = found.assign_coords({dims[channel]: (dims[channel], names)})
        result = xr.DataArray(
            data, coords=_scaled_crs(found, first, scales).coords, dims=dims, attrs=attributes
        )
        result.name = self._name()  # the constructor would take that of the dask array for none
        kept = ("grid_mapping", *(OF_VALUES[:2] if data.dtype == first.dtype else ()))
        result.encoding = {key: first.encoding[key] for key in kept if key in first.encoding}
        return _with_nodata(result, meta.nodata if hidden else None)

    def _dim(self, name: str) -> Hashable:
        """Return the dim of the first array with a name, which may not be text; else the name."""
        first = self.arrays[0]
        dims: dict[str, Hashable] = dict(zip(_unique(first.dims), first.dims, strict=True))
        return dims.get(name, name)

    def _name(self) -> Hashable | None:
        """Return the name of the result: the common name of all arrays."""
        names = {getattr(array, "name", None) for array in self.arrays}
        return names.pop() if len(names) == 1 else None


def _shared(name: str, coordinate: Coordinate) -> Any:
    """Return the values of a coordinate as xarray takes them without a copy, where it can.

    pandas copies what it makes an index of, and xarray copies indexes once more when a DataArray is made: of
    a million values along two axes, that is a third of the time of building a result.
    """
    import pandas as pd

    values = coordinate.values
    plain = coordinate.dims == (name,) and values.dtype in (np.float32, np.float64, np.int64)
    return pd.Index(values, copy=False) if plain else values


def dataset_of(results: Mapping[Any, Any]) -> Any:
    """Return a Dataset of the DataArrays of several outputs, by key.

    A dict of them if they cannot be in one Dataset: their lengths along an axis of one name differ, as those
    of outputs at several scales do.
    """
    import xarray as xr

    if not all(isinstance(one, xr.DataArray) for one in results.values()):
        return dict(results)
    named = {key: one.rename(key) for key, one in results.items()}
    if any(key in one.coords or key in one.dims for key, one in named.items()):
        return named
    try:
        found = xr.merge(named.values(), compat="identical", join="exact", combine_attrs="override")
    except ValueError:
        return named
    found.attrs.clear()  # those of the first array
    return found


def relabelled(lazy: Any, data: Any) -> Any:
    """Return computed ``data`` with the labels of the lazy result that was computed."""
    return lazy.copy(data=data) if is_labelled(lazy) else data


def _kept_others(found: Any, known: Mapping[str, Any], scales: Mapping[Hashable, float]) -> set[Hashable]:
    """Return the coordinates of which all axes kept their samples, among those of unknown values."""
    here = set()
    for name, variable in _variables(found).items():
        if name in known or not all(dim in scales for dim in variable.dims):
            continue
        if all(scales[dim] == 1 for dim in variable.dims):
            here.add(name)
        else:
            warn(
                f"the result has no coordinate {name!r}: its axes {variable.dims} have another scale, and "
                "its values are not in memory, or have an index of several coordinates.",
                TilingWarning,
            )
    return here


def _attributes(arrays: Sequence[Any], dtype: Any, scales: Mapping[Hashable, float]) -> dict[Any, Any]:
    """Return the attributes of a result by ``keep_attrs`` of xarray; those that differ are dropped.

    By default they are kept: the result is an image of the same things.
    """
    import xarray as xr

    if xr.get_options()["keep_attrs"] is False:
        return {}
    first = arrays[0]
    found = {
        key: value
        for key, value in first.attrs.items()
        if all(_equal(other.attrs.get(key, value), value) for other in arrays[1:])
    }
    if dtype != first.dtype:
        found = {key: value for key, value in found.items() if key not in (*OF_VALUES, *OF_PACKING)}
    x, y = _spatial_scales(first, scales)
    if (x, y) != (1, 1):
        found = {key: value for key, value in found.items() if key not in OF_SIZES}
        transform = found.get("transform")
        numbers = _numbers(transform, 6, 9)
        if numbers is not None and not isinstance(transform, str):
            a, b, c, d, e, f, *rest = numbers
            # An Affine holds nine numbers and takes six; it is no sequence since version 3 of its package.
            kind: Any = type(transform)
            scaled = a / x, b / y, c, d / x, e / y, f
            found["transform"] = kind(*scaled) if kind.__name__ == "Affine" else (*scaled, *rest)
    return found


def _equal(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(np.array_equal(a, b)) or bool(a == b)
    except (TypeError, ValueError):
        return False


def _spatial_scales(array: Any, scales: Mapping[Hashable, float]) -> tuple[float, float]:
    """Return the scales of the axes to which an affine transform refers: x, then y."""
    variables = _variables(array)
    found = []
    for letter, usual in (("X", EAST), ("Y", NORTH)):
        said = [d for d in scales if d in variables and variables[d].attrs.get("axis") == letter]
        named = [d for d in scales if str(d).lower() in usual]
        found.append(next((scales[d] for d in [*said, *named]), 1.0))
    return found[0], found[1]


def _scaled_crs(found: Any, array: Any, scales: Mapping[Hashable, float]) -> Any:
    """Return coordinates in which the affine transform of a CRS has the size of the new samples.

    The corner of the image stays where it is: a sample covers the area, and `tiled_map` cuts nothing off.
    """
    x, y = _spatial_scales(array, scales)
    if (x, y) == (1, 1):
        return found
    for name, variable in _variables(found).items():
        numbers = _numbers(variable.attrs.get("GeoTransform"), 6)
        if numbers is not None and not variable.dims:
            west, width, across, north, down, height = numbers
            scaled = (west, width / x, across / y, north, down / x, height / y)
            text = " ".join(map(repr, scaled))
            found = found.assign_coords({name: variable.copy(deep=False)})
            found[name].attrs["GeoTransform"] = text
    return found


def _numbers(value: Any, *lengths: int) -> tuple[float, ...] | None:
    """Return the numbers of an affine transform, text or not; None for anything of other ``lengths``."""
    try:
        numbers = tuple(map(float, value.split() if isinstance(value, str) else value))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) in lengths else None
