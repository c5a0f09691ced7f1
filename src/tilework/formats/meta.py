"""`ImageMeta`: what the samples of an image mean, and how it changes with the axes of a result."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from tilework._checks import brief, check_scalar, is_whole, of_type, one_of, sequence, warn, wholes
from tilework._derived import Holder, derived
from tilework._types import Array
from tilework.errors import TilingError, TilingWarning

__all__ = ["Carried", "Coordinate", "ImageMeta", "NewAxis", "named_shape"]

AxisType = Literal["space", "time", "channel"]

TYPES = ("space", "time", "channel")
# Types of axes by their names, as the formats and libraries of the field use them.
_SPACE = ("x", "y", "z", "lat", "lon", "latitude", "longitude", "easting", "northing")
_USUAL: dict[str, AxisType] = {
    **dict.fromkeys(_SPACE, "space"),
    **dict.fromkeys(("t", "time"), "time"),
    **dict.fromkeys(("c", "channel", "band"), "channel"),
}
# Values of a uniform coordinate may be off by this fraction of a step: the rounding of float32 coordinates.
UNIFORM = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Coordinate(Holder):
    """Values along one or several axes, or one value of the whole image."""

    dims: tuple[str, ...]
    """Names of the axes along which the values vary; empty for one value of the whole image."""
    values: Array
    """The values, one per sample of these axes. They must not change: what is derived from them is held."""
    attributes: Mapping[Hashable, Any] = field(default_factory=dict)
    """Attributes of the coordinate."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coordinate) and _same(_facts(self), _facts(other))

    __hash__ = None  # type: ignore[assignment]

    @derived
    def step(self) -> float | None:
        """Distance of neighbouring values, of times in their own unit; None if there is no single one."""
        values = self.values
        if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "iufmM":
            return None
        if values.dtype.kind in "mM":
            if np.isnat(values[[0, -1]]).any():  # the smallest integer
                return None
            values = (values - values[0]).view(np.int64)
        first, last = float(values[0]), float(values[-1])
        step = (last - first) / (len(values) - 1)
        if not math.isfinite(step) or not step:
            return None
        # In place: there may be a million samples.
        off = np.arange(len(values), dtype=np.float64)
        off *= step
        off += first
        with np.errstate(invalid="ignore"):  # infinities
            np.subtract(values, off, out=off, casting="same_kind")
        return step if float(np.abs(off, out=off).max()) <= UNIFORM * abs(step) else None

    @derived
    def is_text(self) -> bool:
        """Whether these are texts along one axis."""
        values = self.values
        if values.ndim != 1 or values.dtype.kind not in "UTO":
            return False
        return values.dtype.kind != "O" or all(issubclass(kind, str) for kind in set(map(type, values)))

    @property
    def unit(self) -> np.timedelta64:
        """The unit in which times are counted."""
        difference: np.timedelta64 = np.ones(1, np.int64).view((self.values[:1] - self.values[:1]).dtype)[0]
        return difference

    def binned(self, scale: Fraction, length: int) -> Coordinate | None:
        """Return the centres of the result samples at ``scale``; None if the values are not uniform."""
        if self.step is None:
            return None
        what = "binned", scale, length
        if what not in self.held:
            self.held[what] = Coordinate(self.dims, self._centres(self.step, scale, length), self.attributes)
        found: Coordinate = self.held[what]
        return found

    def _centres(self, step: float, scale: Fraction, length: int) -> Array:
        centres = np.arange(length, dtype=np.float64)
        centres += 0.5
        centres /= float(scale)
        centres -= 0.5
        centres *= step
        if self.values.dtype.kind in "mM":
            return np.asarray(self.values[0] + np.rint(centres).astype(np.int64) * self.unit)
        centres += float(self.values[0])
        return centres.astype(self.values.dtype, copy=False) if self.values.dtype.kind == "f" else centres


@dataclass(frozen=True, slots=True)
class Carried:
    """An axis of a result that is an axis of the image."""

    axis: int
    """Number of the axis in the image."""
    length: int
    """Extent in the result, samples."""
    scale: Fraction = Fraction(1)
    """Result samples per image sample."""


