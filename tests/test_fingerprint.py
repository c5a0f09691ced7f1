"""A store is gone on with where nothing changed, and refused with what changed."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.writing import ledger
from tilework.writing.code import describe
from tilework.writing.fingerprint import UNKNOWN, changes

IMAGE = np.arange(40 * 40, dtype="f4").reshape(40, 40)


def compiled(source: str, **globals_: Any) -> Any:
    """Return the function ``f`` of a source text, as a notebook cell would define it."""
    space = {"__name__": "__main__", "np": np, **globals_}
    exec(compile(textwrap.dedent(source), f"<cell {hash(source)}>", "exec"), space)
    return space["f"]


PLAIN = "def f(crop): return crop * 2"


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        pytest.param(PLAIN, "def f(crop): return crop * 3", "fn constants", id="constant"),
        pytest.param(PLAIN, "def f(crop): return crop + 2", "fn code", id="code"),
        pytest.param("K = 2\ndef f(crop): return crop * K", "K = 3\ndef f(crop): return crop * K",
                     "fn global K: 2 -> 3", id="global"),
        pytest.param("def g(k):\n  return lambda crop: crop * k\nf = g(2)",
                     "def g(k):\n  return lambda crop: crop * k\nf = g(3)",
                     "fn closure value k: 2 -> 3", id="closure"),
        pytest.param("def h(x): return x\ndef f(crop): return h(crop)",
                     "def h(x): return -x\ndef f(crop): return h(crop)", "fn global h code", id="helper"),
        pytest.param("def f(crop, k=2): return crop * k", "def f(crop, k=3): return crop * k",
                     "fn positional defaults", id="default"),
        pytest.param("W = np.ones(3)\ndef f(crop): return crop * W[0]",
                     "W = np.full(3, 2.)\ndef f(crop): return crop * W[0]", "fn global W", id="array"),
        pytest.param("class C:\n  k = 2\n  def __call__(self, crop): return crop * self.k\nf = C()",
                     "class C:\n  k = 3\n  def __call__(self, crop): return crop * self.k\nf = C()",
                     "fn k: 2 -> 3", id="class attribute"),
        pytest.param("class C:\n  def __call__(self, c): return c\nf = C()",
                     "class C:\n  def __call__(self, c): return -c\nf = C()",
                     "fn __call__ code", id="method"),
    ],
)  # fmt: skip
def test_a_changed_function_is_refused_with_what_changed(before: str, after: str, what: str) -> None:
    store = zarr.storage.MemoryStore()
    first = tw.tiled_map(compiled(before), IMAGE, 16, 2, dtype="f4")
    tw.to_zarr(first, store, progress=False)
    with pytest.raises(tw.TilingError) as error:
        tw.to_zarr(tw.tiled_map(compiled(after), IMAGE, 16, 2, dtype="f4"), store, progress=False)
    assert what in str(error.value)
    assert "overwrite=True" in str(error.value)
    again = tw.tiled_map(compiled("# moved, with a comment\n\n\n" + before), IMAGE, 16, 2, dtype="f4")
    assert tw.to_zarr(again, store, progress=False).shape == IMAGE.shape


def test_names_of_places_do_not_count() -> None:
    """Nor do docstrings; a new name of the function itself does not either."""
    one = compiled('def f(crop):\n  "says one thing"\n  return crop * 2')
    two = compiled('def g(crop):\n  "says another"\n  return crop * 2\nf = g')
    assert describe(one, "fn") == describe(two, "fn")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param({"crop": 12}, "crop: (16, 16) -> (12, 12)", id="crop"),
        pytest.param({"overlap": 3}, "overlap: (2, 2) -> (3, 3)", id="overlap"),
        pytest.param({"edge": "squeeze"}, "edge: ('shift', 'shift') -> ('squeeze', 'squeeze')", id="edge"),
        pytest.param({"blend": "average"}, "output 0 blend: trim -> average", id="blend"),
        pytest.param({"fill_value": 3}, "output 0 fill_value", id="fill_value"),
        pytest.param({"boundary": "edge", "edge": "pad"}, "boundary: reflect -> edge", id="boundary"),
        pytest.param({"array": IMAGE + 1}, "source 0 data", id="source"),
    ],
)
def test_changed_parameters_are_named(change: dict[str, Any], what: str) -> None:
    store = zarr.storage.MemoryStore()
    base: dict[str, Any] = {"fn": np.negative, "array": IMAGE, "crop": 16, "overlap": 2, "dtype": "f4"}
    tw.to_zarr(tw.tiled_map(**base), store, progress=False)
    with pytest.raises(tw.TilingError) as error:
        tw.to_zarr(tw.tiled_map(**(base | change)), store, progress=False)
    assert what in str(error.value)


def test_what_does_not_change_the_result_may_change() -> None:
    """Batches, memory, chunks of the lazy array, and how often a tile would run."""
    store = zarr.storage.MemoryStore()
    tw.to_zarr(tw.tiled_map(np.negative, IMAGE, 16, 2, dtype="f4", chunks=20), store, progress=False)
    for options in ({"batch_size": 4}, {"chunks": 13}, {"reuse": "recompute"}, {"memory_limit": "1GB"}):
        out = tw.tiled_map(np.negative, IMAGE, 16, 2, dtype="f4", **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(tw.to_zarr(out, store, progress=False)[...], -IMAGE)


def build(path: str, factor: int = 1) -> Any:
    weights = np.load(path)
    return lambda crop: crop * weights[0] * factor


def test_a_changed_weights_file_is_refused(tmp_path: Path) -> None:
    """So is another argument of the factory; ``version`` stands for both."""
    weights, store = tmp_path / "weights.npy", zarr.storage.MemoryStore()
    np.save(weights, np.ones(1))

    def out(factor: int = 1, version: str | None = None) -> Any:
        fn = tw.load_once(build, (str(weights), factor), version=version)
        return tw.tiled_map(fn, IMAGE, 16, 2, dtype="f4")

    tw.to_zarr(out(), store, progress=False)
    tw.to_zarr(out(), store, progress=False)
    with pytest.raises(tw.TilingError, match="fn factory argument 1: 1 -> 2"):
        tw.to_zarr(out(2), store, progress=False)
    np.save(weights, np.full(1, 3.0))
    os.utime(weights, (1, 1))
    with pytest.raises(tw.TilingError, match=r"fn factory argument 0: file weights\.npy"):
        tw.to_zarr(out(), store, progress=False)
    other = zarr.storage.MemoryStore()
    tw.to_zarr(out(version="a"), other, progress=False)
    tw.to_zarr(out(factor=7, version="a"), other, progress=False)
    with pytest.raises(tw.TilingError, match="fn version: a -> b"):
        tw.to_zarr(out(version="b"), other, progress=False)


def test_a_rewritten_source_is_refused(tmp_path: Path) -> None:
    """In Zarr, in a raw file, in HDF5: same place and shape, other data."""
    h5py = pytest.importorskip("h5py")
    zarr.create_array(str(tmp_path / "a.zarr"), data=IMAGE, chunks=(20, 20))
    IMAGE.tofile(tmp_path / "a.raw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = IMAGE
    opened: dict[str, Any] = {
        "zarr": lambda: str(tmp_path / "a.zarr"),
        "raw": lambda: np.memmap(tmp_path / "a.raw", "f4", "r", shape=IMAGE.shape),
        "h5": lambda: h5py.File(tmp_path / "a.h5", "r")["x"],
    }
    stores = {name: zarr.storage.MemoryStore() for name in opened}

    def write(name: str) -> None:
        out = tw.tiled_map(np.negative, opened[name](), 16, 2, dtype="f4")
        tw.to_zarr(out, stores[name], progress=False)

    for name in opened:
        write(name)
        write(name)
    zarr.open_array(str(tmp_path / "a.zarr"))[30, 30] = -5
    (IMAGE + 1).tofile(tmp_path / "a.raw")
    os.utime(tmp_path / "a.raw", (1, 1))
    os.utime(tmp_path / "a.h5", (1, 1))
    for name in opened:
        with pytest.raises(tw.TilingError, match="changed: source 0 data"):
            write(name)


def test_what_cannot_be_compared_asks_for_a_version() -> None:
    """An object without state to see; the first run goes through."""
    lock: Any = __import__("threading").Lock()

    def fn(crop: np.ndarray) -> np.ndarray:
        with lock:
            return crop * 2

    store = zarr.storage.MemoryStore()
    out = tw.tiled_map(fn, IMAGE, 16, 2, dtype="f4")
    tw.to_zarr(out, store, progress=False)
    with pytest.raises(tw.TilingError, match=r"fn closure value lock \(cannot be compared\).*|version="):
        tw.to_zarr(out, store, progress=False)
    other = zarr.storage.MemoryStore()
    tw.to_zarr(out, other, version="1", progress=False)
    tw.to_zarr(out, other, version="1", progress=False)


def test_installed_functions_are_known_by_package_and_version() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    assert describe(ndimage.gaussian_filter, "fn")["fn"].startswith("scipy.ndimage")
    assert describe(np.negative, "fn")["fn"].startswith("numpy.negative, numpy")
    parts = describe(functools.partial(ndimage.gaussian_filter, sigma=2.0), "fn")
    assert parts["fn argument sigma"] == "2.0"
    assert changes({"a": UNKNOWN}, {"a": UNKNOWN}).refused == ("a (cannot be compared)",)


def test_networks_are_known_by_code_and_weights() -> None:
    torch = pytest.importorskip("torch")

    def network(seed: int) -> Any:
        torch.manual_seed(seed)
        return tw.from_torch(torch.nn.Conv2d(1, 1, 3, padding=1))

    assert describe(network(0), "fn") == describe(network(0), "fn")
    assert changes(describe(network(0), "fn"), describe(network(1), "fn")).names == ("fn module weights",)


SCRIPT = """
import sys, numpy as np, tilework as tw
SCALE = {scale}
def helper(crop): return crop * SCALE
def fn(crop):
    parts = {{"a", "b", "c"}}
    return helper(crop) + len(parts) - 3
