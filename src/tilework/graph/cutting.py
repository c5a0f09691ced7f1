"""Slices of what dask computes sample by sample from results, computed from slices of the results."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from dask.array.chunk import astype, getitem
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, GraphNode, Task, TaskRef

from tilework.graph.build import chunks_of
from tilework.graph.layer import LazyLayer
from tilework.graph.nodes import LayerBelow, cut_of, held_names, is_of_array
from tilework.graph.tasks import Key

__all__ = ["Cutter", "with_cuts_below"]

# What works sample by sample, besides ufuncs of numpy: the operators of arrays, and what their methods call.
OPERATORS = (
    "abs add and_ eq floordiv ge gt inv invert le lshift lt mod mul ne neg or_ pos pow rshift sub truediv xor"
)
TURNS = (np.transpose, np.swapaxes)
FUNCTIONS = (
    *(getattr(operator, name) for name in OPERATORS.split()), abs, astype,
    np.where, np.clip, np.round, np.around, np.isclose, np.nan_to_num, np.real, np.imag,
    *TURNS,
)  # fmt: skip
# Their arguments by name; others may hold arrays.
OPTIONS = {
    "astype_dtype", "axes", "axis1", "axis2", "decimals", "dtype", "enforce_dtype", "enforce_dtype_function",
}  # fmt: skip
# The longest chain of expressions that is followed.
LONGEST = 100

Index = tuple[slice | int | None, ...]
Place = tuple[int, bool]
"""An axis of an expression, and whether the array that it is computed from is repeated along it."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A task that works sample by sample."""

    node: Task
    ndim: int
    """Number of axes of its blocks."""
    places: Mapping[Key, tuple[Place, ...]]
    """The blocks that it takes, with the place of each of their axes."""


def with_cuts_below(
    graph: HighLevelGraph,
    wanted: Mapping[str, Collection[Key]],
    most: int,
    cutter: Cutter | None = None,
) -> tuple[HighLevelGraph, Cutter]:
    """Return a graph in which slices of expressions of results are computed from slices of the results.

    So a slice of ``out > 0.5`` needs no more of ``out`` than one of ``out``. Keys have the values that they
    had; new tasks have keys of their own. Layers of more than ``most`` slices that are ``wanted``, of which
    other tasks may be left out, stay as they are.

    The ``cutter`` of the graph cuts what is wanted besides, such as what results read of expressions; then
    other tasks are not left out.
    """
    order, further = list(TopologicalSorter(graph.dependencies).static_order()), cutter is not None
    cutter = cutter or Cutter(graph)
    cutter.graph, needed = graph, _needed(graph, order, wanted, far=further)
    layers: dict[str, Any] = dict(graph.layers)
    below = dict(graph.dependencies)
    for name in order:
        layer: Any = graph.layers[name]
        if not _is_made(layer) or name in cutter.held:
            cutter.inputs(name)  # from the lowest on, because what is above asks for those below
            continue
        nodes = layer.mapping
        if name in needed:
            nodes = {key: nodes[key] for key in needed[name] if key in nodes}
        elif further or isinstance(layer, LayerBelow):
            continue
        if len(nodes) <= most and layer.annotations is None:
            made = cutter.cut(name, nodes)
            for new, own in made.items():
                if further and (there := layers.get(new)) is not None:
                    made[new] = {**there.mapping, **own}
            layers |= {new: MaterializedLayer(nodes) for new, nodes in made.items()}
            below |= {new: _below(nodes, layers, below[name]) for new, nodes in made.items()}
    changed = any(layers[name] is not graph.layers.get(name) for name in layers)
    cutter.graph = HighLevelGraph(layers, below) if changed else graph
    return cutter.graph, cutter


def _is_made(layer: Any) -> bool:
    """Return whether a layer holds tasks that dask made, as of slices."""
    return type(layer) is MaterializedLayer or isinstance(layer, LayerBelow)


