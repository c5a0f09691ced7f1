"""`merge_labels` against `scipy.ndimage.label` of the whole mask: sources, schedulers, layouts, resuming."""

import itertools

import dask.array as da
import fsspec
import h5py
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from zarr.storage import LocalStore, MemoryStore

import tilework as tw
from tilework.errors import ContractError, TilingError
from tilework.writing import joining, pieces


def whole(mask, connectivity=1, n_each=0):
    structure = ndi.generate_binary_structure(mask.ndim - n_each, connectivity)
    out = np.zeros(mask.shape, np.uint32)
    for at in np.ndindex(mask.shape[:n_each]):
        out[at] = ndi.label(mask[at], structure)[0]
    return out


def by_block(mask, cuts, connectivity=1, n_each=0):
    """Return labels whose ids restart in each block."""
    out = np.zeros(mask.shape, np.int64)
    for box in itertools.product(*([slice(a, b) for a, b in itertools.pairwise(c)] for c in cuts)):
        out[box] = whole(mask[box], connectivity, n_each)
    return out


def regular(shape, size):
    return [[*range(0, n, size), n] for n in shape]


@pytest.fixture
def case(tmp_path):
    """Return a mask, and a Zarr array of labels by chunk."""
    mask = ndi.gaussian_filter(np.random.default_rng(5).random((60, 70)), 1.5) > 0.5
    labels = zarr.create_array(tmp_path / "labels", shape=mask.shape, chunks=(16, 16), dtype="int32")
    labels[:] = by_block(mask, regular(mask.shape, 16))
    return mask, labels


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    n_each = draw(st.integers(0, 1))
    shape = tuple(draw(st.integers(1, (30, 10, 6)[ndim - 1])) for _ in range(ndim + n_each))
    mask = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < draw(
        st.sampled_from([0, 0.3, 0.6, 1])
    )
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in shape]
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return mask, n_each, cuts, chunks, draw(st.integers(1, ndim)), draw(st.integers(0, ndim))


@given(cases())
def test_l3_written_labels_are_those_of_the_whole_mask(case):
    mask, n_each, cuts, chunks, connectivity, at = case
    labels = by_block(mask, cuts, connectivity, n_each)
    extents = [np.diff(c).tolist() for c in cuts]
    wanted = whole(mask, connectivity, n_each)
    if n_each:  # the each axis anywhere
        labels, wanted = np.moveaxis(labels, 0, at), np.moveaxis(wanted, 0, at)
        extents.insert(at, extents.pop(0))
        chunks = (*chunks[1 : at + 1], chunks[0], *chunks[at + 1 :])
    merged = tw.merge_labels(
        labels, MemoryStore(), pieces=extents, connectivity=connectivity, each=(at,) if n_each else (),
        chunks=chunks, scheduler="sync", progress=False,
    )  # fmt: skip
    assert merged.dtype == np.uint32
    assert merged.chunks == chunks
    assert np.array_equal(merged[:], wanted)


@pytest.mark.parametrize("scheduler", ["threads", "processes", "sync"])
def test_schedulers(case, tmp_path, scheduler):
    mask, labels = case
    merged = tw.merge_labels(labels, tmp_path / "merged", scheduler=scheduler, progress=False)
    assert np.array_equal(merged[:], whole(mask))
    assert merged.chunks == (16, 16)


@pytest.mark.sample(0)
@pytest.mark.distributed
def test_a_cluster(case, tmp_path):
    distributed = pytest.importorskip("distributed")
    mask, labels = case
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        merged = tw.merge_labels(labels, tmp_path / "merged", client=client, progress=False)
    assert np.array_equal(merged[:], whole(mask))


