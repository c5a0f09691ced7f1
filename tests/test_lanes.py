"""Which worker of a cluster is asked to run which block: one runs those that read the same chunks."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.execution.cluster import Cluster

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::ResourceWarning")]

IMAGE = np.random.default_rng(0).random((96, 80)).astype("f4")
VOLUME = np.random.default_rng(0).random((3, 16, 24, 40)).astype("f4")


@pytest.fixture(scope="module")
def three() -> Iterator[Any]:
    """Run three workers within this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[Any, str]:
    """Return the worker that is asked for each block, by index, as far as runs ask for one."""
    found: dict[Any, str] = {}
    graph = Cluster._graph

    def watched(self: Cluster, tasks: Any, batch: Any) -> Any:
        made = graph(self, tasks, batch)
        for layer in getattr(made, "layers", {}).values():
            where = layer.annotations or {}
            if "workers" in where:
                assert where["allow_other_workers"] is True
                [address] = where["workers"]
                found.update({key[1:]: address for key in layer.mapping if "write" in key[0]})
        return made

    monkeypatch.setattr(Cluster, "_graph", watched)
    return found


def run(out: Any, client: Any, **options: Any) -> np.ndarray:
    written = tw.to_zarr(out, zarr.storage.MemoryStore(), client=client, progress=False, **options)
    return np.asarray(written)


@pytest.mark.parametrize("mask", [None, np.arange(80)[None] < np.full((96, 1), 30)], ids=["all", "mask"])
def test_a_worker_is_asked_for_neighbouring_columns(mask: Any, three: Any, asked: Any, tmp_path: Any) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=IMAGE, chunks=(8, 8))
    out = tw.tiled_map(np.copy, array, 12, 2, dtype="f4", chunks=8, mask=mask)
    expected = IMAGE if mask is None else out.compute(scheduler="sync")
    np.testing.assert_array_equal(run(out, three), expected)
    blocks = {(int(key[-2]), int(key[-1])): worker for key, worker in asked.items()}
    assert len(blocks) == (120 if mask is None else len(asked))
    for row in range(12):
        workers = [blocks[row, column] for column in range(10) if (row, column) in blocks]
        assert len([*itertools.groupby(workers)]) == len(set(workers)), "each has one run of columns"
    if mask is None:
        counts = Counter(blocks.values())
        assert len(counts) == 3
        assert max(counts.values()) - min(counts.values()) <= 4
        # Those of one worker lie below each other.
        for column in range(10):
            assert max(Counter(blocks[row, column] for row in range(12)).values()) >= 6


def test_lanes_run_along_the_slowest_axis_of_every_volume(three: Any, asked: Any, tmp_path: Any) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=VOLUME, chunks=(1, 8, 8, 8))
    out = tw.tiled_map(np.copy, array, 10, 1, each=0, dtype="f4", chunks=8)
    np.testing.assert_array_equal(run(out, three), VOLUME)
    assert len(asked) == 3 * 2 * 3 * 5
    assert len(set(asked.values())) == 3


CASES: dict[str, Any] = {
    "blocks that wait for each other": lambda a: tw.tiled_map(
        np.copy, a, 16, stride=8, blend="hann", dtype="f4", chunks=16
    ),
    "chunks that no two blocks read": lambda a: tw.tiled_map(np.copy, a, 8, 0, dtype="f4", chunks=8),
    "no chunks": lambda _: tw.tiled_map(np.copy, IMAGE, 12, 2, dtype="f4", chunks=8),
    "a dask array": lambda a: tw.tiled_map(np.copy, da.from_zarr(a), 12, 2, dtype="f4", chunks=8),
    "fewer columns than workers": lambda a: tw.tiled_map(np.copy, a, 12, 2, dtype="f4", chunks=(8, 40)),
}


@pytest.mark.parametrize("case", CASES)
def test_any_worker_runs_what_gains_nothing(case: str, three: Any, asked: Any, tmp_path: Any) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=IMAGE, chunks=(8, 8))
    out = CASES[case](array)
    np.testing.assert_allclose(run(out, three), IMAGE, rtol=1e-5)
    assert not asked


def test_the_workers_that_the_user_names_run_all(three: Any, asked: Any, tmp_path: Any) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=IMAGE, chunks=(8, 8))
    out = tw.tiled_map(np.copy, array, 12, 2, dtype="f4", chunks=8)
    first = min(three.nthreads())
    with dask.annotate(workers=[first]):
        np.testing.assert_array_equal(run(out, three), IMAGE)
    assert not asked


def test_a_run_goes_on_when_workers_leave_with_results_that_the_client_has_not_taken(tmp_path: Any) -> None:
    """As where an adaptive cluster gets smaller: the run ended with "was cancelled from elsewhere"."""
    from distributed import Client, LocalCluster

    array = zarr.create_array(tmp_path / "in.zarr", data=IMAGE, chunks=(8, 8))
    out = tw.tiled_map(np.copy, array, 12, 2, dtype="f4", chunks=8)
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        lost: list[int] = []

        def leave(done: int, total: int) -> None:
            if done and not lost:
                lost.append(done)
                while sum(len(worker.data) for worker in cluster.workers.values()) < 60:
                    time.sleep(0.01)
                for address in sorted(client.nthreads())[:2]:
                    client.run_on_scheduler(_removed, address)

        np.testing.assert_array_equal(
            np.asarray(tw.to_zarr(out, tmp_path / "out.zarr", client=client, progress=leave)), IMAGE
        )
        assert lost


async def _removed(address: str, dask_scheduler: Any) -> None:
    await dask_scheduler.remove_worker(address, stimulus_id="left", close=False)
