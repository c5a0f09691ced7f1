"""The fingerprint of a stored result: its inputs as named parts, so that messages can name a changed part."""

from __future__ import annotations

import difflib
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tilework._checks import attribute, brief
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.progress import LOG
from tilework.function.bound import BoundOutput
from tilework.graph.build import find_spec, specs_below
from tilework.grid.axis import AxisGrid
from tilework.identity.digests import SHORT, UNKNOWN, digest
from tilework.identity.graphs import shown_by
from tilework.identity.stamps import of_array, stamp
from tilework.identity.stored import data_of
from tilework.source.base import (
    BlockSource,
    HalfSource,
    MemorySource,
    OnceSource,
    Source,
)
from tilework.source.on_disk import FileSource, H5Source
from tilework.source.stamps import settle
from tilework.source.undecoded import UndecodedSource
from tilework.source.zarr_array import ZarrSource
from tilework.writing.code import READ, Fingerprint, describe
from tilework.writing.ledger import Accepted

__all__ = [
    "MANY",
    "UNKNOWN",
    "Changes",
    "Fingerprint",
    "Identified",
    "changes",
    "listed",
    "names_to_accept",
    "of_dask",
    "of_source",
    "of_spec",
]

AXIS = tuple(f.name for f in fields(AxisGrid))
# Parts that decide which tiles and samples there are: what is stored cannot be part of another result.
FIXED = re.compile(rf"({'|'.join(AXIS)}|each axes|source axes|source \d+ shape|output .* (layout|dtype))")

# Names of parts that a message repeats.
MANY = 6
# Begins the names of parts of what a dask array is computed from.
BELOW = "below"
DEEP = re.compile(rf"^(\S+ (\d+ )?)?{BELOW}(: (function|data|arrays)|( \d+)?: )")
# Ends of the names of two parts, of which one tells which array it is: its name, or which result below it is.
NAMED, REFERS = "dask name", "is result"
# Of these, a part each; more have one part together.
FUNCTIONS = 100


class Identified(ABC):
    """A function of this package that says itself what it is; nothing else of it is compared."""

    __slots__ = ()

    @abstractmethod
    def identity(self) -> str:
        """Return a text that is equal for equal functions, in every version."""


def of_spec(spec: Spec, version: str | None = None, *, below: Mapping[int, int] | None = None) -> Fingerprint:
    """Return the fingerprint of a result of `tiled_map`, without its mask.

    Parameters
    ----------
    spec : Spec
    version : str, optional
        Replaces the code of the function.
    below : mapping of int to int, optional
        Numbers, by id, of the results of which others tell what they are computed from: dask arrays among the
        sources refer to them. Default: this looks at what dask arrays are computed from.

    Returns
    -------
    dict of str
        Names of the parts, with their digests, or their values if these are short.

    Notes
    -----
    Stores keep these names and digests: after a change of one in this code, they can no longer be resumed.
    """
    parts = Fingerprint()
    axes = spec.source_axes
    labels = {number: f"source {number}" for number in range(len(spec.inputs))}
    if (v := spec.validity) is not None:
        labels |= {t.source: t.name for t in v.terms if t.source not in labels}
        parts.take({t.name: repr(t.nodata) for t in v.terms if t.nodata is not None})
        parts.take({f"{t.name} axes": str(axes[t.source]) for t in v.terms if t.nodata is None})
        parts.take({} if v.fills is None else {"nodata_fill": repr(v.fills)})
    for number, source in enumerate(spec.sources):
        label = labels[number]
        parts.take({"shape": str(source.shape), "dtype": str(source.dtype)}, f"{label} ")
        if isinstance(source, BlockSource):
            named = Fingerprint({"dask name": source.dask_name} | _reference(source.handle, below or {}))
            found = of_dask(source.handle, version, named=True) if below is None else named
        else:
            found = of_source(source, label)
        parts.take(found, f"{label} ")
    own = spec.fn.identity() if isinstance(spec.fn, Identified) else None
    texts = [text for text in (own, version) if text is not None]
    parts.take({"version": ", ".join(texts)} if texts else describe(spec.fn, "fn"))
    axis_parts = {name: str(tuple(getattr(axis, name) for axis in spec.plan.axes)) for name in AXIS}
    if all(axis.pad_side == "end" for axis in spec.plan.axes):
        del axis_parts["pad_side"]  # stores of earlier versions have no word on it
    parts.take(axis_parts)
    parts.take({"each axes": str(spec.plan.n_each), "source axes": str(axes[: len(spec.inputs)])})
    parts.take({"boundary": str(spec.boundary), "cval": repr(spec.cval), "pass_tile": str(spec.pass_tile)})
    if spec.skip is not None:
        parts.take(describe(spec.skip, "skip"))
    for k, output in enumerate(spec.outputs):
        name = f"output {k if output.key is None else output.key}"
        parts.take(_output(output, name, spec.plan.outputs[k].rim))
    return parts


