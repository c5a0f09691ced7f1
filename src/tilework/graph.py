"""Plan, source and function to a dask array: the only module that builds dask graphs.

Keys of one result called ``NAME``::

    NAME-spec                  the `Spec`, which every task refers to
    NAME-part-K, *block        a view of array K in memory (no other source has such keys)
    NAME-group, *block         canvases of the tiles that the block owns        (share)
    NAME-seam, *block          copies of what lies in later blocks              (share)
    NAME, *block               a block of the result; NAME-all holds a tuple of blocks for several outputs
    NAME-fill-S                the block in which nothing runs, by shape

Block numbers in inner keys stand slowest axis first and with leading zeros: dask breaks ties by key.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, DataNode, List, Task, TaskRef
from dask.tokenize import TokenizationError

from tilework.calls import block_inputs
from tilework.canvas import Layer
from tilework.cost import slowest_first
from tilework.errors import TilingError
from tilework.fn import LoadOnce
from tilework.kernel import fill_block, merge, run_block, run_group, take_seams
from tilework.plan import TilePlan
from tilework.source import BlockSource, MemorySource
from tilework.spec import Index, Spec

__all__ = ["Names", "block_tasks", "build", "find_spec", "fn_token", "name_of", "plan_of", "specs_below"]

Key = Any
Nodes = Iterator[tuple[Key, Any]]
Finish = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Names:
    """The dask names of one result."""

    name: str
    """Common prefix, unique per plan, source and function."""

    @property
    def spec(self) -> str:
        """Key of the `Spec`."""
        return f"{self.name}-spec"

    def output(self, spec: Spec, number: int) -> str:
        """Return the name of the dask array of one output."""
        return f"{self.name}-{spec.layers[number].bound.key}" if spec.many else self.name


def fn_token(fn: Any) -> Any:
    """Return what names ``fn``: its code where dask can tell, else a random word."""
    if isinstance(fn, LoadOnce):
        return fn.token
    try:
        return tokenize(fn, ensure_deterministic=True)
    except (TokenizationError, RuntimeError):
        return uuid.uuid4().hex


def name_of(spec: Spec, *more: Any) -> str:
    """Return the deterministic name of a result."""
    layers = [
        (
            w.bound.key,
            w.bound.shape,
            w.bound.axes,
            w.bound.channel_axis,
            str(w.bound.dtype),
            _part(w.bound.blend),
        )
        for w in spec.layers
    ]
    reduces = [fn_token(w.bound.reduce) for w in spec.layers]
    fills = [repr(w.bound.fill_value) for w in spec.layers]
    windows = [[a.window for a in w.weights] for w in spec.layers]
    sources = [s.token for s in spec.sources]
    facts = [spec.plan.to_json(), sources, spec.source_axes, layers, reduces, fills, windows, spec.boundary]
    calls = [fn_token(spec.fn), fn_token(spec.skip), spec.pass_tile, repr(spec.cval)]
    token = tokenize(facts, calls, *more)
    return f"tiled_map-{token}"


def _part(blend: Any) -> Any:
    return None if callable(blend) else blend


def _ordered(spec: Spec, index: Index) -> tuple[str, ...]:
    """Return a block's number as dask sorts it, slowest axis first.

    dask breaks ties by the text of keys, and "10" sorts before "2": without leading zeros rows would run in
    the order 0, 1, 10, 11, 2 and chunks of the source would be decoded twice (2.2 times, 16 x 16 blocks).
    """
    counts = spec.plan.blocks
    return tuple(str(index[d]).zfill(len(str(counts[d] - 1))) for d in slowest_first(spec.plan))


def block_tasks(spec: Spec, names: Names, arrays: Sequence[Any], finish: Finish | None = None) -> Nodes:
    """Yield the keys and tasks that compute every block.

    Parameters
    ----------
    spec : Spec
    names : Names
    arrays : sequence
        The dask arrays among the sources, None elsewhere.
    finish : callable, optional
        Takes ``(spec, index, block)`` in the last task of each block and returns what is kept, so that
        writing needs no task of its own. Keys then are ``(NAME-write, *block)``.
    """
    plan, last = spec.plan, _Last(spec, names, finish)
    yield names.spec, DataNode(names.spec, spec)
    for index in itertools.product(*map(range, plan.blocks)):
        if not plan.touched(index):
            yield from last.fill(index)
            continue
        if plan.reuse == "recompute":
            inputs = yield from _inputs(spec, names, arrays, index, owned=False)
            yield from last.task(index, run_block, TaskRef(names.spec), index, inputs)
            continue
        owned, later, earlier = plan.owned(index) > 0, plan.later(index), plan.earlier(index)
        if owned:
            inputs = yield from _inputs(spec, names, arrays, index, owned=True)
        if owned and not later and not earlier:
            yield from last.task(index, run_block, TaskRef(names.spec), index, inputs)
            continue
        group: Any = None
        place = _ordered(spec, index)
        if owned:
            key: Key = (f"{names.name}-group", *place)
            yield key, Task(key, run_group, TaskRef(names.spec), index, inputs)
            group = TaskRef(key)
            if later:
                seam: Key = (f"{names.name}-seam", *place)
                yield seam, Task(seam, take_seams, TaskRef(names.spec), index, group)
        seams = [TaskRef(_seam(spec, names, owner)) for owner in earlier]
        after = [] if finish is None else _raster_edges(spec, names, index, earlier)
        yield from last.task(
            index, merge, TaskRef(names.spec), index, group, earlier, List(*seams), List(*after)
        )


def _seam(spec: Spec, names: Names, owner: Index) -> Key:
    return (f"{names.name}-seam", *_ordered(spec, owner))


def _raster_edges(spec: Spec, names: Names, index: Index, earlier: Sequence[Index]) -> list[TaskRef]:
    """Return references to seams that block ``index`` waits for without needing them.

    dask computes first what needs the fewest roots, so blocks at the faces of a volume come before its
    inside, and most seams of a 3-D blend wait at once (119 of 256 for 16 x 4 x 4 blocks, seen with dask
    2026.8). Where rows wrap round, as if a block at a row's start had its neighbours at the end of the row
    before, all blocks need the same number of roots and dask keeps raster order: 22 seams wait, whatever
    the length of the slowest axis. Only where everything is computed: a slice would run what it waits for.
    """
    axes = slowest_first(spec.plan)
    counts = [spec.plan.blocks[d] for d in axes]
    number = int(np.ravel_multi_index([index[d] for d in axes], counts))
    strides = [math.prod(counts[k + 1 :]) for k in range(len(counts))]
    steps = itertools.product(*((1, 0) if n > 1 else (0,) for n in counts))
    waited = []
    for offset in {sum(s * stride for s, stride in zip(step, strides, strict=True)) for step in steps}:
        if 0 < offset <= number:
            ordered = np.unravel_index(number - offset, counts)
            by_axis = dict(zip(axes, map(int, ordered), strict=True))
            owner = tuple(by_axis[d] for d in range(len(axes)))
            if owner not in earlier and spec.plan.owned(owner) and spec.plan.later(owner):
                waited.append(TaskRef(_seam(spec, names, owner)))
    return waited


def _inputs(
    spec: Spec, names: Names, arrays: Sequence[Any], index: Index, *, owned: bool
) -> Generator[tuple[Key, Any], None, Any]:
    """Yield the tasks that hold parts of arrays in memory; return the inputs of a block's task."""
    ranges = spec.ranges(index, owned=owned)
    inputs: list[Any] = []
    for number, (source, array) in enumerate(zip(spec.sources, arrays, strict=True)):
        if isinstance(source, BlockSource):
            blocks = block_inputs(source, spec.reads(number, ranges))
            inputs.append(List(*(TaskRef((array.name, *block)) for block in blocks)))
        elif isinstance(source, MemorySource):
            reads = spec.reads(number, ranges)
            box = [(plan.intervals[0][0], plan.intervals[-1][1]) for plan in reads]
            key: Key = (f"{names.name}-part-{number}", *_ordered(spec, index))
            yield key, DataNode(key, source.part(box))
            inputs.append(TaskRef(key))
        else:
            inputs.append(None)
    return List(*inputs)


