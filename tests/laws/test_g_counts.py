"""G, counts: what a plan promises for all of its blocks at once is what walking them gives."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.strategies import coarse, many, plans, spans
from tilework import Output, TilePlan, plan_tiles
from tilework.grid.tiles import Box
from tilework.plan.box_sums import box_any, box_sums
from tilework.plan.cost import busiest, computed, repeated_crops, rows, tasks
from tilework.plan.decoding import decoded_ratio, kept_chunks
from tilework.plan.neighbours import Neighbours
from tilework.plan.tables import SourcePlan
from tilework.source.padding import BOUNDARIES, source_index


@st.composite
def blocked(draw):
    """Draw a plan in blocks of any length, which share or not, in slabs or not, with a mask or not."""
    plan = draw(plans())
    if draw(st.booleans()):
        plan = plan.with_runs(draw(coarse(plan.grid_shape)))
    sizes = []
    for axis, longest in zip(plan.axes, plan.longest, strict=True):
        # Blocks of whole strides are often without neighbours.
        q = draw(st.sampled_from((axis.quantum, axis.stride)))
        fewest = -(-longest // q)
        sizes.append(min(axis.extent, q * draw(st.integers(max(1, fewest), max(1, 2 * fewest)))))
    reuse = draw(st.sampled_from(("share", "share", "recompute")))
    most = len(plan.axes) - plan.n_each - 1
    slabs = draw(st.integers(0, most)) if reuse == "share" and most > 0 and draw(st.booleans()) else 0
    return plan.with_blocks(sizes, reuse, (), slabs)


def blocks_of(plan):
    return list(itertools.product(*map(range, plan.blocks)))


def walked_tasks(plan):
    """Return the number of tasks, block by block."""
    running = [b for b in blocks_of(plan) if plan.touched(b)]
    getters = len(blocks_of(plan)) * len(plan.outputs) if len(plan.outputs) > 1 else 0
    if plan.reuse == "recompute":
        return len(running) + getters
    count = 0
    for block in running:
        group, later, earlier = (
            plan.neighbours.owns(block),
            plan.neighbours.later(block),
            plan.neighbours.earlier(block),
        )
        count += 1 if group and not later and not earlier else 1 + group + (group and bool(later))
    return count + getters


@many
@given(blocked())
def test_G6_tasks_equal_walking_all_blocks(plan):
    assert tasks(plan) == walked_tasks(plan)
    assert dict(rows(plan))["tasks"] == str(walked_tasks(plan))


def walked_crops(plan):
    """Return, for each block, how many crops of each shape it runs."""
    found = []
    for index in blocks_of(plan):
        cut = range(len(plan.axes)) if plan.reuse == "recompute" else plan.slab_axes
        columns = enumerate(zip(plan.tables, index, strict=True))
        spans = [(t.touch if d in cut else t.owned)[b] for d, (t, b) in columns]
        tiles = itertools.product(*(range(*s) for s in spans))
        running = [t for t in tiles if plan.running([(i, i + 1) for i in t])]
        ends = ([a.read(i) for a, i in zip(plan.axes, t, strict=True)] for t in running)
        found.append(Counter(tuple(b - a for a, b in pairs) for pairs in ends))
    return found


@many
@given(blocked(), st.integers(1, 5))
def test_G6_samples_and_repeated_crops_equal_walking_all_crops(plan, size):
    plan = replace(plan, batch_size=size, batches="whole")
    blocks = walked_crops(plan)
    assert computed(plan) == sum(n * math.prod(shape) for crops in blocks for shape, n in crops.items())
    assert repeated_crops(plan) == sum(-n % size for crops in blocks for n in crops.values())


def test_G6_tasks_under_masks_that_leave_blocks_alone():
    """Blocks without tiles of their own, without later or without earlier neighbours, in all combinations."""
    plan = plan_tiles((72,) * 3, 12, stride=6, blend="hann", chunks=12, reuse="share", output=two())
    rng = np.random.default_rng(0)
    seen = set()
    for share in (0.002, 0.01, 0.03, 0.1, 0.5, 0.98):
        part = plan.with_runs(rng.random(plan.grid_shape) < share)
        assert tasks(part) == walked_tasks(part)
        for block in blocks_of(part):
            seen.add(
                (
                    part.owned(block) > 0,
                    bool(part.neighbours.later(block)),
                    bool(part.neighbours.earlier(block)),
                )
            )
    assert seen == set(itertools.product((False, True), repeat=3))


def two():
    return (Output("float32"), Output("float32", channels=2))


@given(blocked(), st.integers(1, 5))
def test_G6_the_busiest_worker_equals_walking_all_blocks(plan, workers):
    ends = [0] * workers
    for index in blocks_of(plan):
        cut = range(len(plan.axes)) if plan.reuse == "recompute" else plan.slab_axes
        columns = enumerate(zip(plan.tables, index, strict=True))
        tiles = plan.running([(t.touch if d in cut else t.owned)[b] for d, (t, b) in columns])
        heapq.heapreplace(ends, ends[0] + tiles)
    assert busiest(plan, workers) == max(ends)


@many
@given(blocked(), st.data())
def test_G6_calls_equal_walking_blocks_and_their_earlier_neighbours(plan, data):
    if plan.slabs:
        cut = [b if d in plan.slab_axes else 1 for d, b in enumerate(plan.blocks)]
        calls = 0
        for slab in itertools.product(*map(range, cut)):
            tables = enumerate(plan.tables)
            calls += plan.running(
                [t.touch[slab[d]] if d in plan.slab_axes else (0, len(t.grid)) for d, t in tables]
            )
        assert plan.calls() == calls
        return
    # Boxes seldom begin behind a block that reaches into nothing, unless they are drawn by their blocks.
    spans = []
    for n, size in zip(plan.blocks, plan.block, strict=True):
        first = data.draw(st.sampled_from(range(n)[::-1]))
        spans.append((first * size, first * size + data.draw(st.sampled_from((1, size, 2 * size)))))
    ends = [(a, min(b, n)) for (a, b), n in zip(spans, plan.shape, strict=True)]
    for box in (None, Box(*map(tuple, zip(*ends, strict=True)))):
        whole = Box((0,) * len(plan.shape), plan.shape) if box is None else box
        wanted = {b for b in blocks_of(plan) if plan.box(b).intersect(whole).size and plan.touched(b)}
        if plan.reuse == "share":
            needed = wanted.union(*map(plan.neighbours.earlier, wanted))
            assert plan.calls(box) == sum(map(plan.owned, needed))
        else:
            assert plan.calls(box) == sum(map(plan.touched, wanted))


def chunks_read(plan, d, size):
    """Return, for each block along an axis, the numbers of the chunks that it reads."""
    own = plan.reuse == "share" and d not in plan.slab_axes
    reads = plan.tables[d].owned_read if own else plan.tables[d].touch_read
    found = [source_index(np.arange(a, b), plan.shape[d], plan.boundary) for a, b in reads]
    return [set((samples[samples >= 0] // size).tolist()) for samples in found]


@given(blocked(), st.integers(1, 9), st.data())
def test_G6_uses_of_chunks_equal_walking_blocks_along_each_axis(plan, chunk, data):
    axes = tuple(reversed(range(len(plan.shape))))
    shape, chunks = (*plan.shape[::-1], 3), (*(chunk + d for d in axes), 2)
    sources = (SourcePlan(1, tuple(chunks[a] for a in axes)),)
    boundary = data.draw(st.sampled_from(BOUNDARIES))
    plan = replace(plan, mask=None, sources=sources, cache_bytes=10**12, boundary=boundary)
    kept = kept_chunks(plan, 0, shape, chunks, axes)
    assert kept.lost == ()
    along = [np.ones(math.ceil(3 / 2), int)] * len(shape)
    for d, extent in enumerate(plan.shape):
        read = chunks_read(plan, d, chunks[axes[d]])
        uses = [sum(k in one for one in read) for k in range(math.ceil(extent / chunks[axes[d]]))]
        along[axes[d]] = np.array(uses)
    expected = functools.reduce(np.multiply.outer, along)
    np.testing.assert_array_equal(kept.uses.counts[np.ix_(*kept.uses.kinds)], expected)
    assert [kept.uses.of(chunk) for chunk in np.ndindex(expected.shape)] == expected.ravel().tolist()
    box = [range(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in expected.shape]
    part = expected[np.ix_(*box)]
    assert kept.uses.several(box) == bool((part > 1).any())


@given(plans(masks=False), st.data())
def test_G6_decoded_bytes_equal_walking_blocks(plan, data):
    """All that is read is decoded once if memory suffices, and for each block without any."""
    chunks = st.none() | st.tuples(*[st.integers(1, 9) for _ in plan.shape])
    sources = tuple(SourcePlan(data.draw(st.integers(1, 4)), data.draw(chunks)) for _ in range(2))
    block = [data.draw(st.integers(1, n)) for n in plan.shape]
    plan = replace(plan, sources=sources, boundary=data.draw(st.sampled_from(BOUNDARIES)))
    plan = plan.with_blocks(block, data.draw(st.sampled_from(("share", "recompute"))))
    for cache in (0, 10**12):
        total = 0.0
        for source in sources:
            per_axis = [chunks_read(plan, d, c) for d, c in enumerate(source.chunks or (1,) * len(block))]
            every = math.prod(map(math.ceil, np.divide(plan.shape, source.chunks or 1)))
            found = [tuple(map(frozenset, one)) for one in itertools.product(*per_axis)]
            if cache and source.chunks:
                read = len({index for one in found for index in itertools.product(*one)})
            else:
                read = sum(math.prod(map(len, one)) for one in found)
            total += source.sample_bytes * read / every
        ratio = total / sum(s.sample_bytes for s in sources)
        assert math.isclose(decoded_ratio(replace(plan, cache_bytes=cache)), ratio)


@st.composite
def boxes(draw):
    """Draw bits and, per axis, ranges of them, some of which are empty."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    bits = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.floats(0, 1))
    return bits, [draw(spans(n)) for n in shape]


