"""The attributes of OME-Zarr groups, read and written: plain dicts, without a store.

Versions 0.1 to 0.5 are read, 0.4 and 0.5 are written. Version 0.5 keeps everything below the attribute
"ome"; the versions before it keep "multiscales", "labels", "plate" and "well" among the attributes of the
group itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilework._checks import brief, is_whole, one_of
from tilework.errors import TilingError
from tilework.formats.meta import TYPES, ImageMeta

__all__ = [
    "Level",
    "OmeGroup",
    "OmeImage",
    "check_axes",
    "image_attributes",
    "labels_attributes",
    "read_group",
]

Version = Literal["0.4", "0.5"]

VERSIONS = ("0.4", "0.5")
_READ = ("0.1", "0.2", "0.3", "0.4", "0.5")
# The axes before version 0.3, which were not written down.
_BEFORE = "tczyx"
# OME-Zarr wants the names of UDUNITS-2.
_WORDS = {
    "angstrom": ("Å", "Ångström"), "picometer": ("pm",), "nanometer": ("nm",),
    "micrometer": ("um", "\u00b5m", "\u03bcm", "micron"), "millimeter": ("mm",), "centimeter": ("cm",),
    "meter": ("m",), "kilometer": ("km",), "inch": ("in",), "nanosecond": ("ns",),
    "microsecond": ("us", "\u00b5s", "\u03bcs"), "millisecond": ("ms", "msec"), "second": ("s", "sec"),
    "minute": ("min",), "hour": ("h", "hr"), "day": ("d",),
}  # fmt: skip
_UNITS = {short: word for word, shorts in _WORDS.items() for short in shorts}
# Colours of channels that have names only: the version asks for one, and these are those of napari.
_COLORS = ("00FFFF", "FF00FF", "FFFF00", "FF0000", "00FF00", "0000FF")


@dataclass(frozen=True, slots=True)
class Level:
    """One array of a multiscale image, and where its samples lie."""

    path: str
    """Path of the array below the group of the image."""
    scale: tuple[float, ...]
    """Distance of neighbouring samples per axis, units of the axis."""
    translation: tuple[float, ...]
    """Place of the centre of sample 0 per axis, units of the axis."""


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One entry of "multiscales"."""

    version: str
    """Version of OME-Zarr, "0.4"."""
    name: str | None
    """Name of the image."""
    kind: str | None
    """How the levels were made, "mean"; OME-Zarr calls it "type"."""
    axes: tuple[str, ...]
    """Names of the axes."""
    types: tuple[Any, ...]
    """Types of the axes."""
    units: tuple[str | None, ...]
    """Units of the axes."""
    levels: tuple[Level, ...]
    """The levels, the finest first."""
    channel_names: tuple[str, ...] | None = None
    """Names of the channels."""
    channel_colors: tuple[str, ...] | None = None
    """Colours of the channels, as six hexadecimal digits."""
    label: Mapping[str, Any] | None = None
    """The object "image-label" of an image of labels."""
    placed: bool = True
    """Whether scales are stated; before version 0.4 they are not."""
    named: bool = True
    """Whether axes are stated; before version 0.3 they are not, and are those of five axes."""

    def meta(self, level: int = 0) -> ImageMeta:
        """Return what the samples of a level mean."""
        place = self.levels[level]
        meta = ImageMeta(
            self.axes, types=self.types, units=self.units, scale=place.scale, translation=place.translation,
            name=self.name,
        )  # fmt: skip
        if meta.channel_axis is None:
            return meta
        return meta.replace(channel_names=self.channel_names, channel_colors=self.channel_colors)


@dataclass(frozen=True, slots=True)
class OmeGroup:
    """What the attributes of a group say."""

    images: tuple[OmeImage, ...] = ()
    """Its multiscale images."""
    labels: tuple[str, ...] = ()
    """Paths of the images of labels below it, if it is the group "labels"."""
    wells: tuple[str, ...] = ()
    """Paths of the wells below it, if it is a plate."""
    fields: tuple[str, ...] = ()
    """Paths of the images below it, if it is a well."""
    series: tuple[str, ...] = ()
    """Paths of the images beside it, if it is the group "OME" of bioformats2raw."""
    collection: bool = False
    """Whether the images of bioformats2raw lie below it, as "0", "1"..."""

    def __bool__(self) -> bool:
        return self != OmeGroup()


# -- reading ------------------------------------------------------------------------------------------------


