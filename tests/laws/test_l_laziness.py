"""L: building computes nothing, tiles run as often as the plan says, graphs are small and named."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import Task
from hypothesis import assume, given
from hypothesis import strategies as st

from tilework import Box, Output, TilePlan, load_once, tiled_map
from tilework.errors import GridError
from tilework.graph.build import find_spec
from tilework.plan.cost import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


def first(out: Any) -> Any:
    out = tuple(out.values()) if isinstance(out, dict) else out
    return out[0] if isinstance(out, tuple) else out


def plan_of(out: Any) -> TilePlan:
    return find_spec(first(out))[0].plan  # type: ignore[index]


def counted(graph: Any) -> list[Any]:
    """Return the keys of tasks that compute something, not those that fill untouched blocks."""
    found = [key for key, node in dict(graph).items() if isinstance(node, Task)]
    return [key for key in found if "-fill-" not in str(key)]


class Watched:
    """An array-like that counts its reads."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __getitem__(self, index: Any) -> np.ndarray:
        self.reads += 1
        return self.array[index]


class Seen:
    """An identity that keeps shape, dtype, sum and keywords of every call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *crops: np.ndarray, **keywords: Any) -> np.ndarray:
        self.calls.append((*((c.shape, c.dtype.name, float(c.sum())) for c in crops), *keywords))
        return crops[0].copy()


@pytest.fixture
def runs() -> Iterator[list[int]]:
    """Give a list that grows by one at every run of the scheduler."""
    found: list[int] = []

    def get(graph: Any, keys: Any, **options: Any) -> Any:
        found.append(1)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=get):
        yield found


# -- L1 -----------------------------------------------------------------------------------------

IMAGE = np.arange(1.0, 20 * 18 + 1).reshape(20, 18)

DECLARED: dict[str, dict[str, Any]] = {
    "trim": {"dtype": float},
    "hann": {"dtype": float, "blend": "hann"},
    "batch": {"output": Output("f4"), "batch_size": 3},
    "pad": {"dtype": float, "blend": "max", "edge": "pad"},
    "mask": {"dtype": float, "mask": IMAGE > 300, "blend": "gaussian"},
}


@pytest.mark.parametrize("options", DECLARED.values(), ids=DECLARED)
def test_L1_building_reads_nothing_and_calls_nothing(
    options: dict[str, Any], runs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fn, blocks, watched = Seen(), [], Watched(IMAGE)

    def block(block_id: tuple[int, ...]) -> np.ndarray:
        blocks.append(block_id)
        return IMAGE[:10, :9]

    lazy = da.map_blocks(block, chunks=((10, 10), (9, 9)), dtype=float, meta=np.empty((0, 0)))
    stored = zarr.create_array(str(tmp_path / "z"), data=IMAGE)
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("the store was read"))
    for source in (IMAGE, lazy, watched, stored, tmp_path / "z"):
        out = tiled_map(fn, source, 8, 2, **options)
        assert out.shape == (20, 18)
    assert (fn.calls, blocks, watched.reads, runs) == ([], [], 0, [])
    tiled_map(fn, lazy, 8, 2, **options).compute()
    assert all((runs, blocks, fn.calls)), "or the zeros above prove nothing"


ONE_CALL: dict[str, tuple[tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "int": ((20, 18), {"crop": 8}, (8, 8)),
    "tuple": ((20, 18), {"crop": (6, 8), "edge": "clip"}, (6, 8)),
    "untiled in front": ((3, 20, 18), {"crop": (6, 8)}, (3, 6, 8)),
    "untiled behind": ((20, 18, 3), {"crop": 8, "axes": (0, 1)}, (8, 8, 3)),
    "each": ((4, 20, 18), {"crop": 8, "each": 0}, (8, 8)),
    "batch": ((20, 18), {"crop": 8, "batch_size": 4}, (1, 8, 8)),
    "short image": ((5, 18), {"crop": 8, "axes": (0, 1)}, (8, 8)),
}


@pytest.mark.parametrize(("shape", "options", "seen"), ONE_CALL.values(), ids=ONE_CALL)
def test_L1_an_undeclared_output_costs_one_call_on_zeros(
    shape: tuple[int, ...], options: dict[str, Any], seen: tuple[int, ...], runs: list[int]
) -> None:
    fn, watched = Seen(), Watched(np.ones(shape, np.int16))
    out = tiled_map(fn, watched, overlap=2, **options)
    assert fn.calls == [((seen, "int16", 0.0),)]
    assert (watched.reads, runs, out.dtype, out.shape) == (0, [], np.int16, shape)


def test_L1_the_call_on_zeros_gets_all_crops_and_the_tile() -> None:
    fn = Seen()
    arrays = np.ones((20, 18), np.uint8), np.ones((20, 18, 2), np.float32)
    tiled_map(fn, arrays, (8, 8), 2, axes=(0, 1), pass_tile=True)
    assert fn.calls == [(((8, 8), "uint8", 0.0), ((8, 8, 2), "float32", 0.0), "tile")]


# -- L2 -----------------------------------------------------------------------------------------


@st.composite
def grids(draw: Callable[..., Any], *, masked: bool) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Draw an extent per axis, and arguments of `tiled_map` that go with it."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, (80, 30, 12)[ndim - 1])) for _ in range(ndim))
    crop = tuple(draw(st.integers(3, 8)) for _ in shape)
    options: dict[str, Any] = {
        "crop": crop,
        "overlap": tuple(draw(st.integers(1, (c - 1) // 2)) for c in crop),
        "axes": tuple(range(ndim)),
        "edge": draw(st.sampled_from(["shift", "squeeze", "pad", "clip", "drop"])),
        "blend": draw(st.sampled_from(["trim", "average", "hann", "max"])),
        "chunks": tuple(draw(st.integers(1, 25)) for _ in shape),
        "reuse": draw(st.sampled_from(["auto", "share", "recompute"])),
        "batch_size": draw(st.sampled_from([None, 1, 3])),
        "dtype": np.float32,
    }
    if masked:
        coarse = tuple(draw(st.integers(1, min(n, 9 - 2 * ndim))) for n in shape)
        bits = draw(st.lists(st.booleans(), min_size=8, max_size=8))
        options["mask"] = np.resize([*bits, False, True], coarse)
        options["mask_scale"] = tuple(n / m for n, m in zip(shape, coarse, strict=True))
    return shape, options


def built(fn: Any, shape: tuple[int, ...], options: dict[str, Any]) -> Any:
    try:
        return tiled_map(fn, np.ones(shape, np.float32), **options)
    except GridError as error:
        assume("longest support" not in str(error))
        raise


def n_crops(fn: Seen, batch: int | None) -> int:
    return sum(1 if batch is None else call[0][0][0] for call in fn.calls)


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask"])
@given(st.data())
def test_L2_a_slice_runs_as_many_crops_as_the_plan_says(masked: bool, data: st.DataObject) -> None:
    shape, options = data.draw(grids(masked=masked))
    fn = Seen()
    out = built(fn, shape, options)
    plan = plan_of(out)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    sides = zip(start, shape, strict=True)
    box = Box(start, tuple(data.draw(st.integers(a + 1, n)) for a, n in sides))
    out[box.slices].compute()
    assert n_crops(fn, options["batch_size"]) == plan.calls(box)
    fn.calls.clear()
    out.compute()
    assert n_crops(fn, options["batch_size"]) == plan.calls()
    if plan.reuse == "share":
        assert plan.calls() == (len(plan) if plan.runs is None else plan.runs.sum())


@pytest.mark.parametrize("keys", [(0, 1), ("a", "b")], ids=["tuple", "dict"])
def test_L2_several_outputs_computed_together_run_each_tile_once(keys: tuple[Any, Any]) -> None:
    calls = []

    def pack(*values: Any) -> Any:
        return values if keys == (0, 1) else dict(zip(keys, values, strict=True))

    def fn(crop: np.ndarray) -> Any:
        calls.append(1)
        return pack(crop, -crop)

    output = pack(Output(float), Output(float, blend="hann"))
    outs = tiled_map(fn, IMAGE, 8, 2, output=output, chunks=8, reuse="share")
    a, b = dask.compute(*(outs[key] for key in keys))
    np.testing.assert_allclose(a, -b, rtol=1e-12)
    assert len(calls) == len(plan_of(outs))
    for key in keys:
        outs[key].compute()
    assert len(calls) == 3 * len(plan_of(outs))


# -- L3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["trim", "hann"])
@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_L3_at_most_three_tasks_per_block(ndim: int, blend: str) -> None:
    image = np.ones((12,) * ndim, np.float32)
    options: dict[str, Any] = {"dtype": "f4", "chunks": 7, "blend": blend}
    out = tiled_map(np.copy, image, 5, 1, reuse="share", **options)
    # Two blocks per axis: a group and a merge for each, and a seam for all but the last.
    assert len(counted(out.__dask_graph__())) == tasks(plan_of(out)) == 3 * 2**ndim - 1
    apart = tiled_map(np.copy, image, 5, 1, reuse="recompute", **options)
    assert len(counted(apart.__dask_graph__())) == tasks(plan_of(apart)) == 2**ndim


def test_L3_several_outputs_cost_a_getter_per_block() -> None:
    options: dict[str, Any] = {"output": (Output(float),) * 2, "chunks": 10, "blend": "hann"}
    outs = tiled_map(lambda x: (x, x), np.ones((20, 20)), 8, 2, **options)
    kinds = Counter(
        key[0].rsplit("-", 1)[-1] for key in counted(HighLevelGraph.merge(*(o.dask for o in outs)))
    )
    assert kinds == {"all": 4, "group": 4, "seam": 3, "0": 4, "1": 4}
    assert tasks(plan_of(outs)) == kinds.total()


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask"])
@given(st.data())
def test_L3_the_plan_counts_the_tasks_that_run(masked: bool, data: st.DataObject) -> None:
    shape, options = data.draw(grids(masked=masked))
    out = built(np.copy, shape, options)
    expected, ran = set(counted(out.__dask_graph__())), set()
    with Callback(posttask=lambda key, *_: ran.add(key)):
        out.compute(optimize_graph=False)
    assert len(expected & ran) == len(expected) == tasks(plan_of(out)) <= 3 * out.npartitions


# -- L4 -----------------------------------------------------------------------------------------


def double(crop: np.ndarray, tile: Any = None) -> np.ndarray:
    return 2 * crop


def times(factor: float) -> Any:
    return load_once(functools.partial, (np.multiply, factor))


def declare(*values: Any, **options: Any) -> dict[str, Any]:
    return {"dtype": None, "output": Output(*values, **options)}


def stack(channel_axis: int) -> dict[str, Any]:
    options = {"shape": (2, 2, 8, 8), "axes": (2, 3), "channel_axis": channel_axis}
    return {"blend": "trim"} | declare(reduce="argmax", **options)


BASE: dict[str, Any] = {"crop": (8, 8), "overlap": 2, "dtype": float, "blend": "hann"}
UP = np.arange(1.0, 9.0)
OTHERS: dict[str, dict[str, Any]] = {
    "fn": {"fn": np.positive}, "lambda": {"fn": lambda x: 3 * x},
    "load_once": {"fn": times(2)}, "its arguments": {"fn": times(3)}, "array": {"array": IMAGE + 1},
    "its dtype": {"array": IMAGE.astype("f4")}, "its axes": {"array": IMAGE.T},
    "two": {"array": (IMAGE, IMAGE)}, "order": {"array": (IMAGE, IMAGE + 1)},
    "and back": {"array": (IMAGE + 1, IMAGE)}, "each": {"array": IMAGE[None], "each": 0},
    "untiled": {"array": IMAGE[None]}, "crop": {"crop": (8, 9)}, "overlap": {"overlap": (2, 3)},
    "stride": {"overlap": None, "stride": 3}, "multiple": {"multiple": 2}, "edge": {"edge": "pad"},
    "boundary": {"boundary": "wrap"}, "cval": {"cval": 1}, "blend": {"blend": "linear"},
    "max": {"blend": "max"}, "callable": {"blend": np.hamming}, "windows": {"blend": (UP, UP)},
    "other windows": {"blend": (UP, UP[::-1])}, "map": {"blend": np.outer(UP, UP)},
    "other map": {"blend": np.outer(UP, UP[::-1])}, "rim": {"rim": 1},
    "sigma": {"blend": "gaussian"}, "other sigma": {"blend": "gaussian", "sigma_scale": 0.2},
    "dtype": {"dtype": "f4"}, "channels": declare(float, channels=2),
    "channel axis": declare(float, channels=2, channel_axis=-1), "scale": declare(float, scale=2),
    "half": {"multiple": 2} | declare(float, scale=Fraction(1, 2)),
    "margin": declare(float, margin=1), "tuple": {"dtype": None, "output": (Output(float),)},
    "dict": {"dtype": None, "output": {"a": Output(float)}},
    "its key": {"dtype": None, "output": {"b": Output(float)}},
    "reduce": declare(float, reduce=np.abs), "other reduce": declare(float, reduce=np.negative),
    "argmax of axis 0": stack(0), "argmax of axis 1": stack(1), "batch": {"batch_size": 2},
    "mask": {"mask": IMAGE > 200}, "other mask": {"mask": IMAGE > 300}, "skip": {"skip": np.any},
    "other skip": {"skip": np.all}, "fill": {"fill_value": 1},
    "output's fill": declare(float, fill_value=2), "tile": {"pass_tile": True},
    "chunks": {"chunks": 10}, "reuse": {"reuse": "recompute", "chunks": 10},
}  # fmt: skip


def named(changes: dict[str, Any]) -> str:
    call = {"fn": double, "array": IMAGE} | BASE | changes
    return find_spec(first(tiled_map(**call)))[2]  # type: ignore[index]


def names() -> dict[str, str]:
    """Return names that another process must give too: nothing in them belongs to this one."""
    kept = {k: v for k, v in OTHERS.items() if k != "lambda"}
    return {key: named(changes) for key, changes in kept.items()} | {"base": named({})}


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
def test_L4_equal_calls_have_equal_names() -> None:
    for key, changes in OTHERS.items():
        assert named(changes) == named(changes), key
    assert named({"array": IMAGE.copy()}) == named({})
    assert named({"fn": times(2)}) == named(OTHERS["load_once"])
    assert tiled_map(double, IMAGE, 8, 2, dtype=float, name="mine").name == "mine"


def test_L4_any_changed_argument_gives_another_name() -> None:
    found = {key: named(changes) for key, changes in OTHERS.items()} | {"base": named({})}
    for (a, x), (b, y) in itertools.combinations(found.items(), 2):
        assert x != y, (a, b)


@pytest.mark.sample(0)
def test_L4_another_process_gives_equal_names() -> None:
    code = "import json; from tests.laws import test_l_laziness as t; print(json.dumps(t.names()))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PYTHONHASHSEED": "7"}
    done = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=ROOT)
    assert json.loads(done) == names()


# -- L5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "growth"), [("layers", 0), ("tasks", 1)])
def test_L5_layers_do_not_grow_and_tasks_grow_linearly(tmp_path: Path, form: str, growth: int) -> None:
    def size(n: int) -> int:
        np.save(tmp_path / "image.npy", np.zeros((n, 64), np.float32))
        image = np.load(tmp_path / "image.npy", mmap_mode="r")
        out = tiled_map(np.copy, image, 16, 4, dtype="f4", chunks=16, blend="hann", reuse="share")
        graph = out.__dask_graph__()
        return len(cloudpickle.dumps(dict(graph) if form == "tasks" else graph))

    sizes = [size(n) for n in (128, 256, 512, 1024)]
    if not growth:
        assert sizes[-1] - sizes[0] < 200, sizes
        return
    per_sample = np.diff(sizes) / 128 / np.array([1, 2, 4])
    assert 1 < per_sample.max() < 1.1 * per_sample.min(), sizes


MARK = b"seldom seen: " + bytes(range(64))


class Heavy:
    """A function with weights, in which a pickle can be searched for them."""

    def __init__(self) -> None:
        self.weights = MARK + bytes(10**6)

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        return crop + len(self.weights)


@pytest.mark.parametrize("blend", ["trim", "hann"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "tuple"])
@pytest.mark.filterwarnings("ignore::tilework.CostWarning")
def test_L5_a_task_is_small_and_fn_is_there_once(blend: str, many: bool, tmp_path: Path) -> None:
    stored = zarr.create_array(str(tmp_path / "z"), shape=(128, 128), chunks=(32, 32), dtype="f4")
    output = (Output("f4"),) * 2 if many else Output("f4")
    out = first(tiled_map(Heavy(), stored, 16, 4, output=output, chunks=16, blend=blend))
    graph = dict(out.__dask_graph__())
    sizes = [len(cloudpickle.dumps(graph[key])) for key in counted(graph)]
    assert len(sizes) >= 64
    assert max(sizes) < 4096
    for data in (graph, out.__dask_graph__(), out):
        assert cloudpickle.dumps(data).count(MARK) == 1


def test_L5_a_memmap_of_64_MB_adds_less_than_10_kB(tmp_path: Path) -> None:
    def size(n: int) -> int:
        mapped = np.memmap(tmp_path / f"{n}", np.float32, "w+", shape=(n, n))
        out = tiled_map(np.copy, mapped, n // 16, n // 64, dtype="f4", chunks=n // 4)
        return len(cloudpickle.dumps(out.__dask_graph__()))

    assert size(4096) - size(256) < 10_000
