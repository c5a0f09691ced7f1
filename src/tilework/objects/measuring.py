"""`measure_labels`: a table of the objects of a label image, block by block.

1. Each block gives rows of facts about the parts of objects in it, and rows of one object add up: bounding
   box, area, centroid, first sample, and what adds up to the bit of intensities.
2. What does not add up is measured from an object's own box. Objects whose boxes lie together are read
   together: those with their centres in one block.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework._checks import brief, flag, of_type, warn
from tilework._types import Array
from tilework.errors import GridError, MemoryBudgetError, TilingError, TilingWarning
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import run
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.formats.meta import ImageMeta
from tilework.graph.build import open_known
from tilework.labels.rows import Rows
from tilework.labels.runs import check_ids
from tilework.objects.axes import ObjectAxes
from tilework.objects.boxes import blocks_of, cuts_of, groups_of, size_of
from tilework.objects.properties import (
    ADDED,
    BoxProperties,
    Columns,
    Facts,
    PartFacts,
    Wanted,
    from_facts,
    from_rows,
)
from tilework.objects.reading import BoxJob
from tilework.objects.table import Table, check_path
from tilework.plan.arguments import memory_bytes
from tilework.source.base import ChannelSource, Source
from tilework.source.opening import Image, open_source

__all__ = ["How", "check_measures", "measure_labels", "measured", "open_images", "property_columns"]

# Most samples that a task reads, unless a storage chunk or the box of one object has more: enough that the
# overhead of a task does not count, and few enough that tasks are many.
MOST_SAMPLES, LEAST_SAMPLES = 2**24, 2**18
# Tasks for each thread, where the image has that many samples.
TASKS = 4
# Bytes per sample, besides those of the images, while a part is turned into runs and these into facts.
WORK = 48


@dataclass(frozen=True, slots=True)
class How:
    """How tasks run."""

    where: Where
    memory: int
    """Memory of a process, bytes."""
    progress: Progress = False

    @classmethod
    def of(cls, where: Where, memory_limit: int | str | None, progress: Progress) -> How:
        """Return how tasks run; without a limit, in the memory of the workers."""
        return cls(where, where.memory if memory_limit is None else memory_bytes(memory_limit), progress)

    def most(self, sources: Sequence[Source]) -> int:
        """Return how many samples a task should read at most."""
        room = self.memory // (self.where.threads * sample_bytes(sources))
        share = math.prod(sources[0].shape) // (TASKS * self.where.at_a_time)
        return max(1, min(room, MOST_SAMPLES, max(share, LEAST_SAMPLES)))

    def run(self, job: BoxJob) -> list[Any]:
        """Return the results of a job."""
        run([job], self.where, progress=self.progress, title=job.title)
        found, job.found = job.found, []
        return found


def sample_bytes(sources: Sequence[Source]) -> int:
    return WORK + sum(source.dtype.itemsize for source in sources)


def measure_labels(
    labels: Image,
    intensity: Image | Mapping[str, Image] | None = None,
    properties: Any = (),
    *,
    table: str | os.PathLike[str] | None = None,
    each: int | str | Sequence[int | str] = (),
    meta: ImageMeta | None = None,
    spacing: Sequence[float] | str | None = None,
    overwrite: bool = False,
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    client: Any = None,
    scheduler: Any = None,
) -> Table:
    """Return a table of the objects of a label image, which is read block by block.

    An object is all samples of one id, whether connected or not; 0 is the background. The table is that of
    the whole image, wherever blocks cut objects.

    Parameters
    ----------
    labels : array, path or URL
        Integers that are not negative: anything that `tiled_map` takes, such as a Zarr array, a dask array,
        a lazy result, or the labels of an OME-Zarr image, ``tw.open_image(path, label="cells")``.
    intensity : array, path or URL, or dict of them by name, optional
        Images of the same shape whose values are measured. An image with one more axis, such as channels, is
        measured along it: columns end in the names of channels, or 0, 1...
    properties : str, callable, or sequence of them
        Names of `skimage.measure.regionprops_table`, "intensity_sum", and functions of the mask of an object,
        or of its mask and intensities, as in ``extra_properties`` there.
    table : path, optional
        Also write the table into this file, ``.csv`` or ``.parquet``.
    each : int, str or sequence of them
        Numbers or names of axes, such as time or channel, whose every index has objects of its own. By
        default objects extend along all axes.
    meta : ImageMeta, optional
        What the samples mean. Default: what the labels say of themselves.
    spacing : sequence of float or "meta", optional
        Distance of neighbouring samples along each axis of the objects, as `regionprops_table` takes it for
        ``properties``; "meta": the scale of the axes. All other columns stay as they are.
    overwrite : bool
        Whether a file that is there may be replaced.
    retries : int
        Further attempts at a task that fails.
    progress : bool, "auto" or callable
        As in `to_zarr`; it counts blocks, then groups of objects.
    memory_limit : int or str, bytes per process, optional
        Default: the limit of the cluster's workers, or half the memory of this machine.
    client : distributed.Client, optional
        Client of the cluster to run on. Default: the active client, else dask's scheduler.
    scheduler : str or callable, optional
        Another scheduler of dask: "threads", "processes", "synchronous".

    Returns
    -------
    Table
        One row per object, in the order of the ``each`` index and id, with these columns:

        * the index along each axis in ``each``, under its name, or "axis_0";
        * ``label``, the id; ``bbox-0``..., first samples, then one past the last ones; ``area``, samples;
          ``centroid-0``..., samples: as `skimage.measure.regionprops_table` names and computes them;
        * ``first``, the first sample, as a position in the raveled axes of the objects;
        * where the axes have a scale or unit, ``bbox_world-x-min``, ``bbox_world-x-max``,
          ``centroid_world-x`` and ``area_world`` in these units, which are in ``table.units``;
        * the properties. With a dict of images, columns end in the name of their image.

    Raises
    ------
    TilingError
        If the labels are not integers, or negative; for images of another shape, and unknown properties; if
        there is a file and ``overwrite`` is false.
    MemoryBudgetError
        If the box of an object does not fit into memory, for a property that needs it.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    Most properties are computed by scikit-image from an object's own box, which is read once more; of a lazy
    result it is computed once more, so write it first. "num_pixels", "area_bbox", "extent", "centroid_local",
    "equivalent_diameter_area", minimum and maximum, and mean and sum of images of bool and of integers up to
    32 bits, need no second reading, and so work for objects of any size. They equal those of scikit-image to
    the bit, as long as sums are below 2**53.

    Examples
    --------
    >>> labels = np.array([[1, 1, 0, 0], [1, 0, 0, 5]])
    >>> measure_labels(labels, labels * 10, "intensity_mean", progress=False)
    <Table: 2 rows, 10 columns>
    label  bbox-0  bbox-1  bbox-2  bbox-3  area  centroid-0  ...  intensity_mean
        1       0       0       2       2     3    0.333333  ...              10
        5       1       3       2       4     1           1  ...              50
    """
    overwrite = flag("overwrite", overwrite)
    check_progress(progress)
    if meta is not None:
        of_type("meta", meta, ImageMeta, "a tw.ImageMeta")
    if table is not None:
        check_path(table, overwrite=overwrite)
    where = Where.find(scheduler, client, retries=retries)
    how = How.of(where, memory_limit, progress)
    found = measured(labels, intensity, properties, each, meta, how, spacing)
    if table is not None:
        found.write(table, overwrite=overwrite)
    return found


def measured(
    labels: Any,
    intensity: Any,
    properties: Any,
    each: Any,
    meta: ImageMeta | None,
    how: How,
    spacing: Any = None,
) -> Table:
    """Return the table of `measure_labels`."""
    source, images = open_images(labels, intensity)
    if meta is not None:
        meta.check("labels", source.shape)
        source = replace(source, meta=meta)
    axes = ObjectAxes.of(source, each, meta)
    _warn_of_restarts(source, axes)
    wanted = Wanted.of(properties, images, axes, spacing)
    with outside_of_the_pool(how.where.client):
        facts = _facts(source, images, axes, wanted, how)
        more = property_columns(facts, source, images, axes, wanted, how)
    return axes.table(facts.rows, more)


def check_measures(
    labels: Any, intensity: Any, properties: Any, spacing: Any, each: Any, meta: ImageMeta | None
) -> None:
    """Raise unless `measure_labels` takes these arguments."""
    source, images = open_images(labels, intensity)
    Wanted.of(properties, images, ObjectAxes.of(source, each, meta), spacing)


def open_images(labels: Any, intensity: Any) -> tuple[Source, dict[str, Source]]:
    """Return the sources of labels and of intensity images by name.

    Raises
    ------
    TilingError
        If the labels are not integers, an image does not hold numbers, or has another shape.
    """
    source = open_known(labels)
    check_ids(np.empty(0, source.dtype), "labels holds")
    if intensity is None:
        return source, {}
    given = intensity if isinstance(intensity, Mapping) else {"": intensity}
    images = {}
    for name, image in given.items():
        what = f"intensity[{name!r}]" if isinstance(intensity, Mapping) else "intensity"
        if not isinstance(name, str):
            raise TypeError(f"the name of an intensity image must be text; got {brief(name)}.")
        images[name] = open_known(image)
        if images[name].dtype.kind not in "biuf":
            raise TilingError(f"{what} must hold numbers; got dtype {images[name].dtype}.")
        axes, own = images[name].names, source.names
        if axes and own and axes != own and set(axes) == set(own):
            raise GridError(f"{what} must have the axes of the labels in their order, {own}; got {axes}.")
        if images[name].shape != source.shape:
            channels = _channels(images.pop(name), source, name)
            if channels is None:
                raise GridError(
                    f"{what} must have the shape of the labels, {source.shape}, or clearly one more axis, "
                    f"that of its channels; got {open_source(image).shape}."
                )
            if again := sorted({*channels} & {*images, *given}):
                raise TilingError(f"two intensity images are called {again[0]!r}; rename one.")
            images |= channels
    return source, images


def _warn_of_restarts(source: Source, axes: ObjectAxes) -> None:
    """Warn of labels that tilework numbered for each index of an axis along which objects extend here."""
    made: Any = getattr(source.handle, "attrs", None)
    for name in ("tilework", "fingerprint"):
        made = made.get(name) if isinstance(made, Mapping) else None
    if not isinstance(made, Mapping) or not any(str(name).endswith(" labels") for name in made):
        return
    alone = [a for a in range(int(made.get("each axes", 0))) if a not in axes.each]
    if alone:
        names = [source.names[a] if source.names else a for a in alone]
        warn(
            f"the ids of these labels restart for each index of axis {', '.join(map(str, names))}, so one id "
            f"names several objects, which are taken as one. Give each={tuple(names)}.",
            TilingWarning,
        )


def _channels(image: Source, labels: Source, name: str) -> dict[str, Source] | None:
    """Return the channels of an image by name; None unless one axis of it is clearly that of channels."""
    ndim, meta = len(image.shape), image.meta
    fits = [a for a in range(ndim) if (*image.shape[:a], *image.shape[a + 1 :]) == labels.shape]
    if image.names and labels.names:
        fits = [a for a in fits if (*image.names[:a], *image.names[a + 1 :]) == labels.names]
    own = None if meta is None else meta.channel_axis
    if own in fits:
        fits = [a for a in fits if a == own]
    if len(fits) != 1:
        return None
    axis = fits[0]
    called = (meta and meta.channel_names) if axis == own else None
    if not called or len(set(called)) < image.shape[axis] or not all(called):
        called = tuple(map(str, range(image.shape[axis])))
    found: dict[str, Source] = {}
    for k, channel in enumerate(called):
        at = (slice(None),) * axis + (k,)
        one = open_source(image.handle[at]) if image.given else ChannelSource.of(image, axis, k)
        found[f"{name}-{channel}" if name else channel] = one
    return found


def _facts(source: Source, images: Mapping[str, Source], axes: ObjectAxes, wanted: Wanted, how: How) -> Facts:
    """Return the facts of all objects."""
    sources = list(images.values())
    kinds = tuple(dict.fromkeys((ADDED[name], k) for name, k in wanted.added))
    numbers = tuple(dict.fromkeys(k for _, k in kinds))
    read = [source, *(sources[k] for k in numbers)]
    calls = [(box, None) for box in blocks_of(cuts_of(source, axes.own, how.most(read)))]
    job = BoxJob("measure-labels", read, PartFacts(axes, kinds, numbers), calls, how.where)
    none = Facts(_no_rows(axes), {(kind, k): np.zeros(0, _dtype(kind, sources[k])) for kind, k in kinds})
    parts = how.run(job)
    parts.append(none)
    return Facts.merged(parts)


def _no_rows(axes: ObjectAxes) -> Rows:
    none, many = np.zeros(0, np.int64), np.zeros((0, len(axes.own)), np.int64)
    return Rows(none, none, none, none, many, many, many)


def _dtype(kind: str, source: Source) -> np.dtype[Any]:
    return np.dtype(np.int64) if kind == "sum" else source.dtype


def property_columns(
    facts: Facts, source: Source, images: Mapping[str, Source], axes: ObjectAxes, wanted: Wanted, how: How
) -> dict[str, Array]:
    """Return the columns of all properties, one value per row, in the order in which these were asked for.

    Parameters
    ----------
    facts : Facts
        One row per object, as `Rows.merged` returns them, with what ``wanted`` adds up.
    source : Source
        The labels, with the ids of the rows.
    images : mapping of str to Source
        Intensity images by name.
    axes : ObjectAxes
    wanted : Wanted
    how : How

    Raises
    ------
    MemoryBudgetError
        If the box of an object does not fit into memory.
    """
    found: Columns = {}
    for name in wanted.rows:
        found |= {(None, column): values for column, values in from_rows(name, facts.rows)}
    for name, k in wanted.added:
        found[k, name] = from_facts(name, facts.rows, facts.more[ADDED[name], k])
    if wanted.by_box:
        found |= _from_boxes(facts.rows, source, images, axes, wanted, how)
    return {
        wanted.column(column, k): values
        for name, k in wanted.order
        for (number, column), values in found.items()
        if number == k and column.partition("-")[0] == name
    }


def _from_boxes(
    rows: Rows, source: Source, images: Mapping[str, Source], axes: ObjectAxes, wanted: Wanted, how: How
) -> Columns:
    """Return the columns of the properties that are found from the boxes of objects."""
    function = BoxProperties(axes, wanted)
    read = [source, *images.values()]
    most = how.most(read)
    cuts = cuts_of(source, axes.own, most)
    calls, largest = [], 0
    for chosen in groups_of(rows, [cuts[a] for a in axes.own], most):
        chosen.sort()  # rows of one index are in the order of ids
        largest = max(largest, math.prod(size_of(rows, chosen)))
        low, high = rows.low[chosen].min(0).tolist(), rows.high[chosen].max(0).tolist()
        calls.append((axes.box(int(rows.index[chosen[0]]), low, high), rows.ids[chosen]))
    if not calls:
        return function.of_nothing([s.dtype for s in read])
    threads = _threads(largest * sample_bytes(read), rows, how)
    parts = how.run(BoxJob("measure-objects", read, function, calls, how.where, threads))
    index, ids = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.lexsort((ids, index))
    return {name: np.concatenate([part[2][name] for part in parts])[order] for name in parts[0][2]}


def _threads(need: int, rows: Rows, how: How) -> int | None:
    """Return how many boxes of ``need`` bytes a process may hold; None: one for each thread."""
    if need * how.where.threads <= how.memory:
        return None
    counts = how.where.fewer()
    fits = [n for n in counts if n * need <= how.memory]
    if fits:
        return fits[0]
    largest = int((rows.high - rows.low).prod(1).argmax())
    box = "x".join(map(str, (rows.high - rows.low)[largest].tolist()))
    raise MemoryBudgetError(
        f"the box of object {rows.ids[largest]}, {box} samples, takes about {need:.3g} bytes; the memory of "
        f"a process is {how.memory:.3g}. Give memory_limit={need * min(counts)}, or leave out the properties "
        "that do not add up; the notes of measure_labels list those that do."
    )
