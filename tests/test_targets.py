"""What is not ours is not touched: folders, groups, sources; every spelling of a store means that store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import obstore.store
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem

import tilework as tw

IMAGE = np.arange(1, 64 * 64 + 1, dtype="f4").reshape(64, 64)


def result(image: Any = IMAGE, fn: Any = np.negative, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 32, 0, **{"dtype": "f4"} | options)


def write(out: Any, store: Any, **options: Any) -> Any:
    return tw.to_zarr(out, store, **{"progress": False, "scheduler": "synchronous"} | options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- folders and groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"overwrite": True}, {"path": "a/b"}, {"path": "sub", "overwrite": True}]
)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "spell",
    [str, Path, lambda p: f"file://{p}", zarr.storage.LocalStore],
    ids=["str", "Path", "URL", "store"],
)
def test_a_folder_that_is_not_zarr_is_refused_always(
    options: dict[str, Any], several: bool, spell: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.docx").write_text("x")
    (tmp_path / "mine" / "sub" / "more.txt").write_text("y")
    before = files(tmp_path)
    out = result(fn=lambda c: (c, c), output=(tw.Output("f4"),) * 2, dtype=None) if several else result()
    with pytest.raises(tw.TilingError, match="not empty and not Zarr: it holds"):
        write(out, spell(tmp_path / "mine"), **options)
    assert files(tmp_path) == before


@pytest.mark.parametrize("store", [
    lambda: "memory://bucket-of-mine/folder", lambda: zarr.storage.MemoryStore(),
    lambda: zarr.storage.WrapperStore(zarr.storage.MemoryStore()),
], ids=["fsspec", "memory", "wrapped"])  # fmt: skip
def test_objects_that_are_not_zarr_are_refused_in_every_store(store: Callable[[], Any]) -> None:
    from tilework.identity.location import locate
    from tilework.writing.objects import Objects

    target = store()
    objects = Objects(locate(target).store, "")
    objects.write("letters/a.txt", b"x")
    with pytest.raises(tw.TilingError, match="not empty and not Zarr: it holds letters"):
        write(result(), target, overwrite=True)
    assert objects.read("letters/a.txt") == b"x"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "spell", [lambda g: g, lambda g: str(g.store.root), lambda g: g.store.root], ids=["group", "str", "Path"]
)
def test_a_group_without_a_path_is_refused(zarr_format: Any, spell: Any, tmp_path: Path) -> None:
    """An array is written into it by path=, and one that is there is replaced by naming it exactly."""
    group = zarr.create_group(str(tmp_path / "g.zarr"), zarr_format=zarr_format)
    group.create_array("other", data=np.ones(4))
    group.create_group("inner").create_array("deep", data=np.ones(3))
    group.attrs["mine"] = 1
    before = files(tmp_path)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(tw.TilingError, match="is a Zarr group; give path= for an array in it"):
            write(result(), spell(group), **options)
        with pytest.raises(tw.TilingError, match=r"already holds data|being"):
            write(result(), spell(group), path="other")
    with pytest.raises(tw.TilingError, match="already holds data, a group; overwrite=True deletes it"):
        write(result(), spell(group), path="inner")
    assert files(tmp_path) == before
    for path in ("other", "inner", "new", "far/away"):
        written = write(result(), spell(group), path=path, overwrite=path in ("other", "inner"))
        assert (written.path, written.metadata.zarr_format) == (path, zarr_format)
        np.testing.assert_array_equal(written[...], -IMAGE)
    after = files(tmp_path)
    assert {k: v for k, v in after.items() if "/" not in k.removeprefix("g.zarr/")} == {
        k: v for k, v in before.items() if "/" not in k.removeprefix("g.zarr/")
    }


@pytest.mark.parametrize("spell", [
    lambda d: (f"{d}/v2.zarr", "labels/mask/0"), lambda d: (f"{d}/v2.zarr/labels/mask/0", None),
    lambda d: (f"file://{d}/v2.zarr/labels", "mask/0"), lambda d: (Path(d) / "v2.zarr" / "labels" / "mask",
    "0"), lambda d: (zarr.open_group(f"{d}/v2.zarr"), "labels/mask/0"),
    lambda d: (zarr.storage.LocalStore(f"{d}/v2.zarr"), "labels/mask/0"),
], ids=["path", "whole path", "URL", "Path", "group", "store"])  # fmt: skip
@pytest.mark.parametrize("attributes", [True, False])
def test_a_node_has_the_format_of_its_hierarchy(spell: Any, attributes: bool, tmp_path: Path) -> None:
    """However its place is spelled; the image beside it stays readable, its metadata as they were."""
    group = zarr.create_group(str(tmp_path / "v2.zarr"), zarr_format=2)
    group.create_array("0", data=IMAGE, chunks=(32, 32))
    if attributes:
        axes = [{"name": "y"}, {"name": "x"}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    else:
        (tmp_path / "v2.zarr" / ".zattrs").unlink()  # as zarr-python 2 left it
    before = files(tmp_path)
    store, path = spell(str(tmp_path))
    written = write(result(f"{tmp_path}/v2.zarr/0"), store, path=path)
    np.testing.assert_array_equal(written[...], -IMAGE)
    after = files(tmp_path)
    assert {k: after[k] for k in before} == before
    assert not any(k.endswith("zarr.json") for k in after)
    assert sorted(k for k in after.keys() - before.keys() if k.count("/") == 1) == []
    read = zarr.open_group(str(tmp_path / "v2.zarr"), mode="r")
    np.testing.assert_array_equal(read["labels/mask/0"][...], -IMAGE)
    with pytest.raises(tw.TilingError, match="Zarr format 2; got zarr_format=3"):
        write(result(), tmp_path / "v2.zarr", path="three", zarr_format=3)
    with pytest.raises(tw.TilingError, match="format 2, which has no shards"):
        write(result(), tmp_path / "v2.zarr", path="sharded", shards=32)


def test_a_place_inside_an_array_is_refused(tmp_path: Path) -> None:
    for zarr_format in (2, 3):
        store = tmp_path / f"{zarr_format}.zarr"
        zarr.create_array(str(store), data=IMAGE, chunks=(32, 32), zarr_format=zarr_format)
        before = files(tmp_path)
        for target, path in ((store, "c"), (store / "more", None), (store, "x/y")):
            with pytest.raises(tw.TilingError, match=r"inside an array|holds 0, 1"):
                write(result(), target, path=path, overwrite=True)
        assert files(tmp_path) == before


@pytest.mark.parametrize("layout", [{}, {"zarr_format": 2}, {"shards": 64, "chunks": 32}])
def test_files_of_the_user_in_the_folder_of_an_array_survive_its_overwriting(
    layout: dict[str, Any], tmp_path: Path
) -> None:
    """What is not part of the array is not ours, also where it lies inside."""
    write(result(), tmp_path / "a.zarr", **layout)
    (tmp_path / "a.zarr" / "notes").mkdir()
    for name in ("thesis.docx", "notes/1.txt", "c.txt"):
        (tmp_path / "a.zarr" / name).write_text("mine")
    written = write(result(fn=np.abs), tmp_path / "a.zarr", overwrite=True)
    np.testing.assert_array_equal(written[...], IMAGE)
    for name in ("thesis.docx", "notes/1.txt", "c.txt"):
        assert (tmp_path / "a.zarr" / name).read_text() == "mine"
    written = write(result(fn=np.negative), tmp_path / "a.zarr", overwrite=True, zarr_format=2, chunks=16)
    np.testing.assert_array_equal(written[...], -IMAGE)
    [marks] = (tmp_path / "a.zarr" / ".tilework").iterdir()
    assert marks.name == written.attrs["tilework"]["generation"]


def test_consolidated_metadata_stay_and_their_age_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for zarr_format in (2, 3):
        store = str(tmp_path / f"{zarr_format}.zarr")
        zarr.create_group(store, zarr_format=zarr_format).create_array("a", data=IMAGE, chunks=(32, 32))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            zarr.consolidate_metadata(store)
        before = files(tmp_path)
        caplog.clear()
        write(result(), store, path="b")
        assert "will not show this array" in caplog.text
        assert before.items() <= files(tmp_path).items()


# -- spellings ----------------------------------------------------------------------------------------------


def test_a_link_home_dots_and_a_file_url_name_what_they_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "nowhere").symlink_to(tmp_path / "later")
    monkeypatch.chdir(tmp_path / "real")
    for spelled, place in {
        "~/data/a.zarr": "home/data/a.zarr", str(tmp_path / "link" / "b.zarr"): "real/b.zarr",
        "../real/c.zarr": "real/c.zarr", f"file://{tmp_path}/real/d%20e.zarr": "real/d%20e.zarr",
        str(tmp_path / "nowhere"): "later",     }.items():  # fmt: skip
        for overwrite in (False, True):
            write(result(), spelled, overwrite=overwrite)
            np.testing.assert_array_equal(zarr.open_array(tmp_path / place, mode="r")[...], -IMAGE)
        assert tw.status(spelled).complete
        np.testing.assert_array_equal(result(spelled).compute(scheduler="synchronous"), IMAGE)
    (tmp_path / "linked.zarr").symlink_to(tmp_path / "real" / "b.zarr")
    write(result(fn=np.abs), tmp_path / "linked.zarr", overwrite=True)
    assert (tmp_path / "linked.zarr").is_symlink()
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "real" / "b.zarr", mode="r")[...], IMAGE)


def test_what_cannot_be_a_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "file.txt").write_text("x")
    for store in (tmp_path / "a", tmp_path / "a" / "c.zarr"):
        with pytest.raises(tw.TilingError, match="cannot be used as a store: Too many levels"):
            write(result(), store)
    with pytest.raises(tw.TilingError, match="names the host 'other'"):
        write(result(), "file://other/tmp/a.zarr")
    with pytest.raises((tw.TilingError, NotADirectoryError)):
        write(result(), tmp_path / "file.txt" / "a.zarr")
    with pytest.raises((tw.TilingError, NotADirectoryError, FileExistsError)):
        write(result(), tmp_path / "file.txt", overwrite=True)
    assert (tmp_path / "file.txt").read_text() == "x"


class Locked(LocalFileSystem):
    """A file system that demands an option at every opening."""

    protocol = "locked"
    cachable = False

    def __init__(self, key: str | None = None, **options: Any) -> None:
        if key != "open sesame":
            raise PermissionError("locked")
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("locked://"))


def test_storage_options_reach_every_opening(tmp_path: Path) -> None:
    """Fresh, resumed, overwritten, several outputs, a later look."""
    fsspec.register_implementation("locked", Locked, clobber=True)
    url = f"locked://{tmp_path}/a.zarr"
    options = {"storage_options": {"key": "open sesame", "auto_mkdir": True}}
    with pytest.raises(PermissionError):
        write(result(), url)
    for more in ({}, {}, {"overwrite": True}, {"path": None, "compute": False, "scheduler": None}):
        written = write(result(), url, **options, **more)
        if more.get("compute") is False:
            written = written.compute(scheduler="synchronous")
        np.testing.assert_array_equal(written[...], -IMAGE)
    outputs = {"p": tw.Output("f4"), "q": tw.Output("f4")}
    two = result(fn=lambda c: {"p": c, "q": -c}, output=outputs, dtype=None)
    group = write(two, f"locked://{tmp_path}/g.zarr", **options)
    np.testing.assert_array_equal(group["q"][...], -IMAGE)
    assert [s.complete for s in tw.status(f"locked://{tmp_path}/g.zarr", **options)] == [True, True]
    outcome = tw.write_many([(result(), f"locked://{tmp_path}/m.zarr")], progress=False, **options)
    assert outcome[0].ok
    for store in (str(tmp_path / "b.zarr"), zarr.storage.MemoryStore()):
        with pytest.raises(tw.TilingError, match=r"storage_options=.* are for URLs"):
            write(result(), store, **options)


class Limited(zarr.storage.WrapperStore):
    supports_deletes = True
    supports_listing = True
    supports_writes = True


@pytest.mark.parametrize(("able", "told"), [
    ("supports_deletes", "deleted from"), ("supports_listing", "listed"), ("supports_writes", "written"),
])  # fmt: skip
def test_a_store_that_cannot_do_what_is_needed_is_refused_before_anything_runs(able: str, told: str) -> None:
    limited = type("Limited", (Limited,), {able: False})(zarr.storage.MemoryStore())
    with pytest.raises(tw.TilingError, match=f"cannot be {told}"):
        write(result(fn=lambda _: pytest.fail("something ran")), limited)


def test_a_zip_file_is_refused(tmp_path: Path) -> None:
    with (
        zarr.storage.ZipStore(tmp_path / "a.zip", mode="w") as store,
        pytest.raises(tw.TilingError, match="cannot be deleted from"),
    ):
        write(result(), store)


# -- source and target that are one thing -------------------------------------------------------------------


def zarr_sources(folder: Path) -> dict[str, Callable[[], Any]]:
    local = str(folder / "x.zarr")
    return {
        "path": lambda: local, "file URL": lambda: f"file://{local}", "array": lambda: zarr.open_array(local),
        "fsspec": lambda: zarr.open_array(zarr.storage.FsspecStore.from_url(f"local://{local}")),
        "link": lambda: str(folder / "link.zarr"),
        "wrapped": lambda: zarr.open_array(zarr.storage.WrapperStore(zarr.storage.LocalStore(local))),
        "obstore": lambda: zarr.open_array(zarr.storage.ObjectStore(obstore.store.LocalStore(local))),
        "dask": lambda: da.from_zarr(local), "dask, inline": lambda: da.from_zarr(local, inline_array=True)
        + 0, "dask of an array": lambda: da.from_array(zarr.open_array(local), chunks=(32, 64)).rechunk(16),
    }  # fmt: skip


@pytest.mark.parametrize("source", zarr_sources(Path()))
@pytest.mark.parametrize("target", ["path", "file URL", "array", "fsspec", "link", "wrapped", "obstore"])
@pytest.mark.parametrize("change", [lambda out: out, lambda out: out + 1], ids=["result", "made of it"])
def test_a_zarr_array_is_not_replaced_by_its_own_result(
    source: str, target: str, change: Any, tmp_path: Path
) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=IMAGE, chunks=(32, 32))
    (tmp_path / "link.zarr").symlink_to(tmp_path / "x.zarr")
    spellings = zarr_sources(tmp_path)
    before = files(tmp_path / "x.zarr")
    with pytest.raises(tw.TilingError, match="holds the array that is read"):
        write(change(result(spellings[source](), chunks=32)), spellings[target](), overwrite=True)
    assert files(tmp_path / "x.zarr") == before


def test_an_array_in_memory_neither(tmp_path: Path) -> None:
    urls = ["memory://one/x.zarr", "memory:///one/x.zarr", "memory://one/y/../x.zarr"]
    zarr.create_array(urls[0], data=IMAGE, chunks=(32, 32), overwrite=True)
    for source in urls[:2]:
        for target in urls[:2]:
            with pytest.raises(tw.TilingError, match="holds the array that is read"):
                write(result(source), target, overwrite=True)
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, data=IMAGE, chunks=(32, 32))
    view = zarr.storage.MemoryStore(store._store_dict)
    for target in (store, view, array, zarr.storage.WrapperStore(view)):
        with pytest.raises(tw.TilingError, match="holds the array that is read"):
            write(result(array), target, overwrite=True)
    np.testing.assert_array_equal(array[...], IMAGE)
    written = write(result(urls[0]), "memory://one/z.zarr")
    np.testing.assert_array_equal(written[...], -IMAGE)


def test_two_maps_of_one_file(tmp_path: Path) -> None:
    """Refused where they share bytes, whatever the name of the file; two parts of a file are two things."""
    IMAGE.tofile(tmp_path / "raw")
    (tmp_path / "same").hardlink_to(tmp_path / "raw")
    source = np.memmap(tmp_path / "raw", "f4", "r", shape=(64, 64))
    for name in ("raw", "same"):
        target = np.memmap(tmp_path / name, "f4", "r+", shape=(64, 64))
        with pytest.raises(tw.TilingError, match="the one that is read"):
            write(result(source), target)
    upper = np.memmap(tmp_path / "raw", "f4", "r", shape=(32, 64))
    lower = np.memmap(tmp_path / "raw", "f4", "r+", offset=32 * 64 * 4, shape=(32, 64))
    write(result(upper), lower)
    np.testing.assert_array_equal(lower, -IMAGE[:32])
    np.testing.assert_array_equal(upper, IMAGE[:32])


def test_one_dataset_of_hdf5_opened_twice(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = IMAGE
        file["again"] = file["a"]
        file.create_dataset("b", IMAGE.shape, "f4")
        out = result(file["a"])
        for name in ("a", "again"):
            with pytest.raises(tw.TilingError, match="the one that is read"):
                write(out, file[name])
        write(out, file["b"])
        np.testing.assert_array_equal(file["b"][...], -IMAGE)
        np.testing.assert_array_equal(file["a"][...], IMAGE)


def test_the_label_image_beside_its_image_is_another_thing(tmp_path: Path) -> None:
    """What lies in the same group is not what is read, and a name that begins alike is another name."""
    group = zarr.create_group(str(tmp_path / "i.zarr"))
    group.create_array("0", data=IMAGE, chunks=(32, 32))
    for path in ("labels/0", "00"):
        np.testing.assert_array_equal(write(result(group["0"]), group, path=path)[...], -IMAGE)
    np.testing.assert_array_equal(write(result(group["0"]), tmp_path / "i.zarr2")[...], -IMAGE)
    assert json.loads((tmp_path / "i.zarr" / "zarr.json").read_text())["node_type"] == "group"


# -- names of axes ------------------------------------------------------------------------------------------


def named_array(dims: tuple[str, ...] | None, zarr_format: Any) -> zarr.Array:
    more: dict[str, Any] = {"dimension_names": dims} if zarr_format == 3 else {}
    if dims is not None and zarr_format == 2:
        more = {"attributes": {"_ARRAY_DIMENSIONS": list(dims)}}
    return zarr.create_array(
        {}, shape=(24, 24), dtype="f4", chunks=(12, 12), zarr_format=zarr_format, **more
    )  # fmt: skip


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_samples_go_to_the_axes_of_their_names(labelled: bool, zarr_format: Any) -> None:
    """By position they would be under the names of others, without a word where extents are equal."""
    xr = pytest.importorskip("xarray")
    image = np.arange(24 * 24, dtype="f4").reshape(24, 24)
    array, meta = (xr.DataArray(image, dims=("y", "x")), None) if labelled else (image, tw.ImageMeta("yx"))
    out = tw.tiled_map(np.copy, array, 12, 0, dtype="f4", meta=meta)
    turned = named_array(("x", "y"), zarr_format)
    with pytest.raises(
        tw.TilingError, match=r"store has dims \('x', 'y'\), and the result has dims \('y', 'x'\)"
    ):
        tw.to_zarr(out, turned, progress=False)
    assert not turned.nchunks_initialized
    for dims in (("y", "x"), None):
        fits = named_array(dims, zarr_format)
        tw.to_zarr(out, fits, progress=False)
        np.testing.assert_array_equal(fits[...], image)
    other = named_array(("lat", "lon"), zarr_format)
    if labelled:
        with pytest.raises(tw.TilingError, match="under labels of others"):
            tw.to_zarr(out, other, progress=False)
    else:  # names that the result has from its image say little
        tw.to_zarr(out, other, progress=False)
        np.testing.assert_array_equal(other[...], image)


def test_an_array_of_a_result_whose_dims_are_no_texts_is_written_again() -> None:
    xr = pytest.importorskip("xarray")
    out = tw.tiled_map(np.copy, xr.DataArray(np.ones((24, 24), "f4"), dims=(2, 1)), 12, 0, axes=(0, 1))
    stored = named_array(("2", "1"), 3)
    tw.to_zarr(out, stored, progress=False)
    assert (stored[...] == 1).all()


# -- what Zarr cannot hold --------------------------------------------------------------------------------


def long_double(crop: np.ndarray) -> np.ndarray:
    return crop.astype(np.longdouble)


def both(crop: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": crop, "b": long_double(crop)}


REFUSED: dict[str, tuple[Any, Callable[[], Any], dict[str, Any]]] = {
    "one": (result, lambda: result(fn=long_double, dtype=None), {}),
    "options": (result, lambda: result(fn=long_double, dtype=None), {"fill_value": 0}),
    "format 2": (result, lambda: result(fn=long_double, dtype=None), {"zarr_format": 2}),
    "any dask array": (result, lambda: da.ones((64, 64), chunks=16, dtype=np.longdouble), {}),
    "image": (result, lambda: result(fn=long_double, dtype=None), {"ome": True}),
    "second": (
        lambda: result(fn=lambda x: {"a": x, "b": x}, dtype=None), lambda: result(fn=both, dtype=None), {}
    ),
}  # fmt: skip


@pytest.mark.skipif(np.longdouble(0).itemsize == 8, reason="no long doubles here")
@pytest.mark.parametrize("case", REFUSED)
def test_former_data_stay_where_zarr_refuses_the_new(case: str, tmp_path: Path) -> None:
    """They were deleted for an array that could not be created."""
    former, new, options = REFUSED[case]
    write(former(), tmp_path / "a.zarr", **{k: v for k, v in options.items() if k != "fill_value"})
    before = files(tmp_path)
    with pytest.raises(tw.TilingError, match=r"cannot hold the result .* dtype float128: .*dtype=.float32"):
        write(new(), tmp_path / "a.zarr", overwrite=True, **options)
    after = files(tmp_path)
    assert {name for name in before if "claim" not in name} <= set(after)
    assert all(after[name] == data for name, data in before.items() if "/c/" in name)


def test_options_that_zarr_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(tw.TilingError, match=r"zarr\.create_array refuses fill_value='x': "):
        write(result(), tmp_path / "a.zarr", fill_value="x")
    assert not files(tmp_path)


KEPT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dimension_names": ("y", "x")}, {"dimension_names": ("u", "v")}),
    ({}, {"dimension_names": ("u", "v")}),
    ({}, {"compressors": None}),
    ({"compressors": None}, {"compressors": zarr.codecs.GzipCodec()}),
    ({}, {"fill_value": 7}),
    ({}, {"zarr_format": 2}),
    ({"zarr_format": 2}, {"fill_value": 7}),
    ({}, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
    ({}, {"meta": tw.ImageMeta("yx")}),
]


@pytest.mark.parametrize(("before", "now"), KEPT, ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_an_array_that_is_there_keeps_its_options_or_refuses_others(
    before: dict[str, Any], now: dict[str, Any], given: bool, tmp_path: Path
) -> None:
    """They were taken without a word, and not looked at."""

    def out(meta: Any = None) -> Any:
        return tw.tiled_map(np.negative, np.ones((20, 20)), 8, 2, meta=meta)

    if "meta" in now:
        if given:
            return
        tw.to_zarr(out(tw.ImageMeta("zx")), tmp_path / "a", progress=False)
        with pytest.raises(
            tw.TilingError, match=r"has axes \('z', 'x'\), and the result has axes \('y', 'x'\)"
        ):
            tw.to_zarr(out(**now), tmp_path / "a", progress=False)
        return
    array = tw.to_zarr(out(), tmp_path / "a", progress=False, **before)
    for same in ({}, before, {"attributes": {}}):
        tw.to_zarr(out(), array if given else tmp_path / "a", progress=False, **same)
    [name] = now
    with pytest.raises(tw.TilingError, match=f"another {name} than .* Leave {name} out"):
        tw.to_zarr(out(), array if given else tmp_path / "a", progress=False, **now)


def test_an_array_that_is_there_keeps_its_attributes(tmp_path: Path) -> None:
    out = tw.tiled_map(np.negative, np.ones((20, 20)), 8, 2)
    tw.to_zarr(out, tmp_path / "a", progress=False, attributes={"by": "me", "n": 1})
    with pytest.warns(tw.TilingWarning, match=r"keeps the attributes that it has, and gets no other n, at\."):
        tw.to_zarr(out, tmp_path / "a", progress=False, attributes={"by": "me", "n": 2, "at": 3})


@pytest.mark.parametrize("overwrite", [False, True])
def test_levels_are_not_written_among_the_arrays_of_a_group(overwrite: bool, tmp_path: Path) -> None:
    out = tw.tiled_map(np.negative, np.ones((20, 20)), 8, 2, meta=tw.ImageMeta("yx"))
    group = zarr.create_group(tmp_path / "g", attributes={"of": "mine"})
    tw.to_zarr(out, group, ome=True, overwrite=overwrite, progress=False)  # nothing but attributes
    group = zarr.create_group(tmp_path / "h")
    group.create_array("raw", shape=(20, 20), dtype="f4")
    with pytest.raises(tw.TilingError, match=r"a group with arrays, raw, and no image"):
        tw.to_zarr(out, group, ome=True, overwrite=overwrite, progress=False)
    assert list(group) == ["raw"]
    tw.to_zarr(out, group, path="image", ome=True, overwrite=overwrite, progress=False)
