"""O: the objects of crops, painted by their owners, are those of the whole image."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tilework.graph.build import plan_of

SIZES = {1: 60, 2: 36, 3: 18, 4: 9, 5: 6}
EDGES = ("shift", "squeeze", "pad", "clip")
BOUNDARIES = ("reflect", "symmetric", "edge", "wrap", "constant")


def canonical(labels):
    """Return labels whose ids are 1 plus the raveled position of the first sample of each object."""
    ids, first, number = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    return np.where(ids == 0, 0, first + 1)[number].reshape(labels.shape)


def longest(labels):
    """Return the largest extent of any object per axis, 1 where there is none."""
    boxes = [box for box in ndi.find_objects(labels) if box is not None]
    return [max([box[a].stop - box[a].start for box in boxes], default=1) for a in range(labels.ndim)]


def connected(labels):
    """Return whether all samples of each object are joined, diagonals included."""
    structure = np.ones((3,) * labels.ndim)
    return all(ndi.label(labels == i, structure)[1] == 1 for i in np.unique(labels) if i)


def painted(fn, image, call, **more) -> tuple[np.ndarray, list[str]]:
    """Return the objects of a tiled call, and the doubts that it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = tw.tiled_map(fn, image, output=tw.Output("uint32", labels="own"), **call, **more)
        got = out.compute(scheduler="synchronous")
    return got, [str(w.message) for w in caught if "labels may differ" in str(w.message)]


def renamed(labels, rng):
    """Return labels under other ids, in no order."""
    ids, number = np.unique(labels, return_inverse=True)
    new = 1 + rng.permutation(10 * len(ids))[: len(ids)]
    new[ids == 0] = 0
    return new[number].reshape(labels.shape).astype(rng.choice(["uint16", "int32", "int64", "uint64"]))


# ------------------------------------------------------------------------------------------- draws


def blobs(rng, shape):
    """Blobs, bars and rings that touch: concave, and some within others."""
    noise = ndi.gaussian_filter(rng.random(shape), rng.choice([0, 0.7, 1.2]))
    mask = noise > np.quantile(noise, rng.choice([0.5, 0.7, 0.85]))
    connectivity = int(rng.integers(1, len(shape) + 1))
    return ndi.label(mask, ndi.generate_binary_structure(len(shape), connectivity))[0]


def cells(rng, shape):
    """Cells that fill the image, or most of it, as a watershed finds them."""
    count = int(rng.integers(1, 12))
    seeds = np.stack([rng.integers(0, n, count) for n in shape], axis=1)
    places = np.indices(shape).reshape(len(shape), -1).T
    distance = np.abs(places[:, None] - seeds[None]).max(axis=2)
    near = distance.min(axis=1) < rng.choice([2, 4, 99])
    return np.where(near, 1 + distance.argmin(axis=1), 0).reshape(shape)


def boxes(rng, shape):
    """Boxes that hide parts of each other; some are rings with others inside, some hold a sample here and
    there, and those are not connected."""
    labels = np.zeros(shape, int)
    for i in range(2, 2 * int(rng.integers(2, 10)), 2):
        extents = [min(n, int(rng.integers(1, 9))) for n in shape]
        start = [int(rng.integers(0, n - e + 1)) for n, e in zip(shape, extents, strict=True)]
        box = labels[tuple(slice(a, a + e) for a, e in zip(start, extents, strict=True))]
        box[rng.random(box.shape) < rng.choice([0.3, 1])] = i
        if rng.random() < 0.5:
            box[(slice(1, -1),) * len(shape)] = rng.choice([0, i + 1])
    return labels


def volume(rng, ndim):
    shape = tuple(int(rng.integers(1, SIZES[ndim] + 1)) for _ in range(ndim))
    return (blobs, cells, boxes)[int(rng.integers(3))](rng, shape)


