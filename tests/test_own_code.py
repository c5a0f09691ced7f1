"""`load_once` builds with a factory that was edited and loaded again, which a pickle knows by name only."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from scipy import ndimage

import tilework as tw
from tilework.function.own_code import own_code

IMAGE = da.ones((16, 16), chunks=8, dtype="f4")
HELPER = "def twice(crop):\n    return crop * {factor}\n"
MODULE = """
import functools
import {helper} as helpers
from {helper} import twice

FACTOR = {constant}

def plain(crop):
    "{doc}"
    return crop * {factor}

def with_helper(crop):
    return _inner(crop)

def _inner(crop):
    return crop * {factor}

def with_constant(crop):
    return crop * FACTOR

def with_other_module(crop):
    return twice(crop)

def through_a_module(crop):
    return helpers.twice(crop)

def with_default(crop, by=_inner):
    return by(crop)

def nested(crop):
    return [_inner(c) for c in [crop]][0]

def looked_up(crop):
    return Step.of(crop)

class Base:
    gain = {factor}

    def __call__(self, crop):
        return self.step(crop)

class Step(Base):
    def step(self, crop):
        return crop * self.gain

    @staticmethod
    def of(crop):
        return _inner(crop)

    def method(self, crop):
        return _inner(crop)

instance = Step()
method = Step().method
partial = functools.partial(with_default, by=_inner)
"""
CHANGED = ("plain", "with_helper", "with_default", "nested", "looked_up", "instance", "method", "partial")


@pytest.fixture
def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that edits two modules and loads them again."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    name, helper = f"own_code_{os.getpid()}", f"own_helper_{os.getpid()}"

    def module(
        factor: int = 2, constant: int = 2, other: int = 2, comment: str = "", doc: str = "Do it."
    ) -> Any:
        (tmp_path / f"{helper}.py").write_text(comment + HELPER.format(factor=other))
        text = comment + MODULE.format(factor=factor, constant=constant, helper=helper, doc=doc)
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        importlib.reload(importlib.import_module(helper))
        return importlib.reload(importlib.import_module(name))

    return module


def name_of(fn: Any) -> str:
    return tw.load_once(fn).token


@pytest.mark.sample(8)
@pytest.mark.parametrize("changed", [
    *(("factor", name) for name in CHANGED),
    ("constant", "with_constant"), ("other", "with_other_module"), ("other", "through_a_module"),
], ids=lambda pair: pair[1])  # fmt: skip
def test_an_edit_changes_the_name(changed: tuple[str, str], module_of: Callable[..., Any]) -> None:
    what, name = changed
    before = name_of(getattr(module_of(), name))
    assert name_of(getattr(module_of(), name)) == before
    assert name_of(getattr(module_of(comment="# a comment\n\n"), name)) == before
    assert name_of(getattr(module_of(doc="Say more."), name)) == before
    assert name_of(getattr(module_of(**{what: 30}), name)) != before


def test_an_edit_elsewhere_changes_no_name(module_of: Callable[..., Any]) -> None:
    before = name_of(module_of().plain)
    assert name_of(module_of(constant=30, other=30).plain) == before


def test_installed_functions_have_no_code_of_their_own() -> None:
    gaussian = functools.partial(ndimage.gaussian_filter, sigma=1)
    found = [np.negative, ndimage.gaussian_filter, gaussian, np.random.default_rng(0).normal, len]
    if importlib.util.find_spec("torch") is not None:
        found.append(importlib.import_module("torch").nn.Conv2d(1, 1, 3))
    for fn in found:
        assert own_code(fn) == []


def test_odd_functions_have_names() -> None:
    """Cycles, empty cells, and objects that say yes or no to everything."""

    class Anything:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __call__(self, crop: Any) -> Any:
            return crop

    def cell(crop: Any) -> Any:
        return crop if crop is None else later(crop)

    assert own_code(Anything())
    assert own_code(cell)
    later = cell
    assert own_code(cell)
    looped: Any = functools.partial(cell)
    looped.keywords["again"] = looped
    assert len(own_code(looped)) >= 1


def test_tokens_are_those_of_another_process(module_of: Callable[..., Any], tmp_path: Path) -> None:
    module = module_of()
    tokens = [name_of(getattr(module, name)) for name in CHANGED]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module.__name__} as m\n"
        f"import tilework as tw\nfor n in {CHANGED}: print(tw.load_once(getattr(m, n)).token)\n"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], text=True, check=True, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout.split() == tokens


def test_the_name_of_a_result_has_no_code(module_of: Callable[..., Any]) -> None:
    """Stores of before know results by this name."""

    def name(factor: int) -> str:
        fn = tw.load_once(module_of(factor).plain)
        return str(tw.tiled_map(fn, IMAGE, 8, 1, dtype="f4").name)

    assert name(2) == name(30)


def test_load_once_builds_with_the_edited_factory(module_of: Callable[..., Any]) -> None:
    def largest(factory: Any, *args: Any) -> float:
        out = tw.tiled_map(tw.load_once(factory, args), np.ones((16, 16), "f4"), 8, 1, dtype="f4")
        return float(out.compute().max())

    for name in ("Step", "partial"):
        factory = FACTORIES[name]
        assert largest(factory, getattr(module_of(2), name)) == 2
        assert largest(factory, getattr(module_of(2), name)) == 2
        assert largest(factory, getattr(module_of(30), name)) == 30


FACTORIES: dict[str, Any] = {"Step": lambda kind: kind(), "partial": lambda given: given}
