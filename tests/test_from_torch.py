"""Networks as functions: any crops, any device, and the user's network as it was."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from typing import Any

import dask
import numpy as np
import pytest

import tilework as tw
from tilework.function import network_places

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
IMAGE = np.arange(1600, dtype="f4").reshape(40, 40)


def conv(channels: int = 1, classes: int = 2, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    return torch.nn.Conv2d(channels, classes, 3, padding=1).to(dtype)


def expected(net: Any, batch: np.ndarray, dtype: Any = torch.float32) -> np.ndarray:
    """Return the result of a network for a batch without channel, cast by numpy."""
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(batch.astype(np.float64)).to(dtype)[:, None]).numpy())


# -- dtypes -----------------------------------------------------------------------------------------------

DTYPES = ["u1", "u2", "u4", "u8", "i1", "i4", "i8", "?", "f2", "f4", "f8", "g", ">u2", ">i4", ">f8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_crops_of_any_real_dtype_are_cast_to_that_of_the_network(dtype: str) -> None:
    net = conv()
    batch = (RNG.random((2, 9, 8)) * 100).astype(dtype)
    got = tw.from_torch(net)(batch)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected(net, batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_first_floating_weight(dtype: Any) -> None:
    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
            self.register_buffer("mean", torch.zeros(1, dtype=dtype))

        def forward(self, x: Any) -> Any:
            assert x.dtype == dtype
            return x - self.mean

    batch = np.arange(8, dtype=np.uint8).reshape(1, 2, 4)
    got = tw.from_torch(Net(), add_channel=False)(batch)
    assert got.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(got, batch)


@pytest.mark.parametrize("dtype", ["u1", "u2", "?", ">i2"])
@pytest.mark.parametrize("by", ["module", "factory"])
def test_an_integer_image_runs_as_it_is(dtype: str, by: str) -> None:
    """With the call on zeros, which used to fail in torch; and with an autocast."""
    image = (RNG.random((30, 28)) * 200).astype(dtype)
    net = conv(classes=1)
    fn = tw.from_torch(net if by == "module" else lambda: conv(classes=1), device="cpu")
    out = tw.tiled_map(fn, image, 12, 1)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.compute(), expected(net, image[None])[0, 0], rtol=1e-5, atol=1e-4)
    rough = tw.from_torch(net, autocast="bfloat16", device="cpu")(image[None])
    np.testing.assert_allclose(rough, expected(net, image[None])[:, 0], rtol=0.05, atol=2)


def test_a_network_without_weights_gets_float32() -> None:
    class Where(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            assert x.dtype == torch.float32
            return x

    got = tw.from_torch(Where())(np.full((1, 3, 3), 65535, np.uint16))
    np.testing.assert_array_equal(got, np.full((1, 3, 3), 65535, np.float32))


def test_complex_crops_need_a_complex_network() -> None:
    wave = (RNG.random((1, 6, 6)) + 1j * RNG.random((1, 6, 6))).astype(np.complex64)
    with pytest.raises(TypeError, match=r"complex64, and the weights of the network float32.*np\.abs"):
        tw.from_torch(conv())(wave)
    with pytest.raises(TypeError, match="complex128"):
        tw.tiled_map(tw.from_torch(torch.nn.Identity()), wave[0].astype(complex), 4, 1)
    net = torch.nn.Linear(6, 6, dtype=torch.complex64)
    for batch in (wave, wave.real.astype(np.float32), wave.real.astype(np.int32), wave.astype(">c16")):
        assert tw.from_torch(net, add_channel=False)(batch).dtype == np.complex64


@pytest.mark.parametrize("dtype", ["M8[s]", "U3", [("r", "u1"), ("g", "u1")]])
def test_crops_that_are_no_numbers_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="a network takes numbers"):
        tw.from_torch(conv())(np.zeros((1, 4, 4), dtype))


def test_bfloat16_of_numpy_is_cast() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    batch = np.arange(12).reshape(1, 3, 4).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(tw.from_torch(torch.nn.Identity())(batch), batch.astype(np.float32))


# -- the network stays as it is ---------------------------------------------------------------------------


class Mixed(torch.nn.Module):  # type: ignore[misc]
    """A network of which a part is frozen, as when only the last layers are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Conv2d(4, 1, 1))
        self.trained: list[bool] = []
        self.cache: Any = None
        self.train()
        self.body[1].eval()

    def train(self, mode: bool = True) -> Any:
        self.trained.append(mode)  # some networks merge or split weights here
        return super().train(mode)

    def forward(self, x: Any) -> Any:
        assert not any(part.training for part in self.modules())
        if self.cache is None:
            self.cache = torch.ones(1, device=x.device)
        return self.head(self.body(x)) * self.cache


