"""N1: NaN and infinity stay inside the tiles that made them, where these have weight."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS, PerTile
from tests.laws.engine_strategies import (
    EXTREMES,
    OWN,
    WINDOWS,
    Case,
    assert_close,
    cases,
    masks,
    oracle,
    picture,
    tiled,
)
from tests.sampling import share

pytestmark = [
    pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

FILL = -777
WEIGHTED = (*WINDOWS, *OWN)
ALL = ("trim", *EXTREMES, *WEIGHTED, "sum")
BAD = (np.nan, np.inf, -np.inf)


class Spoiled:
    """A function whose whole result is `bad` for crops that hold a certain value."""

    def __init__(self, fn: PerTile, value: float, bad: float) -> None:
        self.fn, self.value, self.bad = fn, value, bad

    def __call__(self, crop: np.ndarray, number: int) -> np.ndarray:
        result = self.fn(crop, number)
        return np.full_like(result, self.bad) if (crop == self.value).any() else result


@given(
    cases(words=ALL, margins=True, scales=(1, 2, Fraction(1, 2)), dims=(1, 2)),
    st.sampled_from(LAYOUTS), st.sampled_from(BAD), st.booleans(), st.data(),
)  # fmt: skip
def test_N1_a_spoiled_crop_spoils_what_it_has_weight_in(
    case: Case, layout: str, bad: float, masked: bool, data: Any
) -> None:
    at = data.draw(st.integers(0, case.image.size - 1))
    fn = Spoiled(PerTile(case, layout), case.image.reshape(-1)[at], bad)
    mask = data.draw(masks(case)) if masked else {}
    options: dict[str, Any] = {"numbered": True, "fill_value": FILL}
    output = tw.Output("float64", **fn.fn.declared)
    got = tiled(case, fn, output=output, **options, **mask).compute()
    expected = oracle(case, fn, out_axes=fn.fn.axes, mask=mask.get("mask"), **options)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    assert_close(got, expected)


@given(cases(words=ALL), st.sampled_from(BAD), st.data())
def test_N1_a_bad_sample_stays_where_it_is(case: Case, bad: float, data: Any) -> None:
    at = data.draw(st.integers(0, case.image.size - 1))
    image = case.image.copy()
    image.reshape(-1)[at] = bad
    got = tiled(case, lambda crop: crop, image=image, dtype=float, fill_value=FILL).compute()
    plain = tiled(case, lambda crop: crop, dtype=float, fill_value=FILL).compute()
    there = np.moveaxis(image, case.each, range(len(case.each))) == bad
    if np.isnan(bad):
        there = np.isnan(np.moveaxis(image, case.each, range(len(case.each))))
    if case.grid["edge"] == "drop":
        there &= plain != FILL
    if case.kind not in EXTREMES:
        assert np.array_equal(np.isfinite(got), ~there)
    assert (got[~there] == plain[~there]).all()


@given(
    cases(words=WEIGHTED, rim=1, margins=True, dims=(1, 2, 3), ends=True), st.sampled_from(BAD),
    st.sampled_from(("float32", "float64")), st.integers(1, 3),
)  # fmt: skip
def test_N1_what_has_no_weight_does_no_harm(case: Case, bad: float, dtype: str, one_in: int) -> None:
    """0 * inf is NaN: the rim must be left out, not multiplied by zero."""
    fn, rims = PerTile(case), case.weights["rim"]
    case = replace(case, grid=case.grid | {"edge": "pad"})  # no crop's rim is ever filled

    def spoiled(crop: np.ndarray, number: int) -> np.ndarray:
        result = np.full(fn(crop, number).shape, bad)
        inner = [slice(None)] * result.ndim
        for a, rim in zip(case.crop_axes, rims, strict=True):
            inner[a] = slice(rim, result.shape[a] - rim)
        result[tuple(inner)] = fn(crop, number)[tuple(inner)]
        return result.astype(dtype)

    def clean(crop: np.ndarray, number: int) -> np.ndarray:
        return fn(crop, number).astype(dtype)

    def dull(crop: np.ndarray) -> bool:
        return one_in > 1 and int(crop.sum()) % one_in == 0

    options: dict[str, Any] = {"numbered": True, "skip": dull, "fill_value": FILL}
    options["output"] = tw.Output(dtype, margin=case.margin)
    got, expected = (tiled(case, f, **options).compute() for f in (spoiled, clean))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=share(30))
@given(st.data(), st.sampled_from(("1-D arrays", "map")), st.sampled_from(BAD))
def test_N1_zeros_inside_own_weights_count_too(data: Any, kind: str, bad: float) -> None:
    """The weights are 0 in holes, which neighbours cover."""
    image = picture([30, 26])
    weights = np.where(np.arange(12) % 5 == data.draw(st.integers(0, 4)), 0.0, 1 + np.arange(12))
    one_d = np.outer(weights, weights[::-1])
    blend = (weights, weights[::-1]) if kind == "1-D arrays" else one_d

    def spoiled(crop: np.ndarray) -> np.ndarray:
        return np.where(one_d > 0, crop, bad)

    out = tw.tiled_map(spoiled, image, 12, 4, edge="pad", blend=blend, dtype=float, chunks=13)
    np.testing.assert_allclose(out.compute(), image, rtol=1e-12)


@pytest.mark.parametrize("blend", ["trim", "average", "gaussian", "max", "sum"])
@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_N1_a_nan_reaches_exactly_the_tiles_that_read_it(reuse: str, blend: str) -> None:
    """By hand: crop 6, stride 4; sample 9 is read by the crops from 4 and 8."""
    image = np.arange(22.0)
    image[9] = np.nan
    out = tw.tiled_map(
        lambda crop: crop + 0 * crop.sum(), image, 6, 1, blend=blend, dtype=float, reuse=reuse,
        chunks=6,
    ).compute()  # fmt: skip
    spoiled = np.flatnonzero(np.isnan(out)).tolist()
    # Trim: crops start at -1, 3, 7, moved in to 0, 3, 7; cores are of 4.
    assert spoiled == (list(range(8, 12)) if blend == "trim" else list(range(4, 14)))


def test_N1_nan_does_not_become_an_integer_in_silence() -> None:
    """Averages of integers know no NaN; a float result that is declared an integer is clipped."""
    image = np.array([-1e9, -0.6, 0.5, 1.5, 254.5, 255.4, 1e9, np.inf] * 3)
    out = tw.tiled_map(lambda crop: crop, image, 6, 1, blend="average", dtype="uint8").compute()
    assert out.tolist() == [0, 0, 0, 2, 254, 255, 255, 255] * 3
