"""`tiled_map` and `plan_tiles`: arguments coerced once, then delegated."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tilework._checks import as_dtype, scalar, wholes
from tilework.engine.spec import Spec
from tilework.errors import CostWarning, GridError, TilingError, TilingWarning
from tilework.function.calling import check_function, check_tile_keyword
from tilework.function.output import Output, Outputs, named
from tilework.grid.axis import Edge
from tilework.grid.weights import Blend
from tilework.plan.arguments import (
    check_flags,
    refuse_unknown,
)
from tilework.plan.cost import fewest_calls
from tilework.plan.deviation import with_deviation
from tilework.plan.request import (
    Request,
    bind_outputs,
    declared_outputs,
    make_layout,
    make_plan,
    needs_call,
    weighed,
)
from tilework.plan.tile_plan import TilePlan
from tilework.plan.trial import call_on_zeros
from tilework.probing.probe import choose_overlap
from tilework.source.base import MemorySource, Source
from tilework.source.opening import open_source
from tilework.source.padding import Boundary

__all__ = ["plan_tiles", "tiled_map"]

# Source in memory above which sending it to a cluster is worth a word, bytes.
TRAVEL_WARNING = 100 * 10**6
# Blocks of one array: a graph takes about 1 kB for each.
MOST_BLOCKS = 10**7
# Extra crops over the fewest that could cover, and crops in all, from which on the build warns.
EXTRA_CALLS, MANY_CALLS = 1.1, 256


def tiled_map(
    fn: Callable[..., Any],
    array: Any,
    crop: int | Sequence[int],
    overlap: int | Sequence[int] | str | None = None,
    *,
    axes: Any = None,
    each: Any = (),
    stride: int | Sequence[int] | None = None,
    multiple: int | Sequence[int] = 1,
    edge: Edge = "shift",
    boundary: Boundary = "reflect",
    cval: Any = 0,
    blend: Blend = "trim",
    rim: int | Sequence[int] = 0,
    sigma_scale: float = 0.125,
    output: Outputs | None = None,
    dtype: Any = None,
    disagreement: bool = False,
    batch_size: int | None = None,
    mask: Any = None,
    mask_scale: Any = None,
    skip: Callable[..., Any] | None = None,
    fill_value: Any = 0,
    pass_tile: bool = False,
    chunks: Any = "auto",
    memory_limit: int | str | None = None,
    reuse: str = "auto",
    name: str | None = None,
    **unknown: Any,
) -> Any:
    """Return ``fn`` applied to an image crop by crop, as a lazy dask array.

    ``overlap`` is the context on **each** side of a crop: neighbours share ``2 * overlap`` samples. If each
    result sample of ``fn`` depends on inputs at most ``overlap`` away, the trimmed result equals
    ``fn(array)``, the image's own border included.

    Parameters
    ----------
    fn : callable
        Maps a crop (a numpy array of its own) to an array. Make heavy ones with `load_once`, networks with
        `from_torch`.
    array : array, path, URL, or tuple of them
        numpy, memmap, Zarr, OME-Zarr, h5py, dask, dask-backed xarray, a torch CPU tensor, `load_once`, or
        anything with shape, dtype and slicing. Of several, ``fn`` gets one crop each.
    crop : int or tuple of int, samples per tiled axis
        What ``fn`` receives.
    overlap : int, tuple of int, or "auto"; samples per side and tiled axis
        Required (0 if you mean it) unless ``stride`` is given. "auto": the smallest exact one with its
        ``multiple`` (and, for a blend, ``rim``), found by 15 to 60 calls of ``fn`` (`probe`); warns where
        none is exact.
    axes : tuple of int or names, optional
        Tiled axes; default: the last ``len(crop)``, all for an int crop.
    each : tuple of int or names
        Axes whose every index is a call of its own; they stand in front in the result.
    stride : int or tuple of int, samples per tiled axis, optional
        Distance between crops, instead of overlap.
    multiple : int or tuple of int, samples
        Crops start at multiples of this: 16 for a network that pools four times by 2.
    edge : {"shift", "squeeze", "pad", "clip", "drop"}
        What happens to a crop that sticks out of the image.
    boundary : {"reflect", "symmetric", "edge", "wrap", "constant"}
        How missing samples are invented, as in `numpy.pad`; ``cval`` is the constant.
    blend : str, callable, tuple of 1-D arrays, or N-D array
        "trim", "average", "linear", "hann", "gaussian", "max", "min", "sum", or own weights.
    rim : int or tuple of int, samples per side
        Outermost samples of a crop without weight when blending.
    sigma_scale : float
        Standard deviation of the gaussian, as a fraction of the crop.
    output : Output, or tuple or dict of Output, optional
        What ``fn`` returns; left out, ``fn`` is called once on zeros to see.
    dtype : dtype, optional
        Short for ``output=Output(dtype)``: the crop's shape comes back; calls nothing.
    disagreement : bool
        For an averaging blend: also return how far overlapping predictions are apart, as their weighted
        standard deviation (of the scores, where ``output`` reduces them). NaN where no tile ran; 0 where it
        is less than the rounding of sums in double precision, 4e-8 of the values. Costs no further call.
    batch_size : int, optional
        ``fn`` gets ``(batch, *crop)`` and returns ``(batch, ...)``; the last batch may be short.
    mask : array of bool, optional
        Over the tiled axes at any resolution: only tiles with a True in their support run.
    mask_scale : float or tuple of float, optional
        Image samples per mask sample, where they differ between the axes.
    skip : callable, optional
        Predicate on each crop; where true, ``fn`` does not run.
    fill_value : scalar
        Value where nothing ran.
    pass_tile : bool
        ``fn`` also gets ``tile=Tile(...)``, or ``tiles=(...)`` with a batch.
    chunks : int, tuple of int or str
        Block shape of the result in input samples, or bytes ("128MiB").
    memory_limit : int or str, optional
        Bytes per process; default: half of the machine's memory.
    reuse : {"auto", "share", "recompute"}
        Whether blocks share the tiles at their borders or run them again.
    name : str, optional
        Name of the dask array; the default follows from plan, source and ``fn``.

    Returns
    -------
    dask.array.Array, or tuple or dict of them
        Lazy; untiled axes are one chunk. With ``disagreement`` a pair: result and deviation.

    Raises
    ------
    TilingError
        For arguments that cannot work; the message names the axis, the values and what to change.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(100.0).reshape(10, 10)
    >>> out = tiled_map(lambda x: x + np.roll(x, 1, 0), image, crop=6, overlap=1, dtype=float)
    >>> out.shape, bool((out.compute()[1:] == (image + np.roll(image, 1, 0))[1:]).all())
    ((10, 10), True)
    """
    refuse_unknown(unknown, tiled_map.__kwdefaults__ or ())
    check_function(fn)
    if skip is not None and not callable(skip):
        raise TypeError(f"skip must be a predicate on a crop; got {type(skip).__name__}.")
    check_flags(pass_tile, name, disagreement)
    given = tuple(array) if isinstance(array, tuple) else (array,)
    if not given:
        raise TypeError("array must be an array, or a tuple of at least one; got ().")
    sources = tuple(map(open_source, given))
    request = Request(
        crop=crop,
        overlap=overlap,
        axes=axes,
        each=each,
        stride=stride,
        multiple=multiple,
        edge=edge,
        boundary=boundary,
        blend=blend,
        rim=rim,
        sigma_scale=sigma_scale,
        batch_size=batch_size,
        mask=mask,
        mask_scale=mask_scale,
        chunks=chunks,
        memory_limit=memory_limit,
        reuse=reuse,
    )
    declared = declared_outputs(output, dtype)
    request, declared, chosen = choose_overlap(fn, sources, request, declared, pass_tile=pass_tile)
    layout = make_layout(sources, request, declared)
    check_tile_keyword(fn, pass_tile=pass_tile, batched=batch_size is not None)
    if boundary == "constant":
        for s in sources:
            scalar("cval", cval, s.dtype)
    shown = None
    if declared is None or any(needs_call(o) for _, o in named(declared)):
        shown = call_on_zeros(fn, sources, layout, pass_tile=pass_tile, batched=batch_size is not None)
        declared = shown.outputs() if declared is None else declared
    bound = bind_outputs(declared, sources, layout, request, fill_value, shown.results if shown else None)
    if disagreement:
        fn, bound, declared = with_deviation(fn, bound, declared, layout, request)
    outputs = tuple(weighed(b, layout, request) for b in bound)
    plan = make_plan(sources, layout, request, outputs)
    spec = Spec(
        plan=replace(plan, notes=(*plan.notes, *chosen)),
        sources=sources,
        source_axes=tuple(e + t for e, t in zip(layout.each, layout.tiled, strict=True)),
        fn=fn,
        outputs=outputs,
        boundary=boundary,
        cval=cval,
        skip=skip,
        pass_tile=pass_tile,
        many=not isinstance(declared, Output),
        fixed=chunks != "auto",
    )
    _warn(spec)
    return _build(spec, declared, name)


def _build(spec: Spec, declared: Outputs, name: str | None) -> Any:
    from tilework.graph.build import build, name_of

    if (n := math.prod(spec.plan.blocks)) > MOST_BLOCKS:
        raise GridError(
            f"chunks {spec.plan.block} make {n} blocks, more than {MOST_BLOCKS}; use larger chunks."
        )
    built = build(spec, name or name_of(spec))
    if isinstance(declared, Output):
        return built[0]
    if isinstance(declared, Mapping):
        return dict(zip(declared, built, strict=True))
    return tuple(built)


def plan_tiles(
    shape: Sequence[int],
    crop: int | Sequence[int],
    overlap: int | Sequence[int] | None = None,
    *,
    axes: Any = None,
    each: Any = (),
    stride: int | Sequence[int] | None = None,
    multiple: int | Sequence[int] = 1,
    edge: Edge = "shift",
    boundary: Boundary = "reflect",
    blend: Blend = "trim",
    rim: int | Sequence[int] = 0,
    sigma_scale: float = 0.125,
    output: Outputs | None = None,
    dtype: Any = "float32",
    batch_size: int | None = None,
    mask: Any = None,
    mask_scale: Any = None,
    chunks: Any = "auto",
    source_chunks: Sequence[int] | None = None,
    memory_limit: int | str | None = None,
    reuse: str = "auto",
) -> TilePlan:
    """Return the tiles and blocks of an image of ``shape``, without the image.

    Parameters
    ----------
    shape : sequence of int, samples per axis
    source_chunks : sequence of int, optional
        Storage chunks of the image, for the cost of reading.
    dtype : dtype
        Of the image, and of the result where ``output`` does not say otherwise.
    crop, overlap, axes, each, stride, multiple, edge, boundary, blend, rim, sigma_scale, output, \
