"""Decoded chunks: shared where they are proven to be the store's, never between computations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tests.store_counts import counted_codecs
from tilework.engine.spec import Spec
from tilework.source import kept
from tilework.source.kept import Uses
from tilework.source.opening import open_source
from tilework.source.stamps import TICK, seen
from tilework.writing import sink
from tilework.writing.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHAPE, CHUNKS = (128, 96), (16, 24)
IMAGE = np.arange(SHAPE[0] * SHAPE[1], dtype="f4").reshape(SHAPE)


class Plain(zarr.storage.WrapperStore):
    """A wrapper without state."""


class Counting(zarr.storage.WrapperStore):
    """A wrapper that counts reads of chunks."""

    def __init__(self, store: Any, reads: list[str] | None = None) -> None:
        super().__init__(store)
        self.reads: list[str] = [] if reads is None else reads

    def _with_store(self, store: Any) -> Counting:
        return Counting(store, self.reads)

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if not key.endswith((".json", ".zarray", ".zattrs")):
            self.reads.append(key)
        return await super().get(key, *args, **kwargs)


def filesystem(url: str) -> Any:
    return zarr.storage.FsspecStore.from_url(url, storage_options={"auto_mkdir": True})


STORES: dict[str, Callable[[Path], Any]] = {
    "local": lambda f: str(f / "a.zarr"),
    "memory": lambda _: zarr.storage.MemoryStore(),
    "memory URL": lambda f: f"memory://{f.name}.zarr",
    "local URL": lambda f: filesystem(f"local://{f}/a.zarr"),
    "wrapped memory": lambda _: Plain(zarr.storage.MemoryStore()),
    "wrapped local": lambda f: Plain(zarr.storage.LocalStore(f / "a.zarr")),
}
if importlib.util.find_spec("obstore"):
    STORES["obstore"] = lambda f: zarr.storage.ObjectStore(
        importlib.import_module("obstore.store").LocalStore(str(f))
    )


@pytest.fixture(params=STORES)
def array(request: pytest.FixtureRequest, tmp_path: Path) -> zarr.Array:
    store = STORES[request.param](tmp_path)
    return zarr.create_array(store, data=np.zeros(SHAPE, "f4"), chunks=CHUNKS)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    tw.clear_caches()
    yield
    tw.clear_caches()


@pytest.fixture
def local_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the chunks that are read from folders."""
    return watched(monkeypatch, zarr.storage.LocalStore)


