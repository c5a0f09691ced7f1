"""From the arguments of one call to grids, outputs with weights, and a plan; one step each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilework._checks import brief, is_whole, one_of, sequence, warn, whole
from tilework._machine import n_threads
from tilework._types import Array, Index
from tilework.errors import GridError, TilingError, TilingWarning
from tilework.function.bound import BoundOutput, bind, with_weights
from tilework.function.combining import Predictions
from tilework.function.output import Output, Outputs, margins, named, scales
from tilework.grid.axis import EDGES, PAD_SIDES, AxisGrid, Edge, PadSide
from tilework.grid.weights import BLENDS, Blend, kind_of
from tilework.plan.arguments import (
    LONGEST,
    Axes,
    AxisLengths,
    axis_grid,
    check_crop_bytes,
    check_for_all,
    guard_channels,
    lengths,
    listed,
    memory_bytes,
    parse_chunks,
    per_axis,
    resolve_axes,
    tiles_in_mask,
)
from tilework.plan.block_shapes import BlockRequest
from tilework.plan.blocks import choose_blocks
from tilework.plan.decoding import with_spare
from tilework.plan.memory import room_bytes
from tilework.plan.output_plan import valid_bytes
from tilework.plan.pairing import check_names, in_order_of, warn_of_orders
from tilework.plan.tile_mask import TileMask
from tilework.plan.tile_plan import OutputPlan, SourcePlan, TilePlan
from tilework.source.base import Source
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


# Words of these arguments, so that a message can tell that a word belongs to another argument.
WORDS: dict[str, Sequence[str]] = {
    "edge": EDGES, "boundary": BOUNDARIES, "blend": BLENDS, "pad_side": PAD_SIDES,
}  # fmt: skip
# Bytes for decoded chunks, per process, that suffice for the blocks of a small lazy array in any order.
SPARE = 160 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments that `tiled_map` and `plan_tiles` share, as given."""

    crop: AxisLengths | None
    """Shape of the crop that the function receives, samples per tiled axis; None if grids are given."""
    overlap: AxisLengths | str | None
    """Context on each side, samples per tiled axis; "auto" until it is found; None: from the stride."""
    axes: Axes | None = None
    """The tiled axes; None: the last ones."""
    each: Axes = ()
    """Axes of which the function gets one index at a time, such as time."""
    stride: AxisLengths | None = None
    """Distance between crops, samples per tiled axis; None: from the overlap."""
    starts: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None
    """Where crops start, samples of the padded image, per tiled axis; None: from the stride."""
    multiple: AxisLengths = 1
    """Crops start at multiples of this, samples per tiled axis."""
    edge: Edge = "shift"
    """Treatment of a crop that sticks out of the image."""
    boundary: Boundary = "reflect"
    """How samples outside the image are filled."""
    pad_side: PadSide = "end"
    """Where the image is padded so that whole crops fit."""
    blend: Blend = "trim"
    """How overlapping results are combined, unless an `Output` has its own blend."""
    rim: AxisLengths = 0
    """Outermost samples of a crop that get no weight when blending, per side and tiled axis."""
    sigma_scale: float = 0.125
    """Standard deviation of the gaussian, as a fraction of the crop."""
    batch_size: int | None = None
    """Crops per call; None: one, without a batch axis."""
    pad_batch: bool | None = None
    """Whether short batches repeat their last crop; None: if the function wants it."""
    mask: Any = None
    """Which parts of the tiled axes run, at any resolution; None: all."""
    mask_scale: float | Sequence[float] | Mapping[str, float] | None = None
    """Image samples per mask sample; None: extent over length."""
    chunks: AxisLengths | str = "auto"
    """Block shape, input samples per tiled axis, or the bytes of a block."""
    memory_limit: int | str | None = None
    """Bytes per process; None: half of the machine's."""
    reuse: str = "auto"
    """"share", "recompute" or "auto"."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes and grids of one call. Grid axes are the ``each`` axes first, then the tiled axes."""

    each: tuple[Index, ...]
    """Per source, the numbers of its ``each`` axes."""
    tiled: tuple[Index, ...]
    """Per source, the numbers of its tiled axes."""
    crop: Index
    """Shape of the crop, samples per tiled axis."""
    grids: tuple[AxisGrid, ...]
    """One grid per grid axis; a crop of an ``each`` axis is one sample."""
    names: tuple[str, ...]
    """Name or number of each grid axis in the first source, for messages."""
    rim: Index
    """Outermost samples of a crop that get no weight when blending, per side and grid axis."""
    margin: tuple[tuple[int, int], ...]
    """Samples before and after, per tiled axis, for which the function returns no result."""

    @property
    def n_each(self) -> int:
        """Number of ``each`` axes."""
        return len(self.each[0])

    @property
    def source_axes(self) -> tuple[Index, ...]:
        """Per source, its axis for each grid axis."""
        return tuple(e + t for e, t in zip(self.each, self.tiled, strict=True))

    def crop_of(self, source: Source, number: int) -> tuple[Index, Index]:
        """Return the shape of a full crop of source ``number``, and the numbers of its tiled axes."""
        tiled = self.tiled[number]
        seen = [a for a in range(len(source.shape)) if a not in self.each[number]]
        lengths = dict(zip(tiled, self.crop, strict=True))
        return tuple(lengths.get(a, source.shape[a]) for a in seen), tuple(seen.index(a) for a in tiled)

    def warn_of_orders(self, sources: Sequence[Source]) -> None:
        """Warn where ``fn`` gets the same axes of two sources in different orders without noticing it."""
        warn_of_orders(sources, [self.crop_of(s, k)[0] for k, s in enumerate(sources)], self.each)


