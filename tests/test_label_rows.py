"""Runs and rows of label images against scipy and plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi

from tilework.errors import ContractError
from tilework.labels.facts import BlockFacts
from tilework.labels.rows import Firsts, Rows
from tilework.labels.runs import Runs, check_ids


@st.composite
def labelled(draw, each=False):
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(ndim + each))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array(draw(st.sampled_from([[0, 1], [0, 1, 2, 3], [0, 5, 10**12], [3, 4]])))
    dtype = draw(st.sampled_from(["int64", "uint64"]))
    return rng.choice(ids, shape).astype(dtype)


def naive(labels):
    """Return the facts of every object, from the positions of its samples."""
    found = {}
    for place in np.ndindex(*labels.shape):
        if labels[place]:
            found.setdefault(int(labels[place]), []).append(place)
    return {
        i: (
            min(np.ravel_multi_index(p, labels.shape) for p in places),
            len(places),
            np.min(places, axis=0).tolist(),
            (np.max(places, axis=0) + 1).tolist(),
            np.sum(places, axis=0).tolist(),
        )
        for i, places in found.items()
    }


def facts(rows):
    return {
        int(i): (int(f), int(a), lo.tolist(), hi.tolist(), s.tolist())
        for i, f, a, lo, hi, s in zip(
            rows.ids, rows.first, rows.area, rows.low, rows.high, rows.sums, strict=True
        )
    }


@given(labelled())
def test_runs_are_the_image_and_their_objects_those_of_a_loop(labels):
    runs = Runs.of(labels)
    assert np.array_equal(runs.painted(runs.ids), labels)
    objects = runs.objects()
    assert facts(objects) == naive(labels)
    assert np.array_equal(objects.ids[objects.number], runs.ids)
    chosen = objects.number == 0
    alone = runs.only(chosen[: len(runs.ids)])
    assert np.array_equal(alone.painted(alone.ids) != 0, np.isin(labels, objects.ids[:1]) & (labels != 0))


@given(labelled(each=True), st.booleans(), st.data())
def test_rows_of_parts_add_up_to_those_of_the_whole(labels, each, data):
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))}) for n in labels.shape]
    arguments = [
        (labels[np.ix_(*(range(a, b) for a, b in box))], [a for a, _ in box], labels.shape, int(each))
        for box in _boxes(cuts)
    ]
    rows = Rows.joined(Rows.of(*one) for one in arguments).merged()
    kept = [BlockFacts.of(BlockFacts(Firsts.of(*one)).tables()).firsts for one in arguments]
    for one, firsts in zip(arguments, kept, strict=True):
        of_part = Rows.of(*one)
        assert len(firsts) == len(of_part)
        for name in ("index", "ids", "first"):
            assert np.array_equal(getattr(firsts, name), getattr(of_part, name))
    images = labels if each else labels[None]
    assert all(facts(rows[rows.index == k]) == naive(image) for k, image in enumerate(images))
    assert len(rows) == sum(len(naive(image)) for image in images)


def _boxes(cuts):
    spans = [list(itertools.pairwise(c)) for c in cuts]
    return [tuple(s[i] for s, i in zip(spans, at, strict=True)) for at in np.ndindex(*map(len, spans))]


def test_objects_of_a_large_image_are_those_of_scipy():
    noise = np.random.default_rng(3).random((120, 300))
    labels = ndi.label(ndi.gaussian_filter(noise, 2) > 0.5)[0]
    objects = Runs.of(labels).objects()
    boxes = ndi.find_objects(labels)
    assert [tuple(map(slice, lo, hi)) for lo, hi in zip(objects.low, objects.high, strict=True)] == boxes
    centres = ndi.center_of_mass(labels > 0, labels, objects.ids)
    np.testing.assert_allclose(objects.sums / objects.area[:, None], centres)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(3, bool), "scipy.ndimage.label"),
        (np.zeros(3), "float64"),
        (np.array([0, -1]), "the id -1"),
        (np.array([2**63], np.uint64), "below 2"),
    ],
)
def test_what_is_no_id_is_refused(values, words):
    with pytest.raises(ContractError, match=words):
        check_ids(values, "the function returned")
