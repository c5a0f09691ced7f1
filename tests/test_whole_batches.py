"""Batches that are filled to ``batch_size``: what the function sees, and what it must not change."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import replace

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.sampling import share
from tilework.execution.local import run
from tilework.execution.where import Where
from tilework.function.calling import call_whole
from tilework.graph.build import find_spec
from tilework.plan.cost import repeated_crops
from tilework.plan.tile_plan import TilePlan
from tilework.writing.closing import Destination
from tilework.writing.jobs import TileJob


class Seen:
    """A function of batches that notes their shapes; each crop's result is its own."""

    def __init__(self, whole=None):
        self.shapes = []
        if whole is not None:
            self.__tilework_whole_batches__ = whole

    def __call__(self, batch, tiles=None):
        if tiles is not None:
            assert len(tiles) == len(batch)
        self.shapes.append(batch.shape)
        return np.cumsum(batch, axis=-1) + len(batch) * 0


def image(shape=(90, 70)):
    return np.random.default_rng(0).random(shape).astype("f4")


OPTIONS = {
    "trim": {},
    "blend": {"blend": "gaussian"},
    "clip": {"edge": "clip", "blend": "hann"},
    "mask": {"mask": np.arange(12).reshape(4, 3) % 3 > 0, "mask_scale": (90 / 4, 70 / 3)},
    "skip": {"skip": lambda crop: crop[0, 0] < 0.4},
    "nodata": {"where": np.add.outer(np.arange(90), np.arange(70)) % 97 < 40},
    "pass_tile": {"pass_tile": True},
    "recompute": {"blend": "gaussian", "reuse": "recompute"},
}


