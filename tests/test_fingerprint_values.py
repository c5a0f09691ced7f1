"""Whatever a function is or holds: an edit is seen, an equal one is equal, the rest says it is unknown."""

from __future__ import annotations

import functools
import io
import logging
import re
import threading
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilework.writing.code import describe
from tilework.writing.fingerprint import UNKNOWN, changes

HEAD = """
import abc, asyncio, collections, dataclasses, enum, functools, operator, threading, types, typing
import numpy as np
"""


def made(source: str) -> Any:
    """Return ``fn`` of a source text, as a new process would define it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(HEAD + source, space)
    return space["fn"]


# What stands after the name of a case is a script; the edited one has 0 where this one has 1.
CASES = """
### slots
class C:
  __slots__ = ('k',)
  def __init__(s): s.k = 1
  def __call__(s, x): return x * s.k
fn = C()
### method of a class with slots
class C:
  __slots__ = ('k',)
  def __call__(s, x): return x * 1
fn = C()
### slots and attributes
class A:
  __slots__ = ('k',)
class C(A):
  def __init__(s): s.k = 1; s.j = 2
  def __call__(s, x): return x
fn = C()
### private slot
class C:
  __slots__ = ('__k',)
  def __init__(s): s.__k = 1
  def __call__(s, x): return x
fn = C()
### dataclass with slots
@dataclasses.dataclass(slots=True)
class C:
  k: int = 2
  def __call__(self, x): return x * 1
fn = C()
### field of a dataclass with slots
@dataclasses.dataclass(slots=True)
class C:
  k: int = 1
  def __call__(self, x): return x
fn = C()
### named tuple
class C(typing.NamedTuple):
  k: int = 2
  def __call__(self, x): return x * 1
fn = C()
### enumeration
class C(enum.Enum):
  A = 2
  def f(self): return 1
m = C.A
def fn(x): return m.f()
### abstract class
class A(abc.ABC):
  @abc.abstractmethod
  def __call__(self, x): ...
class C(A):
  def __call__(self, x): return x * 1
fn = C()
### metaclass
class M(type):
  def f(cls): return 1
class C(metaclass=M):
  def __call__(self, x): return x
fn = C()
### list with attributes
class L(list): pass
v = L([1]); v.a = 2
def fn(x): return v
### attribute of a list
class L(list): pass
v = L([2]); v.a = 1
def fn(x): return v
### dict of a class
class D(dict):
  def f(s): return 1
v = D(a=2)
def fn(x): return v.f()
### array of a class
class A(np.ndarray):
  def f(s): return 1
v = np.ones(2).view(A)
def fn(x): return v.f()
### list of instances with slots
class C:
  __slots__ = ('k',)
  def __init__(s): s.k = 1
v = [C()]
def fn(x): return v
### set of functions
def f(x): return 1
v = {f}
def fn(x): return v
### deque of functions
v = collections.deque([lambda x: 1])
def fn(x): return v
### array of functions
v = np.array([lambda x: 1, None], object)
def fn(x): return v
### function as a key
def f(x): return 1
v = {f: 2}
def fn(x): return v
### namespace
v = types.SimpleNamespace(f=lambda x: 1)
def fn(x): return v
### lambdas in a container
v = {'a': [lambda x: 1]}
def fn(x): return v['a'][0](x)
### closure over a closure
def a(k):
  def b():
    def c(x): return x * k
    return c
  return b()
fn = a(1)
### partial
def f(x, k): return x
fn = functools.partial(f, k=1)
### partial method
class C:
  def f(s, k, x): return x
  __call__ = functools.partialmethod(f, 1)
fn = C()
### cached property
class C:
  @functools.cached_property
  def k(s): return 1
  def __call__(s, x): return x * s.k
fn = C()
### setter
class C:
  @property
  def k(s): return 2
  @k.setter
  def k(s, v): print(1)
  def __call__(s, x): return x
fn = C()
### lru_cache
@functools.lru_cache
def f(x): return 1
def fn(x): return f(x)
### singledispatch
@functools.singledispatch
def f(x): return 2
@f.register
def _(x: int): return 1
def fn(x): return f(x)
### singledispatchmethod
class C:
  @functools.singledispatchmethod
  def f(s, x): return 1
  def __call__(s, x): return s.f(x)
