"""`add_to_napari`: layers lie where the image lies, and compute what the window shows.

Where napari is installed, every test also asks its own model of a viewer, which needs no window.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import tilework as tw

PLACE = {"scale": (3, 1, 2, 0.5, 0.5), "translation": (0, 0, 10, 5, 5)}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


class StandIn:
    """What napari documents of `add_image` and `add_labels`, and the rules that it enforces."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def add_image(
        self, data=None, *, channel_axis=None, axis_labels=None, blending=None, colormap=None,
        contrast_limits=None, multiscale=None, name=None, rgb=None, scale=None, translate=None, units=None,
        visible=True,
    ):  # fmt: skip
        assert channel_axis is None
        return self._add(data, multiscale, scale, translate, units, axis_labels, locals(), rgb=bool(rgb))

    def add_labels(
        self, data, *, axis_labels=None, multiscale=None, name=None, scale=None, translate=None, units=None,
        visible=True,
    ):  # fmt: skip
        layer = self._add(data, multiscale, scale, translate, units, axis_labels, locals())
        assert {level.dtype.kind for level in layer.levels} <= {"i", "u"}
        return layer

    def _add(self, data, multiscale, scale, translate, units, axis_labels, given, *, rgb=False):
        levels = data if multiscale else [data]
        assert not multiscale or [v.shape for v in levels] == sorted((v.shape for v in levels), reverse=True)
        # A viewer without layers shows the first plane, and then goes to the middle one.
        assert given["visible"] is False
        ndim = levels[0].ndim - rgb
        assert ndim >= 2
        for values in (scale, translate, units, axis_labels):
            assert values is None or len(values) == ndim
        layer = SimpleNamespace(**{k: v for k, v in given.items() if k != "self"})
        layer.levels, layer.data, layer.multiscale, layer.rgb = list(levels), levels[0], bool(multiscale), rgb
        layer.scale = np.ones(ndim) if scale is None else np.array(scale, float)
        layer.translate = np.zeros(ndim) if translate is None else np.array(translate, float)
        layer.units = units or ("pixel",) * ndim
        # Of several levels, napari looks at the coarsest first; of one, at the first plane.
        for level in levels[-1:]:
            np.asarray(level[(0,) * (ndim - 2)])
        self.layers.append(layer)
        return layer


