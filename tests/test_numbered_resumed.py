"""Labels in a store that was left in any state: resumed, they are those of one run, with few calls of fn."""

import contextlib
import threading
import time

import dask
import numpy as np
import pytest
from scipy import ndimage as ndi
from zarr.storage import MemoryStore

import tilework as tw
import tilework.writing.edges
import tilework.writing.renumber
from tilework.writing import claim

NOISE = ndi.gaussian_filter(np.random.default_rng(2).random((120, 130)), 1)
MASK = np.quantile(NOISE, 0.88) < NOISE
WHOLE = ndi.label(MASK)[0]
WAYS = ["own", "join"]


class Number:
    """Labels a crop, counts its calls, and fails at some of them."""

    def __init__(self, fails=()):
        self.calls, self.fails = 0, fails

    def __call__(self, crop):
        self.calls += 1
        if self.calls in self.fails:
            raise OSError("a test")
        return ndi.label(crop)[0]


def cells(way, fn=None, **options):
    output = options.pop("output", None) or tw.Output("uint32", labels=way)
    overlap = 9 if way == "own" else 0
    options = {"chunks": 60} | options
    return tw.tiled_map(fn or Number(), MASK, 12 + 2 * overlap, overlap, output=output, **options)


def dotted(crop):
    return ndi.label(crop & (crop.cumsum(axis=1) % 3 > 0))[0]


def smooth(crop):
    time.sleep(0.02)
    return ndi.gaussian_filter(crop, 1)


def half(way, place, fails=(70,), reuse="auto", **options):
    """Write until a call fails; return how many calls that took."""
    fn = Number(fails)
    with contextlib.suppress(OSError):
        out = cells(way, fn, reuse=reuse)
        tw.to_zarr(out, place, chunks=30, progress=False, version="1", scheduler="sync", **options)
    return fn.calls


def resume(way, place, **options):
    fn = Number()
    options = {"version": "1", "scheduler": "sync"} | options
    array = tw.to_zarr(cells(way, fn), place, progress=False, **options)
    assert len(list((place / ".tilework").iterdir())) == 1
    return array[:], fn.calls


