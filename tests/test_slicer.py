"""`Slicer`: what Ryomen's own tests cover, against Ryomen where it is right, and what it adds."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.strategies import arange
from tests.networks import require
from tests.store_counts import counted
from tilework.loops.reader import _Tensor
from tilework.source.opening import open_source


def put_back(slices: Any, output: np.ndarray, fn: Any = lambda crop: crop) -> np.ndarray:
    for crop, source, destination in slices:
        output[destination] = fn(crop)[source]
    return output


@st.composite
def cut(draw: Any, *, fits: bool = False) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Draw extents, crops and overlaps of 1 to 3 axes; ``fits``: no crop is longer than the image."""
    sizes = []
    for _ in range(draw(st.integers(1, 3))):
        overlap = draw(st.integers(0, 3))
        crop = 2 * overlap + draw(st.integers(1, 5))
        sizes.append((draw(st.integers(crop if fits else 1, crop + 9)), crop, overlap))
    shape, crops, overlaps = zip(*sizes, strict=True)
    return shape, crops, overlaps


@pytest.mark.peers
@given(cut(fits=True), st.integers(0, 2), st.booleans(), st.sampled_from([0, 0, -1, 2]))
def test_crops_and_places_are_ryomens(sizes, lead, pad, offset):
    ryomen = require("ryomen")
    shape, crop, overlap = sizes
    if any(c - 2 * o + offset < 1 for c, o in zip(crop, overlap, strict=True)):
        offset = 0
    image = arange((2,) * lead + shape)
    theirs = ryomen.Slicer(image, crop, overlap, pad=pad, stride_offset=offset)
    ours = tw.Slicer(image, crop, overlap, pad=pad, stride_offset=offset)
    assert len(ours) == len(theirs)
    marks = np.arange(image.size).reshape(image.shape)
    # Ryomen's crops share one buffer: each is compared before the next one is made.
    for (crop_a, source_a, target_a), (crop_b, source_b, target_b) in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(crop_b, crop_a)
        if pad:
            np.testing.assert_array_equal(crop_b[source_b], crop_a[source_a])
            np.testing.assert_array_equal(marks[target_b], marks[target_a])


@given(cut(), st.integers(0, 2), st.booleans(), st.integers(1, 5))
def test_every_sample_comes_back(sizes, lead, pad, batch_size):
    shape, crop, overlap = sizes
    image, output = arange((2,) * lead + shape), np.zeros((2,) * lead + shape)
    slices = tw.Slicer(image, crop, overlap, pad=pad, batch_size=batch_size)
    items = list(slices)
    assert len(items) == len(slices)
    for crops, sources, destinations in items:
        if batch_size == 1:
            crops, sources, destinations = [crops], [sources], [destinations]
        for values, source, destination in zip(crops, sources, destinations, strict=True):
            assert values[source].shape == output[destination].shape, "nothing is broadcast"
            output[destination] = values[source]
    np.testing.assert_array_equal(output, image)


@given(cut(), st.sampled_from(["reflect", "symmetric", "edge", "wrap", "constant", "mean", "linear_ramp"]))
def test_padded_crops_are_full_and_numpys(sizes, boundary):
    shape, crop, overlap = sizes
    image = arange(shape)
    slices = tw.Slicer(image, crop, overlap, boundary=boundary)
    grids = slices.plan.axes
    last = [grid.read(len(grid) - 1)[1] - grid.extent for grid in grids]
    padded = np.pad(image, list(zip(overlap, last, strict=True)), boundary)
    for number, (values, _, _) in enumerate(slices):
        position = np.unravel_index(number, [len(g) for g in grids][::-1])[::-1]
        start = [g.read(int(i))[0] + o for g, i, o in zip(grids, position, overlap, strict=True)]
        expected = padded[tuple(slice(a, a + c) for a, c in zip(start, crop, strict=True))]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


