"""W: windows. The oracle adds whole windows up over the whole axis and divides."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.laws.strategies import WINDOWS, Axis, arange, axes, blocks, calls, endless, many
from tests.reference import window
from tilework import Output, tiled_map
from tilework.engine.canvas import add
from tilework.engine.products import Products
from tilework.errors import GridError, TilingError
from tilework.function.bound import BoundOutput, bind
from tilework.grid.axis import AxisGrid
from tilework.grid.tiles import TileGrid
from tilework.grid.weights import AxisWeights, profile

if TYPE_CHECKING:
    from tests.laws.strategies import Call

SIGMAS = st.sampled_from((0.125, 0.05, 0.3, 2.0))
NARROW = st.sampled_from((0.125, 1e-2, 1e-3, 1e-6, 1e3))


def ramp(length: int) -> np.ndarray[Any, Any]:
    """Return weights of a window of one's own: positive, not symmetric, very unequal."""
    return (np.arange(length) + 1.0) ** 3


def weights_of(axis: Axis, blend: Any, sigma_scale: float) -> AxisWeights:
    plain = AxisWeights(axis.grid, None, axis.rim, axis.scale)
    filled = profile(blend, plain.length, int(axis.rim * axis.scale), sigma_scale)
    return AxisWeights(axis.grid, filled, axis.rim, axis.scale)


def summed_up(axis: Axis, blend: Any, sigma_scale: float) -> np.ndarray[Any, Any]:
    """Return the weights of every tile before normalising, shape (tiles, extent)."""
    grid, f = axis.grid, axis.scale
    lo, hi = grid.margin
    rim, length = int(axis.rim * f), int((grid.crop - lo - hi) * f)
    raw = np.zeros((len(grid), ceil(grid.extent * f)))
    for i in range(len(grid)):
        full = np.array(window(blend, 0, length, rim, sigma_scale), float)
        start, stop = grid.read(i)[0] + lo, grid.read(i)[1] - hi
        full[:rim] = full[rim] if grid.edge != "pad" and start <= 0 else 0
        full[length - rim :] = full[length - rim - 1] if grid.edge != "pad" and stop >= grid.extent else 0
        origin = ceil(grid.nominal(i) * f)
        inside = range(ceil(max(start, 0) * f), ceil(min(stop, grid.extent) * f))
        raw[i, inside] = full[inside.start - origin : inside.stop - origin]
    return raw


def check_weights(axis: Axis, blend: Any, sigma_scale: float) -> None:
    weights, raw = weights_of(axis, blend, sigma_scale), summed_up(axis, blend, sigma_scale)
    total = raw.sum(axis=0)
    got = np.zeros_like(raw)
    for i in range(len(axis.grid)):
        start, stop = weights.support(i)
        got[i, start:stop] = weights.weights(i)
    covered = weights.support(len(axis.grid) - 1)[1] if len(axis.grid) else 0
    np.testing.assert_allclose(got.sum(axis=0)[:covered], 1, rtol=1e-12)
    assert (total[:covered] > 0).all()
    assert not total[covered:].any()
    assert covered == raw.shape[1] or axis.grid.edge == "drop"
    np.testing.assert_allclose(got[:, :covered], raw[:, :covered] / total[:covered], rtol=1e-12)
    # W2: where a tile has weight, and only there, it is positive.
    assert np.isfinite(got).all()
    assert ((got > 0) == (raw > 0)).all()


# -- W1: the sum of weights ---------------------------------------------------------------------


@many
@given(axes(), st.sampled_from((*WINDOWS, ramp)), SIGMAS)
def test_W1_weights_sum_to_one_at_every_sample(axis, blend, sigma_scale):
    check_weights(axis, blend, sigma_scale)


@pytest.mark.slow
@endless
@given(axes(most=12), st.sampled_from((*WINDOWS, ramp)), SIGMAS)
def test_W1_weights_sum_to_one_on_long_axes(axis, blend, sigma_scale):
    check_weights(axis, blend, sigma_scale)


