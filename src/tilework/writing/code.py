"""A function as named parts: its code and the values that it uses, independent of the place of the code.

The parts are bytecode, constants, defaults, closure values, and the globals that the function names.
Installed code (the standard library, packages) is described by name and version instead.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import cloudpickle
import numpy as np
from dask.base import tokenize
from dask.tokenize import TokenizationError

from tilework._types import Array
from tilework.function.load_once import LoadOnce
from tilework.function.network import TorchFunction

__all__ = ["SHORT", "UNKNOWN", "Parts", "describe", "digest", "is_network", "plain_text", "stamp", "stamps"]

Parts = dict[str, str]

UNKNOWN = "unknown"
"""A part that cannot be compared; counts as different even from itself."""
# Values with fewer characters are stored as text, others as a digest of this length.
SHORT = 32
# Containers nested more deeply count as cyclic.
DEPTH = 40


def describe(value: Any, name: str) -> Parts:
    """Return the parts of a function, or of a value that it uses, with names that begin with ``name``."""
    found = _Description()
    found.add(value, name)
    return found.parts


class _Description:
    """The parts found so far, and the objects described already: functions may refer to each other."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self.seen: dict[int, Any] = {}
        """Objects by id; kept alive so that no other object gets the same id."""

    def add(self, value: Any, name: str) -> None:
        """Describe any value under a name."""
        if id(value) in self.seen:
            return
        if isinstance(value, types.FunctionType | type | types.MethodType | functools.partial):
            self.seen[id(value)] = value
        if isinstance(value, LoadOnce):
            self._recipe(value, name)
        elif isinstance(value, TorchFunction):
            for key, part in sorted(value.__getstate__().items()):
                self.add(part, f"{name} {key.strip('_')}")
        elif isinstance(value, functools.partial):
            self.add(value.func, name)
            arguments: list[tuple[Any, Any]] = [*enumerate(value.args), *sorted(value.keywords.items())]
            for key, argument in arguments:
                self.add(argument, f"{name} argument {key}")
        elif isinstance(value, types.MethodType):
            self.add(value.__func__, name)
            self.add(value.__self__, f"{name} self")
        elif isinstance(value, types.FunctionType):
            self._function(value, name)
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, types.ModuleType):
            self.parts[name] = _installed(value.__name__) or _file_digest(getattr(value, "__file__", None))
        elif callable(value) and hasattr(value, "__name__"):
            self._named(value, name)
        else:
            self._object(value, name)

    def _recipe(self, value: LoadOnce, name: str) -> None:
        if value.version is not None:
            self.parts[f"{name} version"] = value.version
            return
        factory, args, kwargs = cloudpickle.loads(value.packed)
        self.add(factory, f"{name} factory")
        for key, argument in [*enumerate(args), *sorted(kwargs.items())]:
            what = f"{name} factory argument {key}"
            if isinstance(argument, str | PurePath) and os.path.exists(argument):  # noqa: PTH110
                self.parts[f"{what}: path"] = str(argument)
                self.parts[f"{what}: file {Path(argument).name}"] = stamp(argument)
            else:
                self.add(argument, what)

    def _function(self, value: types.FunctionType, name: str) -> None:
        if known := _installed(value.__module__):
            self.parts[name] = _address(value.__module__, value.__qualname__, known)
            return
        code = value.__code__
        self.parts[f"{name} code"] = digest(_bytecode(code))
        constants = list(_constants(code))
        if value.__doc__ is not None and constants[:1] == [value.__doc__]:
            del constants[0]
        self.parts[f"{name} constants"] = digest(constants)
        defaults = {"positional": value.__defaults__, "keyword": value.__kwdefaults__}
        for kind, given in defaults.items():
            if given:
                self.add(given, f"{name} {kind} defaults")
        for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                self.add(cell.cell_contents, f"{name} closure value {variable}")
            except ValueError:  # an empty cell
                self.parts[f"{name} closure value {variable}"] = "empty"
        for variable in sorted(set(_globals(code))):
            if variable in value.__globals__:
                self.add(value.__globals__[variable], f"{name} global {variable}")

    def _class(self, value: type, name: str) -> None:
        if known := _installed(value.__module__):
            self.parts[f"{name} class"] = _address(value.__module__, value.__qualname__, known)
            return
        for base in value.__bases__:
            if base is not object:
                self.add(base, f"{name} {base.__name__}")
        for key, member in sorted(vars(value).items()):
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, property):
                member = member.fget
            if isinstance(member, types.FunctionType) or not key.startswith("__"):
                self.add(member, f"{name} {key}")

    def _named(self, value: Any, name: str) -> None:
        """Describe a builtin, a ufunc, a compiled function, or an object with a ``__name__``."""
        module = getattr(value, "__module__", None) or type(value).__module__
        wrapped = getattr(value, "__wrapped__", None)
        known = _installed(module)
        if known is None and wrapped is not None:
            self.add(wrapped, name)
        elif known is None or (getattr(value, "__dict__", None) and not isinstance(value, np.ufunc)):
            self._object(value, name)
        else:
            self.parts[name] = _address(module, getattr(value, "__qualname__", value.__name__), known)

    def _object(self, value: Any, name: str) -> None:
        """Describe data, or an instance, by the first of these rules that applies."""
        plain, items = plain_text(value), _items(value)
        # 1. A number or a word, as text.
        if plain is not None:
            self.parts[name] = plain if len(plain) < SHORT else digest(value)
        # 2. A container of functions or instances, item by item: dask's token would contain line numbers.
        elif items is not None and any(_holds_code(item) for _, item in items):
            for key, item in items:
                self.add(item, f"{name}[{key}]")
        # 3. A network, by its weights and the user's own classes in it.
        elif is_network(value):
            for kind in sorted({type(m) for m in value.modules()}, key=lambda k: k.__qualname__):
                if _installed(kind.__module__) is None:
                    self.add(kind, f"{name} {kind.__name__}")
            self.parts[f"{name} weights"] = digest(value)
        # 4. Data, and objects with a dask token of their own, by a digest.
        elif _is_data(value) or not hasattr(value, "__dict__") or hasattr(value, "__dask_tokenize__"):
            try:
                self.parts[name] = digest(value)
            except TokenizationError:
                self.parts[name] = UNKNOWN
        # 5. Any other instance, by its class and its attributes.
        elif id(value) not in self.seen:
            self.seen[id(value)] = value
            self.add(type(value), name)
            for key, part in sorted(vars(value).items()):
                self.add(part, f"{name} {key}")


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda pair: repr(pair[0]))
    return list(enumerate(value)) if isinstance(value, tuple | list) else None


