"""The code of a function of the user, down into the functions of the user that it calls."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from tilework._checks import attribute

__all__ = ["bytecode", "code_constants", "code_objects", "held_by", "names_in", "own_code"]

# Objects that are looked at: more would take longer than pickling a factory.
MOST = 500
# Globals of these types belong to the code that names them.
PLAIN = (bool, int, float, complex, str, bytes, type(None))
_INSTALLED = (
    *(sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)


def bytecode(code: CodeType) -> tuple[Any, ...]:
    """Return the instructions of a function, without file names, line numbers and constants."""
    nested = tuple(bytecode(c) for c in code.co_consts if isinstance(c, CodeType))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount, names, nested)


def code_constants(function: FunctionType) -> list[Any]:
    """Return the constants of a function and of those inside it, without its docstring."""
    found = list(_constants(function.__code__))
    if function.__doc__ is not None and found[:1] == [function.__doc__]:
        del found[0]
    return found


def _constants(code: CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants(constant)
        else:
            yield constant


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of what it defines: functions, and comprehensions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the global names of a function and of what it defines."""
    for part in code_objects(code):
        yield from part.co_names


def held_by(function: Any) -> Iterator[Any]:
    """Yield what a partial function, a method or a function holds: its parts, defaults and closure values."""
    if isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif isinstance(function, MethodType):
        yield from (function.__func__, function.__self__)
    elif isinstance(function, FunctionType):
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                yield cell.cell_contents


def own_code(function: Any) -> list[Any]:
    """Return the code of a function of the user, and of what it reaches by name in the user's modules.

    A pickle knows a function of a module by the names of both, also after it was edited and loaded again, as
    notebooks do. Installed functions have none here. What an object of the user does when it is looked at
    may be anything: then there is none.
    """
    found = _Found()
    try:
        found.add(function)
    except Exception:
        return []
    return found.code


class _Found:
    """The code found so far, and the objects that were looked at."""

    def __init__(self) -> None:
        self.code: list[Any] = []
        self.seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        """Add the code of a function, a class, or what is made of these."""
        if id(value) in self.seen or len(self.seen) >= MOST:
            return
        self.seen[id(value)] = value
        if isinstance(value, functools.partial | MethodType):
            for part in held_by(value):
                self.add(part)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif callable(value):
            self.add(type(value))
            for part in attribute(value, "__dict__", {}).values():
                if callable(part):
                    self.add(part)

    def _function(self, value: FunctionType) -> None:
        code = value.__code__
        if _is_installed(code.co_filename):
            return
        self.code.append((bytecode(code), list(map(_ordered, code_constants(value)))))
        for part in held_by(value):
            self.add(part)
        names = dict.fromkeys(names_in(code))
        for name in names:
            if name in value.__globals__:
                self._global(name, value.__globals__[name], names)

    def _global(self, name: str, value: Any, names: dict[str, None]) -> None:
        """Add a global that a function names; of a module, what has a name that the function uses."""
        if isinstance(value, PLAIN):
            self.code.append((name, value))
        elif not isinstance(value, ModuleType):
            self.add(value)
        elif not _is_installed(attribute(value, "__file__") or ""):
            inside = vars(value)
            for part in (inside[n] for n in names if n in inside):
                self.add(part)

    def _class(self, value: type) -> None:
        modules = ((base, sys.modules.get(str(base.__module__))) for base in value.__mro__)
        for base in (b for b, module in modules if not _is_installed(attribute(module, "__file__") or "")):
            for key, member in sorted(vars(base).items()):
                function = attribute(member, "__func__", attribute(member, "fget", member))
                if isinstance(function, FunctionType):
                    self.add(function)
                elif isinstance(member, PLAIN) and not key.startswith("__"):
                    self.code.append((key, member))


def _ordered(constant: Any) -> Any:
    """Return a constant whose text is equal in every process: sets have an order of their own in each."""
    if isinstance(constant, frozenset):
        return ("frozenset", *sorted(map(repr, map(_ordered, constant))))
    return tuple(map(_ordered, constant)) if isinstance(constant, tuple) else constant


def _is_installed(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed package."""
    if not file or file.startswith("<frozen"):
        return True
    return file.startswith(_INSTALLED) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
