"""Every defect seen in Patchly 0.0.19 and Ryomen 0.0.10: each test passes here and fails on the original.

A test is written once, for either package; what the original fails with is part of the table.
"""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

import tilework
from tests.calls import calls_of
from tests.networks import require
from tests.store_counts import counted

PATCHLY: dict[str, tuple[Callable[..., None], type[BaseException], str]] = {}
RYOMEN: dict[str, tuple[Callable[..., None], type[BaseException], str]] = {}


def seen(table: dict[str, Any], name: str, error: type[BaseException] = AssertionError, match: str = ""):
    """Enter a test into a table, with what the original fails with."""

    def enter(test: Callable[..., None]) -> Callable[..., None]:
        table[name] = test, error, match
        return test

    return enter


@contextmanager
def raising(*kinds: type[BaseException]):
    """Assert that the block raises one of ``kinds``; gives a namespace with its message."""
    got = SimpleNamespace(message=None)
    try:
        yield got
    except kinds as error:
        got.message = str(error)
    assert got.message is not None, f"nothing was raised; expected {kinds}"


def run(
    pkg, image, patch, step=None, *, chunk=None, fn=lambda p: p, mode=None, size=None, skip=(), **options
):
    """Sample, apply ``fn``, aggregate; without ``output`` into a new array."""
    modes = {} if mode is None else {"mode": pkg.SamplingMode[mode]}
    first = options.get("spatial_first", True)
    n = len(patch)
    spatial = tuple(image.shape[:n] if first else image.shape[-n:])
    sampler = pkg.GridSampler(
        image=image, spatial_size=spatial, patch_size=patch, step_size=step, chunk_size=chunk,
        spatial_first=first, **modes,
    )  # fmt: skip
    if "output" not in options:
        options["output_size"] = tuple(image.shape) if size is None else size
    aggregator = pkg.Aggregator(sampler, **options)
    for number, (values, box) in enumerate(sampler):
        if number not in skip:
            aggregator.append(fn(values), box)
    return aggregator.get_output()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


# ------------------------------------------------------------------------------- Patchly, section 2A


def steps(call):
    """Return how many functions run, in Python and in C."""
    call()  # imports and caches
    return calls_of(call, "call", "c_call")


@seen(PATCHLY, "A01_class_map_of_torch_patches_is_zero")
def class_map_of_torch_patches(pkg, tmp_path):
    torch = require("torch")
    scores = noise(3, 40, 40)
    output = np.zeros((40, 40), np.uint8)
    got = run(
        pkg, torch.from_numpy(scores), (8, 8), (4, 4), chunk=(20, 20), output=output, weights="gaussian",
        softmax_dim=0, spatial_first=False,
    )  # fmt: skip
    np.testing.assert_array_equal(got, scores.argmax(0))


@seen(PATCHLY, "A02a_error_in_a_chunk_is_dropped")
def error_in_a_chunk(pkg, tmp_path):
    with raising(ValueError):
        run(pkg, np.ones((64, 64), "f4"), (16, 16), (8, 8), chunk=(32, 32), fn=lambda p: p[:-1])


@seen(PATCHLY, "A02b_error_in_chunk_postprocess_func_is_dropped")
def error_in_postprocess(pkg, tmp_path):
    def broken(chunk):
        raise KeyError("broken")

    with raising(KeyError):
        run(
            pkg, noise(3, 32, 32), (8, 8), chunk=(16, 16), output=np.zeros((32, 32)), softmax_dim=0,
            spatial_first=False, chunk_postprocess_func=broken,
        )  # fmt: skip


