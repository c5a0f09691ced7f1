"""Functions that are built once per process, networks, and what functions may return."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest

import tilework as tw
from tilework import ContractError, Output, TilingError, from_torch, load_once, tiled_map
from tilework.function import load_once as load_once_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Counting

    Count = Callable[[Callable[..., Any]], Counting]

IMAGE = np.arange(40 * 36, dtype=np.float32).reshape(40, 36)


def adder(number: float) -> Callable[[np.ndarray], np.ndarray]:
    return functools.partial(np.add, np.float32(number))


# -- load_once ----------------------------------------------------------------------------------------------


def test_it_is_built_once_by_eight_threads(counting: Count) -> None:
    gate = threading.Barrier(8)

    def slow() -> object:
        time.sleep(0.05)
        return object()

    factory = counting(slow)
    once = load_once(factory)

    def get(_: int) -> Any:
        gate.wait()
        return once.get()

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(get, range(8)))
    assert (factory.calls, len(found)) == (1, 1)
    assert load_once(factory).get() in found, "an equal recipe gives the same object"


def test_it_is_built_once_per_process(counting: Count, scheduler: str) -> None:
    factory = counting(adder)
    for number in (5, 5, 6):
        out = tiled_map(load_once(factory, (number,)), IMAGE, 8, 2, dtype="f4", chunks=12)
        np.testing.assert_array_equal(out.compute(), IMAGE + number)
    assert 2 <= factory.calls <= (4 if scheduler == "processes" else 2)


def test_what_it_builds_never_enters_the_graph() -> None:
    heavy = load_once(np.zeros, (10**6,))
    assert heavy.get().nbytes == 8 * 10**6
    out = tiled_map(heavy, IMAGE, 8, 2, dtype="f4", chunks=12)
    assert len(cloudpickle.dumps(heavy)) < 600
    assert len(cloudpickle.dumps(out.__dask_graph__())) < 40_000


@pytest.mark.parametrize("module", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_it_pickles_with_a_factory_that_has_no_name(module: Any) -> None:
    once = load_once(lambda k: lambda x: k * x, (2,), concurrent=3)
    copy = module.loads(module.dumps(once))
    assert copy(21) == 42
    assert (copy.token, copy.get()) == (once.token, once.get())


def test_its_token_tells_what_it_builds() -> None:
    tokens = [
        load_once(adder, (1,)).token,
        load_once(adder, (2,)).token,
        load_once(adder, (), {"number": 1}).token,
        load_once(adder, (1,), version="2").token,
        load_once(np.add, (1,)).token,
    ]
    assert len(set(tokens)) == 5
    assert load_once(adder, (1,)).token == tokens[0]
    assert repr(load_once(adder, (1,))) == f"load_once(adder, token={tokens[0][:8]!r})"


def test_a_process_holds_a_few_and_drops_the_least_recently_used(counting: Count) -> None:
    factory = counting(adder)
    many = [load_once(factory, (k,)) for k in range(load_once_module.HELD + 1)]
    for once in many[:-1]:
        once.get()
    many[0].get()
    many[-1].get()  # drops the second
    assert len(load_once_module._REGISTRY._entries) == load_once_module.HELD
    assert factory.calls == load_once_module.HELD + 1
    many[0].get()
    assert factory.calls == load_once_module.HELD + 1
    many[1].get()
    assert factory.calls == load_once_module.HELD + 2
    assert len(load_once_module._REGISTRY._entries) == load_once_module.HELD


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_more_readers_than_a_process_holds_are_opened_once(counting: Count, scheduler: str) -> None:
    """Nine readers of one call made every crop open its images again."""
    count = load_once_module.HELD + 4
    factory = counting(np.full)
    readers = tuple(load_once(factory, ((32, 32), k, "f4")) for k in range(count))
    out = tiled_map(lambda *crops: sum(crops), readers, 8, 0, dtype="f4", chunks=8)
    assert (out.compute(scheduler=scheduler, num_workers=2) == sum(range(count))).all()
    assert factory.calls <= count * (3 if scheduler == "processes" else 1)


def test_a_view_and_a_loop_keep_their_readers(counting: Count) -> None:
    count = load_once_module.HELD + 1
    factory = counting(np.full)
    readers = tuple(load_once(factory, ((32, 32), k, "f4")) for k in range(count))
    out = tw.view(tiled_map(lambda *c: c[0], readers, 8, 0, dtype="f4"), verbose=False)
    for k in range(0, 32, 8):
        out[k, k]
    slicers = [tw.Slicer(reader, crop_size=8, overlap=0) for reader in readers]
    for k in range(4):
        for slicer in slicers:
            slicer[k]
    assert factory.calls == count


def test_what_tasks_used_is_dropped_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then, and all but the most recently used ones."""
    registry, count = load_once_module._Registry(), load_once_module.HELD + 5
    for pause, kept in ((60.0, count), (-1.0, load_once_module.HELD)):
        monkeypatch.setattr(load_once_module, "PAUSE", pause)
        with registry.in_task():
            for k in range(count):
                registry.entry(str(k), 1)
            assert len(registry._alive) == count
        registry.entry("0", 1)
        assert len(registry._alive) == kept


