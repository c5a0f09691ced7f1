"""Sources in other processes: each arrives with the same bits, or is refused with what to do instead."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tilework import TilingError, load_once, tiled_map
from tilework.graph.build import plan_of
from tilework.source.kept import CHUNKS, ChunkCache
from tilework.source.opening import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGE = np.arange(96 * 80, dtype=np.float32).reshape(96, 80)
SIZE = 8000
"""Bytes that a recipe may take; the image has 30 720."""


def blur(crop: np.ndarray) -> np.ndarray:
    return crop + 2 * np.roll(crop, 1, 0) - 3 * np.roll(crop, -1, 1)


def build(source: Any, **options: Any) -> Any:
    return tiled_map(blur, source, 32, 1, **{"dtype": "f4", "chunks": 40} | options)


class Held:
    """An array-like; with a lock it cannot be pickled."""

    def __init__(self, array: np.ndarray, lock: Any = None) -> None:
        self.array, self.lock, self.shape, self.dtype = array, lock, array.shape, array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index]


def load(path: Path) -> Held:
    return Held(np.load(path), threading.Lock())


def raw(folder: Path, array: np.ndarray, mode: Any = "r", offset: int = 0, order: Any = "C") -> np.memmap:
    (folder / "raw").write_bytes(bytes(offset) + array.tobytes(order))
    return np.memmap(folder / "raw", array.dtype, mode, offset, array.shape, order)


def written(folder: Path, mode: Any) -> np.memmap:
    mapped = raw(folder, np.zeros_like(IMAGE), mode)
    mapped[:] = IMAGE
    return mapped


def npy(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "image.npy", array)
    return folder / "image.npy"


def stored(folder: Path, **options: Any) -> zarr.Array:
    return zarr.create_array(str(folder / "z"), data=IMAGE, **{"chunks": (32, 24)} | options)


def zipped(folder: Path) -> zarr.Array:
    with zarr.storage.ZipStore(folder / "z.zip", mode="w") as store:
        zarr.create_array(store, data=IMAGE, chunks=(32, 24))
    return zarr.open_array(zarr.storage.ZipStore(folder / "z.zip", mode="r"), mode="r")


def ome(folder: Path, version: str) -> Path:
    """Write three levels, of which the second holds the image."""
    path = folder / "x.ome.zarr"
    group = zarr.create_group(str(path), zarr_format=2 if version == "0.4" else 3)
    for level, step in enumerate((-1, 1, 2)):
        data = IMAGE.repeat(2, 0).repeat(2, 1) if step < 0 else IMAGE[::step, ::step]
        group.create_array(str(level), data=data, chunks=(32, 24))
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    images = [{"version": version, "axes": axes, "datasets": [{"path": str(k)} for k in range(3)]}]
    group.attrs.update({"multiscales": images} if version == "0.4" else {"ome": {"multiscales": images}})
    return path


def hdf(folder: Path, **options: Any) -> Any:
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / "image.h5", "w", **options)
    file.create_dataset("a/b", data=IMAGE, chunks=(32, 24))
    if options:
        return file["a/b"]
    file.close()
    return h5py.File(folder / "image.h5", "r")["a/b"]


def labelled(data: Any) -> Any:
    return pytest.importorskip("xarray").DataArray(data, dims=("y", "x"))


# A layer that keeps the dtype: xarray puts NaN in place of a value.
MASKED = {"a": {"dtype": "f4", "_FillValue": -1.0}}


def opened(folder: Path, chunks: Any, data: Any = IMAGE, **options: Any) -> Any:
    xarray = pytest.importorskip("xarray")
    labelled(data).to_dataset(name="a").to_zarr(folder / "x", zarr_format=2, **options)
    return xarray.open_zarr(folder / "x", chunks=chunks)["a"]


def netcdf(folder: Path, data: Any = IMAGE, **options: Any) -> Any:
    xarray = pytest.importorskip("xarray")
    labelled(data).to_dataset(name="a").to_netcdf(folder / "x.nc", engine="scipy", **options)
    return xarray.open_dataset(folder / "x.nc", engine="scipy")["a"]


def tensor(*, grad: bool) -> Any:
    return pytest.importorskip("torch").tensor(IMAGE, requires_grad=grad)


LAZY = da.from_array(IMAGE, chunks=((1, 60, 35), (79, 1)))
RECIPES: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _: IMAGE,
    "numpy view": lambda _: np.pad(IMAGE, 3)[3:-3, 3:-3],
    "numpy Fortran": lambda _: np.asfortranarray(IMAGE),
    "numpy steps": lambda _: np.repeat(IMAGE, 2, 0)[::2],
    "numpy reversed": lambda _: np.ascontiguousarray(IMAGE[::-1, ::-1])[::-1, ::-1],
    "numpy big-endian": lambda _: IMAGE.astype(">f4"),
    "memmap": lambda f: raw(f, IMAGE),
    "memmap offset": lambda f: raw(f, IMAGE, offset=5001),
    "memmap Fortran": lambda f: raw(f, IMAGE, order="F"),
    "memmap view": lambda f: raw(f, np.pad(IMAGE, 3), offset=17)[3:-3, 3:-3],
    "memmap steps": lambda f: raw(f, np.repeat(IMAGE, 3, 1))[:, 1::3],
    "memmap transposed": lambda f: raw(f, np.ascontiguousarray(IMAGE.T)).T,
    "memmap as array": lambda f: np.asarray(raw(f, IMAGE))[:],
    "memmap reversed": lambda f: raw(f, np.ascontiguousarray(IMAGE[::-1]))[::-1],
    "memmap written": lambda f: written(f, "r+"),
    "memmap copy on write": lambda f: written(f, "c"),
    "npy": lambda f: np.load(npy(f, IMAGE), mmap_mode="r"),
    "npy Fortran": lambda f: np.load(npy(f, np.asfortranarray(IMAGE)), mmap_mode="r"),
    "zarr 2": lambda f: stored(f, zarr_format=2),
    "zarr 2 dots": lambda f: stored(f, zarr_format=2, chunk_key_encoding={"name": "v2", "separator": "."}),
    "zarr 3": stored,
    "zarr sharded": lambda f: stored(f, chunks=(16, 20), shards=(48, 40)),
    "zarr one chunk": lambda f: stored(f, chunks=(96, 80)),
    "zarr zip": zipped,
    "zarr path": lambda f: str(f / "z") * bool(stored(f)),
    "zarr Path": lambda f: stored(f) and f / "z",
    "zarr URL": lambda f: f"file://{f}/z" * bool(stored(f)),
    "ome 0.4 level": lambda f: ome(f, "0.4") / "1",
    "ome 0.5 level": lambda f: str(ome(f, "0.5")) + "/1",
    "h5py": hdf,
    "dask": lambda _: LAZY,
    "dask one block": lambda _: da.from_array(IMAGE, chunks=-1),
    "dask persisted": lambda _: LAZY.persist(scheduler="synchronous"),
    "xarray dask": lambda _: labelled(LAZY),
    "xarray numpy": lambda _: labelled(IMAGE),
    "xarray opened": lambda f: opened(f, {}),
    "xarray not chunked": lambda f: opened(f, None),
    "xarray in Zarr, selected": lambda f: opened(f, None, np.pad(IMAGE, 2))[2:-2, 2:-2],
    "xarray in Zarr, reversed": lambda f: opened(f, None, IMAGE[::-1])[::-1],
    "xarray decoded": lambda f: opened(f, None, encoding=MASKED),
    "xarray NetCDF": netcdf,
    "xarray NetCDF, decoded and selected": lambda f: netcdf(f, np.pad(IMAGE, 2), encoding=MASKED)[2:-2, 2:-2],
    "torch": lambda _: tensor(grad=False),
    "torch with gradients": lambda _: tensor(grad=True),
    "load_once": lambda f: load_once(load, (npy(f, IMAGE),)),
    "array-like": lambda _: Held(IMAGE),
}
CARRIES = {"array-like"}
"""What has no other recipe than its own pickle."""


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return build(IMAGE, blend="hann").compute(scheduler="synchronous")


@pytest.mark.parametrize("name", RECIPES)
def test_every_source_gives_numpys_bits(
    name: str, tmp_path: Path, expected: np.ndarray, scheduler: str
) -> None:
    source = RECIPES[name](tmp_path)
    out = build(source, blend="hann")
    np.testing.assert_array_equal(out.compute(), expected)
    np.testing.assert_array_equal(out[:7, 70:].compute(), expected[:7, 70:])
    if name not in CARRIES:
        assert len(cloudpickle.dumps(open_source(source))) < SIZE


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "memory store": (
        lambda _: zarr.create_array(zarr.storage.MemoryStore(), data=IMAGE, chunks=(32, 24)),
        "Zarr store memory://.* lives in the memory of process .* cannot see it. Use a path or URL",
    ),
    "h5py in memory": (
        lambda f: hdf(f, driver="core", backing_store=False),
        r"dataset /a/b lives in memory only; write it to a file or use threads",
    ),
    "array-like with a lock": (
        lambda _: Held(IMAGE, threading.Lock()),
        r"a Held, cannot be sent .*lock.*array=tw\.load_once\(open_it, args\), or run on threads",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_travel_runs_on_threads_and_says_so_elsewhere(
    make: Callable[[Path], Any], message: str, tmp_path: Path, expected: np.ndarray, scheduler: str
) -> None:
    out = build(make(tmp_path), blend="hann")
    if scheduler != "processes":
        np.testing.assert_array_equal(out.compute(), expected)
        return
    with pytest.raises(TilingError, match=message):
        out.compute()


def test_an_array_over_the_limit_stays_here(monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    monkeypatch.setattr("tilework.source.base.MEMORY_TRAVEL_LIMIT", 10_000)
    out = build(IMAGE)
    if scheduler != "processes":
        assert out.compute().shape == IMAGE.shape
        return
    with pytest.raises(TilingError, match=r"0 MiB in memory .*; the limit is 0 MiB. Put it into Zarr"):
        out.compute()


def test_a_dask_array_of_unknown_chunks_is_refused() -> None:
    with pytest.raises(TilingError, match=r"unknown chunk sizes; call compute_chunk_sizes\(\)"):
        build(LAZY[LAZY[:, 0] > 9])


def test_a_group_that_is_no_image_names_its_arrays(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g"))
    group.create_array("b", data=IMAGE)
    group.create_array("a", data=IMAGE)
    with pytest.raises(TilingError, match="not an OME-Zarr image; give one of its arrays: a, b"):
        build(tmp_path / "g")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_zarr_names_its_axes_and_is_read_at_level_0(version: str, tmp_path: Path) -> None:
    path, whole = ome(tmp_path, version), (192, 160)
    for source, shape in ((path, whole), (zarr.open_group(str(path)), whole), (path / "2", (48, 40))):
        out = tiled_map(np.positive, source, (16, 8), 2, axes="xy", dtype="f4")
        assert out.shape == shape
        assert (out.compute() >= 0).all()


@pytest.mark.parametrize("name", ["zarr 3", "zarr 2", "xarray dask", "xarray numpy"])
def test_axes_and_each_go_by_name(name: str, tmp_path: Path) -> None:
    if name.startswith("zarr"):
        options: dict[str, Any] = {"zarr_format": int(name[-1])}
        options |= {"dimension_names": ("y", "x")} if name == "zarr 3" else {}
        source = stored(tmp_path, **options)
        source.attrs.update({} if name == "zarr 3" else {"_ARRAY_DIMENSIONS": ["y", "x"]})
    else:
        source = RECIPES[name](tmp_path)
    out = tiled_map(np.cumsum, source, 16, 0, axes="x", each="y", dtype="f4")
    np.testing.assert_array_equal(out.compute()[:, :16], IMAGE[:, :16].cumsum(1))
    with pytest.raises(TilingError, match=r"has no axis 'z'; its axes are \('y', 'x'\)"):
        tiled_map(np.copy, source, 16, 0, axes="z")


# -- what is decoded, and when ------------------------------------------------------------------------------


@pytest.fixture
def local_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chunks that are read from folders."""
    reads: list[str] = []
    get = zarr.storage.LocalStore.get

    async def note(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if not key.endswith((".json", ".zarray", ".zattrs")):
            reads.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", note)
    return reads


@pytest.fixture
def memory_cache() -> Iterator[ChunkCache]:
    CHUNKS.clear()
    yield CHUNKS
    CHUNKS.clear()


@pytest.mark.parametrize("options", [{}, {"blend": "hann"}, {"reuse": "recompute"}, {"each": 0}], ids=str)
@settings(max_examples=max(1, settings.default.max_examples // 5))
@given(st.tuples(*[st.integers(9, 40)] * 2), st.tuples(*[st.integers(8, 60)] * 2))
def test_each_chunk_is_read_once(
    memory_cache: ChunkCache,
    tmp_path_factory: pytest.TempPathFactory,
    local_reads: list[str],
    options: dict[str, Any],
    chunks: tuple[int, int],
    blocks: tuple[int, int],
) -> None:
    data = np.stack([IMAGE, -IMAGE]) if "each" in options else IMAGE
    shape = (1,) * (data.ndim - 2) + chunks
    array = zarr.create_array(str(tmp_path_factory.mktemp("z")), data=data, chunks=shape)
    out = tiled_map(np.copy, array, 8, 2, dtype="f4", **{"chunks": blocks} | options)
    local_reads.clear()
    np.testing.assert_allclose(out.compute(), data, rtol=1e-6)
    assert len(local_reads) == array.nchunks == len(set(local_reads))
    assert memory_cache.nbytes == 0, "all has been used, so nothing is kept"


@pytest.mark.parametrize("where", ["memory", "disk", "sharded"])
def test_what_is_rewritten_between_two_computes_is_seen(
    where: str, memory_cache: ChunkCache, tmp_path: Path
) -> None:
    store: Any = zarr.storage.MemoryStore() if where == "memory" else str(tmp_path / "z")
    shards = (32, 40) if where == "sharded" else None
    array = zarr.create_array(store, data=IMAGE, chunks=(16, 20), shards=shards)
    out = tiled_map(np.copy, array, 24, 6, dtype="f4", chunks=12, blend="average")
    for factor in (1, -1, 3, 4):
        array[:] = factor * IMAGE
        np.testing.assert_allclose(out[:30, :30].compute(), factor * IMAGE[:30, :30], rtol=1e-6)
        array[:] = 10 * factor * IMAGE
        np.testing.assert_allclose(out.compute(), 10 * factor * IMAGE, rtol=1e-6)


def test_the_cache_of_a_run_is_bounded(memory_cache: ChunkCache, tmp_path: Path) -> None:
    array = stored(tmp_path, chunks=(8, 8))
    out = tiled_map(np.copy, array, 24, 8, dtype="f4", chunks=(8, 80), memory_limit=10**5)
    most = [0]
    put = memory_cache._put

    def watch(*args: Any) -> None:
        put(*args)
        most.append(memory_cache.nbytes)

    with dask.config.set(scheduler="threads", num_workers=8), pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_cache, "_put", watch)
        np.testing.assert_array_equal(out.compute(), IMAGE)
    assert 10**4 < max(most) <= plan_of(out).cache_bytes < 10**5


def test_a_chunk_that_cannot_be_read_fails_all_who_wait_and_none_hangs() -> None:
    cache, gate = ChunkCache(), threading.Barrier(8)

    def fail(keys: list[Any]) -> Any:
        for key in keys:
            time.sleep(0.1)  # until the others wait
            raise OSError(f"cannot read {key}")
        yield from ()

    def read() -> None:
        gate.wait()
        cache.fetch({("a", 1): 9}, fail, lambda *_: None, 100)

    with ThreadPoolExecutor(8) as pool:
        futures: list[Future[None]] = [pool.submit(read) for _ in range(8)]
        for future in futures:
            with pytest.raises(OSError, match="cannot read"):
                future.result(timeout=20)
    cache.fetch({("a", 1): 1}, lambda keys: [(k, IMAGE, True) for k in keys], lambda *_: None, 100)
