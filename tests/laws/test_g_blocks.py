"""G, blocks: who owns, touches and reads what; and the choice of the blocks themselves."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.strategies import axes, many, plans
from tilework import plan_tiles
from tilework._derived import derived
from tilework.errors import AlignmentError, GridError, MemoryBudgetError
from tilework.grid.tiles import Box
from tilework.plan import blocks
from tilework.plan import reuse as ways
from tilework.plan.axis_table import AxisTable
from tilework.plan.block_shapes import BlockRequest
from tilework.plan.blocks import choose_blocks
from tilework.plan.cost import busiest
from tilework.plan.memory import bound_bytes, held_bytes, least_bytes, peak_bytes
from tilework.plan.tables import SourcePlan

# -- one axis -----------------------------------------------------------------------------------


@st.composite
def blocked_axes(draw):
    axis = draw(axes())
    some = st.sampled_from((None, 0, axis.rim))
    rims = tuple(draw(st.lists(some, min_size=1, max_size=2)))
    size = axis.grid.quantum * draw(st.integers(1, axis.grid.extent // axis.grid.quantum + 1))
    return axis, rims, size


@many
@given(blocked_axes())
def test_G6_tables_of_blocks_equal_walking_all_tiles(drawn):
    (grid, *_), rims, size = drawn
    table = AxisTable(grid, size, rims)
    supports = [[grid.support(i, rim) for i in range(len(grid))] for rim in rims]
    hulls = [(min(a for a, _ in s), max(b for _, b in s)) for s in zip(*supports, strict=True)]
    reads = [grid.read(i) for i in range(len(grid))]

    def hull(spans, tiles):
        chosen = [spans[i] for i in tiles]
        return (min(a for a, _ in chosen), max(b for _, b in chosen)) if chosen else (0, 0)

    starts = range(0, grid.extent, size)
    blocks = [(a, min(a + size, grid.extent)) for a in starts]
    assert {len(column) for column in (table.owned, table.touch, table.reaches)} == {len(blocks)}
    assert [i for pair in table.owned for i in range(*pair)] == list(range(len(grid)))
    for b, (low, high) in enumerate(blocks):
        owned = [i for i, (a, _) in enumerate(hulls) if low <= a < high]
        touch = [i for i, (a, stop) in enumerate(hulls) if a < high and low < stop]
        assert list(range(*table.owned[b])) == owned
        assert list(range(*table.touch[b])) == touch
        assert table.touch[b][0] <= table.touch[b][1]
        assert table.owned_read[b] == hull(reads, owned)
        assert table.touch_read[b] == hull(reads, touch)
        assert [canvas[b] for canvas in table.canvas] == [hull(s, owned) for s in supports]
        assert table.reaches[b] == any(hulls[i][1] > high for i in owned)
    assert table.longest == max((b - a for a, b in hulls), default=0)


# -- several axes -------------------------------------------------------------------------------


def hulls_of(plan):
    """Return, by position, the box in which each running tile has weight in some output."""
    found = {}
    for tile in plan:
        if plan.runs is not None and not plan.runs[tile.position]:
            continue
        spans = []
        for d, (grid, i) in enumerate(zip(plan.axes, tile.position, strict=True)):
            ends = [grid.support(i, None if o.rim is None else o.rim[d]) for o in plan.outputs]
            spans.append((min(a for a, _ in ends), max(b for _, b in ends)))
        found[tile.position] = Box(*map(tuple, zip(*spans, strict=True)))
    return found


def boxes_of(plan):
    """Return the box of each block by its index."""
    return {
        index: Box(
            tuple(b * size for b, size in zip(index, plan.block, strict=True)),
            tuple(min((b + 1) * size, n) for b, size, n in zip(index, plan.block, plan.shape, strict=True)),
        )
        for index in itertools.product(*map(range, plan.blocks))
    }


@given(plans(), st.data())
def test_G6_blocks_of_a_plan_equal_walking_all_tiles(plan, data):
    hulls, boxes = hulls_of(plan), boxes_of(plan)
    owner = {}
    for position, hull in hulls.items():
        corner = Box(hull.start, tuple(a + 1 for a in hull.start))
        [owner[position]] = [index for index, box in boxes.items() if box.intersect(corner).size]
    touched = {
        index: {p for p, hull in hulls.items() if box.intersect(hull).size} for index, box in boxes.items()
    }
    groups = {index: {p for p, o in owner.items() if o == index} for index in boxes}
    for index in boxes:
        assert plan.touched(index) == len(touched[index])
        assert plan.owned(index) == len(groups[index])
        if plan.reuse != "share":
            continue
        # The seams of the earlier neighbours hold all that reaches in; without a mask, no more.
        needed = {owner[p] for p in touched[index]} - {index}
        earlier = plan.neighbours.earlier(index)
        assert earlier == sorted(earlier)
        assert needed <= set(earlier) if plan.mask else needed == set(earlier)
        steps = [tuple(b - a for a, b in zip(block, index, strict=True)) for block in earlier]
        if needed:
            assert all(
                step in plan.neighbours.later(block)
                for step, block in zip(steps, earlier, strict=True)
                if block in needed
            )
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in plan.shape]
    box = Box(*map(tuple, zip(*ends, strict=True)))
    # A block in which no tile runs needs nobody.
    wanted = [index for index, block in boxes.items() if block.intersect(box).size and touched[index]]
    if plan.reuse == "share":
        run = {b for index in wanted for b in (index, *plan.neighbours.earlier(index))}
        assert plan.calls(box) == sum(len(groups[index]) for index in run)
        assert plan.calls() == len(hulls)
    else:
        assert plan.calls(box) == sum(len(touched[index]) for index in wanted)
        assert plan.calls() == sum(map(len, touched.values())) >= len(hulls)


# -- the choice ---------------------------------------------------------------------------------


@st.composite
def requests(draw, plan):
    """Draw what a caller may fix; units that the output's denominator divides."""
    unit = tuple(a.quantum * draw(st.sampled_from((1, 1, 2, 5))) for a in plan.axes)
    return BlockRequest(
        target=draw(st.sampled_from((None, 1, 100, 10_000))),
        unit=draw(st.sampled_from((None, unit))),
        memory_limit=draw(st.sampled_from((None, 10**9, 50_000, 5_000, 500))),
        reuse=draw(st.sampled_from(("auto", "share", "recompute"))),
    )


