"""E2 and E3: a function of known reach gives on crops what it gives on the whole image."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import local_functions, moved, part
from tests.laws.engine_strategies import (
    EDGES,
    EXTREMES,
    OWN,
    WINDOWS,
    Case,
    assert_close,
    cases,
    covered,
    picture,
    tiled,
    untiled,
)

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
SCALES = (1, 1, 2, 3, Fraction(1, 2), Fraction(2, 3))


def both(case: Case, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what the crops give, and what the whole image gives."""
    fn = data.draw(local_functions(case))
    output = tw.Output("float64", margin=case.margin, scale=case.scale)
    got = tiled(case, fn, output=output, fill_value=FILL).compute()
    whole = untiled(case, fn, out_axes=case.crop_axes)
    expected = np.full_like(whole, FILL)
    inside = part(case.crop_axes, covered(case), whole.ndim, len(case.each))
    expected[inside] = whole[inside]
    return got, expected


@given(cases(), st.data())
def test_E2_trimmed_crops_equal_the_whole(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@given(cases(margins=True), st.data())
def test_E2_with_margins(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@given(cases(multiples=(1, 2, 3, 4)), st.data())
def test_E2_with_functions_that_commute_only_with_shifts_by_a_multiple(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@given(cases(scales=SCALES, dims=(1, 2)), st.data())
def test_E2_with_scales(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@given(cases(scales=SCALES, dims=(1, 2), margins=True, multiples=(1, 2)), st.data())
def test_E2_with_scales_margins_and_multiples(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@given(cases(words=(*WINDOWS, *OWN), rim=1, margins=True, multiples=(1, 2)), st.data())
def test_E3_blends_whose_rim_covers_the_reach_equal_the_whole(case: Case, data: Any) -> None:
    assert_close(*both(case, data))


@given(cases(words=(*WINDOWS, *OWN), rim=2, scales=SCALES, dims=(1, 2), margins=True), st.data())
def test_E3_with_scales(case: Case, data: Any) -> None:
    assert_close(*both(case, data))


@given(cases(words=EXTREMES, rim=1, margins=True, multiples=(1, 2)), st.data())
def test_E3_max_and_min(case: Case, data: Any) -> None:
    np.testing.assert_array_equal(*both(case, data))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("edge", EDGES)
def test_E2_ends_where_the_overlap_ends(edge: str, side: int) -> None:
    """A law that held for every reach would say nothing about the overlap."""
    image = picture([41])

    def differs(offset: int) -> bool:
        def fn(crop: np.ndarray) -> np.ndarray:
            return moved(crop, offset * side, -1, 0)

        out = tw.tiled_map(fn, image, 12, 3, edge=edge, boundary="constant", dtype=float)
        return bool((out.compute()[:33] != fn(image)[:33]).any())

    assert not differs(3)
    assert differs(4)


@pytest.mark.parametrize("edge", ["shift", "squeeze", "clip"])
def test_E2_starts_off_the_multiple_are_seen(edge: str) -> None:
    image = picture([50])

    def pool(crop: np.ndarray) -> np.ndarray:
        return np.add.reduceat(crop, np.arange(0, len(crop), 2)).repeat(2)[: len(crop)]

    def differs(**options: Any) -> bool:
        out = tw.tiled_map(pool, image, edge=edge, dtype=float, **options)
        return bool((out.compute() != pool(image)).any())

    assert not differs(crop=12, overlap=2, multiple=2)
    assert differs(crop=11, overlap=2)


@pytest.mark.parametrize("extent", [1, 5, 11, 12, 13])
@pytest.mark.parametrize("edge", ["shift", "squeeze", "pad"])
@pytest.mark.parametrize("boundary", ["reflect", "constant"])
def test_E2_images_smaller_than_the_crop(boundary: str, edge: str, extent: int) -> None:
    """Every crop is full, however small the image."""
    image, lengths = picture([extent, extent]), []

    def fn(crop: np.ndarray) -> np.ndarray:
        lengths.append(crop.shape)
        return moved(moved(crop, -2, 0, 0), 3, 1, 0) + crop

    out = tw.tiled_map(fn, image, 12, 3, edge=edge, boundary=boundary, dtype=float).compute()
    assert set(lengths) == {(12, 12)}
    before = 3 if edge == "pad" else 0
    after = max(12 - extent, 0) if edge != "pad" else 12
    whole = fn(np.pad(image, (before, after), boundary))
    inside = slice(before, before + extent)
    np.testing.assert_array_equal(out, whole[inside, inside])