class _Last:
    """The last task of a block: the block itself, a tuple with getters, or what ``finish`` makes of it."""

    def __init__(self, spec: Spec, names: Names, finish: Finish | None) -> None:
        self.spec, self.names, self.finish = spec, names, finish
        self.filled: set[Index] = set()

    def task(self, index: Index, make: Callable[..., Any], *args: Any) -> Nodes:
        spec, names = self.spec, self.names
        if self.finish is not None:
            key: Key = (f"{names.name}-write", *_ordered(spec, index))
            yield key, Task(key, _finished, self.finish, make, *args)
        elif spec.many:
            key = (f"{names.name}-all", *_ordered(spec, index))
            yield key, Task(key, make, *args)
            for number in range(len(spec.layers)):
                one = (names.output(spec, number), *_full(spec.layers[number], index))
                yield one, Task(one, _take, TaskRef(key), number)
        else:
            key = (names.name, *_full(spec.layers[0], index))
            yield key, Task(key, make, *args)

    def fill(self, index: Index) -> Nodes:
        spec, names, plan = self.spec, self.names, self.spec.plan
        shape = tuple(min(s, n - b * s) for b, s, n in zip(index, plan.block, plan.shape, strict=True))
        if self.finish is not None:
            yield from self.task(index, _fill, TaskRef(names.spec), index, shape)
            return
        common = f"{names.name}-fill-{'x'.join(map(str, shape))}"
        if shape not in self.filled:
            self.filled.add(shape)
            yield common, Task(common, fill_block, TaskRef(names.spec), shape)
        for number, layer in enumerate(spec.layers):
            key: Key = (names.output(spec, number), *_full(layer, index))
            yield key, Task(key, _take, TaskRef(common), number) if spec.many else Alias(key, common)


