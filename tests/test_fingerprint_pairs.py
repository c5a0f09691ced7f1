"""What computes something else is never taken as the same, wherever it keeps what makes the difference."""

from __future__ import annotations

import collections
import copy
import ctypes
import dataclasses
import enum
import functools
import os
import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.writing.code import describe
from tilework.writing.fingerprint import changes

PAIRS: dict[str, Callable[[int], Any]] = {}


def pair(name: str) -> Callable[[Callable[[int], Any]], Callable[[int], Any]]:
    """Enter what makes a value from 1 or 2, each time anew."""

    def enter(make: Callable[[int], Any]) -> Callable[[int], Any]:
        PAIRS[name] = make
        return make

    return enter


def torch() -> Any:
    return pytest.importorskip("torch")


# -- data -------------------------------------------------------------------------------------------------


class Rounded(float):
    def __repr__(self) -> str:
        return f"{float(self):.1f}"


class Point(typing.NamedTuple):
    x: float


class Numbers(list[int]):
    pass


def numbers(k: int) -> Any:
    found = Numbers([1])
    found.k = k  # type: ignore[attr-defined]
    return [found]


def member(k: int) -> Any:
    class Kind(enum.Enum):
        A = "a"

    Kind.A.gain = k  # type: ignore[attr-defined]
    return Kind


def of_pandas(make: Callable[[Any, int], Any]) -> Callable[[int], Any]:
    return lambda k: make(pytest.importorskip("pandas"), k)


def dataset(k: int) -> Any:
    return pytest.importorskip("xarray").Dataset({"a": 1}, attrs={"k": k})


def sets(k: int) -> Any:
    class Kind(enum.Enum):
        A = frozenset(("a", "b", "c", f"d{k}"))

    return Kind.A


def distribution(k: int) -> Any:
    from scipy import stats

    np.random.seed()  # noqa: NPY002 -- the state that a distribution of scipy shows
    return (stats.norm, stats.cauchy)[k - 1]


def kd_tree(k: int) -> Any:
    from scipy.spatial import KDTree

    return KDTree([[k, 0.0]])


PAIRS |= {
    "order of a dict": lambda k: {"a": 1, "b": 2} if k == 1 else {"b": 2, "a": 1},
    "order of a dict of functions": lambda k: dict(sorted({"a": abs, "b": len}.items(), reverse=k == 1)),
    "order of a dict in a list": lambda k: [{"a": 1, "b": 2} if k == 1 else {"b": 2, "a": 1}],
    "mask of an array": lambda k: np.ma.array([1.0, 2.0], mask=[0, k - 1]),
    "fill value of an array": lambda k: [np.ma.array([1.0, 2.0], mask=[0, 1], fill_value=k)],
    "class of an array": lambda k: (np.matrix if k == 1 else np.array)([[1, 2], [3, 4]]),
    "fields of an array": lambda k: np.array([(1, 2)], [("ab"[k - 1], "f4"), ("ba"[k - 1], "f4")]),
    "dtype of a field": lambda k: np.zeros(1, [("a", ("i4", "f4")[k - 1])]),
    "state of a generator": random.Random,
    "state of a tree": kd_tree,
    "value of ctypes": ctypes.c_double,
    "masked": lambda k: [np.ma.masked, k],
    "distribution of scipy": distribution,
    "member with a value of many": sets,
    "default of a dict": lambda k: collections.defaultdict((int, list)[k - 1]),
    "float with a short text": lambda k: Rounded(1 + k / 100),
    "long integer": lambda k: 10**5000 + k,
    "attribute of a member": member,
    "attribute of a list": numbers,
    "attributes of a dataset": dataset,
    "pandas Timestamp": of_pandas(lambda pandas, k: pandas.Timestamp(f"202{k}")),
    "pandas Categorical": of_pandas(
        lambda pandas, k: pandas.Categorical(["a", "b"], ["ab"[k - 1], "ba"[k - 1]])
    ),
    "pandas DataFrame": of_pandas(lambda pandas, k: pandas.DataFrame({"a": [k]})),
}


# -- classes ----------------------------------------------------------------------------------------------


class Adds:
    def step(self, crop: Any) -> Any:
        return crop + 1


class Scales:
    def step(self, crop: Any) -> Any:
        return crop * 5


@pair("order of bases")
def bases(k: int) -> Any:
    class C(*((Adds, Scales) if k == 1 else (Scales, Adds))):  # type: ignore[misc]
        def __call__(self, crop: Any) -> Any:
            return self.step(crop)

    return C()


@pair("methods of a tuple that is a default")
def default(k: int) -> Any:
    class P(Point):
        if k == 1:

            def gain(self) -> float:
                return self.x * 2
        else:

            def gain(self) -> float:
                return self.x * 3

    def fn(crop: Any, by: P = P(1.0)) -> Any:  # noqa: B008 -- what the case is about
        return crop * by.gain()

    return fn