def _needed(
    graph: HighLevelGraph, order: Sequence[str], wanted: Mapping[str, Collection[Key]], *, far: bool
) -> dict[str, set[Key]]:
    """Return the tasks of layers that some blocks need, by layer; without those of which it may be all.

    Of layers that are not made yet it may be all, unless ``far``.
    """
    needed, every = {name: set(keys) for name, keys in wanted.items()}, set[str]()
    for name in reversed(order):
        layer: Any = graph.layers[name]
        left = needed.get(name, set())
        if far and not left and name not in every:
            continue
        if far and isinstance(layer, Blockwise) and name not in every:
            others: set[Any] = set().union(*layer.cull(left, ())[1].values())
            known = all(is_of_array(key) and key[0] in graph.layers for key in others)
        elif name in every or not _is_made(layer):
            every |= graph.dependencies[name]
            continue
        else:
            others, known = _others(graph, layer, left)
        if not known:
            every |= {name, *graph.dependencies[name]}
            continue
        needed.setdefault(name, set()).update(left)
        for key in others:
            needed.setdefault(key[0], set()).add(key)
    return {name: keys for name, keys in needed.items() if name not in every}


def _others(graph: HighLevelGraph, layer: Any, needed: set[Key]) -> tuple[set[Key], bool]:
    """Return what tasks of a layer need of others, and whether that is known.

    ``needed`` are the tasks; those of the layer that they need are added.
    """
    left, found = set(needed), set[Key]()
    while left:
        below = [_taken(layer.mapping.get(key)) for key in left]
        keys = set[Any]().union(*(own for own in below if own is not None))
        others = keys - layer.mapping.keys()
        if None in below or not all(is_of_array(key) and key[0] in graph.layers for key in others):
            return set(), False
        left = keys - others - needed
        needed |= left
        found |= others
    return found, True


def _below(nodes: Mapping[Key, Any], layers: Mapping[str, Any], others: set[str]) -> set[str]:
    """Return the layers of what tasks need; ``others`` are the layers of keys that do not tell."""
    keys = {key for node in nodes.values() for key in node.dependencies} - nodes.keys()
    names = {key[0] if isinstance(key, tuple) else key for key in keys}
    return names if names <= layers.keys() else names & layers.keys() | others


def _same(node: Any) -> Key | None:
    """Return the block that a task gives another key; None for any other task."""
    other = node.target if isinstance(node, Alias) else node  # a tuple is dask's older kind
    return other if is_of_array(other) else None


def _taken(node: Any) -> Iterable[Key] | None:
    """Return the keys that a task needs; None if it does not tell."""
    if isinstance(node, GraphNode):
        return node.dependencies
    if (cut := cut_of(node)) is not None:
        return (cut[0],)
    return None if _same(node) is None else (node,)


