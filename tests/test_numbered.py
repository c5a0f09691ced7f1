"""Labels that are written have the numbers of scipy.ndimage.label, however and how often they are written."""

import warnings
from typing import ClassVar

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from scipy.sparse.csgraph import connected_components
from zarr.storage import LocalStore, MemoryStore

import tilework as tw
from tests.laws.test_o_objects import SIZES, call_of, canonical, reading, scenes
from tilework.execution.calls import CallsJob
from tilework.graph.build import plan_of
from tilework.objects.table import Table
from tilework.plan.cost import tasks
from tilework.writing.jobs import WriteJob
from tilework.writing.ledger import Ledger
from tilework.writing.renumber import RenumberJob

OWN = tw.Output("uint32", labels="own")
NOISE = ndi.gaussian_filter(np.random.default_rng(1).random((150, 170)), 1.5)
MASK = np.quantile(NOISE, 0.8) < NOISE
WHOLE, COUNT = ndi.label(MASK)


def number(crop):
    return ndi.label(crop)[0]


def cells(image=MASK, **options):
    return tw.tiled_map(number, image, 64, 22, **({"output": OWN} | options))


def beside(place):
    return [path.name for path in (place / ".tilework").iterdir()]


def facts(array):
    return array.attrs["tilework"]["labels"]


