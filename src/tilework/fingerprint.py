"""What a stored result was made from, in named parts, so that a changed part can be told by its name.

A function is known by its code and by what it closes over, not by where it stands: bytecode, constants,
defaults, closure values, and the globals that it names. What is installed (the standard library, packages) is
known by name and version instead.
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

from tilework.fn import LoadOnce, TorchFunction
from tilework.geometry import AxisGrid
from tilework.source import BlockSource, FileSource, H5Source, MemorySource, OnceSource, Source, ZarrSource
from tilework.spec import Spec

__all__ = ["UNKNOWN", "changes", "describe", "of_spec"]

Parts = dict[str, str]

UNKNOWN = "unknown"
"""Stands for what cannot be compared; never equal to itself."""

# Values are told as they are up to this many characters, else by a digest.
SHORT = 32
# Containers nested deeper than this are taken for cyclic.
DEPTH = 40


def of_spec(spec: Spec, version: str | None = None) -> Parts:
    """Return the parts of a result of `tiled_map`, but for its mask.

    Parameters
    ----------
    spec : Spec
    version : str, optional
        Stands for the function, whatever its code.

    Returns
    -------
    dict of str
        Names to digests, or to values where these are short.
    """
    parts: Parts = {}
    for number, source in enumerate(spec.sources):
        parts |= {f"source {number}{name}": value for name, value in _source(source).items()}
    parts |= {"version": version} if version is not None else describe(spec.fn, "fn")
    for f in fields(AxisGrid):
        parts[f.name] = str(tuple(getattr(axis, f.name) for axis in spec.plan.axes))
    parts |= {"each axes": str(spec.plan.n_each), "source axes": str(spec.source_axes)}
    parts |= {"boundary": str(spec.boundary), "cval": repr(spec.cval), "pass_tile": str(spec.pass_tile)}
    if spec.skip is not None:
        parts |= describe(spec.skip, "skip")
    for k, layer in enumerate(spec.layers):
        bound, name = layer.bound, f"output {k if layer.bound.key is None else layer.bound.key}"
        untiled = tuple(n for a, n in enumerate(bound.shape) if a not in bound.axes)
        layout = (bound.key, untiled, bound.axes, bound.channel_axis, bound.scale)
        parts[f"{name} layout"] = digest(layout)
        parts[f"{name} dtype"] = str(bound.dtype)
        parts[f"{name} blend"] = bound.kind
        windows = [None if w.window is None else w.window for w in layer.weights]
        parts[f"{name} window"] = digest((windows, layer.importance, spec.plan.outputs[k].rim))
        parts[f"{name} fill_value"] = repr(bound.fill_value)
        if bound.reduce is not None:
            parts |= describe(bound.reduce, f"{name} reduce")
    return parts


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return what differs, in words: names, with the values where they are short."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after and before != UNKNOWN:
            continue
        if UNKNOWN in (before, after):
            found.append(f"{name} (cannot be compared)")
        elif before is None or after is None or _is_digest(before) or _is_digest(after):
            found.append(name)
        else:
            found.append(f"{name}: {before} -> {after}")
    return found


def _is_digest(value: str) -> bool:
    return len(value) == SHORT and all(c in "0123456789abcdef" for c in value)


# -- functions --------------------------------------------------------------------------------------------


def describe(value: Any, name: str) -> Parts:
    """Return the parts of a function, or of what it refers to, under ``name``."""
    parts: Parts = {}
    _describe(value, name, parts, set())
    return parts


def _describe(value: Any, name: str, parts: Parts, seen: set[int]) -> None:
    if id(value) in seen:
        return
    if isinstance(value, types.FunctionType | type | types.MethodType | functools.partial):
        seen.add(id(value))
    if isinstance(value, LoadOnce):
        _describe_recipe(value, name, parts, seen)
    elif isinstance(value, TorchFunction):
        state = value.__getstate__()
        for key in sorted(state):
            _describe(state[key], f"{name} {key.strip('_')}", parts, seen)
    elif isinstance(value, functools.partial):
        _describe(value.func, name, parts, seen)
        for k, argument in enumerate(value.args):
            _describe(argument, f"{name} argument {k}", parts, seen)
        for key in sorted(value.keywords):
            _describe(value.keywords[key], f"{name} argument {key}", parts, seen)
    elif isinstance(value, types.MethodType):
        _describe(value.__func__, name, parts, seen)
        _describe(value.__self__, f"{name} self", parts, seen)
    elif isinstance(value, types.FunctionType):
        _describe_function(value, name, parts, seen)
    elif isinstance(value, type):
        _describe_class(value, name, parts, seen)
    elif isinstance(value, types.ModuleType):
        parts[name] = _installed(value.__name__) or _file_digest(getattr(value, "__file__", None))
    elif callable(value) and hasattr(value, "__name__"):
        _describe_named(value, name, parts, seen)
    else:
        _describe_object(value, name, parts, seen)


def _describe_recipe(value: LoadOnce, name: str, parts: Parts, seen: set[int]) -> None:
    if value.version is not None:
        parts[f"{name} version"] = value.version
        return
    factory, args, kwargs = cloudpickle.loads(value.packed)
    _describe(factory, f"{name} factory", parts, seen)
    for key, argument in [*enumerate(args), *sorted(kwargs.items())]:
        what = f"{name} factory argument {key}"
        if isinstance(argument, str | PurePath) and os.path.exists(argument):  # noqa: PTH110
            parts[f"{what}: path"] = str(argument)
            parts[f"{what}: file {Path(argument).name}"] = _stamp(argument)
        else:
            _describe(argument, what, parts, seen)


def _describe_function(value: types.FunctionType, name: str, parts: Parts, seen: set[int]) -> None:
    if known := _installed(value.__module__):
        parts[name] = f"{value.__module__}.{value.__qualname__}, {known}"
        return
    code = value.__code__
    parts[f"{name} code"] = digest(_bytecode(code))
    constants = list(_constants(code))
    if value.__doc__ is not None and constants[:1] == [value.__doc__]:
        del constants[0]
    parts[f"{name} constants"] = digest(constants)
    defaults = {"positional": value.__defaults__, "keyword": value.__kwdefaults__}
    for kind, given in defaults.items():
        if given:
            _describe(given, f"{name} {kind} defaults", parts, seen)
    for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            _describe(cell.cell_contents, f"{name} closure value {variable}", parts, seen)
        except ValueError:  # an empty cell
            parts[f"{name} closure value {variable}"] = "empty"
    for variable in sorted(set(_globals(code))):
        if variable in value.__globals__:
            _describe(value.__globals__[variable], f"{name} global {variable}", parts, seen)


def _describe_class(value: type, name: str, parts: Parts, seen: set[int]) -> None:
    if known := _installed(value.__module__):
        parts[f"{name} class"] = f"{value.__module__}.{value.__qualname__}, {known}"
        return
    for base in value.__bases__:
        if base is not object:
            _describe(base, f"{name} {base.__name__}", parts, seen)
    for key, member in sorted(vars(value).items()):
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if isinstance(member, property):
            member = member.fget
        if isinstance(member, types.FunctionType) or not key.startswith("__"):
            _describe(member, f"{name} {key}", parts, seen)


def _describe_named(value: Any, name: str, parts: Parts, seen: set[int]) -> None:
    """Describe a builtin, a ufunc, a compiled function, or an object that has a name of its own."""
    module = getattr(value, "__module__", None) or type(value).__module__
    wrapped = getattr(value, "__wrapped__", None)
    known = _installed(module)
    if known is None and wrapped is not None:
        _describe(wrapped, name, parts, seen)
    elif known is None or _has_state(value):
        _describe_object(value, name, parts, seen)
    else:
        parts[name] = f"{module}.{getattr(value, '__qualname__', value.__name__)}, {known}"


def _has_state(value: Any) -> bool:
    return bool(getattr(value, "__dict__", None)) and not isinstance(value, np.ufunc)


def _describe_object(value: Any, name: str, parts: Parts, seen: set[int]) -> None:
    """Describe data, or an instance: its class and its state."""
    plain = _plain(value)
    if plain is not None:
        parts[name] = plain if len(plain) < SHORT else digest(value)
        return
    items = _items(value)
    if items is not None and any(_holds_code(item) for _, item in items):
        for key, item in items:
            _describe(item, f"{name}[{key}]", parts, seen)
        return
    state = getattr(value, "__dict__", None)
    own = state is not None and not _is_data(value) and not hasattr(value, "__dask_tokenize__")
    if _is_network(value):
        for kind in sorted({type(m) for m in value.modules()}, key=lambda k: k.__qualname__):
            if _installed(kind.__module__) is None:
                _describe(kind, f"{name} {kind.__name__}", parts, seen)
        parts[f"{name} weights"] = digest(value)
    elif own and id(value) not in seen:
        seen.add(id(value))
        _describe(type(value), name, parts, seen)
        for key in sorted(state or ()):
            _describe((state or {})[key], f"{name} {key}", parts, seen)
    elif not own:
        try:
            parts[name] = digest(value)
        except TokenizationError:
            parts[name] = UNKNOWN


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda pair: repr(pair[0]))
    return list(enumerate(value)) if isinstance(value, tuple | list) else None


def _holds_code(value: Any) -> bool:
    """Return whether a value is known by more than its data: dask would name its line numbers too."""
    items = _items(value)
    if items is not None:
        return any(_holds_code(item) for _, item in items)
    return callable(value) or (hasattr(value, "__dict__") and not _is_data(value))


def _is_network(value: Any) -> bool:
    return all(hasattr(value, part) for part in ("state_dict", "parameters", "modules"))


def _is_data(value: Any) -> bool:
    tensor = hasattr(value, "detach") and hasattr(value, "numpy")
    return (
        _is_network(value) or tensor or _plain(value) is not None or isinstance(value, np.ndarray | Mapping)
    )


def _bytecode(code: types.CodeType) -> tuple[Any, ...]:
    """Return what a function does, without file names, line numbers and constants."""
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
    """Yield the globals that a function and those inside it name."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and isinstance(instruction.argval, str):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


