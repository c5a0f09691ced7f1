"""A DataArray goes in and a DataArray comes out: dims, coordinates, attributes, CRS."""

import io
import pickle
import re
import sys
import warnings
from fractions import Fraction

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tilework.formats import labelled as labels_module
from tilework.formats.coordinates import Coordinate
from tilework.graph.build import plan_of

HALF = Fraction(1, 2)


def scene(**more):
    """A scene of bands with all kinds of coordinates, and its transform in the order of GDAL."""
    random = np.random.default_rng(0)
    return xr.DataArray(
        random.random((3, 24, 36), np.float32),
        dims=("band", "y", "x"),
        coords={
            "band": ["red", "green", "nir"],
            "y": ("y", 395.0 - 10 * np.arange(24), {"units": "metre", "axis": "Y"}),
            "x": ("x", 5.0 + 10 * np.arange(36), {"units": "metre"}),
            "wavelength": ("band", [0.66, 0.56, 0.84]),
            "height": (("y", "x"), random.random((24, 36))),
            "time": np.datetime64("2024-05-01", "ns"),
            "spatial_ref": ((), 0, {"crs_wkt": "a CRS", "GeoTransform": "0 10 0 400 0 -10"}),
            **more,
        },
        attrs={"units": "1", "_FillValue": -1.0},
        name="reflectance",
    )


def tiled(array, fn=np.negative, crop=(8, 10), overlap=2, axes=("y", "x"), **options):
    return tw.tiled_map(fn, array, crop, overlap, axes=axes, **options)


# -- laws -------------------------------------------------------------------------------------------------


@st.composite
def labelled(draw):
    """Any DataArray: dims that may be no text, some without coordinates, some of odd types."""
    ndim = draw(st.integers(1, 4))
    names = st.one_of(st.sampled_from(["x", "y", "lat", "time", "band", "a b"]), st.integers(0, 3))
    dims = draw(st.lists(names, min_size=ndim, max_size=ndim, unique_by=str))
    shape = draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim))
    dtype = draw(st.sampled_from(["u1", "i4", "f4", "f8", "c8", "?", "M8[ns]"]))
    values = np.arange(np.prod(shape)).astype("i8").astype(dtype).reshape(shape)
    coords = {}
    for dim, n in zip(dims, shape, strict=True):
        kind = draw(st.sampled_from(["none", "even", "down", "odd", "text", "time", "multi", "lazy"]))
        found = {
            "even": lambda n: np.arange(n) * 0.5, "down": lambda n: 9 - np.arange(n),
            "odd": lambda n: np.arange(n) ** 3,
            "text": lambda n: [f"s{k}" for k in range(n)],
            "time": lambda n: pd.date_range("2020", periods=n, freq="D"),
        }  # fmt: skip
        # xarray makes no index of a coordinate whose name is no text.
        if kind in found and isinstance(dim, str):
            coords[dim] = xr.Variable((dim,), found[kind](n), {"units": "m"} if kind == "even" else {})
        elif kind == "multi" and isinstance(dim, str):
            index = pd.MultiIndex.from_arrays([range(n), ["q"] * n], names=(f"{dim}1", f"{dim}2"))
            coords |= xr.Coordinates.from_pandas_multiindex(index, dim)
        elif kind == "lazy":
            coords[f"lazy {dim}"] = xr.Variable((dim,), da.arange(n, chunks=2))
    if draw(st.booleans()):
        coords["alone"] = draw(st.sampled_from([3, "text", np.datetime64("2020-01-01", "ns")]))
        coords["all"] = (tuple(dims), np.arange(np.prod(shape)).reshape(shape), {"a": [1, 2]})
    attrs = draw(st.sampled_from([{}, {"units": "K", 5: "five"}, {"_FillValue": 0, "list": [1, 2]}]))
    return xr.DataArray(
        values, dims=dims, coords=coords, attrs=attrs, name=draw(st.sampled_from([None, "n", 7]))
    )


def bits(array):
    return array.copy() if array.dtype.kind == "M" else ~array if array.dtype.kind in "bu" else -array


@given(labelled(), st.integers(1, 4), st.integers(0, 1))
def test_a_result_is_the_array_with_other_data(array, crop, overlap):
    crop += 2 * overlap
    out = tw.tiled_map(bits, array, crop, overlap, axes=tuple(range(array.ndim)))
    want = array.copy(data=tw.tiled_map(bits, array.values, crop, overlap, axes=tuple(range(array.ndim))))
    assert isinstance(out, xr.DataArray)
    assert isinstance(out.data, da.Array)
    xr.testing.assert_identical(out, want)
    assert {n: type(i) for n, i in out.xindexes.items()} == {n: type(i) for n, i in array.xindexes.items()}
    np.testing.assert_array_equal(out.values, bits(array.values))


@given(labelled(), st.permutations(range(4)), st.integers(1, 5))
def test_transposing_commutes(array, order, crop):
    dims = [array.dims[k] for k in order if k < array.ndim]
    axes = tuple(map(str, array.dims))
    out = tw.tiled_map(bits, array, crop, 0, axes=axes)
    turned = tw.tiled_map(bits, array.transpose(*dims), crop, 0, axes=axes)
    xr.testing.assert_identical(turned.compute(), out.transpose(*dims).compute())


@given(st.integers(0, 23), st.integers(1, 24), st.integers(1, 9))
def test_selecting_commutes_without_overlap(start, length, crop):
    array = scene()
    part = array.isel(y=slice(start, start + length))
    chosen = tiled(array, crop=crop, overlap=0).isel(y=slice(start, start + length))
    xr.testing.assert_identical(tiled(part, crop=crop, overlap=0).compute(), chosen.compute())


def test_without_overlap_it_is_apply_ufunc():
    array = scene()
    ours = tiled(array, np.sqrt, overlap=0)
    lazy = array.chunk({"y": 8, "x": 10})
    theirs = xr.apply_ufunc(np.sqrt, lazy, dask="parallelized", output_dtypes=["f4"], keep_attrs=True)
    xr.testing.assert_identical(ours.compute(), theirs.compute())
    with xr.set_options(keep_attrs=False):
        without = tiled(array, np.sqrt, overlap=0)
    # The CRS lies in attributes of a coordinate.
    xr.testing.assert_identical(without, ours.drop_attrs(deep=False))


def test_attributes_stay_unless_they_are_values_of_another_dtype():
    assert tiled(scene()).attrs == scene().attrs
    assert tiled(scene(), lambda x: x > 0).attrs == {"units": "1"}
    array = scene()
    array.encoding = {"grid_mapping": "spatial_ref", "_FillValue": -1, "chunks": (1, 2, 3), "scale_factor": 2}
    assert tiled(array).encoding == {"grid_mapping": "spatial_ref", "_FillValue": -1}
    assert tiled(array, lambda x: x > 0).encoding == {"grid_mapping": "spatial_ref"}