@pair("data with underscores")
def underscored(k: int) -> Any:
    class C:
        __gain__ = k

        def __call__(self, crop: Any) -> Any:
            return crop * self.__gain__

    return C()


@pair("class of a configuration that was executed")
def executed(k: int) -> Any:
    space: dict[str, Any] = {}
    exec(f"class C:\n    k = {k}", space)
    return space["C"]


@pair("slots of a decorator")
def decorated(k: int) -> Any:
    class Deco:
        __slots__ = ("__wrapped__", "k")

        def __init__(self, fn: Any) -> None:
            self.__wrapped__, self.k = fn, k

        def __call__(self, crop: Any) -> Any:
            return self.__wrapped__(crop) * self.k

        @property
        def __name__(self) -> str:
            return "fn"

    return Deco(abs)


# -- networks ---------------------------------------------------------------------------------------------


def seeded(make: Callable[[], Any]) -> Any:
    torch().manual_seed(0)
    return make()


def module(forward: Callable[..., Any], **held: Any) -> Any:
    """Return a network of the user with attributes, and this forward method."""
    nn = torch().nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for name, value in held.items():
                setattr(self, name, value)

    Net.forward = forward
    return Net()


class Gain:
    def __init__(self, k: int) -> None:
        self.k = k

    def apply(self, x: Any) -> Any:
        return x * self.k


@pair("mode of a network that a function calls")
def mode(k: int) -> Any:
    nn = torch().nn
    net = nn.Sequential(seeded(lambda: nn.Conv2d(1, 1, 3)), nn.Dropout(0.5)).train(k == 1)
    return lambda crop: net(crop)


@pair("dtype of weights")
def halves(k: int) -> Any:
    net = seeded(lambda: torch().nn.Conv2d(1, 1, 3)).bfloat16()
    return tw.from_torch(net if k == 1 else copy.deepcopy(net).float())


@pair("activation")
def activation(k: int) -> Any:
    functional = torch().nn.functional
    chosen = (functional.silu, functional.mish)[k - 1]
    layer = torch().nn.TransformerEncoderLayer
    return tw.from_torch(seeded(lambda: layer(6, 2, 8, activation=chosen, batch_first=True)))


@pair("activation of an installed function")
def leaky(k: int) -> Any:
    chosen = functools.partial(torch().nn.functional.leaky_relu, negative_slope=k / 10)
    layer = torch().nn.TransformerEncoderLayer
    return tw.from_torch(seeded(lambda: layer(6, 2, 8, activation=chosen, batch_first=True)))


@pair("what a network does not show of itself")
def silent(k: int) -> Any:
    net = module(
        lambda self, x: self.conv(x),
        conv=seeded(lambda: torch().nn.Conv2d(1, 1, 3, padding=k, dilation=k)),
    )
    type(net).__repr__ = lambda self: "Net"
    return tw.from_torch(net)


@pair("configuration of an installed network")
def configured(k: int) -> Any:
    net = torch().nn.Identity()
    net.cfg = {"mean": k}
    return lambda crop: crop - net.cfg["mean"]


@pair("method of another object")
def method(k: int) -> Any:
    return tw.from_torch(module(lambda self, x: self.step(x), step=Gain(k).apply))


@pair("weights that are not saved")
def unsaved(k: int) -> Any:
    back = torch().nn.Linear(1, 1, bias=False)
    torch().nn.init.constant_(back.weight, k)
    net = module(lambda self, x: self.back(x), back=back)
    type(net).state_dict = lambda self, *args, **named: {}
    return tw.from_torch(net)


@pair("function in a graph of fx")
def graph(k: int) -> Any:
    fx = torch().fx

    def op(x: Any) -> Any:
        return x * k

    made = fx.Graph()
    made.output(made.call_function(op, (made.placeholder("x"),)))
    return tw.from_torch(fx.GraphModule(torch().nn.Module(), made))


@pair("classes of one name")
def twins(k: int) -> Any:
    def block(gain: float) -> Any:
        class Block(torch().nn.Module):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                return x * gain

        return Block()

    first, second = (block(2.0), block(3.0))[:: 1 if k == 1 else -1]
    return tw.from_torch(torch().nn.Sequential(first, torch().nn.ReLU(), second))


@pair("quantized weights")
def quantized(k: int) -> Any:
    linear = torch().nn.Linear(4, 4)
    torch().nn.init.constant_(linear.weight, k)
    torch().nn.init.zeros_(linear.bias)
    return tw.from_torch(
        torch().ao.quantization.quantize_dynamic(torch().nn.Sequential(linear), {type(linear)})
    )


PAIRS |= {
    "sparse tensor": lambda k: (torch().eye(2) * k).to_sparse(),
    "tensor of 8 bits": lambda k: torch().full((2,), k).to(torch().float8_e4m3fn),
    "part of a complex tensor": lambda k: torch().tensor([k * 1j]).conj().imag,
}


