"""An OME-Zarr image that is written: its group, what its samples mean, and how its levels are made.

The image is a group of arrays "0", "1"... The attributes of the group say what they are; they are written as
soon as the arrays exist, so that a viewer can open an image that is still being filled. Of a hierarchy that
exists only the attributes of the image, and the list of labels above an image of labels, are written.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath  # noqa: TC002 -- for typing.get_type_hints

from tilework._checks import as_options, brief, is_flag, of_type, one_of, warn
from tilework._types import Index
from tilework.engine.pyramid import PYRAMIDS, refuse_method, usual_method
from tilework.errors import TilingError, TilingWarning
from tilework.formats import ome_zarr
from tilework.formats.labelled import is_labelled, meta_of
from tilework.formats.meta import ImageMeta
from tilework.formats.ome_zarr import OmeImage, check_axes, image_attributes, labels_attributes, read_group
from tilework.graph.build import Found, bare
from tilework.identity.location import holds, locate
from tilework.labels.hints import may_be_labels
from tilework.source.base import Source
from tilework.source.places import opening_code
from tilework.writing.ledger import Ledger
from tilework.writing.levels import Level
from tilework.writing.node import children_at, clear, found_at, home_of, is_vacant
from tilework.writing.objects import Objects
from tilework.writing.target import is_array

__all__ = ["AskedImage", "Image", "has_places", "warn_of_name"]

FORMATS = {"0.4": 2, "0.5": 3}
"""Format of Zarr by version of OME-Zarr."""
MOST = 32
"""More levels than an image can have."""
OWN = ("ome", "multiscales", "omero", "image-label")
"""Attributes of the group of an image that are of OME-Zarr."""
LABELS = "labels"
# Usual chunk of an image, bytes before compression: what viewers fetch at a time.
CHUNK_BYTES = 2**20


_Extents = tuple[Index | None, ImageMeta]
"""Extents of a level, None if its array is missing, and what its samples mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """The arguments of `to_zarr` about the image, as given."""

    ome: bool | str = False
    levels: Any = None
    pyramid: str | None = None
    label_name: str | None = None
    meta: ImageMeta | None = None

    def __post_init__(self) -> None:
        if not (is_flag(self.ome) or (isinstance(self.ome, str) and self.ome in FORMATS)):
            raise TypeError(f'ome must be True, False, "0.5" or "0.4"; got {brief(self.ome)}.')
        if self.label_name is not None:
            name = of_type("label_name", self.label_name, str, "the name of an image of labels")
            if not name or "/" in name or name.startswith((".", "__")):
                raise TilingError(f'label_name must be a name, such as "cells"; got {name!r}.')
        if self.levels is not None and self.levels != "auto":
            whole = type(self.levels) is int or isinstance(self.levels, np.integer)
            if not whole or self.levels < 1:
                raise TilingError(
                    f'levels must be "auto" or the number of levels, 1 for the image alone; got '
                    f"{brief(self.levels)}."
                )
        if self.pyramid is not None:
            one_of("pyramid", self.pyramid, PYRAMIDS)
        if not self and (self.levels is not None or self.pyramid is not None):
            raise TilingError("levels= and pyramid= are of OME-Zarr images: add ome=True.")
        if self.meta is not None:
            of_type("meta", self.meta, ImageMeta, "a tw.ImageMeta, what the samples of the result mean")

    def __bool__(self) -> bool:
        return bool(self.ome) or self.label_name is not None

    def image(
        self, store: Any, path: str, options: Mapping[str, Any], member: Any, found: Found | None
    ) -> Image:
        """Return the image of one result, after all checks that need no layout.

        Parameters
        ----------
        store, path, options
            As given to `to_zarr`; the path with the key of the output.
        member : dask array or DataArray
            The result.
        found : Found or None
            Its origin, if it is a result of `tiled_map`.
        """
        array = bare(member)
        if is_array(store):
            raise TilingError(
                "an OME-Zarr image is a group of arrays; give a store or a group, and path=, not an array."
            )
        home = locate(store, path, options.get("storage_options"))
        address = f"{getattr(store, 'store_path', store)}/{path}".rstrip("/")
        if self.label_name is None:
            if isinstance(found_at(home, address, writable=False, nodes=True), zarr.Array):
                raise TilingError(
                    f"{address} is an array; an OME-Zarr image is a group. Delete the array yourself, or "
                    "name another place."
                )
            version, parent = self._version(home, address, options), None
            levels: list[_Extents] = []
            at = home
        else:
            version, parent, levels = _parent(home, address)
            at = home / LABELS / self.label_name
            address = f"{address}/{LABELS}/{self.label_name}"
            if self.ome is not True and self.ome and self.ome != version:
                raise TilingError(
                    f"the image at {home} is of OME-Zarr {version}, and so are its labels; got "
                    f'ome="{self.ome}". Leave ome= out.'
                )
        _refuse_options(options, version)
        meta = self._meta(array, _known(member, found), found, levels)
        check_axes(meta)
        _warn_of_places(meta)
        labels = self.label_name is not None
        if labels and array.dtype.kind not in "iu":
            raise TilingError(
                f"labels are whole numbers in OME-Zarr; the result has dtype {array.dtype}. Let the function "
                'return integers, or declare them: output=tw.Output("uint32").'
            )
        named = labels or _names_objects(array.dtype, found)
        method = self.pyramid or usual_method(array.dtype, labels=named)
        refuse_method(method, array.dtype, labels=labels or _names_classes(found))
        return Image(
            home=home, at=at, address=address, version=version, meta=meta, method=method,
            asked=self.levels or ("auto" if parent is None else len(parent.levels)),
            strict=self.levels is not None, label=self.label_name, user=options.get("attributes") or {},
        )  # fmt: skip

    def _version(self, at: StorePath, address: str, options: Mapping[str, Any]) -> str:
        """Return the version that was asked for, else that of the hierarchy, else the newest."""
        there = home_of(at / "0", address).zarr_format
        if isinstance(self.ome, str):
            if there not in (None, FORMATS[self.ome]):
                version = next(v for v, zarr_format in FORMATS.items() if zarr_format == there)
                raise TilingError(
                    f"{address} is in a hierarchy of Zarr format {there}, which is OME-Zarr {version}; got "
                    f'ome="{self.ome}". Say ome=True, delete what is there yourself, or name another place.'
                )
            return self.ome
        return "0.4" if options.get("zarr_format") == 2 or there == 2 else "0.5"

    def _meta(
        self, array: Any, known: ImageMeta | None, found: Found | None, levels: Sequence[_Extents]
    ) -> ImageMeta:
        """Return what the samples mean: as given, as known, as in the image of the labels, or as usual."""
        if self.meta is not None:
            self.meta.check("the result", array.shape)
            _refuse_nodata(self.meta.nodata, array.dtype)
            return self.meta
        if levels:
            return _inherited(known, levels, array.shape)
        if known is not None:
            return known
        axes, nodata = _usual_axes(array.ndim, found), None
        if found is not None and found.spec.validity is not None:
            nodata = found.output.fill_value
        if axes is None:
            raise TilingError(
                f"the axes of the result of shape {array.shape} are not known; say them: meta=tw.ImageMeta("
                f'"{"tczyx"[-array.ndim :]}"), with scale= and units= if you know them.'
            )
        return ImageMeta(axes, nodata=nodata)