out = tw.tiled_map(fn, np.arange(1600, dtype="f4").reshape(40, 40), 16, 2, dtype="f4")
try:
    tw.to_zarr(out, sys.argv[1], progress=False)
except tw.TilingError as error:
    print("refused:", error)
else:
    print("went on")
"""


@pytest.mark.sample(0)
def test_another_process_goes_on(tmp_path: Path) -> None:
    """A restarted kernel: other addresses, another hash seed, another file; an edited one is refused."""

    def start(name: str, scale: int, seed: str) -> str:
        script = tmp_path / name
        script.write_text("# " + "x" * int(seed) + "\n" * int(seed) + SCRIPT.format(scale=scale))
        found = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "a.zarr")],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed},
        )  # fmt: skip
        return found.stdout

    assert start("one.py", 2, "1").strip() == "went on"
    assert start("two.py", 2, "2").strip() == "went on"
    assert "changed: fn global helper global SCALE: 2 -> 3" in start("two.py", 3, "3")


def test_packages_without_metadata_are_written_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen applications have the modules only."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    ledger._versions.cache_clear()
    try:
        out = tw.tiled_map(np.negative, IMAGE, 8, 1)
        for _ in range(2):  # begun, and gone on with
            np.testing.assert_array_equal(tw.to_zarr(out, tmp_path / "o.zarr")[:], -IMAGE)
        assert ledger.versions()["numpy"] == tw.__version__ == "0+unknown"
    finally:
        ledger._versions.cache_clear()