@given(scenes(ndim=(1, 4)), st.data())
def test_written_labels_are_numbered_in_raster_order(scene, data):
    labels, call, seed = scene
    out = tw.tiled_map(reading(seed), labels, output=OWN, **call)
    chunks = tuple(data.draw(st.integers(1, n)) for n in labels.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        array = tw.to_zarr(out, MemoryStore(), chunks=chunks, progress=False)
    ids, number = np.unique(np.append(0, canonical(labels)), return_inverse=True)
    assert array.dtype == np.uint32
    assert np.array_equal(array[:], number[1:].reshape(labels.shape))
    assert facts(array)["objects"] == len(ids) - 1


def test_nothing_is_left_beside_the_array(tmp_path):
    array = tw.to_zarr(cells(), tmp_path / "a.zarr", chunks=32, progress=False)
    assert np.array_equal(array[:], WHOLE)
    assert facts(array) == {
        "objects": COUNT, "contested": 0, "unclaimed": 0, "dropped": 0, "large": 0, "longest": [0, 0],
    }  # fmt: skip
    assert beside(tmp_path / "a.zarr") == [array.attrs["tilework"]["generation"]]


@pytest.mark.parametrize(
    "options",
    [
        {"shards": (64, 64), "chunks": (16, 32)},
        {"zarr_format": 2},
        {"memory_limit": "40MB"},
        {"dimension_names": ["y", "x"]},
        {"compressors": None},
    ],
)
def test_any_layout(options, tmp_path):
    array = tw.to_zarr(cells(), tmp_path / "a.zarr", progress=False, version="1", **options)
    assert np.array_equal(array[:], WHOLE)
    calls = []

    def counted(crop):
        calls.append(1)
        return number(crop)

    again = tw.tiled_map(counted, MASK, 64, 22, output=OWN)
    array = tw.to_zarr(again, tmp_path / "a.zarr", progress=False, version="1")
    assert np.array_equal(array[:], WHOLE)
    assert not calls


def test_all_schedulers(scheduler, tmp_path):
    array = tw.to_zarr(cells(), tmp_path / "a.zarr", chunks=32, progress=False)
    assert np.array_equal(array[:], WHOLE)


def test_a_cluster_and_a_delayed_run(client, tmp_path):
    array = tw.to_zarr(cells(), tmp_path / "a.zarr", chunks=32, progress=False, client=client)
    assert np.array_equal(array[:], WHOLE)
    delayed = tw.to_zarr(cells(), tmp_path / "b.zarr", chunks=32, compute=False)
    assert np.array_equal(client.compute(delayed).result()[:], WHOLE)
    for name in ("a.zarr", "b.zarr"):
        assert len(beside(tmp_path / name)) == 1


def test_arrays_that_were_given(tmp_path):
    into = np.full(MASK.shape, 9, np.uint16)
    small = tw.Output("uint16", labels="own")
    tw.to_zarr(cells(output=small), into, progress=False)
    assert np.array_equal(into, WHOLE)
    given = zarr.create_array(tmp_path / "a.zarr", shape=MASK.shape, dtype="uint32", chunks=(50, 50))
    assert tw.to_zarr(cells(), given, progress=False) is given
    assert np.array_equal(given[:], WHOLE)
    lazy = cells()
    assert np.array_equal(tw.compute(lazy), lazy.compute())
    with pytest.raises(tw.TilingError, match="uint32"):
        tw.to_zarr(cells(), zarr.create_array(MemoryStore(), shape=MASK.shape, dtype="int64"))


def test_indices_of_each_axes_have_numbers_of_their_own():
    movie = np.stack([MASK, MASK[::-1], np.zeros_like(MASK), MASK[:, ::-1]])
    out = (
        cells(movie, each=(0,), axes=(1, 2), crop=None)
        if False
        else tw.tiled_map(number, movie, (64, 64), 22, each=0, output=OWN)
    )
    array = tw.to_zarr(out, MemoryStore(), chunks=(2, 40, 40), progress=False)
    want = np.stack([ndi.label(frame)[0] for frame in movie])
    assert np.array_equal(array[:], want)
    assert facts(array)["objects"] == sum(int(frame.max()) for frame in want)
    lazy = out.compute()
    assert all(
        np.array_equal(np.unique(f, return_inverse=True)[1].reshape(f.shape), w)
        for f, w in zip(lazy, want, strict=True)
    )


def test_labels_beside_other_results(tmp_path):
    def both(crop):
        return {"cells": number(crop > 0), "mean": crop * 2.0}

    image = np.where(MASK, NOISE, 0)
    outputs = {"cells": OWN, "mean": tw.Output("float32", blend="gaussian")}
    out = tw.tiled_map(both, image, 64, 22, output=outputs)
    group = tw.to_zarr(out, tmp_path / "a.zarr", chunks=(40, 40), progress=False)
    assert np.array_equal(group["cells"][:], WHOLE)
    np.testing.assert_allclose(group["mean"][:], 2 * image, rtol=1e-5)
    two = tw.tiled_map(
        lambda crop: (number(crop), number(~crop)), MASK, 64, 22,
        output=(OWN, tw.Output("uint8", labels="own")),
    )  # fmt: skip
    with pytest.warns(tw.TilingWarning, match="claimed|cut"):
        written = tw.to_zarr(two, tmp_path / "b.zarr", progress=False)
    assert np.array_equal(written["0"][:], WHOLE)
    assert written["1"].dtype == np.uint8


def test_levels_of_an_image_and_labels_in_one(tmp_path):
    meta = tw.ImageMeta("yx", scale=(0.5, 0.5), units="micrometer")
    path = tmp_path / "a.ome.zarr"
    tw.to_zarr(tw.tiled_map(np.sqrt, NOISE, 64, 0, dtype=float, meta=meta), path, ome=True, levels=3)
    calls = []

    def counted(crop):
        calls.append(1)
        return number(crop)

    out = tw.tiled_map(counted, MASK, 64, 22, output=OWN)
    tw.to_zarr(out, path, label_name="cells", progress=False)
    label = zarr.open_group(path)["labels/cells"]
    assert np.array_equal(label["0"][:], WHOLE)
    assert np.array_equal(label["1"][:], WHOLE[:150:2, :170:2])
    assert np.array_equal(label["2"][:], WHOLE[:148:4, :168:4])
    assert len(calls) == len(tw.plan_tiles(MASK.shape, 64, 22))


def test_too_many_objects_for_the_dtype(tmp_path):
    mask = np.zeros((40, 40), bool)
    mask[::2, ::2] = True
    out = tw.tiled_map(number, mask, 16, 2, output=tw.Output("uint8", labels="own"))
    with pytest.raises(tw.TilingError, match=r"400 objects, and uint8 holds 255.*uint32"):
        tw.to_zarr(out, tmp_path / "a.zarr", progress=False)


class Dying(LocalStore):
    """Fails at its n-th change, and at all after it."""

    left: ClassVar = [0]

    async def set(self, key, value):
        self._count()
        await super().set(key, value)

    async def delete_dir(self, prefix):
        self._count()
        await super().delete_dir(prefix)

    def _count(self):
        if self.left[0] == 0:
            raise OSError("the store is gone")
        self.left[0] -= 1


@pytest.mark.parametrize("start", range(4))
@pytest.mark.sample(0)
def test_broken_anywhere_and_resumed(start, tmp_path, monkeypatch):
    mask, calls = MASK[:100, :90], []
    want = ndi.label(mask)[0]

    def counted(crop):
        calls.append(1)
        return number(crop)

    def write(store):
        out = tw.tiled_map(counted, mask, 64, 22, output=OWN, chunks=(64, 64))
        return tw.to_zarr(out, store, chunks=(32, 32), progress=False, version="1")

    whole = write(LocalStore(tmp_path / "whole"))
    tiles = len(calls)
    after = start
    while True:
        calls.clear()
        place = tmp_path / f"{after}.zarr"
        Dying.left[0] = after
        try:
            write(Dying(place))
        except OSError:
            array = write(LocalStore(place))
            assert len(calls) <= 2 * tiles
            assert np.array_equal(array[:], want)
            assert Ledger(array).read().all()
            assert [p.name for p in (place / ".tilework").iterdir()] == [
                array.attrs["tilework"]["generation"]
            ]
            assert files(place) == files(tmp_path / "whole")
        else:
            break
        after += 4
    assert after > 20
    assert np.array_equal(whole[:], want)


def files(place):
    return {
        str(p.relative_to(place)): p.read_bytes()
        for p in place.rglob("*")
        if p.is_file() and ".tilework" not in str(p)
    }


def test_tiles_that_fail_are_computed_by_the_next_call(tmp_path):
    broken = [True]

    def sometimes(crop, tile):
        if broken[0] and tile.position == (1, 1):
            raise ValueError("no")
        return number(crop)

    def write():
        out = tw.tiled_map(sometimes, MASK, 64, 22, output=OWN, pass_tile=True)
        return tw.to_zarr(out, tmp_path / "a.zarr", chunks=32, progress=False, on_error="fill", version="1")

    with pytest.warns(tw.TilingWarning, match="1 tiles failed"), pytest.warns(match="belong to none"):
        array = write()
    assert not Ledger(array).read().any()
    assert array.attrs["tilework"]["n_failed"] == 1
    assert "units of pieces done, which are numbered then" in str(tw.status(tmp_path / "a.zarr"))
    broken[0] = False
    assert np.array_equal(write()[:], WHOLE)
    assert Ledger(array).read().all()
    assert "n_failed" not in zarr.open(tmp_path / "a.zarr").attrs["tilework"]
    assert f"{COUNT} objects" in str(tw.status(tmp_path / "a.zarr"))
    assert tw.status(tmp_path / "a.zarr", verify=True).complete


def test_what_is_doubtful_is_told_once_and_recorded(tmp_path):
    out = tw.tiled_map(number, MASK, 32, 4, output=OWN)
    with pytest.warns(tw.TilingWarning) as told:
        array = tw.to_zarr(out, tmp_path / "a.zarr", progress=False)
    assert len(told) == 1
    found = facts(array)
    assert found["large"] > 0
    assert max(found["longest"]) > 9
    assert "overlap=4 is safe up to 9" in str(told[0].message)
    assert str(found["large"]) in str(told[0].message)


def test_a_table_beside_the_labels(tmp_path):
    image = np.where(MASK, NOISE, 0)
    path = tmp_path / "cells.zarr"
    out = tw.tiled_map(lambda c: number(c > 0), image, 64, 22, output=OWN)
    options = {"progress": False, "properties": ["intensity_max"], "intensity": image, "version": "1"}
    tw.to_zarr(out, path, table=True, **options)
    want = tw.measure_labels(WHOLE, image, ["intensity_max"], progress=False)
    found = Table.read(tmp_path / "cells.csv")
    assert list(found) == [*want, "cut"]
    assert all(np.allclose(found[name], want[name], rtol=1e-12) for name in want)
    assert not found["cut"].any()
    tw.to_zarr(out, path, table=True, **options)  # of the same run
    (tmp_path / "other.csv").write_text("mine")
    with pytest.raises(tw.TilingError, match="there is a file"):
        tw.to_zarr(out, tmp_path / "b.zarr", table=tmp_path / "other.csv", **options)
    assert not (tmp_path / "b.zarr").exists()
    assert (tmp_path / "other.csv").read_text() == "mine"


def test_the_table_names_objects_that_are_cut(tmp_path):
    mask = np.zeros((60, 60), bool)
    mask[5:45, 5:8] = mask[50:53, 20:23] = mask[2:6, 40:46] = True
    movie = np.stack([mask, mask[::-1]])
    out = tw.tiled_map(number, movie, (24, 24), 4, each=0, output=OWN)
    with pytest.warns(tw.TilingWarning, match="objects are cut"):
        tw.to_zarr(out, tmp_path / "a.zarr", table=tmp_path / "a.parquet", progress=False)
    table = Table.read(tmp_path / "a.parquet")
    long = (table["bbox-2"] - table["bbox-0"]) > 9
    assert long.any()
    assert table["cut"][long].all()
    small = (table["bbox-3"] - table["bbox-1"] != 3) | (table["area"] == 9)
    assert small.sum() == 4
    assert not table["cut"][small].any()


def test_a_table_is_refused_where_it_means_nothing(tmp_path):
    floats = tw.tiled_map(np.sqrt, NOISE, 64, 0, dtype=float)
    with pytest.raises(tw.TilingError, match="table= is for labels"):
        tw.to_zarr(floats, tmp_path / "a.zarr", table=tmp_path / "a.csv")
    with pytest.raises(tw.TilingError, match="say where with table="):
        tw.to_zarr(cells(), tmp_path / "a.zarr", properties=["eccentricity"])
    with pytest.raises(tw.TilingError, match="eccentricity"):
        tw.to_zarr(cells(), tmp_path / "a.zarr", table=tmp_path / "a.csv", properties=["ecentricity"])
    with pytest.raises(tw.TilingError, match="compute=False"):
        tw.to_zarr(cells(), tmp_path / "a.zarr", table=tmp_path / "a.csv", compute=False)
    with pytest.raises(tw.TilingError, match="Say where"):
        tw.to_zarr(cells(), MemoryStore(), table=True)
    assert not list(tmp_path.iterdir())


def test_many_results_with_tables(tmp_path):
    jobs = [(cells(MASK[k:]), tmp_path / f"{k}.zarr", {"table": tmp_path / f"{k}.csv"}) for k in (0, 9, 20)]
    assert all(outcome.ok for outcome in tw.write_many(jobs, progress=False))
    for k in (0, 9, 20):
        want = ndi.label(MASK[k:])[0]
        assert np.array_equal(zarr.open(tmp_path / f"{k}.zarr")[:], want)
        assert len(Table.read(tmp_path / f"{k}.csv")) == want.max()


@given(st.data())
def test_joined_labels_are_those_of_scipy_whatever_their_size(data):
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, SIZES[ndim])) for _ in range(ndim))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < data.draw(st.sampled_from([0.2, 0.4, 0.6]))
    connectivity = data.draw(st.integers(1, ndim))
    structure = ndi.generate_binary_structure(ndim, connectivity)
    call = call_of(data.draw, [data.draw(st.integers(0, 2))] * ndim)
    out = tw.tiled_map(
        lambda crop: ndi.label(crop, structure)[0], mask,
        output=tw.Output("uint16", labels="join", connectivity=connectivity), **call,
    )  # fmt: skip
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = tw.to_zarr(out, MemoryStore(), chunks=chunks, progress=False)
    assert array.dtype == np.uint16
    assert np.array_equal(array[:], ndi.label(mask, structure)[0])


