"""Many images through one window: no image waits for the last block of another, none stops the rest."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

import tilework as tw


def image(k: int) -> np.ndarray:
    return np.full((48, 40), k, "f4")


def mapped(k: int, fn: Any = np.negative) -> Any:
    return tw.tiled_map(fn, image(k), 16, 4, dtype="f4", chunks=16)


def failing(crop: np.ndarray) -> np.ndarray:
    raise ValueError("never")


def test_each_image_to_its_store(scheduler: str, tmp_path: Path) -> None:
    """Pairs, triples with options, and callables; in one bar."""
    seen: list[tuple[int, int]] = []
    jobs = [
        (mapped(1), tmp_path / "1.zarr"),
        (mapped(2), tmp_path / "all.zarr", {"path": "two", "chunks": (8, 16)}),
        lambda: (mapped(3), str(tmp_path / "3.zarr")),
    ]
    report = tw.write_many(jobs, chunks=16, progress=lambda *now: seen.append(now))
    assert [outcome.ok for outcome in report] == [True] * 3
    for k, outcome in enumerate(report, 1):
        np.testing.assert_array_equal(outcome.result[...], -image(k))
    assert report[1].result.chunks == (8, 16)
    assert seen[-1][0] == seen[-1][1] == sum(outcome.tiles for outcome in report)
    again = tw.write_many(jobs[:1], chunks=16, progress=False)
    assert (again[0].ok, again[0].tiles) == (True, 0)


def test_an_image_that_fails_leaves_the_others(scheduler: str, tmp_path: Path) -> None:
    """Its error names the tile; what cannot even be opened is reported too."""

    def broken() -> Any:
        raise OSError("no such slide")

    jobs: list[Any] = [
        (mapped(1), tmp_path / "1.zarr"),
        (mapped(2, failing), tmp_path / "2.zarr"),
        broken,
        (mapped(4), tmp_path / "4.zarr"),
    ]
    report = tw.write_many(jobs, progress=False)
    assert [outcome.ok for outcome in report] == [True, False, False, True]
    assert isinstance(report[1].error, ValueError)
    assert "raised by fn on tile" in str(report[1])
    assert "no such slide" in str(report[2])
    assert [str(outcome.store) for outcome in report.failed] == [report[1].store, "job 2"]
    np.testing.assert_array_equal(report[3].result[...], -image(4))
    with pytest.raises(ValueError, match="never"):
        tw.write_many(jobs[:2], progress=False, on_error="raise", overwrite=True)


def test_failed_tiles_are_listed_with_box_and_error(tmp_path: Path) -> None:
    def picky(crop: np.ndarray, tile: tw.Tile) -> np.ndarray:
        if tile.index == 2:
            raise ValueError("not this one")
        return crop

    out = tw.tiled_map(picky, image(1), 16, 4, dtype="f4", pass_tile=True, fill_value=7)
    [outcome] = tw.write_many([(out, tmp_path / "1.zarr")], on_error="fill", progress=False)
    assert not outcome.ok
    assert [(f.tile.index, f.error) for f in outcome.failures] == [(2, "ValueError: not this one")]
    assert (outcome.result[...][outcome.failures[0].tile.core.slices] == 7).all()


@pytest.mark.parametrize("jobs", [[1], [(1, 2, 3, 4)]], ids=["number", "four"])
def test_what_is_no_job_is_said(jobs: Any) -> None:
    assert "a job is (result, store)" in str(tw.write_many(jobs, progress=False))
    with pytest.raises(tw.TilingError, match="on_error"):
        tw.write_many([], on_error="ignore")


@pytest.mark.sample(0)
@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_worker_idles_between_slides(tmp_path: Path) -> None:
    """Twenty masked slides on a cluster: their tasks overlap in time, and one that fails stops nobody."""
    from distributed import Client, LocalCluster

    def slow(crop: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        if crop.max() == 7:
            raise ValueError("slide seven")
        return -crop

    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    jobs = [
        (tw.tiled_map(slow, np.full((64, 64), k, "f4"), 16, 4, dtype="f4", chunks=16, mask=mask),
         tmp_path / f"{k}.zarr")
        for k in range(20)
    ]  # fmt: skip
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.get_task_stream()  # from now on
        report = tw.write_many(jobs, client=client, progress=False, chunks=16)
        stream = client.get_task_stream(count=10_000)
    assert [k for k, outcome in enumerate(report) if not outcome.ok] == [7]
    spans: dict[str, list[float]] = {}
    for task in stream:
        name = str(task["key"])
        for part in task["startstops"]:
            if part["action"] == "compute" and "-spec" not in name and "part" not in name:
                slide = name.partition("tiled_map-")[2].partition("'")[0].rpartition("-")[0]
                spans.setdefault(slide, []).extend((part["start"], part["stop"]))
    order = sorted((min(times), max(times)) for times in spans.values())
    assert len(order) == 20
    # A slide begins while the one before has tasks left; one by one, none would.
    overlapping = [after[0] < before[1] for before, after in itertools.pairwise(order)]
    assert sum(overlapping) >= 5


def test_slides_in_one_store_share_nothing_but_it(tmp_path: Path) -> None:
    """Members of one group are arrays of their own."""
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    report = tw.write_many([(mapped(k), group, {"path": f"s{k}"}) for k in range(3)], progress=False)
    assert all(outcome.ok for outcome in report)
    assert [status.complete for status in tw.status(group)] == [True] * 3


# -- what is kept ----------------------------------------------------------------------------------------


class Watched:
    """Jobs whose images are counted as long as anything refers to them."""

    def __init__(self, folder: Path, number: int, **options: Any) -> None:
        self.folder, self.number, self.options = folder, number, options
        self.images: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def alive(self) -> int:
        return sum(image() is not None for image in self.images)

    def __iter__(self) -> Iterator[Any]:
        for k in range(self.number):
            self.most = max(self.most, self.alive())
            side = self.options.get("side", 64)
            image = np.full((side, side), k, "f4")
            self.images.append(weakref.ref(image))
            fn = self.options.get("fn", np.negative)
            yield tw.tiled_map(fn, image, side, 0, dtype="f4"), self.folder / f"{k}.zarr"
            del image


@pytest.mark.sample(4, whole=7)
@pytest.mark.parametrize("kind", ["well", "resumed", "failing", "filled", "retried"])
def test_an_image_is_let_go_when_it_is_done(kind: str, scheduler: str, tmp_path: Path) -> None:
    """One block each, so that an image is needed for every busy thread; without the garbage collector."""
    fn = failing if kind in ("failing", "filled", "retried") else np.negative
    options = {"on_error": "fill" if kind == "filled" else "continue", "retries": int(kind == "retried")}
    with dask.config.set(num_workers=2):
        if kind == "resumed":
            tw.write_many(Watched(tmp_path, 12), progress=False)
        jobs = Watched(tmp_path, 12, fn=fn)
        gc.collect()
        gc.disable()
        try:
            report = tw.write_many(jobs, progress=False, **options)
            assert jobs.most <= 5
            assert jobs.alive() == 0
        finally:
            gc.enable()
    assert [outcome.ok for outcome in report] == [fn is not failing] * 12


@pytest.mark.sample(0)
@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_is_given_few_images_at_a_time(tmp_path: Path) -> None:
    """Of more than a megabyte each: a client of distributed keeps smaller messages in a log."""
    from distributed import Client, LocalCluster

    jobs = Watched(tmp_path, 12, side=512)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        report = tw.write_many(jobs, client=client, progress=False)
        gc.collect()
        assert (jobs.most <= 8, jobs.alive()) == (True, 0)
    for k, outcome in enumerate(report):
        assert (outcome.result[:] == -k).all()


@pytest.mark.parametrize("place", ["fn", "prepare"])
def test_an_error_keeps_no_crop(place: str, scheduler: str, tmp_path: Path) -> None:
    """Neither in its traceback nor in that of its cause; its text is in the last note."""
    crops: list[weakref.ref[np.ndarray]] = []

    def unhappy(crop: np.ndarray) -> np.ndarray:
        crops.append(weakref.ref(crop))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("never") from error

    def opened() -> Any:
        held = image(1)
        crops.append(weakref.ref(held))
        return unhappy(held)

    jobs = [(mapped(1, unhappy), tmp_path / "1.zarr") if place == "fn" else opened]
    [outcome] = tw.write_many(jobs, progress=False)
    assert isinstance(outcome.error, ValueError)
    assert outcome.error.__traceback__ is None
    assert "in unhappy" in outcome.error.__notes__[-1]
    assert "KeyError: 'inner'" in outcome.error.__notes__[-1]
    assert str(outcome).count("\n") == 0
    assert not any(crop() is not None for crop in crops)


# -- what fails at the end -------------------------------------------------------------------------------


class Fails(zarr.storage.MemoryStore):
    """Fails at the end of a run: when marks are read back, or when the final record is written."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.records = where, 0

    async def list_prefix(self, prefix: str) -> Any:
        if self.where == "close" and any("/done/" in key for key in self._store_dict):
            raise OSError("cannot list")
        async for key in super().list_prefix(prefix):
            yield key

    async def set(self, key: str, value: Any, byte_range: Any = None) -> None:
        if key == "zarr.json":
            self.records += 1
            if self.where == "record" and self.records > 1:
                raise OSError("cannot write the record")
        await super().set(key, value)


