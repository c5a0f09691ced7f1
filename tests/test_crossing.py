"""Crops and results that cross to and from a device while another call runs there."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

import tilework as tw
from tilework.function import crossing, devices, network
from tilework.function.crossing import AHEAD, Crossing
from tilework.function.device_memory import LIMITS

torch = pytest.importorskip("torch")

CPU = torch.device("cpu")
FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
PATIENCE = 20.0


class Log:
    """What was asked of streams and events, in order; a device that works as long as it is held."""

    def __init__(self):
        self.told = []
        self.free = threading.Event()
        self.free.set()
        self.lock = threading.Condition()
        self.waiting = 0

    def add(self, *what):
        with self.lock:
            self.told.append(what)

    def wait_for(self, n):
        """Wait until ``n`` threads wait for the device."""
        with self.lock:
            return self.lock.wait_for(lambda: self.waiting >= n, PATIENCE)


@pytest.fixture
def log(monkeypatch):
    """Streams of a device that is the CPU."""
    log, names = Log(), iter(("there", "back"))

    class Stream:
        def __init__(self, device):
            self.name = next(names, "more")

        def record_event(self):
            log.add("record", self.name)
            return f"arrived in {self.name}"

        def wait_event(self, event):
            log.add("wait", event)

    class Event:
        def __init__(self, *, blocking):
            assert blocking, "a waiting thread must not keep a core busy"

        def record(self, stream):
            log.add("queued")

        def synchronize(self):
            with log.lock:
                log.waiting += 1
                log.lock.notify_all()
            assert log.free.wait(PATIENCE)

    @contextmanager
    def stream(s):
        log.add("enter", s.name)
        yield
        log.add("leave", s.name)

    main = Stream(CPU)
    main.name = "main"
    names = iter(("there", "back"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, s: log.add("keep for", s.name), raising=False
    )
    monkeypatch.setattr(crossing, "_has_streams", lambda device: True)
    crossing._streams.cache_clear()
    LIMITS.clear()
    yield log
    crossing._streams.cache_clear()
    LIMITS.clear()


def image(n=4, side=8):
    return np.random.default_rng(0).random((n, side, side), np.float32)


class Plus(torch.nn.Module):
    """Adds one; notes the lengths of the batches."""

    def __init__(self):
        super().__init__()
        self.seen, self.running, self.most = [], 0, 0

    def forward(self, x):
        self.running += 1
        self.most = max(self.most, self.running)
        self.seen.append(len(x))
        y = x + 1
        self.running -= 1
        return y


class Pairs(torch.nn.Module):
    """Adds one; the device has room for two crops."""

    def forward(self, x):
        if len(x) > 2:
            raise FULL
        return x + 1


def test_a_call_crosses_runs_and_crosses_back(log):
    batch = image()
    np.testing.assert_array_equal(tw.from_torch(Plus(), device="cpu")(batch), batch + 1)
    assert log.told == [
        ("enter", "there"), ("leave", "there"), ("record", "there"),
        ("wait", "arrived in there"), ("keep for", "main"), ("queued",),
        ("enter", "back"), ("leave", "back"),
    ]  # fmt: skip


def test_calls_are_queued_while_one_runs(log):
    plus, batch = Plus(), image()
    fn = tw.from_torch(plus, device="cpu")
    log.free.clear()
    with ThreadPoolExecutor(2 * AHEAD) as pool:
        calls = [pool.submit(fn, batch + k) for k in range(2 * AHEAD)]
        assert log.wait_for(AHEAD)
        # The others have neither crossed nor begun.
        told = Counter(log.told)
        assert told["queued",] == told["enter", "there"] == AHEAD == len(plus.seen)
        assert ("enter", "back") not in told
        log.free.set()
        for k, call in enumerate(calls):
            np.testing.assert_array_equal(call.result(PATIENCE), batch + k + 1)
    assert plus.most == 1, "networks run in one queue"


@pytest.mark.parametrize("ends", ["normally", "with an error"])
def test_a_call_that_ends_lets_another_one_begin(log, ends):
    class Fails(torch.nn.Module):
        def forward(self, x):
            if ends == "with an error":
                raise ValueError("wrong")
            return x

    fn = tw.from_torch(Fails(), device="cpu")
    for _ in range(2 * AHEAD):
        try:
            fn(image())
        except ValueError:
            assert ends == "with an error"
    assert not any(devices._BOUND.values())


def test_a_network_may_call_another_one(log):
    inner = tw.from_torch(Plus(), device="cpu")

    class Outer(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(inner(x.numpy())) + 1

    fn, batch = tw.from_torch(Outer(), device="cpu"), image()
    with ThreadPoolExecutor(2 * AHEAD) as pool:
        for found in pool.map(fn, [batch] * 4 * AHEAD, timeout=PATIENCE):
            np.testing.assert_array_equal(found, batch + 2)


def test_a_network_may_call_one_that_many_wait_for():
    """It has the device for which they wait, so it cannot wait for them."""
    inner = tw.from_torch(Plus, device="cpu")
    begun, go_on = threading.Event(), threading.Event()

    class Outer(torch.nn.Module):
        def forward(self, x):
            begun.set()
            assert go_on.wait(PATIENCE)
            return torch.from_numpy(inner(x.numpy())) + 1

    fn, batch = tw.from_torch(Outer(), device="cpu"), image()
    inner(batch)
    pool = ThreadPoolExecutor(4 * AHEAD)
    first = pool.submit(fn, batch)
    assert begun.wait(PATIENCE)
    others = [pool.submit(inner, batch) for _ in range(3 * AHEAD)]
    entry = inner._built()
    end = time.monotonic() + PATIENCE
    while entry.calls._value and time.monotonic() < end:
        time.sleep(0.01)
    go_on.set()
    np.testing.assert_array_equal(first.result(PATIENCE), batch + 2)
    for other in others:
        np.testing.assert_array_equal(other.result(PATIENCE), batch + 1)
    pool.shutdown()


# -- memory -----------------------------------------------------------------------------------------------


def test_a_batch_without_room_crosses_in_its_call(log, monkeypatch):
    real, calls = crossing.moved_there, []

    def moved(crops, device, dtype):
        calls.append(len(crops))
        if len(calls) == 1:
            raise FULL
        return real(crops, device, dtype)

    monkeypatch.setattr(crossing, "moved_there", moved)
    batch = image()
    np.testing.assert_array_equal(tw.from_torch(Plus(), device="cpu")(batch), batch + 1)
    assert calls == [4, 4]
    assert not LIMITS, "the call itself had room"


def test_a_batch_that_is_halved_crosses_in_halves(log, monkeypatch):
    """Once that is known; it crossed ahead for nothing before."""
    real, lengths = crossing.moved_there, []

    def moved(crops, device, dtype):
        lengths.append(len(crops))
        return real(crops, device, dtype)

    monkeypatch.setattr(crossing, "moved_there", moved)
    fn, batch = tw.from_torch(Pairs(), device="cpu"), image()
    for expected in ([4, 2, 2], [2, 2], [2]):
        lengths.clear()
        own = batch[: sum(expected[-2:])]
        np.testing.assert_array_equal(fn(own), own + 1)
        assert lengths == expected
    assert log.told.count(("wait", "arrived in there")) == 2, "a batch that fits crosses ahead"


def test_another_error_of_crossing_is_raised(log, monkeypatch):
    def moved(crops, device, dtype):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(crossing, "moved_there", moved)
    with pytest.raises(RuntimeError, match="illegal"):
        tw.from_torch(Plus(), device="cpu")(image())


def test_halves_of_a_batch_cross_back_at_once(log, monkeypatch):
    """The first half makes room for the second one."""
    real, kinds = network.in_batches, []

    def noted(*args, **kwargs):
        parts = real(*args, **kwargs)
        kinds.extend(map(type, parts))
        return parts

    monkeypatch.setattr(network, "in_batches", noted)
    batch = image()
    np.testing.assert_array_equal(tw.from_torch(Pairs(), device="cpu")(batch), batch + 1)
    assert kinds == [np.ndarray, np.ndarray]
    assert log.told.count(("wait", "arrived in there")) == 1, "the batch that crossed is used once"


def test_what_waits_for_its_call_makes_room(log):
    """A call with one crop that has no room takes that of the batches which wait."""
    waits = Crossing(torch.zeros(2, 3), CPU, torch.float32, torch, alone=False)

    class Tight(torch.nn.Module):
        def forward(self, x):
            if waits._there is not None:
                raise FULL
            return x + 1

    batch = image(1)
    np.testing.assert_array_equal(tw.from_torch(Tight(), device="cpu")(batch), batch + 1)
    assert torch.equal(waits.crops(0, 2), torch.zeros(2, 3)), "it crosses again"


@pytest.mark.parametrize("crosses", ["ahead", "in its call"])
@pytest.mark.parametrize("ends", ["normally", "with an error"])
def test_results_on_their_way_back_make_room(log, monkeypatch, crosses, ends):
    """A call with one crop that has no room waits until the result of an earlier call has left the device."""
    there, left, calls, kept = [], threading.Event(), [], []
    real_joined, real_moved, real_end = network.joined, crossing.moved_there, Crossing.__exit__

    def joined(parts):
        there.append(weakref.ref(parts[0]))
        return real_joined(parts)

    def moved(*args):
        if crosses == "in its call" and not calls:
            calls.append("ahead")
            raise FULL
        return real_moved(*args)

    def array(result):
        if ends == "with an error":
            raise ValueError("wrong")
        return result.numpy().copy()

    def end(self, *error):
        kept.append(there[0]() is not None)
        left.set()
        real_end(self, *error)

    class Tight(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            if there and not left.is_set():
                threading.Timer(0.5, log.free.set).start()
                raise FULL
            return x + 1

    monkeypatch.setattr(network, "joined", joined)
    monkeypatch.setattr(crossing, "moved_there", moved)
    monkeypatch.setattr(network, "as_array", array)
    monkeypatch.setattr(Crossing, "__exit__", end)
    fn, batch = tw.from_torch(Tight(), device="cpu"), image(1)
    log.free.clear()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(fn, batch)]
        assert log.wait_for(1)
        found.append(pool.submit(fn, batch))
        for one in found:
            if ends == "with an error":
                assert isinstance(one.exception(PATIENCE), ValueError)
            else:
                np.testing.assert_array_equal(one.result(PATIENCE), batch + 1)
    assert calls.count(1) == 3
    assert ends == "with an error" or not any(kept), "nothing of a call is on the device at its end"


# -- results ----------------------------------------------------------------------------------------------


class Rewrites(torch.nn.Module):
    """Writes all results into the same memory, as CUDA graphs do."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.memory = kind, {}

    def forward(self, x):
        y = x * 2
        kept = self.memory.setdefault(tuple(y.shape), torch.empty_like(y))
        kept.copy_(y)
        views = {
            "tensor": kept, "tuple": (kept, kept), "dict": {"a": kept}, "view": kept[:],
            "numpy": kept.numpy(), "both": {"a": kept, "b": kept.numpy()},
        }  # fmt: skip
        return views[self.kind]