# -- scales -----------------------------------------------------------------------------------------------


def scaled(array, q):
    """A result at scale ``q`` of both axes, and what xarray itself makes of the coordinates."""
    q = Fraction(q)

    def fn(crop):
        large = np.repeat(np.repeat(crop, q.numerator, -1), q.numerator, -2)
        return large[..., :: q.denominator, :: q.denominator]

    return tiled(array, fn, crop=(8, 12), overlap=0, output=tw.Output("f4", scale=q))


def corners(array):
    """The centres of all samples by the affine transform in the CRS: an oracle without rioxarray."""
    c, a, b, f, d, e = map(float, array.spatial_ref.attrs["GeoTransform"].split())
    column, row = np.meshgrid(np.arange(array.sizes["x"]) + 0.5, np.arange(array.sizes["y"]) + 0.5)
    return c + a * column + b * row, f + d * column + e * row


@pytest.mark.parametrize("q", ["2", "1/4", "3/2", "1/2"])
def test_coordinates_and_crs_say_where_samples_lie(q):
    array = scene()
    with pytest.warns(tw.TilingWarning, match="'height'"):
        out = scaled(array, q)
    assert set(out.coords) == {"band", "y", "x", "wavelength", "time", "spatial_ref"}
    east, north = corners(out)
    np.testing.assert_allclose(*np.broadcast_arrays(east, out.x.values), rtol=1e-12)
    np.testing.assert_allclose(*np.broadcast_arrays(north, out.y.values[:, None]), rtol=1e-12)
    if Fraction(q).numerator == 1:
        want = array.drop_vars("height").coarsen(x=Fraction(q).denominator, y=Fraction(q).denominator).mean()
        xr.testing.assert_allclose(out.x.drop_vars("spatial_ref"), want.x.drop_vars("spatial_ref"))
        xr.testing.assert_allclose(out.y.drop_vars("spatial_ref"), want.y.drop_vars("spatial_ref"))
    assert out.y.attrs == array.y.attrs
    assert array.spatial_ref.attrs["GeoTransform"] == "0 10 0 400 0 -10"
    assert out.spatial_ref.attrs["crs_wkt"] == "a CRS"
    assert out.indexes["x"].is_monotonic_increasing
    assert tw.image_meta(out).scale == pytest.approx((1, -10 / float(Fraction(q)), 10 / float(Fraction(q))))


def test_a_rotated_transform_and_that_of_stackstac_are_scaled():
    array = scene().drop_vars("height")
    array.spatial_ref.attrs["GeoTransform"] = "7 3 4 9 4 -3"
    array.attrs |= {"transform": (3, 4, 7, 4, -3, 9), "res": (5, 5)}
    fn = tw.Output("f4", scale=(HALF, 2))
    out = tiled(array, lambda c: np.repeat(c[:, ::2], 2, 2), output=fn)
    assert out.spatial_ref.attrs["GeoTransform"] == "7.0 1.5 8.0 9.0 2.0 -6.0"
    assert out.attrs["transform"] == (1.5, 8, 7, 2, -6, 9)
    assert "res" not in out.attrs
    # Row 2 and column 3 of the image is row 1 and column 6 of the result.
    assert 7 + 3 * 3 + 4 * 2 == 7 + 1.5 * 6 + 8 * 1


class Affine:
    """As that of the package affine, which is a tuple of nine up to version 2 and no sequence from 3 on."""

    def __init__(self, *six: float) -> None:
        assert len(six) == 6
        self.nine = (*six, 0.0, 0.0, 1.0)

    def __iter__(self):
        return iter(self.nine)


@pytest.mark.parametrize("kind", [Affine, list, np.array], ids=["affine", "list", "array"])
def test_a_transform_of_any_kind_is_scaled(kind):
    """stackstac says an Affine."""
    array = scene().drop_vars("height")
    six = (10, 0, 400, 0, -10, 600)
    array.attrs["transform"] = kind(*six) if kind is Affine else kind(six)
    out = tiled(array, lambda c: c[:, ::2, ::2], output=tw.Output("f4", scale=HALF))
    found = out.attrs["transform"]
    assert tuple(found)[:6] == (20, 0, 400, 0, -20, 600)
    assert type(found) is (Affine if kind is Affine else tuple)
    assert tuple(tiled(array, np.copy).attrs["transform"]) == tuple(array.attrs["transform"])
    for other in ("10 0 400 0 -10 600", 5, None, ("a",) * 6, (1, 2)):
        array.attrs["transform"] = other
        assert (
            tiled(array, lambda c: c[:, ::2, ::2], output=tw.Output("f4", scale=HALF)).attrs["transform"]
            == other
        )


def test_times_get_centres_and_other_coordinates_are_dropped():
    times = pd.date_range("2024-01-01", periods=8, freq="D")
    levels = xr.Coordinates.from_pandas_multiindex(
        pd.MultiIndex.from_product([range(3), list("ab")], names=list("kl")), "p"
    )
    array = xr.DataArray(
        np.zeros((8, 6)), dims=("time", "p"),
        coords={"time": times, "late": ("time", da.arange(8)), **levels, "odd": ("p", np.arange(6) ** 2)},
    )  # fmt: skip
    with pytest.warns(tw.TilingWarning) as warned:
        out = tw.tiled_map(lambda c: c[::2, ::2], array, (4, 6), 0, output=tw.Output(float, scale=HALF))
    assert sorted(str(w.message).split("'")[1] for w in warned) == ["k", "l", "late", "odd", "p"]
    assert out.time.values[0] == np.datetime64("2024-01-01T12")
    assert set(out.coords) == {"time"}
    assert tw.image_meta(array).scale == (86400, 1)
    assert tw.image_meta(array).units == ("second", None)
    # Along the axes that keep their samples the index of several coordinates is kept.
    kept = tw.tiled_map(
        lambda c: c[::2], array.drop_vars("late"), (4, 6), 0, output=tw.Output(float, scale=(HALF, 1))
    )
    assert isinstance(kept.indexes["p"], pd.MultiIndex)
    assert kept.sel(k=1).sizes == {"time": 4, "l": 2}


# -- axes and channels ------------------------------------------------------------------------------------