def nearly(crop: np.ndarray, tile: tw.Tile) -> np.ndarray:
    if tile.index == 3:
        raise ValueError("one tile")
    return -crop


@pytest.mark.parametrize("where", ["close", "record"])
def test_a_store_that_fails_at_its_end_is_one_outcome(where: str, tmp_path: Path) -> None:
    """The others go on, unless the first error is to end the run."""
    out = tw.tiled_map(nearly, image(2), 16, 4, dtype="f4", chunks=16, pass_tile=True)
    jobs = [(mapped(1), tmp_path / "1.zarr"), (out, Fails(where)), (mapped(3), tmp_path / "3.zarr")]
    report = tw.write_many(jobs, progress=False, on_error="fill")
    assert [outcome.error is None for outcome in report] == [True, False, True]
    assert isinstance(report[1].error, OSError)
    assert report[1].result is None
    assert len(report[1].failures) == 1
    assert all(tw.status(tmp_path / f"{k}.zarr").complete for k in (1, 3))
    with pytest.raises(OSError, match="cannot"):
        tw.write_many([(mapped(1), Fails("close"))], progress=False, on_error="raise")


@pytest.mark.parametrize("on_error", ["continue", "fill", "raise"])
def test_jobs_that_cannot_be_listed_to_their_end(on_error: str, scheduler: str, tmp_path: Path) -> None:
    """What has begun ends properly, and the error is raised."""

    def jobs() -> Iterator[Any]:
        for k in range(3):
            yield mapped(k), tmp_path / f"{k}.zarr"
        raise OSError("the list of slides is gone")

    with pytest.raises(OSError, match="the list of slides is gone"):
        tw.write_many(jobs(), progress=False, on_error=on_error)
    for k in range(3):
        assert tw.status(tmp_path / f"{k}.zarr").complete
        np.testing.assert_array_equal(zarr.open(str(tmp_path / f"{k}.zarr"))[:], -image(k))


@pytest.mark.parametrize("how", [KeyboardInterrupt, ZeroDivisionError])
def test_a_progress_that_raises_ends_the_run(how: Any, scheduler: str, tmp_path: Path) -> None:
    """It belongs to no image; every store can be resumed."""

    def progress(done: int, total: int) -> None:
        if done >= 15:
            raise how("enough")

    jobs = [(mapped(k), tmp_path / f"{k}.zarr") for k in range(3)]
    with pytest.raises(how, match="enough"):
        tw.write_many(jobs, progress=progress)
    report = tw.write_many(jobs, progress=False)
    assert all(outcome.ok for outcome in report)
    for k, outcome in enumerate(report):
        np.testing.assert_array_equal(outcome.result[:], -image(k))
