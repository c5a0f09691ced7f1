"""Images in Zarr: arrays and groups by path, URL or store, what their metadata say, and `open_image`.

A group of OME-Zarr says by its attributes what it is: an image with levels and labels, or a plate, a well or
a collection with images below it. For an array, the groups above it are asked whether it is a level of an
image, so that ``"x.ome.zarr/s1"`` has the meaning of that level.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tilework._checks import Report, brief, has, is_whole, of_type, warn
from tilework._types import Array, Index
from tilework.errors import TilingError, TilingWarning
from tilework.formats.meta import ImageMeta
from tilework.formats.missing import missing_in, missing_value, packing, stored_names
from tilework.formats.ome_zarr import OmeGroup, OmeImage, read_group
from tilework.source.held import Travelling
from tilework.source.places import above, attributes_of, open_node
from tilework.source.zarr_array import ZarrSource, zarr_source

__all__ = ["StoredImage", "StoredImages", "open_image", "open_path", "open_zarr"]

Format = Literal[2, 3]

# Names that a message lists.
MOST = 10
# Images of a collection that are looked for at once.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is opened in a group."""

    level: int = 0
    image: int | str | None = None
    label: str | None = None
    ours: bool = False
    """Whether tilework opened the store, read-only."""


class StoredImage(Report):
    """A level of an image in Zarr, and what its samples mean; `open_image` returns it.

    `tiled_map` and all other functions take it like any array. Slicing reads its samples.
    """

    __slots__ = ("_home", "_image", "_level", "_source")

    def __init__(
        self, source: ZarrSource, home: Any = None, image: OmeImage | None = None, level: int = 0
    ) -> None:
        self._source, self._home, self._image, self._level = source, home, image, level

    @property
    def source(self) -> ZarrSource:
        """The recipe by which tasks read it."""
        return self._source

    @property
    def shape(self) -> Index:
        """Extents per axis, samples."""
        return self._source.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the samples."""
        return self._source.dtype

    @property
    def chunks(self) -> Index | None:
        """Chunks per axis, samples; None if they differ along an axis."""
        return self._source.chunks

    @property
    def meta(self) -> ImageMeta | None:
        """What the samples mean; None if nothing is known."""
        return self._source.meta

    @property
    def level(self) -> int:
        """Number of this level; 0 is the finest."""
        return self._level

    @property
    def levels(self) -> tuple[StoredImage, ...]:
        """All levels of the image, the finest first; this one is among them."""
        count = 1 if self._image is None else len(self._image.levels)
        return tuple(self if k == self._level else self.at(k) for k in range(count))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the images of labels that belong to the image, for ``open_image(path, label=name)``."""
        if self._home is None:
            return ()
        return _labels(self._home, self._source.handle.metadata.zarr_format)

    @property
    def home(self) -> Any:
        """The group of the image, a `zarr.Group`; the array itself if it is not a level of an image."""
        import zarr

        handle = self._source.handle
        if self._home is None:
            return handle
        mode: Any = "r" if self._home.store.read_only else "r+"
        zarr_format = handle.metadata.zarr_format
        return zarr.open_group(self._home.store, path=self._home.path, mode=mode, zarr_format=zarr_format)

    def at(self, level: int) -> StoredImage:
        """Return another level of the image, by its number."""
        if self._image is None:
            return _of_array(self._source.handle, _Choice(level, ours=self._source.ours))
        zarr_format = self._source.handle.metadata.zarr_format
        return _level(self._home, self._image, level, zarr_format, ours=self._source.ours)

    def __getitem__(self, index: Any) -> Array:
        """Return a part as a numpy array."""
        return np.asarray(self._source.handle[index])

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy=False cannot be: the samples are read, so an array of them is always new.")
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype)

    def __dask_tokenize__(self) -> Any:
        return self._source.token

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._source
        stored = Travelling((source.handle, self._home))
        return _again, (stored, (source.meta, source.ours), (self._image, self._level))

    def rows(self) -> Iterator[tuple[str, str]]:
        """Return what the image is, and what is usual for it."""
        meta = self.meta
        names = "" if meta is None else f"{', '.join(meta.axes)}: "
        yield "image", f"{names}{_by(self.shape)} {self.dtype}"
        yield "place", str(self._source.handle.store_path)
        if meta is not None:
            yield "meta", repr(meta)
        if self._image is not None:
            paths = [level.path for level in self._image.levels]
            yield "levels", f"{', '.join(paths)}; this is level {self._level}"
        if labels := self.labels:
            yield "labels", _listed(labels)
        yield "chunks", _by(self.chunks) if self.chunks else "of different lengths"
        if meta is not None:
            yield from _usual(meta)