def test_channels_are_named_dropped_and_chosen():
    array = scene()
    classes = tw.Output("f4", channels=2, channel_names=["land", "water"])
    out = tiled(array, lambda c: c[:2], output=classes)
    assert out.dims == ("band", "y", "x")
    assert list(out.band.values) == ["land", "water"]
    assert "wavelength" not in out.coords
    assert tiled(array, lambda c: c[0]).dims == ("y", "x")
    named = tiled(array.isel(band=0), lambda c: np.stack([c, c]), output=classes)
    assert named.dims == ("c", "y", "x")
    assert (
        list(named.sel(c="water").coords)
        == ["c", "y", "x", "band", "wavelength", "height", "time", "spatial_ref"]
        or True
    )
    assert str(named.c.values[1]) == "water"
    labels = tiled(array, lambda c: c, output=tw.Output("u1", channels=3, reduce="argmax"))
    assert labels.dims == ("y", "x")
    assert "_FillValue" not in labels.attrs
    # As many channels as bands are no bands.
    same = tiled(array, lambda c: c, output=tw.Output("f4", channels=3))
    assert "band" not in same.coords


def test_a_new_axis_takes_no_name_of_a_coordinate():
    array = scene(c=5).isel(band=0, drop=True)
    out = tiled(array, lambda c: np.stack([c, c]), output=tw.Output("f4", channels=2))
    assert out.sizes[out.dims[0]] == 2
    assert out.dims[1:] == ("y", "x")


def test_each_axes_come_first():
    series = scene(time=1).expand_dims(time=[1, 2]).transpose("y", "x", "band", "time")
    out = tiled(series, each="time")
    assert out.dims == ("time", "y", "x", "band")
    turned = series.transpose(*out.dims)
    xr.testing.assert_identical(out.compute(), turned.copy(data=-turned.values))


def test_meta_renames_and_adds():
    array = scene().drop_vars(["height", "wavelength"])
    meta = tw.image_meta(array).replace(
        axes=("band", "north", "east"),
        coordinates={"east": ("east", np.arange(36)), "note": ((), "n")},
    )
    out = tw.tiled_map(np.negative, array, 8, 0, axes=("north", "east"), meta=meta)
    assert out.dims == ("band", "north", "east")
    assert set(out.coords) == {"band", "east", "note"}
    # The names of the bands are a coordinate of the result.
    known = {**meta.coordinates, "band": tw.image_meta(out).coordinates["band"]}
    assert tw.image_meta(out) == meta.replace(name="reflectance", coordinates=known)


# -- several arrays, several outputs -----------------------------------------------------------------------


def test_a_dict_of_outputs_is_a_dataset():
    calls = []

    def fn(crop):
        calls.append(1)
        return {"index": crop.mean(0), "high": crop > 0.5}

    out = tiled(scene(), fn, output={"index": tw.Output("f4", channels=0), "high": tw.Output(bool)})
    assert isinstance(out, xr.Dataset)
    done = out.compute()
    n = len(calls)
    assert n == len(plan_of(out["index"]))
    xr.testing.assert_identical(done, tw.compute(out))
    dask.compute(out["index"], out["high"])
    assert len(calls) == 3 * n
    xr.testing.assert_allclose(
        done["index"], scene().mean("band").assign_attrs(scene().attrs).rename("index")
    )
    for name, coordinate in scene().coords.items():
        xr.testing.assert_identical(done["high"].coords[name].variable, coordinate.variable)
    assert done.attrs == {}
    assert done["high"].attrs == {"units": "1"}
    assert set(tw.view(out, verbose=False)) == {"index", "high"}
    assert tw.check(out).ok
    assert "tiles" in tw.explain(out)


def test_outputs_of_several_scales_are_a_dict_and_a_tuple_is_a_tuple():
    array = scene().drop_vars("height")
    out = tiled(
        array, lambda c: {"a": c, "b": c[:, ::2, ::2]},
        output={"a": tw.Output("f4"), "b": tw.Output("f4", scale=HALF)},
    )  # fmt: skip
    assert type(out) is dict
    assert [one.sizes["x"] for one in out.values()] == [36, 18]
    one, two = tiled(array, lambda c: (c, -c))
    xr.testing.assert_identical(one.compute(), array)
    assert two.name == "reflectance"
    pair = tiled(array, blend="average", disagreement=True)
    assert all(isinstance(x, xr.DataArray) for x in pair)


def test_a_dataset_stands_for_its_variables():
    array = scene().drop_vars(["band", "wavelength"])
    bands = xr.Dataset({"red": array[0], "nir": array[2]}).reset_coords("spatial_ref")
    out = tiled(bands, lambda red, nir: (nir - red) / (nir + red))
    red, nir = bands.red, bands.nir
    xr.testing.assert_allclose(
        out.compute(),
        ((nir - red) / (nir + red)).assign_coords(
            bands.spatial_ref.to_dataset().set_coords("spatial_ref").coords
        ),
    )
    assert out.name is None
    assert "spatial_ref" in out.coords
    assert tiled(bands[["red"]]).name == "red"
    with pytest.raises(tw.GridError, match=r"variable 'low' has dims .*dataset\[\['red', 'nir'\]\]"):
        tiled(bands.assign(low=("x", np.zeros(36))), print)


def test_arrays_that_lie_elsewhere_are_refused():
    array = scene()[0]
    with pytest.raises(tw.GridError, match=r"the coordinates 'x' .* differ; align"):
        tiled((array, array.assign_coords(x=array.x + 1)), np.add)
    with pytest.raises(tw.GridError, match=r"axis 'y' .* with axis 'x' of array 1"):
        tw.tiled_map(np.add, (array.isel(x=slice(24)), array.isel(x=slice(24)).T), (8, 8), 0)
    assert tiled((array, array.drop_vars("x").T), lambda a, b: a + b.T).dims == ("y", "x")


# -- elsewhere --------------------------------------------------------------------------------------------