def read_group(attributes: Mapping[str, Any], where: str) -> OmeGroup:
    """Return what the attributes of a group say; an empty one if it is no group of OME-Zarr.

    Parameters
    ----------
    attributes : dict
        Attributes of the group.
    where : str
        Names the group in messages.

    Raises
    ------
    TilingError
        If they are incomplete or contradict themselves.
    """
    inner = attributes.get("ome")
    found = inner if isinstance(inner, Mapping) else attributes
    newer = found is inner
    version = _version(found.get("version"), where) if newer else None
    omero = found.get("omero")
    label = found.get("image-label")
    images = found.get("multiscales")
    plate, well = found.get("plate"), found.get("well")
    return OmeGroup(
        images=tuple(
            _image(image, version, omero, label, f"multiscales[{k}] of {where}")
            for k, image in enumerate(_entries(images, f"multiscales of {where}"))
        ),
        labels=_texts(found.get("labels"), f"labels of {where}"),
        wells=_paths(plate, "wells", f"the plate {where}"),
        fields=_paths(well, "images", f"the well {where}"),
        series=_texts(found.get("series"), f"series of {where}"),
        # It stays outside of "ome" in files that were converted.
        collection=any("bioformats2raw.layout" in one for one in (found, attributes)),
    )


def _version(value: Any, where: str) -> str | None:
    """Return a version that can be read, without the marks of drafts; None if none is stated."""
    if value is None:
        return None
    short = ".".join(str(value).replace("-", ".").split(".")[:2])
    if short not in _READ:
        raise TilingError(
            f"{where} is of OME-Zarr version {value!r}; tilework reads {', '.join(_READ)}. Give one of its "
            "arrays by its path, and what its samples mean by meta=."
        )
    return short


def _image(entry: Any, version: str | None, omero: Any, label: Any, where: str) -> OmeImage:
    entry = _object(entry, where)
    own = version or _version(entry.get("version"), where) or "0.4"
    axes, types, units = _axes(entry.get("axes"), own, where)
    outer = _place(entry.get("coordinateTransformations"), len(axes), where)
    datasets = _entries(entry.get("datasets"), f"datasets of {where}")
    if not datasets:
        raise TilingError(_cure(f"{where} has no datasets, the arrays of its levels"))
    levels = []
    for k, dataset in enumerate(datasets):
        place = f"datasets[{k}] of {where}"
        path = _object(dataset, place).get("path")
        if not (isinstance(path, str) and path.strip("/")):
            raise TilingError(_cure(f"{place} has no path of an array; its path is {brief(path)}"))
        scale, start = _place(dataset.get("coordinateTransformations"), len(axes), place)
        # What is stated for the image comes after what is stated for the level.
        pairs = list(zip(scale, start, *outer, strict=True))
        levels.append(
            Level(
                path.strip("/"),
                tuple(s * o for s, _, o, _ in pairs),
                tuple(t * o + p for _, t, o, p in pairs),
            )
        )
    names, colors = _channels(omero)
    placed = any(_object(d, where).get("coordinateTransformations") for d in datasets)
    return OmeImage(
        own, _text(entry.get("name")), _text(entry.get("type")), axes, types, units, tuple(levels), names,
        colors, label if isinstance(label, Mapping) else None, placed, entry.get("axes") is not None,
    )  # fmt: skip


def _axes(
    given: Any, version: str, where: str
) -> tuple[tuple[str, ...], tuple[Any, ...], tuple[str | None, ...]]:
    """Return names, types and units of the axes."""
    if given is None and version < "0.3":
        given = list(_BEFORE)
    entries = _entries(given, f"axes of {where}")
    if not entries:
        raise TilingError(_cure(f"{where} has no axes"))
    found = [{"name": entry} if isinstance(entry, str) else _object(entry, where) for entry in entries]
    names = [name for entry in found if isinstance(name := entry.get("name"), str) and name]
    if len(set(names)) < len(found):
        raise TilingError(
            _cure(f"the axes of {where} must have names that differ; they are {brief(entries)}")
        )
    usual = ImageMeta(names).types
    # A type that is not stated follows from the name; others than these three are none.
    said = [entry.get("type") for entry in found]
    types = [
        u if kind is None else kind if kind in TYPES else None for kind, u in zip(said, usual, strict=True)
    ]
    if types.count("channel") > 1:
        raise TilingError(_cure(f"{where} has several axes of channels; its axes are {names}"))
    return tuple(names), tuple(types), tuple(_text(entry.get("unit")) for entry in found)


