"""What fails is said by its place, costs nothing that was finished, and can be gone on with."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.writing.ledger import Ledger

IMAGE = np.arange(64 * 64, dtype="f4").reshape(64, 64)
Count = Callable[[Callable[..., Any]], Any]


def double(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def mapped(fn: Any = double, image: Any = IMAGE, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 16, 4, **{"dtype": "f4", "chunks": 16} | options)


class Failing(zarr.storage.WrapperStore):
    """Raises on some writes of data."""

    def __init__(self, store: Any, fails: Callable[[int], bool], count: list[int] | None = None) -> None:
        super().__init__(store)
        self.fails, self.count = fails, [0] if count is None else count

    def _with_store(self, store: Any) -> Failing:
        return Failing(store, self.fails, self.count)

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if "c/" in key and ".tilework" not in key:
            self.count[0] += 1
            if self.fails(self.count[0]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await super().set(key, *args, **kwargs)


# -- stores that fail -----------------------------------------------------------------------------------


def test_a_store_that_fails_on_every_tenth_write_is_written_in_the_end(counting: Count) -> None:
    """Each attempt gets further, and nothing finished is computed again."""
    fn, store = counting(double), Failing(zarr.storage.MemoryStore(), lambda n: n % 10 == 0)
    attempts, errors = 0, list[OSError]()
    while True:
        attempts += 1
        try:
            written = tw.to_zarr(mapped(fn), store, chunks=8, progress=False)
        except OSError as error:
            errors.append(error)
        else:
            break
    assert all("No space left" in str(e) for e in errors)
    assert all(any("while writing samples [" in note for note in e.__notes__) for e in errors)
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    assert 2 < attempts < 20
    assert fn.calls <= 64 + 16 * attempts


class FailingOnce(Failing):
    """Refuses the first chunk of each block once, whatever the order in which tasks write."""

    def _with_store(self, store: Any) -> FailingOnce:
        return FailingOnce(store, self.fails, self.count)

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if "c/" in key and ".tilework" not in key:
            y, x = map(int, key.rpartition("c/")[2].split("/"))
            # Below zero, because the first entry counts all writes.
            if not (y % 2 or x % 2 or (number := -2 - 8 * y - x) in self.count):
                self.count.append(number)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await super().set(key, *args, **kwargs)


@pytest.mark.parametrize("scheduler_name", ["synchronous", "threads"])
def test_retries_get_over_it(scheduler_name: str) -> None:
    """A task is tried again where it failed."""
    store = FailingOnce(zarr.storage.MemoryStore(), lambda n: False, [-1])
    written = tw.to_zarr(mapped(), store, chunks=8, retries=1, progress=False, scheduler=scheduler_name)
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    assert len(store.count) == 1 + 16, "each block failed once"


def test_a_full_disk_leaves_a_resumable_store(counting: Count) -> None:
    """From one write on nothing works any more, until there is room."""
    fn, full = counting(double), [7]
    store = Failing(zarr.storage.MemoryStore(), lambda n: n > full[0])
    with pytest.raises(OSError, match="No space left"):
        tw.to_zarr(mapped(fn), store, chunks=16, retries=1, progress=False, scheduler="threads")
    full[0] = 10**9
    fn.reset()
    written = tw.to_zarr(mapped(fn), store, progress=False)
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    assert fn.calls < 64


def test_a_read_only_store_is_refused_before_anything_runs(counting: Count) -> None:
    fn = counting(double)
    with pytest.raises(ValueError, match="read"):
        tw.to_zarr(mapped(fn), zarr.storage.MemoryStore(read_only=True), progress=False)
    assert not fn.calls


# -- sources that fail ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a stored image."""
    zarr.create_array(str(tmp_path / "image.zarr"), data=IMAGE, chunks=(16, 16))
    return tmp_path / "image.zarr"


