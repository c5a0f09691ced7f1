"""Tables of objects against scikit-image on the whole image, whatever the blocks, and their files."""

import itertools
import math
import pickle

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops_table

import tilework as tw
from tests.sampling import share
from tilework.errors import ContractError, GridError, MemoryBudgetError, TilingError
from tilework.objects import measuring
from tilework.objects.boxes import blocks_of, cuts_of, groups_of
from tilework.objects.choosing import Numbers, kept_rows
from tilework.objects.table import Table
from tilework.source.opening import open_source

SHAPES = (
    "area_convex", "area_filled", "axis_major_length", "axis_minor_length", "equivalent_diameter_area",
    "euler_number", "extent", "inertia_tensor", "inertia_tensor_eigvals", "moments", "moments_central",
    "moments_normalized", "solidity", "num_pixels", "area_bbox", "centroid_local",
)  # fmt: skip
PLANAR = ("eccentricity", "moments_hu", "orientation", "perimeter", "perimeter_crofton", "feret_diameter_max")
VALUES = (
    "intensity_max", "intensity_mean", "intensity_min", "intensity_std", "moments_weighted",
    "centroid_weighted", "centroid_weighted_local",
)  # fmt: skip
BASE = ("label", "bbox", "area", "centroid")
# Of objects that are flat, by scikit-image.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Failed to get convex hull:UserWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks of small images small, so that they cut objects."""
    monkeypatch.setattr(measuring, "LEAST_SAMPLES", 1)
    monkeypatch.setattr(measuring, "MOST_SAMPLES", 60)