def test_pieces_that_are_not_joined_are_told_of():
    out = tw.tiled_map(number, MASK, 32, 0, output=tw.Output(labels="join"))
    with pytest.warns(tw.TilingWarning, match="to_zarr joins"):
        lazy = out.compute()
    assert len(np.unique(lazy)) > COUNT + 1
    with pytest.raises(tw.TilingError, match="connectivity must be 1 to 2"):
        tw.tiled_map(number, MASK, 32, 0, output=tw.Output(labels="join", connectivity=3))


def test_joined_labels_of_a_movie_of_which_a_tile_failed(tmp_path):
    movie = np.stack([MASK, MASK[::-1]])
    broken = [True]

    def sometimes(crop, tile):
        if broken[0] and tile.position == (1, 2, 1):
            raise ValueError("no")
        return number(crop)

    def write():
        join = tw.Output("uint32", labels="join")
        out = tw.tiled_map(sometimes, movie, (32, 32), 4, each=0, output=join, pass_tile=True)
        return tw.to_zarr(out, tmp_path / "a.zarr", chunks=32, progress=False, on_error="fill", version="1")

    with pytest.warns(tw.TilingWarning, match="1 tiles failed"):
        write()
    broken[0] = False
    array = write()
    assert np.array_equal(array[:], np.stack([number(frame) for frame in movie]))
    assert beside(tmp_path / "a.zarr") == [array.attrs["tilework"]["generation"]]


