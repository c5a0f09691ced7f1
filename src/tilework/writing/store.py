"""Writing into Zarr: every write unit (shard, else chunk) whole, once, by one task, and resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilework._checks import flag
from tilework.errors import TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import delayed, run
from tilework.execution.progress import Progress, bar, check_progress, stages
from tilework.execution.where import Where
from tilework.formats.meta import ImageMeta
from tilework.writing.image import AskedImage
from tilework.writing.measured import AskedTable
from tilework.writing.preparing import Asked, prepare

__all__ = ["to_zarr"]


def to_zarr(
    out: Any,
    store: Any,
    *,
    path: str | None = None,
    chunks: Any = None,
    shards: Any = None,
    overwrite: bool = False,
    resume: bool = True,
    version: str | None = None,
    accept: Sequence[str] = (),
    on_error: str | Callable[[Any, Exception], Any] = "raise",
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    lanes: int | None = None,
    client: Any = None,
    scheduler: Any = None,
    resources: Mapping[str, float] | None = None,
    priority: int = 0,
    compute: bool = True,
    ome: bool | str = False,
    levels: int | str | None = None,
    pyramid: str | None = None,
    label_name: str | None = None,
    meta: ImageMeta | None = None,
    table: Any = None,
    properties: Any = (),
    intensity: Any = None,
    spacing: Any = None,
    **options: Any,
) -> Any:
    """Compute a result into Zarr; return the array or group that holds it.

    A write unit is a shard, or a chunk of an array without shards. A result of `tiled_map` gets a new plan,
    so that each write unit is written whole, once, by the task that computed it. The chunks of any other dask
    array must be whole write units. Finished units are marked in the store; a second call computes only the
    others.

    Parameters
    ----------
    out : dask array, or the tuple or dict of one `tiled_map`
        Several outputs are written in one pass: the function runs once per tile. A DataArray or Dataset is
        written into a group with its coordinates and attributes, so that `xarray.open_zarr` returns it.
    store : path, URL, Zarr store, zarr.Group, zarr.Array, or array
        An array must have the shape and dtype of the result and keeps its layout. Arrays as `compute` takes
        them, of numpy and h5py for example, work too, with threads; they cannot be resumed.
    path : str, optional
        Path in the store.
    chunks, shards : int, tuple of int or dict by name, samples per axis of the result, optional
        Shape of the chunks and shards. A dict by name of axis may leave axes out; a dict by key is for
        several outputs. Default: those of an existing array; else the chunks of the source if they divide the
        blocks; else chunks of about 4 MB.
    overwrite : bool
        Whether existing data may be deleted.
    resume : bool
        Whether to resume the same result from an earlier call.
    version : str, optional
        Identifies the function in place of its code. Change it when the function changes.
    accept : sequence of str
        Names of parts of the fingerprint, as the error about a changed result gives them. The result is
        resumed although they changed, and its record lists what was accepted.
    on_error : "raise", "fill", or callable
        Treatment of a tile that cannot be read, or on which ``skip`` or the function raises. "raise" ends the
        run with an error that names the tile. "fill" leaves the tile out: its samples are ``fill_value``
        where no other tile has weight, the units that it touches are not marked as done, and a warning and
        the attributes list it. A callable gets the tile and the exception; it may raise, or return to leave
        the tile out.
    retries : int
        Further attempts at a tile that fails, or with ``on_error="raise"`` at its task, whose tiles share
        them.
    progress : bool, "auto" or callable
        Whether to show a bar that counts tiles. "auto" shows it in a terminal and in a notebook, and
        otherwise logs a line a minute to the logger "tilework". A callable gets the number of finished tiles
        and the total.
    memory_limit : int or str, bytes per process, optional
        Default: the limit of the cluster's workers, or half the memory of this machine.
    lanes : int, optional
        Number of threads that read, call and write at the same time, on dask's threads in this process.
        Default: as many as dask starts; for a network or a `load_once` function at least eight, and at least
        four for each device, as far as memory allows. Other schedulers have workers of their own.
    client : distributed.Client, optional
        Client of the cluster to run on. Default: the active client, else dask's scheduler.
    scheduler : str or callable, optional
        Another scheduler of dask: "threads", "processes", "synchronous".
    resources : dict, optional
        Resources that a worker of a cluster must offer to a task that calls the function: ``{"GPU": 1}``.
    priority : int
        Priority of the tasks on a cluster; higher runs sooner.
    compute : bool
        False: return a `dask.delayed.Delayed` that writes in one graph when it is computed. Its tasks make
        the retries, and the last one warns of failed tiles, in its process. ``client``, ``scheduler``,
        ``resources``, ``priority``, ``lanes`` and ``progress`` are refused: give them where it is computed.
        Labels that are numbered can be computed once.
    ome : bool, "0.5" or "0.4"
        Write an OME-Zarr image of this version: a group with the result as array "0", coarser levels as "1",
        "2"..., and attributes that say what they mean. True: version 0.5, or 0.4 in a hierarchy of Zarr
        format 2.
    levels : "auto" or int, optional
        Number of levels of the image, 1 for the result alone. "auto" halves until no axis of a level has two
        chunks. It is the default; that of labels is the number of levels of their image. Extents are rounded
        down, and of the axes of space those are halved whose samples are at most twice as long as the
        shortest.
    pyramid : "mean", "nearest", "mode" or "max", optional
        How a sample of a coarser level is made from those that it covers. Default: "mean"; "nearest", the
        first of them, for bool, the result of an argmax, labels, and what may be labels: integers of 32 and
        64 bits, unless the image has them too.
    label_name : str, optional
        Write the result into ``labels/`` of the OME-Zarr image at ``store``, in its version and with the
        scale of its level of these extents, under this name. Nothing else of the image is touched, but the
        list of its labels.
    meta : ImageMeta, optional
        What the samples of the result mean; default: what `image_meta` says of it.
    table : path or bool, optional
        Also write a table of the objects of labels, ``.csv`` or ``.parquet``, as `measure_labels` makes it.
        Labels of ``labels="own"`` have a further column ``cut``: whether the crop of its tile cut the object.
        True: a ``.csv`` file beside the store, with its name.
    properties, intensity, spacing
        Further columns of the table, as in `measure_labels`.
    **options
        Arguments of `zarr.create_array`: compressors, fill_value, dimension_names, attributes, zarr_format...

    Returns
    -------
    zarr.Array, shape and dtype of the result, chunks as above
        Of a DataArray, the array in its group; of an OME-Zarr image, that of level 0. For several outputs a
        `zarr.Group` of such arrays or images, by key or "0", "1"... The array that was given, if ``store`` is
        one. With ``compute=False`` a `Delayed`.

    Raises
    ------
    AlignmentError
        If the blocks of the result cannot be whole write units, or an existing array has other chunks.
    MemoryBudgetError
        If no blocks fit into memory. The message names a sufficient limit.
    TilingError
        If the store holds other data, or a result of another call, and ``overwrite`` is false; if it holds
        the source; if ``out`` is empty or has members of different calls.
    TypeError
        If ``out`` is not a dask array, or a flag is not True or False.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.negative, np.arange(100.0).reshape(10, 10), crop=6, overlap=1, dtype=float)
    >>> written = to_zarr(out, zarr.storage.MemoryStore(), chunks=(5, 5), progress=False)
    >>> written.chunks, float(written[9, 9])
    ((5, 5), -99.0)
    """
    overwrite, resume, compute = (
        flag("overwrite", overwrite),
        flag("resume", resume),
        flag("compute", compute),
    )
    check_progress(progress)
    where = Where.find(
        scheduler, client, retries=retries, resources=resources, priority=priority, lanes=lanes
    )
    if not compute:
        where = where.later(client=client, scheduler=scheduler, progress=progress)
    asked = Asked(
        path=path, chunks=chunks, shards=shards, overwrite=overwrite, resume=resume, version=version,
        accept=accept, on_error=on_error, memory_limit=memory_limit, options=options,
        image=AskedImage(ome=ome, levels=levels, pyramid=pyramid, label_name=label_name, meta=meta),
        table=AskedTable(table, properties, intensity, spacing),
    )  # fmt: skip
    if asked.table and not compute:
        raise TilingError("table= is made when all is written; with compute=False call measure_labels then.")
    with outside_of_the_pool(where.client if compute else None):
        job, writing = prepare(out, store, asked, where)
        if not compute:
            return delayed(job)
        try:
            with bar(progress, job.title) as show:
                parts = stages(show, writing.ahead)
                run([job], where, progress=next(parts), title=job.title)
                for more in writing.left():
                    run([more], where, progress=next(parts), title=more.title)
            result = writing.end()
        finally:
            writing.release()
        writing.measure(where, memory_limit, progress)
        return result