@dataclass(frozen=True, slots=True)
class NewAxis:
    """An axis of a result that the image does not have, or not with these samples."""

    length: int
    """Extent in the result, samples."""
    names: tuple[str, ...] | None = None
    """Names of its samples."""
    like: int | None = None
    """Number of the axis of the image whose name and type it gets; None: "c", or "dim_0", "dim_1"..."""
    doubtful: bool = False
    """Whether it may be one of several axes of the image that are as long: it is not called "c" then."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageMeta:
    """What the samples of an image mean: axes, their places in the world, channels, coordinates.

    Sample ``i`` of an axis lies at ``translation + i * scale``, in the unit of the axis. Results of
    `tiled_map` get the meaning of the image, with what the function changes: at scale 2 the samples are half
    as large, and the first centre lies a quarter of an image sample before that of the image.

    Parameters
    ----------
    axes : str or sequence of str
        Name of each axis, in order; a string has one letter per axis: "zyx".
    types : sequence or dict by axis of {"space", "time", "channel", None}, optional
        Type of each axis. By default it follows from usual names: x, y, z, t, c, lat, lon, time, band.
    units : str, or sequence or dict by axis of str or None, optional
        Unit of each axis: "micrometer", "second". One string is the unit of all axes of space.
    scale : sequence or dict by axis of float, units of the axis, optional
        Distance of neighbouring samples. Default: 1.
    translation : sequence or dict by axis of float, units of the axis, optional
        Place of the centre of sample 0. Default: 0.
    channel_names : sequence of str, optional
        Names of the samples along the axis of type "channel".
    channel_colors : sequence of str, optional
        Colours of these samples, as six hexadecimal digits: "00FF00".
    coordinates : dict of (dims, values) or (dims, values, attributes), optional
        Values along axes, as `xarray.DataArray` has them: ``{"lat": ("y", latitudes)}``.
    nodata : scalar, optional
        Value of samples that hold no data.
    attributes : dict, optional
        Anything else.
    name : str, optional
        Name of the image.

    Examples
    --------
    >>> meta = ImageMeta("zyx", units="micrometer", scale=(2, 0.5, 0.5))
    >>> meta
    <ImageMeta: z 2 micrometer, y 0.5 micrometer, x 0.5 micrometer>
    >>> meta.replace(scale={"z": 1.5}).scale
    (1.5, 0.5, 0.5)
    """

    axes: tuple[str, ...]
    types: tuple[AxisType | None, ...]
    units: tuple[str | None, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    channel_names: tuple[str, ...] | None
    channel_colors: tuple[str, ...] | None
    coordinates: Mapping[str, Coordinate]
    nodata: Any
    attributes: Mapping[Hashable, Any]
    name: str | None

    def __init__(
        self,
        axes: str | Sequence[str],
        *,
        types: Any = None,
        units: Any = None,
        scale: Any = None,
        translation: Any = None,
        channel_names: Sequence[str] | None = None,
        channel_colors: Sequence[str] | None = None,
        coordinates: Mapping[str, Any] | None = None,
        nodata: Any = None,
        attributes: Mapping[Hashable, Any] | None = None,
        name: str | None = None,
    ) -> None:
        own = _axis_names(axes)
        kinds = _types(types, own)
        if isinstance(units, str):
            units = [units if kind == "space" else None for kind in kinds]
        values = {
            "axes": own,
            "types": kinds,
            "units": _texts("units", _per_axis("units", units, own, [None] * len(own))),
            "scale": _numbers("scale", _per_axis("scale", scale, own, [1.0] * len(own)), own),
            "translation": _numbers(
                "translation", _per_axis("translation", translation, own, [0.0] * len(own)), own
            ),
            "channel_names": _channels("channel_names", channel_names, own, kinds),
            "channel_colors": _colors(_channels("channel_colors", channel_colors, own, kinds)),
            "coordinates": _coordinates(coordinates or {}, own),
            "nodata": nodata,
            "attributes": dict(of_type("attributes", attributes or {}, Mapping, "a dict")),
            "name": None if name is None else str(name),
        }
        if nodata is not None:
            check_scalar("nodata", nodata)
        for key, value in values.items():
            object.__setattr__(self, key, value)
        both = self.channel_names, self.channel_colors
        if None not in both and len(both[0] or ()) != len(both[1] or ()):
            raise TilingError(
                f"channel_names and channel_colors must be equally many; got {len(both[0] or ())} and "
                f"{len(both[1] or ())}."
            )

    @property
    def channel_axis(self) -> int | None:
        """Number of the axis of type "channel"; None if there is none."""
        return self.types.index("channel") if "channel" in self.types else None

    def replace(self, **changes: Any) -> ImageMeta:
        """Return the same meaning with some parts changed.

        Parameters
        ----------
        **changes
            Arguments of `ImageMeta`. A dict by axis changes only these axes.

        Returns
        -------
        ImageMeta
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for key, change in changes.items():
            if key not in values:
                raise TypeError(f"ImageMeta has no part {key!r}; its parts are {', '.join(values)}.")
            if key in ("types", "units", "scale", "translation") and isinstance(change, Mapping):
                change = dict(zip(self.axes, values[key], strict=True)) | dict(change)
            values[key] = change
        return ImageMeta(values.pop("axes"), **values)

    def transpose(self, axes: str | Sequence[str | int]) -> ImageMeta:
        """Return the meaning of the same image with its axes in another order.

        Parameters
        ----------
        axes : str, or sequence of str or int
            The axes in their new order, by name or as the numbers that `numpy.transpose` takes.

        Returns
        -------
        ImageMeta

        Examples
        --------
        >>> ImageMeta("zcyx", scale=(2, 1, 0.5, 0.5)).transpose("czyx")
        <ImageMeta: c, z 2, y 0.5, x 0.5>
        """
        own = range(len(self.axes))
        numbers = (
            {name: k for k, name in enumerate(self.axes)}
            | {k - len(own): k for k in own}
            | {k: k for k in own}
        )
        told = tuple(axes) if isinstance(axes, str) or sequence(axes) else ()
        order = [numbers.get(int(axis) if is_whole(axis) else axis, -1) for axis in told]
        if sorted(order) != list(own):
            raise TilingError(
                f"transpose needs each of the axes {self.axes} once, by name or number; got {brief(axes)}."
            )
        return self.carried([Carried(axis, 0) for axis in order])

    def check(self, what: str, shape: Sequence[int]) -> None:
        """Raise a `TilingError` unless an image of ``shape`` can have this meaning; ``what`` names it."""
        if len(self.axes) != len(shape):
            raise TilingError(
                f"meta has {len(self.axes)} axes {self.axes}; {what} has {len(shape)}, of shape "
                f"{tuple(shape)}. Name one axis for each."
            )
        names, channel = self.channel_names, self.channel_axis
        if names is not None and channel is not None and len(names) != shape[channel]:
            raise TilingError(
                f"meta has {len(names)} channel_names; axis {self.axes[channel]} of {what} has extent "
                f"{shape[channel]}."
            )
        for name, coordinate in self.coordinates.items():
            lengths = tuple(shape[self.axes.index(dim)] for dim in coordinate.dims)
            if coordinate.values.shape != lengths:
                raise TilingError(
                    f"coordinate {name!r} of meta has shape {coordinate.values.shape}; the axes "
                    f"{coordinate.dims} of {what} have extents {lengths}."
                )

    def carried(self, parts: Sequence[Carried | NewAxis]) -> ImageMeta:
        """Return the meaning of a result whose axes are ``parts``.

        A coordinate is kept if its axes kept their samples. Along an axis with another scale a uniform
        coordinate gets the centres of the new samples, and others are dropped, with a warning.
        """
        kept = {p.axis: p for p in parts if isinstance(p, Carried)}
        channel = self._channel_of(parts)
        own = self.channel_axis
        same = channel is not None and isinstance(parts[channel], Carried) and kept[own or 0].scale == 1
        fresh = None if channel is None else getattr(parts[channel], "names", None)
        kinds = [self._type_of(part) for part in parts]
        if channel is not None:
            # One axis of a result can be that of channels.
            kinds = [None if kind == "channel" else kind for kind in kinds]
            kinds[channel] = "channel"
        places = [self._place(p) for p in parts]
        return ImageMeta(
            self._names_of(parts),
            types=kinds,
            units=[self.units[p.axis] if isinstance(p, Carried) else None for p in parts],
            scale=[s for s, _ in places],
            translation=[t for _, t in places],
            channel_names=self.channel_names if same else fresh,
            channel_colors=self.channel_colors if same else None,
            coordinates=self._coordinates_of(kept),
            nodata=self.nodata,
            attributes=self.attributes,
            name=self.name,
        )

    def _type_of(self, part: Carried | NewAxis) -> AxisType | None:
        axis = part.axis if isinstance(part, Carried) else part.like
        return None if axis is None else self.types[axis]

    def _channel_of(self, parts: Sequence[Carried | NewAxis]) -> int | None:
        """Return the position of the axis of channels in a result: that with names, else the image's."""
        named = [k for k, p in enumerate(parts) if isinstance(p, NewAxis) and p.names is not None]
        old = [k for k, p in enumerate(parts) if self._type_of(p) == "channel"]
        new = [p for p in parts if isinstance(p, NewAxis) and p.like is None and not p.doubtful]
        return next(iter([*named, *old, *map(parts.index, new if len(new) == 1 else ())]), None)

    def _place(self, part: Carried | NewAxis) -> tuple[float, float]:
        """Return scale and translation of an axis of a result."""
        if isinstance(part, NewAxis):
            return 1.0, 0.0
        scale, translation, q = self.scale[part.axis], self.translation[part.axis], part.scale
        # Sample j covers [j / q, (j + 1) / q) where image sample i covers [i, i + 1).
        return scale / float(q), translation + scale * float((1 / q - 1) / 2)

    def _names_of(self, parts: Sequence[Carried | NewAxis]) -> list[str]:
        """Return names of the axes of a result, all different."""
        axes = [p.axis if isinstance(p, Carried) else p.like for p in parts]
        taken = {self.axes[a] for a in axes if a is not None}
        gone = next((a for a, k in zip(self.axes, self.types, strict=True) if k == "channel"), "c")
        channel = self._channel_of(parts)
        usual = [gone] if axes.count(None) == 1 and channel == axes.index(None) else []
        numbered = (f"dim_{k}" for k in itertools.count())
        free = (name for name in itertools.chain(usual, numbered) if name not in taken)
        return [next(free) if a is None else self.axes[a] for a in axes]

    def _coordinates_of(self, kept: Mapping[int, Carried]) -> dict[str, Coordinate]:
        """Return the coordinates of a result with the axes ``kept``, by number in the image."""
        found: dict[str, Coordinate] = {}
        for name, coordinate in self.coordinates.items():
            parts = [kept.get(self.axes.index(dim)) for dim in coordinate.dims]
            if None in parts:
                continue  # of an axis that the result does not have
            changed = [p for p in parts if p is not None and p.scale != 1]
            if not changed:
                found[name] = coordinate
            elif len(parts) == 1 and (centres := coordinate.binned(changed[0].scale, changed[0].length)):
                found[name] = centres
            else:
                warn(
                    f"the result has no coordinate {name!r}: its axes {coordinate.dims} have another scale, "
                    "and its values are not evenly spaced along one axis.",
                    TilingWarning,
                )
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageMeta) and _same(_facts(self), _facts(other))

    def __hash__(self) -> int:
        return hash((self.axes, self.types, self.units, self.scale, self.translation))

    def __dask_tokenize__(self) -> Any:
        return _as_text(_facts(self))

    def __repr__(self) -> str:
        parts = []
        for name, unit, scale, start in zip(self.axes, self.units, self.scale, self.translation, strict=True):
            size = f" {scale:g} {unit}" if unit else f" {scale:g}" if scale != 1 else ""
            parts.append(f"{name}{size}{f' from {start:g}' if start else ''}")
        text = ", ".join(parts)
        if self.channel_names:
            text += f"; channels {', '.join(self.channel_names)}"
        if self.nodata is not None:
            text += f"; nodata {self.nodata}"
        others = [name for name in self.coordinates if name not in self.axes]
        return f"<ImageMeta: {text}{'; coordinates ' if others else ''}{', '.join(others)}>"


