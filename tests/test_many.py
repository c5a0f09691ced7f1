"""Many images through one window: no image waits for the last block of another, none stops the rest."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

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
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(order)]
    # A slide starts while the one before has tasks left: where it does not, hardly any time passes.
    assert np.median(gaps) < 0.01


def test_slides_in_one_store_share_nothing_but_it(tmp_path: Path) -> None:
    """Members of one group are arrays of their own."""
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    report = tw.write_many([(mapped(k), group, {"path": f"s{k}"}) for k in range(3)], progress=False)
    assert all(outcome.ok for outcome in report)
    assert [status.complete for status in tw.status(group)] == [True] * 3
