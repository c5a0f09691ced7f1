"""`Aggregator`: what Patchly's own tests cover, against Patchly where it is right, and what it adds."""

from __future__ import annotations

import itertools
import pickle
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.strategies import WINDOWS
from tests.networks import require
from tests.store_counts import counted
from tests.test_sampler import PAD, SAMPLE, SIZES, cut
from tilework import Aggregator, GridSampler
from tilework.engine.accumulate import Accumulator
from tilework.loops.aggregator import gaussian


def noise(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(dtype)


def merge(
    pkg: Any, image: Any, *, fn: Any = lambda p, i: p, skip: Any = (), order: Any = None, mode: Any = None,
    aggregate: dict[str, Any] | None = None, look: Any = lambda: None, **sample: Any,
) -> Any:  # fmt: skip
    """Sample, apply ``fn`` of patch and number, aggregate; by default into a new array like the image."""
    if pkg is not tw:
        with warnings.catch_warnings():
            # Patchly's threads divide by zero, and drop what they do if that is an error.
            warnings.simplefilter("ignore")
            return _merge(pkg, image, fn, skip, order, mode, aggregate, look, sample)
    return _merge(pkg, image, fn, skip, order, mode, aggregate, look, sample)


def _merge(pkg, image, fn, skip, order, mode, aggregate, look, sample):
    mode = {} if mode is None else {"mode": pkg.SamplingMode[mode]}
    sampler = pkg.GridSampler(image, **sample, **mode)
    options = {"spatial_first": sample.get("spatial_first", True)} | (aggregate or {})
    if "output" not in options:
        options.setdefault("output_size", tuple(image.shape))
    aggregator = pkg.Aggregator(sampler, **options)
    numbers = range(len(sampler)) if order is None else order
    for number in numbers:
        if number not in skip:
            patch, box = sampler[number]
            aggregator.append(fn(patch, number), box)
    look()
    return aggregator.get_output(inplace=pkg is tw)  # a given output itself


def wave(patch: Any, number: int) -> Any:
    """Give each patch values of its own, so that weights show."""
    return patch * np.float32(np.cos(number)) + number % 3


# ------------------------------------------------------------------------------ against Patchly itself


@pytest.mark.peers
@pytest.mark.parametrize("mode", SAMPLE)
@pytest.mark.parametrize(("size", "patch", "step"), SIZES, ids=str)
@pytest.mark.parametrize(
    ("lead", "spatial_first"), [((), True), ((3,), True), ((2, 3), False)], ids=["plain", "behind", "front"]
)
def test_sizes_modes_and_dimensions(mode, size, patch, step, lead, spatial_first):
    image = noise(size + lead if spatial_first else lead + size)
    given = {"spatial_size": size, "patch_size": patch, "step_size": step, "spatial_first": spatial_first}
    theirs = merge(require("patchly"), image, fn=wave, mode=mode, **given)
    ours = merge(tw, image, fn=wave, mode=mode, **given)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.peers
@given(cut(), st.sampled_from(SAMPLE), st.sampled_from(["avg", "gaussian"]))
def test_weights_are_patchlys(sizes, mode, weights):
    if mode == "SAMPLE_ADAPTIVE":
        weights = "avg"  # refused by Patchly
    image = noise(sizes["spatial_size"])
    options = {"fn": wave, "mode": mode, "aggregate": {"weights": weights}}
    theirs = merge(require("patchly"), image, **options, **sizes)
    np.testing.assert_allclose(merge(tw, image, **options, **sizes), theirs, atol=2e-5)


@pytest.mark.peers
@given(cut(least_chunk=True), st.sampled_from(SAMPLE), st.sampled_from(["avg", "gaussian"]), st.booleans())
def test_chunks_are_patchlys(sizes, mode, weights, given_output):
    if mode == "SAMPLE_ADAPTIVE":
        weights = "avg"
    image = noise(sizes["spatial_size"])

    def options():
        output = {"output": np.zeros(image.shape, np.float32)} if given_output else {}
        return {"fn": wave, "mode": mode, "aggregate": {"weights": weights} | output}

    theirs = merge(require("patchly"), image, **options(), **sizes)
    np.testing.assert_allclose(merge(tw, image, **options(), **sizes), theirs, atol=2e-5)


@pytest.mark.peers
@pytest.mark.parametrize("chunk", [None, (20, 18)], ids=["whole", "chunks"])
@pytest.mark.parametrize("step", [None, (5, 4)], ids=["apart", "overlap"])
def test_softmax_is_patchlys(chunk, step):
    scores = noise((3, 43, 47))
    size = scores.shape if chunk is None else scores.shape[1:]
    given = {
        "spatial_size": (43, 47), "patch_size": (10, 9), "step_size": step, "chunk_size": chunk,
        "spatial_first": False, "fn": lambda p, i: np.roll(p, i, 0),
        "aggregate": {"softmax_dim": 0, "output_size": size, "weights": "gaussian"},
    }  # fmt: skip
    theirs, ours = merge(require("patchly"), scores, **given), merge(tw, scores, **given)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == np.int64


@pytest.mark.peers
@pytest.mark.parametrize("chunk", [None, (20, 20)], ids=["whole", "chunks"])
def test_batches_of_tensors_are_patchlys(chunk):
    torch = require("torch")
    image = torch.from_numpy(noise((3, 40, 44)))
    results = []
    for pkg in (require("patchly"), tw):
        sampler = pkg.GridSampler(image, (40, 44), (12, 12), (6, 8), chunk_size=chunk, spatial_first=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if pkg is not tw else "error")
            aggregator = pkg.Aggregator(
                sampler, output=torch.zeros(3, 40, 44), spatial_first=False, has_batch_dim=True
            )
            for start in range(0, len(sampler), 4):
                items = [sampler[i] for i in range(start, min(start + 4, len(sampler)))]
                patches = torch.stack([patch for patch, _ in items])
                boxes = torch.stack([torch.from_numpy(box) for _, box in items])
                aggregator.append(patches * 2, boxes)
            results.append(aggregator.get_output())
    theirs, ours = results
    assert type(ours) is type(theirs) is torch.Tensor
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("spatial_first", [True, False], ids=["behind", "front"])
def test_batches_with_channels_on_either_side(spatial_first):
    image = noise((20, 18, 3) if spatial_first else (3, 20, 18))
    sampler = GridSampler(image, (20, 18), (8, 8), (4, 4), spatial_first=spatial_first)
    aggregator = Aggregator(sampler, output_size=image.shape, spatial_first=spatial_first, has_batch_dim=True)
    for start in range(0, len(sampler), 3):
        items = [sampler[i] for i in range(start, min(start + 3, len(sampler)))]
        aggregator.append(np.stack([patch for patch, _ in items]), np.stack([box for _, box in items]))
    np.testing.assert_allclose(aggregator.get_output(), image, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, (16, 12)], ids=["whole", "chunks"])
