"""Output(labels="own"): what it takes, refuses and says; its laws are in laws/test_o_objects.py."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dask
import numpy as np
import pytest
from scipy import ndimage as ndi

import tilework as tw
from tests.laws.test_o_objects import canonical, longest
from tilework.graph.build import plan_of
from tilework.labels.painting import FLAGS, NOTHING, WEAK, Place, combined, painted, shown

RNG = np.random.default_rng(3)
MASK = ndi.gaussian_filter(RNG.random((120, 140)), 1.5) > 0.53
WHOLE = ndi.label(MASK)[0]
OVERLAP = max(longest(WHOLE)) // 2 + 1
CROP = 2 * OVERLAP + 24
OWN = tw.Output("uint32", labels="own")


def label(x: np.ndarray) -> np.ndarray:
    return ndi.label(x)[0]


def equal(out: Any, want: np.ndarray) -> bool:
    return np.array_equal(np.asarray(out), want)


def tiled(fn: Any = label, image: Any = MASK, output: Any = OWN, **more: Any) -> Any:
    call = {"crop": CROP, "overlap": OVERLAP} | more
    return tw.tiled_map(fn, image, output=output, **call)


def test_the_scene_is_cut_by_many_tiles() -> None:
    assert len(plan_of(tiled())) > 20
    assert WHOLE.max() > 30


# -- what it refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"labels": "touch"}, "labels must be one of 'own', 'join'; got 'touch'"),
        ({"labels": True}, "labels"),
        ({"blend": "max"}, "blend='max' is not for labels"),
        ({"reduce": "argmax"}, "reduce='argmax' is not for labels"),
        ({"fill_value": 3}, r"fill_value=3 .* is not for labels"),
        ({"dtype": "float32"}, "labels are stored as integers; got dtype float32"),
        ({"dtype": bool}, "labels are stored as integers; got dtype bool"),
    ],
)
def test_words_that_contradict_labels_are_refused(words: dict[str, Any], match: str) -> None:
    with pytest.raises((tw.TilingError, TypeError), match=match):
        tw.Output(**({"labels": "own"} | words))


def test_a_fill_value_of_zero_is_the_background() -> None:
    assert equal(tiled(output=tw.Output(labels="own", fill_value=0)), canonical(WHOLE))


@pytest.mark.parametrize("dtype", [bool, "float32", "complex64", "datetime64[s]"])
@pytest.mark.parametrize("declared", [True, False])
def test_results_that_are_no_integers_are_refused(dtype: Any, declared: bool) -> None:
    output = tw.Output("uint32" if declared else None, labels="own")
    with pytest.raises(tw.TilingError, match=r"labels are integers.*scipy.ndimage.label"):
        tiled(lambda x: x.astype(int).astype(dtype), output=output).compute()


def test_negative_ids_and_ids_above_int64_are_refused() -> None:
    with pytest.raises(tw.TilingError, match="ids are not negative"):
        tiled(lambda x: label(x) - 1).compute()
    with pytest.raises(tw.TilingError, match="ids must be below"):
        tiled(lambda x: label(x).astype("uint64") + np.uint64(2**63)).compute()


@pytest.mark.parametrize("add", [2**31, 2**40, 2**62])
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_ids_are_ids(add: int, dtype: str) -> None:
    fn = lambda x: np.where(x, label(x).astype(dtype) + np.array(add, dtype), np.array(0, dtype))  # noqa: E731
    assert equal(tiled(fn), canonical(WHOLE))


def test_results_of_another_shape_are_refused() -> None:
    with pytest.raises(tw.TilingError, match="shape"):
        tiled(lambda x: label(x)[:-1]).compute()


def test_drop_and_disagreement_are_refused() -> None:
    with pytest.raises(tw.TilingError, match='edge="drop" leaves samples out'):
        tiled(edge="drop")
    with pytest.raises(tw.TilingError, match="disagreement"):
        tiled(disagreement=True)


@pytest.mark.parametrize("edge", ["shift", "squeeze", "pad"])
def test_a_boundary_across_which_objects_meet_is_refused(edge: Any) -> None:
    with pytest.raises(tw.TilingError, match='boundary="wrap" shows the other end'):
        tiled(edge=edge, boundary="wrap")
    assert equal(tiled(edge="clip", boundary="wrap"), canonical(WHOLE))


def test_an_overlap_that_depends_on_objects_is_not_found_by_calls() -> None:
    with pytest.raises(tw.TilingError, match="the overlap of labels depends on the objects"):
        tiled(overlap="auto")
    report = tw.probe(label, (48, 48))
    assert 'if its integers are labels, use Output(labels="own")' in report.verdict


def test_more_samples_than_ids_are_refused() -> None:
    with pytest.raises(tw.TilingError, match="too many for ids"):
        tw.plan_tiles((2**20,) * 3, 64, 8, output=OWN)
    tw.plan_tiles((2**18,) * 3, 64, 8, output=OWN)


def test_a_plan_needs_no_dtype() -> None:
    assert tw.plan_tiles((100, 100), 32, 8, output=tw.Output(labels="own")).n_tiles


def test_chunks_smaller_than_crops_are_refused_by_name_unless_crops_may_run_again() -> None:
    with pytest.raises(tw.TilingError, match=r'chunks of 30 on axis 0, and crops of \d+.*reuse="recompute"'):
        tiled(chunks=30)
    assert equal(tiled(chunks=30, reuse="recompute"), canonical(WHOLE))


# -- what it takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_schedulers(scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert equal(tiled(chunks=CROP).compute(), canonical(WHOLE))


def test_cluster(client: Any) -> None:
    assert equal(client.compute(tiled(chunks=CROP)).result(), canonical(WHOLE))


@pytest.mark.parametrize("reuse", ["auto", "share", "recompute"])
def test_fn_runs_once_per_tile_unless_asked_otherwise(reuse: str) -> None:
    calls = []
    out = tiled(lambda x: (calls.append(1), label(x))[1], reuse=reuse, chunks=CROP)
    calls.clear()  # the call on zeros
    assert equal(out.compute(scheduler="synchronous"), canonical(WHOLE))
    assert (len(calls) == len(plan_of(out))) == (reuse != "recompute")


def test_little_memory() -> None:
    volume = ndi.gaussian_filter(RNG.random((200, 40, 40)), 1) > 0.56
    whole = ndi.label(volume)[0]
    overlap = tuple(n // 2 + 1 for n in longest(whole))
    crop = tuple(2 * o + 8 for o in overlap)
    out = tw.tiled_map(label, volume, crop, overlap, output=OWN, memory_limit="12 MB")
    assert equal(out, canonical(whole))


def test_ids_restart_for_each_index() -> None:
    stack = np.stack([MASK, np.roll(MASK, 7, 0), ~MASK & np.roll(MASK, 3, 1)])
    want = np.stack([canonical(label(x)) for x in stack])
    out = tiled(image=stack, crop=(CROP, CROP), axes=(1, 2), each=(0,), overlap=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        assert equal(out, want)


def test_channels_belong_to_objects() -> None:
    """Untiled axes: one id marks an object in all of them."""
    both = np.stack([MASK, np.roll(MASK, 1, 1)])
    whole = label(both)
    overlap = max(longest(whole)[1:]) // 2 + 1
    out = tw.tiled_map(label, both, (2 * overlap + 16,) * 2, overlap, axes=(1, 2), output=OWN)
    assert equal(out, canonical(whole))


def test_tiled_axes_in_another_order() -> None:
    output = tw.Output(labels="own", axes=(1, 0))
    out = tiled(lambda x: label(x).T, image=MASK[:, :100], output=output)
    assert equal(out, canonical(label(MASK[:, :100]).T))


def test_labels_beside_probabilities() -> None:
    def fn(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"p": x.astype("float32"), "cells": label(x), "holes": label(~x)}

    outputs = {
        "p": tw.Output("float32", blend="gaussian"),
        "cells": OWN,
        "holes": tw.Output("uint64", labels="own"),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)  # holes are long
        out = tiled(fn, output=outputs, rim=3)
        got = dask.compute(out)[0]
        alone = tiled(lambda x: label(~x)).compute()
    assert equal(got["cells"], canonical(WHOLE))
    assert equal(got["holes"], alone)
    assert np.allclose(got["p"], MASK)


@pytest.mark.parametrize("blend", ["trim", "max"])
def test_labels_beside_other_blends(blend: str) -> None:
    out = tiled(lambda x: (x.astype("float32"), label(x)), output=(tw.Output(blend=blend), OWN))
    assert equal(out[0], MASK)
    assert equal(out[1], canonical(WHOLE))


def test_margin() -> None:
    m = 5
    fn = lambda x: label(x[m:-m, m:-m])  # noqa: E731
    output = tw.Output(labels="own", margin=m)
    out = tiled(fn, output=output, crop=CROP + 2 * m, overlap=OVERLAP + m)
    assert equal(out, canonical(WHOLE))
    assert str((2 * OVERLAP + 1,) * 2) in str(tw.explain(out))


def test_stride_says_how_much_overlap_there_is() -> None:
    out = tiled(overlap=None, stride=24)
    assert equal(out, canonical(WHOLE))


# -- what is not there ------------------------------------------------------------------------------------


def test_an_object_whose_owner_did_not_run_is_reported() -> None:
    image = np.zeros((40, 40), int)
    image[4:7, 10:19] = 1  # its centre is in the first core, which ends at 16
    image[0, 0] = 9
    out = tiled(lambda x: label(x == 1), image, crop=24, overlap=8, skip=lambda x: (x == 9).any(), chunks=24)
    with pytest.warns(tw.TilingWarning, match="9 samples of objects belong to none that a tile owns"):
        assert not out.compute().any()


def test_a_tile_that_is_skipped_says_nothing_of_its_core() -> None:
    image = np.zeros((40, 40), int)
    image[4:7, 8:19] = 1
    image[0, 30] = 9  # not in the first crop, which ends at 24
    out = tiled(lambda x: label(x == 1), image, crop=24, overlap=8, skip=lambda x: (x == 9).any(), chunks=24)
    assert equal(out, canonical((image == 1).astype(int)))


def test_a_mask_lets_all_tiles_run_that_see_an_object_of_it() -> None:
    """Tiles have weight wherever they paint, so a mask leaves out no owner of an object that touches it."""
    image = np.zeros((40, 40), bool)
    image[4:7, 10:19] = True
    mask = np.zeros((40, 40), bool)
    mask[:, 16:] = True
    assert equal(tiled(image=image, crop=24, overlap=8, mask=mask), canonical(image.astype(int)))


def test_hidden_samples_are_background_and_the_rest_keeps_its_id() -> None:
    where = np.ones(MASK.shape, bool)
    where[30:50, 40:90] = False
    out = tiled(lambda x: label(x), where=where)
    assert equal(out, np.where(where, canonical(WHOLE), 0))


# -- what it says -----------------------------------------------------------------------------------------


def bar(shape: tuple[int, ...], *box: slice) -> np.ndarray:
    image = np.zeros(shape, bool)
    image[box] = True
    return image


@pytest.mark.parametrize("start", range(20, 44))
@pytest.mark.parametrize("ndim", [1, 2])
def test_the_limit_is_exact_and_one_more_is_right_or_announced(start: int, ndim: int) -> None:
    """An object of 2 * 8 + 1 samples at every place; then of one more."""
    shape = (100, 9)[:ndim]
    call = {"crop": (24, 9)[:ndim], "overlap": (8, 0)[:ndim]}
    image = bar(shape, slice(start, start + 17))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(tiled(image=image, **call).compute(), canonical(label(image)))
    image = bar(shape, slice(start, start + 18))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right = equal(tiled(image=image, **call).compute(), canonical(label(image)))
    assert right or caught


def test_a_long_object_is_told_with_the_overlap_that_would_do() -> None:
    image = bar((100, 40), slice(5, 60), slice(10, 12))
    out = tiled(image=image, crop=(32, 32), overlap=8, chunks=64)
    with pytest.warns(
        tw.TilingWarning, match=r"along axis 0, where overlap=8 is safe up to 17: use at least"
    ):
        out.compute()


def test_without_overlap_cut_objects_are_told() -> None:
    """Slice by slice, each part of an object looks whole."""
    image = bar((4, 40, 40), slice(1, 3), slice(10, 12), slice(10, 12))
    out = tw.tiled_map(label, image, (1, 24, 24), (0, 8, 8), output=OWN)
    with pytest.warns(tw.TilingWarning, match="overlap=0 does not show whether an object is whole.*each="):
        out.compute()


def test_a_tile_that_paints_what_others_see_as_background_is_told() -> None:
    def fn(x: np.ndarray, tile: Any) -> np.ndarray:
        found = x.astype(int)
        if tile.index == 0:
            found[4:6, 10:20] = 1  # beyond its core
        return found

    image = bar((40, 40), slice(4, 6), slice(4, 10))
    out = tiled(fn, image, crop=32, overlap=12, pass_tile=True, chunks=32)
    with pytest.warns(tw.TilingWarning, match="or seen otherwise by the tile"):
        out.compute()


def test_a_view_warns_of_its_part_alone() -> None:
    image = bar((200, 40), slice(5, 60), slice(10, 12))
    view = tw.view(tiled(image=image, crop=(32, 32), overlap=8), verbose=False)
    with pytest.warns(tw.TilingWarning, match="in this part"):
        view[:60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not view[120:].any()


def test_a_view_and_a_run_count_the_same_objects(tmp_path: Path) -> None:
    image = bar((100, 100), slice(5, 95), slice(10, 14)) | bar((100, 100), slice(50, 51), slice(30, 95))
    out = tiled(image=image, crop=40, overlap=8, chunks=40)  # tiles lie in several blocks
    told = []
    for whole in (
        lambda: tw.to_zarr(out, tmp_path / "x.zarr", chunks=20, progress=False),
        lambda: tw.view(out, verbose=False)[:],
    ):
        with pytest.warns(tw.TilingWarning, match="objects are cut") as caught:
            whole()
        told += [re.search(r"(\d+) objects are cut", str(w.message)).group(1) for w in caught]  # type: ignore[union-attr]
    assert len(told) == 2
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("scale", "limit"), [(1, "(17, 17);"), (2, "(33, 33) samples of"), (Fraction(1, 2), "(9, 9) samples of")]
)
def test_the_plan_says_the_limit(scale: Any, limit: str) -> None:
    plan = tw.plan_tiles((100, 100), 32, 8, output=tw.Output("uint32", labels="own", scale=scale))
    assert limit in str(tw.explain(plan))
    again = type(plan).from_json(plan.to_json())
    assert again == plan
    assert limit in str(tw.explain(again))
    assert "labels" not in str(tw.explain(tw.plan_tiles((100, 100), 32, 8, output=tw.Output("uint32"))))
    json.loads(plan.to_json())


def test_names_differ_from_those_of_other_results() -> None:
    names = {
        tiled(output=output).name
        for output in (
            tw.Output("int64"),
            OWN,
            tw.Output("int64", labels="own"),
            tw.Output("uint32"),
        )
    }
    assert len(names) == 4
    assert tiled().name == tiled().name


def test_napari_shows_labels_as_labels() -> None:
    viewer = Mock(spec_set=["add_image", "add_labels"])
    tw.add_to_napari(viewer, MASK.astype("uint8"), tiled())
    assert viewer.add_image.call_count == viewer.add_labels.call_count == 1


def test_results_travel() -> None:
    out = pickle.loads(pickle.dumps(tiled()))
    assert out.dtype == np.int64
    assert equal(out, canonical(WHOLE))


def test_a_tile_that_joins_what_others_see_apart_is_told() -> None:
    """Both objects belong to the first tile, which takes them for one; they touch in the next core alone."""
    image = np.zeros((60, 40), int)
    image[14:27, 4:8] = 1
    image[18:28, 12:16] = image[24:28, 8:12] = 2

    def fn(x: np.ndarray, tile: Any) -> np.ndarray:
        return np.where((x == 2) & (tile.index == 0), 1, x)

    out = tiled(fn, image, crop=48, overlap=12, pass_tile=True, edge="clip", chunks=60)
    with pytest.warns(tw.TilingWarning, match="seen otherwise by the tile whose core they are in"):
        out.compute()


def test_touching_objects_of_each_index_are_not_taken_for_joined() -> None:
    """Ids restart for each index, so equal objects of two indices have one id."""
    rows = 1 + np.arange(60) // 6
    bands = np.repeat(np.where(np.arange(60) % 12 < 11, rows, 0)[:, None], 20, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = tiled(
            lambda x: x, np.stack([bands] * 3), crop=(32, 32), overlap=(8, 11), axes=(1, 2), each=(0,)
        )
        assert equal(out, np.stack([canonical(bands)] * 3))


def test_two_weak_claims_that_meet_are_counted() -> None:
    """Nothing tells which of two parts that end at the upper side of their crops is whole."""
    one, two = np.array([5, 6]) << FLAGS | WEAK
    total = np.array([NOTHING, one])
    combined(total, np.array([one, two]))
    assert shown(total, 0)[1] == 1
    combined(total, np.array([NOTHING, 4 << FLAGS]))  # a claim that is sure
    assert shown(total, 0)[0].tolist() == [5, 4]
    assert shown(total, 0)[1] == 0


def test_only_the_owner_counts_an_object_as_cut() -> None:
    labels = np.ones(24, int)
    owner, other = (Place(((32, 56),), ((36, stop),), (200,), (0,)) for stop in (52, 42))
    assert painted(labels, owner)[1].extent == (24,)
    found = painted(labels, other)[1]
    assert (found.large, found.extent, len(found.ids)) == (0, (0,), 0)


@pytest.mark.parametrize("given", [{"labels": np.ones(5)}, {"connectivity": np.ones(5)}, {"labels": 1}])
def test_arrays_and_numbers_are_no_words(given):
    with pytest.raises((TypeError, tw.TilingError), match=next(iter(given))):
        tw.Output("uint32", **given)
