"""I, storage: dask arrays that are read, in runs of many windows."""

from __future__ import annotations

import gc
import operator
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.highlevelgraph import HighLevelGraph

import tilework as tw
import tilework.execution.cluster
from tests.laws.test_i_storage import in_batches, most_seams
from tilework.graph.build import plan_of

IMAGE = np.random.default_rng(0).integers(0, 99, (60, 34)).astype("f4")
OPTIONS: dict[str, Any] = {"crop": 8, "stride": 4, "blend": "max", "dtype": "f4", "chunks": 8}


def tuples(image: np.ndarray) -> Any:
    """Return an array of the older kind of tasks: of tuples, lists, keys that stand for others, and data."""
    graph: dict[Any, Any] = {"data": image, "other": "data"}
    graph["rows"] = [(np.copy, image), (operator.getitem, [0, "other"], 1)]
    for row in range(4):
        part = slice(15 * row, 15 * row + 15)
        graph["made", row, 0] = (operator.getitem, (operator.getitem, "rows", row % 2), part)
    return da.Array(HighLevelGraph.from_collections("made", graph), "made", ((15,) * 4, (34,)), image.dtype)


SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "data": lambda image: da.from_array(image, chunks=7),
    "tasks": lambda image: da.from_array(image, chunks=7) * 2,
    "rechunked": lambda image: da.from_array(image, chunks=(60, 3)).rechunk((5, 34)),
    "overlaps": lambda image: da.from_array(image, chunks=10).map_overlap(np.copy, depth=2, boundary=0),
    "parts": lambda image: da.concatenate([da.from_array(image[:31], chunks=9), image[31:]]),
    "sums of all before": lambda image: da.from_array(image, chunks=7).cumsum(axis=0),
    "less its mean": lambda image: (a := da.from_array(image, chunks=7)) - a.mean().round(),
    "turned": lambda image: da.from_array(image, chunks=7)[::-1, ::-1],
    "delayed": lambda image: da.from_delayed(dask.delayed(np.copy)(image), image.shape, image.dtype),
    "tuples": tuples,
    "tiled": lambda image: tw.tiled_map(np.arctan, da.from_array(image, chunks=7), **OPTIONS),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.sample(0, whole=16)