def test_what_is_called_is_not_built_again_meanwhile() -> None:
    """One call at a time, also after many others were used; another build would have its own limit."""
    others = [load_once(adder, (k,)) for k in range(100, 101 + load_once_module.HELD)]
    with ThreadPoolExecutor(2) as pool:
        slow = load_once(waiter)
        first = pool.submit(slow, 1)
        assert INSIDE.wait(10)
        for other in others:
            other.get()
        assert slow.token not in load_once_module._REGISTRY._entries
        again = pool.submit(slow, 2)
        end = time.monotonic() + 10
        while slow.token not in load_once_module._REGISTRY._entries:  # its thread may begin late
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not again.done()
        RELEASE.set()
        assert [first.result(10), again.result(10)] == [1, 2]
    assert len(BUILT) == 1


BUILT: list[int] = []
INSIDE, RELEASE = threading.Event(), threading.Event()


def waiter() -> Callable[[Any], Any]:
    """Build a function that waits, with one call at a time."""
    BUILT.append(1)

    def wait(x: Any) -> Any:
        INSIDE.set()
        assert RELEASE.wait(10)
        return x

    return wait


class Crowd:
    """Remembers the most calls that ran at a time."""

    def __init__(self, wanted: int) -> None:
        self.lock, self.now, self.most, self.wanted = threading.Lock(), 0, 0, wanted

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        end = time.monotonic() + 10
        while self.most < self.wanted and time.monotonic() < end:
            time.sleep(0.005)  # the others may begin late
        time.sleep(0.005)
        with self.lock:
            self.now -= 1
        return crop


@pytest.mark.parametrize("concurrent", [1, 2])
def test_concurrent_bounds_the_calls_at_a_time(concurrent: int) -> None:
    once = load_once(Crowd, (concurrent,), concurrent=concurrent, version=f"{time.monotonic_ns()}")
    out = tiled_map(once, IMAGE, 8, 2, dtype="f4", chunks=8)
    out.compute(scheduler="threads", num_workers=8)
    assert once.get().most == concurrent


def test_a_factory_that_fails_is_tried_again(tmp_path: Path) -> None:
    once = load_once(np.load, (str(tmp_path / "late.npy"),))
    with pytest.raises(FileNotFoundError, match=r"late\.npy"):
        once.get()
    np.save(tmp_path / "late.npy", IMAGE)
    np.testing.assert_array_equal(once.get(), IMAGE)


@pytest.mark.parametrize("concurrent", [0, -1, 1.5, True, "2"])
def test_a_silly_number_of_calls_is_refused(concurrent: Any) -> None:
    with pytest.raises(TilingError, match=f"concurrent must be .* at least 1; got {concurrent!r}"):
        load_once(adder, (1,), concurrent=concurrent)


def test_a_model_instead_of_its_factory_is_refused() -> None:
    with pytest.raises(TypeError, match=r"factory must be a callable .*; got .*ndarray"):
        load_once(IMAGE)  # type: ignore[arg-type]


