"""What is compared when a result is resumed: parameters, places of sources; and accepted changes."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import tilework as tw
from tilework.cli import main
from tilework.graph.build import find_spec
from tilework.identity import stamps
from tilework.writing.fingerprint import Fingerprint, changes, of_spec
from tilework.writing.ledger import Ledger

IMAGE = np.arange(3 * 40 * 40, dtype="f4").reshape(3, 40, 40)
OTHER = IMAGE + 1
BASE: dict[str, Any] = {
    "fn": np.negative,
    "array": IMAGE,
    "crop": 16,
    "overlap": 4,
    "axes": (1, 2),
    "dtype": "f4",
}


def fingerprint(**options: Any) -> Fingerprint:
    out = tw.tiled_map(**(BASE | options))
    first = next(iter(out.values())) if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    found = find_spec(first)
    assert found is not None
    return of_spec(found.spec)


BLEND = {"blend": "gaussian", "stride": 8, "overlap": None}
PAD = {"edge": "pad"}
# For each parameter that changes the result: what the call has besides, and two values.
COUNTS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "fn": ({}, np.negative, np.sqrt),
    "array": ({}, IMAGE, OTHER),
    "crop": ({}, 16, 20),
    "overlap": ({}, 4, 5),
    "axes": ({"array": np.zeros((40, 40, 40), "f4")}, (1, 2), (0, 2)),
    "each": ({"axes": (1, 2)}, (), 0),
    "stride": ({"overlap": None}, 8, 6),
    "starts": ({"overlap": None}, [(0, 12, 24), (0, 10, 24)], [(0, 12, 24), (0, 12, 24)]),
    "pad_side": ({"crop": 44}, "end", "both"),
    "multiple": ({}, 1, 2),
    "edge": ({}, "shift", "squeeze"),
    "boundary": (PAD, "reflect", "edge"),
    "cval": (PAD | {"boundary": "constant"}, 0, 1),
    "blend": ({"stride": 8, "overlap": None}, "average", "hann"),
    "rim": (BLEND, 0, 1),
    "sigma_scale": (BLEND, 0.125, 0.2),
    "output": ({"dtype": None}, tw.Output("f4"), tw.Output("f8")),
    "dtype": ({}, "f4", "f8"),
    "disagreement": (BLEND, False, True),
    "where": ({}, None, np.eye(40, dtype=bool)),
    "nodata": ({}, None, 0),
    "nodata_fill": ({"nodata": 0}, None, 1),
    "skip": ({}, None, np.any),
    "fill_value": ({}, 0, 1),
    "pass_tile": ({"fn": lambda x, tile=None: x}, False, True),
}
# A mask is part of the plan, which compares it: units that other tiles touch are computed again.
ELSEWHERE = {"mask": np.eye(40, dtype=bool), "mask_scale": 2.0}
# They decide how, not what: the bits of the result are the same.
INDIFFERENT = {
    "batch_size": 2, "pad_batch": False, "chunks": 20, "memory_limit": "1GB", "reuse": "recompute",
    "name": "a-name", "meta": tw.ImageMeta("cyx", scale=(1, 2, 2)),
}  # fmt: skip


def test_every_parameter_of_tiled_map_is_classified() -> None:
    assert {*COUNTS, *ELSEWHERE, *INDIFFERENT} == set(inspect.signature(tw.tiled_map).parameters)


@pytest.mark.parametrize("name", COUNTS)
def test_a_parameter_that_changes_the_result_is_in_the_fingerprint(name: str) -> None:
    options, one, two = COUNTS[name]
    if name == "fn":
        options = options | {"fn": one}
    before = fingerprint(**(options | {name: one}))
    assert changes(before, fingerprint(**(options | {name: one}))).names == ()
    assert changes(before, fingerprint(**(options | {name: two}))).names


@pytest.mark.parametrize("name", [*INDIFFERENT, "mask"])
def test_a_parameter_that_does_not_is_not(name: str) -> None:
    options = {name: (INDIFFERENT | ELSEWHERE)[name]}
    assert changes(fingerprint(), fingerprint(**options)).names == ()


def shaped(**options: Any) -> dict[str, Any]:
    return {"output": tw.Output("f4", **options), "dtype": None, "fn": np.negative}


OUTPUT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dtype": ({"dtype": None, "output": tw.Output("f4")}, {"dtype": None, "output": tw.Output("f8")}),
    "channels": (shaped(channels=2), shaped(channels=3)),
    "channel_axis": (shaped(channels=3), shaped(channels=3, channel_axis=-1)),
    "scale": (shaped(scale=1), shaped(scale=2)),
    "margin": (shaped(margin=0), shaped(margin=2)),
    "shape": (shaped(shape=(3, 16, 16), axes=(1, 2)), shaped(shape=(4, 16, 16), axes=(1, 2))),
    "axes": (shaped(shape=(16, 16, 16), axes=(1, 2)), shaped(shape=(16, 16, 16), axes=(0, 2))),
    "blend": (BLEND | shaped(blend="average"), BLEND | shaped(blend="max")),
    "reduce": (shaped(reduce=np.abs), shaped(reduce=np.negative)),
    "fill_value": (shaped(fill_value=0), shaped(fill_value=1)),
    "labels": (
        {"output": tw.Output("int64"), "dtype": None},
        {"output": tw.Output("int64", labels="own"), "dtype": None},
    ),
    "connectivity": (
        {"output": tw.Output("int64", labels="join"), "dtype": None},
        {"output": tw.Output("int64", labels="join", connectivity=2), "dtype": None},
    ),
}


def test_every_parameter_of_an_output_is_classified() -> None:
    names = {f.name for f in fields(tw.Output)}
    assert {*OUTPUT, "channel_names"} == names  # which change no bits


@pytest.mark.parametrize("name", OUTPUT)
def test_a_parameter_of_an_output_is_in_the_fingerprint(name: str) -> None:
    one, two = OUTPUT[name]
    assert changes(fingerprint(**one), fingerprint(**one)).names == ()
    assert changes(fingerprint(**one), fingerprint(**two)).names


def ramp(power: float) -> Callable[[int], np.ndarray]:
    return lambda n: np.arange(1, n + 1, dtype=float) ** power


IMPORTANCE = np.ones((16, 16))
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "callable as blend": (BLEND | {"blend": ramp(1.0)}, BLEND | {"blend": ramp(2.0)}),
    "weights per axis": (
        BLEND | {"blend": [ramp(1.0)(16)] * 2}, BLEND | {"blend": [ramp(1.0)(16), ramp(2.0)(16)]}
    ),
    "weights of N dimensions": (BLEND | {"blend": IMPORTANCE}, BLEND | {"blend": IMPORTANCE + np.eye(16)}),
    "rim of a blend without weights": (BLEND | {"blend": "max"}, BLEND | {"blend": "max", "rim": 1}),
    "another skip": ({"skip": lambda crop: crop.max() < 1}, {"skip": lambda crop: crop.max() < 2}),
    "reduce of the second output": (
        {"dtype": None, "output": {"a": tw.Output("f4"), "b": tw.Output("f4", reduce=np.abs)}},
        {"dtype": None, "output": {"a": tw.Output("f4"), "b": tw.Output("f4", reduce=np.square)}},
    ),
    "key of an output": (
        {"dtype": None, "output": {"a": tw.Output("f4"), "b": tw.Output("f4")}},
        {"dtype": None, "output": {"a": tw.Output("f4"), "c": tw.Output("f4")}},
    ),
    "second source": ({"array": (IMAGE, IMAGE)}, {"array": (IMAGE, OTHER)}),
    "dtype of the source": ({}, {"array": IMAGE.view("i4")}),
    "version of load_once": (
        {"fn": tw.load_once(np.negative, version="1")}, {"fn": tw.load_once(np.negative, version="2")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_further_changes_are_seen(name: str) -> None:
    one, two = OTHERS[name]
    assert changes(fingerprint(**one), fingerprint(**one)).names == ()
    assert changes(fingerprint(**one), fingerprint(**two)).names


def test_a_changed_skip_is_refused() -> None:
    store = zarr.storage.MemoryStore()
    low, high = (lambda crop: crop.max() < 1), (lambda crop: crop.max() < 2)
    tw.to_zarr(tw.tiled_map(**BASE, skip=low), store, progress=False)
    with pytest.raises(tw.TilingError, match="changed: skip constants"):
        tw.to_zarr(tw.tiled_map(**BASE, skip=high), store, progress=False)
    with pytest.raises(tw.TilingError, match="changed: skip code; skip constants"):
        tw.to_zarr(tw.tiled_map(**BASE), store, progress=False)


# -- sources ----------------------------------------------------------------------------------------------


def parts_of(array: Any) -> Fingerprint:
    return fingerprint(array=array, crop=8, overlap=0, axes=None)


PLANE = IMAGE[0]


def test_a_place_does_not_depend_on_its_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    zarr.create_array("real/a.zarr", data=PLANE, chunks=(20, 20))
    PLANE.tofile("real/a.raw")
    with h5py.File("real/a.h5", "w") as file:
        file["x"] = PLANE
    spellings = ("real", "link", f"{tmp_path}/link", "real/../link", str(tmp_path / "real"))
    opened: dict[str, Callable[[str], Any]] = {
        "zarr": lambda folder: f"{folder}/a.zarr",
        "array": lambda folder: zarr.open_array(f"{folder}/a.zarr", mode="r"),
        "raw": lambda folder: np.memmap(f"{folder}/a.raw", "f4", "r", shape=PLANE.shape),
        "h5": lambda folder: h5py.File(f"{folder}/a.h5", "r")["x"],
    }
    for kind, open_it in opened.items():
        first, *rest = (parts_of(open_it(folder)) for folder in spellings)
        assert "source 0 data" in first, kind
        assert all(other == first for other in rest), kind
    assert parts_of(f"file://{tmp_path}/link/a.zarr") == parts_of("real/a.zarr")


def test_a_view_with_other_strides_is_another_source(tmp_path: Path) -> None:
    PLANE.tofile(tmp_path / "a.raw")
    one = np.memmap(tmp_path / "a.raw", "f4", "r", shape=PLANE.shape)
    assert changes(parts_of(one), parts_of(one.T)).names == ("source 0 strides",)
    fortran = np.memmap(tmp_path / "a.raw", "f4", "r", shape=PLANE.shape, order="F")
    assert changes(parts_of(one), parts_of(fortran)).names == ("source 0 strides",)
    assert "source 0 path" in changes(parts_of(one[:20]), parts_of(one[20:])).names
    assert "source 0 dtype" in changes(parts_of(one), parts_of(one.view("i4"))).names


# Uncompressed, so that rewritten chunks have the size of the old ones.
RAW: dict[str, Any] = {"chunks": (20, 20), "compressors": None}


def zipped(folder: Path) -> Callable[[Any], Any]:
    def write(data: Any) -> Any:
        place = folder / "a.zip"
        place.unlink(missing_ok=True)
        with zarr.storage.ZipStore(place, mode="w") as store:
            zarr.create_array(store, data=data, **RAW, name="x")
        return zarr.open_array(zarr.storage.ZipStore(place, mode="r"), path="x", mode="r")

    return write


def wrapped(folder: Path) -> Callable[[Any], Any]:
    def write(data: Any) -> Any:
        store = zarr.storage.WrapperStore(zarr.storage.LocalStore(folder / "w.zarr"))
        return zarr.create_array(store, data=data, **RAW, overwrite=True)

    return write


def in_memory(folder: Path) -> Callable[[Any], Any]:
    del folder
    return lambda data: zarr.create_array(zarr.storage.MemoryStore(), data=data, **RAW)


def in_a_dict(folder: Path) -> Callable[[Any], Any]:
    del folder
    return lambda data: zarr.create_array({}, data=data, **RAW, name="x")


def by_fsspec(folder: Path) -> Callable[[Any], Any]:
    pytest.importorskip("fsspec")
    place = f"memory://{folder.name}/a.zarr"
    return lambda data: zarr.create_array(place, data=data, **RAW, overwrite=True)


def local_by_fsspec(folder: Path) -> Callable[[Any], Any]:
    fsspec = pytest.importorskip("fsspec")
    del fsspec

    def write(data: Any) -> Any:
        zarr.create_array(str(folder / "f.zarr"), data=data, **RAW, overwrite=True)
        return zarr.open_array(f"file://{folder}/f.zarr", mode="r")

    return write


def by_obstore(folder: Path) -> Callable[[Any], Any]:
    store = pytest.importorskip("obstore.store")
    place = zarr.storage.ObjectStore(store.LocalStore(str(folder)))
    return lambda data: zarr.create_array(place, data=data, **RAW, name="o", overwrite=True)


@pytest.mark.parametrize(
    "kind",
    [zipped, wrapped, in_memory, in_a_dict, by_fsspec, local_by_fsspec, by_obstore],
    ids=lambda k: k.__name__,
)
def test_rewritten_data_are_seen_in_every_store(
    tmp_path: Path, kind: Callable[[Path], Callable[[Any], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    write = kind(tmp_path)
    array = write(PLANE)
    before = parts_of(array)
    assert parts_of(array) == before
    assert "source 0 data" in changes(before, parts_of(write(PLANE + 1))).names
    assert not caplog.records


def test_stores_in_memory_are_compared_by_content() -> None:
    """So that a result can be resumed in another process, where their addresses differ."""
    one, two = in_memory(Path())(PLANE), in_memory(Path())(PLANE)
    assert parts_of(one) == parts_of(two)


@pytest.mark.parametrize("says", ["sizes only", "an error"])
def test_a_store_that_says_nothing_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    def find(*_: Any) -> Any:
        if says == "an error":
            raise PermissionError("no right to list")
        return {"zarr.json": {}, "c/0/0": {}}

    array = by_fsspec(tmp_path)(PLANE)
    monkeypatch.setattr(stamps, "_of_fsspec", find)
    parts = parts_of(array)
    assert {"source 0 path", "source 0 metadata"} <= parts.keys()
    assert "source 0 data" not in parts
    [said] = [r.getMessage() for r in caplog.records]
    assert said.startswith("source 0")
    assert "version=" in said


def test_many_objects_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = by_fsspec(tmp_path)(PLANE)
    monkeypatch.setattr(stamps, "MOST", 3)
    monkeypatch.setattr(stamps, "_of_fsspec", lambda *_: pytest.fail("listed"))
    assert stamps.of_array(array)[1] is None


# -- accepted changes -------------------------------------------------------------------------------------


def scaled(k: int, broken: bool = False) -> Any:
    def fn(crop: np.ndarray) -> np.ndarray:
        if broken and (crop == PLANE[30, 30]).any():
            raise ValueError("not that one")
        return crop * k

    return tw.tiled_map(fn, PLANE, 10, 0, dtype="f4")


WRITE: dict[str, Any] = {"progress": False, "chunks": (10, 10)}
K = "fn closure value k"
BROKEN = "fn closure value broken"


def half(store: Any, k: int = 2) -> None:
    """Write all but one unit."""
    with pytest.warns(tw.TilingWarning):
        tw.to_zarr(scaled(k, broken=True), store, on_error="fill", **WRITE)


def record(store: Any) -> Any:
    return zarr.open_array(store, mode="r").attrs["tilework"]


def test_an_accepted_change_is_recorded_and_goes_on() -> None:
    store = zarr.storage.MemoryStore()
    half(store)
    with pytest.raises(tw.TilingError) as error:
        tw.to_zarr(scaled(3), store, **WRITE)
    assert f"accept={[BROKEN, K]}" in str(error.value)
    with pytest.raises(tw.TilingError, match="changed: fn closure value broken: True -> False"):
        tw.to_zarr(scaled(3), store, accept=[K], **WRITE)
    assert "accepted" not in record(store)
    written = tw.to_zarr(scaled(3), store, accept=[K, BROKEN], **WRITE)
    np.testing.assert_array_equal(written[30:, 30:], PLANE[30:, 30:] * 3)
    np.testing.assert_array_equal(written[:30], PLANE[:30] * 2)
    assert record(store)["accepted"] == [
        {"part": BROKEN, "before": "True", "after": "False"},
        {"part": K, "before": "2", "after": "3"},
    ]
    assert record(store)["fingerprint"][K] == "3"
    assert "failed" not in record(store)
    tw.to_zarr(scaled(3), store, **WRITE)
    assert len(record(store)["accepted"]) == 2
    with pytest.raises(tw.TilingError, match="k: 3 -> 2"):
        tw.to_zarr(scaled(2), store, **WRITE)
    tw.to_zarr(scaled(2), store, accept=[K], **WRITE)
    assert record(store)["accepted"][-1] == {"part": K, "before": "3", "after": "2"}


def test_it_is_recorded_before_anything_is_computed() -> None:
    """A run that dies in between must not leave values of two functions without a word."""
    store = zarr.storage.MemoryStore()
    half(store)
    with pytest.raises(ValueError, match="not that one"):
        tw.to_zarr(scaled(3, broken=True), store, accept=[K], **WRITE)
    assert record(store)["accepted"] == [{"part": K, "before": "2", "after": "3"}]


def test_a_mended_source_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    source = zarr.create_array(str(path), data=PLANE, chunks=(10, 10))
    chunk = path / "c/3/3"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    out = tw.tiled_map(np.negative, str(path), 10, 0, dtype="f4")
    with pytest.warns(tw.TilingWarning, match="1 tiles failed"):
        tw.to_zarr(out, tmp_path / "o.zarr", on_error="fill", **WRITE)
    source[30:, 30:] = PLANE[30:, 30:]
    with pytest.raises(tw.TilingError, match="changed: source 0 data"):
        tw.to_zarr(out, tmp_path / "o.zarr", **WRITE)
    written = tw.to_zarr(out, tmp_path / "o.zarr", accept=["source 0 data"], **WRITE)
    np.testing.assert_array_equal(written[...], -PLANE)
    [accepted] = record(str(tmp_path / "o.zarr"))["accepted"]
    assert accepted["part"] == "source 0 data"
    assert tw.status(tmp_path / "o.zarr").complete


@pytest.mark.parametrize(
    ("accept", "error", "text"),
    [
        (["fn closure value kk"], tw.TilingError, "did you mean 'fn closure value k'"),
        (["constants"], tw.TilingError, "'fn constants'"),
        (["zzzzzz"], tw.TilingError, "no part of the fingerprint."),
        ("fn constants", TypeError, "a list of names"),
        ([1], TypeError, "a list of names"),
        (True, TypeError, "a list of names"),
        (None, TypeError, "a list of names"),
    ],
)
def test_a_name_that_is_no_part_is_refused(accept: Any, error: type[Exception], text: str) -> None:
    store = zarr.storage.MemoryStore()
    tw.to_zarr(scaled(2), store, **WRITE)
    with pytest.raises(error, match=text):
        tw.to_zarr(scaled(3), store, accept=accept, **WRITE)


def test_what_decides_the_tiles_cannot_be_accepted() -> None:
    store = zarr.storage.MemoryStore()
    tw.to_zarr(tw.tiled_map(np.negative, PLANE, 10, 1, dtype="f4"), store, **WRITE)
    out = tw.tiled_map(np.negative, PLANE, 12, 1, dtype="f4")
    with pytest.raises(tw.TilingError, match="'crop' cannot be accepted"):
        tw.to_zarr(out, store, accept=["crop"], **WRITE)
    with pytest.raises(tw.TilingError) as error:
        tw.to_zarr(out, store, **WRITE)
    assert "accept=" not in str(error.value)


def test_what_cannot_be_compared_can_be_accepted() -> None:
    import threading

    lock: Any = threading.Lock()

    def fn(crop: np.ndarray) -> np.ndarray:
        with lock:
            return crop * 2

    store = zarr.storage.MemoryStore()
    out = tw.tiled_map(fn, PLANE, 10, 0, dtype="f4")
    tw.to_zarr(out, store, **WRITE)
    for _ in range(2):
        tw.to_zarr(out, store, accept=["fn closure value lock"], **WRITE)
    assert len(record(store)["accepted"]) == 1


def test_write_many_and_any_dask_array_accept_too() -> None:
    store, other = zarr.storage.MemoryStore(), zarr.storage.MemoryStore()
    tw.to_zarr(scaled(2), store, **WRITE)
    [outcome] = tw.write_many([(scaled(3), store)], **WRITE)
    assert not outcome.ok
    [outcome] = tw.write_many([(scaled(3), store)], accept=[K], **WRITE)
    assert outcome.ok
    [outcome] = tw.write_many([(scaled(4), store, {"accept": [K]})], **WRITE)
    assert outcome.ok
    assert [a["after"] for a in record(store)["accepted"]] == ["3", "4"]
    tw.to_zarr(scaled(2) + 1, other, progress=False)
    with pytest.raises(tw.TilingError, match=f"below 1: {K}: 2 -> 3; dask name"):
        tw.to_zarr(scaled(3) + 1, other, progress=False)
    tw.to_zarr(scaled(3) + 1, other, progress=False, accept=["dask name", f"below 1: {K}"])
    assert [a["part"] for a in record(other)["accepted"]] == [f"below 1: {K}", "dask name"]


@pytest.mark.sample(0)
def test_the_command_line_accepts(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE, chunks=(20, 20))
    said = []
    for k, extra in ((2, []), (3, []), (3, ["--accept", "fn constants"]), (3, [])):
        (tmp_path / "double.py").write_text(f"def fn(crop): return crop * {k}\n")
        command = [
            sys.executable,
            "-B",
            "-c",
            "from tilework.cli import main; main()",
            "run",
            "double.py:fn",
            "a.zarr",
            "o.zarr",
        ]
        command += ["--crop", "10", "--overlap", "0", "--dtype", "f4", *extra]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        said.append((done.returncode, done.stderr))
    assert [code for code, _ in said] == [0, 1, 0, 0]
    assert "changed: fn constants" in said[1][1]
    assert "--accept" in CliRunner().invoke(main, ["run", "--help"]).output


# -- records of an earlier format -------------------------------------------------------------------------


def as_format_1(store: Any, former: Fingerprint) -> None:
    array = zarr.open_array(store, mode="r+")
    found = {k: v for k, v in array.attrs["tilework"].items() if k not in ("generation", "shape", "unit")}
    array.update_attributes({"tilework": found | {"format": 1, "fingerprint": former.former}})
    ledger = Ledger(array)
    ledger.objects.delete(*ledger.objects.names())
    for unit in np.ndindex(*ledger.shape):
        ledger.objects.write(f"done/{'.'.join(map(str, unit))}", b"")


def test_a_record_of_format_1_is_compared_by_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line names the parts that it does not have; a change among those that it has is refused."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "old_module.py").write_text("K = 2\ndef f(x): return x * K\n")
    zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE, chunks=(20, 20))
    import old_module  # type: ignore[import-not-found]

    space = {"__name__": "__main__", "old_module": old_module, "H": 1}
    exec("def fn(x): return old_module.f(x) * H", space)
    monkeypatch.chdir(tmp_path)
    out = tw.tiled_map(space["fn"], "a.zarr", 10, 0, dtype="f4")
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, **WRITE)
    found = find_spec(out)
    assert found is not None
    parts = of_spec(found.spec)
    assert "fn global old_module" in parts.former.keys() - parts.keys()
    as_format_1(store, parts)
    with caplog.at_level(logging.WARNING, "tilework"):
        tw.to_zarr(out, store, **WRITE)
    [said] = [r.getMessage() for r in caplog.records]
    assert "fn global old_module.f code" in said
    assert record(store)["format"] == 2
    assert tw.status(store).complete
    as_format_1(store, parts)
    space["H"] = 2
    with pytest.raises(tw.TilingError, match="changed: fn global H: 1 -> 2"):
        tw.to_zarr(tw.tiled_map(space["fn"], "a.zarr", 10, 0, dtype="f4"), store, **WRITE)
    space["H"] = 1
    (tmp_path / "old_module.py").write_text("K = 3\ndef f(x): return x * K\n")
    with pytest.raises(tw.TilingError, match="changed: fn global old_module"):
        tw.to_zarr(out, store, **WRITE)
    del sys.modules["old_module"]


def test_format_2_is_written() -> None:
    store = zarr.storage.MemoryStore()
    tw.to_zarr(scaled(2), store, **WRITE)
    assert record(store)["format"] == 2
    assert json.loads(json.dumps(record(store))) == record(store)