def smallest_block(plan, request):
    """Return the block that is left when all that can be given up is given up."""
    tables = plan.with_blocks(plan.shape, "share").tables
    sizes = []
    for axis, table, unit in zip(plan.axes, tables, request.unit or (1,) * len(tables), strict=True):
        step = math.lcm(axis.quantum, unit)
        longest = 1 if request.reuse == "recompute" else table.longest
        sizes.append(min(axis.extent, max(1, -(-longest // step)) * step))
    return tuple(sizes)


@many
@given(plans(), st.data())
def test_chosen_blocks_are_whole_units_and_fit_into_memory(plan, data):
    request = data.draw(requests(plan))
    try:
        chosen = choose_blocks(plan, request)
    except MemoryBudgetError:
        least = replace(request, chunks=smallest_block(plan, request))
        with pytest.raises(MemoryBudgetError, match=r"memory_limit=\d+"):
            choose_blocks(plan, least)
        return
    same = replace(chosen, block=plan.block, reuse=plan.reuse, notes=plan.notes)
    assert replace(same, cache_bytes=plan.cache_bytes) == plan
    for size, axis, unit in zip(chosen.block, plan.axes, request.unit or (1,) * len(plan.axes), strict=True):
        assert size == axis.extent or (0 < size < axis.extent and size % unit == 0)
        assert size == axis.extent or size % axis.quantum == 0
    if request.memory_limit is not None:
        assert peak_bytes(chosen) <= request.memory_limit
    if request.reuse != "auto":
        assert chosen.reuse == request.reuse
    if chosen.reuse == "share":
        for size, axis, table in zip(chosen.block, plan.axes, chosen.tables, strict=True):
            assert size == axis.extent or size >= table.longest
    elif request.reuse == "auto":
        shared = replace(request, chunks=chosen.block, reuse="share")
        extra = chosen.calls() / max(1, chosen.running([(0, n) for n in plan.grid_shape])) - 1
        if extra > 0.05:
            with pytest.raises((GridError, MemoryBudgetError)):
                choose_blocks(plan, shared)


@many
@given(plans(), st.data())
def test_given_chunks_are_kept(plan, data):
    chunks = tuple(data.draw(st.integers(1, axis.extent)) for axis in plan.axes)
    request = replace(data.draw(requests(plan)), chunks=chunks, memory_limit=None)
    unit = request.unit or (1,) * len(chunks)
    if any(
        size < axis.extent and (size % axis.quantum or size % u)
        for size, axis, u in zip(chunks, plan.axes, unit, strict=True)
    ):
        with pytest.raises((GridError, AlignmentError), match=r"multiples? of .*; got|got .* of \d+"):
            choose_blocks(plan, request)
    else:
        tables = plan.with_blocks(chunks, "share").tables
        short = any(
            size < axis.extent and size < table.longest
            for size, axis, table in zip(chunks, plan.axes, tables, strict=True)
        )
        if short and request.reuse == "share":
            with pytest.raises(GridError, match=r"longest support; got blocks of \d+"):
                choose_blocks(plan, request)
            return
        chosen = choose_blocks(plan, request)
        assert chosen.block == chunks
        assert not (short and chosen.reuse == "share")


def test_less_memory_means_smaller_blocks_down_to_the_smallest():
    """A small image has small blocks at once; they must still shrink where memory is short."""
    plan = replace(plan_tiles((512, 512), 64, 8), threads=2)
    sizes = [
        math.prod(choose_blocks(plan, BlockRequest(memory_limit=limit)).block)
        for limit in (10**9, 500_000, 300_000, 160_000)
    ]
    assert sizes == sorted(set(sizes), reverse=True)
    with pytest.raises(MemoryBudgetError, match=r"memory_limit=\d+"):
        choose_blocks(plan, BlockRequest(memory_limit=10_000))


@many
@given(
    shape=st.lists(st.integers(64, 400), min_size=1, max_size=2),
    quarters=st.integers(1, 4),
    blend=st.sampled_from(("trim", "hann")),
    workers=st.sampled_from((2, 4, 8)),
)
def test_no_worker_waits_for_blocks_that_could_be_smaller(shape, quarters, blend, workers):
    """A small image has blocks for all workers, though all of its crops start in a part of it."""
    stride = 8 * quarters
    if blend == "hann" and stride == 32:
        blend = "trim"
    plan = replace(plan_tiles(shape, 32, stride=stride, blend=blend), threads=workers)
    plan = choose_blocks(plan, BlockRequest())
    shortest = [stride * -(-max(t.longest, stride) // stride) for t in plan.tables]
    smallest = plan.with_blocks([min(b, n) for b, n in zip(shortest, shape, strict=True)], "share")
    if len(plan) >= 4 * workers:
        assert busiest(plan, workers) <= max(1.4 * len(plan) / workers, busiest(smallest, workers))


def test_crops_that_start_in_one_corner_are_shared_out():
    plan = plan_tiles((108, 108, 108), 40, stride=18, blend="hann")
    plan = choose_blocks(replace(plan, threads=2), BlockRequest())
    assert len(plan) == 125
    assert busiest(plan, 2) <= 75


@pytest.mark.parametrize(
    ("shape", "crop", "stride", "blocks"),
    [
        ((2048, 2048), 256, 128, (2, 1)),
        ((2048, 2048), 256, 192, (2, 1)),
        ((3000, 3000), 256, 128, (4, 1)),
        ((800, 5000), 256, 128, (1, 2)),
        ((128, 128, 128), 32, 16, (2, 1, 1)),
        ((4096, 4096), 256, 128, (3, 3)),
        ((256, 256, 256), 64, 32, (2, 2, 2)),
    ],
)
def test_small_images_are_cut_where_it_makes_the_fewest_seams(shape, crop, stride, blocks):
    plan = plan_tiles(shape, crop, stride=stride, blend="gaussian", dtype="float32")
    plan = choose_blocks(replace(plan, threads=2), BlockRequest())
    assert plan.blocks == blocks

    def seams(block):
        other = plan.with_blocks(block, "share")
        later = [np.subtract(t.canvases[0].high, [b.stop for b in _spans(t)]) for t in other.tables]
        return sum(
            int(np.maximum(along, 0).sum()) * math.prod(shape[:d] + shape[d + 1 :])
            for d, along in enumerate(later)
        )

    even = round(min(2**21, math.prod(shape) / 2) ** (1 / len(shape))) // stride * stride
    assert seams(plan.block) <= seams([min(n, max(crop, even)) for n in shape])


@pytest.mark.parametrize("reuse", ["auto", "share"])
@pytest.mark.parametrize(
    ("shape", "crop", "stride"), [((435, 435), 256, 16), ((56, 56), 32, 2), ((110, 110, 110), 64, 8)]
)
def test_images_of_less_than_two_crops_have_blocks_that_can_share(shape, crop, stride, reuse):
    plan = plan_tiles(shape, crop, stride=stride, blend="gaussian", dtype="float32")
    plan = choose_blocks(replace(plan, threads=2), BlockRequest(reuse=reuse))
    assert (plan.reuse, plan.calls()) == ("share", len(plan))


def test_blocks_that_share_nothing_are_not_chosen_by_their_seams():
    plan = plan_tiles((503, 387, 130), 32, stride=16, blend="gaussian", dtype="float32")
    alone = choose_blocks(replace(plan, threads=2), BlockRequest(reuse="recompute"))
    shared = choose_blocks(replace(plan, threads=2), BlockRequest(reuse="share"))
    across = shared.with_blocks(shared.block, "recompute")
    assert alone.calls() <= across.calls()


@many
@given(plans(), st.data())
def test_shapes_that_are_left_out_unseen_would_not_be_chosen(plan, data):
    request = data.draw(requests(plan))

    def chosen():
        try:
            return choose_blocks(plan, request)
        except (GridError, MemoryBudgetError) as error:
            return str(error)

    found = chosen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_repeats", lambda *_: False)
        assert found == chosen()


@many
@given(plans(), st.data())
def test_a_bound_without_tables_is_below_the_crops_that_run(plan, data):
    block = tuple(data.draw(st.integers(1, n)) for n in plan.shape)
    assert blocks.SURE * blocks._fewest_in(plan, block) <= plan.with_blocks(block, "recompute").calls()


@many
@given(st.data())
def test_a_bound_without_tables_holds_along_long_axes(data):
    crop = data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=2))
    stride = [data.draw(st.integers(1, c)) for c in crop]
    shape = tuple(data.draw(st.integers(16 * c, 64 * c)) for c in crop)
    blend = data.draw(st.sampled_from(("trim", "hann", "gaussian")))
    edge = data.draw(st.sampled_from(("shift", "clip", "pad", "squeeze", "drop")))
    plan = plan_tiles(shape, crop, stride=stride, blend=blend, edge=edge, dtype="float32")
    block = tuple(data.draw(st.integers(1, n)) for n in shape)
    fewest, calls = blocks._fewest_in(plan, block), plan.with_blocks(block, "recompute").calls()
    assert blocks.SURE * fewest <= calls
    # Along axes so long, it is not far from it.
    assert fewest > 0.5 * calls or edge == "squeeze" or min(block) < max(crop)


def _count(monkeypatch, owner, name):
    """Return a list that gets the arguments of each call of a function or of each value that is derived."""
    calls, found = [], vars(owner)[name]
    function = found._function if isinstance(found, derived) else found

    def counted(*args):
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(*((found, "_function") if isinstance(found, derived) else (owner, name)), counted)
    return calls


@pytest.mark.parametrize(
    ("crop", "stride", "chunks", "limit", "reuse"),
    [
        ((16, 24, 24), (12, 24, 18), (32, 16, 96, 48), 4 * 10**9, "recompute"),
        ((16, 24, 24), (12, 24, 18), (16, 96, 48), 4 * 10**9, "recompute"),
        ((16, 24, 12), (14, 12, 12), None, 10**9, "auto"),
        ((8, 6, 12, 6, 6), (8, 4, 3, 6, 6), (16, 24, 3, 3, 6), 3 * 10**8, "recompute"),
    ],
)
def test_a_build_looks_at_few_shapes_and_makes_each_table_once(
    monkeypatch, crop, stride, chunks, limit, reuse
):
    each = 0 if chunks and len(chunks) == len(crop) else 1
    shape = (50_000,) * each + tuple(5_000 * s for s in stride)
    plan = plan_tiles(shape, crop, stride=stride, blend="hann", dtype="float32", each=range(each))
    plan = replace(plan, threads=2, sources=(SourcePlan(4, chunks),))
    request = BlockRequest(memory_limit=limit, reuse=reuse)
    tables, looks = _count(monkeypatch, AxisTable, "_edges"), _count(monkeypatch, ways, "_ways")
    # The steps from there to better shapes are as many with and without.
    monkeypatch.setattr(blocks, "LOOKS", 0)
    chosen = choose_blocks(plan, request)
    assert math.prod(chosen.blocks) > 10**6
    # Not those of short axes, which tell what repeats along long ones.
    assert max(Counter(table for (table,) in tables if table.grid in plan.axes).values()) == 1
    some = len(looks)
    monkeypatch.setattr(blocks, "_repeats", lambda *_: False)
    assert choose_blocks(plan, request) == chosen
    assert some < 0.6 * (len(looks) - some)


@pytest.mark.parametrize("reuse", ["auto", "share", "recompute"])
@pytest.mark.parametrize("chunks", [(256, 100), None])
def test_a_limit_below_what_any_block_takes_is_refused_at_once(monkeypatch, reuse, chunks):
    plan = plan_tiles((50_000, 60_000), 512, 64, blend="hann", dtype="float32")
    plan = replace(plan, threads=4, sources=(SourcePlan(4, chunks),))
    looks, texts = _count(monkeypatch, ways, "_ways"), []
    for limit, bound in ((12 * 10**6, bound_bytes), (12 * 10**6, lambda plan: 0)):
        monkeypatch.setattr(blocks, "bound_bytes", bound)
        with pytest.raises(MemoryBudgetError) as refused:
            choose_blocks(plan, BlockRequest(memory_limit=limit, reuse=reuse))
        texts.append((str(refused.value), len(looks)))
    (quick, one), (slow, several) = texts
    assert quick == slow
    assert one == 1 < several - one


@many
@given(plans(), st.sampled_from((None, 1, 3)))
def test_no_blocks_take_less_than_the_bound(plan, chunk):
    sources = (SourcePlan(4, None if chunk is None else (chunk,) * len(plan.axes)),)
    assert bound_bytes(replace(plan, sources=sources)) <= least_bytes(replace(plan, sources=sources))


@many
@given(plans(), st.data())
def test_what_blocks_hold_is_below_what_they_take(plan, data):
    block = tuple(data.draw(st.integers(1, n)) for n in plan.shape)
    for reuse in ("recompute", "share"):
        found = plan.with_blocks(block, reuse)
        assert held_bytes(plan, found.block) <= least_bytes(found)


@many
@given(plans(), st.data())
def test_ways_that_are_left_out_would_not_be_chosen(plan, data):
    """Of all that fit, the fewest calls; but blocks that share nothing and run few crops twice come first."""
    request = data.draw(requests(plan))
    request = replace(request, slabs=data.draw(st.booleans()))
    block = tuple(data.draw(st.integers(1, n)) for n in plan.shape)
    try:
        every = list(itertools.chain(*ways._ways(plan, block, request, (), math.inf)))
    except GridError:
        return
    limit = math.inf if request.memory_limit is None else request.memory_limit
    fitting = [way for way in every if way.peak <= limit]
    try:
        found = ways.choose_reuse(plan, block, request, (), "asked")
    except ways.TooLargeError:
        assert not fitting
        return
    assert len({way.kind for way in every if way.kind != "slabs"}) == sum(w.kind != "slabs" for w in every)
    best = min(fitting, key=lambda way: way.rank)
    few = [way for way in fitting if way.kind == "recompute" and way.calls <= 1.05 * plan.n_runs]
    if few and request.reuse == "auto":
        [best] = few
    assert replace(found, notes=()) == replace(best.plan, notes=())


def _spans(table):
    return [range(a, min(a + table.size, table.grid.extent)) for a in range(0, table.grid.extent, table.size)]


@pytest.mark.parametrize("limit", [96, 112, 132])
def test_blocks_are_made_smaller_until_they_can_share(limit):
    """Larger ones run twice as many crops; that none of these is costed does not end the search."""
    plan = plan_tiles((51, 20, 85, 83), (12, 8, 24, 12), stride=(6, 4, 7, 10), blend="hann", dtype="float32")
    plan = replace(plan, threads=2, sources=(SourcePlan(4, (12, 2, 12, 6)),))
    chosen = choose_blocks(plan, BlockRequest(memory_limit=limit * 10**6))
    assert (chosen.reuse, chosen.calls()) == ("share", len(plan))


def test_a_block_is_never_empty():
    with pytest.raises(GridError, match="chunks must be at least 1; got 0 on axis 0"):
        plan_tiles((20,), 8, 2, chunks=0)
