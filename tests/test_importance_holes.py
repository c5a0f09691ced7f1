"""A sample that no crop gives a weight is found at the call, and named by axis and sample."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tilework as tw
from tilework.grid.axis import EDGES
from tilework.grid.weights import AxisWeights


def weight(plan: tw.TilePlan, importance: np.ndarray, rim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of all weights on each sample, and whether a crop lies on it; tile by tile."""
    axes = [AxisWeights(grid, None, rim) for grid in plan.axes]
    inner = tuple(slice(rim, n - rim) for n in importance.shape)
    bare = np.zeros_like(importance)
    bare[inner] = importance[inner]
    total, covered = np.zeros(plan.shape), np.zeros(plan.shape, bool)
    for tile in plan:
        full = bare
        for d, (axis, i) in enumerate(zip(axes, tile.position, strict=True)):
            full = axis.fill_rim(i, full, d)
        own = tuple(axis.in_window(i) for axis, i in zip(axes, tile.position, strict=True))
        place = tuple(slice(*axis.support(i)) for axis, i in zip(axes, tile.position, strict=True))
        total[place] += full[own]
        covered[place] = True
    return total, covered


@given(data=st.data(), edge=st.sampled_from(EDGES), ndim=st.integers(2, 3), rim=st.integers(0, 1))
def test_a_hole_is_found_exactly_where_there_is_one(data: Any, edge: Any, ndim: int, rim: int) -> None:
    crop = data.draw(st.tuples(*[st.integers(3, 7)] * ndim))
    shape = data.draw(st.tuples(*[st.integers(4, 16)] * ndim))
    stride = tuple(data.draw(st.integers(1, c - 1)) for c in crop)
    share = data.draw(st.sampled_from([0.05, 0.3, 0.7]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    importance = np.where(random.random(crop) < share, 0, random.random(crop))
    options: dict[str, Any] = {"stride": stride, "edge": edge, "rim": rim, "axes": tuple(range(ndim))}
    try:
        plan = tw.plan_tiles(shape, crop, blend="average", **options)
    except tw.GridError:
        assume(False)
    assume(importance[tuple(slice(rim, c - rim) for c in crop)].any())
    total, covered = weight(plan, importance, rim)
    if not (covered & (total <= 0)).any():
        tw.plan_tiles(shape, crop, blend=importance, **options)
        return
    with pytest.raises(tw.GridError, match="every sample needs a positive weight") as caught:
        tw.plan_tiles(shape, crop, blend=importance, **options)
    named = tuple(int(n) for n in re.findall(r"(\d+) on axis", str(caught.value)))
    assert covered[named]
    assert total[named] <= 0


@pytest.mark.parametrize("edge", EDGES)
def test_a_hole_in_each_kind_of_blend(edge: Any) -> None:
    """One window for all axes, one per axis, and a map."""
    hole = np.ones(8)
    hole[3:5] = 0
    image = np.ones((40, 40), "f4")
    blends = {"callable": lambda n: hole, "windows": (np.ones(8), hole), "map": np.outer(np.ones(8), hole)}
    for name, blend in blends.items():
        with pytest.raises(tw.GridError, match=r"sample .* on axis"):
            tw.tiled_map(np.copy, image, 8, stride=7, blend=blend, edge=edge, dtype="f4")
        out = tw.tiled_map(np.copy, image, 8, stride=3, blend="average", edge=edge, dtype="f4")
        assert np.isfinite(out.compute()).all(), name


def test_a_hole_that_neighbours_fill_is_none() -> None:
    importance = np.ones((8, 8))
    importance[4, 4] = 0
    image = np.random.default_rng(0).random((20, 20)).astype("f4")
    out = tw.tiled_map(np.copy, image, 8, stride=2, blend=importance, dtype="f4")
    np.testing.assert_allclose(out.compute(), image, rtol=1e-6)


def test_a_hole_of_a_scaled_result_is_named_in_its_samples() -> None:
    importance = np.ones((16, 16))
    importance[8, 8] = 0
    with pytest.raises(tw.GridError, match="sample 8 on axis 0, 8 on axis 1"):
        tw.plan_tiles((20, 20), 8, stride=7, blend=importance, output=tw.Output("f4", scale=2))
