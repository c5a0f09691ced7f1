"""What is wanted of the blocks of results: which parts the tasks of dask that are computed from them take."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, GraphNode

from tilework._types import Ints, Span
from tilework.graph.cutting import Cutter, with_cuts_below
from tilework.graph.layer import BlockLayer, LazyLayer
from tilework.graph.nodes import LayerBelow, cut_of, held_names, is_of_array, joined_of, points_of
from tilework.graph.partial import partial_of
from tilework.graph.tasks import Key
from tilework.source.base import BlockSource

__all__ = ["MOST_TASKS", "Boxes", "Wanted"]

# Most tasks of dask that are looked through.
MOST_TASKS = 2**16
# Most samples of a block, as at weather stations, around each of which only its own tiles run.
MOST_POINTS = 2**12

Boxes = tuple[Ints, Ints]
"""First sample, and one past the last, of boxes: one row per box, one column per axis of the array."""
Spans = tuple[Span | None, ...] | None
"""What is wanted of a block, samples per axis; None: all. Numbers below 0 count from the end of the block."""


class Wanted:
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
