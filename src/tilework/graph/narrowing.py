"""Results of which only the tiles run that a part of them needs: a block has hundreds.

Blocks stay as they are, and with them the bits; samples outside the part mean nothing.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any

import dask.array as da
import numpy as np
from dask.array.chunk import getitem
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, GraphNode, Task, TaskRef

from tilework._types import Index, Ints, Span
from tilework.engine.spec import Spec
from tilework.function.bound import BoundOutput
from tilework.graph.build import Found, build, find_spec
from tilework.graph.layer import BlockLayer
from tilework.graph.nodes import LayerBelow, needed
from tilework.graph.tasks import Key
from tilework.plan.tile_mask import TileMask, in_order
from tilework.source.base import BlockSource, Source

__all__ = ["Boxes", "narrowed", "tasks_of", "with_narrowed_slices"]

# Most groups of equal tiles in a mask of the tiles that run, and most tasks of dask that are looked through.
MOST_GROUPS, MOST_TASKS = 2**24, 2**16
# Share of the tiles of some blocks from which on all run.
WORTH = 0.75

Boxes = tuple[Ints, Ints]
"""First sample, and one past the last, of boxes: one row per box, one column per axis of the array."""
Spans = tuple[Span | None, ...] | None
"""What is wanted of a block, samples per axis; None: all."""


def narrowed(found: Found, boxes: Mapping[int, Boxes]) -> list[da.Array] | None:
    """Return the outputs of a call, of which only the tiles run that have weight in boxes.

    So it is with results below. None: the boxes are too many, and so it is with dask's expressions.

    Parameters
    ----------
    found : Found
    boxes : dict of int to Boxes
        By the number of the output; there is at least one.
    """
    if da.array_expr_enabled():
        return None
    spec, name = found.spec, f"{found.call}-part-{tokenize(boxes)}"
    spans = [_tiles(spec.outputs[number], own) for number, own in boxes.items()]
    first, stop = (np.concatenate(ends) for ends in zip(*spans, strict=True))
    tiles = _mask(first, stop, spec.plan.grid_shape)
    if tiles is None:
        return None
    mask = spec.active.mask
    todo = spec.active.with_runs(tiles if mask is None else tiles & mask)
    sources = tuple(_below(spec, number, first, stop) for number in range(len(spec.sources)))
    return build(replace(spec, todo=todo, sources=sources), name)


def _tiles(output: BoundOutput, boxes: Boxes) -> tuple[Ints, Ints]:
    """Return the first tile that has weight in each box, and one past the last, per grid axis."""
    first, stop = [], []
    for axis, weights in zip(output.grid_axes, output.weights, strict=True):
        begins, ends = map(weights.scaled, weights.grid.supports(weights.rim))
        first.append(np.searchsorted(ends, boxes[0][:, axis], side="right"))
        stop.append(np.searchsorted(begins, boxes[1][:, axis], side="left"))
    return np.stack(first, 1), np.stack(stop, 1)


def _mask(first: Ints, stop: Ints, shape: Sequence[int]) -> TileMask | None:
    """Return the mask in which the tiles of boxes run; None if they would take too much memory."""
    edges = [in_order([0, n], np.sort(a), np.sort(b)) for a, b, n in zip(first.T, stop.T, shape, strict=True)]
    groups = [len(ends) - 1 for ends in edges]
    if math.prod(groups) > MOST_GROUPS:
        return None
    bits = np.zeros(groups, bool)
    columns = zip(edges, first.T, stop.T, strict=True)
    places = np.stack([np.searchsorted(ends, (a, b)) for ends, a, b in columns], axis=-1)
    for low, high in zip(*places.tolist(), strict=True):
        bits[tuple(map(slice, low, high))] = True
    return TileMask.between(edges, bits)


def _below(spec: Spec, number: int, first: Ints, stop: Ints) -> Source:
    """Return a source of which a result below has only what some boxes of tiles read."""
    source = spec.sources[number]
    found = find_spec(source.handle) if isinstance(source, BlockSource) else None
    some = (first < stop).all(axis=1)
    if found is None or not some.any():
        return source
    boxes = []
    for low, high in zip(first[some].tolist(), stop[some].tolist(), strict=True):
        reads = [read.intervals for read in spec.reads(number, list(zip(low, high, strict=True)))]
        boxes.append([(min(a for a, _ in along), max(b for _, b in along)) for along in reads])
    starts, stops = np.moveaxis(np.array(boxes), -1, 0)
    arrays = narrowed(found, {found.number: (starts, stops)})
    if arrays is None:
        return source
    array = arrays[found.number]
    return replace(source, handle=array, token=("dask", array.name))


# -- slices of results in a graph of dask -----------------------------------------------------------------


def tasks_of(arrays: Sequence[Any], wanted: Mapping[str, Collection[Key]]) -> dict[Key, Any]:
    """Return the tasks from which blocks of dask arrays are computed.

    Where slices of results are wanted, these run only the tiles that the slices need. Keys that dask made
    have the same values as in the graphs of the arrays.

    Parameters
    ----------
    arrays : sequence of dask.array.Array
    wanted : dict of str to keys
        The blocks that are wanted, by the name of the array.
    """
    graphs = [array.__dask_graph__() for array in arrays]
    if da.array_expr_enabled() or not all(isinstance(graph, HighLevelGraph) for graph in graphs):
        parts = (needed(graph, wanted[array.name]) for array, graph in zip(arrays, graphs, strict=True))
        return {key: node for part in parts for key, node in part.items()}
    graph = _narrowed_slices(HighLevelGraph.merge(*graphs), wanted)
    return needed(graph, itertools.chain.from_iterable(wanted.values()))


def with_narrowed_slices(array: da.Array) -> da.Array:
    """Return the same array with a graph in which results run only the tiles that slices of them need."""
    graph = array.__dask_graph__()
    whole = math.prod(array.numblocks) > MOST_TASKS
    if whole or da.array_expr_enabled() or not isinstance(graph, HighLevelGraph):
        return array
    keys = list(flatten(array.__dask_keys__()))
    return da.Array(_narrowed_slices(graph, {array.name: keys}), array.name, array.chunks, meta=array._meta)


def _narrowed_slices(graph: HighLevelGraph, wanted: Mapping[str, Collection[Key]]) -> HighLevelGraph:
    """Return a graph in which results run only the tiles that the ``wanted`` blocks of layers need."""
    layers, below, moved = dict(graph.layers), dict(graph.dependencies), dict[str, str]()
    known = _Wanted(graph, wanted)
    for name in reversed(list(TopologicalSorter(graph.dependencies).static_order())):
        layer = graph.layers[name]
        if isinstance(layer, BlockLayer) and layer.is_own(layers) and (parts := _part(layer, known)):
            for old, new in zip(layer.names.outputs, parts, strict=True):
                layers |= new.dask.layers
                below |= new.dask.dependencies
                moved[old] = new.name
        else:
            known.look(name, layer)
    for name, layer in graph.layers.items():
        if isinstance(layer, MaterializedLayer) and not moved.keys().isdisjoint(graph.dependencies[name]):
            layers[name] = MaterializedLayer({k: _renamed(node, moved) for k, node in layer.mapping.items()})
            below[name] = {moved.get(key, key) for key in graph.dependencies[name]}
    return HighLevelGraph(layers, below) if moved else graph


def _part(layer: BlockLayer, wanted: _Wanted) -> list[da.Array] | None:
    """Return the outputs of a layer with fewer tiles; None if that is not worth it, or not possible."""
    spec, names = layer.spec, layer.names
    boxes, blocks = dict[int, Boxes](), list[Index]()
    for number, name in enumerate(names.outputs):
        output, found = spec.outputs[number], []
        if name in wanted.whole:
            return None
        for key, parts in wanted.parts.get(name, {}).items():
            index = layer.tasks.block_of(key, number)
            if index is None:
                return None
            blocks.append(index)
            block = output.place(output.region(spec.plan.box(index)))
            found += [[_within(*ends) for ends in itertools.zip_longest(block, own or ())] for own in parts]
        if found:
            starts, stops = np.moveaxis(np.array(found), -1, 0)
            boxes[number] = starts, stops
    arrays = narrowed(Found(spec, 0, names.inner, names.spec), boxes) if boxes else None
    if arrays is None or (part := find_spec(arrays[0])) is None:
        return None
    ranges = [spec.ranges(index, owned=False) for index in blocks]
    around = [(min(a for a, _ in own), max(b for _, b in own)) for own in zip(*ranges, strict=True)]
    mask = spec.active.mask
    every = math.prod(b - a for a, b in around) if mask is None else mask.running(around)
    return arrays if part.spec.active.n_runs < WORTH * every else None


def _within(block: slice, span: Span | None) -> Span:
    """Return the samples of an array along an axis of which a span of a block is wanted; None: all."""
    if block.start is None:
        return 0, 0  # no grid axis
    if span is None:
        return block.start, block.stop
    return block.start + span[0], min(block.stop, block.start + span[1])


def _renamed(node: Any, moved: Mapping[str, str]) -> Any:
    """Return a task that takes blocks of other arrays."""
    if not isinstance(node, GraphNode):
        old = node[0] if isinstance(node, tuple) and node and isinstance(node[0], str) else ""
        return (moved[old], *node[1:]) if old in moved else node
    keys = [key for key in node.dependencies if isinstance(key, tuple) and key[0] in moved]
    return node.substitute({key: (moved[key[0]], *key[1:]) for key in keys}) if keys else node


class _Wanted:
    """What is wanted of the blocks in the layers of a graph, of which those above were looked at.

    Parameters
    ----------
    graph : HighLevelGraph
    blocks : dict of str to keys
        The blocks that are wanted whole, by layer.
    """

    def __init__(self, graph: HighLevelGraph, blocks: Mapping[str, Collection[Key]]) -> None:
        self._graph = graph
        self.whole = {name for name, keys in blocks.items() if len(keys) > MOST_TASKS}
        """Layers of which all blocks may be wanted, whole."""
        self.parts: dict[str, dict[Key, set[Spans]]] = {
            name: {key: {None} for key in keys} for name, keys in blocks.items() if name not in self.whole
        }
        """The parts that are wanted of some blocks, by layer and key."""
        self._tasks = 0

    def look(self, name: str, layer: Any) -> None:
        """Look at what the tasks of a layer take from those below."""
        below, parts = self._graph.dependencies[name], self.parts.get(name, {})
        if name not in self.whole and not parts:
            return
        if type(layer) is MaterializedLayer or isinstance(layer, LayerBelow):
            self._tasks += len(layer.mapping) if name in self.whole else sum(map(len, parts.values()))
            if self._tasks <= MOST_TASKS:
                parts = {key: {None} for key in layer.mapping} if name in self.whole else parts
                taken = [_taken(layer.mapping.get(key), own) for key, own in parts.items()]
                if all(one is not None and one[0][0] in below for one in taken):
                    for block, spans in filter(None, taken):
                        self.parts.setdefault(block[0], {}).setdefault(block, set()).update(spans)
                    return
        self.whole.update(below)


def _taken(node: Any, wanted: Collection[Spans]) -> tuple[Key, set[Spans]] | None:
    """Return the block that a task cuts, and the parts that it takes of it; None for any other task."""
    alias = node.target if isinstance(node, Alias) else node
    if isinstance(alias, tuple) and alias and isinstance(alias[0], str):  # a tuple is dask's older kind
        return alias, set(wanted)
    if not isinstance(node, Task) or node.func is not getitem or node.kwargs or len(node.args) != 2:
        return None
    block, index = node.args
    if not isinstance(block, TaskRef) or not isinstance(block.key, tuple) or not isinstance(index, tuple):
        return None
    return block.key, {_through(index, own) for own in wanted}


def _through(index: tuple[Any, ...], wanted: Spans) -> Spans:
    """Return what is taken of an array where ``wanted`` is taken of what ``index`` selects."""
    spans, place = list[Span | None](), iter(wanted or ())
    for item in index:
        if item is None:
            next(place, None)
        elif isinstance(item, slice):
            spans.append(_cut(item, next(place, None)))
        elif isinstance(item, int | np.integer):
            spans.append((int(item), int(item) + 1) if item >= 0 else None)
        else:
            return None
    return tuple(spans)


def _cut(item: slice, wanted: Span | None) -> Span | None:
    """Return what a slice takes of an axis, for ``wanted`` of its result; None: it may be all."""
    start, stop, step = item.start or 0, item.stop, item.step or 1
    if step < 1 or start < 0 or (stop is not None and stop < 0):
        return None
    end = sys.maxsize if stop is None else stop
    if wanted is None:
        return start, end
    return start + wanted[0] * step, min(end, start + (wanted[1] - 1) * step + 1)
