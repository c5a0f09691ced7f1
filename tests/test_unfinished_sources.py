"""Results of a result of which units are missing: refused while it is written, else said."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.writing.claim import Owner
from tilework.writing.ledger import Ledger
from tilework.writing.objects import dump

IMAGE = np.arange(1, 48 * 40 + 1, dtype="f4").reshape(48, 40)


def double(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def fails_somewhere(crop: np.ndarray) -> np.ndarray:
    if crop[0, 0] == IMAGE[16, 16]:
        raise ValueError("not this one")
    return crop


def write(out: Any, store: Any, **options: Any) -> Any:
    return tw.to_zarr(out, store, **{"chunks": 16, "progress": False, "version": "1"} | options)


def mapped(source: Any, fn: Any = double) -> Any:
    return tw.tiled_map(fn, source, 16, 0, dtype="f4", chunks=16)


def partial(store: Path) -> None:
    with pytest.warns(tw.TilingWarning, match="1 tiles? failed"):
        write(mapped(IMAGE, fails_somewhere), store, on_error="fill")


READERS: dict[str, Callable[[str], Any]] = {
    "tiles": mapped,
    "tiles of an array": lambda store: mapped(zarr.open_array(store, mode="r")),
    "second source": lambda store: tw.tiled_map(np.add, (IMAGE, store), 16, 0, dtype="f4", chunks=16),
    "where": lambda store: tw.tiled_map(
        double, IMAGE, 16, 0, dtype="f4", chunks=16, where=da.from_zarr(zarr.open_array(store)) > 0
    ),
    "dask": lambda store: da.from_zarr(zarr.open_array(store, mode="r")) + 1,
    "dask below tiles": lambda store: mapped(da.from_zarr(zarr.open_array(store, mode="r"))),
    "result below": lambda store: mapped(mapped(store)),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_incomplete_result_that_is_read_is_said(reader: str, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    partial(store)
    with pytest.warns(tw.TilingWarning, match=r"a\.zarr, which is read, .* 8 of 9 units are done"):
        write(READERS[reader](str(store)), tmp_path / "b.zarr")
    write(mapped(IMAGE, np.copy), store)  # the same version: resumed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(READERS[reader](str(store)), tmp_path / "c.zarr")


def test_a_result_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """Its missing samples were zeros, and counted as done in the second result."""
    begun, go = threading.Event(), threading.Event()

    def slow(crop: np.ndarray) -> np.ndarray:
        begun.set()
        assert go.wait(60)
        return crop * 2

    first = threading.Thread(target=lambda: write(mapped(IMAGE, slow), tmp_path / "a.zarr"))
    first.start()
    assert begun.wait(60)
    try:
        with pytest.raises(
            tw.TilingError, match=r"a\.zarr, which is read, is being written by a run \(process"
        ):
            write(mapped(tmp_path / "a.zarr"), tmp_path / "b.zarr")
    finally:
        go.set()
        first.join()
    assert not (tmp_path / "b.zarr").exists()
    np.testing.assert_array_equal(write(mapped(tmp_path / "a.zarr"), tmp_path / "b.zarr")[...], IMAGE * 4)


def test_a_job_of_write_many_does_not_read_what_another_writes(tmp_path: Path) -> None:
    """An image begins before the last blocks of the one before are done."""
    jobs = [(mapped(IMAGE), tmp_path / "a.zarr"), lambda: (mapped(tmp_path / "a.zarr"), tmp_path / "b.zarr")]
    first, second = tw.write_many(jobs, chunks=16, progress=False, version="1")
    assert first.ok
    assert second.error is None or "is being written by a run" in str(second.error)
    first, second = tw.write_many(jobs, chunks=16, progress=False, version="1")
    assert second.ok
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b.zarr")[...], IMAGE * 4)


@pytest.mark.parametrize("owner", ["dead", "elsewhere", "ended", "nonsense"])
def test_a_claim_of_no_living_run_here_is_no_reason_to_refuse(owner: str, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    partial(store)
    here = Owner.here()
    owners = {
        "dead": Owner(here.host, here.boot, here.pid, -1.0),
        "elsewhere": Owner("another", "boot", 1, 1.0),
        "ended": here,
    }
    claim: Any = {"run": "0123", "beat": 10.0}
    if owner in owners:
        claim["owner"] = {name: getattr(owners[owner], name) for name in Owner.__slots__}
    Ledger(zarr.open_array(store)).objects.write("claim", dump(claim))
    with pytest.warns(tw.TilingWarning, match="incomplete result"):
        write(mapped(store), tmp_path / "b.zarr")


def test_what_is_no_result_of_to_zarr_any_more_is_not_judged(tmp_path: Path) -> None:
    """Somebody resized it, or took the record away."""
    store = tmp_path / "a.zarr"
    partial(store)
    array = zarr.open_array(store)
    array.resize((64, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(mapped(store), tmp_path / "b.zarr")
        array.resize((48, 40))
        array.update_attributes({"tilework": None})
        write(mapped(store), tmp_path / "c.zarr")


class Refusing(zarr.storage.WrapperStore):
    """A store as of a server that answers 403 where there is no object, and not 404."""

    def _with_store(self, store: Any) -> Refusing:
        return Refusing(store)

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        found = await super().get(key, *args, **kwargs)
        if found is None:
            raise RuntimeError(f"403, message='Forbidden', {key}")
        return found


def test_a_server_that_refuses_what_it_does_not_have_is_read(tmp_path: Path) -> None:
    store = zarr.storage.MemoryStore()
    zarr.create_array(store, data=IMAGE, chunks=(16, 16))
    source = zarr.open_array(Refusing(store), mode="r", zarr_format=3)
    out = write(mapped(source), tmp_path / "out.zarr")
    np.testing.assert_array_equal(out[:], 2 * IMAGE)
