"""`to_zarr(ome=)`: OME-Zarr images with their pyramid, and labels, in one pass."""

import itertools
import math
import re
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tilework.engine.pyramid import halved
from tilework.formats.ome_zarr import read_group
from tilework.writing import growing
from tilework.writing.ledger import Ledger

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


def reference(image, axes, method, nodata=None):
    """The next level, bin by bin, with exact numbers."""
    shape = [n // 2 if a in axes else n for a, n in enumerate(image.shape)]
    out = np.empty(shape, image.dtype)
    for place in np.ndindex(*shape):
        spans = [slice(2 * i, 2 * i + 2) if a in axes else i for a, i in enumerate(place)]
        values = image[tuple(spans)].ravel().tolist()
        if method in ("mean", "max") and nodata is not None:
            values = [v for v in values if v != nodata]
        known = [v for v in values if v == v]
        if not values:
            out[place] = nodata
        elif method == "nearest":
            out[place] = values[0]
        elif method == "max":
            out[place] = max(known) if known else math.nan
        elif method == "mode":
            out[place] = max(values, key=lambda v: (values.count(v), -values.index(v)))
        elif image.dtype.kind in "iu":
            out[place] = round(Fraction(sum(values), len(values)))
        else:
            out[place] = sum(map(Fraction, known)) / len(known) if known else math.nan
    return out


def add_one(crop):
    return crop + crop.dtype.type(1)


def image_of(shape, dtype="u2", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return rng.integers(low, high, shape, dtype)
    return (rng.integers(0, 4, shape) * 64).astype(dtype)


def levels(store, path=""):
    """All levels of an image, as its attributes list them."""
    group = zarr.open_group(store, path=path, mode="r")
    [image] = read_group(dict(group.attrs), "").images
    return [group[level.path] for level in image.levels], image


def check_pyramid(store, expected, axes, method="mean", path=""):
    """Level 0 is as expected, and every other one the halved one before."""
    arrays, image = levels(store, path)
    np.testing.assert_array_equal(arrays[0][...], expected)
    for below, above in itertools.pairwise(arrays):
        np.testing.assert_array_equal(above[...], halved(below[...], axes, method))
    return arrays, image


# -- arithmetic ---------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), dtype=st.sampled_from([*INTEGERS, "f4", "f8"]),
    method=st.sampled_from(["mean", "nearest", "mode", "max"]), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_a_level_is_the_reference_of_the_level_below(shape, dtype, method, seed, data):
    axes = data.draw(st.sets(st.sampled_from(range(len(shape)))).map(sorted))
    image = image_of(shape, dtype, seed)
    if np.dtype(dtype).kind == "f":
        image[np.random.default_rng(seed).random(shape) < 0.3] = np.nan
        if method == "mode":
            image = np.nan_to_num(image)
    np.testing.assert_array_equal(halved(image, axes, method), reference(image, axes, method))


@pytest.mark.parametrize("method", ["mean", "nearest", "mode", "max"])
def test_every_method_takes_equal_samples_in_raster_order(method):
    for shape, axes in (
        ((7, 9), (0, 1)),
        ((5, 6, 4), (0, 1, 2)),
        ((3, 8, 4), (1, 2)),
        ((9,), (0,)),
        ((4, 9), (1,)),
    ):
        for low, high in ((0, 3), (0, 255)):
            image = np.random.default_rng(len(shape)).integers(low, high, shape, np.uint8)
            np.testing.assert_array_equal(halved(image, axes, method), reference(image, axes, method))


@pytest.mark.parametrize("dtype", [*INTEGERS, "f4"])
@pytest.mark.parametrize("method", ["mean", "max", "nearest"])
def test_samples_without_data_are_left_out(dtype, method):
    low = 0 if dtype == "f4" else np.iinfo(dtype).min
    for nodata in (low, low + 3):
        for shape, axes in (((9, 8), (0, 1)), ((4, 6, 4), (0, 1, 2)), ((7,), (0,))):
            image = (low + np.random.default_rng(3).integers(0, 6, shape).astype("O")).astype(dtype)
            image[np.random.default_rng(0).random(shape) < 0.5] = nodata
            expected = reference(image, axes, method, nodata)
            np.testing.assert_array_equal(halved(image, axes, method, nodata), expected)


def test_a_pyramid_leaves_out_what_holds_no_data():
    image = image_of((64, 64), "u2") | 1
    image[:33, :21] = 0
    out = tw.tiled_map(np.positive, image, 16, 0, dtype="u2", nodata=0)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, ome=True, chunks=16, levels=4, progress=False)
    arrays, _ = levels(store)
    for below, above in itertools.pairwise(arrays):
        np.testing.assert_array_equal(above[...], halved(below[...], (0, 1), "mean", 0))
    assert (arrays[1][...] == 0).sum() == 16 * 10  # no sample is part data and part nothing


@pytest.mark.parametrize("dtype", INTEGERS)
def test_means_of_integers_round_half_to_even_and_do_not_overflow(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for values in (
        [0, 1, 1, 0],
        [1, 2, 2, 1],
        [low, low, low, low],
        [high] * 4,
        [high, high, high, high - 2],
    ):
        block = np.array(values, dtype).reshape(2, 2)
        assert halved(block, (0, 1), "mean")[0, 0] == round(Fraction(sum(map(int, values)), 4))
    # Rounding half up would lift this by an eighth.
    noise = np.random.default_rng(0).integers(0, 100, (1024, 1024)).astype(dtype)
    assert abs(halved(noise, (0, 1), "mean").mean() - noise.mean()) < 0.03


def test_means_of_floats_take_what_is_there():
    top = np.finfo("f4").max
    block = np.array([[1, np.nan, top, top], [3, np.nan, top, np.inf]], "f4")
    np.testing.assert_array_equal(halved(block, (0, 1), "mean"), [[2, np.inf]])
    block[1, 3] = top
    assert halved(block, (0, 1), "mean")[0, 1] == top
    assert np.isnan(halved(np.full((2, 2), np.nan, "f2"), (0, 1), "mean")).all()
    with np.errstate(all="raise"):
        halved(np.array([[np.inf, -np.inf], [1, 1]]), (0, 1), "mean")


def test_ids_of_a_level_are_ids_of_the_image():
    ids = np.random.default_rng(0).integers(0, 2**60, (64, 64))
    for method in ("nearest", "mode"):
        assert set(halved(ids, (0, 1), method).ravel()) <= set(ids.ravel())


# -- images -------------------------------------------------------------------------------------------------


@given(
    ny=st.integers(40, 90), nx=st.integers(40, 90), chunk=st.sampled_from([8, 9, 12, 16]),
    shards=st.sampled_from([0, 2, 4]), blocks=st.sampled_from([16, 32, 48, 64, "auto"]),
    method=st.sampled_from(["mean", "nearest", "mode", "max"]),
    version=st.sampled_from(["0.4", "0.5"]), room=st.sampled_from([0, 400, 1000, 2**24]),
)  # fmt: skip
def test_any_chunks_shards_and_blocks_give_the_same_pyramid(
    ny, nx, chunk, shards, blocks, method, version, room
):
    image = image_of((ny, nx))
    if version == "0.4":
        shards = 0
    unit = chunk * max(1, shards)
    blocks = blocks if blocks == "auto" else -(-blocks // unit) * unit
    out = tw.tiled_map(add_one, image, 16, 4, dtype="u2", chunks=blocks)
    store = zarr.storage.MemoryStore()
    with mock.patch.object(growing, "ROOM", room):
        found = tw.to_zarr(
            out, store, ome=version, pyramid=method, chunks=chunk, shards=unit if shards else None,
            progress=False,
        )  # fmt: skip
    arrays, _ = check_pyramid(store, image + 1, (0, 1), method)
    assert found.path == arrays[0].path == "0"
    assert tw.status(store).complete
    last = arrays[-1]
    assert max(last.shape) < 2 * chunk
    assert len(arrays) == 1 or max(arrays[-2].shape) >= 2 * chunk


class Counting(zarr.storage.MemoryStore):
    """A store that notes what is read."""

    def __init__(self, store_dict=None, **options):
        super().__init__(store_dict, **options)
        self.gets = []

    async def get(self, key, prototype=None, byte_range=None):
        self.gets.append(key)
        return await super().get(key, prototype, byte_range)


class Counted:
    """A function that counts its calls, and is the same function whatever it counted."""

    def __init__(self):
        self.calls = 0

    def __call__(self, crop):
        self.calls += 1
        return crop + 1


@pytest.mark.parametrize(("blocks", "room", "read"), [(64, 0, 0), (32, 0, 0), (16, 0, 1), (16, 2**20, 0)])
def test_fn_runs_once_per_tile_and_level_0_is_not_read_while_blocks_are_whole_units(
    blocks, room, read, monkeypatch
):
    monkeypatch.setattr(growing, "ROOM", room)
    image, fn = image_of((256, 256)), Counted()
    out = tw.tiled_map(fn, image, 16, 0, dtype="u2", chunks=blocks)
    store = Counting()
    tw.to_zarr(out, store, ome=True, chunks=16, levels=4, progress=False, version="1")
    assert fn.calls == 256
    check_pyramid(store, image + 1, (0, 1))
    gets = [key for key in store.gets if key.startswith("0/c/")]
    assert len(gets) == read * 256


BYTES = 16 * 16 * 2
"""Of a unit in the next test."""


@pytest.mark.parametrize(
    ("room", "scheduler", "read"),
    [
        (0, "sync", [0, 64, 16, 4, 0]),
        (0, "threads", [0, 64, 16, 4, 0]),
        # Blocks come row by row: two rows make a row of four units, and those of two levels above.
        ((4 + 2 + 1) * BYTES, "sync", [0, 0, 0, 0, 0]),
        (2**24, "sync", [0, 0, 0, 0, 0]),
        (2**24, "threads", [0, 0, 0, 0, 0]),
    ],
)
def test_each_chunk_of_a_level_below_is_read_at_most_once(room, read, scheduler, monkeypatch):
    monkeypatch.setattr(growing, "ROOM", room)
    image = image_of((256, 256))
    out = tw.tiled_map(add_one, image, 16, 0, dtype="u2", chunks=32)
    store = Counting()
    tw.to_zarr(out, store, ome=True, chunks=16, levels=5, progress=False, scheduler=scheduler)
    by_level = [sum(key.startswith(f"{k}/c/") for key in store.gets) for k in range(5)]
    assert by_level == read
    check_pyramid(store, image + 1, (0, 1))


@pytest.mark.parametrize("blocks", [18, 27, 54])
def test_bins_across_blocks_are_left_to_the_end(blocks):
    image = image_of((120, 130))
    out = tw.tiled_map(add_one, image, 9, 0, dtype="u2", chunks=blocks)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, ome=True, chunks=9, levels=4, progress=False)
    check_pyramid(store, image + 1, (0, 1))


def test_little_memory_keeps_few_parts(monkeypatch):
    made, real = [], growing.Growing._new
    monkeypatch.setattr(growing, "SHARE", 3000)
    monkeypatch.setattr(growing.Growing, "_new", lambda *args: made.append(args) or real(*args))
    image = image_of((256, 256))
    out = tw.tiled_map(add_one, image, 16, 0, dtype="u2", chunks=32)
    store = Counting()
    tw.to_zarr(out, store, ome=True, chunks=16, levels=3, progress=False, memory_limit="3 MB")
    [kept] = {args[0] for args in made}
    assert kept.memory == 3_000_000, "one unit at a time"
    assert [len(refused) for refused in kept._left.values()]
    assert not kept._units
    assert not kept._bytes
    assert sum(key.startswith("1/c/") for key in store.gets) == 4 * int(kept._left[1].sum())
    check_pyramid(store, image + 1, (0, 1))


class Failing(zarr.storage.MemoryStore):
    """A store that cannot write one chunk the first time."""

    def __init__(self, store_dict=None, key="", **options):
        super().__init__(store_dict, **options)
        self.key, self.sets = key, []

    async def set(self, key, value, byte_range=None):
        self.sets.append(key)
        if key == self.key and self.sets.count(key) == 1:
            raise OSError("the network is away")
        await super().set(key, value)


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
@pytest.mark.parametrize(
    ("blocks", "key"),
    # In the last case, a block completes a unit after it has put a part into another one.
    [(32, "0/c/1/1"), (32, "1/c/1/1"), (32, "2/c/1/1"), (32, "3/c/0/0"), (48, "1/c/2/0")],
)
def test_a_task_that_is_tried_again_adds_no_part_twice(blocks, key, scheduler):
    image = image_of((128, 128))
    out = tw.tiled_map(add_one, image, 16, 0, dtype="u2", chunks=blocks)
    store = Failing(key=key)
    tw.to_zarr(out, store, ome=True, chunks=16, levels=4, progress=False, retries=2, scheduler=scheduler)
    assert store.sets.count(key) == 2
    check_pyramid(store, image + 1, (0, 1))
    assert tw.status(store).complete


def test_only_axes_near_the_finest_are_halved():
    meta = tw.ImageMeta("tczyx", units="micrometer", scale=(1, 1, 2, 0.5, 0.5), translation=(0, 0, 5, 10, 20))
    image = image_of((2, 3, 16, 64, 64))
    out = tw.tiled_map(add_one, image, (8, 16, 16), 0, dtype="u2", axes="zyx", each="tc", meta=meta)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, ome=True, levels=4, chunks=(1, 1, 4, 8, 8), progress=False)
    arrays, image_there = levels(store)
    assert [a.shape[2:] for a in arrays] == [(16, 64, 64), (16, 32, 32), (8, 16, 16), (4, 8, 8)]
    assert [level.scale[2:] for level in image_there.levels] == [
        (2, 0.5, 0.5), (2, 1, 1), (4, 2, 2), (8, 4, 4),
    ]  # fmt: skip
    assert image_there.levels[1].translation == (0, 0, 5, 10.25, 20.25)
    assert image_there.levels[3].translation == (0, 0, 5 + 2 * 1.5, 10 + 0.5 * 3.5, 20 + 0.5 * 3.5)
    np.testing.assert_array_equal(arrays[1][...], halved(image + 1, (3, 4), "mean"))
    np.testing.assert_array_equal(arrays[2][...], halved(arrays[1][...], (2, 3, 4), "mean"))
    assert image_there.axes == tuple("tczyx")
    assert image_there.units == (None, None, "micrometer", "micrometer", "micrometer")


@pytest.mark.parametrize("method", ["mean", "nearest"])
def test_declared_places_are_those_of_the_samples(method):
    n, scale, start = 200, 0.3, 7.0
    ramp = np.broadcast_to(start + scale * np.arange(n), (n, n)).astype("f8")
    meta = tw.ImageMeta("yx", scale=(1, scale), translation=(0, start)).replace(scale=(scale, scale))
    out = tw.tiled_map(np.positive, ramp, 50, 0, dtype="f8", meta=meta)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, ome=True, levels=4, pyramid=method, progress=False)
    arrays, image = levels(store)
    for array, level in zip(arrays, image.levels, strict=True):
        places = level.translation[1] + level.scale[1] * np.arange(array.shape[1])
        np.testing.assert_allclose(array[0], places)


