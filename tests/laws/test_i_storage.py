"""I: each unit is written once; what is stored is not computed again; memory stays under the estimate."""

from __future__ import annotations

import json
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
import tilework.engine.block
import tilework.execution.local
import tilework.graph.tasks
from tilework.execution.local import run
from tilework.execution.where import Where
from tilework.graph.build import find_spec, plan_of
from tilework.plan.block_shapes import BlockRequest
from tilework.plan.blocks import choose_blocks
from tilework.plan.memory import peak_bytes
from tilework.writing.jobs import Destination, TileJob
from tilework.writing.ledger import Ledger

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")


class Watching(zarr.storage.WrapperStore):
    """Remembers which data keys were written."""

    def __init__(self, store: Any = None, seen: Any = None) -> None:
        super().__init__(zarr.storage.MemoryStore() if store is None else store)
        self.writes: list[str] = [] if seen is None else seen

    def _with_store(self, store: Any) -> Watching:
        return Watching(store, self.writes)

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if ".tilework" not in key and key.startswith("c/"):
            self.writes.append(key)
        await super().set(key, *args, **kwargs)


def touching(plan: Any, blend: str, missing: np.ndarray, unit: tuple[int, ...]) -> int:
    """Return how many tiles have weight in a missing unit, by looking at every one."""
    count = 0
    for tile in plan:
        box = tile.core if blend == "trim" else tile.read
        spans = [
            range(max(a, 0) // u, -(-min(b, n) // u))
            for a, b, n, u in zip(box.start, box.stop, plan.shape, unit, strict=True)
        ]
        count += any(missing[index] for index in product(*spans))
    return count


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(data=st.data())
def test_I2_only_missing_units_and_only_the_tiles_that_touch_them(data: Any) -> None:
    """The bits of an interrupted result, whatever was missing; finished units are left alone."""
    ndim = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.integers(6, (80, 40, 18)[ndim - 1])) for _ in range(ndim))
    crop = tuple(data.draw(st.integers(3, 8)) for _ in shape)
    overlap = tuple(data.draw(st.integers(1, (c - 1) // 2)) for c in crop)
    blend = data.draw(st.sampled_from(["trim", "average", "gaussian", "max"]))
    edge = data.draw(st.sampled_from(["shift", "squeeze", "pad"]))
    unit = tuple(data.draw(st.integers(-(-n // (6, 4, 3)[ndim - 1]), n)) for n in shape)
    image = np.random.default_rng(data.draw(st.integers(0, 9))).random(shape).astype("f4")
    calls = 0

    def fn(window: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return window * window[(slice(0, 1),) * ndim]

    blocks = data.draw(st.sampled_from(["auto", 12]))
    out = tw.tiled_map(fn, image, crop, overlap, blend=blend, edge=edge, dtype="f4", chunks=blocks)
    store = Watching()
    written = tw.to_zarr(out, store, chunks=unit, version="1", progress=False)
    whole, marks = written[...], Ledger(written)
    assert marks.read().all()
    done = np.array(
        data.draw(st.lists(st.booleans(), min_size=marks.read().size, max_size=marks.read().size))
    )
    done = done.reshape(marks.shape)
    marks.reset(done)
    for index in np.argwhere(~done):
        written[tuple(slice(i * u, (i + 1) * u) for i, u in zip(index, unit, strict=True))] = np.nan
    store.writes.clear()
    calls = 0
    again = tw.to_zarr(out, store, version="1", progress=False)
    np.testing.assert_array_equal(again[...], whole)
    assert sorted(store.writes) == sorted("c/" + "/".join(map(str, i)) for i in np.argwhere(~done))
    exact = touching(plan_of(out), blend, ~done, unit)
    # Blocks shorter than a support cannot share: each runs what touches it.
    shares = all(t.longest <= b or b == n for t, b, n in zip(*blocks_of(again), out.shape, strict=True))
    assert calls >= exact
    assert not shares or calls == exact, (calls, exact)
    assert Ledger(again).read().all()


def blocks_of(array: Any) -> tuple[Any, Any]:
    plan = tw.TilePlan.from_json(json.dumps(plan_stored(array)))
    return plan.tables, plan.block


def plan_stored(array: Any) -> dict[str, Any]:
    found: dict[str, Any] = array.attrs["tilework"]["plan"]
    return found


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(data=st.data())
def test_I2_slabs_and_resume_give_the_same_bits(data: Any) -> None:
    """Also slab by slab, and where slabs were left unfinished."""
    shape = tuple(data.draw(st.integers(20, 40)) for _ in range(3))
    image = np.random.default_rng(0).random(shape).astype("f4")
    crop = data.draw(st.integers(4, 8))
    options: Any = {"blend": "gaussian", "dtype": "f4", "chunks": data.draw(st.integers(8, 12))}
    out = tw.tiled_map(lambda c: c * c.max(), image, crop, crop // 4 or 1, reuse="share", **options)
    whole = out.compute()
    plan = plan_of(out)
    if plan.reuse != "share":
        return
    found = find_spec(out)
    assert found is not None
    for slabs in (1, 2):
        cut = plan.with_blocks(plan.block, "share", (), slabs)
        result, calls = written_under(found[0], found[2], cut, plan.shape)
        np.testing.assert_array_equal(result, whole)
        assert calls == cut.calls()


def written_under(spec: Any, name: str, plan: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Write under a plan that was not chosen, and count the calls."""
    calls = 0

    def counted(window: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        return fn(window)

    result = np.full(shape, np.nan, "f4")
    spec, fn = replace(spec, plan=plan, fn=counted), spec.fn
    job = TileJob("", name, spec, {0: Destination(result)}, retries=0)
    run([job], Where.find("synchronous"), progress=False, title="")
    return result, calls


def in_batches(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Let local schedulers get a number of blocks at a time."""
    monkeypatch.setattr(tilework.execution.local, "LOCAL_BLOCKS", blocks)
    monkeypatch.setattr(tilework.execution.local, "BLOCKS_PER_WORKER", 1)


@pytest.mark.parametrize("window", [1, 3, 16])
@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_I2_seams_are_carried_over_from_window_to_window(
    window: int, blend: str, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """A run in small portions: each tile once, the same bits."""
    in_batches(monkeypatch, window)
    image = np.random.default_rng(0).random((30, 26, 14)).astype("f4")
    out = tw.tiled_map(np.sqrt, image, 6, stride=4, blend=blend, dtype="f4", chunks=8)
    with dask.config.set(scheduler="sync"):
        whole = out.compute()
    seen: list[int] = []
    store: Any = zarr.storage.MemoryStore()
    if scheduler == "processes":
        import tempfile

        store = tempfile.mkdtemp() + "/a.zarr"
    written = tw.to_zarr(out, store, chunks=8, progress=lambda done, total: seen.append(done))
    np.testing.assert_array_equal(written[...], whole)
    assert seen[-1] == len(plan_of(out))
    assert seen == sorted(seen)


class Seams(dict[Any, Any]):
    """The seams of a block, which a weak set can hold."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("shape", [(256, 16, 16), (192, 32), (32, 192)])
@pytest.mark.parametrize("blocks", [8, 24])
def test_I2_batches_hold_few_more_seams_than_one_run(
    shape: tuple[int, ...], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is for the next batch; those of the batch before go when they were added."""
    options: dict[str, Any] = {"crop": 8, "stride": 4, "blend": "gaussian", "chunks": 8}
    whole = most_seams(shape, options, monkeypatch)
    in_batches(monkeypatch, blocks)
    assert most_seams(shape, options, monkeypatch) <= whole + 2


@pytest.mark.parametrize(
    "face",
    [(64,), (60,), (50,), (64, 50), (50, 64), (60, 36), (40, 150), (40, 144)],
    ids=lambda face: "x".join(map(str, face)),
)
@pytest.mark.parametrize("blend", ["max", "gaussian"])
@pytest.mark.sample(0, whole=6)
def test_I2_seams_wait_in_one_plane_whether_or_not_the_last_blocks_own_tiles(
    face: tuple[int, ...], blend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block without a group of its own is not computed before those that come first."""
    chunks = (24, *(12 for _ in face))
    options: dict[str, Any] = {"crop": 8, "overlap": 1, "blend": blend, "chunks": chunks, "reuse": "share"}
    in_batches(monkeypatch, 10**6)
    short, long = (most_seams((length, *face), options, monkeypatch) for length in (8 * 24, 20 * 24))
    assert long <= short + 1


def most_seams(
    shape: tuple[int, ...],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    image: Any = None,
    then: Callable[[Any], Any] = lambda out: out,
) -> int:
    """Return the largest number of blocks whose seams are held at a time, to make ``then`` of a result."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    counts: list[int] = []

    def cut_seams(*args: Any) -> Any:
        found = Seams(tilework.engine.block.cut_seams(*args))
        alive.add(found)
        counts.append(len(alive))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(tilework.graph.tasks, "cut_seams", cut_seams)
        image = np.ones(shape, "f4") if image is None else image
        out = tw.tiled_map(np.sqrt, image, **{"dtype": "f4", **options})
        tw.compute(then(out), scheduler="sync")
    assert len(counts) > 8
    return max(counts)


def test_I3_slabs_where_a_plane_of_seams_does_not_fit() -> None:
    """Less memory, more calls; never more than was allowed, and refused with the number that would do."""
    plan = tw.plan_tiles((2000, 2000, 2000), 128, stride=64, blend="gaussian", dtype="f4")
    plan = replace(plan, threads=2)
    needed, calls, kinds = peak_bytes(plan), len(plan), []
    for limit in [needed, needed // 2, needed // 4, needed // 8, needed // 12]:
        chosen = choose_blocks(plan, BlockRequest(None, None, (128,) * 3, limit, slabs=True))
        assert peak_bytes(chosen) <= limit
        assert chosen.calls() >= calls, "more memory is never worse"
        calls = chosen.calls()
        kinds.append(chosen.slabs)
    assert kinds[:2] == [0, 1]
    assert kinds[-1] == 2
    with pytest.raises(tw.MemoryBudgetError, match=r"memory_limit=\d+") as refused:
        choose_blocks(plan, BlockRequest(None, None, (128,) * 3, 10_000_000, slabs=True))
    enough = int(str(refused.value).rpartition("memory_limit=")[2].rstrip("."))
    choose_blocks(plan, BlockRequest(None, None, (128,) * 3, enough, slabs=True))


def test_I3_fewer_threads_where_memory_asks_for_it() -> None:
    """Before a run is refused, it takes its tasks one at a time."""
    running, most, wanted, lock = 0, 0, 2, threading.Lock()

    def fn(crop: np.ndarray) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        end = time.monotonic() + 10
        while most < wanted and time.monotonic() < end:
            time.sleep(0.002)  # another thread may begin late
        time.sleep(0.002)
        with lock:
            running -= 1
        return crop

    out = tw.tiled_map(fn, np.zeros((256, 256), "f4"), 64, 8, dtype="f4")
    options: Any = {"chunks": 64, "progress": False}
    with dask.config.set(scheduler="threads", num_workers=4):
        tw.to_zarr(out, zarr.storage.MemoryStore(), **options)
        assert most > 1
        unlimited, most, wanted = most, 0, 1
        with pytest.raises(tw.MemoryBudgetError) as refused:
            tw.to_zarr(out, zarr.storage.MemoryStore(), memory_limit=1000, **options)
        least = int(str(refused.value).rpartition("memory_limit=")[2].rstrip("."))
        tw.to_zarr(out, zarr.storage.MemoryStore(), memory_limit=least, **options)
    assert most == 1 < unlimited


def test_I3_a_result_in_slabs_is_the_same(tmp_path: Path) -> None:
    """End to end: less memory, the same numbers; the store says in how many slabs."""
    image = np.random.default_rng(0).random((160, 120, 120)).astype("f4")
    out = tw.tiled_map(np.sqrt, image, 24, stride=12, blend="sum", dtype="f4")
    options: Any = {"chunks": 24, "progress": False, "scheduler": "synchronous"}
    whole = tw.to_zarr(out, tmp_path / "a.zarr", **options)
    limit = peak_bytes(replace(plan_of(out), threads=1)) // 12
    less = tw.to_zarr(out, tmp_path / "b.zarr", memory_limit=limit, **options)
    assert (plan_stored(whole)["slabs"], plan_stored(less)["slabs"]) == (0, 1)
    np.testing.assert_allclose(less[...], whole[...], rtol=2e-6)


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(data=st.data())
def test_I2_a_changed_mask_forgets_only_what_it_touches(data: Any) -> None:
    """Units whose tiles are the same as before stay done."""
    image = np.random.default_rng(1).random((40, 40)).astype("f4")
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=16, max_size=16))).reshape(4, 4) for _ in range(2)
    ]
    blend = data.draw(st.sampled_from(["trim", "average"]))
    calls = 0

    def fn(window: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return window + 1

    outs = [
        tw.tiled_map(fn, image, 8, 2, mask=mask, blend=blend, dtype="f4", chunks=20, fill_value=-1)
        for mask in masks
    ]
    store = zarr.storage.MemoryStore()
    tw.to_zarr(outs[0], store, chunks=10, version="1", progress=False)
    calls = 0
    second = tw.to_zarr(outs[1], store, version="1", progress=False)
    if (masks[0] == masks[1]).all():
        assert calls == 0
    assert Ledger(second).read().all()
    np.testing.assert_array_equal(second[...], outs[1].compute())


Count = Callable[[Callable[..., Any]], Any]


def test_I2_several_outputs_are_resumed_together(counting: Count) -> None:
    """A tile runs if any output misses a unit that it touches."""

    def both(window: np.ndarray) -> dict[str, np.ndarray]:
        return {"same": window, "small": window[::4, ::4]}

    fn = counting(both)
    image = np.random.default_rng(0).random((64, 64)).astype("f4")
    outputs = {"same": tw.Output("f4"), "small": tw.Output("f4", scale=0.25)}
    out = tw.tiled_map(fn, image, 16, 4, output=outputs)
    store = zarr.storage.MemoryStore()
    group = tw.to_zarr(out, store, chunks={"same": 16, "small": 4}, progress=False)
    whole = {key: group[key][...] for key in group}
    marks = Ledger(group["small"])
    done = marks.read()
    done[1, 2] = False
    marks.reset(done)
    group["small"][4:8, 8:12] = 0
    fn.reset()
    again = tw.to_zarr(out, store, progress=False)
    assert 0 < fn.calls <= 9 < math.prod(plan_of(out["same"]).grid_shape)
    for key, value in whole.items():
        np.testing.assert_array_equal(again[key][...], value)