@pytest.mark.parametrize("scale", [2, Fraction(1, 2), (2, Fraction(1, 2))], ids=str)
def test_results_of_another_scale(scale, chunk):
    image = np.kron(noise((12, 10)), np.ones((2, 2)))
    factors = scale if isinstance(scale, tuple) else (scale, scale)

    def resized(values, number=0):
        for axis, factor in enumerate(factors):
            values = (
                values.repeat(2, axis) if factor == 2 else values.take(range(0, values.shape[axis], 2), axis)
            )
        return values

    expected = resized(image)
    got = merge(
        tw, image, fn=resized, mode="SAMPLE_EDGE", spatial_size=(24, 20), patch_size=(8, 8), step_size=(4, 4),
        chunk_size=chunk, aggregate={"scale": scale, "output_size": expected.shape, "weights": "gaussian"},
    )  # fmt: skip
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_gaussian_is_patchlys_formula():
    utils = require("patchly.utils")
    for length in (3, 8, 31, 64):
        theirs = utils.gaussian_kernel_numpy(np.array([length]))
        np.testing.assert_allclose(gaussian(length) / gaussian(length).sum(), theirs, rtol=1e-12)


# -------------------------------------------------------------------------------------------- laws


@given(
    cut(fits=False),
    st.sampled_from((*SAMPLE, *PAD)),
    st.sampled_from(["avg", "gaussian", *WINDOWS]),
    st.data(),
)
def test_E1_the_image_comes_back(sizes, mode, weights, data):
    image = noise(sizes["spatial_size"], np.float64)
    if mode == "SAMPLE_CROP":
        sizes["patch_size"] = tuple(map(min, sizes["patch_size"], image.shape))
        sizes["step_size"] = tuple(map(min, sizes["step_size"], sizes["patch_size"]))
    if data.draw(st.booleans()):
        sizes["chunk_size"] = tuple(max(p, data.draw(st.integers(1, 12))) for p in sizes["patch_size"])
    sampler = GridSampler(image, mode=mode, **sizes)
    aggregator = Aggregator(sampler, output_size=image.shape, weights=weights, fill_value=np.nan)
    for number in data.draw(st.permutations(range(len(sampler)))):
        aggregator.append(*sampler[number])
    got = aggregator.get_output()
    covered = np.ones(image.shape, bool)
    if mode == "SAMPLE_CROP":
        covered[:] = False
        for _, ((a, b), *rest) in sampler:
            covered[(slice(a, b), *(slice(c, d) for c, d in rest))] = True
    assert got.dtype == np.float64
    np.testing.assert_allclose(got[covered], image[covered], rtol=1e-14)
    assert np.isnan(got[~covered]).all()


