"""The value of samples without data, in stored arrays: written with results, and read again."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.formats.missing import missing_attribute, missing_value

FEW = [
    ("f4", -9999.0),
    ("f8", math.nan),
    ("f4", math.inf),
    ("f8", 0.1),
    ("i2", -1),
    ("u1", 255),
    ("i8", 2**62),
]


def same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def result(dtype: str, nodata: Any) -> tuple[np.ndarray, Any]:
    image = np.arange(40 * 44).reshape(40, 44).astype(dtype)
    image[::3] = nodata
    meta = tw.ImageMeta("yx", units="micrometer")
    out = tw.tiled_map(
        np.copy, image, 16, 2, dtype=dtype, nodata=nodata, fill_value=nodata, meta=meta
    )  # fmt: skip
    return image, out


@pytest.mark.parametrize(("dtype", "nodata"), FEW)
@pytest.mark.parametrize(
    "options", [{}, {"zarr_format": 2}, {"ome": True, "levels": 2}, {"ome": "0.4", "levels": 2}], ids=str
)
def test_the_next_step_knows_what_is_no_data(
    dtype: str, nodata: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    image, out = result(dtype, nodata)
    tw.to_zarr(out, tmp_path / "out.zarr", progress=False, **options)
    stored = tw.open_image(tmp_path / "out.zarr")
    assert same(tw.image_meta(stored).nodata, nodata)
    if "ome" in options:
        assert same(tw.image_meta(tw.open_image(tmp_path / "out.zarr", level=1)).nodata, nodata)
    found = tw.image_statistics(tmp_path / "out.zarr", nodata=True, progress=False)
    assert found.count == sum(not same(v, nodata) for v in image.ravel().tolist())


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("by", ["tilework", "xarray", "netcdf"])
@pytest.mark.parametrize("stated", [{}, {"missing_value": np.float32(7)}], ids=str)
def test_a_data_array_that_was_stored_says_the_value_that_it_said(
    stated: dict[str, Any], by: str, zarr_format: Any, tmp_path: Path
) -> None:
    """Arrays of floats that say none get a fill value of NaN from xarray."""
    xr = pytest.importorskip("xarray")
    samples = np.arange(40 * 44, dtype="f4").reshape(40, 44)
    samples[::3] = np.nan
    image = xr.DataArray(samples, dims=("y", "x"), name="v", attrs=stated)
    out = tw.tiled_map(np.copy, image, 16, 2, dtype="f4", nodata=np.nan, fill_value=-1)
    store = tmp_path / "out"
    if by == "netcdf":
        out.compute().to_netcdf(store, engine="scipy")
        again = xr.open_dataset(store, engine="scipy")["v"]
    else:
        to_zarr = tw.to_zarr if by == "tilework" else xr.Dataset.to_zarr
        options = {"progress": False} if by == "tilework" else {"consolidated": False}
        to_zarr(out if by == "tilework" else out.to_dataset(), store, zarr_format=zarr_format, **options)
        again = xr.open_zarr(store, consolidated=False)["v"]
    hidden = tw.tiled_map(np.copy, again, 16, 2, dtype="f4", nodata=True, fill_value=-5)
    masked = bool(stated)  # xarray reads NaN where there is a missing_value
    assert same(tw.image_meta(again).nodata, math.nan if masked else -1)
    np.testing.assert_array_equal(hidden == -5, np.isnan(samples))


def test_a_value_says_more_than_nan() -> None:
    """NaN is what xarray writes as fill value of every array of floats that has none."""
    xr = pytest.importorskip("xarray")
    attributes = {"_FillValue": "NaN", "nodata": -9999}
    assert missing_value(attributes, np.dtype("f4")) == -9999
    assert math.isnan(missing_value({"_FillValue": "NaN"}, np.dtype("f4")))
    image = xr.DataArray(np.zeros((4, 4), "f4"), dims=("y", "x"), attrs={"nodata": -9999})
    image.encoding["_FillValue"] = np.float32(np.nan)
    assert tw.image_meta(image).nodata == -9999
    image.encoding["_FillValue"] = np.float32(-9999)  # xarray put NaN in its place
    assert math.isnan(tw.image_meta(image).nodata)


def test_attributes_of_the_caller_go_first(tmp_path: Path) -> None:
    _, out = result("f4", -9999.0)
    array = tw.to_zarr(out, tmp_path / "out.zarr", attributes={"nodata": -1, "by": "me"}, progress=False)
    assert (array.attrs["nodata"], array.attrs["by"]) == (-1, "me")
    assert tw.image_meta(array).nodata == -1


@pytest.mark.parametrize(("dtype", "nodata"), [("f4", -9999.0), ("f8", math.nan), ("i2", -1), ("u1", 255)])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_fill_value_that_xarray_wrote(dtype: str, nodata: Any, zarr_format: Any, tmp_path: Path) -> None:
    """It packs those of floats as text; in format 2 it has no attribute for it."""
    xr = pytest.importorskip("xarray")
    image = xr.DataArray(np.zeros((6, 8), dtype), dims=("y", "x"), name="v")
    image.encoding["_FillValue"] = np.dtype(dtype).type(nodata)
    image.to_dataset().to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format, consolidated=False)
    assert same(tw.image_meta(tmp_path / "x.zarr" / "v").nodata, nodata)


def test_the_fill_value_of_format_2_counts_where_it_was_chosen(tmp_path: Path) -> None:
    for name, fill, attributes in [
        ("usual", 0, {"_ARRAY_DIMENSIONS": ["y", "x"]}),
        ("none", None, {"_ARRAY_DIMENSIONS": ["y", "x"]}),
        ("unnamed", 7, {}),
        ("other", 7, {"_ARRAY_DIMENSIONS": ["y", "x"], "missing_value": 9}),
    ]:
        zarr.create_array(
            tmp_path / name, shape=(4, 4), dtype="i2", fill_value=fill, zarr_format=2, attributes=attributes
        )
    metas = [tw.image_meta(tmp_path / name) for name in ("usual", "none", "unnamed", "other")]
    assert [None if m is None else m.nodata for m in metas] == [None, None, None, 9]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zeros_of_a_result_are_no_missing_samples_for_xarray(zarr_format: Any, tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    image = np.arange(48, dtype="u1").reshape(6, 8) // 2
    zarr.create_group(tmp_path / "g.zarr", zarr_format=zarr_format)
    out = tw.tiled_map(np.copy, image, 4, 0, dtype="u1", meta=tw.ImageMeta("yx"))
    tw.to_zarr(out, tmp_path / "g.zarr", path="v", zarr_format=zarr_format, progress=False)
    read = xr.open_zarr(tmp_path / "g.zarr", consolidated=False).v
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ({"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}, "scale_factor 0.5"),
        ({"dtype": "i2", "add_offset": 3.0, "_FillValue": -9}, "add_offset 3.0"),
        ({"dtype": "i1", "_Unsigned": "true", "_FillValue": -1}, "_Unsigned true"),
        ({"dtype": "i2", "scale_factor": 1.0, "_FillValue": -9}, None),
        ({"dtype": "i2", "_FillValue": -9}, None),
    ],
)
def test_numbers_that_xarray_packed_are_said_to_be_packed(
    encoding: Any, said: str | None, zarr_format: Any, tmp_path: Path
) -> None:
    xr = pytest.importorskip("xarray")
    image = xr.DataArray(np.arange(48.0).reshape(6, 8), dims=("y", "x"), name="v")
    image.encoding = encoding
    image.to_dataset().to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format, consolidated=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tw.tiled_map(np.copy, tmp_path / "x.zarr" / "v", 4, 0, dtype=encoding["dtype"]).compute(
            scheduler="sync"
        )
        told = [str(w.message) for w in caught if w.category is tw.TilingWarning]
    assert len(told) == (said is not None)
    assert all(said in one for one in told)
    with warnings.catch_warnings():  # who opens it with zarr sees what is stored
        warnings.simplefilter("error", tw.TilingWarning)
        tw.tiled_map(np.copy, zarr.open_array(tmp_path / "x.zarr" / "v"), 4, 0, dtype=encoding["dtype"])


def test_dates_are_said_to_be_numbers(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    dates = np.datetime64("2020-01-01", "ns") + np.arange(48).reshape(6, 8) * np.timedelta64(1, "D")
    xr.Dataset({"v": (("y", "x"), dates)}).to_zarr(tmp_path / "x.zarr", consolidated=False)
    with pytest.warns(tw.TilingWarning, match=r"packed, .* units 'days since 2020-01-01"):
        tw.tiled_map(np.copy, tmp_path / "x.zarr" / "v", 4, 0, dtype="i8")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("u1", -1), ("u1", 256), ("i2", 0.5), ("i4", math.nan), ("u1", "NaN"), ("f4", "none"), ("f4", 1e300),
        ("f4", True), ("f4", None), ("f4", [1.0]), ("f4", {"value": 1}), ("i2", "AAAAAICHw8A="), ("?", 1),
        ("f4", "AAAA"), ("c8", 0.0), ("M8[s]", 0),
    ],
)  # fmt: skip
def test_what_no_sample_can_be_says_nothing(dtype: str, value: Any, tmp_path: Path) -> None:
    assert missing_value({"_FillValue": value}, np.dtype(dtype)) is None
    assert missing_value({"_FillValue": value, "nodata": 0}, np.dtype("f4")) is not None
    assert missing_attribute(value, np.dtype(dtype)) == {} or isinstance(value, str)
    if dtype in ("u1", "f4"):
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=(4, 4), chunks=(2, 2), dtype=dtype,
            dimension_names=("y", "x"), attributes={"missing_value": value},
        )  # fmt: skip
        assert tw.image_meta(array).nodata is None


def test_results_that_say_none_have_no_attribute(tmp_path: Path) -> None:
    out = tw.tiled_map(np.copy, np.zeros((20, 20)), 8, 2, meta=tw.ImageMeta("yx"))
    assert "nodata" not in tw.to_zarr(out, tmp_path / "a.zarr", progress=False).attrs
    _, out = result("f4", -9999.0)
    counted = tw.tiled_map(lambda crop: crop > 0, out, 8, 2, dtype=bool)
    assert "nodata" not in tw.to_zarr(counted, tmp_path / "b.zarr", progress=False).attrs