@pytest.mark.parametrize("way", ["own", "join"])
@pytest.mark.parametrize("axes", [(1, 2), (0, 1), (2, 0)])
def test_axes_that_fn_gets_whole(axes, way):
    volume = ndi.gaussian_filter(np.random.default_rng(4).random((40, 44, 42)), 1.2) > 0.55
    out = tw.tiled_map(number, volume, 28, 10, axes=axes, output=tw.Output("uint32", labels=way))
    array = tw.to_zarr(out, MemoryStore(), chunks=(8, 11, 14), progress=False)
    assert np.array_equal(array[:], number(volume))


@pytest.mark.parametrize("way", ["own", "join"])
def test_other_scales_and_margins(way):
    def twice(crop):
        return number(np.kron(crop, np.ones((2, 2), bool)))

    finer = tw.tiled_map(twice, MASK, 64, 22, output=tw.Output("uint32", labels=way, scale=2))
    array = tw.to_zarr(finer, MemoryStore(), chunks=48, progress=False)
    assert np.array_equal(array[:], twice(MASK))
    inner = tw.Output("uint32", labels=way, margin=3)
    valid = tw.tiled_map(lambda c: number(c[3:-3, 3:-3]), MASK, 64, 25, output=inner)
    assert np.array_equal(tw.to_zarr(valid, MemoryStore(), progress=False)[:], WHOLE)


