"""Boxes of Zarr arrays, read and written in the calling thread: the same objects as zarr's threads make."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from tilework import tiled_map, to_zarr
from tilework.source import zarr_requests
from tilework.source.zarr_requests import at_work, read_box, write_box

SHAPE, CHUNKS = (12, 10), (4, 5)
COMPRESSORS: dict[str, Any] = {
    "none": None,
    "zstd": ZstdCodec(),
    "blosc": BloscCodec(cname="lz4"),
    "zstd and crc": [ZstdCodec(), Crc32cCodec()],  # gzip writes the time into its header
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_requests, "n_threads", lambda: 1)


def objects_of(folder: Any) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed`")
@given(
    dtype=st.sampled_from(["float32", "float64", "uint8", "int16", "bool", "complex64", ">f4"]),
    compressors=st.sampled_from(sorted(COMPRESSORS)),
    layout=st.sampled_from(
        ["chunks", "shards", "version 2", "transposed", "coded shards", "shards in shards"]
    ),
    fill=st.sampled_from([0, 1, "nan"]),
    keep_empty=st.booleans(),
    box=st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in SHAPE)),
    values=st.sampled_from(["zeros", "ones", "fill", "mixed", "some chunks"]),
    seed=st.integers(0, 2**16),
)
def test_both_ways_make_the_same_objects_and_read_the_same_samples(
    dtype: str, compressors: str, layout: str, fill: Any, keep_empty: bool, box: Any, values: str, seed: int
) -> None:
    kind = np.dtype(dtype)
    fill_value = kind.type(np.nan if fill == "nan" and kind.kind in "fc" else 1 if fill == 1 else 0)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 2, SHAPE).astype(kind)
    if values != "mixed":
        number = 1 if values == "ones" else 0 if values == "zeros" else fill_value
        data[: 8 if values == "some chunks" else None] = number
    options: dict[str, Any] = {"compressors": COMPRESSORS[compressors]}
    inner = ShardingCodec(chunk_shape=(2, 5), codecs=[BytesCodec(), ZstdCodec()])
    if layout in ("coded shards", "shards in shards"):
        nested = (
            [inner, ZstdCodec()]
            if layout == "coded shards"
            else [ShardingCodec(chunk_shape=(4, 5), codecs=[inner])]
        )
        options = {"codecs": nested, "zarr_format": 3}
    if layout == "shards":
        options["shards"] = (8, 10)
    if layout == "transposed":
        options["filters"] = [TransposeCodec(order=(1, 0))]
    if layout == "version 2":
        options = {"zarr_format": 2}
    index = tuple(slice(a, b) for a, b in box)
    create = zarr.create if "codecs" in options else zarr.create_array
    stores = []
    for write in (write_box, zarr.Array.__setitem__):
        with tempfile.TemporaryDirectory() as folder:
            array = create(
                store=folder, shape=SHAPE, chunks=(8, 10) if "codecs" in options else CHUNKS, dtype=kind,
                fill_value=fill_value, config={"write_empty_chunks": keep_empty}, **options,
            )  # fmt: skip
            with at_work():
                write(array, index, data[index])
                write(array, (slice(None), slice(0, 5)), data[:, :5])
                write(array, (slice(0, 8), slice(0, 10)), data[:8])
                np.testing.assert_array_equal(read_box(array, index), array[index])
            stores.append(objects_of(folder))
    assert stores[0] == stores[1]


def test_a_chunk_is_read_and_written_by_the_thread_that_asks(tmp_path: Any) -> None:
    threads = set()

    class Told(np.ndarray):
        """An array that notes which threads look at it."""

        def __array_finalize__(self, other: Any) -> None:
            threads.add(threading.get_ident())

    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=CHUNKS, dtype="float32")
    write_box(array, (slice(0, 4), slice(0, 5)), np.ones((4, 5), "float32").view(Told))
    assert threads == {threading.get_ident()}
    assert (array[:4, :5] == 1).all()


class OwnStore(zarr.storage.LocalStore):
    """A store of which nothing is known."""


class OwnArray(zarr.Array):  # type: ignore[type-arg]
    """An array of which nothing is known."""


class OwnCodec(GzipCodec):
    """A codec of which nothing is known."""


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []
    run = zarr_requests._run
    monkeypatch.setattr(zarr_requests, "_run", lambda coroutine: ran.append(1) or run(coroutine))
    return ran


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "what", ["folder", "memory", "own store", "own array", "own codec", "own inner codec"]
)
def test_only_what_waits_for_nothing_is_asked_in_the_thread(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = OwnStore(tmp_path) if what == "own store" else tmp_path
    store = zarr.storage.MemoryStore() if what == "memory" else store
    options: dict[str, Any] = {"compressors": OwnCodec()} if "codec" in what else {}
    if what == "own inner codec":
        options["shards"] = (8, 10)
    array = zarr.create_array(store, shape=SHAPE, chunks=CHUNKS, dtype="float32", **options)
    if what == "own array":
        array = OwnArray(array.async_array)
    ran = count_runs(monkeypatch)
    with at_work():
        write_box(array, (slice(0, 12), slice(0, 10)), np.ones(SHAPE, "float32"))
        assert (read_box(array, (slice(0, 12), slice(0, 10))) == 1).all()
    assert len(ran) == (2 if what == "folder" else 0)


def test_several_chunks_are_left_to_zarrs_threads_while_a_core_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_requests, "n_threads", lambda: 2)
    array = zarr.create_array(tmp_path, shape=SHAPE, chunks=CHUNKS, dtype="float32")
    ran = count_runs(monkeypatch)
    whole, one = (slice(0, 12), slice(0, 10)), (slice(0, 4), slice(5, 10))
    read_box(array, one)
    assert len(ran) == 1
    with at_work(), at_work():
        read_box(array, whole)
        assert len(ran) == 1
        begun, done = threading.Event(), threading.Event()

        def other() -> None:
            with at_work():
                begun.set()
                done.wait(60)

        thread = threading.Thread(target=other)
        thread.start()
        begun.wait(60)
        read_box(array, whole)
        assert len(ran) == 2
        done.set()
        thread.join()
        read_box(array, whole)
    assert len(ran) == 2
    assert zarr_requests._WORK.busy == 0


@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
@pytest.mark.parametrize("compressors", [ZstdCodec(), BloscCodec(), None], ids=["zstd", "blosc", "bytes"])
@pytest.mark.parametrize("shards", [None, (128, 512)], ids=["chunks", "shards"])
def test_a_box_of_many_units_takes_the_memory_of_few(
    tmp_path: Path, shards: Any, compressors: Any, write: bool
) -> None:
    data = np.random.default_rng(0).random((1024, 1024)).astype("f4")
    array = zarr.create_array(
        tmp_path / "a.zarr", data=data, chunks=(128, 128), shards=shards, compressors=compressors
    )
    unit, box = 4 * 128 * (128 if shards is None else 512), (slice(None),) * 2
    with at_work():
        read_box(array, box)  # what is imported and kept
        tracemalloc.start()
        try:
            if write:
                write_box(array, box, data)
            else:
                result = read_box(array, box)
            peak = tracemalloc.get_traced_memory()[1] - (0 if write else result.nbytes)
        finally:
            tracemalloc.stop()
    assert peak < 4 * unit + 2**18  # of 64 chunks or 16 shards


def test_a_thread_with_an_event_loop_asks_zarr(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path, shape=SHAPE, chunks=CHUNKS, dtype="float32")
    box, data = (slice(0, 12), slice(0, 10)), np.arange(120, dtype="float32").reshape(SHAPE)

    async def main() -> np.ndarray:
        with at_work():
            write_box(array, box, data)
            return read_box(array, box)

    np.testing.assert_array_equal(asyncio.run(main()), data)


def gzipped(folder: Path, n: int) -> zarr.Array:
    """Return an array of ``n`` x ``n`` chunks of one sample."""
    return zarr.create_array(
        folder, shape=(n, n), chunks=(1, 1), dtype="float32", compressors=GzipCodec(), fill_value=0
    )


def test_a_codec_may_run_coroutines_and_an_error_ends_the_other_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, calls, encode = gzipped(tmp_path, 10), [], GzipCodec._encode_sync

    def encoded(self: GzipCodec, *args: Any) -> Any:
        asyncio.run(asyncio.sleep(0))
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("no")
        return encode(self, *args)

    monkeypatch.setattr(GzipCodec, "_encode_sync", encoded)
    with at_work(), pytest.raises(RuntimeError, match=r"^no$"):
        write_box(array, (slice(0, 10), slice(0, 10)), np.ones((10, 10), "float32"))
    assert len(calls) < 40, "hardly any chunk is coded after the error"


@pytest.mark.parametrize("always", [False, True])
def test_an_interrupt_of_many_chunks_ends_the_request(
    always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, calls, encode = gzipped(tmp_path, 10), [], GzipCodec._encode_sync

    def encoded(self: GzipCodec, *args: Any) -> Any:
        calls.append(1)
        if always or len(calls) == 7:
            raise KeyboardInterrupt
        return encode(self, *args)

    monkeypatch.setattr(GzipCodec, "_encode_sync", encoded)
    with at_work(), pytest.raises(KeyboardInterrupt):
        write_box(array, (slice(0, 10), slice(0, 10)), np.ones((10, 10), "float32"))
    assert zarr_requests._WORK.busy == 0


def test_nothing_of_a_request_waits_for_the_garbage_collector(tmp_path: Path) -> None:
    array = gzipped(tmp_path, 4)
    box = (slice(0, 4), slice(0, 4))
    gc.collect()
    gc.disable()
    try:
        with at_work():
            for _ in range(5):
                read_box(array, box)  # chunks that are missing are errors inside of zarr
                write_box(array, box, np.ones((4, 4), "float32"))
                read_box(array, box)
        left = [one for one in gc.get_objects() if type(one) is zarr_requests._Loop]
        assert not left
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_knows_no_tasks_of_its_parent() -> None:
    code = """