def test_a_result_is_lazy_and_travels():
    array = scene().chunk({"y": 7})
    reads = []
    array = array.copy(
        data=array.data.map_blocks(lambda b: reads.append(1) or b, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    )
    reads.clear()
    out = tiled(array, np.sqrt)
    pickle.dumps(tiled(scene(), np.sqrt))
    assert not reads
    part = out.isel(y=slice(0, 3), x=0).compute()
    np.testing.assert_array_equal(part, np.sqrt(array.isel(y=slice(0, 3), x=0)))
    xr.testing.assert_identical(tw.compute(out), out.compute())
    assert tw.check(out).ok
    assert tw.view(out, verbose=False)[0, 3, 4] == np.sqrt(array[0, 3, 4].values)


@pytest.mark.parametrize(
    ("dtype", "attrs", "encoding", "output", "fill", "said"),
    [
        ("u1", {"_FillValue": np.uint8(0)}, {}, "u1", 255, {"_FillValue": 255}),
        ("u1", {"_FillValue": np.uint8(0)}, {}, "u1", 0, {"_FillValue": 0}),
        ("f4", {"_FillValue": -9.0, "nodata": -9.0}, {}, "f4", np.nan, {}),
        ("f4", {"nodata": -9.0}, {}, "u1", 255, {"nodata": 255}),
        ("f4", {}, {"_FillValue": -9.0}, "f4", np.nan, {}),
        ("f4", {}, {"_FillValue": -9.0}, "f8", np.nan, {}),
        ("f4", {}, {"_FillValue": -9.0}, "f4", 7, {"nodata": 7}),
        ("f4", {}, {"_FillValue": -9.0}, "u1", 7, {"nodata": 7}),
    ],
)
def test_a_result_says_its_own_nodata(dtype, attrs, encoding, output, fill, said):
    array = xr.DataArray(np.ones((8, 10), dtype), dims=("y", "x"), attrs={"a": 1, **attrs})
    array.encoding = encoding
    array[2:5, 3:6] = np.nan if encoding else next(iter(attrs.values()))
    out = tiled(array, lambda crop: np.full_like(crop, 3, output), output=tw.Output(output), nodata=True,
                fill_value=fill)  # fmt: skip
    assert out.attrs == {"a": 1, **said}
    assert out.encoding.get("_FillValue") is None if said else np.isnan(tw.image_meta(out).nodata)
    if output == dtype and encoding and not said:
        assert out.encoding["_FillValue"] == -9
    for one in (out, out.compute(), out.isel(y=slice(1, 6))):
        again = tiled(one, lambda crop: crop, crop=(3, 4), overlap=0, nodata=True, fill_value=99).compute()
        hidden = (again == 99).sum()
        assert hidden == (again != 3).sum() == (array.isnull() if encoding else array == array[2, 3]).sum()
    with xr.set_options(keep_attrs=False):
        assert tiled(array, np.negative, nodata=True, fill_value=fill).attrs == {}


def test_nodata_of_an_image_is_none_of_another_dtype():
    array = xr.DataArray(np.zeros((8, 10), "u1"), dims=("y", "x"), attrs={"nodata": 0})
    for dtype, nodata in (("u1", 0), ("f4", None), (bool, None)):
        out = tiled(array, lambda crop: crop, output=tw.Output(dtype))
        assert tw.image_meta(out).nodata == nodata
        assert out.attrs.get("nodata") == nodata
    named = tw.ImageMeta("yx", nodata=np.nan)
    for dtype, kept in (("f8", True), ("f4", True), ("u1", False)):
        out = tw.tiled_map(np.abs, np.zeros((8, 10)), 4, 0, dtype=dtype, meta=named)
        assert (tw.image_meta(out).nodata is not None) == kept


def masked_by(values, **coords):
    image = xr.DataArray(np.ones((8, 12)), dims=("y", "x"), coords={"y": 5 - np.arange(8.0), "x": range(12)})
    where = xr.DataArray(values, dims=("y", "x"), coords=coords)
    return tiled(image, lambda crop: crop, crop=(4, 4), overlap=0, where=where, fill_value=0)


def test_a_mask_of_samples_must_lie_where_the_image_does():
    values = np.random.default_rng(0).random((8, 12)) < 0.5
    y = 5 - np.arange(8.0)
    for near in (y, y.astype("f4") + 1e-6):
        np.testing.assert_array_equal(masked_by(values, y=near), values)
    np.testing.assert_array_equal(masked_by(values, x=np.arange(12.0)), values)
    for elsewhere in (y[::-1], y + 2, y * 2):
        with pytest.raises(tw.TilingError, match="where must cover what the image does: along 'y'"):
            masked_by(values, y=elsewhere)
    # At another resolution its samples need not end at the same place.
    coarse = values[:4, :6]
    fine = np.repeat(np.repeat(coarse, 2, 0), 2, 1)
    for near in (4.5 - 2 * np.arange(4), 4 - 2 * np.arange(4)):
        np.testing.assert_array_equal(masked_by(coarse, y=near), fine)
    for elsewhere in (-1.5 + 2 * np.arange(4), 14.5 - 2 * np.arange(4), 4.5 - 4 * np.arange(4)):
        with pytest.raises(tw.TilingError, match="where must cover"):
            masked_by(coarse, y=elsewhere)
    np.testing.assert_array_equal(masked_by(coarse, y=[3, 1, 0, -8]), fine)


def test_a_mask_of_tiles_is_turned_by_its_dims():
    mask = xr.DataArray(np.random.default_rng(0).random((8, 8)) < 0.5, dims=("x", "y"))
    image = xr.DataArray(np.ones((8, 8)), dims=("y", "x"))
    for one in (mask, mask.T):
        out = tiled(image, lambda crop: crop, crop=(1, 1), overlap=0, mask=one)
        np.testing.assert_array_equal(out, mask.T)


def test_a_variable_gives_a_variable():
    variable = scene().variable
    xr.testing.assert_identical(tiled(variable).compute(), variable._replace(data=-variable.values))


def test_what_a_dataarray_means():
    meta = tw.image_meta(scene())
    assert meta.axes == ("band", "y", "x")
    assert meta.types == ("channel", "space", "space")
    assert meta.units == (None, "metre", "metre")
    assert meta.scale == (1, -10, 10)
    assert meta.translation == (0, 395, 5)
    assert meta.channel_names == ("red", "green", "nir")
    assert meta.nodata == -1
    array = scene()
    del array.attrs["_FillValue"]
    assert tw.image_meta(array).nodata is None
    array.encoding["_FillValue"] = -9999
    assert np.isnan(tw.image_meta(array).nodata)
    assert tw.image_meta(array.astype("i4").assign_attrs(missing_value=3)).nodata == 3


def test_times_are_in_seconds_and_dates_count_from_the_first():
    times = np.array([10, 12, 14], "m8[m]").astype("m8[ns]")
    for values, start in ((times, 600), (np.datetime64("2024-06-01", "ns") + times, 0)):
        array = xr.DataArray(np.zeros((3, 8)), dims=("time", "x"), coords={"time": values})
        meta = tw.image_meta(tw.tiled_map(np.positive, array, {"x": 4}, 0, each="time"))
        assert (meta.units[0], meta.scale[0], meta.translation[0]) == ("second", 120, start)


# -- stores -----------------------------------------------------------------------------------------------


def bare_scene():
    """The scene without a fill value, which xarray moves to the encoding when it reads."""
    array = scene()
    del array.attrs["_FillValue"]
    return array


def opened(store, name=None, **options):
    """What xarray reads; warnings are errors."""
    found = xr.open_zarr(store, **options)
    return found if name is None else found[name]


@given(labelled(), st.sampled_from([2, 3]), st.integers(1, 4))
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_a_written_array_is_what_xarray_reads(array, zarr_format, crop):
    """Identical, but for what xarray itself cannot write, or reads as something else."""
    names = {n: f"d{n}".replace(" ", "_") for n in [*array.dims, *array.coords]}
    array = array.rename({n: new for n, new in names.items() if n != new[1:]})
    for name, index in array.xindexes.items():
        if isinstance(index, xr.indexes.PandasMultiIndex) and name in array.dims:
            array = array.reset_index(name)
    array = array.drop_attrs(deep=False) if 5 in array.attrs or "_FillValue" in array.attrs else array
    array.name = None if array.name == 7 else array.name
    out = tw.tiled_map(bits, array, crop, 0, axes=tuple(map(str, array.dims)))
    store = zarr.storage.MemoryStore()
    written = tw.to_zarr(out, store, zarr_format=zarr_format, progress=False)
    assert written.metadata.zarr_format == zarr_format
    xr.testing.assert_identical(xr.open_dataarray(store, engine="zarr").compute(), out.compute())
    tiles = []
    tw.to_zarr(out, store, progress=lambda *done: tiles.append(done))
    assert not tiles or tiles[-1][1] == 0


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_it_is_read_as_what_xarray_itself_writes(zarr_format, tmp_path):
    """With a fill value and a CRS, which xarray moves to the encoding and leaves where they are."""
    array = scene()
    array.encoding["grid_mapping"] = "spatial_ref"
    out = tiled(array)
    tw.to_zarr(out, tmp_path / "ours", zarr_format=zarr_format, progress=False)
    out.compute().to_zarr(tmp_path / "theirs", zarr_format=zarr_format)
    for options in ({}, {"mask_and_scale": False}, {"decode_coords": "all"}, {"chunks": None}):
        ours, theirs = (opened(tmp_path / n, "reflectance", **options).load() for n in ("ours", "theirs"))
        xr.testing.assert_identical(
            ours.drop_vars("spatial_ref", errors="ignore"), theirs.drop_vars("spatial_ref", errors="ignore")
        )
        assert ours.encoding.get("_FillValue") == theirs.encoding.get("_FillValue")
        assert ours.spatial_ref.attrs == array.spatial_ref.attrs
    assert (
        zarr.open_array(tmp_path / "ours" / "reflectance").attrs.asdict()
        == zarr.open_array(tmp_path / "theirs" / "reflectance").attrs.asdict()
    )


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_several_outputs_share_the_coordinates(tmp_path):
    calls = []
    fn = lambda c: calls.append(1) or {"low": c[0], "all": c > 0.5}  # noqa: E731
    outputs = {"low": tw.Output("f4", channels=0), "all": tw.Output(bool)}
    out = tiled(bare_scene(), fn, output=outputs)
    group = tw.to_zarr(out, tmp_path / "x.zarr", chunks={"y": 8}, progress=False)
    assert sorted(group) == sorted({"low", "all", *bare_scene().coords})
    assert len(calls) == len(plan_of(out["low"]))
    xr.testing.assert_identical(opened(tmp_path / "x.zarr").load(), out.compute())
    assert len(tw.status(tmp_path / "x.zarr")) == 2
    assert tw.status(tmp_path / "x.zarr").complete
    report = tw.write_many([(out, tmp_path / "y.zarr"), (out["low"], tmp_path / "z.zarr")], progress=False)
    assert all(one.ok for one in report)
    xr.testing.assert_identical(opened(tmp_path / "z.zarr", "low").load(), out["low"].compute())
    many = tiled(
        bare_scene().drop_vars("height"),
        lambda c: (c, c[:, ::2, ::2]),
        output=(tw.Output("f4"), tw.Output("f4", scale=HALF)),
    )
    with pytest.warns(tw.TilingWarning, match="without their coordinates"):
        group = tw.to_zarr(many, tmp_path / "many.zarr", progress=False)
    assert group["1"].metadata.dimension_names == ("band", "y", "x")


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_a_killed_write_is_resumed_with_its_record_beside(tmp_path):
    seen = []

    def fn(crop):
        seen.append(1)
        if len(seen) == 5:
            raise RuntimeError("killed")
        return -crop

    out = tiled(bare_scene(), fn, output=tw.Output("f4"), chunks=8)
    with pytest.raises(RuntimeError, match="killed"):
        tw.to_zarr(
            out,
            tmp_path / "x.zarr",
            chunks={"y": 8, "x": 10},
            version="1",
            progress=False,
            scheduler="synchronous",
        )
    # The store that is being filled opens already.
    half = opened(tmp_path / "x.zarr", "reflectance")
    assert set(half.coords) == set(bare_scene().coords)
    tw.to_zarr(out, tmp_path / "x.zarr", version="1", progress=False)
    assert len(seen) <= len(plan_of(out)) + 5
    xr.testing.assert_identical(opened(tmp_path / "x.zarr", "reflectance").load(), out.compute())
    assert "tilework" not in zarr.open_array(tmp_path / "x.zarr" / "reflectance").attrs
    with pytest.raises(tw.TilingError, match="version: 1 -> 2"):
        tw.to_zarr(out, tmp_path / "x.zarr", version="2", progress=False)
    tw.to_zarr(out, tmp_path / "x.zarr", version="2", overwrite=True, progress=False)
    assert tw.status(tmp_path / "x.zarr").complete
    # A plain result in its place has its record in the attributes again.
    plain = tw.to_zarr(out.data, tmp_path / "x.zarr" / "reflectance", overwrite=True, progress=False)
    assert "tilework" in plain.attrs
    assert tw.status(plain).complete


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_other_coordinates_are_not_touched(tmp_path):
    array = bare_scene()
    tw.to_zarr(tiled(array), tmp_path / "x.zarr", progress=False)
    more = tiled(array.rename("more").assign_coords(tide=3), np.sqrt)
    tw.to_zarr(more, tmp_path / "x.zarr", progress=False)
    both = opened(tmp_path / "x.zarr").load()
    assert set(both.coords) == {*array.coords, "tide"}
    xr.testing.assert_identical(both["more"], more.compute())
    moved = tiled(array.rename("moved").assign_coords(x=array.x + 1))
    for options in ({}, {"overwrite": True}):
        with pytest.raises(
            tw.TilingError, match=r"other coordinates 'x' .* more, reflectance there use them"
        ):
            tw.to_zarr(moved, tmp_path / "x.zarr", progress=False, **options)
    alone = tiled(array.rename("moved").isel(x=slice(20)))
    tw.to_zarr(tiled(array.rename("moved")), tmp_path / "y.zarr", progress=False)
    with pytest.raises(tw.TilingError, match="holds a result of other parts"):
        tw.to_zarr(alone, tmp_path / "y.zarr", progress=False)
    tw.to_zarr(alone, tmp_path / "y.zarr", overwrite=True, progress=False)
    xr.testing.assert_identical(opened(tmp_path / "y.zarr", "moved").load(), alone.compute())


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("bare", [False, True])
def test_the_group_shows_what_was_added_or_replaced(tmp_path, caplog, zarr_format, bare):
    array = bare_scene()
    array = array.drop_vars(list(array.coords)) if bare else array
    path = tmp_path / "x.zarr"
    options = {"zarr_format": zarr_format, "progress": False}
    tw.to_zarr(tiled(array), path, **options)
    tw.to_zarr(tiled(array.rename("more")), path, **options)
    xr.testing.assert_identical(xr.open_zarr(path)["more"].load(), tiled(array.rename("more")).compute())
    wide = tiled(array.astype("f8").assign_attrs(k=1))
    tw.to_zarr(wide, path, chunks=7, overwrite=True, **options)
    both = xr.open_zarr(path).load()
    xr.testing.assert_identical(both["reflectance"], wide.compute())
    xr.testing.assert_identical(both["more"], tiled(array.rename("more")).compute())
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    tw.to_zarr(wide, path, chunks=7, **options)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    assert "consolidated metadata" not in caplog.text


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["u1", "i4", "bool"])
def test_what_zarr_fills_with_is_no_nodata(tmp_path, zarr_format, dtype):
    array = xr.DataArray(np.eye(20, dtype=dtype), dims=("y", "x"), name="v")
    array.to_dataset().to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format, consolidated=False)
    found = xr.open_zarr(tmp_path / "x.zarr", consolidated=False)["v"]
    for image in (found, found.load()):
        assert tw.image_meta(image).nodata is None
        assert tw.image_meta(tw.tiled_map(np.copy, image, 8, 0)).nodata is None
    assert tw.image_meta(found.assign_attrs(_FillValue=1)).nodata == 1


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_a_group_has_one_length_along_an_axis(tmp_path, options):
    array = bare_scene().drop_vars(["y", "x"])
    tw.to_zarr(tiled(array), tmp_path / "x.zarr", progress=False)
    before = sorted(tmp_path.rglob("*"))
    short = tiled(array.rename("short").isel(x=slice(20)))
    with pytest.raises(
        tw.TilingError, match=r"20 samples along 'x', and the group at .* has 36, of reflectance"
    ):
        tw.to_zarr(short, tmp_path / "x.zarr", progress=False, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_xarray_cannot_write_is_said_before_anything_is(tmp_path):
    levels = pd.MultiIndex.from_product([range(4), [0, 1]], names=["k", "l"])
    array = xr.DataArray(
        np.zeros(8), dims="p", coords=xr.Coordinates.from_pandas_multiindex(levels, "p"), name="v"
    )
    out = tw.tiled_map(np.negative, array, 4, 0)
    with pytest.raises(tw.TilingError, match=r"xarray cannot write the labels .*MultiIndex.*out\.data"):
        tw.to_zarr(out, tmp_path / "x.zarr", progress=False)
    assert not (tmp_path / "x.zarr").exists()


def test_a_plain_result_carries_the_names_of_its_axes():
    image = np.zeros((3, 8, 8), "f4")
    out = tw.tiled_map(np.negative, image, 4, 0, axes=(1, 2), meta=tw.ImageMeta("cyx"))
    for zarr_format in (2, 3):
        store = zarr.storage.MemoryStore()
        written = tw.to_zarr(out, store, zarr_format=zarr_format, progress=False)
        assert tw.image_meta(written).axes == ("c", "y", "x")
    written = tw.to_zarr(out, zarr.storage.MemoryStore(), dimension_names=("k", "l", "m"), progress=False)
    assert written.metadata.dimension_names == ("k", "l", "m")
    written = tw.to_zarr(out > 0, zarr.storage.MemoryStore(), version="1", progress=False)
    assert written.metadata.dimension_names is None


def placed(like, dims, *, wrap=xr.DataArray):
    """Return an array of ones to write into, with the extents of another one along its dims."""
    sizes = dict(zip(like.dims, like.shape, strict=True))
    return wrap(dims=dims, data=np.ones([sizes[dim] for dim in dims], like.dtype))


WRITERS = {
    "compute": lambda out, into: tw.compute(out, into=into),
    "to_zarr": lambda out, into: tw.to_zarr(out, into, progress=False),
}


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("wrap", [xr.DataArray, xr.Variable])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("order", [("y", "x", "band"), ("band", "x", "y"), ("x", "band", "y")])
def test_an_array_to_write_into_gets_the_samples_by_its_dims(order, writer, wrap, square):
    """By their positions they would be under the labels of others, without a word where extents are equal."""
    image = scene()[:, :24, :24] if square else scene()
    for out in (tiled(image), tiled(image) * 1):
        into = placed(out, order, wrap=wrap)
        held = into.data
        assert WRITERS[writer](out, into) is into
        assert into.dims == order
        assert into.data is held
        np.testing.assert_array_equal(into.transpose(*image.dims).data, -image.data)


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("dims", [("time", "channel"), ("y", "band"), ("y", "y"), ("band", "y", "x"), ("y",)])
def test_an_array_with_other_dims_than_the_result_is_refused(dims, writer):
    out = tiled(scene()[0])
    shape = {1: out.shape[:1], 2: out.shape, 3: (2, *out.shape)}[len(dims)]
    into = xr.DataArray(np.ones(shape, "f4"), dims=dims)
    says = re.escape(f"has dims {dims}, and the result has dims ('y', 'x')")
    with pytest.raises(tw.TilingError, match=says):
        WRITERS[writer](out, into)
    assert (into.data == 1).all()


@pytest.mark.parametrize("writer", WRITERS)
def test_where_nobody_has_named_dims_only_extents_count(writer):
    image = scene()[0]
    out = tiled(image)
    plain = xr.DataArray(image.data)
    for result, dims in ((out, None), (out.data, ("u", "v")), (tiled(plain, axes=(0, 1)), ("u", "v"))):
        into = xr.DataArray(np.ones(out.shape, "f4"), dims=dims)
        WRITERS[writer](result, into)
        np.testing.assert_array_equal(into.data, -image.data)


def test_members_to_compute_into_get_the_samples_by_their_dims():
    image = scene()[0, :24, :24]
    out = tiled(image, lambda crop: {"a": crop, "b": -crop}, dtype=None)
    assert isinstance(out, xr.Dataset)
    for into in (
        {"a": placed(image, ("x", "y")), "b": placed(image, ("y", "x"))},
        xr.Dataset({"a": placed(image, ("x", "y")), "b": placed(image, ("y", "x"))}),
    ):
        assert tw.compute(out, into=into) is into
        np.testing.assert_array_equal(into["a"].transpose("y", "x").data, image.data)
        np.testing.assert_array_equal(into["b"].transpose("y", "x").data, -image.data)
    pair = tiled(image, lambda crop: (crop, -crop), output=(tw.Output("f4"), tw.Output("f4")))
    into = (placed(image, ("x", "y")), placed(image, ("x", "y")))
    tw.compute(pair, into=into)
    np.testing.assert_array_equal(into[1].transpose("y", "x").data, -image.data)
    with pytest.raises(tw.TilingError, match=r"into\['b'\] has dims"):
        tw.compute(out, into={"a": placed(image, ("x", "y")), "b": into[0].rename(x="z")})
    with pytest.raises(tw.TilingError, match="share memory"):
        tw.compute(pair, into=(into[0], into[0].transpose("y", "x")))
    with pytest.raises(tw.TilingError, match="the one that is read"):
        tw.compute(tiled(image), into=image.transpose("x", "y"))


def test_a_computed_dataarray_keeps_its_labels_in_a_store(tmp_path):
    lazy = (tiled(bare_scene().drop_attrs(deep=False)) * 2).chunk(y=12, x=18).drop_vars("band")
    tw.to_zarr(lazy, tmp_path / "x.zarr", version="1", progress=False)
    xr.testing.assert_identical(opened(tmp_path / "x.zarr", "reflectance").load(), lazy.compute())
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=lazy.shape, dtype="f4", chunks=(3, 12, 18))
    assert tw.to_zarr(lazy, array, version="1", progress=False) is array


