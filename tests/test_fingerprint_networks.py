"""A network is known by its weights, its code and all else that changes its result."""

from __future__ import annotations

import importlib
import io
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.writing.code import describe
from tilework.writing.fingerprint import changes

torch = pytest.importorskip("torch")
operators: list[Any] = []


@pytest.fixture(autouse=True, scope="module")
def operators_stay() -> None:
    """Keep every operator that torch registers from here on.

    `torch.jit.script` knows operators by their id, and what `torch.compile` imports replaces some of them. A
    list that got the id of one then failed as "builtin cannot be used as a value", in a test much later.
    """
    builtins = importlib.import_module("torch.jit._builtins")
    register = builtins._register_builtin

    def kept(operator: Any, name: str) -> None:
        operators.append(operator)
        register(operator, name)

    builtins._register_builtin = kept


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


class Times(torch.nn.Module):  # type: ignore[misc]
    """A network with a tensor that is no parameter: a script has it as a constant."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.factors = [torch.full((8,), k)]

    def forward(self, x: Any) -> Any:
        return x * self.factors[0]


class Holds(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)


class Chosen(torch.nn.Module):  # type: ignore[misc]
    """A network with its weights inside a condition."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((8,), k))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x * self.weight
        return x


def filter_of(k: float) -> Any:
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    torch.nn.init.constant_(net.weight, k)
    torch.nn.init.constant_(net.bias, 0.0)
    return net.eval()


def function_of(k: float) -> Any:
    factors = torch.full((8,), k)
    traced = torch.jit.trace(lambda x: x * factors, torch.ones(8))
    del traced._torchdynamo_inline  # the function in Python, which a loaded one does not have
    return traced


FROZEN = {
    "frozen": lambda k: torch.jit.freeze(torch.jit.script(filter_of(k))),
    "scripted": lambda k: torch.jit.script(torch.nn.Sequential(filter_of(k), torch.nn.ReLU())),
    "traced in a container": lambda k: torch.jit.trace(torch.nn.Sequential(Times(k)), torch.ones(8)),
    "frozen in a condition": lambda k: torch.jit.freeze(torch.jit.script(Chosen(k).eval())),
    "for inference": lambda k: torch.jit.optimize_for_inference(torch.jit.script(filter_of(k))),
    "inside": lambda k: Holds(torch.jit.freeze(torch.jit.script(filter_of(k)))),
    "traced": lambda k: torch.jit.trace(Times(k), torch.ones(8)),
    "traced by fx": lambda k: torch.fx.symbolic_trace(Times(k)),
    "exported": lambda k: torch.export.export(Times(k), (torch.ones(8),)).module(),
    "function": function_of,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "held"),
    [(k, h) for k in FROZEN for h in ("from_torch", "closure") if (k, h) != ("function", "from_torch")],
)
def test_weights_in_a_graph_count(kind: str, held: str) -> None:
    """Freezing makes parameters constants of the graph, of which no code or attribute shows the values."""

    def fn(k: float) -> Any:
        network = FROZEN[kind](k)
        return tw.from_torch(network) if held == "from_torch" else lambda crop: network(crop)

    one = describe(fn(2.0), "fn")
    assert changes(one, describe(fn(2.0), "fn")).names == ()
    found = changes(one, describe(fn(3.0), "fn"))
    assert found.names
    assert not found.unknown


@pytest.mark.filterwarnings("ignore")
def test_a_script_of_a_container_runs() -> None:
    net = torch.nn.Sequential(filter_of(1.0), torch.nn.ReLU())
    image = np.random.default_rng(0).random((16, 16), np.float32)
    plain, scripted = (
        tw.compute(tw.tiled_map(tw.from_torch(one, add_channel=True, device="cpu"), image, 8, 1))
        for one in (net, torch.jit.script(net))
    )
    np.testing.assert_array_equal(plain, scripted)


@pytest.mark.filterwarnings("ignore")
def test_a_call_is_no_change() -> None:
    """Of caches that torch and packages keep in a network."""
    for net in (torch.compile(filter_of(1.0), backend="eager"), filter_of(1.0)):
        net.scratch = [torch.rand(1)]
        before = describe(tw.from_torch(net), "fn")
        net(torch.ones(1, 1, 8, 8))
        net.scratch = [torch.rand(1)]
        assert changes(before, describe(tw.from_torch(net), "fn")).names == ()


def test_networks_may_hold_one_another() -> None:
    def make(k: float) -> Any:
        outer = torch.nn.Sequential(Holds(filter_of(k)))
        outer[0].parents = [outer]
        outer[0].known = {"root": outer}
        return tw.from_torch(outer)

    one = describe(make(1.0), "fn")
    assert changes(one, describe(make(1.0), "fn")).names == ()
    assert changes(one, describe(make(2.0), "fn")).names


def test_what_only_looks_like_a_network_is_described() -> None:
    class Duck:
        def __init__(self, k: int) -> None:
            self.k = k

        def state_dict(self) -> dict[str, int]:
            return {"k": self.k}

        def parameters(self) -> list[Any]:
            return []

        def modules(self) -> list[Any]:
            return [self]

        def __call__(self, crop: Any) -> Any:
            return crop * self.k

    assert changes(describe(Duck(1), "fn"), describe(Duck(2), "fn")).names


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_in_a_graph_are_unknown() -> None:
    """Torch does not show what it packed, so nothing is taken as equal."""

    def packed() -> Any:
        net = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(8, 8)).eval())
        return tw.from_torch(torch.jit.freeze(torch.jit.trace(net, torch.ones(1, 8))))

    assert changes(describe(packed(), "fn"), describe(packed(), "fn")).unknown


@pytest.mark.filterwarnings("ignore")
def test_results_of_two_frozen_networks_are_not_mixed(tmp_path: Path) -> None:
    image = np.ones((16, 16), "f4")

    def write(k: float, **options: Any) -> Any:
        net = tw.from_torch(torch.jit.freeze(torch.jit.script(filter_of(k))), add_channel=True, device="cpu")
        return tw.to_zarr(tw.tiled_map(net, image, 8, 1), tmp_path / "a.zarr", progress=False, **options)

    assert write(1.0)[8, 8] == 9
    with pytest.raises(tw.TilingError, match="changed: fn module constants"):
        write(2.0)
    assert write(2.0, overwrite=True)[8, 8] == 18


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
