"""Objects of which only a part is there, changed arrays, and units that are gone: healed or named."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import tilework as tw
from tilework.cli import main
from tilework.writing.ledger import Ledger

IMAGE = np.arange(1, 45 * 45 + 1, dtype="f4").reshape(45, 45)
LAYOUTS: list[dict[str, Any]] = [
    {"chunks": 16}, {"chunks": 8, "shards": 16}, {"chunks": 16, "zarr_format": 2},
    {"chunks": 8, "shards": 16, "compressors": None}, {"chunks": 16, "compressors": None},
]  # fmt: skip


def double(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def write(store: Any, fn: Any = double, **options: Any) -> Any:
    out = tw.tiled_map(fn, IMAGE, 16, 0, dtype="f4", chunks=16)
    return tw.to_zarr(out, store, **{"progress": False, "version": "1", "chunks": 16} | options)


def keys_of(array: Any) -> list[Path]:
    """Return the files of the units, in the order of the units."""
    root = Path(array.store.root) / array.path
    units = np.ndindex(*Ledger(array).shape)
    return [root / array.metadata.encode_chunk_key(unit) for unit in units]


def unmark(array: Any, units: list[tuple[int, int]]) -> None:
    done = np.ones(Ledger(array).shape, bool)
    for unit in units:
        done[unit] = False
    Ledger(array).reset(done)


# -- torn objects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_half_a_unit_without_a_mark_is_written_again(
    layout: dict[str, Any], keep: float, tmp_path: Path
) -> None:
    """Also at the border, where a unit is not full; and half a shard, which zarr reads before it writes."""
    written = write(tmp_path / "a.zarr", **layout)
    torn = [(0, 0), (1, 1), (0, 2), (2, 2)]
    unmark(written, torn)
    for unit in torn:
        path = keys_of(written)[np.ravel_multi_index(unit, (3, 3))]
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    again = write(tmp_path / "a.zarr", **layout)
    np.testing.assert_array_equal(again[...], IMAGE * 2)
    assert tw.status(again, verify=True).complete


@pytest.mark.parametrize("text", [b"", b"{", b'{"units":[[[0,1],[0', b"null", b"[]", b"\x00\xff"])
def test_half_a_mark_says_nothing(text: bytes, tmp_path: Path) -> None:
    written = write(tmp_path / "a.zarr")
    marks = sorted((tmp_path / "a.zarr" / ".tilework").rglob("done/*"))
    assert len(marks) == 9
    marks[4].write_bytes(text)
    assert tw.status(written).done == 8
    written[16:32, 16:32] = 0
    np.testing.assert_array_equal(write(tmp_path / "a.zarr")[...], IMAGE * 2)


@pytest.mark.parametrize(("name", "zarr_format"), [("zarr.json", 3), (".zarray", 2), (".zattrs", 2)])
@pytest.mark.parametrize("share", [0, 0.5])
def test_half_a_metadata_document_is_named_with_the_cure(
    name: str, zarr_format: int, share: float, tmp_path: Path
) -> None:
    """It is never taken for an empty place, since the samples are still there."""
    write(tmp_path / "a.zarr", zarr_format=zarr_format)
    path = tmp_path / "a.zarr" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(tw.TilingError, match=f"{re.escape(name)} is not whole.*Restore this file") as error:
        write(tmp_path / "a.zarr")
    assert "or write afresh with overwrite=True" in str(error.value)
    with pytest.raises(tw.TilingError, match="is not whole"):
        tw.status(tmp_path / "a.zarr")
    path.write_bytes(whole)
    np.testing.assert_array_equal(write(tmp_path / "a.zarr")[...], IMAGE * 2)
    path.write_bytes(b"{")
    np.testing.assert_array_equal(write(tmp_path / "a.zarr", overwrite=True)[...], IMAGE * 2)


def test_half_a_document_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    """Nobody knows what it was: perhaps the root of a hierarchy."""
    (tmp_path / "a.zarr" / "inside").mkdir(parents=True)
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    (tmp_path / "a.zarr" / "inside" / "zarr.json").write_text("{}")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(tw.TilingError, match="is not whole"):
            write(tmp_path / "a.zarr", **options)
    assert (tmp_path / "a.zarr" / "inside" / "zarr.json").exists()


def test_files_of_killed_writers_are_removed_on_resume_and_others_are_not(tmp_path: Path) -> None:
    written = write(tmp_path / "a.zarr")
    unmark(written, [(1, 1)])
    left = [
        tmp_path / "a.zarr" / "c" / "1" / f"1.{'0a' * 16}.partial",
        tmp_path / "a.zarr" / f"zarr.{'1b' * 16}.partial",
        tmp_path / "a.zarr" / ".tilework" / f"claim.{'2c' * 16}.partial",
    ]
    for path in [*left, tmp_path / "a.zarr" / "mine.partial"]:
        path.write_bytes(b"half")
    write(tmp_path / "a.zarr")
    assert not any(path.exists() for path in left)
    assert (tmp_path / "a.zarr" / "mine.partial").exists()


# -- arrays that were changed -------------------------------------------------------------------------------


def resized(store: Path) -> None:
    zarr.open_array(store, mode="r+").resize((50, 45))


def resized_and_back(store: Path) -> None:
    resized(store)
    zarr.open_array(store, mode="r+").resize((45, 45))


def other_chunks(store: Path) -> None:
    document = json.loads((store / "zarr.json").read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [8, 8]
    (store / "zarr.json").write_text(json.dumps(document))


def newer(store: Path) -> None:
    array = zarr.open_array(store, mode="r+")
    array.attrs["tilework"] = array.attrs["tilework"] | {"format": 99}


@pytest.mark.parametrize(("change", "told"), [
    (resized, r"shape \(45, 45\) -> \(50, 45\)"), (other_chunks, r"unit \(16, 16\) -> \(8, 8\)"),
    (newer, "newer version of tilework .format 99, here 2"),
])  # fmt: skip
def test_marks_are_believed_only_with_their_array(
    change: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.zarr")
    change(tmp_path / "a.zarr")
    with pytest.raises(tw.TilingError, match=told):
        write(tmp_path / "a.zarr", chunks=None)
    if change is not newer:
        assert tw.status(tmp_path / "a.zarr").done == 0
    again = write(tmp_path / "a.zarr", np.negative, overwrite=True)
    np.testing.assert_array_equal(again[...], -IMAGE)


def test_a_resize_and_back_is_seen_by_what_is_gone(tmp_path: Path) -> None:
    """zarr deletes chunks when it shrinks an array; the marks cannot know, but `status` looks."""
    written = write(tmp_path / "a.zarr")
    zarr.open_array(tmp_path / "a.zarr", mode="r+").resize((16, 45))
    zarr.open_array(tmp_path / "a.zarr", mode="r+").resize((45, 45))
    found = tw.status(tmp_path / "a.zarr", verify=True)
    assert len(found.broken) == 6
    assert tw.status(tmp_path / "a.zarr", drop=True).done == 3
    np.testing.assert_array_equal(write(written)[...], IMAGE * 2)


def test_attributes_of_somebody_else_survive(tmp_path: Path) -> None:
    """Those of before, and those that are set during the run, also when tiles fail."""

    def fn(crop: np.ndarray) -> np.ndarray:
        array = zarr.open_array(tmp_path / "a.zarr", mode="r+")
        array.attrs["during"] = array.attrs.get("during", 0) + 1
        if crop[0, 0] == 1 and array.attrs["fail"]:
            raise ValueError("x" * 10_000)
        return crop

    options: dict[str, Any] = {"on_error": "fill", "scheduler": "synchronous"}
    with pytest.warns(tw.TilingWarning, match="1 tiles failed"):
        write(tmp_path / "a.zarr", fn, attributes={"fail": True}, **options)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r+")
    assert (array.attrs["during"], array.attrs["tilework"]["n_failed"]) == (9, 1)
    assert len(array.attrs["tilework"]["failed"][0]) <= 300
    array.attrs["fail"] = False
    write(tmp_path / "a.zarr", fn, **options)
    attributes = zarr.open_array(tmp_path / "a.zarr").attrs
    assert attributes["during"] == 10
    assert "failed" not in attributes["tilework"]


def test_the_record_of_many_failed_tiles_is_small(tmp_path: Path) -> None:
    def fails(crop: np.ndarray) -> np.ndarray:
        raise ValueError("y" * 1000)

    out = tw.tiled_map(fails, np.zeros((64, 64), "f4"), 2, 0, dtype="f4", chunks=32)
    with pytest.warns(tw.TilingWarning, match="1024 tiles failed"):
        tw.to_zarr(out, tmp_path / "a.zarr", on_error="fill", progress=False)
    found = tw.status(tmp_path / "a.zarr")
    assert (found.n_failed, len(found.failed)) == (1024, 20)
    assert (tmp_path / "a.zarr" / "zarr.json").stat().st_size < 20_000


# -- units that are gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_status_finds_what_is_missing_or_unreadable_and_drops_its_marks(
    layout: dict[str, Any], tmp_path: Path
) -> None:
    """Not the units that are all fill value, which have no file."""
    written = write(tmp_path / "a.zarr", lambda c: c * (c[0, 0] != 1), **layout)
    assert not keys_of(written)[0].exists()
    assert tw.status(written, verify=True).complete
    expected = written[...]
    keys_of(written)[4].unlink()
    keys_of(written)[8].write_bytes(b"\x01\x02\x03")
    plain = tw.status(written)
    found = tw.status(tmp_path / "a.zarr", verify=True)
    assert plain.complete
    assert not found.complete
    assert found.broken == ((1, 1), (2, 2))
    runner = CliRunner()
    told = runner.invoke(main, ["status", "--verify", str(tmp_path / "a.zarr")])
    assert told.exit_code == 1
    assert "9/9" in told.output
    assert "(1, 1)" in told.output
    told = runner.invoke(main, ["status", "--verify", "--drop", str(tmp_path / "a.zarr")])
    assert "7/9" in told.output
    again = write(tmp_path / "a.zarr", lambda c: c * (c[0, 0] != 1), **layout)
    np.testing.assert_array_equal(again[...], expected)
    assert tw.status(again, verify=True).complete


def test_a_store_may_be_moved_and_copied(tmp_path: Path) -> None:
    """What lies beside the samples knows no path."""
    written = write(tmp_path / "a.zarr")
    unmark(written, [(0, 1)])
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    os.rename(tmp_path / "a.zarr", tmp_path / "c.zarr")  # noqa: PTH104 -- as a user would
    calls: list[float] = []

    def counted(crop: np.ndarray) -> np.ndarray:
        calls.append(float(crop[0, 0]))
        return crop * 2

    for name in ("b.zarr", "c.zarr"):
        np.testing.assert_array_equal(write(tmp_path / name, counted)[...], IMAGE * 2)
    assert calls == [17.0, 17.0]


def test_two_runs_into_empty_places_make_equal_stores(tmp_path: Path) -> None:
    """Byte by byte, with everything that lies beside the samples."""
    for name in "ab":
        write(tmp_path / name)
    files = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in "ab"
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 1 + 9 + 9


# -- units that others deleted ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dask_array", [False, True])
def test_a_unit_that_was_deleted_is_written_again(
    layout: dict[str, Any], dask_array: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Units of fill value have no object, and are not computed again."""
    calls = []
    image = IMAGE.copy()
    image[:16, :16] = 0

    def count(crop: np.ndarray) -> np.ndarray:
        calls.append(1)
        return crop * 2

    out = tw.tiled_map(count, image, 16, 0, dtype="f4", chunks=16)
    out = out + 0 if dask_array else out

    def run() -> Any:
        calls.clear()
        return tw.to_zarr(out, tmp_path / "a.zarr", progress=False, version="1", **layout)

    array = run()
    files = keys_of(array)
    assert [f.exists() for f in files] == [False] + [True] * 8
    run()
    assert not calls
    assert not caplog.records
    for file in files[4:6]:
        file.unlink()
    np.testing.assert_array_equal(run()[...], image * 2)
    assert len(calls) == 2
    assert "2 units were finished and are gone; they are written again" in caplog.text
    run()
    assert not calls
    shutil.rmtree(tmp_path / "a.zarr" / "c", ignore_errors=True)
    for file in files:
        file.unlink(missing_ok=True)
    np.testing.assert_array_equal(run()[...], image * 2)
    assert len(calls) == 8


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("value", [0, 3, np.nan, np.datetime64("NaT", "s"), "", True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_units_without_an_object_are_not_taken_for_deleted(value: Any, zarr_format: int) -> None:
    """Format 2 may have no fill value; zarr leaves out the units of some value nevertheless."""
    calls = []
    image = np.full((8, 8), value)
    out = tw.tiled_map(lambda crop: calls.append(1) or crop, image, 4, 0, dtype=image.dtype, chunks=4)
    options: dict[str, Any] = {"fill_value": None} if zarr_format == 2 else {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=(8, 8), chunks=(4, 4), dtype=image.dtype, zarr_format=zarr_format,
        **options,
    )  # fmt: skip
    for _ in range(2):
        tw.to_zarr(out, array, progress=False, version="1", overwrite=not calls)
        assert len(calls) == 4
    assert tw.status(array, verify=True).complete


def test_what_lies_above_a_deleted_unit_is_written_again(tmp_path: Path) -> None:
    out = tw.tiled_map(double, IMAGE, 16, 0, dtype="f4", chunks=16)

    def run() -> list[np.ndarray]:
        options: dict[str, Any] = {"ome": True, "levels": 2, "meta": tw.ImageMeta("yx"), "progress": False}
        tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, **options)
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        return [array[...] for _, array in sorted(group.arrays())]

    before = run()
    for level, unit in (("0", "2/0"), ("1", "0/0")):
        [file] = (tmp_path / "a.zarr").rglob(f"*{level}/c/{unit}")
        file.unlink()
        for one, other in zip(run(), before, strict=True):
            np.testing.assert_array_equal(one, other)


def test_units_behind_a_link_are_not_taken_for_deleted(tmp_path: Path) -> None:
    calls = []
    out = tw.tiled_map(lambda crop: calls.append(1) or crop, IMAGE, 16, 0, dtype="f4", chunks=16)
    array = tw.to_zarr(out, tmp_path / "a.zarr", progress=False, version="1", chunks=16)
    shutil.move(tmp_path / "a.zarr" / "c" / "1", tmp_path / "elsewhere")
    (tmp_path / "a.zarr" / "c" / "1").symlink_to(tmp_path / "elsewhere")
    calls.clear()
    tw.to_zarr(out, array, progress=False, version="1")
    assert not calls
