"""What adversaries found at the border: sources that would be written into, and what metadata may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw

IMAGE = np.random.default_rng(0).integers(1, 4000, (64, 64)).astype("u2")
PLANE = np.random.default_rng(1).random((40, 40), dtype="f4")
OME: dict[str, Any] = {"ome": True, "levels": 3, "chunks": 8, "progress": False}


def ident(x: Any) -> Any:
    return x


def tiled(image: Any, fn: Any = ident, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 16, 2, **options)


SPELLINGS: dict[str, Any] = {
    "of a result": lambda x: tiled(tiled(x)),
    "of three": lambda x: tiled(tiled(tiled(x))),
    "of arithmetic": lambda x: tiled(tiled(x) * 2),
    "of a view": lambda x: tiled(tiled(x)[::-1]),
    "of other chunks": lambda x: tiled(tiled(x).rechunk(7)),
    "as a mask": lambda x: tiled(PLANE, where=tiled(x) > 0.5),
    "as a second source": lambda x: tw.tiled_map(lambda a, b: a + b, (PLANE, tiled(x)), 16, 2, dtype="f4"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_what_a_result_below_reads_is_not_written_into(case: str, tmp_path: Path) -> None:
    store = zarr.create_array(tmp_path / "a.zarr", data=PLANE, chunks=(8, 8))
    with pytest.raises(tw.TilingError, match="holds the array that is read"):
        tw.to_zarr(SPELLINGS[case](str(tmp_path / "a.zarr")), tmp_path / "a.zarr", overwrite=True)
    np.testing.assert_array_equal(store[:], PLANE)
    mine = PLANE.copy()
    with pytest.raises(tw.TilingError, match="is the one that is read"):
        tw.compute(SPELLINGS[case](mine), into=mine)
    np.testing.assert_array_equal(mine, PLANE)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_level_that_is_read_is_not_deleted(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    meta = tw.ImageMeta("yx")
    tw.to_zarr(tiled(IMAGE, meta=meta), path, **OME)
    before = [zarr.open_array(path / str(k))[:] for k in range(3)]
    out = tiled(tw.open_image(path, level=1), np.invert)
    with pytest.raises(tw.TilingError, match=r"level '1' of the image .* is the array that is read"):
        tw.to_zarr(out, path, **OME | {"levels": levels}, overwrite=True)
    for k, level in enumerate(before):
        np.testing.assert_array_equal(zarr.open_array(path / str(k))[:], level)


def test_a_level_of_labels_that_is_read_is_not_deleted(tmp_path: Path) -> None:
    path, written = tmp_path / "a.ome.zarr", OME | {"ome": False, "label_name": "m"}
    tw.to_zarr(tiled(IMAGE, meta=tw.ImageMeta("yx")), path, **OME)
    tw.to_zarr(tiled(path), path, **written)
    coarse = tiled(tw.open_image(path, label="m", level=1))
    with pytest.raises(tw.TilingError, match="is the array that is read"):
        tw.to_zarr(coarse, path, **written, overwrite=True)


@pytest.mark.parametrize("kind", ["group", "array"])
def test_a_level_replaces_nothing_that_tilework_did_not_write(kind: str, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="a")
    place = group.create_group("1") if kind == "group" else group
    mine = place.create_array("mine" if kind == "group" else "1", data=np.ones(3))
    with pytest.raises(tw.TilingError, match="holds data that tilework did not write"):
        tw.to_zarr(tiled(IMAGE, meta=tw.ImageMeta("yx")), tmp_path / "a.zarr", **OME, overwrite=True)
    np.testing.assert_array_equal(mine[:], np.ones(3))


@pytest.mark.parametrize("names", [("cells", "cells"), ("1", None), ("/a/", "b")])
def test_an_image_of_several_is_found_by_its_number(names: Any) -> None:
    group = zarr.create_group(zarr.storage.MemoryStore())
    axes = [{"name": n, "type": "space"} for n in "yx"]
    images: list[Any] = []
    for k, name in enumerate(names):
        group.create_array(str(k), data=np.full((8, 8), k, "u1"))
        images.append({"axes": axes, "datasets": [{"path": str(k)}]} | ({"name": name} if name else {}))
    group.attrs["ome"] = {"version": "0.5", "multiscales": images}
    for k in (0, 1, -1):
        assert np.asarray(tw.open_image(group, image=k))[0, 0] == k % 2
    if names[0] == "/a/":
        assert np.asarray(tw.open_image(group, image="/a/"))[0, 0] == 0


@pytest.mark.parametrize("path", ["./s0", "..", "a/../s0"])
def test_a_path_that_leads_nowhere_is_an_error_of_ours(path: str) -> None:
    group = zarr.create_group(zarr.storage.MemoryStore())
    group.create_array("s0", data=np.zeros((8, 8), "u1"))
    axes = [{"name": n, "type": "space"} for n in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": path}]}]}
    with pytest.raises(tw.TilingError):
        tw.open_image(group)
    with pytest.raises(tw.TilingError):
        tw.open_image(group, label="..")


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">c8", "<f8"])
@pytest.mark.parametrize("options", [{}, {"ome": True}, {"zarr_format": 2}], ids=["3", "ome", "2"])
def test_a_result_of_either_byte_order_is_resumed(dtype: str, options: Any) -> None:
    if "ome" in options and dtype == ">c8":
        options = {"ome": True, "levels": 1}
    store, calls = zarr.storage.MemoryStore(), []

    def fn(x: Any) -> Any:
        calls.append(1)
        return x

    out = tw.tiled_map(fn, np.ones((10, 10), dtype), 6, 1, dtype=dtype, meta=tw.ImageMeta("yx"))
    tw.to_zarr(out, store, chunks=5, progress=False, version="1", **options)
    calls.clear()
    array = tw.to_zarr(out, store, chunks=5, progress=False, version="1", **options)
    assert not calls
    np.testing.assert_array_equal(array[:], np.ones((10, 10)))
    given = np.zeros((10, 10), np.dtype(dtype).newbyteorder("="))
    np.testing.assert_array_equal(tw.compute(out, into=given), np.ones((10, 10)))


@pytest.mark.parametrize("nodata", [0.5, -9999, "x", np.nan, 300])
def test_nodata_that_no_sample_can_be_is_refused(nodata: Any) -> None:
    out = tw.tiled_map(lambda x: (x > 0.5).astype("u1"), PLANE, 16, 2, dtype="u1")
    with pytest.raises(tw.TilingError, match="which no sample of dtype uint8 can be"):
        tw.to_zarr(out, zarr.storage.MemoryStore(), ome=True, meta=tw.ImageMeta("yx", nodata=nodata))


@pytest.mark.parametrize(("dtype", "nodata"), [("f4", np.nan), ("f4", -1), ("u1", 255), ("f4", 0.1)])
def test_nodata_that_a_sample_can_be_is_kept(dtype: str, nodata: Any) -> None:
    store = zarr.storage.MemoryStore()
    meta = tw.ImageMeta("yx", nodata=nodata)
    tw.to_zarr(tiled(PLANE.astype(dtype)), store, ome=True, meta=meta, progress=False)
    assert tw.open_image(store).source.shape == (40, 40)


def test_labels_are_integers_in_ome_zarr(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    tw.to_zarr(tiled(IMAGE, meta=tw.ImageMeta("yx")), path, **OME)
    with pytest.raises(
        tw.TilingError, match="labels are whole numbers in OME-Zarr; the result has dtype bool"
    ):
        tw.to_zarr(tw.tiled_map(lambda x: x > 5, path, 16, 2, dtype=bool), path, label_name="b")


@pytest.mark.parametrize("chunks", [np.array([6, 6]), [6, 6], np.int64(6)])
def test_chunks_may_be_an_array(chunks: Any) -> None:
    out = tw.tiled_map(np.negative, np.ones((12, 12), "f4"), 4, 1, dtype="f4", chunks=chunks)
    assert out.chunks == ((6, 6), (6, 6))
    np.testing.assert_array_equal(tw.compute(out), -np.ones((12, 12)))
    assert "blocks" in dict(tw.explain(out, writing={}).rows)


@pytest.mark.parametrize("where", [5, 0.5, True, np.bool_(True), [1, 2], (True,), {"mask": IMAGE > 5}])
def test_a_mask_that_is_no_array_is_refused_by_its_name(where: Any) -> None:
    with pytest.raises(TypeError, match=r"^where must be an array of bool, a path or a URL; got "):
        tiled(PLANE, where=where)


@pytest.mark.parametrize("dtype", [(None, 3), ("f4", (2, 2)), {}, [], "U0", "V0", object, "O,f4"])
def test_a_dtype_that_no_sample_can_have_is_refused(dtype: Any) -> None:
    with pytest.raises(tw.TilingError, match="an output cannot have dtype"):
        tw.tiled_map(np.negative, PLANE, 16, 2, dtype=dtype)


@pytest.mark.parametrize("dtype", ["U3", "S2", "M8[s]", "f4,f4", [("xyz", "f4", 3)], "V4"])
def test_a_dtype_of_a_fixed_length_is_taken(dtype: Any) -> None:
    image = np.zeros((20, 20), dtype)
    out = tw.tiled_map(np.copy, image, 10, 2, dtype=dtype)
    assert out.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(out.compute(), image)
