"""Stores in the memory of a process: themselves in that process, an error in every other one."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
import zarr

from tilework import TilingError
from tilework.source.held import Travelling, address, dumps, is_held, this_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGE = np.arange(64, dtype="f4").reshape(8, 8)


class Wrapper(zarr.storage.WrapperStore):
    """A wrapper with a lock, as wrappers that count have; it cannot be pickled."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.lock = threading.Lock()


class Plain(zarr.storage.WrapperStore):
    """A wrapper without state."""


class OwnDict(zarr.storage.LocalStore):
    """A store of an unknown kind that keeps its documents in a dict of its own."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.own: dict[str, Any] = {"a/zarr.json": b"{}", "a/c/0": b"1"}


def filesystem(url: str, **options: Any) -> Any:
    return zarr.storage.FsspecStore.from_url(url, storage_options=options or None)


def obstore(kind: str, *args: Any) -> Any:
    stores = importlib.import_module("obstore.store")
    return zarr.storage.ObjectStore(getattr(stores, kind)(*args))


def zipped(folder: Path) -> Any:
    with zarr.storage.ZipStore(folder / "a.zip", mode="w") as store:
        zarr.create_array(store, data=IMAGE)
    return zarr.storage.ZipStore(folder / "a.zip", mode="r")


HELD: dict[str, Callable[[], Any]] = {
    "memory": zarr.storage.MemoryStore,
    "a dict": lambda: zarr.create_array({}, data=IMAGE).store,
    "read-only": lambda: zarr.storage.MemoryStore().with_read_only(True),
    "wrapped": lambda: Plain(zarr.storage.MemoryStore()),
    "wrapped twice": lambda: Wrapper(Plain(zarr.storage.MemoryStore())),
    "logging": lambda: zarr.storage.LoggingStore(zarr.storage.MemoryStore()),
    "memory URL": lambda: filesystem("memory://held.zarr"),
    "cached memory URL": lambda: filesystem("simplecache::memory://held.zarr"),
    "wrapped memory URL": lambda: Wrapper(filesystem("memory://held.zarr")),
    "own dict": OwnDict,
    "unpicklable": lambda: Wrapper(zarr.storage.LocalStore("a.zarr")),
}
FREE: dict[str, Callable[[Path], Any]] = {
    "local": lambda f: zarr.storage.LocalStore(f / "a.zarr"),
    "wrapped local": lambda f: Plain(zarr.storage.LocalStore(f / "a.zarr")),
    "zip": zipped,
    "local URL": lambda f: filesystem(f"local://{f}/a.zarr"),
}
if importlib.util.find_spec("obstore"):
    HELD["obstore memory"] = lambda: obstore("MemoryStore")
    FREE["obstore local"] = lambda f: obstore("LocalStore", str(f))
if hasattr(zarr.storage, "ManagedMemoryStore"):
    HELD["managed"] = lambda: zarr.storage.ManagedMemoryStore("held")


def open_in_another_process(packed: bytes) -> str:
    try:
        return type(cloudpickle.loads(packed)).__name__
    except TilingError as error:
        return str(error)


@pytest.fixture(scope="module")
def pool() -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("kind", HELD)
def test_a_held_store_is_itself_here_and_an_error_elsewhere(kind: str, pool: ProcessPoolExecutor) -> None:
    store = HELD[kind]()
    assert is_held(store)
    packed = dumps({"store": store, "again": [store]})
    back = pickle.loads(packed)
    assert back["store"] is store
    assert back["again"][0] is store
    assert Travelling(store).get() is store
    told = pool.submit(open_in_another_process, packed).result(timeout=60)
    assert str(store) in told
    assert f"process {os.getpid()} on" in told
    assert "path or URL that all processes can open" in told


@pytest.mark.parametrize("kind", FREE)
def test_other_stores_travel_as_they_are(kind: str, tmp_path: Path) -> None:
    store = FREE[kind](tmp_path)
    assert not is_held(store)
    assert pickle.loads(dumps(store)) is not store
    assert len(dumps(store)) < 2000


@pytest.mark.parametrize("kind", ["memory", "wrapped", "memory URL"])
def test_an_array_of_a_held_store_reads_and_writes_the_very_store(kind: str) -> None:
    store = HELD[kind]()
    array = zarr.create_array(store, data=IMAGE, chunks=(4, 4), overwrite=True)
    travelling = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(Travelling(array)))))
    travelling.get()[:2] = -1
    assert (array[:2] == -1).all()
    assert (travelling.get()[2:] == IMAGE[2:]).all()


def test_a_store_without_owner_ends_and_says_so() -> None:
    packed = dumps(zarr.storage.MemoryStore())
    with pytest.raises(TilingError, match="is gone: keep a reference to it until its tasks are done"):
        pickle.loads(packed)


def test_files_of_the_process_outlive_the_store_object() -> None:
    zarr.create_array("memory://outlives.zarr", data=IMAGE, overwrite=True)
    packed = dumps(zarr.open_array("memory://outlives.zarr", mode="r"))
    assert (pickle.loads(packed)[:] == IMAGE).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_another_process() -> None:
    code = """
import os, pickle, zarr
from tilework.source.held import dumps, this_process
store = zarr.storage.MemoryStore()
packed, parent = dumps(store), this_process()
pid = os.fork()
if not pid:
    try:
        pickle.loads(packed)
    except Exception as error:
        os._exit(7 if f"of process {parent.pid} on" in str(error) else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), pickle.loads(packed) is store)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.split() == ["7", "True"]


def test_an_address_tells_stores_apart(tmp_path: Path) -> None:
    stores = [
        zarr.storage.MemoryStore(),
        zarr.storage.MemoryStore(),
        zarr.storage.LocalStore(tmp_path),
        zarr.storage.LocalStore(tmp_path / "a"),
        filesystem("memory://bucket/a.zarr"),
        filesystem("memory://bucket/b.zarr"),
        filesystem("local:///bucket/a.zarr"),
        filesystem("local:///bucket/a.zarr", auto_mkdir=True),
    ]
    addresses = [address(store) for store in stores]
    assert len(set(addresses)) == len(stores)
    assert addresses == [address(store) for store in stores]
    assert address(filesystem("memory://bucket/a.zarr")) == addresses[4]


def test_a_process_is_equal_to_itself_only(pool: ProcessPoolExecutor) -> None:
    other = pool.submit(this_process).result(timeout=60)
    assert this_process() == this_process()
    assert other != this_process()
    assert other.host == this_process().host