def _place(given: Any, ndim: int, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and translation that a list of transformations amounts to."""
    scale, start = [1.0] * ndim, [0.0] * ndim
    for entry in _entries(given, f"coordinateTransformations of {where}"):
        kind = _object(entry, f"coordinateTransformations of {where}").get("type")
        if kind == "identity":
            continue
        values = entry.get(kind) if kind in ("scale", "translation") else None
        if values is None:
            raise TilingError(
                _cure(
                    f"{where} has a transformation of type {brief(kind)} that tilework does not read: only "
                    "scale and translation, as lists of numbers"
                )
            )
        values = _entries(values, f"{kind} of {where}")
        if len(values) != ndim or not all(map(_finite, values)):
            raise TilingError(
                _cure(f"the {kind} of {where} must be {ndim} numbers, one per axis; it is {brief(values)}")
            )
        if kind == "scale":
            if 0 in values:
                raise TilingError(_cure(f"the scale of {where} must not be 0; it is {brief(values)}"))
            scale = [s * v for s, v in zip(scale, values, strict=True)]
            start = [t * v for t, v in zip(start, values, strict=True)]
        else:
            start = [t + v for t, v in zip(start, values, strict=True)]
    return tuple(map(float, scale)), tuple(map(float, start))


def _channels(omero: Any) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return labels and colours of the channels; they are for viewers, and what is odd in them is left."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not channels or not all(isinstance(c, Mapping) for c in channels):
        return None, None
    labels = [_text(c.get("label")) for c in channels]
    colors = [str(c.get("color")).removeprefix("#").upper() for c in channels]
    sound = all(len(color) == 6 and set(color) <= set("0123456789ABCDEF") for color in colors)
    names = None
    if any(labels):
        names = tuple(str(k) if name is None else name for k, name in enumerate(labels))
    return names, tuple(colors) if sound else None


def _paths(given: Any, key: str, where: str) -> tuple[str, ...]:
    """Return the paths of the entries of a plate or well."""
    if given is None:
        return ()
    entries = _entries(_object(given, where).get(key), f"{key} of {where}")
    return _texts([_object(entry, where).get("path") for entry in entries], f"paths of {key} of {where}")


def _entries(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise TilingError(_cure(f"{where} must be a list; it is {brief(value)}"))
    return list(value)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TilingError(_cure(f"{where} must be an object of JSON; it is {brief(value)}"))
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    found = _entries(value, where)
    if not all(isinstance(one, str) and one for one in found):
        raise TilingError(_cure(f"{where} must be texts; they are {brief(found)}"))
    return tuple(found)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _finite(value: Any) -> bool:
    number = is_whole(value) or isinstance(value, float | np.floating)
    # Numbers of JSON may have any number of digits.
    return number and abs(value) <= sys.float_info.max


def _cure(text: str) -> str:
    return (
        f"{text}. Correct it, or give one of the arrays by its path, and meta= if it should have a meaning."
    )


# -- writing ------------------------------------------------------------------------------------------------


def image_attributes(
    meta: ImageMeta,
    version: Version,
    levels: Sequence[Level],
    *,
    name: str = "",
    kind: str | None = None,
    label: Mapping[str, Any] | None = None,
    dtype: Any = None,
) -> dict[str, Any]:
    """Return the attributes of the group of a multiscale image.

    Parameters
    ----------
    meta : ImageMeta
        What the samples of level 0 mean. Nodata, coordinates and attributes have no place in OME-Zarr.
    version : "0.4" or "0.5"
    levels : sequence of Level
        The arrays, the finest first.
    name : str
        Name of the image; default: that of ``meta``.
    kind : str, optional
        How the levels were made: "mean".
    label : dict, optional
        Members of "image-label", for an image of labels: "colors", "properties", "source". An empty dict
        says that the labels are those of the image two groups above.
    dtype : dtype, optional
        Of the samples: viewers show channels with the range of an integer dtype, else from 0 to 1.

    Raises
    ------
    TilingError
        If OME-Zarr has no place for these axes.
    """
    one_of("version", version, VERSIONS)
    check_axes(meta)
    image: dict[str, Any] = {"version": version} if version == "0.4" else {}
    if name or meta.name:
        image["name"] = name or meta.name
    image["axes"] = [
        {"name": name}
        | ({} if type_ is None else {"type": type_})
        | ({} if unit is None else {"unit": _UNITS.get(unit, unit)})
        for name, type_, unit in zip(meta.axes, meta.types, meta.units, strict=True)
    ]
    image["datasets"] = [_dataset(level, meta.axes) for level in levels]
    if not levels or len({level.path for level in levels}) < len(levels):
        raise TilingError(f"an image needs levels with paths that differ; got {[v.path for v in levels]}.")
    if kind is not None:
        image["type"] = kind
    found: dict[str, Any] = {"multiscales": [image]}
    if label is None and (meta.channel_names or meta.channel_colors):
        found["omero"] = {"channels": _omero(meta, dtype)}
    if label is not None:
        own = {"source": {"image": "../../"}} | dict(label)
        found["image-label"] = {"version": version} | own if version == "0.4" else own
    return _wrapped(found, version)


def labels_attributes(names: Sequence[str], version: Version) -> dict[str, Any]:
    """Return the attributes of the group "labels", which lists the images of labels below it.

    Parameters
    ----------
    names : sequence of str
        Paths of the images below the group.
    version : "0.4" or "0.5"
    """
    return _wrapped({"labels": list(names)}, one_of("version", version, VERSIONS))


def _wrapped(found: dict[str, Any], version: str) -> dict[str, Any]:
    return found if version == "0.4" else {"ome": {"version": version} | found}


def _dataset(level: Level, axes: Sequence[str]) -> dict[str, Any]:
    for what in ("scale", "translation"):
        if len(getattr(level, what)) != len(axes):
            raise TilingError(
                f"the {what} of level {level.path!r} must be {len(axes)} numbers, one per axis; got "
                f"{getattr(level, what)}."
            )
    # Levels are ordered by their scales, which readers therefore compare.
    for axis, scale in zip(axes, level.scale, strict=True):
        if scale <= 0:
            raise TilingError(
                f"OME-Zarr needs positive scales; that of axis {axis} is {scale:g}. Turn the axis around: a "
                f"DataArray by out.isel({axis}=slice(None, None, -1)); others by dask.array.flip, with "
                "their new scale and translation by meta=. Or leave out ome=, for a plain Zarr array."
            )
    places = [
        {"type": "scale", "scale": list(map(float, level.scale))},
        {"type": "translation", "translation": list(map(float, level.translation))},
    ]
    return {"path": level.path, "coordinateTransformations": places}


def check_axes(meta: ImageMeta) -> None:
    """Raise a `TilingError` that says what to change, unless OME-Zarr has a place for the axes."""
    axes, counts = meta.axes, Counter(meta.types)
    said = ", ".join(f"{a} ({k or 'no type'})" for a, k in zip(axes, meta.types, strict=True))
    plain = "or leave out ome=, for a plain Zarr array"
    if len(axes) > 5:
        raise TilingError(
            f"OME-Zarr has at most five axes; the result has {len(axes)}: {said}. Write one image per index "
            f"of an axis, with write_many, {plain}."
        )
    if counts["space"] not in (2, 3):
        raise TilingError(
            f"OME-Zarr needs two or three axes of space; the result has {counts['space']}: {said}. Name them "
            f'z, y, x, or say which they are: meta=tw.ImageMeta(axes, types={{"{axes[-1]}": "space"}}), '
            f"{plain}."
        )
    if counts["time"] > 1 or counts["channel"] + counts[None] > 1:
        raise TilingError(
            "OME-Zarr has at most one axis of time, and at most one that is neither time nor space; the "
            f"result has: {said}. Say which are axes of space, by types= of tw.ImageMeta, {plain}."
        )
    rank = {"time": 0, "channel": 1, None: 1, "space": 2}
    if [rank[k] for k in meta.types] != sorted(rank[k] for k in meta.types):
        order = tuple(sorted(range(len(axes)), key=lambda a: rank[meta.types[a]]))
        if meta.types[-1] in ("channel", None):
            cure = "Let the function put channels first: output=tw.Output(channel_axis=0)"
        else:
            cure = (
                "Axes in each= come first, in the order of the image: put all axes but those of space there"
            )
        raise TilingError(
            f"OME-Zarr wants time first, then channels, then space; the result has: {said}. {cure}. Or "
            f"write dask.array.transpose(out, {order}) with meta=tw.image_meta(out).transpose({order}); a "
            f"DataArray knows its meaning: out.transpose({str([axes[a] for a in order])[1:-1]})."
        )


def _omero(meta: ImageMeta, dtype: Any) -> list[dict[str, Any]]:
    """Return what viewers want to know of each channel."""
    names, colors = meta.channel_names, meta.channel_colors
    count = len(names or colors or ())
    low, high = 0, 1
    if dtype is not None and np.dtype(dtype).kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    usual = ("FFFFFF",) if count == 1 else _COLORS
    return [
        ({} if names is None else {"label": names[k]})
        | {
            "color": usual[k % len(usual)] if colors is None else colors[k],
            "window": {"min": low, "max": high, "start": low, "end": high},
            "active": True,
        }
        for k in range(count)
    ]
