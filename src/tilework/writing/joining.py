"""`merge_labels`: labels that were made block by block, joined into objects and numbered."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, Task, TaskRef

from tilework._checks import at_least, brief, flag, has, one_of, sequence, wholes
from tilework._types import Index
from tilework.errors import TilingError
from tilework.execution.calls import CallsJob
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import run
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.formats.meta import ImageMeta
from tilework.graph.build import bare, find_spec, plan_of
from tilework.identity.digests import digest
from tilework.labels.runs import check_ids
from tilework.plan.arguments import resolve_axes
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source
from tilework.source.opening import Image, open_source
from tilework.writing.fingerprint import UNKNOWN, Fingerprint, of_dask, of_source
from tilework.writing.image import AskedImage, has_places
from tilework.writing.jobs import ChunkJob
from tilework.writing.pieces import Pieces, number_pieces, part_of_result, survey
from tilework.writing.preparing import Asked, prepare
from tilework.writing.sink import block_name
from tilework.writing.store import to_zarr
from tilework.writing.tables import Tables
from tilework.writing.target import is_array
from tilework.writing.temporary import place_of

__all__ = ["merge_labels"]

# Samples of a task that renumbers, at most, unless one write unit has more.
AT_ONCE = 2**26


def merge_labels(
    labels: Image,
    store: Any = None,
    *,
    overlap: int = 0,
    connectivity: int = 1,
    rule: str = "touch",
    pieces: Any = None,
    each: Any = None,
    dtype: Any = "uint32",
    path: str | None = None,
    chunks: Any = None,
    shards: Any = None,
    overwrite: bool = False,
    resume: bool = True,
    version: str | None = None,
    retries: int = 0,
    progress: Progress = "auto",
    client: Any = None,
    scheduler: Any = None,
    priority: int = 0,
    ome: bool | str = False,
    levels: int | str | None = None,
    pyramid: str | None = None,
    label_name: str | None = None,
    meta: ImageMeta | None = None,
    **options: Any,
) -> Any:
    """Join labels that were made block by block into objects, and number these 1, 2, ...

    In each block ids are its own: the same id in two blocks means nothing. Two pieces are one object if a
    sample of one is a neighbour of a sample of the other across the cut between their blocks. If the blocks
    of a mask were labelled one by one, the result equals `scipy.ndimage.label` of the whole mask, to the bit,
    for objects of any size. Touching objects become one, so this is for connected components, vessels and
    tissue; ``Output(labels="own")`` keeps cells apart that touch.

    The image is read twice: once for the ids of each block and what they touch, and once to write the
    numbers. Both passes are resumed. Memory is that of a few blocks, and of the ids that lie at cuts.

    Parameters
    ----------
    labels : int array, path or URL
        The label image: anything that `tiled_map` takes. 0 is the background. A dask array is first written
        into a temporary folder, which workers must see.
    store : path, URL, Zarr store, zarr.Group or zarr.Array, optional
        Where the result is written; not the array that is read. Default: it is returned as an array of numpy.
    overlap : int, samples
        Only 0: an array has one label for each sample, so blocks of an array cannot overlap.
    connectivity : int
        Number of axes along which the positions of two neighbours may differ: 1 for samples that share a
        face, up to the number of axes, as in `scipy.ndimage.generate_binary_structure`. Blocks must have been
        labelled with the same one.
    rule : "touch"
        Which pieces are one object.
    pieces : int, tuple of int, tuple of tuples of int, samples per axis, or result of `tiled_map`, optional
        Extents of the blocks. A tuple for an axis lists the extent of each block along it. A result of
        `tiled_map`, or a plan, stands for the cores of its tiles. Default: the chunks of the array.
    each : axes, by number or name
        Axes along which nothing is joined, such as time. Numbers restart for each index. Default: those in
        ``each`` of the result that is given as ``pieces`` or as the labels, else none; ``()`` is none, too.
    dtype : dtype
        Integers for the numbers.
    path, chunks, shards, overwrite, resume, retries, progress, client, scheduler, priority
        As in `to_zarr`. Default chunks: those of the array, or the pieces.
    version : str, optional
        Identifies the labels where their store does not say whether they changed.
    ome, levels, pyramid, label_name, meta
        As in `to_zarr`: the result as an OME-Zarr image, or as labels of one.
    **options
        Arguments of `zarr.create_array`.

    Returns
    -------
    zarr.Array, shape of ``labels``; without ``store`` a numpy.ndarray

    Raises
    ------
    TilingError
        If a sample is negative, there are more objects than ``dtype`` holds, the store holds other data, or
        the labels change while they are read.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [2, 2, 0, 0]])
    >>> merge_labels(labels, pieces=2, progress=False).tolist()
    [[1, 1, 0, 2], [0, 0, 0, 2], [3, 3, 0, 0]]
    """
    overwrite, resume = flag("overwrite", overwrite), flag("resume", resume)
    check_progress(progress)
    image = AskedImage(ome=ome, levels=levels, pyramid=pyramid, label_name=label_name, meta=meta)
    _refuse(store, overlap, rule)
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        raise TypeError(f"dtype must be integers; got {kind}.")
    where = Where.find(scheduler, client, retries=retries, priority=priority)
    tables = Tables()
    with (
        outside_of_the_pool(where.client),
        _stored(labels, pieces, version, scheduler, client) as (stored, extents, version),
        place_of(store) as place,
    ):
        pieces = _pieces(stored, extents, each, connectivity, meta)
        key = _key(pieces, version)

        def rebuilt(unit: Index | None) -> Any:
            return _lazy(pieces, tables, kind, _extents(pieces, unit))

        own = pieces.source.meta
        # Labels of an image take places from it if they have none of their own.
        if meta is None and own is not None and (label_name is None or has_places(own)):
            image = replace(image, meta=own)
        asked = Asked(
            path=path, chunks=chunks, shards=shards, overwrite=overwrite, resume=resume, version=key,
            image=image, options=options, rebuilt=rebuilt,
        )  # fmt: skip
        job, writing = prepare(rebuilt(None), place, asked, where, reads=[pieces.source])
        try:
            if job.tiles:
                assert isinstance(job, ChunkJob)
                tables.target, tables.generation = job.destination.target, job.destination.generation
                first = _survey(pieces, tables, where.guard)
                run([first], where, progress=progress, title=first.title)
                number_pieces(pieces, tables, kind)
            run([job], where, progress=progress, title=job.title)
            for more in writing.left():
                run([more], where, progress=progress, title=more.title)
        finally:
            writing.release()
        if tables.target is not None:
            tables.delete()
        written = writing.end()
        return written[...] if store is None else written


# -- arguments ----------------------------------------------------------------------------------------------


def _refuse(store: Any, overlap: Any, rule: Any) -> None:
    if is_array(store) and not isinstance(store, zarr.Array):
        raise TypeError(f"store must be a place in Zarr, which keeps what is known; got {brief(store)}.")
    one_of("rule", rule, ("touch",))
    if at_least("overlap", overlap, 0):
        raise TilingError(
            f"overlap={overlap}: an array has one label for each sample, so the blocks of an array do not "
            "overlap. Cut each block to its own samples and merge with overlap=0, or let tiled_map label: "
            'Output(labels="own").'
        )


@contextmanager
def _stored(
    labels: Any, extents: Any, version: str | None, scheduler: Any, client: Any
) -> Iterator[tuple[Any, Any, str | None]]:
    """Yield labels that can be read more than once, the extents of their pieces, and what identifies them.

    A dask array is written into a folder that is deleted at the end. Its pieces are its chunks, or the cores
    of the tiles of a result of `tiled_map`.
    """
    lazy = bare(labels)
    if not has(lazy, "dask"):
        yield labels, extents, version
        return
    check_ids(np.zeros(0, lazy.dtype), "the label image holds")
    found = find_spec(lazy)
    if found is not None and found.output.stored is not None:
        raise TilingError(
            "labels of Output(labels=...) are numbered, or joined, by tw.to_zarr; call it instead."
        )
    trimmed = found is not None and found.output.kind == "trim"
    if extents is None:
        extents = lazy if trimmed else lazy.chunks
    units = tuple(math.gcd(*sizes[:-1]) or sizes[-1] for sizes in lazy.chunks)
    if not trimmed and any(16 * u < max(sizes) for u, sizes in zip(units, lazy.chunks, strict=True)):
        raise TilingError(
            f"the chunks of the dask array, {brief(lazy.chunks)}, have no common length; write it into Zarr, "
            "and give the path and pieces=."
        )
    with place_of(None) as place:
        chunks = None if trimmed else units
        to_zarr(lazy, place, chunks=chunks, progress=False, scheduler=scheduler, client=client)
        yield place, extents, f"dask {_text(of_dask(lazy))}" if version is None else version


def _pieces(labels: Any, extents: Any, each: Any, connectivity: Any, meta: ImageMeta | None) -> Pieces:
    """Return the blocks of a label image, whose axes have the names of ``meta`` if it is given."""
    source = open_source(labels)
    check_ids(np.zeros(0, source.dtype), "the label image holds")
    if 0 in source.shape:
        raise TilingError(f"the label image has no samples: its shape is {source.shape}.")
    if meta is not None:
        meta.check("the label image", source.shape)
    named = source if meta is None else replace(source, meta=meta)
    cuts, plan = _cuts(source, extents), _plan_of(extents)
    if each is None:
        each = () if plan is None else range(plan.n_each)
    own, tiled = resolve_axes(named, None, each, None)
    most = at_least("connectivity", connectivity, 1)
    if most > len(tiled):
        raise TilingError(f"connectivity must be 1 to {len(tiled)}, the number of axes; got {connectivity}.")
    order = own + tiled
    return Pieces(
        source=source, order=order, n_each=len(own), cuts=tuple(cuts[axis] for axis in order),
        connectivity=most,
    )  # fmt: skip


def _cuts(source: Source, extents: Any) -> list[Index]:
    """Return the first sample of each block, then the extent, per axis of the source."""
    ndim, given = len(source.shape), extents
    if extents is None:
        if source.chunks is None:
            raise TilingError("the array has no chunks; give pieces=, the extents of the labelled blocks.")
        if getattr(source.handle, "shards", None) is not None:
            raise TilingError(
                f"the array has chunks {source.chunks} in shards {source.handle.shards}; give the extents of "
                "the blocks that were labelled one by one: pieces=."
            )
        extents = source.chunks
    if (plan := _plan_of(extents)) is not None:
        extents = _cores(extents, plan, ndim)
    if not sequence(extents):
        extents = (extents,) * ndim
    if len(extents) != ndim:
        raise TilingError(f"pieces needs an extent for each of {ndim} axes; got {brief(given)}.")
    cuts = []
    for axis, (one, n) in enumerate(zip(extents, source.shape, strict=True)):
        sizes = wholes("pieces", one)
        if not sequence(one) and sizes[0] > 0:
            cuts.append((*range(0, n, sizes[0]), n))
        elif min(sizes, default=0) > 0 and sum(sizes) == n:
            cuts.append((0, *itertools.accumulate(sizes)))
        else:
            raise TilingError(
                f"pieces: extents are positive, and those that are listed for an axis add up to its length; "
                f"got {brief(one)} for axis {axis} of {n} samples."
            )
    return cuts


def _plan_of(pieces: Any) -> TilePlan | None:
    """Return the plan whose tiles are the pieces; None for extents."""
    if isinstance(pieces, TilePlan):
        return pieces
    return plan_of(pieces) if has(pieces, "dask") else None


def _cores(out: Any, plan: TilePlan, ndim: int) -> tuple[list[int], ...]:
    """Return the extents of the cores of a result, or of a plan, per axis."""
    found = None if isinstance(out, TilePlan) else find_spec(out)
    if found is not None and (kind := found.spec.outputs[found.number].kind) != "trim":
        raise TilingError(
            f'pieces are the cores of tiles, which blend="trim" writes; the result has blend="{kind}".'
        )
    if len(plan.axes) != ndim:
        raise TilingError(
            f"pieces: the plan has {len(plan.axes)} axes, and the labels have {ndim}; give extents per axis."
        )
    return tuple([b - a for a, b in map(axis.core, range(len(axis)))] for axis in plan.axes)


def _key(pieces: Pieces, version: str | None) -> str:
    """Return a text that is equal for equal pieces of equal labels."""
    labels = _text(of_source(pieces.source, "labels")) if version is None else version
    return (
        f"labels {labels}, pieces {digest((pieces.order, pieces.cuts))}, "
        f"each {pieces.order[: pieces.n_each]}, connectivity {pieces.connectivity}"
    )


def _text(found: Fingerprint) -> str:
    """Return a text that is equal for equal parts, and for none that cannot be compared."""
    return uuid.uuid4().hex if UNKNOWN in found.values() else digest(dict(found))


def _extents(pieces: Pieces, unit: Index | None) -> Index:
    """Return what a task writes, samples per axis: whole write units, about one block.

    Without ``unit``, the default chunks.
    """
    source = pieces.source
    longest = dict(zip(pieces.order, (int(np.diff(c).max(initial=1)) for c in pieces.cuts), strict=True))
    usual = tuple(longest[axis] for axis in range(len(longest)))
    if unit is None:
        return usual if source.chunks is None else source.chunks
    found = tuple(max(1, n // u) * u for n, u in zip(usual, unit, strict=True))
    return found if math.prod(found) <= AT_ONCE else unit


# -- jobs ---------------------------------------------------------------------------------------------------


def _lazy(pieces: Pieces, tables: Tables, dtype: np.dtype[Any], extents: Index) -> Any:
    """Return the result as a dask array; its tasks need the numbers in the tables."""
    shape = pieces.source.shape
    chunks = tuple(
        tuple(min(c, n - a) for a in range(0, n, c)) or (0,) for n, c in zip(shape, extents, strict=True)
    )
    name = f"merge_labels-{uuid.uuid4().hex}"
    graph: dict[Any, Any] = {f"{name}-pieces": DataNode(f"{name}-pieces", (pieces, tables, dtype))}
    offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in chunks]
    for index in itertools.product(*(range(len(sizes)) for sizes in chunks)):
        spans = [(o[i], o[i + 1]) for o, i in zip(offsets, index, strict=True)]
        box = tuple(spans[axis] for axis in pieces.order)
        key = (name, *index)
        graph[key] = Task(key, part_of_result, TaskRef(f"{name}-pieces"), box, pieces.needs(box))
    return da.Array(HighLevelGraph.from_collections(name, graph), name, chunks, dtype, shape=shape)


def _survey(image: Pieces, tables: Tables, retries: int | None) -> CallsJob:
    """Return the job that finds the pieces of each block and what they touch, unless that is known."""
    done = tables.blocks("rows")
    blocks = [block for block in image.blocks() if block_name(block) not in done]
    calls = [(block, image.needs(image.around(block))) for block in blocks]
    return CallsJob("merge_labels: pieces", survey, lambda run: (image, tables, run), calls, retries)
