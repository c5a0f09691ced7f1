"""Every storage unit is written whole, once, by one task; what does not fit is refused before it runs."""

import threading
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.sampling import share
from tilework.graph.build import plan_of

IMAGE = np.arange(96 * 80, dtype=np.float32).reshape(96, 80)


def double(crop):
    return crop * 2


def mapped(fn=double, image=IMAGE, crop=24, overlap=4, **options):
    return tw.tiled_map(fn, image, crop, overlap, **({"dtype": "float32"} | options))


@pytest.fixture
def writes(monkeypatch):
    """Count writes per storage key."""
    counts, lock = Counter(), threading.Lock()
    original = zarr.storage.MemoryStore.set

    async def counted(self, key, value, *args, **kwargs):
        if not key.endswith("zarr.json") and ".tilework" not in key:
            with lock:
                counts[key] += 1
        return await original(self, key, value, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.MemoryStore, "set", counted)
    return counts


@settings(max_examples=share(25))
@given(data=st.data())
def test_i1_random_units_are_written_once_and_right(data, writes):
    """Any chunks and shards, crop and overlap, on eight threads."""
    writes.clear()
    overlap = data.draw(st.integers(0, 6))
    crop = data.draw(st.integers(2 * overlap + 8, 40))
    chunks = tuple(data.draw(st.integers(5, 40)) for _ in range(2))
    times = data.draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shards = None if times is None else tuple(c * t for c, t in zip(chunks, times, strict=True))
    blend = data.draw(st.sampled_from(["trim", "gaussian"])) if overlap else "trim"
    out = mapped(crop=crop, overlap=overlap, blend=blend)
    store = zarr.storage.MemoryStore()
    with dask.config.set(scheduler="threads", num_workers=8):
        got = tw.to_zarr(out, store, chunks=chunks, shards=shards, progress=False)
    assert got.chunks == chunks
    np.testing.assert_allclose(got[:], IMAGE * 2, rtol=1e-6)
    unit = shards or chunks
    assert len(writes) == np.prod([-(-n // u) for n, u in zip(IMAGE.shape, unit, strict=True)])
    assert set(writes.values()) == {1}


def test_source_chunks_are_the_default_where_they_divide_the_blocks(tmp_path):
    source = zarr.create_array(str(tmp_path / "a.zarr"), data=IMAGE, chunks=(16, 16))
    got = tw.to_zarr(mapped(image=source), str(tmp_path / "b.zarr"), progress=False)
    assert got.chunks == (16, 16)
    np.testing.assert_array_equal(got[:], IMAGE * 2)


def test_given_array_is_planned_for(tmp_path):
    """Blocks that do not fit an existing array are planned anew, and the array keeps its layout."""
    target = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=IMAGE.shape, chunks=(7, 9), shards=(35, 27), dtype="f4"
    )
    out = mapped(chunks=24)
    got = tw.to_zarr(out, target, progress=False)
    assert (got.chunks, got.shards) == ((7, 9), (35, 27))
    np.testing.assert_array_equal(target[:], IMAGE * 2)


def test_given_array_of_another_shape_or_dtype_is_refused(tmp_path):
    target = zarr.create_array(str(tmp_path / "a.zarr"), shape=(96, 81), chunks=(8, 8), dtype="f4")
    with pytest.raises(tw.TilingError, match=r"\(96, 81\).*\(96, 80\)"):
        tw.to_zarr(mapped(), target)


@pytest.mark.parametrize("kind", ["numpy", "memmap", "h5py"])
def test_other_arrays_are_written_into(kind, tmp_path):
    if kind == "numpy":
        target = np.full_like(IMAGE, np.nan)
    elif kind == "memmap":
        target = np.memmap(tmp_path / "a", np.float32, "w+", shape=IMAGE.shape)
    else:
        h5py = pytest.importorskip("h5py")
        target = h5py.File(tmp_path / "a.h5", "w").create_dataset("a", IMAGE.shape, "f4", chunks=(16, 16))
    with dask.config.set(scheduler="threads"):
        assert tw.to_zarr(mapped(blend="hann"), target, progress=False) is target
    np.testing.assert_allclose(target[:], IMAGE * 2, rtol=1e-6)


def test_array_that_is_read_is_never_written(tmp_path):
    source = zarr.create_array(str(tmp_path / "g" / "a.zarr"), data=IMAGE, chunks=(16, 16))
    for store in (source, str(tmp_path / "g" / "a.zarr"), str(tmp_path / "g")):
        with pytest.raises(tw.TilingError, match="holds the array that is read"):
            tw.to_zarr(mapped(image=source), store, overwrite=True)
    image = IMAGE.copy()
    with pytest.raises(tw.TilingError, match="the one that is read"):
        tw.to_zarr(mapped(image=image), image)
    np.testing.assert_array_equal(source[:], IMAGE)


def test_existing_data_need_overwrite(tmp_path):
    path = str(tmp_path / "a.zarr")
    tw.to_zarr(mapped(), path, progress=False)
    with pytest.raises(tw.TilingError, match=r"changed: fn.*overwrite=True"):
        tw.to_zarr(mapped(np.negative), path, progress=False)
    with pytest.raises(tw.TilingError, match="overwrite=True deletes it, resume=True goes on"):
        tw.to_zarr(mapped(), path, progress=False, resume=False)
    again = tw.to_zarr(mapped(np.negative), path, overwrite=True, progress=False)
    np.testing.assert_array_equal(again[:], -IMAGE)


def several(crop):
    return {
        "same": crop,
        "large": np.repeat(np.repeat(crop, 2, 0), 2, 1),
        "small": crop[::4, ::4],
        "cls": crop[None] > 9,
    }


def test_several_outputs_are_written_in_one_pass(counting, tmp_path):
    """Own scale, channels and blend each; the function runs once per tile."""
    counted = counting(several)
    output = {
        "same": tw.Output("float32", blend="gaussian"),
        "large": tw.Output("float32", scale=2),
        "small": tw.Output("float32", scale=Fraction(1, 4)),
        "cls": tw.Output(bool, channels=1),
    }
    out = tw.tiled_map(counted, IMAGE, 24, 4, output=output)
    chunks = {"same": (10, 12), "large": (32, 20), "small": (6, 4), "cls": (1, 48, 16)}
    group = tw.to_zarr(out, str(tmp_path / "g.zarr"), chunks=chunks, progress=False)
    assert counted.calls == len(plan_of(out["same"]))
    assert {key: group[key].chunks for key in chunks} == chunks
    want = several(IMAGE)
    for key, value in want.items():
        np.testing.assert_allclose(group[key][:], value, rtol=1e-6)


def test_members_of_different_calls_are_refused(tmp_path):
    with pytest.raises(tw.TilingError, match="one tiled_map"):
        tw.to_zarr((mapped(), mapped(np.negative)), str(tmp_path / "g.zarr"))


def test_each_axis_and_channels(tmp_path):
    image = np.arange(3 * 2 * 40 * 40, dtype=np.float32).reshape(3, 2, 40, 40)
    out = tw.tiled_map(double, image, (16, 16), 2, each=0, dtype="float32")
    got = tw.to_zarr(out, str(tmp_path / "a.zarr"), chunks=(2, 1, 11, 13), progress=False)
    np.testing.assert_array_equal(got[:], image * 2)


def test_any_other_dask_array_is_written_as_it_stands(tmp_path):
    out = mapped(chunks=24) > 50
    got = tw.to_zarr(out, str(tmp_path / "a.zarr"), progress=False)
    np.testing.assert_array_equal(got[:], IMAGE * 2 > 50)
    with pytest.raises(tw.AlignmentError, match=r"chunks of 24, 24, .* and units of 10 samples on axis 0"):
        tw.to_zarr(out, str(tmp_path / "b.zarr"), chunks=(10, 12))
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("blend", ["trim", "linear"])
def test_same_bits_on_every_scheduler(blend, scheduler, tmp_path):
    got = tw.to_zarr(mapped(blend=blend), str(tmp_path / "a.zarr"), chunks=(20, 20), progress=False)
    with dask.config.set(scheduler="sync"):
        want = tw.to_zarr(mapped(blend=blend), str(tmp_path / "b.zarr"), chunks=(20, 20), progress=False)
    np.testing.assert_array_equal(got[:], want[:])


@pytest.mark.distributed
def test_same_bits_on_a_cluster(client, tmp_path):
    with dask.config.set(scheduler=None):
        got = tw.to_zarr(mapped(blend="linear"), str(tmp_path / "a.zarr"), chunks=(20, 20), progress=False)
    np.testing.assert_allclose(got[:], IMAGE * 2, rtol=1e-6)


@pytest.mark.parametrize(("slabs", "most"), [(0, 9 + 3 + 2), (1, 3 + 2), (2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_volume_waits_for_seams_in_raster_order(slabs, most, masked):
    """In three dimensions the seams that wait do not grow with the slowest axis, and are few in a slab."""
    from dask.callbacks import Callback

    from tilework.execution.local import run
    from tilework.execution.where import Where
    from tilework.graph.build import find_spec
    from tilework.writing.closing import Destination
    from tilework.writing.jobs import TileJob

    def most_seams(length):
        image = np.zeros((length, 48, 48), np.float32)
        tiling = {"stride": 4, "blend": "hann", "chunks": 16, "edge": "squeeze", "reuse": "share"}
        out = tw.tiled_map(np.negative, image, 8, dtype="float32", **tiling)
        spec = find_spec(out).spec
        plan = spec.plan.with_blocks(spec.plan.block, "share", (), slabs)
        if masked:
            # As in a run that resumes: two blocks of each kind of place are finished.
            runs = np.ones(plan.grid_shape, bool)
            runs[:2, :6], runs[-4:, -4:] = False, False
            plan = plan.with_runs(runs)
        job = TileJob("", "waits", replace(spec, plan=plan), {0: Destination(np.empty(image.shape, "f4"))})
        waiting = []

        class Count(Callback):
            def _posttask(self, key, result, dsk, state, worker_id):
                waiting.append(sum("-seam" in k[0] for k in state["cache"] if isinstance(k, tuple)))

        with Count():
            run([job], Where.find("synchronous"), progress=False, title="")
        return max(waiting)

    assert most_seams(64) == most_seams(192) <= most


@pytest.mark.parametrize(
    ("shape", "block", "most"),
    [((48, 48, 48), 16, 1), ((96, 40, 40), 20, 1.1), ((32, 32, 32), 16, 1.5), ((20, 20, 20, 20), 12, 1.9)],
    ids=str,
)
def test_seams_that_wait_are_counted_in_samples(shape, block, most):
    """The last blocks have none along an axis: two blocks per axis were counted up to four times."""
    from dask.callbacks import Callback

    from tilework.execution.local import run
    from tilework.execution.where import Where
    from tilework.graph.build import find_spec
    from tilework.plan.memory import seam_bytes
    from tilework.writing.closing import Destination
    from tilework.writing.jobs import TileJob

    tiling = {"stride": 4, "blend": "hann", "chunks": block, "edge": "squeeze", "reuse": "share"}
    out = tw.tiled_map(np.negative, np.zeros(shape, "f4"), 8, dtype="float32", **tiling)
    spec, waiting = find_spec(out).spec, []

    class Count(Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            seams = [v for k, v in state["cache"].items() if isinstance(k, tuple) and "-seam" in k[0]]
            waiting.append(sum(part.nbytes for part in arrays_of(seams)))

    with Count():
        job = TileJob("", "waits", spec, {0: Destination(np.empty(shape, "f4"))})
        run([job], Where.find("synchronous"), progress=False, title="")
    assert max(waiting) <= seam_bytes(spec.plan) <= most * max(waiting)


def arrays_of(value):
    """Yield the arrays in lists, mappings and dataclasses."""
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        yield from arrays_of([getattr(value, f.name) for f in fields(value)])
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from arrays_of(one)


def test_progress_counts_tiles(tmp_path, capsys):
    tw.to_zarr(mapped(), str(tmp_path / "a.zarr"), progress=True)
    n = len(plan_of(mapped()))
    assert f"{n}/{n}" in capsys.readouterr().err
    tw.to_zarr(mapped(), str(tmp_path / "b.zarr"), progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("shards", [None, 32])
@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_same_bytes_with_the_fused_pipeline_of_zarr(blend, shards, tmp_path):
    """An option of newer versions of zarr; the samples and the files do not depend on it."""
    both = ("BatchedCodecPipeline", "FusedCodecPipeline")
    there = [name for name in both if hasattr(zarr.core.codec_pipeline, name)]
    image = np.random.default_rng(0).random((96, 80)).astype("f4")
    source = zarr.create_array(
        tmp_path / "in.zarr", data=image, chunks=(16, 16), shards=(shards and (32, 32))
    )
    files = []
    for name in there:
        with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{name}"}):
            read = zarr.open_array(source.store_path, mode="r")
            out = tw.tiled_map(np.sqrt, read, 24, 4, blend=blend, dtype="f4")
            got = tw.to_zarr(out, tmp_path / name, chunks=16, shards=shards, progress=False)
            assert type(got.async_array.codec_pipeline).__name__ == name
            if blend == "trim":
                np.testing.assert_array_equal(got[...], np.sqrt(image))
        paths = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        files.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in paths})
    assert len(files[0]) > 6
    assert all(found == files[0] for found in files)
