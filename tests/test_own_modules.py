"""An edit in a module of the user is seen wherever the function reaches it; other edits do not matter."""

from __future__ import annotations

import importlib
import importlib.util
import os
import py_compile
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tilework.identity import modules
from tilework.writing.code import describe
from tilework.writing.fingerprint import changes

Describe = Callable[..., dict[str, str]]


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Describe]:
    """Give a function that writes files and returns the parts of a script's ``fn``, as a new process does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # Compiled code is taken for that of a file with the same second and length, which an edit here may have.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)

    def parts(files: dict[str, str], script: str) -> dict[str, str]:
        forget(known)
        for name, text in files.items():
            place = tmp_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(textwrap.dedent(text))
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(textwrap.dedent(script), space)
        loaded = set(own(known))
        found = describe(space["fn"], "fn")
        assert set(own(known)) == loaded, "something was imported"
        return found

    yield parts
    forget(known)


def own(known: set[str]) -> list[str]:
    names = ("pk", "other", "ns", "zipped", "config", "broken")
    return [name for name in set(sys.modules) - known if name.partition(".")[0] in names]


def forget(known: set[str]) -> None:
    for name in own(known):
        del sys.modules[name]
    importlib.invalidate_caches()


BASE = {
    "pk/__init__.py": "",
    "pk/filters.py": "K = 1\ndef f(x): return x + K\ndef unrelated(x): return x\n",
    "pk/deep/__init__.py": "",
    "pk/deep/most.py": "def g(x): return x\n",
    "other.py": "def h(x): return x\n",
}
EDITED = "K = 2\ndef f(x): return x + K\ndef unrelated(x): return x\n"
ELSEWHERE = "K = 1\ndef f(x): return x + K\ndef unrelated(x): return x + 1\n"
WHOLE = "fn module pk.filters"

REACHED: dict[str, tuple[str, str]] = {
    # The function is found, so that only it counts, and not what stands beside it.
    "chain": ("import pk.filters\ndef fn(x): return pk.filters.f(x)", "fn global pk.filters.f global K"),
    "alias": ("from pk import filters as flt\ndef fn(x): return flt.f(x)", "fn global flt.f global K"),
    "name": ("from pk.filters import f\ndef fn(x): return f(x)", "fn global f global K"),
    "star": ("from pk.filters import *\ndef fn(x): return f(x)", "fn global f global K"),
    "value": ("import pk.filters\ndef fn(x): return x + pk.filters.K", "fn global pk.filters.K"),
    "closure": (
        "def make():\n  import pk.filters\n  return lambda x: pk.filters.f(x)\nfn = make()",
        "fn closure value pk.filters.f global K",
    ),
    "nested function": (
        "import pk.filters\ndef fn(x): return [pk.filters.f(y) for y in (lambda: x)()]",
        "fn global pk.filters.f global K",
    ),
    "helper": (
        "import pk.filters\ndef help(x): return pk.filters.f(x)\ndef fn(x): return help(x)",
        "fn global help global pk.filters.f global K",
    ),
    "class": (
        "import pk.filters\nclass C:\n  def __call__(self, x): return pk.filters.f(x)\nfn = C()",
        "fn __call__ global pk.filters.f global K",
    ),
    "decorator": (
        """
        import functools, pk.filters
        def deco(g):
            @functools.wraps(g)
            def inner(x): return pk.filters.f(g(x))
            return inner
        @deco
        def fn(x): return x
        """,
        "fn global pk.filters.f global K",
    ),
}
WHOLES: dict[str, str] = {
    "import inside": "def fn(x):\n  import pk.filters\n  return pk.filters.f(x)",
    "import from inside": "def fn(x):\n  from pk.filters import f\n  return f(x)",
    "import a module inside": "def fn(x):\n  from pk import filters\n  return filters.f(x)",
    "import inside a helper": """
        def help(x):
            import pk.filters as q
            return q.f(x)
        def fn(x): return help(x)
        """,
    "import inside a nested function": """
        def fn(x):
            def g():
                from pk.filters import f
                return f(x)
            return g()
        """,
    "import inside a method": """
        class C:
            def __call__(self, x):
                from pk.filters import f
                return f(x)
        fn = C()
        """,
    "package imported, its submodule an attribute": """
        import pk.filters
        def fn(x):
            import pk
            return pk.filters.f(x)
        """,
    "module as a value": "import pk.filters as q\ndef fn(x): return getattr(q, 'f')(x)",
    "module in a table": "import pk.filters as q\nT = {'q': q}\ndef fn(x): return T['q'].f(x)",
    "module as an argument": """
        import functools, pk.filters as q
        def g(m, x): return m.f(x)
        fn = functools.partial(g, q)
        """,
    "package as a value": """
        import pk.filters
        def g(m, x): return m.filters.f(x)
        def fn(x): return g(pk, x)
        """,
    "attribute that is missing": "import pk\ndef fn(x): return pk.filters.f(x)",
    "conditional": """
        def fn(x):
            try:
                import missing_module as m
            except ImportError:
                import pk.filters as m
            return m.f(x)
        """,
}


@pytest.mark.parametrize("case", REACHED)
def test_what_a_function_reaches_counts_and_its_neighbours_do_not(described: Describe, case: str) -> None:
    script, part = REACHED[case]
    before = described(BASE, script)
    assert changes(before, described(BASE, script)).names == ()
    assert changes(before, described({"pk/filters.py": EDITED}, script)).names == (part,)
    assert changes(before, described({"pk/filters.py": ELSEWHERE}, script)).names == ()


@pytest.mark.parametrize("case", WHOLES)
def test_a_module_that_cannot_be_followed_counts_whole(described: Describe, case: str) -> None:
    """Without its comments and docstrings; whether it is loaded already does not matter."""
    script = WHOLES[case]
    before = described(BASE, script)
    assert changes(before, described({"pk/filters.py": EDITED}, script)).names == (WHOLE,)
    assert changes(before, described({"pk/filters.py": ELSEWHERE}, script)).names == (WHOLE,)
    commented = "'''About.'''\n\n# No change.\n" + BASE["pk/filters.py"].replace("+ K", "+ K  # sum")
    assert changes(before, described({"pk/filters.py": commented}, script)).names == ()
    if "inside" in case or case == "conditional":
        importlib.import_module("pk.filters")
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(textwrap.dedent(script), space)
        assert describe(space["fn"], "fn") == before


INSIDE = "def fn(x):\n  import pk.filters\n  return x"
CHAIN = "import pk.filters\ndef fn(x): return pk.filters.f(x)"
G = "from pk.deep.most import g\ndef f(x): return g(x)\n"
MOST = "fn module pk.deep.most"
LAZY = "def __getattr__(name):\n  import importlib\n  return importlib.import_module('pk.' + name)\n"
TABLE = "TABLE = {}\ndef put(f): TABLE[f.__name__] = f\n@put\ndef h(x): return x\n"
# Other files, script, edited file, and how the names of the changed parts begin.
BEHIND: dict[str, tuple[dict[str, str], str, str, str]] = {
    "module behind a module": (
        {"pk/filters.py": G}, CHAIN, "pk/deep/most.py", "fn global pk.filters.f global g",
    ),
    "chain behind a chain": (
        {"pk/filters.py": "import pk.deep.most\ndef f(x): return pk.deep.most.g(x)\n"},
        CHAIN, "pk/deep/most.py", "fn global pk.filters.f global pk.deep.most.g",
    ),
    "relative": ({"pk/filters.py": "from .deep import most\n"}, INSIDE, "pk/deep/most.py", MOST),
    "two dots": (
        {"pk/filters.py": "from .deep import low\n", "pk/deep/low.py": "from ..deep.most import g\n"},
        INSIDE, "pk/deep/most.py", MOST,
    ),
    "relative inside a function": (
        {"pk/filters.py": "def f(x):\n  from .deep.most import g\n  return g(x)\n"},
        "from pk.filters import f\ndef fn(x): return f(x)", "pk/deep/most.py", MOST,
    ),
    "package's init": ({}, INSIDE, "pk/__init__.py", "fn module pk"),
    "init that imports": (
        {"pk/__init__.py": "from pk import deep\n", "pk/deep/__init__.py": "from . import most\n"},
        "def fn(x):\n  import pk\n  return pk.deep.most.g(x)", "pk/deep/most.py", MOST,
    ),
    "init that imports with dots": (
        {"pk/__init__.py": "from .deep import run\n", "pk/deep/__init__.py": "from .most import g as run\n"},
        "def fn(x):\n  import pk\n  return pk.run(x)", "pk/deep/most.py", MOST,
    ),
    "star of a package": (
        {"pk/__init__.py": "__all__ = [n for n in ('filters',)]\n"},
        "def fn(x):\n  import broken\n  return x", "pk/filters.py", WHOLE,
    ),
    "circle": (
        {"pk/filters.py": "import other\n", "other.py": "import pk.filters\ndef h(x): return x\n"},
        INSIDE, "other.py", "fn module other",
    ),
    "base class": (
        {"pk/filters.py": "from other import Base\nclass C(Base): pass\n",
         "other.py": "class Base:\n  def __call__(self, x): return x\n"},
        "from pk.filters import C\nfn = C()", "other.py", "fn Base __call__",
    ),
    "namespace package": (
        {"ns/part.py": "def f(x): return x\n"},
        "import ns.part\ndef fn(x): return ns.part.f(x)", "ns/part.py", "fn global ns.part.f",
    ),
    "namespace package inside": (
        {"ns/part.py": "def f(x): return x\n"},
        "def fn(x):\n  import ns.part\n  return ns.part.f(x)", "ns/part.py", "fn module ns.part",
    ),
    "computed attributes": (
        {"pk/__init__.py": LAZY}, "import pk\ndef fn(x): return pk.filters.f(x)", "pk/filters.py", WHOLE,
    ),
    "behind one that uses the standard library": (
        {"config.py": "import statistics\nimport pk.filters\n"},
        "def fn(x):\n  import config\n  return x", "pk/filters.py", WHOLE,
    ),
    "registry": (
        {"other.py": TABLE},
        "import other\ndef fn(x): return other.TABLE['h'](x)", "other.py", "fn global other.TABLE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BEHIND)
def test_an_edit_behind_a_module_is_seen(described: Describe, case: str) -> None:
    files, script, edited, part = BEHIND[case]
    files = BASE | {"broken.py": "from pk import *\n"} | files
    before = described(files, script)
    assert described(files, script) == before
    text = files[edited].replace("return x\n", "return x * 2\n")
    text = text if text != files[edited] else text + "K = 5\n"
    names = changes(before, described(files | {edited: text}, script)).names
    assert names, "silent"
    assert all(name.startswith(part) for name in names), names


def test_a_module_that_is_loaded_when_it_is_used_counts_as_before(described: Describe) -> None:
    """The first use sets the attribute that the package computes."""
    script = "import pk\ndef fn(x): return pk.filters.f(x)"
    before = described(BASE | {"pk/__init__.py": LAZY}, script)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(script, space)
    assert space["fn"](1) == 2
    assert describe(space["fn"], "fn") == before


def test_a_module_that_was_edited_after_it_was_loaded_cannot_be_compared(
    described: Describe, tmp_path: Path
) -> None:
    """The process still has the old module; a process that starts later has the new one."""
    script = "import pk.filters\ndef fn(x):\n  import pk.filters\n  return pk.filters.f(x)"
    described(BASE, script)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(script, space)
    for text in (EDITED, BASE["pk/filters.py"].replace("x + K", "x - K")):
        (tmp_path / "pk/filters.py").write_text(text)
        parts = describe(space["fn"], "fn")
        assert changes(parts, parts).refused == ("fn module pk.filters (cannot be compared)",)
    (tmp_path / "pk/filters.py").write_text("# the same\n" + BASE["pk/filters.py"])
    parts = describe(space["fn"], "fn")
    assert changes(parts, parts).refused == ()


def test_modules_are_read_once_and_again_when_they_change(
    described: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = modules._read
    monkeypatch.setattr(modules, "_read", lambda spec: read.append(spec.name) or original(spec))
    files = {f"pk/m{k}.py": f"from . import m{k + 1}\nX = {k}\n" for k in range(500)}
    files |= {"pk/__init__.py": "", "pk/m500.py": ""}
    script = "def fn(x):\n  import pk.m0\n  return x"
    first = described(files, script)
    assert len(read) == 502
    assert len(first) < 10, "parts are combined"
    assert described({}, script) == first
    assert len(read) == 502
    assert changes(first, described({"pk/m321.py": "from . import m322\nX = 7\n"}, script)).names == (
        "fn modules of pk",
    )
    assert len(read) == 503


def test_a_zipped_module_and_a_compiled_one_count(
    described: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    monkeypatch.syspath_prepend(str(archive))
    script = "def fn(x):\n  import zipped.part\n  return zipped.part.f(x)"

    def zipped(text: str, name: str = "part.py") -> dict[str, str]:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("zipped/__init__.py", "from . import part\n")
            file.writestr(f"zipped/{name}", text)
        os.utime(archive, ns=(len(text), len(text)))
        return described({}, script)

    before = zipped("def f(x): return x\n")
    assert {"fn module zipped", "fn module zipped.part"} <= before.keys()
    assert zipped("# moved\ndef f(x): return x\n") == before
    assert changes(before, zipped("def f(x): return -x\n")).names == ("fn module zipped.part",)

    (tmp_path / "other.py").unlink(missing_ok=True)
    base = {k: v for k, v in BASE.items() if k != "other.py"}
    script = "def fn(x):\n  import other\n  return x"
    py_compile.compile(str(_written(tmp_path / "src.py", "import pk.filters\n")), str(tmp_path / "other.pyc"))
    one = described(base, script)
    assert {"fn module other", "fn module pk.filters"} <= one.keys()
    (tmp_path / "other.pyc").unlink()
    (tmp_path / "other.abi3.so").write_bytes(b"machine code")
    two = described(base, script)
    (tmp_path / "other.abi3.so").write_bytes(b"other machine code")
    assert changes(two, described(base, script)).names == ("fn module other",)


def _written(place: Path, text: str) -> Path:
    place.write_text(text)
    return place


def test_installed_packages_behind_a_module_count_by_version(described: Describe) -> None:
    parts = described({"other.py": "import json, numpy.linalg\n"}, "def fn(x):\n  import other\n  return x")
    assert parts["fn package numpy"].startswith("numpy ")
    assert not any("json" in name for name in parts)


def test_an_editable_install_is_the_users_own(tmp_path: Path) -> None:
    """It lies outside the folders of installed packages, wherever its metadata are."""
    own = tmp_path / "own.py"
    own.write_text("")
    inside = tmp_path / "site-packages" / "theirs.py"
    inside.parent.mkdir()
    inside.write_text("")
    for name, place in (("own_module", own), ("their_module", inside)):
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        assert modules.installed("own_module") is None
        assert modules.installed("their_module") is not None
        assert modules.installed("tilework.api").startswith("tilework ")  # type: ignore[union-attr]
    finally:
        del sys.modules["own_module"], sys.modules["their_module"]


@pytest.mark.parametrize(
    ("metadata", "record", "known"),
    [
        pytest.param("lib-1.5.dist-info", True, "lib 1.5", id="a target of pip"),
        pytest.param("lib.egg-info", False, None, id="a source that runs where it is"),
    ],
)
def test_a_package_that_was_copied_anywhere_is_installed(
    metadata: str, record: bool, known: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by ``pip install --target``, for a cluster or a container."""
    (tmp_path / "lib_copied").mkdir()
    (tmp_path / "lib_copied" / "__init__.py").write_text("")
    about = tmp_path / metadata
    about.mkdir()
    (about / ("METADATA" if record else "PKG-INFO")).write_text(
        "Metadata-Version: 2.1\nName: lib\nVersion: 1.5\n"
    )
    (about / "top_level.txt").write_text("lib_copied\n")
    if record:
        (about / "RECORD").write_text("lib_copied/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    modules._distributions.cache_clear()
    try:
        importlib.import_module("lib_copied")
        assert modules.installed("lib_copied") == known
    finally:
        sys.modules.pop("lib_copied", None)
        modules._distributions.cache_clear()


RUN = """
import numpy as np, pk, tilework as tw
def fn(x): return pk.filters.f(x)
z = tw.to_zarr(tw.tiled_map(fn, np.zeros((64, 64), "f4"), 32, 0, dtype="f4"), "o.zarr", progress=False)
print(z[:].max())
"""


@pytest.mark.sample(0)
def test_an_edited_submodule_is_refused(tmp_path: Path) -> None:
    """In a new process, with the package imported as users do."""
    (tmp_path / "pk").mkdir()
    (tmp_path / "pk" / "__init__.py").write_text("from pk import filters\n")
    (tmp_path / "run.py").write_text(RUN)
    said = []
    for k in (1, 2):
        (tmp_path / "pk" / "filters.py").write_text(f"def f(x): return x + {k}\n")
        done = subprocess.run(
            [sys.executable, "-B", "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        said.append(done.stdout + done.stderr)
    assert said[0].startswith("1.0")
    assert "changed: fn global pk.filters.f constants" in said[1]
