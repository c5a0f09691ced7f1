"""Q: statistics of an image are those of its samples by definition, however these are stored and read."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage as ndi

import tilework as tw
from tests.store_counts import counted
from tilework.errors import CostWarning
from tilework.statistics import counting, measuring

DTYPES = ("?", "u1", "i1", "u2", "i2", ">i2", "i4", "u4", "i8", "u8", ">u8", "f2", "f4", ">f4", "f8")
QUANTILES = (0, 0.01, 0.07, 0.1, 0.3, 0.5, 0.998, 1)
TINY = {"f2": 6e-8, "f4": 1e-45, "f8": 5e-324}


def defined(values, q):
    """Return the quantile by its definition: a sample of sorted ones, by whole numbers."""
    values = np.sort(values)
    rank = max(1, math.ceil(Fraction(str(q)) * len(values)))
    return values[rank - 1]


def exactly(values):
    """Return mean and squared deviation in rational numbers."""
    exact = [Fraction(v) for v in values.tolist()]
    mean = sum(exact) / len(exact)
    return mean, sum((v - mean) ** 2 for v in exact) / len(exact)


@st.composite
def images(draw, dtypes=DTYPES, most=3):
    """Return arrays whose values are extreme, close to each other, or equal."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=most, max_side=9))
    values = npst.from_dtype(dtype)
    if dtype.kind == "f":
        special = (math.nan, math.inf, -math.inf, -0.0, 0.0, TINY[dtype.str[1:]], -TINY[dtype.str[1:]], 1.5)
        values = st.one_of(values, st.sampled_from(special).map(dtype.type))
    elif dtype.kind in "iu":
        values = st.one_of(values, st.integers(0, 5).map(dtype.type))
    return draw(npst.arrays(dtype, shape, elements=values))


@st.composite
def chunked(draw, image):
    """Return an image as a dask array in any chunks."""
    chunks = tuple(draw(st.integers(1, n)) for n in image.shape)
    return da.from_array(image, chunks=chunks)


@pytest.fixture(params=[True, False], ids=["kept", "counted"], scope="module")
def few(request):
    """Whether few samples are kept in the first pass, or counted in several as those of large images are.

    Counted ones are also read in many boxes.
    """
    before = measuring.GATHER, measuring.MOST_SAMPLES, counting.FEW
    if not request.param:
        measuring.GATHER, measuring.MOST_SAMPLES, counting.FEW = 3, 8, 2
    yield
    measuring.GATHER, measuring.MOST_SAMPLES, counting.FEW = before


def check(found, image):
    """Assert that statistics are those of the samples of an array."""
    native = image.ravel().astype(image.dtype.newbyteorder("="))
    values = native[np.isfinite(native)] if native.dtype.kind == "f" else native
    assert found.count == len(values)
    if native.dtype.kind == "f":
        assert (found.n_nan, found.n_inf) == (np.isnan(native).sum(), np.isinf(native).sum())
    if not len(values):
        assert math.isnan(found.mean)
        assert math.isnan(found.std)
        return
    for q in QUANTILES:
        got = found.quantiles[q]
        assert (got, type(got)) == (defined(values, q), native.dtype.type), q
        assert not np.signbit(got) or got < 0
    assert (found.min, found.max) == (values.min(), values.max())
    mean, variance = exactly(values)
    assert found.mean == float(mean)
    root = Fraction(float(found.std)) ** 2
    assert abs(root - variance) <= variance * Fraction(1, 2**51) or found.std < 1e-320


@given(data=st.data())
def test_q1_quantiles_and_moments_equal_their_definition_in_any_chunks(few, data):
    image = data.draw(images())
    array = data.draw(chunked(image))
    with np.errstate(all="ignore"):
        check(tw.image_statistics(array, QUANTILES, progress=False, scheduler="synchronous"), image)


@given(data=st.data())
def test_q2_several_arrays_are_measured_as_their_concatenation(few, data):
    image = data.draw(images())
    cut = data.draw(st.integers(0, len(image)))
    parts = [part for part in (image[:cut], image[cut:]) if len(part)]
    how = {"quantiles": QUANTILES, "progress": False, "scheduler": "synchronous"}
    whole = tw.image_statistics(image, **how)
    swapped = tw.image_statistics([data.draw(chunked(p)) for p in reversed(parts)], **how)
    assert whole.to_json().replace('"ndim"', "") == swapped.to_json().replace('"ndim"', "")


@given(data=st.data())
def test_q3_each_index_is_measured_as_if_alone(few, data):
    image = data.draw(images(("u1", "i4", "f4", "f8")).filter(lambda a: a.ndim > 1))
    axes = tuple(
        sorted(data.draw(st.sets(st.integers(0, image.ndim - 1), min_size=1, max_size=image.ndim - 1)))
    )
    most = data.draw(st.integers(1, 5))
    before, measuring.MOST = measuring.MOST, most
    how = {"quantiles": QUANTILES, "progress": False, "scheduler": "synchronous"}
    try:
        found = tw.image_statistics(data.draw(chunked(image)), each=axes, **how)
    finally:
        measuring.MOST = before
    assert np.shape(found.mean) == tuple(image.shape[a] for a in axes)
    for place in np.ndindex(*(image.shape[a] for a in axes)):
        at = dict(zip(axes, place, strict=True))
        alone = image[tuple(at.get(a, slice(None)) for a in range(image.ndim))]
        check(found.at(*place), alone)


