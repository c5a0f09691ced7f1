"""`add_to_napari`: images and results as layers of napari, where they lie in the world."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tilework._checks import attribute, brief, warn
from tilework.diagnostics.indexing import Cut
from tilework.diagnostics.viewing import View, view
from tilework.errors import TilingError, TilingWarning
from tilework.formats.meta import ImageMeta
from tilework.function.load_once import LoadOnce
from tilework.graph.build import Found, find_spec
from tilework.source.images import StoredImage, StoredImages, open_image
from tilework.source.opening import open_source

__all__ = ["add_to_napari"]

Role = Literal["image", "result", "labels"]

# Colour maps of channels without colours, as napari chooses them for its channel_axis.
_TWO, _MANY = ("magenta", "green"), ("cyan", "yellow", "magenta", "red", "green", "blue")
# Colour map of a result with one channel, which lies on a grey image.
_RESULT = "inferno"
# Ends of the names of files that are no part of the name of an image.
_ENDS = (".ome.zarr", ".zarr")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """One array that becomes one layer, or one for each channel."""

    role: Role
    name: str
    levels: Sequence[Any]
    """Arrays, the finest first."""
    meta: ImageMeta | None
    view: View | None
    """The view that computes it, if it is a result."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the finest level."""
        return tuple(self.levels[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the samples."""
        dtype: np.dtype[Any] = np.dtype(self.levels[0].dtype)
        return dtype

    @property
    def rgb(self) -> bool:
        """Whether it is a colour image with its colours last, which napari shows as they are."""
        if self.meta is None or self.role != "image" or self.dtype != np.uint8:
            return False
        last, names = len(self.shape) - 1, self.meta.channel_names
        plain = names is None or "".join(name[:1].lower() for name in names) in ("rgb", "rgba")
        return self.meta.channel_axis == last and self.shape[last] in (3, 4) and plain

    @property
    def channel_axis(self) -> int | None:
        """The axis of which each index becomes a layer."""
        return None if self.meta is None or self.rgb else self.meta.channel_axis

    @property
    def world(self) -> dict[str, tuple[int, float, float, str | None]]:
        """Extent, scale, translation and unit of each axis that is neither channels nor colours, by name."""
        if self.meta is None:
            return {}
        facts = zip(self.shape, self.meta.scale, self.meta.translation, self.meta.units, strict=True)
        named = zip(self.meta.axes, facts, strict=True)
        return {name: fact for a, (name, fact) in enumerate(named) if a != self.meta.channel_axis}


def add_to_napari(
    viewer: Any,
    image: Any = None,
    result: Any = None,
    *,
    labels: Any = None,
    cache: int | str = "1GiB",
) -> list[Any]:
    """Add images, results and labels to a napari viewer, where they lie in the world; return the layers.

    What `image_meta` knows becomes scale, translation, units, axis labels and names, and every channel a
    layer. A lazy result of `tiled_map` computes the tiles that the window shows, when it shows them. Zoomed
    out so far that the window has fewer than half of its pixels, it shows the tiles that have run. So the
    first look runs the tiles in the window, and five tiles for the contrast limits.

    Parameters
    ----------
    viewer : napari.Viewer or napari.components.ViewerModel
        Viewer that gets the layers.
    image, result : array, path, URL, or result of tiled_map, optional
        Anything that `tiled_map` takes or returns, a `view`, or a tuple or dict of them. Keys of a dict are
        names of layers.
    labels : the same, of integers or bool, optional
        What becomes labels layers, as results of ``Output(labels="own")`` always do.
    cache : int or str, bytes
        Memory for results of tiles, as in `view`: all that one plane of the window needs, so that the layers
        of one call run each tile once.

    Returns
    -------
    list of napari layers
        In the order in which they were added: image, result, labels.

    Raises
    ------
    TypeError
        If ``viewer`` is no viewer, or something cannot be shown: labels of floats, complex numbers, text,
        times, records.
    TilingError
        If nothing is given, or an array has fewer than two axes besides channels.

    Examples
    --------
    In place of ``napari.Viewer()``, an object that notes what it is told:

    >>> from unittest.mock import Mock
    >>> import numpy as np, tilework as tw
    >>> image = np.random.default_rng(0).random((60, 512, 512), dtype="float32")
    >>> meta = tw.ImageMeta("zyx", units="micrometer", scale=(2, 0.5, 0.5))
    >>> out = tw.tiled_map(np.sqrt, image, crop=32, overlap=4, meta=meta)
    >>> viewer = Mock()
    >>> layers = add_to_napari(viewer, result=out)
    >>> viewer.add_image.call_args.kwargs["scale"]
    [2.0, 0.5, 0.5]
    """
    for method in ("add_image", "add_labels"):
        if not callable(attribute(viewer, method)):
            raise TypeError(f"viewer must be a napari viewer, napari.Viewer(); got {brief(viewer)}.")
    given: dict[tuple[Role, str], Any] = {}
    roles: tuple[tuple[Role, Any], ...] = (("image", image), ("result", result), ("labels", labels))
    for role, value in roles:
        given |= {(role, name): one for name, one in _named(role, value).items()}
    if not given:
        raise TilingError("give what is to be shown: image=, result= or labels=.")
    # Together, because views of one call share their tiles.
    found = {key: find_spec(array) for key, array in given.items()}
    lazy = {key: array for key, array in given.items() if found[key] is not None}
    views: dict[tuple[Role, str], View] = view(lazy, cache=cache, verbose=False)
    shown = [_open(_role(key[0], found[key]), key[1], views.get(key, one)) for key, one in given.items()]
    world = next((s.world for s in shown if s.meta is not None), {})
    # Everything is checked, and contrast limits are computed, before the first layer is added.
    calls = [call for one in shown for call in _layers(viewer, one, world)]
    layers = [getattr(viewer, method)(data, visible=False, **options) for method, data, options in calls]
    # Not before the viewer is where it stays: it would compute plane 0 first, and then the middle one.
    for layer in layers:
        layer.visible = True
    return layers


def _role(role: Role, found: Found | None) -> Role:
    """Return what an array is shown as: labels of a result are labels wherever they are given."""
    own = found is not None and found.output.stored is not None
    return "labels" if own else role


def _named(role: Role, value: Any) -> dict[str, Any]:
    """Return one or several arrays by name."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(name): one for name, one in value.items()}
    if isinstance(value, tuple | list):
        return {f"{role} {number}": one for number, one in enumerate(value)}
    name: str = role
    if isinstance(value, str | Path):
        name = str(value).rstrip("/").rpartition("/")[-1]
        name = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), name)
    return {name: value}