SCRIPT = """
import os, sys
from pathlib import Path
import dask, numpy as np, tilework as tw

LOG = Path(sys.argv[1])

class Model:
    def __init__(self, number):
        (LOG / f"{os.getpid()}-{os.urandom(4).hex()}").touch()
        self.number = number
    def __call__(self, crop):
        return crop + self.number

def build(number):
    return Model(number)

if __name__ == "__main__":
    image = np.arange(1600.0).reshape(40, 40)
    out = tw.tiled_map(tw.load_once(build, (3,)), image, 8, 2, dtype=float, chunks=8)
    if sys.argv[2] == "processes":
        dask.config.set(scheduler="processes", num_workers=2)
    else:
        from distributed import Client, LocalCluster
        cluster = LocalCluster(processes=True, n_workers=2, threads_per_worker=2, dashboard_address=":0")
        client = Client(cluster)
    assert (out.compute() == image + 3).all()
    assert (out.compute() == image + 3).all()
    if sys.argv[2] != "processes":
        client.close()
        cluster.close()
"""


@pytest.mark.sample(0)
@pytest.mark.parametrize("where", ["processes", pytest.param("cluster", marks=pytest.mark.distributed)])
def test_a_script_builds_its_model_once_per_process(where: str, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "log"), where]
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"PYTHONPATH": str(root / "src")})
    names = [path.name for path in (tmp_path / "log").iterdir()]
    builders = [name.partition("-")[0] for name in names]
    assert len(builders) == len(set(builders)) >= 1
    if where == "cluster":
        assert len(builders) <= 2


@pytest.mark.distributed
def test_with_a_cluster_it_is_tried_on_a_worker(client: Any, tmp_path: Path) -> None:
    def build(log: Path) -> Callable[[np.ndarray], np.ndarray]:
        from distributed import get_worker

        log.write_text(get_worker().address)
        return np.negative

    out = tiled_map(load_once(build, (tmp_path / "log",)), IMAGE, 8, 2, chunks=20)
    assert (tmp_path / "log").read_text() in client.scheduler_info()["workers"]
    np.testing.assert_array_equal(out.compute(scheduler=client), -IMAGE)


# -- from_torch ---------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def network(channels: int = 1, classes: int = 1, **layers: Any) -> Any:
    """Return a convolution with fixed weights, and what else is asked for behind it."""
    import torch

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, classes, 3, padding=1)
    return torch.nn.Sequential(conv, *(getattr(torch.nn, name)(*args) for name, args in layers.items()))


