"""The graph of a result is made when somebody asks for it, and only the part that is asked for."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.array.utils import assert_eq
from dask.graph_manipulation import bind, checkpoint, clone, wait_on
from dask.highlevelgraph import HighLevelGraph
from dask.optimization import cull
from dask.task_spec import List, TaskRef
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.calls import calls_of
from tests.sampling import share
from tilework.errors import CostWarning
from tilework.graph import layer as layers
from tilework.graph import tasks
from tilework.graph.build import find_spec, specs_below
from tilework.graph.layer import BlockLayer, OutputLayer
from tilework.graph.tasks import BlockTasks
from tilework.source.padding import AxisRead

IMAGE = np.random.default_rng(7).random((96, 80)).astype("float32")


class Endless:
    """An image of any size that costs nothing."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype("uint16")

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        first, *rest = (np.arange(s.start, s.stop) for s in box)
        total = first.reshape(-1, *(1 for _ in rest))
        for n, axis in enumerate(rest):
            total = total + axis.reshape(-1, *(1 for _ in rest[n + 1 :]))
        return (total % 65521).astype(self.dtype)


def twice(crop: np.ndarray) -> np.ndarray:
    return 2 * crop


def blend(image: Any, **options: Any) -> Any:
    given = {"crop": 16, "stride": 8, "blend": "gaussian", "chunks": 32, "reuse": "share", "dtype": "float32"}
    return tw.tiled_map(options.pop("fn", twice), image, **(given | options))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of blocks of each time that tasks were made."""
    counts: list[int] = []
    needed = BlockTasks.needed

    def counted(self: BlockTasks, wanted: Any) -> dict[Any, Any]:
        blocks = list(wanted)
        counts.append(len(blocks))
        return needed(self, blocks)

    monkeypatch.setattr(BlockTasks, "needed", counted)
    return counts


def layer_of(out: Any) -> BlockLayer:
    [found] = [layer for layer in out.dask.layers.values() if isinstance(layer, BlockLayer)]
    return found


def written(out: Any) -> None:
    tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False)


# -- the cost of an endless image -------------------------------------------------------------------------

LONG = {
    "blend": {"crop": 10, "stride": 3, "blend": "gaussian"},
    "trim": {"crop": 16, "overlap": 2},
    "recompute": {"crop": 10, "stride": 3, "blend": "average", "reuse": "recompute"},
    "short of memory": {"crop": 10, "stride": 3, "blend": "max", "memory_limit": "60MB"},
    "own window": {"crop": 16, "stride": 8, "blend": np.hanning},
    "map": {"crop": (16, 4), "stride": (8, 2), "blend": np.ones((16, 4))},
    "one sample a tile": {"crop": 3, "overlap": 1},
    "edges": {"crop": 12, "overlap": 3, "edge": "clip", "batch_size": 8},
    "squeezed": {"crop": 16, "overlap": 2, "edge": "squeeze"},
    "squeezed blend": {"crop": 10, "stride": 3, "blend": "gaussian", "edge": "squeeze"},
    "squeezed own window": {"crop": 16, "stride": 8, "blend": np.hanning, "edge": "squeeze"},
}


@pytest.mark.sample(1, whole=8)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_a_build_costs_the_same_however_many_tiles_an_axis_has(name: str, stored: bool) -> None:
    """Counted in functions that run, and in bytes: neither walks tiles, nor makes an array of them."""

    def build(n: int) -> Callable[[], Any]:
        shape = (n, 64)
        image = (
            zarr.create_array({}, shape=shape, chunks=(1000, 7), dtype="f4") if stored else Endless(*shape)
        )
        return lambda: tw.tiled_map(twice, image, dtype="float32", name="long", **LONG[name])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CostWarning)
        build(10**5)()
        small, large = (calls_of(build(n), "call", "c_call") for n in (10**6, 9 * 10**7))
        tracemalloc.start()
        try:
            build(9 * 10**7)()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert large < 2 * small + 20_000  # dask makes a number of each block
    assert peak < 8 * 10**6


EXPLAINED = {
    **LONG,
    "clipped under a mask": {"crop": 12, "overlap": 3, "edge": "clip"},
    "blend under a mask": {"crop": 10, "stride": 3, "blend": "gaussian"},
    "whole batches": {"crop": 12, "overlap": 3, "edge": "clip", "batch_size": 8, "pad_batch": True},
    "squeezed whole batches": {
        "crop": 12,
        "overlap": 3,
        "edge": "squeeze",
        "batch_size": 8,
        "pad_batch": True,
    },
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_and_the_picture_take_the_same_however_many_tiles_an_axis_has(name: str) -> None:
    n, options = 9 * 10**7, EXPLAINED[name]
    if "under a mask" in name:
        options = {"mask": np.eye(9, 1, dtype=bool), "mask_scale": (n / 9, 64), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CostWarning)
        plan = tw.tiled_map(twice, Endless(n, 64), dtype="float32", name="long", **options)
    plan = find_spec(plan).spec.plan  # type: ignore[union-attr]
    tracemalloc.start()
    try:
        assert "samples per sample" in plan.explain()
        assert "<svg" in plan._repr_html_()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 10**6


@pytest.mark.parametrize(
    ("shape", "crop", "chunks"),
    [
        ((10**6, 10**6), 512, 2048),
        ((10**5, 10**5, 10**5), 64, 128),
        ((4, 10**5, 10**5, 10**5), (32, 64, 64), 128),
        ((3, 5, 10**4, 10**4, 10**4), (32, 32, 32), 64),
    ],
)
@pytest.mark.parametrize("reuse", ["auto", "recompute"])
def test_L1_a_build_makes_no_task_and_a_slice_makes_its_own(
    made: list[int], shape: tuple[int, ...], crop: Any, chunks: int, reuse: str
) -> None:
    n_tiled = len(crop) if isinstance(crop, tuple) else len(shape)
    half = max(crop) // 2 if isinstance(crop, tuple) else crop // 2
    out = tw.tiled_map(
        twice, Endless(*shape), crop, stride=half, blend="average", dtype="uint16", chunks=chunks,
        axes=tuple(range(len(shape) - n_tiled, len(shape))), each=tuple(range(len(shape) - n_tiled)),
        memory_limit=9 * 10**15, reuse=reuse,
    )  # fmt: skip
    assert made == []
    assert out.npartitions > 10**5
    lengths = [1] * (len(shape) - n_tiled) + [5] * n_tiled
    place = tuple(slice(n // 2, n // 2 + k) for n, k in zip(shape, lengths, strict=True))
    part = out[place]
    assert made == []
    result = part.compute(scheduler="sync")
    assert 0 < sum(made) <= 2**n_tiled
    np.testing.assert_array_equal(result, 2 * Endless(*shape)[place])
    assert not layer_of(out).is_materialized()


def test_more_blocks_than_fit_into_memory_are_refused_when_they_are_asked_for(monkeypatch: Any) -> None:
    monkeypatch.setattr(layers, "MOST_BLOCKS", 100)
    out = tw.tiled_map(twice, Endless(2000, 2000), 64, stride=32, blend="average", dtype="uint16", chunks=128)
    assert out[:100, :100].compute(scheduler="sync").shape == (100, 100)
    with pytest.raises(tw.TilingError, match=r"more than 100 blocks of \(128, 128\) samples .* tw\.to_zarr"):
        out.compute(scheduler="sync")


# -- what stays lazy --------------------------------------------------------------------------------------

LAZY: dict[str, Callable[[Any], Any]] = {
    "compute": lambda a: a.compute(scheduler="sync"),
    "a slice": lambda a: a[3:40, 5:6].compute(scheduler="sync"),
    "a list of rows": lambda a: a[[1, 50, 3]].compute(scheduler="sync"),
    "optimize": lambda a: dask.optimize(a),
    "persist": lambda a: a.persist(scheduler="sync"),
    "arithmetic": lambda a: (a * 2 + 1).compute(scheduler="sync"),
    "a and itself": lambda a: (a + a.T.T).compute(scheduler="sync"),
    "rechunk": lambda a: a.rechunk((50, 7)).compute(scheduler="sync"),
    "sum": lambda a: a.sum().compute(scheduler="sync"),
    "map_blocks": lambda a: a.map_blocks(np.sqrt).compute(scheduler="sync"),
    "map_overlap": lambda a: a.map_overlap(np.sqrt, 2, boundary="none").compute(scheduler="sync"),
    "blocks": lambda a: a.blocks[1, 1].compute(scheduler="sync"),
    "stack": lambda a: da.stack([a, a + 1]).compute(scheduler="sync"),
    "two together": lambda a: dask.compute(a, a[:5] + 1, scheduler="sync"),
    "two results together": lambda a: (a + blend(IMAGE[::-1])).compute(scheduler="sync"),
    "store": lambda a: da.store(a, np.empty(a.shape, a.dtype), scheduler="sync"),
    "store of two": lambda a: da.store(
        [a, blend(IMAGE[::-1])], [np.empty(a.shape, a.dtype), np.empty(a.shape, a.dtype)], scheduler="sync"
    ),
    "repr": lambda a: (repr(a), a._repr_html_(), repr(a.dask), a.dask._repr_html_()),
    "clone": lambda a: clone(a).compute(scheduler="sync"),
    "bind": lambda a: bind(a, da.ones(4, chunks=2)).compute(scheduler="sync"),
    "wait_on": lambda a: wait_on(a).compute(scheduler="sync"),
    "checkpoint": lambda a: checkpoint(a).compute(scheduler="sync"),
    "tiled_map again": lambda a: blend(a).compute(scheduler="sync"),
    "pickle": lambda a: pickle.loads(cloudpickle.dumps(a)),
    "view": lambda a: tw.view(a, verbose=False)[4:9, 4:9],
    "explain": lambda a: tw.explain(a),
    "keys": lambda a: a.__dask_keys__(),
    "external keys": lambda a: a.dask.get_all_external_keys(),
    "delayed": lambda a: dask.compute(*a.to_delayed().ravel(), scheduler="sync"),
    "vindex": lambda a: a.vindex[[1, 50, 3], [7, 9, 70]].compute(scheduler="sync"),
    "diagonal": lambda a: da.diagonal(a).compute(scheduler="sync"),
    "to_zarr of a slice": lambda a: written(a[3:40, 5:6] + 1),
    "to_zarr of tiled_map on a slice": lambda a: written(blend(a[3:40, 5:60])),
}
WHOLE: dict[str, Callable[[Any], Any]] = {
    "optimize_graph=False": lambda a: a.compute(scheduler="sync", optimize_graph=False),
    "validate": lambda a: a.dask.validate(),
    "dict": lambda a: dict(a.dask),
    "len": lambda a: len(a.dask),
}


@pytest.mark.parametrize("what", LAZY)
def test_what_stays_lazy(what: str) -> None:
    out = blend(IMAGE)
    LAZY[what](out)
    assert not layer_of(out).is_materialized()


@pytest.mark.parametrize("what", WHOLE)
def test_what_makes_all_tasks(what: str) -> None:
    out = blend(IMAGE)
    WHOLE[what](out)
    assert layer_of(out).is_materialized()


@pytest.mark.parametrize("what", ["blocks", "keys", "explain", "repr", "view", "pickle", "a slice"])
def test_what_makes_tasks_of_few_blocks(made: list[int], what: str) -> None:
    LAZY[what](blend(IMAGE))
    assert sum(made) <= 4


@pytest.mark.parametrize("what", ["masked", "several masked", "recompute", "share"])
def test_what_a_slice_does_not_need_is_left_out_in_every_order_of_layers(what: str) -> None:
    """dask takes layers in an order that depends on the hashes of their names."""
    base = blend(Endless(400, 400), chunks=64, dtype="uint16", name="base")
    if what == "masked":
        part = blend(base, chunks=64, mask=np.eye(5, dtype=bool))[:40, 300:]
    elif what == "several masked":
        part = tw.tiled_map(
            lambda c: (c, c),
            base,
            32,
            0,
            output=(tw.Output("u2"),) * 2,
            chunks=64,
            mask=np.eye(5, dtype=bool),
        )[0][:40, 300:]
    else:
        part = da.concatenate([blend(np.ones((64, 400), "u2"), reuse=what), base])[:40, :40]
    graph, wanted = part.dask, set(dask.core.flatten(part.__dask_keys__()))
    orders = [
        order
        for order in itertools.permutations(graph.layers)
        if all(order.index(d) < order.index(n) for n, ds in graph.dependencies.items() for d in ds)
    ]
    assert len(orders) > 1
    for order in orders:
        with mock.patch.object(type(graph), "_toposort_layers", return_value=list(order)):
            left = graph.cull(wanted).layers.values()
        assert not [layer for layer in left if isinstance(layer, BlockLayer)]


def of_older_tasks(name: str, image: Any) -> Any:
    """Return the double of a dask array by tasks of dask's older kind, which name keys without a sign."""
    graph = {(name, *key[1:]): (twice, key) for key in dask.core.flatten(image.__dask_keys__())}
    layer = HighLevelGraph.from_collections(name, graph, dependencies=[image])
    return da.Array(layer, name, image.chunks, image.dtype)


