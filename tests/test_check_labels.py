"""`check` compares labels as sets of samples: it sees split, merged and lost objects, and nothing else."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tests.sampling import share
from tilework.labels.matching import matched

LABELS = tw.Output("uint32", labels="own")


def scene(shape: tuple[int, ...], count: int, longest: int, seed: int = 0) -> np.ndarray:
    """Return a mask of boxes that do not touch, at most ``longest`` long."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        start = [int(rng.integers(n)) for n in shape]
        stop = [a + int(rng.integers(1, longest + 1)) for a in start]
        if not mask[tuple(slice(max(0, a - 1), b + 1) for a, b in zip(start, stop, strict=True))].any():
            mask[tuple(map(slice, start, stop))] = True
    return mask


def numbered(x: np.ndarray) -> np.ndarray:
    return ndi.label(x)[0]


def renamed(x: np.ndarray) -> np.ndarray:
    """Label with ids that are neither small nor in order."""
    found, count = ndi.label(x)
    table = np.concatenate(([0], 7 + 3 * np.random.default_rng(0).permutation(count)))
    return table[found]


def dilated(x: np.ndarray) -> np.ndarray:
    """Look 6 samples far: objects are joined over gaps."""
    return ndi.label(ndi.binary_dilation(x, iterations=6))[0]


SMALL = scene((300, 260), 200, 12)
ROW = np.zeros((64, 64), np.int32)
ROW[8:12, 8:20], ROW[8:12, 30:40], ROW[40:44, 8:20] = 3, 4, 9


# -- what is said of two label images ---------------------------------------------------------------------


def changed(**boxes: Any) -> np.ndarray:
    got = ROW * 10
    for value, box in boxes.items():
        got[box] = int(value[1:])
    return got


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (ROW + (ROW > 0) * 5, (3, 0, 0, 0, 0, 0)),
        (changed(i0=np.s_[8:12, 8:20]), (2, 1, 0, 0, 0, 0)),
        (changed(i0=np.s_[8:12, 8:14]), (2, 1, 0, 0, 0, 0)),
        (changed(i40=np.s_[8:12, 8:20]), (1, 0, 2, 0, 0, 0)),
        (changed(i77=np.s_[8:12, 8:11]), (2, 0, 0, 1, 0, 0)),
        (changed(i0=np.s_[8:12, 8:10]), (2, 0, 0, 0, 1, 0)),
        (changed(i30=np.s_[13, 8:12]), (2, 0, 0, 0, 1, 0)),
        (changed(i55=np.s_[50:53, 50:53]), (3, 0, 0, 0, 0, 1)),
        (changed(i66=np.s_[8:12, 18:22]), (2, 0, 0, 0, 1, 1)),
    ],
    ids=["same", "missing", "half", "merged", "split", "smaller", "larger", "extra", "half outside"],
)
def test_every_kind_of_difference_has_its_name(got: np.ndarray, expected: tuple[int, ...]) -> None:
    found = matched(got, ROW, [(0, 64), (0, 64)])
    assert (
        found.identical, found.missing, found.merged, found.split, found.changed, found.extra,
    ) == expected  # fmt: skip
    assert len(found.wrong) == sum(expected[1:5])


def test_an_object_that_leaves_the_trusted_box_is_not_compared() -> None:
    found = matched(ROW * 0, ROW, [(9, 64), (0, 64)], longest=[64, 11])
    assert (found.compared, found.missing, found.cut, found.wide) == (1, 1, 2, 2)
    assert found.extent == (4, 12)


