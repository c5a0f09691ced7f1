"""Sources that were replaced, rewritten, renamed or masked: read as they were, or refused."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework import TilingError
from tilework.graph.build import find_spec
from tilework.source import kept
from tilework.source.opening import open_source
from tilework.source.stamps import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor

IMAGE = np.arange(48 * 40, dtype="f4").reshape(48, 40)
WHOLE = [(0, 48), (0, 40)]


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    tw.clear_caches()
    yield
    tw.clear_caches()


def build(source: Any, **options: Any) -> Any:
    return tw.tiled_map(np.negative, source, 16, 2, **{"dtype": "f4", "chunks": 24} | options)


def sent(source: Any) -> Any:
    """Return a source as another process gets it."""
    return pickle.loads(pickle.dumps(open_source(source)))


# -- files that were replaced ------------------------------------------------------------------------------


def npy(folder: Path, data: np.ndarray) -> Any:
    np.save(folder / "new.npy", data)
    (folder / "new.npy").replace(folder / "a.npy")
    return np.load(folder / "a.npy", mmap_mode="r")


def raw(folder: Path, data: np.ndarray) -> Any:
    (folder / "new").write_bytes(data.tobytes())
    (folder / "new").replace(folder / "a.raw")
    return np.memmap(folder / "a.raw", data.dtype, "r", shape=data.shape)


def hdf(folder: Path, data: np.ndarray) -> Any:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "new.h5", "w") as file:
        file.create_dataset("a/b", data=data, chunks=(16, 16))
    (folder / "new.h5").replace(folder / "a.h5")
    return h5py.File(folder / "a.h5", "r")["a/b"]


def external(folder: Path, data: np.ndarray) -> Any:
    """Return a dataset whose samples lie in a raw file."""
    h5py = pytest.importorskip("h5py")
    (folder / "new").write_bytes(data.tobytes())
    (folder / "new").replace(folder / "a.bin")
    if not (folder / "e.h5").exists():
        with h5py.File(folder / "e.h5", "w", libver="latest") as file:
            parts = [(str(folder / "a.bin"), 0, data.nbytes)]
            file.create_dataset("e", data.shape, data.dtype, external=parts)
    return h5py.File(folder / "e.h5", "r")["e"]


def virtual(folder: Path, data: np.ndarray) -> Any:
    """Return a dataset whose samples lie in another file."""
    h5py = pytest.importorskip("h5py")
    hdf(folder, data)
    if not (folder / "v.h5").exists():
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[:] = h5py.VirtualSource("a.h5", "a/b", data.shape)
        with h5py.File(folder / "v.h5", "w") as file:
            file.create_virtual_dataset("v", layout)
    return h5py.File(folder / "v.h5", "r")["v"]


def zipped(folder: Path, data: np.ndarray) -> Any:
    with zarr.storage.ZipStore(folder / "new.zip", mode="w") as store:
        zarr.create_array(store, data=data, chunks=(16, 16))
    (folder / "new.zip").replace(folder / "a.zip")
    return zarr.open_array(zarr.storage.ZipStore(folder / "a.zip", mode="r"), mode="r")


FILES: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "npy": npy,
    "raw": raw,
    "h5py": hdf,
    "h5py external": external,
    "zip": zipped,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_task_reads_the_file_that_was_opened_or_refuses(kind: str, tmp_path: Path) -> None:
    """One process reads every version after it was opened, and none in place of another."""
    before = None
    for factor in (1, -1, 2):
        array = FILES[kind](tmp_path, factor * IMAGE)
        source = sent(array)
        np.testing.assert_array_equal(source.read(WHOLE), factor * IMAGE)
        if before is not None:
            assert before.token != source.token
            with pytest.raises(TilingError, match=r"not the file that .* build the result again"):
                before.read(WHOLE)
        before = source
        del array


@pytest.mark.parametrize("kind", ["npy", "h5py", "zip"])
def test_a_result_of_a_replaced_file_on_each_scheduler(kind: str, tmp_path: Path, scheduler: str) -> None:
    old = build(FILES[kind](tmp_path, IMAGE))
    np.testing.assert_array_equal(old.compute(), -IMAGE)
    new = build(FILES[kind](tmp_path, 3 * IMAGE))
    np.testing.assert_array_equal(new.compute(), -3 * IMAGE)
    if scheduler == "processes":
        with pytest.raises(TilingError, match="replaced or rewritten after the result was built"):
            old.compute()
    else:
        np.testing.assert_array_equal(old.compute(), -IMAGE)  # this process still has the old file open


def test_a_file_behind_a_virtual_dataset_is_looked_at(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """HDF5 keeps files behind an open one open, so workers have to close it."""
    pool: ProcessPoolExecutor = request.getfixturevalue("_process_pool")
    packed = []
    for factor in (1, -1, 2):
        dataset = virtual(tmp_path, factor * IMAGE)
        packed.append(pickle.dumps(open_source(dataset)))
        dataset.file.close()
        for last in packed[:-1]:
            with pytest.raises(TilingError, match=r"a\.h5 is not the file that"):
                pool.submit(read_packed, last).result(timeout=60)
        # Both processes have some version open.
        for _ in range(4):
            got = pool.submit(read_packed, packed[-1]).result(timeout=60)
            np.testing.assert_array_equal(got, factor * IMAGE)


ALIVE: list[Any] = []
"""Sources of results that a process has not forgotten yet."""


def read_packed(packed: bytes) -> np.ndarray:
    ALIVE.append(pickle.loads(packed))
    found: np.ndarray = ALIVE[-1].read(WHOLE)
    return found


def test_a_rewrite_in_place_and_a_rename_are_seen(tmp_path: Path) -> None:
    source = sent(npy(tmp_path, IMAGE))
    assert source.read(WHOLE)[1, 1] == 41
    with (tmp_path / "a.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"1234")
    os.utime(tmp_path / "a.npy", ns=(0, 10**18))
    with pytest.raises(TilingError, match=r"it was 7808 bytes .*and here \(process .*\) it is 7808 bytes"):
        source.read(WHOLE)
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    with pytest.raises(TilingError, match=r"a\.npy cannot be seen in process .*renamed or deleted"):
        source.read(WHOLE)


def test_a_file_that_was_replaced_before_the_result_was_built_is_read_as_it_was_mapped(
    tmp_path: Path, scheduler: str
) -> None:
    mapped = npy(tmp_path, IMAGE)
    npy(tmp_path, 5 * IMAGE)
    np.testing.assert_array_equal(build(mapped).compute(), -IMAGE)
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(build(mapped).compute(), -IMAGE)


def test_an_h5py_file_that_was_replaced_before_the_result_was_built_is_refused_elsewhere(
    tmp_path: Path,
) -> None:
    dataset = hdf(tmp_path, IMAGE)
    hdf(tmp_path, 5 * IMAGE)
    np.testing.assert_array_equal(build(dataset).compute(), -IMAGE)
    with pytest.raises(TilingError, match="not the file that the array was opened from"):
        sent(dataset).read(WHOLE)


def test_what_this_process_writes_before_it_computes_belongs_to_the_array(
    tmp_path: Path, scheduler: str
) -> None:
    mapped = np.memmap(tmp_path / "w", "f4", "w+", shape=IMAGE.shape)
    out = build(mapped)
    for factor in (1, 2):
        mapped[:] = factor * IMAGE
        np.testing.assert_array_equal(out.compute(), -factor * IMAGE)


def test_inodes_are_compared_on_one_host_only() -> None:
    here = Stamp(10, 20, 30, "here")
    assert not here.differs(Stamp(10, 20, 30, "here"))
    assert here.differs(Stamp(10, 20, 31, "here"))
    assert not here.differs(Stamp(10, 20, 31, "there"))
    assert here.differs(Stamp(10, 21, 30, "there"))
    assert here.differs(Stamp(11, 20, 30, "there"))


def test_paths_do_not_depend_on_the_folder_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    build(IMAGE).compute()  # starts the processes
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", IMAGE)
    zarr.create_array("a.zarr", data=IMAGE, chunks=(16, 16))
    zipped(Path(), IMAGE)
    store = zarr.storage.LocalStore("a.zarr")
    results = [
        build(np.load("a.npy", mmap_mode="r")),
        build("a.zarr"),
        build(zarr.open_array(store, mode="r")),
        build(zarr.open_array(Plain(zarr.storage.LocalStore("a.zarr")))),
        build(zarr.open_array(zarr.storage.ZipStore(Path("a.zip"), mode="r"), mode="r")),
    ]
    for out in results:
        np.testing.assert_array_equal(out.compute(), -IMAGE)  # other processes run in another folder
    monkeypatch.chdir("/")
    for out in results[:3]:
        np.testing.assert_array_equal(out.compute(), -IMAGE)


@pytest.mark.parametrize("kind", ["npy", "resolved npy", "zarr"])
def test_a_link_that_leads_elsewhere_is_seen(kind: str, tmp_path: Path, scheduler: str) -> None:
    for version, factor in (("v1", 1), ("v2", 2)):
        (tmp_path / version).mkdir()
        np.save(tmp_path / version / "a.npy", factor * IMAGE)
        zarr.create_array(tmp_path / version / "a.zarr", data=factor * IMAGE, chunks=(16, 16))
    link = tmp_path / "current"
    link.symlink_to("v1")

    def opened() -> Any:
        # numpy follows the links of a Path, but not of a str.
        path = {"npy": str(link / "a.npy"), "resolved npy": link / "a.npy"}.get(kind)
        return link / "a.zarr" if path is None else np.load(path, mmap_mode="r")

    old = build(opened())
    np.testing.assert_array_equal(old.compute(), -IMAGE)
    link.unlink()
    link.symlink_to("v2")
    new = build(opened())
    assert new.name != old.name
    np.testing.assert_array_equal(new.compute(), -2 * IMAGE)
    if kind == "resolved npy" or (kind == "npy" and scheduler != "processes"):
        np.testing.assert_array_equal(old.compute(), -IMAGE)
        return
    with pytest.raises(TilingError, match=r"(not the file that|led to .*v1.* and leads to .*v2)"):
        old.compute()


# -- what a process keeps open -----------------------------------------------------------------------------


def descriptors(path: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link) == str(path) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_an_h5py_file_is_closed_when_nothing_uses_it(tmp_path: Path) -> None:
    dataset = hdf(tmp_path, IMAGE)
    path = Path(dataset.file.filename)
    packed = pickle.dumps(open_source(dataset))
    dataset.file.close()
    assert descriptors(path) == 0
    source, again = pickle.loads(packed), pickle.loads(packed)
    source.read(WHOLE)
    again.read(WHOLE)
    assert descriptors(path) == 1
    tw.clear_caches()
    np.testing.assert_array_equal(source.read(WHOLE), IMAGE)
    del source, again
    tw.clear_caches()
    gc.collect()
    assert descriptors(path) == 0


def test_files_in_use_stay_open_and_others_are_bounded(tmp_path: Path) -> None:
    sources = []
    for number in range(kept.OPEN + 4):
        np.save(tmp_path / f"{number}.npy", IMAGE + number)
        sources.append(sent(np.load(tmp_path / f"{number}.npy", mmap_mode="r")))
        sources[-1].read(WHOLE)
        if number == 0:
            first = sources[0].array()
    assert len(kept.FILES) == kept.OPEN
    assert sources[0].array() is first
    for number, source in enumerate(sources):
        np.testing.assert_array_equal(source.read(WHOLE), IMAGE + number)


# -- names and recipes say what the data are ---------------------------------------------------------------


def name_of(source: Any) -> str:
    crop = [min(2, n) for n in source.shape]
    name: str = tw.tiled_map(np.ones_like, source, tuple(crop), 0, dtype="f8").name
    return name


def test_every_fact_that_changes_the_samples_changes_the_name(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(np.arange(4096, dtype="u1").tobytes())
    layouts: list[dict[str, Any]] = [
        {"dtype": "<u2", "shape": (32, 32)},
        {"dtype": ">u2", "shape": (32, 32)},
        {"dtype": "i2", "shape": (32, 32)},
        {"dtype": "f2", "shape": (32, 32)},
        {"dtype": "<u2", "shape": (32, 32), "offset": 2},
        {"dtype": "<u2", "shape": (32, 32), "order": "F"},
        {"dtype": "<u2", "shape": (16, 64)},
        {"dtype": "M8[s]", "shape": (16, 16)},
        {"dtype": "M8[ms]", "shape": (16, 16)},
    ]
    mapped = [np.memmap(tmp_path / "raw", mode="r", **layout) for layout in layouts]
    names = [name_of(m) for m in mapped]
    assert len(set(names)) == len(names)
    assert names == [name_of(np.memmap(tmp_path / "raw", mode="r", **layout)) for layout in layouts]
    copies = [name_of(np.asarray(m).copy(order="K")) for m in mapped]
    assert len(set(copies)) == len(copies), "of arrays in memory too"
    for m in mapped:
        np.testing.assert_array_equal(sent(m).read([(0, n) for n in m.shape]), m)
        assert sent(m).dtype == m.dtype


def test_arrays_of_equal_bytes_in_another_order_have_other_names() -> None:
    square = np.arange(64.0).reshape(8, 8)
    assert name_of(square) != name_of(square.T)
    assert name_of(square) == name_of(np.asfortranarray(square))


def test_stores_of_one_path_have_other_names(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {"dtype": "<u2"},
        {"dtype": "<u2", "serializer": zarr.codecs.BytesCodec(endian="big")},
        {"dtype": ">u2", "zarr_format": 2},
        {"dtype": "<u2", "fill_value": 3},
        {"dtype": "<u2", "zarr_format": 2},
        {"dtype": "<u2", "zarr_format": 2, "order": "F"},
        {"dtype": "<u2", "compressors": None},
        {"dtype": "<u2", "shards": (32, 32)},
    ]
    names = []
    for variant in variants:
        shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
        zarr.create_array(tmp_path / "a.zarr", shape=(32, 32), chunks=(16, 16), **variant)
        names.append(name_of(open_source(tmp_path / "a.zarr")))
        assert names[-1] == name_of(open_source(tmp_path / "a.zarr"))
    for url in (f"memory://{tmp_path}/a.zarr", f"local://{tmp_path}/a.zarr"):
        store = zarr.storage.FsspecStore.from_url(url, storage_options={"auto_mkdir": True})
        array = zarr.create_array(store, shape=(32, 32), chunks=(16, 16), dtype="<u2", overwrite=True)
        names.append(name_of(array))
    for _ in range(2):
        store = zarr.storage.MemoryStore()
        names.append(name_of(zarr.create_array(store, shape=(32, 32), chunks=(16, 16), dtype="<u2")))
        del store
    assert len(set(names)) == len(names)


def test_h5py_datasets_of_one_name_have_other_names(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    names = set()
    for number, dtype in enumerate(("<u2", ">u2", "f4")):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["a"] = np.ones((8, 8), dtype)
        shutil.copystat(tmp_path / "0.h5", tmp_path / f"{number}.h5")
        shutil.move(tmp_path / f"{number}.h5", tmp_path / "a.h5") if number else shutil.copy2(
            tmp_path / "0.h5", tmp_path / "a.h5"
        )
        names.add(name_of(h5py.File(tmp_path / "a.h5", "r")["a"]))
    assert len(names) == 3


def test_a_structured_memmap_travels_with_its_fields(tmp_path: Path, scheduler: str) -> None:
    dtype = np.dtype({"names": ["a", "b"], "formats": ["<u2", ">f4"], "offsets": [0, 4]}, align=True)
    data = np.zeros((32, 32), dtype)
    data["a"], data["b"] = np.arange(1024).reshape(32, 32), -1.5
    data.tofile(tmp_path / "s")
    mapped = np.memmap(tmp_path / "s", dtype, "r", shape=data.shape)
    out = tw.tiled_map(lambda c: c["a"] + c["b"], mapped, 16, 2, dtype="f4", chunks=16)
    np.testing.assert_array_equal(out.compute(), data["a"] + data["b"])
    one = tw.tiled_map(lambda c: c + 1, mapped["a"], 16, 2, dtype="u2", chunks=16)
    np.testing.assert_array_equal(one.compute(), data["a"] + 1)
    assert sent(mapped).read([(0, 2), (0, 2)]).dtype == dtype


# -- stores that are gone or other --------------------------------------------------------------------------


class Plain(zarr.storage.WrapperStore):
    """A wrapper without state."""


def filesystem(folder: Path) -> Any:
    return zarr.storage.FsspecStore.from_url(f"local://{folder}", storage_options={"auto_mkdir": True})


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "array": lambda f: zarr.open_array(f, mode="r+"),
    "wrapped": lambda f: zarr.open_array(Plain(zarr.storage.LocalStore(f)), mode="r+"),
    "fsspec": lambda f: zarr.open_array(filesystem(f), mode="r+"),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("fill_value", [0, 7])
def test_a_folder_that_was_renamed_is_an_error(
    kind: str, fill_value: int, tmp_path: Path, scheduler: str
) -> None:
    folder = tmp_path / "a.zarr"
    zarr.create_array(folder, data=IMAGE, chunks=(16, 16), fill_value=fill_value)
    out = build(FOLDERS[kind](folder))
    folder.rename(tmp_path / "b.zarr")
    with pytest.raises(TilingError, match=r"a\.zarr.* cannot be seen in process \d+ on .*not mounted"):
        out.compute()
    with pytest.raises(TilingError, match="cannot be seen in process"):
        tw.to_zarr(out, tmp_path / "o.zarr", progress=False)
    (tmp_path / "b.zarr").rename(folder)
    np.testing.assert_array_equal(out.compute(), -IMAGE)


def test_a_local_folder_that_was_renamed_between_two_computes_is_an_error(
    tmp_path: Path, scheduler: str
) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(16, 16), zarr_format=2)
    out = build(tmp_path / "a.zarr")
    np.testing.assert_array_equal(out.compute(), -IMAGE)
    (tmp_path / "a.zarr").rename(tmp_path / "b.zarr")
    with pytest.raises(TilingError, match="cannot be seen in process"):
        out.compute()


def test_a_folder_that_is_renamed_while_a_task_reads_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(16, 16))
    out = build(tmp_path / "a.zarr", chunks=48)
    get = zarr.storage.LocalStore.get

    async def away(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if key.startswith("c/") and (tmp_path / "a.zarr").exists():
            (tmp_path / "a.zarr").rename(tmp_path / "b.zarr")
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", away)
    with pytest.raises(TilingError, match="cannot be seen in process"):
        out.compute()


@pytest.mark.parametrize("kind", [*FOLDERS, "memory", "memory URL"])
@pytest.mark.parametrize(
    "change", [{"dtype": "i4"}, {"chunks": (24, 20)}, {"shape": (49, 40)}, {"fill_value": 1}], ids=str
)
def test_an_array_with_other_metadata_is_an_error_and_other_attributes_are_not(
    kind: str, change: dict[str, Any], tmp_path: Path
) -> None:
    stores: dict[str, Callable[[], Any]] = {
        "memory": zarr.storage.MemoryStore,
        "memory URL": lambda: f"memory://{tmp_path}.zarr",
    }
    target = stores[kind]() if kind in stores else tmp_path / "a.zarr"
    facts = {"shape": IMAGE.shape, "dtype": "f4", "chunks": (16, 16), "overwrite": True}
    zarr.create_array(target, **facts)[:] = IMAGE
    source = FOLDERS[kind](target) if kind in FOLDERS else zarr.open_array(target, mode="r+")
    out = build(source)
    zarr.open_array(target, mode="r+").attrs["scale"] = 2
    np.testing.assert_array_equal(out.compute(), -IMAGE)
    zarr.create_array(target, **facts | change)[:] = 9
    # Stores that are neither local nor in memory are looked at once per second.
    kept.CHECKS.clear()
    with pytest.raises(TilingError, match=r"holds another array in process .*build the result again"):
        out.compute()
    assert (build(zarr.open_array(target, mode="r"), dtype="f4").compute() == -9).all()


def test_a_run_looks_at_a_remote_source_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path}/once.zarr"
    zarr.create_array(url, data=IMAGE, chunks=(8, 8), overwrite=True)
    out = build(url, chunks=8)
    monkeypatch.setattr("tilework.source.held.is_held", lambda _: False)  # as a remote store
    remote = build(url, chunks=8)
    looks = []
    get = zarr.storage.FsspecStore.get

    async def note(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if key.endswith("zarr.json"):
            looks.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.FsspecStore, "get", note)
    tw.to_zarr(remote, tmp_path / "o.zarr", chunks=(8, 8), progress=False)
    assert len(looks) == 3, "the client reads and parses the document, and the run reads it once"
    looks.clear()
    out.compute()
    assert len(looks) >= 30, "what lies in memory is looked at in each task"


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stores_in_memory_work_on_a_cluster_of_threads(client: Any, tmp_path: Path) -> None:
    stores = [
        zarr.storage.MemoryStore(),
        Plain(zarr.storage.MemoryStore()),
        f"memory://{tmp_path}/cluster.zarr",
    ]
    for store in stores:
        array = zarr.create_array(store, data=IMAGE, chunks=(16, 16), overwrite=True)
        out = build(array)
        array[:] = 2 * IMAGE
        np.testing.assert_array_equal(client.compute(out, sync=True), -2 * IMAGE)


class Locked(zarr.storage.WrapperStore):
    """A wrapper that cannot be pickled."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    "store",
    [
        zarr.storage.MemoryStore,
        dict,
        lambda: Plain(zarr.storage.MemoryStore()),
        lambda: Locked(zarr.storage.MemoryStore()),
        lambda: "memory://held-source.zarr",
    ],
    ids=["memory", "dict", "wrapped", "locked", "URL"],
)
def test_stores_in_memory_are_refused_by_other_processes_only(
    store: Callable[[], Any], scheduler: str
) -> None:
    out = build(zarr.create_array(store(), data=IMAGE, chunks=(16, 16), overwrite=True))
    if scheduler != "processes":
        np.testing.assert_array_equal(out.compute(), -IMAGE)
        return
    with pytest.raises(TilingError, match=r"lives in the memory of process .*this task runs in process"):
        out.compute()


