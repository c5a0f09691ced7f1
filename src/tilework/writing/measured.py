"""The table of objects that `to_zarr` writes beside labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework._checks import brief
from tilework.errors import TilingError
from tilework.formats.meta import ImageMeta
from tilework.graph.build import Found
from tilework.labels.runs import check_ids
from tilework.objects.measuring import How, check_measures, measured
from tilework.objects.table import check_path
from tilework.writing.closing import Destination
from tilework.writing.image import Image
from tilework.writing.tables import CutObjects
from tilework.writing.target import Continued, Place

__all__ = ["AskedTable", "TableTo"]


@dataclass(frozen=True, slots=True)
class AskedTable:
    """Arguments of `to_zarr` about a table, which describes them, as given."""

    table: Any = None
    properties: Any = ()
    intensity: Any = None
    spacing: Any = None

    def __post_init__(self) -> None:
        if self.table is None or self.table is False:
            for name in ("properties", "intensity", "spacing"):
                given = getattr(self, name)
                if given is not None and not (isinstance(given, tuple | list) and not given):
                    raise TilingError(f"{name}= is for a table of objects; say where with table=.")
        elif self.table is not True and not isinstance(self.table, str | os.PathLike):
            raise TypeError(f"table must be a path, True or False; got {brief(self.table)}.")

    def __bool__(self) -> bool:
        return self.table is not None and self.table is not False

    def to(
        self,
        arrays: Mapping[str, Any],
        found: Mapping[str, Found | None],
        stores: Mapping[str, Any],
        images: Mapping[str, Image],
        places: Mapping[str, Place],
        *,
        overwrite: bool,
    ) -> TableTo | None:
        """Return where the table goes, if one is asked for; raise if it cannot be made, or written there.

        All arguments are by the key of the output: the lazy arrays, their origins, the stores as given,
        OME-Zarr images, and what is in the store.
        """
        if not self:
            return None
        key = _labels_among(arrays, found)
        origin = found[key]
        each = tuple(range(0 if origin is None else origin.output.n_each))
        meta = images[key].meta if key in images else None if origin is None else origin.meta
        check_measures(arrays[key], self.intensity, self.properties, self.spacing, each, meta)
        # A file is not that of labels that are written from the start.
        replaces = overwrite or isinstance(places[key], Continued)
        path = check_path(self._path(stores[key]), overwrite=replaces)
        return TableTo(self, key, path, len(each), meta)

    def _path(self, store: Any) -> Any:
        if self.table is not True:
            return self.table
        if not isinstance(store, str | Path) or "://" in str(store):
            raise TilingError(
                f"table=True is a .csv file beside the folder of the labels; got the store {brief(store)}. "
                'Say where it should be: table="cells.csv".'
            )
        name = Path(store)
        while name.suffix in (".zarr", ".ome"):
            name = name.with_suffix("")
        return name.with_name(f"{name.name}.csv")


def _labels_among(arrays: Mapping[str, Any], found: Mapping[str, Found | None]) -> str:
    """Return the key of the labels among the outputs; raise unless there is one."""
    keys = [key for key, f in found.items() if f is not None and f.output.stored is not None]
    keys = list(arrays) if len(arrays) == 1 else keys
    if len(keys) != 1:
        raise TilingError(
            f"table= is for one output of labels; there are {len(keys)}. Call tw.measure_labels for each "
            "when they are written."
        )
    check_ids(np.empty(0, arrays[keys[0]].dtype), "table= is for labels; the result holds")
    return keys[0]


@dataclass(frozen=True, slots=True)
class TableTo:
    """A table that is to be written."""

    asked: AskedTable
    key: str
    """The output that is measured."""
    path: Path
    n_each: int
    """Number of ``each`` axes of the output."""
    meta: ImageMeta | None
    """What the samples of the labels mean."""

    def write(self, target: Destination, how: How) -> None:
        """Measure the labels that were written, and write the table."""
        asked, array = self.asked, target.array
        each = tuple(range(self.n_each))
        found = measured(array, asked.intensity, asked.properties, each, self.meta, how, asked.spacing)
        if target.generation:
            index, numbers = CutObjects(array, target.generation).read()
            own = np.zeros(len(found), np.int64)
            for n, column in zip(array.shape[: self.n_each], found.values(), strict=False):
                own = own * n + np.asarray(column)
            size = int(numbers.max(initial=0)) + 1
            inside = found["label"].astype(np.int64) < size
            found["cut"] = inside & np.isin(
                own * size + found["label"].astype(np.int64), index * size + numbers
            )
        found.write(self.path, overwrite=True)
