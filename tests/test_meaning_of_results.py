"""A result that is an image again: whatever opens it knows what its samples mean, though dask does not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

import tilework as tw

META = tw.ImageMeta("zyx", units="micrometer", scale=(2, 0.5, 0.5), name="embryo")
IMAGE = np.random.default_rng(0).random((16, 64, 48)).astype("f4")


def step(array, fn=np.sqrt, **options):
    return tw.tiled_map(fn, array, (8, 32, 24), (1, 4, 4), **options)


def root(crop):
    return np.sqrt(np.abs(crop))


def pair(crop):
    return {"low": crop, "high": crop + 1}


def labelled(crop):
    return ndimage.label(crop > 0.5)[0].astype("u4")


def test_a_step_knows_what_the_step_before_it_means():
    first = step(IMAGE, meta=META)
    second = tw.tiled_map(np.square, first, {"z": 8, "y": 32, "x": 24}, {"x": 4, "y": 4, "z": 1})
    assert tw.image_meta(second) == tw.image_meta(first) == META
    np.testing.assert_allclose(second.compute(), IMAGE, rtol=1e-6)
    third = tw.tiled_map(np.copy, second, {"y": 32, "x": 24}, 0, axes="yx")
    assert tw.image_meta(third) == META


def test_each_of_several_results_is_known():
    for out in step(IMAGE, pair, meta=META).values():
        assert tw.image_meta(step(out)) == META


def test_the_caller_and_other_arrays_come_first():
    first = step(IMAGE, meta=META)
    other = META.replace(scale=(1, 1, 1))
    assert tw.image_meta(step(first, meta=other)) == other
    assert tw.image_meta(step((IMAGE, first), np.add)) is None
    assert tw.image_meta(step((first, IMAGE), np.add)) == META


def test_what_is_computed_from_a_result_is_not_known():
    first = step(IMAGE, meta=META)
    for changed in (first + 1, first[1:], first.T, first.rechunk(16)):
        assert tw.image_meta(changed) is None
        assert tw.image_meta(tw.tiled_map(np.copy, changed, 8, 0)) is None
    with pytest.raises(tw.TilingError, match="names"):
        tw.tiled_map(np.copy, first + 1, {"y": 32, "x": 24}, 0)


def test_nodata_of_a_result_is_nodata_of_the_next_step():
    scene = IMAGE[0].copy()
    scene[:9] = -1
    out = {"output": tw.Output(fill_value=-5)}
    first = tw.tiled_map(root, scene, 24, 4, nodata=-1, meta=tw.ImageMeta("yx"), **out)
    second = tw.tiled_map(root, first, 24, 4, nodata=True, output=tw.Output(fill_value=-7))
    found = second.compute()
    assert (found[:9] == -7).all()
    np.testing.assert_allclose(found[9:], scene[9:] ** 0.25, rtol=1e-6)
    counted = tw.image_statistics(first, nodata=True, progress=False)
    assert counted.count == scene[9:].size


def test_objects_of_a_result_are_measured_in_its_units():
    image = np.zeros(IMAGE.shape, "f4")
    image[2:6, 4:9, 3:7] = 1
    labels = step(image, labelled, meta=META, output=tw.Output("u4", labels="own"))
    found = tw.measure_labels(labels, progress=False)
    assert found["area"].tolist() == [80]
    assert found["area_world"].tolist() == [80 * 2 * 0.5 * 0.5]
    assert "area_world" not in tw.measure_labels(labels + 0, progress=False)


def test_axes_of_a_result_are_called_by_name():
    first = step(IMAGE, meta=META)
    expected = tw.image_statistics(np.asarray(first), each=0, progress=False)
    np.testing.assert_array_equal(tw.image_statistics(first, each="z", progress=False).mean, expected.mean)
    crops = tw.sample_crops(first, 3, {"y": 8, "x": 8}, each="z", progress=False)
    assert crops.shape[0] == 3
    assert tw.probe(np.sqrt, {"z": 8, "y": 16, "x": 16}, first).crop == (8, 16, 16)


def test_an_image_of_two_steps_says_what_it_means(tmp_path):
    second = step(step(IMAGE, meta=META), np.square)
    tw.to_zarr(second, tmp_path / "x.ome.zarr", ome=True, progress=False)
    found = tw.open_image(tmp_path / "x.ome.zarr").meta
    assert (found.axes, found.scale, found.units) == (META.axes, META.scale, META.units)


def test_results_are_known_with_query_planning():
    code = (
        "import dask; dask.config.set({'array.query-planning': True})\n"
        "import numpy as np, tilework as tw\n"
        "meta = tw.ImageMeta('yx', scale=(2, 3))\n"
        "first = tw.tiled_map(np.sqrt, np.ones((8, 8)), 4, 0, meta=meta)\n"
        "assert hasattr(first, 'expr')\n"
        "assert tw.image_meta(tw.tiled_map(np.sqrt, first, {'y': 4, 'x': 4}, 0)) == meta\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_objects_are_joined_along_named_axes():
    labels = tw.tiled_map(labelled, step(IMAGE, meta=META), (1, 32, 24), 0, dtype="u4", chunks=(1, 32, 24))
    assert tw.image_meta(labels).axes == ("z", "y", "x")
    by_name, by_number = (np.asarray(tw.merge_labels(labels, each=one)) for one in ("z", 0))
    np.testing.assert_array_equal(by_name, by_number)


def test_the_axes_of_an_intensity_image_are_compared():
    labels = step(IMAGE, labelled, meta=META)
    other = step(IMAGE, meta=tw.ImageMeta("zxy"))
    with pytest.raises(tw.GridError, match="axes of the labels in their order"):
        tw.measure_labels(labels, other, properties="mean")


def test_coordinates_that_a_result_was_given_come_before_what_is_known_of_it(tmp_path):
    xarray = pytest.importorskip("xarray")
    image = xarray.DataArray(IMAGE, dims=("z", "y", "x"), coords={"y": np.arange(64) * 3.0})
    first = step(image, meta=META)
    assert tw.image_meta(first) == META.replace(scale=(2, 0.5, 0.5))
    moved = first.assign_coords(y=np.arange(64) * 7.0 + 1)
    for known in (tw.image_meta(moved), tw.image_meta(step(moved))):
        assert (known.scale, known.translation) == ((2, 7, 0.5), (0, 1, 0))
        assert known.units == META.units
    tw.to_zarr(moved, tmp_path / "a.zarr", ome=True, levels=1, progress=False)
    assert tw.image_meta(tw.open_image(tmp_path / "a.zarr")).scale == (2, 7, 0.5)
    renamed = first.rename(y="row")
    assert tw.image_meta(renamed).axes == tw.image_meta(step(renamed)).axes == ("z", "row", "x")


def test_the_next_step_has_the_coordinates_that_the_array_has_now():
    xarray = pytest.importorskip("xarray")
    image = xarray.DataArray(
        np.zeros((2, 8, 8)),
        dims=("c", "y", "x"),
        coords={
            "c": ["a", "b"], "y": np.arange(8.0), "u": ("x", np.arange(8) ** 2),
            "lat": (("y", "x"), np.zeros((8, 8))), "t": 3.0,
        },
    )  # fmt: skip

    def step(array):
        return tw.tiled_map(lambda crop: crop, array, 4, 0, axes=("y", "x"), dtype=float)

    first = step(image)
    changed = first.assign_coords(
        c=["p", "q"], y=np.arange(8.0) ** 3, u=("x", np.arange(8) ** 4),
        lat=(("y", "x"), np.ones((8, 8))), t=4.0,
    )  # fmt: skip
    assert step(changed).coords.equals(changed.coords)
    assert tw.image_meta(changed).channel_names == ("p", "q")
    assert set(step(first.drop_vars(["lat", "t", "u"])).coords) == {"c", "y"}
    assert set(step(first.rename(t="time", lat="latitude")).coords) == {"c", "y", "u", "time", "latitude"}


def test_names_of_channels_that_a_result_lost_do_not_come_back():
    xr = pytest.importorskip("xarray")
    image = xr.DataArray(np.zeros((2, 20, 20)), dims=("c", "y", "x"), coords={"c": ["red", "green"]})
    out = tw.tiled_map(np.copy, image, 8, 2, axes=("y", "x"))
    for lost in (out.drop_vars("c"), out.rename(c="k").drop_vars("k")):
        assert tw.image_meta(lost).channel_names is None
        assert not tw.tiled_map(np.copy, lost, 8, 2, axes=("y", "x")).coords
    kept = tw.tiled_map(np.copy, out, 8, 2, axes=("y", "x"))
    assert kept.c.values.tolist() == ["red", "green"]