def scores(crop):
    return np.stack([crop, 9 - crop]).astype("f4")


SCORES = tw.Output(channels=2, reduce="argmax")
RESULTS = {
    "bool": (lambda i: tw.tiled_map(lambda c: c > 9, i, 32, 0, dtype=bool), "nearest"),
    "ids": (lambda i: tw.tiled_map(lambda c: c.astype("i4"), i, 32, 0, dtype="i4"), "nearest"),
    "argmax": (lambda i: tw.tiled_map(scores, i, 32, 0, output=SCORES), "nearest"),
    "u2": (lambda i: tw.tiled_map(add_one, i, 32, 0, dtype="u2"), "mean"),
    "f4": (lambda i: tw.tiled_map(lambda c: c.astype("f4"), i, 32, 0, dtype="f4"), "mean"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS)
def test_names_of_classes_and_objects_are_not_averaged(kind):
    out, expected = RESULTS[kind]
    result = out(image_of((64, 64)))
    store = zarr.storage.MemoryStore()
    tw.to_zarr(result, store, ome=True, levels=2, progress=False)
    assert levels(store)[1].kind == expected
    np.testing.assert_array_equal(levels(store)[0][1][...], halved(result.compute(), (0, 1), expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ome": True, "levels": 9}, "at most 7 levels"),
        ({"ome": True, "levels": 0}, "levels must be"),
        ({"levels": 3}, "add ome=True"),
        ({"pyramid": "mean"}, "add ome=True"),
        ({"ome": True, "pyramid": "average"}, "pyramid must be one of"),
        ({"ome": "0.5", "zarr_format": 2}, 'ome="0.4"'),
        ({"ome": "0.4", "shards": 32}, "no shards"),
        ({"ome": True, "dimension_names": "yx"}, "follows from the image"),
        ({"ome": True, "meta": tw.ImageMeta("zyx")}, "3 axes"),
        ({"ome": True, "meta": tw.ImageMeta("ty")}, "axes of space"),
        ({"label_name": "cells"}, "not an OME-Zarr image"),
        ({"label_name": "a/b"}, "must be a name"),
    ],
)
def test_what_cannot_be_an_image_is_refused_before_anything_is_written(options, message):
    out = tw.tiled_map(add_one, image_of((64, 64)), 32, 0, dtype="u2")
    store = zarr.storage.MemoryStore()
    with pytest.raises(tw.TilingError, match=message):
        tw.to_zarr(out, store, progress=False, **options)
    assert not store._store_dict
    with pytest.raises(TypeError, match=r'ome must be True, False, "0.5" or "0.4"; got \'0.6\''):
        tw.to_zarr(out, store, ome="0.6")


def test_rgb_and_six_axes_are_refused_with_the_cure():
    rgb = tw.tiled_map(add_one, image_of((64, 64, 3)), (32, 32), 0, axes=(0, 1), dtype="u2")
    with pytest.raises(tw.TilingError, match="channel_axis=0"):
        tw.to_zarr(rgb, {}, ome=True)
    moved = tw.tiled_map(
        lambda c: np.moveaxis(c, -1, 0), image_of((64, 64, 3)), (32, 32), 0, axes=(0, 1),
        output=tw.Output("u2", channels=3, channel_axis=0),
    )  # fmt: skip
    store = zarr.storage.MemoryStore()
    tw.to_zarr(moved, store, ome=True, progress=False)
    assert levels(store)[1].axes == ("c", "y", "x")
    six = da.zeros((1,) * 6)
    with pytest.raises(tw.TilingError, match=r"meta=tw.ImageMeta"):
        tw.to_zarr(six, {}, ome=True)
    with pytest.raises(tw.TilingError, match="five axes"):
        tw.to_zarr(six, {}, ome=True, meta=tw.ImageMeta(("t", "c", "z", "y", "x", "q")))
    with pytest.raises(tw.TilingError, match="a store or a group"):
        tw.to_zarr(moved, zarr.create_array({}, shape=(3, 64, 64), chunks=(3, 32, 32), dtype="u2"), ome=True)


TURNED = tw.ImageMeta(
    "tczyx", units="micrometer", scale=(30, 1, 2, 0.5, 0.25), translation=(60, 0, 10, 100, 200),
    channel_names=["DAPI", "GFP", "RFP"],
)  # fmt: skip


@pytest.mark.parametrize("each", ["c", "z", "tz", "cz"])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_cure_of_an_order_that_ome_zarr_does_not_have_is_code_that_works(each, labelled):
    image = image_of((2, 3, 4, 16, 16))
    coordinates = {
        a: o + s * np.arange(n)
        for a, s, o, n in zip("tzyx", (30, 2, 0.5, 0.25), (60, 10, 100, 200), (2, 4, 16, 16), strict=True)
    }
    source = (
        xr.DataArray(image, coordinates | {"c": ["DAPI", "GFP", "RFP"]}, list("tczyx")) if labelled else image
    )
    options = {} if labelled else {"meta": TURNED}
    out = tw.tiled_map(
        lambda c: c[..., ::2, ::2] + c.dtype.type(1), source, 8, 0, axes="yx", each=each,
        output=tw.Output("u2", scale=0.5), **options,
    )  # fmt: skip
    with pytest.raises(tw.TilingError, match="time first") as caught:
        tw.to_zarr(out, {}, ome=True)
    pattern = r"out\.transpose\(.*?\)" if labelled else r"dask\.array\.transpose\(out, \(.*?\)\)"
    names = {"out": out, "tw": tw, "dask": dask}
    turned = eval(re.search(pattern, str(caught.value))[0], names)
    told = re.search(r"meta=(tw\..*?\)\))", str(caught.value))[1]
    store = zarr.storage.MemoryStore()
    tw.to_zarr(turned, store, ome=True, progress=False, **({} if labelled else {"meta": eval(told, names)}))
    found = tw.open_image(store)
    np.testing.assert_array_equal(found[...], image[..., ::2, ::2] + 1)
    assert found.meta.axes == tuple("tczyx")
    assert found.meta.channel_names == ("DAPI", "GFP", "RFP")
    np.testing.assert_allclose(found.meta.scale, (30, 1, 2, 1, 0.5))
    np.testing.assert_allclose(found.meta.translation, (60, 0, 10, 100.25, 200.125))


@pytest.mark.parametrize("name", ["out.tif", "scan.nii.gz", "OUT.H5", "a.png"])
@pytest.mark.parametrize("ome", [False, True])
def test_a_folder_with_the_name_of_a_file_is_said(name, ome, tmp_path):
    out = tw.tiled_map(add_one, image_of((32, 32)), 16, 0, dtype="u2")
    with pytest.warns(tw.TilingWarning, match=rf"{name} has the name of a file"):
        tw.to_zarr(out, tmp_path / name, ome=ome, progress=False)


def test_an_image_that_says_nothing_is_asked_for_as_many_axes_as_it_has():
    for axes in ("zyx", "czyx", "tczyx"):
        with pytest.raises(tw.TilingError, match=rf'not known.*ImageMeta\("{axes}"\)'):
            tw.to_zarr(da.zeros((2,) * len(axes), chunks=1), {}, ome=True)


def test_a_map_from_north_to_south_is_written_after_it_was_turned_as_the_error_says():
    image = xr.DataArray(image_of((16, 16)), {"y": 100.0 - np.arange(16), "x": np.arange(16.0)}, ("y", "x"))
    out = tw.tiled_map(add_one, image, 8, 0, dtype="u2")
    with pytest.raises(tw.TilingError, match=r"out\.isel\(y=slice\(None, None, -1\)\)"):
        tw.to_zarr(out, {}, ome=True)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out.isel(y=slice(None, None, -1)), store, ome=True, progress=False)
    assert tw.open_image(store).meta.translation == (85, 0)
    np.testing.assert_array_equal(tw.open_image(store)[...], image.values[::-1] + 1)