@many
@given(boxes())
def test_G6_sums_over_boxes_equal_sums_one_by_one(drawn):
    bits, ranges = drawn
    pairs = [r.pairs() for r in ranges]
    sums = [int(bits[tuple(slice(*p) for p in box)].sum()) for box in itertools.product(*pairs)]
    shape = tuple(map(len, pairs))
    assert box_sums(bits, ranges).shape == box_any(bits, ranges).shape == shape
    assert box_sums(bits, ranges).ravel().tolist() == sums
    assert box_sums(bits.astype(np.int64) * 3, ranges).ravel().tolist() == [3 * s for s in sums]
    assert box_any(bits, ranges).ravel().tolist() == [s > 0 for s in sums]


def test_a_plan_of_a_million_blocks_is_explained_without_walking_them(monkeypatch):
    """Neither its tasks nor its calls ask for a block; counters tell, because time does not."""
    for kind, names in ((TilePlan, ("touched", "owned", "running")), (Neighbours, ("earlier", "later"))):
        for name in names:
            monkeypatch.setattr(kind, name, refuse(getattr(kind, name), name))
    mask = np.zeros((50, 50), bool)
    mask[10:20, 5:40] = True
    for options in ({}, {"mask": mask}, {"reuse": "recompute"}, {"mask": mask, "reuse": "recompute"}):
        plan = plan_tiles((64_000,) * 2, 64, stride=32, blend="hann", chunks=64, **options)
        assert math.prod(plan.blocks) == 10**6
        assert "tasks" in plan.explain()
        assert "<svg" in plan._repr_html_()
        assert plan.calls(Box((0, 0), (1, 1))) < 20


def refuse(method, name):
    calls = itertools.count()

    def counted(*args):
        assert next(calls) < 30, f"{name} is asked for block by block"
        return method(*args)

    return counted


def test_plans_of_more_tiles_than_len_can_say():
    plan = plan_tiles((8 * 10**5,) * 5, 16, 4, blend="gaussian", memory_limit="1TB")
    assert plan.n_tiles == math.prod(plan.grid_shape) > 2**63
    assert f"{plan.n_tiles} = " in plan.explain()
    assert f"{plan.n_tiles} crops" in repr(plan)
