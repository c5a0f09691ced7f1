"""Options of `from_torch`: what crosses to a device, layouts, algorithms, and whose identity they change."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.function import network as networks
from tilework.function import tensors
from tilework.writing.code import describe
from tilework.writing.fingerprint import changes

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


class Same(torch.nn.Module):  # type: ignore[misc]
    """Returns what it gets, and notes the dtype and the layout of that."""

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1, dtype=dtype))
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.seen.append((x.dtype, x.stride()))
        return x * self.one


# -- the bus ----------------------------------------------------------------------------------------------


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Dtypes and bytes of tensors that are asked to be on a device."""
    found: list[tuple[str, int]] = []
    to = torch.Tensor.to

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], torch.device):
            assert len(args) == 1
            assert not options  # with a dtype torch casts first
            found.append((str(self.dtype)[6:], self.numel() * self.itemsize))
        return to(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    return found


BUS = [
    ("u1", "uint8"), ("u2", "uint16"), (">u2", "uint16"), ("?", "bool"), ("i1", "int8"), ("i2", "int16"),
    ("i4", "int32"), ("f2", "float16"), ("f4", "float32"),
    # Longer than what the network takes: cast before.
    ("i8", "float32"), ("f8", "float32"), ("u4", "float32"), ("u8", "float32"), ("g", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "crosses"), BUS)
def test_crops_cross_in_the_smaller_dtype(dtype: str, crosses: str, crossed: list[tuple[str, int]]) -> None:
    batch = (RNG.random((3, 8, 9)) * 60000 % 2**15).astype(dtype)
    if dtype == "u2":
        batch.flat[:3] = (0, 2**16 - 1, 2**15)
    net = Same()
    got = tw.from_torch(net, device="cpu")(batch)
    assert crossed == [(crosses, batch.size * np.dtype(crosses).itemsize)]
    assert net.seen[0][0] == torch.float32
    np.testing.assert_array_equal(got, batch.astype(np.float64).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("given", ["u1", "u2", "?", "i8", "f2", "f8"])
def test_networks_of_any_dtype_get_theirs(given: str, dtype: str) -> None:
    batch = (RNG.random((2, 5, 6)) * 200).astype(given)
    want = torch.from_numpy(batch.astype("f8")).to(getattr(torch, dtype))
    net = Same(getattr(torch, dtype))
    got = tw.from_torch(net, device="cpu")(batch)
    assert net.seen[0][0] == want.dtype
    want = want.to(torch.float32) if dtype == "bfloat16" else want
    np.testing.assert_array_equal(got, want.numpy())


def test_a_device_that_has_not_the_dtype_gets_another(
    crossed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros

    def refused(*args: Any, dtype: Any = None, **options: Any) -> Any:
        if dtype == torch.uint16:
            raise TypeError("Trying to convert UInt16 to the MPS backend but it does not have support")
        return zeros(*args, dtype=dtype, **options)

    monkeypatch.setattr(torch, "zeros", refused)
    tensors._crosses.cache_clear()
    batch = np.array([[[0, 2**16 - 1, 300]]], np.uint16)
    try:
        np.testing.assert_array_equal(tw.from_torch(Same(), device="cpu")(batch), batch.astype("f4"))
    finally:
        tensors._crosses.cache_clear()
    assert crossed == [("float32", 12)]


def test_full_memory_says_nothing_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, calls = torch.zeros, []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*args, **options)

    monkeypatch.setattr(torch, "zeros", once)
    tensors._crosses.cache_clear()
    tw.from_torch(Same(), device="cpu")(np.ones((1, 2, 2), np.uint16))
    assert tensors._crosses("cpu", torch.uint16, torch.float32)


# -- channels last, deterministic -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "last"), [((3, 6, 5), True), ((3, 4, 6, 5), True), ((3, 6), False)])
def test_channels_are_last_in_memory(shape: tuple[int, ...], last: bool) -> None:
    batch = RNG.random((2, *shape), dtype=np.float32)
    for on_device in (False, True):
        net = Same()
        got = tw.from_torch(net, device="cpu", channels_last=True, on_device=on_device)(batch)
        np.testing.assert_array_equal(np.asarray(got), batch)
        strides = net.seen[0][1]
        assert (strides[1] == 1) == last
    assert "channels_last" not in {m.__class__.__name__ for m in net.modules()}


def test_the_weights_of_the_user_keep_their_layout() -> None:
    net = torch.nn.Conv2d(3, 4, 3, padding=1)
    before = net.weight.stride()
    batch = RNG.random((2, 3, 9, 8), dtype=np.float32)
    one, other = (tw.from_torch(net, device="cpu", channels_last=c)(batch) for c in (False, True))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert net.weight.stride() == before


def flags() -> list[bool]:
    found = [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark]
    return [*found, getattr(torch.backends.mkldnn, "deterministic", False)]


def test_deterministic_algorithms_are_chosen_during_a_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags(torch.nn.Module):  # type: ignore[misc]
        fails = False

        def forward(self, x: Any) -> Any:
            seen.append(flags())
            if Flags.fails:
                raise ValueError("no")
            return x

    seen: list[list[bool]] = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    fn = tw.from_torch(Flags(), device="cpu", deterministic=True)
    fn(np.ones((1, 2, 2), np.float32))
    assert seen.pop()[:2] == [True, False]
    assert flags() == before
    Flags.fails = True
    with pytest.raises(ValueError, match="no"):
        fn(np.ones((1, 2, 2), np.float32))
    assert flags() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_calls_that_overlap_leave_the_flags_as_they_were() -> None:
    """On two devices: the one that began first ends first."""
    before, inside, leave = flags(), threading.Event(), threading.Event()

    def second() -> None:
        with networks._DETERMINISTIC:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=second)
    with networks._DETERMINISTIC:
        thread.start()
        inside.wait(10)
    assert flags()[0] is True
    leave.set()
    thread.join()
    assert flags() == before


# -- identity ---------------------------------------------------------------------------------------------

OPTIONS = ("on_device", "channels_last", "deterministic")


def Net() -> Any:
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    return net


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("by", ["module", "factory"])
def test_an_option_gives_a_result_another_name(option: str, by: str) -> None:
    image = RNG.random((30, 30), dtype=np.float32)

    def made(**options: bool) -> Any:
        return tw.from_torch(Net() if by == "module" else Net, device="cpu", **options)  # type: ignore[arg-type]

    plain, none, given = made(), made(**{option: False}), made(**{option: True})
    names = [tw.tiled_map(fn, image, 12, 2, dtype="f4").name for fn in (plain, none, given)]
    assert names[0] == names[1] != names[2]
    described = [describe(fn, "fn") for fn in (plain, none, given)]
    assert described[0] == described[1]
    assert all(option not in name for name in described[0])
    assert len(changes(described[0], described[2]).names) == 1
    assert changes(described[2], describe(made(**{option: True}), "fn")).names == ()
    sent = pickle.loads(pickle.dumps(given))
    assert tw.tiled_map(sent, image, 12, 2, dtype="f4").name == names[2]
    np.testing.assert_array_equal(np.asarray(sent(image[None])), np.asarray(given(image[None])))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_true_or_false(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        tw.from_torch(Net(), **{option: "yes"})


@pytest.mark.parametrize(
    "options",
    [{"channel_axis": -1}, {"channel_axis": 1, "activation": "softmax"},
     {"channel_axis": -1, "activation": "argmax"}, {"autocast": "bfloat16"}],
)  # fmt: skip
def test_results_that_stay_have_the_layout_of_others(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 2, 3, padding=1)
    batch = RNG.random((2, 8, 3, 9), dtype=np.float32)
    batch = np.moveaxis(batch, 2, 1 + options.get("channel_axis", 0) % 3)
    one, other = (tw.from_torch(net, device="cpu", on_device=on, **options)(batch) for on in (False, True))
    assert isinstance(other, torch.Tensor)
    np.testing.assert_array_equal(other.float().numpy(), one)
    assert other.shape == one.shape


def test_results_that_stay_are_tensors_and_anything_takes_them() -> None:
    class Inference(torch.nn.Module):  # type: ignore[misc]
        @torch.inference_mode()
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.avg_pool2d(x[:, None], 3, 1, 1)[:, 0]

    image = RNG.random((40, 30), dtype=np.float32)
    fn = tw.from_torch(Inference(), device="cpu", on_device=True)
    assert isinstance(fn(image[None]), torch.Tensor)
    out = tw.tiled_map(fn, image, 16, "auto", blend="average")  # calls it on zeros, and probes it
    assert out.dtype == np.float32
    plain = tw.from_torch(Inference(), device="cpu")
    np.testing.assert_array_equal(out, tw.tiled_map(plain, image, 16, "auto", blend="average"))
    assert tw.check(out)
