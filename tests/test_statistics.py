"""`image_statistics`: every source, what is refused, samples of chunks, levels, and text."""

from __future__ import annotations

import math
import tracemalloc
from decimal import Decimal
from fractions import Fraction

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

import tilework as tw
from tests.store_counts import counted
from tilework.errors import ContractError, GridError, TilingError
from tilework.statistics import counting, measuring, passes
from tilework.statistics.counting import Counts, Target

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 100, (3, 60, 50)).astype("f4")
    values[0, :5] = np.nan
    return values


def opened(image, kind, folder):
    """Return an image as one kind of source, and the name of its first axis."""
    match kind:
        case "numpy":
            return image
        case "list":
            return [image[:, :20], image[:, 20:]]
        case "memmap":
            np.save(folder / "x.npy", image)
            return np.load(folder / "x.npy", mmap_mode="r")
        case "path":
            zarr.create_array(folder / "x.zarr", data=image, chunks=(1, 20, 20))
            return str(folder / "x.zarr")
        case "sharded":
            return zarr.create_array(
                zarr.storage.MemoryStore(), data=image, chunks=(1, 10, 10), shards=(1, 20, 20)
            )
        case "h5py":
            return h5py.File(folder / "x.h5", "w").create_dataset("x", data=image, chunks=(2, 16, 16))
        case "dask":
            return da.from_array(image, chunks=(2, 16, 17)) + np.float32(0)
        case "xarray":
            return xr.DataArray(image, dims=("c", "y", "x"))
        case "load_once":
            return tw.load_once(lambda: image)
        case "lazy":
            return tw.tiled_map(np.positive, image, crop=20, overlap=2, axes=(1, 2), dtype="f4")


KINDS = ("numpy", "list", "memmap", "path", "sharded", "h5py", "dask", "xarray", "load_once", "lazy")


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:the image is a lazy result")
def test_every_source(kind, passes, image, tmp_path, monkeypatch):
    if passes > 1:  # as of an image that is not small
        monkeypatch.setattr(measuring, "GATHER", 100)
    found = tw.image_statistics(opened(image, kind, tmp_path), each=0, **QUIET)
    for k, plane in enumerate(image):
        values = plane[np.isfinite(plane)]
        assert found.count[k] == values.size
        assert found.n_nan[k] == plane.size - values.size
        for q, of_all in found.quantiles.items():
            assert of_all[k] == np.quantile(values, q, method="inverted_cdf")
        assert found.mean[k] == pytest.approx(values.mean(dtype="f8"), rel=1e-14)


@pytest.mark.parametrize("kind", ["numpy", "memmap", "path", "dask", "load_once"])
def test_every_scheduler(kind, image, tmp_path, scheduler):
    expected = tw.image_statistics(image, scheduler="synchronous", **QUIET)
    assert tw.image_statistics(opened(image, kind, tmp_path), **QUIET) == expected


def test_names_of_axes(image):
    found = tw.image_statistics(xr.DataArray(image, dims=("c", "y", "x")), each="c", **QUIET)
    assert (found.each, found.axes, found.ndim) == (("c",), (0,), 3)
    assert "of each index of axis c" in repr(found)
    assert found.at(1).mean == found.mean[1] == found.at(-2).mean
    with pytest.raises(TilingError, match=r"index must be one of \(3,\)"):
        found.at(3)


# ------------------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize(
    "q",
    [0.07, np.float32(0.07), Fraction(7, 100), Decimal("0.07"), np.float64(0.07)],
    ids=lambda q: type(q).__name__,
)
def test_a_quantile_is_a_decimal_fraction(q):
    """In floats, 0.07 * 100 is more than 7."""
    found = tw.image_statistics(np.arange(1, 101), [q], **QUIET)
    assert found.quantiles == {0.07: 7}


