"""`sample_crops`: every place alike, only where the mask says, and the same for a seed."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import tilework as tw
from tests.store_counts import counted
from tilework.errors import GridError, TilingError

QUIET = {"progress": False}


def cut(image, start, shape):
    return image[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]


def is_uniform(counts, n):
    """Return whether counts of equally likely places are within six deviations of their mean."""
    mean = n / len(counts)
    return np.abs(np.array(counts) - mean).max() < 6 * mean**0.5


# ----------------------------------------------------------------------------------------------- laws


@given(data=st.data())
def test_crops_are_those_of_their_positions_and_lie_in_the_mask(data):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    image = np.arange(np.prod(shape)).reshape(shape)
    warnings.simplefilter("ignore", tw.TilingWarning)  # that the mask is False everywhere
    crop = tuple(data.draw(st.integers(1, n)) for n in shape)
    # At one resolution, so that it cannot look transposed.
    k = data.draw(st.sampled_from([1, 2]))
    mask = data.draw(st.none() | npst.arrays(bool, tuple(max(1, n // k) for n in shape)))
    fits = np.ones(shape, bool)
    if mask is not None:
        fits = mask
        for axis, n in enumerate(shape):
            fits = fits.take(np.arange(n) * mask.shape[axis] // n, axis=axis)
    middle = tuple(slice(c // 2, c // 2 + n - c + 1) for n, c in zip(shape, crop, strict=True))
    allowed = {tuple(map(int, p)) for p in np.argwhere(fits[middle])}
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    how = {"where": mask, "seed": data.draw(st.integers(0, 9)), **QUIET}
    try:
        crops, starts = tw.sample_crops(da.from_array(image, chunks), 7, crop, positions=True, **how)
    except GridError:
        assume(False)
    except TilingError:
        assert not allowed
        return
    assert allowed
    for one, start in zip(crops, starts.tolist(), strict=True):
        assert tuple(start) in allowed
        assert np.array_equal(one, cut(image, start, crop))
    assert np.array_equal(crops, tw.sample_crops(image, 7, crop, **how))


@pytest.mark.parametrize("masked", [False, True])
def test_every_place_is_equally_likely(masked):
    """A place below a mask sample that covers more of the image is no less likely than others."""
    image = np.zeros((11, 13), "u1")
    mask = np.random.default_rng(0).random((5, 6)) > 0.4
    n = 40000
    _, starts = tw.sample_crops(image, n, (3, 4), where=mask if masked else None, positions=True, **QUIET)
    places, counts = np.unique(starts, axis=0, return_counts=True)
    fits = np.ones(image.shape, bool)
    if masked:
        fits = mask[np.arange(11) * 5 // 11][:, np.arange(13) * 6 // 13]
    assert len(places) == fits[1:10, 2:12].sum()
    assert is_uniform(counts, n)


@pytest.mark.sample(0)
def test_every_index_is_equally_likely():
    image = np.zeros((4, 9, 9), "u1")
    mask = np.zeros((9, 9), bool)
    mask[4, 4:6] = True
    for where in (mask, np.broadcast_to(mask, image.shape)):
        crops, starts = tw.sample_crops(image, 9000, 3, each=0, where=where, positions=True, **QUIET)
        assert crops.shape == (9000, 3, 3)
        places, counts = np.unique(starts, axis=0, return_counts=True)
        assert len(places) == 8
        assert is_uniform(counts, 9000)


# ------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("lazy", [False, True])
def test_untiled_axes_without_samples(lazy):
    image = da.zeros((0, 30)) if lazy else np.zeros((0, 30))
    assert tw.sample_crops(image, 3, 8, axes=1, progress=False).shape == (3, 0, 8)


def test_untiled_axes_are_whole():
    image = np.arange(3 * 20 * 30).reshape(20, 30, 3)
    crops, starts = tw.sample_crops(image, 4, 5, axes=(0, 1), positions=True, **QUIET)
    assert crops.shape == (4, 5, 5, 3)
    assert starts[:, 2].tolist() == [0] * 4
    named = xr.DataArray(image, dims=("y", "x", "c"))
    by_name = tw.sample_crops(named, 4, {"x": 5, "y": 5}, **QUIET)
    assert np.array_equal(by_name, crops)


def twice_as_long(crop):
    return crop.repeat(2, 0).repeat(2, 1)


SMOOTH = np.random.default_rng(5).random((120, 90)).astype("f4")
LABELS = ((np.arange(120)[:, None] // 5 % 2) * (np.arange(90) // 4 % 2)).astype("i8")
LABELS *= np.arange(1, LABELS.size + 1).reshape(LABELS.shape)
BLEND = {"crop": 16, "overlap": 4, "blend": "gaussian", "chunks": 32, "dtype": "f4"}
# Options of tiled_map, and most calls for each crop.
RESULTS = {
    "trim": ({"crop": 16, "overlap": 2, "chunks": 48, "dtype": "f4"}, 4),
    "share": (BLEND | {"reuse": "share"}, 9),
    "recompute": (BLEND | {"reuse": "recompute"}, 16),
    "clip": (BLEND | {"edge": "clip"}, 16),
    "squeeze": (BLEND | {"edge": "squeeze"}, 16),
    "max": (BLEND | {"blend": "max", "rim": 1}, 16),
    "some tiles": (BLEND | {"mask": np.arange(120)[:, None] // 30 % 2 > np.arange(90) // 60}, 16),
    "drop": (BLEND | {"edge": "drop", "blend": "trim"}, 9),
    "batches": (BLEND | {"batch_size": 4}, 16),
    "scale": (
        BLEND | {"output": tw.Output("f4", scale=2), "dtype": None, "fn": twice_as_long},
        16,
    ),
    "each": ({"crop": 40, "overlap": 0, "each": 0, "axes": 1, "dtype": "f4"}, 5 * 3),
    "channels": (
        BLEND | {"output": tw.Output("f4", channels=2), "dtype": None, "fn": lambda x: np.stack([x, -x])}, 16
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_only_the_tiles_below_crops_of_a_result_run(name):
    options, most = RESULTS[name]
    options = {"fn": np.sin} | options
    ran = []

    def fn(crop, inner=options["fn"]):
        ran.append(len(crop) if "batch_size" in options else 1)
        return inner(crop)

    out = tw.tiled_map(array=SMOOTH, **options | {"fn": fn})
    whole, sampled = out.compute(scheduler="sync"), {"scheduler": "sync", "positions": True, **QUIET}
    every = sum(ran)
    ran.clear()
    where = {"axes": (0, 1)} if out.ndim < 3 else {"axes": (1, 2)}
    crops, starts = tw.sample_crops(out, 3, 5, **where, **sampled)
    assert sum(ran) <= min(3 * most, every)
    assert name == "each" or sum(ran) < every
    shape = (5, 5) if out.ndim < 3 else (2, 5, 5)
    np.testing.assert_array_equal(crops, [cut(whole, start, shape) for start in starts.tolist()])
    named = xr.DataArray(out, dims=("c", "y", "x")[-out.ndim :])
    np.testing.assert_array_equal(tw.sample_crops(named, 3, {"y": 5, "x": 5}, **QUIET), crops)


class Endless:
    """10**12 samples and more, which say where they are."""

    dtype, ndim = np.dtype("i8"), 2

    def __init__(self, n):
        self.shape = (n, n)

    def __getitem__(self, box):
        rows, columns = (np.arange(s.start, s.stop) for s in box)
        return rows[:, None] * self.shape[1] + columns


@pytest.mark.parametrize("masked", [False, True])
def test_a_crop_of_a_huge_result_runs_a_few_tiles(masked):
    """Beyond 2**24 tiles, all tiles of blocks ran, 16000 here."""
    ran, n = [], 2 * 10**6

    def fn(crop):
        ran.append(crop.shape)
        return crop + 1

    mask = np.ones((1, 2), bool) if masked else None
    out = tw.tiled_map(fn, Endless(n), 64, 4, dtype="i8", mask=mask)
    crops, starts = tw.sample_crops(out, 3, 32, positions=True, **QUIET)
    assert 3 <= len(ran) <= 12
    assert (crops[:, 0, 0] == starts @ [n, 1] + 1).all()
    assert (crops[:, -1, -1] == (starts + 31) @ [n, 1] + 1).all()


@pytest.mark.sample(0)
def test_many_crops_of_a_volume_run_a_few_tiles_each():
    """Between the ends of 300 crops are 600 ** 3 parts, which are more than the tiles."""
    ran = []

    def fn(crop):
        ran.append(crop.shape)
        return crop + 1

    out = tw.tiled_map(fn, np.zeros((800, 800, 800), "u1"), 8, 1, dtype="u1", chunks=400)
    assert (tw.sample_crops(out, 300, 2, **QUIET) == 1).all()
    assert len(ran) <= 300 * 8


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
def test_crops_of_one_of_several_outputs_and_of_labels():
    outputs = {"a": tw.Output("f4"), "b": tw.Output("f4")}
    pair = tw.tiled_map(lambda x: {"a": x, "b": -x}, SMOOTH, 16, 2, output=outputs, chunks=48)
    labels = [
        tw.tiled_map(lambda x: x, LABELS, 24, 6, output=tw.Output("i8", labels=kind), chunks=48)
        for kind in ("own", "join")
    ]
    for out in (*pair.values(), *labels):
        crops, starts = tw.sample_crops(out, 9, (7, 6), positions=True, **QUIET)
        whole = out.compute(scheduler="sync")
        np.testing.assert_array_equal(crops, [cut(whole, start, (7, 6)) for start in starts.tolist()])


def test_a_mask_of_one_channel_is_that_of_a_crop():
    image = np.random.default_rng(0).random((3, 20, 20))
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 10, 10] = True
    crops = tw.sample_crops(image, 2, 5, axes=(1, 2), where=mask, **QUIET)
    assert np.array_equal(crops[0], image[:, 8:13, 8:13])


def test_few_chunks_are_read_and_none_twice_for_crops_inside(tmp_path):
    array = zarr.create_array(
        tmp_path / "x.zarr", data=np.random.default_rng(0).random((400, 400)), chunks=(40, 40)
    )
    with counted(array) as counts:
        tw.sample_crops(array, 6, 8, **QUIET)
    assert sum(counts.reads.values()) <= 6 * 4
    with counted(array) as counts:
        tw.sample_crops(array, 400, 1, **QUIET)
    assert set(counts.reads.values()) == {1}


def test_schedulers_and_sources_give_the_same_crops(scheduler, tmp_path):
    image = np.random.default_rng(0).random((60, 50))
    mask = image > 0.5
    expected = tw.sample_crops(image, 9, 7, where=mask, seed=3, scheduler="synchronous", **QUIET)
    stored = zarr.create_array(tmp_path / "x.zarr", data=image, chunks=(16, 16))
    for array in (image, stored, da.from_zarr(stored), str(tmp_path / "x.zarr")):
        found = tw.sample_crops(array, 9, 7, where=mask, seed=3, **QUIET)
        assert np.array_equal(found, expected)
    assert not np.array_equal(expected, tw.sample_crops(image, 9, 7, where=mask, seed=4, **QUIET))


# ------------------------------------------------------------------------------------------- refused


def test_what_cannot_be_drawn():
    image = np.zeros((20, 30))
    with pytest.raises(GridError, match="axis 0 of the image is 20 long; got crop 25"):
        tw.sample_crops(image, 1, (25, 5), **QUIET)
    with pytest.raises(TilingError, match="n must be"):
        tw.sample_crops(image, 0, 5, **QUIET)
    border = np.zeros((20, 30), bool)
    border[0] = True
    with pytest.raises(TilingError, match="no crop inside the image has its middle"):
        tw.sample_crops(image, 1, 5, where=border, **QUIET)
    with pytest.raises(TypeError, match=r"one image; got 2 in a list. Draw from each"):
        tw.sample_crops([image, image], 3, 8)
    with pytest.raises(TypeError, match="masked arrays"):
        tw.sample_crops(np.ma.masked_equal(image, 0), 1, 5, **QUIET)