fn = C()
### decorator with wraps
def deco(g):
  @functools.wraps(g)
  def inner(x): return g(x) * 1
  return inner
@deco
def fn(x): return x
### wrapper with the name of an installed function
@functools.wraps(np.linalg.norm)
def fn(x): return x * 1
### attribute of a function
def f(x): return f.k
f.k = 1
def fn(x): return f(x)
### coroutine
async def f(x): return 1
def fn(x): return asyncio.run(f(x))
### generator function
def f(x): yield 1
def fn(x): return next(f(x))
### vectorize
fn = np.vectorize(lambda x: x * 1)
### poly1d
v = np.poly1d([1, 2])
def fn(x): return v(x)
### method of an array
fn = np.full(3, 1.0).dot
### method of a list
v = [1].count
def fn(x): return v(x)
### compiled as numba does
class D:
  def __init__(s, f): s.py_func = f; s.__name__ = 'f'
  def __call__(s, x): return s.py_func(x)
fn = D(lambda x: x * 1)
fn.__module__ = '__main__'
### class as a decorator
class deco:
  def __init__(s, f): functools.update_wrapper(s, f); s.f = f
  def __call__(s, x): return s.f(x) * 1
@deco
def fn(x): return x
### attribute of a class as a decorator
class deco:
  def __init__(s, f): functools.update_wrapper(s, f); s.k = 1
  def __call__(s, x): return x * s.k
@deco
def fn(x): return x
### class made by an installed function
C = dataclasses.make_dataclass("C", ["k"], namespace={"__call__": lambda s, x: x * 1})
fn = C(2)
### base of a class made by an installed function
class B:
  def __call__(s, x): return x * 1
fn = dataclasses.make_dataclass("C", ["k"], bases=(B,))(2)
### class that derives from partial
class P(functools.partial):
  def __call__(s, x): return x * 1
fn = P(len)
### function without the name of a module
space = {}
exec("def f(x): return x * 1", space)
fn = space["f"]
### method of a class of an installed module
class C(collections.OrderedDict):
  def __call__(s, x): return x * 1
fn = C()
### methodcaller
v = operator.methodcaller('f', 1)
def fn(x): return v(x)
### token of the user
class C:
  def __dask_tokenize__(s): return 'C'
  def __call__(s, x): return x * 1
fn = C()
### names looked up in a dictionary
class Config(dict):
  __getattr__ = dict.__getitem__
v = Config(k=1, net=Config(f=len))
def fn(x): return x * v.k
### names looked up in an attribute
class Config:
  def __init__(s, **k): object.__setattr__(s, 'held', k)
  def __getattr__(s, name): return s.held[name]
v = Config(k=1)
def fn(x): return x * v.k
### callable that looks names up
class Config(dict):
  __getattr__ = dict.__getitem__
  def __call__(s, x): return x * s.k
fn = functools.partial(Config(k=1))
### object with errors of its own
class Own:
  def __init__(s): s.k = 1
  def __getattr__(s, name): raise ValueError(name)
v = Own()
def fn(x): return x * v.k
### object that has every name
class Every:
  def __init__(s): s.k = 1
  def __getattr__(s, name): return len