def test_the_ends_are_quantiles_too():
    found = tw.image_statistics(np.arange(10.0), [0, 1], **QUIET)
    assert found.quantiles == {0: 0, 1: 9}


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (0.5, TypeError, "must be a sequence"),
        ("0.5", TypeError, "must be a sequence"),
        (["a"], TypeError, "from 0 to 1"),
        ([True], TypeError, "from 0 to 1"),
        ([99], TilingError, "Divide percent by 100"),
        ([math.nan], TilingError, "from 0 to 1"),
        ([Decimal("nan")], TilingError, "from 0 to 1"),
        ([np.complex64(0.5)], TypeError, "from 0 to 1"),
        ([0.6666666666666666, Fraction(2, 3)], TilingError, "one number as floats"),
    ],
    ids=repr,
)
def test_wrong_quantiles(given, error, says):
    with pytest.raises(error, match=says):
        tw.image_statistics(np.arange(4), given, **QUIET)


def test_without_quantiles_one_pass_is_enough(tmp_path):
    array = zarr.create_array(
        tmp_path / "x.zarr", data=np.random.default_rng(0).random((700, 700)), chunks=(100, 100)
    )
    with counted(array) as counts:
        found = tw.image_statistics(array, (), **QUIET)
    assert set(counts.reads.values()) == {1}
    assert found.quantiles == {}


@pytest.mark.parametrize(("dtype", "passes"), [("u1", 1), ("u2", 1), ("f2", 1), ("f4", 2), ("f8", 2)])
def test_passes_over_a_large_image(dtype, passes, tmp_path):
    data = (np.random.default_rng(0).random((700, 700)) * 200).astype(dtype)
    array = zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(100, 100))
    with counted(array) as counts:
        tw.image_statistics(array, **QUIET)
    assert set(counts.reads.values()) == {passes}


def test_a_shard_is_read_at_once(tmp_path, monkeypatch):
    data = np.random.default_rng(0).integers(0, 99, (300, 300)).astype("u2")
    array = zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(10, 10), shards=(30, 60))
    monkeypatch.setattr(measuring, "MOST_SAMPLES", 4000)
    with counted(array) as counts:
        found = tw.image_statistics(array, **QUIET)
    assert len(counts.reads) == 50
    assert set(counts.reads.values()) == {1}
    assert found == tw.image_statistics(data, **QUIET)


@pytest.mark.parametrize("few", [0, 99])
@pytest.mark.parametrize("dtype", ["u4", "i4", "f4", "u8", "f8"])
def test_samples_at_the_ends_of_a_prefix(dtype, few, monkeypatch):
    """All following bits are 0, or all are 1."""
    monkeypatch.setattr(measuring, "GATHER", 0)
    monkeypatch.setattr(counting, "FEW", few)
    size = np.dtype(dtype).itemsize
    first = 0x3F80 << (8 * size - 16)
    bits = [first - 1, first, first + (1 << (8 * size - 16)) - 1, first + (1 << (8 * size - 16))]
    image = np.array(bits, f"u{size}").view(dtype)
    found = tw.image_statistics(np.repeat(image, 5), (0.25, 0.5, 0.75, 1), **QUIET)
    assert list(found.quantiles.values()) == image.tolist()


# ------------------------------------------------------------------------------------- valid samples


def test_masks_of_every_kind(image, tmp_path):
    mask = image[1] > 100
    expected = tw.image_statistics(image[:, mask], each=0, **QUIET).to_json()
    zarr.create_array(tmp_path / "m.zarr", data=mask, chunks=(7, 50))
    named = xr.DataArray(image, dims=("c", "y", "x"))
    for array, where in (
        (image, mask),
        (image, np.broadcast_to(mask, image.shape)),
        (da.from_array(image, chunks=(1, 11, 50)), da.from_array(mask, chunks=(60, 9))),
        (image, str(tmp_path / "m.zarr")),
        (named, xr.DataArray(mask.T, dims=("x", "y"))),
    ):
        found = tw.image_statistics(array, each=0, where=where, **QUIET).to_json()
        assert found.replace('"c"', "0").replace('"ndim": 3', '"ndim": 2') == expected


def test_a_coarse_mask(image):
    mask = np.zeros((6, 5), bool)
    mask[2:, 3] = True
    found = tw.image_statistics(image[1], where=mask, **QUIET)
    assert found == tw.image_statistics(image[1, 20:, 30:40], **QUIET)


