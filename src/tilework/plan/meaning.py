"""The axes of a result: which of them are axes of the image, at which scale, and which are new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilework.formats.meta import Carried, ImageMeta, NewAxis
from tilework.function.bound import BoundOutput
from tilework.function.output import Output
from tilework.plan.request import Layout
from tilework.source.base import Source

if TYPE_CHECKING:
    import numpy as np

__all__ = ["axes_of", "meaning_of"]


def axes_of(source: Source, layout: Layout, bound: BoundOutput, declared: Output) -> list[Carried | NewAxis]:
    """Return the axes of an output, by the axes of the image; `meaning_of` gives their meaning.

    Axes of `each` and tiled axes keep their meaning. Untiled axes do if the function keeps their number and
    lengths, and ``channels`` of the output does not declare new ones.

    Parameters
    ----------
    source : Source
        The first array of the call.
    layout : Layout
        Its axes and grids.
    bound : BoundOutput
        The output with its weights.
    declared : Output
        Its declaration.
    """
    grid_axes = layout.source_axes[0]
    tiled = [
        Carried(axis, weights.extent, weights.scale)
        for axis, weights in zip(grid_axes, bound.weights, strict=True)
    ]
    argmax = bound.channel_axis is not None
    shape, axes = (bound.shape, bound.axes) if argmax else (bound.reduced_shape, bound.reduced_axes)
    untiled = [a for a in range(len(source.shape)) if a not in grid_axes]
    fresh = declared.channels is not None and not argmax
    rest = iter(_untiled([n for a, n in enumerate(shape) if a not in axes], untiled, source, declared, fresh))
    by_axis = dict(zip(axes, tiled[layout.n_each :], strict=True))
    parts = [by_axis[a] if a in by_axis else next(rest) for a in range(len(shape))]
    kept = [part for a, part in enumerate(parts) if a != bound.channel_axis]
    return [*tiled[: layout.n_each], *kept]


def meaning_of(
    meta: ImageMeta, dtype: np.dtype[Any], axes: Sequence[Carried | NewAxis], result: np.dtype[Any]
) -> ImageMeta:
    """Return what an output with ``axes`` and of dtype ``result`` means, from an image of ``dtype``.

    A value of samples without data is none of another dtype, but for NaN.
    """
    found, value = meta.carried(axes), meta.nodata
    nan = value is not None and value != value
    kept = result == dtype or (nan and result.kind in "fc")
    return found if kept else found.replace(nodata=None)


def _untiled(
    lengths: Sequence[int], axes: Sequence[int], source: Source, declared: Output, fresh: bool
) -> list[Carried | NewAxis]:
    """Return the untiled axes of a result, of ``lengths``, from the untiled ``axes`` of the image."""
    names = declared.channel_names
    extents = [source.shape[a] for a in axes]
    like: Sequence[int | None] = axes if len(axes) == len(lengths) else [None] * len(lengths)
    parts: list[Carried | NewAxis] = [
        NewAxis(n, None, a) if fresh or a is None or source.shape[a] != n else Carried(a, n)
        for n, a in zip(lengths, like, strict=True)
    ]
    if not fresh and len(axes) >= len(lengths) and all(n in extents for n in lengths):
        # Axes that the function dropped or moved; the others are found by their lengths, where these differ.
        found = [[a for a, m in zip(axes, extents, strict=True) if m == n] for n in lengths]
        if all(len(f) == 1 for f in found) and len(set(lengths)) == len(lengths):
            parts = [Carried(f[0], n) for f, n in zip(found, lengths, strict=True)]
        elif len(axes) > len(lengths):
            parts = [NewAxis(n, doubtful=True) for n in lengths]
    if names is not None:
        k = next((k for k, n in enumerate(lengths) if n == len(names)), None)
        if k is not None:
            part = parts[k]
            parts[k] = NewAxis(lengths[k], names, part.axis if isinstance(part, Carried) else part.like)
    return parts