@given(cut(), st.integers(1, 4))
def test_items_by_number_are_those_of_the_loop(sizes, batch_size):
    shape, crop, overlap = sizes
    slices = tw.Slicer(arange(shape), crop, overlap, batch_size=batch_size, collate=np.stack)
    for number, (crops, _, destinations) in enumerate(slices):
        for index in (number, number - len(slices)):
            again, _, places = slices[index]
            np.testing.assert_array_equal(again, crops)
            assert places == destinations
    with pytest.raises(IndexError):
        slices[len(slices)]


def test_a_local_function_is_exact_and_a_second_loop_the_same():
    image = np.random.default_rng(0).random((2, 40, 33))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), "reflect")

    def fn(values):
        return values + np.roll(values, 2, -1) - 3 * np.roll(values, -2, -2)

    slices = tw.Slicer(image, (12, 11), (2, 2))
    for _ in range(2):
        got = put_back(slices, np.zeros_like(image), fn)
        np.testing.assert_array_equal(got, fn(padded)[:, 2:-2, 2:-2])


def test_the_last_batch_is_short_and_stays_a_batch():
    slices = tw.Slicer(np.arange(25), 7, 1, batch_size=2, output_transform=np.negative)
    sizes = [(len(crops), len(sources), len(places)) for crops, sources, places in slices]
    assert sizes == [(2, 2, 2), (2, 2, 2), (1, 1, 1)]
    assert slices[0][0][1][0] == -4
    assert len(tw.Slicer(np.arange(25), 7, 1, batch_size=99)) == 1


def test_collate_of_single_crops_keeps_its_batch_axis():
    crop, sources, _ = tw.Slicer(np.arange(25), 7, 1, collate=np.stack)[0]
    assert crop.shape == (1, 7)
    assert len(sources) == 1


def test_progress_bar_gets_a_length():
    totals = []

    def bar(numbers):
        totals.append(len(numbers))
        return numbers

    assert len(list(tw.Slicer(np.arange(25), 7, 1, batch_size=2, progress_bar=bar))) == 3
    assert totals == [5]


def test_stride_offset_leaves_gaps_or_writes_again():
    wide = put_back(tw.Slicer(np.ones(60), 10, 2, stride_offset=2), np.zeros(60))
    assert wide.sum() == 48
    numbers = iter(range(100))
    again = put_back(
        tw.Slicer(np.zeros(20), 8, 2, stride_offset=-1), np.zeros(20), lambda c: c + next(numbers)
    )
    assert again.tolist() == sorted(again.tolist()), "the last crop that was written wins"
    assert len(set(again.tolist())) == len(tw.Slicer(np.zeros(20), 8, 2, stride_offset=-1))


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "memmap", "dask", "tensor", "path", "h5"])
def test_images_of_any_kind(kind, tmp_path):
    image = np.random.default_rng(0).random((2, 30, 26))
    source: Any = image
    if kind in ("zarr2", "zarr3", "path"):
        source = zarr.create_array(
            store=str(tmp_path / "a.zarr"), shape=image.shape, chunks=(1, 8, 8), dtype="f8",
            zarr_format=2 if kind == "zarr2" else 3,
        )  # fmt: skip
        source[:] = image
        source = str(tmp_path / "a.zarr") if kind == "path" else source
    elif kind == "memmap":
        image.tofile(tmp_path / "a.raw")
        source = np.memmap(tmp_path / "a.raw", float, "r", shape=image.shape)
    elif kind == "dask":
        import dask.array as da

        source = da.from_array(image, chunks=(2, 11, 9))
    elif kind == "tensor":
        source = require("torch").from_numpy(image)
    elif kind == "h5":
        source = (
            require("h5py").File(tmp_path / "a.h5", "w").create_dataset("a", data=image, chunks=(1, 8, 8))
        )
    slices = tw.Slicer(source, (10, 10), (2, 2))
    crop = slices[0][0]
    assert type(crop).__name__ == ("Tensor" if kind == "tensor" else "ndarray")
    crop[:] = 0
    np.testing.assert_array_equal(put_back(slices, np.zeros_like(image)), image)
    again = pickle.loads(pickle.dumps(slices))
    np.testing.assert_array_equal(put_back(again, np.zeros_like(image)), image)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_a_torch_loader_read_ahead():
    data = require("torch").utils.data
    image = np.random.default_rng(0).random((30, 26), np.float32)
    slices = tw.Slicer(image, (10, 10), (2, 2))
    loader = data.DataLoader(slices, batch_size=None, num_workers=2, collate_fn=tuple)
    np.testing.assert_array_equal(put_back(loader, np.zeros_like(image)), image)