def test_a_result_that_was_pickled_is_as_good_as_before(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(16, 16))
    out = pickle.loads(pickle.dumps(build(tmp_path / "a.zarr")))
    assert find_spec(out) is not None
    np.testing.assert_array_equal(tw.to_zarr(out, tmp_path / "o.zarr", progress=False)[:], -IMAGE)
    np.testing.assert_array_equal(tw.view(out, verbose=False)[:], -IMAGE)


# -- masks -------------------------------------------------------------------------------------------------

MASKED = np.ma.masked_less(IMAGE, 100)


class Reader:
    """A reader of parts with masks, which says so as netCDF4 variables do."""

    mask = True

    def __init__(self, data: Any) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, index: Any) -> Any:
        return self.data[index]


class Silent(Reader):
    """A reader that does not say that its parts are masked."""

    mask = False


def lied() -> Any:
    """Return a dask array that does not say that its blocks are masked."""
    plain = da.from_array(IMAGE, chunks=16)
    return plain.map_blocks(np.ma.masked_less, 100, meta=np.empty((0, 0), "f4"), dtype="f4")


TAKEN: dict[str, Callable[[], Any]] = {
    "numpy": lambda: MASKED,
    "dask": lambda: da.from_array(MASKED, chunks=16, asarray=False),
    "dask.ma": lambda: da.ma.masked_less(da.from_array(IMAGE, chunks=16), 100),
    "load_once": lambda: tw.load_once(lambda: MASKED),
    "reader": lambda: Reader(MASKED),
    "load_once of a reader": lambda: tw.load_once(lambda: Reader(MASKED)),
    "one of two": lambda: (IMAGE, MASKED),
    "one of two, a reader": lambda: (IMAGE, Reader(MASKED)),
}
REFUSED: dict[str, Callable[[], Any]] = {
    "dask": lied,
    "reader": lambda: Silent(MASKED),
    "load_once": lambda: tw.load_once(lambda: Silent(MASKED)),
    "one of two": lambda: (IMAGE, Silent(MASKED)),
    "xarray": lambda: pytest.importorskip("xarray").DataArray(lied(), dims=("y", "x")),
}


