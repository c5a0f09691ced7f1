"""Data written anew in their place, and functions changed, below a dask array: its name stays the same."""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.task_spec import Task
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.implementations.zip import ZipFileSystem

import tilework as tw
from tilework.identity import graphs
from tilework.writing import fingerprint

xr = pytest.importorskip("xarray")
h5py = pytest.importorskip("h5py")

SHAPE = (16, 16)


class Reader:
    """An array of the user around another one."""

    shape, ndim, dtype = SHAPE, 2, np.dtype("f4")

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getitem__(self, box: Any) -> Any:
        return np.asarray(self.inside[box])


class Slotted:
    """The same around a list."""

    __slots__ = ("inside",)
    shape, ndim, dtype = SHAPE, 2, np.dtype("f4")

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getitem__(self, box: Any) -> Any:
        return np.asarray(self.inside[0][box])


def times(crop: Any, by: Any) -> Any:
    return crop * np.asarray(by[:1, :1])


OPENED: dict[str, Callable[[Path], Any]] = {
    "from_zarr of a path": lambda folder: da.from_zarr(str(folder / "image.zarr")),
    "from_zarr of an array": lambda folder: da.from_zarr(zarr.open_array(folder / "image.zarr", mode="r")),
    "from_array": lambda folder: da.from_array(zarr.open_array(folder / "image.zarr", mode="r")),
    "arithmetic": lambda folder: da.from_zarr(str(folder / "image.zarr")) * 2 + 1,
    "open_image": lambda folder: da.from_array(tw.open_image(folder / "image.zarr"), chunks=8),
    "open_image, used": lambda folder: da.ones(SHAPE, chunks=8, dtype="f4").map_blocks(
        times, by=tw.open_image(folder / "image.zarr")
    ),
    "view of h5py": lambda folder: da.from_array(
        h5py.File(folder / "image.h5")["image"].astype("f8"), chunks=8, name="view"
    ).astype("f4"),
    "reader": lambda folder: da.from_array(
        Reader(zarr.open_array(folder / "image.zarr", mode="r")), chunks=8
    ),
    "reader of parts": lambda folder: da.from_array(
        Reader(da.from_zarr(str(folder / "image.zarr"))), chunks=8, name="parts"
    ),
    "reader with slots": lambda folder: da.from_array(
        Slotted([zarr.open_array(folder / "image.zarr", mode="r")]), chunks=8, name="slots"
    ),
    "fused, with many tasks": lambda folder: (
        dask.optimize(da.from_zarr(str(folder / "image.zarr"), chunks=1))[0]
    ),
    "rechunked": lambda folder: da.from_zarr(str(folder / "image.zarr")).rechunk((16, 4)),
    "xarray": lambda folder: xr.open_zarr(folder / "labelled.zarr", consolidated=False)["image"],
    "xarray's dask array": lambda folder: (
        xr.open_zarr(folder / "labelled.zarr", consolidated=False)["image"].data
    ),
    "tiled": lambda folder: tw.tiled_map(np.negative, str(folder / "image.zarr"), 8, 1, dtype="f4"),
    "tiled, named": lambda folder: tw.tiled_map(
        np.negative, str(folder / "image.zarr"), 8, 1, dtype="f4", name="first"
    ),
    "tiled, then arithmetic": lambda folder: (
        tw.tiled_map(np.negative, str(folder / "image.zarr"), 8, 1, dtype="f4") + 1
    ),
    "tiled twice": lambda folder: tw.tiled_map(
        np.negative,
        tw.tiled_map(np.negative, str(folder / "image.zarr"), 8, 1, dtype="f4"),
        8, 1, dtype="f4",
    ),
}  # fmt: skip
WRITTEN: dict[str, Callable[[Any], Any]] = {
    "tiled": lambda image: tw.tiled_map(np.abs, image, 8, 1, dtype="f4"),
    "another of its sources": lambda image: tw.tiled_map(
        np.add, (np.zeros(SHAPE, "f4"), image), 8, 1, dtype="f4"
    ),
    "as it is": lambda image: image,
}


