"""`filter_labels`: a label image with only some of its objects, written with new numbers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import has, of_type
from tilework._types import Array, Index
from tilework.api import tiled_map
from tilework.execution.progress import Progress, check_progress
from tilework.formats.meta import ImageMeta
from tilework.grid.tiles import Tile
from tilework.labels.runs import Runs
from tilework.objects.axes import ObjectAxes
from tilework.objects.boxes import cuts_of
from tilework.objects.choosing import Numbers, kept_rows
from tilework.objects.measuring import measure_labels, open_images
from tilework.objects.table import Table
from tilework.source.opening import Image
from tilework.writing.fingerprint import Identified
from tilework.writing.store import to_zarr
from tilework.writing.temporary import place_of

__all__ = ["filter_labels"]

# Samples of a crop: enough that a call takes longer than what is around it.
SAMPLES = 2**20


@dataclass(frozen=True, slots=True)
class Renumber(Identified):
    """The function that gives the objects of a crop their new numbers."""

    numbers: Numbers
    counts: Index
    """Extents of the ``each`` axes."""
    dtype: np.dtype[Any]

    def __call__(self, crop: Array, tile: Tile) -> Array:
        """Return the crop with new numbers."""
        n = len(self.counts)
        index = int(np.ravel_multi_index(tile.read.start[:n], self.counts)) if n else 0
        runs = Runs.of(crop)
        values = self.numbers.of_ids(runs.ids.astype(np.int64, copy=False), index)
        return runs.painted(values.astype(self.dtype))

    def identity(self) -> str:
        """Return what identifies the new numbers."""
        found = hashlib.blake2b(digest_size=20)
        for part in (self.numbers.index, self.numbers.ids, self.numbers.numbers):
            found.update(np.ascontiguousarray(part).data)
        return f"objects {found.hexdigest()}"


def filter_labels(
    labels: Image,
    condition: Any,
    store: Any = None,
    *,
    table: Any = None,
    intensity: Image | Mapping[str, Image] | None = None,
    properties: Any = (),
    each: int | str | Sequence[int | str] = (),
    meta: ImageMeta | None = None,
    spacing: Sequence[float] | str | None = None,
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    client: Any = None,
    scheduler: Any = None,
    **options: Any,
) -> Any:
    """Return the objects of a label image that meet a condition, numbered 1 to N.

    Numbers follow the first samples in raster order; with ``each`` they begin at 1 for each index. Everything
    else becomes 0.

    Parameters
    ----------
    labels : array, path or URL
        As in `measure_labels`.
    condition : callable, or array of bool
        A function of the table that returns one bool per object, ``lambda table: table["area"] > 50``, or
        with ``table`` these bools.
    store : path, URL, Zarr store, zarr.Group or zarr.Array, optional
        Where they are written, as in `to_zarr`. Default: they are returned as an array of numpy.
    table : Table, dict of columns or DataFrame, optional
        The table of all objects of the labels, with the columns "label", "first", and those of ``each``.
        Default: that of `measure_labels`, which is made first.
    intensity, properties, each, meta, spacing
        As in `measure_labels`.
    retries, progress, memory_limit, client, scheduler
        As in `to_zarr`.
    **options
        Other arguments of `to_zarr`: chunks, overwrite, version, ome, label_name... A version stands for the
        functions from whose results the labels are computed; other objects are another result in any case.

    Returns
    -------
    zarr.Array, shape of the labels, with ``each`` axes first
        uint32, or uint64 where numbers need it. As `to_zarr` returns it; without ``store`` a numpy.ndarray.

    Raises
    ------
    TilingError
        If the condition does not give one bool per object, or the labels hold an object that the table does
        not; and as `measure_labels` and `to_zarr` do.

    Notes
    -----
    A process holds 24 bytes for each object of the table.

    Examples
    --------
    >>> labels = np.array([[7, 7, 0, 4], [7, 0, 2, 2]])
    >>> filter_labels(labels, lambda table: table["area"] > 1, progress=False).tolist()
    [[1, 1, 0, 0], [1, 0, 2, 2]]
    """
    check_progress(progress)
    run = {
        "retries": retries, "progress": progress, "memory_limit": memory_limit, "client": client,
        "scheduler": scheduler,
    }  # fmt: skip
    source, _ = open_images(labels, None)
    axes = ObjectAxes.of(source, each, meta)
    if table is None:
        table = measure_labels(
            labels, intensity, properties, each=each, meta=meta, spacing=spacing, **run
        )  # fmt: skip
    elif not isinstance(table, Table):
        if not isinstance(table, Mapping) and has(table, "columns"):  # of pandas, or polars
            table = {name: table[name] for name in table.columns}
        table = Table(of_type("table", table, Mapping, "a Table, a dict of columns or a DataFrame"))
    keep = kept_rows(condition, table)
    numbers = Numbers.of(table, keep, dict(zip(axes.names, axes.counts, strict=True)))
    dtype = np.dtype(np.uint32 if numbers.most <= np.iinfo(np.uint32).max else np.uint64)
    renumber = Renumber(numbers, axes.counts, dtype)
    cuts = cuts_of(source, axes.own, SAMPLES)
    crop = tuple(max((b - a for a, b in itertools.pairwise(cuts[axis])), default=1) for axis in axes.own)
    out = tiled_map(
        renumber, labels, crop, 0, axes=axes.own, each=axes.each, edge="clip", dtype=dtype, pass_tile=True,
        memory_limit=memory_limit, meta=meta,
    )  # fmt: skip
    if options.get("ome") and "pyramid" not in options:
        options["pyramid"] = "nearest"  # it would be the mean where the labels had this dtype already
    with place_of(store) as place:
        written = to_zarr(out, place, **run, **options)
        return written[...] if store is None else written