OLDER: dict[str, Callable[[], Any]] = {
    "from_array": lambda: da.from_array(Endless(130, 110), chunks=20, asarray=False),
    "from_array of numpy": lambda: da.from_array(np.asarray(Endless(130, 110)[0:130, 0:110]), chunks=20),
    "from_zarr": lambda: da.from_zarr(
        zarr.array(Endless(130, 110)[0:130, 0:110], store=zarr.storage.MemoryStore(), chunks=(20, 20))
    ),
    "tasks above tasks": lambda: of_older_tasks("upper", of_older_tasks("lower", OLDER["from_array"]())),
    "tasks above a result": lambda: of_older_tasks("upper", blend(Endless(130, 110), dtype="uint16")),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", OLDER)
def test_a_slice_asks_for_no_other_keys_above_tasks_of_the_older_kind(kind: str, several: bool) -> None:
    source = OLDER[kind]()
    fn, output = (lambda x: (x, x), (tw.Output("u2"),) * 2) if several else (lambda x: x, tw.Output("u2"))
    out = tw.tiled_map(fn, source, 16, 2, output=output, chunks=16)
    out = out[1] if several else out
    again = blend(out, fn=lambda x: x, chunks=16)
    expected = source.compute(scheduler="sync")[70:90, 50:80]
    with mock.patch.object(BlockTasks, "output_keys", side_effect=AssertionError):
        np.testing.assert_array_equal(out[70:90, 50:80].compute(scheduler="sync"), expected)
        np.testing.assert_allclose(again[70:90, 50:80].compute(scheduler="sync"), expected, rtol=1e-6)
        copied = pickle.loads(cloudpickle.dumps(out))
        np.testing.assert_array_equal(copied[70:90, 50:80].compute(scheduler="sync"), expected)
    np.testing.assert_array_equal((out - source).compute(scheduler="sync"), np.zeros(out.shape, "u2"))
    np.testing.assert_array_equal(clone(out)[70:90, 50:80].compute(scheduler="sync"), expected)


@pytest.mark.parametrize("kind", OLDER)
def test_what_reads_parts_of_a_source_asks_for_no_other_keys(kind: str) -> None:
    """`check` computes about forty parts of a dask array: 0.1 s each for 240 000 blocks."""
    source = OLDER[kind]()
    out = tw.tiled_map(lambda x: x, source, 16, 2, dtype="u2", chunks=64)
    expected = source.compute(scheduler="sync")[70:90, 50:80]
    with mock.patch.object(HighLevelGraph, "get_all_external_keys", side_effect=AssertionError):
        np.testing.assert_array_equal(tw.view(out, verbose=False)[70:90, 50:80], expected)
        assert tw.check(out).ok


def test_a_source_named_by_hand_and_a_result_of_it_may_be_read_together() -> None:
    """The layers of the source are others below the result, and hold the same."""
    source = of_older_tasks("upper", da.from_array(Endless(40, 30), chunks=5, asarray=False, name="image"))
    out = tw.tiled_map(lambda x, y: y - x, (source, blend(source, fn=lambda x: x, dtype="u2")), 16, 0)
    np.testing.assert_array_equal(out, np.zeros(out.shape))


def test_to_zarr_makes_no_task_of_the_array(made: list[int], tmp_path: Path) -> None:
    out = blend(IMAGE)
    np.testing.assert_array_equal(tw.to_zarr(out, tmp_path / "a.zarr", progress=False), out.compute())
    assert made == [9]  # those of compute


# -- the tasks are the same, however they are asked for ---------------------------------------------------


@st.composite
def results(draw: st.DrawFn) -> Any:
    """Return a result of some layout and source."""
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    crop = draw(st.integers(1, 12))
    stride = draw(st.integers(max(1, crop // 2), crop))
    blends = ["trim", "average"] if stride < crop else ["trim"]
    image = np.zeros(shape, "float32")
    images = {"numpy": image, "dask": da.from_array(image, chunks=7), "other": Endless(*shape)}
    many = draw(st.booleans())
    options: dict[str, Any] = {"dtype": "float32"}
    if many:
        options = {"output": (tw.Output("float32"), tw.Output("float32"))}
    if draw(st.booleans()):
        chance = np.random.default_rng(draw(st.integers(0, 9))).random(shape)
        options["mask"] = chance < draw(st.sampled_from([0, 0.02, 0.3, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = tw.tiled_map(
            (lambda x: (x, x)) if many else (lambda x: x), images[draw(st.sampled_from(sorted(images)))],
            (crop,) * len(shape), stride=stride, axes=tuple(range(len(shape))),
            edge=draw(st.sampled_from(["shift", "clip", "pad", "squeeze", "drop"])),
            blend=draw(st.sampled_from(blends)), chunks=draw(st.integers(crop, 2 * crop)),
            reuse=draw(st.sampled_from(["share", "recompute"])), **options,
        )  # fmt: skip
    return out[draw(st.integers(0, 1))] if many else out


@settings(max_examples=share(60), deadline=None)
@given(out=results(), data=st.data())
def test_L3_culling_is_that_of_dask(out: Any, data: st.DataObject) -> None:
    """The tasks of some blocks are those that dask finds among all tasks, and each equals its task there."""
    blocks = layer_of(out)
    maker, number = BlockTasks(blocks.spec, blocks.names), blocks.names.outputs.index(out.name)
    whole = {k: n for index in maker.order() for k, n in maker.of(index)} | maker.shared
    for layer in out.dask.layers.values():
        whole |= {} if isinstance(layer, BlockLayer | OutputLayer) else dict(layer)
    if blocks.spec.many:
        whole |= {n.key: n for n in (maker.getter(index, number) for index in maker.order())}
    own = [maker.output_key(index, number) for index in maker.order()]
    assert set(out.dask.layers[out.name].get_output_keys()) == set(own)
    assert len(out.dask.layers[out.name].get_output_keys()) == len(own)
    if blocks.spec.many:
        shared = {maker.block(index) for index in maker.order()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(maker), "block", None)  # all at once, and none by itself
            keys = blocks.get_output_keys()
        assert shared <= keys <= shared | set(maker._fills)
    wanted = data.draw(st.sets(st.sampled_from(own), max_size=5)) if own else set()
    culled = dict(out.dask.cull(wanted | {("other", 0), "text"}))
    assert not blocks.is_materialized()
    expected, _ = cull(whole, list(wanted))
    assert {k: str(n) for k, n in culled.items()} == {k: str(n) for k, n in expected.items()}
    assert dict(out.dask).keys() == whole.keys()


@pytest.mark.parametrize("kind", ["dask", "numpy"])
@pytest.mark.parametrize("masked", [False, True])
def test_what_tasks_must_be_given_is_found_once_along_each_axis(
    kind: str, masked: bool, monkeypatch: Any
) -> None:
    """Not once for each block: borders and starts along an axis take longer than making a task."""
    n = 640
    image = da.zeros((n, n), chunks=50) if kind == "dask" else np.zeros((n, n))
    mask = np.ones((4, 4), bool) if masked else None
    if mask is not None:
        mask[1, 2] = False
    out = tw.tiled_map(
        twice, image, 16, 4, boundary="wrap", dtype=float, chunks=16, reuse="recompute", mask=mask
    )  # fmt: skip
    reads: list[Any] = []
    plan = AxisRead.plan
    monkeypatch.setattr(AxisRead, "plan", lambda *args: reads.append(args) or plan(*args))
    assert len(dict(out.dask)) > out.npartitions == 40**2
    assert len(reads) <= 2 * 40 + 8


@pytest.mark.parametrize("most", [tasks.MOST_REFERENCES, 7])
def test_tasks_that_read_one_block_of_dask_share_the_reference(most: int, monkeypatch: Any) -> None:
    """Those with a halo read 9 blocks: a reference and a key for each were most objects of the graph."""

    def references(node: Any) -> Iterator[TaskRef]:
        for part in getattr(node, "args", ()):
            if isinstance(part, TaskRef):
                yield part
            elif isinstance(part, List):
                yield from references(part)

    monkeypatch.setattr(tasks, "MOST_REFERENCES", most)
    image = da.from_array(np.arange(120.0 * 90).reshape(120, 90), chunks=10)
    out = tw.tiled_map(twice, image, 14, 2, dtype=float, chunks=10)
    found = [r for node in dict(out.dask).values() for r in references(node) if r.key[0] == image.name]
    assert len(found) == (3 * 12 - 2) * (3 * 9 - 2)
    assert (len(set(map(id, found))) == len(set(found)) == 12 * 9) is (most > 7)
    np.testing.assert_array_equal(out.compute(), 2 * image.compute())


def test_keys_of_other_layers_are_not_counted_as_those_of_an_array_below() -> None:
    """dask keeps a whole layer where it is asked for as many keys as it has, whichever these are."""
    image = da.from_array(np.zeros(28), chunks=7)
    mask = np.arange(28) > 14
    out = tw.tiled_map(lambda x: x, image, 7, 0, dtype=float, mask=mask)
    for others in range(6):
        culled = out.dask.cull({(out.name, 0), *(("other", k) for k in range(others))})
        assert not any(key[0] == image.name for key in dict(culled) if isinstance(key, tuple)), others


@settings(max_examples=share(30), deadline=None)
@given(out=results(), data=st.data())
def test_a_layer_is_a_mapping(out: Any, data: st.DataObject) -> None:
    for found in out.dask.layers.values():
        if not isinstance(found, BlockLayer | OutputLayer):
            continue
        whole = dict(found)
        layer = copy.copy(found)
        vars(layer).pop("nodes")
        assert len(copy.copy(layer).cull(set(whole), set())[0]) == len(whole)
        for key in data.draw(st.lists(st.sampled_from(sorted(whole, key=str)), max_size=5)) if whole else []:
            assert key in layer
            assert str(layer[key]) == str(whole[key])
        n, name = out.ndim, out.name
        for key in [(name,), (name, *(99,) * n), (name, *(-1,) * n), (name, *"ab"), "other", 3, None]:
            assert key not in layer
        assert not layer.is_materialized() or any("-fill-" in str(k) for k in whole)


@pytest.mark.parametrize("wanted", [("a",), ("b",), ("a", "b")])
def test_getters_of_outputs_that_nobody_wants_are_not_made(wanted: tuple[str, ...]) -> None:
    out = tw.tiled_map(
        lambda x: {"a": x, "b": -x}, IMAGE, 16, stride=8, blend="average", chunks=32, reuse="share",
        output={"a": tw.Output("float32"), "b": tw.Output("float32")},
    )  # fmt: skip
    [graph] = {id(a.dask): dask.optimize(a)[0].dask for a in [out[wanted[0]]]}.values()
    names = {key[0] for key in graph if isinstance(key, tuple)}
    assert out[wanted[0]].name in names
    assert out[{"a": "b", "b": "a"}[wanted[0]]].name not in names
    for key, result in zip(wanted, dask.compute(*(out[k] for k in wanted)), strict=True):
        np.testing.assert_allclose(result, IMAGE if key == "a" else -IMAGE, rtol=1e-6)


PLACES: dict[str, Callable[[Any], Any]] = {
    "points": lambda a: a.vindex[[1, 50, 3], [7, 9, 70]],
    "diagonal": da.diagonal,
    "lower diagonal": lambda a: da.diag(a, -40),
    "rows and columns": lambda a: a[[40, 3, 90]][:, [1, 70]],
    "take": lambda a: da.take(a, np.array([95, 0]), axis=0),
    "block": lambda a: a.blocks[np.int64(1), np.uint8(2)],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("several", [False, True])
def test_blocks_are_found_by_integers_of_numpy(place: str, several: bool) -> None:
    """dask makes such keys, in vindex and diagonal."""
    out = blend(IMAGE)
    if several:
        outputs = (tw.Output("float32"), tw.Output("float32"))
        out = blend(IMAGE, output=outputs, fn=lambda x: (x, 2 * x), dtype=None)[1]
    whole = da.from_array(out.compute(), chunks=32)
    assert_eq(PLACES[place](out), PLACES[place](whole))
    key = (out.name, np.int64(2), np.uint16(1))
    assert key in out.dask.layers[out.name]
    assert str(out.dask.layers[out.name][key]) == str(out.dask[(out.name, 2, 1)])
    assert len(out.dask.cull([key]).layers[f"{out.name}-{dask.base.tokenize({key})}"])


MASK = np.zeros(IMAGE.shape, bool)
MASK[40:50, 10:30] = True


@pytest.mark.parametrize("second", ["image-2", "image-fill-a", "image-all", "image-part-0"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
@pytest.mark.parametrize("several", [False, True])
def test_names_may_begin_alike(second: str, mask: Any, several: bool) -> None:
    options: dict[str, Any] = {"mask": mask}
    one, two = blend(IMAGE, name="image", **options), blend(IMAGE, name=second, **options)
    if several:
        outputs = (tw.Output("float32"), tw.Output("float32"))
        one = blend(
            IMAGE, fn=lambda x: (2 * x, x), name="image", output=outputs, dtype=None, **options
        )[0]  # fmt: skip
    whole = blend(IMAGE, **options).compute()
    for both in (one + two, two + clone(one)):
        np.testing.assert_array_equal(both.compute(), 2 * whole)
        np.testing.assert_array_equal(both[40:70, 20:30].compute(), 2 * whole[40:70, 20:30])
    for again in (blend(one, name=second), blend(two, name="image")):
        np.testing.assert_array_equal(again.compute(), blend(whole).compute())
    assert not layer_of(one).is_materialized()
    assert not layer_of(two).is_materialized()


def test_inner_keys_have_leading_zeros_and_the_slowest_axis_first() -> None:
    out = tw.tiled_map(
        twice, np.zeros((30, 120), "float32"), 8, stride=4, blend="average", chunks=10, reuse="share",
        dtype="float32", name="named",
    )  # fmt: skip
    keys = set(layer_of(out))
    assert {("named-group", "00", "0"), ("named-seam", "09", "2"), ("named", 2, 11)} <= keys
    assert not {("named-group", "0", "0"), ("named-group", "2", "11")} & keys


@pytest.mark.parametrize("many", [False, True])
def test_blocks_at_ragged_edges_in_which_nothing_runs(many: bool) -> None:
    mask = np.zeros((43, 37), bool)
    mask[20:22, 20:22] = True
    options: dict[str, Any] = {"dtype": "float32"}
    if many:
        options = {"output": (tw.Output("float32"), tw.Output("float32"))}
    out = tw.tiled_map(
        (lambda x: (x + 1, x)) if many else (lambda x: x + 1), np.zeros((43, 37), "float32"), 6, 1,
        mask=mask, chunks=10, fill_value=7, **options,
    )  # fmt: skip
    result = (out[0] if many else out).compute()
    assert result.shape == (43, 37)
    assert set(np.unique(result)) == {1, 7}
    np.testing.assert_array_equal(result[40:], np.full((3, 37), 7))
    np.testing.assert_array_equal((out[0] if many else out)[41:, 33:].compute(), np.full((2, 4), 7))


def test_inner_tasks_can_be_asked_for() -> None:
    out = blend(IMAGE)
    seam = next(key for key in dict(layer_of(out)) if "-seam" in str(key[0]))
    culled = dict(blend(IMAGE).dask.cull({seam}))
    assert {str(key[0]).rsplit("-", 1)[-1] for key in culled if isinstance(key, tuple)} == {
        "0",
        "group",
        "seam",
    }


def test_annotations_reach_the_tasks_that_are_made_later() -> None:
    with dask.annotate(priority=3):
        out = blend(IMAGE)
    culled = out[:5, :5].dask.cull(set(out[:5, :5].__dask_keys__()[0]))
    [found] = [
        layer
        for name, layer in culled.layers.items()
        if name.startswith(f"{out.name}-") and "spec" not in name
    ]
    assert found.annotations == {"priority": 3}


# -- clones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["numpy", "dask", "zarr"])
@pytest.mark.parametrize("several", [False, True])
def test_clones_compute_the_same_by_other_keys(tmp_path: Path, source: str, several: bool) -> None:
    image: Any = IMAGE if source == "numpy" else da.from_array(IMAGE, chunks=30)
    if source == "zarr":
        image = tw.to_zarr(da.from_array(IMAGE, chunks=32), tmp_path / "i.zarr", progress=False)
    out = blend(image)
    if several:
        out = tw.tiled_map(
            lambda x: (2 * x, x), image, 16, stride=8, blend="gaussian", chunks=32,
            output=(tw.Output("float32"), tw.Output("float32")),
        )[0]  # fmt: skip
    whole = out.compute()
    for copy_ in (clone(out), clone(clone(out)), clone(out, omit=image) if source == "dask" else clone(out)):
        assert_eq(copy_, whole)
        assert not set(copy_.dask.to_dict()) & {
            key for key in out.dask.to_dict() if str(out.name)[:40] in str(key)
        }
    assert_eq(out + clone(out), 2 * whole)


def test_a_bound_result_waits_for_its_parents() -> None:
    seen: list[str] = []

    def first(x: np.ndarray) -> np.ndarray:
        seen.append("parent")
        return x

    def second(x: np.ndarray) -> np.ndarray:
        seen.append("child")
        return x

    parent = da.map_blocks(first, da.ones((4, 4), chunks=2), dtype=float, meta=np.empty((0, 0)))
    child = tw.tiled_map(second, IMAGE, 16, stride=8, blend="average", chunks=32, dtype="float32")
    bound = bind(child, parent)
    np.testing.assert_array_equal(bound.compute(), child.compute())
    bound_run = seen[: seen.index("child")]
    assert bound_run == ["parent"] * 4
    assert_eq(bind(bind(child, parent), parent), child)


def test_who_is_an_unmodified_result(tmp_path: Path) -> None:
    blocks = da.from_array(IMAGE, chunks=30)
    out, of_blocks = blend(IMAGE), blend(blocks)
    assert find_spec(clone(out)).spec.plan == find_spec(out).spec.plan
    # The graph waits for, or reads, what the recipe does not know.
    assert find_spec(bind(out, blocks)) is None
    assert find_spec(clone(of_blocks)) is None
    assert find_spec(clone(of_blocks, omit=blocks)) is not None
    for number, changed in enumerate(
        [clone(out), bind(out, blocks), clone(of_blocks), clone(of_blocks, omit=blocks)]
    ):
        written = tw.to_zarr(changed, tmp_path / f"{number}.zarr", progress=False, chunks=(32, 32))
        np.testing.assert_array_equal(written, out.compute())


@pytest.mark.parametrize("more", [0, 1])
def test_a_source_is_known_below_what_dask_has_optimised(tmp_path: Path, more: int) -> None:
    source = tw.to_zarr(da.from_array(IMAGE, chunks=(32, 80)), tmp_path / "i.zarr", progress=False)
    out = tw.tiled_map(twice, source, 16, stride=8, blend="average", chunks=(32, 80), dtype="float32")
    [changed] = dask.optimize(out + more if more else out)
    assert [spec.plan for spec in specs_below(changed)] == [find_spec(out).spec.plan]
    with pytest.raises(tw.TilingError, match=r"i\.zarr"):
        tw.to_zarr(changed, tmp_path / "i.zarr", overwrite=True, progress=False)


# -- other processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_an_array_in_memory_travels_with_the_graph(order: str) -> None:
    image = {"C": IMAGE, "F": np.asfortranarray(IMAGE), "reversed": IMAGE[::-1, ::2]}[order]
    out = blend(image)
    there = pickle.loads(cloudpickle.dumps(out))
    assert_eq(there, out.compute())
    # Once, not once for each of the overlapping parts.
    assert len(cloudpickle.dumps(out.dask)) < image.nbytes + 6000


def test_an_array_over_the_limit_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilework.source.base.MEMORY_TRAVEL_LIMIT", IMAGE.nbytes - 1)
    with pytest.raises(tw.TilingError, match="in memory would be sent"):
        cloudpickle.dumps(blend(IMAGE).dask)


def test_on_a_cluster(client: Any, tmp_path: Path) -> None:
    blocks = da.from_array(IMAGE, chunks=30)
    path = tmp_path / "i.zarr"
    tw.to_zarr(blocks.rechunk(32), path, progress=False)
    expected = blend(IMAGE).compute(scheduler="sync")
    for image in (IMAGE, blocks, path):
        out = blend(image)
        np.testing.assert_array_equal(out.compute(), expected)
        np.testing.assert_array_equal(out[40:50, 3:70].compute(), expected[40:50, 3:70])
        np.testing.assert_array_equal((out.persist() + 0).compute(), expected)
        np.testing.assert_array_equal(clone(out).compute(), expected)
        np.testing.assert_array_equal(out.compute(optimize_graph=False), expected)


# -- dask's query planning --------------------------------------------------------------------------------

PLANNING = Path(__file__).parent / "query_planning.py"


@pytest.mark.sample(0)
def test_behind_query_planning() -> None:
    """dask chooses between its two kinds of arrays when it is imported, so this is another process."""
    environment = os.environ | {"DASK_ARRAY__QUERY_PLANNING": "True"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.query_planning"], env=environment, capture_output=True, text=True,
        cwd=PLANNING.parent.parent, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-1] == "right"
