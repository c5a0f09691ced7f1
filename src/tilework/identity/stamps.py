"""What a file, a folder or a store can say about its data without reading them: sizes, times and tags."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tilework.grid.axis import ceil_div
from tilework.identity.digests import digest

__all__ = ["of_array", "stamp", "stamps"]

# Objects of a remote store that are listed: about ten requests, a second or two.
MOST = 10_000
# What file systems of fsspec call the tag or time of an object.
TAGS = (
    "CRC", "ETag", "LastModified", "content_md5", "created", "date_time", "etag", "generation",
    "last_modified", "md5Hash", "modified", "mtime", "updated",
)  # fmt: skip
METADATA = ("zarr.json", ".zarray")


def stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and modification time of the chunks below a folder."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not _is_chunk(entry.name):
            continue
        if entry.is_dir():
            for name, size, time in stamps(Path(entry.path)):
                yield f"{entry.name}/{name}", size, time
        else:
            stat = entry.stat()
            yield entry.name, stat.st_size, stat.st_mtime_ns


def _is_chunk(name: str) -> bool:
    """Return whether a name may be that of a chunk.

    Others are metadata, done-marks if tilework wrote the source, and what killed writers left.
    """
    return not name.startswith((".", "zarr.json")) and not name.endswith(".partial")


def stamp(path: Any) -> str:
    """Return size and modification time of a file, or of the files of a folder."""
    if Path(path).is_dir():
        return digest(list(stamps(Path(path))))
    stat = Path(path).stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}"


def of_array(array: Any) -> tuple[str | None, str | None]:
    """Return the place of a Zarr array, however it is spelled, and a stamp of its chunks.

    Returns
    -------
    place : str or None
        None: a store in memory, which has no place that another process could know.
    stamp : str or None
        None: the store says nothing, or has too many objects to ask.
    """
    store = array.store_path.store
    while hasattr(store, "_store"):  # a store that wraps another one
        store = store._store
    path = array.store_path.path
    kind = type(store).__name__
    if getattr(store, "root", None) is not None:
        return _local(Path(store.root) / path)
    if hasattr(store, "_store_dict"):
        content = store._store_dict
        return None, digest(sorted((key, digest(content[key].to_bytes())) for key in _below(content, path)))
    if kind == "ZipStore":
        return f"{Path(store.path).resolve()}:{path}", stamp(store.path)
    if kind == "FsspecStore":
        system = getattr(store.fs, "sync_fs", store.fs)
        names = system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,)
        full = posixpath.normpath(posixpath.join(str(store.path), path))
        if "file" in names:
            return _local(Path(full))
        return f"{names[0]}://{full.lstrip('/')}", _listed(array, lambda: _of_fsspec(store.fs, full))
    if kind == "ObjectStore":
        return str(array.store_path), _listed(array, lambda: _of_obstore(store.store, path))
    return str(array.store_path), None


def _local(folder: Path) -> tuple[str, str]:
    return str(folder.resolve()), digest(list(stamps(folder)))


def _below(names: Iterable[str], path: str) -> Iterator[str]:
    """Yield the names of the chunks of the array at ``path``."""
    start = f"{path}/" if path else ""
    for name in names:
        if name.startswith(start) and all(map(_is_chunk, name.removeprefix(start).split("/"))):
            yield name


def _listed(array: Any, ask: Any) -> str | None:
    """Return a digest of the objects of an array in a remote store, by their tags."""
    try:
        units = array.shards or array.chunks
        if math.prod(ceil_div(n, u) for n, u in zip(array.shape, units, strict=True)) > MOST:
            return None
        found: dict[str, Mapping[str, Any]] = ask()
    except Exception:  # any error of any store: no listing, no rights, chunks of different lengths
        return None
    # A store that does not list its metadata does not list its chunks either.
    if not any(found.get(name) for name in METADATA):
        return None
    return digest(sorted((name, sorted(found[name].items())) for name in _below(found, "")))


def _of_fsspec(system: Any, path: str) -> dict[str, dict[str, str]]:
    """Return tags of the objects below a path, by their names relative to it; size alone is no tag."""
    from zarr.core.sync import sync

    root = f"{system._strip_protocol(path).rstrip('/')}/"
    found = sync(system._find(path, detail=True))
    objects = {}
    for name, facts in found.items():
        tags = {key: str(facts[key]) for key in TAGS if facts.get(key) is not None}
        objects[name.removeprefix(root)] = tags | {"size": str(facts.get("size"))} if tags else {}
    return objects


def _of_obstore(store: Any, path: str) -> dict[str, dict[str, str]]:
    """As `_of_fsspec`, for a store of obstore."""
    prefix = f"{path}/" if path else ""
    objects = {}
    for batch in store.list(prefix or None):
        for facts in batch:
            tags = {key: str(facts[key]) for key in ("e_tag", "last_modified", "size", "version")}
            objects[facts["path"].removeprefix(prefix)] = tags
    return objects