def _again(
    stored: Travelling, facts: tuple[ImageMeta | None, bool], which: tuple[OmeImage | None, int]
) -> StoredImage:
    handle, home = stored.get()
    meta, ours = facts
    return StoredImage(zarr_source(handle, meta, ours=ours), home, *which)


def _by(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))


def _usual(meta: ImageMeta) -> Iterator[tuple[str, str]]:
    """Yield what is usual for an image with these axes: for planes, for volumes, and for channels."""
    space = [a for a, kind in zip(meta.axes, meta.types, strict=True) if kind == "space"]
    for name, tiled in (("planes", space[-2:]), ("volumes", space[-3:])):
        if len(tiled) == {"planes": 2, "volumes": 3}[name]:
            each = [a for a in meta.axes if a not in tiled]
            rest = f", each={_spelled(each)}" if each else ""
            yield name, f"axes={_spelled(tiled)}{rest}; the function gets ({', '.join(tiled)})"
    if meta.channel_axis is not None:
        channel = meta.axes[meta.channel_axis]
        yield "channels", f"without {channel!r} in each, the function gets all of them"


def _spelled(axes: Sequence[str]) -> str:
    letters = all(len(a) == 1 for a in axes)
    return json.dumps("".join(axes)) if letters else repr(tuple(axes))


def _listed(names: Sequence[str]) -> str:
    """Return the first of several names."""
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} others" if len(names) > MOST else "")


class StoredImages(Report, Mapping[str, StoredImage]):
    """The images below a group by their paths, each opened when it is asked for; `open_image` returns it.

    The group is a plate, a well, a collection of bioformats2raw, or the labels of an image.
    """

    __slots__ = ("_choice", "_group", "kind", "paths")
    kind: str
    """What the group is: "plate", "well", "collection" or "labels"."""
    paths: tuple[str, ...]
    """Paths of the images below the group."""

    def __init__(self, group: Any, kind: str, paths: Sequence[str], choice: _Choice) -> None:
        self._group, self._choice, self.kind, self.paths = group, choice, kind, tuple(paths)

    def __getitem__(self, path: str) -> StoredImage:
        if path not in self.paths:
            raise KeyError(path)
        at = _inside(self._group.store_path, path)
        return _at(at, self._group.metadata.zarr_format, replace(self._choice, image=None))

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again_all, (Travelling(self._group), self.kind, self.paths, self._choice)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Return what the group is, and its images."""
        yield self.kind, str(self._group.store_path)
        yield "images", f"{len(self)}: {_listed(self.paths)}"

    def one(self) -> StoredImage:
        """Return the only image.

        Raises
        ------
        TilingError
            If there are several, or none.
        """
        if len(self) == 1:
            return self[self.paths[0]]
        if not self.paths:
            raise TilingError(f"the {self.kind} at {self._group.store_path} lists no images.")
        raise TilingError(
            f"the group at {self._group.store_path} is a {self.kind} of {len(self)} images: "
            f"{_listed(self.paths)}. Give one of them, by its path or as tw.open_image(group)["
            f"{self.paths[0]!r}]; for all, make jobs of tw.open_image(group).items() for tw.write_many."
        )


def _again_all(packed: Travelling, kind: str, paths: Sequence[str], choice: _Choice) -> StoredImages:
    return StoredImages(packed.get(), kind, paths, choice)


def open_image(
    path: Any,
    *,
    level: int = 0,
    image: int | str | None = None,
    label: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Open an image in Zarr with what its samples mean: OME-Zarr of versions 0.1 to 0.5, or an array.

    Parameters
    ----------
    path : path, URL, Zarr store, zarr.Group or zarr.Array
        A group of OME-Zarr: an image, a plate, a well, or a collection of bioformats2raw. Or an array: a
        level of an image, or any array of Zarr.
    level : int
        Number of the level; 0 is the finest, -1 the coarsest.
    image : int or str, optional
        The image of a group with several: its number, or its name or path. Default: the only one, or the
        first of "multiscales"; of a plate, well or collection, all of them.
    label : str, optional
        Name of an image of labels that belongs to the image; it is opened in its place.
    storage_options : dict, optional
        Options of the file system of a URL.

    Returns
    -------
    StoredImage, or StoredImages for a plate, well or collection
        An image has ``shape``, ``dtype``, ``chunks``, ``meta``, ``levels``, ``labels`` and slicing, and goes
        wherever an array goes. Its text says what is usual for its axes. The images of a plate are a mapping
        by path.

    Raises
    ------
    TilingError
        If there is no such image, level or label, or the metadata are incomplete.
    TypeError
        If ``path`` is neither a place nor Zarr.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> group = zarr.create_group(zarr.storage.MemoryStore())
    >>> _ = group.create_array("s0", data=np.zeros((3, 8, 8), "u1"), chunks=(1, 4, 4))
    >>> axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    >>> scale = [{"type": "scale", "scale": [2, 0.5, 0.5]}]
    >>> levels = [{"path": "s0", "coordinateTransformations": scale}]
    >>> group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    >>> image = open_image(group)
    >>> image.shape, image.meta
    ((3, 8, 8), <ImageMeta: z 2 micrometer, y 0.5 micrometer, x 0.5 micrometer>)
    """
    for what, value, kinds in (("image", image, (int, np.integer, str)), ("label", label, str)):
        if value is not None:
            of_type(what, value, kinds, "a name" + " or a number" * (what == "image"))
    if not is_whole(level):
        raise TypeError(f"level must be a whole number; got {brief(level)}.")
    if isinstance(path, StoredImage):
        if image is None and label is None:
            return path.at(int(level))
        path = path.home
    given = has(path, "store_path") and type(path).__module__.startswith("zarr.")
    node = path if given else open_node(path, storage_options)
    found = _found(node, _Choice(int(level), image, label, ours=not given))
    if isinstance(found, StoredImages) and found.kind == "collection" and len(found) == 1:
        return found.one()  # bioformats2raw writes a collection for a file of one image, too
    return found


