"""What a stored result was made from, in named parts, so that a changed part can be told by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from tilework.engine.spec import Spec
from tilework.grid.axis import AxisGrid
from tilework.source.base import BlockSource, FileSource, H5Source, MemorySource, OnceSource, Source
from tilework.source.zarr_array import ZarrSource
from tilework.writing.code import SHORT, UNKNOWN, Parts, describe, digest, stamp, stamps

__all__ = ["UNKNOWN", "changes", "of_spec"]


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
    for k, output in enumerate(spec.outputs):
        bound, name = output, f"output {k if output.key is None else output.key}"
        untiled = tuple(n for a, n in enumerate(bound.shape) if a not in bound.axes)
        layout = (bound.key, untiled, bound.axes, bound.channel_axis, bound.scale)
        parts[f"{name} layout"] = digest(layout)
        parts[f"{name} dtype"] = str(bound.dtype)
        parts[f"{name} blend"] = bound.kind
        windows = [None if w.window is None else w.window for w in output.weights]
        parts[f"{name} window"] = digest((windows, output.importance, spec.plan.outputs[k].rim))
        parts[f"{name} fill_value"] = repr(bound.fill_value)
        if bound.reduce is not None:
            parts |= describe(bound.reduce, f"{name} reduce")
    return parts


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return what differs, in words: names, with the values where they are short."""
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
    """Return a part without the module of an object of this package, which records of 0.1.0 name."""
    return value and re.sub(r"^tilework\.[a-z_]+\.(?=\S+, tilework )", "tilework.", value)


def _is_digest(value: str) -> bool:
    return len(value) == SHORT and all(c in "0123456789abcdef" for c in value)


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
        return parts | {" path": place, " data": stamp(source.path)}
    if isinstance(source, H5Source):
        place = f"{source.path}:{source.dataset}"
        return parts | {" path": place, " data": stamp(source.path)}
    if isinstance(source, ZarrSource):
        return parts | _zarr_source(source)
    return parts | {" data": UNKNOWN}


def _zarr_source(source: ZarrSource) -> Parts:
    array = source.handle
    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    parts = {" path": str(array.store_path), " metadata": digest(repr(metadata))}
    root = getattr(array.store_path.store, "root", None)
    if root is not None:
        folder = Path(root).absolute() / array.store_path.path
        parts |= {" path": str(folder), " data": digest(list(stamps(folder)))}
    return parts
