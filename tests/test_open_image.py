"""OME-Zarr as others write it is opened with its meaning, in every kind of store."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore.store
import pytest
import zarr

import tilework as tw
from tests.ome_zarr_files import SCALE, TRANSLATION, UNITS, labels, samples
from tilework.source.opening import open_source

FILES = Path(__file__).parent / "data" / "ome-zarr.zip"
AXES = "tczyx"
WRITERS = ("ome-zarr", "ngff-zarr")
VERSIONS = ("0.4", "0.5")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of ome-zarr-py and ngff-zarr, of both versions."""
    folder = tmp_path_factory.mktemp("files")
    with zipfile.ZipFile(FILES) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(params=[f"{w}-{v}" for w in WRITERS for v in VERSIONS])
def image(request: pytest.FixtureRequest, files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files / f"{request.param}.ome.zarr", tmp_path / "x.ome.zarr"))


def tiled(image: Any, fn: Any = np.negative) -> Any:
    return tw.tiled_map(fn, image, (2, 8, 8), (0, 1, 1), axes="zyx", each="tc", edge="squeeze")


def documents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of OME-Zarr in a group."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    attributes = group.attrs.asdict()
    change(attributes.get("ome", attributes))
    group.attrs.put(attributes)
    for name in ("zarr.json", ".zmetadata"):
        if (path / name).exists():  # what is consolidated would not change
            text = json.loads((path / name).read_text())
            text.pop("consolidated_metadata", None)
            (path / name).write_text(json.dumps(text)) if name == "zarr.json" else (path / name).unlink()


# -- what the two writers write -----------------------------------------------------------------------------


def test_axes_units_and_places_are_those_of_the_writer(image: Path) -> None:
    found = tw.open_image(image)
    start = TRANSLATION if "scale0" in repr(found) else dict.fromkeys(AXES, 0.0)
    meta = found.meta
    assert "".join(meta.axes) == AXES
    assert meta.types == ("time", "channel", "space", "space", "space")
    assert dict(zip(AXES, meta.scale, strict=True)) == SCALE
    assert dict(zip(AXES, meta.translation, strict=True)) == start
    assert dict(zip(AXES, meta.units, strict=True)) == {"c": None} | UNITS
    assert meta.name == "cells"
    named = "scale0" not in repr(found)
    assert meta.channel_names == (("DAPI", "GFP", "RFP") if named else None)
    assert meta.channel_colors == (("0000FF", "00FF00", "FF0000") if named else None)
    np.testing.assert_array_equal(found, samples())
    np.testing.assert_array_equal(found[1, :, 2:, ::3], samples()[1, :, 2:, ::3])
    assert (found.shape, found.dtype, found.ndim, len(found)) == ((2, 3, 4, 16, 24), np.uint16, 5, 2)


def test_a_level_is_the_same_however_it_is_named(image: Path) -> None:
    levels = tw.open_image(image).levels
    paths = [str(one.source.handle.path) for one in levels]
    assert len(levels) == 2
    assert levels[1].meta.scale[-1] == 2 * levels[0].meta.scale[-1]
    assert levels[1].meta.translation[-1] == levels[0].meta.translation[-1] + levels[0].meta.scale[-1] / 2
    group = zarr.open_group(image, mode="r")
    for k, (level, path) in enumerate(zip(levels, paths, strict=True)):
        ways = [
            tw.open_image(image, level=k), tw.open_image(str(image), level=k - 2),
            tw.open_image(group, level=k), tw.open_image(image / path), f"{image}/{path}", image / path,
            group[path], f"{image}/{path}/",
            zarr.open_array(image / path, mode="r"), tw.open_image(level, level=k), f"file://{image}/{path}",
        ]  # fmt: skip
        for way in ways:
            assert tw.image_meta(way) == level.meta
            np.testing.assert_array_equal(tiled(way, np.positive), level)
        assert tw.open_image(image / path).levels[1 - k].shape == levels[1 - k].shape
        assert tw.open_image(image / path).level == level.level == k
    assert tw.image_meta(image) == tw.image_meta(group) == levels[0].meta


