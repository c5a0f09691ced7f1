"""E4: functions that see their tile and their place in the crop give what the naive oracle gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS, PerTile
from tests.laws.engine_strategies import (
    ALL,
    EXACT,
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
from tests.reference import reference
from tests.sampling import share
from tilework.engine import products
from tilework.graph.build import plan_of

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
SCALES = (1, 1, 2, Fraction(1, 2), Fraction(2, 3), 3)
layouts = st.sampled_from(LAYOUTS)


def check(case: Case, fn: PerTile, mask: dict[str, Any] | None = None, **options: Any) -> None:
    """Assert that the package and the oracle agree."""
    mask = mask or {}
    output = tw.Output("float64", **fn.declared)
    out = tiled(case, fn, numbered=True, output=output, fill_value=FILL, **mask, **options)
    expected = oracle(case, fn, numbered=True, out_axes=fn.axes, fill_value=FILL, mask=mask.get("mask"))
    assert out.shape == expected.shape
    if case.kind in EXACT:
        np.testing.assert_array_equal(out.compute(), expected)
    else:
        assert_close(out.compute(), expected)


@given(cases(margins=True, multiples=(1, 2, 3), scales=SCALES, dims=(1, 2)), layouts)
def test_E4_trim(case: Case, layout: str) -> None:
    check(case, PerTile(case, layout))


@given(
    cases(words=(*WINDOWS, *OWN, "sum"), margins=True, multiples=(1, 3), scales=SCALES, dims=(1, 2)),
    layouts,
)
def test_E4_blends(case: Case, layout: str) -> None:
    check(case, PerTile(case, layout))


@given(cases(words=EXTREMES, margins=True, multiples=(1, 2), scales=SCALES, dims=(1, 2)), layouts)
def test_E4_max_and_min(case: Case, layout: str) -> None:
    check(case, PerTile(case, layout))


@settings(max_examples=share(25))
@given(cases(words=ALL, margins=True, multiples=(1, 2), dims=(3,)), layouts)
def test_E4_in_three_dimensions(case: Case, layout: str) -> None:
    check(case, PerTile(case, layout))


@settings(max_examples=share(15))
@given(cases(words=ALL, dims=(4, 5), untiled=False, each=False), layouts)
def test_E4_in_four_and_five_dimensions(case: Case, layout: str) -> None:
    check(case, PerTile(case, layout))


@given(cases(words=ALL, margins=True, scales=SCALES, dims=(1, 2)), layouts, st.data())
def test_E4_with_masks(case: Case, layout: str, data: Any) -> None:
    check(case, PerTile(case, layout), data.draw(masks(case)))


@pytest.mark.slow
@settings(max_examples=1000)
@given(
    cases(words=ALL, margins=True, multiples=(1, 2, 3), scales=SCALES), layouts,
    st.booleans(), st.data(),
)  # fmt: skip
def test_E4_with_everything(case: Case, layout: str, masked: bool, data: Any) -> None:
    check(case, PerTile(case, layout), data.draw(masks(case)) if masked else None)


@settings(max_examples=share(30))
@given(
    cases(words=(*WINDOWS, "callable", "arrays"), margins=True, scales=SCALES, dims=(1, 2, 3)),
    layouts, st.integers(1, 40), st.integers(1, 40),
)  # fmt: skip
def test_E4_with_crops_too_large_for_one_product_of_weights(
    case: Case, layout: str, product: int, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "PRODUCT", product)
        patch.setattr(products, "PIECE", piece)
        check(case, PerTile(case, layout))


# -- skip: the oracle does not know it, but it follows from two blends that it knows


@dataclass(frozen=True)
class Dull:
    """A predicate that is true for about every `one_in`-th crop."""

    one_in: int

    def __call__(self, crop: np.ndarray) -> bool:
        return int(crop.sum()) % self.one_in == 0


@dataclass(frozen=True)
class Kept:
    """`fn` where `dull` is false, `instead` elsewhere; or just whether it is."""

    fn: PerTile
    dull: Dull
    instead: float
    flags: bool = False

    def __call__(self, crop: np.ndarray, number: int) -> np.ndarray:
        result, kept = self.fn(crop, number), not self.dull(crop)
        if self.flags:
            return np.full_like(result, kept)
        return result if kept else np.full_like(result, self.instead)


@given(
    cases(words=ALL, margins=True, scales=SCALES, dims=(1, 2)), layouts, st.integers(1, 4),
    st.booleans(), st.data(),
)  # fmt: skip
def test_E4_with_skipped_tiles(case: Case, layout: str, one_in: int, masked: bool, data: Any) -> None:
    fn, dull = PerTile(case, layout), Dull(one_in)
    mask = data.draw(masks(case)) if masked else {}
    output = tw.Output("float64", **fn.declared)
    out = tiled(case, fn, numbered=True, output=output, fill_value=FILL, skip=dull, **mask)

    options = {"numbered": True, "out_axes": fn.axes, "mask": mask.get("mask")}
    instead = {"max": -np.inf, "min": np.inf}.get(case.kind, 0)
    value = oracle(case, Kept(fn, dull, instead), **options)
    flags = replace(case, weights=case.weights | ({"blend": "max"} if instead else {}))
    weight = oracle(flags, Kept(fn, dull, 0, flags=True), **options)
    if case.kind not in (*EXACT, "sum"):
        value = np.divide(value, weight, where=weight > 0, out=value)
    assert_close(out.compute(), np.where(weight > 0, value, FILL), 1e-9)


@given(cases(words=ALL), st.integers(0, 99))
def test_E4_inside_a_mask_are_the_bits_without_it(case: Case, seed: int) -> None:
    mask = np.random.default_rng(seed).random(case.extents) < 0.1
    whole = tiled(case, np.cbrt, dtype=float, fill_value=FILL)
    # In blocks of another shape the same sums are added in another order.
    blocks = {"chunks": plan_of(whole).block}
    plain = whole.compute()
    masked = tiled(case, np.cbrt, dtype=float, mask=mask, fill_value=FILL, **blocks).compute()
    front = [len(case.each) + a for a in case.crop_axes]
    plain, masked = (np.moveaxis(a, front, range(len(front))) for a in (plain, masked))
    np.testing.assert_array_equal(masked[mask], plain[mask])


# -- dtypes


@given(
    cases(words=(*WINDOWS, *OWN), scales=SCALES, dims=(1, 2)), layouts,
    st.sampled_from(("uint8", "int16", "uint16", "int32")),
)  # fmt: skip
def test_E4_integers_are_rounded_half_to_even_and_clipped(case: Case, layout: str, dtype: str) -> None:
    fn = PerTile(case, layout, factor=0.25)
    out = tiled(case, fn, numbered=True, output=tw.Output(dtype, **fn.declared)).compute()
    expected = oracle(case, fn, numbered=True, out_axes=fn.axes)
    info = np.iinfo(dtype)
    clipped = np.clip(expected, info.min, info.max)
    # At a tie rounding decides.
    assert (np.abs(out - clipped) <= 0.5 + 1e-6).all()
    whole = np.clip(np.rint(expected), info.min, info.max).astype(dtype)
    tie = np.abs(expected - np.floor(expected) - 0.5) < 1e-6
    np.testing.assert_array_equal(out[~tie], whole[~tie], strict=True)


@given(cases(words=(*WINDOWS, *OWN, "sum")), layouts, st.booleans(), st.data())
def test_E4_float32_to_its_precision(case: Case, layout: str, masked: bool, data: Any) -> None:
    fn = PerTile(case, layout)
    mask = data.draw(masks(case)) if masked else {}

    def single(crop: np.ndarray, number: int) -> np.ndarray:
        return fn(crop, number).astype(np.float32)

    output = tw.Output("float32", **fn.declared)
    out = tiled(case, single, numbered=True, output=output, fill_value=FILL, **mask)
    expected = oracle(case, fn, numbered=True, out_axes=fn.axes, fill_value=FILL, mask=mask.get("mask"))
    assert out.dtype == "float32"
    assert_close(out.compute(), expected, 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "complex64"])
def test_E4_a_lone_tile_comes_back_to_its_corners_whatever_its_weight_there(dtype: str) -> None:
    """Weights that float32 cannot hold: the corner of a narrow gaussian is 1e-57 of its middle."""
    image = picture([48, 48, 48], dtype)
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    out = tw.tiled_map(
        lambda crop: crop, image, 16, stride=8, blend="gaussian", sigma_scale=0.05, mask=mask,
        dtype=dtype, fill_value=2000,
    ).compute()  # fmt: skip
    expected = np.full_like(image, 2000)
    expected[8:40, 8:40, 8:40] = image[8:40, 8:40, 8:40]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@given(st.integers(0, 99), st.sampled_from(("arrays", "map")), st.sampled_from(("share", "recompute")))
def test_E4_where_the_only_crop_has_no_weight_is_the_fill_value(seed: int, kind: str, reuse: str) -> None:
    """Holes in a window, which neighbours cover, but not those that the mask leaves out."""
    image = picture([33, 31])
    weights = np.array([1.0, 2, 3, 0, 5, 6, 0, 8, 9, 10, 11, 12])
    blend = (weights, weights[::-1]) if kind == "arrays" else np.outer(weights, weights[::-1])
    mask = np.random.default_rng(seed).random((33, 31)) < 0.01
    options = {"stride": 4, "edge": "pad", "blend": blend, "fill_value": FILL, "mask": mask}
    out = tw.tiled_map(
        lambda crop: crop, image, 12, **options, dtype=float, chunks=13, reuse=reuse, skip=lambda c: False
    )
    expected = reference(lambda crop: crop, image, 12, axes=(0, 1), **options)
    assert_close(out.compute(), expected)
