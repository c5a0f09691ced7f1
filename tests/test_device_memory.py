"""A device whose memory ends: let go, smaller batches, and the same result wherever it happens."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.function import device_memory
from tilework.function.device_memory import in_batches, is_out_of_memory

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
IMAGE = RNG.random((50, 44), dtype=np.float32)
TEXT = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB."


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test knows what ran out of memory in another one, and none waits for the garbage collector."""
    device_memory.LIMITS.clear()
    monkeypatch.setattr(device_memory, "gc", SimpleNamespace(collect=lambda: 0))
    yield
    device_memory.LIMITS.clear()


class Full(torch.nn.Module):  # type: ignore[misc]
    """A network on a fake device: its memory holds ``room`` crops, and some calls fail whatever they get."""

    def __init__(self, room: int = 10**6, fails: tuple[int, ...] = (), error: Any = None) -> None:
        super().__init__()
        self.room, self.fails = room, fails
        self.error = error or (lambda: torch.OutOfMemoryError(TEXT))
        self.batches: list[int] = []
        self.made: list[Any] = []
        self.kept: list[int] = []

    def forward(self, x: Any) -> Any:
        gone = [ref() is None for ref in self.made]
        self.kept.append(len(gone) - sum(gone))
        self.batches.append(len(x))
        activations = x * 2
        self.made.append(weakref.ref(activations))
        if len(x) > self.room or len(self.batches) - 1 in self.fails:
            raise self.error()
        return torch.sin(activations) + 1


def run(net: Any, batch_size: int | None = 4, **options: Any) -> np.ndarray:
    fn = tw.from_torch(net, device="cpu", add_channel=False)
    out = tw.tiled_map(fn, IMAGE, 16, 3, batch_size=batch_size, dtype="f4", chunks=IMAGE.shape, **options)
    return np.asarray(out.compute(scheduler="sync"))


WHOLE = run(Full())

# -- which errors -----------------------------------------------------------------------------------------

SURE = [
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB, max allowed: 18.00 GB)",
    "XPU out of memory. Tried to allocate 4.00 GiB",
    "HIP out of memory. Tried to allocate 4.00 GiB",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(&p)",
    "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "OOM when allocating tensor with shape[8,64] and type float on /job:localhost/task:0/device:GPU:0",
]
OTHERS = [
    "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "CUDA error: an illegal memory access was encountered",
    "OOM when allocating tensor with shape[8,64] and type float on /job:localhost/task:0/device:CPU:0",
    "Expected all tensors to be on the same device",
    "",
]


@pytest.mark.parametrize("text", SURE)
def test_the_texts_of_a_full_device_are_known(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    net = Full(room=2, error=lambda: RuntimeError(text))
    np.testing.assert_array_equal(run(net), WHOLE)


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_are_raised_as_they_are(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))
    net = Full(room=2, error=lambda: RuntimeError(text))
    with pytest.raises(RuntimeError) as caught:
        run(net)
    assert str(caught.value) == text
    assert net.batches == [4]


MAYBE = [
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "GET was unable to find an engine to execute this computation",
]


class Cuda:
    """What `torch.cuda` tells of a device, which has some free memory."""

    def __init__(self, patch: pytest.MonkeyPatch, free: int) -> None:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 80 * 2**30))


@pytest.mark.parametrize("text", MAYBE)
def test_errors_with_other_reasons_count_where_the_memory_is_full(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_out_of_memory(RuntimeError(text)), "there is no device"
    Cuda(monkeypatch, 10 * 2**30)
    assert not is_out_of_memory(RuntimeError(text))
    Cuda(monkeypatch, 100 * 2**20)
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 1, [1, 1]),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 4, [4, 4]),
        ("cuFFT error: CUFFT_ALLOC_FAILED", 4, [4, 4]),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", 1, [1, 1]),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", 4, [4, 2, 2]),
    ],
)
def test_a_library_may_only_need_what_the_cache_holds(text: str, size: int, expected: list[int]) -> None:
    """Its memory is beside that of torch: the batch stays whole if it has room when the cache is empty."""
    tried: list[int] = []

    def call(start: int, stop: int) -> int:
        tried.append(stop - start)
        if len(tried) == 1:
            raise RuntimeError(text)
        return stop - start

    options = {"crop": lambda: "a crop", "device": torch.device("cpu")}
    assert sum(in_batches(call, size, lambda: "kind", **options)) == size
    assert tried == expected
    assert ("kind" in device_memory.LIMITS) is (len(expected) > 2)


