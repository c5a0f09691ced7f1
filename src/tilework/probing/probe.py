"""`probe`, and ``overlap="auto"``: the context that a function needs, found by calling it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilework._checks import as_dtype, as_numbers, at_least, brief, flag, positive, warn
from tilework._types import Array, Function
from tilework.errors import GridError, TilingError, TilingWarning
from tilework.formats.meta import named_shape
from tilework.function.calling import check_function
from tilework.function.combining import Combined
from tilework.function.load_once import LoadOnce
from tilework.function.normalizing import bare_function, normalizations
from tilework.function.output import Outputs, named, scales
from tilework.plan.arguments import axis_grid, lengths, per_axis
from tilework.plan.by_dim import ordered
from tilework.plan.request import Layout, Request, make_layout
from tilework.plan.trial import active_client
from tilework.probing.blackbox import BlackBox
from tilework.probing.experiment import Experiment
from tilework.probing.inputs import CropShapes, Inputs, value_range
from tilework.probing.merging import merged_report
from tilework.probing.report import ProbeReport
from tilework.probing.search import search
from tilework.source.base import BlockSource, Source

__all__ = ["choose_overlap", "probe"]

_LOG = logging.getLogger("tilework")


def probe(
    fn: Function,
    crop: int | Sequence[int] | Mapping[str, int],
    array: Any = None,
    *,
    shape: Sequence[int] | Mapping[str, int] | None = None,
    dtype: Any = "float32",
    axes: Any = None,
    each: Any = (),
    batch_size: int | None = None,
    values: tuple[float, float] | None = None,
    tolerance: float | None = None,
    nan: bool = False,
    extremes: bool = False,
    seed: int = 0,
) -> ProbeReport:
    """Return the context that a function needs: its smallest exact overlap, found by calling it.

    `probe` replaces parts of a crop: the distance at which results change is the distance at which they
    depend on inputs. It also rolls crops: if the result is rolled too, the function commutes with that
    translation. And it compares crops with longer ones: if their middles differ, results depend on the
    crop's length.

    ``fn`` is called with crops of noise, smooth noise, lines and flat images, of values within ``values``,
    and with the crop in the middle of ``array``; also with crops of up to four times the samples.

    Parameters
    ----------
    fn : callable
        As for `tiled_map`. It is called 20 to 100 times, in this process; functions of `load_once` or
        `from_torch` are called on a worker of the active cluster, if there is one. A call that takes a
        hundred times as long as the first one, and more than ten seconds, is logged and ends the search;
        Python code is stopped, compiled code runs to its end.
    crop : int, tuple of int or dict by name, samples per tiled axis
        Shape of the crops that ``fn`` receives; at least four times the expected overlap.
    array : array, path or tuple of them, optional
        As for `tiled_map`. Its shape and dtype are used, and the crop in its middle as an input. A dask array
        is not computed.
    shape : tuple of int or dict by name, samples per axis, optional
        Shape of the image if no array is given: ``(3, 512, 512)`` for crops with 3 channels. Default: the
        crop.
    dtype : dtype
        Dtype of the image if no array is given.
    axes, each, batch_size
        As for `tiled_map`.
    values : (low, high), optional
        Range of the random inputs. Default: the range of the crop in the middle of the array; without an
        array, 0 to 1 for floats and at most 12 bits for integers.
    tolerance : float, optional
        Largest change that is ignored, as a fraction of the largest result, for inputs within ``values``:
        1e-3 for a gaussian whose tail may be cut. Default: rounding.
    nan : bool
        Whether to call ``fn`` with NaN too, to find how far NaN reaches. Compiled code that does not expect
        NaN may crash the process.
    extremes : bool
        Whether to call ``fn`` with values up to 10 000 ranges away from ``values`` too. They show the weakest
        responses, at the ends of a deep network's reach. Compiled code that uses values as an index may
        crash the process.
    seed : int
        Seed of the random inputs.

    Returns
    -------
    ProbeReport
        Prints as a table. Pass ``overlap``, ``multiple`` and ``output`` to `tiled_map` unchanged. A blend is
        exact with ``rim=report.rim`` and an overlap of at least the sum of margin and rim.

        ``exact`` is said of functions that commute with translations by ``multiple``, that reach less far
        than the crop, and whose reach is the same in all images that were tried. Functions that follow
        objects, holes, distances or plateaus have no fixed reach: `probe` says so where it sees it, and
        doubts a result that it cannot rule out.

    Raises
    ------
    TilingError
        If crop, shape and axes contradict each other, or no `Output` describes the result.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    An observed reach is certain, because a result changed. A larger reach may have been missed: the report
    states how many draws and places were tested and how long the crops were, and holds for inputs like
    these. `tilework.check` compares a tiled result with the untiled one in your image. Results that differ
    by rounding, 64 units in the last place of the largest result, count as equal.

    Examples
    --------
    >>> import numpy as np
    >>> report = probe(lambda x: x + np.vstack([x[:3] * 0, x[:-3]]), (64, 64))
    >>> report.overlap, report.sides, report.multiple, report.exact
    ((3, 0), ((3, 0), (0, 0)), (1, 1), True)
    """
    check_function(fn)
    seed = at_least("seed", seed, 0)
    flag("nan", nan)
    flag("extremes", extremes)
    if values is not None and as_numbers("values", values).shape != (2,):
        raise TypeError(f"values must be (low, high), two numbers; got {brief(values)}.")
    batch_size = None if batch_size is None else at_least("batch_size", batch_size, 1)
    if tolerance is not None and not (positive("tolerance", tolerance) and tolerance < 1e300):
        raise TilingError(f"tolerance must be a positive share of the largest result; got {tolerance!r}.")
    if array is not None:
        if shape is not None:
            raise TilingError("give array or shape, not both: an array has its shape.")
        from tilework.graph.build import open_all

        sources = open_all(array)
    else:
        if shape is None and not isinstance(crop, Mapping) and lengths(crop) is None:
            raise TilingError(
                f"give the crop's length per axis, or shape= of the image: crop={crop} has any dimension."
            )
        whole, meta = named_shape(crop if shape is None else shape)
        sources = (Source(None, whole, as_dtype(dtype), meta=meta, token="probe"),)
    request = Request(crop=crop, overlap=0, axes=axes, each=each, batch_size=batch_size)
    request = ordered(request, sources[0])
    layout = make_layout(sources, request, None)
    layout.warn_of_orders(sources)
    return _probe(
        fn, sources, layout, batched=batch_size is not None, values=values, tolerance=tolerance, nan=nan,
        extremes=extremes, seed=seed,
    )  # fmt: skip


def _probe(
    fn: Function,
    sources: Sequence[Source],
    layout: Layout,
    *,
    batched: bool,
    whole: int = 1,
    values: tuple[float, float] | None = None,
    tolerance: float | None = None,
    nan: bool = False,
    extremes: bool = False,
    seed: int = 0,
) -> ProbeReport:
    """Return the report on ``fn``, called on crops of ``sources``.

    With an active cluster a `load_once` function is called on a worker: the model may not fit here.
    """
    if isinstance(fn, Combined):
        # Its functions are probed one by one: of their mixture, the weakest would show least.
        whole = whole * len(fn.variants(len(layout.crop))) if whole > 1 else 1
        reports = [
            _probe(
                member, sources, layout, batched=batched, values=values, tolerance=tolerance, nan=nan,
                extremes=extremes, seed=seed, whole=whole,
            )
            for member in fn.members
        ]  # fmt: skip
        return _fitting(merged_report(fn, reports))
    shapes, tiled_axes, samples = [], [], []
    for source, each, tiled in zip(sources, layout.each, layout.tiled, strict=True):
        by_axis = dict(zip(tiled, layout.crop, strict=True))
        seen = [a for a in range(len(source.shape)) if a not in each]
        shapes.append(tuple(by_axis.get(a, source.shape[a]) for a in seen))
        tiled_axes.append(tuple(seen.index(a) for a in tiled))
        samples.append(_middle(source, each, shapes[-1]))
    dtypes = tuple(s.dtype for s in sources)
    names = layout.names[len(layout.each[0]) :]
    crops = CropShapes(tuple(shapes), dtypes, tuple(tiled_axes), layout.crop, names)
    # What is far from the statistics that a function normalises by would look alike to it.
    own = next(normalizations(fn), None)
    known = own.values() if own is not None and samples[0] is None else None
    ranges = [
        value_range(t, values or (known if k == 0 else None), s)
        for k, (t, s) in enumerate(zip(dtypes, samples, strict=True))
    ]
    inputs = Inputs(crops, ranges, samples, np.random.default_rng(seed))
    experiment = Experiment(BlackBox(fn, batched, whole), inputs, tolerance, extremes=extremes, nan=nan)
    client = active_client() if isinstance(bare_function(fn), LoadOnce) else None
    if client is None:
        return _fitting(search(experiment))
    return _fitting(client.submit(search, experiment, pure=False).result())


def _fitting(report: ProbeReport) -> ProbeReport:
    """Return the report with the next larger overlap that `tiled_map` accepts for its crop and multiple."""
    overlap, doubts = list(report.overlap), list(report.doubts)
    for d, (name, need) in enumerate(zip(report.names, report.overlap, strict=True)):
        fits = _smallest(report, d, need, report.multiple[d])
        if fits is None:
            # More than half of the crop: no tiling is exact, and one for looking at seams is all there is.
            least = max(report.crop[d] // 4, *report.margin[d])
            overlap[d] = _smallest(report, d, least, report.multiple[d]) or need
            m, lo = report.multiple[d], report.margin[d][0]
            longer = 2 * lo + -(-(max(report.crop[d] + 1, 4 * need) - 2 * lo) // m) * m
            doubts.append(
                f"no overlap of at least {need} fits a crop of {report.crop[d]} on axis {name}: crop less "
                f"twice the overlap must be a multiple of {m}, and positive. Give a crop such as {longer}"
            )
        else:
            overlap[d] = fits
    return replace(report, overlap=tuple(overlap), doubts=tuple(doubts))


def _smallest(report: ProbeReport, d: int, need: int, multiple: int) -> int | None:
    """Return the smallest overlap of at least ``need`` that `tiled_map` accepts along axis ``d``."""
    outputs = [output for _, output in named(report.output)]
    quantum = math.lcm(*(scales(o.scale, len(report.crop))[d].denominator for o in outputs))
    for overlap in range(need, (report.crop[d] + 1) // 2):
        try:
            axis_grid(
                2 * report.crop[d], report.crop[d], overlap=overlap, multiple=multiple,
                margin=report.margin[d], quantum=quantum,
            )  # fmt: skip
        except GridError:
            continue
        return overlap
    return None


def _middle(source: Source, each: Sequence[int], shape: Sequence[int]) -> Array | None:
    """Return the crop in the middle of an image; None if it would have to be computed or padded."""
    if isinstance(source, BlockSource) or source.handle is None:
        return None
    samples, box = iter(shape), []
    for axis, n in enumerate(source.shape):
        c = 1 if axis in each else next(samples)
        if c > n:
            return None
        box.append(((n - c) // 2, (n - c) // 2 + c))
    return np.array(source.read(box)).reshape(tuple(shape))


def choose_overlap(
    fn: Function,
    sources: Sequence[Source],
    request: Request,
    declared: Outputs | None,
    *,
    pass_tile: bool,
) -> tuple[Request, Outputs | None, tuple[str, ...]]:
    """Return the request with ``overlap="auto"`` replaced by samples, the outputs, and a note for the plan.

    The multiple is set too, and for a blend the rim. A request with an overlap in samples is returned
    unchanged.

    Raises
    ------
    TilingError
        If ``fn`` takes its tile, so that crops cannot be compared, or if a stride is given.
    TypeError
        If the overlap is a report.
    """
    if isinstance(request.overlap, ProbeReport):
        raise TypeError(
            "overlap is a length, not a report: give overlap=report.overlap, multiple=report.multiple, "
            "output=report.output."
        )
    if not isinstance(request.overlap, str) or request.overlap != "auto":
        return request, declared, ()
    if declared is not None and any(output.labels for _, output in named(declared)):
        raise TilingError(
            'overlap="auto" finds how far fn looks, but the overlap of labels depends on the objects: give '
            "at least half of the longest one, and as many samples as fn looks far."
        )
    if pass_tile:
        raise TilingError(
            'overlap="auto" calls fn on crops that belong to no tile; with pass_tile=True, give overlap '
            "in samples."
        )
    if request.stride is not None:
        raise TilingError(
            f'give overlap="auto" or stride, not both; got stride={request.stride!r}. The stride follows '
            "from the overlap: crop - 2 * overlap."
        )
    layout = make_layout(sources, replace(request, overlap=0, multiple=1, blend="trim", rim=0), None)
    layout.warn_of_orders(sources)
    whole = request.batch_size or 1 if request.pad_batch else 1
    report = _probe(fn, sources, layout, batched=request.batch_size is not None, whole=whole)
    names = report.names
    asked = per_axis("multiple", request.multiple, names)
    multiple = tuple(math.lcm(max(1, a), m) for a, m in zip(asked, report.multiple, strict=True))
    outputs = report.output if declared is None else declared
    averages = _averages(request, outputs)
    rim, context, blended = request.rim, report.overlap, ""
    if report.bounded and averages:
        blended = f"; a blend is exact only with rim={report.rim}"
        if not any(per_axis("rim", rim, names)):
            rim, context = _rim(report, outputs)
            blended = f"; rim={rim}: what crops do not know near their ends gets no weight"
    overlap = tuple(
        _smallest(report, d, o, m) or o for d, (o, m) in enumerate(zip(context, multiple, strict=True))
    )
    note = (
        f'overlap="auto": {overlap} per side and multiple {multiple}, by {report.calls} calls of fn{blended}'
    )
    extents = [sources[0].shape[a] for a in layout.tiled[0]]
    spare = [name for name, c, n in zip(names, layout.crop, extents, strict=True) if c >= n]
    note = _announced(note, report, request, spare if len(spare) < len(names) else (), averages=averages)
    filled = replace(request, overlap=overlap, multiple=multiple, rim=rim)
    return filled, outputs, (note,)


def _announced(
    note: str, report: ProbeReport, request: Request, spare: Sequence[str], *, averages: bool
) -> str:
    """Log the chosen overlap, or warn if it is not exact; return the note for the plan.

    Along the axes ``spare`` a crop is as long as the image, so that they need not be tiled.
    """
    # A crop padded with the opposite side has the context that a wrapping function has in the whole image.
    padded = request.edge == "pad" and request.boundary == "wrap"
    if replace(report, wraps=() if padded else report.wraps).exact:
        _LOG.info("%s; no input farther away was seen to matter", note)
        return note
    todo = "The result may differ from the untiled one: see tw.check."
    if not report.bounded:
        advice = "" if averages or report.labels else ': blend them, blend="gaussian"'
        todo = f"Neighbouring crops will disagree{advice}; look at the seams."
    if spare:
        todo = (
            f"The crop is as long as the image along axis {', '.join(spare)}: leave it out of crop and "
            f"axes, and nothing has to be found there. As it is: {todo}"
        )
    note += f"; {report.verdict}"
    warn(f"{note} ({'; '.join((*report.doubts, *report.notes))}). {todo}", TilingWarning)
    return note


def _averages(request: Request, outputs: Outputs) -> bool:
    """Return whether any output is combined from several results per sample."""
    blends = [request.blend if output.blend is None else output.blend for _, output in named(outputs)]
    return any(not isinstance(blend, str) or blend not in ("trim", "sum") for blend in blends)


def _rim(report: ProbeReport, outputs: Outputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rim that makes blends exact, in whole result samples, and the overlap that it needs."""
    columns = zip(*(scales(output.scale, len(report.names)) for _, output in named(outputs)), strict=True)
    quanta = [math.lcm(*(s.denominator for s in column)) for column in columns]
    rim = tuple(-(-r // q) * q for r, q in zip(report.rim, quanta, strict=True))
    # A rim has to end inside the neighbour's support; without a rim, results must overlap to be blended.
    return rim, tuple(
        max(o, (r or 1) + max(lost)) for o, r, lost in zip(report.overlap, rim, report.margin, strict=True)
    )