def direct(module: Any, batch: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return module.eval()(torch.from_numpy(batch)).numpy()


CROP = np.random.default_rng(0).random((3, 12, 10), dtype=np.float32)


def test_a_network_is_applied_to_an_image(torch: Any) -> None:
    module = network()
    expected = direct(module, IMAGE[None, None])[0, 0]
    for given in (module, network):
        for batch_size in (None, 3):
            out = tiled_map(from_torch(given), IMAGE, 12, 1, batch_size=batch_size, chunks=20)
            assert (out.dtype, out.shape) == (np.float32, IMAGE.shape)
            np.testing.assert_allclose(out.compute(), expected, rtol=1e-5, atol=1e-3)


def test_a_factory_keeps_the_weights_out_of_the_graph(torch: Any, scheduler: str) -> None:
    build = functools.partial(network, 1, 4)
    out = tiled_map(from_torch(build), IMAGE, 12, 1, output=Output("f4", channels=4), chunks=20)
    assert b"_rebuild_tensor" not in cloudpickle.dumps(out.__dask_graph__())
    assert len(cloudpickle.dumps(from_torch(build))) < 1000
    expected = direct(build(), IMAGE[None, None])[0]
    np.testing.assert_allclose(out.compute(), expected, rtol=1e-5, atol=1e-3)


def test_a_channel_axis_is_added_where_the_convolution_wants_it(torch: Any) -> None:
    module = network(3, 2)
    np.testing.assert_array_equal(from_torch(module)(CROP[None]), direct(module, CROP[None]))
    flat = network(1, 2)
    np.testing.assert_array_equal(from_torch(flat)(CROP), direct(flat, CROP[:, None]))
    np.testing.assert_array_equal(
        from_torch(flat, add_channel=False)(CROP[:, None]), direct(flat, CROP[:, None])
    )
    pointwise = torch.nn.ReLU()
    np.testing.assert_array_equal(from_torch(pointwise)(CROP), CROP)
    np.testing.assert_array_equal(from_torch(pointwise, add_channel=True)(CROP), CROP)


@pytest.mark.parametrize("axis", [2, -1])
def test_channels_behind_are_moved_there_and_back(axis: int, torch: Any) -> None:
    module = network(3, 2)
    image = np.moveaxis(CROP, 0, -1)
    got = from_torch(module, channel_axis=axis)(image[None])
    np.testing.assert_array_equal(got, np.moveaxis(direct(module, CROP[None]), 1, -1))


def test_activations_go_along_the_channels(torch: Any) -> None:
    module = network(3, 4)
    raw = torch.from_numpy(direct(module, CROP[None]))
    for activation, expected in {
        "softmax": raw.softmax(1), "sigmoid": raw.sigmoid(), "argmax": raw.argmax(1),
    }.items():  # fmt: skip
        got = from_torch(module, activation=activation)(CROP[None])
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(from_torch(module, activation=torch.abs)(CROP[None]), raw.abs().numpy())


def test_the_network_runs_in_evaluation_mode(torch: Any) -> None:
    module = network(3, 4, Dropout=(0.5,), BatchNorm2d=(4,)).train()
    call = from_torch(module)
    np.testing.assert_array_equal(call(CROP[None]), call(CROP[None]))
    np.testing.assert_allclose(call(CROP[None])[0], call(np.stack([CROP, -CROP]))[0], atol=1e-5)


def test_a_network_takes_doubles_and_half_precision(torch: Any) -> None:
    module = network(3, 2)
    got = from_torch(module)(CROP[None].astype(float))
    np.testing.assert_array_equal(got, direct(module, CROP[None]))
    rough = from_torch(module, autocast="bfloat16")(CROP[None])
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, got, atol=0.05)
    half = from_torch(network(3, 2).to(torch.bfloat16))(CROP[None])
    np.testing.assert_allclose(half, got, atol=0.05)


def test_a_network_may_return_several_arrays(torch: Any) -> None:
    class Two(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return {"a": x, "b": x.sum(1)}

    out = tiled_map(from_torch(Two()), np.stack([IMAGE] * 2), (12, 12), 1, chunks=20)
    np.testing.assert_array_equal(out["a"].compute(), np.stack([IMAGE] * 2))
    np.testing.assert_array_equal(out["b"].compute(), 2 * IMAGE)


def test_unknown_words_get_the_nearest_right_one(torch: Any) -> None:
    with pytest.raises(TilingError, match="autocast must be one of 'float16', 'bfloat16'; got 'float61'"):
        from_torch(network(), autocast="float61")
    with pytest.raises(TilingError, match="got 'softmaxx'; did you mean 'softmax'"):
        from_torch(network(), activation="softmaxx")
    with pytest.raises(TypeError, match="a torch module or a callable that builds one; got 3 "):
        from_torch(3)


def test_results_may_be_tensors(torch: Any) -> None:
    def wide(crop: np.ndarray) -> Any:
        x = torch.from_numpy(crop).requires_grad_()
        return {"grad": x * 2, "bf16": x.to(torch.bfloat16), "int": x.detach().to(torch.int64)}

    outs = tiled_map(wide, IMAGE, 8, 2, chunks=20)
    assert [out.dtype.name for out in outs.values()] == ["float32", "float32", "int64"]
    np.testing.assert_array_equal(outs["grad"].compute(), 2 * IMAGE)
    np.testing.assert_allclose(outs["bf16"].compute(), IMAGE, rtol=2**-8)
    np.testing.assert_array_equal(outs["int"].compute(), IMAGE.astype(int))
    declared = tiled_map(torch.from_numpy, IMAGE, 8, 2, dtype="f4")
    np.testing.assert_array_equal(declared.compute(), IMAGE)


def test_a_network_that_returns_no_batch_is_named() -> None:
    out = tiled_map(lambda x: x.sum(0), IMAGE, 8, 2, dtype="f4", batch_size=4)
    with pytest.raises(ContractError, match=r"batch of 4 crops and returned shape \(8, 8\).*tile \d+ at"):
        out.compute()
