"""Runs side by side in one process, and runs that end early, of which nothing is written afterwards."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback

import tilework as tw
import tilework.execution.local
from tilework.engine.stopping import Stopped, check_stop, stopped_by
from tilework.execution.stop import Stop
from tilework.writing.jobs import WriteJob

IMAGE = np.arange(64 * 64, dtype="f4").reshape(64, 64)
TILES = 16


def mapped(fn: Any = np.negative, image: np.ndarray = IMAGE, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 16, 0, **{"dtype": "f4", "chunks": 16} | options)


def files(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# -- side by side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 8])
def test_each_run_sees_its_own_tiles_and_errors(number: int, tmp_path: Path) -> None:
    """Callbacks go to the call: dask's own set belongs to all threads of the process."""
    together = threading.Barrier(number)

    def one(k: int) -> tuple[str, list[tuple[int, int]]]:
        seen: list[tuple[int, int]] = []

        def fails(crop: np.ndarray) -> np.ndarray:
            time.sleep(0.002)
            if k % 2 and crop[0, 0] > 3000:
                raise ValueError(f"run {k}")
            return crop * k

        out = mapped(fails)
        together.wait(30)
        try:
            with dask.config.set(scheduler="threads"):
                written = tw.to_zarr(out, tmp_path / f"{k}.zarr", progress=lambda *now: seen.append(now))
        except ValueError as error:
            return str(error), seen
        np.testing.assert_array_equal(written[:], IMAGE * k)
        return "written", seen

    with ThreadPoolExecutor(number) as pool:
        for k, (said, seen) in enumerate(pool.map(one, range(number))):
            assert said == (f"run {k}" if k % 2 else "written")
            assert seen == [(n, TILES) for n in range(len(seen))]
            if not k % 2:
                assert seen[-1] == (TILES, TILES)
    assert not Callback.active
    assert all(tw.status(tmp_path / f"{k}.zarr").complete for k in range(0, number, 2))


def test_callbacks_of_the_user_see_the_run_and_stay(scheduler: str, tmp_path: Path) -> None:
    """A progress bar or profiler of dask around the call works as before."""
    seen: list[Any] = []
    with Callback(posttask=lambda key, *_: seen.append(key)) as own:
        tw.to_zarr(mapped(), tmp_path / "a.zarr", progress=False)
        assert own._callback in Callback.active
    assert sum("write" in str(key) for key in seen) == TILES
    assert not Callback.active


def _no_callbacks(graph: Any, keys: Any, num_workers: int | None = None) -> Any:
    return dask.threaded.get(graph, keys, num_workers=num_workers)


def _ignores(graph: Any, keys: Any, **options: Any) -> Any:
    return dask.get(graph, keys)


def _passes_on(graph: Any, keys: Any, **options: Any) -> Any:
    return dask.threaded.get(graph, keys, **options)


SCHEDULERS: list[Any] = [_no_callbacks, _ignores, _passes_on]


@pytest.mark.parametrize("get", SCHEDULERS, ids=lambda get: get.__name__.strip("_"))
def test_schedulers_that_tell_nothing_lose_nothing(get: Any, tmp_path: Path) -> None:
    """Results are counted from the values that come back."""
    seen: list[tuple[int, int]] = []
    tw.to_zarr(mapped(), tmp_path / "a.zarr", scheduler=get, progress=lambda *now: seen.append(now))
    assert seen == [(n, TILES) for n in range(TILES + 1)]

    def fails(crop: np.ndarray) -> np.ndarray:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        tw.to_zarr(mapped(fails), tmp_path / "b.zarr", scheduler=get, progress=False)
    [outcome] = tw.write_many([(mapped(fails), tmp_path / "c.zarr")], scheduler=get, progress=False)
    assert "mine" in str(outcome.error)


def test_a_scheduler_that_returns_something_else_is_told(tmp_path: Path) -> None:
    def wrong(graph: Any, keys: Any, **options: Any) -> Any:
        return ["done" for _ in keys]

    with pytest.raises(tw.TilingError, match="the scheduler returned str"):
        tw.to_zarr(mapped(), tmp_path / "a.zarr", scheduler=wrong, progress=False)


# -- runs that end early ----------------------------------------------------------------------------------


class Logged:
    """Leaves a byte at every call, of which each takes a while."""

    def __init__(self, log: Path, seconds: float = 0.02) -> None:
        self.log, self.seconds = str(log), seconds

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        with Path(self.log).open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(self.seconds)
        return -crop


