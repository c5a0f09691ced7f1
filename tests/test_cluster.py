"""Runs on a `distributed` cluster: what reaches its scheduler, and what never stands in its memory."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
import tilework.execution.cluster
from tests.laws.test_i_storage import plan_stored
from tilework.execution.where import Where
from tilework.graph.build import plan_of
from tilework.plan.cost import busiest
from tilework.writing.status import statuses

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGE = np.random.default_rng(0).random((96, 80)).astype("f4")


def spoil(crop: np.ndarray) -> np.ndarray:
    return crop * crop.mean(dtype="f8").astype("f4")


def mapped(fn: Any = spoil, **options: Any) -> Any:
    return tw.tiled_map(
        fn, IMAGE, 16, stride=8, **{"blend": "gaussian", "dtype": "f4", "chunks": 16} | options
    )


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Run two worker processes with a GPU slot each."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0", resources={"GPU": 1}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.sample(0)
def test_E5_the_same_bits_from_every_scheduler(
    processes: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Synchronous, threads, processes, a cluster; lazily and written, trimmed and blended."""
    for blend in ("trim", "gaussian", "max"):
        out = mapped(blend=blend)
        whole = out.compute(scheduler="synchronous")
        written = {
            "sync": tw.to_zarr(out, tmp_path / f"{blend}0.zarr", chunks=16, scheduler="synchronous"),
            "threads": tw.to_zarr(out, tmp_path / f"{blend}1.zarr", chunks=16, scheduler="threads"),
            "cluster": tw.to_zarr(out, tmp_path / f"{blend}2.zarr", chunks=16, client=processes),
        }
        with dask.config.set(pool=request.getfixturevalue("_process_pool")):
            written["processes"] = tw.to_zarr(
                out, tmp_path / f"{blend}3.zarr", chunks=16, scheduler="processes"
            )
        for array in written.values():
            np.testing.assert_array_equal(array[...], whole)
        np.testing.assert_array_equal(processes.compute(out, sync=True), whole)


class Locked:
    """A function that dask cannot hash: each pickle of it is another one."""

    def __call__(self, crop: Any) -> Any:
        return crop + 1

    def __reduce__(self) -> Any:
        return _unlocked, (time.perf_counter_ns(),)


def _unlocked(_: int) -> Locked:
    return Locked()


@pytest.mark.parametrize("what", ["source", "function"])
def test_what_dask_cannot_hash_goes_to_a_cluster(client: Any, tmp_path: Path, what: str) -> None:
    """A client hashes the graphs that it sends: a dataset of h5py was refused with a TokenizationError."""
    image: Any = np.arange(400).reshape(20, 20)
    expected, fn = image + 1, Locked() if what == "function" else plus_one
    if what == "source":
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "in.h5", "w") as file:
            file["a"] = image
        image = h5py.File(tmp_path / "in.h5", "r")["a"]
    out = tw.tiled_map(fn, image, 8, 1, dtype=int, chunks=10, name=f"of-{what}")
    written = tw.to_zarr(out, tmp_path / "out.zarr", client=client, progress=False, version="1")
    np.testing.assert_array_equal(written[...], expected)
    np.testing.assert_array_equal(client.compute(out).result(), expected)
    np.testing.assert_array_equal(client.persist(out).compute(), expected)
    np.testing.assert_array_equal(out[3:15, 4].compute(), expected[3:15, 4])


def plus_one(crop: Any) -> Any:
    return crop + 1


def test_the_active_client_is_taken(client: Any) -> None:
    """As dask users expect."""
    seen: list[int] = []
    store = zarr.storage.MemoryStore()
    with dask.config.set(scheduler=None):
        tw.to_zarr(mapped(), store, progress=lambda done, total: seen.append(client is not None))
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) > 0
    assert seen


@pytest.mark.parametrize("below", ["dask", "result"])
def test_blocks_that_vindex_and_later_pieces_read_are_kept(client: Any, tmp_path: Path, below: str) -> None:
    """dask's ``vindex`` names blocks by numpy's integers, which a cluster does not let us ask for."""
    image = np.arange(400.0).reshape(20, 20)
    array = da.from_array(image, chunks=10) + 0
    if below == "result":
        array = tw.tiled_map(plus_one, array, 5, 0, chunks=10, dtype=float)
    diagonal = np.arange(10)
    both = da.concatenate([array.vindex[diagonal, diagonal], array[0]])
    out = tw.tiled_map(plus_one, both, 5, 0, chunks=5, dtype=float)
    expected = np.append(image.diagonal()[:10], image[0]) + (1 if below == "dask" else 2)
    tw.to_zarr(out, tmp_path / "out.zarr", client=client, progress=False)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr")[...], expected)