@many
@given(axes(most=3), st.data())
def test_W1_cover_is_checked_sample_by_sample(axis, data):
    """Windows of one's own may have holes: refused exactly where some sample has no weight."""
    length = int((axis.grid.crop - sum(axis.grid.margin)) * axis.scale)
    values = np.array(data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)), float)
    rim = int(axis.rim * axis.scale)
    assume(values.any())
    weights = weights_of(axis, lambda _: values, 1)
    if not len(axis.grid):
        return
    total = summed_up(axis, lambda _: values, 1).sum(axis=0)[: weights.support(len(axis.grid) - 1)[1]]
    if (total > 0).all():
        weights.check_cover(0)
    else:
        first = np.flatnonzero(total <= 0)[0]
        with pytest.raises(GridError, match=f"sample {first} on axis 0 has none"):
            weights.check_cover(0)
    assert rim == 0 or not (weights.window[:rim].any() or weights.window[-rim:].any())


@given(calls(trims=False, plain=True, tiles=4), st.booleans(), st.data())
def test_W1_blending_ones_gives_ones_in_any_dimension(call: Call, as_map, data):
    """Also for an importance map, which is not a product of windows and is summed per block."""
    assume(all(len(axis.grid) for axis in call.axes))
    blend: Any = data.draw(st.sampled_from(WINDOWS))
    if as_map:
        blend = arange(call.crop) % 7 + 0.5
    out = tiled_map(
        np.ones_like, arange(call.shape), call.crop, **call.options, blend=blend, dtype=float,
        fill_value=-1, chunks=data.draw(blocks(call.shape)),
    ).compute()  # fmt: skip
    expected = np.full(call.shape, -1.0)
    ends = [
        axis.grid.support(len(axis.grid) - 1, rim)[1]
        for axis, rim in zip(call.axes, call.options["rim"], strict=True)
    ]
    expected[tuple(map(slice, ends))] = 1
    np.testing.assert_allclose(out, expected, rtol=1e-13)


# -- W2: profiles -------------------------------------------------------------------------------