def test_tensors_on_a_device_are_read_through_the_cpu():
    torch = require("torch")
    tensor = torch.arange(40, dtype=torch.float16).reshape(4, 10)
    source = open_source(_Tensor(tensor))
    assert (source.shape, source.dtype) == ((4, 10), np.float16)
    np.testing.assert_array_equal(source.read([(1, 3), (2, 9)]), tensor[1:3, 2:9].numpy())


@pytest.mark.gpu
def test_images_and_results_on_a_device():
    torch = require("torch")
    image = torch.rand(3, 40, 30, device="cuda")
    output = torch.zeros_like(image)
    for crop, source, destination in tw.Slicer(image, (12, 12), (2, 2)):
        assert crop.device == image.device
        output[destination] = crop[source]
    assert torch.equal(output, image)
    sampler = tw.GridSampler(image, (40, 30), (8, 8), (4, 4), spatial_first=False)
    for options in ({"output_size": (3, 40, 30), "device": "cuda"}, {"output": torch.zeros_like(image)}):
        aggregator = tw.Aggregator(sampler, spatial_first=False, **options)
        for patch, box in sampler:
            aggregator.append(patch, box)
        got = aggregator.get_output()
        assert got.device == image.device
        torch.testing.assert_close(got, image)


def test_scale_of_a_fraction():
    image = np.repeat(np.arange(15.0), 4)
    slices = tw.Slicer(image, 16, 4, scale=Fraction(1, 4))
    got = put_back(slices, np.full(15, -1.0), lambda crop: crop[::4])
    np.testing.assert_array_equal(got, np.arange(15.0))


@given(cut(), st.data())
def test_writer_writes_what_the_loop_writes(sizes, data):
    shape, crop, overlap = sizes
    slices = tw.Slicer(arange(shape), crop, overlap, stride_offset=data.draw(st.integers(0, 2)))
    before = -arange(shape)
    expected = put_back(slices, before.copy())
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    output = zarr.array(before, chunks=chunks)
    items = data.draw(st.permutations(list(slices)))
    with slices.writer(output) as out:
        for values, source, destination in items:
            out[destination] = values[source]
    np.testing.assert_array_equal(output[:], expected)


def test_each_chunk_is_decoded_and_written_once_from_zarr_to_zarr(tmp_path):
    image = np.random.default_rng(0).random((2, 40, 36, 44), np.float32)
    source, output = (
        zarr.create_array(
            store=str(tmp_path / name), shape=image.shape, chunks=chunks, shards=shards, dtype="f4"
        )
        for name, chunks, shards in (
            ("in.zarr", (1, 9, 10, 8), None),
            ("out.zarr", (2, 5, 4, 4), (2, 10, 8, 12)),
        )
    )
    source[:] = image
    slices = tw.Slicer(source, (16, 12, 16), (3, 2, 4))
    with counted(source) as reads, counted(output) as writes, slices.writer(output) as out:
        for values, target, place in slices:
            out[place] = values[target]
        assert len(writes.writes) == 4 * 5 * 4, "each as soon as it is whole, none at the end"
    np.testing.assert_array_equal(output[:], image)
    assert sum(reads.reads.values()) == len(reads.reads) == 2 * 5 * 4 * 6
    assert sum(writes.writes.values()) == len(writes.writes) == 4 * 5 * 4


