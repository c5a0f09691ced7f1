"""Runs that meet in one store: one writes at a time, a late task harms nobody, a dead run is taken over."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import obstore.store
import pytest
import zarr

import tilework as tw
from tilework.errors import SupersededError
from tilework.writing import claim as claims
from tilework.writing.claim import Claims, Owner
from tilework.writing.closing import _Held
from tilework.writing.ledger import Ledger, Marks, boxes_around, boxes_of
from tilework.writing.objects import Objects, dump, load
from tilework.writing.sink import Sink

IMAGE = np.arange(1, 48 * 48 + 1, dtype="f4").reshape(48, 48)


def double(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def result(fn: Any = double, **options: Any) -> Any:
    return tw.tiled_map(fn, IMAGE, 16, 0, **{"dtype": "f4", "chunks": 16} | options)


def write(out: Any, store: Any, **options: Any) -> Any:
    return tw.to_zarr(
        out, store, **{"chunks": 16, "progress": False, "scheduler": "synchronous", "version": "1"} | options
    )


def objects_of(store: Any) -> Objects:
    return Objects.of(zarr.open(store, mode="r+").store_path)


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: zarr.storage.MemoryStore(),
    "folder": lambda path: str(path / "a.zarr"),
    "fsspec": lambda path: f"memory://{path}/a.zarr",
    "wrapped": lambda path: zarr.storage.WrapperStore(zarr.storage.LocalStore(path / "a.zarr")),
    "obstore": lambda path: zarr.storage.ObjectStore(obstore.store.MemoryStore()),
}


# -- a run that is alive ------------------------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_is_refused_while_the_first_is_alive(kind: str, overwrite: bool, tmp_path: Path) -> None:
    """Whatever it would do, and it changes nothing; then the first ends as if it had been alone."""
    store, said = STORES[kind](tmp_path), list[str]()

    def fn(crop: np.ndarray) -> np.ndarray:
        if not said:
            said.append("")
            with pytest.raises(tw.TilingError, match="being written by another run") as error:
                write(result(np.negative), store, overwrite=overwrite)
            said.append(str(error.value))
        return crop * 2

    written = write(result(fn), store)
    assert f"process {os.getpid()}" in said[1]
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    again = write(result(np.negative), store, overwrite=True)
    np.testing.assert_array_equal(again[...], -IMAGE)


def test_two_threads_that_begin_together_write_one_result() -> None:
    """One of them wins, and the others are refused or resume what it has written."""
    store, barrier, values = zarr.storage.MemoryStore(), threading.Barrier(4), list[Any]()

    def one() -> None:
        barrier.wait()
        try:
            values.append(write(result(), store, chunks=8)[...])
        except tw.TilingError as error:
            values.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [v for v in values if isinstance(v, np.ndarray)]
    assert written
    assert all(np.array_equal(v, IMAGE * 2) for v in written)
    assert all("another" in str(v) or "somebody else" in str(v) for v in values if isinstance(v, Exception))


def test_two_jobs_of_write_many_do_not_share_a_store() -> None:
    """The second is that job's error; the first is whole."""
    store = zarr.storage.MemoryStore()
    jobs = [(result(), store), (result(np.negative), store, {"version": "2"})]
    first, second = tw.write_many(jobs, chunks=16, overwrite=True, progress=False, version="1")
    assert first.ok
    if second.error is None:  # it began after the first had ended
        np.testing.assert_array_equal(zarr.open(store)[...], -IMAGE)
    else:
        assert "being written by another run" in str(second.error)
        np.testing.assert_array_equal(zarr.open(store)[...], IMAGE * 2)


CHILD = textwrap.dedent("""
    import sys, time, numpy as np, tilework as tw
    def fn(x):
        print("begun", flush=True)
        time.sleep(60)
        return x
    image = np.ones((48, 48), "f4")
    tw.to_zarr(tw.tiled_map(fn, image, 16, 0, dtype="f4", chunks=16), sys.argv[1], chunks=16, progress=False)
""")