def test_a_library_that_fails_again_gets_less() -> None:
    text, tried = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", []

    def call(start: int, stop: int) -> int:
        tried.append(stop - start)
        if stop - start > 1:
            raise RuntimeError(text)
        return stop - start

    options = {"crop": lambda: "a crop", "device": torch.device("cpu")}
    assert sum(in_batches(call, 4, lambda: "kind", **options)) == 4
    assert tried == [4, 4, 2, 1, 1, 1, 1]


def test_the_class_decides_whatever_the_text_and_so_does_a_named_cause() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("full"))
    try:
        try:
            raise torch.OutOfMemoryError("full")
        except RuntimeError as error:
            raise ValueError("the model failed") from error
    except ValueError as error:
        wrapped = error
    assert is_out_of_memory(wrapped)

    class Fail(Exception):  # as in onnxruntime, whose errors are no `RuntimeError`
        pass

    assert is_out_of_memory(Fail("CUDA failure 2: out of memory ; GPU=0"))
    assert not is_out_of_memory(MemoryError("CUDA out of memory"))  # numpy's, of the host
    assert not is_out_of_memory(tw.TilingError("CUDA out of memory"))


# -- the ladder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 16])
def test_the_result_is_the_same_wherever_the_memory_ends(batch_size: int | None) -> None:
    """One call fails, each of them in turn; then two neighbours."""
    net = Full()
    np.testing.assert_array_equal(run(net, batch_size), WHOLE)
    calls = len(net.batches)
    for k in range(calls):
        device_memory.LIMITS.clear()
        net = Full(fails=(k,))
        np.testing.assert_array_equal(run(net, batch_size), WHOLE)
        assert len(net.batches) > calls


def test_the_batch_is_halved_once_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    net = Full(room=3)
    with caplog.at_level(logging.WARNING, "tilework"):
        np.testing.assert_array_equal(run(net, 8), WHOLE)
        np.testing.assert_array_equal(run(net, 8), WHOLE)
    assert net.batches[:3] == [8, 4, 2]
    assert max(net.batches[2:]) == 2
    [record] = caplog.records
    assert "cpu ran out of memory with a batch of 8 (one crop of shape (16, 16))" in record.message
    assert "batches of 2 from now on" in record.message
    # Larger crops, or another network, need other memory.
    tw.from_torch(Full(room=9), device="cpu", add_channel=False)(np.zeros((8, 20, 16), np.float32))
    other = torch.nn.Sequential(Full())
    tw.from_torch(other, device="cpu", add_channel=False)(np.zeros((8, 16, 16), np.float32))
    assert other[0].batches == [8]


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_one_crop_too_many_is_an_error_with_the_figures(batch_size: int | None) -> None:
    net = Full(room=0)
    message = r"cpu has not enough memory for one crop of shape \(16, 16\).*smaller crops"
    with pytest.raises(tw.TilingError, match=message) as caught:
        run(net, batch_size)
    assert TEXT in str(caught.value)
    assert 'device="cpu"' not in str(caught.value)
    assert net.batches[-2:] == [1, 1]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_error_tells_total_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**28, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 79 * 2**30)

    def call(start: int, stop: int) -> Any:
        raise torch.OutOfMemoryError(TEXT)

    figures = (
        "cuda:1 has not enough memory for a crop, alone, from a batch of 4; 80.0 GiB in all, 256 MiB free, 79"
        '.*choose device="cpu" yourself'
    )
    with pytest.raises(tw.TilingError, match=figures):
        in_batches(call, 4, lambda: "kind", crop=lambda: "a crop", device=torch.device("cuda:1"))


def test_what_a_failed_call_made_is_gone_before_the_next_one() -> None:
    """An exception keeps the frames that it passed, and these their tensors, while it is handled."""
    gc.disable()
    try:
        net = Full(room=1)
        np.testing.assert_array_equal(run(net, 8), WHOLE)
        assert net.batches[:4] == [8, 4, 2, 1]
        assert not any(net.kept)
    finally:
        gc.enable()
    net = Full(room=0)
    with pytest.raises(tw.TilingError):
        run(net, 8)
    assert not any(net.kept)
    assert all(ref() is None for ref in net.made)