@pytest.mark.parametrize("way", ["own", "join"])
def test_masks_and_invalid_samples(way):
    output = tw.Output("uint32", labels=way)
    where = np.ones(MASK.shape, bool)
    where[60:90, 40:100] = False
    image = np.where(where, MASK, 0)
    out = tw.tiled_map(lambda c: number(c > 0), image, 64, 22, output=output, where=where)
    array = tw.to_zarr(out, MemoryStore(), chunks=32, progress=False)
    assert np.array_equal(array[:], number(image))
    half = np.zeros(MASK.shape, bool)
    half[:, :60] = True
    left = tw.tiled_map(number, MASK, 64, 22, output=output, mask=half)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        array = tw.to_zarr(left, MemoryStore(), chunks=32, progress=False)
    assert np.array_equal(array[:, :60] != 0, MASK[:, :60])
    assert np.array_equal(np.unique(array[:]), np.arange(array[:].max() + 1))


@pytest.mark.parametrize(("way", "after"), [("own", 1), ("join", 2)])
def test_few_tasks_per_block(way, after, monkeypatch):
    """At most three that compute a block, and one or two that number it."""
    begun = []
    made = WriteJob.__init__

    def watched(job, *args, **options):
        made(job, *args, **options)
        begun.append(job)

    monkeypatch.setattr(WriteJob, "__init__", watched)
    out = tw.tiled_map(number, MASK, 48, 16, output=tw.Output("uint32", labels=way), chunks=(48, 48))
    later = []
    pieces = RenumberJob.pieces, CallsJob.pieces
    for kind, own in zip((RenumberJob, CallsJob), pieces, strict=True):
        monkeypatch.setattr(
            kind, "pieces", lambda job, own=own: (later.append(len(p.tasks)) or p for p in own(job))
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        array = tw.to_zarr(out, MemoryStore(), chunks=48, progress=False)
    assert array.nchunks == 16
    assert sum(later) == after * 16
    assert tasks(plan_of(out)) <= 3 * 16
    assert begun[0].tiles == len(plan_of(out))


@pytest.mark.parametrize("way", ["own", "join"])
def test_one_bar_for_all_steps(way):
    shown = []
    out = tw.tiled_map(number, MASK, 64, 22, output=tw.Output("uint32", labels=way), chunks=(80, 80))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "labels may differ", tw.TilingWarning)
        tw.to_zarr(out, MemoryStore(), chunks=40, progress=lambda done, total: shown.append((done, total)))
    blocks, tiles = 6, len(plan_of(out))
    assert {total for _, total in shown} == {tiles + blocks * (2 if way == "join" else 1)}
    done = [count for count, _ in shown]
    assert done == sorted(done)
    assert shown[-1][0] == shown[-1][1]


