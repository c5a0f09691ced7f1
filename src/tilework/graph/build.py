"""Dask arrays from plan, source and function: the only module that builds them."""

from __future__ import annotations

import itertools
import sys
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode
from dask.tokenize import TokenizationError

from tilework._types import Index
from tilework.engine.block import Block, fill_block, gather_tiles, make_block
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.function.load_once import LoadOnce
from tilework.function.output import BoundOutput
from tilework.graph.layer import BlockTasks, spec_key
from tilework.plan.tile_plan import TilePlan

__all__ = [
    "Found",
    "bare",
    "build",
    "chunks_of",
    "find_spec",
    "fn_token",
    "name_of",
    "plan_of",
    "specs_below",
]


def fn_token(fn: Any) -> Any:
    """Return a token of ``fn``: from its code if dask can hash it, otherwise random."""
    if isinstance(fn, LoadOnce):
        return fn.token
    try:
        return tokenize(fn, ensure_deterministic=True)
    except (TokenizationError, RuntimeError):
        return uuid.uuid4().hex


def name_of(spec: Spec, *more: Any) -> str:
    """Return the deterministic name of a result."""
    outputs = [
        (o.key, o.shape, o.axes, o.channel_axis, str(o.dtype), None if callable(o.blend) else o.blend)
        for o in spec.outputs
    ]
    reduces = [fn_token(o.reduce) for o in spec.outputs]
    fills = [repr(o.fill_value) for o in spec.outputs]
    windows = [[w.window for w in o.weights] for o in spec.outputs]
    sources = [s.token for s in spec.sources]
    facts = [spec.plan.to_json(), sources, spec.source_axes, outputs, reduces, fills, windows, spec.boundary]
    calls = [fn_token(spec.fn), fn_token(spec.skip), spec.pass_tile, repr(spec.cval)]
    token = tokenize(facts, calls, *more)
    return f"tiled_map-{token}"


def chunks_of(spec: Spec, output: BoundOutput) -> tuple[tuple[int, ...], ...]:
    """Return the chunks of the returned array, samples per axis."""
    plan = spec.plan
    chunks: list[tuple[int, ...]] = [(n,) for n in output.layout(plan.shape, reduced=True)]
    for axis, weights, size, n in zip(output.grid_axes, output.weights, plan.block, plan.shape, strict=True):
        edges = [weights.scaled(min(a, n)) for a in range(0, n + size, size)]
        chunks[axis] = tuple(b - a for a, b in itertools.pairwise(edges))
    return tuple(chunks)


def build(spec: Spec, name: str) -> list[da.Array]:
    """Return the lazy dask arrays of all outputs."""
    if da.array_expr_enabled():
        return [_build_expr(spec, name)]
    blocks = BlockTasks(spec, name)
    graph = dict(blocks.shared)
    for index in blocks.order():
        graph.update(blocks.of(index))
    used = [source.handle for source in spec.sources if source.dask_name is not None]
    high = HighLevelGraph.from_collections(name, graph, dependencies=used)
    return [
        da.Array(high if key == name else _with_layer(high, key, name), key, **_facts(spec, output))
        for key, output in zip(spec.names(name), spec.outputs, strict=True)
    ]


def _facts(spec: Spec, output: BoundOutput) -> dict[str, Any]:
    """Return chunks and meta of the dask array of an output."""
    chunks = chunks_of(spec, output)
    return {"chunks": chunks, "meta": np.empty((0,) * len(chunks), output.dtype)}


def _with_layer(high: HighLevelGraph, key: str, name: str) -> HighLevelGraph:
    """Return a graph with a layer named after one output, which depends on the layer of all outputs."""
    layers: dict[str, Any] = dict(high.layers) | {key: {}}
    return HighLevelGraph(layers, dict(high.dependencies) | {key: {name}})


def _build_expr(spec: Spec, name: str) -> da.Array:
    """Return an array of blocks without edges, the only graph that dask's query planning accepts publicly."""
    taken = any(source.dask_name is not None for source in spec.sources)
    if spec.plan.reuse != "recompute" or spec.many or taken:
        raise TilingError(
            'dask\'s option "array.query-planning" cannot hold edges between blocks: reuse="share", several '
            'outputs and dask sources need dask.config.set({"array.query-planning": False}) before '
            "dask.array is imported."
        )
    [output] = spec.outputs
    array: da.Array = da.map_blocks(_ExprBlock(spec), name=name, dtype=output.dtype, **_facts(spec, output))
    return array


class _ExprBlock:
    """Computes a block from its number, for graphs whose keys dask chooses."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __call__(self, block_id: Index = ()) -> Block:
        spec = self.spec
        index = tuple(block_id[a] for a in spec.outputs[0].grid_axes)
        if not spec.plan.touched(index):
            return fill_block(spec, index)
        return make_block(gather_tiles, spec, index, spec.needs(index, owned=False))


class Found(NamedTuple):
    """The origin of an unmodified result of `tiled_map`."""

    spec: Spec
    """The data that all its tasks share."""
    number: int
    """Number of the output."""
    name: str
    """Common name of all outputs of the call."""

    @property
    def output(self) -> BoundOutput:
        """The output of this array."""
        return self.spec.outputs[self.number]


def bare(array: Any) -> Any:
    """Return the dask array that an xarray object holds; any other array itself."""
    xarray: Any = sys.modules.get("xarray")
    if xarray is None or not isinstance(array, xarray.DataArray | xarray.Variable) or array.chunks is None:
        return array
    return array.data


def find_spec(array: Any) -> Found | None:
    """Return the origin of an array if it is an unmodified result of `tiled_map`, otherwise None."""
    array = bare(array)
    graph, own = getattr(array, "dask", None), getattr(array, "name", None)
    layers, dependencies = getattr(graph, "layers", {}), getattr(graph, "dependencies", {})
    for name in (own, *dependencies.get(own, ())):
        node = layers.get(name, {}).get(spec_key(name)) if name is not None else None
        if isinstance(node, DataNode) and isinstance(node.value, Spec):
            names = node.value.names(name)
            # An array computed from a result depends on the same layer but has another name.
            if own in names:
                return Found(node.value, names.index(own), name)
    return None


def plan_of(array: Any) -> TilePlan:
    """Return the plan of an unmodified result of `tiled_map`.

    Raises
    ------
    TilingError
        For any other array.
    """
    found = find_spec(array)
    if found is None:
        raise TilingError("only an unmodified result of tiled_map has a plan.")
    return found.spec.plan


def specs_below(array: Any) -> Iterator[Spec]:
    """Yield the `Spec` of every result of `tiled_map` from which an array is computed."""
    for name, layer in array.dask.layers.items():
        # A lookup in another kind of layer would build it.
        node = layer.get(spec_key(name)) if isinstance(layer, MaterializedLayer) else None
        if isinstance(node, DataNode) and isinstance(node.value, Spec):
            yield node.value