def test_a_corrupt_chunk_is_named_and_can_be_mended(source: Path, tmp_path: Path) -> None:
    """Its samples stand in the error; after the repair the source has changed, and that is said too."""
    chunk = source / "c" / "2" / "1"
    good = chunk.read_bytes()
    chunk.write_bytes(good[: len(good) // 2])
    stamp = chunk.stat()
    with pytest.raises(RuntimeError, match=r"(?i)zstd|decompress|compress") as error:
        tw.to_zarr(mapped(image=str(source)), tmp_path / "out.zarr", progress=False)
    assert any("while reading samples [" in note for note in error.value.__notes__)
    chunk.write_bytes(good)
    with pytest.raises(tw.TilingError, match="changed: source 0 data"):
        tw.to_zarr(mapped(image=str(source)), tmp_path / "out.zarr", progress=False)
    chunk.write_bytes(good[: len(good) // 2])
    os.utime(chunk, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.warns(tw.TilingWarning, match="tiles failed"):
        filled = tw.to_zarr(
            mapped(image=str(source), fill_value=-1), tmp_path / "fill.zarr", progress=False, on_error="fill"
        )
    values = filled[...]
    assert (values == -1).any()
    np.testing.assert_array_equal(values[values != -1], (IMAGE * 2)[values != -1])
    np.testing.assert_array_equal(values[:24], IMAGE[:24] * 2)


def test_a_source_that_vanishes(source: Path, tmp_path: Path) -> None:
    """Missing chunks of Zarr are fill values, so a missing array must be an error."""
    out = mapped(image=str(source))
    shutil.rmtree(source)
    with pytest.raises((OSError, tw.TilingError), match=r"image\.zarr"):
        tw.to_zarr(out, tmp_path / "out.zarr", progress=False)


# -- tiles that fail ------------------------------------------------------------------------------------


def picky(crop: np.ndarray) -> np.ndarray:
    if (crop == 1000).any():
        raise ValueError("a thousand")
    return crop * 2


@pytest.mark.parametrize("blend", ["trim", "average"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_F2_fill_leaves_out_what_fails_and_no_more(
    blend: str, batch_size: int | None, scheduler: str, tmp_path: Path
) -> None:
    """fill_value where no other tile has weight; the next call tries the units that failed again."""

    def one(crops: np.ndarray) -> np.ndarray:
        return np.stack([picky(c) for c in crops]) if batch_size else picky(crops)

    store = tmp_path / "a.zarr"
    out = mapped(one, blend=blend, batch_size=batch_size, fill_value=-1)
    with pytest.warns(tw.TilingWarning, match=r"tile .* at .*ValueError: a thousand"):
        written = tw.to_zarr(out, store, chunks=8, progress=False, on_error="fill", version="1")
    values, right = written[...], IMAGE * 2
    y, x = divmod(1000, 64)
    assert values[y, x] == -1
    lost = values == -1
    assert 0 < lost.sum() <= 24 * 24
    np.testing.assert_allclose(values[~lost], right[~lost], rtol=1e-6)
    status = tw.status(written)
    assert 0 < status.units - status.done <= 25
    assert all("a thousand" in text for text in status.failed)
    assert not Ledger(written).read()[y // 8, x // 8]

    def mended(crops: np.ndarray) -> np.ndarray:
        return crops * 2

    again = mapped(mended, blend=blend, batch_size=batch_size, fill_value=-1)
    written = tw.to_zarr(again, store, progress=False, version="1")
    np.testing.assert_allclose(written[...], right, rtol=1e-6)
    assert tw.status(written).complete
    assert not tw.status(written).failed


def test_F2_raise_names_the_tile_on_every_scheduler(scheduler: str, tmp_path: Path) -> None:
    """The exception is the function's own."""
    with pytest.raises(ValueError, match="a thousand") as error:
        tw.to_zarr(mapped(picky), tmp_path / "a.zarr", progress=False)
    assert any("raised by fn on tile" in note and "crop (16, 16)" in note for note in error.value.__notes__)


def test_F2_a_callable_decides(tmp_path: Path) -> None:
    """It gets tile and exception; what it raises ends the run."""
    seen: list[Any] = []

    def decide(tile: tw.Tile, error: Exception) -> None:
        seen.append(tile)
        if len(seen) > 1:
            raise RuntimeError("too many") from error

    with pytest.raises(RuntimeError, match="too many"):
        tw.to_zarr(mapped(picky), tmp_path / "a.zarr", progress=False, on_error=decide)
    assert isinstance(seen[0], tw.Tile)
    with pytest.raises(tw.TilingError, match="on_error must be"):
        tw.to_zarr(mapped(picky), tmp_path / "a.zarr", on_error="ignore")


def test_F2_retries_of_a_tile_that_is_filled(tmp_path: Path) -> None:
    """A tile has failed after all its attempts; it gets the same crop every time."""
    tried: list[int] = []

    def flaky(crop: np.ndarray) -> np.ndarray:
        tried.append(int(crop[0, 0]))
        crop += 1
        if len(tried) < 3:
            raise RuntimeError("not yet")
        return crop - 1

    written = tw.to_zarr(
        mapped(flaky),
        tmp_path / "a.zarr",
        progress=False,
        on_error="fill",
        retries=2,
        scheduler="synchronous",
    )
    np.testing.assert_array_equal(written[...], IMAGE)
    assert tried[0] == tried[1] == tried[2]


def kills(crop: np.ndarray) -> np.ndarray:
    if (crop == 1000).any():
        os._exit(1)
    return crop * 2


@pytest.mark.sample(0)
@pytest.mark.parametrize("on_error", ["raise", "fill"])
def test_a_tile_that_kills_its_process_is_named(on_error: str, tmp_path: Path) -> None:
    with dask.config.set(scheduler="processes", num_workers=2), pytest.raises(BrokenExecutor) as error:
        tw.to_zarr(mapped(kills, chunks=32), tmp_path / "a", progress=False, version="1", on_error=on_error)
    [note] = error.value.__notes__
    assert re.match(r"tile \d+ at .* kills its process whenever it runs", note)
    y, x = divmod(1000, 64)
    (a, b), (c, d) = (map(int, span.split(":")) for span in re.findall(r"\d+:\d+", note))
    assert a <= y < b
    assert c <= x < d
    written = tw.to_zarr(mapped(double, chunks=32), tmp_path / "a", progress=False, version="1")
    np.testing.assert_array_equal(written[...], IMAGE * 2)


# -- interrupts -----------------------------------------------------------------------------------------


def slow_write(store: str, log: str) -> None:
    def slow(crop: np.ndarray) -> np.ndarray:
        with Path(log).open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(0.02 if Path(log).stat().st_size <= 20 else 0.5)  # until the signal comes
        return crop * 2

    try:
        tw.to_zarr(mapped(slow), store, chunks=16, version="1", progress=False, scheduler="threads")
    except KeyboardInterrupt:
        Path(log + ".interrupted").write_text("yes")


def test_control_c_leaves_a_resumable_store(tmp_path: Path) -> None:
    """The interrupt is the user's to see."""
    store, log = str(tmp_path / "a.zarr"), tmp_path / "log"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tilework.writing.store", "tilework.api", "numpy", "zarr"])
    process = context.Process(target=slow_write, args=(store, str(log)), daemon=True)
    process.start()
    end = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > 20) and time.monotonic() < end:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert Path(f"{log}.interrupted").exists()
    status = tw.status(store)
    assert 0 < status.done < status.units
    written = tw.to_zarr(mapped(), store, version="1", progress=False)
    np.testing.assert_array_equal(written[...], IMAGE * 2)


# -- retries that wait, and errors that are kept --------------------------------------------------------


def test_repetitions_wait_twice_as_long_each_time_and_not_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilework.engine import reading

    slept: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    for attempt in range(20):
        reading.wait(attempt)
    longest = [min(reading.LONGEST_WAIT, reading.FIRST_WAIT * 2**k) for k in range(20)]
    assert all(0.5 * most <= s <= most for s, most in zip(slept, longest, strict=True))
    reading.wait(3)
    assert slept[-1] != slept[3]
    state = random.getstate()
    reading.wait(0)
    assert random.getstate() == state  # the user's own


@pytest.mark.parametrize("on_error", ["raise", "fill"])
def test_tiles_and_tasks_that_are_tried_again_wait(
    on_error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tilework.engine import reading

    slept: list[float] = []
    # Not `time.sleep` of the process, which other threads use.
    monkeypatch.setattr(reading, "time", SimpleNamespace(sleep=slept.append))
    failed = 0

    def twice(crop: np.ndarray) -> np.ndarray:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise OSError("busy")
        return crop * 2

    out = mapped(twice)
    written = tw.to_zarr(
        out, tmp_path / "o", retries=2, on_error=on_error, scheduler="synchronous", progress=False
    )
    np.testing.assert_array_equal(written[...], IMAGE * 2)
    assert len(slept) == 2
    assert slept[0] < slept[1]


class Held(np.ndarray):
    """An array to which weak references can be made."""


ALIVE: list[Any] = []


def breaks(crop: np.ndarray) -> np.ndarray:
    mine = crop.copy().view(Held)
    ALIVE.append(weakref.ref(mine))
    if crop.min() > 2000:
        raise ValueError(f"cannot use {mine.max()}")
    return crop


def test_kept_errors_do_not_keep_crops(tmp_path: Path) -> None:
    """Neither those that a callable keeps, nor those of many results."""
    ALIVE.clear()
    kept: list[Exception] = []
    with pytest.warns(tw.TilingWarning, match="failed"):
        tw.to_zarr(
            mapped(breaks), tmp_path / "o", on_error=lambda tile, e: kept.append(e), retries=1,
            scheduler="threads", progress=False,
        )  # fmt: skip
    report = tw.write_many(
        [(mapped(breaks), tmp_path / "a"), (mapped(double), tmp_path / "b")], on_error="continue",
        progress=False,
    )  # fmt: skip
    errors = [*kept, *(o.error for o in report if o.error is not None)]
    assert len(kept) > 1
    assert len(errors) == len(kept) + 1
    assert [ref for ref in ALIVE if ref() is not None] == []
    for error in errors:
        shown = "".join(traceback.format_exception(error))
        assert "in breaks" in shown
        assert "raised by fn on tile" in shown


class Torn:
    """An image of which one corner cannot be read."""

    shape, dtype = IMAGE.shape, IMAGE.dtype

    def __getitem__(self, index: Any) -> Any:
        if index[0].stop > 56 and index[1].stop > 56:
            raise OSError("bad block")
        return IMAGE[index]


def test_kept_errors_do_not_keep_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilework.engine.reading import CropCutter

    alive: list[Any] = []
    init = CropCutter.__init__

    def made(self: CropCutter, *args: Any) -> None:
        alive.append(weakref.ref(self))
        init(self, *args)

    monkeypatch.setattr(CropCutter, "__init__", made)
    kept: list[Exception] = []
    with pytest.warns(tw.TilingWarning, match="failed"):
        tw.to_zarr(
            mapped(double, Torn()), tmp_path / "o", on_error=lambda tile, e: kept.append(e),
            scheduler="threads", progress=False,
        )  # fmt: skip
    assert kept
    assert alive
    assert [ref for ref in alive if ref() is not None] == []
    assert "in __getitem__" in "".join(traceback.format_exception(kept[0]))


def test_an_error_that_is_raised_at_once_has_its_traceback() -> None:
    with pytest.raises(ValueError, match="cannot use") as caught:
        mapped(breaks).compute(scheduler="threads")
    assert any(entry.name == "breaks" for entry in caught.traceback)