class Cutter:
    """Makes the tasks of slices, and knows which tasks work sample by sample.

    Parameters
    ----------
    graph : HighLevelGraph
    """

    def __init__(self, graph: HighLevelGraph) -> None:
        self.graph = graph
        self.held = held_names()
        """Names of arrays that stay as they are."""
        self._inputs: dict[str, Mapping[str, tuple[Place, ...]] | None] = {}
        self._singles: dict[str, list[bool | None]] = {}
        """Whether an expression has one sample along each axis; None: nobody knows."""
        self._forms: dict[Key, _Form | None] = {}
        self._again: dict[Key, tuple[Key, Index]] = {}
        """Tasks that take numbers of a part of a block, and what they take of it."""
        self._name = ""
        self._known: dict[Any, Key] = {}
        self._slices: dict[Key, Any] = {}
        self._parts: dict[Key, Any] = {}

    def inputs(self, name: str) -> Mapping[str, tuple[Place, ...]] | None:
        """Return the arrays from which an expression of results is computed; None for any other array.

        Each comes with the places of its axes.
        """
        if name not in self._inputs:
            # What a cluster holds runs no more, and what replaces it would.
            layer = None if name in self.held else self.graph.layers.get(name)
            self._inputs[name] = self._found(layer) if isinstance(layer, Blockwise) else None
        return self._inputs[name]

    def _found(self, layer: Blockwise) -> Mapping[str, tuple[Place, ...]] | None:
        if not _by_sample(layer.task) or layer.new_axes or layer.annotations:
            return None
        axes: dict[str, tuple[int, ...]] = {}
        indices: Any = layer.indices
        for name, along in indices:
            if along is None and not isinstance(name, GraphNode | TaskRef) and np.ndim(name) == 0:
                continue
            if along is None or name not in self.graph.layers or not set(along) <= {*layer.output_indices}:
                return None
            own = tuple(map(layer.output_indices.index, along))
            if axes.setdefault(name, own) != own:
                return None  # an array and the same one turned
        if not _in_place(layer.task, len(layer.output_indices), axes.values()):
            return None
        if not any(map(self._leads_to_results, axes)):
            return None
        alone = {name: self._single(name, layer.numblocks[name]) for name in axes}
        # What is computed from one array only is not repeated.
        if len(axes) > 1 and any(None in one for one in alone.values()):
            return None
        single: list[bool | None] = [True] * len(layer.output_indices)
        for name, own in axes.items():
            for axis, one in zip(own, alone[name], strict=True):
                single[axis] = single[axis] and one
        self._singles[layer.output] = single
        places = {}
        for name, own in axes.items():
            pairs = zip(own, alone[name], strict=True)
            places[name] = tuple([(axis, bool(one) and not single[axis]) for axis, one in pairs])
        return places

    def _leads_to_results(self, name: str) -> bool:
        """Return whether an array is a result, an expression of results, or slices of one of them."""
        layer: Any = self.graph.layers.get(name)
        if not _is_made(layer):
            return isinstance(layer, LazyLayer) or self.inputs(name) is not None
        node = next(iter(layer.mapping.values()), None)  # all of a layer of dask's slices are alike
        cut = cut_of(node)
        below: Any = cut[0] if cut is not None else _same(node)
        return is_of_array(below) and below[0] != name and self._leads_to_results(below[0])

    def _single(self, name: str, blocks: Iterable[int]) -> list[bool | None]:
        """Return whether an array has one sample along each axis; None: nobody knows."""
        layer = self.graph.layers[name]
        if isinstance(layer, LazyLayer) and name in layer.names.outputs:
            output = layer.spec.outputs[layer.names.outputs.index(name)]
            return [sum(sizes) == 1 for sizes in chunks_of(layer.spec, output)]
        if self.inputs(name) is not None:
            return [*self._singles[name]]
        return [None if n == 1 else False for n in blocks]

    def _learn(self, keys: set[Key]) -> None:
        """Find the forms of tasks, and of all that they are computed from."""
        while keys := keys - self._forms.keys():
            self._forms |= dict.fromkeys(keys)
            further = set[Key]()
            for name in {key[0] for key in keys}:
                inputs = self.inputs(name)
                if inputs is None:
                    continue
                layer: Any = self.graph.layers[name]
                made = dict(layer.cull({key for key in keys if key[0] == name}, ())[0])
                for key in keys & made.keys():
                    node, below = made[key], made[key].dependencies
                    if isinstance(node, Task) and {dep[0] for dep in below} <= inputs.keys():
                        places = {dep: inputs[dep[0]] for dep in below}
                        self._forms[key] = _Form(node, len(layer.output_indices), places)
                        further |= below
            keys = further

    def cut(self, name: str, nodes: Mapping[Key, Any]) -> dict[str, dict[Key, Any]]:
        """Return a layer of slices with the layers below it, by name; none if it stays as it is."""
        cuts = {key: cut for key, node in nodes.items() if (cut := self._cut(node)) is not None}
        same = {key: other for key, node in nodes.items() if (other := _same(node)) is not None}
        self._learn({*same.values(), *(block for block, _ in cuts.values())})
        found = {key: cut for key, cut in cuts.items() if self._fits(*cut)}
        same |= {key: block for key, (block, index) in found.items() if all(i == slice(None) for i in index)}
        self._forms |= {key: self._forms.get(block) for key, block in same.items()}
        if all(item in (None, slice(None)) for _, index in found.values() for item in index):
            self._again |= found
            return {}
        self._name, self._known, self._slices, self._parts = name, {}, {}, {}
        # Tasks of dask's older kind do not say what they need.
        made = {
            key: Task(key, getitem, TaskRef(cuts[key][0]), cuts[key][1])
            if isinstance(node, tuple) and key in cuts
            else node
            for key, node in nodes.items()
        }
        if not all(isinstance(node, GraphNode) for node in made.values()):
            return {}
        for key, (block, index) in found.items():
            # Numbers are slices first: numpy warns of what overflows in a single number, and not in an array.
            part = self._part(block, tuple(_as_slice(item) for item in index if item is not None))
            made[key], self._forms[key] = Alias(key, part), self._forms.get(part)
            if not all(isinstance(item, slice) for item in index):
                rest = tuple(None if item is None else _first(item) for item in index)
                made[key], self._forms[key] = Task(key, getitem, TaskRef(part), rest), None
                self._again[key] = part, rest
        # Now what blocks of the same layer are computed from is known, too.
        self._forms |= {key: self._forms.get(block) for key, block in same.items() if key not in found}
        return {name: made, f"{name}-parts": self._parts, f"{name}-slices": self._slices}

    def _cut(self, node: Any) -> tuple[Key, Index] | None:
        """Return the block that a task cuts, and how; None for any other task."""
        if (found := cut_of(node)) is None:
            return None
        block, index = found
        if not all(item is None or isinstance(item, slice) or _is_number(item) for item in index):
            return None
        part, rest = self._again.get(block, (block, None))
        if rest is None:
            return found
        # An index of what is left of a part, as one of the part.
        own, items = list[slice | int | None](), iter(index)
        for item in rest:
            while not isinstance(item, int) and (new := next(items, slice(None))) is None:
                own.append(None)
            if item is not None:
                own.append(item if isinstance(item, int) else new)
            elif isinstance(new, slice) and new.indices(1) == (0, 1, 1):
                own.append(None)
            elif isinstance(new, slice) or new not in (0, -1):
                return found
        return part, (*own, *items)

    def _fits(self, block: Key, index: Index) -> bool:
        """Return whether an index cuts a block of an expression along each axis."""
        form = self._forms[block]
        return form is not None and form.ndim == len(index) - index.count(None)

    def _part(self, key: Key, index: tuple[slice, ...], depth: int = 0) -> Key:
        """Return the key of a part of a block, and make its task."""
        known = key, tuple((item.start, item.stop, item.step) for item in index)
        if known in self._known:
            return self._known[known]
        form = self._forms.get(key) if depth < LONGEST else None
        # The same in each part of a run, of which all make their own tasks.
        number = hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()
        if form is None:
            new: Key = (f"{self._name}-slices", number)
            self._slices[new] = Task(new, getitem, TaskRef(key), index)
        else:
            parts, places = {}, {}
            for block, own in form.places.items():
                items = tuple(slice(None) if repeated else index[axis] for axis, repeated in own)
                part = parts[block] = self._part(block, items, depth + 1) if own else block
                places[part] = own
            new = f"{self._name}-parts", number
            node: Any = form.node.substitute(parts, key=new)
            self._parts[new], self._forms[new] = node, _Form(node, form.ndim, places)
        self._known[known] = new
        return new


