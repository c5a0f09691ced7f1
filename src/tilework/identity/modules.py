"""The user's own modules: what code refers to in them and what they contain, without executing anything.

A module is the user's own unless it belongs to the standard library, to tilework, or to a package in a folder
of installed packages. Packages that are installed in editable mode are the user's own.

The rules, in order:

1. A function, class or value that code names directly, or by a chain of attributes over modules
   (``pk.filters.f``), is described itself. Another function of the same module does not count.
2. A module counts whole where such a chain cannot be followed: the module is passed on as a value, imported
   inside a function, lacks the attribute, or computes its attributes (a module's ``__getattr__``). Imports
   inside a function count whole even where the module is loaded, because it may not be loaded the first time.
3. A whole module is its syntax tree without docstrings and comments, or the bytes of a compiled file. Every
   module that it imports, anywhere in its text, counts whole as well, and so do all packages around these.
4. A package's submodules count where an import names them, where an attribute in the importing text has their
   name (another module may have imported them), and after ``import *``.
5. An installed package that a whole module imports counts by its version.
6. A module without a file counts by the objects in it. `__main__` never counts whole.
7. A module whose file was edited after this process had loaded it cannot be compared.

A name that is computed when the code runs (``getattr``, ``importlib.import_module``) cannot be known.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import site
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import psutil  # comes with distributed

from tilework.function.own_code import code_objects, names_in
from tilework.identity.digests import UNKNOWN

__all__ = ["Chain", "Import", "OwnModules", "References", "file_digest", "find", "installed", "located"]

GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
CELL = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
MAIN = ("__main__", "__mp_main__")

Chain = tuple[str, ...]
"""A variable from outside a function, and the attributes read from it: ``("pk", "filters", "f")``."""


@dataclass(frozen=True, slots=True)
class Import:
    """An import statement."""

    name: str
    """Dotted name of the module, as written; may be empty after dots."""
    level: int = 0
    """Number of dots in front of the name."""
    members: tuple[str, ...] = ()
    """Names after ``import`` in ``from name import ...``."""

    def absolute(self, package: str | None) -> str | None:
        """Return the full name of the module for an import in ``package``; None if there is none."""
        if not self.level:
            return self.name
        try:
            return importlib.util.resolve_name("." * self.level + self.name, package)
        except ImportError:
            return None


# -- what code refers to ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class References:
    """What a function, with the functions inside it, refers to by name."""

    globals: tuple[Chain, ...]
    """Global variables."""
    cells: tuple[Chain, ...]
    """Variables of enclosing functions."""
    imports: tuple[Import, ...]
    """Imports inside the function."""
    attributes: frozenset[str]
    """All names that occur, attributes among them."""

    @classmethod
    def of(cls, code: types.CodeType) -> References:
        """Return the references in the bytecode of a function."""
        chains: dict[str, set[Chain]] = {"global": set(), "cell": set()}
        before: list[Any]
        imports: list[Import] = []
        for part in code_objects(code):
            where, before = "", [0, None]
            chain: Chain = ()
            for step in dis.get_instructions(part):
                if step.opname in ("EXTENDED_ARG", "CACHE"):
                    continue
                if chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                    chain = (*chain, step.argval)
                    continue
                if chain:
                    chains[where].add(chain)
                where = "global" if step.opname in GLOBAL else "cell" if step.opname in CELL else ""
                chain = (step.argval,) if where and isinstance(step.argval, str) else ()
                if step.opname == "IMPORT_NAME":
                    imports.append(Import(step.argval, before[-2], tuple(before[-1] or ())))
                before = [before[-1], step.argval]
        names = frozenset(names_in(code))
        outer, cells = (tuple(sorted(chains[where])) for where in ("global", "cell"))
        return cls(outer, cells, tuple(dict.fromkeys(imports)), names)


# -- where modules are ------------------------------------------------------------------------------------


def find(name: str) -> ModuleSpec | None:
    """Return the spec of a module, loaded or not; nothing is imported. None: there is none."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if isinstance(spec, ModuleSpec):
        return spec
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return importlib.util.spec_from_file_location(name, file)
    if module is not None:
        return None
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        # `importlib.util.find_spec` would import the parent.
        folders = _folders(parent)
        return PathFinder.find_spec(name, folders) if folders else None
    except (ImportError, ValueError, AttributeError):
        return None


def _folders(name: str) -> list[str]:
    """Return the folders of a package's modules; empty for a module that is no package."""
    loaded = getattr(sys.modules.get(name), "__path__", None)
    if loaded is None:
        spec = find(name)
        loaded = None if spec is None else spec.submodule_search_locations
    return list(map(str, loaded or ()))


def located(module: types.ModuleType) -> bool:
    """Return whether a module is the one that an import of its name finds, in a file or folder."""
    name = module.__name__
    if name in MAIN or sys.modules.get(name) is not module:
        return False
    spec = find(name)
    return spec is not None and bool(spec.has_location or spec.submodule_search_locations)


