"""Dask arrays that were given one name and hold different things: dask would compute one of them for both."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph

import tilework as tw
from tilework.graph.nodes import needed
from tilework.graph.own_names import with_own_names

IMAGES = np.random.default_rng(3).integers(1, 99, (3, 40, 30)).astype("f4")
TILES: dict[str, Any] = {"crop": 10, "stride": 5, "blend": "max", "chunks": 10}


def named(image: np.ndarray) -> Any:
    return da.from_array(image, chunks=(10, 30), name="image")


def by_tuples(image: np.ndarray) -> Any:
    """Return an array of the older kind of tasks, with keys of every kind and one that stands for another."""
    graph: dict[Any, Any] = {
        7: image,
        "data": 7,
        ("image", 0, 0): (operator.getitem, "data", slice(0, 20)),
        ("image", 1, 0): (operator.itemgetter(1), [0, (operator.getitem, 7, slice(20, 40))]),
    }
    return da.Array(HighLevelGraph.from_collections("image", graph), "image", ((20, 20), (30,)), image.dtype)


def by_function(image: np.ndarray) -> Any:
    return da.zeros((40, 30), chunks=(40, 15), dtype="f4").map_blocks(
        lambda chunk, block_info: chunk + image[tuple(slice(*s) for s in block_info[0]["array-location"])],
        dtype="f4", name="image",
    )  # fmt: skip


SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "array": named,
    "computed from it": lambda image: (named(image) * 2).rechunk((7, 7)),
    "tuples": by_tuples,
    "function": by_function,
    "delayed": lambda image: da.from_delayed(
        dask.delayed(np.copy)(image, dask_key_name="image"), image.shape, image.dtype
    ),
    "masked": lambda image: named(np.ma.masked_array(image, image > 90)),
    "tiled": lambda image: tw.tiled_map(np.negative, named(image), **TILES),
}


def right(kind: str) -> list[np.ndarray]:
    """Return the samples of each image's source, computed alone."""
    with dask.config.set(scheduler="sync"):
        return [np.ma.getdata(SOURCES[kind](image).compute()) for image in IMAGES]


def written(folder: Path) -> list[np.ndarray]:
    return [np.asarray(zarr.open_array(folder / f"{k}.zarr", mode="r")) for k in range(len(IMAGES))]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.sample(4, whole=20)