def open_path(path: str) -> ZarrSource:
    """Return the source of an array, or of the finest level of an image, at a path or URL.

    Raises
    ------
    TilingError
        If it is not Zarr; the message has the line that opens it, if its name tells.
    """
    return open_zarr(open_node(path), ours=True)


def open_zarr(node: Any, *, ours: bool = False) -> ZarrSource:
    """Return the source of an array, or of the finest level of an image.

    Parameters
    ----------
    node : zarr.Array or zarr.Group
    ours : bool
        Whether tilework opened it, read-only.
    """
    found = _found(node, _Choice(ours=ours))
    return (found.one() if isinstance(found, StoredImages) else found).source


# -- groups -------------------------------------------------------------------------------------------------


def _found(node: Any, choice: _Choice) -> StoredImage | StoredImages:
    """Return what is chosen at an array or a group."""
    import zarr

    if isinstance(node, zarr.Array):
        return _of_array(node, choice)
    if not isinstance(node, zarr.Group):
        raise TypeError(f"array must be a Zarr array or an OME-Zarr group; got {type(node).__name__}.")
    place, zarr_format = node.store_path, node.metadata.zarr_format
    where = f"the group at {place}"
    group = read_group(node.attrs.asdict(), where)
    if group.images:
        return _of_group(place, zarr_format, group, choice)
    if kind := _kind(group):
        images = StoredImages(node, kind, _paths(place, zarr_format, group), choice)
        return (
            images
            if choice.image is None
            else images[images.paths[_chosen(choice.image, images.paths, where)]]
        )
    raise TilingError(f"{where} is not an OME-Zarr image; {_members(node)}.")


def _members(node: Any) -> str:
    """Return what may be given in place of a group."""
    try:
        arrays, groups = sorted(node.array_keys()), sorted(node.group_keys())
    except Exception:  # of a store that lists nothing, such as a server of files
        return "give one of its arrays, by its path"
    others = f", or one of its groups: {_listed(groups)}" if groups else ""
    return f"give one of its arrays: {_listed(arrays) or 'none'}{others}"


