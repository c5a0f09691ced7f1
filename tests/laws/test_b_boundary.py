"""B: boundary. The oracle is `numpy.pad`, which copies the image; the package never does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.laws.strategies import MODES, arange, blocks, calls, endless, many
from tilework import Output, plan_tiles, tiled_map
from tilework.grid.axis import EDGES
from tilework.source.padding import AxisRead, read_padded, source_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.laws.strategies import Call
    from tilework.source.padding import Boundary

CVAL = -7.0


def padded(image: np.ndarray[Any, Any], widths: Sequence[tuple[int, int]], mode: str) -> np.ndarray[Any, Any]:
    return np.pad(image, widths, mode, **({"constant_values": CVAL} if mode == "constant" else {}))


def slice_of_padded(
    image: np.ndarray[Any, Any], spans: Sequence[tuple[int, int]], mode: str
) -> np.ndarray[Any, Any]:
    """Return what numpy has at image positions that may lie outside, along the last axes."""
    first = image.ndim - len(spans)
    outside = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(spans, image.shape[first:], strict=True)]
    whole = padded(image, [(0, 0)] * first + outside, mode)
    at = [slice(a + w, b + w) for (a, b), (w, _) in zip(spans, outside, strict=True)]
    return whole[(..., *at)]


@st.composite
def spans(draw, extent: int):
    """Draw an interval that may lie many extents away from the image, on either side or both."""
    far = 5 * extent + 3
    start = draw(st.one_of(st.sampled_from((-far, -extent, -1, 0, 1, extent)), st.integers(-far, far)))
    return start, start + draw(st.one_of(st.sampled_from((1, extent, 2 * far)), st.integers(1, far)))


# -- B1: index arithmetic -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_B1_every_position_near_and_far_is_what_numpy_has_there(mode: Boundary):
    for n in range(1, 7):
        reach = 6 * n + 5
        index = source_index(np.arange(-reach, n + reach), n, mode)
        image = arange((n,))
        got = np.where(index >= 0, image[index], CVAL)
        assert got.tolist() == padded(image, [(reach, reach)], mode).tolist(), f"extent {n}"


@many
@given(st.sampled_from(MODES), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_B1_padded_reads_equal_slices_of_the_padded_image(mode, shape, data):
    """Also for reads that begin far outside; only what is needed is read, in few pieces."""
    image, wanted = arange(shape), [data.draw(spans(n)) for n in shape]
    plans = [AxisRead.plan(a, b, n, mode) for (a, b), n in zip(wanted, shape, strict=True)]
    asked = []

    def read(box):
        for (start, stop), n in zip(box, shape, strict=True):
            assert 0 <= start <= stop <= n
        asked.append(box)
        return image[tuple(slice(a, b) for a, b in box)]

    assert (read_padded(read, plans, CVAL) == slice_of_padded(image, wanted, mode)).all()
    assert len(asked) == len(set(asked))
    for plan, (start, stop), n in zip(plans, wanted, shape, strict=True):
        assert len(plan.intervals) <= 2, "at both ends, or one run"
        taken = source_index(np.arange(start, stop), n, mode)
        read_once = [x for interval in plan.intervals for x in range(*interval)]
        assert read_once == sorted({*taken.tolist()} - {-1}), "nothing else, nothing twice"
        if start >= 0 and stop <= n:
            assert plan == AxisRead(((start, stop),)), "inside the image nothing is copied"


@pytest.mark.slow
@endless
@given(st.sampled_from(MODES), st.integers(1, 60), st.data())
def test_B1_padded_reads_of_long_axes(mode, n, data):
    image, span = arange((n,)), data.draw(spans(n))
    plan = AxisRead.plan(*span, n, mode)
    got = read_padded(lambda box: image[slice(*box[0])], [plan], CVAL)
    assert got.tolist() == slice_of_padded(image, [span], mode).tolist()


# -- B1: crops ----------------------------------------------------------------------------------


def crops_of(call: Call, image: Any, mode: str, **options: Any) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Return each tile with the crop that the function got for it."""
    got: list[tuple[Any, np.ndarray[Any, Any]]] = []
    margin = tuple(axis.grid.margin for axis in call.axes)

    def collect(crop, tile):
        got.append((tile, crop.copy()))
        lengths = zip(tile.read.shape, margin, strict=True)
        result = crop[(..., *(slice(lo, n - hi) for n, (lo, hi) in lengths))].copy()
        crop[...] = np.nan  # the crop is the function's own: nobody else may see this
        return result

    tiled_map(
        collect, image, call.crop, **call.options, **options, boundary=mode, cval=CVAL,
        pass_tile=True, output=Output(float, margin=margin),
    ).compute()  # fmt: skip
    return got