@functools.lru_cache(maxsize=256)
def _installed(module: str | None) -> str | None:
    """Return name and version of the package that holds a module; None for the user's own code."""
    top = (module or "builtins").partition(".")[0]
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    if top == "tilework":
        return f"tilework {importlib.metadata.version('tilework')}"
    if top == "__main__":
        return None  # also where a launcher from a package set its file
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


# -- data -------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Return a digest of plain data, arrays and tensors; equal for equal data in every process.

    Raises
    ------
    TokenizationError
        For anything else that dask cannot name deterministically.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(value, state, 0)
    return state.hexdigest()


def _plain(value: Any) -> str | None:
    if value is None or isinstance(value, bool | int | float | complex | str | Fraction | PurePath | Enum):
        return repr(value)
    if isinstance(value, np.generic | np.dtype):
        return repr(value)
    return None


def _feed(value: Any, state: Any, depth: int) -> None:
    plain = _plain(value)
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
    elif _is_network(value):
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


def _feed_array(value: np.ndarray[Any, Any], state: Any) -> None:
    """Feed an array's bytes piece by piece: a copy of a large one would double its memory."""
    if value.flags.c_contiguous:
        state.update(value.reshape(-1).view(np.uint8).data if value.size else b"")
    elif value.ndim <= 1:
        state.update(np.ascontiguousarray(value).view(np.uint8))
    else:
        for part in value:
            _feed_array(np.asarray(part), state)