def _ends(how: type[BaseException]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= 4:
            raise how("enough")

    return progress


@pytest.mark.sample(1, whole=6)
@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("blocks", [16, 32])
def test_nothing_of_a_run_begins_after_it_ended(
    scheduler: str, how: Any, blocks: int, tmp_path: Path
) -> None:
    """Neither a call nor a write: those in flight are waited for, also in the middle of a block."""
    out = mapped(Logged(tmp_path / "log"), chunks=blocks)
    with pytest.raises(how, match="enough"):
        tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, progress=_ends(how))
    calls, stored = (tmp_path / "log").stat().st_size, files(tmp_path / "a.zarr")
    assert calls < TILES or blocks == 32
    time.sleep(0.3)
    assert (tmp_path / "log").stat().st_size == calls
    assert files(tmp_path / "a.zarr") == stored
    written = tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, progress=False)
    np.testing.assert_array_equal(written[:], -IMAGE)


@pytest.mark.parametrize("get", [_no_callbacks, _passes_on], ids=["silent", "telling"])
def test_a_run_of_a_scheduler_of_the_user_is_stopped_too(get: Any, tmp_path: Path) -> None:
    """Also one that tells nothing and raises itself."""
    calls: list[float] = []

    def slow(crop: np.ndarray) -> np.ndarray:
        calls.append(float(crop[0, 0]))
        time.sleep(0.05 if len(calls) <= 3 else 0.2)  # the other thread may see them late
        return crop

    def compute(graph: Any, keys: Any) -> None:
        with suppress(Stopped):
            get(graph, keys, num_workers=2)

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        threading.Thread(target=compute, args=(graph, keys), daemon=True).start()
        while len(calls) < 3:
            time.sleep(0.005)
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        tw.to_zarr(mapped(slow), tmp_path / "a.zarr", scheduler=scheduler, progress=False)
    number, stored = len(calls), files(tmp_path / "a.zarr")
    assert number < TILES
    time.sleep(0.3)
    assert len(calls) == number
    assert files(tmp_path / "a.zarr") == stored


class SixAtOnce(Logged):
    """Quick for its first six calls in one process, and slow in all others."""

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        calls = Path(f"{self.log}-{os.getpid()}")
        with calls.open("ab", buffering=0) as file:
            file.write(b".")
        with suppress(FileExistsError), Path(f"{self.log}-first").open("x") as file:
            file.write(str(os.getpid()))
        quick = Path(f"{self.log}-first").read_text() == str(os.getpid()) and calls.stat().st_size <= 6
        self.seconds = 0 if quick else 1
        return super().__call__(crop)


@pytest.mark.sample(0)
def test_processes_that_dask_starts_do_not_end_their_batches(tmp_path: Path) -> None:
    """dask sends six tasks to a process at a time, and waits for them before it raises."""
    out = mapped(SixAtOnce(tmp_path / "log"))
    with dask.config.set(scheduler="processes", num_workers=2), pytest.raises(RuntimeError, match="enough"):
        tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, progress=_after_the_first)
    assert 6 <= (tmp_path / "log").stat().st_size < 12


def test_a_tile_in_flight_is_the_last_of_its_block(tmp_path: Path) -> None:
    """A block of many tiles is not computed to its end."""
    begun, failed = threading.Event(), threading.Event()

    def fails_once(crop: np.ndarray) -> np.ndarray:
        if crop[0, 0] == IMAGE[48, 0]:  # in another block
            begun.wait(60)
            failed.set()
            raise ValueError("first")
        begun.set()
        failed.wait(60)
        return Logged(tmp_path / "log", 0.2)(crop)

    out = tw.tiled_map(fails_once, IMAGE, 8, 0, dtype="f4", chunks=(48, 64))
    with dask.config.set(num_workers=2), pytest.raises(ValueError, match="first"):
        tw.to_zarr(out, tmp_path / "a.zarr", chunks=(16, 64), progress=False, scheduler="threads")
    assert (tmp_path / "log").stat().st_size < 48  # tiles of the other block
    assert not tw.status(tmp_path / "a.zarr").done


@pytest.mark.sample(0)
def test_processes_of_the_user_are_stopped_too(tmp_path: Path) -> None:
    """An executor that goes on living, unlike the one that dask starts for a call."""
    with (
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        pool.submit(int).result(60)
        out = mapped(Logged(tmp_path / "log", 0.1))
        with pytest.raises(RuntimeError, match="enough"):
            tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, progress=_ends(RuntimeError))
        calls, stored = (tmp_path / "log").stat().st_size, files(tmp_path / "a.zarr")
        time.sleep(0.5)
        assert (tmp_path / "log").stat().st_size == calls < TILES
        assert files(tmp_path / "a.zarr") == stored


