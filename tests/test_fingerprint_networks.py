"""A network is known by its weights, its code and all else that changes its result."""

from __future__ import annotations

import io
import types
import warnings
from typing import Any

import pytest

import tilework as tw
from tilework.writing.code import describe
from tilework.writing.fingerprint import changes

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, k: float = 2.0, hidden: float = 1.0, *, hook: bool = False) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("hidden", torch.full((1,), hidden), persistent=False)
        self.conv = torch.nn.Conv2d(1, 1, 1, bias=False)
        torch.nn.init.constant_(self.conv.weight, 1.0)
        if hook:
            self.conv.register_forward_hook(lambda module, x, y: y * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.k + self.hidden


@pytest.mark.parametrize("change", [{"k": 3.0}, {"hidden": 2.0}, {"hook": True}])
def test_a_network_is_more_than_its_weights(change: dict[str, Any]) -> None:
    before = describe(tw.from_torch(Net()), "fn")
    assert changes(before, describe(tw.from_torch(Net()), "fn")).names == ()
    assert changes(before, describe(tw.from_torch(Net(**change)), "fn")).names


def test_what_torch_compiled_and_saved_is_known_by_its_constants() -> None:
    """In a file from which it is loaded, too; and a network that was compiled stays equal to itself."""

    def loaded(k: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and in use
            torch.jit.save(torch.jit.script(Net(k)), file := io.BytesIO())
            file.seek(0)
            return tw.from_torch(torch.jit.load(file))

    one = describe(loaded(2.0), "fn")
    assert changes(one, describe(loaded(2.0), "fn")).names == ()
    assert changes(one, describe(loaded(3.0), "fn")).names == ("fn module attributes",)

    def compiled(k: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tw.from_torch(torch.compile(Net(k)))

    one = describe(compiled(2.0), "fn")
    assert changes(one, describe(compiled(2.0), "fn")).names == ()
    assert changes(one, describe(compiled(3.0), "fn")).names == ("fn module attributes",)


def test_a_method_that_was_put_into_a_network_counts() -> None:
    def patched(k: int) -> Any:
        net = torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.constant_(net.weight, 1.0)
        torch.nn.init.constant_(net.bias, 1.0)
        net.forward = types.MethodType(lambda self, x: x * k, net)
        return tw.from_torch(net)

    one = describe(patched(2), "fn")
    assert changes(one, describe(patched(2), "fn")).names == ()
    assert changes(one, describe(patched(3), "fn")).names == ("fn module 0 forward closure value k",)


class Power(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Any) -> Any:
        return x**self.power


def test_a_network_that_torch_compiled_is_known_by_its_code() -> None:
    def traced(power: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and in use
            return tw.from_torch(torch.jit.trace(Power(power), torch.ones(2)))

    def scripted(kind: Any) -> Any:
        return tw.from_torch(torch.fx.symbolic_trace(kind))

    one, two = describe(traced(2), "fn"), describe(traced(3), "fn")
    assert changes(one, describe(traced(2), "fn")).names == ()
    assert changes(one, two).names
    relu, tanh = torch.nn.Sequential(torch.nn.ReLU()), torch.nn.Sequential(torch.nn.Tanh())
    assert changes(describe(scripted(relu), "fn"), describe(scripted(tanh), "fn")).names


def test_options_of_from_torch_count() -> None:
    base = describe(tw.from_torch(torch.nn.Identity()), "fn")
    for change in (
        {"activation": "sigmoid"},
        {"autocast": "bfloat16"},
        {"channel_axis": -1},
        {"add_channel": True},
    ):
        other = describe(tw.from_torch(torch.nn.Identity(), **change), "fn")  # type: ignore[arg-type]
        [name] = changes(base, other).names
        assert name == f"fn {next(iter(change))}"