def declared_outputs(output: Outputs | None, dtype: Any) -> Outputs | None:
    """Return the declared outputs; None if a call has to find them."""
    if output is None:
        return None if dtype is None else Output(dtype)
    if dtype is not None:
        raise TilingError("give dtype or output, not both: output=Output(dtype, ...).")
    named(output)
    return output


def needs_call(output: Output, layout: Layout, source: Source) -> bool:
    """Return whether dtype or channels of ``output`` are known only after a call of the function."""
    if output.reduce != "argmax" or output.channels or output.shape:
        return output.dtype is None and output.reduce != "argmax"
    shape, tiled = layout.crop_of(source, 0)
    return output.dtype is None or len(shape) == len(tiled)


def make_layout(sources: Sequence[Source], request: Request, declared: Outputs | None) -> Layout:
    """Return the axes and grids of one call; raise if they are not valid."""
    one_of("edge", request.edge, WORDS["edge"], WORDS)
    one_of("boundary", request.boundary, WORDS["boundary"], WORDS)
    one_of("pad_side", request.pad_side, WORDS["pad_side"], WORDS)
    each, tiled, crop = _axes(sources, request)
    first, lead = sources[0], each[0]
    names = tuple(first.names[a] if first.names else str(a) for a in (*lead, *tiled[0]))
    outputs = [o for _, o in named(declared)] if declared is not None else [Output()]
    margin, rim, grids = _tiled_grids(
        [first.shape[a] for a in tiled[0]], crop, request, outputs, names[len(lead) :]
    )
    for axis, name in zip(lead, names, strict=False):
        if first.shape[axis] < 1:
            raise GridError(f"the array must not be empty; got extent 0 on axis {name}.")
    ones = tuple(AxisGrid(first.shape[axis], 1, 0) for axis in lead)
    return Layout(each, tiled, crop, ones + grids, names, (0,) * len(lead) + rim, margin)


def _axes(sources: Sequence[Source], request: Request) -> tuple[tuple[Index, ...], tuple[Index, ...], Index]:
    """Return the ``each`` and the tiled axes of every source, and the crop, samples per tiled axis."""
    given = lengths(request.crop)
    resolved = [_resolved(sources[0], s, n, request, given) for n, s in enumerate(sources)]
    each, tiled = tuple(e for e, _ in resolved), tuple(t for _, t in resolved)
    if len({(len(e), len(t)) for e, t in resolved}) > 1:
        raise GridError(
            f"all arrays must have the same tiled and each axes; got {list(zip(each, tiled, strict=True))}."
        )
    first = sources[0]
    each = tuple(in_order_of(first, each[0], s, e) for s, e in zip(sources, each, strict=True))
    cut = [e + t for e, t in zip(each, tiled, strict=True)]
    check_extents(sources, cut)
    check_names(sources, cut)
    crop = given or (whole("crop", request.crop),) * len(tiled[0])
    if request.axes is None:
        guard_channels(first, tiled[0], crop, one_int=given is None)
    check_crop_bytes(crop, first.dtype.itemsize, memory_bytes(request.memory_limit))
    return each, tiled, crop


def _resolved(
    first: Source, source: Source, number: int, request: Request, crop: Index | None
) -> tuple[Index, Index]:
    """Return the ``each`` and the tiled axes of a source; an error of another than the first names it."""
    if not number:
        return resolve_axes(first, request.axes, request.each, crop)
    axes, each = (None if v is None else listed(v, first) for v in (request.axes, request.each))
    try:
        return resolve_axes(source, axes, each, crop)
    except GridError as error:
        raise GridError(f"array {number}: {error}") from None


