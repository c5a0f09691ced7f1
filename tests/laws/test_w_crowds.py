"""W4: however many crops lie on a sample, rounding takes a few units of the last place from their average."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_strategies import WINDOWS
from tilework.graph.build import plan_of
from tilework.grid import weights as axis_weights
from tilework.grid.axis import AxisGrid, Starts
from tilework.grid.weights import PLAIN, AxisWeights, profile

ULPS = 4
DTYPES = ("float32", "float64", "complex64", "complex128")


def uneven(length: int) -> Any:
    return np.random.default_rng(length).random(length) + 0.01


def same(crop: Any) -> Any:
    return crop


def error(out: Any, value: Any) -> float:
    """Return the largest error, in units of the last place of the value."""
    eps = np.finfo(out.dtype).eps
    return float(np.abs(out - out.dtype.type(value)).max() / (abs(value) * eps))


@given(
    crop=st.integers(PLAIN + 1, 400),
    more=st.integers(0, 300),
    stride=st.integers(1, 3),
    blend=st.sampled_from((*WINDOWS, uneven)),
    dtype=st.sampled_from(DTYPES),
    value=st.sampled_from((1.0, 1.1, 1e-3)),
    edge=st.sampled_from(("shift", "squeeze", "clip", "pad")),
    chunks=st.sampled_from((50, 170, "auto")),
)
def test_W4_an_average_of_equal_values_is_that_value(
    crop: int, more: int, stride: int, blend: Any, dtype: str, value: float, edge: Any, chunks: Any
) -> None:
    image = np.full(crop + more, value, dtype)
    out = tw.tiled_map(
        same,
        image,
        crop,
        stride=stride,
        blend=blend,
        dtype=dtype,
        edge=edge,
        chunks=chunks,
        reuse="recompute",
    )
    assert error(out.compute(scheduler="sync"), image[0]) <= ULPS


@pytest.mark.sample(0, whole=4)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blend", ["gaussian", "map"])
@pytest.mark.parametrize("masked", [False, True])
def test_W4_in_two_dimensions_with_maps_and_masks(blend: str, dtype: str, masked: bool) -> None:
    weights = uneven(24 * 24).reshape(24, 24) if blend == "map" else blend
    mask = np.random.default_rng(1).random((60, 60)) > 0.5 if masked else None
    image = np.full((60, 60), 1.1, dtype)
    out = tw.tiled_map(same, image, 24, stride=1, blend=weights, dtype=dtype, mask=mask, chunks=30)
    assert plan_of(out).outputs[0].sample_bytes == 2 * np.dtype(dtype).itemsize
    assert error(out.compute(scheduler="sync"), image[0, 0]) <= ULPS


def test_W4_1024_crops_on_one_sample() -> None:
    """They averaged ones to 1 + 1.4e-5."""
    out = tw.tiled_map(same, np.ones(2048, "float32"), 1024, stride=1, blend="average", dtype="float32")
    assert error(out.compute(scheduler="sync"), 1) <= 1


def test_W4_sums_and_patches() -> None:
    values = np.random.default_rng(0).random(300).astype("float32")
    out = tw.tiled_map(same, values, 100, stride=1, blend="sum", dtype="float32").compute(scheduler="sync")
    count = np.convolve(np.ones(201), np.ones(100))
    assert (np.abs(out / (values.astype("float64") * count) - 1) <= 2**-23).all()
    sampler = tw.GridSampler(values, (300,), (100,), (1,))
    for chunk in (None, (150,)):
        own = tw.GridSampler(values, (300,), (100,), (1,), chunk_size=chunk) if chunk else sampler
        for output in (None, np.empty(300, "float32")):
            aggregator = tw.Aggregator(own, output_size=(300,), output=output, weights="gaussian")
            for patch, box in own:
                aggregator.append(patch, box)
            assert (np.abs(aggregator.get_output() / values - 1) <= ULPS * 2**-23).all()


def test_W4_inf_and_nan_stay_in_a_crowd() -> None:
    image = np.ones(200)
    image[[50, 90, 130]] = np.inf, -np.inf, np.nan
    out = tw.tiled_map(same, image, 64, stride=1, blend="hann", dtype="float64").compute(scheduler="sync")
    assert out[50] == np.inf
    assert out[90] == -np.inf
    assert np.isnan(out[130])
    assert np.isfinite(out).sum() == 197


def test_W4_ordinary_layouts_have_plain_sums() -> None:
    """Overlap by half, the last crops moved inward, in three dimensions."""
    out = tw.tiled_map(same, np.ones((30, 30, 30), "float32"), 8, stride=4, blend="hann", dtype="float32")
    assert plan_of(out).outputs[0].sample_bytes == 4


# -- the cost of weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("extent", "crop"), [(3000, 1000), (2500, 2000)])
def test_W4_weights_of_a_crowd_cost_a_few_windows_per_tile(extent: int, crop: int, monkeypatch: Any) -> None:
    """Each window was added once for every tile that it meets: 10 000 crops on a sample did not end."""
    used = 0
    raw = AxisWeights.raw

    def counted(self: AxisWeights, i: int) -> Any:
        nonlocal used
        used += 1
        return raw(self, i)

    monkeypatch.setattr(AxisWeights, "raw", counted)
    weights = AxisWeights(AxisGrid(extent, crop, 0, 1, trims=False), profile("gaussian", crop), 0)
    n = len(weights.grid)
    sums = np.zeros(extent)
    for i in range(n):
        a, b = weights.support(i)
        sums[a:b] += weights.weights(i)
    assert np.allclose(sums, 1)
    assert used <= 5 * n
    assert weights.most == min(n, crop)


def test_W4_a_key_is_short_however_many_neighbours_there_are() -> None:
    weights = AxisWeights(AxisGrid(40_000, 10_000, 0, 1, trims=False), profile("average", 10_000), 0)
    keys = [weights.key(i) for i in range(0, len(weights.grid), 97)]
    assert max(sum(len(part) for part in key if isinstance(part, bytes)) for key in keys) < 1000
    assert weights.key(10_050) == weights.key(12_000)
    assert weights.key(10_050) != weights.key(9_998)
    assert math.isclose(weights.weights(10_050).sum(), 1)


def test_W4_sums_of_weights_are_exact_to_the_last_place() -> None:
    window = uneven(3000)
    weights = AxisWeights(AxisGrid(7000, 3000, 0, 1, trims=False), profile(uneven, 3000), 0)
    total = weights.total(0, 7000)
    for x in range(0, 7000, 501):
        exact = math.fsum(window[x - k] for k in range(max(0, x - 2999), min(4000, x) + 1))
        assert abs(total[x] - exact) <= exact * np.finfo(float).eps


@given(
    steps=st.lists(st.sampled_from((1, 2, 2, 2, 5)), min_size=3, max_size=40),
    crop=st.integers(6, 30),
    rim=st.integers(0, 2),
)
@example(steps=[*[2] * 12, 1, 3, *[2] * 12, 3, 1, *[2] * 12], crop=14, rim=0)
def test_W4_a_key_tells_all_neighbours(steps: list[int], crop: int, rim: int) -> None:
    """Also where the first and the last ones are the same and only some between differ."""
    starts = np.cumsum([0, *steps])
    grid = AxisGrid(int(starts[-1]) + crop, crop, 0, 1, trims=False, starts=Starts.of(starts.tolist()))
    weights = AxisWeights(grid, profile("hann", crop, rim), rim)
    total = np.zeros(grid.extent)
    for i in range(len(grid)):
        total[slice(*weights.support(i))] += weights.raw(i)
    for i in range(len(grid)):
        assert np.allclose(weights.weights(i), weights.raw(i) / total[slice(*weights.support(i))])


@given(
    extent=st.integers(10, 2500),
    crop=st.integers(2, 40),
    stride=st.integers(1, 40),
    multiple=st.sampled_from((1, 1, 2, 3)),
    edge=st.sampled_from(("shift", "clip", "pad", "drop")),
    rim=st.sampled_from((0, 0, 1, 3)),
)
@example(extent=1000, crop=40, stride=1, multiple=1, edge="shift", rim=3)
def test_W4_tiles_of_a_long_axis_have_the_weights_of_their_like_on_a_shorter_one(
    extent: int, crop: int, stride: int, multiple: int, edge: Any, rim: int
) -> None:
    """The places of all tiles of a long axis, each below many others, were found for the weights of one."""
    try:
        tiling: dict[str, Any] = {"stride": min(stride, crop), "multiple": multiple, "rim": rim, "edge": edge}
        plan = tw.plan_tiles((extent,), crop, blend="gaussian", **tiling)
    except tw.GridError:
        return
    [grid], [output] = plan.axes, plan.outputs
    assert output.rim is not None
    window = profile("gaussian", crop, *output.rim)
    expected = AxisWeights(grid, window, *output.rim)
    found = AxisWeights(grid, window, *output.rim)
    with pytest.MonkeyPatch.context() as patch:
        for i in range(len(grid)):
            patch.setattr(axis_weights, "COMPARED", 2**18)
            values = expected.weights(i)
            patch.setattr(axis_weights, "COMPARED", 0)
            np.testing.assert_array_equal(found.weights(i), values)
    assert found._shorter is found or "_neighbours" not in vars(found)


def test_W4_weights_on_a_long_axis_do_not_take_memory_for_all_tiles() -> None:
    """A picture of crops of 2000 at stride 10 over 10^8 samples took 4 s and 1.2 GB."""
    grid = AxisGrid(10**12, 2000, 995, 1, trims=False)
    weights = AxisWeights(grid, profile("hann", 2000), 0)
    i = len(grid) // 2 + 1
    assert weights.weights(i) is weights.weights(i + 12_345)
    assert weights.weights(len(grid) - 1) is not weights.weights(i)