@seen(PATCHLY, "A02c_missing_patch_leaves_whole_chunks_zero")
def missing_patch_in_a_chunk(pkg, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = run(pkg, np.ones((64, 64), "f4"), (16, 16), (8, 8), chunk=(32, 32), skip=(0,))
    assert got[8:, 8:].min() == 1, "only what the missing patch alone covers is lost"
    assert not got[:8, :8].any()
    assert any("1 of 49" in str(w.message) for w in caught)


@seen(PATCHLY, "A02d_missing_patches_are_not_reported")
def missing_patches(pkg, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(pkg, np.ones((16, 16), "f4"), (8, 8), skip=(0, 3))
    assert any("2 of 4" in str(w.message) for w in caught)


@seen(PATCHLY, "A02e_chunk_postprocess_func_is_ignored_without_softmax_dim")
def postprocess_without_softmax(pkg, tmp_path):
    got = run(pkg, np.ones((16, 16), "f4"), (4, 4), chunk=(8, 8), chunk_postprocess_func=lambda c: c * 100)
    assert got.min() == got.max() == 100


@seen(PATCHLY, "A02f_chunk_postprocess_func_gets_sums_without_their_weights")
def postprocess_normalised(pkg, tmp_path):
    got = run(
        pkg, np.ones((1, 16, 16), "f4"), (8, 8), (4, 4), chunk=(16, 16), output=np.zeros((16, 16), "f4"),
        softmax_dim=0, spatial_first=False, chunk_postprocess_func=lambda c: c[0],
    )  # fmt: skip
    np.testing.assert_allclose(got, 1, rtol=1e-6)


@seen(PATCHLY, "A03_weight_map_wraps_at_256_patches")
def many_patches(pkg, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = run(pkg, np.ones((48, 48), "f4"), (32, 32), (1, 1))
    np.testing.assert_allclose(got, 1, rtol=1e-5)


@seen(PATCHLY, "A04_nan_and_inf_are_replaced")
def nan_and_inf(pkg, tmp_path):
    image = np.ones(24)
    image[[2, 12, 20]] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(run(pkg, image, (8,), (8,)), image)
    np.testing.assert_array_equal(np.isfinite(run(pkg, image, (8,), (4,))), np.isfinite(image))


@seen(PATCHLY, "A05a_integer_output_wraps")
def integer_output(pkg, tmp_path):
    output = np.zeros(8, np.uint8)
    got = run(pkg, np.full(8, 200, np.uint8), (4,), (2,), output=output)
    assert got.dtype == np.uint8
    assert got.tolist() == [200] * 8


@seen(PATCHLY, "A05b_integer_output_with_gaussian_is_zero")
def integer_output_gaussian(pkg, tmp_path):
    got = run(pkg, np.full(16, 7), (8,), (4,), output=np.zeros(16, int), weights="gaussian")
    assert got.tolist() == [7] * 16


@seen(PATCHLY, "A06a_float64_loses_precision")
def float64(pkg, tmp_path):
    image = np.random.default_rng(0).random(40)
    np.testing.assert_allclose(run(pkg, image, (8,), (4,), weights="gaussian"), image, rtol=1e-14)


@seen(PATCHLY, "A06b_int64_loses_precision")
def int64(pkg, tmp_path):
    image = np.arange(2**24, 2**24 + 16)
    np.testing.assert_array_equal(run(pkg, image, (8,), (4,)), image)


@seen(PATCHLY, "A06c_complex_loses_its_imaginary_part")
def complex_numbers(pkg, tmp_path):
    image = noise(16) + 1j * noise(16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = run(pkg, image, (8,), (4,))
    np.testing.assert_allclose(got, image, rtol=1e-6)


@seen(PATCHLY, "A06d_labels_are_averaged", AttributeError)
def labels(pkg, tmp_path):
    """Where neighbours disagree the result is one of their labels."""
    numbers = itertools.count(10, 10)
    got = run(
        pkg, np.zeros(16, np.int32), (8,), (4,), fn=lambda p: p + next(numbers), weights="trim",
        output=np.zeros(16, np.int32),
    )  # fmt: skip
    assert sorted(set(got.tolist())) == [10, 20, 30]


@seen(PATCHLY, "A07_float16_with_gaussian")
def float16(pkg, tmp_path):
    got = run(
        pkg, np.ones((32, 32), "f2"), (16, 16), (8, 8), weights="gaussian", output=np.zeros((32, 32), "f2")
    )
    np.testing.assert_allclose(got, 1, rtol=1e-3)


@seen(PATCHLY, "A08a_zarr_v3_output", AttributeError)
def zarr_output(pkg, tmp_path):
    image = noise(20, 20)
    output = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=(20, 20), chunks=(6, 6), dtype="f4")
    run(pkg, image, (8, 8), (4, 4), output=output)
    np.testing.assert_allclose(output[:], image, rtol=1e-6)


@seen(PATCHLY, "A08b_zarr_v3_output_in_chunks", AttributeError)
def zarr_output_in_chunks(pkg, tmp_path):
    image = noise(20, 20)
    output = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=(20, 20), chunks=(6, 6), dtype="f4")
    run(pkg, image, (4, 4), (2, 2), chunk=(10, 10), output=output, weights="gaussian")
    np.testing.assert_allclose(output[:], image, rtol=1e-6)


@seen(PATCHLY, "A08c_numpy_output_of_torch_patches", AttributeError)
def numpy_output_of_torch_patches(pkg, tmp_path):
    torch = require("torch")
    image, output = noise(16, 16), np.zeros((16, 16), "f4")
    run(pkg, torch.from_numpy(image), (8, 8), (4, 4), output=output)
    np.testing.assert_allclose(output, image, rtol=1e-6)


@seen(PATCHLY, "A08d_output_and_its_size", AttributeError)
def output_and_size(pkg, tmp_path):
    image = noise(16, 16)
    got = run(pkg, image, (8, 8), output=np.zeros((16, 16), "f4"), output_size=(16, 16))
    np.testing.assert_array_equal(got, image)


@seen(PATCHLY, "A09a_memmap_output", RuntimeError, "not supported")
def memmap_output(pkg, tmp_path):
    image = noise(16, 16)
    output = np.memmap(tmp_path / "out.raw", "f4", "w+", shape=(16, 16))
    run(pkg, image, (8, 8), (4, 4), output=output)
    np.testing.assert_allclose(np.fromfile(tmp_path / "out.raw", "f4").reshape(16, 16), image, rtol=1e-6)


@seen(PATCHLY, "A09b_memmap_input", RuntimeError, "not supported")
def memmap_input(pkg, tmp_path):
    noise(16, 16).tofile(tmp_path / "in.raw")
    image = np.memmap(tmp_path / "in.raw", "f4", "r", shape=(16, 16))
    np.testing.assert_array_equal(run(pkg, image, (8, 8)), image)


@seen(PATCHLY, "A09c_dask_input", RuntimeError, "not supported")
def dask_input(pkg, tmp_path):
    import dask.array as da

    image = noise(16, 16)
    np.testing.assert_array_equal(run(pkg, da.from_array(image, chunks=5), (8, 8)), image)


@seen(PATCHLY, "A10a_array_of_weights", ValueError, "truth value")
def array_of_weights(pkg, tmp_path):
    """Each sample is the mean of its patches' values, weighted by how they stand in the patch."""
    weights, numbers = np.arange(1.0, 5.0), iter([0.0, 1.0])
    got = run(pkg, np.zeros(6), (4,), (2,), weights=weights, fn=lambda p: p + next(numbers))
    np.testing.assert_allclose(got, [0, 0, 1 / 4, 2 / 6, 1, 1])


@seen(PATCHLY, "A10b_callable_weights", AttributeError)
def callable_weights(pkg, tmp_path):
    numbers = iter([0.0, 1.0])
    got = run(
        pkg, np.zeros(6), (4,), (2,), weights=lambda n: np.arange(1.0, n + 1), fn=lambda p: p + next(numbers)
    )
    np.testing.assert_allclose(got, [0, 0, 1 / 4, 2 / 6, 1, 1])


@seen(PATCHLY, "A10c_other_words", AttributeError)
def other_words(pkg, tmp_path):
    image = noise(20)
    np.testing.assert_allclose(run(pkg, image, (8,), (4,), weights="hann"), image, rtol=1e-5)


@seen(PATCHLY, "A10d_unknown_word_is_found_at_the_first_patch_only")
def unknown_word(pkg, tmp_path):
    sampler = pkg.GridSampler(image=noise(16), spatial_size=(16,), patch_size=(8,))
    with raising(ValueError):
        pkg.Aggregator(sampler, output_size=(16,), weights="gausian")


@seen(PATCHLY, "A11_get_output_inplace")
def inplace(pkg, tmp_path):
    image, output = np.ones(8, "f4"), np.zeros(8, "f4")
    sampler = pkg.GridSampler(image=image, spatial_size=(8,), patch_size=(4,), step_size=(2,))
    aggregator = pkg.Aggregator(sampler, output=output)
    for patch, box in sampler:
        aggregator.append(patch, box)
    first, second = aggregator.get_output(inplace=True), aggregator.get_output(inplace=True)
    assert output.tolist() == [1] * 8
    assert first.tolist() == second.tolist() == [1] * 8


@seen(PATCHLY, "A12a_image_smaller_than_the_patch", RuntimeError, "cannot be greater")
def small_image(pkg, tmp_path):
    image = noise(5, 20)
    shapes = set()

    def fn(patch):
        shapes.add(patch.shape)
        return patch

    np.testing.assert_array_equal(run(pkg, image, (8, 8), fn=fn), image)
    assert shapes == {(8, 8)}


@seen(PATCHLY, "A12b_padding", KeyError)
def padding(pkg, tmp_path):
    image = noise(10)
    sampler = pkg.GridSampler(
        image=image, spatial_size=(10,), patch_size=(4,), mode=pkg.SamplingMode["PAD_EDGES"],
        pad_kwargs={"mode": "reflect"},
    )  # fmt: skip
    padded = np.pad(image, 1, "reflect")
    assert [p.tolist() for p, _ in sampler] == [padded[a : a + 4].tolist() for a in (0, 4, 8)]


@seen(PATCHLY, "A12c_the_advertised_mode", NotImplementedError)
def padding_unknown(pkg, tmp_path):
    image = noise(10)
    sampler = pkg.GridSampler(
        image=image, spatial_size=(10,), patch_size=(4,), mode=pkg.SamplingMode["PAD_UNKNOWN"],
        pad_kwargs={"mode": "linear_ramp", "end_values": 3},
    )  # fmt: skip
    padded = np.pad(image, (0, 2), "linear_ramp", end_values=3)
    assert [p.tolist() for p, _ in sampler] == [padded[a : a + 4].tolist() for a in (0, 4, 8)]


@seen(PATCHLY, "A13_results_of_another_size", TypeError, "scale")
def another_size(pkg, tmp_path):
    image = noise(12, 12)
    got = run(pkg, image, (4, 4), fn=lambda p: p.repeat(2, 0).repeat(2, 1), size=(24, 24), scale=2)
    np.testing.assert_array_equal(got, image.repeat(2, 0).repeat(2, 1))


@seen(PATCHLY, "A14_class_map_into_an_output_without_the_class_axis", ValueError, "broadcast")
def class_map_output(pkg, tmp_path):
    scores, output = noise(3, 8, 8), np.zeros((8, 8), np.uint8)
    run(pkg, scores, (4, 4), output=output, softmax_dim=0, spatial_first=False)
    np.testing.assert_array_equal(output, scores.argmax(0))


@seen(PATCHLY, "A15_chunked_aggregator_is_not_picklable", TypeError, "cannot pickle")
def picklable(pkg, tmp_path):
    image = noise(32, 32)
    sampler = pkg.GridSampler(
        image=image, spatial_size=(32, 32), patch_size=(8, 8), step_size=(4, 4), chunk_size=(16, 16)
    )
    aggregator = pkg.Aggregator(sampler, output_size=(32, 32), weights="gaussian")
    items = list(sampler)
    for patch, box in items[:20]:
        aggregator.append(patch, box)
    aggregator = pickle.loads(pickle.dumps(aggregator))
    for patch, box in items[20:]:
        aggregator.append(patch, box)
    np.testing.assert_allclose(aggregator.get_output(), image, rtol=1e-5)


@seen(PATCHLY, "A16_setting_up_chunks_compares_every_patch_with_every_chunk")
def set_up(pkg, tmp_path):
    def both():
        sampler = pkg.GridSampler(None, (672, 672), (32, 32), (16, 16), chunk_size=(84, 84))
        pkg.Aggregator(sampler, output_size=(672, 672))

    assert steps(both) < 41**2 * 8**2  # patches x chunks


@seen(PATCHLY, "A17_torch_copies_the_weight_map_for_every_patch", UserWarning, "copy construct")
def torch_copies(pkg, tmp_path):
    torch = require("torch")
    image = noise(16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(pkg, torch.from_numpy(image), (8, 8))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), image)


@seen(PATCHLY, "A18a_dict_of_images", AttributeError)
def dict_of_images(pkg, tmp_path):
    images = {"ct": noise(8, 8), "label": np.arange(64).reshape(8, 8)}
    for patch, ((a, b), (c, d)) in pkg.GridSampler(images, (8, 8), (4, 4)):
        assert patch["label"].dtype == images["label"].dtype
        np.testing.assert_array_equal(patch["ct"], images["ct"][a:b, c:d])


@seen(PATCHLY, "A18b_sizes_of_different_length")
def sizes_of_different_length(pkg, tmp_path):
    with raising(ValueError, RuntimeError) as got:
        pkg.GridSampler(None, (8, 8, 8), (4, 4))
    assert "patch" in got.message


@seen(PATCHLY, "A19_patch_size_of_a_fraction")
def patch_size_of_a_fraction(pkg, tmp_path):
    with raising(TypeError) as got:
        pkg.GridSampler(None, (32,), (8.5,))
    assert "8.5" in got.message


@seen(PATCHLY, "1A_a_patch_is_a_view_of_the_image")
def patch_is_a_view(pkg, tmp_path):
    image = noise(16)
    before = image.copy()
    for patch, _ in pkg.GridSampler(image, (16,), (4,)):
        patch *= 2
    np.testing.assert_array_equal(image, before)


@seen(PATCHLY, "1A_nested_loops")
def nested_loops(pkg, tmp_path):
    sampler = pkg.GridSampler(None, (8,), (4,))
    assert len([(a, b) for a in sampler for b in sampler]) == 4


@seen(PATCHLY, "1A_one_size_for_all_axes", TypeError, "len")
def one_size(pkg, tmp_path):
    assert len(pkg.GridSampler(None, (8, 8), 4)) == 4


@seen(PATCHLY, "1A_step_of_zero")
def step_of_zero(pkg, tmp_path):
    for step in (0, -1):
        with raising(ValueError, IndexError) as got:
            pkg.GridSampler(None, (8,), (4,), (step,))
        assert "stride" in got.message


@seen(PATCHLY, "1A_adaptive_with_gaussian", RuntimeError, "Adaptive")
def adaptive_gaussian(pkg, tmp_path):
    image = noise(21)
    got = run(pkg, image, (8,), (4,), mode="SAMPLE_ADAPTIVE", weights="gaussian")
    np.testing.assert_allclose(got, image, rtol=1e-5)


# -------------------------------------------------------------------------------- Ryomen, section 2B


def loop(pkg, image, crop, overlap, fn=lambda c: c, output=None, **options):
    """Run the loop of Ryomen's README."""
    output = np.full_like(image, -1) if output is None else output
    for values, source, destination in pkg.Slicer(image, crop_size=crop, overlap=overlap, **options):
        output[destination] = fn(values)[source]
    return output


@seen(RYOMEN, "B01_batches", RuntimeError, "batch size")
def batches(pkg, tmp_path):
    image, output = noise(10, 10), np.zeros((10, 10), "f4")
    slices = pkg.Slicer(image, (4, 4), (1, 1), batch_size=4, collate=np.stack)
    sizes = []
    for crops, sources, destinations in slices:
        sizes.append(len(crops))
        for crop, source, destination in zip(crops, sources, destinations, strict=True):
            output[destination] = crop[source]
    assert sizes == [4] * 6 + [1]
    np.testing.assert_array_equal(output, image)


@seen(RYOMEN, "B02a_crops_share_a_buffer")
def shared_buffer(pkg, tmp_path):
    crops = list(pkg.Slicer(np.arange(8), (4,), (1,)))
    assert crops[0][0].tolist() == [1, 0, 1, 2]


@seen(RYOMEN, "B02b_threads")
def threads(pkg, tmp_path):
    image, output = noise(40, 40), np.zeros((40, 40), "f4")

    def work(item):
        crop, source, destination = item
        output[destination] = crop[source]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, pkg.Slicer(image, (8, 8), (2, 2))))
    np.testing.assert_array_equal(output, image)