def test_a_run_of_another_process_is_refused_while_it_lives_and_taken_over_at_once_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid and the time of its start tell, without waiting for a beat."""
    store = str(tmp_path / "a.zarr")
    process = subprocess.Popen([sys.executable, "-c", CHILD, store], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("begun")  # two threads print it
        with pytest.raises(tw.TilingError, match=f"another run \\(process {process.pid} on"):
            write(result(), store, overwrite=True)
        status = tw.status(store)
        assert f"process {process.pid}" in status.writer
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    monkeypatch.setattr(claims, "_beats", None)  # nobody is watched
    with caplog.at_level(logging.INFO, "tilework"):
        written = write(result(), store, overwrite=True)
    assert "takes over" in caplog.text
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    assert not tw.status(store).writer
    assert not [name for name in objects_of(store).names() if name in ("claim", "beat") or "after" in name]


# -- a run of another machine -------------------------------------------------------------------------------


def claimed_elsewhere(store: Any, beat: float) -> Objects:
    write(result(), store)
    objects = objects_of(store)
    owner = {"host": "elsewhere", "boot": "b", "pid": 1, "start": 2.0}
    objects.write("claim", dump({"run": "0" * 16, "owner": owner, "beat": beat}))
    return objects


@pytest.mark.sample(0)
def test_a_run_of_another_machine_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    """A beat that changes is life; one that does not for three intervals is death, by our own clock."""
    store = zarr.storage.MemoryStore()
    objects = claimed_elsewhere(store, 0.6)  # watched for three times as long
    objects.write("beat", b"5")
    end = threading.Event()

    def beat() -> None:
        number = 0
        while not end.wait(0.05):
            number += 1
            objects.write("beat", str(number).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(tw.TilingError, match=r"another run \(process 1 on elsewhere"):
            write(result(np.negative), store, overwrite=True)
    finally:
        end.set()
        thread.join()
    with caplog.at_level(logging.WARNING, "tilework"):
        written = write(result(np.negative), store, overwrite=True)
    assert "missed 3 beats and counts as dead" in caplog.text
    np.testing.assert_array_equal(written[...], -IMAGE)


def test_half_a_claim_is_watched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows whose it is."""
    monkeypatch.setattr(claims, "BEAT", 0.1)
    store = zarr.storage.MemoryStore()
    objects = claimed_elsewhere(store, 0.1)
    for text in (b"", b'{"run": "aa', b"[]", dump({"run": "x", "owner": {}, "beat": 1})):
        objects.write("claim", text)
        written = write(result(np.negative), store, overwrite=True)
        np.testing.assert_array_equal(written[...], -IMAGE)


def test_who_takes_over_half_way_and_dies_is_taken_over_too() -> None:
    store = zarr.storage.MemoryStore()
    write(result(), store)
    objects = objects_of(store)
    dead = {"host": Owner.here().host, "boot": Owner.here().boot, "pid": os.getpid(), "start": -1.0}
    for run in ("a" * 16, "b" * 16):
        objects.write("claim", dump({"run": "a" * 16, "owner": dead, "beat": 10}))
        objects.write(f"after-{'a' * 16}", dump({"run": run, "owner": dead, "beat": 10}))
        written = write(result(np.negative), store, overwrite=True)
        np.testing.assert_array_equal(written[...], -IMAGE)
        assert not any(name.startswith(("after", "claim")) for name in objects.names())


@pytest.mark.parametrize(("change", "state"), [
    ({}, "here"), ({"host": "other"}, "elsewhere"), ({"boot": "other"}, "elsewhere"),
    ({"start": 1.0}, "dead"), ({"pid": 2**22 + 1}, "dead"), ({"pid": 1, "start": 0.5}, "dead"),
])  # fmt: skip
def test_an_owner_is_known_by_host_boot_pid_and_start(change: dict[str, Any], state: str) -> None:
    here = Owner.here()
    values = {name: getattr(here, name) for name in ("host", "boot", "pid", "start")}
    assert Owner(**values | change).state() == state


# -- late tasks ---------------------------------------------------------------------------------------------


def dies() -> None:
    """Let the runs of this process count as dead, as after an interrupt."""
    Claims.active.clear()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("layout", [{}, {"chunks": 8, "shards": 16}])