def _known(member: Any, found: Found | None) -> ImageMeta | None:
    """Return what is known of the samples of a result; of one that was changed since, what its labels say."""
    if found is not None or not is_labelled(member):
        return None if found is None else found.meta
    meta = meta_of(member)
    try:
        _refuse_nodata(meta.nodata, member.dtype)
    except TilingError:  # arithmetic keeps the attributes, not the dtype
        return meta.replace(nodata=None)
    return meta


def _refuse_options(options: Mapping[str, Any], version: str) -> None:
    """Raise if an argument of `zarr.create_array` says what follows from the image."""
    asked = options.get("zarr_format")
    if asked is not None and asked != FORMATS[version]:
        raise TilingError(
            f"OME-Zarr {version} is Zarr format {FORMATS[version]}; got zarr_format={asked}. Leave it out, "
            f'or say ome="{next(v for v, f in FORMATS.items() if f != FORMATS[version])}".'
        )
    for name in ("dimension_names", "chunk_key_encoding", "name"):
        if options.get(name) is not None:
            raise TilingError(f"{name} follows from the image; leave it out, or name the axes by meta=.")
    given = options.get("attributes")
    own = [] if given is None else [name for name in OWN if name in as_options("attributes", given)]
    if own:
        raise TilingError(
            f"the attributes {', '.join(own)} follow from the image; leave them out, and say what its "
            "samples mean by meta=."
        )