def copied(*crops: np.ndarray) -> np.ndarray:
    return crops[-1] * 1


@pytest.mark.parametrize("kind", TAKEN)
def test_masked_samples_are_not_valid(kind: str, scheduler: str) -> None:
    out = tw.tiled_map(copied, TAKEN[kind](), 16, 2, dtype="f4", chunks=24, fill_value=-1)
    np.testing.assert_array_equal(out.compute(), MASKED.filled(-1))
    if "reader" not in kind and kind != "load_once":
        np.testing.assert_array_equal(tw.view(out, verbose=False)[:20, 3:20], MASKED.filled(-1)[:20, 3:20])


@pytest.mark.parametrize("kind", REFUSED)
def test_masked_parts_that_nobody_announced_are_refused(kind: str, scheduler: str) -> None:
    out = tw.tiled_map(copied, REFUSED[kind](), 16, 2, dtype="f4", chunks=24)
    np.testing.assert_array_equal(out[24:, 24:].compute(), IMAGE[24:, 24:])
    with pytest.raises(TypeError, match=r"samples that were read are masked.*fill it .*nodata=value"):
        out.compute()


def test_what_lies_below_a_mask_is_seen_unless_a_fill_is_given() -> None:
    for image in (MASKED, Reader(MASKED), da.from_array(MASKED, chunks=16, asarray=False)):
        for fill, lowest in ((None, IMAGE.min()), (5, 5)):
            seen: list[float] = []
            out = tw.tiled_map(
                lambda x, s=seen: s.append(x.min()) or x, image, 16, 2, dtype="f4", nodata_fill=fill
            )
            out.compute()
            assert min(seen) == lowest