@settings(max_examples=share(60))
@given(seed=st.integers(0, 10**6), ndim=st.integers(1, 3), wide=st.booleans())
def test_the_comparison_is_that_of_sets(seed: int, ndim: int, wide: bool) -> None:
    """An oracle that builds every set of samples; ids of any size and order."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, ndim))
    want = rng.integers(0, 5, shape)
    got = np.where(rng.random(shape) < 0.9, want, rng.integers(0, 6, shape))
    if wide:
        got = got * 2**40
    low = [int(rng.integers(0, n)) for n in shape]
    trusted = [(a, int(rng.integers(a, n + 1))) for a, n in zip(low, shape, strict=True)]

    def sets(labels: np.ndarray) -> dict[int, frozenset[tuple[int, ...]]]:
        return {
            int(i): frozenset(map(tuple, np.argwhere(labels == i).tolist()))
            for i in np.unique(labels) if i
        }  # fmt: skip

    def whole(samples: frozenset[tuple[int, ...]]) -> bool:
        return all(a <= x < b for p in samples for x, (a, b) in zip(p, trusted, strict=True))

    ours, theirs = sets(got), sets(want)
    found = matched(got, want, trusted)
    inside = [s for s in theirs.values() if whole(s)]
    same = [s for s in inside if s in ours.values()]
    empty = {tuple(p) for p in np.argwhere(want == 0).tolist()}
    extra = [s for s in ours.values() if whole(s) and 2 * len(s & empty) >= len(s)]
    assert (found.identical, found.extra) == (len(same), len(extra))
    assert found.compared == len(inside) + len(extra)
    assert {number for number, _ in found.wrong} == {
        i for i, s in theirs.items() if whole(s) and s not in ours.values()
    }


# -- true negatives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["shift", "squeeze", "clip", "pad"])
@pytest.mark.parametrize("fn", [numbered, renamed], ids=lambda f: f.__name__)
def test_enough_overlap_is_ok(edge: str, fn: Any) -> None:
    report = tw.check(tw.tiled_map(fn, SMALL, 64, 6, edge=edge, boundary="constant", output=LABELS))
    (found,) = report.labels
    assert report.ok, report
    assert not report.causes
    # Each is counted once, although windows overlap.
    assert 20 < found.compared <= ndi.label(SMALL)[1]
    assert found.identical == found.compared
    assert found.share == 1
    assert "the same objects" in str(report)


@pytest.mark.parametrize("source", ["dask", "zarr", "memory"])
def test_lazy_sources_are_compared(source: str) -> None:
    image = {
        "dask": lambda: da.from_array(SMALL, chunks=70),
        "zarr": lambda: zarr.array(SMALL, chunks=(50, 50)),
        "memory": lambda: SMALL,
    }[source]()
    assert tw.check(tw.tiled_map(numbered, image, 64, 6, output=LABELS)).ok
    assert not tw.check(tw.tiled_map(numbered, image, 64, 2, output=LABELS)).ok


@pytest.mark.parametrize("seed", range(4))
def test_what_the_end_of_a_window_makes_wrong_is_not_compared(seed: int) -> None:
    """Dots that are cut off change objects 6 samples away."""
    dots = np.random.default_rng(seed).random((400, 400)) < 0.001
    report = tw.check(tw.tiled_map(dilated, dots, 150, 50, output=LABELS), context=50, size=8)
    assert report.ok, report
    assert report.labels[0].compared > 20


def test_volumes_and_anisotropic_overlap() -> None:
    volume = scene((40, 90, 80), 300, 6)
    volume[:, :, ::5] = False
    report = tw.check(tw.tiled_map(numbered, volume, (16, 32, 32), (3, 3, 2), output=LABELS), places=1)
    assert report.ok, report
    assert report.labels[0].limit == (7, 7, 5)
    report = tw.check(tw.tiled_map(numbered, volume, (16, 32, 32), (0, 3, 2), output=LABELS), places=1)
    assert report.causes == ("overlap",)


def test_every_image_of_an_each_axis_has_ids_of_its_own() -> None:
    movie = np.stack([scene((120, 110), 60, 9, seed) for seed in range(3)])
    report = tw.check(tw.tiled_map(numbered, movie, 48, 4, axes=(1, 2), each=0, output=LABELS))
    assert report.ok, report
    assert not tw.check(tw.tiled_map(numbered, movie, 48, 1, axes=(1, 2), each=0, output=LABELS)).ok


def test_another_scale() -> None:
    def coarse(x: np.ndarray) -> np.ndarray:
        return ndi.label(x[::2, ::2])[0]

    output = tw.Output("uint32", labels="own", scale=Fraction(1, 2))
    image = scene((240, 200), 60, 16)
    assert tw.check(tw.tiled_map(coarse, image, 64, 8, output=output)).ok
    report = tw.check(tw.tiled_map(coarse, image, 64, 2, output=output))
    assert "overlap" in report.causes, report


def test_batches() -> None:
    def batch(x: np.ndarray) -> np.ndarray:
        return np.stack([ndi.label(one)[0] for one in x])

    def one_count(x: np.ndarray) -> np.ndarray:
        found = np.stack([ndi.label(one)[0] for one in x])
        return found * (x.mean(axis=(1, 2)) >= x.mean() * 0.9)[:, None, None]

    assert tw.check(tw.tiled_map(batch, SMALL, 64, 6, batch_size=3, output=LABELS)).ok
    report = tw.check(tw.tiled_map(one_count, SMALL, 64, 6, batch_size=3, output=LABELS))
    assert report.causes == ("batch",), report


def test_an_owner_that_a_mask_leaves_out_paints_nothing() -> None:
    mask = np.zeros(SMALL.shape, bool)
    mask[:150] = True
    for options in ({"mask": mask}, {"skip": lambda x: x.mean() < 0.12}):
        out = tw.tiled_map(numbered, SMALL, 64, 6, output=LABELS, **options)
        report = tw.check(out)
        assert report.ok, report
        assert 0 < report.labels[0].compared < ndi.label(SMALL)[1]


def test_a_small_image_is_one_window() -> None:
    report = tw.check(tw.tiled_map(numbered, SMALL[:120, :100], 64, 6, output=LABELS), context=150)
    assert report.labels[0].windows == 1
    assert report.labels[0].compared == ndi.label(SMALL[:120, :100])[1]


# -- true positives ---------------------------------------------------------------------------------------


def test_too_little_overlap_is_seen_and_the_advice_helps() -> None:
    report = tw.check(tw.tiled_map(numbered, SMALL, 64, 2, output=LABELS))
    (found,) = report.labels
    assert not report.ok
    assert report.causes == ("overlap",)
    assert found.split + found.missing + found.changed == found.differing > 0
    assert found.extent == (12, 12)
    assert "overlap=6 is enough" in report.help
    assert report.relative == pytest.approx(1 - found.share)
    out = tw.tiled_map(numbered, SMALL, 64, 2, output=LABELS)
    assert len(report.where) == 2
    assert out.shape == SMALL.shape


def test_a_merge_is_seen() -> None:
    """The function joins objects where its crop is small: what depends on its crop is global."""

    def joins(x: np.ndarray) -> np.ndarray:
        return (x > 0).astype(np.int32) if min(x.shape) < 70 else ndi.label(x)[0]

    report = tw.check(tw.tiled_map(joins, SMALL, 64, 6, output=LABELS))
    assert report.labels[0].merged + report.labels[0].missing > 0
    assert not report.ok


def test_a_function_that_looks_far_needs_more_than_half_an_object() -> None:
    dots = np.zeros((300, 300), bool)
    rng = np.random.default_rng(3)
    dots[rng.integers(0, 300, 90), rng.integers(0, 300, 90)] = True
    report = tw.check(tw.tiled_map(dilated, dots, 100, 4, output=LABELS))
    assert not report.ok
    (amount,) = {int(n) for n in report.help.split("overlap=")[1].split(" ")[0].strip("();,").split(",")}
    assert "overlap" in report.causes
    assert amount > 4


def test_a_threshold_of_each_crop_is_global() -> None:
    objects, count = ndi.label(SMALL)
    image = np.concatenate(([0], np.random.default_rng(0).random(count) ** 3))[objects]
    report = tw.check(tw.tiled_map(lambda x: ndi.label(x > x.max() / 2)[0], image, 65, 7, output=LABELS))
    assert not report.ok
    assert report.labels[0].extra
    assert report.causes == ("global",), report


def test_objects_longer_than_the_crop_are_named() -> None:
    grid = np.zeros((300, 300), bool)
    grid[::20] = True
    report = tw.check(tw.tiled_map(numbered, grid[:250], 64, 8, edge="squeeze", output=LABELS))
    assert not report.ok
    assert report.causes == ("large",)
    assert "larger crop" in report.help


def test_a_random_function() -> None:
    rng = np.random.default_rng(0)

    def fn(x: np.ndarray) -> np.ndarray:
        return ndi.label(x & (rng.random(x.shape) < 0.9))[0]

    assert tw.check(tw.tiled_map(fn, SMALL, 64, 6, output=LABELS)).causes == ("random",)


def test_nothing_is_never_all_right() -> None:
    report = tw.check(tw.tiled_map(numbered, np.zeros((200, 200), bool), 64, 6, output=LABELS))
    assert not report.ok
    assert report.labels[0].compared == 0
    assert "none was compared" in str(report)
    assert "no objects were compared" in str(report)


def test_labels_beside_numbers() -> None:
    def both(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"cells": ndi.label(x)[0], "smooth": ndi.uniform_filter(x.astype(np.float32), 9)}

    outputs = {"cells": LABELS, "smooth": tw.Output("float32")}
    assert tw.check(tw.tiled_map(both, SMALL, 64, 6, output=outputs)).ok
    few = tw.check(tw.tiled_map(both, SMALL, 64, 2, output=outputs))
    assert not few.ok
    assert few.labels[0].output == "cells"
    assert few.labels[0].differing
    assert few.relative > few.rounding
    cells = tw.tiled_map(both, SMALL, 64, 3, output=outputs)["cells"]
    assert not tw.check(cells).ok


def test_another_function_is_named() -> None:
    out = tw.tiled_map(numbered, SMALL, 64, 6, output=LABELS)
    report = tw.check(out, lambda x: ndi.label(ndi.binary_erosion(x))[0])
    assert not report.ok
    assert "other" in report.causes


# -- joined objects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("connectivity", [1, 2])
def test_joined_objects_may_be_of_any_size(connectivity: int) -> None:
    long = SMALL.copy()
    long[:, 100] = long[150] = False
    long[10:290, 102:104] = True
    structure = ndi.generate_binary_structure(2, connectivity)
    output = tw.Output("uint32", labels="join", connectivity=connectivity)
    out = tw.tiled_map(lambda x: ndi.label(x, structure)[0], long, 40, 0, output=output)
    report = tw.check(out, context=150)
    assert report.ok, report
    assert report.labels[0].limit == ()
    assert report.labels[0].extent[0] >= 280
    assert "any are safe" in str(report)


def test_objects_that_touch_at_a_cut_are_joined_and_seen() -> None:
    touching = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((16, 16), int))
    fn = lambda x: np.unique(x, return_inverse=True)[1].reshape(x.shape) + 1  # noqa: E731
    joined = tw.tiled_map(fn, touching, 40, 0, output=tw.Output("uint32", labels="join"))
    report = tw.check(joined)
    assert report.labels[0].merged
    assert 'labels="own"' in report.help
    assert tw.check(tw.tiled_map(fn, touching, 48, 8, output=LABELS)).ok


def test_diagonal_pieces_are_joined_as_they_are_written() -> None:
    diagonal = np.eye(90, dtype=bool)
    structure = np.ones((3, 3))
    for connectivity, same in ((2, True), (1, False)):
        output = tw.Output("uint32", labels="join", connectivity=connectivity)
        out = tw.tiled_map(lambda x: ndi.label(x, structure)[0], diagonal, 30, 0, output=output)
        assert tw.check(out, context=90).ok == same


def test_objects_that_touch_inside_a_core_are_not_joined() -> None:
    pairs = np.zeros((160, 160), int)
    for y in range(10, 160, 40):
        for x in range(10, 160, 40):
            pairs[y : y + 10, x : x + 5], pairs[y : y + 10, x + 5 : x + 9] = 1000 * y + x, 1000 * y + x + 1

    def renumber(x: np.ndarray) -> np.ndarray:
        return np.unique(np.append(0, x), return_inverse=True)[1][1:].reshape(x.shape)

    report = tw.check(tw.tiled_map(renumber, pairs, 40, 0, output=tw.Output("uint32", labels="join")))
    assert report.ok, report
    assert 8 < report.labels[0].compared <= 32


def test_extra_objects_of_several_windows_are_counted_once() -> None:
    dots = np.zeros((200, 200), bool)
    dots[::8, ::8] = True
    nothing = np.zeros((200, 200), bool)

    def invents(x: np.ndarray) -> np.ndarray:
        return ndi.label(x if max(x.shape) > 64 else dots[: x.shape[0], : x.shape[1]])[0]

    out = tw.tiled_map(invents, nothing, 64, 8, output=LABELS)
    report = tw.check(out)
    assert 0 < report.labels[0].extra <= len(np.unique(tw.view(out)[:]))