@pytest.mark.parametrize("activation", [None, lambda y: y])
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "view", "numpy", "both"])
def test_results_are_not_written_again(kind, stays, activation):
    source = np.random.default_rng(1).random((160, 160), np.float32)
    fn = tw.from_torch(Rewrites(kind), device="cpu", on_device=stays, activation=activation)
    one = tw.Output("f4")
    output = {"tuple": (one, one), "dict": {"a": one}, "both": {"a": one, "b": one}}.get(kind, one)
    found = tw.compute(tw.tiled_map(fn, source, 16, 2, output=output, batch_size=3), scheduler="threads")
    arrays = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    for array in arrays:
        np.testing.assert_array_equal(array, source * 2)


@pytest.mark.parametrize("kind", ["tensor", "numpy"])
def test_a_result_in_hand_stays(kind):
    fn = tw.from_torch(Rewrites(kind), device="cpu")
    first = fn(image())
    fn(image() + 1)
    np.testing.assert_array_equal(first, image() * 2)


@pytest.mark.parametrize("axis", [0, -1])
def test_channels_move_where_results_cross_later(log, axis):
    class Two(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, x + 1], 1)

    batch = image()
    given = np.expand_dims(batch, 1 if axis == 0 else -1)
    found = tw.from_torch(Two(), device="cpu", channel_axis=axis)(given)
    np.testing.assert_array_equal(found, np.stack([batch, batch + 1], 1 if axis == 0 else -1))