def _tiled_grids(
    extents: Sequence[int], crop: Index, request: Request, outputs: Sequence[Output], names: Sequence[str]
) -> tuple[tuple[tuple[int, int], ...], Index, tuple[AxisGrid, ...]]:
    """Return margin, rim and grid of each tiled axis."""
    n = len(names)
    margin = margins(outputs, n)
    scale = zip(*(scales(o.scale, n) for o in outputs), strict=True)
    quanta = [math.lcm(*(s.denominator for s in column)) for column in scale]
    # Objects belong to cores, which lie as those of trimmed results.
    kinds = {"trim" if o.labels else _kind(request.blend if o.blend is None else o.blend) for o in outputs}
    trim = isinstance(request.blend, str) and request.blend == "trim"
    if not trim and all(o.labels for o in outputs):
        raise TilingError(
            f"blend={brief(request.blend)} is not for labels: objects stay whole, or are joined. Omit it."
        )
    if request.edge == "drop" and any(o.labels for o in outputs):
        raise TilingError(
            'edge="drop" leaves samples out, and with them parts of objects; for labels use "shift", '
            '"squeeze", "pad" or "clip".'
        )
    if request.boundary == "wrap" and request.edge != "clip" and any(o.labels for o in outputs):
        raise TilingError(
            'boundary="wrap" shows the other end of the image beyond its border, where objects may meet that '
            'are apart in the image; for labels use another boundary, or edge="clip".'
        )
    rim = per_axis("rim", request.rim, names)
    if kinds == {"trim"} and any(rim):
        raise TilingError(
            f'rim is for blends; got rim={request.rim} with blend="trim". Leave it out or choose a blend.'
        )
    _check_place(request)
    none = (None,) * n
    overlaps = none if request.overlap is None else per_axis("overlap", request.overlap, names, crop)
    strides = none if request.stride is None else per_axis("stride", request.stride, names, crop)
    for what, value in (("overlap", request.overlap), ("stride", request.stride)):
        check_for_all(what, value, crop, extents, names)
    multiples = per_axis("multiple", request.multiple, names)
    starts = _starts(request.starts, names)
    grids = tuple(
        axis_grid(
            extents[d], crop[d], overlap=overlaps[d], stride=strides[d], multiple=multiples[d],
            margin=margin[d], quantum=quanta[d], edge=request.edge, trims="trim" in kinds, rim=rim[d],
            name=names[d], pad_side=request.pad_side, starts=starts[d],
        )
        for d in range(n)
    )  # fmt: skip
    return margin, rim, grids


def _check_place(request: Request) -> None:
    """Raise unless the arguments say in one way where crops lie."""
    if request.overlap is None and request.stride is None and request.starts is None:
        raise GridError(
            'give overlap (context per side, samples; 0 if you mean it; "auto" finds it by calling fn) or '
            "stride."
        )
    if isinstance(request.overlap, str):
        raise TypeError(
            f'overlap must be a whole number of samples per side, or "auto"; got {request.overlap!r}.'
        )
    if request.starts is not None and not (request.overlap is None and request.stride is None):
        raise GridError(
            "starts say where crops lie; leave overlap and stride out, got "
            f"overlap={brief(request.overlap)} and stride={brief(request.stride)}."
        )
    if request.starts is not None and request.edge != "shift":
        raise GridError(f'crops with given starts do not stick out; leave edge="{request.edge}" out.')
    if request.pad_side == "both" and request.edge not in ("shift", "squeeze"):
        how = "pads each crop that sticks out" if request.edge == "pad" else "never pads"
        raise GridError(
            f'pad_side="both" is for edge="shift" and edge="squeeze"; edge="{request.edge}" {how}.'
        )


def _starts(starts: Any, names: Sequence[str]) -> Sequence[Sequence[int] | None]:
    """Return the starts of each tiled axis; None for each if none are given."""
    if starts is None:
        return (None,) * len(names)
    rows = tuple(starts) if sequence(starts) else ()
    if len(rows) != len(names) or not all(map(sequence, rows)):
        raise GridError(
            f"starts need one sequence of whole numbers per tiled axis ({', '.join(names)}); got "
            f"{brief(starts)}."
        )
    return rows


def _kind(blend: Blend) -> str:
    if isinstance(blend, str):
        one_of("blend", blend, WORDS["blend"], WORDS)
    return kind_of(blend)