def beside(place, what):
    found = sorted(path for path in (place / ".tilework").rglob(what) if path.is_file())
    assert found
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_what_was_done_is_not_done_again(way, scheduler, tmp_path):
    """Even where the first run ran some tiles twice, and the second would not."""
    all_calls = half(way, tmp_path / "b.zarr", fails=(), reuse="recompute")
    half(way, tmp_path / "a.zarr", fails=(all_calls * 3 // 4,), reuse="recompute")
    array, calls = resume(way, tmp_path / "a.zarr", scheduler=scheduler, memory_limit="500MB")
    assert np.array_equal(array, WHOLE)
    assert calls < all_calls * 3 // 5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["facts/*", "*-pieces/c/*/*"])
def test_pieces_or_facts_that_were_deleted_are_made_again(way, what, tmp_path):
    half(way, tmp_path / "a.zarr")
    beside(tmp_path / "a.zarr", what)[0].unlink()
    assert np.array_equal(resume(way, tmp_path / "a.zarr")[0], WHOLE)


@pytest.mark.parametrize("way", WAYS)
def test_a_part_of_a_table_is_told(way, tmp_path):
    half(way, tmp_path / "a.zarr")
    table = beside(tmp_path / "a.zarr", "facts/*")[0]
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(tw.TilingError, match=f"{table.name}.*a part of it.*overwrite=True"):
        resume(way, tmp_path / "a.zarr")
    assert np.array_equal(resume(way, tmp_path / "a.zarr", overwrite=True)[0], WHOLE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.filterwarnings("ignore:labels may differ")
def test_numbers_are_those_of_one_run_whatever_is_lost(way, ome, tmp_path):
    """A function that changed, and was accepted, finds other objects: all numbers are others."""
    place, options = tmp_path / "a.zarr", {"ome": ome, "levels": 2 if ome else None}
    tw.to_zarr(cells(way), place, chunks=30, progress=False, version="1", **options)
    array = place / "0" if ome else place
    (array / "c" / "1" / "2").unlink()
    tw.status(array, verify=True, drop=True)
    for name in ("a.zarr", "b.zarr"):
        to = {"chunks": 30, "progress": False, "version": "2", "accept": ["version"]} | options
        tw.to_zarr(cells(way, dotted), tmp_path / name, **to)
    for path in ("0", "1") if ome else ("",):
        one, other = ((tmp_path / name / path) for name in ("a.zarr", "b.zarr"))
        files = sorted(p.relative_to(one) for p in one.rglob("c/*/*"))
        assert files == sorted(p.relative_to(other) for p in other.rglob("c/*/*"))
        assert all((one / f).read_bytes() == (other / f).read_bytes() for f in files)


@pytest.mark.filterwarnings("ignore:.*tiles failed")
def test_edges_that_were_found_without_some_pieces_are_found_again(tmp_path, monkeypatch):
    calls, find = [], tilework.writing.edges._find

    def killed(*args):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return find(*args)

    monkeypatch.setattr(tilework.writing.edges, "_find", killed)
    with pytest.raises(KeyboardInterrupt):
        half("join", tmp_path / "a.zarr", fails=range(20, 90, 3), on_error="fill")
    monkeypatch.undo()
    assert len(beside(tmp_path / "a.zarr", "edges/*")) == 4
    assert np.array_equal(resume("join", tmp_path / "a.zarr")[0], WHOLE)


@pytest.mark.parametrize("way", WAYS)
def test_another_output_that_is_made_again_in_part(way, tmp_path, monkeypatch):
    """The tiles that run for it see a part of the objects of a block."""

    def both(crop):
        return {"cells": ndi.label(crop)[0], "image": crop.astype("float32")}

    output = {"cells": tw.Output("uint32", labels=way), "image": tw.Output("float32")}
    out, place = cells(way, both, output=output), tmp_path / "a.zarr"
    options = {"chunks": 30, "progress": False, "scheduler": "sync"}

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tilework.writing.renumber, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        tw.to_zarr(out, place, **options)
    monkeypatch.undo()
    (place / "image" / "c" / "1" / "2").unlink()
    tw.status(place / "image", verify=True, drop=True)
    group = tw.to_zarr(out, place, **options)
    assert np.array_equal(group["cells"][:], WHOLE)
    assert np.array_equal(group["image"][:], MASK)
    assert group["cells"].attrs["tilework"]["labels"]["objects"] == WHOLE.max()


@pytest.mark.parametrize("way", WAYS)
def test_a_delayed_run_is_computed_once(way, tmp_path):
    delayed = tw.to_zarr(cells(way), tmp_path / "a.zarr", chunks=30, compute=False)
    assert np.array_equal(dask.compute(delayed)[0][:], WHOLE)
    with pytest.raises(tw.TilingError, match="computed already"):
        dask.compute(delayed)
    assert np.array_equal(resume(way, tmp_path / "a.zarr", version=None)[0], WHOLE)


def test_a_delayed_image_is_computed_again_at_once(tmp_path, monkeypatch):
    """The claims of a run that dask computes are let go in a thread, when its results are dropped."""
    release = claim.release

    def late(*args):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        release(*args)

    monkeypatch.setattr(claim, "release", late)
    out = tw.tiled_map(smooth, MASK.astype("float32"), 40, 4, dtype="float32")
    delayed = tw.to_zarr(out, tmp_path / "a.zarr", chunks=40, compute=False)
    for _ in range(3):
        dask.compute(delayed, scheduler="sync")


@pytest.mark.parametrize("way", WAYS)
def test_the_message_on_too_many_objects_says_what_to_write(way):
    small = cells(way, output=tw.Output("uint8", labels=way))
    with pytest.raises(tw.TilingError, match=f'Output."uint32", labels="{way}"'):
        tw.to_zarr(small, MemoryStore(), progress=False)


def test_a_table_cannot_be_a_folder(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(tw.TilingError, match="folder"):
        tw.to_zarr(cells("own"), tmp_path / "a.zarr", table=tmp_path / "t.csv", overwrite=True)
    assert not (tmp_path / "a.zarr").exists()