@given(cut(), st.sampled_from(["avg", "gaussian", "hann", "map"]), st.data())
def test_E4_equals_a_weighted_mean_of_what_came(sizes, weights, data):
    """Patches left out, come twice, chunks or not: the mean of what came, and elsewhere the fill value."""
    shape, patch = sizes["spatial_size"], sizes["patch_size"]
    if data.draw(st.booleans()):
        sizes["chunk_size"] = tuple(data.draw(st.integers(p, n)) for p, n in zip(patch, shape, strict=True))
    sampler = GridSampler(**sizes)
    times = [data.draw(st.integers(0, 1 if sampler.chunk_size else 2)) for _ in range(len(sampler))]
    profiles = {
        "avg": np.ones,
        "gaussian": gaussian,
        "hann": lambda n: np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2,
    }
    window = np.ones(())
    for n in patch:
        window = np.multiply.outer(window, profiles.get(weights, np.ones)(n))
    if weights == "map":
        window = 1 + np.random.default_rng(0).random(patch)
    given_weights = (
        [window] if len(patch) == 1 and weights == "map" else window if weights == "map" else weights
    )
    aggregator = Aggregator(
        sampler, output_size=shape, weights=given_weights, missing="ignore", fill_value=-5
    )
    top, bottom = np.zeros(shape), np.zeros(shape)
    for number, count in enumerate(times):
        box = sampler.get_bbox(number)
        at = tuple(slice(a, b) for a, b in box.tolist())
        for again in range(count):
            values = np.full(patch, float(7 * number + again))
            aggregator.append(values, box)
            top[at] += window * values
            bottom[at] += window
    expected = np.divide(top, bottom, out=np.full(shape, -5.0), where=bottom > 0)
    np.testing.assert_allclose(aggregator.get_output(), expected, rtol=1e-9, atol=1e-9)
    missing = [sampler.get_bbox(i).tolist() for i, count in enumerate(times) if not count]
    assert aggregator.missing == sorted(missing)


