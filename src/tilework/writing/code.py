"""A function as named parts: its code and the values that it uses, independent of the place of the code.

The parts are bytecode, constants, defaults, closure values, and the globals that the function names.
Installed code (the standard library, packages) is described by name and version instead, and the user's own
modules by the rules of `tilework.identity.modules`.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import pickle
import sys
import threading
import types
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from importlib.machinery import ExtensionFileLoader
from pathlib import Path, PurePath
from typing import Any

import cloudpickle
import numpy as np

from tilework._checks import attribute, has
from tilework.errors import TilingError
from tilework.function.combining import Combined
from tilework.function.load_once import LoadOnce, files_of
from tilework.function.network import TorchFunction
from tilework.function.normalizing import Normalized, normalizations
from tilework.function.own_code import bytecode, code_constants
from tilework.function.scripts import constants, is_script
from tilework.identity.digests import (
    SHORT,
    UNKNOWN,
    digest,
    has_token,
    is_network,
    plain_text,
    steady_digest,
)
from tilework.identity.hidden import content, script, slots
from tilework.identity.modules import (
    Chain,
    Import,
    OwnModules,
    References,
    file_digest,
    find,
    installed,
    located,
)
from tilework.identity.stamps import stamp
from tilework.identity.stored import data_read_by
from tilework.writing.containers import (
    PLAIN,
    WEAK,
    held_code,
    holds_code,
    is_endless,
    items_of,
    label,
    leaves,
)
from tilework.writing.kinds import (
    by_name,
    has_dict,
    is_compiled,
    is_data,
    is_derived,
    is_of_pandas,
    is_users,
    of_cluster,
    owned,
    package_of,
    package_of_class,
)
from tilework.writing.network_parts import describe_network

__all__ = ["READ", "Fingerprint", "describe"]

Parts = dict[str, str]

# Ends the names of parts of the data that a function reads.
READ = "stored data"

# Modules that have a part each, so that messages name them; more are combined by package.
MODULES = 100
LONGEST = 200  # letters of numbers that a message shows
# Attributes of functions and classes that do not change what they do.
NO_EFFECT = ("__doc__", "__wrapped__", "_abc_impl", "__tilework_device__", "__tilework_whole_batches__")
# Objects whose content a process alone can have, or that change as they are read.
FLEETING = (threading.local, io.IOBase)
# The generator behind `numpy.random.seed`.
GLOBAL_RANDOM = np.random.mtrand._rand
# Tables of an enumeration, whose members have parts of their own.
ENUM = ("_member_map_", "_value2member_map_")


class Fingerprint(dict[str, str]):
    """Named parts, and what earlier records have in their place."""

    def __init__(self, parts: Mapping[str, str] | None = None, former: Parts | None = None) -> None:
        super().__init__(parts or {})
        # The parts that a record of format 1 would have.
        self.former = dict(self if former is None else former)
        # For parts that refer to a result below, the parts with its dask name that earlier records have.
        self.named: Parts = {}

    def take(self, parts: Mapping[str, str], prefix: str = "") -> None:
        """Add parts, with names that begin with ``prefix``."""
        given = parts if isinstance(parts, Fingerprint) else Fingerprint(parts)
        for own, new in ((self, given), (self.former, given.former), (self.named, given.named)):
            own.update({f"{prefix}{name}": value for name, value in new.items()})


def describe(value: Any, name: str) -> Fingerprint:
    """Return the parts of a function, or of a value that it uses, with names that begin with ``name``."""
    found = _Description(name)
    found.add(value, name)
    found.finish()
    return Fingerprint(found.parts, found.former)


class _Description:
    """The parts found so far, and the objects described already: functions may refer to each other.

    Parts that records of format 1 do not have are found last (`later`), so that the others keep their names:
    an object has the name under which it is found first.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.parts: Parts = {}
        self.former: Parts = {}
        """The parts of format 1."""
        self.seen: dict[int, tuple[Any, str]] = {}
        """Objects and their names by id; kept alive so that no other object gets the same id."""
        self.later: deque[Callable[[], None]] = deque()
        self.finishing = False
        self.modules = OwnModules()

    def put(self, name: str, value: str) -> None:
        """Add a part."""
        self.parts[name] = value
        if not self.finishing:
            self.former[name] = value

    def finish(self) -> None:
        """Add the parts that are found last, and those of whole modules."""
        self.finishing = True
        while self.later:
            self.later.popleft()()
        self.modules.walk()
        self.parts.update(_module_parts(self.modules, self.root))

    def add_later(self, value: Any, name: str) -> None:
        """Describe a value of which records of format 1 have no part."""
        self.later.append(functools.partial(self.add, value, name))

    def add(self, value: Any, name: str) -> None:
        """Describe any value under a name."""
        if id(value) in self.seen:
            # Two functions may call each other, or each itself.
            if name not in self.parts and (first := self.seen[id(value)][1]) != name:
                self.later.append(functools.partial(self.put, name, f"as {first}"))
            return
        if value is GLOBAL_RANDOM:  # of the process, as distributions of scipy hold it
            self.put(name, "numpy.random")
            return
        if isinstance(value, types.FunctionType | type | types.MethodType | functools.partial):
            self.seen[id(value)] = value, name
        if isinstance(value, LoadOnce):
            self._recipe(value, name)
        elif isinstance(value, TorchFunction):
            for key, part in sorted(value.__getstate__().items()):
                what = f"{name} {key.strip('_')}"
                # Its modes do not matter: it is run for evaluation.
                self._a_network(part, what, modes=False) if is_network(part) else self.add(part, what)
        elif isinstance(value, Combined):
            for key, part in value.parts().items():
                self.add(part, f"{name} {key}")
        elif isinstance(value, Normalized):
            # Parts of another one inside have the same names.
            self.add(value.fn, f"{name} inside" if any(normalizations(value.fn)) else name)
            for key, part in value.parts().items():
                if isinstance(part, str):  # numbers, for the record and for messages
                    self.put(f"{name} {key}", part if len(part) <= LONGEST else digest(part))
                else:
                    self.add(part, f"{name} {key}")
        elif isinstance(value, functools.partial):
            self.add(value.func, name)
            arguments: list[tuple[Any, Any]] = [*enumerate(value.args), *sorted(value.keywords.items())]
            for key, argument in arguments:
                self.add(argument, f"{name} argument {key}")
            self._attributes(value, name)
            if owned(value):
                self.add_later(type(value), f"{name} class")
        elif isinstance(value, types.MethodType):
            self.add(value.__func__, name)
            self.add(value.__self__, f"{name} self")
        elif isinstance(value, types.FunctionType):
            self._function(value, name)
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, types.ModuleType):
            self._module(value, name)
        elif isinstance(value, logging.Logger):
            self.put(name, f"logger {value.name}")
        elif isinstance(value, WEAK):
            self.put(name, "weak references")  # a cache, as in `functools.singledispatch`
        elif callable(value) and has(value, "__name__"):
            self._named(value, name)
        else:
            self._object(value, name)

    def _recipe(self, value: LoadOnce, name: str) -> None:
        if value.version is not None:
            self.put(f"{name} version", value.version)
            return
        if changed := value.changed_files():
            raise TilingError(
                f"{', '.join(changed)} changed after {value} was made, so some processes may have what was "
                "there before. Call load_once, or from_torch, again."
            )
        factory, args, kwargs = cloudpickle.loads(value.packed)
        self.add(factory, f"{name} factory")
        self.later.append(functools.partial(self._files, (factory, args, kwargs), f"{name} factory"))
        for key, argument in [*enumerate(args), *sorted(kwargs.items())]:
            what = f"{name} factory argument {key}"
            if isinstance(argument, str | PurePath) and os.path.exists(argument):  # noqa: PTH110
                self.put(f"{what}: file {Path(argument).name}", stamp(argument))
                self.parts[f"{what}: path"] = str(Path(argument).resolve())
                self.former[f"{what}: path"] = str(argument)
            else:
                self.add(argument, what)

    def _files(self, recipe: tuple[Any, Any, Any], name: str) -> None:
        """Describe the files in containers and partial functions; arguments have parts of their own."""
        factory, args, kwargs = recipe
        inside = [a for a in (*args, *kwargs.values()) if not isinstance(a, str | PurePath)]
        paths = list(files_of(factory, *inside))
        for what, path in zip(_numbered(Path(path).name for path in paths), paths, strict=True):
            self.put(f"{name} file {what}", stamp(path))

    # -- functions ----------------------------------------------------------------------------------------

    def _function(self, value: types.FunctionType, name: str) -> None:
        known, inside = package_of(value.__module__), package_of(value.__globals__.get("__name__"))
        if known is not None:
            self.put(name, _address(value.__module__, value.__qualname__, known))
            if inside is not None and by_name(value) is value:
                return  # its package and version say all
            # A function that an installed one has made, or one with the name of an installed one.
            self.later.append(functools.partial(self._body, value, name, own=inside is None))
        else:
            self._body(value, name)
        self._attributes(value, name)

    def _body(self, value: types.FunctionType, name: str, *, own: bool = True) -> None:
        """Describe a function by its code, unless this is installed, and by the values that it uses."""
        code = value.__code__
        if own:
            self.put(f"{name} code", digest(bytecode(code)))
            self.put(f"{name} constants", digest(code_constants(value)))
        defaults = {"positional": value.__defaults__, "keyword": value.__kwdefaults__}
        for kind, given in defaults.items():
            if given:
                self.add(given, f"{name} {kind} defaults")
        found = References.of(code)
        self.modules.attributes |= found.attributes
        for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            what = f"{name} closure value "
            try:
                inside = cell.cell_contents
            except ValueError:  # an empty cell
                self.put(what + variable, "empty")
            else:
                self._variable(inside, what, variable, found.cells)
        if not own:
            return
        for variable in sorted({chain[0] for chain in found.globals} & value.__globals__.keys()):
            self._variable(value.__globals__[variable], f"{name} global ", variable, found.globals)
        package = value.__globals__.get("__package__") or _package(value.__globals__.get("__name__"))
        for imported in found.imports:
            self.modules.add(imported, package)

    def _variable(self, value: Any, name: str, variable: str, chains: Iterable[Chain]) -> None:
        """Describe a variable from outside a function; of a module, what the function uses of it."""
        if not isinstance(value, types.ModuleType) or installed(value.__name__):
            self.add(value, name + variable)
            return
        self._formerly_file(value, name + variable)
        for chain in chains:
            if chain[0] == variable:
                self.later.append(functools.partial(self._chain, value, chain, name))

    def _chain(self, module: types.ModuleType, chain: Chain, name: str) -> None:
        """Describe what a chain of attributes, which begins at a module of the user, leads to."""
        found: Any = module
        for length, key in enumerate(chain[1:], 2):
            inside = vars(found)
            if key not in inside or "__getattr__" in inside:
                break
            found = inside[key]
            if not isinstance(found, types.ModuleType) or installed(found.__name__):
                self.add(found, name + ".".join(chain[:length]))
                return
        self._whole(found, name + found.__name__)

    def _attributes(self, value: Any, name: str) -> None:
        """Describe what was set as attributes of a function."""
        for key, part in sorted(vars(value).items()):
            if key not in NO_EFFECT:
                self.add_later(part, f"{name} attribute {key}")

    # -- modules ------------------------------------------------------------------------------------------

    def _module(self, value: types.ModuleType, name: str) -> None:
        if known := installed(value.__name__):
            self.put(name, known)
        else:
            self._formerly_file(value, name)
            self.later.append(functools.partial(self._whole, value, name))

    def _whole(self, value: types.ModuleType, name: str) -> None:
        """Describe a whole module of the user."""
        if located(value):
            self.modules.add(Import(value.__name__))
        elif value is sys.modules["__main__"]:
            self.put(name, UNKNOWN)
        elif id(value) not in self.seen:
            self.seen[id(value)] = value, name
            for key, part in sorted(vars(value).items()):
                if not key.startswith("__"):
                    self.add(part, f"{name}.{key}")

    def _formerly_file(self, value: types.ModuleType, name: str) -> None:
        """Add the part of a module that records of format 1 have: its file."""
        if not self.finishing:
            self.former[name] = file_digest(getattr(value, "__file__", None)) or UNKNOWN

    def _formerly(self, value: Any, name: str) -> None:
        """Add the part of an instance that records of format 1 have: a digest by dask."""
        if not self.finishing:
            self.former[name] = steady_digest(value)

    # -- classes and instances ----------------------------------------------------------------------------

    def _class(self, value: type, name: str) -> None:
        if known := package_of_class(value):
            self.put(f"{name} class", _address(value.__module__, value.__qualname__, known))
            if by_name(value) is not value:
                self.later.append(functools.partial(self._methods, value, name))
            return
        for base in value.__bases__:
            if base is not object:
                self.add(base, f"{name} {base.__name__}")
        if len(value.__bases__) > 1:
            order = [base.__qualname__ for base in value.__bases__]
            self.later.append(functools.partial(self.put, f"{name} bases", ", ".join(order)))
        if installed(type(value).__module__) is None:
            self.add_later(type(value), f"{name} metaclass")
        if isinstance(getattr(find(value.__module__), "loader", None), ExtensionFileLoader):
            self.modules.add(Import(value.__module__))
        for key, member in sorted(vars(value).items()):
            if isinstance(member, types.MemberDescriptorType) or key in ENUM:
                self._formerly(member, f"{name} {key}")
                continue
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, property):
                for what, accessor in (("setter", member.fset), ("deleter", member.fdel)):
                    if accessor is not None:
                        self.add_later(accessor, f"{name} {key} {what}")
                member = member.fget
            if isinstance(member, types.FunctionType) or not key.startswith(("__", "_abc_impl")):
                self.add(member, f"{name} {key}")
            elif callable(member) or isinstance(member, functools.partialmethod) or is_users(key, member):
                self.add_later(member, f"{name} {key}")

    def _methods(self, value: type, name: str) -> None:
        """Describe functions of the user in a class that an installed one has made."""
        for key, member in sorted(vars(value).items()):
            member = getattr(member, "__func__", member)
            if isinstance(member, types.FunctionType) and owned(member):
                self.add(member, f"{name} {key}")
        for base in filter(owned, value.__bases__):
            self.add(base, f"{name} {base.__name__}")

    def _named(self, value: Any, name: str) -> None:
        """Describe a builtin, a ufunc, a compiled function, or an object with a ``__name__``."""
        module = attribute(value, "__module__") or type(value).__module__
        # Numba keeps the function that it compiles as ``py_func``.
        wrapped = attribute(value, "py_func", attribute(value, "__wrapped__"))
        known, owner = installed(module), attribute(value, "__self__")
        if known is None and wrapped is not None:
            self.add(wrapped, name)
            self.add_later(type(value), f"{name} wrapper")
            held = [*sorted(attribute(value, "__dict__", {}).items()), *slots(value)]
            for key, part in held if owned(value) else ():
                if not key.startswith("__"):
                    self.add_later(part, f"{name} wrapper {key}")
            if options := attribute(value, "targetoptions"):
                self.add_later(options, f"{name} options")
        elif known is None and is_compiled(value) and module in sys.modules:
            self._formerly(value, name)
            self.later.append(functools.partial(self._whole, sys.modules[module], name))
        elif known is None or (attribute(value, "__dict__") and not isinstance(value, np.ufunc)):
            self._object(value, name)
        else:
            self.put(name, _address(module, attribute(value, "__qualname__", value.__name__), known))
            if isinstance(value, np.ufunc):
                self.later.append(functools.partial(self._ufunc, value, name))
            elif owner is not None and not isinstance(owner, types.ModuleType):
                self.add_later(owner, f"{name} self")  # of a method of a builtin type
            elif (text := script(value)) is not None:
                self.add_later(text, f"{name} code")

    def _ufunc(self, value: np.ufunc, name: str) -> None:
        """Describe the module of a ufunc that is not numpy's own."""
        if getattr(np, value.__name__, None) is value:
            return
        place = sys.modules.get(pickle.whichmodule(value, value.__name__))  # type: ignore[attr-defined]
        if getattr(place, value.__name__, None) is value:
            self.add(place, f"{name} module")
        else:
            self.put(f"{name} function", UNKNOWN)  # `np.frompyfunc` does not show it

    def _object(self, value: Any, name: str) -> None:
        """Describe data, or an instance, by the first of these rules that applies."""
        plain, items, hidden = plain_text(value), items_of(value), False
        # 1. A number or a word, as text.
        if plain is not None:
            self.put(name, plain if len(plain) < SHORT else digest(value))
        # 2. What would never end: an object of a cluster holds its client, and a container may be in itself.
        elif (text := of_cluster(value)) is not None or is_endless(value):
            self.put(name, UNKNOWN if text is None else text)
            return
        # 3. A container of functions or instances, item by item: dask's token would contain line numbers.
        elif items is not None and any(holds_code(part) for pair in items for part in pair):
            self._container(value, items, name)
        # 4. A network, by its weights and the user's own classes in it.
        elif is_network(value):
            self._a_network(value, name)
            return
        # 5. Data, objects with a dask token of their own, and those without attributes, by a digest.
        elif (
            is_data(value) or has_token(value) or is_of_pandas(value) or not (owned(value) or has_dict(value))
        ):
            self.put(name, steady_digest(value))
            hidden = not is_data(value) and items is None
        # 6. Any other instance, by its class and its attributes.
        elif id(value) not in self.seen:
            self.seen[id(value)] = value, name
            hidden = True
            if has_dict(value):
                self.add(type(value), name)
                for key, part in sorted(vars(value).items()):
                    # A lock of `functools.cached_property`, which has one until Python 3.12.
                    lock = isinstance(value, functools.cached_property) and key == "lock"
                    if not lock and not is_derived(value, key):
                        self.add(part, f"{name} {key}")
            else:
                self._formerly(value, name)
        else:
            return
        self.later.append(functools.partial(self._further, value, name, hidden=hidden))

    def _container(self, value: Any, items: list[tuple[Any, Any]], name: str) -> None:
        """Describe a container item by item."""
        if isinstance(value, set | frozenset):
            items = list(enumerate(sorted(value, key=lambda item: digest(describe(item, "item")))))
        formerly = isinstance(value, Mapping | tuple | list) and any(held_code(item) for _, item in items)
        if not formerly:
            self._formerly(value, name)
        for key, item in items:
            (self.add if formerly else self.add_later)(item, f"{name}[{label(key)}]")
            if holds_code(key):
                self.add_later(key, f"{name} key {label(key)}")
        if isinstance(value, Mapping) and [key for key, _ in items] != list(value):
            self.later.append(
                functools.partial(self.put, f"{name} order", digest([repr(label(key)) for key in value]))
            )

    def _further(self, value: Any, name: str, *, hidden: bool) -> None:
        """Describe what records of format 1 lack: slots, code and content of the user's own classes."""
        if isinstance(value, FLEETING):
            self.put(name, UNKNOWN)
        elif owned(value):
            self.add(type(value), name)
            for key, part in sorted(attribute(value, "__dict__", {}).items()):
                # A member has its name as text, and a plain value.
                text = isinstance(value, Enum) and (
                    key.startswith("_") and (key != "_value_" or plain_text(part) is not None)
                )
                if f"{name} {key}" not in self.parts and not text and not is_derived(value, key):
                    self.add(part, f"{name} {key}")
        # Those of installed classes are in the digest, or caches as in `pathlib.Path`.
        for key, part in slots(value) if owned(value) or (hidden and has_dict(value)) else ():
            self.add(part, f"{name} {key}")
        if isinstance(value, defaultdict):
            self.add(value.default_factory, f"{name} default")
        if is_script(value):
            self.add(script(value), f"{name} code")
            self.add(constants(value), f"{name} constants")
        data = None if type(value) in PLAIN else data_read_by(value, name)
        if data is not None:
            self.put(f"{name} {READ}", data)
        inside = content(value) if hidden else []
        own = any(map(owned, leaves(inside)))
        if own and not has_dict(value):
            self.parts.pop(name, None)  # dask's token would contain line numbers
        if inside and (own or has_dict(value)):
            self.add(inside, f"{name} content")

    def _a_network(self, value: Any, name: str, *, modes: bool = True) -> None:
        """Describe a network by its weights and classes; what these do not show is found later."""
        if id(value) in self.seen:
            self.later.append(functools.partial(self.put, name, f"as {self.seen[id(value)][1]}"))
            return
        self.seen[id(value)] = value, name
        kinds = sorted(dict.fromkeys(type(m) for m in value.modules()), key=lambda kind: kind.__qualname__)
        own = [kind for kind in kinds if installed(kind.__module__) is None]
        for what, kind in zip(_numbered(kind.__name__ for kind in own), own, strict=True):
            self.add(kind, f"{name} {what}")
        self.put(f"{name} weights", steady_digest(value))
        self.later.append(functools.partial(describe_network, self, value, name, modes=modes))