def test_a_reader_with_masks_reads_each_part_once() -> None:
    class Counted(Reader):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            type(self).reads += 1
            return super().__getitem__(index)

    opened: dict[str, int] = {}
    for name, data in (("plain", IMAGE), ("masked", MASKED)):
        Counted.reads = 0
        out = tw.tiled_map(copied, Counted(data), 16, 2, dtype="f4", chunks=24)
        Counted.reads = 0
        out.compute()
        opened[name] = Counted.reads
    assert opened["plain"] == opened["masked"] > 0


def test_a_reader_that_masks_nothing_loses_nothing() -> None:
    for reader in (Reader, Silent):
        np.testing.assert_array_equal(build(reader(np.ma.array(IMAGE))).compute(), -IMAGE)


def test_xarray_turns_masks_into_nan() -> None:
    data = da.from_array(MASKED, chunks=16, asarray=False)
    out = build(pytest.importorskip("xarray").DataArray(data, dims=("y", "x")))
    np.testing.assert_array_equal(out.compute(), -MASKED.filled(np.nan))


@pytest.mark.parametrize("kind", ["numpy", "reader", "dask"])
def test_loops_refuse_masks(kind: str) -> None:
    image = {"numpy": MASKED, "reader": Silent(MASKED), "dask": lied()}[kind]
    with pytest.raises(TypeError, match=r"masked.*[Ff]ill"):
        tw.GridSampler(image, IMAGE.shape, (16, 16), (16, 16))[0]
    with pytest.raises(TypeError, match=r"masked.*[Ff]ill"):
        next(iter(tw.Slicer(image, 16, 2)))