@given(cut(), st.integers(0, 2), st.data())
def test_equals_tiled_map_of_the_same_patches(sizes, seed, data):
    """Edge and crop mode are grids of `tiled_map`, too."""
    image = noise(sizes["spatial_size"], np.float64)
    mode, edge = data.draw(st.sampled_from([("SAMPLE_EDGE", "shift"), ("SAMPLE_CROP", "drop")]))
    if all(p == s for p, s in zip(sizes["patch_size"], sizes["step_size"], strict=True)):
        return  # nothing to blend
    got = merge(
        tw, image, fn=lambda p, i: p - p.mean(), mode=mode, aggregate={"weights": "gaussian"}, **sizes
    )
    lazy = tw.tiled_map(
        lambda p: p - p.mean(), image, sizes["patch_size"], stride=sizes["step_size"], edge=edge,
        axes=tuple(range(image.ndim)), blend=gaussian, dtype=float,
    )  # fmt: skip
    np.testing.assert_allclose(got, lazy.compute(), rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------- outputs and dtypes


def _zarr(folder: Any, **options: Any) -> Any:
    return zarr.create_array(store=str(folder / "out.zarr"), shape=(23, 26), dtype="f4", **options)


OUTPUTS = {
    "numpy": lambda folder: np.full((23, 26), 9, np.float32),
    "strided": lambda folder: np.full((46, 26), 9, np.float32)[::2],
    "integers": lambda folder: np.full((23, 26), 9, np.uint16),
    "half": lambda folder: np.full((23, 26), 9, np.float16),
    "double": lambda folder: np.full((23, 26), 9, np.float64),
    "memmap": lambda folder: np.memmap(folder / "a.raw", np.float32, "w+", shape=(23, 26)),
    "zarr3": lambda folder: _zarr(folder, chunks=(5, 7), fill_value=9),
    "zarr2": lambda folder: _zarr(folder, chunks=(5, 7), zarr_format=2, fill_value=9),
    "shards": lambda folder: _zarr(folder, chunks=(3, 4), shards=(9, 8), fill_value=9),
    "h5": lambda folder: (
        require("h5py").File(folder / "a.h5", "w").create_dataset("a", (23, 26), "f4", chunks=(5, 7))
    ),
    "tensor": lambda folder: require("torch").full((23, 26), 9.0),
    "bfloat16": lambda folder: require("torch").full((23, 26), 9.0, dtype=require("torch").bfloat16),
}


@pytest.mark.parametrize("chunk", [None, (12, 11)], ids=["whole", "chunks"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_any_kind_are_overwritten(kind, chunk, tmp_path):
    output = OUTPUTS[kind](tmp_path)
    image = np.rint(noise((23, 26)) * 100)
    got = merge(
        tw, image, spatial_size=(23, 26), patch_size=(8, 8), step_size=(4, 5), chunk_size=chunk,
        aggregate={"output": output, "weights": "gaussian"},
    )  # fmt: skip
    assert got is output
    values = output.float().numpy() if kind == "bfloat16" else np.asarray(output[:])
    np.testing.assert_allclose(
        values, image, rtol=1e-2 if kind == "bfloat16" else 1e-3 if kind == "half" else 1e-6
    )


def test_accumulate_adds_to_what_is_there(tmp_path):
    for output in (np.full(20, 10.0), OUTPUTS["zarr3"](tmp_path), np.full(20, 10, np.uint8)):
        shape = tuple(output.shape)
        merge(
            tw, np.ones(shape), spatial_size=shape, patch_size=(8,) * len(shape), step_size=(4,) * len(shape),
            aggregate={"output": output, "accumulate": True},
        )  # fmt: skip
        start = 9 if len(shape) == 2 else 10
        np.testing.assert_allclose(output[:], start + 1, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, (40, 30)], ids=["whole", "chunks"])
@pytest.mark.parametrize("chunks", [(10, 10), (16, 9)], ids=["fit", "cross"])
def test_each_chunk_of_a_zarr_output_is_written_once(chunk, chunks, tmp_path):
    image = noise((80, 60))
    output = zarr.create_array(store=str(tmp_path / "o.zarr"), shape=(80, 60), chunks=chunks, dtype="f4")
    written: list[int] = []
    with counted(output) as count:
        merge(
            tw, image, spatial_size=(80, 60), patch_size=(16, 16), step_size=(8, 8), chunk_size=chunk,
            aggregate={"output": output, "weights": "gaussian"},
            look=lambda: written.append(len(count.writes)),
        )  # fmt: skip
    assert written[-1] == len(count.writes), "each as soon as it is whole, none at the end"
    assert set(count.writes.values()) == {1}
    assert len(count.writes) == -(-80 // chunks[0]) * -(-60 // chunks[1])
    assert not count.reads
    np.testing.assert_allclose(output[:], image, atol=1e-6)


def test_a_finished_chunk_is_in_the_output_at_once():
    output = np.full((32, 8), 9.0)
    sampler = GridSampler(noise((32, 8)), (32, 8), (8, 8), (4, 8), chunk_size=(16, 8))
    aggregator = Aggregator(sampler, output=output)
    for number, (patch, box) in enumerate(sampler):
        aggregator.append(patch, box)
        assert (output[:16] == 9).all() == (number < 3)
        assert (output[16:] == 9).all() == (number < 6)
    with pytest.raises(tw.TilingError, match="came too late"):
        aggregator.append(*sampler[0])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "u1", "i2", "i4", "i8", "u8", "?"])
def test_dtypes_of_patches(dtype):
    image = (noise((30,), np.float64) * 100).astype(dtype)
    expected = {"f2": "f4", "u1": "f4", "i2": "f4", "?": "f4", "i4": "f8", "i8": "f8", "u8": "f8"}
    for step in (8, 3):
        got = merge(tw, image, spatial_size=30, patch_size=8, step_size=step)
        assert got.dtype == expected.get(dtype, dtype)
        np.testing.assert_allclose(got, image, rtol=1e-6)
    apart = image[:24]
    exact = merge(tw, apart, spatial_size=24, patch_size=8, aggregate={"dtype": dtype})
    assert exact.dtype == dtype
    np.testing.assert_array_equal(exact, apart)


def test_values_that_sums_would_change_are_copied():
    big = np.array([2**63 - 1, -(2**62) - 1, 3, 5])
    got = merge(tw, big, spatial_size=4, patch_size=2, aggregate={"output": np.zeros(4, np.int64)})
    np.testing.assert_array_equal(got, big)
    times = np.arange(4).astype("M8[s]")
    got = merge(tw, times, spatial_size=4, patch_size=2, aggregate={"output": np.zeros(4, "M8[s]")})
    np.testing.assert_array_equal(got, times)
    overlap = merge(tw, big * 0, fn=lambda p, i: p + i, spatial_size=4, patch_size=2, step_size=1)
    assert overlap.tolist() == [0, 0.5, 1.5, 2]
    sampler = GridSampler(big, 4, 2)
    aggregator = Aggregator(sampler, output=np.zeros(4, np.int64))
    aggregator.append(*sampler[0])
    with pytest.raises(tw.TilingError, match="came twice"):
        aggregator.append(*sampler[0])


@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("dtype", ["u1", "f4", "i8", "u8", "?", "M8[s]"])
@pytest.mark.parametrize("mode", SAMPLE)
def test_all_samples_of_a_patch_are_in_the_result_whatever_its_dtype(mode, dtype, chunk):
    wrong = []
    cases = itertools.product((8, 9, 13, 25), (3, 4, 8), (1, 2, 4, 8))
    for extent, patch, step in (case for case in cases if case[2] <= case[1]):
        image, reached = (np.arange(extent) % 251 + 1).astype(dtype), np.zeros(extent, bool)
        sampler = GridSampler(None, extent, patch, step, chunk, mode=mode)
        aggregator = Aggregator(sampler, output=np.zeros(extent, dtype))
        try:
            for (box,) in sampler:
                aggregator.append(image[slice(*box)], [box])
                reached[slice(*box)] = True
        except tw.TilingError:
            assert dtype in ("M8[s]", "?")  # the average of times does not exist, that of flags is no flag
            continue
        expected = np.where(reached, image, np.zeros(1, dtype)).astype(np.int64)
        if not np.allclose(aggregator.get_output().astype("i8" if dtype == "M8[s]" else "f8"), expected):
            wrong.append((extent, patch, step))
    assert not wrong


@pytest.mark.parametrize("dtype", ["f4", "u1", "i8", "?", "M8[s]"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([[1.0, 1.0], [1.0, 0.0]]), "sample 1 on axis 0, 1 on axis 1 has none"),
        ([np.array([1.0, 0.0]), np.ones(2)], "axis 0"),
        (np.ones((4, 4)), "importance map"),
        ([np.ones(3), np.ones(2)], "window"),
    ],
    ids=["hole", "hole in one axis", "shape", "length"],
)
def test_weights_are_checked_whatever_the_dtype_of_patches(dtype, weights, message):
    sampler = GridSampler(None, (4, 4), (2, 2), mode="edge")
    aggregator = Aggregator(sampler, output_size=(4, 4), weights=weights)
    with pytest.raises(tw.TilingError, match=message):
        aggregator.append(np.zeros((2, 2), dtype), sampler[0])