def test_a_network_of_a_fixed_batch_says_so() -> None:
    class Fixed(Full):
        def forward(self, x: Any) -> Any:
            assert len(x) == 4, "Guard failed: x.size()[0] == 4"
            return super().forward(x)

    batch = np.zeros((4, 16, 16), np.float32)
    with pytest.raises(AssertionError, match="Guard failed") as caught:
        tw.from_torch(Fixed(room=3), device="cpu", add_channel=False)(batch)
    assert any("run out of memory with a batch of 4" in note for note in caught.value.__notes__)
    assert not device_memory.LIMITS
    net = Fixed()
    for _ in range(2):
        assert tw.from_torch(net, device="cpu", add_channel=False)(batch).shape == (4, 16, 16)


def test_several_results_and_channels_are_put_together() -> None:
    class Two(Full):
        def forward(self, x: Any) -> Any:
            y = super().forward(x)
            return {"a": y, "b": (y > 1)[:, None].expand(-1, 3, -1, -1)}

    image = np.stack([IMAGE] * 2)
    outs = {"a": tw.Output("f4"), "b": tw.Output(bool, channels=3)}
    found = []
    for room in (100, 1):
        fn = tw.from_torch(Two(room), device="cpu", add_channel=False)
        out = tw.tiled_map(fn, image[0], 16, 3, output=outs, batch_size=5)
        found.append([out[k].compute(scheduler="sync") for k in "ab"])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_modes_of_the_network_are_as_they_were() -> None:
    net = Full(room=1).train()
    run(net, 4)
    assert net.training


def test_variants_of_a_crop_are_a_batch_as_well() -> None:
    """Eight in a call, of which memory holds three."""
    net = Full(room=3)
    fn = tw.augmented(tw.from_torch(net, device="cpu", add_channel=False), flips="all", rotations=(0, 1))
    out = tw.tiled_map(fn, IMAGE, 16, 3, dtype="f4", chunks=IMAGE.shape)
    np.testing.assert_allclose(out.compute(scheduler="sync"), WHOLE, rtol=1e-6)
    assert net.batches[:3] == [8, 4, 2]
    assert max(net.batches[2:]) == 2


# -- functions of other libraries -------------------------------------------------------------------------


class Device:
    """A function of numpy batches that uses a device by itself, and writes into what it gets."""

    def __init__(self, room: int = 100, fails: tuple[int, ...] = ()) -> None:
        self.room, self.fails, self.batches = room, fails, list[int]()

    def __call__(self, batch: np.ndarray, tiles: Any = None) -> np.ndarray:
        batch *= 2
        self.batches.append(len(batch))
        if tiles is not None:
            assert len(tiles) == len(batch)
        if len(batch) > self.room or len(self.batches) - 1 in self.fails:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return np.sin(batch) + 1


@pytest.mark.parametrize("pass_tile", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "fill"])
def test_any_function_of_batches_gets_smaller_ones(pass_tile: bool, on_error: str) -> None:
    def mapped(fn: Any) -> np.ndarray:
        out = tw.tiled_map(fn, IMAGE, 16, 3, batch_size=4, dtype="f4", pass_tile=pass_tile)
        store = tw.to_zarr(out, {}, on_error=on_error, progress=False, version="1", scheduler="sync")
        return np.asarray(store[...])

    fn = Device()
    whole = mapped(fn)
    for k in range(len(fn.batches)):
        device_memory.LIMITS.clear()
        np.testing.assert_array_equal(mapped(Device(fails=(k,))), whole)
    few = Device(room=2)
    np.testing.assert_array_equal(mapped(few), whole)
    assert few.batches.count(4) == 1


def test_smaller_crops_keep_their_batches() -> None:
    sizes: dict[Any, set[int]] = {}

    def fn(batch: np.ndarray) -> np.ndarray:
        if batch.size > 16 * 16:
            raise torch.OutOfMemoryError(TEXT)
        sizes.setdefault(batch.shape[1:], set()).add(len(batch))
        return batch

    out = tw.tiled_map(fn, IMAGE, 16, 0, batch_size=4, dtype="f4", edge="clip", chunks=IMAGE.shape)
    np.testing.assert_array_equal(out.compute(scheduler="sync"), IMAGE)
    assert max(sizes[16, 16]) == 1
    assert max(sizes[2, 16]) == 2  # all that there are