import os
from tilework.source import zarr_requests
with zarr_requests.at_work():
    zarr_requests._WORK._lock.acquire()
    child = os.fork()
    if not child:
        with zarr_requests.at_work():
            os._exit(zarr_requests._WORK.busy - 1)
    zarr_requests._WORK._lock.release()
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    array = zarr.create_array(tmp_path, shape=SHAPE, chunks=CHUNKS, dtype="float32", compressors=GzipCodec())

    def encoded(self: GzipCodec, *args: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(GzipCodec, "_encode_sync", encoded)
        with pytest.raises(error):
            write_box(array, (slice(0, 4), slice(0, 5)), np.ones((4, 5), "float32"))
    write_box(array, (slice(0, 4), slice(0, 5)), np.ones((4, 5), "float32"))
    assert (array[:4, :5] == 1).all()


def test_what_is_left_of_a_request_is_ended() -> None:
    ended = []

    async def names() -> Any:
        try:
            for name in "abc":
                await asyncio.sleep(0)
                yield name
        finally:
            ended.append("list")

    async def other() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("task")

    async def main() -> str:
        asyncio.get_running_loop().create_task(other())
        await asyncio.sleep(0)
        async for name in names():
            return name
        raise AssertionError

    assert zarr_requests._run(main()) == "a"
    assert sorted(ended) == ["list", "task"]


def test_a_loop_sleeps_and_is_woken() -> None:
    async def main() -> str:
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        threading.Timer(0.01, lambda: loop.call_soon_threadsafe(future.set_result, "woken")).start()
        return await future

    assert zarr_requests._run(main()) == "woken"


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_every_scheduler_writes_the_same_objects(tmp_path: Any, scheduler: str) -> None:
    image = np.random.default_rng(0).random((40, 30), dtype="float32")
    image[:20] = 0
    found = []
    for name in ("threads", scheduler):
        out = tiled_map(np.negative, image, crop=10, overlap=2, dtype="float32")
        with dask.config.set(scheduler=name, num_workers=2):
            to_zarr(out, tmp_path / f"{name}.zarr", chunks=(10, 10), progress=False)
        root = tmp_path / f"{name}.zarr" / "c"
        found.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()})
    assert found[0] == found[1]
    assert found[0]


@given(st.data(), st.sampled_from([(12, 10), (7, 3, 5), (0, 4)]))
def test_large_chunks_are_read_a_few_at_a_time(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """However they are put together, the samples are those of the box."""
    image = np.arange(np.prod(shape), dtype="i4").reshape(shape)
    chunks = tuple(data.draw(st.integers(1, 5)) for _ in shape)
    array = zarr.create_array({}, shape=shape, chunks=chunks, dtype="i4")
    array[...] = image
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = tuple(slice(a, b) for a, b in ends)
    reads: list[tuple[int, ...]] = []
    read = zarr_requests._read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_requests, "AT_ONCE", 3 * int(np.prod(chunks)) * 4)
        patch.setattr(zarr_requests, "_read", lambda a, spans: reads.append(spans) or read(a, spans))
        np.testing.assert_array_equal(read_box(array, box), image[box])
    counts = [
        np.prod([-(-b // c) - a // c for (a, b), c in zip(spans, chunks, strict=True)]) for spans in reads
    ]
    assert all(count <= 3 for count in counts)
    wanted = [len(range(a // c, -(-b // c))) for (a, b), c in zip(ends, chunks, strict=True)]
    assert sum(counts) == np.prod(wanted)
