"""Every source gives the bits of the numpy array behind it, and travels as a recipe."""

import pickle
import re
import threading

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.source import opening
from tilework.source.kept import ChunkCache
from tilework.source.opening import open_source

IMAGE = np.arange(60 * 50, dtype=np.float32).reshape(60, 50)


def ramp(crop):
    """Depend on the neighbours, so that a misplaced sample shows."""
    return crop + 2 * np.roll(crop, 1, 0) + 3 * np.roll(crop, -1, 1)


def expected():
    return tw.tiled_map(ramp, IMAGE, 16, 2, edge="pad", dtype="float32", chunks=24).compute(scheduler="sync")


class Sliceable:
    """An array-like without numpy's protocols."""

    shape, dtype = IMAGE.shape, IMAGE.dtype

    def __getitem__(self, index):
        return IMAGE[index]


def make_memmap(folder, mode="r"):
    path = folder / "image.raw"
    mapped = np.memmap(path, np.float32, "w+", offset=64, shape=(60, 100))
    mapped[:, ::2] = IMAGE
    mapped.flush()
    return np.memmap(path, np.float32, mode, offset=64, shape=(60, 100))[:, ::2]


def make_zarr(folder, **options):
    array = zarr.create_array(str(folder / "image.zarr"), shape=IMAGE.shape, dtype="f4", **options)
    array[:] = IMAGE
    return array


def make_ome(folder, version):
    group = zarr.open_group(str(folder / "x.ome.zarr"), mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=IMAGE, chunks=(16, 16))
    images = [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]
    group.attrs.update({"multiscales": images} if version == "0.4" else {"ome": {"multiscales": images}})
    return group


def make_h5(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "image.h5", "w") as file:
        file.create_dataset("a/b", data=IMAGE, chunks=(16, 16))
    return h5py.File(folder / "image.h5", "r")["a/b"]


def make_xarray(_):
    xarray = pytest.importorskip("xarray")
    return xarray.DataArray(da.from_array(IMAGE, chunks=(17, 23)), dims=("y", "x"))


def make_torch(_):
    return pytest.importorskip("torch").from_numpy(IMAGE.copy())


SOURCES = {
    "numpy": lambda _: IMAGE,
    "fortran": lambda _: np.asfortranarray(IMAGE),
    "reversed": lambda _: IMAGE[::-1, ::-1].copy()[::-1, ::-1],
    "memmap_view": make_memmap,
    "memmap_copy_on_write": lambda f: make_memmap(f, "c"),
    "zarr_v3": lambda f: make_zarr(f, chunks=(16, 11)),
    "zarr_v2": lambda f: make_zarr(f, chunks=(16, 11), zarr_format=2),
    "zarr_sharded": lambda f: make_zarr(f, chunks=(8, 8), shards=(32, 16)),
    "zarr_path": lambda f: str(make_zarr(f, chunks=(16, 16)).store.root),
    "zarr_path_object": lambda f: make_zarr(f, chunks=(16, 16)).store.root,
    "ome_0.4": lambda f: make_ome(f, "0.4"),
    "ome_0.5_path": lambda f: make_ome(f, "0.5") and str(f / "x.ome.zarr"),
    "ome_level": lambda f: make_ome(f, "0.4") and str(f / "x.ome.zarr/0"),
    "h5py": make_h5,
    "dask": lambda _: da.from_array(IMAGE, chunks=((7, 30, 23), (1, 49))),
    "xarray": make_xarray,
    "torch": make_torch,
    "load_once": lambda _: tw.load_once(Sliceable),
    "sliceable": lambda _: Sliceable(),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_source_gives_the_bits_of_numpy(name, blend, tmp_path):
    array = SOURCES[name](tmp_path)
    options = {"edge": "pad", "blend": blend, "dtype": "float32", "chunks": 24}
    got = tw.tiled_map(ramp, array, 16, 2, **options).compute(scheduler="threads")
    want = tw.tiled_map(ramp, IMAGE, 16, 2, **options).compute(scheduler="sync")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["numpy", "memmap_view", "zarr_v3", "h5py", "dask", "load_once", "xarray"])