def _numbered(names: Iterable[str]) -> Iterator[str]:
    """Yield names, with a number after each that was there before."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} {seen[name]}"


def _module_parts(modules: OwnModules, root: str) -> Parts:
    """Return a part for each module that counts whole, and each installed package that one imports."""
    parts = {f"{root} package {name}": version for name, version in modules.packages.items()}
    if len(modules.digests) <= MODULES:
        return parts | {f"{root} module {name}": value for name, value in modules.digests.items()}
    packages: dict[str, list[tuple[str, str]]] = {}
    for name, value in sorted(modules.digests.items()):
        packages.setdefault(name.partition(".")[0], []).append((name, value))
    return parts | {f"{root} modules of {top}": digest(found) for top, found in packages.items()}


def _package(module: str | None) -> str | None:
    """Return the package of a module, for relative imports in it."""
    spec = getattr(sys.modules.get(module or ""), "__spec__", None)
    return getattr(spec, "parent", None) or (module or "").rpartition(".")[0] or None


def _address(module: str | None, name: str, known: str) -> str:
    """Return the part of an installed object: its module and name, and the version of its package.

    For objects of this package the module is left out, so that stores can be resumed after code has moved.
    """
    own = (module or "").partition(".")[0] == "tilework"
    return f"{'tilework' if own else module}.{name}, {known}"