@seen(RYOMEN, "B03_crops_are_views_of_the_image")
def views(pkg, tmp_path):
    image = noise(40)
    before = image.copy()
    for crop, _, _ in pkg.Slicer(image, (8,), (2,)):
        crop *= 2
    np.testing.assert_array_equal(image, before)


@seen(RYOMEN, "B04_without_pad_the_border_is_never_written")
def border(pkg, tmp_path):
    image = noise(40, 40)
    np.testing.assert_array_equal(loop(pkg, image, (16, 16), (4, 4), pad=False), image)


@seen(RYOMEN, "B05a_bool_becomes_int")
def bools(pkg, tmp_path):
    image = noise(20) > 0.5
    assert {crop.dtype for crop, _, _ in pkg.Slicer(image, (8,), (2,))} == {np.dtype(bool)}


@seen(RYOMEN, "B05b_structured_and_text", TypeError)
def structured(pkg, tmp_path):
    for dtype in ([("a", "i4"), ("b", "f8")], "U3"):
        image = np.arange(20).astype("U3" if dtype == "U3" else "i4").astype(dtype)
        np.testing.assert_array_equal(loop(pkg, image, (8,), (2,), output=np.empty_like(image)), image)


@seen(RYOMEN, "B06a_smaller_crops_of_a_small_image")
def small_crops(pkg, tmp_path):
    image = noise(10, 10)
    assert {crop.shape for crop, _, _ in pkg.Slicer(image, (16, 16), (1, 1))} == {(16, 16)}
    np.testing.assert_array_equal(loop(pkg, image, (16, 16), (1, 1)), image)