def test_an_aggregator_refuses_masked_patches() -> None:
    sampler = tw.GridSampler(IMAGE, IMAGE.shape, (16, 16), (16, 16))
    aggregator = tw.Aggregator(sampler, output_size=IMAGE.shape)
    crop, box = sampler[0]
    with pytest.raises((TypeError, TilingError), match="masked"):
        aggregator.append(np.ma.masked_less(crop, 3), box)
    aggregator.append(crop, box)


def test_a_mask_with_masked_samples_is_refused() -> None:
    with pytest.raises(TypeError, match=r"masked.*[Ff]ill"):
        build(IMAGE, mask=MASKED > 200)
    assert build(IMAGE, mask=(MASKED > 200).filled(fill_value=False)).compute()[0, 0] == 0


def test_a_view_and_a_computation_refuse_masked_parts() -> None:
    for image in (lied(), Silent(MASKED)):
        out = tw.tiled_map(copied, image, 16, 2, dtype="f4")
        with pytest.raises(TypeError, match=r"masked.*[Ff]ill"):
            tw.view(out, verbose=False)[:20, :20]
        with dask.config.set(scheduler="threads"), pytest.raises(TypeError, match=r"masked.*[Ff]ill"):
            out.compute()


# -- files that are written in place ----------------------------------------------------------------------