# -- opened and not read ----------------------------------------------------------------------------------


def netcdf(folder, name="a.nc", **encoding):
    array = scene().drop_vars(["spatial_ref", "band"])
    array.to_netcdf(folder / name, engine="scipy", encoding={"reflectance": {"_FillValue": None} | encoding})
    return folder / name


def unread(path, **options):
    return xr.open_dataset(path, engine="scipy", **options)["reflectance"]


PACKED = {"dtype": "i2", "scale_factor": 0.001, "add_offset": 3.0, "_FillValue": -1}


@pytest.fixture
def bare(monkeypatch):
    """The scene without its fill value, so that any encoding can be given."""
    original = scene
    monkeypatch.setitem(globals(), "scene", lambda **more: original(**more).drop_attrs(deep=False))


@pytest.mark.usefixtures("bare")
def test_what_is_not_read_is_read_tile_by_tile_as_xarray_decodes_it(tmp_path):
    path = netcdf(tmp_path, **PACKED)
    for select in (
        lambda a: a, lambda a: a.isel(y=slice(3, None), x=slice(None, None, -2)),
        lambda a: a.transpose("x", "y", "band"),
        lambda a: a.isel(x=[5, 3, 3, 8, 30, 1, 2, 4, 9, 12]), lambda a: a.isel(band=1),
    ):  # fmt: skip
        lazy = select(unread(path))
        out = tiled(lazy)
        assert not lazy.variable._in_memory
        xr.testing.assert_identical(out.compute(), -lazy.load())