@seen(RYOMEN, "B06b_image_smaller_than_its_overlap", ValueError, "overlap")
def small_for_overlap(pkg, tmp_path):
    image = noise(5)
    (crop, _, _) = next(iter(pkg.Slicer(image, (16,), (6,))))
    np.testing.assert_array_equal(crop, np.pad(image, 6, "reflect")[:16])
    np.testing.assert_array_equal(loop(pkg, image, (16,), (6,)), image)


@seen(RYOMEN, "B07_crop_of_two_overlaps_is_refused_with_another_reason")
def two_overlaps(pkg, tmp_path):
    with raising(ValueError) as got:
        pkg.Slicer(noise(40), (8,), (4,))
    assert "stride_offset" not in got.message
    assert "overlap" in got.message


@seen(RYOMEN, "B08a_chunks_are_written_many_times", AttributeError, "writer")
def chunks_once(pkg, tmp_path):
    image = noise(64, 64)
    output = zarr.create_array(store=str(tmp_path / "out.zarr"), shape=(64, 64), chunks=(16, 16), dtype="f4")
    slices = pkg.Slicer(image, (16, 16), (4, 4))
    with counted(output) as count, slices.writer(output) as out:
        for crop, source, destination in slices:
            out[destination] = crop[source]
    assert count.writes == dict.fromkeys(count.writes, 1)
    assert len(count.writes) == 16
    assert not count.reads
    np.testing.assert_array_equal(output[:], image)