def _output(output: BoundOutput, name: str, rim: tuple[int, ...] | None) -> Fingerprint:
    """Return the parts of one output."""
    untiled = tuple(n for axis, n in enumerate(output.shape) if axis not in output.axes)
    windows = [weights.window for weights in output.weights]
    parts = Fingerprint({
        f"{name} layout": digest((output.key, untiled, output.axes, output.channel_axis, output.scale)),
        f"{name} dtype": str(output.dtype),
        f"{name} blend": output.kind,
        f"{name} window": digest((windows, output.importance, rim)),
        f"{name} fill_value": repr(output.fill_value),
    })  # fmt: skip
    if output.stored is not None:
        parts |= {
            f"{name} labels": f"join, connectivity {output.connectivity}" if output.connectivity else "own"
        }
    if output.reduce is not None:
        parts.take(describe(output.reduce, f"{name} reduce"))
    return parts


# -- comparing --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences between the fingerprint of a record and a new one."""

    refused: tuple[str, ...] = ()
    """Names of the parts that differ, with their values if these are short."""
    names: tuple[str, ...] = ()
    """Their names alone."""
    unknown: bool = False
    """Whether one of them cannot be compared."""
    accepted: tuple[Accepted, ...] = ()
    """The parts that differ and were accepted."""
    unrecorded: tuple[str, ...] = ()
    """New parts that a record of the former format cannot have."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Parts of an early record with the dask name of a result below, and the new parts in their place."""

    @property
    def advice(self) -> str:
        """What to do about a change that does not matter."""
        if any(map(FIXED.fullmatch, self.names)):
            return ""
        names = list(self.names) if len(self.names) <= MANY else "[...], with the names of these parts,"
        return f" If the change does not matter, accept={names} resumes the result and records this."


def listed(names: Sequence[str]) -> str:
    """Return the first names of parts, and how many more there are."""
    more = f", and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def names_to_accept(accept: Any) -> tuple[str, ...]:
    """Return the argument ``accept``; raise a `TypeError` unless it is a sequence of names."""
    names = tuple(accept) if isinstance(accept, AbstractSet | list | tuple) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f'accept must be a list of names of parts, as ["fn constants"]; got {brief(accept)}.')
    return names


