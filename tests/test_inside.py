"""Runs inside tasks: of a worker, whose threads they must not hold, and of local schedulers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import tilework as tw
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.where import Where

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PATIENCE = 60


@pytest.fixture(autouse=True)
def _synchronous() -> Iterator[None]:
    """Let dask choose, as it does for users: the cluster of a task, else threads."""
    with dask.config.set(scheduler=None):
        yield


def _slide(k: int = 1) -> Any:
    return tw.tiled_map(np.negative, np.full((64, 64), k, "f4"), 32, 4, dtype="f4", chunks=32)


def write(path: str, **options: Any) -> float:
    return float(tw.to_zarr(_slide(), path, progress=False, **options)[:].mean())


def write_many(path: str) -> list[bool]:
    jobs = [(_slide(k), f"{path}-{k}") for k in range(3)]
    return [outcome.ok for outcome in tw.write_many(jobs, progress=False)]


def look(path: str) -> tuple[float, bool, bool, bool]:
    out = tw.tiled_map(np.negative, da.ones((64, 64), chunks=16, dtype="f4"), 32, 4, dtype="f4")
    measured = "measured" in tw.explain(out, measure=True)
    exact = tw.probe(np.negative, crop=(16, 16)).exact
    return float(tw.view(out, verbose=False)[5, 5]), tw.check(out).ok, measured, exact


def submit(path: str) -> float:
    """Wait for a task that writes, outside of the pool."""
    from distributed import worker_client

    with worker_client() as client:
        return write(f"{path}-1") + float(client.submit(write, f"{path}-2").result())


def outer(path: str) -> float:
    """Run a function that itself writes: the inner runs hold up the tasks of the outer one."""

    def writes(crop: np.ndarray) -> np.ndarray:
        return crop * write(f"{path}-{threading.get_ident()}-{time.monotonic_ns()}")

    out = tw.tiled_map(writes, np.ones((32, 32), "f4"), 16, 0, dtype="f4", chunks=16)
    return float(tw.to_zarr(out, path, progress=False)[:].mean())


def on_threads(path: str) -> tuple[float, ...]:
    """Write in threads of a pool that a task starts, which cannot leave the worker's pool for it."""
    both = [dask.delayed(write)(f"{path}-{k}") for k in range(3)]
    return tuple(dask.compute(*both, scheduler="threads"))


class Writer:
    """An actor."""

    def write(self, path: str) -> float:
        return write(path)


@pytest.fixture(scope="module", params=["1 thread", "2 threads", "1 thread, 2 processes"])
def workers(request: pytest.FixtureRequest) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    apart = "processes" in request.param
    threads = int(request.param[0])
    with (
        LocalCluster(
            n_workers=2 if apart else 1, threads_per_worker=threads, processes=apart, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=not apart) as client,
    ):
        yield client


KINDS = {
    write: -1.0,
    write_many: [True, True, True],
    look: (-1.0, True, True, True),
    submit: -2.0,
    outer: -1.0,
    on_threads: (-1.0, -1.0, -1.0),
}


@pytest.mark.sample(1, whole=8)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_more_tasks_that_compute_than_threads(workers: Any, kind: Any, tmp_path: Path) -> None:
    """One task per slide, each writing, is the commonest layout of a batch; nothing hangs."""
    number = 3 if kind is look else 5
    futures = [workers.submit(kind, str(tmp_path / f"{k}.zarr")) for k in range(number)]
    assert [future.result(timeout=PATIENCE) for future in futures] == [KINDS[kind]] * number


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_local_scheduler_inside_a_task(workers: Any, scheduler: str, tmp_path: Path) -> None:
    futures = [workers.submit(write, str(tmp_path / f"{k}"), scheduler=scheduler) for k in range(4)]
    assert [future.result(timeout=PATIENCE) for future in futures] == [-1.0] * 4


def test_an_actor_stays_on_its_thread(workers: Any, tmp_path: Path) -> None:
    with workers.as_current():
        actor = workers.submit(Writer, actor=True).result(timeout=PATIENCE)
        written = [actor.write(str(tmp_path / f"{k}.zarr")) for k in range(3)]
        assert [one.result(timeout=PATIENCE) for one in written] == [-1.0] * 3


