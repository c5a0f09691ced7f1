"""Law L3 in memory: pieces of a mask that is labelled block by block, joined, are the labels of the whole.

The oracle is `scipy.ndimage.label` of the whole mask, to the bit.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi

from tilework.labels.components import numbered
from tilework.labels.faces import around, pairs_of, touching
from tilework.labels.rows import Rows


@st.composite
def cut_masks(draw):
    """Return a mask, the number of its each axes, the blocks as spans per axis, and a connectivity."""
    ndim = draw(st.integers(1, 4))
    n_each = draw(st.integers(0, 2 if ndim < 3 else 1))
    most = (40, 12, 7, 5)[ndim - 1]
    shape = tuple(draw(st.integers(1, 3)) for _ in range(n_each)) + tuple(
        draw(st.integers(1, most)) for _ in range(ndim)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.3, 0.5, 0.7, 1]))
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))}) for n in shape]
    if draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        cuts[axis] = [*range(shape[axis] + 1)]
    spans = [list(itertools.pairwise(c)) for c in cuts]
    return mask, n_each, spans, draw(st.integers(1, ndim))


def label(mask, n_each, connectivity):
    structure = ndi.generate_binary_structure(mask.ndim - n_each, connectivity)
    labels = np.zeros(mask.shape, np.int64)
    for at in np.ndindex(mask.shape[:n_each]):
        labels[at] = ndi.label(mask[at], structure)[0]
    return labels


def of(box):
    return tuple(slice(a, b) for a, b in box)


def joined(mask, n_each, spans, connectivity, rng=None):
    """Return the labels of a mask whose blocks are labelled alone, and the number of edges."""
    shape = mask.shape
    blocks = list(np.ndindex(*map(len, spans)))
    boxes = {at: tuple(s[i] for s, i in zip(spans, at, strict=True)) for at in blocks}
    labels = np.zeros(shape, np.int64)
    for box in boxes.values():
        part = label(mask[of(box)], n_each, connectivity)
        # Ids with gaps, in any order, as large as they may be: the same in several blocks, for other objects.
        new = np.arange(part.max() + 1) if rng is None else np.sort(rng.integers(1, 2**63, part.max() + 1))
        new[1:] = new[1:] if rng is None else rng.permutation(new[1:])
        new[0] = 0
        labels[of(box)] = new[part]
    rows = {at: Rows.of(labels[of(box)], [a for a, _ in box], shape, n_each) for at, box in boxes.items()}
    starts = dict(zip(blocks, np.cumsum([0, *(len(rows[at]) for at in blocks)]), strict=False))
    edges = []
    for at, box in boxes.items():
        for step, table in touching(
            labels[of(around(box, shape, connectivity, n_each))], box, shape, connectivity, n_each
        ):
            there = tuple(i + d for i, d in zip(at, step, strict=True))
            assert there < at
            keys = [(rows[k].index, rows[k].ids) for k in (at, there)]
            edges.append(np.add(pairs_of(table, *keys), [starts[at], starts[there]]))
    period = int(np.prod(shape[n_each:]))
    everything = Rows.joined(rows.values())
    numbers = numbered(everything.index * period + everything.first, edges, period=period)
    result = np.zeros(shape, np.int64)
    for at, box in boxes.items():
        part, found = labels[of(box)], rows[at]
        for k, (index, i) in enumerate(zip(found.index, found.ids, strict=True)):
            where = np.zeros(shape[:n_each], bool)
            where.flat[index] = True
            where = where[of(box[:n_each])].reshape(part.shape[:n_each] + (1,) * (part.ndim - n_each))
            result[of(box)][(part == i) & where] = numbers[starts[at] + k]
    return result, edges


@given(cut_masks(), st.integers(0, 2**32 - 1))
def test_l3_joined_blocks_are_the_labels_of_the_whole(cut, seed):
    mask, n_each, spans, connectivity = cut
    result, _ = joined(mask, n_each, spans, connectivity, np.random.default_rng(seed))
    assert np.array_equal(result, label(mask, n_each, connectivity))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_each_pair_of_neighbouring_samples_is_one_edge(shape, data):
    """In blocks of one sample, where no two pairs are between the same objects."""
    connectivity = data.draw(st.integers(1, len(shape)))
    spans = [[(i, i + 1) for i in range(n)] for n in shape]
    _, edges = joined(np.ones(shape, bool), 0, spans, connectivity)
    edges = np.concatenate([np.zeros((0, 2), int), *edges])
    places = list(np.ndindex(*shape))
    wanted = {
        (j, i)
        for (i, p), (j, q) in itertools.combinations(enumerate(places), 2)
        if max(d := [abs(a - b) for a, b in zip(p, q, strict=True)]) == 1
        and np.count_nonzero(d) <= connectivity
    }
    assert len(edges) == len(wanted)
    assert set(map(tuple, edges.tolist())) == wanted


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_a_block_reads_no_more_than_it_compares(connectivity):
    """Every sample that is read lies in the block or beside it, in an earlier one."""
    box, shape = ((4, 7), (4, 6), (4, 9)), (20, 20, 20)
    read = around(box, shape, connectivity)
    seen = np.zeros(shape, int)
    structure = ndi.generate_binary_structure(3, connectivity)
    seen[of(box)] = 1
    beside = ndi.binary_dilation(seen, structure)
    earlier = np.zeros(shape, bool)
    for p in np.argwhere(beside):
        step = tuple(-1 if x < a else int(x >= b) for x, (a, b) in zip(p, box, strict=True))
        earlier[tuple(p)] = step <= (0, 0, 0)
    needed = np.argwhere(earlier)
    assert read == tuple(zip(needed.min(axis=0).tolist(), (needed.max(axis=0) + 1).tolist(), strict=True))


def test_the_same_ids_at_several_indices():
    rows = Rows.of(np.array([[3, 2**62], [3, 0], [2**62, 5]]), (0, 0), (3, 2), 1)
    keys = rows.index, rows.ids
    pairs = pairs_of(np.stack((*keys, rows.ids), axis=1), keys, keys)
    assert pairs.tolist() == [[k, k] for k in range(5)]


def test_each_touching_pair_of_objects_is_told_once():
    labels = np.array([[1, 1, 2, 0], [5, 5, 5, 5]])
    box = ((1, 2), (0, 4))
    for connectivity in (1, 2):
        assert [(s, t.tolist()) for s, t in touching(labels, box, labels.shape, connectivity)] == [
            ((-1, 0), [[0, 5, 1], [0, 5, 2]])
        ]