@pytest.mark.parametrize("edge", EDGES)
@given(st.data(), st.sampled_from(MODES), st.sampled_from(("numpy", "dask", "channels")))
def test_B1_every_padded_crop_equals_the_slice_of_numpy_pad(edge, data, mode, source):
    call = data.draw(calls(edge=edge, tiles=3, scaled=False))
    assume(all(len(axis.grid) for axis in call.axes))
    image: Any = arange((2, *call.shape) if source == "channels" else call.shape)
    whole = image
    if source == "dask":
        image = da.from_array(image, chunks=data.draw(blocks(call.shape)))
    n = len(call.shape)
    options = {
        "chunks": data.draw(blocks(call.shape)),
        "axes": tuple(range(whole.ndim - n, whole.ndim)),
    }
    got = crops_of(call, image, mode, **options)
    assert {tile.index for tile, _ in got} == set(range(len(plan_of(call))))
    for tile, crop in got:
        reads = list(zip(tile.read.start, tile.read.stop, strict=True))
        assert crop.shape[whole.ndim - n :] == tile.read.shape
        assert edge == "clip" or tile.read.shape == call.crop
        assert (crop == slice_of_padded(whole, reads, mode)).all()


def plan_of(call: Call):
    margin = tuple(axis.grid.margin for axis in call.axes)
    return plan_tiles(call.shape, call.crop, **call.options, output=Output(float, margin=margin))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", [1, 2, 3])
def test_B1_padding_many_times_the_extent(mode, extent):
    """A crop of 50 on an image of 1 to 3 samples: the padding repeats the image over and over."""
    image, crops = arange((extent, extent)), []

    def collect(crop, tile):
        crops.append((tile.read, crop.copy()))
        return crop

    out = tiled_map(
        collect, image, (50, 5), (24, 2), edge="pad", boundary=mode, cval=CVAL, dtype=float,
        pass_tile=True, axes=(0, 1),
    ).compute()  # fmt: skip
    assert (out == image).all()
    assert crops
    for read, crop in crops:
        spans = list(zip(read.start, read.stop, strict=True))
        assert (crop == slice_of_padded(image, spans, mode)).all()


# -- B2: images that are large enough -----------------------------------------------------------


@given(calls(edge="shift", tiles=4, scaled=False), st.data())
def test_B2_on_a_large_enough_image_shift_needs_no_boundary(call: Call, data):
    """Every axis is made as long as its crop at least, and whole starts reach its end."""
    axes = call.axes
    shape = tuple(
        max(n, c) + -(max(n, c) - c) % axis.grid.multiple
        for n, c, axis in zip(call.shape, call.crop, axes, strict=True)
    )
    options, image = call.options | {"chunks": data.draw(blocks(shape))}, arange(shape)
    plan = plan_tiles(shape, call.crop, **options)
    assert plan.exact_border
    assert not any(itertools.chain(*(pair for tile in plan for pair in tile.padding)))

    def sums(crop):  # depends on every sample of the crop
        return crop.cumsum(axis=0) + crop.sum()

    results = [
        tiled_map(sums, image, call.crop, **options, boundary=mode, cval=CVAL, dtype=float).compute()
        for mode in MODES
    ]
    assert all((result == results[0]).all() for result in results[1:])


def test_B2_on_a_shorter_image_the_boundary_matters():
    """Else B2 would hold because boundary= is never looked at."""
    results = [
        tiled_map(
            lambda crop: np.full_like(crop, crop.sum()), arange((5,)), 8, 2, dtype=float,
            boundary=mode, cval=CVAL,
        ).compute()[0]
        for mode in MODES
    ]  # fmt: skip
    assert len(set(results)) == len(MODES)
