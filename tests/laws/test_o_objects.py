"""O: the objects of crops, painted by their owners, are those of the whole image."""

import warnings

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tilework.graph.build import plan_of


def canonical(labels):
    """Return labels whose ids are 1 plus the raveled position of the first sample of each object."""
    ids, first, number = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    return np.where(ids == 0, 0, first + 1)[number].reshape(labels.shape)


def longest(labels):
    """Return the largest extent of any object per axis, 1 where there is none."""
    boxes = [box for box in ndi.find_objects(labels) if box is not None]
    return [max([box[a].stop - box[a].start for box in boxes], default=1) for a in range(labels.ndim)]


@st.composite
def scenes(draw, most=3):
    """Return a mask of blobs, bars and rings that touch, and the arguments of a call that suits it."""
    ndim = draw(st.integers(1, most))
    shape = tuple(draw(st.integers(1, {1: 60, 2: 36, 3: 18}[ndim])) for _ in range(ndim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = ndi.gaussian_filter(rng.random(shape), draw(st.sampled_from([0, 0.7, 1.2])))
    mask = noise > np.quantile(noise, draw(st.sampled_from([0.5, 0.7, 0.85])))
    structure = ndi.generate_binary_structure(ndim, draw(st.integers(1, ndim)))
    overlap = [n // 2 for n in longest(ndi.label(mask, structure)[0])]
    assume(max(overlap) < 12)
    stride = draw(st.sampled_from([1, 3, 4, 8]))
    multiple = draw(st.sampled_from([1, 4])) if stride % 4 == 0 else 1
    overlap = tuple(-(-o // multiple) * multiple for o in overlap)
    call = {
        "crop": tuple(2 * o + stride for o in overlap),
        "overlap": overlap,
        "axes": tuple(range(ndim)),
        "edge": draw(st.sampled_from(["shift", "squeeze", "pad", "clip"])),
        "boundary": draw(st.sampled_from(["reflect", "symmetric", "edge", "wrap", "constant"])),
        "multiple": multiple,
    }
    return mask, structure, call


@given(scenes(), st.integers(0, 2**32 - 1))
def test_o1_objects_equal_those_of_the_whole_whatever_fn_calls_them(scene, seed):
    mask, structure, call = scene
    calls, rng = [], np.random.default_rng(seed)

    def fn(crop):
        calls.append(1)
        labels, count = ndi.label(crop, structure)
        ids = 1 + rng.permutation(10 * count)[:count]
        return np.array([0, *ids])[labels]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        out = tw.tiled_map(fn, mask, output=tw.Output("uint32", labels="own"), **call)
        got = out.compute(scheduler="synchronous")
    assert got.dtype == np.int64
    assert np.array_equal(got, canonical(ndi.label(mask, structure)[0]))
    assert len(calls) == len(plan_of(out))