def objects_in(shape, seed=0, count=12, largest=10**10):
    """Return concave, touching, ring-shaped and disconnected objects, under ids of any size."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int64)
    for _ in range(count):
        centre = [rng.uniform(0, n) for n in shape]
        radii = [rng.uniform(1, max(1.5, n / 2)) for n in shape]
        grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        away = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True))
        shaped = (away < 1) & (away > rng.choice([-1, 0.4])) & (rng.random(shape) > rng.choice([0, 0.3]))
        labels[shaped] = rng.integers(1, largest)
    return labels


def oracle(labels, intensity=None, properties=(), **options):
    """Return what scikit-image finds of the whole image, whose ids it needs to be small."""
    ids, numbered = np.unique(labels, return_inverse=True)
    ids, numbered = (ids[1:], numbered) if len(ids) and ids[0] == 0 else (ids, numbered + 1)
    numbered = numbered.reshape(labels.shape)
    found = regionprops_table(numbered, intensity, properties=(*BASE, *properties), **options)
    found["label"] = ids
    place = [np.flatnonzero(labels.ravel() == i)[0] for i in ids]
    return found | {"first": np.array(place, np.int64)}


def same(table, expected):
    assert set(expected) <= set(table)
    for name, column in expected.items():
        np.testing.assert_array_equal(np.nan_to_num(table[name]), np.nan_to_num(column), err_msg=name)


@pytest.mark.parametrize("shape", [(23, 31), (9, 13, 11)], ids=str)
def test_every_property_is_that_of_the_whole_image_to_the_bit(shape):
    labels = objects_in(shape, seed=len(shape))
    names = (*SHAPES, *VALUES, *(PLANAR if len(shape) == 2 else ()))
    for dtype in ("uint8", "int32", "float32", "bool", ">u2", ">f8"):
        image = (np.random.default_rng(1).random(shape) * 200).astype(dtype)
        table = tw.measure_labels(labels, image, names, progress=False)
        same(table, oracle(labels, image, names))
        assert list(table)[-1].startswith(names[-1])
        assert table["area"].sum() == np.count_nonzero(labels)


@settings(max_examples=share(30))
@given(st.integers(1, 5), st.integers(0, 10**6), st.data())
def test_objects_of_any_dimension_and_chunks_are_those_of_a_loop(ndim, seed, data):
    shape = tuple(data.draw(st.integers(1, (40, 14, 8, 5, 4)[ndim - 1])) for _ in range(ndim))
    labels = objects_in(shape, seed, data.draw(st.integers(0, 8)))
    dtype = data.draw(st.sampled_from(["uint8", "int16", "uint32", ">i4", "uint64", "int64"]))
    labels = (labels % 200).astype(dtype)
    image = np.random.default_rng(seed).integers(-50, 50, shape)
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    source = data.draw(st.sampled_from([lambda a: a, lambda a: da.from_array(a, chunks=chunks)]))
    table = tw.measure_labels(
        source(labels), source(image.astype("int16")), ("intensity_min", "intensity_mean", "intensity_sum"),
        progress=False,
    )  # fmt: skip
    ids = np.unique(labels[labels != 0])
    assert table["label"].tolist() == ids.tolist()
    assert table["area"].sum() == np.count_nonzero(labels)
    for row, i in enumerate(ids.tolist()):
        places = np.argwhere(labels == i)
        values = image[labels == i]
        got = {name: column[row] for name, column in table.items()}
        assert got["first"] == np.flatnonzero(labels.ravel() == i)[0]
        assert [got[f"bbox-{k}"] for k in range(ndim)] == places.min(0).tolist()
        assert [got[f"bbox-{ndim + k}"] for k in range(ndim)] == (places.max(0) + 1).tolist()
        assert [got[f"centroid-{k}"] for k in range(ndim)] == places.mean(0).tolist()
        assert (got["intensity_min"], got["intensity_sum"]) == (values.min(), values.sum())
        assert got["intensity_mean"] == values.mean()


@pytest.mark.parametrize("each", [(0,), (1,), (3,), (0, 3), (0, 2)], ids=str)
def test_objects_of_each_index_are_those_of_its_image(each):
    labels = objects_in((3, 9, 8, 4), seed=5, largest=9)
    image = np.random.default_rng(0).random(labels.shape)
    own = [a for a in range(4) if a not in each]
    names = ("solidity", "intensity_std", "extent")
    array = da.from_array(labels, chunks=(2, 4, 5, 3))
    table = tw.measure_labels(array, image, names, each=each, progress=False)
    moved, values = (a.transpose(*each, *own) for a in (labels, image))
    index = np.stack([table[f"axis_{a}"] for a in each], 1)
    rows = 0
    for at in np.ndindex(*moved.shape[: len(each)]):
        chosen = (index == at).all(1)
        if moved[at].any():
            same(table[chosen], oracle(moved[at], values[at], names))
        rows += len(np.unique(moved[at][moved[at] != 0]))
    assert len(table) == rows
    assert list(map(tuple, index)) == sorted(map(tuple, index))


def test_images_by_name_and_functions_of_objects():
    labels = objects_in((20, 30), largest=40)
    red, blue = (np.random.default_rng(k).integers(0, 99, labels.shape).astype("u2") for k in (1, 2))

    def width(mask):
        return mask.any(0).sum()

    def ends(mask, values):
        return np.array([values[mask].min(), np.median(values[mask])])

    table = tw.measure_labels(
        labels, {"red": red, "a-red": blue}, [width, "intensity_mean", ends, "extent"], progress=False
    )
    new = [c for c in table if c.partition("-")[0] in ("width", "intensity_mean", "ends", "extent")]
    assert new == [
        "width", "intensity_mean-red", "intensity_mean-a-red", "ends-0-red", "ends-1-red", "ends-0-a-red",
        "ends-1-a-red", "extent",
    ]  # fmt: skip
    for row, i in enumerate(table["label"]):
        assert table["width"][row] == (labels == i).any(0).sum()
        for name, image in (("red", red), ("a-red", blue)):
            assert table[f"intensity_mean-{name}"][row] == image[labels == i].mean()
            assert table[f"ends-1-{name}"][row] == np.median(image[labels == i])


def test_integers_add_up_where_a_box_would_not_fit():
    labels = np.ones((64, 64), np.uint8)
    image = np.full(labels.shape, 65535, np.uint16)
    given = {"memory_limit": 40000, "scheduler": "threads", "progress": False}
    table = tw.measure_labels(labels, image, ("intensity_mean", "intensity_sum"), **given)
    assert (table["intensity_mean"][0], table["intensity_sum"][0]) == (65535, 65535 * 64**2)
    with pytest.raises(MemoryBudgetError, match=r"object 1, 64x64 samples.*memory_limit=\d+"):
        tw.measure_labels(labels, image, "solidity", **given)


@pytest.mark.parametrize("spacing", [(2.0, 0.3, 0.7), "meta"], ids=str)
def test_properties_with_a_spacing_are_those_of_scikit_image(spacing):
    labels = objects_in((9, 13, 11), seed=3)
    image = np.random.default_rng(1).random(labels.shape)
    names = (*SHAPES, *VALUES)
    meta = tw.ImageMeta("zyx", units="um", scale=(2.0, -0.3, 0.7))
    table = tw.measure_labels(labels, image, names, meta=meta, spacing=spacing, progress=False)
    expected = oracle(labels, image, names, spacing=(2.0, 0.3, 0.7))
    for name in [n for n in expected if n.partition("-")[0] in ("area", "centroid")]:
        del expected[name]
    same(table, expected)
    assert table["area"].sum() == np.count_nonzero(labels)
    np.testing.assert_allclose(table["area_world"], np.array(table["area"]) * 0.42)


@pytest.mark.parametrize("shape", [(90,), (3, 5, 6, 5)], ids=str)
def test_values_are_measured_in_any_dimension(shape):
    labels = objects_in(shape, largest=9)
    image = np.random.default_rng(1).random(shape).astype("f4")
    names = ("intensity_mean", "intensity_std", "intensity_sum", "intensity_median")
    table = tw.measure_labels(labels, image, names, progress=False)
    for row, i in enumerate(table["label"]):
        values = image[labels == i]
        assert table["intensity_mean"][row] == values.mean()
        assert table["intensity_std"][row] == values.std()
        assert table["intensity_sum"][row] == values.sum(dtype=float)
        assert table["intensity_median"][row] == np.median(values)


@pytest.mark.parametrize("most", [60, 400, 5000])
def test_small_objects_in_groups_keep_their_own_values(monkeypatch, most):
    monkeypatch.setattr(measuring, "MOST_SAMPLES", most)
    rng = np.random.default_rng(0)
    # Neighbours in the image have ids in no order, which floats cannot tell apart.
    ids = (2**63 - 1 - rng.permutation(400)).astype(np.uint64)
    labels = np.kron(ids.reshape(20, 20), np.ones((3, 4), np.uint64))
    labels[rng.random(labels.shape) < 0.2] = 0
    image = rng.random(labels.shape)
    names = ("intensity_std", "solidity", "centroid_weighted")
    for array in (labels, da.from_array(labels, chunks=(60, 40))):
        same(tw.measure_labels(array, image, names, progress=False), oracle(labels, image, names))


def test_sums_of_wide_integers_do_not_wrap():
    labels = np.ones((8, 8), np.uint8)
    for dtype in ("int64", "uint64", "uint32", "int32"):
        image = np.full(labels.shape, np.iinfo(dtype).max)
        table = tw.measure_labels(labels, image, ("intensity_mean", "intensity_sum"), progress=False)
        assert table["intensity_mean"][0] == image.mean()
        assert table["intensity_sum"][0] == 64 * float(np.iinfo(dtype).max)


def test_infinite_values_and_nan_are_those_of_scikit_image():
    labels = objects_in((20, 20), largest=6)
    image = np.random.default_rng(0).random(labels.shape).astype("f4")
    image.ravel()[::17] = np.nan
    image.ravel()[5::31] = np.inf
    names = ("intensity_min", "intensity_max", "intensity_mean")
    with np.errstate(invalid="ignore"):
        same(tw.measure_labels(labels, image, names, progress=False), oracle(labels, image, names))


# -- sources and schedulers -------------------------------------------------------------------------------


def sources(tmp_path, labels):
    path = str(tmp_path / "labels.zarr")
    zarr.create_array(path, data=labels, chunks=(7, 9), shards=(14, 18))
    lazy = tw.tiled_map(lambda x: x + 0, labels, crop=8, overlap=1, dtype=labels.dtype)
    return {"path": path, "zarr": zarr.open_array(path, mode="r"), "lazy": lazy, "numpy": labels}


@pytest.mark.parametrize("kind", ["path", "zarr", "lazy", "numpy"])
@pytest.mark.parametrize("scheduler", ["threads", "processes", "sync", "cluster"])
@pytest.mark.sample(2, whole=8)
def test_all_sources_on_all_schedulers(tmp_path, kind, scheduler, request):
    labels = objects_in((30, 40), largest=2**40)
    image = np.random.default_rng(0).random(labels.shape)
    source = sources(tmp_path, labels)[kind]
    given = {"scheduler": scheduler}
    if scheduler == "cluster":
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
        client = Client(cluster)
        request.addfinalizer(cluster.close)
        request.addfinalizer(client.close)
        given = {"client": client}
    done = []
    table = tw.measure_labels(
        source, image, "intensity_std", progress=lambda n, total: done.append((n, total)), **given
    )
    same(table, oracle(labels, image, ("intensity_std",)))
    assert done[-1][0] == done[-1][1]


def test_what_the_labels_mean_is_in_world_units(tmp_path):
    labels = objects_in((2, 12, 14), largest=9)
    group = zarr.create_group(str(tmp_path / "image.zarr"))
    group.create_array("0", data=labels, chunks=(1, 5, 5))
    axes = [{"name": "t", "type": "time"}] + [
        {"name": n, "type": "space", "unit": "micrometer"} for n in "yx"
    ]
    moves = [{"type": "scale", "scale": [1, 0.5, 0.25]}, {"type": "translation", "translation": [0, 10, -3]}]
    levels = [{"path": "0", "coordinateTransformations": moves}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    image = tw.open_image(group)
    table = tw.measure_labels(image, each="t", progress=False)
    assert list(table)[:2] == ["t", "label"]
    np.testing.assert_allclose(table["centroid_world-y"], 10 + table["centroid-0"] * 0.5)
    np.testing.assert_allclose(table["bbox_world-x-min"], -3 + (table["bbox-1"] - 0.5) * 0.25)
    np.testing.assert_allclose(table["bbox_world-x-max"], -3 + (table["bbox-3"] - 0.5) * 0.25)
    np.testing.assert_allclose(table["area_world"], table["area"] * 0.125)
    assert table.units["area_world"] == "micrometer^2"
    assert table.units["centroid_world-y"] == "micrometer"
    flipped = tw.ImageMeta("tyx", scale=(1, -1, 2))
    table = tw.measure_labels(labels, each="t", meta=flipped, progress=False)
    assert (table["area_world"] == table["area"] * 2).all()
    assert (table["bbox_world-y-max"] - table["bbox_world-y-min"] == table["bbox-2"] - table["bbox-0"]).all()
    assert "area_world" not in tw.measure_labels(labels, meta=tw.ImageMeta("tyx"), progress=False)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (4, 0, 3), (6, 7)], ids=str)
def test_an_image_without_objects_has_all_columns(shape):
    labels = np.zeros(shape, np.uint16)
    for image, names in ((None, ()), (labels.astype(float), ("intensity_mean", "intensity_min"))):
        if len(shape) == 1 and names:
            names = ("intensity_min",)
        table = tw.measure_labels(labels, image, names, progress=False)
        assert len(table) == 0
        assert {"label", "area", "first", *names} <= set(table)
        assert all(len(column) == 0 for column in table.values())


# -- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (np.zeros((4, 4)), ContractError, "float64"),
        (np.zeros((4, 4), bool), ContractError, r"ndimage\.label"),
        (np.full((4, 4), -3), ContractError, "-3"),
        (np.full((4, 4), 2**63, np.uint64), ContractError, r"2\*\*63"),
        (np.ma.masked_equal(np.eye(4, dtype=int), 1), TypeError, "masked"),
        ([[1, 2]], TypeError, "array"),
    ],
    ids=["float", "bool", "negative", "large", "masked", "list"],
)
def test_labels_that_are_none_are_refused(labels, error, match):
    with pytest.raises(error, match=match):
        tw.measure_labels(labels, progress=False)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"properties": "eccentrcity"}, TilingError, "eccentricity"),
        ({"properties": "mean_intensity"}, TilingError, "intensity_mean"),
        ({"properties": "filled_area"}, TilingError, "area_filled"),
        ({"properties": "coords"}, TilingError, "no column"),
        ({"properties": "intensity_mean"}, TilingError, "intensity="),
        ({"properties": lambda a, b, c: 0}, TypeError, "3 arguments"),
        ({"properties": 5}, TypeError, "names or functions"),
        ({"properties": [5]}, TypeError, "name or a function"),
        ({"intensity": np.zeros((4, 5))}, GridError, r"\(4, 4\).*\(4, 5\)"),
        ({"intensity": np.zeros((4, 4), complex)}, TilingError, "complex"),
        ({"intensity": {1: np.zeros((4, 4))}}, TypeError, "name"),
        ({"each": (0, 1)}, GridError, "no axis"),
        ({"each": "t"}, GridError, "names"),
        ({"meta": tw.ImageMeta("zyx")}, TilingError, "3 axes"),
        ({"meta": 3}, TypeError, "ImageMeta"),
        ({"spacing": "meta"}, TilingError, "not known"),
        ({"spacing": 3}, TypeError, "each axis"),
        ({"spacing": (1, 2, 3)}, TilingError, "2 axes"),
        ({"spacing": (1, -2)}, TilingError, "positive"),
        ({"spacing": (1, 2), "properties": "perimeter"}, TilingError, "isotropic"),
        ({"table": "cells.txt"}, TilingError, "csv or"),
        ({"table": "none/cells.csv"}, TilingError, "folder"),
        ({"progress": 3}, TypeError, "progress"),
        ({"scheduler": "thread"}, TilingError, "scheduler"),
    ],
)
def test_arguments_that_are_wrong_are_named_before_anything_is_read(given, error, match):
    class Unread:
        shape, dtype, ndim = (4, 4), np.dtype("u1"), 2

        def __getitem__(self, key):
            raise AssertionError

    with pytest.raises(error, match=match):
        tw.measure_labels(Unread(), **({"progress": False} | given))


def test_properties_of_another_dimension_are_named():
    cube = np.ones((3, 3, 3), int)
    with pytest.raises(TilingError, match="eccentricity"):
        tw.measure_labels(cube, properties="eccentricity", progress=False)
    with pytest.raises(TilingError, match="each="):
        tw.measure_labels(cube[None], properties="solidity", progress=False)


def test_a_function_that_returns_other_shapes_is_refused():
    labels = np.array([[1, 1, 0, 2]])
    with pytest.raises(TilingError, match="one number"):
        tw.measure_labels(labels, properties=lambda mask: np.flatnonzero(mask), progress=False)


def test_a_function_that_fails_is_told_where():
    def broken(mask):
        raise ZeroDivisionError

    for each in ((), (0,)):
        with pytest.raises(ZeroDivisionError) as caught:
            tw.measure_labels(objects_in((9, 9, 9)), properties=broken, each=each, progress=False)
        assert "in a box at [" in "".join(caught.value.__notes__)


def test_an_image_with_its_axes_in_another_order_is_refused():
    labels = xr.DataArray(objects_in((9, 9)), dims=("y", "x"))
    image = xr.DataArray(np.random.default_rng(0).random((9, 9)), dims=("x", "y"))
    with pytest.raises(GridError, match=r"\('y', 'x'\); got \('x', 'y'\)"):
        tw.measure_labels(labels, image, "intensity_mean", progress=False)
    table = tw.measure_labels(labels, image.T, "intensity_max", each="y", progress=False)
    assert table["y"].tolist() == sorted(table["y"])


def test_outputs_of_one_call_are_measured_together():
    calls = []
    labels = objects_in((30, 40), largest=300)

    def fn(crop):
        calls.append(1)
        return {"labels": crop, "value": crop % 7 / 2}

    outputs = {"labels": tw.Output("int64"), "value": tw.Output("float64")}
    out = tw.tiled_map(fn, labels, crop=10, overlap=0, output=outputs)
    table = tw.measure_labels(out["labels"], out["value"], "intensity_max", progress=False, scheduler="sync")
    assert len(calls) == 12
    assert (table["intensity_max"] == table["label"] % 7 / 2).all()


# -- where tasks read -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 7)), min_size=1, max_size=3), st.data())
def test_blocks_part_the_image_and_cut_no_chunk(axes, data):
    shape, chunks = zip(*axes, strict=True)
    most = data.draw(st.integers(1, 500))
    grown = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape)))]
    source = open_source(da.zeros(shape, chunks=chunks, dtype="u1"))
    cuts = cuts_of(source, grown, most)
    seen = np.zeros(shape, int)
    for box in blocks_of(cuts):
        seen[tuple(slice(*span) for span in box)] += 1
        assert all(
            a % c == 0 and (b % c == 0 or b == n) for (a, b), c, n in zip(box, chunks, shape, strict=True)
        )
        assert math.prod(b - a for a, b in box) <= max(
            most, math.prod(min(c, n) for c, n in axes_of(chunks, shape))
        )
    assert (seen == 1).all()


def axes_of(chunks, shape):
    return zip(chunks, shape, strict=True)


@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(2, 20))
def test_each_object_is_in_one_group_of_limited_size(seed, most, step):
    labels = objects_in((25, 30), seed, largest=10**6)
    axes = measuring.ObjectAxes(labels.shape, (), (0, 1), None)
    rows = measuring.PartFacts(axes, (), ())([labels], [(0, 25), (0, 30)], None).rows
    cuts = [[*range(0, n, step), n] for n in labels.shape]
    groups = list(groups_of(rows, cuts, most))
    assert sorted(itertools.chain(*map(list, groups))) == list(range(len(rows)))
    for group in groups:
        size = np.prod(rows.high[group].max(0) - rows.low[group].min(0))
        assert len(group) == 1 or size <= most


# -- tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_reads_back_as_it_was_written(tmp_path, ending):
    labels = objects_in((20, 20))
    path = tmp_path / f"cells.{ending}"
    table = tw.measure_labels(labels, properties=("solidity", "orientation"), table=path, progress=False)
    again = Table.read(path)
    assert again == table
    assert [c.dtype for c in again.values()] == [c.dtype for c in table.values()]
    with pytest.raises(TilingError, match="overwrite=True"):
        tw.measure_labels(labels, table=path, progress=False)
    assert Table.read(path) == table
    shorter = tw.measure_labels(labels, table=path, overwrite=True, progress=False)
    assert Table.read(path) == shorter
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_any_kind_and_no_rows_are_kept(tmp_path, ending):
    table = Table(
        {
            "id": [1, 2**62, 3],
            "value": [0.1, math.nan, -math.inf],
            "kept": [True, False, True],
            "name, of": ['a "b"', "µ,\n", "c"],
        },
        {"value": "micrometer"},
    )
    for one, name in ((table, "some"), (table[:0], "none")):
        path = tmp_path / f"{name}.{ending}"
        one.write(path)
        again = Table.read(path)
        assert list(again) == list(one)
        assert len(again) == len(one)
        assert again == one or not len(one)
        assert again.units == (one.units if ending == "parquet" else {})


def test_a_table_that_fails_to_be_written_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("csv.writer", broken)
    with pytest.raises(OSError, match="disk full"):
        Table({"a": [1]}).write(tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


def test_a_table_is_what_pandas_takes():
    table = tw.measure_labels(objects_in((20, 20)), progress=False)
    frame = pd.DataFrame(table)
    assert list(frame.columns) == list(table)
    assert len(frame) == len(table)
    assert frame.equals(table.to_pandas())
    assert table.to_pandas().attrs == {"units": {}}
    table["density"] = table["area"] / 2.0
    assert (pd.DataFrame(table)["density"] == table["area"] / 2).all()


def test_what_is_no_column_is_refused():
    table = Table({"label": [1, 2, 3]})
    for name, values, match in (
        ("a", [1, 2], "2 rows"),
        ("a", 3, "1-D"),
        ("a", [[1], [2], [3]], "1-D"),
        ("a", [None, 1, 2], "numbers or text"),
    ):
        with pytest.raises(TilingError, match=match):
            table[name] = values
    with pytest.raises(TypeError, match="text"):
        table[3] = [1, 2, 3]
    with pytest.raises(KeyError, match="did you mean 'label'"):
        table["lable"]
    with pytest.raises(TypeError, match="or rows"):
        table[0]
    table["label"] = [4, 5]
    table.update(area=[1, 2])
    assert isinstance(table["area"], np.ndarray)
    del table["area"]
    for again in (table.copy(), pickle.loads(pickle.dumps(table))):
        assert type(again) is Table
        assert again == table
        assert (again != table) is False
    assert len(table) == 2
    assert table != Table({"label": [4, 6]})


def test_text_of_a_table_fits_a_line():
    table = tw.measure_labels(objects_in((20, 20)), progress=False)
    text = repr(table).splitlines()
    assert text[0] == f"<Table: {len(table)} rows, {len(table.keys())} columns>"
    assert max(map(len, text)) <= 90
    assert text[-1] == "..."
    html = table._repr_html_()
    assert html.count("<tr>") == 6
    assert "centroid-0" in html
    assert repr(Table()) == "<Table: 0 rows, 0 columns>"


# -- which to keep ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.booleans())
def test_kept_objects_are_numbered_in_the_order_of_their_first_samples(seed, each):
    labels = objects_in((3, 9, 11), seed, largest=10**12)
    table = tw.measure_labels(labels, each=(0,) if each else (), progress=False)
    keep = kept_rows(lambda t: t["area"] % 2 == 0, table)
    index = table["axis_0"] if each else np.zeros(len(table), int)
    order = np.random.default_rng(seed).permutation(len(table))
    numbers = Numbers.of(table[order], keep[order], {"axis_0": 3} if each else {})
    for at, image in enumerate(labels if each else labels[None]):
        kept = np.isin(image, table["label"][keep & (index == at)]) & (image != 0)
        got = np.zeros(image.shape, int)
        got[image != 0] = numbers.of_ids(image[image != 0], at)
        assert (got == in_raster_order(image * kept)).all()
    assert numbers.most == max(numbers.numbers, default=0)


def in_raster_order(labels):
    """Return labels whose ids are numbers from 1 on, in the order of their first samples."""
    seen = {}
    numbers = [seen.setdefault(i, len(seen) + 1) if i else 0 for i in labels.ravel().tolist()]
    return np.array(numbers, int).reshape(labels.shape)


def test_objects_that_the_table_does_not_hold_once_are_refused():
    table = Table({"label": [3, 5, 5], "first": [0, 1, 1]})
    with pytest.raises(TilingError, match="two rows for object 5"):
        Numbers.of(table, np.ones(3, bool), {})
    with pytest.raises(TilingError, match=r"no columns \['t'\]"):
        Numbers.of(table, np.ones(3, bool), {"t": 4})
    numbers = Numbers.of(table[:2], np.array([False, True]), {})
    for ids in ([4], [3, 6], [2]):
        with pytest.raises(TilingError, match=f"object {ids[-1]}"):
            numbers.of_ids(np.array(ids))


def test_conditions_that_are_none_are_refused():
    table = Table({"label": [1, 2, 3]})
    for condition in (lambda t: t["label"], [True, False], lambda t: True, "area > 5"):
        with pytest.raises(TilingError, match="one bool for each of 3"):
            kept_rows(condition, table)
    with pytest.raises(KeyError) as caught:
        kept_rows(lambda t: t["size"] > 3, table)
    assert "condition" in caught.value.__notes__[0]


def _opened(image, kind, folder):
    """Return an image as numpy, dask, Zarr with several channels in a chunk, memmap, or an opener."""
    chunks = tuple(min(n, 2 if n < 5 else 7) for n in image.shape)
    if kind == "dask":
        return da.from_array(image, chunks=chunks)
    if kind == "zarr":
        zarr.create_array(folder / "image.zarr", data=image, chunks=chunks)
        return folder / "image.zarr"
    if kind == "memmap":
        np.save(folder / "image.npy", image)
        return np.load(folder / "image.npy", mmap_mode="r")
    return tw.load_once(np.array, (image,)) if kind == "once" else image


@pytest.mark.parametrize("scheduler", ["synchronous", pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "memmap", "once"])
def test_channels_of_an_image_are_measured_one_by_one(tmp_path, kind, axis, scheduler):
    labels = objects_in((9, 12, 14), seed=3)
    channels = np.random.default_rng(0).integers(0, 900, (3, *labels.shape)).astype("u2")
    image = _opened(np.ascontiguousarray(np.moveaxis(channels, 0, axis)), kind, tmp_path)
    wanted = ["intensity_mean", "intensity_std"]
    found = tw.measure_labels(labels, image, wanted, scheduler=scheduler, progress=False)
    apart = {str(k): channel for k, channel in enumerate(channels)}
    assert found == tw.measure_labels(labels, apart, wanted, progress=False)
    assert list(found)[-6:] == [f"{name}-{k}" for name in wanted for k in range(3)]


def test_the_axis_of_channels_is_found_by_names_or_is_refused():
    labels = objects_in((3, 3, 3), seed=1)  # every axis could be that of the channels
    volume = np.random.default_rng(0).random((3, 3, 3, 3))
    named, own = xr.DataArray(volume, dims=tuple("zcyx")), xr.DataArray(labels, dims=tuple("zyx"))
    want = {str(k): volume[:, k] for k in range(3)}
    want = tw.measure_labels(labels, want, "intensity_max", progress=False)
    for one in (labels, own):
        found = tw.measure_labels(one, named, "intensity_max", progress=False)
        assert all(np.array_equal(found[name], want[name]) for name in want)
    many = {"raw": named, "other": volume[0]}
    many = tw.measure_labels(labels, many, "intensity_max", progress=False)
    assert list(many)[-4:] == [f"intensity_max-{name}" for name in ("raw-0", "raw-1", "raw-2", "other")]
    for image in (volume, named.rename(z="t"), volume[:2, :2]):
        with pytest.raises(GridError, match="clearly one more axis"):
            tw.measure_labels(own, image, "intensity_max", progress=False)
    with pytest.raises(TilingError, match="two intensity images are called 'raw-1'"):
        tw.measure_labels(own, {"raw": named, "raw-1": volume[0]}, "intensity_max", progress=False)


@pytest.mark.parametrize("names", [["dapi", "gfp"], ["dapi", "dapi"], None])
def test_a_table_beside_labels_has_the_channels_of_their_image(tmp_path, names):
    image = np.random.default_rng(0).integers(1, 255, (2, 2, 40, 50)).astype("u1")
    image[:, 0] *= np.kron(np.eye(4, 5, dtype="u1"), np.pad(np.ones((5, 5), "u1"), (0, 5)))
    meta = tw.ImageMeta("tcyx", channel_names=names)
    copied = tw.tiled_map(lambda crop: crop, image, 20, 0, axes=(2, 3), dtype="u1")
    path = tmp_path / "image.ome.zarr"
    tw.to_zarr(copied, path, ome=True, meta=meta, progress=False)
    output = tw.Output("uint32", labels="own", channels=0)
    cells = tw.tiled_map(_squares, path, 20, 6, axes="yx", each="t", output=output)
    into = {"label_name": "cells", "table": tmp_path / "cells.csv", "progress": False}
    labels = tw.to_zarr(cells, path, **into, intensity=path, properties="intensity_sum")
    found = tw.Table.read(tmp_path / "cells.csv")
    ends = names if names and len(set(names)) == 2 else "01"
    for k, end in enumerate(ends):
        want = [image[t, k][labels[t] == n].sum() for t in range(2) for n in range(1, 5)]
        assert found[f"intensity_sum-{end}"].tolist() == want


@pytest.mark.parametrize("kind", ["own", "join"])
@pytest.mark.parametrize("ome", [False, True])
def test_ids_that_restart_are_told_of_unless_each_says_so(tmp_path, kind, ome):
    image = np.kron(np.eye(2, 3, dtype="u1"), np.pad(np.ones((5, 5), "u1"), (0, 5)))
    output = tw.Output("uint32", labels=kind)
    meta = tw.ImageMeta("tzyx")
    given = {"axes": "yx", "each": "tz", "output": output, "meta": meta}
    out = tw.tiled_map(label, np.stack([image] * 6).reshape(2, 3, *image.shape), 20, 6, **given)
    tw.to_zarr(out, tmp_path / "cells.zarr", ome=ome, progress=False)
    labels = tw.open_image(tmp_path / "cells.zarr") if ome else zarr.open_array(tmp_path / "cells.zarr")
    for one in (labels, tmp_path / "cells.zarr"):
        with pytest.warns(tw.TilingWarning, match=r"each index of axis z, .*each=\('z',\)"):
            assert len(tw.measure_labels(one, each="t", progress=False)) == 4
        with pytest.warns(tw.TilingWarning, match=r"each index of axis t, z"):
            tw.filter_labels(one, lambda t: t["area"] > 1, zarr.storage.MemoryStore(), progress=False)
        assert len(tw.measure_labels(one, each="tz", progress=False)) == 12


def _squares(crop):
    return label(crop[0] > 0)
