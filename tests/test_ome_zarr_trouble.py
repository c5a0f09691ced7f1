"""`to_zarr(ome=)` in trouble: tiles that fail, runs that end early or meet, groups that others changed."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr

import tilework as tw
from tests.test_ome_zarr_out import add_one, check_pyramid, image_of, levels
from tilework.engine.pyramid import halved
from tilework.formats.ome_zarr import read_group
from tilework.writing import image as writing_image
from tilework.writing.closing import Destination
from tilework.writing.sink import Sink


def failing(broken):
    """A function that fails on the tiles whose numbers are in ``broken``."""

    def fn(crop, tile):
        if tile.index in broken:
            raise ValueError("broken")
        return crop + crop.dtype.type(1)

    return fn


def filled(out, store, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tw.TilingWarning)
        return tw.to_zarr(out, store, on_error="fill", progress=False, version="1", **options)


@pytest.mark.parametrize("blocks", [16, 32, 64])
def test_tiles_that_fail_one_after_the_other_cost_no_unit_that_was_done(blocks):
    image, broken = image_of((128, 128)), set()
    out = tw.tiled_map(failing(broken), image, 16, 0, dtype="u2", chunks=blocks, pass_tile=True)
    store = zarr.storage.MemoryStore()
    options = {"ome": True, "chunks": 16, "levels": 4}
    done = None
    for tiles in ({0, 9, 63}, {0, 63}, {0}, {0}, set()):
        broken.clear()
        broken.update(tiles)
        filled(out, store, **options)
        now = [status.done for status in tw.status(store)]
        assert done is None or all(a >= b for a, b in zip(now, done, strict=True))
        done = now
    check_pyramid(store, image + 1, (0, 1))
    assert tw.status(store).complete


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("blend", ["trim", "average"])
def test_a_tile_that_fails_later_does_not_undo_units_that_were_done_before(blend, ome):
    image, broken = np.arange(64.0 * 16).reshape(64, 16), set()
    out = tw.tiled_map(
        lambda crop, tile: (failing(broken)(crop, tile), failing(broken)(crop, tile)[::2, ::2]),
        image, 16, 4, chunks=64, blend=blend, pass_tile=True,
        output=(tw.Output("f8"), tw.Output("f8", scale=0.5)),
    )  # fmt: skip
    store = zarr.storage.MemoryStore()
    options = {"ome": True, "levels": 2} if ome else {}
    for tiles in ({0}, {1}, {2}, {1, 3}, set()):
        broken.clear()
        broken.update(tiles)
        filled(out, store, chunks=8, **options)
    assert tw.status(store).complete
    for number, one in enumerate(out):
        found = zarr.open_array(store, path=f"{number}/0" if ome else str(number))
        np.testing.assert_array_equal(found[...], one.compute())


@pytest.mark.parametrize("ome", [False, True])
def test_units_without_an_object_are_not_taken_for_lost_when_their_block_was_resumed(ome):
    image, broken = image_of((64, 64)), {15}
    image[:32] = 0
    out = tw.tiled_map(
        lambda crop, tile: failing(broken)(crop, tile) - crop.dtype.type(1),
        image, 16, 0, dtype="u2", chunks=64, pass_tile=True,
    )  # fmt: skip
    store = zarr.storage.MemoryStore()
    filled(out, store, chunks=16, ome=ome)
    broken.clear()
    filled(out, store, chunks=16, ome=ome)
    found = tw.status(store, verify=True)
    assert found.complete, found


def test_a_claim_is_tried_again_if_another_run_deletes_the_file_that_becomes_it(tmp_path):
    class Losing(zarr.storage.LocalStore):
        lost = 0

        async def set_if_not_exists(self, key, value):
            if Losing.lost < 2:
                Losing.lost += 1
                raise FileNotFoundError(key)
            await super().set_if_not_exists(key, value)

    found = tw.to_zarr(plane(), Losing(tmp_path / "a.zarr"), progress=False)
    assert Losing.lost == 2
    np.testing.assert_array_equal(found[...], image_of((64, 64)) + 1)


# -- write_many ---------------------------------------------------------------------------------------------


def refusing(crop):
    raise ValueError("refused")


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_images_of_a_run_that_ended_early_can_be_written_at_once(error):
    stores = [zarr.storage.MemoryStore() for _ in range(4)]
    images = [image_of((64, 64), seed=k) for k in range(4)]

    def jobs(error=None):
        for number, (image, store) in enumerate(zip(images, stores, strict=True)):
            if error is Interrupted and number == 3:
                raise Interrupted
            fn = refusing if error is ValueError and number == 2 else add_one
            yield tw.tiled_map(fn, image, 16, 0, dtype="u2", chunks=16), store

    options = {"ome": True, "levels": 3, "chunks": 16, "progress": False, "scheduler": "synchronous"}
    with pytest.raises(error):
        tw.write_many(jobs(error), on_error="raise", **options)
    report = tw.write_many(jobs(), overwrite=True, **options)
    assert not report.failed, report
    for image, store in zip(images, stores, strict=True):
        check_pyramid(store, image + 1, (0, 1))


# -- groups -------------------------------------------------------------------------------------------------


def plane(shape=(64, 64), meta=None, seed=0, **options):
    return tw.tiled_map(add_one, image_of(shape, seed=seed), 16, 0, dtype="u2", meta=meta, **options)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_that_is_overwritten_leaves_nothing_in_its_metadata(version):
    store = zarr.storage.MemoryStore()
    meta = tw.ImageMeta("cyx", channel_names=["a", "b"])
    options = {"ome": version, "progress": False, "overwrite": True}
    tw.to_zarr(plane((2, 64, 64), meta, axes="yx", each="c"), store, chunks=(1, 16, 16), **options)
    zarr.open_group(store).attrs["mine"] = 1
    assert levels(store)[1].channel_names == ("a", "b")
    tw.to_zarr(
        plane((2, 64, 64), tw.ImageMeta("cyx"), axes="yx", each="c"), store, chunks=(1, 16, 16), **options
    )
    assert levels(store)[1].channel_names is None
    tw.to_zarr(plane(), store, chunks=16, **options)
    assert zarr.open_group(store).attrs.keys() == {"ome" if version == "0.5" else "multiscales", "mine"}


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_consolidated_metadata_of_an_image_that_is_overwritten_show_the_new_arrays(version):
    store = zarr.storage.MemoryStore()
    options = {"ome": version, "progress": False}
    tw.to_zarr(plane(), store, chunks=16, **options)
    zarr.consolidate_metadata(store)
    tw.to_zarr(plane((50, 40)), store, chunks=8, levels=4, overwrite=True, **options)
    shapes = [(50, 40), (25, 20), (12, 10), (6, 5)]
    assert [zarr.open_group(store, mode="r")[str(k)].shape for k in range(4)] == shapes
    assert [level.shape for level in tw.open_image(store).levels] == shapes


def test_attributes_of_the_user_are_those_of_the_group():
    for out, paths in ((plane(), [""]), (both(), ["a", "b"])):
        store = zarr.storage.MemoryStore()
        for value in (1, 2):
            tw.to_zarr(out, store, ome=True, attributes={"mine": value}, progress=False)
            for path in paths:
                group = zarr.open_group(store, path=path, mode="r")
                assert group.attrs["mine"] == value
                assert levels(store, path)[1].axes == ("y", "x")
                assert "mine" not in group["0"].attrs
    with pytest.raises(tw.TilingError, match=r"omero follow from the image"):
        tw.to_zarr(plane(), {}, ome=True, attributes={"omero": {}})


def both():
    return tw.tiled_map(
        lambda crop: {"a": crop, "b": crop}, image_of((64, 64)), 16, 0,
        output={"a": tw.Output("u2"), "b": tw.Output("u2")},
    )  # fmt: skip


def test_what_viewers_add_to_the_metadata_does_not_hinder_resuming():
    store = zarr.storage.MemoryStore()
    meta = tw.ImageMeta("cyx", channel_names=["a", "b"])
    for out in (plane(), plane((2, 64, 64), meta, axes="yx", each="c")):
        tw.to_zarr(out, store, ome=True, progress=False, overwrite=True)
        group = zarr.open_group(store)
        inner = dict(group.attrs["ome"])
        channels = inner.get("omero", {"channels": []})["channels"]
        inner["omero"] = {
            "channels": [c | {"window": {"start": 3, "end": 9}, "active": True} for c in channels],
            "rdefs": {"model": "color"},
        }
        group.attrs["ome"] = inner
        tw.to_zarr(out, store, ome=True, progress=False)
        assert zarr.open_group(store).attrs["ome"] == inner
    with pytest.raises(tw.TilingError, match="other levels, axes or places"):
        tw.to_zarr(out, store, ome=True, meta=meta.replace(channel_names=["a", "c"]), progress=False)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kept", [1, 3])
def test_a_run_that_was_killed_before_it_wrote_the_group_is_resumed(tmp_path, version, kept):
    place, document = tmp_path / "a.zarr", "zarr.json" if version == "0.5" else ".zgroup"
    out = plane()
    options = {"ome": version, "progress": False, "chunks": 16, "levels": 3}
    tw.to_zarr(out, place, **options)
    (place / document).unlink()
    (place / ".zattrs").unlink(missing_ok=True)
    for k in range(kept, 3):
        for path in sorted((place / str(k)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (place / str(k)).rmdir()
    tw.to_zarr(out, place, **options)
    check_pyramid(place, image_of((64, 64)) + 1, (0, 1))
    assert tw.status(place).complete
    (tmp_path / "b.zarr" / "0").mkdir(parents=True)
    (tmp_path / "b.zarr" / "0" / "notes.txt").write_text("mine")
    with pytest.raises(tw.TilingError, match="not Zarr"):
        tw.to_zarr(out, tmp_path / "b.zarr", **options)


@pytest.mark.parametrize("folder", [".", "0", "1"])
@pytest.mark.parametrize("ome", [False, True])
def test_a_file_that_a_killed_run_was_writing_does_not_hinder_the_next(tmp_path, folder, ome):
    place = tmp_path / "a.zarr"
    (place / folder).mkdir(parents=True)
    (place / folder / f"zarr.{'0a' * 16}.partial").write_text("{")
    tw.to_zarr(plane(), place, ome=ome, progress=False)
    assert tw.status(place).complete


def test_what_is_there_in_another_format_or_kind_is_said():
    out, store = plane(), zarr.storage.MemoryStore()
    tw.to_zarr(out, store, ome=True, progress=False)
    with pytest.raises(tw.TilingError, match=r'format 3, which is OME-Zarr 0\.5; got ome="0\.4"'):
        tw.to_zarr(out, store, ome="0.4", overwrite=True)
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, progress=False)
    for ome in (True, "0.5"):
        with pytest.raises(tw.TilingError, match="is an array; an OME-Zarr image is a group"):
            tw.to_zarr(out, store, ome=ome, overwrite=True)


def test_coordinates_that_have_no_place_in_ome_zarr_are_said():
    xr = pytest.importorskip("xarray")
    uneven = np.arange(64) ** 2.0
    array = xr.DataArray(image_of((64, 64)), dims=("y", "x"), coords={"y": uneven, "x": np.arange(64) * 2.0})
    out = tw.tiled_map(add_one, array, 16, 0, dtype="u2")
    with pytest.warns(tw.TilingWarning, match="coordinates of y are not evenly spaced"):
        tw.to_zarr(out, {}, ome=True, progress=False)
    days = np.datetime64("2024-06-01", "ns") + np.array([0, 1, 9], "m8[D]")
    movie = array.drop_vars("y").expand_dims(t=days)
    out = tw.tiled_map(add_one, movie, 16, 0, each="t", dtype="u2")
    with pytest.warns(tw.TilingWarning, match="coordinates of t are not evenly spaced"):
        tw.to_zarr(out, {}, ome=True, progress=False)


@pytest.mark.parametrize("days", [[0], [0, 1, 2]])
def test_dates_that_ome_zarr_does_not_keep_are_said(days, tmp_path):
    xr = pytest.importorskip("xarray")
    times = np.datetime64("2024-06-01", "ns") + np.array(days, "m8[D]")
    movie = xr.DataArray(image_of((len(days), 64, 64)), dims=("t", "y", "x"), coords={"t": times}, name="v")
    out = tw.tiled_map(add_one, movie, 16, 0, axes="yx", each="t", dtype="u2")
    with pytest.warns(tw.TilingWarning, match="coordinates of t are dates.*2024-06-01T00.*without ome="):
        tw.to_zarr(out, {}, ome=True, progress=False)
    with warnings.catch_warnings():  # as the warning says, and for durations
        warnings.simplefilter("error", tw.TilingWarning)
        tw.to_zarr(out, tmp_path / "a.zarr", progress=False)
        np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").t, times)
        tw.to_zarr(out.assign_coords(t=times - times[0]), {}, ome=True, progress=False)


# -- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_that_are_written_at_the_same_moment_are_all_listed(monkeypatch, version):
    store = zarr.storage.MemoryStore()
    tw.to_zarr(plane(), store, ome=version, progress=False)
    labels = tw.tiled_map(lambda crop: (crop > 9).astype("u1"), image_of((64, 64)), 16, 0, dtype="u1")
    inner = ["b", "c"]
    real = writing_image.labels_attributes

    def meanwhile(names, version):
        # Another run begins and ends between the reading and the writing of the list.
        if inner:
            tw.to_zarr(labels, store, label_name=inner.pop(), progress=False)
        return real(names, version)

    monkeypatch.setattr(writing_image, "labels_attributes", meanwhile)
    zarr.open_group(store, path="labels/foreign", zarr_format=2 if version == "0.4" else 3)
    tw.to_zarr(labels, store, label_name="a", progress=False)
    listed = read_group(dict(zarr.open_group(store, path="labels").attrs), "").labels
    assert sorted(listed) == ["a", "b", "c"]


def test_labels_are_listed_as_soon_as_their_arrays_exist():
    store = zarr.storage.MemoryStore()
    tw.to_zarr(plane(), store, ome=True, progress=False)
    labels = tw.tiled_map(lambda crop: (crop > 9).astype("u1"), image_of((64, 64)), 16, 0, dtype="u1")
    tw.to_zarr(labels, store, label_name="a", compute=False)
    assert tw.open_image(store).labels == ("a",)


# -- explain, layout ----------------------------------------------------------------------------------------


def test_explain_takes_the_arguments_of_to_zarr():
    out = plane()
    run = {"on_error": "fill", "memory_limit": "8MB", "retries": 1, "progress": False, "compute": False}
    rows = dict(tw.explain(out, writing={"ome": True, "chunks": 16, "overwrite": True, **run}).rows)
    assert rows["levels"].startswith("2 coarser, by mean")
    rows = dict(tw.explain(out, writing={"label_name": "cells", "chunks": 16}).rows)
    assert rows["levels"].startswith("2 coarser, by nearest")
    with pytest.raises(tw.MemoryBudgetError):
        tw.explain(out, writing={"memory_limit": 100})


@pytest.mark.parametrize(
    ("shape", "shards", "chunks"),
    [
        ((101, 127), 64, (64, 64)),
        ((101, 127), 200, (101, 127)),
        ((600, 700), 300, (300, 300)),
        ((600, 700), (1000, 320), (500, 320)),
        ((2000, 1024), 1024, (512, 512)),
    ],
)
def test_default_chunks_are_not_cut_to_slivers_by_shards(shape, shards, chunks):
    found = tw.to_zarr(plane(shape), {}, ome=True, shards=shards, progress=False)
    assert found.chunks == chunks
    plain = tw.to_zarr(plane(shape), {}, shards=shards, progress=False)
    assert all(c >= 16 for c in plain.chunks)


def test_shards_of_a_level_cover_the_same_part_of_the_image():
    store = zarr.storage.MemoryStore()
    tw.to_zarr(plane((256, 256)), store, ome=True, chunks=16, shards=64, progress=False)
    arrays, _ = check_pyramid(store, image_of((256, 256)) + 1, (0, 1))
    assert [array.shards[0] for array in arrays] == [64, 32, 16, 16, 16]


def test_the_largest_of_a_bin_is_not_nan_while_there_is_a_number():
    block = np.array([[np.nan, 1, np.nan, np.nan], [2, np.nan, np.nan, np.nan]], "f4")
    np.testing.assert_array_equal(halved(block, (0, 1), "max"), [[2, np.nan]])


# -- processes ----------------------------------------------------------------------------------------------

ELSEWHERE = """
import pickle, sys
one = pickle.load(sys.stdin.buffer)
print("loaded")
pickle.dumps(one)
one.array
"""


@pytest.mark.parametrize("kind", [Sink, Destination])
def test_a_store_that_a_task_cannot_see_is_an_error_of_the_task_and_not_of_unpickling(kind):
    """A worker that cannot unpickle a message dies, and the run waits for ever."""
    written = tw.to_zarr(plane(), zarr.storage.MemoryStore(), progress=False)
    assert pickle.loads(pickle.dumps(kind(written))).array == written
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=pickle.dumps(kind(written)), capture_output=True, check=False
    )
    assert run.stdout.split() == [b"loaded"]
    assert b"lives in the memory of process" in run.stderr
