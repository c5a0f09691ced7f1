"""F3 and I2: killed at any moment, on threads or on a cluster, a store is gone on with and is right."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.graph.build import plan_of
from tilework.writing.ledger import Ledger

pytestmark = [
    pytest.mark.distributed,
    # The scheduler of a cluster says so when a client or a worker vanishes.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGE = np.random.default_rng(0).random((192, 160)).astype("f4")
UNIT = 32


class Slow:
    """Takes a while, and leaves a byte at every call."""

    def __init__(self, log: str, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        with Path(self.log).open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(self.seconds)
        return crop * crop.mean(dtype="f8").astype("f4")


def result(log: Path, seconds: float = 0.01) -> Any:
    fn = Slow(str(log), seconds)
    return tw.tiled_map(fn, IMAGE, 32, stride=16, blend="gaussian", dtype="f4", chunks=64)


def write(store: Path, log: Path, seconds: float = 0.01, address: str | None = None) -> Any:
    options: Any = {"chunks": UNIT, "version": "1", "progress": False}
    if address is None:
        return tw.to_zarr(result(log, seconds), str(store), scheduler="threads", **options)
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return tw.to_zarr(result(log, seconds), str(store), client=client, **options)


def files(store: Path) -> dict[str, bytes]:
    """Return what is stored, without what a killed writer left half done."""
    found = (p for p in store.rglob("*") if p.is_file() and not p.name.endswith(".partial"))
    return {str(p.relative_to(store)): p.read_bytes() for p in found}


def stamps(store: Path) -> dict[tuple[int, ...], int]:
    """Return when each finished unit was written."""
    array = zarr.open_array(str(store), mode="r")
    return {
        tuple(map(int, u)): (store / "c" / "/".join(map(str, u))).stat().st_mtime_ns
        for u in np.argwhere(Ledger(array).read())
    }


@pytest.fixture(scope="module")
def server() -> Any:
    """Start processes that have all imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tilework.writing.store", "tilework.api", "distributed", "numpy", "zarr"])
    return context


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Run two worker processes that are started again when they die."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Give the files of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "a.zarr", folder / "log", 0)
    return files(folder / "a.zarr")


def moments(few: int) -> list[Any]:
    return [pytest.param(k, id=f"moment-{k}", marks=() if k < few else pytest.mark.slow) for k in range(20)]


def killed(server: Any, moment: int, folder: Path, address: str | None) -> Path:
    """Start a run in a process of its own and kill it; return the store."""
    store, log = folder / "b.zarr", folder / "log"
    process = server.Process(target=write, args=(store, log, 0.01, address), daemon=True)
    process.start()
    started = time.monotonic()
    while not log.exists() and time.monotonic() - started < 120:
        time.sleep(0.001)
    assert log.exists()
    time.sleep(random.Random(moment).uniform(0, 0.5))
    process.kill()
    process.join()
    return store


def quiet(cluster: Any) -> None:
    """Wait until a cluster has forgotten a client that died, and no thread of a worker is busy."""
    from distributed import Client

    def busy(dask_worker: Any) -> int:
        return len(dask_worker.state.all_running_tasks)

    with Client(cluster, set_as_default=False) as client:
        end = time.monotonic() + 120
        while cluster.scheduler.tasks or any(client.run(busy).values()):
            assert time.monotonic() < end
            time.sleep(0.05)


def check_resumed(store: Path, log: Path, whole: dict[str, bytes], address: str | None = None) -> None:
    before = stamps(store)
    missing = ~Ledger(zarr.open_array(str(store), mode="r")).read()
    log.write_bytes(b"")
    write(store, log, 0, address)
    touched = sum(
        missing[
            tile.read.start[0] // UNIT : -(-tile.read.stop[0] // UNIT),
            tile.read.start[1] // UNIT : -(-tile.read.stop[1] // UNIT),
        ].any()
        for tile in plan_of(result(log))
    )
    assert log.stat().st_size == touched
    after = stamps(store)
    assert {unit: after[unit] for unit in before} == before
    assert files(store) == whole


@pytest.mark.parametrize("moment", moments(6))
def test_I2_a_killed_process_on_threads(
    moment: int, server: Any, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Byte by byte the same, and only what was missing is computed."""
    store = killed(server, moment, tmp_path, None)
    check_resumed(store, tmp_path / "log", whole)


@pytest.mark.sample(0)
@pytest.mark.parametrize("moment", moments(3))
def test_I2_a_killed_client_of_a_cluster(
    moment: int, server: Any, cluster: Any, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """The cluster lives on, and the next client goes on."""
    store = killed(server, moment, tmp_path, cluster.scheduler_address)
    quiet(cluster)
    check_resumed(store, tmp_path / "log", whole, cluster.scheduler_address)


@pytest.mark.sample(1)
@pytest.mark.parametrize("moment", moments(2))
def test_F3_a_killed_worker_costs_a_recomputation(
    moment: int, cluster: Any, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """The run goes on, and ends with the same bytes."""
    from distributed import Client

    store, log = tmp_path / "b.zarr", tmp_path / "log"
    delay = random.Random(moment).uniform(0, 0.5)
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        pids = client.run(os.getpid)
        victim = list(pids.values())[moment % 2]

        def progress(done: int, total: int) -> None:
            if done and victim in pids.values() and time.monotonic() - started > delay:
                os.kill(victim, signal.SIGKILL)
                pids.clear()

        started = time.monotonic()
        tw.to_zarr(result(log), str(store), chunks=UNIT, version="1", client=client, progress=progress)
    assert files(store) == whole
    assert log.stat().st_size <= 2 * len(plan_of(result(log)))