def test_source_travels_to_processes(name, tmp_path, scheduler):
    array = SOURCES[name](tmp_path)
    out = tw.tiled_map(ramp, array, 16, 2, edge="pad", dtype="float32", chunks=24)
    np.testing.assert_array_equal(out.compute(), expected())


@pytest.mark.parametrize("name", ["ome_0.4", "ome_0.5_path", "ome_level", "xarray"])
def test_axis_names_come_from_the_source(name, tmp_path):
    out = tw.tiled_map(np.negative, SOURCES[name](tmp_path), 16, 2, axes="xy", dtype="float32")
    np.testing.assert_array_equal(out.compute(), -IMAGE)


@pytest.mark.parametrize("name", ["memmap_view", "zarr_v3", "zarr_path", "h5py", "load_once"])
def test_recipe_is_small(name, tmp_path):
    """A recipe is far smaller than the 12 kB of the image."""
    assert len(cloudpickle.dumps(open_source(SOURCES[name](tmp_path)))) < 4000


def test_large_memmap_adds_little_to_the_graph(tmp_path):
    """A 64 MB memmap adds less than 10 kB to the graph."""
    mapped = np.memmap(tmp_path / "large", np.float32, "w+", shape=(4096, 4096))
    out = tw.tiled_map(np.negative, mapped, 1024, 0, dtype="float32")
    size = sum(len(cloudpickle.dumps(node)) for node in dict(out.__dask_graph__()).values())
    assert size < 10_000 + 4096 * out.npartitions


def test_array_in_memory_refuses_to_travel_when_large(monkeypatch):
    monkeypatch.setattr("tilework.source.base.MEMORY_TRAVEL_LIMIT", 1000)
    part = open_source(IMAGE).together([(0, 2), (0, 2)])
    with pytest.raises(tw.TilingError, match=r"0 MiB in memory .* Zarr"):
        pickle.dumps(part)


def test_a_memory_store_is_the_same_store_after_pickling():
    array = zarr.create_array(zarr.storage.MemoryStore(), data=IMAGE)
    source = pickle.loads(pickle.dumps(open_source(array)))
    array[:] = -IMAGE
    np.testing.assert_array_equal(source.read([(0, 60), (0, 50)]), -IMAGE)


@pytest.fixture
def decoded(monkeypatch):
    """Count reads of chunk files."""
    counts = {}
    original = zarr.storage.LocalStore.get

    async def get(self, key, *args, **kwargs):
        if "/" in key and not key.endswith(".json"):
            counts[key] = counts.get(key, 0) + 1
        return await original(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    return counts


@pytest.mark.parametrize("options", [{"overlap": 4}, {"stride": 20, "blend": "hann"}], ids=["trim", "blend"])
def test_each_chunk_is_decoded_once(options, decoded, tmp_path):
    image = np.arange(256 * 256, dtype=np.float32).reshape(256, 256)
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=image, chunks=(32, 32))
    decoded.clear()
    out = tw.tiled_map(np.negative, array, 40, dtype="float32", chunks=64, **options)
    np.testing.assert_allclose(out.compute(scheduler="threads"), -image, rtol=1e-6)
    assert len(decoded) == 64
    assert set(decoded.values()) == {1}


def test_rewritten_store_is_seen_by_the_same_graph(tmp_path):
    """A chunk that a slice left in the cache is not trusted once its file has changed."""
    array = make_zarr(tmp_path, chunks=(16, 16))
    out = tw.tiled_map(np.negative, array, 16, 4, dtype="float32", chunks=16)
    np.testing.assert_array_equal(out[:20].compute(), -IMAGE[:20])
    array[:] = IMAGE + 1
    np.testing.assert_array_equal(out.compute(), -IMAGE - 1)


def test_cache_is_bounded_and_loads_each_chunk_once_under_threads():
    cache, loads, wrong = ChunkCache(), [], []
    limit = 40 * 80

    def load(keys):
        for key in keys:
            loads.append(key)
            yield key, np.full(10, key[0]), True

    def use(key, chunk):
        if not (chunk == key[0]).all():
            wrong.append(key)

    def read(seed):
        order = np.random.default_rng(seed).permutation(40)
        for first in range(0, 40, 5):
            cache.fetch({(int(k),): 8 for k in order[first : first + 5]}, load, use, limit)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(loads) == 40
    assert cache.nbytes == 0  # the last use dropped each
    cache.fetch({(k,): 2 for k in range(100)}, load, use, limit)
    assert cache.nbytes <= limit