def test_waiting_for_tasks_in_flight_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says how many; a task that comes back later writes nothing."""
    monkeypatch.setattr(tilework.execution.local, "PATIENCE", 0.05)
    begun, released, calls = threading.Event(), threading.Event(), iter(range(TILES))

    def stuck(crop: np.ndarray) -> np.ndarray:
        if next(calls):
            begun.set()
            released.wait(30)
        begun.wait(30)  # the run ends with the first block: a thread may not have begun its own by then
        return -crop

    with dask.config.set(num_workers=3), caplog.at_level("INFO", "tilework"), pytest.raises(RuntimeError):
        tw.to_zarr(mapped(stuck), tmp_path / "a.zarr", scheduler="threads", progress=_after_the_first)
    said = [record.message for record in caplog.records if "flight" in record.message]
    assert len(said) == 1
    assert re.search(r"for [123] tasks in flight", said[0])
    assert any("still run" in record.message for record in caplog.records)
    stored = files(tmp_path / "a.zarr")
    released.set()
    time.sleep(0.2)
    assert files(tmp_path / "a.zarr") == stored


def _after_the_first(done: int, total: int) -> None:
    if done:
        raise RuntimeError("enough")


def test_a_stop_reaches_only_its_own_run() -> None:
    """Runs inside runs are stopped with them; a stop that arrives in another process looks for its file."""
    outer, inner = Stop(), Stop()
    with outer.task(), inner.task():
        check_stop()
        outer.ask()
        assert not inner.asked()
        with pytest.raises(Stopped):
            check_stop()
    check_stop()
    with pytest.raises(Stopped), outer.task():
        pass
    assert (outer.wait(0), inner.wait(0)) == (0, 0)
    with stopped_by(lambda: False):
        check_stop()
    assert not isinstance(Stopped(), Exception)  # on_error and retries catch those


def test_a_stop_of_a_run_that_is_over_is_asked() -> None:
    function, arguments = (over := Stop()).__reduce__()
    assert function(*arguments) is over
    del over
    assert function(*arguments).asked()
    abroad = function(arguments[0], (1, "another process"))
    assert not abroad.asked()
    abroad._abroad = True
    abroad.ask()
    assert abroad.asked()
    abroad.forget()
    assert not abroad.asked()


# -- the first error --------------------------------------------------------------------------------------


def test_the_first_error_is_seen_and_the_later_ones_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(job: WriteJob, *, complete: bool) -> None:
        job.release()
        raise OSError("the store is gone")

    monkeypatch.setattr(WriteJob, "close", gone)
    calls = iter(range(TILES))

    def fails(crop: np.ndarray) -> np.ndarray:
        if next(calls) == 5:
            raise ValueError("mine")
        return crop

    with pytest.raises(ValueError, match="mine") as caught:
        tw.to_zarr(mapped(fails), zarr.storage.MemoryStore(), progress=False)
    assert any("the store is gone" in note for note in caught.value.__notes__)
    with pytest.raises(OSError, match="the store is gone"):
        tw.to_zarr(mapped(), zarr.storage.MemoryStore(), progress=False)


@pytest.fixture(scope="module")
def worker() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        yield cluster


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError, "fails", "closed"])
def test_a_run_on_a_cluster_that_ends_early(worker: Any, how: Any, tmp_path: Path) -> None:
    """Its tasks write nothing afterwards, and what fails in the clean-up hides nothing."""
    from distributed import Client

    def fails(crop: np.ndarray) -> np.ndarray:
        if how == "fails" and crop[0, 0] == IMAGE[16, 16]:
            raise ValueError("mine")
        return Logged(tmp_path / "log", 0.05)(crop)

    client = Client(worker, set_as_default=False)

    def closes(done: int, total: int) -> None:
        if done == 4:
            client.close()

    errors: dict[Any, Any] = {"fails": ValueError, "closed": ConnectionError}
    progress = closes if how == "closed" else False if how == "fails" else _ends(how)
    with pytest.raises(errors.get(how, how), match=r"mine|enough|the client was closed") as caught:
        tw.to_zarr(mapped(fails, chunks=32), tmp_path / "a.zarr", client=client, progress=progress, chunks=16)
    assert "Client is closed" not in str(getattr(caught.value, "__notes__", ""))
    if how == "closed":
        # The scheduler cancels what nobody wants; a tile in flight is not waited for.
        end = time.monotonic() + 60
        while worker.scheduler.tasks or any(w.state.all_running_tasks for w in worker.workers.values()):
            assert time.monotonic() < end
            time.sleep(0.01)
    calls, stored = (tmp_path / "log").stat().st_size, files(tmp_path / "a.zarr")
    time.sleep(0.4)
    assert (tmp_path / "log").stat().st_size == calls
    assert files(tmp_path / "a.zarr") == stored
    client.close()