def napari_model() -> Any:
    """Return napari's own model of a viewer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from napari.components import ViewerModel
    return ViewerModel()


VIEWERS = [StandIn, napari_model] if find_spec("napari") else [StandIn]


@pytest.fixture(params=VIEWERS, ids=lambda make: make.__name__)
def viewer(request: pytest.FixtureRequest) -> Iterator[Any]:
    with warnings.catch_warnings():
        if request.param is napari_model:
            warnings.simplefilter("ignore")
        yield request.param()


def levels_of(layer: Any) -> list[Any]:
    return list(getattr(layer, "levels", None) or (layer.data if layer.multiscale else [layer.data]))


def finest(layer: Any) -> np.ndarray:
    return np.asarray(levels_of(layer)[0])


def units_of(layer: Any) -> list[str]:
    return [str(unit) for unit in layer.units]


def volume(*, names: bool = True) -> tuple[np.ndarray, tw.ImageMeta]:
    image = np.random.default_rng(0).random((2, 2, 6, 40, 50), np.float32)
    channels = {"channel_names": ["DAPI", "GFP"], "channel_colors": ["0000FF", "00FF00"]} if names else {}
    return image, tw.ImageMeta("tczyx", units=UNITS, **PLACE, **channels)


def test_channels_are_layers_in_their_place(viewer: Any, counting: Callable[..., Any]) -> None:
    image, meta = volume()
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, image, (6, 20, 20), 2, axes="zyx", each="t", meta=meta, dtype="f4")
    layers = tw.add_to_napari(viewer, out)
    assert [layer.name for layer in layers] == ["DAPI", "GFP"]
    assert list(viewer.layers) == layers
    assert fn.calls == 5
    for k, layer in enumerate(layers):
        np.testing.assert_array_equal(finest(layer), np.sqrt(image[:, k]))
        assert list(layer.scale) == [3, 2, 0.5, 0.5]
        assert list(layer.translate) == [0, 10, 5, 5]
        assert units_of(layer) == ["second", "micrometer", "micrometer", "micrometer"]
        assert tuple(layer.axis_labels) == ("t", "z", "y", "x")
        assert 0 <= layer.contrast_limits[0] < layer.contrast_limits[1] <= 1
        assert layer.blending == "additive"
        assert layer.visible
        assert levels_of(layer)[1].shape == (2, 6, 20, 25)
    colours = [getattr(layer.colormap, "name", layer.colormap) for layer in layers]
    assert colours in (["#0000FF", "#00FF00"], ["blue", "green"])


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "path", "xarray", "load_once"])
def test_an_image_is_shown_as_it_is(kind: str, viewer: Any, tmp_path: Any) -> None:
    image = np.random.default_rng(0).random((3, 30, 40)).astype("f4")
    array: Any = image
    if kind == "dask":
        array = da.from_array(image, 10)
    if kind in ("zarr", "path"):
        array = zarr.create_array(tmp_path / "a.zarr", data=image, dimension_names=["c", "y", "x"])
    if kind == "path":
        array = str(tmp_path / "a.zarr")
    if kind == "xarray":
        array = xr.DataArray(image, dims=("c", "y", "x"))
    if kind == "load_once":
        array = tw.load_once(lambda: image)
    layers = tw.add_to_napari(viewer, array)
    named = kind in ("zarr", "path", "xarray")
    name = "a" if kind == "path" else "image"
    assert [layer.name for layer in layers] == ([f"{name} {k}" for k in range(3)] if named else ["image"])
    for k, layer in enumerate(layers):
        np.testing.assert_array_equal(finest(layer), image[k] if named else image)
        assert not layer.multiscale


def test_a_channel_of_a_store_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["c", "y", "x"]
    array = zarr.create_array({}, data=np.zeros((3, 64, 64)), chunks=(1, 16, 16), dimension_names=names)
    layers = tw.add_to_napari(StandIn(), array)
    reads: list[Any] = []
    read = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: reads.append(key) or read(self, key))
    np.asarray(layers[1].data[:16, :20])
    assert reads == [(1, slice(0, 16, 1), slice(0, 20, 1))]


@pytest.fixture
def stack(tmp_path: Any) -> tuple[str, np.ndarray]:
    """Return the path of an OME-Zarr image with three levels and labels, and its samples."""
    image = np.random.default_rng(0).integers(0, 999, (2, 2, 6, 64, 64)).astype("u2")
    meta = tw.ImageMeta("tczyx", units=UNITS, channel_names=["DAPI", "GFP"], name="cells", **PLACE)
    path = str(tmp_path / "stack.ome.zarr")
    out = tw.tiled_map(lambda c: c, image, 32, 0, axes="yx", each="tc", meta=meta, dtype="u2")
    tw.to_zarr(out, path, ome=True, levels=3, chunks=(1, 1, 6, 16, 16), progress=False)
    half = tw.Output("u1", channels=0)
    ids = tw.tiled_map(lambda c: (c[0] > 500).astype("u1"), path, 32, 0, axes="zyx", each="t", output=half)
    tw.to_zarr(ids, path, label_name="ids", levels=3, progress=False)
    return path, image


@pytest.mark.parametrize("kind", ["path", "group", "image", "level"])
def test_an_image_of_ome_zarr_has_its_levels(kind: str, viewer: Any, stack: tuple[str, np.ndarray]) -> None:
    path, image = stack
    array: Any = path
    if kind == "group":
        array = zarr.open_group(path, mode="r")
    if kind == "image":
        array = tw.open_image(path)
    if kind == "level":
        array = tw.open_image(path, level=1)
    mask = {"mask": tw.open_image(path, label="ids")}
    nuclei, actin, ids = tw.add_to_napari(viewer, array, labels=mask)
    assert [nuclei.name, actin.name, ids.name] == ["DAPI", "GFP", "mask"]
    first = 1 if kind == "level" else 0
    place = {0: ([3, 2, 0.5, 0.5], [0, 10, 5, 5]), 1: ([3, 2, 1, 1], [0, 10, 5.25, 5.25])}
    for k, layer in enumerate((nuclei, actin)):
        assert len(levels_of(layer)) == 3 - first
        assert list(layer.scale) == place[first][0]
        assert list(layer.translate) == place[first][1]
        if not first:
            np.testing.assert_array_equal(finest(layer), image[:, k])
    assert list(ids.scale) == place[0][0]
    assert list(ids.translate) == place[0][1]
    assert len(levels_of(ids)) == 3
    np.testing.assert_array_equal(finest(ids), image[:, 0] > 500)


def test_a_window_of_a_level_is_read_alone(stack: tuple[str, np.ndarray], monkeypatch: Any) -> None:
    stored = tw.open_image(stack[0], label="ids")
    _, layer, ids = tw.add_to_napari(StandIn(), tw.open_image(stack[0]), labels=stored)
    reads: list[Any] = []
    read = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: reads.append(key) or read(self, key))
    window = layer.levels[1][:, :, :10, 5:20]
    assert reads == []
    np.asarray(window[1, 3])
    assert reads == [(1, 1, 3, slice(0, 10, 1), slice(5, 20, 1))]
    window = ids.levels[0][:, :, 7:9]
    assert len(reads) == 1
    np.asarray(window[0, 2])
    assert reads[1:] == [(0, 2, slice(7, 9, 1), slice(0, 64, 1))]


def test_a_dataset_and_a_lazy_dataarray_are_results(viewer: Any, counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    north = 5e6 - 30 * np.arange(80)
    scene = xr.DataArray(
        np.ones((80, 90), "f4"), dims=("y", "x"), coords={"y": north, "x": 30.0 * np.arange(90)}
    )
    out = tw.tiled_map(fn, scene, {"y": 20, "x": 20}, 2, dtype="f4")
    first, second = tw.add_to_napari(viewer, result=xr.Dataset({"root": out, "scene": scene}))
    assert [first.name, second.name] == ["root", "scene"]
    assert fn.calls == 5
    assert list(first.scale) == list(second.scale) == [-30, 30]
    assert list(first.translate) == list(second.translate) == [5e6, 0]


def test_several_outputs_and_labels_share_their_tiles(viewer: Any, counting: Callable[..., Any]) -> None:
    image, meta = volume()
    fn = counting(lambda c: {"smooth": c, "bright": c[0] > 0.5, "ids": (c[0] * 9).astype("u2")})
    outputs = {
        "smooth": tw.Output("f4"),
        "bright": tw.Output(bool, channels=0),
        "ids": tw.Output("u2", channels=0),
    }
    out = tw.tiled_map(fn, image, (6, 20, 20), 2, axes="zyx", each="t", meta=meta, output=outputs)
    labels = {"bright": out["bright"], "ids": out["ids"]}
    layers = tw.add_to_napari(viewer, image, {"smooth": out["smooth"]}, labels=labels)
    assert [layer.name for layer in layers] == ["image", "smooth DAPI", "smooth GFP", "bright", "ids"]
    assert fn.calls == 5
    for layer in layers[1:]:
        finest(layer)
        assert list(layer.scale) == [3, 2, 0.5, 0.5]
    assert fn.calls == tw.view(out["ids"], verbose=False).crops
    np.testing.assert_array_equal(finest(layers[3]), image[:, 0] > 0.5)
    assert finest(layers[3]).dtype == np.uint8
    assert levels_of(layers[3])[1].dtype == np.uint8
    assert finest(layers[4]).dtype == np.uint16
    assert viewer.layers[3].__class__.__name__ in ("Labels", "SimpleNamespace")


def test_a_scaled_result_covers_its_image(viewer: Any) -> None:
    meta = tw.ImageMeta("yx", scale=(2, 2), translation=(10, 20), units="micrometer")
    image = np.ones((32, 48), "f4")
    out = tw.tiled_map(
        lambda c: c.repeat(2, 0).repeat(2, 1), image, 16, 0, output=tw.Output("f4", scale=2), meta=meta
    )
    (layer,) = tw.add_to_napari(viewer, result=out)
    assert list(layer.scale) == [1, 1]
    assert list(layer.translate) == [9.5, 19.5]


def test_an_axis_that_the_function_drops_is_as_long_as_all_of_it(viewer: Any) -> None:
    """napari aligns the last axes: times of a projection would be shown as planes."""
    image, meta = volume(names=False)
    image, meta = (
        image[:, 0],
        tw.ImageMeta("tzyx", units=UNITS, scale=(3, 2, 1, 1), translation=(7, 10, 0, 0)),
    )
    same = tw.tiled_map(np.sqrt, image, 20, 2, axes="yx", each="t", meta=meta, dtype="f4")
    out = tw.tiled_map(
        lambda c: c.max(0), image, 20, 2, axes="yx", each="t", meta=meta, output=tw.Output("f4", channels=0)
    )
    first, second = tw.add_to_napari(viewer, same, out)
    assert levels_of(first)[0].shape == (2, 6, 40, 50)
    assert finest(second).shape == (2, 1, 40, 50)
    assert list(second.scale) == [3, 12, 1, 1]
    assert list(second.translate) == [7, 15, 0, 0]
    assert units_of(second) == units_of(first)
    # From 15 - 12 / 2 to 15 + 12 / 2, as the planes do from 10 - 2 / 2 to 10 + 5 * 2 + 2 / 2.
    np.testing.assert_array_equal(finest(second)[:, 0], image.max(1))
    # Axes in front are napari's to add.
    plane = tw.tiled_map(np.sqrt, image[0, 0], 20, 2, meta=tw.ImageMeta("yx", scale=(1, 1)), dtype="f4")
    last = tw.add_to_napari(viewer, same, plane)[-1]
    assert finest(last).shape == (40, 50)


def test_channels_in_each_and_last(viewer: Any, counting: Callable[..., Any]) -> None:
    image = np.random.default_rng(0).random((60, 60, 3), np.float32)
    fn = counting(np.sqrt)
    meta = tw.ImageMeta("yxc", channel_names=list("abc"))
    out = tw.tiled_map(fn, image, 20, 2, axes="yx", each="c", meta=meta, dtype="f4")
    layers = tw.add_to_napari(viewer, result=out)
    assert [layer.name for layer in layers] == ["result a", "result b", "result c"]
    assert fn.calls == 15
    for k, layer in enumerate(layers):
        np.testing.assert_array_equal(finest(layer), np.sqrt(image[..., k]))
    for k, layer in enumerate(tw.add_to_napari(viewer, xr.DataArray(image, dims=("y", "x", "c")))):
        np.testing.assert_array_equal(finest(layer), image[..., k])


def test_a_photograph_has_colours(viewer: Any) -> None:
    photo = xr.DataArray(np.zeros((40, 50, 3), np.uint8), dims=("y", "x", "band"))
    (layer,) = tw.add_to_napari(viewer, photo)
    assert layer.rgb
    layers = tw.add_to_napari(viewer, photo.transpose("band", "y", "x"))
    assert [layer.rgb for layer in layers] == [False] * 3


def test_names(viewer: Any, tmp_path: Any) -> None:
    zarr.create_array(tmp_path / "cells.ome.zarr", data=np.zeros((20, 20)))
    one = np.zeros((20, 20))
    layers = tw.add_to_napari(viewer, tmp_path / "cells.ome.zarr", (one, one), labels=one.astype(int))
    assert [layer.name for layer in layers] == ["cells", "result 0", "result 1", "labels"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, tw.TilingError, "give what is to be shown"),
        ({"labels": np.zeros((9, 9))}, TypeError, "labels must be integers or bool; 'labels' has dtype fl"),
        ({"image": np.zeros((9, 9), "M8[s]")}, TypeError, "napari shows real numbers; 'image' has dtype d"),
        ({"result": {"a": np.zeros((9, 9), "f4,i4")}}, TypeError, "napari shows real numbers; 'a' has dtype"),
        ({"image": np.zeros((9, 9), "c8")}, TypeError, "'image' has dtype complex64; show the magnitude"),
        ({"image": np.zeros(9)}, tw.TilingError, r"two axes or more.*'image' has shape \(9,\)"),
        (
            {"image": xr.DataArray(np.zeros((3, 9)), dims=("c", "x"))},
            tw.TilingError,
            r"besides channels; 'image' has shape \(3, 9\) with axes \('c', 'x'\)",
        ),
        ({"image": "nowhere.zarr"}, tw.TilingError, "no such file"),
        ({"image": 3}, TypeError, "array must have shape"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)  # fmt: skip
@pytest.mark.sample(20)
def test_what_cannot_be_shown_is_said_before_a_layer_is_added(viewer: Any, given, error, message) -> None:
    with pytest.raises(error, match=message):
        tw.add_to_napari(viewer, **{"result": np.zeros((9, 9)), **given} if given else given)
    assert not list(viewer.layers)


def test_a_viewer_is_a_viewer() -> None:
    with pytest.raises(TypeError, match=r"viewer must be a napari viewer, napari.Viewer\(\); got 'x'"):
        tw.add_to_napari("x", np.zeros((9, 9)))


def test_an_older_napari_gets_what_it_takes() -> None:
    class Older:
        def add_image(self, data, *, name, multiscale, visible, scale, translate, colormap, blending=None):
            return SimpleNamespace(scale=scale)

        def add_labels(self, data):
            raise AssertionError

    image = xr.DataArray(np.zeros((9, 9)), dims=("y", "x"))
    (layer,) = tw.add_to_napari(Older(), image)
    assert layer.scale == [1, 1]


def test_napari_is_not_imported() -> None:
    if not find_spec("napari"):
        tw.add_to_napari(StandIn(), np.zeros((9, 9)))
        assert "napari" not in sys.modules


@pytest.mark.parametrize(
    ("shape", "crop", "overlap", "blend"),
    [
        ((40, 300, 300), (20, 80, 80), 5, "trim"),
        ((2000, 2000), 200, 50, "hann"),
        ((400, 400), 100, 5, "trim"),
    ],
    ids=["volume", "slide", "small"],
)
def test_the_first_look_runs_five_tiles(
    viewer: Any, counting: Callable[..., Any], shape, crop, overlap, blend
) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, np.ones(shape, "f4"), crop, overlap, blend=blend, dtype="f4")
    layers = tw.add_to_napari(viewer, result=out)
    assert fn.calls == 5
    if isinstance(viewer, StandIn):
        return
    # The window comes later: it tells each layer what it shows, which then runs.
    corners = np.array([[0, 0], [50, 50]])
    viewer.dims.set_point(0, 0)
    layers[0]._update_draw(1.0, corners, (600, 800))
    levels = layers[0].data
    assert levels[-1].shape[-1] <= max(512, shape[-1] // 2)
    assert fn.calls < len(tw.view(out, verbose=False)._tiles.spec.plan.grid)


def test_a_unit_that_napari_does_not_know_is_left_out(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """napari looks units up with pint, and refuses others."""

    class Registry:
        def Unit(self, unit: str) -> str:
            if unit == "degrees_north":
                raise ValueError(unit)
            return unit

    if isinstance(viewer, StandIn):
        monkeypatch.setitem(sys.modules, "pint", SimpleNamespace(get_application_registry=Registry))
    meta = tw.ImageMeta("yx", units=("degrees_north", "micrometer"))
    out = tw.tiled_map(np.sqrt, np.ones((20, 20)), 8, 0, dtype="f8", meta=meta)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        (layer,) = tw.add_to_napari(viewer, result=out)
    assert units_of(layer) == ["pixel", "micrometer"]
    assert "does not know the unit 'degrees_north' of 'result'" in "".join(str(w.message) for w in found)