def test_dask_source_computes_only_the_blocks_that_a_slice_needs():
    seen = []

    def note(block, block_info=None):
        seen.append(block_info[0]["chunk-location"])
        return block

    source = da.from_array(IMAGE, chunks=(10, 10)).map_blocks(note, meta=np.empty((0, 0), "f4"))
    out = tw.tiled_map(np.negative, source, 10, 1, dtype="float32", chunks=8)
    with dask.config.set(scheduler="sync"):
        out[:8, :8].compute()
    assert set(seen) == {(0, 0)}


def test_a_dask_array_without_samples_along_an_untiled_axis():
    for image in (np.zeros((0, 8, 10)), da.zeros((0, 8, 10), chunks=(1, 4, 5))):
        assert tw.tiled_map(np.negative, image, (4, 4), 1, dtype=float).compute().shape == (0, 8, 10)


# -- what is read is as declared --------------------------------------------------------------------------

# What a function returns for a chunk of 16 x 50, or a slice, instead of the chunk.
OTHERS = {
    "short": lambda block: block[:-1],
    "narrow": lambda block: block[:, 1:],
    "long": lambda block: np.pad(block, 2),
    "transposed": np.transpose,
    "one row": lambda block: block[:1],
    "fewer axes": lambda block: block[0],
    "more axes": lambda block: block[None],
    "masked": lambda block: np.ma.masked_array(block[1:], False),
}
WAYS = {
    "dask": lambda out: out.compute(),
    "compute": tw.compute,
    "fill": lambda out: tw.compute(out, on_error="fill"),
    "store": lambda out: tw.to_zarr(out, {}, progress=False),
    "view": lambda out: tw.view(out)[...],
}


def lying(returns, declared="f4", chunks=(16, 50)):
    """Return a dask array that declares the chunks of the image, of which one is another."""

    def block_of(block, block_id=None):
        return returns(block) if block_id == (1, 0) else block

    source = da.from_array(IMAGE, chunks=chunks)
    return source.map_blocks(block_of, dtype=declared, meta=np.empty((0, 0), declared))


@pytest.mark.parametrize("chunks", [8, 16, 64])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.sample(8)
def test_a_block_of_another_shape_is_refused(other, chunks):
    """It was cut or moved to its place, and what it does not cover was memory of before."""
    has = np.shape(OTHERS[other](IMAGE[16:32]))
    says = re.escape(f"declares shape (16, 50) for its block (1, 0), and the block has {has}: ")
    says += ".*chunks= in map_blocks"
    out = tw.tiled_map(np.copy, lying(OTHERS[other]), 12, 2, dtype="f4", chunks=chunks, fill_value=-1)
    for way, made in WAYS.items():
        if way == "fill":
            with pytest.warns(tw.TilingWarning, match=says):
                filled = made(out)
            np.testing.assert_array_equal(filled[:8], IMAGE[:8])
            np.testing.assert_array_equal(filled[40:], IMAGE[40:])
            assert (filled[16:32] == -1).all()
        else:
            with pytest.raises(tw.ContractError, match=says):
                made(out)


def test_the_message_names_the_axis():
    out = tw.tiled_map(np.copy, lying(OTHERS["short"]), 12, 2, dtype="f4")
    with pytest.raises(tw.ContractError, match="15 samples on axis 0, not 16"):
        out.compute()
    out = tw.tiled_map(np.copy, lying(OTHERS["more axes"]), 12, 2, dtype="f4")
    with pytest.raises(tw.ContractError, match="3 axes, not 2"):
        out.compute()


def test_blocks_of_another_shape_are_refused_wherever_they_are_read():
    short = lying(OTHERS["short"])
    with pytest.raises(tw.ContractError, match="declares shape"):
        tw.image_statistics(short, progress=False)
    with pytest.raises(tw.ContractError, match="declares shape"):
        tw.measure_labels(lying(OTHERS["short"], "i4").astype("i4"), progress=False)
    with pytest.raises(tw.ContractError, match="15 samples on axis 0, not 16"):
        open_source(short).read([(16, 32), (0, 50)])
    with pytest.raises(tw.ContractError, match="declares shape"):
        tw.tiled_map(np.add, (IMAGE, short), 12, 2, dtype="f4").compute()
    masked = da.ma.masked_less(short, 100)
    with pytest.raises(tw.ContractError, match="declares shape"):
        tw.tiled_map(np.copy, masked, 12, 2, dtype="f4").compute()