def test_a_name_of_an_image_is_no_image(tmp_path):
    out = tw.tiled_map(add_one, image_of((32, 32)), 16, 0, dtype="u2")
    with pytest.warns(tw.TilingWarning, match=r"plain\.ome\.zarr.*ome=True"):
        tw.to_zarr(out, tmp_path / "plain.ome.zarr", progress=False)
    assert isinstance(zarr.open(tmp_path / "plain.ome.zarr"), zarr.Array)


# -- resuming, schedulers -----------------------------------------------------------------------------------


def test_an_image_that_is_whole_is_not_computed_again_and_another_is_refused():
    image, fn = image_of((128, 128)), Counted()
    out = tw.tiled_map(fn, image, 32, 0, dtype="u2")
    store = zarr.storage.MemoryStore()
    options = {"chunks": 16, "progress": False, "version": "1", "ome": True}
    tw.to_zarr(out, store, **options)
    before, calls = dict(store._store_dict), fn.calls
    tw.to_zarr(out, store, **options)
    assert fn.calls == calls
    assert {k: v.to_bytes() for k, v in store._store_dict.items()} == {
        k: v.to_bytes() for k, v in before.items()
    }
    for other in ({"levels": 2}, {"pyramid": "max"}, {"meta": tw.ImageMeta("yx", scale=(2, 2))}):
        with pytest.raises(tw.TilingError, match=r"other levels, axes or places|changed: level"):
            tw.to_zarr(out, store, **options | other)
    tw.to_zarr(out, store, **options | {"levels": 2, "overwrite": True})
    assert {key[0] for key in store._store_dict if key[0].isdigit()} == {"0", "1"}
    check_pyramid(store, image + 1, (0, 1))


