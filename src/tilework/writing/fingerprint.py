"""The fingerprint of a stored result: its inputs as named parts, so that messages can name a changed part."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from tilework.engine.spec import Spec
from tilework.function.output import BoundOutput
from tilework.grid.axis import AxisGrid
from tilework.source.base import BlockSource, FileSource, H5Source, MemorySource, OnceSource, Source
from tilework.source.zarr_array import ZarrSource
from tilework.writing.code import SHORT, UNKNOWN, Parts, describe, digest, stamp, stamps

__all__ = ["UNKNOWN", "changes", "of_spec"]


def of_spec(spec: Spec, version: str | None = None) -> Parts:
    """Return the fingerprint of a result of `tiled_map`, without its mask.

    Parameters
    ----------
    spec : Spec
    version : str, optional
        Replaces the code of the function.

    Returns
    -------
    dict of str
        Names of the parts, with their digests, or their values if these are short.

    Notes
    -----
    Stores keep these names and digests: after a change of one in this code, they can no longer be resumed.
    """
    parts: Parts = {}
    for number, source in enumerate(spec.sources):
        facts = {"shape": str(source.shape), "dtype": str(source.dtype)} | _identity(source)
        parts |= {f"source {number} {name}": value for name, value in facts.items()}
    parts |= {"version": version} if version is not None else describe(spec.fn, "fn")
    for f in fields(AxisGrid):
        parts[f.name] = str(tuple(getattr(axis, f.name) for axis in spec.plan.axes))
    parts |= {"each axes": str(spec.plan.n_each), "source axes": str(spec.source_axes)}
    parts |= {"boundary": str(spec.boundary), "cval": repr(spec.cval), "pass_tile": str(spec.pass_tile)}
    if spec.skip is not None:
        parts |= describe(spec.skip, "skip")
    for k, output in enumerate(spec.outputs):
        name = f"output {k if output.key is None else output.key}"
        parts |= _output(output, name, spec.plan.outputs[k].rim)
    return parts


def _output(output: BoundOutput, name: str, rim: tuple[int, ...] | None) -> Parts:
    """Return the parts of one output."""
    untiled = tuple(n for axis, n in enumerate(output.shape) if axis not in output.axes)
    windows = [weights.window for weights in output.weights]
    parts = {
        f"{name} layout": digest((output.key, untiled, output.axes, output.channel_axis, output.scale)),
        f"{name} dtype": str(output.dtype),
        f"{name} blend": output.kind,
        f"{name} window": digest((windows, output.importance, rim)),
        f"{name} fill_value": repr(output.fill_value),
    }
    return parts if output.reduce is None else parts | describe(output.reduce, f"{name} reduce")


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that differ, with their values if these are short."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = _without_module(old.get(name)), _without_module(new.get(name))
        if before == after and before != UNKNOWN:
            continue
        if UNKNOWN in (before, after):
            found.append(f"{name} (cannot be compared)")
        elif before is None or after is None or _is_digest(before) or _is_digest(after):
            found.append(name)
        else:
            found.append(f"{name}: {before} -> {after}")
    return found


def _without_module(value: str | None) -> str | None:
    """Return a part without the module of an object of this package, which records of version 0.1.0 have."""
    return value and re.sub(r"^tilework\.[a-z_]+\.(?=\S+, tilework )", "tilework.", value)


def _is_digest(value: str) -> bool:
    return len(value) == SHORT and all(c in "0123456789abcdef" for c in value)


# -- the identity of the data of a source -----------------------------------------------------------------


@functools.singledispatch
def _identity(source: Source) -> Parts:
    """Return the parts of a fingerprint that identify the data of a source."""
    del source
    return {"data": UNKNOWN}


@_identity.register
def _(source: OnceSource) -> Parts:
    return describe(source.handle, "opened by")


@_identity.register
def _(source: MemorySource) -> Parts:
    return {"data": digest(source.handle)}


@_identity.register
def _(source: BlockSource) -> Parts:
    return {"dask name": source.dask_name}


@_identity.register
def _(source: FileSource) -> Parts:
    return {"path": f"{source.path} from byte {source.offset}", "data": stamp(source.path)}


@_identity.register
def _(source: H5Source) -> Parts:
    return {"path": f"{source.path}:{source.dataset}", "data": stamp(source.path)}


@_identity.register
def _(source: ZarrSource) -> Parts:
    source.check()
    array = source.handle
    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    parts = {"path": str(array.store_path), "metadata": digest(repr(metadata))}
    root = getattr(array.store_path.store, "root", None)
    if root is None:
        return parts
    folder = Path(root).absolute() / array.store_path.path
    return parts | {"path": str(folder), "data": digest(list(stamps(folder)))}
