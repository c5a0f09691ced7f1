"""The arguments of one call turned into grids, outputs, windows and a plan, one step each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import one_of
from tilework.errors import GridError, TilingError, TilingWarning
from tilework.function.output import BoundOutput, Output, Outputs, bind, margins, named, scales, with_weights
from tilework.grid.axis import EDGES, AxisGrid, Edge
from tilework.grid.weights import Blend, kind_of
from tilework.plan.arguments import (
    check_axis,
    check_crop_bytes,
    guard_channels,
    lengths,
    memory_bytes,
    n_threads,
    parse_chunks,
    per_axis,
    resolve_axes,
    tiles_in_mask,
)
from tilework.plan.blocks import BlockRequest, choose_blocks
from tilework.plan.tables import pack
from tilework.plan.tile_plan import OutputPlan, SourcePlan, TilePlan
from tilework.source.base import MemorySource, Source
from tilework.source.opening import check_extents
from tilework.source.padding import BOUNDARIES, Boundary

__all__ = [
    "Layout",
    "Request",
    "bind_outputs",
    "declared_outputs",
    "make_layout",
    "make_plan",
    "needs_call",
    "weighed",
]

Index = tuple[int, ...]

# Decoded chunks that a process may keep, bytes: two rows of 1024 x 1024 float32 chunks of an image
# 20 000 samples wide.
CACHE = 160 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments that `tiled_map` and `plan_tiles` share, as given."""

    crop: Any
    overlap: Any
    axes: Any = None
    each: Any = ()
    stride: Any = None
    multiple: Any = 1
    edge: Edge = "shift"
    boundary: Boundary = "reflect"
    blend: Blend = "trim"
    rim: Any = 0
    sigma_scale: float = 0.125
    batch_size: Any = None
    mask: Any = None
    mask_scale: Any = None
    chunks: Any = "auto"
    memory_limit: Any = None
    reuse: str = "auto"


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes and grids of one call."""

    each: tuple[Index, ...]
    """Per source, its ``each`` axes."""
    tiled: tuple[Index, ...]
    """Per source, its tiled axes."""
    crop: Index
    grids: tuple[AxisGrid, ...]
    """Per grid axis: ``each`` axes first."""
    names: tuple[str, ...]
    rim: Index
    margin: tuple[tuple[int, int], ...]


def declared_outputs(output: Outputs | None, dtype: Any) -> Outputs | None:
    """Return what was declared of the outputs; None where a call has to show it."""
    if output is None:
        return None if dtype is None else Output(dtype)
    if dtype is not None:
        raise TilingError("give dtype or output, not both: output=Output(dtype, ...).")
    named(output)
    return output


def needs_call(output: Output) -> bool:
    """Return whether only a call can tell the dtype of ``output``."""
    return output.dtype is None and not (output.reduce == "argmax" and (output.channels or output.shape))


def make_layout(sources: Sequence[Source], request: Request, declared: Outputs | None) -> Layout:
    """Return axes and grids; everything about them that can be wrong is refused here."""
    one_of("edge", request.edge, EDGES)
    one_of("boundary", request.boundary, BOUNDARIES)
    given = lengths(request.crop)
    resolved = [resolve_axes(s, request.axes, request.each, given) for s in sources]
    each, tiled = tuple(e for e, _ in resolved), tuple(t for _, t in resolved)
    if len({(len(e), len(t)) for e, t in resolved}) > 1:
        raise GridError(
            f"all arrays must have the same tiled and each axes; got {list(zip(each, tiled, strict=True))}."
        )
    check_extents(sources, [e + t for e, t in resolved])
    first, n = sources[0], len(tiled[0])
    names = tuple(first.names[a] if first.names else str(a) for a in (*each[0], *tiled[0]))
    own = names[len(each[0]) :]
    crop = given or per_axis("crop", request.crop, own)
    if request.axes is None:
        guard_channels(first, tiled[0], crop, one_int=given is None)
    check_crop_bytes(crop, first.dtype.itemsize, memory_bytes(request.memory_limit))
    outputs = [o for _, o in named(declared)] if declared is not None else [Output()]
    margin = margins(outputs, n)
    quanta = [
        math.lcm(*(s.denominator for s in column))
        for column in zip(*(scales(o.scale, n) for o in outputs), strict=True)
    ]
    blends = [request.blend if o.blend is None else o.blend for o in outputs]
    kinds = {kind_of(b) for b in blends}
    rim = per_axis("rim", request.rim, own)
    if kinds == {"trim"} and any(rim):
        raise TilingError(
            f'rim is for blends; got rim={request.rim} with blend="trim". Leave it out or choose a blend.'
        )
    grids = _tiled_grids(
        first,
        tiled[0],
        crop,
        request,
        own,
        margin,
        quanta,
        rim,
        trims="trim" in kinds,
        blends=kinds != {"trim"},
    )
    for axis, name in zip(each[0], names, strict=False):
        if first.shape[axis] < 1:
            raise GridError(f"the array must not be empty; got extent 0 on axis {name}.")
    lead = tuple(AxisGrid(first.shape[axis], 1, 0) for axis in each[0])
    return Layout(each, tiled, crop, lead + grids, names, (0,) * len(lead) + rim, margin)


def _tiled_grids(
    source: Source, tiled: Index, crop: Index, request: Request, names: Sequence[str],
    margin: tuple[tuple[int, int], ...], quanta: Sequence[int], rim: Index, *, trims: bool, blends: bool,
) -> tuple[AxisGrid, ...]:  # fmt: skip
    if request.overlap is None and request.stride is None:
        raise GridError("give overlap (context per side, samples; 0 if you mean it) or stride.")
    if isinstance(request.overlap, str):
        raise TypeError(
            f'overlap must be a whole number of samples per side, or "auto"; got {request.overlap!r}.'
        )
    overlaps = None if request.overlap is None else per_axis("overlap", request.overlap, names, crop)
    strides = None if request.stride is None else per_axis("stride", request.stride, names, crop)
    multiples = [
        math.lcm(max(m, 1), q) if m > 0 else m
        for m, q in zip(per_axis("multiple", request.multiple, names), quanta, strict=True)
    ]
    grids = []
    for d, name in enumerate(names):
        c, (lo, hi), m = crop[d], margin[d], multiples[d]
        if strides is not None:
            if strides[d] < 1:
                raise GridError(f"stride must be at least 1; got {strides[d]} on axis {name}.")
            half = max(0, (c - strides[d]) // 2)
            o = half if overlaps is None else overlaps[d]
            if overlaps is not None and strides[d] != c - 2 * o:
                raise GridError(
                    f"overlap and stride disagree: crop {c} with overlap {o} has stride {c - 2 * o}; got "
                    f"{strides[d]} "
                    f"on axis {name}. Give one of them."
                )
            # The stride is what was asked for: the context takes the largest value on the allowed starts.
            if overlaps is None and m > 1 and half >= lo:
                o = lo + (half - lo) // m * m
            s = strides[d]
        else:
            assert overlaps is not None
            o = overlaps[d]
            s = c - 2 * o
        # A stride of 0 means "from the overlap" to AxisGrid; -1 keeps it an error.
        grid = AxisGrid(source.shape[tiled[d]], c, o, s or -1, request.edge, trims, m, (lo, hi), quanta[d])
        check_axis(grid, name, rim=rim[d])
        grids.append(grid)
    if blends and all(g.stride == g.crop - sum(g.margin) for g in grids):
        raise GridError(
            f"blending needs overlapping crops; got stride {tuple(g.stride for g in grids)} and crop {crop} "
            "on axes "
            f'{", ".join(names)}. Give overlap or a smaller stride, or use blend="trim".'
        )
    return tuple(grids)


def bind_outputs(
    declared: Outputs, sources: Sequence[Source], layout: Layout, request: Request, fill_value: Any,
    results: Sequence[np.ndarray[Any, Any]] | None,
) -> list[BoundOutput]:  # fmt: skip
    """Return the declared outputs bound to the crops of this call."""
    source, each, tiled = sources[0], layout.each[0], layout.tiled[0]
    seen = [a for a in range(len(source.shape)) if a not in each]
    crop_axes = tuple(seen.index(a) for a in tiled)
    shape = [source.shape[a] for a in seen]
    for axis, c in zip(crop_axes, layout.crop, strict=True):
        shape[axis] = c
    pairs = named(declared)
    if results is not None and len(results) != len(pairs):
        raise TilingError(f"the function returned {len(results)} arrays; {len(pairs)} are declared.")
    return [
        bind(
            key, output, crop_shape=tuple(shape), crop_axes=crop_axes, crop=layout.crop, margin=layout.margin,
            blend=request.blend, fill_value=fill_value, result=None if results is None else results[number],
        )
        for number, (key, output) in enumerate(pairs)
    ]  # fmt: skip


def weighed(bound: BoundOutput, layout: Layout, request: Request) -> BoundOutput:
    """Return one output with its weights; refuses windows that leave a sample without weight."""
    return with_weights(
        bound,
        layout.grids,
        names=layout.names,
        rim=layout.rim,
        n_each=len(layout.each[0]),
        sigma_scale=request.sigma_scale,
    )


def make_plan(
    sources: Sequence[Source], layout: Layout, request: Request, bound: Sequence[BoundOutput]
) -> TilePlan:
    """Return the plan: tiles that run, blocks, reuse."""
    n_each = len(layout.each[0])
    outputs = tuple(map(OutputPlan.of, bound))
    source_plans = tuple(
        _source_plan(s, e + t) for s, e, t in zip(sources, layout.each, layout.tiled, strict=True)
    )
    memory = memory_bytes(request.memory_limit)
    batch = request.batch_size
    if batch is not None and (type(batch) is bool or not isinstance(batch, int | np.integer) or batch < 1):
        raise TilingError(f"batch_size must be a whole number of crops, at least 1; got {batch!r}.")
    plan = TilePlan(
        layout.grids,
        layout.names,
        n_each,
        tuple(g.extent for g in layout.grids),
        outputs,
        source_plans,
        batch_size=None if batch is None else int(batch),
        reuse="recompute",
        mask=None if request.mask is None else _mask_bits(layout, request, outputs, n_each),
        threads=n_threads(),
        cache_bytes=min(CACHE, memory // 8) if any(s.chunks for s in source_plans) else 0,
    )
    shape, target = parse_chunks(request.chunks, layout.grids, layout.names, n_each)
    return choose_blocks(plan, BlockRequest(shape, target, None, memory, request.reuse))


def _source_plan(source: Source, grid_axes: Sequence[int]) -> SourcePlan:
    untiled = math.prod(m for a, m in enumerate(source.shape) if a not in grid_axes)
    chunks = None if source.chunks is None else tuple(source.chunks[a] for a in grid_axes)
    return SourcePlan(untiled * source.dtype.itemsize, chunks, isinstance(source, MemorySource))


def _mask_bits(layout: Layout, request: Request, outputs: Sequence[OutputPlan], n_each: int) -> bytes:
    """Return which tiles run, one bit per tile in raster order."""
    runs = tiles_in_mask(
        request.mask,
        layout.grids[n_each:],
        [None if o.rim is None else o.rim[n_each:] for o in outputs],
        layout.names[n_each:],
        request.mask_scale,
    )
    if not runs.any():
        warnings.warn(
            "the mask is False everywhere: no tile runs, all is fill_value.",
            TilingWarning,
            stacklevel=5,
        )
    counts = tuple(len(g) for g in layout.grids[:n_each])
    return pack(np.broadcast_to(runs, counts + runs.shape))