def test_writer_keeps_what_was_left_out_and_fails_safely(tmp_path):
    output = zarr.create_array(
        store=str(tmp_path / "o.zarr"), shape=(40,), chunks=(16,), dtype="f8", fill_value=7
    )
    slices = tw.Slicer(np.zeros(40), 12, 2)
    with slices.writer(output) as out:
        for number, (values, source, destination) in enumerate(slices):
            if number != 2:
                out[destination] = values[source]
    assert output[:].tolist() == [0] * 16 + [7] * 8 + [0] * 16
    output[:] = 7

    def fail():
        with slices.writer(output) as out:
            for values, source, destination in slices:
                if destination[-1].start > 20:
                    raise KeyError("stop")
                out[destination] = values[source]

    with pytest.raises(KeyError):
        fail()
    assert output[:].tolist() == [0] * 16 + [7] * 24, "only whole chunks"
    with pytest.raises(tw.GridError, match="extent 40 on axis 0"):
        slices.writer(np.zeros(39))


class Slow:
    """An array with chunks whose first write takes as long as it is told."""

    shape, chunks = (8,), (4,)

    def __init__(self, dtype: Any) -> None:
        self.values, self.dtype = np.zeros(8, dtype), np.dtype(dtype)
        self.begun, self.may_end, self.writes = threading.Event(), threading.Event(), 0

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.values[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        self.writes += 1
        if self.writes == 1:
            self.begun.set()
            assert self.may_end.wait(60)
        self.values[index] = values


@pytest.mark.parametrize("place", [slice(0, 4), slice(2, 6)], ids=["whole", "part"])
@pytest.mark.parametrize("dtype", ["i4", "f8"])
def test_a_part_may_come_while_its_chunk_is_written(place, dtype):
    store = Slow(dtype)
    first = np.full(4, 1, np.int8)
    expected = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    expected[place] = 70_000
    with tw.Slicer(np.zeros(8), 4, 0, stride_offset=-2).writer(store) as out, ThreadPoolExecutor(2) as pool:
        one = pool.submit(out.__setitem__, slice(0, 4), first)
        assert store.begun.wait(60)
        other = pool.submit(out.__setitem__, place, np.full(place.stop - place.start, 70_000))
        wait([other], timeout=0.2)
        store.may_end.set()
        one.result()
        first[:] = 5  # what the caller does with it afterwards is not written
        other.result()
    assert store.values.tolist() == expected.tolist()


OUTPUTS = {
    "numpy": lambda: np.full((2, 8, 8), -1.0),
    "zarr": lambda: zarr.array(np.full((2, 8, 8), -1.0), chunks=(2, 8, 8)),
    "small chunks": lambda: zarr.array(np.full((2, 8, 8), -1.0), chunks=(1, 3, 3)),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (np.s_[..., 0:2, 0:4], r"\[0:2, 0:2, 0:4\] is no destination: on axis 1 .* 0:4, 4:8; got 0:2"),
        (np.s_[..., 0:8, 0:4], r"\[0:2, 0:8, 0:4\] is no destination: on axis 1 .*got 0:8"),
        (np.s_[..., 0:4, 3:7], r"on axis 2 .*got 3:7"),
        (np.s_[0:1, 0:4, 0:4], r"\[0:1, 0:4, 0:4\] is no destination: on axis 0 .* 0:2; got 0:1"),
        (np.s_[..., 4:12, 0:4], r"outside: on axis 1 of the output, which has 8 samples, it is 4:12"),
        (np.s_[..., 100:104, 0:4], r"outside: on axis 1 .*100:104"),
        (np.s_[..., 8:8, 0:4], r"got 8:8"),
    ],
    ids=["part", "two", "shifted", "channel", "over the end", "outside", "empty"],
)
def test_a_writer_refuses_what_is_no_destination(place, said, output):
    """Counted as a part, it made a chunk whole that was not."""
    slices, target = tw.Slicer(np.ones((2, 8, 8)), (4, 4), 0), OUTPUTS[output]()
    with slices.writer(target) as out:
        for _ in range(4):
            with pytest.raises(tw.GridError, match=said):
                out[place] = 5
        *first, last = [destination for _, _, destination in slices]
        for destination in first:
            out[destination] = 1
        with pytest.raises(tw.ContractError, match=r"must have shape \(2, 4, 4\); got \(2, 6, 6\)"):
            out[last] = np.ones((2, 6, 6))
    expected = np.ones((2, 8, 8))
    expected[last] = -1
    np.testing.assert_array_equal(target[...], expected)


