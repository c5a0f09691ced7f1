"""G, masks: which tiles run, told by groups, is what an array over all tiles tells."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.strategies import coarse, many, spans
from tests.laws.test_g_counts import blocked, blocks_of, walked_crops, walked_tasks
from tilework import TilePlan, plan_tiles
from tilework.errors import GridError, TilingError
from tilework.grid.progression import Progression
from tilework.plan import cost, decoding, masked_reads, tile_mask
from tilework.plan.cost import computed, repeated_crops, rows, tasks
from tilework.plan.decoding import decoded_ratio, kept_chunks
from tilework.plan.masked_reads import MaskedReads
from tilework.plan.tables import SourcePlan
from tilework.plan.tile_mask import TileMask
from tilework.plan.tile_reads import blocks_by_tile, read_in_blocks
from tilework.source.padding import BOUNDARIES, source_index


@st.composite
def shapes(draw: Any) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))


@st.composite
def masks(draw: Any) -> tuple[TileMask, np.ndarray]:
    tiles = draw(coarse(draw(shapes())))
    return TileMask.of(tiles), tiles


@many
@given(masks(), st.data())
def test_G9_a_mask_tells_what_an_array_over_all_tiles_does(drawn, data):
    mask, tiles = drawn
    assert mask.shape == tiles.shape
    np.testing.assert_array_equal(mask.tiles, tiles)
    for position in np.ndindex(tiles.shape):
        assert mask[position] == tiles[position]
    ranges = [data.draw(spans(n)) for n in tiles.shape]
    pairs = [r.pairs() for r in ranges]
    boxes = [tiles[tuple(slice(*p) for p in box)] for box in itertools.product(*pairs)]
    assert mask.counts(ranges).ravel().tolist() == [int(box.sum()) for box in boxes]
    assert mask.run_in(ranges).ravel().tolist() == [bool(box.any()) for box in boxes]
    for box, pair in zip(boxes, itertools.product(*pairs), strict=True):
        np.testing.assert_array_equal(mask.box(pair), box)
        assert mask.running(pair) == box.sum()
        on, firsts = np.argwhere(box), [a for a, _ in pair]
        ends = (on.min(axis=0), on.max(axis=0) + 1) if len(on) else (0, 0)
        assert mask.shrunk(pair) == list(zip(*(np.add(firsts, end).tolist() for end in ends), strict=True))
    times = [
        np.array(data.draw(st.lists(st.integers(0, 70), min_size=n, max_size=n)), int) for n in mask.shape
    ]
    weighed = tiles.astype(int)
    for axis, count in enumerate(times):
        weighed = weighed * count.reshape((-1,) + (1,) * (tiles.ndim - axis - 1))
    of_groups = [
        np.array([sum(n[a:b]) for a, b in itertools.pairwise(e)], int)
        for n, e in zip(times, mask.edges, strict=True)
    ]
    assert mask.total(of_groups) == weighed.sum()
    some = [np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else [], int) for n in mask.shape]
    before = [np.searchsorted(tiles, np.arange(n + 1)) for tiles, n in zip(some, mask.shape, strict=True)]
    assert mask.among(list(map(Progression, before))) == TileMask.of(tiles[np.ix_(*some)])


@given(masks(), st.data())
def test_G9_tiles_are_found_among_those_that_run(drawn, data):
    mask, tiles = drawn
    on = set(map(tuple, np.argwhere(tiles).tolist()))
    assert sorted(mask.positions({})) == sorted(on)
    if not on:
        assert mask.some(3) == []
        return
    place = {axis: data.draw(st.integers(0, n - 1)) for axis, n in enumerate(tiles.shape)}
    fixed = {axis: place[axis] for axis in data.draw(st.sets(st.sampled_from(range(tiles.ndim))))}
    assert sorted(mask.positions(fixed)) == sorted(t for t in on if all(t[d] == i for d, i in fixed.items()))
    count = data.draw(st.integers(1, 9))
    some = mask.some(count)
    assert min(count, len(on)) <= len(some) == len(set(some)) <= 2 * count
    assert set(some) <= on
    own = sorted(fixed) or range(tiles.ndim)
    found = mask.nearest([place[d] for d in own], own)
    assert found in on

    def away(tile):
        return sum(abs(tile[d] - place[d]) for d in own)

    assert away(found) == min(map(away, on))


@given(masks(), st.data())
def test_G9_equal_masks_are_equal_however_they_were_made(drawn, data):
    mask, tiles = drawn
    other = data.draw(coarse(tiles.shape))
    assert (mask == TileMask.of(other)) == (tiles == other).all()
    with pytest.raises(ValueError, match="tiles"):
        mask & TileMask.all((*tiles.shape, 1))
    assert mask & TileMask.of(other) == TileMask.of(tiles & other)
    assert mask | TileMask.of(other) == TileMask.of(tiles | other)
    assert mask ^ TileMask.of(other) == TileMask.of(tiles ^ other)
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask
    assert hash(again) == hash(mask)
    box = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in tiles.shape]
    inside = np.zeros(tiles.shape, bool)
    inside[tuple(slice(*pair) for pair in box)] = True
    assert TileMask.of_box(box, tiles.shape) == TileMask.of(inside)
    assert TileMask.all(tiles.shape) == TileMask.of(np.ones(tiles.shape, bool))
    for lead in ([1], [2, 3], [0]):
        assert mask.repeated(lead) == TileMask.of(np.broadcast_to(tiles, (*lead, *tiles.shape)))
    assert [len(part) - 1 for part in mask.edges] == list(mask.bits.shape)


@pytest.mark.parametrize("most", [0, 2**23], ids=["groups", "tiles"])
@given(masks())
def test_G9_masks_survive_json(most, drawn):
    mask, tiles = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_mask, "WRITTEN_WHOLE", most)
        text = json.dumps(mask.to_json())
        # A mask without tiles has no more than none.
        assert (text[0] == '"') == (tiles.size <= most)
        assert TileMask.from_json(json.loads(text), tiles.shape) == mask


@pytest.mark.parametrize("most", [0, 2**23], ids=["groups", "tiles"])
def test_a_mask_whose_json_was_changed_is_refused(most, monkeypatch):
    """Bits that are missing were False, and tiles that the plan does not have ended in an IndexError."""
    monkeypatch.setattr(tile_mask, "WRITTEN_WHOLE", most)
    mask = np.zeros((40, 8), bool)
    mask[3:7, 2:] = mask[30:, :5] = True
    plan = plan_tiles((400, 80), 10, 0, mask=mask)
    data = json.loads(plan.to_json())
    assert TilePlan.from_json(json.dumps(data)) == plan
    bits, edges = (data["mask"], None) if most else (data["mask"]["bits"], data["mask"]["edges"])
    wrong = ["", bits[:-4], bits + "AAAA", "*" + bits[1:], 5]
    if not most:
        others = [edges[:1], [40, 9], [*edges, 1], [[0, 7, 3, 40], 8], [[-1, 40], 8], [None, 8]]
        wrong = [data["mask"] | {"bits": b} for b in wrong] + [data["mask"] | {"edges": e} for e in others]
    for found in wrong:
        with pytest.raises(TilingError, match="missing or changed"):
            TilePlan.from_json(json.dumps(data | {"mask": found}))
    with pytest.raises(TilingError, match="missing or changed"):
        TilePlan.from_json(json.dumps(data | {"axes": data["axes"][:1] * 2}))


def test_an_array_that_says_which_tiles_run_stays_as_it_is():
    """It could not be written any more, and a plan changed with an array of which it was a part."""
    plan, whole = plan_tiles((40, 40), 10, 0), np.eye(4, dtype=bool)
    masked = plan.with_runs(whole[:])
    assert whole.flags.writeable
    whole[0, 1] = True
    np.testing.assert_array_equal(masked.runs, np.eye(4, dtype=bool))
    assert plan.with_runs(np.eye(4).tolist()) == masked
    for wrong in (np.ones((3, 3), bool), np.ones(16, bool), None, TileMask.all((4,))):
        with pytest.raises(GridError, match=r"one entry per tile, \(4, 4\)"):
            plan.with_runs(wrong)


@pytest.mark.parametrize("shape", [(40_000,), (20_000, 3), (3, 20_000)], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_G9_a_mask_of_unlike_tiles_takes_little_more_than_a_bit_for_each(shape, share):
    """Edges of groups that are as many as the tiles took ten times as much, in tasks and in records."""
    mask = TileMask.of(np.random.default_rng(0).random(shape) < share)
    least = mask.tiles.size / 8 + 200
    assert len(pickle.dumps(mask)) <= 1.5 * least
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_mask, "WRITTEN_WHOLE", 0)
        assert len(json.dumps(mask.to_json())) <= 2 * least


@many
@given(st.integers(0, 99), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_G9_bits_are_few_more_than_groups_and_edges_take(seed, shape):
    """32 tiles along each of five axes took 4 MB although all ran."""
    rng = np.random.default_rng(seed)
    bits = rng.random([rng.integers(1, min(n, 3) + 1) for n in shape]) < 0.5
    tiles = bits[np.ix_(*(np.arange(n) * m // n for n, m in zip(shape, bits.shape, strict=True)))]
    mask = TileMask.of(tiles)
    np.testing.assert_array_equal(mask.tiles, tiles)
    assert mask.bits.size <= bits.size + tile_mask.EDGE * sum(bits.shape)


def test_G9_a_mask_of_many_axes_stays_coarse():
    assert len(TileMask.all((32,) * 6).packed) <= 4


@given(st.data())
def test_G9_tiles_over_true_values_run(data):
    values = data.draw(coarse(data.draw(shapes())))
    ranges = [data.draw(spans(n)) for n in values.shape]
    boxes = itertools.product(*(r.pairs() for r in ranges))
    any_in = [values[tuple(slice(*p) for p in box)].any() for box in boxes]
    expected = np.array(any_in, bool).reshape([len(low) for low, _ in ranges])
    assert TileMask.under(values, ranges) == TileMask.of(expected)


def every(uses):
    """Return how many tasks read each chunk."""
    return uses.counts[np.ix_(*uses.kinds)]


def masked(data, plan, chunks):
    """Return a plan with a mask, with any boundary, that reads a source in chunks."""
    if plan.mask is None:
        plan = plan.with_runs(data.draw(coarse(plan.grid_shape)))
    boundary = data.draw(st.sampled_from(BOUNDARIES))
    return replace(plan, sources=(SourcePlan(1, chunks),), cache_bytes=10**12, boundary=boundary)


def running_of(plan, index):
    """Return the tiles that a block runs."""
    cut = range(len(plan.axes)) if plan.reuse == "recompute" else plan.slab_axes
    columns = enumerate(zip(plan.tables, index, strict=True))
    ranges = [(t.touch if d in cut else t.owned)[b] for d, (t, b) in columns]
    return np.argwhere(plan.mask.box(ranges)) + [a for a, _ in ranges]


def between(plan, tiles):
    """Return the samples along each axis that are read from the first of some tiles to the last."""
    columns = zip(plan.axes, tiles.min(axis=0).tolist(), tiles.max(axis=0).tolist(), strict=True)
    return [np.arange(axis.read(a)[0], axis.read(b)[1]) for axis, a, b in columns]


def read_from(plan, samples, chunks):
    """Return the chunks that hold some samples along each axis, which may lie outside the image."""
    inside = [source_index(s, n, plan.boundary) for s, n in zip(samples, plan.shape, strict=True)]
    along = [np.unique(s[s >= 0] // c).tolist() for s, c in zip(inside, chunks, strict=True)]
    return list(itertools.product(*along))


@given(blocked(), st.data())
def test_G9_uses_of_chunks_under_a_mask_equal_walking_blocks(plan, data):
    """A block reads from its first running tile to its last along each axis, and what padding repeats."""
    chunks = tuple(data.draw(st.integers(1, 9)) for _ in plan.shape)
    plan = masked(data, plan, chunks)
    uses = np.zeros([-(-n // c) for n, c in zip(plan.shape, chunks, strict=True)], int)
    samples = 0
    for index in blocks_of(plan):
        if len(tiles := running_of(plan, index)):
            for chunk in read_from(plan, between(plan, tiles), chunks):
                uses[chunk] += 1
            samples += len(read_from(plan, between(plan, tiles), (1,) * len(chunks)))
    kept = kept_chunks(plan, 0, plan.shape, chunks, tuple(range(len(plan.shape))))
    if not kept.lost:
        np.testing.assert_array_equal(every(kept.uses), uses)
    reads = MaskedReads.of(plan, chunks)
    np.testing.assert_array_equal(every(reads.uses()), uses)
    assert reads.total() == uses.sum()
    assert reads.once() == np.count_nonzero(uses)
    plain = replace(plan, sources=(SourcePlan(1, None, given=True),))
    assert math.isclose(decoded_ratio(plain), samples / math.prod(plan.shape))


@st.composite
def sparse(draw):
    """Draw a plan with a mask and blocks of several tiles, of which most do not run."""
    extents = draw(st.lists(st.integers(15, 60), min_size=1, max_size=2))
    crop = draw(st.integers(2, 7))
    stride, edge = draw(st.integers(max(1, crop // 2), crop)), draw(st.sampled_from(("pad", "shift", "drop")))
    reuse = draw(st.sampled_from(("share", "recompute")))
    block = draw(st.integers(10, 40) if reuse == "share" else st.integers(2, 9) | st.integers(10, 40))
    blend = "trim" if 2 * ((crop - stride) // 2) == crop - stride else "hann"
    plan = plan_tiles(extents, crop, stride=stride, edge=edge, blend=blend, chunks=block, reuse=reuse)
    rng, share = np.random.default_rng(draw(st.integers(0, 999))), draw(st.sampled_from((0.02, 0.1, 0.3)))
    some = rng.random(plan.grid_shape) < share
    # Groups of tiles that are cut by blocks, and tiles that stick out of the image.
    some = np.repeat(some, draw(st.integers(1, 4) | st.just(60)), axis=-1)[..., : plan.grid_shape[-1]]
    some[..., -1] |= draw(st.booleans())
    return plan.with_runs(some)


@many
@given(blocked() | sparse(), st.data())
def test_G9_decoded_chunks_under_a_mask_equal_walking_what_tasks_read(plan, data):
    """A task reads tile by tile if its tiles are fewer samples than all from the first to the last."""
    chunks = tuple(data.draw(st.integers(1, 9)) for _ in plan.shape)
    plan = masked(data, plan, chunks)
    crop = math.prod(axis.crop for axis in plan.axes)
    each, by_tile, samples = [], 0, 0
    for index in blocks_of(plan):
        if len(tiles := running_of(plan, index)):
            whole = between(plan, tiles)
            apart = len(tiles) * crop < math.prod(map(len, whole))
            parts = [between(plan, tile[None]) for tile in tiles] if apart else [whole]
            found = [read_from(plan, part, chunks) for part in parts]
            each.append({chunk for part in found for chunk in part})
            by_tile += sum(map(len, found))
            samples += sum(len(read_from(plan, part, (1,) * len(chunks))) for part in parts)
    count = math.prod(-(-n // c) for n, c in zip(plan.shape, chunks, strict=True))
    in_blocks = sum(map(len, each))
    assert math.isclose(decoded_ratio(plan), len(set().union(*each)) / count)
    least = [*decoding.kept_levels(plan)][-1]
    for cache, expected in ((0, by_tile), (least, in_blocks)):
        little = plan.with_cache(cache)
        if len(decoding.lost_axes(little)) == len(plan.shape):
            assert math.isclose(decoded_ratio(little), expected / count)
    if found := blocks_by_tile(plan, 2**20):
        assert read_in_blocks(plan, chunks, found, keeps=True) == in_blocks
        assert read_in_blocks(plan, chunks, found, keeps=False) == by_tile
    plain = replace(plan, sources=(SourcePlan(1),))
    assert math.isclose(decoded_ratio(plain), samples / math.prod(plan.shape))
    assert decoding.planned_ratio(plan) >= decoded_ratio(plan)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_uses_are_those_of_a_source_with_axes_in_an_order_of_its_own(axes):
    mask = np.random.default_rng(0).random((6, 5, 4)) < 0.3
    plan = plan_tiles((60, 50, 40), 8, 2, mask=mask, chunks=16)
    plan = replace(plan, sources=(SourcePlan(1, (9, 7, 5)),), cache_bytes=10**12)
    uses = every(MaskedReads.of(plan, (9, 7, 5)).uses())
    order = (*np.argsort(axes).tolist(), 3)  # and an axis that is not of the grid
    shape, chunks = (tuple(np.take(lengths, order).tolist()) for lengths in ((60, 50, 40, 3), (9, 7, 5, 2)))
    kept = kept_chunks(plan, 0, shape, chunks, axes)
    np.testing.assert_array_equal(every(kept.uses), np.stack([uses, uses], -1).transpose(order))


@pytest.mark.parametrize("reuse", ["share", "recompute", "slabs"])
@pytest.mark.parametrize("cache", [0, 10**12])
def test_a_mask_that_leaves_nothing_out_decodes_what_a_plan_without_one_does(reuse, cache):
    """Across slabs, blocks read what the tiles of the slab before do, too."""
    plan = plan_tiles((200, 300), 20, stride=10, blend="hann", reuse="share")
    plan = replace(plan, sources=(SourcePlan(1, (7, 9)),))
    plan = plan.with_blocks((40, 40), reuse if reuse != "slabs" else "share", (), reuse == "slabs")
    plan = plan.with_cache(cache)
    masked = plan.with_runs(TileMask.all(plan.grid_shape))
    assert math.isclose(decoded_ratio(masked), decoded_ratio(plan))
    assert (decoded_ratio(plan) == 1) == bool(cache)
    kept = [kept_chunks(p, 0, plan.shape, (7, 9), (0, 1)).uses for p in (plan, masked)]
    np.testing.assert_array_equal(every(kept[0]), every(kept[1]))


@given(st.data(), st.integers(1, 9))
def test_G9_costs_of_many_equal_blocks_equal_walking_them(data, size):
    """Blocks along an axis that have the same neighbours are counted together."""
    options = data.draw(st.sampled_from(({"overlap": 0}, {"overlap": 1}, {"stride": 2, "blend": "hann"})))
    extents = data.draw(st.sampled_from(((300,), (60, 90))))
    chunks = {"chunks": data.draw(st.sampled_from((4, 8, 12))), "batch_size": size, "pad_batch": True}
    plan = plan_tiles(
        extents, 4, reuse=data.draw(st.sampled_from(("share", "recompute"))), **options, **chunks
    )
    plan = plan.with_runs(data.draw(coarse(plan.grid_shape)))
    assert tasks(plan) == walked_tasks(plan)
    assert repeated_crops(plan) == sum(-n % size for crops in walked_crops(plan) for n in crops.values())
    reads = MaskedReads.of(plan, tuple(data.draw(st.integers(1, 20)) for _ in extents))
    assert reads.total() == every(reads.uses()).sum()
    assert reads.once() == np.count_nonzero(every(reads.uses()))


@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize("cost_of", [tasks, repeated_crops])
def test_kinds_of_blocks_are_as_many_however_many_blocks_there_are(cost_of, reuse, monkeypatch):
    """Cores of 6 samples and blocks of 20: every third block does not reach into the next."""
    sizes = []
    monkeypatch.setattr(cost, "weighed_sum", lambda bits, times: sizes.append(bits.size) or 0)
    mask = np.zeros((3, 3), bool)
    mask[1, :2] = True
    for n in (6 * 10**2, 6 * 10**4):
        options = {"mask": mask, "chunks": 20, "reuse": reuse, "memory_limit": "9TB"}
        cost_of(plan_tiles((n, n), 8, 1, batch_size=5, pad_batch=True, **options))
    assert len(set(sizes)) == 1


def test_tiles_in_many_ranges_are_counted_at_once(monkeypatch):
    """Each power of two in the numbers took a look at all bits."""
    tiles, looks = np.random.default_rng(0).random((40, 30)) < 0.5, []
    mask = TileMask.of(tiles)
    assert mask.bits.shape == tiles.shape
    bits = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda values: looks.append(values) or bits(values))
    for times in (3, 4095):
        assert mask.total([np.full(40, 2), np.full(30, times)]) == 2 * times * mask.tiles.sum()
        assert len(looks) <= 2


@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_reads_under_a_mask_take_what_the_mask_does_however_many_blocks_there_are(reuse):
    mask = np.random.default_rng(0).random((4,) * 3) < 0.5
    sizes, ratios = [], []
    for n in (2 * 10**3, 10**5):
        options = {"mask": mask, "chunks": 20, "reuse": reuse, "memory_limit": "9TB"}
        plan = plan_tiles((n,) * 3, 8, stride=4, blend="hann", **options)
        reads = MaskedReads.of(plan, (20,) * 3)
        sizes.append(sum(a.size for a in (*reads.lows, *reads.highs)))
        ratios.append(reads.total() / math.prod(reads.grid))
    assert sizes[0] == sizes[1]
    assert math.isclose(*ratios, rel_tol=0.1)


@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_crops_tasks_and_samples_may_be_more_than_64_bits_count(reuse):
    """10**20 crops: under a mask they were a negative number."""
    shape, options = (10**5,) * 5, {"edge": "clip", "reuse": reuse, "chunks": 10}
    plan = plan_tiles(shape, 10, 0, **options)
    masked = plan.with_runs(TileMask.all(plan.grid_shape))
    assert masked.n_runs == masked.calls() == plan.n_tiles == 10**20 > 2**64
    assert computed(masked) == computed(plan) == 10**25
    assert tasks(masked) == tasks(plan) == 10**20
    assert MaskedReads.of(masked, (10,) * 5).once() == 10**20
    assert f"{10**20} of {10**20} tiles run" in repr(masked.mask)
    assert TileMask.all((10**4,) * 4 + (1500,)).running([(0, 10**4)] * 4 + [(0, 1500)]) == 15 * 10**18
    quarter = np.zeros((2,) * 5, bool)
    quarter[0, 1] = True
    part = plan_tiles(shape, 10, 0, mask=quarter, **options)
    assert 4 * tasks(part) == 4 * part.n_runs == 10**20
    assert 4 * computed(part) == 10**25


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_known_of_many_small_chunks_is_little(masked):
    """A number for each of 10**10 chunks took 80 GB, in every process that computed a slice under a mask."""
    mask = np.arange(100).reshape(10, 10) % 7 == 3 if masked else None
    plan = plan_tiles((10**6,) * 2, 64, 4, mask=mask, chunks=10_000)
    plan = replace(plan, sources=(SourcePlan(1, (10, 10)),), cache_bytes=10**12)
    kept = kept_chunks(plan, 0, plan.shape, (10, 10), (0, 1))
    assert kept.lost == ()
    assert kept.uses.counts.size <= 10**6
    assert sum(map(len, kept.uses.kinds)) == 2 * 10**5


@pytest.mark.parametrize("extents", [(10**7,) * 2, (640_000,) * 3], ids=["2-D", "3-D"])
@pytest.mark.parametrize("options", [{"overlap": 4}, {"stride": 32, "blend": "hann"}], ids=["trim", "blend"])
def test_a_coarse_mask_stays_coarse_whatever_the_image(extents, options):
    """10**9 tiles and more, of which an array would take gigabytes."""
    values = np.zeros((10,) * len(extents), bool)
    values[(3,) * len(extents)] = values[(slice(6, 9),) * len(extents)] = True
    plan = plan_tiles(extents, 64, mask=values, **options)
    assert plan.n_tiles > 10**9
    assert plan.mask.bits.size <= 3 ** len(extents) * values.size
    assert len(plan.to_json()) < 10_000
    assert TilePlan.from_json(plan.to_json()) == plan
    low = 3 / 10 * extents[0] - 64
    assert all(low <= plan.grid.tile(t).read.start[0] for t in plan.mask.some(9))
    share = plan.n_runs / plan.n_tiles
    assert math.isclose(share, values.sum() / values.size, rel_tol=0.01)
    assert f"{plan.n_runs} run (mask)" in plan.explain()
    assert f"{plan.n_runs} of {plan.n_tiles} tiles run" in repr(plan.mask)


@pytest.mark.parametrize("name", ["CELLS", "CLASSES"])
@pytest.mark.parametrize("tiling", [{"overlap": 1}, {"stride": 5, "blend": "hann"}], ids=["trim", "blend"])
@pytest.mark.parametrize("cache", [0, 10**12])
def test_what_would_take_too_much_memory_to_count_is_said_to_be_a_bound(cache, tiling, name, monkeypatch):
    """Unlike tiles along five axes ended in a MemoryError."""
    mask = np.random.default_rng(0).random((10, 12)) < 0.2
    plan = plan_tiles((100, 120), 10, mask=mask, chunks=20, reuse="share", **tiling)
    plan = replace(plan, sources=(SourcePlan(1, (4, 7)),), cache_bytes=cache)
    exact = decoded_ratio(plan)
    assert dict(rows(plan))["decoded"].startswith("about")
    monkeypatch.setattr(masked_reads if name == "CELLS" else decoding, name, -1)
    again = replace(plan)
    counted = name == "CELLS" and not cache
    assert dict(rows(again))["decoded"].startswith("about" if counted else "at most")
    assert decoded_ratio(again) >= exact


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("cache", [0, 10**12])
def test_padding_under_a_mask_that_leaves_nothing_out_reads_what_it_does_without_one(boundary, cache):
    plan = plan_tiles((201, 287), 20, 0, edge="pad", boundary=boundary, chunks=20)
    plan = replace(plan, sources=(SourcePlan(1, (7, 9)),), cache_bytes=cache)
    masked = plan.with_runs(TileMask.all(plan.grid_shape))
    assert math.isclose(decoded_ratio(masked), decoded_ratio(plan))
    kept = [kept_chunks(p, 0, plan.shape, (7, 9), (0, 1)).uses for p in (plan, masked)]
    np.testing.assert_array_equal(every(kept[0]), every(kept[1]))
