"""Results of `tiled_map` below a result are known by what they are computed from, not by their dask names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.writing import fingerprint

IMAGE = np.random.default_rng(0).random((32, 32))
CODE = """
import numpy as np
def one(crop): return crop * 2 if "x" not in {"a", "bb", "ccc"} else crop
def both(crop): return crop * 2, crop * 3
def none(crop): return crop.max() < 0
def objects(crop): return (crop > 0.5).astype("i4")
def large(table): return table["area"] > 2
class Thing:
    def __init__(self): self.names, self.weights = {"q", "r", "sss"}, np.arange(4.0)
    def __call__(self, crop): return crop * self.weights[2]
"""


def code(folder: Path, *, lines: int = 0, edit: tuple[str, str] = ("", "")) -> Any:
    """Return a module that cannot be imported, so that dask names its functions by file, line and code."""
    module = ModuleType("in_a_script")
    text = "\n" * lines + CODE.replace(*edit)
    exec(compile(text, str(folder / "script.py"), "exec"), module.__dict__)
    return module


def tiled(fn: Any, image: Any = IMAGE, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 16, 1, **({"dtype": "f8"} | options))


def written(store: Path, out: Any, **options: Any) -> Any:
    return tw.to_zarr(out, store, progress=False, **options)


CHAINS: dict[str, Callable[[Any, Path], Any]] = {
    "two": lambda m, store: written(store, tiled(np.negative, tiled(m.one))),
    "three": lambda m, store: written(store, tiled(np.abs, tiled(np.negative, tiled(m.one)))),
    "an object": lambda m, store: written(store, tiled(np.abs, tiled(m.Thing()))),
    "skip": lambda m, store: written(store, tiled(np.abs, tiled(np.abs, skip=m.none))),
    "mask": lambda m, store: written(store, tiled(np.abs, tiled(m.one, mask=np.eye(4, dtype=bool)))),
    "one of two": lambda m, store: written(
        store, tiled(np.abs, tiled(m.both, output=(tw.Output("f8"),) * 2, dtype=None)[1])
    ),
    "beside an image": lambda m, store: written(store, tiled(np.add, (IMAGE, tiled(m.one)))),
    "twice": lambda m, store: written(store, tiled(np.add, (tiled(m.one), tiled(np.abs, tiled(m.one))))),
    "version": lambda m, store: written(store, tiled(np.abs, tiled(m.one)), version="1"),
    "merge_labels": lambda m, store: tw.merge_labels(
        tiled(m.objects, dtype="i4"), store / "labels", progress=False
    ),
    "filter_labels": lambda m, store: tw.filter_labels(
        tiled(m.objects, dtype="i4"), m.large, store / "labels", progress=False
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_is_resumed_after_its_script_was_moved_and_got_lines(tmp_path: Path, chain: str) -> None:
    first, later = code(tmp_path), code(tmp_path / "elsewhere", lines=3)
    assert tiled(first.one).name != tiled(later.one).name
    for module in (first, later):
        CHAINS[chain](module, tmp_path / "store")


@pytest.mark.parametrize(
    "chain", [chain for chain in CHAINS if chain not in {"version", "merge_labels", "filter_labels"}]
)
def test_a_chain_with_another_function_is_refused(tmp_path: Path, chain: str) -> None:
    CHAINS[chain](code(tmp_path), tmp_path / "store")
    edits = {"an object": ("weights[2]", "weights[3]"), "skip": ("< 0", "< 1"), "one of two": ("* 3", "* 4")}
    edited = code(tmp_path, edit=edits.get(chain, ("* 2 if", "* 5 if")))
    with pytest.raises(tw.TilingError, match=r"changed: .*below 1: (fn|skip)"):
        CHAINS[chain](edited, tmp_path / "store")


def test_the_other_output_and_another_order_are_refused(tmp_path: Path) -> None:
    m = code(tmp_path)
    pair = tiled(m.both, output=(tw.Output("f8"),) * 2, dtype=None)
    written(tmp_path / "outputs", tiled(np.abs, pair[0]))
    with pytest.raises(tw.TilingError, match="source 0 is result: 1, output 0 -> 1, output 1"):
        written(tmp_path / "outputs", tiled(np.abs, pair[1]))
    one, two = tiled(m.one), tiled(np.abs)
    written(tmp_path / "order", tiled(np.subtract, (one, two)))
    with pytest.raises(tw.TilingError, match="source 0 below 1: fn"):
        written(tmp_path / "order", tiled(np.subtract, (two, one)))


def test_a_record_with_dask_names_is_resumed_by_them_once(tmp_path: Path) -> None:
    store, refer = tmp_path / "store", fingerprint._refer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_refer", lambda parts, sure: refer(parts, sure=False))
        CHAINS["three"](code(tmp_path), store)
    with pytest.raises(tw.TilingError, match=r"dask name: tiled_map-\w+ -> tiled_map-"):
        CHAINS["three"](code(tmp_path, lines=3), store)
    for module in (code(tmp_path), code(tmp_path, lines=3)):
        CHAINS["three"](module, store)


def test_what_cannot_be_compared_is_known_by_its_name(tmp_path: Path) -> None:
    class Locked:
        def __init__(self, by: float) -> None:
            self.by, self.lock = by, threading.Lock()

        def __call__(self, crop: Any) -> Any:
            return crop * self.by

        def __dask_tokenize__(self) -> Any:
            return "locked", self.by

    written(tmp_path / "store", tiled(np.abs, tiled(Locked(2.0))))
    written(tmp_path / "store", tiled(np.abs, tiled(Locked(2.0))))
    with pytest.raises(tw.TilingError, match="dask name"):
        written(tmp_path / "store", tiled(np.abs, tiled(Locked(3.0))))