batch_size, mask, mask_scale, chunks, memory_limit, reuse
        As in `tiled_map`.

    Returns
    -------
    TilePlan

    Raises
    ------
    TilingError, TypeError
        As `tiled_map`.

    Examples
    --------
    >>> plan = plan_tiles((1000, 800), crop=256, overlap=32)
    >>> len(plan), str(plan[-1].core)
    (24, '[960:1000, 576:800]')
    """
    extents = wholes("shape", shape)
    chunked = None if source_chunks is None else wholes("source_chunks", source_chunks)
    if chunked is not None and (len(chunked) != len(extents) or min(chunked, default=1) < 1):
        raise GridError(f"source_chunks needs one positive length per axis of {extents}; got {chunked}.")
    source = Source(None, extents, as_dtype(dtype), chunked, token="plan")
    request = Request(
        crop=crop,
        overlap=overlap,
        axes=axes,
        each=each,
        stride=stride,
        multiple=multiple,
        edge=edge,
        boundary=boundary,
        blend=blend,
        rim=rim,
        sigma_scale=sigma_scale,
        batch_size=batch_size,
        mask=mask,
        mask_scale=mask_scale,
        chunks=chunks,
        memory_limit=memory_limit,
        reuse=reuse,
    )
    if isinstance(request.overlap, str) and request.overlap == "auto":
        raise TilingError(
            'overlap="auto" calls the function, and plan_tiles has none; give '
            "overlap=tw.probe(fn, crop).overlap, or take the plan of tiled_map's result."
        )
    declared = declared_outputs(output, None) or Output(dtype)
    layout = make_layout((source,), request, declared)
    bound = bind_outputs(declared, (source,), layout, request, 0, None)
    return make_plan((source,), layout, request, [weighed(b, layout, request) for b in bound])


def _warn(spec: Spec) -> None:
    plan = spec.plan
    if not len(plan):
        warnings.warn(
            'no crop fits into the image: with edge="drop" all is fill_value.',
            TilingWarning,
            stacklevel=3,
        )
    fewest = fewest_calls(plan)
    if plan.axes[-1].edge == "shift" and len(plan) >= MANY_CALLS and len(plan) > EXTRA_CALLS * fewest:
        warnings.warn(
            f'{len(plan)} crops; {fewest} could cover the image. edge="squeeze" gets closer.',
            CostWarning,
            stacklevel=3,
        )
    distributed = sys.modules.get("distributed")
    heavy = [s.nbytes for s in spec.sources if isinstance(s, MemorySource) and s.nbytes > TRAVEL_WARNING]
    if heavy and distributed is not None and distributed.worker_client is not None:
        try:
            distributed.default_client()
        except ValueError:
            return
        warnings.warn(
            f"an array of {max(heavy) / 10**6:.0f} MB in memory will be sent to the cluster crop by crop; a "
            "Zarr store "
            "that the workers can read travels as a path.",
            CostWarning,
            stacklevel=3,
        )