@seen(RYOMEN, "B08b_threads_that_share_a_chunk", AttributeError, "writer")
def threads_on_chunks(pkg, tmp_path):
    image = noise(64, 64)
    output = zarr.create_array(store=str(tmp_path / "out.zarr"), shape=(64, 64), chunks=(32, 32), dtype="f4")
    slices = pkg.Slicer(image, (16, 16), (4, 4))
    with slices.writer(output) as out, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: out.__setitem__(item[2], item[0][item[1]]), slices))
    np.testing.assert_array_equal(output[:], image)


@seen(RYOMEN, "B08c_source_chunks_are_read_many_times")
def source_chunks_once(pkg, tmp_path):
    source = zarr.create_array(store=str(tmp_path / "in.zarr"), shape=(64, 64), chunks=(16, 16), dtype="f4")
    source[:] = image = noise(64, 64)
    with counted(source) as count:
        got = loop(pkg, source, (16, 16), (4, 4), output=np.zeros((64, 64), "f4"))
    np.testing.assert_array_equal(got, image)
    assert sum(count.reads.values()) <= 1.3 * len(count.reads)


@seen(RYOMEN, "B09_graphs_of_dask_crops_grow")
def dask_graphs(pkg, tmp_path):
    import dask.array as da

    image = noise(24, 24)
    crops = [crop for crop, _, _ in pkg.Slicer(da.from_array(image, chunks=8), (8, 8), (2, 2))]
    tasks = [len(crop.__dask_graph__()) if hasattr(crop, "__dask_graph__") else 0 for crop in crops]
    assert max(tasks) <= 64