@pytest.mark.parametrize("other", OTHERS)
def test_blocks_of_another_shape_are_not_written(other):
    """Numpy and zarr repeat samples, or leave some out, until they have the shape of their place."""
    says = re.escape("written declares shape (16, 50) for its block (1, 0), and the block has ")
    for array in (lying(OTHERS[other]), lying(OTHERS[other]) + 1):
        with pytest.raises(tw.ContractError, match=says):
            tw.compute(array)
        with pytest.raises(tw.ContractError, match=says):
            tw.to_zarr(array, {}, progress=False)


def test_a_block_of_an_array_without_axes():
    source = open_source(da.from_array(np.array(3.0, "f4"), chunks=()))
    assert source.read_blocks({(): np.asarray(np.float64(0.1))}, []) == np.float32(0.1)
    with pytest.raises(tw.ContractError, match="1 axes, not 0"):
        source.read_blocks({(): np.zeros(1, "f4")}, [])


@pytest.mark.parametrize("chunks", [8, 16, 64])
def test_blocks_have_the_dtype_of_their_array_wherever_they_are_read(chunks):
    """It depended on whether a task reads one block, or several."""

    def seen(source):
        found = set()

        def note(crop):
            found.add(crop.dtype)
            return crop.astype("f8")

        out = tw.tiled_map(note, source, 8, 0, dtype="f8", chunks=chunks)
        result = tw.compute(out)
        np.testing.assert_array_equal(tw.view(out)[...], result)
        return found, result

    image = np.random.default_rng(0).random((64, 64))
    for actual, declared in (("f8", "f4"), ("i4", "f8"), ("?", "u1"), ("f4", ">f4")):
        values = (image * 2).astype(actual)
        source = da.from_array(values, chunks=16).map_blocks(
            np.copy, dtype=declared, meta=np.empty((0, 0), declared)
        )
        found, result = seen(source)
        assert found == {np.dtype(declared)}
        np.testing.assert_array_equal(result, values.astype(declared))
        np.testing.assert_array_equal(
            open_source(source).read([(3, 9), (0, 5)]), values[3:9, :5].astype(declared)
        )
    with pytest.raises(tw.ContractError, match="are uint8, and its blocks are int64"):
        seen(
            da.ones((64, 64), dtype="i8", chunks=16).map_blocks(
                np.copy, dtype="u1", meta=np.empty((0, 0), "u1")
            )
        )


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_slice_of_another_shape_is_refused(other, edge):
    class Lying(Sliceable):
        def __getitem__(self, index):
            return OTHERS[other](IMAGE[index])

    class Masked(Lying):
        mask = True

    for kind in (Lying, Masked):
        for source in (kind(), tw.load_once(kind)):
            with pytest.raises(
                tw.ContractError, match=r"returned shape .* for the slice \[.*: .*(on axis|axes, not)"
            ):
                tw.compute(tw.tiled_map(np.copy, source, 12, 2, edge=edge, dtype="f4"))


class Typed:
    """An array-like whose slices have another dtype than it declares."""

    shape = (24, 20)

    def __init__(self, declared, returned, *, masked=False):
        self.dtype, self.mask = np.dtype(declared), masked
        self.values = (np.arange(24 * 20).reshape(self.shape) % 7 + 0.5).astype(returned)

    def __getitem__(self, index):
        part = self.values[index]
        return np.ma.masked_equal(part, 3) if self.mask else part