def state(net: Any) -> dict[str, Any]:
    return {
        "modes": [part.training for part in net.modules()],
        "weights": {k: (v.clone(), v.data_ptr(), v.device) for k, v in net.state_dict().items()},
        "grads": [p.requires_grad for p in net.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["modes"] == after["modes"]
    assert before["grads"] == after["grads"]
    for name, (values, where, device) in before["weights"].items():
        assert torch.equal(values, after["weights"][name][0])
        assert after["weights"][name][1:] == (where, device)


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_the_network_of_the_user_is_as_it_was(scheduler: str) -> None:
    net = Mixed()
    before, calls = state(net), len(net.trained)
    image = RNG.random((40, 40), dtype=np.float32)
    out = tw.tiled_map(tw.from_torch(net), image, 12, 1)
    first = out.compute(scheduler=scheduler, num_workers=4)
    assert_same(before, state(net))
    assert len(net.trained) == calls
    np.testing.assert_array_equal(first, out.compute(scheduler="sync"))
    # What the network keeps of a call can be trained with.
    net.eval()
    net(torch.zeros(1, 1, 4, 4)).sum().backward()
    assert net.head[1].weight.grad is not None


def test_the_modes_are_restored_after_an_error() -> None:
    class Fails(Mixed):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no")

    net = Fails()
    before = state(net)
    with pytest.raises(RuntimeError, match="no"):
        tw.from_torch(net)(np.zeros((1, 4, 4), np.float32))
    assert_same(before, state(net))


def test_two_networks_that_share_parts_do_not_disturb_each_other() -> None:
    """One restores the mode of the shared part only when the other does not use it."""
    shared = torch.nn.Dropout(0.5)
    nets = [torch.nn.Sequential(torch.nn.Identity(), shared).train() for _ in range(2)]
    fns = [tw.from_torch(net) for net in nets]
    batch, wrong = np.ones((1, 64, 64), np.float32), []

    def many(fn: Any) -> None:
        wrong.extend(1 for _ in range(200) if not (fn(batch) == 1).all())

    threads = [threading.Thread(target=many, args=(fn,)) for fn in fns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert shared.training


class Counts(torch.nn.Module):  # type: ignore[misc]
    """Counts the calls that run at the same time, in all networks of its kind."""

    inside = most = calls = 0

    def forward(self, x: Any) -> Any:
        Counts.inside += 1
        Counts.calls += 1
        Counts.most = max(Counts.most, Counts.inside)
        threading.Event().wait(0.002)
        Counts.inside -= 1
        return x


@pytest.mark.parametrize("by", ["module", "factory"])
def test_a_process_makes_one_call_at_a_time(by: str) -> None:
    """For a network as for a callable that builds one, and for two results of one network."""
    given = Counts() if by == "module" else Counts
    image = np.zeros((40, 40), np.float32)
    fns = [tw.from_torch(given, device="cpu"), tw.from_torch(given, device="cpu", activation="sigmoid")]
    outs = [tw.tiled_map(fn, image, 10, 1, dtype="f4", chunks=10, reuse="recompute") for fn in fns]
    Counts.inside = Counts.most = Counts.calls = 0
    dask.compute(*outs, scheduler="threads", num_workers=6)
    assert Counts.most == 1
    assert Counts.calls >= 2 * 25


def test_building_a_result_neither_copies_nor_changes_the_network() -> None:
    """As a token of dask does, which pickles the weights and loads them again."""

    class Here(torch.nn.Module):  # type: ignore[misc]
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("loaded")

        def forward(self, x: Any) -> Any:
            return x

    forward, net = Here.forward, Here()
    net.weight = torch.nn.Parameter(torch.zeros(2))
    image = np.zeros((20, 20), np.float32)

    def name() -> str:
        return str(tw.tiled_map(tw.from_torch(net, device="cpu"), image, 10, 1).name)

    first = name()
    assert Here.forward is forward
    assert first == name()
    with torch.no_grad():
        net.weight[1] = 1
    assert name() != first


def test_a_network_may_call_another_one() -> None:
    inner = tw.from_torch(torch.nn.Identity(), device="cpu")

    class Outer(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.from_numpy(inner(x.numpy())) + 1

    outer = tw.from_torch(Outer(), device="cpu")
    np.testing.assert_array_equal(outer(np.zeros((1, 2, 2), np.float32)), np.ones((1, 2, 2)))


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_exported_networks_run() -> None:
    """Some of them have no mode, and refuse ``eval``."""
    net, batch = torch.nn.Sequential(conv(), torch.nn.Dropout(0.5)).train(), RNG.random((1, 8, 8))
    want = expected(conv(), batch)
    sample = torch.zeros(1, 1, 8, 8)
    for kind in (torch.jit.script(net), torch.jit.freeze(torch.jit.script(net.eval()))):
        got = tw.from_torch(kind, add_channel=True)(batch)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    fixed = torch.export.export(net.eval(), (sample,)).module()
    np.testing.assert_allclose(tw.from_torch(fixed, add_channel=True)(batch), want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_frozen_network_gets_crops_in_the_dtype_of_its_constants(dtype: Any) -> None:
    net, batch = conv(dtype=dtype).eval(), RNG.random((1, 8, 8))
    got = tw.from_torch(torch.jit.freeze(torch.jit.script(net)), add_channel=True)(batch)
    np.testing.assert_allclose(got, expected(net, batch, dtype), rtol=1e-5, atol=1e-6)


# -- devices ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_network_stays_where_its_constants_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in its graph, and no move reaches them."""
    frozen, cpu = torch.jit.freeze(torch.jit.script(conv().eval())), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    holder = torch.nn.Sequential(frozen)
    for net in (frozen, holder):
        assert network_places.place_of(net, "auto", torch) == (cpu, False)
        with pytest.raises(tw.TilingError, match=r"device='cuda:0' .* constants .* \(cpu\), which"):
            network_places.place_of(net, "cuda", torch)
    half = torch.tensor(0.5)

    class Halves(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x * half

    scalar = torch.jit.trace(torch.nn.Sequential(conv(), Halves()), torch.zeros(1, 1, 8, 8))
    for net in (conv(), torch.jit.script(conv()), scalar):  # a scalar runs with tensors anywhere
        assert network_places.place_of(net, "auto", torch) == (torch.device("cuda:0"), True)


@pytest.mark.parametrize(
    "device", ["cuda", "cuda:7", "mps", "nonsense", "cuda:x", "meta", "cpu:", "auto:0", ""]
)
def test_a_device_is_checked_where_it_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for given in (torch.nn.Identity(), torch.nn.Identity):
        with pytest.raises(tw.TilingError, match=f"device.*{device}"):
            tw.from_torch(given, device=device)


def test_the_number_of_a_device_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(tw.TilingError, match=r"'cuda:7' cannot be used.*'cuda:0', 'cuda:1'"):
        tw.from_torch(conv(), device="cuda:7")
    tw.from_torch(conv(), device="cuda:1")
    tw.from_torch(conv(), device=torch.device("cuda"))


@pytest.mark.parametrize("device", [0, None, 1.5])
def test_a_device_is_a_name(device: Any) -> None:
    with pytest.raises(TypeError, match="device must be a name"):
        tw.from_torch(conv(), device=device)


def test_workers_may_have_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(network_places, "_has_cluster", lambda: True)
    fn = tw.from_torch(conv(), device="cuda")
    with pytest.raises(tw.TilingError, match="cannot be used in this process"):
        fn(np.zeros((1, 4, 4)))
    with pytest.raises(tw.TilingError, match="nonsense"):
        tw.from_torch(conv(), device="nonsense")


def test_a_device_is_checked_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(network_places.sys.modules, "torch")
    with pytest.raises(tw.TilingError, match="did you mean 'cuda'"):
        tw.from_torch(conv, device="cude")
    with pytest.raises(tw.TilingError, match="'cuda:x'"):
        tw.from_torch(conv, device="cuda:x")
    tw.from_torch(conv, device="cuda:3")


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found["mps"])
    assert network_places._best(conv(), torch) == "cuda"
    found["cuda"] = False
    assert network_places._best(conv(), torch) == "mps"
    assert network_places._best(conv(dtype=torch.float64), torch) == "cpu"  # Metal has no doubles
    found["mps"] = False
    assert network_places._best(conv(), torch) == "cpu"


def test_a_network_stays_on_its_own_device() -> None:
    """As far as "auto" is concerned; "meta" stands for a device here."""
    place, moves = network_places.place_of(conv(), "cpu:0", torch)
    assert (str(place), moves) == ("cpu", False)
    with pytest.raises(tw.TilingError, match=r"meta.*load the weights"):
        tw.from_torch(conv().to("meta"))(np.zeros((1, 4, 4)))


class Tied(torch.nn.Module):  # type: ignore[misc]
    """Weights that are used twice, a plain tensor, and one that is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.one.bias.requires_grad_(False)
        self.grid = torch.arange(3.0)
        self.register_buffer("mean", torch.ones(3))
        self.computed = self.one.weight * 2


def test_another_device_gets_one_copy() -> None:
    """The weights are copied to it and nowhere else; "meta" stands for the device."""
    net, device = Tied(), torch.device("meta")
    before = state(net)
    made: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        moved = network_places.copy_on(net, device, torch)
    assert not {"clone", "__deepcopy__", "deepcopy"} & set(made)
    assert_same(before, state(net))
    tensors = (*moved.parameters(), *moved.buffers(), moved.grid, moved.computed)
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.two.weight is moved.one.weight
    assert [p.requires_grad for p in moved.parameters()] == before["grads"]
    assert network_places.copy_on(net, device, torch) is moved


def test_the_copy_follows_the_weights() -> None:
    net, device = conv(), torch.device("meta")
    moved = network_places.copy_on(net, device, torch)
    with torch.no_grad():
        net.weight.add_(1)  # as an optimiser does
    again = network_places.copy_on(net, device, torch)
    assert again is not moved
    net.load_state_dict(conv().state_dict())
    assert network_places.copy_on(net, device, torch) is not again
    gone = weakref.ref(network_places.copy_on(net, device, torch))
    del net, moved, again
    gc.collect()
    assert gone() is None


def test_weights_made_in_inference_mode_can_be_copied() -> None:
    with torch.inference_mode():
        net = conv()
    assert network_places.copy_on(net, torch.device("meta"), torch).weight.device.type == "meta"


def test_a_network_that_cannot_be_copied_says_what_to_do() -> None:
    net = torch.nn.Identity()
    net.lock, net.weight = threading.Lock(), torch.nn.Parameter(torch.ones(1))
    with pytest.raises(tw.TilingError, match=r"cannot be copied to meta.*Move it yourself, module\.to"):
        network_places.copy_on(net, torch.device("meta"), torch)


def test_a_proxy_of_a_network_is_taken() -> None:
    fn = tw.from_torch(tw.load_once(conv, (1, 3)), device="cpu")
    batch = RNG.random((2, 6, 6))
    np.testing.assert_array_equal(fn(batch), expected(conv(1, 3), batch))
    out = tw.tiled_map(fn, IMAGE, 12, 1)
    assert out.shape == (3, 40, 40)


@pytest.mark.filterwarnings("ignore")
def test_what_a_network_computes_with_may_be_compiled_or_parametrised() -> None:
    """Its parts keep their modes, and another device gets all of it."""
    plain = torch.nn.Sequential(conv(), torch.nn.Dropout(0.5)).train()
    normed = torch.nn.utils.weight_norm(conv())
    kinds = (
        torch.compile(plain, backend="eager"),
        normed,
        torch.nn.utils.parametrizations.weight_norm(conv()),
    )
    batch = RNG.random((1, 8, 8))
    for net in kinds:
        before = [part.training for part in net.modules()]
        got = tw.from_torch(net, add_channel=True, device="cpu")(batch)
        np.testing.assert_allclose(got, expected(conv(), batch), rtol=1e-5, atol=1e-6)
        assert [part.training for part in net.modules()] == before
        moved = network_places.copy_on(net, torch.device("meta"), torch)
        assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}
        assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {"cpu"}
    assert network_places.copy_on(normed, torch.device("meta"), torch).weight.device.type == "meta"


def test_a_callable_that_builds_no_network_is_named() -> None:
    with pytest.raises(TypeError, match="must build a torch module; it returned builtin_function"):
        tw.from_torch(lambda: abs)(np.zeros((1, 3, 3)))


def test_a_network_pickles_with_its_options() -> None:
    net = tw.from_torch(conv(), activation="sigmoid", channel_axis=-1)
    batch = RNG.random((1, 6, 5, 1))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net))(batch), net(batch))
