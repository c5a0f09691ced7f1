"""Label images with only some of their objects, against plain loops."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.sampling import share
from tests.test_measure_labels import in_raster_order, objects_in, sources
from tilework.errors import TilingError
from tilework.objects import measuring
from tilework.writing import filtering


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks of small images small, so that they cut objects."""
    monkeypatch.setattr(measuring, "LEAST_SAMPLES", 1)
    monkeypatch.setattr(measuring, "MOST_SAMPLES", 60)
    monkeypatch.setattr(filtering, "SAMPLES", 50)


def expected(labels, keep):
    """Return the labels whose objects `keep` holds, in new numbers."""
    return in_raster_order(labels * np.isin(labels, keep))


@settings(max_examples=share(30))
@given(st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_objects_that_meet_the_condition_are_numbered_in_raster_order(ndim, seed, data):
    shape = tuple(data.draw(st.integers(1, (60, 15, 8, 5)[ndim - 1])) for _ in range(ndim))
    labels = objects_in(shape, seed, data.draw(st.integers(0, 9)), largest=2**63 - 1)
    dtype = data.draw(st.sampled_from(["int64", "uint64", "uint8"]))
    labels = (labels if dtype != "uint8" else labels % 200).astype(dtype)
    ids, areas = np.unique(labels[labels != 0], return_counts=True)
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = zarr.create_array(zarr.storage.MemoryStore(), data=labels, chunks=chunks)
    out = tw.filter_labels(array, lambda t: t["area"] % 3 != 0, zarr.storage.MemoryStore(), progress=False)
    assert out.dtype == np.uint32
    assert np.array_equal(out[...], expected(labels, ids[areas % 3 != 0]))


@pytest.mark.parametrize("each", [(0,), (1,), (2, 0)], ids=str)
def test_each_index_has_numbers_of_its_own(each, tmp_path):
    labels = objects_in((4, 7, 9), seed=3, largest=12)
    table = tw.measure_labels(labels, each=each, progress=False)
    keep = table["area"] > 2
    out = tw.filter_labels(labels, keep, tmp_path / "a.zarr", table=table, each=each, progress=False)
    moved = labels.transpose(*sorted(each), *(a for a in range(3) if a not in each))
    index = np.stack([table[f"axis_{a}"] for a in sorted(each)], 1)
    for at in np.ndindex(*moved.shape[: len(each)]):
        kept = table["label"][keep & (index == at).all(1)]
        assert np.array_equal(out[at], expected(moved[at], kept))


def test_meta_names_the_axes_of_each():
    labels, meta = objects_in((4, 7, 9), seed=3, largest=12), tw.ImageMeta("ytx")

    def keep(table):
        return table["area"] > 2

    expected = tw.filter_labels(labels, keep, each=1, progress=False)
    found = tw.filter_labels(labels, keep, each="t", meta=meta, progress=False)
    assert np.array_equal(found, expected)
    with pytest.raises(TilingError, match="meta has 2 axes"):
        tw.filter_labels(labels, keep, each=1, meta=tw.ImageMeta("yx"), progress=False)


@pytest.mark.parametrize("kind", ["path", "zarr", "lazy", "numpy"])
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
@pytest.mark.sample(0, whole=4)
def test_all_sources_and_a_table_of_a_file(tmp_path, kind, scheduler):
    labels = objects_in((30, 40), largest=2**40)
    source = sources(tmp_path, labels)[kind]
    tw.measure_labels(labels, table=tmp_path / "cells.csv", progress=False)
    table = tw.Table.read(tmp_path / "cells.csv")
    out = tw.filter_labels(
        source, lambda t: t["area"] > 20, str(tmp_path / "large.zarr"), table=table, chunks=(10, 20),
        scheduler=scheduler, progress=False,
    )  # fmt: skip
    assert np.array_equal(out[...], expected(labels, table["label"][table["area"] > 20]))
    assert out.chunks == (10, 20)


def test_a_cluster_writes_the_same(tmp_path):
    from distributed import Client, LocalCluster

    labels = objects_in((30, 40), largest=2**40)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        out = tw.filter_labels(
            labels, lambda t: t["axis_major_length"] > 30, str(tmp_path / "a.zarr"),
            properties="axis_major_length",
            spacing=(2, 0.5), client=client, progress=False,
        )  # fmt: skip
    table = tw.measure_labels(labels, properties="axis_major_length", spacing=(2, 0.5), progress=False)
    kept = table["label"][table["axis_major_length"] > 30]
    assert 0 < len(kept) < len(table)
    assert np.array_equal(out[...], expected(labels, kept))


def test_it_goes_on_and_another_condition_is_another_result(tmp_path):
    labels, store = objects_in((30, 40)), str(tmp_path / "a.zarr")
    tw.filter_labels(labels, lambda t: t["area"] > 20, store, progress=False)
    done = []
    tw.filter_labels(labels, lambda t: t["area"] > 20, store, progress=lambda n, total: done.append(total))
    assert done[-1] == 0
    assert len({n for n in np.unique(labels) if 20 < (labels == n).sum() <= 90})
    with pytest.raises(TilingError, match="version"):
        tw.filter_labels(labels, lambda t: t["area"] > 90, store, progress=False)
    given = {"version": "1", "overwrite": True, "progress": False}
    tw.filter_labels(labels, lambda t: t["area"] > 90, store, **given)
    with pytest.raises(TilingError, match="version"):
        tw.filter_labels(labels, lambda t: t["area"] > 90, store, version="2", progress=False)


@pytest.mark.parametrize("made", ["tiled_map", "map_blocks"])
def test_functions_from_whose_results_labels_are_computed_are_compared(made, tmp_path):
    labels = objects_in((32, 48))

    def filtered(by, **options):
        def step(crop):
            return crop + 0 * by

        if made == "tiled_map":
            below = tw.tiled_map(step, labels, 16, 0, dtype="i8", name="step")
        else:
            below = da.from_array(labels, chunks=16).map_blocks(step, dtype="i8", name="step")
        store = tmp_path / "a.zarr"
        tw.filter_labels(below, lambda t: t["area"] > 0, store, progress=False, **options)
        return zarr.open_array(store)

    record = filtered(1).attrs["tilework"]
    assert filtered(1).attrs["tilework"] == record
    # As stores of before have it.
    assert record["fingerprint"]["version"].startswith("objects ")
    assert not any(name.startswith("fn") for name in record["fingerprint"])
    with pytest.raises(TilingError, match=r"below.*closure value by: 1 -> 2"):
        filtered(2)
    kept = {name: value for name, value in record["fingerprint"].items() if " below" not in name}
    filtered(1).attrs["tilework"] = {**record, "fingerprint": kept}
    assert filtered(1).attrs["tilework"] == record
    record = filtered(1, version="1", overwrite=True).attrs["tilework"]
    assert record["fingerprint"]["version"].endswith(", 1")
    assert filtered(2, version="1").attrs["tilework"] == record


def test_labels_of_an_image_keep_their_place_and_levels(tmp_path):
    labels = objects_in((32, 48)).astype("u4")
    meta = tw.ImageMeta("yx", units="micrometer", scale=(0.5, 0.25))
    image = tw.tiled_map(np.float32, labels, 16, 0, dtype="f4", meta=meta)
    tw.to_zarr(image, str(tmp_path / "i.ome.zarr"), ome=True, chunks=(8, 8), progress=False)
    for options in ({"label_name": "large"}, {"ome": True}):
        place = tmp_path / ("i.ome.zarr" if "label_name" in options else "l.ome.zarr")
        out = tw.filter_labels(
            labels, lambda t: t["area_world"] > 2, str(place), meta=meta, chunks=(8, 8), progress=False,
            **options,
        )  # fmt: skip
        found = tw.open_image(str(place), label=options.get("label_name"))
        assert found.meta.scale == (0.5, 0.25)
        assert len(found.levels) > 1
        assert (found.at(1).source.handle[...] == out[::2, ::2]).all()


def test_what_does_not_fit_is_refused(tmp_path):
    labels, store = objects_in((30, 40)), zarr.storage.MemoryStore()
    table = tw.measure_labels(labels, progress=False)
    with pytest.raises(TilingError, match="which the table does not"):
        tw.filter_labels(labels, lambda t: t["area"] > 0, store, table=table[1:], progress=False)
    with pytest.raises(TilingError, match="one bool"):
        tw.filter_labels(labels, [True], store, table=table, progress=False)
    with pytest.raises(TilingError, match="no columns"):
        tw.filter_labels(labels, [True], store, table={"area": [3]}, progress=False)
    with pytest.raises(TypeError, match="dict of columns"):
        tw.filter_labels(labels, [True], store, table=[3], progress=False)
    with pytest.raises(TilingError, match="chunk"):
        tw.filter_labels(
            labels, table["area"] > 0, store, table=table, chunk=3, overwrite=True, progress=False
        )


def test_a_table_may_come_from_pandas(tmp_path):
    labels = objects_in((40, 50), seed=4)
    table = tw.measure_labels(labels, table=tmp_path / "cells.csv", progress=False)
    frame = pd.read_csv(tmp_path / "cells.csv")
    large = table["area"] > np.median(table["area"])
    want = tw.filter_labels(labels, large, tmp_path / "a.zarr", table=table, progress=False)
    for number, condition in enumerate((frame["area"] > frame["area"].median(), large)):
        found = tw.filter_labels(labels, condition, tmp_path / f"{number}.zarr", table=frame, progress=False)
        np.testing.assert_array_equal(found[:], want[:])
    with pytest.raises(TilingError, match="Of numbers of rows"):
        tw.filter_labels(labels, np.flatnonzero(large), tmp_path / "b.zarr", table=frame, progress=False)