@pytest.mark.parametrize("blocks", [16, 32, 64])
@pytest.mark.parametrize("lost", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
def test_what_is_lost_is_made_again_from_what_is_there(blocks, lost):
    image, fn = image_of((128, 128)), Counted()
    out = tw.tiled_map(fn, image, 16, 0, dtype="u2", chunks=blocks)
    store = zarr.storage.MemoryStore()
    options = {"chunks": 16, "progress": False, "version": "1", "ome": True, "levels": 4}
    tw.to_zarr(out, store, **options)
    for k in lost:
        array = zarr.open_array(store, path=str(k))
        ledger = Ledger(array)
        keep = ledger.read()
        keep.flat[: keep.size // 2] = False
        ledger.reset(keep)
        array[: array.shape[0] // 2] = 7  # whatever was left there
    calls = fn.calls
    tw.to_zarr(out, store, **options)
    assert fn.calls - calls == (32 if 0 in lost else 0)
    check_pyramid(store, image + 1, (0, 1))
    assert tw.status(store).complete


SCRIPT = """
    import sys, time
    import numpy as np, tilework as tw
    def fn(crop):
        time.sleep(0.01)
        return crop + crop.dtype.type(1)
    image = np.random.default_rng(0).integers(0, 65535, (256, 256), np.uint16)
    out = tw.tiled_map(fn, image, 32, 4, dtype="u2", chunks=64)
    tw.to_zarr(out, sys.argv[1], ome=True, chunks=16, progress=False, version="1")
    print("whole")
"""


@pytest.mark.sample(0)
@pytest.mark.parametrize("wait", [0.15, 0.3, 0.5])
def test_killed_and_resumed_it_is_the_same_image(tmp_path, wait):
    code = textwrap.dedent(SCRIPT)
    for attempt in itertools.count():
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "a.ome.zarr")], stdout=subprocess.PIPE
        )
        if attempt < 3:
            while not (tmp_path / "a.ome.zarr" / "0" / "c").exists() and run.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
            run.kill()
        said, _ = run.communicate()
        if b"whole" in said:
            break
        assert attempt < 6
    image = np.random.default_rng(0).integers(0, 65535, (256, 256), np.uint16)
    check_pyramid(tmp_path / "a.ome.zarr", image + np.uint16(1), (0, 1))
    assert tw.status(tmp_path / "a.ome.zarr").complete