def _refuse_nodata(nodata: Any, dtype: np.dtype[Any]) -> None:
    """Raise if no sample can have the value of samples without data."""
    if nodata is None:
        return
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(nodata).astype(dtype)
        # A float is rounded; whatever else is cast must be what it was.
        held = dtype.kind in "fc" or bool(value == nodata) or bool(value != value)
    except (TypeError, ValueError, OverflowError):
        held = False
    if not held:
        raise TilingError(
            f"meta says nodata={nodata!r}, which no sample of dtype {dtype} can be; leave nodata out of it."
        )


def _warn_of_places(meta: ImageMeta) -> None:
    """Warn of coordinates that scale and translation do not say: uneven ones, and dates."""
    uneven = []
    for axis, kind in zip(meta.axes, meta.types, strict=True):
        coordinate = meta.coordinates.get(axis)
        if kind not in ("space", "time") or coordinate is None or not coordinate.values.size:
            continue
        if coordinate.values.size > 1 and coordinate.step is None:
            uneven.append(axis)
        elif coordinate.values.dtype.kind == "M":
            warn(
                f"the coordinates of {axis} are dates, and OME-Zarr has no place for them: their distance is "
                f"kept, and the first one, {coordinate.values.flat[0]}, is left out. Write without ome= to "
                "keep them.",
                TilingWarning,
            )
    if uneven:
        warn(
            f"the coordinates of {', '.join(uneven)} are not evenly spaced, and OME-Zarr has no place for "
            "them: they are left out. Write without ome= to keep them.",
            TilingWarning,
        )


def warn_of_name(store: Any, path: str | None, *, image: bool) -> None:
    """Warn if a store that is no OME-Zarr image has the name of one, or of a file."""
    name = str(store).rstrip("/") if isinstance(store, str | Path) else ""
    if name.endswith((".ome.zarr", ".ome.zarr2", ".ome.zarr3")) and not path and not image:
        warn(
            f"{name} has the name of an OME-Zarr image, and a plain Zarr array is written. Write the image "
            "with ome=True, or choose another name.",
            TilingWarning,
        )
    if opening_code(name):
        warn(
            f"{name} has the name of a file, and Zarr writes a folder. Choose another name, as of .zarr; for "
            "such a file compute the result, tw.compute(out), and write it with the library of the format.",
            TilingWarning,
        )


def _names_classes(found: Found | None) -> bool:
    """Return whether it is certain that the samples of a result are names of classes."""
    return found is not None and found.output.reduce is not None and str(found.output.reduce) == "argmax"


def _names_objects(dtype: np.dtype[Any], found: Found | None) -> bool:
    """Return whether the samples of a result may be names of classes or objects."""
    images = [] if found is None else [s.dtype for s in found.spec.sources]
    return _names_classes(found) or may_be_labels(dtype, images)


def _usual_axes(ndim: int, found: Found | None) -> str | None:
    """Return the axes that a result of an image without names has most likely; None if that is not clear."""
    if found is None:
        return "yx" if ndim == 2 else None
    output = found.output
    n_each, n_tiled = output.n_each, len(output.scale)
    untiled = ndim - n_each - n_tiled
    if n_tiled not in (2, 3) or n_each > 1 or untiled > 1:
        return None
    names = dict(zip(output.grid_axes, "t" * n_each + "zyx"[-n_tiled:], strict=True))
    return "".join(names.get(a, "c") for a in range(ndim))