def changes(
    old: Mapping[str, str], new: Mapping[str, str], *, accept: Iterable[str] = (), former: bool = False
) -> Changes:
    """Return what differs between the fingerprint of a record and a new one.

    Parameters
    ----------
    old, new : mapping of str to str
    accept : iterable of str
        Names of parts that may differ.
    former : bool
        Whether the record has format 1, which has fewer parts: only these are compared.

    Raises
    ------
    TilingError
        If ``accept`` has a name that no part has, or that of a changed part which decides what the tiles are.
    """
    new, unrecorded, named = _as_recorded(new, old, former=former)
    known = sorted(old.keys() | new.keys() | set(unrecorded))
    for name in (accept := tuple(accept)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            raise TilingError(f"accept names {name!r}, which is no part of the fingerprint{hint}")
    refused, names, accepted, unknown = [], [], [], False
    for name in sorted(old.keys() | new.keys()):
        before, after = _without_module(old.get(name)), _without_module(new.get(name))
        if before == after and before != UNKNOWN:
            continue
        if name in accept:
            if FIXED.fullmatch(name):
                raise TilingError(
                    f"{name!r} cannot be accepted: it decides what the tiles and samples are. Write afresh "
                    "with overwrite=True, or into another store."
                )
            accepted.append(Accepted(part=name, before=before, after=after))
            continue
        names.append(name)
        if UNKNOWN in (before, after):
            unknown = True
            refused.append(f"{name} (cannot be compared)")
        elif before is None or after is None or _is_digest(before) or _is_digest(after):
            refused.append(name)
        else:
            refused.append(f"{name}: {before} -> {after}")
    return Changes(tuple(refused), tuple(names), unknown, tuple(accepted), unrecorded, named)


def _as_recorded(
    new: Mapping[str, str], old: Mapping[str, str], *, former: bool
) -> tuple[dict[str, str], tuple[str, ...], dict[str, str]]:
    """Return new parts as an earlier version recorded them, and `Changes.unrecorded` and `Changes.named`."""
    if former and isinstance(new, Fingerprint):
        return new.former, tuple(sorted(new.keys() - new.former.keys())), {}
    called = new.named if isinstance(new, Fingerprint) else {}
    named = {name: _refers(name) for name in called if name in old}
    parts = {name: value for name, value in new.items() if name not in named.values()}
    parts |= {name: called[name] for name in named}
    # The first records of format 2 had no versions of the packages of networks, and nothing of the data
    # that a function reads, nor of what dask arrays are computed from.
    # Later ones had these, but not of all functions and data.
    deep = {found.group() for found in map(DEEP.match, old) if found}
    unrecorded = tuple(sorted(name for name in parts.keys() - old.keys() if _is_late(name, deep)))
    return {name: value for name, value in parts.items() if name not in unrecorded}, unrecorded, named


def _refers(name: str) -> str:
    """Return the name of the part in the place of one that has a dask name."""
    return name.removesuffix(NAMED) + REFERS


def _is_late(name: str, deep: AbstractSet[str]) -> bool:
    """Return whether early records of format 2 lack a part; ``deep`` is what a record has of dask arrays."""
    if name.endswith((" packages", f" {READ}")):
        return True
    found = DEEP.match(name)
    return found is not None and not (found.group() in deep if found[4] else deep)


def _without_module(value: str | None) -> str | None:
    """Return a part without the module of an object of this package, which records of version 0.1.0 have."""
    return value and re.sub(r"^tilework\.[a-z_]+\.(?=\S+, tilework )", "tilework.", value)


def _is_digest(value: str) -> bool:
    return len(value) == SHORT and all(c in "0123456789abcdef" for c in value)


def of_source(source: Source, label: str) -> Fingerprint:
    """Return the parts of a fingerprint that identify the data of a source; warn if some may be missed."""
    found = _identity(source)
    if "data" not in found and not isinstance(source, BlockSource | OnceSource):
        LOG.warning(
            "%s: its store does not say whether data changed, so that only its place and metadata are "
            "compared; change version= when the data change",
            label,
        )
    return found


def of_dask(array: Any, version: str | None = None, *, named: bool = False) -> Fingerprint:
    """Return the parts that identify a dask array.

    Its name does not say what is in a store that was written anew in its place, nor what the functions do
    from whose results it is computed. Where these show nothing of themselves, the name has to do. The name of
    a result of `tiled_map` is that of a pickled function, which changes with its file and line: if all that
    the result is computed from can be compared, it has no part.

    Parameters
    ----------
    version : str, optional
        Replaces the code of these functions, and the name unless ``named``.
    """
    name = {"dask name": array.name} if version is None or named else {"version": version}
    parts = Fingerprint(name)
    specs = {id(spec): spec for spec in specs_below(array)}
    numbers = {found: number for number, found in enumerate(specs, 1)}
    parts.update(_reference(array, numbers))
    for number, spec in enumerate(specs.values(), 1):
        below = f"{BELOW} {number}: "
        parts.take(of_spec(spec, version, below=numbers), below)
        if spec.plan.mask is not None:
            parts[f"{below}mask"] = digest(spec.plan.mask.identity)
    shown = shown_by(array)
    if version is None and shown.whole:
        parts.take(_functions(shown.functions), f"{BELOW}: ")
    if shown.named and shown.whole:
        parts[f"{BELOW}: arrays"] = digest(sorted(f"{place} {digest(held)}" for place, held in shown.named))
    data, told = data_of(shown)
    if data is not None:
        parts[f"{BELOW}: data"] = data
    if not shown.whole:
        LOG.warning(
            "%s has too many tasks to look at all of them, so that it does not say whether functions and "
            "data below it changed; change version= when they do",
            array.name,
        )
    elif not told:
        LOG.warning(
            "%s reads a store that does not say whether data changed, so that only its name is compared; "
            "change version= when the data change",
            array.name,
        )
    if silent := sorted(part for part, value in parts.items() if value == UNKNOWN):
        LOG.warning("%s: parts that cannot be compared: %s", array.name, listed(silent))
    result = Fingerprint({part: value for part, value in parts.items() if part not in silent}, name)
    _refer(result, sure=shown.whole and told and not silent)
    return result


def _reference(array: Any, numbers: Mapping[int, int]) -> dict[str, str]:
    """Return the part that says which result below an array is, if it is an unmodified one."""
    found = find_spec(array)
    if found is None or id(found.spec) not in numbers:
        return {}
    return {REFERS: f"{numbers[id(found.spec)]}, output {found.number}"}


def _refer(parts: Fingerprint, *, sure: bool) -> None:
    """Leave one part that tells which array it is: if ``sure``, the result below that it is."""
    for named in [name for name in parts if name.endswith(NAMED)]:
        if not sure:
            parts.pop(_refers(named), None)
        elif _refers(named) in parts:
            parts.named[named] = parts.pop(named)


def _functions(functions: Sequence[Any]) -> Fingerprint:
    """Return the parts of the functions in a graph, numbered by what they are: tasks have no order."""
    if len(functions) > 1:
        found = [(attribute(f, "__qualname__", ""), *sorted(describe(f, "").items())) for f in functions]
        order = sorted(range(len(found)), key=found.__getitem__)
        functions = [functions[k] for k in order]
        if len(functions) > FUNCTIONS:
            known = [[pair for pair in found[k][1:] if UNKNOWN not in pair] for k in order]
            parts = Fingerprint({"functions": digest(known)})
            if any(UNKNOWN in pair for one in found for pair in one[1:]):
                parts["functions, some of them"] = UNKNOWN
            return parts
    parts = Fingerprint()
    for number, function in enumerate(functions, 1):
        parts.take(describe(function, f"function {number}"))
    return parts


# -- the identity of the data of a source -----------------------------------------------------------------


@functools.singledispatch
def _identity(source: Source) -> Fingerprint:
    """Return the parts of a fingerprint that identify the data of a source."""
    del source
    return Fingerprint({"data": UNKNOWN})


@_identity.register
def _(source: OnceSource) -> Fingerprint:
    return describe(source.handle, "opened by")


@_identity.register
def _(source: MemorySource) -> Fingerprint:
    return Fingerprint({"data": digest(source.handle)})


@_identity.register
def _(source: HalfSource) -> Fingerprint:
    assert source.origin is not None
    return _identity(source.origin)


@_identity.register
def _(source: BlockSource) -> Fingerprint:
    return of_dask(source.handle, named=True)


@_identity.register
def _(source: FileSource) -> Fingerprint:
    settle(source.path)
    data = stamp(source.path)
    parts = {
        "path": _at(source.path, f" from byte {source.offset}"),
        "strides": str(source.strides),
        "data": data,
    }
    return Fingerprint(parts, {"path": f"{source.path} from byte {source.offset}", "data": data})


@_identity.register
def _(source: H5Source) -> Fingerprint:
    if source.writer:
        source.writer.flush()
    data = stamp(source.path) if Path(source.path).is_file() else UNKNOWN
    view = "" if source.view is None else repr(source.view)
    parts = {"path": _at(source.path, f":{source.dataset}{view}"), "data": data}
    return Fingerprint(parts, {"path": f"{source.path}:{source.dataset}", "data": data})


def _at(path: str, inside: str) -> str:
    """Return an address in a file that does not depend on the spelling of its path."""
    return f"{Path(path).resolve()}{inside}"


@_identity.register
def _(source: UndecodedSource) -> Fingerprint:
    decoding = {"decoding by xarray": digest(source.layers)}
    if source.below is not None:
        return Fingerprint(_identity(source.below) | decoding)
    data = digest([stamp(path) for path, _ in source.files])
    return Fingerprint({"path": _at(source.path, ""), "data": data} | decoding)


@_identity.register
def _(source: ZarrSource) -> Fingerprint:
    source.check()
    array = source.handle
    facts = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    metadata = {"metadata": digest(repr(facts))}
    place, data = of_array(array)
    parts = metadata | {key: value for key, value in (("path", place), ("data", data)) if value is not None}
    former = metadata | {"path": str(array.store_path)}
    if (root := getattr(array.store_path.store, "root", None)) is not None:
        former |= {"path": str(Path(root).absolute() / array.store_path.path), "data": str(data)}
    return Fingerprint(parts, former)