def write(folder: Path, value: float) -> None:
    """Write both images, or write them anew in their place, with equal sizes and names."""
    image = np.full(SHAPE, value, "f4")
    if not (folder / "image.zarr").exists():
        zarr.create_array(str(folder / "image.zarr"), shape=SHAPE, chunks=(8, 8), dtype="f4")
        data = xr.DataArray(image, dims=("y", "x"), name="image")
        data.to_dataset().to_zarr(folder / "labelled.zarr", consolidated=False)
    zarr.open_array(folder / "image.zarr", mode="r+")[...] = image
    zarr.open_array(folder / "labelled.zarr" / "image", mode="r+")[...] = image
    with h5py.File(folder / "new.h5", "w") as file:
        file["image"] = image
    (folder / "new.h5").replace(folder / "image.h5")  # the old one may be open still


def stored(store: Path) -> Any:
    """Return the array in a store, or the image in a group of labelled arrays."""
    found: Any = zarr.open(store, mode="r")
    return np.asarray((found if isinstance(found, zarr.Array) else found["image"])[...])


@pytest.mark.sample(6, whole=27)
@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("opened", OPENED)
def test_data_written_anew_are_no_old_data(opened: str, written: str, tmp_path: Path) -> None:
    def result() -> Any:
        return WRITTEN[written](OPENED[opened](tmp_path))

    write(tmp_path, 2)
    store = tmp_path / "result.zarr"
    tw.to_zarr(result(), store, progress=False)
    before = stored(store)
    stamps = {path: path.stat().st_mtime_ns for path in store.rglob("c/*/*")}
    assert stamps
    tw.to_zarr(result(), store, progress=False)  # the same: nothing is written
    assert stamps == {path: path.stat().st_mtime_ns for path in store.rglob("c/*/*")}
    time.sleep(0.02)  # file systems stamp in steps
    write(tmp_path, 3)
    with pytest.raises(tw.TilingError, match=r"holds a result of other parts; changed: .*data"):
        tw.to_zarr(result(), store, progress=False)
    tw.to_zarr(result(), store, progress=False, overwrite=True)
    assert not np.array_equal(before, stored(store))


def buckets(folder: Path, number: int, value: float | None = None) -> Any:
    """Return an array in a bucket of its own, at a path that is the same in all of them."""
    system = DirFileSystem(f"{folder}/bucket {number}", AsyncFileSystemWrapper(MemoryFileSystem()))
    store = zarr.storage.FsspecStore(system, path="")
    if value is not None:
        zarr.create_array(store, name="image", data=np.full(SHAPE, value, "f4"), overwrite=True)
    return zarr.open_array(store, path="image", mode="r")


def archives(folder: Path, number: int, value: float | None = None) -> Any:
    """Return an array in a zip file of its own."""
    path = folder / f"{number}.zip"
    if value is not None:
        with zarr.storage.ZipStore(path, mode="w") as store:
            zarr.create_array(store, name="image", data=np.full(SHAPE, value, "f4"))
    return zarr.open_array(f"zip://image::file://{path}", mode="r")


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("kept", [buckets, archives])
@pytest.mark.filterwarnings("ignore:.*asynchronous")  # a file system in memory
def test_stores_with_the_same_path_inside_are_told_apart(kept: Any, changed: int, tmp_path: Path) -> None:
    def result() -> Any:
        arrays = [da.from_array(kept(tmp_path, k), name=f"image {k}") for k in range(2)]
        return tw.tiled_map(np.negative, da.stack(arrays), (2, 8, 8), (0, 1, 1), dtype="f4")

    for number in range(2):
        kept(tmp_path, number, number)
    tw.to_zarr(result(), tmp_path / "result.zarr", progress=False)
    tw.to_zarr(result(), tmp_path / "result.zarr", progress=False)
    ZipFileSystem.clear_instance_cache()  # its instances keep what was in a file
    kept(tmp_path, changed, 7)
    with pytest.raises(tw.TilingError, match="changed: source 0 below: data"):
        tw.to_zarr(result(), tmp_path / "result.zarr", progress=False)