def test_what_runs_out_of_memory_elsewhere_changes_no_batch() -> None:
    def fn(batch: np.ndarray) -> np.ndarray:
        assert len(batch) == 8
        return batch * 2

    device_memory.LIMITS["another"] = 1, None
    out = tw.tiled_map(fn, IMAGE, 16, 3, batch_size=8, pad_batch=True, dtype="f4", chunks=30)
    np.testing.assert_array_equal(out.compute(scheduler="sync"), IMAGE * 2)


def test_what_load_once_builds_gets_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    fn = tw.load_once(Device, kwargs={"room": 1})
    expected = np.sin(IMAGE * 2) + 1
    for _ in range(2):
        out = tw.tiled_map(fn, IMAGE, 16, 3, batch_size=6, dtype="f4", chunks=IMAGE.shape)
        np.testing.assert_array_equal(out.compute(scheduler="sync"), expected)
    assert [b for b in fn.get().batches if b > 1] == [6, 3]
    assert len(caplog.records) == 1
    none = tw.load_once(Device, kwargs={"room": 0})
    with pytest.raises(tw.TilingError, match=r"not enough memory for fn with a crop of shape \(16, 16\)"):
        tw.tiled_map(none, IMAGE, 16, 3, batch_size=6, dtype="f4").compute(scheduler="sync")


def test_a_function_without_batches_says_what_to_do() -> None:
    def fn(crop: np.ndarray) -> np.ndarray:
        raise torch.OutOfMemoryError(TEXT)

    with pytest.raises(tw.TilingError, match="not enough memory for fn with a crop"):
        tw.tiled_map(fn, IMAGE, 16, 3, dtype="f4").compute(scheduler="sync")


def test_a_crop_that_may_have_been_written_into_is_not_used_again() -> None:
    calls: list[int] = []

    def fn(crop: np.ndarray) -> np.ndarray:
        crop *= 2
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError(TEXT)
        return crop

    with pytest.raises(tw.TilingError, match="not enough memory for fn with a crop"):
        tw.tiled_map(fn, IMAGE, 16, 3, dtype="f4").compute(scheduler="sync")
    assert len(calls) == 5


def test_threads_learn_of_each_other() -> None:
    net = Full(room=2)
    fn = tw.from_torch(net, device="cpu", add_channel=False)
    out = tw.tiled_map(fn, IMAGE, 16, 3, batch_size=8, dtype="f4", chunks=22)
    np.testing.assert_array_equal(out.compute(scheduler="threads", num_workers=4), WHOLE)
    assert [b for b in net.batches if b > 2] in ([8, 4], [8, 4, 3], [6, 3], [4], [8])


def test_every_crop_of_a_batch_may_be_repeated_once() -> None:
    net = Full(room=1, fails=(3, 5))  # after batches of 4 and 2: the second crop and the third
    np.testing.assert_array_equal(run(net), WHOLE)
    assert net.batches[:7] == [4, 2, 1, 1, 1, 1, 1]
    with pytest.raises(tw.TilingError, match="not enough memory"):
        run(Full(room=1, fails=(3, 4)))


def test_what_another_thread_found_meanwhile_stays() -> None:
    def call(start: int, stop: int) -> int:
        if stop - start > 2:
            raise torch.OutOfMemoryError(TEXT)
        if not start:
            device_memory.LIMITS["kind"] = 1, None
        return stop

    found = device_memory.in_batches(call, 4, lambda: "kind", crop=lambda: "a crop")
    assert found == [2, 4]
    assert device_memory.LIMITS["kind"][0] == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_KINDS", 8)

    def call(start: int, stop: int) -> int:
        if stop - start > 1:
            raise torch.OutOfMemoryError(TEXT)
        return start

    for k in range(12):
        assert in_batches(call, 2, lambda k=k: k, crop=lambda: "a crop") == [0, 1]
    assert len(device_memory.LIMITS) == 8
