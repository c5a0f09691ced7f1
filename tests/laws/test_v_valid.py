"""V: samples that are not valid are `fill_value` and no others, and crops without a valid one do not run.

The oracle takes the result without nodata from `tests.reference`, and replaces what lies over no valid
sample. Which crops have one follows from its `walk`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import ceil, floor
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS, PerTile, local_functions
from tests.laws.engine_strategies import (
    ALL,
    EXACT,
    Case,
    assert_close,
    cases,
    masks,
    oracle,
    tiled,
)
from tests.reference import walk
from tests.sampling import share
from tilework.graph.build import plan_of

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
SCALES = (1, 1, 2, Fraction(1, 2), Fraction(2, 3), 3)
layouts = st.sampled_from(LAYOUTS)


# -- draws ------------------------------------------------------------------------------------------------


def blobs(shape: tuple[int, ...], seed: int, kind: str) -> np.ndarray:
    """Return a mask of samples: scattered, of a few boxes, or nowhere."""
    rng = np.random.default_rng(seed)
    if kind == "scattered":
        return rng.random(shape) < 0.05
    bits = np.zeros(shape, bool)
    for _ in range(2 if kind == "boxes" else 0):
        start = [int(rng.integers(n)) for n in shape]
        bits[tuple(slice(a, a + int(rng.integers(1, 1 + n))) for a, n in zip(start, shape, strict=True))] = (
            True
        )
    return bits


KINDS = st.sampled_from(("scattered", "boxes", "boxes", "boxes", "nowhere"))


@dataclass(frozen=True)
class Where:
    """A mask of samples, as it is given, and at each index of the ``each`` axes and tiled axes."""

    given: np.ndarray
    dense: np.ndarray


@st.composite
def wheres(draw: Any, case: Case) -> Where:
    """Draw a mask over the tiled axes, these and the each axes, or all, of any resolution."""
    all_axes = list(range(case.image.ndim))
    own = draw(
        st.sampled_from((sorted(case.axes), sorted({*case.axes, *case.each}), all_axes)),
    )
    factor = draw(st.sampled_from((Fraction(1), Fraction(1), Fraction(2), Fraction(3), Fraction(1, 2))))
    lengths = {a: max(1, round(n / factor)) for a, n in zip(case.axes, case.extents, strict=True)}
    ratio = Fraction(case.extents[0], lengths[case.axes[0]])
    if any(abs(n / ratio - lengths[a]) > 1 for a, n in zip(case.axes, case.extents, strict=True)):
        lengths = dict(zip(case.axes, case.extents, strict=True))
    shape = tuple(lengths.get(a, case.image.shape[a]) for a in own)
    given = blobs(shape, draw(st.integers(0, 99)), draw(KINDS))
    dense = given
    for a in case.axes:
        m, n = lengths[a], case.image.shape[a]
        dense = dense.take([i * m // n for i in range(n)], own.index(a))
    # Axes that it does not have, then untiled axes: valid if any sample is.
    for a in all_axes:
        if a not in own:
            dense = np.expand_dims(dense, a)
    return Where(given, dense_over(case, dense))


def dense_over(case: Case, bits: np.ndarray) -> np.ndarray:
    """Return bits over (or broadcast to) all axes of the image as bits over each and tiled axes."""
    grid = (*case.each, *case.axes)
    rest = tuple(a for a in range(bits.ndim) if a not in grid)
    bits = np.broadcast_to(bits, [n if a in grid else bits.shape[a] for a, n in enumerate(case.image.shape)])
    return bits.transpose(*grid, *rest).any(axis=tuple(range(len(grid), bits.ndim)))


def over_result(case: Case, dense: np.ndarray) -> np.ndarray:
    """Return which result samples lie over a valid sample: each axes, then tiled axes."""
    lead = len(case.each)
    for k, (n, f) in enumerate(zip(case.extents, case.scale, strict=True)):
        spans = [(floor(j / f), min(n, ceil((j + 1) / f))) for j in range(ceil(n * f))]
        columns = [dense.take(range(a, b), lead + k).any(axis=lead + k) for a, b in spans]
        dense = np.stack(columns, axis=lead + k)
    return dense


def hidden(case: Case, value: np.ndarray, valid: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return a result, tiled axes at ``axes``, with the fill value where it is not valid."""
    lead = len(case.each)
    order = sorted(range(len(axes)), key=lambda k: axes[k])
    bits = valid.transpose(*range(lead), *(lead + k for k in order))
    others = [lead + a for a in range(value.ndim - lead) if a not in axes]
    return np.where(np.expand_dims(bits, others), value, FILL)


