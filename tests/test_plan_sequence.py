"""A plan is a sequence of its tiles, as `collections.abc.Sequence` means it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tilework.grid.axis import AxisGrid
from tilework.grid.tiles import KNOWN, TileGrid


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["shift", "squeeze", "pad", "clip", "drop"]))
def test_a_plan_behaves_as_the_list_of_its_tiles(rows: int, columns: int, edge: Any) -> None:
    plan = tw.plan_tiles((rows, columns), 8, 1, edge=edge, axes=(0, 1))
    tiles = list(plan)
    assert isinstance(plan, Sequence)
    assert len(plan) == len(tiles)
    assert list(reversed(plan)) == tiles[::-1]
    assert list(plan[1:-1:2]) == tiles[1:-1:2]
    assert list(plan[::-1]) == tiles[::-1]
    for number, tile in enumerate(tiles):
        assert plan.index(tile) == tiles.index(tile) == number
        assert plan.count(tile) == tiles.count(tile) == 1
        assert tile in plan
        assert plan[number] == plan[number - len(tiles)] == tile
    for a, b in pairwise(tiles):
        assert plan.index(b, b.index) == plan.index(b, -(len(plan) - b.index)) == b.index
        with pytest.raises(ValueError, match="is none of the"):
            plan.index(a, b.index)
        with pytest.raises(ValueError, match="is none of the"):
            plan.index(b, 0, b.index)


def test_what_is_no_tile_of_the_plan_is_not_in_it() -> None:
    plan, other = tw.plan_tiles((40,), 8, 1), tw.plan_tiles((40,), 8, 2)
    strangers = [other[3], replace(plan[2], index=3), replace(plan[2], index=99), replace(plan[2], index=-1)]
    for value in [*strangers, None, 0, "x", np.zeros(3)]:
        assert value not in plan
        assert plan.count(value) == 0
        with pytest.raises(tw.TilingError, match="is none of the 7 tiles"):
            plan.index(value)
    assert plan[2] in TileGrid(plan.axes)


def test_a_tile_is_found_among_very_many() -> None:
    plan = tw.plan_tiles((10**7, 10**7), 100, 10)
    tile = plan[10**10]
    assert (tile in plan, plan.index(tile), plan.count(tile)) == (True, 10**10, 1)


def test_tiles_that_run_are_counted_by_running() -> None:
    mask = np.zeros((4, 3), bool)
    mask[0, 0] = True
    plan = tw.plan_tiles((40, 30), 10, 0, mask=mask)
    assert plan.running([(0, 4), (0, 3)]) == plan.n_runs == 1
    assert plan.running([(1, 4), (0, 3)]) == 0
    with pytest.raises(TypeError, match=r"plan\.running"):
        plan.count([(0, 4), (0, 3)])


@pytest.mark.parametrize(
    ("given", "stride"), [(0.25, 24), (np.float32(0.5), 48), (Fraction(1, 3), 32), (0.001, 1), (0.0, 1)]
)
def test_a_stride_as_a_share_is_answered_about_strides(given: Any, stride: int) -> None:
    with pytest.raises(TypeError, match=rf"stride is in samples.* apart: stride={stride}\.") as caught:
        tw.plan_tiles((300, 300), 96, stride=given)
    assert "overlap" not in str(caught.value)
    with pytest.raises(TypeError, match="stride=72, or overlap=12"):
        tw.plan_tiles((300, 300), 96, 0.25)
    with pytest.raises(TypeError, match=rf"stride={stride}\."):
        tw.plan_tiles((300, 300), 96, stride=(10, given))


def test_places_of_tiles_are_kept_within_bounds() -> None:
    """A loop over a plan of 10**7 tiles must not end up with all of them."""
    grid = TileGrid((AxisGrid(10**8, 10, 0), AxisGrid(20, 10, 0)))
    seen = [grid[number].read.start for number in range(0, 4 * KNOWN * 101, 101)]
    assert seen[:2] == [(0, 0), (500, 10)]
    assert len(grid._known[0]) <= KNOWN + 1


def test_one_thread_is_no_threads() -> None:
    plan = tw.plan_tiles((60, 60), 20, 4)
    assert "with 1 thread," in plan.with_threads(1).explain()
    assert "with 2 threads," in plan.with_threads(2).explain()
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(tw.MemoryBudgetError, match=r"with 1 thread[,;]"),
    ):
        tw.to_zarr(tw.tiled_map(np.copy, np.zeros((60, 60)), 20, 4, dtype=float), {}, memory_limit=1)