def _parent(at: StorePath, address: str) -> tuple[str, OmeImage, list[_Extents]]:
    """Return version, contents and levels of the image that gets labels."""
    found = found_at(at, address, writable=False)
    group = read_group(dict(found.attrs), address) if isinstance(found, zarr.Group) else ome_zarr.OmeGroup()
    if not group.images:
        raise TilingError(
            f"{address} is not an OME-Zarr image, so it can have no labels; write the image first, or name "
            "its group by path=."
        )
    version = group.images[0].version
    if version not in FORMATS:
        raise TilingError(
            f"the image at {address} is of OME-Zarr {version}; labels can be added to versions "
            f"{' and '.join(FORMATS)}. Write them as an image of their own: ome=True and another store."
        )
    image = group.images[0]
    arrays = [_array(found, level.path) for level in image.levels]
    return version, image, [(a and a.shape, image.meta(k)) for k, a in enumerate(arrays)]


def has_places(meta: ImageMeta) -> bool:
    """Return whether a meaning says where samples lie: a scale, a translation or units."""
    return set(meta.scale) != {1.0} or any(meta.units) or any(meta.translation)


def _inherited(known: ImageMeta | None, levels: Sequence[_Extents], shape: Index) -> ImageMeta:
    """Return what labels mean: what is known, with places and units of the image where nothing is known."""
    if known is not None and has_places(known):
        return known
    image = levels[0][1]
    if known is None:
        kept = [a for a, kind in enumerate(image.types) if kind != "channel"]
        kept = kept if len(kept) == len(shape) else list(range(len(image.axes)))
        if len(kept) != len(shape):
            raise TilingError(
                f"the labels have shape {shape}, and the axes of their image are {image.axes}. Say what the "
                "axes of the labels are: meta=tw.ImageMeta(...)."
            )
        known = ImageMeta([image.axes[a] for a in kept], types=[image.types[a] for a in kept])
    image = _level_of(known, levels, shape)
    own = {axis: a for a, axis in enumerate(image.axes)}
    places = [
        (image.scale[own[axis]], image.translation[own[axis]], image.units[own[axis]])
        if axis in own
        else (1.0, 0.0, None)
        for axis in known.axes
    ]
    return known.replace(
        scale=[s for s, _, _ in places], translation=[t for _, t, _ in places],
        units=[u for _, _, u in places],
    )  # fmt: skip


