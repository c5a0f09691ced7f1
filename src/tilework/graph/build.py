"""Dask arrays from plan, source and function: the only module that builds them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode

from tilework._checks import attribute, has
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.formats.labelled import meta_of, told_by, unpacked
from tilework.formats.meta import ImageMeta
from tilework.function.bound import BoundOutput
from tilework.graph.layer import BlockLayer, OutputLayer, SpecLayer
from tilework.graph.nodes import sliced_lazily
from tilework.graph.own_names import check_names, check_result, names_of, spec_nodes
from tilework.graph.tasks import Names
from tilework.grid.axis import ceil_div
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import BlockSource, Source
from tilework.source.opening import Image, open_source

__all__ = [
    "Found",
    "bare",
    "build",
    "chunks_of",
    "dask_arrays",
    "find_spec",
    "is_lazy",
    "lowered",
    "open_all",
    "open_known",
    "plan_of",
    "specs_below",
]


def chunks_of(spec: Spec, output: BoundOutput) -> tuple[tuple[int, ...], ...]:
    """Return the chunks of the returned array, samples per axis."""
    plan = spec.plan
    chunks: list[tuple[int, ...]] = [(n,) for n in output.layout(plan.shape, reduced=True)]
    for axis, weights, size, n in zip(output.grid_axes, output.weights, plan.block, plan.shape, strict=True):
        # Blocks that are not the whole axis are multiples of the scale's denominator.
        others, length = ceil_div(n, size) - 1, weights.scaled(min(size, n))
        chunks[axis] = (*(length,) * others, weights.scaled(n) - others * length)
    return tuple(chunks)


def build(spec: Spec, name: str) -> list[da.Array]:
    """Return the lazy dask arrays of all outputs; no task is made."""
    names = names_of(spec, name)
    check_result(name, {name, names.spec, *names.outputs}, spec.sources)
    check_names(spec.sources)
    if da.array_expr_enabled():
        return _expressions(spec, names)
    spec = replace(spec, sources=tuple(map(_below, spec.sources)))
    used = [source.handle for source in spec.sources if source.dask_name is not None]
    high = HighLevelGraph.from_collections(name, BlockLayer(spec, names), dependencies=used)
    layers: dict[str, Any] = {**high.layers, names.spec: SpecLayer({names.spec: DataNode(names.spec, spec)})}
    below = {**high.dependencies, names.spec: set(), name: high.dependencies[name] | {names.spec}}
    if not spec.many:
        return [da.Array(HighLevelGraph(layers, below), name, **_facts(spec, spec.outputs[0]))]
    arrays = []
    for number, (key, output) in enumerate(zip(names.outputs, spec.outputs, strict=True)):
        graph = HighLevelGraph({key: OutputLayer(spec, names, number), **layers}, {key: {name}, **below})
        arrays.append(da.Array(graph, key, **_facts(spec, output)))
    return arrays


def _below(source: Source) -> Source:
    """Return a source of which a part costs only itself, also for what reads it without the result."""
    return replace(source, handle=sliced_lazily(source.handle)) if isinstance(source, BlockSource) else source


def _facts(spec: Spec, output: BoundOutput) -> dict[str, Any]:
    """Return chunks and meta of the dask array of an output."""
    chunks = chunks_of(spec, output)
    return {"chunks": chunks, "meta": np.empty((0,) * len(chunks), output.dtype)}


def _expressions(spec: Spec, names: Names) -> list[da.Array]:
    """Return the arrays of all outputs as expressions."""
    from dask._collections import new_collection

    from tilework.graph.expr import Blocks, Result

    sources = [source.handle.expr for source in spec.sources if source.dask_name is not None]
    blocks = Blocks(spec, names, *sources)
    facts = [_facts(spec, output) for output in spec.outputs]
    return [new_collection(Result(blocks, k, f["chunks"], f["meta"])) for k, f in enumerate(facts)]


class Found(NamedTuple):
    """The origin of an unmodified result of `tiled_map`."""

    spec: Spec
    """The data that all its tasks share."""
    number: int
    """Number of the output."""
    name: str
    """Common name of all outputs of the call."""
    call: str
    """Tells the call from others, also from those of which the user gave the results the same name."""
    labelled: Any = None
    """The DataArray that holds it, if one does."""

    @property
    def output(self) -> BoundOutput:
        """The output of this array."""
        return self.spec.outputs[self.number]

    @property
    def meta(self) -> ImageMeta | None:
        """What the samples of this array mean; None if that is not known."""
        return self.told(None if self.labelled is None else meta_of(self.labelled))

    def told(self, own: ImageMeta | None) -> ImageMeta | None:
        """Return the same, where ``own`` is what the array says where nothing else is known."""
        known = self.spec.metas[self.number] if self.spec.metas else None
        return known if own is None or self.labelled is None else told_by(self.labelled, own, known)


def bare(array: Any) -> Any:
    """Return the dask array that an xarray object holds; any other array itself."""
    xarray: Any = sys.modules.get("xarray")
    if xarray is None or not isinstance(array, xarray.DataArray | xarray.Variable) or array.chunks is None:
        return array
    return array.data


def is_lazy(array: Any) -> bool:
    """Return whether an array is one of dask; the graph of an expression is not made.

    Bags, data frames and delayed values have graphs, too; those have any attribute but no tuple of chunks.
    """
    return (
        has(array, "chunks")
        and isinstance(array.chunks, tuple)
        and (has(array, "expr") or has(array, "dask"))
    )


def lowered(array: Any) -> Any:
    """Return a dask array whose blocks have the names that are in its graph; an expression gets them late."""
    return array.optimize() if has(array, "expr") else array


def find_spec(array: Any) -> Found | None:
    """Return the origin of an array if it is an unmodified result of `tiled_map`, otherwise None."""
    given, array = array, bare(array)
    labelled = None if given is array else given
    if has(array, "expr"):
        return _find_expression(array.expr, labelled)
    graph, own = attribute(array, "dask"), attribute(array, "name")
    layers, dependencies = attribute(graph, "layers", {}), attribute(graph, "dependencies", {})
    for name in (own, *dependencies.get(own, ())):
        layer = layers.get(name)
        # An array computed from a result depends on the same layer but has another name.
        if isinstance(layer, BlockLayer) and own in layer.names.outputs and layer.is_own(layers):
            number = layer.names.outputs.index(own)
            return Found(layer.spec, number, layer.names.inner, layer.names.spec, labelled)
    return None


def open_known(array: Any, *, masked: bool = False) -> Source:
    """Open an array as `open_source` does, and a result of `tiled_map` with its meaning."""
    source = open_source(array, masked=masked)
    found = find_spec(array)
    meta = None if found is None else found.told(source.meta)
    return source if meta is None else replace(source, meta=meta)


def open_all(array: Image | tuple[Image, ...], *, masked: bool = False) -> tuple[Source, ...]:
    """Open an array, or each of a tuple or Dataset, as `open_known` does."""
    array = unpacked(array)
    given = array if isinstance(array, tuple) else (array,)
    if not given:
        raise TypeError("array must be an array, or a tuple of at least one; got ().")
    return tuple(open_known(one, masked=masked) for one in given)


def _find_expression(expr: Any, labelled: Any) -> Found | None:
    """Return the origin of an expression that is an unmodified result."""
    from tilework.graph.expr import Result

    if not isinstance(expr, Result):
        return None
    names = expr.blocks.names
    return Found(expr.blocks.spec, expr.operands[1], names.inner, names.spec, labelled)


def dask_arrays(sources: Iterable[Source]) -> list[Any]:
    """Return the dask arrays among some sources."""
    return [source.handle for source in sources if isinstance(source, BlockSource)]


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
    yield from (spec for _, spec in spec_nodes(array))