def _open(role: Role, name: str, one: Any) -> _Shown:
    """Return what is known of one array, after checks of what can be shown."""
    if isinstance(one, View):
        shown = _Shown(role=role, name=name, levels=one.levels, meta=one.meta, view=one)
    else:
        levels, meta = _stored(one)
        if role == "image" and name == role and meta is not None and meta.name:
            name = meta.name
        shown = _Shown(role=role, name=name, levels=levels, meta=meta, view=None)
    kind = shown.dtype.kind
    if role == "labels" and kind not in "biu":
        raise TypeError(
            f"labels must be integers or bool; {name!r} has dtype {shown.dtype}. Show it as result=, or "
            "convert it in the function."
        )
    if kind not in "biuf":
        part = "; show the magnitude, np.abs, or another part" if kind == "c" else ""
        raise TypeError(f"napari shows real numbers; {name!r} has dtype {shown.dtype}{part}.")
    axes = len(shown.shape) - (shown.channel_axis is not None) - shown.rgb
    if axes < 2:
        raise TilingError(
            f"napari shows images with two axes or more, besides channels; {name!r} has shape {shown.shape}"
            f"{f' with axes {shown.meta.axes}' if shown.meta else ''}."
        )
    return shown


def _stored(one: Any) -> tuple[list[Any], ImageMeta | None]:
    """Return an image that is not computed: its arrays, the finest first, and what its samples mean."""
    made_by = type(one).__module__.partition(".")[0]
    if isinstance(one, str | Path | StoredImage) or (made_by == "zarr" and not hasattr(one, "shape")):
        found = open_image(one) if not isinstance(one, StoredImage) else one
        image = found.one() if isinstance(found, StoredImages) else found
        return [level.source.handle for level in image.levels[image.level :]], image.meta
    source = open_source(one)
    array = source.handle.get() if isinstance(source.handle, LoadOnce) else source.handle
    return [array], source.meta