@pytest.mark.sample(1, whole=5)
@pytest.mark.parametrize("kind", ["numpy", "memmap", "h5py", "path", "group"])
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_sources(case, tmp_path, kind, scheduler):
    mask, labels = case
    values = labels[:]
    source = {"numpy": values, "path": str(tmp_path / "labels")}.get(kind)
    if kind == "memmap":
        source = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", values.dtype, values.shape)
        source[:] = values
        source.flush()
    elif kind == "h5py":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("labels", data=values, chunks=(16, 16))
        source = h5py.File(tmp_path / "a.h5")["labels"]
    elif kind == "group":
        group = zarr.open_group(tmp_path / "group")
        source = group.create_array("x", data=values, chunks=(7, 9))
    merged = tw.merge_labels(source, tmp_path / "merged", pieces=16, scheduler=scheduler, progress=False)
    assert np.array_equal(merged[:], whole(mask))


@pytest.mark.parametrize(
    "layout", [{"chunks": 9}, {"chunks": 8, "shards": 32}, {"shards": (64, 48)}, {"chunks": (None, 10)}]
)
def test_layouts(case, tmp_path, layout):
    mask, labels = case
    if layout == {"chunks": (None, 10)}:
        layout, labels = {"chunks": {"x": 10}}, zarr.create_array(
            tmp_path / "named", data=labels[:], chunks=(16, 16), dimension_names=["y", "x"]
        )  # fmt: skip
    merged = tw.merge_labels(labels, tmp_path / "merged", progress=False, **layout)
    assert np.array_equal(merged[:], whole(mask))
    assert (merged.shards is not None) == ("shards" in layout)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["survey", "number_pieces", "part_of_result"])
@pytest.mark.parametrize("after", [0, 3])
def test_l6_a_failed_run_is_resumed(case, tmp_path, monkeypatch, name, after):
    """The store is that of a run that did not fail, and nothing that was done is done again."""
    mask, labels = case
    home = pieces if name != "number_pieces" else joining
    real, calls = getattr(joining, name), []

    def broken(*args):
        calls.append(args)
        if len(calls) > after and name != "number_pieces":
            raise RuntimeError("no more")
        result = real(*args)
        if name == "number_pieces":
            raise RuntimeError("no more")
        return result

    monkeypatch.setattr(joining, name, broken)
    with pytest.raises(RuntimeError, match="no more"):
        tw.merge_labels(labels, tmp_path / "merged", scheduler="sync", progress=False)
    count = {"survey": 20, "part_of_result": 20}
    seen = dict.fromkeys(count, 0)
    for each in count:
        function = getattr(home if each == name else joining, each)
        function = real if each == name else function

        def counted(*args, function=function, each=each):
            seen[each] += 1
            return function(*args)

        monkeypatch.setattr(joining, each, counted)
    if name == "number_pieces":
        monkeypatch.setattr(joining, name, real)
    merged = tw.merge_labels(labels, tmp_path / "merged", scheduler="sync", progress=False)
    assert np.array_equal(merged[:], whole(mask))
    assert seen == {
        "survey": 20 - after if name == "survey" else 0,
        "part_of_result": 20 - after if name == "part_of_result" else 20,
    }
    tw.merge_labels(labels, tmp_path / "other", scheduler="sync", progress=False)
    assert files(tmp_path / "merged") == files(tmp_path / "other")
    seen.update(dict.fromkeys(seen, 0))
    tw.merge_labels(labels, tmp_path / "merged", scheduler="sync", progress=False)
    assert seen == {"survey": 0, "part_of_result": 0}


@pytest.mark.parametrize(
    "layout",
    [{"chunks": 25}, {"chunks": (5, 70), "shards": (20, 140)}, {"ome": True, "levels": 2, "chunks": 12}],
)
def test_a_resumed_result_keeps_its_chunks(case, tmp_path, monkeypatch, layout):
    mask, labels = case
    calls, number = [], joining.part_of_result

    def failing(*args):
        calls.append(1)
        if len(calls) > 2:
            raise OSError("a test")
        return number(*args)

    monkeypatch.setattr(joining, "part_of_result", failing)
    meta = tw.ImageMeta("yx") if "ome" in layout else None
    with pytest.raises(OSError, match="a test"):
        tw.merge_labels(labels, tmp_path / "out", meta=meta, progress=False, scheduler="sync", **layout)
    monkeypatch.undo()
    rest = {name: value for name, value in layout.items() if name not in ("chunks", "shards")}
    merged = tw.merge_labels(labels, tmp_path / "out", meta=meta, progress=False, **rest)
    assert np.array_equal(merged[:], whole(mask))
    with pytest.raises(TilingError, match=r"chunks.*got chunks=\(33, 33\)"):
        tw.merge_labels(labels, tmp_path / "out", meta=meta, progress=False, chunks=33, **rest)