# -- sources ----------------------------------------------------------------------------------------------


def _source(source: Source) -> Parts:
    """Return the parts of one array that is read, their names following on the array's number."""
    parts = {" shape": str(source.shape), " dtype": str(source.dtype)}
    if isinstance(source, OnceSource):
        return parts | {f" {key}": value for key, value in describe(source.handle, "opened by").items()}
    if isinstance(source, MemorySource):
        return parts | {" data": digest(source.handle)}
    if isinstance(source, BlockSource):
        return parts | {" dask name": str(source.token[1])}
    if isinstance(source, FileSource):
        place = f"{source.path} from byte {source.offset}"
        return parts | {" path": place, " data": _stamp(source.path)}
    if isinstance(source, H5Source):
        place = f"{source.path}:{source.dataset}"
        return parts | {" path": place, " data": _stamp(source.path)}
    if isinstance(source, ZarrSource):
        return parts | _zarr_source(source)
    return parts | {" data": UNKNOWN}


def _zarr_source(source: ZarrSource) -> Parts:
    array = source.handle
    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    parts = {" path": str(array.store_path), " metadata": digest(repr(metadata))}
    root = getattr(array.store_path.store, "root", None)
    if root is not None:
        parts[" data"] = digest(list(_stamps(Path(root) / array.store_path.path)))
    return parts


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and modification time of the chunks below a folder."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith((".", "zarr.json")):
            continue  # metadata, and the marks of a result that is the source of another
        if entry.is_dir():
            for name, size, time in _stamps(Path(entry.path)):
                yield f"{entry.name}/{name}", size, time
        elif not entry.name.endswith(".partial"):
            stat = entry.stat()
            yield entry.name, stat.st_size, stat.st_mtime_ns


def _stamp(path: Any) -> str:
    """Return size and modification time of a file, or of the files of a folder."""
    if Path(path).is_dir():
        return digest(list(_stamps(Path(path))))
    stat = Path(path).stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}"
