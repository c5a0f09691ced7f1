"""G for grids that are built from a rule of starts: each law against the list of starts itself."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.strategies import many
from tilework import TilePlan, plan_tiles
from tilework.errors import GridError
from tilework.grid import axis
from tilework.grid.axis import AxisGrid, Starts
from tilework.grid.tiles import TileGrid
from tilework.grid.weights import AxisWeights

rising = st.lists(st.integers(-9, 60), min_size=1, max_size=9, unique=True).map(sorted)


@st.composite
def ruled(draw):
    """Draw a grid whose crops meet and reach both ends of the image, and its starts."""
    crop = draw(st.integers(1, 9))
    starts = [draw(st.integers(1 - crop, 0))]
    for _ in range(draw(st.integers(0, 6))):
        starts.append(starts[-1] + draw(st.integers(1, crop)))
    extent = draw(st.integers(max(1, starts[-1]), starts[-1] + crop))
    edge = draw(st.sampled_from(["pad", "clip"]))
    overlap = draw(st.integers(0, (crop - 1) // 2))
    return AxisGrid(extent, crop, overlap, edge=edge, trims=False, starts=Starts.of(starts)), starts


@many
@given(rising)
def test_G6_a_rule_gives_back_the_starts_it_was_made_of(starts):
    rule = Starts.of(starts)
    assert len(rule) == len(starts)
    assert list(rule) == starts == rule.array().tolist() == [rule[i] for i in range(len(starts))]
    with pytest.raises(IndexError):
        rule[len(starts)]


@many
@given(st.integers(1, 9), st.integers(-9, 9), st.integers(-9, 60))
def test_G6_every_steps_up_to_its_last_start(step, first, last):
    inner = list(range(first, last, step)) if last > first else []
    assert list(Starts.every(step, first=first, last=last)) == [*inner, last]


def test_G6_a_long_rule_takes_no_memory():
    assert Starts.of(range(0, 3_000_000, 3)).pieces == ((0, 3, 1_000_000),)


@pytest.mark.parametrize("pieces", [(), ((0, 1, 2), (1, 1, 1)), ((0, 0, 2),), ((0, 1, 0),)])
def test_F1_starts_that_do_not_increase_are_refused(pieces):
    with pytest.raises(GridError, match="must increase"):
        Starts(pieces)


@many
@given(ruled())
def test_G1_G2_cores_partition_the_image_and_lie_in_their_crops(drawn):
    grid, starts = drawn
    cores = [grid.core(i) for i in range(len(grid))]
    assert (cores[0][0], cores[-1][1]) == (0, grid.extent)
    assert all(a[1] == b[0] for a, b in pairwise(cores))
    for start, (low, high) in zip(starts, cores, strict=True):
        assert low >= high or (start <= low and high <= start + grid.crop)


@many
@given(ruled())
def test_G3_crops_stand_where_the_rule_says(drawn):
    grid, starts = drawn
    inside = grid.edge == "clip"
    expected = [
        (max(a, 0), min(a + grid.crop, grid.extent)) if inside else (a, a + grid.crop) for a in starts
    ]
    assert [grid.read(i) for i in range(len(grid))] == expected
    assert list(zip(*map(np.ndarray.tolist, grid.reads()), strict=True)) == expected


@many
@given(ruled(), st.data())
def test_G6_supports_at_once_equal_those_one_by_one(drawn, data):
    grid, _ = drawn
    rim = data.draw(st.one_of(st.none(), st.integers(0, grid.overlap)))
    each = [grid.support(i, rim) for i in range(len(grid))]
    assert list(zip(*map(np.ndarray.tolist, grid.supports(rim)), strict=True)) == each
    x = data.draw(st.integers(0, grid.extent - 1))
    touching = [i for i, (a, b) in enumerate(each) if a < x + 1 and b > x]
    assert [i for i in grid.touching(x, x + 1, rim) if each[i][0] < each[i][1]] == touching
    if rim is None:
        assert touching == [grid.owner(x)]


def test_G1_starts_that_leave_the_ends_out_are_not_covered():
    grid = AxisGrid(20, 6, 1, starts=Starts.of([3, 7]))
    assert (grid.core(0)[0], grid.core(1)[1], grid.covered) == (3, 12, 12)
    assert grid.supports()[0][0] == 3


@given(st.lists(ruled(), min_size=1, max_size=3))
def test_G7_G8_plans_of_rules_are_products_and_travel(drawn):
    axes = tuple(grid for grid, _ in drawn)
    shape = tuple(grid.extent for grid in axes)
    base = plan_tiles(shape, crop=tuple(1 for _ in shape), overlap=0)
    plan = replace(base, axes=axes)
    assert len(plan) == np.prod([len(starts) for _, starts in drawn])
    assert [t.read.start for t in TileGrid(axes)] == [t.read.start for t in plan]
    assert TilePlan.from_json(plan.to_json()) == plan == pickle.loads(pickle.dumps(plan))
    assert hash(TilePlan.from_json(plan.to_json())) == hash(plan)


def test_irregular_starts_are_looked_up_one_by_one():
    starts = np.unique(np.random.default_rng(0).integers(-(10**9), 10**9, 50_000)).tolist()
    rule = Starts.of(starts)
    assert len(rule.pieces) > 20_000
    assert len(rule) == len(starts)
    assert [rule[i] for i in range(len(rule))] == starts == list(rule) == rule.array().tolist()
    assert rule[np.array([[3], [-1]])].tolist() == [[starts[3]], [starts[-1]]]
    for wrong in (-1, len(rule)):
        with pytest.raises(IndexError, match=str(wrong)):
            rule[wrong]
    for wrong in (-len(rule) - 1, len(rule)):
        with pytest.raises(IndexError, match=str(wrong)):
            rule[np.array([0, wrong])]
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert hash(again) == hash(rule)


@pytest.mark.parametrize("rim", [None, 0, 1])
@pytest.mark.parametrize("steps", [(4, 4), (2, 5)])
def test_supports_of_some_tiles_do_not_make_those_of_all(monkeypatch, rim, steps):
    """Of more starts than are held, each block made the places of all: 0.4 s for 1.6 million."""
    starts = np.cumsum(np.random.default_rng(0).integers(*steps, 300, endpoint=True)).tolist()
    grid = AxisGrid(starts[-1] + 8, 8, 2, starts=Starts.of([0, *starts]), trims=rim is None)
    each = [grid.support(i, rim) for i in range(len(grid))]
    monkeypatch.setattr(axis, "HELD", 100)
    monkeypatch.setattr(Starts, "array", None)
    monkeypatch.setattr(AxisGrid, "tiles", None)
    for first, stop in ((0, 1), (0, 9), (140, 150), (290, len(grid)), (len(grid) - 1, len(grid)), (5, 5)):
        found = AxisWeights(grid, rim=rim).supports(range(first, stop))
        assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == each[first:stop]
