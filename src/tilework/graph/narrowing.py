"""Results of which only the tiles run that a part of them needs: a block has hundreds.

Blocks stay as they are, and with them the bits; samples outside the part mean nothing.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, GraphNode

from tilework._types import Ints, Span
from tilework.engine.parts import edges_of
from tilework.engine.spec import Spec
from tilework.function.bound import BoundOutput
from tilework.graph.build import build, find_spec
from tilework.graph.cutting import Cutter, with_cuts_below
from tilework.graph.layer import BlockLayer, LazyLayer
from tilework.graph.nodes import LayerBelow, cut_of, held_names, is_of_array, joined_of, needed, points_of
from tilework.graph.partial import PartialLayer, partial_of
from tilework.graph.tasks import Key
from tilework.plan.tile_mask import TileMask, in_order
from tilework.source.base import BlockSource

__all__ = ["narrowed", "tasks_of", "with_narrowed_slices"]

# Most groups of equal tiles in a mask of the tiles that run, and most tasks of dask that are looked through.
MOST_GROUPS, MOST_TASKS = 2**24, 2**16
# Most samples of a block, as at weather stations, around each of which only its own tiles run.
MOST_POINTS = 2**12
# Share of the tiles of some blocks from which on all run where slices are computed, as a mask costs time too.
WORTH = 0.75

Boxes = tuple[Ints, Ints]
"""First sample, and one past the last, of boxes: one row per box, one column per axis of the array."""
Spans = tuple[Span | None, ...] | None
"""What is wanted of a block, samples per axis; None: all. Numbers below 0 count from the end of the block."""


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
    merged = _with_parts(HighLevelGraph.merge(*graphs), wanted)
    return needed(merged, itertools.chain.from_iterable(wanted.values()))


def with_narrowed_slices(array: da.Array) -> da.Array:
    """Return the same array with a graph in which results run only the tiles that slices of them need."""
    graph = array.__dask_graph__()
    many = math.prod(array.numblocks) > MOST_TASKS
    if many or da.array_expr_enabled() or not isinstance(graph, HighLevelGraph):
        return array
    graph = _with_parts(graph, {array.name: list(flatten(array.__dask_keys__()))})
    return da.Array(graph, array.name, array.chunks, meta=array._meta)


def narrowed(array: da.Array, boxes: Boxes) -> da.Array:
    """Return a result of which only the tiles run that have weight in boxes; any other array as it is.

    So it is with results below. Samples outside the boxes mean nothing.
    """
    if da.array_expr_enabled() or find_spec(array) is None:
        return array
    graph: Any = array.__dask_graph__()  # where it is a result, one of layers
    for cutter in (Cutter(graph), None):
        wanted = _Wanted(graph, cutter, {})
        wanted.boxes[array.name] = [boxes]
        _, made, useful = _narrowed(wanted, worth=1.0)
        if useful:
            break
    return made.get(array.name, array)


def _with_parts(graph: HighLevelGraph, blocks: Mapping[str, Collection[Key]]) -> HighLevelGraph:
    """Return a graph in which results run only the tiles that some blocks need.

    Expressions are cut only where fewer tiles run for it: slices that overlap, as of differences of
    neighbours, compute what they share once each.
    """
    cut, cutter = with_cuts_below(graph, blocks, MOST_TASKS)
    for one, own in ((cut, cutter), (cut, None), (graph, None)):
        new, made, useful = _narrowed(_Wanted(one, own, blocks))
        if made and useful:
            return new
    return graph


def _narrowed(wanted: _Wanted, *, worth: float = WORTH) -> tuple[HighLevelGraph, dict[str, da.Array], bool]:
    """Return a graph in which results run only the tiles that are needed, and these results.

    The results have names of their own, and are by the names that they had. And whether it was of use that
    expressions were cut where results read them. From ``worth`` on, a share of the tiles of the blocks around
    all that is wanted, all run.
    """
    graph = wanted.graph
    runs: dict[str, tuple[BlockLayer, TileMask]] = {}
    for name in wanted.downwards():
        layer = wanted.graph.layers[name]
        if not isinstance(layer, BlockLayer):
            wanted.look(name, layer)
        elif (
            layer.is_own(graph.layers)
            and wanted.held.isdisjoint(layer.names.outputs)
            and (boxes := wanted.of(layer))
            and (found := _tiles(layer, boxes, worth))
        ):
            first, stop, tiles = found
            runs[name] = layer, tiles
            for number, source in enumerate(layer.spec.sources):
                if isinstance(source, BlockSource):
                    wanted.add(source, _reads(layer.spec, number, first, stop))
        elif any(map(wanted.knows, (name, *layer.names.outputs))):
            wanted.whole.update(graph.dependencies[name])
    return _made(wanted, runs) if runs else (graph, {}, not wanted.cut)


def _made(
    wanted: _Wanted, runs: Mapping[str, tuple[BlockLayer, TileMask]]
) -> tuple[HighLevelGraph, dict[str, da.Array], bool]:
    """Return what `_narrowed` does, for results of which some tiles run.

    A task of dask of which all is wanted keeps its key. Of others only the parts that are wanted have the
    values of this key, which tasks of other runs on a cluster, or arrays that it holds, may have too.
    """
    layers: dict[str, Any] = dict(wanted.graph.layers)
    below = dict(wanted.graph.dependencies)
    made, read, keys = dict[str, da.Array](), dict[str, da.Array](), dict[Key, Key]()
    from_made: dict[str, set[str]] = {}
    for name in wanted.order:
        others = {key for key in below[name] if key in made or key in from_made}
        if name in runs:
            owner, tiles = runs[name]
            arrays = _part(owner.spec, owner.names.spec, tiles, made | read)
            for old, new in zip(owner.names.outputs, arrays, strict=True):
                # What a source was built from may have changed since.
                layers = {**new.dask.layers, **layers}
                below = {**new.dask.dependencies, **below}
                made[old] = new
            continue
        if not others or name not in wanted.needed:
            continue
        from_made[name] = set().union(*(from_made.get(key) or {made[key].name} for key in others))
        below[name] = {made[key].name if key in made else key for key in below[name]}
        mark, nodes = tokenize(sorted(from_made[name])), layers[name]
        if isinstance(nodes, PartialLayer):
            source = nodes.source
            read[source.dask_name] = _reachable(layers, below, name, source)
            continue
        # Of the slices of an image of 10^6 x 10^6 there are 30 000, of which a part of it needs a few.
        own = wanted.needed[name]
        keys |= {key: (f"{key[0]}-part-{mark}", *key[1:]) for key in own if None not in own[key]}
        layers[name] = MaterializedLayer(
            {keys.get(key, key): _renamed(nodes.mapping[key], keys.get(key), made, keys) for key in own}
        )
    return HighLevelGraph(layers, below), made, bool(read) or not wanted.cut


def _reachable(
    layers: Mapping[str, Any], below: Mapping[str, set[str]], name: str, source: BlockSource
) -> da.Array:
    """Return the array of a layer, with the layers that it needs."""
    found, left = {name}, [name]
    while left:
        more = below[left.pop()] - found
        found |= more
        left += more
    graph = HighLevelGraph({key: layers[key] for key in found}, {key: below[key] for key in found})
    return da.Array(graph, name, source.handle.chunks, meta=source.handle._meta)


def _part(spec: Spec, call: str, runs: TileMask, made: Mapping[str, da.Array]) -> list[da.Array]:
    """Return the outputs of a call of which only some tiles run, and which read results that were made."""
    sources = []
    for source in spec.sources:
        array = made.get(source.dask_name) if source.dask_name is not None else None
        sources.append(source if array is None else replace(source, handle=array, token=("dask", array.name)))
    todo = spec.active.with_runs(runs)
    name = f"{call}-part-{tokenize(runs.identity, [source.dask_name for source in sources])}"
    return build(replace(spec, todo=todo, sources=tuple(sources)), name)


def _tiles(
    layer: BlockLayer, wanted: Mapping[int, Boxes], worth: float
) -> tuple[Ints, Ints, TileMask] | None:
    """Return the first tile that boxes need, one past the last, and the mask in which these run.

    There is one row per box, and one column per axis of the grid. None: nearly all tiles are needed, or the
    mask would take too much memory.

    Parameters
    ----------
    layer : BlockLayer
    wanted : dict of int to Boxes
        By the number of the output.
    worth : float
        As in `_narrowed`.
    """
    spec = layer.spec
    plan, mask = spec.plan, spec.active.mask
    spans = [_touching(spec.outputs[number], boxes) for number, boxes in wanted.items()]
    first, stop = (np.concatenate(ends) for ends in zip(*spans, strict=True))
    runs = _mask(first, stop, plan.grid_shape)
    if runs is None:
        return None
    blocks = [_blocks(spec, number, boxes) for number, boxes in wanted.items()]
    around = []
    for table, (low, high) in zip(plan.tables, np.transpose(blocks, (1, 2, 0)), strict=True):
        around.append((int(table.touch[low.min()][0]), int(table.touch[high.max() - 1][1])))
    every = math.prod(b - a for a, b in around) if mask is None else mask.running(around)
    runs = runs if mask is None else runs & mask
    return (first, stop, runs) if runs.running(around) < worth * every else None


def _touching(output: BoundOutput, boxes: Boxes) -> tuple[Ints, Ints]:
    """Return the first tile that has weight in each box, and one past the last, per grid axis."""
    first, stop = [], []
    for axis, weights in zip(output.grid_axes, output.weights, strict=True):
        begins, ends = weights.supports()
        first.append(np.searchsorted(ends, boxes[0][:, axis], side="right"))
        stop.append(np.searchsorted(begins, boxes[1][:, axis], side="left"))
    return np.stack(first, 1), np.stack(stop, 1)


def _blocks(spec: Spec, number: int, boxes: Boxes) -> list[Span]:
    """Return the first of the blocks around all boxes, and one past the last, per grid axis."""
    axes = spec.outputs[number].grid_axes
    ends = zip(edges_of(spec, number, tiles=False), boxes[0].min(0)[axes], boxes[1].max(0)[axes], strict=True)
    first = [(int(np.searchsorted(e, a, side="right")), int(np.searchsorted(e, b)) + 1) for e, a, b in ends]
    return [(low, max(low + 1, high)) for low, high in first]


def _mask(first: Ints, stop: Ints, shape: Sequence[int]) -> TileMask | None:
    """Return the mask in which the tiles of boxes run; None if it would take too much memory."""
    edges = [in_order([0, n], np.sort(a), np.sort(b)) for a, b, n in zip(first.T, stop.T, shape, strict=True)]
    if math.prod(len(ends) - 1 for ends in edges) > math.prod(shape):
        edges = [np.arange(n + 1) for n in shape]
    groups = [len(ends) - 1 for ends in edges]
    if math.prod(groups) > MOST_GROUPS:
        return None
    bits = np.zeros(groups, bool)
    columns = zip(edges, first.T, stop.T, strict=True)
    places = np.stack([np.searchsorted(ends, (a, b)) for ends, a, b in columns], axis=-1)
    for low, high in zip(*places.tolist(), strict=True):
        bits[tuple(map(slice, low, high))] = True
    return TileMask.between(edges, bits)


def _reads(spec: Spec, number: int, first: Ints, stop: Ints) -> Boxes:
    """Return boxes around what tiles read of a source; none for rows without tiles.

    There are several for a row of tiles that reads both ends of an axis.
    """
    some = (first < stop).all(axis=1)
    boxes = list[tuple[Span, ...]]()
    for low, high in zip(first[some].tolist(), stop[some].tolist(), strict=True):
        reads = spec.reads(number, list(zip(low, high, strict=True)))
        boxes += itertools.product(*(read.intervals for read in reads))
    ends = np.array(boxes, int).reshape(len(boxes), len(spec.sources[number].shape), 2)
    return ends[..., 0], ends[..., 1]


# -- what is wanted of the layers of a graph --------------------------------------------------------------


def _boxes(layer: BlockLayer, number: int, parts: Mapping[Key, Collection[Spans]]) -> Boxes:
    """Return parts of blocks of an output as boxes of its array."""
    spec, output, found = layer.spec, layer.spec.outputs[number], []
    for key, wanted in parts.items():
        index = layer.tasks.block_of(key, number)
        assert index is not None
        block = output.place(output.region(spec.plan.box(index)))
        found += [[_within(*ends) for ends in itertools.zip_longest(block, own or ())] for own in wanted]
    starts, stops = np.moveaxis(np.array(found), -1, 0)
    return starts, stops


def _within(block: slice, span: Span | None) -> Span:
    """Return the samples of an array along an axis of which a span of a block is wanted; None: all."""
    if block.start is None:
        return 0, 0  # no grid axis
    if span is None:
        return block.start, block.stop
    if span[0] < 0:
        return max(block.start, block.stop + span[0]), block.stop + span[1]
    return block.start + span[0], min(block.stop, block.start + span[1])


def _renamed(node: Any, new: Key | None, made: Mapping[str, da.Array], keys: Mapping[Key, Key]) -> Any:
    """Return a task that takes blocks of other arrays, and what has other keys; ``new`` is its own."""
    if not isinstance(node, GraphNode):
        if (cut := cut_of(node)) is not None:
            return (node[0], _renamed(cut[0], None, made, keys), cut[1])
        return _new_key(node, made, keys) if is_of_array(node) else node
    others = {key: _new_key(key, made, keys) for key in node.dependencies}
    return node.substitute({key: other for key, other in others.items() if other != key}, key=new)


def _new_key(key: Key, made: Mapping[str, da.Array], keys: Mapping[Key, Key]) -> Key:
    return (made[key[0]].name, *key[1:]) if is_of_array(key) and key[0] in made else keys.get(key, key)


class _Wanted:
    """What is wanted of the blocks in the layers of a graph, of which those above were looked at.

    Parameters
    ----------
    graph : HighLevelGraph
    cutter : Cutter
        Cuts what results read of expressions; None: they read whole blocks.
    blocks : dict of str to keys
        The blocks that are wanted whole, by layer.
    """

    def __init__(
        self, graph: HighLevelGraph, cutter: Cutter | None, blocks: Mapping[str, Collection[Key]]
    ) -> None:
        self.graph, self._cutter = graph, cutter
        self.held = held_names()
        """Names of arrays that a cluster holds."""
        self.cut: dict[str, str] = {}
        """Expressions of which results read parts, with the layers of these."""
        self.order = self._ordered()
        """The layers, the lowest first."""
        self._computed = set[str]()
        """Layers that are computed from results."""
        for name in self.order:
            if isinstance(graph.layers[name], LazyLayer) or not self._computed.isdisjoint(
                graph.dependencies[name]
            ):
                self._computed.add(name)
        self.whole = {name for name, keys in blocks.items() if len(keys) > MOST_TASKS}
        """Layers of which all blocks may be wanted, whole."""
        self.parts: dict[str, dict[Key, set[Spans]]] = {
            name: {key: {None} for key in keys} for name, keys in blocks.items() if name not in self.whole
        }
        """The parts that are wanted of some blocks, by layer and key."""
        self.boxes: dict[str, list[Boxes]] = {}
        """What else is wanted of arrays that results read."""
        self._sources: dict[str, BlockSource] = {}
        self.needed: dict[str, Mapping[Key, Collection[Spans]]] = {}
        """The tasks that are needed, and what of each, by layer; of other layers it may be all."""
        self._tasks = 0

    def knows(self, name: str) -> bool:
        """Return whether anything is wanted of a layer."""
        return name in self.whole or name in self.parts or name in self.boxes

    def add(self, source: BlockSource, boxes: Boxes) -> None:
        """Note that boxes of an array are wanted."""
        if source.dask_name not in self.graph.layers:
            return
        self._sources[source.dask_name] = source
        if len(boxes[0]):
            self.boxes.setdefault(source.dask_name, []).append(boxes)

    def of(self, layer: BlockLayer) -> dict[int, Boxes] | None:
        """Return what is wanted of a result, by the number of the output; None: all."""
        found = {}
        for number, name in enumerate(layer.names.outputs):
            if name in self.whole:
                return None
            boxes = self.boxes.get(name, [])
            if name in self.parts:
                boxes = [*boxes, _boxes(layer, number, self.parts[name])]
            if boxes:
                starts, stops = (np.concatenate(ends) for ends in zip(*boxes, strict=True))
                found[number] = starts, stops
        return found

    def look(self, name: str, layer: Any) -> None:
        """Look at what the tasks of a layer take from those below."""
        if name in self.boxes and not isinstance(layer, LazyLayer) and name not in self.cut:
            if self._cut(name):
                return  # its parts are looked at before it
            self.whole.add(name)
        below, parts = self.graph.dependencies[name], self.parts.get(name, {})
        if name not in self.whole and not parts:
            return
        if name not in self.held and (type(layer) is MaterializedLayer or isinstance(layer, LayerBelow)):
            self._tasks += len(layer.mapping) if name in self.whole else sum(map(len, parts.values()))
            if self._tasks <= MOST_TASKS:
                parts = {key: {None} for key in layer.mapping} if name in self.whole else parts
                taken, own = _all_taken(layer.mapping, parts)
                if taken and taken.keys() <= below:
                    self.needed[name] = own
                    for array, blocks in taken.items():
                        for block, spans in blocks.items():
                            self.parts.setdefault(array, {}).setdefault(block, set()).update(spans)
                    return
        self.whole.update(below)

    def _cut(self, name: str) -> bool:
        """Put the parts of an array that results read into the graph, as slices; return False if it is whole.

        So what is between two results is computed as for slices, and under keys of its own.
        """
        source, boxes = self._sources[name], self.boxes[name]
        if self._cutter is None or name in self.whole | self.held or name not in self._computed:
            return False
        starts, stops = (np.concatenate(ends) for ends in zip(*boxes, strict=True))
        found = type(source.handle._meta) is np.ndarray and partial_of(source, (starts, stops), MOST_TASKS)
        if not found:
            return False
        whole, cuts = found
        part = f"{whole.name}-cut"
        layers: dict[str, Any] = {**self.graph.layers, part: MaterializedLayer(cuts), whole.name: whole}
        below = {**self.graph.dependencies, part: {name}, whole.name: {part}}
        self.graph, _ = with_cuts_below(HighLevelGraph(layers, below), {part: cuts}, MOST_TASKS, self._cutter)
        self.cut[name] = whole.name
        self.order = self._ordered()
        self.needed[whole.name], self.parts[part] = {}, {key: {None} for key in cuts}
        return True

    def _ordered(self) -> list[str]:
        """Return the layers, each after those below it, and results after the parts that they read."""
        below = dict[str, set[str]]()
        for name, others in self.graph.dependencies.items():
            read = self.cut.keys() & others if isinstance(self.graph.layers[name], LazyLayer) else ()
            below[name] = others | {self.cut[other] for other in read}
        return list(TopologicalSorter(below).static_order())

    def downwards(self) -> Iterator[str]:
        """Yield the layers, each after those above it; one above which others came in meanwhile again."""
        order, left, seen = self.order, [*self.order], set[str]()
        while left:
            if (name := left.pop()) in seen:
                continue
            yield name
            if self.order is order:
                seen.add(name)
            else:
                order, left = self.order, [*self.order]


def _all_taken(
    nodes: Mapping[Key, Any], wanted: Mapping[Key, Collection[Spans]]
) -> tuple[dict[str, dict[Key, set[Spans]]], dict[Key, set[Spans]]]:
    """Return what tasks of a layer take of blocks of other layers, by name; nothing if nobody knows.

    And the tasks of the layer that are needed, with the parts of each. ``wanted`` are those that others need.
    """
    taken: dict[str, dict[Key, set[Spans]]] = {}
    own = {key: set(parts) for key, parts in wanted.items()}
    left = [(key, set(parts)) for key, parts in own.items()]
    while left:
        key, parts = left.pop()
        found = _taken(nodes, key, parts)
        if found is None:
            return {}, {}
        for block, spans in found:
            known = (own if block in nodes else taken.setdefault(block[0], {})).setdefault(block, set())
            if block in nodes and not spans <= known:
                left.append((block, spans))
            known |= spans
    return taken, own


def _taken(nodes: Mapping[Key, Any], key: Key, wanted: set[Spans]) -> list[tuple[Key, set[Spans]]] | None:
    """Return the blocks that a task needs, and the parts that it takes of them; None if nobody knows."""
    node = nodes.get(key)
    alias = node.target if isinstance(node, Alias) else node
    if is_of_array(alias):  # a tuple is dask's older kind
        return [(alias, wanted)]
    if (cut := cut_of(node, nodes)) is not None:
        block, index = cut
        parts = {block: {_through(index, own) for own in wanted}}
        if not isinstance(node, GraphNode):
            return [*parts.items()]
    elif not isinstance(node, GraphNode):
        return None
    elif (points := points_of(node)) is not None:
        block, index = points
        parts = {block: _points(index)}
    elif (joined := joined_of(node)) is not None:
        blocks, axis = joined
        parts = {block: {_but(axis, own) for own in wanted} for block in blocks}
    elif all(isinstance(key, tuple) for key in node.dependencies):
        parts = {}
    else:
        return None
    return [(key, parts.get(key, {None})) for key in node.dependencies]


def _through(index: tuple[Any, ...], wanted: Spans) -> Spans:
    """Return what is taken of an array where ``wanted`` is taken of what ``index`` selects."""
    spans, place = list[Span | None](), iter(wanted or ())
    if sum(not isinstance(item, slice) for item in index) > 1 and any(np.ndim(item) for item in index):
        return None  # numpy puts the axis of a list elsewhere
    for item in index:
        if item is None:
            next(place, None)
        elif isinstance(item, slice):
            spans.append(_cut(item, next(place, None)))
        elif isinstance(item, int | np.integer):
            spans.append((int(item), int(item) + 1))
        elif isinstance(item, np.ndarray) and item.ndim == 1 and item.dtype.kind in "iu":
            spans.append(_listed(item, next(place, None)))
        else:
            return None
    return tuple(spans)


def _cut(item: slice, wanted: Span | None) -> Span | None:
    """Return what a slice takes of an axis, for ``wanted`` of its result; None: it may be all."""
    if item == slice(None):
        return wanted
    start, stop, step = item.start or 0, item.stop, item.step or 1
    low, high = (0, sys.maxsize) if wanted is None or wanted[0] < 0 else wanted
    if step < 0:
        # dask counts from the end of a block, which the task does not tell.
        last = -sys.maxsize if stop is None else stop + 1
        known = start < 0 and last <= 0 and low < high
        return (max(last, start + (high - 1) * step), start + low * step + 1) if known else None
    if start < 0 or (stop is not None and stop < 0):
        return None
    return start + low * step, min(sys.maxsize if stop is None else stop, start + (high - 1) * step + 1)


def _listed(numbers: Ints, wanted: Span | None) -> Span | None:
    """Return what a list of numbers takes of an axis, for ``wanted`` of its result; None: it may be all."""
    own = numbers if wanted is None or wanted[0] < 0 else numbers[slice(*wanted)]
    return (int(own.min()), int(own.max()) + 1) if own.size and own.min() >= 0 else None


def _points(index: Sequence[Any]) -> set[Spans]:
    """Return what is taken of an array for single samples, of which arrays are the numbers along an axis."""
    columns = [np.ravel(item) if isinstance(item, np.ndarray) else None for item in index]
    known = [column for column in columns if column is not None]
    alike = {len(column) for column in known}
    if len(alike) != 1 or alike == {0} or any(column.min() < 0 for column in known):
        return {None}
    if alike.pop() > MOST_POINTS:
        return {tuple(None if column is None else _listed(column, None) for column in columns)}
    rows = set(zip(*(column.tolist() for column in known), strict=True))
    spans = (iter([(number, number + 1) for number in row]) for row in rows)
    return {tuple(None if column is None else next(own) for column in columns) for own in spans}


def _but(axis: int, wanted: Spans) -> Spans:
    """Return what is wanted of arrays that are joined along an axis, for ``wanted`` of what they become."""
    return wanted and tuple(None if n == axis else span for n, span in enumerate(wanted))
