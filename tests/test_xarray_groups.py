"""Several DataArrays in one group of Zarr: what xarray opens, and what is refused before it is written."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
import zarr

import tilework as tw

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

Y = np.arange(8.0)


def array(name="n", **more):
    given = {"dims": ("y", "x"), "coords": {"y": Y}, "attrs": {"a": 1}, "name": name}
    return xr.DataArray(np.arange(80, dtype="f4").reshape(8, 10), **(given | more))


def write(one, store, **options):
    out = tw.tiled_map(np.negative, one, (3, 4), 0, dtype=one.dtype)
    tw.to_zarr(out, store, progress=False, **options)
    return out.compute()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_later_arrays_and_new_attributes_are_seen_by_readers(zarr_format, caplog):
    store = zarr.storage.MemoryStore()
    first = write(array(), store, zarr_format=zarr_format)
    second = write(array("m", attrs={}), store)
    both = xr.open_zarr(store).load()
    xr.testing.assert_identical(both["n"], first)
    xr.testing.assert_identical(both["m"], second)
    renamed = write(array(attrs={"a": 2}), store, overwrite=True)
    xr.testing.assert_identical(xr.open_zarr(store)["n"].load(), renamed)
    assert not caplog.text  # of consolidated metadata that are not those of all arrays


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.drop_vars("y"),
        lambda one: one.assign_coords(y=("y", Y, {"units": "m"})),
        lambda one: one.assign_coords(y=Y + 1, tide=3),
        lambda one: one.isel(y=slice(5)),
        lambda one: one.rename(y="lat"),
    ],
    ids=["none", "attributes", "values", "shorter", "renamed"],
)
def test_an_array_that_is_written_afresh_has_its_own_coordinates(change):
    store = zarr.storage.MemoryStore()
    write(array(), store)
    again = write(change(array()), store, overwrite=True)
    xr.testing.assert_identical(xr.open_zarr(store)["n"].load(), again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.drop_vars("y"), r"has coordinates 'y', and the result has none.*n there use them"),
        (lambda one: one.assign_coords(y=("y", Y, {"units": "m"})), "other coordinates 'y'"),
        (
            lambda one: one.drop_vars("y").isel(y=slice(5)),
            "5 samples along 'y', and the group .* has 8, of n",
        ),
        (lambda one: one.assign_coords(n=("y", Y)), "other coordinates 'n'"),
    ],
    ids=["none", "attributes", "shorter", "array"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_array_that_would_be_opened_otherwise_is_refused(change, message, overwrite):
    store = zarr.storage.MemoryStore()
    first = write(array(), store)
    with pytest.raises(tw.TilingError, match=message):
        write(change(array("m")), store, overwrite=overwrite)
    xr.testing.assert_identical(xr.open_zarr(store).load(), first.to_dataset())


def test_a_resumed_array_does_not_change_coordinates_of_others():
    store = zarr.storage.MemoryStore()
    write(array(), store)
    moved = array().assign_coords(y=Y + 1)
    alone = write(moved, store)
    xr.testing.assert_identical(xr.open_zarr(store)["n"].load(), alone)
    write(moved.rename("m"), store)
    with pytest.raises(tw.TilingError, match="other coordinates 'y'"):
        write(array(), store)
    # What somebody noted in the store stays.
    noted = zarr.open_array(store, path="y", mode="r+")
    noted.attrs["note"] = "checked"
    write(moved, store)
    assert zarr.open_array(store, path="y").attrs["note"] == "checked"


@pytest.mark.parametrize("name", ["B8/B4", ".", "..", "zarr.json"])
def test_a_name_that_is_a_path_comes_back(name):
    store = zarr.storage.MemoryStore()
    one = write(array(name), store)
    xr.testing.assert_identical(xr.open_dataarray(store, engine="zarr").load(), one)
    with pytest.raises(tw.TilingError, match="cannot be the name of an array in a group"):
        write(array().assign_coords({name: 3}), zarr.storage.MemoryStore())


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_text_is_written(zarr_format):
    store = zarr.storage.MemoryStore()
    text = array(coords={}).astype("U4")
    out = tw.tiled_map(lambda crop: crop, text, (3, 4), 0, dtype="U4")
    tw.to_zarr(out, store, zarr_format=zarr_format, progress=False)
    xr.testing.assert_identical(xr.open_zarr(store)["n"].load(), text)


def test_other_names_of_axes_are_refused_for_an_array_with_labels():
    out = tw.tiled_map(np.negative, array(), (3, 4), 0, dtype="f4")
    for options in ({"meta": tw.ImageMeta("ab")}, {"dimension_names": ("a", "b")}):
        with pytest.raises(tw.TilingError, match=r"cannot change what a DataArray says.*out.data, with"):
            tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, **options)
        written = tw.to_zarr(out.data, zarr.storage.MemoryStore(), progress=False, **options)
        assert written.metadata.dimension_names == ("a", "b")
    with pytest.raises(tw.TilingError, match="meta has 3 axes"):
        tw.to_zarr(out.data, zarr.storage.MemoryStore(), meta=tw.ImageMeta("abc"), progress=False)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("by", ["tilework", "xarray"])
@pytest.mark.parametrize("scale", [Fraction(1, 2), 1, 2])
def test_coordinates_of_a_result_that_is_replaced_go_with_it(scale, by, zarr_format, tmp_path):
    """xarray could not open a group with coordinates of other lengths than the result."""
    y, _ = np.mgrid[:40, :60]
    places = {
        "lat": (("y", "x"), y * 0.1), "y": np.arange(40.0), "season": ("t", ["w", "s"]),
        "both": (("t", "y"), np.ones((2, 40))), "scalar": 5,
    }  # fmt: skip
    first = xr.DataArray(np.ones((2, 40, 60), "f4"), coords=places, dims=("t", "y", "x"), name="v")
    out = tw.tiled_map(np.copy, first, {"y": 20, "x": 20}, 0, dtype="f4")
    if by == "tilework":
        tw.to_zarr(out, tmp_path / "g.zarr", progress=False, zarr_format=zarr_format)
    else:
        out.compute().to_zarr(tmp_path / "g.zarr", zarr_format=zarr_format, consolidated=False)
    second = first.isel(t=0, drop=True).drop_vars(["lat", "both", "scalar"])
    size = tuple(int(n * scale) for n in (20, 20))
    out = tw.tiled_map(
        lambda crop: np.zeros(size, "f4"), second, 20, 0, output=tw.Output("f4", scale=scale)
    )  # fmt: skip
    tw.to_zarr(out, tmp_path / "g.zarr", progress=False, overwrite=True)
    with xr.open_zarr(tmp_path / "g.zarr", consolidated=False) as there:
        xr.testing.assert_identical(there["v"].compute(), out.compute())
