"""The tree: rooms that import downwards only, without circles, whatever way an import is written."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tilework

pytestmark = pytest.mark.sample(0)  # they hold for the tree, wherever it runs; the gate runs them

IMPORTERS = ("import_module", "__import__")
SOURCE = Path(tilework.__file__).parent
ROOT = Path(__file__).parents[1]
ROOMS = (
    "diagnostics", "engine", "execution", "formats", "function", "graph", "grid", "identity", "labels",
    "loops", "objects", "plan", "probing", "source", "statistics", "writing",
)  # fmt: skip


def name_of(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_below(root: Path) -> dict[str, ast.Module]:
    return {name_of(file, root): ast.parse(file.read_text()) for file in sorted(root.rglob("*.py"))}


def source_of(name: str) -> str:
    place = SOURCE.joinpath(*name.split(".")[1:])
    return (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text()


def docstrings(tree: ast.Module) -> set[int]:
    """Return the identities of the nodes that are text for readers."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def imports_of(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Yield the package's modules that a module imports: anywhere in it, by a statement or by a string."""
    texts = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in inner)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield from {node.value} & (known - {"tilework"})


def graph_of(root: Path) -> dict[str, set[str]]:
    trees = modules_below(root)
    known = set(trees)
    # The front door's table is the one place that names modules by strings.
    return {
        name: {i for i in imports_of(tree, known) if i in known and i != name}
        for name, tree in trees.items()
        if name != "tilework"
    }


def strings_put_together(root: Path) -> list[str]:
    """Return the modules in which an import's name is computed: nobody can check what it names."""
    found = []
    for name, tree in modules_below(root).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
                constant = node.args and isinstance(node.args[0], ast.Constant)
                found += [] if constant else [name]
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert tuple(graphlib.TopologicalSorter(graph_of(SOURCE)).static_order())


def test_imports_by_computed_names_stand_in_the_front_door_only() -> None:
    """And where the command line loads the user's own function."""
    assert strings_put_together(SOURCE) == ["tilework", "tilework.cli"]


def test_one_module_looks_through_the_front_door() -> None:
    """A plan is drawn by what lies above it: the door that the flow allows, and no other."""
    sources = {name: source_of(name) for name in modules_below(SOURCE)}
    assert [n for n, text in sources.items() if 'sys.modules["tilework' in text] == [
        "tilework.plan.tile_plan"
    ]


def test_the_tree_is_the_rooms() -> None:
    here = {p.name for p in SOURCE.iterdir()} - {"__pycache__"}
    files = {
        "__init__.py",
        "__main__.py",
        "_checks.py",
        "_derived.py",
        "_installed.py",
        "_machine.py",
        "_options.py",
        "_types.py",
        "api.py",
        "cli.py",
        "errors.py",
        "monai.py",
        "py.typed",
    }
    assert here == files | set(ROOMS)
    for room in ROOMS:
        tree = ast.parse((SOURCE / room / "__init__.py").read_text())
        assert ast.get_docstring(tree)
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body), room


def test_the_pages_show_the_tree_as_it_is() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    tree = page[page.index("src/tilework/\n") : page.index("## The flow")]
    shown = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"^ {6}(\w.*)$", tree, re.MULTILINE))))
    assert shown == {p.stem for room in ROOMS for p in (SOURCE / room).glob("*.py")} - {"__init__"}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == set(ROOMS)


def test_modules_and_functions_stay_short() -> None:
    """600 lines a module; 60 a function, signature and docstring aside."""
    for name, tree in modules_below(SOURCE).items():
        assert len(source_of(name).splitlines()) <= 600, name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                assert (node.end_lineno or 0) - first.lineno + 1 <= 60, f"{name}.{node.name}"


def test_no_module_takes_the_name_of_what_users_import() -> None:
    """A script that runs in that folder would import it instead; nor may a room hide a public function."""
    taken = {"torch", "zarr", "dask", "distributed", "numpy", "xarray", "h5py", "monai", "matplotlib"}
    names = {part for name in modules_below(SOURCE) for part in name.split(".")[1:]}
    # MONAI's face has its name: users change one import.
    names -= {"monai"}
    assert not names & (taken | set(sys.stdlib_module_names) - {"code", "statistics"})
    assert not set(ROOMS) & set(tilework.__all__)


# -- the checks fail where they must -------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the package to spoil."""
    return Path(shutil.copytree(SOURCE, tmp_path / "tilework", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("def f():\n    from tilework.plan import tile_plan", id="inside a function"),
        pytest.param("if TYPE_CHECKING:\n    from tilework.plan.tile_plan import TilePlan", id="for types"),
        pytest.param("importlib.import_module('tilework.plan.tile_plan')", id="by a string"),
        pytest.param("import tilework.plan.tile_plan", id="plain"),
    ],
)
def test_a_circle_is_found_however_it_is_closed(copy: Path, line: str) -> None:
    with (copy / "grid" / "axis.py").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(graphlib.CycleError, match=r"tilework\.grid\.axis"):
        graphlib.TopologicalSorter(graph_of(copy)).prepare()


def test_a_computed_import_is_found(copy: Path) -> None:
    with (copy / "grid" / "axis.py").open("a") as file:
        file.write("\nroom = 'plan'\nimportlib.import_module(f'tilework.{room}.tile_plan')\n")
    assert "tilework.grid.axis" in strings_put_together(copy)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        pytest.param("grid/axis.py", "import tilework.plan.tile_plan", "The rooms", id="a room above"),
        pytest.param(
            "grid/axis.py", "def f():\n    import tilework.grid.weights", "Inside grid", id="its own"
        ),
        pytest.param(
            "plan/cost.py", "if TYPE_CHECKING:\n    import tilework.api", "The rooms", id="for types"
        ),
        pytest.param("engine/new.py", "", "Inside engine", id="a module without a layer"),
    ],
)
def test_the_contract_fails_where_it_must(copy: Path, module: str, line: str, contract: str) -> None:
    pytest.importorskip("importlinter")
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    run = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"]
    env = os.environ | {"PYTHONPATH": str(copy.parent)}
    found = subprocess.run([*run, *options], capture_output=True, text=True, env=env, cwd=copy.parent)
    broken = [text for text in found.stdout.splitlines() if text.endswith("BROKEN") or "BROKEN" in text]
    assert found.returncode == 1, found.stdout + found.stderr
    assert any(text.startswith(contract) for text in broken), found.stdout
