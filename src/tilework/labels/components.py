"""Pieces of objects in blocks to numbered objects: components of a graph, in raster order, in bounded memory.

A *node* is the piece of one object in one block. Nodes are numbered in the order of the blocks, and in each
block in the order of `Rows`: node = number of rows of the blocks before + row. An *edge* is a pair of nodes
that are pieces of one object. Most nodes have no edge, because most objects lie in one block. So components
are computed among the nodes that have one, and everything else is done a part of the table at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tilework._types import Array, Ints
from tilework.errors import TilingError
from tilework.labels.ordering import AT_ONCE, ascending

__all__ = ["numbered", "same"]

LARGEST = 2**32 - 1
"""The largest number of objects that are numbered in uint32."""


def same(keys: Array, folder: str | Path | None = None) -> Iterator[Ints]:
    """Yield the edges between nodes that have the same key: pieces of objects that have one id in all blocks.

    Parameters
    ----------
    keys : int array of shape (n,)
        The key of each node: its id, or index * (largest id + 1) + id where ids restart for each index of
        ``each`` axes.
    folder : path, optional
        Where a temporary file is for tables that are larger than memory.

    Examples
    --------
    >>> [edges.tolist() for edges in same(np.array([7, 8, 7]))]
    [[[0, 2]]]
    """
    for nodes, values in ascending(keys, folder=folder):
        equal = np.flatnonzero(values[1:] == values[:-1])
        if len(equal):
            yield np.stack((nodes[equal], nodes[equal + 1]), axis=1)


def numbered(
    first: Array,
    edges: Iterable[Array] = (),
    *,
    keys: Array | None = None,
    period: int | None = None,
    folder: str | Path | None = None,
) -> Array:
    """Return the number of the object of each node: 1, 2, ... in raster order of first samples.

    Memory is that of the nodes that have an edge, and of a part of the table; without ``folder``, of the
    result too. Edges need scipy.

    Parameters
    ----------
    first : int array of shape (n,)
        The first sample of each node, as a raveled position. No two objects have the same one.
    edges : iterable of int arrays of shape (k, 2)
        Pairs of nodes that belong to one object; in any order, and repeated or not.
    keys : int array of shape (n,), optional
        Instead of edges: nodes with the same key are one object. This needs no scipy.
    period : int, samples, optional
        Numbers restart at each multiple of this: for ``each`` axes, ``first`` is index * period + position.
    folder : path, optional
        Where temporary files are, and the result: a `numpy.memmap` of the file ``numbers.npy``. By default,
        the result is in memory.

    Returns
    -------
    array of shape (n,)
        uint32, or uint64 if there are 2**32 objects or more.

    Raises
    ------
    TilingError
        If an edge is no pair of nodes or lies between two indices, or two objects have one first sample.

    Examples
    --------
    Nodes 0 and 2 are pieces of one object.

    >>> numbered(np.array([8, 0, 4]), [np.array([[0, 2]])]).tolist()
    [2, 1, 2]
    """
    count = len(first)
    lost, heads = _joined(first, edges, period) if keys is None else _alike(first, keys, folder)
    dtype = np.dtype(np.uint32 if count - len(lost) <= LARGEST else np.uint64)
    numbers: Array
    if folder is None:
        numbers = np.empty(count, dtype)
    else:
        numbers = np.lib.format.open_memmap(Path(folder) / "numbers.npy", "w+", dtype, (count,))
    done, index, begin = 0, -1, 0
    for nodes, values in ascending(first, lost, folder):
        if (values[1:] == values[:-1]).any():
            raise TilingError(
                f"two objects have the first sample {values[1:][values[1:] == values[:-1]][0]}; each sample "
                "belongs to one object, so pieces with one first sample need an edge."
            )
        ranks = np.arange(done, done + len(nodes))
        done += len(nodes)
        if period is not None:
            of = values // period
            new = np.flatnonzero(np.diff(of, prepend=index))
            begins = np.full(len(nodes), begin)
            begins[new] = ranks[new]
            np.maximum.accumulate(begins, out=begins)
            index, begin = int(of[-1]), int(begins[-1])
            ranks -= begins
        numbers[nodes] = ranks + 1
    numbers[lost] = numbers[heads]
    return numbers


def _alike(first: Array, keys: Array, folder: str | Path | None) -> tuple[Ints, Ints]:
    """Return the nodes that are not the first with their key, ascending, and for each the node that is."""
    found = [np.zeros((2, 0), np.int64)]
    for nodes, values in ascending(keys, folder=folder):
        begins = np.concatenate(([True], values[1:] != values[:-1]))
        if begins.all():
            continue
        alone = begins & np.append(begins[1:], True)
        nodes, begins = nodes[~alone], begins[~alone]
        of = np.cumsum(begins) - 1
        places = np.asarray(first[nodes])
        head = np.empty(int(of[-1]) + 1, np.int64)
        # The last one that is written is the earliest.
        order = np.argsort(-places, kind="stable")
        head[of[order]] = nodes[order]
        lost = head[of] != nodes
        found.append(np.stack((nodes[lost], head[of][lost])))
    lost, heads = np.concatenate(found, axis=1)
    order = np.argsort(lost)
    return lost[order], heads[order]


def _joined(first: Array, edges: Iterable[Array], period: int | None) -> tuple[Ints, Ints]:
    """Return the nodes that are not the first of their object, ascending, and for each the node that is."""
    pairs, fresh, waiting = np.zeros((0, 2), np.int64), [], 0
    for table in edges:
        table = np.asarray(table)
        if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
            raise TilingError(f"edges are integers of shape (k, 2), not {table.dtype} of {table.shape}.")
        if table.size and not 0 <= table.min() <= table.max() < len(first):
            raise TilingError(
                f"an edge names node {table.max()} or {table.min()}, and there are {len(first)}."
            )
        fresh.append(table[table[:, 0] != table[:, 1]].astype(np.int64, copy=False))
        waiting += len(fresh[-1])
        # Many edges among few nodes: one edge per node says as much. Twice the last, so that all of these
        # together take no longer than one of all edges.
        if waiting > max(4 * AT_ONCE, 2 * len(pairs)):
            touched, of = _components(np.concatenate((pairs, *fresh)))
            root = np.zeros(int(of.max()) + 1, np.int64)
            root[of] = touched
            pairs, fresh, waiting = np.stack((touched, root[of]), axis=1), [], 0
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = np.concatenate((pairs, *fresh))
    if not len(pairs):
        return pairs[:, 0], pairs[:, 0]
    touched, of = _components(pairs)
    del pairs, fresh
    places = np.asarray(first[touched])
    earliest = np.full(int(of.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, of, places)
    ahead = np.flatnonzero(places == earliest[of])
    if period is not None and (places // period != earliest[of] // period).any():
        raise TilingError("an edge joins objects of two indices of the each axes.")
    # If several pieces have the first sample, the last of them is the head.
    head = np.empty(len(earliest), np.int64)
    head[of[ahead]] = touched[ahead]
    heads = head[of]
    lost = heads != touched
    return touched[lost], heads[lost]


def _components(pairs: Ints) -> tuple[Ints, Array]:
    """Return the nodes that have an edge, ascending, and the number of the component of each, from 0."""
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise ImportError(
            f'{error}; pieces of objects are joined by scipy: pip install "tilework[labels]".'
        ) from error
    ends = np.sort(pairs, axis=None)
    touched = ends[np.concatenate(([True], ends[1:] != ends[:-1]))]
    del ends
    size = len(touched)
    if size > np.iinfo(np.int32).max:
        raise TilingError(f"{size} pieces touch others; scipy joins at most 2**31 - 1. Use larger pieces.")
    rows, columns = (np.searchsorted(touched, column).astype(np.int32) for column in pairs.T)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), (size, size))
    return touched, connected_components(graph, directed=False)[1]
