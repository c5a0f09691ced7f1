"""`GridSampler`: what Patchly's own tests cover, against Patchly where it is right, and what it adds."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.strategies import arange, many
from tests.networks import require
from tilework import GridSampler, SamplingMode

SAMPLE = ("SAMPLE_EDGE", "SAMPLE_SQUEEZE", "SAMPLE_CROP", "SAMPLE_ADAPTIVE")
PAD = ("PAD_END", "PAD_EDGES")

# Sizes, patches and steps of 1 to 5 axes: with and without overlap, with and without a remainder.
SIZES = [
    ((100,), (10,), None),
    ((103,), (10,), (7,)),
    ((40, 50), (10, 10), None),
    ((43, 47), (10, 10), None),
    ((40, 50), (10, 10), (5, 5)),
    ((43, 47), (10, 10), (4, 9)),
    ((20, 20, 25), (10, 10, 5), None),
    ((23, 27, 21), (10, 10, 5), (5, 5, 5)),
    ((5, 18, 9, 10), (2, 8, 4, 4), (1, 8, 2, 2)),
    ((5, 18, 9, 10, 6), (2, 8, 4, 4, 4), None),
    ((5, 18, 9, 10, 6), (2, 8, 4, 4, 4), (1, 8, 2, 2, 2)),
]


@st.composite
def cut(draw: Any, *, fits: bool = True, least_chunk: bool = False) -> dict[str, Any]:
    """Draw sizes of 1 to 3 axes; with ``fits`` and ``least_chunk`` such that Patchly takes them."""
    sizes = []
    for _ in range(draw(st.integers(1, 3))):
        patch = draw(st.integers(1, 6))
        extent = draw(st.integers(patch + 1 if fits else 1, patch + 9))
        chunk = draw(st.integers(patch + 1, extent)) if least_chunk else None
        sizes.append((extent, patch, draw(st.integers(1, patch)), chunk))
    shape, patch, step, chunk = zip(*sizes, strict=True)
    found = {"spatial_size": shape, "patch_size": patch, "step_size": step}
    return found | ({"chunk_size": chunk} if least_chunk else {})


def boxes(sampler: Any) -> list[list[list[int]]]:
    return [sampler.get_bbox(i).tolist() for i in range(len(sampler))]


@pytest.mark.peers
@pytest.mark.parametrize("mode", SAMPLE)
@pytest.mark.parametrize(("size", "patch", "step"), SIZES, ids=str)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("spatial_first", [True, False], ids=["behind", "front"])
def test_patches_are_patchlys(mode, size, patch, step, lead, spatial_first):
    patchly = require("patchly")
    image = arange(size + lead if spatial_first else lead + size, np.int32)
    given = {"spatial_size": size, "patch_size": patch, "step_size": step, "spatial_first": spatial_first}
    theirs = patchly.GridSampler(image, mode=patchly.SamplingMode[mode], **given)
    ours = GridSampler(image, mode=SamplingMode[mode], **given)
    assert len(ours) == len(theirs)
    for (a, box_a), (b, box_b) in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(box_b, box_a)
        np.testing.assert_array_equal(b, a)


@pytest.mark.peers
@many
@given(cut(), st.sampled_from(SAMPLE))
def test_tables_of_starts_are_patchlys(sizes, mode):
    patchly = require("patchly")
    theirs = patchly.GridSampler(None, mode=patchly.SamplingMode[mode], **sizes)
    ours = GridSampler(mode=patchly.SamplingMode[mode], **sizes)
    assert boxes(ours) == boxes(theirs)
    assert [box.tolist() for box in ours] == boxes(theirs)


@pytest.mark.peers
@given(cut(least_chunk=True), st.sampled_from(SAMPLE))
def test_the_order_of_chunks_is_patchlys(sizes, mode):
    patchly = require("patchly")
    theirs = patchly.GridSampler(None, mode=patchly.SamplingMode[mode], **sizes)
    ours = GridSampler(mode=mode.lower(), **sizes)
    assert boxes(ours) == boxes(theirs)
    assert [box.tolist() for box in ours] == boxes(theirs)


@given(cut(fits=False), st.sampled_from((*SAMPLE, *PAD)), st.integers(0, 3))
def test_patches_cover_the_image(sizes, mode, larger):
    if mode in PAD:
        image = arange(sizes["spatial_size"])
        sizes = sizes | {"spatial_size": tuple(n + larger for n in image.shape)}
    elif mode == "SAMPLE_CROP" and any(
        n < p for n, p in zip(sizes["spatial_size"], sizes["patch_size"], strict=True)
    ):
        with pytest.raises(tw.GridError, match="no patch fits"):
            GridSampler(mode=mode, **sizes)
        return
    else:
        image = arange(sizes["spatial_size"])
    sampler = GridSampler(image, mode=mode, **sizes)
    before = [0] * image.ndim if sampler.pad_width is None else sampler.pad_width[:, 0].tolist()
    seen = np.zeros(image.shape, bool)
    for patch, box in sampler:
        inside = [
            (min(max(0, a - w), n), max(0, min(b - w, n)))
            for (a, b), w, n in zip(box, before, image.shape, strict=True)
        ]
        at = tuple(slice(a, b) for a, b in inside)
        own = tuple(
            slice(a + w - c, b + w - c) for (a, b), w, (c, _) in zip(inside, before, box, strict=True)
        )
        np.testing.assert_array_equal(patch[own], image[at])
        seen[at] = True
        if mode != "SAMPLE_ADAPTIVE":
            assert patch.shape == sizes["patch_size"]
    assert seen.all() or mode == "SAMPLE_CROP"


TECHNIQUES = [
    {"mode": "constant", "constant_values": 7},
    {"mode": "constant", "constant_values": (3, 7)},
    {"mode": "edge"},
    {"mode": "linear_ramp", "end_values": (2, 9)},
    {"mode": "maximum"},
    {"mode": "maximum", "stat_length": 2},
    {"mode": "mean"},
    {"mode": "median", "stat_length": (1, 3)},
    {"mode": "minimum"},
    {"mode": "reflect"},
    {"mode": "reflect", "reflect_type": "odd"},
    {"mode": "symmetric"},
    {"mode": "symmetric", "reflect_type": "odd"},
    {"mode": "wrap"},
    {"mode": lambda line, width, axis, kwargs: line.__setitem__(slice(line.size - width[1], None), axis)},
    {},
]


@pytest.mark.parametrize(
    "options", TECHNIQUES, ids=lambda o: "-".join(str(v) for v in o.values())[:24] or "default"
)
@pytest.mark.parametrize("mode", PAD)
@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_all_techniques_of_numpy_pad_lazily(options, mode, kind, tmp_path):
    image: Any = np.random.default_rng(0).random((3, 11, 6))
    sampler = GridSampler(
        _as(kind, image, tmp_path), (11, 6), (8, 8), (5, 8),
        spatial_first=False, mode=mode, pad_kwargs=options,
    )  # fmt: skip
    width = sampler.pad_width
    assert width is not None
    assert width.sum(axis=1).tolist() == [2, 2]
    padded = np.pad(image, [(0, 0), *map(tuple, width)], **({"mode": "constant"} | options))
    assert len(sampler) == 2
    for patch, ((a, b), (c, d)) in sampler:
        np.testing.assert_allclose(patch, padded[:, a:b, c:d], rtol=1e-12)


def _as(kind: str, image: np.ndarray, folder: Any) -> Any:
    if kind == "numpy":
        return image
    if kind == "dask":
        import dask.array as da

        return da.from_array(image, chunks=4)
    array = zarr.create_array(store=str(folder / "a.zarr"), shape=image.shape, chunks=(2, 4, 4), dtype="f8")
    array[:] = image
    return array


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["reflect", "wrap", "mean"]))
def test_images_smaller_than_the_patch_are_padded(extent, patch, step, technique):
    image = arange((extent,))
    sampler = GridSampler(image, extent, patch, min(step, patch), pad_kwargs={"mode": technique})
    first, box = sampler[0]
    assert first.shape == (patch,)
    if extent < patch:
        np.testing.assert_allclose(first, np.pad(image, (0, patch - extent), technique))
        assert box.tolist() == [[0, patch]]
        assert len(sampler) == 1


@pytest.mark.parametrize(
    ("mode", "width"), [("PAD_END", [0, 3]), ("PAD_UNKNOWN", [0, 3]), ("PAD_EDGES", [1, 2])]
)
def test_an_odd_sample_of_padding_goes_behind(mode, width):
    sampler = GridSampler(arange((9,)), 9, 4, mode=mode)
    assert sampler.pad_width is not None
    assert sampler.pad_width.tolist() == [width]
    assert sampler[0][0].tolist() == [0] * width[0] + [1, 2, 3, 4][: 4 - width[0]]


def test_padding_does_not_read_or_copy_the_image():
    class Huge:
        shape, dtype = (10**7 + 1, 10**7 + 1), np.dtype(np.uint8)

        def __getitem__(self, index):
            lengths = [s.stop - s.start for s in index]
            assert max(lengths) <= 1000
            return np.ones(lengths, np.uint8)

    sampler = GridSampler(Huge(), Huge.shape, 1000, mode="pad_edges_reflect")
    assert [sampler[i][0].sum() for i in (0, 1, -1)] == [10**6] * 3


def test_arguments_of_the_readme_and_by_name():
    image = arange((20, 30))
    old = GridSampler((20, 30), (8, 8), (4, 4), image)
    by_name = GridSampler(image=image, spatial_size=(20, 30), patch_size=(8, 8), patch_offset=(4, 4))
    new = GridSampler(image, (20, 30), (8, 8), (4, 4))
    assert boxes(old) == boxes(by_name) == boxes(new)
    np.testing.assert_array_equal(old[3][0], new[3][0])


def test_sampler_is_indexed_travels_and_nests(tmp_path):
    image = arange((20, 30))
    sampler = pickle.loads(pickle.dumps(GridSampler(image, (20, 30), (8, 8), (4, 4), chunk_size=(10, 10))))
    np.testing.assert_array_equal(sampler[-1][0], image[12:, 22:])
    with pytest.raises(IndexError):
        sampler[len(sampler)]
    assert len([1 for _ in sampler for _ in sampler]) == len(sampler) ** 2
    source = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=(20, 30), chunks=(7, 7), dtype="f8")
    source[:] = image
    again = pickle.loads(pickle.dumps(GridSampler(source, (20, 30), (8, 8))))
    np.testing.assert_array_equal(again[1][0], GridSampler(image, (20, 30), (8, 8))[1][0])


def test_tensors_give_tensors_of_their_own():
    torch = require("torch")
    image = torch.arange(40.0).reshape(4, 10)
    patch, _ = GridSampler(image, (4, 10), (4, 4))[0]
    assert isinstance(patch, torch.Tensor)
    patch *= 0
    assert image.sum() > 0


@given(cut(), st.sampled_from((*SAMPLE, *PAD)))
def test_plan_holds_the_same_patches(sizes, mode):
    sampler = GridSampler(mode=mode, **sizes)
    before = (
        [0] * len(sizes["spatial_size"]) if sampler.pad_width is None else sampler.pad_width[:, 0].tolist()
    )
    plan = sampler.plan
    assert [
        [[a + w, b + w] for a, b, w in zip(t.read.start, t.read.stop, before, strict=True)] for t in plan
    ] == boxes(sampler)
    assert tw.TilePlan.from_json(plan.to_json()) == plan
    ruled = any(axis.starts is not None for axis in plan.axes)
    assert ("at given starts" in " ".join(plan.explain().split())) == ruled
    assert ruled or mode not in ("SAMPLE_ADAPTIVE", *PAD)
    for box, position in ((sampler.get_bbox(i), t.position) for i, t in enumerate(plan)):
        assert sampler.position(box) == position


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spatial_size": (20, 31)}, tw.GridError, "axis 1 has 30 samples"),
        ({"spatial_size": (20, 30, 1), "patch_size": 8, "step_size": 4}, tw.GridError, "3 axes"),
        ({"spatial_size": None}, TypeError, "spatial_size and patch_size"),
        ({"patch_size": (8,)}, tw.GridError, "patch_size needs one number"),
        ({"patch_size": (8, 0)}, tw.GridError, "axis 1"),
        ({"step_size": (4, 9)}, tw.GridError, "stride must not exceed crop.*axis 1.*step_size the stride"),
        ({"step_size": 0.5}, TypeError, "step_size"),
        ({"patch_offset": 4}, TypeError, "older name"),
        ({"chunk_size": (8, 7)}, tw.GridError, "chunk_size must hold a patch.*axis 1"),
        ({"mode": "squeezed"}, tw.TilingError, "sample_squeeze"),
        ({"mode": 3}, TypeError, "mode"),
        ({"mode": "pad_end_mirror"}, tw.TilingError, "did you mean 'reflect'"),
        ({"pad_kwargs": {"mode": "edge", "stat_length": 3}}, tw.TilingError, "no option stat_length"),
        ({"memory_limit": "many"}, tw.TilingError, "memory_limit"),
        ({"image": {"a": np.zeros((20, 30)), "b": np.zeros((21, 30))}}, tw.GridError, "axis 0 has 21"),
        ({"image": "no such file.zarr"}, tw.TilingError, "no such file"),
    ],
    ids=str,
)
def test_F1_wrong_arguments_are_named(change, error, message):
    given = {"image": np.zeros((20, 30)), "spatial_size": (20, 30), "patch_size": (8, 8), "step_size": (4, 4)}
    with pytest.raises(error, match=message):
        GridSampler(**(given | change))


def test_F1_boxes_that_are_none_are_named():
    sampler = GridSampler(None, (20, 30), (8, 8))
    with pytest.raises(tw.TilingError, match=r"on axis 1 none spans \[1, 9\)"):
        sampler.position([[0, 8], [1, 9]])
    with pytest.raises(tw.TilingError, match="has_batch_dim"):
        sampler.position(np.zeros((3, 2, 2), int))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("loop", ["sampler", "slicer"])
@pytest.mark.sample(0)
def test_a_fork_reads_lazy_images_of_which_its_parent_has_read(loop):
    """dask waited for threads that a fork does not have, as in the workers of torch's DataLoader."""
    program = f"""
import os, signal, numpy as np, tilework as tw
lazy = tw.tiled_map(np.sqrt, np.ones((60, 70)), 32, 4)
crops = {{
    "sampler": lambda: tw.GridSampler(lazy, (60, 70), (16, 16), (10, 10)),
    "slicer": lambda: tw.Slicer(lazy, 16, 2),
}}["{loop}"]()
first = crops[0][0]
pid = os.fork()
if not pid:
    signal.alarm(20)
    os._exit(not all((crop[0] == 1).all() for crop in map(crops.__getitem__, range(4))))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_images_are_not_mixed_that_name_their_axes_in_another_order():
    """Patches of such images were cut by position, and mixed y with x where these are equally long."""
    first, second, third = (
        zarr.create_array({}, data=np.zeros((16, 16, 16)), dimension_names=tuple(names))
        for names in ("yxc", "xyc", "ycx")
    )
    with pytest.raises(tw.TilingError, match=r"axis 'y' of the first array .* 'x' of array 'b'"):
        GridSampler({"a": first, "b": second}, (16, 16), (8, 8))
    with pytest.raises(tw.TilingError, match=r"axis 'x' of the first array .* 'c' of array 'b'"):
        GridSampler({"a": first, "b": third}, (16, 16), (8, 8), spatial_first=False)
    with pytest.warns(tw.TilingWarning, match=r"array 'a' have axes .* array 'b' \('y', 'c', 'x'\)"):
        GridSampler({"a": first, "b": third}, (16,), (8,))
    GridSampler({"a": first, "b": first, "c": np.zeros((16, 16, 4))}, (16, 16), (8, 8))