def installed(module: str | None) -> str | None:
    """Return name and version of the package that contains a module; None for the user's own code."""
    top = (module or "builtins").partition(".")[0]
    if top == "tilework":
        return f"tilework {_version('tilework')}"
    if top in MAIN:
        return None  # also if a launcher from a package has set its file
    spec = find(module or "builtins")
    place = None if spec is None else _place(spec)
    standard = top in sys.stdlib_module_names or top in sys.builtin_module_names
    # A module of the user may have the name of one in the standard library.
    if standard and (place is None or _below(place, _STANDARD)):
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if place is None:
        return None
    known = _distributions().get(top, ())
    if not (_below(place, _INSTALLED) or _SITE & set(Path(os.path.realpath(place)).parts)):
        known = [name for name in known if _is_target(name, place)]
        if not known:
            return None
    for distribution in known:
        return f"{distribution} {_version(distribution)}"
    return f"{top} {getattr(sys.modules.get(top), '__version__', 'installed')}"


_SITE = {"site-packages", "dist-packages"}
_STANDARD = tuple(os.path.realpath(sysconfig.get_path(p)) for p in ("stdlib", "platstdlib"))
_INSTALLED = (
    *(os.path.realpath(sysconfig.get_path(p)) for p in ("purelib", "platlib")),
    os.path.realpath(site.getusersitepackages()),
)


def _place(spec: ModuleSpec) -> str | None:
    """Return the file of a module or the first folder of a package; None for one that is built in."""
    if spec.has_location and spec.origin:
        return spec.origin
    return next(iter(spec.submodule_search_locations or ()), None)


@functools.lru_cache(maxsize=4096)
def _below(place: str, roots: tuple[str, ...]) -> bool:
    where = os.path.realpath(place)
    return any(where == root or where.startswith(root + os.sep) for root in roots)


@functools.lru_cache(maxsize=4096)
def _is_target(distribution: str, place: str) -> bool:
    """Return whether a package was copied into a folder, as ``pip install --target`` does.

    One that runs from its source, as ``pip install --editable`` leaves it, has no record of files there.
    """
    found = importlib.metadata.distribution(distribution)
    folder = os.path.realpath(str(found.locate_file("")))
    return found.read_text("RECORD") is not None and _below(place, (folder,))


_version = functools.lru_cache(maxsize=256)(importlib.metadata.version)


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


# -- what modules contain ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Facts:
    """The content of the file of a module."""

    digest: str
    """Digest of the syntax tree, or of the bytes."""
    imports: tuple[Import, ...] = ()
    """All imports in it."""
    attributes: frozenset[str] = frozenset()
    """All names of attributes in it."""


_FACTS: dict[str, tuple[tuple[str, int, int], _Facts]] = {}
"""By the name of the module: its file with time and size, and what was found in it then."""


def _facts(spec: ModuleSpec) -> _Facts | None:
    """Return the content of a module; None for a package without a file of its own."""
    if not spec.has_location or not spec.origin:
        return None
    # The file of a zipped module is the archive.
    file = getattr(spec.loader, "archive", spec.origin)
    stat = os.stat(file)  # noqa: PTH116 -- 3x faster, once per module
    stamp = (spec.origin, stat.st_mtime_ns, stat.st_size)
    known = _FACTS.get(spec.name)
    if known is None or known[0] != stamp:
        known = _FACTS[spec.name] = (stamp, _read(spec))
    return known[1]


def _read(spec: ModuleSpec) -> _Facts:
    loader: Any = spec.loader
    try:
        source = loader.get_source(spec.name)
        tree = None if source is None else ast.parse(source)
    except (AttributeError, ImportError, SyntaxError, ValueError):
        tree = None
    if tree is not None:
        return _of_tree(tree)
    try:
        code = loader.get_code(spec.name)
    except (AttributeError, ImportError, SyntaxError, ValueError):
        code = None
    digest = file_digest(getattr(loader, "archive", spec.origin)) or "unreadable"
    if not isinstance(code, types.CodeType):
        return _Facts(digest)
    found = References.of(code)
    return _Facts(digest, found.imports, found.attributes)