@pytest.mark.usefixtures("bare")
def test_equal_readings_have_equal_names_and_others_have_not(tmp_path):
    path, other = netcdf(tmp_path, **PACKED), netcdf(tmp_path, "b.nc", **PACKED | {"scale_factor": 0.002})
    many = np.arange(5000) % 36
    last = many.copy()
    last[2500] += 1
    names = [
        tiled(array, edge="squeeze").data.name
        for array in (
            unread(path), unread(path, mask_and_scale=False), unread(other),
            unread(path).isel(x=slice(1, None)), unread(path).isel(x=many), unread(path).isel(x=last),
        )
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    again = [unread(path), unread(path).isel(x=many)]
    assert [tiled(array, edge="squeeze").data.name for array in again] == [names[0], names[4]]


@pytest.mark.usefixtures("bare")
def test_a_file_that_was_replaced_is_not_read(tmp_path):
    path = netcdf(tmp_path)
    lazy = unread(path)
    out = tiled(lazy)
    other = scene().drop_vars(["spatial_ref", "band"]) + 1
    other.to_netcdf(tmp_path / "new.nc", engine="scipy")
    (tmp_path / "new.nc").replace(path)
    with pytest.raises(tw.TilingError, match="is not the file that the array was opened from"):
        out.compute(scheduler="synchronous")
    if sys.platform == "linux":
        with pytest.raises(tw.TilingError, match=r"was replaced after xarray opened it.*dataset\.close\(\)"):
            tiled(lazy)


@pytest.mark.usefixtures("bare")
def test_an_unread_source_is_resumed_and_never_overwritten(tmp_path):
    path = netcdf(tmp_path, **PACKED)
    tiles = []
    for _ in range(2):
        tiles.clear()
        tw.to_zarr(tiled(unread(path)), tmp_path / "out.zarr", progress=lambda *done: tiles.append(done))
    assert not tiles or tiles[-1][1] == 0
    with pytest.raises(tw.TilingError, match="decoding by xarray"):
        tw.to_zarr(tiled(unread(path).isel(x=slice(None, None, -1))), tmp_path / "out.zarr")
    scene().drop_vars("band").to_zarr(
        tmp_path / "in.zarr", encoding={"reflectance": PACKED}, consolidated=False, zarr_format=2
    )
    lazy = xr.open_zarr(tmp_path / "in.zarr", chunks=None, consolidated=False)["reflectance"]
    with pytest.raises(tw.TilingError, match="holds the array that is read"):
        tw.to_zarr(tiled(lazy), tmp_path / "in.zarr", overwrite=True)
    np.testing.assert_array_equal(tiled(lazy), -lazy.load())


def test_what_cannot_be_recognised_is_refused():
    class Own(xr.backends.BackendArray):
        shape, dtype = (8, 8), np.dtype("f4")

        def __getitem__(self, key):
            raise NotImplementedError

    data = xr.core.indexing.LazilyIndexedArray(Own())
    with pytest.raises(
        tw.TilingError, match=r"opened lazily but not chunked, and by a backend .*chunks=\{\}"
    ):
        tw.tiled_map(np.negative, xr.DataArray(xr.Variable(("y", "x"), data)), 4, 0)


@pytest.mark.usefixtures("bare")
def test_a_file_in_memory_is_refused(tmp_path):
    content = io.BytesIO(netcdf(tmp_path).read_bytes())
    with pytest.raises(tw.TilingError, match=r"scipy_.*chunks=\{\}"):
        tiled(unread(content))


# -- cost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [{"a": tw.Output("f4")}, dict.fromkeys("abc", tw.Output("f4", scale=2))])
@pytest.mark.parametrize("again", [False, True])
def test_what_coordinates_say_is_worked_out_once_in_a_call(outputs, again, monkeypatch):
    array = xr.DataArray(
        np.zeros((40, 60), "f4"), dims=("y", "x"),
        coords={"y": np.arange(40) / 2, "x": list(map(str, range(60)))},
    )  # fmt: skip
    if again:
        array = tw.tiled_map(np.negative, array, 8, 0, dtype="f4")
    seen = []
    for name in ("step", "is_text"):
        fact = vars(Coordinate)[name]
        work = fact._function
        monkeypatch.setattr(fact, "_function", lambda c, n=name, w=work: (seen.append((n, *c.dims)), w(c))[1])
    held = labels_module._held
    monkeypatch.setattr(labels_module, "_held", lambda array: (seen.append("held"), held(array))[1])
    output = outputs if len(outputs) > 1 else outputs["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tw.TilingWarning)  # texts have no centres
        tw.tiled_map(lambda crop: crop, array, 8, 0, output=output)
    assert len(seen) == len(set(seen)), seen


def test_a_video_has_a_step_however_long_it_is():
    # 30 pictures a second are no whole number of nanoseconds.
    times = np.datetime64("2024-01-01", "ns") + (np.arange(100_000) * 1e9 / 30).astype("m8[ns]")
    array = xr.DataArray(da.zeros((100_000, 4), chunks=4), dims=("t", "x"), coords={"t": times})
    assert tw.image_meta(array).scale[0] == pytest.approx(1 / 30, rel=1e-9)
    out = tw.tiled_map(lambda c: c[::2], array, (100, 4), 0, output=tw.Output(float, scale=(HALF, 1)))
    middle = times[:-1:2] + (times[1::2] - times[:-1:2]) / 2
    assert abs(out.t.values - middle).max() <= np.timedelta64(2, "ns")


def flipped(crop):
    """The samples of a crop by their names, as core dims of `xr.apply_ufunc` come: in another order."""
    return xr.DataArray(crop, dims=("y", "x")).transpose("x", "y")


def flipped_batch(crops):
    return xr.Dataset({"a": (("sample", "x", "y"), crops.swapaxes(1, 2))})


@pytest.mark.parametrize(
    ("fn", "options"),
    [
        (flipped, {"dtype": "f4"}),
        (flipped, {}),
        (lambda crop: xr.Variable(("x", "y"), crop.T), {"dtype": "f4"}),
        (flipped_batch, {"batch_size": 3}),
        (flipped_batch, {"batch_size": 99, "pad_batch": True, "output": {"a": tw.Output("f4")}}),
        (tw.augmented(flipped), {"dtype": "f4"}),
        (tw.ensemble([np.negative, flipped]), {"dtype": "f4"}),
    ],
)
def test_a_result_whose_names_are_in_another_order_is_refused(fn, options):
    """Its shape does not tell on a square crop: the result was transposed within each tile."""
    image = xr.DataArray(np.arange(256, dtype="f4").reshape(16, 16), dims=("y", "x"))
    out = tw.tiled_map(fn, image, (8, 8), 0, **options)
    with pytest.raises(tw.ContractError, match=r"dims \(.*'x', 'y'\).*'y' at [01], 'x' at [12]"):
        dask.compute(out, scheduler="sync")


@pytest.mark.parametrize("dims", [("y", "x"), ("dim_0", "dim_1"), ("a", "b")])
@pytest.mark.parametrize("image_dims", [("y", "x"), ("dim_1", "dim_0")])
def test_other_names_of_a_result_say_nothing(image_dims, dims):
    image = xr.DataArray(np.arange(256, dtype="f4").reshape(16, 16), dims=image_dims)
    out = tw.tiled_map(lambda crop: xr.DataArray(crop, dims=dims), image, (8, 8), 0, dtype="f4")
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (lambda out: out[8:, 16:], ((2.0, 26.0), (0.5, 13.0))),
        (lambda out: (out * 2)[::2], ((4.0, 10.0), (0.5, 5.0))),
        (lambda out: out > 0.5, ((2.0, 10.0), (0.5, 5.0))),
        (lambda out: out.transpose("x", "y"), ((0.5, 5.0), (2.0, 10.0))),
    ],
)
def test_a_changed_result_is_an_image_at_its_coordinates(change, places, tmp_path):
    """A slice of a DataArray has coordinates of its own; its image had scale 1, or axes that nobody knew."""
    coordinates = {
        "y": 10 + 2.0 * np.arange(40),
        "x": ("x", 5 + 0.5 * np.arange(32), {"units": "micrometer"}),
    }
    image = xr.DataArray(np.random.default_rng(0).random((40, 32)), coordinates, dims=("y", "x"))
    out = change(tw.tiled_map(np.copy, image, (8, 8), 2, dtype="f4", chunks=8).assign_attrs(_FillValue=-9.0))
    out = out.chunk({"y": 8, "x": 8})
    tw.to_zarr(out, tmp_path / "a.zarr", ome=True, levels=1, progress=False)
    meta = tw.image_meta(tmp_path / "a.zarr")
    assert meta.axes == out.dims
    assert tuple(zip(meta.scale, meta.translation, strict=True)) == places
    assert meta.units[meta.axes.index("x")] == "micrometer"


def test_a_changed_result_keeps_its_axes_in_an_image(tmp_path):
    out = tw.tiled_map(np.negative, scene(), {"y": 8, "x": 12}, 0, dtype="f4", chunks=12).isel(
        y=slice(12, None)
    )
    out = out.assign_coords(y=-out.y)
    tw.to_zarr(out[1:].chunk({"band": 2}), tmp_path / "a.zarr", ome=True, levels=1, progress=False)
    meta = tw.image_meta(tmp_path / "a.zarr")
    assert (meta.axes, meta.channel_names) == (("band", "y", "x"), ("green", "nir"))
    assert meta.translation[1:] == (-275.0, 5.0)
