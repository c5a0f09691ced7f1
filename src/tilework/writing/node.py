"""A place in a Zarr hierarchy: what is there, what lies above it, and how it is emptied."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.storage import FsspecStore, LocalStore, StorePath

from tilework._checks import brief, forget_frames
from tilework.errors import TilingError
from tilework.execution.progress import LOG
from tilework.source.held import innermost
from tilework.source.zarr_requests import answer
from tilework.writing.ledger import BESIDE, RECORD, Ledger, Record
from tilework.writing.objects import FOLDER, PARTIAL, Objects, load, read_only

__all__ = ["Home", "children_at", "clear", "found_at", "home_of", "is_vacant", "refuse_unfit_store"]

# Metadata documents, and the formats of their nodes. A node is gone when the last of these is gone, so they
# are
# deleted in this order, after the data.
DOCUMENTS = {".zattrs": 2, ".zmetadata": 2, ".zarray": 2, ".zgroup": 2, "zarr.json": 3}
# Those that make a place a node.
NODES = (".zarray", ".zgroup", "zarr.json")
# Names below an array that belong to it: documents, and the beginnings of the keys of chunks.
PART = re.compile(r"zarr\.json|\.z(array|attrs|group|metadata)|c(\.\d+)*|\d+(\.\d+)*")


def refuse_unfit_store(store: Any, address: str) -> None:
    """Raise a `TilingError` unless a store can be written, listed and deleted from."""
    able = {
        "written": store.supports_writes and not store.read_only,
        "listed": store.supports_listing,
        "deleted from": store.supports_deletes,
    }
    if not all(able.values()):
        cannot = " or ".join(what for what, can in able.items() if not can)
        raise TilingError(
            f"{address}: a {type(store).__name__} that is opened like this (read_only={store.read_only}) "
            f"cannot be {cannot}; write into a folder or an object store, and copy the result."
        )


def found_at(
    at: StorePath, address: str, *, overwrite: bool = False, writable: bool = True, nodes: bool = False,
    again: bool = True,
) -> Any:  # fmt: skip
    """Return the array or group at a place; None if there is nothing.

    ``nodes`` allows arrays and groups below a place that is none itself: a writer that was killed may have
    made them before the group. ``again`` lets it look once more if another run makes a node meanwhile.

    Raises
    ------
    TilingError
        If there are data that are not Zarr, or metadata of which only a part is there.
    """
    seen = read_only(at)
    once_more = functools.partial(
        found_at, at, address, overwrite=overwrite, writable=writable, nodes=nodes, again=False
    )
    try:
        found = zarr.open(seen, mode="r")
        return zarr.open(at, mode="r+") if writable else found
    except FileNotFoundError as error:  # also zarr's own errors, which derive from it
        forget_frames(error)  # they refer to it and to the result, until the garbage collector comes
    except (zarr.errors.ContainsArrayError, zarr.errors.ContainsGroupError):
        # zarr looked for a group after an array, which was made in between.
        if not again:
            raise
        return once_more()
    except ValueError as error:
        torn = next((name for name in DOCUMENTS if _torn(seen, name)), None)
        if torn is None:
            raise
        ours = bool(Objects.of(seen).names())
        if overwrite and ours:
            return None
        raise TilingError(
            f"{address}/{torn} is not whole, so nobody can read what is there: its writer was killed, or a "
            "copy was cut off. Restore this file from a copy, or delete what is there, and call again"
            f"{', or write afresh with overwrite=True' if ours else ''}."
        ) from error
    others = _others(seen, nodes=nodes)
    if again and any(name in NODES for name in others):
        return once_more()
    _refuse(others, address)
    _refuse_file(seen, address)
    return None


def _others(at: StorePath, *, nodes: bool, expected: Collection[str] = ()) -> list[str]:
    """Return what a place that is no node holds, without what is ``expected`` and, if allowed, ``nodes``."""
    there = [name for name in children_at(at) if name not in expected and _has_objects(at / name)]
    # In this order: another run may be making a node.
    if nodes:
        there = [name for name in there if not Objects(at.store, (at / name).path).read_all(DOCUMENTS)]
    return there


def _refuse(there: Sequence[str], address: str) -> None:
    """Raise if a place that is no node holds anything."""
    if there:
        more = f" and {len(there) - 3} others" if len(there) > 3 else ""
        raise TilingError(
            f"{address} is not empty and not Zarr: it holds {', '.join(there[:3])}{more}. Name a place of "
            "its own for the result."
        )


def _refuse_file(at: StorePath, address: str) -> None:
    """Raise if a place where nothing was found is, or lies below, a file: it can be no folder."""
    store = innermost(at.store)
    if not isinstance(store, LocalStore):
        return
    place = store.root / at.path
    for one in (place, *place.parents):
        if one.is_file():
            where = "is" if one == place else f"lies below {one},"
            raise TilingError(
                f"{address} {where} a file, and a result is a folder. Delete the file yourself, or name "
                "another place."
            )


def _has_objects(at: StorePath) -> bool:
    """Return whether there is an object at or below a place, other than what dead runs left.

    These are claims, marks, and files that they were writing.
    """

    async def found() -> bool:
        if await at.store.exists(at.path):
            return PARTIAL.search(at.path) is None
        async for key in at.store.list_prefix(f"{at.path}/"):
            if f"/{FOLDER}/" not in key and PARTIAL.search(key) is None:
                return True
        return False

    return answer(at.store, found())


def _torn(at: StorePath, name: str) -> bool:
    value = Objects(at.store, at.path).read(name)
    return value is not None and load(value) is None


def children_at(at: StorePath) -> list[str]:
    """Return the names directly below a place, without the folder of claims and marks."""

    async def names() -> list[str]:
        try:
            return [name async for name in at.store.list_dir(at.path)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    found = [name.strip("/") for name in answer(at.store, names())]
    return sorted(name for name in found if name not in ("", FOLDER))


def is_vacant(array: Any, record: Record) -> bool:
    """Return whether the run of a record ended before it left anything in its array, or beside it.

    Marks alone do not tell: units below a tile that failed have none, and users delete them. Pieces of labels
    are a result, too. A run that is to come, or that has the array at the moment, is told by its claim only.
    """
    at = array.store_path
    if "begun" not in record or not all(map(_says_nothing, Objects.of(at).names())):
        return False
    # Not a list of all objects: that leaves out what lies behind a link.
    if not all(name in DOCUMENTS or PARTIAL.search(name) for name in children_at(at)):
        return False
    known = record["begun"]
    return known is None or Ledger(array).attributes.keys() <= {RECORD, *known}


def _says_nothing(name: str) -> bool:
    """Return whether an object beside an array is neither a mark nor a part of a result."""
    own = name.rpartition("/")[2]
    return own in (*DOCUMENTS, "claim", "beat", BESIDE) or own.startswith(("claim.", "beat.", "after-"))


def clear(at: StorePath, found: Any) -> None:
    """Delete the node ``found`` at a place, its metadata last; of an array only what is part of it."""
    names = [name for name in children_at(at) if isinstance(found, zarr.Group) or PART.fullmatch(name)]
    for name in sorted(names, key=lambda name: list(DOCUMENTS).index(name) if name in DOCUMENTS else -1):
        key = (at / name).path
        # Some stores say that a folder exists, and delete it only as a folder.
        if name not in DOCUMENTS and children_at(at / name):
            answer(at.store, at.store.delete_dir(key))
        else:
            answer(at.store, at.store.delete(key))


@dataclass(frozen=True, slots=True)
class Home:
    """The place of a new array in its hierarchy."""

    at: StorePath
    """The place, in a store that begins at the root of the hierarchy."""
    zarr_format: int | None
    """Format of the hierarchy; None: there is none yet."""
    above: tuple[str, ...] = ()
    """Keys of the metadata of the groups above it."""

    def create(self, **arguments: Any) -> Any:
        """Create the array; the metadata of groups that were there stay as they are."""
        # zarr gives every group of format 2 above a new node attributes.
        missing = [f"{p}.zattrs" for p in self._parents(".zgroup") if f"{p}.zattrs" not in self.above]
        array = zarr.create_array(self.at.store, name=self.at.path or None, **arguments)
        for key in missing:
            answer(self.at.store, self.at.store.delete(key))
        return array

    def _parents(self, document: str) -> list[str]:
        return [key.removesuffix(document) for key in self.above if key.endswith(document)]


def home_of(at: StorePath, address: str, asked: Any = None, *, listed: bool = False) -> Home:
    """Return where a new array belongs: below the groups above it, and in their format.

    ``listed`` says that the consolidated metadata of the group right above it will show it.

    Raises
    ------
    TilingError
        If an array or data that are not Zarr lie above it, or ``asked``, a Zarr format, is another one.
    """
    if asked is not None and not (type(asked) is int and asked in (2, 3)):
        raise TilingError(f"zarr_format must be 2 or 3; got {brief(asked)}.")
    root = _root(at)
    seen = read_only(root)
    above: list[str] = []
    found: int | None = None
    own = f"{root.path.rpartition('/')[0]}/".lstrip("/")
    for prefix in _prefixes(root.path):
        values = Objects(seen.store, prefix.rstrip("/")).read_all(DOCUMENTS)
        above += [f"{prefix}{name}" for name in values]
        group = load(values.get("zarr.json")) or {}
        if ".zarray" in values or group.get("node_type") == "array":
            raise TilingError(f"{address} lies inside an array, {root.store}/{prefix}; name another place.")
        if "zarr.json" in values or ".zgroup" in values:
            found = 3 if "zarr.json" in values else 2
        shown = listed and prefix == own
        if (".zmetadata" in values or group.get("consolidated_metadata")) and not shown:
            LOG.warning(
                "%s: the consolidated metadata of the group at %s/%s will not show this array; run "
                "zarr.consolidate_metadata there when all is written",
                address, root.store, prefix,
            )  # fmt: skip
    if root.path and found is None:
        # A writer that was killed may have made a node before the group above it.
        top = StorePath(seen.store, "")
        # Documents that are there now, and were not before, are those of a group that another run makes.
        _refuse(
            _others(top, nodes=True, expected={root.path.split("/")[0], *DOCUMENTS}),
            str(root.store),
        )
    if None not in (asked, found) and asked != found:
        raise TilingError(
            f"{address} is in a hierarchy of Zarr format {found}; got zarr_format={asked}. Leave "
            f"zarr_format out."
        )
    return Home(root, found if asked is None else asked, tuple(above))


def _prefixes(path: str) -> Iterator[str]:
    """Yield the prefixes of the keys of all groups above a path, the root first."""
    parts = path.split("/") if path else []
    for n in range(len(parts)):
        yield "".join(f"{p}/" for p in parts[:n])


def _root(at: StorePath) -> StorePath:
    """Return the same place in a store that begins at the outermost group above it.

    Who names the path of an array in a hierarchy means an array in that hierarchy. Folders that do not
    exist yet are passed; one that exists and is no group ends the search.
    """
    outer, path, best = at, at.path, at
    while (above := _above(outer)) is not None:
        outer, name = above
        path = f"{name}/{path}".rstrip("/")
        seen = read_only(outer)
        if Objects(seen.store, "").read_all(DOCUMENTS):
            best = StorePath(outer.store, path)
        elif set(children_at(seen)) - {name}:
            break
    return best


def _above(at: StorePath) -> tuple[StorePath, str] | None:
    """Return the folder around the root of a store, as a store, and the name of the root in it."""
    store = at.store
    if isinstance(store, LocalStore) and store.root.name:
        return StorePath(LocalStore(store.root.parent), ""), store.root.name
    if isinstance(store, FsspecStore):
        folder, _, name = store.path.rstrip("/").rpartition("/")
        if folder.strip("/") and name:
            return StorePath(FsspecStore(fs=store.fs, path=folder), ""), name
    return None