def _take(blocks: Sequence[Any], number: int) -> Any:
    return blocks[number]


def _fill(spec: Spec, index: Index, shape: Index) -> Any:
    del index
    return fill_block(spec, shape)


def _finished(finish: Finish, make: Callable[..., Any], spec: Spec, index: Index, *args: Any) -> Any:
    return finish(spec, index, make(spec, index, *args))


def _full(layer: Layer, index: Index) -> Index:
    """Return a block's number in the axes of the returned array."""
    full = [*index[: layer.n_each], *[0] * len(layer.bound.reduced_shape)]
    for axis, b in zip(layer.bound.reduced_axes, index[layer.n_each :], strict=True):
        full[layer.n_each + axis] = b
    return tuple(full)


def chunks_of(spec: Spec, layer: Layer) -> tuple[tuple[int, ...], ...]:
    """Return the chunks of the returned array, samples per axis."""
    plan = spec.plan
    lengths: list[list[int]] = []
    for size, n in zip(plan.block, plan.shape, strict=True):
        lengths.append([min(size, n - a) for a in range(0, n, size)])
    # The region of an axis alone: other axes do not matter.
    scaled: list[tuple[int, ...]] = []
    for weights, sizes in zip(layer.weights, lengths, strict=True):
        edges = [weights.scaled(a) for a in itertools.accumulate(sizes, initial=0)]
        scaled.append(tuple(b - a for a, b in itertools.pairwise(edges)))
    chunks: list[tuple[int, ...]] = [
        *scaled[: layer.n_each],
        *((n,) for n in layer.bound.reduced_shape),
    ]
    for axis, tiled in zip(layer.bound.reduced_axes, scaled[layer.n_each :], strict=True):
        chunks[layer.n_each + axis] = tiled
    return tuple(chunks)


