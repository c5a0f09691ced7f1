"""Results of which only the tiles run that a part of them needs: a block has hundreds.

Blocks stay as they are, and with them the bits; samples outside the part mean nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import GraphNode

from tilework._types import Ints, Span
from tilework.engine.parts import edges_of
from tilework.engine.spec import Spec
from tilework.function.bound import BoundOutput
from tilework.graph.build import build, find_spec
from tilework.graph.cutting import Cutter, with_cuts_below
from tilework.graph.layer import BlockLayer
from tilework.graph.nodes import cut_of, is_of_array, needed
from tilework.graph.partial import PartialLayer
from tilework.graph.tasks import Key
from tilework.graph.wanted import MOST_TASKS, Boxes, Wanted
from tilework.plan.tile_mask import TileMask, in_order
from tilework.source.base import BlockSource

__all__ = ["narrowed", "tasks_of", "with_narrowed_slices"]

# Most groups of equal tiles in a mask of the tiles that run.
MOST_GROUPS = 2**24
# Share of the tiles of some blocks from which on all run where slices are computed, as a mask costs time too.
WORTH = 0.75


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
        wanted = Wanted(graph, cutter, {})
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
        new, made, useful = _narrowed(Wanted(one, own, blocks))
        if made and useful:
            return new
    return graph


def _narrowed(wanted: Wanted, *, worth: float = WORTH) -> tuple[HighLevelGraph, dict[str, da.Array], bool]:
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
    wanted: Wanted, runs: Mapping[str, tuple[BlockLayer, TileMask]]
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
    every = spec.active.running(around)
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