def test_every_crop_of_a_threaded_loop_is_written():
    image = np.random.default_rng(0).random(14)
    slices = tw.Slicer(image, 12, 3)  # two destinations overlap, of which one is a chunk
    for _ in range(40):
        output = zarr.create_array({}, shape=(14,), dtype="f8", chunks=(10,))

        def put(number, out):
            values, source, destination = slices[number]
            out[destination] = values[source]

        with slices.writer(output) as out, ThreadPoolExecutor(3) as pool:
            list(pool.map(put, (2, 1, 0), [out] * 3))
        np.testing.assert_array_equal(output[...], image)


def test_plan_reads_the_same_crops():
    slices = tw.Slicer(np.zeros((3, 50, 40)), (16, 12), (3, 2))
    plan = slices.plan
    starts = {tuple(d.start for d in place[1:]) for _, _, place in slices}
    assert len(plan) == len(slices) == len(starts)
    assert tw.TilePlan.from_json(plan.to_json()) == plan
    assert "tiles" in plan.explain()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((8,), (4,)), tw.GridError, "axis 1.*Reduce overlap"),
        (((8.5,), (2,)), TypeError, "crop"),
        (((8,), (2, 2)), tw.GridError, "overlap needs one number"),
        (((8, 8, 8), (2, 2, 2)), tw.GridError, "2 axes"),
        (((8,), (-1,)), tw.GridError, "overlap"),
        (((8,), (2,), 0), tw.TilingError, "batch_size"),
        (((8,), (2,), 1.5), TypeError, "batch_size"),
        (((8,), (2,), 1, True, -4), tw.GridError, "stride_offset.*axis 1"),
        (((8,), (2,), 1, True, 0.5), TypeError, "stride_offset"),
        (((8,), (2,), 1, True, 0, "x"), TypeError, "output_transform"),
    ],
)
def test_F1_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        tw.Slicer(np.zeros((20, 20)), *arguments)


def test_F1_one_length_for_channels_and_scales_that_do_not_fit():
    with pytest.raises(tw.GridError, match="axis 0 has extent 3"):
        tw.Slicer(np.zeros((3, 40, 40)), 8, 2)
    with pytest.raises(tw.GridError, match=r"multiples of 4.*got 15 on axis 0"):
        tw.Slicer(np.zeros(60), 15, 2, scale=Fraction(1, 4))
    with pytest.raises(tw.GridError, match=r"multiples of 4.*got -2 on axis 0"):
        tw.Slicer(np.zeros(60), 16, 2, scale=Fraction(1, 4))


def test_F1_a_list_is_no_image_and_words_are_corrected():
    with pytest.raises(TypeError, match="shape, dtype"):
        tw.Slicer([[1, 2]], (2,), (0,))
    with pytest.raises(tw.TilingError, match="did you mean 'wrap'"):
        tw.Slicer(np.zeros(20), 8, 2, boundary="periodic")
    with pytest.raises(tw.TilingError, match="cannot be held"):
        tw.Slicer(np.zeros(20, np.uint8), 8, 2, boundary="constant", cval=300)