def build(spec: Spec, arrays: Sequence[Any], name: str) -> list[Any]:
    """Return the lazy dask arrays of all outputs."""
    names = Names(name)
    if da.array_expr_enabled():
        return _build_expr(spec, names)
    graph = dict(block_tasks(spec, names, arrays))
    used = [array for array in arrays if array is not None]
    high = HighLevelGraph.from_collections(name, graph, dependencies=used)
    outputs = []
    for number, layer in enumerate(spec.layers):
        key = names.output(spec, number)
        chunks = chunks_of(spec, layer)
        meta = np.empty((0,) * len(chunks), layer.bound.dtype)
        own = high if key == name else _with_layer(high, key, name)
        outputs.append(da.Array(own, key, chunks, meta=meta))
    return outputs


def _with_layer(high: HighLevelGraph, key: str, name: str) -> HighLevelGraph:
    """Return a graph in which the layer of several outputs also goes by the name of one of them."""
    layers: dict[str, Any] = dict(high.layers) | {key: {}}
    return HighLevelGraph(layers, dict(high.dependencies) | {key: {name}})


def _build_expr(spec: Spec, names: Names) -> list[Any]:
    """Return blocks without edges, all that dask's query planning has a public door for."""
    if spec.plan.reuse != "recompute" or spec.many or any(isinstance(s, BlockSource) for s in spec.sources):
        raise TilingError(
            'dask\'s option "array.query-planning" cannot hold edges between blocks: reuse="share", several '
            "outputs and "
            'dask sources need dask.config.set({"array.query-planning": False}) before dask.array is '
            "imported."
        )
    layer = spec.layers[0]
    chunks = chunks_of(spec, layer)
    meta = np.empty((0,) * len(chunks), layer.bound.dtype)
    block = _ExprBlock(spec)
    return [da.map_blocks(block, name=names.name, chunks=chunks, dtype=layer.bound.dtype, meta=meta)]


class _ExprBlock:
    """A block by its number, for graphs without keys of our own."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __call__(self, block_id: Index = ()) -> Any:
        spec, layer = self.spec, self.spec.layers[0]
        axes = [*range(layer.n_each), *(layer.n_each + a for a in layer.bound.reduced_axes)]
        index = tuple(block_id[a] for a in axes)
        if not spec.plan.touched(index):
            plan = spec.plan
            shape = tuple(min(s, n - b * s) for b, s, n in zip(index, plan.block, plan.shape, strict=True))
            return fill_block(spec, shape)
        ranges = spec.ranges(index, owned=False)
        given = [
            s.part([(p.intervals[0][0], p.intervals[-1][1]) for p in spec.reads(k, ranges)])
            if isinstance(s, MemorySource)
            else None
            for k, s in enumerate(spec.sources)
        ]
        return run_block(spec, index, given)


def find_spec(array: Any) -> tuple[Spec, Mapping[Key, Any], str] | None:
    """Return the `Spec` behind an unmodified result of `tiled_map`, its graph and its common name."""
    graph = getattr(array, "dask", None)
    layers = getattr(graph, "layers", {})
    dependencies = getattr(graph, "dependencies", {})
    for name in (getattr(array, "name", None), *dependencies.get(getattr(array, "name", None), ())):
        layer = layers.get(name, {})
        node = layer.get(f"{name}-spec") if name is not None else None
        if isinstance(node, DataNode) and isinstance(node.value, Spec):
            spec, names = node.value, Names(name)
            # An array computed from a result depends on the same layer, and is another one.
            if array.name in [names.output(spec, k) for k in range(len(spec.layers))]:
                return spec, layer, name
    return None


def plan_of(array: Any) -> TilePlan:
    """Return the plan behind an unmodified result of `tiled_map`.

    Raises
    ------
    TilingError
        For any other array.
    """
    found = find_spec(array)
    if found is None:
        raise TilingError("only an unmodified result of tiled_map has a plan.")
    return found[0].plan


def specs_below(array: Any) -> Iterator[Spec]:
    """Yield the `Spec` of every result of `tiled_map` that an array was made from."""
    for name, layer in array.dask.layers.items():
        # Other layers would be built by being asked what they hold.
        node = layer.get(f"{name}-spec") if isinstance(layer, MaterializedLayer) else None
        if isinstance(node, DataNode) and isinstance(node.value, Spec):
            yield node.value