@pytest.mark.sample(2, whole=3)
@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
@pytest.mark.parametrize("compute", [True, False])
def test_every_scheduler_writes_the_same_image(tmp_path, scheduler, compute):
    image = image_of((96, 80))
    path = tmp_path / "in.zarr"
    zarr.create_array(path, shape=image.shape, chunks=(16, 16), dtype="u2")[...] = image
    out = tw.tiled_map(add_one, path, 16, 0, dtype="u2", chunks=32)
    options = {"ome": True, "chunks": 16, "levels": 4}
    if compute:
        tw.to_zarr(out, tmp_path / "a.ome.zarr", scheduler=scheduler, progress=False, **options)
    else:
        tw.to_zarr(out, tmp_path / "a.ome.zarr", compute=False, **options).compute(scheduler=scheduler)
    check_pyramid(tmp_path / "a.ome.zarr", image + 1, (0, 1))


@pytest.mark.distributed
def test_a_cluster_writes_the_same_image(tmp_path, client):
    image = image_of((96, 80))
    path = tmp_path / "in.zarr"
    zarr.create_array(path, shape=image.shape, chunks=(16, 16), dtype="u2")[...] = image
    out = tw.tiled_map(add_one, path, 16, 0, dtype="u2", chunks=32)
    tw.to_zarr(out, tmp_path / "a.ome.zarr", client=client, progress=False, ome=True, chunks=16, levels=4)
    check_pyramid(tmp_path / "a.ome.zarr", image + 1, (0, 1))