HELD: dict[str, Callable[[Any], Any]] = {
    "one chunk": lambda image: da.from_array(image, chunks=16, name="held"),
    "chunks": lambda image: da.from_array(image, chunks=8, name="held") * 2,
    "as it is": lambda image: da.from_array(image, chunks=8, name="held", lock=True),
    "fused": lambda image: dask.optimize(da.from_array(image, chunks=8, name="held") + 1)[0],
    "delayed": lambda image: da.from_delayed(dask.delayed(image, name="held"), SHAPE, "f4", name="read"),
    "argument": lambda image: da.zeros(SHAPE, chunks=16, dtype="f4").map_blocks(np.add, image, name="held"),
    "masked": lambda image: da.from_array(np.ma.masked_equal(image, 3), chunks=8, name="held").sum(axis=0)[
        None
    ],
}


@pytest.mark.parametrize("held", HELD)
def test_a_name_given_by_hand_does_not_stand_for_data(held: str, tmp_path: Path) -> None:
    def result(image: Any) -> Any:
        return tw.tiled_map(np.abs, HELD[held](image), 8, 0, edge="clip", dtype="f4")

    image = np.arange(256, dtype="f4").reshape(SHAPE)
    store = tmp_path / "result.zarr"
    tw.to_zarr(result(image), store, progress=False)
    tw.to_zarr(result(image.copy()), store, progress=False)
    with pytest.raises(tw.TilingError, match="source 0 below: arrays"):
        tw.to_zarr(result(image[::-1]), store, progress=False)


def test_arrays_that_dask_named_are_not_read_again() -> None:
    out = da.from_array(np.ones(SHAPE, "f4"), chunks=8)
    for array in (out, out + 1, dask.optimize(out + 1)[0], (out + 1).persist()):
        assert not graphs.shown_by(array).named


MODULE = """
import functools
import threading
import numpy as np

LOCK = threading.Lock()

def step(crop):
    "{doc}"
    return crop * {factor}

def locked(crop):
    with LOCK:
        return crop * {factor}

def summed(crop, axis=None, keepdims=False, **options):
    return crop.sum(axis=axis, keepdims=keepdims) * {factor}

def cumulated(crop, axis=None, dtype=None):
    return crop.cumsum(axis=axis) * {factor}

class Step:
    def __call__(self, crop):
        return step(crop)

    def method(self, crop):
        return step(crop)

class Model:
    def run(self, crop):
        return crop * {factor}

class Reader:
    shape, ndim, dtype = (16, 16), 2, np.dtype("f4")

    def __getitem__(self, box):
        return np.full((16, 16), {factor}, "f4")[box]

cached = functools.lru_cache(step)
"""
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "map_blocks": lambda module, image: image.map_blocks(module.step),
    "map_overlap": lambda module, image: image.map_overlap(module.step, depth=1),
    "an instance": lambda module, image: image.map_blocks(module.Step(), name="steps"),
    "partial": lambda module, image: image.map_blocks(functools.partial(apply, module.step)),
    "an argument": lambda module, image: image.map_blocks(applied, function=module.step),
    "gufunc": lambda module, image: da.apply_gufunc(module.step, "()->()", image, output_dtypes="f4"),
    "xarray": lambda module, image: xr.apply_ufunc(
        module.step, xr.DataArray(image, dims=("y", "x")), dask="parallelized", output_dtypes=["f4"]
    ),
    "reduction": lambda module, image: image + image.map_blocks(module.step).sum(),
    "method": lambda module, image: image.map_blocks(module.Step().method, name="steps"),
    "list": lambda module, image: image.map_blocks(first_of, functions=[module.step], name="steps"),
    "dict": lambda module, image: image.map_blocks(first_of, functions={0: module.step}, name="steps"),
    "model": lambda module, image: image.map_blocks(run, model=module.Model(), name="steps"),
    "reader": lambda module, image: da.from_array(module.Reader(), chunks=8, name="read") + image,
    "wrapper": lambda module, image: image.map_blocks(
        np.vectorize(module.step, otypes=["f4"]), name="steps", dtype="f4"
    ),
    "xarray's map_blocks": lambda module, image: labelled(image.rechunk(1)).map_blocks(
        module.step, template=labelled(image.rechunk(1))
    ),
    "coarsen": lambda module, image: da.coarsen(module.summed, image.rechunk(1), {0: 1, 1: 1}),
    "aggregate": lambda module, image: (
        image.rechunk((1, 16))
        + da.reduction(image.rechunk(1), chunk=np.sum, aggregate=module.summed, dtype="f4", split_every=2)
    ),
    "cumulated": lambda module, image: da.reductions.cumreduction(
        module.cumulated, np.add, 0, image.rechunk(1), axis=0, dtype="f4"
    ),
    "fused": lambda module, image: dask.optimize(image.rechunk(1).map_blocks(module.step))[0],
    "a graph by hand": lambda module, image: by_hand(
        lambda key: Task(key, module.step, np.ones((1, 1), "f4"))
    ),
    "tuples by hand": lambda module, image: by_hand(lambda key: (module.step, np.ones((1, 1), "f4"))),
    "closure of a package": lambda module, image: pytest.importorskip("skimage.util").apply_parallel(
        module.step, image, chunks=8, depth=1, dtype="f4", compute=False
    ),
    "load_once": lambda module, image: image.map_blocks(
        tw.load_once(given, (module.step,)), dtype="f4", meta=np.empty((0, 0), "f4")
    ),
    "normalized": lambda module, image: image.map_blocks(
        tw.normalized(module.step, tw.image_statistics(np.eye(4), progress=False)), dtype="f4", name="steps"
    ),
    "cached": lambda module, image: image.map_blocks(applied_uncached, function=module.cached, name="steps"),
}


