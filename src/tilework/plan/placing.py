"""Functions that combine several predictions for a crop, bound to the axes of one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tilework._types import Function, Index
from tilework.errors import GridError, TilingError
from tilework.function.bound import BoundOutput
from tilework.function.combining import Combined, Places, functions_in, predictions_of
from tilework.function.folding import check_values
from tilework.function.normalizing import normalizations
from tilework.function.output import Output
from tilework.grid.axis import AxisGrid
from tilework.grid.weights import accumulation_dtype
from tilework.labels.hints import may_be_labels
from tilework.plan.request import Layout, Request
from tilework.source.base import Source

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_both_ends", "check_equal", "places_of", "with_places"]


def with_places(
    fn: Function,
    bound: Sequence[BoundOutput],
    declared: Sequence[Output],
    sources: Sequence[Source],
    layout: Layout,
    request: Request,
) -> tuple[Function, list[BoundOutput]]:
    """Return a combined function that knows where tiled axes are, and outputs as it returns them.

    Other functions, and their outputs, are returned unchanged.

    Raises
    ------
    TilingError
        If the layout is not the same for a crop and its variants, or predictions cannot be combined.
    """
    outputs = list(bound)
    if not isinstance(fn, Combined):
        return fn, outputs
    n_axes, batches = len(layout.crop), request.batch_size is not None
    for combined in _all_of(fn):
        _check_grids(combined, outputs, layout, request)
        _check_statistics(combined, [layout.crop_of(s, k) for k, s in enumerate(sources)], layout)
    if predictions_of(fn, n_axes, batches=batches).made > 1:
        for output, given in zip(outputs, declared, strict=True):
            _check_output(fn, output, given, [s.dtype for s in sources])
    crops = [layout.crop_of(source, k)[1] for k, source in enumerate(sources)]
    places = places_of(outputs, crops, layout.names, batches=batches)
    for k, b in enumerate(outputs):
        if places.wide[k] and b.values is not None and b.values.kind in "iu" and _averages(fn):
            outputs[k] = replace(b, values=accumulation_dtype(b.values, "average"))
    return fn.at(places, n_axes), outputs


def places_of(
    outputs: Sequence[BoundOutput], crops: Sequence[Index], names: Sequence[str], *, batches: bool
) -> Places:
    """Return where tiled axes are.

    It follows from outputs, from positions in the crop of each source, and from ``names`` of all grid axes.
    """
    return Places(
        crops=tuple(crops),
        results=tuple(b.axes for b in outputs),
        keys=tuple(b.key for b in outputs),
        # What a later step casts or reduces anyway is not rounded before.
        wide=tuple(b.dtype.kind in "fc" or b.reduce is not None for b in outputs),
        batches=batches,
        names=tuple(names[len(names) - len(crops[0]) :]),
    )


def _all_of(fn: Function) -> list[Combined]:
    """Return the combined functions in ``fn``, itself first."""
    return [fn, *(c for m in fn.members for c in _all_of(m))] if isinstance(fn, Combined) else []


def _averages(fn: Combined) -> bool:
    """Return whether means of integers are results of ``fn``."""
    return fn.reduce in ("mean", "gmean")


def _check_output(
    fn: Combined, output: BoundOutput, declared: Output, images: Sequence[np.dtype[Any]]
) -> None:
    """Raise if predictions of an output cannot be combined."""
    if output.stored is not None:
        raise TilingError(
            f'labels="{declared.labels}" cannot be combined: ids of one crop mean nothing in another. '
            "Combine what objects are made from, such as probabilities, and find objects in the result: "
            "tiled_map(find, tiled_map(combined, image, ...), ...)."
        )
    if output.values is None:
        return
    for combined in _all_of(fn):
        check_values(combined.reduce, output.values)
    # A filter of an image of this dtype may return it too, but its mean would be rounded.
    known = () if _averages(fn) else images
    if may_be_labels(output.values, known) and declared.dtype is None and declared.reduce is None:
        raise TilingError(
            f"{output.values} predictions would be combined; labels must not be. If they are numbers, say so "
            f'with dtype="{output.values}".'
        )


def _check_grids(fn: Combined, outputs: Sequence[BoundOutput], layout: Layout, request: Request) -> None:
    """Raise unless the layout is the same for a crop and its variants."""
    n = layout.n_each
    grids, names, rim = layout.grids[n:], layout.names[n:], layout.rim[n:]
    variants = fn.variants(len(grids))
    mirrored = {axis for v in variants for axis in (*v.flips, *(v.plane or ()))}
    for axis in sorted(mirrored):
        check_both_ends(names[axis], layout.margin[axis])
        _check_clipped(names[axis], grids[axis])
    if fn.plane is None:
        return
    if request.edge == "clip":
        raise GridError(
            'edge="clip" cuts crops at the border of the image, and turned crops must have the shape of '
            f'others; got rotations={fn.plane}. Use edge="shift", the default.'
        )
    # Given starts fit the length of their own axis; a variant is put back where its crop lies.
    spaced = () if request.starts is not None else ("overlap", "stride")
    for what in ("crop", *spaced, "multiple"):
        check_equal(what, fn.plane, names, [getattr(g, what) for g in grids])
    check_equal("margin", fn.plane, names, layout.margin)
    check_equal("rim", fn.plane, names, rim)
    for output in outputs:
        check_equal("scale", fn.plane, names, output.scale)


def _check_statistics(fn: Combined, crops: Sequence[tuple[Index, Index]], layout: Layout) -> None:
    """Raise if a crop that is mirrored or turned would meet numbers of other indices of an axis.

    ``crops`` has the shape of the crop of each source, and the positions of its tiled axes.
    """
    moved = {axis for v in fn.variants(len(layout.crop)) for axis in (*v.flips, *(v.plane or ()))}
    for member in functions_in(fn):
        pairs = (pair for n in normalizations(member) for pair in zip(n.normalizers, crops, strict=False))
        for own, (shape, tiled) in pairs:
            along = {len(shape) + a for a in own.places} if own is not None and own.stats.axes else set()
            if wrong := sorted(axis for axis in moved if tiled[axis] in along):
                name = layout.names[layout.n_each + wrong[0]]
                raise GridError(
                    f"the statistics have a number for each index of axis {name}, along which crops are "
                    "mirrored or turned. Leave that axis out of flips= and rotations=, or measure without "
                    "each= for it."
                )


def check_both_ends(name: str, margin: tuple[int, int]) -> None:
    """Raise if the margin differs between the ends of an axis on which crops are mirrored."""
    low, high = margin
    if low != high:
        most = max(margin)
        raise GridError(
            f"margin {margin} on axis {name} differs between its ends, so a mirrored crop has its results "
            f"elsewhere. Let fn cut its result to the samples that both have, and declare margin={most} for "
            f"this axis: it must drop {most - low} more at the start and {most - high} more at the end "
            "(times the scale)."
        )


def _check_clipped(name: str, grid: AxisGrid) -> None:
    """Raise if mirrored crops lie otherwise on the multiples than the mirrored image does."""
    left = grid.extent + sum(grid.margin) - grid.crop
    if grid.edge == "clip" and len(grid) > 1 and left % grid.multiple:
        raise GridError(
            f'edge="clip" cuts crops of {grid.crop} at the end of {grid.extent} samples on axis {name}; '
            f"mirrored ones keep the multiple {grid.multiple} only if it divides the difference. Use "
            'edge="shift", which pads the image.'
        )


def check_equal(what: str, plane: tuple[int, int], names: Sequence[str], values: Sequence[object]) -> None:
    """Raise if a value differs between the two axes of quarter turns."""
    p, q = plane
    if values[p] != values[q]:
        raise GridError(
            f"{what} must be equal on the axes of rotations={plane}, which change places; got "
            f"{values[p]} on axis {names[p]} and {values[q]} on axis {names[q]}."
        )