def test_positions_without_data_in_all_channels(monkeypatch):
    """A black pixel has no data; a pixel without red has."""
    rgb = np.array([[[0, 0], [0, 5]], [[0, 7], [0, 5]], [[0, 7], [0, 5]]], "u1")
    found = tw.image_statistics(rgb, axes=(1, 2), nodata=0, **QUIET)
    assert (found.count, found.min) == (6, 0)
    assert tw.image_statistics(rgb, nodata=0, **QUIET).count == 5
    chunked = da.from_array(rgb, chunks=1)
    monkeypatch.setattr(measuring, "MOST_SAMPLES", 1)
    assert tw.image_statistics(chunked, axes=(1, 2), nodata=0, **QUIET) == found


def test_masked_arrays(image):
    masked = np.ma.masked_less(image, 100)
    assert tw.image_statistics(masked, **QUIET).min >= 100
    found = tw.image_statistics(da.from_array(masked, chunks=(1, 20, 50)), **QUIET)
    assert found.to_json() == tw.image_statistics(masked, **QUIET).to_json()


def test_the_nodata_of_an_image():
    array = xr.DataArray(np.array([[1, -9, 3]]), dims=("y", "x"), attrs={"_FillValue": -9})
    assert tw.image_statistics(array, nodata=True, **QUIET).min == 1
    with pytest.raises(TilingError, match="it says none"):
        tw.image_statistics(np.zeros((2, 2)), nodata=True, **QUIET)


def test_a_list_of_images_needs_a_list_of_masks(image):
    parts, masks = [image[0], image[1, :30]], [image[0] > 100, image[1, :30] > 100]
    found = tw.image_statistics(parts, where=masks, **QUIET)
    assert found.min > 100
    with pytest.raises(TilingError, match="one mask for each of the 2 arrays"):
        tw.image_statistics(parts, where=masks[0], **QUIET)


# ------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("array", "error", "says"),
    [
        (np.zeros(3, complex), TilingError, r"abs\(array\)"),
        (np.zeros(3, "M8[s]"), TilingError, r'view\("int64"\)'),
        (np.zeros(3, "U2"), TilingError, "dtype <U2"),
        (np.zeros(3, np.longdouble), TilingError, "Convert it to float64"),
        ([np.zeros(3), np.zeros(3, "f4")], TilingError, "one dtype; got float64 and float32"),
        ([], TypeError, "at least one"),
        ([1, 2], TypeError, "must have shape"),
    ],
    ids=range(7),
)
def test_what_cannot_be_measured(array, error, says):
    with pytest.raises(error, match=says):
        tw.image_statistics(array, **QUIET)


def test_arrays_that_do_not_belong_together(image):
    with pytest.raises(GridError, match=r"\(3,\) and \(2,\)"):
        tw.image_statistics([image, image[:2]], each=0, **QUIET)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
@pytest.mark.parametrize("dtype", ["u1", "f4", "i8"])
def test_images_without_samples(shape, dtype):
    found = tw.image_statistics(np.zeros(shape, dtype), **QUIET)
    assert found.count == 0
    assert math.isnan(found.mean)
    assert found == tw.ImageStatistics.from_json(found.to_json())
    repr(found)


def test_channels_without_finite_samples():
    image = np.array([[1.0, 2.0], [np.nan, np.inf]], "f4")
    found = tw.image_statistics(image, each=0, **QUIET)
    assert found.count.tolist() == [2, 0]
    assert (found.n_nan.tolist(), found.n_inf.tolist()) == ([0, 1], [0, 1])
    assert np.isnan(found.min[1]) and np.isnan(found.std[1])  # noqa: PT018
    assert found == tw.ImageStatistics.from_json(found.to_json())


# ------------------------------------------------------------------------------------- many channels