def test_a_failing_tile_leaves_its_units_of_all_levels_undone_until_it_succeeds():
    image, broken = image_of((128, 128)), [True]

    def fn(crop, tile):
        if broken[0] and tile.index == 5:
            raise ValueError("broken")
        return crop + 1

    out = tw.tiled_map(fn, image, 16, 0, dtype="u2", chunks=32, pass_tile=True)
    store = zarr.storage.MemoryStore()
    options = {"ome": True, "chunks": 16, "levels": 4, "progress": False, "version": "1"}
    with pytest.warns(tw.TilingWarning, match="1 tiles failed"):
        tw.to_zarr(out, store, on_error="fill", **options)
    assert [s.units - s.done for s in tw.status(store)] == [1, 1, 1, 1]
    broken[0] = False
    tw.to_zarr(out, store, **options)
    check_pyramid(store, image + 1, (0, 1))
    assert tw.status(store).complete


def test_another_mask_makes_the_levels_above_again():
    image = image_of((128, 128))
    store = zarr.storage.MemoryStore()
    options = {"ome": True, "chunks": 16, "levels": 3, "progress": False}
    mask = np.ones((4, 4), bool)
    mask[0, 0] = False
    for runs in (mask, np.ones((4, 4), bool)):
        out = tw.tiled_map(add_one, image, 16, 0, dtype="u2", chunks=32, mask=runs)
        tw.to_zarr(out, store, **options)
        check_pyramid(store, out.compute(), (0, 1))


