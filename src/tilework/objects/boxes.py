"""Where tasks read: blocks that part an image, and groups of objects whose boxes lie together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tilework._types import Index, Ints, Span
from tilework.labels.rows import Rows
from tilework.source.base import BlockSource, Source

__all__ = ["Cuts", "blocks_of", "cuts_of", "groups_of", "size_of"]

Cuts = list[list[int]]
"""Per axis, the first sample of each block, then the extent."""


def cuts_of(source: Source, grown: Sequence[int], most: int) -> Cuts:
    """Return where blocks of at most ``most`` samples begin; a storage chunk is never cut.

    Parameters
    ----------
    source : Source
        Its storage chunks, or the blocks of a dask array, lie in one block each.
    grown : sequence of int
        Axes along which a block should be long: those of the objects. Others grow when these are whole.
    most : int
    """
    units = [list(u) for u in _units(source)]
    lengths = [max((b - a for a, b in itertools.pairwise(u)), default=1) for u in units]
    steps = [1] * len(units)

    def extent(axis: int) -> int:
        return min(source.shape[axis], steps[axis] * lengths[axis])

    for axes in (list(grown), [a for a in range(len(units)) if a not in grown]):
        while axes:
            # Compact blocks cut the fewest objects.
            axis = min(axes, key=extent)
            size = math.prod(map(extent, range(len(units))))
            if extent(axis) >= source.shape[axis] or 2 * size > most:
                axes.remove(axis)
            else:
                steps[axis] *= 2
    return [[*u[:-1:step], u[-1]] for u, step in zip(units, steps, strict=True)]


def _units(source: Source) -> Iterator[Sequence[int]]:
    """Yield the first sample of each part that is decoded or computed as a whole, then the extent."""
    if isinstance(source, BlockSource):
        for offsets in source.offsets:
            yield sorted(set(offsets)) if offsets[-1] else [0, 0]
        return
    chunks = source.chunks or (1,) * len(source.shape)
    for n, c in zip(source.shape, chunks, strict=True):
        yield [*range(0, n, c), n] if n else [0, 0]


def blocks_of(cuts: Cuts) -> Iterator[tuple[Span, ...]]:
    """Yield the boxes of all blocks that hold samples, in raster order."""
    spans = [[(a, b) for a, b in itertools.pairwise(c) if b > a] for c in cuts]
    return itertools.product(*spans)


def groups_of(rows: Rows, cuts: Sequence[Sequence[int]], most: int) -> Iterator[Ints]:
    """Yield the numbers of objects that are read together; each object is in one group.

    These are the objects of one index whose boxes have their centres in one block, in parts whose common box
    has at most ``most`` samples. An object with a larger box is a group.

    Parameters
    ----------
    rows : Rows
        One row per object.
    cuts : sequence of int sequences
        Blocks along the axes of the objects.
    most : int
    """
    if not len(rows):
        return
    centres = (rows.low + rows.high) // 2
    cells = [np.searchsorted(c, centres[:, k], side="right") for k, c in enumerate(cuts)]
    keys = [*reversed(cells), rows.index]
    order = np.lexsort(keys)
    new = np.zeros(len(rows), bool)
    new[0] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    for part in np.split(order, np.flatnonzero(new)[1:]):
        yield from _parts(rows, centres, part, most)


def _parts(rows: Rows, centres: Ints, chosen: Ints, most: int) -> Iterator[Ints]:
    waiting = [chosen]
    while waiting:
        part = waiting.pop()
        if len(part) == 1 or math.prod(size_of(rows, part)) <= most:
            yield part
            continue
        axis = int(np.ptp(centres[part], axis=0).argmax())
        by_place = part[np.argsort(centres[part, axis], kind="stable")]
        waiting += [by_place[len(part) // 2 :], by_place[: len(part) // 2]]


def size_of(rows: Rows, chosen: Ints) -> Index:
    """Return the extents of the common box of objects, samples."""
    return tuple((rows.high[chosen].max(0) - rows.low[chosen].min(0)).tolist())
