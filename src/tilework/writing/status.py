"""How far stores are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from tilework.errors import TilingError
from tilework.writing.ledger import Marks, read_record

__all__ = ["Status", "status"]


@dataclass(frozen=True, slots=True)
class Status:
    """How far one array is."""

    place: str
    """Address of the array."""
    done: int
    """Write units that are finished."""
    units: int
    """Write units that there are."""
    failed: tuple[str, ...] = ()
    """Tiles that failed in the last run, with their errors."""

    @property
    def complete(self) -> bool:
        """Whether every unit is finished."""
        return self.done == self.units


def status(store: Any) -> list[Status]:
    """Return how far the arrays in ``store`` are that tilework writes.

    Parameters
    ----------
    store : path, URL, Zarr store, zarr.Group or zarr.Array

    Returns
    -------
    list of Status
        One for each array that `to_zarr` made or went on with; a group is searched through.

    Raises
    ------
    TilingError
        When there is no Zarr array or group.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map, to_zarr
    >>> out = tiled_map(np.negative, np.zeros((10, 10)), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> [found] = status(written)
    >>> found.done, found.units, found.complete
    (4, 4, True)
    """
    if not isinstance(store, zarr.Array | zarr.Group):
        try:
            store = zarr.open(str(store) if isinstance(store, Path) else store, mode="r")
        except FileNotFoundError as error:
            raise TilingError(f"there is no Zarr array or group at {store}.") from error
    return list(_below(store))


def _below(node: Any) -> Iterator[Status]:
    if isinstance(node, zarr.Group):
        for _, member in sorted(node.members()):
            yield from _below(member)
        return
    record = read_record(node)
    if record is not None:
        done = Marks(node).read()
        yield Status(str(node.store_path), int(done.sum()), done.size, tuple(record.get("failed", ())))
