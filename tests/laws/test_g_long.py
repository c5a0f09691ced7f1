"""G, long axes: what is told by a short image in place of a long one equals walking all tiles and blocks."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.laws.strategies import axes, grids, many
from tilework.grid.axis import AxisGrid, Starts
from tilework.grid.weights import AxisWeights
from tilework.plan import block_shapes, decoding
from tilework.plan.axis_table import AxisTable
from tilework.source.padding import source_index

# So many that there is a middle in which crops repeat.
TILES = 300


@many
@given(grids(tiles=TILES), st.sampled_from((None, 0, 2)), st.data())
def test_G1_places_of_all_tiles_equal_asking_one_by_one(grid, rim, data):
    tiles = np.array(
        data.draw(st.lists(st.integers(0, max(0, len(grid) - 1)), max_size=9 * bool(len(grid)))), int
    )
    samples = np.array(data.draw(st.lists(st.integers(-5, grid.extent + 5), max_size=9)), int)
    of_one = [(grid.read_ends(), grid.read), (grid.support_ends(rim), lambda i: grid.support(i, rim))]
    for places, one in of_one:
        every = np.array([one(i) for i in range(len(grid))], int).reshape(-1, 2)
        for end, found in enumerate(places):
            assert len(found) == len(grid)
            assert found.take(tiles).tolist() == every[tiles, end].tolist()
            for side in ("left", "right"):
                expected = np.searchsorted(every[:, end], samples, side)
                assert found.count_before(samples, side).tolist() == expected.tolist()


def test_G1_what_is_stored_of_long_axes_does_not_grow():
    for extent in (10**5, 10**6, 10**9, 10**15):
        starts, _ = AxisGrid(extent, 512, 128).support_ends()
        assert len(starts.near) < 20 < len(starts)
    # Given and squeezed crops do not repeat.
    for grid in (
        AxisGrid(1000, 8, 2, edge="squeeze"),
        AxisGrid(1000, 8, 0, starts=Starts.every(7, first=0, last=992)),
    ):
        assert grid.shorter() == (grid, math.lcm(grid.stride, 1), 0)


@given(axes(tiles=TILES), st.sampled_from((None, 0, 1)), st.data())
def test_G6_tables_of_many_blocks_equal_walking_all_tiles(axis, rim, data):
    grid = axis.grid
    size = grid.quantum * data.draw(st.integers(1, 6 * grid.crop))
    table = AxisTable(grid, size, (rim, axis.rim))
    supports = [[grid.support(i, r) for i in range(len(grid))] for r in table.rims]
    hulls = [(min(a for a, _ in s), max(b for _, b in s)) for s in zip(*supports, strict=True)]
    assert len(table.owned) == -(-grid.extent // size)
    for b, low in enumerate(range(0, grid.extent, size)):
        high = min(low + size, grid.extent)
        owned = [i for i, (a, _) in enumerate(hulls) if low <= a < high]
        touch = [i for i, (a, stop) in enumerate(hulls) if a < high and low < stop]
        assert (list(range(*table.owned[b])), list(range(*table.touch[b]))) == (owned, touch)
        for found, tiles in ((table.owned_read[b], owned), (table.touch_read[b], touch)):
            assert found == ((grid.read(tiles[0])[0], grid.read(tiles[-1])[1]) if tiles else (0, 0))


def walked(table, chunk, own):
    """Return the facts on chunks along an axis, by sets of the chunks that each block reads."""
    extent = table.grid.extent
    count = -(-extent // chunk)
    reads = table.owned_read if own else table.touch_read
    # What padding repeats is read, too.
    samples_of = [source_index(np.arange(a, b), extent, table.boundary).tolist() for a, b in reads]
    read = [{x // chunk for x in found if x >= 0} for found in samples_of]
    size = {c: min(extent, (c + 1) * chunk) - c * chunk for c in range(count)}
    readers = defaultdict(list)
    for b, chunks in enumerate(read):
        for c in chunks:
            readers[c].append(b)

    def samples(b, which):
        return sum(size[c] for c, r in readers.items() if which(r[0], r[-1], b))

    places, new = defaultdict(int), []
    for b in range(len(read)):
        through = samples(b, lambda first, last, b: first < b < last)
        opens = samples(b, lambda first, last, b: first == b < last)
        closes = samples(b, lambda first, last, b: first < b == last)
        alone = samples(b, lambda first, last, b: first == b == last)
        kind, stay = (alone, min(opens, closes)), through + max(opens, closes)
        places[kind] = max(places[kind], stay)
        new.append((opens + alone, alone))
    largest = max(new, key=lambda pair: pair[0])
    return (
        count, len(readers), sum(map(len, read)), sum(size[c] for c in readers),
        max(sum(size[c] for c in chunks) for chunks in read), *largest, sum(n > 0 for n, _ in new),
        tuple((s, both, alone) for (alone, both), s in sorted(places.items())),
    )  # fmt: skip


@many
@given(axes(tiles=TILES // 4, scaled=False) | axes(tiles=TILES, scaled=False), st.booleans(), st.data())
def test_G6_facts_on_chunks_equal_walking_all_blocks(axis, own, data):
    grid = axis.grid
    assume(len(grid))
    size = data.draw(st.integers(1, 3 * grid.crop))
    # Blocks and chunks whose pattern repeats soon, and others.
    chunk = data.draw(st.sampled_from((size, 2 * size)) | st.integers(1, 4 * grid.crop) | st.integers(1, 3))
    table = AxisTable(grid, size, (axis.rim,))
    found = decoding._facts_along(table, chunk, own)
    assert (
        found.count, found.once, found.reads, found.total, found.widest, found.new, found.alone,
        found.openers, found.places,
    ) == walked(table, chunk, own)  # fmt: skip


@given(axes(trims=False, plain=True, tiles=TILES), st.data())
def test_W4_samples_without_weight_are_found_along_long_axes(axis, data):
    window = np.ones(axis.grid.crop)
    window[
        data.draw(
            st.lists(st.integers(-3, axis.grid.crop - 1).filter(lambda k: k >= -axis.grid.crop), max_size=3)
        )
    ] = 0
    assume(window.any())
    weights = AxisWeights(axis.grid, window, axis.rim)
    total, tiles = np.zeros(weights.extent), np.zeros(weights.extent, int)
    for i in range(len(axis.grid)):
        a, b = weights.support(i)
        total[a:b] += weights.raw(i)
        tiles[a:b] += 1
    covered = slice(0, max((weights.support(i)[1] for i in range(len(axis.grid))), default=0))
    hole = weights.hole()
    assert (hole is None) == bool((total[covered] > 0).all())
    assert hole is None or total[hole] == 0
    assert weights.most == tiles.max(initial=0)
    places, samples = weights.offsets()
    assert [int((row >= 0).sum()) for row in places] == tiles[samples].tolist()


@given(st.data())
def test_G6_blocks_grow_as_unit_by_unit(data):
    n = data.draw(st.integers(1, 4))
    units = [data.draw(st.sampled_from((1, 2, 5, 48))) for _ in range(n)]
    extents = [u * data.draw(st.integers(1, 400)) for u in units]
    crops = [data.draw(st.integers(1, 600)) for _ in range(n)]
    sizes = [min(e, u * data.draw(st.integers(1, 3))) for e, u in zip(extents, units, strict=True)]
    axes, room = range(data.draw(st.integers(0, n - 1)), n), data.draw(st.floats(1, 1e7))
    expected, growing = list(sizes), set(axes)
    while growing:
        d = min(growing, key=lambda a: (expected[a] / crops[a], -a))
        longer = min(extents[d], expected[d] + units[d])
        if longer == expected[d] or math.prod(expected) // expected[d] * longer > room:
            growing.discard(d)
        else:
            expected[d] = longer
    block_shapes._grow(sizes, extents, units, crops, axes, room)
    assert sizes == expected
