"""Numbers of objects from their pieces against a plain union-find, and in parts against in one piece."""

import itertools
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilework.errors import TilingError
from tilework.labels import components, ordering
from tilework.labels.components import numbered, same
from tilework.labels.ordering import ascending


@st.composite
def graphs(draw):
    """Return first samples, edges in several tables, and the period or None."""
    count = draw(st.integers(0, 40))
    period = draw(st.sampled_from([None, 1, 7, 50, 10**6]))
    first = np.array(
        draw(st.lists(st.integers(0, 300), min_size=count, max_size=count, unique=True)), np.int64
    )
    node = st.integers(0, max(0, count - 1))
    pairs = draw(st.lists(st.tuples(node, node), max_size=60)) if count else []
    if period is not None:
        pairs = [(a, b) for a, b in pairs if first[a] // period == first[b] // period]
    cuts = draw(st.lists(st.integers(0, len(pairs)), max_size=3))
    return first, np.split(np.array(pairs, np.int64).reshape(-1, 2), sorted(cuts)), period


def naive(first, edges, period):
    """Return the numbers by relabelling one edge at a time."""
    of = list(range(len(first)))
    for a, b in np.concatenate([np.zeros((0, 2), int), *edges]):
        old, new = of[a], of[b]
        of = [new if k == old else k for k in of]
    lowest = [min(int(first[j]) for j in range(len(of)) if of[j] == k) for k in of]
    indices = [0 if period is None else low // period for low in lowest]
    return [
        1 + len({b for b, j in zip(lowest, indices, strict=True) if j == i and b < a})
        for a, i in zip(lowest, indices, strict=True)
    ]


@pytest.fixture(params=[1 << 20, 8, 1], ids=["one part", "parts of 8", "parts of 1"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(ordering, "AT_ONCE", request.param)
    monkeypatch.setattr(components, "AT_ONCE", -(-request.param // 4))
    return request.param


@pytest.mark.usefixtures("at_once")
class TestInParts:
    @given(graphs(), st.booleans())
    def test_numbers_are_those_of_a_plain_union_find(self, tmp_path_factory, graph, on_disk):
        first, edges, period = graph
        folder = tmp_path_factory.mktemp("numbers") if on_disk and len(first) else None
        numbers = numbered(first, iter(edges), period=period, folder=folder)
        assert numbers.dtype == np.uint32
        assert numbers.tolist() == naive(first, edges, period)
        if folder:
            assert isinstance(numbers, np.memmap)
            assert [file.name for file in folder.iterdir()] == ["numbers.npy"]

    @given(st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 9), max_size=60), st.data())
    def test_values_in_ascending_order(self, values, data):
        values = np.array(values, np.int64)
        without = np.array(
            sorted(data.draw(st.sets(st.integers(0, len(values) - 1)))) if len(values) else [], np.int64
        )
        tables = list(ascending(values, without))
        none = (without[:0], without[:0])
        places, found = map(np.concatenate, zip(none, *tables, strict=True))
        assert np.array_equal(found, values[places])
        assert (np.diff(found.astype(object)) >= 0).all()
        assert sorted(places.tolist()) == sorted(set(range(len(values))) - set(without.tolist()))
        for (_, low), (_, high) in itertools.pairwise(tables):
            assert low[-1] < high[0]

    @given(st.lists(st.integers(0, 6), max_size=60))
    def test_nodes_of_one_key_are_one_object(self, keys):
        keys = np.array(keys, np.int64)
        numbers = numbered(np.arange(len(keys)), same(keys))
        seen = list(dict.fromkeys(keys.tolist()))
        assert numbers.tolist() == [1 + seen.index(k) for k in keys]

    def test_many_edges_among_few_nodes(self, monkeypatch, at_once):
        """Edges are forgotten but for one per node, and no edge of a tree is lost."""
        rng = np.random.default_rng(4)
        chain = rng.permutation(np.stack((np.arange(199), np.arange(1, 200)), 1))
        chain = chain[chain[:, 1] % 40 != 0]
        edges = np.array_split(np.repeat(chain, 9, axis=0), 100)
        sizes, real = [], components._components
        monkeypatch.setattr(components, "_components", lambda pairs: sizes.append(len(pairs)) or real(pairs))
        first = rng.permutation(200)
        assert numbered(first, edges).tolist() == naive(first, [chain], None)
        assert (max(sizes) < 4 * 200) == (at_once < 1000)


def test_more_objects_than_uint32_holds_are_uint64(monkeypatch):
    monkeypatch.setattr(components, "LARGEST", 3)
    first = np.arange(5)
    assert numbered(first).dtype == np.uint64
    assert numbered(first, [np.array([[0, 1]])]).dtype == np.uint64
    assert numbered(first, [np.array([[0, 1], [1, 4]])]).dtype == np.uint32


def test_tables_larger_than_memory(tmp_path, monkeypatch):
    """Peak memory is that of the touched nodes and of a part, not of the table."""
    monkeypatch.setattr(ordering, "AT_ONCE", 1 << 12)
    peaks = []
    for count in (1 << 15, 1 << 18):
        first = np.lib.format.open_memmap(tmp_path / "first.npy", "w+", np.int64, (count,))
        first[:] = np.random.default_rng(0).permutation(count)
        folder = tmp_path / str(count)
        folder.mkdir()
        edges = [np.array([[3, 5], [100, 200]])]
        numbered(np.arange(300), edges)  # what is imported at the first call
        tracemalloc.start()
        try:
            numbers = numbered(first, edges, folder=folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        order = np.sort(np.delete(first, [node for pair in edges[0] for node in pair]))
        assert len(numbers) == count
        assert numbers.max() == count - 2 == len(order) + 2
    assert peaks[1] < 2 * peaks[0] < 8 * (1 << 15) * 8


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([[0, 3]], "names node 3 or 0, and there are 3"),
        ([[-1, 2]], "names node 2 or -1"),
        ([0, 1], "shape"),
        ([[0.0, 1.0]], "float64"),
    ],
)
def test_what_is_no_edge_is_refused(edges, words):
    with pytest.raises(TilingError, match=words):
        numbered(np.arange(3), [np.array(edges)])


def test_what_cannot_be_numbered_is_refused():
    with pytest.raises(TilingError, match="two objects have the first sample 7"):
        numbered(np.array([7, 3, 7]))
    with pytest.raises(TilingError, match="two indices of the each axes"):
        numbered(np.array([7, 3, 12]), [np.array([[0, 2]])], period=10)
    # Pieces of one object may know its first sample already.
    assert numbered(np.array([7, 3, 7]), [np.array([[0, 2]])]).tolist() == [2, 1, 2]


def test_scipy_is_needed_for_edges_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    assert numbered(np.array([7, 3])).tolist() == [2, 1]
    assert numbered(np.array([7, 3]), [np.zeros((0, 2), np.int64), np.array([[1, 1]])]).tolist() == [2, 1]
    with pytest.raises(ImportError, match=r"tilework\[labels\]"):
        numbered(np.array([7, 3]), [np.array([[0, 1]])])