def _level_of(known: ImageMeta, levels: Sequence[_Extents], shape: Index) -> ImageMeta:
    """Return the meaning of the level that has the extents of labels; raise if there is none."""
    for extents, meta in levels:
        own = dict(zip(meta.axes, extents or shape, strict=False))
        ignored = () if meta.channel_axis is None else meta.axes[meta.channel_axis]
        if not extents or all(
            axis in ignored or own.get(axis, n) == n for axis, n in zip(known.axes, shape, strict=True)
        ):
            return meta
    raise TilingError(
        f"the labels have axes {known.axes} and shape {shape}, and their image has axes {levels[0][1].axes} "
        f"and shape {levels[0][0]}; no level of it has these extents. Say where the samples of the labels "
        "lie: meta=tw.ImageMeta(...), with scale= and units= as the image has them."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that is written."""

    home: StorePath
    """The place that was named: the group of the image, or that of the image which gets labels."""
    at: StorePath
    """The group of the image."""
    address: str
    """Its address, for messages."""
    version: str
    """Version of OME-Zarr."""
    meta: ImageMeta
    """What the samples of level 0 mean."""
    method: str
    """How coarser levels are made."""
    asked: int | str
    """Number of levels with level 0, or "auto"."""
    strict: bool = True
    """Whether fewer levels are an error. Labels should have as many as their image, where they can."""
    label: str | None = None
    """Name of the image of labels; None: an image."""
    user: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes of the group."""

    @property
    def path(self) -> str:
        """Path of level 0 below the place that was named."""
        return "0" if self.label is None else f"{LABELS}/{self.label}/0"

    def chunks(self, shape: Index, itemsize: int, source: Mapping[int, int] | None) -> Index:
        """Return the default chunks of level 0.

        Parameters
        ----------
        shape : tuple of int, samples per axis
        itemsize : int
            Bytes per sample.
        source : dict of axis to int, samples; or None
            Chunks of the source along axes that are the same in the result; None: it has none.
        """
        space = [a for a, kind in enumerate(self.meta.types) if kind == "space"]
        if source is not None and set(space) <= set(source):
            size = math.prod(source[a] for a in space) * itemsize
            if CHUNK_BYTES / 16 <= size <= 4 * CHUNK_BYTES:
                return tuple(min(source[a], n) if a in space else 1 for a, n in enumerate(shape))
        edge = 2 ** int(math.log2((CHUNK_BYTES / itemsize) ** (1 / len(space))))
        return tuple(max(1, min(edge, n)) if a in space else 1 for a, n in enumerate(shape))

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `zarr.create_array` for a level."""
        own = {key: value for key, value in options.items() if key != "attributes"}
        own["zarr_format"] = FORMATS[self.version]
        if self.version == "0.4":
            own["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
            own.setdefault("fill_value", 0)  # not all viewers read images that have none
        return own

    def attributes(self, levels: Sequence[Level], dtype: np.dtype[Any]) -> dict[str, Any]:
        """Return the attributes of the group."""
        metas = [self.meta, *(level.meta(self.meta, self.method) for level in levels)]
        name = self.label or self.meta.name or self.at.path.rpartition("/")[2]
        return image_attributes(
            self.meta, self.version,  # type: ignore[arg-type]
            [ome_zarr.Level(str(k), m.scale, m.translation) for k, m in enumerate(metas)],
            name=name, kind=self.method if levels else None, label=None if self.label is None else {},
            dtype=dtype,
        )  # fmt: skip

    def refuse_sources(self, sources: Iterable[Source]) -> None:
        """Raise if an array that is read is a level: all levels are written in one pass, or deleted."""
        found = found_at(self.at, self.address, writable=False, nodes=True)
        there = read_group(dict(found.attrs), self.address).images if isinstance(found, zarr.Group) else ()
        paths = {level.path for image in there for level in image.levels} | set(map(str, range(1, MOST)))
        for source, path in itertools.product(sources, sorted(paths)):
            if holds(self.at / path, source):
                raise TilingError(
                    f"level {path!r} of the image at {self.address} is the array that is read; write "
                    "somewhere else."
                )

    def check(self, attributes: Mapping[str, Any], *, resumed: bool, overwrite: bool) -> None:
        """Raise unless the group may get these attributes.

        Parameters
        ----------
        resumed : bool
            Whether level 0 is one of an earlier call, which is resumed.
        overwrite : bool
            Whether an image of an earlier call may be deleted.
        """
        found = found_at(self.at, self.address, nodes=True)
        if found is None:
            return
        before = dict(found.attrs)
        there = read_group(before, self.address).images
        if not there:
            self._refuse_arrays(found)
        if not there or _agree(before, attributes):
            return
        if resumed and not overwrite:
            raise TilingError(
                f"the image at {self.address} has other levels, axes or places than this call would write; "
                "undo the change to resume it, or write afresh with overwrite=True."
            )
        levels = [_array(found, level.path) for image in there for level in image.levels]
        arrays = [array for array in levels if array is not None]
        records = [Ledger(array).record for array in arrays]
        if None in records or not (overwrite or (arrays and all(map(_is_ours, arrays, records)))):
            raise TilingError(
                f"{self.address} holds another OME-Zarr image; delete it yourself, name another place, or "
                "write labels into it with label_name=."
            )

    def _refuse_arrays(self, group: Any) -> None:
        """Raise if a group without an image holds arrays that are no levels of one that was begun."""
        names = [
            name
            for name in children_at(self.at)
            if (array := _array(group, name)) is not None and Ledger(array).record is None
        ]
        if names:
            raise TilingError(
                f"{self.address} holds data that tilework did not write: a group with arrays, "
                f"{', '.join(names[:5])}, and no image; its levels would lie among them. Give it a group of "
                "its own, with path=, or another store."
            )

    def prune(self, attributes: Mapping[str, Any]) -> None:
        """Delete the levels that an image before had, and this one has not; level 0 must be claimed."""
        found = found_at(self.at, self.address, nodes=True)
        there = read_group(dict(found.attrs), self.address).images if isinstance(found, zarr.Group) else ()
        kept = {str(k) for k in range(len(_datasets(attributes)))}
        for path in (level.path for image in there for level in image.levels):
            if path not in kept and (array := _array(found, path)) is not None:
                Objects.of(array.store_path).delete_folders("")
                clear(array.store_path, array)

    def write(self, attributes: Mapping[str, Any], *, fresh: bool) -> None:
        """Write the attributes of the group, and the name of labels into the list above them.

        Parameters
        ----------
        attributes : dict
        fresh : bool
            Whether level 0 is new. What the group says of an image before is deleted then.
        """
        group = zarr.open_group(self.at, mode="a", zarr_format=FORMATS[self.version])  # type: ignore[arg-type]
        before = dict(group.attrs)
        kept = {key: value for key, value in before.items() if not (fresh and key in OWN)}
        now = kept | dict(self.user) | ({} if _agree(kept, attributes) else dict(attributes))
        if now != before:
            group.attrs.put(now)
        if fresh and group.metadata.consolidated_metadata is not None:
            # Readers would see the arrays that were deleted.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # no part of format 3
                zarr.consolidate_metadata(self.at.store, path=self.at.path or None)
        if self.label is not None:
            self.list_labels()

    def list_labels(self) -> None:
        """Add the labels to the list of the group above them.

        Runs that write other labels at the same moment may replace the list. So each adds what it finds, and
        looks again after it has written: the last one to write sees the labels of all others.
        """
        at = self.home / LABELS
        for _ in range(10):
            group = zarr.open_group(at, mode="a", zarr_format=FORMATS[self.version])  # type: ignore[arg-type]
            before = dict(group.attrs)
            names = list(read_group(before, str(at)).labels)
            missing = [] if self.label in names else [str(self.label)]
            others = set(children_at(at)) - {*names, *missing}
            missing += [name for name in sorted(others) if _ours(at / name / "0")]
            if not missing:
                return
            fresh = labels_attributes([*names, *missing], self.version)  # type: ignore[arg-type]
            inner = before.get("ome")
            if isinstance(inner, Mapping) and "ome" in fresh:
                fresh = {"ome": dict(inner) | fresh["ome"]}
            group.update_attributes(fresh)


def _datasets(attributes: Mapping[str, Any]) -> list[Any]:
    inner: Any = attributes.get("ome", attributes)
    return list(inner["multiscales"][0]["datasets"])


def _agree(before: Any, wanted: Any) -> bool:
    """Return whether all that would be written is there; viewers add to it, and set windows of contrast."""
    if isinstance(before, Mapping) and isinstance(wanted, Mapping):
        return all(key == "window" or _agree(before.get(key), value) for key, value in wanted.items())
    if isinstance(before, list) and isinstance(wanted, list):
        return len(before) == len(wanted) and all(map(_agree, before, wanted))
    return bool(before == wanted)


def _ours(at: StorePath) -> bool:
    """Return whether there is an array that tilework wrote."""
    try:
        return Ledger(zarr.open_array(at, mode="r")).record is not None
    except (FileNotFoundError, ValueError):
        return False


def _is_ours(array: Any, record: Any) -> bool:
    """Return whether a run created an array, and ended before it wrote anything."""
    return record.get("begun") is not None and is_vacant(array, record)


def _array(group: Any, path: str) -> Any:
    """Return the array at a path of a group; None if there is none."""
    try:
        found = group[path]
    except KeyError:
        return None
    return found if isinstance(found, zarr.Array) else None