def test_many_channels_are_counted_in_groups(tmp_path, monkeypatch):
    data = np.random.default_rng(0).integers(0, 60000, (150, 8, 8)).astype("u2")
    array = zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(10, 8, 8))
    with counted(array) as counts:
        found = tw.image_statistics(array, each=0, **QUIET)
    assert set(counts.reads.values()) == {1}  # chunks of 10 channels are in one group
    assert found.mean == pytest.approx(data.mean((1, 2)))
    monkeypatch.setattr(measuring, "MOST", 4)
    with counted(array) as counts:
        again = tw.image_statistics(array, each=0, **QUIET)
    assert set(counts.reads.values()) == {3}
    assert again == found


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_many_channels_of_few_values_are_counted_together(dtype, tmp_path):
    data = np.random.default_rng(0).integers(0, 200, (3000, 6)).astype(dtype)
    array = zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(1000, 6))
    with counted(array) as counts:
        found = tw.image_statistics(array, (0.5,), each=0, **QUIET)
    assert set(counts.reads.values()) == {1}
    np.testing.assert_array_equal(found.quantiles[0.5], np.sort(data)[:, 2])


def test_memory_does_not_grow_with_the_number_of_channels():
    data = np.random.default_rng(0).integers(0, 60000, (800, 6)).astype("u2")
    tw.image_statistics(data[:2], each=0, **QUIET)
    tracemalloc.start()
    try:
        found = tw.image_statistics(data, (0.5,), each=0, **QUIET)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found.quantiles[0.5], np.sort(data)[:, 2])
    assert peak < 6 * measuring.MOST * measuring.TARGET < len(data) * measuring.TARGET / 2


# ----------------------------------------------------------------------------------- sample and level


def test_a_sample_of_chunks(tmp_path):
    rng = np.random.default_rng(0)
    data = (rng.gamma(2, 100, (2, 400, 400)) + np.linspace(0, 300, 400)[:, None]).astype("f4")
    array = zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(1, 40, 40))
    with counted(array) as counts:
        found = tw.image_statistics(array, each=0, sample=30, seed=1, **QUIET)
    assert len(counts.reads) == 60  # of each channel the same places
    assert found.sampled == (30, 100)
    assert found.count.tolist() == [30 * 1600] * 2
    exact = tw.image_statistics(array, each=0, **QUIET)
    assert {"mean", "std", 0.5, 0.99} <= set(found.intervals)
    for name in found.intervals:
        low, high = found.intervals[name]
        truth = exact.quantiles[name] if name in exact.quantiles else getattr(exact, name)
        assert ((low <= truth) & (truth <= high)).all(), name
        assert (high - low < truth).all()
    assert "30 of 100 chunks" in repr(found)
    assert found == tw.ImageStatistics.from_json(found.to_json())
    assert found == tw.image_statistics(da.from_zarr(array), each=0, sample=30, seed=1, **QUIET)
    other = tw.image_statistics(array, each=0, sample=30, seed=2, **QUIET)
    assert (other.mean != found.mean).all()


def test_intervals_hold_the_truth_in_most_draws():
    """Neighbouring samples are alike, so an interval by the number of samples would be far too narrow."""
    rng = np.random.default_rng(0)
    data = np.kron(rng.integers(0, 200, (30, 30)), np.ones((40, 40))).astype("u1")
    array = da.from_array(data, chunks=40)
    truth = tw.image_statistics(data, **QUIET)
    inside = 0
    for seed in range(12):
        low, high = tw.image_statistics(array, sample=60, seed=seed, **QUIET).intervals["mean"]
        inside += low <= truth.mean <= high
    assert inside >= 9


@pytest.mark.parametrize("power", [700, -700, 1020])
def test_intervals_have_the_scale_of_the_image(power):
    image = np.random.default_rng(0).normal(1, 3, (60, 60))
    plain, scaled = (
        tw.image_statistics(da.from_array(x, chunks=10), sample=20, **QUIET).intervals
        for x in (image, np.ldexp(image, power))
    )
    assert plain.keys() == scaled.keys()
    for name, ends in plain.items():
        np.testing.assert_array_equal(np.ldexp(ends, power), scaled[name])


