"""Dask arrays of which some blocks cannot be computed: what reads them fails, and nothing else."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Event

import tilework as tw

IMAGE = np.random.default_rng(5).integers(1, 99, (48, 40)).astype("f4")
CHUNK = 12
TILES: dict[str, Any] = {"crop": 10, "stride": 5, "blend": "max", "chunks": 10}


def chunks_of(image: np.ndarray, fails: Callable[[int, int], bool] = lambda row, column: False) -> Any:
    """Return an array of which some blocks cannot be computed."""

    def load(chunk: np.ndarray, block_id: tuple[int, int]) -> np.ndarray:
        if fails(*block_id):
            raise OSError(f"no file for chunk {block_id}")
        return chunk

    return da.from_array(image, chunks=CHUNK).map_blocks(
        load, dtype=image.dtype, meta=np.empty((0, 0), image.dtype)
    )


class FirstCalls:
    """Fails the first times that it is asked, whatever the block."""

    def __init__(self, times: int) -> None:
        self.times = itertools.count(times, -1)

    def __call__(self, row: int, column: int) -> bool:
        return next(self.times) > 0


RESULTS: dict[str, Callable[[Any], Any]] = {
    "tiled": lambda source: tw.tiled_map(np.sqrt, source, **TILES),
    "lazy": lambda source: -source.rechunk(20),
    "of a result": lambda source: tw.tiled_map(np.sqrt, source, **TILES) > 5,
    "of two": lambda source: tw.tiled_map(np.subtract, (source, source * 2), **TILES),
}


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.sample(3)
def test_an_image_that_cannot_be_read_ends_no_other(kind: str, scheduler: str, tmp_path: Path) -> None:
    sources = [
        chunks_of(IMAGE),
        chunks_of(IMAGE, lambda row, column: (row, column) == (2, 1)),
        chunks_of(IMAGE),
    ]
    report = tw.write_many(
        ((RESULTS[kind](source), tmp_path / f"{k}.zarr") for k, source in enumerate(sources)), progress=False
    )
    assert [outcome.ok for outcome in report] == [True, False, True]
    assert "no file for chunk (2, 1)" in str(report[1].error)
    assert str(report[1]).endswith("OSError: no file for chunk (2, 1)")  # it has no notes on a tile
    expected = RESULTS[kind](IMAGE if kind != "lazy" else da.from_array(IMAGE)).compute(scheduler="sync")
    for k in (0, 2):
        np.testing.assert_array_equal(zarr.open_array(tmp_path / f"{k}.zarr", mode="r")[...], expected)


def test_a_function_that_fails_below_arithmetic_ends_no_other_image(tmp_path: Path) -> None:
    def fails(crop: np.ndarray) -> np.ndarray:
        raise ValueError("no result")

    outs = [tw.tiled_map(fn, IMAGE, dtype="f4", **TILES) * 2 for fn in (fails, np.negative)]
    report = tw.write_many(zip(outs, (tmp_path / "a.zarr", tmp_path / "b.zarr"), strict=True), progress=False)
    assert [outcome.ok for outcome in report] == [False, True]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b.zarr", mode="r")[...], -2 * IMAGE)


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("ways", ["threads", "sync"])
def test_retries_are_for_what_is_read_too(
    kind: str, ways: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilework.engine.reading.FIRST_WAIT", 0.0)
    expected = RESULTS[kind](chunks_of(IMAGE)).compute(scheduler="sync")
    with dask.config.set(scheduler=ways):
        made = tw.to_zarr(
            RESULTS[kind](chunks_of(IMAGE, FirstCalls(2))), tmp_path / "a.zarr", retries=2, progress=False
        )
        np.testing.assert_array_equal(made[...], expected)
        with pytest.raises(OSError, match="no file"):
            tw.to_zarr(RESULTS[kind](chunks_of(IMAGE, FirstCalls(99))), tmp_path / "b.zarr", progress=False)


def test_retries_of_statistics_and_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilework.engine.reading.FIRST_WAIT", 0.0)
    labels = IMAGE.astype(int)
    with dask.config.set(scheduler="threads"):
        found = tw.image_statistics(chunks_of(IMAGE, FirstCalls(2)), retries=2, progress=False)
        assert found.mean == IMAGE.mean(dtype=float)
        table = tw.measure_labels(chunks_of(labels, FirstCalls(2)), retries=2, progress=False)
        assert len(table) == len(np.unique(labels))
        with pytest.raises(OSError, match="no file"):
            tw.image_statistics(chunks_of(IMAGE, FirstCalls(9)), progress=False)


def raises_on_nan(crop: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Fail as reading would where a block that cannot be computed is NaN."""
    if any(np.isnan(one).any() for one in (crop, *more)):
        raise OSError("no file")
    return crop * 2 if not more else crop + more[0]


