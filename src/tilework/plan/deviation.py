"""``disagreement=True``: the deviation of overlapping predictions from each other, without extra calls.

The wrapped function returns two arrays: its result, and a stack of the result and its square in double
precision. The engine blends the stack like any other output, and the last step of a block computes the
deviation from the two means: ``sqrt(mean(f * f) - mean(f) ** 2)``, with the weights of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilework._types import Array, Function
from tilework.errors import TilingError
from tilework.function.bound import BoundOutput, bind
from tilework.function.calling import is_batched
from tilework.function.combining import moments_of, predictions_of
from tilework.function.output import Output, Outputs
from tilework.plan.request import Layout, Request

__all__ = ["with_deviation"]

# Largest ratio of variance to mean square that is rounding in double precision.
ROUNDING = 8 * float(np.finfo(np.float64).eps)


def with_deviation(
    fn: Function, bound: Sequence[BoundOutput], declared: Outputs, layout: Layout, request: Request
) -> tuple[Function, list[BoundOutput], Outputs]:
    """Return a function, bound outputs and declarations with the deviation as a second output.

    Raises
    ------
    TilingError
        If predictions are not averaged or not real numbers, or the function returns several arrays.
    """
    if len(bound) != 1 or not isinstance(declared, Output):
        raise TilingError(
            f"disagreement=True is for a function with one result; got {len(bound)}. Return one of them, or "
            "all as channels of one array."
        )
    first = bound[0]
    batched = request.batch_size is not None or is_batched(fn)
    # Those for one crop may differ, whether or not crops overlap.
    several = predictions_of(fn, len(layout.crop), batches=batched).made > 1
    if not first.weighted and not (several and first.kind == "trim" and first.stored is None):
        word = "blend" if declared.labels is None else "labels"
        raise TilingError(
            "disagreement=True compares predictions that overlap and are averaged; got "
            f'{word}="{first.kind}". Use blend="gaussian", "hann", "linear" or "average".'
        )
    if not several and all(g.stride == g.crop - sum(g.margin) for g in layout.grids):
        raise TilingError(
            "disagreement=True compares predictions that overlap; got crops side by side. Give overlap, or a "
            "stride smaller than the crop."
        )
    values = first.values or first.dtype
    if values.kind not in "iuf":
        raise TilingError(f"disagreement=True needs real numbers; the function returns {values}.")
    wrapped: Any = functools.partial(_with_squares, fn, batched)
    # `is_batched` looks at the wrapper instead of the function.
    wrapped.__tilework_batched__ = batched
    second = Output(
        "float64" if values == np.float64 else "float32",
        shape=(2, *first.shape),
        axes=tuple(a + 1 for a in first.axes),
        scale=first.scale,
        margin=layout.margin,
        blend=declared.blend,
        reduce=_deviation,
    )
    stack = np.broadcast_to(np.zeros((), np.float64), (2, *first.shape))
    # NaN, whatever the fill value of the result: where no tile ran, 0 would mean that predictions agree.
    deviation = bind(
        1, second, crop_shape=first.shape, crop_axes=first.axes, crop=layout.crop, margin=layout.margin,
        blend=request.blend, fill_value=np.nan, result=stack,
    )  # fmt: skip
    return wrapped, [replace(first, key=0), deviation], (declared, second)


def _with_squares(fn: Function, batched: bool, *crops: Array, **tile: Any) -> tuple[Array, Array]:
    """Return the result of ``fn``, and a stack of result and square along a new first or post-batch axis."""
    result, mean, square = moments_of(fn, *crops, **tile)
    return result, np.stack((mean, square), axis=int(batched))


def _deviation(block: Array) -> Array:
    """Return the weighted standard deviation from the means of values and of their squares."""
    mean, square = block
    variance = square - mean * mean
    # A NaN is no agreement: it is not replaced.
    return np.sqrt(np.where(variance <= ROUNDING * square, 0, variance))
