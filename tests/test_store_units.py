"""I1: each write unit is written whole, once, by one task, whatever is cut, blended, scaled or masked."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tilework import (
    AlignmentError,
    MemoryBudgetError,
    Output,
    TilingError,
    load_once,
    status,
    tiled_map,
    to_zarr,
)
from tilework.errors import GridError
from tilework.graph.build import plan_of
from tilework.plan.memory import peak_bytes
from tilework.writing import sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Counting

    Count = Callable[[Callable[..., Any]], Counting]

IMAGE = np.arange(1, 96 * 80 + 1, dtype=np.float32).reshape(96, 80)


def identity(crop: np.ndarray) -> np.ndarray:
    return crop


def large(crop: np.ndarray) -> np.ndarray:
    return crop.repeat(2, -1).repeat(2, -2)


def mapped(fn: Any = identity, image: Any = IMAGE, crop: Any = 24, overlap: Any = 4, **options: Any) -> Any:
    return tiled_map(fn, image, crop, overlap, **{"dtype": "f4"} | options)


class Watching(zarr.storage.WrapperStore):
    """A store that counts reads and writes of units, and remembers which thread wrote."""

    def __init__(self, store: Any = None, seen: Any = None) -> None:
        super().__init__(zarr.storage.MemoryStore() if store is None else store)
        self.writes, self.reads = (Counter(), Counter()) if seen is None else seen

    def _with_store(self, store: Any) -> Watching:
        return Watching(store, (self.writes, self.reads))

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if _is_data(key):
            self.writes[key] += 1
        await super().set(key, *args, **kwargs)

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if _is_data(key):
            self.reads[key] += 1
        return await super().get(key, *args, **kwargs)


def _is_data(key: str) -> bool:
    """Metadata and done-marks are not."""
    name = key.rpartition("/")[2]
    return name != "zarr.json" and not name.startswith(".z") and ".tilework" not in key


# -- any grid into any units --------------------------------------------------------------------------------


@st.composite
def cases(draw: Any) -> tuple[Any, dict[str, Any], tuple[int, ...], tuple[int, ...] | None]:
    """Draw a result, and chunks and shards for it."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(5, (90, 40, 16)[ndim - 1])) for _ in range(ndim))
    image = np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)
    crop = tuple(draw(st.integers(4, 12)) for _ in shape)
    overlap = tuple(draw(st.integers(1, (c - 1) // 2)) for c in crop)
    options: dict[str, Any] = {
        "axes": tuple(range(ndim)),
        "edge": draw(st.sampled_from(["shift", "squeeze", "pad", "clip"])),
        "blend": draw(st.sampled_from(["trim", "hann", "max"])),
        "reuse": draw(st.sampled_from(["auto", "share", "recompute"])),
        "chunks": draw(st.sampled_from(["auto", 7, 13, 30])),
        "batch_size": draw(st.sampled_from([None, 2])),
    }
    if draw(st.booleans()):
        options |= {"mask": image % 50 > 25, "fill_value": -1}
    try:
        out = mapped(image=image, crop=crop, overlap=overlap, **options)
    except GridError:  # blocks too short to share
        out = mapped(image=image, crop=crop, overlap=overlap, **options | {"reuse": "auto"})
    chunks = tuple(draw(st.integers(1, n + 3)) for n in shape)
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks) if draw(st.booleans()) else None
    return out, options, chunks, shards


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
@given(cases())
def test_I1_any_result_goes_into_any_units_once(case: Any) -> None:
    out, options, chunks, shards = case
    store = Watching()
    with dask.config.set(scheduler="threads", num_workers=8):
        written = to_zarr(out, store, chunks=chunks, shards=shards, progress=False)
    # Where a mask leaves tiles out, a blend of two orders of summation may differ by a rounding.
    compare = np.testing.assert_array_equal if options["blend"] != "hann" else np.testing.assert_allclose
    compare(written[...], out.compute(), **({} if options["blend"] != "hann" else {"rtol": 1e-5}))
    # No unit is longer than its axis, but for shards of whole chunks.
    cut = tuple(map(min, chunks, out.shape))
    if shards is not None:
        shards = tuple(min(s, -(-n // c) * c) for s, n, c in zip(shards, out.shape, cut, strict=True))
    units = math.prod(-(-n // u) for n, u in zip(out.shape, shards or cut, strict=True))
    assert (len(store.writes), set(store.writes.values())) == (units, {1})
    assert (written.chunks, written.shards) == (cut, shards)


def test_chunks_and_shards_are_cut_to_their_axes(tmp_path: Any) -> None:
    """96 for all axes made chunks of 96 in each, which were encoded with the samples outside."""
    image = np.zeros((2, 32, 300, 340), "u1")
    out = tiled_map(np.abs, image, (16, 96, 96), 4, axes=(1, 2, 3), dtype="u1")
    written = to_zarr(out, tmp_path / "a", chunks=96, progress=False)
    assert (written.chunks, written.shards) == ((2, 32, 96, 96), None)
    again = to_zarr(out, tmp_path / "a", chunks=96, progress=False)
    assert again.chunks == written.chunks
    sharded = to_zarr(out, tmp_path / "b", chunks=96, shards=192, progress=False)
    assert (sharded.chunks, sharded.shards) == ((2, 32, 96, 96), (2, 32, 192, 192))
    whole = to_zarr(out, tmp_path / "c", chunks=(1, 32, 96, 400), shards=(5, 32, 500, 800), progress=False)
    assert (whole.chunks, whole.shards) == ((1, 32, 96, 340), (2, 32, 384, 340))
    long = to_zarr(out, tmp_path / "d", shards=4096, progress=False)
    assert long.shards == tuple(-(-n // c) * c for n, c in zip(image.shape, long.chunks, strict=True))
    assert min(long.chunks[2:]) >= 96
    lazy = da.zeros((20, 30), chunks=(10, 30))
    assert to_zarr(lazy, tmp_path / "e", chunks=(10, 99), progress=False).chunks == (10, 30)


def test_an_array_with_longer_chunks_than_its_axes_is_resumed(tmp_path: Any) -> None:
    there = zarr.create_array(str(tmp_path / "a"), shape=(10, 40), chunks=(64, 64), dtype="f4")
    out = mapped(image=np.ones((10, 40)), crop=8, overlap=2)
    assert to_zarr(out, there, chunks=64, progress=False).chunks == (64, 64)
    with pytest.raises(AlignmentError, match="has chunks"):
        to_zarr(out, there, chunks=(10, 20), progress=False)


def test_encoding_whole_units_is_part_of_the_estimate(tmp_path: Any) -> None:
    """A shard is encoded whole, by every thread."""
    image = np.zeros((4096, 4096), "f4")
    out = tiled_map(np.abs, image, 256, 16, dtype="f4")
    with (
        dask.config.set(scheduler="threads", num_workers=4),
        pytest.raises(MemoryBudgetError, match="encode write units") as refused,
    ):
        to_zarr(out, tmp_path / "a", chunks=256, shards=4096, memory_limit="130MB", progress=False)
    assert not (tmp_path / "a").exists()
    least = int(str(refused.value).rpartition("memory_limit=")[2].rstrip("."))
    assert least >= 2 * image.nbytes + peak_bytes(plan_of(out).with_blocks(image.shape, "recompute", ())) // 4


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(st.tuples(*[st.integers(1, 40)] * 2), st.sampled_from([1, 2, 3, Fraction(1, 2), Fraction(2, 3)]))
def test_I1_a_scaled_result_too(chunks: tuple[int, int], scale: Fraction) -> None:
    def scaled(crop: np.ndarray) -> np.ndarray:
        return crop.repeat(int(scale * 6), 0).repeat(int(scale * 6), 1)[::6, ::6]

    output = Output("f4", scale=scale)
    out = tiled_map(scaled, IMAGE[:48, :60], 24, 6, output=output, chunks=18)
    store = Watching()
    written = to_zarr(out, store, chunks=chunks, progress=False)
    np.testing.assert_array_equal(written[...], scaled(IMAGE[:48, :60]))
    assert set(store.writes.values()) == {1}


def test_I1_no_unit_is_read_to_be_written() -> None:
    store = Watching()
    written = to_zarr(mapped(blend="hann"), store, chunks=(13, 17), progress=False)
    assert not store.reads
    assert written.nchunks == len(store.writes)


def test_I1_a_task_writes_whole_units_and_no_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, lock, put = [], threading.Lock(), sink.write_box

    def watch(array: zarr.Array, box: Any, value: Any) -> None:
        with lock:
            boxes.append(box)
        put(array, box, value)

    monkeypatch.setattr(sink, "write_box", watch)
    with dask.config.set(scheduler="threads", num_workers=8):
        to_zarr(
            mapped(blend="hann"), zarr.storage.MemoryStore(), chunks=(6, 5), shards=(12, 20), progress=False
        )
    hits = np.zeros(IMAGE.shape, int)
    for box in boxes:
        hits[box] += 1
        for span, unit, n in zip(box, (12, 20), IMAGE.shape, strict=True):
            assert span.start % unit == 0
            assert span.stop % unit == 0 or span.stop == n
    assert (hits == 1).all()


def test_I1_a_plan_that_would_share_units_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The planner never makes one; the check stands between its mistakes and the data."""
    monkeypatch.setattr("tilework.writing.replan.choose_blocks", lambda plan, _: plan)
    with pytest.raises(AlignmentError, match="blocks of 30 and units of 16 samples on axis 1"):
        to_zarr(mapped(lambda _: pytest.fail("something ran"), chunks=30), tmp_path / "a", chunks=(15, 16))
    assert not (tmp_path / "a").exists()


# -- several outputs ----------------------------------------------------------------------------------------


def test_a_tuple_is_written_in_one_pass_by_number(counting: Count) -> None:
    fn = counting(lambda x: (x, large(x)))
    outs = tiled_map(
        fn, IMAGE, 24, 4, output=(Output("f4", blend="hann"), Output("f4", scale=2)), chunks=30, reuse="share"
    )  # fmt: skip
    store = zarr.storage.MemoryStore()
    group = to_zarr(outs, store, path="a/b", chunks={0: (10, 16), 1: (30, 40)}, progress=False)
    assert sorted(group.array_keys()) == ["0", "1"]
    assert (group["0"].chunks, group["1"].chunks, group.path) == ((10, 16), (30, 40), "a/b")
    np.testing.assert_allclose(group["0"][...], IMAGE, rtol=1e-6)
    np.testing.assert_array_equal(group["1"][...], large(IMAGE))
    assert fn.calls == len(plan_of(outs[0]))


def test_one_member_of_several_is_written_alone() -> None:
    outs = tiled_map(lambda x: {"a": x, "b": -x}, IMAGE, 24, 4, output={"a": Output("f4"), "b": Output("f4")})
    written = to_zarr(outs["b"], zarr.storage.MemoryStore(), progress=False)
    np.testing.assert_array_equal(written[...], -IMAGE)


def test_a_refused_call_leaves_the_marks_of_a_given_array_alone(tmp_path: Path) -> None:
    """Also with ``overwrite=True``, which lets them go when the array is written into."""
    written = to_zarr(mapped(), tmp_path / "a", chunks=(16, 16), progress=False)
    with pytest.raises(AlignmentError, match=r"has chunks \(16, 16\); got chunks=\(8, 8\)"):
        to_zarr(mapped(np.negative), written, chunks=(8, 8), overwrite=True, progress=False)
    assert status(written).complete
    again = to_zarr(mapped(np.negative), written, overwrite=True, progress=False)
    np.testing.assert_array_equal(again[...], -IMAGE)
    assert status(again).complete


def test_options_go_to_zarr(tmp_path: Path) -> None:
    for version in (2, 3):
        written = to_zarr(
            mapped(), tmp_path / f"{version}", progress=False, attributes={"unit": "nm"}, fill_value=7,
            zarr_format=version, compressors=None,
        )  # fmt: skip
        assert (written.metadata.zarr_format, written.fill_value, written.attrs["unit"]) == (version, 7, "nm")
        assert not written.compressors
        np.testing.assert_array_equal(written[...], IMAGE)


def test_a_group_takes_members_by_path(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g"))
    for path in ("x", "y/z"):
        assert to_zarr(mapped(), group, path=path, progress=False).path == path
    with pytest.raises(TilingError, match=r"g/x holds a result of other parts; changed: .*overwrite=True"):
        to_zarr(mapped(np.negative), group, path="x", progress=False)
    np.testing.assert_array_equal(group["x"][...], IMAGE)
    np.testing.assert_array_equal(group["y/z"][...], IMAGE)


# -- other dask arrays --------------------------------------------------------------------------------------


OTHERS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda out: out.sum(),
    "threshold": lambda out: out > 50,
    "column": lambda out: out[:, 0],
    "rows": lambda out: out[3:50],
    "steps": lambda out: out[::-2],
    "transposed": lambda out: out.T,
    "persisted": lambda out: out.persist(),
    "whole slice": lambda out: out[:, :],
    "rechunked": lambda out: out.rechunk((7, 80)),
    "ones": lambda _: da.ones((50, 40), chunks=(20, 15)),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_was_made_of_a_result_is_written_as_it_stands(
    change: Callable[[Any], Any], scheduler: str, tmp_path: Path
) -> None:
    with dask.config.set(scheduler="synchronous"):
        array = change(mapped(chunks=30, blend="max"))
        expected = array.compute()
    store = Watching(zarr.storage.LocalStore(tmp_path / "a"))
    written = to_zarr(array, store if scheduler != "processes" else tmp_path / "a", progress=False)
    np.testing.assert_array_equal(written[...], expected)
    if scheduler != "processes":
        assert (len(store.writes), set(store.writes.values())) == (written.nchunks, {1})


# By the end of a chunk that lies in a unit, for default units.
IRREGULAR: dict[str, tuple[Callable[[Any], Any], int | None]] = {
    "slice": (lambda out: out[3:50], 13),
    "both axes": (lambda out: out[3:50, 7:], 13),
    "slice of whole chunks": (lambda out: out[32:], None),
    "a short chunk that divides the others": (lambda out: out[8:], None),
    "a row that divides the others": (lambda out: out[15:], None),
    "a row and a column that divide the others": (lambda out: out[31:, 15:], None),
    "turned": (lambda out: out[3:51][::-1], 3),
    "every second": (lambda out: out[::2], None),
    "every fifth": (lambda out: out[1::5], 3),
    "concatenated": (lambda out: da.concatenate([out[:90], out]), 90),
    "rolled": (lambda out: da.roll(out, 7, 0), 7),
    "some rows": (lambda out: out[[0, 1, 2, 50]], None),
    "filtered": (lambda out: known(out[out[:, 0] > 1600]), 12),
    "filtered, empty chunks at the end": (lambda out: known(out[out[:, 0] < 900]), None),
    "filtered, few are left": (lambda out: known(out[out[:, 0] % 11 == 0]), None),
    "nothing": (lambda out: out[5:5], None),
    "DataArray": (lambda out: xr.DataArray(out, dims=("y", "x"), name="a").isel(y=slice(3, 50)), 13),
}


def known(array: Any) -> Any:
    """Return an array with the lengths of its chunks, of which some may be 0."""
    with dask.config.set(scheduler="synchronous"):
        return array.compute_chunk_sizes()


@pytest.mark.parametrize("name", IRREGULAR)
def test_chunks_that_are_no_units_are_named(name: str, tmp_path: Path) -> None:
    change, end = IRREGULAR[name]
    out = change(mapped(crop=12, overlap=2, chunks=16))
    if end is None:
        np.testing.assert_array_equal(to_zarr(out, tmp_path / "a", progress=False)[...], np.asarray(out))
        return
    with pytest.raises(AlignmentError, match=rf"on axis 0, where a chunk ends at {end}\. Write out\."):
        to_zarr(out, tmp_path / "a", progress=False)


def test_the_log_says_that_units_are_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But not where they are asked for or long enough."""
    caplog.set_level(logging.WARNING, "tilework")
    out = mapped(crop=12, overlap=2, chunks=16)[15:]
    assert to_zarr(out, tmp_path / "a", chunks=(1, 16), progress=False).chunks == (1, 16)
    rows = da.zeros((9, 2**20), chunks=((1, 4, 4), -1), dtype="u1")
    assert to_zarr(rows, tmp_path / "b", progress=False).chunks == (1, 2**20)
    assert not caplog.messages
    assert to_zarr(out, tmp_path / "c", progress=False).chunks == (1, 16)
    [said] = caplog.messages
    assert said.startswith("the array is written in chunks of (1, 16) samples")
    assert "rechunk({0: 16})" in said
    to_zarr(out.rechunk({0: 16}), tmp_path / "d", progress=False)
    assert len(caplog.messages) == 1


@pytest.mark.sample(1, whole=24)
@pytest.mark.parametrize("name", IRREGULAR)
@pytest.mark.parametrize("options", [{}, {"chunks": 7}, {"chunks": 4, "shards": 8}], ids=str)
def test_the_call_that_is_told_for_chunks_that_are_no_units_works(
    name: str, options: dict[str, int], tmp_path: Path
) -> None:
    out = IRREGULAR[name][0](mapped(crop=12, overlap=2, chunks=16))
    expected, lengths = np.asarray(out), {key: (value, value) for key, value in options.items()}
    try:
        to_zarr(out, tmp_path / "a", progress=False, **lengths)
    except AlignmentError as error:
        out = eval(str(error).rpartition("Write ")[2].rstrip("."), {"out": out})
    written = to_zarr(out, tmp_path / "a", progress=False, **lengths)
    np.testing.assert_array_equal(written[...], expected)


def test_blocks_that_are_no_units_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def boom(_: Any) -> Any:
        pytest.fail("something ran")

    array = da.ones((50, 40), chunks=(20, 20)).map_blocks(boom, dtype=float, meta=np.empty((0, 0)))
    for options, told in (
        (
            {"chunks": (15, 20)},
            "chunks of 20, 20, 10 and units of 15 samples on axis 0, where a chunk ends at 20",
        ),
        ({"chunks": (5, 5), "shards": (20, 15)}, "chunks of 20, 20 and units of 15 samples on axis 1"),
    ):
        with pytest.raises(AlignmentError, match=told):
            to_zarr(array, tmp_path / "a", **options)
    existing = zarr.create_array(
        str(tmp_path / "b"), shape=(50, 40), chunks=(5, 5), shards=(30, 20), dtype=float
    )
    with pytest.raises(
        AlignmentError, match=r"units of 30 samples on axis 0, .* Write out.rechunk\({0: 30}\)"
    ):
        to_zarr(array, existing)
    for shards in ((25, 20), (20, 3)):
        with pytest.raises(
            AlignmentError, match=r"shards must be multiples of chunks; got shard \d+ and chunk"
        ):
            to_zarr(mapped(boom), tmp_path / "a", chunks=(10, 2), shards=shards)
    with pytest.raises(
        TilingError, match=r"chunks needs one positive whole number .* \(96, 80\); got \(3,\)"
    ):
        to_zarr(mapped(boom), tmp_path / "a", chunks=(3,))
    with pytest.raises(TilingError, match="unknown chunk sizes"):
        to_zarr(array[array[:, 0] > 0], tmp_path / "a")
    with pytest.raises(TilingError, match="out is empty"):
        to_zarr((), tmp_path / "a")
    with pytest.raises(TypeError, match="such as a result of tiled_map; a numpy array"):
        to_zarr(IMAGE, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


# -- what is read is never written --------------------------------------------------------------------------


WAYS: dict[str, Callable[[Path], Any]] = {
    "absolute": str,
    "Path": lambda path: path,
    "relative": os.path.relpath,
    "dots": lambda path: f"{path.parent}/no/../{path.name}/",
    "URL": lambda path: f"file://{path}",
    "store": lambda path: zarr.storage.LocalStore(os.path.relpath(path)),
    "array": lambda path: zarr.open_array(os.path.relpath(path)),
    "link": lambda path: path.with_name("link"),
    "folder": lambda path: path.parent,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("opened", ["absolute", "relative", "array", "link"])
def test_the_source_is_not_overwritten_by_any_other_name(
    way: Callable[[Path], Any], opened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.zarr"
    zarr.create_array(str(path), data=IMAGE, chunks=(16, 16))
    (tmp_path / "link").symlink_to(path)
    out = mapped(np.negative, WAYS[opened](path))
    for result in (out, out + 1):
        with pytest.raises(TilingError, match="holds the array that is read; write somewhere else"):
            to_zarr(result, way(path), overwrite=True, progress=False)
    np.testing.assert_array_equal(zarr.open_array(path)[...], IMAGE)


def test_a_mapped_file_below_the_store_is_not_deleted(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "g"))
    np.save(tmp_path / "g" / "image.npy", IMAGE)
    out = mapped(np.negative, np.load(tmp_path / "g" / "image.npy", mmap_mode="r"))
    with pytest.raises(TilingError, match="holds the array that is read"):
        to_zarr(out, tmp_path / "g", overwrite=True, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "g" / "image.npy"), IMAGE)


# -- failures and schedulers --------------------------------------------------------------------------------


def until(flag: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that fails on the last sample until a file is there."""

    def fussy(crop: np.ndarray) -> np.ndarray:
        if crop.max() == IMAGE.max() and not flag.exists():
            raise LookupError("not yet")
        return -crop

    return fussy


@pytest.mark.parametrize("again", [pytest.param("client", marks=pytest.mark.distributed), "threads"])
def test_a_failed_write_names_the_tile_and_the_next_starts_afresh(
    again: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue("client") if again == "client" else "threads"
    out = mapped(load_once(until, (tmp_path / "flag",)), chunks=30)
    with dask.config.set(scheduler=where):
        with pytest.raises(LookupError, match="not yet") as caught:
            to_zarr(out, tmp_path / "a", progress=False)
        assert any("raised by fn on tile" in note for note in caught.value.__notes__)
        (tmp_path / "flag").touch()
        for name in ("b", "c"):  # the error above still holds the tasks of the first
            written = to_zarr(out, tmp_path / name, progress=False)
            np.testing.assert_array_equal(written[...], -IMAGE)


def test_an_array_in_memory_is_no_target_for_processes(scheduler: str) -> None:
    for out in (mapped(), mapped() + 0):
        target = np.zeros_like(IMAGE)
        if scheduler == "processes":
            with pytest.raises(TilingError, match="can only be written into by threads"):
                to_zarr(out, target, progress=False)
        else:
            assert to_zarr(out, target, progress=False) is target
            np.testing.assert_array_equal(target, IMAGE)


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """Give a client of two worker processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.sample(0, whole=4)
@pytest.mark.distributed
@pytest.mark.parametrize("blend", ["trim", "hann"])
@pytest.mark.parametrize("kind", ["zarr", "numpy", "dask", "memmap"])
def test_a_cluster_of_processes_writes_the_same_bits(
    blend: str, kind: str, workers: Any, tmp_path: Path
) -> None:
    source: Any = IMAGE
    if kind == "zarr":
        source = zarr.create_array(str(tmp_path / "in"), data=IMAGE, chunks=(16, 20))
    if kind == "dask":
        source = da.from_array(IMAGE, chunks=(33, 21))
    if kind == "memmap":
        np.save(tmp_path / "in.npy", IMAGE)
        source = np.load(tmp_path / "in.npy", mmap_mode="r")
    out = mapped(large, source, blend=blend, dtype=None, output=Output("f4", scale=2), chunks=30)
    with dask.config.set(scheduler=workers):
        written = to_zarr(out, tmp_path / "out", chunks=(5, 6), shards=(30, 30), progress=False)
    expected = to_zarr(out, tmp_path / "expected", chunks=(5, 6), shards=(30, 30), progress=False)
    np.testing.assert_array_equal(written[...], expected[...])
    np.testing.assert_allclose(written[...], large(IMAGE), rtol=1e-5)
