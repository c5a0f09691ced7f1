"""Which pieces of labels touch across the cuts between the cores of tiles: found by a task per block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tilework._types import Index, Ints, Span
from tilework.execution.calls import CallsJob
from tilework.function.bound import BoundOutput
from tilework.labels.faces import around, touching
from tilework.writing.sink import Sink, block_name
from tilework.writing.tables import Tables

__all__ = ["cuts_of", "edges_job"]


def cuts_of(output: BoundOutput) -> tuple[Ints, ...]:
    """Return the first sample of each core, then the extent, per axis of the array of an output."""
    extents = output.layout([w.extent for w in output.weights])
    cuts = [np.array([0, n]) for n in extents]
    for axis, weights in zip(output.grid_axes, output.weights, strict=True):
        starts, stops = weights.grid.supports(None)
        cuts[axis] = np.append(weights.scaled(starts), weights.scaled(stops[-1:]))
    return tuple(cuts)


class _Shared(NamedTuple):
    """What all tasks of a job need."""

    source: Sink
    """The array of pieces."""
    tables: Tables
    cuts: tuple[Ints, ...]
    n_each: int
    connectivity: int


def edges_job(
    title: str,
    chunks: tuple[tuple[int, ...], ...],
    source: Sink,
    tables: Tables,
    output: BoundOutput,
    retries: int | None,
) -> CallsJob:
    """Return the job that finds which pieces touch, one task for the cores that begin in a block.

    Parameters
    ----------
    title : str
        Title of the job, for messages.
    chunks : tuple of tuple of int, samples per axis of the array
        Lengths of the blocks.
    source : Sink
        The array of pieces.
    tables : Tables
        Where edges are kept; blocks whose edges are there are left out.
    output : BoundOutput
    retries : int or None
        As in `TileJob`.
    """
    done = tables.blocks("edges")
    offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in chunks]
    calls = [
        (index, [(o[b], o[b + 1]) for o, b in zip(offsets, index, strict=True)])
        for index in np.ndindex(*map(len, chunks))
        if block_name(index) not in done
    ]
    common = _Shared(source, tables, cuts_of(output), output.n_each, output.connectivity)
    return CallsJob(title, _find, lambda run: common, calls, retries)


def _find(shared: _Shared, index: Index, box: Sequence[Span]) -> None:
    """Keep which pieces of the cores that begin in a block touch pieces of earlier cores."""
    shape, n = shared.source.array.shape, shared.n_each
    cores = []
    for axis, (cuts, (a, b)) in enumerate(zip(shared.cuts, box, strict=True)):
        first, last = np.searchsorted(cuts[:-1], (a, b))
        # Nothing is joined along ``each`` axes, so their cuts do not matter.
        spans = [(int(cuts[i]), int(cuts[i + 1])) for i in range(first, last)]
        cores.append([(a, b)] if axis < n else spans)
    tables = [np.zeros((0, 3), np.int64)]
    if all(cores):
        hull = [(spans[0][0], spans[-1][1]) for spans in cores]
        read = around(hull, shape, shared.connectivity, n)
        labels = shared.source.array[tuple(slice(a, b) for a, b in read)]
        for core in itertools.product(*cores):
            own = around(core, shape, shared.connectivity, n)
            part = labels[tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(own, read, strict=True))]
            tables += [table for _, table in touching(part, core, shape, shared.connectivity, n)]
    edges = np.unique(np.concatenate(tables), axis=0)
    shared.tables.keep("edges", block_name(index), {"edges": edges})