def test_intervals_at_the_end_of_the_range():
    image = np.full((20, 20), np.finfo("f8").max)
    image[::2] *= -1
    stats = tw.image_statistics(da.from_array(image, chunks=(1, 10)), sample=20, **QUIET)
    assert stats == tw.ImageStatistics.from_json(stats.to_json())
    low, high = stats.intervals["mean"]
    assert low <= stats.mean <= high


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4"])
def test_drawn_chunks_without_valid_samples(dtype):
    image = np.zeros((40, 4), dtype)
    image[:20] = np.arange(80).reshape(20, 4) + 1
    array = da.from_array(image, chunks=(2, 4))
    stats = tw.image_statistics(array, nodata=0, sample=16, **QUIET)
    assert 0 < stats.count < 80
    assert 1 <= stats.quantiles[0.01] <= stats.quantiles[0.5] <= stats.max
    low, high = stats.intervals["mean"]
    assert low <= stats.mean <= high
    nothing = tw.image_statistics(array[20:], nodata=0, sample=8, **QUIET)
    assert (nothing.count, nothing.sampled) == (0, (8, 10))


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "i8"])
def test_chunks_of_a_sample_may_hold_no_valid_sample(dtype):
    data = np.arange(10000).reshape(100, 100).astype(dtype)
    mask = np.zeros((100, 100), bool)
    mask[:50] = True
    array = da.from_array(data, chunks=10)
    found = tw.image_statistics(array, where=mask, each=0, sample=9, **QUIET)
    assert set(found.count[50:].tolist()) == {0}
    assert (found.count[:50] == 90).all()
    part = tw.image_statistics(array, where=mask, sample=40, **QUIET)
    assert 0 < part.count < 4000
    assert {"mean", "std"} <= set(part.intervals)


def test_a_sample_of_all_chunks_is_exact(image):
    found = tw.image_statistics(image, sample=10**6, **QUIET)
    assert (found.sampled, found.intervals) == (None, {})


def test_a_sample_of_an_image_without_chunks():
    found = tw.image_statistics(np.random.default_rng(0).random((600, 600)), sample=3, **QUIET)
    assert found.sampled == (3, 9)


def test_a_level_of_a_pyramid(tmp_path):
    path = tmp_path / "x.ome.zarr"
    data = np.random.default_rng(0).random((256, 256)).astype("f4")
    meta = tw.ImageMeta("yx", types=("space", "space"))
    out = tw.tiled_map(np.positive, data, crop=64, overlap=0, dtype="f4", meta=meta)
    tw.to_zarr(out, path, ome=True, levels=2, progress=False)
    found = tw.image_statistics(path, level=1, **QUIET)
    assert found.count == 128 * 128
    assert found.std < tw.image_statistics(path, **QUIET).std
    assert "1: averaging shrinks extremes" in repr(found)
    assert found == tw.image_statistics(tw.open_image(path), level=1, **QUIET)
    assert found == tw.image_statistics([tw.open_image(path)], level=-1, **QUIET)
    with pytest.raises(TilingError, match="no level 7"):
        tw.image_statistics(path, level=7, **QUIET)
    with pytest.raises(TilingError, match="of an OME-Zarr image"):
        tw.image_statistics(data, level=1, **QUIET)


def test_few_chunks_have_no_intervals():
    """Draws of two chunks would say that the truth lies between them."""
    array = da.from_array(np.arange(10000.0).reshape(100, 100), chunks=20)
    found = tw.image_statistics(array, sample=7, **QUIET)
    assert found.intervals == {}
    assert "too few for intervals" in repr(found)
    # What the other chunks have beyond the outer quantiles, eight cannot tell.
    found = tw.image_statistics(array, sample=8, **QUIET)
    assert set(found.intervals) == {"mean", "std", 0.5}
    assert "(interval unknown)" in repr(found)


# ------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("gather", [True, False])
def test_a_task_that_runs_again_counts_nothing_twice(gather):
    """Its predecessor's counts may still be needed: the scheduler repeats tasks of workers that were lost."""
    targets = [Target(0, gather=gather)]
    before = Counts()
    before.add(np.arange(5, dtype="f4"), 0, targets, first=True)
    for _ in range(2):
        again = before.copy()
        again.add(np.arange(3, dtype="f4"), 0, targets, first=True)
        assert again.tallies[0].count == 8
        found = again.found[targets[0]]
        assert (len(found) if gather else found.sum()) == 8


