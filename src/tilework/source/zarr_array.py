"""Zarr arrays, read directly, or chunk by chunk through the decoded chunks that the process keeps.

Before a task reads, the array is checked: is its metadata document where it was when the result was built,
and does it say the same? A folder that is not mounted, or was renamed, would read as fill values. The
document of a local array is read again when its file changes; that of another store once per run, and outside
of runs once per second, or once per task if it lies in the memory of the process.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import TilingError
from tilework.formats.meta import ImageMeta
from tilework.source import held
from tilework.source.base import Source, copy_overlap
from tilework.source.kept import CHECKS, CHUNKS, Scope, Uses, scope, task
from tilework.source.stamps import TICK, Files, Stamp, check_files, not_visible, seen
from tilework.source.zarr_requests import answer, boxes_of, chunks_of, read_box, request_bytes

__all__ = ["ZarrSource", "zarr_source"]

Key = tuple[Any, ...]

# For how long the check of a store that is not local holds outside of runs, seconds.
CHECK_HOLDS = 1.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array was when its source was built."""

    metadata: str
    """Digest of its metadata without attributes."""
    folder: str | None = None
    """Its folder, absolute, if it lies in a `zarr.storage.LocalStore`."""
    document: str = ""
    """Its metadata document, a path if it has a folder, else a name."""
    unit: Index = ()
    """Chunks per chunk file and axis; empty if not all chunks have one shape."""
    real: str = ""
    """The folder after following links."""
    machine: str = ""
    """The machine on which they were followed."""
    files: Files = ()
    """The zip file that holds it, with its stamp."""
    held: bool = False
    """Whether it lies in the memory of the process."""


@dataclass(frozen=True, slots=True)
class _Check:
    """What the last check of an array in this process found."""

    run: str | None
    """The run whose task checked."""
    time: float
    """When, by the monotonic clock, seconds."""
    document: Any
    """The metadata document, or what its file looked like; None if a change of the file might not show."""