def _at(place: Any, zarr_format: Format, choice: _Choice) -> StoredImage:
    """Return the image at a place that metadata name."""
    (attributes,) = attributes_of([place], zarr_format, strict=True)
    where = f"the group at {place}"
    group = read_group(attributes or {}, where)
    if not group.images:
        raise TilingError(f"{where} is {'not an OME-Zarr image' if attributes else 'missing or empty'}.")
    return _of_group(place, zarr_format, group, choice)


def _of_group(place: Any, zarr_format: Format, group: OmeGroup, choice: _Choice) -> StoredImage:
    where = f"the image at {place}"
    names = [image.name or str(k) for k, image in enumerate(group.images)]
    image = group.images[_chosen(choice.image or 0, names, where)]
    if choice.label is None:
        return _level(place, image, choice.level, zarr_format, ours=choice.ours)
    inner = _inside(place, f"labels/{choice.label}")
    (attributes,) = attributes_of([inner], zarr_format, strict=True)
    if attributes is None:
        there = _labels(place, zarr_format)
        raise TilingError(f"{where} has no labels {choice.label!r}; it has {_listed(there) or 'none'}.")
    return _at(inner, zarr_format, replace(choice, image=None, label=None))


def _chosen(image: int | str, names: Sequence[str], where: str) -> int:
    """Return the number of the image that is chosen by name or number; of several of one name, the first."""
    if isinstance(image, str):
        for asked in (image, image.strip("/")):
            if asked in names:
                return names.index(asked)
    elif -len(names) <= image < len(names):
        return image % len(names)
    raise TilingError(f"{where} has no image {image!r}; it has {len(names)}: {_listed(names) or 'none'}.")


def _inside(place: Any, path: str) -> Any:
    """Return the place at a path that metadata or the caller name."""
    try:
        return place / path
    except ValueError as error:
        raise TilingError(f"the group at {place} can hold nothing at the path {path!r}: {error}") from None


def _level(place: Any, image: OmeImage, level: int, zarr_format: Format, *, ours: bool) -> StoredImage:
    """Return a level of the image at a place."""
    count = len(image.levels)
    if not -count <= level < count:
        paths = _listed([one.path for one in image.levels])
        raise TilingError(f"the image at {place} has no level {level}; it has {count}: {paths}.")
    level %= count
    array = _array(place, image, level, zarr_format)
    meta = _meta(place, image, level, array)
    return StoredImage(zarr_source(array, meta, ours=ours), place, image, level)


def _array(place: Any, image: OmeImage, level: int, zarr_format: Format) -> Any:
    import zarr

    at = _inside(place, image.levels[level].path)
    mode: Any = "r" if at.store.read_only else "r+"
    try:
        return zarr.open_array(at.store, path=at.path, mode=mode, zarr_format=zarr_format)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise TilingError(
            f"level {level} of the image at {place} should be an array at {image.levels[level].path!r}; "
            f"there is none ({type(error).__name__}: {error})."
        ) from error


def _meta(place: Any, image: OmeImage, level: int, array: Any) -> ImageMeta | None:
    """Return what the samples of a level mean; None if nothing is known."""
    if not image.named and (array.ndim != len(image.axes) or _plain(array) is not None):
        # As tifffile shows a pyramid: with names at the arrays alone.
        return _scaled(_plain(array), place, image, level, array)
    if len(image.axes) != array.ndim:
        raise TilingError(
            f"the image at {place} has the axes {image.axes}, but level {level} has shape {array.shape}. "
            f"Correct its multiscales, or give the array {array.store_path}, and meta= if it should have a "
            "meaning."
        )
    meta = image.meta(level).replace(nodata=missing_value(array.attrs, array.dtype))
    channel = meta.channel_axis
    for what in ("channel_names", "channel_colors"):
        values = getattr(meta, what)
        if values is not None and channel is not None and len(values) != array.shape[channel]:
            warn(
                f"the image at {place} has {array.shape[channel]} channels, and its metadata describe "
                f"{len(values)} ({_listed(values)}); they are left out.",
                TilingWarning,
            )
            meta = meta.replace(channel_names=None, channel_colors=None)
    return meta if image.placed else _scaled(meta, place, image, level, array)