@given(st.data())
def test_joined_pieces_whose_first_samples_are_hidden(data):
    shape = tuple(data.draw(st.integers(8, 30)) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask, where = rng.random(shape) < 0.7, ndi.gaussian_filter(rng.random(shape), 2) > 0.49
    join = tw.Output("uint32", labels="join")
    core, block = data.draw(st.integers(3, 9)), data.draw(st.integers(2, 9))
    out = tw.tiled_map(number, mask, core, 0, edge="clip", output=join, where=where, chunks=block)
    array = tw.to_zarr(out, MemoryStore(), chunks=block, progress=False)
    # An object is what touches in the function's eyes, and shows where samples are valid.
    pieces = np.zeros(shape, int)
    for y, x in np.ndindex(*(-(-n // core) for n in shape)):
        box = np.s_[y * core : (y + 1) * core, x * core : (x + 1) * core]
        pieces[box] = np.where(number(mask[box]), number(mask[box]) + pieces.max(), 0)
    shown = np.where(where, pieces, 0)
    graph = np.eye(shown.max() + 1, dtype=bool)
    for axis in (0, 1):
        a, b = (np.moveaxis(shown, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        cuts = np.arange(1, shape[axis]) % core == 0
        for i, j in zip(a[cuts].ravel(), b[cuts].ravel(), strict=True):
            if i and j:
                graph[i, j] = graph[j, i] = True
    component = connected_components(graph)[1][shown] + 1
    assert np.array_equal(canonical(np.where(shown, component, 0)), canonical(array[:].astype(int)))


def test_every_way_to_a_result_tells_of_doubts():
    little = tw.tiled_map(number, MASK, 32, 4, output=OWN)
    with pytest.warns(tw.TilingWarning, match="labels may differ"):
        lazy = little.compute()
    with pytest.warns(tw.TilingWarning, match="labels may differ") as told:
        assert np.array_equal(tw.compute(little), lazy)
    assert len(told) == 1
    with pytest.warns(tw.TilingWarning, match="labels may differ"):
        assert np.array_equal(tw.view(little, verbose=False)[...], lazy)
    pieces = tw.tiled_map(number, MASK, 32, 0, output=tw.Output(labels="join"))
    for way in (tw.compute, lambda out: out.compute(), lambda out: tw.view(out, verbose=False)[...]):
        with pytest.warns(tw.TilingWarning, match="to_zarr joins"):
            way(pieces)


def test_a_table_in_units(tmp_path):
    meta = tw.ImageMeta("yx", scale=(2.0, 0.5), units="micrometer")
    out = tw.tiled_map(number, MASK, 64, 22, output=OWN, meta=meta)
    table = tmp_path / "a.csv"
    options = {"properties": "axis_major_length", "spacing": "meta", "progress": False}
    array = tw.to_zarr(out, tmp_path / "a.zarr", table=table, **options)
    want = tw.measure_labels(array[:], properties="axis_major_length", spacing=(2.0, 0.5), progress=False)
    np.testing.assert_allclose(Table.read(table)["axis_major_length"], want["axis_major_length"])
    with pytest.raises(tw.TilingError, match="say where with table="):
        tw.to_zarr(out, tmp_path / "b.zarr", spacing="meta")
    with pytest.raises(tw.TilingError, match="is not for labels"):
        tw.tiled_map(number, MASK, 64, 22, output=OWN, blend="hann")