def bind_outputs(
    declared: Outputs, sources: Sequence[Source], layout: Layout, request: Request, fill_value: Any,
    results: Sequence[Array] | None,
) -> list[BoundOutput]:  # fmt: skip
    """Return the declared outputs bound to the crops of this call."""
    shape, crop_axes = layout.crop_of(sources[0], 0)
    pairs = named(declared)
    if results is not None and len(results) != len(pairs):
        raise TilingError(f"the function returned {len(results)} arrays; {len(pairs)} are declared.")
    return [
        bind(
            key, output, crop_shape=shape, crop_axes=crop_axes, crop=layout.crop, margin=layout.margin,
            blend=request.blend, fill_value=fill_value, result=None if results is None else results[number],
        )
        for number, (key, output) in enumerate(pairs)
    ]  # fmt: skip


def weighed(bound: BoundOutput, layout: Layout, request: Request) -> BoundOutput:
    """Return one output with its weights; raise if a window leaves a sample without weight."""
    return with_weights(
        bound,
        layout.grids,
        names=layout.names,
        rim=layout.rim,
        n_each=layout.n_each,
        sigma_scale=request.sigma_scale,
    )


def make_plan(
    sources: Sequence[Source],
    layout: Layout,
    request: Request,
    bound: Sequence[BoundOutput],
    extra: Iterable[tuple[Source, Sequence[int | None]]] | None = None,
    predictions: Predictions = Predictions(),  # noqa: B008 -- a tuple
    *,
    skips: bool = False,
) -> TilePlan:
    """Return the plan of one call: the tiles that run, blocks and reuse.

    ``extra`` has the sources that are read to see which samples are valid, with their axes for each grid
    axis; None: all samples are valid. ``predictions`` tells how many predictions are made for a crop, and
    ``skips`` whether a predicate leaves tiles out.
    """
    n_each = layout.n_each
    outputs = tuple(map(OutputPlan.of, bound))
    source_plans = tuple(map(_source_plan, sources, layout.source_axes))
    if extra is not None:
        source_plans += tuple(_source_plan(source, own) for source, own in extra)
        more = outputs[0].sample_bytes + valid_bytes(outputs[0])
        outputs = (replace(outputs[0], sample_bytes=more), *outputs[1:])
    memory = memory_bytes(request.memory_limit)
    batch: Any = request.batch_size
    if batch is not None and not (is_whole(batch) and 0 < batch <= LONGEST):
        raise TilingError(f"batch_size must be a whole number of crops, at least 1; got {brief(batch)}.")
    if request.pad_batch and batch is None:
        raise TilingError("pad_batch=True fills batches to batch_size, which is not given.")
    plan = TilePlan(
        layout.grids,
        layout.names,
        n_each,
        tuple(g.extent for g in layout.grids),
        outputs,
        source_plans,
        batch_size=None if batch is None else int(batch),
        batches={None: "asked", True: "whole", False: "short"}[request.pad_batch],
        reuse="recompute",
        mask=None if request.mask is None else _mask(layout, request, outputs, n_each),
        threads=n_threads(),
        counted="exact" if extra is None else "most",
        predictions=predictions.made,
        together=predictions.together,
        waiting=predictions.waiting,
        gaps="any" if skips else "known",
        boundary=request.boundary,
    )
    shape, target = parse_chunks(request.chunks, layout.grids, layout.names, n_each)
    plan = choose_blocks(plan, BlockRequest(shape, target, None, memory, request.reuse))
    return with_spare(plan, min(SPARE, memory // 8, memory - room_bytes(plan) + plan.cache_bytes))


def _source_plan(source: Source, grid_axes: Sequence[int | None]) -> SourcePlan:
    untiled = math.prod(m for a, m in enumerate(source.shape) if a not in grid_axes)
    chunks = None
    if source.chunks is not None:
        chunks = tuple(source.chunks[a] for a in grid_axes if a is not None)  # all: see `plan.nodata`
    return SourcePlan(
        untiled * source.dtype.itemsize,
        chunks,
        source.in_memory,
        chunks is None or source.shares,
        source.request_bytes,
        source.given and not source.in_memory,
        source.shares_in_runs,
    )


def _mask(layout: Layout, request: Request, outputs: Sequence[OutputPlan], n_each: int) -> TileMask:
    """Return which tiles run."""
    runs = tiles_in_mask(
        request.mask,
        layout.grids[n_each:],
        [None if o.rim is None else o.rim[n_each:] for o in outputs],
        layout.names[n_each:],
        request.mask_scale,
    )
    if not runs.bits.any():
        warn("the mask is False everywhere: no tile runs, all is fill_value.", TilingWarning)
    return runs.repeated([len(g) for g in layout.grids[:n_each]])