@pytest.mark.parametrize("weights", ["max", "min", "sum", "trim", "linear"])
def test_words_of_tiled_map(weights):
    image = noise((21, 18), np.float64)
    got = merge(
        tw, image, fn=lambda p, i: p + p.max(), mode="SAMPLE_EDGE", spatial_size=(21, 18), patch_size=(8, 8),
        step_size=(4, 4), aggregate={"weights": weights},
    )  # fmt: skip
    if weights == "trim":  # cores of `tiled_map` lie elsewhere: each sample comes from one patch
        candidates = (
            image
            + np.array([image[a : a + 8, b : b + 8].max() for a in (0, 4, 8, 12, 13) for b in (0, 4, 8, 10)])[
                :, None, None
            ]
        )
        assert (candidates == got).any(0).all()
        return
    lazy = tw.tiled_map(lambda p: p + p.max(), image, 8, stride=4, blend=weights, dtype=float)
    np.testing.assert_allclose(got, lazy.compute(), rtol=1e-12)


def test_chunk_postprocess_func_maps_finished_chunks():
    scores = noise((4, 30, 26))
    seen = []

    def post(chunk):
        seen.append(chunk.shape)
        return chunk.argmax(axis=0) + 1

    output = np.zeros((30, 26), np.uint8)
    merge(
        tw, scores, spatial_size=(30, 26), patch_size=(8, 8), step_size=(4, 4), chunk_size=(16, 13),
        spatial_first=False, aggregate={"output": output, "softmax_dim": 0, "chunk_postprocess_func": post},
    )  # fmt: skip
    np.testing.assert_array_equal(output, scores.argmax(0) + 1)
    assert seen == [(4, 16, 13)] * 2 + [(4, 14, 13)] * 2