def test_json_of_another_kind():
    with pytest.raises(TilingError, match="no JSON"):
        tw.ImageStatistics.from_json("{")
    with pytest.raises(TilingError, match="format None"):
        tw.ImageStatistics.from_json("{}")
    with pytest.raises(TilingError, match="missing or changed"):
        tw.ImageStatistics.from_json('{"tilework_statistics": 1}')


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "u8", "f2", "f4", "f8"])
def test_json_keeps_every_bit(dtype):
    rng = np.random.default_rng(0)
    data = (
        rng.integers(0, 2**62, (3, 50)).astype(dtype)
        if dtype[0] in "iu"
        else rng.random((3, 50)).astype(dtype)
    )
    for each in ((), 0):
        found = tw.image_statistics(data, each=each, **QUIET)
        again = tw.ImageStatistics.from_json(found.to_json())
        assert again == found
        assert hash(again) == hash(found)
        assert type(again.min) is type(found.min)
        assert np.array_equal(again.quantiles[0.5], found.quantiles[0.5])


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_every_task_may_run_twice(dtype, monkeypatch):
    image = da.from_array(np.arange(4000).reshape(50, 80).astype(dtype), chunks=(5, 80))
    expected, once = tw.image_statistics(image, **QUIET), passes._step
    monkeypatch.setattr(measuring, "MOST_SAMPLES", 400)
    monkeypatch.setattr(passes, "_step", lambda *given: [once(*given) for _ in range(2)][1])
    assert tw.image_statistics(image, **QUIET) == expected


@pytest.mark.parametrize("chunks", [4, 8])
@pytest.mark.parametrize("declared", ["u1", "f4", "i2"])
def test_blocks_of_another_dtype_than_the_array_are_refused(declared, chunks):
    """Joined with others, they would be converted without a word."""
    lying = da.ones((8, 8), dtype="i4", chunks=chunks).map_blocks(lambda b: b * 300, dtype=declared)
    says = f"are {np.dtype(declared)}, and its blocks are int32"
    with pytest.raises(ContractError, match=says):
        tw.image_statistics(lying, **QUIET)
    with pytest.raises(ContractError, match=says):
        tw.sample_crops(lying, 2, 7, progress=False)
    with pytest.raises(ContractError, match=says):
        tw.tiled_map(np.copy, lying, 6, 1, dtype="f8").compute()


@pytest.mark.parametrize("kind", ["DataArray", "lazy DataArray", "masked", "zarr", "dask"])
def test_large_images_of_every_kind(kind, tmp_path):
    """They take several passes, so that a lazy result of `tiled_map` would be computed again."""
    data = np.random.default_rng(0).normal(size=(400, 400)).astype("f4")
    lazy = da.from_array(data, chunks=100)
    image = {
        "DataArray": lambda: xr.DataArray(data, dims=("y", "x")),
        "lazy DataArray": lambda: xr.DataArray(lazy, dims=("y", "x")),
        "masked": lambda: np.ma.masked_array(data, False),
        "zarr": lambda: zarr.create_array(tmp_path / "x.zarr", data=data, chunks=(100, 100)),
        "dask": lambda: lazy,
    }[kind]()
    assert data.size > measuring.GATHER
    found = tw.image_statistics(image, **QUIET)
    assert found == tw.image_statistics(data, **QUIET)
    assert found.quantiles[0.5] == np.sort(data, axis=None)[data.size // 2 - 1]


def test_progress_counts_boxes():
    seen = []
    tw.image_statistics(np.ones((2000, 2000), "u1"), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 1


def test_moments_are_correct_where_sums_of_floats_are_not():
    data = np.array([1e16, 1.0, -1e16, 1.0] * 1000)
    assert tw.image_statistics(data, (), **QUIET).mean == 0.5
    data = 1e8 + np.random.default_rng(0).random(10000)
    assert tw.image_statistics(data, (), **QUIET).std == pytest.approx((data - 1e8).std(), rel=1e-12)
    huge = np.array([1e300, -1e300])
    assert tw.image_statistics(huge, (), **QUIET).std == 1e300
    tiny = np.array([5e-324, -5e-324])
    assert tw.image_statistics(tiny, (), **QUIET).std == 5e-324
