"""E4 for several outputs, reductions and several arrays: each is what it would be alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import cycle
from math import lcm
from typing import TYPE_CHECKING, Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws import engine_strategies
from tests.laws.engine_functions import LAYOUTS, Called, PerTile, part
from tests.laws.engine_strategies import (
    EXTREMES,
    OWN,
    WINDOWS,
    Case,
    assert_close,
    assert_same_bits,
    blends,
    cases,
    covered,
    masks,
    oracle,
    picture,
    tiled,
)
from tests.reference import walk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
SUMS = (*WINDOWS, *OWN, "sum")
ALL = ("trim", *EXTREMES, *SUMS)


# ---------------------------------------------------------------------------------- several outputs


@dataclass(frozen=True)
class Several:
    """A function that returns a tuple or a dict."""

    parts: dict[Any, PerTile]
    dtypes: dict[Any, str]

    def __call__(self, crop: np.ndarray, number: int) -> Any:
        found = {k: fn(crop, number).astype(self.dtypes[k]) for k, fn in self.parts.items()}
        return tuple(found.values()) if 0 in found else found


@st.composite
def several(draw: Any, case: Case) -> tuple[Several, Any]:
    """Draw a function and the declaration of its outputs, which differ in all that may differ."""
    keys = draw(st.sampled_from([(0,), (0, 1), (0, 1, 2), ("b", "a"), ("x",)]))
    q = [f.denominator for f in case.scale]
    parts, dtypes, outputs = {}, {}, {}
    for key in keys:
        scale = tuple(Fraction(draw(st.integers(1, 3)), draw(st.sampled_from((1, n)))) for n in q)
        own = replace(case, scale=scale)
        own = replace(own, weights=case.weights | {"blend": draw(blends(ALL, own.result_crop))})
        parts[key] = PerTile(own, draw(st.sampled_from(LAYOUTS)), factor=1 + len(parts))
        dtypes[key] = draw(st.sampled_from(("float32", "float64")))
        outputs[key] = tw.Output(
            dtypes[key], **parts[key].declared, blend=own.weights["blend"],
            fill_value=draw(st.sampled_from((None, -5))),
        )  # fmt: skip
    declared = tuple(outputs.values()) if 0 in keys else outputs
    return Several(parts, dtypes), declared


@contextmanager
def common_grid(parts: list[PerTile]) -> Iterator[None]:
    """Let the oracle cut the image as all outputs together want it."""
    trims = any(fn.case.kind == "trim" for fn in parts)
    scales = zip(*(fn.case.scale for fn in parts), strict=True)
    axes = cycle([lcm(*(f.denominator for f in column)) for column in scales])

    def together(n: int, c: int, s: int, m: int, _q: int, *rest: Any) -> Any:
        q = next(axes)
        return walk(n, c, s, lcm(m, q), q, *rest[:3], trims, *rest[4:])

    with (
        mock.patch("tests.reference.walk", together),
        mock.patch.object(engine_strategies, "walk", together),
    ):
        yield


@given(cases(words=("sum",), margins=True, scales=(1, Fraction(1, 2), Fraction(1, 3)),
             multiples=(1, 2), dims=(1, 2), ends=True), st.data())  # fmt: skip
def test_E4_several_outputs(case: Case, data: Any) -> None:
    fn, declared = data.draw(several(case))
    kinds = {f.case.kind == "trim" for f in fn.parts.values()}
    if len(kinds) > 1 and case.grid["edge"] == "clip":
        case.grid["edge"] = "shift"  # the oracle has no window for a blended crop cut in front
    case.weights["blend"] = "trim" if data.draw(st.booleans()) else "average"  # all say their own
    if kinds == {True}:
        case.weights["rim"] = 0
    skips = data.draw(st.booleans())
    out = tiled(
        case, fn, numbered=True, output=declared, fill_value=FILL,
        skip=(lambda crop: False) if skips else None,
    )  # fmt: skip
    assert type(out) is type(declared)
    keys = range(len(out)) if isinstance(out, tuple) else out
    results = dask.compute({key: out[key] for key in keys})[0]
    for key in keys:
        own = fn.parts[key]
        output = declared[key]
        fill = FILL if output.fill_value is None else output.fill_value
        with common_grid(list(fn.parts.values())):
            expected = oracle(own.case, own, numbered=True, out_axes=own.axes, fill_value=fill)
        assert results[key].dtype == out[key].dtype == fn.dtypes[key]
        assert_close(results[key], expected, 1e-5 if fn.dtypes[key] == "float32" else 1e-12)
        # One by one they are the same.
        assert_same_bits(out[key].compute(), results[key])


@given(cases(words=("average",), each=False), st.lists(st.sampled_from(ALL[:-1]), max_size=3))
def test_E1_blends_of_one_call_all_return_the_image(case: Case, words: list[str]) -> None:
    """Also where a trimmed output asks for another grid than a blend alone would have."""
    words = ["trim", "average", *(w for w in words if w not in OWN)]
    out = tiled(
        case, lambda crop: (crop,) * len(words),
        output=tuple(tw.Output("float64", blend=word) for word in words),
    )  # fmt: skip
    for word, result in zip(words, dask.compute(*out), strict=True):
        own = replace(case, weights=case.weights | {"blend": word})
        inside = part(case.axes, covered(own), case.image.ndim, 0)
        if case.grid["edge"] == "drop" and word != "trim":
            assert_close(result[inside], case.image[inside])
            continue
        expected = np.zeros_like(case.image)
        expected[inside] = case.image[inside]
        assert_close(result, expected)


@pytest.mark.parametrize("word", ["linear", "hann", "map"])
@pytest.mark.parametrize("extent", [23, 24, 25, 30])
def test_E4_a_blend_beside_a_trim_takes_the_slice_of_its_nominal_window(extent: int, word: str) -> None:
    """By hand: crop 10, overlap 3; clipped crops, of which the first starts at -3, as trims want it."""
    image, crop, overlap = picture([extent]), 10, 3
    window = {
        "linear": np.minimum(np.arange(10) + 1, 10 - np.arange(10)),
        "hann": np.sin(np.pi * (np.arange(10) + 0.5) / 10) ** 2,
        "map": 1.0 + np.arange(10) % 4,
    }[word]

    def fn(crop: np.ndarray, number: int) -> Any:
        return crop, crop * (number + 1)

    value, weight = np.zeros(extent), np.zeros(extent)
    for number, start in enumerate(range(-overlap, extent, crop - 2 * overlap)):
        first, stop = max(start, 0), min(start + crop, extent)
        value[first:stop] += image[first:stop] * (number + 1) * window[first - start : stop - start]
        weight[first:stop] += window[first - start : stop - start]
        if stop == extent:
            break
    blend = (window,) if word == "map" else word
    out = tw.tiled_map(
        Called(fn, numbered=True), image, crop, overlap, edge="clip", pass_tile=True, chunks=11,
        output=(tw.Output(float), tw.Output(float, blend=blend)),
    )  # fmt: skip
    np.testing.assert_array_equal(out[0].compute(), image)
    np.testing.assert_allclose(out[1].compute(), value / weight, rtol=1e-12)


# -------------------------------------------------------------------------------------- reductions


class Narrow:
    """Scores with ties, as float32."""

    def __init__(self, fn: PerTile) -> None:
        self.fn = fn

    def __call__(self, crop: np.ndarray, number: int) -> np.ndarray:
        return (self.fn(crop, number) % 50 - 20).astype("float32")


@given(
    cases(words=("trim", *SUMS), scales=(1, 2), dims=(1, 2)), st.data(),
    st.sampled_from(("first", "last", "middle", "shape")), st.booleans(),
)  # fmt: skip
def test_E4_argmax_is_that_of_the_whole_blend(case: Case, data: Any, layout: str, masked: bool) -> None:
    fn = PerTile(case, layout)
    options = {"numbered": True} | (data.draw(masks(case)) if masked else {})
    scores = tiled(case, Narrow(fn), output=tw.Output("float32", **fn.declared), **options)
    channel_axis = fn.declared.get("channel_axis", data.draw(st.sampled_from((0, -1))))
    declared = fn.declared | {"channel_axis": channel_axis, "reduce": "argmax", "fill_value": 9}
    out = tiled(case, Narrow(fn), output=tw.Output(**declared), **options)
    ran = tiled(
        case, lambda crop, number: np.ones_like(fn(crop, number)), **options,
        output=tw.Output("float64", **fn.declared),
    )  # fmt: skip
    axis = channel_axis if channel_axis < 0 else len(case.each) + channel_axis
    expected = np.where(ran.compute().max(axis) > 0, scores.compute().argmax(axis), 9)
    assert_same_bits(out.compute(), expected.astype("uint8"))


@given(cases(words=("trim", *SUMS), scales=(1, 2), dims=(1, 2, 3)), st.sampled_from(LAYOUTS))
def test_E4_a_callable_reduces_the_whole_blend(case: Case, layout: str) -> None:
    fn = PerTile(case, layout)
    untiled = [a for a in range(len(fn.axes) + len(_untiled(case, layout))) if a not in fn.axes]

    def reduce(block: np.ndarray) -> np.ndarray:
        return np.stack([block.max(tuple(untiled)), block.sum(tuple(untiled)) * 0.5])

    options: dict[str, Any] = {"numbered": True}
    whole = tiled(case, fn, output=tw.Output("float64", **fn.declared), **options).compute()
    output = tw.Output("float64", **fn.declared, reduce=reduce)
    out = tiled(case, fn, output=output, **options)
    lead = whole.shape[: len(case.each)]
    parts = [reduce(whole[i]) for i in np.ndindex(*lead)]
    expected = np.stack(parts).reshape(*lead, *parts[0].shape)
    assert out.shape == expected.shape
    assert_close(out.compute(), expected)


def _untiled(case: Case, layout: str) -> tuple[int, ...]:
    sizes = {"none": (), "reversed": (), "shape": (2, 3)}
    if layout == "same":
        kept = [n for a, n in enumerate(case.image.shape) if a not in (*case.axes, *case.each)]
        return tuple(kept)
    return sizes.get(layout, (3,))


# ---------------------------------------------------------------------------------- several arrays


@dataclass(frozen=True)
class Together:
    """A function of several crops with as many untiled axes as they please."""

    case: Case
    front: bool

    def __call__(self, *args: Any) -> np.ndarray:
        *crops, number = args
        d, total = len(self.case.axes), 0.0
        for k, crop in enumerate(crops):
            others = range(crop.ndim - d) if self.front else range(d, crop.ndim)
            total = total + (k + 1) * crop.astype(float).sum(tuple(others))
        return self.alone(total, number)

    def alone(self, total: np.ndarray, number: int) -> np.ndarray:
        return total + sum(np.ogrid[tuple(map(slice, total.shape))]) + 1000 * number


@given(
    cases(words=ALL, untiled=False, each=False, sorted_axes=True, multiples=(1, 2)),
    st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=3),
    st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_E4_several_arrays_of_different_untiled_axes(
    case: Case, others: list[list[int]], front: bool, lazy: bool, data: Any
) -> None:
    d = len(case.axes)
    arrays, combined = [], np.zeros(case.extents)
    for k, untiled in enumerate(others):
        shape = (*untiled, *case.extents) if front else (*case.extents, *untiled)
        array = picture(shape, ("float64", "int32", "uint16")[k])
        axes = tuple(range(len(untiled))) if front else tuple(range(d, len(shape)))
        combined += (k + 1) * array.astype(float).sum(axes)
        if lazy:
            array = da.from_array(array, chunks=data.draw(st.integers(1, 9)))
        arrays.append(array)
    case.grid["cval"] = 0  # a constant would be added up
    fn = Together(case, front)
    axes = tuple(range(-d, 0)) if front else tuple(range(d))
    shape = case.result_crop
    out = tiled(
        case, fn, numbered=True, image=tuple(arrays), axes=axes, fill_value=FILL,
        output=tw.Output("float64", shape=shape, axes=tuple(range(d))),
    )  # fmt: skip
    whole = replace(case, image=combined, axes=tuple(range(d)))
    expected = oracle(whole, fn.alone, numbered=True, fill_value=FILL)
    assert_close(out.compute(), expected)


@given(cases(words=("trim", "gaussian"), untiled=False, each=False, sorted_axes=True, dims=(1, 2)))
def test_E4_several_arrays_share_their_each_axis(case: Case) -> None:
    first = np.stack([case.image, case.image + 1, case.image * 2])
    second = first[:, None] * np.ones((1, 2) + (1,) * len(case.axes))
    fn = Together(replace(case, axes=tuple(range(len(case.axes)))), front=True)
    out = tiled(
        case, fn, numbered=True, image=(first, second), each=(0,), fill_value=FILL,
        axes=tuple(range(-len(case.axes), 0)),
        output=tw.Output("float64", shape=case.result_crop, axes=tuple(range(len(case.axes)))),
        chunks=case.run["chunks"],
    )  # fmt: skip
    image = np.stack([first[k] + 2 * second[k].sum(0) for k in range(3)])
    if case.grid["boundary"] == "constant":
        case.grid["cval"] = 0
        return
    whole = replace(case, image=image, axes=tuple(range(1, image.ndim)), each=(0,))
    expected = oracle(whole, fn.alone, numbered=True, fill_value=FILL)
    assert_close(out.compute(), expected)