def _layers(viewer: Any, shown: _Shown, world: Mapping[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return method, data and options of the layers of one array."""
    method = "add_labels" if shown.role == "labels" else "add_image"
    places, options = _placed(shown, world)
    takes = inspect.signature(getattr(viewer, method)).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        options = {key: value for key, value in options.items() if key in takes}  # older versions
    channel = shown.channel_axis
    numbers: Sequence[int | None] = [None] if channel is None else range(shown.shape[channel])
    looks = _looks(shown, len(numbers)) if method == "add_image" else itertools.repeat({})
    calls = []
    for number, name, look in zip(numbers, _names(shown, len(numbers)), looks, strict=False):
        data = [_cut(level, shown, number, places) for level in shown.levels]
        several = len(data) > 1
        calls.append(
            (method, data if several else data[0], {"name": name, "multiscale": several, **options, **look})
        )
    return calls


def _placed(shown: _Shown, world: Mapping[str, Any]) -> tuple[list[int | None], dict[str, Any]]:
    """Return the axes of the array, None for new ones, and scale, translate, units and axis_labels.

    napari aligns the last axes of layers. So an axis that others have in between, and this one does not, is
    added: one sample as long as all of theirs.
    """
    axes: list[int | None] = [a for a in range(len(shown.shape)) if a != shown.channel_axis]
    if shown.meta is None:
        return axes, {}
    facts, order = shown.world, list(world)
    order = order[order.index(next(iter(facts))) :] if facts and next(iter(facts)) in world else []
    if [name for name in order if name in facts] == list(facts):
        colours = axes[len(facts) :]
        at = dict(zip(facts, axes, strict=False))
        axes = [*(at.get(name) for name in order), *colours]
        facts = {name: facts[name] if name in facts else _as_one(*world[name]) for name in order}
    options = {
        "scale": [scale for _, scale, _, _ in facts.values()],
        "translate": [start for _, _, start, _ in facts.values()],
        "axis_labels": list(facts),
    }
    units = [unit for *_, unit in facts.values()]
    if any(units):
        options["units"] = [unit if unit and _known(unit, shown.name) else "pixel" for unit in units]
    return axes, options


def _known(unit: str, name: str) -> bool:
    """Return whether napari knows a unit, which it looks up with pint; warn if it does not."""
    pint: Any = sys.modules.get("pint")
    if pint is None:
        return True
    try:
        pint.get_application_registry().Unit(unit)
    except Exception:  # of a parser: any kind
        text = f"napari does not know the unit {unit!r} of {name!r}; it shows the numbers without a unit."
        warn(text, TilingWarning)
        return False
    return True


def _as_one(n: int, scale: float, start: float, unit: str | None) -> tuple[int, float, float, str | None]:
    """Return one sample as long as ``n`` samples of an axis, at their middle."""
    return 1, n * scale, start + (n - 1) / 2 * scale, unit


def _cut(level: Any, shown: _Shown, number: int | None, axes: Sequence[int | None]) -> Any:
    """Return one level as napari gets it: one channel, with the axes of the others, lazily."""
    flags = shown.role == "labels" and np.dtype(level.dtype) == bool
    index: list[Any] = [None if axis is None else slice(None) for axis in axes]
    if (channel := shown.channel_axis) is not None:
        index.insert(
            next((k for k, a in enumerate(axes) if a is not None and a > channel), len(axes)), number
        )
    whole = all(i == slice(None) for i in index) and not flags
    sliced_lazily = isinstance(level, np.ndarray | Cut) or hasattr(level, "dask")
    # Of several levels, napari cuts the window out of all planes, and then takes one.
    if whole and (sliced_lazily or len(shown.levels) == 1):
        return level
    if isinstance(level, np.ndarray) or hasattr(level, "dask"):
        part = level[tuple(index)]
        return part.astype(np.uint8) if flags else part
    part = Cut(level)[tuple(index)]
    return Cut(part, dtype=np.uint8) if flags else part


def _names(shown: _Shown, number: int) -> list[str]:
    """Return the names of the layers of one array."""
    if shown.channel_axis is None:
        return [shown.name]
    names = shown.meta.channel_names if shown.meta else None
    if shown.role == "image" and names is not None:
        return list(names)
    if number == 1 and names is None:
        return [shown.name]
    return [f"{shown.name} {name}" for name in names or range(number)]


def _looks(shown: _Shown, number: int) -> list[dict[str, Any]]:
    """Return colours, blending and contrast limits of the layers of an image."""
    if shown.rgb:
        return [{"rgb": True}]
    looks: list[dict[str, Any]] = [{} for _ in range(number)]
    colors = shown.meta.channel_colors if shown.meta and shown.channel_axis is not None else None
    if colors is not None:
        names: Sequence[str] = [f"#{color}" for color in colors]
    elif number > 1:
        names = _TWO if number == 2 else [_MANY[k % len(_MANY)] for k in range(number)]
    else:
        names = ["gray" if shown.role == "image" else _RESULT]
    for look, name in zip(looks, names, strict=False):
        look["colormap"] = name
    if number > 1 or shown.role == "result":
        looks = [look | {"blending": "additive"} for look in looks]
    if shown.view is not None:
        limits = shown.view.limits_along(shown.channel_axis)
        looks = [look | {"contrast_limits": pair} for look, pair in zip(looks, limits, strict=True)]
    return looks
