"""`tiled_map` and `plan_tiles`: check the arguments once, then make a plan and a graph."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike  # noqa: TC002 -- for typing.get_type_hints

from tilework._checks import as_dtype, brief, flag, of_type, scalar, warn, wholes
from tilework._types import Function, Predicate
from tilework.engine.spec import Spec, with_validity
from tilework.errors import CostWarning, GridError, TilingError, TilingWarning
from tilework.formats.labelled import Labels, dataset_of, unpacked
from tilework.formats.meta import Carried, ImageMeta, NewAxis, named_shape
from tilework.function.bound import BoundOutput, refuse_on_device
from tilework.function.calling import check_function, check_tile_keyword, in_structure, is_on_device
from tilework.function.combining import functions_in, predictions_of
from tilework.function.devices import wants_whole_batches
from tilework.function.normalizing import normalizations
from tilework.function.output import Output, Outputs, named
from tilework.grid.axis import Edge, PadSide
from tilework.grid.weights import Blend
from tilework.labels.hints import label_warning
from tilework.plan.arguments import AxisLengths, check_flags, unknown_argument
from tilework.plan.by_dim import ordered
from tilework.plan.deviation import with_deviation
from tilework.plan.meaning import axes_of, meaning_of
from tilework.plan.nodata import valid_of
from tilework.plan.placing import with_places
from tilework.plan.request import (
    Layout,
    Request,
    bind_outputs,
    declared_outputs,
    make_layout,
    make_plan,
    needs_call,
    weighed,
)
from tilework.plan.tile_plan import TilePlan
from tilework.plan.trial import active_client, call_on_zeros
from tilework.probing.probe import choose_overlap
from tilework.source.base import PlannedSource, Source
from tilework.source.opening import Image, open_source
from tilework.source.padding import Boundary

__all__ = ["image_meta", "plan_tiles", "tiled_map"]

# Bytes of a source in memory above which a run on a cluster warns: it is sent crop by crop.
TRAVEL_WARNING = 100 * 10**6
# A cost warning needs this many crops, and this many times those of the edge that it advises.
EXTRA_CALLS, MANY_CALLS = 1.1, 256

Scalar = bool | int | float | complex | np.generic
"""A number, or another scalar of numpy."""


P = ParamSpec("P")
R = TypeVar("R")


def _explains_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` with an error for unknown keywords that suggests the right one.

    Defined in this module, because doctest skips functions that were wrapped in another one.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name not in known:
                raise unknown_argument(function.__name__, known, name, value)
        return function(*args, **kwargs)

    return checked


@_explains_unknown
def tiled_map(
    fn: Function,
    array: Image | tuple[Image, ...],
    crop: AxisLengths,
    overlap: AxisLengths | Literal["auto"] | None = None,
    *,
    axes: int | str | Sequence[int | str] | None = None,
    each: int | str | Sequence[int | str] = (),
    stride: AxisLengths | None = None,
    starts: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None,
    multiple: AxisLengths = 1,
    edge: Edge = "shift",
    boundary: Boundary = "reflect",
    cval: Scalar = 0,
    pad_side: PadSide = "end",
    blend: Blend = "trim",
    rim: AxisLengths = 0,
    sigma_scale: float = 0.125,
    output: Outputs | None = None,
    dtype: DTypeLike | None = None,
    disagreement: bool = False,
    batch_size: int | None = None,
    pad_batch: bool | None = None,
    mask: ArrayLike | None = None,
    mask_scale: float | Sequence[float] | Mapping[str, float] | None = None,
    where: Image | None = None,
    nodata: Scalar | tuple[Scalar | None, ...] | None = None,
    nodata_fill: Scalar | tuple[Scalar | None, ...] | None = None,
    skip: Predicate | None = None,
    fill_value: Scalar = 0,
    pass_tile: bool = False,
    chunks: AxisLengths | str = "auto",
    memory_limit: int | str | None = None,
    reuse: Literal["auto", "share", "recompute"] = "auto",
    meta: ImageMeta | None = None,
    name: str | None = None,
) -> Any:
    """Return ``fn`` applied to an image crop by crop, as a lazy dask array.

    ``overlap`` is the context on **each** side of a crop: neighbours share ``2 * overlap`` samples. If each
    result sample of ``fn`` depends on inputs at most ``overlap`` away, the trimmed result equals
    ``fn(array)``, the image's own border included.

    Parameters
    ----------
    fn : callable
        Maps a crop, a numpy array that it may overwrite, to an array. Use `load_once` for functions that load
        a model, and `from_torch` for networks.
    array : array, path, URL, or tuple of them
        The image: numpy, memmap, Zarr, OME-Zarr, h5py, dask, xarray, a torch CPU tensor, `load_once`, or
        anything with shape, dtype and slicing. With a tuple, ``fn`` gets one crop of each, with the axes of
        that array in their order. It warns where names of axes tell crops apart that look alike, such as
        square ones of axes yx and xy. A Dataset stands for the tuple of its variables.
        Paths and URLs are those of Zarr; the error for another file gives the line that opens it.
        `open_image` chooses a level or the labels of an OME-Zarr image.
    crop : int, sequence of int or dict by name, samples per tiled axis
        Shape of the crops that ``fn`` receives, along the tiled axes. A dict names these:
        ``{"y": 512, "x": 512}``. All numbers per tiled axis may be a dict by the names of axes.
    overlap : int, sequence of int or dict by name, samples per side and tiled axis; or "auto"
        Required (0 if you mean it) unless ``stride`` is given. "auto" calls ``fn`` 20 to 100 times,
        as `probe` does, and uses the smallest exact overlap with its ``multiple`` and, for a blend, its
        ``rim``. It warns if no overlap is exact, or if it cannot be sure.
    axes : int, str or sequence of them, optional
        Numbers or names of the tiled axes, along which the image is cut. Default: the last ``len(crop)``
        axes, or all axes for an int crop. ``fn`` receives all other axes in full.
    each : int, str or sequence of them
        Numbers or names of axes, such as time or sample, of which every call of ``fn`` gets one index. ``fn``
        does not see these axes; they are the first axes of the result.
    stride : int, sequence of int or dict by name, samples per tiled axis, optional
        Distance between neighbouring crops; give it instead of ``overlap``.
    starts : one sequence of int per tiled axis, or dict of them by name, samples, optional
        Where the crops start along each axis, counted from the first sample of the padded image, instead of
        ``overlap`` or ``stride``: from 0 to where the last crop ends with the image. Trimmed results are cut
        in the middle of what neighbours share. `nnunet_options` returns some.
    multiple : int, sequence of int or dict by name, samples per tiled axis
        Crops start at multiples of this: 16 for a network that pools four times by 2.
    edge : {"shift", "squeeze", "pad", "clip", "drop"}
        Treatment of a crop that sticks out of the image: "shift" moves it inward, "squeeze" spaces all crops
        evenly, "pad" pads it, "clip" cuts it off, "drop" leaves it out.
    boundary : {"reflect", "symmetric", "edge", "wrap", "constant"}
        How samples outside the image are filled, as in `numpy.pad`.
    cval : scalar
        The value outside the image for ``boundary="constant"``.
    pad_side : {"end", "both"}
        Where an image that is shorter than a crop, or in which crops at multiples of ``multiple`` would leave
        a rest, is padded by ``boundary``: at its end, or half on each side, of an odd number the larger half
        at the end. With "both", crops start at multiples of ``multiple`` of the padded image.
    blend : str, callable, sequence of 1-D arrays, or N-D array
        How overlapping results are combined. "trim" takes every sample from one crop (a crop's share of the
        image is its core). "average", "linear", "hann", "gaussian" or your own weights average the results;
        "max", "min" and "sum" use no weights.
    rim : int, sequence of int or dict by name, samples per side and tiled axis
        Outermost samples of a crop that get no weight when blending.
    sigma_scale : float
        Standard deviation of the gaussian, as a fraction of the crop.
    output : Output, or sequence or dict of Output, optional
        Declaration of the arrays that ``fn`` returns; `Output` explains channels, scale and margin. By
        default, ``fn`` is called once on zeros to find it.
    dtype : dtype, optional
        Short for ``output=Output(dtype)``: ``fn`` returns arrays of the crop's shape. Nothing is called.
    disagreement : bool
        Whether to return also the disagreement of overlapping predictions: their weighted standard deviation
        (of the scores, if ``output`` reduces them). It needs an averaging blend, but no further calls. With
        `augmented` or `ensemble` it includes the predictions for each crop, and any overlap will do, trimmed
        too. It is NaN where no tile ran, and 0 where it is below the rounding of sums in double precision,
        4e-8 of the values.
    batch_size : int, crops, optional
        ``fn`` gets ``(batch, *crop)`` and returns ``(batch, ...)``; the last batch of a block may be shorter.
    pad_batch : bool, optional
        Whether a shorter batch repeats its last crop, so that ``fn`` always gets ``batch_size`` of them; what
        it returns for the others is dropped. Default: False, except for networks of `from_torch` that are
        compiled or run on another device than the CPU.
    mask : array of bool, any shape over the tiled axes, optional
        A tile runs only if its support, the part of the crop that has weight, has a True mask sample.
    mask_scale : float, sequence or dict of them, image samples per mask sample and tiled axis, optional
        Default: the image's extent over the mask's length, which must be about the same on all axes.
    where : array of bool, path or URL, optional
        Which samples are valid, over the tiled axes, these and those in ``each``, or all axes, in the order
        of the image. It may have another resolution on tiled axes: sample i of n takes that of number
        ``i * m // n`` of m. A crop without a valid sample does not run, and the result at samples that are
        not valid is ``fill_value``. What lies over any valid sample is valid: a position with one valid
        channel, a result sample of a smaller scale. Read as the image is, part by part. If both say where
        their samples lie, they must cover the same.
    nodata : scalar or True, or tuple of one per array, optional
        Value of samples that are not valid, NaN included; True: what the meaning of the image says. One
        value is that of the first array. Samples are valid if all of ``where``, ``nodata`` and the mask of a
        masked array say so.
    nodata_fill : scalar, or tuple of one per array, optional
        What ``fn`` sees where no sample is valid. Default: what is there, below the mask of a masked array.
    skip : callable, optional
        Predicate on a crop; ``fn`` does not run where it returns true.
    fill_value : scalar
        Value of the result where no tile ran, where samples are not valid, and of an integer result where
        the function returned NaN. For text and records, 0 is an empty text and a record of zeros.
    pass_tile : bool
        Whether ``fn`` also gets ``tile=Tile(...)``, or ``tiles=(...)`` with a batch.
    chunks : int, sequence of int or dict by name, input samples per tiled axis; or str
        Shape of the result's blocks, the chunks of the dask array, in input samples per tiled axis; or the
        bytes of a block ("128MiB"). By default it follows from crops, storage chunks, memory and processors.
    memory_limit : int or str, bytes per process, optional
        Default: half of the machine's memory.
    reuse : {"auto", "share", "recompute"}
        Whether a tile that lies in several blocks runs once and the blocks share its result, or runs in each.
    meta : ImageMeta, optional
        What the samples of the image mean: axes, scale, channels. By default, what the image says of itself.
        With a tuple of arrays, that of the first.
    name : str, optional
        Name of the dask array, as it is. dask takes results of one name for the same where they meet in one
        graph. The default follows from plan, source and ``fn``.

    Returns
    -------
    dask.array.Array, or tuple or dict of them
        Lazy. Shape: the ``each`` axes, then the axes that ``fn`` returns, with tiled axes as long as in the
        image (times the output's scale). Dtype: as declared or found. Chunks: the blocks of the plan along
        ``each`` and tiled axes, and one chunk along all others. With ``disagreement``, a pair of result and
        deviation. If the first array is a DataArray, the result is one with its dims, coordinates and
        attributes, and a dict of results is a Dataset if they fit into one.

    Raises
    ------
    TilingError
        For arguments that contradict each other; the message names the axis, the values and what to change.
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
    from tilework.graph.build import open_all

    check_flags(pass_tile, name, disagreement)
    pad_batch = _pads(fn, batch_size, pad_batch)
    check_function(fn)
    if skip is not None and not callable(skip):
        raise TypeError(f"skip must be a predicate on a crop; got {type(skip).__name__}.")
    given = unpacked(array)
    opened = open_all(given, masked=True)
    labels = Labels.of(given if isinstance(given, tuple) else (given,), opened[0].meta, meta)
    sources = _with_meta(opened, meta)
    request = Request(
        crop=crop, overlap=overlap, axes=axes, each=each, stride=stride, starts=starts, multiple=multiple,
        edge=edge, boundary=boundary, pad_side=pad_side, blend=blend, rim=rim, sigma_scale=sigma_scale,
        batch_size=batch_size, pad_batch=pad_batch, mask=mask, mask_scale=mask_scale, chunks=chunks,
        memory_limit=memory_limit, reuse=reuse,
    )  # fmt: skip
    request = ordered(request, sources[0])
    declared = declared_outputs(output, dtype)
    request, declared, chosen = choose_overlap(fn, sources, request, declared, pass_tile=pass_tile)
    layout = make_layout(sources, request, declared)
    if labels is not None:
        labels.check(layout.source_axes)
    if not chosen:  # else crops were compared, and this came before
        layout.warn_of_orders(sources)
    _check_functions(fn, sources, layout, pass_tile=pass_tile, batched=batch_size is not None)
    if boundary == "constant":
        for s in sources:
            scalar("cval", cval, s.dtype)
    results = None
    if declared is None or any(needs_call(o, layout, sources[0]) for _, o in named(declared)):
        form, results = call_on_zeros(
            fn, sources, layout, pass_tile=pass_tile, batched=batch_size is not None,
            whole=request.batch_size or 1 if request.pad_batch else 1,
        )  # fmt: skip
        declared = in_structure(form, [Output()] * len(results)) if declared is None else declared
    bound = bind_outputs(declared, sources, layout, request, fill_value, results)
    stays = is_on_device(fn)
    fn, bound = with_places(fn, bound, [o for _, o in named(declared)], sources, layout, request)
    predictions = predictions_of(fn, len(layout.crop), batches=batch_size is not None)
    if disagreement:
        fn, bound, declared = with_deviation(fn, bound, declared, layout, request)
    outputs = tuple(weighed(b, layout, request) for b in bound)
    valid = valid_of(sources, layout, where, nodata, nodata_fill)
    if stays:
        refuse_on_device(outputs, disagreement=disagreement, valid=valid is not None)
    extra = None if valid is None else valid.extra
    plan = make_plan(sources, layout, request, outputs, extra, predictions, skips=skip is not None)
    of_each = [axes_of(sources[0], layout, b, o) for b, (_, o) in zip(outputs, named(declared), strict=True)]
    spec = Spec(
        plan=plan.with_notes((*plan.notes, *chosen)), sources=sources, source_axes=layout.source_axes,
        fn=fn, outputs=outputs, boundary=boundary, cval=cval, skip=skip, pass_tile=pass_tile,
        many=not isinstance(declared, Output), fixed=not (isinstance(chunks, str) and chunks == "auto"),
        metas=_metas(sources[0], of_each, outputs),
    )  # fmt: skip
    if valid is not None:
        spec = with_validity(spec, valid, layout, request)
    _warn(spec)
    return _build(spec, declared, name, labels, of_each)


def _check_functions(
    fn: Function, sources: Sequence[Source], layout: Layout, *, pass_tile: bool, batched: bool
) -> None:
    """Raise if a function does not take crops of these sources, or its tile."""
    for one in functions_in(fn):
        for own in normalizations(one):
            own.check(tuple(len(layout.crop_of(s, k)[0]) for k, s in enumerate(sources)))
        check_tile_keyword(one, pass_tile=pass_tile, batched=batched)


def _pads(fn: Function | None, batch_size: int | None, asked: bool | None) -> bool | None:
    """Return whether batches are filled; None: this is known only where the function runs."""
    if asked is not None:
        return flag("pad_batch", asked)
    return True if batch_size is not None and wants_whole_batches(fn) else None


def _metas(
    source: Source, axes_of_each: Sequence[Any], outputs: Sequence[BoundOutput]
) -> tuple[ImageMeta | None, ...]:
    """Return what the samples of each output mean."""
    first = source.meta
    return tuple(
        None if first is None else meaning_of(first, source.dtype, axes, b.dtype)
        for axes, b in zip(axes_of_each, outputs, strict=True)
    )


def _with_meta(sources: tuple[Source, ...], meta: Any) -> tuple[Source, ...]:
    """Return the sources, the first with the meaning that the caller gave."""
    if meta is None:
        return sources
    of_type("meta", meta, ImageMeta, "a tw.ImageMeta, what samples mean; dask's meta= is dtype= here")
    meta.check("the array", sources[0].shape)
    return (replace(sources[0], meta=meta), *sources[1:])


def image_meta(array: Any) -> ImageMeta | None:
    """Return what the samples of an image, or of a result of `tiled_map`, mean.

    Parameters
    ----------
    array : array, path, URL, or result of tiled_map
        Anything that `tiled_map` takes or returns.

    Returns
    -------
    ImageMeta or None
        None if nothing is known: numpy arrays and most others have no names of axes. What is computed from a
        result with dask, such as ``out > 0.5``, has none either; `ImageMeta.sliced` and `ImageMeta.transpose`
        give that of a slice and of a transposed result.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import ImageMeta
    >>> meta = ImageMeta("yx", units="micrometer", scale=(0.5, 0.5))
    >>> out = tiled_map(np.sqrt, np.ones((8, 8)), crop=4, overlap=0, meta=meta)
    >>> image_meta(out)
    <ImageMeta: y 0.5 micrometer, x 0.5 micrometer>
    """
    from tilework.graph.build import find_spec

    found = find_spec(array)
    if found is not None:
        return found.meta
    return open_source(array, masked=True).meta


def _build(
    spec: Spec,
    declared: Outputs,
    name: str | None,
    labels: Labels | None,
    axes: Sequence[Sequence[Carried | NewAxis]],
) -> Any:
    from tilework.graph.build import build
    from tilework.graph.naming import name_of

    built: list[Any] = list(build(spec, name or name_of(spec)))
    if labels is not None:
        metas: Any = spec.metas  # there is a meaning wherever there are labels
        hidden = spec.validity is not None
        built = [labels.label(*one, hidden=hidden) for one in zip(built, metas, axes, strict=True)]
    if isinstance(declared, Output):
        return built[0]
    if isinstance(declared, Mapping):
        found = dict(zip(declared, built, strict=True))
        return found if labels is None else dataset_of(found)
    return tuple(built)


@_explains_unknown
def plan_tiles(
    shape: Sequence[int] | Mapping[str, int],
    crop: AxisLengths,
    overlap: AxisLengths | None = None,
    *,
    axes: int | str | Sequence[int | str] | None = None,
    each: int | str | Sequence[int | str] = (),
    stride: AxisLengths | None = None,
    starts: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None,
    multiple: AxisLengths = 1,
    edge: Edge = "shift",
    boundary: Boundary = "reflect",
    pad_side: PadSide = "end",
    blend: Blend = "trim",
    rim: AxisLengths = 0,
    sigma_scale: float = 0.125,
    output: Outputs | None = None,
    dtype: DTypeLike = "float32",
    batch_size: int | None = None,
    pad_batch: bool | None = None,
    mask: ArrayLike | None = None,
    mask_scale: float | Sequence[float] | Mapping[str, float] | None = None,
    chunks: AxisLengths | str = "auto",
    source_chunks: Sequence[int] | Mapping[str, int] | None = None,
    memory_limit: int | str | None = None,
    reuse: Literal["auto", "share", "recompute"] = "auto",
) -> TilePlan:
    """Return the tiles and blocks of an image of ``shape``: the plan of `tiled_map`, without an image.

    Parameters
    ----------
    shape : sequence of int, samples per axis; or dict by name
        Shape of the image. With a dict, such as the ``sizes`` of a DataArray, axes have names.
    dtype : dtype
        Dtype of the image, and of the result if ``output`` does not declare one.
    source_chunks : sequence of int, samples per axis of the image, or dict by name, optional
        Storage chunks, for the cost of reading: the plan is that of an array that is given by its path.
        Default: any part can be read alone.
    crop, overlap, axes, each, stride, starts, multiple, edge, boundary, pad_side, blend, rim, \
sigma_scale, output, batch_size, pad_batch, mask, mask_scale, chunks, memory_limit, reuse
        As in `tiled_map`, except that ``overlap="auto"`` is an error: it needs the function.

    Returns
    -------
    TilePlan
        A sequence of `Tile`, with the block shape and the reasons for it.

    Raises
    ------
    TilingError, TypeError
        As in `tiled_map`.

    Examples
    --------
    >>> plan = plan_tiles((1000, 800), crop=256, overlap=32)
    >>> len(plan), str(plan[-1].core)
    (24, '[960:1000, 576:800]')
    """
    pad_batch = _pads(None, batch_size, pad_batch)
    extents, meta = named_shape(shape)
    if isinstance(source_chunks, Mapping) and isinstance(shape, Mapping):
        source_chunks = [source_chunks.get(name, n) for name, n in zip(shape, extents, strict=True)]
    chunked = None if source_chunks is None else wholes("source_chunks", source_chunks)
    if chunked is not None and (
        len(chunked) != len(extents) or not all(1 <= n < 2**63 for n in chunked)  # what arrays can count
    ):
        raise GridError(
            f"source_chunks needs one positive length per axis of {extents}; got {brief(source_chunks)}."
        )
    source = PlannedSource(None, extents, as_dtype(dtype), chunked, meta, token="plan")
    request = Request(
        crop=crop, overlap=overlap, axes=axes, each=each, stride=stride, starts=starts, multiple=multiple,
        edge=edge, boundary=boundary, pad_side=pad_side, blend=blend, rim=rim, sigma_scale=sigma_scale,
        batch_size=batch_size, pad_batch=pad_batch, mask=mask, mask_scale=mask_scale, chunks=chunks,
        memory_limit=memory_limit, reuse=reuse,
    )  # fmt: skip
    request = ordered(request, source)
    if isinstance(request.overlap, str) and request.overlap == "auto":
        raise TilingError(
            'overlap="auto" calls the function, and plan_tiles has none; give '
            "overlap=tw.probe(fn, crop).overlap, or take the plan of tiled_map's result."
        )
    declared = declared_outputs(output, None) or Output(dtype)
    layout = make_layout((source,), request, declared)
    bound = bind_outputs(declared, (source,), layout, request, 0, None)
    return make_plan((source,), layout, request, [weighed(b, layout, request) for b in bound])


def _sends() -> bool:
    """Return whether dask would compute a result now on workers in other processes."""
    from dask.config import get

    client = active_client()
    if client is None or get("scheduler", None) not in (None, "dask.distributed", "distributed"):
        return False
    return not str(client.scheduler.address).startswith("inproc")


def _warn(spec: Spec) -> None:
    plan = spec.plan
    for output in spec.outputs:
        images = [s.dtype for s in spec.inputs]
        values = output.values or output.dtype
        if output.reduce is None and (text := label_warning(output.key, values, output.kind, images)):
            warn(text, TilingWarning)
    if not plan.n_tiles:
        warn('no crop fits into the image: with edge="drop" all is fill_value.', TilingWarning)
    if plan.axes[-1].edge == "shift" and plan.mask is None and plan.n_tiles >= MANY_CALLS:
        # What another edge would do under a mask is not known.
        fewer = math.prod(len(replace(axis, edge="squeeze")) for axis in plan.axes)
        if plan.n_tiles > EXTRA_CALLS * fewer:
            warn(f'{plan.n_tiles} crops; {fewer} could cover the image, with edge="squeeze".', CostWarning)
    heavy = [s.nbytes for s in spec.sources if s.in_memory and s.nbytes > TRAVEL_WARNING]
    if heavy and _sends():
        warn(
            f"an array of {max(heavy) / 10**6:.0f} MB in memory will be sent to the cluster crop by crop; a "
            "Zarr store that the workers can read is sent as a path.",
            CostWarning,
        )