def test_chunk_postprocess_func_gets_tensors_of_tensors():
    torch = require("torch")
    scores = torch.from_numpy(noise((4, 30, 26)))
    got = merge(
        tw, scores, spatial_size=(30, 26), patch_size=(8, 8), chunk_size=(16, 13), spatial_first=False,
        aggregate={"output_size": (30, 26), "chunk_postprocess_func": lambda c: c.softmax(0).max(0).values},
    )  # fmt: skip
    np.testing.assert_allclose(got, scores.softmax(0).max(0).values, rtol=1e-5)


@pytest.mark.parametrize("shape", ["scores", "classes"])
@pytest.mark.parametrize("spatial_first", [True, False], ids=["behind", "front"])
def test_softmax_into_given_outputs(shape, spatial_first):
    scores = noise((20, 18, 3) if spatial_first else (3, 20, 18))
    axis = 2 if spatial_first else 0
    output = np.zeros(scores.shape if shape == "scores" else (20, 18), np.float32)
    got = merge(
        tw, scores, spatial_size=(20, 18), patch_size=(8, 8), step_size=(4, 4), spatial_first=spatial_first,
        aggregate={"output": output, "softmax_dim": axis - 3},
    )  # fmt: skip
    np.testing.assert_array_equal(got, scores.argmax(axis))
    np.testing.assert_allclose(output, scores if shape == "scores" else got, atol=1e-6)


# ------------------------------------------------------------------------- missing patches and the rest