def watched(monkeypatch: pytest.MonkeyPatch, kind: Any) -> list[str]:
    reads: list[str] = []
    get = kind.get

    async def note(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if not key.endswith((".json", ".zarray", ".zattrs")):
            reads.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(kind, "get", note)
    return reads


def plus_one(array: Any, **options: Any) -> Any:
    return tw.tiled_map(lambda x: x + 1, array, 37, 5, dtype="f4", **{"chunks": 40} | options)


# -- computations see the store as it is -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_adding_one_in_place_four_times_adds_four(array: zarr.Array, threads: int) -> None:
    for _ in range(4):
        part = plus_one(array)[:100, :90]
        array[:100, :90] = part.compute(scheduler="threads", num_workers=threads)
    assert np.unique(array[:100, :90]).tolist() == [4]
    assert np.unique(array[100:]).tolist() == [0]


def test_one_graph_and_new_ones_see_rewritten_data(array: zarr.Array) -> None:
    same = plus_one(array)
    for value in (3, -1, 7):
        array[:] = value
        for out in (same, plus_one(array), plus_one(array, blend="max", chunks=24)):
            assert np.unique(out[:50, :50].compute()).tolist() == [value + 1]


@pytest.mark.sample(2)
def test_loops_and_views_see_rewritten_data(array: zarr.Array) -> None:
    view = tw.view(plus_one(array), cache=0, verbose=False)
    sampler = tw.GridSampler(array, SHAPE, (32, 32), (16, 16))
    crops = []
    for value, (crop, *_) in enumerate(tw.Slicer(array, 32, 8), 1):
        crops.append(crop)
        array[:] = value
        assert (view[:40, :40] == value + 1).all()
        assert (sampler[0][0] == value).all()
    assert [np.unique(crop).tolist() for crop in crops] == [[k] for k in range(len(crops))]


def test_a_rewritten_zip_is_seen_by_a_new_result(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        with zarr.storage.ZipStore(tmp_path / "a.zip", mode="w") as store:
            zarr.create_array(store, data=np.full(SHAPE, value, "f4"), chunks=CHUNKS)
        stored = zarr.open_array(zarr.storage.ZipStore(tmp_path / "a.zip", mode="r"), mode="r")
        assert np.unique(plus_one(stored)[:50].compute()).tolist() == [value + 1]


@pytest.mark.parametrize("options", [{}, {"shards": (32, 48)}, {"zarr_format": 2}], ids=str)
def test_a_rewrite_of_equal_size_within_a_tick_is_seen(options: dict[str, Any], tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, dtype="f4", chunks=CHUNKS, compressors=None, **options
    )
    out = plus_one(array)
    for value in range(1, 12):
        array[:] = value
        assert np.unique(out[:50, :50].compute()).tolist() == [value + 1]


def test_a_rewrite_that_keeps_inode_size_and_time_is_seen(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=CHUNKS, compressors=None)
    out = plus_one(array)
    np.testing.assert_array_equal(out[:20, :20].compute(), IMAGE[:20, :20] + 1)
    file = tmp_path / "a.zarr" / "c" / "1" / "2"  # the next block needs it, so it is kept
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(np.full(CHUNKS, 5, "f4").tobytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (out[17:30, 50:70].compute() == 6).all()


def test_chunks_that_are_not_there_are_known_until_they_are_written(
    tmp_path: Path, local_reads: list[str]
) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="f4", chunks=CHUNKS, fill_value=8)
    out = plus_one(array)
    assert (out.compute() == 9).all()
    assert len(local_reads) == len(set(local_reads)) == array.nchunks
    assert (out[:20, :20].compute() == 9).all()
    array[:] = 1
    assert (out.compute() == 2).all()
    array[:] = 8  # deletes the files
    assert (out.compute() == 9).all()


def test_a_chunk_that_is_rewritten_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=np.ones(SHAPE, "f4"), chunks=CHUNKS)
    get = zarr.storage.LocalStore.get
    rewritten = threading.Event()

    async def slow(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        found = await get(self, key, *args, **kwargs)
        if key.endswith("c/1/2") and not rewritten.is_set():
            rewritten.set()
            other = (tmp_path / "a.zarr" / "c" / "0" / "1").read_bytes()
            (tmp_path / "a.zarr" / "c" / "1" / "2").write_bytes(other)
        return found

    array[:16, 24:48] = 3
    monkeypatch.setattr(zarr.storage.LocalStore, "get", slow)
    out = plus_one(array)
    out[:20, :20].compute()
    assert rewritten.is_set()
    kept_now = {key[1] for key in kept.CHUNKS._entries}
    assert (0, 2) in kept_now
    assert (1, 2) not in kept_now
    assert (out[17:30, 50:70].compute() == 4).all()


@pytest.mark.parametrize("change", ["rewritten", "replaced", "deleted", "touched", "grown"])
def test_a_stamp_shows_every_change(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1234")
    time.sleep(TICK / 1e9)
    before, wait = seen(str(file))
    assert before is not None
    assert wait == 0
    if change == "rewritten":
        file.write_bytes(b"4321")
    elif change == "replaced":
        (tmp_path / "b").write_bytes(b"4321")
        os.utime(tmp_path / "b", ns=(0, before[2]))
        (tmp_path / "b").replace(file)
    elif change == "deleted":
        file.unlink()
    elif change == "touched":
        os.utime(file, ns=(0, 10**18))
    else:
        file.write_bytes(b"12345")
    if change != "deleted":
        now = file.stat().st_ctime_ns  # the machine may be busy for longer than a tick
        monkeypatch.setattr(time, "time_ns", lambda: now)
    after, wait = seen(str(file))
    assert after != before
    assert (wait > 0) == (change != "deleted"), "a file that changed just now proves nothing yet"


def test_a_file_of_a_coarse_clock_proves_nothing_for_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    real = (tmp_path / "a").stat()
    second = real.st_mtime_ns // 10**9 * 10**9

    class Coarse:
        st_ino, st_size, st_mtime_ns, st_ctime_ns = real.st_ino, 1, second, second

    monkeypatch.setattr(os, "stat", lambda _: Coarse)
    monkeypatch.setattr(time, "time_ns", lambda: second + 10**9)
    assert seen(str(tmp_path / "a"))[1] == 10**9
    monkeypatch.setattr(time, "time_ns", lambda: second + 2 * 10**9)
    assert seen(str(tmp_path / "a"))[1] == 0


# -- and decode a chunk once where that can be proven -------------------------------------------------------


def test_a_run_decodes_the_chunks_of_a_url_once_and_the_next_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}-run.zarr"
    array = zarr.create_array(url, data=IMAGE, chunks=CHUNKS, overwrite=True)
    reads = watched(monkeypatch, zarr.storage.FsspecStore)
    out = plus_one(url, chunks=(40, 96))
    for factor in (1, 2):
        array[:] = factor * IMAGE
        reads.clear()
        target = tw.to_zarr(out, tmp_path / f"{factor}.zarr", progress=False, scheduler="threads")
        np.testing.assert_array_equal(target[:], factor * IMAGE + 1)
        # A record would tell that another run is not done with the source.
        assert sorted(set(reads)) == sorted(reads)
        assert sum(key.startswith("c/") for key in reads) == array.nchunks == len(reads) - 1
        assert kept.CHUNKS.nbytes == 0


def test_a_chunk_without_stamp_belongs_to_one_run(tmp_path: Path) -> None:
    """Other processes may keep chunks of a run after its end."""
    url = f"memory://{tmp_path.name}-one.zarr"
    array = zarr.create_array(url, data=np.zeros(SHAPE, "f4"), chunks=CHUNKS, overwrite=True)
    uses = Uses.product([np.full(8, 9), np.full(4, 9)])

    def read(source: Any, run: str | None) -> list[float]:
        with kept.task(run):
            found: list[float] = np.unique(source.read_shared([(0, 20), (0, 20)], uses, 10**6)).tolist()
            return found

    ours, given = open_source(url), open_source(array)
    assert read(ours, "a") == read(given, "a") == [0]
    array[:] = 1
    assert read(ours, "a") == [0], "a run reads a chunk once"
    assert read(ours, "b") == read(ours, None) == [1]
    assert read(given, "a") == read(given, None) == [1], "an array of the user may be written to"


def test_without_a_run_or_with_an_array_of_the_user_each_task_decodes_for_itself(tmp_path: Path) -> None:
    store = Counting(zarr.storage.MemoryStore())
    array = zarr.create_array(store, data=IMAGE, chunks=CHUNKS)
    out = plus_one(array, chunks=(40, 96))
    np.testing.assert_array_equal(out.compute(), IMAGE + 1)
    assert len(set(store.reads)) == array.nchunks < len(store.reads)
    store.reads.clear()
    tw.to_zarr(out, tmp_path / "o.zarr", progress=False)
    assert len(set(store.reads) - {".tilework/record"}) == array.nchunks < len(store.reads) - 1


def test_one_task_decodes_a_chunk_once_whatever_the_store() -> None:
    """The crops of a task are read one by one where their hull is far larger."""
    store = Counting(zarr.storage.MemoryStore())
    array = zarr.create_array(store, data=np.arange(400, dtype="f4"), chunks=100)
    mask = np.zeros(400, bool)
    mask[[5, 12, 392]] = True
    out = tw.tiled_map(np.negative, array, 10, 1, dtype="f4", chunks=400, mask=mask)
    out.compute()
    assert sorted(store.reads) == ["c/0", "c/3"]
    assert kept.CHUNKS.nbytes == 0


def test_a_delayed_run_that_is_computed_twice_reads_twice(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-delayed.zarr"
    array = zarr.create_array(url, data=np.zeros(SHAPE, "f4"), chunks=CHUNKS, overwrite=True)
    later = tw.to_zarr(plus_one(url), tmp_path / "o.zarr", compute=False)
    arguments = [a for node in later.dask.values() for a in getattr(node, "args", ())]
    specs = [a.value for a in arguments if isinstance(getattr(a, "value", None), Spec)]
    assert [spec.run for spec in specs] == [None]
    for value in (1, 2):
        array[:] = value
        later.compute()
        written = zarr.open_array(tmp_path / "o.zarr", mode="r+")
        assert np.unique(written[:]).tolist() == [value + 1]
        Ledger(written).reset()  # what is marked would not be written again


# -- what stays --------------------------------------------------------------------------------------------


def leave_chunks(folder: Path) -> None:
    array = zarr.create_array(folder / "left.zarr", data=IMAGE, chunks=CHUNKS)
    plus_one(array)[:40].compute()
    assert kept.CHUNKS.nbytes > 0


def test_clear_caches_leaves_nothing(tmp_path: Path) -> None:
    leave_chunks(tmp_path)
    np.save(tmp_path / "a.npy", IMAGE)
    source = reopened(open_source(np.load(tmp_path / "a.npy", mmap_mode="r")))
    source.read([(0, 1), (0, 1)])
    assert len(kept.FILES) == 1
    tw.clear_caches()
    assert kept.CHUNKS.nbytes == len(kept.FILES) == 0
    assert source.read([(1, 2), (0, 1)]) == IMAGE[1, 0]


def reopened(source: Any) -> Any:
    import pickle

    return pickle.loads(pickle.dumps(source))


def test_an_idle_process_lets_everything_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (timer := kept._IDLE._timer) is not None:  # of an earlier test, which waits for its own time
        timer.cancel()
    monkeypatch.setattr(kept._IDLE, "_timer", None)
    monkeypatch.setattr(kept, "IDLE", 0.05)
    leave_chunks(tmp_path)
    until = time.monotonic() + 120
    while kept.CHUNKS.nbytes and time.monotonic() < until:
        time.sleep(0.01)
    assert kept.CHUNKS.nbytes == 0


def test_only_a_process_without_a_task_counts_as_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "IDLE", 0.0)
    with kept.task():
        leave_chunks(tmp_path)
        kept._IDLE._look()
        assert kept.CHUNKS.nbytes > 0
    kept._IDLE._look()
    assert kept.CHUNKS.nbytes == 0


def test_a_process_that_writes_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that took more than ten seconds to write lost the chunks that were kept for the next ones."""
    put = sink.write_box

    def slow(*args: Any) -> None:
        kept._IDLE._since -= 2 * kept.IDLE
        kept._IDLE._look()
        put(*args)

    monkeypatch.setattr(sink, "write_box", slow)
    array = zarr.create_array(tmp_path / "in.zarr", data=np.ones((96, 96), "f4"), chunks=(16, 16))
    out = tw.tiled_map(np.copy, tmp_path / "in.zarr", 24, 4, dtype="f4", chunks=16)
    with counted_codecs("f4") as counts:
        tw.to_zarr(out, tmp_path / "out.zarr", progress=False, scheduler="sync")
    assert counts["decoded"] == array.nchunks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_threads_of_its_parent() -> None:
    code = """
import os, signal
import tilework as tw
from tilework.source import kept
tw.clear_caches()
with kept.CHUNKS._lock, kept.FILES._lock:
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        tw.clear_caches()
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.split() == ["7"]


def test_a_run_that_fails_leaves_nothing_in_its_process(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=CHUNKS)

    def fail(crop: np.ndarray) -> np.ndarray:
        if crop.max() > 9000:
            raise ValueError("enough")
        return crop

    out = tw.tiled_map(fail, tmp_path / "a.zarr", 37, 5, dtype="f4", chunks=40)
    leave = kept.CHUNKS.nbytes
    with pytest.raises(ValueError, match="enough"):
        tw.to_zarr(out, tmp_path / "o.zarr", progress=False)
    assert kept.CHUNKS.nbytes == leave == 0