def call_of(draw, overlap, edges=EDGES) -> dict[str, Any]:
    """Return arguments of a call with at least this overlap per axis."""
    multiple = draw(st.sampled_from([1, 1, 1, 4]))
    strides = [multiple * draw(st.integers(1, 8)) for _ in overlap]
    overlap = tuple(-(-int(o) // multiple) * multiple for o in overlap)
    edge = draw(st.sampled_from(edges))
    return {
        "crop": tuple(2 * o + s for o, s in zip(overlap, strides, strict=True)),
        "overlap": overlap,
        "axes": tuple(range(len(overlap))),
        "edge": edge,
        "boundary": draw(st.sampled_from([b for b in BOUNDARIES if b != "wrap" or edge == "clip"])),
        "multiple": multiple,
    }


@st.composite
def scenes(draw, ndim=(1, 5)):
    """Return labels, and the arguments of a call whose overlap suits the longest object, or nearly so."""
    seed = draw(st.integers(0, 2**32 - 1))
    labels = volume(np.random.default_rng(seed), draw(st.integers(*ndim)))
    overlap = [n // 2 + draw(st.sampled_from([0, 0, 1])) for n in longest(labels)]
    assume(max(overlap) < 12)
    return labels, call_of(draw, overlap), seed


def reading(seed, calls=None):
    """Return a function that reads labels, and names them as it likes in each call."""
    rng = np.random.default_rng(seed)

    def fn(crop):
        if calls is not None:
            calls.append(crop.shape)
        return renamed(crop, rng)

    return fn


# ------------------------------------------------------------------------------------------- O1, O8, O2


@given(st.data(), st.integers(0, 2**32 - 1))
def test_o1_objects_equal_those_of_the_whole_whatever_fn_calls_them(data, seed):
    calls, rng = [], np.random.default_rng(seed)
    ndim = data.draw(st.integers(1, 3))
    mask = volume(rng, ndim) % 3 > 0
    structure = ndi.generate_binary_structure(ndim, data.draw(st.integers(1, ndim)))
    whole = ndi.label(mask, structure)[0]
    call = call_of(data.draw, [n // 2 for n in longest(whole)])
    assume(max(call["overlap"]) < 12)

    def fn(crop):
        calls.append(1)
        return renamed(ndi.label(crop, structure)[0], rng)

    got, _ = painted(fn, mask, call)
    assert got.dtype == np.int64
    assert np.array_equal(got, canonical(whole))
    out = tw.tiled_map(fn, mask, output=tw.Output("uint32", labels="own"), **call)
    assert len(calls) == len(plan_of(out))


@given(scenes())
def test_o1_objects_of_any_shape_in_any_dimension_connected_or_not(scene):
    labels, call, seed = scene
    calls = []
    got, _ = painted(reading(seed, calls), labels, call)
    assert np.array_equal(got, canonical(labels))


@given(scenes(ndim=(1, 3)), st.data())
def test_o2_ids_do_not_depend_on_blocks_reuse_batches_memory_or_threads(scene, data):
    labels, call, seed = scene
    more: dict[str, Any] = {"reuse": data.draw(st.sampled_from(["auto", "share", "recompute"]))}
    if more["reuse"] == "recompute":
        more["chunks"] = tuple(data.draw(st.integers(1, n)) for n in labels.shape)
    elif data.draw(st.booleans()):
        longer = [data.draw(st.integers(1, n)) for n in labels.shape]
        more["chunks"] = tuple(map(max, call["crop"], longer))
    one, fn = reading(seed), reading(seed)
    if data.draw(st.booleans()):
        more["batch_size"] = 3
        fn = lambda batch: np.stack([one(crop).astype("int64") for crop in batch])  # noqa: E731
    out = tw.tiled_map(fn, labels, output=tw.Output(labels="own"), **call, **more)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        got = out.compute(scheduler=data.draw(st.sampled_from(["synchronous", "threads"])))
    assert np.array_equal(got, canonical(labels))


# ------------------------------------------------------------------------------------------- O4


@given(scenes(ndim=(1, 3)), st.data())
def test_o4_a_slice_and_a_view_hold_the_ids_of_the_whole(scene, data):
    labels, call, seed = scene
    cut = []
    for n in labels.shape:
        a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        cut.append(slice(a, b))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        out = tw.tiled_map(reading(seed), labels, output=tw.Output(labels="own"), **call)
        part = out[tuple(cut)].compute(scheduler="synchronous")
        seen = tw.view(out, verbose=False)[tuple(cut)]
    assert np.array_equal(part, canonical(labels)[tuple(cut)])
    assert np.array_equal(seen, part)


@given(scenes(ndim=(1, 3)), st.data())
def test_o4_even_of_labels_that_differ_from_those_of_the_whole(scene, data):
    labels, call, seed = scene
    call["overlap"] = tuple(max(0, o - data.draw(st.integers(0, 3))) for o in call["overlap"])
    call |= {"multiple": 1, "crop": tuple(2 * o + 3 for o in call["overlap"])}
    cut = tuple(slice(data.draw(st.integers(0, n)), None) for n in labels.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        out = tw.tiled_map(wrong(labels, 1, "noise", seed), labels, output=tw.Output(labels="own"),
                           pass_tile=True, **call)  # fmt: skip
        whole = out.compute(scheduler="synchronous")
        part = tw.view(out, verbose=False)[cut]
    assert np.array_equal(part, whole[cut])


# ------------------------------------------------------------------------------------------- O1 and O7, r > 0


def wrong(labels, reach, how, seed):
    """Return a function that reads labels, and is wrong in the outer ``reach`` samples of cut sides."""
    shape = labels.shape

    def fn(crop, tile):
        rng = np.random.default_rng((seed, tile.index))
        found, outer = crop.copy(), np.zeros(crop.shape, bool)
        for a, (start, stop) in enumerate(zip(tile.read.start, tile.read.stop, strict=True)):
            along = np.moveaxis(outer, a, 0)
            along[: reach * (start > 0)] = True
            along[len(along) - reach * (stop < shape[a]) :] = True
        some = outer & (rng.random(crop.shape) < 0.5)
        if how == "drop":
            found[some] = 0
        elif how == "noise":
            found[some] = 1000 + np.arange(crop.size).reshape(crop.shape)[some]
        elif how == "grow":
            found[some & (crop == 0)] = ndi.maximum_filter(crop, 3)[some & (crop == 0)]
        elif how == "bridge":
            high = ndi.maximum_filter(crop, 3)
            low = ndi.minimum_filter(np.where(crop, crop, high.max() + 1), 3)
            for a, b in np.unique(np.stack([low[some], high[some]]), axis=1).T:
                if 0 < a < b:
                    found[(found == b) | (some & (low == a) & (high == b))] = a
        return renamed(found, rng)

    return fn


@given(st.data(), st.integers(0, 2**32 - 1))
def test_o1_objects_are_right_although_fn_is_wrong_in_the_outer_samples(data, seed):
    rng = np.random.default_rng(seed)
    labels = volume(rng, data.draw(st.integers(1, 3)))
    assume(connected(labels))
    reach = data.draw(st.integers(1, 4))
    # The smallest overlap with extents up to 2 * (overlap - reach) - 1.
    call = call_of(data.draw, [reach + (n + 2) // 2 for n in longest(labels)], ["clip"])
    how = data.draw(st.sampled_from(["drop", "noise", "grow", "bridge"]))
    got, _ = painted(wrong(labels, reach, how, seed), labels, call, pass_tile=True)
    assert np.array_equal(got, canonical(labels))


@given(st.data(), st.integers(0, 2**32 - 1))
def test_o7_wrong_objects_are_announced(data, seed):
    rng = np.random.default_rng(seed)
    labels = volume(rng, data.draw(st.integers(1, 3)))
    assume(connected(labels))
    reach = data.draw(st.integers(0, 4))
    how = data.draw(st.sampled_from(["drop", "grow"]))
    least = reach + 1 if reach else 0
    overlap = [data.draw(st.integers(least, max(least, n // 2 + reach))) for n in longest(labels)]
    call = call_of(data.draw, overlap, ["clip"])
    got, told = painted(wrong(labels, reach, how, seed), labels, call, pass_tile=True)
    assert told or np.array_equal(got, canonical(labels))


@given(scenes())
def test_o7_nothing_is_announced_of_objects_that_fit_with_room(scene):
    labels, call, seed = scene
    assume(connected(labels))
    call["overlap"] = tuple(o + call["multiple"] for o in call["overlap"])
    call["crop"] = tuple(c + 2 * call["multiple"] for c in call["crop"])
    _, told = painted(reading(seed), labels, call)
    assert not told


# ------------------------------------------------------------------------------------------- other results


def doubled(labels, factor):
    """Return labels with every sample repeated along each axis."""
    for axis in range(labels.ndim):
        labels = np.repeat(labels, factor, axis=axis)
    return labels


@given(scenes(ndim=(1, 2)), st.sampled_from([2, 3, Fraction(1, 2)]))
def test_o1_the_limit_counts_samples_of_the_result(scene, scale):
    labels, call, seed = scene
    rng = np.random.default_rng(seed)
    if scale > 1:
        whole, image, resized = doubled(labels, scale), labels, lambda crop: doubled(crop, scale)
    else:
        whole, image, resized = (
            labels,
            doubled(labels, 2),
            lambda crop: crop[(slice(None, None, 2),) * crop.ndim],
        )
        call |= {word: tuple(2 * n for n in call[word]) for word in ("crop", "overlap")}
        call["multiple"] *= 2
    assume(all(2 * scale * o + 1 >= n for o, n in zip(call["overlap"], longest(whole), strict=True)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        output = tw.Output(labels="own", scale=scale)
        out = tw.tiled_map(lambda crop: renamed(resized(crop), rng), image, output=output, **call)
        got = out.compute(scheduler="synchronous")
    assert np.array_equal(got, canonical(whole))