@pytest.mark.parametrize("chunk", [None, (16,)], ids=["whole", "chunks"])
@pytest.mark.parametrize("target", ["new", "direct", "integers"])
def test_patches_may_go_on_after_a_result(chunk, target):
    outputs = {"direct": np.zeros(32, np.float32), "integers": np.zeros(32, np.int16)}
    output = {"output_size": (32,)} if target == "new" else {"output": outputs[target]}
    sampler = GridSampler(np.full(32, 4, np.float32), 32, 8, 4, chunk_size=chunk)
    aggregator = Aggregator(sampler, **output)
    aggregator.append(*sampler[0])
    with pytest.warns(tw.TilingWarning, match=r"6 of 7 patches .*\[\[4, 12\]\]"):
        first = np.array(aggregator.get_output())
    assert first.tolist() == [4] * 8 + [0] * 24
    if chunk:
        return  # all chunks are finished
    with pytest.warns(tw.TilingWarning):
        kept = aggregator.get_output()
    for number in range(1, len(sampler)):
        aggregator.append(*sampler[number])
    if target == "new":
        np.testing.assert_array_equal(kept, first)
    assert aggregator.get_output().tolist() == [4] * 32
    assert aggregator.get_output(inplace=True).tolist() == [4] * 32


def test_a_patch_may_come_twice_before_its_chunk_is_complete():
    sampler = GridSampler(np.zeros(32), 32, 8, 4, chunk_size=16)
    aggregator = Aggregator(sampler, output_size=(32,))
    for number in (0, 0, *range(1, len(sampler))):
        aggregator.append(np.full(8, float(number)), sampler.get_bbox(number))
    assert aggregator.get_output()[:12].tolist() == [0] * 4 + [1 / 3] * 4 + [1.5] * 4


def test_a_result_does_not_change_when_more_patches_come():
    sampler = GridSampler(np.ones(16), 16, 8, 4)
    aggregator = Aggregator(sampler, output_size=(16,))
    for item in sampler:
        aggregator.append(*item)
    first = aggregator.get_output()
    aggregator.append(np.full(8, 3.0), sampler.get_bbox(0))
    assert first.tolist() == [1] * 16
    assert aggregator.get_output().tolist() == [2] * 4 + [5 / 3] * 4 + [1] * 8


def test_missing_patches_may_be_an_error_or_nothing():
    sampler = GridSampler(np.ones(16), 16, 8)
    assert (
        Aggregator(sampler, output_size=(16,), missing="ignore", fill_value=3).get_output().tolist()
        == [3] * 16
    )
    with pytest.raises(tw.TilingError, match="2 of 2 patches"):
        Aggregator(sampler, output_size=(16,), missing="error").get_output()
    given = np.ones(16)
    Aggregator(sampler, output=given, missing="ignore").get_output()
    assert not given.any()


def test_a_patch_that_lies_in_the_padding_alone_is_no_trouble():
    image = noise((10,))
    for chunk in (None, 6):
        sampler = GridSampler(image, 30, 4, mode="pad_end_edge", chunk_size=chunk)
        assert len(sampler) == 8
        aggregator = Aggregator(sampler, output_size=(30,))
        for item in sampler:
            aggregator.append(*item)
        np.testing.assert_array_equal(aggregator.get_output(), image)


@pytest.mark.parametrize("kind", ["new", "numpy", "zarr3", "tensor"])
def test_an_aggregator_travels_half_way(kind, tmp_path):
    image = noise((23, 26))
    output = {"output_size": (23, 26)} if kind == "new" else {"output": OUTPUTS[kind](tmp_path)}
    sampler = GridSampler(image, (23, 26), (8, 8), (4, 4))
    aggregator = Aggregator(sampler, weights="gaussian", **output)
    for number in range(len(sampler)):
        if number == 9:
            aggregator = pickle.loads(pickle.dumps(aggregator))
        aggregator.append(*sampler[number])
    np.testing.assert_allclose(np.asarray(aggregator.get_output()[:]), image, atol=1e-6)


def test_what_is_found_by_identity_does_not_travel():
    """Products of weights are kept by the identity of factors, which elsewhere other arrays may have."""
    sampler = GridSampler(np.zeros(32), 32, 8, 4)
    spec = Aggregator(sampler, output_size=(32,))._merge.spec(np.zeros(8), None, None)
    accumulator = Accumulator(spec, [tw.Box((0,), (32,))])
    accumulator.add((1,), [np.ones(8)])
    assert spec.products._held
    again = pickle.loads(pickle.dumps(accumulator))
    assert not any(
        (again._products._held, again._products._profiles, again._products._ready, again._products._parts)
    )
    assert not any(spots for output in again._spots for spots in output)
    np.testing.assert_array_equal(again.partials[0].array, accumulator.partials[0].array)