def test_a_late_task_does_not_reach_the_next_result(
    when: str, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It overwrites a block of the next run and knows it at its second check: the block is computed again."""
    store, put, met = zarr.storage.MemoryStore(), Sink.put, list[Any]()

    def slow(self: Sink, part: Any) -> None:
        if met:
            put(self, part)
            return
        met.append(part.box)
        if when == "after":
            put(self, part)
        dies()
        met.append(write(result(np.negative), store, overwrite=True, **layout))
        assert tw.status(store).complete
        if when == "before":
            put(self, part)

    monkeypatch.setattr(Sink, "put", slow)
    with pytest.raises(SupersededError, match="does not belong to this run any more"):
        write(result(), store, **layout)
    monkeypatch.undo()
    status = tw.status(store)
    if when == "before":
        assert (met[1][met[0]] > 0).all()
    assert status.units - status.done == 1
    calls: list[float] = []

    def counted(crop: np.ndarray) -> np.ndarray:
        calls.append(float(crop[0, 0]))
        return -crop

    written = write(result(counted), store, **layout)
    assert calls == [IMAGE[met[0]][0, 0]]
    np.testing.assert_array_equal(written[...], -IMAGE)
    assert not any("dirty" in name for name in objects_of(store).names())


def test_a_late_task_is_seen_by_the_run_that_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run believes what it reads back at its end, not what its tasks told."""
    store = zarr.storage.MemoryStore()
    late: list[Sink] = []
    prove = Sink.prove

    def keep(self: Sink) -> None:
        late.append(self)
        prove(self)

    monkeypatch.setattr(Sink, "prove", keep)
    write(result(), store)
    monkeypatch.undo()
    old = late[0]

    def meet(crop: np.ndarray) -> np.ndarray:
        if crop[0, 0] == IMAGE[32, 32]:
            with pytest.raises(SupersededError):
                old.confirm("0.0", [(0, 0)])
        return -crop

    with pytest.raises(tw.TilingError, match=r"marks of 1 of them are not in the store.*Call again"):
        write(result(meet), store, overwrite=True)
    np.testing.assert_array_equal(write(result(meet), store)[...], -IMAGE)


def test_a_task_of_a_run_that_has_ended_writes_nothing() -> None:
    store, kept = zarr.storage.MemoryStore(), list[Any]()
    written = write(result(), store)
    [late] = [Sink(written, "0" * 16, written.attrs["tilework"]["generation"])]
    with pytest.raises(SupersededError, match="the run has ended"):
        late.prove()
    assert not kept


def test_an_interrupted_run_leaves_no_claim(tmp_path: Path, claiming: Callable[[], set[str]]) -> None:
    """Also when the function raises, or a callable for progress."""
    for error in (KeyboardInterrupt, SystemExit, RuntimeError):

        def fails(crop: np.ndarray, error: type[BaseException] = error) -> np.ndarray:
            if crop[0, 0] > 500:
                raise error
            return crop

        with pytest.raises(RuntimeError) as caught:
            write(result(fails), tmp_path / "a.zarr", version=error.__name__, overwrite=True)
        assert error in (type(caught.value), type(caught.value.__cause__))
        assert not claiming()
        assert not objects_of(str(tmp_path / "a.zarr")).exists("claim")

    def progress(done: int, total: int) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        write(result(), tmp_path / "b.zarr", progress=progress)
    assert not claiming()


def test_a_refused_call_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(tw.MemoryBudgetError):
        write(result(), tmp_path / "a.zarr", memory_limit=10)
    assert not (tmp_path / "a.zarr").exists()
    written = write(result(), tmp_path / "a.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a.zarr").rglob("*")}
    with pytest.raises(tw.TilingError, match="changed: version"):
        write(result(np.negative), tmp_path / "a.zarr", version="2")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a.zarr").rglob("*")}
    assert written.nchunks_initialized == 9


# -- a run that somebody else computes ----------------------------------------------------------------------


def test_a_delayed_run_claims_when_it_runs_and_lets_go_when_it_fails() -> None:
    store, fail = zarr.storage.MemoryStore(), [True]

    def fn(crop: np.ndarray) -> np.ndarray:
        if crop[0, 0] == IMAGE[16, 16]:
            assert objects_of(store).exists("claim")
            with pytest.raises(tw.TilingError, match="being written by another run"):
                write(result(np.negative), store, overwrite=True)
            if fail[0]:
                raise LookupError("not yet")
        return crop * 2

    later = write(result(fn), store, compute=False, scheduler=None)
    assert not objects_of(store).exists("claim")
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(LookupError):
            later.compute()
        fail[0] = False
        write(result(np.negative), store, overwrite=True)
        later = write(result(fn), store, overwrite=True, compute=False, scheduler=None)
        written = later.compute()
        np.testing.assert_array_equal(written[...], IMAGE * 2)
        assert not objects_of(store).exists("claim")
        write(result(np.negative), store, overwrite=True)
        with pytest.raises(tw.TilingError, match="overwritten after to_zarr"):
            later.compute()
    np.testing.assert_array_equal(zarr.open(store)[...], -IMAGE)