def test_an_async_task_is_told_what_to_do(workers: Any, tmp_path: Path) -> None:
    """It runs on the event loop that its own tasks need."""

    async def asynchronous(path: str) -> str:
        try:
            write(path)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "written"

    said = workers.submit(asynchronous, str(tmp_path / "a.zarr")).result(timeout=PATIENCE)
    assert "synchronous context" in said or "asyncio.to_thread" in said


# -- how many at once ------------------------------------------------------------------------------------

COUNTS: dict[str, Any] = {"now": 0, "most": 0, "wanted": 0, "lock": threading.Lock()}


def counted(k: int) -> bool:
    """Take a slot for a while; return whether the thread is back in the pool afterwards."""
    from distributed import get_client
    from distributed.threadpoolexecutor import thread_state

    counts = sys.modules[__name__].COUNTS
    with outside_of_the_pool(get_client()):
        assert not thread_state.proceed
        with counts["lock"]:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
        end = time.monotonic() + PATIENCE
        while counts["most"] < counts["wanted"] and time.monotonic() < end:
            time.sleep(0.01)  # the others may begin late
        time.sleep(0.02)
        with outside_of_the_pool(get_client()):  # a run inside takes no slot of its own
            pass
        with counts["lock"]:
            counts["now"] -= 1
    return bool(thread_state.proceed)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_hundred_slides_do_not_start_at_once(threads: int) -> None:
    """As many as the worker has threads, and at most four; with an error, a slot is given back too."""
    from distributed import Client, LocalCluster

    COUNTS.update(now=0, most=0, wanted=min(threads, 4))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(counted, range(30), pure=False)
        assert client.gather(futures) == [True] * 30
        assert COUNTS["most"] == min(threads, 4)
        for k in range(6):
            with pytest.raises(TypeError):
                client.submit(write, k).result(timeout=PATIENCE)
        assert client.gather(client.map(counted, range(3), pure=False)) == [True] * 3


def _memory(**options: Any) -> int:
    return Where.find(**options).memory


def test_memory_is_divided_by_the_runs_at_once() -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=8, processes=False, memory_limit="8GB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        alone = Where.find(client=client).memory
        assert client.submit(_memory).result(timeout=PATIENCE) == alone // 4
        assert client.submit(_memory, scheduler="threads").result(timeout=PATIENCE) <= alone // 8


# -- local schedulers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["threads", "one thread", "pool", "executor"])
def test_tasks_of_a_local_scheduler_that_write(kind: str, tmp_path: Path) -> None:
    """Also in the threads of a pool that the inner run would wait for."""
    tasks = [dask.delayed(write)(str(tmp_path / f"{k}.zarr")) for k in range(5)]
    with ThreadPoolExecutor(2) as pool:
        options: dict[str, Any] = {"scheduler": pool if kind == "executor" else "threads"}
        if kind == "one thread":
            options["num_workers"] = 1
        # The inner run takes the executor from the configuration.
        with dask.config.set(pool=pool if kind == "pool" else None, scheduler=options["scheduler"]):
            assert dask.compute(*tasks, **options) == (-1.0,) * 5


def shown(k: int) -> float:
    """Index a view that all tasks of a process share."""
    return float(sys.modules[__name__].SHARED[0][5, 20 * k])


SHARED: list[Any] = []


def test_tasks_that_share_a_view() -> None:
    """One waits for the lock of the view, another, which has it, for blocks of a dask source."""
    from distributed import Client, LocalCluster

    def slow(block: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return block

    source = da.ones((128, 128), chunks=32, dtype="f4").map_blocks(slow, dtype="f4")
    SHARED[:] = [tw.view(tw.tiled_map(np.negative, source, 64, 4, dtype="f4"), verbose=False)]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(shown, range(6), pure=False)
        assert [future.result(timeout=PATIENCE) for future in futures] == [-1.0] * 6