def test_images_of_one_name_are_written_apart(kind: str, tiled: bool, scheduler: str, tmp_path: Path) -> None:
    sources = [SOURCES[kind](image) for image in IMAGES]
    if kind == "masked" and not tiled:
        sources = [da.ma.getdata(source) for source in sources]
    outs = [tw.tiled_map(np.sqrt, np.abs(s), fill_value=0, **TILES) for s in sources] if tiled else sources
    report = tw.write_many(
        ((out, tmp_path / f"{k}.zarr") for k, out in enumerate(outs)), progress=False, on_error="raise"
    )
    assert all(outcome.ok for outcome in report)
    with dask.config.set(scheduler="sync"):
        alone = [out.compute() for out in outs]
    assert not np.array_equal(alone[0], alone[1])
    for found, expected in zip(written(tmp_path), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.sample(3)
def test_images_of_one_name_are_written_apart_on_a_cluster(
    kind: str, tiled: bool, client: Any, tmp_path: Path
) -> None:
    del client
    expected = right(kind)
    sources = [SOURCES[kind](image) for image in IMAGES]
    if kind == "masked":
        sources = [da.ma.getdata(source) for source in sources]
    outs = [tw.tiled_map(np.negative, s, **TILES) for s in sources] if tiled else [-s for s in sources]
    tw.write_many(((out, tmp_path / f"{k}.zarr") for k, out in enumerate(outs)), progress=False)
    for found, image in zip(written(tmp_path), expected, strict=True):
        np.testing.assert_array_equal(found, -image)


@pytest.mark.parametrize("tiled", [True, False])
def test_what_another_array_of_the_name_left_on_a_cluster_is_not_taken(
    tiled: bool, client: Any, tmp_path: Path
) -> None:
    held = named(IMAGES[0]).persist()
    for image, source in ((IMAGES[1], named(IMAGES[1])), (IMAGES[0], held), (IMAGES[0], held * 1)):
        out = tw.tiled_map(np.negative, source, **TILES) if tiled else -source
        done = tw.to_zarr(out, tmp_path / "a.zarr", client=client, overwrite=True, progress=False)
        np.testing.assert_array_equal(done[...], -image)


@pytest.mark.parametrize("tiled", [True, False])
def test_delayed_runs_may_be_computed_together(tiled: bool, tmp_path: Path) -> None:
    sources = map(named, IMAGES)
    outs = [tw.tiled_map(np.negative, s, **TILES) if tiled else -s for s in sources]
    runs = [tw.to_zarr(out, tmp_path / f"{k}.zarr", compute=False) for k, out in enumerate(outs)]
    dask.compute(*runs)
    for found, image in zip(written(tmp_path), IMAGES, strict=True):
        np.testing.assert_array_equal(found, -image)


def test_a_run_is_resumed_and_knows_another_array_of_the_name(tmp_path: Path) -> None:
    def of(image: np.ndarray) -> Any:
        return tw.tiled_map(np.negative, named(image), **TILES)

    tw.to_zarr(of(IMAGES[0]), tmp_path / "a.zarr", progress=False)
    tw.to_zarr(of(IMAGES[0]), tmp_path / "a.zarr", progress=False)
    with pytest.raises(tw.TilingError, match="arrays"):
        tw.to_zarr(of(IMAGES[1]), tmp_path / "a.zarr", progress=False)


@pytest.mark.parametrize("both", [named, lambda image: named(image) + 1])
def test_sources_of_one_name_are_refused(both: Callable[[np.ndarray], Any]) -> None:
    """dask keeps one of them in the graph of a result."""
    with pytest.raises(tw.TilingError, match=r"sources 0 and 1 .* 'image'"):
        tw.tiled_map(np.subtract, (named(IMAGES[0]), both(IMAGES[1])), crop=10, overlap=0)
    with pytest.raises(tw.TilingError, match="'image'"):
        tw.measure_labels(named(IMAGES[0].astype(int)), both(IMAGES[1]), ["intensity_mean"], progress=False)
    with pytest.raises(tw.TilingError, match="'image'"):
        tw.image_statistics(named(IMAGES[0]), where=named(IMAGES[1] > 5), progress=False)


def test_sources_that_hold_the_same_are_taken() -> None:
    one, other = named(IMAGES[0]), named(IMAGES[0].copy())
    for pair in ((one, one), (one, other), (one + 1, other), dask.optimize(one, one * 1)):
        expected = np.subtract(*dask.compute(*pair, scheduler="sync"))
        out = tw.tiled_map(np.subtract, pair, crop=10, overlap=0)
        np.testing.assert_array_equal(tw.compute(out), expected)
    table = tw.measure_labels(named(IMAGES[0].astype(int)), progress=False)
    assert len(table) == len(np.unique(IMAGES[0]))


@pytest.mark.parametrize("below", ["named", "computed", "loop", "loop of two outputs"])
def test_a_result_has_no_name_of_what_it_is_computed_from(below: str) -> None:
    """dask would take a block of the source for one of the result: a cycle, or a key that is missing."""
    options: dict[str, Any] = {"crop": 10, "overlap": 2, "name": "image"}
    if below == "named":
        source = named(IMAGES[0])
    elif below == "computed":
        source = named(IMAGES[0])[2:] + 1
    elif below == "loop":
        source = tw.tiled_map(np.negative, IMAGES[0], **options) + 0
    else:
        outputs = [tw.Output(dtype="f4"), tw.Output(dtype="f4")]
        _, source = tw.tiled_map(lambda x: (x, x), IMAGES[0], output=outputs, **options)
    pair = IMAGES[0][: source.shape[0]], source
    with pytest.raises(tw.TilingError, match=r"source 1 is, or is computed from, .*'image' of the result"):
        tw.tiled_map(np.subtract, pair, **options)


def test_a_new_lock_is_no_other_content() -> None:
    """`from_array` makes one for each array that it is asked to read alone."""
    pair = [da.from_array(IMAGES[0], chunks=10, name="image", lock=True) for _ in range(2)]
    out = tw.tiled_map(np.subtract, tuple(pair), crop=10, overlap=0)
    assert not tw.compute(out).any()


def test_statistics_of_images_of_one_name_are_of_each(client: Any) -> None:
    del client
    held = named(IMAGES[0]).persist()
    for source, images in (([named(image) for image in IMAGES[1:]], IMAGES[1:]), (held, IMAGES[0])):
        found = tw.image_statistics(source, progress=False)
        assert (found.mean, found.std) == (images.mean(dtype=float), images.std(dtype=float))


def test_a_shared_source_is_read_once_in_a_run() -> None:
    calls = []

    def loaded(chunk: np.ndarray) -> np.ndarray:
        calls.append(1)
        return chunk

    below = named(IMAGES[0]).map_blocks(loaded, dtype="f4", meta=np.empty((0, 0), "f4"), name="loaded")
    out = tw.tiled_map(np.subtract, (below, below * 3), crop=10, overlap=0)
    calls.clear()
    np.testing.assert_array_equal(tw.compute(out, scheduler="threads"), -2 * IMAGES[0])
    assert len(calls) == below.npartitions


class Endless:
    """Zeros that take no memory."""

    shape, ndim, dtype = (10**6, 10**6), 2, np.dtype("f4")

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return np.zeros([len(range(*s.indices(n))) for s, n in zip(box, self.shape, strict=True)], self.dtype)


ENDLESS: dict[str, Callable[[], Any]] = {
    "source": lambda: tw.tiled_map(
        np.negative, da.from_array(Endless(), chunks=2048, name="image"), crop=512, overlap=128, dtype="f4"
    ),
    "result": lambda: tw.tiled_map(
        np.negative, Endless(), crop=512, overlap=128, blend="gaussian", dtype="f4", name="image"
    ),
    "dask": lambda: da.from_array(Endless(), chunks=2048, name="image"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_only_the_tasks_of_what_is_looked_at_are_made(kind: str, tmp_path: Path) -> None:
    """All of them would be 240 000 blocks and more."""
    part = ENDLESS[kind]()[5000:5100, 7000:7100]
    own = with_own_names(part, "run")
    [layer] = own.dask.layers.values()
    tasks = needed(own.dask, flatten(own.__dask_keys__()))
    assert 3 <= len(tasks) <= 100
    assert not layer.is_materialized()
    assert not tw.compute(part).any()
    assert not tw.to_zarr(part, tmp_path / "part.zarr", progress=False)[...].any()


MADE: dict[str, Callable[[], Any]] = {
    "data": lambda: da.from_array(IMAGES[0], chunks=10),
    "at random": lambda: da.from_array(IMAGES[0], chunks=10, name=False) + 1,
    "delayed": lambda: da.from_delayed(dask.delayed(np.copy)(IMAGES[0]), (40, 30), "f4").rechunk(7),
    "overlaps": lambda: (
        da.random.default_rng(0).random((40, 30), chunks=10).map_overlap(np.copy, depth=1).sum(0)
    ),
    "tiled": lambda: tw.tiled_map(np.negative, da.zeros((40, 30), chunks=10), crop=10, overlap=0),
}


@pytest.mark.parametrize("kind", MADE)
def test_names_that_dask_makes_are_kept(kind: str) -> None:
    array = MADE[kind]()
    assert with_own_names(array, "run") is array


def test_what_dask_moves_between_workers_keeps_its_names(
    client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler finds the barrier of a rechunk by its name."""
    with dask.config.set({"array.rechunk.method": "p2p"}):
        for source, told in ((named(IMAGES[0]), 1), (da.from_array(IMAGES[0], chunks=(10, 30)), 0)):
            caplog.clear()
            out = tw.tiled_map(np.negative, source.rechunk((40, 10)), **TILES)
            for on_error in ("fill", "raise"):
                made = tw.to_zarr(
                    out, tmp_path / f"{told}.zarr", client=client, progress=False, on_error=on_error,
                    overwrite=True,
                )  # fmt: skip
                np.testing.assert_array_equal(made[...], -IMAGES[0])
            client.compute(tw.to_zarr(out, tmp_path / f"{told}-later.zarr", compute=False)).result(timeout=60)
            later = zarr.open_array(tmp_path / f"{told}-later.zarr", mode="r")
            np.testing.assert_array_equal(later[...], -IMAGES[0])
            texts = [record.getMessage() for record in caplog.records if record.name == "tilework"]
            assert sum("'image', was given by hand" in text for text in texts) == 3 * told


def doubled(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def tripled(crop: np.ndarray) -> np.ndarray:
    return crop * 3


def mine(image: np.ndarray, fn: Any = doubled, **options: Any) -> Any:
    """Return a result with a name that was given by hand."""
    return tw.tiled_map(fn, image, **(TILES | {"name": "mine"} | options))


BOTH: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "stack": lambda a, b: da.stack([a, b]),
    "one below": lambda a, b: a + tw.tiled_map(np.sqrt, b, **TILES),
    "sources": lambda a, b: tw.tiled_map(np.add, (a, b), **TILES),
    "source": lambda a, b: tw.tiled_map(np.sqrt, da.concatenate([a, b[:20]]), **TILES),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "image": lambda: mine(IMAGES[1]),
    "function": lambda: mine(IMAGES[0], tripled),
    "blend": lambda: mine(IMAGES[0], blend="trim"),
    "chunks": lambda: mine(IMAGES[0], chunks=20),
    "outputs": lambda: mine(IMAGES[0], lambda crop: (crop, crop), output=(tw.Output("f4"),) * 2)[1],
}


def refused(how: str, other: str) -> None:
    """Check that two results of one name are not computed as one."""
    stores = zarr.storage.MemoryStore(), zarr.storage.MemoryStore()
    for call in (
        tw.compute,
        lambda out: tw.to_zarr(out, stores[0], progress=False),
        lambda out: tw.write_many([(out, stores[1])], progress=False, on_error="raise"),
    ):
        with pytest.raises(tw.TilingError, match=r"two different results .* have the name 'mine'"):
            call(BOTH[how](mine(IMAGES[0]), OTHERS[other]()))


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.sample(0)
def test_two_results_of_one_name_in_one_graph_are_refused(how: str, other: str) -> None:
    """dask computes one of them for both, or does not find tasks."""
    refused(how, other)


def test_they_are_refused_with_query_planning() -> None:
    code = "from tests.test_own_names import *; [refused(how, other) for how in BOTH for other in OTHERS]"
    environment = os.environ | {"DASK_ARRAY__QUERY_PLANNING": "true"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parent.parent
    )


@pytest.mark.parametrize("how", BOTH)
def test_one_result_that_was_built_twice_is_one(how: str) -> None:
    expected = BOTH[how](*(mine(IMAGES[0], name=None) for _ in range(2)))
    found = BOTH[how](*(mine(IMAGES[0]) for _ in range(2)))
    np.testing.assert_array_equal(tw.compute(found), tw.compute(expected))


def test_members_of_two_calls_are_no_result_of_one() -> None:
    """The samples of some were those of others, or what the memory held."""
    pair = mine(IMAGES[0]), mine(IMAGES[1])
    for out in (pair, dict(zip("ab", pair, strict=True))):
        with pytest.raises(tw.TilingError, match="unmodified result of one tiled_map"):
            tw.compute(out)
        with pytest.raises(tw.TilingError, match="unmodified result of one tiled_map"):
            tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False)
    with pytest.raises(tw.TilingError, match=r"each result once; .*'0', '1'"):
        tw.compute((pair[0], pair[0]))
    shown = tw.view(pair, verbose=False)
    for one, image in zip(shown, IMAGES, strict=False):
        np.testing.assert_array_equal(one[:5], 2 * image[:5])