def test_another_question_is_no_resumed_answer(case, tmp_path):
    _, labels = case
    tw.merge_labels(labels, tmp_path / "merged", progress=False)
    for other in ({"connectivity": 2}, {"pieces": 8}, {"each": 0}):
        with pytest.raises(TilingError, match="connectivity 1"):
            tw.merge_labels(labels, tmp_path / "merged", progress=False, **other)
    tw.merge_labels(labels, tmp_path / "merged", connectivity=2, overwrite=True, progress=False)
    labels[0, 0] = 99
    with pytest.raises(TilingError, match="changed: version") as refused:
        tw.merge_labels(labels, tmp_path / "merged", connectivity=2, progress=False)
    assert "accept" not in str(refused.value)  # which it does not take


class Slices:
    """An array that does not say whether its data changed."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, box):
        return self.values[box]


def test_labels_that_may_have_changed_are_no_resumed_result(case, tmp_path):
    mask, labels = case
    source = Slices(labels[:])
    merge = {"pieces": 16, "scheduler": "sync", "progress": False}
    tw.merge_labels(source, tmp_path / "merged", **merge)
    with pytest.raises(TilingError, match="changed: version"):
        tw.merge_labels(source, tmp_path / "merged", **merge)
    for _ in range(2):
        merged = tw.merge_labels(source, tmp_path / "other", version="1", **merge)
    assert np.array_equal(merged[:], whole(mask))


def test_a_store_that_says_nothing_of_its_labels_is_named(tmp_path, caplog):
    class Silent(MemoryFileSystem):
        """A file system that lists objects without times and tags."""

        protocol = "tilework-silent"
        store, pseudo_dirs = {}, [""]

        def ls(self, path, detail=True, **options):
            facts = super().ls(path, detail=True, **options)
            kept = [{key: one[key] for key in ("name", "size", "type")} for one in facts]
            return kept if detail else [one["name"] for one in kept]

        def info(self, path, **options):
            facts = super().info(path, **options)
            return {key: facts[key] for key in ("name", "size", "type")}

    fsspec.register_implementation(Silent.protocol, Silent, clobber=True)
    url, merge = f"{Silent.protocol}://labels.zarr", {"progress": False, "scheduler": "threads"}
    labels = zarr.create_array(url, shape=(8, 8), chunks=(4, 4), dtype="i4")
    labels[:3] = 1
    tw.merge_labels(url, tmp_path / "a", version="1", **merge)
    assert "does not say" not in caplog.text
    tw.merge_labels(url, tmp_path / "b", **merge)
    assert "labels: its store does not say whether data changed" in caplog.text
    caplog.clear()
    out = tw.tiled_map(lambda crop: crop + labels[0, 0], np.zeros((8, 8)), 8, 0, dtype="f8")
    tw.to_zarr(out, tmp_path / "c", **merge)
    assert "fn closure value labels: its store does not say whether data changed" in caplog.text


def test_labels_of_an_ome_zarr_image(case, tmp_path):
    mask, labels = case
    image = tw.tiled_map(
        np.negative, np.random.default_rng(0).random(mask.shape), crop=32, overlap=0, dtype=float
    )
    tw.to_zarr(image, tmp_path / "x.ome.zarr", ome=True, levels=2, progress=False)
    tw.merge_labels(labels, tmp_path / "x.ome.zarr", label_name="cells", progress=False)
    group = zarr.open_group(tmp_path / "x.ome.zarr/labels/cells")
    assert np.array_equal(group["0"][:], whole(mask))
    assert np.array_equal(group["1"][:], whole(mask)[::2, ::2])
    assert not list((tmp_path / "x.ome.zarr").rglob("*-joined"))


def test_meta_names_the_axes_of_each(case):
    mask, labels = case
    stack, meta = np.stack([labels[:], labels[:]], axis=-1), tw.ImageMeta("yxt")
    options = {"pieces": (*labels.chunks, 1), "progress": False}
    found = tw.merge_labels(stack, each="t", meta=meta, **options)
    assert np.array_equal(found, tw.merge_labels(stack, each=2, **options))
    assert np.array_equal(found[..., 0], whole(mask))
    with pytest.raises(TilingError, match="meta has 1 axes"):
        tw.merge_labels(stack, each=0, meta=tw.ImageMeta("x"), **options)


def test_labels_lie_where_the_level_of_their_extents_does(tmp_path):
    meta = tw.ImageMeta("tcyx", units="micrometer", scale={"y": 0.25, "x": 1}, translation={"y": 7})
    image = tw.tiled_map(np.negative, np.zeros((2, 3, 64, 96)), 32, 0, axes=(2, 3), dtype="f4")
    path = tmp_path / "x.ome.zarr"
    tw.to_zarr(image, path, ome=True, meta=meta, levels=3, progress=False)
    for level, (y, x) in enumerate([(64, 96), (32, 96), (16, 48)]):  # first halved along the shorter samples
        opened = tw.open_image(path, level=level)
        assert opened.shape[2:] == (y, x)
        labels = np.ones((2, y, x), np.uint32)
        tw.merge_labels(labels, path, label_name=f"merged{level}", pieces=16, progress=False)
        named = tw.tiled_map(np.asarray, labels, 16, 0, axes=(1, 2), dtype="u4", meta=tw.ImageMeta("tyx"))
        tw.to_zarr(named, path, label_name=f"named{level}", progress=False)
        for name in (f"merged{level}", f"named{level}"):
            own = tw.open_image(path, label=name).meta
            for what in ("scale", "translation", "units"):
                found = getattr(opened.meta, what)
                assert getattr(own, what) == (found[0], *found[2:])
    for shape in ((2, 64, 48), (3, 64, 96), (2, 1, 1)):
        labels, into = np.ones(shape, np.uint32), {"label_name": "no", "pieces": 16, "progress": False}
        with pytest.raises(TilingError, match="no level of it has these extents"):
            tw.merge_labels(labels, path, **into)
        own = tw.ImageMeta("tyx", scale=(1, 4, 4))
        tw.merge_labels(labels, path, meta=own, overwrite=True, **into)
        assert tw.open_image(path, label="no").meta.scale == own.scale


def test_labels_keep_the_places_that_they_have(tmp_path):
    image = tw.tiled_map(np.negative, np.zeros((64, 96)), 32, 0, dtype="f4")
    for name, scale in (("fine", 0.5), ("coarse", 2.0)):
        meta = tw.ImageMeta("yx", units="micrometer", scale=(scale, scale))
        out = image if name == "fine" else tw.tiled_map(np.ones_like, np.zeros((16, 24), "u4"), 8, 0)
        tw.to_zarr(out, tmp_path / f"{name}.ome.zarr", ome=True, meta=meta, progress=False)
    found = tw.open_image(tmp_path / "coarse.ome.zarr")
    tw.merge_labels(found, tmp_path / "fine.ome.zarr", label_name="cells", progress=False)
    assert tw.open_image(tmp_path / "fine.ome.zarr", label="cells").meta.scale == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"overlap": 3}, TilingError, "one label for each sample"),
        ({"rule": "iou"}, TilingError, "rule must be one of 'touch'"),
        ({"connectivity": 3}, TilingError, "1 to 2"),
        ({"connectivity": 2, "each": 0}, TilingError, "1 to 1"),
        ({"connectivity": 0}, TilingError, "at least 1"),
        ({"pieces": 0}, TilingError, "extents are positive"),
        ({"pieces": ((30, 31), 5)}, TilingError, "add up"),
        ({"pieces": (5, 5, 5)}, TilingError, "each of 2 axes"),
        ({"pieces": tw.plan_tiles((9, 60, 70), 5, 0)}, TilingError, "the plan has 3 axes"),
        ({"pieces": tw.plan_tiles((60, 60), 5, 0)}, TilingError, "add up"),
        ({"pieces": 2.5}, TypeError, "whole number"),
        ({"dtype": "float32"}, TypeError, "integers"),
        ({"dtype": "uint8"}, TilingError, "objects, more than uint8 holds"),
        ({"each": (0, 1)}, TilingError, "no axis to tile"),
    ],
)
def test_what_is_refused(case, arguments, error, words):
    _, labels = case
    values = by_block(np.random.default_rng(0).random(labels.shape) < 0.4, regular(labels.shape, 16))
    with pytest.raises(error, match=words):
        tw.merge_labels(values, MemoryStore(), **({"pieces": 16, "progress": False} | arguments))


def test_labels_that_are_refused(case, tmp_path):
    _, labels = case
    before = labels[:]
    with pytest.raises(TilingError, match="holds the array that is read"):
        tw.merge_labels(labels, tmp_path / "labels", overwrite=True)
    assert np.array_equal(labels[:], before)
    with pytest.raises(TilingError, match="give pieces="):
        tw.merge_labels(labels[:], MemoryStore())
    with pytest.raises(TypeError, match="a place in Zarr"):
        tw.merge_labels(labels, np.zeros(labels.shape, "uint32"))
    sharded = zarr.create_array(MemoryStore(), shape=(8, 8), chunks=(2, 2), shards=(4, 4), dtype="i4")
    with pytest.raises(TilingError, match="pieces="):
        tw.merge_labels(sharded, MemoryStore())
    with pytest.raises(TilingError, match="no samples"):
        tw.merge_labels(labels[:0], MemoryStore(), pieces=16)
    for values, words in ((labels[:] > 0, "scipy.ndimage.label"), (-labels[:], "the id -")):
        with pytest.raises(ContractError, match=words):
            tw.merge_labels(values, MemoryStore(), pieces=16, progress=False)


@pytest.mark.parametrize("value", [12345, 2**30])
def test_labels_that_change_while_they_are_read(case, monkeypatch, value):
    _, labels = case
    real = joining.number_pieces

    def late(*args):
        labels[3, 3] = value
        return real(*args)

    monkeypatch.setattr(joining, "number_pieces", late)
    with pytest.raises(TilingError, match="changed while it was read"):
        tw.merge_labels(labels, MemoryStore(), scheduler="sync", progress=False)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize(("factor", "more"), [(1, 0), (10**4, 0), (2**40, 0), (1, 2**62)])
@given(st.integers(0, 2**32 - 1))
def test_ids_of_any_size_in_any_order(dtype, factor, more, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((20, 20)) < 0.5
    labels = by_block(mask, regular(mask.shape, 7))
    labels = np.where(labels > 0, (rng.permutation(labels.max() + 1) + 1)[labels] * factor + more, 0).astype(
        dtype
    )
    merged = tw.merge_labels(labels, MemoryStore(), pieces=7, scheduler="sync", progress=False)
    assert np.array_equal(merged[:], whole(mask))


@pytest.mark.parametrize("edge", ["shift", "squeeze", "pad", "clip"])
@pytest.mark.parametrize(("each", "overlap"), [((), 0), ((0,), 4)])
def test_pieces_of_a_tiled_map(case, tmp_path, each, overlap, edge):
    """Ids are those of a tile: a block of the result, or a chunk, holds several."""
    mask, _ = case
    mask = np.stack((mask, ~mask)) if each else mask

    def label(crop):
        return ndi.label(crop)[0].astype(np.int32)

    out = tw.tiled_map(label, mask, (20, 18), overlap, each=each, dtype="int32", edge=edge)
    stored = tw.to_zarr(out, tmp_path / "pieces", progress=False)
    for pieces_of in (out, tw.plan_tiles(mask.shape, (20, 18), overlap, each=each, edge=edge)):
        merged = tw.merge_labels(stored, MemoryStore(), pieces=pieces_of, each=each, progress=False)
        assert np.array_equal(merged[:], whole(mask, 1, len(each)))
        usual = tw.merge_labels(stored, MemoryStore(), pieces=pieces_of, progress=False)
        assert np.array_equal(usual[:], merged[:])
        joined = tw.merge_labels(stored, MemoryStore(), pieces=pieces_of, each=(), progress=False)
        assert np.array_equal(joined[:], whole(mask, 1, 0))
    assert np.array_equal(tw.merge_labels(out, progress=False), whole(mask, 1, len(each)))
    small = tw.tiled_map(label, mask, (20, 18), 4, each=each, dtype="int16", blend="min")
    with pytest.raises(TilingError, match='the result has blend="min"'):
        tw.merge_labels(stored, MemoryStore(), pieces=small, each=each)


def test_pieces_of_one_id_that_are_apart_stay_one_object():
    """What one block gave one id is one object, as the areas of a brain are."""
    labels = np.array([[5, 0, 5, 0, 1, 0], [0, 0, 0, 0, 1, 1]])
    merged = tw.merge_labels(labels, MemoryStore(), pieces=(2, 4), progress=False)
    assert merged[:].tolist() == [[1, 0, 1, 0, 2, 0], [0, 0, 0, 0, 2, 2]]


def test_a_local_store_is_left_clean(case, tmp_path):
    _, labels = case
    tw.merge_labels(labels, LocalStore(tmp_path / "merged"), path="a/b", progress=False)
    names = {p.name for p in (tmp_path / "merged").rglob("*") if "joined" in p.name}
    assert not names


@pytest.mark.sample(0)
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_without_a_store_results_are_arrays(scheduler):
    mask = np.random.default_rng(2).random((60, 50)) < 0.6
    pieces = np.zeros(mask.shape, "int32")
    for y, x in np.ndindex(6, 5):
        box = np.s_[10 * y : 10 * y + 10, 10 * x : 10 * x + 10]
        pieces[box] = ndi.label(mask[box])[0]
    merged = tw.merge_labels(pieces, pieces=10, progress=False, scheduler=scheduler)
    assert isinstance(merged, np.ndarray)
    assert np.array_equal(merged, ndi.label(mask)[0])
    large = tw.filter_labels(merged, lambda table: table["area"] > 9, progress=False, scheduler=scheduler)
    assert isinstance(large, np.ndarray)
    assert np.array_equal(
        large != 0, np.isin(merged, np.flatnonzero(np.bincount(merged.ravel())[1:] > 9) + 1)
    )


def test_dask_arrays_are_written_first(tmp_path):
    mask = np.random.default_rng(2).random((60, 50)) < 0.6
    whole = ndi.label(mask)[0]
    lazy = da.from_array(mask, chunks=(20, 15)).map_blocks(lambda block: ndi.label(block)[0], dtype="int32")
    assert np.array_equal(tw.merge_labels(lazy, progress=False), whole)
    written = tw.merge_labels(lazy, tmp_path / "a.zarr", chunks=16, progress=False)
    assert np.array_equal(written[:], whole)
    assert np.array_equal(tw.merge_labels(lazy, tmp_path / "a.zarr", chunks=16, progress=False)[:], whole)
    tiles = tw.tiled_map(lambda crop: ndi.label(crop)[0], mask, 13, 0, dtype="int32", edge="clip")
    assert np.array_equal(tw.merge_labels(tiles, progress=False), whole)
    uneven = lazy.rechunk(((31, 29), (50,)))
    again = uneven.map_blocks(lambda block: ndi.label(block > 0)[0], dtype="int32")
    assert np.array_equal(tw.merge_labels(again, progress=False), whole)
    with pytest.raises(TilingError, match="no common length"):
        tw.merge_labels(lazy.rechunk(((17, 19, 24), (50,))))
    own = tw.tiled_map(lambda crop: ndi.label(crop)[0], mask, 40, 8, output=tw.Output(labels="own"))
    with pytest.raises(TilingError, match="are numbered, or joined"):
        tw.merge_labels(own)
    with pytest.raises(ContractError, match="number its objects"):
        tw.merge_labels(lazy > 0)