@pytest.mark.sample(0)
def test_the_window_bounds_what_the_scheduler_knows(
    processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the image is; each tile runs once, with the seams carried over."""
    monkeypatch.setattr(tilework.execution.cluster, "CLUSTER_BLOCKS", 16)
    monkeypatch.setattr(tilework.execution.cluster, "BLOCKS_PER_THREAD", 0)
    image = np.random.default_rng(0).random((1600, 32)).astype("f4")
    out = tw.tiled_map(spoil, image, 16, stride=8, blend="gaussian", dtype="f4", chunks=16)
    most = 0
    count = "lambda dask_scheduler: len(dask_scheduler.tasks)"

    def watch(done: int, total: int) -> None:
        nonlocal most
        if done % 5 == 0:
            most = max(most, processes.run_on_scheduler(eval(count)))

    written = tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, client=processes, progress=watch)
    np.testing.assert_array_equal(written[...], out.compute(scheduler="synchronous"))
    # Part, group, seam and write of each block in the window, and what waits to be forgotten: on a busy
    # machine the scheduler is behind. All 200 blocks at once would be 800 tasks.
    assert 0 < most < 400


def test_a_run_that_ends_early_leaves_what_else_the_client_computes(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needed the last task of a batch was cancelled twice, and the scheduler dropped the client."""
    monkeypatch.setattr(tilework.execution.cluster, "CLUSTER_BLOCKS", 16)
    monkeypatch.setattr(tilework.execution.cluster, "BLOCKS_PER_THREAD", 1)
    other = client.submit(sum, [1, 2])

    def fail(crop: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        if 0.5 in crop:
            raise ValueError("here")
        return crop

    image = IMAGE.copy()
    image[20, 40] = 0.5
    out = tw.tiled_map(fail, image, 16, stride=8, blend="hann", dtype="f4", chunks=16, reuse="share")
    with pytest.raises(ValueError, match="here"):
        tw.to_zarr(out, tmp_path / "a.zarr", progress=False)
    assert client.id in client.cluster.scheduler.clients
    assert (other.status, other.result()) == ("finished", 3)
    assert client.submit(sum, [3, 4]).result(timeout=20) == 7


@pytest.mark.parametrize("how", ["arithmetic", "result"])
def test_the_next_run_computes_what_failed_in_the_last_one(client: Any, tmp_path: Path, how: str) -> None:
    """The scheduler kept the error for a future that the traceback held, and gave it to each further run."""
    flag = tmp_path / "full"
    flag.touch()

    def fail(crop: np.ndarray, flag: str = str(flag)) -> np.ndarray:
        if Path(flag).exists():
            raise ValueError("the disk is full")
        return crop

    out = tw.tiled_map(fail, IMAGE, 16, 4, dtype="f4", chunks=16)
    out = out + 1 if how == "arithmetic" else tw.tiled_map(np.copy, out, 16, 4, dtype="f4", chunks=16)
    with pytest.raises(ValueError, match="disk is full") as failed:
        tw.to_zarr(out, tmp_path / "a.zarr", progress=False)
    flag.unlink()
    written = tw.to_zarr(out, tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(written[...], IMAGE + (how == "arithmetic"))
    assert failed.value.__traceback__ is not None  # which holds the futures of the first run


def test_a_run_that_ends_holds_nothing_on_the_cluster(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not until the memory of the client is tidied up, nor as long as somebody looks at the error."""
    monkeypatch.setattr(tilework.execution.cluster, "CLUSTER_BLOCKS", 16)
    monkeypatch.setattr(tilework.execution.cluster, "BLOCKS_PER_THREAD", 1)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended:
        tw.to_zarr(mapped(reuse="share"), tmp_path / "a.zarr", progress=interrupt)
    _wait_until_nothing_is_held(client)
    tw.to_zarr(mapped(reuse="share"), tmp_path / "a.zarr", progress=False)
    _wait_until_nothing_is_held(client)
    assert ended.value.__traceback__ is not None


def test_a_client_that_is_closed_during_a_run_is_named(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the next batch is submitted, which ended with an error of distributed about a message."""
    monkeypatch.setattr(tilework.execution.cluster, "CLUSTER_BLOCKS", 16)
    monkeypatch.setattr(tilework.execution.cluster, "BLOCKS_PER_THREAD", 1)
    other = type(client)(client.cluster, set_as_default=False)
    taken, submit = Counter[str](), tilework.execution.cluster.Cluster._submit

    def closed(self: Any, batch: Any) -> None:
        taken["batches"] += 1
        if taken["batches"] == 2:
            other.close()
        submit(self, batch)

    monkeypatch.setattr(tilework.execution.cluster.Cluster, "_submit", closed)
    with pytest.raises(ConnectionError, match="client was closed"):
        tw.to_zarr(mapped(), tmp_path / "a.zarr", client=other, progress=False)
    assert tw.to_zarr(mapped(), tmp_path / "a.zarr", progress=False).shape == IMAGE.shape


def test_results_that_overtake_a_slow_one_hold_nothing(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tasks of one refer to, as its image, stayed if they had all run before the next one began."""
    monkeypatch.setattr(tilework.execution.cluster, "BUSY", 2 / sum(client.nthreads().values()))
    flag = tmp_path / "go on"

    def wait(crop: np.ndarray, flag: str = str(flag)) -> np.ndarray:
        while crop.flat[0] == 0 and not Path(flag).exists():
            time.sleep(0.01)
        return crop

    held: list[int] = []

    def watch(done: int, total: int) -> None:
        _wait_until(lambda: len(client.futures) < 10)
        held.append(len(client.futures))
        if done == 19:
            flag.touch()

    outs = [tw.tiled_map(wait, np.full((16, 16), k, "f4"), 16, 0, dtype="f4") for k in range(20)]
    jobs = [(out, tmp_path / f"{k}.zarr") for k, out in enumerate(outs)]
    assert not tw.write_many(jobs, progress=watch).failed
    assert max(held) < 10


def _wait_until_nothing_is_held(client: Any) -> None:
    _wait_until(lambda: not client.futures)


def _wait_until(there: Callable[[], bool]) -> None:
    """Wait for the event loop, which releases futures when it gets to it."""
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_more_workers_get_more_blocks_unless_blocks_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are made for this machine; a cluster of more threads would wait for them."""
    from distributed import Client, LocalCluster

    for module in ("plan.request", "execution.where"):
        monkeypatch.setattr(f"tilework.{module}.n_threads", lambda: 1)
    image = np.random.default_rng(0).random((256, 256)).astype("f4")
    tiling: dict[str, Any] = {"crop": 32, "stride": 16, "blend": "hann", "dtype": "f4"}
    few = tw.tiled_map(spoil, image, **tiling)
    given = tw.tiled_map(spoil, image, **tiling, chunks=256)
    with (
        LocalCluster(n_workers=1, threads_per_worker=8, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        options: dict[str, Any] = {"chunks": 16, "client": client, "progress": False}
        more = plan_stored(tw.to_zarr(few, tmp_path / "more.zarr", **options))
        kept = plan_stored(tw.to_zarr(given, tmp_path / "kept.zarr", **options))
        among = plan_stored(tw.write_many([(few, tmp_path / "many.zarr")], **options)[0].result)
    assert busiest(plan_of(few), 8) == len(plan_of(few)) == 225
    assert busiest(replace(plan_of(few), reuse=more["reuse"], block=tuple(more["block"])), 8) < 45
    assert kept["block"] == [256, 256]
    # Beside others, an image is no reason to send the scheduler more tasks.
    assert among["block"] == list(plan_of(few).block)


def away(pid: int) -> Any:
    """Build a filter, anywhere but in process ``pid``."""
    assert os.getpid() != pid

    def smooth(crop: np.ndarray) -> np.ndarray:
        padded = np.pad(crop, 2, mode="edge")
        return np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).mean((2, 3))

    return smooth


def test_a_model_is_probed_on_a_worker(processes: Any) -> None:
    model = tw.load_once(away, (os.getpid(),))
    with processes.as_current():
        assert tw.probe(model, (32, 32)).overlap == (2, 2)
        out = tw.tiled_map(model, IMAGE, 32, "auto")
    assert plan_of(out).axes[0].overlap == 2
    # A task that probes calls the model itself: a task of its own might wait for its thread.
    slots = {"resources": {"GPU": 1}, "pure": False}
    assert processes.submit(tw.probe, model, (32, 32), **slots).result(timeout=60).overlap == (2, 2)
    with pytest.raises(AssertionError):
        tw.probe(model, (32, 32))


def test_resources_reach_the_tasks_that_call_fn_and_no_others(processes: Any, tmp_path: Path) -> None:
    """A slot is held for the function, not for writing."""
    restricted: dict[str, Any] = {}

    def look(dask_scheduler: Any) -> dict[str, Any]:
        return {
            str(key[0]).rpartition("-")[2]: dict(ts.resource_restrictions or {})
            for key, ts in dask_scheduler.tasks.items()
            if isinstance(key, tuple)
        }

    def watch(done: int, total: int) -> None:
        restricted.update(processes.run_on_scheduler(look))

    def slow(crop: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return crop

    out = mapped(slow)
    tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, client=processes, resources={"GPU": 1}, progress=watch)
    assert restricted["group"] == {"GPU": 1}
    assert restricted["write"] == restricted["seam"] == {}
    with pytest.raises(tw.TilingError, match=r"no worker offers resources=\{'TPU': 1\}"):
        tw.to_zarr(out, tmp_path / "b.zarr", client=processes, resources={"TPU": 1})
    with pytest.raises(tw.TilingError, match="workers of a cluster only"):
        tw.to_zarr(out, tmp_path / "b.zarr", scheduler="threads", resources={"GPU": 1})


def test_resources_of_nothing_are_refused(processes: Any, tmp_path: Path) -> None:
    with pytest.raises(tw.TilingError, match="positive"):
        tw.to_zarr(mapped(), tmp_path / "a.zarr", client=processes, resources={"GPU": 0})


def test_retries_and_priority_reach_the_scheduler(processes: Any, tmp_path: Path) -> None:
    """A tile that fails twice is run a third time."""
    folder, seen = tmp_path / "tries", dict[str, Any]()
    folder.mkdir()

    def flaky(crop: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        if len(list(folder.iterdir())) < 2:
            (folder / f"{time.monotonic_ns()}").touch()
            raise RuntimeError("not yet")
        return crop

    def look(dask_scheduler: Any) -> list[Any]:
        return [ts.priority[0] for ts in dask_scheduler.tasks.values() if "group" in str(ts.key)]

    def watch(done: int, total: int) -> None:
        if found := processes.run_on_scheduler(look):
            seen["priority"] = found[0]

    out = mapped(flaky)
    written = tw.to_zarr(
        out, tmp_path / "a.zarr", chunks=16, client=processes, retries=2, priority=7, progress=watch
    )
    np.testing.assert_allclose(written[...], IMAGE, rtol=1e-6)
    assert seen["priority"] == -7


@pytest.fixture
def mortal() -> Iterator[Any]:
    """Run two worker processes that a test kills; a nanny may give up on one after several deaths.

    A task that merely waits on a worker that dies is suspected as well, so a worker is sent one at a time.
    """
    from distributed import Client, LocalCluster

    with (
        dask.config.set(
            {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
        ),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.sample(0)
@pytest.mark.parametrize(
    "on_error",
    ["raise", pytest.param("fill", marks=pytest.mark.slow), pytest.param("continue", marks=pytest.mark.slow)],
)
def test_F3_a_tile_that_always_kills_its_worker_is_named(on_error: str, mortal: Any, tmp_path: Path) -> None:
    """The run ends with an error, or the image with one of many does; the store can be resumed."""

    def deadly(crop: np.ndarray, tile: tw.Tile) -> np.ndarray:
        if tile.position == (3, 4):
            os.kill(os.getpid(), signal.SIGKILL)
        return crop

    from distributed import KilledWorker

    out = tw.tiled_map(deadly, IMAGE, 16, stride=8, blend="gaussian", dtype="f4", chunks=32, pass_tile=True)
    options = {"chunks": 16, "client": mortal, "version": "1", "progress": False}
    if on_error == "continue":
        many = [(out, tmp_path / "a.zarr"), (mapped(), tmp_path / "b.zarr")]
        error = tw.write_many(many, **options)[0].error
        assert isinstance(error, KilledWorker)
    else:
        with pytest.raises(KilledWorker) as caught:
            tw.to_zarr(out, tmp_path / "a.zarr", on_error=on_error, **options)
        error = caught.value
    assert any("(3, 4)" in note and "kills its worker" in note for note in error.__notes__)
    healthy = tw.tiled_map(
        lambda crop, tile: crop, IMAGE, 16, stride=8, blend="gaussian", dtype="f4", chunks=32, pass_tile=True
    )
    written = tw.to_zarr(healthy, tmp_path / "a.zarr", version="1", progress=False)
    np.testing.assert_allclose(written[...], IMAGE, rtol=1e-6)


def test_a_result_that_is_lost_with_its_worker_is_a_failure(client: Any) -> None:
    """Its task runs again and fails, while the result is on its way."""
    from types import SimpleNamespace

    from distributed import KilledWorker

    from tilework.execution.cluster import Cluster
    from tilework.execution.piece import Piece, Shared

    error = KilledWorker("key", None, 3)

    class Lost:
        key, status = "key", "finished"

        def result(self) -> Any:
            raise error

        def exception(self) -> Any:
            return error

        def release(self) -> None:
            pass

    failed: list[Any] = []
    tracker = SimpleNamespace(failed=lambda piece, reason: failed.append(reason))
    cluster = Cluster(Where.find(client=client), tracker)
    piece = Piece(SimpleNamespace(error=None, culprits=lambda key: []), Shared({}), {}, {"key": 1})
    cluster.running["key"] = piece, Lost()
    cluster.users[piece.shared], cluster.shared[piece.shared] = 1, []
    cluster._collect(Lost())
    assert failed == [error]
    assert error.__notes__


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_what_a_cluster_holds_is_not_read_by_threads(scheduler: str, client: Any, tmp_path: Path) -> None:
    """dask says that a dependency is missing."""
    held = client.persist(da.from_array(IMAGE, chunks=32) * 2)
    out = tw.tiled_map(np.negative, held, 24, 4, dtype="f4")
    told = pytest.raises(
        tw.TilingError, match=rf"{held.name} are held by a cluster .*'{scheduler[:4]}.* cannot read"
    )
    for array in (out, held + 1):
        with told:
            tw.to_zarr(array, tmp_path / "a.zarr", scheduler=scheduler, progress=False, overwrite=True)
    with told:
        tw.image_statistics(held, scheduler=scheduler)
    written = tw.to_zarr(out, tmp_path / "b.zarr", client=client, progress=False)
    np.testing.assert_array_equal(written[...], -2 * IMAGE)


def test_a_model_travels_as_its_recipe(processes: Any, tmp_path: Path) -> None:
    """52 MB through `load_once`: less than 1 MB is sent; each process builds it once."""
    built = tmp_path / "built"
    built.mkdir()

    def build() -> Any:
        (built / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}").touch()
        weights = np.ones(52 * 2**20 // 4, "f4")
        return lambda crop: crop * weights[0]

    sent: list[int] = []
    original = processes._send_to_scheduler

    def counted(message: dict[str, Any]) -> Any:
        if "expr_ser" in message:
            sent.append(sum(len(memoryview(frame)) for frame in message["expr_ser"].frames))
        return original(message)

    processes._send_to_scheduler = counted
    try:
        out = mapped(tw.load_once(build))
        tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, client=processes)
    finally:
        del processes._send_to_scheduler
    assert 0 < sum(sent) < 1_000_000
    assert len(list(built.iterdir())) <= 2


def test_compute_false_gives_a_delayed(processes: Any, tmp_path: Path, scheduler: str) -> None:
    """One graph, for those who compute several things at once; the store is marked as usual."""
    out = mapped()
    later = tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, compute=False)
    assert not tw.status(tmp_path / "a.zarr").done
    written = later.compute()
    assert tw.status(tmp_path / "a.zarr").complete
    np.testing.assert_array_equal(written[...], out.compute(scheduler="synchronous"))
    other = tw.to_zarr(out, tmp_path / "b.zarr", chunks=16, compute=False)
    np.testing.assert_array_equal(processes.compute(other, sync=True)[...], written[...])


def picky(crop: np.ndarray) -> np.ndarray:
    if crop.max() == IMAGE.max():
        raise ValueError("not this one")
    return crop


def flaky(log: Path) -> Any:
    def sometimes(crop: np.ndarray) -> np.ndarray:
        if crop.max() == IMAGE.max():
            with log.open("ab") as file:
                file.write(b".")
            if log.stat().st_size < 3:
                raise ValueError("not yet")
        return crop

    return sometimes


@pytest.mark.parametrize("several", [False, True])
def test_compute_false_keeps_failures_and_retries(
    several: bool, processes: Any, scheduler: str, tmp_path: Path
) -> None:
    """Tiles that are left out are recorded at the end, and tasks try again, on any scheduler."""
    out = mapped(picky, blend="trim")
    whole = mapped(flaky(tmp_path / "log"), blend="trim")
    if several:
        out, whole = (
            tw.tiled_map(lambda c, f=f: (f(c), f(c)), IMAGE, 16, stride=8, output=[tw.Output(dtype="f4")] * 2)
            for f in (picky, lambda crop: crop)
        )
    later = tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, compute=False, on_error="fill")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written = later.compute()
    # A process warns for itself, and dask does not pass it on.
    assert any("4 tiles failed" in str(one.message) for one in said) == (scheduler != "processes")
    found = statuses(tmp_path / "a.zarr")
    assert all(len(one.failed) == 4 and not one.complete for one in found)
    assert isinstance(written, zarr.Group if several else zarr.Array)
    tw.to_zarr(whole, tmp_path / "b.zarr", chunks=16, compute=False, retries=2).compute()
    assert tw.status(tmp_path / "b.zarr").complete
    if not several:
        assert (tmp_path / "log").stat().st_size >= 3
        (tmp_path / "log").unlink()
        tried = tw.to_zarr(whole, tmp_path / "c.zarr", chunks=16, compute=False, retries=2)
        np.testing.assert_array_equal(processes.compute(tried, sync=True)[:], IMAGE)


@pytest.mark.parametrize(
    "given",
    [
        {"priority": 5}, {"resources": {"GPU": 1}}, {"progress": True}, {"progress": print},
        {"scheduler": "threads"},
    ],
    ids=["priority", "resources", "bar", "callable", "scheduler"],
)  # fmt: skip
def test_compute_false_refuses_what_only_computing_can_keep(
    given: Any, processes: Any, tmp_path: Path
) -> None:
    with pytest.raises(tw.TilingError, match=f"compute=False cannot keep.* {next(iter(given))}="):
        tw.to_zarr(mapped(), tmp_path / "a.zarr", compute=False, client=processes, **given)
    with pytest.raises(tw.TilingError, match="compute=False cannot keep client="):
        tw.to_zarr(mapped(), tmp_path / "a.zarr", compute=False, client=processes)
    assert not (tmp_path / "a.zarr").exists()


def test_progress_counts_every_tile_once(processes: Any, tmp_path: Path) -> None:
    """On a cluster as elsewhere."""
    seen: list[tuple[int, int]] = []
    out = mapped()
    tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, client=processes, progress=lambda *now: seen.append(now))
    assert seen[-1] == (len(plan_of(out)),) * 2
    assert seen == sorted(seen)


def test_the_memory_of_a_run_is_that_of_the_smallest_worker() -> None:
    """Any block may run on any worker; one without a limit says nothing."""
    limits = (8 * 10**9, 10**9, 0, 4 * 10**9)
    workers = tuple({"memory_limit": n, "nthreads": 2, "resources": {}} for n in limits)
    found = Where(get=lambda *_: None, client=object(), workers=workers)
    assert found.memory == int(0.6 * 10**9)


def test_the_memory_of_a_task_is_the_least_that_a_worker_has_for_each_of_its_tasks() -> None:
    """Neither the smallest worker nor the one with most threads decides alone."""
    kinds = {
        "a small one beside a large one": ([(2, 1), (64, 16)], (1, 2)),
        "many threads on little": ([(8, 1), (16, 16)], (16, 16)),
        "one without a limit": ([(0, 32), (8, 4)], (4, 8)),
        "equal quotients": ([(8, 4), (8, 4)], (4, 8)),
    }
    for name, (given, (threads, memory)) in kinds.items():
        workers = tuple({"memory_limit": n * 10**9, "nthreads": t, "resources": {}} for n, t in given)
        found = Where(get=lambda *_: None, client=object(), workers=workers)
        assert (found.threads, found.memory) == (threads, int(0.6 * memory * 10**9)), name


def test_a_client_without_a_scheduler_is_named() -> None:
    """A notebook keeps the error and so the client, which dask uses for all that follows."""
    from distributed import Client, get_client

    out = tw.tiled_map(np.negative, np.ones((20, 20)), 8, 2)
    with pytest.raises(ValueError, match="missing port") as kept:
        Client("nowhere", timeout=1)
    broken = get_client()
    try:
        for client in (None, broken):
            with pytest.raises(tw.TilingError, match=r"is connecting.*missing port .* Close the client"):
                tw.to_zarr(out, zarr.storage.MemoryStore(), client=client, progress=False)
        with dask.config.set(scheduler="threads"):
            assert tw.compute(out).sum() == -400
    finally:
        broken.close()
    assert tw.compute(out).sum() == -400
    del kept
