"""`compute`: results in memory, made in place; and what a block is made of when a task runs again."""

import itertools
import pickle
from dataclasses import replace

import dask
import dask.array as da
import dask.bag
import h5py
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.engine.block import cut_seams, gather_owned, gather_seams, make_block
from tilework.engine.spec import Needs
from tilework.execution.local import run
from tilework.execution.where import Where
from tilework.graph.build import find_spec
from tilework.writing.closing import Destination
from tilework.writing.finishing import BlockWriter
from tilework.writing.jobs import TileJob

IMAGE = np.random.default_rng(0).random((61, 75), np.float32) - 0.5
TILING = {"crop": 16, "stride": 8, "chunks": 32}
LAYOUTS = {
    "gaussian": {"blend": "gaussian", "dtype": "float32"},
    "double": {"blend": "average", "dtype": "float64"},
    "rounded": {"blend": "gaussian", "dtype": "int16"},
    "largest": {"blend": "max", "dtype": "float32"},
    "sum": {"blend": "sum", "dtype": "float32"},
    "trim": {"blend": "trim", "dtype": "float32"},
    "clip": {"blend": "linear", "dtype": "float32", "edge": "clip"},
    "mask": {"blend": "gaussian", "dtype": "float32", "mask": np.eye(61, 75, dtype=bool), "fill_value": 7},
    "skip": {"blend": "trim", "dtype": "float32", "skip": lambda crop: crop[0, 0] > 0.2, "fill_value": 7},
    "alone": {"blend": "gaussian", "dtype": "float32", "reuse": "recompute"},
    "class": {"blend": "average", "output": tw.Output(channels=3, channel_axis=0, reduce="argmax")},
}


def scaled(crop):
    return crop * 100


def scores(crop):
    return np.stack([crop, -crop, crop * 0 + 0.1])


def result(name, **options):
    fn = scores if name == "class" else scaled
    return tw.tiled_map(fn, IMAGE, **TILING | LAYOUTS[name] | options)


def same(one, other):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(*(np.ascontiguousarray(array).view("u1") for array in (one, other)))


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_bits_are_those_of_dask(name, scheduler):
    out = result(name)
    same(tw.compute(out, scheduler=scheduler), out.compute(scheduler="sync"))


