"""Lanes: threads that read and write while a device works on one call at a time."""

from __future__ import annotations

import functools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import threadpoolctl
import zarr
from dask.system import CPU_COUNT

import tilework as tw
from tilework.execution.progress import Share
from tilework.execution.where import LANES, LANES_PER_DEVICE, Where
from tilework.function import devices, pools
from tilework.function.devices import (
    busy_seconds,
    calls_at_a_time,
    device_lock,
    devices_of,
    transfer_seconds,
    working,
)
from tilework.function.pools import shared_among
from tilework.graph.build import find_spec
from tilework.plan.memory import peak_bytes
from tilework.writing.code import describe
from tilework.writing.preparing import Asked, prepare

CROP, TILES = 8, 24
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def on_threads():
    """The scheduler of dask outside of tests."""
    with dask.config.set(scheduler="threads"):
        yield


class Reads:
    """An image that counts what was read, and waits for nothing."""

    shape, dtype, chunks = (TILES * CROP, CROP), np.dtype("float32"), (CROP, CROP)

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()
        self.values = np.random.default_rng(0).random(self.shape, np.float32)

    def __getitem__(self, index):
        with self.changed:
            self.count += 1
            self.changed.notify_all()
        return self.values[index]

    def wait_for(self, n):
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= n, PATIENCE)


class Device:
    """Its first call ends when ``n`` blocks have been read; calls must not overlap."""

    def __init__(self, image, n):
        self.image, self.n = image, n
        self.calls = self.running = self.most = 0
        self.reached = None

    def __call__(self, crop):
        self.running += 1
        self.most = max(self.most, self.running)
        if self.reached is None:
            self.reached = self.image.wait_for(self.n)
        self.calls += 1
        self.running -= 1
        return crop * 3 + 1


# A factory that is pickled cannot hold a lock.
_BUILT = {}


def build(key):
    return _BUILT[key]


def device_function(n):
    image = Reads()
    device = Device(image, n)
    _BUILT[id(device)] = device
    return image, device, tw.load_once(build, (id(device),))


def mapped(fn, image, **options):
    return tw.tiled_map(fn, image, CROP, 0, axes=(0, 1), dtype="float32", chunks=(CROP, CROP), **options)


RUNS = {
    "compute": lambda out, **o: tw.compute(out, **o),
    "to_zarr": lambda out, **o: tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, **o)[:],
    "write_many": lambda out, **o: tw.write_many([(out, zarr.storage.MemoryStore())], progress=False, **o)[
        0
    ].result[:],
    "changed": lambda out, **o: tw.compute(out * 1, **o),
    "chain": lambda out, **o: tw.compute(mapped(np.negative, out), **o) * -1,
}


@pytest.mark.parametrize("run", RUNS)
def test_reads_go_on_while_a_call_runs(run):
    image, device, fn = device_function(LANES)
    result = RUNS[run](mapped(fn, image))
    assert device.reached, f"only {image.count} blocks were read while the first call ran"
    assert (device.calls, device.most) == (TILES, 1)
    np.testing.assert_array_equal(result, image.values * 3 + 1)


@pytest.mark.parametrize("lanes", [1, 3, 12])
@pytest.mark.parametrize("run", RUNS)
def test_lanes_says_how_many_threads_run(run, lanes):
    image, device, fn = device_function(lanes)
    RUNS[run](mapped(fn, image), lanes=lanes)
    assert device.reached
    image, device, fn = device_function(lanes + 1)
    device.image = SimpleNamespace(wait_for=lambda n: threading.Event().wait(0.2) or image.count >= n)
    RUNS[run](mapped(fn, image), lanes=lanes)
    assert not device.reached


def test_a_network_has_lanes():
    torch = pytest.importorskip("torch")

    image = Reads()
    device = Device(image, LANES)

    key = id(device)
    _BUILT[key] = device

    class Net(torch.nn.Module):
        def forward(self, x):
            return build(key)(x)

    for net in (Net(), Net):
        device.reached = None
        image.count = 0
        result = tw.compute(mapped(tw.from_torch(net, device="cpu"), image))
        assert device.reached
        assert device.most == 1
        np.testing.assert_array_equal(result, image.values * 3 + 1)