def test_I5_windows_give_the_bits_of_the_array_in_memory(
    kind: str, scheduler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_batches(monkeypatch, 3)
    source = SOURCES[kind](IMAGE)
    with dask.config.set(scheduler="sync"):
        whole = tw.tiled_map(np.arctan, np.asarray(source.compute()), **OPTIONS).compute()
    written = tw.to_zarr(tw.tiled_map(np.arctan, source, **OPTIONS), tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(written[...], whole)


@pytest.mark.parametrize("kind", ["data", "overlaps", "less its mean", "tuples", "tiled"])
@pytest.mark.sample(2)
def test_I5_windows_of_a_cluster_give_the_same_bits(
    kind: str, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tilework.execution.cluster, "CLUSTER_BLOCKS", 8)
    monkeypatch.setattr(tilework.execution.cluster, "BLOCKS_PER_THREAD", 1)
    source = SOURCES[kind](IMAGE)
    with dask.config.set(scheduler="sync"):
        whole = tw.tiled_map(np.arctan, np.asarray(source.compute()), **OPTIONS).compute()
    out = tw.tiled_map(np.arctan, source, **OPTIONS)
    written = tw.to_zarr(out, tmp_path / "a.zarr", progress=False, scheduler=client)
    np.testing.assert_array_equal(written[...], whole)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.sample(4, whole=32)
def test_I5_any_dask_array_is_written_in_windows(
    kind: str, window: int, scheduler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_batches(monkeypatch, window)
    source = SOURCES[kind](IMAGE)
    with dask.config.set(scheduler="sync"):
        whole = source.compute()
    written = tw.to_zarr(source.rechunk(9), tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(written[...], whole)


@pytest.mark.parametrize("way", ["persisted", "delayed", "scattered", "by hand"])
def test_I5_what_is_on_a_cluster_already_is_read_there(way: str, client: Any, tmp_path: Path) -> None:
    """The graph names its futures by their own keys."""
    if way == "persisted":
        source = (da.from_array(IMAGE, chunks=7) * 3).persist()
    elif way == "by hand":
        futures = {("hand", row, 0): client.submit(np.multiply, IMAGE[row * 30 :][:30], 3) for row in (0, 1)}
        source = da.Array(futures, "hand", ((30, 30), (34,)), IMAGE.dtype)
    else:
        lazy = dask.delayed(np.copy)(IMAGE)
        value = lazy.persist() if way == "delayed" else dask.delayed(np.copy)(client.scatter([IMAGE])[0])
        source = da.from_delayed(value, IMAGE.shape, IMAGE.dtype) * 3
    written = tw.to_zarr(tw.tiled_map(np.negative, source, **OPTIONS), tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(written[...], -3 * IMAGE)


@pytest.mark.parametrize("kind", ["tasks", "overlaps", "sums of all before", "less its mean"])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_I5_what_is_read_is_computed_once(kind: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_batches(monkeypatch, window)
    lock, calls = threading.Lock(), [0]

    def loaded(chunk: np.ndarray) -> np.ndarray:
        with lock:
            calls[0] += 1
        return chunk

    below = da.from_array(IMAGE, chunks=7).map_blocks(loaded, dtype="f4", meta=np.empty((0, 0), "f4"))
    source = {
        "tasks": below,
        "overlaps": below.map_overlap(np.copy, depth=2, boundary=0, dtype="f4", meta=np.empty((0, 0), "f4")),
        "sums of all before": below.cumsum(axis=0),
        "less its mean": below - below.mean(),
    }[kind]
    out = tw.tiled_map(np.negative, source, **OPTIONS)
    assert plan_of(out).blocks == (8, 5)
    for result in (out, source, out * 2):
        calls[0] = 0
        tw.compute(result, into=np.empty(IMAGE.shape, "f4"), scheduler="threads")
        assert calls[0] == below.npartitions


@pytest.mark.parametrize(("width", "chunks", "product"), [(52, 3, False), (34, 3, False), (52, 5, True)])
def test_I5_a_longer_image_has_no_more_seams(
    width: int, chunks: int, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dask would run some columns of blocks down the whole image first: those that need fewer chunks."""
    short, long = 192, 768
    found = []
    for length in (short, long):
        source = da.from_array(np.ones((length, width), "f4"), chunks=chunks)
        found.append(most_seams(source.shape, OPTIONS, monkeypatch, source * 2 if product else source))
    assert found[1] <= found[0] + 8 < short // 4


class LiveChunks:
    """Counts the chunks of an array that are alive at the same time."""

    def __init__(self) -> None:
        gc.collect()
        self.live = self.most = 0

    def of(self, zeros: Any) -> Any:
        """Return an array of ones whose chunks are counted."""
        return zeros.map_blocks(self._loaded, dtype="f4", meta=np.empty((0, 0), "f4"))

    def _loaded(self, chunk: np.ndarray) -> np.ndarray:
        made = chunk + 1
        weakref.finalize(made, self._gone)
        self.live += 1
        self.most = max(self.most, self.live)
        return made

    def _gone(self) -> None:
        self.live -= 1


@pytest.mark.parametrize("width", [34, 52])
@pytest.mark.parametrize("then", [
    lambda out: (out > 1).astype("u1"),
    lambda out: out.map_overlap(np.copy, depth=1, boundary=0),
    lambda out: out.rechunk((16, 16)),
], ids=["threshold", "overlaps", "rechunked"])  # fmt: skip
@pytest.mark.sample(0, whole=3)
def test_I5_what_is_computed_from_a_result_has_no_more_seams(
    width: int, then: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (most_seams((length, width), OPTIONS, monkeypatch, then=then) for length in (192, 768))
    assert long <= short + 16 < 768 // 8


@pytest.mark.parametrize("far", [
    lambda source: source + da.roll(source, source.shape[0] // 2, 0),
    lambda source: source + source.T,
    lambda source: source.rechunk(2),
], ids=["half an image away", "transposed", "cut small"])  # fmt: skip
def test_I5_dask_orders_what_has_no_results_below(far: Callable[[Any], Any]) -> None:
    """In raster order half of the image would wait."""
    chunks = LiveChunks()
    result = far(chunks.of(da.zeros((96, 96), chunks=8, dtype="f4")))
    tw.compute(result, into=np.empty(result.shape, "f4"), scheduler="sync")
    assert 1 <= chunks.most <= 12


@pytest.mark.parametrize("below", [lambda x: x - x.mean(), lambda x: x.cumsum(0)], ids=["mean", "sums"])
def test_I5_what_waits_costs_a_batch_nothing(
    below: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of batches hold what their own tasks need."""
    in_batches(monkeypatch, 8)
    sizes: list[tuple[int, int]] = []

    def get(graph: Any, keys: Any, **options: Any) -> Any:
        sizes.append((len(graph), len(keys)))
        return dask.get(graph, keys, **options)

    source = below(da.from_array(IMAGE, chunks=4))
    out = tw.tiled_map(np.negative, source, crop=4, overlap=0, dtype="f4", chunks=4)
    np.testing.assert_array_equal(
        tw.compute(out, scheduler=get), -np.asarray(source.compute(scheduler="sync"))
    )
    assert len(sizes) > 12
    assert max(graph for graph, _ in sizes[2:]) < 90
    assert max(keys for _, keys in sizes[2:]) < 40


@pytest.mark.parametrize("chunks", [7, (16, 24)])
def test_I5_a_longer_image_holds_no_more_chunks(chunks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_batches(monkeypatch, 8)
    found = []
    for length in (96, 768):
        held = LiveChunks()
        zeros = da.zeros((length, 24), chunks=chunks, dtype="f4")
        source = held.of(zeros)
        out = tw.tiled_map(np.negative, source, **OPTIONS)
        result = tw.compute(out, into=np.empty(source.shape, "f4"), scheduler="sync")
        assert (result == -1).all()
        found.append(held.most)
    assert found[1] <= found[0] + 4 < zeros.npartitions / 4
