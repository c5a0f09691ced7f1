"""G: geometry. Laws are checked tile by tile, never with the closed forms under test."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.strategies import Axis, axes, calls, endless, grids, many, plans
from tests.reference import walk
from tilework import Output, TilePlan, plan_tiles
from tilework.errors import TilingError
from tilework.grid.axis import EDGES, AxisGrid
from tilework.grid.tiles import Box, TileGrid
from tilework.identity.digests import digest
from tilework.plan.arguments import check_axis
from tilework.plan.tile_mask import TileMask


def frame_length(grid: AxisGrid) -> int:
    """Return the image with its margins, and the padding that ``shift`` and ``squeeze`` need."""
    length = grid.extent + sum(grid.margin)
    while grid.edge in ("shift", "squeeze") and (length < grid.crop or (length - grid.crop) % grid.multiple):
        length += 1
    return length


def walked(grid: AxisGrid) -> list[tuple[int, int, int, int]]:
    """Return the oracle's tiles: reads in the frame, cores in the image."""
    steps = grid.stride, grid.multiple, grid.quantum
    tiles = walk(grid.extent, grid.crop, *steps, *grid.margin, grid.edge, grid.trims, grid.pad_side)
    if grid.edge == "drop" and tiles and tiles[-1][3] < grid.extent:
        # A sample of a coarser result is whole or not there; the oracle rounds it when it writes.
        *read, start, stop = tiles[-1]
        tiles[-1] = (*read, start, stop // grid.quantum * grid.quantum)
    return tiles


def small_grids(longest: int, crops: int):
    """Yield every grid without margin or multiple, of crops and extents up to these."""
    for edge, trims, crop in itertools.product(EDGES, (True, False), range(1, crops + 1)):
        for stride, extent in itertools.product(range(1, crop + 1), range(1, longest + 1)):
            grid = AxisGrid(extent, crop, (crop - stride) // 2, stride, edge, trims)
            yield grid
            if sum(grid.padding):
                yield replace(grid, pad_side="both")


# -- G1: cores ----------------------------------------------------------------------------------


@many
@given(grids())
def test_G1_cores_are_disjoint_and_cover_the_extent(grid):
    cores = [grid.core(i) for i in range(len(grid))]
    bounds = [start for start, _ in cores] + [stop for _, stop in cores[-1:]]
    assert [stop for _, stop in cores[:-1]] == bounds[1:-1], "each ends where the next begins"
    assert bounds == sorted(set(bounds)), "none is empty"
    assert all(start % grid.quantum == 0 for start in bounds[:-1])
    if grid.edge == "drop":
        assert bounds[:1] in ([], [0])
        assert grid.covered == (bounds[-1] if bounds else 0)
    else:
        assert (bounds[0], bounds[-1]) == (0, grid.extent) == (0, grid.covered)


@many
@given(grids(edge="drop"))
def test_G1_drop_covers_what_has_its_context(grid):
    """All that the last crop has, less the overlap; up to the border where a crop ends there."""
    length, stop, n_tiles = frame_length(grid), 0, 0
    while n_tiles * grid.stride + grid.crop <= length:
        stop, n_tiles = n_tiles * grid.stride + grid.crop, n_tiles + 1
    assert len(grid) == n_tiles
    inner = stop - grid.margin[0] - grid.overlap
    expected = grid.extent if stop == length else inner // grid.quantum * grid.quantum
    assert grid.covered == (expected if n_tiles else 0)


# -- G2, G3: reads ------------------------------------------------------------------------------


@many
@given(axes())
def test_G2_core_within_support_within_results_within_the_padded_image(axis):
    grid, rim = axis.grid, axis.rim
    check_axis(grid, 0, rim=rim)
    lo, hi = grid.margin
    assert grid.length == frame_length(grid)
    missing = frame_length(grid) - grid.extent - lo - hi
    assert grid.padding == ((0, missing) if grid.pad_side == "end" else (missing // 2, -(-missing // 2)))
    for i in range(len(grid)):
        read, valid, core, support = (
            grid.read(i), grid.valid(i), grid.core(i), grid.support(i, rim)
        )  # fmt: skip
        assert grid.support(i) == core
        assert valid == (read[0] + lo, read[1] - hi), "the function consumes the margin"
        assert max(0, valid[0]) <= support[0] <= core[0]
        assert core[1] <= support[1] <= min(grid.extent, valid[1])
        assert grid.borders(i) == (
            (False, False) if grid.edge == "pad" else (valid[0] <= 0, valid[1] >= grid.extent)
        )
        if grid.edge != "pad":
            first, last = grid.padding
            assert -lo - first <= read[0] < read[1] <= grid.extent + hi + last


@many
@given(grids())
def test_G3_every_crop_is_full(grid):
    """Only ``clip`` cuts crops, where the image ends and by no more than sticks out."""
    for i in range(len(grid)):
        start, stop = grid.frame(i)
        assert grid.read(i) == (start - grid.margin[0], stop - grid.margin[0])
        if grid.edge == "clip":
            nominal = grid.nominal(i)
            assert (start, stop) == (max(0, nominal), min(frame_length(grid), nominal + grid.crop))
        else:
            assert (start, stop) == (grid.nominal(i), grid.nominal(i) + grid.crop)
        assert (start + grid.padding[0]) % grid.multiple == 0


# -- G4: context --------------------------------------------------------------------------------


@many
@given(grids())
def test_G4_a_cut_side_keeps_its_overlap_or_all_up_to_the_border(grid):
    lo, hi = grid.margin
    for i in range(len(grid)):
        (start, stop), (low, high) = grid.read(i), grid.core(i)
        whole = grid.edge != "pad"  # a padded crop has its context beyond the border too
        assert low - start >= grid.overlap or (whole and start == -lo - grid.padding[0])
        assert stop - high >= grid.overlap or (whole and stop >= grid.extent + hi)


@many
@given(grids(plain=True, trims=True))
def test_G4_neighbours_of_an_even_rest_share_twice_the_overlap(grid):
    """Where all strides are whole, the context is the overlap on both sides, no more."""
    if grid.edge != "squeeze" and grid.crop == grid.stride + 2 * grid.overlap:
        for i in range(1, len(grid) - 1):
            (start, stop), (low, high) = grid.read(i), grid.core(i)
            if start > 0 and stop < grid.extent:
                assert (low - start, stop - high) == (grid.overlap, grid.overlap)


# -- G5: counts ---------------------------------------------------------------------------------


@many
@given(grids())
def test_G5_the_fewest_tiles_that_cover(grid):
    length, fewest, stop = frame_length(grid), 1, grid.crop
    while stop < length:
        fewest, stop = fewest + 1, stop + grid.stride
    nominal = len(range(0, grid.extent, grid.stride))
    if grid.edge == "pad":
        assert len(grid) == nominal
    elif grid.edge == "clip":
        assert fewest <= len(grid) <= nominal
    elif grid.edge == "shift" and grid.trims:
        assert fewest <= len(grid) <= fewest + 1
    elif grid.edge != "drop":  # counted under G1
        assert len(grid) == fewest


@many
@given(grids())
def test_G5_no_tile_twice_and_none_inside_its_predecessor(grid):
    reads = [grid.read(i) for i in range(len(grid))]
    for (start, stop), (low, high) in itertools.pairwise(reads):
        assert stop < high
        assert start < low or (grid.edge == "clip" and start == low == -grid.margin[0])
        assert grid.edge == "clip" or low - start <= grid.stride


# -- G6: closed forms ---------------------------------------------------------------------------


def check_closed_forms(grid: AxisGrid, rims: tuple[int | None, ...], ranges) -> None:
    tiles = range(len(grid))
    owners = [i for i in tiles for _ in range(*grid.core(i))]
    assert [grid.owner(x) for x in range(len(owners))] == owners
    assert grid.nominals().tolist() == [grid.nominal(i) for i in tiles]
    assert np.transpose(grid.reads()).tolist() == [list(grid.read(i)) for i in tiles]
    for rim in rims:
        supports = [grid.support(i, rim) for i in tiles]
        assert supports == [tuple(s) for s in np.transpose(grid.supports(rim)).tolist()]
        for start, stop in ranges:
            meeting = [i for i, (a, b) in enumerate(supports) if a < stop and start < b]
            touching = grid.touching(start, stop, rim)
            assert list(touching) == meeting
            assert grid.starting(stop, rim) == sum(a < stop for a, _ in supports)


def check_against_the_walk(grid: AxisGrid) -> None:
    tiles = walked(grid)
    assert [grid.frame(i) for i in range(len(grid))] == [tile[:2] for tile in tiles]
    if grid.trims:
        assert [grid.core(i) for i in range(len(grid))] == [tile[2:] for tile in tiles]


@st.composite
def ranges_within(draw, grid: AxisGrid):
    start = draw(st.integers(0, grid.extent - 1))
    return [(start, draw(st.integers(start + 1, grid.extent))), (start, start + 1)]


@many
@given(axes(), st.data())
def test_G6_closed_forms_equal_walking_all_tiles(axis: Axis, data):
    ranges = data.draw(ranges_within(axis.grid))
    check_closed_forms(axis.grid, (None, 0, axis.rim), ranges)


@many
@given(grids())
def test_G6_grids_equal_the_oracle(grid):
    if (grid.crop - grid.stride) // 2 == grid.overlap:  # all that the oracle's parameters can say
        check_against_the_walk(grid)


@pytest.mark.parametrize("edge", EDGES)
def test_G6_all_small_grids(edge):
    for grid in small_grids(16, 6):
        if grid.edge == edge:
            check_against_the_walk(grid)
            middle = max(1, grid.extent // 2)
            check_closed_forms(grid, (None, grid.overlap), [(0, middle), (middle - 1, grid.extent)])


@pytest.mark.slow
def test_G6_all_grids_of_crops_up_to_14():
    """The walk from which the closed forms were read, and every range on the shorter images."""
    for grid in small_grids(80, 14):
        check_against_the_walk(grid)
        n = grid.extent
        ranges = list(itertools.combinations(range(n + 1), 2)) if n <= 8 else [(n // 3, n // 2 + 1)]
        check_closed_forms(grid, (None, grid.overlap // 2, grid.overlap), ranges)


@pytest.mark.slow
@endless
@given(axes(most=12), st.data())
def test_G6_closed_forms_for_long(axis: Axis, data):
    check_closed_forms(axis.grid, (None, axis.rim), data.draw(ranges_within(axis.grid)))
    if (axis.grid.crop - axis.grid.stride) // 2 == axis.grid.overlap:
        check_against_the_walk(axis.grid)


@many
@given(grids(edge="shift", trims=True, plain=True, multiples=(1,)))
def test_G6_shift_has_the_closed_forms_of_the_design(grid):
    n, c, o, s = grid.extent, grid.crop, grid.overlap, grid.stride
    if n <= c:
        first = -((c - n) // 2) if grid.pad_side == "both" else 0
        assert (len(grid), grid.read(0), grid.core(0)) == (1, (first, first + c), (0, n))
        return
    first, last = o // s, math.ceil((n - c + o) / s)
    assert len(grid) == last - first + 1
    assert all(grid.owner(x) == min(max(x // s, first), last) - first for x in range(n))


def test_G6_costs_no_memory_however_long_the_axis():
    """A petavoxel axis: closed forms, no table."""
    grid = AxisGrid(10**15 + 7, 512, 32)
    assert len(grid) == -(-(10**15 + 7) // 448)
    last = len(grid) - 1
    assert grid.read(last) == (10**15 + 7 - 512, 10**15 + 7)
    assert grid.owner(10**15) == last
    assert grid.touching(448 * 10**9, 448 * 10**9 + 449) == range(10**9, 10**9 + 2)


# -- G7: several axes ---------------------------------------------------------------------------


@given(calls())
def test_G7_a_grid_is_the_product_of_its_axes(call):
    parts = tuple(axis.grid for axis in call.axes)
    grid = TileGrid(parts)
    assert grid.shape == tuple(map(len, parts))
    positions = list(itertools.product(*(range(len(part)) for part in parts)))
    tiles = list(grid)
    assert [tile.position for tile in tiles] == positions
    assert [tile.index for tile in tiles] == list(range(len(grid))) == list(range(len(tiles)))
    for tile in tiles:
        along = [(part, i) for part, i in zip(parts, tile.position, strict=True)]
        assert list(zip(tile.read.start, tile.read.stop, strict=True)) == [part.read(i) for part, i in along]
        assert list(zip(tile.core.start, tile.core.stop, strict=True)) == [part.core(i) for part, i in along]
        assert tile.padding == tuple(
            (max(0, -part.read(i)[0]), max(0, part.read(i)[1] - part.extent)) for part, i in along
        )
        assert tile == grid[tile.index] == grid[tile.index - len(grid)] == grid.tile(tile.position)
        assert grid.number(tile.position) == tile.index
    assert grid[1::2] == tiles[1::2]
    assert [t for t in tiles[:1] if t in grid] == tiles[:1]
    with pytest.raises(IndexError):
        grid[len(grid)]


@given(calls())
def test_G7_a_plan_has_the_grids_that_its_arguments_mean(call):
    grids = tuple(axis.grid for axis in call.axes)
    margin, scale = tuple(g.margin for g in grids), tuple(axis.scale for axis in call.axes)
    options = call.options | {"output": Output("float32", margin=margin, scale=scale)}
    plan = plan_tiles(call.shape, call.crop, **options)
    assert plan.axes == grids
    overlap = tuple(g.overlap for g in grids)
    if all(g.crop == g.stride + 2 * g.overlap for g in grids):
        by_overlap = options | {"stride": None}
        assert plan == plan_tiles(call.shape, call.crop, overlap, **by_overlap), "one grid"
        assert plan == plan_tiles(call.shape, call.crop, overlap, **options), "they agree"


def test_G7_an_empty_axis_is_refused():
    with pytest.raises(TilingError, match="got extent 0 on axis 1"):
        plan_tiles((4, 0), 2, 0)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=3), st.data())
def test_G7_boxes_are_products_of_intervals(spans, data):
    box = Box(*map(tuple, zip(*spans, strict=True)))
    other = Box(*map(tuple, zip(*data.draw(st.permutations(spans)), strict=True)))
    inside = [set(range(a, b)) for a, b in spans]
    assert box.shape == tuple(map(len, inside))
    assert box.size == math.prod(map(len, inside))
    common = box.intersect(other)
    both = [i & set(range(a, b)) for i, a, b in zip(inside, other.start, other.stop, strict=True)]
    assert common.shape == tuple(map(len, both))
    moved = box.shift([10] * len(spans))
    assert moved.slices == tuple(slice(a + 10, b + 10) for a, b in spans)


# -- G8: forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask"])
@given(st.data())
def test_G8_plans_survive_json_and_pickle(masked, data):
    plan = data.draw(plans(masks=masked))
    assert (plan.mask is not None) == masked
    for again in (
        TilePlan.from_json(plan.to_json()),
        pickle.loads(pickle.dumps(plan)),
        copy.deepcopy(plan),
    ):
        assert again == plan
        assert hash(again) == hash(plan)
        assert list(again) == list(plan)
        assert again.to_json() == plan.to_json()
        assert [type(getattr(again, f.name)) for f in fields(plan)] == [
            type(getattr(plan, f.name)) for f in fields(plan)
        ]
        assert again.tables == plan.tables
        assert again.runs is None if plan.runs is None else (again.runs == plan.runs).all()


@given(plans())
def test_G8_equal_arguments_give_equal_plans_and_others_differ(plan):
    assert replace(plan) == plan
    first = replace(plan.axes[0], extent=plan.axes[0].extent + 1)
    others = [
        replace(plan, axes=(first, *plan.axes[1:])),
        replace(plan, block=tuple(b + 1 for b in plan.block)),
        replace(plan, batch_size=99),
        replace(plan, mask=TileMask.all(plan.grid_shape) if plan.mask is None else None),
        replace(plan, outputs=plan.outputs * 2),
        replace(plan, notes=("another",)),
    ]
    assert all(other != plan and other.to_json() != plan.to_json() for other in others)


@given(plans())
def test_G8_what_a_plan_has_derived_is_no_part_of_it(plan):
    """Nor of its copies: each derives anew what depends on what changed."""
    new = TilePlan.from_json(plan.to_json())
    fresh = pickle.dumps(new), new.to_json(), repr(new), digest(new)
    new.explain()
    ends = tuple(n - 1 for n in new.blocks)
    used = [new.tables, new.owned(ends), new.longest, new.n_runs, new.grid[:], new.shape]
    assert (pickle.dumps(new), new.to_json(), repr(new), digest(new)) == fresh
    assert new == plan
    assert hash(new) == hash(plan)
    assert new.tables is used[0], "derived once"
    block = tuple(n // 2 + 1 for n in plan.shape)
    runs = np.random.default_rng(0).random(plan.grid_shape) < 0.5
    others = (
        new.with_blocks(block, "share"),
        new.with_blocks(new.block, new.reuse, ("a note",)).with_blocks(block, "recompute"),
        new.with_notes(("a note",)),
        new.with_runs(runs),
        replace(new, block=block),
        replace(new, axes=tuple(replace(a, extent=a.extent + 1) for a in new.axes), mask=None),
        replace(new, outputs=new.outputs[:1]),
        replace(new, mask=None),
    )
    for other in others:
        alone = TilePlan.from_json(other.to_json())
        for name in ("tables", "longest", "n_runs", "blocks", "shape", "grid", "grid_shape"):
            assert getattr(other, name) == getattr(alone, name), name
        np.testing.assert_array_equal(other.runs, alone.runs)
        assert str(other.explain()) == str(alone.explain())
        for table, again in zip(other.tables, alone.tables, strict=True):
            assert all(
                getattr(table, name) == getattr(again, name)
                for name in ("owned", "touch", "owned_read", "touch_read", "canvas", "reaches", "longest")
            )


def test_G8_a_plan_of_another_format_is_refused():
    text = plan_tiles((20,), 8, 2).to_json()
    other = json.dumps(json.loads(text) | {"tilework_plan": 0})
    with pytest.raises(TilingError, match=r"format 1; got format 0"):
        TilePlan.from_json(other)


@given(grids())
def test_G8_grids_and_tiles_are_values(grid):
    again = pickle.loads(pickle.dumps(grid))
    assert again == grid
    assert hash(again) == hash(grid)
    for tile in TileGrid((grid, grid))[:3]:
        again = pickle.loads(pickle.dumps(tile))
        assert again == tile
        assert hash(again) == hash(tile)