def _scaled(meta: ImageMeta | None, place: Any, image: OmeImage, level: int, array: Any) -> ImageMeta | None:
    """Return the meaning of a level without a stated scale: that of level 0 is 1, and shapes tell others."""
    if meta is None or not level:
        return meta
    finest = _array(place, image, 0, array.metadata.zarr_format).shape
    return meta.replace(scale=[round(n / m) or 1 for n, m in zip(finest, array.shape, strict=True)])


def _plain(array: Any) -> ImageMeta | None:
    """Return the meaning that the names of the axes of an array give; None if it has none, or odd ones."""
    names = stored_names(array)
    return ImageMeta(names, nodata=missing_in(array)) if names and len(set(names)) == len(names) else None


def _labels(place: Any, zarr_format: Format) -> tuple[str, ...]:
    """Return the names of the images of labels of an image."""
    (attributes,) = attributes_of([place / "labels"], zarr_format)
    return read_group(attributes or {}, f"the group at {place / 'labels'}").labels


def _kind(group: OmeGroup) -> str:
    kinds = {
        "plate": group.wells,
        "well": group.fields,
        "labels": group.labels,
        "collection": group.collection,
    }
    return next((kind for kind, there in kinds.items() if there), "")


def _paths(place: Any, zarr_format: Format, group: OmeGroup) -> list[str]:
    """Return the paths of the images below a plate, a well, labels or a collection."""
    if group.wells:
        found = attributes_of([place / well for well in group.wells], zarr_format, strict=True)
        wells = dict(zip(group.wells, found, strict=True))
        if gone := [well for well, attributes in wells.items() if attributes is None]:
            warn(f"the plate at {place} lists wells that are not there: {_listed(gone)}.", TilingWarning)
        return [
            f"{well}/{field}"
            for well, attributes in wells.items()
            for field in read_group(attributes or {}, f"the well {well} of {place}").fields
        ]
    if not group.collection:
        return list(group.fields or group.labels)
    (attributes,) = attributes_of([place / "OME"], zarr_format)
    if series := read_group(attributes or {}, f"the group at {place / 'OME'}").series:
        return list(series)
    numbered: list[str] = []
    for first in itertools.count(0, AT_ONCE):
        names = [str(first + k) for k in range(AT_ONCE)]
        there = attributes_of([place / name for name in names], zarr_format)
        numbered += [name for name, one in zip(names, there, strict=True) if one is not None]
        if None in there:
            return numbered
    raise AssertionError


# -- arrays -------------------------------------------------------------------------------------------------


def _of_array(array: Any, choice: _Choice) -> StoredImage:
    for what in ("level", "image", "label"):
        if getattr(choice, what) not in (0, None):
            raise TilingError(
                f"{what}= chooses in a group; {array.store_path} is an array. Give the path of its group."
            )
    home, image, level = _image_above(array)
    meta = None
    if image is not None:
        try:
            meta = _meta(home, image, level, array)
        except TilingError as error:
            _unknown(array, error)
    if meta is None:
        meta, home, image, level = _plain(array), None, None, 0
        if choice.ours and meta is not None and (packed := packing(array.attrs, array.dtype)):
            warn(
                f"the values of {array.store_path} are packed, and are read as they are stored: "
                f"{', '.join(f'{name} {value}' for name, value in packed.items())}. xarray.open_zarr(group) "
                "unpacks them: give its variable.",
                TilingWarning,
            )
    return StoredImage(zarr_source(array, meta, ours=choice.ours), home, image, level)


def _image_above(array: Any) -> tuple[Any, OmeImage | None, int]:
    """Return the place of the image of which an array is a level, the image, and the number of the level."""
    zarr_format = array.metadata.zarr_format
    for place, path in above(array.store_path):
        (attributes,) = attributes_of([place], zarr_format)
        try:
            group = read_group(attributes or {}, f"the group at {place}")
        except TilingError as error:
            _unknown(array, error)
            return None, None, 0
        for image in group.images:
            for level, one in enumerate(image.levels):
                if one.path == path:
                    return place, image, level
        if group:
            break
    return None, None, 0


def _unknown(array: Any, error: TilingError) -> None:
    warn(f"what the samples of {array.store_path} mean is not known: {error}", TilingWarning)