def labelled(image: Any) -> Any:
    return xr.DataArray(image, dims=("y", "x"))


def by_hand(task: Callable[[Any], Any], *, turned: bool = False) -> Any:
    """Return an array of a task for each sample."""
    keys = [("by hand", *index) for index in np.ndindex(SHAPE)]
    graph = {key: task(key) for key in (reversed(keys) if turned else keys)}
    return da.Array(graph, "by hand", ((1,) * 16,) * 2, "f4", shape=SHAPE)


def given(function: Any) -> Any:
    return function


def apply(function: Any, crop: Any) -> Any:
    return function(crop)


def first_of(crop: Any, functions: Any) -> Any:
    return functions[0](crop)


def run(crop: Any, model: Any) -> Any:
    return model.run(crop)


def applied_uncached(crop: Any, function: Any) -> Any:
    return function.__wrapped__(crop)


def applied(crop: Any, function: Any) -> Any:
    return function(crop)


@pytest.fixture
def step_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Return a function that returns a module of the user, edited to another factor."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    path = tmp_path / f"steps_below_{os.getpid()}.py"

    def module(factor: int, doc: str = "Do it.") -> Any:
        path.write_text(MODULE.format(factor=factor, doc=doc))
        importlib.invalidate_caches()
        return importlib.reload(importlib.import_module(path.stem))

    return module


@pytest.mark.sample(4)
@pytest.mark.parametrize("step", STEPS)
def test_a_function_that_dask_applies_is_compared_by_its_code(
    step: str, tmp_path: Path, step_of: Callable[[int], Any]
) -> None:
    def result(factor: int) -> Any:
        image = STEPS[step](step_of(factor), da.ones(SHAPE, chunks=8, dtype="f4"))
        return tw.tiled_map(np.abs, image, 8, 1, dtype="f4")

    store = tmp_path / "result.zarr"
    tw.to_zarr(result(2), store, progress=False)
    tw.to_zarr(result(2), store, progress=False)
    with pytest.raises(tw.TilingError, match=r"changed: .*below: function \d"):
        tw.to_zarr(result(30), store, progress=False)