@given(data=st.data())
def test_q4_only_valid_samples_count(few, data):
    image = data.draw(images(("u1", "i2", "f4"), most=2))
    mask = data.draw(npst.arrays(bool, tuple(data.draw(st.integers(1, n)) for n in image.shape)))
    whole = mask
    for axis, n in enumerate(image.shape):
        whole = whole.take(np.arange(n) * mask.shape[axis] // n, axis=axis)
    nodata = data.draw(st.sampled_from([None, *image.ravel()[:2].tolist()]))
    values = image[
        whole & (True if nodata is None else (image != nodata) & ~(np.isnan(nodata) & np.isnan(image)))
    ]
    array = data.draw(chunked(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tw.TilingWarning)  # that the mask is False everywhere
        try:
            got = tw.image_statistics(
                array, QUANTILES, where=mask, nodata=nodata, progress=False, scheduler="synchronous"
            )
        except tw.GridError:  # the mask may be transposed
            assume(False)
    check(got, values)


@pytest.mark.parametrize("dtype", ["u2", "f4", "i8"])
def test_q5_every_chunk_is_read_once_in_each_pass(few, dtype, tmp_path):
    image = (np.random.default_rng(0).standard_normal((3, 60, 50)) * 1e4).astype(dtype)
    array = zarr.create_array(tmp_path / "x.zarr", data=image, chunks=(2, 16, 16))
    passes = {"u2": 1, "f4": 2, "i8": 2}[dtype] if measuring.GATHER == 3 else 1
    before, measuring.MOST_SAMPLES = measuring.MOST_SAMPLES, 500
    try:
        for each in ((), 0):
            with counted(array) as counts:
                found = tw.image_statistics(array, each=each, progress=False)
            assert len(counts.reads) == 2 * 4 * 4
            least, most = min(counts.reads.values()), max(counts.reads.values())
            assert least == most >= passes, (each, counts.reads)
            assert most <= (1 if dtype == "u2" or passes == 1 else 4)
            assert np.sum(found.count) == image.size
    finally:
        measuring.MOST_SAMPLES = before


def test_q6_neither_scheduler_nor_chunks_change_a_bit(few, scheduler, tmp_path):
    image = np.random.default_rng(0).standard_normal((12, 20)) * np.logspace(-30, 30, 20)
    with dask.config.set(scheduler="synchronous"):
        expected = tw.image_statistics(image, progress=False).to_json()
    for chunks in ((12, 20), (7, 9), (1, 20)):
        array = zarr.create_array(tmp_path / f"{chunks}.zarr", data=image, chunks=chunks)
        for source in (array, da.from_zarr(array), image):
            assert tw.image_statistics(source, progress=False).to_json() == expected


def test_q6_nor_does_a_cluster(client, tmp_path):
    image = np.random.default_rng(0).standard_normal((12, 20)).astype("f4")
    with dask.config.set(scheduler="synchronous"):
        expected = tw.image_statistics(image, each=0, progress=False, scheduler="synchronous")
    array = zarr.create_array(tmp_path / "x.zarr", data=image, chunks=(7, 9))
    for source in (array, da.from_zarr(array), image):
        assert tw.image_statistics(source, each=0, progress=False, client=client) == expected


def test_q7_the_function_of_a_lazy_result_runs_once_per_pass(few):
    calls = []
    out = tw.tiled_map(lambda x: calls.append(0) or x, np.ones((600, 600), "f4"), 100, 0, dtype="f4")
    expected = 2
    with pytest.warns(CostWarning, match="fn runs twice on every crop"):
        tw.image_statistics(out, progress=False)
    assert len(calls) == expected * 36
    calls.clear()
    tw.image_statistics(out, (), progress=False)
    assert len(calls) == 36


def smooth(x):
    """Return what depends on neighbours along the last two axes, without sums that round."""
    return ndi.median_filter(x, (1,) * (x.ndim - 2) + (5, 5)) + x


def clipped(x, stats):
    """Normalise as nnU-Net does with CT: clip to quantiles, then by mean and deviation."""
    low, high = stats.quantiles[0.01], stats.quantiles[0.99]
    return ((np.clip(x, low, high) - stats.mean) / stats.std).astype("f4")


@given(data=st.data())
def test_q8_a_normalised_function_tiled_equals_it_untiled(data):
    """To the bit, with the statistics of the whole; of each crop by itself it would not."""
    dtype = data.draw(st.sampled_from(["u1", "i2", ">u2", "f2", "f4", "f8", "i4", "?"]))
    values = np.random.default_rng(0).gamma(2, 30, (3, 45, 40)) + np.array([0, 90, 20])[:, None, None]
    image = values > 80 if dtype == "?" else values.astype("u1").astype(dtype)
    stats = tw.image_statistics(image, each=data.draw(st.sampled_from([(), 0])), progress=False)
    fn = tw.normalized(smooth, stats, data.draw(st.sampled_from(["zscore", "percentile", clipped])))
    crop = data.draw(st.integers(9, 40))
    out = tw.tiled_map(fn, image, crop=crop, overlap=3, axes=(1, 2), dtype="f8" if dtype == "f8" else "f4")
    assert np.array_equal(out.compute(scheduler="synchronous"), fn(image))