@pytest.mark.sample(100)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_others_are_told_apart_and_the_same_is_the_same(name: str) -> None:
    make = PAIRS[name]

    def held(value: Any) -> Any:
        return value if callable(value) else lambda crop: (value, crop)

    one = describe(held(make(1)), "fn")
    assert changes(one, describe(held(make(1)), "fn")).names == ()
    found = changes(one, describe(held(make(2)), "fn"))
    assert found.names
    assert not found.unknown


# -- false alarms -----------------------------------------------------------------------------------------


def test_a_cached_property_that_was_asked_for_is_no_change() -> None:
    class C:
        k = 2

        @functools.cached_property
        def table(self) -> list[int]:
            return [self.k] * 3

        def __call__(self, crop: Any) -> Any:
            return crop * self.table[0]

    fn = C()
    before = describe(fn, "fn")
    fn(1)
    assert changes(before, describe(fn, "fn")).names == ()


def test_functions_of_an_enumeration_have_no_address() -> None:
    def make(k: int) -> Any:
        class Kind(enum.Enum):
            blur = functools.partial(pow, k)

        return lambda crop: Kind.blur.value(crop)

    one = describe(make(2), "fn")
    assert changes(one, describe(make(2), "fn")).names == ()
    assert changes(one, describe(make(3), "fn")).names


def test_a_dataclass_has_no_hash_of_its_own() -> None:
    @dataclasses.dataclass
    class Options:
        k: int = 1

    options = Options()
    assert not any("__hash__" in name for name in describe(lambda crop: crop * options.k, "fn"))


# -- files ------------------------------------------------------------------------------------------------


def load(path: Any) -> Any:
    gain = np.load(path["weights"] if isinstance(path, dict) else path)
    return lambda crop: crop * gain


WAYS: dict[str, Callable[[Any], Any]] = {
    "argument": lambda path: tw.load_once(load, (path,)),
    "text": lambda path: tw.load_once(load, (str(path),)),
    "partial": lambda path: tw.load_once(functools.partial(load, path)),
    "dict": lambda path: tw.load_once(load, ({"weights": path},)),
    "version": lambda path: tw.load_once(load, kwargs={"path": path}, version="1"),
}


def written(path: Path, value: float) -> None:
    np.save(path, np.float32(value))
    later = path.stat().st_mtime_ns + round(value) * 10**7  # clocks of file systems may be coarse
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_written_anew_is_loaded_anew(way: str, tmp_path: Path) -> None:
    image, path = np.ones((8, 8), "f4"), tmp_path / "weights.npy"

    def run(fn: Any, **options: Any) -> float:
        out = tw.tiled_map(fn, image, 4, 0, dtype="f4")
        return float(tw.to_zarr(out, tmp_path / "out.zarr", progress=False, **options)[0, 0])

    written(path, 2)
    old = WAYS[way](path)
    assert run(old) == 2
    written(path, 35)
    if way != "version":
        with pytest.raises(tw.TilingError, match=r"weights.npy changed after load_once.* was made"):
            run(old)
        with pytest.raises(tw.TilingError, match=r"changed: fn factory .*weights.npy"):
            run(WAYS[way](path))
    assert run(WAYS[way](path), overwrite=True) == 35


def test_files_of_one_name_and_time_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate(("x", "y"), 2):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "weights.npy", np.float32(number))
        os.utime(tmp_path / folder / "weights.npy", ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / folder)
        assert tw.load_once(load, ("weights.npy",))(1) == number


def test_results_may_be_written_into_the_folder_of_the_weights(tmp_path: Path) -> None:
    written(tmp_path / "weights.npy", 2)
    fn = tw.load_once(lambda folder: load(f"{folder}/weights.npy"), (str(tmp_path),))
    for name in ("a.zarr", "b.zarr"):
        out = tw.tiled_map(fn, np.ones((8, 8), "f4"), 4, 0, dtype="f4")
        assert tw.to_zarr(out, tmp_path / name, progress=False)[0, 0] == 2


def test_a_network_is_built_anew_of_a_file_in_a_partial(tmp_path: Path) -> None:
    nn = torch().nn

    def build(path: Any) -> Any:
        net = nn.Conv2d(1, 1, 1)
        nn.init.constant_(net.weight, float(np.load(path)))
        nn.init.zeros_(net.bias)
        return net

    def value() -> float:
        net = tw.from_torch(
            functools.partial(build, tmp_path / "weights.npy"), add_channel=True, device="cpu"
        )
        return float(net(np.ones((1, 4, 4), "f4"))[0, 0, 0])

    written(tmp_path / "weights.npy", 2)
    assert value() == 2
    written(tmp_path / "weights.npy", 35)
    assert value() == 35