def test_several_outputs_are_several_images():
    image = image_of((64, 64))
    outs = tw.tiled_map(
        lambda c: {"a": c + 1, "b": np.stack([c, c]).astype("f4")}, image, 16, 0, chunks=32,
        output={"a": tw.Output("u2"), "b": tw.Output("f4", channels=2, channel_names=["u", "v"])},
    )  # fmt: skip
    store = zarr.storage.MemoryStore()
    group = tw.to_zarr(outs, store, ome=True, levels=3, chunks={"a": 8, "b": (1, 8, 8)}, progress=False)
    assert isinstance(group, zarr.Group)
    check_pyramid(store, image + 1, (0, 1), path="a")
    check_pyramid(store, np.stack([image, image]).astype("f4"), (1, 2), path="b")


def test_any_dask_array_is_written_as_an_image():
    image = image_of((70, 90))
    array = da.from_array(image, chunks=(32, 32)) + 1
    store = zarr.storage.MemoryStore()
    found = tw.to_zarr(array, store, ome=True, chunks=8, progress=False)
    arrays, _ = check_pyramid(store, image + 1, (0, 1))
    assert found.shape == (70, 90)
    assert len(arrays) == 4
    volume = da.from_array(image_of((8, 16, 16)), chunks=8)
    with pytest.raises(tw.TilingError, match="axes of the result"):
        tw.to_zarr(volume, {}, ome=True)
    tw.to_zarr(volume, store, path="v", ome=True, meta=tw.ImageMeta("zyx"), progress=False, levels=2)
    check_pyramid(store, volume.compute(), (0, 1, 2), path="v")


def test_many_images_get_their_levels():
    stores = [zarr.storage.MemoryStore() for _ in range(3)]
    images = [image_of((64, 64), seed=k) for k in range(3)]
    jobs = (
        (tw.tiled_map(add_one, i, 16, 0, dtype="u2", chunks=16), s)
        for i, s in zip(images, stores, strict=True)
    )
    report = tw.write_many(jobs, ome=True, levels=3, chunks=16, progress=False)
    assert all(outcome.ok for outcome in report), report
    for image, store in zip(images, stores, strict=True):
        check_pyramid(store, image + 1, (0, 1))
        assert tw.status(store).complete


# -- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_added_to_an_image_and_nothing_else_changes(tmp_path, version):
    store = tmp_path / "a.ome.zarr"
    meta = tw.ImageMeta(
        "cyx", units="micrometer", scale=(1, 0.5, 0.5), translation=(0, 3, 4), channel_names=["n", "m"]
    )
    image = image_of((2, 64, 64))
    tw.to_zarr(
        tw.tiled_map(add_one, image, 16, 0, axes="yx", each="c", dtype="u2", meta=meta), store, ome=version,
        progress=False, attributes={"mine": 1},
    )  # fmt: skip
    files = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    source = zarr.open_array(store / "0")
    for name in ("cells", "nuclei"):
        labels = tw.tiled_map(
            lambda c: (c[0] > 9).astype("u1"),
            source,
            (16, 16),
            0,
            axes=(1, 2),
            output=tw.Output("u1", channels=0),
        )
        tw.to_zarr(labels, store, label_name=name, progress=False)
    assert all(p.read_bytes() == data for p, data in files.items())
    group = zarr.open_group(store / "labels")
    assert read_group(dict(group.attrs), "").labels == ("cells", "nuclei")
    arrays, found = check_pyramid(
        store, (image[0] + 1 > 9).astype("u1"), (0, 1), "nearest", path="labels/nuclei"
    )
    assert found.version == version
    assert found.label is not None
    assert (found.axes, found.levels[0].scale, found.levels[0].translation) == (
        ("y", "x"),
        (0.5, 0.5),
        (3, 4),
    )
    assert arrays[0].metadata.zarr_format == (2 if version == "0.4" else 3)
    with pytest.raises(tw.TilingError, match="whole numbers"):
        tw.to_zarr(tw.tiled_map(np.sqrt, image[0], 16, 0), store, label_name="floats", progress=False)
    with pytest.raises(tw.TilingError, match="average"):
        tw.to_zarr(labels, store, label_name="means", pyramid="mean", progress=False)


