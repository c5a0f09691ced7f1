"""L2c: levels of a view show what has run and run nothing; contrast limits run five tiles."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS
from tests.laws.engine_strategies import (
    ALL,
    Case,
    assert_same_bits,
    cases,
    masks,
    tiled,
)
from tests.laws.test_e_invariance import Rough, dull
from tests.laws.test_l_view import keys, needed
from tests.sampling import share
from tilework.diagnostics import viewing
from tilework.diagnostics.indexing import Cut
from tilework.graph.build import find_spec, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

SCALES = (1, 1, 2, Fraction(1, 2), Fraction(3, 2))


def every(out: Any, k: int) -> tuple[slice, ...]:
    """Return the index of the samples of level `k`: halved along the last two tiled axes of the result."""
    found = find_spec(out)
    output = found.spec.outputs[found.number]
    tiled_axes = sorted(output.n_each + a for a in output.reduced_axes)[-2:]
    return tuple(slice(None, None, 2**k if a in tiled_axes else 1) for a in range(out.ndim))


@settings(max_examples=share(40))
@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), scales=SCALES, share=True), masked=st.booleans(),
    skips=st.booleans(), layout=st.sampled_from(LAYOUTS), data=st.data(),
)  # fmt: skip
def test_L2c_levels_show_what_has_run(case: Case, masked: bool, skips: bool, layout: str, data: Any) -> None:
    fn = Rough(case, layout)
    options: dict[str, Any] = {"numbered": True, "output": fn.output(), "fill_value": -777}
    options |= {"skip": dull if skips else None} | (data.draw(masks(case)) if masked else {})
    out = tiled(case, fn, **options)
    whole, view = out.compute(), tw.view(out, verbose=False)
    with patch.object(viewing, "SHOWN", data.draw(st.sampled_from((2, 5, 512)))):
        levels = view.levels
    assert len(levels) > 1
    for k, level in enumerate(levels):
        assert (level.shape, level.dtype) == (whole[every(out, k)].shape, whole.dtype)
    for level in levels[1:]:
        assert (np.asarray(level) == -777).all()
    assert view.ran == 0
    key = data.draw(keys(out.shape))
    view[key]
    # Where all tiles of a sample have run, levels have the bits of the result.
    spec = find_spec(out).spec
    output = spec.outputs[0]
    axes = [*range(output.n_each), *(output.n_each + a for a in output.reduced_axes)]
    done = needed(spec, 0, axes, key, out.shape)
    missing = np.zeros(out.shape, bool)
    for position in itertools.product(*map(range, spec.plan.grid_shape)):
        box = [slice(None)] * out.ndim
        for d, weights in enumerate(output.weights):
            box[axes[d]] = slice(
                *(math.ceil(x * weights.scale) for x in weights.grid.support(position[d], weights.rim))
            )
        if position not in done and (spec.plan.runs is None or spec.plan.runs[position]):
            missing[tuple(box)] = True
    before = view.ran
    for k, level in enumerate(levels[1:], 1):
        at = every(out, k)
        shown, known = np.asarray(level), ~missing[at]
        assert_same_bits(shown[known], whole[at][known])
    assert view.ran == before
    assert_same_bits(np.asarray(levels[0]).copy(), whole.copy())
    for k, level in enumerate(levels):
        assert_same_bits(np.asarray(level).copy(), np.ascontiguousarray(whole[every(out, k)]))
        part = data.draw(keys(level.shape))
        np.testing.assert_array_equal(np.asarray(level[part]), whole[every(out, k)][part])


@settings(max_examples=share(40))
@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), scales=SCALES, share=True), masked=st.booleans(),
    skips=st.booleans(), layout=st.sampled_from(LAYOUTS), data=st.data(),
)  # fmt: skip
def test_L2c_contrast_limits_run_five_tiles_whatever_the_blend(
    case: Case, masked: bool, skips: bool, layout: str, data: Any
) -> None:
    fn = Rough(case, layout)
    options: dict[str, Any] = {"numbered": True, "output": fn.output()}
    options |= {"skip": dull if skips else None} | (data.draw(masks(case)) if masked else {})
    out = tiled(case, fn, **options)
    view = tw.view(out, verbose=False)
    low, high = view.contrast_limits
    assert low < high
    if not skips:
        assert view.ran == min(5, view.crops)
    assert view.ran <= min(40, view.crops)
    before = view.ran
    assert view.contrast_limits == (low, high)
    assert view.ran == before  # kept
    whole = np.asarray(view)
    if str(case.weights["blend"]) == "trim" and not masked and not skips:
        assert low >= min(whole.min(), 0)
        assert high <= max(whole.max(), 1)
        if view.crops <= 5 and whole.min() < whole.max() and case.grid["edge"] != "drop":
            assert (low, high) == (whole.min(), whole.max())


@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), data=st.data())
def test_L2c_the_tiles_of_contrast_limits_are_all_different_and_lie_far_apart(
    shape: list[int], data: Any
) -> None:
    plan = tw.plan_tiles([n * 4 for n in shape], 4, 0)
    d = data.draw(st.integers(0, len(shape) - 1))
    fixed = data.draw(st.sampled_from(({}, {d: data.draw(st.integers(0, shape[d] - 1))})))
    found = list(itertools.islice(viewing._far_apart(plan, fixed), 500))
    assert (
        len(set(found)) == len(found) == min(500, math.prod(n for a, n in enumerate(shape) if a not in fixed))
    )
    assert all(position[d] == i for position in found for d, i in fixed.items())
    assert found[0] == tuple(fixed.get(a, n // 2) for a, n in enumerate(shape))
    for a, n in enumerate(shape):
        if n >= 8 and a not in fixed:
            five = sorted(position[a] for position in found[:5])
            assert five[-1] - five[0] >= n // 2


def test_L2c_contrast_limits_leave_out_nan_infinity_nodata_and_what_a_predicate_skips() -> None:
    image = np.full((64, 64), 3.0)
    image[::4] = [np.nan, np.inf, -np.inf, -9999, 5, 7, 3, 3] * 8
    meta = tw.ImageMeta("yx", nodata=-9999)
    out = tw.tiled_map(lambda x: x, image, 8, 0, dtype="f8", meta=meta)
    assert tw.view(out, verbose=False).contrast_limits == (3, 7)
    # Invalid samples of the result are fill_value, which is no value of the function.
    out = tw.tiled_map(
        lambda x: x, np.where(np.isfinite(image), image, -9999), 8, 0, dtype="f8", nodata=-9999
    )
    assert tw.view(out, verbose=False).contrast_limits == (3, 7)
    assert float(out.min()) == 0
    image[:, 8:] = 100
    out = tw.tiled_map(lambda x: x, image, 8, 0, dtype="f8", skip=lambda x: x.max() == 100)
    view = tw.view(out, verbose=False)
    assert view.contrast_limits == (-9999, 7)
    assert view.ran == 5
    out = tw.tiled_map(lambda x: x, image, 8, 0, dtype="f8", skip=lambda x: True)
    assert tw.view(out, verbose=False).contrast_limits == (0, 1)
    none = tw.tiled_map(lambda x: x, image[:4], 8, 0, dtype="f8", edge="drop")
    assert tw.view(none, verbose=False).contrast_limits == (0, 1)
    assert not np.asarray(tw.view(none, verbose=False).levels[1]).any()


@pytest.mark.parametrize(
    ("value", "limits"),
    [(0, (0, 1)), (7, (0, 7)), (-2.5, (-2.5, 1)), (True, (0, 1)), (3 - 4j, (0, 5))],
    ids=str,
)
def test_L2c_contrast_limits_of_a_constant_are_an_interval(value: Any, limits: tuple[float, float]) -> None:
    out = tw.tiled_map(lambda x: x, np.full((20, 20), value), 8, 0, dtype=np.asarray(value).dtype)
    assert tw.view(out, verbose=False).contrast_limits == limits


def test_L2c_contrast_limits_of_no_number() -> None:
    out = tw.tiled_map(lambda x: x, np.zeros((20, 20), "M8[s]"), 8, 0, dtype="M8[s]")
    with pytest.raises(tw.TilingError, match="datetime64"):
        _ = tw.view(out, verbose=False).contrast_limits


def test_L2c_each_channel_has_limits_of_its_own() -> None:
    image = np.arange(3)[:, None, None] * 10 + np.random.default_rng(0).random((3, 40, 40))
    inside = tw.view(
        tw.tiled_map(lambda x: x, image, 8, 0, axes="yx", meta=tw.ImageMeta("cyx"), dtype="f8"), verbose=False
    )
    apart = tw.view(tw.tiled_map(lambda x: x, image, 8, 0, axes=(1, 2), each=0, dtype="f8"), verbose=False)
    for view, ran in ((inside, 5), (apart, 15)):
        for k, (low, high) in enumerate(view.limits_along(0)):
            assert 10 * k <= low < high <= 10 * k + 1
        assert view.ran == ran
    # A tiled axis has tiles with several of its samples.
    both = tw.view(tw.tiled_map(lambda x: x, image, (3, 8, 8), 0, dtype="f8"), verbose=False)
    assert both.limits_along(0) == [both.contrast_limits] * 3
    assert both.ran == 5


def test_L2c_without_a_cache_levels_are_empty_and_limits_run_again(counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    view = tw.view(tw.tiled_map(fn, np.ones((64, 64)), 8, 0, dtype="f8"), cache=0, verbose=False)
    assert view.contrast_limits == view.contrast_limits
    assert fn.calls == 10
    view[:]
    assert not np.asarray(view.levels[1]).any()


SOURCES = ["numpy", "memmap", "dask", "zarr", "h5py"]


@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=share(20))
@given(data=st.data())
def test_L2c_a_cut_is_indexed_as_numpy_does(kind: str, tmp_path_factory: Any, data: Any) -> None:
    image = np.arange(7 * 5 * 6, dtype="i4").reshape(7, 5, 6)
    folder: Path = tmp_path_factory.mktemp("cut")
    array: Any = image
    if kind == "memmap":
        np.save(folder / "a.npy", image)
        array = np.load(folder / "a.npy", mmap_mode="r")
    if kind == "dask":
        array = da.from_array(image, 3)
    if kind == "zarr":
        array = zarr.create_array({}, data=image, chunks=(2, 3, 4))
    if kind == "h5py":
        with h5py.File(folder / "a.h5", "w") as file:
            file["a"] = image
        array = h5py.File(folder / "a.h5")["a"]
    cut, expected = Cut(array), image
    for _ in range(3):
        key = data.draw(keys(expected.shape))
        cut, expected = cut[key], expected[key]
        assert np.shape(cut) == expected.shape
        if not isinstance(cut, Cut):
            break
        assert (cut.ndim, cut.size, cut.nbytes, cut.dtype) == (
            expected.ndim,
            expected.size,
            expected.nbytes,
            image.dtype,
        )
        np.testing.assert_array_equal(np.asarray(cut), expected)
    np.testing.assert_array_equal(np.asarray(cut), expected)
    if kind == "h5py":
        array.file.close()


def test_L2c_a_slice_of_a_level_is_lazy() -> None:
    """napari first takes the window of all planes, and then one of them."""
    view = tw.view(tw.tiled_map(np.sqrt, np.ones((40, 64, 64)), 8, 0, dtype="f8"), verbose=False)
    window = view.levels[0][:, :8, :16]
    assert view.ran == 0
    assert window.shape == (40, 8, 16)
    np.asarray(window[3])
    assert view.ran == 2
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(window, copy=False)


def test_L2c_levels_of_a_slide_end_with_what_a_window_shows() -> None:
    out = tw.tiled_map(
        lambda x: x, da.zeros((3, 9000, 20000), chunks=1000), (500, 500), 0, axes=(1, 2), dtype="f8"
    )
    shapes = [level.shape for level in tw.view(out, verbose=False).levels]
    assert shapes == [(3, -(-9000 // 2**k), -(-20000 // 2**k)) for k in range(7)]
    assert plan_of(out).n_runs == 720


def test_L2c_levels_show_a_tile_beyond_its_block() -> None:
    out = tw.tiled_map(lambda x: x, np.ones((64, 64)), 16, stride=8, blend="average", chunks=16, dtype="f8")
    view = tw.view(out, verbose=False)
    view[8, 8]  # of the tiles that start at 0 and at 8
    level = np.asarray(view.levels[1])
    assert (level[:12, :12] == 1).all()
    assert not level[12:].any()
    assert not level[:, 12:].any()
