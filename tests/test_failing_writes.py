"""The loops into outputs whose writes fail: nothing is lost in silence."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw

IMAGE = np.random.default_rng(0).random((96, 96)).astype("f4")


class Fails:
    """An array whose writes fail at the given numbers, after a part of them was written."""

    def __init__(self, array: Any, at: set[int], chunks: tuple[int, ...] | None = (16, 16)) -> None:
        self.array, self.at, self.n = array, at, 0
        self.shape, self.dtype = array.shape, np.dtype(array.dtype)
        if chunks is not None:
            self.chunks = chunks
        self.lock = threading.Lock()

    def __setitem__(self, index: Any, value: Any) -> None:
        with self.lock:
            self.n += 1
            fails = self.n in self.at
        if fails:
            half = self.array[index]
            half[: len(half) // 2] = value[: len(half) // 2]
            self.array[index] = half
            raise OSError("disk full")
        self.array[index] = value

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


def numpy_like() -> Any:
    return np.zeros(IMAGE.shape, "f4")


def in_zarr() -> Any:
    return zarr.zeros(IMAGE.shape, chunks=(16, 16), dtype="f4")


def in_hdf5() -> Any:
    h5py = pytest.importorskip("h5py")
    file = h5py.File(io.BytesIO(), "w")
    return file.create_dataset("x", IMAGE.shape, "f4", chunks=(16, 16), fillvalue=0)


TARGETS = [numpy_like, in_zarr, in_hdf5]


def sampler_of(chunk: tuple[int, int] | None, step: int = 16) -> tw.GridSampler:
    more = {} if chunk is None else {"chunk_size": chunk}
    return tw.GridSampler(IMAGE, IMAGE.shape, (16, 16), (step, step), **more)


def appended(aggregator: tw.Aggregator, patches: Any, *, again: bool, kind: type[Exception] = OSError) -> int:
    """Append all patches, failed ones once more if ``again``; return the number of errors."""
    errors = 0
    for patch, box in patches:
        for _ in range(2 if again else 1):
            try:
                aggregator.append(patch, box)
                break
            except kind:
                errors += 1
    return errors


def outcome(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.sample(1, whole=54)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("chunks", [(16, 16), (24, 16), None], ids=str)
@pytest.mark.parametrize("chunk", [(16, 16), (32, 32), None], ids=str)
@pytest.mark.parametrize("step", [16, 8])
@pytest.mark.parametrize("again", [False, True])
def test_a_write_that_fails_loses_nothing(
    target: Any, chunks: Any, chunk: Any, step: int, again: bool
) -> None:
    """Whole blocks, blocks that do not fit the chunks, one canvas; repeated by the user or not."""
    for at in ({1}, {3}, {2, 3, 4}):
        output = Fails(target(), set(at), chunks)
        sampler = sampler_of(chunk, step)
        aggregator = tw.Aggregator(sampler, output=output)
        errors = appended(aggregator, sampler, again=again)
        while True:
            try:
                outcome(aggregator.get_output)
                break
            except OSError:
                errors += 1
        if output.n >= max(at):
            assert errors
        assert np.allclose(output.array[...], IMAGE, rtol=1e-6), at
        assert aggregator.missing == []


@pytest.mark.parametrize("chunk", [(16, 16), (32, 32), None], ids=str)
def test_a_repeated_batch_is_not_added_twice(chunk: Any) -> None:
    output = Fails(numpy_like(), {2})
    sampler = sampler_of(chunk, 8)
    pairs = list(sampler)
    batches = [pairs[k : k + 7] for k in range(0, len(pairs), 7)]
    stacked = [(np.stack([p for p, _ in b]), np.stack([box for _, box in b])) for b in batches]
    aggregator = tw.Aggregator(sampler, output=output, has_batch_dim=True, weights="gaussian")
    assert appended(aggregator, stacked, again=True) == 1
    outcome(aggregator.get_output)
    assert np.allclose(output.array, IMAGE, rtol=1e-6)


def test_labels_that_are_copied_may_be_appended_again_after_an_error() -> None:
    image = np.arange(96 * 96).reshape(96, 96)
    sampler = tw.GridSampler(image, image.shape, (16, 16), (16, 16), chunk_size=(32, 32))
    output = Fails(np.zeros(image.shape, int), {2, 5})
    aggregator = tw.Aggregator(sampler, output=output)
    assert appended(aggregator, sampler, again=True) == 2
    outcome(aggregator.get_output)
    assert (output.array == image).all()
    with pytest.raises(tw.TilingError, match="too late"):
        aggregator.append(*sampler[0])


@pytest.mark.parametrize("chunk", [(16, 16), (32, 32), None], ids=str)
@pytest.mark.parametrize("chunks", [(16, 16), None], ids=str)
def test_what_is_accumulated_is_added_once(chunk: Any, chunks: Any) -> None:
    """A write that failed after a part of it must not add that part again."""
    base = np.full(IMAGE.shape, 100, "f4")
    output = Fails(base.copy(), {1, 4}, chunks)
    sampler = sampler_of(chunk)
    aggregator = tw.Aggregator(sampler, output=output, accumulate=True)
    appended(aggregator, sampler, again=False)
    for _ in range(3):
        try:
            outcome(aggregator.get_output)
        except OSError:
            continue
    assert np.allclose(output.array, base + IMAGE, rtol=1e-6)


def test_a_function_of_chunks_that_fails_once_loses_nothing() -> None:
    calls = 0

    def post(block: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError
        return block + 1

    sampler = sampler_of((16, 16))
    aggregator = tw.Aggregator(sampler, output_size=IMAGE.shape, chunk_postprocess_func=post)
    # Building an aggregator may call the function on zeros.
    assert appended(aggregator, sampler, again=False, kind=ZeroDivisionError) <= 1
    assert np.allclose(outcome(aggregator.get_output), IMAGE + 1)


def test_a_patch_of_a_wrong_shape_leaves_its_batch_out() -> None:
    sampler = sampler_of((16, 16))
    aggregator = tw.Aggregator(sampler, output_size=IMAGE.shape, has_batch_dim=True)
    pairs = [sampler[k] for k in range(3)]
    boxes = np.stack([box for _, box in pairs])
    with pytest.raises(tw.TilingError):
        aggregator.append(
            np.stack([p for p, _ in pairs]), boxes + np.array([[[0, 0]] * 2, [[0, 0]] * 2, [[1, 1]] * 2])
        )
    assert len(aggregator.missing) == len(sampler)


@pytest.mark.parametrize("step", [16, 8])
def test_threads_that_append_at_the_same_time(step: int) -> None:
    output = Fails(numpy_like(), {2, 3, 7, 20})
    sampler = sampler_of((16, 16), step)
    aggregator = tw.Aggregator(sampler, output=output)

    def one(k: int) -> None:
        for _ in range(5):
            try:
                aggregator.append(*sampler[k])
            except OSError:
                continue
            break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(len(sampler))))
    outcome(aggregator.get_output)
    assert np.allclose(output.array, IMAGE, rtol=1e-6)


# -- writers of loops -------------------------------------------------------------------------------------


def results(overlap: int = 2) -> tuple[tw.Slicer, Iterator[tuple[Any, Any]]]:
    slicer = tw.Slicer(IMAGE, crop_size=20, overlap=overlap)
    return slicer, ((d, c[s]) for c, s, d in slicer)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("chunks", [(16, 16), (24, 32), (96, 96)], ids=str)
@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_writer_whose_write_fails_loses_nothing(target: Any, chunks: Any, again: int) -> None:
    """Also if a part is assigned again that had not failed, before its chunk is whole."""
    output = Fails(target(), {1, 3, 4}, chunks)
    slicer, parts = results()
    writer = slicer.writer(output)
    for place, part in parts:
        for _ in range(1 + again):
            reused = part.copy()
            try:
                writer[place] = reused
                if again < 2:
                    break
            except OSError:
                pass
            finally:
                reused[:] = -1  # the caller's memory is used again
    for _ in range(4):
        try:
            writer.close()
            break
        except OSError:
            continue
    assert (output.array[...] == IMAGE).all()


def test_a_writer_raises_at_its_end_what_still_fails() -> None:
    output = Fails(numpy_like(), set(range(1000)))
    slicer, parts = results()

    def run() -> None:
        with slicer.writer(output) as writer:
            for place, part in parts:
                try:
                    writer[place] = part
                except OSError:
                    continue

    with pytest.raises(OSError, match="disk full"):
        run()


def test_chunks_that_parts_do_not_fill_keep_their_stored_samples() -> None:
    output = Fails(np.full((96, 96), 5, "f4"), {1, 2})
    slicer, parts = results()
    writer = slicer.writer(output)
    chosen = list(parts)[::2]
    for place, part in chosen:
        try:
            writer[place] = part
        except OSError:
            continue
    for _ in range(3):
        try:
            writer.close()
        except OSError:
            continue
    expected = np.full((96, 96), 5, "f4")
    for place, part in chosen:
        expected[place] = part
    assert (output.array == expected).all()


def test_threads_that_assign_the_same_parts() -> None:
    output = Fails(numpy_like(), {2, 5, 9}, (24, 32))
    slicer, parts = results()
    writer = slicer.writer(output)

    def one(item: Any) -> None:
        for _ in range(3):
            try:
                writer[item[0]] = item[1]
            except OSError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [item for item in parts for _ in range(2)]))
    writer.close()
    assert (output.array == IMAGE).all()


def test_a_part_that_comes_twice_does_not_complete_its_chunk() -> None:
    """What was never assigned keeps its stored samples."""
    output = Fails(np.full((8, 8), 5, "f4"), set(), (8, 8))
    writer = tw.Slicer(np.zeros((8, 8)), crop_size=4, overlap=0).writer(output)
    for _ in range(4):
        writer[0:4, 0:4] = np.ones((4, 4))
    assert output.n == 0
    writer.close()
    assert output.n == 1
    assert output.array[:4, :4].tolist() == np.ones((4, 4)).tolist()
    assert (output.array == 5).sum() == 48