def on_batches(crops: np.ndarray) -> np.ndarray:
    return raises_on_nan(crops)


LAYOUTS: dict[str, dict[str, Any]] = {
    "trim": {"crop": 10, "overlap": 2, "chunks": 10},
    "blend": {"crop": 10, "stride": 5, "blend": "gaussian", "chunks": 10},
    "recompute": {"crop": 10, "stride": 5, "blend": "gaussian", "chunks": 10, "reuse": "recompute"},
    "one block": {"crop": 10, "stride": 5, "blend": "max", "chunks": 60},
    "clip": {"crop": 10, "overlap": 1, "edge": "clip", "chunks": 16},
    "batches": {"crop": 10, "overlap": 2, "chunks": 20, "batch_size": 4},
    "wrap": {"crop": 10, "overlap": 2, "chunks": 20, "boundary": "wrap"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arrays", [1, 2])
@pytest.mark.sample(4, whole=20)
def test_only_the_tiles_are_left_out_that_read_it(
    layout: str, arrays: int, scheduler: str, tmp_path: Path
) -> None:
    """The same tiles as where the function fails on samples of the block."""
    lost = {(1, 1), (3, 0)}
    holes = IMAGE.copy()
    for row, column in lost:
        holes[row * CHUNK :][:CHUNK, column * CHUNK :][:, :CHUNK] = np.nan
    options = LAYOUTS[layout] | {"dtype": "f4", "fill_value": -1}
    source = chunks_of(IMAGE, lambda *index: index in lost)
    fn = on_batches if "batch_size" in options else raises_on_nan
    if arrays == 2 and "batch_size" in options:
        options.pop("batch_size")
        fn = raises_on_nan
    given = {
        True: source if arrays == 1 else (source, source + 1),
        False: holes if arrays == 1 else (holes, holes + 1),
    }
    written = {}
    for lazy, images in given.items():
        with pytest.warns(tw.TilingWarning, match="tiles failed"):
            written[lazy] = tw.to_zarr(
                tw.tiled_map(fn, images, **options),
                tmp_path / f"{lazy}.zarr",
                on_error="fill",
                progress=False,
            )[...]
    assert 0 < (written[True] == -1).mean() < 0.9
    np.testing.assert_array_equal(written[True], written[False])


@pytest.mark.parametrize("target", ["compute", "into", "numpy", "store"])
def test_the_warning_says_what_another_call_does(target: str) -> None:
    """Only a store knows which units are to be computed again."""
    out = tw.tiled_map(
        np.copy, chunks_of(IMAGE, lambda *index: index == (1, 1)), **LAYOUTS["trim"], dtype="f4"
    )
    array, store = np.empty(IMAGE.shape, "f4"), zarr.storage.MemoryStore()
    write = {
        "compute": lambda: tw.compute(out, on_error="fill"),
        "into": lambda: tw.compute(out, into=array, on_error="fill"),
        "numpy": lambda: tw.to_zarr(out, array, on_error="fill", progress=False),
        "store": lambda: tw.to_zarr(out, store, on_error="fill", progress=False),
    }[target]
    kept = "another call computes all of it; retries= tries them again"
    says = "the next call computes the units that they touch again" if target == "store" else kept
    with pytest.warns(tw.TilingWarning, match=rf"tiles failed.*{says}.* The first: tile \d+"):
        write()


LOST: set[tuple[int, int]] = set()


def load(chunk: np.ndarray, block_id: tuple[int, int]) -> np.ndarray:
    if block_id in LOST:
        raise OSError(f"no file for chunk {block_id}")
    return chunk


def test_tiles_are_left_out_on_a_cluster_and_made_later(client: Any, tmp_path: Path) -> None:
    source = da.from_array(IMAGE, chunks=CHUNK).map_blocks(load, dtype="f4", meta=np.empty((0, 0), "f4"))
    out = tw.tiled_map(np.negative, source, fill_value=7, **TILES)
    options: dict[str, Any] = {"client": client, "version": "1", "progress": False}
    LOST.add((1, 1))
    with pytest.warns(tw.TilingWarning, match=r"tiles failed.*no file for chunk \(1, 1\)"):
        made = tw.to_zarr(out, tmp_path / "a.zarr", on_error="fill", **options)[...]
    assert set(np.unique((made + IMAGE)[made != 7])) == {0}
    assert 0 < (made == 7).mean() < 0.3
    LOST.clear()
    np.testing.assert_array_equal(tw.to_zarr(out, tmp_path / "a.zarr", **options)[...], -IMAGE)


def test_all_tasks_that_call_a_function_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of results that are read, and of results below arithmetic, need the resources of a run too."""
    from tilework.writing.jobs import ChunkJob, TileJob

    found: dict[str, set[str]] = {}

    def noted(job: Any) -> Any:
        job.apart = True
        for piece in made[type(job)](job):
            found.setdefault(type(job).__name__, set()).update(str(key[0]) for key in piece.heavy)
            yield piece

    made = {kind: kind.pieces for kind in (ChunkJob, TileJob)}
    for kind in made:
        monkeypatch.setattr(kind, "pieces", noted)
    below = tw.tiled_map(np.negative, IMAGE, **TILES)
    tw.to_zarr(below * 2, tmp_path / "a.zarr", progress=False)
    assert any("group" in name for name in found["ChunkJob"])
    found.clear()
    tw.to_zarr(tw.tiled_map(np.negative, below, **TILES), tmp_path / "b.zarr", progress=False)
    assert {name.rpartition("-")[0] for name in found["TileJob"] if "group" in name} >= {below.name}


@pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")
@pytest.mark.parametrize("way", ["left out", "delayed", "delayed, below arithmetic"])
def test_what_else_runs_on_a_cluster_gets_the_error(way: str, client: Any, tmp_path: Path) -> None:
    """Tasks that return their errors have names of their own."""
    began, go = Event(client=client), Event(client=client)

    def late(chunk: np.ndarray, block_id: tuple[int, int]) -> np.ndarray:
        began.set()
        go.wait(20)
        if block_id == (1, 1):
            raise OSError("no file")
        return chunk

    source = da.from_array(IMAGE, chunks=24).map_blocks(late, dtype="f4", meta=np.empty((0, 0), "f4"))
    out = tw.tiled_map(np.negative, source, **TILES)
    if way == "left out":
        run = Thread(
            target=tw.to_zarr, args=(out, tmp_path / "a.zarr"),
            kwargs={"on_error": "fill", "progress": False, "client": client},
        )  # fmt: skip
        run.start()
    else:
        run = client.compute(
            tw.to_zarr(source * 2 if "below" in way else out, tmp_path / "a.zarr", compute=False)
        )
    assert began.wait(20)
    own = client.compute((source + 0).sum(), optimize_graph=False)
    go.set()
    with pytest.raises(OSError, match="no file"):
        own.result(timeout=30)
    if isinstance(run, Thread):
        run.join()
    else:
        with pytest.raises(OSError, match="no file"):
            run.result(timeout=30)


def test_tiles_are_left_out_of_each_image_alone(tmp_path: Path) -> None:
    """A block of one image may be computed on the way to blocks of the other."""
    source = chunks_of(IMAGE, lambda *index: index == (1, 1))
    outs = [tw.tiled_map(np.negative, s, dtype="f4", fill_value=7, **TILES) for s in (source, source + 0)]
    with pytest.warns(tw.TilingWarning, match="tiles failed"):
        alone = tw.to_zarr(outs[0], tmp_path / "alone.zarr", on_error="fill", progress=False)[...]
    report = tw.write_many(
        zip(outs, (tmp_path / "0.zarr", tmp_path / "1.zarr"), strict=True), on_error="fill", progress=False
    )
    assert all(outcome.failures for outcome in report)
    for k in (0, 1):
        np.testing.assert_array_equal(zarr.open_array(tmp_path / f"{k}.zarr", mode="r")[...], alone)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_an_error_that_many_tasks_meet_has_one_note(scheduler: str, tmp_path: Path) -> None:
    source = chunks_of(IMAGE, lambda *index: index == (1, 1))
    with dask.config.set(scheduler=scheduler):
        report = tw.write_many([(source - source.mean(), tmp_path / "a.zarr")], progress=False)
    [note] = report[0].error.__notes__
    assert note.startswith("Traceback")


class TwoWords(Exception):
    """An error that pickle cannot make again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def two_words(chunk: np.ndarray, block_id: tuple[int, int]) -> np.ndarray:
    if block_id == (1, 1):
        raise TwoWords("no", "file")
    return chunk


@pytest.mark.parametrize("on_error", ["continue", "fill"])
def test_an_error_that_cannot_be_sent_ends_no_other_image(
    on_error: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sound = chunks_of(IMAGE)
    broken = da.from_array(IMAGE, chunks=CHUNK).map_blocks(two_words, dtype="f4", meta=sound._meta)
    outs = [tw.tiled_map(np.negative, s, dtype="f4", fill_value=7, **TILES) for s in (broken, sound)]
    stores = tmp_path / "0.zarr", tmp_path / "1.zarr"
    with dask.config.set(scheduler="processes", pool=request.getfixturevalue("_process_pool")):
        report = tw.write_many(zip(outs, stores, strict=True), on_error=on_error, progress=False)
    assert "TwoWords: no file" in str(report[0].error or report[0].failures[0].error)
    assert report[1].ok
    np.testing.assert_array_equal(zarr.open_array(stores[1], mode="r")[...], -IMAGE)


def test_values_of_a_user_are_not_searched(tmp_path: Path) -> None:
    """What is between the tasks of a dask array may be anything."""

    def anything() -> list[Any]:
        endless: list[Any] = []
        endless.append(endless)
        deep: Any = ()
        for _ in range(3000):
            deep = (deep,)
        return [endless, deep, IMAGE]

    value = dask.delayed(anything)()
    source = da.from_delayed(dask.delayed(lambda found: found[2])(value), IMAGE.shape, "f4")
    with dask.config.set(scheduler="threads"):
        made = tw.to_zarr(source.rechunk(10) * 2, tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(made[...], 2 * IMAGE)


# -- the other steps of a tile ------------------------------------------------------------------------------


class Flaky:
    """An image of which one place fails a number of times, and then can be read."""

    shape, dtype, ndim = (16, 16), np.dtype("f4"), 2

    def __init__(self, times: int) -> None:
        self.fails = FirstCalls(times)

    def __getitem__(self, box: Any) -> np.ndarray:
        if box[0].start <= 9 < box[0].stop and box[1].start <= 9 < box[1].stop and self.fails(1, 1):
            raise OSError("no such place")
        return np.ones([s.stop - s.start for s in box], self.dtype)


def never(crop: np.ndarray) -> bool:
    return False


@pytest.mark.parametrize("step", ["read", "skip", "skip says nothing", "fn"])
@pytest.mark.parametrize(("times", "retries", "left_out"), [(1, 0, 1), (2, 2, 0), (9, 2, 1)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_every_step_of_a_tile_may_fail(
    step: str, times: int, retries: int, left_out: int, batch_size: int | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A union that cannot be read, or a batch that fails, is one attempt more."""
    monkeypatch.setattr("tilework.engine.reading.FIRST_WAIT", 0.0)
    image = np.ones((16, 16), "f4")
    image[9, 9] = 2
    fails = FirstCalls(times + (step == "fn" and batch_size is not None) * (retries + 1))

    def fragile(crop: np.ndarray) -> np.ndarray:
        if (crop == 2).any() and fails(1, 1):
            raise ValueError("that one")
        return crop

    def skips(crop: np.ndarray) -> Any:
        return crop > 0 if step == "skip says nothing" and (crop == 2).any() and fails(1, 1) else False

    source: Any = Flaky(times + 1) if step == "read" else image
    skip = {"skip": lambda crop: not fragile(crop).any(), "skip says nothing": skips}.get(step, never)
    fn: Any = fragile if step == "fn" else np.copy
    out = tw.tiled_map(fn, source, 4, 0, dtype="f4", skip=skip, chunks=8, batch_size=batch_size, fill_value=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tw.TilingWarning)
        made = tw.to_zarr(
            out, tmp_path / "a.zarr", chunks=4, on_error="fill", retries=retries, progress=False,
            scheduler="sync",
        )  # fmt: skip
    assert int((made[...] == 7).sum()) == 16 * left_out
    assert len(tw.status(made).failed) == left_out


def test_what_a_task_was_given_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that could not be computed had its own attempts."""
    waits: list[int] = []
    monkeypatch.setattr("tilework.engine.reading.wait", waits.append)
    out = tw.tiled_map(np.copy, chunks_of(IMAGE, lambda *at: at == (1, 1)), 6, 0, dtype="f4", chunks=12)
    with pytest.warns(tw.TilingWarning, match="4 tiles"):
        tw.to_zarr(
            out, tmp_path / "a.zarr", on_error="fill", retries=3, progress=False, chunks=12, scheduler="sync"
        )
    assert not waits
