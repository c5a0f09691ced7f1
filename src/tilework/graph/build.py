"""Plan, source and function to a dask array: the only module that builds dask arrays."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode
from dask.tokenize import TokenizationError

from tilework.engine.block import block_groups, fill_block, run_block
from tilework.engine.canvas import Layer
from tilework.engine.spec import Index, Spec
from tilework.errors import TilingError
from tilework.function.load_once import LoadOnce
from tilework.graph.layer import Key, Names, block_tasks
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import BlockSource, MemorySource

__all__ = ["build", "chunks_of", "find_spec", "fn_token", "name_of", "plan_of", "specs_below"]


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
        return run_block(block_groups, spec, index, given)


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