def threads_of(fn, **options):
    out = tw.tiled_map(fn, np.zeros((128, 128), "f4"), 16, 0, dtype="f4", chunks=16)
    job, writing = prepare(out, None, Asked(), Where.find(**options), {"": np.zeros((128, 128), "f4")})
    writing.release()
    return job.threads


class Held:
    def __init__(self, fn):
        self.fns = [fn]

    def __call__(self, crop):
        return self.fns[0](crop)

    def method(self, crop):
        return self.fns[0](crop)


MODEL = tw.load_once(lambda: np.negative)


def uses_a_global(crop):
    return MODEL(crop)


def uses_a_global_in_a_comprehension(batch):
    return [MODEL(crop) for crop in batch]


def uses_a_global_in_a_function(batch):
    def one(crop):
        return (lambda: MODEL(crop))()

    return list(map(one, batch))


def wrapped(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    return wrapper


HOLDERS = {
    "itself": lambda fn: fn,
    "partial": lambda fn: functools.partial(functools.partial(fn)),
    "argument of a partial": lambda fn: functools.partial(lambda f, x: f(x), fn),
    "keyword of a partial": lambda fn: functools.partial(lambda x, f: f(x), f=fn),
    "closure": lambda fn: lambda x: fn(x),
    "default": lambda fn: lambda x, f=fn: f(x),
    "closure in a closure": lambda fn: wrapped(lambda x: fn(x)),
    "attribute": Held,
    "method": lambda fn: Held(fn).method,
    "global": lambda fn: uses_a_global,
    "global in a comprehension": lambda fn: uses_a_global_in_a_comprehension,
    "global in a function": lambda fn: uses_a_global_in_a_function,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_functions_that_hold_a_device_have_lanes(holder):
    assert threads_of(HOLDERS[holder](MODEL)) == max(LANES, CPU_COUNT)


@pytest.mark.parametrize("holder", [h for h in HOLDERS if "global" not in h])
def test_other_functions_have_the_threads_of_dask(holder):
    assert threads_of(HOLDERS[holder](np.negative)) == CPU_COUNT


class Proxy:
    """Stands for an object that is not there, or is far away: it has every attribute, or none."""

    def __init__(self, answer):
        self.answer = answer

    def __getattr__(self, name):
        return self.answer(name)

    def __call__(self, crop):
        return crop


def no_object(name):
    raise RuntimeError(f"there is no object to ask for {name}")


class Remote:
    def __init__(self, name):
        pass

    def __call__(self, *args):
        raise AssertionError("the remote object was called")


@pytest.mark.parametrize("answer", [no_object, Remote])
def test_proxies_that_a_function_uses_are_not_called(answer):
    proxy = Proxy(answer)

    def fn(batch):
        return proxy(batch)

    image = np.arange(400.0).reshape(20, 20)
    result = tw.compute(tw.tiled_map(fn, image, 8, 2, dtype="f8", batch_size=3))
    np.testing.assert_array_equal(result, image)
    assert devices_of(fn) == 0
    assert transfer_seconds(fn, [image], [image]) == 0


def test_devices_are_counted():
    for n in (1, 2, 5):
        fn = functools.partial(np.negative)
        fn.__tilework_device__ = n
        assert devices_of(lambda x, f=fn: f(x)) == n
        assert threads_of(fn) == max(LANES, LANES_PER_DEVICE * n, CPU_COUNT)
    assert devices_of(SimpleNamespace(__tilework_device__="no number")) == 0


def test_a_store_is_resumed_when_its_function_says_that_it_has_a_device():
    def fn(crop):
        return crop + 1

    before = describe(fn, "fn")
    fn.__tilework_device__, fn.__tilework_whole_batches__ = 1, True
    assert describe(fn, "fn") == before


def test_what_the_user_says_of_threads_is_kept():
    assert threads_of(MODEL, scheduler="synchronous") == 1
    assert Where.find("processes").threads_for(1) == 1
    with dask.config.set(num_workers=3):
        assert threads_of(MODEL) == 3
        assert threads_of(MODEL, lanes=5) == 5
        assert threads_of(np.negative, lanes=5) == 5
    with ThreadPoolExecutor(4) as pool, dask.config.set(pool=pool):
        assert threads_of(MODEL) == 4
        assert Where.find().fewer() == [4]
    client = SimpleNamespace(
        get=None, scheduler_info=lambda **_: {"workers": {"a": {"nthreads": 2, "memory_limit": 0}}}
    )
    where = Where.find(client=client)
    assert where.threads_for(1) == where.threads == 2


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_other_schedulers_refuse_lanes(scheduler):
    with pytest.raises(tw.TilingError, match="lanes=8 cannot be kept"):
        Where.find(scheduler, lanes=8)


def test_whoever_computes_a_graph_later_starts_the_threads():
    with dask.config.set(scheduler="threads"):
        where = Where.find()
        later = where.later(client=None, scheduler=None, progress="auto")
        assert later.threads_for(1) == later.threads == where.threads
        assert where.threads_for(1) == max(LANES, CPU_COUNT)


def test_many_processors_are_not_fewer_lanes(monkeypatch):
    monkeypatch.setattr("tilework.execution.where.CPU_COUNT", 5 * LANES)
    with dask.config.set(scheduler="threads"):
        assert Where.find().threads_for(1) == 5 * LANES


def test_crops_become_a_tensor_while_another_call_has_the_device():
    torch = pytest.importorskip("torch")
    for n, device in ((1, "cpu"), (2, ("cpu", "cuda"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: 1)
            assert calls_at_a_time(tw.from_torch(lambda: None, device=device)) == 4 * n


def test_threads_that_would_have_nothing_to_do_are_not_started():
    assert threads_of(MODEL, lanes=10**12) == 64  # the blocks
    image, device, fn = device_function(1)
    tw.compute(mapped(fn, image) + 1, lanes=10**12)
    assert device.calls == TILES


def test_lanes_are_refused_where_nobody_could_keep_them():
    out = mapped(MODEL, Reads())
    with (
        ThreadPoolExecutor(1) as pool,
        dask.config.set(pool=pool),
        pytest.raises(tw.TilingError, match="pool"),
    ):
        tw.compute(out, lanes=2)
    with pytest.raises(tw.TilingError, match="lanes="):
        tw.to_zarr(out, zarr.storage.MemoryStore(), lanes=2, compute=False)
    with pytest.raises(tw.TilingError, match="at least 1"):
        tw.compute(out, lanes=0)
    with pytest.raises(tw.TilingError, match="whole number"):
        tw.compute(out, lanes=2.5)
    with pytest.raises(tw.TilingError, match="threads_per_worker"):
        Where.find(client=SimpleNamespace(get=None, scheduler_info=lambda **_: {"workers": {}}), lanes=2)


# -- memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["trim", "gaussian"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
def test_a_limit_of_memory_lowers_lanes_and_changes_no_block(blend, threads):
    def job_of(fn, limit=None):
        image = zarr.create_array({}, shape=(512, 512), chunks=(64, 64), dtype="f4")
        out = tw.tiled_map(fn, image, 64, 8, blend=blend, dtype="f4")
        job, writing = prepare(
            out, None, Asked(memory_limit=limit), Where.find(), {"": np.zeros((512, 512), "f4")}
        )
        writing.release()
        return job.spec.plan

    plain, free = job_of(np.negative), job_of(MODEL)
    assert free.threads == max(LANES, CPU_COUNT)
    limit = peak_bytes(replace(free, threads=threads))
    try:
        plain = job_of(np.negative, limit)
    except tw.MemoryBudgetError:
        with pytest.raises(tw.MemoryBudgetError):
            job_of(MODEL, limit)
        return
    found = job_of(MODEL, limit)
    assert (found.block, found.reuse, found.slabs) == (plain.block, plain.reuse, plain.slabs)
    assert peak_bytes(found) <= limit
    if found.block == free.block:  # writing a unit takes a little more than the plan says
        assert max(plain.threads, threads - 1) <= found.threads <= max(plain.threads, threads)


def test_lanes_of_changed_results_keep_to_the_memory():
    image, device, fn = device_function(1)
    out = mapped(fn, image) + 1
    tw.compute(out, memory_limit=1)  # as with the threads of dask, which are not planned
    assert device.calls == TILES


@pytest.mark.parametrize("lanes", [1, 2, 5, 9])
@pytest.mark.parametrize("edge", ["shift", "clip"])
def test_bits_do_not_depend_on_lanes(lanes, edge):
    image = np.random.default_rng(1).random((150, 170)).astype("f4")
    fn = tw.load_once(lambda: lambda x: np.cos(x) * 3)
    out = tw.tiled_map(fn, image, 32, 6, blend="gaussian", edge=edge, dtype="f4", chunks=64)
    expected = tw.compute(out, scheduler="synchronous")
    np.testing.assert_array_equal(tw.compute(out, lanes=lanes), expected)


# -- one call at a time, whichever device is free -----------------------------------------------------------


def test_a_call_takes_the_device_that_is_free():
    inside, met = threading.Barrier(2, timeout=PATIENCE), []

    def call():
        with device_lock(["left", "right"]) as name:
            inside.wait()  # ends only if both calls run at the same time
            met.append(name)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(met) == ["left", "right"]


def test_whoever_waits_for_the_device_that_is_freed_goes_on():
    went = []

    def call(name):
        with device_lock([name]):
            went.append(name)

    waiters = devices._FREED._waiters
    with device_lock(["left"]):
        with device_lock(["right"]):
            threads = [threading.Thread(target=call, args=[name]) for name in ("left", "right")]
            for n, thread in enumerate(threads):
                thread.start()
                until = time.monotonic() + PATIENCE
                while len(waiters) <= n and time.monotonic() < until:
                    time.sleep(0.001)
        threads[1].join(PATIENCE)
        assert went == ["right"]
    threads[0].join(PATIENCE)
    assert went == ["right", "left"]


def test_a_device_has_one_call_at_a_time():
    running, most = [], []

    def call(_):
        for _ in range(200):
            with device_lock(["one", "two"]):
                running.append(1)
                most.append(len(running))
                running.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert len(most) == 1600
    assert max(most) <= 2
    with device_lock(["one"]), device_lock(["one"]) as again:  # a network that calls another one
        assert again == "one"


# -- the device's share -----------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def test_a_device_is_busy_while_any_call_runs(monkeypatch):
    clock, name = Clock(monkeypatch), "a device of this test"
    share = Share()
    before = busy_seconds().get(name, 0.0)
    clock.now = 1.0
    assert share() == ""
    with working(name):
        clock.now = 3.0
        assert busy_seconds()[name] == before + 2
        with working(name):  # two calls at a time count once
            clock.now = 4.0
        clock.now = 5.0
    clock.now = 8.0
    assert busy_seconds()[name] == before + 4
    assert share() == "device 50 %"
    with working("another one"):
        clock.now = 16.0
    assert share() == "device 38 %"  # 4 and 8 of 16 seconds


@pytest.mark.parametrize("fn", [MODEL, np.negative])
def test_progress_shows_the_share_of_the_device(fn, capsys):
    tw.compute(mapped(fn, Reads()), progress=True)
    assert ("device " in capsys.readouterr().err) == (fn is MODEL)


def test_a_network_is_timed_once():
    torch = pytest.importorskip("torch")
    before = busy_seconds()
    net = tw.from_torch(torch.nn.Identity, device="cpu")
    tw.compute(mapped(net, Reads()))
    assert {name for name, busy in busy_seconds().items() if busy > before.get(name, 0.0)} == {"cpu"}


# -- threads of BLAS and OpenMP ---------------------------------------------------------------------------


class Library:
    """A library of threadpoolctl; OpenMP has a number of threads for each thread that calls it."""

    def __init__(self, user_api, threads):
        self.user_api, self.own = user_api, threading.local()
        self.shared = self.threads = threads

    @property
    def num_threads(self):
        return getattr(self.own, "n", self.threads) if self.user_api == "openmp" else self.shared

    def set_num_threads(self, n):
        self.own.n = self.shared = n


@pytest.mark.parametrize(("calls", "share"), [(1, 8), (2, 4), (3, 2), (100, 1)])
def test_calls_at_the_same_time_share_the_threads_of_libraries(monkeypatch, calls, share):
    libraries = [Library("blas", 8), Library("openmp", 8)]
    monkeypatch.setattr(pools, "_pools", lambda: libraries)
    inside, seen = threading.Barrier(min(calls, 4), timeout=PATIENCE), []

    def build():
        def call(crop):
            inside.wait()
            seen.append([one.num_threads for one in libraries])
            return crop

        return call

    _BUILT["call"] = build()
    fn = tw.load_once(build_by_name, (f"call {calls}",), concurrent=calls)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fn, range(4 * 3)))
        after = list(pool.map(lambda _: [one.num_threads for one in libraries], range(4)))
    assert seen == [[share, share]] * 12
    assert after == [[8, 8]] * 4
    with shared_among(2), shared_among(4):  # the smallest share counts
        assert [one.num_threads for one in libraries] == [2, 1]


def build_by_name(name):
    return _BUILT[name.split()[0]]


def test_without_threadpoolctl_nothing_is_shared(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    pools._loaded.cache_clear()
    with shared_among(4):
        pass
    pools._loaded.cache_clear()


def test_the_threads_of_numpy_are_shared_and_put_back():
    def threads():
        return [d["num_threads"] for d in threadpoolctl.threadpool_info() if d["user_api"] == "blas"]

    before = threads()
    with shared_among(1000):
        assert threads() == [1] * len(before)
    assert threads() == before


def test_a_network_keeps_all_threads():
    """A device has one call at a time, although the proxy lets two in."""
    torch = pytest.importorskip("torch")
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    _BUILT["net"] = Net()
    net = tw.from_torch(lambda: build("net"), device="cpu")
    net(np.zeros((1, 4, 4), "f4"))
    assert seen == [torch.get_num_threads()]


def test_images_of_one_block_keep_the_lanes_busy():
    """A run of many small images takes so many of them at a time."""
    image = Reads()

    class Small:
        shape, dtype, chunks = (CROP, CROP), np.dtype("float32"), (CROP, CROP)

        def __getitem__(self, index):
            return image[index]

    device = Device(image, LANES)
    _BUILT[id(device)] = device
    fn = tw.load_once(build, (id(device),))
    jobs = [(mapped(fn, Small(), name=f"small-{n}"), zarr.storage.MemoryStore()) for n in range(20)]
    report = tw.write_many(jobs, progress=False)
    assert device.reached
    assert (device.calls, device.most) == (20, 1)
    assert all(outcome.ok for outcome in report)


def test_the_memory_of_what_lies_below_counts():
    below = tw.tiled_map(MODEL, np.zeros((2048, 2048), "f4"), 64, 8, dtype="f4", chunks=256)
    lower, threads = find_spec(below).spec.plan, set()
    out = tw.tiled_map(np.cos, below, 64, 8, dtype="f4")
    free = peak_bytes(replace(find_spec(out).spec.plan, threads=LANES))
    for part in (0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0):
        limit = int(part * free)
        job, writing = prepare(
            out, None, Asked(memory_limit=limit), Where.find(), {"": np.zeros((2048, 2048), "f4")}
        )
        writing.release()
        plan = job.spec.plan
        threads.add(plan.threads)
        if plan.threads > CPU_COUNT:
            both = peak_bytes(plan) + peak_bytes(replace(lower, threads=plan.threads, cache_bytes=0))
            assert both <= limit
    assert min(threads) < max(threads) or CPU_COUNT >= LANES