def _of_tree(tree: ast.Module) -> _Facts:
    """Return the facts of a syntax tree; a walk of its own is three times as fast as `ast.dump`."""
    words: list[str] = []
    imports: list[Import] = []
    attributes: set[str] = set()
    todo: list[Any] = [tree]
    while todo:
        node = todo.pop()
        kind = type(node)
        if kind not in _FIELDS:  # a name, a constant
            words.append(f"{kind.__name__} {node!r}")
            continue
        words.append(kind.__name__)
        if kind is ast.Attribute:
            attributes.add(node.attr)
        elif kind is ast.Import:
            imports += [Import(alias.name) for alias in node.names]
        elif kind is ast.ImportFrom:
            imports.append(Import(node.module or "", node.level, tuple(a.name for a in node.names)))
        for field in _FIELDS[kind]:
            value = getattr(node, field, None)
            if type(value) is list:
                if field == "body" and kind in _WITH_DOCSTRING and _is_text(value):
                    value = value[1:]
                words.append(str(len(value)))
                todo += value
            else:
                todo.append(value)
    digest = hashlib.blake2b("\n".join(words).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return _Facts(digest, tuple(dict.fromkeys(imports)), frozenset(attributes))


_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Whether a name is read or assigned follows from its place.
_FIELDS = {
    kind: tuple(
        field for field in kind._fields if field not in ("ctx", "type_comment", "type_ignores", "kind")
    )
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


def _is_text(body: list[Any]) -> bool:
    """Return whether the first statement of a body is a docstring."""
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str)


def file_digest(file: str | None) -> str | None:
    """Return a digest of the bytes of a file; None if it cannot be read."""
    try:
        return hashlib.blake2b(Path(file or "").read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def _started() -> float:
    """Return when this process started, seconds."""
    return float(psutil.Process(os.getpid()).create_time())


def _is_stale(spec: ModuleSpec, module: Any) -> bool:
    """Return whether a loaded module has other functions or constants than its file."""
    try:
        if not isinstance(module, types.ModuleType) or os.stat(spec.origin or "").st_mtime < _started():  # noqa: PTH116
            return False
        loader: Any = spec.loader
        source = loader.get_source(spec.name)
        tree = ast.parse(source)
        codes = {c.co_qualname: c for c in code_objects(compile(source, "", "exec", dont_inherit=True))}
    except (OSError, AttributeError, ImportError, SyntaxError, ValueError, TypeError):
        return False
    inside = vars(module)
    for value in inside.values():
        for function in vars(value).values() if isinstance(value, type) else (value,):
            function = getattr(function, "__func__", getattr(function, "__wrapped__", function))
            if isinstance(function, types.FunctionType) and function.__module__ == spec.name:
                code = codes.get(function.__code__.co_qualname)
                if code is None or not _same(code, function.__code__):
                    return True
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and inside.get(target.id) != node.value.value:
                    return True
    return False


def _same(one: types.CodeType, other: types.CodeType) -> bool:
    """Return whether two code objects do the same, wherever they come from."""
    if (one.co_code, one.co_names, one.co_varnames) != (other.co_code, other.co_names, other.co_varnames):
        return False
    return len(one.co_consts) == len(other.co_consts) and all(
        _same(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


class OwnModules:
    """The modules that count whole, with all that they import.

    Names are collected by `add` and in ``attributes``; `walk` then follows them.
    """

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        """Digest of each of the user's own modules, by name."""
        self.packages: dict[str, str] = {}
        """Version of each installed package that they import, by name."""
        self.attributes: set[str] = set()
        """Names of attributes in all code, any of which may be a submodule."""
        self._known: set[str] = set()
        self._todo: deque[str] = deque()
        self._children: dict[str, frozenset[str]] = {}
        """Names of the submodules of each package of the user."""

    def add(self, imported: Import, package: str | None = None) -> None:
        """Add what a statement in ``package`` imports."""
        name = imported.absolute(package)
        if not name:
            return
        parts = name.split(".")
        for k in range(1, len(parts) + 1):
            self._note(".".join(parts[:k]))
        for member in imported.members:
            self._note(f"{name}.{member}")

    def walk(self) -> None:
        """Follow the imports of all modules that were added."""
        while self._todo:
            while self._todo:
                self._visit(self._todo.popleft())
            for name, children in list(self._children.items()):
                for child in children & self.attributes:
                    self._note(f"{name}.{child}")

    def _note(self, name: str) -> None:
        if name not in self._known:
            self._known.add(name)
            self._todo.append(name)

    def _visit(self, name: str) -> None:
        package, _, member = name.rpartition(".")
        if package in self._known and member not in self._children.get(package, ()):
            # Not a module: a member of one, or nothing that the user owns.
            if member == "*":
                for child in self._children.get(package, ()):
                    self._note(f"{package}.{child}")
            return
        spec = find(name)
        if spec is None or name in MAIN:
            return  # an optional module that is missing
        is_package = spec.submodule_search_locations is not None
        known = installed(name)
        if known is not None and (spec.has_location or not is_package):
            if not known.startswith(("python ", "tilework ")):
                self.packages[name.partition(".")[0]] = known
            return
        facts = _facts(spec)
        if is_package:
            self._children[name] = frozenset(_submodules(_folders(name)))
        if facts is not None:
            loaded = sys.modules.get(name)
            self.digests[name] = UNKNOWN if loaded is not None and _is_stale(spec, loaded) else facts.digest
            self.attributes |= facts.attributes
            for below in facts.imports:
                self.add(below, name if is_package else package)


def _submodules(folders: Iterable[str]) -> Iterator[str]:
    """Yield the names of modules and packages in the folders of a package."""
    for folder in folders:
        if os.path.isdir(folder):  # noqa: PTH112
            for entry in os.scandir(folder):
                name = entry.name.partition(".")[0]
                if name.isidentifier() and not name.startswith("__"):
                    yield name
        else:  # in an archive
            yield from (module.name for module in pkgutil.iter_modules([folder]))
