"""G, long axes: what is told by a short image in place of a long one equals walking all tiles and blocks."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.laws.strategies import axes, grids, many
from tilework.grid import axis as grid_axis
from tilework.grid.axis import AxisGrid, Starts, _representatives
from tilework.grid.progression import Formula
from tilework.grid.weights import AxisWeights
from tilework.plan import block_shapes, decoding
from tilework.plan.axis_table import AxisTable
from tilework.source.padding import source_index

# So many that there is a middle in which crops repeat.
TILES = 300


@pytest.fixture(autouse=True, scope="module")
def formulas_of_short_axes():
    """Laws walk the tiles, which must be few, and a formula tells them all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_axis, "FEW", 0)
        yield


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
    for extent in (10**5, 10**6, 10**9, 10**15 - 1):
        grid = AxisGrid(extent, max(512, extent // 10**7), 128, edge="squeeze")
        assert isinstance(grid.support_ends()[0], Formula)
        assert len(grid.typical) < 60 < len(grid)
    # Given and squeezed crops do not repeat.
    for grid in (
        AxisGrid(1000, 8, 2, edge="squeeze"),
        AxisGrid(1000, 8, 0, starts=Starts.every(7, first=0, last=992)),
    ):
        assert grid.shorter() == (grid, math.lcm(grid.stride, 1), 0)


@many
@given(st.integers(1, 10**8 - 1), st.data(), st.sampled_from((None, 0, 2)))
def test_G1_evenly_spaced_crops_are_those_of_python_numbers(gaps, data, rim):
    """Up to the most crops and samples that an axis may have."""
    multiple, quantum = data.draw(st.sampled_from(((1, 1), (3, 1), (2, 2), (4, 2), (16, 16))))
    stride = multiple * data.draw(st.integers(1, 40) | st.integers(1, 9 * 10**14 // (gaps * multiple)))
    overlap = multiple * data.draw(st.integers(0, 9))
    crop, rim = stride + 2 * overlap, rim if rim is None else min(rim, overlap)
    slack = multiple * data.draw(
        st.integers((stride // multiple) * (gaps - 1) + 1, (stride // multiple) * gaps)
    )
    grid = AxisGrid(slack + crop, crop, overlap, stride, "squeeze", True, multiple, (0, 0), quantum)
    assert len(grid) == gaps + 1
    tiles = np.array(data.draw(st.lists(st.integers(0, gaps), max_size=9)), int)
    for ends, one in (
        (grid.read_ends(), grid.read),
        (grid.support_ends(rim), lambda i: grid.support(i, rim)),
    ):
        for end, found in enumerate(ends):
            assert found.take(tiles).tolist() == [one(int(i))[end] for i in tiles]
            near = {x + more for i in tiles for x in one(int(i)) for more in (-1, 0, 1)}
            samples = np.array([*near, -1, 0, grid.extent, 2**62], int)
            for side, cut in (("left", bisect.bisect_left), ("right", bisect.bisect_right)):
                expected = [cut(range(gaps + 1), x, key=lambda i: one(i)[end]) for x in samples.tolist()]
                assert found.count_before(samples, side).tolist() == expected


@many
@given(st.data())
def test_G6_numbers_stand_for_all_that_are_spaced_evenly(data):
    near, times = data.draw(st.integers(1, 9)), data.draw(st.sampled_from((1, 1, 2, 5)))
    parts = times * data.draw(st.integers(1, 600))
    of = times * data.draw(st.integers(parts // times, 9 * parts))
    found = _representatives(of, parts, near)
    assert len(found) <= max(8 * near, 4 * (near + 1) + 2 * near) + 1

    def around(i):
        numbers = range(max(0, i - near), min(parts, i + near) + 1)
        return tuple((j - i, of * j // parts - of * i // parts) for j in numbers)

    assert {around(i) for i in found.tolist()} == {around(i) for i in range(parts + 1)}


@many
@given(grids(tiles=TILES) | grids(tiles=TILES, edge="squeeze", most=20), st.sampled_from((None, 0, 1)))
def test_G6_each_tile_lies_as_a_typical_one(grid, rim):
    supports = [grid.support(i, rim) for i in range(len(grid))]

    def places(i):
        """Return where tiles are whose crops may meet that of one, from its own start."""
        at = grid.nominal(i)
        around = range(max(0, i - TILES), min(len(grid), i + TILES))
        near = [k for k in around if abs(grid.nominal(k) - at) < grid.crop]
        return tuple(
            (k - i, grid.nominal(k) - at, supports[k][0] - at, supports[k][1] - at) for k in near
        )  # fmt: skip

    typical = grid.typical.tolist()
    assert typical == sorted(set(typical))
    assert {places(i) for i in typical} == {places(i) for i in range(len(grid))}
    shorter, tiles, shift = grid.excerpt
    for i, k, more in zip(typical, tiles.tolist(), shift.tolist(), strict=True):
        assert shorter.nominal(k) + more == grid.nominal(i)
        assert [x + more for x in shorter.support(k, rim)] == list(supports[i])
        met = shorter.touching(*shorter.support(k, rim), rim)
        assert [j - k for j in met] == [j - i for j in grid.touching(*supports[i], rim)]
        assert [[x + more for x in shorter.support(j, rim)] for j in met] == [
            list(supports[i + j - k]) for j in met
        ]


@given(axes(tiles=TILES), st.sampled_from((None, 0, 1)), st.data())
def test_G6_tables_of_many_blocks_equal_walking_all_tiles(axis, rim, data):
    grid = axis.grid
    size = grid.quantum * data.draw(st.integers(1, 6 * grid.crop))
    table = AxisTable(grid, size, (rim, axis.rim))
    supports = [[grid.support(i, r) for i in range(len(grid))] for r in table.rims]
    hulls = [(min(a for a, _ in s), max(b for _, b in s)) for s in zip(*supports, strict=True)]
    assert len(table.owned) == -(-grid.extent // size)
    assert table.longest == max((stop - a for a, stop in hulls), default=0)
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