@pytest.mark.parametrize("most", [1, 100])
def test_the_order_of_tasks_does_not_matter(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask makes some graphs from sets, whose order is another one in each process."""

    def factor(by: int) -> Any:
        return lambda: np.full((1, 1), by, "f4")

    def parts(*steps: Any, turned: bool) -> Any:
        return fingerprint.of_dask(by_hand(lambda key: Task(key, steps[key[1] % 3]), turned=turned))

    monkeypatch.setattr(fingerprint, "FUNCTIONS", most)
    steps = factor(1), factor(2), named
    found = parts(*steps, turned=False)
    assert found == parts(*steps, turned=True)
    assert found != parts(factor(3), *steps[1:], turned=False)
    assert any("function 3" in name for name in found) == (most > 1)


def named() -> Any:
    return np.ones((1, 1), "f4")


def test_a_graph_that_is_too_large_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step_of: Callable[[int], Any]
) -> None:
    store = zarr.storage.MemoryStore()

    def result() -> Any:
        image = STEPS["coarsen"](step_of(2), da.ones(SHAPE, chunks=8, dtype="f4"))
        return tw.tiled_map(np.abs, image, 8, 1, dtype="f4")

    tw.to_zarr(result(), store, progress=False)
    assert "too many tasks" not in caplog.text
    monkeypatch.setattr(graphs, "MOST", 200)
    with pytest.raises(tw.TilingError, match="below: function"):
        tw.to_zarr(result(), store, progress=False)
    assert "too many tasks to look at all of them" in caplog.text


@pytest.mark.parametrize("name", [None, "first"])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_function_below_that_changed_is_another(
    written: str, name: str | None, tmp_path: Path, step_of: Callable[[int], Any]
) -> None:
    """dask knows a function of a module by its name."""
    write(tmp_path, 1)

    def result(factor: int) -> Any:
        module = step_of(factor)
        below = tw.tiled_map(module.step, str(tmp_path / "image.zarr"), 8, 1, dtype="f4", name=name)
        return WRITTEN[written](below + 1)

    store = tmp_path / "result.zarr"
    tw.to_zarr(result(2), store, progress=False)
    tw.to_zarr(result(2), store, progress=False)
    with pytest.raises(tw.TilingError, match="below 1: fn"):
        tw.to_zarr(result(30), store, progress=False)


def test_a_version_stands_for_code_and_not_for_data(tmp_path: Path) -> None:
    write(tmp_path, 1)
    store = tmp_path / "result.zarr"

    def result(fn: Any) -> Any:
        return tw.tiled_map(fn, str(tmp_path / "image.zarr"), 8, 1, dtype="f4", name="first") + 1

    tw.to_zarr(result(np.negative), store, progress=False, version="1")
    tw.to_zarr(result(np.abs), store, progress=False, version="1")
    assert (zarr.open_array(store)[...] == 0).all()
    time.sleep(0.02)
    write(tmp_path, 3)
    with pytest.raises(tw.TilingError, match="below 1: source 0 data"):
        tw.to_zarr(result(np.abs), store, progress=False, version="1")


@pytest.mark.parametrize("version", [None, "1"])
@pytest.mark.parametrize("chained", ["dask", "tiled"])
def test_what_shows_nothing_below_is_known_by_the_name(
    chained: str, version: str | None, step_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A lock around reading is usual; the name of the array is compared still, and what else can be."""
    store = zarr.storage.MemoryStore()
    image = da.ones(SHAPE, chunks=8, dtype="f4")

    def write_with(factor: int) -> None:
        fn = step_of(factor).locked
        below = image.map_blocks(fn) if chained == "dask" else tw.tiled_map(fn, image, 8, 1, dtype="f4")
        out = tw.tiled_map(np.abs, below, 8, 1, dtype="f4")
        tw.to_zarr(out, store, progress=False, version=version)

    write_with(2)
    write_with(2)
    assert ("cannot be compared" in caplog.text) == (version is None)
    if version is None:
        with pytest.raises(tw.TilingError, match=r"below.* constants"):
            write_with(30)
    else:
        write_with(30)


def test_a_docstring_below_does_not_matter(step_of: Callable[..., Any]) -> None:
    store, image = zarr.storage.MemoryStore(), np.ones(SHAPE, "f4")
    for doc in ("Do it.", "Say more."):
        below = tw.tiled_map(step_of(2, doc).step, image, 8, 1, dtype="f4")
        tw.to_zarr(below + 1, store, progress=False)


def test_a_mask_below_is_compared() -> None:
    store = zarr.storage.MemoryStore()

    def result(mask: Any) -> Any:
        below = tw.tiled_map(np.negative, np.ones(SHAPE, "f4"), 8, 1, dtype="f4", mask=mask, name="masked")
        return tw.tiled_map(np.abs, below + 1, 8, 1, dtype="f4")

    tw.to_zarr(result(np.ones(SHAPE, bool)), store, progress=False)
    with pytest.raises(tw.TilingError, match="below 1: mask"):
        tw.to_zarr(result(np.eye(16, dtype=bool)), store, progress=False)


def test_other_collections_of_dask_and_copies_of_maps_are_nothing_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dask import delayed

    one = delayed(abs)(-2, dask_key_name="two")
    np.save(tmp_path / "image.npy", np.ones(SHAPE, "f4"))
    copy = np.load(tmp_path / "image.npy", mmap_mode="r").astype("f4")
    assert isinstance(copy, np.memmap)

    def doubled(crop: Any) -> Any:
        return crop * one.compute(scheduler="synchronous")

    out = tw.tiled_map(doubled, da.from_array(copy, chunks=8, name="copy"), 8, 1, dtype="f4")
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, progress=False)
    tw.to_zarr(out, store, progress=False)
    assert "does not say" not in caplog.text