@seen(RYOMEN, "B10a_channels_last", TypeError, "axes")
def channels_last(pkg, tmp_path):
    image = noise(20, 30, 3)
    np.testing.assert_array_equal(loop(pkg, image, (8, 8), (2, 2), axes=(0, 1)), image)


@seen(RYOMEN, "B10b_functions_that_add_an_axis", TypeError, "axes")
def added_axis(pkg, tmp_path):
    image = noise(3, 20, 30)
    output = np.zeros((3, 20, 30, 1), "f4")
    loop(pkg, image, (8, 8), (2, 2), fn=lambda c: c[..., None], output=output, axes=(1, 2), boundary="edge")
    np.testing.assert_array_equal(output[..., 0], image)


@seen(RYOMEN, "B11_functions_that_change_the_size", TypeError, "scale")
def changed_size(pkg, tmp_path):
    image, output = noise(21), np.zeros(42, "f4")
    loop(pkg, image, (8,), (2,), fn=lambda c: c.repeat(2), output=output, scale=2)
    np.testing.assert_array_equal(output, image.repeat(2))


@seen(RYOMEN, "B12a_not_picklable", (AttributeError, pickle.PicklingError), "lambda")
def slicer_pickles(pkg, tmp_path):
    image = noise(20, 20)
    slices = pickle.loads(pickle.dumps(pkg.Slicer(image, (8, 8), (2, 2))))
    output = np.zeros_like(image)
    for crop, source, destination in slices:
        output[destination] = crop[source]
    np.testing.assert_array_equal(output, image)