@dataclass(slots=True)
class ZarrSource(Source):
    """A Zarr array."""

    fresh: ClassVar[bool] = True

    place: _Place = field(default=_Place(""), repr=False)
    """Where it was when the source was built."""
    ours: bool = False
    """Whether tilework opened it, read-only, so that the chunks of a run may be shared without a stamp."""
    sent: bool = field(default=False, repr=False)
    """Whether the source was pickled."""
    refused: str = field(default="", repr=False)
    """Why this process cannot open it."""

    @property
    def shares(self) -> bool:
        """Whether the tasks of a run may use the chunks that others of them decoded."""
        return self.place.folder is not None or self.ours

    @property
    def shares_in_runs(self) -> bool:
        """Whether only the tasks of one run of tilework's own may, and none that dask runs by itself."""
        return self.place.folder is None and self.ours

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``, intervals per axis inside the image."""
        self.check()
        part = read_box(self.handle, [slice(a, b) for a, b in box])
        if self.place.folder is not None:
            last, document = CHECKS.get(self.token), seen(self.place.document)[0]
            if last is None or document is None or last.document != document:
                # Chunks of a folder that was renamed meanwhile were read as fill values.
                self.check(again=True)
        return part

    def read_shared(
        self,
        box: Sequence[Span],
        uses: Uses,
        limit: int,
        *,
        again: bool = True,
        row: Index = (),
        now: Index = (),
        last: Callable[[Index], Index] = lambda chunk: (),
    ) -> Array:
        """Return the samples of ``box``; chunks are decoded once for all tasks that may share them.

        Parameters
        ----------
        box : sequence of (start, stop), samples
        uses : Uses
            How many tasks read each chunk.
        limit : int, bytes of the chunk cache
        again : bool
            Whether this task may read a chunk again.
        row : tuple of int
            The tasks between which chunks are kept: those of the same row.
        now : tuple of int
            The place of this task in its row.
        last : callable
            Maps the index of a chunk to the place of the last task that reads it.
        """
        own = scope()
        if own is None:
            with task():
                return self.read_shared(box, uses, limit, again=again, row=row, now=now, last=last)
        shared = self.place.folder is not None or (self.ours and own.run is not None)
        if self.chunks is None or limit <= 0 or not (shared or again):
            return self.read(box)
        grid = [range(a // c, -(-b // c)) for (a, b), c in zip(box, self.chunks, strict=True)]
        if not (again or (shared and uses.several(grid))):
            return self.read(box)
        self.check()
        out = np.empty([b - a for a, b in box], self.dtype)
        wanted = {}
        for index in itertools.product(*grid):
            proof = self._proof(index, own)
            # A chunk of one task goes with the task.
            count = sys.maxsize if proof == own.number else uses.of(index)
            wanted[self.token, index, row, proof] = count
        CHUNKS.fetch(
            wanted,
            self._load,
            lambda key, chunk: copy_overlap(
                out, [a for a, _ in box], chunk, [a for a, _ in self._samples(_one(key[1]))]
            ),
            limit,
            share=(self.token, limit),
            again=again,
            now=(*row, *now),
            last=lambda key: (*row, *last(key[1])),
        )
        return out

    def begin(self, limit: int) -> None:
        """Say that the current task will read chunks with `read_shared`."""
        if limit > 0:
            CHUNKS.begin((self.token, limit), limit)

    @property
    def request_bytes(self) -> int:
        """Bytes of samples that one request reads of chunks that are kept, at most; 0: a chunk."""
        return request_bytes(self._chunk_bytes, self.place.unit, far=self._far)

    @property
    def _far(self) -> bool:
        """Whether the store may be slow to answer, so that chunks are asked for side by side."""
        return self.place.folder is None and not self.place.held

    @property
    def _chunk_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.chunks or ())

    def _load(self, keys: list[Key]) -> Iterator[tuple[Key, Array, bool]]:
        """Yield the chunks with cache keys, and whether each is still what its key says."""
        most = self.request_bytes // max(1, self._chunk_bytes)
        by_index = {key[1]: key for key in keys}
        unit = (sys.maxsize,) * len(self.shape) if self._far else self.place.unit
        for chunks in boxes_of(by_index, unit, most):
            box = self._samples(chunks)
            part = self.read(box)
            for index in itertools.product(*(range(a, b) for a, b in chunks)):
                own = self._samples(_one(index))
                inside = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(own, box, strict=True))
                # A view would keep the samples of all chunks that were read with it.
                chunk = part if own == box else part[inside].copy()
                yield by_index[index], chunk, self._is_sound(by_index[index])
            del part

    def _samples(self, chunks: Sequence[Span]) -> list[Span]:
        """Return the samples of a box of chunks."""
        columns = zip(chunks, self.chunks or (), self.shape, strict=True)
        return [(a * c, min(b * c, n)) for (a, b), c, n in columns]

    def _proof(self, index: Index, own: Scope) -> Any:
        """Return what proves that a decoded chunk may be shared, or the number of the only task to use it."""
        if self.place.folder is not None:
            file = self._chunk_file(index)
            found, wait = seen(file)
            if 0 < wait <= TICK:
                time.sleep(wait / 1e9)
                found, wait = seen(file)
            if not wait:
                return "file", found
        return ("run", own.run) if self.ours and own.run is not None else own.number

    def _is_sound(self, key: Key) -> bool:
        """Return whether a chunk that was decoded just now is the one that its key names."""
        proof = key[-1]
        return (
            not isinstance(proof, tuple)
            or proof[0] != "file"
            or proof[1] == seen(self._chunk_file(key[1]))[0]
        )

    def _chunk_file(self, index: Index) -> str:
        """Return the path of the file that holds a chunk: its shard, if the array has shards."""
        number = tuple(i // u for i, u in zip(index, self.place.unit, strict=True))
        return f"{self.place.folder}/{self.handle.metadata.encode_chunk_key(number)}"

    # -- the check -----------------------------------------------------------------------------------------

    def check(self, *, again: bool = False) -> None:
        """Raise unless the array is where it was, with the same metadata; looks once per task.

        Raises
        ------
        TilingError
            If this process cannot see the array, or finds another one in its place.
        """
        own = scope()
        if own is not None and self.token in own.checked and not again:
            return
        if self.refused:
            raise TilingError(self.refused)
        if self.sent:
            check_files(self.place.files)
        run, now = own.run if own else None, time.monotonic()
        last: _Check | None = CHECKS.get(self.token)
        if self.place.folder is not None:
            document, wait = seen(self.place.document)
            if last is None or document is None or last.document != document:
                self._compare()
                CHECKS.note(self.token, _Check(run, now, None if wait else document))
        elif (
            last is None or self.place.held or not (last.run == run if run else now - last.time < CHECK_HOLDS)
        ):
            text = self._document()
            if last is None or last.document != text:
                self._compare()
            CHECKS.note(self.token, _Check(run, now, text))
        if own is not None:
            own.checked.add(self.token)

    def _document(self) -> bytes | None:
        """Return the metadata document that is in the store now."""
        from zarr.buffer import default_buffer_prototype

        at = self.handle.store_path / self.place.document
        found = answer(at.store, at.get(default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def _compare(self) -> None:
        """Raise unless the metadata in the store are those of the build."""
        import zarr

        store, place, here = self.handle.store, self.place, held.this_process()
        name = place.folder or f"the Zarr array {self.handle.store_path}"
        try:
            found = zarr.open_array(
                store, path=self.handle.path, mode="r" if store.read_only else "r+",
                zarr_format=self.handle.metadata.zarr_format,
            )  # fmt: skip
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise TilingError(f"{not_visible(name, here)} ({type(error).__name__}: {error})") from error
        real = os.path.realpath(place.folder) if place.folder else ""
        if place.machine == held.this_machine() and place.real != real:
            raise TilingError(
                f"{name} led to {place.real} when the result was built, and leads to {real} now. Build the "
                "result again."
            )
        if _digest(found.metadata) != place.metadata:
            raise TilingError(
                f"{name} holds another array in {here}: its metadata are not those of the array that the "
                f"result was built from (shape {self.shape}, dtype {self.dtype}; now {found.shape} and "
                f"{found.dtype}). It was rewritten; build the result again."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("shape", "dtype", "chunks", "token", "place", "ours")
        values = {name: getattr(self, name) for name in names}
        return _arrived, (held.dumps(self.handle), values)


def _one(index: Index) -> list[Span]:
    """Return a chunk as a box of chunks."""
    return [(i, i + 1) for i in index]


def _arrived(packed: bytes, values: dict[str, Any]) -> ZarrSource:
    """Return a source in the process to which it was sent; if it cannot be opened, its reads fail."""
    try:
        handle, refused = cloudpickle.loads(packed), ""
    except TilingError as error:
        handle, refused = None, str(error)
    except OSError as error:  # a store that opens its file at once
        handle, refused = None, f"the Zarr array cannot be opened in {held.this_process()}: {error}"
    return ZarrSource(handle, sent=True, refused=refused, **values)


def zarr_source(array: Any, meta: ImageMeta | None, *, ours: bool) -> ZarrSource:
    """Return the source of a `zarr.Array`.

    Parameters
    ----------
    array : zarr.Array
    meta : ImageMeta or None
        What its samples mean.
    ours : bool
        Whether tilework opened it, read-only.
    """
    array = _absolute(array)
    place = _place_of(array)
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
    facts = (dtype, place.metadata, place.real, [stamp and stamp.token for _, stamp in place.files])
    token = ("zarr", held.address(array.store), array.path, repr(facts))
    return ZarrSource(array, shape, dtype, chunks_of(array), meta, token, place, ours)


def _absolute(array: Any) -> Any:
    """Return an array whose folder does not depend on the folder in which the process works."""
    store = array.store
    if not _is_local(store) or store.root.is_absolute():
        return array
    import zarr

    absolute = type(store)(store.root.absolute(), read_only=store.read_only)
    return zarr.open_array(
        absolute,
        path=array.path,
        mode="r" if store.read_only else "r+",
        zarr_format=array.metadata.zarr_format,
    )


def _is_local(store: Any) -> bool:
    """Return whether a store has files to look at; a subclass might keep them elsewhere."""
    return type(store).__name__ == "LocalStore" and type(store).__module__.startswith("zarr.")


def _place_of(array: Any) -> _Place:
    store, metadata = array.store, _digest(array.metadata)
    document = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
    try:
        unit = tuple(f // c for f, c in zip(array.shards or array.chunks, array.chunks, strict=True))
    except (NotImplementedError, TypeError):  # as in chunks_of
        unit = ()
    if _is_local(store):
        folder = str(store.root / array.path)
        return _Place(
            metadata, folder, f"{folder}/{document}", unit, os.path.realpath(folder), held.this_machine()
        )
    path = getattr(held.innermost(store), "path", None)
    files = ((str(path.absolute()), _zip_stamp(store)),) if isinstance(path, Path) else ()
    return _Place(metadata, document=document, unit=unit, files=files, held=held.is_held(store))


def _zip_stamp(store: Any) -> Stamp | None:
    """Return the stamp of the zip file that is open, else of the one at its path."""
    file = getattr(getattr(held.innermost(store), "_zf", None), "fp", None)
    return Stamp.of(held.innermost(store).path if file is None else file.fileno())


def _digest(metadata: Any) -> str:
    """Return a digest of the metadata of an array, without attributes, which do not change samples."""
    facts = {key: value for key, value in metadata.to_dict().items() if key != "attributes"}
    return hashlib.sha256(repr(facts).encode()).hexdigest()
