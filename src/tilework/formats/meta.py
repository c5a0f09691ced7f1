"""`ImageMeta`: what the samples of an image mean, and how it changes with the axes of a result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from tilework._checks import brief, check_scalar, is_whole, of_type, one_of, sequence, warn, whole, wholes
from tilework.errors import TilingError, TilingWarning
from tilework.formats.coordinates import Coordinate, coordinates_of
from tilework.formats.equality import as_text, equal, facts_of

__all__ = ["Carried", "ImageMeta", "NewAxis", "named_shape"]

AxisType = Literal["space", "time", "channel"]

TYPES = ("space", "time", "channel")
# Types of axes by their names, as the formats and libraries of the field use them.
_SPACE = ("x", "y", "z", "lat", "lon", "latitude", "longitude", "easting", "northing")
_USUAL: dict[str, AxisType] = {
    **dict.fromkeys(_SPACE, "space"),
    **dict.fromkeys(("t", "time"), "time"),
    **dict.fromkeys(("c", "channel", "band"), "channel"),
}
# The end of messages on a meaning that does not fit.
PART = "a part, image[index], has the meaning meta.sliced(index), such as meta.sliced(numpy.s_[2:4, ...])"


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
            "coordinates": coordinates_of(coordinates or {}, own),
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

    def sliced(self, index: Any) -> ImageMeta:
        """Return the meaning of a part of the image, of what the same index gives of its samples.

        Parameters
        ----------
        index : slice, int or Ellipsis, or tuple of them
            As in ``image[index]``; `numpy.s_` makes one of ``[2:4, :, 100:200]``. Along an axis of space or
            time, a slice starts at a number that counts from the first sample.

        Returns
        -------
        ImageMeta

        Examples
        --------
        >>> import numpy as np
        >>> ImageMeta("zyx", scale=(2, 0.5, 0.5)).sliced(np.s_[3:7, ..., 100:200:2])
        <ImageMeta: z 2 from 6, y 0.5, x from 50>
        """
        parts = dict(zip(self.axes, _parts_of(index, self.axes), strict=True))
        left = [k for k, part in enumerate(parts.values()) if isinstance(part, slice)]
        places = [self._place_in(k, parts[self.axes[k]]) for k in left]
        k = self.channel_axis
        along = parts[self.axes[k]] if k in left and k is not None else None
        names, colors = (
            values[along] if values is not None and isinstance(along, slice) else None
            for values in (self.channel_names, self.channel_colors)
        )
        return ImageMeta(
            [self.axes[k] for k in left],
            types=[self.types[k] for k in left],
            units=[self.units[k] for k in left],
            scale=[scale for scale, _ in places],
            translation=[translation for _, translation in places],
            channel_names=names,
            channel_colors=colors,
            coordinates={name: one.sliced(parts) for name, one in self.coordinates.items()},
            nodata=self.nodata,
            attributes=self.attributes,
            name=self.name,
        )

    def check(self, what: str, shape: Sequence[int]) -> None:
        """Raise a `TilingError` unless an image of ``shape`` can have this meaning; ``what`` names it."""
        if len(self.axes) != len(shape):
            raise TilingError(
                f"meta has {len(self.axes)} axes {self.axes}; {what} has {len(shape)}, of shape "
                f"{tuple(shape)}. Name one axis for each; {PART}."
            )
        names, channel = self.channel_names, self.channel_axis
        if names is not None and channel is not None and len(names) != shape[channel]:
            raise TilingError(
                f"meta has {len(names)} channel_names; axis {self.axes[channel]} of {what} has extent "
                f"{shape[channel]}; {PART}."
            )
        for name, coordinate in self.coordinates.items():
            lengths = tuple(shape[self.axes.index(dim)] for dim in coordinate.dims)
            if coordinate.values.shape != lengths:
                raise TilingError(
                    f"coordinate {name!r} of meta has shape {coordinate.values.shape}; the axes "
                    f"{coordinate.dims} of {what} have extents {lengths}; {PART}."
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

    def _place_in(self, axis: int, part: Any) -> tuple[float, float]:
        """Return scale and translation of an axis of which a slice is left."""
        scale, translation = self.scale[axis], self.translation[axis]
        if axis == self.channel_axis and (scale, translation) == (1, 0):  # channels lie nowhere
            return scale, translation
        start, step = _start(self.axes[axis], part)
        return scale * step, translation + start * scale

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
        return isinstance(other, ImageMeta) and equal(facts_of(self), facts_of(other))

    def __hash__(self) -> int:
        return hash((self.axes, self.types, self.units, self.scale, self.translation))

    def __dask_tokenize__(self) -> Any:
        return as_text(facts_of(self))

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


def _parts_of(index: Any, axes: Sequence[str]) -> list[slice | int]:
    """Return one slice or number per axis of an index."""
    given = index if isinstance(index, tuple) else (index,)
    for part in given:
        if not (part is Ellipsis or isinstance(part, slice) or is_whole(part)):
            raise TypeError(f"an index of a meaning has slices, whole numbers and ...; got {brief(part)}.")
    dots = sum(part is Ellipsis for part in given)
    left = [slice(None)] * (len(axes) - len(given) + dots)
    if dots > 1 or len(given) - dots > len(axes):
        raise TilingError(f"the index {brief(index)} does not fit the axes {tuple(axes)}.")
    found: list[slice | int] = []
    for part in given if dots else (*given, Ellipsis):
        found += left if part is Ellipsis else [part if isinstance(part, slice) else int(part)]
    return found


def _start(axis: str, part: slice) -> tuple[int, int]:
    """Return number of the first sample and distance of the samples of a slice."""
    step = 1 if part.step is None else whole(f"the step along {axis}", part.step)
    if part.start is None and step > 0:
        return 0, step
    start = -1 if part.start is None else whole(f"the start along {axis}", part.start)
    if start < 0 or not step:
        raise TilingError(
            f"the slice {part} along axis {axis} must start at a number of 0 or more, and have a step: a "
            "meaning does not know how long the axis is."
        )
    return start, step


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