def test_a_delayed_run_writes_no_marked_unit_again() -> None:
    """Of what was resumed meanwhile, nothing is written twice."""
    store = zarr.storage.MemoryStore()
    later = write(result(), store, compute=False, scheduler=None)
    written = write(result(), store)
    written[:16, :16] = 7  # would be lost if it were written again
    later.compute(scheduler="synchronous")
    assert (written[:16, :16] == 7).all()


def test_a_finalizer_lets_claims_go_in_a_thread_of_its_own(
    monkeypatch: pytest.MonkeyPatch, claiming: Callable[[], set[str]]
) -> None:
    """The garbage collector may run inside zarr, which then waits for the thread that holds its lock."""
    threads: list[int] = []
    release, run = Claims.release, Claims()

    def note(self: Claims) -> None:
        if self.run == run.run:
            threads.append(threading.get_ident())
        release(self)

    monkeypatch.setattr(Claims, "release", note)
    written = write(result(), zarr.storage.MemoryStore())
    run.take(Ledger(written).objects, "here")
    threads.clear()
    held = _Held(run)
    del held
    # A run that comes now waits until the claim has gone, and takes it.
    later = Claims()
    later.take(Ledger(written).objects, "here")
    assert Ledger(written).objects.exists("claim")
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    later.release()
    assert not claiming()


# -- marks --------------------------------------------------------------------------------------------------


class Flaky(zarr.storage.WrapperStore):
    """Fails once at a mark of the second output; counts the writes of data."""

    def __init__(self, store: Any, state: dict[str, Any] | None = None) -> None:
        super().__init__(store)
        self.state = {"failed": 0, "writes": []} if state is None else state

    def _with_store(self, store: Any) -> Flaky:
        return Flaky(store, self.state)

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if key.startswith("1/.tilework") and "/done/1.1" in key and not self.state["failed"]:
            self.state["failed"] = 1
            raise OSError("no mark")
        if "/c/" in key:
            self.state["writes"].append(key)
        await super().set(key, *args, **kwargs)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_I2_a_marked_unit_is_not_written_again_by_a_retry(scheduler: str) -> None:
    """All outputs of a block are written, then marked; a retry leaves out the outputs that are marked."""
    store = Flaky(zarr.storage.MemoryStore())
    out = result(lambda x: (x, -x), output=(tw.Output("f4"), tw.Output("f4")), dtype=None)
    group = write(out, store, retries=1, scheduler=scheduler)
    assert store.state["failed"]
    writes = store.state["writes"]
    assert writes.count("0/c/1/1") == 1
    assert writes.count("1/c/1/1") == 2
    assert len(writes) == 19
    np.testing.assert_array_equal(group["1"][...], -IMAGE)


def test_what_the_checks_cost() -> None:
    """Two small reads a block and output on threads, one mark, and nothing that grows with the units."""
    counts = {"get": 0, "set": 0}

    class Counting(zarr.storage.WrapperStore):
        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            counts["get"] += key.endswith("claim")
            return await super().get(key, *args, **kwargs)

        async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
            counts["set"] += "/done/" in key
            await super().set(key, *args, **kwargs)

    found: list[tuple[int, int]] = []
    for chunks in (16, 8, 4):
        counts.update(get=0, set=0)
        write(result(), Counting(zarr.storage.MemoryStore()), chunks=chunks)
        found += [(counts["get"], counts["set"])]
    # 9 blocks, and a few reads of the run itself: to claim, to beat, to let go.
    assert {marks for _, marks in found} == {9}
    assert all(18 <= reads <= 18 + 4 for reads, _ in found)


def test_marks_say_what_they_said() -> None:
    """Boxes hold exactly the units, whatever their pattern."""
    rng = np.random.default_rng(0)
    for shape in ((7,), (4, 5), (3, 4, 5), ()):
        for share in (0.0, 0.3, 0.8, 1.0):
            bits = rng.random(shape) < share
            back = np.zeros(shape, bool)
            for box in boxes_of(bits):
                assert not back[tuple(slice(a, b) for a, b in box)].any()
                back[tuple(slice(a, b) for a, b in box)] = True
            np.testing.assert_array_equal(back, bits)
            if shape:
                units = list(map(tuple, np.argwhere(bits).tolist()))
                assert sorted(boxes_around(units)) == sorted(boxes_of(bits))
    marks = Marks(Objects(zarr.storage.MemoryStore(), "x"), (4, 6))
    marks.mark("a", [[(0, 2), (0, 6)]], [[(1, 2), (0, 1)]])
    marks.mark("b", [[(2, 3), (1, 3)]], None)
    marks.soil("late", [[(0, 1), (0, 1)]])
    done, stored = marks.read_empty()
    assert done.sum() == 13
    assert stored.sum() == 10
    assert not done[0, 0]
    assert not stored[1, 0]
    np.testing.assert_array_equal(marks.settle()[0], done)
    np.testing.assert_array_equal(marks.read_empty()[1], stored)
    assert marks.covers("kept", [(0, 1), (2, 2)])
    assert not marks.covers("kept", [(0, 0)])
    assert load(marks.objects.read("dirty/late")) is None