PLACES = {
    "numpy": lambda shape, path: np.full(shape, np.nan, "f4"),
    "fortran": lambda shape, path: np.full(shape, np.nan, "f4", order="F"),
    "part": lambda shape, path: np.full((2, *(2 * n for n in shape)), np.nan, "f4")[1, ::2, ::-2],
    "memmap": lambda shape, path: np.memmap(path / "raw", "f4", "w+", shape=shape),
    "masked": lambda shape, path: np.ma.masked_all(shape, "f4"),
    "h5py": lambda shape, path: h5py.File(path / "h5", "w").create_dataset("x", shape, "f4", chunks=(32, 32)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["gaussian", "trim", "mask"])
def test_an_array_of_any_kind_is_filled(name, place, tmp_path):
    out = result(name)
    into = PLACES[place](out.shape, tmp_path)
    assert tw.compute(out, into=into) is into
    if place == "masked":
        assert not np.ma.getmaskarray(into).any()
    same(np.asarray(into[...]), out.compute())


def test_a_block_is_made_in_its_place(monkeypatch):
    """There is no second copy of a block, except of one in which no tile starts: it is made of seams."""
    made, into = {}, np.empty(IMAGE.shape, np.float32)
    write = BlockWriter.__call__

    def seen(self, spec, index, assembled):
        made[index] = np.shares_memory(assembled.block, into)
        return write(self, spec, index, assembled)

    monkeypatch.setattr(BlockWriter, "__call__", seen)
    for name in ("gaussian", "trim", "alone"):
        made.clear()
        out = result(name)
        tw.compute(out, into=into, scheduler="sync")
        plan = find_spec(out).spec.plan
        assert made == {b: plan.owned(b) > 0 for b in np.ndindex(*plan.blocks)}


def both(crop):
    return {"a": crop, "b": -crop[None]}


def pair(crop):
    return crop, -crop


def test_all_results_of_a_call_run_it_once():
    calls = []

    def counted(crop):
        calls.append(1)
        return pair(crop)

    out = tw.tiled_map(
        counted, IMAGE, **TILING, blend="gaussian", output=(tw.Output("f4"), tw.Output("f8", blend="max"))
    )
    into = (np.empty(IMAGE.shape, "f4"), np.empty(IMAGE.shape, "f8"))
    assert tw.compute(out, into=into, scheduler="sync") is into
    assert len(calls) == 63
    for array, lazy in zip(into, out, strict=True):
        same(array, lazy.compute())
    found = tw.compute(out)
    assert isinstance(found, tuple)
    same(found[1], into[1])
    named = tw.tiled_map(both, IMAGE, **TILING, blend="gaussian", dtype=None)
    found = tw.compute(named)
    assert list(found) == ["a", "b"]
    same(found["b"], named["b"].compute())


def test_any_other_dask_array_is_computed():
    out = (result("gaussian") > 0)[3:, ::2]
    same(tw.compute(out), out.compute())


@pytest.mark.parametrize(
    ("into", "error", "message"),
    [
        (np.empty((61, 74), "f4"), tw.TilingError, "shape"),
        (np.empty((61, 75), "f8"), tw.TilingError, "float64"),
        (np.broadcast_to(np.float32(0), (61, 75)), tw.TilingError, "read-only"),
        (IMAGE, tw.TilingError, "the one that is read"),
        (da.zeros((61, 75), dtype="f4"), TypeError, "holds data"),
        ([[1]], TypeError, "one array"),
        (3, TypeError, "holds data"),
        (zarr.create_array({}, shape=(61, 75), dtype="f4"), tw.TilingError, "to_zarr"),
    ],
)
def test_what_cannot_be_filled_is_refused(into, error, message):
    with pytest.raises(error, match=message):
        tw.compute(result("gaussian"), into=into)


def test_members_of_into_are_those_of_out():
    out = tw.tiled_map(pair, IMAGE, **TILING, output=(tw.Output("f4"), tw.Output("f4")))
    one = np.empty(IMAGE.shape, "f4")
    with pytest.raises(tw.TilingError, match="share memory"):
        tw.compute(out, into=(one, one[:]))
    with pytest.raises(tw.TilingError, match="members"):
        tw.compute(out, into=(one,))
    with pytest.raises(TypeError, match="tuple or dict of 2"):
        tw.compute(out, into=one)
    woven = np.empty((*IMAGE.shape, 2), "f4")
    tw.compute(out, into=(woven[..., 0], woven[..., 1]))
    np.testing.assert_array_equal(woven[..., 0], -woven[..., 1])
    with pytest.raises(TypeError, match="out must be"):
        tw.compute(np.zeros(3))


def test_processes_cannot_reach_an_array():
    with pytest.raises(tw.TilingError, match="'processes'"):
        tw.compute(result("gaussian"), scheduler="processes")


def test_slabs_leave_what_others_have_finished():
    """Tiles across the face of a slab run again in it; their own block is finished, in its place."""
    volume = np.random.default_rng(1).random((32, 24, 20), np.float32)
    tiling = {"crop": 8, "stride": 4, "blend": "gaussian", "dtype": "f4", "chunks": 8, "reuse": "share"}
    out = tw.tiled_map(scaled, volume, **tiling)
    spec = find_spec(out).spec
    plan = spec.plan.with_blocks(spec.plan.block, "share", (), 1)
    result = np.full(volume.shape, np.nan, "f4")
    job = TileJob("", "slabs", replace(spec, plan=plan), {0: Destination(result)}, retries=0)
    run([job], Where.find("sync"), progress=False, title="")
    assert plan.calls() > len(plan)
    same(result, out.compute())


class Breaks:
    """Raises at its first calls."""

    def __init__(self, times):
        self.left = times

    def __call__(self, crop):
        if self.left:
            self.left -= 1
            raise OSError("busy")
        return crop * 100

    def __dask_tokenize__(self):
        return "breaks"


@pytest.mark.parametrize("what", ["fn", "reduce"])
def test_a_task_that_runs_again_adds_nothing_twice(what, monkeypatch):
    """The seams of a block are added to its own sums, which a further attempt at the task finds there."""
    monkeypatch.setattr("tilework.engine.reading.FIRST_WAIT", 0.0)
    broken = Breaks(0)
    out = tw.tiled_map(
        broken if what == "fn" else scaled, IMAGE, **TILING, blend="gaussian",
        output=tw.Output("f4", reduce=broken if what == "reduce" else None),
    )  # fmt: skip
    expected = out.compute(scheduler="sync")
    broken.left = 3
    same(tw.compute(out, retries=3, scheduler="sync"), expected)
    assert not broken.left


def test_a_group_travels_and_may_be_merged_twice():
    """As on a cluster, where the tasks of a block run in several processes, or by dask's cache of tasks."""
    out = result("gaussian")
    spec = find_spec(out).spec
    expected, groups, seams = out.compute(), {}, {}
    for index in itertools.product(*map(range, spec.plan.blocks)):
        groups[index] = pickle.loads(
            pickle.dumps(gather_owned(spec, index, Needs(spec).of(index, owned=True)))
        )
        seams[index] = cut_seams(spec, index, spec.plan.neighbours.later(index), groups[index])
        seams[index] = pickle.loads(pickle.dumps(seams[index]))
        # A seam travels without the rest of its canvas.
        for step, seam in seams[index].items():
            [box] = spec.boxes(tuple(b + s for b, s in zip(index, step, strict=True)))
            assert len(pickle.dumps(seam)) < 4 * box.size + 2000
        earlier = spec.plan.neighbours.earlier(index)
        given = groups[index], earlier, [seams[e] for e in earlier]
        for _ in range(2):
            block = make_block(gather_seams, spec, index, *given)
            [box] = spec.boxes(index)
            same(block, np.ascontiguousarray(expected[box.slices]))
            given = pickle.loads(pickle.dumps(given))


def test_a_crop_that_is_kept_stays_as_it_is():
    """Nothing that a function was given, or has returned, is used for anything else."""
    kept = []

    def keeps(crop):
        kept.append((crop, crop.copy()))
        return crop

    with dask.config.set(scheduler="threads", num_workers=2):
        tw.compute(tw.tiled_map(keeps, IMAGE, **TILING, blend="gaussian", dtype="f4"))
    assert len(kept) == 63
    assert all((crop == copy).all() for crop, copy in kept)


def test_what_a_reduction_keeps_stays_as_it_is():
    kept = []

    def keeps(block):
        kept.append((block, block.copy()))
        return -block

    out = tw.tiled_map(scaled, IMAGE, **TILING, blend="gaussian", output=tw.Output("f4", reduce=keeps))
    tw.compute(out)
    assert all((block == copy).all() for block, copy in kept)


def test_a_function_may_compute():
    """In a task, on the same thread, with the same products and scratch memory."""
    inner = tw.tiled_map(scaled, IMAGE, **TILING, blend="gaussian", dtype="f4")
    whole = inner.compute()

    def nested(crop):
        return crop + tw.compute(inner, scheduler="sync")[0, 0]

    out = tw.tiled_map(nested, IMAGE, **TILING, blend="gaussian", dtype="f4")
    np.testing.assert_allclose(tw.compute(out), IMAGE + whole[0, 0], rtol=1e-5)


def test_arrays_in_memory_below_are_not_read_to_tell_results_apart(caplog):
    """Nothing is resumed, and 512 MB took 1.9 s for a slice of 100 x 100."""

    class Image:
        shape, dtype, ndim = (40, 40), np.dtype("f8"), 2

        def __getitem__(self, box):
            return np.ones([s.stop - s.start for s in box])

    class Untold(np.ndarray):
        def __dask_tokenize__(self):
            pytest.fail("the samples are read")

    image = np.ones((40, 40)).view(Untold)
    lazy = da.from_array(image, chunks=10, name="image", asarray=False)
    for out in (lazy[5:15], lazy + 1, tw.tiled_map(np.negative, Image(), 10, 2)[3:20]):
        assert tw.compute(out).shape == out.shape
        assert tw.to_zarr(out, np.empty(out.shape), progress=False).shape == out.shape
    assert not [record for record in caplog.records if "compared" in record.getMessage()]


@pytest.mark.parametrize("into", [False, True])
def test_dask_arrays_that_cannot_be_written_are_refused_with_words(into):
    out = tw.tiled_map(np.copy, np.arange(400.0).reshape(20, 20), 10, 2, chunks=10)
    masked = da.ma.masked_greater(out, 100)
    late = out.map_blocks(lambda block: np.ma.masked_greater(block, 100), meta=np.empty((0, 0)))
    unknown = out[out > 5]
    for array, told in (
        (masked, "the dask array has masked samples.* Fill them"),
        (late, r"block \(0, 0\) of .* has masked samples.* Fill them"),
        (unknown, "unknown chunk sizes"),
    ):
        with dask.config.set(scheduler="sync"), pytest.raises(tw.TilingError, match=told):
            tw.compute(array, np.empty((20, 20)) if into else None)
        with dask.config.set(scheduler="sync"), pytest.raises(tw.TilingError, match=told):
            tw.to_zarr(array, zarr.storage.MemoryStore(), progress=False)
    filled = da.ma.filled(masked, 7)
    np.testing.assert_array_equal(tw.compute(filled), np.where(np.asarray(out) > 100, 7, np.asarray(out)))
    none = out.map_blocks(lambda block: np.ma.masked_greater(block, 1000), meta=np.empty((0, 0)))
    written = tw.to_zarr(none, zarr.storage.MemoryStore(), progress=False)
    np.testing.assert_array_equal(written[...], np.asarray(out))
    np.testing.assert_array_equal(tw.compute(none), np.asarray(out))


@pytest.mark.parametrize("kind", ["delayed", "bag", "data frame", "series"])
def test_what_dask_has_besides_arrays_is_refused_with_words(kind):
    frames = pytest.importorskip("dask.dataframe") if kind in ("data frame", "series") else None
    lazy = da.ones((20, 3), chunks=10)
    value = {
        "delayed": lambda: dask.delayed(np.ones)((20, 20)),
        "bag": lambda: dask.bag.from_sequence([1, 2]),
        "data frame": lambda: frames.from_dask_array(lazy),
        "series": lambda: frames.from_dask_array(lazy)[0],
    }[kind]()
    told = "must be a dask array.*; got .*" + {"data frame": "DataFrame"}.get(kind, kind.title())
    for call in (
        tw.compute,
        lambda it: tw.compute({"a": it}),
        lambda it: tw.to_zarr(it, zarr.storage.MemoryStore(), progress=False),
        lambda it: tw.tiled_map(np.copy, it, 10, 2),
        lambda it: tw.tiled_map(np.copy, it, 10, 2, dtype="f8"),
    ):
        with pytest.raises(TypeError, match=told):
            call(value)