def test_an_image_of_others_is_not_overwritten(tmp_path):
    theirs = zarr.open_group(tmp_path / "a.zarr", mode="w")
    theirs.create_array("s0", shape=(8, 8), dtype="u1")[...] = 1
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    place = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": "s0", "coordinateTransformations": place}]
    theirs.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    out = tw.tiled_map(add_one, image_of((32, 32)), 16, 0, dtype="u2")
    for overwrite in (False, True):
        with pytest.raises(tw.TilingError, match="another OME-Zarr image"):
            tw.to_zarr(out, tmp_path / "a.zarr", ome=True, overwrite=overwrite, progress=False)
    assert sorted(p.name for p in (tmp_path / "a.zarr").iterdir()) == ["s0", "zarr.json"]


def test_metadata_are_there_before_the_first_block(tmp_path):
    seen = []

    def fn(crop):
        seen.append(len(levels(tmp_path / "a.ome.zarr")[0]))
        return crop + 1

    out = tw.tiled_map(fn, image_of((64, 64)), 16, 0, dtype="u2")
    with dask.config.set(scheduler="synchronous"):
        tw.to_zarr(out, tmp_path / "a.ome.zarr", ome=True, levels=3, progress=False, version="1")
    assert set(seen) == {3}
    assert Path(tmp_path / "a.ome.zarr" / "zarr.json").exists()


def test_explain_says_how_an_image_would_be_written():
    image = zarr.create_array({}, shape=(8000, 6000), chunks=(256, 256), dtype="u2")
    out = tw.tiled_map(add_one, image, 288, 16, dtype="u2")
    said = tw.explain(out, writing={"ome": True, "levels": 6})
    rows = dict(said.rows)
    assert rows["units"] == f"{32 * 24}, chunks of (256, 256)"
    assert rows["levels"].startswith("5 coarser, by mean: 4000x3000 > 2000x1500")
    assert "made from the blocks in memory" in said
    assert "from parts of several blocks" in said
    assert int(rows["calls"].split()[0]) == 32 * 24
    assert "label" not in said
    assert dict(tw.explain(out, writing={"label_name": "cells"}).rows)["levels"].startswith("4 coarser")
    with pytest.raises(tw.TilingError, match="no result to be written"):
        tw.explain(tw.plan_tiles((64, 64), 8, 0), writing={})
    with pytest.raises(TypeError, match="writing"):
        tw.explain(out, writing="ome")


def test_blocks_are_chosen_for_levels_in_memory_and_every_tile_runs_once():
    image, fn = image_of((700, 600)), Counted()
    out = tw.tiled_map(fn, image, 40, 4, dtype="u2")
    store = Counting()
    tw.to_zarr(out, store, ome=True, chunks=64, levels=3, progress=False, version="1")
    assert fn.calls == len(tw.plan_tiles((700, 600), 40, 4))
    assert not [key for key in store.gets if key.startswith("0/c/")]
    check_pyramid(store, image + 1, (0, 1))


def test_default_chunks_are_those_of_the_source_or_about_a_megabyte():
    for source, expected in ((None, (512, 512)), ((300, 400), (300, 400)), ((40, 40), (512, 512))):
        image = image_of((1024, 1200))
        if source is not None:
            stored = zarr.create_array({}, shape=image.shape, chunks=source, dtype="u2")
            stored[...] = image
            image = stored
        store = zarr.storage.MemoryStore()
        out = tw.tiled_map(add_one, image, 128, 8, dtype="u2")
        assert tw.to_zarr(out, store, ome=True, progress=False).chunks == expected
    volume = tw.tiled_map(
        add_one, image_of((2, 2, 8, 70, 70)), 8, 0, axes=(2, 3, 4), each=(0, 1), dtype="u2",
        meta=tw.ImageMeta("tczyx"),
    )  # fmt: skip
    assert tw.to_zarr(volume, {}, ome=True, progress=False).chunks == (1, 1, 8, 64, 64)
