"""`explain(measure=True)`: the stages of a run, what it waits for, and the best length of a batch."""

from __future__ import annotations

import re

import dask
import numpy as np
import pytest

import tilework as tw
from tilework.diagnostics import stages
from tilework.diagnostics.measuring import measure
from tilework.diagnostics.stages import Stages, best_batch, tried_batches
from tilework.function.devices import calls_at_a_time, transfer_seconds
from tilework.graph.build import find_spec

IMAGE = np.random.default_rng(0).random((120, 120)).astype("f4")


class Clock:
    """A clock that only the function moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("time.process_time", lambda: self.now / 2)


@pytest.fixture
def clock(monkeypatch):
    with dask.config.set(scheduler="threads"):
        yield Clock(monkeypatch)


def takes(clock, seconds):
    """Return a function of batches whose call takes ``seconds(crops)`` of the clock."""

    def fn(batch):
        clock.now += seconds(len(batch))
        return batch

    fn.__tilework_device__ = 1
    return fn


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [
        (lambda n: 1.0 * n, 1, [1, 2, 4]),  # until ten seconds have passed
        (lambda n: 0.01 * n**2, 1, [1, 2]),  # too slow to go on
        (lambda n: 0.1 + 0.001 * n, 16, [1, 2, 4, 8, 16]),
        (lambda n: 0.01 * max(n, 4), 4, [1, 2, 4, 8, 16]),
        (lambda n: 0.01 * n * (0.98 if n > 1 else 1), 1, [1, 2, 4, 8, 16]),  # not worth the memory
    ],
)
def test_the_best_batch_is_found(clock, seconds, best, tried):
    out = tw.tiled_map(takes(clock, seconds), IMAGE, 10, 0, batch_size=1, dtype="f4")
    spec = find_spec(out).spec
    found = tried_batches(spec, spec.plan[0])
    assert list(found) == tried
    assert found == pytest.approx({n: seconds(n) / n for n in tried})
    assert best_batch(found) == best
    assert f"best is batch_size={best}" in str(measure(out)).replace("\n", " ").replace("  ", "")


def test_batches_that_cannot_be_tried(clock):
    def names(out):
        spec = find_spec(out).spec
        return list(tried_batches(spec, spec.plan[0]))

    def small(batch):
        if len(batch) > 2:
            raise MemoryError("out of memory")
        return batch

    assert names(tw.tiled_map(small, IMAGE, 10, 0, batch_size=2, dtype="f4")) == [1, 2]
    assert names(tw.tiled_map(np.negative, IMAGE, 10, 0, dtype="f4")) == []
    assert names(tw.tiled_map(np.negative, IMAGE, 10, 0, batch_size=2, pad_batch=True, dtype="f4")) == []
    assert names(tw.tiled_map(np.negative, IMAGE[:20, :20], 10, 0, batch_size=3, dtype="f4")) == [1, 2, 3, 4]


def stage(**seconds):
    return Stages(**dict.fromkeys(("read", "transfer", "model", "blend", "write"), 0.0) | seconds)


@pytest.mark.parametrize(
    ("seconds", "share", "device", "slowest"),
    [
        ({"read": 3, "model": 2}, 0.2, False, "read"),
        ({"read": 3, "model": 9}, 1.0, True, "model; the device works 100 %"),
        # A device that waits: not for itself, however much it has to do.
        ({"read": 3, "model": 9, "write": 4}, 0.6, True, "write; the device works 60 %"),
        ({"read": 30, "model": 9, "transfer": 10}, 0.95, True, "transfer; the device works 95 %"),
        ({"blend": 3, "model": 2, "write": 1}, 0.2, False, "blend"),
    ],
)
def test_the_bottleneck_is_named(seconds, share, device, slowest):
    fn = tw.load_once(lambda: np.negative) if device else np.negative
    rows = dict(stage(**seconds).rows(fn, share))
    assert rows["bottleneck"].startswith(slowest)
    assert "What helps" in rows["bottleneck"]
    assert ("transfer" in rows["stages"]) == ("transfer" in seconds)


def test_seconds_of_a_device_are_bounds_and_not_sums(clock):
    """The clock stands still for everything but calls, one after the other."""
    fn = tw.load_once(lambda: None)
    out = tw.tiled_map(takes(clock, lambda n: 1.0 * n), IMAGE, 10, 0, batch_size=1, dtype="f4", chunks=20)
    with dask.config.set(num_workers=1):
        found = measure(out)
    calls = 144
    assert found.stages.model == pytest.approx(calls)
    assert calls <= found.seconds < 1.1 * calls
    assert found.device_share > 0.9
    assert fn is not None


def test_a_wrapper_of_a_network_tells_its_transfer():
    class Net:
        def __tilework_transfer__(self, crops, results):
            assert [c.shape for c in crops] == [r.shape for r in results] == [(10, 10)]
            return 0.25

        def __call__(self, crop):
            return crop

    net = Net()
    for fn in (net, lambda x: net(x), tw.load_once(Net)):
        assert transfer_seconds(fn, [IMAGE[:10, :10]], [IMAGE[:10, :10]]) == 0.25
    with dask.config.set(scheduler="threads"):
        found = measure(tw.tiled_map(Net(), IMAGE, 10, 0, dtype="f4"))
    assert found.stages.transfer == 0.25 * 144
    assert transfer_seconds(np.negative, [], []) == 0


@pytest.mark.sample(0)
def test_the_memory_of_calls_counts_as_often_as_they_run():
    def peak(fn):
        return measure(tw.tiled_map(fn, IMAGE, 10, 0, dtype="f4"))

    def greedy():
        def call(crop):
            return crop + np.ones(20_000_000 // 8)[0].astype("f4")

        return call

    with dask.config.set(scheduler="threads"):
        for calls in (1, 2):
            fn = tw.load_once(greedy, concurrent=calls)
            found = peak(fn)
            assert calls_at_a_time(lambda x, f=fn: f(x)) == calls
            assert found.call_bytes is None or found.peak_bytes < 5e6 + (calls + 0.5) * found.call_bytes
    assert calls_at_a_time(greedy()) is None


def test_writing_counts_what_encoding_takes(monkeypatch):
    taken = []

    def timed(act):
        act()
        taken.append(act)
        return 2.0

    monkeypatch.setattr(stages, "timed", timed)
    out = tw.tiled_map(np.negative, IMAGE, 10, 0, output=tw.Output("f4"))
    spec = find_spec(out).spec
    results = [np.zeros((10, 10), "f4")]
    assert stages.encoding_seconds(spec, results, {"compressors": None}) == 2.0 * 144
    target = taken[-1].func.__self__
    assert target.chunks == (10, 10)
    assert target.compressors == ()
    text = tw.explain(out, measure=True, writing={"compressors": None})
    assert re.search(r"stages +read .* s, model .* s, blend .* s, write .* s", text)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_the_threads_of_the_run_are_said(scheduler):
    fn = tw.load_once(lambda: np.negative)
    with dask.config.set(scheduler=scheduler, num_workers=3 if scheduler == "processes" else None):
        found = measure(tw.tiled_map(fn, IMAGE, 10, 0, dtype="f4", chunks=30))
        assert (found.workers, found.scheduler) == {
            "synchronous": (1, "sync"), "threads": (8, "threads"), "processes": (3, "processes"),
        }[scheduler] or found.workers > 8  # fmt: skip


@pytest.mark.parametrize("blend", ["trim", "average"])
def test_the_valid_samples_of_a_result_are_not_timed_as_an_output(blend):
    image = np.where(IMAGE < 0.1, 0, IMAGE)
    out = tw.tiled_map(np.negative, image, 10, 2, dtype=image.dtype, nodata=0, blend=blend)
    assert "stages" in dict(tw.explain(out, measure=True, writing={"chunks": 16}).rows)