@many
@given(st.integers(1, 70), st.data(), NARROW)
def test_W2_profiles_are_positive_finite_and_zero_on_the_rim_only(length, data, sigma_scale):
    rim = data.draw(st.integers(0, (length - 1) // 2))
    m, k = length - 2 * rim, np.arange(length - 2 * rim)
    formulas = {
        "average": np.ones(m),
        "linear": np.minimum(k + 1, m - k),
        "hann": np.sin(np.pi * (k + 0.5) / m) ** 2,
        "gaussian": np.exp(-(((k + rim - (length - 1) / 2) / (sigma_scale * length)) ** 2) / 2),
    }
    for blend in WINDOWS:
        values = profile(blend, length, rim, sigma_scale)
        inner = values[rim : length - rim]
        assert values.shape == (length,)
        assert values.dtype == float
        assert np.isfinite(values).all()
        assert (inner > 0).all()
        assert not values[:rim].any()
        assert not values[length - rim :].any()
        assert np.allclose(values, values[::-1], rtol=1e-12, atol=0)
        formula = formulas[blend]
        np.testing.assert_allclose(inner[formula > 0], formula[formula > 0], rtol=1e-12)
        if (formula > 0).any():  # zeros are lifted to the smallest that is none
            assert (inner[formula == 0] == formula[formula > 0].min()).all()


@given(st.integers(1, 40), st.data())
def test_W2_windows_of_ones_own_are_kept_but_for_the_rim(length, data):
    rim = data.draw(st.integers(0, (length - 1) // 2))
    own = np.arange(length) * 0.5
    own[-1] += 1
    for blend in (own, own.__copy__, own.tolist()):
        given_blend = (lambda n, b=blend: b()) if callable(blend) else blend
        values = profile(given_blend, length, rim)
        assert values[rim : length - rim].tolist() == own[rim : length - rim].tolist()
        assert not values[:rim].any()
        assert not values[length - rim :].any()
    assert own[-1] > 0, "the caller's array is not written into"


@pytest.mark.parametrize(
    ("bad", "values"),
    [
        ([1, -1, 1], "from -1.0 to 1.0"),
        ([1, np.nan, 1], "from nan to nan"),
        ([1, np.inf, 1], "from 1.0 to inf"),
        ([0, 0, 0], "from 0.0 to 0.0"),
        ([1, 1], r"shape \(2,\) for a crop of 3"),
    ],
    ids=["negative", "nan", "inf", "zero", "short"],
)
def test_W2_windows_that_are_no_weights_are_refused(bad, values):
    with pytest.raises(GridError, match=values):
        profile(bad, 3)


@given(axes(trims=False, plain=True), st.sampled_from((*WINDOWS, ramp)))
def test_W2_the_rim_is_filled_where_the_image_ends_and_nowhere_else(axis, blend):
    """With the value of the first sample inside it; where crops are padded, it is nowhere."""
    grid, rim = axis.grid, axis.rim
    weights = weights_of(axis, blend, 0.125)
    for i in range(len(grid)):
        start, stop = grid.valid(i)
        full = weights.fill_rim(i, weights.window)
        ends = [grid.edge != "pad" and start <= 0, grid.edge != "pad" and stop >= grid.extent]
        for side, at_end in zip((full, full[::-1]), ends, strict=True):
            assert (side[:rim] == (side[rim] if at_end else 0)).all()
        assert (full[rim : grid.crop - rim] == weights.window[rim : grid.crop - rim]).all()
        low, high = weights.support(i)
        assert low == max(0, start if ends[0] else start + rim)
        assert high == min(grid.extent, stop if ends[1] else stop - rim)


# -- W3: trim is a blend ------------------------------------------------------------------------


def marked(image: np.ndarray[Any, Any], tile: Any) -> np.ndarray[Any, Any]:
    """Depend on the tile, and be infinite outside its core: what has no weight must not matter."""
    result = np.full(image.shape, np.inf)
    core = tile.core.shift([-a for a in tile.read.start]).slices
    result[core] = image[core] * 1.1 + tile.index
    return result


@given(calls(edge="pad", trims=False, plain=True, tiles=4), st.data())
def test_W3_trim_through_the_blend_path_equals_the_trim_path(call: Call, data):
    """When padding, every core lies at the same place in its crop: a window is 1 there, else 0."""
    windows = []
    for axis in call.axes:
        values = np.zeros(axis.grid.crop)
        values[axis.grid.overlap :][: axis.grid.stride] = 1
        windows.append(values)
    product = windows[0]
    for values in windows[1:]:
        product = np.multiply.outer(product, values)
    options = {k: v for k, v in call.options.items() if k != "rim"}
    options["chunks"] = data.draw(blocks(call.shape))
    trimmed, separable, importance = (
        tiled_map(
            marked,
            arange(call.shape),
            call.crop,
            **options,
            blend=blend,
            dtype=float,
            pass_tile=True,
        ).compute()
        for blend in ("trim", tuple(windows), product)
    )
    assert np.isfinite(trimmed).all()
    assert (separable == trimmed).all()
    assert (importance == trimmed).all()


@given(calls())
def test_W3_adding_with_the_cores_as_weights_equals_copying_them(call: Call):
    """Any edge, margin and scale: weights of 0 and 1 in the accumulator itself."""
    grid = TileGrid(tuple(axis.grid for axis in call.axes))
    weights = tuple(AxisWeights(axis.grid, None, None, axis.scale) for axis in call.axes)
    spans = [[axis.result(i) for i in range(len(axis.grid))] for axis in weights]
    canvases = []
    for blend in ("trim", "average"):
        layer = layer_of(call, weights, blend)
        canvas = np.zeros([axis.extent for axis in weights])
        for tile in grid:
            results = [span[i] for span, i in zip(spans, tile.position, strict=True)]
            cores = [axis.support(i) for axis, i in zip(weights, tile.position, strict=True)]
            values = np.full([b - a for a, b in results], np.nan)
            core = tuple(slice(a - r, b - r) for (a, b), (r, _) in zip(cores, results, strict=True))
            values[core] = arange(values[core].shape) * 1.1 + tile.index
            if blend == "trim":
                add(layer, canvas[tuple(slice(*c) for c in cores)], values[core], None, Products())
                continue
            inside = [(max(a, 0), min(b, n)) for (a, b), n in zip(results, canvas.shape, strict=True)]
            part = tuple(slice(a - r, b - r) for (a, b), (r, _) in zip(inside, results, strict=True))
            flags = []
            for (a, b), (low, high) in zip(inside, cores, strict=True):
                x = np.arange(a, b)
                flags.append((((low <= x) & (x < high)).astype(float), slice(None)))
            add(layer, canvas[tuple(slice(*i) for i in inside)], values[part], flags, Products())
        canvases.append(canvas)
    assert np.isfinite(canvases[0]).all()
    assert (canvases[0] == canvases[1]).all()


def layer_of(call: Call, weights: tuple[AxisWeights, ...], blend: str) -> BoundOutput:
    output = Output(float, scale=tuple(axis.scale for axis in call.axes), margin=margins(call))
    bound = bind(
        None, output, crop_shape=call.crop, crop_axes=tuple(range(len(call.crop))), crop=call.crop,
        margin=margins(call), blend=blend, fill_value=0, result=None,
    )  # fmt: skip
    return replace(bound, weights=weights)


def margins(call: Call) -> tuple[tuple[int, int], ...]:
    return tuple(axis.grid.margin for axis in call.axes)


# -- bounds of the laws -------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["shift", "squeeze", "pad", "clip"])
def test_W1_every_rim_up_to_the_overlap_covers_and_one_more_is_refused(edge):
    for overlap, rim in itertools.product(range(1, 4), range(5)):
        options = {"edge": edge, "blend": "hann", "rim": rim, "dtype": float}
        if rim <= overlap:
            out = tiled_map(np.ones_like, arange((23,)), 8, overlap, **options)
            np.testing.assert_allclose(out.compute(), np.ones(23), rtol=1e-14)
        else:
            with pytest.raises(GridError, match=f"got rim {rim}, overlap {overlap}"):
                tiled_map(np.ones_like, arange((23,)), 8, overlap, **options)


def test_W1_a_rim_needs_a_blend_and_an_overlap():
    with pytest.raises(TilingError, match="rim is for blends; got rim=1"):
        tiled_map(np.ones_like, arange((9,)), 4, 1, rim=1, dtype=float)
    with pytest.raises(GridError, match="rim must not exceed overlap"):
        tiled_map(np.ones_like, arange((9,)), 4, 0, blend="hann", rim=1, dtype=float)


def test_W1_far_tiles_of_a_long_axis_share_their_weights():
    """Equal neighbourhoods give one array, wherever they are."""
    grid = AxisGrid(10**7, 16, 4, trims=False)
    weights = AxisWeights(grid, profile("hann", 32), 0, Fraction(2))
    assert weights.weights(10) is weights.weights(10**5)
    assert weights.weights(0) is not weights.weights(10)
    # Half of a crop further on, what the border changes does not reach the second tile.
    halved = AxisWeights(AxisGrid(4096, 32, 8, trims=False), profile("hann", 32), 0)
    assert len({id(halved.weights(i)) for i in range(len(halved.grid))}) == 3


@many
@given(axes(trims=False, tiles=40), st.sampled_from(WINDOWS), SIGMAS)
def test_W1_equal_weights_are_one_array(axis, blend, sigma_scale):
    weights = weights_of(axis, blend, sigma_scale)
    found = [weights.weights(i) for i in range(len(axis.grid))]
    assert len({one.tobytes() for one in found}) == len({id(one) for one in found})


@many
@given(axes(trims=False, tiles=40))
def test_W_kinds_are_the_first_tiles_of_all_that_have_equal_weights(axis):
    weights = AxisWeights(axis.grid, None, axis.rim)
    keys = [weights.key(i) for i in range(len(axis.grid))]
    assert weights.kinds() == sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values())