def test_a_store_that_the_caller_opened_stays_that_store(image: Path) -> None:
    """Its tasks must find it again, and the caller may write into it while they read."""
    group = zarr.open_group(in_memory(image), mode="r+")
    for found in (tw.open_image(group), tw.open_image(group, level=1), *tw.open_image(group).levels):
        assert found.source.handle.store is group.store
        assert found.home.store is group.store
        assert not found.source.ours
    assert not open_source(group).ours
    for place in (image, group.store.with_read_only(True)):
        assert tw.open_image(place).source.ours
        assert tw.open_image(place, level=1).levels[0].source.ours
    assert open_source(image).ours
    assert open_source(image / tw.open_image(image).source.handle.path).ours


def test_a_relative_path_has_the_same_meaning(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = tw.open_image(image).levels
    monkeypatch.chdir(image)
    assert tw.open_image(".").meta == want[0].meta
    path = want[1].source.handle.path
    assert tw.image_meta(path) == tw.image_meta(zarr.open_array(path, mode="r")) == want[1].meta


def test_labels_are_opened_by_name(files: Path) -> None:
    for version in VERSIONS:
        path = files / f"ome-zarr-{version}.ome.zarr"
        assert tw.open_image(path).labels == ("nuclei",)
        found = tw.open_image(path, label="nuclei")
        np.testing.assert_array_equal(found, labels())
        assert found.meta.scale == tuple(SCALE.values())
        assert found.labels == ()
        assert tw.open_image(path, label="nuclei", level=1).shape == (2, 1, 4, 8, 12)
        listed = tw.open_image(path / "labels")
        assert listed.kind == "labels"
        assert listed["nuclei"].meta == found.meta
        assert tw.image_meta(path / "labels" / "nuclei") == found.meta
        with pytest.raises(tw.TilingError, match="has no labels 'cells'; it has nuclei"):
            tw.open_image(path, label="cells")
    with pytest.raises(tw.TilingError, match="it has none"):
        tw.open_image(files / "ngff-zarr-0.4.ome.zarr", label="cells")


def test_the_text_says_what_is_usual(image: Path) -> None:
    text = repr(tw.open_image(image))
    assert "t, c, z, y, x: 2 x 3 x 4 x 16 x 24 uint16" in text
    assert 'axes="yx", each="tcz"; the function gets (y, x)' in text
    assert 'axes="zyx", each="tc"; the function gets (z, y, x)' in text
    assert "without 'c' in each" in text
    for line in ("planes", "volumes"):
        call = next(row for row in text.splitlines() if row.startswith(line))
        said = dict(part.split("=") for part in call.split(None, 1)[1].split(";")[0].split(", "))
        options = {name: json.loads(value) for name, value in said.items()}
        out = tw.tiled_map(np.positive, tw.open_image(image), 4, 0, **options)
        assert "".join(tw.image_meta(out).axes) == AXES
        np.testing.assert_array_equal(out, samples())


# -- kinds of stores ----------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that does not list folders."""

    def log_message(self, *_: Any) -> None:
        pass

    def list_directory(self, path: Any) -> None:
        del path
        self.send_error(404)


@pytest.fixture
def served(image: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(image))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def in_memory(path: Path) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    make = default_buffer_prototype().buffer.from_bytes
    return zarr.storage.MemoryStore({name: make(data) for name, data in documents(path).items()})


def in_fsspec(path: Path) -> str:
    import fsspec

    system = fsspec.filesystem("memory")
    for name, data in documents(path).items():
        system.pipe(f"/open-image/{path.parent.name}/x.ome.zarr/{name}", data)
    return f"memory://open-image/{path.parent.name}/x.ome.zarr"


def zipped(path: Path) -> Path:
    return Path(shutil.make_archive(str(path.parent / "x"), "zip", path))


STORES: dict[str, Callable[[Path], Any]] = {
    "folder": lambda path: zarr.storage.LocalStore(path),
    "memory": in_memory,
    "memory URL": in_fsspec,
    "zip": lambda path: zarr.storage.ZipStore(zipped(path), mode="r"),
    "zip path": zipped,
    "zip with any name": lambda path: zipped(path).rename(path.parent / "x.ozx"),
    "obstore": lambda path: zarr.storage.ObjectStore(obstore.store.LocalStore(str(path))),
}


@pytest.mark.parametrize("kind", STORES)
def test_every_store_gives_levels_and_meaning(kind: str, image: Path) -> None:
    want = tw.open_image(image)
    store = STORES[kind](image)
    found = tw.open_image(store)
    assert [one.meta for one in found.levels] == [one.meta for one in want.levels]
    assert found.labels == want.labels
    np.testing.assert_array_equal(found, want)
    for level in found.levels:
        # The array alone, as somebody hands it on.
        assert tw.image_meta(level.source.handle) == level.meta
    out = tiled(found)
    np.testing.assert_array_equal(out.compute(), -samples())


def test_a_level_of_a_url_has_its_meaning(image: Path) -> None:
    url, want = in_fsspec(image), tw.open_image(image).levels[1]
    path = want.source.handle.path
    for way in (f"{url}/{path}", zarr.open_array(f"{url}/{path}", mode="r")):
        assert tw.image_meta(way) == want.meta


@pytest.mark.sample(0, whole=2)
def test_a_server_that_lists_nothing(image: Path, served: str) -> None:
    store = zarr.storage.ObjectStore(
        obstore.store.HTTPStore.from_url(served, client_options={"allow_http": True}), read_only=True
    )
    want, found = tw.open_image(image), tw.open_image(store)
    assert [one.meta for one in found.levels] == [one.meta for one in want.levels]
    assert found.labels == want.labels
    np.testing.assert_array_equal(tiled(found, np.positive), samples())
    edit(image, lambda attributes: attributes.pop("multiscales"))
    with pytest.raises(tw.TilingError, match="not an OME-Zarr image; give one of its arrays"):
        tw.open_image(store)


@pytest.mark.parametrize("kind", ["path", "image", "level", "once", "zip", "pickled"])
def test_it_travels_to_other_processes(kind: str, image: Path, scheduler: str) -> None:
    ways: dict[str, Callable[[], Any]] = {
        "path": lambda: str(image),
        "image": lambda: tw.open_image(image),
        "level": lambda: tw.open_image(image / tw.open_image(image).source.handle.path),
        "once": lambda: tw.load_once(tw.open_image, (str(image),)),
        "zip": lambda: tw.open_image(zipped(image)),
        "pickled": lambda: pickle.loads(pickle.dumps(tw.open_image(image))),
    }
    way = ways[kind]()
    assert tw.image_meta(way) == tw.image_meta(image)
    out = tiled(way, np.positive)
    np.testing.assert_array_equal(out.compute(), samples())


def test_a_pickled_image_is_whole(image: Path) -> None:
    found = tw.open_image(image, level=1)
    again = pickle.loads(pickle.dumps(found))
    assert repr(again) == repr(found)
    assert [one.meta for one in again.levels] == [one.meta for one in found.levels]
    assert len(pickle.dumps(found)) < 8192
    held = tw.open_image(in_memory(image))
    assert pickle.loads(pickle.dumps(held)).source.handle.store is held.source.handle.store


def test_no_result_overwrites_the_image_that_it_reads(image: Path) -> None:
    before = documents(image)
    for level in tw.open_image(image).levels:
        out = tiled(level)
        path = level.source.handle.path
        for place in (image, image / path, f"{image}/labels/../{path}"):
            with pytest.raises(tw.TilingError, match="holds the array that is read"):
                tw.to_zarr(out, place, overwrite=True)
        with pytest.raises(tw.TilingError, match="holds the array that is read"):
            tw.to_zarr(out, image, path=path, overwrite=True)
    assert documents(image) == before


def test_the_other_functions_take_it(image: Path, tmp_path: Path) -> None:
    found = tw.open_image(image)
    out = tiled(found)
    np.testing.assert_array_equal(tw.view(out, verbose=False)[0, 1, 2], -samples()[0, 1, 2])
    assert tw.check(out).ok
    np.testing.assert_array_equal(tw.to_zarr(out, tmp_path / "out.zarr", progress=False), -samples())
    np.testing.assert_array_equal(tw.compute(out), -samples())
    assert tw.probe(np.negative, crop=16, axes="yx", each="tcz", array=found).exact
    import dask.array as da

    np.testing.assert_array_equal(da.from_array(found, chunks=8), samples())
    assert da.from_array(found).name == da.from_array(tw.open_image(image)).name
    crops = [crop for crop, *_ in tw.Slicer(found, crop_size=(2, 3, 4, 8, 8), overlap=0)]
    assert len(crops) == 6


# -- groups with several images -----------------------------------------------------------------------------


def plate_of(path: Path, parts: Path, version: str) -> list[str]:
    """Make a plate of two wells with two and one fields."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)

    def put(node: Any, attributes: dict[str, Any]) -> None:
        node.attrs.update(attributes if version == "0.4" else {"ome": {"version": version} | attributes})

    put(group, {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}]}})
    for well, fields in (("A/1", ("0", "1")), ("B/2", ("0",))):
        put(group.create_group(well), {"well": {"images": [{"path": field} for field in fields]}})
        for field in fields:
            shutil.copytree(parts, path / well / field)
    return ["A/1/0", "A/1/1", "B/2/0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plate_lists_its_fields_for_write_many(version: str, files: Path, tmp_path: Path) -> None:
    paths = plate_of(tmp_path / "plate.zarr", files / f"ome-zarr-{version}.ome.zarr", version)
    plate = tw.open_image(tmp_path / "plate.zarr")
    assert (plate.kind, list(plate), len(plate)) == ("plate", paths, 3)
    assert "A/1/0, A/1/1, B/2/0" in repr(plate)
    jobs = ((tiled(field), tmp_path / "out", {"path": path}) for path, field in plate.items())
    report = tw.write_many(jobs, progress=False)
    assert [outcome.ok for outcome in report] == [True] * 3
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out" / "B/2/0"), -samples())
    assert tw.open_image(tmp_path / "plate.zarr", label="nuclei", level=1)["A/1/1"].shape == (2, 1, 4, 8, 12)
    assert list(tw.open_image(tmp_path / "plate.zarr" / "A/1")) == ["0", "1"]
    assert tw.open_image(tmp_path / "plate.zarr", image="B/2/0").shape == samples().shape
    assert tw.open_image(tmp_path / "plate.zarr", image=-1).shape == samples().shape
    assert pickle.loads(pickle.dumps(plate))["A/1/0"].meta == plate["A/1/0"].meta
    with pytest.raises(KeyError):
        plate["C/1/0"]
    for use in (
        lambda: tw.tiled_map(np.negative, plate, 8, 0),
        lambda: tw.image_meta(tmp_path / "plate.zarr"),
    ):
        with pytest.raises(tw.TilingError, match=r"a plate of 3 images: A/1/0, A/1/1, B/2/0.*write_many"):
            use()
    with pytest.raises(tw.TilingError, match="has no image 'C/1/0'; it has 3"):
        tw.open_image(tmp_path / "plate.zarr", image="C/1/0")
    shutil.rmtree(tmp_path / "plate.zarr" / "A/1/1")
    with pytest.raises(tw.TilingError, match="A/1/1 is missing"):
        plate["A/1/1"]


class Guarded(zarr.storage.WrapperStore):  # type: ignore[type-arg]
    """A store that refuses to say what is at some places."""

    closed: tuple[str, ...] = ()

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        if key.startswith(self.closed):
            raise PermissionError(key)
        return await super().get(key, *args, **options)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_may_not_be_read_is_never_taken_as_missing(version: str, files: Path, tmp_path: Path) -> None:
    paths = plate_of(tmp_path / "plate", files / f"ome-zarr-{version}.ome.zarr", version)
    guarded = Guarded(zarr.storage.LocalStore(tmp_path / "plate", read_only=True))
    assert list(tw.open_image(guarded)) == paths
    guarded.closed = ("B",)
    with pytest.raises(PermissionError):
        tw.open_image(guarded)
    guarded.closed = ("A/1/0/labels",)
    with pytest.raises(PermissionError):
        tw.open_image(guarded, label="nuclei")["A/1/0"]
    # What is asked for in passing is not needed.
    assert tw.open_image(guarded)["A/1/0"].labels == ()
    guarded.closed = ("A/1/0/zarr.json", "A/1/0/.z", "A/1/zarr", "A/1/.z", "A/zarr", "A/.z")
    alone = zarr.open_array(guarded, path="A/1/0/s0", mode="r")
    assert tw.image_meta(alone) == (None if version == "0.4" else tw.ImageMeta(AXES))
    shutil.rmtree(tmp_path / "plate" / "A")
    with pytest.warns(tw.TilingWarning, match=r"lists wells that are not there: A/1\."):
        assert list(tw.open_image(tmp_path / "plate")) == ["B/2/0"]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_collection_of_bioformats2raw(version: str, listed: bool, files: Path, tmp_path: Path) -> None:
    layout = {"bioformats2raw.layout": 3}
    attributes = layout if version == "0.4" else {"ome": {"version": "0.5"} | layout}
    group = zarr.create_group(tmp_path / "c", zarr_format=2 if version == "0.4" else 3, attributes=attributes)
    shutil.copytree(files / f"ome-zarr-{version}.ome.zarr", tmp_path / "c" / "0")
    if listed:
        names = {"series": ["0"]}
        group.create_group("OME", attributes=names if version == "0.4" else {"ome": names})
    # One image is the usual case, and needs no choice.
    assert tw.open_image(tmp_path / "c").meta.name == "cells"
    assert tw.image_meta(tmp_path / "c") == tw.open_image(tmp_path / "c").meta
    shutil.copytree(files / f"ngff-zarr-{version}.ome.zarr", tmp_path / "c" / "1")
    if listed:
        names = {"series": ["0", "1"]}
        group["OME"].attrs.put(names if version == "0.4" else {"ome": names})
    found = tw.open_image(tmp_path / "c")
    assert (found.kind, list(found)) == ("collection", ["0", "1"])
    assert tw.open_image(tmp_path / "c", image=1).meta.translation == tuple(TRANSLATION.values())
    assert tw.open_image(tmp_path / "c", image="0", level=1).shape == (2, 3, 4, 8, 12)
    with pytest.raises(tw.TilingError, match=r"a collection of 2 images: 0, 1\."):
        tiled(tmp_path / "c")


def test_a_group_with_several_multiscales(image: Path) -> None:
    def add(attributes: dict[str, Any]) -> None:
        (first,) = attributes["multiscales"]
        attributes["multiscales"].append(first | {"name": "other", "datasets": first["datasets"][1:]})

    edit(image, add)
    coarse = tw.open_image(image, level=1)
    assert tw.open_image(image).level == 0
    assert tw.open_image(image, image="cells").shape == samples().shape
    for chosen in (1, -1, "other"):
        assert tw.open_image(image, image=chosen).shape == coarse.shape
    other = tw.open_image(image, image="other")
    assert tw.open_image(other).shape == other.levels[0].shape == coarse.shape
    assert tw.open_image(other, image="cells").shape == samples().shape
    with pytest.raises(tw.TilingError, match="has no level 1; it has 1"):
        tw.open_image(other, level=1)
    with pytest.raises(tw.TilingError, match="has no image 2; it has 2: cells, other"):
        tw.open_image(image, image=2)


# -- what is not as it should be ----------------------------------------------------------------------------


def first_of(attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = attributes["multiscales"][0]
    return found


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no datasets": (lambda a: first_of(a).pop("datasets"), "has no datasets"),
    "no axes": (lambda a: first_of(a).pop("axes"), "has no axes"),
    "too few axes": (
        lambda a: first_of(a)["datasets"].clear() or first_of(a).update(datasets=[{"path": "x"}]),
        "should be an array at 'x'; there is none",
    ),
    "axes of another image": (
        lambda a: first_of(a).update(
            axes=["z", "y", "x"],
            datasets=[{"path": d["path"]} for d in first_of(a)["datasets"]],
            coordinateTransformations=[],
        ),
        "has the axes .*but level 0 has shape",
    ),
    "a group": (
        lambda a: first_of(a)["datasets"].insert(0, {"path": "group"}),
        "should be an array at 'group'",
    ),
    "a version to come": (
        lambda a: (first_of(a).update(version="0.6"), a.update(version="0.6")),
        "version '0.6'",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_incomplete_metadata_are_a_sentence_and_arrays_still_open(fault: str, image: Path) -> None:
    path = tw.open_image(image).source.handle.path
    zarr.open_group(image, mode="r+").create_group("group")
    change, message = BROKEN[fault]
    edit(image, change)
    for use in (tw.open_image, tw.image_meta, tiled):
        with pytest.raises(tw.TilingError, match=message) as caught:
            use(image)
        assert str(image) in str(caught.value)
    # An array needs no metadata, but what it would mean is said to be lost.
    if fault in ("too few axes", "a group"):
        assert tw.open_image(image / path).shape == samples().shape
        return
    with pytest.warns(tw.TilingWarning, match="what the samples of .* mean is not known: .*" + message):
        found = tw.open_image(image / path)
    np.testing.assert_array_equal(found, samples())
    assert found.levels == (found,)


def test_channels_that_do_not_fit_are_left_out(image: Path) -> None:
    edit(image, lambda a: a.update(omero={"channels": [{"label": "a"}, {"label": "b"}]}))
    with pytest.warns(tw.TilingWarning, match=r"has 3 channels, and its metadata describe 2 \(a, b\)"):
        found = tw.open_image(image)
    assert found.meta.channel_names is None


@pytest.mark.parametrize("writer", WRITERS)
def test_before_0_4_shapes_say_the_scale(writer: str, files: Path, tmp_path: Path) -> None:
    path = shutil.copytree(files / f"{writer}-0.4.ome.zarr", tmp_path / "x.ome.zarr")

    def older(attributes: dict[str, Any]) -> None:
        paths = [{"path": d["path"]} for d in first_of(attributes)["datasets"]]
        attributes["multiscales"] = [{"version": "0.1", "datasets": paths}]

    shape = tw.open_image(path, level=1).shape
    edit(path, older)
    ratio = [n / m for n, m in zip(samples().shape, shape, strict=True)]
    found = tw.open_image(path, level=1)
    assert found.meta.replace(channel_names=None, channel_colors=None) == tw.ImageMeta(AXES, scale=ratio)
    assert tw.open_image(path).meta.scale == (1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 2}, tw.TilingError, "has no level 2; it has 2: s0, s1"),
        ({"level": -3}, tw.TilingError, "has no level -3"),
        ({"level": 0.5}, TypeError, "level must be a whole number"),
        ({"level": "s1"}, TypeError, "level must be a whole number"),
        ({"image": 1}, tw.TilingError, "has no image 1; it has 1: cells"),
        ({"image": 0.5}, TypeError, "image must be"),
        ({"label": 1}, TypeError, "label must be"),
        ({"path": np.zeros(3)}, TypeError, "go to tiled_map"),
        ({"path": 3}, TypeError, "path, URL or store"),
        ({"path": "nowhere.zarr"}, tw.TilingError, "no such file or folder"),
        ({"path": "nowhere.tif"}, tw.TilingError, "tifffile"),
        ({"path": {}}, tw.TilingError, "can be opened in"),
    ],
    ids=str,
)
def test_what_cannot_be_opened_is_said(
    options: dict[str, Any], error: Any, message: str, files: Path
) -> None:
    with pytest.raises(error, match=message):
        tw.open_image(**{"path": files / "ome-zarr-0.4.ome.zarr"} | options)


def test_an_array_beside_the_levels_has_no_meaning_of_theirs(image: Path) -> None:
    group = zarr.open_group(image, mode="r+")
    paths = [one.source.handle.path for one in tw.open_image(image).levels]
    # The ends of their paths, and a level of a folder that is called as one is.
    for name in (paths[1][1:], f"more/{paths[1]}", f"{paths[1]}0"):
        beside = group.create_array(name, data=samples())
        assert tw.image_meta(beside) is None
        assert tw.open_image(image / name).levels[0].shape == samples().shape
        with pytest.raises(tw.TilingError, match="is an array"):
            tw.open_image(tw.open_image(beside), level=1)


def test_options_of_a_group_do_not_go_with_an_array(files: Path) -> None:
    for options in ({"level": 1}, {"image": "a"}, {"label": "nuclei"}):
        with pytest.raises(tw.TilingError, match=r"chooses in a group; .* is an array"):
            tw.open_image(files / "ome-zarr-0.4.ome.zarr" / "s0", **options)


def test_plain_zarr_keeps_its_names(tmp_path: Path) -> None:
    three = zarr.create_array(str(tmp_path / "3"), data=np.zeros((4, 4)), dimension_names=["y", "x"])
    two = zarr.create_array(str(tmp_path / "2"), data=np.zeros((4, 4)), zarr_format=2)
    assert tw.image_meta(three) == tw.open_image(tmp_path / "3").meta == tw.ImageMeta("yx")
    assert tw.image_meta(two) is None
    two.attrs["_ARRAY_DIMENSIONS"] = ["lat", "lon"]
    assert tw.image_meta(two).axes == ("lat", "lon")
    for odd in (["y", "y"], ["y", None], "yx", 3):
        two.attrs["_ARRAY_DIMENSIONS"] = odd
        assert tw.image_meta(two) is None
    assert "planes" not in repr(tw.open_image(two))
    group = zarr.create_group(tmp_path / "g", attributes={"multiscales": []})
    group.create_array("a", data=np.zeros(3))
    group.create_group("b")
    with pytest.raises(tw.TilingError, match=r"give one of its arrays: a, or one of its groups: b\."):
        tw.open_image(tmp_path / "g")
