"""What a value reads from stores and files, and what these say about their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tilework.execution.progress import LOG
from tilework.identity.digests import digest
from tilework.identity.graphs import Shown, shown_by
from tilework.identity.location import place_of
from tilework.identity.stamps import of_array, stamp
from tilework.source.base import Source
from tilework.source.opening import open_source
from tilework.source.stamps import settle

__all__ = ["data_of", "data_read_by", "read_by"]


def read_by(array: Any) -> Iterator[Source]:
    """Yield the stored arrays that a dask array reads, as far as its graph shows: zarr, h5py, memmap."""
    yield from map(open_source, _once(shown_by(array)))


def data_read_by(value: Any, name: str) -> str | None:
    """Return a digest of what stores and files say about the data that a value reads; warn where they do not.

    A Zarr array, and a dask array or DataArray that was opened from one, has the same name after its data
    were written anew in their place.

    Parameters
    ----------
    value : Zarr array, dask array, DataArray or Dataset, dataset of h5py, or anything else
        Of a Zarr group it is not known what is read of it; results may be written into it.
    name : str
        What the value is, for the warning.

    Returns
    -------
    str or None
        None: the value reads nothing that is stored, as far as its graph shows, or its stores say nothing.
    """
    data, told = data_of(shown_by(value))
    if not told:
        LOG.warning(
            "%s: its store does not say whether data changed; change version= when the data change", name
        )
    return data


def data_of(shown: Shown) -> tuple[str | None, bool]:
    """Return the digest for what a value shows, and whether all its stores say something."""
    if not shown.whole:
        return None, False  # what was seen of it depends on the order of tasks
    stamps = set(map(_stamp, _once(shown)))
    told = sorted(stamp for stamp in stamps if stamp is not None)
    return digest(told) if told else None, None not in stamps


def _once(shown: Shown) -> list[Any]:
    """Return each stored array once: a graph may open one many times, and each stamp lists a store."""
    return list({_place(one): one for one in shown.stored}.values())


def _stamp(stored: Any) -> str | None:
    """Return what changes when a stored array is written anew; None if nothing is known to."""
    if isinstance(stored, zarr.Array):
        return of_array(stored)[1]
    name = _file(stored)
    if isinstance(stored, np.memmap):
        settle(name)
    elif stored and stored.file.mode == "r+":
        stored.file.flush()
    return stamp(name) if name is not None and Path(name).is_file() else None


def _place(stored: Any) -> Any:
    """Return what is equal for one array that was opened twice."""
    return place_of(stored.store_path) if isinstance(stored, zarr.Array) else _file(stored)


def _file(stored: Any) -> Any:
    """Return the file of an array of h5py or numpy."""
    if isinstance(stored, np.memmap):
        return stored.filename
    return stored.file.filename if stored else None
