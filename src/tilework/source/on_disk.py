"""Arrays in files: memory maps and HDF5, which each process opens for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import TilingError
from tilework.source.base import Source, slices_of
from tilework.source.kept import FILES
from tilework.source.stamps import Files, Stamp, check_files

__all__ = ["FileSource", "H5Source", "OnDisk"]


@dataclass(slots=True)
class OnDisk(Source):
    """An array in a file, which each other process opens, if it is the file that was opened here."""

    files: Files = ()
    """The files that are read, with their stamps when the array was opened."""
    writer: Any = None
    """What this process may write into the file with; it has ``flush``. None: the array is only read."""
    _opened: Any = field(default=None, repr=False)
    """The array, if it was opened for a task."""

    def array(self) -> Any:
        """Return the array: the one that was given where the source was built, elsewhere that of the file."""
        if self.handle is not None and self._is_open():
            return self.handle
        self._before_opening()
        self._opened, stamps = None, check_files(self.files)
        self._opened = FILES.get(self._what(), stamps, self._open, self._close)
        return self._opened

    def _is_open(self) -> bool:
        """Return whether the array that was given can still be read."""
        return True

    def _before_opening(self) -> None:
        """Raise if the file cannot be opened again."""

    def _what(self) -> tuple[Any, ...]:
        """Return all facts, but the stamps, that change what is read."""
        raise NotImplementedError

    def _open(self) -> Any:
        """Return the array of the file."""
        raise NotImplementedError

    @staticmethod
    def _close(array: Any) -> None:
        """Close a file that was replaced."""

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return on_disk, (
            type(self),
            values
            | {"handle": None, "meta": None, "valid": None, "writer": None, "_opened": None}
            | self._now(),
        )

    def _now(self) -> dict[str, Files]:
        """Return the files with new stamps if this process may have written into them since."""
        if self.writer is None:
            return {}
        self.writer.flush()
        now = []
        for path, old in self.files:
            new = Stamp.of(path)
            now.append((path, new if old and new and old.inode == new.inode else old))
        return {"files": tuple(now)}


def on_disk(kind: type[OnDisk], values: dict[str, Any]) -> OnDisk:
    return kind(**values)


@dataclass(slots=True)
class FileSource(OnDisk):
    """A memory-mapped file, as (file, byte offset, dtype, shape, strides)."""

    path: str = ""
    offset: int = 0
    """Position of the first sample in the file, bytes."""
    strides: Index = ()
    """Bytes from one sample to the next, per axis."""

    def read(self, box: Sequence[Span]) -> Array:
        """Return a view of the mapped file."""
        return self.array()[slices_of(box)]  # type: ignore[no-any-return]

    def _what(self) -> tuple[Any, ...]:
        return "mmap", self.path, self.offset, repr(self.dtype), self.shape, self.strides

    def _open(self) -> Array:
        buffer = np.memmap(self.path, mode="r", dtype=np.uint8)
        return np.ndarray(self.shape, self.dtype, buffer, self.offset, self.strides)


@dataclass(slots=True)
class H5Source(OnDisk):
    """An h5py dataset, or a view of one, as (file, dataset, view)."""

    path: str = ""
    """Absolute path of the file."""
    dataset: str = ""
    """Name in the file; empty if it has none."""
    view: tuple[str, Any] | None = None
    """Method of the dataset that returns the view, and its argument; None: the dataset itself."""

    fresh: ClassVar[bool] = True

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box`` from the file."""
        return np.asarray(self.array()[slices_of(box)])

    def _is_open(self) -> bool:
        return bool(getattr(self.handle, "_dset", self.handle))

    def _what(self) -> tuple[Any, ...]:
        return "h5", self.path, self.dataset, repr(self.view), repr(self.dtype), self.shape

    def _open(self) -> Any:
        import h5py

        found = h5py.File(self.path, "r")[self.dataset]
        if self.view is not None:
            method, argument = self.view
            found = getattr(found, method)(argument)
        if (found.shape, found.dtype) != (self.shape, self.dtype):
            raise TilingError(
                f"the h5py dataset {self.dataset} of {self.path} has shape {found.shape} and dtype "
                f"{found.dtype}; the array had {self.shape} and {self.dtype}. Build the result again."
            )
        return found

    @staticmethod
    def _close(array: Any) -> None:
        """Close a file that was replaced: while it is open, HDF5 keeps what it knows of its other files."""
        if dataset := getattr(array, "_dset", array):
            dataset.file.close()

    def _before_opening(self) -> None:
        if self.writer is not None and not self._is_open():
            raise TilingError(
                f"the h5py file {self.path} was open for writing when the result was built, and was closed "
                "since: what was written in between is not known. Open it with mode 'r' for the result, or "
                "close it after computing."
            )
        if not (self.dataset and Path(self.path).is_file()):
            name = self.dataset or "(no name)"
            raise TilingError(
                f"the h5py dataset {name} lives in memory only; write it to a file or use threads."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        self._before_opening()
        return OnDisk.__reduce__(self)