def _holds_code(value: Any) -> bool:
    """Return whether a value is, or holds, a function or an instance."""
    items = _items(value)
    if items is not None:
        return any(_holds_code(item) for _, item in items)
    return callable(value) or (hasattr(value, "__dict__") and not _is_data(value))


def _is_data(value: Any) -> bool:
    """Return whether a value is a number, a word, an array, a tensor, a network or a mapping."""
    if is_network(value) or (hasattr(value, "detach") and hasattr(value, "numpy")):
        return True
    return plain_text(value) is not None or isinstance(value, np.ndarray | Mapping)


def _bytecode(code: types.CodeType) -> tuple[Any, ...]:
    """Return the instructions of a function, without file names, line numbers and constants."""
    nested = tuple(_bytecode(c) for c in code.co_consts if isinstance(c, types.CodeType))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount, names, nested)


def _constants(code: types.CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        else:
            yield constant


def _globals(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the globals that a function, and the functions inside it, refer to."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and isinstance(instruction.argval, str):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def _address(module: str | None, name: str, known: str) -> str:
    """Return the part of an installed object: its module and name, and the version of its package.

    For objects of this package the module is left out, so that stores can be resumed after code has moved.
    """
    own = (module or "").partition(".")[0] == "tilework"
    return f"{'tilework' if own else module}.{name}, {known}"


@functools.lru_cache(maxsize=256)
def _installed(module: str | None) -> str | None:
    """Return name and version of the package that contains a module; None for the user's own code."""
    top = (module or "builtins").partition(".")[0]
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    if top == "tilework":
        return f"tilework {importlib.metadata.version('tilework')}"
    if top == "__main__":
        return None  # also if a launcher from a package has set its file
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return python
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    roots = [os.path.realpath(sysconfig.get_path(p)) for p in ("purelib", "platlib")]
    where = os.path.realpath(file) if file else ""
    if not any(where.startswith(root + os.sep) for root in roots):
        return None
    for distribution in _distributions().get(top, ()):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return f"{top} {getattr(sys.modules[top], '__version__', 'installed')}"


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _file_digest(file: str | None) -> str:
    try:
        return hashlib.blake2b(Path(file or "").read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return UNKNOWN


def stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and modification time of the chunks below a folder."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith((".", "zarr.json")):
            continue  # metadata, and done-marks if the source was itself written by tilework
        if entry.is_dir():
            for name, size, time in stamps(Path(entry.path)):
                yield f"{entry.name}/{name}", size, time
        elif not entry.name.endswith(".partial"):
            stat = entry.stat()
            yield entry.name, stat.st_size, stat.st_mtime_ns


def stamp(path: Any) -> str:
    """Return size and modification time of a file, or of the files of a folder."""
    if Path(path).is_dir():
        return digest(list(stamps(Path(path))))
    stat = Path(path).stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}"


def digest(value: Any) -> str:
    """Return a digest of plain data, arrays and tensors; equal for equal data in every process.

    Raises
    ------
    TokenizationError
        For any other object that dask cannot hash deterministically.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(value, state, 0)
    return state.hexdigest()


def plain_text(value: Any) -> str | None:
    """Return a number, a word or a similar plain value as text; None for any other value."""
    if value is None or isinstance(value, bool | int | float | complex | str | Fraction | PurePath | Enum):
        return repr(value)
    if isinstance(value, np.generic | np.dtype):
        return repr(value)
    return None


def _feed(value: Any, state: Any, depth: int) -> None:
    plain = plain_text(value)
    kind = type(value).__name__
    if depth > DEPTH:
        raise TokenizationError("nested too deeply")
    if plain is not None or isinstance(value, bytes | bytearray | range | slice | type(Ellipsis)):
        state.update(f"{kind}:{plain if plain is not None else repr(value)};".encode())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        state.update(f"array:{value.shape}:{value.dtype.str};".encode())
        _feed_array(value, state)
    elif isinstance(value, tuple | list):
        state.update(f"{kind}:{len(value)};".encode())
        for item in value:
            _feed(item, state, depth + 1)
    elif isinstance(value, Mapping):
        state.update(f"{kind}:{len(value)};".encode())
        for key, item in sorted(value.items(), key=lambda pair: repr(pair[0])):
            _feed((key, item), state, depth + 1)
    elif isinstance(value, set | frozenset):
        state.update(f"{kind}:{sorted(map(digest, value))};".encode())
    elif is_network(value):
        state.update(f"network:{type(value).__qualname__}:{value!r};".encode())
        _feed(dict(value.state_dict()), state, depth + 1)
    elif hasattr(value, "detach") and hasattr(value, "numpy"):
        tensor = value.detach().cpu()
        if "bfloat16" in str(tensor.dtype):
            tensor = tensor.float()
        _feed(tensor.resolve_conj().numpy(), state, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "__dask_tokenize__"):
        _feed((kind, {f.name: getattr(value, f.name) for f in fields(value)}), state, depth + 1)
    else:
        try:
            state.update(tokenize(value, ensure_deterministic=True).encode())
        except TokenizationError:
            raise
        except Exception as error:
            raise TokenizationError(str(error)) from error


def _feed_array(value: Array, state: Any) -> None:
    """Feed the bytes of an array part by part, because a copy of a large one would double its memory."""
    if value.flags.c_contiguous:
        state.update(value.reshape(-1).view(np.uint8).data if value.size else b"")
    elif value.ndim <= 1:
        state.update(np.ascontiguousarray(value).view(np.uint8))
    else:
        for part in value:
            _feed_array(np.asarray(part), state)


def is_network(value: Any) -> bool:
    """Return whether a value is a torch module, without importing torch."""
    return all(hasattr(value, part) for part in ("state_dict", "parameters", "modules"))
