r"""Edges between the pieces of neighbouring blocks: which ids touch across the faces, edges and corners.

Blocks lie in a grid that cuts each axis wherever it likes. Two samples are neighbours as in
`scipy.ndimage.generate_binary_structure`: their positions differ by at most one along each axis, and along at
most ``connectivity`` axes. A pair of neighbours in two blocks is looked at once, by the block that is later
in raster order. Seen from there, the other block lies one step away, and the first axis along which it does
is a step back::

    connectivity 2:   \ | /       the block # looks at four of its eight neighbours,
                      - #         and reads one sample more than its box on the sides that these share with it
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from tilework._types import Array, Index, Ints, Span

__all__ = ["around", "pairs_of", "touching"]


def around(
    box: Sequence[Span], shape: Sequence[int], connectivity: int = 1, n_each: int = 0
) -> tuple[Span, ...]:
    """Return the box that a block reads to see all neighbours of its samples in earlier blocks.

    Parameters
    ----------
    box : sequence of (start, stop), samples
        The block; ``each`` axes first.
    shape : sequence of int, samples
        Extents of the image.
    connectivity : int
        Number of axes along which the positions of two neighbours differ, at most.
    n_each : int
        Number of ``each`` axes, along which no samples are neighbours.

    Examples
    --------
    >>> around([(10, 20), (10, 20)], (90, 90)), around([(10, 20), (10, 20)], (90, 90), 2)
    (((9, 20), (9, 20)), ((9, 20), (9, 21)))
    """
    return tuple(
        (max(a - (k >= n_each), 0), min(b + (k > n_each and connectivity > 1), n))
        for k, ((a, b), n) in enumerate(zip(box, shape, strict=True))
    )


def touching(
    labels: Array, box: Sequence[Span], shape: Sequence[int], connectivity: int = 1, n_each: int = 0
) -> Iterator[tuple[Index, Ints]]:
    """Yield which objects of a block touch which of its earlier neighbours, one neighbour at a time.

    Parameters
    ----------
    labels : int array
        What is in ``around(box, ...)``; 0 is the background.
    box, shape, connectivity, n_each
        As for `around`.

    Yields
    ------
    step : tuple of int
        Where the neighbour is in the grid of blocks, from this block; all axes.
    table : int array of shape (k, 3)
        The index of the ``each`` axes, raveled in the image, the id here and the id there; each row once, in
        ascending order.

    Examples
    --------
    >>> labels = np.array([[0, 3, 3], [7, 0, 0]])
    >>> list(touching(labels, [(1, 2), (0, 3)], (2, 3), connectivity=1))
    []
    >>> [(step, table.tolist()) for step, table in touching(labels, [(1, 2), (0, 3)], (2, 3), connectivity=2)]
    [((-1, 0), [[0, 7, 3]])]
    """
    read = around(box, shape, connectivity, n_each)
    # The block in what was read, along the axes that are tiled.
    spans = [(a - low, b - low) for (a, b), (low, _) in zip(box, read, strict=True)][n_each:]
    ends = labels.shape[n_each:]
    index = _index(box[:n_each], shape[:n_each]).reshape(labels.shape[:n_each] + (1,) * len(spans))
    still = (0,) * len(spans)
    for step in itertools.product((-1, 0, 1), repeat=len(spans)):
        there = all(
            s == 0 or (a > 0 if s < 0 else b < n) for s, (a, b), n in zip(step, spans, ends, strict=True)
        )
        if step >= still or np.count_nonzero(step) > connectivity or not there:
            continue
        tables = []
        # Across the cuts neighbours differ as the blocks do, and along the other axes in any way.
        for change in itertools.product(*((s,) if s else (-1, 0, 1) for s in step)):
            if np.count_nonzero(change) <= connectivity:
                here = [slice(None)] * n_each + [*map(_side, spans, step, change)]
                beyond = [slice(None)] * n_each + [
                    slice(s.start + d, s.stop + d) for s, d in zip(here[n_each:], change, strict=True)
                ]
                tables.append(_both(labels[tuple(here)], labels[tuple(beyond)], index))
        table = _unique(np.concatenate(tables))
        if len(table):
            yield (0,) * n_each + step, table


def pairs_of(table: Ints, here: tuple[Ints, Array], there: tuple[Ints, Array]) -> Ints:
    """Return a table of `touching` as pairs of rows, of the block and of the neighbour; shape (k, 2).

    ``here`` and ``there`` are the columns ``index`` and ``ids`` of the rows of these two.
    """
    return np.stack(
        (_places(table[:, 0], table[:, 1], *here), _places(table[:, 0], table[:, 2], *there)), axis=1
    )


def _places(index: Ints, ids: Array, in_index: Ints, in_ids: Array) -> Ints:
    """Return the row of each pair of index and id, among rows in ascending order that have all of them."""
    known = np.unique(in_ids)
    # Index and id in one number, as small as can be: ids may have 63 bits themselves.
    rows, asked = (i * len(known) + np.searchsorted(known, j) for i, j in ((in_index, in_ids), (index, ids)))
    return np.searchsorted(rows, asked)


def _side(span: Span, step: int, change: int) -> slice:
    """Return the samples of a block that have a neighbour a step or a change away along an axis."""
    start, stop = span
    if step:
        return slice(start, start + 1) if step < 0 else slice(stop - 1, stop)
    return slice(start + (change < 0), stop - (change > 0))


def _index(box: Sequence[Span], shape: Sequence[int]) -> Ints:
    """Return the raveled index of each place of a box."""
    places = np.meshgrid(*(np.arange(a, b) for a, b in box), indexing="ij")
    return np.ravel_multi_index(places, tuple(shape)) if box else np.zeros((), np.int64)


def _both(here: Array, there: Array, index: Ints) -> Ints:
    """Return the rows (index, id, id) of the places where both have an id."""
    on = (here != 0) & (there != 0)
    at = np.broadcast_to(index, on.shape)[on]
    table = np.stack((at, here[on].astype(np.int64), there[on].astype(np.int64)), axis=1)
    return _changes(table)


def _changes(table: Ints) -> Ints:
    """Return the rows that differ from the one before."""
    if len(table) < 2:
        return table
    return table[np.concatenate(([True], (table[1:] != table[:-1]).any(axis=1)))]


def _unique(table: Ints) -> Ints:
    return _changes(table[np.lexsort(table.T[::-1])])