PLAIN = np.ones((24, 20), "u2")
READERS = {
    "image": lambda a: tw.compute(tw.tiled_map(np.copy, a, 12, 2)),
    "image of another dtype": lambda a: tw.compute(tw.tiled_map(np.copy, a, 12, 2, dtype="f8")),
    "padded": lambda a: tw.compute(tw.tiled_map(np.copy, a, 13, 2, edge="pad", boundary="reflect")),
    "second image": lambda a: tw.compute(tw.tiled_map(lambda c, d: c, (PLAIN, a), 12, 2, dtype="i4")),
    "where": lambda a: tw.compute(tw.tiled_map(np.copy, PLAIN, 12, 2, where=a)),
    "nodata": lambda a: tw.compute(tw.tiled_map(np.copy, a, 12, 2, nodata=3)),
    "load_once": lambda a: tw.compute(tw.tiled_map(np.copy, tw.load_once(lambda: a), 12, 2)),
    "view": lambda a: tw.view(tw.tiled_map(np.copy, a, 12, 2))[:5, :5],
    "to_zarr": lambda a: tw.to_zarr(tw.tiled_map(np.copy, a, 12, 2), {}, progress=False),
    "statistics": lambda a: tw.image_statistics(a, progress=False),
    "statistics where": lambda a: tw.image_statistics(PLAIN, where=a, progress=False),
    "crops": lambda a: tw.sample_crops(a, 2, 8),
    "slicer": lambda a: list(tw.Slicer(a, 12, 2)),
    "probe": lambda a: tw.probe(np.copy, 12, array=a),
    "check": lambda a: tw.check(tw.tiled_map(np.copy, a, 12, 2)),
    "labels": lambda a: tw.measure_labels(a, progress=False),
    "intensity": lambda a: tw.measure_labels(PLAIN, a, ["intensity_mean"], progress=False),
    "filter": lambda a: tw.filter_labels(a, "area > 3", {}, properties=["area"], progress=False),
}


NOT_OF_MASKS = ("nodata", "labels", "filter", "probe")


@pytest.mark.parametrize(
    ("reader", "declared"),
    [*((r, "u1") for r in READERS), *((r, "?") for r in READERS if r not in NOT_OF_MASKS)],
)
def test_every_reader_refuses_samples_that_do_not_fit_in_the_declared_dtype(reader, declared):
    """Integers would wrap around, and a mask of fractions would be true."""
    for returned in ("u2", "f4"):
        with pytest.raises(tw.ContractError, match=f"are {np.dtype(declared)}, and its blocks are"):
            READERS[reader](Typed(declared, returned))


@pytest.mark.parametrize(("declared", "returned"), [("i4", "u1"), ("f4", "f8"), ("f8", "i2"), (">f4", "<f4")])
def test_samples_that_fit_are_read_in_the_declared_dtype(declared, returned):
    seen = set()
    array = Typed(declared, returned)
    out = tw.tiled_map(lambda c: seen.add(c.dtype) or c.astype("f8"), array, 12, 2, dtype="f8")
    np.testing.assert_array_equal(tw.compute(out), array.values.astype(declared))
    assert seen == {np.dtype(declared)}


def test_what_netcdf4_unpacks_has_the_dtype_that_is_read():
    """Its variables declare that of the packed numbers."""
    packed = Typed("i2", "f8", masked=True)
    for source in (packed, tw.load_once(lambda: packed)):
        out = tw.tiled_map(np.copy, source, 12, 2)
        assert out.dtype == "f8"
        np.testing.assert_array_equal(tw.compute(out), packed.values)


def test_a_result_is_named_by_all_samples_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the layout in memory, and the number of threads that hash the pieces."""
    image = np.random.default_rng(0).random((3, 1024, 700), np.float32)  # 4 pieces and a part of one
    other = image.copy()

    def name(array: np.ndarray) -> str:
        return str(tw.tiled_map(np.abs, array, crop=64, overlap=2, axes=(1, 2), dtype="float32").name)

    first = name(image)
    for threads in (1, 3):
        monkeypatch.setattr(opening, "n_threads", lambda threads=threads: threads)
        assert name(image) == name(np.asfortranarray(image)) == name(image[::-1].copy()[::-1]) == first
    for place in ((0, 0, 0), (1, 512, 3), (2, 1023, 699)):
        other[place] += 1
        assert name(other) != first
        other[place] = image[place]
    pieces = image.reshape(-1)[: 4 * 2**19].reshape(4, 2048, 256)
    assert len({name(pieces), name(pieces[[1, 0, 2, 3]]), name(pieces[:3]), name(pieces.view("i4"))}) == 4