def test_the_generation_is_new_when_a_result_is_overwritten_and_kept_when_it_is_resumed() -> None:
    """Also where the user rewrote the attributes, or took a copy of an older record back."""
    store = zarr.storage.MemoryStore()
    seen = [write(result(), store).attrs["tilework"]["generation"]]
    assert write(result(), store).attrs["tilework"]["generation"] == seen[0]
    seen += [write(result(), store, overwrite=True).attrs["tilework"]["generation"] for _ in range(3)]
    assert len(set(seen)) == len(seen)
    array = zarr.open_array(store, mode="r+")
    array.attrs.put({"units": "nm"})
    write(result(np.negative), array, overwrite=True)
    array = zarr.open_array(store, mode="r+")
    assert array.attrs["units"] == "nm"
    assert array.attrs["tilework"]["generation"] not in seen
    left = {name.partition("/")[0] for name in objects_of(store).names()}
    assert left == {array.attrs["tilework"]["generation"]}
    Ledger(array).reset()
    assert not tw.status(store).done


# -- workers that see something else ------------------------------------------------------------------------


class Elsewhere(zarr.storage.LocalStore):
    """A folder that other processes see at another place, as if something else were mounted there."""

    def __init__(self, root: Any, *, read_only: bool = False, there: Any = None) -> None:
        super().__init__(root, read_only=read_only)
        self.there = there

    def with_read_only(self, read_only: bool = False) -> Elsewhere:
        return Elsewhere(self.root, read_only=read_only, there=self.there)

    def __reduce__(self) -> Any:
        return zarr.storage.LocalStore, (str(self.there),)


@pytest.mark.sample(0)
@pytest.mark.parametrize("there", ["nothing", "an older copy", "a copy with the claim"])
def test_a_worker_that_sees_another_folder_is_an_error(there: str, tmp_path: Path) -> None:
    """Nothing is there, or an array of the same name, or what a synchronised folder has copied."""
    store = Elsewhere(tmp_path / "a.zarr", there=tmp_path / "b.zarr")
    if there == "an older copy":
        write(result(), tmp_path / "b.zarr")
    copied = threading.Event()

    def copy() -> None:
        while not copied.wait(0.001):
            if (tmp_path / "a.zarr" / "zarr.json").exists():
                shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr", dirs_exist_ok=True)
                copied.set()

    thread = threading.Thread(target=copy)
    if there == "a copy with the claim":
        thread.start()
    told = {
        "nothing": "cannot be seen from", "an older copy": "does not belong to this run",
        "a copy with the claim": "the marks of 9 of them are not in the store, as it is seen from here",
    }[there]  # fmt: skip
    with pytest.raises(tw.TilingError, match=told):
        write(result(), store, scheduler="processes")
    if there == "a copy with the claim":
        thread.join()
    assert not (tmp_path / "a.zarr" / "c").exists()
    assert there != "nothing" or not (tmp_path / "b.zarr" / "c").exists()
    np.testing.assert_array_equal(write(result(), tmp_path / "a.zarr")[...], IMAGE * 2)


@pytest.mark.sample(0)
def test_a_unit_that_reads_differently_here_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some units that other processes wrote are read back, so that stale reads are seen."""
    from tilework.writing import closing

    seen: list[Any] = []

    def changed(array: Any, unit: Any) -> str:
        seen.append(unit)
        return "other"

    monkeypatch.setattr(closing, "digest_of", changed)
    with pytest.raises(tw.TilingError, match=r"unit \(\d, \d\) reads differently here"):
        write(result(), tmp_path / "a.zarr", scheduler="processes")
    assert len(seen) == 1
    seen.clear()
    write(result(), tmp_path / "b.zarr", scheduler="threads")
    assert not seen