@seen(RYOMEN, "B12b_the_constructor_walks_all_crops")
def constructor(pkg, tmp_path):
    image = np.zeros((600, 600), np.uint8)
    assert len(pkg.Slicer(image, (6, 6), (1, 1))) == 150**2
    assert steps(lambda: len(pkg.Slicer(image, (6, 6), (1, 1)))) < 150**2


@seen(RYOMEN, "B12c_no_index", TypeError, "subscriptable")
def indexed(pkg, tmp_path):
    slices = pkg.Slicer(np.arange(20), (8,), (2,))
    assert [slices[i][0].tolist() for i in (0, -1)] == [c.tolist() for c, _, _ in slices][:: len(slices) - 1]


@seen(RYOMEN, "B13_only_reflection", TypeError, "boundary")
def other_boundaries(pkg, tmp_path):
    image = noise(20)
    (crop, _, _) = next(iter(pkg.Slicer(image, (8,), (2,), boundary="wrap")))
    np.testing.assert_array_equal(crop, np.pad(image, 2, "wrap")[:8])


@seen(RYOMEN, "1B_numpy_integers", TypeError, "integer")
def numpy_integers(pkg, tmp_path):
    image = noise(20)
    sizes = np.array([8]), np.array([2])
    np.testing.assert_array_equal(loop(pkg, image, *sizes), image)


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize("name", sorted(PATCHLY))
def test_defect_of_patchly_is_none_here(name, tmp_path):
    PATCHLY[name][0](tilework, tmp_path)


@pytest.mark.parametrize("name", sorted(RYOMEN))
def test_defect_of_ryomen_is_none_here(name, tmp_path):
    RYOMEN[name][0](tilework, tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(PATCHLY))
def test_defect_is_there_in_patchly(name, tmp_path):
    _fails(require("patchly"), *PATCHLY[name], tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(RYOMEN))
def test_defect_is_there_in_ryomen(name, tmp_path):
    _fails(require("ryomen"), *RYOMEN[name], tmp_path)


def _fails(pkg, test, error, match, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=match):
            test(pkg, tmp_path)


def test_patches_may_come_from_several_threads():
    """In Patchly a race, 2.4 % of the samples: seen, but not in every run, so not asserted of it."""
    image = noise(256, 256)
    for chunk in (None, (128, 128)):
        sampler = tilework.GridSampler(image, (256, 256), (64, 64), (16, 16), chunk_size=chunk)
        aggregator = tilework.Aggregator(sampler, output_size=(256, 256), weights="gaussian")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(aggregator.append, *zip(*sampler, strict=True)))
        np.testing.assert_allclose(aggregator.get_output(), image, atol=1e-6)