def _facts(value: Any) -> list[tuple[str, Any]]:
    """Return all fields of a value with their names."""
    found = []
    for f in fields(value):
        part = getattr(value, f.name)
        if f.name == "coordinates":
            part = {name: _facts(coordinate) for name, coordinate in part.items()}
        found.append((f.name, part))
    return found


def _as_text(value: Any) -> Any:
    """Return a nested value whose text tells it from others: numpy leaves out samples of long arrays."""
    if isinstance(value, np.ndarray):
        samples = value.tolist() if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
        return str(value.dtype), value.shape, samples
    if isinstance(value, dict):
        return {key: _as_text(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_as_text, value))
    return value


def _same(a: Any, b: Any) -> bool:
    """Return whether two nested values are equal, NaN included."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        first, second = np.asarray(a), np.asarray(b)
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        if first.dtype.kind == "O":
            return _equal_objects(first, second) or all(map(_same, first.flat, second.flat))
        with_nan = first.dtype.kind in "fcmM"
        return bool(np.array_equal(first, second, equal_nan=with_nan))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        # NaN and NaT differ from themselves.
        return bool(a == b) or bool(a != a and b != b)
    except (TypeError, ValueError):  # comparisons by element
        return type(a) is type(b) and bool(np.array_equal(a, b))


def _equal_objects(a: Array, b: Array) -> bool:
    """Return whether all objects are equal, if they say so; a hundred times as fast as one by one."""
    try:
        return bool(np.array_equal(a, b))
    except (TypeError, ValueError):  # arrays among them
        return False


def named_shape(shape: Any) -> tuple[tuple[int, ...], ImageMeta | None]:
    """Return the extents of an image, and the names of its axes if ``shape`` is a dict by name."""
    if not isinstance(shape, Mapping):
        return wholes("shape", shape), None
    return wholes("shape", list(shape.values())), ImageMeta([str(name) for name in shape])


def _axis_names(axes: Any) -> tuple[str, ...]:
    if not (isinstance(axes, str) or sequence(axes)) or not all(isinstance(a, str) and a for a in axes):
        raise TypeError(f'axes must be names, such as "zyx" or ("time", "y", "x"); got {brief(axes)}.')
    names = tuple(axes)
    if len(set(names)) < len(names):
        raise TilingError(f"the names of axes must differ; got {names}.")
    return names


def _per_axis(what: str, value: Any, axes: Sequence[str], usual: Sequence[Any]) -> tuple[Any, ...]:
    """Return one value per axis from a sequence or a dict by axis; None: the usual values."""
    if value is None:
        return tuple(usual)
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in axes]:
            raise TilingError(f"{what} names {unknown[0]!r}; the axes are {', '.join(axes)}.")
        return tuple(value.get(axis, default) for axis, default in zip(axes, usual, strict=True))
    if isinstance(value, str) or not (sequence(value) or isinstance(value, np.ndarray)):
        raise TypeError(f"{what} must be one value per axis {tuple(axes)}, or a dict; got {brief(value)}.")
    if len(value) != len(axes):
        raise TilingError(
            f"{what} needs one value per axis {tuple(axes)}; got {brief(value)}. A dict gives some of them: "
            f"{{{axes[-1]!r}: ...}}."
        )
    return tuple(value)


def _numbers(what: str, values: Sequence[Any], axes: Sequence[str]) -> tuple[float, ...]:
    for value, axis in zip(values, axes, strict=True):
        if not (is_whole(value) or isinstance(value, float | np.floating | Fraction)):
            raise TypeError(f"{what} must be numbers; got {brief(value)} for axis {axis}.")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or (what == "scale" and number == 0):
            wanted = "finite and not 0" if what == "scale" else "finite"
            raise TilingError(f"{what} of axis {axis} must be {wanted}; got {brief(value)}.")
    return tuple(map(float, values))


def _types(types: Any, axes: Sequence[str]) -> tuple[AxisType | None, ...]:
    """Return the type of each axis; by default the first axis with a usual name is that of channels."""
    usual = [_USUAL.get(axis.lower()) for axis in axes]
    usual = [None if k == "channel" and "channel" in usual[:n] else k for n, k in enumerate(usual)]
    found = _per_axis("types", types, axes, usual)
    for kind in found:
        if kind is not None:
            one_of("types", kind, TYPES)
    if found.count("channel") > 1:
        named = [axis for axis, kind in zip(axes, found, strict=True) if kind == "channel"]
        raise TilingError(
            f'only one axis can be of type "channel"; got {", ".join(named)}. Say which: '
            f"types={{{named[-1]!r}: None}}."
        )
    return found


def _texts(what: str, values: Sequence[Any]) -> tuple[str | None, ...]:
    return tuple(None if value is None else of_type(what, value, str, "text or None") for value in values)


def _channels(what: str, values: Any, axes: Sequence[str], kinds: Sequence[Any]) -> tuple[str, ...] | None:
    """Return a text per channel; raise if there is no axis of channels."""
    if values is None:
        return None
    if isinstance(values, str) or not (sequence(values) or isinstance(values, np.ndarray)):
        raise TypeError(f"{what} must be a sequence of text; got {brief(values)}.")
    if "channel" not in kinds:
        raise TilingError(
            f'{what} needs an axis of type "channel"; the axes {tuple(axes)} have types {tuple(kinds)}. Name '
            'one of them "c", or say types={axis: "channel"}.'
        )
    return tuple(map(str, values))


def _colors(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    for value in values:
        digits = value.removeprefix("#")
        if len(digits) != 6 or any(d not in "0123456789abcdefABCDEF" for d in digits):
            raise TilingError(f'channel_colors must be six hexadecimal digits, as "00FF00"; got {value!r}.')
    return tuple(value.removeprefix("#").upper() for value in values)


def _coordinate(name: str, dims: Any, values: Any, attributes: Any = None) -> Coordinate:
    own = (dims,) if isinstance(dims, str) else dims
    if not sequence(own) or not all(isinstance(dim, str) for dim in own) or len(set(own)) < len(own):
        raise TypeError(
            f"the dims of coordinate {name!r} must be the name of an axis, or several that differ; got "
            f"{brief(dims)}. A coordinate is (dims, values)."
        )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TilingError(f"the values of coordinate {name!r} are no array: {error}") from error
    what = f"the attributes of coordinate {name!r}"
    return Coordinate(tuple(own), array, dict(of_type(what, attributes or {}, Mapping, "a dict")))


def _coordinates(given: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Coordinate]:
    found = {}
    for name, value in of_type("coordinates", given, Mapping, "a dict").items():
        if isinstance(value, Coordinate):
            coordinate = value
        elif isinstance(value, tuple | list) and len(value) in (2, 3):
            coordinate = _coordinate(str(name), *value)
        else:
            raise TypeError(
                f"a coordinate must be (dims, values) or (dims, values, attributes); got {brief(value)} for "
                f"{name!r}."
            )
        for dim in coordinate.dims:
            if dim not in axes:
                raise TilingError(f"coordinate {name!r} lies along {dim!r}; the axes are {', '.join(axes)}.")
        if coordinate.values.ndim != len(coordinate.dims):
            raise TilingError(
                f"coordinate {name!r} has {coordinate.values.ndim} axes of values and dims {coordinate.dims}."
            )
        found[str(name)] = coordinate
    return found