def running(case: Case, dense: np.ndarray) -> set[int]:
    """Return the numbers of the crops that have a valid sample inside the image."""
    grids = [walk(*own) for own in case.walks]
    lead = dense.shape[: len(case.each)]
    number, found = 0, set()
    for index in np.ndindex(*lead):
        for tile in product(*grids):
            box = [
                slice(max(0, start - lo), max(0, stop - lo))
                for (start, stop, *_), (lo, _) in zip(tile, case.margin, strict=True)
            ]
            if dense[(*index, *box)].any():
                found.add(number)
            number += 1
    return found


@dataclass(frozen=True)
class Seen:
    """A function of a crop and its number that notes the number."""

    fn: PerTile
    numbers: list[int]

    def __call__(self, crop: np.ndarray, number: int) -> np.ndarray:
        self.numbers.append(number)
        return self.fn(crop, number)

    def __dask_tokenize__(self) -> Any:
        return "seen"


def check(case: Case, where: Where, layout: str, mask: dict[str, Any]) -> None:
    """Assert that the result is that of the oracle at valid samples, and which crops run."""
    fn = PerTile(case, layout)
    seen = Seen(fn, [])
    output = tw.Output("float64", **fn.declared)
    out = tiled(case, seen, numbered=True, output=output, fill_value=FILL, where=where.given, **mask)
    expected = oracle(case, fn, numbered=True, out_axes=fn.axes, fill_value=FILL, mask=mask.get("mask"))
    expected = hidden(case, expected, over_result(case, where.dense), fn.axes)
    got = out.compute()
    if case.kind in EXACT:
        np.testing.assert_array_equal(got, expected)
    else:
        assert_close(got, expected)
    plan = plan_of(out)
    if not mask:
        assert set(seen.numbers) == running(case, where.dense)
        if plan.reuse == "share" and not plan.slabs:
            assert len(seen.numbers) == len(set(seen.numbers))


# -- V1: the result and the calls -------------------------------------------------------------------------


@settings(max_examples=share(150))
@given(cases(margins=True, multiples=(1, 2, 3), scales=SCALES), layouts, st.data())
def test_V1_trim(case: Case, layout: str, data: Any) -> None:
    check(case, data.draw(wheres(case)), layout, {})


@settings(max_examples=share(200))
@given(cases(words=ALL, margins=True, multiples=(1, 2), scales=SCALES), layouts, st.data())
def test_V1_blends(case: Case, layout: str, data: Any) -> None:
    check(case, data.draw(wheres(case)), layout, {})


@settings(max_examples=share(60))
@given(cases(words=ALL, margins=True, scales=SCALES, share=True), layouts, st.data())
def test_V1_with_a_mask_of_tiles_and_shared_tiles(case: Case, layout: str, data: Any) -> None:
    check(case, data.draw(wheres(case)), layout, data.draw(masks(case)))


@settings(max_examples=share(30))
@given(cases(words=ALL, margins=True, dims=(4,)), layouts, st.data())
def test_V1_four_axes(case: Case, layout: str, data: Any) -> None:
    check(case, data.draw(wheres(case)), layout, {})


# -- V2: nodata, and what the function sees ---------------------------------------------------------------


@st.composite
def nodata_images(draw: Any, case: Case) -> tuple[Case, np.ndarray, float]:
    """Draw an image with samples of one value, the positions with other samples, and the value."""
    value = draw(st.sampled_from((np.nan, -9999.0, 0.0)))
    image = case.image + 1
    gone = blobs(image.shape, draw(st.integers(0, 99)), draw(KINDS))
    if draw(st.booleans()):
        # All channels of some positions, or only these would be gone where there is one channel.
        lost = blobs(image.shape, draw(st.integers(0, 99)), "boxes")
        grid = (*case.each, *case.axes)
        gone |= lost.any(axis=tuple(a for a in range(image.ndim) if a not in grid), keepdims=True)
    image[gone] = value
    return replace(case, image=image), dense_over(case, ~gone), value


@settings(max_examples=share(150))
@given(cases(words=("trim", "average", "gaussian", "max"), margins=True, scales=SCALES), st.data())
def test_V2_the_function_sees_the_fill_and_the_samples_that_repeat_it(case: Case, data: Any) -> None:
    case, dense, value = data.draw(nodata_images(case))
    local = data.draw(local_functions(case))
    output = tw.Output("float64", scale=case.scale, margin=case.margin)
    options = {"nodata": value, "nodata_fill": 7, "fill_value": FILL}
    out = tiled(case, local, output=output, **options)

    # The fill is put where no channel is valid, before the image is padded.
    grid = (*case.each, *case.axes)
    back = np.expand_dims(dense, tuple(range(len(grid), case.image.ndim))).transpose(
        np.argsort([*grid, *(a for a in range(case.image.ndim) if a not in grid)])
    )
    filled = replace(case, image=np.where(back, case.image, 7))
    expected = hidden(case, oracle(filled, local, fill_value=FILL), over_result(case, dense), case.crop_axes)
    # Where the function sums up nodata of other channels, NaN stay NaN.
    if case.kind in EXACT:
        np.testing.assert_array_equal(out.compute(), expected)
    else:
        assert_close(out.compute(), expected)


