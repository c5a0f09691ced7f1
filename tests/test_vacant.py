"""An array into which a run wrote nothing stands in nobody's way; anything else is kept as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

import tilework as tw
from tilework.formats.ome_zarr import read_group
from tilework.writing.claim import Claims
from tilework.writing.node import is_vacant
from tilework.writing.objects import Objects
from tilework.writing.target import Target

IMAGE = np.arange(1, 48 * 48 + 1, dtype="f4").reshape(48, 48)
YX = tw.ImageMeta("yx")


def broken(crop: np.ndarray) -> np.ndarray:
    raise ValueError("a bug")


def mended(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def ids(crop: np.ndarray) -> np.ndarray:
    return crop.astype("u4")


def late(crop: np.ndarray) -> np.ndarray:
    if crop.max() > 2000:
        raise ValueError("a bug in the last tile")
    return crop


def result(fn: Any = mended, **options: Any) -> Any:
    return tw.tiled_map(fn, IMAGE, 16, 0, **{"dtype": "f4", "chunks": 16} | options)


def write(out: Any, store: Any, **options: Any) -> Any:
    return tw.to_zarr(out, store, **{"progress": False, "scheduler": "synchronous"} | options)


def fail(store: Any, fn: Any = broken, dtype: str = "i1", out: Any = None, **options: Any) -> None:
    with pytest.raises(ValueError, match="a bug"):
        write(result(fn, dtype=dtype) if out is None else out, store, **options)


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": 32, "chunks": 8}, {"resume": False}])
@pytest.mark.parametrize("path", [None, "a/b"])
@pytest.mark.parametrize("memory", [False, True])
def test_a_run_that_wrote_nothing_stands_in_nobodys_way(
    tmp_path: Path, options: dict[str, Any], path: str | None, memory: bool
) -> None:
    store = MemoryStore() if memory else str(tmp_path / "a.zarr")
    fail(store, path=path, attributes={"author": "me"}, **options)
    written = write(result(), store, path=path, **options)
    np.testing.assert_array_equal(written[:], IMAGE * 2)
    assert written.dtype == "f4"
    assert set(written.attrs) == {"tilework"}
    with pytest.raises(tw.TilingError, match="already holds" if "resume" in options else "other parts"):
        write(result(late), store, path=path, **options)


@pytest.mark.parametrize("change", [{"chunks": 8}, {"fill_value": 7}, {"attributes": {"a": 1}}])
def test_the_same_result_may_get_another_layout(change: dict[str, Any]) -> None:
    store = MemoryStore()
    fail(store)
    fail(store, **change)
    written = write(result(), store, **change)
    assert written.chunks[0] == change.get("chunks", 16)
    assert written.attrs.get("a") == ("attributes" in change or None)


def test_several_outputs_and_slices_and_jobs_of_many() -> None:
    def two(fn: Any) -> Any:
        return lambda crop: {"a": fn(crop), "b": -fn(crop)}

    def outs(fn: Any, dtype: str) -> Any:
        out = {"a": tw.Output(dtype), "b": tw.Output(dtype)}
        return tw.tiled_map(two(fn), IMAGE, 16, 0, output=out, chunks=16)

    store = MemoryStore()
    fail(store, out=outs(broken, "i1"))
    np.testing.assert_array_equal(write(outs(mended, "f4"), store)["b"][:], IMAGE * -2)
    store = MemoryStore()
    fail(store, out=result(broken)[:16] + 1)
    np.testing.assert_array_equal(write(result()[:16] + 1, store)[:], IMAGE[:16] * 2 + 1)
    stores = [MemoryStore() for _ in range(2)]
    for fn, ok in ((broken, False), (mended, True)):
        report = tw.write_many([(result(fn), s) for s in stores], progress=False, scheduler="synchronous")
        assert [one.ok for one in report] == [ok, ok]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_gets_other_levels_and_attributes(version: str) -> None:
    store = MemoryStore()
    fail(store, ome=version, levels=3, meta=YX, chunks=16)
    write(result(), store, ome=version, levels=2, meta=tw.ImageMeta("yx", scale=[2, 2]), chunks=16)
    group = zarr.open_group(store, mode="r")
    [image] = read_group(dict(group.attrs), "a").images
    assert [level.path for level in image.levels] == ["0", "1"] == sorted(group)
    assert image.meta(0).scale == (
        2,
        2,
    )
    np.testing.assert_array_equal(group["0"][:], IMAGE * 2)
    with pytest.raises(tw.TilingError, match="other parts"):
        write(result(late), store, ome=version, levels=2, meta=tw.ImageMeta("yx", scale=[2, 2]), chunks=16)
    fail(store, ome=version, label_name="cells", levels=2, out=result(broken, dtype="u1"))
    write(result(ids, dtype="u4"), store, ome=version, label_name="cells", levels=1)
    assert sorted(group["labels/cells"]) == ["0"]
    assert group["labels/cells/0"].dtype == "u4"


def test_labels_are_in_the_way_as_soon_as_there_are_pieces() -> None:
    own = tw.Output("u2", labels="own")

    def cells(fn: Any) -> Any:
        return tw.tiled_map(fn, IMAGE, 16, 4, output=own, chunks=16)

    def first(crop: np.ndarray) -> np.ndarray:
        return (crop == crop.max()).astype("u2")

    def later(crop: np.ndarray) -> np.ndarray:
        return (late(crop) == crop.max()).astype("u2")

    store = MemoryStore()
    fail(store, out=cells(broken))
    fail(store, out=cells(later))
    with pytest.raises(tw.TilingError, match="other parts"):
        write(cells(first), store)


def test_a_dataarray_is_written_beside_others(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    array = xr.DataArray(
        IMAGE, dims=("y", "x"), coords={"y": np.arange(48.0)}, name="a", attrs={"units": "m"}
    )

    def out(fn: Any, dtype: str) -> Any:
        return tw.tiled_map(fn, array, 16, 0, dtype=dtype, chunks=16)

    write(out(mended, "f4").rename("first"), tmp_path / "a.zarr")
    fail(tmp_path / "a.zarr", out=out(broken, "i1"))
    write(out(mended, "f4"), tmp_path / "a.zarr")
    there = xr.open_zarr(tmp_path / "a.zarr")
    assert set(there.data_vars) == {"a", "first"}
    np.testing.assert_array_equal(there.a, IMAGE * 2)


def test_an_array_that_was_given_is_kept_as_it_is() -> None:
    store = MemoryStore()
    array = zarr.create_array(store, shape=IMAGE.shape, dtype="f4", chunks=(16, 16), attributes={"mine": 1})
    fail(array, dtype="f4")
    with pytest.raises(tw.TilingError, match="other parts"):
        write(result(), store)  # by its place, it would be deleted
    assert write(result(), array).attrs["mine"] == 1
    np.testing.assert_array_equal(array[:], IMAGE * 2)
    with pytest.raises(tw.TilingError, match="other parts"):
        write(result(late), array)


def unmarked(store: Any) -> None:
    Objects.of(zarr.open(store).store_path).delete_folders("")


def commented(store: Any) -> None:
    zarr.open(store).attrs["comment"] = "mine"


def noted(store: Any) -> None:
    Objects(store, "").write("notes.txt", b"mine")


def filled(store: Any) -> None:
    zarr.open(store)[:] = 3


def claimed(store: Any) -> None:
    Claims().take(Objects.of(zarr.open(store).store_path), "a")


def resized(store: Any) -> None:
    zarr.open(store).resize((64, 48))


@pytest.mark.parametrize("done", [unmarked, commented, noted, filled, claimed, resized])
def test_nothing_of_others_is_deleted(done: Any) -> None:
    store = MemoryStore()
    fail(store, late if done is unmarked else broken, "f4")
    done(store)
    before = {key: value.to_bytes() for key, value in store._store_dict.items() if "beat" not in key}
    with pytest.raises(tw.TilingError, match=r"other parts|another run|changed after"):
        write(result(), store)
    after = {key: value.to_bytes() for key, value in store._store_dict.items() if "beat" not in key}
    assert after == before


def test_tiles_that_were_left_out_and_a_run_that_is_to_come_are_in_the_way() -> None:
    store = MemoryStore()
    with pytest.warns(tw.TilingWarning, match="failed"):
        write(result(late, chunks=48), store, chunks=48, on_error="fill")
    assert tw.status(store).done == 0
    with pytest.raises(tw.TilingError, match="other parts"):
        write(result(), store, chunks=48)
    store = MemoryStore()
    write(result(late), store, compute=False, scheduler=None, progress="auto")
    with pytest.raises(tw.TilingError, match="other parts"):
        write(result(), store)


@pytest.mark.parametrize("kind", ["created", "given"])
def test_a_run_that_comes_between_looking_and_claiming_is_not_harmed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    given = kind == "given" and zarr.create_array(store, shape=IMAGE.shape, dtype="f4", chunks=(16, 16))
    fail(store if kind == "created" else given, dtype="f4")
    look = Target.look

    def looked(self: Target, sources: Any) -> Any:
        place = look(self, sources)
        monkeypatch.setattr(Target, "look", look)
        write(result(), store if kind == "created" else given)
        return place

    monkeypatch.setattr(Target, "look", looked)
    with pytest.raises(tw.TilingError, match="changed by another run in this moment"):
        write(result(np.negative), store if kind == "created" else given)
    np.testing.assert_array_equal(zarr.open(store)[:], IMAGE * 2)
    assert tw.status(store).complete


def test_what_lies_behind_a_link_is_data(tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    fail(place, late, "f4")
    (place / "c").rename(tmp_path / "elsewhere")
    (place / "c").symlink_to(tmp_path / "elsewhere")
    unmarked(LocalStore(place))
    array = zarr.open(place)
    assert not is_vacant(array, array.attrs["tilework"])
