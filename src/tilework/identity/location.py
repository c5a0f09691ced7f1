"""What a store argument names: a place in a Zarr store, however spelled, and whether it holds a source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, StorePath, ZipStore
from zarr.storage._common import make_store_path

from tilework._checks import as_options, brief
from tilework.errors import TilingError
from tilework.source.base import Source
from tilework.source.held import innermost
from tilework.source.on_disk import FileSource, H5Source
from tilework.source.undecoded import UndecodedSource
from tilework.source.zarr_array import ZarrSource

__all__ = ["holds", "local_path", "locate", "place_of"]

Place = tuple[str, ...]
"""A kind of store, then the parts of a path in it."""


def locate(store: Any, path: str = "", storage_options: Mapping[str, Any] | None = None) -> StorePath:
    """Return the place in a store that the arguments of `to_zarr` name; nothing is created.

    Parameters
    ----------
    store : path, URL, Zarr store, zarr.Group or zarr.Array
        A local path may begin with "~", hold links and "..", or be a ``file://`` URL.
    path : str
        Path below it.
    storage_options : dict, optional
        Options of the file system of a URL.

    Raises
    ------
    TilingError
        For a path that cannot be resolved, or storage options without a URL.
    TypeError
        For anything that is no store.
    """
    if storage_options is not None:
        storage_options = as_options("storage_options", storage_options)
    if isinstance(store, zarr.Group | zarr.Array):
        _refuse_options(storage_options, store)
        return store.store_path / path
    if (local := local_path(store)) is not None:
        _refuse_options(storage_options, store)
        return StorePath(LocalStore(local), path)
    if not isinstance(store, str):
        _refuse_options(storage_options, store)
    if store is None or (isinstance(store, dict) and not all(isinstance(key, str) for key in store)):
        raise TypeError(f"store must be a path, a URL, a Zarr store, group or array; got {brief(store)}.")
    try:
        return sync(make_store_path(store, path=path, mode="a", storage_options=storage_options or None))
    except (TypeError, ValueError) as error:
        # Errors of a file system, such as a missing package or a closed connection, say more than this one.
        kind = TypeError if isinstance(error, TypeError) and not isinstance(store, str) else TilingError
        raise kind(
            f"store must be a path, a URL, a Zarr store, group or array; got {brief(store)}: {error}"
        ) from error


def _refuse_options(options: Mapping[str, Any] | None, store: Any) -> None:
    if options:
        raise TilingError(
            f"storage_options={dict(options)} are for URLs; the store is {store!r}. Leave them out, or give "
            f"a URL."
        )


def local_path(store: Any) -> Path | None:
    """Return the resolved path of a path or ``file://`` URL; None for any other store."""
    if isinstance(store, str) and store.startswith("file:"):
        host, slash, path = store.removeprefix("file:").removeprefix("//").partition("/")
        if host not in ("", "localhost"):
            raise TilingError(f"{store} names the host {host!r}; write file:///path for a local path.")
        # Percent signs stay, as zarr and fsspec take them.
        store = f"{slash}{path}"
    elif isinstance(store, str) and store.startswith("local://"):
        store = store.removeprefix("local://")
    if not isinstance(store, Path) and (not isinstance(store, str) or "://" in store or "::" in store):
        return None
    given = Path(store).expanduser()
    try:
        given.stat()
    except FileNotFoundError:
        pass
    except ValueError as error:  # a null character
        raise TilingError(f"store must be a path; got {brief(store)}: {error}.") from None
    except OSError as error:  # a loop of links, a file in place of a folder, no permission
        raise TilingError(f"{store} cannot be used as a store: {os.strerror(error.errno or 0)}.") from error
    # Links are followed here: zarr cannot delete or create at a link.
    return Path(os.path.realpath(given))


# -- whether two are one thing ------------------------------------------------------------------------------


def place_of(store_path: Any) -> Place:
    """Return what a place in a store is: equal for equal places, however they were opened."""
    store = innermost(store_path.store)
    inside = [p for p in store_path.path.split("/") if p]
    if isinstance(store, LocalStore):
        return _file(store.root, *inside)
    if isinstance(store, ZipStore):
        return (*_file(store.path), *inside)
    if isinstance(store, MemoryStore):
        return ("memory of this process", str(id(store._store_dict)), *inside)
    if hasattr(store, "fs"):
        return _fsspec(store.fs, "/".join([store.path, *inside]))
    inner = getattr(store, "store", None)  # obstore
    prefix = getattr(inner, "prefix", None)
    if type(inner).__name__ == "LocalStore" and prefix is not None:
        return _file(prefix, *inside)
    config = getattr(inner, "config", None)
    if config is not None:
        known = sorted((k, str(v)) for k, v in dict(config).items() if "bucket" in k or "endpoint" in k)
        parts = [p for p in str(prefix or "").split("/") if p]
        return (type(inner).__name__, repr(known), *parts, *inside)
    return (f"a {type(store).__name__}", str(id(inner if inner is not None else store)), *inside)


def _file(path: Any, *inside: str) -> Place:
    return ("file", *Path(os.path.realpath(path)).parts, *inside)


def _fsspec(fs: Any, path: str) -> Place:
    """Return a path in a file system of fsspec, without the file systems that only cache or prefix others."""
    while True:
        if hasattr(fs, "sync_fs"):
            fs = fs.sync_fs
        elif type(fs).__name__ == "DirFileSystem":
            fs, path = fs.fs, fs._join(path)
        elif hasattr(fs, "target_protocol") and hasattr(fs, "fs"):
            fs = fs.fs
        else:
            break
    names = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if "file" in names:
        return _file(fs._strip_protocol(path))
    options = {**fs.storage_options, **(fs.storage_options.get("client_kwargs") or {})}
    where = sorted((k, str(options[k])) for k in ("endpoint_url", "host", "port") if options.get(k))
    if (outer := options.get("fo")) is not None:  # the file of an archive, or of references
        where.append(("fo", _outer(outer)))
    parts = [p for p in str(fs._strip_protocol(path)).split("/") if p]
    return (f"fsspec {names[0]}", repr(where), *parts)


def _outer(file: Any) -> str:
    """Return what the file around a file system is: a path, or the object that was given."""
    if not isinstance(file, str | os.PathLike):
        return str(id(file))
    return str(file) if "://" in str(file) else os.path.realpath(file)


def holds(outer: Any, source: Source) -> bool:
    """Return whether the place in a store is, or contains, the array or file of a source."""
    if isinstance(source, UndecodedSource) and source.below is not None:
        source = source.below
    if isinstance(source, ZarrSource):
        inner = place_of(source.handle.store_path)
    elif isinstance(source, FileSource | H5Source | UndecodedSource):
        inner = _file(source.path)
    else:
        return False
    place = place_of(outer)
    return inner[: len(place)] == place or (place[0] == inner[0] == "file" and _same_file(place, inner))


def _same_file(outer: Place, inner: Place) -> bool:
    """Return whether a folder of ``inner`` is ``outer`` by another name: a bind mount, upper case."""
    try:
        own = os.stat(Path(*outer[1:]))  # noqa: PTH116
    except OSError:
        return False
    for path in _upwards(Path(*inner[1:])):
        try:
            other = os.stat(path)  # noqa: PTH116
        except OSError:
            continue
        if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino):
            return True
    return False


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