@pytest.mark.parametrize("size", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_batch_has_one_length_and_results_stay(option, size):
    given = {"dtype": "f4", "chunks": (45, 40)} | OPTIONS[option]
    fn, other = Seen(), Seen()
    out = tw.tiled_map(fn, image(), 20, 3, batch_size=size, pad_batch=True, **given)
    expected = tw.tiled_map(other, image(), 20, 3, batch_size=size, **given)
    np.testing.assert_array_equal(tw.compute(out), tw.compute(expected))
    assert {shape[0] for shape in fn.shapes} == {size}
    assert len(fn.shapes) == len(other.shapes)
    crops = sum(shape[0] for shape in other.shapes)
    plan = out_plan(out)
    if option not in ("skip", "nodata"):
        assert repeated_crops(plan) == size * len(fn.shapes) - crops
        assert plan.calls() == crops
        told = f"{repeated_crops(plan)} crops are repeated"
        assert (told in tw.explain(out)) == (repeated_crops(plan) > 0)


SHARED = [
    ((120, 40), 30, 20, 30), ((100,), 24, 14, 30), ((61, 47), 16, 6, 20), ((30, 26, 22), 10, 7, 12),
    ((40, 36, 10), (12, 10, 10), (9, 8, 10), (20, 12, 10)),
]  # fmt: skip


@pytest.mark.parametrize("reuse", ["share", "recompute", "slabs"])
@pytest.mark.parametrize("blend", ["average", "gaussian", "max"])
@pytest.mark.parametrize("edge", ["clip", "shift"])
@pytest.mark.parametrize("tiling", SHARED, ids=str)
def test_batches_are_full_where_a_task_runs_tiles_of_several_owners(tiling, edge, blend, reuse):
    """The crops are those that `explain` counts, and the bits those of one crop at a time."""
    shape, crop, stride, chunks = tiling
    given = {"stride": stride, "edge": edge, "blend": blend, "dtype": "f4", "chunks": chunks}
    given["reuse"] = "share" if reuse == "slabs" else reuse
    for size in (1, 3, 4):
        fn = Seen()
        out = tw.tiled_map(fn, image(shape), crop, batch_size=size, pad_batch=True, **given)
        spec = find_spec(out).spec
        slabs = 1 if reuse == "slabs" and len(shape) > 1 else 0
        spec = replace(spec, plan=spec.plan.with_blocks(spec.plan.block, given["reuse"], (), slabs))
        result = np.full(shape, np.nan, "f4")
        job = TileJob("", "batches", spec, {0: Destination(result)}, retries=0)
        run([job], Where.find("sync"), progress=False, title="")
        assert sum(s[0] for s in fn.shapes) == spec.plan.calls() + repeated_crops(spec.plan)
        assert {s[0] for s in fn.shapes} == {size}
        alone = tw.tiled_map(lambda x: np.cumsum(x, axis=-1), image(shape), crop, **given)
        np.testing.assert_array_equal(result, alone.compute(scheduler="sync"))


def out_plan(out):
    return find_spec(out).spec.plan


@settings(max_examples=share(60), deadline=None)
@given(data=st.data())
def test_law_repeated_crops_are_counted(data):
    draw = data.draw
    n = draw(st.integers(1, 2))
    shape = tuple(draw(st.integers(1, 40)) for _ in range(n))
    crop = draw(st.integers(1, min(12, *shape)))
    overlap = draw(st.integers(0, (crop - 1) // 2))
    edge = draw(st.sampled_from(["shift", "pad", "clip", "squeeze", "drop"]))
    chunks = draw(st.integers(crop, 40))
    reuse = draw(st.sampled_from(["share", "recompute"]))
    fn, other = Seen(), Seen()
    options = {
        "batch_size": draw(st.integers(1, 6)), "edge": edge, "reuse": reuse, "dtype": "f4", "chunks": chunks,
        "blend": draw(st.sampled_from(["trim", "max"])) if overlap else "trim",
    }  # fmt: skip
    try:
        out = tw.tiled_map(fn, image(shape), crop, overlap, pad_batch=True, **options)
    except tw.TilingError:
        return
    expected = tw.tiled_map(other, image(shape), crop, overlap, **options)
    np.testing.assert_array_equal(out.compute(), expected.compute())
    crops = [sum(s[0] for s in f.shapes) for f in (fn, other)]
    assert repeated_crops(out_plan(out)) == crops[0] - crops[1]


def test_the_function_may_ask_for_whole_batches():
    for whole, asked in ((True, True), (lambda: True, True), (lambda: False, False), (None, False)):
        for fn in (Seen(whole), Seen(whole)):
            tw.tiled_map(fn, image(), 20, 3, batch_size=4, dtype="f4").compute()
            assert ({s[0] for s in fn.shapes} == {4}) == asked
        fn = Seen(whole)
        tw.tiled_map(fn, image(), 20, 3, batch_size=4, dtype="f4", pad_batch=False).compute()
        assert {s[0] for s in fn.shapes} != {4}


def test_a_function_of_whole_batches_gets_no_other_one():
    """Where the outputs are found, where the overlap is, in a view and in a check."""
    fn = Seen()
    out = tw.tiled_map(fn, image(), 20, 3, batch_size=4, pad_batch=True)
    tw.view(out)[5:30, 7:9]
    tw.check(out)
    tw.explain(out, measure=True)

    def blur(batch):
        fn.shapes.append(batch.shape)
        wide = np.pad(batch, [(0, 0), (0, 0), (1, 1)], "edge")
        return (wide[..., 2:] + wide[..., :-2]) / 2

    tw.tiled_map(blur, image(), 20, "auto", batch_size=4, pad_batch=True)
    assert {s[0] for s in fn.shapes} == {4}


def test_failed_batches_are_tried_again_with_their_length():
    fn = Seen()

    def fails(batch):
        fn.shapes.append(batch.shape)
        if (batch == 7).any():
            raise ValueError("seven")
        return batch

    values = image()
    values[50, 50] = 7
    with pytest.warns(tw.TilingWarning):
        tw.to_zarr(
            tw.tiled_map(fails, values, 20, 0, batch_size=3, pad_batch=True, dtype="f4", chunks=40),
            zarr.storage.MemoryStore(), on_error="fill", progress=False,
        )  # fmt: skip
    assert {s[0] for s in fn.shapes} == {3}


def test_the_last_crop_is_repeated_with_its_tile():
    def fn(left, right, tiles):
        assert [list(left[:, 0]), list(right[:, 0]), list(tiles)] == [
            [1, 2, 2, 2],
            [3, 4, 4, 4],
            list("abbb"),
        ]
        return left, right

    crops = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    for found, crop in zip(call_whole(fn, 4, *crops, tiles=("a", "b")), crops, strict=True):
        np.testing.assert_array_equal(found, crop)


def test_what_whole_batches_return_is_checked():
    def loses(batch):
        return batch[:2]

    out = tw.tiled_map(loses, image(), 20, 0, batch_size=5, pad_batch=True, dtype="f4", chunks=40)
    with pytest.raises(tw.ContractError, match="batch of 5 crops"):
        out.compute()


def test_outputs_of_several_kinds_are_cut():
    outputs = {"a": tw.Output("f4"), "b": tw.Output("f4", channels=2)}

    def both(batch):
        return {"a": batch, "b": np.stack([batch, -batch], 1)}

    out = tw.tiled_map(both, image(), 20, 2, batch_size=7, pad_batch=True, output=outputs, chunks=40)
    a, b = dask.compute(out["a"], out["b"])
    np.testing.assert_array_equal(a, image())
    np.testing.assert_array_equal(b, [image(), -image()])


def test_arguments_and_records():
    with pytest.raises(tw.TilingError, match="batch_size"):
        tw.plan_tiles((40, 40), 20, 0, pad_batch=True)
    with pytest.raises(TypeError, match="pad_batch"):
        tw.plan_tiles((40, 40), 20, 0, batch_size=3, pad_batch=1)
    plan = tw.plan_tiles((90, 70), 20, 3, batch_size=4, pad_batch=True)
    assert TilePlan.from_json(plan.to_json()) == plan
    plain = replace(plan, batches="asked")
    assert "batches" not in json.loads(plain.to_json())  # records of earlier versions have no word on it
    assert TilePlan.from_json(plain.to_json()) == plain


# -- networks ---------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """What torch compiled: the shapes that each network got, instead of machine code."""
    torch = pytest.importorskip("torch")
    seen = []

    def fake(function, **options):
        assert options == {"dynamic": False}
        shapes = Counter()
        seen.append(shapes)

        def run(x):
            shapes[tuple(x.shape)] += 1
            return function(x)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    return seen


def convolution():
    import torch

    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 1, 3, padding=1)


@pytest.mark.parametrize("made", ["module", "factory"])
def test_a_compiled_network_sees_one_shape(compiled, made):
    given = convolution() if made == "module" else convolution
    net = tw.from_torch(given, device="cpu", compile=True)
    out = tw.tiled_map(net, image(), 20, 1, batch_size=4, chunks=40)
    result = tw.compute(out, scheduler="threads")
    assert [list(shapes) for shapes in compiled] == [[(4, 1, 20, 20)]]
    options = {"batch_size": 4, "chunks": 40}
    plain = tw.tiled_map(tw.from_torch(convolution, device="cpu"), image(), 20, 1, **options, pad_batch=True)
    np.testing.assert_array_equal(result, tw.compute(plain))
    clipped = tw.tiled_map(net, image(), 20, 1, batch_size=4, chunks=40, edge="clip", dtype="f4")
    clipped.compute()
    assert {shape[0] for shape in compiled[0]} == {4}


def test_a_network_on_the_cpu_sees_short_batches():
    torch = pytest.importorskip("torch")
    lengths = []

    class Net(torch.nn.Module):
        def forward(self, x):
            lengths.append(len(x))
            return x

    net = tw.from_torch(Net(), device="cpu")
    tw.tiled_map(net, image(), 20, 0, batch_size=4, chunks=40, dtype="f4").compute()
    assert set(lengths) > {4}
    net._leaves_the_cpu = lambda: True
    lengths.clear()
    tw.tiled_map(net, image(), 20, 0, batch_size=4, chunks=40, dtype="f4").compute()
    assert set(lengths) == {4}


def test_compile_keeps_names_and_frees_the_network(compiled):
    import gc
    import weakref

    def name(fn):
        return tw.tiled_map(fn, image(), 20, 1, dtype="f4").name

    net = convolution()
    plain, fast = tw.from_torch(net, device="cpu"), tw.from_torch(net, device="cpu", compile=True)
    assert name(plain) == name(tw.from_torch(net, device="cpu", compile=False)) != name(fast)
    fast(image((20, 20))[None])
    gone = weakref.ref(net)
    del net, plain, fast
    gc.collect()
    assert gone() is None
    with pytest.raises(TypeError, match="compile"):
        tw.from_torch(convolution, compile=1)


def test_every_network_is_compiled(monkeypatch):
    """Torch keeps eight compiled shapes of one code, which networks must not share."""
    torch = pytest.importorskip("torch")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    networks = [torch.nn.Conv2d(1, n, 1) for n in range(1, 13)]
    for network in networks:
        tw.from_torch(network, device="cpu", compile=True)(image((20, 20))[None])
    assert len(graphs) == len(networks)


def test_torch_that_cannot_compile_says_so(monkeypatch):
    torch = pytest.importorskip("torch")

    class CannotError(Exception):
        __module__ = "torch._inductor.exc"

    def broken(function, **options):
        def run(x):
            raise CannotError("no compiler\nmore")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    net = tw.from_torch(convolution(), device="cpu", compile=True)
    with pytest.raises(tw.TilingError, match=r"CannotError: no compiler\)"):
        net(image((20, 20))[None])


# -- several devices --------------------------------------------------------------------------------------


def test_calls_go_to_all_devices(monkeypatch):
    torch = pytest.importorskip("torch")
    import threading

    from tilework.function import crossing, network, network_places

    # Names that torch knows, on one device that there is.
    real = network.place_of
    monkeypatch.setattr(network_places, "_problem", lambda device, torch: None)

    class Device:
        type = "cuda"

        def __init__(self, name):
            self.name = name

        def __str__(self):
            return self.name

    monkeypatch.setattr(crossing, "_has_streams", lambda device: False)
    monkeypatch.setattr(network, "place_of", lambda m, wanted, t: (Device(wanted), True))
    meeting, used = threading.Barrier(2, timeout=20), set()

    class Net(torch.nn.Module):
        def __init__(self, name=None):
            super().__init__()
            self.name = name

        def forward(self, x):
            if len(used) < 2:
                used.add(self.name)
                meeting.wait()
            return x + 1

    copies = []

    def moved(module, device, torch):
        copies.append(str(device))
        return Net(str(device))

    monkeypatch.setattr(network_places, "moved", moved)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)
    net = tw.from_torch(Net(), device=("cuda:0", "cuda:1"))
    out = tw.tiled_map(net, image((40, 80)), 20, 0, dtype="f4", chunks=20)
    result = tw.compute(out, scheduler="threads")
    assert used == {"cuda:0", "cuda:1"} == set(copies)
    assert len(copies) == 2
    np.testing.assert_array_equal(result, image((40, 80)) + 1)
    assert real is not network.place_of


def test_devices_must_differ():
    for wrong in ((), ("cpu", "cpu"), ("auto", "cpu")):
        with pytest.raises(tw.TilingError, match="different names"):
            tw.from_torch(convolution, device=wrong)
    assert isinstance(tw.from_torch(convolution, device=["cpu"]), type(tw.from_torch(convolution)))


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f8"])
@pytest.mark.parametrize("skip", [None, np.any])
def test_batches_have_the_byte_order_of_the_machine(dtype, skip):
    """As numpy stacks them: torch takes no other one."""
    seen = []

    def noted(batch):
        seen.append((batch.dtype, batch.flags.c_contiguous))
        return batch.astype("f8")

    image = np.arange(1, 401).reshape(20, 20).astype(dtype)
    skips = {} if skip is None else {"skip": lambda crop: not skip(crop)}
    out = tw.tiled_map(noted, np.asfortranarray(image), 8, 2, batch_size=3, dtype="f8", **skips)
    np.testing.assert_array_equal(out.compute(), image)
    assert set(seen) == {(np.dtype(dtype).newbyteorder("="), True)}