def _by_sample(task: Any) -> bool:
    """Return whether a task computes each sample from those at its place."""
    if not isinstance(task, Task) or not task.kwargs.keys() <= OPTIONS:
        return False
    function = task.kwargs.get("enforce_dtype_function", task.func)
    if isinstance(function, functools.partial):
        if function.args or any(np.ndim(option) for option in function.keywords.values()):
            return False
        function = function.func
    if function in TURNS and function is not task.func:
        return False  # `_in_place` asks the task
    if isinstance(function, np.ufunc):
        return function.signature is None and function.nout == 1 and function.nin == len(task.args)
    return any(function is one for one in FUNCTIONS)


def _in_place(task: Task, ndim: int, places: Iterable[tuple[int, ...]]) -> bool:
    """Return whether samples are computed from those of the places where dask takes the blocks from.

    `dask.array.blockwise` gives blocks to a function along any axes. ``places`` are the axes of the result
    along which dask has the axes of each array.
    """
    if task.func in TURNS:
        axes = task.kwargs.get("axes") or tuple(range(ndim)[::-1])
        if task.func is np.swapaxes:
            axes = _swapped(ndim, *(task.kwargs.get(name, ndim) for name in ("axis1", "axis2")))
        return isinstance(axes, tuple) and all([own[a] for a in axes] == [*range(ndim)] for own in places)
    return all(own == tuple(range(ndim))[ndim - len(own) :] for own in places)


def _swapped(ndim: int, first: int, second: int) -> tuple[int, ...] | None:
    """Return the axes that numpy takes for those of an array of which two are swapped."""
    if not all(-ndim <= axis < ndim for axis in (first, second)):
        return None
    axes = [*range(ndim)]
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _is_number(item: Any) -> bool:
    return isinstance(item, int | np.integer)


def _as_slice(item: Any) -> slice:
    return item if isinstance(item, slice) else slice(item, item + 1 or None)


def _first(item: Any) -> slice | int:
    return slice(None) if isinstance(item, slice) else 0