v = Every()
def fn(x): return x * v.k
### two functions in another order
def a(x): return g(x)
def b(x): return a(x)
g = [a, b][1]
def fn(x): return b(x)
### closure of an installed function
import contextlib
fn = contextlib.contextmanager(lambda x: x * 1)
"""
EDITED = dict(case.split("\n", 1) for case in CASES.split("### ")[1:])


@pytest.mark.parametrize("case", EDITED)
def test_an_edit_is_seen_and_a_new_process_is_equal(case: str) -> None:
    source = EDITED[case]
    before = describe(made(source), "fn")
    assert changes(before, describe(made("# moved\n\n" + source), "fn")).names == ()
    other = re.sub(r"\b1\b", "0", source)
    found = changes(before, describe(made(other), "fn"))
    assert found.names, "silent"
    assert not found.unknown


def random_token() -> Any:
    class C:
        def __dask_tokenize__(self) -> Any:
            return np.random.default_rng().random()

    return C()


def failing_token() -> Any:
    class C:
        def __dask_tokenize__(self) -> Any:
            raise RuntimeError("no")

    return C()


def in_itself(value: Any, *more: Any) -> Any:
    """Return a container that holds itself, two levels down, and ``more``."""
    if isinstance(value, dict):
        value["inside"] = [*more, {"again": value}]
    else:
        value.append((*more, [value]))
    return value


def with_slot(value: Any) -> Any:
    class C:
        __slots__ = ("k",)

    found: Any = C()
    found.k = value
    return found


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(threading.Lock, id="lock"),
        pytest.param(threading.local, id="thread local"),
        pytest.param(threading.Event, id="event"),
        pytest.param(lambda: (k for k in range(3)), id="generator"),
        pytest.param(lambda: weakref.ref(with_slot), id="weak reference"),
        pytest.param(lambda: io.StringIO("a"), id="open file"),
        pytest.param(lambda: np.frompyfunc(lambda x: x, 1, 1), id="ufunc of a function"),
        pytest.param(random_token, id="random token"),
        pytest.param(failing_token, id="failing token"),
        pytest.param(lambda: with_slot(threading.Lock()), id="lock in a slot"),
        pytest.param(lambda: in_itself([]), id="list in itself"),
        pytest.param(lambda: in_itself({}), id="dict in itself"),
        pytest.param(lambda: functools.reduce(lambda value, _: [value], range(5000), 1), id="deep list"),
        pytest.param(lambda: in_itself([], np.add, random_token), id="list of functions in itself"),
        pytest.param(lambda: in_itself({}, random_token), id="dict of functions in itself"),
    ],
)
def test_what_cannot_be_compared_says_so(make: Callable[[], Any]) -> None:
    """It has not "changed", and it never counts as equal to itself."""
    value = make()
    parts = describe(value, "v")
    assert UNKNOWN in parts.values()
    found = changes(parts, describe(value, "v"))
    assert found.unknown
    assert all("cannot be compared" in text for text in found.refused)


@pytest.mark.parametrize(
    "value",
    [
        logging.getLogger("tests.fingerprint"),
        re.compile("a+"),
        datetime(2020, 1, 1),
        Path("a") / "b",
        np.random.default_rng(0),
        np.add,
        weakref.WeakKeyDictionary(),
        ValueError("a"),
        np.errstate(all="ignore"),
        {1, 2.5, "a"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_common_values_can_be_compared(value: Any) -> None:
    parts = describe(value, "v")
    str(value)  # a path keeps its text from now on
    assert UNKNOWN not in parts.values()
    assert describe(value, "v") == parts


def test_a_cache_that_fills_is_no_change() -> None:
    fn = made("@functools.singledispatch\ndef f(x): return x\n@functools.lru_cache\ndef g(x): return x\n"
              "def fn(x): return f(x) + g(1)")  # fmt: skip
    before = describe(fn, "fn")
    fn(2)
    assert describe(fn, "fn") == before


def test_ufuncs_are_known_by_the_package_that_has_them() -> None:
    special = pytest.importorskip("scipy.special")
    assert describe(special.erf, "fn")["fn module"].startswith("scipy ")


def test_partials_of_partials_are_equal_to_themselves() -> None:
    fn = functools.partial(functools.partial(np.add, 1), 2)
    assert describe(fn, "fn") == describe(fn, "fn")


def test_what_belongs_to_a_cluster_is_known_by_its_kind(client: Any) -> None:
    """Each holds the client, and through it all that its process has."""
    from distributed import Event, Lock, Queue, Variable

    scattered = client.scatter(1)
    known = [describe(value, "v") for value in (client, Lock("a"), Event("b"), scattered, client.scatter(2))]
    assert all(UNKNOWN not in parts.values() for parts in known)
    assert known[3] != known[4]
    assert describe(scattered, "v") == known[3]
    lock = Lock("c")
    assert describe(lambda crop: crop if lock is None else crop + 1, "v") == describe(
        lambda crop: crop if lock is None else crop + 1, "v"
    )
    for value in (Queue("d"), Variable("e")):
        assert UNKNOWN in describe(value, "v").values()