def test_memory_is_bounded_by_chunks_in_flight():
    """Of a long image only canvases around the current chunk are held: here less than a tenth of it."""
    import tracemalloc

    class Sink:
        shape, dtype = (64 * 400, 256), np.dtype(np.float32)

        def __setitem__(self, index, value):
            assert (value == 1).all()

    sampler = GridSampler(None, Sink.shape, (64, 256), (32, 256), chunk_size=(128, 256))
    aggregator = Aggregator(sampler, output=Sink(), weights="avg")
    patch = np.ones((64, 256), np.float32)
    aggregator.append(patch, sampler[0])
    tracemalloc.start()
    for number in range(1, len(sampler)):
        aggregator.append(patch, sampler[number])
    aggregator.get_output()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 400 * 256 * 4 / 10


SAMPLER = {"spatial_size": (20, 30), "patch_size": (8, 8), "step_size": (4, 4)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, tw.TilingError, "output_size"),
        ({"output_size": (20, 31)}, tw.GridError, "axis 1 has 30 samples"),
        ({"output_size": (30,)}, tw.GridError, "2 tiled axes"),
        ({"output_size": (20, 30), "output": np.zeros((3, 3))}, tw.TilingError, "output_size is"),
        ({"output": np.zeros((20, 30)), "dtype": "f4"}, tw.TilingError, "float64"),
        ({"output": [[1]]}, TypeError, "item assignment"),
        ({"output_size": (20, 30), "weights": "gausian"}, tw.TilingError, "did you mean 'gaussian'"),
        ({"output_size": (20, 30), "softmax_dim": 1.5}, TypeError, "softmax_dim"),
        ({"output_size": (20, 30), "accumulate": True}, tw.TilingError, "accumulate"),
        ({"output_size": (20, 30), "chunk_postprocess_func": 3}, TypeError, "callable"),
        ({"output_size": (20, 30), "missing": "warning"}, tw.TilingError, "did you mean 'warn'"),
    ],
    ids=str,
)
def test_F1_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Aggregator(GridSampler(**SAMPLER), **options)


@pytest.mark.parametrize(
    ("options", "patch", "message"),
    [
        ({}, np.zeros((7, 8)), r"\[\[0, 8\], \[0, 8\]\] has shape \(7, 8\); expected \(8, 8\)"),
        ({}, np.zeros((8, 8, 2)), "untiled axes"),
        ({}, np.zeros(8), "2 tiled axes"),
        ({"weights": np.ones((4, 4))}, np.zeros((8, 8)), "importance map"),
        ({"softmax_dim": 0}, np.zeros((8, 8)), "softmax_dim"),
        ({"softmax_dim": 5}, np.zeros((8, 8)), "softmax_dim"),
        ({"dtype": "f4"}, np.zeros((8, 8), complex), "dtype"),
        ({"has_batch_dim": True}, np.zeros((3, 8, 8)), "3 patches came with 1 boxes"),
    ],
    ids=str,
)
def test_F1_wrong_patches_are_named(options, patch, message):
    sampler = GridSampler(**SAMPLER)
    aggregator = Aggregator(sampler, output_size=(20, 30), **options)
    box = sampler[0][None] if options.get("has_batch_dim") else sampler[0]
    with pytest.raises(tw.TilingError, match=message):
        aggregator.append(patch, box)


def test_F1_a_later_patch_of_another_dtype_is_named():
    sampler = GridSampler(**SAMPLER)
    aggregator = Aggregator(sampler, output_size=(20, 30))
    aggregator.append(np.zeros((8, 8), np.float32), sampler[0])
    aggregator.append(np.zeros((8, 8), np.float64), sampler[1])
    with pytest.raises(tw.ContractError, match="complex128"):
        aggregator.append(np.zeros((8, 8), complex), sampler[2])