def map_of(folder: Path, mode: str = "r+") -> Any:
    path = folder / "map.raw"
    return np.memmap(path, "f4", mode if path.exists() else "w+", shape=IMAGE.shape)


def dataset_of(folder: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / "open.h5", "w")
    return file.create_dataset("image", IMAGE.shape, "f4", chunks=(16, 16))


def labelled_of(image: Any) -> Any:
    return pytest.importorskip("xarray").Variable(("y", "x"), image)


def added(image: Any) -> Any:
    return tw.tiled_map(lambda crop: crop + image[0, 0], IMAGE, 16, 2, dtype="f4")


IN_PLACE: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path], Any]]] = {
    "map": (map_of, lambda image, _: build(image)),
    "part of a map": (map_of, lambda image, _: build(image[8:])),
    "map that reads": (map_of, lambda _, folder: build(map_of(folder, "r"))),
    "labelled map": (map_of, lambda image, _: build(labelled_of(image))),
    "where": (
        map_of,
        lambda image, _: tw.tiled_map(np.negative, IMAGE, 16, 2, dtype="f4", where=image.view("i4")),
    ),
    "load_once": (map_of, lambda _, folder: build(tw.load_once(np.memmap, (folder / "map.raw", "f4")))),
    "function": (map_of, lambda image, _: added(image)),
    "hdf5": (dataset_of, lambda image, _: build(image)),
    "view of hdf5": (dataset_of, lambda image, _: build(image.astype("f8"))),
    "dask of hdf5": (dataset_of, lambda image, _: build(da.from_array(image, name="image", chunks=16))),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("case", IN_PLACE)
def test_what_is_written_in_place_is_no_old_data(case: str, tmp_path: Path) -> None:
    """A page of a map that waits to be written takes more writes without a new time of its file."""
    opened, result = IN_PLACE[case]
    image = opened(tmp_path)
    image[:] = 1
    out = result(image, tmp_path)
    tw.to_zarr(out, tmp_path / "o.zarr", progress=False)
    for value in (2, 3):
        time.sleep(0.03)  # file systems stamp in steps
        image[:] = value
        again = result(image, tmp_path)
        with pytest.raises(tw.TilingError, match="holds a result of other parts; changed: "):
            tw.to_zarr(again, tmp_path / "o.zarr", progress=False)
        tw.to_zarr(again, tmp_path / "o.zarr", progress=False, overwrite=True)
    tw.to_zarr(again, tmp_path / "o.zarr", progress=False)  # the same


@pytest.mark.parametrize("case", ["map", "part of a map", "hdf5"])
def test_a_result_of_what_was_written_in_place_has_another_name(case: str, tmp_path: Path) -> None:
    opened, result = IN_PLACE[case]
    image = opened(tmp_path)
    image[:] = 1
    name = result(image, tmp_path).name
    assert result(image, tmp_path).name == name
    time.sleep(0.03)
    image[:] = 2
    assert result(image, tmp_path).name != name