USED: dict[str, Callable[[Path], Any]] = {
    "array": lambda folder: zarr.open_array(folder / "image.zarr", mode="r"),
    "open_image": lambda folder: tw.open_image(folder / "image.zarr"),
    "in a list": lambda folder: [zarr.open_array(folder / "image.zarr", mode="r")],
    "dask": lambda folder: da.from_zarr(str(folder / "image.zarr")),
    "xarray": lambda folder: xr.open_zarr(folder / "labelled.zarr", consolidated=False)["image"],
    "xarray, not dask": lambda folder: xr.open_zarr(
        folder / "labelled.zarr", consolidated=False, chunks=None
    )["image"],
    "dataset": lambda folder: xr.open_zarr(folder / "labelled.zarr", consolidated=False),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("used", USED)
def test_what_a_function_reads_belongs_to_it(used: str, tmp_path: Path) -> None:
    """As a flat field in a store, which is measured again."""
    (tmp_path / "fields").mkdir()
    write(tmp_path / "fields", 1)

    def result() -> Any:
        field = USED[used](tmp_path / "fields")

        def corrected(crop: Any) -> Any:
            found = field[0] if used == "in a list" else field
            found = found["image"] if used == "dataset" else found
            return crop / np.asarray(found[:1, :1])

        return tw.tiled_map(corrected, np.ones(SHAPE, "f4"), 8, 1, dtype="f4")

    store = tmp_path / "result.zarr"
    tw.to_zarr(result(), store, progress=False)
    tw.to_zarr(result(), store, progress=False)
    time.sleep(0.02)
    write(tmp_path / "fields", 4)
    with pytest.raises(tw.TilingError, match="of other parts; changed: fn closure value field"):
        tw.to_zarr(result(), store, progress=False)


@pytest.mark.parametrize("opened", ["tiled, named", "tiled", "xarray"])
def test_a_store_of_before_is_resumed_once_and_then_compared(
    opened: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record has no part of what is below the dask array, nor of data that the function reads."""
    write(tmp_path, 2)
    store = tmp_path / "result.zarr"

    def result() -> Any:
        field = zarr.open_array(tmp_path / "image.zarr", mode="r")
        image = getattr(OPENED[opened](tmp_path), "data", OPENED[opened](tmp_path))
        image = (
            image
            if opened != "xarray"
            else xr.open_zarr(tmp_path / "labelled.zarr", consolidated=False)["image"].data
        )
        return tw.tiled_map(lambda crop: np.abs(crop) + field[0, 0], image, 8, 1, dtype="f4")

    tw.to_zarr(result(), store, progress=False)
    array = zarr.open_array(store)
    record: Any = array.attrs["tilework"]
    late = (" below", "stored data")
    kept = {n: value for n, value in record["fingerprint"].items() if not any(word in n for word in late)}
    assert len(kept) < len(record["fingerprint"])
    array.attrs["tilework"] = {**record, "fingerprint": kept}
    tw.to_zarr(result(), store, progress=False)
    assert "did not record these parts" in caplog.text
    assert zarr.open_array(store).attrs["tilework"]["fingerprint"] == record["fingerprint"]
    time.sleep(0.02)
    write(tmp_path, 3)
    with pytest.raises(tw.TilingError, match="changed: fn closure value field stored data"):
        tw.to_zarr(result(), store, progress=False)
