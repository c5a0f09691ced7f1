"""``overlap="auto"``: the function is probed, and the answer put in place of the word."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilework.errors import TilingError, TilingWarning
from tilework.function.load_once import LoadOnce
from tilework.function.output import Outputs, named, scales
from tilework.plan.arguments import per_axis
from tilework.plan.request import Layout, Request, make_layout
from tilework.plan.trial import active_client
from tilework.probing.blackbox import BlackBox, Crops, Inputs, value_range
from tilework.probing.report import ProbeReport
from tilework.probing.search import Probing
from tilework.source.base import BlockSource, Source

__all__ = ["choose_overlap", "probe_layout"]

_LOG = logging.getLogger("tilework")


def probe_layout(
    fn: Any,
    sources: Sequence[Source],
    layout: Layout,
    *,
    batched: bool,
    values: Any = None,
    tolerance: float | None = None,
    seed: int = 0,
    read: bool = True,
) -> ProbeReport:
    """Return what probing ``fn`` on crops of ``sources`` finds.

    With an active cluster a `load_once` function is called on a worker: the model may not fit here.

    Parameters
    ----------
    read : bool
        Whether one crop in the middle of each image may be read, as an unperturbed input.
    """
    shapes, tiled_axes, samples = [], [], []
    for source, each, tiled in zip(sources, layout.each, layout.tiled, strict=True):
        by_axis = dict(zip(tiled, layout.crop, strict=True))
        seen = [a for a in range(len(source.shape)) if a not in each]
        shapes.append(tuple(by_axis.get(a, source.shape[a]) for a in seen))
        tiled_axes.append(tuple(seen.index(a) for a in tiled))
        samples.append(_middle(source, each, shapes[-1]) if read else None)
    dtypes = tuple(s.dtype for s in sources)
    names = layout.names[len(layout.each[0]) :]
    crops = Crops(tuple(shapes), dtypes, tuple(tiled_axes), layout.crop, names)
    ranges = [value_range(t, values, s) for t, s in zip(dtypes, samples, strict=True)]
    inputs = Inputs(crops, ranges, samples, np.random.default_rng(seed))
    probing = Probing(BlackBox(fn, batched), inputs, tolerance)
    client = active_client() if isinstance(fn, LoadOnce) else None
    return probing.run() if client is None else client.submit(Probing.run, probing, pure=False).result()


def _middle(source: Source, each: Sequence[int], shape: Sequence[int]) -> Any:
    """Return the crop in the middle of an image; None where it would have to be computed or padded."""
    if isinstance(source, BlockSource) or source.handle is None:
        return None
    lengths, box = iter(shape), []
    for axis, n in enumerate(source.shape):
        c = 1 if axis in each else next(lengths)
        if c > n:
            return None
        box.append(((n - c) // 2, (n - c) // 2 + c))
    return np.array(source.read(box)).reshape(tuple(shape))


def choose_overlap(
    fn: Any, sources: Sequence[Source], request: Request, declared: Outputs | None, *, pass_tile: bool
) -> tuple[Request, Outputs | None, tuple[str, ...]]:
    """Return the request with overlap and multiple filled in, the outputs, and a note that says so.

    What was asked for in samples comes back as it is.

    Raises
    ------
    TilingError
        When ``fn`` takes its tile, so that no crop tells of another, or a stride is given.
    """
    if isinstance(request.overlap, ProbeReport):
        raise TypeError(
            "overlap is a length, not a report: give overlap=report.overlap, multiple=report.multiple, "
            "output=report.output."
        )
    if not isinstance(request.overlap, str) or request.overlap != "auto":
        return request, declared, ()
    if pass_tile:
        raise TilingError(
            'overlap="auto" calls fn on crops that belong to no tile; with pass_tile=True give overlap in '
            "samples."
        )
    if request.stride is not None:
        raise TilingError(
            f'give overlap="auto" or stride, not both; got stride={request.stride!r}. The stride follows '
            "from the overlap: crop - 2 * overlap."
        )
    layout = make_layout(sources, replace(request, overlap=0, multiple=1, blend="trim", rim=0), None)
    report = probe_layout(fn, sources, layout, batched=request.batch_size is not None)
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
    # Overlap less margin is a multiple too.
    overlap = tuple(
        lo + -(-(o - lo) // m) * m for o, (lo, _), m in zip(context, report.margin, multiple, strict=True)
    )
    note = (
        f'overlap="auto": {overlap} per side and multiple {multiple}, by {report.calls} calls of fn{blended}'
    )
    note = _said(note, report, request, averages=averages)
    filled = replace(request, overlap=overlap, multiple=multiple, rim=rim)
    return filled, outputs, (note,)


def _said(note: str, report: ProbeReport, request: Request, *, averages: bool) -> str:
    """Log what was chosen, or warn where it is not exact; return the note for the plan."""
    # Padded by what lies across the border, crops hold what the untiled function sees there.
    round_about = request.edge == "pad" and request.boundary == "wrap"
    if replace(report, wraps=() if round_about else report.wraps).exact:
        _LOG.info("%s; no input farther away was seen to matter", note)
        return note
    todo = "The result may differ from the untiled one: see tw.check."
    if not report.bounded:
        advice = "" if averages else ': blend them, blend="gaussian"'
        todo = f"Neighbouring crops will disagree{advice}; look at the seams."
    note += f"; {report.verdict}"
    warnings.warn(f"{note} ({'; '.join(report.notes)}). {todo}", TilingWarning, stacklevel=4)
    return note


def _averages(request: Request, outputs: Outputs) -> bool:
    """Return whether some output is blended from what several crops say of a sample."""
    blends = [request.blend if output.blend is None else output.blend for _, output in named(outputs)]
    return any(not isinstance(blend, str) or blend not in ("trim", "sum") for blend in blends)


def _rim(report: ProbeReport, outputs: Outputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rim with which blends are exact, whole results long, and the context that it needs."""
    columns = zip(*(scales(output.scale, len(report.names)) for _, output in named(outputs)), strict=True)
    quanta = [math.lcm(*(s.denominator for s in column)) for column in columns]
    rim = tuple(-(-r // q) * q for r, q in zip(report.rim, quanta, strict=True))
    # Where a rim ends, the neighbour must have begun; without one, results have to overlap to be blended.
    return rim, tuple(
        max(o, (r or 1) + max(lost)) for o, r, lost in zip(report.overlap, rim, report.margin, strict=True)
    )