@given(cases(words=("trim", "average"), share=True), st.integers(0, 99), KINDS, st.data())
def test_V2_masked_arrays_are_where_not_masked(case: Case, seed: int, kind: str, data: Any) -> None:
    gone = blobs(case.image.shape, seed, kind)
    masked = np.ma.array(case.image, mask=gone)
    chunks = tuple(data.draw(st.integers(1, n)) for n in case.image.shape)
    lazy = da.from_array(masked, chunks=chunks, asarray=False)
    options = {"dtype": float, "fill_value": FILL}
    expected = tiled(case, np.cbrt, where=~gone, **options).compute()
    np.testing.assert_array_equal(tiled(case, np.cbrt, image=masked, **options).compute(), expected)
    np.testing.assert_array_equal(tiled(case, np.cbrt, image=lazy, **options).compute(), expected)


# -- V3: without a look at invalid samples, nothing else changes ------------------------------------------


@given(cases(words=ALL, margins=True, scales=SCALES), layouts, st.data())
def test_V3_valid_samples_have_the_bits_without_where(case: Case, layout: str, data: Any) -> None:
    fn, where = PerTile(case, layout, factor=1 / 3), data.draw(wheres(case))
    output = tw.Output("float64", **fn.declared)
    plain = tiled(case, fn, numbered=True, output=output, fill_value=FILL)
    blocks = {"chunks": plan_of(plain).block, "reuse": plan_of(plain).reuse}
    out = tiled(case, fn, numbered=True, output=output, fill_value=FILL, where=where.given, **blocks)
    expected = hidden(case, plain.compute(), over_result(case, where.dense), fn.axes)
    np.testing.assert_array_equal(out.compute(), expected)


@settings(max_examples=share(60))
@given(
    cases(words=ALL, margins=True, scales=SCALES, share=True), layouts, st.booleans(), st.data(),
    st.sampled_from(("share", "recompute")),
)  # fmt: skip
def test_V4_all_ways_to_compute_give_the_same_bits(
    case: Case, layout: str, skips: bool, data: Any, reuse: str
) -> None:
    fn, where = PerTile(case, layout, factor=1 / 3), data.draw(wheres(case))
    options: dict[str, Any] = {"output": tw.Output("float64", **fn.declared), "fill_value": FILL}
    options |= {"skip": (lambda c: int(c.sum()) % 3 == 0) if skips else None, "reuse": reuse}
    options |= {"where": where.given, "numbered": True}
    out = tiled(case, fn, **options)
    whole, view = out.compute(), tw.view(out, verbose=False)
    other = tiled(case, fn, **options | {"reuse": "auto", "chunks": plan_of(out).block})
    np.testing.assert_array_equal(other.compute(), whole)
    np.testing.assert_array_equal(tw.compute(out, progress=False), whole)
    for _ in range(2):
        key = []
        for n in out.shape:
            start = data.draw(st.integers(0, n - 1))
            key.append(slice(start, data.draw(st.integers(start + 1, n))))
        np.testing.assert_array_equal(view[tuple(key)], whole[tuple(key)])
        np.testing.assert_array_equal(out[tuple(key)].compute(), whole[tuple(key)])
    np.testing.assert_array_equal(view[...], whole)
    picks = tuple(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)) for n in out.shape)
    np.testing.assert_array_equal(view[np.ix_(*picks)], whole[np.ix_(*picks)])


class Broken(Exception):
    """Ends a run."""


@settings(max_examples=share(30))
@given(
    cases(words=("trim", "average", "gaussian"), scales=(1, 2, Fraction(1, 2)), dims=(1, 2)),
    st.integers(0, 9), st.data(),
)  # fmt: skip
def test_V5_a_resumed_store_equals_an_uninterrupted_one(case: Case, after: int, data: Any) -> None:
    where = data.draw(wheres(case))
    left = [10**9]

    def fn(crop: np.ndarray) -> np.ndarray:
        if not left[0]:
            raise Broken
        left[0] -= 1
        return PerTile(case)(crop)

    options = {"output": tw.Output("float64", **PerTile(case).declared), "fill_value": FILL, "name": "fn"}
    out = tiled(case, fn, where=where.given, **options)
    whole = tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, version="1")[...]
    store = zarr.storage.MemoryStore()
    left[0] = after
    try:
        tw.to_zarr(out, store, progress=False, version="1")
    except Broken:
        left[0] = 10**9
    np.testing.assert_array_equal(tw.to_zarr(out, store, progress=False, version="1")[...], whole)
    changed = where.given.copy()
    changed.flat[0] ^= True
    with pytest.raises(tw.TilingError, match="where"):
        tw.to_zarr(tiled(case, fn, where=changed, **options), store, progress=False, version="1")
